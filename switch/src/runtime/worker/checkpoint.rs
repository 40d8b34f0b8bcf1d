//! Checkpoints of the shards, one after the other, beside the work.
//!
//! The engine writes a few payments per turn ([`PAYMENTS_PER_SLICE`]); the chunks
//! go through a short queue to a thread of its own, which alone waits for the
//! disk. When the queue is full the next slice waits for a later turn. What
//! goes wrong is said and counted and does not stop the work: the checkpoint is
//! given up and tried again later, the log keeps what it would have covered.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;

use crossbeam::queue::ArrayQueue;
use storage::{
    Checkpoint, CheckpointError, CheckpointWriter, Checkpoints, FileDisk, Log, LogRelease, Space,
};

use super::shard::Shard;
use crate::engine::{Now, Slice};
use crate::metrics::Metrics;
use crate::replica::Base;
use crate::runtime::clock;
use crate::runtime::inbox::Exchange;

/// Payments written per turn: about 0.1 ms of the worker's time.
const PAYMENTS_PER_SLICE: u64 = 256;
/// Chunks (of at most 256 KiB) on their way to the writing thread.
const ORDERS_MAX: usize = 16;
/// After a failure the next checkpoint waits for this long, microseconds.
const RETRY_US: u64 = 10_000_000;
/// A state is written when the log has grown by this part of its last
/// checkpoint, so that large states do not cost more writing than the log.
const SIZE_PART: u64 = 2;

/// One thing for the writing thread.
enum Order {
    Begin(Checkpoint),
    Chunk(Vec<u8>),
    Commit,
    /// Deletes log segments: never while a checkpoint is begun that it could rest on.
    Release(Box<LogRelease<FileDisk>>),
}

/// How a checkpoint ended; one for each that was begun and not given up.
struct Ended {
    shard: u16,
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
    bytes: u64,
    base: Option<Base>,
}

impl Last {
    /// One that the start began from.
    pub(super) fn found(base: Base, bytes: u64) -> Self {
        Self { index: base.index, at_us: 0, took_us: 0, bytes, base: Some(base) }
    }
}

/// The one that is being written.
struct Active {
    at: usize,
    of: Checkpoint,
    begun_us: u64,
    /// What the queue had no room for yet.
    waiting: VecDeque<Order>,
    /// The engine has written all of it.
    whole: bool,
}

/// Checkpoints of one worker's shards.
pub(super) struct Checkpointer {
    orders: SyncSender<Order>,
    ended: Arc<ArrayQueue<Ended>>,
    metrics: Arc<Metrics>,
    /// Growth of a shard's log after which it is due, bytes; `None`: never.
    every: Option<u64>,
    /// Growth of the whole log after which a shard that has grown at all is due.
    every_whole: u64,
    /// Bytes appended to the log when each shard's last state was taken.
    appended: Vec<u64>,
    active: Option<Active>,
    last: Vec<Last>,
    /// The one before the last of each shard, which the log may be released on:
    /// the last may turn out damaged.
    before: Vec<Option<Checkpoint>>,
    release: Option<Box<LogRelease<FileDisk>>>,
    not_before_us: u64,
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
        let (orders, inbox) = mpsc::sync_channel(ORDERS_MAX);
        // One is under way at a time, and the worker takes its end before it
        // begins the next.
        let ended = Arc::new(ArrayQueue::new(2));
        let writing = Writing {
            checkpoints: log.checkpoints(),
            ended: Arc::clone(&ended),
            exchange: Arc::clone(exchange),
        };
        thread::Builder::new().name("checkpoint".into()).spawn(move || writing.run(&inbox))?;
        Ok(Self {
            orders,
            ended,
            metrics: Arc::clone(metrics),
            every: (every_bytes > 0).then_some((every_bytes / last.len().max(1) as u64).max(1)),
            every_whole: every_bytes,
            appended: vec![0; last.len()],
            active: None,
            before: vec![None; last.len()],
            last,
            release: None,
            not_before_us: 0,
        })
    }

    /// The last checkpoint of the shard at this place.
    pub(super) fn last(&self, at: usize) -> Last {
        self.last.get(at).copied().unwrap_or_default()
    }

    /// What the log may be released on, shard by shard.
    pub(super) fn covered(&self) -> Vec<Checkpoint> {
        self.before.iter().flatten().copied().collect()
    }

    /// Has segments deleted, once the thread gets to it. One at a time.
    pub(super) fn release(&mut self, release: LogRelease<FileDisk>) {
        debug_assert!(self.release.is_none(), "asked for only when it may");
        self.release = Some(Box::new(release));
    }

    /// Whether the last release was handed over.
    pub(super) fn may_release(&self) -> bool {
        self.release.is_none()
    }

    /// One turn's share. Says whether it could go on at once.
    pub(super) fn run(&mut self, shards: &mut [Shard], log: (u64, Space), now: Now) -> bool {
        let (appended, space) = log;
        while let Some(ended) = self.ended.pop() {
            self.take_end(ended, shards, now);
        }
        if let Some(release) = self.release.take()
            && let Err(TrySendError::Full(Order::Release(release))) =
                self.orders.try_send(Order::Release(release))
        {
            self.release = Some(release);
        }
        if self.active.is_none() && space == Space::Ok && now.mono_us >= self.not_before_us {
            self.begin(shards, appended, now);
        }
        let Some(active) = &mut self.active else { return false };
        if active.waiting.is_empty() && !active.whole {
            let Some(shard) = shards.get_mut(active.at) else { return false };
            let started_us = clock::mono_us();
            active.slice(shard);
            let took_us = clock::mono_us().saturating_sub(started_us);
            self.metrics.checkpoint_slice.record(took_us);
        }
        self.send(shards, now)
    }

    /// Begins the checkpoint of the shard whose log has grown most, if due. A
    /// quiet one's turn comes with the growth of the others, so that its old
    /// blocks do not hold the log.
    fn begin(&mut self, shards: &mut [Shard], appended: u64, now: Now) {
        let Some(every) = self.every else { return };
        let (last, begun, whole) = (&self.last, &self.appended, self.every_whole);
        let due = |(at, shard): &(usize, &mut Shard)| {
            let bytes = last.get(*at).map_or(0, |last| last.bytes);
            let since = begun.get(*at).map_or(0, |begun| appended.saturating_sub(*begun));
            let has_grown = shard.grown > every.max(bytes / SIZE_PART);
            let is_due = has_grown || shard.grown > 0 && since > whole.max(bytes / SIZE_PART);
            // One without a base (its members were changed) holds up no other.
            is_due && shard.replica.base().is_some()
        };
        let due = shards.iter_mut().enumerate().filter(due).max_by_key(|(_, shard)| shard.grown);
        let Some((at, shard)) = due else { return };
        let Some(base) = shard.replica.base() else { return };
        let of = Checkpoint {
            shard: shard.replica.shard(),
            index: base.index,
            term: base.term,
            chain: base.chain,
        };
        let mut waiting = VecDeque::from([Order::Begin(of)]);
        let index = shard.engine.begin_checkpoint(&mut |chunk| {
            waiting.push_back(Order::Chunk(chunk.to_vec()));
        });
        debug_assert_eq!(index, base.index, "the engine has applied what the replica handed out");
        shard.grown = 0;
        if let Some(begun) = self.appended.get_mut(at) {
            *begun = appended;
        }
        self.active = Some(Active { at, of, begun_us: now.mono_us, waiting, whole: false });
    }

    /// Hands over what the queue has room for; says whether all of it went and
    /// more is to be written.
    fn send(&mut self, shards: &mut [Shard], now: Now) -> bool {
        let Some(active) = &mut self.active else { return false };
        while let Some(order) = active.waiting.pop_front() {
            match self.orders.try_send(order) {
                Ok(()) => {}
                Err(TrySendError::Full(order)) => {
                    active.waiting.push_front(order);
                    return false;
                }
                Err(TrySendError::Disconnected(_)) => {
                    self.fail("its thread has ended", shards, now);
                    return false;
                }
            }
        }
        !active.whole
    }

    fn take_end(&mut self, ended: Ended, shards: &mut [Shard], now: Now) {
        let Some(active) = self.active.as_ref().filter(|active| active.of.shard == ended.shard)
        else {
            return;
        };
        match ended.result {
            Ok(bytes) => {
                let Active { at, of, begun_us, .. } = *active;
                let took_us = now.mono_us.saturating_sub(begun_us);
                let Checkpoint { shard, index, term, chain } = of;
                if let (Some(last), Some(before)) = (self.last.get_mut(at), self.before.get_mut(at))
                {
                    let of = |Base { index, term, chain }| Checkpoint { shard, index, term, chain };
                    *before = last.base.map(of);
                    let base = Some(Base { index, term, chain });
                    *last = Last { index, at_us: begun_us, took_us, bytes, base };
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
        let Checkpoint { shard, index, .. } = active.of;
        eprintln!("checkpoint of shard {shard} at index {index} failed: {why}");
    }
}

impl Active {
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

/// The writing thread.
struct Writing {
    checkpoints: Checkpoints,
    ended: Arc<ArrayQueue<Ended>>,
    exchange: Arc<Exchange>,
}

impl Writing {
    fn run(mut self, inbox: &Receiver<Order>) {
        let mut current: Option<(u16, CheckpointWriter)> = None;
        while let Ok(order) = inbox.recv() {
            current = self.carry_out(order, current);
            // There is room in the queue, or an end to be taken.
            self.exchange.wake();
        }
    }

    /// Carries one order out. What follows a failure is passed over until the
    /// next begins.
    fn carry_out(
        &mut self,
        order: Order,
        current: Option<(u16, CheckpointWriter)>,
    ) -> Option<(u16, CheckpointWriter)> {
        let (shard, done) = match (order, current) {
            (Order::Begin(of), abandoned) => {
                if let Some((_, writer)) = abandoned {
                    writer.abandon();
                }
                (of.shard, self.checkpoints.create(of).map(Some))
            }
            (Order::Chunk(chunk), Some((shard, mut writer))) => match writer.chunk(&chunk) {
                Ok(()) => (shard, Ok(Some(writer))),
                Err(error) => {
                    // Gives back the space, of which there may be none.
                    writer.abandon();
                    (shard, Err(error))
                }
            },
            (Order::Commit, Some((shard, writer))) => {
                let bytes = writer.bytes();
                let committed = writer.commit();
                if committed.is_ok() {
                    drop(self.ended.push(Ended { shard, result: Ok(bytes) }));
                }
                (shard, committed.map(|_| None))
            }
            (Order::Release(release), current) => {
                let first = release.first();
                match release.run() {
                    Ok(()) => println!("log: begins with segment {first} now"),
                    // What is needed is there; the next release, or start, goes on.
                    Err(error) => {
                        eprintln!("log: segments before {first} are not released: {error}")
                    }
                }
                return current;
            }
            (Order::Chunk(_) | Order::Commit, None) => return None,
        };
        match done {
            Ok(writer) => writer.map(|writer| (shard, writer)),
            Err(error) => {
                drop(self.ended.push(Ended { shard, result: Err(error) }));
                None
            }
        }
    }
}
