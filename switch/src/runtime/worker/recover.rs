//! The shards' state while the worker's log is read back.

use bytes::Bytes;
use storage::{Frame, FrameKind};

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
}

impl Recovering {
    /// Empty engines and replicas.
    pub fn new(settings: &WorkerSettings) -> Self {
        let shard = |config: &EngineConfig| RecoveringShard {
            replica: replica::Recovering::new(settings.replica(config.shard)),
            engine: Engine::new(config.clone()),
            out: Outputs::default(),
        };
        Self { shards: settings.engines.iter().map(shard).collect() }
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
            other => return Err(WorkerError::Apply(format!("a frame of kind {other:?}"))),
        }
        Ok(())
    }

    /// Everything was read.
    pub(super) fn finish(self) -> Vec<Shard> {
        self.shards
            .into_iter()
            .map(|shard| Shard::new(shard.engine, shard.replica.start(), shard.out))
            .collect()
    }
}

impl RecoveringShard {
    fn apply_committed(&mut self) -> Result<(), WorkerError> {
        while let Some(found) = self.replica.next_committed() {
            let block: Bytes = found.block;
            self.apply(found.index, found.term, &block)?;
        }
        Ok(())
    }

    fn apply(&mut self, index: u64, term: u64, block: &[u8]) -> Result<(), WorkerError> {
        let applied = self.engine.apply(index, term, block, Now::default(), &mut self.out);
        applied.map_err(|error| WorkerError::Apply(error.to_string()))
    }
}
