//! Durable writes through io_uring: one `RWF_DSYNC` write per batch, completion
//! signalled on the worker's own eventfd.
#![allow(unsafe_code, reason = "the kernel works on our buffer until the completion")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use super::aligned::AlignedBuf;
use crate::Notify;

struct InFlight {
    file: Arc<File>,
    offset: u64,
    buffer: AlignedBuf,
    len: usize,
    written: usize,
}

/// A ring for one write at a time.
pub struct UringWriter {
    ring: IoUring,
    in_flight: Option<InFlight>,
}

impl UringWriter {
    /// A ring whose completions wake `notify`.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or forbids it.
    pub fn start(notify: &Notify) -> io::Result<Self> {
        let ring =
            IoUring::builder().setup_single_issuer().build(8).or_else(|_| IoUring::new(8))?;
        ring.submitter().register_eventfd(notify.fd())?;
        Ok(Self { ring, in_flight: None })
    }

    /// Starts a write.
    ///
    /// # Errors
    /// When the kernel does not take it; the buffer is kept and the write counts
    /// as failed.
    pub fn write(
        &mut self,
        file: Arc<File>,
        offset: u64,
        buffer: AlignedBuf,
        len: usize,
    ) -> io::Result<()> {
        self.in_flight = Some(InFlight { file, offset, buffer, len, written: 0 });
        self.push()
    }

    fn push(&mut self) -> io::Result<()> {
        let Some(job) = &self.in_flight else { return Ok(()) };
        let data = job.buffer[job.written..job.len].as_ptr();
        let entry = opcode::Write::new(
            types::Fd(job.file.as_raw_fd()),
            data,
            (job.len - job.written) as u32,
        )
        .offset(job.offset + job.written as u64)
        .rw_flags(libc::RWF_DSYNC)
        .build();
        // SAFETY: buffer and file are kept in `in_flight` until the completion
        // of this entry is taken in `poll`, or leaked by `drop`.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue is full"))?;
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The end of the write in flight.
    pub fn poll(&mut self) -> Option<(AlignedBuf, io::Result<()>)> {
        let result = self.ring.completion().next()?.result();
        let job = self.in_flight.as_mut()?;
        let failed = match result {
            code if code < 0 => Some(io::Error::from_raw_os_error(-code)),
            0 => Some(io::ErrorKind::WriteZero.into()),
            count => {
                job.written += count as usize;
                if job.written < job.len { self.push().err() } else { None }
            }
        };
        let job = self.in_flight.take()?;
        match failed {
            Some(error) => Some((job.buffer, Err(error))),
            None if job.written >= job.len => Some((job.buffer, Ok(()))),
            // A short write: the rest is under way.
            None => {
                self.in_flight = Some(job);
                None
            }
        }
    }
}

impl Drop for UringWriter {
    fn drop(&mut self) {
        // The kernel may still read the buffer: wait for the write, and if that
        // fails leak the buffer rather than free it under the kernel.
        if let Some(job) = self.in_flight.take() {
            if self.ring.submit_and_wait(1).is_err() {
                std::mem::forget(job);
            }
        }
    }
}
