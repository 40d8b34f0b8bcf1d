//! The writer thread: blocking direct writes with real-time priority.
//!
//! The flush runs in the calling thread's own context, so its priority counts
//! even when every core is busy; an io_uring flush ends in a kernel worker of
//! normal priority. Measured in `docs/LOG.md`.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::{DiskError, DiskOp, Write, Written, sys};
use crate::notify::Notify;

#[derive(Debug)]
pub(super) struct BlockingWriter {
    jobs: Option<mpsc::SyncSender<(Arc<File>, Write)>>,
    done: mpsc::Receiver<Written>,
    thread: Option<JoinHandle<()>>,
    realtime: bool,
}

impl BlockingWriter {
    pub(super) fn start(notify: Notify) -> Result<BlockingWriter, DiskError> {
        let (jobs, inbox) = mpsc::sync_channel::<(Arc<File>, Write)>(1);
        let (outbox, done) = mpsc::sync_channel(1);
        let (ready, started) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || {
                let _ = ready.send(sys::become_realtime().is_ok());
                run(&inbox, &outbox, &notify);
            })
            .map_err(|error| DiskError::io(DiskOp::Start, &error))?;
        let realtime = started.recv().unwrap_or(false);
        Ok(BlockingWriter { jobs: Some(jobs), done, thread: Some(thread), realtime })
    }

    pub(super) fn realtime(&self) -> bool {
        self.realtime
    }

    pub(super) fn write(&mut self, file: &Arc<File>, write: Write) -> Result<(), DiskError> {
        let gone = DiskError::short(DiskOp::Write);
        self.jobs.as_ref().ok_or(gone)?.try_send((Arc::clone(file), write)).map_err(|_| gone)
    }

    pub(super) fn poll(&mut self) -> Option<Written> {
        self.done.try_recv().ok()
    }
}

impl Drop for BlockingWriter {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    inbox: &mpsc::Receiver<(Arc<File>, Write)>,
    outbox: &mpsc::SyncSender<Written>,
    notify: &Notify,
) {
    while let Ok((file, write)) = inbox.recv() {
        let started = Instant::now();
        let result = write_once(&file, &write);
        let elapsed_us = started.elapsed().as_micros() as u64;
        drop(file);
        if outbox.send(Written { buffer: write.buffer, result, elapsed_us }).is_err() {
            return;
        }
        notify.wake();
    }
}

/// One write; only an interruption before the first byte is repeated.
fn write_once(file: &File, write: &Write) -> Result<(), DiskError> {
    let bytes = &write.buffer[write.from..write.from + write.bytes];
    loop {
        match file.write_at(bytes, write.offset) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(_) => return Err(DiskError::short(DiskOp::Write)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(DiskError::io(DiskOp::Write, &error)),
        }
    }
}
