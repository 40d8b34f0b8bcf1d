//! Zipf-distributed choice in constant time (Walker's alias method): rank k
//! gets a share proportional to 1 / k^s.
//!
//! Pure. Tested against the exact shares.

use crate::rng::{below, mix64, unit};

/// A prepared distribution over ranks `0..n`.
pub(crate) struct Zipf {
    /// Per column: how much of it belongs to its own rank, and to whom the rest.
    columns: Vec<(f64, u32)>,
}

impl Zipf {
    /// `n` ranks (at least one), exponent `s` (0: all alike).
    pub(crate) fn new(n: u32, s: f64) -> Self {
        let n = n.max(1);
        let mut weights: Vec<f64> = (1..=n).map(|rank| f64::from(rank).powf(-s)).collect();
        let scale = f64::from(n) / weights.iter().sum::<f64>();
        weights.iter_mut().for_each(|weight| *weight *= scale);
        let mut columns: Vec<(f64, u32)> = (0..n).map(|rank| (1.0, rank)).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..n).partition(|&rank| weights[rank as usize] < 1.0);
        while let (Some(&low), Some(&high)) = (small.last(), large.last()) {
            small.pop();
            columns[low as usize] = (weights[low as usize], high);
            weights[high as usize] -= 1.0 - weights[low as usize];
            if weights[high as usize] < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self { columns }
    }

    /// The rank that 64 random bits choose.
    pub(crate) fn sample(&self, bits: u64) -> u32 {
        let column = below(bits, self.columns.len() as u64);
        let (own, other) = self.columns[column as usize];
        // The high bits chose the column; a second mix makes the bits fresh.
        if unit(mix64(bits)) < own { column as u32 } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn shares(ranks: u32, s: f64) -> Vec<f64> {
        let (zipf, stream) = (Zipf::new(ranks, s), Stream::new(3, 0));
        let mut counts = vec![0_u32; ranks as usize];
        (0..1_000_000).for_each(|n| counts[zipf.sample(stream.draw(n)) as usize] += 1);
        counts.iter().map(|count| f64::from(*count) / 1e6).collect()
    }

    #[test]
    fn shares_follow_the_law() {
        let found = shares(100, 0.99);
        let total: f64 = (1..=100).map(|rank| f64::from(rank).powf(-0.99)).sum();
        for rank in [1, 2, 5, 20, 100] {
            let expected = f64::from(rank).powf(-0.99) / total;
            let share = found[rank as usize - 1];
            assert!((share / expected - 1.0).abs() < 0.05, "{rank}: {share} {expected}");
        }
    }

    #[test]
    fn exponent_zero_is_uniform_and_one_rank_is_certain() {
        assert!(shares(50, 0.0).iter().all(|share| (share - 0.02).abs() < 0.001));
        assert_eq!(Zipf::new(1, 0.99).sample(u64::MAX), 0);
    }
}
