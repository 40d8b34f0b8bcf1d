//! The payment state machine of one shard: pure and deterministic.
//!
//! Knows no file, socket, thread, clock or random source: everything comes in
//! as [`Input`] with [`Now`], everything it wants goes out through [`Outputs`].
//!
//! State changes only when a committed record is applied (`apply`). On the
//! leader, requests are decided against that state plus a volatile overlay of
//! what is proposed (`admit`, `cancel`, `refund`); evidence from channels becomes
//! proposals (`evidence`); the in-doubt set is worked off by time (`resolver`).
//! Tested by tables, by crash replays at every record, and by seeded random
//! histories against an honest channel, with must-fail mutations of the rules.

mod admit;
mod apply;
mod cancel;
pub mod config;
mod evidence;
mod index;
pub mod input;
mod limit;
pub mod merchant;
mod order;
mod outbox;
pub mod output;
pub mod record;
mod refund;
mod resolver;
mod slab;
mod state;
#[cfg(test)]
mod tests;
mod view;
mod waiters;

pub use config::EngineConfig;
pub use input::{Input, Now};
pub use outbox::event_shard;
pub use output::Outputs;
pub use view::{DoubtView, OrderView};

use std::collections::{BinaryHeap, HashMap, VecDeque};

use protocol::id::MchId;

use index::Index;
use limit::Limiter;
use merchant::Merchant;
use order::{Order, Refund};
use outbox::Outbox;
use record::RecordError;
use resolver::{ChannelState, Doubt, Timer};
use slab::Slab;
use waiters::Waiters;

/// Why a committed block cannot be applied: log and program do not fit
/// together, or the log was tampered with. Never skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The block's index does not follow.
    #[error("block {found} follows block {last}")]
    Gap {
        /// Last index applied.
        last: u64,
        /// Index found.
        found: u64,
    },
    /// A payment's sequence does not follow.
    #[error("payment {found} follows payment {last}")]
    Sequence {
        /// Payments held.
        last: u64,
        /// Sequence found.
        found: u64,
    },
    /// A record names a payment, refund or merchant that does not exist.
    #[error("a record of block {index} names what does not exist")]
    Dangling {
        /// Index of the block.
        index: u64,
    },
}

/// Figures of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Payments held.
    pub orders: u64,
    /// Without a final state.
    pub open: u64,
    /// Attempts and refunds in doubt (leader only).
    pub in_doubt: u64,
    /// In front of an operator.
    pub manual: u64,
    /// Waiting answers.
    pub waiters: u64,
    /// Events not yet taken over.
    pub outbox: u64,
    /// Charges without answer per channel.
    pub in_flight: Vec<u32>,
    /// Committed records that did not fit the state and were left out.
    pub misfits: u64,
}

struct MerchantState {
    merchant: Merchant,
    /// Limits that come back, and when (Unix milliseconds).
    previous: Option<(merchant::Limits, u64)>,
    /// Replicated: advanced by applied records only.
    live: Limiter,
    /// Leader's view: advanced at admission.
    ahead: Limiter,
}

/// One shard's engine.
pub struct Engine {
    config: EngineConfig,
    orders: Slab<Order>,
    /// Payments whose BEGIN is applied; the rest of `orders` is proposed.
    committed: usize,
    index: Index,
    refunds: Slab<Refund>,
    committed_refunds: usize,
    merchants: Vec<MerchantState>,
    merchant_ids: HashMap<MchId, u32>,
    outbox: Outbox,
    applied: u64,
    open: u64,
    manual: u64,
    misfits: u64,
    /// Term that this replica leads in.
    leading: Option<u64>,
    waiters: Waiters,
    channels: Vec<ChannelState>,
    doubts: HashMap<(u32, u8), Doubt>,
    timers: BinaryHeap<Timer>,
    /// Early answers in order of time: due, payment, refund ordinal or 0.
    waits: VecDeque<(u64, u32, u8)>,
    /// Evidence that came while a decision about its attempt was on its way.
    deferred: Vec<(input::OperationId, input::Evidence)>,
}

impl Engine {
    /// An empty shard.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            orders: Slab::new(),
            committed: 0,
            index: Index::new(),
            refunds: Slab::new(),
            committed_refunds: 0,
            merchants: Vec::new(),
            merchant_ids: HashMap::new(),
            outbox: Outbox::default(),
            applied: 0,
            open: 0,
            manual: 0,
            misfits: 0,
            leading: None,
            waiters: Waiters::default(),
            channels: config.channels.iter().map(|_| ChannelState::default()).collect(),
            doubts: HashMap::new(),
            timers: BinaryHeap::new(),
            waits: VecDeque::new(),
            deferred: Vec::new(),
            config,
        }
    }

    /// This shard.
    pub fn shard(&self) -> u16 {
        self.config.shard
    }

    /// Highest block applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Takes one input.
    ///
    /// # Errors
    /// [`ApplyError`], for `Input::Committed` only.
    pub fn handle(
        &mut self,
        input: Input<'_>,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        match input {
            Input::Pay(pay) => self.pay(&pay, now, out),
            Input::Query(query) => self.query(&query, now, out),
            Input::Close(close) => self.close(&close, now, out),
            Input::Reverse(reverse) => self.reverse(&reverse, now, out),
            Input::Refund(refund) => self.refund(&refund, now, out),
            Input::QueryRefund(query) => self.query_refund(&query, now, out),
            Input::Subscribe { waiter, gateway } => self.outbox.subscribe(waiter, gateway),
            Input::EventAck { event_id, waiter } => self.event_ack(event_id, waiter, now, out),
            Input::ConnectionClosed { connection } => self.outbox.unsubscribe(connection),
            Input::Evidence { operation, evidence } => {
                self.evidence(operation, evidence, now, out);
            }
            Input::LinkLost { channel } => self.link_lost(channel, now),
            Input::ChannelUp { channel, up } => self.channel_up(channel, up),
            Input::Admin(admin) => self.admin(admin, now, out),
            Input::Tick => self.tick(now, out),
            Input::Committed { index, term, block } => {
                return self.apply(index, term, block, now, out);
            }
            Input::Lead { term } => self.lead(term, now, out),
            Input::StepDown => self.step_down(),
        }
        Ok(())
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        Stats {
            orders: self.orders.len() as u64,
            open: self.open,
            in_doubt: self.doubts.len() as u64,
            manual: self.manual,
            waiters: self.waiters.len() as u64,
            outbox: self.outbox.len() as u64,
            in_flight: self.channels.iter().map(|channel| channel.in_flight).collect(),
            misfits: self.misfits,
        }
    }
}
