//! Consensus: how a block becomes committed on a majority of sites.
//!
//! One replica per shard and site, driven as a pure state machine: knows no
//! file, socket, clock, thread or random source. The engine never sees how a
//! block became committed; one site alone is the same code with one voter. The
//! protocol comes from the `raft` crate (Ongaro and Ousterhout, "In Search of
//! an Understandable Consensus Algorithm", 2014; pre-vote and check-quorum as
//! in Ongaro's dissertation, sections 9.6 and 6.2).
//!
//! | file | what |
//! |---|---|
//! | `core` | the replica: inputs and what it knows |
//! | `ready` | outputs, and what waits for the disk |
//! | `leading` | elections and hand-overs |
//! | `timing` | how fast it acts: heartbeats, elections, leases |
//! | `store` | the entries that consensus may still ask for |
//! | `recover` | a replica while its log is read back |
//! | `members` | the sites that hold the log, and how they change |
//! | `membership` | the replica's part in such a change |
//! | `force` | going on without a majority, by an operator's decree |
//! | `lease` | how long a leader may act on the outside world |
//! | `base`, `snapshot` | where a state stands; sites brought up by one |
//! | `placement` | which site should lead, who stands first |
//! | `message` | messages between sites, as bytes |

mod base;
mod core;
mod force;
mod leading;
mod lease;
mod members;
mod membership;
pub mod message;
mod placement;
mod ready;
mod recover;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;
mod timing;

pub use base::Base;
pub use core::{Append, Counters, Outputs, Replica, ReplicaConfig, Step};
pub use force::ForceError;
pub use members::{By, Members, sites};
pub use membership::{ChangeError, Stage};
pub use placement::{preference, preference_among};
pub use recover::{Recovered, Recovering};
pub use snapshot::Sending;
pub use store::{Wanted, entry};
pub use timing::Timing;

/// Term and vote that must be durable before this replica acts in the term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardState {
    /// Term.
    pub term: u64,
    /// Site voted for, 1-based; 0: none.
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
    /// The next block's index does not follow, or replaces a committed one.
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
    /// The log begins too late for the state, and no checkpoint fills the gap.
    #[error(
        "the log of shard {shard} begins with block {found}; what comes before is in no sound \
         checkpoint (there is one up to block {base}): put its checkpoint files back from a copy of \
         them, or replace the site (docs/OPERATIONS.md, Replace a site)"
    )]
    Missing {
        /// Shard.
        shard: u16,
        /// Last block in the state.
        base: u64,
        /// First block in the log.
        found: u64,
    },
    /// The log ends before the state.
    #[error("the log of shard {shard} ends with block {last}, before its checkpoint at {base}")]
    EndsBefore {
        /// Shard.
        shard: u16,
        /// Last block in the state.
        base: u64,
        /// Last block in the log.
        last: u64,
    },
    /// The log says something else about the block with which the state ends.
    #[error("the checkpoint of shard {shard} at block {base} is not of this log's history")]
    OtherHistory {
        /// Shard.
        shard: u16,
        /// Last block in the state.
        base: u64,
    },
    /// A hard state that cannot be read.
    #[error("hard state of shard {shard} is not readable")]
    HardState {
        /// Shard.
        shard: u16,
    },
    /// More than any leader leaves uncommitted.
    #[error("over a gigabyte of shard {shard} behind block {applied} was never committed")]
    Uncommitted {
        /// Shard.
        shard: u16,
        /// Last committed index.
        applied: u64,
    },
}
