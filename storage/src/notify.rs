//! What a worker sleeps on: an eventfd that the disk and other threads wake.
#![allow(unsafe_code, reason = "eventfd, read, write and ppoll have no safe form in std")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A wake-up line. Wakes that come before the wait end it at once; many wakes
/// count as one.
#[derive(Clone, Debug)]
pub struct Notify {
    fd: Arc<OwnedFd>,
}

impl Notify {
    /// A new line.
    ///
    /// # Errors
    /// When the system has no more file descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; the result is checked below.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and is owned by nobody else.
        Ok(Self { fd: Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }) })
    }

    /// Ends the present or the next wait.
    pub fn wake(&self) {
        let one = 1_u64;
        // SAFETY: writes 8 bytes of a live local. A full counter (EAGAIN) means
        // that a wake is already pending, which is all that is wanted.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }

    /// Sleeps until woken or until `timeout_us` microseconds have passed.
    pub fn wait(&self, timeout_us: u64) {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        let timeout = libc::timespec {
            tv_sec: (timeout_us / 1_000_000) as libc::time_t,
            tv_nsec: (timeout_us % 1_000_000 * 1000) as libc::c_long,
        };
        // SAFETY: one live pollfd, a live timespec, no signal mask. An
        // interrupted wait is an early wake-up, which callers expect.
        unsafe { libc::ppoll(&raw mut poll, 1, &raw const timeout, std::ptr::null()) };
        let mut count = 0_u64;
        // SAFETY: reads 8 bytes into a live local; EAGAIN when nothing is pending.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
    }

    /// The descriptor, for `io_uring`'s completion notification.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_wake_before_the_wait_is_not_lost_and_is_taken_once() {
        let notify = Notify::new().unwrap();
        notify.wake();
        notify.wake();
        let started = Instant::now();
        notify.wait(10_000_000);
        assert!(started.elapsed() < Duration::from_secs(5));
        let started = Instant::now();
        notify.wait(1_000);
        assert!(started.elapsed() >= Duration::from_millis(1));
    }
}
