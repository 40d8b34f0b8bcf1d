//! Requests for shards that another site leads: sent there and answered from
//! there, or kept until the shard has a leader again.
//!
//! In a deployment of several sites the network thread holds the frame of every
//! unanswered request, whoever works on it, because leadership may move at any
//! time and whatever a request's leader had not answered is then given to the
//! next one. That is safe: requests are idempotent by their number. A request
//! makes one hop: the site that receives it and does not lead says so, and the
//! asking site decides. A deployment of one site has no `Forwarder` at all.
//!
//! Tested by sites on loopback with played workers.

mod carry;
mod envelope;
mod held;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::code::Code;
use protocol::message::{OrderReply, RefundReply, kind};
use tokio::sync::Notify;

use super::clock;
use super::ferry::{Arrival, Ferry};
use super::gateway::Connection;
use super::mesh::{Mesh, Refused};
use super::net::Net;
use super::request::{self, Delivery};
use crate::engine::input::Waiter;
use crate::engine::output::{Reply, ReplyBody};
use envelope::{Answer, Request};
use held::{Held, Holder, Place};

/// How long a request waits for its shard to have a leader, microseconds.
const PATIENCE_US: u64 = 1_500_000;
/// Pause before a site is asked again that said it does not lead, microseconds.
const AGAIN_US: u64 = 20_000;
/// What an answer may take beyond the gateway's wait, microseconds.
const GRACE_US: u64 = 1_000_000;
/// Requests at one site without its answer; more are shed.
const ASKED_MAX: usize = 16_384;
/// Requests that wait for a leader; more are shed.
const WAITING_MAX: usize = 16_384;
/// A packet is closed at this size; one more request or answer still fits.
const PACKET_BYTES: usize = 256 << 10;
/// Closed packets that wait for the link before requests are shed.
const SEALED_MAX: usize = 8;
/// How often waiting requests are looked at.
const TICK: Duration = Duration::from_millis(5);
/// How often all others are.
const SWEEP: Duration = Duration::from_millis(250);

/// Marks a waiter that is another site: gateway connections have slots far
/// below this bit.
const SITE_BIT: u64 = 1 << 31;

/// A gateway's request, decoded and authorised.
pub struct Incoming<'a> {
    /// Where its answer goes.
    pub waiter: Waiter,
    /// Number of its gateway.
    pub gateway: u16,
    /// Its shard.
    pub shard: u16,
    /// A second signature was verified.
    pub second: bool,
    /// How long its gateway waits; 0: the engine's bound.
    pub wait_ms: u32,
    /// Its body.
    pub body: &'a [u8],
}

/// What became of a request that was held.
pub enum Placed {
    /// It is this site's worker's to carry out, with this waiter.
    Here(Waiter),
    /// It was sent on, or waits.
    Elsewhere,
}

/// Packets towards a site, built up entry by entry.
#[derive(Default)]
struct Outgoing {
    open: Vec<u8>,
    sealed: VecDeque<Vec<u8>>,
}

impl Outgoing {
    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.sealed.push_back(std::mem::take(&mut self.open));
        }
    }

    fn grown(&mut self) {
        if self.open.len() >= PACKET_BYTES {
            self.seal();
        }
    }
}

/// Another site, seen from the network thread.
#[derive(Default)]
struct Site {
    forwards: RefCell<Outgoing>,
    answers: RefCell<Outgoing>,
    /// Requests of ours without its answer.
    asked: Cell<usize>,
    /// Losses of our link that were dealt with.
    losses: Cell<u64>,
    /// Its connection whose requests are carried out here; 0: none yet.
    link: Cell<u32>,
    /// Requests of that connection without our answer.
    taken: Cell<usize>,
}

/// The network thread's side of the peer links.
pub struct Forwarder {
    mesh: Arc<Mesh>,
    ferry: Arc<Ferry>,
    /// The engine's bound on a wait, microseconds.
    sync_wait_us: u64,
    held: RefCell<Holder>,
    waiting: RefCell<VecDeque<u64>>,
    /// By number - 1; this site's own entry stays idle.
    sites: Vec<Site>,
    /// A first request waits.
    waits: Notify,
}

/// Where a shard's requests go.
enum Target {
    Here,
    Site(u8),
    Nobody,
}

impl Forwarder {
    /// Over what is shared with the peer thread; `sync_wait_us` is the engine's
    /// bound on a wait.
    pub fn new(mesh: Arc<Mesh>, ferry: Arc<Ferry>, sync_wait_us: u64) -> Self {
        Self {
            sites: (0..mesh.sites()).map(|_| Site::default()).collect(),
            mesh,
            ferry,
            sync_wait_us,
            held: RefCell::default(),
            waiting: RefCell::default(),
            waits: Notify::new(),
        }
    }

    /// What is shared about the other sites.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Whether this site leads a shard.
    pub fn leads(&self, shard: u16) -> bool {
        self.mesh.leader(shard) == self.mesh.site()
    }

    fn site(&self, site: u8) -> Option<&Site> {
        self.sites.get(usize::from(site).checked_sub(1)?)
    }

    fn target(&self, shard: u16) -> Target {
        match self.mesh.leader(shard) {
            0 => Target::Nobody,
            leader if leader == self.mesh.site() => Target::Here,
            leader if self.mesh.route(leader).is_some_and(|route| route.is_up()) => {
                Target::Site(leader)
            }
            _ => Target::Nobody,
        }
    }

    /// Takes a request over: holds it, and sends it on unless it is this site's.
    ///
    /// # Errors
    /// [`Code::Overloaded`], when a bound is reached.
    pub fn take(&self, net: &Net, incoming: &Incoming<'_>) -> Result<Placed, Code> {
        let target = self.target(incoming.shard);
        let shed = match target {
            Target::Here => false,
            Target::Site(site) => !self.has_room(site),
            Target::Nobody => self.waiting.borrow().len() >= WAITING_MAX,
        };
        if shed || self.held.borrow().full() {
            return Err(Code::Overloaded);
        }
        let now_us = clock::mono_us();
        let wait_us = match u64::from(incoming.wait_ms) * 1000 {
            0 => self.sync_wait_us,
            wait_us => wait_us.min(self.sync_wait_us),
        };
        let held = Held {
            waiter: incoming.waiter,
            gateway: incoming.gateway,
            shard: incoming.shard,
            second: incoming.second,
            until_us: now_us + wait_us,
            patience_us: 0,
            place: Place::Here,
            body: Vec::new(),
        };
        let ticket = self.held.borrow_mut().insert(held, incoming.body);
        match target {
            Target::Here => {
                return Ok(Placed::Here(Waiter { correlation: ticket, ..incoming.waiter }));
            }
            Target::Site(site) => self.send(net, ticket, site, now_us),
            Target::Nobody => self.park(ticket, 0, now_us),
        }
        Ok(Placed::Elsewhere)
    }

    fn has_room(&self, site: u8) -> bool {
        self.site(site).is_some_and(|site| {
            site.asked.get() < ASKED_MAX && site.forwards.borrow().sealed.len() < SEALED_MAX
        })
    }

    /// Encodes a held request into the packet towards `site`.
    fn send(&self, net: &Net, ticket: u64, site: u8, now_us: u64) {
        let mut held = self.held.borrow_mut();
        let (Some(request), Some(to)) = (held.get(ticket), self.site(site)) else { return };
        request.place = Place::At(site);
        to.asked.set(to.asked.get() + 1);
        let left_us = request.until_us.saturating_sub(now_us);
        let mut forwards = to.forwards.borrow_mut();
        let forwarded = Request {
            ticket,
            wait_ms: ((left_us / 1000) as u32).max(1),
            gateway: request.gateway,
            kind: request.waiter.kind,
            second: request.second,
            body: &request.body,
        };
        forwarded.encode(&mut forwards.open);
        forwards.grown();
        if let Some(metrics) = net.metrics.peer(site) {
            metrics.forwarded.add(1);
        }
        net.flush_soon();
    }

    /// Lets a request wait for a leader. `refused_by`: the site that was asked
    /// and does not lead, or 0.
    fn park(&self, ticket: u64, refused_by: u8, now_us: u64) {
        let mut held = self.held.borrow_mut();
        let Some(ticket) = held.renew(ticket) else { return };
        let Some(request) = held.get(ticket) else { return };
        if let Place::At(site) = request.place
            && let Some(site) = self.site(site)
        {
            site.asked.set(site.asked.get().saturating_sub(1));
        }
        if request.patience_us == 0 {
            request.patience_us = (now_us + PATIENCE_US).min(request.until_us);
        }
        request.place = Place::Waiting { refused_by, again_us: now_us + AGAIN_US };
        self.waiting.borrow_mut().push_back(ticket);
        self.waits.notify_one();
    }

    /// Takes a worker's reply. Gives it back when it is for a gateway, and with
    /// the waiter that the gateway's connection knows.
    pub fn settle(&self, net: &Net, reply: &Reply) -> Option<Reply> {
        if reply.waiter.connection & SITE_BIT != 0 {
            self.settle_forwarded(net, reply);
            return None;
        }
        let ticket = reply.waiter.correlation;
        if self.held.borrow_mut().get(ticket)?.place != Place::Here {
            return None;
        }
        if is_refused(&reply.body) {
            // Leadership moved on while it was on its way to the worker.
            self.park(ticket, self.mesh.site(), clock::mono_us());
            return None;
        }
        let held = self.held.borrow_mut().remove(ticket)?;
        Some(Reply { waiter: held.waiter, body: reply.body })
    }

    /// Hands the packets over to the peer thread. Returns false when a link is
    /// behind.
    pub fn flush(&self) -> bool {
        let mut done = true;
        for number in self.mesh.others() {
            let (Some(site), Some(route)) = (self.site(number), self.mesh.route(number)) else {
                continue;
            };
            let mut forwards = site.forwards.borrow_mut();
            forwards.seal();
            while let Some(packet) = forwards.sealed.pop_front() {
                match route.offer_forwards(packet) {
                    Ok(()) => {}
                    // The loss of the link brings its requests back to mind.
                    Err(Refused::Down) => forwards.sealed.clear(),
                    Err(Refused::Full(packet)) => {
                        forwards.sealed.push_front(packet);
                        done = false;
                        break;
                    }
                }
            }
            let mut answers = site.answers.borrow_mut();
            answers.seal();
            while let Some(packet) = answers.sealed.pop_front() {
                if let Err(packet) = route.offer_answers(packet) {
                    answers.sealed.push_front(packet);
                    done = false;
                    break;
                }
            }
        }
        done
    }

    /// Takes what came over the peer links. Returns whether there was anything.
    pub fn arrivals(&self, net: &Net, dirty: &mut Vec<Rc<Connection>>) -> bool {
        let mut any = false;
        while let Some(arrival) = self.ferry.pop() {
            any = true;
            match arrival {
                Arrival::Forwards { from, link, packet } => {
                    self.requests(net, from, link, &packet);
                }
                Arrival::Answers { from, packet } => self.answers(net, from, &packet, dirty),
                Arrival::Closed { from, link } => self.closed(net, from, link),
            }
        }
        for number in self.mesh.others() {
            let (Some(site), Some(route)) = (self.site(number), self.mesh.route(number)) else {
                continue;
            };
            let losses = route.losses();
            if site.losses.replace(losses) != losses {
                self.recall(|held| held.place == Place::At(number));
            }
        }
        any
    }

    /// Answers of another site.
    fn answers(&self, net: &Net, from: u8, packet: &Bytes, dirty: &mut Vec<Rc<Connection>>) {
        let mut rest: &[u8] = packet;
        loop {
            let answered = match Answer::take(&mut rest) {
                Ok(Some(answer)) => self.answered(net, from, &answer, dirty),
                Ok(None) => return,
                Err(malformed) => Err(malformed),
            };
            if answered.is_err()
                && let Some(metrics) = net.metrics.peer(from)
            {
                metrics.malformed.add(1);
                return;
            }
        }
    }

    fn answered(
        &self,
        net: &Net,
        from: u8,
        answer: &Answer<'_>,
        dirty: &mut Vec<Rc<Connection>>,
    ) -> Result<(), envelope::Malformed> {
        let waiter = match self.held.borrow_mut().get(answer.ticket) {
            Some(held) if held.place == Place::At(from) => held.waiter,
            // Given to somebody else meanwhile, or its gateway has gone.
            _ => return Ok(()),
        };
        if answer.kind != waiter.kind | kind::REPLY {
            return Err(envelope::Malformed);
        }
        let mut body = if matches!(waiter.kind, kind::REFUND | kind::QUERY_REFUND) {
            ReplyBody::Refund(RefundReply::decode(answer.body).map_err(|_| envelope::Malformed)?)
        } else {
            ReplyBody::Order(OrderReply::decode(answer.body).map_err(|_| envelope::Malformed)?)
        };
        if is_refused(&body) {
            self.park(answer.ticket, from, clock::mono_us());
            return Ok(());
        }
        body.hint(from);
        self.finish(net, answer.ticket, body, dirty);
        Ok(())
    }

    /// Answers a held request.
    fn finish(&self, net: &Net, ticket: u64, body: ReplyBody, dirty: &mut Vec<Rc<Connection>>) {
        let Some(held) = self.held.borrow_mut().remove(ticket) else { return };
        self.left(held.place);
        net.reply(&Reply { waiter: held.waiter, body }, clock::mono_us(), dirty);
    }

    fn left(&self, place: Place) {
        if let Place::At(site) = place
            && let Some(site) = self.site(site)
        {
            site.asked.set(site.asked.get().saturating_sub(1));
        }
    }

    /// Refuses a held request with what is known of its leader.
    fn give_up(&self, net: &Net, ticket: u64, code: Code, dirty: &mut Vec<Rc<Connection>>) {
        let Some((waiter, shard)) =
            self.held.borrow_mut().get(ticket).map(|held| (held.waiter, held.shard))
        else {
            return;
        };
        let leader = self.mesh.leader(shard);
        let elsewhere = leader != 0 && leader != self.mesh.site();
        let code = match code {
            Code::NoLeader if elsewhere => Code::NotLeader,
            code => code,
        };
        let mut body = Reply::refusal(waiter, code, net.retry_after_ms()).body;
        if elsewhere {
            body.hint(leader);
        }
        self.finish(net, ticket, body, dirty);
    }

    /// Lets the requests that match wait for a leader anew.
    fn recall(&self, wanted: impl Fn(&Held) -> bool) {
        let tickets = self.held.borrow().tickets(wanted);
        let now_us = clock::mono_us();
        for ticket in tickets {
            self.park(ticket, 0, now_us);
        }
    }

    /// A gateway's connection ended: nobody waits for its requests.
    pub fn forget(&self, connection: u64) {
        let tickets = self.held.borrow().tickets(|held| held.waiter.connection == connection);
        for ticket in tickets {
            let held = self.held.borrow_mut().remove(ticket);
            if let Some(held) = held {
                self.left(held.place);
            }
        }
    }

    /// Gives waiting requests to their leaders as soon as there are any, and
    /// ends those whose time is over.
    pub async fn run(&self, net: &Net) {
        let mut dirty = Vec::new();
        let (mut changes, mut sweep_us) = (0, 0);
        loop {
            // Asked for before looking, so that no change is missed.
            let mut changed = std::pin::pin!(self.mesh.leaders_changed.notified());
            changed.as_mut().enable();
            let now_us = clock::mono_us();
            if std::mem::replace(&mut changes, self.mesh.changes()) != changes {
                net.tell_leaders();
                self.follow_leaders();
            }
            self.place_waiting(net, now_us, &mut dirty);
            if now_us >= sweep_us {
                sweep_us = now_us + SWEEP.as_micros() as u64;
                self.sweep(net, now_us, &mut dirty);
            }
            for connection in dirty.drain(..) {
                connection.wake_streams();
            }
            let idle = self.waiting.borrow().is_empty();
            tokio::select! {
                () = changed => {}
                () = self.waits.notified(), if idle => {}
                () = tokio::time::sleep(if idle { SWEEP } else { TICK }) => {}
            }
        }
    }

    /// Takes requests back from sites that lead their shards no longer: a site
    /// that has died or stands still cannot say so itself.
    fn follow_leaders(&self) {
        self.recall(|held| match held.place {
            Place::At(site) => {
                let leader = self.mesh.leader(held.shard);
                leader != 0 && leader != site
            }
            _ => false,
        });
    }

    fn place_waiting(&self, net: &Net, now_us: u64, dirty: &mut Vec<Rc<Connection>>) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for ticket in waiting {
            let Some((shard, patience_us, place)) = self
                .held
                .borrow_mut()
                .get(ticket)
                .map(|held| (held.shard, held.patience_us, held.place))
            else {
                continue;
            };
            let Place::Waiting { refused_by, again_us } = place else { continue };
            let asked = |site: u8| site == refused_by && now_us < again_us;
            match self.target(shard) {
                _ if now_us >= patience_us => self.give_up(net, ticket, Code::NoLeader, dirty),
                Target::Here if !asked(self.mesh.site()) => {
                    self.keep_here(net, ticket, now_us, dirty);
                }
                Target::Site(site) if !asked(site) && self.has_room(site) => {
                    self.send(net, ticket, site, now_us);
                }
                _ => self.waiting.borrow_mut().push_back(ticket),
            }
        }
        net.metrics.leaderless.set(self.waiting.borrow().len() as u64);
    }

    /// Gives a request that waited to this site's own worker.
    fn keep_here(&self, net: &Net, ticket: u64, now_us: u64, dirty: &mut Vec<Rc<Connection>>) {
        let delivered = {
            let mut held = self.held.borrow_mut();
            let Some(request) = held.get(ticket) else { return };
            request.place = Place::Here;
            let delivery = Delivery {
                waiter: Waiter { correlation: ticket, ..request.waiter },
                gateway: request.gateway,
                wait_us: request.until_us.saturating_sub(now_us).max(1),
                second: request.second,
            };
            request::deliver(net, &delivery, &request.body, |shard| {
                if net.congested(shard) { Err(Code::Overloaded) } else { Ok(()) }
            })
        };
        if let Err(code) = delivered {
            self.give_up(net, ticket, code, dirty);
        }
    }

    /// Ends requests that a site should have answered long ago.
    fn sweep(&self, net: &Net, now_us: u64, dirty: &mut Vec<Rc<Connection>>) {
        let overdue = self.held.borrow().tickets(|held| {
            matches!(held.place, Place::At(_)) && held.until_us + GRACE_US < now_us
        });
        for ticket in overdue {
            self.give_up(net, ticket, Code::NoLeader, dirty);
        }
    }
}

/// Whether a reply says that its site does not lead the shard.
fn is_refused(body: &ReplyBody) -> bool {
    let code = match body {
        ReplyBody::Order(body) => body.code,
        ReplyBody::Refund(body) => body.code,
    };
    matches!(code, Code::NotLeader | Code::NoLeader)
}
