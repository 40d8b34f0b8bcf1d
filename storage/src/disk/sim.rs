//! A disk in memory that obeys a seed and misbehaves on request.
//!
//! A clone is another handle to the same disk: keep one, let the log be dropped
//! (the process dies), call [`SimDisk::crash`] (the power goes), and open again.
//! A write becomes durable when its completion is polled; a crash before that
//! keeps a subset of its 512-byte sectors. Deterministic: same seed, same calls,
//! same bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sim_files::SimFiles;
use super::{
    BackendKind, Disk, DiskError, DiskFacts, DiskOp, Files, PageFault, Pages, Piece, SegmentFile,
    Source, Space, VisitPiece, Write, Written,
};
use crate::format::{BLOCK_BYTES, encode_prepared};
use crate::release::{RELEASED_FILE, segment_of};
use crate::scan::Position;

const SECTOR: usize = 512;

/// A misbehaviour of the n-th write (counted from 0) or of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The write fails once with this error number, a random part of it done.
    FailWrite {
        /// Which write.
        nth: u64,
        /// The error number.
        errno: i32,
    },
    /// The write reports fewer bytes than asked.
    ShortWrite {
        /// Which write.
        nth: u64,
    },
    /// The write is confirmed and never happens.
    LoseWrite {
        /// Which write.
        nth: u64,
    },
    /// The write is confirmed and lands elsewhere.
    Misdirect {
        /// Which write.
        nth: u64,
        /// Where it lands.
        to: Position,
    },
    /// The write takes this many polls.
    Delay {
        /// Which write.
        nth: u64,
        /// Polls before it completes.
        polls: u32,
    },
    /// The block cannot be read.
    Unreadable {
        /// Where.
        at: Position,
    },
}

/// What a crash leaves of the write in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tear {
    /// Nothing.
    Nothing,
    /// All of it, although never confirmed.
    Everything,
    /// The first sectors, up to a random one.
    Prefix,
    /// Each sector by the toss of a coin.
    Sectors,
}

#[derive(Debug)]
struct State {
    random: u64,
    identity: Option<Vec<u8>>,
    prepared: u64,
    files: BTreeMap<u64, Vec<u8>>,
    segment_bytes: u64,
    /// Segments that fit on the disk.
    capacity: usize,
    current: u64,
    spares: VecDeque<u64>,
    flight: Option<(Write, u32)>,
    writes: u64,
    faults: Vec<Fault>,
    unreadable: BTreeSet<Position>,
    small: SimFiles,
    /// Segments whose removal is not durable.
    removed: Vec<(u64, Vec<u8>)>,
}

/// A handle to a simulated disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// The file that this handle has started last.
    writing: u64,
}

impl SimDisk {
    /// An empty disk with segments of `segment_bytes`.
    pub fn new(seed: u64, segment_bytes: u64) -> SimDisk {
        let state = State {
            random: seed,
            identity: None,
            prepared: 0,
            files: BTreeMap::new(),
            segment_bytes,
            capacity: usize::MAX,
            current: 0,
            spares: VecDeque::new(),
            flight: None,
            writes: 0,
            faults: Vec::new(),
            unreadable: BTreeSet::new(),
            small: SimFiles::default(),
            removed: Vec::new(),
        };
        SimDisk { state: Arc::new(Mutex::new(state)), writing: 0 }
    }

    /// Schedules a fault. Writes are counted over the life of the disk.
    pub fn inject(&self, fault: Fault) {
        let mut state = self.state();
        match fault {
            Fault::Unreadable { at } => {
                let offset = at.offset - at.offset % BLOCK_BYTES as u64;
                state.unreadable.insert(Position { offset, ..at });
            }
            other => state.faults.push(other),
        }
    }

    /// Limits the disk to this many segments.
    pub fn set_capacity(&self, segments: usize) {
        self.state().capacity = segments;
    }

    /// Writes started so far.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Power loss: what is in flight is torn, everything confirmed stays.
    pub fn crash(&self, tear: Tear) {
        let mut state = self.state();
        if let Some((write, _)) = state.flight.take() {
            state.store_torn(&write, tear);
        }
        state.spares.clear();
        let mut small = std::mem::take(&mut state.small);
        small.crash(|| state.next_random());
        state.small = small;
        for (segment, file) in std::mem::take(&mut state.removed) {
            if state.next_random() & 1 == 0 {
                state.files.insert(segment, file);
            }
        }
    }

    /// Lets the next `operations` changes of whole files succeed and all later
    /// ones fail, until the next crash.
    pub fn fail_files_after(&self, operations: u64) {
        let mut state = self.state();
        (state.small.left, state.small.once) = (Some(operations), false);
    }

    /// Lets the next `operations` changes of whole files succeed and the one behind
    /// them fail.
    pub fn fail_one_file_after(&self, operations: u64) {
        let mut state = self.state();
        (state.small.left, state.small.once) = (Some(operations), true);
    }

    /// Changes of whole files so far.
    pub fn file_operations(&self) -> u64 {
        self.state().small.done
    }

    /// Changes a whole file behind everybody's back.
    pub fn edit_file(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(bytes) = self.state().small.edit(name) {
            change(bytes);
        }
    }

    /// Changes a segment behind the log's back. The closure may resize it.
    pub fn edit(&self, segment: u64, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(file) = self.state().files.get_mut(&segment) {
            change(file);
        }
    }

    /// Removes a segment file.
    pub fn remove(&self, segment: u64) {
        self.state().files.remove(&segment);
    }

    /// The contents of a segment.
    pub fn contents(&self, segment: u64) -> Option<Vec<u8>> {
        self.state().files.get(&segment).cloned()
    }

    /// Replaces or removes the identity block.
    pub fn set_identity(&self, identity: Option<Vec<u8>>) {
        self.state().identity = identity;
    }

    /// Bits from the disk's seed.
    pub fn toss(&self) -> u64 {
        self.state().next_random()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn store(&mut self, at: Position, bytes: &[u8]) {
        let Some(file) = self.files.get_mut(&at.segment) else { return };
        let from = (at.offset as usize).min(file.len());
        let to = (from + bytes.len()).min(file.len());
        file[from..to].copy_from_slice(&bytes[..to - from]);
        let first = Position { offset: at.offset, ..at };
        let last = Position { offset: to as u64, ..at };
        self.unreadable.retain(|block| *block < first || *block >= last);
    }

    fn store_torn(&mut self, write: &Write, tear: Tear) {
        let sectors = write.bytes / SECTOR;
        let prefix = (self.next_random() % (sectors as u64 + 1)) as usize;
        for sector in 0..sectors {
            let keep = match tear {
                Tear::Nothing => false,
                Tear::Everything => true,
                Tear::Prefix => sector < prefix,
                Tear::Sectors => self.next_random() & 1 == 0,
            };
            if keep {
                let from = write.from + sector * SECTOR;
                let offset = write.offset + (sector * SECTOR) as u64;
                let at = Position { segment: self.current, offset };
                self.store(at, &write.buffer[from..from + SECTOR]);
            }
        }
    }

    fn complete(&mut self, write: &Write) -> Result<(), DiskError> {
        let nth = self.writes - 1;
        let fault = self.faults.iter().copied().find(|fault| match fault {
            Fault::FailWrite { nth: n, .. }
            | Fault::ShortWrite { nth: n }
            | Fault::LoseWrite { nth: n }
            | Fault::Misdirect { nth: n, .. } => *n == nth,
            Fault::Delay { .. } | Fault::Unreadable { .. } => false,
        });
        let bytes = &write.buffer[write.from..write.from + write.bytes];
        match fault {
            Some(Fault::FailWrite { errno, .. }) => {
                self.store_torn(write, Tear::Sectors);
                Err(DiskError { op: DiskOp::Write, errno: Some(errno) })
            }
            Some(Fault::ShortWrite { .. }) => {
                self.store_torn(write, Tear::Prefix);
                Err(DiskError::short(DiskOp::Write))
            }
            Some(Fault::LoseWrite { .. }) => Ok(()),
            Some(Fault::Misdirect { to, .. }) => {
                self.store(to, bytes);
                Ok(())
            }
            _ => {
                let at = Position { segment: self.current, offset: write.offset };
                self.store(at, bytes);
                Ok(())
            }
        }
    }

    /// Keeps two empty segments ready while the disk has room.
    fn prepare(&mut self) {
        while self.spares.len() < 2 && self.files.len() < self.capacity {
            let id = self.files.last_key_value().map_or(0, |(id, _)| *id) + 1;
            self.files.insert(id, vec![0; self.segment_bytes as usize]);
            self.spares.push_back(id);
            self.prepared = id;
        }
    }
}

impl Source for SimDisk {
    fn dir(&self) -> PathBuf {
        PathBuf::from("sim")
    }

    fn load_identity(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.state().identity.clone())
    }

    fn load_prepared(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        let mut block = vec![0; BLOCK_BYTES];
        encode_prepared(self.state().prepared, &mut block);
        Ok(Some(block))
    }

    fn load_released(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.state().small.read(RELEASED_FILE).map(<[u8]>::to_vec))
    }

    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        let state = self.state();
        let files = state.files.iter();
        Ok(files.map(|(id, file)| SegmentFile { id: *id, bytes: file.len() as u64 }).collect())
    }

    fn scan(
        &mut self,
        from: Position,
        segments: &[SegmentFile],
        visit: &mut VisitPiece<'_>,
    ) -> Result<(), DiskError> {
        let state = self.state();
        let block_bytes = BLOCK_BYTES as u64;
        for segment in segments.iter().filter(|segment| segment.id >= from.segment) {
            let Some(file) = state.files.get(&segment.id) else { continue };
            let mut offset = if segment.id == from.segment { from.offset } else { 0 };
            while offset + block_bytes <= file.len() as u64 {
                let at = Position { segment: segment.id, offset };
                // Few blocks at a time, so that batches cross pieces.
                let to =
                    (offset + 3 * block_bytes).min(file.len() as u64 / block_bytes * block_bytes);
                let mut bytes = file[offset as usize..to as usize].to_vec();
                let end = Position { offset: to, ..at };
                let unreadable: Vec<u64> =
                    state.unreadable.range(at..end).map(|bad| bad.offset).collect();
                for bad in &unreadable {
                    let start = (bad - offset) as usize;
                    bytes[start..start + BLOCK_BYTES].fill(0);
                }
                let piece = Piece {
                    segment: segment.id,
                    segment_bytes: segment.bytes,
                    bytes: &bytes,
                    unreadable: &unreadable,
                };
                if visit(piece) == ControlFlow::Break(()) {
                    return Ok(());
                }
                offset = to;
            }
        }
        Ok(())
    }
}

impl Pages for SimDisk {
    fn dir(&self) -> PathBuf {
        Source::dir(self)
    }

    fn read(&mut self, at: Position, buffer: &mut [u8]) -> Result<usize, PageFault> {
        let state = self.state();
        let file = state.files.get(&at.segment).ok_or(PageFault::Gone)?;
        let from = (at.offset as usize).min(file.len());
        let to = (from + buffer.len()).min(file.len());
        let end = Position { offset: to as u64, ..at };
        if state.unreadable.range(at..end.max(at)).next().is_some() {
            return Err(PageFault::Unreadable);
        }
        buffer[..to - from].copy_from_slice(&file[from..to]);
        Ok(to - from)
    }
}

impl Files for SimDisk {
    fn dir(&self) -> PathBuf {
        Source::dir(self)
    }

    fn list(&mut self) -> Result<Vec<String>, DiskError> {
        let state = self.state();
        let segments = state.files.keys().map(|id| format!("{id:016x}.wal"));
        Ok(state.small.list().into_iter().chain(segments).collect())
    }

    fn create(&mut self, name: &str) -> Result<(), DiskError> {
        let started = self.state().small.create(name)?;
        self.writing = started;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.state().small.append(self.writing, bytes)
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.state().small.sync(self.writing)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.state().small.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        let mut state = self.state();
        let Some(segment) = segment_of(name) else { return state.small.remove(name) };
        state.small.step()?;
        if let Some(file) = state.files.remove(&segment) {
            state.removed.push((segment, file));
        }
        Ok(())
    }

    fn sync_dir(&mut self) -> Result<(), DiskError> {
        let mut state = self.state();
        state.small.sync_dir()?;
        state.removed.clear();
        Ok(())
    }

    fn read(
        &mut self,
        name: &str,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, DiskError> {
        let state = self.state();
        let Some(bytes) = state.small.read(name) else { return Ok(None) };
        let from = (offset as usize).min(bytes.len());
        let to = (from + buffer.len()).min(bytes.len());
        buffer[..to - from].copy_from_slice(&bytes[from..to]);
        Ok(Some(to - from))
    }
}

impl Disk for SimDisk {
    type Pages = SimDisk;
    type Files = SimDisk;

    fn files(&self) -> SimDisk {
        self.clone()
    }

    fn pages(&self) -> SimDisk {
        self.clone()
    }

    fn random(&mut self) -> Result<u64, DiskError> {
        Ok(self.toss())
    }

    fn store_identity(&mut self, block: &[u8]) -> Result<(), DiskError> {
        self.state().identity = Some(block.to_vec());
        Ok(())
    }

    fn erase(&mut self, segment: u64, from: u64, to: u64) -> Result<(), DiskError> {
        let zeros = vec![0; (to - from) as usize];
        self.state().store(Position { segment, offset: from }, &zeros);
        Ok(())
    }

    fn begin(
        &mut self,
        current: Option<SegmentFile>,
        spares: &[SegmentFile],
    ) -> Result<(), DiskError> {
        let mut state = self.state();
        let bytes = state.segment_bytes as usize;
        for spare in spares {
            let file = state.files.entry(spare.id).or_default();
            file.resize(file.len().max(bytes), 0);
        }
        state.current = current.map_or(0, |segment| segment.id);
        state.spares = spares.iter().map(|segment| segment.id).collect();
        state.prepare();
        Ok(())
    }

    fn next_segment(&mut self) -> Result<Option<SegmentFile>, DiskError> {
        let mut state = self.state();
        state.prepare();
        let Some(id) = state.spares.pop_front() else { return Ok(None) };
        state.current = id;
        let bytes = state.files.get(&id).map_or(0, |file| file.len() as u64);
        state.prepare();
        Ok(Some(SegmentFile { id, bytes }))
    }

    fn write(&mut self, write: Write) -> Result<(), DiskError> {
        let mut state = self.state();
        assert!(state.flight.is_none(), "one write in flight");
        let nth = state.writes;
        state.writes += 1;
        let polls = state.faults.iter().find_map(|fault| match fault {
            Fault::Delay { nth: n, polls } if *n == nth => Some(*polls),
            _ => None,
        });
        state.flight = Some((write, polls.unwrap_or(0)));
        Ok(())
    }

    fn poll(&mut self) -> Option<Written> {
        let mut state = self.state();
        let (write, polls) = state.flight.take()?;
        if polls > 0 {
            state.flight = Some((write, polls - 1));
            return None;
        }
        let result = state.complete(&write);
        Some(Written { buffer: write.buffer, result, elapsed_us: 1 })
    }

    fn wait(&mut self, _timeout_us: u64) {
        if let Some((_, polls)) = &mut self.state().flight {
            *polls = 0;
        }
    }

    fn space(&self) -> Space {
        let state = self.state();
        match state.files.len() < state.capacity {
            true => Space::Ok,
            false => Space::Reserve,
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn facts(&self) -> DiskFacts {
        DiskFacts {
            backend: BackendKind::Sim,
            direct: true,
            realtime: false,
            fallback: None,
            spares: self.state().spares.len(),
        }
    }
}
