//! What happened when: the figures of a phase per tenth of a second, in bounded
//! memory.
//!
//! Latency and failures stand where the request was planned, everything else where
//! it happened. A phase that lasts longer than the points reach has its intervals
//! doubled, as often as needed: histograms merge, so that its percentiles stay true.
//! Allocates once per interval, never per request. Pure. Tested on hand-made times.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Length of an interval, as long as the phase is short.
const INTERVAL_NS: u64 = 100_000_000;
/// Most intervals.
pub(crate) const POINTS_MAX: usize = 3_000;
/// Intervals whose histogram is at hand; what is answered later than that is sorted
/// in one by one.
const OPEN_MAX: usize = 128;
/// Causes of failures and sites that are told apart; the last takes the others in.
const KINDS_MAX: usize = 12;
/// Latencies are kept as microseconds up to 200 s, exact to a hundredth.
const HIGHEST_US: u64 = 200_000_000;

/// Values with their counts, rising: what is left of a histogram that nobody adds to.
type Sparse = Vec<(u32, u32)>;

/// One interval.
#[derive(Clone, Debug, Default)]
struct Point {
    planned: u32,
    sent: u32,
    ok: u32,
    by_site: [u32; KINDS_MAX],
    failed: [u32; KINDS_MAX],
    in_flight: u32,
    waiting: u32,
    late_p99_us: u32,
    late_max_us: u32,
    latency: Sparse,
    never: u32,
}

/// The names behind the places of an array.
#[derive(Clone, Debug)]
struct Kinds<T>(Vec<T>);

impl<T: PartialEq + Copy> Kinds<T> {
    /// The place of a kind; few differ, and most are the first.
    fn place(&mut self, kind: T) -> usize {
        match self.0.iter().position(|known| *known == kind) {
            Some(place) => place,
            None if self.0.len() < KINDS_MAX - 1 => {
                self.0.push(kind);
                self.0.len() - 1
            }
            None => KINDS_MAX - 1,
        }
    }
}

/// An interval that was just looked up: the next request is mostly in it too.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    from_ns: u64,
    until_ns: u64,
    at: usize,
}

/// The figures over time.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    from_ns: u64,
    interval_ns: u64,
    points: Vec<Point>,
    /// Histograms of the last points.
    open: VecDeque<Histogram<u32>>,
    /// The point of the first of them.
    first_open: usize,
    spare: Vec<Histogram<u32>>,
    causes: Kinds<&'static str>,
    sites: Kinds<u8>,
    late: Histogram<u32>,
    late_at: usize,
    planned_at: Cursor,
    now_at: Cursor,
}

fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, HIGHEST_US, 2).expect("constant bounds are legal")
}

impl Series {
    /// Of a phase that begins then.
    pub(crate) fn new(from_ns: u64) -> Self {
        Self {
            from_ns,
            interval_ns: INTERVAL_NS,
            points: Vec::with_capacity(POINTS_MAX),
            open: VecDeque::with_capacity(OPEN_MAX + 1),
            first_open: 0,
            spare: Vec::with_capacity(OPEN_MAX + 1),
            causes: Kinds(Vec::with_capacity(KINDS_MAX)),
            sites: Kinds(Vec::with_capacity(KINDS_MAX)),
            late: histogram(),
            late_at: 0,
            planned_at: Cursor::default(),
            now_at: Cursor::default(),
        }
    }

    /// A request became due, and the generator was there to send it at `now_ns`.
    pub(crate) fn pulled(&mut self, planned_ns: u64, now_ns: u64) {
        let at = self.planned(planned_ns);
        self.points[at].planned += 1;
        let now = self.now(now_ns);
        if now != self.late_at {
            self.close_lateness();
            self.late_at = now;
        }
        self.late.saturating_record(now_ns.saturating_sub(planned_ns) / 1_000);
    }

    /// A request left.
    pub(crate) fn sent(&mut self, sent_ns: u64) {
        let at = self.now(sent_ns);
        self.points[at].sent += 1;
    }

    /// A request was answered as asked by this site.
    pub(crate) fn ok(&mut self, planned_ns: u64, now_ns: u64, site: u8) {
        let now = self.now(now_ns);
        let site = self.sites.place(site);
        self.points[now].ok += 1;
        self.points[now].by_site[site] += 1;
        let us = now_ns.saturating_sub(planned_ns) / 1_000;
        let at = self.planned(planned_ns);
        match at.checked_sub(self.first_open).and_then(|open| self.open.get_mut(open)) {
            Some(histogram) => histogram.saturating_record(us),
            None => {
                let value = self.late.highest_equivalent(us.min(HIGHEST_US)) as u32;
                insert(&mut self.points[at].latency, value, 1);
            }
        }
    }

    /// A request failed in this way.
    pub(crate) fn failed(&mut self, planned_ns: u64, cause: &'static str) {
        let (at, cause) = (self.planned(planned_ns), self.causes.place(cause));
        self.points[at].failed[cause] += 1;
    }

    /// A request was never answered.
    pub(crate) fn never(&mut self, planned_ns: u64) {
        let at = self.planned(planned_ns);
        self.points[at].never += 1;
    }

    /// How many requests are in flight and wait to be sent at this moment.
    pub(crate) fn look(&mut self, now_ns: u64, in_flight: usize, waiting: usize) {
        let at = self.now(now_ns);
        let point = &mut self.points[at];
        point.in_flight = point.in_flight.max(in_flight as u32);
        point.waiting = point.waiting.max(waiting as u32);
    }

    /// Answers of the last second's full intervals by site.
    pub(crate) fn last_second(&self) -> Vec<(u8, u64)> {
        let count = (1_000_000_000 / self.interval_ns).max(1) as usize;
        let full = self.points.len().saturating_sub(1);
        let recent = &self.points[full.saturating_sub(count)..full];
        let of = |at: usize| recent.iter().map(|point| u64::from(point.by_site[at])).sum();
        self.sites.0.iter().enumerate().map(|(at, site)| (*site, of(at))).collect()
    }

    fn planned(&mut self, ns: u64) -> usize {
        if !(self.planned_at.from_ns..self.planned_at.until_ns).contains(&ns) {
            self.planned_at = self.find(ns);
        }
        self.planned_at.at
    }

    fn now(&mut self, ns: u64) -> usize {
        if !(self.now_at.from_ns..self.now_at.until_ns).contains(&ns) {
            self.now_at = self.find(ns);
        }
        self.now_at.at
    }

    fn find(&mut self, ns: u64) -> Cursor {
        let since_ns = ns.saturating_sub(self.from_ns);
        while since_ns / self.interval_ns >= POINTS_MAX as u64 {
            self.coarsen();
        }
        let at = (since_ns / self.interval_ns) as usize;
        while self.points.len() <= at {
            self.open_next();
        }
        let from_ns = self.from_ns + at as u64 * self.interval_ns;
        // What lies before the beginning belongs to the first.
        let reach = if at == 0 { 0 } else { from_ns };
        Cursor { from_ns: reach, until_ns: from_ns + self.interval_ns, at }
    }

    fn open_next(&mut self) {
        self.points.push(Point::default());
        self.open.push_back(self.spare.pop().unwrap_or_else(histogram));
        if self.open.len() > OPEN_MAX {
            self.close_first();
        }
    }

    /// Puts the first open histogram to its point.
    fn close_first(&mut self) {
        let Some(mut histogram) = self.open.pop_front() else { return };
        store(&histogram, &mut self.points[self.first_open].latency);
        self.first_open += 1;
        histogram.reset();
        self.spare.push(histogram);
    }

    fn close_lateness(&mut self) {
        if let Some(point) = self.points.get_mut(self.late_at).filter(|_| !self.late.is_empty()) {
            let p99 = self.late.value_at_quantile(0.99) as u32;
            point.late_p99_us = point.late_p99_us.max(p99);
            point.late_max_us = point.late_max_us.max(self.late.max() as u32);
        }
        self.late.reset();
    }

    /// Doubles the intervals.
    fn coarsen(&mut self) {
        self.close_lateness();
        while !self.open.is_empty() {
            self.close_first();
        }
        let count = self.points.len().div_ceil(2);
        for at in 0..count {
            let mut first = std::mem::take(&mut self.points[2 * at]);
            if let Some(second) = self.points.get(2 * at + 1) {
                first.add(second);
            }
            self.points[at] = first;
        }
        self.points.truncate(count);
        self.interval_ns *= 2;
        // The last one goes on.
        self.first_open = count.saturating_sub(1);
        if count > 0 {
            self.open.push_back(self.spare.pop().unwrap_or_else(histogram));
        }
        self.late_at /= 2;
        (self.planned_at, self.now_at) = (Cursor::default(), Cursor::default());
    }

    /// Ends the phase.
    pub(crate) fn finish(mut self) -> Timeline {
        self.close_lateness();
        while !self.open.is_empty() {
            self.close_first();
        }
        let mut causes: Vec<String> = self.causes.0.iter().map(ToString::to_string).collect();
        causes.push("OTHER".to_owned());
        let mut sites: Vec<String> = self.sites.0.iter().map(ToString::to_string).collect();
        sites.push("other".to_owned());
        Timeline { interval_ns: self.interval_ns, points: self.points, causes, sites }
    }
}

impl Point {
    fn add(&mut self, other: &Self) {
        self.planned += other.planned;
        self.sent += other.sent;
        self.ok += other.ok;
        self.never += other.never;
        let add = |all: &mut [u32; KINDS_MAX], one: &[u32; KINDS_MAX]| {
            all.iter_mut().zip(one).for_each(|(all, one)| *all += one);
        };
        add(&mut self.by_site, &other.by_site);
        add(&mut self.failed, &other.failed);
        // No sums: the larger tells what to look at.
        self.in_flight = self.in_flight.max(other.in_flight);
        self.waiting = self.waiting.max(other.waiting);
        self.late_p99_us = self.late_p99_us.max(other.late_p99_us);
        self.late_max_us = self.late_max_us.max(other.late_max_us);
        let mut merged = Sparse::with_capacity(self.latency.len() + other.latency.len());
        merge(&self.latency, &other.latency, &mut merged);
        self.latency = merged;
    }

    /// Requests that failed, each infinitely slow.
    fn infinite(&self) -> u64 {
        self.failed.iter().map(|count| u64::from(*count)).sum()
    }

    /// Microseconds below which this share of the latencies lies.
    fn quantile(&self, share: f64) -> Option<u32> {
        let finite: u64 = self.latency.iter().map(|(_, count)| u64::from(*count)).sum();
        let rank = (share * (finite + self.infinite()) as f64 - 1e-6).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.latency.iter().find(|(_, count)| {
            seen += u64::from(*count);
            seen >= rank
        });
        found.map(|(value, _)| *value)
    }
}

/// Where another timeline's kinds stand in `names`, which takes in those it lacks. The
/// last name stands for all others, and at the last place.
fn places(names: &mut Vec<String>, other: &[String]) -> [usize; KINDS_MAX] {
    let mut places = [KINDS_MAX - 1; KINDS_MAX];
    for (at, name) in other.iter().enumerate().take(other.len().saturating_sub(1)) {
        let known = names.len().saturating_sub(1);
        places[at] = match names.iter().take(known).position(|one| one == name) {
            Some(place) => place,
            None if known < KINDS_MAX - 1 => {
                names.insert(known, name.clone());
                known
            }
            None => KINDS_MAX - 1,
        };
    }
    places
}

fn moved(counts: &[u32; KINDS_MAX], places: &[usize; KINDS_MAX]) -> [u32; KINDS_MAX] {
    let mut moved = [0; KINDS_MAX];
    counts.iter().zip(places).for_each(|(count, place)| moved[*place] += count);
    moved
}

fn insert(sparse: &mut Sparse, value: u32, count: u32) {
    match sparse.binary_search_by_key(&value, |(known, _)| *known) {
        Ok(at) => sparse[at].1 += count,
        Err(at) => sparse.insert(at, (value, count)),
    }
}

/// Adds a histogram's counts.
fn store(histogram: &Histogram<u32>, sparse: &mut Sparse) {
    let values = histogram
        .iter_recorded()
        .map(|value| (value.value_iterated_to() as u32, value.count_at_value()));
    match sparse.is_empty() {
        true => sparse.extend(values),
        false => values.for_each(|(value, count)| insert(sparse, value, count)),
    }
}

fn merge(a: &Sparse, b: &Sparse, merged: &mut Sparse) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let first = match (a.peek(), b.peek()) {
            (None, None) => return,
            (Some(one), Some(other)) if one.0 == other.0 => {
                merged.push((one.0, one.1 + other.1));
                a.next();
                b.next();
                continue;
            }
            (Some(one), Some(other)) if one.0 > other.0 => b.next(),
            (Some(_), _) => a.next(),
            (None, Some(_)) => b.next(),
        };
        merged.extend(first);
    }
}

/// The figures of a phase over time, complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    interval_ns: u64,
    points: Vec<Point>,
    causes: Vec<String>,
    sites: Vec<String>,
}

/// A timeline as it stands in the JSON: one array per figure, one value per interval.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Columns {
    /// Length of an interval.
    interval_ms: u64,
    planned: Vec<u32>,
    sent: Vec<u32>,
    ok: Vec<u32>,
    /// Answered as asked, by the site that answered.
    by_site: BTreeMap<String, Vec<u32>>,
    /// By their planned time.
    failed: BTreeMap<String, Vec<u32>>,
    /// By planned time; `null` without data, or infinite: what `failed` counts never came.
    p50_us: Vec<Option<u32>>,
    p90_us: Vec<Option<u32>>,
    p99_us: Vec<Option<u32>>,
    max_us: Vec<Option<u32>>,
    /// Never answered, by planned time.
    never: Vec<u32>,
    in_flight: Vec<u32>,
    waiting: Vec<u32>,
    late_p99_us: Vec<u32>,
    late_max_us: Vec<u32>,
}

impl Timeline {
    /// Takes in the figures of another worker of the same phase.
    pub(crate) fn add(&mut self, mut other: Self) {
        if self.interval_ns == 0 {
            *self = other;
            return;
        }
        while self.interval_ns < other.interval_ns {
            self.coarsen();
        }
        while other.interval_ns > 0 && other.interval_ns < self.interval_ns {
            other.coarsen();
        }
        let sites = places(&mut self.sites, &other.sites);
        let causes = places(&mut self.causes, &other.causes);
        if self.points.len() < other.points.len() {
            self.points.resize(other.points.len(), Point::default());
        }
        for (all, mut one) in self.points.iter_mut().zip(other.points) {
            one.by_site = moved(&one.by_site, &sites);
            one.failed = moved(&one.failed, &causes);
            // At the same moment, not one after the other.
            let (in_flight, waiting) = (all.in_flight + one.in_flight, all.waiting + one.waiting);
            all.add(&one);
            (all.in_flight, all.waiting) = (in_flight, waiting);
        }
    }

    fn coarsen(&mut self) {
        let pairs = self.points.chunks(2).map(|pair| {
            let mut first = pair[0].clone();
            pair.iter().skip(1).for_each(|second| first.add(second));
            first
        });
        self.points = pairs.collect();
        self.interval_ns *= 2;
    }

    /// Leaves out what lies behind `end_ns` after the beginning.
    pub(crate) fn until(&mut self, end_ns: u64) {
        if self.interval_ns > 0 {
            self.points.truncate(end_ns.div_ceil(self.interval_ns) as usize);
        }
    }

    /// As arrays.
    pub(crate) fn columns(&self) -> Columns {
        let points = &self.points;
        let of = |value: &dyn Fn(&Point) -> u32| points.iter().map(value).collect::<Vec<u32>>();
        let kinds = |names: &[String], of_kind: &dyn Fn(&Point, usize) -> u32| {
            let column = |at: usize| of(&|point| of_kind(point, at.min(KINDS_MAX - 1)));
            let last = names.len().saturating_sub(1);
            let place = |at: usize| if at == last { KINDS_MAX - 1 } else { at };
            let named = names.iter().enumerate();
            named
                .map(|(at, name)| (name.clone(), column(place(at))))
                .filter(|(_, values)| values.iter().any(|value| *value > 0))
                .collect()
        };
        let quantile = |share: f64| points.iter().map(|point| point.quantile(share)).collect();
        Columns {
            interval_ms: self.interval_ns / 1_000_000,
            planned: of(&|point| point.planned),
            sent: of(&|point| point.sent),
            ok: of(&|point| point.ok),
            by_site: kinds(&self.sites, &|point, at| point.by_site[at]),
            failed: kinds(&self.causes, &|point, at| point.failed[at]),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            max_us: quantile(1.0),
            never: of(&|point| point.never),
            in_flight: of(&|point| point.in_flight),
            waiting: of(&|point| point.waiting),
            late_p99_us: of(&|point| point.late_p99_us),
            late_max_us: of(&|point| point.late_max_us),
        }
    }

    /// Length of an interval, nanoseconds.
    pub(crate) fn interval_ns(&self) -> u64 {
        self.interval_ns
    }

    /// Latencies of each interval, microseconds with their counts, and how many
    /// requests failed, each infinitely slow.
    pub(crate) fn latencies(&self) -> impl Iterator<Item = (&[(u32, u32)], u64)> {
        self.points.iter().map(|point| (point.latency.as_slice(), point.infinite()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const START: u64 = 5_000 * MS;

    fn at(ms: u64) -> u64 {
        START + ms * MS
    }

    #[test]
    fn latency_and_failures_stand_at_the_plan_and_answers_where_they_came() {
        let mut series = Series::new(START);
        series.pulled(at(50), at(51));
        series.sent(at(52));
        series.ok(at(50), at(250), 2);
        series.failed(at(60), "NO_LEADER");
        series.never(at(60));
        series.look(at(220), 7, 3);
        series.look(at(230), 4, 9);
        let columns = series.finish().columns();
        assert_eq!((&columns.planned, &columns.sent), (&vec![1, 0, 0], &vec![1, 0, 0]));
        assert_eq!(columns.ok, [0, 0, 1]);
        assert_eq!(columns.by_site["2"], [0, 0, 1]);
        assert_eq!((columns.by_site.len(), columns.failed.len()), (1, 1));
        assert_eq!(
            (&columns.failed["NO_LEADER"], &columns.never),
            (&vec![1, 0, 0], &vec![1, 0, 0])
        );
        let p50 = columns.p50_us[0].unwrap();
        assert!((200_000..=202_000).contains(&p50), "{p50}");
        // The one that failed is the slowest.
        assert_eq!((columns.p99_us[0], columns.max_us[0], columns.p50_us[2]), (None, None, None));
        assert_eq!((columns.in_flight[2], columns.waiting[2]), (7, 9));
        assert!((1_000..=1_010).contains(&columns.late_max_us[0]));
    }

    #[test]
    fn what_was_refused_or_never_sent_is_the_slowest_of_its_interval() {
        for cause in ["OVERLOADED", "NOT_SENT", "UNANSWERED"] {
            let mut series = Series::new(START);
            (0..9).for_each(|n| series.ok(at(n), at(n + 5), 1));
            series.failed(at(9), cause);
            // The next interval is not concerned.
            series.ok(at(110), at(115), 1);
            let columns = series.finish().columns();
            assert!(columns.p90_us[0].is_some() && columns.max_us[1].is_some(), "{cause}");
            assert_eq!((columns.p99_us[0], columns.max_us[0]), (None, None), "{cause}");
        }
    }

    #[test]
    fn a_long_phase_is_coarsened_and_loses_nothing() {
        let (mut series, seconds) = (Series::new(START), 1_000);
        for second in 0..seconds {
            for n in 0..10 {
                let planned = at(second * 1_000 + n * 100);
                series.pulled(planned, planned);
                series.sent(planned);
                series.ok(planned, planned + (n + 1) * MS, (second % 3) as u8 + 1);
            }
        }
        assert!(series.points.len() <= POINTS_MAX && series.open.len() <= OPEN_MAX);
        let columns = series.finish().columns();
        assert_eq!(columns.interval_ms, 400);
        assert_eq!(columns.ok.len(), 2_500);
        assert_eq!(columns.ok.iter().sum::<u32>(), 10_000);
        assert_eq!(columns.planned.iter().sum::<u32>(), 10_000);
        let by_site: u32 = columns.by_site.values().flatten().sum();
        assert_eq!((columns.by_site.len(), by_site), (3, 10_000));
        // Requests 0 to 3 of a second: the percentile of the merged interval is true.
        assert!((4_000..=4_050).contains(&columns.max_us[0].unwrap()));
        assert!((2_000..=2_050).contains(&columns.p50_us[0].unwrap()));
    }

    #[test]
    fn what_is_answered_very_late_still_counts_at_its_plan() {
        let mut series = Series::new(START);
        for ms in (0..20_000).step_by(100) {
            series.ok(at(ms), at(ms) + MS, 1);
        }
        assert!(series.first_open > 0);
        series.ok(at(10), at(19_990), 1);
        series.ok(at(20), at(19_990), 1);
        let timeline = series.finish();
        let (latencies, never) = timeline.latencies().next().unwrap();
        assert_eq!((latencies.iter().map(|(_, count)| count).sum::<u32>(), never), (3, 0));
        let max = timeline.columns().max_us[0].unwrap();
        assert!((19_900_000..20_200_000).contains(&max), "{max}");
    }

    #[test]
    fn kinds_beyond_the_last_place_are_taken_together() {
        let mut series = Series::new(0);
        for site in 1..=40 {
            series.ok(0, MS, site);
        }
        let columns = series.finish().columns();
        assert_eq!(columns.by_site.len(), KINDS_MAX);
        assert_eq!(columns.by_site["other"], [40 - (KINDS_MAX as u32 - 1)]);
    }

    #[test]
    fn a_far_moment_cannot_make_it_large() {
        let mut series = Series::new(0);
        series.ok(0, MS, 1);
        series.failed(u64::MAX / 4, "UNANSWERED");
        assert!(series.points.len() <= POINTS_MAX);
        let columns = series.finish().columns();
        assert_eq!((columns.ok[0], columns.failed["UNANSWERED"].iter().sum::<u32>()), (1, 1));
    }

    #[test]
    fn the_end_can_be_cut_off() {
        let mut series = Series::new(0);
        (0..10).for_each(|n| series.sent(n * 100 * MS));
        let mut timeline = series.finish();
        timeline.until(250 * MS);
        assert_eq!(timeline.columns().sent.len(), 3);
    }

    /// A worker's timeline: answers by (planned, answered) in milliseconds.
    fn timeline(answers: &[(u64, u64)]) -> Timeline {
        let mut series = Series::new(START);
        for (planned, answered) in answers {
            series.pulled(at(*planned), at(*planned));
            series.sent(at(*planned));
            series.ok(at(*planned), at(*answered), 1);
        }
        series.finish()
    }

    #[test]
    fn workers_add_up_interval_by_interval_at_its_boundaries() {
        // The last and the first moment of an interval, in one worker each.
        let mut all = timeline(&[(99, 100), (200, 299)]);
        all.add(timeline(&[(100, 199), (299, 300), (450, 460)]));
        let columns = all.columns();
        assert_eq!(columns.interval_ms, 100);
        assert_eq!(columns.planned, [1, 1, 2, 0, 1]);
        assert_eq!(columns.ok, [0, 2, 1, 1, 1]);
        // A percentile is that of both together.
        let (p50, max) = (columns.p50_us[2].unwrap(), columns.max_us[2].unwrap());
        assert!((1_000..=1_010).contains(&p50), "{p50}");
        assert!((99_000..=99_999).contains(&max), "{max}");
        assert_eq!((columns.p50_us[3], columns.planned.iter().sum::<u32>()), (None, 5));
    }

    #[test]
    fn the_sum_does_not_depend_on_the_order_of_workers_or_answers() {
        let (one, other) = ([(10, 250), (20, 30), (240, 260)], [(5, 6), (110, 390), (330, 340)]);
        let (mut forth, mut back) = (timeline(&one), timeline(&other));
        forth.add(timeline(&other));
        back.add(timeline(&one));
        let mut answers = [one, other].concat();
        // As answers come: by no order of the plan.
        answers.sort_unstable_by_key(|(planned, answered)| (planned % 7, *answered));
        let together = timeline(&answers);
        for sum in [forth, back] {
            let (sum, whole) = (sum.columns(), together.columns());
            assert_eq!(
                (&sum.planned, &sum.sent, &sum.ok),
                (&whole.planned, &whole.sent, &whole.ok)
            );
            assert_eq!((&sum.p50_us, &sum.max_us), (&whole.p50_us, &whole.max_us));
            assert_eq!(sum.by_site, whole.by_site);
        }
    }

    #[test]
    fn a_worker_without_answers_leaves_the_figures_and_counts_its_failures() {
        let answers = [(10, 20), (310, 320)];
        let mut all = timeline(&answers);
        let before = all.columns();
        // Nothing at all, not even an interval.
        all.add(Timeline::default());
        all.add(Series::new(START).finish());
        assert_eq!((all.columns().ok, all.columns().max_us), (before.ok, before.max_us));
        let mut empty = Timeline::default();
        empty.add(timeline(&answers));
        assert_eq!(empty.columns().ok, all.columns().ok);
        // Everything failed over the whole time and longer.
        let mut gap = Series::new(START);
        for ms in (0..500).step_by(50) {
            gap.pulled(at(ms), at(ms));
            gap.failed(at(ms), "UNANSWERED");
            gap.never(at(ms));
        }
        gap.look(at(10), 4, 2);
        all.add(gap.finish());
        let columns = all.columns();
        assert_eq!(columns.planned, [3, 2, 2, 3, 2]);
        assert_eq!((columns.ok, columns.never), (vec![1, 0, 0, 1, 0], vec![2; 5]));
        assert_eq!(columns.failed["UNANSWERED"], [2; 5]);
        // The only answer is the first of three, the median is none.
        assert_eq!((columns.p50_us, columns.max_us), (vec![None; 5], vec![None; 5]));
        assert_eq!((columns.in_flight[0], columns.waiting[0]), (4, 2));
    }

    #[test]
    fn workers_of_different_intervals_meet_at_the_longer_one() {
        let long = || {
            let mut series = Series::new(START);
            // Beyond the points of the shortest interval: doubled once.
            series.ok(at(50), at(60), 2);
            series.ok(at(POINTS_MAX as u64 * 100 + 50), at(POINTS_MAX as u64 * 100 + 60), 2);
            series.finish()
        };
        let short = || timeline(&[(10, 20), (110, 120), (210, 220)]);
        let (mut forth, mut back) = (long(), short());
        forth.add(short());
        back.add(long());
        for sum in [forth, back] {
            assert_eq!(sum.interval_ns(), 2 * INTERVAL_NS);
            let columns = sum.columns();
            assert_eq!((columns.ok[0], columns.ok[1]), (3, 1));
            assert_eq!(columns.ok.iter().sum::<u32>(), 5);
            assert_eq!((columns.by_site["1"][0], columns.by_site["2"][0]), (2, 1));
        }
    }

    #[test]
    fn names_of_workers_are_matched_and_too_many_are_taken_together() {
        let of = |sites: std::ops::Range<u8>, cause| {
            let mut series = Series::new(START);
            sites.for_each(|site| series.ok(at(1), at(2), site));
            series.failed(at(1), cause);
            series.finish()
        };
        let mut all = of(1..4, "NO_LEADER");
        all.add(of(3..5, "OVERLOADED"));
        let columns = all.columns();
        assert_eq!((columns.by_site["3"][0], columns.by_site["4"][0]), (2, 1));
        assert_eq!((columns.failed["NO_LEADER"][0], columns.failed["OVERLOADED"][0]), (1, 1));
        all.add(of(10..30, "NO_LEADER"));
        let columns = all.columns();
        assert_eq!(columns.by_site.len(), KINDS_MAX);
        assert_eq!(columns.by_site.values().flatten().sum::<u32>(), 25);
        assert_eq!(columns.failed["NO_LEADER"], [2]);
    }
}
