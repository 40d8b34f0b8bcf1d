//! Outcome events that gateways got, against what the log says.
//!
//! Delivery is at least once and in no order that is promised, so a repetition
//! is clean when it is the same. Some 16 bytes an event. Pure. Tested with the
//! books.
//!
//! What has an event: every final payment, and every final refund that a gateway
//! asked for by a refund or by the reverse of a paid payment. The refund that
//! undoes the charge of a cancelled payment has none, whatever its result: it is a
//! step of the cancel, and the payment's event tells what that led to. Nor has an
//! orphan's.

use super::EventsDue;
use super::books::{Books, refund_key};
use super::table::State;
use super::told::{Run, Told, final_state};
use crate::acks::flag;
use crate::channel::number::REVERSAL_ORDINAL;
use crate::plan::Op;
use protocol::code::RefundState;
use protocol::id::TransactionId;

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
    /// What it tells of: the payment, or the refund of this ordinal.
    about: u8,
}

/// An event tells of the payment itself.
const OF_PAYMENT: u8 = 0;
/// It tells of a refund that nobody knows.
const OF_NOTHING: u8 = u8::MAX;

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
        let about = self.subject(at, run, told);
        self.events.push(Noticed { id, at, sequence, about });
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
        match about {
            OF_PAYMENT => self.payment_event(at, told),
            _ => self.refund_event(at, about, told),
        }
    }

    fn subject(&self, at: u32, run: &Run, told: &Told) -> u8 {
        let n = told.ack.n;
        if told.ack.flags & flag::REFUND == 0 {
            return OF_PAYMENT;
        }
        if run.plan.op(n) != Op::Refund {
            return REVERSAL_ORDINAL;
        }
        let key = refund_key(&told.digest, run.plan.out_refund_no(n).as_bytes());
        let place = self.refund_requests.get(&key).filter(|place| place.0 == at);
        place.map_or(OF_NOTHING, |(_, ordinal)| *ordinal)
    }

    fn payment_event(&mut self, at: u32, told: &Told) {
        let ack = &told.ack;
        let payment = self.table.get(at);
        let (amount, state) = (payment.amount, payment.state);
        let said = final_state(ack);
        if said != state {
            let detail = format!("an event says {said:?} and the log {state:?}");
            self.about(EVENTS, at, detail);
        }
        if ack.amount != amount {
            self.about(EVENTS, at, format!("an event says {}, the log {amount}", ack.amount));
        }
    }

    fn refund_event(&mut self, at: u32, about: u8, told: &Told) {
        let ack = &told.ack;
        let line = self.refunds.get(&(at, about));
        let Some((state, amount)) = line.map(|line| (line.state, line.amount)) else {
            let detail = "an event is about a refund that the log does not have".to_owned();
            return self.about(EVENTS, at, detail);
        };
        if about == REVERSAL_ORDINAL && self.table.get(at).cancelled() {
            let detail = "an event is about the refund that undoes a cancelled payment".to_owned();
            self.about(EVENTS, at, detail);
        }
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
        events.sort_unstable_by_key(|event| (event.id, place(event), event.about));
        events.dedup();
        for pair in events.windows(2) {
            if pair[0].id == pair[1].id {
                let detail = format!("event id {:x} stands for two outcomes", pair[1].id);
                self.about(EVENTS, pair[1].at, detail);
            }
        }
        events.sort_unstable_by_key(|event| (place(event), event.id));
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
        events.sort_unstable_by_key(|event| (event.at, event.about, event.sequence));
        for pair in events.windows(2) {
            let outcome = |event: &Noticed| (event.at, event.about);
            if outcome(&pair[0]) == outcome(&pair[1]) && pair[0].sequence != pair[1].sequence {
                let (first, second) = (pair[0].sequence, pair[1].sequence);
                let detail = format!("events {first} and {second} tell of the same outcome");
                self.about(EVENTS, pair[1].at, detail);
            }
        }
        if due != EventsDue::None {
            self.judge_missing_payments(&events, due);
        }
        if due == EventsDue::All {
            self.judge_missing_refunds(&events);
        }
    }

    /// Every final payment of a run that listened has an event, once it had time to come.
    /// `events` is sorted by payment and what it tells of, as for the next.
    fn judge_missing_payments(&mut self, events: &[Noticed], due: EventsDue) {
        let about_payments = events.iter().filter(|event| event.about == OF_PAYMENT);
        let mut came = about_payments.map(|event| event.at).peekable();
        for at in 0..self.table.len() as u32 {
            let mut told = false;
            while came.next_if_eq(&at).is_some() {
                told = true;
            }
            let payment = self.table.get(at);
            let in_time = due == EventsDue::All || payment.told_in_run;
            if payment.event_wanted && payment.state.is_final() && in_time && !told {
                let state = payment.state;
                self.about(EVENTS, at, format!("no event told that the payment is {state:?}"));
            }
        }
    }

    /// So has every final refund of a payment that is paid.
    fn judge_missing_refunds(&mut self, events: &[Noticed]) {
        let mut missing = Vec::new();
        for ((at, ordinal), line) in &self.refunds {
            let payment = self.table.get(*at);
            let ended = matches!(line.state, RefundState::Success | RefundState::Failed);
            let asked =
                *ordinal < REVERSAL_ORDINAL || *ordinal == REVERSAL_ORDINAL && !payment.cancelled();
            let due = payment.event_wanted && payment.state == State::Paid && ended && asked;
            let outcome = |event: &Noticed| (event.at, event.about);
            if due && events.binary_search_by_key(&(*at, *ordinal), outcome).is_err() {
                missing.push((*at, *ordinal));
            }
        }
        missing.sort_unstable();
        for (at, ordinal) in missing {
            self.about(EVENTS, at, format!("no event told what became of refund {ordinal}"));
        }
    }
}
