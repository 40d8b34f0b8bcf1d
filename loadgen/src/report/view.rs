//! The JSON of a run or a drill, as a report reads it: the same way whether it was
//! made a moment ago or by an earlier process.
//!
//! What is missing stays empty, so that files of other versions can be read. Whatever
//! a file says is bounded here. Tested on texts.

use crate::exit::Failure;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest file that is read.
const FILE_MAX: u64 = 256 << 20;
/// Most values of a column.
const POINTS_MAX: usize = 100_000;

/// Most steps of a search.
const STEPS_MAX: usize = 1_000;

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Percentiles {
    pub(super) p50: Option<f64>,
    pub(super) p90: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) p999: Option<f64>,
    pub(super) max: Option<f64>,
    pub(super) count: u64,
}

impl Percentiles {
    /// One of them, infinite where it is not there although there are values.
    pub(super) fn of(&self, value: fn(&Self) -> Option<f64>) -> Option<f64> {
        value(self).or((self.count > 0).then_some(f64::INFINITY))
    }
}

/// A moment at which something was done to the system under load.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Mark {
    pub(super) at_ms: f64,
    pub(super) until_ms: Option<f64>,
    pub(super) text: String,
}

impl Mark {
    pub(super) fn at_s(&self) -> f64 {
        self.at_ms / 1e3
    }

    pub(super) fn until_s(&self) -> Option<f64> {
        self.until_ms.map(|ms| ms / 1e3)
    }
}

/// A stretch without an answer of a shard.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Window {
    pub(super) shard: u16,
    pub(super) from_ms: f64,
    pub(super) until_ms: f64,
}

impl Window {
    pub(super) fn length_ms(&self) -> f64 {
        self.until_ms - self.from_ms
    }

    /// Whether it reaches into a span of seconds.
    pub(super) fn meets(&self, from_s: f64, until_s: f64) -> bool {
        self.until_ms / 1e3 >= from_s && self.from_ms / 1e3 <= until_s
    }
}

/// Figures over time.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Timeline {
    pub(super) interval_ms: f64,
    pub(super) planned: Vec<f64>,
    pub(super) sent: Vec<f64>,
    pub(super) ok: Vec<f64>,
    pub(super) by_site: BTreeMap<String, Vec<f64>>,
    pub(super) failed: BTreeMap<String, Vec<f64>>,
    pub(super) p50_us: Vec<Option<f64>>,
    pub(super) p90_us: Vec<Option<f64>>,
    pub(super) p99_us: Vec<Option<f64>>,
    pub(super) max_us: Vec<Option<f64>>,
    pub(super) never: Vec<f64>,
    pub(super) in_flight: Vec<f64>,
    pub(super) waiting: Vec<f64>,
    pub(super) late_p99_us: Vec<f64>,
    pub(super) late_max_us: Vec<f64>,
}

impl Timeline {
    pub(super) fn interval_s(&self) -> f64 {
        self.interval_ms / 1e3
    }

    pub(super) fn duration_s(&self) -> f64 {
        self.ok.len() as f64 * self.interval_s()
    }

    /// Requests that failed: infinite in the percentiles.
    pub(super) fn failed(&self) -> f64 {
        self.failed.values().flatten().sum()
    }

    fn is_sound(&self) -> bool {
        let columns = [&self.planned, &self.sent, &self.ok, &self.in_flight];
        (1.0..=1e9).contains(&self.interval_ms)
            && columns.iter().all(|column| column.len() == self.ok.len())
            && self.ok.len() <= POINTS_MAX
            && self.by_site.values().chain(self.failed.values()).all(|v| v.len() <= POINTS_MAX)
            && [&self.p50_us, &self.p90_us, &self.p99_us, &self.max_us]
                .iter()
                .all(|column| column.len() <= POINTS_MAX)
    }
}

/// Distributions by name: shares with the microseconds below which they lie.
pub(super) type Distribution = BTreeMap<String, Vec<(f64, Option<f64>)>>;

/// One goal or target judged.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Verdict {
    #[serde(alias = "target")]
    pub(super) goal: String,
    pub(super) met: bool,
    pub(super) measured: String,
}

/// One operation.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Operation {
    pub(super) sent: u64,
    pub(super) ok: u64,
    pub(super) latency_us: Percentiles,
    pub(super) latency_admitted_us: Option<Percentiles>,
    pub(super) latency_raw_us: Percentiles,
}

/// Whether the generator kept up.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Health {
    pub(super) valid: bool,
    pub(super) reason: Option<String>,
    pub(super) own_lateness_us: Percentiles,
}

/// What the host took away.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Host {
    pub(super) cpus: Option<u32>,
    pub(super) steal_percent: Option<f64>,
    pub(super) stalls: Option<Stalls>,
    pub(super) wake_up_us: Option<u32>,
}

/// Late wake-ups.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stalls {
    pub(super) over_1ms: u64,
    pub(super) over_5ms: u64,
    pub(super) over_10ms: u64,
    pub(super) worst_us: f64,
}

/// Where it ran.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: u64,
    pub(super) memory_mib: u64,
    pub(super) kernel: String,
    pub(super) system: String,
}

/// What the audit found. Its figures are told as they are named.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Audit {
    pub(super) checked: BTreeMap<String, Value>,
    pub(super) sums: BTreeMap<String, Value>,
    pub(super) violation_count: u64,
    pub(super) violations: Vec<Violation>,
}

impl Audit {
    pub(super) fn looked_at(&self, name: &str) -> u64 {
        self.checked.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Nothing found, and there was something to look at.
    pub(super) fn is_clean(&self) -> bool {
        self.violation_count == 0 && self.looked_at("payments") > 0
    }
}

/// One broken rule.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Violation {
    pub(super) invariant: Value,
    pub(super) detail: String,
    pub(super) payment: String,
}

/// What every result tells of its making.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Origin {
    pub(super) version: String,
    pub(super) seed: u64,
    pub(super) command: String,
    pub(super) started_unix: u64,
    pub(super) machine: Machine,
    pub(super) payswitch: Option<String>,
}

/// A run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Run {
    #[serde(flatten)]
    pub(super) origin: Origin,
    pub(super) closed_loop: bool,
    pub(super) offered_rate: f64,
    pub(super) achieved_rate: f64,
    pub(super) duration_s: f64,
    pub(super) warmup_s: f64,
    pub(super) sent: u64,
    pub(super) ok: u64,
    pub(super) refused: u64,
    pub(super) unanswered: u64,
    pub(super) not_sent: u64,
    pub(super) resent: u64,
    pub(super) by_code: BTreeMap<String, u64>,
    pub(super) retried_by_code: BTreeMap<String, u64>,
    pub(super) latency_us: Percentiles,
    pub(super) latency_admitted_us: Option<Percentiles>,
    pub(super) latency_raw_us: Percentiles,
    pub(super) operations: BTreeMap<String, Operation>,
    pub(super) cpu_s: f64,
    pub(super) cpu_us_per_request: f64,
    pub(super) generator: Health,
    pub(super) host: Host,
    pub(super) goals: Vec<Verdict>,
    pub(super) interrupted: bool,
    pub(super) timeline: Option<Timeline>,
    pub(super) marks: Vec<Mark>,
    pub(super) windows: Vec<Window>,
    pub(super) leaders_before: Vec<u8>,
    pub(super) distribution: Distribution,
    pub(super) audit: Option<Audit>,
}

impl Run {
    /// Requests that should have been answered.
    pub(super) fn planned(&self) -> u64 {
        self.sent.saturating_add(self.not_sent)
    }

    /// Share of them that were not answered as asked.
    pub(super) fn failed_share(&self) -> Option<f64> {
        let failed = self.refused.saturating_add(self.unanswered).saturating_add(self.not_sent);
        (self.planned() > 0).then(|| failed as f64 / self.planned() as f64)
    }

    /// Latency of what was sent and not refused, where that is not everything.
    pub(super) fn admitted(&self) -> Option<&Percentiles> {
        let all = self.refused.saturating_add(self.not_sent) == 0;
        self.latency_admitted_us.as_ref().filter(|_| !all)
    }
}

/// Percentiles over shards and repetitions, milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Spread {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    pub(super) count: u64,
}

/// Latency before, during and after the fault.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Phases {
    pub(super) before: Percentiles,
    pub(super) during: Percentiles,
    pub(super) after: Percentiles,
}

/// Unavailability of a shard.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Affected {
    pub(super) shard: u16,
    pub(super) ms: Option<f64>,
    /// `Some(None)`: nobody asked for it meanwhile; older files do not say.
    #[serde(deserialize_with = "said")]
    pub(super) spacing_ms: Option<Option<f64>>,
}

/// Of a value that is there, though it be `null`.
fn said<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl Affected {
    /// How long, milliseconds: infinite when it was asked for and never answered, `None` when
    /// nobody asked.
    pub(super) fn told_ms(&self) -> Option<f64> {
        let unasked = self.spacing_ms == Some(None);
        self.ms.or((!unasked).then_some(f64::INFINITY))
    }
}

/// One repetition of a drill.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Repetition {
    pub(super) victims: Vec<u8>,
    pub(super) level_ms: Vec<Option<f64>>,
    pub(super) leaders_before: Vec<u8>,
    pub(super) unavailability_ms: Vec<Affected>,
    pub(super) failed_by_code: BTreeMap<String, u64>,
    pub(super) failed_elsewhere: u64,
    pub(super) unsettled: u64,
    pub(super) resent: u64,
    pub(super) generator_late_ms_p99: f64,
    pub(super) host: Host,
    pub(super) timeline: Option<Timeline>,
    pub(super) marks: Vec<Mark>,
    pub(super) windows: Vec<Window>,
}

impl Repetition {
    /// The longest that a shard was unavailable, milliseconds; infinite when one was
    /// never answered, `None` when nobody asked for any.
    pub(super) fn worst_ms(&self) -> Option<f64> {
        self.unavailability_ms.iter().filter_map(Affected::told_ms).reduce(f64::max)
    }
}

/// A drill.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Drill {
    #[serde(flatten)]
    pub(super) origin: Origin,
    pub(super) drill: String,
    pub(super) about: String,
    pub(super) sites: u8,
    pub(super) load_rate: f64,
    pub(super) unavailability: Option<Spread>,
    pub(super) errors_by_code: BTreeMap<String, u64>,
    pub(super) errors_elsewhere: u64,
    pub(super) latency_us: Option<Phases>,
    pub(super) distribution: Distribution,
    pub(super) audit: Option<Audit>,
    pub(super) targets: Vec<Verdict>,
    pub(super) passed: bool,
    /// How it ended when it did not come to its end.
    pub(super) ended: Option<String>,
    /// Repetitions that the last audit saw.
    pub(super) audited: Option<usize>,
    pub(super) repetitions: Vec<Repetition>,
}

impl Drill {
    /// Whether it came to its end and everything was as it should be.
    pub(super) fn has_passed(&self) -> bool {
        self.passed && self.ended.is_none()
    }

    /// Whether the audit saw everything that was done, and all that was to be done was.
    pub(super) fn is_audited_to_its_end(&self) -> bool {
        let seen = self.audited.is_none_or(|audited| audited >= self.repetitions.len());
        self.ended.is_none() && seen
    }

    /// How long each shard that was hit was unavailable, milliseconds, where anybody asked.
    pub(super) fn hit(&self) -> impl Iterator<Item = f64> {
        let all = self.repetitions.iter().flat_map(|one| &one.unavailability_ms);
        all.filter_map(Affected::told_ms)
    }

    /// Unavailability of the shards that were hit: p50, p99 and maximum, microseconds;
    /// infinite where that was never answered.
    pub(super) fn unavailable_us(&self) -> Option<[f64; 3]> {
        if let Some(Spread { p50, p99, max, .. }) = self.unavailability {
            return Some([p50, p99, max].map(|ms| ms * 1e3));
        }
        let mut all: Vec<f64> = self.hit().map(|ms| ms * 1e3).collect();
        all.sort_unstable_by(f64::total_cmp);
        let last = all.len().checked_sub(1)?;
        let rank = |share: f64| (share * all.len() as f64).ceil() as usize;
        Some([0.5, 0.99, 1.0].map(|share| all[rank(share).saturating_sub(1).min(last)]))
    }
}

/// One rate that a search tried.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    pub(super) rate: f64,
    pub(super) kept: bool,
    pub(super) confirmation: bool,
    pub(super) reason: String,
    pub(super) report: Run,
}

/// A search.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Search {
    #[serde(flatten)]
    pub(super) origin: Origin,
    pub(super) goals: Vec<String>,
    pub(super) rate: Option<f64>,
    /// The generator was the bottleneck, so that there is none.
    pub(super) generator_limited: bool,
    /// The sites were full, so that there is none.
    pub(super) sites_full: bool,
    /// How it ended; files of other versions do not say.
    pub(super) ended: Option<String>,
    pub(super) steps: Vec<Step>,
}

/// A result of any kind.
#[derive(Clone, Debug)]
pub(super) enum View {
    /// Of `loadgen run` or `loadgen demo`.
    Run(Box<Run>),
    /// Of `loadgen drill`.
    Drill(Box<Drill>),
    /// Of `loadgen search`.
    Search(Box<Search>),
}

impl View {
    /// Reads a result.
    pub(super) fn of(value: Value) -> Result<Self, String> {
        let has = |key: &str| value.get(key).is_some();
        if has("drill") {
            let mut drill: Box<Drill> =
                serde_json::from_value(value).map_err(|error| error.to_string())?;
            for repetition in &mut drill.repetitions {
                repetition.timeline = repetition.timeline.take().filter(Timeline::is_sound);
            }
            Ok(Self::Drill(drill))
        } else if has("offered_rate") {
            let mut run: Box<Run> =
                serde_json::from_value(value).map_err(|error| error.to_string())?;
            run.timeline = run.timeline.take().filter(Timeline::is_sound);
            Ok(Self::Run(run))
        } else if has("steps") && has("goals") {
            let mut search: Box<Search> =
                serde_json::from_value(value).map_err(|error| error.to_string())?;
            search.steps.truncate(STEPS_MAX);
            Ok(Self::Search(search))
        } else {
            Err("this is the JSON of neither a run nor a drill nor a search".to_owned())
        }
    }

    /// Reads a file.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let failed = |reason: &dyn std::fmt::Display| {
            Failure::usage(format_args!("cannot read {}: {reason}", path.display()))
        };
        let size = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
        if size > FILE_MAX {
            return Err(failed(&format_args!("larger than {} MiB", FILE_MAX >> 20)));
        }
        let text = std::fs::read(path).map_err(|error| failed(&error))?;
        let value = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        Self::of(value).map_err(|reason| failed(&reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_of_other_versions_can_be_read() {
        let run = View::of(json!({"offered_rate": 10.0, "unknown": {"x": [1]}})).unwrap();
        assert!(
            matches!(&run, View::Run(run) if run.planned() == 0 && run.failed_share().is_none())
        );
        let drill = View::of(json!({"drill": "kill-site", "seed": 3})).unwrap();
        assert!(matches!(&drill, View::Drill(drill) if drill.origin.seed == 3));
    }

    #[test]
    fn other_texts_are_refused() {
        assert!(View::of(json!({"steps": []})).unwrap_err().contains("neither"));
        assert!(View::of(json!([1, 2])).is_err());
        assert!(View::of(json!({"drill": 7})).is_err());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        std::fs::write(&path, "{").unwrap();
        assert!(View::load(&path).unwrap_err().message.contains("x.json"));
        assert!(View::load(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn a_shard_that_was_never_answered_is_in_the_unavailability_of_a_drill() {
        let drill = |ms: Value| match View::of(json!({"drill": "x", "repetitions": ms})) {
            Ok(View::Drill(drill)) => drill.unavailable_us(),
            other => panic!("{other:?}"),
        };
        let of = |ms: &[Option<f64>]| {
            let shards: Vec<Value> = ms.iter().map(|ms| json!({"shard": 1, "ms": ms})).collect();
            drill(json!([{"unavailability_ms": shards}]))
        };
        let told = of(&[None, Some(90.0), Some(80.0)]).unwrap();
        assert_eq!(told, [90_000.0, f64::INFINITY, f64::INFINITY]);
        assert_eq!(of(&[None]), Some([f64::INFINITY; 3]));
        assert_eq!((of(&[]), drill(json!([]))), (None, None));
        // One that nobody asked for is not among them.
        let asked = |spacing: &[Value]| {
            let shard = |ms: &Value| json!({"shard": 1, "ms": null, "spacing_ms": ms});
            let mut shards: Vec<Value> = spacing.iter().map(shard).collect();
            shards.push(json!({"shard": 2, "ms": 90.0, "spacing_ms": 5.0}));
            drill(json!([{"unavailability_ms": shards}]))
        };
        assert_eq!(asked(&[json!(null)]), Some([90_000.0; 3]));
        assert_eq!(asked(&[json!(2.0)]), Some([90_000.0, f64::INFINITY, f64::INFINITY]));
        let nobody = json!([{"unavailability_ms": [{"shard": 1, "ms": null, "spacing_ms": null}]}]);
        assert_eq!(drill(nobody), None);
    }

    #[test]
    fn a_crooked_timeline_is_left_out() {
        let timeline = |interval: f64| json!({"interval_ms": interval, "planned": [1], "sent": [1], "ok": [1], "in_flight": [0]});
        let read = |value: Value| match View::of(json!({"offered_rate": 1.0, "timeline": value})) {
            Ok(View::Run(run)) => run.timeline.is_some(),
            other => panic!("{other:?}"),
        };
        assert!(read(timeline(100.0)));
        assert!(!read(timeline(0.0)) && !read(timeline(-5.0)));
        let mut uneven = timeline(100.0);
        uneven["ok"] = json!([1, 2, 3]);
        assert!(!read(uneven));
    }

    #[test]
    fn an_audit_that_saw_nothing_is_not_clean() {
        assert!(!Audit::default().is_clean());
        let clean: Audit = serde_json::from_value(json!({"checked": {"payments": 3}})).unwrap();
        assert!(clean.is_clean());
    }
}
