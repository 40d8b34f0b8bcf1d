//! Tells a standing queue from a burst: only the first is overload.
//!
//! A process that stood still for 100 ms (a takeover, a neighbour's restart, the
//! host) finds everything late at once, and is through with it in a few: to
//! refuse that would fail payments for nothing. When the queue is still late
//! after the bound's time of work, more comes than goes, and late requests are
//! refused at once, until it has been in time for a while. Pure.

/// Time between two looks that counts at most: what the process did not get is
/// no time in which it could have worked the queue off.
const STEP_MAX_US: u64 = 10_000;
/// After the last refusal a late queue is overload at once for so many times the
/// bound: overload does not get its grace over and over.
const ALERT_TIMES: u64 = 10;
/// What is late by so many times the bound is refused in any case: whoever asked
/// has probably gone, and a worker that was held up for seconds must come back.
const HOPELESS_TIMES: u64 = 10;

/// Watches how late things are when their turn comes.
#[derive(Clone, Debug)]
pub struct Standing {
    bound_us: u64,
    looked_us: u64,
    late_us: u64,
    alert_until_us: u64,
}

impl Standing {
    /// Late is what waited longer than this.
    pub fn new(bound_us: u64) -> Self {
        Self { bound_us, looked_us: 0, late_us: 0, alert_until_us: 0 }
    }

    /// What is looked at now waited for `delay_us`. Whether to refuse it.
    pub fn refuses(&mut self, delay_us: u64, now_us: u64) -> bool {
        let step_us = now_us.saturating_sub(std::mem::replace(&mut self.looked_us, now_us));
        if delay_us <= self.bound_us {
            self.late_us = 0;
            return false;
        }
        self.late_us += step_us.min(STEP_MAX_US);
        let stands = self.late_us >= self.bound_us || now_us < self.alert_until_us;
        if stands {
            self.alert_until_us = now_us + ALERT_TIMES * self.bound_us;
        }
        stands || delay_us > HOPELESS_TIMES * self.bound_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    /// Looks every 2 ms at a queue that is this late; how many are refused.
    fn refused(standing: &mut Standing, now: &mut u64, delays: impl Iterator<Item = u64>) -> usize {
        let mut refuse = |delay| {
            *now += 2 * MS;
            standing.refuses(delay, *now)
        };
        delays.filter(|delay| refuse(*delay)).count()
    }

    #[test]
    fn a_burst_after_a_stall_is_taken() {
        let (mut standing, mut now) = (Standing::new(100 * MS), 0);
        assert_eq!(refused(&mut standing, &mut now, (0..50).map(|_| MS)), 0);
        for _ in 0..20 {
            // Stood still for 300 ms; then caught up within 90.
            now += 300 * MS;
            let delays = (0..45).map(|at| 300 * MS - at * 4 * MS);
            assert_eq!(refused(&mut standing, &mut now, delays), 0);
            assert_eq!(refused(&mut standing, &mut now, (0..10).map(|_| 50 * MS)), 0);
        }
    }

    #[test]
    fn stalls_alone_are_no_standing_queue() {
        let (mut standing, mut now) = (Standing::new(100 * MS), 0);
        for _ in 0..5 {
            now += 500 * MS;
            assert!(!standing.refuses(500 * MS, now), "it got no time to work");
        }
    }

    #[test]
    fn a_queue_that_stays_late_is_refused_and_gets_no_new_grace() {
        let (mut standing, mut now) = (Standing::new(100 * MS), 0);
        let taken = 200 - refused(&mut standing, &mut now, (0..200).map(|_| 150 * MS));
        assert_eq!(taken, 49, "late for the bound's time");
        // Refusing has brought it down; more than it can do still comes.
        for _ in 0..20 {
            assert_eq!(refused(&mut standing, &mut now, (0..10).map(|_| 90 * MS)), 0);
            assert_eq!(refused(&mut standing, &mut now, (0..10).map(|_| 110 * MS)), 10);
        }
        // In time for ten times the bound: a burst is a burst again.
        assert_eq!(refused(&mut standing, &mut now, (0..500).map(|_| 20 * MS)), 0);
        assert_eq!(refused(&mut standing, &mut now, (0..10).map(|_| 110 * MS)), 0);
    }

    #[test]
    fn what_is_hopelessly_late_is_refused_at_once() {
        let mut standing = Standing::new(100 * MS);
        assert!(standing.refuses(1_001 * MS, 2_000 * MS));
        assert!(!standing.refuses(1_000 * MS, 2_001 * MS), "and says nothing of the rest");
    }
}
