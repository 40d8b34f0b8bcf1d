//! Counters, gauges and histograms of a site, and their Prometheus text.
//!
//! Lock-free and without allocation once made: recording is one relaxed add,
//! so that workers and network threads may share it. Knows nothing of who
//! counts. Tested by parsing its own output as Prometheus would.

mod histogram;
mod render;
#[cfg(test)]
mod tests;

pub use histogram::Histogram;

use crate::config::Config;
use protocol::code::{Code, OrderState, RefundState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A value that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A value that goes up and down.
#[derive(Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes `n` off; the caller added it before.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// The value.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Operations of gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Op {
    /// Pay.
    Pay,
    /// Query.
    Query,
    /// Refund.
    Refund,
    /// Refund query.
    QueryRefund,
    /// Close.
    Close,
    /// Reverse.
    Reverse,
    /// Ping.
    Ping,
    /// Subscription to events.
    Subscribe,
    /// Event taken over.
    Ack,
}

impl Op {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Pay,
        Self::Query,
        Self::Refund,
        Self::QueryRefund,
        Self::Close,
        Self::Reverse,
        Self::Ping,
        Self::Subscribe,
        Self::Ack,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Query => "query",
            Self::Refund => "refund",
            Self::QueryRefund => "query_refund",
            Self::Close => "close",
            Self::Reverse => "reverse",
            Self::Ping => "ping",
            Self::Subscribe => "subscribe",
            Self::Ack => "ack",
        }
    }

    /// The operation of a request's message kind; `None` for other kinds.
    pub fn from_kind(raw: u8) -> Option<Self> {
        use protocol::message::kind;
        Some(match raw {
            kind::PAY => Self::Pay,
            kind::QUERY => Self::Query,
            kind::REFUND => Self::Refund,
            kind::QUERY_REFUND => Self::QueryRefund,
            kind::CLOSE => Self::Close,
            kind::REVERSE => Self::Reverse,
            kind::PING => Self::Ping,
            kind::SUBSCRIBE => Self::Subscribe,
            kind::ACK => Self::Ack,
            _ => return None,
        })
    }
}

/// A counter per value of a small table.
pub struct Table<const N: usize>([Counter; N]);

impl<const N: usize> Default for Table<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Table<N> {
    /// Of all values.
    pub fn sum(&self) -> u64 {
        self.0.iter().map(Counter::value).sum()
    }
}

impl Table<{ Op::ALL.len() }> {
    /// The operation's counter.
    pub fn of(&self, op: Op) -> &Counter {
        &self.0[op as usize]
    }
}

/// A counter per reply code.
#[derive(Default)]
pub struct CodeCounters(Table<CODES>);

const CODES: usize = Code::ALL.len();
const CODE_SLOTS: usize = 701;

/// Position of each code in `Code::ALL`, so that counting a refusal is one
/// load and one add even in a flood of them.
const CODE_INDEX: [u8; CODE_SLOTS] = {
    assert!(CODES < 256);
    let mut index = [0; CODE_SLOTS];
    let mut at = 0;
    while at < CODES {
        index[Code::ALL[at] as usize] = at as u8;
        at += 1;
    }
    index
};

impl CodeCounters {
    /// The code's counter.
    pub fn of(&self, code: Code) -> &Counter {
        &self.0.0[usize::from(CODE_INDEX[code as usize])]
    }
}

/// A counter per order state and per refund state, for final answers.
#[derive(Default)]
pub struct OutcomeCounters {
    orders: Table<{ OrderState::ALL.len() }>,
    refunds: Table<{ RefundState::ALL.len() }>,
}

impl OutcomeCounters {
    /// Answers with this order state.
    pub fn order(&self, state: OrderState) -> &Counter {
        &self.orders.0[state as usize]
    }

    /// Answers with this refund state.
    pub fn refund(&self, state: RefundState) -> &Counter {
        &self.refunds.0[state as usize]
    }
}

/// What a shard looks like now; set by its worker.
#[derive(Default)]
pub struct ShardMetrics {
    /// 1 when this site leads it.
    pub leader: Gauge,
    /// Raft term.
    pub term: Gauge,
    /// Highest committed index.
    pub commit_index: Gauge,
    /// Highest applied index.
    pub applied_index: Gauge,
    /// Times this site stood for election, since its start.
    pub campaigns: Gauge,
    /// Times this site came to lead, since its start.
    pub elections: Gauge,
    /// Hand-overs that this site started, since its start.
    pub transfers: Gauge,
    /// Payments held.
    pub orders: Gauge,
    /// Payments without a final state.
    pub open: Gauge,
    /// Payments in doubt.
    pub in_doubt: Gauge,
    /// Payments and refunds in front of an operator.
    pub manual: Gauge,
    /// Requests waiting for an outcome.
    pub waiters: Gauge,
    /// Undelivered events.
    pub outbox: Gauge,
    /// Last block that its newest checkpoint covers.
    pub checkpoint_index: Gauge,
    /// Seconds since the state of its newest checkpoint.
    pub checkpoint_age_s: Gauge,
    /// Milliseconds that its newest checkpoint took.
    pub checkpoint_ms: Gauge,
    /// Sites that need blocks which the leader's log no longer holds.
    pub beyond_log: Gauge,
}

/// A channel's link.
pub struct ChannelMetrics {
    /// Label.
    pub name: String,
    /// 1 when it can take requests.
    pub up: Gauge,
    /// Operations without answer.
    pub in_flight: Gauge,
    /// Requests sent.
    pub sent: Counter,
    /// Answers received.
    pub answered: Counter,
    /// Operations without answer by their deadline.
    pub timeouts: Counter,
    /// Operations lost with their connection.
    pub lost: Counter,
    /// Operations proven not sent.
    pub not_sent: Counter,
    /// Answers that could not be parsed or matched.
    pub unmatched: Counter,
}

/// The link towards another site, and what comes on its link towards us.
#[derive(Default)]
pub struct PeerMetrics {
    /// 1 while our connection to it stands.
    pub up: Gauge,
    /// 1 while its connection to us stands.
    pub inbound: Gauge,
    /// 1 while the connection stands that tells of its process' end.
    pub watched: Gauge,
    /// Smoothed round trip of our connection, microseconds.
    pub round_trip_us: Gauge,
    /// 1 while that is too long for the configured time-outs.
    pub far: Gauge,
    /// Packets sent.
    pub packets_sent: Counter,
    /// Bytes of those.
    pub bytes_sent: Counter,
    /// Packets received.
    pub packets_received: Counter,
    /// Bytes of those.
    pub bytes_received: Counter,
    /// Packets to it that were dropped: the link was down or behind. Only grows.
    pub dropped: Gauge,
    /// Packets of it that were dropped: the worker was behind.
    pub dropped_received: Counter,
    /// Requests of gateways sent on to it.
    pub forwarded: Counter,
    /// Requests that it sent on to us.
    pub forwarded_here: Counter,
    /// Packets of it that could not be read.
    pub malformed: Counter,
    /// Signs of its process' end.
    pub gone: Counter,
}

/// Everything a site measures.
pub struct Metrics {
    site: u16,
    shards: Vec<ShardMetrics>,
    channels: Vec<ChannelMetrics>,
    /// By site; empty in a deployment of one.
    peers: Vec<PeerMetrics>,
    /// Requests that wait for their shard to have a leader.
    pub leaderless: Gauge,
    /// Requests received, by operation.
    pub requests: Table<{ Op::ALL.len() }>,
    /// Replies sent, by operation.
    pub replies: Table<{ Op::ALL.len() }>,
    /// Replies by code other than OK.
    pub refusals: CodeCounters,
    /// Business states told.
    pub outcomes: OutcomeCounters,
    /// Repeated requests answered from the log.
    pub replayed: Counter,
    /// Events handed to subscribers, repetitions included.
    pub events: Counter,
    /// Alarms raised, by `AlarmKind` in its order of declaration.
    pub alarms: Table<5>,
    /// Records made durable.
    pub records: Counter,
    /// Batches made durable.
    pub batches: Counter,
    /// Bytes written to the log.
    pub log_written_bytes: Counter,
    /// Checkpoints made durable.
    pub checkpoints: Counter,
    /// Checkpoints given up.
    pub checkpoint_failures: Counter,
    /// States that reached another site.
    pub snapshots_sent: Counter,
    /// States of other sites that this one goes on from.
    pub snapshots_installed: Counter,
    /// States given up on their way, here or there.
    pub snapshot_failures: Counter,
    /// Bytes of the log's segments on disk.
    pub log_bytes: Gauge,
    /// Segment files.
    pub log_segments: Gauge,
    /// Free bytes of the log's file system.
    pub disk_free_bytes: Gauge,
    /// 1 while no new payment is admitted for lack of disk space.
    pub disk_full: Gauge,
    /// Gateway connections.
    pub connections: Gauge,
    /// Gateway connections refused.
    pub connections_refused: Counter,
    /// Certificates and keys read again.
    pub tls_reloads: Counter,
    /// Certificates and keys that were to be read again and are not usable.
    pub tls_reloads_refused: Counter,
    /// Distance of the host's wall clock from the node's, which follows it only
    /// at start, seconds.
    pub clock_offset_s: Gauge,
    /// Packets of other sites that were not to be understood.
    pub packets_refused: Counter,
    /// Handshakes under way.
    pub handshakes: Gauge,
    /// 1 while the kernel is asked not to halt idle cores.
    pub cores_awake: Gauge,
    /// For how long it was asked while requests were unanswered, below that load, microseconds.
    pub cores_awake_us: Counter,
    /// Batches in the worker's inbox.
    pub inbox_batches: Gauge,
    /// Unanswered requests of all gateway connections.
    pub in_flight: Gauge,
    /// How many there may be at present.
    pub in_flight_window: Gauge,
    /// From reception to the worker's hand.
    pub queue_delay: Histogram,
    /// From the decision to admit a pay to its durable BEGIN, one payment in 16.
    pub begin_durable: Histogram,
    /// From a request's send to the channel's answer.
    pub channel_round_trip: Histogram,
    /// From the deciding evidence to its durable outcome, one payment in 16.
    pub end_durable: Histogram,
    /// From reception to the reply, pays that waited for their outcome.
    pub total: Histogram,
    /// Write and fdatasync of one batch.
    pub fsync: Histogram,
    /// One turn's share of a checkpoint.
    pub checkpoint_slice: Histogram,
    /// Records per batch.
    pub batch_records: Histogram,
    /// Bytes per batch.
    pub batch_bytes: Histogram,
}

impl Metrics {
    /// Zeros, for the shards and channels of a site's configuration.
    pub fn new(config: &Config) -> Self {
        let channels = config.channels.iter().map(|channel| channel.name.clone());
        let mut metrics = Self::sized(config.site, config.shards, channels);
        if config.sites.len() > 1 {
            metrics.peers = config.sites.iter().map(|_| PeerMetrics::default()).collect();
        }
        metrics
    }

    /// Zeros, for `shards` shards and channels 1 to n in the order of `channels`.
    pub fn sized(site: u16, shards: u16, channels: impl IntoIterator<Item = String>) -> Self {
        let channels = channels.into_iter().map(ChannelMetrics::new).collect();
        Self {
            site,
            shards: (0..shards).map(|_| ShardMetrics::default()).collect(),
            channels,
            peers: Vec::new(),
            leaderless: Gauge::default(),
            requests: Table::default(),
            replies: Table::default(),
            refusals: CodeCounters::default(),
            outcomes: OutcomeCounters::default(),
            replayed: Counter::default(),
            events: Counter::default(),
            alarms: Table::default(),
            records: Counter::default(),
            batches: Counter::default(),
            log_written_bytes: Counter::default(),
            checkpoints: Counter::default(),
            checkpoint_failures: Counter::default(),
            snapshots_sent: Counter::default(),
            snapshots_installed: Counter::default(),
            snapshot_failures: Counter::default(),
            log_bytes: Gauge::default(),
            log_segments: Gauge::default(),
            disk_free_bytes: Gauge::default(),
            disk_full: Gauge::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            packets_refused: Counter::default(),
            tls_reloads: Counter::default(),
            tls_reloads_refused: Counter::default(),
            clock_offset_s: Gauge::default(),
            handshakes: Gauge::default(),
            cores_awake: Gauge::default(),
            cores_awake_us: Counter::default(),
            inbox_batches: Gauge::default(),
            in_flight: Gauge::default(),
            in_flight_window: Gauge::default(),
            queue_delay: Histogram::default(),
            begin_durable: Histogram::default(),
            channel_round_trip: Histogram::default(),
            end_durable: Histogram::default(),
            total: Histogram::default(),
            fsync: Histogram::default(),
            checkpoint_slice: Histogram::default(),
            batch_records: Histogram::default(),
            batch_bytes: Histogram::default(),
        }
    }

    /// A shard; `None` when there is no such number.
    pub fn shard(&self, shard: u16) -> Option<&ShardMetrics> {
        self.shards.get(usize::from(shard))
    }

    /// A channel by its number, from 1; `None` when there is no such number.
    pub fn channel(&self, number: u16) -> Option<&ChannelMetrics> {
        self.channels.get(usize::from(number).checked_sub(1)?)
    }

    /// Another site by its number, from 1; `None` when there is no such number.
    pub fn peer(&self, site: u8) -> Option<&PeerMetrics> {
        self.peers.get(usize::from(site).checked_sub(1)?)
    }

    /// Requests that other sites sent on to this one.
    pub fn forwarded_here(&self) -> u64 {
        self.peers.iter().map(|peer| peer.forwarded_here.value()).sum()
    }

    /// The counter of an alarm kind.
    pub fn alarm(&self, kind: crate::engine::output::AlarmKind) -> &Counter {
        &self.alarms.0[kind as usize]
    }
}

impl ChannelMetrics {
    fn new(name: String) -> Self {
        Self {
            name,
            up: Gauge::default(),
            in_flight: Gauge::default(),
            sent: Counter::default(),
            answered: Counter::default(),
            timeouts: Counter::default(),
            lost: Counter::default(),
            not_sent: Counter::default(),
            unmatched: Counter::default(),
        }
    }
}
