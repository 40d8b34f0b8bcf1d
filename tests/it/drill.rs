//! `loadgen drill` as people start it: the list, plans good and bad.

use serde_json::Value;
use std::process::{Command, Output};
use std::time::Duration;
use tests::{Deployment, wait_until};

fn drill(args: &[&str]) -> Output {
    let binaries = tests::binaries();
    let payswitch = binaries.join("payswitch");
    let mut command = Command::new(binaries.join("loadgen"));
    command.arg("drill").args(args).arg("--payswitch").arg(payswitch).output().unwrap()
}

/// Times are not judged here: a busy machine may miss a goal, never the audit.
#[test]
fn the_example_of_a_plan_is_played_and_audited() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("plan.json");
    let plan = concat!(env!("CARGO_MANIFEST_DIR"), "/../loadgen/plans/evening-peak.toml");
    let output = drill(&["--plan", plan, "--json", json.to_str().unwrap()]);
    let printed = tests::text(&output);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{printed}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(result["drill"], "evening-peak");
    assert_eq!(result["audit"]["violation_count"], 0, "{printed}");
    assert!(result["audit"]["checked"]["payments"].as_u64().unwrap() > 1_000);
    let marks = result["repetitions"][0]["marks"].as_array().unwrap();
    let texts: Vec<&str> = marks.iter().map(|mark| mark["text"].as_str().unwrap()).collect();
    assert_eq!(texts[0], "kill -9 of site 2");
    assert!(texts[1].starts_with("channel: latency=uniform:5ms..50ms"), "{texts:?}");
    let targets = result["targets"].as_array().unwrap();
    assert!(targets.iter().any(|goal| goal["target"] == "unavailable p99 <= 250 ms"));
}

/// Plays a drill with these arguments; its exit code, what it printed, and its JSON.
fn told(args: &[&str]) -> (Option<i32>, String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("drill.json");
    let mut all = args.to_vec();
    all.extend(["--json", json.to_str().unwrap()]);
    let output = drill(&all);
    let result = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    (output.status.code(), tests::text(&output), result)
}

/// Plays a drill with these arguments; what it printed, and its JSON, which is clean.
fn played(args: &[&str]) -> (String, Value) {
    clean(args, told(args))
}

/// As [`played`], of a drill that looks for the maximum first. Where the machine is so busy
/// that the generator is late it says that and nothing else: then once more.
fn measured(args: &[&str]) -> (String, Value) {
    for _ in 0..3 {
        let (code, printed, result) = told(args);
        if code == Some(5) && printed.contains("the generator was the bottleneck at") {
            continue;
        }
        // Everything was measured, and the relay was busy.
        let busy = code == Some(5) && printed.contains("says nothing of the sites");
        return clean(args, (if busy { Some(1) } else { code }, printed, result));
    }
    panic!("the generator was late three times");
}

fn clean(args: &[&str], (code, printed, result): (Option<i32>, String, Value)) -> (String, Value) {
    assert!(matches!(code, Some(0 | 1)), "{printed}");
    assert_eq!(result["drill"], args[0]);
    assert_eq!(result["audit"]["violation_count"], 0, "{printed}");
    assert!(result["ended"].is_null(), "{printed}");
    (printed, result)
}

#[test]
fn a_second_site_is_killed_when_the_first_is_level_on_top_of_a_history() {
    let args = ["second-kill", "--quick", "--history", "3000", "--duration", "3"];
    let (printed, result) = played(&args);
    assert!(result["history"]["payments"].as_u64().unwrap() >= 3_000, "{printed}");
    let audited = result["audit"]["checked"]["payments"].as_u64().unwrap();
    assert!(audited > result["history"]["payments"].as_u64().unwrap());
    let repetition = &result["repetitions"][0];
    let [first, second] = &repetition["victims"].as_array().unwrap()[..] else {
        panic!("{printed}")
    };
    assert_ne!(first, second);
    let levels = repetition["level_ms"].as_array().unwrap();
    assert!(levels.len() == 2 && levels.iter().all(Value::is_u64), "{printed}");
    let by_fault = result["unavailability_by_fault"].as_array().unwrap();
    assert!(by_fault.len() == 2 && by_fault.iter().all(|gaps| gaps["count"].is_u64()));
    for fault in ["fault 1: ", "fault 2: "] {
        let targets = result["targets"].as_array().unwrap();
        let of = targets.iter().filter(|one| one["target"].as_str().unwrap().starts_with(fault));
        assert_eq!(of.count(), 2, "{targets:?}");
    }
}

#[test]
fn nothing_happens_for_a_while_and_that_is_counted() {
    let (printed, result) = played(&["steady", "--quick", "--minutes", "0.06"]);
    let repetition = &result["repetitions"][0];
    for count in ["campaigns", "elections", "transfers", "terms", "noticed"] {
        assert!(repetition["changes"][count].is_u64(), "{count}: {printed}");
    }
    assert!(repetition["sizes"]["site_mib"].as_u64().unwrap() > 0, "{printed}");
    // Without a trace: from the figures of the whole stretch.
    assert!(result["latency_us"]["during"]["count"].as_u64().unwrap() > 2_000, "{printed}");
    let checked = &result["audit"]["checked"];
    let (payments, acks) =
        (checked["payments"].as_u64().unwrap(), checked["acks"].as_u64().unwrap());
    assert!(payments * 5 < acks, "most requests are queries: {payments} of {acks}");
}

#[test]
fn a_site_with_a_damaged_log_is_replaced_under_load() {
    let (printed, result) = played(&["damaged-middle", "--quick", "--duration", "3"]);
    let repetition = &result["repetitions"][0];
    let mark = repetition["marks"][0]["text"].as_str().unwrap();
    assert!(mark.ends_with("damaged log; site 4 takes its place"), "{mark}: {printed}");
    assert!(repetition["level_ms"][0].is_u64(), "{printed}");
    // A site that has only just joined may not know the merchants, but must not say that
    // there are none.
    assert!(result["errors_by_code"]["UNKNOWN_MERCHANT"].is_null(), "{printed}");
    let (lost, leaders) = (&repetition["victims"][0], &repetition["leaders_after"]);
    assert!(!leaders.as_array().unwrap().contains(lost), "{printed}");
    assert_eq!(result["audit"]["checked"]["sites"], 3, "the new one's log is evidence: {printed}");
}

#[test]
fn what_was_done_before_a_drill_is_stopped_is_audited() {
    let deployment = Deployment::init(5);
    let json = deployment.file("drill.json");
    let args = ["drill", "kill-site", "--quick", "--duration", "3", "--repeat", "20"];
    let args = [&args[..], &["--json", json.to_str().unwrap()]].concat();
    let mut drill = deployment.start_loadgen("drill.out", &args);
    wait_until("a repetition", || drill.printed().contains("; payments "));
    wait_until("a repetition without an audit", || drill.printed().contains("audited later"));
    drill.signal("INT");
    let ended = drill.wait(Duration::from_secs(120)).code();
    let printed = drill.printed();
    assert_eq!(ended, Some(5), "{printed}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert!(result["ended"].as_str().unwrap().contains("stopped"), "{printed}");
    let repetitions = result["repetitions"].as_array().unwrap().len();
    assert!(repetitions >= 2, "{printed}");
    assert_eq!(result["audited"], repetitions, "{printed}");
    assert_eq!(result["audit"]["violation_count"], 0, "{printed}");
    let told = format!("audited     {repetitions} of {repetitions} repetitions");
    assert!(printed.contains(&told), "{printed}");
}

/// The targets whose text begins like this.
fn targets<'a>(result: &'a Value, begins: &'a str) -> Vec<&'a Value> {
    let targets = result["targets"].as_array().unwrap().iter();
    targets.filter(|one| one["target"].as_str().unwrap().starts_with(begins)).collect()
}

#[test]
fn an_overload_is_one_of_the_maximum_that_was_found_before() {
    let (printed, result) = measured(&["overload", "--quick", "--duration", "3"]);
    let maximum = result["maximum"]["answered"].as_f64().unwrap();
    assert!(maximum > 0.0 && result["maximum"]["steps"].as_array().unwrap().len() > 3);
    assert_eq!(result["load_rate"].as_f64(), Some(maximum), "{printed}");
    let hints = &result["repetitions"][0]["hints"];
    assert!(hints[0].as_u64().unwrap() > 100, "it was none: {printed}");
    assert_eq!(hints[1], 0, "every refusal says when to try again: {printed}");
    for begins in ["throughput of the maximum >= 90 %", "p99 of admitted", "refusals without"] {
        assert_eq!(targets(&result, begins).len(), 1, "{begins}: {printed}");
    }
    assert_eq!(targets(&result, "only OVERLOADED or RATE_LIMITED")[0]["met"], true, "{printed}");
}

#[test]
fn the_maximum_is_found_without_and_with_distance() {
    let (printed, result) = measured(&["wan-delay", "--quick", "--duration", "3"]);
    let distance = &result["distance"];
    let most = |way: &str| distance[way]["answered"].as_f64().unwrap();
    assert!(most("near") > 0.0 && most("far") > 0.0, "{printed}");
    // Two ways of 5 ms are there, whatever else the machine does.
    let p50 = |way: &str| distance[way]["steps"][0]["p50_ms"].as_f64();
    assert!(p50("far").is_none_or(|ms| ms > 10.0), "{printed}");
    assert!(distance["relay_dropped"].is_u64() && distance["udp_buffer_errors"].is_u64());
    assert!(distance["far"]["steps"][0]["relay_cores"].is_f64(), "{printed}");
    assert_eq!(targets(&result, "maximum with the distance >= 80 %").len(), 1, "{printed}");
}

#[test]
fn faults_of_a_plan_wait_for_their_place_and_leave_each_other_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, json) = (dir.path().join("plan.toml"), dir.path().join("plan.json"));
    let fault = |at: f64, what: &str| format!("[[faults]]\nat = {at}\nhold = 1\nwhat = {what}\n");
    let faults = [
        fault(2.0, "\"kill\"\nsite = 1"),
        fault(3.0, "\"pause\"\nsite = 1"),
        fault(2.0, "\"isolate\"\nsite = 2"),
        fault(3.0, "\"one-way\"\nsite = 3"),
    ];
    let text = format!("rate = 300\n[[phases]]\nseconds = 8\n{}", faults.concat());
    std::fs::write(&plan, text).unwrap();
    let output = drill(&["--plan", plan.to_str().unwrap(), "--json", json.to_str().unwrap()]);
    let printed = tests::text(&output);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{printed}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert!(result["ended"].is_null(), "{printed}");
    assert_eq!(result["audit"]["violation_count"], 0, "{printed}");
    let repetition = &result["repetitions"][0];
    let marks = repetition["marks"].as_array().unwrap();
    let number = |mark: &Value, key: &str| mark[key].as_u64().unwrap();
    let of = |begins: &str| {
        let mut found =
            marks.iter().filter(|mark| mark["text"].as_str().unwrap().starts_with(begins));
        found.next().unwrap_or_else(|| panic!("{begins}: {printed}"))
    };
    let (kill, pause) = (of("kill -9 of site 1"), of("site 1 stands still"));
    let (isolate, one_way) = (of("cut 2-*"), of("cut "));
    assert!(number(pause, "at_ms") > number(kill, "until_ms"), "{printed}");
    assert_eq!(isolate, one_way, "the first cut is the first one: {printed}");
    let second = marks.iter().rfind(|mark| mark["text"].as_str().unwrap().starts_with("cut "));
    assert!(number(second.unwrap(), "at_ms") > number(isolate, "until_ms"), "{printed}");
    assert_eq!(marks.len(), 4, "{printed}");
    assert!(repetition["not_home"].is_u64(), "{printed}");
}

#[test]
fn a_load_too_thin_for_its_targets_proves_nothing() {
    let (code, printed, result) = told(&["kill-site", "--rate", "100", "--duration", "3"]);
    let [p50, ..] = &targets(&result, "unavailable")[..] else { panic!("{printed}") };
    let measured = p50["measured"].as_str().unwrap_or_default();
    assert!(measured.starts_with("no data: a request every"), "{printed}");
    assert_eq!(p50["met"], false, "{printed}");
    assert!(matches!(code, Some(1 | 5)), "{printed}");
    let spacing = &result["repetitions"][0]["unavailability_ms"][0]["spacing_ms"];
    assert!(spacing.as_f64().unwrap() > 50.0, "{printed}");
}

#[test]
fn mistakes_are_told_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("bad.toml");
    std::fs::write(&plan, "rate = 1\ncolour = 2\n[[phases]]\nseconds = 3\n").unwrap();
    let output = drill(&["--plan", plan.to_str().unwrap()]);
    let printed = tests::text(&output);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    for line in ["bad.toml: rate: a number", "bad.toml: colour: no such key"] {
        assert!(printed.contains(line), "{printed}");
    }
    for (args, about) in [
        (&["kill-site", "--history", "5"][..], "--history: kill-site has none"),
        (&["kill-site", "--minutes", "5"], "--minutes: kill-site has its own time"),
        (&["steady", "--minutes", "0"], "--minutes: 0.05 to"),
    ] {
        let output = drill(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(tests::text(&output).contains(about), "{}", tests::text(&output));
    }
    let output = drill(&["sabotage"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(tests::text(&output).contains("drill list"), "{}", tests::text(&output));
}

#[test]
fn the_list_explains_every_drill() {
    let output = drill(&["list"]);
    let printed = tests::text(&output);
    assert!(output.status.success(), "{printed}");
    for name in ["kill-site", "fsync-error", "damaged-middle", "channel-outage", "overload"] {
        assert!(printed.lines().any(|line| line.starts_with(name)), "{name}: {printed}");
    }
    assert_eq!(printed.matches("measures  ").count(), 29);
    assert_eq!(printed.matches("passes    ").count(), 29);
}
