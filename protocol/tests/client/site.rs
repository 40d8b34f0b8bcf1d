//! Sites of the test's own: real QUIC over loopback, answers by script.

use protocol::client::{Client, ClientConfig, Site, Transport};
use protocol::code::{CloseCode, Code, OrderState, Reason, RefundState};
use protocol::frame::{Header, Splitter};
use protocol::id::{MchId, OutTradeNo, ShortText, TransactionId};
use protocol::message::{
    Ack, Event, GoAway, Hello, Leader, Leaders, OrderReply, Ping, RefundReply, Subscribe, kind,
};
use protocol::money::Currency;
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Longer than any pause of the machine: nothing here may end by silence that
/// a test did not ask for.
const LONG: Duration = Duration::from_secs(120);

/// A certificate and its key, PEM.
pub type Identity = (String, String);

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn issue(&self, name: &str) -> Identity {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// What a site does with the n-th request that it gets.
#[derive(Clone, Copy)]
pub enum Act {
    /// Carries it out.
    Done,
    Silent,
    /// Carries it out and answers when released.
    Hold,
    /// Answers with a code and a leader hint.
    Refuse(Code, u8),
    /// Closes the connection.
    Drop,
    /// Answers with an error frame.
    Error(Code),
    /// Announces an answer of this many bytes.
    Announce(u32),
    /// Answers with a code that no table has.
    UnknownCode,
    /// Answers with the reply to another kind of request.
    WrongKind,
    /// Answers in two copies.
    Twice,
}

pub type Script = Box<dyn Fn(usize) -> Act + Send + Sync>;

pub fn always(act: Act) -> Script {
    Box::new(move |_| act)
}

/// A scripted site.
pub struct FakeSite {
    /// What it greets with.
    pub hello: Mutex<Hello>,
    script: Script,
    requests: Mutex<Vec<Vec<u8>>>,
    pub go_away: Notify,
    /// Who leads, to be told on the control stream of the next or only connection.
    leaders: Mutex<Vec<Leader>>,
    tell: Notify,
    /// What it says with GOAWAY.
    pub deadline_ms: AtomicU32,
    /// Lets the answers go that are held.
    pub release: Notify,
    acknowledged: Mutex<Vec<u64>>,
    connections: Mutex<Vec<quinn::Connection>>,
    closed: Mutex<Vec<quinn::ConnectionError>>,
}

impl FakeSite {
    fn new(number: u8, script: Script) -> Self {
        let hello =
            Hello { in_flight_max: 64, shards: 12, site: number, sites: 2, time_ms: 1, cluster: 1 };
        Self {
            hello: Mutex::new(hello),
            script,
            requests: Mutex::default(),
            go_away: Notify::new(),
            leaders: Mutex::default(),
            tell: Notify::new(),
            deadline_ms: AtomicU32::new(50_000),
            release: Notify::new(),
            acknowledged: Mutex::default(),
            connections: Mutex::default(),
            closed: Mutex::default(),
        }
    }

    /// Bodies of the requests that it got.
    pub fn requests(&self) -> Vec<Vec<u8>> {
        self.requests.lock().unwrap().clone()
    }

    pub fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.lock().unwrap().clone()
    }

    /// How the connections that have ended did so.
    pub fn closed(&self) -> Vec<quinn::ConnectionError> {
        self.closed.lock().unwrap().clone()
    }

    /// Whether the client closed a connection with this code.
    pub fn was_closed_with(&self, code: CloseCode) -> bool {
        self.closed().iter().any(|error| match error {
            quinn::ConnectionError::ApplicationClosed(close) => {
                close.error_code.into_inner() == u64::from(code.wire())
            }
            _ => false,
        })
    }

    /// Tells the client that `site` leads every shard.
    pub fn tell_leader(&self, site: u8, term: u64) {
        let leader = |shard| Leader { shard, site, term };
        *self.leaders.lock().unwrap() = (0..12).map(leader).collect();
        self.tell.notify_one();
    }

    /// Closes every connection.
    pub fn cut(&self) {
        for quic in self.connections.lock().unwrap().drain(..) {
            quic.close(CloseCode::Internal.wire().into(), b"cut by the test");
        }
    }
}

pub struct Cluster {
    pub authority: Authority,
    pub sites: Vec<Arc<FakeSite>>,
    pub endpoints: Vec<quinn::Endpoint>,
}

impl Cluster {
    pub fn start(scripts: Vec<Script>) -> Self {
        let authority = Authority::new();
        let (mut sites, mut endpoints) = (Vec::new(), Vec::new());
        for (script, number) in scripts.into_iter().zip(1..) {
            let site = Arc::new(FakeSite::new(number, script));
            endpoints.push(start(&authority, &site, ([127, 0, 0, 1], 0).into()));
            sites.push(site);
        }
        Self { authority, sites, endpoints }
    }

    /// Ends a site with all its connections and starts it again at its address.
    pub async fn restart(&mut self, at: usize) {
        let address = self.endpoints[at].local_addr().unwrap();
        self.endpoints.remove(at).close(CloseCode::Draining.wire().into(), b"restart");
        self.sites[at].cut();
        // The socket is free once the last task has seen the end.
        until(|| std::net::UdpSocket::bind(address).is_ok()).await;
        self.endpoints.insert(at, start(&self.authority, &self.sites[at], address));
    }

    pub fn config(&self) -> ClientConfig {
        let sites = self.endpoints.iter().zip(1..).map(|(endpoint, number)| Site {
            address: endpoint.local_addr().unwrap(),
            server_name: format!("site-{number}.site.payswitch"),
        });
        let (cert, key) = self.authority.issue("gw-1.gateway.payswitch");
        let mut config = ClientConfig::new(
            sites.collect(),
            self.authority.0.pem().into_bytes(),
            cert.into_bytes(),
            key.into_bytes(),
        );
        config.streams = 4;
        config.resend_after = LONG;
        config.connect_timeout = LONG;
        config.transport = Transport { idle_max: LONG, ..Transport::default() };
        config
    }

    /// A client that is connected to every site.
    pub async fn client(&self) -> Client {
        self.client_with(self.config()).await
    }

    pub async fn client_with(&self, config: ClientConfig) -> Client {
        let client = Client::connect(config).await.unwrap();
        until(|| client.sites().iter().all(Result::is_ok)).await;
        client
    }
}

/// Waits for what other tasks do; fails when it does not come.
pub async fn until(mut condition: impl FnMut() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, poll).await.expect("it happens");
}

fn start(authority: &Authority, site: &Arc<FakeSite>, address: SocketAddr) -> quinn::Endpoint {
    let number = site.hello.lock().unwrap().site;
    let config = server_config(authority, &format!("site-{number}.site.payswitch"));
    let endpoint = quinn::Endpoint::server(config, address).unwrap();
    tokio::spawn(serve(endpoint.clone(), Arc::clone(site)));
    endpoint
}

fn server_config(authority: &Authority, name: &str) -> quinn::ServerConfig {
    let (cert, key) = authority.issue(name);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.0.pem().as_bytes()).unwrap()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![b"payswitch/1".to_vec()];
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(LONG.try_into().unwrap()));
    config.transport_config(Arc::new(transport));
    config
}

async fn serve(endpoint: quinn::Endpoint, site: Arc<FakeSite>) {
    while let Some(incoming) = endpoint.accept().await {
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            let Ok(quic) = incoming.await else { return };
            site.connections.lock().unwrap().push(quic.clone());
            greet_and_serve(&quic, &site).await;
            let error = quic.closed().await;
            site.closed.lock().unwrap().push(error);
        });
    }
}

async fn greet_and_serve(quic: &quinn::Connection, site: &Arc<FakeSite>) {
    let Ok(mut control) = quic.open_uni().await else { return };
    let mut frame = Vec::new();
    site.hello.lock().unwrap().encode_frame(0, &mut frame);
    if control.write_all(&frame).await.is_err() {
        return;
    }
    let streams = async {
        while let Ok((send, recv)) = quic.accept_bi().await {
            tokio::spawn(stream(quic.clone(), Arc::clone(site), send, recv));
        }
    };
    let farewell = async {
        loop {
            tokio::select! {
                () = site.go_away.notified() => break,
                () = site.tell.notified() => {}
            }
            frame.clear();
            Leaders::encode_frame(&site.leaders.lock().unwrap(), 0, &mut frame);
            drop(control.write_all(&frame).await);
        }
        frame.clear();
        let deadline_ms = site.deadline_ms.load(Ordering::Relaxed);
        GoAway { code: CloseCode::Draining, deadline_ms }.encode_frame(0, &mut frame);
        drop(control.write_all(&frame).await);
        quic.closed().await;
    };
    tokio::select! { () = streams => {}, () = farewell => {} }
}

async fn stream(
    quic: quinn::Connection,
    site: Arc<FakeSite>,
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
) {
    let mut splitter = Splitter::new();
    let mut held = Vec::new();
    loop {
        let released = site.release.notified();
        let chunk = tokio::select! {
            chunk = recv.read_chunk(65_536, true) => chunk,
            () = released => {
                if send.write_all(&std::mem::take(&mut held)).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Ok(Some(chunk)) = chunk else { return };
        let mut out = Vec::new();
        let fed = splitter.push(&chunk.bytes, |header, body| {
            if !react(&site, header, body, &mut out, &mut held) {
                quic.close(CloseCode::Internal.wire().into(), b"dropped by script");
            }
        });
        if fed.is_err() || send.write_all(&out).await.is_err() {
            return;
        }
    }
}

/// Answers a frame; `false`: drop the connection.
fn react(
    site: &FakeSite,
    header: Header,
    body: &[u8],
    out: &mut Vec<u8>,
    held: &mut Vec<u8>,
) -> bool {
    let correlation = header.correlation;
    match header.kind {
        kind::PING => {
            Ping::decode(body).unwrap().pong(5).encode_frame(correlation, out);
            return true;
        }
        kind::SUBSCRIBE => {
            Subscribe::reply_frame(correlation, out);
            let number = site.hello.lock().unwrap().site;
            event_of(number).encode_frame(correlation, out);
            return true;
        }
        kind::ACK => {
            site.acknowledged.lock().unwrap().push(Ack::decode(body).unwrap().event_id);
            return true;
        }
        _ => {}
    }
    let count = {
        let mut requests = site.requests.lock().unwrap();
        requests.push(body.to_vec());
        requests.len()
    };
    let number = site.hello.lock().unwrap().site;
    let reply_kind = header.kind | kind::REPLY;
    match (site.script)(count) {
        Act::Silent => {}
        Act::Drop => return false,
        Act::Done => answer(header.kind, paid(number), correlation, out),
        Act::Hold => answer(header.kind, paid(number), correlation, held),
        Act::Twice => {
            answer(header.kind, paid(number), correlation, out);
            answer(header.kind, paid(number), correlation, out);
        }
        Act::Refuse(code, leader_hint) => {
            let refusal = OrderReply {
                code,
                state: OrderState::None,
                leader_hint,
                retry_after_ms: 10,
                ..paid(number)
            };
            answer(header.kind, refusal, correlation, out);
        }
        Act::Error(code) => {
            protocol::message::ErrorFrame { code, retry_after_ms: 0, detail: b"by script" }
                .encode_frame(correlation, out);
        }
        Act::Announce(length) => {
            let header = Header { length, kind: reply_kind, flags: 0, correlation };
            out.extend_from_slice(&header.encode());
        }
        Act::UnknownCode => {
            let start = out.len();
            answer(header.kind, paid(number), correlation, out);
            out[start + 16..start + 18].copy_from_slice(&9_999_u16.to_le_bytes());
        }
        Act::WrongKind => paid(number).encode_frame(kind::CLOSE | kind::REPLY, correlation, out),
    }
    true
}

fn answer(asked: u8, reply: OrderReply, correlation: u64, out: &mut Vec<u8>) {
    match asked {
        kind::REFUND | kind::QUERY_REFUND => {
            let refunded = RefundReply { code: reply.code, ..refunded() };
            refunded.encode_frame(asked | kind::REPLY, correlation, out);
        }
        _ => reply.encode_frame(asked | kind::REPLY, correlation, out),
    }
}

/// Tells by its channel which site answered.
pub fn paid(site: u8) -> OrderReply {
    OrderReply {
        code: Code::Ok,
        retry_after_ms: 0,
        replayed: false,
        state: OrderState::Paid,
        reason: Reason::None,
        transaction_id: Some(TransactionId::new(1, 2)),
        amount: 100,
        currency: Currency::new(*b"CNY"),
        refunded: 0,
        refunding: 0,
        channel: u16::from(site),
        finished_at_ms: 3,
        leader_hint: 0,
        out_trade_no: ShortText::EMPTY,
        channel_ref: ShortText::EMPTY,
    }
}

pub fn refunded() -> RefundReply {
    RefundReply {
        code: Code::Ok,
        retry_after_ms: 0,
        replayed: false,
        state: RefundState::Success,
        reason: Reason::None,
        transaction_id: Some(TransactionId::new(1, 2)),
        amount: 40,
        currency: Currency::new(*b"CNY"),
        refunded: 40,
        refunding: 0,
        finished_at_ms: 4,
        leader_hint: 0,
        channel_ref: ShortText::EMPTY,
    }
}

pub fn event() -> Event {
    event_of(1)
}

/// Tells by its number which site it is from.
pub fn event_of(site: u8) -> Event {
    Event {
        event_id: 76 + u64::from(site),
        sequence: 1,
        mch_id: MchId::parse(b"m-1").unwrap(),
        out_trade_no: OutTradeNo::parse(b"no-1").unwrap(),
        transaction_id: TransactionId::new(1, 2),
        state: OrderState::Paid,
        reason: Reason::None,
        out_refund_no: ShortText::EMPTY,
        refund_state: RefundState::None,
        amount: 100,
        currency: Currency::new(*b"CNY").unwrap(),
        at_ms: 9,
    }
}
