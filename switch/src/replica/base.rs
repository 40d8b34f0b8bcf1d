//! Where a state stands in its shard's log: what a checkpoint is of, and what is
//! said of it in a checkpoint's file and between sites.

use bytes::Bytes;
use raft::eraftpb::Snapshot;
use storage::{CHECKPOINT_NOTE_BYTES, Checkpoint, CheckpointNote};

use super::members::{Members, mask};

/// Where in a note it says that the state came from another site.
const RECEIVED_AT: usize = Members::LEN;

/// Where a state stands in its shard's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Last block in the state.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Chain value after it.
    pub chain: [u8; 32],
    /// Who holds the shard, as of it.
    pub members: Members,
    /// The state came from another site: this site's log need not lead to it,
    /// but begins anew behind it.
    pub received: bool,
}

impl Base {
    /// What is noted in the checkpoint's file.
    pub fn note(&self) -> CheckpointNote {
        let mut note = [0; CHECKPOINT_NOTE_BYTES];
        note[..Members::LEN].copy_from_slice(&self.members.encode());
        note[RECEIVED_AT] = u8::from(self.received);
        note
    }

    /// What the checkpoint's file names it.
    pub fn checkpoint(&self, shard: u16) -> Checkpoint {
        Checkpoint { shard, index: self.index, term: self.term, chain: self.chain }
    }

    /// The base of a checkpoint. Files without a note are from the time when
    /// none was written after a change of members. `None` for a note that no
    /// program writes.
    pub fn of(of: Checkpoint, note: Option<CheckpointNote>, first: &[u64]) -> Option<Self> {
        let Checkpoint { index, term, chain, .. } = of;
        let base = Self { index, term, chain, members: Members::new(first), received: false };
        let Some(note) = note else { return Some(base) };
        let (members, rest) = note.split_at(Members::LEN);
        let received = match rest {
            [0, 0, 0] => false,
            [1, 0, 0] => true,
            _ => return None,
        };
        Some(Self { members: Members::decode(members)?, received, ..base })
    }

    /// As the consensus library carries it.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.index, self.term);
        metadata.set_conf_state(self.members.conf_state());
        let mut data = self.note().to_vec();
        data.extend_from_slice(&self.chain);
        snapshot.data = Bytes::from(data);
        snapshot
    }

    /// Back from there; `None` when it is none of [`Self::snapshot`].
    pub(super) fn of_snapshot(snapshot: &Snapshot) -> Option<Self> {
        let (note, chain) = snapshot.data.split_first_chunk()?;
        let metadata = snapshot.get_metadata();
        let (index, term, chain) = (metadata.index, metadata.term, chain.try_into().ok()?);
        Self::of(Checkpoint { shard: 0, index, term, chain }, Some(*note), &[])
    }

    /// Whether these members would have this site.
    pub(super) fn is_for(&self, site: u64) -> bool {
        self.members.contains(site) && mask(&[site]) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Base {
        let members = Members { removed: 1 << 4, ..Members::new(&[1, 2, 3]) };
        Base { index: 70, term: 9, chain: [5; 32], members, received: true }
    }

    #[test]
    fn a_base_survives_its_file_and_its_message() {
        for base in [base(), Base { received: false, ..base() }] {
            let of = Base::of(base.checkpoint(2), Some(base.note()), &[7]);
            assert_eq!(of, Some(base));
            assert_eq!(Base::of_snapshot(&base.snapshot()), Some(base));
        }
    }

    #[test]
    fn a_file_without_a_note_is_of_the_first_members() {
        let found = Base::of(base().checkpoint(2), None, &[1, 2]).unwrap();
        assert_eq!((found.members, found.received), (Members::new(&[1, 2]), false));
    }

    #[test]
    fn a_note_that_nobody_writes_is_none() {
        for at in [RECEIVED_AT, RECEIVED_AT + 1, RECEIVED_AT + 2] {
            let mut note = base().note();
            note[at] = 2;
            assert_eq!(Base::of(base().checkpoint(2), Some(note), &[]), None);
        }
        assert_eq!(Base::of(base().checkpoint(2), Some([0; CHECKPOINT_NOTE_BYTES]), &[]), None);
        let mut cut = base().snapshot();
        cut.data.truncate(75);
        assert_eq!(Base::of_snapshot(&cut), None);
    }
}
