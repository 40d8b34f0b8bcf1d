//! Outcome events that gateways got, against what the log says.
//!
//! Delivery is at least once and in no order that is promised, so a repetition
//! is clean when it is the same. Some 16 bytes an event. Pure. Tested with the
//! books.

use super::EventsDue;
use super::books::{Books, refund_key};
use super::table::State;
use super::told::{Run, Told};
use crate::acks::flag;
use crate::channel::number::REVERSAL_ORDINAL;
use crate::plan::Op;
use protocol::code::{OrderState, RefundState};
use protocol::id::TransactionId;
use std::collections::HashMap;

/// Rule of events.
const EVENTS: u8 = 14;

/// An event that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noticed {
    id: u64,
    /// The payment.
    at: u32,
    /// Within the payment, from 1.
    sequence: u16,
}

impl Books {
    /// Takes an event of a run.
    pub(super) fn event(&mut self, run: &Run, told: &Told) {
        self.checked.events += 1;
        let ack = &told.ack;
        let (id, sequence) = (ack.refunded as u64, ack.code);
        let Some(at) = self.table.find(&told.digest) else {
            let detail = format!("event {id:x} is about a payment that the log does not have");
            return self.violation(EVENTS, Some(told.digest), detail);
        };
        self.events.push(Noticed { id, at, sequence });
        if ack.flags & flag::ODD != 0 {
            let detail =
                format!("event {id:x}: merchant, currency or refund are not the payment's");
            self.about(EVENTS, at, detail);
        }
        let payment = self.table.get(at);
        let transaction = TransactionId::new(payment.shard, payment.sequence).as_u64();
        if ack.transaction != transaction {
            let detail =
                format!("event {id:x}: transaction {}, not {transaction}", ack.transaction);
            self.about(EVENTS, at, detail);
        }
        if ack.flags & flag::REFUND != 0 {
            self.refund_event(at, run, told);
        } else {
            self.payment_event(at, told);
        }
    }

    fn payment_event(&mut self, at: u32, told: &Told) {
        let ack = &told.ack;
        let payment = self.table.get(at);
        let (amount, state) = (payment.amount, payment.state);
        let said = match OrderState::from_wire(ack.state) {
            Some(OrderState::Paid) => State::Paid,
            Some(OrderState::Failed) => State::Failed,
            Some(OrderState::Closed) => State::Closed,
            _ => State::None,
        };
        if said != state {
            let detail = format!("an event says {said:?} and the log {state:?}");
            self.about(EVENTS, at, detail);
        }
        if ack.amount != amount {
            self.about(EVENTS, at, format!("an event says {}, the log {amount}", ack.amount));
        }
    }

    fn refund_event(&mut self, at: u32, run: &Run, told: &Told) {
        let ack = &told.ack;
        let line = if run.plan.op(ack.n) == Op::Refund {
            let number = run.plan.out_refund_no(ack.n);
            let key = refund_key(&told.digest, number.as_bytes());
            self.refund_requests.get(&key).and_then(|place| self.refunds.get(place))
        } else {
            self.refunds.get(&(at, REVERSAL_ORDINAL))
        };
        let Some((state, amount)) = line.map(|line| (line.state, line.amount)) else {
            let detail = "an event is about a refund that the log does not have".to_owned();
            return self.about(EVENTS, at, detail);
        };
        let said = RefundState::from_wire(ack.state);
        if said != Some(state) || ack.amount != amount {
            let detail = format!(
                "an event says {said:?} {} of a refund and the log {state:?} {amount}",
                ack.amount
            );
            self.about(EVENTS, at, detail);
        }
    }

    /// Holds all events against each other, and against the outcomes where they were due.
    pub(super) fn finish_events(&mut self, due: EventsDue) {
        let mut events = std::mem::take(&mut self.events);
        let place = |event: &Noticed| (event.at, event.sequence);
        events.sort_unstable_by_key(|event| event.id);
        for pair in events.windows(2) {
            if pair[0].id == pair[1].id && place(&pair[0]) != place(&pair[1]) {
                let detail = format!("event id {:x} stands for two outcomes", pair[1].id);
                self.about(EVENTS, pair[1].at, detail);
            }
        }
        events.sort_unstable_by_key(|event| (place(event), event.id));
        events.dedup();
        let mut last = (u32::MAX, 0);
        for event in &events {
            let before = if last.0 == event.at { last.1 } else { 0 };
            last = place(event);
            if event.sequence == before {
                let detail = format!("event {before} of the payment has two ids");
                self.about(EVENTS, event.at, detail);
            } else if due != EventsDue::None && event.sequence != before + 1 {
                let detail = format!("event {} came, and {} did not", event.sequence, before + 1);
                self.about(EVENTS, event.at, detail);
            }
        }
        if due != EventsDue::None {
            let refunds = if due == EventsDue::All { self.told_refunds() } else { HashMap::new() };
            self.judge_missing(&events, &refunds);
        }
    }

    /// How many refunds of each payment have an event: the final ones of a payment that is
    /// paid. An orphan's is no outcome of the payment's, nor is a reversal's that closes it.
    fn told_refunds(&self) -> HashMap<u32, usize> {
        let mut refunds = HashMap::new();
        for ((at, ordinal), line) in &self.refunds {
            let ended = matches!(line.state, RefundState::Success | RefundState::Failed);
            let paid = self.table.get(*at).state == State::Paid;
            if ended && paid && *ordinal <= REVERSAL_ORDINAL {
                *refunds.entry(*at).or_default() += 1;
            }
        }
        refunds
    }

    /// Every final payment of a run that listened has an event, and each of these refunds
    /// has one. `events` is sorted by payment.
    fn judge_missing(&mut self, events: &[Noticed], refunds: &HashMap<u32, usize>) {
        let mut events = events.iter().map(|event| event.at).peekable();
        for at in 0..self.table.len() as u32 {
            let mut came = 0;
            while events.next_if_eq(&at).is_some() {
                came += 1;
            }
            let payment = self.table.get(at);
            if !payment.event_wanted || !payment.state.is_final() {
                continue;
            }
            let (state, refunds) = (payment.state, refunds.get(&at).copied().unwrap_or(0));
            if came == 0 {
                self.about(EVENTS, at, format!("no event told that the payment is {state:?}"));
            } else if came < 1 + refunds {
                let detail =
                    format!("{came} events came of a payment with {refunds} final refunds");
                self.about(EVENTS, at, detail);
            }
        }
    }
}
