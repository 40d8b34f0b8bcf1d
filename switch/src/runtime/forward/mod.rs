//! Requests for shards that another site leads: sent there and answered from
//! there, or kept until the shard has a leader again.
//!
//! In a deployment of several sites the network thread holds the frame of every
//! unanswered request, whoever works on it, because leadership may move at any
//! time and whatever a request's leader had not answered is then given to the
//! next one. That is safe: requests are idempotent by their number. What somebody
//! had before is never refused as if nothing had come of it. A request
//! makes one hop: the site that receives it and does not lead says so, and the
//! asking site decides. The leader takes the asking site's word for merchant and
//! signature only where both know the same of the merchant. A deployment of one
//! site has no `Forwarder` at all.
//!
//! Tested by sites on loopback with played workers.

mod carry;
mod envelope;
mod held;
#[cfg(test)]
mod tests;
mod wait;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use protocol::code::Code;
use protocol::id::MchId;
use protocol::message::{OrderReply, RefundReply, kind};
use tokio::sync::Notify;

use super::clock;
use super::ferry::{Arrival, Ferry};
use super::gateway::Connection;
use super::mesh::{Mesh, Refused};
use super::net::Net;
use crate::engine::input::Waiter;
use crate::engine::output::{Reply, ReplyBody};
use envelope::{Answer, Request};
use held::{Held, Holder, Place};
use wait::Refusal;

/// Requests at one site without its answer; more are shed.
const ASKED_MAX: usize = 16_384;
/// Requests that wait for a leader; more are shed.
const WAITING_MAX: usize = 16_384;
/// A packet is closed at this size; one more request or answer still fits.
const PACKET_BYTES: usize = 256 << 10;
/// Closed packets that wait for the link before requests are shed.
const SEALED_MAX: usize = 8;

/// Marks a waiter that is another site: gateway connections have slots far
/// below this bit.
const SITE_BIT: u64 = 1 << 31;

/// A gateway's request, decoded and authorised.
pub struct Incoming<'a> {
    /// Where its answer goes.
    pub waiter: Waiter,
    /// Its merchant.
    pub mch_id: MchId,
    /// What it was authorised by (`Directory::authority`).
    pub authority: u64,
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
    /// Its newest connection that brought requests; they count up.
    link: Cell<u32>,
    /// That one has not ended.
    linked: Cell<bool>,
    /// Requests of that connection without our answer.
    taken: Cell<usize>,
}

/// The network thread's side of the peer links.
pub struct Forwarder {
    mesh: Arc<Mesh>,
    ferry: Arc<Ferry>,
    /// The engine's bound on a wait, microseconds.
    sync_wait_us: u64,
    /// How long a request waits for a leader that takes it, microseconds.
    patience_us: Cell<u64>,
    held: RefCell<Holder>,
    waiting: RefCell<VecDeque<u64>>,
    /// By number - 1; this site's own entry stays idle.
    sites: Vec<Site>,
    /// A first request waits.
    waits: Notify,
    /// This site knows all that it must to lead a shard.
    heard: Notify,
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
            patience_us: Cell::new(wait::PATIENCE_US),
            held: RefCell::default(),
            waiting: RefCell::default(),
            waits: Notify::new(),
            heard: Notify::new(),
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

    /// A new leader's own site is asked once it knows of every merchant what was
    /// committed before: a request must not pass by a key that was revoked.
    fn target(&self, net: &Net, shard: u16) -> Target {
        match self.mesh.leader(shard) {
            0 => Target::Nobody,
            leader if leader == self.mesh.site() => match net.judges(shard) {
                true => Target::Here,
                false => Target::Nobody,
            },
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
        let target = self.target(net, incoming.shard);
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
            mch_id: incoming.mch_id,
            authority: incoming.authority,
            gateway: incoming.gateway,
            shard: incoming.shard,
            second: incoming.second,
            tried: false,
            until_us: now_us + wait_us,
            patience_us: 0,
            place: if matches!(target, Target::Here) { Place::Here } else { Place::NOWHERE },
            body: Vec::new(),
        };
        let ticket = self.held.borrow_mut().insert(held, incoming.body);
        match target {
            Target::Here => {
                return Ok(Placed::Here(Waiter { correlation: ticket, ..incoming.waiter }));
            }
            Target::Site(site) => self.send(net, ticket, site, now_us),
            Target::Nobody => self.park(ticket, Refusal::NONE, now_us),
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
            authority: request.authority,
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

    /// Takes a worker's reply. Gives it back when it is for a gateway, and with
    /// the waiter that the gateway's connection knows.
    pub fn settle(&self, net: &Net, reply: &Reply) -> Option<Reply> {
        if reply.waiter.connection & SITE_BIT != 0 {
            self.settle_forwarded(net, reply);
            return None;
        }
        let ticket = reply.waiter.correlation;
        let ended = match self.held.borrow_mut().get(ticket)? {
            held if held.place == Place::Here => held.is_ended_by(&reply.body),
            _ => return None,
        };
        if !ended {
            // Leadership moved on while it was on its way to the worker, say.
            self.park(ticket, Refusal::by(self.mesh.site(), &reply.body), clock::mono_us());
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
                    // The worker gets what there is before more comes: else one
                    // pass over a burst would fill the batch and refuse the rest.
                    if net.is_filling() {
                        break;
                    }
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
        let ended = self.held.borrow_mut().get(answer.ticket).map(|held| held.is_ended_by(&body));
        if ended == Some(false) {
            self.park(answer.ticket, Refusal::by(from, &body), clock::mono_us());
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
}
