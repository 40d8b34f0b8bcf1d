//! Keeps idle cores awake for the moments in which a payment is at work here.
//!
//! Where payments are rare, cores that never halt would be burnt for nothing, and a host that
//! counts processor time would take it back at the worst moment. But each payment wakes
//! threads that sleep, one after the other, and waits for the core of each. So the cores are
//! kept awake from when something is handed to a worker until nothing is unanswered, or for a
//! moment if that takes longer, and only for a share of the time on the whole.

use super::device::Device;

/// A payment at work here is on its way again by then, microseconds; what lasts longer waits
/// for someone else.
const MOMENT_US: u64 = 2_000;
/// Share of the time that was not used and can be used later, microseconds.
const SAVED_MAX_US: u64 = 100_000;
/// What a moment costs at least, microseconds: each one interrupts every idle core twice, and
/// there may be many.
const MOMENT_MIN_US: u64 = 400;

/// The moments of one thread.
pub(in crate::runtime) struct Brief {
    device: Device,
    share_percent: u64,
    /// Time that cores may be kept awake, hundredths of a microsecond.
    saved: u64,
    /// Up to when `saved` counts.
    counted_us: u64,
    since_us: u64,
    until_us: u64,
}

impl Brief {
    /// At most `share_percent` of the time, 0: never; `latency_us` is how long a core may
    /// take to wake up.
    pub(in crate::runtime) fn new(share_percent: u32, latency_us: u32) -> Self {
        Self {
            device: Device::new(latency_us),
            share_percent: u64::from(share_percent.min(100)),
            saved: 0,
            counted_us: 0,
            since_us: 0,
            until_us: 0,
        }
    }

    /// Something is about to be handed to a worker. Says whether a moment begins.
    pub(in crate::runtime) fn begin(&mut self, now_us: u64) -> bool {
        if self.share_percent == 0 {
            return false;
        }
        if self.device.wished() {
            self.until_us = (now_us + MOMENT_US).min(self.since_us + self.saved / 100);
            return false;
        }
        self.save(now_us);
        if self.saved < MOMENT_US * 100 {
            return false;
        }
        if let Err(error) = self.device.wish() {
            self.share_percent = 0;
            super::tell(&self.device, &error);
            return false;
        }
        self.since_us = now_us;
        self.until_us = now_us + MOMENT_US;
        true
    }

    /// Nothing is at work here any more. Returns how long cores were kept awake,
    /// microseconds; `None`: they were not.
    pub(in crate::runtime) fn end(&mut self, now_us: u64) -> Option<u64> {
        if !self.device.wished() {
            return None;
        }
        self.device.withdraw();
        self.save(now_us);
        let took_us = now_us.saturating_sub(self.since_us);
        self.saved = self.saved.saturating_sub(took_us.max(MOMENT_MIN_US) * 100);
        Some(took_us)
    }

    /// How long the moment lasts still, microseconds; `None` when there is none.
    pub(in crate::runtime) fn left_us(&self, now_us: u64) -> Option<u64> {
        self.device.wished().then(|| self.until_us.saturating_sub(now_us))
    }

    fn save(&mut self, now_us: u64) {
        let more = now_us.saturating_sub(self.counted_us) * self.share_percent;
        self.saved = (self.saved + more).min(SAVED_MAX_US * 100);
        self.counted_us = now_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Setup {
        dir: tempfile::TempDir,
        brief: Brief,
    }

    fn setup(share_percent: u32) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpu_dma_latency");
        std::fs::write(&path, "").unwrap();
        let brief = Brief { device: Device::at(&path, 3), ..Brief::new(share_percent, 3) };
        Setup { dir, brief }
    }

    impl Setup {
        /// What was written to the device, in order.
        fn written(&self) -> Vec<i32> {
            let bytes = std::fs::read(self.dir.path().join("cpu_dma_latency")).unwrap();
            bytes.chunks(4).map(|word| i32::from_ne_bytes(word.try_into().unwrap())).collect()
        }
    }

    #[test]
    fn cores_are_awake_from_the_request_to_the_answer() {
        let mut it = setup(25);
        assert!(it.brief.begin(1_000_000));
        assert_eq!(it.brief.left_us(1_000_100), Some(MOMENT_US - 100));
        assert!(!it.brief.begin(1_000_500), "it lasts longer");
        assert_eq!(it.brief.left_us(1_000_500), Some(MOMENT_US), "the channel has answered");
        assert_eq!(it.brief.end(1_000_800), Some(800));
        assert_eq!(it.brief.left_us(1_000_800), None);
        assert_eq!(it.brief.end(1_000_900), None, "once is enough");
        it.brief.begin(1_010_000);
        assert_eq!(it.brief.end(1_010_700), Some(700));
        assert_eq!(it.written(), [3, 2_000_000_000, 3, 2_000_000_000]);
    }

    #[test]
    fn not_for_longer_than_their_share() {
        let mut it = setup(25);
        let (mut awake_us, mut asked) = (0, 0);
        // A request every 500 us for ten seconds, answered after 400.
        for at_us in (0..10_000_000).step_by(500) {
            it.brief.begin(at_us);
            let took_us = it.brief.end(at_us + 400);
            awake_us += took_us.unwrap_or(0);
            asked += u64::from(took_us.is_some());
        }
        let share = awake_us * 100 / 10_000_000;
        assert!((20..=25).contains(&share), "{share} %");
        assert!(asked > 1_000, "now and then, not all at once: {asked}");
    }

    #[test]
    fn what_never_ends_ends_with_what_was_saved() {
        let mut it = setup(25);
        it.brief.begin(1_000_000);
        let mut at_us = 1_000_000;
        while it.brief.left_us(at_us).is_some_and(|left| left > 0) {
            it.brief.begin(at_us);
            at_us += 100;
        }
        assert_eq!(at_us - 1_000_000, SAVED_MAX_US);
        it.brief.end(at_us);
        it.brief.begin(at_us + 100);
        assert_eq!(it.brief.left_us(at_us + 100), None, "used up");
    }

    #[test]
    fn a_small_share_is_saved_up_however_often_it_is_looked() {
        let mut it = setup(1);
        let moments = (0..1_000_000).step_by(50).filter(|at_us| {
            it.brief.begin(*at_us);
            it.brief.end(at_us + 1).is_some()
        });
        assert!(moments.count() > 10);
    }

    #[test]
    fn many_short_moments_cost_more_than_they_last() {
        let mut it = setup(25);
        // 20,000 a second, answered at once.
        let asked = (0..10_000_000).step_by(50).filter(|at_us| {
            it.brief.begin(*at_us);
            it.brief.end(at_us + 1).is_some()
        });
        let asked = asked.count() as u64;
        assert!(asked <= 10_000_000 / 4 / MOMENT_MIN_US, "{asked}");
    }

    #[test]
    fn never_when_switched_off_or_without_a_device() {
        let mut it = setup(0);
        it.brief.begin(1_000_000);
        assert_eq!(it.brief.left_us(1_000_000), None);
        assert!(it.written().is_empty());
        let mut it = setup(25);
        it.brief.device = Device::at(&it.dir.path().join("missing/device"), 3);
        it.brief.begin(1_000_000);
        assert_eq!(it.brief.left_us(1_000_000), None);
        assert_eq!(it.brief.share_percent, 0, "told once, and left at that");
    }
}
