//! A file that only grows, written in batches and carried to the disk evenly.
//!
//! Left alone the kernel keeps what was written for half a minute and then writes all of it
//! at once: at a hundred thousand payments a second the log of a switch on the same disk stood
//! still behind that for a tenth of a second. Asking for it may take a while: a thread of the
//! process does, for all files. Knows nothing of records. Tested beside the code.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, fadvise};

use crate::exit::Failure;

/// The kernel is asked to write out so much at a time, bytes.
const PIECE: u64 = 256 << 10;
/// Pieces that may wait to be asked for; more are left to the kernel.
const WAITING_MAX: usize = 64;

/// Of which file, and where it begins.
type Piece = (Arc<File>, u64);

/// See the module.
pub(crate) struct GrowingFile {
    file: Arc<File>,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Bytes of the file.
    written: u64,
    /// How many of them the kernel was asked to write out: whole pieces.
    written_out: u64,
}

impl GrowingFile {
    /// Goes on at the end of `file`, with memory for `room` bytes between two writes.
    ///
    /// # Errors
    /// It has no end to go on at.
    pub(crate) fn new(mut file: File, path: &Path, room: usize) -> std::io::Result<Self> {
        let written = file.seek(SeekFrom::End(0))?;
        let written_out = written / PIECE * PIECE;
        Ok(Self {
            file: Arc::new(file),
            path: path.to_path_buf(),
            buffer: Vec::with_capacity(room),
            written,
            written_out,
        })
    }

    /// What the next [`Self::flush`] writes.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Writes what was taken.
    ///
    /// # Errors
    /// It cannot be written; it is gone then.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = (&*self.file).write_all(&self.buffer);
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        written.map_err(|error| {
            Failure::environment(format_args!("cannot write {}: {error}", self.path.display()))
        })?;
        self.write_out();
        Ok(())
    }

    fn write_out(&mut self) {
        while self.written - self.written_out >= PIECE {
            let piece = (Arc::clone(&self.file), self.written_out);
            // A favour: what is not asked for is written later.
            drop(pieces().map(|pieces| pieces.try_send(piece)));
            self.written_out += PIECE;
        }
    }
}

/// Where pieces are handed in. `None` when no thread can be had.
fn pieces() -> Option<&'static SyncSender<Piece>> {
    static PIECES: OnceLock<Option<SyncSender<Piece>>> = OnceLock::new();
    let start = || {
        let (sender, receiver) = sync_channel::<Piece>(WAITING_MAX);
        let run = move || {
            // The advice that a range will not be needed begins its writing, and forgets of it
            // what is on the disk already (posix_fadvise(2)): none of what was just written.
            while let Ok((file, offset)) = receiver.recv() {
                let _ = fadvise(&*file, offset, NonZeroU64::new(PIECE), Advice::DontNeed);
            }
        };
        std::thread::Builder::new().name("write-out".into()).spawn(run).ok().map(|_| sender)
    };
    PIECES.get_or_init(start).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_in_the_file_once_and_each_piece_is_written_out_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("growing");
        std::fs::write(&path, vec![1; 300 << 10]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let mut growing = GrowingFile::new(file, &path, 16).unwrap();
        assert_eq!((growing.written, growing.written_out), (300 << 10, PIECE));
        growing.flush().unwrap();
        for (bytes, written_out) in [(200 << 10, 1), (12 << 10, 2), (600 << 10, 4)] {
            growing.buffer().resize(bytes, 2);
            growing.flush().unwrap();
            assert_eq!(growing.written_out, PIECE * written_out);
        }
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content.len() as u64, growing.written);
        assert!(content[..300 << 10].iter().all(|byte| *byte == 1));
        assert!(content[300 << 10..].iter().all(|byte| *byte == 2));
    }

    #[test]
    fn a_write_that_fails_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("read-only");
        std::fs::write(&path, "").unwrap();
        let mut growing = GrowingFile::new(File::open(&path).unwrap(), &path, 16).unwrap();
        growing.buffer().push(1);
        let error = growing.flush().err().unwrap().message;
        assert!(error.contains("read-only"), "{error}");
    }
}
