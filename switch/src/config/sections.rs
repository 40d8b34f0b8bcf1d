//! The sections of the configuration file, as they stand in it: every key with
//! its unit in its name, its default, and what it is for. The allowed ranges
//! are in `super::check`.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use std::net::SocketAddr;
use std::path::PathBuf;

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!(
            "{text:?} is not an address; expected IP:PORT, for example 127.0.0.1:7400"
        ))
    })
}

fn address_option<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    address(d).map(Some)
}

/// `[[sites]]`: one data centre.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// Number, from 1, without gaps.
    pub id: u16,
    /// Where gateways reach it (QUIC).
    #[serde(deserialize_with = "address")]
    pub gateway: SocketAddr,
    /// Where other sites reach it (QUIC).
    #[serde(deserialize_with = "address")]
    pub peer: SocketAddr,
    /// Its `admin.tls_listen`: `payswitch admin` sends commands about a shard
    /// on to the site that leads it.
    #[serde(default, deserialize_with = "address_option")]
    pub admin: Option<SocketAddr>,
    /// Name in its certificate, for example `site-1.site.payswitch`.
    pub server_name: String,
    /// It is one of the sites that the cluster is made of. `false` for a site
    /// that comes later, with `payswitch admin member add`. Never changed
    /// afterwards: who is a member now stands in the log.
    #[serde(default = "defaults::voter")]
    pub voter: bool,
    /// It votes and keeps the log, but never leads and serves no gateways.
    #[serde(default)]
    pub witness: bool,
}

/// `[gateway]`: the QUIC front.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// UDP address to listen on.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Certificate authorities of gateways, PEM.
    pub ca: PathBuf,
    /// Most connections.
    #[serde(default = "defaults::connections_max")]
    pub connections_max: u32,
    /// Most connections of one gateway certificate name.
    #[serde(default = "defaults::connections_per_identity_max")]
    pub connections_per_identity_max: u32,
    /// Most open streams of one connection.
    #[serde(default = "defaults::streams_max")]
    pub streams_max: u32,
    /// Most unanswered requests of one connection.
    #[serde(default = "defaults::in_flight_max")]
    pub in_flight_max: u32,
    /// Most handshakes under way: at it new connections are refused. From half of
    /// it on addresses must be validated (Retry). One host has a quarter of it.
    #[serde(default = "defaults::handshakes_max")]
    pub handshakes_max: u32,
    /// Longest handshake.
    #[serde(default = "defaults::handshake_timeout_ms")]
    pub handshake_timeout_ms: u64,
    /// Unread bytes allowed per stream, KiB.
    #[serde(default = "defaults::stream_receive_window_kib")]
    pub stream_receive_window_kib: u32,
    /// Unread bytes allowed per connection, KiB.
    #[serde(default = "defaults::receive_window_kib")]
    pub receive_window_kib: u32,
    /// Unacknowledged bytes sent per connection, KiB.
    #[serde(default = "defaults::send_window_kib")]
    pub send_window_kib: u32,
    /// A connection without a packet for this long is gone.
    #[serde(default = "defaults::idle_timeout_ms")]
    pub idle_timeout_ms: u64,
    /// Interval of keep-alive packets; 0: the other side keeps it alive.
    #[serde(default = "defaults::keep_alive_ms")]
    pub keep_alive_ms: u64,
    /// Packets the peer may receive before it acknowledges (QUIC ACK
    /// frequency); 0: the extension stays off.
    #[serde(default = "defaults::ack_eliciting_threshold")]
    pub ack_eliciting_threshold: u32,
    /// Longest delay of an acknowledgement when the extension is on.
    #[serde(default = "defaults::max_ack_delay_ms")]
    pub max_ack_delay_ms: u64,
    /// UDP payload assumed before discovery, bytes.
    #[serde(default = "defaults::initial_mtu")]
    pub initial_mtu: u16,
    /// Socket buffers, KiB.
    #[serde(default = "defaults::udp_buffer_kib")]
    pub udp_buffer_kib: u32,
    /// Accepted distance between a request's timestamp and our clock.
    #[serde(default = "defaults::timestamp_window_s")]
    pub timestamp_window_s: u64,
    /// Longest time an unfinished frame may stay unfinished.
    #[serde(default = "defaults::frame_timeout_ms")]
    pub frame_timeout_ms: u64,
    /// Age at which a connection is asked to reconnect, and soon closed, hours.
    #[serde(default = "defaults::connection_age_h")]
    pub connection_age_h: u64,
}

/// `[admin]`: the operators' HTTP server, and the client's credentials for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Plain HTTP on a loopback address: `/ready`, `/status`, `/metrics` only.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// HTTPS with client certificates of the role admin: everything.
    #[serde(default, deserialize_with = "address_option")]
    pub tls_listen: Option<SocketAddr>,
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Certificate authorities of operators, PEM.
    pub ca: PathBuf,
    /// Certificate chain `payswitch admin` shows, PEM.
    #[serde(default)]
    pub admin_cert: Option<PathBuf>,
    /// Private key `payswitch admin` uses, PEM.
    #[serde(default)]
    pub admin_key: Option<PathBuf>,
}

/// How the log reaches the disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogBackend {
    /// A writer thread with blocking writes; io_uring when no thread can be had.
    /// Said at start.
    #[default]
    Auto,
    /// io_uring; its absence is an error.
    Uring,
    /// A thread of its own that writes with pwrite and `O_DSYNC`.
    Blocking,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `auto`, `uring` or `blocking`.
    pub backend: LogBackend,
    /// Size of one segment file, MiB.
    pub segment_mib: u32,
    /// Largest batch written and synced at once, KiB.
    pub batch_max_kib: u32,
    /// Disk space kept free: below it no new payment is admitted, MiB.
    pub reserve_mib: u32,
    /// Without traffic the last batch is sealed after this time.
    pub idle_seal_ms: u64,
    /// Least time between two log writes on the average, microseconds; 0: none. It is
    /// longer while writes take long: one and a half times what they take, with
    /// several sites four times.
    /// A few writes after a pause are not held back.
    pub commit_interval_us: u64,
    /// The shards' states are written down so often that about this much log is
    /// to be replayed at a start, MiB; 0: never. Less often for a state that is
    /// larger than this.
    pub checkpoint_mib: u32,
    /// Log kept although checkpoints hold what it says, MiB; older segments are
    /// deleted. 0: all of it is kept.
    pub keep_mib: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            backend: LogBackend::Auto,
            segment_mib: 64,
            batch_max_kib: 4096,
            reserve_mib: 256,
            idle_seal_ms: 100,
            commit_interval_us: 450,
            checkpoint_mib: 1024,
            keep_mib: 0,
        }
    }
}

/// `[replication]`: how far apart the sites are. The same at every site: sites
/// whose time-outs differ refuse each other.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationConfig {
    /// Measured round trip between the two sites that are farthest apart, rounded
    /// up. Heartbeats, election time-outs and the lease for sending follow from it.
    pub round_trip_ms: u64,
    /// A leader that was not heard of for this long is given up, at the earliest;
    /// 0: eight round trips, at least 80.
    pub election_ms: u64,
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self { round_trip_ms: 10, election_ms: 0 }
    }
}

/// `[worker]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Batches the inbox holds; a full inbox answers OVERLOADED.
    pub inbox_batches: u32,
    /// New payments are shed when the oldest waiting one is older than this.
    pub queue_delay_max_ms: u64,
    /// How long a request spends in the switch's own hands under overload, on the average
    /// and without the channel: new ones are shed until it is so. 0: 2 on a single site, 15
    /// with others, whose takeovers bring bursts.
    pub delay_target_ms: u64,
    /// Largest block of one shard, bytes.
    pub block_max_bytes: u32,
    /// Processor the worker is pinned to; absent: not pinned.
    pub cpu: Option<u16>,
    /// Unanswered requests of all connections before new ones are shed. Where there are
    /// several gateways, each has half of it at most.
    pub outstanding_max: u32,
    /// From this many requests per second on the kernel is asked not to halt idle cores, so
    /// that threads wake sooner; 0: never. Needs `/dev/cpu_dma_latency`.
    pub awake_from_rate: u32,
    /// How long a core may take to wake up then, microseconds. 0: idle ones spin; more still
    /// lets the cores of a virtual machine halt.
    pub awake_latency_us: u32,
    /// Below that rate: for which share of the time at most, percent, cores are kept awake
    /// while requests are unanswered; 0: not below it.
    pub awake_share_percent: u32,
}

impl WorkerConfig {
    /// `delay_target_ms` of a deployment of so many sites, microseconds.
    pub fn delay_target_us(&self, sites: usize) -> u64 {
        1_000
            * match (self.delay_target_ms, sites) {
                (0, 1) => 2,
                (0, _) => 15,
                (target_ms, _) => target_ms,
            }
    }

    /// `awake_share_percent`, or 0 where cores shall never be kept awake.
    pub fn awake_share(&self) -> u32 {
        if self.awake_from_rate == 0 { 0 } else { self.awake_share_percent }
    }
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            inbox_batches: 1024,
            queue_delay_max_ms: 20,
            delay_target_ms: 0,
            block_max_bytes: 1 << 20,
            cpu: None,
            outstanding_max: 65_536,
            awake_from_rate: 5_000,
            awake_latency_us: 0,
            awake_share_percent: 25,
        }
    }
}

/// `[engine]`: see `engine::config::EngineConfig`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSection {
    /// Longest wait of a request before the early answer PROCESSING.
    pub sync_wait_ms: u64,
    /// Most payments one shard takes in its life: none is ever forgotten.
    pub orders_max_per_shard: u64,
    /// Most requests waiting for one payment.
    pub waiters_per_order_max: u8,
    /// Most refunds of one payment.
    pub refunds_per_order_max: u8,
    /// How long after payment refunds are accepted, hours.
    pub refund_window_h: u64,
    /// How long after payment a reverse is accepted, hours.
    pub reverse_window_h: u64,
    /// Longest allowed distance of `time_expire`, hours.
    pub expire_max_h: u64,
    /// Undelivered events one shard holds.
    pub outbox_max_per_shard: u32,
    /// An unacknowledged event is delivered again after this time.
    pub event_retry_ms: u64,
    /// Deliveries before an event is given up.
    pub event_tries_max: u8,
}

impl Default for EngineSection {
    fn default() -> Self {
        Self {
            sync_wait_ms: 2_000,
            orders_max_per_shard: 2_000_000,
            waiters_per_order_max: 8,
            refunds_per_order_max: 50,
            refund_window_h: 8_760,
            reverse_window_h: 24,
            expire_max_h: 168,
            outbox_max_per_shard: 100_000,
            event_retry_ms: 5_000,
            event_tries_max: 10,
        }
    }
}

/// Kinds of channels.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ChannelKind {
    /// Our own frames over QUIC.
    Native,
}

/// `[[channels]]`: a downstream payment service, its link and its contract.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelSection {
    /// Number, from 1, without gaps; part of the log, never reused.
    pub number: u16,
    /// Name for people and metrics.
    pub name: String,
    /// `native`.
    pub kind: ChannelKind,
    /// Where it listens.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// Name in its certificate.
    pub server_name: String,
    /// Our certificate chain, PEM.
    pub cert: PathBuf,
    /// Our private key, PEM.
    pub key: PathBuf,
    /// The channel's certificate authorities, PEM.
    pub ca: PathBuf,
    /// Parallel connections.
    #[serde(default = "defaults::channel_connections")]
    pub connections: u16,
    /// Most operations without answer, per shard.
    #[serde(default = "defaults::channel_in_flight_max")]
    pub in_flight_max: u32,
    /// A repeated charge with the same number does not charge twice.
    pub idempotent_pay: bool,
    /// Charges can be queried.
    pub queryable: bool,
    /// Charges can be reversed.
    pub reversible: bool,
    /// After a confirmed reversal the number can never be charged.
    pub fence_on_cancel: bool,
    /// Longest time a request may wander, what it may wait in the link included; 0: the
    /// channel guarantees nothing.
    #[serde(default)]
    pub max_msg_life_ms: u64,
    /// Time to wait for a reply.
    #[serde(default = "defaults::reply_timeout_ms")]
    pub reply_timeout_ms: u64,
    /// First query after the time-out.
    #[serde(default = "defaults::first_query_after_ms")]
    pub first_query_after_ms: u64,
    /// Delays between queries; the last repeats.
    #[serde(default = "defaults::query_plan_ms")]
    pub query_plan_ms: Vec<u64>,
    /// In-doubt attempts are reversed after this; 0: only at expiry.
    #[serde(default = "defaults::reverse_after_ms")]
    pub reverse_after_ms: u64,
    /// Alarm after this time in doubt.
    #[serde(default = "defaults::in_doubt_alarm_ms")]
    pub in_doubt_alarm_ms: u64,
    /// Handed to an operator after this time in doubt.
    #[serde(default = "defaults::manual_after_ms")]
    pub manual_after_ms: u64,
    /// Queries, reversals and re-sends per second and shard.
    #[serde(default = "defaults::resolver_per_second")]
    pub resolver_per_second: u32,
}

impl ChannelSection {
    /// A link on which nothing comes for this long is given up, and so is one that does
    /// not take a request for this long. Until then a request may wait in it, and may
    /// still arrive although its leader was replaced.
    pub fn link_idle_ms(&self) -> u64 {
        self.reply_timeout_ms.clamp(1_000, 3_000)
    }
}

/// `[[routes]]`: the first rule that matches gives the channels in order. An
/// absent key matches everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSection {
    /// `WALLET`, `CARD`, `BANK`, `MICROPAY`, `QR_CODE`.
    #[serde(default)]
    pub methods: Vec<String>,
    /// ISO 4217 codes.
    #[serde(default)]
    pub currencies: Vec<String>,
    /// Smallest amount, minor units.
    #[serde(default)]
    pub amount_min: i64,
    /// Largest amount, minor units; 0: no bound.
    #[serde(default)]
    pub amount_max: i64,
    /// Merchants.
    #[serde(default)]
    pub merchants: Vec<String>,
    /// Channel numbers in order of preference.
    pub channels: Vec<u16>,
}

/// `[[gateways]]`: a caller that may connect.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayEntry {
    /// Number, from 1, without gaps.
    pub number: u16,
    /// Name: the certificate holds `NAME.gateway.payswitch`.
    pub name: String,
    /// Requests without a merchant's signature are accepted from it.
    #[serde(default)]
    pub trust_certificate: bool,
}

/// `[keys]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// File with the key-encryption key: 64 hex digits, mode 0600.
    pub kek: PathBuf,
}

/// `[bootstrap]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapConfig {
    /// Merchants put into the log when they are not in it yet.
    pub merchants: Option<PathBuf>,
}

mod defaults {
    macro_rules! defaults {
        ($($name:ident: $type:ty = $value:expr;)*) => {
            $(pub(super) fn $name() -> $type { $value })*
        };
    }
    defaults! {
        voter: bool = true;
        connections_max: u32 = 1024;
        connections_per_identity_max: u32 = 16;
        streams_max: u32 = 64;
        in_flight_max: u32 = 4096;
        handshakes_max: u32 = 64;
        handshake_timeout_ms: u64 = 2_000;
        stream_receive_window_kib: u32 = 256;
        receive_window_kib: u32 = 2_048;
        send_window_kib: u32 = 4_096;
        idle_timeout_ms: u64 = 3_000;
        keep_alive_ms: u64 = 750;
        ack_eliciting_threshold: u32 = 10;
        max_ack_delay_ms: u64 = 5;
        initial_mtu: u16 = 1452;
        udp_buffer_kib: u32 = 4_096;
        timestamp_window_s: u64 = 300;
        frame_timeout_ms: u64 = 5_000;
        connection_age_h: u64 = 24;
        channel_connections: u16 = 1;
        channel_in_flight_max: u32 = 65_536;
        reply_timeout_ms: u64 = 5_000;
        first_query_after_ms: u64 = 1_000;
        query_plan_ms: Vec<u64> = vec![1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000, 300_000];
        reverse_after_ms: u64 = 30_000;
        in_doubt_alarm_ms: u64 = 60_000;
        manual_after_ms: u64 = 7_200_000;
        resolver_per_second: u32 = 500;
    }
}
