use super::*;
use crate::init::{InitOptions, init};

/// The file `init` writes for site 1 of two.
fn good() -> String {
    let dir = tempfile::tempdir().unwrap();
    let options = InitOptions {
        dir: dir.path().to_owned(),
        sites: 2,
        merchants: 1,
        port_base: 7400,
        force: false,
        witness: false,
    };
    init(&options).unwrap();
    std::fs::read_to_string(dir.path().join("site-1.toml")).unwrap()
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/etc/payswitch/site-1.toml"), text).map_err(|error| error.to_string())
}

/// Replaces `from` (which must be there) and gives the error.
fn refused(good: &str, from: &str, to: &str) -> String {
    assert!(good.contains(from), "{from}");
    parse(&good.replacen(from, to, 1)).expect_err(to)
}

#[test]
fn resolves_paths_units_and_defaults() {
    let config = parse(&good()).unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/payswitch/data/site-1"));
    assert_eq!(config.gateway.in_flight_max, 4096);
    assert_eq!(config.this_site().server_name, "site-1.site.payswitch");
    let engine = config.engine(7);
    assert_eq!((engine.shard, engine.sync_wait_us), (7, 2_000_000));
    assert_eq!(engine.channels[0].reply_timeout_us, 1_000_000);
    assert_eq!(engine.channels[0].query_plan_us[0], 200_000);
    assert_eq!(engine.default_route, [1]);
    assert_eq!(engine.channels[0].max_msg_life_us, 0, "no guarantee stays none");
    let bounded = good().replace("# max_msg_life_ms = 0", "max_msg_life_ms = 1500");
    let engine = parse(&bounded).unwrap().engine(7);
    // The link's writer has a second with this reply_timeout_ms.
    let own_us = crate::replica::Timing::default().lease_us() + crate::runtime::HOLD_US + 1_000_000;
    assert_eq!(engine.channels[0].max_msg_life_us, 1_500_000 + own_us, "of several sites");
}

/// Whatever may be configured holds together: the lease ends before anybody stands
/// for election, and outlasts a round trip with a heartbeat lost on the way.
#[test]
fn time_outs_follow_from_the_round_trip() {
    let good = good();
    let timing = |text: &str| {
        let text = good.replacen("[replication]", &format!("[replication]\n{text}"), 1);
        parse(&text).unwrap().timing()
    };
    let (near, far) = (timing(""), timing("round_trip_ms = 60"));
    assert_eq!(near, crate::replica::Timing::default());
    assert_eq!((near.heartbeat_us(), near.lease_us()), (15_000, 72_000));
    assert_eq!((far.heartbeat_us(), far.election_us()), (90_000, 480_000));
    assert_eq!(far.lease_us(), 432_000);
    assert_eq!(timing("round_trip_ms = 3"), near, "pauses do not become shorter");
    assert_eq!(timing("election_ms = 240").election_us(), 240_000);
    for election_ms in [60, 61, 63, 87, 999, 9_999, 10_000] {
        let told = timing(&format!("election_ms = {election_ms}")).election_us() / 1_000;
        assert_eq!(told, election_ms, "as it is compared between sites, and printed");
    }
    for round_trip_ms in 1..=200 {
        let own = timing(&format!("round_trip_ms = {round_trip_ms}"));
        let least = (round_trip_ms * 6).max(50);
        let least = timing(&format!("round_trip_ms = {round_trip_ms}\nelection_ms = {least}"));
        for timing in [own, least] {
            let needs = round_trip_ms * 1_000 + 2 * timing.heartbeat_us();
            assert!(needs < timing.lease_us(), "{round_trip_ms}: {timing:?}");
            assert!(timing.lease_us() < timing.election_us(), "{round_trip_ms}: {timing:?}");
        }
    }
}

#[test]
fn the_lease_that_is_configured_lengthens_the_life_of_a_message() {
    let text = good().replacen("[replication]", "[replication]\nround_trip_ms = 60", 1);
    let text = text.replace("# max_msg_life_ms = 0", "max_msg_life_ms = 60000");
    let life_us = parse(&text).unwrap().engine(0).channels[0].max_msg_life_us;
    assert_eq!(life_us, 60_000_000 + 432_000 + crate::runtime::HOLD_US + 1_000_000);
}

/// What the comments say is what applies: uncommenting every default changes nothing.
#[test]
fn documented_defaults_are_the_defaults() {
    let good = good();
    let mut uncommented = String::new();
    for line in good.lines() {
        let default = line.strip_prefix("# ").filter(|rest| {
            let key = rest.split(" = ").next().unwrap_or("");
            rest.contains(" = ") && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        });
        // The example route and the pinned processor are examples, not defaults.
        let example = ["methods", "currencies", "amount_", "merchants", "channels", "cpu"];
        match default {
            Some(rest) if !example.iter().any(|key| rest.starts_with(key)) => {
                uncommented += rest;
            }
            _ => uncommented += line,
        }
        uncommented += "\n";
    }
    assert_ne!(uncommented, good);
    let (one, two) = (parse(&good).unwrap(), parse(&uncommented).unwrap());
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
}

#[test]
fn every_bad_value_is_named_with_what_is_allowed() {
    let good = good();
    let cases = [
        ("site = 1\n", "site = 3\n", "site: 3; allowed: the id of one of the 2 [[sites]]"),
        ("shards = 12", "shards = 0", "shards: 0; allowed: 1 to 900"),
        ("shards = 12", "shards = 1000", "shards: 1000"),
        ("shards = 12", "shards = \"12\"", "shards: invalid type"),
        ("shards = 12", "shards = -1", "shards: invalid value"),
        ("shards = 12", "shard = 12", "shard: unknown key"),
        ("default_route = [1]", "default_route = [2]", "default_route: 2; allowed: numbers of"),
        ("default_route = [1]", "default_route = []", "default_route: []"),
        ("default_route = [1]", "default_route = [1, 1]", "each channel once"),
        ("default_route = [1]", "", "default_route: missing"),
        ("id = 2", "id = 3", "sites[1].id: 3"),
        ("id = 2", "voter = \"no\"\nid = 2", "sites[1]: invalid type"),
        ("peer = \"127.0.0.1:7401\"", "peer = \"127.0.0.1:7400\"", "sites[0].peer"),
        ("peer = \"127.0.0.1:7401\"", "peer = \"here\"", "sites[0]: \"here\" is not an address"),
        ("\"site-2.site.payswitch\"", "\"a b\"", "sites[1].server_name: \"a b\""),
        ("[log]", "[log]\nspeed = 1", "log: unknown field `speed`"),
        ("[log]", "[log]\nsegment_mib = 0", "log.segment_mib: 0; allowed: 1 to 4096"),
        ("[log]", "[log]\nbatch_max_kib = 16388", "log.batch_max_kib: 16388; allowed: 64 to 16384"),
        ("[gateway]", "[gateway]\nstreams_max = 1025", "streams_max: 1025; allowed: 1 to 1024"),
        (
            "[log]",
            "[log]\nbatch_max_kib = 65536",
            "log.batch_max_kib: 65536; allowed: at most half",
        ),
        ("[log]", "[log]\nkeep_mib = 1\ncheckpoint_mib = 0", "log.keep_mib: 1; allowed: 0 without"),
        ("[log]", "[log]\nbackend = \"fast\"", "log: unknown variant `fast`"),
        (
            "[log]",
            "[log]\nbatch_max_kib = 1026",
            "log.batch_max_kib: 1026; allowed: a multiple of 4",
        ),
        (
            "[worker]",
            "[worker]\nblock_max_bytes = 4194304",
            "worker.block_max_bytes: 4194304; allowed: 32768 to 4190208",
        ),
        (
            "[replication]",
            "[replication]\nround_trip_ms = 0",
            "replication.round_trip_ms: 0; allowed: 1 to 200",
        ),
        ("[replication]", "[replication]\nround_trip_ms = 201", "replication.round_trip_ms: 201"),
        ("[replication]", "[replication]\nelection_ms = 49", "replication.election_ms: 49"),
        (
            "[replication]",
            "[replication]\nelection_ms = 59",
            "election_ms: 59; allowed: 0, or at least 60",
        ),
        (
            "[replication]",
            "[replication]\nround_trip_ms = 60\nelection_ms = 359",
            "election_ms: 359; allowed: 0, or at least 360: with less, elections between sites 60 ms",
        ),
        ("[replication]", "[replication]\nlease_ms = 100", "replication: unknown field `lease_ms`"),
        ("[worker]", "[worker]\nblock_max_bytes = 1", "worker.block_max_bytes: 1"),
        ("queue_delay_max_ms = 100 ", "queue_delay_max_ms = 0 ", "worker.queue_delay_max_ms: 0"),
        ("# delay_target_ms = 0 ", "delay_target_ms = 60001 ", "worker.delay_target_ms: 60001"),
        ("[engine]", "[engine]\nsync_wait_ms = 1", "engine.sync_wait_ms: 1"),
        ("[engine]", "[engine]\nexpire_max_h = 169", "engine.expire_max_h: 169; allowed: 1 to 168"),
        ("[gateway]", "[gateway]\nin_flight_max = 0", "gateway.in_flight_max: 0"),
        ("[gateway]", "[gateway]\nkeep_alive_ms = 2999", "gateway.keep_alive_ms: 2999"),
        ("[gateway]", "[gateway]\ninitial_mtu = 100", "gateway.initial_mtu: 100"),
        ("[gateway]", "[gateway]\nreceive_window_kib = 128", "gateway.receive_window_kib: 128"),
        (
            "listen = \"127.0.0.1:7402\"",
            "listen = \"10.0.0.1:7402\"",
            "admin.listen: 10.0.0.1:7402; allowed: a loopback address",
        ),
        ("admin_key =", "# admin_key =", "admin.admin_cert"),
        ("kind = \"native\"", "kind = \"telex\"", "channels[0]: unknown variant `telex`"),
        ("queryable = true ", "# ", "channels[0]: missing field `queryable`"),
        ("name = \"native-1\"", "name = \"\"", "channels[0].name: \"\""),
        ("number = 1", "number = 4", "channels[0].number: 4"),
        (
            "# max_msg_life_ms = 0",
            "max_msg_life_ms = 999",
            "channels[0].max_msg_life_ms: 999; allowed: 0, or 1000 to 604800000: a request can wait",
        ),
        (
            "# max_msg_life_ms = 0               # how long a request may wander; 0: no guarantee\nreply_timeout_ms = 1000",
            "max_msg_life_ms = 2999\nreply_timeout_ms = 60000",
            "channels[0].max_msg_life_ms: 2999; allowed: 0, or 3000",
        ),
        ("reply_timeout_ms = 1000", "reply_timeout_ms = 0", "channels[0].reply_timeout_ms: 0"),
        ("query_plan_ms = [200,", "query_plan_ms = [1,", "channels[0].query_plan_ms[0]: 1"),
        ("manual_after_ms = 7200000", "manual_after_ms = 5", "channels[0].manual_after_ms: 5"),
        ("name = \"gw-1\"", "name = \"GW\"", "gateways[0].name: \"GW\""),
        ("[keys]", "[key]", "keys: missing"),
        ("[[gateways]]", "[gateways]", "gateways: is a table; expected [[gateways]]"),
    ];
    for (from, to, expected) in cases {
        let error = refused(&good, from, to);
        assert!(error.contains(expected), "{to}\n  gave: {error}\n  expected: {expected}");
    }
}

#[test]
fn the_cluster_is_a_number_in_hex() {
    let good = good();
    let line = good.lines().find(|line| line.starts_with("cluster")).unwrap();
    for bad in ["\"\"", "\"0\"", "\"xyz\"", "\"+1\"", "\"12345678123456781\"", "7"] {
        let error = refused(&good, line, &format!("cluster = {bad}"));
        assert!(error.contains("cluster: "), "{bad}: {error}");
    }
    let config = parse(&good.replacen(line, "cluster = \"00ff\"", 1)).unwrap();
    assert_eq!(config.cluster, 255);
}

#[test]
fn routes_are_checked() {
    let good = good();
    let with = |route: &str| parse(&format!("{good}\n[[routes]]\n{route}\n"));
    let config = with("methods = [\"QR_CODE\"]\ncurrencies = [\"CNY\"]\nchannels = [1]").unwrap();
    let rule = &config.engine(0).routes[0];
    assert_eq!((rule.methods.len(), rule.currencies.len()), (1, 1));
    let cases = [
        ("methods = [\"CASH\"]\nchannels = [1]", "routes[0].methods: \"CASH\"; allowed: WALLET"),
        ("currencies = [\"cny\"]\nchannels = [1]", "routes[0].currencies: \"cny\""),
        ("merchants = [\"a b\"]\nchannels = [1]", "routes[0].merchants: \"a b\""),
        ("amount_min = 5\namount_max = 4\nchannels = [1]", "routes[0].amount_max: 4"),
        ("channels = [9]", "routes[0].channels: 9"),
        ("channel = [1]", "routes[0]: unknown field `channel`"),
    ];
    for (route, expected) in cases {
        let error = with(route).expect_err(route);
        assert!(error.contains(expected), "{route}: {error}");
    }
}

#[test]
fn a_channel_that_proves_nothing_cannot_fail_over() {
    let good = good();
    let start = good.find("[[channels]]").unwrap();
    let end = good.find("# Rules in order").unwrap();
    let second = good[start..end]
        .replace("number = 1", "number = 2")
        .replace("name = \"native-1\"", "name = \"blind\"")
        .replace("idempotent_pay = true", "idempotent_pay = false")
        .replace("queryable = true", "queryable = false")
        .replace("reversible = true", "reversible = false");
    let text = format!("{good}\n{second}");
    assert!(parse(&text.replace("default_route = [1]", "default_route = [1, 2]")).is_ok());
    let error = parse(&text.replace("default_route = [1]", "default_route = [2, 1]")).unwrap_err();
    assert!(error.contains("default_route: 2; allowed: only as the last"), "{error}");
}

#[test]
fn all_problems_are_listed_at_once() {
    let text = good()
        .replace("shards = 12", "shards = 0")
        .replace("[log]", "[log]\nsegment_mib = 0")
        .replace("name = \"gw-1\"", "name = \"\"");
    let error = parse(&text).unwrap_err();
    assert!(error.contains("3 problems"), "{error}");
    let text = text.replace("[worker]", "[worker]\nx = 1").replace("[engine]", "[engine]\ny = 1");
    let error = parse(&text).unwrap_err();
    assert!(
        error.contains("2 problems") && error.contains("`x`") && error.contains("`y`"),
        "{error}"
    );
}

#[test]
fn unreadable_files_are_named() {
    let missing = Config::load(Path::new("/nonexistent/site.toml")).unwrap_err().to_string();
    assert!(missing.contains("/nonexistent/site.toml"), "{missing}");
    let error = parse("site = ").unwrap_err();
    assert!(error.contains("not valid TOML") && error.contains("line 1"), "{error}");
}
