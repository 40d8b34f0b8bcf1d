//! The background thread that keeps zero-filled segments ready.
//!
//! Zero-filling happens here and never on the worker's path: writing into
//! blocks that already hold zeros makes a flush twice as fast as extending a
//! file. The thread also watches the free space: before the file system is
//! full it says so, and then feeds the log from what was reserved.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::directory::Directory;
use super::{Buffer, DiskError, DiskOp, SegmentFile, Space, segment_path, sys};
use crate::notify::Notify;

/// Prepared segments kept ready.
pub(super) const SPARES: usize = 2;
/// One write of zeros: what a write of the log may have to wait for, and flush with its own.
const FILL_BYTES: usize = 128 << 10;
/// The same where there is no time for so many of them.
const FILL_BYTES_MAX: usize = 512 << 10;
/// Least pause between two small ones while a spare is ready: at most 262 MB/s.
const FILL_PAUSE_MIN: Duration = Duration::from_micros(500);
/// Slowest filling while a spare is ready, bytes per microsecond: a load that comes of a sudden
/// finds the next spare ready, and the disk's free space is looked at between two segments.
const FILL_RATE_MIN: u64 = 64;
/// How often free space is looked at when nothing happens.
const WATCH: Duration = Duration::from_millis(250);
/// Free bytes left to others on the file system.
const MARGIN_BYTES: u64 = 1 << 20;

/// What the thread is to keep ready.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) dir: PathBuf,
    pub(super) segment_bytes: u64,
    pub(super) reserve_bytes: u64,
    pub(super) direct: bool,
    pub(super) next_id: u64,
    /// Spares that already exist.
    pub(super) existing: usize,
    /// How space is taken without writing it; not every file system can.
    pub(super) allocate: fn(&File, u64) -> io::Result<()>,
}

#[derive(Debug, Default)]
struct Shared {
    ready: AtomicUsize,
    stop: AtomicBool,
    reserve: AtomicBool,
    /// How long the log's last full segment lasted, microseconds; 0: not known.
    lasted_us: AtomicU64,
    /// Free bytes when last looked at.
    free: AtomicU64,
    /// The error number that ended the thread; 0 while it works.
    failed: AtomicI32,
}

impl Shared {
    /// How many zeros are written at once into a segment of `bytes`, and the pause before them.
    /// The pauses add up to half the time that the log needs to fill a segment: thinly
    /// spread, zeros disturb the log's own writes least.
    fn pace(&self, bytes: u64) -> (usize, Duration) {
        let lasted_us = self.lasted_us.load(Ordering::Relaxed);
        if lasted_us == 0 {
            return (FILL_BYTES, FILL_PAUSE_MIN);
        }
        let pauses_us = (lasted_us / 2).min(bytes / FILL_RATE_MIN);
        let pause =
            |part: usize| Duration::from_micros(pauses_us / bytes.div_ceil(part as u64).max(1));
        let thin = pause(FILL_BYTES);
        if thin >= FILL_PAUSE_MIN {
            (FILL_BYTES, thin)
        } else {
            (FILL_BYTES_MAX, pause(FILL_BYTES_MAX))
        }
    }
}

/// A segment that can be written to.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) segment: SegmentFile,
    pub(super) file: File,
}

#[derive(Debug)]
pub(super) struct Preparer {
    shared: Arc<Shared>,
    /// When the log last took a segment.
    taken: Cell<Option<Instant>>,
    inbox: mpsc::Receiver<Prepared>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    pub(super) fn start(plan: Plan, notify: Notify) -> Result<Preparer, DiskError> {
        let shared = Arc::new(Shared::default());
        shared.ready.store(plan.existing, Ordering::Release);
        let (outbox, inbox) = mpsc::sync_channel(SPARES);
        let work = Work { plan, shared: Arc::clone(&shared), outbox, notify };
        let thread = std::thread::Builder::new()
            .name("log-prepare".into())
            .spawn(move || work.run())
            .map_err(|error| DiskError::io(DiskOp::Start, &error))?;
        Ok(Preparer { shared, taken: Cell::new(None), inbox, thread: Some(thread) })
    }

    /// A prepared segment, when there is one.
    pub(super) fn take(&self) -> Result<Option<Prepared>, DiskError> {
        if let Ok(prepared) = self.inbox.try_recv() {
            self.taken();
            return Ok(Some(prepared));
        }
        self.failure().map_or(Ok(None), Err)
    }

    /// What ended the thread, when something did.
    pub(super) fn failure(&self) -> Option<DiskError> {
        match self.shared.failed.load(Ordering::Acquire) {
            0 => None,
            errno => Some(DiskError { op: DiskOp::Prepare, errno: Some(errno) }),
        }
    }

    /// Tells the thread that one spare less is ready.
    pub(super) fn taken(&self) {
        // Of the first one nothing is known: the log may have been near the end of one.
        if let Some(before) = self.taken.replace(Some(Instant::now())) {
            let lasted_us = before.elapsed().as_micros() as u64;
            self.shared.lasted_us.store(lasted_us.max(1), Ordering::Relaxed);
        }
        self.shared.ready.fetch_sub(1, Ordering::AcqRel);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    pub(super) fn ready(&self) -> usize {
        self.shared.ready.load(Ordering::Acquire)
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.shared.free.load(Ordering::Acquire)
    }

    pub(super) fn space(&self) -> Space {
        match self.shared.reserve.load(Ordering::Acquire) {
            true => Space::Reserve,
            false => Space::Ok,
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

struct Work {
    plan: Plan,
    shared: Arc<Shared>,
    outbox: mpsc::SyncSender<Prepared>,
    notify: Notify,
}

impl Work {
    fn run(mut self) {
        sys::become_background();
        while !self.stopped() {
            match self.round() {
                Ok(true) => {}
                Ok(false) => std::thread::park_timeout(WATCH),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    self.shared.failed.store(errno, Ordering::Release);
                    self.notify.wake();
                    return;
                }
            }
        }
    }

    /// Prepares at most one segment; says whether there is more to do now.
    fn round(&mut self) -> io::Result<bool> {
        self.watch_space()?;
        let ready = self.shared.ready.load(Ordering::Acquire);
        if ready >= SPARES {
            return Ok(false);
        }
        let full = self.available()? < self.plan.segment_bytes + MARGIN_BYTES;
        if full {
            self.set_reserve(true);
            // The reserve is for the segment without which the log would stop.
            if ready > 0 || !self.release_reserve()? {
                return Ok(false);
            }
        }
        match self.prepare(ready) {
            Ok(Some(prepared)) => {
                self.plan.next_id += 1;
                self.shared.ready.fetch_add(1, Ordering::AcqRel);
                let delivered = self.outbox.send(prepared).is_ok();
                self.notify.wake();
                Ok(delivered)
            }
            Ok(None) => Ok(false),
            Err(error) if is_full(&error) => {
                let _ = std::fs::remove_file(self.temporary());
                self.set_reserve(true);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    fn available(&self) -> io::Result<u64> {
        let free = sys::available_bytes(&self.plan.dir)?;
        self.shared.free.store(free, Ordering::Release);
        Ok(free)
    }

    fn set_reserve(&self, reserve: bool) {
        if self.shared.reserve.swap(reserve, Ordering::AcqRel) != reserve {
            self.notify.wake();
        }
    }

    /// Keeps the reserve file at its size while there is room for it and for
    /// the spares; says "reserve" from the moment there is not.
    fn watch_space(&self) -> io::Result<()> {
        let kept = self.reserve_kept();
        let spares = SPARES.saturating_sub(self.shared.ready.load(Ordering::Acquire)) as u64;
        let missing = self.plan.reserve_bytes.saturating_sub(kept);
        let wanted = missing + spares.max(1) * self.plan.segment_bytes + MARGIN_BYTES;
        if self.available()? < wanted {
            self.set_reserve(true);
            return Ok(());
        }
        let kept = match missing {
            0 => Ok(()),
            _ => self.fill_reserve(kept),
        };
        match kept {
            Ok(()) => self.set_reserve(false),
            Err(error) if is_full(&error) => self.set_reserve(true),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes the reserve's space, of which there is `kept`; by writing it where the
    /// file system cannot do so otherwise.
    fn fill_reserve(&self, kept: u64) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(self.reserve_path())?;
        if self.is_allocated(&file, self.plan.reserve_bytes)? {
            return Ok(());
        }
        let goes_on = &mut || (!self.stopped()).then_some(FILL_BYTES_MAX);
        write_zeros(&file, kept, self.plan.reserve_bytes, goes_on)?;
        file.sync_all()
    }

    /// `false` where the file system cannot take space without writing it.
    fn is_allocated(&self, file: &File, bytes: u64) -> io::Result<bool> {
        match (self.plan.allocate)(file, bytes) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn reserve_path(&self) -> PathBuf {
        self.plan.dir.join("reserve")
    }

    fn reserve_kept(&self) -> u64 {
        std::fs::metadata(self.reserve_path()).map_or(0, |metadata| metadata.len())
    }

    /// Gives back from the reserve what one more segment needs.
    fn release_reserve(&self) -> io::Result<bool> {
        let kept = self.reserve_kept();
        if kept == 0 {
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).open(self.reserve_path())?;
        let wanted = self.plan.segment_bytes + MARGIN_BYTES;
        let missing = wanted.saturating_sub(self.available()?);
        file.set_len(kept.saturating_sub(missing))?;
        Ok(true)
    }

    fn temporary(&self) -> PathBuf {
        segment_path(&self.plan.dir, self.plan.next_id).with_extension("tmp")
    }

    /// Zero-fills, syncs, names. `None` when told to stop meanwhile.
    fn prepare(&self, ready: usize) -> io::Result<Option<Prepared>> {
        let temporary = self.temporary();
        let path = segment_path(&self.plan.dir, self.plan.next_id);
        let bytes = self.plan.segment_bytes;
        let file = create(&temporary, self.plan.direct)?;
        self.is_allocated(&file, bytes)?;
        let whole = write_zeros(&file, 0, bytes, &mut || {
            // In a hurry when nothing is ready any more.
            let hurry = ready == 0 || self.shared.ready.load(Ordering::Acquire) == 0;
            let (part, pause) = match hurry {
                true => (FILL_BYTES_MAX, Duration::ZERO),
                false => self.shared.pace(bytes),
            };
            if !pause.is_zero() {
                std::thread::park_timeout(pause);
            }
            (!self.stopped()).then_some(part)
        })?;
        if !whole {
            drop(file);
            std::fs::remove_file(&temporary)?;
            return Ok(None);
        }
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        let directory = Directory::new(&self.plan.dir);
        directory.sync()?;
        directory.store_prepared(self.plan.next_id)?;
        let file = open_for_writing(&path, self.plan.direct)?;
        let segment = SegmentFile { id: self.plan.next_id, bytes };
        Ok(Some(Prepared { segment, file }))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Zeros from `at` to `end`, as many at once as `next` says, until it says none; whether all
/// were written.
fn write_zeros(
    file: &File,
    mut at: u64,
    end: u64,
    next: &mut dyn FnMut() -> Option<usize>,
) -> io::Result<bool> {
    let zeros = Buffer::new(FILL_BYTES_MAX.min(end.saturating_sub(at) as usize));
    while at < end {
        let Some(part) = next() else { return Ok(false) };
        let part = (end - at).min(part.min(zeros.len()) as u64) as usize;
        file.write_all_at(&zeros[..part], at)?;
        at += part as u64;
    }
    Ok(true)
}

/// Makes a spare segment of `from` bytes one of `to` bytes, durably, and returns what it
/// has become: where the disk is full it stays what it was. It grows with what is
/// written, and is a spare of some size, without holes, at every moment.
pub(super) fn fill_up(path: &Path, from: u64, to: u64, direct: bool) -> io::Result<u64> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let bytes = match write_zeros(&file, from, to, &mut || Some(FILL_BYTES_MAX)) {
        Ok(_) => to,
        Err(error) if is_full(&error) => {
            file.set_len(from)?;
            from
        }
        Err(error) => return Err(error),
    };
    file.sync_all()?;
    Ok(bytes)
}

fn create(path: &Path, direct: bool) -> io::Result<File> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path)
}

/// Opens a segment so that each write is durable when it returns.
pub(super) fn open_for_writing(path: &Path, direct: bool) -> io::Result<File> {
    let flags = libc::O_DSYNC | if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new().write(true).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SEGMENT: u64 = 128 << 10;
    const RESERVE: u64 = 1 << 20;

    type Allocate = fn(&File, u64) -> io::Result<()>;

    fn prepared(allocate: Allocate, count: u64) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let notify = Notify::new().unwrap();
        let plan = Plan {
            dir: dir.path().to_owned(),
            segment_bytes: SEGMENT,
            reserve_bytes: RESERVE,
            direct: false,
            next_id: 1,
            existing: 0,
            allocate,
        };
        let preparer = Preparer::start(plan, notify.clone()).unwrap();
        for id in 1..=count {
            let prepared = loop {
                match preparer.take().unwrap() {
                    Some(prepared) => break prepared,
                    None => assert!(notify.wait(20_000_000), "no segment became ready"),
                }
            };
            assert_eq!(prepared.segment, SegmentFile { id, bytes: SEGMENT });
            assert_eq!(prepared.file.metadata().unwrap().len(), SEGMENT);
        }
        assert_eq!((preparer.failure(), preparer.space()), (None, Space::Ok));
        dir
    }

    /// The reserve is real space there too: written, where it cannot be had otherwise.
    #[test]
    fn file_systems_that_take_no_space_ahead_hold_a_log_too() {
        let refuse: Allocate = |_, _| Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        for allocate in [sys::allocate, refuse] {
            let dir = prepared(allocate, 4);
            let reserve = std::fs::metadata(dir.path().join("reserve")).unwrap();
            assert_eq!(reserve.len(), RESERVE);
            assert!(reserve.blocks() * 512 >= RESERVE, "{} blocks", reserve.blocks());
        }
    }

    #[test]
    fn zeros_are_spread_over_half_of_what_a_segment_lasts() {
        let shared = Shared::default();
        let bytes = 64 << 20;
        assert_eq!(shared.pace(bytes), (FILL_BYTES, FILL_PAUSE_MIN), "nothing is known yet");
        for (lasted_ms, part, pause_us) in [
            (100, FILL_BYTES_MAX, 390),
            (512, FILL_BYTES, 500),
            (1_024, FILL_BYTES, 1_000),
            (60_000, FILL_BYTES, 2_048),
        ] {
            shared.lasted_us.store(lasted_ms * 1_000, Ordering::Relaxed);
            let pause = Duration::from_micros(pause_us);
            assert_eq!(shared.pace(bytes), (part, pause), "{lasted_ms} ms");
        }
    }

    #[test]
    fn how_long_a_segment_lasts_is_known_from_the_second_one_on() {
        let (_outbox, inbox) = mpsc::sync_channel(1);
        let shared = Arc::new(Shared::default());
        shared.ready.store(2, Ordering::Release);
        let taken = Cell::new(None);
        let preparer = Preparer { shared: Arc::clone(&shared), taken, inbox, thread: None };
        preparer.taken();
        assert_eq!(shared.lasted_us.load(Ordering::Relaxed), 0);
        preparer.taken();
        assert!(shared.lasted_us.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn what_ends_the_thread_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let notify = Notify::new().unwrap();
        let plan = Plan {
            dir: dir.path().to_owned(),
            segment_bytes: SEGMENT,
            reserve_bytes: RESERVE,
            direct: false,
            next_id: 1,
            existing: 0,
            allocate: |_, _| Err(io::Error::from_raw_os_error(libc::EPERM)),
        };
        let preparer = Preparer::start(plan, notify.clone()).unwrap();
        while preparer.failure().is_none() {
            assert!(notify.wait(20_000_000), "it goes on");
        }
        assert_eq!(preparer.failure().and_then(|error| error.errno), Some(libc::EPERM));
        assert!(preparer.take().is_err());
    }
}
