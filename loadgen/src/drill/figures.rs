//! What a drill measured: per shard and per request, from the clients' view, and
//! whether that is what was asked.
//!
//! Pure but for printing and writing. No data is never a pass. Tested on traces
//! made by hand.

mod repetition;
mod row;
#[cfg(test)]
mod tests;
mod verdicts;

use super::DrillArgs;
use super::before::Prepared;
use super::catalogue::Case;
use super::targets::Targets;
use crate::audit::Audit;
use crate::exit::{Exit, Failure};
use crate::hlog;
use crate::measure::Latency;
use crate::report::{Curve, Origin, Percentiles, curve};
pub(super) use repetition::Repetition;
pub(super) use row::Row;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What stands in place of a figure that there is not; the reason may follow.
const NO_DATA: &str = "no data";
/// Names of the stretches of a drill.
const PHASES: [&str; 3] = ["before", "during", "after"];
/// Repetitions whose figures over time are kept: the worst.
const TIMELINES_MAX: usize = 20;

type Counts = BTreeMap<&'static str, u64>;

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

impl Verdict {
    fn has_data(&self) -> bool {
        !self.measured.starts_with(NO_DATA)
    }
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
    /// Of the first fault of every repetition, of the second, and so on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unavailability_by_fault: Vec<Option<Spread>>,
    /// What was done before the first repetition.
    #[serde(flatten)]
    prepared: Prepared,
    errors_by_code: Counts,
    errors_elsewhere: u64,
    latency_us: Option<Latencies>,
    audit: Option<Audit>,
    /// Repetitions that were there at the last audit.
    audited: u32,
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
    #[serde(skip)]
    began: Instant,
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
            unavailability_by_fault: Vec::new(),
            prepared: Prepared::default(),
            errors_by_code: Counts::new(),
            errors_elsewhere: 0,
            latency_us: None,
            audit: None,
            audited: 0,
            targets: Vec::new(),
            passed: false,
            repetitions: Vec::new(),
            distribution: BTreeMap::new(),
            origin: Origin::now(),
            ended: None,
            wanted: case.targets.clone(),
            began: Instant::now(),
        }
    }

    /// Takes a repetition and the audit behind it, if there is one, and prints its line.
    pub(super) fn add(&mut self, number: u32, repetition: Repetition, audit: Option<Audit>) {
        let audited = audit.as_ref().map_or_else(
            || "audited later".to_owned(),
            |audit| {
                let (payments, violations) = (audit.checked.payments, audit.violation_count);
                format!("payments {payments}, violations {violations}")
            },
        );
        println!("{number:>4}  {repetition}; {audited}");
        for shard in &repetition.unavailability_ms {
            self.unavailability_ms.entry(shard.shard).or_default().push(shard.ms);
        }
        for (code, count) in &repetition.failed_by_code {
            *self.errors_by_code.entry(code).or_default() += count;
        }
        self.errors_elsewhere += repetition.failed_elsewhere;
        self.repetitions.push(repetition);
        self.keep_worst();
        if let Some(audit) = audit {
            self.audit = Some(audit);
            self.audited = number;
        }
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

    /// Writes the latency histograms before, during and after the fault of every repetition.
    pub(super) fn write_hlog(&self, path: &Path) -> Result<(), Failure> {
        let began = SystemTime::now().checked_sub(self.began.elapsed()).unwrap_or(UNIX_EPOCH);
        hlog::write(path, began, None, &self.phases())
    }

    fn phases(&self) -> Vec<hlog::Part> {
        let mut parts = Vec::new();
        for (number, repetition) in self.repetitions.iter().enumerate() {
            let load = repetition.began.saturating_duration_since(self.began);
            let phases = PHASES.iter().zip(repetition.latency.iter().zip(repetition.spans));
            parts.extend(phases.map(|(phase, (latency, (from_ns, until_ns)))| hlog::Part {
                tag: format!("{}.{phase}.planned", number + 1),
                from: load + Duration::from_nanos(from_ns),
                length: Duration::from_nanos(until_ns.saturating_sub(from_ns)),
                latency: latency.clone(),
            }));
        }
        parts
    }

    /// It did not come to its end.
    pub(super) fn broke_off(&mut self, failure: &Failure) {
        self.ended = Some(failure.message.clone());
    }

    /// Takes the last audit, if there could be one.
    pub(super) fn last(&mut self, audit: Result<Audit, Failure>) {
        match audit {
            Ok(audit) => self.end(audit),
            Err(failure) => println!("not audited: {}", failure.message),
        }
    }

    /// Takes an audit. What one before it found stays found: this one may ask for less,
    /// and what is mended since was broken all the same.
    fn end(&mut self, audit: Audit) {
        let found = |audit: &Audit| audit.violation_count;
        match self.audit.as_ref().map(found) {
            Some(before) if before > found(&audit) => {
                println!("violations  {before} before, {} in the last audit", found(&audit));
            }
            _ => {
                self.audit = Some(audit);
                self.audited = self.repetitions.len() as u32;
            }
        }
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
        self.unavailability_by_fault = self.by_fault();
        self.targets = self.verdicts(&latencies);
        self.distribution = PHASES.into_iter().zip(latencies.iter().map(curve)).collect();
        let [before, during, after] = latencies.map(|latency| Percentiles::of(&latency));
        self.latency_us = Some(Latencies { before, during, after });
        self.passed = !self.repetitions.is_empty()
            && self.ended.is_none()
            && self.targets.iter().all(|target| target.met)
            && self.audit.as_ref().is_some_and(|audit| audit.verdict().is_ok());
    }

    /// One spread for each fault of the course; none where that is the same as one for all.
    fn by_fault(&self) -> Vec<Option<Spread>> {
        let faults = self.repetitions.iter().map(|one| one.victims.len()).max().unwrap_or(0);
        if faults < 2 && !self.wanted.each_fault {
            return Vec::new();
        }
        let all = || self.repetitions.iter().flat_map(|one| &one.unavailability_ms);
        let of = |fault| all().filter(move |shard| shard.fault == fault).map(|shard| shard.ms);
        (1..=faults.max(1)).map(|fault| Spread::of(of(fault))).collect()
    }

    /// Takes what was done before.
    pub(super) fn with(&mut self, prepared: Prepared) {
        if let Some(maximum) = &prepared.maximum {
            self.load_rate = maximum.answered;
        }
        self.prepared = prepared;
    }

    /// Requests per second that are driven.
    pub(super) fn load_rate(&self) -> f64 {
        self.load_rate
    }

    /// Prints the summary.
    pub(super) fn print(&self) {
        if let Some(spread) = self.unavailability {
            println!("unavailable {spread} over {} shards and repetitions", spread.count);
        }
        for (number, spread) in (1..).zip(&self.unavailability_by_fault) {
            let gaps = spread.map_or_else(|| "nothing".to_owned(), |spread| spread.to_string());
            println!("   fault {number}  {gaps}");
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
        println!("audited     {} of {} repetitions", self.audited, self.repetitions.len());
        if let Some(audit) = &self.audit {
            audit.print();
        }
        if let Some(ended) = &self.ended {
            println!("broke off   {}", ended.lines().next().unwrap_or_default());
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
        // What was measured and missed says more than what was not measured.
        let first = missed.iter().find(|target| target.has_data()).or(missed.first());
        match first {
            None if self.passed => Ok(()),
            None => Err(no_data()),
            Some(first) => {
                let (target, measured, count) = (&first.target, &first.measured, missed.len());
                let exit = if first.has_data() { Exit::Missed } else { Exit::Invalid };
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
