//! What an answer says, as far as the driver cares: decoded from the frames of
//! any operation into one small form.
//!
//! Pure. Tested by the driver's tests, which answer every operation.

use crate::measure::Business;
use protocol::code::{Code, OrderState};
use protocol::message::{ErrorFrame, OrderReply, RefundReply, kind};

/// An answer with the request that it names.
pub(super) struct Arrived {
    /// Place in the table.
    pub(super) index: u32,
    /// Number of the request.
    pub(super) n: u64,
    /// The answer.
    pub(super) answer: Answer,
}

/// Fields of an answer that matter here.
pub(super) struct Answer {
    /// First level.
    pub(super) code: Code,
    /// Second level.
    pub(super) state: Business,
    /// 0 when none was told.
    pub(super) transaction: u64,
    /// Minor units.
    pub(super) amount: i64,
    /// Given back in total, minor units.
    pub(super) refunded: i64,
    /// A stored answer.
    pub(super) replayed: bool,
    /// When to try again, milliseconds; 0: nothing is said of that.
    pub(super) retry_after_ms: u32,
    /// Site that leads the shard; 0: the one that answered, or unknown.
    pub(super) leader_hint: u8,
}

impl Answer {
    /// Says nothing of a payment but this code.
    pub(super) fn bare(code: Code) -> Self {
        Self {
            code,
            state: Business::Order(OrderState::None),
            transaction: 0,
            amount: 0,
            refunded: 0,
            replayed: false,
            retry_after_ms: 0,
            leader_hint: 0,
        }
    }
}

/// Reads an answer; `None` when it is none.
pub(super) fn decode(frame_kind: u8, body: &[u8]) -> Option<Answer> {
    const PAY: u8 = kind::PAY | kind::REPLY;
    const QUERY: u8 = kind::QUERY | kind::REPLY;
    const REFUND: u8 = kind::REFUND | kind::REPLY;
    const CLOSE: u8 = kind::CLOSE | kind::REPLY;
    const REVERSE: u8 = kind::REVERSE | kind::REPLY;
    match frame_kind {
        PAY | QUERY | CLOSE | REVERSE => {
            let reply = OrderReply::decode(body).ok()?;
            Some(Answer {
                code: reply.code,
                state: Business::Order(reply.state),
                transaction: reply.transaction_id.map_or(0, |id| id.as_u64()),
                amount: reply.amount,
                refunded: reply.refunded,
                replayed: reply.replayed,
                retry_after_ms: reply.retry_after_ms,
                leader_hint: reply.leader_hint,
            })
        }
        REFUND => {
            let reply = RefundReply::decode(body).ok()?;
            Some(Answer {
                code: reply.code,
                state: Business::Refund(reply.state),
                transaction: reply.transaction_id.map_or(0, |id| id.as_u64()),
                amount: reply.amount,
                refunded: reply.refunded,
                replayed: reply.replayed,
                retry_after_ms: reply.retry_after_ms,
                leader_hint: reply.leader_hint,
            })
        }
        kind::ERROR => {
            let error = ErrorFrame::decode(body).ok()?;
            Some(Answer { retry_after_ms: error.retry_after_ms, ..Answer::bare(error.code) })
        }
        _ => None,
    }
}
