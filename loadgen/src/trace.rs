//! What became of every request of a phase, and what that says about each
//! shard: when it was not available, which requests failed, how long the others
//! took.
//!
//! Pure. Tested on histories made by hand.

use crate::plan::Op;
use protocol::code::Code;
use std::collections::BTreeMap;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this answer.
    Answered(Code),
    /// Without one by its deadline.
    Unanswered,
    /// It was never sent.
    NotSent,
}

/// One request, nanoseconds since the phase began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// When it should have left.
    pub(crate) planned_ns: u64,
    /// When it ended.
    pub(crate) done_ns: u64,
    /// Shard that it is about.
    pub(crate) shard: u16,
    /// What it does.
    pub(crate) op: Op,
    /// How it ended.
    pub(crate) end: End,
}

impl Done {
    /// Whether it was answered as asked.
    pub(crate) fn is_ok(&self) -> bool {
        matches!(self.end, End::Answered(code) if crate::measure::as_asked(self.op, code))
    }

    /// How it failed, in a word.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        match self.end {
            End::Answered(code) => crate::measure::failure(self.op, code),
            End::Unanswered => Some("UNANSWERED"),
            End::NotSent => Some("NOT_SENT"),
        }
    }
}

/// A stretch in which a shard answered nothing although it was asked,
/// nanoseconds since the phase began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gap {
    /// When it began.
    pub(crate) from_ns: u64,
    /// When the next request was answered as asked.
    pub(crate) until_ns: u64,
}

impl Gap {
    /// How long it was.
    pub(crate) fn length_ns(&self) -> u64 {
        self.until_ns - self.from_ns
    }
}

/// The completions of one shard and the gaps between them.
///
/// A gap ends with a request that was answered as asked. It begins with the first
/// one planned behind the answer before: earlier nobody waited for the shard. Those
/// that were asked before and are still open say nothing, for it may be the channel
/// that keeps them waiting.
pub(crate) struct Availability {
    /// When requests were answered as asked, rising.
    completed: Vec<u64>,
    /// Per gap, the one before the completion of the same place and one behind the
    /// last: when its first request was planned.
    asked: Vec<u64>,
    /// When requests were planned, rising.
    planned: Vec<u64>,
    end_ns: u64,
}

impl Availability {
    /// Of a shard in a phase that ended at `end_ns`.
    pub(crate) fn new(trace: &[Done], shard: u16, end_ns: u64) -> Self {
        let of_shard = || trace.iter().filter(|done| done.shard == shard);
        let ok = of_shard().filter(|done| done.is_ok());
        let mut completed: Vec<u64> = ok.map(|done| done.done_ns).collect();
        completed.sort_unstable();
        let mut asked = vec![u64::MAX; completed.len() + 1];
        let mut planned = Vec::new();
        for done in of_shard() {
            let gap = completed.partition_point(|at| *at <= done.planned_ns);
            asked[gap] = asked[gap].min(done.planned_ns);
            planned.push(done.planned_ns);
        }
        planned.sort_unstable();
        Self { completed, asked, planned, end_ns }
    }

    /// The longest gap that reaches into this span. `None` when nothing can be said:
    /// nothing was answered in the whole phase, or there is none and nobody asked for the
    /// shard meanwhile.
    pub(crate) fn longest_gap(&self, span: (u64, u64)) -> Option<Gap> {
        if self.completed.is_empty() {
            return None;
        }
        let (from_ns, until_ns) = span;
        let meets = |gap: &Gap| gap.from_ns < until_ns && gap.until_ns > from_ns;
        let none = (self.asked_in(span) > 0).then(Gap::default);
        self.gaps().filter(meets).max_by_key(Gap::length_ns).or(none)
    }

    /// Mean time between the requests that were planned in this span, nanoseconds: nothing
    /// shorter is seen for sure. `None` without any.
    pub(crate) fn spacing_ns(&self, span: (u64, u64)) -> Option<f64> {
        let count = self.asked_in(span);
        (count > 0).then(|| span.1.saturating_sub(span.0) as f64 / count as f64)
    }

    /// How many requests were planned in this span.
    fn asked_in(&self, (from_ns, until_ns): (u64, u64)) -> usize {
        let before = |bound: u64| self.planned.partition_point(|at| *at < bound);
        before(until_ns).saturating_sub(before(from_ns))
    }

    /// All gaps, in the order of time.
    fn gaps(&self) -> impl Iterator<Item = Gap> {
        let gap = |(at, asked_ns): (usize, &u64)| Gap {
            from_ns: *asked_ns,
            until_ns: self.completed.get(at).copied().unwrap_or(self.end_ns),
        };
        self.asked.iter().enumerate().map(gap).filter(|gap| gap.from_ns < gap.until_ns)
    }
}

/// The longest gaps of a shard, at most `count` of those that last for `least_ns` at
/// least, in the order of time.
pub(crate) fn longest_gaps(availability: &Availability, least_ns: u64, count: usize) -> Vec<Gap> {
    let mut gaps: Vec<Gap> =
        availability.gaps().filter(|gap| gap.length_ns() >= least_ns).collect();
    gaps.sort_unstable_by_key(|gap| std::cmp::Reverse(gap.length_ns()));
    gaps.truncate(count);
    gaps.sort_unstable_by_key(|gap| gap.from_ns);
    gaps
}

/// Failed requests that were planned in this span, by what they ended with.
pub(crate) fn failures<'a>(
    trace: impl Iterator<Item = &'a Done>,
    (from_ns, until_ns): (u64, u64),
) -> BTreeMap<&'static str, u64> {
    let mut failures = BTreeMap::new();
    for done in trace.filter(|done| (from_ns..until_ns).contains(&done.planned_ns)) {
        if let Some(name) = done.failure() {
            *failures.entry(name).or_default() += 1;
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn done(shard: u16, planned_ms: u64, done_ms: u64, end: End) -> Done {
        let (planned_ns, done_ns) = (planned_ms * MS, done_ms * MS);
        Done { planned_ns, done_ns, shard, op: Op::Pay, end }
    }

    fn ok(planned_ms: u64, done_ms: u64) -> Done {
        done(0, planned_ms, done_ms, End::Answered(Code::Ok))
    }

    fn gap(trace: &[Done], span_ms: (u64, u64)) -> (u64, u64) {
        let span = (span_ms.0 * MS, span_ms.1 * MS);
        let gap = Availability::new(trace, 0, 1_000 * MS).longest_gap(span).unwrap();
        (gap.from_ns / MS, gap.until_ns / MS)
    }

    #[test]
    fn a_gap_runs_from_the_first_request_behind_an_answer_to_the_next_answer() {
        let trace = [ok(0, 1), ok(10, 11), ok(12, 90), ok(20, 91), ok(95, 96)];
        assert_eq!(gap(&trace, (0, 1_000)), (12, 90));
    }

    #[test]
    fn a_shard_that_nobody_asks_is_not_unavailable() {
        let trace = [ok(0, 3), ok(500, 501)];
        assert_eq!(gap(&trace, (0, 1_000)), (0, 3));
        // Nor one whose only open request waits for the channel.
        let trace = [ok(0, 3), ok(5, 900), ok(6, 7), ok(300, 304), ok(600, 603)];
        assert_eq!(gap(&trace, (0, 1_000)), (300, 304));
    }

    #[test]
    fn of_a_shard_that_nobody_asks_meanwhile_nothing_is_said() {
        let trace = [ok(0, 3), ok(500, 501), ok(700, 701)];
        let availability = Availability::new(&trace, 0, 1_000 * MS);
        assert_eq!(availability.longest_gap((100 * MS, 400 * MS)), None);
        assert_eq!(availability.spacing_ns((100 * MS, 400 * MS)), None);
        let found = availability.longest_gap((400 * MS, 1_000 * MS)).unwrap();
        assert_eq!(found.length_ns(), MS);
        assert_eq!(availability.spacing_ns((400 * MS, 1_000 * MS)), Some(300e6));
    }

    #[test]
    fn what_fails_holds_its_gap_open() {
        let lost = done(0, 20, 700, End::Unanswered);
        let trace = [ok(0, 1), lost, ok(400, 401), ok(402, 403)];
        assert_eq!(gap(&trace, (0, 1_000)), (20, 401));
        let refused = done(0, 500, 501, End::Answered(Code::NoLeader));
        assert_eq!(gap(&[ok(0, 1), refused], (0, 1_000)), (500, 1_000));
    }

    #[test]
    fn only_gaps_that_reach_into_the_span_count() {
        let trace = [ok(0, 1), ok(2, 200), ok(300, 301), ok(302, 340)];
        assert_eq!(gap(&trace, (0, 1_000)), (2, 200));
        assert_eq!(gap(&trace, (250, 1_000)), (302, 340));
        assert_eq!(gap(&trace, (190, 195)), (2, 200));
    }

    #[test]
    fn a_shard_without_any_answer_says_nothing() {
        let trace = [done(0, 1, 2, End::NotSent), ok(5, 6)];
        assert!(Availability::new(&trace, 1, MS).longest_gap((0, MS)).is_none());
        assert!(Availability::new(&trace[..1], 0, MS).longest_gap((0, MS)).is_none());
    }

    #[test]
    fn the_longest_gaps_are_told_in_the_order_of_time() {
        let trace = [ok(0, 30), ok(40, 45), ok(50, 100), ok(110, 190), ok(200, 201)];
        let availability = Availability::new(&trace, 0, 1_000 * MS);
        let found = longest_gaps(&availability, 20 * MS, 2);
        let found: Vec<_> = found.iter().map(|gap| (gap.from_ns / MS, gap.until_ns / MS)).collect();
        assert_eq!(found, [(50, 100), (110, 190)]);
    }

    #[test]
    fn failures_are_counted_by_their_plan_and_a_refused_conflict_is_none() {
        let conflict = |code| Done { op: Op::Conflict, ..done(0, 5, 6, End::Answered(code)) };
        let trace = [
            ok(1, 2),
            done(0, 5, 900, End::Unanswered),
            done(1, 5, 6, End::Answered(Code::Overloaded)),
            conflict(Code::IdempotencyConflict),
            conflict(Code::Ok),
            done(0, 50, 51, End::NotSent),
        ];
        let found = failures(trace.iter(), (0, 10 * MS));
        let expected = [("ACCEPTED", 1), ("OVERLOADED", 1), ("UNANSWERED", 1)];
        assert!(found.into_iter().eq(expected));
    }
}
