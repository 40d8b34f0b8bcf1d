//! The worker: one OS thread that owns shards, their engines and replicas, and
//! one log. No lock is taken on the way of a payment.
//!
//! One turn: take what the log made durable and apply it, drain the inbox
//! through the engines, run due timers, hand the open blocks to the log when
//! its last write is done, let everything leave that may leave. Network and
//! clocks stay outside; tested by the system tests on real processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::code::Code;
use storage::{Frame, FrameKind, Log, LogError, LogStats, Lsn, Space};

use super::clock;
use super::inbox::{Batch, Exchange, Item, OutBatch};
use super::mesh::Mesh;
use crate::engine::input::{PayInput, Waiter};
use crate::engine::output::{Outputs, Reply};
use crate::engine::record;
use crate::engine::{Engine, EngineConfig, Input, Now};
use crate::metrics::Metrics;
use crate::replica::{Entry, HardState, ReplayError, SingleReplica};

/// Batches taken from the inbox between two looks at the log.
const BATCHES_PER_TURN: usize = 64;
/// Room below which no part of a block is worth a write: any record fits.
const PART_BYTES_MIN: usize = 16 << 10;
/// Wait advised when the disk is full: the free space is looked at four times a
/// second, and nobody frees some in less, milliseconds.
const STORAGE_RETRY_MS: u32 = 1_000;

/// Items whose memory is asked for at once, ahead of their turn: few enough that
/// what was fetched is still in the cache when it is needed.
const WARM_ITEMS: usize = 16;

/// A batch of this size is written without waiting for more, bytes.
const WRITE_AT_ONCE_BYTES: usize = 64 * 1024;
/// Writes that may follow each other without pause after a quiet time.
const WRITE_BURST: u64 = 4;

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// This site, 1-based.
    pub site: u64,
    /// A pay that waited longer than this in the inbox is shed, microseconds.
    pub queue_delay_max_us: u64,
    /// Least time between two log writes on the average, microseconds.
    pub commit_interval_us: u64,
    /// Bytes of blocks in one log write, so that it fits the log's buffer.
    pub blocks_bytes_max: usize,
    /// One engine per shard.
    pub engines: Vec<EngineConfig>,
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The log failed: nothing after this point was handed out.
    #[error("the log failed: {0}")]
    Log(#[from] LogError),
    /// The recovered log does not fit.
    #[error("the log does not fit: {0}")]
    Replay(#[from] ReplayError),
    /// A committed block does not fit the state.
    #[error("a committed block cannot be applied: {0}")]
    Apply(String),
}

struct Shard {
    engine: Engine,
    replica: SingleReplica,
    out: Outputs,
    /// Emptied block buffers.
    spare: Vec<Vec<u8>>,
    due_us: Option<u64>,
}

/// State shared with the rest of the node.
pub struct Shared {
    /// Queues.
    pub exchange: Arc<Exchange>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What is shared about the other sites.
    pub mesh: Arc<Mesh>,
    /// Set to make the worker seal its log and end.
    pub stop: AtomicBool,
    /// The log's disk has only its reserve left.
    pub storage_full: AtomicBool,
    /// Per shard figures, refreshed by the worker.
    pub report: std::sync::Mutex<Report>,
}

/// What the admin interface shows of a worker.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Per shard.
    pub shards: Vec<ShardReport>,
    /// Log figures.
    pub log: Option<LogStats>,
}

/// One shard.
#[derive(Clone, Debug, Default)]
pub struct ShardReport {
    /// Shard.
    pub shard: u16,
    /// Whether this site leads it.
    pub leads: bool,
    /// Term.
    pub term: u64,
    /// Highest committed index.
    pub committed: u64,
    /// Highest applied index.
    pub applied: u64,
    /// Engine figures.
    pub engine: crate::engine::Stats,
}

/// A worker before its thread starts.
pub struct Worker {
    shards: Vec<Shard>,
    log: Log,
    shared: Arc<Shared>,
    settings: WorkerSettings,
    out: Box<OutBatch>,
    last_submit_us: u64,
    /// When the next small batch may be written.
    write_due_us: u64,
    busy: bool,
    report_due_us: u64,
    pending_bytes: usize,
}

/// Recovers the state of the shards while the log is read.
pub struct Recovering {
    shards: Vec<Shard>,
}

impl Recovering {
    /// Empty engines and replicas.
    pub fn new(settings: &WorkerSettings) -> Self {
        let shard = |config: &EngineConfig| Shard {
            replica: SingleReplica::new(config.shard, settings.site),
            engine: Engine::new(config.clone()),
            out: Outputs::default(),
            spare: Vec::new(),
            due_us: None,
        };
        Self { shards: settings.engines.iter().map(shard).collect() }
    }

    /// Takes one recovered frame.
    ///
    /// # Errors
    /// [`WorkerError`] when the frame does not follow or cannot be applied.
    pub fn frame(&mut self, frame: &Frame<'_>) -> Result<(), WorkerError> {
        let Some(shard) = self.shards.get_mut(usize::from(frame.shard)) else {
            return Err(WorkerError::Apply(format!("shard {} is not served here", frame.shard)));
        };
        match frame.kind {
            FrameKind::Block => {
                shard.replica.replay_block(frame.index, frame.term, frame.chain)?;
                shard
                    .engine
                    .apply(frame.index, frame.term, frame.payload, Now::default(), &mut shard.out)
                    .map_err(|error| WorkerError::Apply(error.to_string()))
            }
            FrameKind::HardState => Ok(shard.replica.replay_hard_state(frame.payload)?),
            other => Err(WorkerError::Apply(format!("a frame of kind {other:?}"))),
        }
    }
}

impl Worker {
    /// A worker over recovered shards and their open log.
    pub fn new(
        recovering: Recovering,
        log: Log,
        shared: Arc<Shared>,
        settings: WorkerSettings,
    ) -> Self {
        Self {
            shards: recovering.shards,
            log,
            out: shared.exchange.out_batch(),
            shared,
            settings,
            last_submit_us: 0,
            write_due_us: 0,
            busy: false,
            report_due_us: 0,
            pending_bytes: 0,
        }
    }

    /// Runs until stopped or failed. On failure nothing more is handed out.
    ///
    /// # Errors
    /// [`WorkerError`]; the caller ends the process.
    pub fn run(mut self) -> Result<(), WorkerError> {
        self.open_terms()?;
        loop {
            let now = clock::now();
            self.take_durable(now)?;
            let drained = self.drain_inbox(now);
            self.run_timers(now)?;
            let written = self.write_blocks(now)?;
            self.release();
            self.refresh_report(now);
            if self.shared.stop.load(Ordering::Acquire) && self.idle() {
                self.log.close()?;
                return Ok(());
            }
            if drained == 0 && !written {
                self.sleep(now)?;
            }
        }
    }

    fn open_terms(&mut self) -> Result<(), WorkerError> {
        for shard in &mut self.shards {
            let state: HardState = shard.replica.open_term();
            let lsn = self.log.append(&Frame {
                kind: FrameKind::HardState,
                shard: shard.engine.shard(),
                term: state.term,
                index: 0,
                chain: [0; 32],
                payload: &state.encode(),
            })?;
            shard.replica.opening_appended(lsn.0);
        }
        self.log.submit()?;
        Ok(())
    }

    /// Applies what became durable, oldest first.
    fn take_durable(&mut self, now: Now) -> Result<(), WorkerError> {
        let Some(Lsn(lsn)) = self.log.poll()? else { return Ok(()) };
        let metrics = &self.shared.metrics;
        for shard in &mut self.shards {
            let starts = shard.replica.persisted(lsn);
            if starts {
                let term = shard.replica.term();
                shard.engine.handle(Input::Lead { term }, now, &mut shard.out).map_err(apply)?;
            }
            while let Some(Entry { index, term, mut payload, .. }) = shard.replica.next_committed()
            {
                let input = Input::Committed { index, term, block: &payload };
                shard.engine.handle(input, now, &mut shard.out).map_err(apply)?;
                payload.clear();
                shard.spare.push(payload);
            }
        }
        metrics.fsync.record(now.mono_us.saturating_sub(self.last_submit_us));
        metrics.batches.add(1);
        Ok(())
    }

    /// Feeds waiting batches to the engines; returns how many it took.
    fn drain_inbox(&mut self, now: Now) -> usize {
        let exchange = Arc::clone(&self.shared.exchange);
        let mut taken = 0;
        while taken < BATCHES_PER_TURN && self.pending_bytes < self.settings.blocks_bytes_max / 2 {
            let Some(batch) = exchange.pop() else {
                if taken == 0 {
                    exchange.queue_delay_us.store(0, Ordering::Relaxed);
                }
                break;
            };
            self.feed(&batch, now);
            exchange.recycle(batch);
            taken += 1;
        }
        if taken > 0 {
            self.pending_bytes = self.shards.iter().map(|shard| shard.out.block.len()).sum();
        }
        taken
    }

    fn feed(&mut self, batch: &Batch, now: Now) {
        let delay_us = now.mono_us.saturating_sub(batch.queued_us);
        self.shared.exchange.queue_delay_us.store(delay_us, Ordering::Relaxed);
        self.shared.metrics.queue_delay.record_n(delay_us, batch.items.len() as u64);
        let late = delay_us > self.settings.queue_delay_max_us;
        let full = self.shared.storage_full.load(Ordering::Relaxed);
        for (at, (shard, item)) in batch.items.iter().enumerate() {
            if at % WARM_ITEMS == 0 {
                self.warm(&batch.items[at..]);
            }
            let full = full && !self.is_known(*shard, item);
            if let Some((waiter, code)) = shed(item, late, full) {
                let retry_ms = match code {
                    Code::StorageFull => STORAGE_RETRY_MS,
                    _ => self.retry_after_ms(),
                };
                self.out.replies.push(Reply::refusal(waiter, code, retry_ms));
                continue;
            }
            match item {
                Item::Subscribe(..)
                | Item::ConnectionClosed(_)
                | Item::ChannelUp(..)
                | Item::LinkLost(_) => {
                    for shard in &mut self.shards {
                        handle(shard, item, &batch.arena, now);
                    }
                }
                _ => match self.shards.get_mut(usize::from(*shard)) {
                    Some(shard) => handle(shard, item, &batch.arena, now),
                    None => debug_assert!(false, "the front knows the number of shards"),
                },
            }
        }
    }

    /// Whether an item is a pay sent again: its answer needs no room.
    fn is_known(&self, shard: u16, item: &Item) -> bool {
        let Item::Pay(pay, _) = item else { return false };
        self.shards.get(usize::from(shard)).is_some_and(|shard| shard.engine.knows(pay))
    }

    /// Touches what the next items will need, so that their cache misses overlap.
    fn warm(&self, items: &[(u16, Item)]) {
        for (shard, item) in items.iter().take(WARM_ITEMS) {
            let Some(shard) = self.shards.get(usize::from(*shard)) else { continue };
            match item {
                Item::Pay(pay, _) => shard.engine.warm_key(&pay.digest),
                Item::Evidence(operation, _) => shard.engine.warm_order(operation.sequence),
                _ => {}
            }
        }
    }

    fn retry_after_ms(&self) -> u32 {
        (self.settings.queue_delay_max_us / 1000).max(1) as u32 * 4
    }

    fn run_timers(&mut self, now: Now) -> Result<(), WorkerError> {
        for shard in &mut self.shards {
            shard.due_us = shard.engine.next_due();
            if shard.due_us.is_some_and(|due| due <= now.mono_us) {
                shard.engine.handle(Input::Tick, now, &mut shard.out).map_err(apply)?;
                shard.due_us = shard.engine.next_due();
            }
        }
        Ok(())
    }

    /// Hands the open blocks to the log when its last write is done and, under
    /// load, the commit interval has passed.
    fn write_blocks(&mut self, now: Now) -> Result<bool, WorkerError> {
        if self.log.in_flight() {
            return Ok(false);
        }
        if self.log.unsubmitted() {
            // Handed over when no segment was ready: nothing may follow before it.
            let started = self.log.submit()?;
            self.last_submit_us = now.mono_us;
            return Ok(started);
        }
        let bytes: usize = self.shards.iter().map(|shard| shard.out.block.len()).sum();
        if bytes == 0 {
            self.log.idle(now.mono_us)?;
            return Ok(false);
        }
        if self.paced(now, bytes) {
            return Ok(false);
        }
        let mut left = self.settings.blocks_bytes_max;
        let mut records = 0;
        for shard in &mut self.shards {
            let out = &mut shard.out;
            let whole = out.block.len() <= left;
            if out.block.is_empty() || !whole && left < PART_BYTES_MIN {
                continue;
            }
            let mut rest = shard.spare.pop().unwrap_or_default();
            let mut taken = out.block_records;
            if !whole {
                taken = record::split_off(&mut out.block, left, &mut rest);
            }
            left = left.saturating_sub(out.block.len());
            self.shared.metrics.records.add(u64::from(taken));
            records += u64::from(taken);
            out.block_records -= taken;
            shard.replica.propose(std::mem::replace(&mut out.block, rest));
            while let Some(entry) = shard.replica.next_append() {
                let lsn = self.log.append(&Frame {
                    kind: FrameKind::Block,
                    shard: shard.engine.shard(),
                    term: entry.term,
                    index: entry.index,
                    chain: entry.chain,
                    payload: &entry.payload,
                })?;
                shard.replica.block_appended(lsn.0);
            }
        }
        let started = self.log.submit()?;
        self.shared.metrics.batch_records.record(records);
        let taken = self.settings.blocks_bytes_max - left;
        self.shared.metrics.batch_bytes.record(taken as u64);
        self.shared.metrics.log_written_bytes.add(taken as u64);
        self.last_submit_us = now.mono_us;
        self.pending_bytes = bytes.saturating_sub(taken);
        let full = self.log.space() == Space::Reserve;
        self.shared.storage_full.store(full, Ordering::Relaxed);
        Ok(started)
    }

    /// Whether to let the batch grow a little: writes come at most once per
    /// commit interval on the average, since each costs the same whatever it
    /// carries. A few may follow each other sooner after a pause, so that a lone
    /// payment is never held back; large batches do not wait.
    fn paced(&mut self, now: Now, bytes: usize) -> bool {
        if self.write_due_us > now.mono_us && bytes < WRITE_AT_ONCE_BYTES {
            return true;
        }
        let interval = self.settings.commit_interval_us;
        let since = now.mono_us.saturating_sub(self.last_submit_us);
        // Busy means: more than a handful of records per commit interval.
        self.busy = bytes > 4096 && since < 8 * interval;
        let earliest = now.mono_us.saturating_sub(WRITE_BURST * interval);
        self.write_due_us =
            (self.write_due_us.max(earliest) + interval).min(now.mono_us + interval);
        false
    }

    /// Collects what the engines let go and hands it to the network thread.
    fn release(&mut self) {
        for shard in &mut self.shards {
            let out = &mut shard.out;
            for alarm in out.alarms.drain(..) {
                self.shared.metrics.alarm(alarm.kind).add(1);
                eprintln!(
                    "alarm kind={:?} shard={} sequence={} ordinal={}",
                    alarm.kind,
                    shard.engine.shard(),
                    alarm.sequence,
                    alarm.ordinal
                );
            }
            self.out.replies.append(&mut out.replies);
            self.out.sends.append(&mut out.sends);
            self.out.events.append(&mut out.events);
            self.out.merchants.append(&mut out.merchants);
            self.out.admin.append(&mut out.admin);
        }
        if self.out.is_empty() {
            return;
        }
        let next = self.shared.exchange.out_batch();
        let mut full = std::mem::replace(&mut self.out, next);
        full.ready_us = clock::mono_us();
        if let Err(back) = self.shared.exchange.push_out(full) {
            // The network thread is behind: keep collecting, offer again next turn.
            let empty = std::mem::replace(&mut self.out, back);
            self.shared.exchange.recycle_out(empty);
        }
    }

    fn idle(&self) -> bool {
        !self.log.in_flight()
            && self.out.is_empty()
            && self.shards.iter().all(|shard| shard.out.block.is_empty())
    }

    fn sleep(&mut self, now: Now) -> Result<(), WorkerError> {
        let due = self.shards.iter().filter_map(|shard| shard.due_us).min();
        let mut timeout = due.map_or(50_000, |due| due.saturating_sub(now.mono_us)).min(50_000);
        // While the log waits for a segment only its wake-up helps, not haste.
        let waiting =
            !self.log.unsubmitted() && self.shards.iter().any(|shard| !shard.out.block.is_empty());
        let mut listen = true;
        if waiting && !self.log.in_flight() {
            timeout = timeout.min(self.write_due_us.saturating_sub(now.mono_us));
            listen = false;
        } else if self.busy && self.log.in_flight() {
            // The completion wakes us; batches that arrive meanwhile can wait for it.
            listen = false;
        }
        if !self.out.is_empty() {
            timeout = timeout.min(200);
        }
        if timeout > 0 {
            self.shared.exchange.park(timeout, listen);
        }
        Ok(())
    }

    fn refresh_report(&mut self, now: Now) {
        if now.mono_us < self.report_due_us {
            return;
        }
        self.report_due_us = now.mono_us + 200_000;
        let full = self.log.space() == Space::Reserve;
        self.shared.storage_full.store(full, Ordering::Relaxed);
        let Ok(mut report) = self.shared.report.lock() else { return };
        report.log = Some(self.log.stats());
        report.shards.clear();
        report.shards.extend(self.shards.iter().map(|shard| ShardReport {
            shard: shard.engine.shard(),
            leads: shard.replica.leads(),
            term: shard.replica.term(),
            committed: shard.replica.committed(),
            applied: shard.engine.applied(),
            engine: shard.engine.stats(),
        }));
    }
}

fn apply(error: crate::engine::ApplyError) -> WorkerError {
    WorkerError::Apply(error.to_string())
}

/// Whether an item is turned away before it reaches its engine, and with what.
/// Evidence, events and operators' commands are never shed.
fn shed(item: &Item, late: bool, full: bool) -> Option<(Waiter, Code)> {
    let origin = match item {
        Item::Pay(pay, _) if full => return Some((pay.origin.waiter, Code::StorageFull)),
        Item::Refund(refund) if full => return Some((refund.origin.waiter, Code::StorageFull)),
        _ if !late => return None,
        Item::Pay(pay, _) => &pay.origin,
        Item::Query(order) | Item::Close(order) | Item::Reverse(order) => &order.origin,
        Item::Refund(refund) => &refund.origin,
        Item::QueryRefund(query) => &query.origin,
        _ => return None,
    };
    Some((origin.waiter, Code::Overloaded))
}

fn handle(shard: &mut Shard, item: &Item, arena: &[u8], now: Now) {
    let input = match item {
        Item::Pay(pay, content) => {
            let content = arena.get(content.start as usize..content.end as usize).unwrap_or(&[]);
            Input::Pay(PayInput { content, ..*pay })
        }
        Item::Query(order) => Input::Query(*order),
        Item::Close(order) => Input::Close(*order),
        Item::Reverse(order) => Input::Reverse(*order),
        Item::Refund(refund) => Input::Refund(*refund),
        Item::QueryRefund(query) => Input::QueryRefund(*query),
        Item::Evidence(operation, evidence) => {
            Input::Evidence { operation: *operation, evidence: *evidence }
        }
        Item::Subscribe(waiter, gateway) => Input::Subscribe { waiter: *waiter, gateway: *gateway },
        Item::EventAck(event_id, waiter) => {
            Input::EventAck { event_id: *event_id, waiter: *waiter }
        }
        Item::ConnectionClosed(connection) => Input::ConnectionClosed { connection: *connection },
        Item::ChannelUp(channel, up) => Input::ChannelUp { channel: *channel, up: *up },
        Item::LinkLost(channel) => Input::LinkLost { channel: *channel },
        Item::Admin(admin) => Input::Admin((**admin).clone()),
        Item::Inspect(look) => {
            if let Some(look) = look.take() {
                look(&shard.engine);
            }
            return;
        }
    };
    // Only a committed block can fail to apply.
    let handled = shard.engine.handle(input, now, &mut shard.out);
    debug_assert!(handled.is_ok());
}
