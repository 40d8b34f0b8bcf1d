//! Gives up the oldest log when the checkpoints hold what it held.
//!
//! Only up to the older of a shard's two checkpoints, so that the newest one may
//! turn out damaged; and only what goes beyond the configured size. Decided on
//! the worker's thread from memory, done by the thread that writes checkpoints.

use storage::disk::Disk;
use storage::{Log, LogRelease};

use super::WorkerError;
use super::checkpoint::Checkpointer;
use super::shard::Shard;
use super::writer::Writer;
use crate::engine::Now;

/// Pause between two looks at the log's size, microseconds.
const LOOK_US: u64 = 1_000_000;

/// When the log is released.
pub(super) struct Releaser {
    /// Segments that stay whatever the checkpoints hold; `None`: all.
    keep: Option<u64>,
    look_us: u64,
    /// The segment in which the shards last repeated their hard states and
    /// moved on by a block.
    repeated: u64,
}

impl Releaser {
    /// Keeps `keep_bytes` of log, in segments of `segment_bytes`; 0 keeps all.
    pub(super) fn new(keep_bytes: u64, segment_bytes: u64) -> Self {
        let keep = (keep_bytes > 0).then(|| keep_bytes.div_ceil(segment_bytes.max(1)));
        Self { keep, look_us: 0, repeated: 0 }
    }

    /// Looks now and then what can go.
    pub(super) fn run<D: Disk>(
        &mut self,
        shards: &mut [Shard],
        log: &mut Log<D>,
        writer: &mut Writer,
        checkpoints: &Checkpointer<D>,
        now: Now,
    ) -> Result<Option<LogRelease<D>>, WorkerError> {
        let Some(keep) = self.keep else { return Ok(None) };
        if now.mono_us < self.look_us {
            return Ok(None);
        }
        self.look_us = now.mono_us + LOOK_US;
        let stats = log.stats();
        if stats.segment < stats.first_segment + keep {
            return Ok(None);
        }
        if self.repeated < stats.segment {
            // Or a quiet shard's would hold its segment for ever.
            self.repeated = stats.segment;
            writer.repeat_states(shards);
            for shard in shards.iter_mut().filter(|shard| shard.out.block.is_empty()) {
                // An empty block lets it have a second checkpoint. Not taken
                // now, it is tried again with the next segment.
                drop(shard.replica.propose(Vec::new()));
            }
        }
        let covered = checkpoints.covered();
        let release = log.plan_release_before(&covered, stats.segment + 1 - keep)?;
        if release.is_some() {
            for shard in shards {
                let number = shard.replica.shard();
                let covered = covered.iter().find(|checkpoint| checkpoint.shard == number);
                let first = log.first_index(number).or(covered.map(|found| found.index));
                shard.replica.released(first.unwrap_or(0));
            }
        }
        Ok(release)
    }
}
