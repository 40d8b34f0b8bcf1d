//! A client in another language, written from docs/WIRE.md alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::Deployment;

/// The Python of the project's virtual environment, when it has aioquic.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let python = root.join(".venv/bin/python");
    let probe = Command::new(&python).args(["-c", "import aioquic"]).status().ok()?;
    probe.success().then_some(python)
}

#[test]
fn the_python_client_pays_queries_and_refunds() {
    let Some(python) = python() else {
        assert!(
            std::env::var_os("PAYSWITCH_REQUIRE_PYTHON").is_none(),
            "the Python client is demanded here but .venv with aioquic is missing"
        );
        eprintln!(
            "SKIPPED: no .venv with aioquic; run: python3 -m venv .venv && .venv/bin/pip install -r tests/python/requirements.txt"
        );
        return;
    };
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    let gateway = deployment.address("gateway", "listen");
    let (host, port) = gateway.rsplit_once(':').unwrap();
    let text = std::fs::read_to_string(deployment.file("gateway-merchants.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let first = &table["merchants"].as_array().unwrap()[0];
    let key = &first["keys"].as_array().unwrap()[0];
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/test_client.py");
    let output = Command::new(python)
        .arg(script)
        .args(["--host", host, "--port", port, "--server-name", "site-1.site.payswitch"])
        .arg("--ca")
        .arg(deployment.file("certs/ca.pem"))
        .arg("--cert")
        .arg(deployment.file("certs/gw-1.pem"))
        .arg("--key")
        .arg(deployment.file("certs/gw-1.key"))
        .args(["--mch", first["id"].as_str().unwrap()])
        .args(["--key-id", &key["key_id"].as_integer().unwrap().to_string()])
        .args(["--secret", key["secret"].as_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", tests::text(&output));
}
