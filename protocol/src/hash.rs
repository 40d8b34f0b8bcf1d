//! SHA-256 of messages that lie in memory whole, from any saved state.
//!
//! The general hasher keeps a buffer of its own and copies every piece into it;
//! here whole blocks are taken where they lie and only the rest is padded. A
//! saved state is 32 bytes, so an expanded key fits into one cache line. Knows
//! no key and no field. Tested against the general hasher at every length.

use sha2::compress256;
use sha2::digest::generic_array::GenericArray;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 64;
/// The length, which ends the last block.
const LENGTH: usize = 8;

/// The hash's state between two blocks.
pub(crate) type State = [u32; 8];

/// The state before the first block (FIPS 180-4, 5.3.3).
pub(crate) const INITIAL: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Takes a whole block.
pub(crate) fn block(state: &mut State, block: &[u8; BLOCK]) {
    compress256(state, std::slice::from_ref(GenericArray::from_slice(block)));
}

fn bytes_of(state: State) -> [u8; 32] {
    let mut hash = [0; 32];
    for (bytes, word) in hash.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    hash
}

/// The hash of `blocks` blocks that led to `state`, and of `message`.
pub(crate) fn finish(mut state: State, blocks: u64, message: &[u8]) -> [u8; 32] {
    let (whole, rest) = message.as_chunks::<BLOCK>();
    whole.iter().for_each(|whole| block(&mut state, whole));
    let mut last = [0; 2 * BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    last[rest.len()] = 0x80;
    let len = if rest.len() < BLOCK - LENGTH { BLOCK } else { 2 * BLOCK };
    let bits = (blocks * BLOCK as u64 + message.len() as u64) * 8;
    last[len - LENGTH..len].copy_from_slice(&bits.to_be_bytes());
    last[..len].as_chunks::<BLOCK>().0.iter().for_each(|padded| block(&mut state, padded));
    bytes_of(state)
}

/// Pads a message where it lies (FIPS 180-4, 5.1.1), behind `blocks` blocks.
fn pad(message: &mut Vec<u8>, blocks: u64) {
    const PADDING: [u8; BLOCK + LENGTH] = {
        let mut padding = [0; BLOCK + LENGTH];
        padding[0] = 0x80;
        padding
    };
    let bits = (blocks * BLOCK as u64 + message.len() as u64) * 8;
    let end = (message.len() + 1 + LENGTH).next_multiple_of(BLOCK);
    // Of known size first, then cut.
    message.extend_from_slice(&PADDING);
    message.truncate(end);
    message[end - LENGTH..].copy_from_slice(&bits.to_be_bytes());
}

/// As [`finish`], of two messages at once, which are padded where they lie: a block of the one
/// and then a block of the other. Within a message each round waits for the one before; a
/// processor that looks ahead fills these waits with the other's rounds.
pub(crate) fn finish_two(
    mut states: [State; 2],
    blocks: u64,
    messages: [&mut Vec<u8>; 2],
) -> [[u8; 32]; 2] {
    let [first, second] = messages;
    pad(first, blocks);
    pad(second, blocks);
    by_turns(&mut states, [first.as_chunks().0, second.as_chunks().0]);
    states.map(bytes_of)
}

fn by_turns([first, second]: &mut [State; 2], blocks: [&[[u8; BLOCK]]; 2]) {
    let both = blocks[0].len().min(blocks[1].len());
    for (one, other) in blocks[0].iter().zip(blocks[1]) {
        block(first, one);
        block(second, other);
    }
    blocks[0][both..].iter().for_each(|next| block(first, next));
    blocks[1][both..].iter().for_each(|next| block(second, next));
}

/// The last block of a message that is a hash, behind one block that is hashed already: what
/// HMAC ends with.
fn last_of_hash(hash: &[u8; 32]) -> [u8; BLOCK] {
    let mut last = [0; BLOCK];
    last[..32].copy_from_slice(hash);
    last[32] = 0x80;
    last[BLOCK - LENGTH..].copy_from_slice(&((BLOCK as u64 + 32) * 8).to_be_bytes());
    last
}

/// [`finish`] of a hash, behind one block.
pub(crate) fn finish_hash(mut state: State, hash: &[u8; 32]) -> [u8; 32] {
    block(&mut state, &last_of_hash(hash));
    bytes_of(state)
}

/// [`finish_hash`] of two at once.
pub(crate) fn finish_two_hashes(mut states: [State; 2], hashes: &[[u8; 32]; 2]) -> [[u8; 32]; 2] {
    let last = [last_of_hash(&hashes[0]), last_of_hash(&hashes[1])];
    by_turns(&mut states, [&last[..1], &last[1..]]);
    states.map(bytes_of)
}

/// The hash of a message.
pub(crate) fn of(message: &[u8]) -> [u8; 32] {
    finish(INITIAL, 0, message)
}

/// The first 16 bytes of a hash.
pub(crate) fn first_half(hash: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn it_agrees_with_the_general_hasher_at_every_length() {
        let message: Vec<u8> = (0..300_u32).map(|at| (at * 7) as u8).collect();
        for len in 0..message.len() {
            let message = &message[..len];
            let expected: [u8; 32] = Sha256::digest(message).into();
            assert_eq!(of(message), expected, "{len}");
            let alone = finish(INITIAL, 1, &expected);
            assert_eq!(finish_hash(INITIAL, &expected), alone);
            let two = finish_two_hashes([INITIAL; 2], &[[7; 32], expected]);
            assert_eq!(two, [finish(INITIAL, 1, &[7; 32]), alone]);
            if let Some((first, rest)) = message.split_first_chunk::<BLOCK>() {
                let mut state = INITIAL;
                block(&mut state, first);
                assert_eq!(finish(state, 1, rest), expected, "{len}");
            }
        }
    }

    #[test]
    fn two_at_once_are_as_one_after_the_other() {
        let message: Vec<u8> = (0..300_u32).map(|at| (at * 11) as u8).collect();
        let states = [INITIAL, INITIAL.map(|word| word ^ 0x5555)];
        for len in 0..message.len() {
            for other in [0, 1, 55, 56, 64, 119, 120, 128, 215, 299] {
                let [mut one, mut two] = [message[..len].to_vec(), message[1..=other].to_vec()];
                let expected = [finish(states[0], 1, &one), finish(states[1], 1, &two)];
                let both = finish_two(states, 1, [&mut one, &mut two]);
                assert_eq!(both, expected, "{len} {other}");
            }
        }
    }
}
