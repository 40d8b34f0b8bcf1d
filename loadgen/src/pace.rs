//! Wakes the driver when requests are due.
//!
//! A timer of the kernel's that the driver's own thread waits for beside its sockets:
//! no other thread has to run first, which took an eighth of the generator's time. The
//! driver tells what it waits for next. Spinning, the timer comes early, and the
//! thread looks at its sockets and the clock in turn until the moment has come. Beside
//! it a thread watches how late the host wakes one that only sleeps. Never uses the
//! runtime's timers, which are half a millisecond late at the median. Tested by its
//! lateness, loosely.

use crate::host::Stalls;
use crate::schedule::Schedule;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How the pacer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pace {
    /// Once a tick at most, all that is due at once: a few percent of a core.
    Tick,
    /// For every planned moment: a whole core at high rates.
    Sleep,
    /// For every planned moment, spinning for the last 50 us: exact, and always a
    /// whole core at high rates.
    Spin,
}

/// A good tick: short against a millisecond, long against a wake-up.
pub(crate) const TICK: Duration = Duration::from_micros(TICK_US);
/// The same in microseconds.
pub(crate) const TICK_US: u64 = 200;
const SPIN_NS: u64 = 50_000;
/// Longest sleep, so that a stopped pacer ends soon.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Naps of the thread that watches the host: a stall is told shorter by one at most.
const NAP_NS: u64 = 1_000_000;

/// A running pacer; ends when dropped.
pub(crate) struct Pacer {
    timer: AsyncFd<OwnedFd>,
    start: Instant,
    /// Moments are rounded up to whole ones of these.
    tick_ns: u64,
    /// The timer comes this much before the moment; the rest is spun.
    early_ns: u64,
    /// The moment that is waited for.
    due_ns: Cell<u64>,
    /// Its timer has come.
    is_near: Cell<bool>,
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
    /// From this offset on it is noted how late a thread wakes up.
    pub(crate) watch_from: Duration,
    /// Until then.
    pub(crate) watch_until: Duration,
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
    /// Starts waking for the times of `schedule`, counted from `start`. Must run in a
    /// runtime with I/O.
    pub(crate) fn start(schedule: &Schedule, start: Instant, pacing: Pacing) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (from_ns, until_ns) = (nanos(pacing.watch_from), nanos(pacing.watch_until));
        let thread = std::thread::Builder::new().name("pacer".to_owned());
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = registered(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;
        let run = move || watch(start, (from_ns, until_ns), &stopped);
        let thread = Some(thread.spawn(run)?);
        let tick_ns = if pacing.pace == Pace::Tick { nanos(pacing.tick).max(1) } else { 1 };
        let early_ns = if pacing.pace == Pace::Spin { SPIN_NS } else { 0 };
        let (due_ns, is_near) = (Cell::new(u64::MAX), Cell::new(false));
        let pacer = Self { timer, start, tick_ns, early_ns, due_ns, is_near, stop, thread };
        pacer.wait_for(schedule.peek())?;
        Ok(pacer)
    }

    /// Returns once when something is due; then it is told what to wait for next. May be
    /// dropped and called again.
    pub(crate) async fn due(&self) {
        // Even what is due already waits for its timer once, or the sockets would starve.
        while !self.is_near.get() {
            match self.timer.readable().await {
                Ok(mut readable) => readable.clear_ready(),
                // The runtime ends: so does what waits here.
                Err(_) => std::future::pending().await,
            }
            // It may still have told of the moment before.
            self.is_near.set(self.left_ns() <= self.early_ns);
        }
        while self.left_ns() > 0 {
            tokio::task::yield_now().await;
        }
        self.is_near.set(false);
    }

    fn left_ns(&self) -> u64 {
        self.due_ns.get().saturating_sub(elapsed_ns(self.start))
    }

    /// What is waited for next: the first tick at or behind this offset.
    pub(crate) fn wait_for(&self, planned_ns: Option<u64>) -> io::Result<()> {
        self.is_near.set(false);
        let Some(planned_ns) = planned_ns else {
            self.due_ns.set(u64::MAX);
            return Ok(());
        };
        self.due_ns.set(planned_ns.div_ceil(self.tick_ns).saturating_mul(self.tick_ns));
        // Zero would stop the timer.
        let left_ns = self.left_ns().saturating_sub(self.early_ns).max(1);
        let left = Duration::from_nanos(left_ns);
        let it_value =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval, it_value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Stops the pacer; returns how late a thread woke up.
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

/// Has the runtime watch a timer.
#[allow(
    deprecated,
    reason = "its successor is unsafe code; what it asks for an owned descriptor gives"
)]
fn registered(timer: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(timer, Interest::READABLE)
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

/// Only sleeps, and notes how late it wakes up within a span.
fn watch(start: Instant, (from_ns, until_ns): (u64, u64), stop: &AtomicBool) -> Stalls {
    let mut stalls = Stalls::default();
    tighten_timer_slack();
    let mut now_ns = elapsed_ns(start);
    while now_ns < until_ns && !stop.load(Ordering::Relaxed) {
        let nap_ns = match from_ns.checked_sub(now_ns) {
            // Nothing is noted yet.
            Some(left_ns) => left_ns.clamp(NAP_NS, nanos(SLEEP_MAX)),
            None => NAP_NS,
        };
        std::thread::sleep(Duration::from_nanos(nap_ns));
        let due_ns = now_ns + nap_ns;
        now_ns = elapsed_ns(start);
        if due_ns >= from_ns {
            stalls.note(now_ns.saturating_sub(due_ns));
        }
    }
    stalls
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

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn every_wake_comes_after_its_time_and_the_end_ends_the_thread() {
        for pace in [Pace::Tick, Pace::Sleep, Pace::Spin] {
            runtime().block_on(async {
                let span = Duration::from_millis(100);
                let mut left = Schedule::new(Arrival::Constant, 1_000.0, span, 1);
                let start = Instant::now();
                let (watch_from, watch_until) = (Duration::ZERO, span);
                let pacing = Pacing { pace, tick: TICK, watch_from, watch_until };
                let pacer = Pacer::start(&left, start, pacing).unwrap();
                let mut wakes = 0;
                while let Some(planned_ns) = left.peek() {
                    pacer.due().await;
                    assert!(elapsed_ns(start) >= planned_ns);
                    left.skip_until(elapsed_ns(start));
                    pacer.wait_for(left.peek()).unwrap();
                    wakes += 1;
                }
                assert!((1..=101).contains(&wakes), "{wakes}");
                assert!(start.elapsed() >= Duration::from_millis(99));
                pacer.finish();
            });
        }
    }

    #[test]
    fn what_is_due_already_wakes_at_once_and_nothing_wakes_not_at_all() {
        for pace in [Pace::Tick, Pace::Sleep, Pace::Spin] {
            runtime().block_on(async {
                let none = Schedule::new(Arrival::Constant, 1.0, Duration::ZERO, 1);
                let (tick, watch_from) = (TICK, Duration::ZERO);
                let pacing = Pacing { pace, tick, watch_from, watch_until: watch_from };
                let pacer = Pacer::start(&none, Instant::now(), pacing).unwrap();
                let is_silent = async || {
                    tokio::time::timeout(Duration::from_millis(20), pacer.due()).await.is_err()
                };
                assert!(is_silent().await);
                for _ in 0..3 {
                    pacer.wait_for(Some(0)).unwrap();
                    pacer.due().await;
                }
                assert!(is_silent().await, "each moment is told once");
                pacer.wait_for(Some(0)).unwrap();
                pacer.due().await;
                pacer.wait_for(None).unwrap();
                assert!(is_silent().await, "nothing is left");
            });
        }
    }

    #[test]
    fn a_wait_that_is_broken_off_loses_nothing() {
        for pace in [Pace::Tick, Pace::Spin] {
            runtime().block_on(async {
                let span = Duration::from_millis(20);
                let left = Schedule::new(Arrival::Constant, 100.0, span, 1);
                let start = Instant::now();
                let pacing = Pacing { pace, tick: TICK, watch_from: span, watch_until: span };
                let pacer = Pacer::start(&left, start, pacing).unwrap();
                pacer.wait_for(Some(nanos(span))).unwrap();
                loop {
                    tokio::select! {
                        biased;
                        () = pacer.due() => break,
                        () = tokio::task::yield_now() => {}
                    }
                }
                assert!(start.elapsed() >= span);
            });
        }
    }
}
