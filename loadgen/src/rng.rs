//! Counter-based pseudo-random numbers: draw `n` of a stream is a pure function
//! of (seed, stream, n), so that any request can be made again at any time.
//!
//! Not for secrets. Tested for purity and spread.

/// The finaliser of SplitMix64: every input bit reaches every output bit.
pub(crate) const fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// An independent sequence of draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream(u64);

impl Stream {
    /// Stream number `number` of `seed`.
    pub(crate) const fn new(seed: u64, number: u64) -> Self {
        Self(mix64(seed ^ mix64(number.wrapping_add(1).wrapping_mul(GOLDEN))))
    }

    /// Draw `n`: 64 random bits.
    pub(crate) const fn draw(self, n: u64) -> u64 {
        mix64(self.0.wrapping_add(n.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// Draw `n` below `bound` (at least 1).
    pub(crate) fn below(self, n: u64, bound: u64) -> u64 {
        below(self.draw(n), bound)
    }

    /// Draw `n` in [0, 1).
    pub(crate) fn unit(self, n: u64) -> f64 {
        unit(self.draw(n))
    }
}

/// Scales 64 random bits to a number below `bound`.
pub(crate) fn below(bits: u64, bound: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

/// Scales 64 random bits to [0, 1).
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_pure_and_streams_differ() {
        let (a, b) = (Stream::new(7, 0), Stream::new(7, 1));
        assert_eq!(a.draw(5), Stream::new(7, 0).draw(5));
        assert_ne!(a.draw(5), b.draw(5));
        assert_ne!(a.draw(5), Stream::new(8, 0).draw(5));
    }

    #[test]
    fn draws_spread_evenly() {
        let stream = Stream::new(1, 2);
        let mut counts = [0_u32; 10];
        (0..100_000).for_each(|n| counts[stream.below(n, 10) as usize] += 1);
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        let mean = (0..100_000).map(|n| stream.unit(n)).sum::<f64>() / 100_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
