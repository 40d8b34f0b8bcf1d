//! Refusals that need no engine: the two reply layouts with nothing but a code.

use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::id::ShortText;
use protocol::message::{OrderReply, RefundReply};

use super::worker::is_refund_kind;
use crate::engine::input::Waiter;
use crate::engine::output::{Reply, ReplyBody};

/// An order reply that says only `code`.
pub fn order(code: Code, retry_after_ms: u32) -> OrderReply {
    OrderReply {
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

/// A refund reply that says only `code`.
pub fn refund(code: Code, retry_after_ms: u32) -> RefundReply {
    RefundReply {
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

/// The refusal in the layout that the waiter's request asks for.
pub fn reply(waiter: Waiter, code: Code, retry_after_ms: u32) -> Reply {
    let body = if is_refund_kind(waiter.kind) {
        ReplyBody::Refund(refund(code, retry_after_ms))
    } else {
        ReplyBody::Order(order(code, retry_after_ms))
    };
    Reply { waiter, body }
}
