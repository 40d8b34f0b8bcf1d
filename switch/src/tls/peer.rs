//! Settings of the links between sites: each site is server and client on one
//! endpoint, and shows its site certificate in both parts.

use super::transport::{PAYLOAD_MAX, base_transport, idle_timeout, kib};
use super::{
    ALPN_PEER, Credentials, EndpointKeys, Role, TlsError, certificates, identity, refuse_early_data,
};
use crate::config::{Config, GatewayConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// Interval of keep-alive packets on an idle link.
const KEEP_ALIVE: Duration = Duration::from_millis(100);
/// A link without a packet for this long is gone, milliseconds.
const IDLE_MS: u64 = 1_000;
/// UDP payload before discovery. The way between data centres may lead through
/// tunnels: what every path carries comes first, larger packets once proven.
const INITIAL_MTU: u16 = 1_200;
/// Handshakes that quinn holds before the site looks at them.
const INCOMING_MAX: usize = 64;

/// Both parts of a site's peer endpoint.
#[derive(Clone)]
pub struct PeerTls {
    /// For connections of other sites.
    pub server: quinn::ServerConfig,
    /// For connections to other sites.
    pub client: quinn::ClientConfig,
}

impl PeerTls {
    /// Reads the site's certificate, which is its gateway front's.
    ///
    /// # Errors
    /// [`TlsError`]: files, certificate, or early data.
    pub fn load(gateway: &GatewayConfig, keys: &EndpointKeys) -> Result<Self, TlsError> {
        let credentials = Credentials::load(&gateway.cert, &gateway.key, &gateway.ca)?;
        let transport = Arc::new(peer_transport());
        let tls = credentials.server(ALPN_PEER)?;
        refuse_early_data(&tls)?;
        let crypto = QuicServerConfig::try_from(tls).map_err(|_| TlsError::InitialSuite)?;
        let mut server = quinn::ServerConfig::new(Arc::new(crypto), keys.token_key());
        server
            .transport_config(Arc::clone(&transport))
            .retry_token_lifetime(Duration::from_secs(15))
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(1 << 20);
        let crypto = QuicClientConfig::try_from(credentials.client(ALPN_PEER)?)
            .map_err(|_| TlsError::InitialSuite)?;
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(transport);
        Ok(Self { server, client })
    }
}

/// Refuses a certificate with which no other site would take this one for a
/// site; where there are no others, any will do.
///
/// # Errors
/// [`TlsError::NotASite`], or the file cannot be read.
pub fn require_site_role(config: &Config) -> Result<(), TlsError> {
    if config.sites.len() < 2 {
        return Ok(());
    }
    let gateway = &config.gateway;
    let chain = certificates(&gateway.cert)?;
    // `certificates` refuses an empty chain.
    let is_site = identity(&chain[0]).is_ok_and(|identity| identity.role == Role::Site);
    if is_site { Ok(()) } else { Err(TlsError::NotASite { path: gateway.cert.clone() }) }
}

/// The peer endpoint's own settings. It shares the gateway endpoint's keys:
/// connection ids are random, so that no reset token is made twice.
pub fn peer_endpoint(keys: &EndpointKeys) -> EndpointConfig {
    let mut config = keys.endpoint();
    // Refused only below 1200.
    let _ = config.max_udp_payload_size(PAYLOAD_MAX);
    config
}

/// One bidirectional stream for forwarded requests and their answers, three
/// unidirectional ones for the replicas; windows for 10 Gbit/s over 10 ms.
fn peer_transport() -> TransportConfig {
    let mut transport = base_transport(INITIAL_MTU);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(3))
        .stream_receive_window(kib(8 * 1024))
        .receive_window(kib(16 * 1024))
        .send_window(16 << 20)
        .max_idle_timeout(idle_timeout(IDLE_MS))
        .keep_alive_interval(Some(KEEP_ALIVE));
    transport
}
