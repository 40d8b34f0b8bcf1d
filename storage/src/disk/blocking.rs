//! Durable writes on a thread of their own: `pwrite` on an `O_DIRECT|O_DSYNC`
//! descriptor. The flush runs in the caller's context, so the thread's priority
//! counts: with both cores busy it stays near its idle latency where io_uring's
//! kernel worker waits for its turn (docs/LOG.md has the figures).
#![allow(unsafe_code, reason = "the scheduling class has no safe form in std")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use super::aligned::AlignedBuf;
use crate::Notify;

struct Job {
    file: Arc<File>,
    offset: u64,
    buffer: AlignedBuf,
    len: usize,
}

/// The writer thread's handle.
pub struct BlockingWriter {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<(AlignedBuf, io::Result<()>)>,
    thread: Option<JoinHandle<()>>,
    /// Whether the thread got real-time priority.
    pub real_time: bool,
}

impl BlockingWriter {
    /// Starts the thread; it wakes `notify` after each write.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(notify: Notify) -> io::Result<Self> {
        let (jobs, inbox) = sync_channel::<Job>(1);
        let (outbox, done) = sync_channel(1);
        let (said, priority) = sync_channel(1);
        let thread = std::thread::Builder::new().name("log-writer".into()).spawn(move || {
            if said.send(raise_priority()).is_err() {
                return;
            }
            for job in inbox {
                let result = job.file.write_all_at(&job.buffer[..job.len], job.offset);
                if outbox.send((job.buffer, result)).is_err() {
                    return;
                }
                notify.wake();
            }
        })?;
        let real_time = priority.recv().unwrap_or(false);
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread), real_time })
    }

    /// Starts a write.
    pub fn write(&mut self, file: Arc<File>, offset: u64, buffer: AlignedBuf, len: usize) {
        if let Some(jobs) = &self.jobs {
            // The thread only ends after this handle; one write is in flight.
            drop(jobs.send(Job { file, offset, buffer, len }));
        }
    }

    /// The end of the write in flight.
    pub fn poll(&mut self) -> Option<(AlignedBuf, io::Result<()>)> {
        match self.done.try_recv() {
            Ok(done) => Some(done),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                Some((AlignedBuf::zeroed(1), Err(io::Error::other("the log writer ended"))))
            }
        }
    }
}

impl Drop for BlockingWriter {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Asks for the lowest real-time priority: enough to run as soon as the disk
/// answers. Needs CAP_SYS_NICE or an rtprio limit; without it all works, with
/// a longer tail when the cores are busy.
fn raise_priority() -> bool {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 names the calling thread; `param` is a live local.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) == 0 }
}
