//! The whole cluster in one thread: an agenda in virtual time, the network, the
//! faults as they come.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use protocol::code::RefundState;
use protocol::id::{OutRefundNo, ShortText};
use protocol::message::kind;
use raft::eraftpb::Entry;
use storage::disk::{self, Tear};

use super::channel::Channels;
use super::check::Checker;
use super::client::{Ask, CONNECTION, Clients, Next, REFUNDS};
use super::faults::{self, Fault, Moment, Victim};
use super::random::{Random, Trace};
use super::setup::{Flaw, HEAL_US, MS, SECOND, START_WALL, Setup, WANDER_US};
use super::site::{Process, Site};
use crate::engine::Stats;
use crate::engine::input::{AdminCommand, AdminInput, Evidence, Operation, OperationId, Waiter};
use crate::engine::order::AttemptState;
use crate::engine::output::{ReplyBody, Send};
use crate::replica::Wanted;
use crate::runtime::inbox::{Item, OutBatch, Packet};
use crate::runtime::mesh::Traffic;
use crate::runtime::worker::{WorkerError, catchup};

/// After the faults everything has ended within this.
const PATIENCE_FOR_ALL_US: u64 = 40 * SECOND;
/// A turn takes about this long.
const TURN_US: u64 = 15;
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
    Boot(u8),
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
    checker: Checker,
    trace: Trace,
    faults: bool,
    verbose: bool,
    pub(super) crashes: u64,
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
}

impl Cluster {
    pub(super) fn new(seed: u64, sites: u8, flaw: Option<Flaw>, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let setup = Setup::new(sites, flaw, &mut random);
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
            checker: Checker::new(&setup, verbose),
            trace: Trace::new(),
            faults: true,
            verbose,
            crashes: 0,
            random,
            setup,
        };
        for site in 1..=sites {
            let after = cluster.random.below(50 * MS);
            cluster.plan(after, Event::Boot(site));
        }
        cluster.plan(200 * MS, Event::Bootstrap);
        for _ in 0..CALLS {
            let at = cluster.random.between(300 * MS, HEAL_US);
            cluster.plan(at, Event::Client);
        }
        for (at, fault) in faults::draw(sites, cluster.setup.shards, &mut cluster.random) {
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
            for shard in &process.worker.shards {
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
        }
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

    /// An operator decides what is in front of him by the channel's ledger.
    fn operate(&mut self) {
        if self.setup.patient {
            return;
        }
        for key in 0..self.setup.keys.len() {
            let Some(view) = self.checker.view(&self.setup, key) else { continue };
            if let Some(attempt) = view.attempts.last()
                && attempt.state == AttemptState::Manual
            {
                let number = attempt.charge_no.to_string();
                let success = self.channels.decide_charge(attempt.channel, &number);
                self.decide(key, None, success);
            }
            for refund in view.refunds.iter().filter(|r| r.state == RefundState::Manual) {
                let attempt = &view.attempts[usize::from(refund.attempt) - 1];
                let charge = attempt.charge_no.to_string();
                let number = refund.refund_no.to_string();
                let success =
                    self.channels.decide_refund(attempt.channel, &charge, &number, refund.amount);
                self.decide(key, Some(refund.out_refund_no), success);
            }
        }
    }

    fn decide(&mut self, key: usize, out_refund_no: Option<OutRefundNo>, success: bool) {
        let short = |text: &str| ShortText::new(text.as_bytes()).unwrap();
        let key = &self.setup.keys[key];
        let (mch_id, out_trade_no, shard) = (key.mch_id, key.out_trade_no, key.shard);
        let (second, note) = (short("ben"), short("ledger"));
        for site in 1..=self.setup.sites {
            let decision =
                AdminCommand::Decide { mch_id, out_trade_no, out_refund_no, success, second, note };
            self.command(site, shard, decision);
        }
    }

    /// Whether everything has ended; else what has not.
    fn settled(&self) -> Result<(), String> {
        for (shard, number) in (0..self.setup.shards).map(|shard| (usize::from(shard), shard)) {
            let last = self.checker.applied(number);
            let mut leaders = 0;
            for site in &self.sites {
                let Some(process) = &site.process else { return Err("a site down".into()) };
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
                    self.nudge(site);
                }
            }
            Event::Hint { at, about } => {
                let site = &self.sites[usize::from(at) - 1];
                if let Some(process) = &site.process {
                    process.shared.mesh.report_gone(about);
                    self.nudge(at);
                }
            }
        }
    }

    // Sites

    fn boot(&mut self, number: u8) {
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
    fn give<const N: usize>(&mut self, site: u8, items: [(u16, Item); N]) -> bool {
        let now = self.now();
        let process = &self.sites[usize::from(site) - 1].process;
        let taken = process.as_ref().is_some_and(|process| process.push(now, items));
        self.nudge(site);
        taken
    }

    /// Something was handed in: the turn comes sooner, if the worker listens.
    fn nudge(&mut self, site: u8) {
        let process = &self.sites[usize::from(site) - 1].process;
        if process.as_ref().is_some_and(|process| process.listens) {
            let after = self.random.between(3, 20);
            self.plan_turn(site, after);
        }
    }

    fn plan_turn(&mut self, site: u8, after_us: u64) {
        let at = self.now() + after_us;
        let number = self.made + 1;
        let process = &mut self.sites[usize::from(site) - 1].process;
        let Some(process) = process.as_mut().filter(|process| process.next_turn.0 > at) else {
            return;
        };
        process.next_turn = (at, number);
        self.plan(after_us, Event::Turn(site, number));
    }

    fn turn(&mut self, number: u8, turn: u64) {
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
                assert!(matches!(error, WorkerError::Log(_)), "block: site {number}: {error}");
                // As the runtime: the process ends, having handed nothing out.
                self.trace.add(u64::from(number));
                let down_us = self.random.between(20 * MS, SECOND);
                return self.crash(number, Tear::Sectors, down_us, true);
            }
        };
        self.checker.follow(number, process, &self.setup);
        let read_back = read_back(process);
        let (rest_us, listens) = process.worker.rest(clocks);
        process.listens = listens;
        let disk_us = site.disk_due_us.get().map(|due| due.saturating_sub(now_us));
        let shared = std::sync::Arc::clone(&process.shared);
        if doomed == Some(Moment::Silent) {
            return self.doom(number);
        }
        for to in (1..=self.setup.sites).filter(|to| *to != number) {
            for traffic in [Traffic::Urgent, Traffic::Bulk] {
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
        while let Some(mut out) = shared.exchange.pop_out() {
            self.take_outputs(number, &mut out);
            shared.exchange.recycle_out(out);
        }
        if doomed == Some(Moment::After) {
            return self.doom(number);
        }
        let life = self.sites[usize::from(number) - 1].life;
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

    fn doom(&mut self, number: u8) {
        if let Some(doom) = self.dooms[usize::from(number) - 1].take() {
            self.crash(number, doom.tear, doom.down_us, doom.hint);
        }
    }

    fn crash(&mut self, number: u8, tear: Tear, down_us: u64, hint: bool) {
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
    fn hint(&mut self, about: u8) {
        for at in (1..=self.setup.sites).filter(|at| *at != about) {
            let after = self.random.below(3 * MS);
            self.plan(after, Event::Hint { at, about });
        }
    }

    fn stop(&mut self, number: u8, life: u32, down_us: u64) {
        let site = &mut self.sites[usize::from(number) - 1];
        let Some(process) = site.process.take().filter(|_| site.life == life) else { return };
        // It fails where the disk does.
        drop(process.worker.log.close());
        self.crash(number, Tear::Nothing, down_us, true);
    }

    // Between the sites

    fn post(&mut self, from: u8, to: u8, bytes: Bytes) {
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
            let after = self.random.between(150, most);
            self.plan(after, Event::Packet { from, to, bytes: bytes.clone() });
        }
    }

    fn packet(&mut self, from: u8, to: u8, bytes: Bytes) {
        if self.cuts.contains_key(&(from, to)) {
            return;
        }
        let process = &self.sites[usize::from(to) - 1].process;
        let Some(process) = process else { return };
        // A full queue drops it, as it would.
        drop(process.shared.exchange.push_packet(Packet { from, bytes }));
        self.nudge(to);
    }

    fn cut(&mut self, from: u8, to: u8, cut: bool) {
        let times = self.cuts.entry((from, to)).or_insert(0);
        *times = if cut { *times + 1 } else { times.saturating_sub(1) };
        if *times == 0 {
            self.cuts.remove(&(from, to));
        }
    }

    // Clients

    fn bootstrap(&mut self) {
        let known = &self.checker.merchants;
        let merchants = self.setup.merchants.iter();
        let unknown: Vec<_> = merchants.filter(|m| !known.contains(&m.mch_id)).cloned().collect();
        for merchant in &unknown {
            let shard = merchant.mch_id.shard(self.setup.shards);
            let command =
                AdminCommand::PutMerchant { merchant: merchant.clone(), only_if_absent: true };
            for site in 1..=self.setup.sites {
                self.command(site, shard, command.clone());
            }
        }
        if !unknown.is_empty() {
            self.plan(100 * MS, Event::Bootstrap);
        }
    }

    fn command(&mut self, site: u8, shard: u16, command: AdminCommand) {
        let operator = ShortText::new(b"ops").unwrap();
        let input = AdminInput { ticket: 1, operator, command };
        self.give(site, [(shard, Item::Admin(Box::new(input)))]);
    }

    fn ask(&mut self, call: usize, site: u8) {
        let request = self.clients.request(call, site, &self.setup, &mut self.random);
        let Some((correlation, site, item)) = request else { return };
        self.plan(self.setup.patience_us, Event::Impatient(correlation));
        if self.lost() {
            return;
        }
        let after = self.random.between(100, MS);
        let item = Box::new(item);
        self.plan(after, Event::Request { site, correlation, item });
    }

    fn lost(&mut self) -> bool {
        self.faults && self.random.percent(4)
    }

    fn next(&mut self, next: Next) {
        match next {
            Next::Nothing => {}
            Next::Again(call, site, after) => self.plan(after, Event::Ask(call, site)),
        }
    }

    fn answer(&mut self, site: u8, correlation: u64, body: &ReplyBody) {
        self.trace.add(correlation ^ 0xa);
        let Some((key, ask)) = self.clients.asked(correlation) else { return };
        match (body, ask) {
            (ReplyBody::Order(body), _) => self.checker.heard(key, body),
            (ReplyBody::Refund(body), Ask::Refund { refund } | Ask::QueryRefund { refund }) => {
                self.checker.heard_refund(key, refund, body);
            }
            _ => panic!("a refund reply to {ask:?}"),
        }
        let next = self.clients.answer(correlation, site, body, &self.setup, &mut self.random);
        self.checker.books(key, &self.channels, &self.setup);
        self.next(next);
        for key in std::mem::take(&mut self.clients.fresh) {
            self.follow_up(key);
        }
    }

    /// What clients do once an outcome is known: look at it from everywhere,
    /// and want their money back.
    fn follow_up(&mut self, key: usize) {
        if !self.faults {
            return;
        }
        for site in 1..=self.setup.sites {
            let call = self.clients.call(key, Ask::Query { refresh: false }, false);
            let after = self.random.below(5 * MS);
            self.plan(after, Event::Ask(call, site));
        }
        for refund in 0..REFUNDS {
            if self.clients.is_paid(key) && self.random.percent(35) {
                let call = self.clients.call(key, Ask::Refund { refund }, false);
                let after = self.random.below(400 * MS);
                self.plan(after, Event::Ask(call, 0));
            }
        }
    }

    fn take_outputs(&mut self, site: u8, out: &mut OutBatch) {
        let life = self.sites[usize::from(site) - 1].life;
        for reply in out.replies.drain(..) {
            let correlation = reply.waiter.correlation;
            if reply.waiter.connection != CONNECTION {
                continue;
            }
            if let (ReplyBody::Order(body), Some((key, _))) =
                (&reply.body, self.clients.asked(correlation))
            {
                self.checker.tells(key, body, &self.setup);
            }
            if self.verbose {
                println!("{:>10} site {site} tells {:?}", self.now(), reply.body);
            }
            if !self.lost() {
                let late = self.faults && self.random.percent(3);
                let after = self.random.between(100, if late { 2 * SECOND } else { MS });
                let body = Box::new(reply.body);
                self.plan(after, Event::Answer { site, correlation, body });
            }
        }
        for send in out.sends.drain(..) {
            self.transmit(site, life, send);
        }
        for (waiter, event) in out.events.drain(..) {
            let key = self.setup.keys.iter().position(|key| {
                (key.mch_id, key.out_trade_no) == (event.mch_id, event.out_trade_no)
            });
            self.checker.heard_event(key.expect("a known payment"), event.sequence);
            if self.random.percent(if self.faults { 70 } else { 100 }) {
                let after = self.random.between(200, 5 * MS);
                let event_id = event.event_id;
                self.plan(after, Event::Taken { site, life, event_id, waiter });
            }
        }
        out.merchants.clear();
        out.admin.clear();
    }

    // Channels

    fn transmit(&mut self, site: u8, life: u32, send: Send) {
        self.trace.add(send.operation.pack());
        let operation = send.operation;
        let fate = if self.faults { self.random.below(100) } else { 99 };
        let mut copies = 1;
        let mut said = None;
        match fate {
            0..=5 => copies = 0,
            6..=8 => (copies, said) = (0, Some(Evidence::NotSent)),
            9..=11 => said = Some(Evidence::Lost),
            // A channel that is not idempotent is spoken to over a transport
            // that does not repeat.
            12..=15 => {
                let channel = &self.setup.channels[usize::from(send.channel) - 1];
                let repeats = operation.operation != Operation::Charge || channel.idempotent_pay;
                copies += u32::from(repeats);
            }
            _ => {}
        }
        if let Some(evidence) = said {
            let evidence = Box::new(evidence);
            self.plan(MS, Event::Evidence { site, life, operation, evidence });
        }
        for _ in 0..copies {
            let after = self.wander();
            self.plan(after, Event::Arrive { site, life, send: Box::new(send) });
        }
    }

    fn wander(&mut self) -> u64 {
        match self.faults && self.random.percent(20) {
            true => self.random.below(WANDER_US),
            false => self.random.between(MS, 20 * MS),
        }
    }

    fn arrive(&mut self, site: u8, life: u32, send: &Send) {
        self.checker.arrives(send);
        let wall_ms = (START_WALL + self.now() + self.setup.skew_us / 2) / 1000;
        let acted = self.channels.act(send, wall_ms, &self.setup, self.faults, &mut self.random);
        let number = send.request.charge_no.to_string();
        let key = self.setup.keys.iter().position(|key| number.starts_with(&key.prefix));
        let key = key.expect("a known payment");
        if self.verbose {
            println!("{:>10} acts {key} {:?} {:?}", self.now(), send.operation, acted.evidence);
        }
        if let Some(after) = acted.payer_after_us {
            self.plan(after, Event::Payer { channel: send.channel, number, key });
        }
        self.checker.books(key, &self.channels, &self.setup);
        let copies = if self.faults { 1 + u64::from(self.random.percent(5)) } else { 1 };
        for _ in 0..copies {
            if !self.faults || !self.random.percent(12) {
                let after = self.wander();
                let (operation, evidence) = (send.operation, Box::new(acted.evidence));
                self.plan(after, Event::Evidence { site, life, operation, evidence });
            }
        }
    }

    // Faults

    fn victim(&self, victim: Victim) -> u8 {
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

    fn fault(&mut self, fault: Fault) {
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

    fn contest(&mut self, fault: Fault, for_us: u64) {
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

    fn cut_off(&mut self, site: u8, to: bool, from: bool, cut: bool) {
        for other in (1..=self.setup.sites).filter(|other| *other != site) {
            if to {
                self.cut(other, site, cut);
            }
            if from {
                self.cut(site, other, cut);
            }
        }
    }

    fn drain(&mut self, drained: u8, is: bool) {
        for site in 1..=self.setup.sites {
            self.command(site, 0, AdminCommand::SetDrained { site: drained, drained: is });
        }
    }

    fn over(&mut self, fault: Fault, site: u8) {
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
    fn heal(&mut self) {
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
            self.nudge(site);
            self.drain(site, false);
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
