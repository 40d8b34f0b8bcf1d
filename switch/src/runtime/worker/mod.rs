//! The worker: one OS thread that owns shards, their engines and replicas, and
//! one log. No lock is taken on the way of a payment.
//!
//! One turn: take what the log made durable and what other sites sent, apply
//! what became committed, drain the inbox through the engines, run due timers,
//! propose the open blocks when the log's last write is done, hand frames to
//! the log and messages to the peer links, let everything leave that may leave.
//! Network and clocks stay outside: the seeded simulation of whole clusters
//! (`sim`) drives these very turns, the system tests drive real processes.
//!
//! | file | what |
//! |---|---|
//! | `shard` | one shard: engine, replica, queries that wait for a read barrier |
//! | `writer` | frames for the log, in order and paced |
//! | `post` | messages for other sites, gathered into packets |
//! | `catchup` | old blocks, read back for sites that were away |
//! | `checkpoint` | the shards' states, written down beside the work |
//! | `transfer` | those states, sent to sites that are too far behind for blocks |
//! | `desk` | work that waits for the disk, and who does it |
//! | `release` | the oldest log, given up when checkpoints hold it |
//! | `restore` | the shards' states out of their checkpoints |
//! | `recover` | the shards while the log is read back |
//! | `sim` | tests only: clusters in one thread, from a seed |

mod catchup;
mod checkpoint;
mod desk;
mod post;
mod recover;
mod release;
mod restore;
mod shard;
#[cfg(test)]
mod sim;
mod transfer;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::code::Code;
use storage::disk::Disk;
use storage::{FileDisk, Log, LogError, LogStats, Lsn, Space};

use super::clock;
use super::inbox::{Batch, Exchange, Item, OutBatch};
use super::mesh::Mesh;
use super::standing::Standing;
use crate::engine::input::{PayInput, Waiter};
use crate::engine::output::Reply;
use crate::engine::record;
use crate::engine::weakness::Weakness;
use crate::engine::{EngineConfig, Input, Now};
use crate::metrics::Metrics;
use crate::replica::{self, ReplayError, ReplicaConfig, Timing, message};
use catchup::CatchUp;
use checkpoint::Checkpointer;
pub use checkpoint::Last;
use post::Post;
pub use recover::Recovering;
use release::Releaser;
use shard::Shard;
use transfer::{Transfers, is_parcel};
use writer::{Pace, Writer};

/// Batches taken from the inbox between two looks at the log.
const BATCHES_PER_TURN: usize = 64;
/// Packets of other sites taken per turn.
const PACKETS_PER_TURN: usize = 256;
/// Room below which no part of a block is worth a write: any record fits.
const PART_BYTES_MIN: usize = 16 << 10;
/// Wait advised when the disk is full: the free space is looked at four times a
/// second, and nobody frees some in less, milliseconds.
const STORAGE_RETRY_MS: u32 = 1_000;

/// Items whose memory is asked for at once, ahead of their turn: few enough that
/// what was fetched is still in the cache when it is needed.
const WARM_ITEMS: usize = 16;

/// Applied entries kept in memory per shard for sites that are a little behind.
pub(super) const TAIL_BYTES_MAX: usize = 8 << 20;

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// This site, 1-based.
    pub site: u64,
    /// Requests that wait longer than this in the inbox are shed, unless it is only
    /// a burst, microseconds.
    pub queue_delay_max_us: u64,
    /// Least time between two log writes on the average, microseconds.
    pub commit_interval_us: u64,
    /// Bytes of blocks in one log write, so that it fits the log's buffer.
    pub blocks_bytes_max: usize,
    /// One engine per shard.
    pub engines: Vec<EngineConfig>,
    /// Number of sites.
    pub sites: u64,
    /// Sites that hold replicas and voted when the cluster was made.
    pub voters: Vec<u64>,
    /// Those that never lead.
    pub witnesses: Vec<u64>,
    /// Identity of the cluster.
    pub cluster: u64,
    /// Pace of the replicas.
    pub timing: Timing,
    /// Applied entries kept in memory per shard, bytes, unless alone.
    pub tail_bytes_max: usize,
    /// Log after which the states are written down again, bytes; 0: never.
    pub checkpoint_bytes: u64,
    /// Log that stays although checkpoints hold it, bytes; 0: all of it.
    pub keep_bytes: u64,
    /// Size of a segment of the log, bytes.
    pub segment_bytes: u64,
}

impl WorkerSettings {
    /// Settings of a shard's replica.
    fn replica(&self, shard: u16) -> ReplicaConfig {
        ReplicaConfig {
            shard,
            site: self.site,
            voters: self.voters.clone(),
            witnesses: self.witnesses.clone(),
            preference: replica::preference_among(shard, &self.voters, &self.witnesses),
            seed: self.cluster,
            tail_bytes_max: if self.alone() { 0 } else { self.tail_bytes_max },
            timing: self.timing,
        }
    }

    /// Whether there is no other site.
    fn alone(&self) -> bool {
        self.sites == 1
    }
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
    /// The log lacks what this site has confirmed to another.
    #[error(
        "the log of shard {shard} ends with block {last}, but its leader was told that it holds \
         block {known}: the disk was wiped, or went back to an older state, and votes may be lost \
         as well. This site must not take part any more: at a site that serves, `payswitch admin \
         member remove {site}`, then bring this one up with an empty data_dir under a new number \
         with `member add` (docs/OPERATIONS.md, Replace a site)"
    )]
    Forgotten {
        /// This site.
        site: u64,
        /// Shard.
        shard: u16,
        /// Last block in the log.
        last: u64,
        /// Block that the leader counts on.
        known: u64,
    },
    /// A committed block does not fit the state.
    #[error("a committed block cannot be applied: {0}")]
    Apply(String),
}

/// State shared with the rest of the node.
pub struct Shared {
    /// Queues.
    pub exchange: Arc<Exchange>,
    /// What the threads share about the other sites.
    pub mesh: Arc<Mesh>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Set to make the worker hand its shards to other sites.
    pub leave: AtomicBool,
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
    /// Sites that shall not lead, a bit per site number.
    pub drained: u64,
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
    /// Whether this site stands for election.
    pub candidate: bool,
    /// The site that leads; 0: none known.
    pub leader: u16,
    /// Term.
    pub term: u64,
    /// Who holds it.
    pub members: replica::Members,
    /// Highest committed index.
    pub committed: u64,
    /// Highest applied index.
    pub applied: u64,
    /// Elections and hand-overs.
    pub counters: replica::Counters,
    /// Engine figures.
    pub engine: crate::engine::Stats,
    /// The last checkpoint.
    pub checkpoint: Last,
    /// Sites that need blocks which the log no longer holds, while leading.
    pub beyond_log: u64,
}

/// A worker before its thread starts.
pub struct Worker<D: Disk = FileDisk> {
    shards: Vec<Shard>,
    log: Log<D>,
    writer: Writer,
    /// With other sites: how often blocks are proposed.
    proposals: Pace,
    /// How late requests are.
    standing: Standing,
    post: Post,
    /// `None` where no other site can be behind.
    catch_up: Option<CatchUp>,
    checkpoints: Option<Checkpointer<D>>,
    /// `None` where there is no other site.
    transfers: Option<Transfers<D::Files>>,
    releaser: Releaser,
    shared: Arc<Shared>,
    settings: WorkerSettings,
    alone: bool,
    out: Box<OutBatch>,
    next_tick_us: u64,
    report_due_us: u64,
    /// Sites that shall not lead, as last told to the replicas.
    away: u64,
}

impl Worker {
    /// A worker over recovered shards and their open log.
    ///
    /// # Errors
    /// No thread can be had for reading old blocks back or for checkpoints.
    pub fn new(
        recovering: Recovering,
        log: Log,
        shared: Arc<Shared>,
        settings: WorkerSettings,
    ) -> std::io::Result<Self> {
        let catch_up = match settings.alone() {
            true => None,
            false => Some(CatchUp::start(&log, &shared.exchange)?),
        };
        let (shards, last) = recovering.finish();
        let checkpoints = Checkpointer::start(
            &log,
            &shared.exchange,
            &shared.metrics,
            last,
            settings.checkpoint_bytes,
        )?;
        let transfers = match settings.alone() {
            true => None,
            false => Some(Transfers::start(
                &log,
                &shared.exchange,
                &shared.mesh,
                &shared.metrics,
                &settings.engines,
            )?),
        };
        let mut worker = Self::over(shards, log, catch_up, shared, settings);
        (worker.checkpoints, worker.transfers) = (Some(checkpoints), transfers);
        Ok(worker)
    }

    /// Runs until stopped or failed. On failure nothing more is handed out.
    ///
    /// # Errors
    /// [`WorkerError`]; the caller ends the process.
    pub fn run(mut self) -> Result<(), WorkerError> {
        loop {
            let now = clock::now();
            let busy = self.turn(now)?;
            if self.shared.stop.load(Ordering::Acquire) && self.idle() {
                self.log.close()?;
                return Ok(());
            }
            if !busy {
                self.sleep(now);
            }
        }
    }
}

impl<D: Disk> Worker<D> {
    fn over(
        shards: Vec<Shard>,
        log: Log<D>,
        catch_up: Option<CatchUp>,
        shared: Arc<Shared>,
        settings: WorkerSettings,
    ) -> Self {
        Self {
            shards,
            log,
            catch_up,
            checkpoints: None,
            transfers: None,
            releaser: Releaser::new(settings.keep_bytes, settings.segment_bytes),
            writer: Writer::new(settings.commit_interval_us),
            proposals: Pace::new(settings.commit_interval_us),
            standing: Standing::new(settings.queue_delay_max_us),
            post: Post::new(Arc::clone(&shared.mesh)),
            out: shared.exchange.out_batch(),
            shared,
            alone: settings.alone(),
            settings,
            next_tick_us: 0,
            report_due_us: 0,
            away: 0,
        }
    }

    /// Gives up log that checkpoints hold, when there is too much of it.
    fn release_log(&mut self, now: Now) -> Result<(), WorkerError> {
        let Some(checkpoints) = self.checkpoints.as_mut().filter(|all| all.may_release()) else {
            return Ok(());
        };
        let (shards, log) = (&mut self.shards, &mut self.log);
        let release = self.releaser.run(shards, log, &mut self.writer, checkpoints, now)?;
        if let Some(release) = release {
            checkpoints.release(release);
        }
        Ok(())
    }

    /// One turn; says whether there was anything to do.
    fn turn(&mut self, now: Now) -> Result<bool, WorkerError> {
        self.take_durable(now)?;
        let mut taken = 0;
        if !self.alone {
            taken += self.take_packets();
            self.look_for_forgotten()?;
            self.run_ticks(now);
        }
        if let Some(catch_up) = &mut self.catch_up {
            catch_up.run(&mut self.shards, &self.log);
        }
        if let (Some(transfers), Some(checkpoints)) = (&mut self.transfers, &mut self.checkpoints) {
            transfers.run(&mut self.shards, checkpoints, self.log.space(), now)?;
        }
        self.advance(now)?;
        taken += self.drain_inbox(now);
        self.run_timers(now)?;
        let written = self.write(now)?;
        self.release();
        let log = (self.writer.appended_bytes(), self.log.space());
        let shards = &mut self.shards;
        let more = self.checkpoints.as_mut().is_some_and(|all| all.run(shards, log, now));
        self.release_log(now)?;
        self.refresh_report(now);
        Ok(taken > 0 || written || more)
    }

    /// Tells the replicas what became durable.
    fn take_durable(&mut self, now: Now) -> Result<(), WorkerError> {
        let Some(Lsn(lsn)) = self.log.poll()? else { return Ok(()) };
        for shard in &mut self.shards {
            shard.replica.durable(lsn);
        }
        let metrics = &self.shared.metrics;
        let took_us = now.mono_us.saturating_sub(self.writer.submitted_us);
        if !self.alone {
            self.writer.pace.took(took_us);
            self.proposals.took(took_us);
        }
        metrics.fsync.record(took_us);
        metrics.batches.add(1);
        Ok(())
    }

    /// Feeds messages of other sites to the replicas; returns how many packets.
    fn take_packets(&mut self) -> usize {
        let mut taken = 0;
        while taken < PACKETS_PER_TURN {
            let Some(packet) = self.shared.exchange.pop_packet() else { break };
            let mut bytes = packet.bytes;
            if is_parcel(&bytes) {
                let read = self.transfers.as_mut().is_none_or(|it| it.receive(packet.from, &bytes));
                self.shared.metrics.packets_refused.add(u64::from(!read));
                taken += 1;
                continue;
            }
            loop {
                match message::decode(&mut bytes) {
                    Ok(None) => break,
                    Ok(Some((shard, message))) if message.from == u64::from(packet.from) => {
                        if let Some(shard) = self.shards.get_mut(usize::from(shard)) {
                            shard.replica.receive(message);
                        }
                    }
                    Ok(Some(_)) | Err(_) => {
                        self.shared.metrics.packets_refused.add(1);
                        break;
                    }
                }
            }
            taken += 1;
        }
        let gone = self.shared.mesh.take_gone();
        if gone != 0 {
            for site in (1..64).filter(|site| gone >> site & 1 == 1) {
                for shard in &mut self.shards {
                    shard.replica.peer_gone(site);
                }
            }
        }
        taken
    }

    /// Ends a site whose log lacks what others count on, before it promises anything.
    fn look_for_forgotten(&self) -> Result<(), WorkerError> {
        for Shard { replica, .. } in &self.shards {
            if let Some(known) = replica.forgotten() {
                let (site, shard, last) = (self.settings.site, replica.shard(), replica.last());
                return Err(WorkerError::Forgotten { site, shard, last, known });
            }
        }
        Ok(())
    }

    /// Lets the replicas' time pass. Time that this process did not get is not
    /// made up for: a stopped process must not wake up into many time-outs.
    fn run_ticks(&mut self, now: Now) {
        let tick_us = self.settings.timing.tick_us;
        if now.mono_us < self.next_tick_us {
            return;
        }
        self.next_tick_us = (self.next_tick_us + tick_us).max(now.mono_us + tick_us / 2);
        self.set_away();
        // They share a disk: what one has found holds for all.
        let stalled = self.shards.iter().any(|shard| shard.replica.is_stalled());
        for shard in &mut self.shards {
            shard.replica.set_stalled(stalled);
            shard.replica.tick();
        }
    }

    /// Tells the replicas which sites shall not lead.
    fn set_away(&mut self) {
        let mut away = self.shards.first().map_or(0, |shard| shard.engine.drained());
        if self.shared.leave.load(Ordering::Acquire) {
            away |= 1 << self.settings.site;
        }
        if away != self.away {
            self.away = away;
            for shard in &mut self.shards {
                shard.replica.set_away(away);
            }
        }
    }

    /// Carries out what the replicas want: frames to the writer, messages to
    /// the post, steps to the engines.
    fn advance(&mut self, now: Now) -> Result<(), WorkerError> {
        for (at, shard) in self.shards.iter_mut().enumerate() {
            if !shard.has_outputs() {
                continue;
            }
            shard.advance(now)?;
            if let Some(transfers) = &mut self.transfers {
                transfers.wanted(at, shard);
            }
            self.writer.take(at, &mut shard.wants);
            self.post.take(shard.replica.shard(), &mut shard.wants.messages);
            let (number, term) = (shard.replica.shard(), shard.replica.term());
            let leader = shard.replica.leader() as u8;
            if self.shared.mesh.publish_leader(number, term, leader) && !self.alone {
                let at_ms = now.wall_us / 1000;
                println!("shard {number}: leader {leader} term {term} at_ms={at_ms}");
            }
        }
        Ok(())
    }

    /// Feeds waiting batches to the engines; returns how many it took.
    fn drain_inbox(&mut self, now: Now) -> usize {
        let exchange = Arc::clone(&self.shared.exchange);
        let mut taken = 0;
        // What cannot be proposed now must not hold up what can.
        let free = self.shards.iter().filter(|shard| !shard.is_held());
        let open: usize = free.map(|shard| shard.out.block.len()).sum();
        let room = open < self.settings.blocks_bytes_max / 2;
        while room && taken < BATCHES_PER_TURN {
            let Some(batch) = exchange.pop() else {
                if taken == 0 {
                    exchange
                        .overloaded
                        .store(self.standing.refuses(0, now.mono_us), Ordering::Relaxed);
                }
                break;
            };
            self.feed(&batch, now);
            exchange.recycle(batch);
            taken += 1;
        }
        taken
    }

    fn feed(&mut self, batch: &Batch, now: Now) {
        let delay_us = now.mono_us.saturating_sub(batch.queued_us);
        self.shared.metrics.queue_delay.record_n(delay_us, batch.items.len() as u64);
        let (block_max, retry_ms) = (self.settings.blocks_bytes_max / 2, self.retry_after_ms());
        let late = self.standing.refuses(delay_us, now.mono_us);
        self.shared.exchange.overloaded.store(late, Ordering::Relaxed);
        let full = self.shared.storage_full.load(Ordering::Relaxed);
        for (at, (shard, item)) in batch.items.iter().enumerate() {
            if at % WARM_ITEMS == 0 {
                self.warm(&batch.items[at..]);
            }
            let full = full && !self.is_known(*shard, item);
            if let Some((waiter, code)) = shed(item, late, full) {
                let retry_ms = match code {
                    Code::StorageFull => STORAGE_RETRY_MS,
                    _ => retry_ms,
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
                _ => match (self.shards.get_mut(usize::from(*shard)), item.waiter()) {
                    (Some(shard), Some(waiter)) if shard.is_blocked(block_max) => {
                        shard.out.replies.push(Reply::refusal(waiter, Code::Overloaded, retry_ms));
                    }
                    (Some(shard), _) => route(shard, item, &batch.arena, self.alone, now),
                    (None, _) => debug_assert!(false, "the front knows the number of shards"),
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

    /// Proposes the open blocks, hands frames to the log and messages to the
    /// links. Alone, a block is proposed when the log can write it; with other
    /// sites it travels to them while the own disk still works on the one before.
    fn write(&mut self, now: Now) -> Result<bool, WorkerError> {
        for shard in &mut self.shards {
            shard.start_reads();
        }
        let ready = !self.log.in_flight() && !self.log.unsubmitted();
        let blocks = self.proposable_bytes();
        let propose = blocks > 0
            && match self.alone {
                true => ready && !self.writer.pace.holds(now, blocks),
                false => {
                    self.writer.queued_bytes() < self.settings.blocks_bytes_max
                        && !self.proposals.holds(now, blocks)
                }
            };
        if propose {
            self.propose();
        }
        // Barriers and proposals leave for the other sites before the disk works.
        self.advance(now)?;
        self.post.send(&mut self.shards);
        if self.log.in_flight() {
            return Ok(propose);
        }
        if self.log.unsubmitted() {
            // Handed over when no segment was ready: nothing may follow before it.
            return self.submit(now);
        }
        if self.writer.is_empty() {
            if blocks == 0 {
                self.log.idle(now.mono_us)?;
            }
            return Ok(propose);
        }
        if !self.alone && self.writer.holds(now) {
            return Ok(propose);
        }
        let taken = self.writer.append(&mut self.shards, &mut self.log)?;
        if !self.alone {
            self.writer.append_commits(&mut self.shards, &mut self.log)?;
        }
        self.shared.metrics.batch_bytes.record(taken as u64);
        self.shared.metrics.log_written_bytes.add(taken as u64);
        let full = self.log.space() == Space::Reserve;
        self.shared.storage_full.store(full, Ordering::Relaxed);
        let written = self.submit(now)?;
        if !written && !self.log.unsubmitted() {
            // No frames: what stood behind earlier writes may leave already.
            self.advance(now)?;
            self.post.send(&mut self.shards);
        }
        Ok(written)
    }

    /// Bytes of open blocks that consensus would take now.
    fn proposable_bytes(&self) -> usize {
        let open = self.shards.iter().filter(|shard| !shard.out.block.is_empty());
        open.filter(|shard| shard.replica.may_propose()).map(|shard| shard.out.block.len()).sum()
    }

    fn submit(&mut self, now: Now) -> Result<bool, WorkerError> {
        self.writer.submitted_us = now.mono_us;
        Ok(self.log.submit()?)
    }

    /// Hands the open blocks to consensus, as much as one log write carries.
    fn propose(&mut self) {
        let mut left = self.settings.blocks_bytes_max;
        let mut records = 0;
        for shard in &mut self.shards {
            let out = &mut shard.out;
            let whole = out.block.len() <= left;
            let skip = out.block.is_empty() || !whole && left < PART_BYTES_MIN;
            if skip || !shard.replica.may_propose() {
                continue;
            }
            let mut rest = shard.replica.spare();
            let mut taken = out.block_records;
            if !whole {
                taken = record::split_off(&mut out.block, left, &mut rest);
            }
            left = left.saturating_sub(out.block.len());
            let block = std::mem::replace(&mut out.block, rest);
            match shard.replica.propose(block) {
                Ok(()) => {
                    shard.refused = false;
                    out.block_records -= taken;
                    records += u64::from(taken);
                }
                Err(mut block) => {
                    shard.refused = true;
                    block.extend_from_slice(&out.block);
                    let rest = std::mem::replace(&mut out.block, block);
                    shard.replica.recycle(rest);
                }
            }
        }
        self.shared.metrics.records.add(records);
        self.shared.metrics.batch_records.record(records);
    }

    /// Collects what the engines let go and hands it to the network thread.
    fn release(&mut self) {
        for shard in &mut self.shards {
            let until = shard.may_send_until();
            self.shared.mesh.publish_lease(shard.replica.shard(), until);
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
            && self.writer.is_empty()
            && self.shards.iter().all(|shard| shard.out.block.is_empty())
    }

    fn sleep(&self, now: Now) {
        let (timeout, listen) = self.rest(now);
        if timeout > 0 {
            self.shared.exchange.park(timeout, listen);
        }
    }

    /// How long there is nothing to do, microseconds, and whether what is
    /// handed in meanwhile should be looked at sooner.
    fn rest(&self, now: Now) -> (u64, bool) {
        let due = self.shards.iter().filter_map(|shard| shard.due_us).min();
        let mut timeout = due.map_or(50_000, |due| due.saturating_sub(now.mono_us)).min(50_000);
        if !self.alone {
            timeout = timeout.min(self.next_tick_us.saturating_sub(now.mono_us));
        }
        // Other sites are not kept waiting for our next write.
        let mut listen = true;
        let in_flight = self.log.in_flight();
        // While the log waits for a segment only its wake-up helps, not haste.
        let may_write = !in_flight && !self.log.unsubmitted();
        let blocks = self.proposable_bytes() > 0;
        if self.alone {
            if may_write && blocks {
                timeout = timeout.min(self.writer.pace.due_us.saturating_sub(now.mono_us));
                listen = false;
            } else if self.writer.pace.busy && in_flight {
                // The completion wakes us; batches that arrive meanwhile can wait for it.
                listen = false;
            }
        } else {
            if blocks {
                timeout = timeout.min(self.proposals.due_us.saturating_sub(now.mono_us));
            }
            if may_write && !self.writer.is_empty() {
                timeout = timeout.min(self.writer.wait_us(now));
            }
        }
        if !self.out.is_empty() {
            timeout = timeout.min(200);
        }
        (timeout, listen)
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
        report.drained = self.shards.first().map_or(0, |shard| shard.engine.drained());
        for shard in &mut self.shards {
            shard.look_at_lease(now.mono_us);
        }
        report.shards.clear();
        let checkpoints = &self.checkpoints;
        report.shards.extend(self.shards.iter_mut().enumerate().map(|(at, shard)| ShardReport {
            shard: shard.engine.shard(),
            leads: shard.replica.leads(),
            candidate: shard.replica.is_candidate(),
            leader: shard.replica.leader() as u16,
            counters: shard.replica.counters(),
            term: shard.replica.term(),
            members: shard.replica.members(),
            committed: shard.replica.committed(),
            applied: shard.engine.applied(),
            engine: shard.engine.stats(),
            checkpoint: checkpoints.as_ref().map_or_else(Last::default, |all| all.last(at)),
            beyond_log: shard.look_beyond(),
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

/// Gives an item to its engine: requests only where it leads, and queries only
/// once it is certain that it still does.
fn route(shard: &mut Shard, item: &Item, arena: &[u8], alone: bool, now: Now) {
    match item.waiter() {
        Some(waiter) if !shard.replica.leads() => return shard.refuse(waiter),
        _ if alone || shard.engine.weakened(Weakness::ReadWithoutBarrier) => {}
        _ => match item {
            Item::Query(query) => return shard.read_later(Item::Query(*query)),
            Item::QueryRefund(query) => return shard.read_later(Item::QueryRefund(*query)),
            _ => {}
        },
    }
    handle(shard, item, arena, now);
}

fn transfer(shard: &mut Shard, ticket: u64, site: u16) {
    let answer = if !shard.replica.leads() {
        Err("this site does not lead the shard".to_owned())
    } else if shard.replica.transfer(u64::from(site)) {
        Ok(format!("shard {} goes to site {site}", shard.replica.shard()))
    } else {
        Err(format!("site {site} cannot take the shard now"))
    };
    shard.out.admin.push((ticket, answer));
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
        Item::Transfer(ticket, site) => return transfer(shard, *ticket, *site),
        Item::Reach(reach) => {
            if let Some(reach) = reach.take() {
                reach(&mut shard.replica);
            }
            return;
        }
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
