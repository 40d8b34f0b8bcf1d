//! Checkpoints of the shards, one after the other, beside the work.
//!
//! The engine writes a few payments now and then ([`PAYMENTS_PER_SLICE`],
//! [`SLICE_EVERY_US`]); the chunks go through a short queue to a thread of its own,
//! which alone waits for the disk. When the queue is full the next slice waits for
//! a later turn. What
//! goes wrong is said and counted and does not stop the work: the checkpoint is
//! given up and tried again later, the log keeps what it would have covered.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use storage::disk::Disk;
use storage::{
    Checkpoint, CheckpointError, CheckpointWriter, Checkpoints, FileDisk, Log, LogRelease, Space,
};

use super::desk::{Desk, Labour, NotTaken};
use super::shard::Shard;
use crate::engine::{Now, Slice};
use crate::metrics::Metrics;
use crate::replica::Base;
use crate::runtime::clock;
use crate::runtime::inbox::Exchange;

/// Payments written at once: about 0.1 ms of the worker's time.
const PAYMENTS_PER_SLICE: u64 = 256;
/// Time from one slice to the next, microseconds: a tenth of the worker's time, and
/// some 50 MB/s of the disk's. Written as fast as it goes, a state takes both from the
/// payments of its time. There is no pause when a state is waited for: by another
/// site, or by a log that has grown by more than a checkpoint's share since.
const SLICE_EVERY_US: u64 = 1_000;
/// Chunks (of at most 256 KiB) on their way to the writing thread.
const ORDERS_MAX: usize = 16;
/// After a failure the next checkpoint waits for this long, microseconds.
const RETRY_US: u64 = 10_000_000;
/// A state is written when the log has grown by this part of its last
/// checkpoint, so that large states do not cost more writing than the log.
const SIZE_PART: u64 = 2;

/// One thing for the writing thread.
pub(super) enum Order<D: Disk> {
    Begin(u16, Base),
    Chunk(Vec<u8>),
    Commit,
    /// Deletes log segments: never while a checkpoint is begun that it could rest on.
    Release(Box<LogRelease<D>>),
}

/// What came of an order.
pub(super) enum Done<D: Disk> {
    Checkpoint(Ended),
    /// Segments were deleted; or not all of them, and it is to be done again.
    Release(Option<Box<LogRelease<D>>>),
}

/// How a checkpoint ended; one for each that was begun and not given up.
pub(super) struct Ended {
    shard: u16,
    index: u64,
    /// Bytes of the file.
    result: Result<u64, CheckpointError>,
}

/// What the worker knows of a shard's last checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Last {
    /// Last block that it covers; 0: there is none.
    pub index: u64,
    /// When its state was taken, microseconds of the node's clock; 0: before the start.
    pub at_us: u64,
    /// How long it took until it was durable, microseconds.
    pub took_us: u64,
    /// Bytes of its file.
    pub(super) bytes: u64,
    pub(super) base: Option<Base>,
    /// It came from another site, and nothing before it leads anywhere any more: were
    /// it damaged, the shard's state could not be had from this disk.
    pub(super) is_only: bool,
}

impl Last {
    /// One that the start began from.
    pub(super) fn found(base: Base, bytes: u64) -> Self {
        let (at_us, took_us, is_only) = (0, 0, base.received);
        Self { index: base.index, at_us, took_us, bytes, base: Some(base), is_only }
    }

    /// The state of another site.
    fn installed(base: Base, bytes: u64) -> Self {
        Self { is_only: true, ..Self::found(base, bytes) }
    }
}

/// The one that is being written.
struct Active<D: Disk> {
    at: usize,
    shard: u16,
    base: Base,
    begun_us: u64,
    /// What the queue had no room for yet.
    waiting: VecDeque<Order<D>>,
    /// The engine has written all of it.
    whole: bool,
}

/// Checkpoints of one worker's shards.
pub(super) struct Checkpointer<D: Disk = FileDisk> {
    desk: Desk<Writing<D>>,
    metrics: Arc<Metrics>,
    /// Growth of a shard's log after which it is due, bytes; `None`: never.
    every: Option<u64>,
    /// Growth of the whole log after which a shard that has grown at all is due.
    every_whole: u64,
    /// Bytes appended to the log when each shard's last state was taken.
    appended: Vec<u64>,
    active: Option<Active<D>>,
    last: Vec<Last>,
    /// The one before the last of each shard, which the log may be released on:
    /// the last may turn out damaged.
    before: Vec<Option<Checkpoint>>,
    release: Option<Box<LogRelease<D>>>,
    /// The thread has one.
    releases: bool,
    /// `release` has failed before.
    release_failed: bool,
    /// One that failed is not tried again before.
    release_not_before_us: u64,
    /// Shards whose checkpoint is on its way to another site: it stays the
    /// newest, and the log behind it stays, until it is there.
    held: Vec<usize>,
    not_before_us: u64,
    next_slice_us: u64,
    /// Bytes appended to the log when the active one began.
    begun_at: u64,
}

impl Checkpointer {
    /// Starts the writing thread. It ends with the worker.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(
        log: &Log,
        exchange: &Arc<Exchange>,
        metrics: &Arc<Metrics>,
        last: Vec<Last>,
        every_bytes: u64,
    ) -> std::io::Result<Self> {
        let desk = Desk::thread("checkpoint", Writing::new(log), ORDERS_MAX, exchange)?;
        Ok(Self::over(desk, metrics, last, every_bytes))
    }
}

impl<D: Disk> Checkpointer<D> {
    /// One whose orders the harness carries out.
    #[cfg(test)]
    pub(super) fn here(
        log: &Log<D>,
        metrics: &Arc<Metrics>,
        last: Vec<Last>,
        every_bytes: u64,
    ) -> Self {
        Self::over(Desk::here(Writing::new(log), ORDERS_MAX), metrics, last, every_bytes)
    }

    fn over(
        desk: Desk<Writing<D>>,
        metrics: &Arc<Metrics>,
        last: Vec<Last>,
        every_bytes: u64,
    ) -> Self {
        Self {
            desk,
            metrics: Arc::clone(metrics),
            every: (every_bytes > 0).then_some((every_bytes / last.len().max(1) as u64).max(1)),
            every_whole: every_bytes,
            appended: vec![0; last.len()],
            active: None,
            before: vec![None; last.len()],
            last,
            release: None,
            releases: false,
            release_failed: false,
            release_not_before_us: 0,
            held: Vec::new(),
            not_before_us: 0,
            next_slice_us: 0,
            begun_at: 0,
        }
    }

    /// What the harness works off.
    #[cfg(test)]
    pub(super) fn desk(&mut self) -> &mut Desk<Writing<D>> {
        &mut self.desk
    }

    /// These shards' newest checkpoints are on their way to other sites.
    pub(super) fn hold(&mut self, shards: impl Iterator<Item = usize>) {
        self.held.clear();
        self.held.extend(shards);
    }

    /// The state of another site has taken the place of the shard's own.
    pub(super) fn installed(&mut self, at: usize, base: Base, bytes: u64) {
        if self.active.as_ref().is_some_and(|active| active.at == at) {
            self.active = None;
        }
        if let (Some(last), Some(before)) = (self.last.get_mut(at), self.before.get_mut(at)) {
            (*last, *before) = (Last::installed(base, bytes), None);
        }
    }

    /// The last checkpoint of the shard at this place.
    pub(super) fn last(&self, at: usize) -> Last {
        self.last.get(at).copied().unwrap_or_default()
    }

    /// What the log may be released on, shard by shard.
    pub(super) fn covered(&self) -> Vec<Checkpoint> {
        self.before.iter().flatten().copied().collect()
    }

    /// Has segments deleted, once the thread gets to it. One at a time. Takes the place of
    /// one that has failed: a later one deletes what that should have, and may get by
    /// what it stumbled over.
    pub(super) fn release(&mut self, release: LogRelease<D>) {
        debug_assert!(self.may_release(), "asked for only when it may");
        self.release = Some(Box::new(release));
        self.release_failed = false;
    }

    /// Whether the last release is done, or has failed.
    pub(super) fn may_release(&self) -> bool {
        !self.releases && (self.release.is_none() || self.release_failed)
    }

    /// When the next slice is due, microseconds; `None` while there is none.
    pub(super) fn due_us(&self) -> Option<u64> {
        let active = self.active.as_ref()?;
        (active.waiting.is_empty() && !active.whole).then_some(self.next_slice_us)
    }

    /// One turn's share.
    pub(super) fn run(&mut self, shards: &mut [Shard], log: (u64, Space), now: Now) {
        let (appended, space) = log;
        while let Some(done) = self.desk.take() {
            match done {
                Done::Checkpoint(ended) => self.take_end(ended, shards, now),
                Done::Release(failed) => {
                    self.releases = false;
                    self.release_failed = failed.is_some();
                    if self.release_failed {
                        self.release_not_before_us = now.mono_us + RETRY_US;
                    }
                    self.release = failed;
                }
            }
        }
        self.send_release(now);
        if self.active.is_none() && space == Space::Ok && now.mono_us >= self.not_before_us {
            self.begin(shards, appended, now);
        }
        let is_due = self.due_us().is_some_and(|due| due <= now.mono_us);
        let Some(active) = &mut self.active else { return };
        if is_due {
            let Some(shard) = shards.get_mut(active.at) else { return };
            let started_us = clock::mono_us();
            active.slice(shard);
            let took_us = clock::mono_us().saturating_sub(started_us);
            self.metrics.checkpoint_slice.record(took_us);
            let pause = if self.is_urgent(shards, appended) { 0 } else { SLICE_EVERY_US };
            self.next_slice_us = now.mono_us + pause;
        }
        self.send(shards, now);
    }

    fn send_release(&mut self, now: Now) {
        if now.mono_us < self.release_not_before_us {
            return;
        }
        let Some(release) = self.release.take() else { return };
        match self.desk.offer(Order::Release(release)) {
            Ok(()) => self.releases = true,
            Err(NotTaken::Full(Order::Release(release))) => self.release = Some(release),
            Err(_) => {}
        }
    }

    /// Whether somebody waits for checkpoints.
    fn is_urgent(&self, shards: &[Shard], appended: u64) -> bool {
        let grown = appended.saturating_sub(self.begun_at);
        grown > self.every_whole || shards.iter().any(|shard| shard.replica.wants_checkpoint())
    }

    /// Begins the checkpoint of the shard whose log has grown most, if due. A
    /// quiet one's turn comes with the growth of the others, so that its old
    /// blocks do not hold the log. First comes one that another site waits for. A state
    /// that came from another site gets a second beside it with the next block.
    fn begin(&mut self, shards: &mut [Shard], appended: u64, now: Now) {
        let (last, begun, held) = (&self.last, &self.appended, &self.held);
        let (every, whole) = (self.every, self.every_whole);
        let due = |(at, shard): &(usize, &mut Shard)| {
            let bytes = last.get(*at).map_or(0, |last| last.bytes);
            let since = begun.get(*at).map_or(0, |begun| appended.saturating_sub(*begun));
            let has_grown = every.is_some_and(|every| shard.grown > every.max(bytes / SIZE_PART));
            let is_old = every.is_some() && since > whole.max(bytes / SIZE_PART);
            let is_due = has_grown || shard.grown > 0 && is_old;
            let is_wanted = shard.grown > 0 && shard.replica.wants_checkpoint();
            let is_only = shard.grown > 0 && last.get(*at).is_some_and(|last| last.is_only);
            (is_due || is_wanted || is_only) && !held.contains(at)
        };
        let due = shards.iter_mut().enumerate().filter(due);
        let due = due.max_by_key(|(_, shard)| (shard.replica.wants_checkpoint(), shard.grown));
        let Some((at, shard)) = due else { return };
        let Some(base) = shard.replica.base() else { return };
        let number = shard.replica.shard();
        let mut waiting = VecDeque::from([Order::Begin(number, base)]);
        let index = shard.engine.begin_checkpoint(&mut |chunk| {
            waiting.push_back(Order::Chunk(chunk.to_vec()));
        });
        debug_assert_eq!(index, base.index, "the engine has applied what the replica handed out");
        (shard.grown, self.begun_at) = (0, appended);
        if let Some(begun) = self.appended.get_mut(at) {
            *begun = appended;
        }
        let (shard, begun_us, whole) = (number, now.mono_us, false);
        self.active = Some(Active { at, shard, base, begun_us, waiting, whole });
    }

    /// Hands over what the queue has room for.
    fn send(&mut self, shards: &mut [Shard], now: Now) {
        let Some(active) = &mut self.active else { return };
        while let Some(order) = active.waiting.pop_front() {
            match self.desk.offer(order) {
                Ok(()) => {}
                Err(NotTaken::Full(order)) => {
                    return active.waiting.push_front(order);
                }
                Err(NotTaken::Ended) => {
                    return self.fail("its thread has ended", shards, now);
                }
            }
        }
    }

    fn take_end(&mut self, ended: Ended, shards: &mut [Shard], now: Now) {
        let is_its =
            |active: &&Active<D>| (active.shard, active.base.index) == (ended.shard, ended.index);
        let Some(active) = self.active.as_ref().filter(is_its) else { return };
        match ended.result {
            Ok(bytes) => {
                let Active { at, shard, base, begun_us, .. } = *active;
                let took_us = now.mono_us.saturating_sub(begun_us);
                if let (Some(last), Some(before)) = (self.last.get_mut(at), self.before.get_mut(at))
                {
                    *before = last.base.map(|base| base.checkpoint(shard));
                    let (index, base) = (base.index, Some(base));
                    *last = Last { index, at_us: begun_us, took_us, bytes, base, is_only: false };
                }
                if let Some(shard) = shards.get_mut(at) {
                    shard.replica.offer(base);
                }
                self.metrics.checkpoints.add(1);
                self.active = None;
            }
            Err(error) => self.fail(&error.to_string(), shards, now),
        }
    }

    /// Gives the one under way up.
    fn fail(&mut self, why: &str, shards: &mut [Shard], now: Now) {
        let Some(active) = self.active.take() else { return };
        if let Some(shard) = shards.get_mut(active.at) {
            shard.engine.abandon_checkpoint();
            // Due again at once, after the pause.
            shard.grown = u64::MAX / 2;
        }
        self.not_before_us = now.mono_us + RETRY_US;
        self.metrics.checkpoint_failures.add(1);
        let (shard, index) = (active.shard, active.base.index);
        eprintln!("checkpoint of shard {shard} at index {index} failed: {why}");
    }
}

impl<D: Disk> Active<D> {
    fn slice(&mut self, shard: &mut Shard) {
        let waiting = &mut self.waiting;
        let slice = shard.engine.checkpoint_slice(PAYMENTS_PER_SLICE, &mut |chunk| {
            waiting.push_back(Order::Chunk(chunk.to_vec()));
        });
        if let Slice::Done { .. } = slice {
            self.whole = true;
            waiting.push_back(Order::Commit);
        }
    }
}

/// What the writing thread does.
pub(super) struct Writing<D: Disk> {
    checkpoints: Checkpoints<D::Files>,
    current: Option<(u16, u64, CheckpointWriter<D::Files>)>,
}

impl<D: Disk> Writing<D> {
    fn new(log: &Log<D>) -> Self {
        Self { checkpoints: log.checkpoints(), current: None }
    }

    fn begin(&mut self, shard: u16, base: &Base) -> Result<(), CheckpointError> {
        if let Some((_, _, writer)) = self.current.take() {
            writer.abandon();
        }
        let writer = self.checkpoints.create(base.checkpoint(shard), &base.note())?;
        self.current = Some((shard, base.index, writer));
        Ok(())
    }
}

impl<D: Disk> Labour for Writing<D> {
    type Order = Order<D>;
    type Done = Done<D>;

    /// What follows a failure is passed over until the next begins.
    fn carry_out(&mut self, order: Order<D>) -> Option<Done<D>> {
        let (shard, index, result) = match order {
            Order::Begin(shard, base) => (shard, base.index, Err(self.begin(shard, &base).err()?)),
            Order::Chunk(chunk) => {
                let (shard, index, mut writer) = self.current.take()?;
                match writer.chunk(&chunk) {
                    Ok(()) => {
                        self.current = Some((shard, index, writer));
                        return None;
                    }
                    Err(error) => {
                        // Gives back the space, of which there may be none.
                        writer.abandon();
                        (shard, index, Err(error))
                    }
                }
            }
            Order::Commit => {
                let (shard, index, writer) = self.current.take()?;
                let bytes = writer.bytes();
                (shard, index, writer.commit().map(|_| bytes))
            }
            Order::Release(release) => return Some(Done::Release(run_release::<D>(release))),
        };
        Some(Done::Checkpoint(Ended { shard, index, result }))
    }
}

/// Gives the release back when it failed: nobody else plans for those segments again
/// before the next start.
fn run_release<D: Disk>(mut release: Box<LogRelease<D>>) -> Option<Box<LogRelease<D>>> {
    let first = release.first();
    match release.run() {
        Ok(()) => {
            println!("log: begins with segment {first} now");
            None
        }
        Err(error) => {
            eprintln!("log: segments before {first} are not released, tried again later: {error}");
            Some(release)
        }
    }
}
