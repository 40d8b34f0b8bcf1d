//! Whole files beside the segments: written once, synced, named, read, removed.
//!
//! For checkpoints: none of this is on the worker's path. A file is durable
//! after [`Files::sync`], its name after [`Files::sync_dir`]. Tested through
//! `tests/checkpoint.rs`, on directories and on the simulated disk.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{DiskError, DiskOp, sys};

/// Bytes after which the kernel is asked to begin writing them out. Left alone it
/// collects a whole file and writes it at the sync, and the log waits behind it.
const WRITE_OUT_BYTES: u64 = 1 << 20;

/// The files of a log's directory.
pub trait Files: Clone + Send {
    /// Directory for reports.
    fn dir(&self) -> PathBuf;
    /// All names.
    fn list(&mut self) -> Result<Vec<String>, DiskError>;
    /// Starts a file, empty even if it existed.
    fn create(&mut self, name: &str) -> Result<(), DiskError>;
    /// Adds to the file started last.
    fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError>;
    /// Makes the content of the file started last durable.
    fn sync(&mut self) -> Result<(), DiskError>;
    /// Gives a file another name, replacing what had it.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Removes a file; one that is not there is removed.
    fn remove(&mut self, name: &str) -> Result<(), DiskError>;
    /// Makes names and removals durable.
    fn sync_dir(&mut self) -> Result<(), DiskError>;
    /// Fills `buffer` from `offset`; returns the bytes read, fewer only at the
    /// end. `None` when there is no such file.
    fn read(
        &mut self,
        name: &str,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, DiskError>;
}

/// Files in a directory. A clone has none open.
#[derive(Debug)]
pub struct DirFiles {
    dir: PathBuf,
    writing: Option<File>,
    /// Bytes of the file being written.
    written: u64,
    /// How many of them the kernel was asked to write out.
    written_out: u64,
    reading: Option<(String, File)>,
}

impl DirFiles {
    pub(crate) fn new(dir: PathBuf) -> DirFiles {
        DirFiles { dir, writing: None, written: 0, written_out: 0, reading: None }
    }

    fn started(&mut self) -> io::Result<&mut File> {
        self.writing.as_mut().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Clone for DirFiles {
    fn clone(&self) -> DirFiles {
        DirFiles::new(self.dir.clone())
    }
}

fn failed(op: DiskOp) -> impl Fn(io::Error) -> DiskError {
    move |error| DiskError::io(op, &error)
}

impl Files for DirFiles {
    fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    fn list(&mut self) -> Result<Vec<String>, DiskError> {
        let names = || -> io::Result<Vec<String>> {
            let entries = std::fs::read_dir(&self.dir)?;
            let name = |entry: io::Result<std::fs::DirEntry>| {
                entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
            };
            entries.map(name).collect()
        };
        names().map_err(failed(DiskOp::Directory))
    }

    fn create(&mut self, name: &str) -> Result<(), DiskError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let file = options.open(self.dir.join(name)).map_err(failed(DiskOp::Open))?;
        (self.writing, self.written, self.written_out) = (Some(file), 0, 0);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.started().and_then(|file| file.write_all(bytes)).map_err(failed(DiskOp::Write))?;
        self.written += bytes.len() as u64;
        let waiting = self.written - self.written_out;
        if waiting >= WRITE_OUT_BYTES
            && let Some(file) = &self.writing
        {
            // A favour: what goes wrong with the writing is told by the sync.
            sys::write_out(file, self.written_out, waiting);
            self.written_out = self.written;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.started().and_then(|file| file.sync_all()).map_err(failed(DiskOp::Sync))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        std::fs::rename(self.dir.join(from), self.dir.join(to)).map_err(failed(DiskOp::Directory))
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        match std::fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map_err(failed(DiskOp::Directory)),
        }
    }

    fn sync_dir(&mut self) -> Result<(), DiskError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed(DiskOp::Sync))
    }

    fn read(
        &mut self,
        name: &str,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, DiskError> {
        let file = match self.reading.take() {
            // The beginning is read anew: the name may stand for another file now.
            Some((known, file)) if known == name && offset > 0 => file,
            _ => match File::open(self.dir.join(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(DiskError::io(DiskOp::Open, &error)),
            },
        };
        let (_, file) = self.reading.insert((name.to_owned(), file));
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(DiskError::io(DiskOp::Read, &error)),
            }
        }
        Ok(Some(filled))
    }
}
