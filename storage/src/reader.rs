//! Reading blocks back, for a follower that was away.
//!
//! A reader works off the worker's thread, from the files, and only up to what
//! was durable when the log gave it a [`Route`]. Every batch header, body, segment
//! header and chain value on the way is verified. Tested by `tests/reader.rs`
//! against a model, on the simulated disk and on files while the log is written.

use crate::config::BATCH_BYTES_LIMIT;
use crate::disk::{Buffer, DiskError, FilePages, PageFault, Pages, segment_path};
use crate::error::{Damage, DamageCause};
use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, HeaderFault, Identity, SegmentHeader, batch_hash,
    decode_frame, is_zero,
};
use crate::frame::{Frame, FrameKind, Lsn, chain_next};
use crate::places::{NotInLog, Route};
use crate::scan::Position;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes asked from the disk at a time, unless a batch is larger.
const READ_BYTES: usize = 256 << 10;

/// Why blocks cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum BlockReadError {
    /// Never there, replaced by a checkpoint, or released meanwhile.
    #[error(transparent)]
    Gone(#[from] NotInLog),
    /// What was durable does not check out any more.
    #[error("log is damaged: {0}")]
    Damage(Box<Damage>),
    /// A segment cannot be opened.
    #[error(transparent)]
    Disk(DiskError),
}

/// Reads blocks of one log. Send it, or a clone, to whatever thread may wait
/// for the disk.
#[derive(Debug)]
pub struct BlockReader<P: Pages = FilePages> {
    pages: P,
    identity: Identity,
    window: Window,
    /// Blocks of the batch at hand: index, chain value, place in the batch.
    found: Vec<(u64, [u8; 32], usize)>,
}

impl<P: Pages> Clone for BlockReader<P> {
    fn clone(&self) -> BlockReader<P> {
        BlockReader::new(self.pages.clone(), self.identity)
    }
}

/// Bytes of one segment that were read and not used up.
#[derive(Debug)]
struct Window {
    buffer: Buffer,
    at: Position,
    filled: usize,
}

/// How far a call has come.
struct Walk<'r> {
    route: &'r Route,
    want: u64,
    /// Chain value before `want`.
    chain: Option<[u8; 32]>,
    left: usize,
    handed: bool,
}

/// The batch that was read last.
#[derive(Clone, Copy)]
struct Previous {
    batch: u64,
    hash: [u8; 32],
}

/// What stands at a place.
enum Stands {
    Batch(BatchHeader),
    SegmentEnd,
}

impl<P: Pages> BlockReader<P> {
    pub(crate) fn new(pages: P, identity: Identity) -> BlockReader<P> {
        let window = Window { buffer: Buffer::new(READ_BYTES), at: Position::default(), filled: 0 };
        BlockReader { pages, identity, window, found: Vec::new() }
    }

    /// Hands the route's blocks to `each`, in order, until their headers and
    /// payloads reach `max_bytes`; a single block may exceed it. Returns the
    /// index to ask for next: less than [`Route::to`] when `max_bytes` or the
    /// durable end came first.
    ///
    /// # Errors
    /// [`BlockReadError`]; what was handed out before is sound.
    pub fn blocks(
        &mut self,
        route: &Route,
        max_bytes: usize,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<u64, BlockReadError> {
        // An earlier route may have ended inside these bytes.
        self.window.filled = 0;
        let (want, chain) = (route.from, route.before);
        let mut walk = Walk { route, want, chain, left: max_bytes, handed: false };
        for (nth, leg) in route.legs.iter().enumerate() {
            let limit = route.legs.get(nth + 1).map_or(route.to, |next| next.index);
            if !self.leg(&mut walk, leg.at, limit, each)? {
                break;
            }
        }
        Ok(walk.want)
    }

    /// Reads from `at` until `limit`; says whether it got there.
    fn leg(
        &mut self,
        walk: &mut Walk<'_>,
        mut at: Position,
        limit: u64,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<bool, BlockReadError> {
        let mut previous = None;
        while walk.want < limit {
            if at >= walk.route.end {
                return Ok(false);
            }
            match self.look(walk, at, previous)? {
                Stands::SegmentEnd => at = self.next_segment(walk, at, previous)?,
                Stands::Batch(header) => {
                    previous = Some(self.load_batch(walk, at, &header)?);
                    if !self.hand_out(walk, at, &header, limit, each)? {
                        return Ok(false);
                    }
                    at.offset += header.disk_bytes();
                }
            }
        }
        Ok(true)
    }

    /// Judges the batch header at `at`.
    fn look(
        &mut self,
        walk: &Walk<'_>,
        at: Position,
        previous: Option<Previous>,
    ) -> Result<Stands, BlockReadError> {
        let is_last = at.segment == walk.route.end.segment;
        let block = match self.load(walk, at, BLOCK_BYTES)? {
            Some(bytes) => bytes,
            None if is_last => return Err(damage(&self.pages, at, 0, DamageCause::SegmentLength)),
            None => return Ok(Stands::SegmentEnd),
        };
        let header = match BatchHeader::decode(block) {
            Ok(header) => header,
            Err(HeaderFault::Damaged) if !is_last && is_zero(block) => {
                return Ok(Stands::SegmentEnd);
            }
            Err(fault) => return Err(self.bad_header(at, fault, DamageCause::BatchHeader)),
        };
        let in_order = previous.is_none_or(|before| {
            header.batch == before.batch + 1 && header.prev_hash == before.hash[..16]
        });
        let at_home = header.log == self.identity.log
            && (header.segment, header.offset) == (at.segment, at.offset)
            && header.body_bytes as usize <= BATCH_BYTES_LIMIT;
        if in_order && at_home {
            return Ok(Stands::Batch(header));
        }
        Err(damage(&self.pages, at, header.batch, DamageCause::Misplaced))
    }

    /// The segment at `at` ends here, if the next one says so.
    fn next_segment(
        &mut self,
        walk: &Walk<'_>,
        at: Position,
        previous: Option<Previous>,
    ) -> Result<Position, BlockReadError> {
        let next = Position { segment: at.segment + 1, offset: 0 };
        let Some(block) = self.load(walk, next, BLOCK_BYTES)? else {
            return Err(damage(&self.pages, next, 0, DamageCause::SegmentLength));
        };
        let header = match SegmentHeader::decode(block) {
            Ok(header) => header,
            Err(fault) => return Err(self.bad_header(next, fault, DamageCause::SegmentHeader)),
        };
        if header.identity != self.identity || header.segment != next.segment {
            return Err(damage(&self.pages, next, 0, DamageCause::Misplaced));
        }
        let continues = header.prev_end == at.offset
            && previous.is_none_or(|before| {
                header.first_batch == before.batch + 1 && header.prev_hash == before.hash
            });
        if continues {
            return Ok(Position { offset: BLOCK, ..next });
        }
        // The batch that the next segment names is not where we are.
        Err(damage(&self.pages, at, header.first_batch - 1, DamageCause::BatchHeader))
    }

    /// Reads and verifies the whole batch at `at`, which stays in the window.
    fn load_batch(
        &mut self,
        walk: &Walk<'_>,
        at: Position,
        header: &BatchHeader,
    ) -> Result<Previous, BlockReadError> {
        let bytes = header.disk_bytes() as usize;
        let cause = match self.load(walk, at, bytes)? {
            None => DamageCause::SegmentLength,
            Some(batch) => {
                let (body, padding) = body_of(batch, header);
                if crc32c::crc32c(body) != header.body_crc {
                    DamageCause::BatchBody
                } else if !is_zero(padding) {
                    DamageCause::Padding
                } else {
                    return Ok(Previous { batch: header.batch, hash: batch_hash(batch) });
                }
            }
        };
        Err(damage(&self.pages, at, header.batch, cause))
    }

    /// Hands out what is wanted of the batch in the window; says whether to go on.
    fn hand_out(
        &mut self,
        walk: &mut Walk<'_>,
        at: Position,
        header: &BatchHeader,
        limit: u64,
        each: &mut dyn FnMut(Frame<'_>),
    ) -> Result<bool, BlockReadError> {
        let shard = walk.route.shard;
        let (body, _) = body_of(self.window.bytes(at), header);
        if !collect(body, header.frames, shard, &mut self.found) {
            return Err(damage(&self.pages, at, header.batch, DamageCause::Record));
        }
        for &(index, chain, place) in &self.found {
            if index >= limit {
                return Ok(true);
            }
            let bad = |cause| {
                let offset = at.offset + (BATCH_HEADER_BYTES + place) as u64;
                Err(damage(&self.pages, Position { offset, ..at }, header.batch, cause))
            };
            if index > walk.want {
                return bad(DamageCause::IndexGap { shard, index });
            }
            if index < walk.want {
                walk.chain = (index + 1 == walk.want).then_some(chain).or(walk.chain);
                continue;
            }
            let Ok((frame, bytes)) = decode_frame(&body[place..], false) else {
                return bad(DamageCause::Record);
            };
            if walk.chain.is_some_and(|before| chain_next(&before, frame.payload) != chain) {
                return bad(DamageCause::Chain { shard, index });
            }
            if walk.handed && bytes > walk.left {
                return Ok(false);
            }
            each(frame);
            walk.handed = true;
            walk.left = walk.left.saturating_sub(bytes);
            (walk.want, walk.chain) = (index + 1, Some(chain));
        }
        Ok(true)
    }

    /// `bytes` bytes at `at`; `None` when the segment is shorter.
    fn load(
        &mut self,
        walk: &Walk<'_>,
        at: Position,
        bytes: usize,
    ) -> Result<Option<&[u8]>, BlockReadError> {
        let window = &mut self.window;
        if !window.holds(at, bytes) {
            let end = walk.route.end;
            let durable = if at.segment < end.segment { u64::MAX } else { end.offset };
            let wanted = (bytes.max(READ_BYTES) as u64).min(durable.saturating_sub(at.offset));
            let wanted = wanted as usize;
            if wanted > window.buffer.len() {
                window.buffer = Buffer::new(wanted);
            }
            window.filled = 0;
            window.filled = match self.pages.read(at, &mut window.buffer[..wanted]) {
                Ok(filled) => filled,
                Err(PageFault::Gone) => {
                    let (shard, index) = (walk.route.shard, walk.want);
                    return Err(NotInLog { shard, index, first: None }.into());
                }
                Err(PageFault::Unreadable) => {
                    return Err(damage(&self.pages, at, 0, DamageCause::Unreadable));
                }
                Err(PageFault::Failed(error)) => return Err(BlockReadError::Disk(error)),
            };
            window.at = at;
        }
        Ok(self.window.holds(at, bytes).then(|| &self.window.bytes(at)[..bytes]))
    }

    fn bad_header(&self, at: Position, fault: HeaderFault, damaged: DamageCause) -> BlockReadError {
        let cause = match fault {
            HeaderFault::Damaged => damaged,
            HeaderFault::Version(version) => DamageCause::UnknownVersion(version),
        };
        damage(&self.pages, at, 0, cause)
    }
}

impl Window {
    fn holds(&self, at: Position, bytes: usize) -> bool {
        at.segment == self.at.segment
            && at.offset >= self.at.offset
            && at.offset + bytes as u64 <= self.at.offset + self.filled as u64
    }

    /// From `at`, which is held, to the end of what was read.
    fn bytes(&self, at: Position) -> &[u8] {
        &self.buffer[(at.offset - self.at.offset) as usize..self.filled]
    }
}

fn body_of<'a>(batch: &'a [u8], header: &BatchHeader) -> (&'a [u8], &'a [u8]) {
    let batch = &batch[BATCH_HEADER_BYTES..header.disk_bytes() as usize];
    batch.split_at(header.body_bytes as usize)
}

/// The shard's blocks that count after this batch, in order; `false` when a
/// frame cannot be decoded.
fn collect(body: &[u8], frames: u32, shard: u16, found: &mut Vec<(u64, [u8; 32], usize)>) -> bool {
    found.clear();
    let mut at = 0;
    for _ in 0..frames {
        let Some((frame, bytes)) = body.get(at..).and_then(|rest| decode_frame(rest, false).ok())
        else {
            return false;
        };
        if frame.shard == shard && frame.kind == FrameKind::Base {
            found.clear();
        }
        if frame.shard == shard && frame.kind == FrameKind::Block {
            found.truncate(found.partition_point(|(index, ..)| *index < frame.index));
            found.push((frame.index, frame.chain, at));
        }
        at += bytes;
    }
    at == body.len()
}

fn damage<P: Pages>(pages: &P, at: Position, batch: u64, cause: DamageCause) -> BlockReadError {
    let file = segment_path(&pages.dir(), at.segment);
    let record: Option<Lsn> = None;
    let damage = Damage { file, offset: at.offset, batch, record, cause, durable: None };
    BlockReadError::Damage(Box::new(damage))
}
