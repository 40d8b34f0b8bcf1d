//! One drill's line in the table of many.

use super::{Latencies, Report};
use crate::report::Percentiles;

/// A drill in the table of many.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::drill) struct Row {
    /// Which.
    pub(in crate::drill) drill: String,
    /// How it went.
    pub(in crate::drill) verdict: String,
    /// What the audit found; `None` without one.
    pub(in crate::drill) violations: Option<u64>,
    /// What it looked at.
    pub(in crate::drill) payments: u64,
    /// Unavailability, median and maximum.
    pub(in crate::drill) gap_ms: Option<[f64; 2]>,
    /// Requests that failed.
    pub(in crate::drill) failed: u64,
    /// Before, during, after; `None`: not even that share was answered.
    pub(in crate::drill) p99_ms: [Option<f64>; 3],
}

impl Report {
    /// A line of the table of many drills.
    pub(in crate::drill) fn row(&self) -> Row {
        let missed = self.targets.iter().find(|target| !target.met);
        let verdict = match (&self.ended, missed) {
            _ if self.passed => "passed".to_owned(),
            (Some(ended), _) => format!("failed: {}", ended.lines().next().unwrap_or_default()),
            (None, Some(missed)) => {
                format!("MISSED: {}, measured {}", missed.target, missed.measured)
            }
            (None, None) => "failed".to_owned(),
        };
        let latency = self.latency_us.as_ref();
        let p99_ms = |of: fn(&Latencies) -> &Percentiles| {
            latency.and_then(|all| of(all).p99_us()).map(|us| us as f64 / 1e3)
        };
        Row {
            drill: self.drill.clone(),
            verdict,
            violations: self.audit.as_ref().map(|audit| audit.violation_count),
            payments: self.audit.as_ref().map_or(0, |audit| audit.checked.payments),
            gap_ms: self.unavailability.map(|spread| [spread.p50, spread.max]),
            failed: self.errors_by_code.values().sum(),
            p99_ms: [
                p99_ms(|all| &all.before),
                p99_ms(|all| &all.during),
                p99_ms(|all| &all.after),
            ],
        }
    }
}
