//! The command line's way to the admin server: one HTTPS request at a time
//! with the operator's certificate.

use super::api::ErrorBody;
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
    },
    /// An answer that is not of this version's form.
    #[error("the answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
}

/// A client of one site.
pub struct Client {
    address: SocketAddr,
    server_name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
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
        Self::with_credentials(
            address,
            &config.this_site().server_name,
            &Credentials::load(cert, key, &admin.ca)?,
        )
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
        let server_name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| ClientError::NotConfigured("sites.server_name"))?;
        Ok(Self { address, server_name, tls: Arc::new(credentials.client(tls::ALPN_ADMIN)?) })
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

    fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| ClientError::Unreachable { address: self.address, source })?;
        let exchange = self.exchange(method, path, body);
        let (status, body) = runtime.block_on(async {
            let timed = tokio::time::timeout(REQUEST_TIMEOUT, exchange).await;
            timed.unwrap_or(Err(ClientError::Timeout { address: self.address }))
        })?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let error = serde_json::from_slice::<ErrorBody>(&body)?.error;
        let status = status.as_u16();
        Err(ClientError::Refused { status, code: error.code, message: error.message })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let address = self.address;
        let unreachable = |source| ClientError::Unreachable { address, source };
        let broken = |message: String| ClientError::Broken { address, message };
        let stream = tokio::net::TcpStream::connect(address).await.map_err(unreachable)?;
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(self.server_name.clone(), stream).await;
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
