//! Wakes the driver when requests are due: one OS thread that sleeps towards
//! absolute moments with a timer slack of one nanosecond.
//!
//! Hands nothing over but the wake-up: the driver owns a copy of the schedule.
//! Never uses the runtime's timers, which are half a millisecond late at the
//! median. Tested by its lateness, loosely.

use crate::host::Stalls;
use crate::schedule::Schedule;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How the pacer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pace {
    /// Once a tick at most, all that is due at once: a few percent of a core.
    Tick,
    /// For every planned moment: a whole core at high rates.
    Sleep,
    /// Sleep, then spin for the last 50 us: exact, and always a whole core.
    Spin,
}

/// A good tick: short against a millisecond, long against a wake-up.
pub(crate) const TICK: Duration = Duration::from_micros(250);
const SPIN_NS: u64 = 50_000;
/// Longest sleep, so that a stopped pacer ends soon.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// A running pacer thread; ends when dropped.
pub(crate) struct Pacer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Stalls>>,
}

/// How a pacer paces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pacing {
    /// How it waits.
    pub(crate) pace: Pace,
    /// Its tick.
    pub(crate) tick: Duration,
    /// From this offset on it notes how late it wakes up.
    pub(crate) watch_from: Duration,
}

impl std::fmt::Display for Pacing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pace {
            Pace::Tick => write!(f, "ticks of {} us", self.tick.as_micros()),
            Pace::Sleep => f.write_str("sleeping for each"),
            Pace::Spin => f.write_str("spinning"),
        }
    }
}

impl Pacer {
    /// Starts waking `wake` for the times of `schedule`, counted from `start`.
    pub(crate) fn start(
        schedule: Schedule,
        start: Instant,
        pacing: Pacing,
        wake: Arc<Notify>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || run(schedule, start, pacing, &wake, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops the pacer; returns how late it woke up.
    pub(crate) fn finish(mut self) -> Stalls {
        // The thread does not panic; if it did there is nobody left to tell.
        self.end().unwrap_or_default()
    }

    fn end(&mut self) -> Option<Stalls> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(
    mut schedule: Schedule,
    start: Instant,
    pacing: Pacing,
    wake: &Notify,
    stop: &AtomicBool,
) -> Stalls {
    let tick_ns = (pacing.tick.as_nanos() as u64).max(1);
    let mut watch =
        Watch { from_ns: pacing.watch_from.as_nanos() as u64, stalls: Stalls::default() };
    tighten_timer_slack();
    while let Some(planned) = schedule.peek() {
        let due = match pacing.pace {
            Pace::Tick => planned.div_ceil(tick_ns) * tick_ns,
            Pace::Sleep | Pace::Spin => planned,
        };
        if !wait_until(start, due, pacing.pace, stop, &mut watch) {
            break;
        }
        schedule.skip_until(elapsed_ns(start));
        wake.notify_one();
    }
    watch.stalls
}

/// Notes late wake-ups from a moment on.
struct Watch {
    from_ns: u64,
    stalls: Stalls,
}

impl Watch {
    fn note(&mut self, due_ns: u64, now_ns: u64) {
        if due_ns >= self.from_ns {
            self.stalls.note(now_ns.saturating_sub(due_ns));
        }
    }
}

/// False: told to stop.
fn wait_until(
    start: Instant,
    due_ns: u64,
    pace: Pace,
    stop: &AtomicBool,
    watch: &mut Watch,
) -> bool {
    let spin_ns = if pace == Pace::Spin { SPIN_NS } else { 0 };
    let mut now_ns = elapsed_ns(start);
    while !stop.load(Ordering::Relaxed) {
        let left = due_ns.saturating_sub(now_ns);
        if left == 0 {
            watch.note(due_ns, now_ns);
            return true;
        }
        if left > spin_ns {
            let nap_ns = (left - spin_ns).min(SLEEP_MAX.as_nanos() as u64);
            std::thread::sleep(Duration::from_nanos(nap_ns));
            let until_ns = now_ns + nap_ns;
            now_ns = elapsed_ns(start);
            // The last one is noted by what it was for.
            if until_ns < due_ns && now_ns < due_ns {
                watch.note(until_ns, now_ns);
            }
        } else {
            std::hint::spin_loop();
            now_ns = elapsed_ns(start);
        }
    }
    false
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
            let pacing = Pacing { pace: Pace::Tick, tick: TICK, watch_from: Duration::ZERO };
            let pacer = Pacer::start(schedule.clone(), start, pacing, wake.clone()).unwrap();
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
