//! What can go wrong, by what the caller has to do about it. No error carries
//! key material or bytes from the wire.

use super::tls::TlsError;
use crate::code::{CloseCode, Code};
use crate::message::DecodeError;

/// Why a connection to a site is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Nobody answered yet, or the site fell silent.
    #[error("the site does not answer")]
    Silent,
    /// The address or server name cannot be used.
    #[error("the address or server name cannot be used")]
    Address,
    /// TLS failed: authority, certificate, name or protocol.
    #[error("the TLS handshake failed")]
    Handshake,
    /// The site takes no connection at present.
    #[error("the site takes no connection at present")]
    Refused,
    /// The site closed the connection, or asked us to leave, with this code.
    #[error("the site closed the connection: {}", .0.name())]
    Closed(CloseCode),
    /// The peer does not speak this protocol.
    #[error("the peer does not speak this protocol")]
    Protocol,
    /// The site belongs to another cluster than the first one that greeted us.
    #[error("the site belongs to another cluster")]
    OtherCluster,
}

impl LinkError {
    pub(super) fn of(error: &quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => u32::try_from(close.error_code.into_inner())
                .ok()
                .and_then(CloseCode::from_wire)
                .map_or(Self::Protocol, Self::Closed),
            E::ConnectionClosed(close) => Self::of_transport(close.error_code),
            E::TransportError(error) => Self::of_transport(error.code),
            // We close only a peer that broke the protocol, or at the very end.
            E::VersionMismatch | E::LocallyClosed => Self::Protocol,
            E::TimedOut | E::Reset | E::CidsExhausted => Self::Silent,
        }
    }

    fn of_transport(code: quinn::TransportErrorCode) -> Self {
        match u64::from(code) {
            0x2 => Self::Refused,
            0x100..=0x1ff => Self::Handshake,
            _ => Self::Protocol,
        }
    }

    /// Whether waiting a little may help.
    pub(super) fn is_passing(self) -> bool {
        match self {
            Self::Silent | Self::Refused => true,
            Self::Closed(code) => {
                !matches!(code, CloseCode::NotAuthorised | CloseCode::CredentialRevoked)
            }
            Self::Address | Self::Handshake | Self::Protocol | Self::OtherCluster => false,
        }
    }
}

/// Why a client cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No site is configured.
    #[error("no site is configured")]
    NoSite,
    /// A setting that must not be zero is.
    #[error("the setting {0} must not be zero")]
    Zero(&'static str),
    /// Certificates or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The UDP socket cannot be opened.
    #[error("the UDP socket cannot be opened")]
    Socket(#[source] std::io::Error),
    /// No site greeted us in time; what the most talkative one said.
    #[error("no site can be reached")]
    Unreachable(#[source] LinkError),
}

/// Why a request has no answer. Refusals by the switch are answers (their
/// `code` says why), not errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The request is not well formed; nothing was sent.
    #[error("the request is not well formed")]
    Invalid(#[source] DecodeError),
    /// The deadline is above [`DEADLINE_MAX`](super::DEADLINE_MAX); nothing was sent.
    #[error("the deadline is above 240 s")]
    DeadlineTooLong,
    /// As many requests are without answer as the client, or every site that it
    /// is connected to, allows; nothing was sent. Try again after answers came.
    #[error("too many requests are without answer")]
    Full,
    /// No site was connected before the deadline: nothing was sent.
    #[error("nothing was sent before the deadline")]
    NotSent,
    /// The deadline passed, and the request may have been carried out: ask by
    /// query, or send the same content again. Never use a new number.
    #[error("the outcome is unknown: ask by query")]
    OutcomeUnknown {
        /// Last refusal of a copy of the request, when there was one. It does
        /// not speak for the other copies.
        last: Option<Code>,
    },
    /// The deadline passed without an answer to a request that changes nothing.
    #[error("no answer before the deadline")]
    NoAnswer,
    /// The answer is in words that this client does not know, as of a newer
    /// switch. The request may have been carried out.
    #[error("the answer cannot be read: the outcome is unknown")]
    Unreadable,
    /// The switch answered with an error frame: it did not take the request.
    #[error("the switch refused: {}", .0.name())]
    Refused(Code),
    /// The subscription's connection is gone; the event will come again.
    #[error("the connection ended")]
    ConnectionLost,
    /// The client is shutting down; nothing was sent.
    #[error("the client is shutting down")]
    ShutDown,
}

impl ClientError {
    /// Whether the request may have had an effect.
    pub fn may_have_acted(self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. } | Self::Unreadable)
    }
}
