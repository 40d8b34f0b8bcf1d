//! Certificates, keys and authorities replaced under a running switch.

use std::path::Path;

use protocol::code::OrderState;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tests::gateway::{Credentials, Gateway, connect, merchant, pay, signed_pay};
use tests::{Deployment, Process, text, wait_until};

use crate::run;

/// Files of the deployment that a whole new authority brings.
const NAMES: [&str; 5] = ["site-1", "gw-1", "admin", "admin-2", "native-1"];

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

/// The certificate that the switch shows to a new connection.
fn served(deployment: &Deployment) -> Result<CertificateDer<'static>, String> {
    let (cert, key) = (deployment.file("certs/gw-1.pem"), deployment.file("certs/gw-1.key"));
    run(async {
        let credentials = Credentials { alpn: b"payswitch/1", identity: Some((&cert, &key)) };
        let quic = connect(deployment, &credentials).await?;
        // Only HELLO says that our own certificate was accepted.
        let mut control = quic.accept_uni().await.map_err(|error| error.to_string())?;
        tests::gateway::frame(&mut control).await?;
        let chain = quic.peer_identity().unwrap();
        Ok(chain.downcast::<Vec<CertificateDer<'static>>>().unwrap()[0].clone())
    })
}

/// Sends SIGHUP and waits for its line.
fn reload(switch: &Process, says: &str) -> String {
    let before = switch.printed().len();
    switch.signal("HUP");
    let printed = || switch.printed()[before..].to_owned();
    wait_until("the reload is told", || printed().contains(says));
    printed()
}

fn admin_works(deployment: &Deployment) -> bool {
    let config = deployment.file("site-1.toml");
    let args = ["admin", "--config", config.to_str().unwrap(), "in-doubt"];
    deployment.payswitch(&args).status.success()
}

fn paid(deployment: &Deployment, no: &str) {
    let m = merchant(deployment, 0);
    run(async {
        let mut gateway = Gateway::open(deployment).await;
        let reply = gateway.order(&signed_pay(&m, &pay(&m, no, 100), 1)).await;
        assert_eq!(reply.state, OrderState::Paid, "{reply:?}");
    });
}

#[test]
fn a_new_authority_is_taken_over_at_sighup_and_standing_connections_live_on() {
    let deployment = Deployment::init(20);
    // Another deployment lends its authority and everything that it signed.
    let other = Deployment::init(20);
    let channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let m = merchant(&deployment, 0);
    let old = certificate(&deployment.file("certs/site-1.pem"));
    assert_eq!(served(&deployment), Ok(old.clone()));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut standing = runtime.block_on(Gateway::open(&deployment));
    for name in NAMES.map(|name| [format!("{name}.pem"), format!("{name}.key")]).as_flattened() {
        std::fs::copy(
            other.file(&format!("certs/{name}")),
            deployment.file(&format!("certs/{name}")),
        )
        .unwrap();
    }
    std::fs::copy(other.file("certs/ca.pem"), deployment.file("certs/ca.pem")).unwrap();
    let new = certificate(&deployment.file("certs/site-1.pem"));
    assert!(served(&deployment).is_err(), "the new authority is not trusted before the reload");
    assert!(!admin_works(&deployment));

    reload(&switch, "reload: new connections use");
    assert_eq!(served(&deployment), Ok(new.clone()));
    assert!(admin_works(&deployment), "the admin port has the old certificate");
    let page = deployment.labelled_metric("tls_reloads_total", "result=\"done\"");
    assert_eq!(page, 1);
    let order = pay(&m, "standing", 100);
    let reply = runtime.block_on(standing.order(&signed_pay(&m, &order, 1)));
    assert_eq!(reply.state, OrderState::Paid, "a standing connection ended with the reload");

    // A channel that trusts only the new authority, and is signed by it.
    channel.kill();
    wait_until("the link is down", || !deployment.channel_is_up());
    let _channel = deployment.channel(&[]);
    wait_until("the link is up with the new certificates", || deployment.channel_is_up());
    paid(&deployment, "new");
    assert!(switch.stop().success());
}

#[test]
fn a_broken_certificate_is_refused_and_the_old_one_stays_in_use() {
    let deployment = Deployment::init(20);
    let other = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let (cert, key) = (deployment.file("certs/site-1.pem"), deployment.file("certs/site-1.key"));
    let old = certificate(&cert);
    let good = std::fs::read(&cert).unwrap();
    let foreign = std::fs::read(other.file("certs/site-1.pem")).unwrap();
    let gateway = std::fs::read(deployment.file("certs/gw-1.pem")).unwrap();
    let broken: [(&str, &[u8]); 5] = [
        ("half", &good[..good.len() / 2]),
        ("empty", b""),
        ("not PEM", b"certificate"),
        ("of another key", &foreign),
        ("of a gateway", &gateway),
    ];
    for (round, (what, bytes)) in broken.into_iter().enumerate() {
        std::fs::write(&cert, bytes).unwrap();
        let said = reload(&switch, "the certificates and keys in use stay\n");
        let lines: Vec<_> = said.lines().filter(|line| line.contains("reload")).collect();
        assert_eq!(lines.len(), 1, "{what}: {said}");
        assert!(
            lines[0].starts_with("reload refused: ") && lines[0].contains("site-1.pem"),
            "{said}"
        );
        assert_eq!(served(&deployment), Ok(old.clone()), "{what}");
        assert!(admin_works(&deployment), "{what}");
        let refused = deployment.labelled_metric("tls_reloads_total", "result=\"refused\"");
        assert_eq!(refused, round as u64 + 1);
    }
    // A key that others may read is refused as well.
    std::fs::write(&cert, &good).unwrap();
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&key, mode).unwrap();
    };
    mode(0o644);
    let said = reload(&switch, "the certificates and keys in use stay\n");
    assert!(said.contains("readable by others"), "{said}");
    mode(0o600);
    reload(&switch, "reload: new connections use");
    paid(&deployment, "after");
    let config = deployment.file("site-1.toml");
    let check = deployment.payswitch(&["check", "--config", config.to_str().unwrap()]);
    assert!(check.status.success(), "{}", text(&check));
    assert!(switch.stop().success());
}
