//! The native channel protocol: our own frames over QUIC (ALPN
//! `payswitch-channel/1`) between the switch and a payment service beside it.
//!
//! The correlation id is chosen by the switch and echoed. Every reply names the
//! operation's channel number, amount and currency, so that an answer to
//! another question is noticed.
//!
//! Also the deterministic numbers of attempts and refunds at a channel. Knows
//! no payment state. Tested by round trips, arbitrary bytes and an injectivity
//! check of the numbers.

use crate::frame::{begin_frame, end_frame};
use crate::id::{ChannelNo, MchId, OutTradeNo, ShortText};
use crate::layout::{Cursor, Fixed, put_short};
use crate::message::{DecodeError, first_half};
use crate::money::{Amount, Currency};
use sha2::{Digest, Sha256};

/// Message kinds of the native channel.
pub mod kind {
    /// Charge.
    pub const CHARGE: u8 = 0x40;
    /// State of a charge.
    pub const QUERY: u8 = 0x41;
    /// Undo a charge, or fence a number that never arrived.
    pub const REVERSE: u8 = 0x42;
    /// Give back part of a charge.
    pub const REFUND: u8 = 0x43;
    /// State of a refund.
    pub const QUERY_REFUND: u8 = 0x44;
    /// Reply to any of them: kind with the top bit set.
    pub const REPLY: u8 = 0x80;
}

/// A request to the channel; `kind` tells the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelRequest {
    /// One of [`kind`].
    pub kind: u8,
    /// Number of the charge.
    pub charge_no: ChannelNo,
    /// Number of the refund; `None` for charge operations.
    pub refund_no: Option<ChannelNo>,
    /// Amount of the operation (the charge's for query and reverse).
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
    /// Last moment at which the channel may still charge, Unix milliseconds.
    pub time_expire_ms: u64,
}

crate::code::wire_enum! {
    /// What the channel says happened.
    ChannelStatus: u8 {
        /// Charged, or refunded: money moved.
        Success = 1,
        /// Declined for good; `detail` carries the class.
        Declined = 2,
        /// The payer must act, or the channel still works on it.
        Pending = 3,
        /// The channel has no such number.
        NotFound = 4,
        /// Reversed: nothing stands charged, and the number can never be charged again.
        Reversed = 5,
        /// Busy or broken: says nothing about money.
        Unavailable = 6,
    }
}

/// The channel's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelReply {
    /// Request kind with the top bit set.
    pub kind: u8,
    /// Outcome.
    pub status: ChannelStatus,
    /// Decline class: a [`crate::code::Reason`] number; 0 when none.
    pub detail: u16,
    /// Number of the charge.
    pub charge_no: ChannelNo,
    /// Amount that moved, minor units; 0 when none.
    pub amount: i64,
    /// Currency.
    pub currency: Currency,
    /// The channel's own number; may be empty.
    pub channel_ref: ShortText,
}

impl ChannelRequest {
    const FIXED: usize = 20;

    /// Whether operations of this kind name a refund.
    fn names_refund(kind: u8) -> bool {
        matches!(kind, kind::REFUND | kind::QUERY_REFUND)
    }

    /// Decodes the body of a channel request of `kind`.
    ///
    /// # Errors
    /// [`DecodeError`] when the kind is no channel request or a field is not
    /// allowed; a refund number must be there exactly for refund operations.
    #[inline]
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, DecodeError> {
        if !(kind::CHARGE..=kind::QUERY_REFUND).contains(&kind) {
            return Err(DecodeError::Kind);
        }
        let (mut fixed, mut fields) = Cursor::split::<{ Self::FIXED }>(body)?;
        let time_expire_ms = fixed.u64()?;
        let amount = Amount::new(fixed.i64()?).ok_or(DecodeError::Amount)?;
        let currency = Currency::new(fixed.array()?).ok_or(DecodeError::Field("currency"))?;
        let charge_no = number(fields.short()?, "charge_no")?;
        let refund_no = match (fields.short()?, Self::names_refund(kind)) {
            ([], false) => None,
            (raw, true) => Some(number(raw, "refund_no")?),
            _ => return Err(DecodeError::Field("refund_no")),
        };
        Ok(Self { kind, charge_no, refund_no, amount, currency, time_expire_ms })
    }

    /// Appends the body.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<{ Self::FIXED }>::new()
            .u64(self.time_expire_ms)
            .i64(self.amount.minor())
            .put(self.currency.bytes());
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.charge_no.as_bytes());
        put_short(out, self.refund_no.as_ref().map_or(&[], ChannelNo::as_bytes));
    }

    /// Appends the frame.
    #[inline]
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, self.kind, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl ChannelReply {
    const FIXED: usize = 16;

    /// Decodes the body of a channel reply of `kind` (top bit set).
    ///
    /// # Errors
    /// [`DecodeError`] when the kind is no channel reply or a field is not
    /// allowed: the switch takes that as no answer.
    #[inline]
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, DecodeError> {
        let replies = kind::CHARGE | kind::REPLY..=kind::QUERY_REFUND | kind::REPLY;
        if !replies.contains(&kind) {
            return Err(DecodeError::Kind);
        }
        let (mut fixed, mut fields) = Cursor::split::<{ Self::FIXED }>(body)?;
        Ok(Self {
            kind,
            amount: fixed.i64()?,
            detail: fixed.u16()?,
            status: ChannelStatus::from_wire(fixed.u8()?).ok_or(DecodeError::Field("status"))?,
            currency: Currency::new(fixed.array()?).ok_or(DecodeError::Field("currency"))?,
            charge_no: number(fields.short()?, "charge_no")?,
            channel_ref: ShortText::new(fields.short()?)
                .ok_or(DecodeError::Field("channel_ref"))?,
        })
    }

    /// Appends the body.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<{ Self::FIXED }>::new()
            .i64(self.amount)
            .u16(self.detail)
            .u8(self.status.wire())
            .put(self.currency.bytes());
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.charge_no.as_bytes());
        put_short(out, self.channel_ref.as_bytes());
    }

    /// Appends the frame.
    #[inline]
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, self.kind, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

#[inline]
fn number(raw: &[u8], name: &'static str) -> Result<ChannelNo, DecodeError> {
    ChannelNo::parse(raw).map_err(|_| DecodeError::Field(name))
}

/// The payment's digest: first 16 bytes of SHA-256(mch_id, 0x00, out_trade_no).
/// Index key of the payment and root of its channel numbers.
#[inline]
pub fn order_digest(mch_id: &MchId, number: &OutTradeNo) -> [u8; 16] {
    let (mch_id, number) = (mch_id.as_bytes(), number.as_bytes());
    // The separator is in neither alphabet, so no two keys share an input.
    let mut input = [0; 2 * ShortText::MAX + 1];
    let end = mch_id.len() + 1 + number.len();
    input[..mch_id.len()].copy_from_slice(mch_id);
    input[mch_id.len() + 1..end].copy_from_slice(number);
    first_half(&Sha256::digest(&input[..end]).into())
}

/// What a channel number stands for; its letter is the number's 27th character.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum NumberKind {
    /// Attempt `ordinal` to charge.
    Charge = b'P',
    /// Refund `ordinal` that the merchant asked for.
    Refund = b'R',
    /// Refund that undoes a paid payment by the merchant's reverse.
    Reversal = b'V',
    /// Refund of a charge that appeared after its attempt was given up;
    /// `ordinal` is the attempt's.
    Orphan = b'X',
}

/// Number of charge attempt `attempt` of the payment with this digest.
#[inline]
pub fn charge_number(digest: &[u8; 16], attempt: u8) -> ChannelNo {
    channel_number(digest, NumberKind::Charge, attempt)
}

/// Number of a refund of the payment with this digest.
#[inline]
pub fn refund_number(digest: &[u8; 16], kind: NumberKind, ordinal: u8) -> ChannelNo {
    channel_number(digest, kind, ordinal)
}

/// Crockford's base 32: no I, L, O, U.
const BASE32: [u8; 32] = *b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Bytes of a channel number.
pub const NUMBER_LEN: usize = 29;

/// 26 characters of the digest as a 128-bit big-endian number, most significant
/// first; the kind's letter; the ordinal in two characters. Each part has a
/// fixed place and its own inverse: the mapping is injective.
#[inline]
fn channel_number(digest: &[u8; 16], kind: NumberKind, ordinal: u8) -> ChannelNo {
    let character = |value: u64| BASE32[(value & 31) as usize];
    let value = u128::from_be_bytes(*digest);
    // 8 + 60 + 60 bits: 2, 12 and 12 characters.
    let (top, middle, low) = ((value >> 120) as u64, (value >> 60) as u64, value as u64);
    let mut text = [0; NUMBER_LEN];
    text[0] = character(top >> 5);
    text[1] = character(top);
    for at in 0..12 {
        text[2 + at] = character(middle >> (55 - 5 * at));
        text[14 + at] = character(low >> (55 - 5 * at));
    }
    text[26] = kind as u8;
    text[27] = character(u64::from(ordinal >> 5));
    text[28] = character(u64::from(ordinal));
    ChannelNo::from_number(&text)
}

#[cfg(test)]
mod tests;
