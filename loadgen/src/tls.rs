//! TLS and QUIC settings of the gateway, the simulated channel and the null
//! server: TLS 1.3 only, both ends show a certificate, no tickets, no early data.
//!
//! Knows no payment. Tested by the loopback tests of its users.

use crate::exit::Failure;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// ALPN of the gateway protocol.
pub(crate) const ALPN_GATEWAY: &[u8] = b"payswitch/1";
/// ALPN of the native channel protocol.
pub(crate) const ALPN_CHANNEL: &[u8] = b"payswitch-channel/1";

/// UDP payload that fits an Ethernet frame.
const MTU: u16 = 1452;

/// Certificate chain, private key and trusted authorities of one end.
pub(crate) struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl Credentials {
    /// Reads three PEM files.
    pub(crate) fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, Failure> {
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unusable("the private key", key, &error))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca)? {
            roots.add(authority).map_err(|error| unusable("the authority", ca, &error))?;
        }
        Ok(Self { chain: certificates(cert)?, key: private, roots: Arc::new(roots) })
    }

    /// QUIC client settings.
    pub(crate) fn client(
        &self,
        alpn: &[u8],
        transport: TransportConfig,
    ) -> Result<quinn::ClientConfig, Failure> {
        let built = rustls::ClientConfig::builder_with_provider(Arc::new(crypto_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map(|builder| builder.with_root_certificates(self.roots.clone()))
            .and_then(|builder| {
                builder.with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            });
        let mut tls = built.map_err(|error| Failure::usage(format_args!("TLS: {error}")))?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls.enable_early_data = false;
        tls.resumption = rustls::client::Resumption::disabled();
        let crypto = QuicClientConfig::try_from(tls)
            .map_err(|error| Failure::usage(format_args!("TLS: {error}")))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        Ok(config)
    }

    /// QUIC server settings that demand a client certificate.
    pub(crate) fn server(
        &self,
        alpn: &[u8],
        transport: TransportConfig,
    ) -> Result<quinn::ServerConfig, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::usage(format_args!("TLS: {error}"));
        let provider = Arc::new(crypto_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone())
                .build()
                .map_err(|error| failed(&error))?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| failed(&error))?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls.send_tls13_tickets = 0;
        tls.max_early_data_size = 0;
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| failed(&error))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable("a certificate", path, &error))?;
    if chain.is_empty() {
        return Err(Failure::usage(format_args!("{} holds no certificate", path.display())));
    }
    Ok(chain)
}

fn unusable(what: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format_args!("cannot use {what} of {}: {error}", path.display()))
}

/// TLS 1.3 suites only, AES-128-GCM first: the cheapest here.
fn crypto_provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..provider::default_provider()
    }
}

/// Largest UDP payload that path discovery tries.
pub(crate) const PAYLOAD_MAX: u16 = 1_472;
/// Bytes in flight before the first acknowledgement: traffic is bursts with pauses,
/// in which a small window does not grow.
const INITIAL_WINDOW: u64 = 1 << 20;

/// Transport parameters. `streams` bounds what the peer may open in both
/// directions, `uni` its one-way streams; a silent peer is gone after `idle`.
pub(crate) fn transport(
    streams: u32,
    uni: u32,
    idle: Duration,
    keep_alive: Option<Duration>,
) -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(10))
        .max_ack_delay(Some(Duration::from_millis(5)));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(PAYLOAD_MAX);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    let mut transport = TransportConfig::default();
    transport
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(uni))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(1 << 20))
        .receive_window(VarInt::from_u32(8 << 20))
        .send_window(8 << 20)
        .send_fairness(false)
        .allow_spin(false)
        .initial_rtt(Duration::from_millis(5))
        .initial_mtu(MTU)
        // Fails only above 2^62 milliseconds.
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        .keep_alive_interval(keep_alive)
        .ack_frequency_config(Some(acks));
    transport
}

/// Whether the peer's verified certificate carries the role in its DNS name
/// `NAME.ROLE.payswitch`.
pub(crate) fn peer_has_role(quic: &quinn::Connection, role: &str) -> bool {
    let chain =
        quic.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(certificate) = chain.as_ref().and_then(|chain| chain.first()) else { return false };
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return false };
    parsed.valid_dns_names().any(|name| {
        let name = name.to_ascii_lowercase();
        let labels = name.strip_suffix(".payswitch").and_then(|rest| rest.rsplit_once('.'));
        labels.is_some_and(|(_, found)| found == role)
    })
}
