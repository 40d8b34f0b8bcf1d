use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use protocol::frame::Splitter;
use protocol::id::{MchId, OutRefundNo, OutTradeNo};
use protocol::message::{Auth, OrderRef, OrderRequest, Refund};
use protocol::money::{Amount, Currency};

use super::*;
use crate::engine::merchant::{Limits, Merchant, MerchantStatus};
use crate::runtime::control::NodeControl;
use crate::runtime::directory::Directory;
use crate::runtime::gateway::Front;
use crate::runtime::inbox::{Exchange, Item};
use crate::runtime::net::NetSettings;
use crate::runtime::testing::{Cluster, Node, eventually_async};
use crate::runtime::worker::Shared;
use crate::secret::Kek;
use crate::tls::{self, Credentials, EndpointKeys};

/// What a played worker does with requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Answers with the code OK and its site's number as the amount.
    Answer,
    /// Says that it does not lead.
    Refuse,
    /// Keeps them.
    Keep,
}

struct State {
    mode: Mode,
    seen: Vec<(Waiter, u16, u64)>,
    kept: Vec<Waiter>,
    closed: Vec<u64>,
}

/// A played worker: a thread at the other end of an exchange.
struct Worker {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    fn start(site: u8, exchange: Arc<Exchange>) -> Self {
        let state = State { mode: Mode::Answer, seen: vec![], kept: vec![], closed: vec![] };
        let (state, stop) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (state_2, stop_2) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stop_2.load(Ordering::Acquire) {
                Self::turn(site, &exchange, &mut state_2.lock().unwrap());
                exchange.park(1_000, true);
            }
        });
        Self { state, stop, thread: Some(thread) }
    }

    fn turn(site: u8, exchange: &Exchange, state: &mut State) {
        let mut out = exchange.out_batch();
        let mode = state.mode;
        let mut waiters = if mode == Mode::Keep { vec![] } else { std::mem::take(&mut state.kept) };
        while let Some(batch) = exchange.pop() {
            for (_, item) in &batch.items {
                let origin = match item {
                    Item::Query(order) | Item::Close(order) | Item::Reverse(order) => &order.origin,
                    Item::Refund(refund) => &refund.origin,
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
            let code = if mode == Mode::Refuse { Code::NotLeader } else { Code::Ok };
            let mut reply = Reply::refusal(waiter, code, 0);
            match &mut reply.body {
                ReplyBody::Order(body) => body.amount = site.into(),
                ReplyBody::Refund(body) => body.amount = site.into(),
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
struct Site {
    node: Option<Node>,
    mesh: Arc<Mesh>,
    net: Rc<Net>,
    worker: Worker,
    address: SocketAddr,
    _endpoint: quinn::Endpoint,
}

fn mch_id() -> MchId {
    MchId::parse(b"M000001").unwrap()
}

/// The shard of all requests here.
fn shard() -> u16 {
    mch_id().shard(12)
}

fn merchant() -> Merchant {
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

impl Site {
    fn start(cluster: &Cluster, number: u8, outstanding_max: usize) -> Self {
        let mut config = cluster.config(number).clone();
        config.gateways[0].trust_certificate = true;
        let node = Node::start(&config);
        let shared = &node.shared;
        let worker = Worker::start(number, Arc::clone(&shared.exchange));
        let of_worker = Arc::new(Shared {
            exchange: Arc::clone(&shared.exchange),
            metrics: Arc::clone(&shared.metrics),
            mesh: Arc::clone(&shared.mesh),
            leave: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            storage_full: AtomicBool::new(false),
            report: Mutex::default(),
        });
        let control = Arc::new(NodeControl::new(&config, of_worker, Instant::now()));
        let kek = Arc::new(Kek::load(&config.keys.kek).unwrap());
        let mut directory = Directory::new(kek, 300_000);
        directory.put(&merchant());
        let settings = NetSettings {
            shards: config.shards,
            site: number,
            sites: config.sites.len() as u8,
            cluster: config.cluster,
            in_flight_max: 1_000,
            outstanding_max,
            // The machine may stand still: not what is tested here.
            queue_delay_max_us: 60_000_000,
            batch_items_max: 4_096,
        };
        let forward =
            Forwarder::new(Arc::clone(&shared.mesh), Arc::clone(&shared.ferry), 60_000_000);
        let net = Net::new(
            settings,
            vec![Arc::clone(&shared.exchange)],
            directory,
            Arc::clone(&shared.metrics),
            control,
            Some(forward),
        );
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
        Self { node: Some(node), mesh, net, worker, address, _endpoint: endpoint }
    }

    /// Lets the site believe that another one leads.
    fn believe(&self, leader: u8) {
        self.mesh.publish_leader(shard(), 1, leader);
    }

    fn worker(&self) -> MutexGuard<'_, State> {
        self.worker.state.lock().unwrap()
    }

    fn forward(&self) -> &Forwarder {
        self.net.forward.as_ref().unwrap()
    }

    async fn sees(&self, requests: usize) {
        let seen = || self.worker().seen.len() >= requests;
        eventually_async("the worker sees the requests", seen).await;
    }

    /// Nothing is left of any request.
    fn is_idle(&self) -> bool {
        let forward = self.forward();
        self.net.outstanding.get() == 0
            && forward.held.borrow().tickets(|_| true).is_empty()
            && forward.waiting.borrow().is_empty()
            && forward.sites.iter().all(|site| site.asked.get() == 0 && site.taken.get() == 0)
    }

    /// The process dies, as far as other sites can see.
    async fn die(&mut self) {
        let node = self.node.take().unwrap();
        tokio::task::spawn_blocking(move || node.peers.kill()).await.unwrap();
    }
}

/// A gateway with one stream.
struct Gateway {
    _endpoint: quinn::Endpoint,
    _quic: quinn::Connection,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    splitter: Splitter,
    answers: VecDeque<(u64, ReplyBody)>,
}

impl Gateway {
    async fn connect(cluster: &Cluster, site: &Site) -> Self {
        let file = |name: &str| cluster.dir.path().join("certs").join(name);
        let ca = file("ca.pem");
        let credentials = Credentials::load(&file("gw-1.pem"), &file("gw-1.key"), &ca).unwrap();
        let tls = credentials.client(tls::ALPN_GATEWAY).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let name = &cluster.config(site.mesh.site()).this_site().server_name;
        let quic = endpoint.connect_with(config, site.address, name).unwrap().await.unwrap();
        let (send, recv) = quic.open_bi().await.unwrap();
        let (splitter, answers) = (Splitter::new(), VecDeque::new());
        Self { _endpoint: endpoint, _quic: quic, send, recv, splitter, answers }
    }

    async fn query(&mut self, correlation: u64, wait_ms: u32) {
        let request = OrderRequest {
            mch_id: mch_id(),
            order: OrderRef::OutTradeNo(OutTradeNo::parse(b"T1").unwrap()),
            refresh: false,
            wait_ms,
            auth: Auth::NONE,
        };
        let mut frame = Vec::new();
        request.encode_frame(kind::QUERY, correlation, &mut frame);
        self.send.write_all(&frame).await.unwrap();
    }

    async fn refund(&mut self, correlation: u64) {
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

    /// Correlation, code, hint, the answering site's number, retry_after_ms.
    async fn answer(&mut self) -> (u64, Code, u8, i64, u32) {
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

/// Runs a test with `count` sites that are linked, and a gateway at the first.
fn with_sites<F: Future<Output = ()>>(
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

async fn idle(sites: &[Site]) {
    for site in sites {
        eventually_async("nothing is left of the requests", || site.is_idle()).await;
    }
}

#[test]
fn a_request_is_answered_through_its_leader_with_a_hint() {
    with_sites(2, 1_000, |cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        gateway.query(7, 20_000).await;
        assert_eq!(gateway.answer().await, (7, Code::Ok, 2, 2, 0));
        gateway.refund(8).await;
        assert_eq!(gateway.answer().await, (8, Code::Ok, 2, 2, 0));
        {
            let worker = sites[1].worker();
            let (waiter, gateway, wait_us) = worker.seen[0];
            assert_eq!((waiter.kind, gateway), (kind::QUERY, 1));
            assert!((1..=20_000_000).contains(&wait_us));
        }
        assert!(sites[0].worker().seen.is_empty());
        // Asked where it is led, the answer needs no hint.
        let mut other = Gateway::connect(&cluster, &sites[1]).await;
        other.query(9, 0).await;
        assert_eq!(other.answer().await, (9, Code::Ok, 0, 2, 0));
        idle(&sites).await;
        let metrics = sites[0].net.metrics.peer(2).unwrap();
        assert!(metrics.forwarded.value() >= 2 && metrics.forwarded_here.value() == 0);
        assert!(sites[1].net.metrics.peer(1).unwrap().forwarded_here.value() >= 2);
    });
}

#[test]
fn many_requests_are_all_answered_once() {
    with_sites(2, 10_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        for correlation in 0..900 {
            gateway.query(correlation, 0).await;
        }
        let mut answered = Vec::new();
        for _ in 0..900 {
            let (correlation, code, hint, ..) = gateway.answer().await;
            assert_eq!((code, hint), (Code::Ok, 2));
            answered.push(correlation);
        }
        answered.sort_unstable();
        assert!(answered.into_iter().eq(0..900));
        idle(&sites).await;
    });
}

#[test]
fn without_a_leader_a_request_waits_for_one() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        for leader in [1, 2] {
            sites.iter().for_each(|site| site.believe(0));
            gateway.query(u64::from(leader), 0).await;
            let forward = sites[0].forward();
            let waits = || forward.waiting.borrow().len() == 1;
            eventually_async("it waits", waits).await;
            sites.iter().for_each(|site| site.believe(leader));
            let hint = if leader == 1 { 0 } else { leader };
            let expected = (u64::from(leader), Code::Ok, hint, i64::from(leader), 0);
            assert_eq!(gateway.answer().await, expected);
        }
        idle(&sites).await;
    });
}

#[test]
fn a_request_that_finds_no_leader_in_time_is_told_so() {
    with_sites(2, 1_000, |_cluster, mut sites, mut gateway| async move {
        gateway.query(1, 30).await;
        let (_, code, hint, _, retry_ms) = gateway.answer().await;
        assert_eq!((code, hint), (Code::NoLeader, 0));
        assert!(retry_ms > 0);
        // A leader that cannot be reached from here may be from elsewhere.
        sites[0].believe(2);
        sites[1].die().await;
        let mesh = Arc::clone(&sites[0].mesh);
        eventually_async("the link is lost", || !mesh.route(2).unwrap().is_up()).await;
        gateway.query(2, 30).await;
        let (_, code, hint, _, retry_ms) = gateway.answer().await;
        assert_eq!((code, hint), (Code::NotLeader, 2));
        assert!(retry_ms > 0);
        idle(&sites[..1]).await;
    });
}

#[test]
fn what_the_own_worker_refuses_goes_to_the_new_leader() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(1));
        sites[0].worker().mode = Mode::Refuse;
        gateway.refund(3).await;
        sites[0].sees(1).await;
        sites.iter().for_each(|site| site.believe(2));
        assert_eq!(gateway.answer().await, (3, Code::Ok, 2, 2, 0));
        idle(&sites).await;
    });
}

#[test]
fn a_leader_that_falls_silent_is_followed_by_the_next_one() {
    with_sites(3, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(4, 0).await;
        sites[1].sees(1).await;
        sites.iter().for_each(|site| site.believe(3));
        assert_eq!(gateway.answer().await, (4, Code::Ok, 3, 3, 0));
        // The old one's late answer is nobody's.
        sites[1].worker().mode = Mode::Answer;
        idle(&sites).await;
        gateway.query(5, 0).await;
        assert_eq!(gateway.answer().await, (5, Code::Ok, 3, 3, 0));
    });
}

#[test]
fn what_was_at_a_site_whose_link_is_lost_goes_to_the_new_leader() {
    with_sites(2, 1_000, |_cluster, mut sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(6, 0).await;
        sites[1].sees(1).await;
        sites[1].die().await;
        let forward = sites[0].forward();
        let waits = || forward.waiting.borrow().len() == 1;
        eventually_async("it is remembered", waits).await;
        sites[0].believe(1);
        assert_eq!(gateway.answer().await, (6, Code::Ok, 0, 1, 0));
        idle(&sites[..1]).await;
    });
}

#[test]
fn requests_of_a_site_that_is_gone_are_waited_for_no_longer() {
    with_sites(2, 1_000, |_cluster, mut sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(6, 0).await;
        sites[1].sees(1).await;
        assert_eq!(sites[1].net.outstanding.get(), 1);
        let waiter = sites[1].worker().kept[0];
        sites[0].die().await;
        idle(&sites[1..]).await;
        let told = || sites[1].worker().closed.contains(&waiter.connection);
        eventually_async("the engines are told", told).await;
        // Its answer comes too late and is dropped.
        sites[1].worker().mode = Mode::Answer;
        let answered = || sites[1].worker().kept.is_empty();
        eventually_async("it is answered", answered).await;
        assert!(sites[1].is_idle());
    });
}

#[test]
fn a_gateway_that_is_gone_leaves_nothing_behind() {
    with_sites(2, 1_000, |cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(6, 0).await;
        sites[1].sees(1).await;
        drop(gateway);
        idle(&sites[..1]).await;
        // Its answer finds nobody, and harms nobody.
        sites[1].worker().mode = Mode::Answer;
        idle(&sites).await;
        let mut next = Gateway::connect(&cluster, &sites[0]).await;
        next.query(1, 0).await;
        assert_eq!(next.answer().await, (1, Code::Ok, 2, 2, 0));
    });
}

#[test]
fn no_request_makes_a_second_hop() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        // Each believes in the other.
        sites[0].believe(2);
        sites[1].believe(1);
        gateway.query(1, 100).await;
        let (_, code, hint, ..) = gateway.answer().await;
        assert_eq!((code, hint), (Code::NotLeader, 2));
        idle(&sites).await;
        assert!(sites.iter().all(|site| site.worker().seen.is_empty()));
        assert_eq!(sites[1].net.metrics.peer(1).unwrap().forwarded.value(), 0);
        // Refused requests pause before they ask again. (A link that is lost,
        // because the machine stood still, lets them ask at once.)
        let asked = sites[0].net.metrics.peer(2).unwrap().forwarded.value();
        assert!(asked <= 6 || sites[0].mesh.route(2).unwrap().losses() > 0, "{asked}");
    });
}

#[test]
fn a_stopping_leader_takes_no_more_and_finishes_what_it_has() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        gateway.query(1, 0).await;
        sites[1].sees(1).await;
        sites[1].net.draining.set(true);
        gateway.query(2, 0).await;
        let refused = || sites[1].net.metrics.peer(1).unwrap().forwarded_here.value() >= 2;
        eventually_async("the second is refused", refused).await;
        assert!(sites[1].net.outstanding.get() >= 1, "the first is waited for");
        sites[1].worker().mode = Mode::Answer;
        assert_eq!(gateway.answer().await, (1, Code::Ok, 2, 2, 0));
        sites.iter().for_each(|site| site.believe(1));
        assert_eq!(gateway.answer().await, (2, Code::Ok, 0, 1, 0));
        idle(&sites).await;
    });
}

#[test]
fn unanswered_requests_are_bounded_at_both_ends() {
    with_sites(2, 3, |cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        sites[1].worker().mode = Mode::Keep;
        for correlation in 1..=3 {
            gateway.query(correlation, 0).await;
        }
        sites[1].sees(3).await;
        let overloaded = |answer: (u64, Code, u8, i64, u32)| {
            assert_eq!((answer.0, answer.1), (4, Code::Overloaded));
            assert!(answer.4 > 0, "it says when to come back");
        };
        // The asking site's bound, and the leader's for its own gateways.
        gateway.query(4, 0).await;
        overloaded(gateway.answer().await);
        let mut other = Gateway::connect(&cluster, &sites[1]).await;
        other.query(4, 0).await;
        overloaded(other.answer().await);
        // The leader's bound for forwarded ones.
        sites[1].worker().mode = Mode::Answer;
        for _ in 1..=3 {
            assert_eq!(gateway.answer().await.1, Code::Ok);
        }
        idle(&sites).await;
        sites[1].net.outstanding.set(3);
        gateway.query(4, 0).await;
        let answer = gateway.answer().await;
        assert_eq!(answer.2, 2);
        overloaded(answer);
        sites[1].net.outstanding.set(0);
    });
}

#[test]
fn packets_that_cannot_be_read_are_counted_and_harm_nobody() {
    with_sites(2, 1_000, |_cluster, sites, mut gateway| async move {
        sites.iter().for_each(|site| site.believe(2));
        let route = sites[0].mesh.route(2).unwrap();
        route.offer_forwards(vec![0xff; 40]).unwrap();
        let metrics = sites[1].net.metrics.peer(1).unwrap();
        eventually_async("it is counted", || metrics.malformed.value() == 1).await;
        sites[1].mesh.route(1).unwrap().offer_answers(vec![0xff; 40]).unwrap();
        let metrics = sites[0].net.metrics.peer(2).unwrap();
        eventually_async("it is counted", || metrics.malformed.value() == 1).await;
        // A request of no known kind, or with a body that is none, is refused.
        for (kind, body) in [(kind::SUBSCRIBE, &b""[..]), (kind::PAY, &b"no"[..])] {
            let mut packet = Vec::new();
            let request = Request { ticket: 1, wait_ms: 0, gateway: 1, kind, second: false, body };
            request.encode(&mut packet);
            route.offer_forwards(packet).unwrap();
        }
        let metrics = sites[1].net.metrics.peer(1).unwrap();
        eventually_async("they arrive", || metrics.forwarded_here.value() == 2).await;
        gateway.query(1, 0).await;
        assert_eq!(gateway.answer().await, (1, Code::Ok, 2, 2, 0));
        let only_queries = sites[1].worker().seen.iter().all(|(w, ..)| w.kind == kind::QUERY);
        assert!(only_queries);
        idle(&sites).await;
    });
}
