//! What a worker sleeps on: an eventfd with coalesced wakes.
//!
//! Anyone who hands something to the worker publishes it first and wakes then;
//! the worker looks at its queues after every return of `wait`. Both log
//! backends wake it when a batch completes.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::sys;

#[derive(Debug)]
struct Inner {
    event: OwnedFd,
    /// Set from a wake until the sleeper has taken it: further wakes cost no
    /// system call.
    pending: AtomicBool,
}

/// A cloneable handle to a worker's eventfd.
#[derive(Debug, Clone)]
pub struct Notify {
    inner: Arc<Inner>,
}

impl Notify {
    /// Creates the eventfd; fails when the process has no descriptor left.
    pub fn new() -> std::io::Result<Notify> {
        let inner = Inner { event: sys::eventfd()?, pending: AtomicBool::new(false) };
        Ok(Notify { inner: Arc::new(inner) })
    }

    /// Wakes the sleeper, now or when it next waits.
    pub fn wake(&self) {
        if !self.inner.pending.swap(true, Ordering::AcqRel) {
            sys::eventfd_write(&self.inner.event);
        }
    }

    /// Sleeps until woken or until `timeout_us` microseconds have passed; says
    /// whether it was woken. For one sleeper at a time.
    pub fn wait(&self, timeout_us: u64) -> bool {
        let woken = self.inner.pending.load(Ordering::Acquire)
            || sys::poll_readable(&self.inner.event, timeout_us);
        // Drain before the flag falls: a wake in between finds the flag still
        // set, and what it published is seen by the caller after the swap.
        let drained = sys::eventfd_drain(&self.inner.event);
        let flagged = self.inner.pending.swap(false, Ordering::AcqRel);
        woken || drained || flagged
    }

    /// The descriptor, for an outer poll loop or a ring.
    pub fn fd(&self) -> RawFd {
        self.inner.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_are_kept_and_coalesced() {
        let notify = Notify::new().unwrap();
        assert!(!notify.wait(0));
        notify.wake();
        notify.wake();
        assert!(notify.wait(1_000_000));
        assert!(!notify.wait(0));
    }

    #[test]
    fn no_wake_is_lost_between_threads() {
        use std::sync::atomic::AtomicU64;
        const ROUNDS: u64 = 20_000;
        let notify = Notify::new().unwrap();
        let published = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    published.store(round, Ordering::Relaxed);
                    notify.wake();
                }
            });
            let mut seen = 0;
            while seen < ROUNDS {
                assert!(notify.wait(10_000_000), "a wake was lost at {seen}");
                seen = published.load(Ordering::Relaxed);
            }
        });
    }
}
