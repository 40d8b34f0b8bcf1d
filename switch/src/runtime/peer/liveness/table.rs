//! A descriptor table of a thread's own.
#![allow(unsafe_code)] // Reason: the calls have no safe wrapper, and numbers mean other files in another table.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// First number behind those of standard input, output and error.
const FIRST: libc::c_uint = 3;

/// Gives the calling thread a descriptor table of its own, which holds the standard
/// ones and `kept` under the numbers that they had. From then on no number of
/// another thread's means anything to this one, nor the other way round.
///
/// # Errors
/// What the kernel says. One before Linux 5.9 does not know the call; then
/// the thread still shares its table.
pub(super) fn have_own(kept: &impl AsFd) -> io::Result<()> {
    // A descriptor's number is never negative.
    let kept = kept.as_fd().as_raw_fd() as libc::c_uint;
    close_range(kept + 1, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as libc::c_int)?;
    if kept > FIRST { close_range(FIRST, kept - 1, 0) } else { Ok(()) }
}

fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers. What is closed are copies in a table that only this thread
    // has: with the first call's flag, and by the second call it is.
    let result = unsafe { libc::close_range(first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes this table's copy of a descriptor that was kept by [`have_own`] on a thread
/// that shared this table.
pub(super) fn close_copy(kept: RawFd) {
    // SAFETY: the value that owned the number lives on the other thread and closes
    // the number of its own table, so nobody else closes this one.
    drop(unsafe { OwnedFd::from_raw_fd(kept) });
}
