//! The simulated disk in virtual time: a write takes as long as the pace says.
//!
//! What a crash leaves of it is the business of [`SimDisk`]. A lying disk
//! confirms writes long before they are durable, as a switch without fsync
//! would.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use storage::disk::{
    Buffer, Disk, DiskError, DiskFacts, SegmentFile, Source, Space, VisitPiece, Write, Written,
};
use storage::{Position, SimDisk};

use super::random::Random;

/// How fast a disk is, shared with whoever slows it down.
pub(super) struct Pace {
    pub(super) random: Random,
    /// Most microseconds of a write.
    pub(super) write_us: u64,
    /// Writes are confirmed this long before they are durable.
    pub(super) lie_us: u64,
}

/// A confirmed write that is not durable.
#[derive(Debug)]
struct Lie {
    durable_us: u64,
    segment: u64,
    offset: usize,
    bytes: Vec<u8>,
}

/// A disk of one life of a process.
pub(super) struct TimedDisk {
    inner: SimDisk,
    clock: Rc<Cell<u64>>,
    pace: Rc<RefCell<Pace>>,
    /// When the write in flight completes, as the harness sees it too.
    due_us: Rc<Cell<Option<u64>>>,
    current: u64,
    lies: VecDeque<Lie>,
    lying: Option<Buffer>,
}

impl std::fmt::Debug for TimedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl TimedDisk {
    pub(super) fn new(
        inner: SimDisk,
        clock: Rc<Cell<u64>>,
        pace: Rc<RefCell<Pace>>,
        due_us: Rc<Cell<Option<u64>>>,
    ) -> Self {
        due_us.set(None);
        Self { inner, clock, pace, due_us, current: 0, lies: VecDeque::new(), lying: None }
    }

    fn lie(&mut self, write: Write, lie_us: u64) {
        self.lies.push_back(Lie {
            durable_us: self.clock.get() + lie_us,
            segment: self.current,
            offset: write.offset as usize,
            bytes: write.buffer[write.from..write.from + write.bytes].to_vec(),
        });
        self.lying = Some(write.buffer);
    }

    fn settle_lies(&mut self) {
        while self.lies.front().is_some_and(|lie| lie.durable_us <= self.clock.get()) {
            let Some(lie) = self.lies.pop_front() else { return };
            self.inner.edit(lie.segment, |file| {
                file[lie.offset..lie.offset + lie.bytes.len()].copy_from_slice(&lie.bytes);
            });
        }
    }
}

impl Source for TimedDisk {
    fn dir(&self) -> PathBuf {
        Source::dir(&self.inner)
    }

    fn load_identity(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.inner.load_identity()
    }

    fn load_prepared(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.inner.load_prepared()
    }

    fn load_released(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.inner.load_released()
    }

    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        self.inner.segments()
    }

    fn scan(
        &mut self,
        from: Position,
        segments: &[SegmentFile],
        visit: &mut VisitPiece<'_>,
    ) -> Result<(), DiskError> {
        self.inner.scan(from, segments, visit)
    }
}

impl Disk for TimedDisk {
    type Pages = SimDisk;
    type Files = SimDisk;

    fn files(&self) -> SimDisk {
        self.inner.files()
    }

    fn pages(&self) -> SimDisk {
        self.inner.pages()
    }

    fn random(&mut self) -> Result<u64, DiskError> {
        self.inner.random()
    }

    fn store_identity(&mut self, block: &[u8]) -> Result<(), DiskError> {
        self.inner.store_identity(block)
    }

    fn erase(&mut self, segment: u64, from: u64, to: u64) -> Result<(), DiskError> {
        self.inner.erase(segment, from, to)
    }

    fn begin(
        &mut self,
        current: Option<SegmentFile>,
        spares: &[SegmentFile],
    ) -> Result<(), DiskError> {
        self.current = current.map_or(0, |segment| segment.id);
        self.inner.begin(current, spares)
    }

    fn next_segment(&mut self) -> Result<Option<SegmentFile>, DiskError> {
        let next = self.inner.next_segment()?;
        self.current = next.map_or(self.current, |segment| segment.id);
        Ok(next)
    }

    fn write(&mut self, write: Write) -> Result<(), DiskError> {
        let (took_us, lie_us) = {
            let mut pace = self.pace.borrow_mut();
            let most = pace.write_us;
            (pace.random.between(most / 4, most), pace.lie_us)
        };
        self.due_us.set(Some(self.clock.get() + took_us));
        self.settle_lies();
        if lie_us > 0 {
            self.lie(write, lie_us);
            return Ok(());
        }
        self.inner.write(write)
    }

    fn poll(&mut self) -> Option<Written> {
        self.settle_lies();
        if self.due_us.get()? > self.clock.get() {
            return None;
        }
        self.due_us.set(None);
        match self.lying.take() {
            Some(buffer) => Some(Written { buffer, result: Ok(()), elapsed_us: 1 }),
            None => self.inner.poll(),
        }
    }

    /// Only at start: nothing waits for the disk in a turn.
    fn wait(&mut self, timeout_us: u64) {
        if self.due_us.get().is_some() {
            self.due_us.set(Some(0));
        }
        self.inner.wait(timeout_us);
    }

    fn space(&self) -> Space {
        self.inner.space()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.inner.free_bytes()
    }

    fn facts(&self) -> DiskFacts {
        self.inner.facts()
    }
}
