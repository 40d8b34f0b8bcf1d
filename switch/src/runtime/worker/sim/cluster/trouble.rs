//! Faults as they come and go, and the end of all of them.

use std::sync::atomic::Ordering;

use storage::disk::{self, Tear};

use super::super::faults::{Fault, Moment, Victim};
use super::super::setup::MS;
use super::super::site::Site;
use super::{Cluster, Doom, Event};
use crate::engine::input::AdminCommand;
use crate::runtime::inbox::{Item, Listen};

impl Cluster {
    pub(super) fn victim(&self, victim: Victim) -> u8 {
        match victim {
            Victim::Site(site) => site,
            Victim::Leader(shard) => {
                let leads = |site: &&Site| {
                    let process = site.process.as_ref();
                    process.is_some_and(|p| p.worker.shards[usize::from(shard)].replica.leads())
                };
                self.sites.iter().find(leads).map_or(1, |site| site.number)
            }
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.trace.add(0xfa17);
        if !self.faults {
            return;
        }
        if self.verbose {
            println!("{:>10} {fault:?}", self.now());
        }
        match fault {
            Fault::Crash { victim, writes, moment, tear, down_us, hint } => {
                let site = self.victim(victim);
                let at_write = self.sites[usize::from(site) - 1].disk.writes() + writes;
                let doom = Doom { at_write, moment, tear, down_us, hint };
                self.dooms[usize::from(site) - 1] = Some(doom);
            }
            Fault::Blackout { tear, down_us } => {
                for site in 1..=self.setup.sites {
                    if self.sites[usize::from(site) - 1].process.is_some() {
                        let after = self.random.below(100 * MS);
                        self.crash(site, tear, down_us + after, false);
                    }
                }
            }
            Fault::DiskError { victim } => {
                let site = &self.sites[usize::from(self.victim(victim)) - 1];
                let nth = site.disk.writes();
                site.disk.inject(disk::Fault::FailWrite { nth, errno: 5 });
            }
            Fault::SlowDisk { victim, times, for_us } => {
                let site = self.victim(victim);
                self.sites[usize::from(site) - 1].slow_down(times);
                self.plan(for_us, Event::Over(fault, site));
            }
            Fault::Cut { victim, to, from, for_us, hint } => {
                let site = self.victim(victim);
                self.cut_off(site, to, from, true);
                if hint {
                    self.hint(site);
                }
                self.plan(for_us, Event::Over(fault, site));
            }
            Fault::CutLink { from, to, for_us } => {
                self.cut(from, to, true);
                self.plan(for_us, Event::Over(fault, from));
            }
            Fault::Storm { loss, for_us } => {
                self.storms.push(loss);
                self.plan(for_us, Event::Over(fault, 1));
            }
            Fault::Pause { victim, for_us } => {
                let site = self.victim(victim);
                let until_us = self.now() + for_us;
                if let Some(process) = &mut self.sites[usize::from(site) - 1].process {
                    process.paused_until_us = until_us;
                }
            }
            Fault::Stop { site, down_us } => {
                let found = &self.sites[usize::from(site) - 1];
                if let Some(process) = &found.process {
                    process.shared.leave.store(true, Ordering::Release);
                    let life = found.life;
                    self.plan(200 * MS, Event::Stop { site, life, down_us });
                }
            }
            Fault::Unrest { victim, for_us } => {
                for _ in 0..for_us / (20 * MS) {
                    let at = self.random.between(1, u64::from(self.setup.sites)) as u8;
                    let about = self.victim(victim);
                    let after = self.random.below(for_us);
                    self.plan(after, Event::Hint { at, about });
                }
                let at = self.random.between(1, u64::from(self.setup.sites)) as u8;
                let after = self.random.below(for_us);
                let crash = Fault::Crash {
                    victim: Victim::Site(at),
                    writes: self.random.below(3),
                    moment: Moment::After,
                    tear: Tear::Nothing,
                    down_us: self.random.below(3 * MS),
                    hint: false,
                };
                self.plan(after, Event::Fault(crash));
            }
            Fault::Contest { for_us, .. } => self.contest(fault, for_us),
            Fault::FalseHint { at, about } => self.plan(0, Event::Hint { at, about }),
            Fault::Transfer { shard, to } => {
                for site in 1..=self.setup.sites {
                    self.give(site, [(shard, Item::Transfer(1, u16::from(to)))]);
                }
            }
            Fault::Drain { site, for_us } => {
                self.drain(site, true);
                self.plan(for_us, Event::Over(fault, site));
            }
            Fault::ChannelDown { victim, channel, for_us } => {
                let site = self.victim(victim);
                *self.down.entry((site, channel)).or_insert(0) += 1;
                self.give(site, [(0, Item::ChannelUp(channel, false))]);
                self.plan(for_us, Event::Over(fault, site));
            }
            Fault::ChannelLost { victim, channel } => {
                let site = self.victim(victim);
                self.give(site, [(0, Item::LinkLost(channel))]);
            }
        }
    }

    pub(super) fn contest(&mut self, fault: Fault, for_us: u64) {
        let Fault::Contest { loss, .. } = fault else { return };
        for site in 1..=self.setup.sites {
            if self.sites[usize::from(site) - 1].process.is_some() {
                let down_us = self.random.below(10 * MS);
                self.crash(site, Tear::Prefix, down_us, false);
            }
            let again = Fault::Crash {
                victim: Victim::Site(site),
                writes: self.random.between(1, 3),
                moment: Moment::After,
                tear: Tear::Nothing,
                down_us: self.random.below(3 * MS),
                hint: false,
            };
            let after = self.random.below(for_us);
            self.plan(after, Event::Fault(again));
        }
        self.storms.push(loss);
        self.plan(for_us, Event::Over(fault, 1));
    }

    pub(super) fn cut_off(&mut self, site: u8, to: bool, from: bool, cut: bool) {
        for other in (1..=self.setup.sites).filter(|other| *other != site) {
            if to {
                self.cut(other, site, cut);
            }
            if from {
                self.cut(site, other, cut);
            }
        }
    }

    pub(super) fn drain(&mut self, drained: u8, is: bool) {
        for site in 1..=self.setup.sites {
            self.command(site, 0, AdminCommand::SetDrained { site: drained, drained: is });
        }
    }

    pub(super) fn over(&mut self, fault: Fault, site: u8) {
        match fault {
            Fault::SlowDisk { .. } => self.sites[usize::from(site) - 1].slow_down(1),
            Fault::Cut { to, from, .. } => self.cut_off(site, to, from, false),
            Fault::CutLink { from, to, .. } => self.cut(from, to, false),
            Fault::Storm { loss, .. } | Fault::Contest { loss, .. } => {
                if let Some(at) = self.storms.iter().position(|known| *known == loss) {
                    self.storms.remove(at);
                }
            }
            Fault::Drain { .. } => self.drain(site, false),
            Fault::ChannelDown { channel, .. } => {
                let times = self.down.entry((site, channel)).or_insert(1);
                *times -= 1;
                if *times == 0 {
                    self.down.remove(&(site, channel));
                    self.give(site, [(0, Item::ChannelUp(channel, true))]);
                }
            }
            _ => {}
        }
    }

    /// The end of all faults.
    pub(super) fn heal(&mut self) {
        self.faults = false;
        self.cuts.clear();
        self.storms.clear();
        self.dooms.iter_mut().for_each(|doom| *doom = None);
        let ends = |event: &Event| {
            !matches!(event, Event::Fault(_) | Event::Over(..) | Event::Stop { .. })
        };
        self.events.retain(|_, event| ends(event));
        for (site, channel) in std::mem::take(&mut self.down).into_keys() {
            self.give(site, [(0, Item::ChannelUp(channel, true))]);
        }
        for site in 1..=self.setup.sites {
            let found = &mut self.sites[usize::from(site) - 1];
            found.slow_down(1);
            if let Some(process) = &mut found.process {
                process.paused_until_us = 0;
                process.shared.leave.store(false, Ordering::Release);
            }
            self.plan(100 * MS, Event::Boot(site));
            self.nudge(site, Listen::Packets);
            self.drain(site, false);
        }
    }
}
