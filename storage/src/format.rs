//! The bytes of segments, batches and frames (`docs/LOG.md`). Pure.

use sha2::{Digest, Sha256};

/// Unit of writing and of recovery: batches start and end on it.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const VERSION: u16 = 1;
pub(crate) const BATCH_HEADER: usize = 128;
pub(crate) const FRAME_HEADER: usize = 64;
const SEGMENT_MAGIC: [u8; 8] = *b"PSWALSEG";
const BATCH_MAGIC: [u8; 4] = *b"PSBT";

/// What a frame holds. Storage does not look into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A block of records; carries its shard's chain value.
    Block = 1,
    /// Term, vote and commit of a shard.
    HardState = 2,
}

impl FrameKind {
    fn from_wire(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Block),
            2 => Some(Self::HardState),
            _ => None,
        }
    }
}

/// One frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What it holds.
    pub kind: FrameKind,
    /// Whose.
    pub shard: u16,
    /// Term it was proposed in.
    pub term: u64,
    /// Position in the shard's log; 0 for hard states.
    pub index: u64,
    /// Chain value of the shard at this block; zero for hard states.
    pub chain: [u8; 32],
    /// Content.
    pub payload: &'a [u8],
}

/// The chain value after `payload`: SHA-256(`prev` || `payload`).
pub fn chain_next(prev: &[u8; 32], payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(prev).chain_update(payload).finalize().into()
}

impl Frame<'_> {
    pub(crate) fn encoded_len(&self) -> usize {
        FRAME_HEADER + self.payload.len()
    }

    /// Writes the frame to the front of `out`.
    pub(crate) fn encode(&self, out: &mut [u8]) {
        let (head, rest) = out.split_at_mut(FRAME_HEADER);
        head[0..4].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        head[8] = self.kind as u8;
        head[9] = 0;
        head[10..12].copy_from_slice(&self.shard.to_le_bytes());
        head[12..16].fill(0);
        head[16..24].copy_from_slice(&self.term.to_le_bytes());
        head[24..32].copy_from_slice(&self.index.to_le_bytes());
        head[32..64].copy_from_slice(&self.chain);
        rest[..self.payload.len()].copy_from_slice(self.payload);
        let crc = frame_crc(head, self.payload);
        head[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Over the length and everything behind the checksum field.
fn frame_crc(head: &[u8], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&head[0..4]);
    let crc = crc32c::crc32c_append(crc, &head[8..FRAME_HEADER]);
    crc32c::crc32c_append(crc, payload)
}

/// Reads the frame at the front of `bytes` and tells its length.
pub(crate) fn decode_frame(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEADER)?;
    let payload = rest.get(..u32_at(head, 0) as usize)?;
    if frame_crc(head, payload) != u32_at(head, 4) || head[9] != 0 {
        return None;
    }
    let mut chain = [0; 32];
    chain.copy_from_slice(&head[32..64]);
    let frame = Frame {
        kind: FrameKind::from_wire(head[8])?,
        shard: u16_at(head, 10),
        term: u64_at(head, 16),
        index: u64_at(head, 24),
        chain,
        payload,
    };
    Some((frame, FRAME_HEADER + payload.len()))
}

/// Header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) cluster: u64,
    pub(crate) worker: u16,
    /// Number of the open that wrote it.
    pub(crate) epoch: u64,
    /// Sequence in the log, from 1.
    pub(crate) batch: u64,
    /// Ordinal of its first frame.
    pub(crate) first_lsn: u64,
    pub(crate) frames: u32,
    /// Bytes of frames behind the header.
    pub(crate) body: u32,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// Highest batch known durable when this one was started.
    pub(crate) durable: u64,
    /// SHA-256 of the previous batch's header.
    pub(crate) prev: [u8; 32],
}

impl BatchHeader {
    pub(crate) fn encode(&self) -> [u8; BATCH_HEADER] {
        let mut out = [0; BATCH_HEADER];
        out[0..4].copy_from_slice(&BATCH_MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&self.worker.to_le_bytes());
        out[8..16].copy_from_slice(&self.cluster.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..32].copy_from_slice(&self.batch.to_le_bytes());
        out[32..40].copy_from_slice(&self.first_lsn.to_le_bytes());
        out[40..44].copy_from_slice(&self.frames.to_le_bytes());
        out[44..48].copy_from_slice(&self.body.to_le_bytes());
        out[48..56].copy_from_slice(&self.segment.to_le_bytes());
        out[56..64].copy_from_slice(&self.offset.to_le_bytes());
        out[64..72].copy_from_slice(&self.durable.to_le_bytes());
        out[72..104].copy_from_slice(&self.prev);
        let crc = crc32c::crc32c(&out[..124]);
        out[124..128].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` when the bytes are no batch header. An unknown version is told apart.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Result<Self, u16>> {
        let bytes = bytes.get(..BATCH_HEADER)?;
        if bytes[0..4] != BATCH_MAGIC || crc32c::crc32c(&bytes[..124]) != u32_at(bytes, 124) {
            return None;
        }
        let version = u16_at(bytes, 4);
        if version != VERSION {
            return Some(Err(version));
        }
        let mut prev = [0; 32];
        prev.copy_from_slice(&bytes[72..104]);
        Some(Ok(Self {
            worker: u16_at(bytes, 6),
            cluster: u64_at(bytes, 8),
            epoch: u64_at(bytes, 16),
            batch: u64_at(bytes, 24),
            first_lsn: u64_at(bytes, 32),
            frames: u32_at(bytes, 40),
            body: u32_at(bytes, 44),
            segment: u64_at(bytes, 48),
            offset: u64_at(bytes, 56),
            durable: u64_at(bytes, 64),
            prev,
        }))
    }

    /// Bytes of the batch on disk, padding included.
    pub(crate) fn disk_len(&self) -> usize {
        (BATCH_HEADER + self.body as usize).next_multiple_of(BLOCK)
    }
}

/// SHA-256 of an encoded batch header: what the next batch carries as `prev`.
pub(crate) fn header_hash(header: &[u8; BATCH_HEADER]) -> [u8; 32] {
    Sha256::digest(header).into()
}

/// First block of a segment, written together with its first batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) cluster: u64,
    pub(crate) worker: u16,
    pub(crate) segment: u64,
    /// Sequence of its first batch.
    pub(crate) first_batch: u64,
    pub(crate) segment_bytes: u64,
    /// Hash of the last batch header of the segment before.
    pub(crate) prev: [u8; 32],
}

impl SegmentHeader {
    /// Writes the header into the first block.
    pub(crate) fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..BLOCK];
        out.fill(0);
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&self.worker.to_le_bytes());
        out[16..24].copy_from_slice(&self.cluster.to_le_bytes());
        out[24..32].copy_from_slice(&self.segment.to_le_bytes());
        out[32..40].copy_from_slice(&self.first_batch.to_le_bytes());
        out[40..48].copy_from_slice(&self.segment_bytes.to_le_bytes());
        out[48..80].copy_from_slice(&self.prev);
        let crc = crc32c::crc32c(&out[..BLOCK - 4]);
        out[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
    }

    /// `None` when the block is no segment header. An unknown version is told apart.
    pub(crate) fn decode(block: &[u8]) -> Option<Result<Self, u16>> {
        let block = block.get(..BLOCK)?;
        if block[0..8] != SEGMENT_MAGIC
            || crc32c::crc32c(&block[..BLOCK - 4]) != u32_at(block, BLOCK - 4)
        {
            return None;
        }
        let version = u16_at(block, 8);
        if version != VERSION {
            return Some(Err(version));
        }
        let mut prev = [0; 32];
        prev.copy_from_slice(&block[48..80]);
        Some(Ok(Self {
            worker: u16_at(block, 10),
            cluster: u64_at(block, 16),
            segment: u64_at(block, 24),
            first_batch: u64_at(block, 32),
            segment_bytes: u64_at(block, 40),
            prev,
        }))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_survives_and_any_flipped_bit_is_noticed(
            shard: u16, term: u64, index: u64, chain: [u8; 32],
            payload in proptest::collection::vec(any::<u8>(), 0..300), bit: usize,
        ) {
            let frame = Frame { kind: FrameKind::Block, shard, term, index, chain, payload: &payload };
            let mut bytes = vec![0; frame.encoded_len()];
            frame.encode(&mut bytes);
            let (read, len) = decode_frame(&bytes).unwrap();
            prop_assert_eq!(len, bytes.len());
            prop_assert_eq!((read.shard, read.term, read.index), (shard, term, index));
            prop_assert_eq!(read.payload, &payload[..]);
            let at = bit % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(decode_frame(&bytes).is_none());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert!(decode_frame(&bytes).is_none());
            prop_assert!(BatchHeader::decode(&bytes).is_none());
            prop_assert!(SegmentHeader::decode(&bytes).is_none());
        }
    }

    #[test]
    fn headers_survive_and_another_version_is_told_apart() {
        let batch = BatchHeader {
            cluster: 1,
            worker: 2,
            epoch: 3,
            batch: 4,
            first_lsn: 5,
            frames: 6,
            body: 7,
            segment: 8,
            offset: 9,
            durable: 3,
            prev: [10; 32],
        };
        let mut bytes = batch.encode();
        assert_eq!(BatchHeader::decode(&bytes), Some(Ok(batch)));
        bytes[4] = 9;
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(BatchHeader::decode(&bytes), Some(Err(9)));

        let segment = SegmentHeader {
            cluster: 1,
            worker: 2,
            segment: 3,
            first_batch: 4,
            segment_bytes: 5,
            prev: [6; 32],
        };
        let mut block = vec![7; BLOCK];
        segment.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Some(Ok(segment)));
        block[100] ^= 1;
        assert_eq!(SegmentHeader::decode(&block), None);
    }
}
