//! Wakes the driver when requests are due: one OS thread that sleeps towards
//! absolute moments with a timer slack of one nanosecond.
//!
//! Hands nothing over but the wake-up: the driver owns a copy of the schedule.
//! Never uses the runtime's timers, which are half a millisecond late at the
//! median. Tested by its lateness, loosely.

use crate::schedule::Schedule;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How the pacer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pace {
    /// Every 250 us at most, all that is due at once: a few percent of a core.
    Tick,
    /// For every planned moment: a whole core at high rates.
    Sleep,
    /// Sleep, then spin for the last 50 us: exact, and always a whole core.
    Spin,
}

const TICK_NS: u64 = 250_000;
const SPIN_NS: u64 = 50_000;
/// Longest sleep, so that a stopped pacer ends soon.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// A running pacer thread; ends when dropped.
pub(crate) struct Pacer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    /// Starts waking `wake` for the times of `schedule`, counted from `start`.
    pub(crate) fn start(
        schedule: Schedule,
        start: Instant,
        pace: Pace,
        wake: Arc<Notify>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || run(schedule, start, pace, &wake, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread does not panic; if it did there is nobody left to tell.
            drop(thread.join());
        }
    }
}

fn run(mut schedule: Schedule, start: Instant, pace: Pace, wake: &Notify, stop: &AtomicBool) {
    tighten_timer_slack();
    while let Some(planned) = schedule.peek() {
        let due = match pace {
            Pace::Tick => planned.div_ceil(TICK_NS) * TICK_NS,
            Pace::Sleep | Pace::Spin => planned,
        };
        if !wait_until(start, due, pace, stop) {
            return;
        }
        schedule.skip_until(elapsed_ns(start));
        wake.notify_one();
    }
}

/// False: told to stop.
fn wait_until(start: Instant, due_ns: u64, pace: Pace, stop: &AtomicBool) -> bool {
    let spin_ns = if pace == Pace::Spin { SPIN_NS } else { 0 };
    loop {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let left = due_ns.saturating_sub(elapsed_ns(start));
        if left == 0 {
            return true;
        }
        if left > spin_ns {
            std::thread::sleep(Duration::from_nanos(left - spin_ns).min(SLEEP_MAX));
        } else {
            std::hint::spin_loop();
        }
    }
}

fn elapsed_ns(start: Instant) -> u64 {
    // Zero before the start; 584 years fit.
    Instant::now().saturating_duration_since(start).as_nanos() as u64
}

/// Asks the kernel to wake this thread when it is due and not up to 50 us
/// later. Where it refuses, the pacer is a little later; the lateness
/// histogram shows it.
fn tighten_timer_slack() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    if let Some(id) = thread.file_name().and_then(|id| id.to_str()) {
        drop(std::fs::write(format!("/proc/{id}/timerslack_ns"), "1"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Arrival;

    #[test]
    fn every_wake_comes_after_its_time_and_the_end_ends_the_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let span = Duration::from_millis(100);
            let schedule = Schedule::new(Arrival::Constant, 1_000.0, span, 1);
            let (start, wake) = (Instant::now(), Arc::new(Notify::new()));
            let pacer = Pacer::start(schedule.clone(), start, Pace::Tick, wake.clone()).unwrap();
            let mut left = schedule;
            while left.peek().is_some() {
                wake.notified().await;
                left.skip_until(elapsed_ns(start));
            }
            assert!(start.elapsed() >= Duration::from_millis(99));
            drop(pacer);
        });
    }
}
