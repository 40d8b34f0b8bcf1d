//! A gateway for tests: one QUIC connection, one stream, frames in and out. Can
//! also misbehave, which the product's own client cannot.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::code::{Method, Scene};
use protocol::frame::{HEADER_LEN, Header};
use protocol::id::{MchId, OutRefundNo, OutTradeNo};
use protocol::message::{
    Auth, Hello, OrderRef, OrderReply, OrderRequest, Pay, Refund, RefundReply, Tags, kind,
};
use protocol::money::{Amount, Currency};
use protocol::sign::SigningKey;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Deployment;

/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// How a connection is opened.
pub struct Credentials<'a> {
    /// Protocol offered.
    pub alpn: &'a [u8],
    /// Certificate and key files, or none.
    pub identity: Option<(&'a Path, &'a Path)>,
}

/// Opens a QUIC connection to the deployment's gateway port.
///
/// # Errors
/// What QUIC says.
pub async fn connect(
    deployment: &Deployment,
    credentials: &Credentials<'_>,
) -> Result<quinn::Connection, String> {
    let address: SocketAddr = deployment.address("gateway", "listen").parse().expect("an address");
    client(deployment, credentials)
        .connect(address, "site-1.site.payswitch")
        .map_err(|error| error.to_string())?
        .await
        .map_err(|error| error.to_string())
}

/// An endpoint that connects with these credentials.
///
/// # Panics
/// When the deployment's files cannot be used.
pub fn client(deployment: &Deployment, credentials: &Credentials<'_>) -> quinn::Endpoint {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(deployment.file("certs/ca.pem")).expect("the CA");
    roots.add(ca).expect("a usable CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut tls = match credentials.identity {
        Some((cert, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(cert).expect("a certificate")],
                PrivateKeyDer::from_pem_file(key).expect("a key"),
            )
            .expect("they belong together"),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![credentials.alpn.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).expect("QUIC ciphers");
    let mut endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a socket");
    let mut transport = quinn::TransportConfig::default();
    // A test may wait for something on the thread of its connection.
    transport.max_idle_timeout(quinn::IdleTimeout::try_from(Duration::from_secs(120)).ok());
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    endpoint
}

/// A merchant's id and signing key.
#[derive(Clone)]
pub struct Merchant {
    /// Id.
    pub id: MchId,
    /// Key id on the wire.
    pub key_id: u32,
    /// Key.
    pub key: SigningKey,
    /// How far its clock is ahead of the true one, milliseconds.
    pub ahead_ms: u64,
}

impl Merchant {
    /// Unix milliseconds by its clock.
    pub fn now_ms(&self) -> u64 {
        now_ms() + self.ahead_ms
    }
}

/// The deployment's merchant at a place of `gateway-merchants.toml`.
pub fn merchant(deployment: &Deployment, at: usize) -> Merchant {
    let text =
        std::fs::read_to_string(deployment.file("gateway-merchants.toml")).expect("the file");
    let table: toml::Table = text.parse().expect("TOML");
    let entry = &table["merchants"].as_array().expect("a list")[at];
    let key = &entry["keys"].as_array().expect("keys")[0];
    let secret = hex(key["secret"].as_str().expect("a secret"));
    let signing = match key["kind"].as_str() {
        Some("ed25519") => SigningKey::ed25519(&secret.try_into().expect("32 bytes")),
        _ => SigningKey::hmac(&secret),
    };
    Merchant {
        id: MchId::parse(entry["id"].as_str().expect("an id").as_bytes()).expect("an id"),
        key_id: key["key_id"].as_integer().expect("a number") as u32,
        key: signing,
        ahead_ms: 0,
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"))
        .collect()
}

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A pay of the merchant, unsigned.
pub fn pay(merchant: &Merchant, no: &str, amount: i64) -> Pay<'static> {
    Pay {
        mch_id: merchant.id,
        out_trade_no: OutTradeNo::parse(no.as_bytes()).expect("a number"),
        amount: Amount::new(amount).expect("an amount"),
        currency: Currency::new(*b"CNY").expect("a currency"),
        method: Method::Wallet,
        scene: Scene::App,
        payer_token: b"tok_test",
        device_id: b"",
        client_ip: [0; 16],
        time_expire_ms: merchant.now_ms() + 600_000,
        notify: b"",
        wait_ms: 0,
        tags: Tags::default(),
        auth: auth(merchant),
        second: Auth::NONE,
    }
}

/// Signature data without the signature.
pub fn auth(merchant: &Merchant) -> Auth<'static> {
    Auth { key_id: merchant.key_id, timestamp_ms: merchant.now_ms(), nonce: 7, signature: &[] }
}

/// The frame of a pay, signed by its merchant.
pub fn signed_pay(merchant: &Merchant, pay: &Pay<'_>, correlation: u64) -> Vec<u8> {
    let mut canonical = Vec::new();
    pay.canonical(&mut canonical);
    let mut signature = [0; 64];
    let len = merchant.key.sign(&canonical, &mut signature);
    let auth = Auth { signature: &signature[..len], ..pay.auth };
    let mut frame = Vec::new();
    Pay { auth, ..*pay }.encode_frame(correlation, &mut frame);
    frame
}

/// The frame of a query, close or reverse, signed.
pub fn signed_order(merchant: &Merchant, kind: u8, order: OrderRef, correlation: u64) -> Vec<u8> {
    let request = OrderRequest {
        mch_id: merchant.id,
        order,
        refresh: false,
        wait_ms: 0,
        auth: auth(merchant),
    };
    signed_request(merchant, kind, request, correlation)
}

/// The frame of any query, close or reverse, signed.
pub fn signed_request(
    merchant: &Merchant,
    kind: u8,
    request: OrderRequest<'_>,
    correlation: u64,
) -> Vec<u8> {
    let mut canonical = Vec::new();
    request.canonical(kind, &mut canonical);
    let mut signature = [0; 64];
    let len = merchant.key.sign(&canonical, &mut signature);
    let auth = Auth { signature: &signature[..len], ..request.auth };
    let mut frame = Vec::new();
    OrderRequest { auth, ..request }.encode_frame(kind, correlation, &mut frame);
    frame
}

/// The frame of a refund, signed.
pub fn signed_refund(
    merchant: &Merchant,
    order: OrderRef,
    no: &str,
    amount: i64,
    correlation: u64,
) -> Vec<u8> {
    let mut refund = Refund {
        mch_id: merchant.id,
        order,
        out_refund_no: OutRefundNo::parse(no.as_bytes()).expect("a number"),
        amount: Amount::new(amount).expect("an amount"),
        currency: Currency::new(*b"CNY").expect("a currency"),
        reason: b"",
        wait_ms: 0,
        auth: auth(merchant),
    };
    let mut canonical = Vec::new();
    refund.canonical(&mut canonical);
    let mut signature = [0; 64];
    let len = merchant.key.sign(&canonical, &mut signature);
    refund.auth.signature = &signature[..len];
    let mut frame = Vec::new();
    refund.encode_frame(correlation, &mut frame);
    frame
}

/// A greeted connection with one open stream.
pub struct Gateway {
    /// The connection.
    pub quic: quinn::Connection,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    /// What the server said first.
    pub hello: Hello,
}

impl Gateway {
    /// Connects with the deployment's gateway certificate and waits for HELLO.
    pub async fn open(deployment: &Deployment) -> Self {
        let (cert, key) = (deployment.file("certs/gw-1.pem"), deployment.file("certs/gw-1.key"));
        let credentials = Credentials { alpn: b"payswitch/1", identity: Some((&cert, &key)) };
        let quic = connect(deployment, &credentials).await.expect("a connection");
        let mut control = quic.accept_uni().await.expect("the control stream");
        let (header, body) = frame(&mut control).await.expect("HELLO");
        assert_eq!(header.kind, kind::HELLO);
        let (send, recv) = quic.open_bi().await.expect("a stream");
        Self { hello: Hello::decode(&body).expect("HELLO"), quic, send, recv }
    }

    /// Writes bytes to the stream.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.expect("written");
    }

    /// Writes bytes to a stream that may have ended.
    ///
    /// # Errors
    /// What QUIC says.
    pub async fn try_write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.send.write_all(bytes).await.map_err(|error| error.to_string())
    }

    /// The next frame, or how the stream ended.
    ///
    /// # Errors
    /// What QUIC says.
    pub async fn read(&mut self) -> Result<(Header, Vec<u8>), String> {
        frame(&mut self.recv).await
    }

    /// Writes a frame and reads the next order reply.
    pub async fn order(&mut self, bytes: &[u8]) -> OrderReply {
        self.write(bytes).await;
        let (header, body) = self.read().await.expect("an answer");
        assert!(header.kind & kind::REPLY != 0 && header.kind != kind::ERROR, "{header:?}");
        OrderReply::decode(&body).expect("an order reply")
    }

    /// Writes a frame and reads the next refund reply.
    pub async fn refund(&mut self, bytes: &[u8]) -> RefundReply {
        self.write(bytes).await;
        let (_, body) = self.read().await.expect("an answer");
        RefundReply::decode(&body).expect("a refund reply")
    }
}

/// Reads one frame of a stream.
///
/// # Errors
/// What QUIC says, or that nothing came in time.
pub async fn frame(recv: &mut quinn::RecvStream) -> Result<(Header, Vec<u8>), String> {
    let read = async {
        let mut head = [0; HEADER_LEN];
        recv.read_exact(&mut head).await.map_err(|error| error.to_string())?;
        let header = Header::decode(&head).map_err(|error| format!("{error:?}"))?;
        let mut body = vec![0; header.length as usize];
        recv.read_exact(&mut body).await.map_err(|error| error.to_string())?;
        Ok((header, body))
    };
    tokio::time::timeout(ANSWER_MAX, read).await.map_err(|_| "no answer in time".to_owned())?
}
