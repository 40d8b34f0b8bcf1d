//! One write in flight through io_uring, completed through an eventfd.
//!
//! Registered buffers spare the kernel pinning pages per write. The file is
//! opened `O_DSYNC`, so one request writes and flushes: linked write and
//! fdatasync were measured slower (`docs/LOG.md`).
#![allow(unsafe_code)] // Reason: submitting to a ring hands raw memory to the kernel.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, opcode, types};

use super::{Buffer, DiskError, DiskOp, Write, Written};
use crate::notify::Notify;

pub(super) struct UringWriter {
    ring: IoUring,
    /// Addresses of the registered buffers, by their index in the kernel.
    registered: Vec<*const u8>,
    flight: Option<Flight>,
}

// SAFETY: `registered` is only compared with, never read through; everything
// else in the writer may move between threads.
unsafe impl Send for UringWriter {}

impl std::fmt::Debug for UringWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UringWriter(in flight: {})", self.flight.is_some())
    }
}

/// Owns the memory and the file that the kernel works on, until it is done.
struct Flight {
    write: Write,
    _file: Arc<File>,
    started: Instant,
}

impl UringWriter {
    /// The ring keeps a reference to the lock file: after a kill, the lock is
    /// free only when the kernel has ended the write in flight, so that it can
    /// never land in a log that was opened again.
    pub(super) fn start(notify: &Notify, lock: &File) -> Result<UringWriter, DiskError> {
        let failed = |error: std::io::Error| DiskError::io(DiskOp::Start, &error);
        let ring = IoUring::builder().setup_clamp().build(4).map_err(failed)?;
        ring.submitter().register_eventfd(notify.fd()).map_err(failed)?;
        ring.submitter().register_files(&[lock.as_raw_fd()]).map_err(failed)?;
        Ok(UringWriter { ring, registered: Vec::new(), flight: None })
    }

    /// Registers the batch buffers. When the kernel refuses (memory lock
    /// limit), plain writes do the same work a little slower.
    pub(super) fn register(&mut self, buffers: [&Buffer; 2]) {
        let parts = buffers.map(|buffer| libc::iovec {
            iov_base: buffer.as_ptr().cast_mut().cast(),
            iov_len: buffer.len(),
        });
        // SAFETY: the log keeps both buffers, or a flight does, for as long as
        // this ring lives; the ring waits for its flight before it is dropped.
        if unsafe { self.ring.submitter().register_buffers(&parts) }.is_ok() {
            self.registered = buffers.map(|buffer| buffer.as_ptr()).to_vec();
        }
    }

    pub(super) fn write(&mut self, file: &Arc<File>, write: Write) -> Result<(), DiskError> {
        debug_assert!(self.flight.is_none(), "one write in flight");
        let fd = types::Fd(file.as_raw_fd());
        let start = write.buffer[write.from..write.from + write.bytes].as_ptr();
        let bytes = write.bytes as u32;
        let base = write.buffer.as_ptr();
        let entry = match self.registered.iter().position(|known| *known == base) {
            Some(index) => {
                opcode::WriteFixed::new(fd, start, bytes, index as u16).offset(write.offset).build()
            }
            None => opcode::Write::new(fd, start, bytes).offset(write.offset).build(),
        };
        self.flight = Some(Flight { write, _file: Arc::clone(file), started: Instant::now() });
        // SAFETY: the flight just stored owns buffer and file until the
        // completion is taken, and is not touched before.
        let queued = unsafe { self.ring.submission().push(&entry) };
        if queued.is_err() {
            return Err(DiskError::short(DiskOp::Write));
        }
        self.ring.submit().map_err(|error| DiskError::io(DiskOp::Write, &error))?;
        Ok(())
    }

    pub(super) fn poll(&mut self) -> Option<Written> {
        let result = self.ring.completion().next()?.result();
        let flight = self.flight.take()?;
        let elapsed_us = flight.started.elapsed().as_micros() as u64;
        let result = match usize::try_from(result) {
            Ok(written) if written == flight.write.bytes => Ok(()),
            Ok(_) => Err(DiskError::short(DiskOp::Write)),
            Err(_) => Err(DiskError { op: DiskOp::Write, errno: Some(-result) }),
        };
        Some(Written { buffer: flight.write.buffer, result, elapsed_us })
    }
}

impl Drop for UringWriter {
    /// The kernel may still read the buffer: wait for it.
    fn drop(&mut self) {
        while self.flight.is_some() {
            if self.ring.submit_and_wait(1).is_err() {
                // The memory must outlive the request; better leaked than reused.
                std::mem::forget(self.flight.take());
                return;
            }
            self.poll();
        }
        // Nothing is in flight: the lock may go at once.
        let _ = self.ring.submitter().unregister_files();
    }
}
