//! Outcome events on their way to subscribers: delivered at least once, in
//! order of the payment's sequence, until taken over or given up.
//!
//! The events are replicated; who subscribed here is this site's, and what was
//! delivered when the leader's volatile view. Tested through the engine.

use super::Engine;
use super::input::{Now, Waiter};
use super::output::Outputs;
use super::record::Record;
use super::timer::Fifo;
use protocol::code::{OrderState, Reason, RefundState};
use protocol::id::{ShortText, TransactionId};
use protocol::message::Event;
use std::collections::{HashMap, VecDeque};

/// An event as it stands in the log's state.
#[derive(Clone, Copy)]
pub(super) struct Held {
    /// Payment.
    pub(super) payment: u64,
    /// Sequence within the payment.
    pub(super) number: u32,
    pub(super) state: OrderState,
    pub(super) reason: Reason,
    /// Refund's place, if it is about one.
    pub(super) refund: Option<u32>,
    pub(super) refund_state: RefundState,
    pub(super) at_ms: u64,
    /// Volatile: deliveries in this life.
    tries: u8,
    /// Volatile: its removal is proposed.
    leaving: bool,
}

impl Held {
    /// An event that nobody tried to deliver yet.
    pub(super) fn new(
        payment: u64,
        number: u32,
        (state, reason): (OrderState, Reason),
        refund: Option<u32>,
        refund_state: RefundState,
        at_ms: u64,
    ) -> Self {
        let (tries, leaving) = (0, false);
        Self { payment, number, state, reason, refund, refund_state, at_ms, tries, leaving }
    }
}

#[derive(Clone, Copy)]
struct Subscriber {
    waiter: Waiter,
    gateway: u16,
}

impl Subscriber {
    fn is_on(&self, connection: u64, stream: u32) -> bool {
        (self.waiter.connection, self.waiter.stream) == (connection, stream)
    }
}

pub(super) struct Outbox {
    shard: u16,
    events: HashMap<u64, Held>,
    /// Created and not yet tried.
    fresh: VecDeque<u64>,
    /// Delivered, to be delivered again when not taken over.
    again: Fifo<u64>,
    /// Without a subscriber that may have them.
    parked: VecDeque<u64>,
    subscribers: Vec<Subscriber>,
    /// Takes turns among subscribers.
    turn: usize,
}

/// Events delivered per tick from the backlog: a new subscriber must not
/// stall the shard.
const BACKLOG_PER_TICK: usize = 1024;
/// Most subscriptions of a shard.
const SUBSCRIBERS_MAX: usize = 1024;

impl Outbox {
    pub(super) fn new(shard: u16) -> Self {
        Self {
            shard,
            events: HashMap::new(),
            fresh: VecDeque::new(),
            again: Fifo::new(),
            parked: VecDeque::new(),
            subscribers: Vec::new(),
            turn: 0,
        }
    }

    /// Takes the subscribers over.
    pub(super) fn inherit(&mut self, from: &mut Self) {
        self.subscribers = std::mem::take(&mut from.subscribers);
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn delivered(&mut self, event_id: u64) {
        self.events.remove(&event_id);
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        let backlog = !self.fresh.is_empty() && !self.subscribers.is_empty();
        let backlog = backlog.then_some(0);
        backlog.into_iter().chain(self.again.front().map(|(due, _)| due)).min()
    }

    /// Every subscription of a connection ends.
    pub(super) fn unsubscribe_all(&mut self, connection: u64) {
        self.subscribers.retain(|subscriber| subscriber.waiter.connection != connection);
    }

    /// One subscription ends. What it got and did not acknowledge goes to others
    /// when it is due again.
    pub(super) fn unsubscribe(&mut self, connection: u64, stream: u32) {
        self.subscribers.retain(|subscriber| !subscriber.is_on(connection, stream));
    }

    /// A new leader does not know what was delivered: all of it, again.
    pub(super) fn redeliver_all(&mut self, _: Now) {
        let mut ids: Vec<u64> = self.events.keys().copied().collect();
        ids.sort_unstable();
        self.fresh = ids.into();
        self.parked.clear();
        self.again.clear();
    }

    pub(super) fn forget_deliveries(&mut self) {
        for held in self.events.values_mut() {
            (held.tries, held.leaving) = (0, false);
        }
        self.fresh.clear();
        self.parked.clear();
        self.again.clear();
    }

    /// The events of a payment that are not delivered, oldest first. `events`:
    /// how many it ever had.
    pub(super) fn held(&self, sequence: u64, events: u32) -> impl Iterator<Item = &Held> {
        let last = if self.events.is_empty() { 0 } else { events };
        (1..=last).filter_map(move |number| {
            // Ids repeat after 1023 events of one payment.
            let held = self.events.get(&event_id(self.shard, sequence, number))?;
            (held.payment == sequence && held.number == number).then_some(held)
        })
    }

    /// Takes an event of a checkpoint; `false` when its id is taken.
    pub(super) fn put(&mut self, held: Held) -> bool {
        let id = event_id(self.shard, held.payment, held.number);
        self.events.insert(id, held).is_none()
    }
}

/// The shard that an event id belongs to.
pub fn event_shard(event_id: u64) -> u16 {
    (event_id >> 54) as u16
}

/// Shard 10 bits, number within the payment 10, payment sequence 44.
fn event_id(shard: u16, sequence: u64, number: u32) -> u64 {
    u64::from(shard) << 54 | u64::from(number & 1023) << 44 | sequence
}

/// The payment that an event id belongs to.
pub(super) fn event_payment(event_id: u64) -> u64 {
    event_id & ((1 << 44) - 1)
}

impl Engine {
    /// An outcome became final. On every replica.
    pub(super) fn create_event(&mut self, sequence: u64, refund: Option<u32>, at_ms: u64) {
        let order = &mut self.orders[sequence];
        if !order.notify {
            return;
        }
        order.events += 1;
        let about = refund.and_then(|place| self.orders.refunds.get(place));
        let order = &self.orders[sequence];
        let reason = about.map_or(order.reason, |refund| refund.reason);
        let refund_state = about.map_or(RefundState::None, |refund| refund.state);
        let held =
            Held::new(sequence, order.events, (order.state, reason), refund, refund_state, at_ms);
        let id = event_id(self.outbox.shard, sequence, order.events);
        self.outbox.events.insert(id, held);
        if self.term.is_some() {
            self.outbox.fresh.push_back(id);
        }
    }

    /// Subscriptions belong to this site's connections, whoever leads: a site
    /// that comes to lead finds those that were made while another did.
    pub(super) fn subscribe(&mut self, waiter: Waiter, gateway: u16, now: Now, out: &mut Outputs) {
        let subscribers = &mut self.outbox.subscribers;
        subscribers.retain(|known| !known.is_on(waiter.connection, waiter.stream));
        if subscribers.len() >= SUBSCRIBERS_MAX {
            return;
        }
        subscribers.push(Subscriber { waiter, gateway });
        if self.term.is_none() {
            return;
        }
        let parked = std::mem::take(&mut self.outbox.parked);
        self.outbox.fresh.extend(parked);
        self.deliver_new(now, out);
    }

    /// Ids can be guessed, so only a subscriber that may have the event, and only once
    /// it was delivered, takes it over. Anybody else's word counts for nothing: a
    /// subscriber of before that has a new stream, or whose event the leader before this
    /// one had delivered, hears it again.
    pub(super) fn event_ack(
        &mut self,
        event_id: u64,
        waiter: &Waiter,
        now: Now,
        out: &mut Outputs,
    ) {
        if self.term.is_none() {
            return;
        }
        let Some(held) = self.outbox.events.get(&event_id) else { return };
        let takes = |subscriber: &Subscriber| {
            subscriber.is_on(waiter.connection, waiter.stream)
                && self.may_have(subscriber.gateway, held.payment)
        };
        if held.tries > 0 && self.outbox.subscribers.iter().any(takes) {
            self.drop_event(event_id, false, now, out);
        }
    }

    fn drop_event(&mut self, event_id: u64, dead: bool, now: Now, out: &mut Outputs) {
        let Some(held) = self.outbox.events.get_mut(&event_id) else { return };
        if !std::mem::replace(&mut held.leaving, true) {
            self.propose(now, &Record::Delivered { event_id, taken: !dead }, out);
        }
    }

    /// Delivers what is fresh, within the budget of one call.
    pub(super) fn deliver_new(&mut self, now: Now, out: &mut Outputs) {
        for _ in 0..BACKLOG_PER_TICK {
            let Some(id) = self.outbox.fresh.pop_front() else { return };
            self.deliver(id, now, out);
        }
    }

    /// Delivers again what nobody took over in time.
    pub(super) fn deliver_due(&mut self, now: Now, out: &mut Outputs) {
        self.deliver_new(now, out);
        for _ in 0..BACKLOG_PER_TICK {
            let Some(id) = self.outbox.again.pop_due(now.mono_us) else { return };
            let Some(held) = self.outbox.events.get(&id) else { continue };
            if held.tries >= self.config.event_tries_max {
                self.drop_event(id, true, now, out);
            } else {
                self.deliver(id, now, out);
            }
        }
    }

    fn deliver(&mut self, id: u64, now: Now, out: &mut Outputs) {
        let Some(held) = self.outbox.events.get(&id).copied() else { return };
        if held.leaving {
            return;
        }
        let Some(waiter) = self.pick_subscriber(held.payment) else {
            self.outbox.parked.push_back(id);
            return;
        };
        if let Some(held) = self.outbox.events.get_mut(&id) {
            held.tries = held.tries.saturating_add(1);
        }
        self.outbox.again.push(now.mono_us + self.config.event_retry_us, id);
        let event = self.event_of(id, &held);
        out.events.push((waiter, event));
    }

    /// A subscriber whose gateway may have the payment's events; they take turns.
    fn pick_subscriber(&mut self, sequence: u64) -> Option<Waiter> {
        let count = self.outbox.subscribers.len();
        for offset in 0..count {
            let at = (self.outbox.turn + offset) % count;
            let subscriber = self.outbox.subscribers[at];
            if self.may_have(subscriber.gateway, sequence) {
                self.outbox.turn = at + 1;
                return Some(subscriber.waiter);
            }
        }
        None
    }

    /// Whether a gateway may have the events of a payment: it may speak for its merchant.
    fn may_have(&self, gateway: u16, sequence: u64) -> bool {
        let merchant = &self.merchants.at(self.orders[sequence].merchant).merchant;
        let name = self.config.gateways.get(usize::from(gateway).wrapping_sub(1));
        merchant.gateways.is_empty() || name.is_some_and(|name| merchant.gateways.contains(name))
    }

    fn event_of(&self, id: u64, held: &Held) -> Event {
        let order = &self.orders[held.payment];
        let refund = held.refund.and_then(|place| self.orders.refunds.get(place));
        Event {
            event_id: id,
            sequence: held.number,
            mch_id: self.merchants.at(order.merchant).merchant.mch_id,
            out_trade_no: order.out_trade_no,
            transaction_id: TransactionId::new(self.config.shard, held.payment),
            state: held.state,
            reason: held.reason,
            out_refund_no: refund
                .and_then(|refund| ShortText::new(refund.out_refund_no.as_bytes()))
                .unwrap_or_default(),
            refund_state: held.refund_state,
            amount: refund.map_or(order.amount, |refund| refund.amount),
            currency: order.currency,
            at_ms: held.at_ms,
        }
    }
}
