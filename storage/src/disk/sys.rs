//! System calls without a safe wrapper in the standard library.
#![allow(unsafe_code)] // Reason: eventfd, ppoll, statvfs, fallocate, writing out and scheduling are C calls.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A non-blocking eventfd.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a non-negative result is a fresh descriptor we own.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: `fd` was just returned by the kernel and belongs to no one else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one. A full counter already wakes, so the result does not matter.
pub(crate) fn eventfd_write(event: &OwnedFd) {
    let one = 1u64;
    // SAFETY: eight readable bytes, as eventfd demands.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Takes the counter; says whether it was above zero.
pub(crate) fn eventfd_drain(event: &OwnedFd) -> bool {
    let mut count = 0u64;
    // SAFETY: eight writable bytes, as eventfd demands; the fd never blocks.
    let read = unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) };
    read == 8 && count > 0
}

/// Waits until `event` is readable, at most `timeout_us` microseconds.
pub(crate) fn poll_readable(event: &OwnedFd, timeout_us: u64) -> bool {
    let mut entry = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = libc::timespec {
        tv_sec: (timeout_us / 1_000_000) as libc::time_t,
        tv_nsec: (timeout_us % 1_000_000 * 1_000) as libc::c_long,
    };
    // SAFETY: one pollfd and one timespec that outlive the call; no signal mask.
    unsafe { libc::ppoll(&raw mut entry, 1, &raw const timeout, std::ptr::null()) > 0 }
}

/// Bytes on the file system that an ordinary process may still allocate.
pub(crate) fn available_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid statvfs, which is plain data.
    let mut stats: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path and a writable struct.
    check(unsafe { libc::statvfs(path.as_ptr(), &raw mut stats) })?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// Allocates `bytes` of the file without writing them.
pub(crate) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    // SAFETY: a valid descriptor and plain integers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) })?;
    Ok(())
}

/// Real-time priority for the calling thread: a log write is worth more than
/// any computation, and takes microseconds of CPU.
pub(crate) fn become_realtime() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 10 };
    // SAFETY: thread 0 is the caller; the struct outlives the call.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) })?;
    Ok(())
}

/// Lowest priority for the calling thread; best effort.
pub(crate) fn become_background() {
    // SAFETY: plain integers; a failure leaves the priority as it was.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Has the kernel begin to write part of a file out, without waiting for it.
pub(crate) fn write_out(file: &File, offset: u64, bytes: u64) {
    let (offset, bytes) = (offset as libc::off64_t, bytes as libc::off64_t);
    // SAFETY: no pointers; the descriptor is borrowed for the call.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE);
    }
}
