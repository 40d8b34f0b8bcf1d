//! Committed records change the state: the same on every replica, and the
//! only place where replicated state changes.
//!
//! A record that no longer fits (its attempt became definitive meanwhile) is
//! ignored and counted, by rules that every replica shares. A record that
//! cannot be is an error: the replica must stop. What follows on the leader
//! (sends, answers, the next record) is done after the change, and only when
//! the block was proposed in the term it leads in.

use super::Engine;
use super::admit::{new_attempt, order_of};
use super::evidence::Statement;
use super::input::Now;
use super::order::{AttemptState, CancelCause, Class, EarlierAttempt, Refund, RefundKind};
use super::output::{Outputs, Stage};
use super::record::{
    Begin, CancelStart, Decision, DecodeError, NextAttempt, Outcome, Record, Records,
    RefundOutcome, RefundStart, Sequences, Stamped,
};
use super::refund::refund_of;
use super::waiter::Owner;
use super::weakness::Weakness;
use protocol::code::{OrderState, Reason, RefundState};

/// A committed block that cannot be applied. The replica's state no longer
/// follows the log: it must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The block cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The block's index does not follow.
    #[error("block {found} follows block {last}")]
    BlockGap {
        /// Last index applied.
        last: u64,
        /// Index found.
        found: u64,
    },
    /// A BEGIN record is not the next payment.
    #[error("payment {found} begins where payment {expected} must")]
    SequenceGap {
        /// Next payment by the state.
        expected: u64,
        /// Payment of the record.
        found: u64,
    },
    /// A BEGIN record differs from the proposal in its place, or repeats a key.
    #[error("payment {sequence} is not what was proposed, or its key exists")]
    KeyMismatch {
        /// Payment.
        sequence: u64,
    },
    /// A record names a payment, attempt or refund that does not exist.
    #[error("record about payment {sequence}, ordinal {ordinal}, which does not exist")]
    UnknownPayment {
        /// Payment.
        sequence: u64,
        /// Attempt or refund ordinal; 0: the payment itself.
        ordinal: u8,
    },
    /// A record names a merchant that does not exist.
    #[error("record about an unknown merchant")]
    UnknownMerchant,
    /// A record demands a transition that no rule allows.
    #[error("record demands an impossible state of payment {sequence}")]
    Impossible {
        /// Payment.
        sequence: u64,
    },
}

/// How many records ahead of the one being applied its order is asked for.
const WARM_FAR: usize = 12;
/// As [`WARM_FAR`], for what the order leads to.
const WARM_NEAR: usize = 6;

/// One payment in so many is timed.
const TIMED: u64 = 16;

/// Notes how long ago the record that is durable now was proposed.
fn time_stage(stage: Stage, sequence: u64, at: At, now: Now, out: &mut Outputs) {
    if sequence.is_multiple_of(TIMED) {
        out.stages.push((stage, now.wall_us.saturating_sub(at.us)));
    }
}

/// Where a record is applied.
#[derive(Clone, Copy)]
struct At {
    /// Stamp, Unix microseconds.
    us: u64,
    /// This replica leads in the block's term.
    leads: bool,
}

impl Engine {
    /// Applies a committed block.
    ///
    /// # Errors
    /// [`ApplyError`]: see there.
    pub fn apply(
        &mut self,
        index: u64,
        term: u64,
        block: &[u8],
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        if index != self.applied + 1 {
            return Err(ApplyError::BlockGap { last: self.applied, found: index });
        }
        let leads = self.term == Some(term);
        let (mut far, mut near) = (Sequences::new(block), Sequences::new(block));
        far.by_ref().take(WARM_FAR).for_each(|sequence| self.orders.warm(sequence));
        near.by_ref().take(WARM_NEAR).for_each(drop);
        for stamped in Records::new(block)? {
            let Stamped { at_us, record } = stamped?;
            // The cache misses of the records to come overlap with the work on
            // this one: first their order, then who waits for it.
            far.next().into_iter().for_each(|sequence| self.orders.warm(sequence));
            near.next().into_iter().for_each(|sequence| self.warm_waiter(sequence));
            self.apply_record(&record, At { us: at_us, leads }, now, out)?;
        }
        self.applied = index;
        if leads {
            self.hear_deferred(now, out);
            self.trim_replies();
            self.waiters.trim();
        }
        Ok(())
    }

    fn apply_record(
        &mut self,
        record: &Record<'_>,
        at: At,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        self.preserve(record);
        match record {
            Record::Begin(begin) => self.apply_begin(begin, at, now, out),
            Record::Outcome(outcome) => self.apply_outcome(outcome, at, now, out),
            Record::NextAttempt(next) => self.apply_next_attempt(next, at, now, out),
            Record::CancelStart(cancel) => self.apply_cancel(cancel, at, now, out),
            Record::RefundStart(start) => self.apply_refund(start, at, now, out),
            Record::RefundOutcome(outcome) => self.apply_refund_outcome(outcome, at, now, out),
            Record::Doubt { sequence, attempt } => self.apply_doubt(*sequence, *attempt),
            Record::Delivered { event_id, .. } => {
                self.outbox.delivered(*event_id);
                Ok(())
            }
            Record::Decision(decision) => self.apply_decision(decision, at, now, out),
            Record::MerchantPut(put) => {
                self.merchants.put(put.merchant.clone());
                out.merchants.push(put.merchant.clone());
                self.answer_ticket(at.leads, out);
                Ok(())
            }
            Record::LimitsPut(put) => {
                let place = self.merchants.find(&put.mch_id).ok_or(ApplyError::UnknownMerchant)?;
                self.merchants.put_limits(place, put.limits, put.until_ms);
                out.merchants.push(self.merchants.at(place).merchant.clone());
                self.answer_ticket(at.leads, out);
                Ok(())
            }
            Record::SiteDrain(drain) => {
                let bit = 1 << drain.site;
                self.drained = if drain.drained { self.drained | bit } else { self.drained & !bit };
                self.answer_ticket(at.leads, out);
                Ok(())
            }
            Record::SiteMember(_) => {
                // A note of who wished what; the changes are entries of their own.
                self.answer_ticket(at.leads, out);
                Ok(())
            }
            // Consensus has carried it out.
            Record::Members(_) => Ok(()),
        }
    }

    fn apply_begin(
        &mut self,
        begin: &Begin<'_>,
        at: At,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let (sequence, expected) = (begin.sequence, self.orders.committed);
        if sequence != expected {
            return Err(ApplyError::SequenceGap { expected, found: sequence });
        }
        let merchant;
        if let Some(proposed) = self.orders.get(sequence) {
            if proposed.digest != begin.digest || proposed.fingerprint != begin.fingerprint {
                return Err(ApplyError::KeyMismatch { sequence });
            }
            // The digest covers the merchant: no need to look it up again.
            merchant = proposed.merchant;
        } else {
            merchant = self.merchants.find(&begin.mch_id).ok_or(ApplyError::UnknownMerchant)?;
            if self.orders.find(&begin.digest, merchant, &begin.out_trade_no).is_some() {
                return Err(ApplyError::KeyMismatch { sequence });
            }
            self.orders.push(order_of(begin, merchant));
        }
        self.orders[sequence].created_ms = at.us / 1000;
        self.orders.committed += 1;
        self.orders.busy.put(sequence, true);
        let counts = !self.weakened(Weakness::LimitsStayUnused);
        let entry = self.merchants.at_mut(merchant);
        let limits = entry.limits(at.us);
        if counts {
            entry.applied.take_pay(at.us, begin.amount.minor(), &limits);
        }
        if at.leads {
            time_stage(Stage::Begin, sequence, at, now, out);
            if std::mem::take(&mut self.orders[sequence].live.overdue) {
                self.answer_overdue(Owner::Order(sequence), out);
            }
            self.start_attempt(sequence, now, out);
        }
        Ok(())
    }

    /// The newest attempt is durable: send it, unless a cancel or a dark
    /// channel makes that pointless. Nothing was handed to any transport yet.
    fn start_attempt(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let order = &self.orders[sequence];
        let (number, ordinal) = (order.attempt.channel, order.attempt.ordinal);
        let unwanted = order.cancel_wish().is_cancel() || order.expired(now.wall_us);
        let timeout = self.channel(number).map_or(0, |channel| channel.reply_timeout_us);
        let up = self.live_channel(number).is_some_and(|channel| channel.up);
        if unwanted || !up {
            self.orders[sequence].live.in_flight = false;
            self.release_in_flight(number);
            let statement = Statement::plain(Class::NotSent, Reason::NotSent);
            return self.conclude(sequence, AttemptState::Void, &statement, now, out);
        }
        if !self.weakened(Weakness::SendBeforeCommitted) {
            self.send_charge(sequence, out);
        }
        if let Some(channel) = self.live_channel(number) {
            channel.replies.push(now.mono_us + timeout, (sequence, ordinal));
        }
    }

    fn apply_next_attempt(
        &mut self,
        next: &NextAttempt,
        at: At,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let order = self.committed_mut(next.sequence, 0)?;
        let before = order.attempt;
        let over = matches!(before.state, AttemptState::Declined | AttemptState::Void);
        let fits = over
            && order.state == OrderState::Processing
            && !order.cancel.is_cancel()
            && next.ordinal == before.ordinal + 1;
        if !fits {
            self.counters.ignored_records += 1;
            if at.leads {
                self.orders[next.sequence].live.starting = false;
                self.release_in_flight(next.channel);
                self.advance(next.sequence, now, out);
            }
            return Ok(());
        }
        let rest = order.earlier;
        let place = self.orders.earlier.insert(EarlierAttempt { attempt: before, next: rest });
        let order = &mut self.orders[next.sequence];
        order.earlier = place;
        order.attempt = new_attempt(next.ordinal, next.channel);
        order.live.starting = false;
        order.live.in_flight = at.leads;
        if at.leads {
            self.start_attempt(next.sequence, now, out);
        }
        Ok(())
    }

    fn apply_outcome(
        &mut self,
        outcome: &Outcome,
        at: At,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let (sequence, ordinal) = (outcome.sequence, outcome.attempt);
        let unknown = ApplyError::UnknownPayment { sequence, ordinal };
        if self.orders.committed(sequence).is_none() {
            return Err(unknown);
        }
        if outcome.class == Class::Noted {
            self.orders.attempt_mut(sequence, ordinal).ok_or(unknown)?.noted = true;
            return Ok(());
        }
        let order = &mut self.orders[sequence];
        if ordinal > order.attempt.ordinal || ordinal == 0 {
            return Err(unknown);
        }
        let changes_attempt = outcome.class != Class::RouteEnded;
        let stale = ordinal != order.attempt.ordinal
            || order.state.is_final()
            || changes_attempt && order.attempt.state.is_definitive();
        if stale {
            self.counters.ignored_records += 1;
            return Ok(());
        }
        if changes_attempt {
            self.set_attempt(outcome)?;
        }
        self.set_order_state(sequence, outcome.order_state, outcome.reason, at);
        if at.leads {
            time_stage(Stage::End, sequence, at, now, out);
            self.orders[sequence].live.ending = false;
            self.follow_outcome(sequence, now, out);
        }
        Ok(())
    }

    fn set_attempt(&mut self, outcome: &Outcome) -> Result<(), ApplyError> {
        let attempt = &mut self.orders[outcome.sequence].attempt;
        let legal = match outcome.attempt_state {
            AttemptState::Succeeded | AttemptState::Declined | AttemptState::Void => true,
            AttemptState::Awaiting => {
                matches!(attempt.state, AttemptState::Started | AttemptState::Unknown)
            }
            AttemptState::Manual => true,
            _ => false,
        };
        if !legal {
            return Err(ApplyError::Impossible { sequence: outcome.sequence });
        }
        let was_manual = attempt.state == AttemptState::Manual;
        attempt.state = outcome.attempt_state;
        attempt.class = outcome.class;
        attempt.reason = outcome.reason;
        attempt.channel_ref = outcome.channel_ref;
        let is_manual = attempt.state == AttemptState::Manual;
        self.counters.manual_attempts += u64::from(is_manual && !was_manual);
        self.counters.manual_attempts -= u64::from(was_manual && !is_manual);
        Ok(())
    }

    /// The order's state; final ones get their time and their event.
    fn set_order_state(&mut self, sequence: u64, state: OrderState, reason: Reason, at: At) {
        let order = &mut self.orders[sequence];
        if order.state.is_final() {
            return;
        }
        (order.state, order.reason) = (state, reason);
        if state.is_final() {
            order.finished_ms = at.us / 1000;
            self.orders.settle_busy(sequence);
            self.create_event(sequence, None, at.us / 1000);
        }
    }

    /// What the leader does after an outcome of the newest attempt.
    fn follow_outcome(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let order = &self.orders[sequence];
        let (case, state) = (order.live.case, order.attempt.state);
        match state {
            AttemptState::Awaiting => {
                let first = self
                    .channel(order.attempt.channel)
                    .and_then(|channel| channel.query_plan_us.first().copied())
                    .unwrap_or(1_000_000);
                self.restart_case(sequence, now.mono_us + first, now);
            }
            _ if state.is_definitive() || state == AttemptState::Manual => self.close_case(case),
            _ => {}
        }
        if self.orders[sequence].live.in_flight && state.is_definitive() {
            // Settled by another path while the first send was unanswered.
            let channel = self.orders[sequence].attempt.channel;
            self.orders[sequence].live.in_flight = false;
            self.release_in_flight(channel);
        }
        self.answer_settled(sequence, now, out);
        self.deliver_new(now, out);
        if self.orders[sequence].state == OrderState::Processing {
            self.advance(sequence, now, out);
        }
        self.cancel_if_asked(sequence, now, out);
    }

    /// An order between attempts, or cancelled with money standing: the next
    /// record it needs.
    pub(super) fn advance(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let order = &self.orders[sequence];
        if order.live.ending || order.live.starting || order.state != OrderState::Processing {
            return;
        }
        let ordinal = order.attempt.ordinal;
        match order.attempt.state {
            AttemptState::Succeeded => {
                let amount = order.amount;
                let started =
                    self.orders.refunds_of(sequence).any(|(_, r)| r.kind == RefundKind::Reversal);
                if !started {
                    let kind = RefundKind::Reversal;
                    self.start_refund_of_our_own(sequence, kind, ordinal, amount, now, out);
                }
            }
            AttemptState::Declined | AttemptState::Void => self.next_or_end(sequence, now, out),
            _ => {}
        }
    }

    /// Proposes the next attempt; its channel's room is taken from now on.
    pub(super) fn start_next(&mut self, sequence: u64, channel: u16, now: Now, out: &mut Outputs) {
        let ordinal = self.orders[sequence].attempt.ordinal + 1;
        self.orders[sequence].live.starting = true;
        if let Some(live) = self.live_channel(channel) {
            live.in_flight += 1;
        }
        let next = NextAttempt { sequence, ordinal, channel };
        self.propose(now, &Record::NextAttempt(next), out);
    }

    fn next_or_end(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let order = &self.orders[sequence];
        let (attempt, wish) = (order.attempt, order.cancel_wish());
        let expired = order.expired(now.wall_us);
        if !wish.is_cancel()
            && !expired
            && let Ok(channel) = self.next_channel(sequence)
        {
            return self.start_next(sequence, channel, now, out);
        }
        let (order_state, reason) = if wish.is_cancel() {
            (OrderState::Closed, wish.reason())
        } else if expired && attempt.state == AttemptState::Void {
            (OrderState::Closed, Reason::Expired)
        } else if attempt.class != Class::Declined {
            (OrderState::Failed, Reason::NotSent)
        } else if attempt.reason == Reason::None {
            // Its record left the reason to what was to come next.
            (OrderState::Failed, Reason::ChannelDeclined)
        } else {
            (OrderState::Failed, attempt.reason)
        };
        self.orders[sequence].live.ending = true;
        let record = Outcome {
            sequence,
            attempt: attempt.ordinal,
            cancel_result: false,
            class: Class::RouteEnded,
            attempt_state: attempt.state,
            order_state,
            reason,
            amount: 0,
            channel_ref: attempt.channel_ref,
        };
        self.propose(now, &Record::Outcome(record), out);
    }

    fn apply_doubt(&mut self, sequence: u64, ordinal: u8) -> Result<(), ApplyError> {
        let order = self.committed_mut(sequence, ordinal)?;
        if order.attempt.ordinal == ordinal && order.attempt.state == AttemptState::Started {
            order.attempt.state = AttemptState::Unknown;
        } else {
            self.counters.ignored_records += 1;
        }
        Ok(())
    }

    fn apply_cancel(
        &mut self,
        cancel: &CancelStart,
        at: At,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let sequence = cancel.sequence;
        let order = self.committed_mut(sequence, cancel.attempt)?;
        let merchant = order.merchant;
        if order.live.cancelling == cancel.cause {
            order.live.cancelling = CancelCause::None;
        }
        let is_final = order.state.is_final();
        if !is_final && cancel.cause.is_cancel() && !order.cancel.is_cancel() {
            order.cancel = cancel.cause;
        }
        let open = matches!(
            order.attempt.state,
            AttemptState::Started | AttemptState::Unknown | AttemptState::Awaiting
        );
        let reverses = cancel.reversing && open && order.attempt.ordinal == cancel.attempt;
        if reverses {
            order.attempt.state = AttemptState::Reversing;
            order.attempt.reversal_started = true;
            order.state = OrderState::Processing;
        }
        if cancel.counted {
            let entry = self.merchants.at_mut(merchant);
            let limits = entry.limits(at.us);
            entry.applied.refund.take(at.us, limits.refund_per_minute, limits.burst);
        }
        if is_final || cancel.reversing && !reverses {
            self.counters.ignored_records += 1;
        }
        if at.leads && !is_final {
            self.follow_cancel(sequence, reverses, now, out);
        }
        Ok(())
    }

    fn follow_cancel(&mut self, sequence: u64, reverses: bool, now: Now, out: &mut Outputs) {
        if self.orders[sequence].live.ending {
            return;
        }
        if reverses {
            let case = self.restart_case(sequence, now.mono_us, now);
            self.start_now(case, now, out);
        } else {
            self.advance(sequence, now, out);
            self.look_again(sequence, now);
        }
    }

    fn apply_refund(
        &mut self,
        start: &RefundStart,
        at: At,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let (sequence, ordinal) = (start.sequence, start.ordinal);
        if self.orders.committed(sequence).is_none()
            || self.orders.attempt(sequence, start.attempt).is_none()
        {
            return Err(ApplyError::UnknownPayment { sequence, ordinal: start.attempt });
        }
        let proposed = match self.proposed_refunds.front() {
            Some(&(of, place)) if at.leads => {
                let refund = self.orders.refunds.get(place);
                if of != sequence || refund.is_none_or(|refund| refund.ordinal != ordinal) {
                    return Err(ApplyError::KeyMismatch { sequence });
                }
                self.proposed_refunds.pop_front();
                Some(place)
            }
            _ => None,
        };
        let amount = start.amount.minor();
        let order = &mut self.orders[sequence];
        let merchant = order.merchant;
        if start.kind != RefundKind::Orphan {
            if order.refunded + order.reserved + amount > order.amount
                && !self.weakened(Weakness::CancelIgnoresRefunds)
            {
                return Err(ApplyError::Impossible { sequence });
            }
            let order = &mut self.orders[sequence];
            order.reserved += amount;
            if proposed.is_some() {
                order.live.reserving -= amount;
            }
        }
        if start.counted {
            let entry = self.merchants.at_mut(merchant);
            let limits = entry.limits(at.us);
            entry.applied.refund.take(at.us, limits.refund_per_minute, limits.burst);
        }
        let place = match proposed {
            Some(place) => place,
            None => self.orders.add_refund(refund_of(start, 0)),
        };
        if let Some(refund) = self.orders.refunds.get_mut(place) {
            (refund.proposed, refund.created_ms) = (false, at.us / 1000);
        }
        self.orders.busy.put(sequence, true);
        if at.leads {
            self.answer_overdue(Owner::Refund(place), out);
            let timeout = self
                .orders
                .attempt(sequence, start.attempt)
                .and_then(|attempt| self.channel(attempt.channel))
                .map_or(0, |channel| channel.reply_timeout_us);
            let case = self.open_refund_case(place, true, now.mono_us + timeout, now);
            self.start_now(case, now, out);
        }
        Ok(())
    }

    fn apply_refund_outcome(
        &mut self,
        outcome: &RefundOutcome,
        at: At,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let (sequence, ordinal) = (outcome.sequence, outcome.ordinal);
        self.committed_mut(sequence, ordinal)?;
        let place = self.committed_refund(sequence, ordinal)?;
        self.settle_refund(place, outcome, at);
        if at.leads {
            self.follow_refund(sequence, place, now, out);
        }
        Ok(())
    }

    fn committed_refund(&self, sequence: u64, ordinal: u8) -> Result<u32, ApplyError> {
        self.orders
            .refunds_of(sequence)
            .find(|(_, refund)| refund.ordinal == ordinal && !refund.proposed)
            .map(|(place, _)| place)
            .ok_or(ApplyError::UnknownPayment { sequence, ordinal })
    }

    fn settle_refund(&mut self, place: u32, outcome: &RefundOutcome, at: At) {
        let keeps = !self.weakened(Weakness::DoubtDropsReservation);
        let Some(refund) = self.orders.refunds.get_mut(place) else { return };
        refund.ending = false;
        if !refund.is_open() {
            self.counters.ignored_records += 1;
            return;
        }
        let was_manual = refund.state == RefundState::Manual;
        (refund.state, refund.reason) = (outcome.state, outcome.reason);
        refund.channel_ref = outcome.channel_ref;
        let is_final = !refund.is_open();
        if is_final {
            refund.finished_ms = at.us / 1000;
        }
        let is_manual = refund.state == RefundState::Manual;
        let Refund { sequence, amount, kind, state, reason, .. } = *refund;
        self.counters.manual_refunds += u64::from(is_manual && !was_manual);
        self.counters.manual_refunds -= u64::from(was_manual && !is_manual);
        let order = &mut self.orders[sequence];
        if kind != RefundKind::Orphan {
            let released = is_final && (keeps || !was_manual) || is_manual && !keeps;
            order.reserved -= if released { amount } else { 0 };
            order.refunded += if state == RefundState::Success { amount } else { 0 };
        }
        let cancel = order.cancel;
        let undecided = !order.state.is_final();
        if kind != RefundKind::Orphan && is_final && order.state == OrderState::Paid {
            self.create_event(sequence, Some(place), at.us / 1000);
        }
        if kind == RefundKind::Reversal && undecided {
            let (order_state, reason) = Self::order_after_reversal(cancel, state, reason);
            self.set_order_state(sequence, order_state, reason, at);
        }
        self.orders.settle_busy(sequence);
    }

    fn follow_refund(&mut self, sequence: u64, place: u32, now: Now, out: &mut Outputs) {
        let Some(refund) = self.orders.refunds.get(place) else { return };
        if refund.state == RefundState::Processing {
            return;
        }
        let case = refund.case;
        self.close_case(case);
        self.answer_refund(place, out);
        self.answer_settled(sequence, now, out);
        self.deliver_new(now, out);
    }

    fn apply_decision(
        &mut self,
        decision: &Decision,
        at: At,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), ApplyError> {
        let sequence = decision.sequence;
        self.committed_mut(sequence, decision.ordinal)?;
        if decision.refund {
            let place = self.committed_refund(sequence, decision.ordinal)?;
            let outcome = RefundOutcome {
                sequence,
                ordinal: decision.ordinal,
                class: if decision.success { Class::Success } else { Class::Declined },
                state: if decision.success { RefundState::Success } else { RefundState::Failed },
                reason: Reason::Operator,
                channel_ref: Default::default(),
            };
            self.settle_refund(place, &outcome, at);
            if at.leads {
                self.follow_refund(sequence, place, now, out);
            }
        } else {
            let order = &self.orders[sequence];
            let cancelled = order.cancel.is_cancel();
            let (attempt_state, order_state) = match (decision.success, cancelled) {
                (true, false) => (AttemptState::Succeeded, OrderState::Paid),
                (true, true) => (AttemptState::Succeeded, OrderState::Processing),
                (false, false) => (AttemptState::Void, OrderState::Failed),
                (false, true) => (AttemptState::Void, OrderState::Closed),
            };
            let outcome = Outcome {
                sequence,
                attempt: order.attempt.ordinal,
                cancel_result: false,
                class: if decision.success { Class::Success } else { Class::Declined },
                attempt_state,
                order_state,
                reason: Reason::Operator,
                amount: order.amount,
                channel_ref: order.attempt.channel_ref,
            };
            self.apply_outcome(&outcome, at, now, out)?;
        }
        self.answer_ticket(at.leads, out);
        Ok(())
    }

    fn committed_mut(
        &mut self,
        sequence: u64,
        ordinal: u8,
    ) -> Result<&mut super::order::Order, ApplyError> {
        if self.orders.committed(sequence).is_none() {
            return Err(ApplyError::UnknownPayment { sequence, ordinal });
        }
        self.orders.get_mut(sequence).ok_or(ApplyError::UnknownPayment { sequence, ordinal })
    }
}
