//! The front on loopback, without a worker: what it hands in is looked at in its place.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use protocol::code::{Code, OrderState};
use protocol::frame::{HEADER_LEN, Header};
use protocol::id::{MchId, OutTradeNo};
use protocol::message::{Ack, Auth, OrderRef, OrderReply, OrderRequest, Ping, Subscribe};

use super::*;
use crate::config::GatewayEntry;
use crate::engine::merchant::{Limits, Merchant, MerchantStatus};
use crate::metrics::Metrics;
use crate::runtime::control::NodeControl;
use crate::runtime::directory::Directory;
use crate::runtime::inbox::Exchange;
use crate::runtime::mesh::Mesh;
use crate::runtime::net::NetSettings;
use crate::runtime::testing::{Cluster, eventually_async};
use crate::runtime::window::Times;
use crate::runtime::worker::Shared;
use crate::secret::Kek;
use crate::tls::{Credentials, EndpointKeys};

const OUTSTANDING_MAX: usize = 8;
/// Batches that the worker, which does not run, has room for.
const BATCHES: usize = 2;

struct Site {
    front: Rc<Front>,
    net: Rc<Net>,
    exchange: Arc<Exchange>,
    endpoint: quinn::Endpoint,
    client: quinn::Endpoint,
}

fn mch_id() -> MchId {
    MchId::parse(b"M000001").unwrap()
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
    fn new(cluster: &Cluster, outstanding_max: usize, gateways: u16) -> Self {
        let mut config = cluster.config(1).clone();
        config.gateways[0].trust_certificate = true;
        config.gateways.extend((2..=gateways).map(|number| GatewayEntry {
            number,
            name: format!("gw-{number}"),
            trust_certificate: true,
        }));
        let net_wake = Arc::new(tokio::sync::Notify::new());
        let exchange = Arc::new(Exchange::new(BATCHES, storage::Notify::new().unwrap(), net_wake));
        let shared = Arc::new(Shared {
            exchange: Arc::clone(&exchange),
            metrics: Arc::new(Metrics::new(&config)),
            mesh: Arc::new(Mesh::new(1, 1, config.shards)),
            leave: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            storage_full: AtomicBool::new(false),
            log_is_empty: Arc::default(),
            report: Mutex::default(),
        });
        let metrics = Arc::clone(&shared.metrics);
        let control = Arc::new(NodeControl::new(&config, shared, Instant::now()));
        let kek = Arc::new(Kek::load(&config.keys.kek).unwrap());
        let mut directory = Directory::new(kek, 300_000);
        directory.put(&merchant());
        let settings = NetSettings {
            shards: config.shards,
            site: 1,
            sites: 1,
            cluster: config.cluster,
            in_flight_max: 1_000,
            gateways: gateways.into(),
            outstanding_max,
            queue_delay_max_us: 60_000_000,
            delay_target_us: 60_000_000,
            awake_share_percent: 0,
            awake_latency_us: 0,
            batch_items_max: 1_000,
        };
        let exchanges = vec![Arc::clone(&exchange)];
        let net = Net::new(settings, exchanges, directory, metrics, control, None);
        tokio::task::spawn_local(Rc::clone(&net).run_flusher());
        let keys = EndpointKeys::load_or_create(&config.data_dir).unwrap();
        let endpoint = quinn::Endpoint::new(
            tls::gateway_endpoint(&config.gateway, &keys),
            Some(tls::gateway_server(&config.gateway, &keys).unwrap()),
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
            Arc::new(quinn::TokioRuntime),
        )
        .unwrap();
        let file = |name: &str| cluster.dir.path().join("certs").join(name);
        let (cert, key) = (file("gw-1.pem"), file("gw-1.key"));
        let credentials = Credentials::load(&cert, &key, &file("ca.pem")).unwrap();
        let tls = credentials.client(tls::ALPN_GATEWAY).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        client.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let front = Rc::new(Front { net: Rc::clone(&net), config: Rc::new(config) });
        Self { front, net, exchange, endpoint, client }
    }

    fn serve(&self) {
        tokio::task::spawn_local(Rc::clone(&self.front).run(self.endpoint.clone()));
    }

    async fn connect(&self) -> quinn::Connection {
        let address = self.endpoint.local_addr().unwrap();
        let name = &self.front.config.this_site().server_name;
        self.client.connect(address, name).unwrap().await.unwrap()
    }

    /// Connections of gateways by their numbers, as `serve` registers them.
    async fn registered(&self, gateways: &[u16]) -> Vec<Rc<Connection>> {
        let accept = async { self.endpoint.accept().await.unwrap().await.unwrap() };
        let (quic, _client) = tokio::join!(accept, self.connect());
        let register = |&gateway: &u16| {
            let peer = Peer { trusted: true, ..self.front.judge(&quic).unwrap().0 };
            self.net.register(|id| self.front.connection(id, peer, gateway, &quic))
        };
        gateways.iter().map(register).collect()
    }

    /// What was handed to the worker, whose batches are taken off.
    fn handed_in(&self) -> Vec<Item> {
        let mut items = Vec::new();
        while let Some(mut batch) = self.exchange.pop() {
            items.extend(batch.items.drain(..).map(|(_, item)| item));
            self.exchange.recycle(batch);
        }
        items
    }

    /// As `read` does it.
    fn take(&self, connection: &Rc<Connection>, stream: &Rc<Stream>, frame: &[u8]) -> bool {
        let (head, body) = frame.split_first_chunk::<HEADER_LEN>().unwrap();
        let header = Header::decode(head).unwrap();
        request::frame(&self.net, connection, stream, header, body, clock::now())
    }
}

fn query(correlation: u64) -> Vec<u8> {
    let request = OrderRequest {
        mch_id: mch_id(),
        order: OrderRef::OutTradeNo(OutTradeNo::parse(b"T1").unwrap()),
        refresh: false,
        wait_ms: 0,
        auth: Auth::NONE,
    };
    let mut frame = Vec::new();
    request.encode_frame(kind::QUERY, correlation, &mut frame);
    frame
}

fn subscribe(correlation: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    Subscribe.encode_frame(correlation, &mut frame);
    frame
}

fn ack(event_id: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    Ack { event_id }.encode_frame(1, &mut frame);
    frame
}

fn event(event_id: u64) -> Event {
    Event {
        event_id,
        sequence: 1,
        mch_id: mch_id(),
        out_trade_no: OutTradeNo::parse(b"T1").unwrap(),
        transaction_id: protocol::id::TransactionId::new(0, 1),
        state: OrderState::Paid,
        reason: protocol::code::Reason::None,
        out_refund_no: ShortText::EMPTY,
        refund_state: protocol::code::RefundState::None,
        amount: 1,
        currency: protocol::money::Currency::new(*b"CNY").unwrap(),
        at_ms: 1,
    }
}

/// The one order reply in a stream's buffer, which it leaves empty.
fn told(stream: &Stream) -> OrderReply {
    let bytes = stream.buffer.take();
    let (head, body) = bytes.split_first_chunk::<HEADER_LEN>().expect("an answer");
    assert_eq!(Header::decode(head).unwrap().length as usize, body.len());
    OrderReply::decode(body).unwrap()
}

/// Runs with a site of its own that knows two gateways, on one thread.
fn with_site(test: impl AsyncFnOnce(Site)) {
    with_gateways(2, test);
}

fn with_gateways(gateways: u16, test: impl AsyncFnOnce(Site)) {
    with_room(OUTSTANDING_MAX, gateways, test);
}

fn with_room(outstanding_max: usize, gateways: u16, test: impl AsyncFnOnce(Site)) {
    let cluster = Cluster::new(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { test(Site::new(&cluster, outstanding_max, gateways)).await });
}

#[test]
fn who_was_told_to_go_is_waited_for_only_while_something_is_unanswered() {
    let second = 1_000_000;
    for (told_us, in_flight, ended) in [
        (0, 0, false),
        (2 * second, 0, false),
        (2 * second + 1, 0, true),
        (2 * second + 1, 1, false),
        (10 * second, 1, false),
        (10 * second + 1, 1, true),
    ] {
        assert_eq!(has_had_its_time(told_us, in_flight), ended, "{told_us} {in_flight}");
    }
}

/// The streams that arrive with the end of a connection are read after it was forgotten.
#[test]
fn what_is_read_of_a_connection_that_is_gone_leaves_nothing_behind() {
    with_site(async |site| {
        let connections = site.registered(&[1, 1]).await;
        for (connection, forgotten) in connections.iter().zip([true, false]) {
            let stream = connection.streams.open().unwrap();
            assert!(!site.take(connection, &stream, &query(1)));
            assert_eq!((site.net.outstanding.get(), connection.of_gateway.get()), (1, 1));
            if forgotten {
                site.net.unregister(connection);
            } else {
                // Closed by us, and not forgotten yet.
                connection.close(CloseCode::SlowPeer, "test");
            }
            assert!(!site.take(connection, &stream, &query(2)));
            assert!(!site.take(connection, &stream, &subscribe(3)));
            assert!(!stream.subscribed.get());
            if !forgotten {
                site.net.unregister(connection);
            }
            assert_eq!((site.net.outstanding.get(), connection.of_gateway.get()), (0, 0));
        }
        let mut items = Vec::new();
        eventually_async("the batch is handed over", || {
            items.extend(site.handed_in());
            items.len() >= 4
        })
        .await;
        assert!(!items.iter().any(|item| matches!(item, Item::Subscribe(..))));
    });
}

#[test]
fn one_gateway_has_half_of_the_room_and_the_others_the_rest() {
    with_site(async |site| {
        let connections = site.registered(&[1, 1, 2]).await;
        let streams: Vec<_> = connections.iter().map(|it| it.streams.open().unwrap()).collect();
        let ask = |at: usize, correlation: u64| {
            let refused = site.take(&connections[at], &streams[at], &query(correlation));
            refused.then(|| told(&streams[at]))
        };
        for correlation in 0..OUTSTANDING_MAX as u64 / 2 {
            assert!(ask(correlation as usize % 2, correlation).is_none());
        }
        for at in [0, 1] {
            let refused = ask(at, 100).expect("its half is used up, whatever the connection");
            assert_eq!((refused.code, refused.state), (Code::Overloaded, OrderState::None));
            assert!(refused.retry_after_ms > 0);
        }
        for correlation in 0..OUTSTANDING_MAX as u64 / 2 {
            assert!(ask(2, correlation).is_none(), "the other gateway is served");
        }
        assert_eq!(site.net.outstanding.get(), OUTSTANDING_MAX);
        // An answer makes room for its gateway, and so does the end of a connection.
        let waiter = Waiter {
            connection: connections[0].id,
            stream: streams[0].slot,
            kind: kind::QUERY,
            correlation: 0,
        };
        let mut dirty = Vec::new();
        site.net.reply(&Reply::refusal(waiter, Code::OrderNotFound, 0), 0, &mut dirty);
        assert_eq!(told(&streams[0]).code, Code::OrderNotFound);
        assert!(ask(1, 101).is_none());
        assert!(ask(1, 102).is_some());
        site.net.unregister(&connections[0]);
        assert!(ask(1, 102).is_none());
        assert_eq!(connections[1].of_gateway.get(), OUTSTANDING_MAX / 2);
    });
}

#[test]
fn a_gateway_that_is_alone_has_all_of_the_room() {
    with_gateways(1, async |site| {
        let connection = site.registered(&[1]).await.remove(0);
        let stream = connection.streams.open().unwrap();
        for correlation in 0..OUTSTANDING_MAX as u64 {
            assert!(!site.take(&connection, &stream, &query(correlation)));
        }
        assert!(site.take(&connection, &stream, &query(100)));
        assert_eq!(told(&stream).code, Code::Overloaded);
    });
}

#[test]
fn a_closed_window_refuses_before_it_looks_and_lets_in_who_has_little() {
    with_room(1_000, 2, async |site| {
        let connections = site.registered(&[1, 2]).await;
        let streams: Vec<_> = connections.iter().map(|it| it.streams.open().unwrap()).collect();
        let mut late = Times::default();
        late.turn.add(u64::from(u32::MAX), 1);
        let start_us = clock::mono_us();
        for at in 1..1_000 {
            site.net.window().measured(&late, 0, start_us + at * 1_000);
        }
        let size = site.net.unanswered_max(start_us);
        assert!(size < 1_000, "{size}");
        site.net.outstanding.set(size);
        connections[0].of_gateway.set(size / 2);
        let garbled = &query(7)[..HEADER_LEN + 1];
        for (at, expected) in [(0, Code::Overloaded), (1, Code::MalformedBody)] {
            assert!(site.take(&connections[at], &streams[at], garbled));
            assert_eq!(told(&streams[at]).code, expected);
        }
    });
}

#[test]
fn an_acknowledgement_counts_only_where_events_flow() {
    with_site(async |site| {
        let connection = site.registered(&[1]).await.remove(0);
        let (other, stream) =
            (connection.streams.open().unwrap(), connection.streams.open().unwrap());
        site.take(&connection, &other, &ack(7));
        assert!(site.take(&connection, &stream, &subscribe(3)), "answered");
        site.take(&connection, &stream, &ack(8));
        site.take(&connection, &other, &ack(9));
        let mut items = Vec::new();
        eventually_async("the batch is handed over", || {
            items.extend(site.handed_in());
            items.len() >= 2
        })
        .await;
        let [Item::Subscribe(subscriber, 1), Item::EventAck(8, waiter)] = items[..] else {
            panic!("{} items", items.len())
        };
        let named = (connection.id, stream.name);
        assert_eq!((subscriber.connection, subscriber.stream), named);
        assert_eq!((waiter.connection, waiter.stream), named);
        other.closed.set(true);
        assert!(!site.take(&connection, &other, &subscribe(4)), "nobody would hear the events");
        assert!(!other.subscribed.get());
    });
}

#[test]
fn a_subscription_ends_with_its_stream_and_its_events_reach_no_other() {
    with_site(async |site| {
        site.serve();
        let quic = site.connect().await;
        let mut items = Vec::new();
        let mut wait_for = async |what: &str, is_it: &dyn Fn(&Item) -> bool| {
            let mut found = None;
            eventually_async(what, || {
                items.extend(site.handed_in());
                found = items.iter().position(is_it);
                found.is_some()
            })
            .await;
            items.remove(found.unwrap())
        };
        let mut ended = Vec::new();
        for reset in [true, false] {
            let (mut send, mut recv) = quic.open_bi().await.unwrap();
            send.write_all(&subscribe(5)).await.unwrap();
            let subscribed = wait_for("subscribed", &|item| matches!(item, Item::Subscribe(..)));
            let Item::Subscribe(waiter, 1) = subscribed.await else { panic!("gateway 1") };
            if reset {
                send.reset(0_u32.into()).unwrap()
            } else {
                send.finish().unwrap()
            }
            let unsubscribed =
                wait_for("unsubscribed", &|item| matches!(item, Item::Unsubscribe(..))).await;
            let Item::Unsubscribe(connection, stream) = unsubscribed else { unreachable!() };
            assert_eq!((connection, stream), (waiter.connection, waiter.stream));
            // Then the server finishes its side: the answer, and no more.
            let answer = recv.read_to_end(1_000).await.unwrap();
            assert_eq!(answer.len(), HEADER_LEN + 2);
            ended.push(waiter);
        }
        assert_eq!(stream_slot(ended[0].stream), stream_slot(ended[1].stream), "one slot");
        assert_ne!(ended[0].stream, ended[1].stream);

        // An event that was under way finds its slot taken by another subscription.
        let connection = site.net.connections().remove(0);
        let stream = connection.streams.open().unwrap();
        stream.subscribed.set(true);
        assert_eq!(stream.slot, stream_slot(ended[0].stream));
        let mut dirty = Vec::new();
        for waiter in &ended {
            assert!(!connection.event(waiter, &event(1), &mut dirty));
        }
        assert!(stream.buffer.borrow().is_empty() && dirty.is_empty());
        let waiter = Waiter { stream: stream.name, ..ended[0] };
        assert!(connection.event(&waiter, &event(1), &mut dirty));
        assert!(!stream.buffer.take().is_empty());
        stream.subscribed.set(false);
        assert!(!connection.event(&waiter, &event(1), &mut dirty));
        assert!(stream.buffer.borrow().is_empty(), "unsubscribed meanwhile");
    });
}

/// Nothing refuses an acknowledgement: the streams that bring too many are not read.
#[test]
fn acknowledgements_wait_while_the_worker_does_not_take_them() {
    const ACKS: u64 = 100_000;
    with_site(async |site| {
        site.serve();
        let quic = site.connect().await;
        let (mut send, _recv) = quic.open_bi().await.unwrap();
        send.write_all(&subscribe(5)).await.unwrap();
        let written = tokio::task::spawn_local(async move {
            for id in 0..ACKS {
                send.write_all(&ack(id)).await.unwrap();
            }
            send.finish().unwrap();
        });
        eventually_async("the worker is behind", || site.net.is_crowded()).await;
        // What would come all the same has time to.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (mut next, mut most) = (0, 0);
        eventually_async("all of them come", || {
            let items = site.handed_in();
            most = most.max(items.len());
            for item in items {
                if let Item::EventAck(event_id, _) = item {
                    assert_eq!(event_id, next, "in order, none left out");
                    next += 1;
                }
            }
            next == ACKS
        })
        .await;
        written.await.unwrap();
        // The batches of the queue, each half full and what one piece of a stream holds.
        let window = site.front.config.gateway.stream_receive_window_kib as usize * 1024;
        let batch = site.net.settings.batch_items_max / 2 + window / ack(0).len();
        assert!(most <= BATCHES * batch, "{most} at once");
    });
}

/// What the front answers itself is bounded as answers of the worker are.
#[test]
fn who_reads_no_answers_of_the_front_is_closed() {
    with_site(async |site| {
        site.serve();
        let (quic, bystander) = (site.connect().await, site.connect().await);
        let (mut send, _unread) = quic.open_bi().await.unwrap();
        // A ping, a kind that does not exist, and a query that cannot be read.
        let mut asked = Vec::new();
        Ping { token: 7 }.encode_frame(1, &mut asked);
        for kind in [0x77, kind::QUERY] {
            asked.extend([0, 0, 0, 0, kind, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        }
        let many = asked.repeat(1_000);
        // Far more than all windows between here and there.
        let (mut sent, mut highest) = (0, 0);
        while sent < 32 << 20 && send.write_all(&many).await.is_ok() {
            sent += many.len();
            for connection in site.net.connections() {
                connection.streams.each(|it| highest = highest.max(it.buffer.borrow().len()));
            }
        }
        eventually_async("it is closed", || quic.close_reason().is_some()).await;
        let Some(quinn::ConnectionError::ApplicationClosed(close)) = quic.close_reason() else {
            panic!("closed otherwise, {sent} bytes sent")
        };
        assert_eq!(close.error_code, CloseCode::SlowPeer.wire().into());
        // Behind the bound comes what one piece of a stream asks for.
        assert!(highest <= 2 * UNREAD_MAX, "{highest} bytes unread");
        let (mut send, mut recv) = bystander.open_bi().await.unwrap();
        send.write_all(&asked).await.unwrap();
        send.finish().unwrap();
        let answers = recv.read_to_end(1_000).await.unwrap();
        assert!(answers.len() > 3 * HEADER_LEN, "others are served");
    });
}
