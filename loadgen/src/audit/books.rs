//! The comparison: what the log, the channel's ledger and the acknowledgements
//! say about every payment, against the rules of money.
//!
//! Pure: facts in, violations out. Independent of the switch's code: the
//! states are derived here from the records by the rules' own tables. Feed the
//! log first, then the ledger (`bookings`), then the acknowledgements (`told`),
//! then judge what came of it (`closing`).
//! Tested with doctored histories for every rule, and clean ones.

use super::events::Noticed;
use super::limits::Merchants;
use super::log::{Ending, Fact, Line};
use super::table::{ATTEMPTS_MAX, Attempt, Cancel, Payment, State, Table};
use crate::channel::number::REVERSAL_ORDINAL;
use protocol::channel::{ChannelStatus, charge_number, order_digest};
use protocol::code::RefundState;
use protocol::id::{MchId, OutTradeNo};
use std::collections::HashMap;

/// Ordinals above this are refunds of orphan charges.
pub(super) const ORPHAN_ORDINAL: u8 = 110;
/// Rule of logs that must agree with each other and with themselves.
pub(super) const SITES_DIFFER: u8 = 15;
/// Violations kept with their text; all are counted.
const KEPT_MAX: usize = 1_000;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Violation {
    /// Number of the invariant (docs/STATES.md, C13).
    pub(crate) invariant: u8,
    /// What is wrong.
    pub(crate) detail: String,
    /// Digest of the payment, hex; empty when it is about none.
    pub(crate) payment: String,
    #[serde(skip)]
    pub(super) digest: Option<[u8; 16]>,
}

/// Money on both sides, minor units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Sums {
    /// Paid, by the log.
    pub(crate) log_paid: i64,
    /// Given back, by the log.
    pub(crate) log_refunded: i64,
    /// Charged and standing, by the channel.
    pub(crate) channel_charged: i64,
    /// Given back, by the channel.
    pub(crate) channel_refunded: i64,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Checked {
    /// Payments in the log.
    pub(crate) payments: u64,
    /// Records of the log.
    pub(crate) records: u64,
    /// Entries of the channel's ledger.
    pub(crate) ledger_entries: u64,
    /// Acknowledgements.
    pub(crate) acks: u64,
    /// Outcome events that gateways got, repeated ones included.
    pub(crate) events: u64,
    /// Requests whose answer never came.
    pub(crate) unknown: u64,
    /// Refunds in the log.
    pub(crate) refunds: u64,
    /// Logs that were compared.
    pub(crate) sites: u64,
    /// Blocks that most of several sites hold.
    pub(crate) blocks: u64,
}

pub(super) struct RefundLine {
    /// When it began, Unix milliseconds.
    pub(super) begun_ms: u64,
    pub(super) amount: i64,
    pub(super) attempt: u8,
    pub(super) state: RefundState,
    pub(super) channel: Option<ChannelStatus>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) reserved: i64,
    pub(super) refunded: i64,
    pub(super) channel_refunded: i64,
    /// The merchant asked for a refund.
    wished: bool,
}

/// What an attempt's end means for its payment.
#[derive(Clone, Copy)]
struct After {
    /// Another attempt follows.
    goes_on: bool,
    /// A charge of a cancelled payment will be undone.
    undone: bool,
    /// Nothing may start any more: what was never charged is closed.
    expired: bool,
    /// What the payment becomes by the record's own word.
    said: State,
}

/// An operators' word.
const OF_OPERATORS: After =
    After { goes_on: false, undone: true, expired: false, said: State::None };

/// Where a shard's log has got to.
#[derive(Clone, Copy, Default)]
struct Place {
    index: u64,
    record: u32,
    term: u64,
}

/// The audit's memory.
pub(crate) struct Books {
    pub(super) table: Table,
    pub(super) refunds: HashMap<(u32, u8), RefundLine>,
    /// Refunds of a run, by the merchant's number.
    pub(super) refund_requests: HashMap<Vec<u8>, (u32, u8)>,
    pub(super) totals: HashMap<u32, Totals>,
    /// Events that gateways got.
    pub(super) events: Vec<Noticed>,
    merchants: Merchants,
    last: HashMap<u16, Place>,
    /// When attempts behind the first began, Unix milliseconds.
    pub(super) later: HashMap<(u32, u8), u64>,
    pub(super) checked: Checked,
    violations: Vec<Violation>,
    violation_count: u64,
}

impl Books {
    /// Empty books.
    pub(crate) fn new() -> Self {
        Self {
            table: Table::default(),
            refunds: HashMap::new(),
            refund_requests: HashMap::new(),
            totals: HashMap::new(),
            events: Vec::new(),
            merchants: Merchants::default(),
            last: HashMap::new(),
            later: HashMap::new(),
            checked: Checked::default(),
            violations: Vec::new(),
            violation_count: 0,
        }
    }

    /// What was looked at.
    pub(crate) fn checked(&self) -> Checked {
        Checked { payments: self.table.len() as u64, ..self.checked }
    }

    /// Violations found: their number and the first of them.
    pub(crate) fn violations(&self) -> (u64, &[Violation]) {
        (self.violation_count, &self.violations)
    }

    pub(super) fn violation(&mut self, invariant: u8, digest: Option<[u8; 16]>, detail: String) {
        self.violation_count += 1;
        if self.violations.len() < KEPT_MAX {
            let payment = digest.map_or_else(String::new, |digest| {
                digest.iter().map(|byte| format!("{byte:02x}")).collect()
            });
            self.violations.push(Violation { invariant, detail, payment, digest });
        }
    }

    /// Something is wrong with the logs themselves.
    pub(super) fn about_log(&mut self, invariant: u8, detail: String) {
        self.violation(invariant, None, detail);
    }

    /// Logs were compared.
    pub(super) fn compared(&mut self, sites: usize, blocks: u64) {
        self.checked.sites = sites as u64;
        self.checked.blocks = blocks;
    }

    pub(super) fn about(&mut self, invariant: u8, at: u32, detail: String) {
        let digest = self.table.get(at).digest;
        self.violation(invariant, Some(digest), detail);
    }

    /// Takes a record of the log. Records of other replicas that were seen
    /// already are passed over.
    pub(crate) fn record(&mut self, line: &Line<'_>) {
        let last = self.last.entry(line.shard).or_default();
        if (line.index, line.record) <= (last.index, last.record) && last.index > 0 {
            if line.term > last.term {
                let (shard, index) = (line.shard, line.index);
                let detail = format!(
                    "shard {shard} block {index} was replaced, and without frames nobody knows by what"
                );
                self.about_log(SITES_DIFFER, detail);
            }
            return;
        }
        let before = last.term;
        *last = Place { index: line.index, record: line.record, term: line.term.max(before) };
        self.checked.records += 1;
        let (shard, index) = (line.shard, line.index);
        if line.term < before {
            let term = line.term;
            let detail = format!("shard {shard} block {index}: term {term} behind term {before}");
            self.violation(12, None, detail);
        }
        if line.card {
            let detail = format!("shard {shard} block {index}: a text like a card's number");
            self.violation(SITES_DIFFER, None, detail);
        }
        if let Fact::Begin { .. } = line.fact {
            return self.begin(line);
        }
        if line.sequence == 0 {
            return self.rule(line);
        }
        let Some(at) = self.table.by_sequence(line.shard, line.sequence) else {
            let detail = format!(
                "shard {} block {}: a record about payment {} which never began",
                line.shard, line.index, line.sequence
            );
            return self.violation(2, None, detail);
        };
        match line.fact {
            Fact::Attempt(attempt) => self.attempt(at, attempt, line.at_us / 1_000),
            Fact::End { attempt, ending, goes_on, said } => {
                let (undone, expired) =
                    (said == State::Processing, self.table.get(at).expired(line.at_us));
                self.end(at, attempt, ending, After { goes_on, undone, expired, said });
            }
            // Whoever says so: money that stands on a cancelled payment goes back. What did
            // not move fails, expired or not.
            Fact::Decided { attempt, moved } => {
                let ending = if moved { Ending::Succeeded } else { Ending::Void };
                self.end(at, attempt, ending, OF_OPERATORS);
            }
            Fact::RouteEnd { said } => self.route_end(at, line.at_us, said),
            Fact::Cancel { ends_payment } => self.cancel(at, ends_payment),
            Fact::Refund { ordinal, attempt, amount, out_refund_no } => {
                let line = RefundLine {
                    begun_ms: line.at_us / 1_000,
                    amount,
                    attempt,
                    state: RefundState::Processing,
                    channel: None,
                };
                self.refund(at, ordinal, line, out_refund_no);
            }
            Fact::RefundEnd { ordinal, ending } => self.refund_end(at, ordinal, ending),
            _ => {}
        }
    }

    /// A record about a merchant.
    fn rule(&mut self, line: &Line<'_>) {
        let (Fact::Merchant { mch_id, .. } | Fact::Limits { mch_id, .. }) = line.fact else {
            return;
        };
        let Ok(mch_id) = MchId::parse(mch_id.as_bytes()) else { return };
        match line.fact {
            Fact::Merchant { status, limits, .. } => {
                self.merchants.put(line.shard, mch_id, (status, limits), line.at_us);
            }
            Fact::Limits { limits, until_ms, .. } => {
                self.merchants.limit(line.shard, mch_id, (limits, until_ms), line.at_us);
            }
            _ => {}
        }
    }

    fn begin(&mut self, line: &Line<'_>) {
        let Fact::Begin { mch_id, out_trade_no, charge_no, amount, currency, expire_ms } =
            line.fact
        else {
            return;
        };
        let ids = (MchId::parse(mch_id.as_bytes()), OutTradeNo::parse(out_trade_no.as_bytes()));
        let (Ok(mch_id), Ok(out_trade_no)) = ids else {
            let detail = format!("shard {} block {}: unreadable ids", line.shard, line.index);
            return self.violation(2, None, detail);
        };
        let digest = order_digest(&mch_id, &out_trade_no);
        if self.table.find(&digest).is_some() {
            let detail = format!("{mch_id} {out_trade_no} began twice: one number, two payments");
            self.violation(1, Some(digest), detail);
        }
        if charge_number(&digest, 1).as_str() != charge_no {
            let detail =
                format!("{mch_id} {out_trade_no}: charge number {charge_no} is not its own");
            self.violation(2, Some(digest), detail);
        }
        if let Some(detail) = self.merchants.pay(line.shard, mch_id, amount, line.at_us) {
            self.violation(13, Some(digest), detail);
        }
        let mut letters = [0; 3];
        letters.iter_mut().zip(currency.bytes()).for_each(|(slot, byte)| *slot = byte);
        let begun_ms = line.at_us / 1_000;
        let expires_in = expire_ms.saturating_sub(begun_ms).try_into().unwrap_or(u32::MAX);
        let expires_in = if expire_ms == 0 { u32::MAX } else { expires_in };
        let payment = Payment {
            digest,
            amount,
            sequence: line.sequence,
            begun_ms,
            expires_in,
            shard: line.shard,
            currency: letters,
            state: State::Processing,
            ..Payment::default()
        };
        match self.table.add(payment) {
            Ok(at) => self.table.set_attempt(at, 1, Attempt::Open),
            Err(last) => {
                let (shard, sequence) = (line.shard, line.sequence);
                let detail = format!(
                    "shard {shard}: payment {sequence} follows {last}: records are missing"
                );
                self.violation(6, Some(digest), detail);
            }
        }
    }

    fn attempt(&mut self, at: u32, attempt: u8, at_ms: u64) {
        if !(2..=ATTEMPTS_MAX).contains(&attempt) {
            return self.about(7, at, format!("attempt {attempt} is out of range"));
        }
        let mut earlier = (1..attempt).map(|number| self.table.attempt(at, number));
        if let Some(earlier) = earlier.find(|earlier| !earlier.clear()) {
            let detail = format!("attempt {attempt} began while an earlier one was {earlier:?}");
            self.about(7, at, detail);
        }
        if self.table.attempt(at, attempt) != Attempt::None {
            return self.about(1, at, format!("attempt {attempt} began twice"));
        }
        let state = self.table.get(at).state;
        if state.is_final() {
            self.about(11, at, format!("attempt {attempt} began, the payment was {state:?}"));
        }
        self.table.set_attempt(at, attempt, Attempt::Open);
        self.later.insert((at, attempt), at_ms);
        self.table.get_mut(at).goes_on = false;
    }

    fn end(&mut self, at: u32, attempt: u8, ending: Ending, after: After) {
        let was = self.table.attempt(at, attempt);
        let now = match ending {
            Ending::Succeeded => Attempt::Succeeded,
            Ending::Declined => Attempt::Declined,
            Ending::Void => Attempt::Void,
            Ending::Reversed => Attempt::Reversed,
            Ending::Manual => Attempt::Manual,
        };
        match was {
            Attempt::Open | Attempt::Manual => {}
            // The same evidence twice changes nothing.
            _ if was == now => return,
            Attempt::None => {
                return self.about(2, at, format!("attempt {attempt} ended and never began"));
            }
            _ => {
                let detail = format!("attempt {attempt} was {was:?} and became {now:?}");
                return self.about(11, at, detail);
            }
        }
        self.table.set_attempt(at, attempt, now);
        let payment = self.table.get_mut(at);
        payment.goes_on = after.goes_on && now.clear();
        let state = match now {
            Attempt::Succeeded if after.undone && payment.cancelled() => State::Processing,
            Attempt::Succeeded => State::Paid,
            Attempt::Manual => State::Manual,
            _ if payment.cancelled() => State::Closed,
            _ if payment.goes_on => State::Processing,
            Attempt::Void | Attempt::Reversed if after.expired => State::Closed,
            _ => State::Failed,
        };
        self.become_state(at, state);
        self.judge_said(at, after.said, state);
        let attempts = self.table.attempts(at);
        let won = attempts.filter(|(_, attempt, _)| *attempt == Attempt::Succeeded).count();
        if won > 1 {
            self.about(1, at, format!("{won} attempts succeeded"));
        }
    }

    /// The state that a record names is the one that it makes.
    fn judge_said(&mut self, at: u32, said: State, state: State) {
        if said != State::None && said != state {
            self.about(3, at, format!("the log says {said:?} where the rules make it {state:?}"));
        }
    }

    fn route_end(&mut self, at: u32, at_us: u64, said: State) {
        let declined = self.table.attempt(at, self.table.newest(at)) == Attempt::Declined;
        let payment = self.table.get_mut(at);
        if !std::mem::take(&mut payment.goes_on) {
            return self.about(7, at, "the route ended while an attempt was open".to_owned());
        }
        let closed = payment.cancelled() || payment.expired(at_us) && !declined;
        let state = if closed { State::Closed } else { State::Failed };
        if !payment.state.is_final() {
            self.become_state(at, state);
        }
        self.judge_said(at, said, state);
    }

    fn become_state(&mut self, at: u32, state: State) {
        let was = self.table.get(at).state;
        if was.is_final() && was != state {
            self.about(11, at, format!("the payment was {was:?} and became {state:?}"));
        }
        self.table.get_mut(at).state = state;
    }

    fn cancel(&mut self, at: u32, ends_payment: bool) {
        let payment = self.table.get_mut(at);
        if payment.state.is_final() {
            // The switch leaves a cancel out that lost the race.
            return;
        }
        if !ends_payment {
            if payment.cancel == Cancel::None {
                payment.cancel = Cancel::GaveUp;
            }
            return;
        }
        payment.cancel = Cancel::Wished;
        if payment.goes_on {
            self.become_state(at, State::Closed);
        }
    }

    fn refund(&mut self, at: u32, ordinal: u8, line: RefundLine, number: &str) {
        self.checked.refunds += 1;
        let (amount, attempt) = (line.amount, line.attempt);
        if self.refunds.insert((at, ordinal), line).is_some() {
            self.about(9, at, format!("refund {ordinal} began twice"));
        }
        if !number.is_empty() {
            let key = refund_key(&self.table.get(at).digest, number.as_bytes());
            if self.refund_requests.insert(key, (at, ordinal)).is_some() {
                self.about(9, at, format!("refund number {number} began twice"));
            }
        }
        let of = self.table.attempt(at, attempt);
        if amount <= 0 {
            self.about(8, at, format!("refund {ordinal} gives back {amount}"));
        }
        if ordinal > ORPHAN_ORDINAL {
            if !of.clear() {
                let detail = format!("attempt {attempt} is {of:?} and its charge no orphan");
                self.about(8, at, detail);
            }
            return;
        }
        let payment = self.table.get(at);
        let undoes = ordinal == REVERSAL_ORDINAL && payment.cancelled();
        if (payment.state != State::Paid && !undoes) || of != Attempt::Succeeded {
            let detail =
                format!("refund {ordinal} of attempt {attempt} ({of:?}) while {:?}", payment.state);
            self.about(8, at, detail);
        }
        let payment = self.table.get(at);
        // A reversal that the channel refused leaves the payment paid: what is left to the
        // merchant is to refund it.
        let reversal = self.refunds.get(&(at, REVERSAL_ORDINAL)).map(|line| line.state);
        let cancelled = reversal.map_or(payment.cancelled(), |state| state != RefundState::Failed);
        if ordinal < REVERSAL_ORDINAL && cancelled {
            self.about(10, at, format!("refund {ordinal} began after the payment was cancelled"));
        }
        let totals = self.totals.entry(at).or_default();
        if ordinal == REVERSAL_ORDINAL && totals.wished {
            self.about(10, at, "the payment was reversed after a refund".to_owned());
        }
        let totals = self.totals.entry(at).or_default();
        totals.wished |= ordinal < REVERSAL_ORDINAL;
        totals.reserved += amount;
        let taken = totals.reserved + totals.refunded;
        let paid = self.table.get(at).amount;
        if taken > paid {
            self.about(8, at, format!("refunded and reserved {taken} of {paid} paid"));
        }
    }

    fn refund_end(&mut self, at: u32, ordinal: u8, ending: Ending) {
        let Some(line) = self.refunds.get_mut(&(at, ordinal)) else {
            return self.about(9, at, format!("refund {ordinal} ended and never began"));
        };
        let state = match ending {
            Ending::Succeeded => RefundState::Success,
            Ending::Manual => RefundState::Manual,
            _ => RefundState::Failed,
        };
        let (was, amount) = (line.state, line.amount);
        if was == state {
            return;
        }
        if matches!(was, RefundState::Success | RefundState::Failed) {
            let detail = format!("refund {ordinal} was {was:?} and became {state:?}");
            return self.about(11, at, detail);
        }
        line.state = state;
        if ordinal <= ORPHAN_ORDINAL && state != RefundState::Manual {
            let totals = self.totals.entry(at).or_default();
            totals.reserved -= amount;
            if state == RefundState::Success {
                totals.refunded += amount;
            }
        }
        let payment = self.table.get(at);
        if ordinal == REVERSAL_ORDINAL && payment.cancelled() && !payment.state.is_final() {
            // Undone; or it cannot be, and the cancel is refused.
            let state = match state {
                RefundState::Success => State::Closed,
                RefundState::Failed => State::Paid,
                _ => State::Manual,
            };
            self.become_state(at, state);
        }
    }
}

/// Refund numbers are unique per payment; the merchant is in its digest.
pub(super) fn refund_key(digest: &[u8; 16], number: &[u8]) -> Vec<u8> {
    [&digest[..], number].concat()
}
