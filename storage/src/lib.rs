//! The payswitch log: frames of many shards in one sequence of segments, written
//! in batches, one in flight, each durable before the next is started.
//!
//! Bytes in, position out: knows nothing of payments or consensus. `docs/LOG.md`
//! is the format; the simulated disk (`disk::sim`) drives the same code through
//! torn, lost, misdirected and rotten writes.
#![deny(unsafe_code)]

pub mod disk;
mod error;
mod format;
mod log;
mod notify;
mod offline;
mod recovery;

pub use disk::Backend;
pub use error::{Damage, DamageKind, LogError, ReplayError};
pub use format::{Frame, FrameKind, chain_next};
pub use log::{Log, LogConfig, LogStats, Space};
pub use notify::Notify;
pub use offline::{FrameAt, VerifyReport, read, verify};
pub use recovery::{Recovery, TornTail};

/// Ordinal of a frame in its log, from 1.
pub type Lsn = u64;
