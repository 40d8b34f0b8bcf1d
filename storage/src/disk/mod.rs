//! The disk behind a small trait, with a fault point at every call.
//!
//! A failed write means that nothing is known about the bytes any more: the log
//! declares itself failed and never retries. Segments are created whole and
//! filled with zeros before they are used: appending to allocated blocks is
//! twice as fast as growing a file, and needs no metadata write per sync.

use std::io;

pub mod aligned;
pub mod blocking;
pub mod file;
pub mod sim;
pub mod uring;

use aligned::AlignedBuf;

/// Which way the log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// What measures better on common kernels; see docs/LOG.md.
    #[default]
    Auto,
    /// io_uring, direct I/O, one durable write per batch.
    Uring,
    /// A thread with blocking direct durable writes.
    Blocking,
}

/// A segment as the disk lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentFile {
    /// Number, from 0.
    pub segment: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Segments in order, each with its bytes or the error of reading it.
pub type ReadAhead = Box<dyn Iterator<Item = (u64, io::Result<AlignedBuf>)>>;

/// What the log needs of a disk. One write is in flight at a time.
pub trait Disk {
    /// Segments in rising order of number.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    fn list(&mut self) -> io::Result<Vec<SegmentFile>>;

    /// Reads whole segments in the given order, ahead of the caller. Blocks that
    /// cannot be read come back as bytes that no checksum accepts.
    fn read_ahead(&mut self, segments: Vec<SegmentFile>) -> ReadAhead;

    /// Asks for a segment of zeros; returns at once.
    fn prepare(&mut self, segment: u64);

    /// Whether the segment can be written. `Ok(false)`: not yet, or the disk is
    /// full and it is tried again.
    ///
    /// # Errors
    /// When it can never be had.
    fn ready(&mut self, segment: u64) -> io::Result<bool>;

    /// Starts a durable write of `len` bytes of `buffer`.
    fn start(&mut self, segment: u64, offset: u64, buffer: AlignedBuf, len: usize);

    /// The end of the write in flight, with its buffer.
    fn poll(&mut self) -> Option<(AlignedBuf, io::Result<()>)>;

    /// Overwrites with zeros, durably; used once at recovery behind a torn tail.
    ///
    /// # Errors
    /// When the write fails.
    fn zero(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<()>;

    /// Bytes free for new segments.
    ///
    /// # Errors
    /// When the system does not tell.
    fn free_bytes(&mut self) -> io::Result<u64>;

    /// How it writes, for people.
    fn describe(&self) -> String;
}
