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

use super::forward::{Incoming, Placed};
use super::gateway::Connection;
use super::inbox::Item;
use super::net::{Net, stamp_stream};
use super::stream::Stream;
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

/// Why a request is not taken.
struct Refusal {
    code: Code,
    /// The site to ask instead; 0: none is known.
    leader: u8,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self { code, leader: 0 }
    }
}

/// By what a request was authorised.
struct Authorised<'a> {
    mch_id: &'a MchId,
    /// As [`Directory::authorise`](super::directory::Directory::authorise) says.
    authority: u64,
    /// A second signature was verified.
    second: bool,
}

/// Takes one frame. Returns whether an answer was put into the stream's buffer. What
/// comes of a connection that is gone is not looked at: its end was told to everybody.
pub fn frame(
    net: &Rc<Net>,
    connection: &Rc<Connection>,
    stream: &Rc<Stream>,
    header: Header,
    body: &[u8],
    now: Now,
) -> bool {
    if connection.gone.get() {
        return false;
    }
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
            Err(refusal) => context.refuse(&refusal),
        },
        kind::PING => context.ping(body),
        kind::SUBSCRIBE => context.subscribe(body),
        kind::ACK => context.ack(body),
        _ => context.error(Code::UnknownKind, "no such message kind"),
    }
}

impl Context<'_> {
    fn request(&self, body: &[u8]) -> Result<(), Refusal> {
        if self.net.draining.get() && !matches!(self.waiter.kind, kind::QUERY | kind::QUERY_REFUND)
        {
            return Err(Code::Draining.into());
        }
        if self.connection.in_flight.get() >= self.net.settings.in_flight_max {
            return Err(Code::TooManyInFlight.into());
        }
        let own = self.connection.of_gateway.get();
        if own >= self.connection.of_gateway_max || self.net.is_overloaded(own, self.now.mono_us) {
            return Err(Code::Overloaded.into());
        }
        match self.waiter.kind {
            kind::PAY => self.pay(body),
            kind::REFUND => self.refund(body),
            kind::QUERY_REFUND => self.query_refund(body),
            _ => self.order(body),
        }
    }

    fn pay(&self, body: &[u8]) -> Result<(), Refusal> {
        let pay = Pay::decode(body).map_err(|error| error.code())?;
        let shard = self.shard(&pay.mch_id)?;
        let (authority, second) = CANONICAL.with_borrow_mut(|(canonical, _)| {
            canonical.clear();
            self.net.directory.borrow().warm(&pay.mch_id);
            pay.canonical(canonical);
            let authority = self.authorise(&pay.mch_id, &pay.auth, canonical)?;
            if pay.second.key_id == 0 {
                return Ok((authority, false));
            }
            let directory = self.net.directory.borrow();
            let judged = directory.second(&pay.mch_id, &pay.auth, &pay.second, canonical);
            judged.map(|()| (authority, true)).map_err(|code| self.verdict(&pay.mch_id, code))
        })?;
        let by = Authorised { mch_id: &pay.mch_id, authority, second };
        if let Some(to) = self.place(shard, &by, pay.wait_ms, body)? {
            push_pay(self.net, shard, &pay, &to);
        }
        self.taken();
        Ok(())
    }

    fn order(&self, body: &[u8]) -> Result<(), Refusal> {
        let request = OrderRequest::decode(body).map_err(|error| error.code())?;
        let shard = self.shard_of_order(&request.mch_id, &request.order)?;
        let authority = self.authorise_with(&request.mch_id, &request.auth, |out| {
            request.canonical(self.waiter.kind, out);
        })?;
        let by = Authorised { mch_id: &request.mch_id, authority, second: false };
        if let Some(to) = self.place(shard, &by, request.wait_ms, body)? {
            push_order(self.net, shard, &request, &to);
        }
        self.taken();
        Ok(())
    }

    fn refund(&self, body: &[u8]) -> Result<(), Refusal> {
        let refund = Refund::decode(body).map_err(|error| error.code())?;
        let shard = self.shard_of_order(&refund.mch_id, &refund.order)?;
        let authority =
            self.authorise_with(&refund.mch_id, &refund.auth, |out| refund.canonical(out))?;
        let by = Authorised { mch_id: &refund.mch_id, authority, second: false };
        if let Some(to) = self.place(shard, &by, refund.wait_ms, body)? {
            push_refund(self.net, shard, &refund, &to);
        }
        self.taken();
        Ok(())
    }

    fn query_refund(&self, body: &[u8]) -> Result<(), Refusal> {
        let query = QueryRefund::decode(body).map_err(|error| error.code())?;
        let shard = self.shard_of_order(&query.mch_id, &query.order)?;
        let authority =
            self.authorise_with(&query.mch_id, &query.auth, |out| query.canonical(out))?;
        let by = Authorised { mch_id: &query.mch_id, authority, second: false };
        if let Some(to) = self.place(shard, &by, 0, body)? {
            push_query_refund(self.net, shard, &query, &to);
        }
        self.taken();
        Ok(())
    }

    /// Who carries the request out. `None`: not this site's worker, at least
    /// not now. In a deployment of one site it always is.
    fn place(
        &self,
        shard: u16,
        by: &Authorised<'_>,
        wait_ms: u32,
        body: &[u8],
    ) -> Result<Option<Delivery>, Code> {
        let (waiter, gateway) = (self.waiter, self.connection.gateway);
        let &Authorised { mch_id: &mch_id, authority, second } = by;
        let here =
            |waiter| Delivery { waiter, gateway, wait_us: u64::from(wait_ms) * 1000, second };
        let Some(forward) = &self.net.forward else { return Ok(Some(here(waiter))) };
        let incoming =
            Incoming { waiter, mch_id, authority, gateway, shard, second, wait_ms, body };
        Ok(match forward.take(self.net, &incoming)? {
            Placed::Here(waiter) => Some(here(waiter)),
            Placed::Elsewhere => None,
        })
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
        if self.stream.closed.get() {
            // Nobody would hear the events.
            return false;
        }
        if self.net.is_batch_full() {
            return self.error(Code::Overloaded, "subscribe");
        }
        self.stream.subscribed.set(true);
        let waiter = Waiter { stream: self.stream.name, ..self.waiter };
        self.net.broadcast(|| Item::Subscribe(waiter, self.connection.gateway));
        let out = &mut self.stream.buffer.borrow_mut();
        Subscribe::reply_frame(self.waiter.correlation, out);
        true
    }

    fn ack(&self, body: &[u8]) -> bool {
        let waiter = Waiter { stream: self.stream.name, ..self.waiter };
        match Ack::decode(body) {
            Ok(ack) => {
                // An event's id leads with its payment's transaction shard.
                let shard = crate::engine::event_shard(ack.event_id);
                // Only who was told of an event can have taken it over; the engine has the
                // last word on that.
                if self.stream.subscribed.get() && shard < self.net.settings.shards {
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
    ) -> Result<u64, Refusal> {
        CANONICAL.with_borrow_mut(|(canonical, _)| {
            canonical.clear();
            self.net.directory.borrow().warm(mch_id);
            canonical_form(canonical);
            self.authorise(mch_id, auth, canonical)
        })
    }

    fn authorise(&self, mch_id: &MchId, auth: &Auth<'_>, canonical: &[u8]) -> Result<u64, Refusal> {
        let directory = self.net.directory.borrow();
        let now_ms = self.now.wall_us / 1000;
        let judged = directory.authorise(mch_id, &self.connection.peer, auth, now_ms, canonical);
        judged.map_err(|code| self.verdict(mch_id, code))
    }

    /// What a refusal by the directory comes to. Only the leader of a merchant's shard has
    /// the last word: another site, above all one that was away or has just joined, may
    /// merely not have heard of the merchant yet, or of its newest keys, gateways and
    /// addresses.
    fn verdict(&self, mch_id: &MchId, code: Code) -> Refusal {
        let shard = mch_id.shard(self.net.settings.shards);
        // A clock that is wrong is wrong everywhere.
        if code == Code::StaleTimestamp || self.net.judges(shard) {
            return code.into();
        }
        let leader = self.net.control.mesh().leader(shard);
        let leader = if leader == self.net.settings.site { 0 } else { leader };
        Refusal { code: Code::NotLeader, leader }
    }

    /// The merchant's shard, unless it is congested: then the request is shed
    /// before any signature is computed.
    fn shard(&self, mch_id: &MchId) -> Result<u16, Code> {
        let shard = mch_id.shard(self.net.settings.shards);
        if self.net.congested(shard) { Err(Code::Overloaded) } else { Ok(shard) }
    }

    fn shard_of_order(&self, mch_id: &MchId, order: &OrderRef) -> Result<u16, Code> {
        let shard = self.shard(mch_id)?;
        belongs(order, shard)?;
        Ok(shard)
    }

    fn taken(&self) {
        self.stream.pending.set(self.stream.pending.get() + 1);
        self.connection.in_flight.set(self.connection.in_flight.get() + 1);
        self.connection.of_gateway.set(self.connection.of_gateway.get() + 1);
        self.net.outstanding.set(self.net.outstanding.get() + 1);
    }

    fn refuse(&self, refusal: &Refusal) -> bool {
        let mut reply = self.net.refusal(self.waiter, refusal.code);
        reply.body.hint(refusal.leader);
        super::gateway::encode_reply(&reply, &mut self.stream.buffer.borrow_mut());
        true
    }

    fn error(&self, code: Code, detail: &str) -> bool {
        self.net.metrics.refusals.of(code).add(1);
        let retry_after_ms = if code.retryable() { self.net.retry_after_ms() } else { 0 };
        let frame = ErrorFrame { code, retry_after_ms, detail: detail.as_bytes() };
        frame.encode_frame(self.waiter.correlation, &mut self.stream.buffer.borrow_mut());
        true
    }
}

/// How a decoded and authorised request reaches the engine.
pub struct Delivery {
    /// Where its answer goes.
    pub waiter: Waiter,
    /// Number of its gateway.
    pub gateway: u16,
    /// How long its gateway still waits, microseconds; 0: the engine's bound.
    pub wait_us: u64,
    /// A second signature was verified.
    pub second: bool,
}

impl Delivery {
    fn origin(&self, mch_id: MchId) -> Origin {
        Origin { waiter: self.waiter, mch_id, gateway: self.gateway, wait_us: self.wait_us }
    }
}

/// Gives the worker a request that this site or another one has authorised
/// before; `admit` has the last word once shard and merchant are known.
///
/// # Errors
/// The code of the refusal: `admit`'s, or that of a body that cannot be read.
pub fn deliver(
    net: &Net,
    to: &Delivery,
    body: &[u8],
    admit: impl FnOnce(u16, &MchId) -> Result<(), Code>,
) -> Result<(), Code> {
    let admitted = |mch_id: &MchId, order: Option<&OrderRef>| {
        let shard = mch_id.shard(net.settings.shards);
        order.map_or(Ok(()), |order| belongs(order, shard))?;
        admit(shard, mch_id).map(|()| shard)
    };
    match to.waiter.kind {
        kind::PAY => {
            let pay = Pay::decode(body).map_err(|error| error.code())?;
            push_pay(net, admitted(&pay.mch_id, None)?, &pay, to);
        }
        kind::QUERY | kind::CLOSE | kind::REVERSE => {
            let request = OrderRequest::decode(body).map_err(|error| error.code())?;
            push_order(net, admitted(&request.mch_id, Some(&request.order))?, &request, to);
        }
        kind::REFUND => {
            let refund = Refund::decode(body).map_err(|error| error.code())?;
            push_refund(net, admitted(&refund.mch_id, Some(&refund.order))?, &refund, to);
        }
        kind::QUERY_REFUND => {
            let query = QueryRefund::decode(body).map_err(|error| error.code())?;
            push_query_refund(net, admitted(&query.mch_id, Some(&query.order))?, &query, to);
        }
        _ => return Err(Code::UnknownKind),
    }
    Ok(())
}

fn push_pay(net: &Net, shard: u16, pay: &Pay<'_>, to: &Delivery) {
    CANONICAL.with_borrow_mut(|(_, content)| {
        content.clear();
        encode_content(pay, content);
        net.push_pay(
            shard,
            PayInput {
                origin: to.origin(pay.mch_id),
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
                second_signature: to.second,
                content,
            },
        );
    });
}

fn push_order(net: &Net, shard: u16, request: &OrderRequest<'_>, to: &Delivery) {
    let input = OrderInput {
        origin: to.origin(request.mch_id),
        order: request.order,
        digest: digest(&request.mch_id, &request.order),
        refresh: request.refresh,
    };
    let item = match to.waiter.kind {
        kind::CLOSE => Item::Close(input),
        kind::REVERSE => Item::Reverse(input),
        _ => Item::Query(input),
    };
    net.push(shard, item);
}

fn push_refund(net: &Net, shard: u16, refund: &Refund<'_>, to: &Delivery) {
    let input = RefundInput {
        origin: to.origin(refund.mch_id),
        order: refund.order,
        digest: digest(&refund.mch_id, &refund.order),
        out_refund_no: refund.out_refund_no,
        amount: refund.amount,
        currency: refund.currency,
    };
    net.push(shard, Item::Refund(input));
}

fn push_query_refund(net: &Net, shard: u16, query: &QueryRefund<'_>, to: &Delivery) {
    let input = QueryRefundInput {
        origin: to.origin(query.mch_id),
        order: query.order,
        digest: digest(&query.mch_id, &query.order),
        out_refund_no: query.out_refund_no,
    };
    net.push(shard, Item::QueryRefund(input));
}

/// A transaction of another shard cannot be this merchant's.
fn belongs(order: &OrderRef, shard: u16) -> Result<(), Code> {
    match order {
        OrderRef::TransactionId(id) if TransactionId::shard(*id) != shard => {
            Err(Code::OrderNotFound)
        }
        _ => Ok(()),
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
