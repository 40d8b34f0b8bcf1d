//! Requests that wait: for their shard to have a leader, or for the one that it has
//! to take them; and what becomes of those for which neither comes in time.

use std::rc::Rc;
use std::time::Duration;

use protocol::code::Code;

use super::held::{Held, Place};
use super::{Forwarder, Target};
use crate::engine::input::Waiter;
use crate::engine::output::{Reply, ReplyBody};
use crate::runtime::clock;
use crate::runtime::gateway::Connection;
use crate::runtime::net::Net;
use crate::runtime::request::{self, Delivery};

/// How long a request waits for its shard to have a leader that takes it, microseconds.
pub const PATIENCE_US: u64 = 1_500_000;
/// Shortest and longest pause before a site is asked again that did not take a
/// request, microseconds.
const AGAIN_US: (u64, u64) = (20_000, 200_000);
/// What an answer may take beyond the gateway's wait, microseconds.
const GRACE_US: u64 = 1_000_000;
/// How often waiting requests are looked at.
const TICK: Duration = Duration::from_millis(5);
/// How often all others are.
const SWEEP: Duration = Duration::from_millis(250);

/// That a site did not take a request.
#[derive(Clone, Copy)]
pub struct Refusal {
    by: u8,
    pause_us: u64,
}

impl Refusal {
    /// Nobody has refused it.
    pub const NONE: Self = Self { by: 0, pause_us: 0 };

    /// By a site, in these words. One that does not lead may do so any moment; one that
    /// has no room says how long.
    pub fn by(by: u8, body: &ReplyBody) -> Self {
        let (code, retry_ms) = match body {
            ReplyBody::Order(body) => (body.code, body.retry_after_ms),
            ReplyBody::Refund(body) => (body.code, body.retry_after_ms),
        };
        let pause_us = match code {
            Code::NotLeader | Code::NoLeader => AGAIN_US.0,
            _ => (u64::from(retry_ms) * 1_000).clamp(AGAIN_US.0, AGAIN_US.1),
        };
        Self { by, pause_us }
    }
}

impl Forwarder {
    /// Lets a request wait for a leader.
    pub(super) fn park(&self, ticket: u64, refusal: Refusal, now_us: u64) {
        let mut held = self.held.borrow_mut();
        let Some(ticket) = held.renew(ticket) else { return };
        let Some(request) = held.get(ticket) else { return };
        self.left(request.place);
        // Whoever had it may have carried it out, whatever was heard of it.
        request.tried |= !matches!(request.place, Place::Waiting { .. });
        if request.patience_us == 0 {
            request.patience_us = (now_us + self.patience_us.get()).min(request.until_us);
        }
        let Refusal { by, pause_us } = refusal;
        request.place = Place::Waiting { refused_by: by, again_us: now_us + pause_us };
        self.waiting.borrow_mut().push_back(ticket);
        self.waits.notify_one();
    }

    /// Lets the requests that match wait for a leader anew.
    pub(super) fn recall(&self, wanted: impl Fn(&Held) -> bool) {
        let tickets = self.held.borrow().tickets(wanted);
        let now_us = clock::mono_us();
        for ticket in tickets {
            self.park(ticket, Refusal::NONE, now_us);
        }
    }

    /// This site has heard of everything that it must know to lead some shard.
    pub fn has_heard(&self) {
        self.heard.notify_one();
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
                () = self.heard.notified() => {}
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
            let Some((shard, patience_us, place, tried)) = self
                .held
                .borrow_mut()
                .get(ticket)
                .map(|held| (held.shard, held.patience_us, held.place, held.tried))
            else {
                continue;
            };
            let Place::Waiting { refused_by, again_us } = place else { continue };
            let target = self.target(net, shard);
            if now_us >= patience_us {
                // Nobody ever had it, so that much can be said.
                let full = !tried && !matches!(target, Target::Nobody);
                let code = if full { Code::Overloaded } else { Code::NoLeader };
                self.give_up(net, ticket, code, dirty);
                continue;
            }
            let asked = |site: u8| site == refused_by && now_us < again_us;
            match target {
                Target::Here if !asked(self.mesh.site()) && !net.is_full(shard) => {
                    self.keep_here(net, ticket, now_us, dirty);
                }
                Target::Site(site) if !asked(site) && self.has_room(site) => {
                    if self.is_authorised(net, ticket) {
                        self.send(net, ticket, site, now_us);
                    } else {
                        self.give_up(net, ticket, Code::NoLeader, dirty);
                    }
                }
                _ => self.waiting.borrow_mut().push_back(ticket),
            }
        }
        net.metrics.leaderless.set(self.waiting.borrow().len() as u64);
    }

    /// Whether a request was authorised by what is known of its merchant now. Else
    /// its gateway has to ask again, to be judged anew.
    fn is_authorised(&self, net: &Net, ticket: u64) -> bool {
        let mut held = self.held.borrow_mut();
        let Some(request) = held.get(ticket) else { return false };
        net.directory.borrow().authority(&request.mch_id) == Some(request.authority)
    }

    /// Gives a request that waited to this site's own worker.
    fn keep_here(&self, net: &Net, ticket: u64, now_us: u64, dirty: &mut Vec<Rc<Connection>>) {
        if !self.is_authorised(net, ticket) {
            return self.give_up(net, ticket, Code::NoLeader, dirty);
        }
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
            request::deliver(net, &delivery, &request.body, |_, _| Ok(()))
        };
        if let Err(code) = delivered {
            self.give_up(net, ticket, code, dirty);
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
