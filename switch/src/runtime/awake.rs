//! Keeps the processor cores from halting while there is much to do.
//!
//! A payment passes six threads or so, and each hand-over wakes one that sleeps. A core that has
//! nothing to do for a moment halts, and takes tens of microseconds to come back, in a
//! virtual machine more than twice that. Linux lets a process say how long that may take
//! (PM QoS: the kernel's `Documentation/power/pm_qos_interface.rst`): what is
//! written to `/dev/cpu_dma_latency` holds for as long as the file is open, and with 0 idle
//! cores spin in the kernel, where they give way to any thread at once. It costs
//! power, so it is asked for only under load. The kernel takes it back when the process ends.
//!
//! Knows nothing of what is counted. Tested with a plain file in place of the device.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::WorkerConfig;
use crate::metrics::Metrics;

/// How often the load is looked at.
pub(super) const PERIOD: Duration = Duration::from_millis(100);
/// Looks in a row that must find much to do: one alone may be a client that catches up.
const BUSY_LOOKS: u32 = 3;
/// What has been quiet for so long may sleep.
const QUIET: Duration = Duration::from_secs(2);
const DEVICE: &str = "/dev/cpu_dma_latency";

/// Asks the kernel for cores that wake up soon, and takes it back.
pub(super) struct Awake {
    device: PathBuf,
    /// Requests per second from which on cores are kept awake; 0: never.
    from_rate: u64,
    /// How long waking up may take, microseconds.
    latency_us: i32,
    request: Option<File>,
    /// What had been counted at the last look, and when that was.
    last: (u64, Instant),
    /// Looks in a row that found much to do, and when the last of them was.
    busy: (u32, Instant),
}

impl Awake {
    /// Not asked for yet; what `metrics` say by now does not count.
    pub(super) fn new(config: &WorkerConfig, metrics: &Metrics) -> Self {
        let now = Instant::now();
        Self {
            device: DEVICE.into(),
            from_rate: u64::from(config.awake_from_rate),
            latency_us: i32::try_from(config.awake_latency_us).unwrap_or(i32::MAX),
            request: None,
            last: (work(metrics), now),
            busy: (0, now),
        }
    }

    /// Looks at what has been done since the last look, and says what came of it.
    pub(super) fn watch(&mut self, metrics: &Metrics) {
        if let Err(error) = self.look(work(metrics), Instant::now()) {
            eprintln!(
                "note: idle cores sleep, which makes payments slower: {}: {error} \
                 (docs/OPERATIONS.md, The machine)",
                self.device.display()
            );
        }
        metrics.cores_awake.set(u64::from(self.held()));
    }

    /// Whether cores are kept awake now.
    fn held(&self) -> bool {
        self.request.is_some()
    }

    /// Looks at what has been `counted` by now. An error comes once: it is not tried again.
    ///
    /// # Errors
    /// The device cannot be opened or written: cores sleep as the system pleases.
    fn look(&mut self, counted: u64, now: Instant) -> Result<(), io::Error> {
        let elapsed = now.saturating_duration_since(self.last.1);
        if self.from_rate == 0 || elapsed < PERIOD {
            return Ok(());
        }
        let rate = u128::from(counted.saturating_sub(self.last.0)) * 1000 / elapsed.as_millis();
        self.last = (counted, now);
        // Less is enough to stay awake than to be woken: a load at the bound must not flap.
        let enough = if self.held() { self.from_rate.div_ceil(2) } else { self.from_rate };
        if rate >= u128::from(enough) {
            self.busy = (self.busy.0.saturating_add(1), now);
            return if self.held() || self.busy.0 < BUSY_LOOKS { Ok(()) } else { self.ask() };
        }
        self.busy.0 = 0;
        if self.held() && now.saturating_duration_since(self.busy.1) >= QUIET {
            self.request = None;
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<(), io::Error> {
        let open = || {
            let mut request = File::options().write(true).open(&self.device)?;
            request.write_all(&self.latency_us.to_ne_bytes())?;
            Ok(request)
        };
        match open() {
            Ok(request) => self.request = Some(request),
            Err(error) => {
                self.from_rate = 0;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Requests of gateways, and those that other sites sent on.
fn work(metrics: &Metrics) -> u64 {
    metrics.requests.sum() + metrics.forwarded_here()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Setup {
        _dir: tempfile::TempDir,
        awake: Awake,
        start: Instant,
    }

    fn setup(from_rate: u64) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("cpu_dma_latency");
        std::fs::write(&device, "").unwrap();
        let start = Instant::now();
        let awake = Awake {
            device,
            from_rate,
            latency_us: 3,
            request: None,
            last: (0, start),
            busy: (0, start),
        };
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
        assert_eq!(std::fs::read(&it.awake.device).unwrap(), 3_i32.to_ne_bytes());
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
        assert_eq!(it.awake.busy.0, 0, "within a period nothing is said of a rate");
        for second in 1..=4 {
            it.awake.look(2_000 * second, it.start + Duration::from_secs(second)).unwrap();
        }
        assert!(!it.awake.held(), "2,000 a second, however seldom it is looked");
    }

    fn crowd(it: &mut Setup, looks: u64) -> Vec<bool> {
        let look = |look: u64| {
            let now = it.start + Duration::from_millis(100 * look);
            it.awake.look(1_000_000 * look, now).is_ok()
        };
        (1..=looks).map(look).collect()
    }

    #[test]
    fn zero_never_asks() {
        let mut it = setup(0);
        assert_eq!(crowd(&mut it, 5), [true; 5]);
        assert!(!it.awake.held());
    }

    #[test]
    fn a_device_that_cannot_be_had_is_told_once() {
        let mut it = setup(1);
        it.awake.device = it.awake.device.join("missing");
        assert_eq!(crowd(&mut it, 5), [true, true, false, true, true]);
        assert!(!it.awake.held());
    }
}
