//! What a run measured: latency from the planned time (the headline), latency
//! from the real send, lateness, and counts of everything that happened or did not.
//!
//! A request that was refused, never answered or never sent counts as infinitely slow:
//! whoever asked for it did not get it. Knows no socket. Tested on its percentiles.

pub(crate) use crate::latency::Latency;
use crate::plan::Op;
use crate::series::Series;
use protocol::code::{Code, OrderState, RefundState};
use std::collections::BTreeMap;

/// One operation's figures.
pub(crate) struct OpFigures {
    /// From the planned time to the answer that was asked for; infinite for what was
    /// refused, never answered or never sent.
    pub(crate) planned: Latency,
    /// From the real send to the answer, of what was admitted.
    pub(crate) raw: Latency,
    /// Sent.
    pub(crate) sent: u64,
    /// Answered as asked.
    pub(crate) ok: u64,
    /// Refusals and other answers not asked for.
    pub(crate) refused: u64,
    /// Planned, and not sent for lack of a window or a connection.
    pub(crate) not_sent: u64,
}

impl OpFigures {
    fn new() -> Self {
        let (planned, raw) = (Latency::new(), Latency::new());
        Self { planned, raw, sent: 0, ok: 0, refused: 0, not_sent: 0 }
    }

    /// From the planned time, of what was sent and not refused: what an overload is held
    /// against. It flatters whoever refuses, so it is never the headline.
    pub(crate) fn admitted(&self) -> Latency {
        self.planned.without_infinite(self.refused + self.not_sent)
    }

    fn add(&mut self, other: &Self) {
        self.planned.add(&other.planned);
        self.raw.add(&other.raw);
        self.sent += other.sent;
        self.ok += other.ok;
        self.refused += other.refused;
        self.not_sent += other.not_sent;
    }
}

/// One second of a run.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Second {
    /// Seconds from the start of the run.
    pub(crate) at_s: u64,
    /// Requests sent.
    pub(crate) sent: u64,
    /// Answered as asked.
    pub(crate) ok: u64,
    /// Refused.
    pub(crate) refused: u64,
    /// Planned-time latency, microseconds.
    pub(crate) p50_us: Option<u64>,
    /// Planned-time latency, microseconds.
    pub(crate) p90_us: Option<u64>,
    /// Planned-time latency, microseconds.
    pub(crate) p99_us: Option<u64>,
    /// Planned-time latency, microseconds.
    pub(crate) max_us: Option<u64>,
    /// Requests that were found refused, unanswered or not sent: infinite in the above.
    pub(crate) never: u64,
}

/// A request as far as its figures are concerned; nanoseconds on the run's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// What it does.
    pub(crate) op: Op,
    /// When it should have left.
    pub(crate) planned_ns: u64,
    /// When it left.
    pub(crate) sent_ns: u64,
}

/// Second level of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Business {
    /// Of a payment.
    Order(OrderState),
    /// Of a refund.
    Refund(RefundState),
}

impl Business {
    /// Name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Order(state) => state.name(),
            Self::Refund(state) => state.name(),
        }
    }
}

/// Everything one run measured.
pub(crate) struct Measure {
    /// Only requests planned from here on are measured.
    from_ns: u64,
    /// Only answers until here count into rates.
    until_ns: u64,
    /// Per operation, indexed by [`Op`].
    pub(crate) ops: Vec<OpFigures>,
    /// Real send minus planned send.
    pub(crate) lateness: Latency,
    /// Moment at which the generator was ready to send minus planned send: its
    /// own fault, where lateness includes waiting for the switch's window.
    pub(crate) own_lateness: Latency,
    /// Latency of refusals, which are infinite in the other histograms.
    pub(crate) refusals: Latency,
    /// Few differ and most are the first: found at once.
    codes: Vec<(Code, u64)>,
    /// By how they failed their request, which is not each one's code.
    failed: Vec<(&'static str, u64)>,
    states: Vec<(Business, u64)>,
    /// Sent.
    pub(crate) sent: u64,
    /// Answered, whatever the code.
    pub(crate) answered: u64,
    /// Answered as asked.
    pub(crate) ok: u64,
    /// Refusals and other answers not asked for.
    pub(crate) refused: u64,
    /// Answered as asked within the measured span.
    pub(crate) ok_in_span: u64,
    /// Sent, and no answer by the deadline.
    pub(crate) unanswered: u64,
    /// Planned, and not sent for lack of a window or a connection.
    pub(crate) not_sent: u64,
    /// Left out: the payment it refers to was not acknowledged.
    pub(crate) skipped: u64,
    /// Answers that came after the deadline or twice.
    pub(crate) late_replies: u64,
    /// Answers that could not be decoded.
    pub(crate) malformed: u64,
    /// Sent again after a lost connection or to another site.
    pub(crate) resent: u64,
    /// Second answers to requests that were sent to two sites.
    pub(crate) second_answers: u64,
    /// Those of them that were not the same as the first.
    pub(crate) differing_answers: u64,
    /// Times that a link was found silent.
    pub(crate) silences: u64,
    /// Notices that named another leader of a shard than the one before.
    pub(crate) leader_changes: u64,
    /// Refusals for lack of capacity that say when to try again, and those that do not.
    pub(crate) hints: [u64; 2],
    retried: Vec<(Code, u64)>,
    /// Per second.
    pub(crate) seconds: Vec<Second>,
    /// Per tenth of a second, when that is wanted.
    pub(crate) series: Option<Series>,
    second: Latency,
    marks: (u64, u64, u64),
    all_sent: u64,
    all_ok: u64,
    all_refused: u64,
}

impl Measure {
    /// A measurement of requests planned in this span of the run's clock.
    pub(crate) fn new(from_ns: u64, until_ns: u64) -> Self {
        Self {
            from_ns,
            until_ns,
            ops: Op::ALL.iter().map(|_| OpFigures::new()).collect(),
            lateness: Latency::new(),
            own_lateness: Latency::new(),
            refusals: Latency::new(),
            codes: Vec::new(),
            failed: Vec::new(),
            states: Vec::new(),
            sent: 0,
            answered: 0,
            ok: 0,
            refused: 0,
            ok_in_span: 0,
            unanswered: 0,
            not_sent: 0,
            skipped: 0,
            late_replies: 0,
            malformed: 0,
            resent: 0,
            second_answers: 0,
            differing_answers: 0,
            silences: 0,
            leader_changes: 0,
            hints: [0; 2],
            retried: Vec::new(),
            seconds: Vec::new(),
            series: None,
            second: Latency::small(),
            marks: (0, 0, 0),
            all_sent: 0,
            all_ok: 0,
            all_refused: 0,
        }
    }

    /// Takes in what was measured at the same time. Seconds are left out: their
    /// percentiles do not add up; the series' do.
    pub(crate) fn add(&mut self, other: &Self) {
        self.ops.iter_mut().zip(&other.ops).for_each(|(all, one)| all.add(one));
        self.lateness.add(&other.lateness);
        self.own_lateness.add(&other.own_lateness);
        self.refusals.add(&other.refusals);
        other.codes.iter().for_each(|(code, more)| count(&mut self.codes, *code, *more));
        other.failed.iter().for_each(|(how, more)| count(&mut self.failed, *how, *more));
        other.states.iter().for_each(|(state, more)| count(&mut self.states, *state, *more));
        other.retried.iter().for_each(|(code, more)| count(&mut self.retried, *code, *more));
        self.seconds.clear();
        for (all, one) in self.hints.iter_mut().zip(other.hints) {
            *all += one;
        }
        for (all, one) in [
            (&mut self.sent, other.sent),
            (&mut self.answered, other.answered),
            (&mut self.ok, other.ok),
            (&mut self.refused, other.refused),
            (&mut self.ok_in_span, other.ok_in_span),
            (&mut self.unanswered, other.unanswered),
            (&mut self.not_sent, other.not_sent),
            (&mut self.skipped, other.skipped),
            (&mut self.late_replies, other.late_replies),
            (&mut self.malformed, other.malformed),
            (&mut self.resent, other.resent),
            (&mut self.second_answers, other.second_answers),
            (&mut self.differing_answers, other.differing_answers),
            (&mut self.silences, other.silences),
            (&mut self.leader_changes, other.leader_changes),
            (&mut self.all_sent, other.all_sent),
            (&mut self.all_ok, other.all_ok),
            (&mut self.all_refused, other.all_refused),
        ] {
            *all += one;
        }
    }

    /// The span ends early.
    pub(crate) fn ends(&mut self, now_ns: u64) {
        self.until_ns = self.until_ns.min(now_ns).max(self.from_ns);
    }

    /// What is measured, in nanoseconds.
    pub(crate) fn span_ns(&self) -> u64 {
        self.until_ns - self.from_ns
    }

    /// Keeps figures over time too, from the beginning of the phase on.
    pub(crate) fn with_series(self, from_ns: u64) -> Self {
        Self { series: Some(Series::new(from_ns)), ..self }
    }

    fn counts(&self, planned_ns: u64) -> bool {
        planned_ns >= self.from_ns
    }

    /// A request became due and the generator was there to send it.
    pub(crate) fn pulled(&mut self, planned_ns: u64, now_ns: u64) {
        if let Some(series) = &mut self.series {
            series.pulled(planned_ns, now_ns);
        }
        if self.counts(planned_ns) {
            self.own_lateness.record(now_ns.saturating_sub(planned_ns));
        }
    }

    /// A request left for the first time.
    pub(crate) fn sent(&mut self, sample: Sample) {
        self.all_sent += 1;
        if let Some(series) = &mut self.series {
            series.sent(sample.sent_ns);
        }
        if self.counts(sample.planned_ns) {
            self.sent += 1;
            self.ops[sample.op as usize].sent += 1;
            self.lateness.record(sample.sent_ns.saturating_sub(sample.planned_ns));
        }
    }

    /// A request was planned and not sent.
    pub(crate) fn not_sent(&mut self, op: Op, planned_ns: u64) {
        self.second.record_infinite();
        if let Some(series) = &mut self.series {
            series.failed(planned_ns, "NOT_SENT");
        }
        if self.counts(planned_ns) {
            self.not_sent += 1;
            let figures = &mut self.ops[op as usize];
            figures.not_sent += 1;
            figures.planned.record_infinite();
        }
    }

    /// A request was left out.
    pub(crate) fn skipped(&mut self, planned_ns: u64) {
        self.skipped += u64::from(self.counts(planned_ns));
    }

    /// An answer came from a site.
    pub(crate) fn answered(
        &mut self,
        sample: Sample,
        (code, state): (Code, Business),
        site: u8,
        now_ns: u64,
    ) {
        let ok = as_asked(sample.op, code);
        if let Some(series) = &mut self.series {
            match failure(sample.op, code) {
                None => series.ok(sample.planned_ns, now_ns, site),
                Some(cause) => series.failed(sample.planned_ns, cause),
            }
        }
        let latency = now_ns.saturating_sub(sample.planned_ns);
        self.all_ok += u64::from(ok);
        self.all_refused += u64::from(!ok);
        match ok {
            true => self.second.record(latency),
            false => self.second.record_infinite(),
        }
        if ok && (self.from_ns..self.until_ns).contains(&now_ns) {
            self.ok_in_span += 1;
        }
        if !self.counts(sample.planned_ns) {
            return;
        }
        self.answered += 1;
        count(&mut self.codes, code, 1);
        if code == Code::Ok {
            count(&mut self.states, state, 1);
        }
        let figures = &mut self.ops[sample.op as usize];
        if let Some(how) = failure(sample.op, code) {
            self.refused += 1;
            figures.refused += 1;
            figures.planned.record_infinite();
            count(&mut self.failed, how, 1);
            self.refusals.record(latency);
            return;
        }
        self.ok += 1;
        figures.ok += 1;
        figures.planned.record(latency);
        figures.raw.record(now_ns.saturating_sub(sample.sent_ns));
    }

    /// An answer that ends its request: one that refuses for lack of capacity has to say
    /// when to try again.
    pub(crate) fn hint(&mut self, code: Code, retry_after_ms: u32) {
        if matches!(code, Code::Overloaded | Code::RateLimited) {
            self.hints[usize::from(retry_after_ms == 0)] += 1;
        }
    }

    /// An answer told to try elsewhere or later, which is done.
    pub(crate) fn retried(&mut self, code: Code) {
        count(&mut self.retried, code, 1);
    }

    /// Answers after which the request went out again, by code name.
    pub(crate) fn retried_by_code(&self) -> BTreeMap<&'static str, u64> {
        self.retried.iter().map(|(code, count)| (code.name(), *count)).collect()
    }

    /// The deadline passed without an answer.
    pub(crate) fn unanswered(&mut self, sample: Sample) {
        self.second.record_infinite();
        if let Some(series) = &mut self.series {
            series.failed(sample.planned_ns, "UNANSWERED");
            series.never(sample.planned_ns);
        }
        if self.counts(sample.planned_ns) {
            self.unanswered += 1;
            let figures = &mut self.ops[sample.op as usize];
            figures.planned.record_infinite();
            figures.raw.record_infinite();
        }
    }

    /// Closes a second of the live view.
    pub(crate) fn close_second(&mut self, at_s: u64) -> Second {
        let (sent, ok, refused) = self.marks;
        let us = |ns: Option<u64>| ns.map(|ns| ns / 1_000);
        let second = Second {
            at_s,
            sent: self.all_sent - sent,
            ok: self.all_ok - ok,
            refused: self.all_refused - refused,
            p50_us: us(self.second.quantile(0.5)),
            p90_us: us(self.second.quantile(0.9)),
            p99_us: us(self.second.quantile(0.99)),
            max_us: us(self.second.max()),
            never: self.second.infinite(),
        };
        self.marks = (self.all_sent, self.all_ok, self.all_refused);
        self.second.clear();
        self.seconds.push(second);
        second
    }

    /// Requests sent with those of the warm-up, which the CPU time covers too.
    pub(crate) fn all_sent(&self) -> u64 {
        self.all_sent
    }

    /// Answers by code name.
    pub(crate) fn by_code(&self) -> BTreeMap<&'static str, u64> {
        self.codes.iter().map(|(code, count)| (code.name(), *count)).collect()
    }

    /// Answers that were not what their request is entitled to, and requests without one.
    pub(crate) fn failed_by_code(&self) -> BTreeMap<&'static str, u64> {
        let without = [("UNANSWERED", self.unanswered), ("NOT_SENT", self.not_sent)];
        let failed = self.failed.iter().copied().chain(without);
        failed.filter(|(_, count)| *count > 0).collect()
    }

    /// Answers with code OK by business state.
    pub(crate) fn by_state(&self) -> BTreeMap<&'static str, u64> {
        let mut names = BTreeMap::new();
        for (state, count) in &self.states {
            *names.entry(state.name()).or_default() += count;
        }
        names
    }

    /// Planned-time and raw latency over all operations.
    pub(crate) fn overall(&self) -> (Latency, Latency) {
        let mut all = (Latency::new(), Latency::new());
        for figures in &self.ops {
            all.0.add(&figures.planned);
            all.1.add(&figures.raw);
        }
        all
    }

    /// Planned-time latency over all operations of what was sent and not refused.
    pub(crate) fn admitted(&self) -> Latency {
        let mut all = Latency::new();
        self.ops.iter().for_each(|figures| all.add(&figures.admitted()));
        all
    }
}

fn count<T: PartialEq>(counts: &mut Vec<(T, u64)>, value: T, more: u64) {
    match counts.iter_mut().find(|(known, _)| *known == value) {
        Some((_, count)) => *count += more,
        None => counts.push((value, more)),
    }
}

/// Whether an answer is what its request is entitled to: a conflict and a bad
/// signature are there to be refused, a close may come before or after its time.
pub(crate) fn as_asked(op: Op, code: Code) -> bool {
    match op {
        Op::Conflict => code == Code::IdempotencyConflict,
        Op::BadSignature => code == Code::BadSignature,
        Op::Close => matches!(code, Code::Ok | Code::OrderPaid | Code::OrderNotFound),
        Op::Reverse => matches!(code, Code::Ok | Code::HasRefund),
        Op::Pay | Op::Duplicate | Op::Query | Op::Refund => code == Code::Ok,
    }
}

/// How an answer fails its request, in a word.
pub(crate) fn failure(op: Op, code: Code) -> Option<&'static str> {
    match code {
        _ if as_asked(op, code) => None,
        // A conflict that was accepted.
        Code::Ok => Some("ACCEPTED"),
        code => Some(code.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(planned_ns: u64) -> Sample {
        Sample { op: Op::Pay, planned_ns, sent_ns: planned_ns + 10_000 }
    }

    #[test]
    fn warm_up_is_left_out_and_latency_counts_from_the_plan() {
        let mut measure = Measure::new(1_000_000, 100_000_000);
        for planned in [0, 2_000_000] {
            measure.sent(sample(planned));
            let paid = Business::Order(OrderState::Paid);
            measure.answered(sample(planned), (Code::Ok, paid), 1, planned + 3_000_000);
        }
        assert_eq!((measure.sent, measure.answered, measure.ok_in_span), (1, 1, 2));
        let pay = &measure.ops[0];
        assert!(pay.planned.quantile(1.0).unwrap() > pay.raw.quantile(1.0).unwrap());
        assert_eq!(measure.by_state()["PAID"], 1);
    }

    #[test]
    fn refusals_do_not_flatter_latency_and_conflicts_want_one() {
        let mut measure = Measure::new(0, 1_000_000_000);
        let none = Business::Order(OrderState::None);
        measure.answered(sample(0), (Code::Overloaded, none), 1, 50_000);
        let pay = &measure.ops[0];
        assert_eq!((pay.planned.count(), pay.planned.quantile(0.01)), (1, None));
        assert_eq!((pay.admitted().count(), measure.refusals.count()), (0, 1));
        let conflict = Sample { op: Op::Conflict, ..sample(0) };
        measure.answered(conflict, (Code::IdempotencyConflict, none), 1, 50_000);
        assert_eq!((measure.ok, measure.refused), (1, 1));
        assert_eq!(measure.by_code()["OVERLOADED"], 1);
        assert_eq!(measure.failed_by_code(), BTreeMap::from([("OVERLOADED", 1)]));
    }

    #[test]
    fn what_was_refused_or_never_sent_is_infinite_and_admitted_is_told_beside_it() {
        let mut measure = Measure::new(1_000_000, 1_000_000_000);
        let told = (Code::Ok, Business::Order(OrderState::Paid));
        for n in 0..98 {
            measure.answered(sample(2_000_000 + n), told, 1, 3_000_000 + n);
        }
        measure.answered(sample(2_000_000), (Code::Overloaded, told.1), 1, 2_050_000);
        measure.not_sent(Op::Query, 2_000_000);
        // The warm-up counts in neither.
        measure.not_sent(Op::Query, 0);
        measure.answered(sample(0), (Code::Overloaded, told.1), 1, 50_000);
        let mut both = Measure::new(0, 1_000_000_000);
        both.add(&measure);
        both.add(&measure);
        for (measure, times) in [(&measure, 1), (&both, 2)] {
            let ((planned, raw), admitted) = (measure.overall(), measure.admitted());
            assert_eq!((planned.count(), planned.infinite()), (100 * times, 2 * times));
            assert!(planned.quantile(0.98).is_some());
            assert_eq!((planned.quantile(0.99), planned.max()), (None, None));
            assert_eq!((admitted.count(), admitted.infinite()), (98 * times, 0));
            assert!(admitted.max().is_some());
            assert_eq!((raw.count(), raw.infinite()), (98 * times, 0));
            let query = &measure.ops[Op::Query as usize];
            assert_eq!((query.not_sent, query.planned.infinite()), (times, times));
            assert_eq!(query.admitted().count(), 0);
        }
    }

    #[test]
    fn a_second_of_the_live_view_is_infinite_where_nothing_was_got() {
        let mut measure = Measure::new(0, 1_000_000_000);
        let told = (Code::Ok, Business::Order(OrderState::Paid));
        (0..9).for_each(|_| measure.answered(sample(0), told, 1, 1_000_000));
        measure.not_sent(Op::Pay, 0);
        let second = measure.close_second(1);
        assert!(second.p90_us.is_some());
        assert_eq!((second.p99_us, second.max_us, second.never), (None, None, 1));
        measure.answered(sample(0), (Code::Overloaded, told.1), 1, 1_000_000);
        let second = measure.close_second(2);
        assert_eq!((second.p50_us, second.refused, second.never), (None, 1, 1));
        assert_eq!(measure.close_second(3).never, 0);
    }

    #[test]
    fn a_failure_is_what_the_request_was_not_entitled_to() {
        let none = Business::Order(OrderState::None);
        let told = [
            (Op::Close, Code::OrderPaid),
            (Op::Reverse, Code::HasRefund),
            (Op::Conflict, Code::IdempotencyConflict),
            (Op::Conflict, Code::Ok),
            (Op::Pay, Code::OrderPaid),
        ];
        let mut measure = Measure::new(0, 1_000_000_000);
        for (op, code) in told {
            measure.answered(Sample { op, ..sample(0) }, (code, none), 1, 50_000);
        }
        measure.unanswered(sample(0));
        measure.not_sent(Op::Pay, 0);
        let failed =
            [("ACCEPTED", 1), (Code::OrderPaid.name(), 1), ("UNANSWERED", 1), ("NOT_SENT", 1)];
        assert_eq!(measure.failed_by_code(), BTreeMap::from(failed));
        let mut both = Measure::new(0, 1_000_000_000);
        both.add(&measure);
        both.add(&measure);
        assert_eq!(both.failed_by_code()["ACCEPTED"], 2);
    }

    #[test]
    fn every_kind_of_request_has_its_own_right_answers() {
        let right = [
            (Op::Pay, vec![Code::Ok]),
            (Op::Duplicate, vec![Code::Ok]),
            (Op::Conflict, vec![Code::IdempotencyConflict]),
            (Op::Query, vec![Code::Ok]),
            (Op::Refund, vec![Code::Ok]),
            (Op::BadSignature, vec![Code::BadSignature]),
            (Op::Close, vec![Code::Ok, Code::OrderNotFound, Code::OrderPaid]),
            (Op::Reverse, vec![Code::Ok, Code::HasRefund]),
        ];
        for (op, codes) in right {
            let found: Vec<Code> =
                Code::ALL.iter().copied().filter(|code| as_asked(op, *code)).collect();
            assert_eq!(found, codes, "{op:?}");
        }
    }
}
