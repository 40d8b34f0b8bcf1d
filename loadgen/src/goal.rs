//! Goals of a run: `p99=10ms`, `p50@pay=2ms`, `errors=0.1%`, `rate=99%`.
//!
//! Pure. No data never meets a goal. Tested on its grammar and verdicts.

use crate::measure::Latency;
use crate::plan::Op;
use std::fmt;

/// What is asked of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Goal {
    /// A percentile of the planned-time latency is at most this; what was refused,
    /// unanswered or not sent is infinitely slow.
    Latency {
        /// Which, 1.0 for the maximum.
        quantile: f64,
        /// Of which operation; all when absent.
        op: Option<Op>,
        /// Bound in nanoseconds.
        at_most_ns: u64,
        /// As it was written.
        text: String,
    },
    /// Share of requests that were refused, unanswered or not sent is at most this.
    Errors {
        /// Bound, 0 to 1.
        at_most: f64,
        /// As it was written.
        text: String,
    },
    /// Achieved over offered rate is at least this.
    Rate {
        /// Bound, 0 to 1.
        at_least: f64,
        /// As it was written.
        text: String,
    },
}

/// What a run says about its goals.
pub(crate) struct Figures<'a> {
    /// Latency over all operations.
    pub(crate) overall: &'a Latency,
    /// Latency of one operation.
    pub(crate) of: &'a dyn Fn(Op) -> &'a Latency,
    /// Share of errors; `None` without data.
    pub(crate) errors: Option<f64>,
    /// Achieved over offered rate; `None` without data.
    pub(crate) rate: Option<f64>,
}

/// One goal judged.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Verdict {
    /// The goal as it was written.
    pub(crate) goal: String,
    /// Whether it was met.
    pub(crate) met: bool,
    /// What was measured.
    pub(crate) measured: String,
}

impl Goal {
    /// Reads a goal.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: write p99=10ms, p50@pay=2ms, errors=0.1% or rate=99%");
        let (name, bound) = text
            .split_once("<=")
            .or_else(|| text.split_once(">="))
            .or_else(|| text.split_once(['=', '<', '>']))
            .ok_or_else(usage)?;
        let (name, bound, text) = (name.trim(), bound.trim(), text.to_owned());
        match name {
            "errors" => Ok(Self::Errors { at_most: parse_percent(bound)?, text }),
            "rate" => Ok(Self::Rate { at_least: parse_percent(bound)?, text }),
            _ => {
                let (percentile, op) = match name.split_once('@') {
                    None => (name, None),
                    Some((percentile, op)) => {
                        let known = Op::ALL.into_iter().find(|known| known.name() == op);
                        (percentile, Some(known.ok_or_else(usage)?))
                    }
                };
                let quantile = match percentile {
                    "p50" => 0.5,
                    "p90" => 0.9,
                    "p99" => 0.99,
                    "p999" => 0.999,
                    "max" => 1.0,
                    _ => return Err(usage()),
                };
                let at_most_ns = parse_duration_ns(bound).ok_or_else(usage)?;
                Ok(Self::Latency { quantile, op, at_most_ns, text })
            }
        }
    }

    /// Judges a run.
    pub(crate) fn judge(&self, figures: &Figures<'_>) -> Verdict {
        let share = |value: Option<f64>| {
            value.map_or_else(|| "no data".to_owned(), |share| format!("{:.3} %", share * 100.0))
        };
        match self {
            Self::Latency { quantile, op, at_most_ns, text } => {
                let latency = op.map_or(figures.overall, |op| (figures.of)(op));
                let value = latency.quantile(*quantile);
                let measured = match value {
                    Some(ns) => format!("{:.3} ms", ns as f64 / 1e6),
                    None if latency.count() == 0 => "no data".to_owned(),
                    None => {
                        let share = latency.infinite() as f64 / latency.count() as f64;
                        format!("infinite: {:.3} % failed", share * 100.0)
                    }
                };
                let met = value.is_some_and(|ns| ns <= *at_most_ns);
                Verdict { goal: text.clone(), met, measured }
            }
            Self::Errors { at_most, text } => Verdict {
                goal: text.clone(),
                met: figures.errors.is_some_and(|errors| errors <= *at_most),
                measured: share(figures.errors),
            },
            Self::Rate { at_least, text } => Verdict {
                goal: text.clone(),
                met: figures.rate.is_some_and(|rate| rate >= *at_least),
                measured: share(figures.rate),
            },
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Latency { text, .. } | Self::Errors { text, .. } | Self::Rate { text, .. }) =
            self;
        f.write_str(text)
    }
}

/// Reads `1.5%` or `1.5` as 0.015.
pub(crate) fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim();
    let share = number.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent));
    share.map(|percent| percent / 100.0).ok_or_else(|| format!("{text:?}: 0% to 100%"))
}

/// Reads `250us`, `10ms`, `1.5s` as nanoseconds.
pub(crate) fn parse_duration_ns(text: &str) -> Option<u64> {
    let units = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)];
    let (number, scale) =
        units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    let value: f64 = number.trim().parse().ok()?;
    (value >= 0.0 && value * scale < 1e15).then_some((value * scale).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(goal: &str, latency: &Latency) -> bool {
        let of = |_: Op| latency;
        let figures = Figures { overall: latency, of: &of, errors: Some(0.001), rate: Some(0.995) };
        Goal::parse(goal).unwrap().judge(&figures).met
    }

    #[test]
    fn goals_are_judged_from_the_figures() {
        let mut latency = Latency::new();
        (1..=100).for_each(|ms| latency.record(ms * 1_000_000));
        assert!(judged("p50=51ms", &latency) && !judged("p50=49ms", &latency));
        assert!(judged("p99@pay<=100ms", &latency) && !judged("max<99ms", &latency));
        assert!(judged("errors=0.1%", &latency) && !judged("errors<0.05%", &latency));
        assert!(judged("rate>=99%", &latency) && !judged("rate=99.9%", &latency));
    }

    #[test]
    fn no_data_and_missing_answers_never_pass() {
        assert!(!judged("p50=10s", &Latency::new()));
        let mut latency = Latency::new();
        latency.record(1_000_000);
        latency.record_infinite();
        assert!(judged("p50=2ms", &latency) && !judged("max=100s", &latency));
        let none = Latency::new();
        let figures = Figures { overall: &none, of: &|_| &none, errors: None, rate: None };
        for goal in ["errors=100%", "rate=0%", "p50=1s"] {
            let verdict = Goal::parse(goal).unwrap().judge(&figures);
            assert_eq!((verdict.met, verdict.measured.as_str()), (false, "no data"));
        }
    }

    #[test]
    fn what_failed_is_told_where_it_decides() {
        let mut latency = Latency::new();
        (0..96).for_each(|_| latency.record(1_000_000));
        (0..4).for_each(|_| latency.record_infinite());
        let figures = Figures { overall: &latency, of: &|_| &latency, errors: None, rate: None };
        let verdict = Goal::parse("p99=10ms").unwrap().judge(&figures);
        assert_eq!((verdict.met, verdict.measured.as_str()), (false, "infinite: 4.000 % failed"));
        assert!(judged("p90=10ms", &latency));
    }

    #[test]
    fn bad_goals_are_refused() {
        for bad in ["", "p99", "p99=10", "p98=1ms", "p99@void=1ms", "errors=x", "rate=101%"] {
            assert!(Goal::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_duration_ns("1.5ms"), Some(1_500_000));
        assert_eq!(parse_duration_ns("-1ms"), None);
    }
}
