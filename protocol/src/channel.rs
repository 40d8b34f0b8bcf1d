//! The native channel protocol: our own frames over QUIC (ALPN
//! `payswitch-channel/1`) between the switch and a payment service beside it.
//!
//! The correlation id is chosen by the switch and echoed. Every reply names the
//! operation's channel number, amount and currency, so that an answer to
//! another question is noticed.
//!
//! Also the deterministic numbers of attempts and refunds at a channel. Knows
//! no payment state. Tested by round trips, arbitrary bytes, an injectivity
//! check of the numbers and the golden vectors.

use crate::code::Code;
use crate::frame;
use crate::hash;
use crate::id::{ChannelNo, MchId, OutTradeNo, ShortText};
use crate::money::{Amount, Currency};
use crate::wire::{DecodeError, Reader, amount, currency, fields, put_short, short_text};

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

/// First 16 bytes of SHA-256(mch_id, 0x00, out_trade_no): the payment's index
/// key and the root of its channel numbers.
pub fn order_digest(mch_id: &MchId, out_trade_no: &OutTradeNo) -> [u8; 16] {
    let (mch, no) = (mch_id.as_bytes(), out_trade_no.as_bytes());
    let mut text = [0; 65];
    text[..mch.len()].copy_from_slice(mch);
    text[mch.len() + 1..mch.len() + 1 + no.len()].copy_from_slice(no);
    hash::first_half(&hash::of(&text[..mch.len() + 1 + no.len()]))
}

/// What a channel number stands for: its 27th character.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum NumberKind {
    /// A charge attempt.
    Charge = b'P',
    /// A merchant's refund.
    Refund = b'R',
    /// The full refund that a reverse of a paid payment makes.
    Reversal = b'V',
    /// The refund of a charge that appeared after its attempt was given up.
    Orphan = b'X',
}

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Our number of an operation at a channel: 26 characters of Crockford base32
/// (the digest, most significant bits first), the kind, and the ordinal as two
/// more base32 characters. One number names one operation for ever.
pub fn channel_number(digest: &[u8; 16], kind: NumberKind, ordinal: u8) -> ChannelNo {
    let mut text = [0; 29];
    let value = u128::from_be_bytes(*digest);
    // 26 characters hold 130 bits: the first carries only three. Cut into
    // 8 + 60 + 60 bits so that the shifts stay within 64.
    let (top, middle, low) = ((value >> 120) as u64, (value >> 60) as u64, value as u64);
    let character = |bits: u64| CROCKFORD[(bits & 31) as usize];
    text[0] = character(top >> 5);
    text[1] = character(top);
    for at in 0..12 {
        text[2 + at] = character(middle >> (55 - 5 * at));
        text[14 + at] = character(low >> (55 - 5 * at));
    }
    text[26] = kind as u8;
    text[27] = CROCKFORD[usize::from(ordinal >> 5)];
    text[28] = CROCKFORD[usize::from(ordinal & 31)];
    ChannelNo::from_base32(&text)
}

/// The number of charge attempt `attempt` (from 1).
pub fn charge_number(digest: &[u8; 16], attempt: u8) -> ChannelNo {
    channel_number(digest, NumberKind::Charge, attempt)
}

/// The number of the payment's refund `ordinal` (from 1).
pub fn refund_number(digest: &[u8; 16], kind: NumberKind, ordinal: u8) -> ChannelNo {
    channel_number(digest, kind, ordinal)
}

fn channel_no(reader: &mut Reader<'_>, field: &'static str) -> Result<ChannelNo, DecodeError> {
    ChannelNo::parse(reader.text(32, field)?).map_err(|_| DecodeError::invalid(field))
}

impl ChannelRequest {
    /// Reads a body; `kind` is the frame's.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, DecodeError> {
        if !(kind::CHARGE..=kind::QUERY_REFUND).contains(&kind) {
            return Err(DecodeError::new(Code::UnknownKind, "kind"));
        }
        let reader = &mut Reader::new(body);
        let amount = amount(reader)?;
        let time_expire_ms = reader.u64("time_expire")?;
        let currency = currency(reader)?;
        let charge_no = channel_no(reader, "charge_no")?;
        let refund_no = match reader.text(32, "refund_no")? {
            [] => None,
            text => Some(ChannelNo::parse(text).map_err(|_| DecodeError::invalid("refund_no"))?),
        };
        if refund_no.is_some() != matches!(kind, kind::REFUND | kind::QUERY_REFUND) {
            return Err(DecodeError::invalid("refund_no"));
        }
        Ok(Self { kind, charge_no, refund_no, amount, currency, time_expire_ms })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        fields::<19>(out)
            .put(self.amount.minor().to_le_bytes())
            .put(self.time_expire_ms.to_le_bytes())
            .put(self.currency.bytes())
            .end();
        put_short(out, self.charge_no.short());
        match &self.refund_no {
            Some(no) => put_short(out, no.short()),
            None => out.push(0),
        }
    }

    /// Appends the whole frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, self.kind, correlation);
        self.encode(out);
        frame::end(out, start);
    }
}

impl ChannelReply {
    /// Reads a body; `kind` is the frame's.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, DecodeError> {
        let request = kind & !kind::REPLY;
        if kind & kind::REPLY == 0 || !(kind::CHARGE..=kind::QUERY_REFUND).contains(&request) {
            return Err(DecodeError::new(Code::UnknownKind, "kind"));
        }
        let reader = &mut Reader::new(body);
        Ok(Self {
            kind,
            amount: reader.i64("amount")?,
            detail: reader.u16("detail")?,
            status: ChannelStatus::from_wire(reader.u8("status")?)
                .ok_or(DecodeError::invalid("status"))?,
            currency: currency(reader)?,
            charge_no: channel_no(reader, "charge_no")?,
            channel_ref: short_text(reader, "channel_ref")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        fields::<14>(out)
            .put(self.amount.to_le_bytes())
            .put(self.detail.to_le_bytes())
            .put([self.status.wire()])
            .put(self.currency.bytes())
            .end();
        put_short(out, self.charge_no.short());
        put_short(out, &self.channel_ref);
    }

    /// Appends the whole frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, self.kind, correlation);
        self.encode(out);
        frame::end(out, start);
    }
}

#[cfg(test)]
mod tests;
