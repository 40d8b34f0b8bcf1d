//! The replica's part in a change of members: proposes it while leading,
//! follows it when it is committed, sees to it that it ends, and takes leave of
//! who is no member any more.
//!
//! One change at a time. A new site gets the log as a learner first and votes
//! once it is level; a change of voters goes through a joint majority, which
//! ends by itself: the library appends the end, and where its leader was gone
//! by then, the next one does. A site that was removed is heard no more, so that
//! an old disk that comes back moves nobody to another term; what it asks is
//! answered with the part of the log that says it was removed.

use raft::eraftpb::{ConfChangeV2, Entry, Message, MessageType};
use raft::{GetEntriesContext, INVALID_ID};

use super::core::Replica;
use super::members::{self, By, Members, bit, has, mask, sites};
use super::placement::LEVEL_ENTRIES;

/// Bytes of blocks in one answer to a removed site.
const GOODBYE_BYTES_MAX: u64 = 1 << 20;

/// Why a change is not made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Another site leads, or none.
    #[error("this site does not lead the shard")]
    NotLeader,
    /// An earlier change, or a hand-over, has not ended yet.
    #[error("another change is under way: ask again")]
    Busy,
    /// It was a member before: its number is used up.
    #[error("site {0} was removed: a number is never used again; give the new site a new one")]
    UsedUp(u64),
    /// Its log is too far behind to count on it.
    #[error("site {0} is not level: it has to be a learner first, and to catch up")]
    NotLevel(u64),
    /// Those that would be left cannot go on.
    #[error("without it, fewer than a majority of the sites that vote would be there and level")]
    NoMajority,
    /// Nobody would be left who may lead.
    #[error("no site that may lead would be left")]
    NoLeader,
    /// There is no such site.
    #[error("there is no site {0}")]
    NoSuchSite(u64),
}

/// How far a site is on its way to become a member, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is so, and the change has ended.
    Done,
    /// A change is under way.
    Changing,
    /// It gets the log, and lacks so many blocks.
    Behind(u64),
    /// It leads, and hands over first.
    HandsOver,
}

impl Replica {
    /// Who holds the shard, as of what was applied here.
    pub fn members(&self) -> Members {
        self.members
    }

    /// Makes `voters` and `learners` the members of the shard. Only while
    /// leading. The change is done when [`Self::members`] says so and is not
    /// joint any more; should the leader change meanwhile, ask the next one.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing was proposed.
    pub fn change_members(
        &mut self,
        voters: &[u64],
        learners: &[u64],
        by: By,
    ) -> Result<(), ChangeError> {
        if !self.leads() {
            return Err(ChangeError::NotLeader);
        }
        if self.is_changing() || !self.may_propose() {
            return Err(ChangeError::Busy);
        }
        self.judge(voters, learners)?;
        let (voters, learners) = (mask(voters), mask(learners) & !mask(voters));
        let Some(change) = self.members.change_to(voters, learners, by) else { return Ok(()) };
        let proposed = self.node.propose_conf_change(Vec::new(), change);
        proposed.map_err(|_| ChangeError::Busy)
    }

    fn judge(&self, voters: &[u64], learners: &[u64]) -> Result<(), ChangeError> {
        for &site in voters.iter().chain(learners) {
            if bit(site) == 0 {
                return Err(ChangeError::NoSuchSite(site));
            }
            if has(self.members.removed, site) {
                return Err(ChangeError::UsedUp(site));
            }
        }
        if voters.iter().all(|site| self.config.witnesses.contains(site)) {
            return Err(ChangeError::NoLeader);
        }
        let new = voters.iter().find(|site| !self.members.is_voter(**site));
        if let Some(site) = new.filter(|site| !self.is_level(**site)) {
            return Err(ChangeError::NotLevel(*site));
        }
        let there = voters.iter().filter(|site| self.is_level(**site)).count();
        // Who only gains a learner may go on with whom it has.
        if mask(voters) != self.members.voters && there * 2 <= voters.len() {
            return Err(ChangeError::NoMajority);
        }
        Ok(())
    }

    /// Takes the next step towards `site` being a member that votes, or none at
    /// all. To be called again until it says [`Stage::Done`].
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn seek_member(&mut self, site: u64, member: bool, by: By) -> Result<Stage, ChangeError> {
        if !self.leads() {
            return Err(ChangeError::NotLeader);
        }
        if self.is_changing() || !self.may_propose() {
            return Ok(Stage::Changing);
        }
        let Members { voters, learners, .. } = self.members;
        let (voters, learners) = match member {
            true if has(voters, site) => return Ok(Stage::Done),
            true if !has(learners, site) => (voters, learners | bit(site)),
            true if !self.is_level(site) => return Ok(Stage::Behind(self.lacks(site))),
            true => (voters | bit(site), learners & !bit(site)),
            false if !self.members.contains(site) => return Ok(Stage::Done),
            false if site == self.config.site => {
                self.hand_over();
                return Ok(Stage::HandsOver);
            }
            false => (voters & !bit(site), learners & !bit(site)),
        };
        let list = |set| sites(set).collect::<Vec<_>>();
        if bit(site) == 0 {
            return Err(ChangeError::NoSuchSite(site));
        }
        self.change_members(&list(voters), &list(learners), by)?;
        Ok(Stage::Changing)
    }

    /// Whether a change is proposed, joint, or not yet written down as committed:
    /// the next has to wait.
    fn is_changing(&self) -> bool {
        self.members.is_joint() || self.node.raft.has_pending_conf() || self.unsettled > 0
    }

    /// Blocks of this log that a site is not known to have.
    fn lacks(&self, site: u64) -> u64 {
        let matched = self.node.raft.prs().get(site).map_or(0, |progress| progress.matched);
        self.last().saturating_sub(matched)
    }

    fn is_level(&self, site: u64) -> bool {
        site == self.config.site
            || self.health.is_live(site, self.tick)
                && self.node.raft.prs().get(site).is_some()
                && self.lacks(site) <= LEVEL_ENTRIES
    }

    /// Gives leadership to the best site that can take it.
    fn hand_over(&mut self) {
        let other = |site: u64| self.may_lead(site) && self.is_level(site);
        let mut best = sites(self.members.voters).filter(|s| *s != self.config.site && other(*s));
        if let Some(site) = best.next() {
            self.transfer(site);
        }
    }

    /// Whether this site only holds the log and votes.
    pub(super) fn is_witness(&self) -> bool {
        self.config.witnesses.contains(&self.config.site)
    }

    /// Whether a site may lead the shard.
    pub(super) fn may_lead(&self, site: u64) -> bool {
        has(self.candidates(), site)
    }

    /// The sites that may lead the shard.
    pub(super) fn candidates(&self) -> u64 {
        self.members.voters & !mask(&self.config.witnesses)
    }

    /// A change is committed.
    pub(super) fn apply_change(&mut self, entry: &Entry) {
        let Some(change) = members::parse(&entry.data) else {
            debug_assert!(false, "refused where it came from");
            return;
        };
        let before = self.members;
        let held: Vec<_> = sites(before.voters | before.outgoing | before.learners)
            .filter_map(|site| Some((site, self.node.raft.prs().get(site)?.matched)))
            .collect();
        // What does not fit changes nothing, here as at every other site.
        if let Ok(state) = self.node.apply_conf_change(&change) {
            self.members = before.become_state(&state);
            self.node.mut_store().set_members(state);
        }
        debug_assert_eq!(self.members, before.after(&change), "recovery comes to the same");
        self.placement.set_members(&self.config, &self.members);
        let log = &self.node.raft.raft_log;
        let writes = log.persisted < log.last_index();
        if writes && self.is_leader() && !self.members.contains(self.config.site) {
            // Elected within the change, and others were sooner with its first entry: the
            // library looks itself up among the members when a leader's become durable.
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, INVALID_ID);
        }
        if self.is_leader() {
            for (site, matched) in held {
                if !self.members.contains(site) && site != self.config.site {
                    self.say_goodbye(site, matched, entry.index);
                }
            }
        }
    }

    /// Ends a joint majority that no leader has ended yet.
    pub(super) fn leave_joint(&mut self) {
        let ends = self.leads() && self.members.is_joint() && !self.node.raft.has_pending_conf();
        if ends && self.node.raft.lead_transferee.is_none() {
            // Refused only when too much is uncommitted: the next tick tries again.
            drop(self.node.propose_conf_change(Vec::new(), ConfChangeV2::default()));
        }
    }

    /// Ends leading where this site has handed over and is no member any more:
    /// nobody would tell it of the next term.
    pub(super) fn retire(&mut self) {
        let handed_over = self.node.raft.lead_transferee.is_some();
        if self.is_leader() && handed_over && !self.members.contains(self.config.site) {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, INVALID_ID);
        }
    }

    /// Whether a message counts. Those of removed sites do not, except of a
    /// leader that hands over.
    pub(super) fn may_hear(&mut self, message: &Message) -> bool {
        let raft = &self.node.raft;
        let leads = message.from == raft.leader_id && message.term == raft.term;
        if !has(self.members.removed, message.from) || leads {
            return true;
        }
        if self.is_leader() && message.get_msg_type() == MessageType::MsgRequestPreVote {
            // It does not know. Where its log is a part of ours, ours tells it.
            let known = self.node.raft.raft_log.match_term(message.index, message.log_term);
            if known {
                self.say_goodbye(message.from, message.index, self.committed());
            }
        }
        false
    }

    /// Sends a site that is no member the committed log behind `index`, up to
    /// the change that removed it at the latest, as far as it is in memory.
    fn say_goodbye(&mut self, site: u64, index: u64, until: u64) {
        let log = &self.node.raft.raft_log;
        let index = index.min(until);
        let entries = match index < until {
            true => {
                let context = GetEntriesContext::empty(false);
                log.slice(index + 1, until + 1, GOODBYE_BYTES_MAX, context)
            }
            false => Ok(Vec::new()),
        };
        let (Ok(entries), Ok(log_term)) = (entries, log.term(index)) else { return };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.from, message.to) = (self.config.site, site);
        (message.term, message.log_term, message.index) = (self.node.raft.term, log_term, index);
        message.commit = index + entries.len() as u64;
        message.set_entries(entries.into());
        self.released.push(message);
    }
}
