//! How long a leader may act on the outside world.
//!
//! A leader that was cut off or stopped does not know that another has taken
//! over. It could go on sending to channels for as long as it likes, and what
//! it sends would arrive after others have concluded that nothing can. So it
//! sends only while a majority is known to have followed it a moment ago
//! (Gray and Cheriton, "Leases", 1989).
//!
//! Counted from when it *asked*, not from when the answer came: an answer may
//! have waited in a stopped process. Every append and heartbeat carries the
//! leader's clock as a mark, the answer brings the mark back; clocks of
//! different sites are never compared. Nothing else relies on it: reads have
//! their barrier, and who leads is decided by votes alone.

use raft::eraftpb::{Message, MessageType};

use super::members::{Members, has, sites};

/// Marks of one leader's term, or of the leader that is followed.
pub(super) struct Lease {
    length_us: u64,
    /// The latest mark given out: none that comes back can be younger.
    given: u64,
    /// Term of `back`.
    term: u64,
    /// Per site: the latest mark that came back.
    back: [u64; 64],
    /// While following: term, leader and its latest mark.
    heard: (u64, u64, u64),
}

impl Lease {
    pub(super) fn new(length_us: u64) -> Self {
        Self { length_us, given: 0, term: 0, back: [0; 64], heard: (0, 0, 0) }
    }

    /// A message came in and `leader` is followed or leads in `term` after it.
    pub(super) fn received(&mut self, head: &Head, site: u64, leader: u64, term: u64) {
        if head.term != term {
            return;
        }
        if is_request(head.kind) && head.from == leader {
            if (self.heard.0, self.heard.1) != (term, leader) {
                self.heard = (term, leader, 0);
            }
            self.heard.2 = self.heard.2.max(head.mark);
        } else if is_answer(head.kind) && leader == site {
            self.enter(term);
            if let Some(back) = self.back.get_mut(head.from as usize) {
                *back = (*back).max(head.mark.min(self.given));
            }
        }
    }

    /// Marks a message that leaves now.
    pub(super) fn mark(&mut self, message: &mut Message, now_us: u64) {
        if is_request(message.get_msg_type()) {
            self.given = self.given.max(now_us);
            message.deprecated_priority = now_us;
        } else if is_answer(message.get_msg_type()) {
            let (term, leader, mark) = self.heard;
            if (message.term, message.to) == (term, leader) {
                message.deprecated_priority = mark;
            }
        }
    }

    /// Until when the leader of `term` may act, by its own clock: 0 when no
    /// majority has answered yet, for ever when it needs nobody.
    pub(super) fn until(&self, site: u64, term: u64, members: &Members) -> u64 {
        let of = |set: u64| if set == 0 { u64::MAX } else { self.majority(site, term, set) };
        match of(members.voters).min(of(members.outgoing)) {
            0 => 0,
            mark => mark.saturating_add(self.length_us),
        }
    }

    /// The latest mark that a majority of `set` has given back.
    fn majority(&self, site: u64, term: u64, set: u64) -> u64 {
        let needed = set.count_ones() as usize / 2 + 1 - usize::from(has(set, site));
        if needed == 0 {
            return u64::MAX;
        }
        if term != self.term {
            return 0;
        }
        let others = sites(set).filter(|other| *other != site);
        let mut marks = [0; 64];
        let mut count = 0;
        for (slot, other) in marks.iter_mut().zip(others) {
            *slot = self.back.get(other as usize).copied().unwrap_or(0);
            count += 1;
        }
        let marks = &mut marks[..count];
        marks.sort_unstable_by(|a, b| b.cmp(a));
        marks.get(needed - 1).copied().unwrap_or(0)
    }

    fn enter(&mut self, term: u64) {
        if term != self.term {
            self.term = term;
            self.back = [0; 64];
        }
    }
}

/// What the lease needs of a message that the library takes over.
pub(super) struct Head {
    kind: MessageType,
    from: u64,
    term: u64,
    mark: u64,
}

impl Head {
    pub(super) fn of(message: &Message) -> Self {
        Self {
            kind: message.get_msg_type(),
            from: message.from,
            term: message.term,
            // A field that the library reads in votes only.
            mark: message.deprecated_priority,
        }
    }
}

/// Whether a message carries a mark, there or back.
pub(super) fn is_marked(kind: MessageType) -> bool {
    is_request(kind) || is_answer(kind)
}

fn is_request(kind: MessageType) -> bool {
    use MessageType::{MsgAppend, MsgHeartbeat, MsgSnapshot};
    matches!(kind, MsgAppend | MsgHeartbeat | MsgSnapshot)
}

fn is_answer(kind: MessageType) -> bool {
    use MessageType::{MsgAppendResponse, MsgHeartbeatResponse};
    matches!(kind, MsgAppendResponse | MsgHeartbeatResponse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
        let mut message = Message::default();
        message.set_msg_type(kind);
        (message.from, message.to, message.term) = (from, to, term);
        message
    }

    /// Site 1 asks a site at `asked`; the answer comes back to it.
    fn round(leader: &mut Lease, of: u64, term: u64, asked: u64) {
        let mut follower = Lease::new(100);
        let mut ask = message(MessageType::MsgHeartbeat, 1, of, term);
        leader.mark(&mut ask, asked);
        follower.received(&Head::of(&ask), of, 1, term);
        let mut answer = message(MessageType::MsgHeartbeatResponse, of, 1, term);
        follower.mark(&mut answer, 77);
        leader.received(&Head::of(&answer), 1, 1, term);
    }

    #[test]
    fn a_majority_that_answered_counts_from_when_it_was_asked() {
        let (three, five) = (Members::new(&[1, 2, 3]), Members::new(&[1, 2, 3, 4, 5]));
        let mut lease = Lease::new(100);
        assert_eq!(lease.until(1, 4, &three), 0, "nobody has answered");
        round(&mut lease, 2, 4, 1_000);
        assert_eq!(lease.until(1, 4, &three), 1_100);
        assert_eq!(lease.until(1, 4, &five), 0, "one of five and itself are no majority");
        round(&mut lease, 5, 4, 1_050);
        assert_eq!(lease.until(1, 4, &five), 1_100, "the older of the two");
        assert_eq!(lease.until(1, 4, &three), 1_100, "no member's answer does not count");
        assert_eq!(lease.until(1, 5, &three), 0, "nor one of another term");
    }

    #[test]
    fn who_needs_nobody_may_act_for_ever() {
        let lease = Lease::new(100);
        assert_eq!(lease.until(1, 4, &Members::new(&[1])), u64::MAX);
        assert_eq!(lease.until(1, 4, &Members::new(&[2])), 0, "on its way out it needs the others");
    }

    #[test]
    fn during_a_change_of_members_both_majorities_are_needed() {
        let mut lease = Lease::new(100);
        let joint = Members { voters: 0b1_1100, outgoing: 0b1110, ..Members::default() };
        round(&mut lease, 2, 4, 1_000);
        assert_eq!(lease.until(1, 4, &joint), 0, "2 alone is no majority of 2, 3 and 4");
        round(&mut lease, 4, 4, 1_010);
        assert_eq!(lease.until(1, 4, &joint), 1_100, "2 and 4 are, and 1 and 2 of 1, 2 and 3");
        round(&mut lease, 4, 4, 1_020);
        round(&mut lease, 3, 4, 1_030);
        assert_eq!(lease.until(1, 4, &joint), 1_120);
    }

    #[test]
    fn marks_of_other_terms_and_invented_ones_do_not_count() {
        let three = Members::new(&[1, 2, 3]);
        let mut lease = Lease::new(100);
        round(&mut lease, 2, 4, 1_000);
        let mut late = message(MessageType::MsgAppendResponse, 2, 1, 4);
        late.deprecated_priority = u64::MAX;
        lease.received(&Head::of(&late), 1, 1, 4);
        assert_eq!(lease.until(1, 4, &three), 1_100, "no younger than what was given out");
        lease.received(&Head::of(&late), 1, 1, 5);
        assert_eq!(lease.until(1, 5, &three), 0);
        let mut follower = Lease::new(100);
        let mut ask = message(MessageType::MsgAppend, 1, 2, 4);
        lease.mark(&mut ask, 1_200);
        follower.received(&Head::of(&ask), 2, 1, 4);
        let mut answer = message(MessageType::MsgAppendResponse, 2, 3, 5);
        follower.mark(&mut answer, 9);
        assert_eq!(answer.deprecated_priority, 0, "an answer to another leader carries nothing");
    }
}
