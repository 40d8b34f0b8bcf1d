//! The driver's state when there is more than one site: where a request goes,
//! what is sent again and where, and what a second answer means.
//!
//! The knowledge is in `sites`; this is what is done with it.

use super::answer::Answer;
use super::link::Link;
use super::sites::{Echo, LINK_GONE_NS, LINK_QUIET_NS, Sites};
use super::slots::{NO_LINK, Slot};
use super::state::State;
use protocol::code::Code;
use protocol::message::Leaders;
use std::cmp::Reverse;

/// Most copies sent at one look around: the rest follow at the next.
const COPIES_AT_ONCE: usize = 4_096;

impl State {
    /// Link and stream for a request of `shard`: at its leader; else at a site that
    /// is neither quiet nor `avoid` nor known not to answer; else anywhere.
    pub(super) fn place_among(
        &self,
        sites: &Sites,
        shard: u16,
        avoid: u8,
    ) -> Option<(usize, usize)> {
        let (leader, lost) = (sites.leader(shard), sites.avoid(shard));
        let (mut sound, mut any) = (None, None);
        for offset in 0..self.links().len() {
            let Some(place) = self.turn_at(offset) else { continue };
            let link = &self.links[place.0];
            let shunned = link.quiet.get() || link.site == avoid;
            if !shunned && (link.site == leader || leader == 0 && link.site != lost) {
                return Some(place);
            }
            if !shunned {
                sound = sound.or(Some(place));
            }
            any = any.or(Some(place));
        }
        sound.or(any)
    }

    /// A site told who leads which shards: what is open at their old leaders goes
    /// to the new ones at once, and so does what waits. What is open at a third
    /// site stays there: that one passes it on.
    pub(super) fn leaders_told(&mut self, notice: &Leaders<'_>) {
        let now_ns = self.now_ns();
        let Some(sites) = &mut self.sites else { return };
        let mut before = vec![None; usize::from(self.shards)];
        for leader in notice.iter() {
            if let Some(site) = sites.told(leader, now_ns) {
                self.measure.leader_changes += u64::from(site != 0 && site != leader.site);
                before[usize::from(leader.shard)] = Some(site);
            }
        }
        if before.iter().all(Option::is_none) {
            return;
        }
        let mut open = Vec::new();
        for (index, slot) in self.slots.iter() {
            let extra = *sites.extra(index);
            let Some(before) = before[usize::from(extra.shard)] else { continue };
            let site = self.links.get(usize::from(slot.link)).map_or(0, |link| link.site);
            let alone = extra.other == NO_LINK;
            if slot.link == NO_LINK {
                self.resend.push(Reverse((now_ns, index, slot.n)));
            } else if alone && site == before && site != sites.leader(extra.shard) {
                open.push((index, *slot));
            }
        }
        open.truncate(COPIES_AT_ONCE);
        for (index, slot) in open {
            self.copy_to_leader(index, &slot, now_ns);
        }
        self.keep(|state| state.pump());
    }

    fn copy_to_leader(&mut self, index: u32, slot: &Slot, now_ns: u64) {
        let Some(sites) = &mut self.sites else { return };
        let shard = sites.extra(index).shard;
        let leader = sites.leader(shard);
        let place = self.sites.as_ref().and_then(|sites| self.place_among(sites, shard, 0));
        if let Some(place) = place.filter(|place| self.links[place.0].site == leader) {
            self.resend_at(place, index, slot, now_ns);
        }
    }

    /// Accounts for the copy of a request that goes to link `to`. False: one is
    /// there already.
    pub(super) fn move_copy(&mut self, to: usize, index: u32, slot: &Slot, now_ns: u64) -> bool {
        let Some(sites) = &mut self.sites else { return true };
        let extra = sites.extra(index);
        if usize::from(slot.link) == to || usize::from(extra.other) == to {
            return false;
        }
        extra.last_ns = now_ns;
        if slot.link != NO_LINK {
            let forgotten = std::mem::replace(&mut extra.other, slot.link);
            self.give_back(forgotten);
        }
        true
    }

    /// A link no longer owes the answer to a request.
    fn give_back(&self, link: u16) {
        if let Some(link) = self.links.get(usize::from(link)) {
            link.in_flight.set(link.in_flight.get().saturating_sub(1));
        }
    }

    /// Makes a request's other copy, if there is one, the one that counts.
    pub(super) fn other_copy(&mut self, index: u32, slot: &Slot) -> bool {
        let Some(sites) = &mut self.sites else { return false };
        let other = std::mem::replace(&mut sites.extra(index).other, NO_LINK);
        if let Some(slot) = self.slots.get_mut(index, slot.n) {
            slot.link = other;
        }
        other != NO_LINK
    }

    /// Gives up a request's other copy.
    pub(super) fn forget_copy(&mut self, index: u32) {
        let Some(sites) = &mut self.sites else { return };
        let other = std::mem::replace(&mut sites.extra(index).other, NO_LINK);
        self.give_back(other);
    }

    /// A link was lost: whatever else it carried is gone too.
    pub(super) fn link_forgotten(&mut self, number: usize) {
        let Some(sites) = &mut self.sites else { return };
        for (index, _) in self.slots.iter() {
            let extra = sites.extra(index);
            if usize::from(extra.other) == number {
                extra.other = NO_LINK;
            }
        }
        sites.link_reset(number);
        self.links[number].quiet.set(false);
        let site = self.links[number].site;
        if !self.links.iter().any(|link| link.site == site && link.is_up()) {
            sites.site_lost(site);
        }
    }

    /// Accounts for an answer and learns from it. True: the request is not over,
    /// it goes out again.
    pub(super) fn answer_of_several(
        &mut self,
        link: &Link,
        (index, slot): (u32, &Slot),
        answer: &Answer,
        flags: u8,
        now_ns: u64,
    ) -> bool {
        let deadline_ns = self.deadline(&slot.sample());
        let Some(sites) = &mut self.sites else { return false };
        let extra = *sites.extra(index);
        let number = link.number as u16;
        let remaining = if slot.link == number { extra.other } else { slot.link };
        sites.extra(index).other = NO_LINK;
        if slot.link == number || extra.other == number {
            link.in_flight.set(link.in_flight.get().saturating_sub(1));
        } else if let Some(link) = self.links.get(usize::from(extra.other)) {
            // Of three copies two are left and one is waited for.
            link.in_flight.set(link.in_flight.get().saturating_sub(1));
        }
        if goes_on(answer.code) && now_ns < deadline_ns {
            if answer.code != Code::TooManyInFlight {
                sites.refused(extra.shard, link.site, answer.leader_hint, extra.last_ns, now_ns);
            }
            let pause_ns = sites.pause(index);
            self.measure.retried(answer.code);
            if remaining == NO_LINK {
                self.send_later(index, slot, now_ns + pause_ns);
            } else if let Some(slot) = self.slots.get_mut(index, slot.n) {
                // The other copy may still be answered; if not, silence sends a third.
                slot.link = remaining;
            }
            return true;
        }
        sites.answered(extra.shard, link.site, answer.leader_hint, extra.last_ns, now_ns);
        if remaining != NO_LINK {
            let echo = Echo { link: remaining, code: answer.code, state: answer.state, flags };
            if !sites.expect_echo(slot.n, echo) {
                self.give_back(remaining);
            }
        }
        false
    }

    /// Takes the second answer to a request. False: this is none.
    pub(super) fn echoed(&mut self, link: &Link, n: u64, answer: &Answer, now_ns: u64) -> bool {
        let Some(sites) = &mut self.sites else { return false };
        let Some(echo) = sites.take_echo(n, link.number) else { return false };
        link.in_flight.set(link.in_flight.get().saturating_sub(1));
        self.measure.second_answers += 1;
        if (answer.code, answer.state) != (echo.code, echo.state) && !goes_on(answer.code) {
            // An acknowledgement too: whether both may stand is the audit's question.
            self.measure.differing_answers += 1;
            self.record(n, answer, now_ns, echo.flags);
        }
        true
    }

    /// Looks for silent links and shards, and sends what waits there elsewhere too.
    pub(super) fn watch_sites(&mut self, now_ns: u64) {
        let Some(sites) = &mut self.sites else { return };
        if !sites.watch(now_ns) {
            return;
        }
        let mut suspects = Vec::new();
        for (number, link) in self.links.iter().enumerate().filter(|(_, link)| link.is_up()) {
            let quiet_ns = sites.quiet_ns(number, link.packets(), now_ns);
            let quiet = quiet_ns >= LINK_QUIET_NS;
            if quiet && !link.quiet.replace(quiet) {
                suspects.push(number);
                self.measure.silences += 1;
            }
            link.quiet.set(quiet);
            if quiet_ns >= LINK_GONE_NS {
                link.reset();
            }
        }
        for number in &suspects {
            let site = self.links[*number].site;
            if self.links.iter().all(|link| link.site != site || link.quiet.get()) {
                sites.site_lost(site);
            }
        }
        let mut copies = self.waiting_on(&suspects);
        self.slow(now_ns, &mut copies);
        copies.sort_unstable_by_key(|(index, _)| *index);
        copies.dedup_by_key(|(index, _)| *index);
        copies.truncate(COPIES_AT_ONCE);
        for (index, slot) in copies {
            self.copy_elsewhere(index, &slot, now_ns);
        }
    }

    /// Requests of which these links carry the only copy.
    fn waiting_on(&mut self, links: &[usize]) -> Vec<(u32, Slot)> {
        if links.is_empty() {
            return Vec::new();
        }
        let found = self.slots_on(|slot| links.contains(&usize::from(slot.link)));
        let Some(sites) = &mut self.sites else { return found };
        found.into_iter().filter(|(index, _)| sites.extra(*index).other == NO_LINK).collect()
    }

    /// Adds requests of silent shards, and those that wait for too long alone.
    fn slow(&mut self, now_ns: u64, copies: &mut Vec<(u32, Slot)>) {
        let Some(sites) = &mut self.sites else { return };
        let mut oldest = vec![u64::MAX; usize::from(self.shards)];
        for (index, _) in self.slots.iter().filter(|(_, slot)| slot.link != NO_LINK) {
            let extra = sites.extra(index);
            let oldest = &mut oldest[usize::from(extra.shard)];
            *oldest = extra.last_ns.min(*oldest);
        }
        let silent = sites.silent_shards(&oldest, now_ns);
        for (index, slot) in self.slots.iter().filter(|(_, slot)| slot.link != NO_LINK) {
            let silent = silent[usize::from(sites.extra(index).shard)];
            if sites.copy_due(index, silent, now_ns) {
                copies.push((index, *slot));
            }
        }
    }

    fn copy_elsewhere(&mut self, index: u32, slot: &Slot, now_ns: u64) {
        let site = self.links.get(usize::from(slot.link)).map_or(0, |link| link.site);
        let Some(sites) = &mut self.sites else { return };
        let shard = sites.extra(index).shard;
        // Counted even when there is no room: patience grows.
        sites.pause(index);
        let place = self.sites.as_ref().and_then(|sites| self.place_among(sites, shard, site));
        if let Some(place) = place {
            self.resend_at(place, index, slot, now_ns);
        }
    }
}

/// Whether a request with this answer is tried again, elsewhere or later: it says
/// nothing about the payment, only about the site.
fn goes_on(code: Code) -> bool {
    matches!(code, Code::NotLeader | Code::NoLeader | Code::Draining | Code::TooManyInFlight)
}
