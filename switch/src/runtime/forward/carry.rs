//! The other direction: requests that other sites send on to this one, which
//! leads their shard, and the answers to them.

use bytes::Bytes;
use protocol::code::Code;
use protocol::message::kind;

use super::envelope::{Answer, Malformed, Request};
use super::{ASKED_MAX, Forwarder, SITE_BIT, Site};
use crate::engine::input::Waiter;
use crate::engine::output::{Reply, ReplyBody};
use crate::runtime::clock;
use crate::runtime::inbox::Item;
use crate::runtime::net::Net;
use crate::runtime::request::{self, Delivery};

impl Forwarder {
    /// Takes a worker's reply to another site's request.
    pub(super) fn settle_forwarded(&self, net: &Net, reply: &Reply) {
        let (number, link) =
            (reply.waiter.connection as u8, (reply.waiter.connection >> 32) as u32);
        let Some(site) = self.site(number) else { return };
        // The connection that it came on has ended: it is not counted any more,
        // and nobody waits for it.
        if site.link.get() != link || !site.linked.get() || site.taken.get() == 0 {
            return;
        }
        site.taken.set(site.taken.get() - 1);
        net.outstanding.set(net.outstanding.get().saturating_sub(1));
        net.has_answered(reply.code());
        self.answer(net, site, reply);
    }

    fn answer(&self, net: &Net, site: &Site, reply: &Reply) {
        let mut answers = site.answers.borrow_mut();
        let out = &mut answers.open;
        let start = Answer::begin(reply.waiter.correlation, reply.waiter.kind | kind::REPLY, out);
        match &reply.body {
            ReplyBody::Order(body) => body.encode(out),
            ReplyBody::Refund(body) => body.encode(out),
        }
        Answer::end(start, out);
        answers.grown();
        net.flush_soon();
    }

    /// Requests that another site could not carry out itself.
    pub(super) fn requests(&self, net: &Net, from: u8, link: u32, packet: &Bytes) {
        let Some(site) = self.site(from) else { return };
        if !self.is_newest(net, site, from, link) {
            return;
        }
        let (mut rest, now_us): (&[u8], _) = (packet, clock::mono_us());
        let metrics = net.metrics.peer(from);
        loop {
            match Request::take(&mut rest) {
                Ok(Some(request)) => {
                    if let Some(metrics) = metrics {
                        metrics.forwarded_here.add(1);
                    }
                    self.carry_out(net, site, from, &request, now_us);
                }
                Ok(None) => return,
                Err(Malformed) => {
                    if let Some(metrics) = metrics {
                        metrics.malformed.add(1);
                    }
                    return;
                }
            }
        }
    }

    /// Whether a connection is the newest of its site, and has not ended. What comes late
    /// from an earlier one is nobody's: its requests were taken back when it was lost.
    fn is_newest(&self, net: &Net, site: &Site, from: u8, link: u32) -> bool {
        match link.wrapping_sub(site.link.get()).cast_signed() {
            0 => site.linked.get(),
            ..0 => false,
            1.. => {
                self.closed(net, from, site.link.get());
                site.link.set(link);
                site.linked.set(true);
                true
            }
        }
    }

    /// Gives another site's request to this site's worker. It goes no further:
    /// two sites that each believe in the other would play ball with it.
    fn carry_out(&self, net: &Net, site: &Site, from: u8, request: &Request<'_>, now_us: u64) {
        let waiter = Waiter {
            connection: u64::from(site.link.get()) << 32 | SITE_BIT | u64::from(from),
            stream: 0,
            kind: request.kind,
            correlation: request.ticket,
        };
        let delivery = Delivery {
            waiter,
            gateway: request.gateway,
            wait_us: u64::from(request.wait_ms) * 1000,
            second: request.second,
        };
        let admitted = request::deliver(net, &delivery, request.body, |shard, mch_id| {
            // Where the other site knows of other keys, gateways or addresses than this
            // one, which has heard of everything, its judgement counts for nothing.
            let authority = net.directory.borrow().authority(mch_id);
            if net.draining.get() || !net.judges(shard) || authority != Some(request.authority) {
                return Err(Code::NotLeader);
            }
            // What its gateway has unanswered is not known here.
            let overloaded = net.is_overloaded(usize::MAX, now_us);
            let room = site.taken.get() < ASKED_MAX && !overloaded && !net.congested(shard);
            if room { Ok(()) } else { Err(Code::Overloaded) }
        });
        match admitted {
            Ok(()) => {
                site.taken.set(site.taken.get() + 1);
                net.outstanding.set(net.outstanding.get() + 1);
            }
            Err(code) => {
                let retry_ms = if code.retryable() { net.retry_after_ms() } else { 0 };
                self.answer(net, site, &Reply::refusal(waiter, code, retry_ms));
            }
        }
    }

    /// A connection of another site ended, or was followed by a newer one.
    pub(super) fn closed(&self, net: &Net, from: u8, link: u32) {
        let Some(site) = self.site(from) else { return };
        if site.link.get() != link || !site.linked.replace(false) {
            return;
        }
        let taken = site.taken.take();
        net.outstanding.set(net.outstanding.get().saturating_sub(taken));
        // Answers of before would only be ignored there.
        site.answers.take();
        let connection = u64::from(link) << 32 | SITE_BIT | u64::from(from);
        net.broadcast(|| Item::ConnectionClosed(connection));
    }
}
