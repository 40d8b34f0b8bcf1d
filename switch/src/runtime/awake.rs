//! Keeps the processor cores from halting while there is much to do, and for the moments in
//! which a lone payment is at work.
//!
//! A payment passes from thread to thread some six times, and each hand-over wakes one that
//! sleeps. A core that has nothing to do for a moment halts, and takes microseconds to come
//! back, in a virtual machine tens of them. Linux lets a process say how long that may take
//! (PM QoS: the kernel's `Documentation/power/pm_qos_interface.rst`): what is written to
//! `/dev/cpu_dma_latency` holds for as long as the file is open, and with 0 idle cores spin
//! in the kernel, where they give way to any thread at once. It costs power, so it is asked
//! for only under load ([`Awake`]) and for a share of the time below it ([`Brief`]). The
//! kernel takes it back when the process ends.
//!
//! Tested with a plain file in place of the device.

mod brief;
mod device;

use std::io;
use std::time::{Duration, Instant};

pub(super) use brief::Brief;
use device::Device;

use crate::config::WorkerConfig;
use crate::metrics::Metrics;

/// How often the load is looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// Looks in a row that must find much to do: one alone may be a client that catches up.
const BUSY_LOOKS: u32 = 3;
/// What has been quiet for so long may sleep.
const QUIET: Duration = Duration::from_secs(2);
/// What the two records of a payment take in the log, about.
const PAYMENT_BYTES: u64 = 175;

/// Asks the kernel for cores that wake up soon, and takes it back.
pub(super) struct Awake {
    device: Device,
    /// Requests per second from which on cores are kept awake; 0: never.
    from_rate: u64,
    /// A request failed, and was told.
    told: bool,
    /// What had been counted at the last look.
    counted: u64,
    looked: Instant,
    /// Looks in a row that found much to do.
    busy_looks: u32,
    /// When the last such look was.
    busy: Instant,
}

impl Awake {
    /// Not asked for yet; what `metrics` say by now does not count.
    pub(super) fn new(config: &WorkerConfig, metrics: &Metrics) -> Self {
        let now = Instant::now();
        Self {
            device: Device::new(config.awake_latency_us),
            from_rate: u64::from(config.awake_from_rate),
            told: false,
            counted: work(metrics),
            looked: now,
            busy_looks: 0,
            busy: now,
        }
    }

    /// How long until the next look makes sense.
    pub(super) fn pause(&self) -> Duration {
        if self.from_rate == 0 { Duration::from_secs(3_600) } else { PERIOD }
    }

    /// Looks at what has been done since the last look, and says what came of it.
    pub(super) fn watch(&mut self, metrics: &Metrics) {
        if let Err(error) = self.look(work(metrics), Instant::now()) {
            tell(&self.device, &error);
        }
        metrics.cores_awake.set(u64::from(self.held()));
    }

    fn held(&self) -> bool {
        self.device.wished()
    }

    /// Looks at what has been `counted` by now.
    ///
    /// # Errors
    /// The device cannot be opened or written: cores sleep as the system pleases. It is tried
    /// again with the next load, but told only once.
    fn look(&mut self, counted: u64, now: Instant) -> Result<(), io::Error> {
        let elapsed = now.saturating_duration_since(self.looked);
        if self.from_rate == 0 || elapsed < PERIOD {
            return Ok(());
        }
        let more = u128::from(counted.saturating_sub(self.counted));
        let rate = more * 1000 / elapsed.as_millis();
        (self.counted, self.looked) = (counted, now);
        // Less is enough to stay awake than to be woken: a load at the bound must not flap.
        let enough = if self.held() { self.from_rate.div_ceil(2) } else { self.from_rate };
        if rate >= u128::from(enough) {
            self.busy = now;
            self.busy_looks = self.busy_looks.saturating_add(1);
            return if self.busy_looks == BUSY_LOOKS { self.ask() } else { Ok(()) };
        }
        let quiet = now.saturating_duration_since(self.busy) >= QUIET;
        if quiet {
            self.device.withdraw();
        }
        if !self.held() {
            self.busy_looks = 0;
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<(), io::Error> {
        match self.device.wish() {
            Err(error) if !std::mem::replace(&mut self.told, true) => Err(error),
            _ => Ok(()),
        }
    }
}

fn tell(device: &Device, error: &io::Error) {
    eprintln!(
        "note: idle cores sleep, which makes payments slower: {}: {error} (docs/OPERATIONS.md, \
         The machine)",
        device.path().display()
    );
}

/// Requests of gateways and those that other sites sent on; or, where other sites' payments
/// are written down, about how many.
fn work(metrics: &Metrics) -> u64 {
    let requests = metrics.requests.sum() + metrics.forwarded_here();
    requests.max(metrics.log_written_bytes.value() / PAYMENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Op;

    struct Setup {
        _dir: tempfile::TempDir,
        awake: Awake,
        start: Instant,
    }

    fn setup(from_rate: u32) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("cpu_dma_latency");
        std::fs::write(&device, "").unwrap();
        let config = WorkerConfig { awake_from_rate: from_rate, ..WorkerConfig::default() };
        let mut awake = Awake::new(&config, &Metrics::sized(1, 1, []));
        awake.device = Device::at(&device, 3);
        let start = awake.looked;
        Setup { _dir: dir, awake, start }
    }

    #[test]
    fn a_load_keeps_cores_awake_and_two_quiet_seconds_let_them_sleep() {
        let mut it = setup(5_000);
        let mut counted = 0;
        let mut look = |it: &mut Setup, more: u64, ms: u64| {
            counted += more;
            let now = it.start + Duration::from_millis(ms);
            it.awake.look(counted, now).unwrap();
            it.awake.held()
        };
        assert!(!look(&mut it, 700, 100), "one busy look may be a client that catches up");
        assert!(!look(&mut it, 499, 200), "4,990 a second are less than asked for");
        assert!(!look(&mut it, 500, 300) && !look(&mut it, 500, 400));
        assert!(look(&mut it, 500, 500), "three in a row");
        assert_eq!(std::fs::read(it.awake.device.path()).unwrap(), 3_i32.to_ne_bytes());
        assert!(look(&mut it, 250, 600), "half of it is enough from now on");
        assert!(look(&mut it, 0, 2_599), "for less than two seconds there was nothing");
        assert!(!look(&mut it, 0, 2_700));
        assert!(!look(&mut it, 500, 2_800) && !look(&mut it, 500, 2_900));
        assert!(look(&mut it, 500, 3_000), "the load is back");
    }

    #[test]
    fn looks_that_come_early_do_not_count_and_late_ones_are_not_taken_for_more() {
        let mut it = setup(5_000);
        for ms in 1..=90 {
            it.awake.look(10 * ms, it.start + Duration::from_millis(ms)).unwrap();
        }
        assert_eq!(it.awake.busy_looks, 0, "within a period nothing is said of a rate");
        for second in 1..=4 {
            it.awake.look(2_000 * second, it.start + Duration::from_secs(second)).unwrap();
        }
        assert!(!it.awake.held(), "2,000 a second, however seldom it is looked");
    }

    /// Looks that find much to do; which of them went well.
    fn crowd(it: &mut Setup, looks: usize) -> Vec<bool> {
        let look = |_| {
            let awake = &mut it.awake;
            awake.look(awake.counted + 1_000_000, awake.looked + PERIOD).is_ok()
        };
        (0..looks).map(look).collect()
    }

    #[test]
    fn zero_never_asks() {
        let mut it = setup(0);
        assert_eq!(crowd(&mut it, 5), [true; 5]);
        assert!(!it.awake.held());
    }

    #[test]
    fn a_device_that_cannot_be_had_is_told_once_and_tried_with_each_load() {
        let mut it = setup(1);
        let path = it.awake.device.path().to_path_buf();
        it.awake.device = Device::at(&path.join("missing"), 3);
        assert_eq!(crowd(&mut it, 5), [true, true, false, true, true]);
        assert!(!it.awake.held());
        it.awake.device = Device::at(&path, 3);
        assert_eq!(crowd(&mut it, 5), [true; 5]);
        assert!(!it.awake.held(), "the same load");
        it.awake.look(it.awake.counted, it.awake.looked + PERIOD).unwrap();
        assert_eq!(crowd(&mut it, 3), [true; 3]);
        assert!(it.awake.held(), "the next one");
    }

    #[test]
    fn requests_and_what_is_written_for_others_are_work() {
        let metrics = Metrics::sized(1, 1, []);
        metrics.requests.of(Op::Query).add(7);
        assert_eq!(work(&metrics), 7);
        metrics.log_written_bytes.add(20 * PAYMENT_BYTES);
        assert_eq!(work(&metrics), 20);
        metrics.requests.of(Op::Pay).add(20);
        assert_eq!(work(&metrics), 27);
    }

    #[test]
    fn what_is_asked_is_in_the_metrics() {
        let metrics = Metrics::sized(1, 1, []);
        let mut it = setup(1);
        crowd(&mut it, 3);
        it.awake.watch(&metrics);
        assert_eq!(metrics.cores_awake.value(), 1);
        it.awake.device.withdraw();
        it.awake.watch(&metrics);
        assert_eq!(metrics.cores_awake.value(), 0);
    }
}
