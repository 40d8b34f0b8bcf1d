//! Rate limits and caps of one merchant. Pure arithmetic on the stamps that
//! records carry, so that replay arrives at the same state.
//!
//! Rates are GCRA (the virtual-scheduling form of the leaky bucket, ITU-T
//! I.371): one number per operation, exact, and it tells when to come back.

use super::merchant::Limits;

const MINUTE_US: u64 = 60_000_000;
const DAY_US: u64 = 86_400_000_000;

/// One rate: the theoretical arrival time of the next conforming operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rate {
    /// Microseconds, fixed point with 10 fractional bits so that rates above a
    /// million per second stay exact enough.
    arrival: u64,
}

const FRACTION: u32 = 10;

impl Rate {
    /// Whether an operation conforms now; if not, milliseconds until it would.
    pub(super) fn check(&self, now_us: u64, per_minute: u32, burst: u32) -> Result<(), u32> {
        if per_minute == 0 {
            return Err(0);
        }
        let interval = (MINUTE_US << FRACTION) / u64::from(per_minute);
        let tolerance = interval * u64::from(burst.max(1) - 1);
        let ahead = self.arrival.saturating_sub(now_us << FRACTION);
        if ahead <= tolerance {
            return Ok(());
        }
        let wait_us = (ahead - tolerance) >> FRACTION;
        Err((wait_us / 1000 + 1).min(u64::from(u32::MAX)) as u32)
    }

    /// Counts an operation.
    pub(super) fn take(&mut self, now_us: u64, per_minute: u32) {
        let interval = (MINUTE_US << FRACTION) / u64::from(per_minute.max(1));
        self.arrival = self.arrival.max(now_us << FRACTION) + interval;
    }
}

/// A merchant's limiter state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limiter {
    pub(super) pay: Rate,
    pub(super) query: Rate,
    pub(super) refund: Rate,
    day: u64,
    day_sum: i64,
}

impl Limiter {
    /// Whether the day's cap leaves room for `amount`; if not, milliseconds
    /// until the day ends.
    pub(super) fn check_cap(&self, now_us: u64, limits: &Limits, amount: i64) -> Result<(), u32> {
        let day = now_us / DAY_US;
        let sum = if day == self.day { self.day_sum } else { 0 };
        if limits.daily_cap == 0 || sum.saturating_add(amount) <= limits.daily_cap {
            return Ok(());
        }
        Err(((DAY_US - now_us % DAY_US) / 1000 + 1) as u32)
    }

    /// Counts a pay.
    pub(super) fn take_pay(&mut self, now_us: u64, limits: &Limits, amount: i64) {
        self.pay.take(now_us, limits.pay_per_minute);
        let day = now_us / DAY_US;
        if day != self.day {
            self.day = day;
            self.day_sum = 0;
        }
        self.day_sum = self.day_sum.saturating_add(amount);
    }

    /// Adds the replicated part to a hash.
    pub(super) fn hash(&self, add: &mut impl FnMut(&[u8])) {
        for number in [self.pay.arrival, self.refund.arrival, self.day] {
            add(&number.to_le_bytes());
        }
        add(&self.day_sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        pay_per_minute: 60,
        query_per_minute: 60,
        refund_per_minute: 60,
        burst: 3,
        daily_cap: 1_000,
        single_max: 0,
        second_signature_from: 0,
    };

    #[test]
    fn a_burst_passes_and_then_one_a_second() {
        let mut rate = Rate::default();
        let mut now = 1_000_000_000;
        for _ in 0..3 {
            assert_eq!(rate.check(now, 60, 3), Ok(()));
            rate.take(now, 60);
        }
        let wait = rate.check(now, 60, 3).unwrap_err();
        assert!((1_000..=1_001).contains(&wait), "{wait}");
        now += u64::from(wait) * 1000;
        assert_eq!(rate.check(now, 60, 3), Ok(()), "exactly when it was told");
        rate.take(now, 60);
        assert!(rate.check(now, 60, 3).is_err());
    }

    #[test]
    fn a_zero_rate_forbids() {
        assert_eq!(Rate::default().check(5, 0, 10), Err(0));
    }

    #[test]
    fn the_daily_cap_is_inclusive_and_ends_at_midnight_utc() {
        let mut limiter = Limiter::default();
        let noon = 20_000 * DAY_US + DAY_US / 2;
        limiter.take_pay(noon, &LIMITS, 900);
        assert_eq!(limiter.check_cap(noon, &LIMITS, 100), Ok(()));
        assert_eq!(limiter.check_cap(noon, &LIMITS, 101), Err((DAY_US / 2 / 1000 + 1) as u32));
        assert_eq!(limiter.check_cap(noon + DAY_US / 2, &LIMITS, 1_000), Ok(()));
    }
}
