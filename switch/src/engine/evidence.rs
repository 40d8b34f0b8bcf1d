//! Channel statements: what they prove, and the record that follows.
//!
//! A statement is first compared with what was asked (number, amount,
//! currency), then the transition table decides, then the outcome is proposed.
//! Nothing about money changes here: only applied records do that.

use super::Engine;
use super::attempt::{Asked, Facts, Step, step};
use super::input::{Evidence, Now, Operation, OperationId};
use super::order::{AttemptState, CancelCause, Class, Order};
use super::output::{Alarm, AlarmKind, Outputs, Send};
use super::record::{Outcome, Record};
use super::weakness::Weakness;
use protocol::channel::{ChannelRequest, ChannelStatus, charge_number, kind};
use protocol::code::{Code, OrderState, Reason};
use protocol::id::ShortText;
use protocol::money::Amount;

/// A statement after comparison with what was asked.
#[derive(Clone, Copy)]
pub(super) struct Statement {
    pub(super) class: Class,
    pub(super) reason: Reason,
    pub(super) amount: i64,
    pub(super) channel_ref: ShortText,
}

impl Statement {
    pub(super) const fn plain(class: Class, reason: Reason) -> Self {
        Self { class, reason, amount: 0, channel_ref: ShortText::EMPTY }
    }
}

/// Most statements set aside while an outcome is proposed; more are dropped,
/// as the network might have done.
const DEFERRED_MAX: usize = 4096;

impl Engine {
    pub(super) fn evidence(
        &mut self,
        operation: OperationId,
        evidence: &Evidence,
        now: Now,
        out: &mut Outputs,
    ) {
        if self.term.is_none() {
            return;
        }
        if operation.shard != self.config.shard
            || self.orders.committed(operation.sequence).is_none()
        {
            self.counters.unmatched += 1;
            return;
        }
        match operation.operation {
            Operation::Charge => self.charge_evidence(operation, Asked::Charge, evidence, now, out),
            Operation::Query => self.charge_evidence(operation, Asked::Query, evidence, now, out),
            Operation::Reverse => {
                self.charge_evidence(operation, Asked::Reverse, evidence, now, out);
            }
            Operation::Refund | Operation::QueryRefund => {
                self.refund_evidence(operation, evidence, now, out);
            }
        }
    }

    fn charge_evidence(
        &mut self,
        operation: OperationId,
        asked: Asked,
        evidence: &Evidence,
        now: Now,
        out: &mut Outputs,
    ) {
        let (sequence, ordinal) = (operation.sequence, operation.ordinal);
        let newest = self.orders[sequence].attempt.ordinal == ordinal;
        let first_life = newest && self.answered(operation);
        let Some(statement) = self.compare(operation, evidence, first_life, out) else { return };
        let Some(attempt) = self.orders.attempt(sequence, ordinal) else {
            self.counters.unmatched += 1;
            return;
        };
        if attempt.state.is_definitive() {
            return self.late((sequence, ordinal), asked, &statement, now, out);
        }
        if self.orders[sequence].live.ending {
            if matches!(statement.class, Class::Success | Class::Integrity) {
                self.defer(operation, evidence);
            }
            return;
        }
        self.decide(sequence, asked, &statement, now, out);
    }

    /// Books the answer of an operation in flight; whether it is the charge's
    /// first send inside its time-out.
    fn answered(&mut self, operation: OperationId) -> bool {
        let order = &mut self.orders[operation.sequence];
        let channel = order.attempt.channel;
        if operation.operation == Operation::Charge && order.live.in_flight {
            order.live.in_flight = false;
            self.release_in_flight(channel);
            return true;
        }
        let case = order.live.case;
        self.case_answered(case, operation.operation);
        false
    }

    /// Compares a statement with what was asked; `None` when it is about
    /// something else.
    fn compare(
        &mut self,
        operation: OperationId,
        evidence: &Evidence,
        first_life: bool,
        out: &mut Outputs,
    ) -> Option<Statement> {
        let order = &self.orders[operation.sequence];
        let (status, detail, charge_no, amount, currency, channel_ref) = match evidence {
            // Only the first send proves it: an earlier one may be under way.
            Evidence::NotSent if first_life => {
                return Some(Statement::plain(Class::NotSent, Reason::NotSent));
            }
            Evidence::NotSent | Evidence::Lost => {
                return Some(Statement::plain(Class::Silent, Reason::None));
            }
            Evidence::Answered { status, detail, charge_no, amount, currency, channel_ref } => {
                (*status, *detail, charge_no, *amount, *currency, *channel_ref)
            }
        };
        let number_fits = *charge_no == charge_number(&order.digest, operation.ordinal);
        let money_fits = amount == order.amount && currency == order.currency;
        let (class, reason) = match status {
            // A confirmed reversal names no money that moved; the number decides.
            ChannelStatus::Success if number_fits && money_fits => (Class::Success, Reason::None),
            ChannelStatus::Success => (Class::Integrity, Reason::Integrity),
            _ if !number_fits => {
                raise(out, AlarmKind::Integrity, operation.sequence, operation.ordinal);
                (Class::Silent, Reason::None)
            }
            ChannelStatus::Declined => (Class::Declined, decline_reason(detail)),
            ChannelStatus::Pending => (Class::Pending, Reason::None),
            ChannelStatus::NotFound => (Class::NotFound, Reason::None),
            ChannelStatus::Reversed => (Class::Reversed, Reason::Cancelled),
            ChannelStatus::Unavailable => (Class::Silent, Reason::None),
        };
        Some(Statement { class, reason, amount, channel_ref })
    }

    /// The open newest attempt: ask the table and act.
    pub(super) fn decide(
        &mut self,
        sequence: u64,
        asked: Asked,
        statement: &Statement,
        now: Now,
        out: &mut Outputs,
    ) {
        if statement.class == Class::Pending {
            self.case_known(self.orders[sequence].live.case);
        }
        let order = &self.orders[sequence];
        let state = self.state_with_proposals(order);
        let facts = self.facts(order, now);
        match self.weaken(step(state, asked, statement.class, &facts), state, asked, statement) {
            Step::To(to) => self.conclude(sequence, to, statement, now, out),
            Step::Doubt => self.doubt(sequence, now.mono_us, now, out),
            Step::Wait => self.go_on(sequence, now, out),
            Step::Alarm => {
                raise(out, AlarmKind::Integrity, sequence, self.orders[sequence].attempt.ordinal);
                self.go_on(sequence, now, out);
            }
            Step::Resend => self.resend(sequence, now, out),
            Step::Fence => self.start_cancel(sequence, CancelCause::GaveUp, false, now, out),
            Step::AskCharge => self.ask_charge(sequence, now, out),
            Step::Ignore => {}
            Step::Orphan | Step::Residue | Step::Conflict => {
                debug_assert!(false, "only definitive attempts are contradicted");
            }
        }
    }

    fn weaken(
        &self,
        sound: Step,
        state: AttemptState,
        asked: Asked,
        statement: &Statement,
    ) -> Step {
        let silent_charge = asked == Asked::Charge && statement.class == Class::Silent;
        if self.weakened(Weakness::TimeoutIsDecline)
            && silent_charge
            && state == AttemptState::Started
        {
            return Step::To(AttemptState::Declined);
        }
        let absent = statement.class == Class::NotFound && asked == Asked::Query;
        if self.weakened(Weakness::NotFoundIsFinal) && absent && state != AttemptState::Reversing {
            return Step::To(AttemptState::Void);
        }
        sound
    }

    /// The newest attempt's state as it will stand once proposals are applied.
    fn state_with_proposals(&self, order: &Order) -> AttemptState {
        let state = order.attempt.state;
        let reversible = self.channel(order.attempt.channel).is_some_and(|c| c.reversible);
        let open = !state.is_definitive() && state != AttemptState::Manual;
        if order.live.cancelling != CancelCause::None && open && reversible {
            return AttemptState::Reversing;
        }
        // Doubt is known before its record is applied.
        if state == AttemptState::Started && order.live.case != super::slab::NIL {
            return AttemptState::Unknown;
        }
        state
    }

    fn facts(&self, order: &Order, now: Now) -> Facts {
        let Some(channel) = self.channel(order.attempt.channel) else { return Facts::default() };
        let case = order.live.case;
        let (lifetime_over, reversal_refused) = self.case_facts(case, channel, now);
        Facts {
            idempotent_pay: channel.idempotent_pay,
            reversible: channel.reversible,
            fences: channel.fence_on_cancel,
            wanted: !order.cancel_wish().is_cancel() && !order.expired(now.wall_us),
            lifetime_over,
            known: self.case_is_known(case),
            reversal_refused,
            reversal_started: order.attempt.reversal_started,
            void_by_reversal: false,
        }
    }

    /// Proposes the attempt's new state and what it means for the order.
    pub(super) fn conclude(
        &mut self,
        sequence: u64,
        to: AttemptState,
        statement: &Statement,
        now: Now,
        out: &mut Outputs,
    ) {
        let order = &self.orders[sequence];
        let (order_state, reason) = self.order_after(sequence, to, statement, now);
        let outcome = Outcome {
            sequence,
            attempt: order.attempt.ordinal,
            cancel_result: self.state_with_proposals(order) == AttemptState::Reversing,
            class: statement.class,
            attempt_state: to,
            order_state,
            reason,
            amount: statement.amount,
            channel_ref: statement.channel_ref,
        };
        match statement.class {
            Class::Integrity => raise(out, AlarmKind::Integrity, sequence, outcome.attempt),
            Class::BudgetSpent => raise(out, AlarmKind::Manual, sequence, outcome.attempt),
            _ => {}
        }
        self.orders[sequence].live.ending = true;
        self.propose(now, &Record::Outcome(outcome), out);
        let over = matches!(to, AttemptState::Declined | AttemptState::Void);
        if over
            && order_state == OrderState::Processing
            && let Ok(channel) = self.next_channel(sequence)
        {
            // Behind its proof in the same block: one commit less to wait for.
            self.start_next(sequence, channel, now, out);
        }
        if self.weakened(Weakness::AnswerBeforeCommitted) {
            let before = (self.orders[sequence].state, self.orders[sequence].reason);
            (self.orders[sequence].state, self.orders[sequence].reason) = (order_state, reason);
            self.answer_settled(sequence, now, out);
            (self.orders[sequence].state, self.orders[sequence].reason) = before;
        }
    }

    /// What the order becomes when its newest attempt becomes `to`.
    fn order_after(
        &self,
        sequence: u64,
        to: AttemptState,
        statement: &Statement,
        now: Now,
    ) -> (OrderState, Reason) {
        let order = &self.orders[sequence];
        let wish = order.cancel_wish();
        match to {
            AttemptState::Awaiting => (OrderState::WaitPayer, Reason::None),
            AttemptState::Manual => (OrderState::Manual, statement.reason),
            // Money stands although it is not wanted: it goes back first.
            AttemptState::Succeeded if wish.is_cancel() => (OrderState::Processing, Reason::None),
            AttemptState::Succeeded => (OrderState::Paid, Reason::None),
            AttemptState::Declined | AttemptState::Void => {
                if self.weakened(Weakness::GiveUpIsFailed) && statement.class == Class::BudgetSpent
                {
                    return (OrderState::Failed, Reason::BudgetSpent);
                }
                self.order_without_money(sequence, to, statement, wish, now)
            }
            AttemptState::Started | AttemptState::Unknown | AttemptState::Reversing => {
                (order.state, order.reason)
            }
        }
    }

    fn order_without_money(
        &self,
        sequence: u64,
        to: AttemptState,
        statement: &Statement,
        wish: CancelCause,
        now: Now,
    ) -> (OrderState, Reason) {
        if wish.is_cancel() {
            return (OrderState::Closed, wish.reason());
        }
        let expired = self.orders[sequence].expired(now.wall_us);
        let cascades = to == AttemptState::Void || may_cascade(statement.reason);
        if cascades && !expired && self.next_channel(sequence).is_ok() {
            return (OrderState::Processing, Reason::None);
        }
        match to {
            AttemptState::Void if expired => (OrderState::Closed, Reason::Expired),
            // Declined while it was being reversed.
            AttemptState::Void if statement.class == Class::Declined => {
                (OrderState::Failed, statement.reason)
            }
            AttemptState::Void => (OrderState::Failed, Reason::NotSent),
            _ => (OrderState::Failed, statement.reason),
        }
    }

    /// The next channel of the order's route that was not tried yet.
    pub(super) fn next_channel(&self, sequence: u64) -> Result<u16, Code> {
        let order = &self.orders[sequence];
        if order.attempt.ordinal >= ATTEMPTS_MAX {
            return Err(Code::NoRoute);
        }
        let mch_id = self.merchants.at(order.merchant).merchant.mch_id;
        let tried = |channel| {
            (1..=order.attempt.ordinal).any(|ordinal| {
                self.orders.attempt(sequence, ordinal).is_some_and(|a| a.channel == channel)
            })
        };
        self.choose_channel(order.method, order.currency, order.amount, &mch_id, tried)
            .map_err(|refused| refused.0)
    }

    /// Sends the first request of the newest attempt.
    pub(super) fn send_charge(&self, sequence: u64, out: &mut Outputs) {
        let attempt = &self.orders[sequence].attempt;
        self.send(attempt.channel, sequence, Operation::Charge, attempt.ordinal, out);
    }

    /// Emits a request about an attempt.
    pub(super) fn send(
        &self,
        channel: u16,
        sequence: u64,
        operation: Operation,
        ordinal: u8,
        out: &mut Outputs,
    ) {
        let order = &self.orders[sequence];
        let Some(amount) = Amount::new(order.amount) else { return };
        let kind = match operation {
            Operation::Charge => kind::CHARGE,
            Operation::Query => kind::QUERY,
            Operation::Reverse => kind::REVERSE,
            Operation::Refund => kind::REFUND,
            Operation::QueryRefund => kind::QUERY_REFUND,
        };
        out.sends.push(Send {
            channel,
            // Said of all that an input brought about, at its end.
            term: 0,
            since_us: 0,
            operation: OperationId { shard: self.config.shard, sequence, operation, ordinal },
            request: ChannelRequest {
                kind,
                charge_no: charge_number(&order.digest, ordinal),
                refund_no: None,
                amount,
                currency: order.currency,
                time_expire_ms: order.time_expire_ms,
            },
        });
    }

    /// Sets a statement aside until what is proposed is applied: it might
    /// contradict it.
    pub(super) fn defer(&mut self, operation: OperationId, evidence: &Evidence) {
        if self.deferred.len() < DEFERRED_MAX {
            self.deferred.push((operation, *evidence));
        }
    }

    /// Statements that were set aside, once nothing is proposed about them.
    pub(super) fn hear_deferred(&mut self, now: Now, out: &mut Outputs) {
        if self.deferred.is_empty() {
            return;
        }
        for (operation, evidence) in std::mem::take(&mut self.deferred) {
            self.evidence(operation, &evidence, now, out);
        }
    }
}

/// Most attempts of one order; also bounded by the ordinal's 7 bits.
const ATTEMPTS_MAX: u8 = 16;

pub(super) fn raise(out: &mut Outputs, kind: AlarmKind, sequence: u64, ordinal: u8) {
    out.alarms.push(Alarm { kind, sequence, ordinal });
}

/// A decline's reason; an unknown class is a plain decline.
pub(super) fn decline_reason(detail: u16) -> Reason {
    match Reason::from_wire(detail) {
        Some(
            reason @ (Reason::InsufficientFunds
            | Reason::ChannelRisk
            | Reason::PayerInvalid
            | Reason::ChannelDeclined),
        ) => reason,
        _ => Reason::ChannelDeclined,
    }
}

/// Whether another channel might accept what this one declined: the payer's
/// balance and risk standing follow the payer, a channel's own rules do not.
fn may_cascade(reason: Reason) -> bool {
    matches!(reason, Reason::ChannelDeclined | Reason::PayerInvalid)
}
