//! Whether a fault had an effect, as somebody else than its doer saw it. A fault without
//! one would let every drill pass.
//!
//! Pure.

use super::super::maximum::{is_measured, middle_ms, round_trip_ms};
use super::slow_disk::WRITES_PER_SECOND;
use crate::cluster::{Packets, Stats, Way, total, values};
use crate::exit::{Exit, Failure};
use crate::goal::parse_percent;
use std::time::Duration;

/// Lost packets that must be expected before none is no chance.
const LOST_LEAST: f64 = 20.0;
/// No link lives over more than this each way: heartbeats and handshakes come too late.
const LINK_MAX_MS: f64 = 250.0;
/// How many times as long writes to a slow disk take, on average.
const SLOWER: f64 = 3.0;
/// Part of the time that a throttled write takes at least: enough, however slow it was before.
const THROTTLED: f64 = 0.8;

/// Nothing can be said of what was not there.
pub(super) fn none(what: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Invalid, format_args!("no data: {what}"))
}

/// Three looks at the relay: before a cut, with it, and before it was undone.
pub(super) fn of_cut(way: Way, [before, cut, held]: &[Stats; 3]) -> Result<(), Failure> {
    let [before, cut, held] = [before, cut, held].map(|stats| stats.of(way));
    let lost = held.lost.saturating_sub(before.lost);
    let reason = match (before.passed, lost, held.passed.saturating_sub(cut.passed)) {
        (0, ..) => "nothing had passed there before".to_owned(),
        (_, 0, _) => "no packet was lost there".to_owned(),
        (_, _, 0) => return Ok(()),
        (_, _, passed) => format!("{passed} packets passed all the same"),
    };
    Err(none(format_args!("cut {way} had no effect: {reason}")))
}

/// Two looks at the relay with a distance, and what sites then said of their round trips,
/// seconds. Of a site that is away they say what was: half of them are enough.
///
/// So much of it may have been asked for that no link stays up: then sites measure nothing,
/// and the relay's word is enough; what was not looked at is told.
pub(super) fn of_distance(
    line: &str,
    hold: Duration,
    [before, after]: [Packets; 2],
    round_trips: Vec<f64>,
) -> Result<Option<&'static str>, Failure> {
    let without = |reason: String| Err(none(format_args!("{line} had no effect: {reason}")));
    let passed = after.passed.saturating_sub(before.passed);
    let lost = after.lost.saturating_sub(before.lost);
    let share = line.split_whitespace().find_map(|word| word.strip_prefix("loss="));
    let share = share.and_then(|share| parse_percent(share).ok()).unwrap_or(0.0);
    if passed == 0 {
        return match share > 0.0 && lost > 0 {
            true => Ok(Some("round trips not looked at: every packet was lost")),
            false => without("nothing passed between the sites".to_owned()),
        };
    }
    if lost == 0 && passed as f64 * share >= LOST_LEAST {
        return without(format!("of {passed} packets none was lost"));
    }
    let Some(wanted_ms) = round_trip_ms(line) else { return Ok(None) };
    if wanted_ms > 2.0 * LINK_MAX_MS {
        return Ok(Some("round trips not looked at: no link stays up over such a delay"));
    }
    if wanted_ms > hold.as_secs_f64() * 1e3 / 2.0 {
        return Ok(Some("round trips not looked at: one takes more than half of the time"));
    }
    match middle_ms(round_trips) {
        Some(ms) if is_measured(ms, wanted_ms) => Ok(None),
        Some(ms) => without(format!("sites measured a round trip of {ms:.1} ms")),
        None => without("no site told a round trip".to_owned()),
    }
}

/// Writes of a site's log so far, and how long they took together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Writes {
    count: u64,
    seconds: f64,
}

impl Writes {
    /// As a page of metrics tells them.
    pub(super) fn read(page: &str) -> Option<Self> {
        let count = total(page, "payswitch_fsync_seconds_count")?;
        let seconds = values(page, "payswitch_fsync_seconds_sum").next()?;
        Some(Self { count, seconds })
    }

    fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.seconds / self.count as f64)
    }

    fn since(self, before: Self) -> Self {
        let count = self.count.saturating_sub(before.count);
        Self { count, seconds: self.seconds - before.seconds }
    }
}

/// Three looks at a site: when its load had begun, when its disk became slow, and when it
/// had been for a while. One that wrote nothing at all meanwhile was slow indeed, and so was
/// one whose writes took about as long as the throttle makes them: its disk may have been
/// nearly as slow before.
pub(super) fn of_slow_disk([start, slow, end]: [Writes; 3]) -> Result<(), Failure> {
    let (before, during) = (slow.since(start).mean(), end.since(slow).mean());
    let throttled = THROTTLED / f64::from(WRITES_PER_SECOND);
    match (before, during) {
        (Some(before), Some(during)) if during < throttled.min(before * SLOWER) => {
            let (before, during) = (before * 1e3, during * 1e3);
            let text = format_args!(
                "the disk was not slow: a write took {before:.1} ms before and {during:.1} ms with it"
            );
            Err(none(text))
        }
        (None, _) => Err(none("the site had written nothing before its disk was slow")),
        _ => Ok(()),
    }
}

/// How far off a site saw its clock, whole seconds, and how often it read it meanwhile.
pub(super) fn of_clock(seconds: i64, seen_s: Option<u64>, shifted: i64) -> Result<(), Failure> {
    let seen = seen_s.is_some_and(|seen| seen + 1 >= seconds.unsigned_abs());
    match seen && (shifted > 0 || seconds == 0) {
        true => Ok(()),
        false => Err(none(format_args!(
            "the site read its clock {shifted} times while it was off by {seconds} s and saw {seen_s:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(2);

    fn told<T>(result: Result<T, Failure>) -> Option<String> {
        result.err().map(|failure| {
            assert_eq!(failure.exit, Exit::Invalid);
            failure.message
        })
    }

    #[test]
    fn a_cut_must_lose_packets_and_let_none_pass() {
        let stats = |passed: u64, lost: u64| {
            let text = format!("1>2 passed={passed} lost={lost}; 3>2 passed=9 lost=9; dropped=0");
            Stats::parse(&text).unwrap()
        };
        let looks = |before, held| told(of_cut(Way::From(1), &[before, stats(7, 0), held]));
        assert_eq!(looks(stats(5, 0), stats(7, 3)), None);
        for (before, held, reason) in [
            (stats(0, 0), stats(7, 3), "nothing had passed there before"),
            (stats(5, 0), stats(7, 0), "no packet was lost there"),
            (stats(5, 0), stats(8, 3), "1 packets passed all the same"),
        ] {
            let told = looks(before, held);
            assert_eq!(told, Some(format!("no data: cut 1>* had no effect: {reason}")));
        }
    }

    #[test]
    fn a_distance_must_be_measured_by_the_sites_and_a_loss_by_the_relay() {
        let of = |line, lost: u64, round_trips: &[f64]| {
            let packets =
                [Packets { passed: 5, lost: 1 }, Packets { passed: 5_005, lost: 1 + lost }];
            told(of_distance(line, HOLD, packets, round_trips.to_vec()))
        };
        assert_eq!(of("delay=5ms", 0, &[0.0098, 0.0102, 0.0, 0.0004]), None);
        assert!(of("delay=5ms", 0, &[0.0098, 0.0004, 0.0005]).unwrap().contains("of 0.5 ms"));
        assert!(of("delay=5ms", 0, &[0.0]).unwrap().contains("no site told"));
        assert_eq!(of("loss=1%", 40, &[]), None);
        assert!(of("loss=1%", 0, &[]).unwrap().contains("of 5000 packets none was lost"));
        assert_eq!(of("loss=0.1%", 0, &[]), None, "that may be chance");
        let still = [Packets { passed: 5, lost: 0 }; 2];
        let still = |line| told(of_distance(line, HOLD, still, Vec::new()));
        assert!(still("jitter=1ms").unwrap().contains("nothing passed"));
        assert!(still("loss=100%").unwrap().contains("nothing passed"), "nor was lost");
    }

    #[test]
    fn a_distance_that_no_link_survives_is_the_relay_s_word_and_says_so() {
        let of = |line, hold, passed: u64, lost: u64| {
            let packets =
                [Packets { passed: 5, lost: 1 }, Packets { passed: 5 + passed, lost: 1 + lost }];
            of_distance(line, hold, packets, vec![0.0004])
        };
        for (line, hold, passed, lost, why) in [
            ("loss=100%", HOLD, 0, 3, "every packet was lost"),
            ("delay=5ms loss=100%", HOLD, 0, 3, "every packet was lost"),
            ("delay=251ms", HOLD, 40, 0, "no link stays up"),
            ("delay=101ms", Duration::from_millis(400), 40, 0, "half of the time"),
        ] {
            let told = of(line, hold, passed, lost).ok().unwrap().unwrap();
            assert!(told.contains(why), "{line}: {told}");
        }
        // Packets that were lost without being asked for are no distance.
        assert!(of("delay=5ms", HOLD, 0, 3).is_err());
        assert!(of("delay=250ms", HOLD, 40, 0).is_err());
        assert!(of("delay=100ms", Duration::from_millis(400), 40, 0).is_err());
        assert!(of("delay=300ms loss=50%", HOLD, 1_000, 0).is_err());
    }

    #[test]
    fn a_step_of_the_clock_must_be_seen_by_the_site() {
        for (seconds, seen, shifted, says) in [
            (3_600, Some(3_600), 2, true),
            (-3_600, Some(3_599), 1, true),
            (3_600, Some(0), 7, false),
            (3_600, Some(3_600), 0, false),
            (3_600, None, 7, false),
            (1, Some(0), 1, true),
            (0, Some(0), 0, true),
        ] {
            let told = told(of_clock(seconds, seen, shifted));
            assert_eq!(told.is_none(), says, "{seconds} {seen:?} {shifted}");
        }
    }

    #[test]
    fn a_slow_disk_must_be_slow() {
        let page = "payswitch_fsync_seconds_bucket{site=\"1\",le=\"0.001\"} 7\n\
                    payswitch_fsync_seconds_sum{site=\"1\"} 0.5\n\
                    payswitch_fsync_seconds_count{site=\"1\"} 100\n";
        let writes = |count, seconds| Writes { count, seconds };
        assert_eq!(Writes::read(page), Some(writes(100, 0.5)));
        assert_eq!(Writes::read("payswitch_fsync_seconds_count 7\n"), None);
        let looks = |slow, end| told(of_slow_disk([writes(100, 0.5), slow, end]));
        assert_eq!(looks(writes(200, 0.8), writes(220, 1.8)), None);
        // Not one write came to its end.
        assert_eq!(looks(writes(200, 0.8), writes(200, 0.8)), None);
        let told = looks(writes(200, 0.8), writes(300, 1.2)).unwrap();
        assert!(told.contains("3.0 ms before and 4.0 ms with it"), "{told}");
        assert!(looks(writes(100, 0.5), writes(300, 9.0)).unwrap().contains("nothing before"));
        // 30 ms before: a slow machine. The throttle makes it 50.
        let slow = writes(110, 0.8);
        assert_eq!(looks(slow, writes(120, 0.8 + 10.0 * 0.041)), None);
        assert!(looks(slow, writes(120, 0.8 + 10.0 * 0.039)).unwrap().contains("39.0 ms with it"));
    }
}
