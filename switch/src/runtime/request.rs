//! One frame of a gateway: decoded, authorised, and turned into an engine
//! input or into an answer.
//!
//! Allocates nothing per message: the canonical form is built in one reused
//! buffer, contents are copied once into the batch that goes to the worker.

use std::cell::RefCell;
use std::rc::Rc;

use protocol::channel::order_digest;
use protocol::code::Code;
use protocol::frame::Header;
use protocol::id::{MchId, TransactionId};
use protocol::message::{
    Ack, Auth, ErrorFrame, OrderRef, OrderRequest, Pay, Ping, QueryRefund, Refund, Subscribe, kind,
};
use sha2::{Digest, Sha256};

use super::gateway::{Connection, Stream};
use super::inbox::Item;
use super::net::{Net, stamp_stream};
use crate::engine::Now;
use crate::engine::input::{OrderInput, Origin, PayInput, QueryRefundInput, RefundInput, Waiter};
use crate::metrics::Op;

thread_local! {
    static CANONICAL: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

struct Context<'a> {
    net: &'a Rc<Net>,
    connection: &'a Rc<Connection>,
    stream: &'a Rc<Stream>,
    waiter: Waiter,
    now: Now,
}

/// Takes one frame. Returns whether an answer was put into the stream's buffer.
pub fn frame(
    net: &Rc<Net>,
    connection: &Rc<Connection>,
    stream: &Rc<Stream>,
    header: Header,
    body: &[u8],
    now: Now,
) -> bool {
    let waiter = Waiter {
        connection: connection.id,
        stream: stamp_stream(stream.slot, now.mono_us),
        kind: header.kind,
        correlation: header.correlation,
    };
    let context = Context { net, connection, stream, waiter, now };
    if let Some(op) = Op::from_kind(header.kind) {
        net.metrics.requests.of(op).add(1);
    }
    match header.kind {
        kind::PAY
        | kind::QUERY
        | kind::REFUND
        | kind::QUERY_REFUND
        | kind::CLOSE
        | kind::REVERSE => match context.request(body) {
            Ok(()) => false,
            Err(code) => context.refuse(code),
        },
        kind::PING => context.ping(body),
        kind::SUBSCRIBE => context.subscribe(body),
        kind::ACK => context.ack(body),
        _ => context.error(Code::UnknownKind, "no such message kind"),
    }
}

impl Context<'_> {
    fn request(&self, body: &[u8]) -> Result<(), Code> {
        if self.net.draining.get() && !matches!(self.waiter.kind, kind::QUERY | kind::QUERY_REFUND)
        {
            return Err(Code::Draining);
        }
        if self.connection.in_flight.get() >= self.net.settings.in_flight_max {
            return Err(Code::TooManyInFlight);
        }
        match self.waiter.kind {
            kind::PAY => self.pay(body),
            kind::REFUND => self.refund(body),
            kind::QUERY_REFUND => self.query_refund(body),
            _ => self.order(body),
        }
    }

    fn pay(&self, body: &[u8]) -> Result<(), Code> {
        let pay = Pay::decode(body).map_err(|error| error.code())?;
        let shard = self.shard(&pay.mch_id)?;
        let second_signature = CANONICAL.with_borrow_mut(|(canonical, _)| {
            canonical.clear();
            pay.canonical(canonical);
            self.authorise(&pay.mch_id, &pay.auth, canonical)?;
            if pay.second.key_id == 0 {
                return Ok(false);
            }
            let directory = self.net.directory.borrow();
            directory.second(&pay.mch_id, &pay.auth, &pay.second, canonical).map(|()| true)
        })?;
        CANONICAL.with_borrow_mut(|(_, content)| {
            content.clear();
            encode_content(&pay, content);
            let input = PayInput {
                origin: self.origin(pay.mch_id, pay.wait_ms),
                out_trade_no: pay.out_trade_no,
                digest: order_digest(&pay.mch_id, &pay.out_trade_no),
                fingerprint: pay.fingerprint(),
                amount: pay.amount,
                currency: pay.currency,
                method: pay.method,
                scene: pay.scene,
                time_expire_ms: pay.time_expire_ms,
                payer_hash: short_hash(pay.payer_token),
                device_hash: short_hash(pay.device_id),
                notify: !pay.notify.is_empty(),
                second_signature,
                content,
            };
            self.net.push_pay(shard, input);
        });
        self.taken();
        Ok(())
    }

    fn order(&self, body: &[u8]) -> Result<(), Code> {
        let request = OrderRequest::decode(body).map_err(|error| error.code())?;
        let shard = self.shard_of_order(&request.mch_id, &request.order)?;
        self.authorise_with(&request.mch_id, &request.auth, |out| {
            request.canonical(self.waiter.kind, out);
        })?;
        let input = OrderInput {
            origin: self.origin(request.mch_id, request.wait_ms),
            order: request.order,
            digest: digest(&request.mch_id, &request.order),
            refresh: request.refresh,
        };
        let item = match self.waiter.kind {
            kind::CLOSE => Item::Close(input),
            kind::REVERSE => Item::Reverse(input),
            _ => Item::Query(input),
        };
        self.net.push(shard, item);
        self.taken();
        Ok(())
    }

    fn refund(&self, body: &[u8]) -> Result<(), Code> {
        let refund = Refund::decode(body).map_err(|error| error.code())?;
        let shard = self.shard_of_order(&refund.mch_id, &refund.order)?;
        self.authorise_with(&refund.mch_id, &refund.auth, |out| refund.canonical(out))?;
        let input = RefundInput {
            origin: self.origin(refund.mch_id, refund.wait_ms),
            order: refund.order,
            digest: digest(&refund.mch_id, &refund.order),
            out_refund_no: refund.out_refund_no,
            amount: refund.amount,
            currency: refund.currency,
        };
        self.net.push(shard, Item::Refund(input));
        self.taken();
        Ok(())
    }

    fn query_refund(&self, body: &[u8]) -> Result<(), Code> {
        let query = QueryRefund::decode(body).map_err(|error| error.code())?;
        let shard = self.shard_of_order(&query.mch_id, &query.order)?;
        self.authorise_with(&query.mch_id, &query.auth, |out| query.canonical(out))?;
        let input = QueryRefundInput {
            origin: self.origin(query.mch_id, 0),
            order: query.order,
            digest: digest(&query.mch_id, &query.order),
            out_refund_no: query.out_refund_no,
        };
        self.net.push(shard, Item::QueryRefund(input));
        self.taken();
        Ok(())
    }

    fn ping(&self, body: &[u8]) -> bool {
        match Ping::decode(body) {
            Ok(ping) => {
                let out = &mut self.stream.buffer.borrow_mut();
                ping.pong(self.now.wall_us / 1000).encode_frame(self.waiter.correlation, out);
                true
            }
            Err(error) => self.error(error.code(), "ping"),
        }
    }

    fn subscribe(&self, body: &[u8]) -> bool {
        if let Err(error) = Subscribe::decode(body) {
            return self.error(error.code(), "subscribe");
        }
        self.stream.subscribed.set(true);
        let waiter = Waiter { stream: self.stream.slot, ..self.waiter };
        self.net.broadcast(|| Item::Subscribe(waiter, self.connection.gateway));
        let out = &mut self.stream.buffer.borrow_mut();
        Subscribe::reply_frame(self.waiter.correlation, out);
        true
    }

    fn ack(&self, body: &[u8]) -> bool {
        let waiter = Waiter { stream: self.stream.slot, ..self.waiter };
        match Ack::decode(body) {
            Ok(ack) => {
                // An event's id leads with its payment's transaction shard.
                let shard = crate::engine::event_shard(ack.event_id);
                if shard < self.net.settings.shards {
                    self.net.push(shard, Item::EventAck(ack.event_id, waiter));
                }
                false
            }
            Err(error) => self.error(error.code(), "ack"),
        }
    }

    fn authorise_with(
        &self,
        mch_id: &MchId,
        auth: &Auth<'_>,
        canonical_form: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Code> {
        CANONICAL.with_borrow_mut(|(canonical, _)| {
            canonical.clear();
            canonical_form(canonical);
            self.authorise(mch_id, auth, canonical)
        })
    }

    fn authorise(&self, mch_id: &MchId, auth: &Auth<'_>, canonical: &[u8]) -> Result<(), Code> {
        let directory = self.net.directory.borrow();
        let now_ms = self.now.wall_us / 1000;
        directory.authorise(mch_id, &self.connection.peer, auth, now_ms, canonical)
    }

    /// The merchant's shard, unless it is congested: then the request is shed
    /// before any signature is computed.
    fn shard(&self, mch_id: &MchId) -> Result<u16, Code> {
        let shard = mch_id.shard(self.net.settings.shards);
        if self.net.congested(shard) { Err(Code::Overloaded) } else { Ok(shard) }
    }

    fn shard_of_order(&self, mch_id: &MchId, order: &OrderRef) -> Result<u16, Code> {
        let shard = self.shard(mch_id)?;
        match order {
            // A transaction of another shard cannot be this merchant's.
            OrderRef::TransactionId(id) if TransactionId::shard(*id) != shard => {
                Err(Code::OrderNotFound)
            }
            _ => Ok(shard),
        }
    }

    fn origin(&self, mch_id: MchId, wait_ms: u32) -> Origin {
        Origin {
            waiter: self.waiter,
            mch_id,
            gateway: self.connection.gateway,
            wait_us: u64::from(wait_ms) * 1000,
        }
    }

    fn taken(&self) {
        self.stream.pending.set(self.stream.pending.get() + 1);
        self.connection.in_flight.set(self.connection.in_flight.get() + 1);
        self.net.outstanding.set(self.net.outstanding.get() + 1);
    }

    fn refuse(&self, code: Code) -> bool {
        let reply = self.net.refusal(self.waiter, code);
        super::gateway::encode_reply(&reply, &mut self.stream.buffer.borrow_mut());
        true
    }

    fn error(&self, code: Code, detail: &str) -> bool {
        self.net.metrics.refusals.of(code).add(1);
        let frame = ErrorFrame { code, retry_after_ms: 0, detail: detail.as_bytes() };
        frame.encode_frame(self.waiter.correlation, &mut self.stream.buffer.borrow_mut());
        true
    }
}

fn digest(mch_id: &MchId, order: &OrderRef) -> [u8; 16] {
    match order {
        OrderRef::OutTradeNo(no) => order_digest(mch_id, no),
        OrderRef::TransactionId(_) => [0; 16],
    }
}

/// First 8 bytes of SHA-256; 0 for an empty text.
fn short_hash(text: &[u8]) -> u64 {
    if text.is_empty() {
        return 0;
    }
    let hash = Sha256::digest(text);
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

/// What of a pay the engine does not read but the log keeps: notify target,
/// payer token, device id, tags, each length-prefixed.
fn encode_content(pay: &Pay<'_>, out: &mut Vec<u8>) {
    for field in [pay.notify, pay.payer_token, pay.device_id] {
        out.push(field.len() as u8);
        out.extend_from_slice(field);
    }
    out.push(pay.tags.count);
    out.extend_from_slice(pay.tags.encoded);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_text_hashes_to_zero_and_texts_differ() {
        assert_eq!(short_hash(b""), 0);
        assert_ne!(short_hash(b"a"), short_hash(b"b"));
    }
}
