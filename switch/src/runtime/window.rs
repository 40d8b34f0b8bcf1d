//! How many requests may be unanswered at once: all that the site has room for, until they
//! spend too long in its own hands.
//!
//! A switch that takes more than it can do does not get slower at one place where a queue
//! could be watched: each hand-over between its threads and each write of the log takes a
//! bit longer. What counts is their sum, the delay: twice the wait for a worker and for a
//! durable record, and four turns of the network thread (request, request to the channel,
//! its answer, answer). A channel that takes its time is no part of it.
//!
//! Waits for threads tell overload; a slow disk makes none. When they have been too long for a
//! while, the window closes until the delay is at its target, as TCP Vegas does with packets
//! (Brakmo and Peterson, 1995). It does not close below what can be answered within the target
//! where all goes well: what else runs on the machine lengthens the delay, too, and to refuse
//! more is no help against that. A burst after a stall is through before the window closes if it
//! waits for less than a quarter of a second: it depends on how much of the capacity is free.
//!
//! Pure: the time and all that is measured come from outside.

/// Waits for threads tell overload above this part of the delay's target: one half.
const WAITS: u64 = 2;
/// For so much time that the site had to work, microseconds; half of the time without is
/// taken off.
const GRACE_US: u64 = 250_000;
/// Waits are averaged over so long before they are judged, microseconds: one look sees the
/// turns of a few batches.
const SMOOTH_US: u64 = 50_000;
/// Time between two looks that counts at most: what the process did not get is no time in
/// which it could have worked.
const STEP_MAX_US: u64 = 10_000;
/// Least time between two looks, microseconds.
const LOOK_US: u64 = 5_000;
/// Over so long is averaged, microseconds.
const AVERAGE_US: u64 = 100_000;
/// What a payment waits for its two records at best, in writes of the log: it comes on top of
/// the target.
const WRITES: u64 = 3;
/// The window closes no further, whatever is measured.
const SIZE_MIN: usize = 64;
/// Nothing was refused for so long, or only at moments, or nothing came of the workers that
/// could be measured: it is over, microseconds.
const OVER_US: u64 = 1_000_000;
/// Moments: no more than one look in so many. Where a bit too much comes all the time, most
/// looks have refused some of it.
const MOMENTS: u32 = 8;
/// What was measured at best, and the capacity, follow what is measured now within so long,
/// microseconds: disks, channels and the mix of requests change.
const FORGET_US: u64 = 60_000_000;

/// What was measured of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    sum_us: u64,
    count: u64,
    least_us: u64,
}

impl Measured {
    /// So many took so long, microseconds.
    pub fn add(&mut self, us: u64, count: u64) {
        self.merge(Self { sum_us: us.saturating_mul(count), count, least_us: us });
    }

    /// All that another holds.
    pub fn merge(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        let none = self.count == 0;
        self.least_us = if none { other.least_us } else { self.least_us.min(other.least_us) };
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.count += other.count;
    }

    /// 0 when there was nothing.
    fn mean_us(self) -> u64 {
        self.sum_us.checked_div(self.count).unwrap_or(0)
    }
}

/// What requests waited for, within one span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From the network thread to the hand of a worker that does not sleep.
    pub queued: Measured,
    /// From the worker to the network thread's hand.
    pub turn: Measured,
    /// From the worker's hand until a record is durable.
    pub durable: Measured,
    /// At the channel.
    pub channel: Measured,
}

impl Times {
    /// All that other ones hold.
    pub fn merge(&mut self, other: &Self) {
        self.queued.merge(other.queued);
        self.turn.merge(other.turn);
        self.durable.merge(other.durable);
        self.channel.merge(other.channel);
    }

    /// What a payment waits for threads.
    fn waits_us(&self) -> u64 {
        2 * self.queued.mean_us() + 4 * self.turn.mean_us()
    }

    /// What it waits in the site's own hands.
    fn delay_us(&self) -> u64 {
        self.waits_us() + 2 * self.durable.mean_us()
    }
}

/// What was measured at best; it grows to e times its size within [`FORGET_US`].
#[derive(Clone, Copy, Debug, Default)]
struct Best {
    /// Nanoseconds; `None` before anything was measured.
    ns: Option<u64>,
}

impl Best {
    fn look(&mut self, measured: Measured, step_us: u64) {
        if measured.count == 0 {
            return;
        }
        let ns = measured.least_us.saturating_mul(1_000);
        let grown = |best: u64| {
            let by = u128::from(best) * u128::from(step_us.min(FORGET_US));
            best.saturating_add(by.div_ceil(u128::from(FORGET_US)).max(1) as u64)
        };
        self.ns = Some(self.ns.map_or(ns, |best| ns.min(grown(best))));
    }

    /// 0 before anything was measured.
    fn us(self) -> u64 {
        self.ns.unwrap_or(0) / 1_000
    }
}

/// The window.
#[derive(Clone, Debug)]
pub struct Window {
    most: usize,
    target_us: u64,
    size: usize,
    times: Times,
    answered: u64,
    looked_us: u64,
    /// Time until a record is durable, at best.
    durable: Best,
    /// Time at channels, at best.
    channel: Best,
    /// Answers per second, averaged.
    rate: u64,
    /// The most of that.
    capacity: u64,
    /// Waits for threads, averaged.
    waits_us: u64,
    /// For how long there have been too long waits, less half of the time without.
    above_us: u64,
    /// There is overload; when the window refused last, or began to.
    refused_us: Option<u64>,
    /// It has refused since the last look.
    refuses: bool,
    /// So has somebody else.
    sheds: bool,
    /// The second that runs while it is closed.
    span: Span,
}

/// Looks within a time.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    from_us: u64,
    looks: u32,
    /// Those since whose predecessor something was refused.
    refused: u32,
}

impl Window {
    /// At most `most` requests, and fewer while the delay would stay above `target_us`.
    pub fn new(most: usize, target_us: u64) -> Self {
        Self {
            most,
            target_us,
            size: most,
            times: Times::default(),
            answered: 0,
            looked_us: 0,
            durable: Best::default(),
            channel: Best::default(),
            rate: 0,
            capacity: 0,
            waits_us: 0,
            above_us: 0,
            refused_us: None,
            refuses: false,
            sheds: false,
            span: Span::default(),
        }
    }

    /// Requests that may be unanswered now.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether one more is refused while so many are unanswered. Who has no more than a `fair`
    /// part of them is let in up to a quarter beyond, where others fill a window that has closed.
    pub fn refuses(&mut self, unanswered: usize, fair: bool, now_us: u64) -> bool {
        self.expire(now_us);
        let size = if fair { (self.size + self.size / 4).min(self.most) } else { self.size };
        let refuses = unanswered >= size;
        self.refuses |= refuses;
        refuses
    }

    /// A request was refused whatever the window says: a worker or the network thread is behind.
    pub fn shed(&mut self) {
        self.sheds = true;
    }

    /// Opens it where nothing tells any more that there is overload: the site was idle, leads
    /// no shard now, or all that it took waits for others.
    pub fn expire(&mut self, now_us: u64) {
        if self.refused_us.is_some() && now_us.saturating_sub(self.looked_us) > OVER_US {
            self.open();
        }
    }

    fn open(&mut self) {
        (self.size, self.above_us, self.refused_us) = (self.most, 0, None);
        self.waits_us = 0;
    }

    /// An operation was at its channel for so long.
    pub fn at_channel(&mut self, took_us: u64) {
        self.times.channel.add(took_us, 1);
    }

    /// A worker has answered a request, and not refused it.
    pub fn answered(&mut self) {
        self.answered += 1;
    }

    /// Takes what was measured, while so many requests are unanswered.
    pub fn measured(&mut self, times: &Times, unanswered: usize, now_us: u64) {
        self.times.merge(times);
        let step_us = now_us.saturating_sub(self.looked_us);
        if step_us < LOOK_US {
            return;
        }
        self.expire(now_us);
        self.looked_us = now_us;
        let times = std::mem::take(&mut self.times);
        self.average(&times, step_us);
        let refuses = std::mem::take(&mut self.refuses);
        let any = refuses | std::mem::take(&mut self.sheds);
        if self.refused_us.is_none() {
            if !self.is_overload(times.waits_us(), step_us) {
                return;
            }
            self.size = unanswered.min(self.most);
            self.refused_us = Some(now_us);
            self.span = Span { from_us: now_us, ..Span::default() };
        }
        self.adjust(&times, refuses);
        if any {
            self.refused_us = Some(now_us);
        }
        if self.is_over(any, now_us) {
            self.open();
        }
    }

    fn is_over(&mut self, refused: bool, now_us: u64) -> bool {
        let span = &mut self.span;
        span.looks += 1;
        span.refused += u32::from(refused);
        let moments = now_us.saturating_sub(span.from_us) > OVER_US && {
            let ended = std::mem::replace(span, Span { from_us: now_us, ..Span::default() });
            ended.refused * MOMENTS <= ended.looks
        };
        moments || self.refused_us.is_some_and(|at| now_us.saturating_sub(at) > OVER_US)
    }

    fn is_overload(&mut self, waits_us: u64, step_us: u64) -> bool {
        let most_us = self.target_us / WAITS;
        let busy_us = step_us.min(STEP_MAX_US);
        // The rest was time in which nothing waited.
        let idle_us = step_us - busy_us;
        // What is four times too long tells no more if it is longer: a stall is soon forgotten.
        let waits_us = waits_us.min(4 * most_us);
        self.waits_us = averaged(self.waits_us, 0, idle_us);
        self.waits_us = averaged(self.waits_us, waits_us, busy_us);
        let above_us = if self.waits_us > most_us { busy_us } else { 0 };
        let without_us = (step_us - above_us) / 2;
        self.above_us = self.above_us.saturating_sub(without_us) + above_us;
        self.above_us >= GRACE_US
    }

    fn adjust(&mut self, times: &Times, refuses: bool) {
        let target_us = self.target_us + WRITES * self.durable.us();
        let (delay_us, waits_us) = (times.delay_us(), times.waits_us());
        // Where threads are in time, the delay is no reason to refuse.
        if delay_us > target_us && waits_us > self.target_us / WAITS {
            let wanted = self.size as u64 * target_us / delay_us;
            // Not below half at once: what is measured now was let in a while ago.
            self.size = (wanted as usize).clamp(self.size / 2, self.size * 31 / 32);
        } else if refuses {
            self.size += (self.size / 16).max(4);
        }
        // As many as leave within the target, where all goes well (Little's law).
        let within = self.capacity.saturating_mul(target_us + self.channel.us()) / 1_000_000;
        self.size = self.size.max(within as usize).max(SIZE_MIN).min(self.most);
    }

    fn average(&mut self, times: &Times, step_us: u64) {
        let rate = std::mem::take(&mut self.answered) * 1_000_000 / step_us;
        let share_us = step_us.min(AVERAGE_US);
        self.rate = (self.rate * (AVERAGE_US - share_us) + rate * share_us) / AVERAGE_US;
        // Under overload less is answered because less is taken.
        let shrinks = match self.refused_us {
            None => {
                let above = self.capacity.saturating_sub(self.rate);
                (above * step_us.min(FORGET_US)).div_ceil(FORGET_US)
            }
            Some(_) => 0,
        };
        self.capacity = (self.capacity - shrinks).max(self.rate);
        self.durable.look(times.durable, step_us);
        self.channel.look(times.channel, step_us);
    }
}

/// A value over [`SMOOTH_US`] once another one has been so for `us`.
fn averaged(before: u64, now: u64, us: u64) -> u64 {
    let us = us.min(SMOOTH_US);
    (before * (SMOOTH_US - us) + now * us) / SMOOTH_US
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 100_000;
    const TARGET_US: u64 = 2_000;
    /// Requests that the played site answers in a millisecond.
    const CAPACITY: usize = 100;

    /// A site that answers so much and no more, by the millisecond: what is unanswered waits
    /// for the network thread.
    struct Site {
        window: Window,
        now_us: u64,
        unanswered: usize,
        /// What a turn takes besides.
        turn_us: u64,
        durable_us: u64,
        channel_us: u64,
    }

    impl Site {
        fn new() -> Self {
            let window = Window::new(MOST, TARGET_US);
            let (now_us, unanswered) = (1_000_000, 0);
            Self { window, now_us, unanswered, turn_us: 10, durable_us: 200, channel_us: 300 }
        }

        fn take(&mut self, requests: usize) -> usize {
            let refuses = |site: &mut Self| {
                let refuses = site.window.refuses(site.unanswered, false, site.now_us);
                site.unanswered += usize::from(!refuses);
                refuses
            };
            (0..requests).filter(|_| refuses(self)).count()
        }

        /// Takes so many requests in each of so many milliseconds; how many were answered,
        /// and how many refused.
        fn run(&mut self, ms: usize, requests: usize) -> (usize, usize) {
            let (mut answered, mut refused) = (0, 0);
            for _ in 0..ms {
                refused += self.take(requests);
                let waits_us = (self.unanswered / CAPACITY * 1_000) as u64;
                let answers = self.unanswered.min(CAPACITY);
                self.unanswered -= answers;
                answered += answers;
                self.now_us += 1_000;
                (0..answers).for_each(|_| self.window.answered());
                if answers > 0 {
                    let mut times = Times::default();
                    times.turn.add(self.turn_us + waits_us / 4, answers as u64);
                    times.durable.add(self.durable_us, 1);
                    self.window.at_channel(self.channel_us);
                    self.window.measured(&times, self.unanswered, self.now_us);
                }
            }
            (answered, refused)
        }
    }

    #[test]
    fn overload_closes_it_so_that_the_delay_is_at_its_target_and_costs_no_throughput() {
        let mut site = Site::new();
        assert_eq!(site.run(1_000, CAPACITY / 2), (1_000 * CAPACITY / 2, 0));
        assert_eq!(site.window.size(), MOST);
        site.run(1_500, 3 * CAPACITY);
        let (answered, refused) = site.run(5_000, 3 * CAPACITY);
        assert_eq!(answered, 5_000 * CAPACITY);
        assert!(refused.abs_diff(10_000 * CAPACITY) < CAPACITY, "{refused}");
        // Target, records and channel at best, less what was just answered.
        assert!((CAPACITY..CAPACITY * 3).contains(&site.unanswered), "{}", site.unanswered);
        // Once less comes it opens again, at once for who comes and wholly a bit later.
        let (_, refused) = site.run(900, CAPACITY / 2);
        assert_eq!(refused, 0);
        assert!(site.window.size() < MOST);
        site.run(200, CAPACITY / 2);
        assert_eq!(site.window.size(), MOST);
    }

    #[test]
    fn it_opens_where_only_moments_are_too_much() {
        let mut site = Site::new();
        site.run(1_000, CAPACITY / 2);
        site.run(2_000, 3 * CAPACITY);
        assert!(site.window.size() < MOST);
        // Three quarters of what can be done, and thrice as much as can be done for moments.
        let mut opened_ms = None;
        for at in 1..20 {
            let refused = site.run(5, 3 * CAPACITY).1;
            site.run(395, CAPACITY * 3 / 4);
            if opened_ms.is_none() {
                assert!(refused > 0, "{at}");
                opened_ms = (site.window.size() == MOST).then_some(at * 400);
            }
        }
        assert!(opened_ms.is_some_and(|ms| ms <= 2_000), "{opened_ms:?}");
    }

    #[test]
    fn waits_that_are_too_long_in_bunches_close_it_within_a_third_of_a_second() {
        // Look by look, as measured at three times the maximum, where payments move in bunches.
        const WAITS_US: [u64; 24] = [
            1_844, 2_850, 10_426, 536, 28, 90, 5_576, 1_170, 1_624, 1_380, 112, 96, 2_416, 192,
            288, 1_504, 972, 4_134, 188, 6_632, 312, 5_240, 1_710, 1_296,
        ];
        let mut window = Window::new(MOST, TARGET_US);
        let closed = (1..1_000).find(|at: &u64| {
            let mut times = Times::default();
            times.turn.add(WAITS_US[*at as usize % WAITS_US.len()] / 4, 100);
            window.measured(&times, MOST / 2, at * LOOK_US);
            window.size() < MOST
        });
        let took_us = closed.map_or(0, |at| at * LOOK_US);
        assert!((GRACE_US..GRACE_US * 4 / 3).contains(&took_us), "{took_us}");
    }

    #[test]
    fn who_has_little_in_a_window_that_others_fill_is_let_in() {
        let mut site = Site::new();
        assert!(
            site.window.refuses(MOST, true, site.now_us)
                && !site.window.refuses(MOST - 1, false, site.now_us)
        );
        site.run(2_000, 3 * CAPACITY);
        let (size, now_us) = (site.window.size(), site.now_us);
        assert!(size < MOST);
        assert!(
            site.window.refuses(size, false, now_us) && !site.window.refuses(size, true, now_us)
        );
        assert!(site.window.refuses(size + size / 4, true, now_us));
    }

    #[test]
    fn it_opens_where_threads_are_in_time_however_long_the_disk_takes() {
        let mut site = Site::new();
        site.run(2_000, 3 * CAPACITY);
        let mut times = Times::default();
        times.turn.add(100, 1);
        times.durable.add(20_000, 1);
        let mut refusals = 0;
        for _ in 0..1_000 {
            refusals += usize::from(site.window.refuses(2_000, false, site.now_us));
            site.now_us += LOOK_US;
            site.window.measured(&times, 2_000, site.now_us);
        }
        assert!((1..100).contains(&refusals), "{refusals}");
        assert_eq!(site.window.size(), MOST);
    }

    #[test]
    fn it_opens_once_nothing_tells_of_overload_any_more() {
        let mut site = Site::new();
        site.run(2_000, 3 * CAPACITY);
        let size = site.window.size();
        assert!(size < MOST);
        assert!(site.window.refuses(size, false, site.now_us + OVER_US / 2));
        // No worker has handed anything out for a second, whatever was refused meanwhile.
        assert!(!site.window.refuses(size, false, site.now_us + OVER_US + 1));
        assert_eq!(site.window.size(), MOST);
    }

    #[test]
    fn short_bursts_on_an_idle_site_are_no_overload() {
        let mut site = Site::new();
        for _ in 0..200 {
            site.now_us += 900_000;
            assert_eq!(site.take(50 * CAPACITY), 0);
            assert_eq!(site.run(100, 0).1, 0);
            assert_eq!(site.window.size(), MOST);
        }
    }

    #[test]
    fn one_late_turn_after_an_idle_moment_is_no_overload() {
        let mut window = Window::new(MOST, TARGET_US);
        let mut now_us = 0;
        for _ in 0..1_000 {
            now_us += 50_000;
            for late in [true, false, false, false, false, false, false, false, false, false] {
                let mut times = Times::default();
                times.turn.add(if late { 1_000 } else { 20 }, 50);
                now_us += LOOK_US;
                window.measured(&times, 500, now_us);
                assert_eq!(window.size(), MOST);
            }
        }
    }

    #[test]
    fn it_stays_closed_as_long_as_a_bit_too_much_comes() {
        for excess in [CAPACITY / 20, CAPACITY / 8] {
            let mut site = Site::new();
            site.run(1_000, CAPACITY / 2);
            site.run(2_000, 3 * CAPACITY);
            for _ in 0..10_000 {
                site.run(1, CAPACITY + excess);
                assert!(site.window.size() < MOST, "{excess}");
            }
            assert!(site.unanswered < 3 * CAPACITY, "{}", site.unanswered);
        }
    }

    #[test]
    fn a_burst_after_a_stall_is_taken() {
        let mut site = Site::new();
        site.run(1_000, CAPACITY / 3);
        for _ in 0..20 {
            site.now_us += 300_000;
            assert_eq!(site.take(300 * CAPACITY / 3), 0);
            assert_eq!(site.run(500, CAPACITY / 3).1, 0);
        }
    }

    #[test]
    fn neither_a_slow_disk_nor_a_slow_channel_is_overload() {
        let mut site = Site::new();
        (site.durable_us, site.channel_us) = (50_000, 800_000);
        // They wait for the disk and for the channel, nobody for a thread.
        for _ in 0..100 {
            assert_eq!(site.run(50, CAPACITY / 2).1, 0);
            assert!(!site.window.refuses(MOST - 1, false, site.now_us));
        }
    }

    #[test]
    fn it_makes_room_for_what_waits_at_a_slow_channel() {
        let mut site = Site::new();
        site.channel_us = 20_000;
        site.run(1_000, CAPACITY / 2);
        site.run(2_000, 3 * CAPACITY);
        let least = CAPACITY * (2 + 20) * 9 / 10;
        assert!((least..MOST).contains(&site.window.size()), "{}", site.window.size());
    }

    #[test]
    fn it_does_not_close_for_what_refusing_does_not_help_against() {
        let mut site = Site::new();
        site.run(1_000, CAPACITY);
        // Something else takes the machine: each turn is late, however few are taken.
        site.turn_us = 10_000;
        let (answered, _) = site.run(10_000, 3 * CAPACITY);
        assert!(site.window.size() >= 2 * CAPACITY, "{}", site.window.size());
        assert_eq!(answered, 10_000 * CAPACITY);
    }

    #[test]
    fn what_was_measured_at_best_is_forgotten_in_time() {
        let (mut best, mut slow) = (Best::default(), Measured::default());
        assert_eq!(best.us(), 0);
        slow.add(8_000, 5);
        slow.add(9_000, 1);
        let mut fast = slow;
        fast.add(1_000, 1);
        best.look(fast, 5_000);
        assert_eq!(best.us(), 1_000);
        best.look(Measured::default(), FORGET_US);
        assert_eq!(best.us(), 1_000, "nothing was measured");
        let looks = (1..).find(|_| {
            best.look(slow, 5_000);
            best.us() >= 8_000
        });
        let took_us = looks.map_or(0, |looks: u64| looks * 5_000);
        let expected_us = 8_f64.ln() * FORGET_US as f64;
        assert!((took_us as f64 / expected_us - 1.0).abs() < 0.01, "{took_us} {expected_us}");
    }
}
