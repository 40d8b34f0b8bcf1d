use super::*;
use crate::config::Config;
use crate::init::{InitOptions, init};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint};
use std::net::SocketAddr;
use std::time::Duration;

/// A deployment on disk.
struct Deployment {
    dir: tempfile::TempDir,
    config: Config,
}

fn deployment() -> Deployment {
    let dir = tempfile::tempdir().unwrap();
    let options = InitOptions {
        dir: dir.path().to_owned(),
        sites: 1,
        merchants: 1,
        port_base: 7400,
        force: false,
        witness: false,
    };
    init(&options).unwrap();
    let config = Config::load(&dir.path().join("site-1.toml")).unwrap();
    Deployment { dir, config }
}

impl Deployment {
    fn server(&self, address: SocketAddr) -> Endpoint {
        let keys = EndpointKeys::load_or_create(&self.config.data_dir).unwrap();
        let gateway = &self.config.gateway;
        let config = gateway_server(gateway, &keys).unwrap();
        let socket = std::net::UdpSocket::bind(address).unwrap();
        let runtime = Arc::new(quinn::TokioRuntime);
        Endpoint::new(gateway_endpoint(gateway, &keys), Some(config), socket, runtime).unwrap()
    }

    fn client(&self, name: &str, alpn: &[u8]) -> quinn::ClientConfig {
        let file = |name: String| self.dir.path().join("certs").join(name);
        let (cert, key) = (file(format!("{name}.pem")), file(format!("{name}.key")));
        let credentials = Credentials::load(&cert, &key, &self.config.gateway.ca).unwrap();
        quic_client(credentials.client(alpn).unwrap())
    }
}

fn quic_client(tls: ClientConfig) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(20)));
    config.transport_config(Arc::new(transport));
    config
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

const SERVER_NAME: &str = "site-1.site.payswitch";

async fn connect(
    address: SocketAddr,
    config: quinn::ClientConfig,
) -> Result<quinn::Connection, ConnectionError> {
    let endpoint = Endpoint::client(any()).unwrap();
    endpoint.connect_with(config, address, SERVER_NAME).unwrap().await
}

/// The identity that the server sees, or how the connection ended for it.
async fn accepted(server: &Endpoint) -> Result<Identity, ConnectionError> {
    let connection = server.accept().await.unwrap().await?;
    Ok(peer_identity(&connection).unwrap())
}

#[test]
fn the_front_sees_who_connects() {
    let deployment = deployment();
    runtime().block_on(async {
        let server = deployment.server(any());
        let address = server.local_addr().unwrap();
        for (name, role) in [("gw-1", Role::Gateway), ("site-1", Role::Site)] {
            let client = deployment.client(name, ALPN_GATEWAY);
            let (connection, seen) = tokio::join!(connect(address, client), accepted(&server));
            assert!(connection.is_ok(), "{connection:?}");
            assert_eq!(seen.unwrap(), Identity { role, name: name.to_owned() });
            let site = Identity { role: Role::Site, name: "site-1".to_owned() };
            assert_eq!(peer_identity(&connection.unwrap()).unwrap(), site);
        }
    });
}

#[test]
fn other_versions_and_strangers_do_not_get_in() {
    let (ours, theirs) = (deployment(), deployment());
    let no_certificate = {
        let provider = Arc::new(crypto_provider());
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(&ours.config.gateway.ca).unwrap();
        roots.add(authority).unwrap();
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN_GATEWAY.to_vec()];
        quic_client(tls)
    };
    // Signed by another authority, yet trusting ours.
    let foreign = {
        let file = |name: &str| theirs.dir.path().join("certs").join(name);
        let ca = &ours.config.gateway.ca;
        let credentials = Credentials::load(&file("gw-1.pem"), &file("gw-1.key"), ca).unwrap();
        quic_client(credentials.client(ALPN_GATEWAY).unwrap())
    };
    // Right authority, but a certificate that is for servers only.
    let server_only = ours.client("native-1", ALPN_GATEWAY);
    let old_version = ours.client("gw-1", b"payswitch/0");
    runtime().block_on(async {
        let server = ours.server(any());
        let address = server.local_addr().unwrap();
        for (what, client) in [
            ("no certificate", no_certificate),
            ("foreign", foreign),
            ("server only", server_only),
            ("old version", old_version),
        ] {
            let (connection, seen) = tokio::join!(connect(address, client), accepted(&server));
            assert!(seen.is_err(), "{what}: {seen:?}");
            // A client may believe that it is connected until it reads: TLS 1.3.
            if let Ok(connection) = connection {
                let error = connection.closed().await;
                assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{what}: {error}");
            }
        }
        // A server of another deployment is not believed either.
        let client = theirs.client("gw-1", ALPN_GATEWAY);
        let (connection, seen) = tokio::join!(connect(address, client), accepted(&server));
        assert!(connection.is_err() && seen.is_err());
    });
}

/// A front on a thread of its own that accepts one connection and is then
/// killed: its runtime ends before the connection can say goodbye.
fn killed_after_one(deployment: &Arc<Deployment>) -> (SocketAddr, impl FnOnce() + use<>) {
    let (address, known) = std::sync::mpsc::channel();
    let (kill, killed) = tokio::sync::oneshot::channel::<()>();
    let deployment = deployment.clone();
    let thread = std::thread::spawn(move || {
        let runtime = runtime();
        let alive = runtime.block_on(async {
            let server = deployment.server(any());
            address.send(server.local_addr().unwrap()).unwrap();
            let connection = server.accept().await.unwrap().await.unwrap();
            killed.await.unwrap();
            (server, connection)
        });
        drop(runtime);
        drop(alive);
    });
    let kill = move || {
        kill.send(()).unwrap();
        thread.join().unwrap();
    };
    (known.recv().unwrap(), kill)
}

#[test]
fn a_restart_is_told_at_once() {
    let deployment = Arc::new(deployment());
    let (address, kill) = killed_after_one(&deployment);
    let client = deployment.client("gw-1", ALPN_GATEWAY);
    runtime().block_on(async {
        let connection = connect(address, client).await.unwrap();
        tokio::task::spawn_blocking(kill).await.unwrap();
        let _server = deployment.server(address);
        assert_eq!(connection.closed().await, ConnectionError::Reset);
    });
}

#[test]
fn endpoint_keys_persist_and_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    EndpointKeys::load_or_create(&data).unwrap();
    let path = data.join("endpoint.key");
    let bytes = std::fs::read(&path).unwrap();
    EndpointKeys::load_or_create(&data).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    std::fs::write(&path, &bytes[1..]).unwrap();
    let error = EndpointKeys::load_or_create(&data).err().unwrap();
    assert!(matches!(error, TlsError::EndpointKeysDamaged { .. }), "{error}");
}

#[test]
fn only_a_site_s_certificate_serves_towards_other_sites() {
    let deployment = deployment();
    let mut config = deployment.config.clone();
    require_site_role(&config).unwrap();
    config.gateway.cert = deployment.dir.path().join("certs/gw-1.pem");
    require_site_role(&config).expect("there are no other sites");
    config.sites.push(config.sites[0].clone());
    let error = require_site_role(&config).unwrap_err();
    assert!(matches!(error, TlsError::NotASite { .. }), "{error}");
}
