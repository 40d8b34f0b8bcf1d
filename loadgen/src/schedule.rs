//! When request `n` should leave: planned times, decided before the run.
//!
//! An endless iterator of offsets from the start, cut by the caller. Pure: two
//! copies give the same times, so the pacer and the driver each own one and
//! hand nothing over. Tested for rates, purity and parsing.

use crate::rng::Stream;
use crate::shape::{Shape, Walk};
use std::time::Duration;

/// How requests arrive.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Arrival {
    /// Evenly.
    Constant,
    /// Independently of each other: exponential gaps.
    Poisson,
    /// At a rate that changes.
    Shaped {
        /// The factor on the rate.
        shape: Shape,
        /// Independently of each other instead of evenly.
        poisson: bool,
    },
}

impl Arrival {
    /// Reads `constant`, `poisson` or a shape (`step:0=0.5,10=1,20=3` and others),
    /// perhaps with `poisson+` before it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "constant" => return Ok(Self::Constant),
            "poisson" => return Ok(Self::Poisson),
            _ => {}
        }
        let drawn = text.strip_prefix("poisson+");
        let shape = Shape::parse(drawn.unwrap_or(text))?;
        Ok(Self::Shaped { shape, poisson: drawn.is_some() })
    }

    /// Requests planned in `duration` at `rate`, in expectation.
    pub(crate) fn expected(&self, rate: f64, duration: Duration) -> f64 {
        match self {
            Self::Constant | Self::Poisson => rate * duration.as_secs_f64(),
            Self::Shaped { shape, .. } => rate * shape.integral(duration),
        }
    }
}

/// Planned times, nanoseconds from the start.
#[derive(Clone)]
pub(crate) struct Schedule {
    arrival: Arrival,
    gap_ns: f64,
    stream: Stream,
    count: u64,
    at_ns: f64,
    /// Along the shape, when there is one, and how far: requests, perhaps drawn.
    walk: Option<Walk>,
    area: f64,
    next: u64,
    end_ns: u64,
}

impl Schedule {
    /// `rate` per second (above zero) for `duration`.
    pub(crate) fn new(arrival: Arrival, rate: f64, duration: Duration, seed: u64) -> Self {
        let end_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let stream = Stream::new(seed, 100);
        let gap_ns = 1e9 / rate;
        let walk = match &arrival {
            Arrival::Shaped { shape, .. } => Some(Walk::new(shape.clone())),
            Arrival::Constant | Arrival::Poisson => None,
        };
        let (count, at_ns, area, next) = (0, 0.0, 0.0, 0);
        Self { arrival, gap_ns, stream, count, at_ns, walk, area, next, end_ns }
    }

    /// The next planned time without taking it; `None` after the end.
    pub(crate) fn peek(&self) -> Option<u64> {
        (self.next < self.end_ns).then_some(self.next)
    }

    /// Takes all times up to `now_ns`.
    #[cfg(test)]
    pub(crate) fn skip_until(&mut self, now_ns: u64) {
        while self.peek().is_some_and(|at| at <= now_ns) {
            self.skip();
        }
    }

    /// Takes the next time.
    pub(crate) fn skip(&mut self) {
        self.count += 1;
        match &self.arrival {
            // Multiplied, not summed: no drift over a long run.
            Arrival::Constant => self.at_ns = self.count as f64 * self.gap_ns,
            Arrival::Poisson => {
                let uniform = 1.0 - self.stream.unit(self.count);
                self.at_ns -= uniform.ln() * self.gap_ns;
            }
            Arrival::Shaped { poisson: false, .. } => self.area = self.count as f64,
            Arrival::Shaped { poisson: true, .. } => {
                self.area -= (1.0 - self.stream.unit(self.count)).ln();
            }
        }
        self.follow();
        self.next = self.at_ns as u64;
    }

    /// Goes to where the shape has planned as many requests as are wanted.
    fn follow(&mut self) {
        if let Some(walk) = &mut self.walk {
            // Seconds at factor one, times the rate, are requests. What never comes
            // is at the end of time.
            self.at_ns = walk.time_of(self.area * self.gap_ns / 1e9) * 1e9;
        }
    }
}

impl Iterator for Schedule {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let at = self.peek()?;
        self.skip();
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(arrival: Arrival, rate: f64) -> Schedule {
        Schedule::new(arrival, rate, Duration::from_secs(10), 5)
    }

    #[test]
    fn constant_arrivals_are_even_and_do_not_drift() {
        let times: Vec<u64> = schedule(Arrival::Constant, 3_000.0).collect();
        assert_eq!(times.len(), 30_000);
        assert_eq!((times[0], times[3_000], times[29_999]), (0, 1_000_000_000, 9_999_666_666));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_exponential_gaps() {
        let times: Vec<u64> = schedule(Arrival::Poisson, 10_000.0).collect();
        assert!((times.len() as f64 / 100_000.0 - 1.0).abs() < 0.02, "{}", times.len());
        let long = times.windows(2).filter(|pair| pair[1] - pair[0] > 100_000).count();
        let share = long as f64 / times.len() as f64;
        assert!((share - (-1.0_f64).exp()).abs() < 0.01, "{share}");
        assert!(times.iter().copied().eq(schedule(Arrival::Poisson, 10_000.0)));
    }

    #[test]
    fn steps_change_the_rate() {
        let arrival = Arrival::parse("step:0=1,5=3").unwrap();
        let times: Vec<u64> = schedule(arrival.clone(), 1_000.0).collect();
        let early = times.iter().filter(|at| **at < 5_000_000_000).count();
        assert!((4_990..=5_010).contains(&early), "{early}");
        assert!((14_980..=15_020).contains(&(times.len() - early)), "{}", times.len());
        let expected = arrival.expected(1_000.0, Duration::from_secs(10));
        assert!((expected - 20_000.0).abs() < 1.0);
    }

    #[test]
    fn shaped_arrivals_are_as_many_as_their_integral_says() {
        let length = Duration::from_secs(10);
        for text in ["step:0=0.5,4=2", "ramp:0=0,5=2,10=1", "spike:3+1=8", "daily:4"] {
            let arrival = Arrival::parse(text).unwrap();
            let expected = arrival.expected(2_000.0, length);
            let times: Vec<u64> = schedule(arrival.clone(), 2_000.0).collect();
            assert!((times.len() as f64 - expected).abs() <= 1.0, "{text}: {}", times.len());
            assert!(times.is_sorted());
            // At every second, not only at the end.
            for second in 1..10 {
                let until = Duration::from_secs(second);
                let found = times.iter().filter(|at| **at < until.as_nanos() as u64).count();
                let planned = arrival.expected(2_000.0, until);
                assert!((found as f64 - planned).abs() <= 1.0, "{text} {second}: {found}");
            }
            let drawn = Arrival::parse(&format!("poisson+{text}")).unwrap();
            let times: Vec<u64> = schedule(drawn.clone(), 2_000.0).collect();
            assert!((times.len() as f64 / expected - 1.0).abs() < 0.04, "{text}: {}", times.len());
            assert!(times.iter().copied().eq(schedule(drawn, 2_000.0)), "a seed repeats it");
        }
    }

    #[test]
    fn a_ramp_to_zero_ends_its_schedule() {
        let arrival = Arrival::parse("ramp:0=1,5=0").unwrap();
        let times: Vec<u64> = schedule(arrival, 1_000.0).collect();
        assert!((2_499..=2_501).contains(&times.len()), "{}", times.len());
        assert!(times.iter().all(|at| *at <= 5_000_000_000));
    }

    #[test]
    fn skipping_equals_taking() {
        let mut a = schedule(Arrival::Poisson, 1_000.0);
        let mut b = a.clone();
        a.skip_until(1_000_000_000);
        while b.peek().is_some_and(|at| at <= 1_000_000_000) {
            b.next();
        }
        assert_eq!(a.peek(), b.peek());
    }

    #[test]
    fn bad_arrivals_are_refused() {
        for bad in ["", "sine", "step:", "step:1=1", "step:0=0", "step:0=1,0=2", "step:0=x"] {
            assert!(Arrival::parse(bad).is_err(), "{bad}");
        }
    }
}
