//! What a drill measured: per shard and per request, from the clients' view, and
//! whether that is what was asked.
//!
//! Pure but for printing and writing. No data is never a pass. Tested on traces
//! made by hand.

mod row;
#[cfg(test)]
mod tests;
mod verdicts;

use super::DrillArgs;
use super::catalogue::Case;
use super::script::{Fault, Told};
use super::targets::Targets;
use crate::audit::Audit;
use crate::drive::Outcome;
use crate::exit::{Exit, Failure};
use crate::hlog;
use crate::host::Host;
use crate::measure::Latency;
use crate::report::{Curve, Events, Mark, Origin, Percentiles, Window, curve};
use crate::series::{Columns, Timeline};
use crate::trace::{Availability, Done, failures, longest_gaps};
pub(super) use row::Row;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Names of the stretches of a drill.
const PHASES: [&str; 3] = ["before", "during", "after"];
/// The very end of the load is left out: what was due then was not sent any more.
const END_SLACK: Duration = Duration::from_millis(100);
/// The beginning is not a measure of calm: leaders are being learned.
const WARM_UP_NS: u64 = 500_000_000;

/// And it ends before the fault, whose gaps begin with requests of just before.
const CALM_END_NS: u64 = 100_000_000;

/// The end, of which the answers are counted.
const END_NS: u64 = 1_000_000_000;

/// Shorter stretches without an answer are no picture of their own.
const WINDOW_NS: u64 = 20_000_000;
/// Nor are those about as long as the longest before the fault.
const CALM_FACTOR: f64 = 1.2;
/// And more of one shard neither.
const WINDOWS_MAX: usize = 12;
/// Repetitions whose figures over time are kept: the worst.
const TIMELINES_MAX: usize = 20;

type Counts = BTreeMap<&'static str, u64>;

/// A stretch of a phase, nanoseconds since it began.
type Span = (u64, u64);

/// One repetition.
#[derive(Serialize)]
pub(super) struct Repetition {
    /// Sites that were hit, in order; 0 for none in particular.
    victims: Vec<u8>,
    /// When, milliseconds since the load began.
    at_ms: Vec<u64>,
    /// Until they were level again, milliseconds after they were healed.
    level_ms: Vec<Option<u64>>,
    leaders_before: Vec<u8>,
    leaders_after: Vec<u8>,
    /// Longest stretch without an answer of each affected shard.
    unavailability_ms: Vec<Affected>,
    /// The same of all shards before the first fault: what is normal at this load.
    calm_gap_ms: Option<f64>,
    /// Requests that failed, by what they ended with.
    failed_by_code: Counts,
    /// Those of them that were about shards led elsewhere.
    failed_elsewhere: u64,
    /// Answers per second.
    answered_before: f64,
    answered_during: f64,
    answered_at_end: f64,
    /// 99th percentile of what was answered as asked, before and during.
    admitted_p99_ms: [Option<f64>; 2],
    /// Payments that have no final answer.
    unsettled: usize,
    resent: u64,
    retried_by_code: Counts,
    second_answers: u64,
    differing_answers: u64,
    silences: u64,
    generator_late_ms_p99: f64,
    host: Host,
    /// What was done, and when it was undone.
    marks: Vec<Mark>,
    /// Every long stretch without an answer, of all shards.
    windows: Vec<Window>,
    /// Figures over time, of the worst repetitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Columns>,
    #[serde(skip)]
    latency: [Latency; 3],
}

/// One affected shard.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Affected {
    shard: u16,
    /// From the fault on; `null` when it was never answered at all.
    ms: Option<f64>,
    /// When that began, milliseconds after the fault: the takeover, or the return.
    began_ms: Option<f64>,
}

impl Repetition {
    /// Reads the trace of a load that was stopped at `ended`.
    pub(super) fn new(
        outcome: &Outcome,
        told: &Told,
        ended: Instant,
        shards: u16,
        unsettled: usize,
    ) -> Self {
        let at =
            |instant: Instant| instant.saturating_duration_since(outcome.start).as_nanos() as u64;
        let end_ns = at(ended).saturating_sub(END_SLACK.as_nanos() as u64);
        let (first, last) = (told.faults.first(), told.faults.last());
        let begun_ns = first.map_or(end_ns, |fault| at(fault.at));
        let healed_ns = last.map_or(end_ns, |fault| at(fault.healed));
        let trace: Vec<Done> =
            outcome.trace.iter().filter(|done| done.planned_ns < end_ns).copied().collect();
        let shards: Vec<Availability> =
            (0..shards).map(|shard| Availability::new(&trace, shard, end_ns)).collect();
        let affected = |shard: u16| told.faults.iter().any(|fault| fault.affects(shard));
        let elsewhere = trace.iter().filter(|done| !affected(done.shard));
        let calm_until_ns = begun_ns.saturating_sub(CALM_END_NS);
        let calm = (WARM_UP_NS.min(calm_until_ns), calm_until_ns);
        let calm_gap_ms = shards.iter().filter_map(|of| gap_ms(of, calm)).reduce(f64::max);
        let measure = &outcome.measure;
        let mut timeline = outcome.timeline.clone();
        timeline.until(end_ns);
        Self {
            victims: told.faults.iter().map(|fault| fault.site).collect(),
            at_ms: told.faults.iter().map(|fault| at(fault.at) / 1_000_000).collect(),
            level_ms: told.faults.iter().map(|fault| fault.level.map(millis)).collect(),
            leaders_before: first.map_or_else(Vec::new, |fault| fault.leaders.clone()),
            leaders_after: told.leaders.clone(),
            unavailability_ms: unavailability(&shards, &told.faults, at, end_ns),
            calm_gap_ms,
            failed_by_code: failures(trace.iter(), (0, end_ns)),
            failed_elsewhere: failures(elsewhere, (begun_ns, end_ns)).values().sum(),
            answered_before: answered(&trace, calm),
            answered_during: answered(&trace, (begun_ns, healed_ns)),
            answered_at_end: answered(&trace, (end_ns.saturating_sub(END_NS), end_ns)),
            admitted_p99_ms: [calm, (begun_ns, healed_ns)].map(|span| admitted_p99(&trace, span)),
            unsettled,
            resent: measure.resent,
            retried_by_code: measure.retried_by_code(),
            second_answers: measure.second_answers,
            differing_answers: measure.differing_answers,
            silences: measure.silences,
            generator_late_ms_p99: measure
                .own_lateness
                .quantile(0.99)
                .map_or(0.0, |ns| ns as f64 / 1e6),
            host: outcome.host,
            marks: marks(&told.faults, at),
            windows: windows(&shards, calm_gap_ms.map_or(0, |ms| (ms * CALM_FACTOR * 1e6) as u64)),
            timeline: Some(timeline.columns()),
            latency: [calm, (begun_ns, healed_ns), (healed_ns, end_ns)]
                .map(|span| latency(&trace, span)),
        }
    }

    /// What a page of a run shows of it.
    pub(super) fn events(&self) -> Events {
        Events {
            marks: self.marks.clone(),
            windows: self.windows.clone(),
            leaders_before: self.leaders_before.clone(),
        }
    }

    /// The longest that a shard was unavailable; infinite when one was never answered.
    fn worst_ms(&self) -> f64 {
        let all = self.unavailability_ms.iter();
        all.map(|shard| shard.ms.unwrap_or(f64::INFINITY)).fold(0.0, f64::max)
    }

    fn failed(&self) -> u64 {
        self.failed_by_code.values().sum()
    }
}

impl fmt::Display for Repetition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hit = self.victims.iter().any(|site| *site != 0);
        match hit {
            true => write!(f, "sites {:?} at {:?} ms", self.victims, self.at_ms)?,
            false => write!(f, "at {:?} ms", self.at_ms)?,
        }
        let level: Vec<u64> = self.level_ms.iter().flatten().copied().collect();
        if !level.is_empty() {
            write!(f, ", level {level:?} ms after their return")?;
        }
        if hit {
            let spread = Spread::of(self.unavailability_ms.iter().map(|shard| shard.ms));
            let gaps = spread.map_or_else(|| "-".to_owned(), |spread| spread.to_string());
            let began = Spread::of(self.unavailability_ms.iter().map(|shard| shard.began_ms));
            let began = began.map_or(f64::NAN, |began| began.p50);
            write!(f, "; their shards unavailable {gaps} from {began:+.0} ms on")?;
        }
        write!(
            f,
            "; calm {:.1} ms; failed {}, elsewhere {}; sent again {}",
            self.calm_gap_ms.unwrap_or(f64::INFINITY),
            self.failed(),
            self.failed_elsewhere,
            self.resent,
        )
    }
}

fn marks(faults: &[Fault], at: impl Fn(Instant) -> u64) -> Vec<Mark> {
    let mark = |fault: &Fault| Mark {
        at_ms: at(fault.at) / 1_000_000,
        until_ms: (fault.healed > fault.at).then(|| at(fault.healed) / 1_000_000),
        site: fault.site,
        text: fault.what.clone(),
    };
    faults.iter().map(mark).collect()
}

/// The windows worth a picture, of every shard, once leaders are learned: longer than
/// what is normal at this load.
fn windows(shards: &[Availability], normal_ns: u64) -> Vec<Window> {
    let mut windows = Vec::new();
    for (shard, availability) in shards.iter().enumerate() {
        let gaps = longest_gaps(availability, WINDOW_NS.max(normal_ns), WINDOWS_MAX);
        windows.extend(gaps.iter().filter(|gap| gap.from_ns >= WARM_UP_NS).map(|gap| Window {
            shard: shard as u16,
            from_ms: gap.from_ns as f64 / 1e6,
            until_ms: gap.until_ns as f64 / 1e6,
        }));
    }
    windows
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn gap_ms(availability: &Availability, span: Span) -> Option<f64> {
    availability.longest_gap(span).map(|gap| gap.length_ns() as f64 / 1e6)
}

/// Of every fault and every shard that it affects: from the fault to the next one,
/// the return of the site included.
fn unavailability(
    shards: &[Availability],
    faults: &[Fault],
    at: impl Fn(Instant) -> u64,
    end_ns: u64,
) -> Vec<Affected> {
    let mut affected = Vec::new();
    for (number, fault) in faults.iter().enumerate() {
        let until_ns = faults.get(number + 1).map_or(end_ns, |next| at(next.at));
        for (shard, availability) in shards.iter().enumerate() {
            let shard = shard as u16;
            if fault.affects(shard) {
                let fault_ns = at(fault.at);
                let gap = availability.longest_gap((fault_ns, until_ns));
                let ms = gap.as_ref().map(|gap| gap.length_ns() as f64 / 1e6);
                let began_ms = gap.map(|gap| (gap.from_ns as f64 - fault_ns as f64) / 1e6);
                affected.push(Affected { shard, ms, began_ms });
            }
        }
    }
    affected
}

/// Answers per second within a span.
fn answered(trace: &[Done], (from_ns, until_ns): Span) -> f64 {
    let within = |done: &&Done| done.is_ok() && (from_ns..until_ns).contains(&done.done_ns);
    let count = trace.iter().filter(within).count();
    if until_ns > from_ns { count as f64 * 1e9 / (until_ns - from_ns) as f64 } else { 0.0 }
}

/// Latency of requests planned within a span; what failed never came.
fn latency(trace: &[Done], (from_ns, until_ns): Span) -> Latency {
    let mut latency = Latency::new();
    for done in trace.iter().filter(|done| (from_ns..until_ns).contains(&done.planned_ns)) {
        match done.is_ok() {
            true => latency.record(done.done_ns.saturating_sub(done.planned_ns)),
            false => latency.record_infinite(),
        }
    }
    latency
}

/// 99th percentile of what was planned within a span and answered as asked.
fn admitted_p99(trace: &[Done], (from_ns, until_ns): Span) -> Option<f64> {
    let mut latency = Latency::new();
    let within = |done: &&Done| done.is_ok() && (from_ns..until_ns).contains(&done.planned_ns);
    for done in trace.iter().filter(within) {
        latency.record(done.done_ns.saturating_sub(done.planned_ns));
    }
    latency.quantile(0.99).map(|ns| ns as f64 / 1e6)
}

/// Percentiles over shards and repetitions, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
    count: usize,
}

impl Spread {
    /// `None` without data, or when a shard was never answered.
    fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect::<Option<_>>()?;
        values.sort_unstable_by(f64::total_cmp);
        let rank = |share: f64| {
            let rank = (share * values.len() as f64).ceil().max(1.0) as usize;
            values.get(rank - 1).copied()
        };
        let (p50, p99, max) = (rank(0.5)?, rank(0.99)?, rank(1.0)?);
        Some(Self { p50, p99, max, count: values.len() })
    }
}

/// One target judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Verdict {
    target: String,
    met: bool,
    measured: String,
}

#[derive(Serialize)]
struct Latencies {
    before: Percentiles,
    during: Percentiles,
    after: Percentiles,
}

/// The whole result, as it stands in the JSON.
#[derive(Serialize)]
pub(super) struct Report {
    drill: String,
    about: String,
    version: &'static str,
    seed: u64,
    sites: u8,
    rate: f64,
    load_rate: f64,
    /// Per affected shard, every repetition.
    unavailability_ms: BTreeMap<u16, Vec<Option<f64>>>,
    unavailability: Option<Spread>,
    errors_by_code: Counts,
    errors_elsewhere: u64,
    latency_us: Option<Latencies>,
    audit: Option<Audit>,
    targets: Vec<Verdict>,
    passed: bool,
    /// How it ended when it did not come to its end.
    ended: Option<String>,
    repetitions: Vec<Repetition>,
    distribution: BTreeMap<&'static str, Curve>,
    #[serde(flatten)]
    origin: Origin,
    #[serde(skip)]
    wanted: Targets,
}

impl Report {
    /// Nothing measured yet.
    pub(super) fn new(case: &Case, args: &DrillArgs, sites: u8, rate: f64) -> Self {
        Self {
            drill: case.name.clone(),
            about: case.about.clone(),
            version: env!("CARGO_PKG_VERSION"),
            seed: args.story.seed,
            sites,
            rate,
            load_rate: rate * case.share,
            unavailability_ms: BTreeMap::new(),
            unavailability: None,
            errors_by_code: Counts::new(),
            errors_elsewhere: 0,
            latency_us: None,
            audit: None,
            targets: Vec::new(),
            passed: false,
            repetitions: Vec::new(),
            distribution: BTreeMap::new(),
            origin: Origin::now(),
            ended: None,
            wanted: case.targets.clone(),
        }
    }

    /// Takes a repetition and the audit behind it, and prints its line.
    pub(super) fn add(&mut self, number: u32, repetition: Repetition, audit: Audit) {
        println!(
            "{number:>4}  {repetition}; payments {}, violations {}",
            audit.checked.payments, audit.violation_count,
        );
        for shard in &repetition.unavailability_ms {
            self.unavailability_ms.entry(shard.shard).or_default().push(shard.ms);
        }
        for (code, count) in &repetition.failed_by_code {
            *self.errors_by_code.entry(code).or_default() += count;
        }
        self.errors_elsewhere += repetition.failed_elsewhere;
        self.repetitions.push(repetition);
        self.keep_worst();
        self.audit = Some(audit);
    }

    /// Figures over time are large: those of the mildest repetition go when there are
    /// too many.
    fn keep_worst(&mut self) {
        let kept = || self.repetitions.iter().filter(|one| one.timeline.is_some());
        if kept().count() <= TIMELINES_MAX {
            return;
        }
        let worst_ms = |one: &Repetition| one.worst_ms();
        let kept = self.repetitions.iter_mut().filter(|one| one.timeline.is_some());
        let mildest = kept.min_by(|a, b| worst_ms(a).total_cmp(&worst_ms(b)));
        mildest.into_iter().for_each(|one| one.timeline = None);
    }

    /// Tells which switch was drilled.
    pub(super) fn of_switch(&mut self, version: Option<String>) {
        self.origin = std::mem::take(&mut self.origin).of_switch(version);
    }

    /// Writes the latency histograms before, during and after the fault, and those of
    /// the last repetition's intervals.
    pub(super) fn write_hlog(&self, path: &Path) -> Result<(), Failure> {
        let mut parts = Vec::new();
        for (number, repetition) in self.repetitions.iter().enumerate() {
            let phases = PHASES.iter().zip(&repetition.latency);
            parts.extend(phases.map(|(phase, latency)| hlog::Part {
                tag: format!("{}.{phase}.planned", number + 1),
                from: Duration::ZERO,
                length: Duration::ZERO,
                latency: latency.clone(),
            }));
        }
        hlog::write(path, self.origin.started_unix, &Timeline::default(), &parts)
    }

    /// It did not come to its end.
    pub(super) fn broke_off(&mut self, failure: &Failure) {
        self.ended = Some(failure.message.clone());
    }

    /// Takes the last audit.
    pub(super) fn end(&mut self, audit: Audit) {
        self.audit = Some(audit);
    }

    /// Whether the audit found anything.
    pub(super) fn has_violations(&self) -> bool {
        self.audit.as_ref().is_some_and(|audit| audit.violation_count > 0)
    }

    /// Judges everything that was taken.
    pub(super) fn judge(&mut self) {
        let mut latencies = [Latency::new(), Latency::new(), Latency::new()];
        for repetition in &self.repetitions {
            latencies.iter_mut().zip(&repetition.latency).for_each(|(all, one)| all.add(one));
        }
        let all = self.repetitions.iter().flat_map(|one| &one.unavailability_ms);
        self.unavailability = Spread::of(all.map(|shard| shard.ms));
        self.targets = self.verdicts(&latencies);
        self.distribution = PHASES.into_iter().zip(latencies.iter().map(curve)).collect();
        let [before, during, after] = latencies.map(|latency| Percentiles::of(&latency));
        self.latency_us = Some(Latencies { before, during, after });
        self.passed = !self.repetitions.is_empty()
            && self.ended.is_none()
            && self.targets.iter().all(|target| target.met)
            && self.audit.as_ref().is_some_and(|audit| audit.verdict().is_ok());
    }

    /// Prints the summary.
    pub(super) fn print(&self) {
        if let Some(spread) = self.unavailability {
            println!("unavailable {spread} over {} shards and repetitions", spread.count);
        }
        println!(
            "failed      {:?}, of shards led elsewhere {}",
            self.errors_by_code, self.errors_elsewhere
        );
        if let Some(Latencies { before, during, after }) = &self.latency_us {
            for (name, latency) in [("before", before), ("during", during), ("after", after)] {
                println!("latency     {name:<8}{latency}");
            }
        }
        for verdict in &self.targets {
            let word = if verdict.met { "met   " } else { "MISSED" };
            println!("target      {word} {} (measured {})", verdict.target, verdict.measured);
        }
        if let Some(audit) = &self.audit {
            audit.print();
        }
    }

    /// Writes the JSON.
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(self).map_err(std::io::Error::from);
        json.and_then(|json| std::fs::write(path, json + "\n")).map_err(|error| {
            Failure::environment(format_args!("cannot write {}: {error}", path.display()))
        })
    }

    /// The audit first, then whether there is data, then the targets.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let no_data = || Failure::new(Exit::Invalid, "no data: nothing was audited");
        self.audit.as_ref().ok_or_else(no_data)?.verdict()?;
        let missed: Vec<&Verdict> = self.targets.iter().filter(|target| !target.met).collect();
        match missed.first() {
            None if self.passed => Ok(()),
            None => Err(no_data()),
            Some(first) => {
                let (target, measured, count) = (&first.target, &first.measured, missed.len());
                let exit = if measured == "no data" { Exit::Invalid } else { Exit::Missed };
                let text = format_args!("{count} targets missed: {target}, measured {measured}");
                Err(Failure::new(exit, text))
            }
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.1} p99 {:.1} max {:.1} ms", self.p50, self.p99, self.max)
    }
}
