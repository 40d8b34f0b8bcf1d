//! What gateways were told, against what the log and the channel say.
//!
//! The plan tells what every request was; nothing of it is stored. Pure. Tested
//! with the books.

use super::books::{Books, refund_key};
use super::table::State;
use crate::acks::{Ack, flag};
use crate::plan::{Op, Plan};
use protocol::channel::order_digest;
use protocol::code::{Code, OrderState, RefundState};
use protocol::id::{MchId, TransactionId};

/// A run whose acknowledgements are taken.
pub(crate) struct Run {
    /// Its plan.
    pub(crate) plan: Plan,
    merchants: Vec<MchId>,
}

impl Run {
    /// Prepares a plan; `None` when a merchant's id is not one.
    pub(crate) fn new(plan: Plan) -> Option<Self> {
        let parse = |id: &String| MchId::parse(id.as_bytes()).ok();
        let merchants = plan.params().merchants.iter().map(parse).collect::<Option<Vec<_>>>()?;
        Some(Self { plan, merchants })
    }

    /// Merchant of payment `k`.
    pub(crate) fn merchant(&self, k: u64) -> &MchId {
        // The plan draws indices below the number of merchants.
        &self.merchants[self.plan.merchant(k) as usize]
    }

    /// Digest of payment `k`.
    pub(crate) fn digest(&self, k: u64) -> [u8; 16] {
        order_digest(self.merchant(k), &self.plan.out_trade_no(k))
    }
}

/// An acknowledgement, and what it is about.
pub(super) struct Told {
    pub(super) ack: Ack,
    op: Op,
    pub(super) k: u64,
    /// Of the payment.
    pub(super) digest: [u8; 16],
}

impl Told {
    /// Looks up what an acknowledgement of a run is about.
    pub(super) fn new(run: &Run, ack: &Ack) -> Self {
        let requery = ack.flags & flag::REQUERY != 0;
        let (op, k) = match requery {
            true => (Op::Query, ack.n),
            false => (run.plan.op(ack.n), run.plan.target(ack.n)),
        };
        Self { ack: *ack, op, k, digest: run.digest(k) }
    }
}

/// The final state of a payment that an answer or an event tells.
pub(super) fn final_state(ack: &Ack) -> State {
    match OrderState::from_wire(ack.state) {
        Some(OrderState::Paid) => State::Paid,
        Some(OrderState::Failed) => State::Failed,
        Some(OrderState::Closed) => State::Closed,
        _ => State::None,
    }
}

impl Books {
    /// Takes an acknowledgement of a run.
    #[cfg(test)]
    pub(crate) fn ack(&mut self, run: &Run, ack: &Ack) {
        self.told(run, &Told::new(run, ack));
    }

    /// As [`Self::ack`], of an acknowledgement whose payment was looked up.
    pub(super) fn told(&mut self, run: &Run, told: &Told) {
        if told.ack.flags & flag::EVENT != 0 {
            return self.event(run, told);
        }
        let Told { ack, op, k, digest } = told;
        let (op, k, digest) = (*op, *k, *digest);
        self.checked.acks += 1;
        let found = self.table.find(&digest);
        if let Some(at) = found.filter(|_| !matches!(op, Op::Conflict | Op::BadSignature)) {
            self.judge_content(at, run, k);
            self.table.get_mut(at).event_wanted |= run.plan.params().notify;
        }
        if ack.flags & flag::UNKNOWN != 0 {
            self.checked.unknown += 1;
            return;
        }
        if op == Op::BadSignature {
            if found.is_some() || ack.is_ok() {
                let detail = format!("request {}: a bad signature left a payment", ack.n);
                self.violation(13, Some(digest), detail);
            }
            return;
        }
        if op == Op::Conflict {
            if ack.is_ok() {
                let detail =
                    format!("request {}: a used number with another amount was accepted", ack.n);
                self.violation(5, Some(digest), detail);
            }
            return;
        }
        // A close may overtake the payment it is about.
        if ack.code == Code::OrderNotFound.wire()
            && op != Op::Close
            && found.is_some_and(|at| self.table.get(at).acked != State::None)
        {
            let detail = "an acknowledged payment was not found later".to_owned();
            return self.violation(4, Some(digest), detail);
        }
        // What a refusal tells of the payment is told, too: a close that comes too late, a
        // reverse behind a refund.
        let outcome = if op == Op::Refund { State::None } else { final_state(ack) };
        if !ack.is_ok() && outcome == State::None {
            return;
        }
        let Some(at) = found else {
            let detail =
                format!("request {} was acknowledged and the log has no such payment", ack.n);
            return self.violation(6, Some(digest), detail);
        };
        let payment = self.table.get(at);
        let transaction = TransactionId::new(payment.shard, payment.sequence).as_u64();
        if ack.transaction != transaction {
            let told = ack.transaction;
            let detail = format!("transaction {told} was told, the log has {transaction}");
            self.about(4, at, detail);
        }
        match op {
            Op::Refund => self.ack_refund(at, run, ack),
            _ => self.ack_order(at, run, k, ack),
        }
    }

    /// What was accepted is what was asked for.
    fn judge_content(&mut self, at: u32, run: &Run, k: u64) {
        let payment = self.table.get(at);
        let (logged, planned) = (payment.amount, run.plan.amount(k).minor());
        if logged != planned || payment.currency != run.plan.currency().bytes() {
            let currency = String::from_utf8_lossy(&payment.currency).into_owned();
            let detail = format!("asked {planned}, logged {logged} {currency}");
            self.about(3, at, detail);
        }
    }

    fn ack_order(&mut self, at: u32, run: &Run, k: u64, ack: &Ack) {
        let told = final_state(ack);
        if told == State::None {
            // Not final: may become anything later.
            return;
        }
        let payment = self.table.get(at);
        let (before, state) = (payment.acked, payment.state);
        let planned = run.plan.amount(k).minor();
        if before != State::None && before != told {
            self.about(4, at, format!("{before:?} was acknowledged, later {told:?}"));
        }
        if told != state {
            let detail = format!("{told:?} was acknowledged and the log says {state:?}");
            self.about(6, at, detail);
        }
        if ack.amount != planned {
            let detail = format!("asked {planned}, acknowledged {}", ack.amount);
            self.about(3, at, detail);
        }
        self.judge_refunded(at, ack);
        let payment = self.table.get_mut(at);
        payment.acked = told;
        payment.told_in_run |= ack.flags & flag::REQUERY == 0;
    }

    /// What was said to be given back is in the log.
    fn judge_refunded(&mut self, at: u32, ack: &Ack) {
        if ack.refunded == 0 {
            return;
        }
        let logged = self.totals.get(&at).map_or(0, |totals| totals.refunded);
        if ack.refunded > logged {
            let detail = format!("{} given back were acknowledged, {logged} logged", ack.refunded);
            self.about(6, at, detail);
        }
    }

    fn ack_refund(&mut self, at: u32, run: &Run, ack: &Ack) {
        let number = run.plan.out_refund_no(ack.n);
        let key = refund_key(&self.table.get(at).digest, number.as_bytes());
        let line = self.refund_requests.get(&key).and_then(|place| self.refunds.get(place));
        let told = RefundState::from_wire(ack.state);
        let Some(line) = line else {
            let detail = format!("refund {number} was acknowledged and is not in the log");
            return self.about(6, at, detail);
        };
        let (state, amount) = (line.state, line.amount);
        if matches!(told, Some(RefundState::Success | RefundState::Failed)) && told != Some(state) {
            let detail =
                format!("refund {number}: {told:?} was acknowledged, the log says {state:?}");
            self.about(6, at, detail);
        }
        self.judge_refunded(at, ack);
        if amount != ack.amount {
            let detail = format!("refund {number}: {} acknowledged, {amount} logged", ack.amount);
            self.about(9, at, detail);
        }
    }
}
