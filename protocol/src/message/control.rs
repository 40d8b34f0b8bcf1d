//! Messages of a connection's life (hello, goaway, ping, error) and of outcome
//! events.

use super::kind;
use super::{DecodeError, currency, mch_id, out_trade_no, short_text};
use crate::code::{CloseCode, Code, OrderState, Reason, RefundState};
use crate::frame::{begin_frame, end_frame};
use crate::id::{MchId, OutTradeNo, ShortText, TransactionId};
use crate::layout::{Cursor, Fixed, put_short};
use crate::money::Currency;

/// Server's first frame on its control stream (a unidirectional stream that
/// the server opens as soon as it has judged the client's certificate).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Most unanswered requests of one connection.
    pub in_flight_max: u32,
    /// Number of shards, for [`MchId::shard`].
    pub shards: u16,
    /// The answering site, 1-based.
    pub site: u8,
    /// Number of sites.
    pub sites: u8,
    /// Server's clock, Unix milliseconds.
    pub time_ms: u64,
    /// Identifies the cluster.
    pub cluster: u64,
}

/// An outcome event, delivered at least once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique per event: equal for every delivery of the same event.
    pub event_id: u64,
    /// Sequence within the payment, from 1, gap-free.
    pub sequence: u32,
    /// The merchant.
    pub mch_id: MchId,
    /// The merchant's number of the payment.
    pub out_trade_no: OutTradeNo,
    /// Our number.
    pub transaction_id: TransactionId,
    /// The payment's state.
    pub state: OrderState,
    /// Why.
    pub reason: Reason,
    /// Set when the event is about a refund: its number, else empty.
    pub out_refund_no: ShortText,
    /// The refund's state.
    pub refund_state: RefundState,
    /// Amount of the payment or refund, minor units.
    pub amount: i64,
    /// Currency.
    pub currency: Currency,
    /// When it happened, Unix milliseconds.
    pub at_ms: u64,
}

/// Server to client on the control stream: send nothing new on this
/// connection, collect the answers, reconnect elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAway {
    /// Why; the connection will be closed with this code.
    pub reason: CloseCode,
    /// The connection is closed after this many milliseconds at the latest.
    pub deadline_ms: u32,
}

/// Asks for a [`Pong`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Any number; the asker's clock as a rule. Comes back in the pong.
    pub time: u64,
}

/// Answer to a [`Ping`]: the site is alive and reads this stream. Says nothing
/// about payments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The ping's number.
    pub time: u64,
    /// Server's clock, Unix milliseconds.
    pub server_time_ms: u64,
}

/// Asks for outcome events on this stream, of every merchant that the gateway
/// may speak for. Answered by events only, or by an error frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Subscribe {}

/// An event was taken over durably: it is not delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// [`Event::event_id`].
    pub event_id: u64,
}

/// Answers a frame that could not be carried out as a request of its kind. Its
/// correlation id is the request's; 0 when the request could not be attributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// Why.
    pub code: Code,
    /// When to come back, milliseconds; 0 when it does not apply.
    pub retry_after_ms: u32,
    /// Name of the field that was refused, or other printable text for people;
    /// at most 64 bytes, may be empty.
    pub detail: &'a [u8],
}

impl Hello {
    const FIXED: usize = 24;

    /// Decodes the body of a [`kind::HELLO`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] when it ends early or names no shard.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut fixed, _) = Cursor::split::<{ Self::FIXED }>(body)?;
        let hello = Self {
            cluster: fixed.u64()?,
            time_ms: fixed.u64()?,
            in_flight_max: fixed.u32()?,
            shards: fixed.u16()?,
            site: fixed.u8()?,
            sites: fixed.u8()?,
        };
        // Clients divide by it.
        if hello.shards == 0 { Err(DecodeError::Field("shards")) } else { Ok(hello) }
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<{ Self::FIXED }>::new()
            .u64(self.cluster)
            .u64(self.time_ms)
            .u32(self.in_flight_max)
            .u16(self.shards)
            .u8(self.site)
            .u8(self.sites);
        out.extend_from_slice(&fixed.bytes());
    }

    /// Appends the frame; its correlation id is 0.
    pub fn encode_frame(&self, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::HELLO, 0, 0);
        self.encode(out);
        end_frame(out, start);
    }
}

impl GoAway {
    /// Decodes the body of a [`kind::GOAWAY`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] when it ends early or the reason is not in its table.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut fixed, _) = Cursor::split::<8>(body)?;
        Ok(Self {
            reason: CloseCode::from_wire(fixed.u32()?).ok_or(DecodeError::Field("reason"))?,
            deadline_ms: fixed.u32()?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<8>::new().u32(self.reason.wire()).u32(self.deadline_ms);
        out.extend_from_slice(&fixed.bytes());
    }

    /// Appends the frame; its correlation id is 0.
    pub fn encode_frame(&self, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::GOAWAY, 0, 0);
        self.encode(out);
        end_frame(out, start);
    }
}

impl Ping {
    /// Decodes the body of a [`kind::PING`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] when it ends early.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut fixed, _) = Cursor::split::<8>(body)?;
        Ok(Self { time: fixed.u64()? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.time.to_le_bytes());
    }

    /// Appends the frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::PING, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl Pong {
    /// Decodes the body of a reply to a ping.
    ///
    /// # Errors
    /// [`DecodeError`] when it ends early.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut fixed, _) = Cursor::split::<16>(body)?;
        Ok(Self { time: fixed.u64()?, server_time_ms: fixed.u64()? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<16>::new().u64(self.time).u64(self.server_time_ms);
        out.extend_from_slice(&fixed.bytes());
    }

    /// Appends the frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::PING | kind::REPLY, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl Subscribe {
    /// Decodes the body of a [`kind::SUBSCRIBE`] frame: empty in this version.
    ///
    /// # Errors
    /// None in this version.
    pub fn decode(_body: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {})
    }

    /// Appends the body: nothing in this version.
    pub fn encode(&self, _out: &mut Vec<u8>) {}

    /// Appends the frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::SUBSCRIBE, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl Event {
    const FIXED: usize = 48;

    /// Decodes the body of a [`kind::EVENT`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] with the first field that is not allowed.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut fixed, mut fields) = Cursor::split::<{ Self::FIXED }>(body)?;
        Ok(Self {
            event_id: fixed.u64()?,
            transaction_id: TransactionId::from_u64(fixed.u64()?)
                .ok_or(DecodeError::Field("transaction_id"))?,
            amount: fixed.i64()?,
            at_ms: fixed.u64()?,
            sequence: fixed.u32()?,
            reason: Reason::from_wire(fixed.u16()?).ok_or(DecodeError::Field("reason"))?,
            state: OrderState::from_wire(fixed.u8()?).ok_or(DecodeError::Field("state"))?,
            refund_state: RefundState::from_wire(fixed.u8()?)
                .ok_or(DecodeError::Field("refund_state"))?,
            currency: currency(fixed.array()?)?,
            mch_id: mch_id(fields.short()?)?,
            out_trade_no: out_trade_no(fields.short()?)?,
            out_refund_no: short_text(fields.short()?, "out_refund_no")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<{ Self::FIXED }>::new()
            .u64(self.event_id)
            .u64(self.transaction_id.as_u64())
            .i64(self.amount)
            .u64(self.at_ms)
            .u32(self.sequence)
            .u16(self.reason.wire())
            .u8(self.state.wire())
            .u8(self.refund_state.wire())
            .put(self.currency.bytes());
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.mch_id.as_bytes());
        put_short(out, self.out_trade_no.as_bytes());
        put_short(out, self.out_refund_no.as_bytes());
    }

    /// Appends the frame; `correlation` is the subscription's.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::EVENT, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl Ack {
    /// Decodes the body of a [`kind::ACK`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] when it ends early.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut fixed, _) = Cursor::split::<8>(body)?;
        Ok(Self { event_id: fixed.u64()? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.event_id.to_le_bytes());
    }

    /// Appends the frame; `correlation` is the subscription's.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::ACK, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl<'a> ErrorFrame<'a> {
    /// Longest detail in bytes.
    pub const DETAIL_MAX: usize = 64;

    /// Decodes the body of a [`kind::ERROR`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] when it ends early or the code is not in its table.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut fixed, mut fields) = Cursor::split::<8>(body)?;
        let code = Code::from_wire(fixed.u16()?).ok_or(DecodeError::Field("code"))?;
        fixed.u16()?;
        let retry_after_ms = fixed.u32()?;
        let detail = fields.short()?;
        let printable = detail.iter().all(|b| (0x20..0x7f).contains(b));
        if detail.len() > Self::DETAIL_MAX || !printable {
            return Err(DecodeError::Field("detail"));
        }
        Ok(Self { code, retry_after_ms, detail })
    }

    /// Appends the body; a longer detail is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<8>::new().u16(self.code.wire()).u16(0).u32(self.retry_after_ms);
        out.extend_from_slice(&fixed.bytes());
        put_short(out, &self.detail[..self.detail.len().min(Self::DETAIL_MAX)]);
    }

    /// Appends the frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::ERROR, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}
