//! What must be the same on every replica of a shard, whatever its history:
//! held on every block of every seed of the model.
//!
//! Beside the leader with its proposals and the follower of the log stands a third
//! engine that is restored from a checkpoint now and then and follows the tail.
//! A leader that dies comes back from a checkpoint, from the log, or was only deposed.
//! Checkpoints that the leader writes in slices, while blocks are applied in
//! between, must be the very bytes that the follower writes at once.

use super::model::Random;
use crate::engine::{CHUNK_BYTES_MAX, Engine, Input, Now, Outputs, Slice};

pub(super) struct Replicas {
    random: Random,
    restored: Engine,
    /// What the leader's checkpoint must be, and what of it is written.
    slicing: Option<(Vec<u8>, Vec<u8>)>,
}

/// The chunks of a checkpoint at once.
pub(super) fn chunks(engine: &Engine) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let hash = engine.checkpoint(&mut |chunk| {
        assert!(chunk.len() <= CHUNK_BYTES_MAX);
        chunks.push(chunk.to_vec());
    });
    assert_eq!(hash, chunks.last().expect("an end")[32..64], "the last sum is the hash");
    chunks
}

impl Replicas {
    pub(super) fn new(seed: u64, shadow: &Engine) -> Self {
        let restored = Engine::restore(shadow.config.clone(), chunks(shadow)).expect("sound");
        let random = Random(seed ^ 0x5eed);
        Self { random, restored, slicing: None }
    }

    /// `shadow` applied a block.
    pub(super) fn follow(&mut self, index: u64, block: &[u8], shadow: &Engine) {
        let mut out = Outputs::default();
        self.restored.apply(index, 0, block, Now::default(), &mut out).expect("sound");
        assert_eq!(self.restored.state_hash(), shadow.state_hash(), "restored differs at {index}");
        assert_eq!(self.restored.stats(), shadow.stats());
        if self.random.percent(15) {
            self.restored = Engine::restore(shadow.config.clone(), chunks(shadow)).expect("sound");
            assert_eq!(chunks(&self.restored), chunks(shadow), "a checkpoint of a checkpoint");
        }
    }

    /// How the next leader came to be: restored from a checkpoint, or the old
    /// one, deposed, which follows `log` from where it stood; `None`: by replaying
    /// the log from its beginning.
    pub(super) fn restart(
        &mut self,
        mut deposed: Engine,
        log: &[Vec<u8>],
        shadow: &Engine,
    ) -> Option<Engine> {
        self.slicing = None;
        match self.random.below(3) {
            0 => {
                let config = shadow.config.clone();
                Some(Engine::restore(config, chunks(shadow)).expect("sound"))
            }
            1 => {
                let mut out = Outputs::default();
                deposed.abandon_checkpoint();
                deposed.handle(Input::StepDown, Now::default(), &mut out).expect("no block");
                for block in &log[deposed.applied() as usize..] {
                    let index = deposed.applied() + 1;
                    deposed.apply(index, 0, block, Now::default(), &mut out).expect("sound");
                    assert_eq!(deposed.stats().proposed, 0);
                }
                assert_eq!(deposed.state_hash(), shadow.state_hash(), "a deposed leader differs");
                Some(deposed)
            }
            _ => None,
        }
    }

    /// Leader and follower applied the same block.
    pub(super) fn compare(&mut self, leader: &mut Engine, shadow: &Engine) {
        assert_eq!(leader.applied(), shadow.applied());
        assert_eq!(leader.state_hash(), shadow.state_hash(), "leader and follower differ");
        if self.slicing.is_none() && self.random.percent(30) {
            let mut written = Vec::new();
            leader.begin_checkpoint(&mut |chunk| written.extend_from_slice(chunk));
            self.slicing = Some((chunks(shadow).concat(), written));
        } else if let Some((expected, written)) = &mut self.slicing {
            let payments = self.random.below(3);
            let slice =
                leader.checkpoint_slice(payments, &mut |chunk| written.extend_from_slice(chunk));
            if let Slice::Done { hash } = slice {
                assert_eq!(written, expected, "written in slices and at once");
                assert_eq!(hash, expected[expected.len() - 32..]);
                self.slicing = None;
            } else {
                assert_eq!(slice, Slice::More);
            }
        }
    }
}
