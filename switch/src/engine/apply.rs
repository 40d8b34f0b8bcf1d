//! Applying committed blocks, on leaders, followers and in replay alike. The
//! only place where replicated state changes.
//!
//! A record that is well formed but does not fit the state (a cancel of a
//! payment that just became paid) is left out the same way everywhere and
//! counted; one that cannot have been proposed is an [`ApplyError`].

use protocol::code::{OrderState, Reason, RefundState};

use super::admit::new_order;
use super::input::{AdminCommand, AdminInput, Now};
use super::limit::Limiter;
use super::merchant::{Limits, Merchant};
use super::order::{Attempt, NONE, ORPHAN_ORDINAL, REVERSAL_ORDINAL};
use super::output::AlarmKind;
use super::output::Outputs;
use super::record::{
    Begin, CancelCause, Decision, End, Ending, Record, Records, RefundBegin, Stamped,
};
use super::{ApplyError, Engine, MerchantState};

impl Engine {
    /// Applies a committed block. `now` matters to a leader's timers only.
    ///
    /// # Errors
    /// [`ApplyError`]: log and program do not fit together.
    pub fn apply(
        &mut self,
        index: u64,
        _term: u64,
        block: &[u8],
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        if index != self.applied + 1 {
            return Err(ApplyError::Gap { last: self.applied, found: index });
        }
        for stamped in Records::new(block)? {
            self.apply_record(index, stamped?, now, out)?;
        }
        self.applied = index;
        self.retry_deferred(now, out);
        Ok(())
    }

    fn apply_record(
        &mut self,
        index: u64,
        stamped: Stamped<'_>,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let at_us = stamped.at_us;
        let dangling = ApplyError::Dangling { index };
        match stamped.record {
            Record::Begin(begin) => self.apply_begin(&begin, at_us, now, out, dangling)?,
            Record::Attempt { sequence, attempt, channel } => {
                let at = self.applied_place(sequence).ok_or(dangling)?;
                self.apply_attempt(at, attempt, channel, now, out);
            }
            Record::End(end) => {
                let at = self.applied_place(end.sequence).ok_or(dangling)?;
                self.apply_end(at, &end, at_us, now, out);
            }
            Record::Cancel { sequence, attempt: _, cause } => {
                let at = self.applied_place(sequence).ok_or(dangling)?;
                self.apply_cancel(at, cause, at_us, now, out);
            }
            Record::Refund(begin) => {
                let at = self.applied_place(begin.sequence).ok_or(dangling)?;
                self.apply_refund(at, &begin, at_us, now, out);
            }
            Record::RefundEnd(end) => {
                let at = self.applied_place(end.sequence).ok_or(dangling)?;
                let place = self.refund_of(at, end.ordinal).ok_or(dangling)?;
                self.apply_refund_end(at, place, &end, at_us, out);
            }
            Record::Delivered { event_id, taken: _ } => self.outbox.remove(event_id),
            Record::Decided(decision) => {
                let at = self.applied_place(decision.sequence).ok_or(dangling)?;
                self.apply_decision(at, &decision, at_us, now, out);
            }
            Record::Merchant { operator: _, merchant } => self.apply_merchant(merchant, out),
            Record::Limits { operator: _, mch_id, limits, until_ms } => {
                let merchant = *self.merchant_ids.get(&mch_id).ok_or(dangling)?;
                self.apply_limits(merchant, limits, until_ms, at_us);
            }
        }
        Ok(())
    }

    fn applied_place(&self, sequence: u64) -> Option<u32> {
        self.place(sequence).filter(|at| (*at as usize) < self.committed)
    }

    fn apply_begin(
        &mut self,
        begin: &Begin<'_>,
        at_us: u64,
        now: Now,
        out: &mut Outputs,
        dangling: ApplyError,
    ) -> Result<(), ApplyError> {
        if begin.sequence != self.committed as u64 + 1 {
            return Err(ApplyError::Sequence {
                last: self.committed as u64,
                found: begin.sequence,
            });
        }
        let merchant = *self.merchant_ids.get(&begin.mch_id).ok_or(dangling)?;
        let at = self.committed as u32;
        match self.orders.get_mut(self.committed) {
            Some(order) => order.volatile.proposed = false,
            None => {
                self.orders.push(new_order(begin, merchant, at_us));
                self.index.insert(&begin.digest, at);
            }
        }
        self.committed += 1;
        self.open += 1;
        self.restore_limits(merchant, at_us);
        if let Some(state) = self.merchants.get_mut(merchant as usize) {
            let limits = state.merchant.limits;
            state.live.take_pay(at_us, &limits, begin.amount.minor());
        }
        if self.leading.is_some() {
            self.send_charge(at, now, out);
        }
        Ok(())
    }

    fn apply_attempt(&mut self, at: u32, attempt: u8, channel: u16, now: Now, out: &mut Outputs) {
        let Some(order) = self.orders.get_mut(at as usize) else { return };
        order.volatile.deciding = false;
        let fits = order.state == OrderState::Processing
            && !order.cancelled
            && order.current().definitive()
            && attempt == order.attempt + 1
            && usize::from(attempt) <= order.attempts.len();
        if !fits {
            self.misfits += 1;
            return;
        }
        order.attempt = attempt;
        order.set_current(Attempt::Started);
        if let Some(slot) = order.channels.get_mut(usize::from(attempt) - 1) {
            *slot = channel;
        }
        if self.leading.is_some() {
            self.take_slot(channel);
            self.send_charge(at, now, out);
        }
    }

    fn apply_end(&mut self, at: u32, end: &End, at_us: u64, now: Now, out: &mut Outputs) {
        let Some(order) = self.orders.get_mut(at as usize) else { return };
        order.volatile.deciding = false;
        let next = order.current().ended(end.ending).filter(|_| end.ordinal == order.attempt);
        let Some(next) = next else {
            self.misfits += 1;
            return;
        };
        let was = order.current();
        order.set_current(next);
        if !end.channel_ref.is_empty() {
            order.channel_ref = end.channel_ref;
        }
        self.left(at, was);
        self.settle(at, next, end, at_us, now, out);
    }

    /// Leaves the leader's bookkeeping of an open attempt.
    fn left(&mut self, at: u32, was: Attempt) {
        if was == Attempt::Manual {
            self.manual -= 1;
        }
        self.doubts.remove(&(at, 0));
        if self.leading.is_some() && was == Attempt::Started {
            let channel = self.order(at).map_or(0, super::order::Order::channel);
            self.free_slot(channel);
        }
    }

    /// The order's state after its attempt reached `next`.
    fn settle(
        &mut self,
        at: u32,
        next: Attempt,
        end: &End,
        at_us: u64,
        now: Now,
        out: &mut Outputs,
    ) {
        let Some(order) = self.orders.get_mut(at as usize) else { return };
        let cancel_reason = if order.cancel_expired { Reason::Expired } else { Reason::Cancelled };
        let (state, reason) = match next {
            Attempt::Succeeded if order.cancelled => (OrderState::Paid, Reason::CancelRefused),
            Attempt::Succeeded => (OrderState::Paid, Reason::None),
            Attempt::Manual => (OrderState::Manual, end.reason),
            _ if order.cancelled => (OrderState::Closed, cancel_reason),
            _ if end.goes_on => (OrderState::Processing, end.reason),
            _ => (OrderState::Failed, end.reason),
        };
        order.state = state;
        order.reason = reason;
        match state {
            OrderState::Manual => {
                self.manual += 1;
                self.alarm(AlarmKind::Manual, at, end.ordinal, out);
            }
            OrderState::Processing => {
                if self.leading.is_some() {
                    self.go_on(at, now, out);
                }
                return;
            }
            _ => self.finish(at, at_us),
        }
        self.event(at, 0, at_us);
        if self.leading.is_some() {
            self.answer_order(at, out);
            self.deliver_due(now, out);
        }
    }

    fn finish(&mut self, at: u32, at_us: u64) {
        if let Some(order) = self.orders.get_mut(at as usize) {
            order.finished_ms = at_us / 1000;
        }
        self.open -= 1;
    }

    fn apply_cancel(
        &mut self,
        at: u32,
        cause: CancelCause,
        at_us: u64,
        now: Now,
        out: &mut Outputs,
    ) {
        let Some(order) = self.orders.get_mut(at as usize) else { return };
        order.volatile.deciding = false;
        if order.state.is_final() || order.cancelled {
            self.misfits += 1;
            return;
        }
        let reversing = order.current() == Attempt::Reversing;
        if cause != CancelCause::GaveUp {
            order.cancelled = true;
            order.cancel_expired = cause == CancelCause::Expired;
        } else if reversing {
            self.misfits += 1;
            return;
        }
        let was = order.current();
        if was.definitive() {
            // Between two attempts: nothing stands at any channel.
            let end = End {
                sequence: u64::from(at) + 1,
                ordinal: order.attempt,
                ending: Ending::Void,
                reason: Reason::Cancelled,
                goes_on: false,
                channel_ref: protocol::id::ShortText::EMPTY,
            };
            return self.settle(at, was, &end, at_us, now, out);
        }
        let channel = order.channel();
        if was == Attempt::Manual || !self.contract(channel).is_some_and(|c| c.reversible) {
            // The wish stands; the outcome will be learnt, not forced.
            return;
        }
        let Some(order) = self.orders.get_mut(at as usize) else { return };
        order.set_current(Attempt::Reversing);
        if self.leading.is_some() {
            if was == Attempt::Started {
                self.free_slot(channel);
            }
            self.begin_reversal(at, now, out);
        }
    }

    fn apply_refund(
        &mut self,
        at: u32,
        begin: &RefundBegin,
        at_us: u64,
        now: Now,
        out: &mut Outputs,
    ) {
        let proposed = self.refunds.len() > self.committed_refunds;
        let place =
            if proposed { self.committed_refunds as u32 } else { self.add_refund(at, begin) };
        self.committed_refunds += 1;
        let leading = self.leading.is_some();
        let Some(order) = self.orders.get_mut(at as usize) else { return };
        if leading {
            order.volatile.refunding = order.volatile.refunding.saturating_sub(1);
        }
        if begin.ordinal <= ORPHAN_ORDINAL {
            if leading {
                order.volatile.reserving -= begin.amount.minor();
            }
            order.reserved += begin.amount.minor();
        }
        if begin.ordinal < REVERSAL_ORDINAL {
            order.refund_count += 1;
        }
        debug_assert!(order.refunded + order.reserved <= order.amount.minor());
        let merchant = order.merchant;
        self.restore_limits(merchant, at_us);
        if let Some(state) = self.merchants.get_mut(merchant as usize) {
            let rate = state.merchant.limits.refund_per_minute;
            state.live.refund.take(at_us, rate);
        }
        if leading {
            self.send_refund(place, now, out);
        }
    }

    fn apply_refund_end(&mut self, at: u32, place: u32, end: &End, at_us: u64, out: &mut Outputs) {
        let Some(refund) = self.refunds.get_mut(place as usize) else { return };
        refund.deciding = false;
        let was = refund.state;
        let state = match (was, end.ending) {
            (RefundState::Success | RefundState::Failed | RefundState::None, _) => {
                self.misfits += 1;
                return;
            }
            (_, Ending::Succeeded) => RefundState::Success,
            (_, Ending::Manual) => RefundState::Manual,
            _ => RefundState::Failed,
        };
        refund.state = state;
        refund.reason = end.reason;
        refund.channel_ref = end.channel_ref;
        let (ordinal, amount, orphan) = (refund.ordinal, refund.amount.minor(), refund.orphan());
        if state == RefundState::Manual {
            self.manual += u64::from(was != RefundState::Manual);
            self.alarm(AlarmKind::Manual, at, ordinal, out);
        } else {
            refund.finished_ms = at_us / 1000;
            self.manual -= u64::from(was == RefundState::Manual);
            if let Some(order) = self.orders.get_mut(at as usize).filter(|_| !orphan) {
                order.reserved -= amount;
                if state == RefundState::Success {
                    order.refunded += amount;
                }
            }
        }
        self.doubts.remove(&(at, ordinal));
        if !orphan {
            self.event(at, ordinal, at_us);
        }
        if self.leading.is_some() {
            self.answer_refund(place, out);
            if ordinal == REVERSAL_ORDINAL {
                self.answer_order(at, out);
            }
        }
    }

    fn apply_decision(
        &mut self,
        at: u32,
        decision: &Decision,
        at_us: u64,
        now: Now,
        out: &mut Outputs,
    ) {
        let end = End {
            sequence: decision.sequence,
            ordinal: decision.ordinal,
            ending: match (decision.success, decision.refund) {
                (true, _) => Ending::Succeeded,
                (false, true) => Ending::Declined,
                (false, false) => Ending::Void,
            },
            reason: Reason::Operator,
            goes_on: false,
            channel_ref: protocol::id::ShortText::EMPTY,
        };
        let manual = if decision.refund {
            let place = self.refund_of(at, decision.ordinal);
            place.filter(|place| {
                self.refunds
                    .get(*place as usize)
                    .is_some_and(|refund| refund.state == RefundState::Manual)
            })
        } else {
            let waits = self.order(at).is_some_and(|o| o.current() == Attempt::Manual);
            waits.then_some(NONE)
        };
        match manual {
            None => self.misfits += 1,
            Some(NONE) => self.apply_end(at, &end, at_us, now, out),
            Some(place) => self.apply_refund_end(at, place, &end, at_us, out),
        }
    }

    fn apply_merchant(&mut self, merchant: Merchant, out: &mut Outputs) {
        out.merchants.push(merchant.clone());
        match self.merchant_ids.get(&merchant.mch_id) {
            Some(&at) => {
                if let Some(state) = self.merchants.get_mut(at as usize) {
                    state.merchant = merchant;
                    state.previous = None;
                }
            }
            None => {
                self.merchant_ids.insert(merchant.mch_id, self.merchants.len() as u32);
                self.merchants.push(MerchantState {
                    merchant,
                    previous: None,
                    live: Limiter::default(),
                    ahead: Limiter::default(),
                });
            }
        }
    }

    fn apply_limits(&mut self, merchant: u32, limits: Limits, until_ms: u64, at_us: u64) {
        self.restore_limits(merchant, at_us);
        let Some(state) = self.merchants.get_mut(merchant as usize) else { return };
        state.previous = match (until_ms, state.previous) {
            (0, _) => None,
            // A raise on top of a raise still ends at what was there for good.
            (_, Some((base, _))) => Some((base, until_ms)),
            (_, None) => Some((state.merchant.limits, until_ms)),
        };
        state.merchant.limits = limits;
    }

    /// Brings the previous limits back once their time has come. Driven by
    /// record stamps, so that every replica does it at the same record.
    pub(super) fn restore_limits(&mut self, merchant: u32, at_us: u64) {
        let Some(state) = self.merchants.get_mut(merchant as usize) else { return };
        if let Some((limits, until_ms)) = state.previous {
            if at_us / 1000 >= until_ms {
                state.merchant.limits = limits;
                state.previous = None;
            }
        }
    }

    pub(super) fn admin(&mut self, admin: AdminInput, now: Now, out: &mut Outputs) {
        let AdminInput { ticket, operator, command } = admin;
        if self.leading.is_none() {
            out.admin.push((ticket, Err("this site does not lead the shard".into())));
            return;
        }
        let said = match command {
            AdminCommand::PutMerchant { merchant, only_if_absent } => {
                if only_if_absent && self.merchant_ids.contains_key(&merchant.mch_id) {
                    Ok("kept".into())
                } else {
                    let text = format!("merchant {} recorded", merchant.mch_id);
                    self.propose(&Record::Merchant { operator, merchant }, now, out);
                    Ok(text)
                }
            }
            AdminCommand::PutLimits { mch_id, limits, until_ms } => {
                if self.merchant_ids.contains_key(&mch_id) {
                    self.propose(&Record::Limits { operator, mch_id, limits, until_ms }, now, out);
                    Ok(format!("limits of {mch_id} recorded"))
                } else {
                    Err(format!("no merchant {mch_id}"))
                }
            }
            AdminCommand::Decide { mch_id, out_trade_no, out_refund_no, success, second, note } => {
                self.decide_by_operator(
                    operator,
                    &mch_id,
                    &out_trade_no,
                    out_refund_no.as_ref(),
                    Decision {
                        sequence: 0,
                        ordinal: 0,
                        refund: out_refund_no.is_some(),
                        success,
                        operator,
                        second,
                        note,
                    },
                    now,
                    out,
                )
            }
        };
        out.admin.push((ticket, said));
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one operator's decision")]
    fn decide_by_operator(
        &mut self,
        operator: protocol::id::ShortText,
        mch_id: &protocol::id::MchId,
        out_trade_no: &protocol::id::OutTradeNo,
        out_refund_no: Option<&protocol::id::OutRefundNo>,
        mut decision: Decision,
        now: Now,
        out: &mut Outputs,
    ) -> Result<String, String> {
        let digest = protocol::channel::order_digest(mch_id, out_trade_no);
        let at = self
            .merchant_ids
            .get(mch_id)
            .and_then(|merchant| self.find(&digest, *merchant, out_trade_no))
            .ok_or("no such payment")?;
        if decision.second.is_empty() || decision.second == operator {
            return Err("a decision about money needs a second person".into());
        }
        decision.sequence = u64::from(at) + 1;
        decision.ordinal = match out_refund_no {
            Some(no) => {
                let place = self.refund_by_no(at, no).ok_or("no such refund")?;
                let refund = self.refunds.get(place as usize).ok_or("no such refund")?;
                if refund.state != RefundState::Manual {
                    return Err("the refund does not wait for an operator".into());
                }
                refund.ordinal
            }
            None => {
                let order = self.order(at).ok_or("no such payment")?;
                if order.current() != Attempt::Manual {
                    return Err("the payment does not wait for an operator".into());
                }
                order.attempt
            }
        };
        self.propose(&Record::Decided(decision), now, out);
        Ok("decision recorded".into())
    }
}
