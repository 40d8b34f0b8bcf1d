//! Everything the engine wants. The runtime clears and reuses one `Outputs`
//! per batch, so that a payment costs no allocation.

use super::input::{OperationId, Waiter};
use super::merchant::Merchant;
use protocol::channel::ChannelRequest;
use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::id::ShortText;
use protocol::message::{Event, OrderReply, RefundReply, kind};

/// Outputs of one or more `handle` calls.
///
/// `block` holds proposed records: the runtime hands it to the replica when
/// it can take the next block and then clears it. Everything else may leave at
/// once: the engine emits replies, sends and events only when the record that
/// they rest on was committed (or when they rest on none).
#[derive(Default)]
pub struct Outputs {
    /// Records proposed since the last seal, encoded.
    pub block: Vec<u8>,
    /// Number of records in `block`.
    pub block_records: u32,
    /// Answers to gateways.
    pub replies: Vec<Reply>,
    /// Requests to channels.
    pub sends: Vec<Send>,
    /// Outcome events to subscribers.
    pub events: Vec<(Waiter, Event)>,
    /// Changes of the merchant directory, on every replica.
    pub merchants: Vec<Merchant>,
    /// Answers to operators: ticket and text (`Ok`: what was done; `Err`: why not).
    pub admin: Vec<(u64, Result<String, String>)>,
    /// Alarms for the operator: in-doubt too long, integrity, orphan success.
    pub alarms: Vec<Alarm>,
    /// How long records of some payments took to become durable, microseconds.
    pub stages: Vec<(Stage, u64)>,
}

/// A stage of a payment that ends with a durable record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the decision to admit a pay to its durable BEGIN.
    Begin,
    /// From the evidence that settles an attempt to its durable outcome.
    End,
}

/// An answer to a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// To whom.
    pub waiter: Waiter,
    /// What.
    pub body: ReplyBody,
}

impl Reply {
    /// Whether it was done, or why not.
    pub fn code(&self) -> Code {
        match &self.body {
            ReplyBody::Order(body) => body.code,
            ReplyBody::Refund(body) => body.code,
        }
    }

    /// An answer that says only why nothing was done, in the layout that the
    /// request's kind asks for.
    pub fn refusal(waiter: Waiter, code: Code, retry_after_ms: u32) -> Self {
        let body = if matches!(waiter.kind, kind::REFUND | kind::QUERY_REFUND) {
            ReplyBody::Refund(RefundReply {
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
            })
        } else {
            ReplyBody::Order(OrderReply {
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
            })
        };
        Self { waiter, body }
    }
}

/// The two reply layouts.
#[derive(Clone, Copy, Debug)]
pub enum ReplyBody {
    /// To pay, query, close, reverse.
    Order(OrderReply),
    /// To refund and query-refund.
    Refund(RefundReply),
}

impl ReplyBody {
    /// Names the site to ask next time; 0: none.
    pub fn hint(&mut self, leader: u8) {
        match self {
            Self::Order(body) => body.leader_hint = leader,
            Self::Refund(body) => body.leader_hint = leader,
        }
    }
}

/// A request to a channel.
#[derive(Clone, Copy, Debug)]
pub struct Send {
    /// Channel number of the configuration.
    pub channel: u16,
    /// Correlation.
    pub operation: OperationId,
    /// The term of the leader that asks.
    pub term: u64,
    /// When it was let go, by the monotonic clock, microseconds: its life is
    /// counted from then.
    pub since_us: u64,
    /// What is asked.
    pub request: ChannelRequest,
}

/// Something an operator should see. Also counted by kind in the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Kind.
    pub kind: AlarmKind,
    /// Payment sequence.
    pub sequence: u64,
    /// Attempt or refund ordinal.
    pub ordinal: u8,
}

/// Kinds of alarms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AlarmKind {
    /// In doubt for longer than the alarm bound.
    InDoubtTooLong,
    /// Handed to an operator: the budget is spent, or a compensation was declined.
    Manual,
    /// Amount, currency or number differ from what was asked.
    Integrity,
    /// A charge appeared after its attempt was declined or void.
    OrphanSuccess,
    /// A definitive state was contradicted.
    Conflict,
}
