//! The gateway client: connects to all sites, keeps every request until it is
//! answered or its deadline passes, and says plainly when the outcome is
//! unknown.
//!
//! ```no_run
//! # use protocol::client::{Client, ClientConfig, ClientError, Signer, Site};
//! # use protocol::message::Pay;
//! # use std::time::Duration;
//! # async fn example(pay: Pay<'_>, signer: Signer) -> Result<(), Box<dyn std::error::Error>> {
//! let site = Site {
//!     address: "127.0.0.1:7400".parse()?,
//!     server_name: "site-1.site.payswitch".to_owned(),
//! };
//! let pem = |name| std::fs::read(name);
//! let config =
//!     ClientConfig::new(vec![site], pem("ca.pem")?, pem("gw-1.pem")?, pem("gw-1.key")?);
//! let client = Client::connect(config).await?;
//! match client.pay(&pay, &signer, Duration::from_secs(10)).await {
//!     Ok(reply) => println!("{} {}", reply.code.name(), reply.state.name()),
//!     // Keep the number; ask by query, or send the same content again.
//!     Err(error) if error.may_have_acted() => println!("unknown: {error}"),
//!     Err(error) => println!("not paid: {error}"),
//! }
//! client.shutdown(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/pay.rs` is the whole program.
//!
//! What it promises:
//!
//! - The bytes of a request never change: copies of it, sent when a connection
//!   is lost, a site is silent or another site leads, are one request to the
//!   switch.
//! - A refusal is handed on only when no copy can have been carried out; else
//!   it is [`ClientError::OutcomeUnknown`].
//! - A lost connection is opened again, with growing pauses of at most a
//!   second, for as long as the client lives. A site that says GOAWAY gets
//!   nothing new; its answers are still taken.
//! - Everything is bounded: requests without answer ([`ClientError::Full`]
//!   when there are too many), copies, connections, frames.
//! - Nothing that a peer sends makes it panic: it closes the connection, or
//!   waits on.
//!
//! Needs a tokio runtime with time and I/O; spawns its tasks on it. Knows
//! nothing of payments beyond the codes. Tested against a server of the test's
//! own that drops, delays, refuses and drains (`tests/client.rs`), and against
//! the real switch by the system tests.

mod ask;
mod config;
mod error;
mod link;
mod pending;
mod reply;
mod signer;
mod sites;
mod subscription;
mod tls;

pub use config::{ClientConfig, Site};
pub use error::{ClientError, ConnectError, LinkError};
pub use signer::Signer;
pub use subscription::Subscription;
pub use tls::{TlsError, Transport};

use crate::code::Code;
use crate::frame::BODY_MAX;
use crate::id::MchId;
use crate::message::{
    DecodeError, OrderRef, OrderReply, OrderRequest, Pay, Ping, Pong, QueryRefund, Refund,
    RefundReply, kind,
};
use ask::{Question, ask};
use reply::Reply;
use sites::{Shared, keep_connected};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Longest deadline of a request: the same bytes are sent again until then, and
/// after the switch's timestamp window (5 minutes) a copy would be refused.
pub const DEADLINE_MAX: Duration = Duration::from_secs(240);

/// A client. Clones share connections and bounds; the last one dropped closes
/// them. Use [`shutdown`](Self::shutdown) to let answers in flight arrive.
#[derive(Clone)]
pub struct Client(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Client {
    /// Opens the client and waits until one site has greeted it; the others
    /// are connected in the background, and all are kept connected.
    ///
    /// # Errors
    /// [`ConnectError`]: settings, or no site within the connect time-out, or
    /// none that could ever be.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        config.check()?;
        let quic = tls::client_config(&config)?;
        // A socket for IPv6 reaches IPv4 too.
        let any: SocketAddr = if config.sites.iter().any(|site| site.address.is_ipv6()) {
            ([0; 16], 0).into()
        } else {
            ([0; 4], 0).into()
        };
        let endpoint = quinn::Endpoint::client(any).map_err(ConnectError::Socket)?;
        let sites = config.sites.len();
        let shared = Arc::new(Shared::new(config, endpoint, quic));
        let client = Self(Arc::new(Handle { shared: Arc::clone(&shared) }));
        let mut changes = shared.changes.subscribe();
        for site in 0..sites {
            tokio::spawn(keep_connected(Arc::clone(&shared), site));
        }
        let greeted = async {
            while shared.usable_links().is_empty() {
                if client.sites().iter().all(|site| site.is_err_and(|error| !error.is_passing())) {
                    return false;
                }
                // The sender lives as long as `shared`.
                drop(changes.changed().await);
            }
            true
        };
        match timeout(shared.config.connect_timeout, greeted).await {
            Ok(true) => Ok(client),
            Ok(false) | Err(_) => Err(ConnectError::Unreachable(client.last_error())),
        }
    }

    /// State of every site's connection, in the order of the settings: the
    /// greeting site's number, or why there is none.
    pub fn sites(&self) -> Vec<Result<u8, LinkError>> {
        let links = self.0.shared.lock_links();
        links.iter().map(|link| link.as_ref().map(|link| link.hello.site).map_err(|e| *e)).collect()
    }

    /// What a site said tells more than that another one is silent.
    fn last_error(&self) -> LinkError {
        let mut errors = self.sites().into_iter().filter_map(Result::err);
        errors.find(|error| *error != LinkError::Silent).unwrap_or(LinkError::Silent)
    }

    /// Charges a payer. The signer fills `pay.auth`, and `pay.second` when it
    /// holds a second key. A `wait_ms` some way below `within` brings an early
    /// `PROCESSING` instead of an unknown outcome.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal by the switch is an `Ok` with its code.
    pub async fn pay(
        &self,
        pay: &Pay<'_>,
        signer: &Signer,
        within: Duration,
    ) -> Result<OrderReply, ClientError> {
        let signed = signer.sign(|auth, out| Pay { auth, ..*pay }.canonical(out));
        let pay = Pay { auth: signed.auth(), second: signed.second(), ..*pay };
        check_pay(&pay)?;
        let key = stream_key(&pay.mch_id, pay.out_trade_no.as_bytes());
        let question = question(kind::PAY, Some(&pay.mch_id), key, within)?;
        let asked = ask(&self.0.shared, question, |id, out| pay.encode_frame(id, out));
        order_reply(asked.await?)
    }

    /// State of a payment.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal by the switch is an `Ok` with its code.
    pub async fn query(
        &self,
        request: &OrderRequest<'_>,
        signer: &Signer,
        within: Duration,
    ) -> Result<OrderReply, ClientError> {
        self.order(kind::QUERY, request, signer, within).await
    }

    /// Cancels a payment that is not paid.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal by the switch is an `Ok` with its code.
    pub async fn close(
        &self,
        request: &OrderRequest<'_>,
        signer: &Signer,
        within: Duration,
    ) -> Result<OrderReply, ClientError> {
        self.order(kind::CLOSE, request, signer, within).await
    }

    /// Cancels a payment, or undoes it when it was just paid.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal by the switch is an `Ok` with its code.
    pub async fn reverse(
        &self,
        request: &OrderRequest<'_>,
        signer: &Signer,
        within: Duration,
    ) -> Result<OrderReply, ClientError> {
        self.order(kind::REVERSE, request, signer, within).await
    }

    async fn order(
        &self,
        kind: u8,
        request: &OrderRequest<'_>,
        signer: &Signer,
        within: Duration,
    ) -> Result<OrderReply, ClientError> {
        let signed =
            signer.sign(|auth, out| OrderRequest { auth, ..*request }.canonical(kind, out));
        let request = OrderRequest { auth: signed.auth(), ..*request };
        let key = order_key(&request.mch_id, &request.order);
        let question = question(kind, Some(&request.mch_id), key, within)?;
        let asked = ask(&self.0.shared, question, |id, out| request.encode_frame(kind, id, out));
        order_reply(asked.await?)
    }

    /// Gives money back.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal by the switch is an `Ok` with its code.
    pub async fn refund(
        &self,
        refund: &Refund<'_>,
        signer: &Signer,
        within: Duration,
    ) -> Result<RefundReply, ClientError> {
        let signed = signer.sign(|auth, out| Refund { auth, ..*refund }.canonical(out));
        let refund = Refund { auth: signed.auth(), ..*refund };
        let mut body = Vec::new();
        refund.encode(&mut body);
        Refund::decode(&body).map_err(ClientError::Invalid)?;
        let key = order_key(&refund.mch_id, &refund.order);
        let question = question(kind::REFUND, Some(&refund.mch_id), key, within)?;
        let asked = ask(&self.0.shared, question, |id, out| refund.encode_frame(id, out));
        refund_reply(asked.await?)
    }

    /// State of a refund.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal by the switch is an `Ok` with its code.
    pub async fn query_refund(
        &self,
        query: &QueryRefund<'_>,
        signer: &Signer,
        within: Duration,
    ) -> Result<RefundReply, ClientError> {
        let signed = signer.sign(|auth, out| QueryRefund { auth, ..*query }.canonical(out));
        let query = QueryRefund { auth: signed.auth(), ..*query };
        let key = order_key(&query.mch_id, &query.order);
        let question = question(kind::QUERY_REFUND, Some(&query.mch_id), key, within)?;
        let asked = ask(&self.0.shared, question, |id, out| query.encode_frame(id, out));
        refund_reply(asked.await?)
    }

    /// Round trip to a site, any that is connected.
    ///
    /// # Errors
    /// [`ClientError`] when none answers in time.
    pub async fn ping(&self, token: u64, within: Duration) -> Result<Pong, ClientError> {
        let question = question(kind::PING, None, token, within)?;
        let asked = ask(&self.0.shared, question, |id, out| {
            Ping { token }.encode_frame(id, out);
        });
        match asked.await? {
            Reply::Pong(pong) => Ok(pong),
            other => Err(refused(other.code())),
        }
    }

    /// Subscribes to the outcome events of every merchant that this gateway may
    /// speak for, at every site. Returns when one has taken it; the others follow.
    ///
    /// # Errors
    /// [`ClientError::NoAnswer`]: no site took it in time. Else as
    /// [`Subscription::next`].
    pub async fn subscribe(&self, within: Duration) -> Result<Subscription, ClientError> {
        let opening = Subscription::open(&self.0.shared);
        timeout(within, opening).await.unwrap_or(Err(ClientError::NoAnswer))
    }

    /// Takes nothing new, waits at most `within` for the answers in flight,
    /// then closes every connection. Tells whether all were answered.
    pub async fn shutdown(self, within: Duration) -> bool {
        let shared = &self.0.shared;
        let answered = shared.settle(within).await;
        shared.stop();
        // The close packet itself; a peer that is gone must not hold us up.
        drop(timeout(Duration::from_millis(500), shared.endpoint.wait_idle()).await);
        answered
    }
}

fn question(
    kind: u8,
    mch_id: Option<&MchId>,
    key: u64,
    within: Duration,
) -> Result<Question<'_>, ClientError> {
    if within > DEADLINE_MAX {
        return Err(ClientError::DeadlineTooLong);
    }
    Ok(Question { kind, mch_id, key, deadline: Instant::now() + within })
}

/// Refuses here what the switch would refuse, or would read as something else.
fn check_pay(pay: &Pay<'_>) -> Result<(), ClientError> {
    let mut body = Vec::with_capacity(512);
    pay.encode(&mut body);
    let read = Pay::decode(&body).map_err(ClientError::Invalid)?;
    let same = read.tags.count == pay.tags.count && read.tags.encoded == pay.tags.encoded;
    if !same || body.len() > BODY_MAX {
        return Err(ClientError::Invalid(DecodeError::invalid("tags")));
    }
    Ok(())
}

fn order_reply(reply: Reply) -> Result<OrderReply, ClientError> {
    match reply {
        Reply::Order(reply) => Ok(reply),
        other => Err(refused(other.code())),
    }
}

fn refund_reply(reply: Reply) -> Result<RefundReply, ClientError> {
    match reply {
        Reply::Refund(reply) => Ok(reply),
        other => Err(refused(other.code())),
    }
}

/// An answer of another kind than its question's: an error frame, which never
/// says that something was done.
fn refused(code: Code) -> ClientError {
    if code.may_have_acted() { ClientError::Unreadable } else { ClientError::Refused(code) }
}

/// Requests of one payment share a stream, so that they stay in order.
fn stream_key(mch_id: &MchId, number: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in mch_id.as_bytes().iter().chain(number) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

fn order_key(mch_id: &MchId, order: &OrderRef) -> u64 {
    match order {
        OrderRef::OutTradeNo(number) => stream_key(mch_id, number.as_bytes()),
        OrderRef::TransactionId(id) => stream_key(mch_id, &id.as_u64().to_le_bytes()),
    }
}
