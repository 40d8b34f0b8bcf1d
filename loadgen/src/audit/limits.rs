//! Merchants' limits, held against the payments that the log accepted.
//!
//! An allowance of its own, not the switch's: a bucket of `burst` payments that
//! fills at the rate, and a sum per day, both by the stamps in the log. A changed
//! rule is not held against what was under way when it came: for a while the old
//! and the new one may both be in use. Pure. Tested beside the code.

use super::log::Status;
use protocol::id::MchId;
use serde::Deserialize;
use std::collections::HashMap;

/// A merchant's limits, as far as they bound payments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Limits {
    /// Payments a minute.
    pub(crate) pay_per_minute: u32,
    /// Payments that may come at once.
    pub(crate) burst: u32,
    /// Sum of a day, minor units; 0: no bound.
    pub(crate) daily_cap: i64,
    /// Largest payment, minor units; 0: no bound.
    pub(crate) single_max: i64,
}

/// How long what was admitted under a previous rule may still come, microseconds.
const CHANGE_US: u64 = 10_000_000;
/// Payments above the rate that stamps may pretend: they are whole microseconds.
const SLACK: f64 = 1.0;
const MINUTE_US: f64 = 60e6;
const DAY_US: u64 = 86_400_000_000;

struct Merchant {
    status: Status,
    limits: Limits,
    /// What comes back, and when, Unix microseconds.
    previous: Option<(Limits, u64)>,
    changed_us: u64,
    tokens: f64,
    last_us: u64,
    day: u64,
    sum: i64,
}

/// All merchants, by shard: a shard's log says what holds in it.
#[derive(Default)]
pub(super) struct Merchants(HashMap<(u16, MchId), Merchant>);

impl Merchants {
    /// A merchant record.
    pub(super) fn put(
        &mut self,
        shard: u16,
        mch_id: MchId,
        (status, limits): (Status, Limits),
        at_us: u64,
    ) {
        let known = self.0.remove(&(shard, mch_id));
        let (day, sum) = known.as_ref().map_or((0, 0), |known| (known.day, known.sum));
        // A merchant's first record cannot come late for anybody.
        let changed_us = if known.is_some() { at_us } else { 0 };
        let tokens = f64::from(limits.burst.max(1));
        let merchant = Merchant {
            status,
            limits,
            previous: None,
            changed_us,
            tokens,
            last_us: at_us,
            day,
            sum,
        };
        self.0.insert((shard, mch_id), merchant);
    }

    /// A limits record.
    pub(super) fn limit(
        &mut self,
        shard: u16,
        mch_id: MchId,
        (limits, until_ms): (Limits, u64),
        at_us: u64,
    ) {
        let Some(merchant) = self.0.get_mut(&(shard, mch_id)) else { return };
        // What comes back is what stood for good.
        let standing = merchant.previous.take().map_or(merchant.limits, |(previous, _)| previous);
        merchant.previous = (until_ms > 0).then_some((standing, until_ms.saturating_mul(1_000)));
        merchant.change(limits, at_us);
    }

    /// A payment was accepted; what it breaks.
    pub(super) fn pay(
        &mut self,
        shard: u16,
        mch_id: MchId,
        amount: i64,
        at_us: u64,
    ) -> Option<String> {
        // A log without merchant records says nothing about limits.
        let merchant = self.0.get_mut(&(shard, mch_id))?;
        merchant.expire(at_us);
        let (rate, sum) = (merchant.take(at_us), merchant.add(amount, at_us));
        if at_us < merchant.changed_us.saturating_add(CHANGE_US) && merchant.changed_us > 0 {
            return None;
        }
        let Limits { pay_per_minute, burst, daily_cap, single_max } = merchant.limits;
        let most = match merchant.status {
            Status::Shut => return Some(format!("accepted from {mch_id}, which may not pay")),
            Status::Active => single_max,
            Status::Limited if single_max > 0 => (single_max / 2).max(1),
            Status::Limited => 0,
        };
        if most > 0 && amount > most {
            return Some(format!("{amount} accepted from {mch_id}, which may pay {most} at once"));
        }
        if daily_cap > 0 && sum > daily_cap {
            return Some(format!("{sum} accepted from {mch_id} in a day, at most {daily_cap}"));
        }
        rate.then(|| {
            format!("{mch_id} came above {pay_per_minute} payments a minute and {burst} at once")
        })
    }
}

impl Merchant {
    fn change(&mut self, limits: Limits, at_us: u64) {
        self.limits = limits;
        self.changed_us = at_us.max(1);
        self.tokens = f64::from(limits.burst.max(1));
        self.last_us = at_us;
    }

    /// Previous limits come back when their time has come.
    fn expire(&mut self, at_us: u64) {
        if let Some((previous, until_us)) = self.previous.filter(|(_, until)| *until <= at_us) {
            self.previous = None;
            self.change(previous, until_us);
        }
    }

    /// Takes one payment of the rate; whether there was none left.
    fn take(&mut self, at_us: u64) -> bool {
        let most = f64::from(self.limits.burst.max(1));
        if at_us < self.last_us {
            // The clock went back, by a takeover: one payment is let through, and
            // the rate counts on from there.
            self.tokens = self.tokens.max(1.0);
        }
        let passed = at_us.saturating_sub(self.last_us) as f64;
        let filled = passed * f64::from(self.limits.pay_per_minute) / MINUTE_US;
        self.last_us = at_us;
        self.tokens = (self.tokens + filled).min(most) - 1.0;
        let over = self.tokens < -SLACK;
        // What was let through is told once, not for ever after.
        self.tokens = self.tokens.max(-SLACK);
        over
    }

    /// Adds to the day's sum. A clock that goes back starts no day anew.
    fn add(&mut self, amount: i64, at_us: u64) -> i64 {
        let day = at_us / DAY_US;
        if day > self.day {
            (self.day, self.sum) = (day, 0);
        }
        self.sum = self.sum.saturating_add(amount);
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON_US: u64 = 20_000 * DAY_US + DAY_US / 2;
    const SECOND_US: u64 = 1_000_000;

    fn id() -> MchId {
        MchId::parse(b"M1").unwrap()
    }

    fn merchants(status: Status, limits: Limits) -> Merchants {
        let mut merchants = Merchants::default();
        merchants.put(3, id(), (status, limits), NOON_US);
        merchants
    }

    fn limits() -> Limits {
        Limits { pay_per_minute: 60, burst: 5, daily_cap: 0, single_max: 0 }
    }

    #[test]
    fn the_rate_is_a_burst_and_then_one_an_interval() {
        let mut merchants = merchants(Status::Active, limits());
        let mut pay = |at_us| merchants.pay(3, id(), 1, NOON_US + at_us).is_some();
        assert!((0..5).all(|_| !pay(0)));
        for second in 1..100 {
            assert!(!pay(second * SECOND_US));
        }
        // One is forgiven to the stamps, the next is one too many.
        assert!(!pay(99 * SECOND_US) && pay(99 * SECOND_US));
        assert!(!pay(100 * SECOND_US), "told once");
    }

    #[test]
    fn a_clock_that_goes_back_is_no_violation() {
        let mut merchants = merchants(Status::Active, limits());
        let mut pay = |at_us| merchants.pay(3, id(), 1, at_us).is_some();
        assert!((0..5).all(|_| !pay(NOON_US)));
        let back = NOON_US - 3_600 * SECOND_US;
        assert!((0..10).all(|second| !pay(back + second * SECOND_US)));
        assert!(!pay(back + 9 * SECOND_US) && pay(back + 9 * SECOND_US));
    }

    #[test]
    fn a_day_has_one_cap() {
        let cap = Limits { daily_cap: 100, ..limits() };
        let mut merchants = merchants(Status::Active, cap);
        let mut pay = |amount, at_us| merchants.pay(3, id(), amount, at_us).is_some();
        assert!(!pay(60, NOON_US) && !pay(40, NOON_US + SECOND_US));
        assert!(pay(1, NOON_US + 2 * SECOND_US));
        assert!(pay(1, NOON_US - DAY_US), "a clock that goes back gives no second cap");
        assert!(!pay(100, NOON_US + DAY_US));
    }

    #[test]
    fn who_may_not_pay_and_what_is_too_much_is_told() {
        let single = Limits { single_max: 100, ..limits() };
        let pay =
            |status, amount| merchants(status, single).pay(3, id(), amount, NOON_US).is_some();
        assert!(!pay(Status::Active, 100) && pay(Status::Active, 101));
        assert!(!pay(Status::Limited, 50) && pay(Status::Limited, 51));
        assert!(pay(Status::Shut, 1));
        let mut others = merchants(Status::Shut, single);
        assert_eq!(others.pay(4, id(), 1, NOON_US), None, "another shard's log says nothing");
    }

    #[test]
    fn what_was_under_way_when_a_rule_came_is_no_violation() {
        let mut merchants = merchants(Status::Active, limits());
        let later = NOON_US + 60 * SECOND_US;
        merchants.put(3, id(), (Status::Shut, limits()), later);
        assert_eq!(merchants.pay(3, id(), 1, later + SECOND_US), None);
        assert!(merchants.pay(3, id(), 1, later + CHANGE_US).is_some());
    }

    #[test]
    fn limits_for_a_time_go_and_the_previous_come_back() {
        let mut merchants = merchants(Status::Active, Limits { single_max: 10, ..limits() });
        let until_ms = (NOON_US + 100 * SECOND_US) / 1_000;
        let wide = Limits { single_max: 50, ..limits() };
        merchants.limit(3, id(), (wide, until_ms), NOON_US);
        let mut pay =
            |amount, second| merchants.pay(3, id(), amount, NOON_US + second * SECOND_US).is_some();
        assert!(!pay(50, 50) && pay(51, 52));
        assert!(!pay(50, 105), "admitted before");
        assert!(!pay(10, 120) && pay(50, 125));
    }
}
