//! Nodes in one process for the tests of peer links and forwarding: real
//! sockets on loopback, certificates as `init` makes them, no worker.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use storage::Notify;

use super::control::NodeControl;
use super::directory::Directory;
use super::ferry::Ferry;
use super::forward::Forwarder;
use super::inbox::Exchange;
use super::mesh::Mesh;
use super::net::{Net, NetSettings};
use super::peer::{OwnLog, PeerShared, Peers};
use super::worker::Shared;
use crate::config::Config;
use crate::init::{InitOptions, init};
use crate::metrics::Metrics;
use crate::secret::Kek;
use crate::tls::{EndpointKeys, PeerTls};

/// Longest wait for something that happens by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `what` is true.
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// As [`eventually`], on a runtime that goes on meanwhile.
pub async fn eventually_async(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Ports of which `count` from the returned one on are free, below those that
/// the system hands out and beside those of the system tests.
pub fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(41);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = 10_000 + (start.wrapping_add(step) % 220) as u16 * 100 + 40;
        let free = (base..base + count).all(|port| {
            UdpSocket::bind(("127.0.0.1", port)).is_ok()
                && TcpListener::bind(("127.0.0.1", port)).is_ok()
        });
        if free {
            return base;
        }
    }
}

/// A deployment of several sites on disk.
pub struct Cluster {
    /// Where its files are.
    pub dir: tempfile::TempDir,
    /// By site - 1.
    pub configs: Vec<Config>,
}

impl Cluster {
    /// Of `sites` sites, with free ports.
    pub fn new(sites: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions {
            dir: dir.path().to_owned(),
            sites,
            merchants: 4,
            port_base: 7_400,
            force: false,
            witness: false,
        };
        init(&options).unwrap();
        let load = |site: u16| Config::load(&dir.path().join(format!("site-{site}.toml"))).unwrap();
        let mut configs: Vec<Config> = (1..=sites).map(load).collect();
        let base = free_ports(sites);
        for config in &mut configs {
            for (port, site) in (base..).zip(&mut config.sites) {
                site.peer = SocketAddr::from(([127, 0, 0, 1], port));
            }
        }
        Self { dir, configs }
    }

    /// A site's configuration.
    pub fn config(&self, site: u8) -> &Config {
        &self.configs[usize::from(site) - 1]
    }

    /// Starts a site's peer thread.
    pub fn start(&self, site: u8) -> Node {
        Node::start(self.config(site))
    }
}

/// A site without worker.
pub struct Node {
    /// Its peer thread.
    pub peers: Peers,
    /// What it shares.
    pub shared: PeerShared,
    /// What its network thread would wait for.
    pub net_wake: Arc<tokio::sync::Notify>,
}

impl Node {
    /// A site's shared state and peer thread.
    pub fn start(config: &Config) -> Self {
        let net_wake = Arc::new(tokio::sync::Notify::new());
        let shared = Self::woken(config, &net_wake);
        Self { peers: Self::peers(config, &shared), shared, net_wake }
    }

    /// A site's shared state alone.
    pub fn shared(config: &Config) -> PeerShared {
        Self::woken(config, &Arc::new(tokio::sync::Notify::new()))
    }

    fn woken(config: &Config, net_wake: &Arc<tokio::sync::Notify>) -> PeerShared {
        let exchange = Exchange::new(64, Notify::new().unwrap(), Arc::clone(net_wake));
        let sites = config.sites.len() as u8;
        PeerShared {
            mesh: Arc::new(Mesh::new(config.site as u8, sites, config.shards)),
            exchange: Arc::new(exchange),
            ferry: Arc::new(Ferry::new(Arc::clone(net_wake))),
            metrics: Arc::new(Metrics::new(config)),
        }
    }

    /// A peer thread over `shared`.
    pub fn peers(config: &Config, shared: &PeerShared) -> Peers {
        let keys = EndpointKeys::load_or_create(&config.data_dir).unwrap();
        let tls = PeerTls::load(&config.gateway, &keys).unwrap();
        let log = Self::log(config, Box::new(|_| panic!("a site is disowned")));
        Peers::start(config, &keys, tls, shared.clone(), log).unwrap()
    }

    /// The log of a site, which it had always.
    pub fn log(config: &Config, disowned: Box<dyn Fn(u8) + Send>) -> OwnLog {
        OwnLog { id: u64::from(config.site), is_empty: Arc::default(), disowned }
    }

    /// Whether this site's link to `site` stands.
    pub fn is_up(&self, site: u8) -> bool {
        self.shared.mesh.route(site).unwrap().is_up()
    }

    /// Waits for this site's links to all others.
    pub fn linked(&self) {
        for site in self.shared.mesh.others() {
            eventually("the link comes up", || self.is_up(site));
        }
    }
}

/// The state of a site's network thread over what it shares. It knows no merchant.
pub fn net(
    config: &Config,
    shared: &PeerShared,
    outstanding_max: usize,
    forward: Option<Forwarder>,
) -> Rc<Net> {
    let of_worker = Arc::new(Shared {
        exchange: Arc::clone(&shared.exchange),
        metrics: Arc::clone(&shared.metrics),
        mesh: Arc::clone(&shared.mesh),
        leave: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        storage_full: AtomicBool::new(false),
        log_is_empty: Arc::default(),
        report: Mutex::default(),
    });
    let settings = NetSettings {
        shards: config.shards,
        site: config.site as u8,
        sites: config.sites.len() as u8,
        cluster: config.cluster,
        in_flight_max: outstanding_max.max(1_000) as u32,
        gateways: 1,
        outstanding_max,
        // The machine may stand still: not what is tested here.
        queue_delay_max_us: 60_000_000,
        delay_target_us: 60_000_000,
        awake_share_percent: 0,
        awake_latency_us: 0,
        batch_items_max: 4_096,
    };
    let kek = Arc::new(Kek::load(&config.keys.kek).unwrap());
    Net::new(
        settings,
        vec![Arc::clone(&shared.exchange)],
        Directory::new(kek, 300_000),
        Arc::clone(&shared.metrics),
        Arc::new(NodeControl::new(config, of_worker, Instant::now())),
        forward,
    )
}
