//! The shards' states out of their newest sound checkpoints, before the log is
//! read back. Several shards at a time: this is most of a start's work.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use storage::disk::Files;
use storage::{CheckpointError, CheckpointFault, Checkpoints};

use crate::engine::{Engine, EngineConfig, Restore, RestoreError};
use crate::replica::Base;

/// A shard as its checkpoint says.
pub(super) struct Restored {
    pub(super) engine: Engine,
    pub(super) base: Base,
    /// Bytes of the checkpoint.
    pub(super) bytes: u64,
}

/// Why a checkpoint is passed over.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    File(#[from] CheckpointError),
    #[error(transparent)]
    State(#[from] RestoreError),
    #[error("its state is of block {0}")]
    Index(u64),
    #[error("its note cannot be read")]
    Note,
}

impl Refused {
    /// Whether the bytes are at fault: not a newer program's, not the disk's.
    fn is_damage(&self) -> bool {
        match self {
            Self::File(CheckpointError::Bad { fault, .. }) => {
                !matches!(fault, CheckpointFault::Version(_))
            }
            Self::File(_) => false,
            Self::State(error) => !matches!(error, RestoreError::Version(_)),
            Self::Index(_) | Self::Note => true,
        }
    }
}

/// Restores every shard, `None` where there is no sound checkpoint.
pub(super) fn restore_all<F: Files + Sync>(
    checkpoints: &Checkpoints<F>,
    engines: &[EngineConfig],
    voters: &[u64],
) -> Vec<Option<Restored>> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(engines.len());
    let next = AtomicUsize::new(0);
    let restored = Mutex::new(Vec::from_iter(engines.iter().map(|_| None)));
    thread::scope(|scope| {
        for _ in 0..threads {
            let mut checkpoints = checkpoints.clone();
            let (next, restored) = (&next, &restored);
            scope.spawn(move || {
                while let Some((at, config)) = take(next, engines) {
                    let shard = restore(&mut checkpoints, config, voters);
                    if let Ok(mut restored) = restored.lock() {
                        restored[at] = shard;
                    }
                }
            });
        }
    });
    restored.into_inner().unwrap_or_default()
}

fn take<'e>(next: &AtomicUsize, engines: &'e [EngineConfig]) -> Option<(usize, &'e EngineConfig)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    engines.get(at).map(|config| (at, config))
}

/// The newest checkpoint that is sound; says which ones are not.
pub(super) fn restore<F: Files>(
    checkpoints: &mut Checkpoints<F>,
    config: &EngineConfig,
    voters: &[u64],
) -> Option<Restored> {
    let shard = config.shard;
    let indexes = match checkpoints.list(shard) {
        Ok(indexes) => indexes,
        Err(error) => {
            eprintln!("checkpoints of shard {shard} cannot be listed: {error}");
            return None;
        }
    };
    for index in indexes {
        match read(checkpoints, config, voters, index) {
            Ok(restored) => return Some(restored),
            Err(why) => {
                eprintln!(
                    "checkpoint of shard {shard} at block {index} is NOT USED: {why}; going on \
                     with the one before, or with the log alone"
                );
                if why.is_damage()
                    && let Err(error) = checkpoints.set_aside(shard, index)
                {
                    eprintln!("it cannot be set aside: {error}");
                }
            }
        }
    }
    None
}

fn read<F: Files>(
    checkpoints: &mut Checkpoints<F>,
    config: &EngineConfig,
    voters: &[u64],
    index: u64,
) -> Result<Restored, Refused> {
    let mut restore = Restore::new(config.clone());
    let (mut failed, mut bytes) = (None, 0);
    let (of, note) = checkpoints.read(config.shard, index, &mut |chunk| {
        bytes += chunk.len() as u64;
        if failed.is_none() {
            failed = restore.chunk(chunk).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let engine = restore.finish()?;
    if engine.applied() != of.index {
        return Err(Refused::Index(engine.applied()));
    }
    let base = Base::of(of, note, voters).ok_or(Refused::Note)?;
    Ok(Restored { engine, base, bytes })
}
