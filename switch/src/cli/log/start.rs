//! Whether a start would find what it needs beside a sound log: checkpoints that are
//! whole, and a log that leads to the newest one of each shard and on from there.
//!
//! The rules are those of `replica::Recovering`, without configuration and without
//! keeping blocks: a log is checked wherever it lies.

use std::collections::BTreeMap;
use std::path::Path;

use storage::{CheckpointError, Frame, FrameKind, ShardEnd, chain_next};

use crate::cli::{Exit, Failure};
use crate::replica::{Base, Members};

/// What a start would begin from.
pub(super) struct Start {
    shards: BTreeMap<u16, Shard>,
    /// As they were listed, to see whether a running site has written others since.
    listed: Vec<(u16, u64)>,
    /// Whole checkpoints.
    pub(super) sound: u64,
    /// What is wrong with the others.
    pub(super) unsound: Vec<String>,
}

struct Shard {
    /// Of its newest whole checkpoint; index 0 without one.
    base: Base,
    /// The last block found.
    seen: Option<u64>,
    /// Whether the log says of the block at the base what the checkpoint says.
    meets: bool,
    /// Whether the one behind it follows from it.
    follows: bool,
    /// What it begins behind, when that is too far on.
    late: Option<u64>,
}

impl Shard {
    fn new(base: Base) -> Self {
        Self { base, seen: None, meets: true, follows: true, late: None }
    }

    fn none() -> Self {
        let chain = storage::CHAIN_START;
        Self::new(Base { index: 0, term: 0, chain, members: Members::new(&[]), received: false })
    }

    fn found(&mut self, frame: &Frame<'_>) {
        let (base, index) = (self.base.index, frame.index);
        let begins = self.seen.is_none() || frame.kind == FrameKind::Base;
        let behind = if frame.kind == FrameKind::Base { index } else { index.saturating_sub(1) };
        if begins && behind > base {
            self.late.get_or_insert(behind);
        }
        self.seen = Some(index);
        if index <= base {
            let is_it = (frame.term, frame.chain) == (self.base.term, self.base.chain);
            self.meets = index < base || is_it;
            self.follows = true;
        } else if index == base + 1 && frame.kind == FrameKind::Block {
            let chain = chain_next(&self.base.chain, frame.payload);
            self.follows = frame.term >= self.base.term && chain == frame.chain;
        }
    }

    /// What a start would say.
    fn refused(&self, number: u16, end: Option<u64>) -> Option<String> {
        let base = self.base.index;
        let last = self.seen.or(end).unwrap_or(0);
        let late = self.late.or(end.filter(|end| self.seen.is_none() && *end > base));
        if let Some(behind) = late {
            let first = behind + 1;
            return Some(format!(
                "the log of shard {number} begins with block {first}, but its newest whole \
                 checkpoint is of block {base}"
            ));
        }
        let leads_there = last >= base && self.meets;
        if self.base.received && !leads_there {
            // The log begins anew behind it.
            return None;
        }
        if last < base {
            return Some(format!(
                "the log of shard {number} ends with block {last}, before its checkpoint of \
                 block {base}"
            ));
        }
        (!(self.meets && self.follows)).then(|| {
            format!("the log of shard {number} does not lead to its checkpoint of block {base}")
        })
    }
}

impl Start {
    /// Reads the checkpoints of the log in `dir`.
    pub(super) fn load(dir: &Path) -> Result<Self, Failure> {
        let unreadable = |error| Failure::new(Exit::Environment, error);
        let mut checkpoints = storage::checkpoints(dir)?;
        let listed = checkpoints.list_all().map_err(unreadable)?;
        let (mut shards, mut sound, mut unsound) = (BTreeMap::new(), 0, Vec::new());
        for &(shard, index) in &listed {
            match checkpoints.read(shard, index, &mut |_| {}) {
                Ok((of, note)) => match Base::of(of, note, &[]) {
                    Some(base) => {
                        sound += 1;
                        // The newest of each shard comes first.
                        shards.entry(shard).or_insert_with(|| Shard::new(base));
                    }
                    None => unsound.push(format!(
                        "checkpoint of shard {shard} at block {index}: its note cannot be read"
                    )),
                },
                // An older one, removed by the running site.
                Err(CheckpointError::Missing { .. }) => {}
                Err(CheckpointError::Disk(error)) => return Err(unreadable(error)),
                Err(error) => unsound.push(error.to_string()),
            }
        }
        Ok(Self { shards, listed, sound, unsound })
    }

    /// Whether the checkpoints are still the same.
    pub(super) fn is_current(&self, dir: &Path) -> Result<bool, Failure> {
        let unreadable = |error| Failure::new(Exit::Environment, error);
        let listed = storage::checkpoints(dir)?.list_all().map_err(unreadable)?;
        Ok(listed == self.listed)
    }

    /// Takes the log's frames, in order.
    pub(super) fn frame(&mut self, frame: &Frame<'_>) {
        if matches!(frame.kind, FrameKind::Block | FrameKind::Base) {
            self.shards.entry(frame.shard).or_insert_with(Shard::none).found(frame);
        }
    }

    /// Why a start would be refused, once the log was read that ends so.
    pub(super) fn refused(&mut self, ends: &[ShardEnd]) -> Option<String> {
        for end in ends {
            self.shards.entry(end.shard).or_insert_with(Shard::none);
        }
        self.shards.iter().find_map(|(number, shard)| {
            let end = ends.iter().find(|end| end.shard == *number);
            shard.refused(*number, end.map(|end| end.index))
        })
    }
}
