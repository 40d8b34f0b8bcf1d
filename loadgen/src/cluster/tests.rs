//! Parts of a deployment, without a switch.

use super::*;
use std::io::{Read, Write};
use std::path::Path;

/// Answers one GET after the other with these bodies.
fn scripted(
    answers: &'static [(&'static str, &'static str)],
) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /"));
            let length = body.len();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    (address, server)
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test());
}

/// A deployment of two shards that was never started.
fn deployment(dir: &Path, admins: &[SocketAddr]) -> Deployment {
    let site = |(at, admin): (usize, &SocketAddr)| crate::config::SiteEntry {
        id: at as u8 + 1,
        address: *admin,
        server_name: String::new(),
        admin: *admin,
    };
    let gateway = GatewayFile {
        name: "gw-1".to_owned(),
        cert: PathBuf::new(),
        key: PathBuf::new(),
        ca: PathBuf::new(),
        shards: 2,
        merchants: PathBuf::new(),
        channel_ledger_dir: PathBuf::new(),
        sites: admins.iter().enumerate().map(site).collect(),
    };
    let (folder, payswitch) = (Folder::new(Some(dir.to_owned())).unwrap(), PathBuf::new());
    let founders = admins.len() as u8;
    Deployment { folder, payswitch, base: 20_000, founders, gateway, shim: None }
}

#[test]
fn a_deployment_that_cannot_be_made_is_the_environments_unless_it_was_asked_for_wrongly() {
    let told = |code| not_made(code, b"payswitch: no space\n");
    assert_eq!(told(Some(2)), Failure::usage("payswitch: no space"));
    for code in [Some(3), Some(101), None] {
        assert_eq!(told(code), Failure::environment("payswitch: no space"));
    }
}

#[test]
fn readiness_is_the_status_of_one_get() {
    let (address, server) = scripted(&[("503 Service Unavailable", ""), ("200 OK", "")]);
    run(async || {
        assert!(!admin::ready(address).await);
        assert!(admin::ready(address).await);
    });
    server.join().unwrap();
}

#[test]
fn a_site_is_linked_when_every_channel_is_up() {
    const NONE: &str = r#"{"shards":[],"channels":[]}"#;
    const DOWN: &str = r#"{"shards":[],"channels":[{"up":true},{"up":false}]}"#;
    const UP: &str = r#"{"shards":[],"channels":[{"up":true},{"up":true}]}"#;
    let (site, server) = scripted(&[("200 OK", NONE), ("200 OK", DOWN), ("200 OK", UP)]);
    let dir = tempfile::tempdir().unwrap();
    let deployment = deployment(dir.path(), &[site]);
    run(async || {
        let mut sleeps = std::process::Command::new("sleep");
        let output = dir.path().join("out");
        let mut process = Process::start("sleep", sleeps.arg("60"), &output).ok().unwrap();
        assert!(deployment.linked(1, &mut process).await.is_ok());
    });
    server.join().unwrap();
}

#[test]
fn leaders_and_what_is_open_come_from_those_who_lead() {
    const ONE: &str = r#"{"shards":[{"shard":0,"role":"leader","leader":1,"applied":9,"open":2},
        {"shard":1,"role":"follower","leader":2,"applied":9,"open":7}]}"#;
    const TWO: &str = r#"{"shards":[{"shard":0,"role":"follower","leader":1,"applied":9,"open":0},
        {"shard":1,"role":"leader","leader":2,"applied":9,"open":3}]}"#;
    let (one, first) = scripted(&[("200 OK", ONE), ("200 OK", ONE), ("200 OK", ONE)]);
    let (two, second) = scripted(&[("200 OK", TWO), ("200 OK", TWO), ("200 OK", "{}")]);
    let dir = tempfile::tempdir().unwrap();
    let deployment = deployment(dir.path(), &[one, two]);
    run(async || {
        assert_eq!(deployment.leaders().await, [1, 2]);
        assert_eq!(deployment.open_payments().await, Some(5));
        assert_eq!(deployment.open_payments().await, None, "a shard without leader");
    });
    first.join().unwrap();
    second.join().unwrap();
}

#[test]
fn a_configuration_is_redirected_for_one_site_only() {
    let text = "site = 1\n[[sites]]\nid = 1\npeer = \"127.0.0.1:1\"\n\n[[sites]]\nid = 2\n\
                gateway = \"127.0.0.1:5\"\npeer = \"127.0.0.1:2\"\n[gateway]\npeer = \"x\"\n";
    let changed = redirected(text, 2, loopback(99)).unwrap();
    assert_eq!(changed, text.replace("127.0.0.1:2\"", "127.0.0.1:99\""));
}

#[test]
fn a_configuration_without_the_line_to_redirect_is_refused() {
    let text = "site = 1\n[[sites]]\nid = 1\npeer = \"127.0.0.1:1\"\n";
    assert_eq!(redirected(text, 2, loopback(99)), None);
    assert_eq!(redirected(&text.replace("peer =", "# peer ="), 1, loopback(99)), None);
    assert!(redirected(text, 1, loopback(99)).is_some());
}

#[test]
fn values_of_a_metric_are_read_one_by_one() {
    let page = "payswitch_peer_round_trip_seconds{site=\"1\",peer=\"2\"} 0.0105\n\
                payswitch_peer_round_trip_seconds{site=\"1\",peer=\"3\"} 0\n\
                payswitch_peer_round_trip_seconds_total 9\n";
    let read = |name| values(page, name).collect::<Vec<f64>>();
    assert_eq!(read("payswitch_peer_round_trip_seconds"), [0.0105, 0.0]);
    assert_eq!(read("payswitch_peer").len(), 0);
}

#[test]
fn a_spare_is_known_and_no_member() {
    let dir = tempfile::tempdir().unwrap();
    let mut deployment = deployment(dir.path(), &[loopback(1), loopback(2), loopback(3)]);
    assert_eq!(deployment.spare(), None);
    deployment.founders = 2;
    assert_eq!(deployment.spare(), Some(3));
    assert!(deployment.sites().eq(1..=2) && deployment.places().eq(1..=3));
    assert_eq!(deployment.relay_links().len(), 6, "it is reached as the others are");
}

#[test]
fn every_pair_of_sites_has_a_port_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let links = deployment(dir.path(), &[loopback(1), loopback(2), loopback(3)]).relay_links();
    assert_eq!(links.len(), 6);
    let to_3 = links.iter().filter(|link| link.to == 3);
    assert!(to_3.clone().all(|link| link.target == loopback(20_021)) && to_3.count() == 2);
    let mut ports: Vec<u16> = links.iter().map(|link| link.listen.port()).collect();
    ports.dedup();
    assert_eq!(ports, [20_060, 20_061, 20_062, 20_063, 20_064, 20_065]);
}

fn sleeper(dir: &Path) -> Process {
    let mut command = Command::new("sleep");
    command.arg("60");
    Process::start("sleep", &mut command, &dir.join("out")).unwrap()
}

/// The state letter of a process; `None` when it is gone.
fn state(id: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn a_dropped_process_has_ended_even_when_it_was_stopped() {
    let dir = tempfile::tempdir().unwrap();
    run(async || {
        let process = sleeper(dir.path());
        let id = process.id();
        process.pause().unwrap();
        while state(id) != Some('T') {
            tokio::time::sleep(POLL).await;
        }
        process.resume().unwrap();
        process.pause().unwrap();
        drop(process);
        assert_eq!(state(id), None);
        let process = sleeper(dir.path());
        let id = process.id();
        process.kill().await;
        assert_eq!(state(id), None);
        assert!(sleeper(dir.path()).stop().await.is_err(), "ended by the signal is not clean");
    });
}

#[test]
fn a_metric_is_summed_over_its_labels_and_missed_when_it_is_not_there() {
    let page = "# HELP payswitch_shard_term Raft term.\npayswitch_shard_term{shard=\"0\"} 3\n\
                payswitch_shard_term{shard=\"11\"} 4\npayswitch_shard_terms 9\n\
                payswitch_up 1\n";
    assert_eq!(total(page, "payswitch_shard_term"), Some(7));
    assert_eq!(total(page, "payswitch_up"), Some(1));
    assert_eq!(total(page, "payswitch_shard_elections"), None);
}
