//! The entries of one shard's log that consensus may still ask for.
//!
//! Recent entries are kept in memory, bounded by bytes once they are applied;
//! of older ones only the terms are kept (a few runs), so that a follower far
//! behind can be probed. Their contents are read back from the log files by the
//! runtime, on request ([`Store::take_wanted`], [`Store::put_fetched`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use storage::{CHAIN_START, chain_next};

use super::{Base, members};

/// Entries on their way from the log files to a follower.
struct Fetched {
    first: u64,
    entries: Vec<Entry>,
}

/// A range of entries that a follower needs and memory no longer has.
#[derive(Debug)]
pub struct Wanted {
    /// First index.
    pub from: u64,
    /// Index after the last.
    pub to: u64,
    /// About how many bytes are wanted.
    pub max_bytes: u64,
    /// To be handed back with the entries.
    pub context: GetEntriesContext,
}

/// Reads may come while another is under way, one per follower.
const WANTED_MAX: usize = 16;

/// Entries kept in memory, whatever their size.
const TAIL_MAX: usize = 4096;

/// The log of one shard as consensus sees it.
pub struct Store {
    /// Entries from `first` on, each with the chain value after it.
    tail: VecDeque<(Entry, [u8; 32])>,
    first: u64,
    /// Chain value before `first`.
    chain: [u8; 32],
    /// Where each term begins: first index and term, ascending. Covers the log
    /// from `known` on, so that the term of any of its indexes is known.
    terms: Vec<(u64, u64)>,
    /// First index whose term is known: 0 when the log is whole. Entries behind
    /// it can be served.
    known: u64,
    bytes: usize,
    hard_state: HardState,
    members: ConfState,
    wanted: RefCell<Vec<Wanted>>,
    /// First indexes of ranges that are being read back.
    reading: RefCell<Vec<u64>>,
    fetched: RefCell<Vec<Fetched>>,
    /// The newest durable checkpoint.
    offer: Option<Base>,
    /// A follower needs a newer one.
    wants_offer: Cell<bool>,
}

impl Store {
    /// An empty log with these voters.
    pub fn new(voters: &[u64]) -> Self {
        let mut members = ConfState::default();
        members.set_voters(voters.to_vec());
        Self {
            tail: VecDeque::new(),
            first: 1,
            chain: CHAIN_START,
            terms: Vec::new(),
            known: 0,
            bytes: 0,
            hard_state: HardState::default(),
            members,
            wanted: RefCell::new(Vec::new()),
            reading: RefCell::new(Vec::new()),
            fetched: RefCell::new(Vec::new()),
            offer: None,
            wants_offer: Cell::new(false),
        }
    }

    /// A log that begins behind a state at `base`.
    pub fn based(base: &Base) -> Self {
        let mut store = Self::new(&[]);
        store.rebase(base);
        store
    }

    /// The log begins anew behind a state.
    pub fn rebase(&mut self, base: &Base) {
        self.tail.clear();
        self.bytes = 0;
        (self.first, self.chain, self.known) = (base.index + 1, base.chain, base.index);
        self.terms = vec![(base.index, base.term)];
        self.members = base.members.conf_state();
        self.wanted.get_mut().clear();
        self.reading.get_mut().clear();
        self.fetched.get_mut().clear();
    }

    /// This checkpoint can be sent to followers from now on.
    pub fn offer(&mut self, base: Base) {
        if self.offer.is_none_or(|offer| offer.index < base.index) {
            self.offer = Some(base);
            self.wants_offer.set(false);
        }
    }

    /// That checkpoint cannot be read: another one is needed.
    pub fn withdraw(&mut self, index: u64) {
        if self.offer.is_some_and(|offer| offer.index == index) {
            self.offer = None;
            self.wants_offer.set(true);
        }
    }

    /// Whether a follower waits for a newer checkpoint.
    pub fn wants_offer(&self) -> bool {
        self.wants_offer.get()
    }

    /// Takes note of an entry that the log still holds at or below the base: its
    /// contents are in the state, but followers may ask for it. What stood
    /// at its index and behind it is replaced. `first`: the log begins with it.
    pub fn note_below(&mut self, index: u64, term: u64, first: bool) {
        debug_assert!(index < self.first, "at or below the base");
        self.truncate_tail(self.first);
        if first || index <= self.known {
            // What came before it is not known, unless it is nothing.
            self.known = if index == 1 { 0 } else { index };
            self.terms.clear();
        }
        self.truncate_terms(index);
        self.note_term(index, term);
    }

    /// The log no longer serves the entries up to `index`.
    pub fn compact(&mut self, index: u64) {
        if index <= self.known || index > self.last() {
            return;
        }
        let term = self.term_of(index);
        let later = self.terms.partition_point(|(first, _)| *first <= index);
        self.terms.splice(..later, [(index, term)]);
        self.known = index;
    }

    /// Term, vote and commit index as they are to be made durable.
    pub fn set_hard_state(&mut self, state: HardState) {
        self.hard_state = state;
    }

    /// The members as of what was applied.
    pub fn set_members(&mut self, members: ConfState) {
        self.members = members;
    }

    /// Last index; 0 for an empty log.
    pub fn last(&self) -> u64 {
        self.first + self.tail.len() as u64 - 1
    }

    /// The term at an index of the log; 0 outside it.
    pub fn term_of(&self, index: u64) -> u64 {
        self.term(index).unwrap_or(0)
    }

    /// Whether no entry is in memory.
    pub fn is_bare(&self) -> bool {
        self.tail.is_empty()
    }

    /// Bytes of payload kept in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an entry, replacing what stands at its index and behind it.
    /// Returns the chain value after it.
    pub fn append(&mut self, entry: Entry) -> [u8; 32] {
        self.truncate(entry.index);
        let chain = chain_next(&self.chain_end(), &payload(&entry));
        self.push(entry, chain);
        chain
    }

    /// As [`Self::append`], with the chain value that the log has verified.
    pub fn recover(&mut self, entry: Entry, chain: [u8; 32]) {
        self.truncate(entry.index);
        self.push(entry, chain);
    }

    /// Takes note of a durable entry that is applied already and whose payload
    /// nobody will ask for.
    pub fn skip(&mut self, index: u64, term: u64, chain: [u8; 32]) {
        debug_assert!(self.tail.is_empty() && index == self.first);
        self.note_term(index, term);
        self.first = index + 1;
        self.chain = chain;
    }

    /// The chain value after the last entry.
    fn chain_end(&self) -> [u8; 32] {
        self.tail.back().map_or(self.chain, |(_, chain)| *chain)
    }

    /// The chain value after the entry at `index`, when memory holds it: that of
    /// the last applied entry always.
    pub fn chain_at(&self, index: u64) -> Option<[u8; 32]> {
        match (index + 1).checked_sub(self.first)? {
            0 => Some(self.chain),
            nth => self.tail.get(nth as usize - 1).map(|(_, chain)| *chain),
        }
    }

    fn note_term(&mut self, index: u64, term: u64) {
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
    }

    fn push(&mut self, entry: Entry, chain: [u8; 32]) {
        debug_assert_eq!(entry.index, self.last() + 1, "entries have no gaps");
        self.note_term(entry.index, entry.term);
        self.bytes += entry.data.len();
        self.tail.push_back((entry, chain));
    }

    /// Removes the entries from `index` on.
    fn truncate(&mut self, index: u64) {
        // Consensus never replaces what was applied, and only that is dropped.
        debug_assert!(index >= self.first, "entries dropped from memory are committed");
        self.truncate_tail(index);
        self.truncate_terms(index);
    }

    fn truncate_tail(&mut self, index: u64) {
        while self.last() >= index && !self.tail.is_empty() {
            if let Some((entry, _)) = self.tail.pop_back() {
                self.bytes -= entry.data.len();
            }
        }
    }

    fn truncate_terms(&mut self, index: u64) {
        while self.terms.last().is_some_and(|(first, _)| *first >= index) {
            self.terms.pop();
        }
    }

    /// Drops the oldest entries up to `applied` until at most `bytes_max` are
    /// kept. Gives the memory of their payloads to `spare` where nobody else
    /// holds it.
    pub fn trim(&mut self, applied: u64, bytes_max: usize, spare: &mut Vec<Vec<u8>>) {
        while (self.bytes > bytes_max || self.tail.len() > TAIL_MAX) && self.first <= applied {
            let Some((entry, chain)) = self.tail.pop_front() else { return };
            self.bytes -= entry.data.len();
            self.first += 1;
            self.chain = chain;
            reclaim(entry.data, spare);
        }
    }

    /// The entry at `index`, when it is in memory.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.first)?;
        self.tail.get(at as usize).map(|(entry, _)| entry)
    }

    /// The chain value after `index`, when in memory.
    #[cfg(test)]
    pub fn chain_after(&self, index: u64) -> Option<[u8; 32]> {
        match (index + 1).checked_sub(self.first)? {
            0 => Some(self.chain),
            place => self.tail.get(place as usize - 1).map(|(_, chain)| *chain),
        }
    }

    /// The next range that followers wait for.
    pub fn take_wanted(&mut self) -> Option<Wanted> {
        self.wanted.get_mut().pop()
    }

    /// Entries read back for a follower from index `from` on; kept until
    /// consensus takes them. None when they could not be read.
    pub fn put_fetched(&mut self, from: u64, entries: Vec<Entry>) {
        self.reading.get_mut().retain(|first| *first != from);
        let Some(first) = entries.first().map(|entry| entry.index) else { return };
        let fetched = self.fetched.get_mut();
        if fetched.len() >= WANTED_MAX {
            fetched.remove(0);
        }
        fetched.push(Fetched { first, entries });
    }

    fn fetched(&self, low: u64) -> Option<Vec<Entry>> {
        let mut fetched = self.fetched.borrow_mut();
        let at = fetched.iter().position(|found| found.first == low)?;
        Some(fetched.remove(at).entries)
    }
}

/// Gives a payload's memory back when it is nobody else's.
fn reclaim(data: Bytes, spare: &mut Vec<Vec<u8>>) {
    /// Emptied buffers kept per shard.
    const SPARE_MAX: usize = 8;
    if spare.len() < SPARE_MAX
        && let Ok(unique) = data.try_into_mut()
    {
        let mut buffer = Vec::from(unique);
        buffer.clear();
        if buffer.capacity() > 0 {
            spare.push(buffer);
        }
    }
}

/// An entry as consensus keeps it, from what stands in the log.
pub fn entry(index: u64, term: u64, block: Bytes) -> Entry {
    let mut entry = Entry { index, term, ..Entry::default() };
    match members::of_block(&block) {
        Some(change) => {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.data = members::data(&change);
        }
        None => {
            entry.set_entry_type(EntryType::EntryNormal);
            entry.data = block;
        }
    }
    entry
}

/// What stands in the log for an entry.
pub(super) fn payload(entry: &Entry) -> Bytes {
    match entry.get_entry_type() {
        EntryType::EntryNormal => entry.data.clone(),
        // A change that cannot be read was refused where it came from.
        _ => members::block(&members::parse(&entry.data).unwrap_or_default()),
    }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.members.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max = max_size.into().unwrap_or(u64::MAX);
        if low <= self.known {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if low < self.first {
            if let Some(found) = self.fetched(low) {
                return Ok(within(found.iter(), high, max));
            }
            if !context.can_async() {
                return Err(raft::Error::Store(StorageError::Compacted));
            }
            let mut reading = self.reading.borrow_mut();
            let mut wanted = self.wanted.borrow_mut();
            if reading.len() < WANTED_MAX && !reading.contains(&low) {
                reading.push(low);
                let to = high.min(self.first);
                wanted.push(Wanted { from: low, to, max_bytes: max, context });
            }
            return Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable));
        }
        let from = (low - self.first) as usize;
        Ok(within(self.tail.range(from..).map(|(entry, _)| entry), high, max))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == 0 && self.known == 0 {
            return Ok(0);
        }
        if index < self.known {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if index > self.last() {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let at = self.terms.partition_point(|(first, _)| *first <= index);
        match at.checked_sub(1) {
            Some(at) => Ok(self.terms[at].1),
            None => Err(raft::Error::Store(StorageError::Compacted)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.known + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // The log must go on behind it, and a state that does not know the
        // follower is none that it could take.
        let fits = |base: &&Base| {
            base.index >= request_index && base.index >= self.known && base.is_for(to)
        };
        match self.offer.as_ref().filter(fits) {
            Some(base) => Ok(base.snapshot()),
            None => {
                self.wants_offer.set(true);
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

/// The entries below `high`, at least one, until `max` bytes are reached.
fn within<'a>(entries: impl Iterator<Item = &'a Entry>, high: u64, max: u64) -> Vec<Entry> {
    /// What an entry costs beside its payload.
    const ENTRY_BYTES: u64 = 32;
    let mut out = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += ENTRY_BYTES + entry.data.len() as u64;
        if entry.index >= high || bytes > max && !out.is_empty() {
            break;
        }
        out.push(entry.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::Members;
    use super::*;

    fn filled(terms: &[u64]) -> Store {
        let mut store = Store::new(&[1, 2, 3]);
        for (at, term) in terms.iter().enumerate() {
            store.append(entry(at as u64 + 1, *term, Bytes::from(vec![at as u8; 100])));
        }
        store
    }

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn the_term_of_every_index_stays_known() {
        let mut store = filled(&[1, 1, 3, 3, 4]);
        store.trim(4, 0, &mut Vec::new());
        let terms: Vec<u64> = (0..=5).map(|index| store.term(index).unwrap()).collect();
        assert_eq!(terms, [0, 1, 1, 3, 3, 4]);
        assert!(store.term(6).is_err());
        assert_eq!((store.first, store.last(), store.bytes()), (5, 5, 100));
    }

    #[test]
    fn a_later_term_replaces_the_suffix_and_its_chain() {
        let mut store = filled(&[1, 1, 1, 2]);
        let second = store.tail[1].1;
        let chain = store.append(entry(3, 5, Bytes::from_static(b"other")));
        assert_eq!(chain, chain_next(&second, b"other"));
        assert_eq!((store.last(), store.term(3).unwrap(), store.bytes()), (3, 5, 205));
    }

    #[test]
    fn entries_are_bounded_by_bytes_but_never_none() {
        let store = filled(&[1; 10]);
        let take = |low, high, max| {
            indexes(&store.entries(low, high, max, GetEntriesContext::empty(false)).unwrap())
        };
        assert_eq!(take(2, 11, None), [2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(take(2, 5, None), [2, 3, 4]);
        assert_eq!(take(2, 11, Some(0)), [2]);
        assert_eq!(take(2, 11, Some(264)), [2, 3]);
    }

    #[test]
    fn what_memory_lost_is_asked_for_and_taken_once_it_is_there() {
        let mut store = filled(&[1; 10]);
        store.trim(8, 300, &mut Vec::new());
        let asked = store.entries(2, 11, None, GetEntriesContext::empty(true));
        assert_eq!(asked.unwrap_err(), raft::Error::Store(StorageError::LogTemporarilyUnavailable));
        let wanted = store.take_wanted().unwrap();
        assert_eq!((wanted.from, wanted.to), (2, 8));
        assert!(store.take_wanted().is_none());
        assert!(store.entries(2, 11, None, GetEntriesContext::empty(true)).is_err());
        assert!(store.take_wanted().is_none(), "it is being read");
        store.put_fetched(2, (2..6).map(|index| entry(index, 1, Bytes::new())).collect());
        let found = store.entries(2, 11, None, GetEntriesContext::empty(true)).unwrap();
        assert_eq!(indexes(&found), [2, 3, 4, 5]);
        assert!(store.entries(2, 11, None, GetEntriesContext::empty(false)).is_err(), "taken");
    }

    #[test]
    fn what_the_log_gave_up_is_compacted_and_the_rest_is_not() {
        let mut store = filled(&[1, 1, 3, 3, 4, 4]);
        store.trim(5, 0, &mut Vec::new());
        store.compact(4);
        assert_eq!(store.first_index().unwrap(), 5);
        let terms: Vec<Option<u64>> = (0..=7).map(|index| store.term(index).ok()).collect();
        assert_eq!(terms, [None, None, None, None, Some(3), Some(4), Some(4), None]);
        let compacted = store.entries(4, 6, None, GetEntriesContext::empty(true));
        assert_eq!(compacted.unwrap_err(), raft::Error::Store(StorageError::Compacted));
        assert!(store.take_wanted().is_none(), "nobody is asked for it");
        store.compact(2);
        store.compact(9);
        assert_eq!((store.first_index().unwrap(), store.last()), (5, 6), "never back or beyond");
    }

    #[test]
    fn a_checkpoint_is_offered_to_those_that_it_knows_and_asked_for_where_it_is_not() {
        let mut store = filled(&[1, 1, 2]);
        let base = |index, voters: &[u64]| Base {
            index,
            term: 1,
            chain: [7; 32],
            members: Members::new(voters),
            received: false,
        };
        assert!(store.snapshot(0, 2).is_err() && store.wants_offer());
        store.offer(base(2, &[1, 2, 3]));
        assert!(!store.wants_offer());
        assert_eq!(store.snapshot(0, 2).unwrap().get_metadata().index, 2);
        assert!(store.snapshot(3, 2).is_err(), "asked for a newer one");
        store.offer(base(1, &[1, 2, 3, 4]));
        assert!(store.snapshot(0, 4).is_err() && store.wants_offer(), "an old one is not taken");
        store.offer(base(3, &[1, 2, 3, 4]));
        assert_eq!(store.snapshot(0, 4).unwrap().get_metadata().index, 3);
    }

    #[test]
    fn a_log_begins_anew_behind_a_state() {
        let mut store = filled(&[1, 1, 2]);
        let (members, chain) = (Members::new(&[1, 2, 4]), [3; 32]);
        store.rebase(&Base { index: 50, term: 6, chain, members, received: true });
        assert_eq!((store.first_index().unwrap(), store.last(), store.bytes()), (51, 50, 0));
        assert_eq!((store.term(50).unwrap(), store.term(3).is_err()), (6, true));
        assert_eq!(store.append(entry(51, 7, Bytes::new())), chain_next(&chain, b""));
        assert_eq!(store.initial_state().unwrap().conf_state.get_voters(), [1, 2, 4]);
    }

    #[test]
    fn memory_of_dropped_payloads_comes_back() {
        let mut store = filled(&[1; 3]);
        let held = store.entry(2).unwrap().data.clone();
        let mut spare = Vec::new();
        store.trim(3, 0, &mut spare);
        assert_eq!(spare.len(), 2, "all but the one that is held elsewhere");
        drop(held);
    }
}
