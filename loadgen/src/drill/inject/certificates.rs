//! Certificates that are replaced, or run out, under running sites.

use super::super::script::{Fault, Script};
use crate::config::GatewayFile;
use crate::exit::{Exit, Failure};
use crate::socket;
use crate::tls::{self, ALPN_GATEWAY, Credentials};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::future::Future;
use std::time::Duration;

const YEAR: Duration = Duration::from_secs(366 * 86_400);
/// What is left to the certificate that runs out; whole seconds are what it can hold.
const LIFE: Duration = Duration::from_secs(2);
/// After this it has run out.
const RUN_OUT: Duration = Duration::from_millis(3_500);
/// A connection that is not made in this time is refused.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// What a switch says that took new certificates.
const RELOADED: &str = "reload: new connections use";

impl Script<'_> {
    pub(super) async fn rotate(&self, hold: Duration) -> Result<Vec<Fault>, Failure> {
        let mut faults = Vec::new();
        for site in self.stage.deployment.sites() {
            let _turn = self.turns.take_site(site).await;
            let mut fault = self.begin(site, format!("new certificate of site {site}")).await;
            self.renew(site, YEAR).await?;
            self.shows_new(site).await?;
            tokio::time::sleep(hold / 4).await;
            self.recover(&mut fault).await?;
            faults.push(fault);
        }
        Ok(faults)
    }

    pub(super) async fn expire(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("certificate of site {site} runs out")).await;
        self.renew(site, LIFE).await?;
        self.shows_new(site).await?;
        tokio::time::sleep(RUN_OUT).await;
        if self.shown(site).await.is_ok() {
            let text = format_args!("site {site} is believed with a certificate that has run out");
            return Err(Failure::new(Exit::Missed, text));
        }
        tokio::time::sleep(hold / 2).await;
        self.renew(site, YEAR).await?;
        self.shows_new(site).await?;
        self.recover(&mut fault).await?;
        Ok(fault)
    }

    async fn renew(&self, site: u8, life: Duration) -> Result<(), Failure> {
        let without = || Failure::usage("this story has no authority");
        let authority = self.stage.authority.as_ref().ok_or_else(without)?;
        authority.renew(site, &self.stage.deployment.file("certs"), life)?;
        self.stage.reload(site, RELOADED).await
    }

    /// The certificate that a new connection to a site is shown, and that it believes.
    async fn shown(&self, site: u8) -> Result<CertificateDer<'static>, String> {
        let gateway = &self.stage.deployment.gateway;
        let connecting =
            hello(gateway, usize::from(site) - 1).map_err(|failure| failure.message)?;
        connecting.await
    }

    /// A new connection to a site is shown what is in its file.
    async fn shows_new(&self, site: u8) -> Result<(), Failure> {
        let file = self.stage.deployment.file(&format!("certs/site-{site}.pem"));
        let wanted = CertificateDer::from_pem_file(&file).map_err(|error| {
            Failure::environment(format_args!("cannot read {}: {error}", file.display()))
        })?;
        let reason = match self.shown(site).await {
            Ok(shown) if shown == wanted => return Ok(()),
            Ok(_) => "it shows another one".to_owned(),
            Err(reason) => reason,
        };
        let text = format_args!("site {site} does not use its new certificate: {reason}");
        Err(Failure::new(Exit::Missed, text))
    }
}

/// Connects to a site as the gateway, reads the first byte of its HELLO, which says that
/// the gateway's own certificate was accepted, and goes; the site's certificate.
pub(super) fn hello(
    gateway: &GatewayFile,
    site: usize,
) -> Result<impl Future<Output = Result<CertificateDer<'static>, String>> + use<>, Failure> {
    let credentials = Credentials::load(&gateway.cert, &gateway.key, &gateway.ca)?;
    let config = credentials.client(ALPN_GATEWAY, tls::transport(0, 4, CONNECT_MAX, None))?;
    let (address, name) = (gateway.sites[site].address, gateway.sites[site].server_name.clone());
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let endpoint = socket::endpoint(local.parse().expect("a literal address"), None)?;
    let connect = async move {
        let connecting = endpoint.connect_with(config, address, &name);
        let quic = connecting.map_err(|error| error.to_string())?;
        let quic = quic.await.map_err(|error| error.to_string())?;
        let mut control = quic.accept_uni().await.map_err(|error| error.to_string())?;
        let mut byte = [0];
        control.read_exact(&mut byte).await.map_err(|error| error.to_string())?;
        let chain = quic.peer_identity().and_then(|any| any.downcast::<Vec<_>>().ok());
        quic.close(0_u32.into(), b"only looked");
        // Gives the close frame a moment to leave; nothing depends on it.
        drop(tokio::time::timeout(Duration::from_millis(50), endpoint.wait_idle()).await);
        let first =
            chain.and_then(|chain: Box<Vec<CertificateDer<'static>>>| chain.into_iter().next());
        first.ok_or_else(|| "no certificate".to_owned())
    };
    Ok(async {
        let connected = tokio::time::timeout(CONNECT_MAX, connect).await;
        connected.unwrap_or_else(|_| Err("no answer".to_owned()))
    })
}
