//! The boundary behind which consensus stands: blocks are proposed here, handed
//! to the log, and come back committed in order.
//!
//! Pure: knows no file, socket, clock or thread. The engine never sees how a
//! block became committed. With one replica a block is committed when it is
//! durable on the own disk; with more, when a majority holds it. Tested beside
//! the code and by the crash tests of the whole node.

use std::collections::VecDeque;

use storage::chain_next;

/// A block on its way through the log.
#[derive(Debug)]
pub struct Entry {
    /// Position in the shard's log, from 1, without gaps.
    pub index: u64,
    /// Term it was proposed in.
    pub term: u64,
    /// SHA-256 chain value of the shard at this block.
    pub chain: [u8; 32],
    /// The block as the engine built it.
    pub payload: Vec<u8>,
}

/// Term and vote that must be durable before this replica acts in the term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardState {
    /// Term.
    pub term: u64,
    /// Site voted for, 1-based.
    pub vote: u64,
    /// Highest index known committed.
    pub commit: u64,
}

impl HardState {
    /// Bytes of an encoded hard state.
    pub const LEN: usize = 24;

    /// Little-endian term, vote, commit.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.term.to_le_bytes());
        out[8..16].copy_from_slice(&self.vote.to_le_bytes());
        out[16..].copy_from_slice(&self.commit.to_le_bytes());
        out
    }

    /// `None` when the length is wrong.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Some(Self { term: word(0), vote: word(8), commit: word(16) })
    }
}

/// Why a recovered log does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The next block's index does not follow.
    #[error("block {found} of shard {shard} follows block {last}")]
    Gap {
        /// Shard.
        shard: u16,
        /// Last index before.
        last: u64,
        /// Index found.
        found: u64,
    },
    /// A block's term is older than the one before.
    #[error("block {index} of shard {shard} goes back from term {last} to {found}")]
    TermBackwards {
        /// Shard.
        shard: u16,
        /// Index of the block.
        index: u64,
        /// Term before.
        last: u64,
        /// Term found.
        found: u64,
    },
    /// A hard state that cannot be read.
    #[error("hard state of shard {shard} is not readable")]
    HardState {
        /// Shard.
        shard: u16,
    },
}

/// The only replica of a shard: leads from its first durable hard state on.
pub struct SingleReplica {
    shard: u16,
    site: u64,
    term: u64,
    last_index: u64,
    last_term: u64,
    chain: [u8; 32],
    committed: u64,
    /// Proposed and not yet committed, oldest first, with the log ordinal that
    /// makes each durable once it was appended.
    pending: VecDeque<(Entry, Option<u64>)>,
    /// Entries of `pending` already handed to the log.
    appended: usize,
    /// Ordinal of the hard state that opens the term; `None` once durable.
    opening: Option<u64>,
    leads: bool,
}

impl SingleReplica {
    /// An empty replica of `shard` at `site`.
    pub fn new(shard: u16, site: u64) -> Self {
        Self {
            shard,
            site,
            term: 0,
            last_index: 0,
            last_term: 0,
            chain: [0; 32],
            committed: 0,
            pending: VecDeque::new(),
            appended: 0,
            opening: None,
            leads: false,
        }
    }

    /// Takes a block found in the recovered log. Everything recovered is
    /// durable, and with one replica durable means committed.
    ///
    /// # Errors
    /// [`ReplayError`] when index or term do not follow.
    pub fn replay_block(
        &mut self,
        index: u64,
        term: u64,
        chain: [u8; 32],
    ) -> Result<(), ReplayError> {
        let shard = self.shard;
        if index != self.last_index + 1 {
            return Err(ReplayError::Gap { shard, last: self.last_index, found: index });
        }
        if term < self.last_term {
            let last = self.last_term;
            return Err(ReplayError::TermBackwards { shard, index, last, found: term });
        }
        self.last_index = index;
        self.last_term = term;
        self.term = self.term.max(term);
        self.chain = chain;
        self.committed = index;
        Ok(())
    }

    /// Takes a hard state found in the recovered log.
    ///
    /// # Errors
    /// [`ReplayError::HardState`] when it cannot be read.
    pub fn replay_hard_state(&mut self, bytes: &[u8]) -> Result<(), ReplayError> {
        let state = HardState::decode(bytes).ok_or(ReplayError::HardState { shard: self.shard })?;
        self.term = self.term.max(state.term);
        Ok(())
    }

    /// Opens a new term after recovery: returns the hard state to append.
    /// Call [`Self::opening_appended`] with its ordinal.
    pub fn open_term(&mut self) -> HardState {
        self.term += 1;
        HardState { term: self.term, vote: self.site, commit: self.committed }
    }

    /// The hard state of the new term was handed to the log as `lsn`.
    pub fn opening_appended(&mut self, lsn: u64) {
        self.opening = Some(lsn);
    }

    /// Whether blocks may be proposed.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Highest committed index.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Takes the next block. Only while it leads.
    pub fn propose(&mut self, payload: Vec<u8>) {
        debug_assert!(self.leads, "only a leader proposes");
        let chain = chain_next(&self.chain, &payload);
        self.last_index += 1;
        self.last_term = self.term;
        self.chain = chain;
        let entry = Entry { index: self.last_index, term: self.term, chain, payload };
        self.pending.push_back((entry, None));
    }

    /// The oldest proposed block that the log has not got yet.
    pub fn next_append(&self) -> Option<&Entry> {
        self.pending.get(self.appended).map(|(entry, _)| entry)
    }

    /// The block of `next_append` was handed to the log as `lsn`.
    pub fn block_appended(&mut self, lsn: u64) {
        if let Some(slot) = self.pending.get_mut(self.appended) {
            slot.1 = Some(lsn);
            self.appended += 1;
        }
    }

    /// Everything up to `lsn` is durable. Returns whether leadership starts.
    pub fn persisted(&mut self, lsn: u64) -> bool {
        let starts = self.opening.is_some_and(|opening| opening <= lsn);
        if starts {
            self.opening = None;
            self.leads = true;
        }
        for (entry, at) in &self.pending {
            match at {
                Some(at) if *at <= lsn => self.committed = entry.index,
                _ => break,
            }
        }
        starts
    }

    /// The oldest committed block not yet handed out.
    pub fn next_committed(&mut self) -> Option<Entry> {
        let (entry, _) = self.pending.front()?;
        if entry.index > self.committed {
            return None;
        }
        self.appended -= 1;
        self.pending.pop_front().map(|(entry, _)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led() -> SingleReplica {
        let mut replica = SingleReplica::new(3, 1);
        assert_eq!(replica.open_term(), HardState { term: 1, vote: 1, commit: 0 });
        replica.opening_appended(1);
        assert!(!replica.persisted(0));
        assert!(!replica.leads());
        assert!(replica.persisted(1));
        replica
    }

    #[test]
    fn a_block_is_committed_only_when_durable_and_in_order() {
        let mut replica = led();
        replica.propose(b"one".to_vec());
        replica.propose(b"two".to_vec());
        assert_eq!(replica.next_append().map(|entry| entry.index), Some(1));
        replica.block_appended(2);
        assert!(replica.next_committed().is_none());
        replica.persisted(2);
        assert_eq!(replica.next_committed().map(|entry| entry.index), Some(1));
        assert!(replica.next_committed().is_none(), "the second was not appended");
        assert_eq!(replica.next_append().map(|entry| entry.index), Some(2));
        replica.block_appended(3);
        replica.persisted(3);
        assert_eq!(replica.next_committed().map(|entry| entry.payload), Some(b"two".to_vec()));
    }

    #[test]
    fn the_chain_continues_over_a_restart() {
        let mut first = led();
        first.propose(b"one".to_vec());
        let one = first.next_append().map(|entry| (entry.index, entry.term, entry.chain)).unwrap();
        first.block_appended(2);
        first.propose(b"two".to_vec());
        let two = first.next_append().map(|entry| entry.chain).unwrap();

        let mut second = SingleReplica::new(3, 1);
        second.replay_block(one.0, one.1, one.2).unwrap();
        assert_eq!(second.open_term().term, 2);
        second.opening_appended(1);
        second.persisted(1);
        second.propose(b"two".to_vec());
        assert_eq!(second.next_append().map(|entry| entry.chain), Some(two));
        assert_eq!(second.next_append().map(|entry| entry.term), Some(2));
    }

    #[test]
    fn a_gap_and_a_term_going_back_are_refused() {
        let mut replica = SingleReplica::new(3, 1);
        replica.replay_block(1, 4, [0; 32]).unwrap();
        assert_eq!(
            replica.replay_block(3, 4, [0; 32]),
            Err(ReplayError::Gap { shard: 3, last: 1, found: 3 })
        );
        assert_eq!(
            replica.replay_block(2, 3, [0; 32]),
            Err(ReplayError::TermBackwards { shard: 3, index: 2, last: 4, found: 3 })
        );
        assert_eq!(replica.replay_hard_state(b"x"), Err(ReplayError::HardState { shard: 3 }));
    }

    #[test]
    fn hard_state_survives_encoding() {
        let state = HardState { term: 7, vote: 2, commit: u64::MAX };
        assert_eq!(HardState::decode(&state.encode()), Some(state));
    }
}
