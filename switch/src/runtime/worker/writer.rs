//! What goes to the log, when: the frames of all shards in order, paced.

use std::collections::VecDeque;

use storage::disk::Disk;
use storage::{FRAME_HEADER_BYTES, Frame, FrameKind, Log};

use super::WorkerError;
use super::shard::Shard;
use crate::engine::Now;
use crate::replica::{self, Append};

/// A batch of this size is written without waiting for more, bytes.
const WRITE_AT_ONCE_BYTES: usize = 64 * 1024;
/// How many may follow each other without pause after a quiet time.
const BURST: u64 = 4;
/// A write that costs more than usual (a disk that is shared, say) is asked for less
/// often: at most once per this many halves of what writes take.
const WRITE_HALVES: u64 = 3;
/// With other sites every payment waits for several disks twice.
const WRITE_HALVES_AMONG: u64 = 8;
/// A handful of records, bytes.
const BUSY_BYTES: usize = 4096;
/// But never less often than this, microseconds.
const INTERVAL_MAX_US: u64 = 2_500;

/// A pace that is kept on the average: something may be done once per interval,
/// and a few times in a row after a pause, so that a lone payment is never held
/// back.
pub(super) struct Pace {
    interval_us: u64,
    /// What `interval_us` never falls below.
    least_us: u64,
    /// Moving average of what a write takes, microseconds.
    write_us: u64,
    /// How many halves of it pass between two writes.
    halves: u64,
    /// When the next small one is due.
    pub(super) due_us: u64,
    last_us: u64,
    /// More than a handful of records per interval.
    pub(super) busy: bool,
    /// From how many bytes on it is more, of which the simulation has none.
    pub(super) busy_bytes: usize,
}

impl Pace {
    pub(super) fn new(interval_us: u64, alone: bool) -> Self {
        Self {
            interval_us,
            least_us: interval_us,
            write_us: 0,
            halves: if alone { WRITE_HALVES } else { WRITE_HALVES_AMONG },
            due_us: 0,
            last_us: 0,
            busy: false,
            busy_bytes: BUSY_BYTES,
        }
    }

    /// A write took this long: adapts the interval, if there is to be one.
    pub(super) fn took(&mut self, write_us: u64) {
        if self.least_us == 0 {
            return;
        }
        self.write_us = (self.write_us * 15 + write_us.min(INTERVAL_MAX_US)) / 16;
        let wanted = (self.write_us * self.halves / 2).min(INTERVAL_MAX_US);
        self.interval_us = wanted.max(self.least_us);
    }

    /// Whether it is too early for `bytes`; large ones never wait. When it is
    /// not, the next interval begins.
    pub(super) fn holds(&mut self, now: Now, bytes: usize) -> bool {
        if self.due_us > now.mono_us && bytes < WRITE_AT_ONCE_BYTES {
            return true;
        }
        let interval = self.interval_us;
        let since = now.mono_us.saturating_sub(self.last_us);
        self.busy = bytes > self.busy_bytes && since < 8 * interval;
        self.last_us = now.mono_us;
        let earliest = now.mono_us.saturating_sub(BURST * interval);
        self.due_us = (self.due_us.max(earliest) + interval).min(now.mono_us + interval);
        false
    }
}

/// Frames on their way to the log, in order.
pub(super) struct Writer {
    /// Shard (place in the worker's list) and what is to be appended, in order.
    queue: VecDeque<(usize, Append)>,
    /// Payload bytes in `queue`.
    queued_bytes: usize,
    /// Payload bytes appended so far.
    appended_bytes: u64,
    /// An election waits for what is queued.
    urgent: bool,
    /// When the last write was started.
    pub(super) submitted_us: u64,
    /// Writes cost the same whatever they carry: not more often than this.
    pub(super) pace: Pace,
}

impl Writer {
    pub(super) fn new(interval_us: u64, alone: bool) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            appended_bytes: 0,
            urgent: false,
            submitted_us: 0,
            pace: Pace::new(interval_us, alone),
        }
    }

    /// Takes what a replica wants written.
    pub(super) fn take(&mut self, at: usize, wants: &mut replica::Outputs) {
        self.urgent |= std::mem::take(&mut wants.urgent);
        for append in wants.appends.drain(..) {
            self.queued_bytes += payload_bytes(&append);
            self.queue.push_back((at, append));
        }
    }

    /// Writes down once more what the hard state of the shard at this place is; `false`
    /// when the replica has a newer one to be written first.
    pub(super) fn repeat_state(&mut self, at: usize, shard: &mut Shard) -> bool {
        let Some(state) = shard.replica.state_again() else { return false };
        self.queued_bytes += crate::replica::HardState::LEN;
        self.queue.push_back((at, Append::HardState(state)));
        true
    }

    /// Whether it is too early for what waits. Elections never wait: every one of
    /// their steps would, one after the other, while the shard has no leader.
    pub(super) fn holds(&mut self, now: Now) -> bool {
        !self.urgent && self.pace.holds(now, self.queued_bytes)
    }

    /// How long it is too early, microseconds.
    pub(super) fn wait_us(&self, now: Now) -> u64 {
        if self.urgent { 0 } else { self.pace.due_us.saturating_sub(now.mono_us) }
    }

    /// Whether nothing waits to be appended.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Payload bytes appended since the start.
    pub(super) fn appended_bytes(&self) -> u64 {
        self.appended_bytes
    }

    /// Bytes that wait.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Appends what the log's open batch has room for, and tells the replicas
    /// where their frames lie. Returns the payload bytes appended.
    pub(super) fn append<D: Disk>(
        &mut self,
        shards: &mut [Shard],
        log: &mut Log<D>,
    ) -> Result<usize, WorkerError> {
        let before = self.queued_bytes;
        while let Some((at, append)) = self.queue.front() {
            let bytes = payload_bytes(append);
            let is_ticket = matches!(append, Append::Ticket(_));
            // The last bytes are kept for the commit indexes that ride along. What an empty
            // batch has no room for will never have any: the log says so, and it ends here.
            let waits = log.unsubmitted() && bytes + 2 * FRAME_HEADER_BYTES > log.room();
            if !is_ticket && waits {
                break;
            }
            let Some(shard) = shards.get_mut(*at) else { break };
            put(shard, append, log)?;
            self.queued_bytes -= bytes;
            self.queue.pop_front();
        }
        self.urgent &= !self.queue.is_empty();
        let taken = before - self.queued_bytes;
        self.appended_bytes += taken as u64;
        Ok(taken)
    }

    /// Writes down how far the shards are committed, beside other frames.
    pub(super) fn append_commits<D: Disk>(
        &mut self,
        shards: &mut [Shard],
        log: &mut Log<D>,
    ) -> Result<(), WorkerError> {
        // Behind frames that wait, a commit index could speak of what is not there.
        if !self.queue.is_empty() {
            return Ok(());
        }
        for shard in shards {
            let needed = FRAME_HEADER_BYTES + crate::replica::HardState::LEN;
            if log.room() < needed {
                break;
            }
            if let Some(state) = shard.replica.commit_to_save() {
                put(shard, &Append::HardState(state), log)?;
            }
        }
        Ok(())
    }
}

fn payload_bytes(append: &Append) -> usize {
    match append {
        Append::Block(entry, _) => entry.data.len(),
        Append::HardState(_) => crate::replica::HardState::LEN,
        Append::Base(_) | Append::Ticket(_) => 0,
    }
}

fn put<D: Disk>(shard: &mut Shard, append: &Append, log: &mut Log<D>) -> Result<(), WorkerError> {
    let number = shard.replica.shard();
    match append {
        Append::Block(entry, chain) => {
            log.append(&Frame {
                kind: FrameKind::Block,
                shard: number,
                term: entry.term,
                index: entry.index,
                chain: *chain,
                payload: &entry.data,
            })?;
        }
        Append::Base(base) => {
            log.append(&Frame {
                kind: FrameKind::Base,
                shard: number,
                term: base.term,
                index: base.index,
                chain: base.chain,
                payload: &[],
            })?;
        }
        Append::HardState(state) => {
            log.append(&Frame {
                kind: FrameKind::HardState,
                shard: number,
                term: state.term,
                index: 0,
                chain: [0; 32],
                payload: &state.encode(),
            })?;
        }
        Append::Ticket(ticket) => shard.replica.appended(*ticket, log.appended().0),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use storage::disk::SimDisk;
    use storage::{CHAIN_START, LogError, Settings, chain_next};

    use super::*;
    use crate::engine::Engine;
    use crate::replica::{ReplicaConfig, Timing};
    use crate::runtime::testing::Cluster;

    fn shard() -> Shard {
        let replica = replica::Recovering::new(ReplicaConfig {
            shard: 0,
            site: 1,
            witnesses: Vec::new(),
            voters: vec![1],
            preference: vec![1],
            seed: 1,
            tail_bytes_max: 0,
            timing: Timing::default(),
        });
        let engine = Engine::new(Cluster::new(1).configs[0].engine(0));
        Shard::new(engine, replica.start(), Default::default())
    }

    fn log() -> Log<SimDisk> {
        let settings = Settings {
            cluster: 7,
            worker: 0,
            segment_bytes: 68 << 10,
            batch_max_bytes: 64 << 10,
            idle_seal_us: 1_000,
        };
        let disk = SimDisk::new(3, settings.segment_bytes);
        Log::with_disk(disk, settings, &mut |_| Ok(())).unwrap().0
    }

    /// Queues blocks of these sizes, from index 1 on.
    fn queued(sizes: &[usize]) -> Writer {
        let mut wants = replica::Outputs::default();
        let mut chain = CHAIN_START;
        for (index, bytes) in (1..).zip(sizes) {
            let block = Bytes::from(vec![7; *bytes]);
            chain = chain_next(&chain, &block);
            wants.appends.push_back(Append::Block(replica::entry(index, 1, block), chain));
        }
        let mut writer = Writer::new(0, true);
        writer.take(0, &mut wants);
        writer
    }

    /// Appends what there is room for and writes it; the bytes.
    fn step(writer: &mut Writer, log: &mut Log<SimDisk>) -> Result<usize, WorkerError> {
        let taken = writer.append(&mut [shard()], log)?;
        assert!(log.submit()?);
        while log.in_flight() {
            log.poll()?;
        }
        Ok(taken)
    }

    #[test]
    fn a_block_waits_for_a_batch_that_has_room_and_the_largest_fills_one() {
        let mut log = log();
        let max = log.payload_max();
        // Without the room that is kept for commit indexes beside other frames.
        let sizes = [100, max - 1, max, 300, 200];
        let mut writer = queued(&sizes);
        for taken in [100, max - 1, max, 500] {
            assert_eq!(step(&mut writer, &mut log).unwrap(), taken);
        }
        assert!(writer.is_empty());
    }

    /// Another site's batches may be larger than this one's: it would wait for ever, and
    /// every shard behind it.
    #[test]
    fn a_block_that_no_batch_can_hold_ends_the_worker() {
        let mut log = log();
        let mut writer = queued(&[100, log.payload_max() + 1, 100]);
        assert_eq!(step(&mut writer, &mut log).unwrap(), 100);
        let error = step(&mut writer, &mut log).unwrap_err();
        let max = log.payload_max();
        assert!(
            matches!(error, WorkerError::Log(LogError::PayloadTooLarge { max: told }) if told == max),
            "{error}"
        );
    }

    fn at(mono_us: u64) -> Now {
        Now { mono_us, ..Now::default() }
    }

    #[test]
    fn without_an_interval_nothing_is_held_back() {
        let mut pace = Pace::new(0, true);
        (0..200).for_each(|_| pace.took(50_000));
        assert!((0..100).all(|_| !pace.holds(at(1_000_000), 1)));
    }

    #[test]
    fn dear_writes_are_asked_for_less_often_and_most_so_among_several_sites() {
        for (alone, write_us, every_us) in [
            (true, 100, 600),
            (true, 800, 1_200),
            (true, 50_000, INTERVAL_MAX_US),
            (false, 100, 600),
            (false, 300, 1_200),
        ] {
            let mut pace = Pace::new(600, alone);
            // The average creeps: rounded down it stays a little below.
            (0..200).for_each(|_| pace.took(write_us));
            // A burst is spent first.
            let start = 1_000_000;
            assert!((0..=BURST).all(|_| !pace.holds(at(start), 1)));
            let due = pace.due_us - start;
            assert!(due <= every_us && due + 120 >= every_us, "{alone} {write_us}: {due}");
            assert!(pace.holds(at(start + due - 1), 1) && !pace.holds(at(start + due), 1));
            assert!(!pace.holds(at(start + due), WRITE_AT_ONCE_BYTES), "much never waits");
        }
    }
}
