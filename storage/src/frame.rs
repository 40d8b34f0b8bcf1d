//! What the log stores: frames of opaque payload, and the per-shard hash chain.
//!
//! Never knows what a payload means. Tested here and through `format.rs`.

use sha2::{Digest, Sha256};

/// Ordinal of a frame in the log, counted from 1; 0 stands before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a frame is to the log. The log gives meaning only to the chain rule of
/// each kind; the payload belongs to the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum FrameKind {
    /// A link of its shard's chain: `chain = chain_next(previous, payload)`,
    /// indexes without a gap. An index that goes back replaces what stood there.
    Block = 1,
    /// Consensus state of a shard; outside the chain.
    HardState = 2,
    /// Starts a shard's chain at this index with this chain value, for a
    /// replica that begins from a checkpoint instead of from the first block.
    Base = 3,
    /// A note of the writer (configuration, audit); outside the chain.
    Note = 4,
}

impl FrameKind {
    /// The kind with this number on disk.
    pub fn from_number(number: u8) -> Option<FrameKind> {
        Some(match number {
            1 => FrameKind::Block,
            2 => FrameKind::HardState,
            3 => FrameKind::Base,
            4 => FrameKind::Note,
            _ => return None,
        })
    }
}

/// One frame, borrowed from the writer or from the log's read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the frame is.
    pub kind: FrameKind,
    /// Shard the frame belongs to.
    pub shard: u16,
    /// Consensus term; not interpreted.
    pub term: u64,
    /// Index in the shard's sequence of blocks.
    pub index: u64,
    /// Chain value after this block; zeros for kinds outside the chain.
    pub chain: [u8; 32],
    /// Opaque bytes, possibly none.
    pub payload: &'a [u8],
}

/// The chain value before a shard's first block.
pub const CHAIN_START: [u8; 32] = [0; 32];

/// The next chain value: SHA-256 of the previous value followed by the payload.
pub fn chain_next(prev: &[u8; 32], payload: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(prev);
    hash.update(payload);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_sha_256_of_previous_and_payload() {
        let mut joined = vec![7u8; 32];
        joined.extend_from_slice(b"abc");
        let expected: [u8; 32] = Sha256::digest(&joined).into();
        assert_eq!(chain_next(&[7; 32], b"abc"), expected);
        assert_ne!(chain_next(&[8; 32], b"abc"), expected);
    }

    #[test]
    fn kind_numbers_go_both_ways() {
        for number in 0..=u8::MAX {
            if let Some(kind) = FrameKind::from_number(number) {
                assert_eq!(kind as u8, number);
            } else {
                assert!(number == 0 || number > 4);
            }
        }
    }
}
