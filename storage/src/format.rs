//! The bytes on disk: identity, segment header, batch header, frame header.
//!
//! Pure encoding and decoding of byte slices, little endian, every length
//! checked. Knows no file and no order of things; `scan.rs` does. The tables
//! are in `docs/LOG.md`. Tested by round trips and by decoding noise.

use sha2::{Digest, Sha256};

use crate::checkpoint::{CHECKPOINT_NOTE_BYTES, Checkpoint, CheckpointNote};
use crate::frame::{Frame, FrameKind};

/// Unit of writing: no block is ever shared by two batches.
pub const BLOCK_BYTES: usize = 4096;
/// Version written into every header.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 128;
/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Bytes of a segment header; the rest of its block is zero.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 128;

const IDENTITY_MAGIC: [u8; 4] = *b"PSWI";
const SEGMENT_MAGIC: [u8; 4] = *b"PSWS";
const BATCH_MAGIC: [u8; 4] = *b"PSWB";
const PREPARED_MAGIC: [u8; 4] = *b"PSWN";
const CHECKPOINT_MAGIC: [u8; 4] = *b"PSWC";
const FOOTER_MAGIC: [u8; 4] = *b"PSWF";
const RELEASED_MAGIC: [u8; 4] = *b"PSWR";
const ANCHOR_BYTES: usize = 48;
/// Where magic, version and checksum stand in all three headers, in every
/// format version, so that an old program can tell "newer" from "damaged".
const VERSION_AT: usize = 4;
const CHECKSUM_AT: usize = 124;

/// Flag of a batch without frames that only carries the watermark.
pub(crate) const FLAG_SEAL: u16 = 1;

/// Why a header cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// No header, or one that does not match its checksum.
    Damaged,
    /// A sound header of a version that this program does not know.
    Version(u16),
}

/// Who a log belongs to. Stored in the identity file and checked everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) log: u64,
    pub(crate) cluster: u64,
    pub(crate) worker: u16,
}

/// First block of a used segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: Identity,
    pub(crate) segment: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) first_batch: u64,
    pub(crate) first_lsn: u64,
    /// Where the batches of the previous segment ended.
    pub(crate) prev_end: u64,
    /// Hash of the last batch before this segment.
    pub(crate) prev_hash: [u8; 32],
}

/// Header of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) flags: u16,
    pub(crate) log: u64,
    pub(crate) epoch: u64,
    pub(crate) batch: u64,
    pub(crate) first_lsn: u64,
    /// The last batch known durable when this one was submitted.
    pub(crate) watermark: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) body_bytes: u32,
    pub(crate) frames: u32,
    pub(crate) prev_hash: [u8; 16],
    pub(crate) body_crc: u32,
    /// Largest write of this epoch: bounds how far a torn write can reach.
    pub(crate) write_max: u32,
}

impl BatchHeader {
    pub(crate) fn is_seal(&self) -> bool {
        self.flags & FLAG_SEAL != 0
    }

    /// Bytes on disk including header and padding.
    pub(crate) fn disk_bytes(&self) -> u64 {
        (BATCH_HEADER_BYTES as u64 + u64::from(self.body_bytes))
            .next_multiple_of(BLOCK_BYTES as u64)
    }
}

/// Hash of a batch: of its header, which holds the checksum of the body and the
/// hash of the batch before.
pub(crate) fn batch_hash(header: &[u8]) -> [u8; 32] {
    Sha256::digest(&header[..BATCH_HEADER_BYTES]).into()
}

struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, value: &[u8]) {
        self.bytes[self.at..self.at + value.len()].copy_from_slice(value);
        self.at += value.len();
    }
}

struct Reader<'a> {
    bytes: &'a [u8; 128],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        value
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// Starts a 128-byte header: zeros, magic, version.
fn begin(bytes: &mut [u8], magic: [u8; 4]) -> Writer<'_> {
    bytes[..128].fill(0);
    let mut out = Writer { bytes, at: 0 };
    out.put(&magic);
    out.put(&FORMAT_VERSION.to_le_bytes());
    out
}

fn seal_checksum(bytes: &mut [u8]) {
    let crc = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Checks magic, checksum and version; leaves the reader behind the version.
fn open(bytes: &[u8], magic: [u8; 4]) -> Result<Reader<'_>, HeaderFault> {
    match open_any(bytes, magic)? {
        (FORMAT_VERSION, reader) => Ok(reader),
        (other, _) => Err(HeaderFault::Version(other)),
    }
}

/// As [`open`], for the caller to judge the version.
fn open_any(bytes: &[u8], magic: [u8; 4]) -> Result<(u16, Reader<'_>), HeaderFault> {
    let Some(bytes) = bytes.first_chunk::<128>() else { return Err(HeaderFault::Damaged) };
    if bytes[..4] != magic {
        return Err(HeaderFault::Damaged);
    }
    let mut tail = Reader { bytes, at: CHECKSUM_AT };
    if tail.u32() != crc32c::crc32c(&bytes[..CHECKSUM_AT]) {
        return Err(HeaderFault::Damaged);
    }
    let mut reader = Reader { bytes, at: VERSION_AT };
    Ok((reader.u16(), reader))
}

impl Identity {
    pub(crate) fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        let mut out = begin(block, IDENTITY_MAGIC);
        out.put(&self.worker.to_le_bytes());
        out.put(&self.log.to_le_bytes());
        out.put(&self.cluster.to_le_bytes());
        seal_checksum(block);
    }

    pub(crate) fn decode(block: &[u8]) -> Result<Identity, HeaderFault> {
        let mut from = open(block, IDENTITY_MAGIC)?;
        let worker = from.u16();
        Ok(Identity { log: from.u64(), cluster: from.u64(), worker })
    }
}

/// The block that remembers how many segments were prepared: a directory that
/// shows fewer has lost some.
pub(crate) fn encode_prepared(segments: u64, block: &mut [u8]) {
    block.fill(0);
    let mut out = begin(block, PREPARED_MAGIC);
    out.put(&[0, 0]);
    out.put(&segments.to_le_bytes());
    seal_checksum(block);
}

pub(crate) fn decode_prepared(block: &[u8]) -> Result<u64, HeaderFault> {
    let mut from = open(block, PREPARED_MAGIC)?;
    from.u16();
    Ok(from.u64())
}

/// The chain value of a shard at an index up to which its blocks are released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) shard: u16,
    pub(crate) index: u64,
    pub(crate) chain: [u8; 32],
}

/// Longest file that says where a log begins: with an anchor for every shard.
pub(crate) const RELEASED_BYTES_MAX: usize = 128 + (u16::MAX as usize + 1) * ANCHOR_BYTES;

/// Where a log begins whose oldest segments were released: the header of its
/// first segment, and the shards' chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) header: SegmentHeader,
    pub(crate) anchors: Vec<Anchor>,
}

pub(crate) fn encode_released(released: &Released, bytes: &mut Vec<u8>) {
    let mut anchors = Vec::new();
    for anchor in &released.anchors {
        anchors.extend_from_slice(&u64::from(anchor.shard).to_le_bytes());
        anchors.extend_from_slice(&anchor.index.to_le_bytes());
        anchors.extend_from_slice(&anchor.chain);
    }
    bytes.clear();
    bytes.resize(128, 0);
    let header = &released.header;
    let mut out = begin(bytes, RELEASED_MAGIC);
    out.put(&header.identity.worker.to_le_bytes());
    out.put(&header.identity.log.to_le_bytes());
    out.put(&header.identity.cluster.to_le_bytes());
    out.put(&header.segment.to_le_bytes());
    out.put(&header.segment_bytes.to_le_bytes());
    out.put(&header.first_batch.to_le_bytes());
    out.put(&header.first_lsn.to_le_bytes());
    out.put(&header.prev_end.to_le_bytes());
    out.put(&header.prev_hash);
    out.put(&(released.anchors.len() as u32).to_le_bytes());
    out.put(&crc32c::crc32c(&anchors).to_le_bytes());
    seal_checksum(bytes);
    bytes.extend_from_slice(&anchors);
}

pub(crate) fn decode_released(bytes: &[u8]) -> Result<Released, HeaderFault> {
    let mut from = open(bytes, RELEASED_MAGIC)?;
    let worker = from.u16();
    let identity = Identity { log: from.u64(), cluster: from.u64(), worker };
    let header = SegmentHeader {
        identity,
        segment: from.u64(),
        segment_bytes: from.u64(),
        first_batch: from.u64(),
        first_lsn: from.u64(),
        prev_end: from.u64(),
        prev_hash: from.take(),
    };
    let (count, crc) = (from.u32() as usize, from.u32());
    let body = &bytes[128..];
    if count.checked_mul(ANCHOR_BYTES) != Some(body.len()) || crc32c::crc32c(body) != crc {
        return Err(HeaderFault::Damaged);
    }
    let word =
        |anchor: &[u8], at: usize| u64::from_le_bytes(std::array::from_fn(|i| anchor[at + i]));
    let anchor = |anchor: &[u8]| {
        let shard = u16::try_from(word(anchor, 0)).map_err(|_| HeaderFault::Damaged)?;
        let chain = std::array::from_fn(|i| anchor[16 + i]);
        Ok(Anchor { shard, index: word(anchor, 8), chain })
    };
    let anchors = body.chunks_exact(ANCHOR_BYTES).map(anchor).collect::<Result<_, _>>()?;
    Ok(Released { header, anchors })
}

/// Version of checkpoint files that carry a note. Older ones have the log's.
pub(crate) const CHECKPOINT_VERSION: u16 = 2;

/// Header of a checkpoint file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckpointHeader {
    pub(crate) identity: Identity,
    pub(crate) of: Checkpoint,
    /// `None` in a file of version 1, which has no room for one.
    pub(crate) note: Option<CheckpointNote>,
}

impl CheckpointHeader {
    pub(crate) fn encode(&self, bytes: &mut [u8]) {
        let mut out = begin(bytes, CHECKPOINT_MAGIC);
        if self.note.is_some() {
            out.at = VERSION_AT;
            out.put(&CHECKPOINT_VERSION.to_le_bytes());
        }
        out.put(&self.identity.worker.to_le_bytes());
        out.put(&self.identity.log.to_le_bytes());
        out.put(&self.identity.cluster.to_le_bytes());
        out.put(&u64::from(self.of.shard).to_le_bytes());
        out.put(&self.of.index.to_le_bytes());
        out.put(&self.of.term.to_le_bytes());
        out.put(&self.of.chain);
        out.put(&self.note.unwrap_or([0; CHECKPOINT_NOTE_BYTES]));
        seal_checksum(bytes);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<CheckpointHeader, HeaderFault> {
        let (version, mut from) = open_any(bytes, CHECKPOINT_MAGIC)?;
        if !(FORMAT_VERSION..=CHECKPOINT_VERSION).contains(&version) {
            return Err(HeaderFault::Version(version));
        }
        let worker = from.u16();
        let identity = Identity { log: from.u64(), cluster: from.u64(), worker };
        let shard = u16::try_from(from.u64()).map_err(|_| HeaderFault::Damaged)?;
        let (index, term, chain) = (from.u64(), from.u64(), from.take());
        let note = (version >= CHECKPOINT_VERSION).then(|| from.take());
        Ok(CheckpointHeader { identity, of: Checkpoint { shard, index, term, chain }, note })
    }
}

/// Footer of a checkpoint file: chunks, bytes before it, and their SHA-256.
pub(crate) fn encode_footer(chunks: u64, size: u64, sum: &[u8; 32], bytes: &mut [u8]) {
    let mut out = begin(bytes, FOOTER_MAGIC);
    out.put(&[0, 0]);
    out.put(&chunks.to_le_bytes());
    out.put(&size.to_le_bytes());
    out.put(sum);
    seal_checksum(bytes);
}

pub(crate) fn decode_footer(bytes: &[u8]) -> Result<(u64, u64, [u8; 32]), HeaderFault> {
    let mut from = open(bytes, FOOTER_MAGIC)?;
    from.u16();
    Ok((from.u64(), from.u64(), from.take()))
}

impl SegmentHeader {
    pub(crate) fn encode(&self, block: &mut [u8]) {
        block[..BLOCK_BYTES].fill(0);
        let mut out = begin(block, SEGMENT_MAGIC);
        out.put(&self.identity.worker.to_le_bytes());
        out.put(&self.identity.log.to_le_bytes());
        out.put(&self.identity.cluster.to_le_bytes());
        out.put(&self.segment.to_le_bytes());
        out.put(&self.segment_bytes.to_le_bytes());
        out.put(&self.first_batch.to_le_bytes());
        out.put(&self.first_lsn.to_le_bytes());
        out.put(&self.prev_end.to_le_bytes());
        out.put(&self.prev_hash);
        seal_checksum(block);
    }

    pub(crate) fn decode(block: &[u8]) -> Result<SegmentHeader, HeaderFault> {
        let mut from = open(block, SEGMENT_MAGIC)?;
        let worker = from.u16();
        let identity = Identity { log: from.u64(), cluster: from.u64(), worker };
        Ok(SegmentHeader {
            identity,
            segment: from.u64(),
            segment_bytes: from.u64(),
            first_batch: from.u64(),
            first_lsn: from.u64(),
            prev_end: from.u64(),
            prev_hash: from.take(),
        })
    }
}

impl BatchHeader {
    pub(crate) fn encode(&self, bytes: &mut [u8]) {
        let mut out = begin(bytes, BATCH_MAGIC);
        out.put(&self.flags.to_le_bytes());
        out.put(&self.log.to_le_bytes());
        out.put(&self.epoch.to_le_bytes());
        out.put(&self.batch.to_le_bytes());
        out.put(&self.first_lsn.to_le_bytes());
        out.put(&self.watermark.to_le_bytes());
        out.put(&self.segment.to_le_bytes());
        out.put(&self.offset.to_le_bytes());
        out.put(&self.body_bytes.to_le_bytes());
        out.put(&self.frames.to_le_bytes());
        out.put(&self.prev_hash);
        out.put(&self.body_crc.to_le_bytes());
        out.put(&self.write_max.to_le_bytes());
        seal_checksum(bytes);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<BatchHeader, HeaderFault> {
        let mut from = open(bytes, BATCH_MAGIC)?;
        Ok(BatchHeader {
            flags: from.u16(),
            log: from.u64(),
            epoch: from.u64(),
            batch: from.u64(),
            first_lsn: from.u64(),
            watermark: from.u64(),
            segment: from.u64(),
            offset: from.u64(),
            body_bytes: from.u32(),
            frames: from.u32(),
            prev_hash: from.take(),
            body_crc: from.u32(),
            write_max: from.u32(),
        })
    }
}

/// Writes `frame` at the start of `out`, which is long enough, and returns the
/// bytes used.
pub(crate) fn encode_frame(frame: &Frame<'_>, out: &mut [u8]) -> usize {
    let total = FRAME_HEADER_BYTES + frame.payload.len();
    let out = &mut out[..total];
    out[4..8].copy_from_slice(&(frame.payload.len() as u32).to_le_bytes());
    out[8] = frame.kind as u8;
    out[9] = 0;
    out[10..12].copy_from_slice(&frame.shard.to_le_bytes());
    out[12..16].fill(0);
    out[16..24].copy_from_slice(&frame.term.to_le_bytes());
    out[24..32].copy_from_slice(&frame.index.to_le_bytes());
    out[32..64].copy_from_slice(&frame.chain);
    out[64..].copy_from_slice(frame.payload);
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    total
}

/// A frame could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameFault;

/// Reads the frame at the start of `bytes`; returns it with the bytes used.
/// The checksum is compared only when `check` is set: inside a batch whose body
/// checksum holds it says nothing new.
pub(crate) fn decode_frame(bytes: &[u8], check: bool) -> Result<(Frame<'_>, usize), FrameFault> {
    let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().ok_or(FrameFault)?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let payload = rest.get(..half(4) as usize).ok_or(FrameFault)?;
    let total = FRAME_HEADER_BYTES + payload.len();
    if check && half(0) != crc32c::crc32c(&bytes[4..total]) {
        return Err(FrameFault);
    }
    let reserved_is_zero = header[9] == 0 && half(12) == 0;
    let kind = FrameKind::from_number(header[8]).filter(|_| reserved_is_zero).ok_or(FrameFault)?;
    let frame = Frame {
        kind,
        shard: u16::from_le_bytes([header[10], header[11]]),
        term: word(16),
        index: word(24),
        chain: std::array::from_fn(|i| header[32 + i]),
        payload,
    };
    Ok((frame, total))
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch() -> impl Strategy<Value = BatchHeader> {
        (any::<[u64; 7]>(), any::<[u32; 4]>(), any::<[u8; 16]>(), any::<u16>()).prop_map(
            |(w, h, prev_hash, flags)| BatchHeader {
                flags,
                log: w[0],
                epoch: w[1],
                batch: w[2],
                first_lsn: w[3],
                watermark: w[4],
                segment: w[5],
                offset: w[6],
                body_bytes: h[0],
                frames: h[1],
                prev_hash,
                body_crc: h[2],
                write_max: h[3],
            },
        )
    }

    proptest! {
        #[test]
        fn batch_header_round_trip(header in batch()) {
            let mut bytes = [0xaa; 128];
            header.encode(&mut bytes);
            prop_assert_eq!(BatchHeader::decode(&bytes), Ok(header));
        }

        #[test]
        fn any_flipped_bit_of_a_header_is_noticed(header in batch(), bit in 0usize..1024) {
            let mut bytes = [0; 128];
            header.encode(&mut bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(BatchHeader::decode(&bytes), Err(HeaderFault::Damaged));
        }

        #[test]
        fn segment_header_round_trip(words in any::<[u64; 7]>(), worker: u16, prev_hash: [u8; 32]) {
            let identity = Identity { log: words[0], cluster: words[1], worker };
            let header = SegmentHeader {
                identity, segment: words[2], segment_bytes: words[3], first_batch: words[4],
                first_lsn: words[5], prev_end: words[6], prev_hash,
            };
            let mut block = [0xaa; BLOCK_BYTES];
            header.encode(&mut block);
            prop_assert_eq!(SegmentHeader::decode(&block), Ok(header));
            identity.encode(&mut block);
            prop_assert_eq!(Identity::decode(&block), Ok(identity));
            encode_prepared(words[0], &mut block);
            prop_assert_eq!(decode_prepared(&block), Ok(words[0]));
        }

        #[test]
        fn released_and_checkpoint_round_trip(
            words in any::<[u64; 8]>(), worker: u16, hash: [u8; 32], shards in prop::collection::vec(any::<u16>(), 0..9),
        ) {
            let identity = Identity { log: words[0], cluster: words[1], worker };
            let header = SegmentHeader {
                identity, segment: words[2], segment_bytes: words[3], first_batch: words[4],
                first_lsn: words[5], prev_end: words[6], prev_hash: hash,
            };
            let anchor = |shard: &u16| Anchor { shard: *shard, index: words[7], chain: hash };
            let released = Released { header, anchors: shards.iter().map(anchor).collect() };
            let mut bytes = Vec::new();
            encode_released(&released, &mut bytes);
            prop_assert_eq!(decode_released(&bytes), Ok(released));
            let of = Checkpoint { shard: worker, index: words[2], term: words[3], chain: hash };
            let note = (words[0] & 1 == 1).then(|| std::array::from_fn(|i| hash[i % 32]));
            let header = CheckpointHeader { identity, of, note };
            let mut bytes = [0xaa; 128];
            header.encode(&mut bytes);
            prop_assert_eq!(CheckpointHeader::decode(&bytes), Ok(header));
            encode_footer(words[4], words[5], &hash, &mut bytes);
            prop_assert_eq!(decode_footer(&bytes), Ok((words[4], words[5], hash)));
        }

        #[test]
        fn frame_round_trip(
            kind in 1u8..=4, shard: u16, term: u64, index: u64, chain: [u8; 32],
            payload in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let kind = FrameKind::from_number(kind).unwrap();
            let frame = Frame { kind, shard, term, index, chain, payload: &payload };
            let mut bytes = vec![0xaa; FRAME_HEADER_BYTES + payload.len() + 9];
            let used = encode_frame(&frame, &mut bytes);
            prop_assert_eq!(used, FRAME_HEADER_BYTES + payload.len());
            prop_assert_eq!(decode_frame(&bytes, true), Ok((frame, used)));
            prop_assert_eq!(decode_frame(&bytes[..used - 1], true), Err(FrameFault));
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_frame(&noise, false);
            prop_assert_eq!(BatchHeader::decode(&noise), Err(HeaderFault::Damaged));
            prop_assert_eq!(SegmentHeader::decode(&noise), Err(HeaderFault::Damaged));
            prop_assert_eq!(Identity::decode(&noise), Err(HeaderFault::Damaged));
            prop_assert_eq!(decode_released(&noise), Err(HeaderFault::Damaged));
            prop_assert_eq!(CheckpointHeader::decode(&noise), Err(HeaderFault::Damaged));
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = [0; 128];
        let identity = Identity { log: 1, cluster: 2, worker: 3 };
        identity.encode(&mut bytes);
        bytes[VERSION_AT] = 9;
        seal_checksum(&mut bytes);
        assert_eq!(Identity::decode(&bytes), Err(HeaderFault::Version(9)));
    }

    /// The layout is a promise: these bytes may only change with the version.
    #[test]
    fn golden_batch_header() {
        let header = BatchHeader {
            flags: FLAG_SEAL,
            log: 2,
            epoch: 3,
            batch: 4,
            first_lsn: 5,
            watermark: 6,
            segment: 7,
            offset: 8,
            body_bytes: 9,
            frames: 10,
            prev_hash: [11; 16],
            body_crc: 12,
            write_max: 13,
        };
        let mut bytes = [0; 128];
        header.encode(&mut bytes);
        let at = |from: usize| bytes[from];
        assert_eq!(&bytes[..8], b"PSWB\x01\x00\x01\x00");
        let places = [8, 16, 24, 32, 40, 48, 56, 64, 68, 72, 88, 92];
        assert_eq!(places.map(at), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    }
}
