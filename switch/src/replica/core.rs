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
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Config, ProgressState, RawNode, StateRole};

use super::lease::{Head, Lease};
use super::members::{self, Members};
use super::placement::{self, Health, Placement, Stall};
use super::ready::Ticket;
use super::snapshot::Sending;
use super::store::{Store, Wanted};
use super::timing::Timing;
use super::{Base, HardState};

/// Bytes of entries in one message; a larger block travels alone.
const MESSAGE_BYTES: u64 = 128 << 10;
/// Messages with entries on their way to a follower that is level, give or take.
const WINDOW: usize = 256;
/// And to one that is behind. It asks for everything that it missed at once, for
/// every shard: without a bound that takes cores, disk and network away from the
/// sites that serve, for long enough to let elections time out.
const LAGGARD_WINDOW: usize = 4;
/// Blocks of other sites that may wait for this one's disk, bytes: what comes beyond is
/// passed over, and asked for again once the disk has caught up. The leader's window
/// does not bound them, because answers to heartbeats widen it.
const UNDURABLE_MAX: usize = 16 << 20;

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
    pub(super) tickets: VecDeque<Ticket>,
    /// Followers that were asked what they hold without being sent it (a bit each).
    asked: u64,
    /// Bytes of the blocks in `tickets`.
    pub(super) undurable: usize,
    /// Everything up to this position of the log is durable.
    pub(super) durable: u64,
    /// Messages that may leave: their ticket was reached since the last
    /// `advance`, or they need none.
    pub(super) released: Vec<Message>,
    pub(super) applied: u64,
    pub(super) applied_term: u64,
    /// The term in which the engine was told to lead.
    pub(super) leading: Option<u64>,
    pub(super) saved_commit: u64,
    /// Term and vote on their way to the log, or there.
    pub(super) promised: (u64, u64),
    pub(super) tick: u64,
    pub(super) placement: Placement,
    pub(super) health: Health,
    lease: Lease,
    pub(super) counters: Counters,
    pub(super) was_candidate: bool,
    /// Until this tick the leader is taken for dead, and an election that does
    /// not get through is tried again without waiting for the time-out.
    pub(super) eager_until: u64,
    spare: Vec<Vec<u8>>,
    /// What the log must say before anything else.
    pub(super) anew: Option<Base>,
    /// A leader counts on blocks up to here that this log does not hold.
    forgotten: Option<u64>,
    pub(super) stall: Stall,
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
            asked: 0,
            undurable: 0,
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
        // Of one that has not answered yet in this term nothing is known.
        let beyond = others.filter(|(_, progress)| {
            let known = progress.matched > 0 && progress.matched + 1 < first;
            progress.state == ProgressState::Snapshot || known
        });
        beyond.count() as u64
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
        if message.get_msg_type() == MessageType::MsgAppend
            && !message.entries.is_empty()
            && self.undurable > UNDURABLE_MAX
        {
            return;
        }
        let head = Head::of(&message);
        if message.get_msg_type() == MessageType::MsgHeartbeatResponse {
            // A bit that the library does not look at in these.
            self.health.set_unwilling(message.from, message.reject);
            self.hear_of_life(message);
        } else {
            let answers = message.get_msg_type() == MessageType::MsgAppendResponse;
            let from = message.from;
            // Refused messages (of foreign or removed replicas) have no effect.
            drop(self.node.step(message));
            if answers {
                self.send_after_question(from);
            }
        }
        let raft = &self.node.raft;
        self.lease.received(&head, self.config.site, raft.leader_id, raft.term);
        self.after_input();
    }

    /// Takes an answer to a heartbeat. The library answers it with the blocks that the
    /// follower lacks, also when the same ones are on their way to it already: a disk that
    /// hangs for a second would be sent them some sixty times. Without blocks it is the
    /// same question, to which the answer waits for that disk.
    fn hear_of_life(&mut self, message: Message) {
        let from = message.from;
        let asked =
            self.is_leader()
                && self.node.raft.prs().get(from).is_some_and(|progress| {
                    progress.state == ProgressState::Probe && progress.paused
                });
        let before = self.node.raft.msgs.len();
        drop(self.node.step(message));
        if !asked {
            return;
        }
        let repeats =
            |one: &mut Message| one.to == from && one.get_msg_type() == MessageType::MsgAppend;
        let messages = &mut self.node.raft.msgs;
        // Not left with the library, which would add blocks to it that need not follow.
        for mut message in messages.extract_if(before.min(messages.len()).., repeats) {
            message.clear_entries();
            self.released.push(message);
            self.asked |= 1 << from;
        }
    }

    /// Sends the blocks to a follower that has answered a question without them: what was
    /// sent with the first one did not come.
    fn send_after_question(&mut self, from: u64) {
        let last = self.last();
        let answers = self.is_leader() && members::has(self.asked, from);
        let Some(progress) = self.node.raft.mut_prs().get_mut(from).filter(|_| answers) else {
            return;
        };
        self.asked &= !(1 << from);
        if progress.state == ProgressState::Probe && progress.matched < last {
            progress.resume();
            self.node.raft.send_append(from);
        }
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
            // A window that is fuller than the narrow one would let nothing through until
            // it has run empty: one message per heartbeat, when they are all lost.
            if *id != site && (!behind || progress.ins.count() <= LAGGARD_WINDOW) {
                progress.ins.set_cap(if behind { LAGGARD_WINDOW } else { WINDOW });
            }
        }
    }

    /// Messages to a site were lost: probe before sending more.
    pub fn unreachable(&mut self, site: u64) {
        if self.is_leader() {
            self.node.report_unreachable(site);
        }
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

    /// The log begins with the entry at `index` now, or behind it: followers
    /// that need it cannot be served from the log any more.
    pub fn released(&mut self, index: u64) {
        // What is not applied yet is needed here: a log that began anew behind a state
        // begins with such a block.
        self.node.mut_store().compact(index.min(self.applied));
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
}
