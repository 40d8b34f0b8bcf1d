//! Who leads: time-outs, elections after a sign of death, hand-overs to where a shard
//! belongs and away from a disk that does not answer.

use raft::{INVALID_ID, StateRole};

use super::core::Replica;
use super::{members, placement};

/// How long after a sign of death elections are tried eagerly, ticks.
const EAGER_TICKS: u64 = 20;
/// Ticks between two of these.
const EAGER_EVERY: u64 = 3;

impl Replica {
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
    pub(super) fn stand_again(&mut self) {
        let waits = self.tick < self.eager_until && self.tick.is_multiple_of(EAGER_EVERY);
        // Not where votes are being given already: asking anew would make them void.
        let votes = self.node.raft.state == StateRole::Candidate;
        if waits && !votes && !self.is_leader() && self.node.raft.leader_id == INVALID_ID {
            self.campaign();
        }
    }

    pub(super) fn campaign(&mut self) {
        // Fails only while a membership change waits to be applied; the election
        // time-out tries again.
        drop(self.node.campaign());
        self.after_input();
    }

    /// After every input: the time-out that the library drew is replaced by ours.
    pub(super) fn after_input(&mut self) {
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
    pub(super) fn place(&mut self) {
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
