//! TLS and transport settings of a client: TLS 1.3 only, aws-lc-rs, no early
//! data, no resumption, and the transport limits that a gateway link needs.
//!
//! Certificates come as PEM bytes: reading files is the caller's business.

use super::config::ClientConfig;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use std::time::Duration;

/// ALPN of the gateway protocol.
const ALPN: &[u8] = b"payswitch/1";

/// Unidirectional streams that the server opens.
const CONTROL_STREAMS: u32 = 1;

/// Why a client configuration cannot be built. Holds no key material.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The PEM text of the authorities holds no usable certificate.
    #[error("no usable certificate authority in the PEM text")]
    Authority,
    /// The PEM text of the chain holds no certificate.
    #[error("no certificate in the PEM text")]
    Certificate,
    /// The PEM text of the key holds no private key.
    #[error("no private key in the PEM text")]
    Key,
    /// Certificate and key do not go together, or their algorithm is unknown.
    #[error("certificate and key do not go together")]
    Mismatch,
    /// The provider lacks TLS 1.3 or QUIC's initial cipher suite.
    #[error("the crypto provider lacks TLS 1.3 for QUIC")]
    Provider,
}

/// Transport limits of a connection. The defaults suit a link within a site or
/// a region; windows bound the memory that a peer can make us hold.
#[derive(Clone, Debug)]
pub struct Transport {
    /// UDP payload tried from the first packet on, bytes.
    pub initial_mtu: u16,
    /// Largest UDP payload that path discovery tries, bytes.
    pub mtu_max: u16,
    /// Packets per acknowledgement; 0 leaves the standard's every second. High
    /// values hurt on lossy paths.
    pub ack_threshold: u32,
    /// Longest delay of an acknowledgement.
    pub ack_delay_max: Duration,
    /// A silent connection is kept alive by a packet after this.
    pub keep_alive: Duration,
    /// A connection is given up after this silence.
    pub idle_max: Duration,
    /// Unread bytes of one stream.
    pub stream_window: u32,
    /// Unread bytes of one connection.
    pub receive_window: u32,
    /// Unacknowledged bytes of one connection.
    pub send_window: u64,
    /// Congestion window before the first acknowledgement, bytes: our traffic is
    /// bursts with pauses, in which a small window does not grow.
    pub initial_window: u64,
    /// First guess of the round trip: makes one lost first packet cheap.
    pub initial_rtt: Duration,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            initial_mtu: 1_452,
            mtu_max: 1_472,
            ack_threshold: 10,
            ack_delay_max: Duration::from_millis(5),
            keep_alive: Duration::from_millis(500),
            idle_max: Duration::from_secs(3),
            stream_window: 256 << 10,
            receive_window: 2 << 20,
            send_window: 4 << 20,
            initial_window: 1 << 20,
            initial_rtt: Duration::from_millis(5),
        }
    }
}

impl Transport {
    /// quinn's settings: no datagrams, no bidirectional streams from the peer,
    /// first come first sent.
    fn build(&self) -> TransportConfig {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu_max.max(self.initial_mtu));
        let mut congestion = CubicConfig::default();
        congestion.initial_window(self.initial_window);
        let ack_frequency = (self.ack_threshold > 0).then(|| {
            let mut config = AckFrequencyConfig::default();
            config
                .ack_eliciting_threshold(VarInt::from_u32(self.ack_threshold))
                .max_ack_delay(Some(self.ack_delay_max));
            config
        });
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(CONTROL_STREAMS))
            .datagram_receive_buffer_size(None)
            .send_fairness(false)
            .allow_spin(false)
            .initial_rtt(self.initial_rtt)
            .initial_mtu(self.initial_mtu)
            .mtu_discovery_config(Some(discovery))
            .congestion_controller_factory(Arc::new(congestion))
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.receive_window))
            .send_window(self.send_window)
            .max_idle_timeout(IdleTimeout::try_from(self.idle_max).ok())
            .keep_alive_interval(Some(self.keep_alive))
            .ack_frequency_config(ack_frequency);
        transport
    }
}

/// The QUIC settings of a client: TLS 1.3 with a client certificate, early data
/// off, nothing resumed (a resumed session would outlive a withdrawn
/// certificate, a replayed early request would be a second pay).
///
/// # Errors
/// [`TlsError`] naming what is wrong with the PEM texts.
pub(super) fn client_config(config: &ClientConfig) -> Result<quinn::ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&config.ca_pem, TlsError::Authority)? {
        roots.add(authority).map_err(|_| TlsError::Authority)?;
    }
    let chain = certificates(&config.cert_pem, TlsError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&config.key_pem).map_err(|_| TlsError::Key)?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // AES-128-GCM first: the cheapest suite on every machine we run on.
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| TlsError::Provider)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|_| TlsError::Mismatch)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = false;
    tls.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(|_| TlsError::Provider)?;
    let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
    quic.transport_config(Arc::new(config.transport.build()));
    Ok(quic)
}

fn certificates(pem: &[u8], error: TlsError) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or(error)
}
