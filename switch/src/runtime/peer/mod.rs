//! Links between the sites: one thread with one QUIC endpoint, server and
//! client at once, and one with a plain TCP listener on the same port that says no
//! more than that a process lives.
//!
//! Each site dials every other one and sends its own traffic on the connection
//! that it dialled, so that a pair has two and no tie to break. A link that is
//! down or slow holds nobody else up: every link has its own tasks and its own
//! bounded queues. Knows neither consensus nor requests, only packets of them.
//! Tested by sites on loopback, with certificates of `init`.

mod accept;
mod dial;
mod hello;
mod liveness;
mod logs;
mod packets;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use protocol::code::CloseCode;
use quinn::RecvStream;
use tokio::sync::watch;

use super::ferry::{Arrival, Ferry};
use super::inbox::{Exchange, Packet};
use super::mesh::{Mesh, Traffic};
use super::{ServeError, bind_udp};
use crate::config::{Config, SiteConfig};
use crate::metrics::{Metrics, PeerMetrics};
use crate::tls::{EndpointKeys, PeerTls, peer_endpoint};
use hello::Hello;
use liveness::Liveness;
pub use logs::OwnLog;
use logs::{KnownLogs, LogError};
use packets::{Packets, TooLong};

/// How long a stopping site waits for its goodbyes to be heard.
const GOODBYE_MAX: Duration = Duration::from_millis(200);
/// Pause before a full queue of this node is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// Closes the connection of a site whose log is not the one it had. Of peer links
/// only, beside the codes that gateways see.
const OTHER_LOG: u32 = 64;

/// What the peer thread shares with the rest of the node.
#[derive(Clone)]
pub struct PeerShared {
    /// Queues towards the other sites.
    pub mesh: Arc<Mesh>,
    /// Where replica messages go.
    pub exchange: Arc<Exchange>,
    /// Where requests and answers go.
    pub ferry: Arc<Ferry>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// The running peer thread.
pub struct Peers {
    endpoint: quinn::Endpoint,
    client: Arc<Mutex<quinn::ClientConfig>>,
    stop: watch::Sender<bool>,
    /// Of the links and of the liveness connections.
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl Peers {
    /// Binds both ports and starts the threads.
    ///
    /// # Errors
    /// What could not be read, bound or started.
    pub fn start(
        config: &Config,
        keys: &EndpointKeys,
        tls: PeerTls,
        shared: PeerShared,
        log: OwnLog,
    ) -> Result<Self, ServeError> {
        let known = KnownLogs::load(&config.data_dir, config.cluster)?;
        let address = config.this_site().peer;
        let named = |error: std::io::Error| {
            ServeError::Environment(format!("peer address {address}: {error}"))
        };
        let socket = bind_udp("peer address", address, config.gateway.udp_buffer_kib)?;
        let liveness = Liveness {
            sites: config.sites.iter().map(|site| site.peer).collect(),
            site: config.site as u8,
            cluster: config.cluster,
            mesh: Arc::clone(&shared.mesh),
            metrics: Arc::clone(&shared.metrics),
        };
        let (liveness, watching) = liveness.start().map_err(named)?;
        let (stop, stopped) = watch::channel(false);
        let client = Arc::new(Mutex::new(tls.client));
        let start = Start {
            settings: Settings::new(config, log.id),
            log,
            known,
            socket,
            liveness,
            endpoint: peer_endpoint(keys),
            server: tls.server,
            client: Arc::clone(&client),
            shared,
            stopped,
        };
        let (started, outcome) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("peer".into())
            .spawn(move || start.run(&started))
            .map_err(|error| ServeError::Environment(format!("no thread: {error}")))?;
        match outcome.recv() {
            Ok(Ok(endpoint)) => {
                let threads = Mutex::new(vec![thread, watching]);
                Ok(Self { endpoint, client, stop, threads })
            }
            Ok(Err(error)) => Err(named(error)),
            Err(_) => Err(ServeError::Environment("the peer thread panicked".into())),
        }
    }

    /// New connections use these settings from now on.
    pub fn replace(&self, tls: PeerTls) {
        self.endpoint.set_server_config(Some(tls.server));
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = tls.client;
    }

    /// Says goodbye to the other sites and ends the threads. Without it the end
    /// of the process, or of this handle, looks like a death, as it should.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a thread of the peer links panicked");
            }
        }
    }

    /// Ends the threads as the death of the process would: without a word.
    #[cfg(test)]
    pub fn kill(self) {
        drop(self.stop);
        for thread in self.threads.into_inner().unwrap() {
            thread.join().unwrap();
        }
    }
}

/// What the thread needs of the configuration.
struct Settings {
    hello: Hello,
    /// Longest round trip with which the time-outs hold together.
    round_trip_max_us: u64,
    sites: Vec<SiteConfig>,
}

impl Settings {
    fn new(config: &Config, log: u64) -> Self {
        let hello = Hello {
            cluster: config.cluster,
            shards: config.shards,
            site: config.site as u8,
            voters: config.first_voters().iter().fold(0, |set, site| set | 1 << site),
            // `check` bounds it far below.
            election_us: config.timing().election_us() as u32,
            log,
        };
        let round_trip_max_us = config.timing().round_trip_max_us();
        Self { hello, round_trip_max_us, sites: config.sites.clone() }
    }
}

struct Start {
    settings: Settings,
    log: OwnLog,
    known: KnownLogs,
    socket: UdpSocket,
    liveness: UnixStream,
    endpoint: quinn::EndpointConfig,
    server: quinn::ServerConfig,
    client: Arc<Mutex<quinn::ClientConfig>>,
    shared: PeerShared,
    stopped: watch::Receiver<bool>,
}

impl Start {
    fn run(self, started: &mpsc::Sender<std::io::Result<quinn::Endpoint>>) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                drop(started.send(Err(error)));
                return;
            }
        };
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let quic = Arc::new(quinn::TokioRuntime);
            let endpoint =
                quinn::Endpoint::new(self.endpoint, Some(self.server), self.socket, quic);
            let liveness = tokio::net::UnixStream::from_std(self.liveness);
            let (endpoint, liveness) = match (endpoint, liveness) {
                (Ok(endpoint), Ok(liveness)) => (endpoint, liveness),
                (Err(error), _) | (_, Err(error)) => {
                    drop(started.send(Err(error)));
                    return;
                }
            };
            drop(started.send(Ok(endpoint.clone())));
            let core = Rc::new(Core {
                peers: self.settings.sites.iter().map(|_| Peer::default()).collect(),
                settings: self.settings,
                endpoint,
                liveness,
                client: self.client,
                shared: self.shared,
                log: self.log,
                known: Arc::new(Mutex::new(self.known)),
                is_disowned: Cell::new(false),
                stranger: RefCell::default(),
                handshakes: Cell::new(0),
                stopped: self.stopped,
            });
            core.run().await;
        });
    }
}

/// One other site, on the peer thread.
#[derive(Default)]
struct Peer {
    /// Dial it now: it has just shown that it is there.
    redial: tokio::sync::Notify,
    /// Its connection to us.
    inbound: RefCell<Option<quinn::Connection>>,
    /// What was last said about our connection and about its own, so that a
    /// condition is told once.
    said: [RefCell<String>; 2],
    /// That it is too far away was said.
    said_far: Cell<bool>,
}

/// Who dialled a connection.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Whose {
    Ours,
    Theirs,
}

/// The thread's state.
struct Core {
    settings: Settings,
    endpoint: quinn::Endpoint,
    /// The pair towards the liveness thread.
    liveness: tokio::net::UnixStream,
    client: Arc<Mutex<quinn::ClientConfig>>,
    shared: PeerShared,
    /// By site - 1; this site's own entry stays idle.
    peers: Vec<Peer>,
    log: OwnLog,
    known: Arc<Mutex<KnownLogs>>,
    /// That this site's log is not the one it had was told.
    is_disowned: Cell<bool>,
    /// What was last said about somebody who is no other site.
    stranger: RefCell<String>,
    /// Connections of others that are not accepted yet.
    handshakes: Cell<usize>,
    stopped: watch::Receiver<bool>,
}

impl Core {
    async fn run(self: Rc<Self>) {
        tokio::task::spawn_local(Rc::clone(&self).accept());
        tokio::task::spawn_local(Rc::clone(&self).heed_ends());
        for site in self.shared.mesh.others() {
            tokio::task::spawn_local(Rc::clone(&self).keep_up(site));
        }
        if !self.stopped().await {
            return;
        }
        self.say_goodbye();
        self.endpoint.close(CloseCode::Draining.wire().into(), b"the site stops");
        let heard = tokio::time::timeout(GOODBYE_MAX, self.endpoint.wait_idle()).await;
        drop(heard);
    }

    /// Waits for the end: true when the site stops in order, false when the
    /// handle was dropped.
    async fn stopped(&self) -> bool {
        let mut stopped = self.stopped.clone();
        stopped.wait_for(|stopped| *stopped).await.is_ok()
    }

    fn peer(&self, site: u8) -> &Peer {
        &self.peers[usize::from(site) - 1]
    }

    fn metrics(&self, site: u8) -> Option<&PeerMetrics> {
        self.shared.metrics.peer(site)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.sites.iter().map(|site| site.server_name.as_str())
    }

    /// Whether a site speaks for the log that it always had; with the code that
    /// closes its connection if not. A first meeting is written down, which may take
    /// long: beside this thread, or heartbeats would wait for the disk. When that fails
    /// the next try is the next connection's, and those are dialled ever more slowly.
    async fn meet(&self, site: u8, log: u64) -> Result<(), (u32, String)> {
        let known = Arc::clone(&self.known);
        let meet = move || known.lock().unwrap_or_else(PoisonError::into_inner).meet(site, log);
        let met = tokio::task::spawn_blocking(meet).await;
        let met = met.map_err(|error| (CloseCode::Internal.wire(), error.to_string()))?;
        met.map_err(|error| {
            let code = match error {
                LogError::Other { .. } => OTHER_LOG,
                LogError::Write { .. } => CloseCode::Internal.wire(),
            };
            (code, error.to_string())
        })
    }

    /// Another site has closed a connection: it may know another log of this site. An
    /// empty log then means that this site has lost its past and must go; one
    /// that holds something stays, and the operator finds out which of the two errs.
    fn was_closed(&self, site: u8, quic: &quinn::Connection) {
        let Some(quinn::ConnectionError::ApplicationClosed(close)) = quic.close_reason() else {
            return;
        };
        let disowned = close.error_code == quinn::VarInt::from_u32(OTHER_LOG);
        let is_empty = self.log.is_empty.load(Ordering::Acquire);
        if disowned && is_empty && !self.is_disowned.replace(true) {
            (self.log.disowned)(site);
        }
    }

    /// The greeting that a site has to send.
    fn hello_of(&self, site: u8) -> Hello {
        Hello { site, ..self.settings.hello }
    }

    /// Tells the operator something about a site's link, unless it is what was
    /// said last.
    fn say(&self, whose: Whose, site: u8, what: String) {
        let mut said = self.peer(site).said[whose as usize].borrow_mut();
        // That links end when this site stops is no news.
        if *said != what && !*self.stopped.borrow() {
            match whose {
                Whose::Ours => eprintln!("peer site {site}: {what}"),
                Whose::Theirs => eprintln!("peer site {site}: its connection: {what}"),
            }
            *said = what;
        }
    }

    /// Reads the packets of one stream of `from` until it ends.
    async fn read(
        &self,
        from: u8,
        link: u32,
        traffic: Traffic,
        mut recv: RecvStream,
    ) -> Result<(), TooLong> {
        let mut chunks: [Bytes; 32] = std::array::from_fn(|_| Bytes::new());
        let mut packets = Packets::new(traffic.packet_max());
        while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
            for chunk in &mut chunks[..count] {
                packets.push(std::mem::take(chunk));
                while let Some(bytes) = packets.next()? {
                    self.deliver(from, link, traffic, bytes).await;
                }
            }
        }
        Ok(())
    }

    async fn deliver(&self, from: u8, link: u32, traffic: Traffic, bytes: Bytes) {
        if let Some(metrics) = self.metrics(from) {
            metrics.packets_received.add(1);
            metrics.bytes_received.add(bytes.len() as u64);
        }
        let arrival = match traffic {
            Traffic::Urgent | Traffic::Bulk | Traffic::States => {
                // Consensus sends again what is lost, and a worker that is
                // behind must not make its peers look dead.
                if self.shared.exchange.push_packet(Packet { from, bytes }).is_err()
                    && let Some(metrics) = self.metrics(from)
                {
                    metrics.dropped_received.add(1);
                }
                return;
            }
            Traffic::Forwards => Arrival::Forwards { from, link, packet: bytes },
            Traffic::Answers => Arrival::Answers { from, packet: bytes },
        };
        self.hand_over(arrival).await;
    }

    /// Waits for room: requests are not dropped, their sender is slowed down.
    async fn hand_over(&self, mut arrival: Arrival) {
        while let Err(back) = self.shared.ferry.push(arrival) {
            arrival = back;
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }
}
