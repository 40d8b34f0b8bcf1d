//! A log-linear histogram of which recording is a single relaxed add.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Linear up to 64, then 32 buckets per power of two up to 2^40: every value is
/// known to 3.2 %. Values are microseconds for times, plain numbers for sizes.
///
/// Count and sum are derived from the buckets when read (the sum is therefore
/// exact to 1.6 %), which keeps recording at one add.
pub struct Histogram {
    buckets: Box<[AtomicU64; BUCKETS]>,
}

const LINEAR: u64 = 64;
const PER_OCTAVE: u64 = 32;
const LARGEST_BITS: u32 = 40;
const BUCKETS: usize = (LINEAR + (LARGEST_BITS as u64 - 6) * PER_OCTAVE) as usize;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new(std::array::from_fn(|_| AtomicU64::new(0))) }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts the same value `n` times: one add for a whole batch.
    pub fn record_n(&self, value: u64, n: u64) {
        self.buckets[bucket(value)].fetch_add(n, Relaxed);
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    /// The value that the share `q` (0 to 1) of all values does not exceed, to
    /// the bucket's precision; `None` when nothing was counted.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return None;
        }
        let rank = ((total as f64 * q).ceil() as u64).clamp(1, total);
        let mut seen = 0;
        let at = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        at.map(upper)
    }

    /// Cumulative counts at each of `bounds` (ascending, each an upper edge of a
    /// bucket), then the total count and the sum: one consistent reading.
    pub(super) fn read(&self, bounds: &[u64], mut at_bound: impl FnMut(u64, u64)) -> (u64, f64) {
        let (mut count, mut sum) = (0, 0.0);
        let mut bounds = bounds.iter().copied().peekable();
        for (at, bucket) in self.buckets.iter().enumerate() {
            let n = bucket.load(Relaxed);
            while let Some(bound) = bounds.next_if(|bound| *bound < upper(at)) {
                at_bound(bound, count);
            }
            count += n;
            sum += n as f64 * middle(at);
        }
        bounds.for_each(|bound| at_bound(bound, count));
        (count, sum)
    }
}

/// Buckets hold (lower, upper]; the first also holds 0.
fn bucket(value: u64) -> usize {
    let below = value.saturating_sub(1).min((1 << LARGEST_BITS) - 1);
    if below < LINEAR {
        return below as usize;
    }
    let octave = u64::from(below.ilog2()) - 6;
    // The top bit is implied; the five below it choose the bucket.
    let step = (below >> (octave + 1)) - PER_OCTAVE;
    (LINEAR + octave * PER_OCTAVE + step) as usize
}

/// Largest value of the bucket.
fn upper(at: usize) -> u64 {
    let at = at as u64;
    if at < LINEAR {
        return at + 1;
    }
    let (octave, step) = ((at - LINEAR) / PER_OCTAVE, (at - LINEAR) % PER_OCTAVE);
    (PER_OCTAVE + step + 1) << (octave + 1)
}

fn middle(at: usize) -> f64 {
    let below = if at == 0 { 0 } else { upper(at - 1) };
    (below + 1 + upper(at)) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lands_in_the_bucket_that_holds_it() {
        let values = (0..5_000).chain((12..40).flat_map(|bits| {
            let power = 1_u64 << bits;
            [power - 1, power, power + 1, power + power / 3]
        }));
        for value in values {
            let at = bucket(value);
            assert!(value <= upper(at), "{value}");
            assert!(at == 0 || value > upper(at - 1), "{value}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper(BUCKETS - 1), 1 << LARGEST_BITS);
    }

    #[test]
    fn quantiles_and_sum_are_within_the_precision() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=10_000).for_each(|value| histogram.record(value));
        for (q, exact) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let got = histogram.quantile(q).unwrap() as f64;
            assert!((got / exact - 1.0).abs() < 0.033, "{q}: {got}");
        }
        let mut cumulative = Vec::new();
        let (count, sum) = histogram.read(&[1, 64, 4_096], |b, n| cumulative.push((b, n)));
        assert_eq!(cumulative, [(1, 1), (64, 64), (4_096, 4_096)]);
        assert_eq!(count, 10_000);
        assert!((sum / 50_005_000.0 - 1.0).abs() < 0.016, "{sum}");
    }
}
