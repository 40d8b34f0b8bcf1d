//! The payswitch log: bytes in, position out, durable or refused.
//!
//! One [`Log`] belongs to one worker thread. The worker copies frames into the
//! open batch, submits it, sleeps on a [`Notify`], and learns with
//! [`Log::poll`] up to which [`Lsn`] everything is durable. Exactly one batch is
//! in flight; the next one fills meanwhile. Format, recovery and failure rules
//! are written down in `docs/LOG.md`.
//!
//! This crate never knows what a payload means: no payments, no consensus, no
//! network. Unsafe code lives in `disk/sys.rs` (system calls without a safe
//! wrapper) and `disk/uring.rs` (the ring) only.
//!
//! Tested by unit tests beside the code, by `tests/files.rs` on real files with
//! both backends, by `tests/faults.rs` (a seeded fault matrix on the simulated
//! disk), by `tests/reader.rs`,
//! `tests/checkpoint.rs` and `tests/release.rs`, and by `tests/alloc.rs` (no allocation per append).
#![deny(unsafe_code)]

mod chain;
mod checkpoint;
mod config;
pub mod disk;
mod error;
mod format;
mod frame;
mod log;
mod notify;
mod places;
mod reader;
mod release;
mod scan;
mod verify;

pub use chain::CHAIN_HISTORY;
pub use checkpoint::{
    CHECKPOINT_CHUNK_MAX, CHECKPOINT_NOTE_BYTES, Checkpoint, CheckpointError, CheckpointFault,
    CheckpointNote, CheckpointReader, CheckpointWriter, Checkpoints,
};
pub use config::{BATCH_BYTES_LIMIT, BATCH_BYTES_MIN, Backend, LogConfig, Settings};
pub use disk::{BackendKind, DiskError, DiskFacts, DiskOp, Fallback, FileDisk, SimDisk, Space};
pub use error::{ConfigFault, Damage, DamageCause, LogError, ReplayError, VerifyError};
pub use format::{BATCH_HEADER_BYTES, BLOCK_BYTES, FORMAT_VERSION, FRAME_HEADER_BYTES};
pub use frame::{CHAIN_START, Frame, FrameKind, Lsn, chain_next};
pub use log::{Closed, Log, LogRelease, LogStats, Recovery, Replay};
pub use notify::Notify;
pub use places::{NotInLog, Route};
pub use reader::{BlockReadError, BlockReader};
pub use release::Release;
pub use scan::{Cut, Position, ShardEnd};
pub use verify::{FrameAt, VerifyReport, checkpoints, read, verify};
