use super::*;
use std::collections::{BTreeMap, HashMap};

/// One sample: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads the text format strictly: HELP and TYPE before samples, each once.
fn parse(text: &str) -> (HashMap<String, String>, Vec<Sample>) {
    let (mut kinds, mut helped, mut samples) = (HashMap::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(!help.is_empty() && !helped.contains(&name), "{line}");
            helped.push(name);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(helped.last(), Some(&name));
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
        } else {
            samples.push(sample(line));
        }
    }
    (kinds, samples)
}

fn sample(line: &str) -> Sample {
    let (head, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = head.strip_suffix('}').unwrap().split_once('{').unwrap();
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    assert!(name.starts_with("payswitch_") && name.chars().all(legal), "{line}");
    let labels = labels.split(',').map(|label| {
        let (key, value) = label.split_once('=').unwrap();
        let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        assert!(key.chars().all(legal), "{line}");
        (key.to_owned(), value.to_owned())
    });
    (name.to_owned(), labels.collect(), value.parse().unwrap())
}

fn value(samples: &[Sample], name: &str, label: (&str, &str)) -> f64 {
    let found = samples
        .iter()
        .find(|(n, labels, _)| n == name && labels.get(label.0).is_some_and(|v| v == label.1));
    found.unwrap_or_else(|| panic!("{name} {label:?}")).2
}

#[test]
fn renders_what_prometheus_reads() {
    let metrics = Metrics::sized(3, 2, ["bank".to_owned()]);
    metrics.requests.of(Op::Pay).add(5);
    metrics.refusals.of(Code::RateLimited).add(2);
    metrics.refusals.of(Code::Internal).add(1);
    metrics.shard(1).unwrap().in_doubt.set(4);
    metrics.channel(1).unwrap().sent.add(9);
    metrics.total.record_n(1_000, 3);
    metrics.batch_records.record(128);
    let mut text = String::new();
    metrics.render(&mut text);
    let (kinds, samples) = parse(&text);

    assert_eq!(value(&samples, "payswitch_requests_total", ("op", "pay")), 5.0);
    assert_eq!(value(&samples, "payswitch_refusals_total", ("code", "RATE_LIMITED")), 2.0);
    assert_eq!(value(&samples, "payswitch_refusals_total", ("code", "INTERNAL")), 1.0);
    assert_eq!(value(&samples, "payswitch_orders_in_doubt", ("shard", "1")), 4.0);
    assert_eq!(value(&samples, "payswitch_channel_sent_total", ("channel", "bank")), 9.0);
    assert_eq!(value(&samples, "payswitch_total_seconds_bucket", ("le", "0.000768")), 0.0);
    assert_eq!(value(&samples, "payswitch_total_seconds_bucket", ("le", "0.001024")), 3.0);
    assert_eq!(value(&samples, "payswitch_batch_records_bucket", ("le", "128")), 1.0);
    assert_eq!(value(&samples, "payswitch_batch_records_bucket", ("le", "64")), 0.0);
    assert!(samples.iter().all(|(_, labels, _)| labels["site"] == "3"));
    for (name, _, _) in &samples {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let histogram = base.filter(|base| kinds.get(*base).is_some_and(|k| k == "histogram"));
        assert!(histogram.is_some() || kinds.contains_key(name), "{name} has no TYPE");
    }
}

#[test]
fn histograms_are_cumulative_and_end_with_their_count() {
    let metrics = Metrics::sized(1, 1, []);
    for us in [1, 20, 300, 4_000, 50_000, 600_000, 99_000_000] {
        metrics.fsync.record(us);
    }
    let mut text = String::new();
    metrics.render(&mut text);
    let (_, samples) = parse(&text);
    let buckets: Vec<_> =
        samples.iter().filter(|(n, ..)| n == "payswitch_fsync_seconds_bucket").collect();
    assert!(buckets.windows(2).all(|pair| pair[0].2 <= pair[1].2));
    let last = buckets.last().unwrap();
    assert_eq!((last.1["le"].as_str(), last.2), ("+Inf", 7.0));
    assert_eq!(value(&samples, "payswitch_fsync_seconds_count", ("site", "1")), 7.0);
    let sum = value(&samples, "payswitch_fsync_seconds_sum", ("site", "1"));
    assert!((sum / 99.654321 - 1.0).abs() < 0.02, "{sum}");
}

#[test]
fn every_code_and_kind_has_its_own_counter() {
    let metrics = Metrics::sized(1, 0, []);
    for (n, code) in Code::ALL.iter().enumerate() {
        metrics.refusals.of(*code).add(n as u64 + 1);
    }
    for (n, code) in Code::ALL.iter().enumerate() {
        assert_eq!(metrics.refusals.of(*code).value(), n as u64 + 1, "{}", code.name());
    }
    assert!(Op::ALL.iter().enumerate().all(|(n, op)| *op as usize == n));
    assert!(metrics.channel(0).is_none() && metrics.shard(0).is_none());
}

#[test]
fn other_sites_are_shown_where_there_are_some() {
    let mut metrics = Metrics::sized(2, 1, []);
    let mut text = String::new();
    metrics.render(&mut text);
    assert!(!text.contains("peer"));
    metrics.peers = (0..3).map(|_| PeerMetrics::default()).collect();
    metrics.peer(3).unwrap().forwarded.add(4);
    metrics.peer(3).unwrap().round_trip_us.set(1_500);
    text.clear();
    metrics.render(&mut text);
    let (_, samples) = parse(&text);
    assert_eq!(value(&samples, "payswitch_peer_forwarded_total", ("peer", "3")), 4.0);
    assert_eq!(value(&samples, "payswitch_peer_round_trip_seconds", ("peer", "3")), 0.0015);
    assert!(samples.iter().all(|(_, labels, _)| labels.get("peer").is_none_or(|p| p != "2")));
    assert!(metrics.peer(0).is_none() && metrics.peer(4).is_none());
}
