//! The sites that hold a shard's log, and how they change.
//!
//! A change is an entry of the log like a block. In memory and between sites
//! it is what the consensus library reads; in the log it is a block with one
//! `members` record, so that dumps show it and recovery can tell it from a
//! block of payments. The rules are the library's ([`raft::Changer`]): joint
//! consensus for every change of voters. Pure. Tested by round trips here and
//! by scenes in `tests`.
//!
//! The number of a site that was removed is never used again: its disk may come
//! back with votes and blocks that the others have moved on from.

use bytes::Bytes;
use protobuf::Message as _;
use protocol::id::ShortText;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
use raft::{Changer, ProgressTracker};

use crate::engine::record::{self, Record, Records, SITES_END};

/// Most sites of a change, and of a shard.
const SITES_MAX: usize = SITES_END as usize - 1;

/// Who holds the shard: sets of sites, a bit per site number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Sites that vote, and will go on.
    pub voters: u64,
    /// While a change is under way: the voters before it. A majority of both is
    /// needed then.
    pub outgoing: u64,
    /// Sites that get the log and have no vote.
    pub learners: u64,
    /// Voters that become learners when the change ends.
    pub learners_next: u64,
    /// The change under way ends by itself.
    pub auto_leave: bool,
    /// Sites that were members once: their numbers are used up.
    pub removed: u64,
}

impl Members {
    /// Bytes of encoded members.
    pub const LEN: usize = 41;

    /// The members before the first entry.
    pub fn new(voters: &[u64]) -> Self {
        Self { voters: mask(voters), ..Self::default() }
    }

    /// Whether a change of voters is under way.
    pub fn is_joint(&self) -> bool {
        self.outgoing != 0
    }

    /// Whether the site votes.
    pub fn is_voter(&self, site: u64) -> bool {
        has(self.voters | self.outgoing, site)
    }

    /// Whether the site gets the log, with a vote or without.
    pub fn contains(&self, site: u64) -> bool {
        has(self.all(), site)
    }

    /// Whether the site alone decides.
    pub fn is_alone(&self, site: u64) -> bool {
        self.voters == bit(site) && self.outgoing == 0
    }

    fn all(&self) -> u64 {
        self.voters | self.outgoing | self.learners | self.learners_next
    }

    /// As the library keeps them.
    pub fn conf_state(&self) -> ConfState {
        let mut state = ConfState::default();
        state.set_voters(sites(self.voters).collect());
        state.set_voters_outgoing(sites(self.outgoing).collect());
        state.set_learners(sites(self.learners).collect());
        state.set_learners_next(sites(self.learners_next).collect());
        state.auto_leave = self.auto_leave;
        state
    }

    /// What the library says that they are from now on.
    #[must_use]
    pub(super) fn become_state(&self, state: &ConfState) -> Self {
        let next = Self {
            voters: mask(state.get_voters()),
            outgoing: mask(state.get_voters_outgoing()),
            learners: mask(state.get_learners()),
            learners_next: mask(state.get_learners_next()),
            auto_leave: state.auto_leave,
            removed: self.removed,
        };
        let gone = self.all() & !next.all();
        Self { removed: (self.removed | gone) & !next.all(), ..next }
    }

    /// The members after a change, by the library's rules. One that does not fit
    /// changes nothing, at every site alike.
    #[must_use]
    pub fn after(&self, change: &ConfChangeV2) -> Self {
        let Some(tracker) = self.tracker() else { return *self };
        let mut changer = Changer::new(&tracker);
        let changed = if change.leave_joint() {
            changer.leave_joint()
        } else if let Some(auto_leave) = change.enter_joint() {
            changer.enter_joint(auto_leave, change.get_changes())
        } else {
            changer.simple(change.get_changes())
        };
        match changed {
            Ok((conf, _)) => self.become_state(&conf.to_conf_state()),
            Err(_) => *self,
        }
    }

    /// The library's view of them, built up by its own steps.
    fn tracker(&self) -> Option<ProgressTracker> {
        let mut tracker = ProgressTracker::new(1);
        let before = if self.is_joint() { self.outgoing } else { self.voters };
        let steps = sites(before).map(|site| single(site, ConfChangeType::AddNode));
        let learners = sites(self.learners).map(|s| single(s, ConfChangeType::AddLearnerNode));
        for step in steps.chain(learners) {
            let (conf, changes) = Changer::new(&tracker).simple(&[step]).ok()?;
            tracker.apply_conf(conf, changes, 1);
        }
        if self.is_joint() {
            let gone = self.outgoing & !self.voters & !self.learners_next;
            let steps: Vec<_> = sites(self.voters & !self.outgoing)
                .map(|site| single(site, ConfChangeType::AddNode))
                .chain(sites(gone).map(|site| single(site, ConfChangeType::RemoveNode)))
                .chain(
                    sites(self.learners_next)
                        .map(|site| single(site, ConfChangeType::AddLearnerNode)),
                )
                .collect();
            let entered = Changer::new(&tracker).enter_joint(self.auto_leave, &steps);
            let (conf, changes) = entered.ok()?;
            tracker.apply_conf(conf, changes, 1);
        }
        Some(tracker)
    }

    /// The change that makes `voters` and `learners` out of these members.
    /// `None` when they are so already.
    pub(super) fn change_to(&self, voters: u64, learners: u64, by: By) -> Option<ConfChangeV2> {
        let steps = [
            (voters & !self.voters, ConfChangeType::AddNode),
            (learners & !self.learners, ConfChangeType::AddLearnerNode),
            (self.all() & !voters & !learners, ConfChangeType::RemoveNode),
        ];
        let steps: Vec<_> = steps
            .into_iter()
            .flat_map(|(set, kind)| sites(set).map(move |site| single(site, kind)))
            .collect();
        if steps.is_empty() {
            return None;
        }
        let mut change = ConfChangeV2::default();
        // Learners may come and go in one step; voters only through a joint
        // majority, also where one step would do: one way, always the same.
        if voters != self.voters {
            change.set_transition(ConfChangeTransition::Implicit);
        }
        change.set_changes(steps.into());
        change.context = by.encode();
        Some(change)
    }

    /// Little-endian, for checkpoints.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let words = [self.voters, self.outgoing, self.learners, self.learners_next, self.removed];
        for (chunk, word) in out.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out[Self::LEN - 1] = u8::from(self.auto_leave);
        out
    }

    /// `None` when the bytes are no members: wrong length, or sets that the
    /// library would not have.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let (words, [leave]) = bytes.as_chunks::<8>() else { return None };
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().filter(|set| set & 1 == 0);
        let members = Self {
            voters: next()?,
            outgoing: next()?,
            learners: next()?,
            learners_next: next()?,
            removed: next()?,
            auto_leave: *leave == 1,
        };
        let built = members.tracker()?.conf().to_conf_state();
        let whole = members.become_state(&built) == members && *leave <= 1;
        (whole && members.voters != 0).then_some(members)
    }
}

/// Who asked for a change, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct By {
    /// Operator; empty: the replicas themselves.
    pub operator: ShortText,
    /// Unix microseconds.
    pub at_us: u64,
    /// Without a majority.
    pub forced: bool,
}

impl By {
    /// In the context of a change. A change by the replicas has none: the entry
    /// that the library appends by itself is empty.
    fn encode(&self) -> Bytes {
        if *self == Self::default() {
            return Bytes::new();
        }
        let mut out = self.at_us.to_le_bytes().to_vec();
        out.push(u8::from(self.forced));
        out.extend_from_slice(self.operator.as_bytes());
        out.into()
    }

    fn decode(context: &[u8]) -> Option<Self> {
        if context.is_empty() {
            return Some(Self::default());
        }
        let (at, rest) = context.split_first_chunk::<8>()?;
        let (forced, operator) = rest.split_first()?;
        let operator = ShortText::new(operator)?;
        Some(Self { operator, at_us: u64::from_le_bytes(*at), forced: *forced != 0 })
    }
}

/// A change from an entry's data. `None` when it is none that a replica makes.
pub(super) fn parse(data: &[u8]) -> Option<ConfChangeV2> {
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(data).ok()?;
    let legal = |step: &ConfChangeSingle| (1..u64::from(SITES_END)).contains(&step.node_id);
    let whole = change.get_changes().len() <= SITES_MAX
        && change.get_changes().iter().all(legal)
        && By::decode(&change.context).is_some();
    // Only what survives the log: every site must keep the same.
    (whole && of_block(&block(&change)).as_ref() == Some(&change)).then_some(change)
}

/// A change as an entry's data. The empty change is empty.
pub(super) fn data(change: &ConfChangeV2) -> Bytes {
    // Writing to memory cannot fail for a message without required fields.
    change.write_to_bytes().unwrap_or_default().into()
}

/// The block that stands for a change in the log.
pub(super) fn block(change: &ConfChangeV2) -> Bytes {
    let by = By::decode(&change.context).unwrap_or_default();
    let changes: Vec<_> = change
        .get_changes()
        .iter()
        .map(|step| [step.get_change_type() as u8, step.node_id as u8])
        .collect();
    let record = Record::Members(record::Members {
        operator: by.operator,
        forced: by.forced,
        transition: change.get_transition() as u8,
        changes: &changes,
    });
    let mut block = Vec::new();
    record.append(by.at_us, &mut block);
    block.into()
}

/// The change that a block stands for; `None` for a block of payments.
pub(super) fn of_block(block: &[u8]) -> Option<ConfChangeV2> {
    let mut records = Records::new(block).ok().filter(|_| record::is_members(block))?;
    let stamped = records.next()?.ok()?;
    let Record::Members(members) = stamped.record else { return None };
    let by = By { operator: members.operator, at_us: stamped.at_us, forced: members.forced };
    let mut change = ConfChangeV2 { context: by.encode(), ..Default::default() };
    change.set_transition(match members.transition {
        0 => ConfChangeTransition::Auto,
        1 => ConfChangeTransition::Implicit,
        _ => ConfChangeTransition::Explicit,
    });
    let steps = members.changes.iter().map(|[kind, site]| {
        let kind = match *kind {
            record::members::VOTER => ConfChangeType::AddNode,
            record::members::REMOVED => ConfChangeType::RemoveNode,
            _ => ConfChangeType::AddLearnerNode,
        };
        single(u64::from(*site), kind)
    });
    change.set_changes(steps.collect::<Vec<_>>().into());
    Some(change)
}

fn single(site: u64, kind: ConfChangeType) -> ConfChangeSingle {
    let mut single = ConfChangeSingle { node_id: site, ..Default::default() };
    single.set_change_type(kind);
    single
}

/// The bit of a site; none for a number that no site has.
pub(super) fn bit(site: u64) -> u64 {
    if (1..u64::from(SITES_END)).contains(&site) { 1 << site } else { 0 }
}

pub(super) fn has(set: u64, site: u64) -> bool {
    set & bit(site) != 0
}

pub(super) fn mask(sites: &[u64]) -> u64 {
    sites.iter().fold(0, |set, site| set | bit(*site))
}

/// The sites of a set, ascending.
pub fn sites(set: u64) -> impl Iterator<Item = u64> {
    (1..u64::from(SITES_END)).filter(move |site| has(set, *site))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by(operator: &str) -> By {
        By { operator: ShortText::new(operator.as_bytes()).unwrap(), at_us: 17, forced: false }
    }

    fn steps(members: Members, to: &[(&[u64], &[u64])]) -> Members {
        to.iter().fold(members, |members, (voters, learners)| {
            let change = members.change_to(mask(voters), mask(learners), by("op")).unwrap();
            let joint = members.after(&change);
            if joint.is_joint() { joint.after(&ConfChangeV2::default()) } else { joint }
        })
    }

    #[test]
    fn a_site_is_replaced_and_its_number_used_up() {
        let members = steps(
            Members::new(&[1, 2, 3]),
            &[(&[1, 2, 3], &[4]), (&[1, 2, 4], &[]), (&[1, 2], &[4])],
        );
        let wanted = Members { learners: mask(&[4]), removed: mask(&[3]), ..Members::new(&[1, 2]) };
        assert_eq!(members, wanted);
        assert!(members.contains(4) && !members.is_voter(4) && !members.contains(3));
        assert_eq!(members.change_to(mask(&[1, 2]), mask(&[4]), by("op")), None);
    }

    #[test]
    fn voters_change_through_a_joint_majority_of_both() {
        let members = Members::new(&[1, 2, 3]);
        let change = members.change_to(mask(&[1, 2]), 0, by("op")).unwrap();
        let joint = members.after(&change);
        assert_eq!((joint.voters, joint.outgoing), (mask(&[1, 2]), mask(&[1, 2, 3])));
        assert!(joint.auto_leave && joint.contains(3) && joint.is_voter(3));
        assert_eq!(joint.after(&change), joint, "one change at a time");
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let members = Members::new(&[1]);
        let change = members.change_to(0, mask(&[1]), by("op")).unwrap();
        assert_eq!(members.after(&change), members, "somebody has to vote");
        assert_eq!(members.after(&ConfChangeV2::default()), members, "nothing to leave");
    }

    #[test]
    fn blocks_of_payments_are_no_changes() {
        let mut block = Vec::new();
        Record::Delivered { event_id: 7, taken: true }.append(5, &mut block);
        assert_eq!(of_block(&block), None);
        assert_eq!(of_block(b""), None);
        assert_eq!(of_block(&[b'C'; 40]), None);
    }

    fn members() -> impl Strategy<Value = Members> {
        // Any way that a few changes may take, ended or not.
        let change = (any::<u8>(), any::<u8>(), any::<bool>());
        prop::collection::vec(change, 0..6).prop_map(|changes| {
            changes.iter().fold(Members::new(&[1, 2, 3]), |members, (voters, learners, leave)| {
                let voters = u64::from(*voters) << 1;
                let learners = u64::from(*learners) << 1 & !voters;
                let Some(change) = members.change_to(voters, learners, By::default()) else {
                    return members;
                };
                let next = members.after(&change);
                if *leave { next.after(&ConfChangeV2::default()) } else { next }
            })
        })
    }

    proptest! {
        #[test]
        fn members_survive_encoding(members in members()) {
            prop_assert_eq!(Members::decode(&members.encode()), Some(members));
        }

        #[test]
        fn noise_is_no_members(noise in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(members) = Members::decode(&noise) {
                prop_assert_eq!(&members.encode()[..], &noise[..]);
            }
        }

        #[test]
        fn a_change_survives_the_log_and_the_wire(
            members in members(),
            voters in 1_u8..,
            operator in "[ -~]{0,32}",
            at_us: u64,
            forced: bool,
        ) {
            let by = By { operator: ShortText::new(operator.as_bytes()).unwrap(), at_us, forced };
            let to = u64::from(voters) << 1;
            if let Some(change) = members.change_to(to, 0, by) {
                prop_assert_eq!(of_block(&block(&change)), Some(change.clone()));
                prop_assert_eq!(parse(&data(&change)), Some(change));
            }
        }

        #[test]
        fn noise_is_no_change(noise in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(change) = parse(&noise) {
                prop_assert_eq!(of_block(&block(&change)), Some(change));
            }
        }
    }

    #[test]
    fn the_end_of_a_change_is_an_empty_entry() {
        let leave = ConfChangeV2::default();
        assert!(data(&leave).is_empty());
        assert_eq!(parse(b""), Some(leave.clone()));
        assert_eq!(of_block(&block(&leave)), Some(leave));
    }
}
