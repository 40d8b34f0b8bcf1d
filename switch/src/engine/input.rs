//! Everything the engine is told. Plain values: the runtime turns frames,
//! channel replies and operator requests into these.

use protocol::channel::ChannelStatus;
use protocol::code::{Method, Scene};
use protocol::id::{ChannelNo, MchId, OutRefundNo, OutTradeNo, ShortText};
use protocol::message::OrderRef;
use protocol::money::{Amount, Currency};

/// Time as the runtime hands it in. The engine never reads a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic microseconds of this process: time-outs, waits, back-off.
    pub mono_us: u64,
    /// Unix microseconds, never running backwards within a process: stamps in
    /// records, expiry, rate limits.
    pub wall_us: u64,
}

/// Where an answer goes. Opaque to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Waiter {
    /// Connection slot and generation of the gateway front.
    pub connection: u64,
    /// Stream index within the connection.
    pub stream: u32,
    /// Request kind ([`protocol::message::kind`]), so that the reply frame can be built.
    pub kind: u8,
    /// Correlation id of the request.
    pub correlation: u64,
}

/// What every request carries besides its own fields. Signature, gateway
/// identity and address were already judged by the front against the merchant
/// directory (see `Effect::MerchantChanged`).
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Where the answer goes.
    pub waiter: Waiter,
    /// The merchant.
    pub mch_id: MchId,
    /// Number of the gateway certificate in the configuration.
    pub gateway: u16,
    /// How long the asker waits from `Now`, microseconds; 0: the engine's bound.
    pub wait_us: u64,
}

/// A pay request.
#[derive(Clone, Copy, Debug)]
pub struct PayInput<'a> {
    /// Common part.
    pub origin: Origin,
    /// The merchant's number.
    pub out_trade_no: OutTradeNo,
    /// First 16 bytes of SHA-256(mch_id, 0x00, out_trade_no): index key and
    /// the root of the channel numbers (`protocol::channel::order_digest`).
    pub digest: [u8; 16],
    /// Fingerprint of the immutable content (docs/STATES.md, C1): first 16
    /// bytes of SHA-256 over its encoding.
    pub fingerprint: [u8; 16],
    /// Amount.
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
    /// How the payer pays.
    pub method: Method,
    /// Where.
    pub scene: Scene,
    /// After this no attempt starts, Unix milliseconds.
    pub time_expire_ms: u64,
    /// Hash of the payer token (first 8 bytes of SHA-256), for risk rules.
    pub payer_hash: u64,
    /// Hash of the device id; 0 when none was given.
    pub device_hash: u64,
    /// Whether outcome events are wanted.
    pub notify: bool,
    /// A valid second signature came with it.
    pub second_signature: bool,
    /// Encoded remaining content (notify target, payer token, device id, tags):
    /// kept in the log, not read by the engine.
    pub content: &'a [u8],
}

/// Query, close or reverse.
#[derive(Clone, Copy, Debug)]
pub struct OrderInput {
    /// Common part.
    pub origin: Origin,
    /// Which payment.
    pub order: OrderRef,
    /// `order_digest`, when the payment is named by `out_trade_no`; else zero.
    pub digest: [u8; 16],
    /// Query only: ask the channel when in doubt.
    pub refresh: bool,
}

/// A refund request.
#[derive(Clone, Copy, Debug)]
pub struct RefundInput {
    /// Common part.
    pub origin: Origin,
    /// Which payment.
    pub order: OrderRef,
    /// `order_digest`, when the payment is named by `out_trade_no`; else zero.
    pub digest: [u8; 16],
    /// The merchant's number of the refund.
    pub out_refund_no: OutRefundNo,
    /// Amount.
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
}

/// A refund query.
#[derive(Clone, Copy, Debug)]
pub struct QueryRefundInput {
    /// Common part.
    pub origin: Origin,
    /// Which payment.
    pub order: OrderRef,
    /// `order_digest`, when the payment is named by `out_trade_no`; else zero.
    pub digest: [u8; 16],
    /// Which refund.
    pub out_refund_no: OutRefundNo,
}

/// Names one operation at a channel; packs into the 64-bit correlation id of
/// the native channel protocol, so that a late reply finds its payment even
/// after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OperationId {
    /// Shard (below 1024).
    pub shard: u16,
    /// Payment sequence within the shard (below 2^44).
    pub sequence: u64,
    /// What was asked.
    pub operation: Operation,
    /// Attempt number (charge, query, reverse) or refund ordinal (refund,
    /// query-refund) within the payment, from 1 (below 128).
    pub ordinal: u8,
}

/// Operations at a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Charge the payer.
    Charge = 0,
    /// Ask for a charge's state.
    Query = 1,
    /// Undo a charge or fence its number.
    Reverse = 2,
    /// Give money back.
    Refund = 3,
    /// Ask for a refund's state.
    QueryRefund = 4,
}

impl OperationId {
    /// Packs into 64 bits: shard 10, operation 3, ordinal 7, sequence 44.
    pub fn pack(self) -> u64 {
        u64::from(self.shard) << 54
            | u64::from(self.operation as u8) << 51
            | u64::from(self.ordinal) << 44
            | self.sequence
    }

    /// Reads a packed id; `None` when the operation is not in the table.
    pub fn unpack(raw: u64) -> Option<Self> {
        let operation = match raw >> 51 & 7 {
            0 => Operation::Charge,
            1 => Operation::Query,
            2 => Operation::Reverse,
            3 => Operation::Refund,
            4 => Operation::QueryRefund,
            _ => return None,
        };
        Some(Self {
            shard: (raw >> 54) as u16,
            sequence: raw & ((1 << 44) - 1),
            operation,
            ordinal: (raw >> 44 & 127) as u8,
        })
    }
}

/// What became of one operation, as far as the link can tell.
#[derive(Clone, Copy, Debug)]
pub enum Evidence {
    /// The channel's answer (signature or transport identity already verified).
    Answered {
        /// Outcome.
        status: ChannelStatus,
        /// Decline class (a `protocol::code::Reason` number).
        detail: u16,
        /// The charge number the channel answered for.
        charge_no: ChannelNo,
        /// Amount, minor units.
        amount: i64,
        /// Currency.
        currency: Currency,
        /// The channel's own number.
        channel_ref: ShortText,
    },
    /// Proof that not one byte was handed to the transport, in this process's life.
    NotSent,
    /// Something may have been sent and no answer will come on this path
    /// (connection lost, unparsable answer).
    Lost,
}

/// An operator's command, already authenticated and authorised.
#[derive(Clone, Debug)]
pub struct AdminInput {
    /// Ticket of the answer.
    pub ticket: u64,
    /// Who asks (certificate name), at most 32 bytes of ASCII.
    pub operator: ShortText,
    /// What.
    pub command: AdminCommand,
}

/// Operators' commands. Each becomes a record with operator, time, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    /// Create or replace a merchant. `only_if_absent` is set by the bootstrap.
    PutMerchant {
        /// The record.
        merchant: super::merchant::Merchant,
        /// Keep an existing record.
        only_if_absent: bool,
    },
    /// Raise or lower limits until a moment (Unix milliseconds; 0: for good).
    PutLimits {
        /// The merchant.
        mch_id: MchId,
        /// New limits.
        limits: super::merchant::Limits,
        /// When the previous limits come back; 0: never.
        until_ms: u64,
    },
    /// Let a site lead shards or not. Kept in shard 0, valid for all.
    SetDrained {
        /// Site, from 1.
        site: u8,
        /// It shall not lead.
        drained: bool,
    },
    /// Note that a site is to become a member, or none any more. Kept in shard
    /// 0, valid for all.
    SetMember {
        /// Site, from 1.
        site: u8,
        /// It shall be a member.
        member: bool,
    },
    /// Decide an attempt or a refund in front of an operator. Either result is
    /// about money and needs a second operator.
    Decide {
        /// The merchant.
        mch_id: MchId,
        /// The payment.
        out_trade_no: OutTradeNo,
        /// Refund number when the decision is about a refund; else `None`.
        out_refund_no: Option<OutRefundNo>,
        /// `true`: the money moved; `false`: it did not.
        success: bool,
        /// The second operator.
        second: ShortText,
        /// Evidence as the operator describes it.
        note: ShortText,
    },
}

/// One input of the engine.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A pay request. Leader only.
    Pay(PayInput<'a>),
    /// A query. Leader only.
    Query(OrderInput),
    /// A close. Leader only.
    Close(OrderInput),
    /// A reverse. Leader only.
    Reverse(OrderInput),
    /// A refund. Leader only.
    Refund(RefundInput),
    /// A refund query. Leader only.
    QueryRefund(QueryRefundInput),
    /// A subscriber of outcome events for these merchants; replaces an earlier
    /// one with the same connection and stream.
    Subscribe {
        /// Where events go.
        waiter: Waiter,
        /// The gateway: it gets events of the merchants it is allowed for.
        gateway: u16,
    },
    /// A subscription ended, its connection lives on.
    Unsubscribe {
        /// `Waiter::connection`.
        connection: u64,
        /// `Waiter::stream`.
        stream: u32,
    },
    /// A subscriber took an event over. Counts only from the connection and stream of a
    /// subscription whose gateway may have the event.
    EventAck {
        /// Which.
        event_id: u64,
        /// Whose subscription.
        waiter: Waiter,
    },
    /// A gateway connection ended: forget its waiters and subscriptions.
    ConnectionClosed {
        /// `Waiter::connection`.
        connection: u64,
    },
    /// Something is known about an operation at a channel. Leader only.
    Evidence {
        /// Which operation.
        operation: OperationId,
        /// What.
        evidence: Evidence,
    },
    /// All operations sent on this channel's link before now are without answer
    /// for good.
    LinkLost {
        /// Channel number.
        channel: u16,
    },
    /// Whether a channel can take requests now (link state, back-pressure).
    ChannelUp {
        /// Channel number.
        channel: u16,
        /// Up or down.
        up: bool,
    },
    /// An operator's command. Leader only.
    Admin(AdminInput),
    /// Time passed: run what is due.
    Tick,
    /// A committed block, in log order, on leaders and followers alike.
    Committed {
        /// Log index of the block.
        index: u64,
        /// Term it was proposed in.
        term: u64,
        /// The block as `Outputs::block` built it.
        block: &'a [u8],
    },
    /// This replica leads the shard from now on in this term: every record
    /// before has been applied.
    Lead {
        /// Term.
        term: u64,
    },
    /// This replica no longer leads.
    StepDown,
}
