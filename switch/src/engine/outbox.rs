//! Outcome events: made by applied records, delivered at least once until a
//! subscriber takes them over. What is undelivered is replicated state; who
//! subscribes and when the next try is due is the leader's.

use std::collections::BTreeMap;

use protocol::code::RefundState;
use protocol::id::ShortText;
use protocol::message::Event;

use super::Engine;
use super::input::{Now, Waiter};
use super::output::Outputs;
use super::record::Record;

/// Events handed out in one turn.
const DELIVER_MAX: usize = 512;

struct Pending {
    at: u32,
    /// Refund ordinal, or 0 for the payment.
    ordinal: u8,
    sequence: u8,
    at_us: u64,
    tries: u8,
    due_us: u64,
}

/// Undelivered events and subscribers.
#[derive(Default)]
pub(super) struct Outbox {
    /// In order of creation: number and event.
    pending: BTreeMap<u64, Pending>,
    /// From event id to number.
    numbers: std::collections::HashMap<u64, u64>,
    next: u64,
    subscribers: Vec<(Waiter, u16)>,
}

/// The shard that an event id belongs to.
pub fn event_shard(event_id: u64) -> u16 {
    (event_id >> 54) as u16
}

/// Shard 10 bits, sequence within the payment 8, payment 44 (low).
fn event_id(shard: u16, at: u32, sequence: u8) -> u64 {
    u64::from(shard) << 54 | u64::from(sequence) << 44 | (u64::from(at) + 1)
}

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn subscribe(&mut self, waiter: Waiter, gateway: u16) {
        self.subscribers.retain(|(other, _)| {
            other.connection != waiter.connection || other.stream != waiter.stream
        });
        self.subscribers.push((waiter, gateway));
        self.wake();
    }

    pub(super) fn unsubscribe(&mut self, connection: u64) {
        self.subscribers.retain(|(waiter, _)| waiter.connection != connection);
    }

    /// Everything undelivered is due at once.
    fn wake(&mut self) {
        for pending in self.pending.values_mut() {
            pending.due_us = 0;
        }
    }

    pub(super) fn restart(&mut self, _now: Now) {
        self.subscribers.clear();
        for pending in self.pending.values_mut() {
            pending.tries = 0;
            pending.due_us = 0;
        }
    }

    pub(super) fn remove(&mut self, event_id: u64) {
        if let Some(number) = self.numbers.remove(&event_id) {
            self.pending.remove(&number);
        }
    }

    /// Without a subscriber nothing is due: a subscription wakes everything.
    pub(super) fn next_due(&self) -> Option<u64> {
        if self.subscribers.is_empty() {
            return None;
        }
        self.pending.values().map(|pending| pending.due_us).min()
    }

    /// Replicated part, for the state hash.
    pub(super) fn hash(&self, add: &mut impl FnMut(&[u8])) {
        for pending in self.pending.values() {
            add(&pending.at.to_le_bytes());
            add(&[pending.ordinal, pending.sequence]);
        }
    }
}

impl Engine {
    /// Makes the event of a change, when the payment wants events.
    pub(super) fn event(&mut self, at: u32, ordinal: u8, at_us: u64) {
        let Some(order) = self.orders.get_mut(at as usize) else { return };
        if !order.notify || order.events == u8::MAX {
            return;
        }
        order.events += 1;
        let sequence = order.events;
        let number = self.outbox.next;
        self.outbox.next += 1;
        let id = event_id(self.config.shard, at, sequence);
        self.outbox.numbers.insert(id, number);
        let pending = Pending { at, ordinal, sequence, at_us, tries: 0, due_us: 0 };
        self.outbox.pending.insert(number, pending);
    }

    /// Hands out events whose time has come to a subscriber that may have them.
    pub(super) fn deliver_due(&mut self, now: Now, out: &mut Outputs) {
        if self.outbox.subscribers.is_empty() || self.outbox.pending.is_empty() {
            return;
        }
        let due: Vec<u64> = self
            .outbox
            .pending
            .iter()
            .filter(|(_, pending)| pending.due_us <= now.mono_us)
            .map(|(number, _)| *number)
            .take(DELIVER_MAX)
            .collect();
        for number in due {
            self.deliver(number, now, out);
        }
    }

    fn deliver(&mut self, number: u64, now: Now, out: &mut Outputs) {
        let Some(pending) = self.outbox.pending.get(&number) else { return };
        let (at, ordinal, sequence, at_us) =
            (pending.at, pending.ordinal, pending.sequence, pending.at_us);
        let id = event_id(self.config.shard, at, sequence);
        let subscriber = self.subscriber(at);
        let given_up = pending.tries >= self.config.event_tries_max;
        if given_up {
            self.propose(&Record::Delivered { event_id: id, taken: false }, now, out);
        } else if let Some(waiter) = subscriber {
            if let Some(event) = self.event_body(at, ordinal, sequence, id, at_us) {
                out.events.push((waiter, event));
            }
        }
        let retry_us = self.config.event_retry_us;
        if let Some(pending) = self.outbox.pending.get_mut(&number) {
            pending.tries = pending.tries.saturating_add(u8::from(subscriber.is_some()));
            pending.due_us = now.mono_us + retry_us;
        }
    }

    /// A subscriber whose gateway may speak for the payment's merchant.
    fn subscriber(&self, at: u32) -> Option<Waiter> {
        let merchant = self.merchant(self.order(at)?.merchant)?;
        let allowed = &merchant.merchant.gateways;
        let may = |gateway: u16| {
            allowed.is_empty()
                || usize::from(gateway)
                    .checked_sub(1)
                    .and_then(|at| self.config.gateways.get(at))
                    .is_some_and(|name| allowed.contains(name))
        };
        let found = self.outbox.subscribers.iter().find(|(_, gateway)| may(*gateway));
        found.map(|(waiter, _)| *waiter)
    }

    fn event_body(
        &self,
        at: u32,
        ordinal: u8,
        sequence: u8,
        event_id: u64,
        at_us: u64,
    ) -> Option<Event> {
        let order = self.order(at)?;
        let refund = self.refund_of(at, ordinal).and_then(|place| self.refunds.get(place as usize));
        Some(Event {
            event_id,
            sequence: sequence.into(),
            mch_id: self.merchant(order.merchant)?.merchant.mch_id,
            out_trade_no: order.out_trade_no,
            transaction_id: self.transaction_id(at),
            state: order.shown_state(),
            reason: refund.map_or(order.reason, |refund| refund.reason),
            out_refund_no: refund
                .and_then(|refund| refund.out_refund_no)
                .and_then(|no| ShortText::new(no.as_bytes()))
                .unwrap_or_default(),
            refund_state: refund.map_or(RefundState::None, |refund| refund.state),
            amount: refund.map_or(order.amount, |refund| refund.amount).minor(),
            currency: order.currency,
            at_ms: at_us / 1000,
        })
    }

    pub(super) fn event_ack(&mut self, event_id: u64, waiter: Waiter, now: Now, out: &mut Outputs) {
        let known = self.outbox.numbers.contains_key(&event_id);
        let subscribed = self.outbox.subscribers.iter().any(|(subscriber, _)| {
            subscriber.connection == waiter.connection && subscriber.stream == waiter.stream
        });
        if self.leading.is_some() && known && subscribed {
            self.propose(&Record::Delivered { event_id, taken: true }, now, out);
        }
    }
}
