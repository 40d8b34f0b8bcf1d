//! A replica while its log is read back.
//!
//! What is known committed is handed out for applying at once, so that a long
//! history never lies in memory; what is not waits for a leader to say so.
//!
//! With a checkpoint it begins from that state ([`Recovering::from_base`]): what
//! the log still holds at or below the base is only taken note of, also a stale
//! end that was replaced later, and must lead to the base.

use bytes::Bytes;
use storage::{CHAIN_START, chain_next};

use super::core::{Replica, ReplicaConfig};
use super::members::{self, Members};
use super::store::{self, Store};
use super::{Base, HardState, ReplayError};

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
    base: Base,
    /// The last block found in the log.
    seen: Option<u64>,
    /// A block at or below the base was found in the log.
    shown: bool,
    /// Whether the log says what the state says of the block at the base. A stale
    /// block may say otherwise until it is replaced.
    meets: bool,
    /// Whether the block behind the base follows from the state, likewise.
    follows: bool,
    /// The log does not lead to the base, and begins anew behind it.
    anew: bool,
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
        let members = Members::new(&config.voters);
        let base = Base { index: 0, term: 0, chain: CHAIN_START, members, received: false };
        Self::from_base(config, base)
    }

    /// A replica whose engine was restored from a checkpoint.
    pub fn from_base(config: ReplicaConfig, base: Base) -> Self {
        let store = match base.index {
            0 => Store::new(&config.voters),
            _ => Store::based(&base),
        };
        Self {
            store,
            state: HardState { term: 0, vote: 0, commit: base.index },
            applied: base.index,
            members: base.members,
            config,
            base,
            seen: None,
            shown: false,
            meets: true,
            follows: true,
            anew: false,
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

    /// Whether this site alone decides.
    fn alone(&self) -> bool {
        self.members.is_alone(self.config.site)
    }

    /// Whether durable means committed for the blocks as they are read. Not behind a
    /// state of a site that was not always alone: what stands in the log before the
    /// base is found may be a stale end from the time with others.
    fn decides(&self) -> bool {
        let was_alone = self.base.members == Members::new(&self.config.voters);
        self.alone() && (self.base.index == 0 || was_alone)
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
        let (shard, base) = (self.config.shard, self.base);
        let last = self.seen.unwrap_or(base.index);
        if index > last + 1 && self.seen.is_none() {
            return Err(ReplayError::Missing { shard, base: base.index, found: index });
        }
        let is_below = index <= base.index && self.applied == base.index;
        if index == 0 || index > last + 1 || !is_below && index <= self.applied {
            return Err(ReplayError::Gap { shard, last, found: index });
        }
        let first = self.seen.is_none();
        let follows = index != base.index + 1
            || term >= base.term && chain_next(&base.chain, payload) == chain;
        let before = self.store.term_of(index - 1);
        // Behind the base, while the log has shown nothing of what stood before:
        // it may be a stale one, older than the base, until it is replaced.
        let is_unproven = index == base.index + 1 && !self.shown;
        if term < before && !is_unproven {
            return Err(ReplayError::TermBackwards { shard, index, last: before, found: term });
        }
        self.seen = Some(index);
        if is_below {
            self.shown = true;
            self.store.note_below(index, term, first);
            self.meets = index < base.index || (term, chain) == (base.term, base.chain);
            self.follows = true;
            return Ok(false);
        }
        if index == base.index + 1 {
            self.follows = follows;
        }
        if self.decides() && self.store.is_bare() && members::of_block(payload).is_none() {
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
        if self.applied >= self.state.commit && !self.decides() {
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

    /// Takes the mark at which an installed checkpoint made the log begin anew.
    ///
    /// # Errors
    /// [`ReplayError::Missing`] when the state is older than that.
    pub fn rebased(&mut self, index: u64, term: u64, chain: [u8; 32]) -> Result<(), ReplayError> {
        let (shard, base) = (self.config.shard, self.base);
        if index > base.index || self.applied > base.index {
            return Err(ReplayError::Missing { shard, base: base.index, found: index + 1 });
        }
        self.store.note_below(index, term, true);
        (self.seen, self.shown) = (Some(index), true);
        self.meets = index < base.index || (term, chain) == (base.term, base.chain);
        self.follows = true;
        Ok(())
    }

    /// Whether the log that was read leads to the base, and on from there. Behind
    /// a state of another site it begins anew where it does not: the process ended
    /// when the state was durable and the log did not say so yet. `end` is
    /// where the shard's log ends, as the log says.
    ///
    /// # Errors
    /// [`ReplayError`] when it ends before, belongs to another history, or
    /// begins behind the base.
    pub fn check(&mut self, end: Option<u64>) -> Result<(), ReplayError> {
        let (shard, base) = (self.config.shard, self.base.index);
        let last = self.seen.or(end).unwrap_or(0);
        let leads_there = last >= base && self.meets;
        if self.base.received && !leads_there && self.applied == base {
            // What it says instead was never committed, or is older.
            self.store.rebase(&self.base);
            self.anew = true;
            return Ok(());
        }
        if last < base {
            return Err(ReplayError::EndsBefore { shard, base, last });
        }
        if self.seen.is_none() && last > base {
            return Err(ReplayError::Missing { shard, base, found: last + 1 });
        }
        if !(self.meets && self.follows) {
            return Err(ReplayError::OtherHistory { shard, base });
        }
        Ok(())
    }

    /// What the log must be told before anything else.
    pub(super) fn begins_anew(&self) -> Option<Base> {
        self.anew.then_some(self.base)
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
        if self.base.index > 0 {
            self.store.offer(self.base);
        }
        let anew = self.begins_anew();
        Replica::new(self.config, self.store, self.members, self.applied, anew)
    }
}
