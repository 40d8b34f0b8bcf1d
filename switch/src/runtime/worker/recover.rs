//! The shards' state while the worker's log is read back.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use storage::disk::Files;
use storage::{Checkpoints, FRAME_HEADER_BYTES, Frame, FrameKind, Replay, ReplayError, ShardEnd};

use super::checkpoint::Last;
use super::restore::{Restored, restore_all};
use super::shard::Shard;
use super::{WorkerError, WorkerSettings};
use crate::engine::output::Outputs;
use crate::engine::{Engine, EngineConfig, Now};
use crate::replica;

/// Recovers the state of the shards while the log is read.
pub struct Recovering {
    shards: Vec<RecoveringShard>,
}

struct RecoveringShard {
    engine: Engine,
    replica: replica::Recovering,
    out: Outputs,
    checkpoint: Last,
    /// Bytes of log applied behind the checkpoint.
    grown: u64,
}

impl Recovering {
    /// Engines and replicas as their newest sound checkpoints say, empty where
    /// there are none.
    pub fn new<F: Files + Sync>(
        settings: &WorkerSettings,
        checkpoints: Option<&Checkpoints<F>>,
    ) -> Self {
        let (engines, voters) = (&settings.engines, &settings.voters);
        let restored = checkpoints.map(|found| restore_all(found, engines, voters));
        let mut restored = restored.unwrap_or_default();
        restored.resize_with(engines.len(), || None);
        let shards = engines.iter().zip(restored);
        let shards = shards.map(|(config, restored)| match restored {
            Some(restored) => RecoveringShard::restored(settings, restored),
            None => RecoveringShard::empty(settings, config),
        });
        Self { shards: shards.collect() }
    }

    /// Shards that begin from a checkpoint, and the payments in those.
    pub fn restored(&self) -> (usize, u64) {
        let restored = self.shards.iter().filter(|shard| shard.checkpoint.index > 0);
        restored.fold((0, 0), |(shards, payments), shard| {
            (shards + 1, payments + shard.engine.stats().orders)
        })
    }

    /// Breaks a rule of every engine.
    #[cfg(test)]
    pub(super) fn break_rule(&mut self, weakness: Option<crate::engine::weakness::Weakness>) {
        for shard in &mut self.shards {
            shard.engine.break_rule(weakness);
        }
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
                let Frame { index, term, chain, payload, .. } = *frame;
                if shard.replica.block(index, term, chain, payload)? {
                    shard.apply(index, term, payload)?;
                } else {
                    shard.apply_committed()?;
                }
            }
            FrameKind::HardState => {
                shard.replica.hard_state(frame.payload)?;
                shard.apply_committed()?;
            }
            FrameKind::Base => {
                let Frame { index, term, chain, .. } = *frame;
                shard.replica.rebased(index, term, chain)?;
            }
            other => return Err(WorkerError::Apply(format!("a frame of kind {other:?}"))),
        }
        Ok(())
    }

    /// Whether log and checkpoints belong together; `ends` as the log says.
    ///
    /// # Errors
    /// [`WorkerError::Replay`].
    pub fn check(&mut self, ends: &[ShardEnd]) -> Result<(), WorkerError> {
        for (shard, recovering) in (0..).zip(&mut self.shards) {
            let end = ends.iter().find(|end| end.shard == shard);
            recovering.replica.check(end.map(|end| end.index))?;
        }
        Ok(())
    }

    /// Everything was read.
    pub(super) fn finish(self) -> (Vec<Shard>, Vec<Last>) {
        let finished = self.shards.into_iter().map(|recovering| {
            let RecoveringShard { engine, replica, out, checkpoint, grown } = recovering;
            let mut shard = Shard::new(engine, replica.start(), out);
            shard.grown = grown;
            (shard, checkpoint)
        });
        finished.unzip()
    }
}

/// The log is held against the checkpoints before anything in it is changed: what
/// looks like a torn tail may be a batch that a checkpoint proves durable.
impl Replay for Recovering {
    fn frame(&mut self, frame: Frame<'_>) -> Result<(), ReplayError> {
        Self::frame(self, &frame).map_err(|error| ReplayError::new(error.to_string()))
    }

    fn end(&mut self, ends: &[ShardEnd]) -> Result<(), ReplayError> {
        self.check(ends).map_err(|error| ReplayError::new(error.to_string()))
    }
}

impl RecoveringShard {
    fn empty(settings: &WorkerSettings, config: &EngineConfig) -> Self {
        Self {
            replica: replica::Recovering::new(settings.replica(config.shard)),
            engine: Engine::new(config.clone()),
            out: Outputs::default(),
            checkpoint: Last::default(),
            grown: 0,
        }
    }

    fn restored(settings: &WorkerSettings, restored: Restored) -> Self {
        let Restored { engine, base, bytes } = restored;
        let mut out = Outputs::default();
        // As applying their records would have done.
        out.merchants.extend(engine.merchants().cloned());
        Self {
            replica: replica::Recovering::from_base(settings.replica(engine.shard()), base),
            out,
            checkpoint: Last::found(base, bytes),
            engine,
            grown: 0,
        }
    }

    fn apply_committed(&mut self) -> Result<(), WorkerError> {
        while let Some(found) = self.replica.next_committed() {
            let block: Bytes = found.block;
            self.apply(found.index, found.term, &block)?;
        }
        Ok(())
    }

    fn apply(&mut self, index: u64, term: u64, block: &[u8]) -> Result<(), WorkerError> {
        self.grown += (FRAME_HEADER_BYTES + block.len()) as u64;
        let applied = self.engine.apply(index, term, block, Now::default(), &mut self.out);
        applied.map_err(|error| WorkerError::Apply(error.to_string()))
    }
}
