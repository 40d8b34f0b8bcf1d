//! A log directory on a real file system.
//!
//! Holds the lock, the current segment and the background thread, and writes
//! through one of two backends. Tested by `tests/files.rs` with both.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::blocking::BlockingWriter;
use super::directory::{Directory, make_dir};
use super::files::DirFiles;
use super::pages::FilePages;
use super::prepare::{Plan, Prepared, Preparer, fill_up, open_for_writing};
use super::uring::UringWriter;
use super::{
    BackendKind, Buffer, Disk, DiskError, DiskFacts, DiskOp, Fallback, SegmentFile, Source, Space,
    VisitPiece, Write, Written, segment_path, sys,
};
use crate::config::{Backend, LogConfig};
use crate::error::LogError;
use crate::format::BLOCK_BYTES;
use crate::notify::Notify;
use crate::scan::Position;

/// A killed process keeps the lock until its last write has ended in the kernel.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

#[derive(Debug)]
enum Writer {
    Uring(Box<UringWriter>),
    Blocking(BlockingWriter),
}

/// A log directory, locked for this process.
#[derive(Debug)]
pub struct FileDisk {
    // Order matters: the writer ends before the lock is released.
    writer: Writer,
    preparer: Option<Preparer>,
    directory: Directory,
    notify: Notify,
    current: Option<Arc<File>>,
    /// Empty segments that an earlier run prepared.
    existing: VecDeque<SegmentFile>,
    segment_bytes: u64,
    reserve_bytes: u64,
    direct: bool,
    fallback: Option<Fallback>,
    _lock: File,
}

impl FileDisk {
    /// Creates the directory when missing and locks it. `notify` is woken when
    /// a write completes and when a segment becomes ready.
    pub fn open(config: &LogConfig, notify: Notify) -> Result<FileDisk, LogError> {
        let failed =
            |error: std::io::Error| LogError::Disk(DiskError::io(DiskOp::Directory, &error));
        make_dir(&config.dir).map_err(failed)?;
        let lock = lock(config)?;
        let directory = Directory::new(&config.dir);
        let direct = remove_leftovers_and_probe(&config.dir).map_err(failed)?;
        let (writer, fallback) =
            start_writer(config.backend, &notify, &lock).map_err(LogError::Disk)?;
        let unprivileged = matches!(&writer, Writer::Blocking(thread) if !thread.realtime());
        let fallback = fallback
            .or((!direct).then_some(Fallback::Buffered))
            .or(unprivileged.then_some(Fallback::NoPriority));
        Ok(FileDisk {
            writer,
            preparer: None,
            directory,
            notify,
            current: None,
            existing: VecDeque::new(),
            segment_bytes: config.segment_bytes,
            reserve_bytes: config.reserve_bytes,
            direct,
            fallback,
            _lock: lock,
        })
    }

    /// Spares of an earlier run that are smaller than segments are to be now (the
    /// configured size was raised, or the file system cut them short) would not hold a
    /// batch as large as it may be.
    fn fill_up_spares(&mut self) -> Result<(), DiskError> {
        for spare in self.existing.iter_mut().filter(|spare| spare.bytes < self.segment_bytes) {
            let path = segment_path(self.directory.path(), spare.id);
            spare.bytes = fill_up(&path, spare.bytes, self.segment_bytes, self.direct)
                .map_err(|error| DiskError::io(DiskOp::Prepare, &error))?;
        }
        Ok(())
    }

    fn open_segment(&self, segment: u64) -> Result<File, DiskError> {
        open_for_writing(&segment_path(self.directory.path(), segment), self.direct)
            .map_err(|error| DiskError::io(DiskOp::Open, &error))
    }
}

fn lock(config: &LogConfig) -> Result<File, LogError> {
    let failed = |error: std::io::Error| LogError::Disk(DiskError::io(DiskOp::Directory, &error));
    let path = config.dir.join("LOCK");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    Err(LogError::Locked(config.dir.clone()))
}

/// Removes half-prepared files of an earlier run and tries direct I/O.
fn remove_leftovers_and_probe(dir: &std::path::Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            std::fs::remove_file(path)?;
        }
    }
    let path = dir.join("probe.tmp");
    let opened = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let direct = match opened {
        Ok(file) => match file.write_at(&Buffer::new(BLOCK_BYTES), 0) {
            Ok(_) => true,
            Err(error) => error.raw_os_error() != Some(libc::EINVAL),
        },
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => true,
        Err(error) => return Err(error),
    };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(direct),
    }
}

/// The writer thread is the better one when the cores are busy; the ring steps
/// in when no thread can be had, and the other way round.
fn start_writer(
    backend: Backend,
    notify: &Notify,
    lock: &File,
) -> Result<(Writer, Option<Fallback>), DiskError> {
    let ring = || UringWriter::start(notify, lock).map(|ring| Writer::Uring(Box::new(ring)));
    let thread = || BlockingWriter::start(notify.clone()).map(Writer::Blocking);
    match backend {
        Backend::Uring => Ok((ring()?, None)),
        Backend::Blocking => Ok((thread()?, None)),
        Backend::Auto => match thread() {
            Ok(writer) => Ok((writer, None)),
            Err(error) => Ok((ring()?, Some(Fallback::Backend(error)))),
        },
    }
}

impl Source for FileDisk {
    fn dir(&self) -> PathBuf {
        self.directory.dir()
    }

    fn load_identity(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.directory.load_identity()
    }

    fn load_prepared(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.directory.load_prepared()
    }

    fn load_released(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.directory.load_released()
    }

    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        self.directory.segments()
    }

    fn scan(
        &mut self,
        from: Position,
        segments: &[SegmentFile],
        visit: &mut VisitPiece<'_>,
    ) -> Result<(), DiskError> {
        self.directory.scan(from, segments, visit)
    }
}

impl Disk for FileDisk {
    type Pages = FilePages;
    type Files = DirFiles;

    fn files(&self) -> DirFiles {
        DirFiles::new(self.directory.dir())
    }

    fn pages(&self) -> FilePages {
        FilePages::new(self.directory.dir())
    }

    fn random(&mut self) -> Result<u64, DiskError> {
        let mut bytes = [0; 8];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(|error| DiskError::io(DiskOp::Start, &error))?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn store_identity(&mut self, block: &[u8]) -> Result<(), DiskError> {
        self.directory
            .store_identity(block)
            .map_err(|error| DiskError::io(DiskOp::Directory, &error))
    }

    fn erase(&mut self, segment: u64, from: u64, to: u64) -> Result<(), DiskError> {
        let file = self.open_segment(segment)?;
        let zeros = Buffer::new(BLOCK_BYTES * 64);
        let mut at = from;
        while at < to {
            let part = (to - at).min(zeros.len() as u64) as usize;
            file.write_all_at(&zeros[..part], at)
                .map_err(|error| DiskError::io(DiskOp::Write, &error))?;
            at += part as u64;
        }
        Ok(())
    }

    fn begin(
        &mut self,
        current: Option<SegmentFile>,
        spares: &[SegmentFile],
    ) -> Result<(), DiskError> {
        if let Some(segment) = current {
            let file = self.open_segment(segment.id)?;
            // What was just read may have been in a cache only: never decide on
            // data that is not durable.
            file.sync_all().map_err(|error| DiskError::io(DiskOp::Sync, &error))?;
            self.current = Some(Arc::new(file));
        }
        self.directory.sync().map_err(|error| DiskError::io(DiskOp::Sync, &error))?;
        self.existing = spares.iter().copied().collect();
        self.fill_up_spares()?;
        let last = spares.last().or(current.as_ref()).map_or(0, |segment| segment.id);
        let plan = Plan {
            dir: self.directory.dir(),
            segment_bytes: self.segment_bytes,
            reserve_bytes: self.reserve_bytes,
            direct: self.direct,
            next_id: last + 1,
            existing: spares.len(),
            allocate: sys::allocate,
        };
        self.preparer = Some(Preparer::start(plan, self.notify.clone())?);
        Ok(())
    }

    fn next_segment(&mut self) -> Result<Option<SegmentFile>, DiskError> {
        let Some(preparer) = &self.preparer else { return Ok(None) };
        let prepared = match self.existing.pop_front() {
            Some(segment) => {
                let file = self.open_segment(segment.id)?;
                preparer.taken();
                Some(Prepared { segment, file })
            }
            None => preparer.take()?,
        };
        if let Some(Prepared { segment, file }) = &prepared {
            let metadata = file.metadata().map_err(|error| DiskError::io(DiskOp::Open, &error))?;
            if metadata.len() != segment.bytes {
                return Err(DiskError::short(DiskOp::Prepare));
            }
        }
        Ok(prepared.map(|prepared| {
            self.current = Some(Arc::new(prepared.file));
            prepared.segment
        }))
    }

    fn register(&mut self, buffers: [&Buffer; 2]) {
        if let Writer::Uring(ring) = &mut self.writer {
            ring.register(buffers);
        }
    }

    fn write(&mut self, write: Write) -> Result<(), DiskError> {
        // The medium failed in the background: no segment would ever follow.
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let file = self.current.as_ref().ok_or(DiskError::short(DiskOp::Write))?;
        match &mut self.writer {
            Writer::Uring(ring) => ring.write(file, write),
            Writer::Blocking(thread) => thread.write(file, write),
        }
    }

    fn poll(&mut self) -> Option<Written> {
        match &mut self.writer {
            Writer::Uring(ring) => ring.poll(),
            Writer::Blocking(thread) => thread.poll(),
        }
    }

    fn wait(&mut self, timeout_us: u64) {
        self.notify.wait(timeout_us);
    }

    fn failure(&self) -> Option<DiskError> {
        self.preparer.as_ref().and_then(Preparer::failure)
    }

    fn space(&self) -> Space {
        self.preparer.as_ref().map_or(Space::Ok, Preparer::space)
    }

    fn free_bytes(&self) -> Option<u64> {
        self.preparer.as_ref().map(Preparer::free_bytes)
    }

    fn facts(&self) -> DiskFacts {
        let (backend, realtime) = match &self.writer {
            Writer::Uring(_) => (BackendKind::Uring, false),
            Writer::Blocking(thread) => (BackendKind::Blocking, thread.realtime()),
        };
        DiskFacts {
            backend,
            direct: self.direct,
            realtime,
            fallback: self.fallback,
            spares: self.preparer.as_ref().map_or(0, Preparer::ready),
        }
    }
}
