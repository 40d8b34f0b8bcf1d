//! What the log needs from a disk, and three of them.
//!
//! [`FileDisk`] stands on a directory and writes through io_uring or a writer
//! thread; [`SimDisk`] stands in memory, obeys a seed, and tears, loses,
//! misdirects, rots, delays, fails and fills up. The log is generic over
//! [`Disk`] and cannot tell them apart. Any error of `write` or of a completed
//! write means the medium can no longer be trusted: the log stops for ever.

mod blocking;
mod buffer;
mod directory;
mod file;
mod files;
mod pages;
mod prepare;
mod sim;
mod sim_files;
pub(crate) mod sys;
mod uring;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use buffer::Buffer;
pub use directory::{Directory, make_dir};
pub use file::FileDisk;
pub use files::{DirFiles, Files};
pub use pages::{FilePages, PageFault, Pages};
pub use sim::{Fault, SimDisk, Tear};

use crate::scan::Position;

/// What was being done when the disk failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOp {
    /// Opening, listing or syncing the directory or the identity file.
    Directory,
    /// Opening a segment.
    Open,
    /// Reading a segment.
    Read,
    /// Creating or zero-filling a segment.
    Prepare,
    /// Writing a batch.
    Write,
    /// Making a write durable.
    Sync,
    /// Setting up the writer thread or the ring.
    Start,
}

/// A failed disk operation. A missing `errno` means a short transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub struct DiskError {
    /// What was being done.
    pub op: DiskOp,
    /// The system's error number.
    pub errno: Option<i32>,
}

impl DiskError {
    pub(crate) fn io(op: DiskOp, error: &std::io::Error) -> DiskError {
        DiskError { op, errno: error.raw_os_error() }
    }

    pub(crate) fn short(op: DiskOp) -> DiskError {
        DiskError { op, errno: None }
    }
}

impl std::fmt::Display for DiskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.errno {
            Some(errno) => {
                write!(f, "{:?} failed: {}", self.op, std::io::Error::from_raw_os_error(errno))
            }
            None => write!(f, "{:?} was short", self.op),
        }
    }
}

/// Room on the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// New segments can be prepared.
    Ok,
    /// Only what was reserved is left: take no new payments, finish the rest.
    Reserve,
}

/// A segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFile {
    /// Number from 1.
    pub id: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Consecutive bytes of a segment, in whole blocks, handed over while scanning.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The segment.
    pub segment: u64,
    /// Length of the whole segment in bytes.
    pub segment_bytes: u64,
    /// The bytes; zeros where the device could not read.
    pub bytes: &'a [u8],
    /// Offsets of blocks in this piece that the device could not read.
    pub unreadable: &'a [u64],
}

/// Called for each piece in order; stops the scan by breaking.
pub type VisitPiece<'v> = dyn FnMut(Piece<'_>) -> ControlFlow<()> + 'v;

/// The reading side of a disk.
pub trait Source {
    /// Directory for reports.
    fn dir(&self) -> PathBuf;
    /// The identity block, when one was stored.
    fn load_identity(&mut self) -> Result<Option<Vec<u8>>, DiskError>;
    /// The block that counts prepared segments, when one was stored. Read before
    /// the segments are listed, it never counts more than there are.
    fn load_prepared(&mut self) -> Result<Option<Vec<u8>>, DiskError>;
    /// The file that says where the log begins, when segments were released.
    fn load_released(&mut self) -> Result<Option<Vec<u8>>, DiskError>;
    /// All segment files in ascending order.
    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError>;
    /// Reads `segments` from `from` to the end, in order. A read error is not an
    /// end: the block is reported as unreadable.
    fn scan(
        &mut self,
        from: Position,
        segments: &[SegmentFile],
        visit: &mut VisitPiece<'_>,
    ) -> Result<(), DiskError>;
}

/// A write to the current segment. The buffer travels with it and comes back.
#[derive(Debug)]
pub struct Write {
    /// The buffer.
    pub buffer: Buffer,
    /// Where in the buffer the bytes start; a multiple of 4096.
    pub from: usize,
    /// Bytes to write; a multiple of 4096.
    pub bytes: usize,
    /// Where in the segment they go; a multiple of 4096.
    pub offset: u64,
}

/// A completed write.
#[derive(Debug)]
pub struct Written {
    /// The buffer, for the next batch.
    pub buffer: Buffer,
    /// Durable, or failed for ever.
    pub result: Result<(), DiskError>,
    /// Microseconds from start to durable.
    pub elapsed_us: u64,
}

/// How batches reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// io_uring.
    Uring,
    /// Writer thread.
    Blocking,
    /// Simulated.
    Sim,
}

/// Why something less than asked for is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fallback {
    /// The preferred backend could not start.
    #[error("io_uring and writer thread: the preferred one could not start ({0})")]
    Backend(DiskError),
    /// The file system has no direct I/O.
    #[error("the file system has no direct I/O: writing through the page cache")]
    Buffered,
    /// No real-time priority for the writer thread.
    #[error("no permission for real-time priority: log latency depends on CPU load")]
    NoPriority,
}

/// How a disk is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskFacts {
    /// The backend in use.
    pub backend: BackendKind,
    /// Whether writes bypass the page cache.
    pub direct: bool,
    /// Whether the writer has real-time priority.
    pub realtime: bool,
    /// The fallback that matters most, when there was one.
    pub fallback: Option<Fallback>,
    /// Prepared segments waiting.
    pub spares: usize,
}

/// A disk that one log writes to. Exactly one write is in flight at a time.
pub trait Disk: Source {
    /// How its segments are read at any place, by other threads too.
    type Pages: Pages;
    /// See [`Pages`].
    fn pages(&self) -> Self::Pages;
    /// How whole files beside the segments are kept, by other threads too.
    type Files: Files;
    /// See [`Files`].
    fn files(&self) -> Self::Files;
    /// Unpredictable bits, for the log's own id.
    fn random(&mut self) -> Result<u64, DiskError>;
    /// Stores the identity block durably.
    fn store_identity(&mut self, block: &[u8]) -> Result<(), DiskError>;
    /// Overwrites a range with zeros, durably.
    fn erase(&mut self, segment: u64, from: u64, to: u64) -> Result<(), DiskError>;
    /// Goes over to writing: `current` continues, `spares` are empty and follow,
    /// each filled up to the size of new ones where it is smaller.
    fn begin(
        &mut self,
        current: Option<SegmentFile>,
        spares: &[SegmentFile],
    ) -> Result<(), DiskError>;
    /// Makes the next prepared segment the current one. `None` when none is
    /// ready yet; the sleeper is woken when one is.
    fn next_segment(&mut self) -> Result<Option<SegmentFile>, DiskError>;
    /// A zeroed buffer of at least `bytes` for batches.
    fn buffer(&mut self, bytes: usize) -> Buffer {
        Buffer::new(bytes)
    }
    /// Told once, before the first write: the buffers that will be used.
    fn register(&mut self, _buffers: [&Buffer; 2]) {}
    /// Starts a write. Must not be called while one is in flight.
    fn write(&mut self, write: Write) -> Result<(), DiskError>;
    /// The completed write, without blocking.
    fn poll(&mut self) -> Option<Written>;
    /// Sleeps until a write completes or a segment becomes ready, at most
    /// `timeout_us` microseconds.
    fn wait(&mut self, timeout_us: u64);
    /// Why no segment will become ready any more, when that is so.
    fn failure(&self) -> Option<DiskError> {
        None
    }
    /// Room on the file system.
    fn space(&self) -> Space;
    /// Bytes free for anybody on the file system, as last seen; `None` when
    /// this disk has none.
    fn free_bytes(&self) -> Option<u64>;
    /// How the disk is set up.
    fn facts(&self) -> DiskFacts;
}

/// The file of a segment in `dir`.
pub fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:016x}.wal"))
}
