//! Refunds (state machine, C9): the amount is reserved before anything is sent,
//! and leaves the reservation only by a definite answer.

use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::id::{OutRefundNo, ShortText};
use protocol::money::Amount;

use super::Engine;
use super::input::{Now, Origin, QueryRefundInput, RefundInput};
use super::order::{NONE, ORPHAN_ORDINAL, Refund};
use super::output::Outputs;
use super::record::{Record, RefundBegin};

impl Engine {
    pub(super) fn refund(&mut self, refund: &RefundInput, now: Now, out: &mut Outputs) {
        let waiter = refund.origin.waiter;
        if self.leading.is_none() {
            return self.refuse(waiter, Code::NoLeader, 50, out);
        }
        let (at, merchant) = match self.named(&refund.origin, &refund.order, &refund.digest) {
            Ok(named) => named,
            Err(code) => return self.refuse(waiter, code, 0, out),
        };
        if let Some(existing) = self.refund_by_no(at, &refund.out_refund_no) {
            return self.refund_again(existing, refund, now, out);
        }
        match self.admit_refund(at, merchant, refund, now) {
            Ok((attempt, ordinal)) => {
                let no = Some(refund.out_refund_no);
                let place = self.propose_refund(at, ordinal, attempt, refund.amount, no, now, out);
                self.wait_for_refund(place, &refund.origin, now, out);
            }
            Err((code, wait)) => {
                if code == Code::OrderNotFinal {
                    // Ask the channel once, so that the next try finds an answer.
                    self.ask_soon(at, now);
                }
                self.refuse(waiter, code, wait, out);
            }
        }
    }

    fn refund_again(&mut self, place: u32, refund: &RefundInput, now: Now, out: &mut Outputs) {
        let waiter = refund.origin.waiter;
        let Some(existing) = self.refunds.get(place as usize) else { return };
        let currency = self.order(existing.order).map(|order| order.currency);
        if existing.amount != refund.amount || currency != Some(refund.currency) {
            return self.refuse(waiter, Code::IdempotencyConflict, 0, out);
        }
        if existing.state == RefundState::Processing {
            return self.wait_for_refund(place, &refund.origin, now, out);
        }
        self.say_refund_state(place, waiter, true, out);
    }

    fn admit_refund(
        &mut self,
        at: u32,
        merchant: u32,
        refund: &RefundInput,
        now: Now,
    ) -> Result<(u8, u8), (Code, u32)> {
        let refuse = |code| Err((code, 0));
        let order = self.order(at).ok_or((Code::OrderNotFound, 0))?;
        match order.state {
            OrderState::Paid => {}
            _ if order.cancelled => return refuse(Code::OrderCancelling),
            OrderState::Failed | OrderState::Closed => return refuse(Code::NotPaid),
            _ => return refuse(Code::OrderNotFinal),
        }
        if order.currency != refund.currency {
            return refuse(Code::CurrencyMismatch);
        }
        if self.refund_of(at, super::order::REVERSAL_ORDINAL).is_some() {
            return refuse(Code::OrderCancelling);
        }
        let bound_us = order.finished_ms * 1000 + self.config.refund_window_us;
        if now.wall_us > bound_us {
            return refuse(Code::WindowClosed);
        }
        let count = order.refund_count.saturating_add(order.volatile.refunding);
        if count >= self.config.refunds_per_order_max {
            return refuse(Code::RefundTooMany);
        }
        let taken = order.refunded + order.reserved + order.volatile.reserving;
        if taken + refund.amount.minor() > order.amount.minor() {
            return refuse(Code::RefundExceedsPaid);
        }
        let attempt = order.paid_attempt().ok_or((Code::Internal, 0))?;
        self.take_refund_rate(merchant, now).map_err(|wait| (Code::RateLimited, wait))?;
        Ok((attempt, count + 1))
    }

    /// Counts a refund, close or reverse against the merchant's rate.
    pub(super) fn take_refund_rate(&mut self, merchant: u32, now: Now) -> Result<(), u32> {
        let Some(state) = self.merchants.get_mut(merchant as usize) else { return Ok(()) };
        let limits = state.merchant.limits;
        state.ahead.refund.check(now.wall_us, limits.refund_per_minute, limits.burst)?;
        state.ahead.refund.take(now.wall_us, limits.refund_per_minute);
        Ok(())
    }

    /// Places a refund in front of its payment's list and proposes it.
    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(super) fn propose_refund(
        &mut self,
        at: u32,
        ordinal: u8,
        attempt: u8,
        amount: Amount,
        out_refund_no: Option<OutRefundNo>,
        now: Now,
        out: &mut Outputs,
    ) -> u32 {
        let begin =
            RefundBegin { sequence: u64::from(at) + 1, ordinal, attempt, amount, out_refund_no };
        let place = self.add_refund(at, &begin);
        if let Some(order) = self.order_mut(at) {
            if ordinal <= ORPHAN_ORDINAL {
                order.volatile.reserving += amount.minor();
            }
            order.volatile.refunding += 1;
        }
        self.propose(&Record::Refund(begin), now, out);
        place
    }

    /// Adds a refund to its payment's list.
    pub(super) fn add_refund(&mut self, at: u32, begin: &RefundBegin) -> u32 {
        let place = self.refunds.len() as u32;
        let Some(order) = self.orders.get_mut(at as usize) else { return NONE };
        self.refunds.push(Refund {
            order: at,
            next: order.refunds,
            ordinal: begin.ordinal,
            attempt: begin.attempt,
            amount: begin.amount,
            out_refund_no: begin.out_refund_no,
            state: RefundState::Processing,
            reason: Reason::None,
            finished_ms: 0,
            channel_ref: ShortText::EMPTY,
            waiters: NONE,
            deciding: false,
        });
        order.refunds = place;
        place
    }

    fn find_refund(&self, at: u32, matches: impl Fn(&Refund) -> bool) -> Option<u32> {
        let mut place = self.order(at)?.refunds;
        while place != NONE {
            let refund = self.refunds.get(place as usize)?;
            if matches(refund) {
                return Some(place);
            }
            place = refund.next;
        }
        None
    }

    pub(super) fn refund_of(&self, at: u32, ordinal: u8) -> Option<u32> {
        self.find_refund(at, |refund| refund.ordinal == ordinal)
    }

    pub(super) fn refund_by_no(&self, at: u32, no: &OutRefundNo) -> Option<u32> {
        self.find_refund(at, |refund| refund.out_refund_no == Some(*no))
    }

    fn wait_for_refund(&mut self, place: u32, origin: &Origin, now: Now, out: &mut Outputs) {
        let max = self.config.waiters_per_order_max;
        let Some(refund) = self.refunds.get_mut(place as usize) else { return };
        let (at, ordinal) = (refund.order, refund.ordinal);
        if self.waiters.attach(&mut refund.waiters, origin.waiter, max) {
            self.start_wait(at, ordinal, origin, now);
        } else {
            self.say_refund_state(place, origin.waiter, false, out);
        }
    }

    pub(super) fn say_refund_state(
        &self,
        place: u32,
        waiter: super::input::Waiter,
        replayed: bool,
        out: &mut Outputs,
    ) {
        let Some(refund) = self.refunds.get(place as usize) else { return };
        let Some(order) = self.order(refund.order) else { return };
        let reply = refund.reply(order, self.transaction_id(refund.order), replayed);
        self.say_refund(waiter, reply, out);
    }

    /// Answers everyone who waits for a refund with its present state.
    pub(super) fn answer_refund(&mut self, place: u32, out: &mut Outputs) {
        loop {
            let Some(refund) = self.refunds.get_mut(place as usize) else { return };
            let Some(waiter) = self.waiters.pop(&mut refund.waiters) else { return };
            self.say_refund_state(place, waiter, false, out);
        }
    }

    pub(super) fn query_refund(&mut self, query: &QueryRefundInput, now: Now, out: &mut Outputs) {
        let waiter = query.origin.waiter;
        if self.leading.is_none() {
            return self.refuse(waiter, Code::NoLeader, 50, out);
        }
        let (at, merchant) = match self.named(&query.origin, &query.order, &query.digest) {
            Ok(named) => named,
            Err(code) => return self.refuse(waiter, code, 0, out),
        };
        if let Err(wait) = self.take_query(merchant, now) {
            return self.refuse(waiter, Code::RateLimited, wait, out);
        }
        match self.refund_by_no(at, &query.out_refund_no) {
            Some(place) => self.say_refund_state(place, waiter, false, out),
            None => self.refuse(waiter, Code::RefundNotFound, 0, out),
        }
    }
}
