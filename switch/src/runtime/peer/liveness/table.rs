//! A descriptor table of a thread's own.
#![allow(unsafe_code)] // Reason: the calls have no safe wrapper, and numbers mean other files in another table.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::{mem, ptr};

use libc::{c_int, c_uint};

/// First number behind those of standard input, output and error.
const FIRST: c_uint = 3;
/// Signals that tell of this thread's own faults.
const FAULTS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];

/// Gives the calling thread a descriptor table of its own, which holds the standard
/// ones and `kept` under the numbers that they had. From then on no number of
/// another thread's means anything to this one, nor the other way round. So it
/// takes no more signals of the process either: their handlers write to a number.
///
/// # Errors
/// What the kernel says. One before Linux 5.9 does not know the call; then
/// the thread still shares its table.
pub(super) fn have_own(kept: &impl AsFd) -> io::Result<()> {
    block_signals()?;
    // A descriptor's number is never negative.
    let kept = kept.as_fd().as_raw_fd() as c_uint;
    close_range(kept + 1, c_uint::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    // Refused are unknown flags and empty ranges only.
    if kept > FIRST {
        drop(close_range(FIRST, kept - 1, 0));
    }
    Ok(())
}

/// As close_range(2), which C libraries have not had for as long as kernels.
fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> io::Result<()> {
    // SAFETY: no pointers. What is closed are copies in a table that only this thread
    // has: with the first call's flag, and by the second call it is.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn block_signals() -> io::Result<()> {
    // SAFETY: a set of signals is plain memory, which `sigfillset` fills; the other calls
    // read it, and only this thread's mask changes.
    let result = unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        for fault in FAULTS {
            libc::sigdelset(&raw mut all, fault);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Closes this table's copy of a descriptor that was kept by [`have_own`] on a thread
/// that shared this table.
pub(super) fn close_copy(kept: RawFd) {
    // SAFETY: the value that owned the number lives on the other thread and closes
    // the number of its own table, so nobody else closes this one.
    drop(unsafe { OwnedFd::from_raw_fd(kept) });
}
