use super::*;
use crate::config::{Config, merchants};
use crate::secret::Kek;
use crate::tls::{self, Credentials, Identity, Role};
use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject};
use std::os::unix::fs::PermissionsExt;

fn options(dir: &Path, sites: u16) -> InitOptions {
    InitOptions {
        dir: dir.to_owned(),
        sites,
        merchants: 40,
        port_base: 7400,
        witness: false,
        force: false,
    }
}

fn certificate(dir: &Path, name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(dir.join("certs").join(format!("{name}.pem"))).unwrap()
}

#[test]
fn what_it_writes_loads() {
    for sites in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        init(&options(dir.path(), sites)).unwrap();
        for site in 1..=sites {
            let config = Config::load(&dir.path().join(format!("site-{site}.toml"))).unwrap();
            assert_eq!((config.site, config.sites.len()), (site, usize::from(sites)));
            assert_eq!(config.gateway.listen, config.this_site().gateway);
            assert!(config.keys.kek.starts_with(dir.path()));
            let kek = Kek::load(&config.keys.kek).unwrap();
            let path = config.bootstrap.merchants.unwrap();
            let merchants = merchants::load(&path, &kek).unwrap();
            assert_eq!(merchants.len(), 40);
            assert_eq!(merchants[0].mch_id.as_str(), "M000001");
            let keys = tls::EndpointKeys::load_or_create(&config.data_dir).unwrap();
            tls::gateway_server(&config.gateway, &keys).unwrap();
            tls::channel_client(&config.channels[0]).unwrap();
        }
    }
}

#[test]
fn a_witness_is_one_at_every_site_and_no_gateway_goes_there() {
    let dir = tempfile::tempdir().unwrap();
    init(&InitOptions { witness: true, ..options(dir.path(), 3) }).unwrap();
    for site in 1..=3 {
        let config = Config::load(&dir.path().join(format!("site-{site}.toml"))).unwrap();
        assert_eq!(config.witnesses(), [3]);
        assert_eq!(config.first_voters(), [1, 2, 3]);
    }
    let gateway = std::fs::read_to_string(dir.path().join("gateway.toml")).unwrap();
    let gateway: toml::Table = gateway.parse().unwrap();
    let sites = gateway["sites"].as_array().unwrap().iter();
    assert_eq!(sites.map(|site| site["id"].as_integer().unwrap()).collect::<Vec<_>>(), [1, 2]);
    let few = InitOptions { witness: true, ..options(&dir.path().join("few"), 2) };
    assert!(matches!(init(&few), Err(InitError::Witness)));
}

#[test]
fn gateways_sign_with_what_the_switch_verifies() {
    let made = demo_merchants(40).unwrap();
    let read = |text: &str| text.parse::<toml::Table>().unwrap()["merchants"].clone();
    let (switch, gateway) = (read(&made.switch), read(&made.gateway));
    let mut ed25519 = 0;
    for (ours, theirs) in switch.as_array().unwrap().iter().zip(gateway.as_array().unwrap()) {
        assert_eq!(ours["id"], theirs["id"]);
        let (ours, theirs) = (&ours["keys"][0], &theirs["keys"][0]);
        assert_eq!(ours["kind"], theirs["kind"]);
        if ours["kind"].as_str() == Some("hmac-sha256") {
            assert_eq!(ours["secret"], theirs["secret"]);
            continue;
        }
        ed25519 += 1;
        let seed = hex::decode(theirs["secret"].as_str().unwrap()).unwrap();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let public = ours["public_key"].as_str().unwrap();
        assert_eq!(hex::encode(pair.public_key().as_ref()), public);
    }
    assert_eq!(ed25519, ED25519_MERCHANTS);
}

#[test]
fn private_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let written = init(&options(dir.path(), 2)).unwrap();
    for path in written {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".key") || name.contains("merchants") {
            assert_eq!(mode, 0o600, "{name}");
        }
    }
}

#[test]
fn certificates_verify_against_the_authority_and_tell_their_role() {
    let dir = tempfile::tempdir().unwrap();
    init(&options(dir.path(), 2)).unwrap();
    let authority = certificate(dir.path(), "ca");
    let anchor = webpki::anchor_from_trusted_cert(&authority).unwrap();
    let (server, client) = (true, false);
    let parties = [
        ("site-1", Role::Site, vec![server, client]),
        ("site-2", Role::Site, vec![server, client]),
        ("gw-1", Role::Gateway, vec![client]),
        ("admin", Role::Admin, vec![client]),
        ("admin-2", Role::Admin, vec![client]),
        ("native-1", Role::Channel, vec![server]),
    ];
    for (name, role, usages) in parties {
        let der = certificate(dir.path(), name);
        let expected = Identity { role, name: name.to_owned() };
        assert_eq!(tls::identity(&der).unwrap(), expected);
        let parsed = webpki::EndEntityCert::try_from(&der).unwrap();
        for usage in [server, client] {
            let purpose = match usage {
                true => webpki::KeyUsage::server_auth(),
                false => webpki::KeyUsage::client_auth(),
            };
            let anchors = std::slice::from_ref(&anchor);
            let algorithms = webpki::ALL_VERIFICATION_ALGS;
            let verified = parsed.verify_for_usage(
                algorithms,
                anchors,
                &[],
                UnixTime::now(),
                purpose,
                None,
                None,
            );
            assert_eq!(verified.is_ok(), usages.contains(&usage), "{name} {usage}");
        }
        let subject = format!("{name}.{}.payswitch", role.label());
        for subject in [subject.as_str(), "localhost", "127.0.0.1"] {
            let subject = rustls::pki_types::ServerName::try_from(subject).unwrap();
            parsed.verify_is_valid_for_subject_name(&subject).unwrap();
        }
    }
    assert_eq!(tls::identity(&authority), Err(tls::IdentityError::NoRole));
    let garbage = CertificateDer::from(vec![0; 9]);
    assert_eq!(tls::identity(&garbage), Err(tls::IdentityError::Malformed));
}

#[test]
fn refuses_an_existing_deployment() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), 1);
    init(&options).unwrap();
    let kek = std::fs::read(dir.path().join("kek.key")).unwrap();
    assert!(matches!(init(&options), Err(InitError::Exists { .. })));
    assert_eq!(std::fs::read(dir.path().join("kek.key")).unwrap(), kek);
    options.force = true;
    init(&options).unwrap();
    assert_ne!(std::fs::read(dir.path().join("kek.key")).unwrap(), kek);
    std::fs::create_dir_all(dir.path().join("data/site-1")).unwrap();
    assert!(matches!(init(&options), Err(InitError::HasData { .. })));
}

#[test]
fn refuses_numbers_out_of_range() {
    let dir = tempfile::tempdir().unwrap();
    let good = options(dir.path(), 1);
    let bad = [
        InitOptions { sites: 0, ..good.clone() },
        InitOptions { sites: 10, ..good.clone() },
        InitOptions { merchants: 0, ..good.clone() },
        InitOptions { port_base: 65_500, ..good.clone() },
    ];
    for options in bad {
        assert!(matches!(init(&options), Err(InitError::Range { .. })), "{options:?}");
    }
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
}

#[test]
fn early_data_is_refused_wherever_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    init(&options(dir.path(), 1)).unwrap();
    let file = |name: &str| dir.path().join("certs").join(name);
    let credentials =
        Credentials::load(&file("site-1.pem"), &file("site-1.key"), &file("ca.pem")).unwrap();
    let mut config = credentials.server(tls::ALPN_GATEWAY).unwrap();
    assert!(tls::refuse_early_data(&config).is_ok());
    config.max_early_data_size = u32::MAX;
    assert!(tls::refuse_early_data(&config).is_err());
    assert!(
        Credentials::load(&file("site-1.pem"), &file("gw-1.key"), &file("ca.pem"))
            .unwrap()
            .server(tls::ALPN_GATEWAY)
            .is_err()
    );
}
