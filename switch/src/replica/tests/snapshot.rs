//! Sites brought up by a state instead of blocks, and what a process that ends on
//! the way leaves.

use super::super::members::mask;
use super::*;
use protocol::id::ShortText;

impl Site {
    /// Its state is written down, and can be sent from now on.
    fn write_down(&mut self) -> Base {
        let base = self.replica.base().expect("a chain value");
        self.replica.offer(base);
        base
    }

    /// The state comes and counts; what leaves before the log has it.
    fn take_over(&mut self, sending: &Sending) -> Vec<Message> {
        let Sending { term, base, .. } = *sending;
        assert!(self.replica.would_take(1, term, &base));
        self.replica.install(1, term, &base, &mut self.out);
        self.turn()
    }

    /// The frames of its log that are durable, read back behind a checkpoint.
    fn recovers(&self, config: ReplicaConfig, base: Base) -> Result<Replica, ReplayError> {
        let mut recovering = Recovering::from_base(config, base);
        for append in &self.log[..self.durable] {
            match append {
                Append::Block(entry, chain) => {
                    let (index, term) = (entry.index, entry.term);
                    recovering.block(index, term, *chain, &entry.data).map(|_| ())?;
                }
                Append::HardState(state) => recovering.hard_state(&state.encode())?,
                Append::Base(at) => recovering.rebased(at.index, at.term, at.chain)?,
                Append::Ticket(_) => unreachable!("not a frame"),
            }
            while recovering.next_committed().is_some() {}
        }
        recovering.check(None)?;
        Ok(recovering.start())
    }
}

/// Site 3 was away while the others committed ten blocks, wrote their states down
/// and gave up the log; two more blocks came since.
fn left_behind() -> (Cluster, Sending) {
    let mut cluster = Cluster::led(3);
    cluster.cut = vec![3];
    for number in 0..10 {
        cluster.site(1).replica.propose(vec![number]).unwrap();
        cluster.settle();
    }
    let base = cluster.site(1).write_down();
    cluster.site(1).replica.released(base.index);
    for number in 10..12 {
        cluster.site(1).replica.propose(vec![number]).unwrap();
        cluster.settle();
    }
    cluster.cut.clear();
    cluster.ticks(20);
    let sendings = std::mem::take(&mut cluster.site(1).out.sendings);
    assert_eq!(sendings.len(), 1, "asked for once");
    assert_eq!((sendings[0].site, sendings[0].base), (3, base));
    assert!(cluster.site(1).replica.awaits(&sendings[0]));
    (cluster, sendings[0])
}

#[test]
fn a_site_beyond_the_log_goes_on_from_a_state_and_answers_once_its_log_says_so() {
    let (mut cluster, sending) = left_behind();
    let site = cluster.site(3);
    site.stuck = true;
    let before = site.take_over(&sending);
    let answers = |m: &Message| m.get_msg_type() == MessageType::MsgAppendResponse && !m.reject;
    assert!(!before.iter().any(answers), "not before the log has it");
    assert_eq!(site.restored, Some(sending.base.index));
    site.stuck = false;
    cluster.settle();
    cluster.ticks(10);
    assert!(!cluster.site(1).replica.awaits(&sending) && cluster.site(1).replica.is_at(&sending));
    assert_eq!(cluster.blocks(3), [[10], [11]], "what came since, from the log");
    let base = cluster.site(1).replica.base();
    assert_eq!(cluster.site(3).replica.base(), base, "the chain goes on");
    assert!(!cluster.site(3).replica.would_take(1, sending.term, &sending.base));

    // Its own log and the checkpoint are as good at the next start.
    let received = Base { received: true, ..sending.base };
    let again = cluster.site(3).recovers(config(3, 3), received).unwrap();
    assert_eq!(again.last(), base.unwrap().index);
    let none = cluster.site(3).recovers(config(3, 3), base_of_nothing()).map(drop);
    assert_eq!(none, Err(ReplayError::Missing { shard: 0, base: 0, found: received.index + 1 }));
    // And it leads when it has to.
    cluster.cut = vec![1];
    cluster.ticks(100);
    cluster.cut = vec![2];
    cluster.ticks(300);
    assert!(cluster.leader().is_some());
}

fn base_of_nothing() -> Base {
    base(0, 0, CHAIN_START)
}

#[test]
fn a_process_that_ends_before_the_log_says_so_begins_anew_behind_the_state() {
    let (mut cluster, sending) = left_behind();
    // The file is durable, and nothing else.
    let received = Base { received: true, ..sending.base };
    let refused = cluster.site(3).recovers(config(3, 3), sending.base).map(drop);
    let ends = ReplayError::EndsBefore { shard: 0, base: received.index, last: 1 };
    assert_eq!(refused, Err(ends), "a state of its own would be there by mistake");
    let replica = cluster.site(3).recovers(config(3, 3), received).unwrap();
    assert_eq!((replica.applied(), replica.last()), (received.index, received.index));
    let (log, lsn) = (cluster.site(3).log.clone(), cluster.site(3).lsn);
    let mut site = Site::over(replica);
    (site.durable, site.log, site.lsn) = (log.len(), log, lsn);
    let first = site.durable;
    site.turn();
    assert!(matches!(site.log[first], Append::Base(base) if base == received));
    *cluster.site(3) = site;
    cluster.ticks(30);
    // The leader does not know, and offers it once more.
    cluster.site(1).replica.not_sent(&sending);
    cluster.ticks(30);
    let again = cluster.site(1).out.sendings.pop().expect("offered again");
    assert!(!cluster.site(3).replica.would_take(1, again.term, &again.base));
    assert!(cluster.site(3).replica.has_already(1, again.term, &again.base));
    cluster.ticks(30);
    assert!(!cluster.site(1).replica.awaits(&again));
    assert_eq!(cluster.blocks(3), [[10], [11]]);
    let again = cluster.site(3).recovers(config(3, 3), received).unwrap();
    assert_eq!(again.last(), cluster.site(1).replica.last());
}

#[test]
fn a_state_replaces_a_stale_end_whether_the_log_says_so_or_not() {
    let mut history = History::new(&[]);
    for number in 0..8 {
        history.append(1, vec![number]);
    }
    let stale = history.frames.clone();
    history.chain.truncate(3);
    for number in 0..4 {
        history.append(3, vec![number, 7]);
    }
    let at = history.base(5);
    let other = recovered(config(1, 3), at, &stale, 8).map(drop);
    assert_eq!(other, Err(ReplayError::OtherHistory { shard: 0, base: 5 }));
    let (applied, replica) =
        recovered(config(1, 3), Base { received: true, ..at }, &stale, 8).unwrap();
    assert_eq!((applied.len(), replica.last(), replica.term_at(5)), (0, 5, 3));
}

#[test]
fn a_state_that_does_not_get_through_is_asked_for_again_in_its_newest_form() {
    let (mut cluster, sending) = left_behind();
    cluster.ticks(50);
    assert!(cluster.site(1).out.sendings.is_empty(), "one at a time");
    let newer = cluster.site(1).write_down();
    cluster.site(1).replica.not_sent(&sending);
    assert!(!cluster.site(1).replica.awaits(&sending));
    cluster.ticks(20);
    let again = cluster.site(1).out.sendings.pop().expect("asked for again");
    assert_eq!((again.site, again.base), (3, newer));
    cluster.site(1).replica.not_sent(&sending);
    assert!(cluster.site(1).replica.awaits(&again), "the old one is nobody's business any more");
    cluster.site(3).take_over(&again);
    cluster.ticks(10);
    let base = cluster.site(1).replica.base();
    assert_eq!(cluster.site(3).replica.base(), base);
    // One of a leader that is none any more is not taken over.
    cluster.cut = vec![1];
    cluster.ticks(100);
    let late = Base { index: 1_000, ..newer };
    let site = cluster.site(3);
    assert!(site.replica.term() > again.term);
    for term in [0, again.term] {
        assert!(!site.replica.would_take(1, term, &late));
        assert!(!site.replica.has_already(1, term, &newer));
        site.replica.install(1, term, &late, &mut site.out);
        site.turn();
        assert_eq!(site.restored, Some(newer.index), "the one before");
    }
}

#[test]
fn a_new_site_gets_a_state_that_knows_it() {
    let sites = (1..=4).map(|site| Site::new(ReplicaConfig { site, ..config(site, 3) })).collect();
    let mut cluster = Cluster { sites, queue: VecDeque::new(), cut: Vec::new() };
    cluster.ticks(30);
    for number in 0..5 {
        cluster.site(1).replica.propose(vec![number]).unwrap();
        cluster.settle();
    }
    let old = cluster.site(1).write_down();
    cluster.site(1).replica.released(old.index);
    let by = By { operator: ShortText::EMPTY, at_us: 1, forced: false };
    cluster.site(1).replica.change_members(&[1, 2, 3], &[4], by).unwrap();
    cluster.ticks(20);
    assert!(cluster.site(1).out.sendings.is_empty());
    assert!(cluster.site(1).replica.wants_checkpoint(), "the one there is does not know it");
    let base = cluster.site(1).write_down();
    assert_eq!(base.members.learners, mask(&[4]));
    assert!(!cluster.site(1).replica.wants_checkpoint());
    cluster.ticks(20);
    let sending = cluster.site(1).out.sendings.pop().expect("a state that knows it");
    assert_eq!((sending.site, sending.base), (4, base));
    cluster.site(4).take_over(&sending);
    cluster.ticks(20);
    assert_eq!(cluster.site(4).replica.members(), cluster.site(1).replica.members());
    assert_eq!(cluster.site(4).replica.applied(), cluster.site(1).replica.applied());
    // A start from the checkpoint alone knows the members, too.
    let received = Base { received: true, ..base };
    let again = cluster.site(4).recovers(ReplicaConfig { site: 4, ..config(4, 3) }, received);
    assert_eq!(again.unwrap().members().learners, mask(&[4]));
}

/// A site that is alone takes what its log holds for committed, but not a stale
/// end from the time with others that stands before what replaced it.
#[test]
fn a_stale_end_is_not_taken_for_committed_by_a_site_that_was_left_alone() {
    let mut history = History::new(&[]);
    for number in 0..8 {
        history.append(1, vec![number]);
    }
    history.chain.truncate(2);
    for number in 0..4 {
        history.append(2, vec![number, 9]);
    }
    let members = Members { removed: mask(&[2, 3]), ..Members::new(&[1]) };
    let at = Base { members, ..history.base(4) };
    let (applied, replica) = recovered(config(1, 3), at, &history.frames, 6).unwrap();
    assert!(applied.is_empty(), "what the log holds counts once all of it was read");
    assert_eq!((replica.committed(), replica.last()), (6, 7), "it stands for election");
    assert_eq!((replica.term_at(5), replica.members()), (2, members));
}
