//! Giving up the oldest segments.
//!
//! The log knows what each segment holds. [`crate::Log::plan_release`] decides on
//! the worker's thread, from memory, which segments nobody needs any more;
//! [`Release::run`] does it on any other thread: first the new beginning is
//! recorded durably, in the file `released`, then the segments go, oldest first.
//! A crash anywhere leaves the old beginning, or the new one with segments that
//! are ignored and removed at the next start. A segment that is missing behind
//! the recorded beginning is damage as before. Tested by `tests/release.rs`.

use std::collections::VecDeque;

use crate::checkpoint::Checkpoint;
use crate::disk::{Buffer, DiskError, DiskOp, Files, PageFault, Pages};
use crate::format::{
    Anchor, BLOCK_BYTES, HeaderFault, Identity, Released, SegmentHeader, encode_released,
};
use crate::frame::{Frame, FrameKind};
use crate::scan::Position;

/// The file that says where the log begins.
pub(crate) const RELEASED_FILE: &str = "released";
const RELEASED_TEMPORARY: &str = "released.tmp";

/// What a batch or a segment holds of a shard.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Highest index of a block or base; 0 for none.
    highest: u64,
    hard_state: bool,
    note: bool,
}

#[derive(Debug)]
struct SegmentHeld {
    id: u64,
    /// Highest index by shard.
    highest: Vec<u64>,
}

/// The newest frames outside the chain, by the segment that holds them.
#[derive(Debug, Clone, Copy, Default)]
struct Newest {
    hard_state: u64,
    note: u64,
}

/// What each segment holds.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    segments: VecDeque<SegmentHeld>,
    /// Of what is durable, by shard.
    newest: Vec<Newest>,
    /// Of the batch in flight, likewise; 0 for none.
    flying: Vec<Newest>,
    flies: bool,
    /// The batch being filled, by shard.
    open: Vec<Held>,
    touched: bool,
}

impl Holdings {
    pub(crate) fn note(&mut self, frame: &Frame<'_>) {
        let at = usize::from(frame.shard);
        if at >= self.open.len() {
            self.open.resize(at + 1, Held::default());
            self.newest.resize(at + 1, Newest::default());
            self.flying.resize(at + 1, Newest::default());
        }
        self.touched = true;
        let held = &mut self.open[at];
        match frame.kind {
            FrameKind::Block | FrameKind::Base => held.highest = held.highest.max(frame.index),
            FrameKind::HardState => held.hard_state = true,
            FrameKind::Note => held.note = true,
        }
    }

    /// The batch being filled lies in `segment`, and is not durable yet: a crash may
    /// leave nothing of it, and then what was the newest before it still is.
    pub(crate) fn close_batch(&mut self, segment: u64) {
        if !std::mem::take(&mut self.touched) {
            return;
        }
        if self.segments.back().is_none_or(|last| last.id != segment) {
            let highest = vec![0; self.open.len()];
            self.segments.push_back(SegmentHeld { id: segment, highest });
        }
        let Some(last) = self.segments.back_mut() else { return };
        last.highest.resize(self.open.len().max(last.highest.len()), 0);
        let shards = self.open.iter_mut().zip(&mut last.highest).zip(&mut self.flying);
        for ((open, highest), flying) in shards {
            let held = std::mem::take(open);
            *highest = (*highest).max(held.highest);
            self.flies |= held.hard_state || held.note;
            if held.hard_state {
                flying.hard_state = segment;
            }
            if held.note {
                flying.note = segment;
            }
        }
    }

    /// The batch that was closed last is durable.
    pub(crate) fn landed(&mut self) {
        if !std::mem::take(&mut self.flies) {
            return;
        }
        for (newest, flying) in self.newest.iter_mut().zip(&mut self.flying) {
            let flown = std::mem::take(flying);
            newest.hard_state = newest.hard_state.max(flown.hard_state);
            newest.note = newest.note.max(flown.note);
        }
    }

    /// The first segment that must stay, at most `last`.
    pub(crate) fn first_needed(&self, anchors: &[Anchor], last: u64) -> u64 {
        let released =
            |shard: usize| anchors.iter().find(|anchor| usize::from(anchor.shard) == shard);
        let free = |segment: &SegmentHeld| {
            let mut shards = segment.highest.iter().enumerate();
            shards.all(|(shard, highest)| {
                *highest == 0 || released(shard).is_some_and(|anchor| anchor.index >= *highest)
            })
        };
        let needed = self.segments.iter().find(|segment| !free(segment));
        let newest = self.newest.iter().flat_map(|newest| [newest.hard_state, newest.note]);
        let newest = newest.filter(|segment| *segment > 0);
        newest.chain(needed.map(|segment| segment.id)).fold(last, u64::min)
    }

    pub(crate) fn release(&mut self, first: u64) {
        while self.segments.front().is_some_and(|segment| segment.id < first) {
            self.segments.pop_front();
        }
    }
}

/// Anchors as they stand after `checkpoints`.
pub(crate) fn merge(anchors: &mut Vec<Anchor>, checkpoints: &[Checkpoint]) {
    for checkpoint in checkpoints {
        let Checkpoint { shard, index, chain, .. } = *checkpoint;
        match anchors.iter_mut().find(|anchor| anchor.shard == shard) {
            Some(anchor) if anchor.index < index => *anchor = Anchor { shard, index, chain },
            Some(_) => {}
            None => anchors.push(Anchor { shard, index, chain }),
        }
    }
}

/// Segments that nobody needs, to be deleted on any thread; one at a time.
#[derive(Debug)]
#[must_use = "nothing is deleted before it runs"]
pub struct Release<F: Files, P: Pages> {
    pub(crate) files: F,
    pub(crate) pages: P,
    pub(crate) identity: Identity,
    pub(crate) first: u64,
    pub(crate) anchors: Vec<Anchor>,
}

impl<F: Files, P: Pages> Release<F, P> {
    /// The segment with which the log will begin.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Records the new beginning and deletes what lies before it.
    ///
    /// # Errors
    /// [`DiskError`]: the old or the new beginning holds, and nothing that
    /// is needed is gone. To be run again; the next release, or start, does the
    /// rest too.
    pub fn run(&mut self) -> Result<(), DiskError> {
        let mut block = Buffer::new(BLOCK_BYTES);
        let at = Position { segment: self.first, offset: 0 };
        let unreadable = DiskError::short(DiskOp::Read);
        match self.pages.read(at, &mut block) {
            Ok(BLOCK_BYTES) => {}
            Ok(_) | Err(PageFault::Gone | PageFault::Unreadable) => return Err(unreadable),
            Err(PageFault::Failed(error)) => return Err(error),
        }
        let header = SegmentHeader::decode(&block)
            .ok()
            .filter(|header| header.identity == self.identity && header.segment == self.first)
            .ok_or(unreadable)?;
        let mut bytes = Vec::new();
        let anchors = self.anchors.clone();
        encode_released(&Released { header, anchors }, &mut bytes);
        self.files.create(RELEASED_TEMPORARY)?;
        self.files.append(&bytes)?;
        self.files.sync()?;
        self.files.rename(RELEASED_TEMPORARY, RELEASED_FILE)?;
        self.files.sync_dir()?;
        remove_before(&mut self.files, self.first)
    }
}

/// Deletes the segments before `first`, oldest first.
pub(crate) fn remove_before<F: Files>(files: &mut F, first: u64) -> Result<(), DiskError> {
    let names = files.list()?;
    let numbered = names.iter().filter_map(|name| Some((segment_of(name)?, name)));
    let mut old: Vec<_> = numbered.filter(|(segment, _)| *segment < first).collect();
    old.sort_unstable();
    for (_, name) in &old {
        files.remove(name)?;
    }
    if old.is_empty() { Ok(()) } else { files.sync_dir() }
}

/// The segment number of a file name.
pub(crate) fn segment_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// The recorded beginning of the log of `identity`, when there is one.
pub(crate) fn decode(block: &[u8], identity: &Identity) -> Result<Released, HeaderFault> {
    let released = crate::format::decode_released(block)?;
    if released.header.identity != *identity || released.header.segment < 2 {
        return Err(HeaderFault::Damaged);
    }
    Ok(released)
}
