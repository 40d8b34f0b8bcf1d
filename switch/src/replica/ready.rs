//! From what consensus is ready to do to what is asked of the caller: frames,
//! messages, steps; and what waits for the disk.

use raft::eraftpb::{Entry, EntryType, HardState as RaftHardState, Message, MessageType};

use super::HardState;
use super::core::{Append, Outputs, Replica, Step};
use super::store;

/// A batch of frames on its way to the disk, and the messages that wait for it.
pub(super) struct Ticket {
    pub(super) number: u64,
    /// Position of its last frame, once the log has it.
    pub(super) lsn: Option<u64>,
    pub(super) messages: Vec<Message>,
    /// Bytes of the blocks among the frames.
    pub(super) bytes: usize,
    pub(super) since_tick: u64,
    /// It holds a term or a vote, without which nothing may be said of them.
    pub(super) promises: bool,
    /// With it a change of members is known committed after a restart.
    pub(super) settles: bool,
}

impl Replica {
    /// The frames of a ticket are in the log's hands, the last one at `lsn`.
    pub fn appended(&mut self, ticket: u64, lsn: u64) {
        if let Some(found) = self.tickets.iter_mut().find(|t| t.number == ticket && t.lsn.is_none())
        {
            found.lsn = Some(lsn);
        }
        if lsn <= self.durable {
            // Without frames of its own, behind a write that is done already:
            // nothing else would come to release it.
            self.release();
        }
    }

    /// Everything up to `lsn` is durable.
    pub fn durable(&mut self, lsn: u64) {
        self.durable = self.durable.max(lsn);
        self.release();
    }

    /// Lets go what waits for nothing but what is durable.
    fn release(&mut self) {
        let mut reached = None;
        while let Some(ticket) = self.tickets.front() {
            if ticket.lsn.is_none_or(|last| last > self.durable) {
                break;
            }
            if let Some(mut ticket) = self.tickets.pop_front() {
                reached = Some(ticket.number);
                self.unsettled -= u32::from(ticket.settles);
                self.undurable -= ticket.bytes;
                self.released.append(&mut ticket.messages);
            }
        }
        if let Some(number) = reached {
            self.node.on_persist_ready(number);
        }
    }

    /// A commit index worth writing beside other frames, so that a restart
    /// finds more of the log committed. Never needed for safety.
    pub fn commit_to_save(&mut self) -> Option<HardState> {
        let state = self.node.raft.hard_state();
        // Frames on their way may hold a term or vote that must come first.
        if state.commit <= self.saved_commit || self.node.has_ready() {
            return None;
        }
        self.saved_commit = state.commit;
        Some(HardState { term: state.term, vote: state.vote, commit: state.commit })
    }

    /// The hard state as the log holds it, to be written again: `None` while a
    /// newer one is on its way.
    pub fn state_again(&mut self) -> Option<HardState> {
        if self.node.has_ready() {
            return None;
        }
        let state = self.node.raft.hard_state();
        self.saved_commit = self.saved_commit.max(state.commit);
        Some(HardState { term: state.term, vote: state.vote, commit: state.commit })
    }

    /// Whether [`Self::advance`] would bring something.
    pub fn has_outputs(&self) -> bool {
        let waits = !self.released.is_empty() || self.anew.is_some();
        waits || self.stepped_down() || self.node.has_ready()
    }

    /// Collects what is to be done. Frames must reach the log in order.
    pub fn advance(&mut self, out: &mut Outputs) {
        if self.stepped_down() {
            self.leading = None;
            out.steps.push(Step::StepDown);
        }
        self.take_outputs(out);
        // Nor one that is about to stop: the others would give it its shards back.
        let unwilling =
            self.stall.is_unwilling(self.tick) || self.placement.leaves(self.config.site);
        for message in out.messages.iter_mut().filter(|_| unwilling) {
            message.reject |= message.get_msg_type() == MessageType::MsgHeartbeatResponse;
        }
    }

    fn take_outputs(&mut self, out: &mut Outputs) {
        out.appends.extend(self.anew.take().map(Append::Base));
        out.messages.append(&mut self.released);
        while self.node.has_ready() {
            self.take_ready(out);
        }
        // A witness stays quiet until it has handed over.
        let settled = self.applied_term == self.node.raft.term && !self.is_witness();
        if self.leading.is_none() && self.is_leader() && settled {
            self.leading = Some(self.node.raft.term);
            self.counters.elections += 1;
            out.steps.push(Step::Lead { term: self.node.raft.term });
        }
    }

    fn stepped_down(&self) -> bool {
        self.leading.is_some_and(|term| term != self.node.raft.term || !self.is_leader())
    }

    fn take_ready(&mut self, out: &mut Outputs) {
        let mut ready = self.node.ready();
        let mut messages = ready.take_messages();
        self.take_sendings(&mut messages, &mut out.sendings);
        out.messages.append(&mut messages);
        let begins = match ready.snapshot().is_empty() {
            true => None,
            false => self.begin_at(ready.snapshot(), out),
        };
        let entries = ready.take_entries();
        debug_assert!(begins.is_none() || entries.is_empty(), "a state comes alone");
        let mut state = ready.must_sync().then(|| ready.hs().cloned()).flatten();
        if state.is_none() && entries.iter().any(is_change) {
            // Whoever confirms the next step of a change knows durably that the step
            // before is committed: had it forgotten, it would ask only the
            // members of before, of whom the new ones need none.
            state = Some(self.node.raft.hard_state());
        }
        let writes = !entries.is_empty() || state.is_some() || begins.is_some();
        let elects = |state: &RaftHardState| (state.term, state.vote) != self.promised;
        let promises = state.as_ref().is_some_and(elects) || begins.is_some();
        out.urgent |= state.as_ref().is_some_and(elects) || entries.iter().any(is_first);
        // Entries first: a commit index in front of them could, after a crash
        // between the two, speak of what stood there before.
        let mut bytes = 0;
        for entry in entries {
            bytes += entry.data.len();
            let chain = self.node.mut_store().append(entry.clone());
            let data = store::payload(&entry);
            out.appends.push_back(Append::Block(Entry { data, ..entry }, chain));
        }
        if let Some(state) = state {
            out.appends.push_back(Append::HardState(self.save(state)));
        }
        let number = ready.number();
        let mut messages = ready.take_persisted_messages();
        for read in ready.take_read_states() {
            if let Ok(token) = read.request_ctx.as_slice().try_into() {
                out.reads.push(u64::from_le_bytes(token));
            }
        }
        let committed = ready.take_committed_entries();
        self.node.advance_append_async(ready);
        if let Some(base) = begins {
            // Its file is durable, which is what counts at the next start.
            self.node.on_persist_ready(number);
            self.node.advance_apply_to(base.index);
        }
        if writes || !self.tickets.is_empty() {
            if !promises && !self.tickets.iter().any(|ticket| ticket.promises) {
                out.messages.extend(messages.extract_if(.., |one| is_sign_of_life(one)));
            }
            out.appends.push_back(Append::Ticket(number));
            let since_tick = self.tick;
            let (lsn, settles) = (None, false);
            let ticket = Ticket { number, lsn, messages, bytes, since_tick, promises, settles };
            self.tickets.push_back(ticket);
            self.undurable += bytes;
        } else {
            self.node.on_persist_ready(number);
            out.messages.append(&mut messages);
        }
        let changes = committed.iter().any(is_change);
        self.apply(committed, out);
        if changes {
            self.settle(number, out);
        }
    }

    /// Writes down that a change of members is committed: without that, a site
    /// that is left alone would ask those that are gone after a restart.
    fn settle(&mut self, number: u64, out: &mut Outputs) {
        let state = self.node.raft.hard_state();
        let commit = self.applied;
        let state = HardState { term: state.term, vote: state.vote, commit };
        self.saved_commit = self.saved_commit.max(commit);
        out.appends.push_back(Append::HardState(state));
        out.appends.push_back(Append::Ticket(number));
        let (lsn, messages, bytes, since_tick) = (None, Vec::new(), 0, self.tick);
        let (promises, settles) = (false, true);
        let ticket = Ticket { number, lsn, messages, bytes, since_tick, promises, settles };
        self.tickets.push_back(ticket);
        self.unsettled += 1;
    }

    fn save(&mut self, state: RaftHardState) -> HardState {
        let saved = HardState { term: state.term, vote: state.vote, commit: state.commit };
        self.saved_commit = self.saved_commit.max(state.commit);
        self.promised = (saved.term, saved.vote);
        self.node.mut_store().set_hard_state(state);
        saved
    }

    fn apply(&mut self, committed: Vec<Entry>, out: &mut Outputs) {
        let Some(last) = committed.last() else { return };
        (self.applied, self.applied_term) = (last.index, last.term);
        for entry in committed {
            let block = store::payload(&entry);
            let (index, term) = (entry.index, entry.term);
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.apply_change(&entry);
            }
            out.steps.push(Step::Apply { index, term, block });
        }
        self.node.advance_apply_to(self.applied);
    }
}

/// Whether a message says nothing of entries and gives no vote. The library holds such
/// ones back with the rest until what came with them is durable, so that a disk
/// that takes its time would look like a dead site to the leader.
fn is_sign_of_life(message: &Message) -> bool {
    matches!(
        message.get_msg_type(),
        MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
    )
}

/// Whether an entry changes the members.
fn is_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}

/// Whether an entry is the one with which a leader begins its term.
fn is_first(entry: &Entry) -> bool {
    entry.get_entry_type() == EntryType::EntryNormal && entry.data.is_empty()
}
