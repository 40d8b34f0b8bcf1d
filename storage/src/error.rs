//! What can be wrong with a log, and where.

use std::path::PathBuf;

/// A damaged place in the log. Never repaired silently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} at offset {offset} (batch {batch}): {kind}", file.display())]
pub struct Damage {
    /// The segment file.
    pub file: PathBuf,
    /// Byte offset in the file.
    pub offset: u64,
    /// Sequence number of the batch that should be there.
    pub batch: u64,
    /// What is wrong.
    pub kind: DamageKind,
}

/// Kinds of damage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamageKind {
    /// A batch cannot be read although later ones exist: it was acknowledged.
    #[error("damaged, and batch {later} was written after it")]
    BeforeLater {
        /// Sequence of the later batch.
        later: u64,
    },
    /// A frame's payload does not continue its shard's chain.
    #[error("frame {index} of shard {shard} breaks the shard's hash chain")]
    Chain {
        /// Shard.
        shard: u16,
        /// Index of the frame.
        index: u64,
    },
    /// A segment is missing.
    #[error("segment {segment} is missing")]
    MissingSegment {
        /// Its number.
        segment: u64,
    },
    /// A segment's file has the wrong length.
    #[error("the file has {found} bytes instead of {expected}")]
    Length {
        /// Bytes found.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// A format version that this program does not know.
    #[error("format version {0} is not known here")]
    Version(u16),
    /// The segment belongs to another cluster or worker.
    #[error("it belongs to cluster {cluster:016x} worker {worker}")]
    Foreign {
        /// Cluster found.
        cluster: u64,
        /// Worker found.
        worker: u16,
    },
    /// The segment header does not continue the segment before.
    #[error("the segment does not continue the one before")]
    Discontinuous,
}

/// Why the log cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process has it open.
    #[error("{} is open in another process", .0.display())]
    Locked(PathBuf),
    /// The log is damaged.
    #[error("the log is damaged: {0}; restore this site from a peer or a backup")]
    Damaged(#[from] Damage),
    /// The operating system refuses.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A write or sync failed: the log is unusable from here on, and nothing
    /// that was not reported durable before may be relied on.
    #[error("a log write failed: {0}; nothing more is written")]
    Failed(String),
    /// The replay callback refused a frame.
    #[error("{0}")]
    Replay(#[from] ReplayError),
    /// The frame is larger than a batch.
    #[error("a frame of {0} bytes does not fit into a batch")]
    FrameTooLarge(usize),
    /// The open batch has no room; submit it first.
    #[error("the open batch is full")]
    BatchFull,
    /// A setting is out of range.
    #[error("{0}")]
    Config(&'static str),
}

/// Why a frame could not be replayed, as the caller puts it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReplayError(String);

impl ReplayError {
    /// A reason for people.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
