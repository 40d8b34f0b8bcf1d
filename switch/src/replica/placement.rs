//! Which site should lead a shard, and who stands for election first.
//!
//! Every shard has its sites in an order of preference; the orders rotate, so
//! that each site is the first choice of its share of shards. A leader that is
//! not the best placed one hands over once the better one has been live and
//! level for a while. Pure: counts ticks.

use super::core::ReplicaConfig;
use super::members::{self, Members};
use super::timing::Timing;

/// Longest election time-out, as a multiple of the shortest.
pub(super) const TIMEOUT_SPREAD: u32 = 4;
/// A site this many entries behind the leader counts as level: what is on its
/// way under load.
pub(super) const LEVEL_ENTRIES: u64 = 256;
/// A better placed site must be level for this long before it takes over.
const HOLD_TICKS: u64 = 200;
/// After a hand-over that did not work, the next one waits this long.
const RETRY_TICKS: u64 = 60;
/// How long a site does not lead after its disk hung, at first and at most, microseconds:
/// that has nothing to do with distance.
const STALL_PAUSE_MIN_US: u64 = 5_000_000;
const STALL_PAUSE_MAX_US: u64 = 120_000_000;
/// A site not heard of for this long is not a candidate for a hand-over.
const SILENT_TICKS: u64 = 12;

/// The order of preference of a shard over `sites` sites, 1-based.
pub fn preference(shard: u16, sites: u64) -> Vec<u64> {
    (0..sites).map(|offset| (u64::from(shard) + offset) % sites + 1).collect()
}

/// As [`preference`], over some sites only: those that are only witnesses come
/// last.
pub fn preference_among(shard: u16, voters: &[u64], witnesses: &[u64]) -> Vec<u64> {
    let mut order: Vec<u64> =
        voters.iter().filter(|site| !witnesses.contains(site)).copied().collect();
    let by = usize::from(shard) % order.len().max(1);
    order.rotate_left(by);
    order.extend(voters.iter().filter(|site| witnesses.contains(site)));
    order
}

/// The order of preference of one shard, and hand-overs.
pub(super) struct Placement {
    order: Vec<u64>,
    /// Sites that shall not lead: for now, and for ever.
    away: u64,
    witnesses: u64,
    seed: u64,
    election_ticks: u32,
    better_since: Option<(u64, u64)>,
    next_try: u64,
}

impl Placement {
    pub(super) fn new(config: &ReplicaConfig, members: &Members) -> Self {
        Self {
            order: order(config, members),
            away: 0,
            witnesses: members::mask(&config.witnesses),
            seed: mix(config.seed, u64::from(config.shard)),
            election_ticks: config.timing.election_ticks,
            better_since: None,
            next_try: 0,
        }
    }

    pub(super) fn set_away(&mut self, away: u64) {
        self.away = away;
    }

    /// The members have changed: the shards are spread over those that are left.
    pub(super) fn set_members(&mut self, config: &ReplicaConfig, members: &Members) {
        self.order = order(config, members);
        self.better_since = None;
    }

    fn is_away(&self, site: u64) -> bool {
        members::has(self.away | self.witnesses, site)
    }

    /// Place in the order; sites that shall not lead come last.
    fn rank(&self, site: u64) -> u32 {
        let place = self.order.iter().position(|other| *other == site);
        let place = place.unwrap_or(self.order.len()) as u32;
        if self.is_away(site) { place + self.order.len() as u32 } else { place }
    }

    /// Whether `site` is the best placed one without `gone`.
    pub(super) fn is_next(&self, site: u64, gone: u64) -> bool {
        let rest = self.order.iter().filter(|other| **other != gone);
        rest.min_by_key(|other| self.rank(**other)) == Some(&site)
    }

    /// Election time-out in ticks: the better placed stand earlier, far enough
    /// apart that one vote is usually over before the next begins.
    pub(super) fn timeout(&self, site: u64, term: u64) -> u32 {
        let base = self.election_ticks;
        let step = (base / 3).max(1);
        let jitter = mix(self.seed, term) % u64::from(step / 2 + 1);
        let most = base * TIMEOUT_SPREAD - 1;
        (base + step * self.rank(site).min(6) + jitter as u32).min(most)
    }

    /// Not leading: nothing to hand over.
    pub(super) fn rest(&mut self) {
        self.better_since = None;
    }

    /// Where `site`, which leads, should hand over to now.
    pub(super) fn target(
        &mut self,
        site: u64,
        tick: u64,
        level: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let own = self.rank(site);
        let better = self.order.iter().filter(|other| self.rank(**other) < own && level(**other));
        let Some(best) = better.min_by_key(|other| self.rank(**other)).copied() else {
            self.better_since = None;
            return None;
        };
        let since = match self.better_since {
            Some((found, since)) if found == best => since,
            _ => tick,
        };
        self.better_since = Some((best, since));
        // Away from a drained or removed site at once; home only when it has
        // settled.
        let ready = self.leaves(site) || tick - since >= HOLD_TICKS;
        (ready && self.try_now(tick)).then_some(best)
    }

    /// Whether a site shall not lead.
    pub(super) fn leaves(&self, site: u64) -> bool {
        self.is_away(site) || !self.order.contains(&site)
    }

    /// Where a leader whose disk does not answer should hand over to.
    pub(super) fn stalled(
        &mut self,
        site: u64,
        tick: u64,
        level: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let others = self.order.iter().filter(|other| **other != site && level(**other));
        let best = others.min_by_key(|other| self.rank(**other)).copied()?;
        self.try_now(tick).then_some(best)
    }

    fn try_now(&mut self, tick: u64) -> bool {
        let now = tick >= self.next_try;
        if now {
            self.next_try = tick + RETRY_TICKS;
        }
        now
    }
}

/// The voters in the order in which they should lead.
fn order(config: &ReplicaConfig, members: &Members) -> Vec<u64> {
    if members.voters == members::mask(&config.voters) {
        return config.preference.clone();
    }
    let voters: Vec<u64> = members::sites(members.voters).collect();
    preference_among(config.shard, &voters, &config.witnesses)
}

/// Whether this site's own disk hangs, and for how long after that it does not want
/// to lead: a disk that hung and came back is likely to hang again, and each time
/// costs its shards a take-over. Longer from time to time; forgotten when all was well
/// for as long as it may get.
pub(super) struct Stall {
    now: bool,
    /// The pauses in ticks: this one, the shortest and the longest.
    pause: u64,
    pause_min: u64,
    pause_max: u64,
    until: u64,
}

impl Stall {
    pub(super) fn new(timing: &Timing) -> Self {
        let pause_min = STALL_PAUSE_MIN_US.div_ceil(timing.tick_us);
        let pause_max = STALL_PAUSE_MAX_US.div_ceil(timing.tick_us);
        Self { now: false, pause: 0, pause_min, pause_max, until: 0 }
    }

    pub(super) fn set(&mut self, now: bool, tick: u64) {
        if now && !self.now {
            let is_old = tick > self.until + self.pause_max;
            let longer = if is_old { 0 } else { self.pause * 2 };
            self.pause = longer.clamp(self.pause_min, self.pause_max);
        }
        if now {
            self.until = tick + self.pause;
        }
        self.now = now;
    }

    /// It hangs.
    pub(super) fn is_now(&self) -> bool {
        self.now
    }

    /// It hangs, or did a while ago.
    pub(super) fn is_unwilling(&self, tick: u64) -> bool {
        self.now || tick < self.until
    }
}

/// When each site was last heard of, and who does not want to lead.
#[derive(Default)]
pub(super) struct Health {
    heard: Vec<(u64, u64)>,
    unwilling: u64,
}

impl Health {
    pub(super) fn heard(&mut self, site: u64, tick: u64) {
        match self.heard.iter_mut().find(|(known, _)| *known == site) {
            Some((_, last)) => *last = tick,
            None => self.heard.push((site, tick)),
        }
    }

    pub(super) fn lost(&mut self, site: u64) {
        self.heard.retain(|(known, _)| *known != site);
    }

    /// A site has said whether it wants to lead.
    pub(super) fn set_unwilling(&mut self, site: u64, unwilling: bool) {
        let bit = members::bit(site);
        self.unwilling = if unwilling { self.unwilling | bit } else { self.unwilling & !bit };
    }

    pub(super) fn is_unwilling(&self, site: u64) -> bool {
        members::has(self.unwilling, site)
    }

    pub(super) fn is_live(&self, site: u64, tick: u64) -> bool {
        let heard = self.heard.iter().find(|(known, _)| *known == site);
        heard.is_some_and(|(_, last)| tick - last <= SILENT_TICKS)
    }
}

/// Spreads two numbers over all 64 bits (SplitMix64's finaliser).
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(shard: u16) -> Placement {
        Placement::new(&config(shard), &Members::new(&[1, 2, 3]))
    }

    fn config(shard: u16) -> ReplicaConfig {
        ReplicaConfig {
            shard,
            site: 1,
            voters: vec![1, 2, 3],
            witnesses: Vec::new(),
            preference: preference(shard, 3),
            seed: 7,
            tail_bytes_max: 0,
            timing: Timing::default(),
        }
    }

    #[test]
    fn shards_are_spread_over_the_members_and_witnesses_come_last() {
        for shard in 0..12 {
            assert_eq!(preference_among(shard, &[1, 2, 3], &[]), preference(shard, 3));
        }
        assert_eq!(preference_among(0, &[1, 2, 3], &[1]), [2, 3, 1]);
        assert_eq!(preference_among(5, &[1, 2, 3], &[1]), [3, 2, 1]);
        let mut config = config(1);
        config.witnesses = vec![4];
        let mut placement = Placement::new(&config, &Members::new(&[1, 2, 3]));
        placement.set_members(&config, &Members::new(&[1, 2, 4]));
        assert_eq!(placement.order, [2, 1, 4]);
        assert!(placement.is_next(1, 2) && !placement.is_next(4, 2));
        assert_eq!(placement.target(4, 7, |site| site == 1), Some(1), "at once");
    }

    #[test]
    fn every_site_is_the_first_choice_of_its_share() {
        let mut first = [0; 4];
        for shard in 0..12 {
            let order = preference(shard, 3);
            first[order[0] as usize] += 1;
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [1, 2, 3]);
        }
        assert_eq!(first, [0, 4, 4, 4]);
    }

    #[test]
    fn the_better_placed_stands_earlier_in_every_term() {
        let placement = placement(1);
        assert_eq!(placement.order, [2, 3, 1]);
        for term in 0..1000 {
            let [a, b, c] = [2, 3, 1].map(|site| placement.timeout(site, term));
            let base = Timing::default().election_ticks;
            assert!(a >= base && a < b && b < c && c < TIMEOUT_SPREAD * base, "{a} {b} {c}");
        }
    }

    #[test]
    fn home_is_taken_back_after_a_while_and_left_at_once_when_drained() {
        let mut placement = placement(0);
        assert_eq!(placement.order, [1, 2, 3]);
        assert_eq!(placement.target(2, 10, |_| true), None, "just came back");
        assert_eq!(placement.target(2, 100, |site| site != 1), None, "fell behind: anew");
        assert_eq!(placement.target(2, 110, |_| true), None);
        assert_eq!(placement.target(2, 110 + HOLD_TICKS - 1, |_| true), None);
        assert_eq!(placement.target(2, 110 + HOLD_TICKS, |_| true), Some(1));
        assert_eq!(placement.target(2, 111 + HOLD_TICKS, |_| true), None, "one try at a time");
        placement.set_away(1 << 1);
        assert_eq!(placement.target(2, 10_000, |_| true), None, "home is drained");
        assert_eq!(placement.target(1, 20_000, |site| site != 2), Some(3));
        assert!(placement.is_next(2, 3) && !placement.is_next(1, 3) && placement.is_next(3, 2));
    }

    #[test]
    fn after_each_stall_a_site_stays_away_for_longer_until_all_is_well() {
        let mut stall = Stall::new(&Timing::default());
        assert!(!stall.is_unwilling(0));
        let mut tick = 10;
        for pause in [1_000, 2_000, 4_000, 8_000, 16_000, 24_000, 24_000] {
            stall.set(true, tick);
            stall.set(true, tick + 300);
            assert!(stall.is_now());
            stall.set(false, tick + 301);
            assert!(!stall.is_now() && stall.is_unwilling(tick + 300 + pause - 1));
            tick += 300 + pause;
            assert!(!stall.is_unwilling(tick), "{pause}");
        }
        tick += 24_000 + 1;
        stall.set(true, tick);
        stall.set(false, tick + 1);
        assert!(!stall.is_unwilling(tick + 1_000), "that was long ago");
    }

    #[test]
    fn how_long_a_site_stays_away_does_not_grow_with_the_distance() {
        for round_trip_ms in 1..=200 {
            let timing = Timing::of_round_trip(round_trip_ms * 1_000);
            let mut stall = Stall::new(&timing);
            let mut pauses = Vec::new();
            let mut tick = 0;
            for _ in 0..8 {
                stall.set(true, tick);
                stall.set(false, tick + 1);
                let until = (tick..).find(|tick| !stall.is_unwilling(*tick)).unwrap();
                pauses.push((until - tick) * timing.tick_us);
                tick = until;
            }
            let tick_us = timing.tick_us;
            assert!((5_000_000..5_000_000 + tick_us).contains(&pauses[0]), "{pauses:?}");
            assert!((120_000_000..120_000_000 + tick_us).contains(&pauses[7]), "{pauses:?}");
        }
    }

    #[test]
    fn a_leader_with_a_stuck_disk_goes_to_any_level_site() {
        let mut placement = placement(0);
        assert_eq!(placement.stalled(1, 5, |site| site == 3), Some(3));
        assert_eq!(placement.stalled(1, 6, |_| true), None);
        assert_eq!(placement.stalled(1, 5 + RETRY_TICKS, |_| true), Some(2));
    }
}
