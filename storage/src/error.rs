//! Errors by what the caller can do about them.
//!
//! Three kinds matter: the configuration is wrong (fix it), the log is damaged
//! or foreign (an operator decides; never repaired silently), the disk failed
//! (the log is finished; nothing later is ever reported durable).

use std::error::Error;
use std::path::PathBuf;

use thiserror::Error;

use crate::disk::DiskError;
use crate::frame::Lsn;

/// A size in the configuration that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConfigFault {
    /// Batch size outside its bounds.
    #[error("batch_max_bytes must be a multiple of 4096 between 4 KiB and 16 MiB")]
    BatchBytes,
    /// Segment size outside its bounds.
    #[error("segment_bytes must be a multiple of 4096 and hold at least one batch and 4 KiB")]
    SegmentBytes,
}

/// The replaying side could not use a frame.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ReplayError(#[source] Box<dyn Error + Send + Sync>);

impl ReplayError {
    /// Wraps the cause.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> ReplayError {
        ReplayError(cause.into())
    }
}

/// Why a log is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DamageCause {
    /// A segment header that does not check out although later data exists.
    #[error("segment header does not match its checksum")]
    SegmentHeader,
    /// A batch header that does not check out although later data exists.
    #[error("batch header does not match its checksum")]
    BatchHeader,
    /// A batch body that does not check out although later data exists.
    #[error("batch content does not match its checksum")]
    BatchBody,
    /// The padding behind a batch holds something else than zeros.
    #[error("padding is not zero")]
    Padding,
    /// A frame inside a valid batch that cannot be decoded.
    #[error("record cannot be decoded")]
    Record,
    /// A block whose chain value does not follow from its predecessor.
    #[error("hash chain of shard {shard} is broken at index {index}")]
    Chain {
        /// Shard of the block.
        shard: u16,
        /// Index of the block.
        index: u64,
    },
    /// A block whose predecessor is not in the log.
    #[error("shard {shard} continues at index {index}, whose predecessor is unknown")]
    IndexGap {
        /// Shard of the block.
        shard: u16,
        /// Index of the block.
        index: u64,
    },
    /// Valid data that belongs elsewhere or to another time.
    #[error("a valid write stands in the wrong place or order")]
    Misplaced,
    /// Data where nothing was ever written.
    #[error("data where nothing was written")]
    UnexpectedData,
    /// The device could not read an acknowledged block.
    #[error("device cannot read the block")]
    Unreadable,
    /// A segment file is missing.
    #[error("segment file is missing")]
    MissingSegment,
    /// A segment file is shorter or longer than it says.
    #[error("segment file has the wrong length")]
    SegmentLength,
    /// The identity file is missing although segments hold data.
    #[error("identity file is missing")]
    MissingIdentity,
    /// The identity file, or the file that counts segments, cannot be decoded.
    #[error("file does not match its checksum")]
    Identity,
    /// Written by another cluster, worker or log.
    #[error("belongs to another cluster, worker or log")]
    Foreign,
    /// Written in a format version this program does not know.
    #[error("unknown format version {0}")]
    UnknownVersion(u16),
}

/// Where a log is damaged, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Byte offset in the file.
    pub offset: u64,
    /// Sequence number of the batch expected there.
    pub batch: u64,
    /// The record at fault, when it can be told.
    pub record: Option<Lsn>,
    /// What is wrong there.
    pub cause: DamageCause,
    /// A batch that was provably durable, at or after the damaged one.
    pub durable: Option<u64>,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} offset {} batch {}", self.file.display(), self.offset, self.batch)?;
        if let Some(record) = self.record {
            write!(f, " record {record}")?;
        }
        write!(f, ": {}", self.cause)?;
        match self.durable {
            Some(batch) => write!(f, " (batch {batch} was durable)"),
            None => Ok(()),
        }
    }
}

/// Why a log operation failed.
#[derive(Debug, Error)]
pub enum LogError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigFault),
    /// Another process has the log open.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// The log is damaged or foreign: not opened, not changed.
    #[error("log refused: {0}")]
    Damage(#[from] Box<Damage>),
    /// The replaying side refused a frame.
    #[error("record {lsn} cannot be replayed: {source}")]
    Replay {
        /// Ordinal of the frame.
        lsn: Lsn,
        /// What the replaying side said.
        source: ReplayError,
    },
    /// The replaying side refused the log as a whole: not opened, not changed.
    #[error("log refused: {0}")]
    Refused(ReplayError),
    /// The disk failed while opening or closing.
    #[error(transparent)]
    Disk(DiskError),
    /// A write failed. The log is finished: this error comes for ever.
    #[error("log stopped: {0}")]
    Poisoned(DiskError),
    /// The frame does not fit into the open batch; submit first.
    #[error("open batch is full")]
    BatchFull,
    /// The frame can never fit into a batch.
    #[error("payload exceeds the largest frame of {max} bytes")]
    PayloadTooLarge {
        /// Largest payload in bytes.
        max: usize,
    },
    /// A block that recovery would refuse; a fault of the caller.
    #[error("block {index} of shard {shard} has no predecessor in the log")]
    IndexGap {
        /// Shard of the block.
        shard: u16,
        /// Index of the block.
        index: u64,
    },
    /// No segment became ready in time while closing (disk full).
    #[error("no segment became ready in time")]
    NoSegment,
}

/// Why an offline check failed.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The log is damaged.
    #[error(transparent)]
    Damage(#[from] Box<Damage>),
    /// The files cannot be read.
    #[error(transparent)]
    Disk(DiskError),
    /// The directory holds no log.
    #[error("{} holds no log", .0.display())]
    NoLog(PathBuf),
}
