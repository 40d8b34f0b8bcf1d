//! Prometheus text (version 0.0.4).

use super::{ChannelMetrics, Counter, Gauge, Histogram, Metrics, Op, PeerMetrics, ShardMetrics};
use crate::engine::output::AlarmKind;
use protocol::code::{Code, OrderState, RefundState};
use std::fmt::Write;

/// Upper bounds of times: 16 us to 67 s, two per octave. Each is an edge of
/// [`Histogram`]'s buckets, so that the counts are exact.
const TIME_BOUNDS: [u64; 46] = bounds::<46>(4);
/// Upper bounds of sizes: 1, 2, 4 ... 2^26.
const SIZE_BOUNDS: [u64; 27] = {
    let mut bounds = [0; 27];
    let mut at = 0;
    while at < 27 {
        bounds[at] = 1 << at;
        at += 1;
    }
    bounds
};

const fn bounds<const N: usize>(first_bits: u32) -> [u64; N] {
    let mut bounds = [0; N];
    let mut at = 0;
    while at < N {
        let power = 1 << (first_bits + at as u32 / 2);
        bounds[at] = if at % 2 == 0 { power } else { power + power / 2 };
        at += 1;
    }
    bounds
}

const ALARMS: [(AlarmKind, &str); 5] = [
    (AlarmKind::InDoubtTooLong, "in_doubt_too_long"),
    (AlarmKind::Manual, "manual"),
    (AlarmKind::Integrity, "integrity"),
    (AlarmKind::OrphanSuccess, "orphan_success"),
    (AlarmKind::Conflict, "conflict"),
];

struct Page<'a> {
    out: &'a mut String,
    site: u16,
}

// Writing to a String cannot fail: the results are dropped on purpose.
impl Page<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ =
            writeln!(self.out, "# HELP payswitch_{name} {help}\n# TYPE payswitch_{name} {kind}");
    }

    /// `labels` is empty or starts with a comma; its values are escaped.
    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let site = self.site;
        let _ = writeln!(self.out, "payswitch_{name}{{site=\"{site}\"{labels}}} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, counter: &Counter) {
        self.head(name, "counter", help);
        self.sample(name, "", counter.value());
    }

    fn gauge(&mut self, name: &str, help: &str, gauge: &Gauge) {
        self.head(name, "gauge", help);
        self.sample(name, "", gauge.value());
    }

    fn family<'c>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counters: impl Iterator<Item = (&'static str, &'c Counter)>,
    ) {
        self.head(name, "counter", help);
        for (value, counter) in counters {
            self.sample(name, &format!(",{label}=\"{value}\""), counter.value());
        }
    }

    /// `unit` divides recorded values: 10^6 turns microseconds into seconds.
    fn histogram(&mut self, name: &str, help: &str, unit: f64, bounds: &[u64], from: &Histogram) {
        self.head(name, "histogram", help);
        let (site, out) = (self.site, &mut *self.out);
        let (count, sum) = from.read(bounds, |bound, below| {
            let le = bound as f64 / unit;
            let _ = writeln!(out, "payswitch_{name}_bucket{{site=\"{site}\",le=\"{le}\"}} {below}");
        });
        let sum = sum / unit;
        let _ = writeln!(out, "payswitch_{name}_bucket{{site=\"{site}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "payswitch_{name}_sum{{site=\"{site}\"}} {sum}");
        let _ = writeln!(out, "payswitch_{name}_count{{site=\"{site}\"}} {count}");
    }

    fn time(&mut self, name: &str, help: &str, from: &Histogram) {
        self.histogram(name, help, 1e6, &TIME_BOUNDS, from);
    }

    fn size(&mut self, name: &str, help: &str, from: &Histogram) {
        self.histogram(name, help, 1.0, &SIZE_BOUNDS, from);
    }
}

impl Metrics {
    /// Appends all metrics as Prometheus text.
    pub fn render(&self, out: &mut String) {
        let mut page = Page { out, site: self.site };
        self.operations(&mut page);
        self.queues(&mut page);
        self.log(&mut page);
        self.stages(&mut page);
        self.shard_gauges(&mut page);
        self.channel_links(&mut page);
        self.peer_links(&mut page);
    }

    fn operations(&self, page: &mut Page<'_>) {
        let by_op =
            |table: &'_ super::Table<9>| Op::ALL.map(|op| (op.name(), table.of(op).value()));
        page.head("requests_total", "counter", "Requests received.");
        for (op, n) in by_op(&self.requests) {
            page.sample("requests_total", &format!(",op=\"{op}\""), n);
        }
        page.head("replies_total", "counter", "Replies sent.");
        for (op, n) in by_op(&self.replies) {
            page.sample("replies_total", &format!(",op=\"{op}\""), n);
        }
        let refusals = Code::ALL.iter().filter(|code| **code != Code::Ok);
        let refusals = refusals.map(|code| (code.name(), self.refusals.of(*code)));
        page.family("refusals_total", "Replies with a code other than OK.", "code", refusals);
        let orders = OrderState::ALL.iter().map(|s| (s.name(), self.outcomes.order(*s)));
        page.family("order_states_total", "Payment states told to gateways.", "state", orders);
        let refunds = RefundState::ALL.iter().map(|s| (s.name(), self.outcomes.refund(*s)));
        page.family("refund_states_total", "Refund states told to gateways.", "state", refunds);
        let alarms = ALARMS.iter().map(|(kind, name)| (*name, self.alarm(*kind)));
        page.family("alarms_total", "Alarms for the operator.", "kind", alarms);
        page.counter("replayed_total", "Repeated requests answered from the log.", &self.replayed);
        page.counter("events_total", "Events handed to subscribers.", &self.events);
    }

    fn queues(&self, page: &mut Page<'_>) {
        page.gauge("connections", "Gateway connections.", &self.connections);
        page.gauge("handshakes", "Handshakes under way.", &self.handshakes);
        let help = "Packets of other sites that were not to be understood.";
        page.counter("replica_packets_refused_total", help, &self.packets_refused);
        let help = "Gateway connections refused.";
        page.counter("connections_refused_total", help, &self.connections_refused);
        let results = [("done", &self.tls_reloads), ("refused", &self.tls_reloads_refused)];
        let help = "Certificates and keys read again.";
        page.family("tls_reloads_total", help, "result", results.into_iter());
        let help = "Distance of the host's wall clock from the node's, which follows it at start.";
        page.gauge("clock_offset_seconds", help, &self.clock_offset_s);
        page.gauge("in_flight", "Unanswered requests of gateways.", &self.in_flight);
        let help = "How many may be at present: fewer under overload.";
        page.gauge("in_flight_window", help, &self.in_flight_window);
        page.gauge("inbox_batches", "Batches in the worker's inbox.", &self.inbox_batches);
        let help = "1 while the kernel is asked not to halt idle cores.";
        page.gauge("cores_awake", help, &self.cores_awake);
        let name = "cores_awake_moments_seconds_total";
        page.head(name, "counter", "For how long it was, below that load, for single requests.");
        page.sample(name, "", self.cores_awake_us.value() as f64 / 1e6);
    }

    fn log(&self, page: &mut Page<'_>) {
        page.counter("log_records_total", "Records made durable.", &self.records);
        page.counter("log_batches_total", "Batches made durable.", &self.batches);
        let help = "Bytes written to the log.";
        page.counter("log_written_bytes_total", help, &self.log_written_bytes);
        page.counter("checkpoints_total", "Checkpoints made durable.", &self.checkpoints);
        let help = "Checkpoints given up: disk full, write error.";
        page.counter("checkpoint_failures_total", help, &self.checkpoint_failures);
        let help = "States that reached a site whose log ended too early.";
        page.counter("snapshots_sent_total", help, &self.snapshots_sent);
        let help = "States of other sites that this one went on from.";
        page.counter("snapshots_installed_total", help, &self.snapshots_installed);
        let help = "States given up on their way between sites, and sent anew.";
        page.counter("snapshot_failures_total", help, &self.snapshot_failures);
        page.gauge("log_bytes", "Bytes of the log's segments.", &self.log_bytes);
        page.gauge("log_segments", "Segment files of the log.", &self.log_segments);
        let help = "Free bytes of the log's file system.";
        page.gauge("disk_free_bytes", help, &self.disk_free_bytes);
        let help = "1 while no payment is admitted for lack of disk space.";
        page.gauge("disk_full", help, &self.disk_full);
    }

    fn stages(&self, page: &mut Page<'_>) {
        let help = "From reception to the worker's hand.";
        page.time("queue_delay_seconds", help, &self.queue_delay);
        let help = "From the decision to admit a pay to its durable BEGIN, one payment in 16.";
        page.time("begin_durable_seconds", help, &self.begin_durable);
        let help = "From the send to the channel's answer.";
        page.time("channel_round_trip_seconds", help, &self.channel_round_trip);
        let help = "From the deciding evidence to its durable outcome, one payment in 16.";
        page.time("end_durable_seconds", help, &self.end_durable);
        let help = "From reception to the reply of a pay that waited for its outcome.";
        page.time("total_seconds", help, &self.total);
        page.time("fsync_seconds", "Write and fdatasync of one batch.", &self.fsync);
        let help = "The worker's time for one share of a checkpoint.";
        page.time("checkpoint_slice_seconds", help, &self.checkpoint_slice);
        page.size("batch_records", "Records per durable batch.", &self.batch_records);
        page.size("batch_bytes", "Bytes per durable batch.", &self.batch_bytes);
    }

    fn shard_gauges(&self, page: &mut Page<'_>) {
        type Field = fn(&ShardMetrics) -> &Gauge;
        let fields: [(&str, &str, Field); 17] = [
            ("shard_leader", "1 when this site leads the shard.", |s| &s.leader),
            ("shard_term", "Raft term.", |s| &s.term),
            ("shard_commit_index", "Highest committed index.", |s| &s.commit_index),
            ("shard_applied_index", "Highest applied index.", |s| &s.applied_index),
            ("shard_campaigns", "Times this site stood for election.", |s| &s.campaigns),
            ("shard_elections", "Times this site came to lead.", |s| &s.elections),
            ("shard_transfers", "Hand-overs that this site started.", |s| &s.transfers),
            ("orders", "Payments held.", |s| &s.orders),
            ("orders_open", "Payments without a final state.", |s| &s.open),
            ("orders_in_doubt", "Payments in doubt.", |s| &s.in_doubt),
            ("orders_manual", "Payments in front of an operator.", |s| &s.manual),
            ("waiters", "Requests waiting for an outcome.", |s| &s.waiters),
            ("outbox_events", "Undelivered events.", |s| &s.outbox),
            ("checkpoint_index", "Last block in its checkpoint.", |s| &s.checkpoint_index),
            ("checkpoint_age_seconds", "Age of its checkpoint.", |s| &s.checkpoint_age_s),
            ("shard_beyond_log", "Sites that only a checkpoint can help.", |s| &s.beyond_log),
            ("checkpoint_milliseconds", "What it took to write.", |s| &s.checkpoint_ms),
        ];
        for (name, help, field) in fields {
            page.head(name, "gauge", help);
            for (shard, metrics) in self.shards.iter().enumerate() {
                page.sample(name, &format!(",shard=\"{shard}\""), field(metrics).value());
            }
        }
    }

    fn channel_links(&self, page: &mut Page<'_>) {
        type Field = fn(&ChannelMetrics) -> u64;
        let fields: [(&str, &str, &str, Field); 8] = [
            ("channel_up", "gauge", "1 when it can take requests.", |c| c.up.value()),
            ("channel_in_flight", "gauge", "Operations without answer.", |c| c.in_flight.value()),
            ("channel_sent_total", "counter", "Requests sent.", |c| c.sent.value()),
            ("channel_answered_total", "counter", "Answers received.", |c| c.answered.value()),
            ("channel_timeouts_total", "counter", "No answer in time.", |c| c.timeouts.value()),
            ("channel_lost_total", "counter", "Lost with the connection.", |c| c.lost.value()),
            ("channel_not_sent_total", "counter", "Proven not sent.", |c| c.not_sent.value()),
            ("channel_unmatched_total", "counter", "Useless answers.", |c| c.unmatched.value()),
        ];
        for (name, kind, help, field) in fields {
            page.head(name, kind, help);
            for channel in &self.channels {
                let label = format!(",channel=\"{}\"", escape(&channel.name));
                page.sample(name, &label, field(channel));
            }
        }
    }
}

impl Metrics {
    /// Nothing in a deployment of one site.
    fn peer_links(&self, page: &mut Page<'_>) {
        type Field = fn(&PeerMetrics) -> u64;
        let fields: [(&str, &str, &str, Field); 14] = [
            ("peer_up", "gauge", "1 while our link stands.", |p| p.up.value()),
            ("peer_inbound_up", "gauge", "1 while its link stands.", |p| p.inbound.value()),
            ("peer_watched", "gauge", "1 while its process is watched.", |p| p.watched.value()),
            ("peer_too_far", "gauge", "1 while its round trip is too long.", |p| p.far.value()),
            ("peer_packets_sent_total", "counter", "Packets sent.", |p| p.packets_sent.value()),
            ("peer_bytes_sent_total", "counter", "Bytes sent.", |p| p.bytes_sent.value()),
            ("peer_packets_received_total", "counter", "Packets received.", |p| {
                p.packets_received.value()
            }),
            ("peer_bytes_received_total", "counter", "Bytes received.", |p| {
                p.bytes_received.value()
            }),
            ("peer_dropped_total", "counter", "Packets not sent.", |p| p.dropped.value()),
            ("peer_dropped_received_total", "counter", "Packets not taken.", |p| {
                p.dropped_received.value()
            }),
            ("peer_forwarded_total", "counter", "Requests sent on.", |p| p.forwarded.value()),
            ("peer_forwarded_here_total", "counter", "Requests received for it.", |p| {
                p.forwarded_here.value()
            }),
            ("peer_malformed_total", "counter", "Packets not readable.", |p| p.malformed.value()),
            ("peer_gone_total", "counter", "Signs of its process' end.", |p| p.gone.value()),
        ];
        if self.peers.is_empty() {
            return;
        }
        page.gauge("leaderless", "Requests waiting for a leader.", &self.leaderless);
        let others = || (1..).zip(&self.peers).filter(|(site, _)| *site != self.site);
        for (name, kind, help, field) in fields {
            page.head(name, kind, help);
            for (site, peer) in others() {
                page.sample(name, &format!(",peer=\"{site}\""), field(peer));
            }
        }
        let name = "peer_round_trip_seconds";
        page.head(name, "gauge", "Smoothed round trip.");
        for (peer, metrics) in others() {
            let seconds = metrics.round_trip_us.value() as f64 / 1e6;
            let site = self.site;
            let _ =
                writeln!(page.out, "payswitch_{name}{{site=\"{site}\",peer=\"{peer}\"}} {seconds}");
        }
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
