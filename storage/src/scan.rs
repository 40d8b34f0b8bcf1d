//! Reading a log from its first byte: verify, hand over, and judge its end.
//!
//! The scanner sees every block of every segment once, in order. While batches
//! check out it hands their frames over. From the first block that does not,
//! it looks at every following block for proof that something later was
//! durable. Proof means damage and the log is refused; no proof means a torn
//! tail, which was never acknowledged. A block that cannot be read is neither: a
//! crash does not leave one, and what stands in it is not known, so behind the
//! first bad place it always refuses. Never changes a file. Tested by
//! `tests/faults.rs` against a simulated disk and by `tests/files.rs`.

mod tail;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::chain::{ChainFault, Chains};
use crate::disk::{DiskError, Piece, SegmentFile, Source};
use crate::error::{Damage, DamageCause, ReplayError};
use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, HeaderFault, Identity, Released, SegmentHeader,
    batch_hash, decode_frame, decode_prepared, is_zero,
};
use crate::frame::{Frame, Lsn};

use self::tail::Tail;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Segment number, counted from 1; 0 before the first segment.
    pub segment: u64,
    /// Byte offset in the segment file.
    pub offset: u64,
}

/// A torn tail: written but never acknowledged, removed when the log is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The file.
    pub file: PathBuf,
    /// Where the log ends; everything from here was cut.
    pub offset: u64,
    /// Bytes from there to the last byte that was not zero.
    pub bytes: u64,
    /// The batch that was torn.
    pub batch: u64,
    pub(crate) segment: u64,
}

/// The last block of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardEnd {
    /// The shard.
    pub shard: u16,
    /// Index of its last block.
    pub index: u64,
    /// Chain value after it.
    pub chain: [u8; 32],
}

/// Where a frame was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) lsn: Lsn,
    pub(crate) at: Position,
    pub(crate) batch: u64,
}

/// Why a scan ended early.
#[derive(Debug)]
pub(crate) enum ScanError {
    Damage(Box<Damage>),
    Disk(DiskError),
    Replay(Lsn, ReplayError),
}

type Visit<'v> = dyn FnMut(Found, Frame<'_>) -> Result<(), ReplayError> + 'v;

/// What has been verified so far.
#[derive(Debug)]
pub(crate) struct Verified {
    /// Behind the last good batch.
    pub(crate) end: Position,
    pub(crate) next_batch: u64,
    pub(crate) next_lsn: u64,
    pub(crate) last_hash: [u8; 32],
    pub(crate) epoch: u64,
    pub(crate) sealed: bool,
    pub(crate) batches: u64,
    pub(crate) segments: u64,
    pub(crate) chains: Chains,
    /// How far the last epoch's writes can reach, in bytes.
    write_max: u64,
    /// The segment with which the log begins, and its first record.
    pub(crate) first_segment: u64,
    pub(crate) first_lsn: u64,
}

pub(crate) struct Scanner<'a> {
    identity: Identity,
    path: &'a dyn Fn(u64) -> PathBuf,
    verified: Verified,
    tail: Option<Tail>,
    /// Unconsumed bytes of the segment being read, from `pos` on.
    window: Vec<u8>,
    pos: Position,
    segment_bytes: u64,
    /// Blocks of this segment that the device could not read, ascending.
    unreadable: Vec<u64>,
}

/// Scans the log of `identity`. With `live`, a verdict of damage is confirmed
/// by reading again from the end: a running node may have written in between.
pub(crate) fn scan<S: Source>(
    source: &mut S,
    identity: Identity,
    released: Option<&Released>,
    live: bool,
    visit: &mut Visit<'_>,
) -> Result<(Verified, Option<Cut>), ScanError> {
    let dir = source.dir();
    let path = move |segment| crate::disk::segment_path(&dir, segment);
    let mut scanner = Scanner::new(identity, released, &path);
    loop {
        let before = scanner.verified.next_batch;
        let verdict = scanner.pass(source, visit);
        let progress = scanner.verified.next_batch > before;
        match verdict {
            Err(ScanError::Damage(_)) if live && progress => {}
            Err(error) => return Err(error),
            Ok(cut) => {
                if let Some((shard, index)) = scanner.verified.chains.misses_anchor() {
                    let cause = DamageCause::Chain { shard, index };
                    return Err(scanner.damage(scanner.verified.end, cause, None));
                }
                return Ok((scanner.verified, cut));
            }
        }
    }
}

enum Step {
    /// Consumed this many bytes of the window.
    Used(usize),
    /// The window is too short.
    More,
}

impl<'a> Scanner<'a> {
    fn new(
        identity: Identity,
        released: Option<&Released>,
        path: &'a dyn Fn(u64) -> PathBuf,
    ) -> Scanner<'a> {
        let mut verified = Verified {
            end: Position::default(),
            next_batch: 1,
            next_lsn: 1,
            last_hash: [0; 32],
            epoch: 0,
            sealed: false,
            batches: 0,
            segments: 0,
            chains: Chains::default(),
            write_max: BLOCK,
            first_segment: 1,
            first_lsn: 1,
        };
        if let Some(Released { header, anchors }) = released {
            // The first segment must go on exactly where its record says.
            verified.end = Position { segment: header.segment - 1, offset: header.prev_end };
            verified.next_batch = header.first_batch;
            verified.next_lsn = header.first_lsn;
            verified.last_hash = header.prev_hash;
            verified.chains = Chains::anchored(anchors);
            verified.first_segment = header.segment;
            verified.first_lsn = header.first_lsn;
        }
        Scanner {
            identity,
            path,
            verified,
            tail: None,
            window: Vec::new(),
            pos: Position::default(),
            segment_bytes: 0,
            unreadable: Vec::new(),
        }
    }

    /// Reads from the end of what is verified to the end of the last file.
    fn pass<S: Source>(
        &mut self,
        source: &mut S,
        visit: &mut Visit<'_>,
    ) -> Result<Option<Cut>, ScanError> {
        let prepared = source.load_prepared().map_err(ScanError::Disk)?;
        let mut segments = source.segments().map_err(ScanError::Disk)?;
        // What lies before the recorded beginning is on its way out.
        segments.retain(|segment| segment.id >= self.verified.first_segment);
        self.check_files(&segments, prepared.as_deref(), &source.dir())?;
        self.tail = None;
        self.window.clear();
        self.unreadable.clear();
        self.pos = self.verified.end;
        let mut result = Ok(());
        source
            .scan(self.pos, &segments, &mut |piece| {
                result = self.piece(piece, visit);
                if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .map_err(ScanError::Disk)?;
        result?;
        self.judge()
    }

    /// Segments are numbered from the first one without a gap, as many as were prepared, and
    /// none is cut short.
    fn check_files(
        &self,
        segments: &[SegmentFile],
        prepared: Option<&[u8]>,
        dir: &Path,
    ) -> Result<(), ScanError> {
        let expected = match prepared {
            Some(block) => decode_prepared(block).map_err(|fault| {
                let cause = match fault {
                    HeaderFault::Damaged => DamageCause::Identity,
                    HeaderFault::Version(version) => DamageCause::UnknownVersion(version),
                };
                self.damage_of(dir.join("prepared"), 0, cause, None)
            })?,
            // The very first start may end before the first segment is counted.
            None if segments.len() <= 1 => 0,
            None => {
                let file = dir.join("prepared");
                return Err(self.damage_of(file, 0, DamageCause::Identity, None));
            }
        };
        for (expected, file) in (self.verified.first_segment..).zip(segments) {
            if file.id != expected {
                let at = Position { segment: expected, offset: 0 };
                return Err(self.damage(at, DamageCause::MissingSegment, None));
            }
            if !file.bytes.is_multiple_of(BLOCK) || file.bytes < 2 * BLOCK {
                let at = Position { segment: file.id, offset: file.bytes };
                return Err(self.damage(at, DamageCause::SegmentLength, None));
            }
        }
        let before = self.verified.first_segment - 1;
        let last = before + segments.len() as u64;
        if last < expected || last == before && before > 0 {
            let at = Position { segment: last + 1, offset: 0 };
            return Err(self.damage(at, DamageCause::MissingSegment, None));
        }
        Ok(())
    }

    fn piece(&mut self, piece: Piece<'_>, visit: &mut Visit<'_>) -> Result<(), ScanError> {
        if piece.segment != self.pos.segment {
            debug_assert!(self.window.is_empty(), "a segment ends on a whole batch or block");
            self.window.clear();
            self.unreadable.clear();
            self.pos = Position { segment: piece.segment, offset: 0 };
        }
        self.segment_bytes = piece.segment_bytes;
        self.unreadable.extend_from_slice(piece.unreadable);
        let mut window = std::mem::take(&mut self.window);
        window.extend_from_slice(piece.bytes);
        let mut used = 0;
        while used < window.len() {
            match self.step(&window[used..], visit)? {
                Step::Used(bytes) => {
                    used += bytes;
                    self.pos.offset += bytes as u64;
                }
                Step::More => break,
            }
        }
        window.copy_within(used.., 0);
        window.truncate(window.len() - used);
        self.window = window;
        Ok(())
    }

    fn step(&mut self, window: &[u8], visit: &mut Visit<'_>) -> Result<Step, ScanError> {
        let Some(block) = window.get(..BLOCK_BYTES) else { return Ok(Step::More) };
        if self.tail.is_some() {
            self.tail_block(block)?;
            return Ok(Step::Used(BLOCK_BYTES));
        }
        if self.pos.offset == 0 {
            self.segment_header(block)?;
            return Ok(Step::Used(BLOCK_BYTES));
        }
        self.batch(window, visit)
    }

    /// First block of a segment while everything before it checked out.
    fn segment_header(&mut self, block: &[u8]) -> Result<(), ScanError> {
        match SegmentHeader::decode(block) {
            Ok(header) => self.enter_segment(&header, block),
            Err(HeaderFault::Version(v)) => {
                Err(self.damage(self.pos, DamageCause::UnknownVersion(v), None))
            }
            Err(HeaderFault::Damaged) => {
                self.start_tail(DamageCause::SegmentHeader, None);
                self.tail_block(block)
            }
        }
    }

    /// A sound segment header: does it continue the log?
    fn enter_segment(&mut self, header: &SegmentHeader, block: &[u8]) -> Result<(), ScanError> {
        if header.identity != self.identity {
            return Err(self.damage(self.pos, DamageCause::Foreign, None));
        }
        if header.segment_bytes != self.segment_bytes {
            let at = Position { offset: self.segment_bytes, ..self.pos };
            return Err(self.damage(at, DamageCause::SegmentLength, None));
        }
        if header.segment != self.pos.segment {
            return Err(self.damage(self.pos, DamageCause::Misplaced, None));
        }
        if header.first_batch > self.verified.next_batch {
            return Err(self.proven(header.first_batch - 1));
        }
        let continues = header.segment == self.verified.end.segment + 1
            && header.first_batch == self.verified.next_batch
            && header.first_lsn == self.verified.next_lsn
            && header.prev_end == self.verified.end.offset
            && header.prev_hash == self.verified.last_hash
            && is_zero(&block[crate::format::SEGMENT_HEADER_BYTES..]);
        if !continues {
            return Err(self.damage(self.pos, DamageCause::Misplaced, None));
        }
        self.tail = None;
        Ok(())
    }

    fn batch(&mut self, window: &[u8], visit: &mut Visit<'_>) -> Result<Step, ScanError> {
        let header = match BatchHeader::decode(window) {
            Ok(header) => header,
            Err(HeaderFault::Version(v)) => {
                return Err(self.damage(self.pos, DamageCause::UnknownVersion(v), None));
            }
            Err(HeaderFault::Damaged) => {
                self.start_tail(DamageCause::BatchHeader, None);
                return Ok(Step::Used(0));
            }
        };
        self.check_order(&header)?;
        let disk_bytes = header.disk_bytes();
        if window.len() < disk_bytes as usize {
            return Ok(Step::More);
        }
        let (batch, _) = window.split_at(disk_bytes as usize);
        let (body, padding) = batch[BATCH_HEADER_BYTES..].split_at(header.body_bytes as usize);
        if crc32c::crc32c(body) != header.body_crc {
            let record = self.first_bad_record(&header, body);
            self.start_tail(DamageCause::BatchBody, record);
            return Ok(Step::Used(0));
        }
        if !is_zero(padding) {
            return Err(self.damage(self.pos, DamageCause::Padding, None));
        }
        self.frames(&header, body, visit)?;
        self.accept(&header, batch);
        Ok(Step::Used(batch.len()))
    }

    /// A header with a matching checksum was written by us. It stands where and
    /// when it must, or something moved it: torn writes cannot do that, because
    /// a cut region is erased before it is used again.
    fn check_order(&self, header: &BatchHeader) -> Result<(), ScanError> {
        if header.log != self.identity.log {
            return Err(self.damage(self.pos, DamageCause::Foreign, None));
        }
        let verified = &self.verified;
        if header.watermark >= verified.next_batch {
            return Err(self.proven(header.watermark));
        }
        let fits = header.disk_bytes() <= self.segment_bytes - self.pos.offset;
        let seal_is_empty = !header.is_seal() || (header.frames == 0 && header.body_bytes == 0);
        let in_order = header.batch == verified.next_batch
            && header.watermark + 1 == header.batch
            && header.first_lsn == verified.next_lsn
            && header.epoch >= verified.epoch
            && header.segment == self.pos.segment
            && header.offset == self.pos.offset
            && header.prev_hash == verified.last_hash[..16];
        if in_order && fits && seal_is_empty {
            return Ok(());
        }
        Err(self.damage(self.pos, DamageCause::Misplaced, None))
    }

    fn first_bad_record(&self, header: &BatchHeader, body: &[u8]) -> Option<(Lsn, u64)> {
        let mut at = 0;
        for nth in 0..u64::from(header.frames) {
            match decode_frame(&body[at..], true) {
                Ok((_, used)) => at += used,
                Err(_) => {
                    let offset = self.pos.offset + (BATCH_HEADER_BYTES + at) as u64;
                    return Some((Lsn(header.first_lsn + nth), offset));
                }
            }
        }
        None
    }

    fn frames(
        &mut self,
        header: &BatchHeader,
        body: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<(), ScanError> {
        let mut at = 0;
        for nth in 0..u64::from(header.frames) {
            let offset = self.pos.offset + (BATCH_HEADER_BYTES + at) as u64;
            let place = Position { offset, ..self.pos };
            let lsn = Lsn(header.first_lsn + nth);
            let Ok((frame, used)) = decode_frame(&body[at..], false) else {
                return Err(self.damage(place, DamageCause::Record, Some(lsn)));
            };
            if let Err(fault) = self.verified.chains.check(&frame) {
                let (shard, index) = (frame.shard, frame.index);
                let cause = match fault {
                    ChainFault::Gap => DamageCause::IndexGap { shard, index },
                    ChainFault::Value => DamageCause::Chain { shard, index },
                };
                return Err(self.damage(place, cause, Some(lsn)));
            }
            let found = Found { lsn, at: place, batch: header.batch };
            visit(found, frame).map_err(|error| ScanError::Replay(lsn, error))?;
            at += used;
        }
        if at == body.len() {
            return Ok(());
        }
        let place = Position { offset: self.pos.offset + at as u64, ..self.pos };
        Err(self.damage(place, DamageCause::Record, None))
    }

    fn accept(&mut self, header: &BatchHeader, batch: &[u8]) {
        let verified = &mut self.verified;
        let offset = self.pos.offset + batch.len() as u64;
        verified.end = Position { segment: self.pos.segment, offset };
        verified.next_batch = header.batch + 1;
        verified.next_lsn = header.first_lsn + u64::from(header.frames);
        verified.last_hash = batch_hash(batch);
        verified.epoch = header.epoch;
        verified.sealed = header.is_seal();
        verified.batches += 1;
        verified.segments = self.pos.segment - verified.first_segment + 1;
        verified.write_max = u64::from(header.write_max);
    }

    /// The first bad place is damage, because `batch` was durable.
    fn proven(&self, batch: u64) -> ScanError {
        let (at, cause, record) = match &self.tail {
            Some(tail) => (tail.at, tail.cause, tail.record),
            None => (self.pos, DamageCause::Misplaced, None),
        };
        let at = match record {
            Some((_, offset)) => Position { offset, ..at },
            None => at,
        };
        let ScanError::Damage(mut damage) = self.damage(at, cause, record.map(|(lsn, _)| lsn))
        else {
            unreachable!("damage() builds damage")
        };
        damage.durable = Some(batch);
        ScanError::Damage(damage)
    }

    fn damage(&self, at: Position, cause: DamageCause, record: Option<Lsn>) -> ScanError {
        self.damage_of((self.path)(at.segment), at.offset, cause, record)
    }

    fn damage_of(
        &self,
        file: PathBuf,
        offset: u64,
        cause: DamageCause,
        record: Option<Lsn>,
    ) -> ScanError {
        ScanError::Damage(Box::new(Damage {
            file,
            offset,
            batch: self.verified.next_batch,
            record,
            cause,
            durable: None,
        }))
    }
}
