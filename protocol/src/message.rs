//! The gateway's messages: one struct per request, borrowed from the frame, and
//! one per reply. Layouts are in `docs/WIRE.md`.

mod leaders;
mod reply;
mod request;
#[cfg(test)]
mod tests;

use crate::code::{CloseCode, Code, Method, OrderState, Reason, RefundState, Scene};
use crate::id::{MchId, OutRefundNo, OutTradeNo, ShortText, TransactionId};
use crate::money::{Amount, Currency};
pub use crate::wire::DecodeError;
pub use leaders::LEADERS_MAX;
pub use request::{TAGS_MAX, TimeDigits};

/// Message kinds. A reply's kind is its request's with the top bit set.
pub mod kind {
    /// Server to client, first frame of the server's control stream.
    pub const HELLO: u8 = 0x01;
    /// Server to client on the control stream: finish and reconnect elsewhere.
    pub const GOAWAY: u8 = 0x02;
    /// Liveness and round trip.
    pub const PING: u8 = 0x03;
    /// Server to client on the control stream: who leads which shard.
    pub const LEADER: u8 = 0x04;
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

/// What every signed request carries.
#[derive(Clone, Copy, Debug)]
pub struct Auth<'a> {
    /// Which of the merchant's keys signed; 0 when the deployment trusts the
    /// gateway's certificate and the request is unsigned.
    pub key_id: u32,
    /// When the request was signed, Unix milliseconds.
    pub timestamp_ms: u64,
    /// Chosen at random by the signer.
    pub nonce: u64,
    /// 32 bytes (HMAC-SHA256), 64 bytes (Ed25519) or none.
    pub signature: &'a [u8],
}

/// Charge a payer.
#[derive(Clone, Copy, Debug)]
pub struct Pay<'a> {
    /// The merchant.
    pub mch_id: MchId,
    /// The merchant's number: the idempotency key together with `mch_id`.
    pub out_trade_no: OutTradeNo,
    /// Amount.
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
    /// How the payer pays.
    pub method: Method,
    /// Where.
    pub scene: Scene,
    /// The payer as a token, never card data; at most 128 bytes.
    pub payer_token: &'a [u8],
    /// The paying device, at most 64 bytes; may be empty.
    pub device_id: &'a [u8],
    /// The payer's address, IPv4 mapped into IPv6; all zero when unknown.
    pub client_ip: [u8; 16],
    /// After this no new attempt starts, Unix milliseconds.
    pub time_expire_ms: u64,
    /// Where outcome events go (a subscription name), at most 64 bytes; empty: none wanted.
    pub notify: &'a [u8],
    /// How long the asker waits for an answer, milliseconds; 0: the server's bound.
    pub wait_ms: u32,
    /// At most 12 pairs.
    pub tags: Tags<'a>,
    /// Signature data.
    pub auth: Auth<'a>,
    /// Second signature for large amounts; `key_id` 0 when absent.
    pub second: Auth<'a>,
}

/// The tags of a payment, still encoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tags<'a> {
    /// Number of pairs.
    pub count: u8,
    /// `count` pairs of length-prefixed name and value.
    pub encoded: &'a [u8],
}

/// How a query, close or reverse names its payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderRef {
    /// By the merchant's number.
    OutTradeNo(OutTradeNo),
    /// By ours.
    TransactionId(TransactionId),
}

/// Body shared by query, close and reverse.
#[derive(Clone, Copy, Debug)]
pub struct OrderRequest<'a> {
    /// The merchant.
    pub mch_id: MchId,
    /// Which payment.
    pub order: OrderRef,
    /// Query only: ask the channel when the payment is in doubt, within its budget.
    pub refresh: bool,
    /// How long the asker waits, milliseconds; 0: the server's bound.
    pub wait_ms: u32,
    /// Signature data.
    pub auth: Auth<'a>,
}

/// Give back a part or all of a paid payment.
#[derive(Clone, Copy, Debug)]
pub struct Refund<'a> {
    /// The merchant.
    pub mch_id: MchId,
    /// Which payment.
    pub order: OrderRef,
    /// The merchant's number of the refund.
    pub out_refund_no: OutRefundNo,
    /// Amount to give back.
    pub amount: Amount,
    /// Must be the payment's.
    pub currency: Currency,
    /// Free text, at most 80 bytes.
    pub reason: &'a [u8],
    /// How long the asker waits, milliseconds; 0: the server's bound.
    pub wait_ms: u32,
    /// Signature data.
    pub auth: Auth<'a>,
}

/// State of a refund.
#[derive(Clone, Copy, Debug)]
pub struct QueryRefund<'a> {
    /// The merchant.
    pub mch_id: MchId,
    /// Which payment.
    pub order: OrderRef,
    /// Which refund of it.
    pub out_refund_no: OutRefundNo,
    /// Signature data.
    pub auth: Auth<'a>,
}

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

/// Server's request to finish and reconnect elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAway {
    /// Why.
    pub code: CloseCode,
    /// How long the server waits for answers in flight, milliseconds.
    pub deadline_ms: u32,
}

/// Who leads a shard, as one site knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The shard.
    pub shard: u16,
    /// The site (1-based) that leads it.
    pub site: u8,
    /// Since which term, from 1. Terms only grow, and a term has one leader: of
    /// two notices the one with the higher term is the newer one.
    pub term: u64,
}

/// Server's notice on its control stream: the leaders that are new since the
/// last notice, all that it knows after the HELLO. Still encoded; news that
/// nobody needs to wait for, and advice only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaders<'a> {
    encoded: &'a [u8],
}

/// Liveness and round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Anything; echoed.
    pub token: u64,
}

/// The answer to a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The ping's token.
    pub token: u64,
    /// Server's clock, Unix milliseconds.
    pub time_ms: u64,
}

/// Ask for outcome events of the merchants that this gateway may speak for.
/// The body is empty; events follow on this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe;

/// An event was taken over and need not be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which.
    pub event_id: u64,
}

/// Answer to a frame that cannot be attributed to a request kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// What is wrong.
    pub code: Code,
    /// When to come back, milliseconds; 0 when it does not apply.
    pub retry_after_ms: u32,
    /// For people, at most 128 bytes of ASCII.
    pub detail: &'a [u8],
}
