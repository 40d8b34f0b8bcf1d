//! What the writer of a log decides: where, whose, how big.
//!
//! Never reads a file or an environment variable; a configuration is refused
//! as a whole before anything is touched. Tested through `tests/files.rs`.

use std::path::PathBuf;

use crate::error::ConfigFault;
use crate::format::{BATCH_HEADER_BYTES, BLOCK_BYTES, FRAME_HEADER_BYTES};

/// How batches reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The backend measured best under load, else the other one; which and why
    /// is told in [`crate::Recovery`] and [`crate::LogStats`].
    #[default]
    Auto,
    /// io_uring on the worker's own thread; refused when the kernel has none.
    Uring,
    /// A writer thread with blocking direct writes.
    Blocking,
}

/// Configuration of one worker's log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Directory of the log; created when missing.
    pub dir: PathBuf,
    /// How batches reach the disk.
    pub backend: Backend,
    /// Cluster the log belongs to; another cluster's log is refused.
    pub cluster: u64,
    /// Worker the log belongs to; another worker's log is refused.
    pub worker: u16,
    /// Size of a segment file in bytes, a multiple of 4096.
    pub segment_bytes: u64,
    /// Largest batch in bytes including its header, a multiple of 4096.
    pub batch_max_bytes: usize,
    /// Bytes kept back on the file system for the time when it is full.
    pub reserve_bytes: u64,
    /// Quiet time in microseconds after which [`crate::Log::idle`] seals.
    pub idle_seal_us: u64,
}

impl LogConfig {
    /// A configuration with the default sizes: 64 MiB segments, 1 MiB batches,
    /// 128 MiB reserve, a seal after 2 ms of quiet.
    pub fn new(dir: impl Into<PathBuf>, cluster: u64, worker: u16) -> LogConfig {
        LogConfig {
            dir: dir.into(),
            backend: Backend::Auto,
            cluster,
            worker,
            segment_bytes: 64 << 20,
            batch_max_bytes: 1 << 20,
            reserve_bytes: 128 << 20,
            idle_seal_us: 2_000,
        }
    }

    /// The part of the configuration that the log needs on any disk.
    pub fn settings(&self) -> Settings {
        Settings {
            cluster: self.cluster,
            worker: self.worker,
            segment_bytes: self.segment_bytes,
            batch_max_bytes: self.batch_max_bytes,
            idle_seal_us: self.idle_seal_us,
        }
    }
}

/// What the log itself needs to know, whatever disk it stands on. Fields as in
/// [`LogConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Cluster the log belongs to.
    pub cluster: u64,
    /// Worker the log belongs to.
    pub worker: u16,
    /// Size of a segment file in bytes.
    pub segment_bytes: u64,
    /// Largest batch in bytes including its header.
    pub batch_max_bytes: usize,
    /// Quiet time in microseconds before a seal.
    pub idle_seal_us: u64,
}

/// Largest batch that can be configured, in bytes.
pub const BATCH_BYTES_LIMIT: usize = 16 << 20;
/// Smallest batch that can be configured, in bytes.
pub const BATCH_BYTES_MIN: usize = BLOCK_BYTES;

const _: () = assert!(BATCH_BYTES_MIN > BATCH_HEADER_BYTES + FRAME_HEADER_BYTES);
const _: () = assert!(BATCH_BYTES_LIMIT < u32::MAX as usize);

impl Settings {
    /// Checks the relations between the sizes.
    pub(crate) fn check(&self) -> Result<(), ConfigFault> {
        let block = BLOCK_BYTES as u64;
        let batch = self.batch_max_bytes;
        if !batch.is_multiple_of(BLOCK_BYTES)
            || !(BATCH_BYTES_MIN..=BATCH_BYTES_LIMIT).contains(&batch)
        {
            return Err(ConfigFault::BatchBytes);
        }
        if !self.segment_bytes.is_multiple_of(block)
            || self.segment_bytes < batch as u64 + block
            || self.segment_bytes > 1 << 40
        {
            return Err(ConfigFault::SegmentBytes);
        }
        Ok(())
    }
}
