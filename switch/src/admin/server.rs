//! Listeners, TLS and connections of the admin server: one thread, a bounded
//! number of connections, a bound on every wait.

use super::control::Control;
use super::routes::{Context, Peer, answer};
use crate::config::{AdminConfig, Config};
use crate::secret::{Kek, SecretError};
use crate::tls::{self, Role, TlsError};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use protocol::id::ShortText;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

const CONNECTIONS_MAX: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection's whole life: an operator's tool simply opens the next one.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Pause after a failed accept (out of file descriptors), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The port is taken, or the address is not ours.
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        /// `admin.listen` or `admin.tls_listen`.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key-encryption key.
    #[error(transparent)]
    Kek(#[from] SecretError),
    /// The thread or its runtime does not start.
    #[error("cannot start the admin thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts the admin server of a site's configuration.
///
/// # Errors
/// [`AdminError`].
pub fn start(config: &Config, control: Arc<dyn Control>) -> Result<AdminServer, AdminError> {
    let kek = Arc::new(Kek::load(&config.keys.kek)?);
    AdminServer::start(&config.admin, AdminTls::load(&config.admin)?, control, kek)
}

/// The server's certificate, key and authorities, which can be replaced while
/// it runs.
#[derive(Clone)]
pub struct AdminTls(Arc<Mutex<Arc<rustls::ServerConfig>>>);

impl AdminTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] naming the file at fault.
    pub fn load(config: &AdminConfig) -> Result<Self, TlsError> {
        tls::admin_server(config).map(|server| Self(Arc::new(Mutex::new(server))))
    }

    /// Connections from now on see these settings.
    pub fn replace(&self, server: Arc<rustls::ServerConfig>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    fn acceptor(&self) -> TlsAcceptor {
        let server = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&server))
    }
}

/// A running admin server; stops when dropped.
pub struct AdminServer {
    plain: SocketAddr,
    tls: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Opens the ports and serves on a thread of its own.
    ///
    /// # Errors
    /// [`AdminError`]; no port stays open then.
    pub fn start(
        config: &AdminConfig,
        tls: AdminTls,
        control: Arc<dyn Control>,
        kek: Arc<Kek>,
    ) -> Result<Self, AdminError> {
        let plain = listen("admin.listen", config.listen)?;
        let secure = config.tls_listen.map(|at| listen("admin.tls_listen", at)).transpose()?;
        let (plain_at, secure_at) =
            (plain.local_addr()?, secure.as_ref().map(|s| s.local_addr()).transpose()?);
        let (stop, stopped) = watch::channel(false);
        let context = Arc::new(Context::new(control, kek));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            let secure = secure.map(|listener| (listener, tls));
            runtime.block_on(serve(plain, secure, context, stopped));
        })?;
        Ok(Self { plain: plain_at, tls: secure_at, stop, thread: Some(thread) })
    }

    /// Where plain HTTP listens.
    pub fn plain_address(&self) -> SocketAddr {
        self.plain
    }

    /// Where HTTPS listens.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // The receiver is gone only when the thread has ended already.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(what: &'static str, address: SocketAddr) -> Result<StdTcpListener, AdminError> {
    let bound = StdTcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| AdminError::Listen { what, address, source })
}

async fn serve(
    plain: StdTcpListener,
    secure: Option<(StdTcpListener, AdminTls)>,
    context: Arc<Context>,
    mut stopped: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // `from_std` fails only outside a runtime or on a blocking socket.
    let Ok(plain) = TcpListener::from_std(plain) else { return };
    tokio::spawn(accept_plain(plain, context.clone(), slots.clone()));
    if let Some((listener, tls)) = secure {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        // Slots of its own: a flood on the plain port must not lock operators out.
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tokio::spawn(accept_tls(listener, tls, context, slots));
    }
    // An error means that the server object is gone: stop as well.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// The next connection, with its slot. Without a free slot a connection is
/// closed at once: the kernel's queue is no place to wait.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            return (stream, slot);
        }
    }
}

async fn accept_plain(listener: TcpListener, context: Arc<Context>, slots: Arc<Semaphore>) {
    loop {
        let (stream, slot) = accept(&listener, &slots).await;
        let context = context.clone();
        tokio::spawn(async move {
            connection(stream, Peer::Plain, context).await;
            drop(slot);
        });
    }
}

async fn accept_tls(
    listener: TcpListener,
    tls: AdminTls,
    context: Arc<Context>,
    slots: Arc<Semaphore>,
) {
    loop {
        let (stream, slot) = accept(&listener, &slots).await;
        let (context, acceptor) = (context.clone(), tls.acceptor());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
            if let Ok(Ok(stream)) = handshake.await {
                let peer = peer(stream.get_ref().1);
                connection(stream, peer, context).await;
            }
            drop(slot);
        });
    }
}

/// Who the verified client certificate belongs to.
fn peer(session: &rustls::ServerConnection) -> Peer {
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let Some(certificate) = certificate else {
        return Peer::Stranger("no client certificate".to_owned());
    };
    match tls::identity(certificate) {
        Ok(identity) if identity.role == Role::Admin => {
            let stranger = || Peer::Stranger("the operator's name is not ASCII".to_owned());
            ShortText::new(identity.name.as_bytes()).map_or_else(stranger, Peer::Operator)
        }
        Ok(identity) => Peer::Stranger(format!(
            "the certificate of {} has the role {}",
            identity.name,
            identity.role.label()
        )),
        Err(error) => Peer::Stranger(error.to_string()),
    }
}

async fn connection<S>(stream: S, peer: Peer, context: Arc<Context>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (context, peer) = (&context, &peer);
        async move { Ok::<_, Infallible>(answer(context, peer, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    // How a connection ends says nothing about the node: nothing to report.
    let _ = tokio::time::timeout(CONNECTION_AGE, connection).await;
}
