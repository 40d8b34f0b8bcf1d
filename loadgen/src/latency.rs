//! A distribution of latencies, in which a value may never have come.
//!
//! Pure. Tested on its percentiles.

use hdrhistogram::Histogram;

/// Histograms hold 1 us to 200 s with three significant digits.
pub(crate) const LOWEST_NS: u64 = 1_000;
pub(crate) const HIGHEST_NS: u64 = 200_000_000_000;

/// What a product of a share and a count may be above the true rank.
const ROUNDING: f64 = 1e-6;

/// A latency distribution in nanoseconds, with its infinite values.
#[derive(Clone)]
pub(crate) struct Latency {
    histogram: Histogram<u64>,
    /// Values that never came.
    infinite: u64,
}

impl Latency {
    /// An empty distribution.
    pub(crate) fn new() -> Self {
        Self::with_digits(3)
    }

    /// Of less precision, which stays in the processor's cache.
    pub(crate) fn small() -> Self {
        Self::with_digits(2)
    }

    fn with_digits(digits: u8) -> Self {
        let histogram = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, digits)
            .expect("constant bounds are legal");
        Self { histogram, infinite: 0 }
    }

    /// Adds a value.
    pub(crate) fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
    }

    /// Adds a value that never came.
    pub(crate) fn record_infinite(&mut self) {
        self.infinite += 1;
    }

    /// Adds all values of another distribution.
    pub(crate) fn add(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("same constant bounds");
        self.infinite += other.infinite;
    }

    /// Number of values, infinite ones included.
    pub(crate) fn count(&self) -> u64 {
        self.histogram.len() + self.infinite
    }

    /// Nanoseconds below which this share of the values lies; `None` when that
    /// is infinite or there are no values.
    pub(crate) fn quantile(&self, share: f64) -> Option<u64> {
        let finite = self.histogram.len();
        if finite == 0 {
            return None;
        }
        // The share is a rounded number, and so is the product.
        let rank = (share * self.count() as f64 - ROUNDING).ceil().max(1.0);
        if rank > finite as f64 {
            return None;
        }
        Some(self.histogram.value_at_quantile((rank / finite as f64).min(1.0)))
    }

    /// Largest value; `None` when infinite or absent.
    pub(crate) fn max(&self) -> Option<u64> {
        (self.infinite == 0 && !self.histogram.is_empty()).then(|| self.histogram.max())
    }

    /// The finite values, and how many are not.
    pub(crate) fn parts(&self) -> (&Histogram<u64>, u64) {
        (&self.histogram, self.infinite)
    }

    /// How many values never came.
    pub(crate) fn infinite(&self) -> u64 {
        self.infinite
    }

    /// The same with so many fewer that never came.
    pub(crate) fn without_infinite(&self, count: u64) -> Self {
        Self { histogram: self.histogram.clone(), infinite: self.infinite.saturating_sub(count) }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.histogram.reset();
        self.infinite = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unanswered_requests_are_infinitely_slow() {
        let mut latency = Latency::new();
        (1..=98).for_each(|ms| latency.record(ms * 1_000_000));
        latency.record_infinite();
        latency.record_infinite();
        let p98 = latency.quantile(0.98).unwrap();
        assert!((97_900_000..98_200_000).contains(&p98), "{p98}");
        assert_eq!((latency.quantile(0.99), latency.max()), (None, None));
        assert_eq!(Latency::new().quantile(0.5), None);
    }

    #[test]
    fn merged_distributions_hold_both() {
        let (mut a, mut b) = (Latency::new(), Latency::new());
        (0..50).for_each(|_| a.record(1_000_000));
        (0..50).for_each(|_| b.record(9_000_000));
        b.record_infinite();
        a.add(&b);
        assert_eq!(a.count(), 101);
        assert!(a.quantile(0.25).unwrap() < 1_100_000);
        assert!(a.quantile(0.75).unwrap() > 8_900_000);
        assert_eq!(a.quantile(1.0), None);
    }

    #[test]
    fn exactly_a_hundredth_that_never_came_leaves_the_99th_percentile() {
        for hundreds in (1..3_000_u64).chain([12_345, 99_999, 1_234_567]) {
            let of = |infinite| {
                let mut latency = Latency::with_digits(1);
                latency.histogram.record_n(5_000_000, hundreds * 100 - infinite).unwrap();
                latency.infinite = infinite;
                latency.quantile(0.99)
            };
            assert!(of(hundreds).is_some(), "{hundreds}");
            assert_eq!(of(hundreds + 1), None, "{hundreds}");
        }
    }
}
