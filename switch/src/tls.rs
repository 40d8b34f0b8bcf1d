//! TLS and QUIC settings: who may speak, with which ciphers, over which
//! transport parameters.
//!
//! TLS 1.3 only, the aws-lc-rs provider named explicitly, client certificates
//! always demanded, no tickets and no early data (a resumed session would
//! outlive a withdrawn authority; a replayed early request would be a second
//! pay). Knows no socket. Tested with certificates made by `init`, over
//! loopback.

mod identity;
mod peer;
#[cfg(test)]
mod tests;
mod transport;

pub use identity::{Identity, IdentityError, Role, identity, peer_identity, peer_site};
pub use peer::{PeerTls, peer_endpoint, require_site_role};
pub use transport::{
    EndpointKeys, admin_server, channel_client, channel_endpoint, channel_transport,
    gateway_endpoint, gateway_server, gateway_transport, require_site_name, site_server,
};

use crate::secret::{SecretError, read_private};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// ALPN of the gateway protocol: its version.
pub const ALPN_GATEWAY: &[u8] = b"payswitch/1";
/// ALPN of the native channel protocol.
pub const ALPN_CHANNEL: &[u8] = b"payswitch-channel/1";
/// ALPN of the links between sites.
pub const ALPN_PEER: &[u8] = b"payswitch-peer/1";
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
    /// A server's certificate that its clients would refuse.
    #[error("{} is no certificate for {expected}, the name that clients look for", path.display())]
    WrongName {
        /// The certificate's file.
        path: PathBuf,
        /// The name that clients look for.
        expected: String,
    },
    /// A certificate that other sites would refuse.
    #[error("{} is no site's certificate (NAME.site.payswitch), which other sites ask for", path.display())]
    NotASite {
        /// The certificate's file.
        path: PathBuf,
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

/// Refuses a certificate that clients which look for `name` would refuse.
fn require_name(path: &Path, name: &str) -> Result<(), TlsError> {
    let chain = certificates(path)?;
    let wrong = || TlsError::WrongName { path: path.to_owned(), expected: name.to_owned() };
    let server_name = ServerName::try_from(name).map_err(|_| wrong())?;
    // `certificates` refuses an empty chain.
    let parsed = webpki::EndEntityCert::try_from(&chain[0]).map_err(|_| wrong())?;
    parsed.verify_is_valid_for_subject_name(&server_name).map_err(|_| wrong())
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
