//! Certificates, keys and authorities read again while the node runs, at
//! SIGHUP.
//!
//! All or nothing: everything is read and judged first, and only then replaced.
//! New connections see the new ones; connections that stand live on. The
//! configuration itself is not read again. Tested by the system tests with a
//! whole new authority.

use std::rc::Rc;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::ServeError;
use super::net::Net;
use super::peer::Peers;
use crate::admin::server::AdminTls;
use crate::config::Config;
use crate::tls::{self, EndpointKeys, PeerTls, TlsError};

/// What has settings to replace.
pub struct Reload {
    /// Where the files are.
    pub config: Rc<Config>,
    /// The gateway endpoint's own keys, which stay.
    pub keys: EndpointKeys,
    /// The gateway front's endpoint.
    pub endpoint: quinn::Endpoint,
    /// The admin server.
    pub admin: AdminTls,
    /// The channel links.
    pub net: Rc<Net>,
    /// The links to other sites, if there are any.
    pub peers: Option<Arc<Peers>>,
}

/// Everything that was read.
struct Fresh {
    gateway: quinn::ServerConfig,
    admin: Arc<rustls::ServerConfig>,
    channels: Vec<quinn::ClientConfig>,
    peers: Option<PeerTls>,
}

impl Reload {
    /// Reloads at every SIGHUP, from the return of this call on.
    ///
    /// # Errors
    /// [`ServeError::Environment`] when the signal cannot be heard.
    pub fn start(self) -> Result<(), ServeError> {
        let mut hangup = signal(SignalKind::hangup())
            .map_err(|error| ServeError::Environment(error.to_string()))?;
        tokio::task::spawn_local(async move {
            while hangup.recv().await.is_some() {
                self.reload();
            }
        });
        Ok(())
    }

    fn reload(&self) {
        let metrics = &self.net.metrics;
        match self.load() {
            Ok(fresh) => {
                self.replace(fresh);
                metrics.tls_reloads.add(1);
                println!("reload: new connections use the certificates and keys read now");
            }
            Err(error) => {
                metrics.tls_reloads_refused.add(1);
                eprintln!("reload refused: {error}; the certificates and keys in use stay");
            }
        }
    }

    fn load(&self) -> Result<Fresh, TlsError> {
        Ok(Fresh {
            gateway: tls::site_server(&self.config, &self.keys)?,
            admin: tls::admin_server(&self.config.admin)?,
            channels: self
                .config
                .channels
                .iter()
                .map(tls::channel_client)
                .collect::<Result<_, _>>()?,
            peers: self
                .peers
                .as_ref()
                .map(|_| {
                    tls::require_site_role(&self.config)?;
                    PeerTls::load(&self.config.gateway, &self.keys)
                })
                .transpose()?,
        })
    }

    fn replace(&self, fresh: Fresh) {
        if !self.config.this_site().witness {
            self.endpoint.set_server_config(Some(fresh.gateway));
        }
        self.admin.replace(fresh.admin);
        for (link, client) in self.net.links.borrow().iter().zip(fresh.channels) {
            link.replace_client(client);
        }
        if let (Some(peers), Some(tls)) = (&self.peers, fresh.peers) {
            peers.replace(tls);
        }
    }
}
