//! The node: everything that touches sockets, files, threads and clocks.
//!
//! Three threads: `net` (one tokio current-thread runtime: gateway front,
//! channel links), `worker` (shards and their log), `admin` (HTTP); in a
//! deployment of several sites also `peer` (links to the others). The main
//! thread starts them in order, waits for a signal or a failure, and stops them
//! in the reverse order.

mod awake;
mod bootstrap;
mod clock;
mod control;
mod directory;
mod explain;
mod ferry;
mod forgotten;
mod forward;
mod gateway;
mod handshakes;
mod held;
mod inbox;
mod link;
mod mesh;
mod net;
mod notice;
mod peer;
mod reload;
mod request;
mod standing;
mod stream;
#[cfg(test)]
mod testing;
mod window;
mod worker;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use storage::{Notify, Recovery};

use crate::admin::server::{AdminServer, AdminTls};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::secret::Kek;
use crate::tls::{self, EndpointKeys, PeerTls};
use awake::Awake;
use control::NodeControl;
use directory::Directory;
use ferry::Ferry;
use forward::Forwarder;
use gateway::{Front, GO_AWAY_MAX};
pub use held::HOLD_US;
use inbox::Exchange;
use link::Link;
use mesh::Mesh;
pub use net::STREAMS_MAX;
use net::{Net, NetSettings};
use peer::{OwnLog, PeerShared, Peers};
use reload::Reload;
use worker::{Recovering, Report, Shared, Worker, WorkerError, WorkerSettings};

/// How long a starting node is not ready because a channel does not answer.
const CHANNELS_TRIED_MAX: Duration = Duration::from_millis(500);

/// How long a stopping node tries to hand its shards to other sites.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// Why the node could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file of the configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// The environment refuses: a port taken, a directory not writable.
    #[error("{0}")]
    Environment(String),
    /// The log is damaged or belongs elsewhere.
    #[error("{0}")]
    Damaged(String),
    /// The log cannot be opened.
    #[error("{0}")]
    Log(String),
    /// The worker failed while serving.
    #[error("stopped: {0}")]
    Worker(#[from] WorkerError),
}

enum Event {
    Recovered(Box<Recovery>),
    NotRecovered(ServeError),
    WorkerEnded(Result<(), WorkerError>),
    NetEnded(ServeError),
    /// Another site knows another log of this one.
    Disowned(u8),
    Drained,
}

/// Serves until SIGTERM or SIGINT, or until the log fails.
///
/// # Errors
/// [`ServeError`], with one line that says what to do.
pub fn serve(config: Config) -> Result<(), ServeError> {
    let started = Instant::now();
    let config_error = |error: &dyn std::fmt::Display| ServeError::Config(error.to_string());
    storage::disk::make_dir(&config.data_dir)
        .map_err(|error| environment(&config.data_dir, &error))?;
    forgotten::refuse(&config.data_dir, config.site)?;
    let keys =
        EndpointKeys::load_or_create(&config.data_dir).map_err(|error| config_error(&error))?;
    let server = tls::site_server(&config, &keys).map_err(|error| config_error(&error))?;
    let kek = Kek::load(&config.keys.kek).map_err(|error| config_error(&error)).map(Arc::new)?;
    let admin_tls = AdminTls::load(&config.admin).map_err(|error| config_error(&error))?;
    let bootstrap = bootstrap::load(&config, &kek).map_err(ServeError::Config)?;
    let socket = bind_udp("gateway.listen", config.gateway.listen, config.gateway.udp_buffer_kib)?;

    let (events, inbox) = mpsc::channel();
    let notify = Notify::new().map_err(|error| ServeError::Environment(error.to_string()))?;
    let net_wake = Arc::new(tokio::sync::Notify::new());
    let batches = config.worker.inbox_batches as usize;
    let exchange = Arc::new(Exchange::new(batches, notify.clone(), Arc::clone(&net_wake)));
    let metrics = Arc::new(Metrics::new(&config));
    let shared = Arc::new(Shared {
        exchange: Arc::clone(&exchange),
        mesh: Arc::new(Mesh::new(config.site as u8, config.sites.len() as u8, config.shards)),
        metrics: Arc::clone(&metrics),
        leave: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        storage_full: AtomicBool::new(false),
        log_is_empty: Arc::default(),
        report: Mutex::new(Report::default()),
    });

    let worker = spawn_worker(&config, notify, Arc::clone(&shared), events.clone())?;
    let recovery = match inbox.recv() {
        Ok(Event::Recovered(recovery)) => recovery,
        Ok(Event::NotRecovered(error)) => return Err(error),
        _ => return Err(ServeError::Log("the worker ended before it recovered".into())),
    };
    report_recovery(&recovery, started);

    let peering = Peering::start(&config, &keys, &shared, &net_wake, &recovery, events.clone())?;
    let control = Arc::new(NodeControl::new(&config, Arc::clone(&shared), started));
    spawn_net(
        &config,
        server,
        keys,
        socket,
        Arc::clone(&kek),
        bootstrap,
        net_wake,
        &control,
        admin_tls.clone(),
        peering.clone(),
        events,
    )?;
    let admin = AdminServer::start(
        &config.admin,
        admin_tls,
        Arc::clone(&control) as Arc<dyn crate::admin::control::Control>,
        Arc::clone(&kek),
    )
    .map_err(|error| ServeError::Environment(error.to_string()))?;
    let (site, listen, admin_listen) = (config.site, config.gateway.listen, config.admin.listen);
    match config.this_site().witness {
        false => {
            println!("payswitch site {site} serves gateways on {listen}, admin on {admin_listen}");
        }
        true => println!("payswitch site {site} is a witness, admin on {admin_listen}"),
    }
    let outcome = wait_for_end(&config, &inbox, &shared);
    drop(admin);
    // The worker has ended or is about to: a failed log must not be waited for.
    if outcome.is_ok() && worker.join().is_err() {
        return Err(ServeError::Log("the worker panicked".into()));
    }
    // A site whose worker failed says no goodbye: the others shall take over.
    if let (Ok(()), Some(peering)) = (&outcome, &peering) {
        peering.peers.stop();
    }
    outcome
}

/// The way to other sites; none in a deployment of one.
#[derive(Clone)]
struct Peering {
    peers: Arc<Peers>,
    ferry: Arc<Ferry>,
}

impl Peering {
    fn start(
        config: &Config,
        keys: &EndpointKeys,
        shared: &Shared,
        net_wake: &Arc<tokio::sync::Notify>,
        recovery: &Recovery,
        events: mpsc::Sender<Event>,
    ) -> Result<Option<Self>, ServeError> {
        if config.sites.len() < 2 {
            return Ok(None);
        }
        let tls = tls::require_site_role(config)
            .and_then(|()| PeerTls::load(&config.gateway, keys))
            .map_err(|error| ServeError::Config(error.to_string()))?;
        let ferry = Arc::new(Ferry::new(Arc::clone(net_wake)));
        let is_empty = Arc::clone(&shared.log_is_empty);
        let shared = PeerShared {
            mesh: Arc::clone(&shared.mesh),
            exchange: Arc::clone(&shared.exchange),
            ferry: Arc::clone(&ferry),
            metrics: Arc::clone(&shared.metrics),
        };
        let log = OwnLog {
            id: recovery.log,
            is_empty,
            // Where nobody listens any more the node ends anyway.
            disowned: Box::new(move |by| drop(events.send(Event::Disowned(by)))),
        };
        let peers = Peers::start(config, keys, tls, shared, log)?;
        Ok(Some(Self { peers: Arc::new(peers), ferry }))
    }
}

/// Waits for the drain to finish or for a failure; meanwhile cores are kept awake under load.
fn wait_for_end(
    config: &Config,
    inbox: &mpsc::Receiver<Event>,
    shared: &Shared,
) -> Result<(), ServeError> {
    let mut awake = Awake::new(&config.worker, &shared.metrics);
    loop {
        match inbox.recv_timeout(awake.pause()) {
            Err(mpsc::RecvTimeoutError::Timeout) => awake.watch(&shared.metrics),
            Ok(Event::Drained) => {
                shared.stop.store(true, Ordering::Release);
                shared.exchange.wake();
            }
            Ok(Event::WorkerEnded(Ok(()))) => return Ok(()),
            Ok(Event::WorkerEnded(Err(error @ WorkerError::Forgotten { .. }))) => {
                return Err(forgotten::found(&config.data_dir, &error));
            }
            Ok(Event::WorkerEnded(Err(error))) => return Err(error.into()),
            Ok(Event::NetEnded(error) | Event::NotRecovered(error)) => return Err(error),
            Ok(Event::Disowned(by)) => return Err(disowned(config.site, by)),
            Ok(Event::Recovered(_)) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(ServeError::Log("a thread of the node panicked".into()));
            }
        }
    }
}

/// The log is empty, and another site knows one that was not.
fn disowned(site: u16, by: u8) -> ServeError {
    ServeError::Damaged(format!(
        "site {by} knows another log of site {site}: this one is empty, so the disk was wiped or \
         exchanged, and with it went votes and blocks that others count on. Under this number \
         the site must not take part any more: where it is a member, `payswitch admin member \
         remove {site}` at a site that serves; then bring this one up under a fresh number with \
         `member add` (docs/OPERATIONS.md, Replace a site)"
    ))
}

fn environment(path: &Path, error: &dyn std::fmt::Display) -> ServeError {
    ServeError::Environment(format!("{}: {error}", path.display()))
}

fn bind_udp(
    what: &'static str,
    address: SocketAddr,
    buffer_kib: u32,
) -> Result<UdpSocket, ServeError> {
    let failed =
        |error: std::io::Error| ServeError::Environment(format!("{what} {address}: {error}"));
    let socket = UdpSocket::bind(address).map_err(failed)?;
    let state = quinn::udp::UdpSocketState::new((&socket).into()).map_err(failed)?;
    let bytes = buffer_kib as usize * 1024;
    // The kernel clamps silently: read back and say so.
    state.set_recv_buffer_size((&socket).into(), bytes).map_err(failed)?;
    state.set_send_buffer_size((&socket).into(), bytes).map_err(failed)?;
    let got = state.recv_buffer_size((&socket).into()).map_err(failed)?;
    if got < bytes {
        eprintln!(
            "note: the kernel grants {} KiB of UDP receive buffer instead of {buffer_kib}; raise net.core.rmem_max",
            got / 1024
        );
    }
    Ok(socket)
}

fn spawn_worker(
    config: &Config,
    notify: Notify,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
) -> Result<thread::JoinHandle<()>, ServeError> {
    let log_config = config.worker_log();
    let settings = WorkerSettings {
        site: u64::from(config.site),
        queue_delay_max_us: config.worker.queue_delay_max_ms * 1000,
        commit_interval_us: config.log.commit_interval_us,
        blocks_bytes_max: config.worker.block_max_bytes as usize,
        engines: (0..config.shards).map(|shard| config.engine(shard)).collect(),
        sites: config.sites.len() as u64,
        voters: config.first_voters(),
        witnesses: config.witnesses(),
        cluster: config.cluster,
        timing: config.timing(),
        tail_bytes_max: worker::TAIL_BYTES_MAX,
        checkpoint_bytes: u64::from(config.log.checkpoint_mib) << 20,
        keep_bytes: u64::from(config.log.keep_mib) << 20,
        segment_bytes: u64::from(config.log.segment_mib) << 20,
    };
    thread::Builder::new()
        .name("worker-0".into())
        .spawn(move || {
            let worker = match recover(log_config, notify, &shared, settings, &events) {
                Ok(worker) => worker,
                Err(error) => {
                    drop(events.send(Event::NotRecovered(error)));
                    return;
                }
            };
            let ended = worker.run();
            drop(events.send(Event::WorkerEnded(ended)));
        })
        .map_err(|error| ServeError::Environment(format!("no thread: {error}")))
}

fn recover(
    log_config: storage::LogConfig,
    notify: Notify,
    shared: &Arc<Shared>,
    settings: WorkerSettings,
    events: &mpsc::Sender<Event>,
) -> Result<Worker, ServeError> {
    let closed = match storage::Closed::lock(&log_config, notify) {
        Ok(closed) => closed,
        Err(error) => return Err(log_error(&error)),
    };
    let started = Instant::now();
    let mut recovering = Recovering::new(&settings, closed.checkpoints().as_ref());
    if let (shards @ 1.., payments) = recovering.restored() {
        println!(
            "checkpoints: {shards} shards with {payments} payments restored in {} ms",
            started.elapsed().as_millis()
        );
    }
    let opened = closed.open_judged(&mut recovering);
    let (log, recovery) = opened.map_err(|error| log_error(&error))?;
    shared.log_is_empty.store(recovery.frames == 0, Ordering::Release);
    drop(events.send(Event::Recovered(Box::new(recovery))));
    Worker::new(recovering, log, Arc::clone(shared), settings)
        .map_err(|error| ServeError::Environment(format!("no thread: {error}")))
}

fn log_error(error: &storage::LogError) -> ServeError {
    match error {
        storage::LogError::Damage(_)
        | storage::LogError::Replay { .. }
        | storage::LogError::Refused(_) => ServeError::Damaged(error.to_string()),
        _ => ServeError::Log(error.to_string()),
    }
}

fn report_recovery(recovery: &Recovery, started: Instant) {
    let Recovery { frames, batches, disk, .. } = recovery;
    match &recovery.cut {
        Some(cut) => println!(
            "log: a torn tail of {} bytes in {} at offset {} was cut (never acknowledged)",
            cut.bytes,
            cut.file.display(),
            cut.offset
        ),
        None => println!("log: the end is clean"),
    }
    println!(
        "log: {frames} frames in {batches} batches recovered {} ms after start; {disk:?}",
        started.elapsed().as_millis()
    );
}

#[expect(clippy::too_many_arguments, reason = "the parts of one node, handed over once")]
fn spawn_net(
    config: &Config,
    server: quinn::ServerConfig,
    keys: EndpointKeys,
    socket: UdpSocket,
    kek: Arc<Kek>,
    bootstrap: bootstrap::Bootstrap,
    net_wake: Arc<tokio::sync::Notify>,
    control: &Arc<NodeControl>,
    admin_tls: AdminTls,
    peering: Option<Peering>,
    events: mpsc::Sender<Event>,
) -> Result<(), ServeError> {
    let config = config.clone();
    let control = Arc::clone(control);
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                drop(events.send(Event::NetEnded(ServeError::Environment(error.to_string()))));
                return;
            }
        };
        let local = tokio::task::LocalSet::new();
        let served = local.block_on(&runtime, async {
            let endpoint = quinn::Endpoint::new(
                tls::gateway_endpoint(&config.gateway, &keys),
                Some(server),
                socket,
                Arc::new(quinn::TokioRuntime),
            )
            .map_err(|error| ServeError::Environment(error.to_string()))?;
            let tls = (keys, admin_tls);
            net_main(config, endpoint, tls, kek, bootstrap, net_wake, control, peering, &events)
                .await
        });
        if let Err(error) = served {
            drop(events.send(Event::NetEnded(error)));
        }
    };
    thread::Builder::new()
        .name("net".into())
        .spawn(run)
        .map(drop)
        .map_err(|error| ServeError::Environment(format!("no thread: {error}")))
}

#[expect(clippy::too_many_arguments, reason = "the parts of one node, handed over once")]
async fn net_main(
    config: Config,
    endpoint: quinn::Endpoint,
    (keys, admin): (EndpointKeys, AdminTls),
    kek: Arc<Kek>,
    bootstrap: bootstrap::Bootstrap,
    net_wake: Arc<tokio::sync::Notify>,
    control: Arc<NodeControl>,
    peering: Option<Peering>,
    events: &mpsc::Sender<Event>,
) -> Result<(), ServeError> {
    let directory = Directory::new(kek, config.gateway.timestamp_window_s * 1000);
    let net = Net::new(
        NetSettings {
            shards: config.shards,
            site: config.site as u8,
            sites: config.sites.len() as u8,
            cluster: config.cluster,
            in_flight_max: config.gateway.in_flight_max,
            gateways: config.gateways.len(),
            outstanding_max: config.worker.outstanding_max as usize,
            queue_delay_max_us: config.worker.queue_delay_max_ms * 1000,
            delay_target_us: config.worker.delay_target_us(config.sites.len()),
            awake_share_percent: config.worker.awake_share(),
            awake_latency_us: config.worker.awake_latency_us,
            batch_items_max: 4096,
        },
        vec![Arc::clone(control.exchange())],
        directory,
        Arc::clone(control.metrics()),
        Arc::clone(&control),
        peering.as_ref().map(|peering| {
            let (mesh, ferry) = (Arc::clone(control.mesh()), Arc::clone(&peering.ferry));
            Forwarder::new(mesh, ferry, config.engine.sync_wait_ms * 1000)
        }),
    );
    tokio::task::spawn_local(Rc::clone(&net).run_forwarding());
    tokio::task::spawn_local(Rc::clone(&net).run_flusher());
    tokio::task::spawn_local(Rc::clone(&net).run_moments());
    tokio::task::spawn_local(Rc::clone(&net).run_dispatcher(net_wake));
    let witness = config.this_site().witness;
    if witness {
        // It never leads: no channel to talk to, and no gateway to answer.
        endpoint.set_server_config(None);
    } else {
        start_links(&config, &net)?;
    }
    bootstrap.start(&net, &control);
    tokio::task::spawn_local(control::run_commands(Rc::clone(&net), Arc::clone(&control)));
    let config = Rc::new(config);
    let reload = Reload {
        config: Rc::clone(&config),
        keys,
        endpoint: endpoint.clone(),
        admin,
        net: Rc::clone(&net),
        peers: peering.map(|peering| peering.peers),
    };
    reload.start()?;
    let front = Rc::new(Front { net: Rc::clone(&net), config });
    tokio::task::spawn_local(Rc::clone(&front).run_sweeper());
    if !witness {
        tokio::task::spawn_local(Rc::clone(&front).run(endpoint.clone()));
    }
    tokio::task::spawn_local(say_listening(Rc::clone(&net), Arc::clone(&control)));
    stop_signal().await?;
    drain(&net, &control).await;
    drop(events.send(Event::Drained));
    // The answers of the last commits still have to leave.
    std::future::pending::<()>().await;
    Ok(())
}

fn start_links(config: &Config, net: &Rc<Net>) -> Result<(), ServeError> {
    for channel in &config.channels {
        let client =
            tls::channel_client(channel).map_err(|error| ServeError::Config(error.to_string()))?;
        let local: SocketAddr = if channel.address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let socket = bind_udp("channel socket", local, config.gateway.udp_buffer_kib)?;
        let endpoint = quinn::Endpoint::new(
            tls::channel_endpoint(),
            None,
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(|error| ServeError::Environment(error.to_string()))?;
        let link = Link::new(channel.clone(), client);
        net.links.borrow_mut().push(Rc::clone(&link));
        link.run(net, &endpoint);
    }
    Ok(())
}

/// Says that the site is ready once its channels were tried: the first payments
/// would be refused for want of a channel. One that does not answer is not waited
/// for; what concerns the others, and queries, can be served.
async fn say_listening(net: Rc<Net>, control: Arc<NodeControl>) {
    let links = net.links.borrow().clone();
    let tried = async {
        for link in links {
            link.tried().await;
        }
    };
    // Not reached within the bound: that is an answer, too.
    drop(tokio::time::timeout(CHANNELS_TRIED_MAX, tried).await);
    control.listening();
}

async fn stop_signal() -> Result<(), ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| ServeError::Environment(error.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Hands the shards led here to the other sites, while requests go on.
async fn hand_over(control: &NodeControl) {
    if control.mesh().sites() == 1 {
        return;
    }
    control.leave();
    let started = Instant::now();
    while control.leads_any() && started.elapsed() < HAND_OVER_MAX {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Refuses new payments, tells every gateway, waits for the answers in flight.
async fn drain(net: &Rc<Net>, control: &NodeControl) {
    println!("stopping: {} requests in flight", net.outstanding.get());
    hand_over(control).await;
    net.draining.set(true);
    control.draining();
    for connection in net.connections() {
        connection.go_away();
    }
    let started = Instant::now();
    while net.outstanding.get() > 0 && started.elapsed() < GO_AWAY_MAX {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One more turn for the answers to be written.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for connection in net.connections() {
        connection.close(protocol::code::CloseCode::Draining, "the site stops");
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
}
