//! Rate limits (GCRA) and daily amount caps: exact, in integers.
//!
//! Each merchant has two copies of this state. The replicated one moves when a
//! record is applied, with the record's stamp; the leader's volatile one moves
//! at admission. Both see the same stamps, so that a new leader, which starts
//! from the replicated copy, continues exactly where the log ends. Knows no
//! clock. Tested beside the code.

use super::merchant::Limits;

/// A rate limiter: the theoretical arrival time of the next operation, Unix
/// nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gcra {
    pub(super) tat_ns: u64,
}

/// Nanoseconds between two operations at this rate, rounded up so that the
/// rate is never exceeded; `None` for a forbidden operation.
fn interval_ns(per_minute: u32) -> Option<u64> {
    (per_minute > 0).then(|| 60_000_000_000_u64.div_ceil(u64::from(per_minute)))
}

impl Gcra {
    /// Whether an operation fits now, without taking it.
    ///
    /// # Errors
    /// Milliseconds after which it fits.
    pub(super) fn check(&self, wall_us: u64, per_minute: u32, burst: u32) -> Result<(), u32> {
        let interval = interval_ns(per_minute).ok_or(u32::MAX)?;
        let ahead = self.tat_ns.saturating_sub(wall_us.saturating_mul(1000));
        let allowed = interval.saturating_mul(u64::from(burst.max(1)) - 1);
        // Further ahead than a spent burst: the clock went back, or the limits
        // were other ones. One operation, which `take` counts from a spent burst,
        // instead of a merchant shut out for as long as the clock went back.
        if ahead > allowed.saturating_add(interval) {
            return Ok(());
        }
        match ahead.checked_sub(allowed) {
            None | Some(0) => Ok(()),
            Some(early) => Err(u32::try_from(early.div_ceil(1_000_000)).unwrap_or(u32::MAX)),
        }
    }

    /// Takes one operation that fitted.
    pub(super) fn take(&mut self, wall_us: u64, per_minute: u32, burst: u32) {
        let interval = interval_ns(per_minute).unwrap_or(0);
        let now_ns = wall_us.saturating_mul(1000);
        let full = now_ns.saturating_add(interval.saturating_mul(u64::from(burst.max(1))));
        self.tat_ns = self.tat_ns.max(now_ns).saturating_add(interval).min(full);
    }
}

/// Amount accepted on one UTC day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DailySum {
    pub(super) day: u64,
    pub(super) sum: i64,
}

impl DailySum {
    /// The day that counts, and its sum: a clock that goes back over midnight
    /// does not give a day's cap a second time.
    fn on(&self, wall_us: u64) -> (u64, i64) {
        let day = day_of(wall_us);
        if day > self.day { (day, 0) } else { (self.day, self.sum) }
    }

    /// Whether `amount` fits under `cap` (0: no cap).
    pub(super) fn fits(&self, wall_us: u64, amount: i64, cap: i64) -> bool {
        cap == 0 || self.on(wall_us).1.saturating_add(amount) <= cap
    }

    /// Adds an accepted amount.
    pub(super) fn add(&mut self, wall_us: u64, amount: i64) {
        let (day, sum) = self.on(wall_us);
        *self = Self { day, sum: sum.saturating_add(amount) };
    }
}

const DAY_US: u64 = 86_400_000_000;

fn day_of(wall_us: u64) -> u64 {
    wall_us / DAY_US
}

/// Milliseconds until the next UTC day.
pub(super) fn until_tomorrow_ms(wall_us: u64) -> u32 {
    (DAY_US - wall_us % DAY_US).div_ceil(1000) as u32
}

/// What one merchant used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) pay: Gcra,
    pub(super) refund: Gcra,
    pub(super) daily: DailySum,
}

impl Usage {
    /// Takes one accepted pay.
    pub(super) fn take_pay(&mut self, wall_us: u64, amount: i64, limits: &Limits) {
        self.pay.take(wall_us, limits.pay_per_minute, limits.burst);
        self.daily.add(wall_us, amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn burst_then_one_per_interval_with_exact_wait() {
        let (mut limiter, start) = (Gcra::default(), 1_700_000_000_000_000);
        for _ in 0..5 {
            limiter.check(start, 60, 5).expect("inside the burst");
            limiter.take(start, 60, 5);
        }
        assert_eq!(limiter.check(start, 60, 5), Err(1000));
        assert_eq!(limiter.check(start + 999_999, 60, 5), Err(1));
        assert_eq!(limiter.check(start + 1_000_000, 60, 5), Ok(()));
        assert_eq!(limiter.check(start, 0, 5), Err(u32::MAX));
    }

    #[test]
    fn a_clock_that_goes_back_shuts_nobody_out_and_gives_no_second_burst() {
        let (mut limiter, later) = (Gcra::default(), 1_700_003_600_000_000);
        for _ in 0..5 {
            limiter.check(later, 60, 5).expect("inside the burst");
            limiter.take(later, 60, 5);
        }
        let back = later - 3_600_000_000;
        limiter.check(back, 60, 5).expect("one operation");
        limiter.take(back, 60, 5);
        assert_eq!(limiter.check(back, 60, 5), Err(1000), "the burst stays spent");
        limiter.check(back + 1_000_000, 60, 5).expect("the rate goes on");
    }

    #[test]
    fn a_clock_that_goes_back_over_midnight_gives_no_second_cap() {
        let (mut sum, midnight) = (DailySum::default(), DAY_US * 20_000);
        sum.add(midnight, 70);
        assert!(!sum.fits(midnight - 1, 31, 100));
        sum.add(midnight - 1, 30);
        assert!(!sum.fits(midnight, 1, 100));
        assert!(sum.fits(midnight + DAY_US, 100, 100));
    }

    #[test]
    fn daily_sum_starts_anew_at_midnight() {
        let (mut sum, noon) = (DailySum::default(), DAY_US * 20_000 + DAY_US / 2);
        sum.add(noon, 70);
        assert!(sum.fits(noon, 30, 100));
        assert!(!sum.fits(noon, 31, 100));
        assert!(sum.fits(noon, i64::MAX, 0));
        assert!(sum.fits(noon + DAY_US / 2, 100, 100));
        assert_eq!(until_tomorrow_ms(noon), 43_200_000);
    }

    proptest! {
        /// However operations are spaced, no window of a minute holds more
        /// than rate + burst, and waiting `retry_after` always helps.
        #[test]
        fn rate_holds_and_the_wait_is_exact(
            rate in 1_u32..2000, burst in 1_u32..20,
            gaps in prop::collection::vec(0_u64..200_000, 1..600),
        ) {
            let (mut limiter, mut now) = (Gcra::default(), 1_700_000_000_000_000_u64);
            let mut taken = Vec::new();
            for gap in gaps {
                now += gap;
                match limiter.check(now, rate, burst) {
                    Ok(()) => { limiter.take(now, rate, burst); taken.push(now); }
                    Err(wait) => prop_assert!(limiter.check(now + u64::from(wait) * 1000, rate, burst).is_ok()),
                }
            }
            for (at, &from) in taken.iter().enumerate() {
                let inside = taken[at..].iter().take_while(|&&t| t < from + 60_000_000).count();
                prop_assert!(inside <= (rate + burst) as usize);
            }
        }
    }
}
