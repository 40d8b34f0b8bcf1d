//! `payswitch check`: everything `serve` would read, judged without starting.

use super::{Exit, Failure, print};
use crate::config::{Config, LogBackend, merchants};
use crate::secret::Kek;
use crate::tls::{self, Credentials};
use std::fmt::Write;
use std::path::Path;

/// Judges the file at `path` and prints what it resolves to.
pub(super) fn check(out: &mut impl std::io::Write, path: &Path) -> Result<(), Failure> {
    let config = Config::load(path)?;
    let usage = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, error);
    let kek = Kek::load(&config.keys.kek).map_err(|error| usage(&error))?;
    let merchants = match &config.bootstrap.merchants {
        Some(path) => merchants::load(path, &kek)?.len(),
        None => 0,
    };
    certificates(&config).map_err(|error| usage(&error))?;
    print(out, format_args!("{}", summary(&config, merchants)))
}

fn certificates(config: &Config) -> Result<(), tls::TlsError> {
    tls::require_site_name(config)?;
    tls::require_site_role(config)?;
    let gateway = &config.gateway;
    Credentials::load(&gateway.cert, &gateway.key, &gateway.ca)?.server(tls::ALPN_GATEWAY)?;
    let admin = &config.admin;
    Credentials::load(&admin.cert, &admin.key, &admin.ca)?.server(tls::ALPN_ADMIN)?;
    for channel in &config.channels {
        tls::channel_client(channel)?;
    }
    if let (Some(cert), Some(key)) = (&admin.admin_cert, &admin.admin_key) {
        Credentials::load(cert, key, &admin.ca)?.client(tls::ALPN_ADMIN)?;
    }
    Ok(())
}

fn summary(config: &Config, merchants: usize) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |key: &str, value: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{key:<12} {value}");
    };
    line("file", format_args!("{}", config.path.display()));
    line("cluster", format_args!("{:016x}", config.cluster));
    line("site", format_args!("{} of {}", config.site, config.sites.len()));
    line("shards", format_args!("{}", config.shards));
    line("data", format_args!("{}", config.data_dir.display()));
    let backend = match config.log.backend {
        LogBackend::Auto => "auto",
        LogBackend::Uring => "uring",
        LogBackend::Blocking => "blocking",
    };
    let (segment, reserve) = (config.log.segment_mib, config.log.reserve_mib);
    line("log", format_args!("{backend}, segments of {segment} MiB, reserve {reserve} MiB"));
    if config.sites.len() > 1 {
        let timing = config.timing();
        line(
            "replication",
            format_args!(
                "round trips of up to {} ms; heartbeat {} ms, election {} ms, lease {} ms",
                timing.round_trip_max_us() / 1_000,
                timing.heartbeat_us() / 1_000,
                timing.election_us() / 1_000,
                timing.lease_us() / 1_000
            ),
        );
    }
    let gateway = &config.gateway;
    line(
        "gateway",
        format_args!("{} (QUIC), {} connections", gateway.listen, gateway.connections_max),
    );
    line("admin", format_args!("{} (HTTP)", config.admin.listen));
    if let Some(address) = config.admin.tls_listen {
        line("admin", format_args!("{address} (HTTPS)"));
    }
    for channel in &config.channels {
        let (number, name, address) = (channel.number, &channel.name, channel.address);
        line("channel", format_args!("{number} {name} at {address}"));
    }
    let route = &config.default_route;
    line("routes", format_args!("{} rules, then channels {route:?}", config.routes.len()));
    for caller in &config.gateways {
        let trust = if caller.trust_certificate { ", unsigned requests accepted" } else { "" };
        line("caller", format_args!("{} {}{trust}", caller.number, caller.name));
    }
    line("merchants", format_args!("{merchants} to bootstrap"));
    line("result", format_args!("valid"));
    text
}
