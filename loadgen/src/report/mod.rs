//! A run's result: the summary and the page for people, the JSON for scripts.
//!
//! `text` prints it, `make` puts pages together from the JSON of this and other
//! results: what a `view` holds is told in `page_run`, `page_drill`, `page_search` and
//! `compare`, with `parts` that they share, drawn by `chart` and written by `html`.
//!
//! Judges too: the generator's health first, then the goals. A run in which
//! the generator was the bottleneck says nothing about the switch and is
//! invalid. Tested on its verdicts.

mod chart;
mod compare;
mod health;
mod html;
mod make;
mod page_drill;
mod page_run;
mod page_search;
mod parts;
mod scale;
mod svg;
mod text;
mod view;

use crate::audit::Audit;
use crate::drive::{EventCounts, Outcome, Phase};
use crate::exit::{Exit, Failure};
use crate::goal::{Figures, Goal, Verdict};
use crate::hlog;
use crate::host::Host;
use crate::machine::{self, Machine};
use crate::measure::{Latency, Second};
use crate::pace::Pacing;
use crate::plan::{Op, Params};
use crate::series::Columns;
use health::Health;
pub(crate) use health::was_bottleneck;
pub(crate) use make::{ReportArgs, run, write as write_page, write_summary};
use protocol::code::Code;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Percentiles in microseconds; `null` is infinite or without data.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Percentiles {
    p50: Option<u64>,
    p90: Option<u64>,
    p99: Option<u64>,
    p999: Option<u64>,
    max: Option<u64>,
    count: u64,
}

impl Percentiles {
    /// 99th percentile, microseconds; `None`: not even that share was answered.
    pub(crate) fn p99_us(&self) -> Option<u64> {
        self.p99
    }

    /// Of a distribution.
    pub(crate) fn of(latency: &Latency) -> Self {
        let us = |ns: Option<u64>| ns.map(|ns| ns / 1_000);
        Self {
            p50: us(latency.quantile(0.5)),
            p90: us(latency.quantile(0.9)),
            p99: us(latency.quantile(0.99)),
            p999: us(latency.quantile(0.999)),
            max: us(latency.max()),
            count: latency.count(),
        }
    }
}

impl Percentiles {
    /// The slowest, microseconds.
    pub(crate) fn max(&self) -> Option<u64> {
        self.max
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, us) in [("p50", self.p50), ("p99", self.p99), ("max", self.max)] {
            let text = us.map_or_else(|| "-".to_owned(), |us| format!("{:.2}", us as f64 / 1e3));
            write!(f, "{name} {text:>9}  ")?;
        }
        write!(f, "ms of {}", self.count)
    }
}

/// Steps of a distribution within one nine.
const STEPS: u32 = 20;

/// A distribution: shares with the microseconds below which they lie; `null` where the
/// value never came.
pub(crate) type Curve = Vec<(f64, Option<u64>)>;

/// Each nine with as many points as the one before, as far as there are values.
pub(crate) fn curve(latency: &Latency) -> Curve {
    let count = latency.count();
    let point = |share: f64| (share, latency.quantile(share).map(|ns| ns / 1_000));
    let shares = (0..9 * STEPS)
        .map(|step| 1.0 - 10_f64.powf(-f64::from(step) / f64::from(STEPS)))
        .take_while(|share| (1.0 - share) * count as f64 >= 1.0);
    let mut curve: Curve = shares.map(point).collect();
    if count > 0 {
        curve.push((1.0 - 1.0 / (count as f64 + 1.0), latency.max().map(|ns| ns / 1_000)));
    }
    curve
}

/// A moment at which something was done to the system, since the load began.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Mark {
    /// When.
    pub(crate) at_ms: u64,
    /// When it was undone.
    pub(crate) until_ms: Option<u64>,
    /// Whom it hit; 0 for none in particular.
    pub(crate) site: u8,
    /// What it was.
    pub(crate) text: String,
}

/// A stretch in which a shard answered nothing although it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Window {
    /// Which.
    pub(crate) shard: u16,
    /// Since the load began.
    pub(crate) from_ms: f64,
    /// When it answered again.
    pub(crate) until_ms: f64,
}

/// How a result came to be: what is needed to repeat it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Origin {
    command: String,
    started_unix: u64,
    machine: Machine,
    /// Version of the switch, where this program started it.
    payswitch: Option<String>,
}

impl Origin {
    /// Of this process, now.
    pub(crate) fn now() -> Self {
        Self {
            command: machine::command(),
            started_unix: machine::unix_seconds(),
            machine: Machine::read(),
            payswitch: None,
        }
    }

    /// With a switch that calls itself so.
    pub(crate) fn of_switch(self, payswitch: Option<String>) -> Self {
        Self { payswitch, ..self }
    }
}

/// One operation.
#[derive(Debug, Serialize)]
struct Operation {
    sent: u64,
    ok: u64,
    refused: u64,
    not_sent: u64,
    latency_us: Percentiles,
    latency_admitted_us: Percentiles,
    latency_raw_us: Percentiles,
}

/// The whole result, as it stands in the JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: &'static str,
    seed: u64,
    run_id: u64,
    closed_loop: bool,
    /// Requests per second asked for, without those left out.
    pub(crate) offered_rate: f64,
    /// Requests per second answered as asked.
    pub(crate) achieved_rate: f64,
    duration_s: f64,
    warmup_s: f64,
    sent: u64,
    acked: u64,
    ok: u64,
    refused: u64,
    unanswered: u64,
    not_sent: u64,
    skipped: u64,
    resent: u64,
    retried_by_code: BTreeMap<&'static str, u64>,
    second_answers: u64,
    differing_answers: u64,
    silences: u64,
    late_replies: u64,
    malformed_replies: u64,
    by_code: BTreeMap<&'static str, u64>,
    by_state: BTreeMap<&'static str, u64>,
    /// Planned-time latency; infinite for what was refused, unanswered or not sent.
    pub(crate) latency_us: Percentiles,
    /// The same without what was refused or not sent.
    latency_admitted_us: Percentiles,
    latency_raw_us: Percentiles,
    lateness_us: Percentiles,
    refusal_latency_us: Percentiles,
    operations: BTreeMap<&'static str, Operation>,
    cpu_s: f64,
    cpu_us_per_request: f64,
    generator: Health,
    host: Host,
    goals: Vec<Verdict>,
    /// Outcome events, when they were subscribed to.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<EventCounts>,
    interrupted: bool,
    /// How the sends were paced; `null` for a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pace: Option<String>,
    seconds: Vec<Second>,
    #[serde(flatten)]
    origin: Origin,
    /// Figures over time; those of a search are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Columns>,
    marks: Vec<Mark>,
    windows: Vec<Window>,
    leaders_before: Vec<u8>,
    distribution: BTreeMap<&'static str, Curve>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<serde_json::Value>,
}

/// What a story knows of a run that the generator alone does not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    /// What was done to the system.
    pub(crate) marks: Vec<Mark>,
    /// When shards were unavailable.
    pub(crate) windows: Vec<Window>,
    /// Who led each shard before the first fault.
    pub(crate) leaders_before: Vec<u8>,
}

impl Report {
    /// Judges a phase.
    pub(crate) fn new(params: &Params, phase: &Phase, outcome: &Outcome, goals: &[Goal]) -> Self {
        let measure = &outcome.measure;
        // Shorter than planned when it was stopped.
        let span = measure.span_ns() as f64 / 1e9;
        let per_second = |count: u64| if span > 0.0 { count as f64 / span } else { 0.0 };
        let (overall, raw) = measure.overall();
        let planned = measure.sent + measure.not_sent;
        let achieved_rate = per_second(measure.ok_in_span);
        let offered_rate = match phase.closed {
            Some(_) => achieved_rate,
            None => per_second(planned),
        };
        let errors = measure.refused + measure.unanswered + measure.not_sent;
        let figures = Figures {
            overall: &overall,
            of: &|op| &measure.ops[op as usize].planned,
            errors: (planned > 0).then(|| errors as f64 / planned as f64),
            // A closed loop offers what is answered.
            rate: (offered_rate > 0.0 && phase.closed.is_none())
                .then(|| achieved_rate / offered_rate),
        };
        let operation = |op: Op| {
            let figures = &measure.ops[op as usize];
            let value = Operation {
                sent: figures.sent,
                ok: figures.ok,
                refused: figures.refused,
                not_sent: figures.not_sent,
                latency_us: Percentiles::of(&figures.planned),
                latency_admitted_us: Percentiles::of(&figures.admitted()),
                latency_raw_us: Percentiles::of(&figures.raw),
            };
            (op.name(), value)
        };
        let used = |op: &Op| measure.ops[*op as usize].planned.count() > 0;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            seed: params.seed,
            run_id: params.run_id,
            closed_loop: phase.closed.is_some(),
            offered_rate,
            achieved_rate,
            duration_s: phase.warmup.as_secs_f64() + span,
            warmup_s: phase.warmup.as_secs_f64(),
            sent: measure.sent,
            acked: measure.answered,
            ok: measure.ok,
            refused: measure.refused,
            unanswered: measure.unanswered,
            not_sent: measure.not_sent,
            skipped: measure.skipped,
            resent: measure.resent,
            retried_by_code: measure.retried_by_code(),
            second_answers: measure.second_answers,
            differing_answers: measure.differing_answers,
            silences: measure.silences,
            late_replies: measure.late_replies,
            malformed_replies: measure.malformed,
            by_code: measure.by_code(),
            by_state: measure.by_state(),
            latency_us: Percentiles::of(&overall),
            latency_admitted_us: Percentiles::of(&measure.admitted()),
            latency_raw_us: Percentiles::of(&raw),
            lateness_us: Percentiles::of(&measure.lateness),
            refusal_latency_us: Percentiles::of(&measure.refusals),
            operations: Op::ALL.into_iter().filter(used).map(operation).collect(),
            cpu_s: outcome.cpu_s,
            cpu_us_per_request: outcome.cpu_s * 1e6 / measure.all_sent().max(1) as f64,
            generator: health::health(measure, &raw, outcome),
            host: outcome.host,
            goals: goals.iter().map(|goal| goal.judge(&figures)).collect(),
            events: None,
            interrupted: outcome.interrupted,
            pace: None,
            seconds: measure.seconds.clone(),
            origin: Origin::default(),
            timeline: None,
            marks: Vec::new(),
            windows: Vec::new(),
            leaders_before: Vec::new(),
            distribution: BTreeMap::new(),
            audit: None,
        }
    }

    /// Adds what a page shows beyond the totals.
    pub(crate) fn with_story(mut self, outcome: &Outcome, origin: Origin, events: Events) -> Self {
        let (planned, raw) = outcome.measure.overall();
        let admitted = outcome.measure.admitted();
        let all = [("planned", &planned), ("admitted", &admitted), ("raw", &raw)];
        self.distribution = all.map(|(name, latency)| (name, curve(latency))).into();
        // The wait for the last answers is no part of the picture.
        let mut timeline = outcome.timeline.clone();
        timeline.until((self.duration_s * 1e9) as u64);
        self.timeline = Some(timeline.columns());
        self.origin = origin;
        (self.marks, self.windows) = (events.marks, events.windows);
        self.leaders_before = events.leaders_before;
        self
    }

    /// Adds how its sends were paced.
    pub(crate) fn paced(self, pacing: Option<Pacing>) -> Self {
        Self { pace: pacing.map(|pacing| pacing.to_string()), ..self }
    }

    /// Adds what came of the events.
    pub(crate) fn with_events(self, events: Option<EventCounts>) -> Self {
        Self { events, ..self }
    }

    /// Adds what the audit found.
    pub(crate) fn with_audit(self, audit: &Audit) -> Self {
        Self { audit: serde_json::to_value(audit).ok(), ..self }
    }

    /// Whether the generator kept up and there is data.
    pub(crate) fn is_valid(&self) -> bool {
        self.generator.valid
    }

    /// Whether every goal was met.
    pub(crate) fn goals_met(&self) -> bool {
        self.goals.iter().all(|verdict| verdict.met)
    }

    /// Achieved over offered rate.
    pub(crate) fn rate_share(&self) -> f64 {
        if self.offered_rate > 0.0 { self.achieved_rate / self.offered_rate } else { 0.0 }
    }

    /// 50th and 99th percentile, microseconds.
    pub(crate) fn p50_p99_us(&self) -> (Option<u64>, Option<u64>) {
        (self.latency_us.p50, self.latency_us.p99)
    }

    /// Whether payments were refused for lack of room at the sites.
    pub(crate) fn is_full(&self) -> bool {
        let full = [Code::CapacityReached, Code::StorageFull];
        full.iter().any(|code| self.by_code.contains_key(code.name()))
    }

    /// Answered as asked, refused, unanswered, not sent.
    pub(crate) fn counts(&self) -> (u64, u64, u64, u64) {
        (self.ok, self.refused, self.unanswered, self.not_sent)
    }

    /// Writes the JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::environment(format_args!("cannot write {}: {error}", path.display()))
        };
        let mut text = serde_json::to_string_pretty(self).map_err(|error| failed(&error))?;
        text.push('\n');
        std::fs::write(path, text).map_err(|error| failed(&error))
    }

    /// The exit: a run that was stopped says nothing of its goals, one that the
    /// generator slowed neither.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        if self.interrupted {
            let text = format_args!("stopped after {:.1} s: the goals stay open", self.duration_s);
            return Err(Failure::new(Exit::Invalid, text));
        }
        if let Some(reason) = &self.generator.reason {
            return Err(Failure::new(
                Exit::Invalid,
                format_args!(
                    "the run is invalid: {reason} (lower the rate or give the generator a core)"
                ),
            ));
        }
        if let Some(events) = self.events.filter(|events| events.missing + events.malformed > 0) {
            return Err(Failure::new(Exit::Missed, format_args!("events: {events}")));
        }
        let missed: Vec<&str> = self
            .goals
            .iter()
            .filter(|verdict| !verdict.met)
            .map(|verdict| verdict.goal.as_str())
            .collect();
        if missed.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Exit::Missed, format_args!("goals missed: {}", missed.join(", "))))
    }
}

/// Writes the latency histograms of a phase: of every operation, from the planned time,
/// of what was admitted and raw, and of every interval.
pub(crate) fn write_hlog(path: &Path, phase: &Phase, outcome: &Outcome) -> Result<(), Failure> {
    let (measure, from) = (&outcome.measure, phase.warmup);
    // Shorter than planned when it was stopped.
    let length = Duration::from_nanos(measure.span_ns());
    let part = |name: &str, kind: &str, latency: &Latency| hlog::Part {
        tag: format!("{name}.{kind}"),
        from,
        length,
        latency: latency.clone(),
    };
    let (planned, raw) = measure.overall();
    let mut parts = vec![
        part("all", "planned", &planned),
        part("all", "admitted", &measure.admitted()),
        part("all", "raw", &raw),
    ];
    for op in Op::ALL {
        let figures = &measure.ops[op as usize];
        parts.push(part(op.name(), "planned", &figures.planned));
        parts.push(part(op.name(), "admitted", &figures.admitted()));
        parts.push(part(op.name(), "raw", &figures.raw));
    }
    let began = SystemTime::now().checked_sub(outcome.start.elapsed()).unwrap_or(UNIX_EPOCH);
    let intervals = hlog::Intervals { timeline: &outcome.timeline, from, until: from + length };
    hlog::write(path, began, Some(&intervals), &parts)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measure::{Business, Measure, Sample};
    use crate::plan::tests::params;
    use crate::schedule::Arrival;
    use protocol::code::OrderState;

    fn report(late_ns: u64, goals: &[&str], answers: u64) -> Report {
        report_of(late_ns, goals, &vec![Code::Ok; answers as usize])
    }

    /// A run in which one pay after the other was answered so.
    pub(crate) fn report_of(late_ns: u64, goals: &[&str], answers: &[Code]) -> Report {
        let mut measure = Measure::new(0, 1_000_000_000);
        for (n, code) in (0..).zip(answers) {
            let planned_ns = n * 1_000_000;
            let sample = Sample { op: Op::Pay, planned_ns, sent_ns: planned_ns + late_ns };
            measure.pulled(planned_ns, planned_ns + late_ns);
            measure.sent(sample);
            let paid = Business::Order(OrderState::Paid);
            measure.answered(sample, (*code, paid), 1, planned_ns + late_ns + 500_000);
        }
        report_of_measure(measure, goals)
    }

    fn report_of_measure(measure: Measure, goals: &[&str]) -> Report {
        let phase = Phase {
            arrival: Arrival::Constant,
            rate: 100.0,
            duration: Duration::from_secs(1),
            warmup: Duration::ZERO,
            closed: None,
            live: crate::live::Progress::Silent,
            traced: false,
        };
        let goals: Vec<Goal> = goals.iter().map(|goal| Goal::parse(goal).unwrap()).collect();
        let outcome = Outcome {
            measure,
            trace: Vec::new(),
            timeline: crate::series::Timeline::default(),
            start: std::time::Instant::now(),
            cpu_s: 0.1,
            host: Host::default(),
            interrupted: false,
        };
        Report::new(&params(), &phase, &outcome, &goals)
    }

    fn exit(report: &Report) -> Option<Exit> {
        report.verdict().err().map(|failure| failure.exit)
    }

    #[test]
    fn the_generators_health_comes_before_the_goals() {
        assert_eq!(exit(&report(0, &["p99=1ms"], 100)), None);
        assert_eq!(exit(&report(0, &["p99=100us"], 100)), Some(Exit::Missed));
        assert_eq!(exit(&report(20_000_000, &["p99=100us"], 100)), Some(Exit::Invalid));
        assert_eq!(exit(&report(0, &[], 0)), Some(Exit::Invalid));
    }

    #[test]
    fn events_that_did_not_come_or_cannot_be_read_are_a_failure() {
        let events = |missing, malformed| {
            let counts = EventCounts { received: 100, others: 3, malformed, missing };
            exit(&report(0, &[], 100).with_events(Some(counts)))
        };
        assert_eq!(events(0, 0), None);
        assert_eq!((events(1, 0), events(0, 1)), (Some(Exit::Missed), Some(Exit::Missed)));
        let told = report(0, &[], 100).with_events(Some(EventCounts::default()));
        assert_eq!(serde_json::to_value(told).unwrap()["events"]["missing"], 0);
    }

    /// Pays in one second, and what was refused and never sent beside them.
    fn with_failures(goals: &[&str], ok: u64, refused: u64, not_sent: u64) -> Report {
        let mut measure = Measure::new(0, 1_000_000_000);
        let paid = Business::Order(OrderState::Paid);
        for n in 0..ok + refused {
            let sample = Sample { op: Op::Pay, planned_ns: n, sent_ns: n };
            let code = if n < ok { Code::Ok } else { Code::Overloaded };
            measure.sent(sample);
            measure.answered(sample, (code, paid), 1, n + 500_000);
        }
        (0..not_sent).for_each(|n| measure.not_sent(Op::Query, n));
        report_of_measure(measure, goals)
    }

    #[test]
    fn a_goal_is_not_met_by_the_rest_after_what_was_refused_or_never_sent() {
        for goal in ["p99=10ms", "max=10ms"] {
            assert_eq!(exit(&with_failures(&[goal], 1_000, 0, 0)), None, "{goal}");
            for (refused, not_sent) in [(3_000, 0), (0, 3_000), (20, 20)] {
                let report = with_failures(&[goal], 1_000, refused, not_sent);
                assert_eq!(exit(&report), Some(Exit::Missed), "{goal} {refused} {not_sent}");
            }
        }
        // A hundredth that failed leaves the 99th percentile, and is what it may be.
        assert_eq!(exit(&with_failures(&["p99=10ms", "errors=1%"], 990, 5, 5)), None);
        let more = with_failures(&["p99=10ms", "errors=1%"], 989, 5, 6);
        assert!(more.goals.iter().all(|goal| !goal.met), "{:?}", more.goals);
        // Each operation is judged by what was asked of itself.
        let of_pay = with_failures(&["p99@pay=10ms"], 1_000, 0, 3_000);
        assert_eq!(exit(&of_pay), None);
        assert_eq!(exit(&with_failures(&["p99@query=10ms"], 1_000, 0, 3_000)), Some(Exit::Missed));
    }

    #[test]
    fn what_was_admitted_is_told_beside_the_latency_of_all() {
        let report = with_failures(&[], 1_000, 3_000, 500);
        let rows = report.latencies();
        let names: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "planned, all",
            "planned, admitted",
            "raw, admitted",
            "lateness of sends",
            "until refused",
            "planned, pay",
            "  admitted",
            "planned, query",
            "  admitted",
        ];
        assert_eq!(names, expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["latency_us"]["count"], 4_500);
        assert!(json["latency_us"]["p50"].is_null());
        assert_eq!(json["latency_admitted_us"]["count"], 1_000);
        assert_eq!(json["latency_admitted_us"]["max"], json["latency_raw_us"]["max"]);
        let query = &json["operations"]["query"];
        assert_eq!((&query["sent"], &query["not_sent"]), (&0.into(), &500.into()));
        let all = with_failures(&[], 1_000, 0, 0);
        assert!(all.latencies().iter().all(|(name, _)| *name != "planned, admitted"));
    }

    #[test]
    fn curves_reach_as_deep_as_there_are_values() {
        let mut latency = Latency::new();
        (1..=1_000).for_each(|ms| latency.record(ms * 1_000_000));
        let of_thousand = curve(&latency);
        let deepest = of_thousand.iter().rev().nth(1).unwrap().0;
        assert!((0.998..=0.9991).contains(&deepest), "{deepest}");
        assert!(of_thousand.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        latency.record_infinite();
        assert_eq!(curve(&latency).last().unwrap().1, None);
        assert!(curve(&Latency::new()).is_empty());
    }

    #[test]
    fn the_json_has_what_scripts_rely_on() {
        let json = serde_json::to_value(report(0, &["p99=1ms"], 100)).unwrap();
        for key in [
            "offered_rate",
            "achieved_rate",
            "sent",
            "acked",
            "not_sent",
            "unanswered",
            "by_code",
            "latency_us",
            "latency_raw_us",
            "lateness_us",
            "operations",
            "duration_s",
            "cpu_s",
            "seed",
            "host",
            "version",
            "goals",
        ] {
            assert!(!json[key].is_null(), "{key}");
        }
        assert_eq!(json["by_code"]["OK"], 100);
        let p99 = json["latency_us"]["p99"].as_u64().unwrap();
        assert!((499..502).contains(&p99), "{p99}");
    }
}
