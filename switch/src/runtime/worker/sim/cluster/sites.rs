//! Sites live, take turns, talk to each other, and die at the boundaries of a turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use protocol::message::kind;
use raft::eraftpb::Entry;
use storage::LogError;
use storage::disk::Tear;

use super::super::faults::Moment;
use super::super::setup::{Flaw, MS, SECOND};
use super::super::site::Process;
use super::{Cluster, Event};
use crate::engine::input::Waiter;
use crate::replica::Wanted;
use crate::runtime::inbox::{Item, Listen, Packet};
use crate::runtime::mesh::Traffic;
use crate::runtime::worker::{WorkerError, catchup};

/// A turn takes about this long.
const TURN_US: u64 = 15;

impl Cluster {
    pub(super) fn boot(&mut self, number: u8) {
        let skew_us = self.random.below(self.setup.skew_us);
        let site = &mut self.sites[usize::from(number) - 1];
        if site.process.is_some() {
            return;
        }
        if !site.boot(&self.clock, &self.setup, skew_us) {
            let down_us = self.random.between(20 * MS, SECOND);
            return self.crash(number, Tear::Sectors, down_us, false);
        }
        let life = u64::from(site.life);
        self.trace.add(life);
        let waiter =
            Waiter { connection: 100 + life, stream: 1, kind: kind::SUBSCRIBE, correlation: life };
        self.give(number, [(0, Item::Subscribe(waiter, 1))]);
        for channel in 1..=self.setup.channels.len() as u16 {
            let up = !self.down.contains_key(&(number, channel));
            self.give(number, [(0, Item::ChannelUp(channel, up))]);
        }
        self.plan_turn(number, 0);
    }

    /// Hands items to a site's worker; `false` when there is none to take them.
    pub(super) fn give<const N: usize>(&mut self, site: u8, items: [(u16, Item); N]) -> bool {
        let now = self.now();
        let process = &self.sites[usize::from(site) - 1].process;
        let taken = process.as_ref().is_some_and(|process| process.push(now, items));
        self.nudge(site, Listen::All);
        taken
    }

    /// Something was handed in: the turn comes sooner, if the worker listens to that much at
    /// least.
    pub(super) fn nudge(&mut self, site: u8, least: Listen) {
        let process = &self.sites[usize::from(site) - 1].process;
        if process.as_ref().is_some_and(|process| process.listens >= least) {
            let after = self.random.between(3, 20);
            self.plan_turn(site, after);
        }
    }

    pub(super) fn plan_turn(&mut self, site: u8, after_us: u64) {
        let at = self.now() + after_us;
        let number = self.made + 1;
        let process = &mut self.sites[usize::from(site) - 1].process;
        let Some(process) = process.as_mut().filter(|process| process.next_turn.0 > at) else {
            return;
        };
        process.next_turn = (at, number);
        self.plan(after_us, Event::Turn(site, number));
    }

    pub(super) fn turn(&mut self, number: u8, turn: u64) {
        let now_us = self.now();
        let site = &mut self.sites[usize::from(number) - 1];
        let Some(process) = site.process.as_mut().filter(|p| p.next_turn.1 == turn) else {
            return;
        };
        process.next_turn = (u64::MAX, 0);
        if process.paused_until_us > now_us {
            let after = process.paused_until_us - now_us;
            return self.plan_turn(number, after);
        }
        let doomed = self.dooms[usize::from(number) - 1]
            .as_ref()
            .filter(|doom| site.disk.writes() >= doom.at_write)
            .map(|doom| doom.moment);
        if doomed == Some(Moment::Before) {
            return self.doom(number);
        }
        let clocks = process.clocks(now_us);
        let busy = match process.worker.turn(clocks) {
            Ok(busy) => busy,
            Err(error) => {
                let forgot = matches!(error, WorkerError::Forgotten { .. });
                let again = self.setup.flaw == Some(Flaw::SkipSyncStartAgain);
                assert!(!forgot || again, "forgotten: site {number}: {error}");
                let is_disk =
                    matches!(error, WorkerError::Log(LogError::Poisoned(_) | LogError::Disk(_)));
                assert!(is_disk || forgot, "block: site {number}: {error}");
                // As the runtime: the process ends, having handed nothing out.
                self.trace.add(u64::from(number));
                let down_us = self.random.between(20 * MS, SECOND);
                return self.crash(number, Tear::Sectors, down_us, true);
            }
        };
        let wrote = process.worker.writer.appended_bytes() > 0;
        let is_empty = process.shared.log_is_empty.load(Ordering::Relaxed);
        assert!(!wrote || !is_empty, "an empty log: site {number} has written to it");
        self.checker.follow(number, process, now_us, &self.setup);
        let read_back = read_back(process);
        let (rest_us, listens) = process.worker.rest(clocks);
        process.listens = listens;
        let disk_us = site.disk_due_us.get().map(|due| due.saturating_sub(now_us));
        let shared = Arc::clone(&process.shared);
        if doomed == Some(Moment::Silent) {
            return self.doom(number);
        }
        for to in (1..=self.setup.sites).filter(|to| *to != number) {
            for traffic in [Traffic::Urgent, Traffic::Bulk, Traffic::States] {
                while let Some(packet) =
                    shared.mesh.route(to).and_then(|route| route.queue(traffic).take())
                {
                    self.post(number, to, Bytes::from(packet));
                }
            }
        }
        if doomed == Some(Moment::Posted) {
            return self.doom(number);
        }
        self.let_go(number, &[]);
        while let Some(mut out) = shared.exchange.pop_out() {
            self.take_outputs(number, &mut out);
            shared.exchange.recycle_out(out);
        }
        if doomed == Some(Moment::After) {
            return self.doom(number);
        }
        let life = self.sites[usize::from(number) - 1].life;
        self.plan_work(number);
        for (shard, wanted, entries) in read_back {
            let entries = if self.lost() { Vec::new() } else { entries };
            let after = self.random.between(100, 5 * MS);
            self.plan(after, Event::Fetched { site: number, life, shard, wanted, entries });
        }
        if busy {
            let took = TURN_US + self.random.below(TURN_US);
            return self.plan_turn(number, took);
        }
        self.plan_turn(number, rest_us.max(TURN_US));
        if let Some(disk_us) = disk_us {
            self.plan_turn(number, disk_us.max(TURN_US));
        }
    }

    /// What the threads beside the worker have to do is done some time later.
    fn plan_work(&mut self, number: u8) {
        let site = &mut self.sites[usize::from(number) - 1];
        let life = site.life;
        if site.process.as_mut().is_some_and(Process::has_work) {
            let after = self.random.between(20, MS);
            self.plan(after, Event::Work { site: number, life });
        }
    }

    /// One order is carried out, or the process dies at some step of it.
    pub(super) fn work(&mut self, number: u8, life: u32) {
        let dies = self.faults && self.random.percent(1);
        let first_checkpoints = self.random.percent(50);
        let site = &mut self.sites[usize::from(number) - 1];
        if site.life != life || site.process.is_none() {
            return;
        }
        self.trace.add(0x303);
        if dies {
            site.disk.fail_files_after(self.random.below(8));
        }
        site.work(first_checkpoints);
        if dies {
            let down_us = self.random.between(20 * MS, SECOND);
            return self.crash(number, Tear::Nothing, down_us, false);
        }
        self.nudge(number, Listen::Packets);
        self.plan_work(number);
    }

    pub(super) fn doom(&mut self, number: u8) {
        if let Some(doom) = self.dooms[usize::from(number) - 1].take() {
            self.crash(number, doom.tear, doom.down_us, doom.hint);
        }
    }

    pub(super) fn crash(&mut self, number: u8, tear: Tear, down_us: u64, hint: bool) {
        self.trace.add(0xdead);
        if self.verbose {
            println!("{:>10} site {number} crashes, {tear:?}", self.now());
        }
        self.crashes += 1;
        self.dooms[usize::from(number) - 1] = None;
        self.sites[usize::from(number) - 1].crash(tear);
        self.plan(down_us, Event::Boot(number));
        if hint {
            self.hint(number);
        }
    }

    /// The others hear that a site has ended.
    pub(super) fn hint(&mut self, about: u8) {
        for at in (1..=self.setup.sites).filter(|at| *at != about) {
            let after = self.random.below(3 * MS);
            self.plan(after, Event::Hint { at, about });
        }
    }

    pub(super) fn stop(&mut self, number: u8, life: u32, down_us: u64) {
        let site = &mut self.sites[usize::from(number) - 1];
        if site.life != life {
            return;
        }
        let Some(process) = site.process.take() else { return };
        // It fails where the disk does.
        drop(process.worker.log.close());
        self.crash(number, Tear::Nothing, down_us, true);
    }

    pub(super) fn post(&mut self, from: u8, to: u8, bytes: Bytes) {
        self.trace.add(u64::from(from) << 8 | u64::from(to));
        self.trace.add_bytes(&bytes);
        let loss = self.storms.iter().copied().max().unwrap_or(0) + u64::from(self.faults);
        if self.random.percent(loss) {
            return;
        }
        let again = self.faults && self.random.percent(2);
        for _ in 0..1 + u64::from(again) {
            let slow = self.random.below(100) < loss * 3;
            let most = if slow { 80 * MS } else { MS };
            let after = self.setup.far_us + self.random.between(150, most);
            self.plan(after, Event::Packet { from, to, bytes: bytes.clone() });
        }
    }

    pub(super) fn packet(&mut self, from: u8, to: u8, bytes: Bytes) {
        if self.cuts.contains_key(&(from, to)) {
            return;
        }
        let process = &self.sites[usize::from(to) - 1].process;
        let Some(process) = process else { return };
        // A full queue drops it, as it would.
        drop(process.shared.exchange.push_packet(Packet { from, bytes }));
        self.nudge(to, Listen::Packets);
    }

    pub(super) fn cut(&mut self, from: u8, to: u8, cut: bool) {
        let times = self.cuts.entry((from, to)).or_insert(0);
        *times = if cut { *times + 1 } else { times.saturating_sub(1) };
        if *times == 0 {
            self.cuts.remove(&(from, to));
        }
    }
}

/// Old blocks that other sites need and memory no longer holds, read back as the
/// worker's reader does.
fn read_back(process: &mut Process) -> Vec<(usize, Wanted, Vec<Entry>)> {
    let mut found = Vec::new();
    let log = &process.worker.log;
    for (at, shard) in process.worker.shards.iter_mut().enumerate() {
        while let Some(wanted) = shard.replica.take_wanted() {
            let route = log.route(shard.replica.shard(), wanted.from, wanted.to);
            let max_bytes = usize::try_from(wanted.max_bytes).unwrap_or(usize::MAX);
            let entries = route.map(|route| catchup::read(&mut log.reader(), &route, max_bytes));
            found.push((at, wanted, entries.unwrap_or_default()));
        }
    }
    found
}
