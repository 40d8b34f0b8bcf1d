//! Old blocks for sites that were away: read back from the log's files on a
//! thread of their own, so that the worker never waits for the disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread;

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use raft::eraftpb::Entry;
use storage::disk::{Disk, Pages};
use storage::{BlockReader, Log, Route};

use super::shard::Shard;
use crate::replica::{self, Wanted};
use crate::runtime::inbox::Exchange;

/// Ranges that may wait to be read; a follower's next heartbeat asks again for
/// what found no room.
const READS_MAX: usize = 32;

struct Request {
    token: u64,
    route: Route,
    max_bytes: usize,
}

struct Answer {
    token: u64,
    entries: Vec<Entry>,
}

/// Reads under way.
pub(super) struct CatchUp {
    requests: SyncSender<Request>,
    answers: Arc<ArrayQueue<Answer>>,
    /// By token: the shard's place, and what it asked for.
    open: HashMap<u64, (usize, Wanted)>,
    next_token: u64,
}

impl CatchUp {
    /// Starts the reader. It ends with the worker.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(log: &Log, exchange: &Arc<Exchange>) -> std::io::Result<Self> {
        let (requests, inbox) = mpsc::sync_channel::<Request>(READS_MAX);
        // Every request is answered once, and no more than these are open.
        let answers = Arc::new(ArrayQueue::new(2 * READS_MAX));
        let mut reader = log.reader();
        let (out, exchange) = (Arc::clone(&answers), Arc::clone(exchange));
        thread::Builder::new().name("catch-up".into()).spawn(move || {
            while let Ok(request) = inbox.recv() {
                let entries = read(&mut reader, &request.route, request.max_bytes);
                drop(out.push(Answer { token: request.token, entries }));
                exchange.wake();
            }
        })?;
        Ok(Self { requests, answers, open: HashMap::new(), next_token: 1 })
    }

    /// Asks for what the shards' followers need, and hands over what was read.
    pub(super) fn run<D: Disk>(&mut self, shards: &mut [Shard], log: &Log<D>) {
        while let Some(Answer { token, entries }) = self.answers.pop() {
            if let Some((at, wanted)) = self.open.remove(&token)
                && let Some(shard) = shards.get_mut(at)
            {
                shard.replica.fetched(wanted, entries);
            }
        }
        for (at, shard) in shards.iter_mut().enumerate() {
            while let Some(wanted) = shard.replica.take_wanted() {
                let number = shard.replica.shard();
                if let Some(first) = forgotten(log, number, &wanted) {
                    // Whoever needs it is given a state instead.
                    shard.replica.released(first);
                    shard.replica.fetched(wanted, Vec::new());
                } else if let Err(wanted) = self.ask(at, number, wanted, log) {
                    shard.replica.fetched(wanted, Vec::new());
                }
            }
        }
    }

    fn ask<D: Disk>(
        &mut self,
        at: usize,
        shard: u16,
        wanted: Wanted,
        log: &Log<D>,
    ) -> Result<(), Wanted> {
        let Ok(route) = log.route(shard, wanted.from, wanted.to) else { return Err(wanted) };
        let token = self.next_token;
        let max_bytes = usize::try_from(wanted.max_bytes).unwrap_or(usize::MAX);
        match self.requests.try_send(Request { token, route, max_bytes }) {
            Ok(()) => {
                self.next_token += 1;
                self.open.insert(token, (at, wanted));
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(wanted),
        }
    }
}

/// The first block whose place in the log is known, where that is behind what is wanted:
/// of a long log only so many places are kept in memory.
fn forgotten<D: Disk>(log: &Log<D>, shard: u16, wanted: &Wanted) -> Option<u64> {
    log.first_index(shard).filter(|first| *first > wanted.from)
}

/// The blocks of a route, or as many of them as can be read.
pub(super) fn read<P: Pages>(
    reader: &mut BlockReader<P>,
    route: &Route,
    max_bytes: usize,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    let done = reader.blocks(route, max_bytes, &mut |frame| {
        let payload = Bytes::copy_from_slice(frame.payload);
        entries.push(replica::entry(frame.index, frame.term, payload));
    });
    if let Err(error) = done {
        // What came before is sound; the site that asked stays behind until an
        // operator has looked.
        eprintln!("catch-up: blocks for another site cannot be read back: {error}");
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::GetEntriesContext;
    use storage::{Frame, FrameKind, Settings, SimDisk};

    #[test]
    fn what_the_log_has_no_place_of_is_not_asked_for_again_and_again() {
        let settings = Settings {
            cluster: 1,
            worker: 0,
            segment_bytes: 64 << 10,
            batch_max_bytes: 16 << 10,
            idle_seal_us: 1_000,
        };
        let disk = SimDisk::new(1, settings.segment_bytes);
        let mut log = Log::with_disk(disk, settings, &mut |_| Ok(())).unwrap().0;
        let context = || GetEntriesContext::empty(false);
        let wanted = |from| Wanted { from, to: from + 1, max_bytes: 1, context: context() };
        assert_eq!(forgotten(&log, 0, &wanted(1)), None, "nothing is known of an empty log");
        // Its beginning is gone, as that of a log of more segments than are remembered.
        let chain = [3; 32];
        let payload = b"a block".as_slice();
        let base =
            Frame { kind: FrameKind::Base, shard: 0, term: 1, index: 50, chain, payload: &[] };
        log.append(&base).unwrap();
        let chain = storage::chain_next(&chain, payload);
        let block = Frame { kind: FrameKind::Block, index: 51, chain, payload, ..base };
        log.append(&block).unwrap();
        log.submit().unwrap();
        while log.poll().unwrap().is_none() {}
        assert_eq!(forgotten(&log, 0, &wanted(1)), Some(51));
        assert_eq!(forgotten(&log, 0, &wanted(51)), None);
    }
}
