//! What travels between sites beside the replica messages when a state is sent:
//! one parcel per packet, little endian, fixed layout.
//!
//! | at | field | type |
//! |---|---|---|
//! | 0 | bytes behind this field | u32 |
//! | 4 | kind: 128 begin, 129 slice, 130 taken, 131 refused | u8 |
//! | 5 | zero | u8 |
//! | 6 | shard | u16 |
//! | 8 | the transfer's number, chosen by the sender | u64 |
//! | 16 | CRC32C of bytes 4 to 15 and of everything behind this field | u32 |
//! | 20 | body | |
//!
//! Begin: term of the leader u64, index u64 and term u64 of the state's last block,
//! chain value 32 bytes, note of the checkpoint (members) 44 bytes, bytes of
//! the checkpoint u64. Slice: its number u32 from 0, then its bytes; one without
//! bytes is the last. Taken: number of slices that were carried out u32.
//! Replica messages have kinds below 128, so that a packet shows what it is.
//! Tested on noise and round trips.

use bytes::Bytes;
use storage::{CHECKPOINT_NOTE_BYTES, Checkpoint, CheckpointNote};

use crate::engine::CHUNK_BYTES_MAX;
use crate::replica::Base;

const KIND_AT: usize = 4;
const BEGIN: u8 = 128;
const SLICE: u8 = 129;
const TAKEN: u8 = 130;
const REFUSED: u8 = 131;
const HEAD: usize = 20;
const CRC_AT: usize = 16;
const BEGIN_LEN: usize = 8 + 8 + 8 + 32 + CHECKPOINT_NOTE_BYTES + 8;

/// A parcel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parcel {
    pub(super) shard: u16,
    pub(super) id: u64,
    pub(super) body: Body,
}

/// What it says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Body {
    /// A state comes, of this many bytes.
    Begin { term: u64, base: Base, bytes: u64 },
    /// A part of it; empty: that was all.
    Slice { number: u32, bytes: Bytes },
    /// So many slices were taken.
    Taken { slices: u32 },
    /// Not this one, or not any more.
    Refused,
}

/// A parcel that is none, or was altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Whether a packet of another site holds a parcel.
pub(in crate::runtime::worker) fn is_parcel(packet: &[u8]) -> bool {
    packet.get(KIND_AT).is_some_and(|kind| *kind >= BEGIN)
}

fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

impl Parcel {
    pub(super) fn encode(&self) -> Vec<u8> {
        let kind = match &self.body {
            Body::Begin { .. } => BEGIN,
            Body::Slice { .. } => SLICE,
            Body::Taken { .. } => TAKEN,
            Body::Refused => REFUSED,
        };
        let mut out = vec![0, 0, 0, 0, kind, 0];
        out.extend_from_slice(&self.shard.to_le_bytes());
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        match &self.body {
            Body::Begin { term, base, bytes } => {
                put_words(&mut out, &[*term, base.index, base.term]);
                out.extend_from_slice(&base.chain);
                out.extend_from_slice(&base.note());
                put_words(&mut out, &[*bytes]);
            }
            Body::Slice { number, bytes } => {
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Body::Taken { slices } => out.extend_from_slice(&slices.to_le_bytes()),
            Body::Refused => {}
        }
        let crc = sum(&out).to_le_bytes();
        out[CRC_AT..HEAD].copy_from_slice(&crc);
        let length = (out.len() - KIND_AT) as u32;
        out[..KIND_AT].copy_from_slice(&length.to_le_bytes());
        out
    }

    /// Reads a packet. A slice's bytes share its memory.
    pub(super) fn decode(packet: &Bytes) -> Result<Self, Unreadable> {
        let (head, body) = packet.split_first_chunk::<HEAD>().ok_or(Unreadable)?;
        let [l0, l1, l2, l3, kind, zero, s0, s1, rest @ ..] = *head;
        let [id @ .., c0, c1, c2, c3] = rest;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        if length != packet.len() - KIND_AT || zero != 0 || crc != sum(packet) {
            return Err(Unreadable);
        }
        let body = match kind {
            BEGIN => begin(body)?,
            SLICE => {
                let (number, rest) = body.split_first_chunk().ok_or(Unreadable)?;
                if rest.len() > CHUNK_BYTES_MAX {
                    return Err(Unreadable);
                }
                let bytes = packet.slice(packet.len() - rest.len()..);
                Body::Slice { number: u32::from_le_bytes(*number), bytes }
            }
            TAKEN => {
                Body::Taken { slices: u32::from_le_bytes(body.try_into().map_err(|_| Unreadable)?) }
            }
            REFUSED if body.is_empty() => Body::Refused,
            _ => return Err(Unreadable),
        };
        let shard = u16::from_le_bytes([s0, s1]);
        Ok(Self { shard, id: u64::from_le_bytes(id), body })
    }
}

fn sum(packet: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&packet[KIND_AT..CRC_AT]), &packet[HEAD..])
}

fn begin(body: &[u8]) -> Result<Body, Unreadable> {
    let body: &[u8; BEGIN_LEN] = body.try_into().map_err(|_| Unreadable)?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| body[at + i]));
    let chain = std::array::from_fn(|i| body[24 + i]);
    let note: CheckpointNote = std::array::from_fn(|i| body[56 + i]);
    let of = Checkpoint { shard: 0, index: word(8), term: word(16), chain };
    let base = Base::of(of, Some(note), &[]).ok_or(Unreadable)?;
    Ok(Body::Begin { term: word(0), base, bytes: word(56 + CHECKPOINT_NOTE_BYTES) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::Members;
    use proptest::prelude::*;

    fn parcels() -> Vec<Parcel> {
        let members = Members::new(&[1, 2, 4]);
        let base = Base { index: 90, term: 3, chain: [8; 32], members, received: true };
        let body = [
            Body::Begin { term: 7, base, bytes: 1 << 33 },
            Body::Slice { number: 2, bytes: Bytes::from_static(b"part of a state") },
            Body::Slice { number: 3, bytes: Bytes::new() },
            Body::Taken { slices: 4 },
            Body::Refused,
        ];
        body.into_iter().map(|body| Parcel { shard: 11, id: u64::MAX - 5, body }).collect()
    }

    #[test]
    fn parcels_survive_their_packets_and_are_told_from_replica_messages() {
        for parcel in parcels() {
            let packet = Bytes::from(parcel.encode());
            assert!(is_parcel(&packet));
            assert_eq!(Parcel::decode(&packet), Ok(parcel));
        }
        let mut packet = Vec::new();
        crate::replica::message::encode(3, &raft::eraftpb::Message::default(), &mut packet);
        assert!(!is_parcel(&packet) && !is_parcel(b""));
    }

    #[test]
    fn a_slice_beyond_the_bound_is_refused() {
        let bytes = Bytes::from(vec![0; CHUNK_BYTES_MAX + 1]);
        let parcel = Parcel { shard: 1, id: 2, body: Body::Slice { number: 0, bytes } };
        assert_eq!(Parcel::decode(&Bytes::from(parcel.encode())), Err(Unreadable));
    }

    proptest! {
        #[test]
        fn whatever_is_altered_is_noticed_and_noise_never_panics(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            nth in 0usize..5,
            at in any::<prop::sample::Index>(),
            xor in 1u8..,
        ) {
            prop_assert!(Parcel::decode(&Bytes::from(noise)).is_err());
            let mut packet = parcels()[nth].encode();
            let at = at.index(packet.len());
            packet[at] ^= xor;
            prop_assert_eq!(Parcel::decode(&Bytes::from(packet)), Err(Unreadable));
        }
    }
}
