//! What the admin interface shows of a worker: its shards and its log.

use std::sync::atomic::Ordering;

use storage::disk::Disk;
use storage::{LogStats, Space};

use super::Worker;
use super::checkpoint::Last;
use crate::engine::Now;
use crate::replica;

/// Time between two looks, microseconds.
const REPORT_US: u64 = 200_000;

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

impl<D: Disk> Worker<D> {
    /// Refreshes what is shown, now and then.
    pub(super) fn refresh_report(&mut self, now: Now) {
        if now.mono_us < self.report_due_us {
            return;
        }
        self.report_due_us = now.mono_us + REPORT_US;
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
