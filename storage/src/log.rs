//! The log: frames collect in the open batch while the one before is on its way
//! to the disk; one batch is in flight.
//!
//! That only one is in flight is what recovery rests on: a batch that follows
//! another proves that the other was durable.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::disk::aligned::AlignedBuf;
use crate::disk::file::{FileDisk, segment_path};
use crate::disk::{Backend, Disk};
use crate::error::{LogError, ReplayError};
use crate::format::{BATCH_HEADER, BLOCK, BatchHeader, Frame, SegmentHeader, header_hash};
use crate::recovery::{self, Recovery, Tail};
use crate::{Lsn, Notify};

/// Segments kept ready ahead of the one being written.
const SPARES: u64 = 2;
/// How often the free space is looked at.
const SPACE_EVERY: Duration = Duration::from_millis(100);

/// Settings of a log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The worker's folder.
    pub dir: PathBuf,
    /// Way of writing.
    pub backend: Backend,
    /// Cluster that the log belongs to.
    pub cluster: u64,
    /// Worker that it belongs to.
    pub worker: u16,
    /// Bytes of a segment, a multiple of 4096.
    pub segment_bytes: u64,
    /// Largest batch in bytes, a multiple of 4096.
    pub batch_max_bytes: usize,
    /// Free space below which [`Space::Reserve`] is reported, bytes.
    pub reserve_bytes: u64,
    /// Quiet time after which a seal batch is written, microseconds.
    pub idle_seal_us: u64,
}

impl LogConfig {
    fn check(&self) -> Result<(), LogError> {
        let block = BLOCK as u64;
        if self.batch_max_bytes < 2 * BLOCK || !self.batch_max_bytes.is_multiple_of(BLOCK) {
            return Err(LogError::Config(
                "batch_max_bytes must be a multiple of 4096, at least 8192",
            ));
        }
        if !self.segment_bytes.is_multiple_of(block)
            || self.segment_bytes < self.batch_max_bytes as u64 + 2 * block
        {
            return Err(LogError::Config(
                "segment_bytes must be a multiple of 4096 that holds the largest batch and a header",
            ));
        }
        Ok(())
    }
}

/// Whether new work may be admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Yes.
    Ok,
    /// Only the reserve is left: finish what is open, admit nothing new.
    Reserve,
}

/// Figures of a log.
#[derive(Clone, Debug, Default)]
pub struct LogStats {
    /// Batches made durable since open.
    pub batches: u64,
    /// Bytes written since open, padding included.
    pub written_bytes: u64,
    /// Number of the segment being written.
    pub segment: u64,
    /// Bytes of all segments up to the end of the log.
    pub log_bytes: u64,
    /// Duration of the last durable write, microseconds.
    pub last_write_us: u64,
    /// Free bytes on the disk when last looked at.
    pub free_bytes: u64,
    /// How it writes, for people.
    pub backend: String,
}

struct InFlight {
    batch: u64,
    last_lsn: Lsn,
    len: u64,
    started: Instant,
}

/// A worker's log, open for appending.
pub struct Log<D: Disk = FileDisk> {
    disk: D,
    config: LogConfig,
    epoch: u64,
    /// The open batch; `None` while its buffer waits for the one in flight.
    open: AlignedBuf,
    spare: Option<AlignedBuf>,
    /// Bytes of frames in the open batch.
    body: usize,
    frames: u32,
    next_lsn: Lsn,
    first_lsn: Lsn,
    batch: u64,
    durable_batch: u64,
    prev: [u8; 32],
    segment: u64,
    offset: u64,
    in_flight: Option<InFlight>,
    failed: Option<String>,
    last_activity_us: u64,
    activity: bool,
    sealed: bool,
    stats: LogStats,
    space_looked: Option<Instant>,
    space: Space,
}

impl Log<FileDisk> {
    /// Opens the log of a folder: recovers it, calling `replay` for each frame
    /// in order, and makes it ready to append. `notify` is woken at each
    /// completion.
    ///
    /// # Errors
    /// [`LogError`]; damage names file and offset.
    pub fn open(
        config: LogConfig,
        notify: Notify,
        replay: &mut dyn FnMut(Frame<'_>) -> Result<(), ReplayError>,
    ) -> Result<(Self, Recovery), LogError> {
        config.check()?;
        let disk = FileDisk::open(&config.dir, config.segment_bytes, config.backend, &notify)
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::WouldBlock => LogError::Locked(config.dir.clone()),
                _ => LogError::Io {
                    what: "cannot open the log in",
                    path: config.dir.clone(),
                    source,
                },
            })?;
        Self::open_on(disk, config, &mut || notify.wait(10_000), replay)
    }
}

impl<D: Disk> Log<D> {
    /// As [`Log::open`], on any disk. `wait` is called while a segment is being
    /// prepared.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_on(
        mut disk: D,
        config: LogConfig,
        wait: &mut dyn FnMut(),
        replay: &mut dyn FnMut(Frame<'_>) -> Result<(), ReplayError>,
    ) -> Result<(Self, Recovery), LogError> {
        config.check()?;
        let started = Instant::now();
        let (tail, mut recovery) = recovery::recover(&mut disk, &config, replay)?;
        let existing = recovery.segments;
        let mut log = Self::at(disk, config, tail, &recovery);
        for ahead in 0..=SPARES {
            let wanted = log.segment + ahead;
            if wanted >= existing {
                log.disk.prepare(wanted);
            }
        }
        while log.segment >= existing && !log.segment_ready(log.segment)? {
            wait();
        }
        recovery.backend = log.disk.describe();
        recovery.took_us = started.elapsed().as_micros() as u64;
        Ok((log, recovery))
    }

    fn at(disk: D, config: LogConfig, tail: Tail, recovery: &Recovery) -> Self {
        let buffer = || AlignedBuf::zeroed(config.batch_max_bytes + BLOCK);
        Self {
            stats: LogStats { backend: disk.describe(), ..LogStats::default() },
            disk,
            epoch: tail.epoch + 1,
            open: buffer(),
            spare: Some(buffer()),
            body: 0,
            frames: 0,
            next_lsn: recovery.last_lsn + 1,
            first_lsn: recovery.last_lsn + 1,
            batch: tail.batch + 1,
            durable_batch: tail.batch,
            prev: tail.prev,
            segment: tail.segment,
            offset: tail.offset,
            in_flight: None,
            failed: None,
            last_activity_us: 0,
            activity: false,
            sealed: false,
            space_looked: None,
            space: Space::Ok,
            config,
        }
    }

    fn segment_ready(&mut self, segment: u64) -> Result<bool, LogError> {
        self.disk.ready(segment).map_err(|source| LogError::Io {
            what: "cannot prepare",
            path: segment_path(&self.config.dir, segment),
            source,
        })
    }

    fn check(&self) -> Result<(), LogError> {
        match &self.failed {
            Some(why) => Err(LogError::Failed(why.clone())),
            None => Ok(()),
        }
    }

    /// Bytes that frames may still take in the open batch, their headers included.
    pub fn room(&self) -> usize {
        self.config.batch_max_bytes - BATCH_HEADER - self.body
    }

    /// Copies a frame into the open batch.
    ///
    /// # Errors
    /// [`LogError::BatchFull`], [`LogError::FrameTooLarge`], or the failure
    /// that ended the log.
    pub fn append(&mut self, frame: &Frame<'_>) -> Result<Lsn, LogError> {
        self.check()?;
        let len = frame.encoded_len();
        if len > self.config.batch_max_bytes - BATCH_HEADER {
            return Err(LogError::FrameTooLarge(frame.payload.len()));
        }
        if len > self.room() {
            return Err(LogError::BatchFull);
        }
        let at = BLOCK + BATCH_HEADER + self.body;
        frame.encode(&mut self.open[at..at + len]);
        self.body += len;
        self.frames += 1;
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        Ok(lsn)
    }

    /// Starts the write of the open batch when none is in flight. Returns
    /// whether one was started.
    ///
    /// # Errors
    /// The failure that ended the log.
    pub fn submit(&mut self) -> Result<bool, LogError> {
        self.check()?;
        if self.frames == 0 || self.in_flight.is_some() {
            return Ok(false);
        }
        self.write_open()
    }

    /// Writes the open batch, even an empty one (a seal).
    fn write_open(&mut self) -> Result<bool, LogError> {
        let len = (BATCH_HEADER + self.body).next_multiple_of(BLOCK);
        let fresh = self.offset == 0;
        let fits = self.offset + (len as u64) <= self.config.segment_bytes;
        let (segment, start) = match (fresh, fits) {
            (true, _) => (self.segment, 0),
            (false, true) => (self.segment, self.offset),
            (false, false) => (self.segment + 1, 0),
        };
        if start == 0 && !self.segment_ready(segment)? {
            return Ok(false);
        }
        if segment != self.segment {
            self.disk.prepare(segment + SPARES);
        }
        let Some(next) = self.spare.take() else { return Ok(false) };
        // A new segment's header leaves in the same write as its first batch.
        let batch_offset = if start == 0 { BLOCK as u64 } else { start };
        let header = BatchHeader {
            cluster: self.config.cluster,
            worker: self.config.worker,
            epoch: self.epoch,
            batch: self.batch,
            first_lsn: self.first_lsn,
            frames: self.frames,
            body: self.body as u32,
            segment,
            offset: batch_offset,
            durable: self.durable_batch,
            prev: self.prev,
        };
        let encoded = header.encode();
        if start == 0 {
            SegmentHeader {
                cluster: self.config.cluster,
                worker: self.config.worker,
                segment,
                first_batch: self.batch,
                segment_bytes: self.config.segment_bytes,
                prev: self.prev,
            }
            .encode(&mut self.open[..BLOCK]);
        }
        self.open[BLOCK..BLOCK + BATCH_HEADER].copy_from_slice(&encoded);
        self.open[BLOCK + BATCH_HEADER + self.body..BLOCK + len].fill(0);
        let mut full = std::mem::replace(&mut self.open, next);
        let written = if start == 0 {
            len + BLOCK
        } else {
            // The batch alone: move it to the buffer's front, where the write starts.
            full.copy_within(BLOCK..BLOCK + len, 0);
            len
        };
        self.disk.start(segment, start, full, written);
        self.in_flight = Some(InFlight {
            batch: self.batch,
            last_lsn: self.next_lsn - 1,
            len: written as u64,
            started: Instant::now(),
        });
        self.sealed = self.frames == 0;
        self.prev = header_hash(&encoded);
        self.batch += 1;
        self.segment = segment;
        self.offset = batch_offset + len as u64;
        self.first_lsn = self.next_lsn;
        self.body = 0;
        self.frames = 0;
        self.activity = true;
        Ok(true)
    }

    /// Takes the end of the write in flight: the highest durable ordinal.
    ///
    /// # Errors
    /// The failure; the log is unusable from then on.
    pub fn poll(&mut self) -> Result<Option<Lsn>, LogError> {
        self.check()?;
        if self.in_flight.is_none() {
            return Ok(None);
        }
        let Some((buffer, result)) = self.disk.poll() else { return Ok(None) };
        let Some(done) = self.in_flight.take() else { return Ok(None) };
        if let Err(error) = result {
            self.failed = Some(error.to_string());
            return self.check().map(|()| None);
        }
        self.spare = Some(buffer);
        self.durable_batch = done.batch;
        self.stats.batches += 1;
        self.stats.written_bytes += done.len;
        self.stats.last_write_us = done.started.elapsed().as_micros() as u64;
        Ok(Some(done.last_lsn))
    }

    /// Whether a write is in flight.
    pub fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Called when there is nothing to write: after `idle_seal_us` of quiet an
    /// empty batch is written, so that damage to the last real one is noticed.
    ///
    /// # Errors
    /// The failure that ended the log.
    pub fn idle(&mut self, now_us: u64) -> Result<(), LogError> {
        self.check()?;
        if std::mem::take(&mut self.activity) {
            self.last_activity_us = now_us;
        }
        let due = now_us.saturating_sub(self.last_activity_us) >= self.config.idle_seal_us;
        let unsealed = !self.sealed && self.durable_batch > 0;
        if due && unsealed && self.frames == 0 && self.in_flight.is_none() {
            self.write_open()?;
            self.activity = false;
        }
        Ok(())
    }

    /// Writes what is open, waits for it, seals and ends the log.
    ///
    /// # Errors
    /// The failure that ended the log.
    pub fn close(mut self) -> Result<(), LogError> {
        while self.in_flight.is_some() || self.frames > 0 {
            self.submit()?;
            self.pause()?;
        }
        if !self.sealed && self.durable_batch > 0 {
            while !self.write_open()? {
                self.pause()?;
            }
            while self.in_flight.is_some() {
                self.pause()?;
            }
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), LogError> {
        if self.poll()?.is_none() {
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Whether new work may be admitted.
    pub fn space(&mut self) -> Space {
        if self.space_looked.is_none_or(|looked| looked.elapsed() >= SPACE_EVERY) {
            self.space_looked = Some(Instant::now());
            // A disk that does not tell is treated as full: admitting is the risk.
            self.stats.free_bytes = self.disk.free_bytes().unwrap_or(0);
            self.space = if self.stats.free_bytes < self.config.reserve_bytes {
                Space::Reserve
            } else {
                Space::Ok
            };
        }
        self.space
    }

    /// Figures.
    pub fn stats(&self) -> LogStats {
        LogStats {
            segment: self.segment,
            log_bytes: self.segment * self.config.segment_bytes + self.offset,
            ..self.stats.clone()
        }
    }

    /// The disk, for tests.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }
}
