//! Sites that come and go.

use super::super::setup::{MS, SECOND};
use super::{Cluster, Event};
use crate::replica::{By, Stage};
use crate::runtime::inbox::Listen;

impl Cluster {
    /// A site joins once the others have given up log that it would need, and now and then
    /// one of them goes at about the same time.
    pub(super) fn plan_changes(&mut self, joins: u8) {
        let at = self.random.between(2 * SECOND, 4 * SECOND);
        self.seeking += 1;
        self.plan(at, Event::Seek { site: joins, member: true });
        if self.random.percent(60) {
            let site = self.random.between(1, u64::from(self.setup.voters)) as u8;
            let after = self.random.below(600 * MS);
            self.seeking += 1;
            self.plan(at + after, Event::Seek { site, member: false });
        }
    }

    /// Asks the leader of every shard for the next step, until all say that it is so.
    pub(super) fn seek(&mut self, site: u8, member: bool) {
        let mut all = true;
        for shard in 0..usize::from(self.setup.shards) {
            let Some(leader) = self.leader_of(shard) else {
                all = false;
                continue;
            };
            let by = By { at_us: self.now(), ..By::default() };
            let process = self.sites[usize::from(leader) - 1].process.as_mut();
            let stage = process.map(|process| {
                let replica = &mut process.worker.shards[shard].replica;
                replica.seek_member(u64::from(site), member, by)
            });
            all &= stage == Some(Ok(Stage::Done));
            self.nudge(leader, Listen::Packets);
        }
        match all {
            true => self.seeking -= 1,
            false => {
                let after = self.random.between(10 * MS, 60 * MS);
                self.plan(after, Event::Seek { site, member });
            }
        }
    }

    /// Who leads a shard, at this place in the sites' lists; of several who think so, the
    /// one of the latest term.
    pub(super) fn leader_of(&self, shard: usize) -> Option<u8> {
        let leads = self.sites.iter().filter_map(|site| {
            let replica = &site.process.as_ref()?.worker.shards[shard].replica;
            replica.leads().then_some((replica.term(), site.number))
        });
        leads.max().map(|(_, site)| site)
    }
}
