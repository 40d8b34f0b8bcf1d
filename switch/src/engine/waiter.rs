//! Askers that wait for an outcome: bounded per payment, each with an end.
//!
//! Knows nothing of payments but whose waiters they are. Tested through the
//! engine.

use super::Engine;
use super::input::{Now, Waiter};
use super::order::{Orders, Refund};
use super::output::{Outputs, Reply, ReplyBody};
use super::slab::{NIL, Slab};
use super::timer::{Fifo, Heap};
use protocol::code::Code;
use protocol::message::kind;

/// Whose outcome is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A payment.
    Order(u64),
    /// A refund, by its place.
    Refund(u32),
}

#[derive(Clone, Copy)]
pub(super) struct Wait {
    pub(super) waiter: Waiter,
    pub(super) replayed: bool,
    /// Is answered as soon as what it waits for is durable.
    overdue: bool,
    owner: Owner,
    next: u32,
}

pub(super) struct Waiters {
    waits: Slab<Wait>,
    /// Ends of those who wait for the engine's bound.
    ends: Fifo<(u32, u32)>,
    /// Ends of the more impatient.
    early_ends: Heap<(u32, u32)>,
}

impl Waiters {
    pub(super) fn new() -> Self {
        Self { waits: Slab::new(), ends: Fifo::new(), early_ends: Heap::new() }
    }

    pub(super) fn count(&self) -> u32 {
        self.waits.used()
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        let ends = self.ends.front().map(|(due, _)| due);
        ends.into_iter().chain(self.early_ends.first().map(|(due, _)| due)).min()
    }

    /// Forgets every waiter, telling `each` of it.
    pub(super) fn drain_all(&mut self, mut each: impl FnMut(Waiter)) {
        let all: Vec<u32> = self.waits.indexes().collect();
        for index in all {
            if let Some(wait) = self.waits.remove(index) {
                each(wait.waiter);
            }
        }
        self.ends.clear();
        self.early_ends.clear();
    }

    /// Removes the entries of ended waits from the front, so that the queue is
    /// as long as the oldest wait and no longer.
    pub(super) fn trim(&mut self) {
        while let Some((_, (index, generation))) = self.ends.front()
            && self.waits.live(index, generation).is_none()
        {
            self.ends.pop();
        }
    }

    /// Takes `index` out of its owner's list without an answer.
    fn unlink(&mut self, index: u32, orders: &mut Orders) {
        let Some(gone) = self.waits.remove(index) else { return };
        let Some((head, count)) = head_of(orders, gone.owner) else { return };
        *count = count.saturating_sub(1);
        if *head == index {
            *head = gone.next;
            return;
        }
        let mut at = *head;
        while let Some(wait) = self.waits.get_mut(at) {
            if wait.next == index {
                wait.next = gone.next;
                return;
            }
            at = wait.next;
        }
    }
}

fn head_of(orders: &mut Orders, owner: Owner) -> Option<(&mut u32, &mut u8)> {
    match owner {
        Owner::Order(sequence) => {
            let live = &mut orders.get_mut(sequence)?.live;
            Some((&mut live.waiters, &mut live.waiter_count))
        }
        Owner::Refund(place) => {
            let refund: &mut Refund = orders.refunds.get_mut(place)?;
            Some((&mut refund.waiters, &mut refund.waiter_count))
        }
    }
}

impl Engine {
    /// Whether one more asker may wait for an owner.
    pub(super) fn may_wait(&mut self, owner: Owner) -> bool {
        let most = self.config.waiters_per_order_max;
        head_of(&mut self.orders, owner).is_some_and(|(_, count)| *count < most)
    }

    /// Lets an asker wait; `false` when the owner has its maximum of waiters.
    pub(super) fn attach(
        &mut self,
        owner: Owner,
        waiter: Waiter,
        wait_us: u64,
        replayed: bool,
        now: Now,
    ) -> bool {
        let Some((head, count)) = head_of(&mut self.orders, owner) else { return false };
        if *count >= self.config.waiters_per_order_max {
            return false;
        }
        *count += 1;
        let index = self.waiters.waits.insert(Wait {
            waiter,
            replayed,
            overdue: false,
            owner,
            next: *head,
        });
        *head = index;
        let entry = (index, self.waiters.waits.generation(index));
        let bound = self.config.sync_wait_us;
        if wait_us == 0 || wait_us >= bound {
            self.waiters.ends.push(now.mono_us + bound, entry);
        } else {
            self.waiters.early_ends.push(now.mono_us + wait_us, entry);
        }
        true
    }

    /// Asks for the memory of a payment's first waiter without waiting for it.
    #[inline]
    pub(super) fn warm_waiter(&self, sequence: u64) {
        if let Some(order) = self.orders.get(sequence) {
            self.waiters.waits.warm(order.live.waiters);
        }
    }

    /// Lets an asker wait until its owner is durable and no longer: what a crash
    /// could still forget is never told, and its transaction id would be given to
    /// another payment. `false` when the owner has its maximum of waiters.
    pub(super) fn hold(&mut self, owner: Owner, waiter: Waiter, replayed: bool, now: Now) -> bool {
        if !self.attach(owner, waiter, 0, replayed, now) {
            return false;
        }
        if let Some((head, _)) = head_of(&mut self.orders, owner) {
            let newest = *head;
            self.set_overdue(newest, owner);
        }
        true
    }

    fn set_overdue(&mut self, index: u32, owner: Owner) {
        if let Some(wait) = self.waiters.waits.get_mut(index) {
            wait.overdue = true;
        }
        if let Owner::Order(sequence) = owner
            && let Some(order) = self.orders.get_mut(sequence)
        {
            order.live.overdue = true;
        }
    }

    /// Whether the record that made an owner is committed.
    pub(super) fn is_durable(&self, owner: Owner) -> bool {
        match owner {
            Owner::Order(sequence) => self.orders.committed(sequence).is_some(),
            Owner::Refund(place) => self.orders.refunds.get(place).is_none_or(|r| !r.proposed),
        }
    }

    /// An owner became durable: answers those who only waited for that.
    pub(super) fn answer_overdue(&mut self, owner: Owner, out: &mut Outputs) {
        let mut list = self.take_waiters(owner);
        while let Some(wait) = self.next_of_list(&mut list, |wait| !wait.overdue) {
            let body = self.as_it_stands(&wait);
            out.replies.push(Reply { waiter: wait.waiter, body });
        }
    }

    /// What a waiter is told of its owner now.
    pub(super) fn as_it_stands(&self, wait: &Wait) -> ReplyBody {
        match wait.owner {
            Owner::Order(sequence) => self.order_body(sequence, Code::Ok, wait.replayed),
            Owner::Refund(place) => match self.orders.refunds.get(place) {
                // Who asked for a reverse hears of the payment, not of its refund.
                Some(refund) if wait.waiter.kind == kind::REVERSE => {
                    self.order_body(refund.sequence, Code::Ok, wait.replayed)
                }
                _ => self.refund_body(place, Code::Ok, wait.replayed),
            },
        }
    }

    /// Takes the first waiter of an owner.
    pub(super) fn take_waiter(&mut self, owner: Owner) -> Option<Wait> {
        let (head, count) = head_of(&mut self.orders, owner)?;
        let wait = self.waiters.waits.remove(*head)?;
        *head = wait.next;
        *count -= 1;
        Some(wait)
    }

    /// Takes the whole list, to be answered or attached again one by one.
    pub(super) fn take_waiters(&mut self, owner: Owner) -> u32 {
        head_of(&mut self.orders, owner).map_or(NIL, |(head, count)| {
            *count = 0;
            std::mem::replace(head, NIL)
        })
    }

    /// The next of a list taken by [`Engine::take_waiters`]; it stays linked
    /// to its owner when `keep` says so.
    pub(super) fn next_of_list(
        &mut self,
        list: &mut u32,
        keep: impl Fn(&Wait) -> bool,
    ) -> Option<Wait> {
        loop {
            let index = *list;
            let wait = *self.waiters.waits.get(index)?;
            *list = wait.next;
            if !keep(&wait) {
                self.waiters.waits.remove(index);
                return Some(wait);
            }
            let (head, count) = head_of(&mut self.orders, wait.owner)?;
            *count += 1;
            let rest = std::mem::replace(head, index);
            if let Some(wait) = self.waiters.waits.get_mut(index) {
                wait.next = rest;
            }
        }
    }

    /// Whether an owner has a waiter of one of these request kinds.
    pub(super) fn has_waiter(&self, mut head: u32, kinds: &[u8]) -> bool {
        while let Some(wait) = self.waiters.waits.get(head) {
            if kinds.contains(&wait.waiter.kind) {
                return true;
            }
            head = wait.next;
        }
        false
    }

    /// Answers PROCESSING to those who waited long enough, or lets them wait for
    /// the commit that the answer rests on.
    pub(super) fn waits_over(&mut self, now: Now, out: &mut Outputs) {
        loop {
            let waiters = &mut self.waiters;
            let Some((index, generation)) = waiters
                .ends
                .pop_due(now.mono_us)
                .or_else(|| waiters.early_ends.pop_due(now.mono_us))
            else {
                return;
            };
            let Some(wait) = waiters.waits.live(index, generation).copied() else { continue };
            if !self.is_durable(wait.owner) {
                self.set_overdue(index, wait.owner);
                continue;
            }
            self.waiters.unlink(index, &mut self.orders);
            let body = self.as_it_stands(&wait);
            out.replies.push(Reply { waiter: wait.waiter, body });
        }
    }

    /// A gateway connection ended.
    pub(super) fn connection_closed(&mut self, connection: u64) {
        self.outbox.unsubscribe_all(connection);
        let waits = &self.waiters.waits;
        let gone: Vec<u32> = waits
            .indexes()
            .filter(|&i| waits.get(i).is_some_and(|w| w.waiter.connection == connection))
            .collect();
        for index in gone {
            self.waiters.unlink(index, &mut self.orders);
        }
    }
}
