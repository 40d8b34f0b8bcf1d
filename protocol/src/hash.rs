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
    let mut hash = [0; 32];
    for (bytes, word) in hash.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    hash
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
            if let Some((first, rest)) = message.split_first_chunk::<BLOCK>() {
                let mut state = INITIAL;
                block(&mut state, first);
                assert_eq!(finish(state, 1, rest), expected, "{len}");
            }
        }
    }
}
