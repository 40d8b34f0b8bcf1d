//! One repetition of a drill, read from what became of every request.
//!
//! Pure.

use super::super::script::{Fault, Found, Home, Told};
use super::{Counts, Spread};
use crate::drive::Outcome;
use crate::host::Host;
use crate::measure::{Latency, Measure};
use crate::report::{Events, Mark, Window};
use crate::series::Columns;
use crate::trace::{Availability, Done, End, failures, longest_gaps};
use protocol::code::Code;
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

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

/// So many requests of a shard must come in a time that its unavailability is held against.
const SAMPLES: f64 = 2.0;

/// A stretch of a phase, nanoseconds since it began.
pub(super) type Span = (u64, u64);

/// One repetition.
#[derive(Serialize)]
pub(in crate::drill) struct Repetition {
    /// Sites that were hit, in order; 0 for none in particular.
    pub(super) victims: Vec<u8>,
    /// When, milliseconds since the load began.
    pub(super) at_ms: Vec<u64>,
    /// Until they were level again, milliseconds after they were healed.
    pub(super) level_ms: Vec<Option<u64>>,
    /// Sites that were healed and did not lead again what they had led; `None` when that was
    /// not asked of any.
    pub(super) not_home: Option<usize>,
    pub(super) leaders_before: Vec<u8>,
    pub(super) leaders_after: Vec<u8>,
    /// Longest stretch without an answer of each affected shard.
    pub(super) unavailability_ms: Vec<Affected>,
    /// The same of all shards before the first fault: what is normal at this load.
    pub(super) calm_gap_ms: Option<f64>,
    /// Requests that failed, by what they ended with.
    pub(super) failed_by_code: Counts,
    /// Those of them since the first fault that were about shards which the sites that
    /// were hit at that time did not lead.
    pub(super) failed_elsewhere: u64,
    /// Answers per second.
    pub(super) answered_before: f64,
    pub(super) answered_during: f64,
    pub(super) answered_at_end: f64,
    /// 99th percentile of what was answered as asked, before and during.
    pub(super) admitted_p99_ms: [Option<f64>; 2],
    #[serde(flatten)]
    pub(super) found: Found,
    /// Refusals for lack of capacity during the fault, and those of the whole load that do
    /// not say when to try again.
    pub(super) hints: [u64; 2],
    /// Payments that have no final answer, or events that did not come.
    pub(super) unsettled: usize,
    pub(super) resent: u64,
    pub(super) retried_by_code: Counts,
    pub(super) second_answers: u64,
    pub(super) differing_answers: u64,
    pub(super) silences: u64,
    pub(super) generator_late_ms_p99: f64,
    pub(super) host: Host,
    /// What was done, and when it was undone.
    pub(super) marks: Vec<Mark>,
    /// Every long stretch without an answer, of all shards.
    pub(super) windows: Vec<Window>,
    /// Figures over time, of the worst repetitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeline: Option<Columns>,
    #[serde(skip)]
    pub(super) latency: [Latency; 3],
    /// Of what they are.
    #[serde(skip)]
    pub(super) spans: [Span; 3],
    /// When the load did.
    #[serde(skip)]
    pub(super) began: Instant,
}

/// One affected shard.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Affected {
    pub(super) shard: u16,
    /// Which fault of the repetition, from 1.
    pub(super) fault: usize,
    /// From the fault on; `null` when it was never answered at all.
    pub(super) ms: Option<f64>,
    /// When that began, milliseconds after the fault: the takeover, or the return.
    pub(super) began_ms: Option<f64>,
    /// Mean time between the shard's requests meanwhile; `null` when nobody asked.
    pub(super) spacing_ms: Option<f64>,
}

impl Affected {
    /// How long, when its requests came often enough to tell that from so many milliseconds.
    pub(super) fn seen_ms(&self, bound: f64) -> Option<f64> {
        self.ms.filter(|_| self.spacing_ms.is_some_and(|ms| ms <= bound / SAMPLES))
    }
}

impl Repetition {
    /// Reads the trace of a load that was stopped at `ended`.
    pub(in crate::drill) fn new(
        outcome: &Outcome,
        told: &Told,
        ended: Instant,
        shards: u16,
        unsettled: usize,
    ) -> Self {
        let at =
            |instant: Instant| instant.saturating_duration_since(outcome.start).as_nanos() as u64;
        let end_ns = at(ended).saturating_sub(END_SLACK.as_nanos() as u64);
        let first = told.faults.first();
        let begun_ns = first.map_or(end_ns, |fault| at(fault.at));
        let healed_ns = told.faults.iter().map(|fault| at(fault.healed)).max().unwrap_or(end_ns);
        let during = broken(&told.faults, at);
        let after = [(healed_ns, end_ns)];
        let trace: Vec<Done> =
            outcome.trace.iter().filter(|done| done.planned_ns < end_ns).copied().collect();
        let shards: Vec<Availability> =
            (0..shards).map(|shard| Availability::new(&trace, shard, end_ns)).collect();
        let covers = covers(&told.faults, at, end_ns);
        let affected = |done: &Done| {
            let meets = |span: &Span| done.planned_ns < span.1 && done.done_ns >= span.0;
            let mut all = told.faults.iter().zip(&covers);
            all.any(|(fault, span)| fault.affects(done.shard) && meets(span))
        };
        let elsewhere = trace.iter().filter(|done| !affected(done));
        let calm_until_ns = begun_ns.saturating_sub(CALM_END_NS);
        let calm = [(WARM_UP_NS.min(calm_until_ns), calm_until_ns)];
        let calm_gap_ms = shards.iter().filter_map(|of| gap_ms(of, calm[0])).reduce(f64::max);
        let measure = &outcome.measure;
        let mut timeline = outcome.timeline.clone();
        timeline.until(end_ns);
        Self {
            victims: told.faults.iter().map(|fault| fault.site).collect(),
            at_ms: told.faults.iter().map(|fault| at(fault.at) / 1_000_000).collect(),
            level_ms: told.faults.iter().map(|fault| fault.level.map(millis)).collect(),
            not_home: not_home(&told.faults),
            leaders_before: first.map_or_else(Vec::new, |fault| fault.leaders.clone()),
            leaders_after: told.leaders.clone(),
            unavailability_ms: unavailability(&shards, &told.faults, &covers, at),
            calm_gap_ms,
            failed_by_code: failures(trace.iter(), (0, end_ns)),
            failed_elsewhere: failures(elsewhere, (begun_ns, end_ns)).values().sum(),
            answered_before: answered(&trace, &calm),
            answered_during: answered(&trace, &during),
            answered_at_end: answered(&trace, &[(end_ns.saturating_sub(END_NS), end_ns)]),
            admitted_p99_ms: [&calm[..], &during].map(|spans| admitted_p99(&trace, spans)),
            found: told.found.clone(),
            hints: [refusals(&trace, &during), measure.hints[1]],
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
            latency: [&calm[..], &during, &after].map(|spans| latency(&trace, spans)),
            spans: [calm[0], (begun_ns, healed_ns), after[0]],
            began: outcome.start,
        }
    }

    /// Takes from the figures what there is no trace for.
    pub(in crate::drill) fn of_measure(&mut self, measure: &Measure) {
        self.failed_by_code = measure.failed_by_code();
        let span_s = measure.span_ns() as f64 / 1e9;
        self.answered_during = if span_s > 0.0 { measure.ok_in_span as f64 / span_s } else { 0.0 };
        // What failed is infinite in it, as in a trace.
        let (all, _) = measure.overall();
        self.latency = [Latency::new(), all, Latency::new()];
        self.spans = [(0, 0), (0, measure.span_ns()), (0, 0)];
    }

    /// What a page of a run shows of it.
    pub(in crate::drill) fn events(&self) -> Events {
        Events {
            marks: self.marks.clone(),
            windows: self.windows.clone(),
            leaders_before: self.leaders_before.clone(),
        }
    }

    /// The longest that a shard was unavailable; infinite when one was never answered. One that
    /// nobody asked for says nothing.
    pub(super) fn worst_ms(&self) -> f64 {
        let all = self.unavailability_ms.iter();
        let asked = all.filter(|shard| shard.ms.is_some() || shard.spacing_ms.is_some());
        asked.map(|shard| shard.ms.unwrap_or(f64::INFINITY)).fold(0.0, f64::max)
    }

    pub(super) fn failed(&self) -> u64 {
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
        if let Some(calm) = self.calm_gap_ms {
            write!(f, "; calm {calm:.1} ms")?;
        }
        if let Some(changes) = &self.found.changes {
            write!(f, "; {changes}")?;
        }
        if let Some(sizes) = &self.found.sizes {
            write!(f, "; {sizes}")?;
        }
        write!(
            f,
            "; failed {}, elsewhere {}; sent again {}",
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

/// How long each fault explains what its own shards meet: until the next one, and until
/// its site is level again when that takes longer; the last one until the end.
fn covers(faults: &[Fault], at: impl Fn(Instant) -> u64, end_ns: u64) -> Vec<Span> {
    let cover = |(number, fault): (usize, &Fault)| {
        let next = faults.get(number + 1).map(|next| at(next.at.max(fault.over())));
        (at(fault.at), next.unwrap_or(end_ns))
    };
    faults.iter().enumerate().map(cover).collect()
}

pub(super) fn not_home(faults: &[Fault]) -> Option<usize> {
    let mut asked = faults.iter().filter(|fault| fault.home != Home::NotAsked).peekable();
    asked.peek()?;
    Some(asked.filter(|fault| fault.home == Home::Never).count())
}

/// When something was broken: from each fault until it was healed. What is between two
/// faults belongs to none.
fn broken(faults: &[Fault], at: impl Fn(Instant) -> u64) -> Vec<Span> {
    let mut spans: Vec<Span> =
        faults.iter().map(|fault| (at(fault.at), at(fault.healed))).collect();
    spans.sort_unstable();
    let mut union: Vec<Span> = Vec::new();
    for (from_ns, until_ns) in spans {
        match union.last_mut().filter(|last| from_ns <= last.1) {
            Some(last) => last.1 = last.1.max(until_ns),
            None => union.push((from_ns, until_ns)),
        }
    }
    union
}

/// Whether a moment is in one of these spans, which are in order and apart.
fn within(spans: &[Span], at_ns: u64) -> bool {
    let begun = spans.partition_point(|(from_ns, _)| *from_ns <= at_ns);
    begun.checked_sub(1).is_some_and(|last| at_ns < spans[last].1)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn gap_ms(availability: &Availability, span: Span) -> Option<f64> {
    availability.longest_gap(span).map(|gap| gap.length_ns() as f64 / 1e6)
}

/// Of every fault and every shard that it affects: for as long as it explains what those
/// meet, the shards' way home included.
fn unavailability(
    shards: &[Availability],
    faults: &[Fault],
    covers: &[Span],
    at: impl Fn(Instant) -> u64,
) -> Vec<Affected> {
    let mut affected = Vec::new();
    for (number, (fault, (from_ns, until_ns))) in faults.iter().zip(covers).enumerate() {
        let span = (*from_ns, at(fault.home()).max(*until_ns));
        for (shard, availability) in shards.iter().enumerate() {
            let shard = shard as u16;
            if fault.affects(shard) {
                let gap = availability.longest_gap(span);
                let ms = gap.as_ref().map(|gap| gap.length_ns() as f64 / 1e6);
                let began_ms = gap.map(|gap| (gap.from_ns as f64 - span.0 as f64) / 1e6);
                let spacing_ms = availability.spacing_ns(span).map(|ns| ns / 1e6);
                affected.push(Affected { shard, fault: number + 1, ms, began_ms, spacing_ms });
            }
        }
    }
    affected
}

/// Answers per second within these spans.
fn answered(trace: &[Done], spans: &[Span]) -> f64 {
    let count = trace.iter().filter(|done| done.is_ok() && within(spans, done.done_ns)).count();
    let length_ns: u64 = spans.iter().map(|(from_ns, until_ns)| until_ns - from_ns).sum();
    if length_ns > 0 { count as f64 * 1e9 / length_ns as f64 } else { 0.0 }
}

/// What was planned within these spans.
fn planned<'a>(trace: &'a [Done], spans: &[Span]) -> impl Iterator<Item = &'a Done> {
    trace.iter().filter(move |done| within(spans, done.planned_ns))
}

/// Refusals for lack of capacity of what was planned within these spans.
fn refusals(trace: &[Done], spans: &[Span]) -> u64 {
    let refused = |end| matches!(end, End::Answered(Code::Overloaded | Code::RateLimited));
    planned(trace, spans).filter(|done| refused(done.end)).count() as u64
}

/// Latency of requests planned within these spans; what failed never came.
fn latency(trace: &[Done], spans: &[Span]) -> Latency {
    let mut latency = Latency::new();
    for done in planned(trace, spans) {
        match done.is_ok() {
            true => latency.record(done.done_ns.saturating_sub(done.planned_ns)),
            false => latency.record_infinite(),
        }
    }
    latency
}

/// 99th percentile of what was planned within these spans and answered as asked.
fn admitted_p99(trace: &[Done], spans: &[Span]) -> Option<f64> {
    let mut latency = Latency::new();
    for done in planned(trace, spans).filter(|done| done.is_ok()) {
        latency.record(done.done_ns.saturating_sub(done.planned_ns));
    }
    latency.quantile(0.99).map(|ns| ns as f64 / 1e6)
}
