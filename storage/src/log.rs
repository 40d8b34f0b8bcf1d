//! The log itself: one open batch, one in flight, a durable mark.
//!
//! Generic over the disk, free of clocks and threads. Everything that is
//! reported durable was confirmed by the disk; after the first failure nothing
//! is. Tested by `tests/files.rs`, `tests/faults.rs` and `tests/alloc.rs`.

mod history;
mod open;

pub use history::LogRelease;
pub(crate) use open::load_released;
pub use open::{Closed, Replay};
use open::{identity_damage, open_error, shard_ends, start_writing};

use crate::chain::Spans;
use crate::config::{LogConfig, Settings};
use crate::disk::{
    Buffer, Disk, DiskError, DiskFacts, DiskOp, FileDisk, SegmentFile, Space, Write,
};
use crate::error::{DamageCause, LogError, ReplayError};
use crate::format::{
    Anchor, BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, FLAG_SEAL, FRAME_HEADER_BYTES, Identity,
    SegmentHeader, batch_hash, encode_frame,
};
use crate::frame::{Frame, Lsn};
use crate::notify::Notify;
use crate::places::{Places, RecoveredPlaces};
use crate::release::{Holdings, remove_before};
use crate::scan::{Cut, Found, Position, ScanError, ShardEnd, Verified, scan};

/// Every buffer starts with room for a segment header, so that a batch which
/// opens a segment is one write with it.
const BATCH_START: usize = BLOCK_BYTES;
const BODY_START: usize = BATCH_START + BATCH_HEADER_BYTES;
/// Bound on waiting for the first segment and for the last writes.
const WAIT_ROUNDS: u32 = 1_000;
const WAIT_US: u64 = 20_000;

/// What opening found.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// The log's number: random, made with it, and never another one's.
    pub log: u64,
    /// Frames replayed.
    pub frames: u64,
    /// Batches read, seals included.
    pub batches: u64,
    /// Segments that hold data.
    pub segments: u64,
    /// The last frame; [`Lsn`] 0 in a new log.
    pub last: Lsn,
    /// Where the log ended.
    pub end: Position,
    /// Whether the last batch was a seal: an orderly or idle end.
    pub sealed: bool,
    /// What was torn and removed.
    pub cut: Option<Cut>,
    /// Last block of each shard.
    pub shards: Vec<ShardEnd>,
    /// How the log writes from now on, and why not better.
    pub disk: DiskFacts,
}

/// Counters since the log was opened, and its state.
#[derive(Debug, Clone, Copy)]
pub struct LogStats {
    /// Frames appended.
    pub frames: u64,
    /// Frame bytes appended, headers included.
    pub frame_bytes: u64,
    /// Bytes written, padding and headers included.
    pub written_bytes: u64,
    /// Batches made durable, seals included.
    pub batches: u64,
    /// Seals made durable.
    pub seals: u64,
    /// Times a batch had to wait for a prepared segment.
    pub segment_waits: u64,
    /// Microseconds of the last write until durable.
    pub flush_us_last: u64,
    /// The longest of them.
    pub flush_us_max: u64,
    /// The sum of them.
    pub flush_us_total: u64,
    /// The current segment; 0 before the first.
    pub segment: u64,
    /// The segment with which the log begins.
    pub first_segment: u64,
    /// Everything up to here is durable.
    pub durable: Lsn,
    /// Room on the file system.
    pub space: Space,
    /// Bytes free on the file system, as last seen; `None` when unknown.
    pub free_bytes: Option<u64>,
    /// How the log writes, and why not better.
    pub disk: DiskFacts,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    last_lsn: u64,
    bytes: usize,
    seal: bool,
}

#[derive(Debug, Default)]
struct Counters {
    frames: u64,
    frame_bytes: u64,
    written_bytes: u64,
    batches: u64,
    seals: u64,
    segment_waits: u64,
    flush_us_last: u64,
    flush_us_max: u64,
    flush_us_total: u64,
}

/// The log of one worker. Not shared: one thread appends, submits and polls.
#[derive(Debug)]
pub struct Log<D: Disk = FileDisk> {
    // First, so that an unfinished write is waited for before buffers go.
    disk: D,
    settings: Settings,
    identity: Identity,
    epoch: u64,
    /// The batch being filled, and its end.
    open: Buffer,
    open_end: usize,
    open_frames: u32,
    /// The other buffer; away while a write is in flight.
    resting: Option<Buffer>,
    flight: Option<Flight>,
    next_batch: u64,
    next_lsn: u64,
    durable: u64,
    /// Where what is durable ends.
    durable_end: Position,
    /// The segment with which the log begins.
    first_segment: u64,
    last_hash: [u8; 32],
    segment: SegmentFile,
    /// Where the next batch goes in the current segment.
    offset: u64,
    /// Data was written since the last seal.
    unsealed: bool,
    quiet_since_us: Option<u64>,
    waiting_for_segment: bool,
    spans: Spans,
    places: Places,
    holdings: Holdings,
    /// Up to where each shard's blocks are released.
    anchors: Vec<Anchor>,
    poison: Option<DiskError>,
    counters: Counters,
}

impl Log<FileDisk> {
    /// Locks the directory, recovers, calls `replay` for each frame in order,
    /// and is then ready to append. `notify` is woken at every completion.
    ///
    /// Refuses a damaged, foreign, newer or used log without changing it; a
    /// torn tail is cut and told in [`Recovery`].
    pub fn open(
        config: LogConfig,
        notify: Notify,
        replay: &mut dyn FnMut(Frame<'_>) -> Result<(), ReplayError>,
    ) -> Result<(Log<FileDisk>, Recovery), LogError> {
        Closed::lock(&config, notify)?.open(replay)
    }
}

impl<D: Disk> Log<D> {
    /// [`Log::open`] on any disk.
    pub fn with_disk(
        disk: D,
        settings: Settings,
        replay: &mut dyn FnMut(Frame<'_>) -> Result<(), ReplayError>,
    ) -> Result<(Log<D>, Recovery), LogError> {
        Closed::with_disk(disk, settings)?.open(replay)
    }

    fn recover(closed: Closed<D>, replay: &mut dyn Replay) -> Result<(Log<D>, Recovery), LogError> {
        let Closed { mut disk, settings, stored } = closed;
        let identity = match stored {
            Some(identity) => identity,
            None => Identity {
                log: disk.random().map_err(LogError::Disk)?,
                cluster: settings.cluster,
                worker: settings.worker,
            },
        };
        let released = load_released(&mut disk, &identity)?;
        let mut recovered = RecoveredPlaces::default();
        let mut visit = |found: Found, frame: Frame<'_>| {
            recovered.note(found, &frame);
            replay.frame(frame)
        };
        let scanned = scan(&mut disk, identity, released.as_ref(), false, &mut visit);
        let (verified, cut) = match (stored, scanned) {
            (Some(_), scanned) => scanned.map_err(open_error)?,
            (None, Ok((verified, None))) if verified.batches == 0 => (verified, None),
            (None, Err(ScanError::Disk(error))) => return Err(LogError::Disk(error)),
            (None, _) => return Err(identity_damage(&disk, DamageCause::MissingIdentity)),
        };
        // The last one to refuse: from here on the log is changed.
        replay.end(&shard_ends(&verified)).map_err(LogError::Refused)?;
        if let Some(cut) = &cut {
            let to = cut.offset + cut.bytes;
            disk.erase(cut.segment, cut.offset, to).map_err(LogError::Disk)?;
        }
        remove_before(&mut disk.files(), verified.first_segment).map_err(LogError::Disk)?;
        let current = start_writing(&mut disk, &verified)?;
        let mut log = Log::assemble(disk, settings, identity, &verified, current);
        (log.places, log.holdings) = recovered.finish();
        log.anchors = released.map_or(Vec::new(), |released| released.anchors);
        log.first_segment()?;
        if stored.is_none() {
            // After the first segment exists: an identity promises segments.
            log.store_identity()?;
        }
        log.seal_and_wait()?;
        let recovery = Recovery {
            log: identity.log,
            frames: verified.next_lsn - verified.first_lsn,
            batches: verified.batches,
            segments: verified.segments,
            last: Lsn(verified.next_lsn - 1),
            end: verified.end,
            sealed: verified.sealed,
            cut,
            shards: shard_ends(&verified),
            disk: log.disk.facts(),
        };
        Ok((log, recovery))
    }

    fn assemble(
        mut disk: D,
        settings: Settings,
        identity: Identity,
        verified: &Verified,
        current: Option<SegmentFile>,
    ) -> Log<D> {
        let bytes = BATCH_START + settings.batch_max_bytes;
        let (open, resting) = (disk.buffer(bytes), disk.buffer(bytes));
        disk.register([&open, &resting]);
        Log {
            disk,
            settings,
            identity,
            epoch: verified.epoch + 1,
            open,
            open_end: BODY_START,
            open_frames: 0,
            resting: Some(resting),
            flight: None,
            next_batch: verified.next_batch,
            next_lsn: verified.next_lsn,
            durable: verified.next_lsn - 1,
            durable_end: verified.end,
            first_segment: verified.first_segment,
            last_hash: verified.last_hash,
            segment: current.unwrap_or(SegmentFile { id: 0, bytes: 0 }),
            offset: verified.end.offset,
            unsealed: true,
            quiet_since_us: None,
            waiting_for_segment: false,
            spans: verified.chains.spans(),
            places: Places::default(),
            holdings: Holdings::default(),
            anchors: Vec::new(),
            poison: None,
            counters: Counters::default(),
        }
    }

    /// Copies a frame into the open batch and returns its ordinal. Not durable
    /// before [`Log::poll`] says so.
    pub fn append(&mut self, frame: &Frame<'_>) -> Result<Lsn, LogError> {
        self.sound()?;
        let bytes = FRAME_HEADER_BYTES + frame.payload.len();
        if bytes > self.open.len() - self.open_end {
            let max = self.payload_max();
            return Err(match frame.payload.len() > max {
                true => LogError::PayloadTooLarge { max },
                false => LogError::BatchFull,
            });
        }
        if !self.spans.admit(frame) {
            return Err(LogError::IndexGap { shard: frame.shard, index: frame.index });
        }
        self.places.note(frame);
        self.holdings.note(frame);
        let lsn = Lsn(self.next_lsn);
        self.open_end += encode_frame(frame, &mut self.open[self.open_end..]);
        self.open_frames += 1;
        self.next_lsn += 1;
        self.counters.frames += 1;
        self.counters.frame_bytes += bytes as u64;
        Ok(lsn)
    }

    /// Bytes left in the open batch. A frame takes [`FRAME_HEADER_BYTES`] and
    /// its payload.
    pub fn room(&self) -> usize {
        self.open.len() - self.open_end
    }

    /// The largest payload of a single frame, in bytes.
    pub fn payload_max(&self) -> usize {
        self.settings.batch_max_bytes - BATCH_HEADER_BYTES - FRAME_HEADER_BYTES
    }

    /// Starts writing the open batch, unless it is empty, a write is in flight,
    /// or no segment is ready; says whether one was started.
    pub fn submit(&mut self) -> Result<bool, LogError> {
        self.sound()?;
        if self.open_frames == 0 {
            return Ok(false);
        }
        self.start(false)
    }

    /// The durable mark, when a write has completed since the last call.
    /// Never blocks.
    pub fn poll(&mut self) -> Result<Option<Lsn>, LogError> {
        self.sound()?;
        if self.flight.is_none() {
            return Ok(None);
        }
        let Some(written) = self.disk.poll() else { return Ok(None) };
        self.resting = Some(written.buffer);
        let Some(flight) = self.flight.take() else { return Ok(None) };
        if let Err(error) = written.result {
            return Err(self.stop(error));
        }
        self.count(flight, written.elapsed_us);
        debug_assert!(flight.last_lsn >= self.durable, "the durable mark never goes back");
        self.durable = flight.last_lsn;
        self.holdings.landed();
        // Nothing was started since: this is where the completed write ends.
        self.durable_end = Position { segment: self.segment.id, offset: self.offset };
        Ok(Some(Lsn(self.durable)))
    }

    /// Whether a write is in flight.
    pub fn in_flight(&self) -> bool {
        self.flight.is_some()
    }

    /// Whether the open batch holds frames that no write was started for: the
    /// last [`Log::submit`] found no segment ready. Submit again when woken.
    pub fn unsubmitted(&self) -> bool {
        self.open_frames > 0
    }

    /// Everything up to here is durable.
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable)
    }

    /// The last appended frame.
    pub fn appended(&self) -> Lsn {
        Lsn(self.next_lsn - 1)
    }

    /// To be called now and then with the time in microseconds. After
    /// `idle_seal_us` without traffic, writes an empty batch that proves the
    /// last one durable.
    pub fn idle(&mut self, now_us: u64) -> Result<(), LogError> {
        self.sound()?;
        if self.flight.is_some() || self.open_frames > 0 {
            self.quiet_since_us = None;
            return Ok(());
        }
        if !self.unsealed {
            return Ok(());
        }
        let since = *self.quiet_since_us.get_or_insert(now_us);
        if now_us.saturating_sub(since) >= self.settings.idle_seal_us {
            self.start(true)?;
        }
        Ok(())
    }

    /// Writes what is open, waits, seals, waits, and ends.
    pub fn close(mut self) -> Result<(), LogError> {
        self.sound()?;
        self.wait_flight()?;
        if self.open_frames > 0 {
            self.start_waiting(false)?;
        }
        if self.unsealed {
            self.seal_and_wait()?;
        }
        Ok(())
    }

    /// Room on the file system.
    pub fn space(&self) -> Space {
        self.disk.space()
    }

    /// Counters and state.
    pub fn stats(&self) -> LogStats {
        let counters = &self.counters;
        LogStats {
            frames: counters.frames,
            frame_bytes: counters.frame_bytes,
            written_bytes: counters.written_bytes,
            batches: counters.batches,
            seals: counters.seals,
            segment_waits: counters.segment_waits,
            flush_us_last: counters.flush_us_last,
            flush_us_max: counters.flush_us_max,
            flush_us_total: counters.flush_us_total,
            segment: self.segment.id,
            first_segment: self.first_segment,
            durable: Lsn(self.durable),
            space: self.disk.space(),
            free_bytes: self.disk.free_bytes(),
            disk: self.disk.facts(),
        }
    }

    fn sound(&self) -> Result<(), LogError> {
        self.poison.map_or(Ok(()), |error| Err(LogError::Poisoned(error)))
    }

    fn stop(&mut self, error: DiskError) -> LogError {
        self.poison = Some(error);
        LogError::Poisoned(error)
    }

    fn count(&mut self, flight: Flight, elapsed_us: u64) {
        let counters = &mut self.counters;
        counters.batches += 1;
        counters.seals += u64::from(flight.seal);
        counters.written_bytes += flight.bytes as u64;
        counters.flush_us_last = elapsed_us;
        counters.flush_us_max = counters.flush_us_max.max(elapsed_us);
        counters.flush_us_total += elapsed_us;
    }

    /// Starts the write of the open batch, empty for a seal.
    fn start(&mut self, seal: bool) -> Result<bool, LogError> {
        let Some(resting) = self.resting.take() else { return Ok(false) };
        let bytes = (self.open_end - BATCH_START).next_multiple_of(BLOCK_BYTES);
        let opens_segment = self.offset + bytes as u64 > self.segment.bytes;
        let prev_end = self.offset;
        if opens_segment && !self.enter_next_segment(bytes as u64)? {
            self.resting = Some(resting);
            return Ok(false);
        }
        if opens_segment {
            self.write_segment_header(prev_end);
        }
        let batch_offset = self.offset;
        self.places.close_batch(Position { segment: self.segment.id, offset: batch_offset });
        self.holdings.close_batch(self.segment.id);
        self.write_batch_header(seal, bytes);
        let mut buffer = std::mem::replace(&mut self.open, resting);
        buffer[self.open_end..BATCH_START + bytes].fill(0);
        let header_bytes = if opens_segment { BLOCK_BYTES } else { 0 };
        let write = Write {
            buffer,
            from: BATCH_START - header_bytes,
            bytes: bytes + header_bytes,
            offset: batch_offset - header_bytes as u64,
        };
        let bytes = write.bytes;
        self.flight = Some(Flight { last_lsn: self.next_lsn - 1, bytes, seal });
        self.open_end = BODY_START;
        self.open_frames = 0;
        self.unsealed = !seal;
        self.quiet_since_us = None;
        self.disk.write(write).map_err(|error| self.stop(error))?;
        Ok(true)
    }

    /// Goes over to the next segment, which must hold a batch of `bytes`.
    fn enter_next_segment(&mut self, bytes: u64) -> Result<bool, LogError> {
        let Some(segment) = self.disk.next_segment().map_err(|error| self.stop(error))? else {
            self.counters.segment_waits += u64::from(!self.waiting_for_segment);
            self.waiting_for_segment = true;
            return Ok(false);
        };
        self.waiting_for_segment = false;
        assert_eq!(segment.id, self.segment.id + 1, "segments are used in order");
        if BLOCK_BYTES as u64 + bytes > segment.bytes {
            // Written behind its end, the batch would be refused at the next start.
            return Err(self.stop(DiskError::short(DiskOp::Prepare)));
        }
        self.segment = segment;
        self.offset = BLOCK_BYTES as u64;
        Ok(true)
    }

    fn write_segment_header(&mut self, prev_end: u64) {
        let header = SegmentHeader {
            identity: self.identity,
            segment: self.segment.id,
            segment_bytes: self.segment.bytes,
            first_batch: self.next_batch,
            first_lsn: self.next_lsn - u64::from(self.open_frames),
            prev_end,
            prev_hash: self.last_hash,
        };
        header.encode(&mut self.open[..BLOCK_BYTES]);
    }

    fn write_batch_header(&mut self, seal: bool, disk_bytes: usize) {
        let (head, body) = self.open.split_at_mut(BODY_START);
        let body = &body[..self.open_end - BODY_START];
        let header = BatchHeader {
            flags: if seal { FLAG_SEAL } else { 0 },
            log: self.identity.log,
            epoch: self.epoch,
            batch: self.next_batch,
            first_lsn: self.next_lsn - u64::from(self.open_frames),
            watermark: self.next_batch - 1,
            segment: self.segment.id,
            offset: self.offset,
            body_bytes: body.len() as u32,
            frames: self.open_frames,
            prev_hash: std::array::from_fn(|i| self.last_hash[i]),
            body_crc: crc32c::crc32c(body),
            write_max: self.settings.batch_max_bytes as u32,
        };
        let head = &mut head[BATCH_START..];
        header.encode(head);
        self.last_hash = batch_hash(head);
        self.next_batch += 1;
        self.offset += disk_bytes as u64;
    }

    /// A new log needs its first segment before anything else.
    fn first_segment(&mut self) -> Result<(), LogError> {
        for _ in 0..WAIT_ROUNDS {
            if self.segment.id > 0 || self.disk.facts().spares > 0 {
                return Ok(());
            }
            if let Some(error) = self.disk.failure() {
                return Err(LogError::Disk(error));
            }
            self.disk.wait(WAIT_US);
        }
        Err(LogError::NoSegment)
    }

    fn store_identity(&mut self) -> Result<(), LogError> {
        let mut block = vec![0; BLOCK_BYTES];
        self.identity.encode(&mut block);
        self.disk.store_identity(&block).map_err(LogError::Disk)
    }

    fn seal_and_wait(&mut self) -> Result<(), LogError> {
        self.start_waiting(true)
    }

    /// Starts a write, waiting for a segment when needed, and waits for it.
    fn start_waiting(&mut self, seal: bool) -> Result<(), LogError> {
        for _ in 0..WAIT_ROUNDS {
            if self.start(seal)? {
                return self.wait_flight();
            }
            self.disk.wait(WAIT_US);
        }
        Err(LogError::NoSegment)
    }

    /// Waits as long as it takes: a write in flight always ends.
    fn wait_flight(&mut self) -> Result<(), LogError> {
        while self.flight.is_some() {
            if self.poll()?.is_none() {
                self.disk.wait(WAIT_US);
            }
        }
        Ok(())
    }
}
