use super::*;
use std::path::Path;

fn run(arguments: &[&str]) -> Result<String, Failure> {
    let cli = Cli::try_parse_from(std::iter::once(&"payswitch").chain(arguments))
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let mut out = Vec::new();
    cli.run(&mut out, |config| {
        Err(Failure::new(Exit::Environment, format_args!("asked to serve site {}", config.site)))
    })?;
    Ok(String::from_utf8(out).unwrap())
}

fn deployment(dir: &Path) -> String {
    let dir = dir.to_str().unwrap();
    run(&["init", "--dir", dir, "--sites", "2", "--merchants", "3", "--port-base", "7400"])
        .unwrap();
    format!("{dir}/site-2.toml")
}

#[test]
fn the_parser_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn what_init_writes_passes_check_and_reaches_serve() {
    let dir = tempfile::tempdir().unwrap();
    let config = deployment(dir.path());
    let summary = run(&["check", "--config", &config]).unwrap();
    for part in ["2 of 2", "127.0.0.1:7410 (QUIC)", "native-1 at 127.0.0.1:7490", "3 to bootstrap"]
    {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    let served = run(&["serve", "--config", &config]).unwrap_err();
    assert_eq!(served, Failure::new(Exit::Environment, "asked to serve site 2"));
}

#[test]
fn check_judges_what_the_file_refers_to() {
    let dir = tempfile::tempdir().unwrap();
    let config = deployment(dir.path());
    let broken = |file: &str, content: &str| {
        let path = dir.path().join(file);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        let failure = run(&["check", "--config", &config]).unwrap_err();
        std::fs::write(&path, good).unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        failure.message
    };
    assert!(broken("kek.key", "00").contains("64 hex digits"));
    assert!(broken("merchants.toml", "[[merchants]]\nid = \"/\"").contains("merchants[0].id"));
    assert!(broken("certs/site-2.pem", "").contains("holds no certificate"));
    assert!(broken("certs/site-2.key", "").contains("private key"));
    assert!(broken("certs/ca.pem", "x").contains("ca.pem"));
    assert!(run(&["check", "--config", &config]).is_ok());
}

#[test]
fn failures_name_what_is_wrong_and_their_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let config = deployment(dir.path());
    let again = run(&["init", "--dir", dir.path().to_str().unwrap()]).unwrap_err();
    assert_eq!(again.exit, Exit::Usage);
    assert!(again.message.contains("--force"), "{}", again.message);
    let missing = run(&["serve", "--config", "/nonexistent.toml"]).unwrap_err();
    assert_eq!(missing.exit, Exit::Usage);
    assert!(missing.message.contains("/nonexistent.toml"), "{}", missing.message);
    // Port 1 on loopback: nobody listens there.
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("tls_listen = \"127.0.0.1:7413\"", "tls_listen = \"127.0.0.1:1\"");
    std::fs::write(&config, text).unwrap();
    let unreachable = run(&["admin", "--config", &config, "status"]).unwrap_err();
    assert_eq!(unreachable.exit, Exit::Environment);
    assert!(unreachable.message.contains("is the site running?"), "{}", unreachable.message);
}

#[test]
fn wrong_usage_is_refused_by_the_parser() {
    let admin = ["admin", "--config", "x"];
    let with = |rest: &[&'static str]| [&admin[..], rest].concat();
    for bad in [
        vec!["init"],
        vec!["serve"],
        with(&["limit", "set", "M1"]),
        with(&["--cert", "x", "status"]),
        with(&["decide", "M1", "1", "--note", "n"]),
        with(&["decide", "M1", "1", "--moved", "--not-moved", "--note", "n"]),
    ] {
        assert!(Cli::try_parse_from([&["payswitch"], &bad[..]].concat()).is_err(), "{bad:?}");
    }
    for good in [
        with(&["limit", "set", "M1", "--burst", "3"]),
        with(&["status", "--json"]),
        with(&["decide", "M1", "1", "--not-moved", "--note", "n"]),
    ] {
        assert!(Cli::try_parse_from([&["payswitch"], &good[..]].concat()).is_ok(), "{good:?}");
    }
}

#[test]
fn operators_work_from_the_command_line() {
    let site = crate::admin::tests::site();
    let config = site.config_file();
    let admin = |rest: &[&str]| run(&[&["admin", "--config", &config], rest].concat());

    let status = admin(&["status"]).unwrap();
    assert!(status.starts_with("site 1 ") && status.lines().count() > 12, "{status}");
    let json: serde_json::Value =
        serde_json::from_str(&admin(&["status", "--json"]).unwrap()).unwrap();
    assert_eq!(json["shards"].as_array().unwrap().len(), 12);

    let merchants = site.dir.path().join("merchants.toml");
    let put = admin(&["merchant", "put", merchants.to_str().unwrap(), "--only-if-absent"]);
    assert_eq!(put.unwrap(), "done so\n");
    let shown = admin(&["merchant", "show", "M000001"]).unwrap();
    assert!(shown.contains("1 (hmac-sha256)") && shown.contains("100000000"), "{shown}");
    assert_eq!(admin(&["limit", "set", "M000001", "--burst", "3"]).unwrap(), "done so\n");

    assert!(admin(&["in-doubt", "--limit", "2"]).unwrap().starts_with("merchant"));
    assert!(admin(&["explain", "M1", "A|1*"]).unwrap().starts_with("M1 A|1* "));
    let missing = admin(&["explain", "M404", "1"]).unwrap_err();
    assert_eq!(missing, Failure::new(Exit::Missed, "not found (not_found)"));
    let decide = ["decide", "M1", "1", "--moved", "--note", "t"];
    assert!(admin(&decide).unwrap().starts_with("proposed by admin"));
    let file = |name: &str| site.dir.path().join("certs").join(name).to_str().unwrap().to_owned();
    let second = ["--cert", &file("admin-2.pem"), "--key", &file("admin-2.key")];
    assert_eq!(admin(&[&decide[..], &second].concat()).unwrap(), "done so\n");
}
