//! Sites that come and go while the others serve, and crashes on the way.

use super::*;
use protocol::id::ShortText;

const BY: By = By { operator: ShortText::EMPTY, at_us: 1, forced: false };

/// As `config`, in a cluster made of sites 1 to 3.
fn joining(site: u64) -> ReplicaConfig {
    ReplicaConfig { site, ..config(site, 3) }
}

impl Cluster {
    /// Sites 1 to 3, led by 1, and `more` that are no members yet.
    fn with_more(more: u64) -> Self {
        let sites = (1..=3 + more).map(|site| Site::new(joining(site))).collect();
        let mut cluster = Self { sites, queue: VecDeque::new(), cut: Vec::new() };
        cluster.ticks(30);
        assert_eq!(cluster.leader(), Some(1));
        cluster
    }

    fn members(&self, site: u64) -> Members {
        self.sites[site as usize - 1].replica.members()
    }

    /// Asks the leader until the site is what it shall be.
    fn seek(&mut self, site: u64, member: bool) {
        for _ in 0..400 {
            let stage = match self.leader() {
                Some(leader) => self.site(leader).replica.seek_member(site, member, BY),
                None => Err(ChangeError::NotLeader),
            };
            match stage {
                Ok(Stage::Done) => return,
                Ok(_) | Err(ChangeError::NotLeader) => self.ticks(1),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("site {site} does not become member = {member}");
    }

    /// Sites 1 to 4 of which 4 is a learner that is level.
    fn with_learner() -> Self {
        let mut cluster = Self::with_more(1);
        cluster.site(1).replica.change_members(&[1, 2, 3], &[4], BY).unwrap();
        cluster.ticks(20);
        assert_eq!(cluster.members(4).learners, 1 << 4);
        assert_eq!(cluster.sites[3].applied, cluster.sites[0].applied);
        cluster
    }

    /// Restarts a site over the first `durable` frames of its log.
    fn restart(&mut self, site: u64, durable: usize) {
        let old = self.site(site);
        old.durable = durable;
        *old = old.restarted(joining(site));
    }

    /// Every member knows the same members, applied the same, and goes on.
    fn goes_on(&mut self, voters: &[u64]) {
        self.cut.clear();
        for site in &mut self.sites {
            site.stuck = false;
        }
        self.ticks(400);
        let leader = self.leader().expect("somebody leads");
        assert!(voters.contains(&leader), "{leader} leads");
        let members = self.members(leader);
        assert!(!members.is_joint(), "the change has ended");
        assert_eq!(sites(members.voters).collect::<Vec<_>>(), voters);
        self.site(leader).replica.propose(b"goes on".to_vec()).unwrap();
        self.ticks(10);
        for site in voters {
            assert_eq!(self.members(*site), members, "at site {site}");
            assert_eq!(self.blocks(*site).last(), Some(&&b"goes on"[..]), "at site {site}");
            assert_eq!(
                self.sites[*site as usize - 1].applied,
                self.sites[leader as usize - 1].applied,
                "at site {site}"
            );
        }
        assert_eq!(self.sites.iter().filter(|site| site.leads.is_some()).count(), 1);
    }
}

#[test]
fn a_site_joins_gets_the_whole_log_and_counts() {
    let mut cluster = Cluster::with_more(1);
    cluster.site(1).replica.propose(b"before".to_vec()).unwrap();
    cluster.settle();
    assert!(!cluster.members(4).contains(4));
    assert_eq!(cluster.site(4).replica.leader(), 0, "it is no member");
    assert_eq!(
        cluster.site(1).replica.change_members(&[1, 2, 3, 4], &[], BY),
        Err(ChangeError::NotLevel(4)),
        "a learner first"
    );
    cluster.seek(4, true);
    assert_eq!(cluster.blocks(4), [b"before"]);
    // Three of four are a majority, two are not.
    cluster.cut = vec![2];
    cluster.site(1).replica.propose(b"three".to_vec()).unwrap();
    cluster.settle();
    assert_eq!(cluster.blocks(1).last(), Some(&&b"three"[..]));
    cluster.cut = vec![2, 3];
    cluster.site(1).replica.propose(b"two".to_vec()).unwrap();
    cluster.settle();
    assert_eq!(cluster.blocks(1).last(), Some(&&b"three"[..]));
    cluster.goes_on(&[1, 2, 3, 4]);
}

/// Two of three voters are replaced at once. The old ones confirm the end of the change
/// and lose everything that was written down after that: they must not elect one of
/// theirs, of which the new majority would know nothing.
#[test]
fn replaced_voters_that_lost_what_they_did_not_confirm_elect_nobody() {
    let mut cluster = Cluster::with_more(2);
    cluster.site(1).replica.change_members(&[1, 2, 3], &[4, 5], BY).unwrap();
    cluster.ticks(20);
    cluster.site(1).replica.change_members(&[1, 4, 5], &[], BY).unwrap();
    cluster.ticks(20);
    assert_eq!(cluster.members(1), cluster.members(4));
    assert_eq!(sites(cluster.members(1).voters).collect::<Vec<_>>(), [1, 4, 5]);
    assert!(!cluster.members(1).is_joint());
    for site in [2, 3] {
        let found = &cluster.sites[site as usize - 1];
        let is_change = |append: &Append| match append {
            Append::Block(entry, _) => is_members(&entry.data),
            _ => false,
        };
        let end = found.log.iter().rposition(is_change).expect("the end of the change");
        let confirmed = found.tickets.iter().find(|at| **at > end).copied();
        cluster.restart(site, confirmed.expect("its confirmation"));
        let known = cluster.members(site);
        assert!(known.is_joint() || !known.contains(site), "it knows how far the change has come");
    }
    cluster.cut = vec![1, 4, 5];
    cluster.ticks(400);
    assert!([2, 3].iter().all(|site| cluster.site(*site).leads.is_none()));
    cluster.goes_on(&[1, 4, 5]);
}

/// Also where it heard of that before the beginning was durable here, with a message that
/// brought nothing else.
#[test]
fn whoever_confirms_the_end_of_a_change_knows_that_its_beginning_is_committed() {
    let mut cluster = Cluster::with_more(2);
    cluster.site(1).replica.change_members(&[1, 2, 3], &[4, 5], BY).unwrap();
    cluster.ticks(20);
    cluster.cut = vec![3];
    cluster.site(1).replica.change_members(&[1, 4, 5], &[], BY).unwrap();
    cluster.ticks(10);
    let changes: Vec<_> = cluster.sites[0]
        .log
        .iter()
        .filter_map(|append| match append {
            Append::Block(it, _) if is_members(&it.data) => {
                Some(entry(it.index, it.term, it.data.clone()))
            }
            _ => None,
        })
        .collect();
    let [.., joint, end] = &changes[..] else { panic!("a beginning and an end") };
    assert_eq!(joint.index + 1, end.index);
    let term = cluster.site(1).replica.term();
    let append = |index: u64, entries: Vec<raft::eraftpb::Entry>, commit| {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.from, message.to, message.term) = (1, 3, term);
        (message.index, message.log_term, message.commit) = (index, term, commit);
        message.set_entries(entries.into());
        message
    };
    cluster.site(3).stuck = true;
    for message in [
        append(joint.index - 1, vec![joint.clone()], joint.index - 1),
        append(joint.index, Vec::new(), joint.index),
        append(joint.index, vec![end.clone()], joint.index),
    ] {
        cluster.site(3).replica.receive(message);
        assert!(cluster.site(3).turn().is_empty(), "nothing is durable yet");
    }
    let confirmed = *cluster.site(3).tickets.last().unwrap();
    cluster.restart(3, confirmed);
    assert!(cluster.members(3).is_joint());
}

#[test]
fn a_learner_gets_everything_and_decides_nothing() {
    let mut cluster = Cluster::with_learner();
    cluster.cut = vec![2, 3];
    cluster.site(1).replica.propose(b"alone".to_vec()).unwrap();
    cluster.settle();
    assert!(cluster.blocks(1).is_empty(), "a learner is no majority");
    cluster.cut = vec![1, 2, 3];
    cluster.ticks(400);
    assert_eq!(cluster.site(4).replica.counters().campaigns, 0, "it never stands");
    cluster.goes_on(&[1, 2, 3]);
    assert_eq!(cluster.sites[3].applied, cluster.sites[0].applied);
    assert!(!cluster.site(1).replica.transfer(4), "nor does it lead");
}

#[test]
fn a_removed_site_is_told_and_disturbs_nobody() {
    let mut cluster = Cluster::led(3);
    cluster.seek(3, false);
    assert!(!cluster.members(3).contains(3), "it was told");
    assert_eq!(cluster.members(1), Members { removed: 1 << 3, ..Members::new(&[1, 2]) });
    let term = cluster.site(1).replica.term();
    cluster.ticks(400);
    assert_eq!((cluster.leader(), cluster.site(1).replica.term()), (Some(1), term));
    assert_eq!(
        cluster.site(1).replica.seek_member(3, true, BY),
        Err(ChangeError::UsedUp(3)),
        "numbers are never used again"
    );
    cluster.goes_on(&[1, 2]);
}

#[test]
fn a_site_that_was_away_when_it_was_removed_learns_of_it_when_it_asks() {
    let mut cluster = Cluster::led(3);
    cluster.cut = vec![3];
    cluster.ticks(100);
    cluster.seek(3, false);
    cluster.site(1).replica.propose(b"later".to_vec()).unwrap();
    let term = cluster.site(1).replica.term();
    assert!(cluster.members(3).contains(3), "it cannot know");
    cluster.cut.clear();
    cluster.ticks(200);
    assert!(!cluster.members(3).contains(3), "its pre-vote was answered with the log");
    assert_eq!((cluster.leader(), cluster.site(1).replica.term()), (Some(1), term));
    assert_eq!(cluster.site(3).replica.leader(), 0);
}

#[test]
fn the_old_disk_of_a_removed_site_moves_nobody() {
    let mut cluster = Cluster::led(3);
    cluster.seek(3, false);
    // It comes back as it was before, with a term of its own making.
    let mut vote = Message::default();
    vote.set_msg_type(MessageType::MsgRequestVote);
    (vote.from, vote.to, vote.term, vote.index, vote.log_term) = (3, 2, 90, 900, 90);
    let mut append = vote.clone();
    append.set_msg_type(MessageType::MsgAppend);
    let term = cluster.site(2).replica.term();
    for message in [vote, append] {
        cluster.site(2).replica.receive(message);
        cluster.settle();
    }
    assert_eq!(cluster.site(2).replica.term(), term);
    cluster.goes_on(&[1, 2]);
}

#[test]
fn a_site_is_replaced() {
    let mut cluster = Cluster::with_more(1);
    cluster.cut = vec![3];
    cluster.ticks(50);
    cluster.seek(4, true);
    cluster.seek(3, false);
    assert_eq!(cluster.members(1), Members { removed: 1 << 3, ..Members::new(&[1, 2, 4]) });
    for site in [1, 2, 4] {
        cluster.restart(site, cluster.sites[site as usize - 1].log.len());
    }
    cluster.goes_on(&[1, 2, 4]);
    // The shards are spread over who is there.
    cluster.cut = vec![1];
    cluster.ticks(100);
    assert_eq!(cluster.leader_of(&[2, 4]), Some(2));
}

#[test]
fn a_leader_hands_over_before_it_is_removed() {
    let mut cluster = Cluster::led(3);
    assert_eq!(cluster.site(1).replica.seek_member(1, false, BY), Ok(Stage::HandsOver));
    cluster.seek(1, false);
    assert!(cluster.members(1).removed == 1 << 1, "it knows");
    cluster.goes_on(&[2, 3]);
}

#[test]
fn a_leader_that_removes_itself_hands_over_afterwards() {
    let mut cluster = Cluster::led(3);
    cluster.site(1).replica.propose(b"acknowledged".to_vec()).unwrap();
    cluster.site(1).replica.change_members(&[2, 3], &[], BY).unwrap();
    cluster.ticks(8);
    assert_eq!(cluster.site(1).leads, None);
    assert!(cluster.blocks(2).contains(&&b"acknowledged"[..]));
    cluster.goes_on(&[2, 3]);
}

#[test]
fn a_change_needs_a_majority_that_is_there_and_somebody_to_lead() {
    let mut cluster = Cluster::led(3);
    let replica = |cluster: &mut Cluster| cluster.site(1).replica.change_members(&[1, 3], &[], BY);
    assert_eq!(
        cluster.site(2).replica.change_members(&[1, 2], &[], BY),
        Err(ChangeError::NotLeader)
    );
    assert_eq!(
        cluster.site(1).replica.change_members(&[1, 2, 3], &[64], BY),
        Err(ChangeError::NoSuchSite(64))
    );
    cluster.cut = vec![3];
    cluster.ticks(15);
    assert_eq!(replica(&mut cluster), Err(ChangeError::NoMajority), "3 is not there");
    cluster.cut.clear();
    cluster.ticks(5);
    replica(&mut cluster).unwrap();
    assert_eq!(replica(&mut cluster), Err(ChangeError::Busy), "one at a time");
    cluster.goes_on(&[1, 3]);
}

#[test]
fn the_next_leader_ends_a_change_that_the_last_one_left_open() {
    let mut cluster = Cluster::with_learner();
    cluster.site(1).replica.change_members(&[1, 2, 4], &[], BY).unwrap();
    // One message at a time, until the others have applied the joint state.
    while !cluster.members(2).is_joint() {
        cluster.step();
    }
    cluster.queue.clear();
    cluster.cut = vec![1];
    cluster.ticks(100);
    let leader = cluster.leader_of(&[2, 3, 4]).expect("both majorities are there");
    assert!(!cluster.members(leader).is_joint(), "it was left");
    cluster.goes_on(&[1, 2, 4]);
}

impl Cluster {
    /// One turn of every site and one message.
    fn step(&mut self) {
        for site in &mut self.sites {
            self.queue.extend(site.turn());
        }
        if let Some(message) = self.queue.pop_front()
            && !self.cut.contains(&message.from)
            && !self.cut.contains(&message.to)
        {
            let to = message.to;
            self.site(to).replica.receive(message);
        } else if self.queue.is_empty() {
            for site in &mut self.sites {
                site.replica.tick();
            }
        }
    }

    fn leader_of(&self, among: &[u64]) -> Option<u64> {
        among.iter().copied().find(|site| self.sites[*site as usize - 1].leads.is_some())
    }
}

/// A change, everybody crashed after each of its steps, with whatever of the last
/// writes got through; then everybody, or everybody but the old leader, goes on.
#[test]
fn crashes_at_every_point_of_a_change_leave_one_of_the_two_memberships() {
    const STEPS: usize = 40;
    let mut ended = [0, 0];
    for at in 0..STEPS {
        for lost in 0..3 {
            for old_leader_returns in [true, false] {
                let new = crashed(at, lost, old_leader_returns);
                ended[usize::from(new)] += 1;
            }
        }
    }
    assert!(ended[0] > 0 && ended[1] > 0, "both sides of the change were met: {ended:?}");
}

/// Whether the change had come so far that it stands.
fn crashed(at: usize, lost: usize, old_leader_returns: bool) -> bool {
    let mut cluster = Cluster::with_learner();
    cluster.site(1).replica.change_members(&[1, 2, 4], &[], BY).unwrap();
    cluster.site(1).replica.propose(b"meanwhile".to_vec()).unwrap();
    for _ in 0..at {
        cluster.step();
    }
    let acknowledged = cluster.blocks(1).contains(&&b"meanwhile"[..]);
    // The disks stop confirming; what is written may or may not have arrived.
    for site in &mut cluster.sites {
        site.stuck = true;
    }
    cluster.settle();
    cluster.queue.clear();
    for site in 1..=4 {
        let (durable, written) = {
            let site = cluster.site(site);
            (site.durable, site.log.len())
        };
        let kept = durable + (written - durable) * lost / 2;
        cluster.restart(site, kept);
    }
    if !old_leader_returns {
        cluster.cut = vec![1];
        cluster.ticks(300);
        cluster.cut.clear();
        let leader = cluster.leader_of(&[2, 3, 4]);
        assert!(leader.is_some(), "at {at}, {lost}: both majorities are there without site 1");
    }
    cluster.ticks(400);
    let leader = cluster.leader().expect("somebody leads");
    let new = cluster.members(leader).voters == 1 << 1 | 1 << 2 | 1 << 4;
    cluster.goes_on(if new { &[1, 2, 4] } else { &[1, 2, 3] });
    if acknowledged {
        assert!(cluster.blocks(2).contains(&&b"meanwhile"[..]), "at {at}, {lost}: lost");
    }
    new
}

#[test]
fn a_lone_site_grows_and_what_it_could_not_decide_alone_waits_after_a_restart() {
    let lone = |site| ReplicaConfig { voters: vec![1], ..config(site, 1) };
    let mut cluster = Cluster {
        sites: vec![Site::new(lone(1)), Site::new(lone(2))],
        queue: VecDeque::new(),
        cut: Vec::new(),
    };
    cluster.settle();
    cluster.site(1).replica.propose(b"alone".to_vec()).unwrap();
    cluster.ticks(3);
    cluster.seek(2, true);
    assert_eq!(cluster.blocks(2), [b"alone"]);
    cluster.cut = vec![2];
    cluster.site(1).replica.propose(b"undecided".to_vec()).unwrap();
    cluster.settle();
    let again = cluster.site(1).restarted(lone(1));
    *cluster.site(1) = again;
    assert_eq!(cluster.blocks(1), [b"alone"], "two of two have to have it");
    assert_eq!(cluster.members(1).voters, 1 << 1 | 1 << 2);
    cluster.cut.clear();
    cluster.ticks(100);
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!(cluster.blocks(2), [&b"alone"[..], b"undecided"]);
    // And back to one, which again decides alone.
    cluster.seek(2, false);
    cluster.cut = vec![2];
    cluster.site(1).replica.propose(b"alone again".to_vec()).unwrap();
    cluster.settle();
    let again = cluster.site(1).restarted(lone(1));
    assert_eq!(again.applied.last().map(|(_, _, block)| &block[..]), Some(&b"alone again"[..]));
}

#[test]
fn a_witness_votes_keeps_the_log_and_never_leads() {
    let witness = |site| ReplicaConfig {
        witnesses: vec![1],
        preference: preference_among(0, &[1, 2, 3], &[1]),
        ..config(site, 3)
    };
    let mut cluster = Cluster {
        sites: (1..=3).map(|site| Site::new(witness(site))).collect(),
        queue: VecDeque::new(),
        cut: Vec::new(),
    };
    cluster.ticks(30);
    assert_eq!(cluster.leader(), Some(2));
    // Its vote and its disk count.
    cluster.cut = vec![3];
    cluster.site(2).replica.propose(b"two".to_vec()).unwrap();
    cluster.settle();
    assert_eq!(cluster.blocks(2), [b"two"]);
    // Now only it has the block, besides the site that dies: it is elected for
    // its log, passes it on and hands over, without leading for the engine.
    cluster.cut = vec![2];
    let mut led = false;
    for _ in 0..200 {
        cluster.ticks(1);
        assert_eq!(cluster.site(1).leads, None);
        led |= cluster.site(3).leads.is_some();
    }
    assert!(led && cluster.site(3).leads.is_some());
    assert_eq!(cluster.blocks(3), [b"two"]);
    assert!(!cluster.site(3).replica.transfer(1));
    let only = cluster.site(3).replica.change_members(&[1], &[], BY);
    assert_eq!(only, Err(ChangeError::NoLeader));
}

#[test]
fn a_survivor_goes_on_alone_by_decree_and_new_sites_come_to_the_same_members() {
    for joint in [false, true] {
        let mut cluster = Cluster::with_more(2);
        cluster.site(1).replica.propose(b"acknowledged".to_vec()).unwrap();
        cluster.ticks(5);
        if joint {
            // The majority is lost in the middle of a change.
            cluster.seek(4, true);
            cluster.site(1).replica.change_members(&[1, 2, 4], &[], BY).unwrap();
            while !cluster.members(2).is_joint() {
                cluster.step();
            }
            cluster.queue.clear();
        }
        cluster.cut = vec![1, 3, 4];
        cluster.ticks(50);
        cluster.site(2).decree(joining(2));
        assert!(cluster.members(2).is_alone(2));
        cluster.settle();
        assert_eq!(cluster.leader_of(&[2]), Some(2));
        assert_eq!(cluster.blocks(2), [b"acknowledged"]);
        cluster.site(2).replica.propose(b"alone".to_vec()).unwrap();
        cluster.settle();
        assert_eq!(cluster.blocks(2), [&b"acknowledged"[..], b"alone"]);
        // A new site; those that were lost come back with their old logs.
        cluster.cut.clear();
        for _ in 0..100 {
            let stage = cluster.site(2).replica.seek_member(5, true, BY);
            assert!(stage.is_ok(), "{stage:?}");
            cluster.ticks(1);
        }
        assert_eq!(cluster.members(5), cluster.members(2));
        assert_eq!(cluster.members(2).voters, 1 << 2 | 1 << 5);
        assert_eq!(cluster.sites[4].applied, cluster.sites[1].applied);
        assert_eq!(cluster.leader_of(&[2, 5]), Some(2), "the old logs moved nobody");
        let used_up = cluster.site(2).replica.seek_member(3, true, BY);
        assert_eq!(used_up, Err(ChangeError::UsedUp(3)));
    }
}

#[test]
fn a_site_without_a_vote_is_not_forced() {
    let learner = Recovering::new(joining(4)).force_alone(1);
    assert_eq!(learner.unwrap_err(), ForceError::NotVoter(0));
    let witness = ReplicaConfig { witnesses: vec![1], ..joining(1) };
    let witness = Recovering::new(witness).force_alone(1);
    assert_eq!(witness.unwrap_err(), ForceError::Witness);
}

impl Site {
    /// Its process ends, and its log is forced to go on alone.
    fn decree(&mut self, config: ReplicaConfig) {
        let mut recovering = Recovering::new(config.clone());
        for append in &self.log[..self.durable] {
            match append {
                Append::Block(entry, chain) => {
                    recovering.block(entry.index, entry.term, *chain, &entry.data).map(drop)
                }
                Append::HardState(state) => recovering.hard_state(&state.encode()),
                Append::Base(_) | Append::Ticket(_) => unreachable!("not of this"),
            }
            .unwrap();
            while recovering.next_committed().is_some() {}
        }
        self.log.truncate(self.durable);
        self.log.extend(recovering.force_alone(9).unwrap());
        self.durable = self.log.len();
        *self = self.restarted(config);
    }
}

/// A site that is removed has the end of the change, which the leader lost, and is elected
/// with it. The others are sooner to write its first entry down.
#[test]
fn a_removed_site_that_was_elected_within_the_change_steps_down() {
    let mut cluster = Cluster::with_more(0);
    let joint = cluster.site(1).replica.last() + 1;
    cluster.site(1).replica.change_members(&[1, 2], &[], BY).unwrap();
    let is_end = |entry: &raft::eraftpb::Entry| entry.index > joint;
    cluster.settle_but(|message| message.to == 2 && message.entries.iter().any(is_end));
    assert_eq!(cluster.site(3).replica.last(), joint + 1);
    assert_eq!(cluster.site(2).replica.last(), joint);
    let begins = |append: &Append| match append {
        Append::Block(entry, _) => is_end(entry),
        _ => false,
    };
    let lost = cluster.site(1).log.iter().position(begins).expect("the leader wrote the end");
    cluster.restart(1, lost);
    for site in [2, 3] {
        let whole = cluster.site(site).log.len();
        cluster.restart(site, whole);
    }
    cluster.site(3).replica.campaign();
    for _ in 0..100 {
        if cluster.site(3).replica.is_elected() {
            break;
        }
        for site in &mut cluster.sites {
            cluster.queue.extend(site.turn());
        }
        if let Some(message) = cluster.queue.pop_front() {
            let to = message.to;
            cluster.site(to).replica.receive(message);
        }
    }
    assert!(cluster.site(3).replica.is_elected());
    cluster.site(3).stuck = true;
    cluster.settle();
    assert!(!cluster.members(3).contains(3), "the end of the change is committed");
    cluster.goes_on(&[1, 2]);
}
