//! `loadgen drill` as people start it: the list, plans good and bad.

use serde_json::Value;
use std::process::{Command, Output};

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
    assert_eq!(printed.matches("measures  ").count(), 27);
    assert_eq!(printed.matches("passes    ").count(), 27);
}
