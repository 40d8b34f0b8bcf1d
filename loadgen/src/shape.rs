//! How a rate changes over time: a factor that is piecewise linear, and where the
//! load planned so far adds up to a given amount.
//!
//! Pure. The same integral says how many requests are planned and when each of
//! them is, so that the two never differ. Tested on both against each other.

use std::time::Duration;

/// Largest factor.
const FACTOR_MAX: f64 = 1_000.0;
/// Smallest factor of a step; a ramp may touch zero.
const FACTOR_MIN: f64 = 0.001;
/// Points at most.
const POINTS_MAX: usize = 1_000;

/// A piece: from a time on, a factor that changes evenly.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    from_s: f64,
    factor: f64,
    slope: f64,
}

/// A factor over time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pieces: Vec<Piece>,
    /// After so long it begins again.
    period_s: Option<f64>,
}

/// The load of a day by hours, its busiest at one: quiet nights, a noon and an
/// evening peak, as shops see them.
const DAY: [f64; 24] = [
    0.18, 0.12, 0.08, 0.06, 0.06, 0.09, 0.18, 0.34, 0.50, 0.62, 0.72, 0.88, 0.95, 0.80, 0.70, 0.68,
    0.72, 0.82, 0.94, 1.00, 0.97, 0.82, 0.55, 0.32,
];

impl Shape {
    /// Reads `step:`, `ramp:`, `spike:` or `daily:` with its numbers.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, numbers) = text.split_once(':').ok_or_else(usage)?;
        match name {
            "step" => Self::steps(&points(numbers, FACTOR_MIN)?),
            "ramp" => Self::ramps(&points(numbers, 0.0)?),
            "spike" => Self::spikes(numbers),
            "daily" => Self::daily(numbers),
            _ => Err(usage()),
        }
    }

    fn steps(points: &[(f64, f64)]) -> Result<Self, String> {
        if points[0].0 > 0.0 {
            return Err("the first step must start at second 0".to_owned());
        }
        let piece = |&(from_s, factor): &(f64, f64)| Piece { from_s, factor, slope: 0.0 };
        Ok(Self { pieces: points.iter().map(piece).collect(), period_s: None })
    }

    /// Straight lines between the points; the last factor stays.
    fn ramps(points: &[(f64, f64)]) -> Result<Self, String> {
        if points[0].0 > 0.0 {
            return Err("the first point must be at second 0".to_owned());
        }
        if points.iter().all(|point| point.1 == 0.0) {
            return Err("a ramp of zeros plans nothing".to_owned());
        }
        let piece = |(at, &(from_s, factor)): (usize, &(f64, f64))| {
            let slope =
                points.get(at + 1).map_or(0.0, |next| (next.1 - factor) / (next.0 - from_s));
            Piece { from_s, factor, slope }
        };
        Ok(Self { pieces: points.iter().enumerate().map(piece).collect(), period_s: None })
    }

    /// One, with another factor for a while: `SECOND+LENGTH=FACTOR,..`.
    fn spikes(numbers: &str) -> Result<Self, String> {
        let mut pieces = vec![Piece { from_s: 0.0, factor: 1.0, slope: 0.0 }];
        let mut free_s = 0.0;
        for spike in numbers.split(',') {
            let bad = || format!("{spike:?} is not SECOND+LENGTH=FACTOR (0.001 to 1000)");
            let (span, factor) = spike.split_once('=').ok_or_else(bad)?;
            let (at, length) = span.split_once('+').ok_or_else(bad)?;
            let factor = number(factor, FACTOR_MIN, FACTOR_MAX).ok_or_else(bad)?;
            let at = number(at, 0.0, 1e9).ok_or_else(bad)?;
            let length = number(length, 0.001, 1e9).ok_or_else(bad)?;
            if at < free_s {
                return Err(format!("{spike:?}: spikes must follow each other"));
            }
            if at == pieces.last().map_or(0.0, |last| last.from_s) {
                pieces.pop();
            }
            free_s = at + length;
            pieces.push(Piece { from_s: at, factor, slope: 0.0 });
            pieces.push(Piece { from_s: free_s, factor: 1.0, slope: 0.0 });
            if pieces.len() > POINTS_MAX {
                return Err(format!("at most {POINTS_MAX} points"));
            }
        }
        Ok(Self { pieces, period_s: None })
    }

    /// A day in so many seconds, again and again.
    fn daily(numbers: &str) -> Result<Self, String> {
        let period_s = number(numbers, 1.0, 604_800.0)
            .ok_or_else(|| format!("{numbers:?}: a day lasts 1 to 604800 seconds"))?;
        let hour_s = period_s / 24.0;
        let hours = (0..=24).map(|hour| (f64::from(hour) * hour_s, DAY[hour as usize % 24]));
        let mut shape = Self::ramps(&hours.collect::<Vec<_>>())?;
        shape.pieces.pop();
        shape.period_s = Some(period_s);
        Ok(shape)
    }

    /// The factor's integral over the first `duration`, in seconds at factor one.
    pub(crate) fn integral(&self, duration: Duration) -> f64 {
        let until_s = duration.as_secs_f64();
        let Some(period_s) = self.period_s else { return self.area(until_s) };
        let whole = (until_s / period_s).floor();
        whole * self.area(period_s) + self.area(until_s - whole * period_s)
    }

    /// The integral within one period.
    fn area(&self, until_s: f64) -> f64 {
        let within = |at: usize| {
            let end_s = self.end_s(at).min(until_s);
            self.pieces[at].area((end_s - self.pieces[at].from_s).max(0.0))
        };
        (0..self.pieces.len()).map(within).sum()
    }

    fn end_s(&self, at: usize) -> f64 {
        let next = self.pieces.get(at + 1).map(|next| next.from_s);
        next.or(self.period_s).unwrap_or(f64::INFINITY)
    }
}

impl Piece {
    /// The integral over its first `for_s` seconds.
    fn area(&self, for_s: f64) -> f64 {
        let grown = if self.slope == 0.0 { 0.0 } else { self.slope * for_s / 2.0 * for_s };
        if self.factor == 0.0 { grown } else { self.factor * for_s + grown }
    }

    /// After how many seconds its integral is `area`, which it reaches.
    fn time_of(&self, area: f64) -> f64 {
        if area <= 0.0 {
            return 0.0;
        }
        // The root that stays exact when the slope is nothing.
        let root = (self.factor * self.factor + 2.0 * self.slope * area).max(0.0).sqrt();
        2.0 * area / (self.factor + root)
    }
}

/// Walks along a shape.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    shape: Shape,
    at: usize,
    /// When the running period began.
    period_start_s: f64,
    /// The integral up to the running piece.
    area: f64,
}

impl Walk {
    /// Starts at the beginning.
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape, at: 0, period_start_s: 0.0, area: 0.0 }
    }

    /// When the integral is `area`, in seconds; asked with rising areas only.
    /// Infinite when it never is.
    pub(crate) fn time_of(&mut self, area: f64) -> f64 {
        loop {
            let piece = self.shape.pieces[self.at];
            let end_s = self.shape.end_s(self.at);
            let whole = piece.area(end_s - piece.from_s);
            if area - self.area <= whole {
                let time = piece.time_of(area - self.area);
                return self.period_start_s + piece.from_s + time;
            }
            if end_s.is_infinite() {
                // The last factor is zero.
                return f64::INFINITY;
            }
            self.area += whole;
            self.at += 1;
            if self.at == self.shape.pieces.len() {
                self.at = 0;
                self.period_start_s += end_s;
            }
        }
    }
}

fn usage() -> String {
    "constant, poisson, step:SECOND=FACTOR,.., ramp:SECOND=FACTOR,.., \
     spike:SECOND+LENGTH=FACTOR,.. or daily:SECONDS"
        .to_owned()
}

fn number(text: &str, from: f64, to: f64) -> Option<f64> {
    text.trim().parse().ok().filter(|number| (from..=to).contains(number))
}

/// Reads `SECOND=FACTOR,..` with rising seconds.
fn points(text: &str, factor_min: f64) -> Result<Vec<(f64, f64)>, String> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for point in text.split(',') {
        let read = point.split_once('=').and_then(|(at, factor)| {
            Some((number(at, 0.0, 1e9)?, number(factor, factor_min, FACTOR_MAX)?))
        });
        let bad = || format!("{point:?} is not SECOND=FACTOR ({factor_min} to {FACTOR_MAX})");
        let read = read.ok_or_else(bad)?;
        if points.last().is_some_and(|last| last.0 >= read.0) {
            return Err(format!("{point:?}: seconds must rise"));
        }
        points.push(read);
        if points.len() > POINTS_MAX {
            return Err(format!("at most {POINTS_MAX} points"));
        }
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integral(text: &str, seconds: f64) -> f64 {
        Shape::parse(text).unwrap().integral(Duration::from_secs_f64(seconds))
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6 * expected.max(1.0), "{found} {expected}");
    }

    #[test]
    fn integrals_are_the_areas_below() {
        close(integral("step:0=0.5,10=2", 15.0), 5.0 + 10.0);
        close(integral("ramp:0=0,10=2", 5.0), 2.5);
        close(integral("ramp:0=0,10=2", 15.0), 10.0 + 10.0);
        close(integral("ramp:0=1,10=0,20=1", 20.0), 10.0);
        close(integral("spike:10+2=5", 20.0), 18.0 + 10.0);
        close(integral("spike:0+2=3,2+1=5", 10.0), 6.0 + 5.0 + 7.0);
        let day: f64 = DAY.iter().sum::<f64>() / 24.0;
        close(integral("daily:60", 60.0), day * 60.0);
        close(integral("daily:60", 150.0), 2.0 * day * 60.0 + integral("daily:60", 30.0));
    }

    #[test]
    fn the_walk_finds_the_time_of_every_area() {
        for text in [
            "step:0=0.5,3=2,4=0.001,6=7",
            "ramp:0=0,5=3,7=0.2",
            "spike:2+3=9",
            "daily:7",
            "ramp:0=2,1=0,2=0,3=1",
        ] {
            let shape = Shape::parse(text).unwrap();
            let mut walk = Walk::new(shape.clone());
            let whole = shape.integral(Duration::from_secs(20));
            let mut last = -1.0;
            for step in 1..5_000 {
                let area = whole * f64::from(step) / 5_000.0;
                let time = walk.time_of(area);
                assert!(time >= last, "{text} {area}");
                last = time;
                close(shape.integral(Duration::from_secs_f64(time)), area);
            }
        }
    }

    #[test]
    fn a_ramp_to_zero_ends() {
        let mut walk = Walk::new(Shape::parse("ramp:0=1,10=0").unwrap());
        close(walk.time_of(5.0 - 1e-9), 10.0 - 1.414e-4);
        assert!(walk.time_of(5.1).is_infinite());
    }

    #[test]
    fn impossible_shapes_are_refused_in_a_line() {
        for bad in [
            "",
            "sine",
            "step:",
            "step:1=1",
            "step:0=0",
            "step:0=1,0=2",
            "step:0=x",
            "step:0=nan",
            "ramp:0=-1",
            "ramp:5=1",
            "ramp:0=0",
            "ramp:0=0,5=0",
            "ramp:0=1001",
            "spike:1=2",
            "spike:1+0=2",
            "spike:5+5=2,9+1=2",
            "spike:1+1=0",
            "daily:",
            "daily:0",
            "daily:inf",
        ] {
            let refused = Shape::parse(bad).unwrap_err();
            assert!(!refused.is_empty() && !refused.contains('\n'), "{bad}");
        }
        let many: Vec<String> = (0..2_000).map(|at| format!("{at}=1")).collect();
        assert!(Shape::parse(&format!("step:{}", many.join(","))).is_err());
    }
}
