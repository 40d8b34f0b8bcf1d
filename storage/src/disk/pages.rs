//! Random reads of segments, beside the writer and off its thread.
//!
//! The caller asks for durable blocks only; those are never written again, so
//! that no lock is needed. A segment that was deleted meanwhile is "gone", not
//! an error. Tested through `tests/reader.rs`.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::directory::open_for_reading;
use super::{DiskError, DiskOp, segment_path};
use crate::scan::Position;

/// Why a page could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFault {
    /// The segment does not exist (any more).
    Gone,
    /// The device cannot read it.
    Unreadable,
    /// The segment could not be opened.
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
    open: Option<(u64, File)>,
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
        let file = match self.open.take() {
            Some((segment, file)) if segment == at.segment => file,
            _ => match open_for_reading(&segment_path(&self.dir, at.segment)) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(PageFault::Gone),
                Err(error) => return Err(PageFault::Failed(DiskError::io(DiskOp::Open, &error))),
            },
        };
        let (_, file) = self.open.insert((at.segment, file));
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], at.offset + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(PageFault::Unreadable),
            }
        }
        Ok(filled)
    }
}
