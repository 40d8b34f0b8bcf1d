//! The texts of the configuration files. Each documents its own keys; a test
//! loads them all.

use super::Ports;
use std::fmt::Write;

/// Far above what a load test asks for.
pub(super) const DEMO_LIMITS: &str = "{ pay_per_minute = 100_000_000, query_per_minute = 100_000_000, \
     refund_per_minute = 100_000_000, burst = 10_000_000 }";

pub(super) const MERCHANTS_HEAD: &str = "\
# Merchants put into the log at the first start (bootstrap.merchants). Later
# changes are made with `payswitch admin merchant put` and live in the log;
# entries that are there already are not touched.
#
# id         1 to 32 of 0-9 A-Z a-z _ -
# status     active (default), limited, suspended, dormant
# keys       one or two live keys: key_id (from 1), kind
#              hmac-sha256  secret: 32 to 128 hex digits
#              ed25519      public_key: 64 hex digits
# gateways   names of the gateways that may speak for it; empty: all
# addresses  ranges its gateways may come from, 10.0.0.0/8; empty: all
# limits     pay_per_minute 100, query_per_minute 300, refund_per_minute 50,
#            burst 20; daily_cap, single_max, second_signature_from in minor
#            units, 0: none
";

pub(super) const GATEWAY_MERCHANTS_HEAD: &str = "\
# What the demo gateway signs with, for `loadgen`; the switch never reads it.
# secret: the shared secret (hmac-sha256) or the private seed (ed25519), hex.
";

/// How many sites there are; those behind `serving` are witnesses.
#[derive(Clone, Copy)]
pub(super) struct Sites {
    pub(super) serving: u16,
    pub(super) all: u16,
}

/// `site-N.toml`.
pub(super) fn site(site: u16, sites: Sites, cluster: &str, ports: Ports) -> String {
    let mut text = format!(
        r#"# payswitch, site {site}. Paths are relative to this file. Unknown keys and values
# out of range are errors: `payswitch check --config` lists all of them.
# Values shown commented out are the defaults.

# Identity of the cluster, hex; a log of another cluster is refused.
cluster = "{cluster}"
# Which of the [[sites]] this process is.
site = {site}
# Log and state.
data_dir = "data/site-{site}"
# Slices of the merchants; fixed when the cluster is created.
shards = 12
# Channels when no [[routes]] rule matches, in order of preference.
default_route = [1]
"#
    );
    for other in 1..=sites.all {
        let (gateway, peer) = (ports.gateway(other), ports.peer(other));
        let admin = ports.admin_tls(other);
        let _ = write!(
            text,
            r#"
# Site {other}: where gateways, other sites and operators reach it, and the name in its
# certificate.
[[sites]]
id = {other}
gateway = "127.0.0.1:{gateway}"
peer = "127.0.0.1:{peer}"
admin = "127.0.0.1:{admin}"
server_name = "site-{other}.site.payswitch"
# voter = true                      # false: a site that comes later (admin member add)
"#
        );
        if other > sites.serving {
            text += "witness = true                     # votes and keeps the log, never leads\n";
        }
    }
    let (gateway, admin, admin_tls) =
        (ports.gateway(site), ports.admin(site), ports.admin_tls(site));
    let channel = ports.channel();
    let queue_delay = match sites.all {
        1 => "# queue_delay_max_ms = 20           # new payments are shed above this",
        _ => {
            "queue_delay_max_ms = 100            # new payments are shed above this; takeovers bring bursts"
        }
    };
    let _ = write!(
        text,
        r#"
# The QUIC front for gateways.
[gateway]
listen = "127.0.0.1:{gateway}"
cert = "certs/site-{site}.pem"
key = "certs/site-{site}.key"
# Authorities of gateways' certificates.
ca = "certs/ca.pem"
# connections_max = 1024
# connections_per_identity_max = 16
# streams_max = 64                  # per connection
# in_flight_max = 4096              # unanswered requests per connection
# handshakes_max = 64               # from half of it: address validation; one host: a quarter
# handshake_timeout_ms = 2000
# stream_receive_window_kib = 256
# receive_window_kib = 2048         # per connection
# send_window_kib = 4096            # per connection
# idle_timeout_ms = 3000            # a silent connection is gone after this
# keep_alive_ms = 750               # 0: only the gateway keeps it alive
# ack_eliciting_threshold = 10      # packets per acknowledgement; 0: off
# max_ack_delay_ms = 5
# initial_mtu = 1452                # UDP payload bytes; larger only on links known to carry it
# udp_buffer_kib = 4096
# timestamp_window_s = 300          # accepted distance of a request's timestamp
# frame_timeout_ms = 5000           # an unfinished frame closes its connection
# connection_age_h = 24             # then it is asked to reconnect, and soon closed

# The operators' server: plain HTTP on loopback for /ready, /status and
# /metrics; HTTPS with a client certificate of the role admin for everything.
[admin]
listen = "127.0.0.1:{admin}"
tls_listen = "127.0.0.1:{admin_tls}"
cert = "certs/site-{site}.pem"
key = "certs/site-{site}.key"
ca = "certs/ca.pem"
# What `payswitch admin` shows to the server; --cert and --key replace it, as
# for the second operator (certs/admin-2) that a decision about money needs.
admin_cert = "certs/admin.pem"
admin_key = "certs/admin.key"

[log]
# backend = "auto"                  # blocking; uring when no thread can be had
# segment_mib = 64
# batch_max_kib = 4096              # written and synced at once
# reserve_mib = 256                 # free space below which no payment is admitted
# idle_seal_ms = 100                # an idle log seals its last batch after this
# commit_interval_us = 450          # least average time between two log writes; less on fast disks
# checkpoint_mib = 1024             # log after which states are written down again; 0: never
# keep_mib = 0                      # log kept beside the checkpoints; 0: all of it

# How far apart the sites are. The same at all sites, which refuse each other
# otherwise; changed while all of them are stopped.
[replication]
# round_trip_ms = 10                # measured between the two sites farthest apart, rounded up
# election_ms = 0                   # silence after which a leader is given up; 0: 8 round trips, at least 80

[worker]
# inbox_batches = 1024
# outstanding_max = 65536           # unanswered requests of all connections; more are shed
{queue_delay}
# delay_target_ms = 0               # and so that they spend no more in the switch itself; 0: 2, of several sites 15
# block_max_bytes = 1048576         # one shard's block
# cpu = 1                           # pin; default: not pinned
# awake_from_rate = 5000            # requests/s from which idle cores do not halt; 0: never
# awake_latency_us = 0              # how long they may take to wake then; 0: they spin
# awake_share_percent = 25          # below that rate: of the time at most, while requests are unanswered

[engine]
# sync_wait_ms = 2000               # then the early answer PROCESSING
# orders_max_per_shard = 2000000
# waiters_per_order_max = 8
# refunds_per_order_max = 50
# refund_window_h = 8760
# reverse_window_h = 24
# expire_max_h = 168
# outbox_max_per_shard = 100000
# event_retry_ms = 5000
# event_tries_max = 10

# A payment service. The flags are its contract: what it guarantees decides how
# an unknown outcome is resolved. Numbers are part of the log: never reuse one.
[[channels]]
number = 1
name = "native-1"
kind = "native"
address = "127.0.0.1:{channel}"
server_name = "native-1.channel.payswitch"
cert = "certs/site-{site}.pem"
key = "certs/site-{site}.key"
ca = "certs/ca.pem"
# connections = 1
# in_flight_max = 65536             # operations without answer, per shard
idempotent_pay = true               # a repeated charge number does not charge twice
queryable = true                    # charges can be queried
reversible = true                   # charges can be undone
fence_on_cancel = true              # an undone number can never be charged
# max_msg_life_ms = 0               # how long a request may wander; 0: no guarantee
reply_timeout_ms = 1000
first_query_after_ms = 100
query_plan_ms = [200, 400, 800, 1500, 3000, 6000, 15000, 60000]
reverse_after_ms = 30000            # an in-doubt charge is undone; 0: only at expiry
in_doubt_alarm_ms = 60000
manual_after_ms = 7200000           # then an operator decides
resolver_per_second = 5000          # queries and reversals, per shard

# Rules in order; the first that matches chooses. Absent keys match everything.
# [[routes]]
# methods = ["CARD", "WALLET"]      # WALLET, CARD, BANK, MICROPAY, QR_CODE
# currencies = ["CNY"]
# amount_min = 0                    # minor units
# amount_max = 0                    # 0: no bound
# merchants = ["M000001"]
# channels = [1]

# Callers. The certificate holds NAME.gateway.payswitch.
[[gateways]]
number = 1
name = "gw-1"
trust_certificate = false           # true: requests without a merchant's signature are accepted

[keys]
# Wraps merchants' secrets in the log: 64 hex digits, mode 0600, the same at all sites.
kek = "kek.key"

[bootstrap]
# Merchants put into the log when they are not in it yet.
merchants = "merchants.toml"
"#
    );
    text
}

/// `gateway.toml`, for `loadgen run`.
pub(super) fn gateway(sites: u16, ports: Ports) -> String {
    let mut text = String::from(
        r#"# A gateway, as `loadgen run` plays it. Paths are relative to this file.
name = "gw-1"
cert = "certs/gw-1.pem"
key = "certs/gw-1.key"
ca = "certs/ca.pem"
# As at the sites.
shards = 12
# What it signs merchants' requests with.
merchants = "gateway-merchants.toml"
# Where the simulated channel keeps its ledger, for the audit.
channel_ledger_dir = "data/channel"
"#,
    );
    for site in 1..=sites {
        let (gateway, admin) = (ports.gateway(site), ports.admin(site));
        let _ = write!(
            text,
            r#"
[[sites]]
id = {site}
address = "127.0.0.1:{gateway}"
server_name = "site-{site}.site.payswitch"
admin = "127.0.0.1:{admin}"
"#
        );
    }
    text
}

/// `channel.toml`, for `loadgen channel`.
pub(super) fn channel(ports: Ports) -> String {
    let port = ports.channel();
    format!(
        r#"# The simulated native channel, `loadgen channel`. Paths are relative to this file.
name = "native-1"
listen = "127.0.0.1:{port}"
cert = "certs/native-1.pem"
key = "certs/native-1.key"
# Authorities of the switch's certificates.
ca = "certs/ca.pem"
# Its book of charges and refunds; survives its restart.
ledger_dir = "data/channel"
"#
    )
}
