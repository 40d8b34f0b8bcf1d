//! The records of payments, attempts and refunds, and where they are kept.
//!
//! An order is one fixed-size record whose place is its sequence, so that a
//! transaction id or an operation id leads to it without a look-up. Fields
//! under `live` are the leader's view of what is proposed or under way: they
//! are volatile, never hashed and never decide how a record is applied.

use super::index::Index;
use super::prefetch::prefetch;
use super::slab::{Bitmap, Chunked, NIL, Slab};
use protocol::channel::{NumberKind, refund_number};
use protocol::code::{Method, OrderState, Reason, RefundState, Scene};
use protocol::id::{ChannelNo, OutRefundNo, OutTradeNo, ShortText};
use protocol::money::Currency;

/// States of an attempt (docs/STATES.md, C3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum AttemptState {
    /// Durable; may have been sent.
    Started = 1,
    /// The payer must act.
    Awaiting = 2,
    /// Charged. Definitive.
    Succeeded = 3,
    /// Declined. Definitive.
    Declined = 4,
    /// Proven not to stand and never to stand. Definitive.
    Void = 5,
    /// Nobody here knows.
    Unknown = 6,
    /// Being undone.
    Reversing = 7,
    /// In front of an operator.
    Manual = 8,
}

impl AttemptState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Started,
        Self::Awaiting,
        Self::Succeeded,
        Self::Declined,
        Self::Void,
        Self::Unknown,
        Self::Reversing,
        Self::Manual,
    ];

    /// Whether the state is never left.
    pub fn is_definitive(self) -> bool {
        matches!(self, Self::Succeeded | Self::Declined | Self::Void)
    }

    /// Reads the state from a record.
    pub fn from_wire(raw: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == raw)
    }

    /// Name as logs and JSON print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "STARTED",
            Self::Awaiting => "AWAITING",
            Self::Succeeded => "SUCCEEDED",
            Self::Declined => "DECLINED",
            Self::Void => "VOID",
            Self::Unknown => "UNKNOWN",
            Self::Reversing => "REVERSING",
            Self::Manual => "MANUAL",
        }
    }
}

/// What a channel statement, or the absence of one, amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// Money moved, amount and currency as asked.
    Success = 1,
    /// Declined for good.
    Declined = 2,
    /// The payer must act, or the channel works on it.
    Pending = 3,
    /// No such number.
    NotFound = 4,
    /// Reversed; the number is fenced.
    Reversed = 5,
    /// Says nothing about money: busy, broken, lost, timed out.
    Silent = 6,
    /// Proof that nothing was handed to the transport.
    NotSent = 7,
    /// Money moved, but amount, currency or number differ.
    Integrity = 8,
    /// No definite answer within the budget.
    BudgetSpent = 9,
    /// No statement: the order ends as its attempts stand.
    RouteEnded = 10,
    /// Contradicts a definitive state: noted, nothing changes.
    Noted = 11,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 11] = [
        Self::Success,
        Self::Declined,
        Self::Pending,
        Self::NotFound,
        Self::Reversed,
        Self::Silent,
        Self::NotSent,
        Self::Integrity,
        Self::BudgetSpent,
        Self::RouteEnded,
        Self::Noted,
    ];

    /// Reads the class from a record.
    pub fn from_wire(raw: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| *class as u8 == raw)
    }

    /// Name as logs and JSON print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "SUCCESS",
            Self::Declined => "DECLINED",
            Self::Pending => "PENDING",
            Self::NotFound => "NOT_FOUND",
            Self::Reversed => "REVERSED",
            Self::Silent => "SILENT",
            Self::NotSent => "NOT_SENT",
            Self::Integrity => "INTEGRITY",
            Self::BudgetSpent => "BUDGET_SPENT",
            Self::RouteEnded => "ROUTE_ENDED",
            Self::Noted => "NOTED",
        }
    }
}

/// Who wishes the order cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CancelCause {
    /// Nobody.
    None = 0,
    /// The merchant, by close or reverse.
    Merchant = 1,
    /// `time_expire` passed.
    Expired = 2,
    /// Nobody: the resolver gave up waiting for this attempt.
    GaveUp = 3,
}

impl CancelCause {
    /// Reads the cause from a record.
    pub fn from_wire(raw: u8) -> Option<Self> {
        [Self::None, Self::Merchant, Self::Expired, Self::GaveUp]
            .into_iter()
            .find(|cause| *cause as u8 == raw)
    }

    /// Name as logs and JSON print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Merchant => "merchant",
            Self::Expired => "expired",
            Self::GaveUp => "gave_up",
        }
    }

    /// Whether the order is no longer wanted.
    pub(super) fn is_cancel(self) -> bool {
        matches!(self, Self::Merchant | Self::Expired)
    }

    /// The reason of a closed order.
    pub(super) fn reason(self) -> Reason {
        if self == Self::Expired { Reason::Expired } else { Reason::Cancelled }
    }
}

/// What a refund is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RefundKind {
    /// The merchant asked.
    Merchant = 1,
    /// Undoes a charge that stands although the order is cancelled, or a paid
    /// order that is reversed.
    Reversal = 2,
    /// Compensates a charge that appeared after its attempt ended.
    Orphan = 3,
}

impl RefundKind {
    /// Reads the kind from a record.
    pub fn from_wire(raw: u8) -> Option<Self> {
        [Self::Merchant, Self::Reversal, Self::Orphan].into_iter().find(|k| *k as u8 == raw)
    }

    /// Name as logs and JSON print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Merchant => "MERCHANT",
            Self::Reversal => "REVERSAL",
            Self::Orphan => "ORPHAN",
        }
    }

    /// Ordinal of a refund of this kind: the merchant's count up from 1, ours
    /// have places of their own, so that their numbers never meet.
    pub(super) fn ordinal(self, merchants: u8, attempt: u8) -> u8 {
        match self {
            Self::Merchant => merchants + 1,
            Self::Reversal => REVERSAL_ORDINAL,
            Self::Orphan => ORPHAN_ORDINAL + attempt,
        }
    }

    pub(super) fn number_kind(self) -> NumberKind {
        match self {
            Self::Merchant => NumberKind::Refund,
            Self::Reversal => NumberKind::Reversal,
            Self::Orphan => NumberKind::Orphan,
        }
    }
}

/// Ordinal of the reversal; the merchant's refunds stay below.
pub(super) const REVERSAL_ORDINAL: u8 = 100;
/// Orphan refunds follow: this plus the attempt.
const ORPHAN_ORDINAL: u8 = 110;

/// One attempt.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    pub(super) channel_ref: ShortText,
    pub(super) channel: u16,
    pub(super) reason: Reason,
    pub(super) ordinal: u8,
    pub(super) state: AttemptState,
    /// What made it definitive; tells a reversal from a "not found".
    pub(super) class: Class,
    /// A contradiction was logged.
    pub(super) noted: bool,
    /// A reversal was started: its request may wander for long.
    pub(super) reversal_started: bool,
}

/// An attempt that a later one replaced.
pub(super) struct EarlierAttempt {
    pub(super) attempt: Attempt,
    pub(super) next: u32,
}

/// The leader's volatile view of an order.
#[derive(Clone, Copy)]
pub(super) struct Live {
    /// Reserved by refunds that are proposed.
    pub(super) reserving: i64,
    /// First waiter.
    pub(super) waiters: u32,
    /// Open case of the newest attempt.
    pub(super) case: u32,
    pub(super) waiter_count: u8,
    /// Cancel that is proposed.
    pub(super) cancelling: CancelCause,
    /// Somebody is to be answered as soon as BEGIN is durable.
    pub(super) overdue: bool,
    /// An outcome is proposed.
    pub(super) ending: bool,
    /// A next attempt is proposed.
    pub(super) starting: bool,
    /// The charge is without answer and inside its time-out.
    pub(super) in_flight: bool,
}

impl Live {
    pub(super) const NONE: Self = Self {
        reserving: 0,
        waiters: NIL,
        case: NIL,
        waiter_count: 0,
        cancelling: CancelCause::None,
        overdue: false,
        ending: false,
        starting: false,
        in_flight: false,
    };
}

/// One payment.
pub(super) struct Order {
    pub(super) digest: [u8; 16],
    pub(super) fingerprint: [u8; 16],
    pub(super) amount: i64,
    pub(super) refunded: i64,
    pub(super) reserved: i64,
    pub(super) time_expire_ms: u64,
    pub(super) created_ms: u64,
    pub(super) finished_ms: u64,
    /// Merchant's place in the directory.
    pub(super) merchant: u32,
    /// First of the earlier attempts, newest first.
    pub(super) earlier: u32,
    /// First refund, newest first.
    pub(super) refunds: u32,
    /// Events created.
    pub(super) events: u32,
    pub(super) gateway: u16,
    pub(super) reason: Reason,
    pub(super) out_trade_no: OutTradeNo,
    pub(super) currency: Currency,
    pub(super) method: Method,
    pub(super) scene: Scene,
    pub(super) state: OrderState,
    pub(super) cancel: CancelCause,
    pub(super) notify: bool,
    /// Refunds that the merchant asked for.
    pub(super) refund_count: u8,
    pub(super) attempt: Attempt,
    pub(super) live: Live,
}

impl Order {
    /// What fills place 0, which no payment has.
    fn nothing() -> Self {
        let text = |raw: &[u8]| OutTradeNo::parse(raw);
        let Ok(out_trade_no) = text(b"-") else { unreachable!("a valid number") };
        let Some(currency) = Currency::new(*b"XXX") else { unreachable!("three letters") };
        Self {
            digest: [0; 16],
            fingerprint: [0; 16],
            amount: 0,
            refunded: 0,
            reserved: 0,
            time_expire_ms: 0,
            created_ms: 0,
            finished_ms: 0,
            merchant: NIL,
            earlier: NIL,
            refunds: NIL,
            events: 0,
            gateway: 0,
            reason: Reason::None,
            out_trade_no,
            currency,
            method: Method::Wallet,
            scene: Scene::Pos,
            state: OrderState::None,
            cancel: CancelCause::None,
            notify: false,
            refund_count: 0,
            attempt: super::admit::new_attempt(0, 0),
            live: Live::NONE,
        }
    }

    /// The cancel wish as it will stand once everything proposed is applied.
    pub(super) fn cancel_wish(&self) -> CancelCause {
        if self.cancel.is_cancel() { self.cancel } else { self.live.cancelling }
    }

    pub(super) fn expired(&self, wall_us: u64) -> bool {
        wall_us / 1000 >= self.time_expire_ms
    }
}

/// One refund.
pub(super) struct Refund {
    pub(super) sequence: u64,
    pub(super) amount: i64,
    pub(super) created_ms: u64,
    pub(super) finished_ms: u64,
    pub(super) out_refund_no: OutRefundNo,
    pub(super) channel_ref: ShortText,
    pub(super) reason: Reason,
    pub(super) kind: RefundKind,
    pub(super) state: RefundState,
    pub(super) ordinal: u8,
    /// Ordinal of the attempt whose money goes back.
    pub(super) attempt: u8,
    pub(super) next: u32,
    /// Volatile: not committed yet.
    pub(super) proposed: bool,
    /// Volatile: an outcome is proposed.
    pub(super) ending: bool,
    /// Volatile: open case.
    pub(super) case: u32,
    /// Volatile: first waiter.
    pub(super) waiters: u32,
    pub(super) waiter_count: u8,
}

impl Refund {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, RefundState::Processing | RefundState::Manual)
    }
}

/// All payments of the shard.
pub(super) struct Orders {
    slots: Chunked<Order>,
    pub(super) index: Index,
    /// The next sequence whose B record is to be applied; slots from here on
    /// are proposals.
    pub(super) committed: u64,
    /// Orders that are not final or have an open refund.
    pub(super) busy: Bitmap,
    pub(super) earlier: Slab<EarlierAttempt>,
    pub(super) refunds: Slab<Refund>,
}

impl Orders {
    pub(super) fn new() -> Self {
        let mut slots = Chunked::new();
        // Sequences begin at 1: 0 means "none" in dumps and reports.
        slots.push(Order::nothing());
        Self {
            slots,
            index: Index::new(),
            committed: 1,
            busy: Bitmap::default(),
            earlier: Slab::new(),
            refunds: Slab::new(),
        }
    }

    /// The next free sequence, after all proposals.
    pub(super) fn len(&self) -> u64 {
        self.slots.len()
    }

    pub(super) fn push(&mut self, order: Order) -> u64 {
        let digest = order.digest;
        let sequence = self.slots.push(order);
        self.index.insert(&digest, sequence);
        sequence
    }

    /// Takes the newest proposal out again.
    pub(super) fn pop_proposed(&mut self) -> Option<Order> {
        if self.slots.len() == self.committed {
            return None;
        }
        let order = self.slots.pop()?;
        self.index.remove(&order.digest, self.slots.len());
        Some(order)
    }

    #[inline]
    pub(super) fn find(&self, digest: &[u8; 16], merchant: u32, no: &OutTradeNo) -> Option<u64> {
        self.index.find(digest, |sequence| {
            let order = &self.slots[sequence];
            order.merchant == merchant && order.out_trade_no == *no
        })
    }

    /// Asks for the memory of an order without waiting for it: an order spans
    /// four cache lines that were last touched a channel's round trip ago.
    #[inline]
    pub(super) fn warm(&self, sequence: u64) {
        if let Some(order) = self.slots.get(sequence) {
            prefetch(order);
        }
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Order> {
        self.slots.get(sequence)
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Order> {
        self.slots.get_mut(sequence)
    }

    /// The order, if its B record is applied.
    pub(super) fn committed(&self, sequence: u64) -> Option<&Order> {
        if (1..self.committed).contains(&sequence) { self.slots.get(sequence) } else { None }
    }

    /// Attempt `ordinal`, newest or earlier.
    pub(super) fn attempt(&self, sequence: u64, ordinal: u8) -> Option<&Attempt> {
        let order = self.slots.get(sequence)?;
        if order.attempt.ordinal == ordinal {
            return Some(&order.attempt);
        }
        let mut at = order.earlier;
        while let Some(earlier) = self.earlier.get(at) {
            if earlier.attempt.ordinal == ordinal {
                return Some(&earlier.attempt);
            }
            at = earlier.next;
        }
        None
    }

    /// As [`Orders::attempt`], to change it.
    pub(super) fn attempt_mut(&mut self, sequence: u64, ordinal: u8) -> Option<&mut Attempt> {
        let order = self.slots.get_mut(sequence)?;
        if order.attempt.ordinal == ordinal {
            return Some(&mut order.attempt);
        }
        let mut at = order.earlier;
        loop {
            let earlier = self.earlier.get(at)?;
            if earlier.attempt.ordinal == ordinal {
                break;
            }
            at = earlier.next;
        }
        self.earlier.get_mut(at).map(|earlier| &mut earlier.attempt)
    }

    /// The order's refunds with their places, newest first.
    pub(super) fn refunds_of(&self, sequence: u64) -> impl Iterator<Item = (u32, &Refund)> {
        let mut at = self.slots.get(sequence).map_or(NIL, |order| order.refunds);
        std::iter::from_fn(move || {
            let (place, refund) = (at, self.refunds.get(at)?);
            at = refund.next;
            Some((place, refund))
        })
    }

    /// Puts a refund in front of the order's list.
    pub(super) fn add_refund(&mut self, mut refund: Refund) -> u32 {
        let sequence = refund.sequence;
        refund.next = self.slots[sequence].refunds;
        let kind = refund.kind;
        let place = self.refunds.insert(refund);
        let order = &mut self.slots[sequence];
        order.refunds = place;
        order.refund_count += u8::from(kind == RefundKind::Merchant);
        place
    }

    /// Brings the busy bit in line with the order and its refunds.
    pub(super) fn settle_busy(&mut self, sequence: u64) {
        let order = &self.slots[sequence];
        let busy = !order.state.is_final()
            || (order.refunds != NIL
                && self
                    .refunds_of(sequence)
                    .any(|(_, refund)| refund.is_open() && !refund.proposed));
        self.busy.put(sequence, busy);
    }

    /// The channel's number of a refund.
    pub(super) fn refund_number(&self, refund: &Refund) -> ChannelNo {
        let order = &self.slots[refund.sequence];
        refund_number(&order.digest, refund.kind.number_kind(), refund.ordinal)
    }
}

impl std::ops::Index<u64> for Orders {
    type Output = Order;
    #[inline]
    fn index(&self, sequence: u64) -> &Order {
        &self.slots[sequence]
    }
}

impl std::ops::IndexMut<u64> for Orders {
    #[inline]
    fn index_mut(&mut self, sequence: u64) -> &mut Order {
        &mut self.slots[sequence]
    }
}
