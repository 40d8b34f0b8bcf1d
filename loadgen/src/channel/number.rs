//! Channel numbers in 18 bytes: the digest, the kind and the ordinal that
//! their 29 characters of base32 spell.
//!
//! Pure. Tested against the writer in the protocol.

use protocol::id::ChannelNo;

/// The place among a payment's refunds of the one that a reverse makes; from here on
/// no merchant chose the number.
pub(crate) const REVERSAL_ORDINAL: u8 = 100;

/// A charge's or refund's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Number {
    /// The payment's digest.
    pub(crate) digest: [u8; 16],
    /// P charge, R refund, V reversal, X orphan.
    pub(crate) kind: u8,
    /// Attempt or refund ordinal.
    pub(crate) ordinal: u8,
}

impl std::hash::Hash for Number {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // Other bytes than `spread`, which may have chosen the table already.
        let mut word = [0; 8];
        word.copy_from_slice(&self.digest[..8]);
        let own = u64::from(self.kind) << 8 | u64::from(self.ordinal);
        state.write_u64(u64::from_le_bytes(word) ^ own.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
}

impl Number {
    /// Eight bytes of the digest: evenly spread.
    pub(crate) fn spread(&self) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.digest[8..]);
        u64::from_le_bytes(word)
    }

    /// Four other bytes of the digest, and the ordinal: told apart are almost
    /// all numbers that share a table.
    pub(crate) fn tag(&self) -> u32 {
        let [a, b, c, d, ..] = self.digest;
        u32::from_le_bytes([a, b, c, d]) ^ u32::from(self.ordinal).wrapping_mul(0x9e37_79b9)
    }

    /// Reads a number; `None` when it is not one of the switch's.
    pub(crate) fn parse(no: &ChannelNo) -> Option<Self> {
        Self::parse_text(no.as_bytes())
    }

    /// Reads a number as text.
    pub(crate) fn parse_text(text: &[u8]) -> Option<Self> {
        let text: &[u8; 29] = text.try_into().ok()?;
        // The first character carries three bits only, so 26 hold 8 + 60 + 60:
        // shifts stay within 64.
        let top = [DIGITS[usize::from(text[0])], DIGITS[usize::from(text[1])]];
        let ((middle, all_middle), (low, all_low)) = (twelve(&text[2..14]), twelve(&text[14..26]));
        if top[0] > 7 || (top[1] | all_middle | all_low) > 31 {
            return None;
        }
        let mut digest = [0; 16];
        let first = u64::from(top[0] << 5 | top[1]);
        digest[..8].copy_from_slice(&(first << 56 | middle >> 4).to_be_bytes());
        digest[8..].copy_from_slice(&(middle << 60 | low).to_be_bytes());
        let (high, low) = (DIGITS[usize::from(text[27])], DIGITS[usize::from(text[28])]);
        if high > 7 || low > 31 || !matches!(text[26], b'P' | b'R' | b'V' | b'X') {
            return None;
        }
        Some(Self { digest, kind: text[26], ordinal: high << 5 | low })
    }
}

/// The 60 bits of twelve characters, and all their values joined: above 31 when
/// one is not of the alphabet.
fn twelve(text: &[u8]) -> (u64, u8) {
    text.iter().fold((0, 0), |(bits, all), byte| {
        let digit = DIGITS[usize::from(*byte)];
        (bits << 5 | u64::from(digit), all | digit)
    })
}

/// Value of a base32 character, 255 for others.
const DIGITS: [u8; 256] = {
    let alphabet = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let mut digits = [255; 256];
    let mut at = 0;
    while at < alphabet.len() {
        digits[alphabet[at] as usize] = at as u8;
        at += 1;
    }
    digits
};

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::channel::{NumberKind, channel_number};

    #[test]
    fn numbers_are_read_as_the_protocol_writes_them() {
        for seed in 0..=255_u8 {
            let digest: [u8; 16] = std::array::from_fn(|at| seed.wrapping_mul(31) ^ at as u8);
            for kind in [NumberKind::Charge, NumberKind::Refund, NumberKind::Orphan] {
                let number = Number::parse(&channel_number(&digest, kind, seed)).unwrap();
                assert_eq!(number, Number { digest, kind: kind as u8, ordinal: seed });
            }
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let good = channel_number(&[7; 16], NumberKind::Charge, 1);
        for at in 0..29 {
            let mut text = good.as_bytes().to_vec();
            text[at] = b'U';
            assert_eq!(Number::parse_text(&text), None, "{at}");
        }
        assert_eq!(Number::parse_text(b"short"), None);
    }
}
