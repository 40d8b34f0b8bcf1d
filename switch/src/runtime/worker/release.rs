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
    /// The segments in which the shards last repeated their hard states and
    /// moved on by a block.
    repeated: Vec<u64>,
}

impl Releaser {
    /// Keeps `keep_bytes` of log, in segments of `segment_bytes`; 0 keeps all.
    pub(super) fn new(keep_bytes: u64, segment_bytes: u64) -> Self {
        let keep = (keep_bytes > 0).then(|| keep_bytes.div_ceil(segment_bytes.max(1)));
        Self { keep, look_us: 0, repeated: Vec::new() }
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
        self.repeated.resize(shards.len(), 0);
        for (at, (shard, repeated)) in shards.iter_mut().zip(&mut self.repeated).enumerate() {
            // Or a quiet shard's would hold its segment for ever. One that cannot say
            // now is asked again at the next look.
            if *repeated >= stats.segment || !writer.repeat_state(at, shard) {
                continue;
            }
            *repeated = stats.segment;
            if shard.out.block.is_empty() {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use storage::disk::SimDisk;
    use storage::{Frame, FrameKind, Settings, chain_next};

    use super::*;
    use crate::engine::Engine;
    use crate::metrics::Metrics;
    use crate::replica::{self, ReplicaConfig, Timing};
    use crate::runtime::testing::Cluster;
    use crate::runtime::worker::checkpoint::Last;

    /// A replica that has something newer on its way is asked again at the next look,
    /// not with the next segment: by then a quiet site's log may have grown no more.
    #[test]
    fn a_state_that_could_not_be_repeated_is_repeated_later() {
        let config = &Cluster::new(1).configs[0];
        let settings = Settings {
            cluster: 7,
            worker: 0,
            segment_bytes: 68 << 10,
            batch_max_bytes: 64 << 10,
            idle_seal_us: 1_000,
        };
        let disk = SimDisk::new(3, settings.segment_bytes);
        let (mut log, _) = Log::with_disk(disk, settings, &mut |_| Ok(())).unwrap();
        let (mut chain, payload) = (storage::CHAIN_START, [7; 40 << 10]);
        for index in 1..=4 {
            chain = chain_next(&chain, &payload);
            let (kind, shard, term) = (FrameKind::Block, 0, 1);
            log.append(&Frame { kind, shard, term, index, chain, payload: &payload }).unwrap();
            log.submit().unwrap();
            while log.in_flight() {
                log.poll().unwrap();
            }
        }
        let replica = replica::Recovering::new(ReplicaConfig {
            shard: 0,
            site: 1,
            witnesses: Vec::new(),
            voters: vec![1],
            preference: vec![1],
            seed: 1,
            tail_bytes_max: 0,
            timing: Timing::default(),
        });
        let engine = Engine::new(config.engine(0));
        let mut shards = [Shard::new(engine, replica.start(), Default::default())];
        let metrics = Arc::new(Metrics::new(config));
        let checkpoints = Checkpointer::here(&log, &metrics, vec![Last::default()], 0);
        let (mut releaser, mut writer) = (Releaser::new(1, 1), Writer::new(0, true));
        let mut now = Now::default();
        let mut look = |shards: &mut [Shard], log: &mut Log<SimDisk>, writer: &mut Writer| {
            now.mono_us += LOOK_US;
            let release = releaser.run(shards, log, writer, &checkpoints, now).unwrap();
            assert!(release.is_none(), "there is no checkpoint");
            writer.queued_bytes()
        };
        // It stands for election, which is not written yet.
        assert!(shards[0].has_outputs());
        assert_eq!(look(&mut shards, &mut log, &mut writer), 0);
        while shards[0].has_outputs() || !writer.is_empty() {
            shards[0].advance(Now::default()).unwrap();
            writer.take(0, &mut shards[0].wants);
            writer.append(&mut shards, &mut log).unwrap();
            log.submit().unwrap();
            while log.in_flight() {
                log.poll().unwrap();
            }
            shards[0].replica.durable(log.durable().0);
        }
        let segment = log.stats().segment;
        let state = crate::replica::HardState::LEN;
        assert_eq!(look(&mut shards, &mut log, &mut writer), state, "repeated now");
        assert_eq!(look(&mut shards, &mut log, &mut writer), state, "and once");
        assert_eq!(log.stats().segment, segment);
    }
}
