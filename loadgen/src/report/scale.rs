//! Scales, ticks and how numbers are written.
//!
//! Pure. Tested on its ticks and texts.

/// From values to places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    log: bool,
    from: f64,
    to: f64,
    place_from: f64,
    place_to: f64,
}

impl Scale {
    /// Evenly.
    pub(super) fn linear((from, to): (f64, f64), places: (f64, f64)) -> Self {
        let to = if to > from { to } else { from + 1.0 };
        Self { log: false, from, to, place_from: places.0, place_to: places.1 }
    }

    /// By the logarithm; both ends above zero.
    pub(super) fn log((from, to): (f64, f64), places: (f64, f64)) -> Self {
        let from = from.max(1e-9);
        let to = if to > from { to } else { from * 10.0 };
        Self { log: true, from, to, place_from: places.0, place_to: places.1 }
    }

    /// The place of a value; values beyond the ends stay at the ends.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = if value.is_nan() { self.from } else { value.clamp(self.from, self.to) };
        let share = match self.log {
            true => (value / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        };
        self.place_from + share * (self.place_to - self.place_from)
    }

    /// Round values to be marked, rising.
    pub(super) fn ticks(&self, count: usize) -> Vec<f64> {
        match self.log {
            true => log_ticks(self.from, self.to, count),
            false => linear_ticks(self.from, self.to, count),
        }
    }
}

/// 1, 2 or 5 times a power of ten apart, about `count` of them.
pub(super) fn linear_ticks(from: f64, to: f64, count: usize) -> Vec<f64> {
    if !(from.is_finite() && to.is_finite()) || to <= from {
        return vec![from];
    }
    let step = round_up((to - from) / count.max(1) as f64);
    let first = (from / step - 1e-9).ceil() as i64;
    let last = (to / step + 1e-9).floor() as i64;
    (first..=last).take(100).map(|n| n as f64 * step).collect()
}

/// The next of 1, 2, 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= value * (1.0 - 1e-9));
    digit.unwrap_or(10.0) * power
}

/// Powers of ten, with their 2 and 5 folds where there is room.
pub(super) fn log_ticks(from: f64, to: f64, count: usize) -> Vec<f64> {
    let (first, last) = (from.log10().floor() as i32, to.log10().ceil() as i32);
    let decades = (last - first).clamp(1, 40) as usize;
    let folds: &[f64] = match decades {
        d if d * 3 <= count => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let every = decades.div_ceil(count.max(1));
    let within = |tick: &f64| *tick >= from * (1.0 - 1e-9) && *tick <= to * (1.0 + 1e-9);
    (first..=last)
        .take(41)
        .step_by(every)
        .flat_map(|power| folds.iter().map(move |fold| fold * 10_f64.powi(power)))
        .filter(within)
        .collect()
}

/// The end of an axis that begins at zero: a little above the largest value.
pub(super) fn nice_end(value: f64) -> f64 {
    if !value.is_finite() || value <= 0.0 {
        return 1.0;
    }
    let step = round_up(value / 5.0);
    (value / step - 1e-9).ceil() * step
}

/// A count or rate in few characters: 950, 1.2k, 40k, 2.5M.
pub(super) fn compact(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    format!("{}{unit}", digits(scaled))
}

/// Three significant digits at most, without trailing zeros.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.places$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Microseconds with the unit that suits; infinite is what never came.
pub(super) fn time(us: f64) -> String {
    match us {
        us if us.is_infinite() => "never".to_owned(),
        us if us >= 1e6 => format!("{} s", digits(us / 1e6)),
        us if us >= 1e3 => format!("{} ms", digits(us / 1e3)),
        us => format!("{} µs", digits(us)),
    }
}

/// Microseconds that may be missing.
pub(super) fn time_or(us: Option<f64>) -> String {
    us.map_or_else(|| "–".to_owned(), time)
}

/// A whole number with thousands set apart.
pub(super) fn grouped(value: f64) -> String {
    let plain = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in plain.chars().enumerate() {
        if at > 0 && (plain.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("−{text}") } else { text }
}

/// A share in percent.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 0.01 {
        return "< 0.01 %".to_owned();
    }
    format!("{} %", digits(percent))
}

/// Day and minute in UTC of seconds since 1970.
pub(super) fn date(unix_s: u64) -> String {
    let (days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    // Days counted from 1 March of year 0, in eras of 400 years.
    let days = days.min(4_000_000) + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (seconds / 3_600, seconds % 3_600 / 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_ticks_are_round_and_stay_within() {
        assert_eq!(linear_ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear_ticks(0.0, 1.0, 4), [0.0, 0.5, 1.0]);
        assert_eq!(linear_ticks(3.0, 47.0, 5), [10.0, 20.0, 30.0, 40.0]);
        assert_eq!(linear_ticks(1.0, 1.0, 5), [1.0]);
        assert_eq!(linear_ticks(0.0, f64::INFINITY, 5), [0.0]);
    }

    #[test]
    fn log_ticks_are_decades_or_finer_where_there_is_room() {
        assert_eq!(log_ticks(100.0, 10_000.0, 6), [100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4]);
        assert_eq!(log_ticks(100.0, 1e6, 5), [1e2, 1e3, 1e4, 1e5, 1e6]);
        assert_eq!(log_ticks(300.0, 2e4, 3), [1e3, 1e4]);
        assert!(log_ticks(1e-300, 1e300, 6).len() < 60);
    }

    #[test]
    fn scales_map_their_ends_and_hold_what_lies_beyond() {
        let scale = Scale::linear((0.0, 10.0), (100.0, 0.0));
        assert_eq!((scale.at(0.0), scale.at(5.0), scale.at(10.0)), (100.0, 50.0, 0.0));
        assert_eq!((scale.at(-1.0), scale.at(1e9), scale.at(f64::NAN)), (100.0, 0.0, 100.0));
        let scale = Scale::log((1.0, 100.0), (0.0, 200.0));
        assert!((scale.at(10.0) - 100.0).abs() < 1e-9);
        assert!(Scale::log((0.0, 0.0), (0.0, 1.0)).at(0.0).is_finite());
        assert!(Scale::linear((5.0, 5.0), (0.0, 1.0)).at(5.0).is_finite());
    }

    #[test]
    fn axes_end_a_little_above() {
        assert_eq!((nice_end(0.0), nice_end(9.3), nice_end(20_100.0)), (1.0, 10.0, 25_000.0));
        assert_eq!(nice_end(f64::NAN), 1.0);
    }

    #[test]
    fn numbers_are_short_and_carry_their_unit() {
        let compacted = [0.0, 950.0, 1_234.0, 40_000.0, 2.5e6].map(compact);
        assert_eq!(compacted, ["0", "950", "1.23k", "40k", "2.5M"]);
        let times = [0.0, 250.0, 1_200.0, 10_000.0, 2_345_678.0].map(time);
        assert_eq!(times, ["0 µs", "250 µs", "1.2 ms", "10 ms", "2.35 s"]);
        assert_eq!(
            [1.0, 999.0, 1_000.0, 1_234_567.0].map(grouped),
            ["1", "999", "1,000", "1,234,567"]
        );
        assert_eq!([0.0, 0.000_01, 0.005, 1.0].map(percent), ["0 %", "< 0.01 %", "0.5 %", "100 %"]);
    }

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_798_718_399), "2026-12-31 11:59 UTC");
    }
}
