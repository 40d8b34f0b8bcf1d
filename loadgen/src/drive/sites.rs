//! What the driver of several sites knows beyond its table of requests: who
//! leads which shard, which site is silent, and where copies of a request are.
//!
//! Pure: times come in, decisions go out. One site has none of it. Tested for
//! what it learns, what it calls silent, and that copies are accounted for.

use super::slots::NO_LINK;
use crate::measure::Business;
use protocol::code::Code;
use protocol::message::Leader;
use std::collections::HashMap;

/// A shard without any answer for this long, with requests older than it, is
/// taken for led nowhere: its requests go to other sites as well.
pub(super) const SHARD_SILENT_NS: u64 = 60_000_000;
/// A single request without answer for this long goes to another site as well.
pub(super) const REQUEST_SILENT_NS: u64 = 250_000_000;
/// A link that brings no packet at all for this long after something was written.
/// Packets are acknowledged within 5 ms, so a process that runs is heard of.
pub(super) const LINK_QUIET_NS: u64 = 25_000_000;
/// A quiet link is given up and connected anew after this.
pub(super) const LINK_GONE_NS: u64 = 500_000_000;
/// A watch that comes this late says that the generator stood still: what looks
/// silent may wait in its own sockets.
const WATCH_LATE_NS: u64 = 30_000_000;
/// Pause before a request goes out again; doubled for each further try.
const PAUSE_NS: u64 = 2_000_000;
const PAUSE_DOUBLINGS: u8 = 3;
/// Waiting doubles as often for copies sent on suspicion.
const SUSPICION_DOUBLINGS: u8 = 3;
/// Answers that pay for one copy on mere slowness: under overload copies stay few.
const ANSWERS_PER_COPY: u32 = 10;
const COPIES_SAVED_MAX: u32 = 1_000;
/// Most second answers that are waited for.
const ECHOES_MAX: usize = 1 << 16;

/// What is known of a shard.
#[derive(Clone, Copy, Default)]
struct Shard {
    /// The site that leads it, 0 when not known.
    leader: u8,
    /// When that was learned: answers to older requests do not unlearn it.
    learned_ns: u64,
    /// Of the newest notice.
    term: u64,
    /// A site that did not answer for it lately, 0 for none.
    avoid: u8,
    /// When it was last answered.
    answered_ns: u64,
}

/// What is known of a request in flight beside its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extra {
    /// Its shard.
    pub(super) shard: u16,
    /// Link that carries an older copy.
    pub(super) other: u16,
    /// Times it was sent again.
    pub(super) tries: u8,
    /// When it was last sent.
    pub(super) last_ns: u64,
}

/// The first answer to a request of which another copy is still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    /// Link that carries the copy.
    pub(super) link: u16,
    /// First level of the first answer.
    pub(super) code: Code,
    /// Second level of the first answer.
    pub(super) state: Business,
    /// Flags that it was recorded with.
    pub(super) flags: u8,
}

/// A link's signs of life.
#[derive(Clone, Copy, Debug, Default)]
struct Pulse {
    packets: u64,
    quiet_since_ns: Option<u64>,
}

/// Knowledge about several sites.
pub(super) struct Sites {
    shards: Vec<Shard>,
    extras: Vec<Extra>,
    echoes: HashMap<u64, Echo>,
    pulses: Vec<Pulse>,
    watched_ns: u64,
    saved: u32,
    answers: u32,
}

impl Sites {
    /// Nothing known yet.
    pub(super) fn new(shards: u16, slots: usize, links: usize) -> Self {
        let none = Extra { shard: 0, other: NO_LINK, tries: 0, last_ns: 0 };
        Self {
            shards: vec![Shard::default(); shards.into()],
            extras: vec![none; slots],
            echoes: HashMap::new(),
            pulses: vec![Pulse::default(); links],
            watched_ns: 0,
            saved: 0,
            answers: 0,
        }
    }

    /// A request takes the slot at `index`.
    pub(super) fn begin(&mut self, index: u32, shard: u16, now_ns: u64) {
        self.extras[index as usize] = Extra { shard, other: NO_LINK, tries: 0, last_ns: now_ns };
    }

    /// What is known of the request at `index`.
    pub(super) fn extra(&mut self, index: u32) -> &mut Extra {
        &mut self.extras[index as usize]
    }

    /// The site that leads a shard, 0 when not known.
    pub(super) fn leader(&self, shard: u16) -> u8 {
        self.shards[usize::from(shard)].leader
    }

    /// The site not to ask for a shard, 0 for none.
    pub(super) fn avoid(&self, shard: u16) -> u8 {
        self.shards[usize::from(shard)].avoid
    }

    /// A site told who leads a shard. Tells who led it before, or fell silent
    /// doing so, when that is news.
    pub(super) fn told(&mut self, notice: Leader, now_ns: u64) -> Option<u8> {
        let shard = self.shards.get_mut(usize::from(notice.shard))?;
        if notice.term <= shard.term {
            return None;
        }
        let before = if shard.leader == 0 { shard.avoid } else { shard.leader };
        let answered_ns = shard.answered_ns;
        let (leader, term) = (notice.site, notice.term);
        *shard = Shard { leader, learned_ns: now_ns, term, avoid: 0, answered_ns };
        Some(before)
    }

    /// A shard's request, sent last at `sent_ns`, was carried out by `site`, which
    /// names the leader or, with 0, itself.
    pub(super) fn answered(&mut self, shard: u16, site: u8, hint: u8, sent_ns: u64, now_ns: u64) {
        self.answers += 1;
        if self.answers == ANSWERS_PER_COPY {
            self.answers = 0;
            self.saved = (self.saved + 1).min(COPIES_SAVED_MAX);
        }
        let shard = &mut self.shards[usize::from(shard)];
        shard.answered_ns = now_ns;
        let leader = if hint == 0 { site } else { hint };
        if leader != shard.leader && sent_ns >= shard.learned_ns {
            shard.leader = leader;
            shard.learned_ns = now_ns;
        }
        if shard.leader == leader {
            shard.avoid = 0;
        }
    }

    /// A shard's request was not carried out by `site`, which names the leader or,
    /// with 0, knows none.
    pub(super) fn refused(&mut self, shard: u16, site: u8, hint: u8, sent_ns: u64, now_ns: u64) {
        let shard = &mut self.shards[usize::from(shard)];
        if sent_ns < shard.learned_ns {
            return;
        }
        if hint != 0 && hint != site {
            shard.leader = hint;
            shard.avoid = 0;
            shard.learned_ns = now_ns;
        } else {
            shard.avoid = site;
            if shard.leader == site {
                shard.leader = 0;
            }
        }
    }

    /// Shards believed to be led at a site that fell silent are led nowhere known.
    pub(super) fn site_lost(&mut self, site: u8) {
        for shard in self.shards.iter_mut().filter(|shard| shard.leader == site) {
            shard.leader = 0;
            shard.avoid = site;
        }
    }

    /// The pause before the request at `index` goes out again, which is counted.
    pub(super) fn pause(&mut self, index: u32) -> u64 {
        let extra = &mut self.extras[index as usize];
        let pause_ns = PAUSE_NS << extra.tries.min(PAUSE_DOUBLINGS);
        extra.tries = extra.tries.saturating_add(1);
        pause_ns
    }

    /// Begins a look around. False: the generator itself stood still, so that
    /// nothing may be called silent this time.
    pub(super) fn watch(&mut self, now_ns: u64) -> bool {
        let late = now_ns.saturating_sub(self.watched_ns) > WATCH_LATE_NS;
        self.watched_ns = now_ns;
        !late
    }

    /// Something was written on a link.
    pub(super) fn wrote(&mut self, link: usize, now_ns: u64) {
        self.pulses[link].quiet_since_ns.get_or_insert(now_ns);
    }

    /// For how long a link that has brought `packets` so far is quiet.
    pub(super) fn quiet_ns(&mut self, link: usize, packets: u64, now_ns: u64) -> u64 {
        let pulse = &mut self.pulses[link];
        if packets != pulse.packets {
            *pulse = Pulse { packets, quiet_since_ns: None };
        }
        pulse.quiet_since_ns.map_or(0, |since| now_ns.saturating_sub(since))
    }

    /// A link was lost or connected anew.
    pub(super) fn link_reset(&mut self, link: usize) {
        self.pulses[link] = Pulse::default();
        self.echoes.retain(|_, echo| usize::from(echo.link) != link);
    }

    /// Shards that look led nowhere: `oldest` holds, per shard, when the request
    /// that waits longest was last sent. Their leader is forgotten.
    pub(super) fn silent_shards(&mut self, oldest: &[u64], now_ns: u64) -> Vec<bool> {
        let before = now_ns.saturating_sub(SHARD_SILENT_NS);
        let silent = |(shard, oldest): (&mut Shard, &u64)| {
            let silent = *oldest <= before && shard.answered_ns <= before;
            if silent && shard.leader != 0 {
                shard.avoid = std::mem::take(&mut shard.leader);
            }
            silent
        };
        self.shards.iter_mut().zip(oldest).map(silent).collect()
    }

    /// Whether the request at `index` has waited long enough for a copy. One on
    /// mere slowness, of a shard that is answered, takes from a bounded budget.
    pub(super) fn copy_due(&mut self, index: u32, silent: bool, now_ns: u64) -> bool {
        let extra = self.extras[index as usize];
        let patience = if silent { SHARD_SILENT_NS } else { REQUEST_SILENT_NS };
        let patience = patience << extra.tries.min(SUSPICION_DOUBLINGS);
        if now_ns.saturating_sub(extra.last_ns) < patience {
            return false;
        }
        if !silent {
            let Some(left) = self.saved.checked_sub(1) else { return false };
            self.saved = left;
        }
        true
    }

    /// A request was answered while a copy of it is under way. False: too many
    /// are, and this one is forgotten.
    pub(super) fn expect_echo(&mut self, n: u64, echo: Echo) -> bool {
        let room = self.echoes.len() < ECHOES_MAX;
        if room {
            self.echoes.insert(n, echo);
        }
        room
    }

    /// The first answer to request `n`, if `link` carried its other copy.
    pub(super) fn take_echo(&mut self, n: u64, link: usize) -> Option<Echo> {
        let echo = *self.echoes.get(&n)?;
        (usize::from(echo.link) == link).then(|| self.echoes.remove(&n)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::code::OrderState;

    const MS: u64 = 1_000_000;

    fn sites() -> Sites {
        Sites::new(3, 8, 2)
    }

    #[test]
    fn leaders_are_learned_from_hints_and_from_answers_without_one() {
        let mut sites = sites();
        sites.answered(1, 2, 0, 0, MS);
        assert_eq!((sites.leader(0), sites.leader(1)), (0, 2));
        sites.answered(1, 2, 3, MS, 2 * MS);
        assert_eq!(sites.leader(1), 3);
        sites.refused(1, 3, 1, 3 * MS, 4 * MS);
        assert_eq!(sites.leader(1), 1);
        sites.refused(1, 1, 0, 5 * MS, 6 * MS);
        assert_eq!((sites.leader(1), sites.avoid(1)), (0, 1));
    }

    #[test]
    fn old_answers_do_not_unlearn_a_new_leader() {
        let mut sites = sites();
        sites.answered(0, 1, 0, 0, MS);
        sites.refused(0, 1, 2, 5 * MS, 6 * MS);
        sites.answered(0, 1, 0, 4 * MS, 7 * MS);
        sites.refused(0, 1, 3, 4 * MS, 7 * MS);
        assert_eq!(sites.leader(0), 2);
    }

    #[test]
    fn notices_count_by_term_and_name_the_one_before() {
        let mut sites = sites();
        let leader = |site, term| Leader { shard: 1, site, term };
        assert_eq!(sites.told(Leader { shard: 3, site: 1, term: 1 }, MS), None, "no such shard");
        assert_eq!(sites.told(leader(2, 4), MS), Some(0));
        assert_eq!(sites.told(leader(3, 5), 5 * MS), Some(2));
        assert_eq!(
            (sites.told(leader(2, 4), 6 * MS), sites.told(leader(3, 5), 6 * MS)),
            (None, None)
        );
        sites.refused(1, 3, 2, 4 * MS, 6 * MS);
        assert_eq!(sites.leader(1), 3, "asked before the notice");
        sites.site_lost(3);
        assert_eq!((sites.leader(1), sites.avoid(1)), (0, 3));
        assert_eq!(sites.told(leader(1, 6), 7 * MS), Some(3), "what was open there moves");
        assert_eq!((sites.leader(1), sites.avoid(1)), (1, 0));
    }

    #[test]
    fn a_link_is_quiet_from_what_it_was_asked_on() {
        let mut sites = sites();
        assert_eq!(sites.quiet_ns(0, 5, MS), 0);
        sites.wrote(0, 2 * MS);
        sites.wrote(0, 30 * MS);
        assert_eq!(sites.quiet_ns(0, 5, 50 * MS), 48 * MS);
        assert_eq!(sites.quiet_ns(0, 6, 51 * MS), 0);
        assert_eq!(sites.quiet_ns(0, 6, 500 * MS), 0, "nothing asked, nothing owed");
    }

    #[test]
    fn a_generator_that_stood_still_blames_nobody() {
        let mut sites = sites();
        assert!(!sites.watch(1_000 * MS));
        assert!(sites.watch(1_010 * MS));
        assert!(!sites.watch(1_100 * MS));
    }

    #[test]
    fn a_shard_is_silent_only_without_answers_and_with_waiting_requests() {
        let mut sites = sites();
        for shard in 0..3 {
            sites.answered(shard, 1, 0, 0, 100 * MS);
        }
        sites.answered(2, 1, 0, 0, 190 * MS);
        // Waiting since 90 ms, nothing waiting, waiting but answered lately.
        let silent = sites.silent_shards(&[90 * MS, u64::MAX, 90 * MS], 210 * MS);
        assert_eq!(silent, [true, false, false]);
        assert_eq!((sites.leader(0), sites.avoid(0)), (0, 1));
        assert_eq!((sites.leader(1), sites.leader(2)), (1, 1));
        sites.answered(0, 2, 0, 200 * MS, 220 * MS);
        assert_eq!((sites.leader(0), sites.avoid(0)), (2, 0));
    }

    #[test]
    fn copies_on_slowness_have_a_budget_and_copies_on_silence_have_none() {
        let mut sites = sites();
        sites.begin(3, 0, 0);
        let silent = SHARD_SILENT_NS;
        assert!(sites.copy_due(3, true, silent) && !sites.copy_due(3, true, silent - MS));
        assert!(!sites.copy_due(3, false, 300 * MS), "no budget yet");
        (0..ANSWERS_PER_COPY).for_each(|_| sites.answered(1, 1, 0, 0, 0));
        assert!(!sites.copy_due(3, false, 249 * MS));
        assert!(sites.copy_due(3, false, 250 * MS) && !sites.copy_due(3, false, 250 * MS));
        sites.pause(3);
        let twice = 2 * silent;
        assert!(!sites.copy_due(3, true, twice - MS) && sites.copy_due(3, true, twice));
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut sites = sites();
        sites.begin(0, 0, 0);
        let pauses: Vec<u64> = (0..6).map(|_| sites.pause(0) / MS).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 16, 16]);
    }

    #[test]
    fn second_answers_are_matched_by_number_and_link() {
        let mut sites = sites();
        let state = Business::Order(OrderState::Paid);
        let echo = Echo { link: 1, code: Code::Ok, state, flags: 0 };
        assert!(sites.expect_echo(7, echo) && sites.expect_echo(8, echo));
        assert_eq!((sites.take_echo(7, 0), sites.take_echo(7, 1)), (None, Some(echo)));
        assert_eq!(sites.take_echo(7, 1), None);
        sites.link_reset(1);
        assert_eq!(sites.take_echo(8, 1), None);
    }
}
