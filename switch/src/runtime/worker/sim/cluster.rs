//! The whole cluster in one thread: an agenda in virtual time.

mod members;
mod outside;
mod sites;
mod trouble;

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

use bytes::Bytes;
use raft::eraftpb::Entry;
use storage::disk::Tear;

use super::channel::Channels;
use super::check::Checker;
use super::client::{Ask, Clients};
use super::faults::{self, Fault, Moment};
use super::random::{Random, Trace};
use super::setup::{HEAL_US, MS, SECOND, Setup, Shape};
use super::site::Site;
use crate::engine::Stats;
use crate::engine::input::{Evidence, OperationId, Waiter};
use crate::engine::output::{ReplyBody, Send};
use crate::replica::Wanted;
use crate::runtime::inbox::Item;
use crate::runtime::inbox::Listen;

/// After the faults everything has ended within this.
const PATIENCE_FOR_ALL_US: u64 = 40 * SECOND;
const CALLS: u64 = 90;

/// What happens next.
enum Event {
    /// A site's turn, if it is still the one that is planned.
    Turn(u8, u64),
    /// A packet of replica messages reaches a site.
    Packet {
        from: u8,
        to: u8,
        bytes: Bytes,
    },
    /// A client wants something.
    Client,
    /// A call asks a site; 0: any.
    Ask(usize, u8),
    /// A request reaches a site.
    Request {
        site: u8,
        correlation: u64,
        item: Box<Item>,
    },
    /// Its answer has not come.
    Impatient(u64),
    /// An answer reaches its client.
    Answer {
        site: u8,
        correlation: u64,
        body: Box<ReplyBody>,
    },
    /// A subscriber takes an event over.
    Taken {
        site: u8,
        life: u32,
        event_id: u64,
        waiter: Waiter,
    },
    /// A request reaches its channel.
    Arrive {
        site: u8,
        life: u32,
        send: Box<Send>,
    },
    /// A channel's answer reaches the site that asked.
    Evidence {
        site: u8,
        life: u32,
        operation: OperationId,
        evidence: Box<Evidence>,
    },
    /// A payer decides.
    Payer {
        channel: u16,
        number: String,
        key: usize,
    },
    /// Merchants that are not there yet are proposed.
    Bootstrap,
    Fault(Fault),
    /// A fault is over.
    Over(Fault, u8),
    /// A process that was told to stop ends, if it still runs.
    Stop {
        site: u8,
        life: u32,
        down_us: u64,
    },
    /// Old blocks were read back for another site.
    Fetched {
        site: u8,
        life: u32,
        shard: usize,
        wanted: Wanted,
        entries: Vec<Entry>,
    },
    /// One order beside the log is carried out.
    Work {
        site: u8,
        life: u32,
    },
    Boot(u8),
    /// An operator wants a site to be a member, or none; again and again until it is so.
    Seek {
        site: u8,
        member: bool,
    },
    /// A site is told that another has ended.
    Hint {
        at: u8,
        about: u8,
    },
}

/// A crash that waits for its disk write.
struct Doom {
    at_write: u64,
    moment: Moment,
    tear: Tear,
    down_us: u64,
    hint: bool,
}

pub(super) struct Cluster {
    setup: Setup,
    random: Random,
    clock: Rc<Cell<u64>>,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    made: u64,
    sites: Vec<Site>,
    dooms: Vec<Option<Doom>>,
    /// Links that drop everything, from and to, and how often.
    cuts: BTreeMap<(u8, u8), u32>,
    storms: Vec<u64>,
    channels: Channels,
    down: BTreeMap<(u8, u16), u32>,
    clients: Clients,
    /// Since when the operator has seen a payment in front of him.
    manual_since: BTreeMap<usize, u64>,
    checker: Checker,
    trace: Trace,
    faults: bool,
    /// Changes of members that have not ended.
    seeking: u32,
    verbose: bool,
    pub(super) crashes: u64,
    /// Moments in which requests waited for a lease.
    held_back: u64,
}

/// What a run was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) trace: Trace,
    pub(super) virtual_us: u64,
    pub(super) events: u64,
    pub(super) crashes: u64,
    pub(super) terms: usize,
    pub(super) blocks: usize,
    pub(super) answers: u64,
    /// States of other sites that a site went on from.
    pub(super) installed: u64,
    /// Moments in which requests to channels waited for a lease.
    pub(super) held_back: u64,
}

impl Cluster {
    pub(super) fn new(seed: u64, shape: Shape, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let setup = Setup::new(shape, &mut random);
        let sites = shape.sites;
        let mut cluster = Self {
            clock: Rc::new(Cell::new(SECOND / 10)),
            agenda: BinaryHeap::new(),
            events: BTreeMap::new(),
            made: 0,
            sites: (1..=sites).map(|site| Site::new(site, &setup, &mut random)).collect(),
            dooms: (0..sites).map(|_| None).collect(),
            cuts: BTreeMap::new(),
            storms: Vec::new(),
            channels: Channels::new(setup.channels.len()),
            down: BTreeMap::new(),
            clients: Clients::new(&setup),
            manual_since: BTreeMap::new(),
            checker: Checker::new(&setup, verbose),
            trace: Trace::new(),
            faults: !shape.calm,
            seeking: 0,
            verbose,
            crashes: 0,
            held_back: 0,
            random,
            setup,
        };
        for site in 1..=sites {
            let after = cluster.random.below(50 * MS);
            cluster.plan(after, Event::Boot(site));
        }
        cluster.plan(200 * MS, Event::Bootstrap);
        for joins in shape.voters + 1..=sites {
            cluster.plan_changes(joins);
        }
        for _ in 0..if shape.quiet { 0 } else { CALLS } {
            let at = cluster.random.between(300 * MS, HEAL_US);
            cluster.plan(at, Event::Client);
        }
        let releases = cluster.setup.keep_bytes > 0;
        for (at, fault) in faults::draw(sites, cluster.setup.shards, releases, &mut cluster.random)
        {
            cluster.plan(at, Event::Fault(fault));
        }
        cluster
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn plan(&mut self, after_us: u64, event: Event) {
        self.made += 1;
        self.agenda.push(Reverse((self.now() + after_us, self.made)));
        self.events.insert(self.made, event);
    }

    /// Faults, then healing, then an end of everything; panics with what is
    /// violated.
    pub(super) fn run(mut self) -> Summary {
        self.run_until(HEAL_US);
        self.heal();
        let healed = self.now();
        let patience = healed + PATIENCE_FOR_ALL_US;
        self.settle(patience);
        // Once more from what is on the disks.
        for site in 1..=self.setup.sites {
            self.crash(site, Tear::Nothing, 10 * MS, false);
        }
        self.run_until(self.now() + 20 * MS);
        self.settle(patience);
        for key in 0..self.setup.keys.len() {
            let call = self.clients.call(key, Ask::Query { refresh: false }, true);
            self.plan(0, Event::Ask(call, 0));
            for refund in self.clients.known_refunds(key).collect::<Vec<_>>() {
                let call = self.clients.call(key, Ask::QueryRefund { refund }, true);
                self.plan(0, Event::Ask(call, 0));
            }
        }
        self.settle(patience);
        self.checker.end(&self.channels, &self.setup);
        for (at, site) in self.sites.iter().enumerate() {
            let process = site.process.as_ref().expect("up");
            for (place, shard) in process.worker.shards.iter().enumerate() {
                let leader = self.leader_of(place).expect("somebody leads");
                let leader = &self.sites[usize::from(leader) - 1].process.as_ref().expect("up");
                if !leader.worker.shards[place].replica.members().contains(at as u64 + 1) {
                    continue;
                }
                let shadow = self.checker.shadow(shard.replica.shard());
                let same = shard.engine.state_hash() == shadow.state_hash();
                assert!(same, "site {} ends with another state", at + 1);
            }
        }
        Summary {
            trace: self.trace,
            virtual_us: self.now(),
            events: self.made,
            crashes: self.crashes,
            terms: self.checker.terms(),
            blocks: self.checker.blocks(),
            answers: self.clients.answers,
            installed: self.sites.iter().map(Site::installed).sum(),
            held_back: self.held_back,
        }
    }

    /// For a while each write of a site's disk takes a second or three, while something is
    /// written for shard 0 all the time and once for the others; how often the site was
    /// elected after the first second of that.
    pub(super) fn elected_while_hanging(&mut self, site: u8, from_us: u64, for_us: u64) -> usize {
        let until_us = from_us + for_us;
        self.run_until(from_us);
        self.sites[usize::from(site) - 1].slow_down(4_000);
        (0..self.setup.shards).for_each(|shard| self.record(shard));
        while self.now() < until_us {
            self.run_until(self.now() + 300 * MS);
            self.record(0);
        }
        self.sites[usize::from(site) - 1].slow_down(1);
        self.checker.elected(site, from_us + SECOND, until_us)
    }

    fn run_until(&mut self, end: u64) {
        while let Some(Reverse((at, _))) = self.agenda.peek().copied() {
            if at > end {
                break;
            }
            let Some(Reverse((at, id))) = self.agenda.pop() else { break };
            self.clock.set(at.max(self.now()));
            if let Some(event) = self.events.remove(&id) {
                self.happen(event);
            }
        }
        self.clock.set(end.max(self.now()));
    }

    /// Runs until everything has ended.
    fn settle(&mut self, patience: u64) {
        while let Err(left) = self.settled() {
            let replicas = || {
                let shards = self.sites.iter().filter_map(|site| site.process.as_ref());
                let shards = shards.flat_map(|process| process.worker.shards.iter());
                let lines =
                    shards.map(|s| format!("{} {}", s.replica.shard(), s.replica.describe()));
                lines.collect::<Vec<_>>().join("\n")
            };
            let patient = self.now() < patience;
            assert!(patient, "16-18: after the faults, there is still {left}\n{}", replicas());
            self.operate();
            self.run_until(self.now() + 50 * MS);
        }
    }

    /// Whether everything has ended; else what has not.
    fn settled(&self) -> Result<(), String> {
        for (shard, number) in (0..self.setup.shards).map(|shard| (usize::from(shard), shard)) {
            let last = self.checker.applied(number);
            let mut leaders = 0;
            if self.seeking > 0 {
                return Err("a change of members".into());
            }
            let leader = self.leader_of(shard).ok_or("a shard without leader")?;
            let leader = self.sites[usize::from(leader) - 1].process.as_ref();
            let members = leader.map(|it| it.worker.shards[shard].replica.members());
            for site in &self.sites {
                let Some(process) = &site.process else { return Err("a site down".into()) };
                if members.is_some_and(|members| !members.contains(u64::from(site.number))) {
                    continue;
                }
                let shard = &process.worker.shards[shard];
                let applied = shard.engine.applied();
                if applied != last || shard.replica.last() != last {
                    return Err(format!(
                        "site {} at {applied} of {last} of shard {number}, log to {}",
                        site.number,
                        shard.replica.last()
                    ));
                }
                if shard.replica.leads() {
                    leaders += 1;
                    at_rest(&shard.engine.stats())?;
                    if !shard.out.block.is_empty() {
                        return Err("an open block".into());
                    }
                }
            }
            if leaders != 1 {
                return Err(format!("{leaders} leaders of shard {shard}"));
            }
        }
        match self.clients.calls.iter().filter(|call| !call.done).count() {
            0 => Ok(()),
            open => Err(format!("{open} calls without answer")),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn(site, turn) => self.turn(site, turn),
            Event::Packet { from, to, bytes } => self.packet(from, to, bytes),
            Event::Client => {
                let call = self.clients.random_call(&self.setup, &mut self.random);
                self.ask(call, 0);
            }
            Event::Ask(call, site) => self.ask(call, site),
            Event::Request { site, correlation, item } => {
                self.trace.add(correlation);
                let key = self.clients.asked(correlation).map_or(0, |(key, _)| key);
                let shard = self.setup.keys[key].shard;
                if !self.give(site, [(shard, *item)]) {
                    // Refused at once.
                    self.plan(MS, Event::Impatient(correlation));
                }
            }
            Event::Impatient(correlation) => {
                let next = self.clients.impatient(correlation, &mut self.random);
                self.next(next);
            }
            Event::Answer { site, correlation, body } => self.answer(site, correlation, &body),
            Event::Taken { site, life, event_id, waiter } => {
                if self.sites[usize::from(site) - 1].life == life {
                    let shard = crate::engine::event_shard(event_id);
                    self.give(site, [(shard, Item::EventAck(event_id, waiter))]);
                }
            }
            Event::Arrive { site, life, send } => self.arrive(site, life, &send),
            Event::Evidence { site, life, operation, evidence } => {
                if self.sites[usize::from(site) - 1].life == life {
                    self.trace.add(operation.pack());
                    let item = Item::Evidence(operation, *evidence);
                    self.give(site, [(operation.shard, item)]);
                }
            }
            Event::Payer { channel, number, key } => {
                let pays = self.random.percent(60);
                self.channels.payer_acts(channel, &number, pays);
                self.checker.books(key, &self.channels, &self.setup);
            }
            Event::Bootstrap => self.bootstrap(),
            Event::Fault(fault) => self.fault(fault),
            Event::Over(fault, site) => self.over(fault, site),
            Event::Boot(site) => self.boot(site),
            Event::Stop { site, life, down_us } => self.stop(site, life, down_us),
            Event::Fetched { site, life, shard, wanted, entries } => {
                let found = &mut self.sites[usize::from(site) - 1];
                if let Some(process) = found.process.as_mut().filter(|_| found.life == life) {
                    process.worker.shards[shard].replica.fetched(wanted, entries);
                    self.nudge(site, Listen::Packets);
                }
            }
            Event::Work { site, life } => self.work(site, life),
            Event::Seek { site, member } => self.seek(site, member),
            Event::Hint { at, about } => {
                let site = &self.sites[usize::from(at) - 1];
                if let Some(process) = &site.process {
                    process.shared.mesh.report_gone(about);
                    self.nudge(at, Listen::Packets);
                }
            }
        }
    }
}

/// Whether nothing is left to do for a leading engine; else what.
fn at_rest(stats: &Stats) -> Result<(), String> {
    let left = [stats.open, stats.proposed, stats.manual, stats.in_doubt, stats.outbox];
    let in_flight = stats.channels.iter().any(|channel| channel.in_flight > 0);
    match left == [0; 5] && stats.waiters == 0 && !in_flight {
        true => Ok(()),
        false => Err(format!("{stats:?}")),
    }
}
