//! Settings of a client, refused as a whole when one cannot be used.

use super::error::ConnectError;
use super::tls::Transport;
use std::net::SocketAddr;
use std::time::Duration;

/// Where a site is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// Its gateway address.
    pub address: SocketAddr,
    /// The name its certificate must have: `site-N.site.payswitch`.
    pub server_name: String,
}

/// Settings of a client. No `Debug`: it holds the private key.
#[derive(Clone)]
pub struct ClientConfig {
    /// The sites; one or more.
    pub sites: Vec<Site>,
    /// Certificate authorities of the sites, PEM.
    pub ca_pem: Vec<u8>,
    /// This gateway's certificate chain, PEM.
    pub cert_pem: Vec<u8>,
    /// This gateway's private key, PEM.
    pub key_pem: Vec<u8>,
    /// Long-lived streams per connection; fewer when the site allows fewer.
    pub streams: u32,
    /// Most requests without answer, over all sites and at each; a site's own
    /// bound, when it is lower, holds for that site.
    pub in_flight_max: u32,
    /// A site silent for this long about a request is passed over: the same
    /// bytes go to another one too.
    pub resend_after: Duration,
    /// Longest time for a handshake and HELLO.
    pub connect_timeout: Duration,
    /// Transport limits.
    pub transport: Transport,
}

impl ClientConfig {
    /// Settings with the usual bounds: 16 streams, 4,096 requests in flight,
    /// half a second of silence, two seconds to connect.
    pub fn new(sites: Vec<Site>, ca_pem: Vec<u8>, cert_pem: Vec<u8>, key_pem: Vec<u8>) -> Self {
        Self {
            sites,
            ca_pem,
            cert_pem,
            key_pem,
            streams: 16,
            in_flight_max: 4_096,
            resend_after: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            transport: Transport::default(),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConnectError> {
        if self.sites.is_empty() {
            return Err(ConnectError::NoSite);
        }
        let zero = [
            ("streams", self.streams == 0),
            ("in_flight_max", self.in_flight_max == 0),
            ("resend_after", self.resend_after.is_zero()),
            ("connect_timeout", self.connect_timeout.is_zero()),
        ];
        match zero.into_iter().find(|(_, zero)| *zero) {
            Some((setting, _)) => Err(ConnectError::Zero(setting)),
            None => Ok(()),
        }
    }
}
