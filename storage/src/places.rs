//! Where in the log the blocks of each shard lie, sparsely and in bounded memory.
//!
//! An entry says: from this batch on, the blocks of the shard count from this
//! index. Between two entries lie the blocks of the indexes between them, in
//! order and once. That holds because every index that goes back makes an entry
//! of its own and drops the entries it replaces: who reads up to the next
//! entry's index and goes on at the next entry's place never meets a block that
//! was replaced. Knows no file. Tested through `reader.rs` against a model.

use std::collections::VecDeque;

use crate::format::{BATCH_HEADER_BYTES, BLOCK_BYTES};
use crate::frame::{Frame, FrameKind};
use crate::release::Holdings;
use crate::scan::{Found, Position};

/// Log bytes between two entries of a shard, at first; doubled when the entries
/// have used up their number.
const STRIDE_BYTES: u64 = 256 << 10;
/// Most entries of a shard: 96 KiB of memory.
const ENTRIES_MAX: usize = 4096;
/// Most legs of one route; a longer range is read in several.
const LEGS_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Entry {
    index: u64,
    segment: u64,
    block: u32,
    /// Replaces what stood at its index, or is the shard's first in its
    /// segment: never thinned out.
    fixed: bool,
}

impl Entry {
    fn at(&self) -> Position {
        Position { segment: self.segment, offset: u64::from(self.block) * BLOCK_BYTES as u64 }
    }
}

/// What the batch being filled holds of a shard.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// Lowest index, and the one after the newest; `None` before the first block.
    span: Option<(u64, u64)>,
    /// The shard starts anew in this batch, behind this index.
    base: Option<u64>,
}

#[derive(Debug)]
struct ShardPlaces {
    /// Ascending in index and in place.
    entries: VecDeque<Entry>,
    /// The index after the newest block of a closed batch.
    next: u64,
    open: Option<Open>,
    stride: u64,
    /// How far the log was when the newest entry was made.
    marked: u64,
}

impl Default for ShardPlaces {
    fn default() -> ShardPlaces {
        let entries = VecDeque::new();
        ShardPlaces { entries, next: 0, open: None, stride: STRIDE_BYTES, marked: 0 }
    }
}

/// The places of all shards.
#[derive(Debug, Default)]
pub(crate) struct Places {
    shards: Vec<ShardPlaces>,
    /// Shards with blocks in the batch being filled.
    touched: Vec<u16>,
    /// Bytes of log up to the newest closed batch.
    walked: u64,
    newest: Position,
}

/// A part of a route: from here on, up to the next leg's index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leg {
    pub(crate) index: u64,
    pub(crate) at: Position,
}

/// Where the blocks `from..to` of a shard can be read, as the log knew it at
/// one moment. Stays usable until the segments are released.
#[derive(Debug, Clone)]
pub struct Route {
    pub(crate) shard: u16,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) legs: Vec<Leg>,
    /// Nothing from here on was durable.
    pub(crate) end: Position,
    pub(crate) before: Option<[u8; 32]>,
}

impl Route {
    /// The first index that will be read.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// The index behind the last one that can be read.
    pub fn to(&self) -> u64 {
        self.to
    }

    /// Demands that the first block follows this chain value. Without it the
    /// first block's own chain value is taken as it was verified at recovery.
    #[must_use]
    pub fn after(mut self, chain: [u8; 32]) -> Route {
        self.before = Some(chain);
        self
    }
}

/// The block is not in the log (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block {index} of shard {shard} is not in the log, which reaches back to {first:?}")]
pub struct NotInLog {
    /// Shard.
    pub shard: u16,
    /// Index asked for.
    pub index: u64,
    /// The first index that can be read, if any.
    pub first: Option<u64>,
}

impl Places {
    /// Takes note of a frame of the batch being filled.
    pub(crate) fn note(&mut self, frame: &Frame<'_>) {
        if !matches!(frame.kind, FrameKind::Block | FrameKind::Base) {
            return;
        }
        let at = usize::from(frame.shard);
        if at >= self.shards.len() {
            self.shards.resize_with(at + 1, ShardPlaces::default);
        }
        if self.shards[at].entries.capacity() == 0 {
            // All at once: appending never allocates after a shard's first block.
            self.shards[at].entries.reserve_exact(ENTRIES_MAX + 1);
            self.touched.reserve(self.shards.len());
        }
        let open = &mut self.shards[at].open;
        if open.is_none() {
            self.touched.push(frame.shard);
        }
        let open = open.get_or_insert(Open { span: None, base: None });
        if frame.kind == FrameKind::Base {
            *open = Open { span: None, base: Some(frame.index) };
        } else {
            let low = open.span.map_or(frame.index, |(low, _)| low.min(frame.index));
            open.span = Some((low, frame.index + 1));
        }
    }

    /// The batch being filled lies at `at`.
    pub(crate) fn close_batch(&mut self, at: Position) {
        let same = at.segment == self.newest.segment;
        self.walked += at.offset - if same { self.newest.offset } else { 0 };
        self.newest = at;
        for shard in self.touched.drain(..) {
            let shard = &mut self.shards[usize::from(shard)];
            if let Some(open) = shard.open.take() {
                shard.close(open, at, self.walked);
            }
        }
    }

    /// The first index of a shard that can be read.
    pub(crate) fn first(&self, shard: u16) -> Option<u64> {
        Some(self.shards.get(usize::from(shard))?.entries.front()?.index)
    }

    /// How to read blocks `from..to` of a shard; ends where something that is
    /// not written yet replaces them.
    pub(crate) fn route(
        &self,
        shard: u16,
        from: u64,
        to: u64,
        end: Position,
    ) -> Result<Route, NotInLog> {
        let first = self.first(shard);
        let missing = NotInLog { shard, index: from, first };
        let places = self.shards.get(usize::from(shard)).ok_or(missing)?;
        let mut to = to.min(places.next);
        match places.open {
            Some(Open { base: Some(_), .. }) => return Err(NotInLog { first: None, ..missing }),
            Some(Open { span: Some((low, _)), .. }) => to = to.min(low),
            _ => {}
        }
        let above = places.entries.partition_point(|entry| entry.index <= from);
        let floor = above.checked_sub(1).ok_or(missing)?;
        let mut legs = Vec::new();
        if from < to {
            let leg = |entry: &Entry| Leg { index: entry.index, at: entry.at() };
            legs.push(leg(&places.entries[floor]));
            let fixed = places.entries.range(above..).filter(|entry| entry.fixed).map(leg);
            let mut fixed = fixed.take_while(|leg| leg.index < to);
            legs.extend(fixed.by_ref().take(LEGS_MAX - 1));
            if let Some(next) = fixed.next() {
                to = next.index;
            }
        }
        Ok(Route { shard, from, to: to.max(from), legs, end, before: None })
    }

    /// Forgets what lies before `segment`, which is about to be deleted.
    pub(crate) fn release(&mut self, segment: u64) {
        for shard in &mut self.shards {
            while shard.entries.front().is_some_and(|entry| entry.segment < segment) {
                shard.entries.pop_front();
            }
        }
    }
}

/// Builds places and holdings while the log is read: a batch is known to be over when
/// the next one begins.
#[derive(Debug, Default)]
pub(crate) struct RecoveredPlaces {
    places: Places,
    holdings: Holdings,
    batch: Option<(u64, Position)>,
}

impl RecoveredPlaces {
    pub(crate) fn note(&mut self, found: Found, frame: &Frame<'_>) {
        if self.batch.is_none_or(|(batch, _)| batch != found.batch) {
            // The first frame stands right behind its batch's header.
            let offset = found.at.offset - BATCH_HEADER_BYTES as u64;
            let begins = (found.batch, Position { offset, ..found.at });
            if let Some((_, at)) = self.batch.replace(begins) {
                self.places.close_batch(at);
                self.holdings.close_batch(at.segment);
                self.holdings.landed();
            }
        }
        self.places.note(frame);
        self.holdings.note(frame);
    }

    pub(crate) fn finish(mut self) -> (Places, Holdings) {
        if let Some((_, at)) = self.batch {
            self.places.close_batch(at);
            self.holdings.close_batch(at.segment);
            // Recovery hands nothing over before it has made durable what it read.
            self.holdings.landed();
        }
        (self.places, self.holdings)
    }
}

impl ShardPlaces {
    fn close(&mut self, open: Open, at: Position, walked: u64) {
        if let Some(base) = open.base {
            self.entries.clear();
            self.next = base + 1;
        }
        let Some((low, next)) = open.span else { return };
        while self.entries.back().is_some_and(|entry| entry.index >= low) {
            self.entries.pop_back();
        }
        let back = self.entries.back();
        let fixed = low < self.next || back.is_none_or(|entry| entry.segment != at.segment);
        self.next = next;
        if fixed || walked - self.marked >= self.stride {
            self.marked = walked;
            let block = (at.offset / BLOCK_BYTES as u64) as u32;
            self.entries.push_back(Entry { index: low, segment: at.segment, block, fixed });
            if self.entries.len() > ENTRIES_MAX {
                self.thin();
            }
        }
    }

    /// Halves what may be left out. If that is not enough, forgets the oldest.
    fn thin(&mut self) {
        let mut odd = false;
        self.entries.retain(|entry| {
            odd ^= !entry.fixed;
            entry.fixed || odd
        });
        self.stride = self.stride.saturating_mul(2);
        if self.entries.len() > ENTRIES_MAX / 4 * 3 {
            self.entries.drain(..ENTRIES_MAX / 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(index: u64) -> Frame<'static> {
        let chain = [0; 32];
        Frame { kind: FrameKind::Block, shard: 1, term: 1, index, chain, payload: b"" }
    }

    fn at(segment: u64, block: u64) -> Position {
        Position { segment, offset: block * BLOCK_BYTES as u64 }
    }

    const END: Position = Position { segment: u64::MAX, offset: 0 };

    #[test]
    fn memory_stays_bounded_and_every_index_keeps_a_place() {
        let mut places = Places::default();
        for index in 1..=200_000 {
            places.note(&block(index));
            places.close_batch(at(1, index * 70));
        }
        let shard = &places.shards[1];
        assert!(shard.entries.len() <= ENTRIES_MAX);
        assert!(shard.stride > STRIDE_BYTES);
        for index in [1, 2, 77_777, 200_000] {
            let route = places.route(1, index, index + 1, END).unwrap();
            let leg = route.legs[0];
            assert!(leg.index <= index && leg.at <= at(1, index * 70));
            let bytes = at(1, index * 70).offset - leg.at.offset;
            assert!(bytes <= 2 * shard.stride, "{bytes} bytes to walk");
        }
    }

    #[test]
    fn replacements_without_end_forget_the_oldest_and_say_so() {
        let mut places = Places::default();
        for n in 1..=10_000u64 {
            places.note(&block(2 * n));
            places.note(&block(2 * n + 1));
            places.close_batch(at(n, 1));
            places.note(&block(2 * n + 1));
            places.close_batch(at(n, 2));
        }
        assert!(places.shards[1].entries.len() <= ENTRIES_MAX);
        let first = places.first(1).unwrap();
        assert!(first > 1);
        let gone = places.route(1, first - 1, first, END).unwrap_err();
        assert_eq!(gone, NotInLog { shard: 1, index: first - 1, first: Some(first) });
        let route = places.route(1, first, u64::MAX, END).unwrap();
        assert_eq!(route.legs.len(), LEGS_MAX);
        assert!(route.to < 20_001, "a long range is read in several routes");
    }

    #[test]
    fn what_the_open_batch_replaces_is_not_offered() {
        let mut places = Places::default();
        for index in 1..=9 {
            places.note(&block(index));
        }
        places.close_batch(at(1, 1));
        places.note(&block(6));
        assert_eq!(places.route(1, 2, 10, END).unwrap().to(), 6);
        assert_eq!(places.route(1, 7, 10, END).unwrap().to(), 7);
        places.note(&Frame { kind: FrameKind::Base, ..block(50) });
        assert_eq!(places.route(1, 2, 10, END).unwrap_err().first, None);
        places.close_batch(at(1, 2));
        assert!(places.route(1, 2, 10, END).is_err());
    }
}
