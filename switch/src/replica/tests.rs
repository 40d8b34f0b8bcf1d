//! The replica in scenes: three of them joined by hand, disks that confirm when
//! told to. The seeded simulation of whole clusters is in `runtime/worker/sim`.

mod laggards;
mod leading;
mod members;
mod snapshot;

use super::*;
use crate::engine::record::is_members;
use bytes::Bytes;
use proptest::prelude::*;
use raft::eraftpb::{Message, MessageType};
use std::collections::VecDeque;
use storage::{CHAIN_START, chain_next};

/// One replica with a log in memory that is durable up to a mark.
struct Site {
    replica: Replica,
    out: Outputs,
    log: Vec<Append>,
    /// Where each ticket stands in it.
    tickets: Vec<usize>,
    durable: usize,
    lsn: u64,
    applied: Vec<(u64, u64, Vec<u8>)>,
    leads: Option<u64>,
    reads: Vec<u64>,
    restored: Option<u64>,
    stuck: bool,
}

fn config(site: u64, sites: u64) -> ReplicaConfig {
    ReplicaConfig {
        shard: 0,
        site,
        voters: (1..=sites).collect(),
        witnesses: Vec::new(),
        preference: preference(0, sites),
        seed: 1,
        tail_bytes_max: 1 << 20,
        timing: Timing::default(),
    }
}

fn base(index: u64, term: u64, chain: [u8; 32]) -> Base {
    Base { index, term, chain, members: Members::new(&[1, 2, 3]), received: false }
}

impl Site {
    fn new(config: ReplicaConfig) -> Self {
        Self::over(Recovering::new(config).start())
    }

    fn over(replica: Replica) -> Self {
        Self {
            replica,
            out: Outputs::default(),
            log: Vec::new(),
            tickets: Vec::new(),
            durable: 0,
            lsn: 0,
            applied: Vec::new(),
            leads: None,
            reads: Vec::new(),
            restored: None,
            stuck: false,
        }
    }

    /// One turn as the runtime does it; returns what leaves.
    fn turn(&mut self) -> Vec<Message> {
        self.replica.advance(&mut self.out);
        for append in self.out.appends.drain(..) {
            match append {
                Append::Ticket(number) => {
                    self.tickets.push(self.log.len());
                    self.replica.appended(number, self.lsn);
                }
                frame => {
                    self.lsn += 1;
                    self.log.push(frame);
                }
            }
        }
        for step in self.out.steps.drain(..) {
            match step {
                Step::Apply { index, term, block } => {
                    self.applied.push((index, term, block.to_vec()));
                }
                Step::Restore { index } => self.restored = Some(index),
                Step::Lead { term } => self.leads = Some(term),
                Step::StepDown => self.leads = None,
            }
        }
        self.reads.append(&mut self.out.reads);
        let messages = std::mem::take(&mut self.out.messages);
        if !self.stuck {
            self.durable = self.log.len();
            self.replica.durable(self.lsn);
        }
        messages
    }

    /// The same site after losing what was not durable.
    fn restarted(&self, config: ReplicaConfig) -> Self {
        let mut recovering = Recovering::new(config);
        let mut applied = Vec::new();
        for append in &self.log[..self.durable] {
            match append {
                Append::Block(entry, chain) => {
                    let now = recovering
                        .block(entry.index, entry.term, *chain, &entry.data)
                        .expect("what was written can be read");
                    if now {
                        applied.push((entry.index, entry.term, entry.data.to_vec()));
                    }
                    while let Some(found) = recovering.next_committed() {
                        applied.push((found.index, found.term, found.block.to_vec()));
                    }
                }
                Append::HardState(state) => {
                    recovering.hard_state(&state.encode()).unwrap();
                    while let Some(found) = recovering.next_committed() {
                        applied.push((found.index, found.term, found.block.to_vec()));
                    }
                }
                Append::Base(base) => {
                    recovering.rebased(base.index, base.term, base.chain).unwrap();
                }
                Append::Ticket(_) => unreachable!("not a frame"),
            }
        }
        let mut site = Self::over(recovering.start());
        site.log = self.log[..self.durable].to_vec();
        (site.durable, site.lsn) = (self.durable, self.durable as u64);
        site.applied = applied;
        site
    }
}

/// Sites joined by queues that can be cut.
struct Cluster {
    sites: Vec<Site>,
    queue: VecDeque<Message>,
    cut: Vec<u64>,
}

impl Cluster {
    fn new(sites: u64) -> Self {
        let sites = (1..=sites).map(|site| Site::new(config(site, sites))).collect();
        Self { sites, queue: VecDeque::new(), cut: Vec::new() }
    }

    fn site(&mut self, site: u64) -> &mut Site {
        &mut self.sites[site as usize - 1]
    }

    /// Runs turns until nothing moves.
    fn settle(&mut self) {
        self.settle_but(|_| false);
    }

    /// As `settle`; some messages are lost.
    fn settle_but(&mut self, is_lost: impl Fn(&Message) -> bool) {
        for _ in 0..10_000 {
            for site in &mut self.sites {
                self.queue.extend(site.turn());
            }
            let Some(message) = self.queue.pop_front() else {
                if self.sites.iter().all(|site| site.stuck || !site.replica.has_outputs()) {
                    return;
                }
                continue;
            };
            let cut = self.cut.contains(&message.from) || self.cut.contains(&message.to);
            if !cut && !is_lost(&message) {
                let to = message.to;
                self.site(to).replica.receive(message);
            }
        }
        panic!("does not settle");
    }

    fn ticks(&mut self, ticks: u32) {
        for _ in 0..ticks {
            for site in &mut self.sites {
                site.replica.tick();
            }
            self.settle();
        }
    }

    fn led(sites: u64) -> Self {
        let mut cluster = Self::new(sites);
        cluster.ticks(30);
        assert_eq!(cluster.leader(), Some(1), "the first choice stands first");
        cluster
    }

    fn leader(&self) -> Option<u64> {
        let leads = self.sites.iter().position(|site| site.leads.is_some())?;
        Some(leads as u64 + 1)
    }

    /// What was applied at a site, without empty blocks and changes of members.
    fn blocks(&self, site: u64) -> Vec<&[u8]> {
        let applied = &self.sites[site as usize - 1].applied;
        let blocks = applied.iter().map(|(_, _, block)| block.as_slice());
        blocks.filter(|block| !block.is_empty() && !is_members(block)).collect()
    }
}

#[test]
fn alone_a_replica_leads_once_its_first_entry_is_durable() {
    let mut site = Site::new(config(1, 1));
    site.stuck = true;
    site.turn();
    assert_eq!(site.leads, None);
    assert!(site.replica.propose(b"early".to_vec()).is_err());
    site.stuck = false;
    site.turn();
    site.turn();
    assert_eq!(site.leads, Some(1));
    site.replica.propose(b"one".to_vec()).unwrap();
    site.stuck = true;
    site.turn();
    assert_eq!(site.applied.len(), 1, "the term's own entry only");
    site.stuck = false;
    site.turn();
    site.turn();
    assert_eq!(site.applied[1], (2, 1, b"one".to_vec()));
    assert!(site.replica.read_barrier(9));
    site.turn();
    assert_eq!(site.reads, [9]);

    let mut again = site.restarted(config(1, 1));
    assert_eq!(again.applied, site.applied, "applied while the log is read");
    again.turn();
    again.turn();
    assert_eq!(again.leads, Some(2));
}

#[test]
fn a_block_is_committed_on_a_majority_and_never_before() {
    let mut cluster = Cluster::led(3);
    for site in [2, 3] {
        cluster.site(site).stuck = true;
    }
    cluster.site(1).replica.propose(b"pay".to_vec()).unwrap();
    cluster.settle();
    assert!(cluster.blocks(1).is_empty(), "only the leader's disk has it");
    cluster.site(3).stuck = false;
    cluster.settle();
    assert_eq!(cluster.blocks(1), [b"pay"]);
    cluster.site(2).stuck = false;
    cluster.ticks(5);
    assert_eq!((cluster.blocks(2), cluster.blocks(3)), (vec![&b"pay"[..]], vec![&b"pay"[..]]));
}

/// A disk that lost what it confirmed: the library would end the process at the first
/// heartbeat that speaks of it.
#[test]
fn a_log_that_lacks_what_was_confirmed_takes_no_part() {
    let mut cluster = Cluster::led(3);
    for block in [b"one", b"two"] {
        cluster.site(1).replica.propose(block.to_vec()).unwrap();
        cluster.settle();
    }
    cluster.ticks(5);
    for kept in [0, 2] {
        let whole = cluster.site(2).log.clone();
        // Back to what it was once, in the middle of the leader's term.
        let site = cluster.site(2);
        site.log.truncate(kept);
        site.durable = kept;
        *site = site.restarted(config(2, 3));
        assert_eq!(site.replica.forgotten(), None);
        cluster.ticks(5);
        let known = cluster.site(1).replica.committed();
        assert_eq!(cluster.site(2).replica.forgotten(), Some(known));
        // Whoever asks hears nothing, and it asks nobody.
        let mut ask = Message::default();
        ask.set_msg_type(MessageType::MsgRequestVote);
        (ask.from, ask.to, ask.term, ask.index, ask.log_term) = (3, 2, 90, 90, 80);
        cluster.site(2).replica.receive(ask);
        for _ in 0..200 {
            cluster.site(2).replica.tick();
            assert!(cluster.site(2).turn().is_empty());
        }
        assert_eq!(cluster.leader(), Some(1), "the others go on");
        // With its whole log it is back.
        let site = cluster.site(2);
        (site.durable, site.log) = (whole.len(), whole);
        *site = site.restarted(config(2, 3));
        cluster.ticks(5);
        assert_eq!(cluster.site(2).replica.forgotten(), None);
    }
    cluster.site(1).replica.propose(b"three".to_vec()).unwrap();
    cluster.ticks(5);
    assert_eq!(cluster.blocks(2), [&b"one"[..], b"two", b"three"]);
}

/// Writes that hang, between them some that do not, and a shard with nothing to do while it
/// is led elsewhere: it looks as if all were well. How often site 1 is elected meanwhile.
fn elected_while_the_disk_hangs(told: bool) -> u64 {
    let mut cluster = Cluster::led(3);
    for _ in 0..40 {
        cluster.site(1).stuck = true;
        for _ in 0..110 {
            for site in &mut cluster.sites {
                let stalled = site.replica.is_stalled();
                site.replica.set_stalled(stalled && told);
            }
            cluster.ticks(1);
        }
        cluster.site(1).stuck = false;
        cluster.settle();
        if cluster.leader() == Some(1) {
            // What comes is what hangs next.
            cluster.site(1).stuck = true;
            drop(cluster.site(1).replica.propose(b"more".to_vec()));
        }
    }
    cluster.site(1).replica.counters().elections - 1
}

#[test]
fn a_disk_that_hangs_again_and_again_does_not_get_its_shard_back_each_time() {
    let before = elected_while_the_disk_hangs(false);
    assert!(before >= 6, "it would: {before} times");
    let now = elected_while_the_disk_hangs(true);
    assert!(now <= 2, "{now} times");
}

#[test]
fn a_dead_leader_is_followed_by_the_next_in_order_with_everything_committed() {
    let mut cluster = Cluster::led(3);
    cluster.site(1).replica.propose(b"acknowledged".to_vec()).unwrap();
    cluster.settle();
    cluster.cut = vec![1];
    cluster.site(1).replica.propose(b"lost".to_vec()).unwrap();
    cluster.ticks(60);
    assert_eq!(cluster.site(2).leads, Some(2));
    assert_eq!(cluster.blocks(2), [b"acknowledged"]);
    assert_eq!(cluster.site(1).leads, None, "without a quorum it steps down by itself");
    cluster.cut.clear();
    cluster.site(2).replica.propose(b"after".to_vec()).unwrap();
    cluster.ticks(10);
    assert_eq!(cluster.blocks(1), [&b"acknowledged"[..], b"after"]);
    // And home again, once it has been level for a while.
    cluster.ticks(300);
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!(cluster.sites.iter().filter(|site| site.leads.is_some()).count(), 1);
}

#[test]
fn a_sign_of_death_starts_the_election_at_once_but_never_against_a_live_leader() {
    let mut cluster = Cluster::led(3);
    cluster.cut = vec![1];
    cluster.site(2).replica.peer_gone(1);
    cluster.site(3).replica.peer_gone(1);
    cluster.settle();
    assert_eq!(cluster.site(2).leads, Some(2), "without a tick");

    let mut cluster = Cluster::led(3);
    cluster.cut = vec![1];
    cluster.site(2).replica.peer_gone(1);
    cluster.ticks(2);
    assert_eq!(cluster.site(2).leads, None, "the other follower takes the leader for alive");
    cluster.site(3).replica.peer_gone(1);
    cluster.ticks(3);
    assert_eq!(cluster.site(2).leads, Some(2), "long before any time-out");

    let mut cluster = Cluster::led(3);
    cluster.site(2).replica.peer_gone(1);
    cluster.settle();
    cluster.ticks(10);
    assert_eq!(cluster.leader(), Some(1), "the other follower hears the leader");
    assert_eq!(cluster.site(1).leads, Some(1), "no new term");
}

#[test]
fn a_vote_is_not_given_twice_over_a_restart() {
    let mut cluster = Cluster::new(3);
    let mut vote = Message::default();
    vote.set_msg_type(MessageType::MsgRequestVote);
    (vote.from, vote.to, vote.term) = (2, 1, 5);
    cluster.site(1).replica.receive(vote.clone());
    let granted = |messages: Vec<Message>| {
        messages
            .iter()
            .any(|m| m.get_msg_type() == MessageType::MsgRequestVoteResponse && !m.reject)
    };
    cluster.site(1).stuck = true;
    assert!(!granted(cluster.site(1).turn()), "not before the vote is durable");
    cluster.site(1).stuck = false;
    cluster.site(1).turn();
    assert!(granted(cluster.site(1).turn()));
    let mut again = cluster.site(1).restarted(config(1, 3));
    vote.from = 3;
    again.replica.receive(vote);
    again.turn();
    assert!(!granted(again.turn()), "voted for another in this term");
}

#[test]
fn what_waits_behind_a_write_that_is_done_already_leaves() {
    let mut replica = Recovering::new(config(1, 3)).start();
    let mut ask = Message::default();
    ask.set_msg_type(MessageType::MsgRequestVote);
    (ask.from, ask.to, ask.term) = (2, 1, 5);
    let tickets = |out: &mut Outputs| -> Vec<u64> {
        let of = |append| match append {
            Append::Ticket(number) => Some(number),
            _ => None,
        };
        out.appends.drain(..).filter_map(of).collect()
    };
    let mut out = Outputs::default();
    replica.receive(ask.clone());
    replica.advance(&mut out);
    let [vote] = tickets(&mut out)[..] else { panic!("the vote is written") };
    replica.appended(vote, 7);
    // Asked once more while the disk works: an answer without frames of its own.
    replica.receive(ask);
    replica.advance(&mut out);
    let [again] = tickets(&mut out)[..] else { panic!("it stays behind the vote") };
    assert!(out.messages.is_empty());
    replica.durable(7);
    replica.advance(&mut out);
    assert_eq!(out.messages.len(), 1);
    replica.appended(again, 7);
    assert!(replica.has_outputs(), "no further write comes to release it");
    replica.advance(&mut out);
    assert_eq!(out.messages.len(), 2);
}

#[test]
fn a_drained_site_hands_over_at_once_and_takes_nothing_back() {
    let mut cluster = Cluster::led(3);
    for site in 1..=3 {
        cluster.site(site).replica.set_away(1 << 1);
    }
    cluster.ticks(2);
    assert_eq!(cluster.leader(), Some(2));
    cluster.ticks(400);
    assert_eq!(cluster.leader(), Some(2));
    for site in 1..=3 {
        cluster.site(site).replica.set_away(0);
    }
    cluster.ticks(300);
    assert_eq!(cluster.leader(), Some(1));
    assert!(cluster.sites[1].replica.counters().transfers >= 1);
}

#[test]
fn a_leader_whose_disk_does_not_answer_hands_over() {
    let mut cluster = Cluster::led(3);
    cluster.site(1).stuck = true;
    cluster.site(1).replica.propose(b"slow".to_vec()).unwrap();
    cluster.ticks(120);
    assert_eq!(cluster.leader(), Some(2));
    assert_eq!(cluster.blocks(2), [b"slow"], "two disks have it");
}

#[test]
fn a_leader_whose_disk_does_not_answer_hands_over_to_a_site_that_would_rather_not() {
    let mut cluster = Cluster::led(3);
    for site in [2, 3] {
        // Their disks hung a moment ago.
        cluster.site(site).replica.set_stalled(true);
        cluster.site(site).replica.set_stalled(false);
    }
    cluster.ticks(5);
    cluster.site(1).stuck = true;
    cluster.site(1).replica.propose(b"slow".to_vec()).unwrap();
    // Long before it would give up and let somebody be elected.
    let stall_ticks = Timing::default().stall_ticks;
    cluster.ticks(stall_ticks + stall_ticks / 2);
    assert_eq!(cluster.leader(), Some(2));
    assert_eq!(cluster.site(1).replica.counters().transfers, 1);
    assert_eq!(cluster.blocks(2), [b"slow"], "two disks have it");
}

#[test]
fn a_leader_whose_disk_hangs_on_the_first_entry_of_its_term_is_replaced() {
    let mut cluster = Cluster::new(3);
    while !cluster.site(1).stuck {
        for site in &mut cluster.sites {
            site.replica.tick();
            cluster.queue.extend(site.turn());
        }
        while let Some(message) = cluster.queue.pop_front() {
            let to = message.to;
            cluster.site(to).replica.receive(message);
            // Elected, and nothing written of its term yet.
            let elected = cluster.site(1).replica.matched(2).is_some();
            cluster.site(1).stuck |= elected;
            for site in &mut cluster.sites {
                cluster.queue.extend(site.turn());
            }
        }
    }
    cluster.ticks(20);
    assert_eq!(cluster.leader(), None, "what it wrote is not durable");
    cluster.ticks(100);
    assert_eq!(cluster.leader(), Some(2));
}

#[test]
fn reads_wait_for_a_quorum() {
    let mut cluster = Cluster::led(3);
    cluster.cut = vec![1];
    assert!(cluster.site(1).replica.read_barrier(3));
    cluster.settle();
    assert!(cluster.site(1).reads.is_empty(), "cut off, it may be deposed");
    cluster.cut.clear();
    cluster.ticks(5);
    assert_eq!(cluster.site(1).reads, [3]);
    assert!(!cluster.site(2).replica.read_barrier(4), "followers do not answer");
}

#[test]
fn followers_whose_disks_take_their_time_are_not_dead() {
    let mut cluster = Cluster::led(3);
    let counters = |cluster: &Cluster| -> Vec<Counters> {
        cluster.sites.iter().map(|site| site.replica.counters()).collect()
    };
    let before = counters(&cluster);
    for site in [2, 3] {
        cluster.site(site).stuck = true;
    }
    cluster.site(1).replica.propose(b"slow".to_vec()).unwrap();
    let election_ticks = Timing::default().election_ticks;
    cluster.ticks(3 * election_ticks);
    assert_eq!((cluster.leader(), counters(&cluster)), (Some(1), before));
    assert!(cluster.site(1).replica.read_barrier(5));
    cluster.settle();
    assert_eq!(cluster.site(1).reads, [5], "what they know of leaders is no matter of their disks");
    assert!(cluster.blocks(1).is_empty(), "what they hold is");
    cluster.site(2).stuck = false;
    cluster.settle();
    assert_eq!(cluster.blocks(1), [b"slow"]);
}

#[test]
fn a_log_that_begins_with_a_block_that_is_not_applied_keeps_it() {
    let mut cluster = Cluster::led(3);
    cluster.site(1).replica.propose(b"first".to_vec()).unwrap();
    let sent = cluster.site(1).turn();
    let follower = cluster.site(2);
    for message in sent.into_iter().filter(|message| message.to == 2) {
        follower.replica.receive(message);
    }
    follower.turn();
    let last = follower.replica.last();
    assert!(follower.applied.iter().all(|(index, ..)| *index < last), "not known committed");
    follower.replica.released(last);
    cluster.ticks(10);
    assert_eq!(cluster.blocks(2), [b"first"]);
}

#[test]
fn a_term_is_not_spoken_of_before_it_is_durable() {
    let mut cluster = Cluster::led(5);
    cluster.site(5).stuck = true;
    cluster.cut = vec![1];
    cluster.ticks(60);
    let leader = cluster.sites[1..].iter().position(|site| site.leads.is_some());
    let leader = leader.expect("three of five are enough") + 2;
    let mut heartbeat = Message::default();
    heartbeat.set_msg_type(raft::eraftpb::MessageType::MsgHeartbeat);
    (heartbeat.from, heartbeat.to) = (leader as u64, 5);
    heartbeat.term = cluster.sites[leader - 1].replica.term();
    let last = cluster.site(5);
    last.replica.receive(heartbeat);
    let answers = |messages: &[Message]| {
        let is_answer =
            |one: &&Message| one.get_msg_type() == raft::eraftpb::MessageType::MsgHeartbeatResponse;
        messages.iter().filter(is_answer).count()
    };
    assert_eq!(answers(&last.turn()), 0);
    last.stuck = false;
    last.turn();
    assert!(answers(&last.turn()) > 0, "now it is");
}

#[test]
fn a_follower_far_behind_gets_what_memory_no_longer_holds() {
    let mut cluster = Cluster::new(3);
    for site in &mut cluster.sites {
        let number = site.replica.applied() + 1;
        debug_assert_eq!(number, 1);
    }
    cluster.ticks(30);
    cluster.cut = vec![3];
    for number in 0..40_u8 {
        cluster.site(1).replica.propose(vec![number; 100_000]).unwrap();
        cluster.settle();
        cluster.site(1).replica.trim();
    }
    cluster.cut.clear();
    let mut fetches = 0;
    for _ in 0..60 {
        cluster.ticks(1);
        while let Some(wanted) = cluster.site(1).replica.take_wanted() {
            let entries = cluster.sites[0]
                .log
                .iter()
                .filter_map(|append| match append {
                    Append::Block(entry, _) if entry.index >= wanted.from => Some(entry.clone()),
                    _ => None,
                })
                .take_while(|entry| entry.index < wanted.to)
                .take(5)
                .collect();
            cluster.site(1).replica.fetched(wanted, entries);
            fetches += 1;
        }
    }
    assert!(fetches > 1);
    assert_eq!(cluster.blocks(3).len(), 40);
    assert_eq!(cluster.sites[2].applied, cluster.sites[0].applied);
}

#[test]
fn a_gap_and_a_term_going_back_are_refused() {
    let mut recovering = Recovering::new(config(1, 3));
    recovering.block(1, 4, [0; 32], b"").unwrap();
    assert_eq!(
        recovering.block(3, 4, [0; 32], b""),
        Err(ReplayError::Gap { shard: 0, last: 1, found: 3 })
    );
    assert_eq!(
        recovering.block(2, 3, [0; 32], b""),
        Err(ReplayError::TermBackwards { shard: 0, index: 2, last: 4, found: 3 })
    );
    assert_eq!(recovering.hard_state(b"x"), Err(ReplayError::HardState { shard: 0 }));
    let committed = HardState { term: 4, vote: 2, commit: 1 };
    recovering.hard_state(&committed.encode()).unwrap();
    assert_eq!(recovering.next_committed().map(|found| found.index), Some(1));
    assert_eq!(
        recovering.block(1, 5, [0; 32], b"other"),
        Err(ReplayError::Gap { shard: 0, last: 1, found: 1 }),
        "a committed block is never replaced"
    );
}

#[test]
fn hard_state_survives_encoding() {
    let state = HardState { term: 7, vote: 2, commit: u64::MAX };
    assert_eq!(HardState::decode(&state.encode()), Some(state));
}

/// A frame of a log as recovery meets it.
#[derive(Clone, Debug)]
enum Found {
    Block { index: u64, term: u64, chain: [u8; 32], payload: Vec<u8> },
    State(HardState),
}

/// A log of one shard, with suffixes replaced by later terms, and the blocks
/// that count in the end.
struct History {
    frames: Vec<Found>,
    chain: Vec<(Base, Vec<u8>)>,
    committed: u64,
}

impl History {
    /// Each step appends a block, now and then after going back to something
    /// that is not committed, in a higher term; or commits.
    fn new(steps: &[(u8, u8)]) -> Self {
        let mut history = Self { frames: Vec::new(), chain: Vec::new(), committed: 0 };
        let mut term = 1;
        for (at, (kind, amount)) in steps.iter().enumerate() {
            let last = history.chain.len() as u64;
            if kind % 4 == 0 && last > history.committed {
                history.committed += 1 + u64::from(*amount) % (last - history.committed);
                let commit = history.committed;
                history.frames.push(Found::State(HardState { term, vote: 1, commit }));
                continue;
            }
            if kind % 4 == 1 && last > history.committed {
                term += 1;
                let keep = history.committed + u64::from(*amount) % (last - history.committed);
                history.chain.truncate(keep as usize);
            }
            history.append(term, vec![at as u8; usize::from(*amount % 5)]);
        }
        history
    }

    fn append(&mut self, term: u64, payload: Vec<u8>) {
        let before = self.chain.last().map_or(CHAIN_START, |(base, _)| base.chain);
        let (index, chain) = (self.chain.len() as u64 + 1, chain_next(&before, &payload));
        self.frames.push(Found::Block { index, term, chain, payload: payload.clone() });
        self.chain.push((base(index, term, chain), payload));
    }

    fn base(&self, index: u64) -> Base {
        match index {
            0 => base(0, 0, CHAIN_START),
            _ => self.chain[index as usize - 1].0,
        }
    }

    /// What a release up to `index` may have taken from the front: nothing that
    /// holds a later block, and not the newest hard state.
    fn releasable(&self, index: u64) -> usize {
        let later = |found: &Found| matches!(found, Found::Block { index: at, .. } if *at > index);
        let is_state = |found: &Found| matches!(found, Found::State(_));
        let state = self.frames.iter().rposition(is_state).unwrap_or(self.frames.len());
        self.frames.iter().position(later).unwrap_or(self.frames.len()).min(state)
    }
}

/// Index, term and block.
type Applied = (u64, u64, Bytes);

/// Recovers from `base` over `frames`; the blocks to be applied and the replica.
fn recovered(
    config: ReplicaConfig,
    base: Base,
    frames: &[Found],
    end: u64,
) -> Result<(Vec<Applied>, Replica), ReplayError> {
    let mut recovering = Recovering::from_base(config, base);
    let mut applied = Vec::new();
    for frame in frames {
        match frame {
            Found::Block { index, term, chain, payload } => {
                if recovering.block(*index, *term, *chain, payload)? {
                    applied.push((*index, *term, Bytes::copy_from_slice(payload)));
                }
            }
            Found::State(state) => recovering.hard_state(&state.encode())?,
        }
        while let Some(found) = recovering.next_committed() {
            applied.push((found.index, found.term, found.block));
        }
    }
    recovering.check(Some(end))?;
    Ok((applied, recovering.start()))
}

proptest! {
    /// From whatever state of whatever log, released or not: the same blocks
    /// are applied behind it as by the whole log, and the replica stands where
    /// it would stand.
    #[test]
    fn a_state_and_the_rest_of_the_log_are_as_good_as_the_whole(
        steps in prop::collection::vec(any::<(u8, u8)>(), 1..60),
        base in any::<prop::sample::Index>(),
        released in any::<prop::sample::Index>(),
    ) {
        let history = History::new(&steps);
        let end = history.chain.len() as u64;
        let base = history.base(base.index(history.committed as usize + 1) as u64);
        let first = released.index(history.releasable(base.index) + 1);
        let (all, whole) = recovered(config(1, 3), history.base(0), &history.frames, end).unwrap();
        let (rest, replica) =
            recovered(config(1, 3), base, &history.frames[first..], end).unwrap();
        prop_assert_eq!(&rest[..], &all[all.len().min(base.index as usize)..]);
        prop_assert_eq!(replica.last(), whole.last());
        let applied = whole.applied().max(base.index);
        prop_assert_eq!(replica.applied(), applied);
        prop_assert_eq!(replica.base(), Some(history.base(applied)));
        prop_assert!(replica.committed() >= base.index);
        for index in replica.first_served()..=replica.last() {
            prop_assert_eq!(replica.term_at(index), whole.term_at(index));
        }
        // What the log holds whole from its beginning, or behind its first block,
        // can be served.
        let begins = history.frames[first..].iter().find_map(|found| match found {
            Found::Block { index, .. } => Some(*index),
            Found::State(_) => None,
        });
        let begins = begins.unwrap_or(end + 1);
        let most = if begins == 1 { 1 } else { begins + 1 };
        prop_assert!(replica.first_served() <= most);
    }

    /// A state of another history is refused.
    #[test]
    fn a_state_of_another_history_is_refused(
        steps in prop::collection::vec(any::<(u8, u8)>(), 1..40),
        index in any::<prop::sample::Index>(),
        is_term in any::<bool>(),
    ) {
        let history = History::new(&steps);
        let end = history.chain.len();
        prop_assume!(end > 0);
        let mut base = history.base(1 + index.index(end) as u64);
        if is_term {
            base.term += 1;
        } else {
            base.chain[7] ^= 1;
        }
        let refused = recovered(config(1, 3), base, &history.frames, end as u64);
        prop_assert!(refused.is_err());
    }
}

#[test]
fn a_log_that_does_not_meet_its_state_is_refused() {
    let mut history = History::new(&[]);
    for number in 0..10 {
        history.append(1, vec![number]);
    }
    let error = |base, frames: &[Found], end| {
        recovered(config(1, 3), base, frames, end).map(|_| ()).unwrap_err()
    };
    let (frames, shard) = (&history.frames[..], 0);
    assert_eq!(
        error(history.base(3), &frames[4..], 10),
        ReplayError::Missing { shard, base: 3, found: 5 }
    );
    assert_eq!(
        error(history.base(3), &[], 10),
        ReplayError::Missing { shard, base: 3, found: 11 },
        "all blocks were released"
    );
    assert_eq!(
        error(history.base(0), &frames[1..], 10),
        ReplayError::Missing { shard, base: 0, found: 2 }
    );
    assert_eq!(
        error(history.base(8), &frames[..6], 6),
        ReplayError::EndsBefore { shard, base: 8, last: 6 }
    );
    let mut gap = frames.to_vec();
    gap.remove(1);
    assert_eq!(
        error(history.base(8), &gap, 10),
        ReplayError::Gap { shard, last: 1, found: 3 },
        "also in what is only passed over"
    );
    assert!(recovered(config(1, 3), history.base(10), &[], 10).is_ok(), "nothing came since");
}

#[test]
fn alone_a_replica_goes_on_from_its_state() {
    let mut history = History::new(&[]);
    for number in 0..10 {
        history.append(1, vec![number]);
    }
    let members = Members::new(&[1]);
    let at = |index| Base { members, ..history.base(index) };
    let (applied, mut replica) = recovered(config(1, 1), at(7), &history.frames[2..], 10).unwrap();
    let indexes: Vec<u64> = applied.iter().map(|(index, ..)| *index).collect();
    assert_eq!(indexes, [8, 9, 10]);
    assert_eq!(replica.base(), Some(at(10)));
    let mut out = Outputs::default();
    replica.advance(&mut out);
    assert!(replica.term() > 1 && !out.appends.is_empty(), "it stands for election");
}

#[test]
fn a_mark_of_an_installed_state_is_passed_over_by_a_later_one_only() {
    let mut history = History::new(&[]);
    for number in 0..10 {
        history.append(1, vec![number]);
    }
    let begin = |base| {
        let mut recovering = Recovering::from_base(config(1, 3), base);
        // What stood there before the installation, of whatever history.
        recovering.block(1, 1, [7; 32], b"stale").unwrap();
        let at = history.base(5);
        recovering.rebased(at.index, at.term, at.chain).map(|()| recovering)
    };
    let mut recovering = begin(history.base(7)).unwrap();
    for found in &history.frames[5..] {
        let Found::Block { index, term, chain, payload } = found else { unreachable!() };
        recovering.block(*index, *term, *chain, payload).unwrap();
    }
    recovering.check(Some(10)).unwrap();
    assert_eq!(recovering.start().base(), Some(history.base(7)));
    let older = begin(history.base(4)).err();
    assert_eq!(older, Some(ReplayError::Missing { shard: 0, base: 4, found: 6 }));
}
