//! Requests that wait for an answer, by correlation id.
//!
//! The id is the request's for life: copies of one request on several
//! connections carry the same bytes, and any copy's answer finds the asker.

use super::reply::Reply;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Most copies of one request that wait for an answer at a time.
pub(super) const COPIES_MAX: usize = 8;

/// An answer and the connection it came on.
pub(super) struct Answer {
    pub(super) link: u64,
    /// `None`: there was an answer, in words that we do not know.
    pub(super) reply: Option<Reply>,
}

/// The table of waiting requests. Its size is bounded by the client's permits.
#[derive(Default)]
pub(super) struct Pending {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

struct Waiting {
    /// Kind of the request.
    asked: u8,
    mailbox: mpsc::Sender<Answer>,
}

impl Pending {
    /// A new correlation id, from 1.
    pub(super) fn correlation(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A new correlation id and the mailbox of its answers.
    pub(super) fn register(&self, asked: u8) -> (Registered<'_>, mpsc::Receiver<Answer>) {
        let correlation = self.correlation();
        // A connection hands on one answer per copy, so this never overflows.
        let (mailbox, answers) = mpsc::channel(COPIES_MAX);
        self.lock().insert(correlation, Waiting { asked, mailbox });
        (Registered { pending: self, correlation }, answers)
    }

    /// Hands an answer to its asker; an answer to nobody is dropped.
    pub(super) fn deliver(&self, correlation: u64, link: u64, kind: u8, body: &[u8]) {
        if let Some(Waiting { asked, mailbox }) = self.lock().get(&correlation) {
            let reply = Reply::decode(*asked, kind, body);
            drop(mailbox.try_send(Answer { link, reply }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A waiting request; forgotten when dropped, also when the asker is cancelled.
pub(super) struct Registered<'a> {
    pending: &'a Pending,
    pub(super) correlation: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.correlation);
    }
}
