//! Close and reverse (state machine, C10), and the cancels that the switch
//! starts by itself.

use protocol::code::{Code, OrderState};
use protocol::money::Amount;

use super::Engine;
use super::input::{Now, OrderInput};
use super::order::{Attempt, REVERSAL_ORDINAL};
use super::output::Outputs;
use super::record::{CancelCause, Record};

impl Engine {
    pub(super) fn close(&mut self, close: &OrderInput, now: Now, out: &mut Outputs) {
        self.cancel(close, now, out);
    }

    pub(super) fn reverse(&mut self, reverse: &OrderInput, now: Now, out: &mut Outputs) {
        let paid = self
            .named(&reverse.origin, &reverse.order, &reverse.digest)
            .ok()
            .filter(|(at, _)| self.order(*at).is_some_and(|o| o.state == OrderState::Paid));
        match paid {
            Some((at, merchant)) if self.leading.is_some() => {
                self.reverse_paid(at, merchant, reverse, now, out);
            }
            _ => self.cancel(reverse, now, out),
        }
    }

    fn cancel(&mut self, cancel: &OrderInput, now: Now, out: &mut Outputs) {
        let waiter = cancel.origin.waiter;
        if self.leading.is_none() {
            return self.refuse(waiter, Code::NoLeader, 50, out);
        }
        let (at, merchant) = match self.named(&cancel.origin, &cancel.order, &cancel.digest) {
            Ok(named) => named,
            Err(code) => return self.refuse(waiter, code, 0, out),
        };
        let Some(order) = self.order(at) else { return };
        let (finished, cancelled, attempt) =
            (order.state.is_final(), order.cancelled, order.attempt);
        if finished {
            if let Some(reply) = self.order_reply(at, &waiter, true) {
                self.say(waiter, reply, out);
            }
            return;
        }
        if !cancelled {
            if let Err(wait) = self.take_refund_rate(merchant, now) {
                return self.refuse(waiter, Code::RateLimited, wait, out);
            }
            let cause = CancelCause::Merchant;
            let sequence = u64::from(at) + 1;
            self.propose(&Record::Cancel { sequence, attempt, cause }, now, out);
        }
        self.wait_for_order(at, &cancel.origin, now, out);
    }

    /// A reverse of a paid payment is a full refund under its own number.
    fn reverse_paid(
        &mut self,
        at: u32,
        merchant: u32,
        reverse: &OrderInput,
        now: Now,
        out: &mut Outputs,
    ) {
        let waiter = reverse.origin.waiter;
        if let Some(existing) = self.refund_of(at, REVERSAL_ORDINAL) {
            return self.wait_or_say_reversal(at, existing, reverse, now, out);
        }
        let Some(order) = self.order(at) else { return };
        let (amount, finished_ms) = (order.amount, order.finished_ms);
        let has_refund = order.refunds != super::order::NONE || order.volatile.refunding > 0;
        let late = now.wall_us > finished_ms * 1000 + self.config.reverse_window_us;
        if has_refund {
            return self.refuse(waiter, Code::HasRefund, 0, out);
        }
        if late {
            return self.refuse(waiter, Code::WindowClosed, 0, out);
        }
        if let Err(wait) = self.take_refund_rate(merchant, now) {
            return self.refuse(waiter, Code::RateLimited, wait, out);
        }
        let Some(attempt) = self.order(at).and_then(super::order::Order::paid_attempt) else {
            return;
        };
        self.propose_refund(at, REVERSAL_ORDINAL, attempt, amount, None, now, out);
        self.wait_for_order(at, &reverse.origin, now, out);
    }

    fn wait_or_say_reversal(
        &mut self,
        at: u32,
        refund: u32,
        reverse: &OrderInput,
        now: Now,
        out: &mut Outputs,
    ) {
        let open = self
            .refunds
            .get(refund as usize)
            .is_some_and(|refund| refund.state == protocol::code::RefundState::Processing);
        if open {
            self.wait_for_order(at, &reverse.origin, now, out);
        } else if let Some(reply) = self.order_reply(at, &reverse.origin.waiter, true) {
            self.say(reverse.origin.waiter, reply, out);
        }
    }

    /// Starts a cancel of an in-doubt attempt by the switch itself.
    pub(super) fn cancel_doubt(
        &mut self,
        at: u32,
        cause: CancelCause,
        now: Now,
        out: &mut Outputs,
    ) {
        let Some(order) = self.order_mut(at) else { return };
        if order.volatile.deciding || order.current() == Attempt::Reversing {
            return;
        }
        order.volatile.deciding = true;
        let attempt = order.attempt;
        let sequence = u64::from(at) + 1;
        self.propose(&Record::Cancel { sequence, attempt, cause }, now, out);
    }

    /// The whole amount of a payment, for an orphan charge.
    pub(super) fn whole(&self, at: u32) -> Option<Amount> {
        self.order(at).map(|order| order.amount)
    }
}
