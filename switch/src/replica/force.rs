//! When a majority was lost for good: the members that an operator forces, as
//! frames for the log of a survivor.
//!
//! They are ordinary changes of members, committed by decree instead of by a
//! majority: whoever reads this log later, here or at a new site, comes to the
//! same members by the same steps. Blocks that were never known to be committed
//! become so with them. Tested by scenes in `tests`.

use raft::eraftpb::ConfChangeV2;

use super::HardState;
use super::core::Append;
use super::members::{self, By, bit};
use super::recover::Recovering;
use super::store;

/// Why a site's replica cannot go on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForceError {
    /// It has no vote, so that it may lack what was acknowledged long ago.
    #[error("this site does not vote in shard {0}: force it at a site that does")]
    NotVoter(u16),
    /// It never leads.
    #[error("this site is a witness: take witness = true out of its [[sites]] entry first")]
    Witness,
}

impl Recovering {
    /// The frames after which this replica alone decides; none when it does so
    /// already. To be made durable in order, before the replica starts again.
    ///
    /// # Errors
    /// [`ForceError`].
    pub fn force_alone(mut self, at_us: u64) -> Result<Vec<Append>, ForceError> {
        let (shard, site) = (self.config.shard, self.config.site);
        if self.config.witnesses.contains(&site) {
            return Err(ForceError::Witness);
        }
        let (last, last_term) = self.last();
        self.state.commit = last;
        while self.next_committed().is_some() {}
        if self.members.is_alone(site) {
            return Ok(Vec::new());
        }
        if !self.members.is_voter(site) {
            return Err(ForceError::NotVoter(shard));
        }
        let by = By { at_us, forced: true, ..By::default() };
        let term = self.state.term.max(last_term) + 1;
        let mut out = Vec::from_iter(self.begins_anew().map(Append::Base));
        if self.members.is_joint() {
            self.force(&ConfChangeV2::default(), term, &mut out);
        }
        if let Some(change) = self.members.change_to(bit(site), 0, by) {
            self.force(&change, term, &mut out);
        }
        if self.members.is_joint() {
            self.force(&ConfChangeV2::default(), term, &mut out);
        }
        debug_assert!(self.members.is_alone(site));
        // As if it had been elected in this term and all of it committed.
        let commit = self.store.last();
        out.push(Append::HardState(HardState { term, vote: site, commit }));
        Ok(out)
    }

    fn force(&mut self, change: &ConfChangeV2, term: u64, out: &mut Vec<Append>) {
        let entry = store::entry(self.store.last() + 1, term, members::block(change));
        let chain = self.store.append(entry.clone());
        let data = store::payload(&entry);
        self.members = self.members.after(change);
        out.push(Append::Block(raft::eraftpb::Entry { data, ..entry }, chain));
    }
}
