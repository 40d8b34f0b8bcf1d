use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use quinn::{ConnectionError, Endpoint};

use super::*;
use crate::runtime::mesh::Urgency;
use crate::runtime::testing::{Cluster, Node, eventually};

fn received(node: &Node) -> Packet {
    let mut packet = None;
    eventually("a packet arrives", || {
        packet = node.shared.exchange.pop_packet();
        packet.is_some()
    });
    packet.unwrap()
}

fn arrived(node: &Node) -> Arrival {
    let mut arrival = None;
    eventually("something arrives", || {
        arrival = node.shared.ferry.pop();
        arrival.is_some()
    });
    arrival.unwrap()
}

fn until_arrived(node: &Node, send: impl Fn(), is_it: impl Fn(Arrival) -> bool) {
    eventually("it arrives", || match node.shared.ferry.pop() {
        Some(arrival) => is_it(arrival),
        None => {
            send();
            false
        }
    });
}

fn send(node: &Node, to: u8, urgency: Urgency, packet: Vec<u8>) {
    assert!(node.shared.mesh.route(to).unwrap().offer(urgency, packet));
}

#[test]
fn links_come_up_and_carry_packets_both_ways() {
    let cluster = Cluster::new(3);
    let nodes: Vec<Node> = (1..=3).map(|site| cluster.start(site)).collect();
    nodes.iter().for_each(Node::linked);
    let large: Vec<u8> = (0..5 << 20).map(|at: u32| at as u8).collect();
    for (from, to) in [(1, 2), (2, 1), (3, 1), (1, 3)] {
        let (sender, receiver) = (&nodes[from - 1], &nodes[to - 1]);
        for (urgency, packet) in
            [(Urgency::Urgent, vec![from as u8; 7]), (Urgency::Bulk, large.clone())]
        {
            send(sender, to as u8, urgency, packet.clone());
            let got = received(receiver);
            assert_eq!(got.from as usize, from);
            assert!(got.bytes == packet);
        }
    }
    let metrics = nodes[0].shared.metrics.peer(2).unwrap();
    assert_eq!((metrics.up.value(), metrics.packets_sent.value()), (1, 2));
    assert_eq!(metrics.bytes_received.value(), large.len() as u64 + 7);
}

#[test]
fn forwards_and_answers_reach_the_network_thread() {
    let cluster = Cluster::new(2);
    let nodes = [cluster.start(1), cluster.start(2)];
    nodes.iter().for_each(Node::linked);
    // Sent until it arrives: a machine that stands still for long enough loses the link.
    let asks = || drop(nodes[0].shared.mesh.route(2).unwrap().offer_forwards(vec![1, 2, 3]));
    until_arrived(&nodes[1], asks, |arrival| match arrival {
        Arrival::Forwards { from: 1, packet, .. } => packet == [1, 2, 3][..],
        _ => false,
    });
    let answers = || drop(nodes[1].shared.mesh.route(1).unwrap().offer_answers(vec![4; 5000]));
    until_arrived(&nodes[0], answers, |arrival| match arrival {
        Arrival::Answers { from: 2, packet } => packet == [4; 5000][..],
        _ => false,
    });
}

#[test]
fn a_killed_site_is_reported_and_its_return_carries_packets() {
    let cluster = Cluster::new(2);
    let (one, two) = (cluster.start(1), cluster.start(2));
    one.linked();
    two.linked();
    let watched = || one.shared.metrics.peer(2).unwrap().watched.value() == 1;
    eventually("its process is watched", watched);
    two.peers.kill();
    let shared = two.shared;
    eventually("its death is seen", || one.shared.mesh.take_gone() == 1 << 2);
    eventually("the link is lost", || !one.is_up(2));
    assert!(one.shared.mesh.route(2).unwrap().losses() > 0);
    let two = Node::peers(cluster.config(2), &shared);
    one.linked();
    eventually("both ways", || shared.mesh.route(1).unwrap().is_up());
    send(&one, 2, Urgency::Urgent, vec![9]);
    eventually("a packet arrives", || shared.exchange.pop_packet().is_some());
    eventually("it is watched again", watched);
    two.kill();
    eventually("its second death is seen too", || one.shared.mesh.take_gone() == 1 << 2);
}

/// What the descriptors of a thread of this process mean.
fn descriptors(task: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(task.join("fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

#[test]
fn liveness_connections_are_in_a_table_that_no_other_thread_shares() {
    let cluster = Cluster::new(2);
    let held = std::fs::canonicalize(cluster.dir.path().join("site-1.toml")).unwrap();
    let before = std::fs::File::open(&held).unwrap();
    let _nodes = [cluster.start(1), cluster.start(2)];
    let own = Path::new("/proc/thread-self");
    assert!(descriptors(own).contains(&held));
    drop(before);
    let _after = std::fs::File::open(&held).unwrap();
    assert!(descriptors(own).contains(&held));
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let watches = |task: &PathBuf| {
        std::fs::read(task.join("comm")).is_ok_and(|name| name.trim_ascii() == b"liveness")
    };
    let tasks: Vec<PathBuf> = tasks.filter(watches).collect();
    assert!(tasks.len() >= 2, "{tasks:?}");
    for task in tasks {
        // Of another test's thread it may just be starting.
        eventually("nothing but the standard descriptors is in both tables", || {
            let ours = descriptors(own);
            let theirs = descriptors(&task);
            let sockets = |file: &&PathBuf| file.to_string_lossy().starts_with("socket:");
            !theirs.contains(&held) && !theirs.iter().filter(sockets).any(|one| ours.contains(one))
        });
    }
}

/// The process at site 2's liveness port, played: one connection of site 1.
struct Process {
    stream: TcpStream,
}

impl Process {
    fn accept(listener: &TcpListener) -> Self {
        let (mut stream, _) = listener.accept().unwrap();
        let mut theirs = [0; 16];
        stream.read_exact(&mut theirs).unwrap();
        assert_eq!((&theirs[..4], theirs[4]), (&b"PSLV"[..], 1));
        Self { stream }
    }

    /// Sends a greeting and more, and ends.
    fn say(mut self, site: u8, cluster: u64, more: &[u8]) {
        let mut greeting = [0; 16];
        greeting[..4].copy_from_slice(b"PSLV");
        greeting[4] = site;
        greeting[8..].copy_from_slice(&cluster.to_le_bytes());
        self.stream.write_all(&greeting).unwrap();
        self.stream.write_all(more).unwrap();
    }
}

#[test]
fn only_a_greeted_process_that_ends_without_goodbye_is_reported() {
    let cluster = Cluster::new(2);
    let listener = TcpListener::bind(cluster.config(1).sites[1].peer).unwrap();
    let one = cluster.start(1);
    let id = cluster.config(1).cluster;
    for (site, cluster, more, gone) in [
        (2, id, &b""[..], 1 << 2),
        (2, id, b"G", 0),
        (2, id ^ 1, b"", 0),
        (1, id, b"", 0),
        (2, id, b"", 1 << 2),
    ] {
        Process::accept(&listener).say(site, cluster, more);
        // It dials again once it has judged the end.
        let next = Process::accept(&listener);
        assert_eq!(one.shared.mesh.take_gone(), gone, "{site} {cluster} {more:?}");
        drop(next);
    }
    assert_eq!(one.shared.metrics.peer(2).unwrap().gone.value(), 2);
}

#[test]
fn a_stopping_site_says_goodbye_and_strangers_are_not_held() {
    let cluster = Cluster::new(2);
    let two = cluster.start(2);
    let connect = || TcpStream::connect(cluster.config(1).sites[1].peer).unwrap();
    let mut end = Vec::new();
    for bad in [&b"GET / HTTP/1.1\r\n"[..], &[0; 16], b"PSLV\x02"] {
        let mut stranger = connect();
        stranger.write_all(bad).unwrap();
        // Closed with or without a reset, but nothing is told.
        drop(stranger.read_to_end(&mut end));
        assert!(end.is_empty());
    }
    let mut known = connect();
    let mut greeting = [0; 16];
    greeting[..5].copy_from_slice(b"PSLV\x01");
    greeting[8..].copy_from_slice(&cluster.config(1).cluster.to_le_bytes());
    known.write_all(&greeting).unwrap();
    known.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[4], 2);
    let crowd: Vec<TcpStream> = (0..8).map(|_| connect()).collect();
    for mut one_too_many in crowd.into_iter().skip(7) {
        drop(one_too_many.read_to_end(&mut end));
        assert!(end.is_empty());
    }
    two.peers.stop();
    known.read_to_end(&mut end).unwrap();
    assert_eq!(end, b"G");
}

/// What of a client must live while its connection is looked at.
type Dialler = (Endpoint, RecvStream);

/// A client of the peer port, with a certificate and greetings of its own.
async fn dial(
    tls: PeerTls,
    address: SocketAddr,
    greetings: [(Hello, Traffic); 4],
) -> (Dialler, quinn::Connection, Vec<quinn::SendStream>) {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting = endpoint.connect_with(tls.client, address, "site-1.site.payswitch").unwrap();
    let quic = connecting.await.unwrap();
    let (first, answers) = quic.open_bi().await.unwrap();
    let mut streams = vec![first];
    for _ in 1..greetings.len() {
        streams.push(quic.open_uni().await.unwrap());
    }
    for (stream, (hello, traffic)) in streams.iter_mut().zip(greetings) {
        // Fails only when the connection has been closed meanwhile.
        drop(stream.write_all(&hello.encode(traffic)).await);
    }
    ((endpoint, answers), quic, streams)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The peer settings of a certificate of the deployment.
fn tls_of(cluster: &Cluster, name: &str) -> PeerTls {
    let mut config = cluster.config(2).clone();
    let file = |end: &str| cluster.dir.path().join("certs").join(format!("{name}.{end}"));
    (config.gateway.cert, config.gateway.key) = (file("pem"), file("key"));
    let keys = EndpointKeys::load_or_create(&config.data_dir).unwrap();
    PeerTls::load(&config.gateway, &keys).unwrap()
}

fn closed_with(error: &ConnectionError) -> Option<(u64, String)> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    let reason = String::from_utf8_lossy(&close.reason).into_owned();
    Some((close.error_code.into_inner(), reason))
}

#[test]
fn who_is_not_the_site_that_it_claims_is_refused_with_a_code() {
    use Traffic::{Answers, Bulk, Forwards, States, Urgent};
    let cluster = Cluster::new(3);
    let one = cluster.start(1);
    let address = cluster.config(1).sites[0].peer;
    let right = Hello { site: 2, ..Settings::new(cluster.config(2), 2).hello };
    let all = |hello| [(hello, Forwards), (hello, Urgent), (hello, Bulk), (hello, States)];
    let wrong_site = CloseCode::WrongSite;
    let table = [
        ("gw-1", all(right), CloseCode::NotAuthorised, "role gateway"),
        ("site-1", all(Hello { site: 1, ..right }), wrong_site, "this site itself"),
        ("site-3", all(right), wrong_site, "claims to be site 2"),
        ("site-2", all(Hello { site: 3, ..right }), wrong_site, "claims to be site 3"),
        ("site-2", all(Hello { cluster: 1, ..right }), wrong_site, "cluster 1"),
        ("site-2", all(Hello { shards: 5, ..right }), wrong_site, "5 shards"),
        ("site-2", all(Hello { voters: 0b1010, ..right }), wrong_site, "(voter)"),
        ("site-2", all(Hello { election_us: 480_000, ..right }), wrong_site, "is 480 ms"),
        ("site-2", [Urgent, Urgent, Bulk, States].map(|kind| (right, kind)), wrong_site, "kind 1"),
        ("site-2", [Forwards, Bulk, Bulk, States].map(|kind| (right, kind)), wrong_site, "kind 2"),
        ("site-2", [Forwards, Answers, Bulk, States].map(|it| (right, it)), wrong_site, "kind 4"),
        ("site-2", [Forwards, States, Bulk, States].map(|it| (right, it)), wrong_site, "kind 5"),
    ];
    runtime().block_on(async {
        for (name, greetings, code, word) in table {
            let (_dialler, quic, _streams) = dial(tls_of(&cluster, name), address, greetings).await;
            let (got, reason) = closed_with(&quic.closed().await).unwrap();
            assert_eq!(got, u64::from(code.wire()), "{name}: {reason}");
            assert!(reason.contains(word), "{name}: {reason}");
        }
        // Of another authority: not even the handshake succeeds.
        let theirs = Cluster::new(2);
        let mut config = theirs.config(2).clone();
        config.gateway.ca = cluster.config(2).gateway.ca.clone();
        let keys = EndpointKeys::load_or_create(&config.data_dir).unwrap();
        let tls = PeerTls::load(&config.gateway, &keys).unwrap();
        let (_dialler, quic, _streams) = dial(tls, address, all(right)).await;
        let error = quic.closed().await;
        assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error}");
    });
    assert_eq!(one.shared.metrics.peer(2).unwrap().inbound.value(), 0);
}

/// A site that lost its disk comes back under its old number with another log.
#[test]
fn another_log_under_a_known_number_is_refused_for_good() {
    let cluster = Cluster::new(3);
    let mut nodes: Vec<Node> = (1..=3).map(|site| cluster.start(site)).collect();
    nodes.iter().for_each(Node::linked);
    let wiped = |id, is_empty: &Arc<AtomicBool>| {
        let (config, told) = (cluster.config(3), Arc::new(Mutex::new(Vec::new())));
        // Its memory of the others went with the rest.
        std::fs::remove_file(config.data_dir.join("peers")).unwrap();
        let keys = EndpointKeys::load_or_create(&config.data_dir).unwrap();
        let tls = PeerTls::load(&config.gateway, &keys).unwrap();
        let by = Arc::clone(&told);
        let disowned = Box::new(move |site| by.lock().unwrap().push(site));
        let is_empty = Arc::clone(is_empty);
        let log = OwnLog { id, is_empty, ..Node::log(config, disowned) };
        let shared = Node::shared(config);
        (Peers::start(config, &keys, tls, shared.clone(), log).unwrap(), shared, told)
    };
    nodes.pop().unwrap().peers.kill();
    let inbound = |node: &Node| node.shared.metrics.peer(3).unwrap().inbound.value();
    eventually("its links are lost", || {
        nodes.iter().all(|node| !node.is_up(3) && inbound(node) == 0)
    });
    let is_empty = Arc::new(AtomicBool::new(true));
    let (peers, shared, told) = wiped(77, &is_empty);
    eventually("it is told", || !told.lock().unwrap().is_empty());
    // Those that knew it restart: they know it still.
    nodes.pop().unwrap().peers.kill();
    nodes.push(cluster.start(2));
    eventually("the others are linked", || nodes[0].is_up(2) && nodes[1].is_up(1));
    // Not a packet passes: it hears of no vote, and nobody hears of its.
    for node in &nodes {
        assert!(!node.is_up(3));
        assert_eq!(inbound(node), 0);
        assert!(node.shared.exchange.pop_packet().is_none());
    }
    assert!(!shared.mesh.route(1).unwrap().is_up());
    assert!(shared.exchange.pop_packet().is_none());
    assert_eq!(told.lock().unwrap().len(), 1, "told once");
    peers.kill();
    // One that holds something is refused as well, but not told to go.
    is_empty.store(false, Ordering::Release);
    let (peers, shared, told) = wiped(78, &is_empty);
    eventually("its process was reached", || {
        nodes[0].shared.metrics.peer(3).unwrap().watched.value() == 1
    });
    assert!((1..3).all(|site| !shared.mesh.route(site).unwrap().is_up()));
    assert!(told.lock().unwrap().is_empty());
    peers.kill();
    // And with its own log it is back.
    let shared = Node::shared(cluster.config(3));
    let _peers = Node::peers(cluster.config(3), &shared);
    eventually("the links come up", || nodes.iter().all(|node| node.is_up(3)));
}

#[test]
fn a_packet_over_the_bound_closes_the_connection() {
    let cluster = Cluster::new(3);
    let one = cluster.start(1);
    let address = cluster.config(1).sites[0].peer;
    let hello = Settings::new(cluster.config(2), 2).hello;
    let kinds = [Traffic::Forwards, Traffic::Urgent, Traffic::Bulk, Traffic::States];
    for (at, traffic) in kinds.into_iter().enumerate() {
        runtime().block_on(async {
            let greetings = kinds.map(|kind| (hello, kind));
            let tls = tls_of(&cluster, "site-2");
            let (_dialler, quic, mut streams) = dial(tls, address, greetings).await;
            let over = traffic.packet_max() as u32 + 1;
            streams[at].write_all(&over.to_le_bytes()).await.unwrap();
            let (code, reason) = closed_with(&quic.closed().await).unwrap();
            assert_eq!(code, u64::from(CloseCode::FrameTooLarge.wire()), "{reason}");
            assert!(reason.contains(&over.to_string()), "{reason}");
        });
        assert!(matches!(arrived(&one), Arrival::Closed { from: 2, .. }));
    }
}

/// Carries datagrams to one address and back until it is told to drop them.
struct Relay {
    address: SocketAddr,
    open: Arc<AtomicBool>,
}

impl Relay {
    fn start(to: SocketAddr) -> Self {
        Self::slow(to, Duration::ZERO)
    }

    /// Each datagram is held for so long.
    fn slow(to: SocketAddr, hold: Duration) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(to).unwrap();
        let (address, open) = (front.local_addr().unwrap(), Arc::new(AtomicBool::new(true)));
        let client = Arc::new(Mutex::new(None));
        let (front_2, back_2) = (front.try_clone().unwrap(), back.try_clone().unwrap());
        let (client_2, open_2, open_3) =
            (Arc::clone(&client), Arc::clone(&open), Arc::clone(&open));
        // Both threads end with the test's process.
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok((length, from)) = front.recv_from(&mut buffer) {
                *client.lock().unwrap() = Some(from);
                thread::sleep(hold);
                if open_2.load(Ordering::Relaxed) {
                    drop(back.send(&buffer[..length]));
                }
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            loop {
                // Refused while nobody listens there.
                let Ok(length) = back_2.recv(&mut buffer) else { continue };
                thread::sleep(hold);
                let client = *client_2.lock().unwrap();
                if let (Some(client), true) = (client, open_3.load(Ordering::Relaxed)) {
                    drop(front_2.send_to(&buffer[..length], client));
                }
            }
        });
        Self { address, open }
    }
}

#[test]
fn a_dead_path_is_given_up_alone_and_found_again() {
    let mut cluster = Cluster::new(3);
    let relay = Relay::start(cluster.config(1).sites[1].peer);
    cluster.configs[0].sites[1].peer = relay.address;
    let nodes: Vec<Node> = (1..=3).map(|site| cluster.start(site)).collect();
    nodes.iter().for_each(Node::linked);
    relay.open.store(false, Ordering::Relaxed);
    eventually("the link is given up", || !nodes[0].is_up(2));
    // The others do not suffer.
    for (from, to) in [(1, 3), (2, 1)] {
        let (sender, receiver) = (&nodes[from - 1], &nodes[to - 1]);
        eventually("the link stands", || sender.is_up(to as u8));
        send(sender, to as u8, Urgency::Urgent, vec![1]);
        assert_eq!(received(receiver).from as usize, from);
    }
    relay.open.store(true, Ordering::Relaxed);
    nodes[0].linked();
    send(&nodes[0], 2, Urgency::Urgent, vec![2]);
    assert_eq!(received(&nodes[1]).bytes, [2][..]);
}

#[test]
fn a_site_too_far_away_for_the_time_outs_is_said() {
    let mut cluster = Cluster::new(2);
    let relay = Relay::slow(cluster.config(1).sites[1].peer, Duration::from_millis(10));
    cluster.configs[0].sites[1].peer = relay.address;
    let (one, two) = (cluster.start(1), cluster.start(2));
    one.linked();
    let far = |node: &Node, of: u8| node.shared.metrics.peer(of).unwrap().far.value();
    eventually("site 2 is too far away", || far(&one, 2) == 1);
    eventually("its figures are there", || {
        two.shared.metrics.peer(1).unwrap().round_trip_us.value() > 0
    });
    assert_eq!(far(&two, 1), 0, "its own link goes straight");
    relay.open.store(false, Ordering::Relaxed);
    eventually("a link that is down is not too long", || !one.is_up(2) && far(&one, 2) == 0);
}

#[test]
fn certificates_can_be_replaced_while_links_stand() {
    let cluster = Cluster::new(2);
    let (one, two) = (cluster.start(1), cluster.start(2));
    one.linked();
    two.linked();
    // A gateway's certificate serves nobody: only a new connection sees it.
    one.peers.replace(tls_of(&cluster, "gw-1"));
    let tls = tls_of(&cluster, "site-2");
    let address = cluster.config(1).sites[0].peer;
    runtime().block_on(async {
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let name = "site-1.site.payswitch";
        let refused = endpoint.connect_with(tls.client, address, name).unwrap().await;
        assert!(matches!(refused, Err(ConnectionError::TransportError(_))), "{refused:?}");
    });
    // What stands lives on: site 2 could not dial it anew.
    assert!(two.is_up(1));
}
