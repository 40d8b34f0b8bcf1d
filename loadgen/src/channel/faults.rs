//! The faults of the simulated channel: by plan, chosen from a hash of the
//! operation's number and how often it was asked, so that runs repeat.
//!
//! Pure. Tested on parsing, shares and purity.

use crate::goal::{parse_duration_ns, parse_percent};
use crate::rng::{Stream, unit};
use std::time::Duration;

/// How long the channel takes to answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Law {
    /// At once.
    None,
    /// Always the same, nanoseconds.
    Constant(u64),
    /// Evenly between the two, nanoseconds.
    Uniform(u64, u64),
    /// Exponential with this mean, nanoseconds.
    Exponential(u64),
}

impl Law {
    /// Reads `none`, `2ms`, `uniform:1ms..5ms` or `exp:3ms`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: write none, 2ms, uniform:1ms..5ms or exp:3ms");
        let duration = |text: &str| parse_duration_ns(text).ok_or_else(usage);
        if text == "none" {
            return Ok(Self::None);
        }
        if let Some(range) = text.strip_prefix("uniform:") {
            let (low, high) = range.split_once("..").ok_or_else(usage)?;
            let (low, high) = (duration(low)?, duration(high)?);
            return if low <= high { Ok(Self::Uniform(low, high)) } else { Err(usage()) };
        }
        match text.strip_prefix("exp:") {
            Some(mean) => Ok(Self::Exponential(duration(mean)?)),
            None => Ok(Self::Constant(duration(text)?)),
        }
    }

    fn sample(self, bits: u64) -> u64 {
        match self {
            Self::None => 0,
            Self::Constant(ns) => ns,
            Self::Uniform(low, high) => low + ((high - low) as f64 * unit(bits)) as u64,
            Self::Exponential(mean) => (-(1.0 - unit(bits)).ln() * mean as f64) as u64,
        }
    }
}

/// A share of replies that come late, and how late.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Late {
    share: f64,
    delay_ns: u64,
}

impl Late {
    /// Reads `1%:500` (milliseconds).
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: write PERCENT:MILLISECONDS, such as 1%:500");
        let (share, ms) = text.split_once(':').ok_or_else(usage)?;
        let ms: u64 = ms.trim().trim_end_matches("ms").parse().map_err(|_| usage())?;
        if ms > 3_600_000 {
            return Err(usage());
        }
        Ok(Self { share: parse_percent(share)?, delay_ns: ms * 1_000_000 })
    }
}

/// A span in which nothing is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outage {
    from: Duration,
    until: Duration,
}

impl Outage {
    /// Reads `5:8`: from second 5 to second 8 after the start.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: write FROM:UNTIL in seconds, such as 5:8");
        let (from, until) = text.split_once(':').ok_or_else(usage)?;
        let second = |text: &str| {
            let value: f64 = text.trim().parse().ok()?;
            Duration::try_from_secs_f64(value).ok()
        };
        let (from, until) = (second(from).ok_or_else(usage)?, second(until).ok_or_else(usage)?);
        if from < until { Ok(Self { from, until }) } else { Err(usage()) }
    }
}

/// The plan of a channel's faults. Shares are 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Faults {
    /// Chooses which operations are hit.
    pub(crate) seed: u64,
    /// How long an answer takes.
    pub(crate) latency: Law,
    /// Charges declined for good.
    pub(crate) decline: f64,
    /// Requests that are lost before anything happens.
    pub(crate) drop_request: f64,
    /// Replies that are lost after it happened.
    pub(crate) drop_reply: f64,
    /// Replies that come late.
    pub(crate) late: Option<Late>,
    /// Replies sent twice.
    pub(crate) duplicate: f64,
    /// Replies to charges that name another amount.
    pub(crate) wrong_amount: f64,
    /// A span without any answer.
    pub(crate) outage: Option<Outage>,
    /// Most operations per second; more are answered as unavailable.
    pub(crate) rate_limit: Option<u64>,
}

impl Faults {
    /// An honest and fast channel.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self {
            seed: 1,
            latency: Law::None,
            decline: 0.0,
            drop_request: 0.0,
            drop_reply: 0.0,
            late: None,
            duplicate: 0.0,
            wrong_amount: 0.0,
            outage: None,
            rate_limit: None,
        }
    }

    /// Whether faults depend on how often an operation was asked.
    pub(crate) fn count_operations(&self) -> bool {
        self.drop_request > 0.0
            || self.drop_reply > 0.0
            || self.duplicate > 0.0
            || self.wrong_amount > 0.0
            || self.late.is_some()
            || self.latency != Law::None
    }

    /// Whether charge `number` is declined: a property of the charge, not of
    /// the request.
    pub(crate) fn declines(&self, number: u64) -> bool {
        self.decline > 0.0 && Stream::new(self.seed, 0).unit(number) < self.decline
    }

    /// What happens to the `count`-th request about `number`.
    pub(crate) fn fate(&self, number: u64, count: u32, since_start: Duration) -> Fate {
        let hit = |kind: u64, share: f64| {
            share > 0.0
                && Stream::new(self.seed, kind).unit(number ^ u64::from(count) << 48) < share
        };
        if self.outage.is_some_and(|outage| (outage.from..outage.until).contains(&since_start)) {
            return Fate { request_lost: true, ..Fate::NONE };
        }
        let late = self.late.filter(|late| hit(4, late.share)).map_or(0, |late| late.delay_ns);
        let latency = match self.latency {
            Law::None => 0,
            law => law.sample(Stream::new(self.seed, 5).draw(number ^ u64::from(count) << 48)),
        };
        Fate {
            request_lost: hit(1, self.drop_request),
            reply_lost: hit(2, self.drop_reply),
            reply_twice: hit(3, self.duplicate),
            wrong_amount: hit(6, self.wrong_amount),
            delay_ns: late.saturating_add(latency),
        }
    }
}

/// What happens to one request and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    /// Nothing happens at all.
    pub(crate) request_lost: bool,
    /// It happens and is not told.
    pub(crate) reply_lost: bool,
    /// It is told twice.
    pub(crate) reply_twice: bool,
    /// The reply names another amount.
    pub(crate) wrong_amount: bool,
    /// The reply waits this long.
    pub(crate) delay_ns: u64,
}

impl Fate {
    /// Nothing goes wrong.
    pub(crate) const NONE: Self = Self {
        request_lost: false,
        reply_lost: false,
        reply_twice: false,
        wrong_amount: false,
        delay_ns: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::mix64;

    #[test]
    fn fates_repeat_and_hit_the_planned_share() {
        let late = Some(Late::parse("10%:500").unwrap());
        let faults = Faults { drop_reply: 0.05, late, ..Faults::none() };
        let fate = |n: u64| faults.fate(mix64(n), 0, Duration::ZERO);
        let lost = (0..100_000).filter(|n| fate(*n).reply_lost).count();
        let delayed = (0..100_000).filter(|n| fate(*n).delay_ns == 500_000_000).count();
        assert!((4_700..5_300).contains(&lost), "{lost}");
        assert!((9_600..10_400).contains(&delayed), "{delayed}");
        assert_eq!(fate(7), fate(7));
        let again = (0..1_000).filter(|n| {
            fate(*n).reply_lost && faults.fate(mix64(*n), 1, Duration::ZERO).reply_lost
        });
        assert!(again.count() < 15, "asking again must have a new fate");
    }

    #[test]
    fn an_outage_loses_everything_in_its_span() {
        let faults = Faults { outage: Some(Outage::parse("5:8").unwrap()), ..Faults::none() };
        let lost = |second| faults.fate(1, 0, Duration::from_secs(second)).request_lost;
        assert_eq!([lost(4), lost(5), lost(7), lost(8)], [false, true, true, false]);
    }

    #[test]
    fn laws_are_parsed_and_sampled() {
        assert_eq!(Law::parse("2ms"), Ok(Law::Constant(2_000_000)));
        let uniform = Law::parse("uniform:1ms..5ms").unwrap();
        let mean = (0..10_000).map(|n| uniform.sample(mix64(n))).sum::<u64>() / 10_000;
        assert!((2_900_000..3_100_000).contains(&mean), "{mean}");
        let exponential = Law::parse("exp:3ms").unwrap();
        let mean = (0..10_000).map(|n| exponential.sample(mix64(n))).sum::<u64>() / 10_000;
        assert!((2_850_000..3_150_000).contains(&mean), "{mean}");
        for bad in ["", "2", "uniform:5ms..1ms", "uniform:1ms", "exp:"] {
            assert!(Law::parse(bad).is_err(), "{bad}");
        }
        assert!(Late::parse("1%").is_err() && Outage::parse("8:5").is_err());
    }
}
