//! The payment state machine of one shard: pure and deterministic.
//!
//! Knows no file, socket, thread, clock or random source: everything comes in
//! as [`Input`] with [`Now`], everything it wants goes out through [`Outputs`].
//!
//! State changes in one place only: when a committed record is applied. On the
//! leader a request is decided against that state *plus what is proposed but
//! not yet committed* (fields named `live`, `proposed`, `admitted`); this view
//! is volatile and vanishes on step-down. Answers that promise durability, and
//! sends to channels, are emitted when their record is applied, never earlier.
//!
//! A channel is down until [`Input::ChannelUp`] says otherwise.
//!
//! | file | what |
//! |---|---|
//! | `admit`, `cancel`, `refund`, `admin` | requests, decided and turned into records |
//! | `evidence`, `attempt`, `late` | channel statements; the transition table; what comes too late |
//! | `resolver`, `timer` | the in-doubt set, what is due when |
//! | `apply`, `record` | committed records; their bytes |
//! | `checkpoint` | the whole state as bytes, in slices, and back |
//! | `outbox`, `waiter` | who is told |
//! | `order`, `index`, `slab`, `directory`, `limit` | where it is kept |
//!
//! The rules are written in docs/STATES.md. Tested in `tests/`: the rules one by one, replay at
//! every log prefix, and a seeded model with faults that must catch every weakened rule.

pub mod config;
pub mod input;
pub mod merchant;
pub mod order;
pub mod output;
pub mod record;

mod admin;
mod admit;
mod apply;
mod attempt;
mod cancel;
mod checkpoint;
mod directory;
mod evidence;
mod index;
mod late;
mod limit;
mod outbox;
pub(crate) mod prefetch;
mod refund;
mod resolver;
mod slab;
#[cfg(test)]
mod tests;
mod timer;
mod view;
mod waiter;
pub(crate) mod weakness;

pub use apply::ApplyError;
pub use checkpoint::{CHUNK_BYTES_MAX, Restore, RestoreError, Slice};
pub use config::EngineConfig;
pub(crate) use directory::FoldHasher;
pub use input::{Input, Now};
pub use outbox::event_shard;
pub use output::Outputs;
pub use view::{AttemptView, ChannelStats, DoubtView, OrderView, RefundView, Stats};

use directory::Directory;
use input::{Evidence, OperationId};
use late::Contradictions;
use order::Orders;
use outbox::Outbox;
use record::Record;
use resolver::Resolver;
use std::collections::VecDeque;
use timer::{Budget, Fifo, Heap};
use waiter::Waiters;

/// The engine of one shard.
pub struct Engine {
    config: EngineConfig,
    merchants: Directory,
    orders: Orders,
    outbox: Outbox,
    counters: Counters,
    /// Sites that shall not lead, a bit per number; kept in shard 0.
    drained: u64,
    /// Index of the last block applied.
    applied: u64,
    /// The term this replica leads in.
    term: Option<u64>,
    channels: Vec<Channel>,
    waiters: Waiters,
    resolver: Resolver,
    /// Refunds whose F record is proposed, in log order.
    proposed_refunds: VecDeque<(u64, u32)>,
    /// Operators waiting for their record, in log order.
    tickets: VecDeque<u64>,
    /// Statements that came while another outcome of their attempt or refund
    /// was proposed and that might contradict it.
    deferred: Vec<(OperationId, Evidence)>,
    contradictions: Contradictions,
    /// The checkpoint being written.
    freeze: Option<Box<checkpoint::Freeze>>,
    #[cfg(test)]
    weakness: Option<weakness::Weakness>,
    #[cfg(test)]
    salt: std::cell::Cell<u8>,
}

/// What happened, counted on this replica.
#[derive(Clone, Copy, Default)]
struct Counters {
    ignored_records: u64,
    unmatched: u64,
    manual_attempts: u64,
    manual_refunds: u64,
}

/// The volatile side of one channel.
struct Channel {
    up: bool,
    /// Operations without answer, reservations of proposals included.
    in_flight: u32,
    /// Time-outs of first sends.
    replies: Fifo<(u64, u8)>,
    /// Cases that want to ask, oldest doubt first.
    ready: Heap<(u32, u32)>,
    budget: Budget,
}

impl Engine {
    /// An engine without state: the log or a checkpoint brings it.
    pub fn new(config: EngineConfig) -> Self {
        let channels = config.channels.iter().map(|channel| Channel {
            up: false,
            in_flight: 0,
            replies: Fifo::new(),
            ready: Heap::new(),
            budget: Budget::new(channel.resolver_per_second),
        });
        Self {
            channels: channels.collect(),
            merchants: Directory::default(),
            orders: Orders::new(),
            outbox: Outbox::new(config.shard),
            counters: Counters::default(),
            drained: 0,
            applied: 0,
            term: None,
            waiters: Waiters::new(),
            resolver: Resolver::new(),
            proposed_refunds: VecDeque::new(),
            tickets: VecDeque::new(),
            deferred: Vec::new(),
            contradictions: Contradictions::new(),
            freeze: None,
            #[cfg(test)]
            weakness: None,
            #[cfg(test)]
            salt: std::cell::Cell::new(0),
            config,
        }
    }

    /// Takes one input.
    ///
    /// # Errors
    /// [`ApplyError`] for a committed block that cannot be applied: the replica
    /// must stop, its state no longer follows the log.
    pub fn handle(
        &mut self,
        input: Input<'_>,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let before = out.sends.len();
        let taken = self.take(input, now, out);
        if let Some(term) = self.term {
            for send in out.sends.iter_mut().skip(before) {
                (send.term, send.since_us) = (term, now.mono_us);
            }
        }
        taken
    }

    fn take(&mut self, input: Input<'_>, now: Now, out: &mut Outputs) -> Result<(), ApplyError> {
        match input {
            Input::Pay(pay) => self.pay(&pay, now, out),
            Input::Query(query) => self.query(&query, now, out),
            Input::Close(close) => self.close(&close, now, out),
            Input::Reverse(reverse) => self.reverse(&reverse, now, out),
            Input::Refund(refund) => self.refund(&refund, now, out),
            Input::QueryRefund(query) => self.query_refund(&query, now, out),
            Input::Subscribe { waiter, gateway } => self.subscribe(waiter, gateway, now, out),
            Input::Unsubscribe { connection, stream } => {
                self.outbox.unsubscribe(connection, stream);
            }
            Input::EventAck { event_id, waiter } => self.event_ack(event_id, &waiter, now, out),
            Input::ConnectionClosed { connection } => self.connection_closed(connection),
            Input::Evidence { operation, evidence } => {
                self.evidence(operation, &evidence, now, out);
            }
            Input::LinkLost { channel } => self.link_lost(channel, now, out),
            Input::ChannelUp { channel, up } => self.channel_up(channel, up, now, out),
            Input::Admin(admin) => self.admin(admin, now, out),
            Input::Tick => self.tick(now, out),
            Input::Committed { index, term, block } => {
                return self.apply(index, term, block, now, out);
            }
            Input::Lead { term } => self.lead(term, now, out),
            Input::StepDown => self.step_down(out),
        }
        Ok(())
    }

    /// Whether a payment of this merchant and number exists.
    pub fn knows(&self, pay: &input::PayInput<'_>) -> bool {
        let merchant = self.merchants.find(&pay.origin.mch_id);
        merchant
            .is_some_and(|place| self.orders.find(&pay.digest, place, &pay.out_trade_no).is_some())
    }

    /// Asks for the memory that a pay or query of this digest will read first.
    /// Called for a whole batch ahead of handling it, the cache misses of its
    /// payments overlap instead of adding up.
    #[inline]
    pub fn warm_key(&self, digest: &[u8; 16]) {
        self.orders.index.warm(digest);
    }

    /// As [`Self::warm_key`], for what concerns a known payment.
    #[inline]
    pub fn warm_order(&self, sequence: u64) {
        self.orders.warm(sequence);
    }

    /// The shard.
    pub fn shard(&self) -> u16 {
        self.config.shard
    }

    /// Sites that shall not lead any shard, a bit per site number. Kept by the
    /// engine of shard 0 only.
    pub fn drained(&self) -> u64 {
        self.drained
    }

    /// Index of the last block applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// When [`Input::Tick`] is wanted next, monotonic microseconds.
    pub fn next_due(&self) -> Option<u64> {
        self.term?;
        let replies = self.channels.iter().filter_map(|channel| channel.replies.front());
        let ready =
            self.channels.iter().filter(|channel| channel.up && channel.ready.first().is_some());
        let (waiters, outbox) = (self.waiters.next_due(), self.outbox.next_due());
        [waiters, outbox, self.resolver.next_due(), self.contradictions.next_due()]
            .into_iter()
            .flatten()
            .chain(replies.map(|(due, _)| due))
            .chain(ready.map(|channel| channel.budget.ready_at()))
            .min()
    }

    fn tick(&mut self, now: Now, out: &mut Outputs) {
        if self.term.is_none() {
            return;
        }
        self.waits_over(now, out);
        self.reply_timeouts(now, out);
        self.work_due(now, out);
        self.ask_again_due(now, out);
        self.deliver_due(now, out);
    }

    fn propose(&self, now: Now, record: &Record<'_>, out: &mut Outputs) {
        debug_assert!(self.term.is_some(), "only a leader proposes");
        record::append(&mut out.block, now.wall_us, record);
        out.block_records += 1;
    }

    fn channel(&self, number: u16) -> Option<&config::ChannelConfig> {
        self.config.channels.get(usize::from(number).checked_sub(1)?)
    }

    fn live_channel(&mut self, number: u16) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(number).checked_sub(1)?)
    }

    fn release_in_flight(&mut self, number: u16) {
        if let Some(channel) = self.live_channel(number) {
            debug_assert!(channel.in_flight > 0);
            channel.in_flight = channel.in_flight.saturating_sub(1);
        }
    }

    /// Whether the channel takes one more operation now.
    fn has_room(&self, number: u16) -> bool {
        let Some(config) = self.channel(number) else { return false };
        let channel = &self.channels[usize::from(number) - 1];
        channel.up && channel.in_flight < config.in_flight_max
    }

    /// Leadership begins: everything open is in doubt, volatile views start
    /// from what the log says.
    fn lead(&mut self, term: u64, now: Now, out: &mut Outputs) {
        debug_assert_eq!(self.orders.len(), self.orders.committed);
        self.term = Some(term);
        self.merchants.forget_admitted();
        let busy: Vec<u64> = self.orders.busy.ones().collect();
        for sequence in busy {
            self.take_over(sequence, now, out);
        }
        self.outbox.redeliver_all(now);
        self.work_due(now, out);
    }

    /// Leadership ends: forget what was proposed and who waits.
    fn step_down(&mut self, out: &mut Outputs) {
        if self.term.take().is_none() {
            return;
        }
        self.waiters.drain_all(|waiter| {
            out.replies.push(output::Reply::refusal(waiter, protocol::code::Code::NotLeader, 0))
        });
        if self.weakened(weakness::Weakness::StepDownKeepsProposals) {
            return;
        }
        for (sequence, place) in self.proposed_refunds.drain(..).rev() {
            if let Some(refund) = self.orders.refunds.remove(place)
                && let Some(order) = self.orders.get_mut(sequence)
            {
                debug_assert_eq!(order.refunds, place);
                order.refunds = refund.next;
                order.refund_count -= u8::from(refund.kind == order::RefundKind::Merchant);
                order.live.reserving = 0;
            }
        }
        while self.orders.pop_proposed().is_some() {}
        let busy: Vec<u64> = self.orders.busy.ones().collect();
        for sequence in busy {
            self.orders[sequence].live = order::Live::NONE;
            let mut at = self.orders[sequence].refunds;
            while let Some(refund) = self.orders.refunds.get_mut(at) {
                (refund.case, refund.ending) = (slab::NIL, false);
                (refund.waiters, refund.waiter_count) = (slab::NIL, 0);
                at = refund.next;
            }
        }
        for channel in &mut self.channels {
            channel.in_flight = 0;
            channel.replies.clear();
            channel.ready.clear();
        }
        self.resolver = Resolver::new();
        self.deferred.clear();
        self.contradictions.clear();
        self.outbox.forget_deliveries();
        for ticket in self.tickets.drain(..) {
            out.admin.push((ticket, Err("leadership moved: ask the new leader".into())));
        }
    }
}
