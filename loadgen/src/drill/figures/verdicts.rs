//! Holds what was measured against what was asked.

use super::super::maximum::Distance;
use super::repetition::Affected;
use super::{NO_DATA, Repetition, Report, Spread, Verdict};
use crate::measure::Latency;

/// A figure that may have a bound.
fn at_most(what: &str, unit: &str, bound: Option<f64>, value: Option<f64>) -> Option<Verdict> {
    bound.map(|bound| Verdict {
        target: format!("{what} <= {bound}{unit}"),
        met: value.is_some_and(|value| value <= bound),
        measured: value.map_or_else(|| NO_DATA.to_owned(), |v| format!("{v:.1}{unit}")),
    })
}

impl Report {
    pub(super) fn verdicts(&self, [before, during, _]: &[Latency; 3]) -> Vec<Verdict> {
        let wanted = &self.wanted;
        let mut verdicts = Vec::new();
        let faults = match wanted.each_fault {
            false => vec![(String::new(), None)],
            true => (1..=self.unavailability_by_fault.len())
                .map(|number| (format!("fault {number}: "), Some(number)))
                .collect(),
        };
        for (of, fault) in faults {
            let mut judge = |name: &str, bound: Option<f64>, rank: fn(&Spread) -> f64| {
                let gaps = bound.and_then(|bound| self.seen(fault, bound));
                let what = format!("{of}unavailable {name}");
                let mut verdict = at_most(&what, " ms", bound, gaps.as_ref().map(rank));
                if let Some(verdict) = verdict.as_mut().filter(|verdict| !verdict.has_data()) {
                    verdict.measured = self.unseen(fault);
                }
                verdicts.extend(verdict);
            };
            judge("p50", wanted.p50_ms, |gaps| gaps.p50);
            judge("p99", wanted.p99_ms, |gaps| gaps.p99);
            judge("max", wanted.max_ms, |gaps| gaps.max);
        }
        let mut at_most = |what: &str, unit: &str, bound: Option<f64>, value: Option<f64>| {
            verdicts.extend(at_most(what, unit, bound, value));
        };
        let any = !self.repetitions.is_empty();
        let none = |wanted: bool| wanted.then_some(0.0);
        let failed = any.then(|| self.errors_by_code.values().sum::<u64>() as f64);
        at_most("failed requests", "", none(wanted.no_failure), failed);
        let elsewhere = any.then_some(self.errors_elsewhere as f64);
        at_most("failed elsewhere", "", none(wanted.no_failure_elsewhere), elsewhere);
        let hints = self.repetitions.iter().map(|one| one.hints);
        let hints = hints.reduce(|all, one| [all[0] + one[0], all[1] + one[1]]);
        // Without a refusal there was no overload.
        let hints = hints.filter(|hints| hints.iter().sum::<u64>() > 0);
        let silent = hints.map(|[_, silent]| silent as f64);
        at_most("refusals without retry_after_ms", "", none(wanted.hinted), silent);
        let changes =
            self.repetitions.iter().map(|one| one.found.changes.map(|all| all.worst() as f64));
        let worst = Spread::of(changes).map(|all| all.max);
        at_most("leader changes", "", wanted.leader_changes, worst);
        let p50 = |latency: &Latency| latency.quantile(0.5).map(|ns| ns as f64 / 1e6);
        let added = p50(during).zip(p50(before)).map(|(during, before)| during - before);
        at_most("added to p50", " ms", wanted.added_p50_ms, added);
        let levels = self.repetitions.iter().flat_map(|one| &one.level_ms);
        let slowest = Spread::of(levels.map(|ms| ms.map(|ms| ms as f64))).map(|all| all.max);
        at_most("level again", " ms", wanted.level_ms, slowest);
        let away = self.repetitions.iter().filter_map(|one| one.not_home).max();
        let away = away.map(|away| away as f64);
        at_most("sites that lead nothing again", "", away.map(|_| 0.0), away);
        let unsettled = self.repetitions.iter().map(|one| one.unsettled as f64);
        at_most("without final answer", "", Some(0.0), unsettled.reduce(f64::max));
        let times = self.repetitions.iter().map(|one| {
            let [before, during] = one.admitted_p99_ms;
            before.zip(during).map(|(before, during)| during / before)
        });
        let worst = Spread::of(times).map(|all| all.max);
        at_most("p99 of admitted", "x", wanted.admitted_p99, worst);
        let share = |of: fn(&Repetition) -> f64| {
            let shares = self.repetitions.iter().map(|one| of(one) / one.answered_before);
            shares.reduce(f64::min).filter(|share| share.is_finite())
        };
        let of_maximum = self.prepared.maximum.as_ref().map(|maximum| {
            let answered = self.repetitions.iter().map(|one| one.answered_during);
            answered.reduce(f64::min).map(|answered| answered / maximum.answered)
        });
        let distance = self.prepared.distance.as_ref();
        let far = wanted
            .far_maximum
            .map(|bound| ("maximum with the distance", bound, distance.and_then(Distance::share)));
        let during = wanted.throughput.map(|bound| match of_maximum {
            Some(share) => ("throughput of the maximum", bound, share),
            None => ("throughput", bound, share(|one| one.answered_during)),
        });
        let end =
            wanted.recovered.map(|bound| ("at the end", bound, share(|one| one.answered_at_end)));
        verdicts.extend(during.into_iter().chain(far).chain(end).map(|(what, bound, share)| {
            Verdict {
                target: format!("{what} >= {:.0} %", bound * 100.0),
                met: share.is_some_and(|share| share >= bound),
                measured: share
                    .map_or_else(|| NO_DATA.to_owned(), |share| format!("{:.1} %", share * 100.0)),
            }
        }));
        verdicts.extend(wanted.only.as_ref().filter(|_| any).map(|codes| self.only(codes)));
        verdicts
    }

    /// Unavailability in one fault or in all, to be held against a bound; `None` when a shard
    /// was asked for too seldom to tell.
    fn seen(&self, fault: Option<usize>, bound: f64) -> Option<Spread> {
        Spread::of(self.affected(fault).map(|shard| shard.seen_ms(bound)))
    }

    /// The shards that one fault or any hit.
    fn affected(&self, fault: Option<usize>) -> impl Iterator<Item = &Affected> {
        let all = self.repetitions.iter().flat_map(|one| &one.unavailability_ms);
        all.filter(move |shard| fault.is_none_or(|fault| shard.fault == fault))
    }

    /// Why unavailability could not be told: what was worst for that.
    fn unseen(&self, fault: Option<usize>) -> String {
        let all = || self.affected(fault);
        if all().next().is_none() {
            return NO_DATA.to_owned();
        }
        if all().any(|shard| shard.spacing_ms.is_none()) {
            return format!("{NO_DATA}: nobody asked for a shard");
        }
        if all().any(|shard| shard.ms.is_none()) {
            return format!("{NO_DATA}: a shard was never answered");
        }
        let seldom = all().filter_map(|shard| shard.spacing_ms).fold(0.0, f64::max);
        format!("{NO_DATA}: a request every {seldom:.1} ms")
    }

    /// Whether requests failed with these codes only.
    fn only(&self, codes: &[String]) -> Verdict {
        let other = |(code, _): &(&&str, &u64)| codes.iter().all(|allowed| allowed != **code);
        let others: Vec<String> = self
            .errors_by_code
            .iter()
            .filter(other)
            .map(|(code, count)| format!("{count} {code}"))
            .collect();
        Verdict {
            target: format!("only {}", codes.join(" or ")),
            met: others.is_empty(),
            measured: if others.is_empty() { "nothing else".to_owned() } else { others.join(", ") },
        }
    }
}
