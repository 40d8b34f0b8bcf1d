//! The log records of a shard (docs/STATES.md, C2) and their bytes.
//!
//! A block is a wall stamp (u64, Unix microseconds) and a sequence of records:
//!
//! | offset | field | type |
//! |---|---|---|
//! | 0 | kind | u8 |
//! | 1 | flags | u8 |
//! | 2 | body length | u16 |
//! | 4 | microseconds since the block's stamp | u32 |
//! | 8 | body | |
//!
//! Everything is little endian; texts carry a length byte. Knows nothing of
//! the state they change. Tested by round trips over random records, by
//! truncation at every byte and by random bytes.

mod dump;
mod read;
mod write;

pub(super) use read::{Body, Sequences, read_limits, read_merchant};
pub use read::{Records, is_members};
pub use write::{append, split_off};
pub(super) use write::{put_text, put_u16, put_u64, write_limits, write_merchant};

use super::merchant::{Limits, Merchant};
use super::order::{AttemptState, CancelCause, Class, RefundKind};
use protocol::code::{Method, OrderState, Reason, RefundState, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use protocol::money::{Amount, Currency};

/// A committed block that cannot be read. The replica must stop: the log said
/// it was whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The block ends inside its stamp, a header or a body.
    #[error("block ends inside the record at offset {offset}")]
    Truncated {
        /// Offset of the record in the block.
        offset: usize,
    },
    /// No such kind.
    #[error("unknown record kind {kind} at offset {offset}")]
    UnknownKind {
        /// Offset of the record in the block.
        offset: usize,
        /// Kind found.
        kind: u8,
    },
    /// A field is outside its table or range, or the body has bytes left over.
    #[error("record of kind {kind} at offset {offset} has an invalid body")]
    InvalidBody {
        /// Offset of the record in the block.
        offset: usize,
        /// Kind of the record.
        kind: u8,
    },
}

/// B: an order accepted and its first attempt started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin<'a> {
    /// Payment sequence.
    pub sequence: u64,
    /// Merchant.
    pub mch_id: MchId,
    /// The merchant's number.
    pub out_trade_no: OutTradeNo,
    /// Order digest.
    pub digest: [u8; 16],
    /// Content fingerprint.
    pub fingerprint: [u8; 16],
    /// Amount.
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
    /// Method.
    pub method: Method,
    /// Scene.
    pub scene: Scene,
    /// Channel of the first attempt.
    pub channel: u16,
    /// Gateway that brought it.
    pub gateway: u16,
    /// Expiry, Unix milliseconds.
    pub time_expire_ms: u64,
    /// Hash of the payer token.
    pub payer_hash: u64,
    /// Hash of the device id.
    pub device_hash: u64,
    /// Outcome events wanted.
    pub notify: bool,
    /// A second signature was given.
    pub second_signature: bool,
    /// Remaining content, opaque.
    pub content: &'a [u8],
}

/// B: a further attempt started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextAttempt {
    /// Payment sequence.
    pub sequence: u64,
    /// Ordinal of the attempt.
    pub ordinal: u8,
    /// Its channel.
    pub channel: u16,
}

/// E or Y: evidence, and what follows for attempt and order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Payment sequence.
    pub sequence: u64,
    /// Attempt.
    pub attempt: u8,
    /// Whether it ends a reversal (Y).
    pub cancel_result: bool,
    /// Class of the evidence.
    pub class: Class,
    /// The attempt's state from now on.
    pub attempt_state: AttemptState,
    /// The order's state from now on.
    pub order_state: OrderState,
    /// Why.
    pub reason: Reason,
    /// Amount the channel named, minor units.
    pub amount: i64,
    /// The channel's own number.
    pub channel_ref: ShortText,
}

/// X: a cancel started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelStart {
    /// Payment sequence.
    pub sequence: u64,
    /// Attempt.
    pub attempt: u8,
    /// Who wishes it.
    pub cause: CancelCause,
    /// The attempt is being reversed from now on; else only the wish is set.
    pub reversing: bool,
    /// It counts in the merchant's refund rate.
    pub counted: bool,
}

/// F: a refund accepted, its amount reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefundStart {
    /// Payment sequence.
    pub sequence: u64,
    /// Ordinal of the refund within the payment.
    pub ordinal: u8,
    /// What it is for.
    pub kind: RefundKind,
    /// Attempt whose money goes back.
    pub attempt: u8,
    /// Amount.
    pub amount: Amount,
    /// The merchant's number, or the channel number of a refund of our own.
    pub out_refund_no: OutRefundNo,
    /// It counts in the merchant's refund rate.
    pub counted: bool,
}

/// G: a refund's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefundOutcome {
    /// Payment sequence.
    pub sequence: u64,
    /// Ordinal of the refund.
    pub ordinal: u8,
    /// Class of the evidence.
    pub class: Class,
    /// The refund's state from now on.
    pub state: RefundState,
    /// Why.
    pub reason: Reason,
    /// The channel's own number.
    pub channel_ref: ShortText,
}

/// M: an operator's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Payment sequence.
    pub sequence: u64,
    /// Attempt or refund ordinal.
    pub ordinal: u8,
    /// It is about a refund.
    pub refund: bool,
    /// The money moved.
    pub success: bool,
    /// Operator.
    pub operator: ShortText,
    /// Second operator; empty only in logs of before every decision took two.
    pub second: ShortText,
    /// Evidence in their words.
    pub note: ShortText,
}

/// A merchant created or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MerchantPut {
    /// Operator.
    pub operator: ShortText,
    /// The record.
    pub merchant: Merchant,
}

/// A merchant's limits changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsPut {
    /// Operator.
    pub operator: ShortText,
    /// Merchant.
    pub mch_id: MchId,
    /// New limits.
    pub limits: Limits,
    /// When the previous ones come back, Unix milliseconds; 0: never.
    pub until_ms: u64,
}

/// Whether a site may lead shards. Only in the log of shard 0, valid for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteDrain {
    /// Operator.
    pub operator: ShortText,
    /// Site, from 1 and below 64.
    pub site: u8,
    /// It shall not lead from now on.
    pub drained: bool,
}

/// An operator asked for a site to become a member, or to be none any more.
/// Only in the log of shard 0; the changes themselves are [`Members`] records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteMember {
    /// Operator.
    pub operator: ShortText,
    /// Site, from 1 and below 64.
    pub site: u8,
    /// It shall be a member.
    pub member: bool,
}

/// C: a change of the sites that hold the shard. Alone in its block, which is
/// an entry of consensus and means nothing to payments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Members<'a> {
    /// Who asked for it; empty: the replicas themselves, ending a change.
    pub operator: ShortText,
    /// Made by `recover --force-quorum`, without a majority.
    pub forced: bool,
    /// How consensus carries it out: 0 as it sees fit, 1 through a joint
    /// majority that ends by itself, 2 through one that is ended by a record.
    pub transition: u8,
    /// Pairs of what becomes of a site (one of [`members`]) and the site.
    pub changes: &'a [[u8; 2]],
}

/// What becomes of a site in a [`Members`] record.
pub mod members {
    /// It votes.
    pub const VOTER: u8 = 0;
    /// It is none any more.
    pub const REMOVED: u8 = 1;
    /// It gets the log and has no vote.
    pub const LEARNER: u8 = 2;

    /// The name in dumps.
    pub fn name(kind: u8) -> &'static str {
        match kind {
            VOTER => "voter",
            REMOVED => "removed",
            _ => "learner",
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// B, first attempt.
    Begin(Begin<'a>),
    /// B, further attempt.
    NextAttempt(NextAttempt),
    /// E and Y.
    Outcome(Outcome),
    /// X.
    CancelStart(CancelStart),
    /// F.
    RefundStart(RefundStart),
    /// G.
    RefundOutcome(RefundOutcome),
    /// U: an attempt is in doubt.
    Doubt {
        /// Payment sequence.
        sequence: u64,
        /// Attempt.
        attempt: u8,
    },
    /// N: an event was taken over, or given up.
    Delivered {
        /// Event.
        event_id: u64,
        /// Taken over by a subscriber.
        taken: bool,
    },
    /// M.
    Decision(Decision),
    /// Merchant record.
    MerchantPut(Box<MerchantPut>),
    /// Limits record.
    LimitsPut(LimitsPut),
    /// Site record.
    SiteDrain(SiteDrain),
    /// Membership wish.
    SiteMember(SiteMember),
    /// C.
    Members(Members<'a>),
}

/// A record with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped<'a> {
    /// Unix microseconds.
    pub at_us: u64,
    /// The record.
    pub record: Record<'a>,
}

const STAMP_LEN: usize = 8;
const HEADER_LEN: usize = 8;

mod kind {
    pub(super) const BEGIN: u8 = b'B';
    pub(super) const NEXT_ATTEMPT: u8 = b'A';
    pub(super) const EVIDENCE: u8 = b'E';
    pub(super) const CANCEL_START: u8 = b'X';
    pub(super) const CANCEL_RESULT: u8 = b'Y';
    pub(super) const REFUND_START: u8 = b'F';
    pub(super) const REFUND_OUTCOME: u8 = b'G';
    pub(super) const DOUBT: u8 = b'U';
    pub(super) const DELIVERED: u8 = b'N';
    pub(super) const DECISION: u8 = b'M';
    pub(super) const MERCHANT_PUT: u8 = b'P';
    pub(super) const LIMITS_PUT: u8 = b'L';
    pub(super) const SITE_DRAIN: u8 = b'S';
    pub(super) const SITE_MEMBER: u8 = b'J';
    pub(super) const MEMBERS: u8 = b'C';
}

/// Most sites of a cluster, plus one: a bit each in a word.
pub const SITES_END: u8 = 64;

/// Most keys of a merchant.
pub const KEYS_MAX: usize = 2;
/// Longest key material, bytes.
pub const KEY_MATERIAL_MAX: usize = 128;
/// Most gateway names, and most address ranges, of a merchant.
pub const RANGES_MAX: usize = 16;
impl Record<'_> {
    /// Appends the record, made at `wall_us`, to an open block.
    pub fn append(&self, wall_us: u64, block: &mut Vec<u8>) {
        append(block, wall_us, self);
    }

    /// The record's name in dumps and time lines.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin(_) => "begin",
            Self::NextAttempt(_) => "attempt",
            Self::Outcome(r) if r.class == Class::Noted => "noted",
            Self::Outcome(r) if r.attempt_state == AttemptState::Awaiting => "awaiting",
            Self::Outcome(r) if r.class == Class::RouteEnded => "route_end",
            Self::Outcome(_) => "end",
            Self::CancelStart(_) => "cancel",
            Self::RefundStart(_) => "refund",
            Self::RefundOutcome(_) => "refund_end",
            Self::Doubt { .. } => "doubt",
            Self::Delivered { .. } => "delivered",
            Self::Decision(_) => "decided",
            Self::MerchantPut(_) => "merchant",
            Self::LimitsPut(_) => "limits",
            Self::SiteDrain(_) => "site",
            Self::SiteMember(_) => "member",
            Self::Members(_) => "members",
        }
    }

    /// The payment the record is about.
    pub fn sequence(&self) -> Option<u64> {
        match self {
            Self::Begin(r) => Some(r.sequence),
            Self::NextAttempt(r) => Some(r.sequence),
            Self::Outcome(r) => Some(r.sequence),
            Self::CancelStart(r) => Some(r.sequence),
            Self::RefundStart(r) => Some(r.sequence),
            Self::RefundOutcome(r) => Some(r.sequence),
            Self::Decision(r) => Some(r.sequence),
            Self::Doubt { sequence, .. } => Some(*sequence),
            Self::Delivered { event_id, .. } => Some(super::outbox::event_payment(*event_id)),
            Self::MerchantPut(_)
            | Self::LimitsPut(_)
            | Self::SiteDrain(_)
            | Self::SiteMember(_)
            | Self::Members(_) => None,
        }
    }
}
