//! On traces made by hand.

use super::super::before::Prepared;
use super::super::catalogue::Drill;
use super::super::maximum::{Distance, Maximum};
use super::super::script::{Fault, Found, Home, Told};
use super::*;
use crate::drive::Outcome;
use crate::host::Host;
use crate::measure::Measure;
use crate::plan::Op;
use crate::trace::{Done, End};
use protocol::code::Code;
use std::time::Instant;

const MS: u64 = 1_000_000;

/// Shard 0 is led by site 1, shard 1 by site 2. Requests every 2 ms for 4 s; from
/// 2 s on those of shard 0 are answered when `back_ms` has passed.
fn trace(back_ms: u64) -> Vec<Done> {
    let mut trace = Vec::new();
    for planned_ms in (0..4_000).step_by(2) {
        for shard in 0..2 {
            let hit = shard == 0 && (2_000..2_000 + back_ms).contains(&planned_ms);
            let done_ms = if hit { 2_000 + back_ms } else { planned_ms } + 1;
            let (planned_ns, done_ns) = (planned_ms * MS, done_ms * MS);
            let end = End::Answered(Code::Ok);
            trace.push(Done { planned_ns, done_ns, shard, op: Op::Pay, end });
        }
    }
    trace
}

/// Kills of these sites at these milliseconds; all are back at 3 s and level 20 ms later.
fn of_kills(victims: &[(u8, u64)], trace: Vec<Done>, unsettled: usize) -> Repetition {
    let faults: Vec<_> = victims.iter().map(|(site, ms)| (*site, *ms, 3_000)).collect();
    of_faults(&faults, trace, unsettled)
}

/// Faults: the site, the millisecond of its beginning and that of its end.
fn of_faults(faults: &[(u8, u64, u64)], trace: Vec<Done>, unsettled: usize) -> Repetition {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let measure = Measure::new(0, u64::MAX);
    let (host, interrupted) = (Host::default(), true);
    let timeline = crate::series::Timeline::default();
    let outcome = Outcome { measure, trace, timeline, start, cpu_s: 0.0, host, interrupted };
    let faults = faults.iter().map(|one| fault(one, start)).collect();
    let told = Told { faults, leaders: vec![1, 2], found: Found::default() };
    Repetition::new(&outcome, &told, at(4_000), 2, unsettled)
}

fn fault(&(site, from_ms, until_ms): &(u8, u64, u64), start: Instant) -> Fault {
    let at = |ms| start + Duration::from_millis(ms);
    Fault {
        what: format!("kill -9 of site {site}"),
        site,
        leaders: vec![1, 2],
        at: at(from_ms),
        healed: at(until_ms),
        level: (site != 0).then_some(Duration::from_millis(20)),
        home: Home::NotAsked,
    }
}

fn repetition(trace: Vec<Done>, unsettled: usize) -> Repetition {
    of_kills(&[(1, 2_000)], trace, unsettled)
}

fn audit(violations: u64) -> Audit {
    let mut audit = Audit::default();
    audit.checked.payments = 1;
    audit.checked.acks = 1;
    audit.violation_count = violations;
    audit
}

fn report(drill: Drill, repetitions: Vec<Repetition>, violations: u64) -> Report {
    let args = DrillArgs {
        name: Some(drill.name().to_owned()),
        plan: None,
        story: crate::stage::StoryArgs { payswitch: None, dir: None, seed: 1 },
        sites: 3,
        rate: 1_000.0,
        duration: 4.0,
        repeat: 1,
        history: None,
        minutes: None,
        mix: None,
        audit_each: false,
        quick: false,
        json: None,
        report: None,
        hlog: None,
    };
    let mut report = Report::new(&drill.case(args.rate, 3), &args, 3, args.rate);
    for repetition in repetitions {
        report.add(1, repetition, Some(audit(violations)));
    }
    report.judge();
    report
}

fn exit(report: &Report) -> Option<Exit> {
    report.verdict().err().map(|failure| failure.exit)
}

#[test]
fn a_takeover_is_measured_for_the_shards_of_the_victim() {
    let one = repetition(trace(80), 0);
    let [affected] = one.unavailability_ms[..] else { panic!("one shard is led by site 1") };
    assert_eq!(affected.shard, 0);
    assert!((80.0..85.0).contains(&affected.ms.unwrap()), "{affected:?}");
    assert!(one.calm_gap_ms.unwrap() < 3.0 && one.failed() == 0);
    assert!((one.answered_before - 1_000.0).abs() < 5.0, "{}", one.answered_before);
    let report = report(Drill::KillSite, vec![one], 0);
    assert_eq!((exit(&report), report.passed), (None, true));
    assert_eq!(report.unavailability_ms.keys().copied().collect::<Vec<_>>(), [0]);
    let one = &report.repetitions[0];
    let mark = &one.marks[0];
    assert_eq!((mark.at_ms, mark.until_ms, mark.site), (2_000, Some(3_000), 1));
    let [window] = one.windows[..] else { panic!("{:?}", one.windows) };
    assert_eq!(window.shard, 0);
    assert!((2_000.0..2_010.0).contains(&window.from_ms), "{window:?}");
}

#[test]
fn a_fault_elsewhere_does_not_end_what_a_killed_site_s_shards_meet() {
    // The site returns at 3,000 ms, and its shard is not answered for 300 ms then.
    let mut silent = trace(0);
    let hit = 3_000 * MS..3_300 * MS;
    for done in silent.iter_mut().filter(|done| done.shard == 0 && hit.contains(&done.planned_ns)) {
        done.done_ns = 3_300 * MS;
    }
    for other in [(0, 2_200, 2_400), (2, 2_200, 2_400)] {
        let one = of_faults(&[(1, 2_000, 3_000), other], silent.clone(), 0);
        let first = one.unavailability_ms[0];
        assert_eq!((first.shard, first.fault), (0, 1));
        assert!((299.0..301.0).contains(&first.ms.unwrap()), "{first:?}");
    }
}

#[test]
fn what_was_broken_is_all_faults_together_without_the_calm_between_them() {
    let slow = |from_ms: u64, until_ms: u64| {
        let mut slow = trace(0);
        let hit = from_ms * MS..until_ms * MS;
        for done in slow.iter_mut().filter(|done| hit.contains(&done.planned_ns)) {
            done.done_ns += 50 * MS;
        }
        slow
    };
    let p50_ms = |one: &Repetition, phase: usize| {
        one.latency[phase].quantile(0.5).map(|ns| ns as f64 / 1e6).unwrap()
    };
    // The fault that began first lasts longest.
    let faults = [(0, 1_500, 3_500), (0, 1_600, 1_800)];
    let long = of_faults(&faults, slow(1_500, 3_500), 0);
    assert!((50.0..52.0).contains(&p50_ms(&long, 1)), "{}", p50_ms(&long, 1));
    assert!(p50_ms(&long, 2) < 2.0, "{}", p50_ms(&long, 2));
    // Two short ones, and a long calm between them.
    let faults = [(0, 1_000, 1_100), (0, 3_400, 3_500)];
    let calm = of_faults(&faults, slow(1_200, 3_300), 0);
    assert!(p50_ms(&calm, 1) < 2.0 && p50_ms(&calm, 2) < 2.0);
    assert_eq!(calm.latency[1].count(), 200);
    let mut refused = trace(0);
    for done in refused.iter_mut().filter(|done| done.planned_ns == 2_000 * MS) {
        done.end = End::Answered(Code::Overloaded);
    }
    let calm = of_faults(&faults, refused, 0);
    assert_eq!((calm.hints, calm.failed()), ([0, 0], 2));
    assert!((calm.answered_during - 1_000.0).abs() < 20.0, "{}", calm.answered_during);
}

#[test]
fn figures_over_time_are_kept_of_the_worst_repetitions() {
    let many = (0..TIMELINES_MAX as u64 + 3).map(|n| repetition(trace(20 + n), 0)).collect();
    let report = report(Drill::KillSite, many, 0);
    let kept: Vec<bool> = report.repetitions.iter().map(|one| one.timeline.is_some()).collect();
    assert_eq!(kept.iter().filter(|kept| **kept).count(), TIMELINES_MAX);
    assert!(!kept[0] && !kept[1] && !kept[2] && kept[3]);
}

#[test]
fn a_slow_takeover_misses_and_failures_elsewhere_do_too() {
    let slow = report(Drill::KillSite, vec![repetition(trace(150), 0)], 0);
    assert_eq!((exit(&slow), slow.passed), (Some(Exit::Missed), false));
    let mut failed = trace(80);
    let other = failed.iter_mut().rfind(|done| done.shard == 1 && done.planned_ns < 3_000 * MS);
    other.unwrap().end = End::Unanswered;
    let failed = report(Drill::KillSite, vec![repetition(failed, 0)], 0);
    assert_eq!((failed.errors_elsewhere, exit(&failed)), (1, Some(Exit::Missed)));
    let unsettled = report(Drill::KillSite, vec![repetition(trace(80), 3)], 0);
    assert_eq!(exit(&unsettled), Some(Exit::Missed));
}

#[test]
fn failures_of_the_victims_own_shards_count_where_none_may_fail() {
    let mut failed = trace(10);
    let own = failed.iter_mut().find(|done| done.shard == 0 && done.planned_ns > 2_002 * MS);
    own.unwrap().end = End::Answered(Code::NoLeader);
    let kill = report(Drill::KillSite, vec![repetition(failed.clone(), 0)], 0);
    assert_eq!((exit(&kill), kill.errors_by_code["NO_LEADER"]), (None, 1));
    let drain = report(Drill::DrainSite, vec![repetition(failed, 0)], 0);
    assert_eq!(exit(&drain), Some(Exit::Missed));
}

#[test]
fn violations_come_first_and_no_data_never_passes() {
    assert_eq!(
        exit(&report(Drill::KillSite, vec![repetition(trace(150), 0)], 1)),
        Some(Exit::Audit)
    );
    assert_eq!(exit(&report(Drill::KillSite, Vec::new(), 0)), Some(Exit::Invalid));
    let mut silent = trace(80);
    silent.retain(|done| done.shard == 1);
    let silent = report(Drill::KillSite, vec![repetition(silent, 0)], 0);
    assert_eq!(exit(&silent), Some(Exit::Invalid));
}

#[test]
fn a_shard_that_is_asked_for_too_seldom_proves_nothing() {
    // A request of each shard every 100 ms: a takeover of 80 ms is between two of them.
    let mut seldom = trace(0);
    seldom.retain(|done| done.planned_ns % (100 * MS) == 0);
    let one = repetition(seldom, 0);
    assert!((99.0..106.0).contains(&one.unavailability_ms[0].spacing_ms.unwrap()));
    let seldom = report(Drill::KillSite, vec![one], 0);
    assert_eq!((exit(&seldom), seldom.passed), (Some(Exit::Invalid), false));
    let unseen: Vec<_> = seldom.targets.iter().filter(|target| !target.has_data()).collect();
    // Twice in 250 ms is enough for that target.
    assert_eq!(unseen.len(), 1, "{unseen:?}");
    assert_eq!(unseen[0].target, "unavailable p50 <= 100 ms");
    let reason = &unseen[0].measured;
    assert!(reason.starts_with("no data: a request every 10"), "{reason}");
    assert!(seldom.verdict().err().unwrap().message.contains(reason.as_str()));
    // Nobody asked at all while it was away.
    let mut never = trace(0);
    never.retain(|done| done.shard == 1 || done.planned_ns < 1_900 * MS);
    let never = report(Drill::KillSite, vec![repetition(never, 0)], 0);
    assert_eq!(exit(&never), Some(Exit::Invalid));
    assert_eq!(never.repetitions[0].unavailability_ms[0].ms, None);
    let reasons = |report: &Report| {
        let unseen = report.targets.iter().filter(|target| !target.has_data());
        unseen.map(|target| target.measured.clone()).collect::<Vec<_>>()
    };
    assert_eq!(reasons(&never), ["no data: nobody asked for a shard"; 2]);
    // That is not the worst of all: nobody knows.
    assert!(never.repetitions[0].worst_ms().abs() < 1e-9);
    let mut silent = trace(0);
    let of_shard = silent.iter_mut().filter(|done| done.shard == 0);
    of_shard.for_each(|done| done.end = End::Unanswered);
    let silent = report(Drill::KillSite, vec![repetition(silent, 0)], 0);
    assert_eq!(reasons(&silent), ["no data: a shard was never answered"; 2]);
    assert!(silent.repetitions[0].worst_ms().is_infinite());
}

#[test]
fn a_site_that_is_back_and_leads_nothing_is_a_target_missed() {
    let home = |not_home| {
        let one = Repetition { not_home, ..repetition(trace(80), 0) };
        report(Drill::KillSite, vec![one, repetition(trace(80), 0)], 0)
    };
    assert!(home(None).passed && home(Some(0)).passed);
    let away = home(Some(1));
    assert_eq!((exit(&away), away.passed), (Some(Exit::Missed), false));
    assert_eq!(repetition(trace(80), 0).not_home, None);
    let faults = [Home::After(Duration::from_secs(1)), Home::Never, Home::NotAsked];
    let faults = faults.map(|home| Fault { home, ..fault(&(1, 2_000, 3_000), Instant::now()) });
    assert_eq!(super::repetition::not_home(&faults), Some(1));
}

#[test]
fn throughput_and_added_latency_are_compared_with_before() {
    let mut slow = trace(0);
    for done in slow.iter_mut().filter(|done| (2_000 * MS..3_000 * MS).contains(&done.planned_ns)) {
        done.done_ns += 50 * MS;
    }
    let mut report = report(Drill::WanDelay, vec![repetition(slow, 0)], 0);
    report.with(Prepared { distance: Some(distance(80.0)), ..Prepared::default() });
    report.judge();
    let missed: Vec<_> = report.targets.iter().filter(|target| !target.met).collect();
    assert_eq!(missed.len(), 1, "{missed:?}");
    assert!(missed[0].target.starts_with("added to p50"));
}

fn maximum(answered: f64) -> Maximum {
    Maximum { answered, steps: Vec::new() }
}

fn distance(far: f64) -> Distance {
    let (near, far) = (maximum(100.0), maximum(far));
    let (line, relay_dropped, near_dropped, udp_buffer_errors) = (String::new(), 0, 0, 0);
    let round_trip_ms = None;
    Distance { line, near, far, round_trip_ms, relay_dropped, near_dropped, udp_buffer_errors }
}

#[test]
fn what_is_left_of_the_maximum_over_distance_is_judged() {
    let mut report = report(Drill::WanDelay, vec![repetition(trace(0), 0)], 0);
    assert_eq!(exit(&report), Some(Exit::Invalid), "without a maximum it says nothing");
    let missed = Some(Exit::Missed);
    for (far, exits) in [(0.0, missed), (79.9, missed), (80.0, None), (120.0, None)] {
        report.with(Prepared { distance: Some(distance(far)), ..Prepared::default() });
        report.judge();
        assert_eq!((exit(&report), report.passed), (exits, exits.is_none()), "{far}");
    }
    let of_the_relay = Distance { near_dropped: 1, ..distance(120.0) };
    report.with(Prepared { distance: Some(of_the_relay), ..Prepared::default() });
    report.judge();
    assert_eq!(exit(&report), Some(Exit::Invalid));
}

#[test]
fn what_was_missed_counts_more_than_what_was_not_measured() {
    let mut slow = trace(0);
    for done in slow.iter_mut().filter(|done| (2_000 * MS..3_000 * MS).contains(&done.planned_ns)) {
        done.done_ns += 50 * MS;
    }
    let report = report(Drill::WanDelay, vec![repetition(slow, 0)], 0);
    let told = report.verdict().err().unwrap();
    assert_eq!(told.exit, Exit::Missed);
    assert!(told.message.starts_with("2 targets missed: added to p50"), "{}", told.message);
}

#[test]
fn what_breaks_off_is_told_with_its_audit() {
    let mut report = report(Drill::KillSite, vec![repetition(trace(80), 0)], 0);
    report.broke_off(&Failure::new(Exit::Invalid, "stopped"));
    report.add(2, repetition(trace(80), 0), None);
    assert_eq!((report.audited, report.has_violations()), (1, false));
    report.last(Err(Failure::environment("cannot read")));
    assert_eq!((report.audited, report.has_violations()), (1, false));
    report.last(Ok(audit(1)));
    assert_eq!((report.audited, exit(&report)), (2, Some(Exit::Audit)));
    // A later audit that finds less takes nothing back, however strict it is.
    report.add(3, repetition(trace(80), 0), None);
    report.last(Ok(audit(0)));
    report.last(Ok(audit(0)));
    assert_eq!((report.audited, exit(&report)), (2, Some(Exit::Audit)));
    report.last(Ok(audit(2)));
    assert_eq!((report.audited, exit(&report)), (3, Some(Exit::Audit)));
}

#[test]
fn an_overload_is_held_against_the_maximum_and_without_refusals_there_was_none() {
    let overload = |hints, most| {
        let one = Repetition { hints, ..repetition(trace(0), 0) };
        let mut report = report(Drill::Overload, vec![one], 0);
        report.with(Prepared { maximum: Some(maximum(most)), ..Prepared::default() });
        report.judge();
        report
    };
    assert!(overload([5, 0], 1_000.0).passed);
    assert_eq!(exit(&overload([0, 0], 1_000.0)), Some(Exit::Invalid));
    assert_eq!(exit(&overload([5, 1], 1_000.0)), Some(Exit::Missed));
    // As much as before the fault, and less than the maximum.
    let less = overload([5, 0], 1_200.0);
    let missed: Vec<_> = less.targets.iter().filter(|target| !target.met).collect();
    assert_eq!(missed.len(), 1, "{missed:?}");
    assert_eq!(missed[0].target, "throughput of the maximum >= 90 %");
    assert!((less.load_rate() - 1_200.0).abs() < 1e-9);
}

#[test]
fn two_kills_are_judged_each_by_itself() {
    let kills = [(1, 2_000), (2, 2_500)];
    let both = report(Drill::SecondKill, vec![of_kills(&kills, trace(80), 0)], 0);
    let unavailable = |report: &Report| {
        let all = report.targets.iter().filter(|target| target.target.contains("unavailable"));
        all.map(|target| (target.target.clone(), target.met)).collect::<Vec<_>>()
    };
    assert_eq!((exit(&both), unavailable(&both).len()), (None, 4), "{:?}", both.targets);
    // Ten good takeovers do not hide a bad one of the other kind.
    let mut many: Vec<_> = (0..10).map(|_| of_kills(&kills, trace(10), 0)).collect();
    let (mut slow, hit) = (trace(0), 2_600 * MS..2_900 * MS);
    for done in slow.iter_mut().filter(|done| done.shard == 1 && hit.contains(&done.planned_ns)) {
        done.done_ns = 2_900 * MS;
    }
    many.push(of_kills(&kills, slow, 0));
    let slow = report(Drill::SecondKill, many, 0);
    let missed: Vec<_> = unavailable(&slow).into_iter().filter(|(_, met)| !met).collect();
    assert_eq!(missed, [("fault 2: unavailable p99 <= 250 ms".to_owned(), false)]);
}

#[test]
fn a_fault_explains_failures_of_its_own_shards_and_of_its_own_time() {
    // Both sites are back at 3 s and level 20 ms later; the second fault lasts until the end.
    let kills = [(1, 2_000), (2, 2_500)];
    let elsewhere = |shard, planned_ms: u64| {
        let mut failed = trace(10);
        let at = |done: &&mut Done| done.shard == shard && done.planned_ns == planned_ms * MS;
        failed.iter_mut().find(at).unwrap().end = End::Unanswered;
        report(Drill::SecondKill, vec![of_kills(&kills, failed, 0)], 0).errors_elsewhere
    };
    assert_eq!((elsewhere(0, 2_100), elsewhere(1, 2_100)), (0, 1));
    assert_eq!((elsewhere(0, 2_600), elsewhere(1, 2_600)), (0, 0));
    assert_eq!((elsewhere(0, 3_100), elsewhere(1, 3_100)), (1, 0));
}

#[test]
fn only_refusals_during_the_fault_make_an_overload() {
    let hints = |planned_ms: u64| {
        let mut refused = trace(0);
        let at = |done: &&mut Done| done.planned_ns == planned_ms * MS;
        refused.iter_mut().find(at).unwrap().end = End::Answered(Code::Overloaded);
        repetition(refused, 0).hints
    };
    assert_eq!((hints(1_000), hints(2_500), hints(3_500)), ([0, 0], [1, 0], [0, 0]));
}

#[test]
fn phases_stand_in_the_log_of_histograms_where_they_were() {
    let mut report = report(Drill::KillSite, vec![repetition(trace(80), 0)], 0);
    let later = report.began + Duration::from_secs(60);
    report.repetitions.push(Repetition { began: later, ..repetition(trace(80), 0) });
    report.repetitions[0].began = report.began;
    let phases = report.phases();
    let told: Vec<_> = phases
        .iter()
        .map(|part| (part.tag.as_str(), part.from.as_millis(), part.length.as_millis()))
        .collect();
    let of_each = [("before", 500, 1_400), ("during", 2_000, 1_000), ("after", 3_000, 900)];
    let mut expected = Vec::new();
    for (number, at) in [(1, 0), (2, 60_000)] {
        let tag = |phase: &str| format!("{number}.{phase}.planned");
        expected.extend(of_each.map(|(phase, from, length)| (tag(phase), at + from, length)));
    }
    let expected: Vec<_> =
        expected.iter().map(|(tag, from, length)| (tag.as_str(), *from, *length)).collect();
    assert_eq!(told, expected);
}

#[test]
fn a_load_without_a_trace_counts_its_failures_once() {
    let mut measure = Measure::new(0, 2_000 * MS);
    for n in 0..98 {
        let sample = crate::measure::Sample { op: Op::Pay, planned_ns: n, sent_ns: n };
        let paid = crate::measure::Business::Order(protocol::code::OrderState::Paid);
        measure.answered(sample, (Code::Ok, paid), 1, n + MS);
    }
    (0..2).for_each(|_| measure.not_sent(Op::Pay, 0));
    let mut one = repetition(trace(0), 0);
    one.of_measure(&measure);
    let during = &one.latency[1];
    assert_eq!((during.count(), during.infinite()), (100, 2));
    assert_eq!(one.spans[1], (0, 2_000 * MS));
}

#[test]
fn percentiles_are_of_the_nearest_rank() {
    let spread = Spread::of((1..=200).map(|ms| Some(f64::from(ms)))).unwrap();
    assert_eq!((spread.p50, spread.p99, spread.max, spread.count), (100.0, 198.0, 200.0, 200));
    assert_eq!(Spread::of([Some(1.0), None].into_iter()), None);
    assert_eq!(Spread::of(std::iter::empty()), None);
}

#[test]
fn the_json_has_what_scripts_rely_on() {
    let report = report(Drill::KillSite, vec![repetition(trace(80), 0)], 0);
    let json = serde_json::to_value(&report).unwrap();
    for key in
        ["unavailability_ms", "errors_by_code", "latency_us", "audit", "targets", "repetitions"]
    {
        assert!(!json[key].is_null(), "{key}");
    }
    assert!(json["unavailability_ms"]["0"][0].as_f64().unwrap() >= 80.0);
    assert!(json["latency_us"]["during"]["p99"].is_u64());
    assert_eq!((&json["audit"]["violation_count"], &json["passed"]), (&0.into(), &true.into()));
}
