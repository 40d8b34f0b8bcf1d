//! Random reads of segments, beside the writer and off its thread.
//!
//! The caller asks for durable blocks only; those are never written again, so
//! that no lock is needed. A segment that was deleted meanwhile is "gone", not
//! an error. Tested through `tests/reader.rs`.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::directory::{SegmentReader, is_bad_block};
use super::{DiskError, DiskOp, segment_path};
use crate::scan::Position;

/// Why a page could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFault {
    /// The segment does not exist (any more).
    Gone,
    /// The device cannot read it.
    Unreadable,
    /// The segment could not be opened, or not be read for a reason of the process.
    Failed(DiskError),
}

/// The segments of a log, for reading at any place.
pub trait Pages: Clone + Send {
    /// Directory for reports.
    fn dir(&self) -> PathBuf;
    /// Fills `buffer` from `at`; offset, address and length are multiples of
    /// 4096. Returns the bytes read: fewer only at the end of the segment.
    fn read(&mut self, at: Position, buffer: &mut [u8]) -> Result<usize, PageFault>;
}

/// The segments in a directory. Opens them by itself; a clone has none open.
#[derive(Debug)]
pub struct FilePages {
    dir: PathBuf,
    open: Option<(u64, SegmentReader)>,
}

impl FilePages {
    pub(super) fn new(dir: PathBuf) -> FilePages {
        FilePages { dir, open: None }
    }
}

impl Clone for FilePages {
    fn clone(&self) -> FilePages {
        FilePages::new(self.dir.clone())
    }
}

impl Pages for FilePages {
    fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    fn read(&mut self, at: Position, buffer: &mut [u8]) -> Result<usize, PageFault> {
        let mut file = match self.open.take() {
            Some((segment, file)) if segment == at.segment => file,
            _ => match SegmentReader::open(segment_path(&self.dir, at.segment)) {
                Ok(file) => file,
                Err(error) => return Err(fault(DiskOp::Open, &error)),
            },
        };
        let read = file.read(buffer, at.offset).map_err(|error| fault(DiskOp::Read, &error));
        self.open = Some((at.segment, file));
        read
    }
}

fn fault(op: DiskOp, error: &std::io::Error) -> PageFault {
    match error.kind() {
        ErrorKind::NotFound => PageFault::Gone,
        _ if op == DiskOp::Read && is_bad_block(error) => PageFault::Unreadable,
        _ => PageFault::Failed(DiskError::io(op, error)),
    }
}
