//! The network thread's shared state: lanes to the workers, connections,
//! channel links, and the two tasks that move whole batches.
//!
//! Everything here lives on one thread (`Rc`, `Cell`): streams decode into the
//! open batch of their lane, the flusher hands the batch over once all ready
//! streams had their turn, the dispatcher spreads what workers hand back.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::code::Code;
use protocol::message::kind;
use tokio::sync::Notify;

use super::awake::Brief;
use super::clock;
use super::control::NodeControl;
use super::directory::Directory;
use super::forward::Forwarder;
use super::gateway::Connection;
use super::held::{self, Fate, Held};
use super::inbox::{Batch, Exchange, Item, OutBatch};
use super::link::Link;
use super::standing::Standing;
use super::window::Window;
use crate::engine::input::{Evidence, Waiter};
use crate::engine::output::{Reply, ReplyBody, Send};
use crate::metrics::{Metrics, Op};

/// Between two looks at requests that wait for a lease.
const HELD_PAUSE: Duration = Duration::from_millis(5);

/// Bounds of the network thread.
#[derive(Clone, Debug)]
pub struct NetSettings {
    /// Number of shards.
    pub shards: u16,
    /// This site, 1-based.
    pub site: u8,
    /// Number of sites.
    pub sites: u8,
    /// Identifies the cluster.
    pub cluster: u64,
    /// Most unanswered requests of one connection.
    pub in_flight_max: u32,
    /// Gateways that are configured.
    pub gateways: usize,
    /// Most unanswered requests in total.
    pub outstanding_max: usize,
    /// How long a request may spend in the site's own hands under overload, on the average,
    /// microseconds.
    pub delay_target_us: u64,
    /// Requests are shed when batches keep waiting longer than this, microseconds.
    pub queue_delay_max_us: u64,
    /// Share of the time, percent, for which cores may be kept awake while requests are
    /// unanswered.
    pub awake_share_percent: u32,
    /// How long a core may take to wake up then, microseconds.
    pub awake_latency_us: u32,
    /// Items of an open batch before new requests are shed.
    pub batch_items_max: usize,
}

/// One worker, seen from the network thread.
pub struct Lane {
    /// Its queues.
    pub exchange: Arc<Exchange>,
    batch: RefCell<Box<Batch>>,
    stuck: Cell<bool>,
}

/// State of the network thread.
pub struct Net {
    /// Bounds.
    pub settings: NetSettings,
    /// One lane per worker; a shard belongs to lane `shard % lanes`.
    pub lanes: Vec<Lane>,
    /// Merchants.
    pub directory: RefCell<Directory>,
    /// Per shard, the term in which this site came to lead it and `directory` holds
    /// everything of before; 0: none.
    heard: RefCell<Vec<u64>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Channel links by number - 1.
    pub links: RefCell<Vec<Rc<Link>>>,
    /// Requests to channels that wait for a lease.
    held: RefCell<Held>,
    connections: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    /// Unanswered requests of each gateway, by its number.
    by_gateway: RefCell<Vec<Rc<Cell<usize>>>>,
    flush: Notify,
    /// Moments in which cores are kept awake.
    brief: RefCell<Brief>,
    /// One has begun.
    moment: Notify,
    /// How many requests may be unanswered.
    window: RefCell<Window>,
    /// Unanswered requests.
    pub outstanding: Cell<usize>,
    /// New payments are refused: the node stops.
    pub draining: Cell<bool>,
    /// How late out-batches have their turn.
    turns: RefCell<Standing>,
    /// They stand in the queue for longer than is allowed.
    behind: Cell<bool>,
    /// The admin interface's ear: answers to commands, merchants that changed.
    pub control: Arc<NodeControl>,
    /// The way to other sites; `None` in a deployment of one, where every
    /// shard is led here.
    pub forward: Option<Forwarder>,
}

struct Slot {
    generation: u32,
    connection: Option<Rc<Connection>>,
}

impl Net {
    /// State over `exchanges`.
    pub fn new(
        settings: NetSettings,
        exchanges: Vec<Arc<Exchange>>,
        directory: Directory,
        metrics: Arc<Metrics>,
        control: Arc<NodeControl>,
        forward: Option<Forwarder>,
    ) -> Rc<Self> {
        let lane = |exchange: Arc<Exchange>| Lane {
            batch: RefCell::new(exchange.batch()),
            exchange,
            stuck: Cell::new(false),
        };
        Rc::new(Self {
            turns: RefCell::new(Standing::new(settings.queue_delay_max_us)),
            behind: Cell::new(false),
            brief: RefCell::new(Brief::new(
                settings.awake_share_percent,
                settings.awake_latency_us,
            )),
            moment: Notify::new(),
            window: RefCell::new(Window::new(settings.outstanding_max, settings.delay_target_us)),
            heard: RefCell::new(vec![0; usize::from(settings.shards)]),
            settings,
            lanes: exchanges.into_iter().map(lane).collect(),
            directory: RefCell::new(directory),
            metrics,
            links: RefCell::new(Vec::new()),
            held: RefCell::default(),
            connections: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            by_gateway: RefCell::default(),
            flush: Notify::new(),
            outstanding: Cell::new(0),
            draining: Cell::new(false),
            control,
            forward,
        })
    }

    /// Registers a connection and gives it its id.
    pub fn register(&self, make: impl FnOnce(u64) -> Connection) -> Rc<Connection> {
        let mut connections = self.connections.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            connections.push(Slot { generation: 0, connection: None });
            (connections.len() - 1) as u32
        });
        let entry = &mut connections[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        let id = u64::from(entry.generation) << 32 | u64::from(slot);
        let connection = Rc::new(make(id));
        entry.connection = Some(Rc::clone(&connection));
        self.metrics.connections.add(1);
        connection
    }

    /// The count of a gateway's unanswered requests, which its connections share.
    pub fn unanswered_of(&self, gateway: u16) -> Rc<Cell<usize>> {
        let mut counts = self.by_gateway.borrow_mut();
        let at = usize::from(gateway);
        if counts.len() <= at {
            counts.resize_with(at + 1, Rc::default);
        }
        Rc::clone(&counts[at])
    }

    /// Forgets a connection and tells the workers. Nothing that is read of it later counts.
    pub fn unregister(&self, connection: &Connection) {
        connection.gone.set(true);
        let slot = connection.id as u32;
        if let Some(entry) = self.connections.borrow_mut().get_mut(slot as usize) {
            entry.connection = None;
            self.free.borrow_mut().push(slot);
        }
        self.metrics.connections.sub(1);
        let unanswered = connection.in_flight.get() as usize;
        self.outstanding.set(self.outstanding.get().saturating_sub(unanswered));
        let of_gateway = &connection.of_gateway;
        of_gateway.set(of_gateway.get().saturating_sub(unanswered));
        if unanswered > 0
            && let Some(forward) = &self.forward
        {
            forward.forget(connection.id);
        }
        self.broadcast(|| Item::ConnectionClosed(connection.id));
    }

    /// Every live connection.
    pub fn connections(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().iter().filter_map(|slot| slot.connection.clone()).collect()
    }

    fn find(&self, id: u64) -> Option<Rc<Connection>> {
        let connections = self.connections.borrow();
        let slot = connections.get(id as u32 as usize)?;
        (slot.generation == (id >> 32) as u32).then(|| slot.connection.clone()).flatten()
    }

    /// The lane of a shard.
    pub fn lane(&self, shard: u16) -> &Lane {
        &self.lanes[usize::from(shard) % self.lanes.len()]
    }

    /// Adds an item to the open batch of its shard's lane.
    pub fn push(&self, shard: u16, item: Item) {
        let mut batch = self.lane(shard).batch.borrow_mut();
        if batch.items.is_empty() {
            self.flush.notify_one();
        }
        batch.items.push((shard, item));
    }

    /// Adds a pay whose content is copied into the batch's arena.
    pub fn push_pay(&self, shard: u16, pay: crate::engine::input::PayInput<'_>) {
        let mut batch = self.lane(shard).batch.borrow_mut();
        if batch.items.is_empty() {
            self.flush.notify_one();
        }
        let start = batch.arena.len() as u32;
        batch.arena.extend_from_slice(pay.content);
        let end = batch.arena.len() as u32;
        let pay = crate::engine::input::PayInput { content: &[], ..pay };
        batch.items.push((shard, Item::Pay(pay, start..end)));
    }

    /// Adds an item to every lane.
    pub fn broadcast(&self, item: impl Fn() -> Item) {
        for index in 0..self.lanes.len() {
            self.push(index as u16, item());
        }
    }

    /// How many requests may be unanswered at present.
    pub fn unanswered_max(&self, now_us: u64) -> usize {
        let mut window = self.window.borrow_mut();
        window.expire(now_us);
        window.size()
    }

    /// The window, to be played with.
    #[cfg(test)]
    pub fn window(&self) -> std::cell::RefMut<'_, Window> {
        self.window.borrow_mut()
    }

    /// A request that was taken has been answered with this code.
    pub fn has_answered(&self, code: Code) {
        // What asks to come again was no work.
        if !code.retryable() {
            self.window.borrow_mut().answered();
        }
    }

    /// An operation was at its channel for so long, microseconds.
    pub fn was_at_channel(&self, took_us: u64) {
        self.window.borrow_mut().at_channel(took_us);
    }

    /// Whether a new request must be shed, whatever it is, before any work is spent on it.
    /// Who sends it has `own` requests unanswered: half of an equal part is fair.
    pub fn is_overloaded(&self, own: usize, now_us: u64) -> bool {
        let mut window = self.window.borrow_mut();
        let part = window.size() / (2 * self.settings.gateways.max(1));
        let refuses = window.refuses(self.outstanding.get(), own < part.max(1), now_us);
        if self.behind.get() {
            window.shed();
        }
        refuses || self.behind.get()
    }

    /// Whether a new request for a shard must be shed.
    pub fn congested(&self, shard: u16) -> bool {
        // Another site's worker is not held back by ours.
        if self.forward.as_ref().is_some_and(|forward| !forward.leads(shard)) {
            return false;
        }
        let is_full = self.is_full(shard);
        if is_full {
            self.window.borrow_mut().shed();
        }
        is_full
    }

    /// Whether the shard's worker can be given no more requests for the moment.
    pub fn is_full(&self, shard: u16) -> bool {
        let lane = self.lane(shard);
        lane.stuck.get()
            || lane.exchange.overloaded.load(Ordering::Relaxed)
            || lane.batch.borrow().items.len() >= self.settings.batch_items_max
    }

    /// Whether an open batch has so much in it that it should leave before whole packets
    /// of requests are added: one packet holds three quarters of what a batch may.
    pub fn is_filling(&self) -> bool {
        self.holds(self.settings.batch_items_max / 8)
    }

    /// Whether an open batch is half full: as far as what cannot be refused fills it.
    pub fn is_crowded(&self) -> bool {
        self.holds(self.settings.batch_items_max.div_ceil(2))
    }

    /// Whether an open batch holds so much that requests are shed.
    pub fn is_batch_full(&self) -> bool {
        self.holds(self.settings.batch_items_max)
    }

    fn holds(&self, items: usize) -> bool {
        self.lanes.iter().any(|lane| lane.batch.borrow().items.len() >= items)
    }

    /// Whether what the directory says against a request of the shard is the last word:
    /// this site leads it, and has heard of every merchant that its log speaks of.
    pub fn judges(&self, shard: u16) -> bool {
        let heard = self.heard.borrow().get(usize::from(shard)).copied();
        let (term, leader) = self.control.mesh().leader_of(shard);
        leader == self.settings.site && heard == Some(term)
    }

    /// Has every gateway told who leads which shard.
    pub fn tell_leaders(&self) {
        for connection in self.connections.borrow().iter().filter_map(|it| it.connection.as_ref()) {
            connection.tell_leaders();
        }
    }

    /// Has the flusher look after the ready streams had their turn.
    pub fn flush_soon(&self) {
        self.flush.notify_one();
    }

    /// Hands open batches to the workers after all ready streams had their turn.
    pub async fn run_flusher(self: Rc<Self>) {
        loop {
            self.flush.notified().await;
            self.stay_awake();
            loop {
                let mut stuck = false;
                for lane in &self.lanes {
                    stuck |= !flush_lane(lane);
                }
                if let Some(forward) = &self.forward {
                    stuck |= !forward.flush();
                }
                if !stuck {
                    break;
                }
                // The worker is behind by the whole queue: requests are being
                // shed meanwhile, evidence waits in the open batch.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Looks after requests that other sites lead; ends at once where there are
    /// no other sites.
    pub async fn run_forwarding(self: Rc<Self>) {
        if let Some(forward) = &self.forward {
            forward.run(&self).await;
        }
    }

    /// What is handed over now shall find cores that are awake, if somebody waits for an
    /// answer. Under load they are anyway.
    fn stay_awake(&self) {
        let waits = self.outstanding.get() > 0 && self.metrics.cores_awake.value() == 0;
        if waits && self.brief.borrow_mut().begin(clock::mono_us()) {
            self.moment.notify_one();
        }
    }

    /// Cores may sleep once nothing is unanswered.
    fn look_whether_to_sleep(&self) {
        if self.outstanding.get() == 0 {
            self.let_sleep();
        }
    }

    fn let_sleep(&self) {
        let took_us = self.brief.borrow_mut().end(clock::mono_us());
        self.metrics.cores_awake_us.add(took_us.unwrap_or(0));
    }

    /// Lets cores sleep when a moment lasts too long.
    pub async fn run_moments(self: Rc<Self>) {
        loop {
            self.moment.notified().await;
            loop {
                let left_us = self.brief.borrow().left_us(clock::mono_us());
                match left_us {
                    None => break,
                    Some(0) => self.let_sleep(),
                    Some(left_us) => tokio::time::sleep(Duration::from_micros(left_us)).await,
                }
            }
        }
    }

    /// Spreads what the workers hand back.
    pub async fn run_dispatcher(self: Rc<Self>, wake: Arc<Notify>) {
        let mut dirty: Vec<Rc<Connection>> = Vec::new();
        loop {
            let mut taken = false;
            for lane in &self.lanes {
                while let Some(out) = lane.exchange.pop_out() {
                    taken = true;
                    self.turn_delayed(&out);
                    self.dispatch(&out, &mut dirty);
                    lane.exchange.recycle_out(out);
                }
            }
            if let Some(forward) = &self.forward {
                taken |= forward.arrivals(&self, &mut dirty);
            }
            if !taken {
                self.behind.set(false);
                self.look_whether_to_sleep();
                if self.held.borrow().is_empty() {
                    wake.notified().await;
                    continue;
                }
                // A timer only wakes us: what is found then counts.
                drop(tokio::time::timeout(HELD_PAUSE, wake.notified()).await);
            }
            self.settle_held();
            for connection in dirty.drain(..) {
                connection.wake_streams();
            }
            for link in self.links.borrow().iter() {
                link.wake_streams();
            }
            tokio::task::yield_now().await;
        }
    }

    fn turn_delayed(&self, out: &OutBatch) {
        let now_us = clock::mono_us();
        let delay_us = now_us.saturating_sub(out.ready_us);
        let mut times = out.times;
        times.turn.add(delay_us, (out.replies.len() + out.sends.len()) as u64);
        self.window.borrow_mut().measured(&times, self.outstanding.get(), now_us);
        self.behind.set(self.turns.borrow_mut().refuses(delay_us, now_us));
    }

    /// Gives a request to its channel's link.
    fn hand_over(&self, send: &Send) {
        let links = self.links.borrow();
        let sent = usize::from(send.channel)
            .checked_sub(1)
            .and_then(|index| links.get(index))
            .is_some_and(|link| link.send(send));
        self.handed_over(send, sent);
    }

    fn handed_over(&self, send: &Send, sent: bool) {
        if let Some(channel) = self.metrics.channel(send.channel) {
            if sent { channel.sent.add(1) } else { channel.not_sent.add(1) }
        }
        if !sent {
            self.push(send.operation.shard, Item::Evidence(send.operation, Evidence::NotSent));
        }
    }

    /// Looks after the requests that wait for a lease.
    fn settle_held(&self) {
        let mut held = self.held.borrow_mut();
        if held.is_empty() {
            return;
        }
        held.settle(self.control.mesh(), clock::mono_us(), |send, fate| match fate {
            Fate::Sent => self.hand_over(send),
            Fate::TooLate => self.handed_over(send, false),
            Fate::Forgotten => {}
        });
    }

    fn dispatch(self: &Rc<Self>, out: &OutBatch, dirty: &mut Vec<Rc<Connection>>) {
        for merchant in &out.merchants {
            self.control.put_merchant(merchant);
            let left_out = self.directory.borrow_mut().put(merchant);
            if left_out > 0 {
                eprintln!("merchant {}: {left_out} key(s) cannot be unwrapped", merchant.mch_id);
            }
        }
        for (shard, term) in &out.led {
            if let Some(heard) = self.heard.borrow_mut().get_mut(usize::from(*shard)) {
                *heard = *term;
            }
        }
        if let Some(forward) = self.forward.as_ref().filter(|_| !out.led.is_empty()) {
            forward.has_heard();
        }
        // Sends first: the channel works while we encode answers.
        let (mesh, now_us) = (self.control.mesh(), clock::mono_us());
        for send in &out.sends {
            let at_once = self.held.borrow().is_empty();
            if at_once && held::fate(send, mesh, now_us) == Some(Fate::Sent) {
                self.hand_over(send);
            } else {
                self.held.borrow_mut().push(send);
            }
        }
        self.settle_held();
        let now_us = clock::mono_us();
        if let Some(forward) = &self.forward {
            for reply in &out.replies {
                if let Some(reply) = forward.settle(self, reply) {
                    self.reply(&reply, now_us, dirty);
                }
            }
        }
        let mut last: Option<Rc<Connection>> = None;
        let own = if self.forward.is_none() { out.replies.as_slice() } else { &[] };
        for reply in own {
            let id = reply.waiter.connection;
            if last.as_ref().is_none_or(|connection| connection.id != id) {
                last = self.find(id);
            }
            let Some(connection) = &last else { continue };
            self.answered(connection, reply, now_us);
            connection.reply(reply, dirty);
        }
        for (waiter, event) in &out.events {
            if let Some(connection) = self.find(waiter.connection)
                && connection.event(waiter, event, dirty)
            {
                self.metrics.events.add(1);
            }
        }
        for (ticket, result) in &out.admin {
            self.control.answer(*ticket, result.clone());
        }
    }

    /// Answers a gateway's request.
    pub fn reply(&self, reply: &Reply, now_us: u64, dirty: &mut Vec<Rc<Connection>>) {
        let Some(connection) = self.find(reply.waiter.connection) else { return };
        self.answered(&connection, reply, now_us);
        connection.reply(reply, dirty);
    }

    fn answered(&self, connection: &Connection, reply: &Reply, now_us: u64) {
        self.outstanding.set(self.outstanding.get().saturating_sub(1));
        connection.in_flight.set(connection.in_flight.get().saturating_sub(1));
        connection.of_gateway.set(connection.of_gateway.get().saturating_sub(1));
        let code = reply.code();
        self.has_answered(code);
        if let Some(op) = Op::from_kind(reply.waiter.kind) {
            self.metrics.replies.of(op).add(1);
        }
        self.metrics.refusals.of(code).add(1);
        self.count_outcome(reply);
        if reply.waiter.kind == kind::PAY && code == Code::Ok {
            self.metrics.total.record(stamp_age_us(reply.waiter.stream, now_us));
        }
    }

    fn count_outcome(&self, reply: &Reply) {
        let replayed = match &reply.body {
            ReplyBody::Order(body) => {
                if reply.waiter.kind == kind::PAY {
                    self.metrics.outcomes.order(body.state).add(1);
                }
                body.replayed
            }
            ReplyBody::Refund(body) => {
                if reply.waiter.kind == kind::REFUND {
                    self.metrics.outcomes.refund(body.state).add(1);
                }
                body.replayed
            }
        };
        if replayed {
            self.metrics.replayed.add(1);
        }
    }

    /// How many milliseconds a shed client should stay away.
    pub fn retry_after_ms(&self) -> u32 {
        ((self.settings.queue_delay_max_us / 1000) as u32).max(1) * 4
    }

    /// A refusal that needs no worker, in the layout of the request's kind.
    pub fn refusal(&self, waiter: Waiter, code: Code) -> Reply {
        let retry = if code.retryable() { self.retry_after_ms() } else { 0 };
        self.metrics.refusals.of(code).add(1);
        Reply::refusal(waiter, code, retry)
    }
}

/// Returns false when the worker's queue is full.
fn flush_lane(lane: &Lane) -> bool {
    if lane.batch.borrow().items.is_empty() {
        lane.stuck.set(false);
        return true;
    }
    let next = lane.exchange.batch();
    let mut full = lane.batch.replace(next);
    full.queued_us = clock::mono_us();
    match lane.exchange.push(full) {
        Ok(()) => {
            lane.stuck.set(false);
            true
        }
        Err(back) => {
            let unused = lane.batch.replace(back);
            lane.exchange.recycle(unused);
            lane.stuck.set(true);
            false
        }
    }
}

const STREAM_BITS: u32 = 10;
const STAMP_UNIT_US: u64 = 16;

/// Most streams of one connection that the waiter's stream field can name.
pub const STREAMS_MAX: u32 = 1 << STREAM_BITS;

/// Packs a stream slot and the moment of arrival (16 us units, 67 s range) into
/// the waiter's stream field, which the engine carries without looking at it.
pub fn stamp_stream(slot: u32, now_us: u64) -> u32 {
    slot | ((now_us / STAMP_UNIT_US) as u32) << STREAM_BITS
}

/// The stream slot of a stamped stream field.
pub fn stream_slot(stamped: u32) -> u32 {
    stamped & (STREAMS_MAX - 1)
}

/// Names the `opened`th stream of a connection, in `slot`. No other one that the
/// connection opens within four million has the same name.
pub fn stream_name(slot: u32, opened: u32) -> u32 {
    slot | opened << STREAM_BITS
}

fn stamp_age_us(stamped: u32, now_us: u64) -> u64 {
    let mask = (1_u32 << (32 - STREAM_BITS)) - 1;
    let then = stamped >> STREAM_BITS;
    let now = (now_us / STAMP_UNIT_US) as u32 & mask;
    u64::from(now.wrapping_sub(then) & mask) * STAMP_UNIT_US
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamped_stream_tells_slot_and_age() {
        for (slot, at, later) in [(0, 0, 160), (1023, 5_000_000, 16), (7, 1 << 40, 32)] {
            let stamped = stamp_stream(slot, at);
            assert_eq!(stream_slot(stamped), slot);
            let age = stamp_age_us(stamped, at + later);
            assert!(age <= later + STAMP_UNIT_US && age + STAMP_UNIT_US >= later, "age {age}");
        }
    }
}
