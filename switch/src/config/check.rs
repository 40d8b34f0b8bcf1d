//! What the configuration may say: ranges and relations, checked all at once.

use super::{ChannelSection, Config, Problem, RouteSection};
use crate::runtime::STREAMS_MAX;
use protocol::code::Method;
use protocol::id::MchId;
use protocol::money::Amount;
use std::collections::HashSet;
use std::fmt::{Debug, Display};
use storage::BATCH_BYTES_LIMIT;

/// Most sites, those that were removed included: their numbers are used up.
const SITES_MAX: usize = 32;

/// Judges `config`, adding what is wrong to `problems`.
pub(super) fn check(config: &Config, problems: &mut Vec<Problem>) {
    let mut check = Check { problems };
    check.cluster(config);
    check.gateway(config);
    check.admin(config);
    check.log_and_worker(config);
    check.replication(config);
    check.engine(config);
    check.channels(config);
    check.routes(config);
    check.gateways(config);
}

struct Check<'a> {
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn refuse(&mut self, key: impl Display, value: impl Debug, allowed: impl Display) {
        self.problems.push(Problem {
            key: key.to_string(),
            message: format!("{value:?}; allowed: {allowed}"),
        });
    }

    fn range<T: PartialOrd + Display + Debug>(
        &mut self,
        key: impl Display,
        value: T,
        min: T,
        max: T,
    ) {
        if value < min || value > max {
            self.refuse(key, value, format_args!("{min} to {max}"));
        }
    }

    /// 0 (off) or a value within the range.
    fn range_or_zero(&mut self, key: impl Display, value: u64, min: u64, max: u64) {
        if value != 0 && (value < min || value > max) {
            self.refuse(key, value, format_args!("0, or {min} to {max}"));
        }
    }

    fn name(&mut self, key: impl Display, value: &str) {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=32).contains(&value.len()) || !value.bytes().all(legal) {
            self.refuse(key, value, "1 to 32 of a-z, 0-9 and -");
        }
    }

    fn server_name(&mut self, key: impl Display, value: &str) {
        if rustls_pki_types::DnsName::try_from(value).is_err() {
            self.refuse(key, value, "a DNS name, for example site-1.site.payswitch");
        }
    }

    /// Entries are numbered 1, 2, 3, ... in their order: numbers are indices.
    fn numbered(&mut self, list: &str, key: &str, numbers: impl Iterator<Item = u16>) {
        for (at, number) in numbers.enumerate() {
            if usize::from(number) != at + 1 {
                self.refuse(
                    format_args!("{list}[{at}].{key}"),
                    number,
                    format_args!("{}: numbers run from 1 without gaps, in order", at + 1),
                );
            }
        }
    }

    fn unique<'n>(&mut self, list: &str, key: &str, names: impl Iterator<Item = &'n str>) {
        let mut seen = HashSet::new();
        for (at, name) in names.enumerate() {
            if !seen.insert(name) {
                self.refuse(format_args!("{list}[{at}].{key}"), name, "each name once");
            }
        }
    }

    fn cluster(&mut self, config: &Config) {
        self.range("shards", config.shards, 1, 900);
        if config.sites.is_empty() || config.sites.len() > SITES_MAX {
            let allowed = format_args!("1 to {SITES_MAX} [[sites]] tables");
            self.refuse("sites", config.sites.len(), allowed);
        } else if config.sites.iter().all(|site| !site.voter || site.witness) {
            self.refuse("sites", "none may lead", "at least one with voter and without witness");
        }
        self.numbered("sites", "id", config.sites.iter().map(|site| site.id));
        self.unique("sites", "server_name", config.sites.iter().map(|s| s.server_name.as_str()));
        for (at, site) in config.sites.iter().enumerate() {
            self.server_name(format_args!("sites[{at}].server_name"), &site.server_name);
            if site.gateway == site.peer {
                self.refuse(
                    format_args!("sites[{at}].peer"),
                    site.peer,
                    "another address than its gateway's",
                );
            }
        }
        if config.site == 0 || usize::from(config.site) > config.sites.len() {
            self.refuse(
                "site",
                config.site,
                format_args!("the id of one of the {} [[sites]]", config.sites.len()),
            );
        }
    }

    fn gateway(&mut self, config: &Config) {
        let gateway = &config.gateway;
        self.range("gateway.connections_max", gateway.connections_max, 1, 65_536);
        self.range(
            "gateway.connections_per_identity_max",
            gateway.connections_per_identity_max,
            1,
            gateway.connections_max.max(1),
        );
        self.range("gateway.streams_max", gateway.streams_max, 1, STREAMS_MAX);
        self.range("gateway.in_flight_max", gateway.in_flight_max, 1, 1 << 20);
        self.range("gateway.handshakes_max", gateway.handshakes_max, 1, 65_536);
        self.range("gateway.handshake_timeout_ms", gateway.handshake_timeout_ms, 100, 60_000);
        self.range(
            "gateway.stream_receive_window_kib",
            gateway.stream_receive_window_kib,
            32,
            65_536,
        );
        self.range(
            "gateway.receive_window_kib",
            gateway.receive_window_kib,
            gateway.stream_receive_window_kib,
            1 << 20,
        );
        self.range("gateway.send_window_kib", gateway.send_window_kib, 32, 1 << 20);
        self.range("gateway.idle_timeout_ms", gateway.idle_timeout_ms, 200, 600_000);
        self.range_or_zero(
            "gateway.keep_alive_ms",
            gateway.keep_alive_ms,
            20,
            (gateway.idle_timeout_ms / 2).max(20),
        );
        self.range_or_zero(
            "gateway.ack_eliciting_threshold",
            gateway.ack_eliciting_threshold.into(),
            1,
            255,
        );
        self.range("gateway.max_ack_delay_ms", gateway.max_ack_delay_ms, 1, 1_000);
        self.range("gateway.initial_mtu", gateway.initial_mtu, 1_200, 65_000);
        self.range("gateway.udp_buffer_kib", gateway.udp_buffer_kib, 64, 1 << 20);
        self.range("gateway.timestamp_window_s", gateway.timestamp_window_s, 1, 86_400);
        self.range("gateway.frame_timeout_ms", gateway.frame_timeout_ms, 100, 600_000);
        self.range("gateway.connection_age_h", gateway.connection_age_h, 1, 8_760);
    }

    fn admin(&mut self, config: &Config) {
        let admin = &config.admin;
        if !admin.listen.ip().is_loopback() {
            self.refuse(
                "admin.listen",
                admin.listen,
                "a loopback address: it is plain HTTP; use admin.tls_listen for others",
            );
        }
        if admin.tls_listen.is_some_and(|tls| tls == admin.listen && tls.port() != 0) {
            self.refuse("admin.tls_listen", admin.tls_listen, "another address than admin.listen");
        }
        if admin.admin_cert.is_some() != admin.admin_key.is_some() {
            self.refuse(
                "admin.admin_cert",
                &admin.admin_cert,
                "together with admin.admin_key, or neither",
            );
        }
    }

    fn log_and_worker(&mut self, config: &Config) {
        let (log, worker) = (&config.log, &config.worker);
        self.range("log.segment_mib", log.segment_mib, 1, 4_096);
        self.range("log.batch_max_kib", log.batch_max_kib, 64, (BATCH_BYTES_LIMIT >> 10) as u32);
        if log.segment_mib >= 1 && log.batch_max_kib > log.segment_mib.saturating_mul(1024) / 2 {
            self.refuse("log.batch_max_kib", log.batch_max_kib, "at most half of log.segment_mib");
        }
        self.range("log.reserve_mib", log.reserve_mib, 1, 1 << 20);
        self.range("log.idle_seal_ms", log.idle_seal_ms, 1, 60_000);
        self.range("log.commit_interval_us", log.commit_interval_us, 0, 10_000);
        self.range("log.checkpoint_mib", log.checkpoint_mib, 0, 1 << 20);
        self.range("log.keep_mib", log.keep_mib, 0, 1 << 30);
        if log.keep_mib > 0 && log.checkpoint_mib == 0 {
            self.refuse("log.keep_mib", log.keep_mib, "0 without checkpoints");
        }
        self.range("worker.inbox_batches", worker.inbox_batches, 16, 1 << 20);
        self.range("worker.outstanding_max", worker.outstanding_max, 1, 1 << 24);
        self.range("worker.queue_delay_max_ms", worker.queue_delay_max_ms, 1, 60_000);
        self.range("worker.delay_target_ms", worker.delay_target_ms, 0, 60_000);
        if !log.batch_max_kib.is_multiple_of(4) {
            self.refuse("log.batch_max_kib", log.batch_max_kib, "a multiple of 4");
        }
        // A block must fit into a batch beside the headers of both.
        let block_max = log.batch_max_kib.saturating_mul(1024).saturating_sub(4096);
        self.range(
            "worker.block_max_bytes",
            worker.block_max_bytes,
            32 << 10,
            block_max.max(32 << 10),
        );
        self.range("worker.awake_latency_us", worker.awake_latency_us, 0, 10_000);
        self.range("worker.awake_share_percent", worker.awake_share_percent, 0, 100);
        if let Some(cpu) = worker.cpu {
            self.range("worker.cpu", cpu, 0, 1_023);
        }
    }

    fn replication(&mut self, config: &Config) {
        let super::ReplicationConfig { round_trip_ms, election_ms } = config.replication;
        let before = self.problems.len();
        self.range("replication.round_trip_ms", round_trip_ms, 1, 200);
        if election_ms != 0 {
            self.range("replication.election_ms", election_ms, 50, 10_000);
        }
        if self.problems.len() > before {
            return;
        }
        let most_ms = config.timing().round_trip_max_us() / 1_000;
        if round_trip_ms > most_ms {
            let allowed = format_args!(
                "0, or at least {}: with less, elections between sites {round_trip_ms} ms apart \
                 (replication.round_trip_ms) do not end, and a leader's lease to send runs out \
                 between two answers",
                round_trip_ms * 6
            );
            self.refuse("replication.election_ms", election_ms, allowed);
        }
    }

    fn engine(&mut self, config: &Config) {
        let engine = &config.engine;
        self.range("engine.sync_wait_ms", engine.sync_wait_ms, 10, 600_000);
        self.range("engine.orders_max_per_shard", engine.orders_max_per_shard, 1_000, 1 << 32);
        self.range("engine.waiters_per_order_max", engine.waiters_per_order_max, 1, 255);
        self.range("engine.refunds_per_order_max", engine.refunds_per_order_max, 1, 100);
        self.range("engine.refund_window_h", engine.refund_window_h, 1, 87_600);
        self.range("engine.reverse_window_h", engine.reverse_window_h, 1, 87_600);
        self.range("engine.expire_max_h", engine.expire_max_h, 1, 168);
        self.range("engine.outbox_max_per_shard", engine.outbox_max_per_shard, 16, 100_000_000);
        self.range("engine.event_retry_ms", engine.event_retry_ms, 100, 86_400_000);
        self.range("engine.event_tries_max", engine.event_tries_max, 1, 255);
    }

    fn channels(&mut self, config: &Config) {
        if config.channels.is_empty() || config.channels.len() > 1_000 {
            self.refuse("channels", config.channels.len(), "1 to 1000 [[channels]] tables");
        }
        self.numbered("channels", "number", config.channels.iter().map(|c| c.number));
        self.unique("channels", "name", config.channels.iter().map(|c| c.name.as_str()));
        for (at, channel) in config.channels.iter().enumerate() {
            self.channel(&format!("channels[{at}]"), channel);
        }
    }

    fn channel(&mut self, at: &str, channel: &ChannelSection) {
        self.name(format_args!("{at}.name"), &channel.name);
        self.server_name(format_args!("{at}.server_name"), &channel.server_name);
        self.range(format_args!("{at}.connections"), channel.connections, 1, 64);
        self.range(format_args!("{at}.in_flight_max"), channel.in_flight_max, 1, 1 << 22);
        let life_ms = channel.max_msg_life_ms;
        let idle_ms = channel.link_idle_ms();
        if life_ms != 0 && !(idle_ms..=DAY_MS * 7).contains(&life_ms) {
            let allowed = format_args!(
                "0, or {idle_ms} to {}: a request can wait that long in the link before it is \
                 given up (reply_timeout_ms, at least 1 s and at most 3 s), beside what the channel's \
                 own network adds",
                DAY_MS * 7
            );
            self.refuse(format_args!("{at}.max_msg_life_ms"), life_ms, allowed);
        }
        self.range(format_args!("{at}.reply_timeout_ms"), channel.reply_timeout_ms, 10, 600_000);
        self.range(
            format_args!("{at}.first_query_after_ms"),
            channel.first_query_after_ms,
            1,
            600_000,
        );
        self.range(
            format_args!("{at}.query_plan_ms (entries)"),
            channel.query_plan_ms.len(),
            1,
            16,
        );
        for (step, delay) in channel.query_plan_ms.iter().enumerate() {
            self.range(format_args!("{at}.query_plan_ms[{step}]"), *delay, 10, DAY_MS);
        }
        self.range_or_zero(
            format_args!("{at}.reverse_after_ms"),
            channel.reverse_after_ms,
            10,
            DAY_MS * 7,
        );
        self.range(
            format_args!("{at}.in_doubt_alarm_ms"),
            channel.in_doubt_alarm_ms,
            10,
            DAY_MS * 7,
        );
        self.range(
            format_args!("{at}.manual_after_ms"),
            channel.manual_after_ms,
            channel.in_doubt_alarm_ms,
            DAY_MS * 30,
        );
        self.range(
            format_args!("{at}.resolver_per_second"),
            channel.resolver_per_second,
            1,
            1_000_000,
        );
    }

    fn routes(&mut self, config: &Config) {
        self.route_channels("default_route", &config.default_route, config);
        self.range("routes (entries)", config.routes.len(), 0, 10_000);
        for (at, route) in config.routes.iter().enumerate() {
            self.route(&format!("routes[{at}]"), route);
            self.route_channels(&format!("routes[{at}].channels"), &route.channels, config);
        }
    }

    fn route(&mut self, at: &str, route: &RouteSection) {
        for method in &route.methods {
            if super::engine::method(method).is_none() {
                let names: Vec<_> = Method::ALL.iter().map(|m| m.name()).collect();
                self.refuse(format_args!("{at}.methods"), method, names.join(", "));
            }
        }
        for currency in &route.currencies {
            if super::engine::currency(currency).is_none() {
                self.refuse(
                    format_args!("{at}.currencies"),
                    currency,
                    "ISO 4217 codes, for example CNY",
                );
            }
        }
        for merchant in &route.merchants {
            if MchId::parse(merchant.as_bytes()).is_err() {
                self.refuse(format_args!("{at}.merchants"), merchant, "1 to 32 of 0-9 A-Z a-z _ -");
            }
        }
        self.range(format_args!("{at}.amount_min"), route.amount_min, 0, Amount::MAX);
        if route.amount_max != 0 {
            self.range(
                format_args!("{at}.amount_max"),
                route.amount_max,
                route.amount_min.max(1),
                Amount::MAX,
            );
        }
    }

    /// A channel that can neither repeat, query nor reverse leaves nothing to
    /// prove an attempt void with: no other channel may come after it.
    fn route_channels(&mut self, key: &str, numbers: &[u16], config: &Config) {
        if numbers.is_empty() || numbers.len() > 8 {
            self.refuse(key, numbers, "1 to 8 channel numbers");
        }
        let mut seen = HashSet::new();
        for (at, number) in numbers.iter().enumerate() {
            let channel = config.channels.iter().find(|channel| channel.number == *number);
            let Some(channel) = channel else {
                self.refuse(key, number, "numbers of [[channels]]");
                continue;
            };
            if !seen.insert(*number) {
                self.refuse(key, number, "each channel once");
            }
            let provable = channel.idempotent_pay || channel.queryable || channel.reversible;
            if !provable && at + 1 < numbers.len() {
                self.refuse(key, number, "only as the last: a channel that is neither idempotent, queryable nor reversible cannot fail over");
            }
        }
    }

    fn gateways(&mut self, config: &Config) {
        self.range("gateways (entries)", config.gateways.len(), 1, 10_000);
        self.numbered("gateways", "number", config.gateways.iter().map(|g| g.number));
        self.unique("gateways", "name", config.gateways.iter().map(|g| g.name.as_str()));
        for (at, gateway) in config.gateways.iter().enumerate() {
            self.name(format_args!("gateways[{at}].name"), &gateway.name);
        }
    }
}

const DAY_MS: u64 = 86_400_000;
