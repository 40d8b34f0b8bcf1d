//! Whether the generator kept up: a run in which it was the bottleneck says nothing about
//! the switch.
//!
//! Pure. Tested on its verdicts.

use super::Percentiles;
use crate::drive::Outcome;
use crate::measure::{Latency, Measure};
use serde::Serialize;

/// Up to this the generator's own lateness (99th percentile) is noise.
const OWN_LATENESS_FINE_NS: u64 = 5_000_000;
/// A larger part of the switch's p99 than one in so many is told to the reader.
const OWN_SHARE_MAX: u64 = 4;
/// Above this the run is invalid, however slow the switch.
const OWN_LATENESS_MAX_NS: u64 = 100_000_000;

/// Whether the generator kept up.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    pub(super) valid: bool,
    pub(super) reason: Option<String>,
    /// What a reader of the tail should know though the run is valid.
    pub(super) note: Option<String>,
    pub(super) own_lateness_us: Percentiles,
}

/// Whether the generator was the bottleneck of a phase.
pub(crate) fn was_bottleneck(measure: &Measure) -> bool {
    let (_, raw) = measure.overall();
    let p99 = |latency: &Latency| latency.quantile(0.99);
    outweighs(p99(&measure.own_lateness).unwrap_or(0), p99(&raw).unwrap_or(u64::MAX))
}

/// The generator is the bottleneck when its own lateness outweighs what the
/// switch took; both are 99th percentiles.
fn outweighs(late_ns: u64, raw_ns: u64) -> bool {
    late_ns > OWN_LATENESS_MAX_NS || late_ns > raw_ns.max(OWN_LATENESS_FINE_NS)
}

/// Judges it.
pub(super) fn health(measure: &Measure, raw: &Latency, outcome: &Outcome) -> Health {
    let late = measure.own_lateness.quantile(0.99).unwrap_or(0);
    let raw = raw.quantile(0.99).unwrap_or(u64::MAX);
    let reason = if measure.ok == 0 {
        Some("no data: nothing was answered as asked".to_owned())
    } else if outweighs(late, raw) {
        let ms = |ns: u64| match ns {
            u64::MAX => "never answered".to_owned(),
            ns => format!("{:.1} ms", ns as f64 / 1e6),
        };
        Some(format!(
            "the generator was the bottleneck: 1 % of its requests left at least {} after they were \
             due although nothing held them back, and the switch's own p99 is {}; it used {:.1} CPU \
             seconds; host: {}",
            ms(late),
            ms(raw),
            outcome.cpu_s,
            outcome.host
        ))
    } else {
        None
    };
    let own_lateness_us = Percentiles::of(&measure.own_lateness);
    let note = (reason.is_none() && late > OWN_LATENESS_FINE_NS && late > raw / OWN_SHARE_MAX)
        .then(|| {
            let percent = late.saturating_mul(100) / raw.max(1);
            format!(
                "kept up, but its lateness is {percent} % of the raw p99: read the tail with care"
            )
        });
    Health { valid: reason.is_none(), reason, note, own_lateness_us }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    #[test]
    fn lateness_that_colours_the_tail_is_told_and_spoils_nothing() {
        let health = |late_ms: u64, raw_ms: u64| {
            let mut measure = Measure::new(0, 1_000_000_000);
            let mut raw = Latency::new();
            measure.own_lateness.record(late_ms * 1_000_000);
            raw.record(raw_ms * 1_000_000);
            measure.ok = 1;
            let outcome = Outcome {
                measure,
                trace: Vec::new(),
                timeline: crate::series::Timeline::default(),
                start: std::time::Instant::now(),
                cpu_s: 0.1,
                host: Host::default(),
                interrupted: false,
            };
            let health = health(&outcome.measure, &raw, &outcome);
            (health.valid, health.note.is_some())
        };
        assert_eq!(health(4, 5), (true, false));
        assert_eq!(health(20, 100), (true, false));
        assert_eq!(health(30, 100), (true, true));
        assert_eq!(health(101, 1_000), (false, false));
    }
}
