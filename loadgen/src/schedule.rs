//! When request `n` should leave: planned times, decided before the run.
//!
//! An endless iterator of offsets from the start, cut by the caller. Pure: two
//! copies give the same times, so the pacer and the driver each own one and
//! hand nothing over. Tested for rates, purity and parsing.

use crate::rng::Stream;
use std::time::Duration;

/// How requests arrive.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Arrival {
    /// Evenly.
    Constant,
    /// Independently of each other: exponential gaps.
    Poisson,
    /// Evenly, with a factor on the rate from each offset on, in rising order.
    Steps(Vec<(Duration, f64)>),
}

impl Arrival {
    /// Reads `constant`, `poisson` or `step:0=0.5,10=1,20=3` (second=factor).
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "constant" => return Ok(Self::Constant),
            "poisson" => return Ok(Self::Poisson),
            _ => {}
        }
        let steps =
            text.strip_prefix("step:").ok_or("constant, poisson or step:SECOND=FACTOR,..")?;
        let mut parsed: Vec<(Duration, f64)> = Vec::new();
        for step in steps.split(',') {
            let numbers = step.split_once('=').and_then(|(at, factor)| {
                let at = Duration::try_from_secs_f64(at.trim().parse().ok()?).ok()?;
                let factor: f64 = factor.trim().parse().ok()?;
                (0.001..=1_000.0).contains(&factor).then_some((at, factor))
            });
            let (at, factor) =
                numbers.ok_or_else(|| format!("{step:?} is not SECOND=FACTOR (0.001 to 1000)"))?;
            if parsed.last().is_some_and(|last| last.0 >= at) {
                return Err(format!("{step:?}: seconds must rise"));
            }
            parsed.push((at, factor));
        }
        if parsed.first().is_none_or(|first| !first.0.is_zero()) {
            return Err("the first step must start at second 0".to_owned());
        }
        Ok(Self::Steps(parsed))
    }

    /// Requests planned in `duration` at `rate`, in expectation.
    pub(crate) fn expected(&self, rate: f64, duration: Duration) -> f64 {
        let Self::Steps(steps) = self else { return rate * duration.as_secs_f64() };
        let ends = steps.iter().skip(1).map(|step| step.0).chain([duration]);
        let spans = steps.iter().zip(ends).map(|((from, factor), to)| {
            to.min(duration).saturating_sub(*from).as_secs_f64() * factor
        });
        spans.sum::<f64>() * rate
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
    step: usize,
    next: u64,
    end_ns: u64,
}

impl Schedule {
    /// `rate` per second (above zero) for `duration`.
    pub(crate) fn new(arrival: Arrival, rate: f64, duration: Duration, seed: u64) -> Self {
        let end_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let stream = Stream::new(seed, 100);
        let gap_ns = 1e9 / rate;
        Self { arrival, gap_ns, stream, count: 0, at_ns: 0.0, step: 0, next: 0, end_ns }
    }

    /// The next planned time without taking it; `None` after the end.
    pub(crate) fn peek(&self) -> Option<u64> {
        (self.next < self.end_ns).then_some(self.next)
    }

    /// Takes all times up to `now_ns`.
    pub(crate) fn skip_until(&mut self, now_ns: u64) {
        while self.peek().is_some_and(|at| at <= now_ns) {
            self.advance();
        }
    }

    /// Takes the next time.
    pub(crate) fn skip(&mut self) {
        self.advance();
    }

    fn advance(&mut self) {
        self.count += 1;
        match &self.arrival {
            // Multiplied, not summed: no drift over a long run.
            Arrival::Constant => self.at_ns = self.count as f64 * self.gap_ns,
            Arrival::Poisson => {
                let uniform = 1.0 - self.stream.unit(self.count);
                self.at_ns -= uniform.ln() * self.gap_ns;
            }
            Arrival::Steps(steps) => {
                while steps
                    .get(self.step + 1)
                    .is_some_and(|(from, _)| self.at_ns >= from.as_nanos() as f64)
                {
                    self.step += 1;
                }
                self.at_ns += self.gap_ns / steps.get(self.step).map_or(1.0, |step| step.1);
            }
        }
        self.next = self.at_ns as u64;
    }
}

impl Iterator for Schedule {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let at = self.peek()?;
        self.advance();
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
