//! The gateway's messages: one struct per request, borrowed from the frame, and
//! one per reply. Layouts are in `docs/WIRE.md`.
//!
//! Every message has `decode(body)` and `encode(out)`, which appends the body,
//! and `encode_frame`, which appends the whole frame. Decoding borrows and
//! never allocates; bytes behind the last known field are skipped, so that a
//! later version may append fields. Knows no socket and no clock. Tested by
//! round trips, arbitrary bytes, seeded mutations and the golden vectors.

mod control;
mod reply;
mod request;
mod tags;

pub use control::{Ack, ErrorFrame, Event, GoAway, Hello, Ping, Pong, Subscribe};
pub use reply::{OrderReply, RefundReply};
pub(crate) use request::first_half;
pub use request::{Auth, OrderRef, OrderRequest, Pay, QueryRefund, Refund, Request};
pub use tags::{TAGS_MAX, Tag, Tags};

use crate::code::Code;
use crate::id::{MchId, OutRefundNo, OutTradeNo, ShortText, TransactionId};
use crate::money::{Amount, Currency};

/// Message kinds. A reply's kind is its request's with the top bit set.
pub mod kind {
    /// Server to client, first frame of the server's control stream.
    pub const HELLO: u8 = 0x01;
    /// Server to client on the control stream: finish and reconnect elsewhere.
    pub const GOAWAY: u8 = 0x02;
    /// Liveness and round trip.
    pub const PING: u8 = 0x03;
    /// Charge a payer.
    pub const PAY: u8 = 0x10;
    /// State of a payment.
    pub const QUERY: u8 = 0x11;
    /// Give back a part or all of a paid payment.
    pub const REFUND: u8 = 0x12;
    /// State of a refund.
    pub const QUERY_REFUND: u8 = 0x13;
    /// Cancel an unpaid payment.
    pub const CLOSE: u8 = 0x14;
    /// Undo a payment whose outcome is unknown or just became paid.
    pub const REVERSE: u8 = 0x15;
    /// Ask for outcome events on this stream.
    pub const SUBSCRIBE: u8 = 0x20;
    /// Server to client: an outcome event.
    pub const EVENT: u8 = 0x21;
    /// Client to server: an event was taken over.
    pub const ACK: u8 = 0x22;
    /// Top bit of every reply.
    pub const REPLY: u8 = 0x80;
    /// A reply to a frame that could not be attributed to a request kind.
    pub const ERROR: u8 = 0xff;
}

/// Why a body was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// No message of this kind is expected here.
    Kind,
    /// The body ends before its last field.
    Truncated,
    /// The named field's value is outside its alphabet, table or range.
    Field(&'static str),
    /// The amount is zero, negative or above [`Amount::MAX`].
    Amount,
}

impl DecodeError {
    /// The code of the error frame that answers the request.
    pub fn code(self) -> Code {
        match self {
            Self::Kind => Code::UnknownKind,
            Self::Truncated => Code::MalformedBody,
            Self::Field(_) => Code::InvalidField,
            Self::Amount => Code::InvalidAmount,
        }
    }

    /// The field the error frame names; empty when there is none to name.
    pub fn field(self) -> &'static str {
        match self {
            Self::Kind | Self::Truncated => "",
            Self::Field(name) => name,
            Self::Amount => "amount",
        }
    }

    /// The error frame that answers a request which could not be decoded.
    pub fn reply(self) -> ErrorFrame<'static> {
        ErrorFrame { code: self.code(), retry_after_ms: 0, detail: self.field().as_bytes() }
    }
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kind => f.write_str("unknown message kind"),
            Self::Truncated => f.write_str("body ends early"),
            Self::Field(name) => write!(f, "field {name} has a value that is not allowed"),
            Self::Amount => f.write_str("amount is not within 1 and 10^15"),
        }
    }
}

impl std::error::Error for DecodeError {}

#[inline]
fn mch_id(raw: &[u8]) -> Result<MchId, DecodeError> {
    MchId::parse(raw).map_err(|_| DecodeError::Field("mch_id"))
}

#[inline]
fn out_trade_no(raw: &[u8]) -> Result<OutTradeNo, DecodeError> {
    OutTradeNo::parse(raw).map_err(|_| DecodeError::Field("out_trade_no"))
}

#[inline]
fn out_refund_no(raw: &[u8]) -> Result<OutRefundNo, DecodeError> {
    OutRefundNo::parse(raw).map_err(|_| DecodeError::Field("out_refund_no"))
}

#[inline]
fn amount(raw: i64) -> Result<Amount, DecodeError> {
    Amount::new(raw).ok_or(DecodeError::Amount)
}

#[inline]
fn currency(raw: [u8; 3]) -> Result<Currency, DecodeError> {
    Currency::new(raw).ok_or(DecodeError::Field("currency"))
}

/// Three zero bytes stand for no currency.
#[inline]
fn currency_or_none(raw: [u8; 3]) -> Result<Option<Currency>, DecodeError> {
    if raw == [0; 3] { Ok(None) } else { currency(raw).map(Some) }
}

/// Zero stands for no number.
#[inline]
fn transaction_or_none(raw: u64) -> Result<Option<TransactionId>, DecodeError> {
    if raw == 0 {
        return Ok(None);
    }
    TransactionId::from_u64(raw).map(Some).ok_or(DecodeError::Field("transaction_id"))
}

#[inline]
fn flag(raw: u8, name: &'static str) -> Result<bool, DecodeError> {
    match raw {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Field(name)),
    }
}

#[inline]
fn short_text(raw: &[u8], name: &'static str) -> Result<ShortText, DecodeError> {
    ShortText::new(raw).ok_or(DecodeError::Field(name))
}

/// Whether `raw` is free text within `max` bytes: UTF-8 without control characters.
#[inline]
fn free_text(raw: &[u8], max: usize) -> bool {
    raw.len() <= max
        && (raw.iter().all(|b| (0x20..0x7f).contains(b))
            || std::str::from_utf8(raw).is_ok_and(|text| !text.chars().any(char::is_control)))
}

#[cfg(test)]
mod tests;
