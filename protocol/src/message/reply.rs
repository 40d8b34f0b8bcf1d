//! The replies to signed requests: fixed layouts, two levels (code, state).

use super::kind;
use super::{DecodeError, currency_or_none, flag, short_text, transaction_or_none};
use crate::code::{Code, OrderState, Reason, RefundState};
use crate::frame::{begin_frame, end_frame};
use crate::id::{ShortText, TransactionId};
use crate::layout::{Cursor, Fixed, put_short};
use crate::money::Currency;

/// Reply to pay, query, close and reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderReply {
    /// First level.
    pub code: Code,
    /// When to come back, milliseconds; 0 when it does not apply.
    pub retry_after_ms: u32,
    /// Stored outcome of an earlier identical request.
    pub replayed: bool,
    /// Second level.
    pub state: OrderState,
    /// Why.
    pub reason: Reason,
    /// Our number; `None` when refused before a payment existed.
    pub transaction_id: Option<TransactionId>,
    /// Amount of the payment in minor units; 0 when refused.
    pub amount: i64,
    /// Currency of the payment; `None` when refused.
    pub currency: Option<Currency>,
    /// Given back so far, minor units.
    pub refunded: i64,
    /// Reserved by refunds in progress, minor units.
    pub refunding: i64,
    /// Channel of the counting attempt; 0 when none.
    pub channel: u16,
    /// When the state became final, Unix milliseconds; 0 when it is not.
    pub finished_at_ms: u64,
    /// The site (1-based) that leads the shard; 0: unknown or this one.
    pub leader_hint: u8,
    /// Merchant's number; empty in replies to pay.
    pub out_trade_no: ShortText,
    /// The channel's own number of the charge; may be empty.
    pub channel_ref: ShortText,
}

/// Reply to refund and query-refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefundReply {
    /// First level.
    pub code: Code,
    /// When to come back, milliseconds; 0 when it does not apply.
    pub retry_after_ms: u32,
    /// Stored outcome of an earlier identical request.
    pub replayed: bool,
    /// Second level.
    pub state: RefundState,
    /// Why.
    pub reason: Reason,
    /// Our number of the payment.
    pub transaction_id: Option<TransactionId>,
    /// Amount of this refund, minor units; 0 when refused.
    pub amount: i64,
    /// Currency of the payment; `None` when refused.
    pub currency: Option<Currency>,
    /// Given back so far over all refunds, minor units.
    pub refunded: i64,
    /// Reserved by refunds in progress, minor units.
    pub refunding: i64,
    /// When the state became final, Unix milliseconds; 0 when it is not.
    pub finished_at_ms: u64,
    /// The site (1-based) that leads the shard; 0: unknown or this one.
    pub leader_hint: u8,
    /// The channel's own number of the refund; may be empty.
    pub channel_ref: ShortText,
}

/// Reserved bytes of an absent currency.
const NO_CURRENCY: [u8; 3] = [0; 3];

impl OrderReply {
    const FIXED: usize = 56;

    /// A refusal: no payment existed for this request.
    pub const fn refused(code: Code, retry_after_ms: u32) -> Self {
        Self {
            code,
            retry_after_ms,
            replayed: false,
            state: OrderState::None,
            reason: Reason::None,
            transaction_id: None,
            amount: 0,
            currency: None,
            refunded: 0,
            refunding: 0,
            channel: 0,
            finished_at_ms: 0,
            leader_hint: 0,
            out_trade_no: ShortText::EMPTY,
            channel_ref: ShortText::EMPTY,
        }
    }

    /// Decodes the body of a reply to pay, query, close or reverse.
    ///
    /// # Errors
    /// [`DecodeError`] with the first field that is not in its table.
    #[inline]
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut fixed, mut fields) = Cursor::split::<{ Self::FIXED }>(body)?;
        Ok(Self {
            code: Code::from_wire(fixed.u16()?).ok_or(DecodeError::Field("code"))?,
            reason: Reason::from_wire(fixed.u16()?).ok_or(DecodeError::Field("reason"))?,
            retry_after_ms: fixed.u32()?,
            transaction_id: transaction_or_none(fixed.u64()?)?,
            amount: fixed.i64()?,
            refunded: fixed.i64()?,
            refunding: fixed.i64()?,
            finished_at_ms: fixed.u64()?,
            channel: fixed.u16()?,
            state: OrderState::from_wire(fixed.u8()?).ok_or(DecodeError::Field("state"))?,
            replayed: flag(fixed.u8()?, "replayed")?,
            leader_hint: fixed.u8()?,
            currency: currency_or_none(fixed.array()?)?,
            out_trade_no: short_text(fields.short()?, "out_trade_no")?,
            channel_ref: short_text(fields.short()?, "channel_ref")?,
        })
    }

    /// Appends the body.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<{ Self::FIXED }>::new()
            .u16(self.code.wire())
            .u16(self.reason.wire())
            .u32(self.retry_after_ms)
            .u64(self.transaction_id.map_or(0, TransactionId::as_u64))
            .i64(self.amount)
            .i64(self.refunded)
            .i64(self.refunding)
            .u64(self.finished_at_ms)
            .u16(self.channel)
            .u8(self.state.wire())
            .u8(u8::from(self.replayed))
            .u8(self.leader_hint)
            .put(self.currency.map_or(NO_CURRENCY, Currency::bytes));
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.out_trade_no.as_bytes());
        put_short(out, self.channel_ref.as_bytes());
    }

    /// Appends the frame that answers a request of `request_kind`.
    #[inline]
    pub fn encode_frame(&self, request_kind: u8, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, request_kind | kind::REPLY, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl RefundReply {
    const FIXED: usize = 56;

    /// A refusal: no refund existed for this request.
    pub const fn refused(code: Code, retry_after_ms: u32) -> Self {
        Self {
            code,
            retry_after_ms,
            replayed: false,
            state: RefundState::None,
            reason: Reason::None,
            transaction_id: None,
            amount: 0,
            currency: None,
            refunded: 0,
            refunding: 0,
            finished_at_ms: 0,
            leader_hint: 0,
            channel_ref: ShortText::EMPTY,
        }
    }

    /// Decodes the body of a reply to refund or query-refund.
    ///
    /// # Errors
    /// [`DecodeError`] with the first field that is not in its table.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let (mut fixed, mut fields) = Cursor::split::<{ Self::FIXED }>(body)?;
        Ok(Self {
            code: Code::from_wire(fixed.u16()?).ok_or(DecodeError::Field("code"))?,
            reason: Reason::from_wire(fixed.u16()?).ok_or(DecodeError::Field("reason"))?,
            retry_after_ms: fixed.u32()?,
            transaction_id: transaction_or_none(fixed.u64()?)?,
            amount: fixed.i64()?,
            refunded: fixed.i64()?,
            refunding: fixed.i64()?,
            finished_at_ms: fixed.u64()?,
            state: RefundState::from_wire(fixed.u8()?).ok_or(DecodeError::Field("state"))?,
            replayed: flag(fixed.u8()?, "replayed")?,
            leader_hint: fixed.u8()?,
            currency: currency_or_none(fixed.array()?)?,
            channel_ref: short_text(fields.short()?, "channel_ref")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<{ Self::FIXED }>::new()
            .u16(self.code.wire())
            .u16(self.reason.wire())
            .u32(self.retry_after_ms)
            .u64(self.transaction_id.map_or(0, TransactionId::as_u64))
            .i64(self.amount)
            .i64(self.refunded)
            .i64(self.refunding)
            .u64(self.finished_at_ms)
            .u8(self.state.wire())
            .u8(u8::from(self.replayed))
            .u8(self.leader_hint)
            .put(self.currency.map_or(NO_CURRENCY, Currency::bytes));
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.channel_ref.as_bytes());
    }

    /// Appends the frame that answers a request of `request_kind`.
    pub fn encode_frame(&self, request_kind: u8, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, request_kind | kind::REPLY, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}
