//! One shard's replica: the consensus library driven as a pure state machine.
//!
//! In come proposals, messages of other replicas, ticks, and what the log made
//! durable. Out come frames for the log, messages, and committed blocks, in
//! that order of care: a message that promises durability is held back until
//! the log has confirmed it. Persistence is asynchronous: blocks travel to the
//! other sites while the own disk still writes them.
//!
//! Never knows a file, socket, clock, thread or random source. Election
//! time-outs are a function of the place in the order of preference and a seed,
//! so that the better placed site stands first and runs can be repeated.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, HardState as RaftHardState, Message, MessageType};
use raft::{Config, INVALID_ID, RawNode, StateRole};

use super::lease::{Head, Lease};
use super::members::{self, Members};
use super::placement::{self, Health, Placement, Stall};
use super::snapshot::Sending;
use super::store::{self, Store, Wanted};
use super::timing::Timing;
use super::{Base, HardState};

/// How long after a sign of death elections are tried eagerly, ticks.
const EAGER_TICKS: u64 = 20;
/// Ticks between two of these.
const EAGER_EVERY: u64 = 3;

/// Bytes of entries in one message; a larger block travels alone.
const MESSAGE_BYTES: u64 = 128 << 10;
/// Messages with entries on their way to a follower that is level, give or take.
const WINDOW: usize = 256;
/// And to one that is behind. It asks for everything that it missed at once, for
/// every shard: without a bound that takes cores, disk and network away from the
/// sites that serve, for long enough to let elections time out.
const LAGGARD_WINDOW: usize = 4;

/// Settings of a replica.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// Shard.
    pub shard: u16,
    /// This site, 1-based: the id of the replica.
    pub site: u64,
    /// Sites that voted when the cluster was made: the members before the first
    /// entry of the log, which holds every change since. The same everywhere,
    /// for ever.
    pub voters: Vec<u64>,
    /// Sites that hold the log and vote, but shall never lead.
    pub witnesses: Vec<u64>,
    /// Sites in the order in which they should lead the shard, as long as the
    /// members are the first ones.
    pub preference: Vec<u64>,
    /// Separates the election time-outs of shards and terms.
    pub seed: u64,
    /// Applied entries kept in memory for followers, bytes.
    pub tail_bytes_max: usize,
    /// Pace.
    pub timing: Timing,
}

/// One thing for the log, in order.
#[derive(Clone, Debug)]
pub enum Append {
    /// A block with its chain value; a change of members as its block.
    Block(Entry, [u8; 32]),
    /// The shard's log begins anew behind a state.
    Base(Base),
    /// Term, vote and commit index.
    HardState(HardState),
    /// Everything before belongs to this ticket: tell
    /// [`Replica::appended`] the position of the last frame.
    Ticket(u64),
}

/// One thing for the engine, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A committed block; empty ones only count an index.
    Apply {
        /// Index.
        index: u64,
        /// Term it was proposed in.
        term: u64,
        /// The block.
        block: Bytes,
    },
    /// The state is that of a checkpoint of another site from now on.
    Restore {
        /// Last block in it.
        index: u64,
    },
    /// This replica leads, and everything before its term has been applied.
    Lead {
        /// Term.
        term: u64,
    },
    /// It no longer does.
    StepDown,
}

/// What a replica wants, collected by [`Replica::advance`].
#[derive(Default)]
pub struct Outputs {
    /// For the log.
    pub appends: VecDeque<Append>,
    /// A new term, a vote, or the first entry of a leader is among them: the shard
    /// has no leader until they are durable.
    pub urgent: bool,
    /// For other replicas; may leave at once.
    pub messages: Vec<Message>,
    /// States that followers need.
    pub sendings: Vec<Sending>,
    /// For the engine.
    pub steps: Vec<Step>,
    /// Read barriers that are reached: state applied so far is current.
    pub reads: Vec<u64>,
}

/// A batch of frames on its way to the disk, and the messages that wait for it.
struct Ticket {
    number: u64,
    /// Position of its last frame, once the log has it.
    lsn: Option<u64>,
    messages: Vec<Message>,
    since_tick: u64,
    /// It holds a term or a vote, without which nothing may be said of them.
    promises: bool,
    /// With it a change of members is known committed after a restart.
    settles: bool,
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Terms in which this replica stood for election.
    pub campaigns: u64,
    /// Terms that it came to lead.
    pub elections: u64,
    /// Hand-overs that it started.
    pub transfers: u64,
    /// Proposals the library would not take.
    pub dropped: u64,
}

/// The replica of one shard at one site.
pub struct Replica {
    pub(super) node: RawNode<Store>,
    pub(super) config: ReplicaConfig,
    /// As of what was applied.
    pub(super) members: Members,
    /// Changes of members whose commit is not durable here yet.
    pub(super) unsettled: u32,
    tickets: VecDeque<Ticket>,
    /// Everything up to this position of the log is durable.
    durable: u64,
    /// Messages that may leave: their ticket was reached since the last
    /// `advance`, or they need none.
    pub(super) released: Vec<Message>,
    pub(super) applied: u64,
    pub(super) applied_term: u64,
    /// The term in which the engine was told to lead.
    leading: Option<u64>,
    saved_commit: u64,
    /// Term and vote on their way to the log, or there.
    promised: (u64, u64),
    pub(super) tick: u64,
    pub(super) placement: Placement,
    pub(super) health: Health,
    lease: Lease,
    counters: Counters,
    was_candidate: bool,
    /// Until this tick the leader is taken for dead, and an election that does
    /// not get through is tried again without waiting for the time-out.
    eager_until: u64,
    spare: Vec<Vec<u8>>,
    /// What the log must say before anything else.
    anew: Option<Base>,
    /// A leader counts on blocks up to here that this log does not hold.
    forgotten: Option<u64>,
    stall: Stall,
}

impl Replica {
    /// A replica over what the log held.
    ///
    /// # Panics
    /// Never with a store of the recovery: its state is consistent.
    pub(super) fn new(
        config: ReplicaConfig,
        store: Store,
        members: Members,
        applied: u64,
        anew: Option<Base>,
    ) -> Self {
        let election = config.timing.election_ticks as usize;
        let raft_config = Config {
            id: config.site,
            election_tick: election,
            heartbeat_tick: config.timing.heartbeat_ticks as usize,
            min_election_tick: election,
            max_election_tick: election * placement::TIMEOUT_SPREAD as usize,
            applied,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: WINDOW,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            skip_bcast_commit: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 4 << 20,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, store, &logger)
            .expect("the configuration is valid and the recovered state consistent");
        let applied_term = node.raft.raft_log.term(applied).unwrap_or(0);
        let saved_commit = node.raft.raft_log.committed;
        let promised = (node.raft.term, node.raft.vote);
        let mut replica = Self {
            placement: Placement::new(&config, &members),
            health: Health::default(),
            stall: Stall::new(&config.timing),
            lease: Lease::new(config.timing.lease_us()),
            node,
            config,
            members,
            unsettled: 0,
            tickets: VecDeque::new(),
            durable: 0,
            released: Vec::new(),
            applied,
            applied_term,
            leading: None,
            saved_commit,
            promised,
            tick: 0,
            counters: Counters::default(),
            was_candidate: false,
            eager_until: 0,
            spare: Vec::new(),
            anew,
            forgotten: None,
        };
        replica.after_input();
        if replica.members.is_alone(replica.config.site) {
            // Nobody to wait for.
            replica.campaign();
        }
        replica
    }

    /// Shard.
    pub fn shard(&self) -> u16 {
        self.config.shard
    }

    /// Current term.
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Whether it leads and the engine knows.
    pub fn leads(&self) -> bool {
        self.leading == Some(self.node.raft.term) && self.is_leader()
    }

    pub(super) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether it stands for election.
    pub fn is_candidate(&self) -> bool {
        matches!(self.node.raft.state, StateRole::Candidate | StateRole::PreCandidate)
    }

    /// The site that leads as far as this replica knows; 0: nobody.
    pub fn leader(&self) -> u64 {
        if self.is_leader() && !self.leads() || !self.members.contains(self.config.site) {
            // Elected, but not yet through with the log before its term; or a
            // replica that nobody would tell of a new leader.
            return 0;
        }
        self.node.raft.leader_id
    }

    /// Highest committed index.
    pub fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Highest index handed to the engine.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Where the engine's state stands, once every step was carried out.
    pub fn base(&self) -> Option<Base> {
        let chain = self.node.store().chain_at(self.applied)?;
        let (index, term, members) = (self.applied, self.applied_term, self.members);
        Some(Base { index, term, chain, members, received: false })
    }

    /// First index whose entry can be served to followers.
    pub fn first_served(&self) -> u64 {
        self.node.raft.raft_log.first_index()
    }

    #[cfg(test)]
    pub(super) fn term_at(&self, index: u64) -> u64 {
        self.node.store().term_of(index)
    }

    /// Highest index in the log.
    pub fn last(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Index up to which another site is known to hold the log, while leading.
    pub fn matched(&self, site: u64) -> Option<u64> {
        if !self.is_leader() {
            return None;
        }
        self.node.raft.prs().get(site).map(|progress| progress.matched)
    }

    /// Sites that need entries which the log no longer holds, while leading: they
    /// are brought up by a checkpoint.
    pub fn beyond_log(&self) -> u64 {
        if !self.is_leader() {
            return 0;
        }
        let (first, site) = (self.first_served(), self.config.site);
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != site);
        others.filter(|(_, progress)| progress.matched + 1 < first).count() as u64
    }

    /// Whether a block would be taken now.
    pub fn may_propose(&self) -> bool {
        self.leads()
            && self.node.raft.lead_transferee.is_none()
            // On its way out it only ends the change: a block of its own behind
            // that would be confirmed by a disk that is no member's any more.
            && members::has(self.members.voters, self.config.site)
    }

    /// Proposes a block. Gives it back when this replica does not take it now.
    ///
    /// # Errors
    /// The block: not leading, handing over, or too much is uncommitted.
    pub fn propose(&mut self, block: Vec<u8>) -> Result<(), Vec<u8>> {
        if !self.may_propose() {
            return Err(block);
        }
        let data = Bytes::from(block);
        let mut entry = Entry::default();
        entry.set_data(data.clone());
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.site;
        message.set_entries(vec![entry].into());
        if self.node.step(message).is_ok() {
            return Ok(());
        }
        self.counters.dropped += 1;
        Err(Vec::from(data))
    }

    /// Takes a message of another replica. The caller has made sure that it
    /// comes from the site that it names.
    pub fn receive(&mut self, message: Message) {
        if message.to != self.config.site || !self.may_hear(&message) || self.forgets(&message) {
            return;
        }
        self.health.heard(message.from, self.tick);
        if message.get_msg_type() == MessageType::MsgHeartbeatResponse {
            // A bit that the library does not look at in these.
            self.health.set_unwilling(message.from, message.reject);
        }
        let head = Head::of(&message);
        // Refused messages (of foreign or removed replicas) have no effect.
        drop(self.node.step(message));
        let raft = &self.node.raft;
        self.lease.received(&head, self.config.site, raft.leader_id, raft.term);
        self.after_input();
    }

    /// Whether a leader counts on more than this log holds. It names no commit index to
    /// a site beyond what that site has confirmed, after it was durable, in the same
    /// term: the log went back to what it was at an earlier time, and may have
    /// forgotten votes as well.
    fn forgets(&mut self, message: &Message) -> bool {
        let raft = &self.node.raft;
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term >= raft.term
            && message.commit > raft.raft_log.last_index()
        {
            self.forgotten = Some(message.commit);
        }
        // From then on nothing is heard, and nothing promised.
        self.forgotten.is_some()
    }

    /// The index up to which a leader counts on this log, which does not hold it: the
    /// disk has lost what it confirmed, and the site must not take part any more.
    pub fn forgotten(&self) -> Option<u64> {
        self.forgotten
    }

    /// Marks messages that leave now, by this process's monotonic clock: what
    /// comes back tells until when a leader may act.
    pub fn mark(&mut self, messages: &mut [Message], now_us: u64) {
        for message in messages {
            self.lease.mark(message, now_us);
        }
    }

    /// Until when this replica may act on the outside world, by the clock of
    /// [`Self::mark`]; 0: not at all. One that needs no other may for ever.
    pub fn may_act_until(&self) -> u64 {
        match self.leads() {
            true => self.lease.until(self.config.site, self.term(), &self.members),
            false => 0,
        }
    }

    /// One tick has passed.
    pub fn tick(&mut self) {
        if self.forgotten.is_some() {
            return;
        }
        self.tick += 1;
        self.node.tick();
        self.after_input();
        self.pace_laggards();
        self.stand_again();
        self.place();
        self.leave_joint();
        self.retire();
    }

    /// Bounds what is on its way to followers that are behind.
    fn pace_laggards(&mut self) {
        if !self.is_leader() {
            return;
        }
        let (last, site) = (self.last(), self.config.site);
        for (id, progress) in self.node.raft.mut_prs().iter_mut() {
            // Of one that has not answered yet in this term nothing is known.
            let behind = progress.matched > 0 && progress.matched + placement::LEVEL_ENTRIES < last;
            if *id != site {
                progress.ins.set_cap(if behind { LAGGARD_WINDOW } else { WINDOW });
            }
        }
    }

    /// Sites that shall not lead (a bit per site number): leadership leaves
    /// them and does not come back while they are in the set.
    pub fn set_away(&mut self, away: u64) {
        self.placement.set_away(away);
    }

    /// Hands leadership to a site, when it is one that can take it.
    pub fn transfer(&mut self, site: u64) -> bool {
        let possible = self.is_leader()
            && site != self.config.site
            && self.may_lead(site)
            && self.node.raft.lead_transferee.is_none();
        if possible {
            self.node.transfer_leader(site);
            self.counters.transfers += 1;
        }
        possible
    }

    /// The process of another site has ended, as far as somebody can tell. Only
    /// starts a pre-vote sooner: a wrong hint costs an election, and the old
    /// leader's lease may overlap with the new one's beginning.
    pub fn peer_gone(&mut self, site: u64) {
        self.health.lost(site);
        if self.is_leader() || self.node.raft.leader_id != site {
            return;
        }
        let term = self.node.raft.term;
        self.node.raft.become_follower(term, INVALID_ID);
        self.after_input();
        if self.placement.is_next(self.config.site, site) {
            self.eager_until = self.tick + EAGER_TICKS;
            self.campaign();
        }
    }

    /// The other followers hear of a death a little later or earlier: a vote
    /// that they did not give yet is asked for again soon.
    fn stand_again(&mut self) {
        let waits = self.tick < self.eager_until && self.tick.is_multiple_of(EAGER_EVERY);
        if waits && !self.is_leader() && self.node.raft.leader_id == INVALID_ID {
            self.campaign();
        }
    }

    /// Messages to a site were lost: probe before sending more.
    pub fn unreachable(&mut self, site: u64) {
        if self.is_leader() {
            self.node.report_unreachable(site);
        }
    }

    fn campaign(&mut self) {
        // Fails only while a membership change waits to be applied; the election
        // time-out tries again.
        drop(self.node.campaign());
        self.after_input();
    }

    /// Asks for a read barrier: once `token` comes back, everything that was
    /// committed anywhere before this call is applied here. Only while leading.
    pub fn read_barrier(&mut self, token: u64) -> bool {
        let leads = self.leads();
        if leads {
            self.node.read_index(token.to_le_bytes().to_vec());
        }
        leads
    }

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
                self.released.append(&mut ticket.messages);
            }
        }
        if let Some(number) = reached {
            self.node.on_persist_ready(number);
        }
    }

    /// A range of entries that a follower waits for and that must be read back
    /// from the log.
    pub fn take_wanted(&mut self) -> Option<Wanted> {
        self.node.mut_store().take_wanted()
    }

    /// The entries that were wanted; none when they could not be read now: the
    /// follower's next heartbeat asks again.
    pub fn fetched(&mut self, wanted: Wanted, entries: Vec<Entry>) {
        let some = !entries.is_empty();
        self.node.mut_store().put_fetched(wanted.from, entries);
        if some {
            self.node.on_entries_fetched(wanted.context);
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

    /// The log begins with the entry at `index` now, or behind it: followers
    /// that need it cannot be served from the log any more.
    pub fn released(&mut self, index: u64) {
        // What is not applied yet is needed here: a log that began anew behind a state
        // begins with such a block.
        self.node.mut_store().compact(index.min(self.applied));
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
        let unwilling = self.stall.is_unwilling(self.tick);
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
        for entry in entries {
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
            let ticket = Ticket { number, lsn, messages, since_tick, promises, settles };
            self.tickets.push_back(ticket);
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
        let (lsn, messages, since_tick) = (None, Vec::new(), self.tick);
        let (promises, settles) = (false, true);
        self.tickets.push_back(Ticket { number, lsn, messages, since_tick, promises, settles });
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

    /// Whether consensus has elected this replica, even if the engine was not told.
    #[cfg(test)]
    pub(crate) fn is_elected(&self) -> bool {
        self.is_leader()
    }

    /// What consensus thinks, in a line.
    #[cfg(test)]
    pub(crate) fn describe(&self) -> String {
        let raft = &self.node.raft;
        format!(
            "site {} {:?} term {} vote {} leader {} transfers to {:?} log {}..{} committed {} \
             applied {} tickets {} first {} {:?}",
            self.config.site,
            raft.state,
            raft.term,
            raft.vote,
            raft.leader_id,
            raft.lead_transferee,
            raft.raft_log.persisted,
            raft.raft_log.last_index(),
            raft.raft_log.committed,
            self.applied,
            self.tickets.len(),
            self.first_served(),
            raft.prs()
                .iter()
                .map(|(site, p)| (
                    *site,
                    p.state,
                    p.matched,
                    p.next_idx,
                    p.paused,
                    p.pending_snapshot,
                    p.ins.count(),
                    p.recent_active
                ))
                .collect::<Vec<_>>(),
        )
    }

    /// The chain value after an index, when memory still knows it.
    #[cfg(test)]
    pub(crate) fn chain(&self, index: u64) -> Option<[u8; 32]> {
        self.node.store().chain_after(index)
    }

    /// Drops what memory need not hold any more; call when the steps handed out
    /// have been applied.
    pub fn trim(&mut self) {
        // Entries must be durable before only the log holds them.
        let durable = self.node.raft.raft_log.persisted.min(self.applied);
        self.node.mut_store().trim(durable, self.config.tail_bytes_max, &mut self.spare);
    }

    /// An emptied buffer for the next block.
    pub fn spare(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.spare.push(buffer);
    }

    /// After every input: the time-out that the library drew is replaced by ours.
    fn after_input(&mut self) {
        let raft = &mut self.node.raft;
        let ticks = self.placement.timeout(self.config.site, raft.term) as usize;
        if raft.randomized_election_timeout() != ticks {
            raft.set_randomized_election_timeout(ticks);
        }
        let candidate = self.is_candidate();
        if candidate && !self.was_candidate {
            self.counters.campaigns += 1;
        }
        self.was_candidate = candidate;
    }

    /// How long the first write that waits has waited, ticks.
    fn disk_waits(&self) -> u64 {
        self.tickets.front().map_or(0, |ticket| self.tick - ticket.since_tick)
    }

    /// Whether this shard's writes do not become durable.
    pub fn is_stalled(&self) -> bool {
        self.disk_waits() > u64::from(self.config.timing.stall_ticks)
    }

    /// Whether the log's disk hangs, as any of its shards has found. Once a tick.
    pub fn set_stalled(&mut self, stalled: bool) {
        self.stall.set(stalled, self.tick);
    }

    /// Hands leadership to where it belongs, when that site can take it, or
    /// away from here when this site's disk does not answer.
    fn place(&mut self) {
        let stall = u64::from(self.config.timing.stall_ticks);
        let waits = self.disk_waits();
        // Also before it leads: its disk may hang on the first entry of its term. And
        // where nothing is to be written now: what comes next would wait.
        let stuck = self.is_leader() && (waits > stall || self.stall.is_now());
        // A leader that may not be one has nothing to wait for.
        let idle = self.is_leader() && !self.may_lead(self.config.site);
        let placed = stuck || self.leads() || idle;
        if !placed || self.node.raft.lead_transferee.is_some() {
            self.placement.rest();
            return;
        }
        if let Some(site) = self.successor(stuck) {
            self.transfer(site);
        } else if stuck && waits > 4 * stall && !self.members.is_alone(self.config.site) {
            // Nobody is level: let whoever can be elected lead.
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, INVALID_ID);
        }
    }

    /// The site to hand over to now, if there is one. Those that would rather not lead
    /// are better than one that cannot or shall not.
    fn successor(&mut self, stuck: bool) -> Option<u64> {
        let (last, candidates) = (self.last(), self.candidates());
        let (site, tick) = (self.config.site, self.tick);
        let (raft, health, placement) = (&self.node.raft, &self.health, &mut self.placement);
        let level = |site: u64| {
            members::has(candidates, site)
                && health.is_live(site, tick)
                && raft.prs().get(site).is_some_and(|found| {
                    // What it has confirmed in this term is durable there.
                    found.matched > 0 && found.matched + placement::LEVEL_ENTRIES >= last
                })
        };
        let willing = |site: u64| level(site) && !health.is_unwilling(site);
        if stuck {
            let best = placement.stalled(site, tick, willing);
            return best.or_else(|| placement.stalled(site, tick, level));
        }
        let best = placement.target(site, tick, willing);
        match placement.leaves(site) {
            true => best.or_else(|| placement.target(site, tick, level)),
            false => best,
        }
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
