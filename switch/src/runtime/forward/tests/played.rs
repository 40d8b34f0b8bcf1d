//! Sites for the tests of forwarding: real links and gateway fronts, workers
//! that are played by a thread each.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;

use protocol::code::{Method, Scene};
use protocol::frame::{Header, Splitter};
use protocol::id::{MchId, OutRefundNo, OutTradeNo};
use protocol::message::{Auth, Leader, Leaders, OrderRef, OrderRequest, Pay, Refund, Tags};
use protocol::money::{Amount, Currency};
use protocol::sign::HmacKey;

use super::super::*;
use crate::engine::merchant::{KeyKind, Limits, Merchant, MerchantStatus};
use crate::runtime::gateway::Front;
use crate::runtime::inbox::{Exchange, Item, Listen};
use crate::runtime::peer::PeerShared;
use crate::runtime::testing::{self, Cluster, Node, eventually_async};
use crate::secret::{Kek, Secret};
use crate::tls::{self, Credentials, EndpointKeys};

/// What a played worker does with requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Answers with the code OK and its site's number as the amount.
    Answer,
    /// Says that it does not lead.
    Refuse,
    /// Keeps them.
    Keep,
    /// Answers while its site leads, else says that it does not.
    Honest,
    /// Refuses for now.
    Shed,
}

pub struct State {
    pub mode: Mode,
    pub seen: Vec<(Waiter, u16, u64)>,
    pub kept: Vec<Waiter>,
    pub closed: Vec<u64>,
}

/// A played worker: a thread at the other end of an exchange.
pub struct Worker {
    pub state: Arc<Mutex<State>>,
    pub stop: Arc<AtomicBool>,
    pub thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    pub fn start(mesh: Arc<Mesh>, exchange: Arc<Exchange>) -> Self {
        let state = State { mode: Mode::Answer, seen: vec![], kept: vec![], closed: vec![] };
        let (state, stop) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (state_2, stop_2) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stop_2.load(Ordering::Acquire) {
                Self::turn(&mesh, &exchange, &mut state_2.lock().unwrap());
                exchange.park(1_000, Listen::All);
            }
        });
        Self { state, stop, thread: Some(thread) }
    }

    pub fn turn(mesh: &Mesh, exchange: &Exchange, state: &mut State) {
        let mut out = exchange.out_batch();
        let mode = state.mode;
        let mut waiters = if mode == Mode::Keep { vec![] } else { std::mem::take(&mut state.kept) };
        while let Some(batch) = exchange.pop() {
            for (_, item) in &batch.items {
                let origin = match item {
                    Item::Query(order) | Item::Close(order) | Item::Reverse(order) => &order.origin,
                    Item::Refund(refund) => &refund.origin,
                    Item::Pay(pay, _) => &pay.origin,
                    Item::ConnectionClosed(connection) => {
                        state.closed.push(*connection);
                        continue;
                    }
                    _ => continue,
                };
                state.seen.push((origin.waiter, origin.gateway, origin.wait_us));
                let keep = if mode == Mode::Keep { &mut state.kept } else { &mut waiters };
                keep.push(origin.waiter);
            }
            exchange.recycle(batch);
        }
        for waiter in waiters {
            let leads = match mode {
                Mode::Refuse => false,
                Mode::Honest => mesh.leader(shard()) == mesh.site(),
                Mode::Answer | Mode::Keep | Mode::Shed => true,
            };
            let code = match mode {
                Mode::Shed => Code::Overloaded,
                _ if leads => Code::Ok,
                _ => Code::NotLeader,
            };
            let mut reply = Reply::refusal(waiter, code, 0);
            match &mut reply.body {
                ReplyBody::Order(body) => body.amount = mesh.site().into(),
                ReplyBody::Refund(body) => body.amount = mesh.site().into(),
            }
            out.replies.push(reply);
        }
        if !out.is_empty() {
            assert!(exchange.push_out(out).is_ok(), "the network thread keeps up");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A site whose network part runs on the test's own thread.
pub struct Site {
    pub node: Option<Node>,
    pub remains: Option<(PeerShared, Arc<Notify>)>,
    pub mesh: Arc<Mesh>,
    pub exchange: Arc<Exchange>,
    pub ferry: Arc<Ferry>,
    pub kek: Arc<Kek>,
    pub net: Rc<Net>,
    pub worker: Worker,
    pub address: SocketAddr,
    pub _endpoint: quinn::Endpoint,
}

pub fn mch_id() -> MchId {
    MchId::parse(b"M000001").unwrap()
}

/// The shard of all requests here.
pub fn shard() -> u16 {
    mch_id().shard(12)
}

pub fn merchant() -> Merchant {
    let limits = Limits {
        pay_per_minute: 1,
        query_per_minute: 1,
        refund_per_minute: 1,
        burst: 1,
        daily_cap: 0,
        single_max: 0,
        second_signature_from: 0,
    };
    Merchant {
        mch_id: mch_id(),
        status: MerchantStatus::Active,
        keys: vec![],
        gateways: vec![],
        addresses: vec![],
        limits,
    }
}

/// The secret of the merchant's key with this number.
fn secret_of(key_id: u32) -> [u8; 32] {
    [key_id as u8; 32]
}

impl Site {
    pub fn start(cluster: &Cluster, number: u8, outstanding_max: usize) -> Self {
        let mut config = cluster.config(number).clone();
        config.gateways[0].trust_certificate = true;
        let node = Node::start(&config);
        let shared = &node.shared;
        let worker = Worker::start(Arc::clone(&shared.mesh), Arc::clone(&shared.exchange));
        let forward =
            Forwarder::new(Arc::clone(&shared.mesh), Arc::clone(&shared.ferry), 60_000_000);
        let net = testing::net(&config, shared, outstanding_max, Some(forward));
        net.directory.borrow_mut().put(&merchant());
        let kek = Arc::new(Kek::load(&config.keys.kek).unwrap());
        tokio::task::spawn_local(Rc::clone(&net).run_flusher());
        tokio::task::spawn_local(Rc::clone(&net).run_dispatcher(Arc::clone(&node.net_wake)));
        tokio::task::spawn_local(Rc::clone(&net).run_forwarding());
        let keys = EndpointKeys::load_or_create(&config.data_dir).unwrap();
        let endpoint = quinn::Endpoint::new(
            tls::gateway_endpoint(&config.gateway, &keys),
            Some(tls::gateway_server(&config.gateway, &keys).unwrap()),
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
            Arc::new(quinn::TokioRuntime),
        )
        .unwrap();
        let front = Rc::new(Front { net: Rc::clone(&net), config: Rc::new(config) });
        tokio::task::spawn_local(front.run(endpoint.clone()));
        let address = endpoint.local_addr().unwrap();
        let mesh = Arc::clone(&shared.mesh);
        let (exchange, ferry) = (Arc::clone(&shared.exchange), Arc::clone(&shared.ferry));
        Self {
            node: Some(node),
            remains: None,
            mesh,
            exchange,
            ferry,
            kek,
            net,
            worker,
            address,
            _endpoint: endpoint,
        }
    }

    /// Lets the site believe that a site leads; one that leads itself has heard of
    /// everything before.
    pub fn believe(&self, leader: u8) {
        self.follow(leader, 1);
    }

    /// As [`Self::believe`], in this term.
    pub fn follow(&self, leader: u8, term: u64) {
        self.mesh.publish_leader(shard(), term, leader);
        if leader == self.mesh.site() {
            self.hears(term);
        }
    }

    /// The worker hands over what was committed before a term.
    pub fn hears(&self, term: u64) {
        let mut out = self.exchange.out_batch();
        out.led.push((shard(), term));
        assert!(self.exchange.push_out(out).is_ok(), "the network thread keeps up");
    }

    /// No request that waits here is given up because the machine stood still.
    pub fn is_patient(&self) {
        self.forward().patience_us.set(60_000_000);
    }

    /// Waits until a number of requests wait for a leader here.
    pub async fn waits_with(&self, requests: usize) {
        let waits = || self.forward().waiting.borrow().len() == requests;
        eventually_async("they wait", waits).await;
    }

    /// The merchant with one key.
    pub fn with_key(&self, key_id: u32) -> Merchant {
        let secret = Secret::new(secret_of(key_id).to_vec());
        let key = self.kek.wrap(&mch_id(), key_id, KeyKind::HmacSha256, &secret).unwrap();
        Merchant { keys: vec![key], ..merchant() }
    }

    /// Hears of a merchant's record.
    pub fn knows(&self, merchant: &Merchant) {
        assert_eq!(self.net.directory.borrow_mut().put(merchant), 0);
    }

    pub fn worker(&self) -> MutexGuard<'_, State> {
        self.worker.state.lock().unwrap()
    }

    pub fn forward(&self) -> &Forwarder {
        self.net.forward.as_ref().unwrap()
    }

    pub async fn sees(&self, requests: usize) {
        let seen = || self.worker().seen.len() >= requests;
        eventually_async("the worker sees the requests", seen).await;
    }

    /// Nothing is left of any request.
    pub fn is_idle(&self) -> bool {
        let forward = self.forward();
        self.net.outstanding.get() == 0
            && forward.held.borrow().tickets(|_| true).is_empty()
            && forward.waiting.borrow().is_empty()
            && forward.sites.iter().all(|site| site.asked.get() == 0 && site.taken.get() == 0)
    }

    /// The process dies, as far as other sites can see.
    pub async fn die(&mut self) {
        let Node { peers, shared, net_wake } = self.node.take().unwrap();
        tokio::task::spawn_blocking(move || peers.kill()).await.unwrap();
        self.remains = Some((shared, net_wake));
    }

    /// Its links start anew.
    pub fn revive(&mut self, cluster: &Cluster) {
        let (shared, net_wake) = self.remains.take().unwrap();
        let peers = Node::peers(cluster.config(self.mesh.site()), &shared);
        self.node = Some(Node { peers, shared, net_wake });
    }
}

/// A gateway with one stream.
pub struct Gateway {
    pub _endpoint: quinn::Endpoint,
    pub _quic: quinn::Connection,
    pub send: quinn::SendStream,
    pub recv: quinn::RecvStream,
    pub splitter: Splitter,
    pub answers: VecDeque<(u64, ReplyBody)>,
}

impl Gateway {
    pub async fn connect(cluster: &Cluster, site: &Site) -> Self {
        Self::connect_with(cluster, site, quinn::TransportConfig::default()).await
    }

    pub async fn connect_with(
        cluster: &Cluster,
        site: &Site,
        transport: quinn::TransportConfig,
    ) -> Self {
        let file = |name: &str| cluster.dir.path().join("certs").join(name);
        let ca = file("ca.pem");
        let credentials = Credentials::load(&file("gw-1.pem"), &file("gw-1.key"), &ca).unwrap();
        let tls = credentials.client(tls::ALPN_GATEWAY).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let name = &cluster.config(site.mesh.site()).this_site().server_name;
        let quic = endpoint.connect_with(config, site.address, name).unwrap().await.unwrap();
        let (send, recv) = quic.open_bi().await.unwrap();
        let (splitter, answers) = (Splitter::new(), VecDeque::new());
        Self { _endpoint: endpoint, _quic: quic, send, recv, splitter, answers }
    }

    pub async fn query(&mut self, correlation: u64, wait_ms: u32) {
        self.queries(std::iter::once(correlation), wait_ms).await;
    }

    /// Many at once.
    pub async fn queries(&mut self, correlations: impl Iterator<Item = u64>, wait_ms: u32) {
        let request = OrderRequest {
            mch_id: mch_id(),
            order: OrderRef::OutTradeNo(OutTradeNo::parse(b"T1").unwrap()),
            refresh: false,
            wait_ms,
            auth: Auth::NONE,
        };
        let mut frames = Vec::new();
        correlations.for_each(|correlation| {
            request.encode_frame(kind::QUERY, correlation, &mut frames);
        });
        self.send.write_all(&frames).await.unwrap();
    }

    /// A pay, signed with the key of this number.
    pub async fn pay(&mut self, correlation: u64, key_id: u32, wait_ms: u32) {
        let now_ms = clock::now().wall_us / 1000;
        let auth = Auth { key_id, timestamp_ms: now_ms, nonce: 1, signature: b"" };
        let pay = Pay {
            amount: Amount::new(5).unwrap(),
            time_expire_ms: now_ms + 600_000,
            wait_ms,
            currency: Currency::new(*b"CNY").unwrap(),
            method: Method::Wallet,
            scene: Scene::App,
            client_ip: [0; 16],
            mch_id: mch_id(),
            out_trade_no: OutTradeNo::parse(b"T1").unwrap(),
            payer_token: b"token",
            device_id: b"",
            notify: b"",
            tags: Tags { count: 0, encoded: b"" },
            auth,
            second: Auth::NONE,
        };
        let mut canonical = Vec::new();
        pay.canonical(&mut canonical);
        let signature = HmacKey::new(&secret_of(key_id)).sign(&canonical);
        let pay = Pay { auth: Auth { signature: &signature, ..auth }, ..pay };
        let mut frame = Vec::new();
        pay.encode_frame(correlation, &mut frame);
        self.send.write_all(&frame).await.unwrap();
    }

    pub async fn refund(&mut self, correlation: u64) {
        let refund = Refund {
            mch_id: mch_id(),
            order: OrderRef::OutTradeNo(OutTradeNo::parse(b"T1").unwrap()),
            out_refund_no: OutRefundNo::parse(b"R1").unwrap(),
            amount: Amount::new(5).unwrap(),
            currency: Currency::new(*b"CNY").unwrap(),
            reason: b"",
            wait_ms: 30_000,
            auth: Auth::NONE,
        };
        let mut frame = Vec::new();
        refund.encode_frame(correlation, &mut frame);
        self.send.write_all(&frame).await.unwrap();
    }

    /// The control stream, behind its HELLO.
    pub async fn control(&self) -> Control {
        let recv = self._quic.accept_uni().await.unwrap();
        let mut control = Control { recv, splitter: Splitter::new(), frames: VecDeque::new() };
        assert_eq!(control.frame().await.0, kind::HELLO);
        control
    }

    /// Correlation, code, hint, the answering site's number, retry_after_ms.
    pub async fn answer(&mut self) -> (u64, Code, u8, i64, u32) {
        while self.answers.is_empty() {
            let chunk = self.recv.read_chunk(65_536, true).await.unwrap().unwrap();
            let answers = &mut self.answers;
            let split = self.splitter.push(&chunk.bytes, |header, body| {
                let body = match header.kind ^ kind::REPLY {
                    kind::REFUND => ReplyBody::Refund(RefundReply::decode(body).unwrap()),
                    _ => ReplyBody::Order(OrderReply::decode(body).unwrap()),
                };
                answers.push_back((header.correlation, body));
            });
            split.unwrap();
        }
        let (correlation, body) = self.answers.pop_front().unwrap();
        match body {
            ReplyBody::Order(b) => (correlation, b.code, b.leader_hint, b.amount, b.retry_after_ms),
            ReplyBody::Refund(b) => {
                (correlation, b.code, b.leader_hint, b.amount, b.retry_after_ms)
            }
        }
    }
}

/// A gateway's end of a control stream.
pub struct Control {
    recv: quinn::RecvStream,
    splitter: Splitter,
    frames: VecDeque<(u8, Vec<u8>)>,
}

impl Control {
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        while self.frames.is_empty() {
            let chunk = self.recv.read_chunk(65_536, true).await.unwrap().unwrap();
            let frames = &mut self.frames;
            let keep = |header: Header, body: &[u8]| frames.push_back((header.kind, body.to_vec()));
            self.splitter.push(&chunk.bytes, keep).unwrap();
        }
        self.frames.pop_front().unwrap()
    }

    /// Term and site of the next notice about the shard.
    pub async fn leader(&mut self) -> (u64, u8) {
        let (kind, body) = self.frame().await;
        assert_eq!(kind, kind::LEADER);
        let told: Vec<Leader> = Leaders::decode(&body).unwrap().iter().collect();
        assert!(matches!(told[..], [leader] if leader.shard == shard()), "{told:?}");
        (told[0].term, told[0].site)
    }
}

/// Runs a test with `count` sites that are linked, and a gateway at the first.
pub fn with_sites<F: Future<Output = ()>>(
    count: u16,
    outstanding_max: usize,
    test: impl FnOnce(Rc<Cluster>, Vec<Site>, Gateway) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let cluster = Rc::new(Cluster::new(count));
        let sites: Vec<Site> =
            (1..=count as u8).map(|site| Site::start(&cluster, site, outstanding_max)).collect();
        for site in &sites {
            let linked = || site.mesh.others().all(|to| site.mesh.route(to).unwrap().is_up());
            eventually_async("the links come up", linked).await;
        }
        let gateway = Gateway::connect(&cluster, &sites[0]).await;
        test(cluster, sites, gateway).await;
    });
}

pub async fn idle(sites: &[Site]) {
    for site in sites {
        eventually_async("nothing is left of the requests", || site.is_idle()).await;
    }
}
