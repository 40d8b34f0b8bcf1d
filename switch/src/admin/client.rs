//! The command line's way to the admin server: one HTTPS request at a time
//! with the operator's certificate.

use super::api::{ErrorBody, ErrorDetail};
use crate::config::Config;
use crate::tls::{self, Credentials, TlsError};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The configuration lacks what the client needs.
    #[error("{0} is not set in the configuration: the admin commands need it")]
    NotConfigured(&'static str),
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The site is not there.
    #[error("cannot reach {address}: {source}; is the site running?")]
    Unreachable {
        /// Its admin address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke or spoke no HTTP.
    #[error("the connection to {address} failed: {message}")]
    Broken {
        /// Its admin address.
        address: SocketAddr,
        /// Why.
        message: String,
    },
    /// No answer in time.
    #[error("no answer from {address} within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// Its admin address.
        address: SocketAddr,
    },
    /// The server refused.
    #[error("{message} ({code})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Code to branch on.
        code: String,
        /// Why.
        message: String,
        /// The site to ask instead.
        leader: Option<u16>,
    },
    /// An answer that is not of this version's form.
    #[error("the answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
}

/// Times that a request is sent on to the site that leads.
const REDIRECTS_MAX: u32 = 3;

/// A client of one site, which follows it to the leading ones.
pub struct Client {
    site: Endpoint,
    /// The sites by number.
    sites: Vec<(u16, Endpoint)>,
    tls: Arc<rustls::ClientConfig>,
}

/// Where a site's operators ask.
#[derive(Clone, Debug)]
struct Endpoint {
    address: SocketAddr,
    server_name: ServerName<'static>,
}

impl Endpoint {
    fn new(address: SocketAddr, server_name: &str) -> Result<Self, ClientError> {
        let server_name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| ClientError::NotConfigured("sites.server_name"))?;
        Ok(Self { address, server_name })
    }
}

impl Client {
    /// For the site of `config`.
    ///
    /// # Errors
    /// [`ClientError::NotConfigured`], [`ClientError::Tls`].
    pub fn new(config: &Config) -> Result<Self, ClientError> {
        let admin = &config.admin;
        let address = admin.tls_listen.ok_or(ClientError::NotConfigured("admin.tls_listen"))?;
        let cert =
            admin.admin_cert.as_ref().ok_or(ClientError::NotConfigured("admin.admin_cert"))?;
        let key = admin.admin_key.as_ref().ok_or(ClientError::NotConfigured("admin.admin_key"))?;
        let credentials = Credentials::load(cert, key, &admin.ca)?;
        let mut client =
            Self::with_credentials(address, &config.this_site().server_name, &credentials)?;
        for site in &config.sites {
            if let Some(address) = site.admin {
                client.sites.push((site.id, Endpoint::new(address, &site.server_name)?));
            }
        }
        Ok(client)
    }

    /// For an address, with explicit credentials.
    ///
    /// # Errors
    /// [`ClientError::NotConfigured`] when `server_name` is no DNS name,
    /// [`ClientError::Tls`].
    pub fn with_credentials(
        address: SocketAddr,
        server_name: &str,
        credentials: &Credentials,
    ) -> Result<Self, ClientError> {
        let tls = Arc::new(credentials.client(tls::ALPN_ADMIN)?);
        Ok(Self { site: Endpoint::new(address, server_name)?, sites: Vec::new(), tls })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Bytes::new())
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.request(Method::POST, path, Bytes::from(serde_json::to_vec(body)?))
    }

    /// Asks the site, and where it says that another one leads, that one.
    fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let mut site = &self.site;
        for _ in 0..REDIRECTS_MAX {
            match self.request_at(site, method.clone(), path, body.clone()) {
                Err(ClientError::Refused { leader: Some(leader), status, code, message }) => {
                    let next = self.sites.iter().find(|(number, _)| *number == leader);
                    let Some((_, next)) = next else {
                        let leader = Some(leader);
                        return Err(ClientError::Refused { leader, status, code, message });
                    };
                    site = next;
                }
                answer => return answer,
            }
        }
        self.request_at(site, method, path, body)
    }

    fn request_at<T: DeserializeOwned>(
        &self,
        site: &Endpoint,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let address = site.address;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| ClientError::Unreachable { address, source })?;
        let exchange = self.exchange(site, method, path, body);
        let (status, body) = runtime.block_on(async {
            let timed = tokio::time::timeout(REQUEST_TIMEOUT, exchange).await;
            timed.unwrap_or(Err(ClientError::Timeout { address }))
        })?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let ErrorDetail { code, message, leader } =
            serde_json::from_slice::<ErrorBody>(&body)?.error;
        Err(ClientError::Refused { status: status.as_u16(), code, message, leader })
    }

    async fn exchange(
        &self,
        site: &Endpoint,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let address = site.address;
        let unreachable = |source| ClientError::Unreachable { address, source };
        let broken = |message: String| ClientError::Broken { address, message };
        let stream = tokio::net::TcpStream::connect(address).await.map_err(unreachable)?;
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(site.server_name.clone(), stream).await;
        let stream = stream.map_err(|error| broken(error.to_string()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(error.to_string()))?;
        // The connection's own error also ends the request, with a better text.
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "admin")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| broken(error.to_string()))?;
        let response =
            sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        driver.abort();
        let body = body.map_err(|error| broken(error.to_string()))?;
        Ok((status, body.to_bytes()))
    }
}
