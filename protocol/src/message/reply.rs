//! Bodies of replies, events and the control messages.

use super::{
    Ack, DecodeError, ErrorFrame, Event, GoAway, Hello, OrderReply, Ping, Pong, RefundReply,
    Subscribe, kind,
};
use crate::code::{CloseCode, Code, OrderState, Reason, RefundState};
use crate::frame;
use crate::id::{OutTradeNo, TransactionId};
use crate::wire::{
    Reader, currency, fields, mch_id, optional_currency, put_short, put_text, short_text,
    wire_bool, wire_value,
};

/// 0 stands for no transaction.
fn optional_transaction(reader: &mut Reader<'_>) -> Result<Option<TransactionId>, DecodeError> {
    match reader.u64("transaction_id")? {
        0 => Ok(None),
        raw => TransactionId::from_u64(raw).map(Some).ok_or(DecodeError::invalid("transaction_id")),
    }
}

fn transaction_bytes(id: Option<TransactionId>) -> [u8; 8] {
    id.map_or(0, TransactionId::as_u64).to_le_bytes()
}

fn currency_bytes(code: Option<crate::money::Currency>) -> [u8; 3] {
    code.map_or([0; 3], crate::money::Currency::bytes)
}

/// Frame encoding of bodies that have one kind only.
macro_rules! framed {
    ($type:ty, $kind:expr) => {
        impl $type {
            /// Appends the whole frame.
            pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
                let start = frame::begin(out, $kind, correlation);
                self.encode(out);
                frame::end(out, start);
            }
        }
    };
}

impl OrderReply {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            code: wire_value!(reader, Code, u16, "code")?,
            state: wire_value!(reader, OrderState, u8, "state")?,
            replayed: wire_bool(reader, "replayed")?,
            retry_after_ms: reader.u32("retry_after")?,
            transaction_id: optional_transaction(reader)?,
            amount: reader.i64("amount")?,
            refunded: reader.i64("refunded")?,
            refunding: reader.i64("refunding")?,
            finished_at_ms: reader.u64("finished_at")?,
            reason: wire_value!(reader, Reason, u16, "reason")?,
            channel: reader.u16("channel")?,
            currency: optional_currency(reader)?,
            leader_hint: reader.u8("leader_hint")?,
            out_trade_no: short_text(reader, "out_trade_no")?,
            channel_ref: short_text(reader, "channel_ref")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        fields::<56>(out)
            .put(self.code.wire().to_le_bytes())
            .put([self.state.wire(), self.replayed.into()])
            .put(self.retry_after_ms.to_le_bytes())
            .put(transaction_bytes(self.transaction_id))
            .put(self.amount.to_le_bytes())
            .put(self.refunded.to_le_bytes())
            .put(self.refunding.to_le_bytes())
            .put(self.finished_at_ms.to_le_bytes())
            .put(self.reason.wire().to_le_bytes())
            .put(self.channel.to_le_bytes())
            .put(currency_bytes(self.currency))
            .put([self.leader_hint])
            .end();
        put_short(out, &self.out_trade_no);
        put_short(out, &self.channel_ref);
    }

    /// Appends the whole frame; `kind` is the request's with the top bit set.
    pub fn encode_frame(&self, kind: u8, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, kind, correlation);
        self.encode(out);
        frame::end(out, start);
    }
}

impl RefundReply {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            code: wire_value!(reader, Code, u16, "code")?,
            state: wire_value!(reader, RefundState, u8, "state")?,
            replayed: wire_bool(reader, "replayed")?,
            retry_after_ms: reader.u32("retry_after")?,
            transaction_id: optional_transaction(reader)?,
            amount: reader.i64("amount")?,
            refunded: reader.i64("refunded")?,
            refunding: reader.i64("refunding")?,
            finished_at_ms: reader.u64("finished_at")?,
            reason: wire_value!(reader, Reason, u16, "reason")?,
            currency: optional_currency(reader)?,
            leader_hint: reader.u8("leader_hint")?,
            channel_ref: short_text(reader, "channel_ref")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        fields::<54>(out)
            .put(self.code.wire().to_le_bytes())
            .put([self.state.wire(), self.replayed.into()])
            .put(self.retry_after_ms.to_le_bytes())
            .put(transaction_bytes(self.transaction_id))
            .put(self.amount.to_le_bytes())
            .put(self.refunded.to_le_bytes())
            .put(self.refunding.to_le_bytes())
            .put(self.finished_at_ms.to_le_bytes())
            .put(self.reason.wire().to_le_bytes())
            .put(currency_bytes(self.currency))
            .put([self.leader_hint])
            .end();
        put_short(out, &self.channel_ref);
    }

    /// Appends the whole frame; `kind` is the request's with the top bit set.
    pub fn encode_frame(&self, kind: u8, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, kind, correlation);
        self.encode(out);
        frame::end(out, start);
    }
}

framed!(Hello, kind::HELLO);
impl Hello {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            in_flight_max: reader.u32("in_flight_max")?,
            shards: reader.u16("shards")?,
            site: reader.u8("site")?,
            sites: reader.u8("sites")?,
            time_ms: reader.u64("time")?,
            cluster: reader.u64("cluster")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.in_flight_max.to_le_bytes());
        out.extend_from_slice(&self.shards.to_le_bytes());
        out.push(self.site);
        out.push(self.sites);
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.cluster.to_le_bytes());
    }
}

framed!(GoAway, kind::GOAWAY);
impl GoAway {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        let code = wire_value!(reader, CloseCode, u32, "code")?;
        Ok(Self { code, deadline_ms: reader.u32("deadline")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.code.wire().to_le_bytes());
        out.extend_from_slice(&self.deadline_ms.to_le_bytes());
    }
}

framed!(Ping, kind::PING);
impl Ping {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { token: Reader::new(body).u64("token")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.token.to_le_bytes());
    }

    /// The answer.
    pub fn pong(&self, time_ms: u64) -> Pong {
        Pong { token: self.token, time_ms }
    }
}

framed!(Pong, kind::PING | kind::REPLY);
impl Pong {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self { token: reader.u64("token")?, time_ms: reader.u64("time")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.token.to_le_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
    }
}

framed!(Subscribe, kind::SUBSCRIBE);
impl Subscribe {
    /// Reads a body: empty, later versions may add fields.
    ///
    /// # Errors
    /// None today.
    pub fn decode(_body: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self)
    }

    /// Appends the body.
    pub fn encode(&self, _out: &mut Vec<u8>) {}

    /// Appends the reply frame: code OK.
    pub fn reply_frame(correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, kind::SUBSCRIBE | kind::REPLY, correlation);
        out.extend_from_slice(&Code::Ok.wire().to_le_bytes());
        frame::end(out, start);
    }
}

framed!(Ack, kind::ACK);
impl Ack {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { event_id: Reader::new(body).u64("event_id")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.event_id.to_le_bytes());
    }
}

framed!(Event, kind::EVENT);
impl Event {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            event_id: reader.u64("event_id")?,
            sequence: reader.u32("sequence")?,
            state: wire_value!(reader, OrderState, u8, "state")?,
            refund_state: wire_value!(reader, RefundState, u8, "refund_state")?,
            reason: wire_value!(reader, Reason, u16, "reason")?,
            transaction_id: TransactionId::from_u64(reader.u64("transaction_id")?)
                .ok_or(DecodeError::invalid("transaction_id"))?,
            amount: reader.i64("amount")?,
            at_ms: reader.u64("at")?,
            currency: currency(reader)?,
            mch_id: mch_id(reader)?,
            out_trade_no: OutTradeNo::parse(reader.text(32, "out_trade_no")?)
                .map_err(|_| DecodeError::invalid("out_trade_no"))?,
            out_refund_no: short_text(reader, "out_refund_no")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.event_id.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.push(self.state.wire());
        out.push(self.refund_state.wire());
        out.extend_from_slice(&self.reason.wire().to_le_bytes());
        out.extend_from_slice(&self.transaction_id.as_u64().to_le_bytes());
        out.extend_from_slice(&self.amount.to_le_bytes());
        out.extend_from_slice(&self.at_ms.to_le_bytes());
        out.extend_from_slice(&self.currency.bytes());
        put_short(out, self.mch_id.short());
        put_short(out, self.out_trade_no.short());
        put_short(out, &self.out_refund_no);
    }
}

impl<'a> ErrorFrame<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            code: wire_value!(reader, Code, u16, "code")?,
            retry_after_ms: reader.u32("retry_after")?,
            detail: reader.text(128, "detail")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.code.wire().to_le_bytes());
        out.extend_from_slice(&self.retry_after_ms.to_le_bytes());
        put_text(out, &self.detail[..self.detail.len().min(128)]);
    }

    /// Appends the whole frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, kind::ERROR, correlation);
        self.encode(out);
        frame::end(out, start);
    }
}
