//! TLS and QUIC settings: who may speak, with which ciphers, over which
//! transport parameters.
//!
//! TLS 1.3 only, the aws-lc-rs provider named explicitly, client certificates
//! always demanded, no tickets and no early data (a resumed session would
//! outlive a withdrawn authority; a replayed early request would be a second
//! pay). Knows no socket. Tested with certificates made by `init`.

use crate::config::{ChannelSection, GatewayConfig};
use crate::secret::{SecretError, read_private};
use aws_lc_rs::{hkdf, hmac, rand};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, IdleTimeout, MtuDiscoveryConfig,
    TransportConfig, VarInt,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// ALPN of the gateway protocol: its version.
pub const ALPN_GATEWAY: &[u8] = b"payswitch/1";
/// ALPN of the native channel protocol.
pub const ALPN_CHANNEL: &[u8] = b"payswitch-channel/1";
/// ALPN of the admin server.
pub const ALPN_ADMIN: &[u8] = b"http/1.1";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read or holds nothing of the kind.
    #[error("cannot read {what} from {}: {source}", path.display())]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The private key's file cannot be read or is readable by others.
    #[error(transparent)]
    Key(#[from] SecretError),
    /// A certificate of the authorities' file is not usable.
    #[error("{} holds an unusable authority: {source}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Certificate and key do not go together, or an algorithm is unknown.
    #[error("certificate {} with its key: {source}", path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The client verifier cannot be built from the authorities.
    #[error("cannot verify clients against {}: {source}", path.display())]
    Verifier {
        /// The authorities' file.
        path: PathBuf,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
    /// The settings would accept early data.
    #[error("early data is on; it must be off: a replayed pay would be a second pay")]
    EarlyData,
    /// The provider has no cipher suite for QUIC's first packets.
    #[error("the crypto provider has no cipher suite for QUIC's first packets")]
    InitialSuite,
    /// The endpoint's persistent keys cannot be read or written.
    #[error("endpoint keys {}: {source}", path.display())]
    EndpointKeys {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The endpoint's persistent keys are damaged.
    #[error("{} is damaged; remove it (connections of before a restart then end by time-out)", path.display())]
    EndpointKeysDamaged {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// Certificate chain, private key and trusted authorities of one end.
pub struct Credentials {
    path: PathBuf,
    ca_path: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl Credentials {
    /// Reads three PEM files; the key's must be private to its owner.
    ///
    /// # Errors
    /// [`TlsError`] naming the file at fault.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, TlsError> {
        let chain = certificates(cert)?;
        let pem = read_private(key)?;
        let private = PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|source| {
            TlsError::Pem { what: "a private key", path: key.to_owned(), source }
        })?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca)? {
            roots
                .add(authority)
                .map_err(|source| TlsError::Authority { path: ca.to_owned(), source })?;
        }
        Ok(Self {
            path: cert.to_owned(),
            ca_path: ca.to_owned(),
            chain,
            key: private,
            roots: Arc::new(roots),
        })
    }

    /// This end's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        // `load` refuses an empty chain.
        &self.chain[0]
    }

    /// Server settings that demand a client certificate of the authorities.
    ///
    /// # Errors
    /// [`TlsError`]: certificate and key do not match, or early data would be on.
    pub fn server(&self, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(crypto_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone())
                .build()
                .map_err(|source| TlsError::Verifier { path: self.ca_path.clone(), source })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| self.certificate_error(source))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|source| self.certificate_error(source))?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }

    /// Client settings that show this end's certificate.
    ///
    /// # Errors
    /// [`TlsError`]: certificate and key do not match.
    pub fn client(&self, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(crypto_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| self.certificate_error(source))?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|source| self.certificate_error(source))?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.enable_early_data = false;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn certificate_error(&self, source: rustls::Error) -> TlsError {
        TlsError::Certificate { path: self.path.clone(), source }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::Pem { what: "certificates", path: path.to_owned(), source };
    let chain = CertificateDer::pem_file_iter(path)
        .map_err(error)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(error)?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(chain)
}

/// aws-lc-rs with TLS 1.3 suites only, AES-128-GCM first: the cheapest here,
/// and QUIC's first packets need it anyway.
pub fn crypto_provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..provider::default_provider()
    }
}

/// Refuses settings that would accept early data, wherever they come from.
///
/// # Errors
/// [`TlsError::EarlyData`].
pub fn refuse_early_data(config: &ServerConfig) -> Result<(), TlsError> {
    let off = config.max_early_data_size == 0 && config.send_tls13_tickets == 0;
    if off { Ok(()) } else { Err(TlsError::EarlyData) }
}

/// The gateway front's QUIC server settings.
///
/// # Errors
/// [`TlsError`]: files, certificate, or early data.
pub fn gateway_server(
    gateway: &GatewayConfig,
    keys: &EndpointKeys,
) -> Result<quinn::ServerConfig, TlsError> {
    let credentials = Credentials::load(&gateway.cert, &gateway.key, &gateway.ca)?;
    let tls = credentials.server(ALPN_GATEWAY)?;
    refuse_early_data(&tls)?;
    let crypto = Arc::new(QuicServerConfig::try_from(tls).map_err(|_| TlsError::InitialSuite)?);
    let mut config = quinn::ServerConfig::new(crypto, keys.token_key());
    config
        .transport_config(Arc::new(gateway_transport(gateway)))
        .retry_token_lifetime(Duration::from_secs(15))
        .max_incoming(gateway.handshakes_max.saturating_mul(4) as usize)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(16 << 20);
    Ok(config)
}

/// The link's QUIC client settings towards a native channel.
///
/// # Errors
/// [`TlsError`]: files or certificate.
pub fn channel_client(channel: &ChannelSection) -> Result<quinn::ClientConfig, TlsError> {
    let credentials = Credentials::load(&channel.cert, &channel.key, &channel.ca)?;
    let crypto = QuicClientConfig::try_from(credentials.client(ALPN_CHANNEL)?)
        .map_err(|_| TlsError::InitialSuite)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(channel_transport(channel)));
    Ok(config)
}

/// Transport parameters of gateway connections.
pub fn gateway_transport(gateway: &GatewayConfig) -> TransportConfig {
    let mut transport = base_transport(gateway.initial_mtu);
    let keep_alive =
        (gateway.keep_alive_ms > 0).then(|| Duration::from_millis(gateway.keep_alive_ms));
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(gateway.streams_max))
        .stream_receive_window(kib(gateway.stream_receive_window_kib))
        .receive_window(kib(gateway.receive_window_kib))
        .send_window(u64::from(gateway.send_window_kib) << 10)
        .max_idle_timeout(idle_timeout(gateway.idle_timeout_ms))
        .keep_alive_interval(keep_alive)
        .ack_frequency_config(ack_frequency(
            gateway.ack_eliciting_threshold,
            Duration::from_millis(gateway.max_ack_delay_ms),
        ));
    transport
}

/// Transport parameters of a native channel's connections. We are the client:
/// we keep the connection alive and notice its silence long before the
/// channel's reply time-out.
pub fn channel_transport(channel: &ChannelSection) -> TransportConfig {
    let idle_ms = channel.reply_timeout_ms.clamp(1_000, 3_000);
    let mut transport = base_transport(1452);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(kib(1024))
        .receive_window(kib(8 * 1024))
        .send_window(8 << 20)
        .max_idle_timeout(idle_timeout(idle_ms))
        .keep_alive_interval(Some(Duration::from_millis(idle_ms / 4)))
        .ack_frequency_config(ack_frequency(10, Duration::from_millis(5)));
    transport
}

/// What all our links share: no unidirectional streams, no datagrams, first
/// come first sent, and a first round-trip guess of a local network (quinn's
/// 333 ms would make one lost first packet cost a second).
fn base_transport(initial_mtu: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(initial_mtu.max(1452));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .send_fairness(false)
        .allow_spin(false)
        .initial_rtt(Duration::from_millis(5))
        .initial_mtu(initial_mtu)
        .mtu_discovery_config(Some(discovery));
    transport
}

fn kib(value: u32) -> VarInt {
    // Windows are bounded to 1 GiB by the configuration: far below 2^32.
    VarInt::from_u32(value.saturating_mul(1024))
}

fn idle_timeout(ms: u64) -> Option<IdleTimeout> {
    // The configuration bounds it to ten minutes: always a legal VarInt.
    IdleTimeout::try_from(Duration::from_millis(ms)).ok()
}

fn ack_frequency(threshold: u32, delay: Duration) -> Option<AckFrequencyConfig> {
    (threshold > 0).then(|| {
        let mut config = AckFrequencyConfig::default();
        config.ack_eliciting_threshold(VarInt::from_u32(threshold)).max_ack_delay(Some(delay));
        config
    })
}

/// Keys of a QUIC endpoint that must outlive the process: with them a client
/// learns of a restart at its first packet instead of by time-out.
pub struct EndpointKeys {
    reset: [u8; 64],
    token: [u8; 64],
}

const ENDPOINT_KEYS_LEN: usize = 64 + 64;

impl EndpointKeys {
    /// Reads `data_dir/endpoint.key`, creating it (mode 0600) when absent.
    ///
    /// # Errors
    /// [`TlsError::EndpointKeys`], [`TlsError::EndpointKeysDamaged`],
    /// [`TlsError::Key`] when others may read it.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, TlsError> {
        let path = data_dir.join("endpoint.key");
        if !path.exists() {
            Self::create(data_dir, &path)?;
        }
        let bytes = read_private(&path)?;
        Self::parse(bytes.expose()).ok_or(TlsError::EndpointKeysDamaged { path })
    }

    fn create(data_dir: &Path, path: &Path) -> Result<(), TlsError> {
        let mut bytes = [0; ENDPOINT_KEYS_LEN];
        rand::fill(&mut bytes).map_err(|_| TlsError::Random)?;
        let written = std::fs::create_dir_all(data_dir)
            .and_then(|()| crate::secret::write_private(path, &bytes));
        written.map_err(|source| TlsError::EndpointKeys { path: path.to_owned(), source })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (reset, token) = bytes.split_first_chunk::<64>()?;
        Some(Self { reset: *reset, token: token.try_into().ok()? })
    }

    /// Endpoint settings with these keys.
    pub fn endpoint(&self) -> quinn::EndpointConfig {
        let reset = hmac::Key::new(hmac::HMAC_SHA256, &self.reset);
        let mut config = quinn::EndpointConfig::new(Arc::new(reset));
        config.cid_generator(|| Box::new(RandomCids));
        config
    }

    fn token_key(&self) -> Arc<hkdf::Prk> {
        Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, b"payswitch retry").extract(&self.token))
    }
}

/// Random connection ids of which none is ruled out as foreign: quinn's default
/// generator knows only ids of its own process and drops packets of an earlier
/// one silently, where we want to answer them with a stateless reset. (quinn
/// bounds the rate of resets per endpoint by itself.)
struct RandomCids;

const CID_LEN: usize = 8;

impl ConnectionIdGenerator for RandomCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CID_LEN];
        // Without randomness no handshake could have come this far.
        rand::fill(&mut bytes).expect("system randomness");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Who may do what: the role is in the certificate's DNS name,
/// `NAME.ROLE.payswitch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A site of the cluster.
    Site,
    /// A caller.
    Gateway,
    /// An operator.
    Admin,
    /// A payment service, or our client certificate towards one.
    Channel,
}

impl Role {
    /// The part of the DNS name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
            Self::Channel => "channel",
        }
    }

    fn from_label(label: &str) -> Option<Self> {
        [Self::Site, Self::Gateway, Self::Admin, Self::Channel]
            .into_iter()
            .find(|role| role.label() == label)
    }
}

/// Who a verified certificate belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What it may be used for.
    pub role: Role,
    /// Name within the role, at most 32 bytes.
    pub name: String,
}

/// Why a certificate gives no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// No DNS name of the form `NAME.ROLE.payswitch`.
    #[error("the certificate has no name of the form NAME.ROLE.payswitch")]
    NoRole,
    /// Several names with a role.
    #[error("the certificate has more than one name of the form NAME.ROLE.payswitch")]
    Ambiguous,
}

/// Reads the identity from a certificate whose chain TLS has verified.
///
/// # Errors
/// [`IdentityError`]: exactly one name must carry a role.
pub fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
    let parsed =
        webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Malformed)?;
    let mut identities = parsed.valid_dns_names().filter_map(parse_identity);
    let identity = identities.next().ok_or(IdentityError::NoRole)?;
    if identities.next().is_some() {
        return Err(IdentityError::Ambiguous);
    }
    Ok(identity)
}

fn parse_identity(dns_name: &str) -> Option<Identity> {
    let dns_name = dns_name.to_ascii_lowercase();
    let (name, role) = dns_name.strip_suffix(".payswitch")?.rsplit_once('.')?;
    let role = Role::from_label(role)?;
    let plain = !name.contains(['.', '*']) && (1..=32).contains(&name.len());
    plain.then(|| Identity { role, name: name.to_owned() })
}
