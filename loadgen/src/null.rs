//! `loadgen null`: answers every request at once, to measure what the
//! generator itself can do.
//!
//! Keeps no state, verifies no signature, writes nothing. A figure measured
//! against it is the generator's ceiling, never the switch's.

use crate::config::SiteFile;
use crate::exit::Failure;
use crate::socket;
use crate::tls::{self, ALPN_GATEWAY, Credentials};
use bytes::{Bytes, BytesMut};
use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::frame::{Header, Splitter};
use protocol::id::{ShortText, TransactionId};
use protocol::message::{Hello, OrderReply, Pay, Refund, RefundReply, kind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Requests in flight that a connection may have, unless told otherwise.
pub(crate) const IN_FLIGHT_MAX: u32 = 65_536;
const IDLE: Duration = Duration::from_secs(3);

/// Serves in the place of the site until the process is stopped.
pub(crate) async fn serve(site: &SiteFile, window: u32) -> Result<(), Failure> {
    let gateway = &site.gateway;
    let credentials = Credentials::load(&gateway.cert, &gateway.key, &gateway.ca)?;
    let config = credentials.server(ALPN_GATEWAY, tls::transport(64, 0, IDLE, None))?;
    let endpoint = socket::endpoint(gateway.listen, Some(config))?;
    println!("ready: answering everything on {}", gateway.listen);
    let shards = site.shards;
    while let Some(incoming) = endpoint.accept().await {
        tokio::task::spawn_local(async move {
            if let Ok(quic) = incoming.await {
                connection(quic, shards, window).await;
            }
        });
    }
    Ok(())
}

/// Greets and answers one connection.
pub(crate) async fn connection(quic: quinn::Connection, shards: u16, in_flight_max: u32) {
    if greet(&quic, shards, in_flight_max).await {
        streams(quic).await;
    }
}

/// Answers everything on every stream of a connection.
pub(crate) async fn streams(quic: quinn::Connection) {
    while let Ok((send, recv)) = quic.accept_bi().await {
        tokio::task::spawn_local(stream(send, recv));
    }
}

/// Sends the HELLO; false when the connection is gone.
pub(crate) async fn greet(quic: &quinn::Connection, shards: u16, in_flight_max: u32) -> bool {
    let Ok(mut control) = quic.open_uni().await else { return false };
    let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let hello =
        Hello { in_flight_max, shards, site: 1, sites: 1, time_ms: time_ms as u64, cluster: 0 };
    let mut frame = Vec::new();
    hello.encode_frame(0, &mut frame);
    control.write_all(&frame).await.is_ok()
}

async fn stream(mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
    let (mut splitter, mut frames) = (Splitter::new(), Vec::new());
    let mut out = BytesMut::with_capacity(64 << 10);
    while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
        for chunk in &mut chunks[..count] {
            let bytes = std::mem::take(chunk);
            if splitter.push(&bytes, |header, body| reply(header, body, &mut frames)).is_err() {
                return;
            }
        }
        out.extend_from_slice(&frames);
        frames.clear();
        if !out.is_empty() && send.write_chunk(out.split().freeze()).await.is_err() {
            return;
        }
    }
}

/// Appends the answer to one request.
pub(crate) fn reply(header: Header, body: &[u8], out: &mut Vec<u8>) {
    let transaction_id = Some(TransactionId::new(0, header.correlation >> 20));
    if header.kind == kind::REFUND {
        let refund = Refund::decode(body).ok();
        RefundReply {
            code: if refund.is_some() { Code::Ok } else { Code::MalformedBody },
            retry_after_ms: 0,
            replayed: false,
            state: RefundState::Success,
            reason: Reason::None,
            transaction_id,
            amount: refund.map_or(0, |refund| refund.amount.minor()),
            currency: refund.map(|refund| refund.currency),
            refunded: refund.map_or(0, |refund| refund.amount.minor()),
            refunding: 0,
            finished_at_ms: 1,
            leader_hint: 0,
            channel_ref: ShortText::EMPTY,
        }
        .encode_frame(header.kind | kind::REPLY, header.correlation, out);
        return;
    }
    let pay = if header.kind == kind::PAY { Pay::decode(body).ok() } else { None };
    OrderReply {
        code: Code::Ok,
        retry_after_ms: 0,
        replayed: false,
        state: OrderState::Paid,
        reason: Reason::None,
        transaction_id,
        amount: pay.map_or(0, |pay| pay.amount.minor()),
        currency: pay.map(|pay| pay.currency),
        refunded: 0,
        refunding: 0,
        channel: 1,
        finished_at_ms: 1,
        leader_hint: 0,
        out_trade_no: ShortText::EMPTY,
        channel_ref: ShortText::EMPTY,
    }
    .encode_frame(header.kind | kind::REPLY, header.correlation, out);
}
