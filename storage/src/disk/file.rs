//! Segments as files of one folder, prepared by a thread in the background.
#![allow(unsafe_code, reason = "flock and statvfs have no safe form in std")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::aligned::AlignedBuf;
use super::blocking::BlockingWriter;
use super::uring::UringWriter;
use super::{Backend, Disk, ReadAhead, SegmentFile};
use crate::Notify;
use crate::format::BLOCK;

/// Bytes of one read or zero-fill.
const CHUNK: usize = 1 << 20;
/// Pause before a full disk is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(200);

enum Writer {
    Uring(UringWriter),
    Blocking(BlockingWriter),
    /// A start that failed is reported by the next poll.
    Failed(Option<(AlignedBuf, io::Error)>),
}

/// The folder of one worker's log.
pub struct FileDisk {
    dir: PathBuf,
    writer: Writer,
    open: BTreeMap<u64, Arc<File>>,
    wanted: Option<Sender<u64>>,
    prepared: Receiver<(u64, io::Result<File>)>,
    preparer: Option<JoinHandle<()>>,
    note: String,
    _lock: File,
}

impl FileDisk {
    /// Opens a folder for writing, creating it if needed.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it open; else what the system says.
    pub fn open(
        dir: &Path,
        segment_bytes: u64,
        backend: Backend,
        notify: &Notify,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let lock = lock(dir)?;
        remove_unfinished(dir)?;
        let (writer, note) = start_writer(backend, notify)?;
        let (wanted, inbox) = channel();
        let (outbox, prepared) = channel();
        let folder = dir.to_owned();
        let notify = notify.clone();
        let preparer =
            std::thread::Builder::new().name("log-segments".into()).spawn(move || {
                for segment in inbox {
                    let made = prepare(&folder, segment, segment_bytes);
                    if outbox.send((segment, made)).is_err() {
                        return;
                    }
                    notify.wake();
                }
            })?;
        Ok(Self {
            dir: dir.to_owned(),
            writer,
            open: BTreeMap::new(),
            wanted: Some(wanted),
            prepared,
            preparer: Some(preparer),
            note,
            _lock: lock,
        })
    }

    fn file(&mut self, segment: u64) -> io::Result<Arc<File>> {
        if let Some(file) = self.open.get(&segment) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(open_durable(&segment_path(&self.dir, segment))?);
        self.open.insert(segment, Arc::clone(&file));
        Ok(file)
    }

    fn take_prepared(&mut self) -> io::Result<()> {
        while let Ok((segment, made)) = self.prepared.try_recv() {
            match made {
                Ok(file) => {
                    self.open.insert(segment, Arc::new(file));
                }
                Err(error) if is_full(&error) => self.prepare(segment),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn start_writer(backend: Backend, notify: &Notify) -> io::Result<(Writer, String)> {
    let blocking = |why: &str| {
        let writer = BlockingWriter::start(notify.clone())?;
        let priority = if writer.real_time { "real-time" } else { "normal (no CAP_SYS_NICE)" };
        let note = format!("blocking thread, {priority} priority{why}");
        Ok((Writer::Blocking(writer), note))
    };
    match backend {
        Backend::Auto => blocking(""),
        Backend::Blocking => blocking(" (configured)"),
        Backend::Uring => match UringWriter::start(notify) {
            Ok(writer) => Ok((Writer::Uring(writer), "io_uring".into())),
            Err(error) => blocking(&format!("; io_uring cannot be used here: {error}")),
        },
    }
}

impl Disk for FileDisk {
    fn list(&mut self) -> io::Result<Vec<SegmentFile>> {
        list(&self.dir)
    }

    fn read_ahead(&mut self, segments: Vec<SegmentFile>) -> ReadAhead {
        read_ahead(&self.dir, segments)
    }

    fn prepare(&mut self, segment: u64) {
        if let Some(wanted) = &self.wanted {
            // The thread lives as long as this sender: a segment asked for after
            // its end would show as never ready.
            let _ = wanted.send(segment);
        }
    }

    fn ready(&mut self, segment: u64) -> io::Result<bool> {
        self.take_prepared()?;
        Ok(self.open.contains_key(&segment))
    }

    fn start(&mut self, segment: u64, offset: u64, buffer: AlignedBuf, len: usize) {
        let file = match self.file(segment) {
            Ok(file) => file,
            Err(error) => {
                self.writer = Writer::Failed(Some((buffer, error)));
                return;
            }
        };
        // Earlier segments are written to their end.
        while let Some(first) = self.open.first_entry().filter(|first| *first.key() < segment) {
            first.remove();
        }
        match &mut self.writer {
            Writer::Uring(writer) => {
                if let Err(error) = writer.write(file, offset, buffer, len) {
                    self.writer = Writer::Failed(Some((AlignedBuf::zeroed(1), error)));
                }
            }
            Writer::Blocking(writer) => writer.write(file, offset, buffer, len),
            Writer::Failed(_) => {}
        }
    }

    fn poll(&mut self) -> Option<(AlignedBuf, io::Result<()>)> {
        match &mut self.writer {
            Writer::Uring(writer) => writer.poll(),
            Writer::Blocking(writer) => writer.poll(),
            Writer::Failed(failed) => failed.take().map(|(buffer, error)| (buffer, Err(error))),
        }
    }

    fn zero(&mut self, segment: u64, offset: u64, len: usize) -> io::Result<()> {
        let file = self.file(segment)?;
        file.write_all_at(&AlignedBuf::zeroed(len)[..len], offset)
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        free_bytes(&self.dir)
    }

    fn describe(&self) -> String {
        self.note.clone()
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(preparer) = self.preparer.take() {
            drop(preparer.join());
        }
    }
}

/// The path of a segment's file.
pub(crate) fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:016x}.wal"))
}

/// Segments of a folder in rising order of number.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".wal")) else {
            continue;
        };
        if let (16, Ok(segment)) = (number.len(), u64::from_str_radix(number, 16)) {
            segments.push(SegmentFile { segment, bytes: entry.metadata()?.len() });
        }
    }
    segments.sort_by_key(|file| file.segment);
    Ok(segments)
}

/// Reads segments on a thread, two ahead of the caller.
pub(crate) fn read_ahead(dir: &Path, segments: Vec<SegmentFile>) -> ReadAhead {
    let (outbox, inbox) = sync_channel(2);
    let dir = dir.to_owned();
    let reading = std::thread::Builder::new().name("log-reader".into()).spawn(move || {
        for SegmentFile { segment, bytes } in segments {
            let read = read_segment(&segment_path(&dir, segment), bytes as usize);
            if outbox.send((segment, read)).is_err() {
                return;
            }
        }
    });
    match reading {
        Ok(_) => Box::new(inbox.into_iter()),
        Err(error) => Box::new(std::iter::once((0, Err(error)))),
    }
}

fn read_segment(path: &Path, bytes: usize) -> io::Result<AlignedBuf> {
    let file = open_direct(path, OpenOptions::new().read(true), 0)?;
    let mut buffer = AlignedBuf::zeroed(bytes);
    let mut at = 0;
    while at < bytes {
        let end = (at + CHUNK).min(buffer.len());
        at += read_blocks(&file, &mut buffer[at..end], at as u64)?;
    }
    Ok(buffer)
}

/// Reads a range; a block that the disk cannot read is filled with a pattern
/// that no checksum accepts, so that the rules for damage decide.
fn read_blocks(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    match file.read_at(out, offset) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => Ok(count),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {
            if out.len() <= BLOCK {
                out.fill(0xa5);
                return Ok(out.len());
            }
            let half = (out.len() / 2).next_multiple_of(BLOCK).min(out.len() - BLOCK);
            read_blocks(file, &mut out[..half.max(BLOCK)], offset)
        }
        Err(error) => Err(error),
    }
}

fn open_durable(path: &Path) -> io::Result<File> {
    open_direct(path, OpenOptions::new().write(true), libc::O_DSYNC)
}

/// With direct I/O where the file system has it (tmpfs does not).
fn open_direct(path: &Path, options: &OpenOptions, flags: i32) -> io::Result<File> {
    let mut direct = options.clone();
    match direct.custom_flags(flags | libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            direct.custom_flags(flags).open(path)
        }
        other => other,
    }
}

/// Makes a segment of zeros under a temporary name, then gives it its own.
fn prepare(dir: &Path, segment: u64, bytes: u64) -> io::Result<File> {
    let path = segment_path(dir, segment);
    let temporary = path.with_extension("new");
    let made = (|| {
        let file =
            open_direct(&temporary, OpenOptions::new().write(true).create(true).truncate(true), 0)?;
        let zeros = AlignedBuf::zeroed(CHUNK.min(bytes as usize));
        let mut at = 0;
        while at < bytes {
            let len = (zeros.len() as u64).min(bytes - at) as usize;
            file.write_all_at(&zeros[..len], at)?;
            at += len as u64;
        }
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()?;
        open_durable(&path)
    })();
    if made.as_ref().is_err_and(is_full) {
        // Give the space back before the next try.
        drop(std::fs::remove_file(&temporary));
        std::thread::sleep(FULL_PAUSE);
    }
    made
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn lock(dir: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("LOCK"))?;
    // SAFETY: a live descriptor; the lock ends with it.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all-zero bytes are a valid `statvfs`.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a live local.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
