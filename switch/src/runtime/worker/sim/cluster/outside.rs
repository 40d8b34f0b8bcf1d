//! The world around the sites: clients, operators, channels.

use protocol::code::RefundState;
use protocol::id::{OutRefundNo, ShortText};

use super::super::client::{Ask, CONNECTION, Next, REFUNDS};
use super::super::setup::{MS, SECOND, START_WALL, WANDER_US};
use super::{Cluster, Event};
use crate::engine::input::{AdminCommand, AdminInput, Evidence, Operation};
use crate::engine::order::AttemptState;
use crate::engine::output::{ReplyBody, Send};
use crate::runtime::held::Fate;
use crate::runtime::inbox::{Item, OutBatch};

impl Cluster {
    pub(super) fn bootstrap(&mut self) {
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

    /// Something for the log of a shard.
    pub(super) fn record(&mut self, shard: u16) {
        let merchant = self.setup.merchants[usize::from(shard)].clone();
        let command = AdminCommand::PutMerchant { merchant, only_if_absent: false };
        for site in 1..=self.setup.sites {
            self.command(site, shard, command.clone());
        }
    }

    pub(super) fn command(&mut self, site: u8, shard: u16, command: AdminCommand) {
        let operator = ShortText::new(b"ops").unwrap();
        let input = AdminInput { ticket: 1, operator, command };
        self.give(site, [(shard, Item::Admin(Box::new(input)))]);
    }

    pub(super) fn ask(&mut self, call: usize, site: u8) {
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

    pub(super) fn lost(&mut self) -> bool {
        self.faults && self.random.percent(4)
    }

    pub(super) fn next(&mut self, next: Next) {
        match next {
            Next::Nothing => {}
            Next::Again(call, site, after) => self.plan(after, Event::Ask(call, site)),
        }
    }

    pub(super) fn answer(&mut self, site: u8, correlation: u64, body: &ReplyBody) {
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
    pub(super) fn follow_up(&mut self, key: usize) {
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

    pub(super) fn take_outputs(&mut self, site: u8, out: &mut OutBatch) {
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
        self.let_go(site, &out.sends);
        out.sends.clear();
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

    /// What the network thread does with requests: they leave under the lease.
    pub(super) fn let_go(&mut self, site: u8, sends: &[Send]) {
        let now_us = self.now();
        let at = &mut self.sites[usize::from(site) - 1];
        let (life, Some(process)) = (at.life, &mut at.process) else { return };
        for send in sends {
            process.held.push(send);
        }
        let mono_us = process.clocks(now_us).mono_us;
        let mut settled = Vec::new();
        let mesh = &process.shared.mesh;
        process.held.settle(mesh, mono_us, |send, fate| settled.push((*send, fate)));
        self.held_back += u64::from(!process.held.is_empty());
        for (send, fate) in settled {
            let operation = send.operation;
            if fate == Fate::Sent {
                let lease_us = self.setup.lease_us();
                self.checker.sends(operation.shard, send.term, now_us, lease_us);
                self.transmit(site, life, send);
            } else {
                let evidence = Box::new(Evidence::NotSent);
                self.plan(MS, Event::Evidence { site, life, operation, evidence });
            }
        }
    }

    pub(super) fn transmit(&mut self, site: u8, life: u32, send: Send) {
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

    pub(super) fn wander(&mut self) -> u64 {
        match self.faults && self.random.percent(20) {
            true => self.random.below(WANDER_US),
            false => self.random.between(MS, 20 * MS),
        }
    }

    pub(super) fn arrive(&mut self, site: u8, life: u32, send: &Send) {
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

    /// An operator decides what is in front of him by the channel's ledger, once
    /// nothing about it can be on its way any more.
    pub(super) fn operate(&mut self) {
        if self.setup.patient {
            return;
        }
        for key in 0..self.setup.keys.len() {
            let Some(view) = self.checker.view(&self.setup, key) else { continue };
            let manual = view.attempts.last().is_some_and(|a| a.state == AttemptState::Manual)
                || view.refunds.iter().any(|refund| refund.state == RefundState::Manual);
            if !manual {
                self.manual_since.remove(&key);
                continue;
            }
            let now = self.now();
            let since = *self.manual_since.entry(key).or_insert(now);
            if now - since <= WANDER_US + self.setup.own_us() + 20 * MS {
                continue;
            }
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

    pub(super) fn decide(&mut self, key: usize, out_refund_no: Option<OutRefundNo>, success: bool) {
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
}
