//! QUIC: transport parameters of our links, and the keys of an endpoint that
//! outlive the process.

use super::{
    ALPN_ADMIN, ALPN_CHANNEL, ALPN_GATEWAY, Credentials, TlsError, refuse_early_data, require_name,
};
use crate::config::{AdminConfig, ChannelSection, Config, GatewayConfig};
use crate::secret::read_private;
use aws_lc_rs::{hkdf, hmac, rand};
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, TransportConfig, VarInt,
};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The gateway front's settings of a site: as [`gateway_server`], with a
/// certificate for the name that gateways look for.
///
/// # Errors
/// As [`gateway_server`]; [`TlsError::WrongName`].
pub fn site_server(config: &Config, keys: &EndpointKeys) -> Result<quinn::ServerConfig, TlsError> {
    require_site_name(config)?;
    gateway_server(&config.gateway, keys)
}

/// Refuses a gateway certificate that is not for this site's name.
///
/// # Errors
/// [`TlsError::WrongName`], or the file cannot be read.
pub fn require_site_name(config: &Config) -> Result<(), TlsError> {
    // The configuration's check: this site is one of them.
    let own = config.sites.iter().find(|site| site.id == config.site);
    own.map_or(Ok(()), |site| require_name(&config.gateway.cert, &site.server_name))
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

/// The operators' HTTPS server settings.
///
/// # Errors
/// [`TlsError`]: files, certificate, or early data.
pub fn admin_server(admin: &AdminConfig) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let credentials = Credentials::load(&admin.cert, &admin.key, &admin.ca)?;
    let server = credentials.server(ALPN_ADMIN)?;
    refuse_early_data(&server)?;
    Ok(Arc::new(server))
}

/// The gateway front's endpoint settings: persistent keys, and packets as large
/// as the configured MTU accepted (quinn's bound is 1472 bytes).
pub fn gateway_endpoint(gateway: &GatewayConfig, keys: &EndpointKeys) -> EndpointConfig {
    let mut config = keys.endpoint();
    // The configuration bounds the MTU below 65 527: never an error.
    let _ = config.max_udp_payload_size(gateway.initial_mtu.max(PAYLOAD_MAX));
    config
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

/// Endpoint settings of channel links: large enough for what discovery finds.
pub fn channel_endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // Refused only below 1200.
    let _ = config.max_udp_payload_size(PAYLOAD_MAX);
    config
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
    let idle_ms = channel.link_idle_ms();
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

/// Largest UDP payload that path discovery tries: what an Ethernet frame carries. Jumbo
/// frames gained nothing that could be told from noise.
pub const PAYLOAD_MAX: u16 = 1_472;
/// Bytes in flight before the first acknowledgement. Our traffic is bursts of whole
/// batches with pauses between them, in which a window of ten packets does not
/// grow: each burst would wait for a delayed acknowledgement.
const INITIAL_WINDOW: u64 = 1 << 20;

/// What all our links share: no unidirectional streams, no datagrams, first
/// come first sent, and a first round-trip guess of a local network (quinn's
/// 333 ms would make one lost first packet cost a second).
pub(super) fn base_transport(initial_mtu: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(initial_mtu.max(PAYLOAD_MAX));
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .send_fairness(false)
        .allow_spin(false)
        .initial_rtt(Duration::from_millis(5))
        .initial_mtu(initial_mtu)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion));
    transport
}

pub(super) fn kib(value: u32) -> VarInt {
    // Windows are bounded to 1 GiB by the configuration: far below 2^32.
    VarInt::from_u32(value.saturating_mul(1024))
}

pub(super) fn idle_timeout(ms: u64) -> Option<IdleTimeout> {
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
    /// Reads `data_dir/endpoint.key`, creating it (mode 0600) and the directory
    /// (mode 0700) when absent.
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
        let written = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .and_then(|()| crate::secret::write_private(path, &bytes));
        written.map_err(|source| TlsError::EndpointKeys { path: path.to_owned(), source })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (reset, token) = bytes.split_first_chunk::<64>()?;
        Some(Self { reset: *reset, token: token.try_into().ok()? })
    }

    /// Endpoint settings with these keys.
    pub fn endpoint(&self) -> EndpointConfig {
        let reset = hmac::Key::new(hmac::HMAC_SHA256, &self.reset);
        let mut config = EndpointConfig::new(Arc::new(reset));
        config.cid_generator(|| Box::new(RandomCids));
        config
    }

    pub(super) fn token_key(&self) -> Arc<hkdf::Prk> {
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
