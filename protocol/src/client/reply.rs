//! Any answer, as far as re-sending has to understand it.

use crate::code::Code;
use crate::message::{ErrorFrame, OrderReply, Pong, RefundReply, kind};

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Reply {
    Order(OrderReply),
    Refund(RefundReply),
    Pong(Pong),
    Error { code: Code, retry_after_ms: u32 },
}

impl Reply {
    /// Reads the answer to a request of kind `asked`; `None` when it is none
    /// that we understand.
    pub(super) fn decode(asked: u8, kind: u8, body: &[u8]) -> Option<Self> {
        if kind == kind::ERROR {
            let ErrorFrame { code, retry_after_ms, .. } = ErrorFrame::decode(body).ok()?;
            // An error that claims success is no answer.
            return (!code.may_have_acted()).then_some(Self::Error { code, retry_after_ms });
        }
        if kind != asked | kind::REPLY {
            return None;
        }
        match asked {
            kind::PAY | kind::QUERY | kind::CLOSE | kind::REVERSE => {
                OrderReply::decode(body).ok().map(Self::Order)
            }
            kind::REFUND | kind::QUERY_REFUND => RefundReply::decode(body).ok().map(Self::Refund),
            kind::PING => Pong::decode(body).ok().map(Self::Pong),
            _ => None,
        }
    }

    pub(super) fn code(&self) -> Code {
        match self {
            Self::Order(reply) => reply.code,
            Self::Refund(reply) => reply.code,
            Self::Pong(_) => Code::Ok,
            Self::Error { code, .. } => *code,
        }
    }

    pub(super) fn retry_after_ms(&self) -> u32 {
        match self {
            Self::Order(reply) => reply.retry_after_ms,
            Self::Refund(reply) => reply.retry_after_ms,
            Self::Pong(_) => 0,
            Self::Error { retry_after_ms, .. } => *retry_after_ms,
        }
    }

    /// The site that leads; 0: the answering one, or unknown.
    pub(super) fn leader_hint(&self) -> u8 {
        match self {
            Self::Order(reply) => reply.leader_hint,
            Self::Refund(reply) => reply.leader_hint,
            Self::Pong(_) | Self::Error { .. } => 0,
        }
    }
}
