//! The replica's part in bringing up a site whose log ends before the leader's
//! begins: what a leader has to offer, and the state of another site taken over.
//!
//! The library decides when a follower needs a state (its `Snapshot` progress) and
//! when one counts; the state itself travels beside it, in slices, by the runtime.
//! A state is installed when its checkpoint file is durable, and from then on
//! it is what this site has: whatever the log says when the process ends before
//! the log says it too, the next start goes on from that file
//! ([`super::Recovering::check`]). So the library is told at once that it is persisted;
//! the answer to the leader still waits for the log.

use raft::eraftpb::{Message, MessageType, Snapshot};
use raft::{ProgressState, SnapshotStatus};

use super::Base;
use super::core::{Append, Outputs, Replica, Step};

/// A state that a follower needs, while leading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Who needs it.
    pub site: u64,
    /// The term in which this replica leads.
    pub term: u64,
    /// The checkpoint.
    pub base: Base,
}

impl Replica {
    /// The newest durable checkpoint of the shard: what can be sent to others.
    pub fn offer(&mut self, base: Base) {
        self.node.mut_store().offer(base);
    }

    /// That checkpoint cannot be read: what is sent next is another one.
    pub fn withdraw(&mut self, sending: &Sending) {
        self.node.mut_store().withdraw(sending.base.index);
    }

    /// Whether a follower needs a newer checkpoint than there is: one that knows
    /// the follower as a member.
    pub fn wants_checkpoint(&self) -> bool {
        self.is_leader() && self.node.store().wants_offer()
    }

    /// Whether a follower still waits for this state.
    pub fn awaits(&self, sending: &Sending) -> bool {
        let waits = |progress: &raft::Progress| {
            progress.state == ProgressState::Snapshot
                && progress.pending_snapshot == sending.base.index
        };
        self.is_leader()
            && self.term() == sending.term
            && self.node.raft.prs().get(sending.site).is_some_and(waits)
    }

    /// Whether a follower has this state by now.
    pub fn is_at(&self, sending: &Sending) -> bool {
        self.matched(sending.site).is_some_and(|matched| matched >= sending.base.index)
    }

    /// A state did not get through: the follower is probed again, and gets the
    /// newest one if it still needs one.
    pub fn not_sent(&mut self, sending: &Sending) {
        if self.awaits(sending) {
            self.node.report_snapshot(sending.site, SnapshotStatus::Failure);
        }
    }

    /// Whether a state that another site offers would bring this one forward.
    pub fn would_take(&self, from: u64, term: u64, base: &Base) -> bool {
        let site = self.config.site;
        base.index > self.committed() && self.hears(from, term) && base.is_for(site)
    }

    /// Whether `from` may lead in this term, which is not over.
    fn hears(&self, from: u64, term: u64) -> bool {
        term > 0 && term >= self.term() && !self.is_leader() && from != self.config.site
    }

    /// Answers the leader that offers what is here already: it does not know how
    /// far this site is, and would offer it again and again. `false` when it is
    /// not here.
    pub fn has_already(&mut self, from: u64, term: u64, base: &Base) -> bool {
        let has = base.index <= self.committed() && self.hears(from, term);
        if has {
            self.receive(self.offered(from, term, base));
        }
        has
    }

    fn offered(&self, from: u64, term: u64, base: &Base) -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (from, self.config.site, term);
        message.set_snapshot(base.snapshot());
        message
    }

    /// Takes over the state of `from`, the leader of `term`, whose checkpoint file is
    /// durable here. The engine has to be replaced when [`Step::Restore`] comes
    /// out; it does not when the replica has moved on meanwhile.
    pub fn install(&mut self, from: u64, term: u64, base: &Base, out: &mut Outputs) {
        // What is ready now comes before, so that the state comes alone.
        self.advance(out);
        if self.hears(from, term) {
            self.receive(self.offered(from, term, base));
        }
        self.advance(out);
    }

    /// Messages of the library that ask for a state to be sent, taken out of the rest.
    pub(super) fn take_sendings(&self, messages: &mut Vec<Message>, out: &mut Vec<Sending>) {
        let is_sending = |message: &Message| message.get_msg_type() == MessageType::MsgSnapshot;
        if !messages.iter().any(is_sending) {
            return;
        }
        for message in messages.extract_if(.., |message| is_sending(message)) {
            if let Some(base) = Base::of_snapshot(message.get_snapshot()) {
                out.push(Sending { site: message.to, term: message.term, base });
            }
        }
    }

    /// The library has accepted a state: everything here begins anew behind it.
    pub(super) fn begin_at(&mut self, snapshot: &Snapshot, out: &mut Outputs) -> Option<Base> {
        let base = Base { received: true, ..Base::of_snapshot(snapshot)? };
        self.node.mut_store().rebase(&base);
        self.node.mut_store().offer(base);
        (self.applied, self.applied_term) = (base.index, base.term);
        self.members = base.members;
        self.placement.set_members(&self.config, &self.members);
        out.appends.push_back(Append::Base(base));
        out.steps.push(Step::Restore { index: base.index });
        Some(base)
    }
}
