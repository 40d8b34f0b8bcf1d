//! Close, reverse and expiry (docs/STATES.md, C10): the cancel wish.
//!
//! A wish is durable before anything is sent for it. It never changes an
//! answered outcome: a paid order is given back by a refund under a number of
//! its own, and stays PAID.

use super::Engine;
use super::admit::{Refused, TOO_MANY_ASK};
use super::input::{Now, OrderInput};
use super::order::{AttemptState, CancelCause, RefundKind};
use super::output::{Outputs, Reply};
use super::record::{CancelStart, Record};
use super::slab::NIL;
use super::waiter::Owner;
use super::weakness::Weakness;
use protocol::code::{Code, OrderState, RefundState};
use protocol::message::kind;

impl Engine {
    pub(super) fn close(&mut self, close: &OrderInput, now: Now, out: &mut Outputs) {
        if let Err(Refused(code, retry)) = self.try_cancel(close, now, out) {
            out.replies.push(Reply::refusal(close.origin.waiter, code, retry));
        }
    }

    pub(super) fn reverse(&mut self, reverse: &OrderInput, now: Now, out: &mut Outputs) {
        self.close(reverse, now, out);
    }

    fn try_cancel(
        &mut self,
        input: &OrderInput,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), Refused> {
        let merchant = self.merchant_of(&input.origin)?;
        let sequence = self.find_order(merchant, &input.order, &input.digest)?;
        let (waiter, owner) = (input.origin.waiter, Owner::Order(sequence));
        let order = &self.orders[sequence];
        if order.state == OrderState::Paid && waiter.kind == kind::REVERSE {
            return self.reverse_paid(sequence, Some(input), now, out);
        }
        if order.state.is_final() {
            let code = if order.state == OrderState::Paid { Code::OrderPaid } else { Code::Ok };
            let body = self.order_body(sequence, code, true);
            out.replies.push(Reply { waiter, body });
            return Ok(());
        }
        let first =
            order.cancel_wish() == CancelCause::None || order.cancel_wish() == CancelCause::GaveUp;
        let free = !order.live.ending;
        if !self.is_durable(owner) && !self.may_wait(owner) {
            return Err(TOO_MANY_ASK);
        }
        if first {
            self.take_refund_rate(merchant, now)?;
        }
        let waits = self.attach(owner, waiter, input.origin.wait_us, !first, now);
        if first && free {
            self.start_cancel(sequence, CancelCause::Merchant, true, now, out);
        }
        if !waits {
            let body = self.order_body(sequence, Code::Ok, !first);
            out.replies.push(Reply { waiter, body });
        }
        Ok(())
    }

    /// Takes one operation of the rate that refunds, closes and reverses share.
    pub(super) fn take_refund_rate(&mut self, merchant: u32, now: Now) -> Result<(), Refused> {
        let entry = self.merchants.at_mut(merchant);
        let limits = entry.limits(now.wall_us);
        entry
            .admitted
            .refund
            .check(now.wall_us, limits.refund_per_minute, limits.burst)
            .map_err(|retry| Refused(Code::RateLimited, retry))?;
        entry.admitted.refund.take(now.wall_us, limits.refund_per_minute, limits.burst);
        Ok(())
    }

    /// Proposes the cancel record of an order that is not final.
    pub(super) fn start_cancel(
        &mut self,
        sequence: u64,
        cause: CancelCause,
        counted: bool,
        now: Now,
        out: &mut Outputs,
    ) {
        let order = &self.orders[sequence];
        let known = order.cancel_wish();
        if known.is_cancel() && cause.is_cancel() || order.live.ending {
            return;
        }
        let open = matches!(
            order.attempt.state,
            AttemptState::Started | AttemptState::Unknown | AttemptState::Awaiting
        );
        let reversible = self.channel(order.attempt.channel).is_some_and(|c| c.reversible);
        // An attempt that is only proposed is never sent once a cancel stands
        // behind it; a proposed give-up reverses already.
        let reversing = open && reversible && !order.live.starting && known != CancelCause::GaveUp;
        let attempt = order.attempt.ordinal;
        self.orders[sequence].live.cancelling = cause;
        let record = CancelStart { sequence, attempt, cause, reversing, counted };
        self.propose(now, &Record::CancelStart(record), out);
    }

    /// Reverses a paid order: a full refund with its own number.
    pub(super) fn reverse_paid(
        &mut self,
        sequence: u64,
        input: Option<&OrderInput>,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), Refused> {
        let order = &self.orders[sequence];
        let reversal =
            self.orders.refunds_of(sequence).find(|(_, r)| r.kind == RefundKind::Reversal);
        if let Some((place, refund)) = reversal {
            let running = refund.state == RefundState::Processing;
            if let Some(input) = input {
                let origin = &input.origin;
                let owner = Owner::Refund(place);
                if !running || !self.attach(owner, origin.waiter, origin.wait_us, true, now) {
                    let body = self.order_body(sequence, Code::Ok, true);
                    out.replies.push(Reply { waiter: origin.waiter, body });
                }
            }
            return Ok(());
        }
        if order.refunds != NIL && !self.weakened(Weakness::CancelIgnoresRefunds) {
            let merchants =
                self.orders.refunds_of(sequence).any(|(_, r)| r.kind == RefundKind::Merchant);
            if merchants {
                return Err(Code::HasRefund.into());
            }
        }
        if now.wall_us > order.finished_ms * 1000 + self.config.reverse_window_us {
            return Err(Code::WindowClosed.into());
        }
        let (attempt, amount, merchant) = (order.attempt.ordinal, order.amount, order.merchant);
        if !self.has_room(order.attempt.channel) {
            return Err(Refused(Code::ChannelUnavailable, 200));
        }
        if input.is_some() {
            self.take_refund_rate(merchant, now)?;
        }
        let place = self.propose_refund(
            (sequence, RefundKind::Reversal, attempt, amount),
            None,
            input.is_some(),
            now,
            out,
        );
        if let Some(input) = input {
            let origin = &input.origin;
            self.attach(Owner::Refund(place), origin.waiter, origin.wait_us, false, now);
        }
        Ok(())
    }

    /// Answers everyone who waits for the order, now that it settled: final,
    /// in front of the payer, or in front of an operator.
    pub(super) fn answer_settled(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let state = self.orders[sequence].state;
        if state == OrderState::Processing {
            return;
        }
        let owner = Owner::Order(sequence);
        // Who asked for a cancel does not want to hear that the payer must act.
        let patient = [kind::CLOSE, kind::REVERSE];
        let keep_cancels = state == OrderState::WaitPayer;
        let mut list = self.take_waiters(owner);
        while let Some(wait) =
            self.next_of_list(&mut list, |w| keep_cancels && patient.contains(&w.waiter.kind))
        {
            if state == OrderState::Paid && wait.waiter.kind == kind::REVERSE {
                self.reverse_settled(sequence, wait, now, out);
                continue;
            }
            let paid_close = state == OrderState::Paid && wait.waiter.kind == kind::CLOSE;
            let code = if paid_close { Code::OrderPaid } else { Code::Ok };
            let body = self.order_body(sequence, code, wait.replayed);
            out.replies.push(Reply { waiter: wait.waiter, body });
        }
    }

    /// A reverse that was waiting when the order became paid.
    fn reverse_settled(
        &mut self,
        sequence: u64,
        wait: super::waiter::Wait,
        now: Now,
        out: &mut Outputs,
    ) {
        let refused_before = self
            .orders
            .refunds_of(sequence)
            .any(|(_, r)| r.kind == RefundKind::Reversal && r.state == RefundState::Failed);
        let started =
            if refused_before { Ok(()) } else { self.reverse_paid(sequence, None, now, out) };
        let reversal = self
            .orders
            .refunds_of(sequence)
            .find(|(_, r)| r.kind == RefundKind::Reversal && r.state == RefundState::Processing)
            .map(|(place, _)| place);
        match (started, reversal) {
            (Ok(()), Some(place))
                if self.attach(Owner::Refund(place), wait.waiter, 0, false, now) => {}
            (Err(Refused(code, _)), _) => {
                let body = self.order_body(sequence, code, wait.replayed);
                out.replies.push(Reply { waiter: wait.waiter, body });
            }
            _ => {
                let body = self.order_body(sequence, Code::Ok, wait.replayed);
                out.replies.push(Reply { waiter: wait.waiter, body });
            }
        }
    }

    /// Starts the cancel of those who asked while another outcome was proposed
    /// that left the order open.
    pub(super) fn cancel_if_asked(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let order = &self.orders[sequence];
        let undecided = !order.state.is_final() && !order.cancel_wish().is_cancel();
        if undecided && self.has_waiter(order.live.waiters, &[kind::CLOSE, kind::REVERSE]) {
            self.start_cancel(sequence, CancelCause::Merchant, true, now, out);
        }
    }
}
