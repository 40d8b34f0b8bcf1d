//! Hand-off between the network thread and a worker: bounded queues of whole
//! batches, reused, and a wake-up only for a worker that really sleeps.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use storage::Notify;

use super::window::Times;
use crate::engine::Engine;
use crate::engine::input::{
    AdminInput, Evidence, OperationId, OrderInput, PayInput, QueryRefundInput, RefundInput, Waiter,
};
use crate::engine::merchant::Merchant;
use crate::engine::output::{Reply, Send};
use crate::replica::Replica;
use protocol::message::Event;

/// One thing for the worker to do, with its shard.
pub enum Item {
    /// A pay; its content lies in the batch's arena.
    Pay(PayInput<'static>, Range<u32>),
    /// A query.
    Query(OrderInput),
    /// A close.
    Close(OrderInput),
    /// A reverse.
    Reverse(OrderInput),
    /// A refund.
    Refund(RefundInput),
    /// A refund query.
    QueryRefund(QueryRefundInput),
    /// Evidence from a channel link.
    Evidence(OperationId, Evidence),
    /// A subscriber of events, for every shard.
    Subscribe(Waiter, u16),
    /// A subscription of a connection that lives on ended, with the stream's name; for every
    /// shard.
    Unsubscribe(u64, u32),
    /// An event was taken over; the shard comes from the event id's sender.
    EventAck(u64, Waiter),
    /// A connection ended, for every shard.
    ConnectionClosed(u64),
    /// A channel link changed, for every shard.
    ChannelUp(u16, bool),
    /// A channel link was lost, for every shard.
    LinkLost(u16),
    /// An operator's command.
    Admin(Box<AdminInput>),
    /// Hand the shard to a site: ticket of the answer, and site.
    Transfer(u64, u16),
    /// A command to the replica, which answers by itself; taken once.
    Reach(std::cell::Cell<Option<Reach>>),
    /// A look at the engine, for the admin interface; taken once.
    Inspect(std::cell::Cell<Option<Look>>),
}

impl Item {
    /// Who waits for an answer.
    pub fn waiter(&self) -> Option<Waiter> {
        Some(match self {
            Item::Pay(pay, _) => pay.origin.waiter,
            Item::Query(order) | Item::Close(order) | Item::Reverse(order) => order.origin.waiter,
            Item::Refund(refund) => refund.origin.waiter,
            Item::QueryRefund(query) => query.origin.waiter,
            _ => return None,
        })
    }
}

/// What the admin interface does with an engine.
pub type Look = Box<dyn FnOnce(&Engine) + std::marker::Send>;

/// What the admin interface does with a replica.
pub type Reach = Box<dyn FnOnce(&mut Replica) + std::marker::Send>;

/// Items of one turn of the network thread.
#[derive(Default)]
pub struct Batch {
    /// When it was handed over, monotonic microseconds.
    pub queued_us: u64,
    /// Shard and item.
    pub items: Vec<(u16, Item)>,
    /// Contents of the pays.
    pub arena: Vec<u8>,
}

impl Batch {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.items.clear();
        self.arena.clear();
    }
}

/// What a worker hands back in one turn.
#[derive(Default)]
pub struct OutBatch {
    /// When it was handed over, monotonic microseconds.
    pub ready_us: u64,
    /// How long requests took to get this far.
    pub times: Times,
    /// Answers.
    pub replies: Vec<Reply>,
    /// Requests to channels.
    pub sends: Vec<Send>,
    /// Outcome events.
    pub events: Vec<(Waiter, Event)>,
    /// Changes of the merchant directory.
    pub merchants: Vec<Merchant>,
    /// Answers to operators.
    pub admin: Vec<(u64, Result<String, String>)>,
    /// Shards that this site has come to lead, and in which term: all that was committed
    /// of their merchants before that is in this batch or in an earlier one.
    pub led: Vec<(u16, u64)>,
}

impl OutBatch {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
            && self.sends.is_empty()
            && self.events.is_empty()
            && self.merchants.is_empty()
            && self.admin.is_empty()
            && self.led.is_empty()
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.times = Times::default();
        self.replies.clear();
        self.sends.clear();
        self.events.clear();
        self.merchants.clear();
        self.admin.clear();
        self.led.clear();
    }
}

/// A packet of replica messages from another site.
pub struct Packet {
    /// Which site, as its certificate says.
    pub from: u8,
    /// The messages, encoded.
    pub bytes: Bytes,
}

/// Packets of other sites that may wait for the worker; more are dropped, which
/// consensus survives.
const PACKETS_MAX: usize = 4096;
/// Bytes of those.
const PACKETS_BYTES_MAX: usize = 64 << 20;

/// What the worker is to be woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Listen {
    /// Nothing that is handed in: it looks by itself when it wakes.
    Nothing,
    /// Packets of other sites, which wait for its answer.
    Packets,
    /// Batches, too.
    All,
}

/// The queues between one worker and the network thread.
pub struct Exchange {
    inbox: ArrayQueue<Box<Batch>>,
    inbox_pool: ArrayQueue<Box<Batch>>,
    packets: ArrayQueue<Packet>,
    packets_bytes: AtomicUsize,
    outbox: ArrayQueue<Box<OutBatch>>,
    outbox_pool: ArrayQueue<Box<OutBatch>>,
    /// A [`Listen`]; only what sleeps listens.
    listens: AtomicU8,
    notify: Notify,
    net_wake: Arc<tokio::sync::Notify>,
    /// Requests stand in the queue for longer than is allowed: new ones are to be
    /// refused.
    pub overloaded: AtomicBool,
}

impl Exchange {
    /// Queues of `batches` batches each way; `notify` is what the worker sleeps
    /// on, `net_wake` what the network thread waits for.
    pub fn new(batches: usize, notify: Notify, net_wake: Arc<tokio::sync::Notify>) -> Self {
        Self {
            inbox: ArrayQueue::new(batches),
            inbox_pool: ArrayQueue::new(batches),
            packets: ArrayQueue::new(PACKETS_MAX),
            packets_bytes: AtomicUsize::new(0),
            outbox: ArrayQueue::new(batches),
            outbox_pool: ArrayQueue::new(batches),
            listens: AtomicU8::new(Listen::Nothing as u8),
            notify,
            net_wake,
            overloaded: AtomicBool::new(false),
        }
    }

    /// An empty batch to fill.
    pub fn batch(&self) -> Box<Batch> {
        self.inbox_pool.pop().unwrap_or_default()
    }

    /// Hands a batch to the worker; gives it back when the queue is full.
    ///
    /// # Errors
    /// The batch, when the worker does not keep up.
    pub fn push(&self, batch: Box<Batch>) -> Result<(), Box<Batch>> {
        self.inbox.push(batch)?;
        self.nudge(Listen::All);
        Ok(())
    }

    /// Peer thread: hands a packet of another site to the worker; gives it back
    /// when the worker does not keep up.
    ///
    /// # Errors
    /// The packet.
    pub fn push_packet(&self, packet: Packet) -> Result<(), Packet> {
        let bytes = packet.bytes.len();
        if self.packets_bytes.load(Ordering::Relaxed) + bytes > PACKETS_BYTES_MAX {
            return Err(packet);
        }
        // Counted first: the worker must not take off what was not put on yet.
        self.packets_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Err(packet) = self.packets.push(packet) {
            self.packets_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(packet);
        }
        self.nudge(Listen::Packets);
        Ok(())
    }

    /// Worker: the next packet of another site.
    pub fn pop_packet(&self) -> Option<Packet> {
        let packet = self.packets.pop()?;
        self.packets_bytes.fetch_sub(packet.bytes.len(), Ordering::Relaxed);
        Some(packet)
    }

    /// Wakes the worker if it sleeps and listens to that much at least.
    fn nudge(&self, least: Listen) {
        // Pairs with the fence in `park`: either the worker sees what was
        // pushed, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.listens.load(Ordering::Relaxed) >= least as u8 {
            self.listens.store(Listen::Nothing as u8, Ordering::Relaxed);
            self.notify.wake();
        }
    }

    /// Batches that wait for the worker.
    pub fn waiting(&self) -> usize {
        self.inbox.len()
    }

    /// Worker: the next batch.
    pub fn pop(&self) -> Option<Box<Batch>> {
        self.inbox.pop()
    }

    /// Worker: gives an emptied batch back.
    pub fn recycle(&self, mut batch: Box<Batch>) {
        batch.clear();
        // A full pool just frees the memory.
        drop(self.inbox_pool.push(batch));
    }

    /// Worker: sleeps until something is handed in that it listens to, the log reports, or
    /// the time-out ends.
    pub fn park(&self, timeout_us: u64, listen: Listen) {
        if self.falls_asleep(listen) {
            self.notify.wait(timeout_us);
            self.listens.store(Listen::Nothing as u8, Ordering::Relaxed);
        }
    }

    /// Listens from now on, unless there is something already.
    fn falls_asleep(&self, listen: Listen) -> bool {
        if listen == Listen::Nothing {
            return true;
        }
        self.listens.store(listen as u8, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let batches = listen == Listen::All && !self.inbox.is_empty();
        if batches || !self.packets.is_empty() {
            self.listens.store(Listen::Nothing as u8, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Worker: an empty out-batch.
    pub fn out_batch(&self) -> Box<OutBatch> {
        self.outbox_pool.pop().unwrap_or_default()
    }

    /// Worker: hands an out-batch to the network thread; gives it back when
    /// that thread does not keep up.
    ///
    /// # Errors
    /// The out-batch, to be offered again later.
    pub fn push_out(&self, out: Box<OutBatch>) -> Result<(), Box<OutBatch>> {
        self.outbox.push(out)?;
        self.net_wake.notify_one();
        Ok(())
    }

    /// Network thread: the next out-batch.
    pub fn pop_out(&self) -> Option<Box<OutBatch>> {
        self.outbox.pop()
    }

    /// Network thread: gives an emptied out-batch back.
    pub fn recycle_out(&self, mut out: Box<OutBatch>) {
        out.clear();
        drop(self.outbox_pool.push(out));
    }

    /// Wakes the worker whatever it waits for (stop, for example).
    pub fn wake(&self) {
        self.notify.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_listens_to_packets_sleeps_through_batches() {
        let exchange = || {
            let net_wake = Arc::new(tokio::sync::Notify::new());
            Exchange::new(4, Notify::new().unwrap(), net_wake)
        };
        let packet = || Packet { from: 2, bytes: Bytes::from_static(b"x") };
        // Whether what was handed in before it slept, or while it slept, wakes it.
        for (listen, for_batch, for_packet) in [
            (Listen::Nothing, false, false),
            (Listen::Packets, false, true),
            (Listen::All, true, true),
        ] {
            for (is_packet, wakes) in [(false, for_batch), (true, for_packet)] {
                let hand_in = |exchange: &Exchange| match is_packet {
                    true => assert!(exchange.push_packet(packet()).is_ok()),
                    false => assert!(exchange.push(exchange.batch()).is_ok()),
                };
                let before = exchange();
                hand_in(&before);
                assert_eq!(before.falls_asleep(listen), !wakes, "{listen:?} {is_packet}");
                let during = exchange();
                assert!(during.falls_asleep(listen));
                hand_in(&during);
                let left = if wakes { Listen::Nothing } else { listen };
                assert_eq!(during.listens.load(Ordering::Relaxed), left as u8, "{listen:?}");
            }
        }
    }

    #[test]
    fn packets_are_bounded_in_number_and_bytes() {
        let net_wake = Arc::new(tokio::sync::Notify::new());
        let exchange = Exchange::new(4, Notify::new().unwrap(), net_wake);
        let packet = |bytes: usize| Packet { from: 2, bytes: Bytes::from(vec![0; bytes]) };
        assert!(exchange.push_packet(packet(PACKETS_BYTES_MAX)).is_ok());
        assert!(exchange.push_packet(packet(1)).is_err());
        assert_eq!(exchange.pop_packet().map(|packet| packet.from), Some(2));
        for _ in 0..PACKETS_MAX {
            assert!(exchange.push_packet(packet(1)).is_ok());
        }
        assert!(exchange.push_packet(packet(1)).is_err());
        while exchange.pop_packet().is_some() {}
        assert!(exchange.push_packet(packet(PACKETS_BYTES_MAX)).is_ok(), "nothing is left over");
    }
}
