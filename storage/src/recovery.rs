//! Reading a log from its start: what is acknowledged, where it ends, and
//! whether an end is a torn tail or damage.
//!
//! The rule (docs/LOG.md): one batch is in flight at a time, so a valid batch
//! behind an unreadable place proves that what stood there was durable: that is
//! damage, and the log is refused. Nothing behind it: the last write was cut
//! short by the crash and never acknowledged; it is cut off and said.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use crate::Lsn;
use crate::disk::aligned::AlignedBuf;
use crate::disk::file::segment_path;
use crate::disk::{Disk, SegmentFile};
use crate::error::{Damage, DamageKind, LogError, ReplayError};
use crate::format::{
    BATCH_HEADER, BLOCK, BatchHeader, Frame, FrameKind, SegmentHeader, chain_next, decode_frame,
    header_hash,
};
use crate::log::LogConfig;

/// Chain values kept per shard to follow a truncation by consensus.
const CHAIN_HISTORY: usize = 1024;

/// What recovery found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Segment files, the prepared ones included, counted from segment 0.
    pub segments: u64,
    /// Valid batches.
    pub batches: u64,
    /// Valid frames.
    pub frames: u64,
    /// Ordinal of the last frame.
    pub last_lsn: Lsn,
    /// What was cut off at the end.
    pub torn: Option<TornTail>,
    /// How the log is written from now on.
    pub backend: String,
    /// Duration, microseconds.
    pub took_us: u64,
}

/// A write that the crash cut short; it was never acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment file.
    pub file: PathBuf,
    /// Where it began.
    pub offset: u64,
    /// How far non-zero bytes reached behind it.
    pub bytes: u64,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frames in {} batches recovered in {} ms",
            self.frames,
            self.batches,
            self.took_us / 1000
        )?;
        match &self.torn {
            Some(torn) => write!(
                f,
                "; a torn tail of {} bytes in {} at offset {} was cut (never acknowledged)",
                torn.bytes,
                torn.file.display(),
                torn.offset
            )?,
            None => f.write_str("; the end is clean")?,
        }
        write!(f, "; writes by {}", self.backend)
    }
}

/// Where appending goes on.
pub(crate) struct Tail {
    pub(crate) epoch: u64,
    pub(crate) batch: u64,
    pub(crate) prev: [u8; 32],
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// Takes frames in order, for recovery and for the offline tools.
pub(crate) type Take<'a> = dyn FnMut(&BatchHeader, u64, Frame<'_>) -> Result<(), ReplayError> + 'a;

/// Scans a log front to back without changing it.
pub(crate) struct Scan<'c> {
    config: &'c LogConfig,
    chains: HashMap<u16, ShardChain>,
    pub(crate) tail: Tail,
    pub(crate) recovery: Recovery,
    /// Take cluster and worker from the first segment instead of the settings.
    pub(crate) adopt: Option<(u64, u16)>,
    adopting: bool,
}

#[derive(Default)]
struct ShardChain {
    /// Index and chain value of recent blocks, oldest first.
    recent: Vec<(u64, [u8; 32])>,
}

impl ShardChain {
    fn follow(&mut self, frame: &Frame<'_>) -> bool {
        // Consensus may have replaced a tail: go back to the block before.
        while self.recent.last().is_some_and(|(index, _)| *index >= frame.index) {
            self.recent.pop();
        }
        let prev = match self.recent.last() {
            Some((index, chain)) if *index + 1 == frame.index => *chain,
            None if frame.index == 1 => [0; 32],
            _ => return false,
        };
        if self.recent.len() >= 2 * CHAIN_HISTORY {
            self.recent.drain(..CHAIN_HISTORY);
        }
        self.recent.push((frame.index, frame.chain));
        chain_next(&prev, frame.payload) == frame.chain
    }
}

impl<'c> Scan<'c> {
    pub(crate) fn new(config: &'c LogConfig, adopting: bool) -> Self {
        let tail = Tail { epoch: 0, batch: 0, prev: [0; 32], segment: 0, offset: 0 };
        let recovery = Recovery::default();
        Self { config, chains: HashMap::new(), tail, recovery, adopt: None, adopting }
    }

    fn damage(&self, segment: u64, offset: u64, kind: DamageKind) -> Damage {
        let file = segment_path(&self.config.dir, segment);
        Damage { file, offset, batch: self.tail.batch + 1, kind }
    }

    fn owner(&self) -> (u64, u16) {
        self.adopt.unwrap_or((self.config.cluster, self.config.worker))
    }

    /// Reads every segment; `take` gets every valid frame.
    pub(crate) fn run<D: Disk>(
        &mut self,
        disk: &mut D,
        take: &mut Take<'_>,
    ) -> Result<(), LogError> {
        let files = self.listed(disk)?;
        self.recovery.segments = files.len() as u64;
        let mut ended: Option<(u64, u64)> = None;
        for (segment, read) in disk.read_ahead(files) {
            let bytes = read.map_err(|source| LogError::Io {
                what: "cannot read",
                path: segment_path(&self.config.dir, segment),
                source,
            })?;
            match ended {
                None => {
                    if let Some(offset) = self.segment(segment, &bytes, take)? {
                        ended = Some((segment, offset));
                        self.refuse_later(segment, offset, &bytes)?;
                        self.note_torn(segment, offset, &bytes);
                    }
                }
                Some((at, offset)) => {
                    if let Some(later) = self.later_batch(segment, 0, &bytes) {
                        let kind = DamageKind::BeforeLater { later };
                        return Err(self.damage(at, offset, kind).into());
                    }
                }
            }
        }
        Ok(())
    }

    fn listed<D: Disk>(&self, disk: &mut D) -> Result<Vec<SegmentFile>, LogError> {
        let files = disk.list().map_err(|source| LogError::Io {
            what: "cannot list",
            path: self.config.dir.clone(),
            source,
        })?;
        for (expected, file) in files.iter().enumerate() {
            let expected = expected as u64;
            if file.segment != expected {
                let kind = DamageKind::MissingSegment { segment: expected };
                return Err(self.damage(expected, 0, kind).into());
            }
            let wanted = if self.adopting { files[0].bytes } else { self.config.segment_bytes };
            if file.bytes != wanted || !file.bytes.is_multiple_of(BLOCK as u64) {
                let kind = DamageKind::Length { found: file.bytes, expected: wanted };
                return Err(self.damage(expected, 0, kind).into());
            }
        }
        Ok(files)
    }

    /// Reads one segment; the offset where valid batches end inside it, or
    /// `None` when the next batch may begin the next segment.
    fn segment(
        &mut self,
        segment: u64,
        bytes: &AlignedBuf,
        take: &mut Take<'_>,
    ) -> Result<Option<u64>, LogError> {
        let header = match SegmentHeader::decode(bytes) {
            Some(Ok(header)) => header,
            Some(Err(version)) => {
                return Err(self.damage(segment, 0, DamageKind::Version(version)).into());
            }
            None => return Ok(Some(0)),
        };
        if self.adopting && self.adopt.is_none() {
            self.adopt = Some((header.cluster, header.worker));
        }
        if (header.cluster, header.worker) != self.owner() {
            let kind = DamageKind::Foreign { cluster: header.cluster, worker: header.worker };
            return Err(self.damage(segment, 0, kind).into());
        }
        let continues = header.segment == segment
            && header.first_batch == self.tail.batch + 1
            && header.prev == self.tail.prev;
        if !continues {
            return Err(self.damage(segment, 0, DamageKind::Discontinuous).into());
        }
        let mut offset = BLOCK;
        while offset < bytes.len() {
            match self.batch(segment, offset, bytes, take)? {
                Some(len) => offset += len,
                None if offset == BLOCK => return Ok(Some(0)),
                // The rest of a segment may be too small for the next batch: the
                // next segment tells whether this is the end.
                None => return Ok(self.end_or_next(segment, offset, bytes)),
            }
        }
        Ok(None)
    }

    /// A batch that did not fit any more left zeros behind: then the next
    /// segment may go on. Anything else is the end.
    fn end_or_next(&mut self, segment: u64, offset: usize, bytes: &AlignedBuf) -> Option<u64> {
        let rest = bytes.len() - offset;
        let could_skip = rest < self.config.batch_max_bytes;
        let empty = bytes[offset..].iter().all(|byte| *byte == 0);
        if could_skip && empty && segment + 1 < self.recovery.segments {
            return None;
        }
        Some(offset as u64)
    }

    /// Reads the batch at `offset`; its length, or `None` when there is none.
    fn batch(
        &mut self,
        segment: u64,
        offset: usize,
        bytes: &AlignedBuf,
        take: &mut Take<'_>,
    ) -> Result<Option<usize>, LogError> {
        let Some(header) = self.header_at(segment, offset, bytes)? else { return Ok(None) };
        if header.batch != self.tail.batch + 1 || header.prev != self.tail.prev {
            return Ok(None);
        }
        let Some(batch) = bytes.get(offset..offset + header.disk_len()) else { return Ok(None) };
        let body = &batch[BATCH_HEADER..BATCH_HEADER + header.body as usize];
        let padding = &batch[BATCH_HEADER + header.body as usize..];
        // First the whole batch is judged, then its frames are handed out: a torn
        // batch must leave no trace.
        let mut rest = body;
        for _ in 0..header.frames {
            let Some((_, len)) = decode_frame(rest) else { return Ok(None) };
            rest = &rest[len..];
        }
        if !rest.is_empty() || padding.iter().any(|byte| *byte != 0) {
            return Ok(None);
        }
        let mut rest = body;
        while let Some((frame, len)) = decode_frame_unchecked(rest) {
            if frame.kind == FrameKind::Block
                && !self.chains.entry(frame.shard).or_default().follow(&frame)
            {
                let kind = DamageKind::Chain { shard: frame.shard, index: frame.index };
                return Err(self.damage(segment, offset as u64, kind).into());
            }
            let at = (offset + BATCH_HEADER + (body.len() - rest.len())) as u64;
            take(&header, at, frame)?;
            rest = &rest[len..];
        }
        self.recovery.batches += 1;
        self.recovery.frames += u64::from(header.frames);
        self.recovery.last_lsn = header.first_lsn + u64::from(header.frames) - 1;
        self.tail = Tail {
            epoch: header.epoch.max(self.tail.epoch),
            batch: header.batch,
            prev: header_hash(&header.encode()),
            segment,
            offset: (offset + header.disk_len()) as u64,
        };
        Ok(Some(header.disk_len()))
    }

    /// The header at this place, when it is one of ours that belongs here.
    fn header_at(
        &self,
        segment: u64,
        offset: usize,
        bytes: &AlignedBuf,
    ) -> Result<Option<BatchHeader>, LogError> {
        match BatchHeader::decode(&bytes[offset..]) {
            Some(Ok(header)) => Ok(self.belongs(&header, segment, offset).then_some(header)),
            Some(Err(version)) => {
                Err(self.damage(segment, offset as u64, DamageKind::Version(version)).into())
            }
            None => Ok(None),
        }
    }

    fn belongs(&self, header: &BatchHeader, segment: u64, offset: usize) -> bool {
        (header.cluster, header.worker) == self.owner()
            && header.segment == segment
            && header.offset == offset as u64
    }

    /// Sequence of a batch at or behind `from` that was written after the end.
    fn later_batch(&self, segment: u64, from: usize, bytes: &AlignedBuf) -> Option<u64> {
        (from..bytes.len()).step_by(BLOCK).find_map(|offset| {
            let Some(Ok(header)) = BatchHeader::decode(&bytes[offset..]) else { return None };
            let later = self.belongs(&header, segment, offset)
                && header.batch > self.tail.batch + 1
                && header.epoch >= self.tail.epoch;
            later.then_some(header.batch)
        })
    }

    fn refuse_later(&self, segment: u64, offset: u64, bytes: &AlignedBuf) -> Result<(), Damage> {
        match self.later_batch(segment, offset as usize, bytes) {
            Some(later) => Err(self.damage(segment, offset, DamageKind::BeforeLater { later })),
            None => Ok(()),
        }
    }

    fn note_torn(&mut self, segment: u64, offset: u64, bytes: &AlignedBuf) {
        let rest = &bytes[offset as usize..];
        if let Some(last) = rest.iter().rposition(|byte| *byte != 0) {
            self.recovery.torn = Some(TornTail {
                file: segment_path(&self.config.dir, segment),
                offset,
                bytes: last as u64 + 1,
            });
            if self.tail.segment != segment {
                self.tail.segment = segment;
                self.tail.offset = offset;
            }
        }
    }
}

/// The frame at the front of bytes that `decode_frame` has already accepted.
fn decode_frame_unchecked(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    decode_frame(bytes)
}

/// Recovers a log for appending.
pub(crate) fn recover<D: Disk>(
    disk: &mut D,
    config: &LogConfig,
    replay: &mut dyn FnMut(Frame<'_>) -> Result<(), ReplayError>,
) -> Result<(Tail, Recovery), LogError> {
    let mut scan = Scan::new(config, false);
    scan.run(disk, &mut |_, _, frame| replay(frame))?;
    let Scan { tail, recovery, .. } = scan;
    if let Some(torn) = &recovery.torn {
        // Nothing of the torn write may ever be taken for a part of a later batch.
        let len = (torn.bytes as usize).next_multiple_of(BLOCK);
        disk.zero(tail.segment, torn.offset, len).map_err(|source| LogError::Io {
            what: "cannot cut the torn tail of",
            path: torn.file.clone(),
            source,
        })?;
    }
    Ok((tail, recovery))
}
