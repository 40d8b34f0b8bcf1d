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
//! | `feed` | from the inbox to the engines |
//! | `output` | from the engines to consensus, the log and the network thread |
//! | `report` | what the admin interface shows |
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
mod feed;
mod output;
mod post;
mod recover;
mod release;
mod report;
mod restore;
mod shard;
#[cfg(test)]
mod sim;
mod transfer;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use storage::disk::Disk;
use storage::{FileDisk, Log, LogError, Lsn};

use super::clock;
use super::inbox::{Exchange, Listen, OutBatch};
use super::mesh::Mesh;
use super::standing::Standing;
use crate::engine::{EngineConfig, Input, Now};
use crate::metrics::Metrics;
use crate::replica::{self, ReplayError, ReplicaConfig, Timing, message};
use catchup::CatchUp;
use checkpoint::Checkpointer;
use post::Post;
pub use recover::Recovering;
use release::Releaser;
pub use report::Report;
use shard::Shard;
use transfer::{Transfers, is_parcel};
use writer::{Pace, Writer};

/// Packets of other sites taken per turn.
const PACKETS_PER_TURN: usize = 256;

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
    /// Nothing was ever written to the log.
    pub log_is_empty: Arc<AtomicBool>,
    /// Per shard figures, refreshed by the worker.
    pub report: std::sync::Mutex<Report>,
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
    /// Since when it has not slept, monotonic microseconds.
    awake_us: u64,
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
                // The turn took time, and what is due is due all the same.
                self.sleep(clock::now());
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
            writer: Writer::new(settings.commit_interval_us, settings.alone()),
            proposals: Pace::new(settings.commit_interval_us, settings.alone()),
            standing: Standing::new(settings.queue_delay_max_us),
            awake_us: 0,
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
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.run(shards, log, now);
        }
        self.release_log(now)?;
        self.refresh_report(now);
        Ok(taken > 0 || written)
    }

    /// Tells the replicas what became durable.
    fn take_durable(&mut self, now: Now) -> Result<(), WorkerError> {
        let Some(Lsn(lsn)) = self.log.poll()? else { return Ok(()) };
        for shard in &mut self.shards {
            shard.replica.durable(lsn);
        }
        let metrics = &self.shared.metrics;
        let took_us = now.mono_us.saturating_sub(self.writer.submitted_us);
        self.writer.pace.took(took_us);
        self.proposals.took(took_us);
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
            let news = self.shared.mesh.publish_leader(number, term, leader);
            if news && leader == self.shared.mesh.site() {
                // Goes with the merchants, not ahead of them as the leader does.
                self.out.led.push((number, term));
            }
            if news && !self.alone {
                let at_ms = now.wall_us / 1000;
                println!("shard {number}: leader {leader} term {term} at_ms={at_ms}");
            }
        }
        Ok(())
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

    fn idle(&self) -> bool {
        !self.log.in_flight()
            && self.out.is_empty()
            && self.writer.is_empty()
            && self.shards.iter().all(|shard| shard.out.block.is_empty())
    }

    fn sleep(&mut self, now: Now) {
        let (timeout, listen) = self.rest(now);
        if timeout > 0 {
            self.shared.exchange.park(timeout, listen);
            self.awake_us = clock::mono_us();
        }
    }

    /// How long there is nothing to do, microseconds, and what of that which is
    /// handed in meanwhile should be looked at sooner.
    fn rest(&self, now: Now) -> (u64, Listen) {
        let due = self.shards.iter().filter_map(|shard| shard.due_us).min();
        let mut timeout = due.map_or(50_000, |due| due.saturating_sub(now.mono_us)).min(50_000);
        if !self.alone {
            timeout = timeout.min(self.next_tick_us.saturating_sub(now.mono_us));
        }
        if let Some(due) = self.checkpoints.as_ref().and_then(Checkpointer::due_us) {
            timeout = timeout.min(due.saturating_sub(now.mono_us));
        }
        // Other sites are not kept waiting for our next write.
        let mut listen = Listen::All;
        let in_flight = self.log.in_flight();
        // While the log waits for a segment only its wake-up helps, not haste.
        let may_write = !in_flight && !self.log.unsubmitted();
        let blocks = self.proposable_bytes() > 0;
        if self.alone {
            if may_write && blocks {
                timeout = timeout.min(self.writer.pace.due_us.saturating_sub(now.mono_us));
                listen = Listen::Nothing;
            } else if self.writer.pace.busy && in_flight {
                // The completion wakes us; batches that arrive meanwhile can wait for it.
                listen = Listen::Nothing;
            }
        } else {
            if blocks {
                timeout = timeout.min(self.proposals.due_us.saturating_sub(now.mono_us));
                if self.proposals.busy {
                    // What comes meanwhile goes with them.
                    listen = Listen::Packets;
                }
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
}

fn apply(error: crate::engine::ApplyError) -> WorkerError {
    WorkerError::Apply(error.to_string())
}
