//! The numbers under which a channel knows our attempts and refunds: functions
//! of the order digest alone, so that every replica and every restart sends
//! the same ones. Tested beside the code.

use protocol::id::{ChannelNo, MchId, OutTradeNo};
use sha2::{Digest, Sha256};

/// First 16 bytes of SHA-256(mch_id, 0x00, out_trade_no).
pub(super) fn order_digest(mch_id: &MchId, out_trade_no: &OutTradeNo) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(mch_id.as_bytes());
    hash.update([0]);
    hash.update(out_trade_no.as_bytes());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.finalize()[..16]);
    digest
}

/// What a number names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberKind {
    Charge,
    Refund,
    Reversal,
    Orphan,
}

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LEN: usize = 29;

/// 26 base32 characters of the digest, one kind letter, two of the ordinal.
fn write(digest: &[u8; 16], kind: NumberKind, ordinal: u8) -> [u8; LEN] {
    let mut text = [0; LEN];
    let mut value = u128::from_be_bytes(*digest);
    for place in text[..26].iter_mut().rev() {
        *place = ALPHABET[(value & 31) as usize];
        value >>= 5;
    }
    text[26] = match kind {
        NumberKind::Charge => b'P',
        NumberKind::Refund => b'R',
        NumberKind::Reversal => b'V',
        NumberKind::Orphan => b'X',
    };
    text[27] = ALPHABET[usize::from(ordinal >> 5)];
    text[28] = ALPHABET[usize::from(ordinal & 31)];
    text
}

/// The number of one attempt (`Charge`) or refund.
pub(super) fn number(digest: &[u8; 16], kind: NumberKind, ordinal: u8) -> ChannelNo {
    match ChannelNo::parse(&write(digest, kind, ordinal)) {
        Ok(number) => number,
        Err(_) => unreachable!("29 characters of the alphabet are a channel number"),
    }
}

/// Number of attempt `ordinal`.
pub(super) fn charge_number(digest: &[u8; 16], ordinal: u8) -> ChannelNo {
    number(digest, NumberKind::Charge, ordinal)
}

/// Whether `given` names attempt `ordinal`.
pub(super) fn is_charge_number(given: &ChannelNo, digest: &[u8; 16], ordinal: u8) -> bool {
    given.as_bytes() == write(digest, NumberKind::Charge, ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct_and_stable() {
        let digest = [0xff; 16];
        assert_eq!(charge_number(&digest, 1).as_str(), "7ZZZZZZZZZZZZZZZZZZZZZZZZZP01");
        assert_eq!(
            number(&digest, NumberKind::Orphan, 33).as_str(),
            "7ZZZZZZZZZZZZZZZZZZZZZZZZZX11"
        );
        assert!(is_charge_number(&charge_number(&digest, 2), &digest, 2));
        assert!(!is_charge_number(&charge_number(&digest, 2), &digest, 1));
    }
}
