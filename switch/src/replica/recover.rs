//! A replica while its log is read back.
//!
//! What is known committed is handed out for applying at once, so that a long
//! history never lies in memory; what is not waits for a leader to say so.

use bytes::Bytes;

use super::core::{Replica, ReplicaConfig};
use super::members::{self, Members};
use super::store::{self, Store};
use super::{HardState, ReplayError};

/// Entries above the commit index that recovery keeps in memory, bytes. Far
/// above what a leader lets be uncommitted.
const UNCOMMITTED_MAX: usize = 1 << 30;

/// A replica being recovered.
pub struct Recovering {
    pub(super) config: ReplicaConfig,
    pub(super) store: Store,
    pub(super) state: HardState,
    applied: u64,
    /// As of what was applied.
    pub(super) members: Members,
}

/// A committed block found in the log.
#[derive(Debug, PartialEq)]
pub struct Recovered {
    /// Index.
    pub index: u64,
    /// Term.
    pub term: u64,
    /// The block.
    pub block: Bytes,
}

impl Recovering {
    /// An empty replica.
    pub fn new(config: ReplicaConfig) -> Self {
        Self {
            store: Store::new(&config.voters),
            state: HardState { term: 0, vote: 0, commit: 0 },
            applied: 0,
            members: Members::new(&config.voters),
            config,
        }
    }

    /// The members as of what was handed out so far.
    pub fn members(&self) -> Members {
        self.members
    }

    /// Last index and its term.
    pub fn last(&self) -> (u64, u64) {
        let last = self.store.last();
        (last, self.store.term_of(last))
    }

    /// Highest index known committed.
    pub fn committed(&self) -> u64 {
        self.state.commit.max(self.applied)
    }

    /// The term as far as the log says.
    pub fn term(&self) -> u64 {
        self.state.term
    }

    /// Whether durable means committed here.
    fn alone(&self) -> bool {
        self.members.is_alone(self.config.site)
    }

    /// Takes a block found in the log. Says whether it is to be applied at once:
    /// with one replica, durable means committed. Otherwise blocks may have
    /// become committed that are to be taken with [`Self::next_committed`].
    ///
    /// # Errors
    /// [`ReplayError`] when index or term do not follow.
    pub fn block(
        &mut self,
        index: u64,
        term: u64,
        chain: [u8; 32],
        payload: &[u8],
    ) -> Result<bool, ReplayError> {
        let shard = self.config.shard;
        let last = self.store.last();
        if index > last + 1 || index <= self.applied {
            return Err(ReplayError::Gap { shard, last, found: index });
        }
        let before = self.store.term_of(index - 1);
        if term < before {
            return Err(ReplayError::TermBackwards { shard, index, last: before, found: term });
        }
        if self.alone() && self.store.is_bare() && members::of_block(payload).is_none() {
            self.store.skip(index, term, chain);
            self.applied = index;
            return Ok(true);
        }
        let entry = store::entry(index, term, Bytes::copy_from_slice(payload));
        self.store.recover(entry, chain);
        if self.store.bytes() > UNCOMMITTED_MAX {
            return Err(ReplayError::Uncommitted { shard, applied: self.applied });
        }
        Ok(false)
    }

    /// Takes a hard state found in the log. Blocks that it commits are to be
    /// taken with [`Self::next_committed`].
    ///
    /// # Errors
    /// [`ReplayError::HardState`] when it cannot be read.
    pub fn hard_state(&mut self, bytes: &[u8]) -> Result<(), ReplayError> {
        let state =
            HardState::decode(bytes).ok_or(ReplayError::HardState { shard: self.config.shard })?;
        if state.term >= self.state.term {
            self.state.vote = state.vote;
            self.state.term = state.term;
        }
        self.state.commit = self.state.commit.max(state.commit);
        Ok(())
    }

    /// The next block that is known committed.
    pub fn next_committed(&mut self) -> Option<Recovered> {
        if self.applied >= self.state.commit && !self.alone() {
            return None;
        }
        let entry = self.store.entry(self.applied + 1)?;
        let block = store::payload(entry);
        let found = Recovered { index: entry.index, term: entry.term, block };
        if let Some(change) = members::of_block(&found.block) {
            self.members = self.members.after(&change);
        }
        self.applied += 1;
        self.store.trim(self.applied, self.config.tail_bytes_max, &mut Vec::new());
        Some(found)
    }

    /// Everything was read: the replica starts as a follower, or, alone, stands
    /// for election at once.
    pub fn start(mut self) -> Replica {
        let last = self.store.last();
        let last_term = self.store.term_of(last);
        if last_term > self.state.term {
            // The vote of a term is durable before anything of that term is
            // promised: nothing was promised in this one.
            (self.state.term, self.state.vote) = (last_term, 0);
        }
        if self.alone() {
            self.state.commit = last;
        }
        let mut state = raft::eraftpb::HardState::default();
        (state.term, state.vote) = (self.state.term, self.state.vote);
        // What a lone site applied is committed, whatever was written down.
        state.commit = self.state.commit.max(self.applied).min(last);
        self.store.set_hard_state(state);
        self.store.set_members(self.members.conf_state());
        Replica::new(self.config, self.store, self.members, self.applied)
    }
}
