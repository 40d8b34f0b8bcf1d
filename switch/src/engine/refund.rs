//! Refunds (docs/STATES.md, C9): the amount is reserved by a durable record
//! before the channel hears of it, and stays reserved until the channel says
//! what became of it.

use super::Engine;
use super::admit::{Refused, TOO_MANY_ASK};
use super::evidence::{Statement, decline_reason, raise};
use super::input::{Evidence, Now, Operation, OperationId, QueryRefundInput, RefundInput};
use super::order::{CancelCause, Class, REVERSAL_ORDINAL, Refund, RefundKind};
use super::output::{AlarmKind, Outputs, Reply, Send};
use super::record::{Record, RefundOutcome, RefundStart};
use super::slab::NIL;
use super::waiter::Owner;
use super::weakness::Weakness;
use protocol::channel::{ChannelRequest, ChannelStatus, charge_number, kind, refund_number};
use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::id::{OutRefundNo, ShortText};
use protocol::money::Amount;

impl Engine {
    pub(super) fn refund(&mut self, refund: &RefundInput, now: Now, out: &mut Outputs) {
        if let Err(Refused(code, retry)) = self.try_refund(refund, now, out) {
            out.replies.push(Reply::refusal(refund.origin.waiter, code, retry));
        }
    }

    fn try_refund(
        &mut self,
        input: &RefundInput,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), Refused> {
        let merchant = self.merchant_of(&input.origin)?;
        let sequence = self.find_order(merchant, &input.order, &input.digest)?;
        if let Some(place) = self.find_refund(sequence, &input.out_refund_no) {
            return self.refund_again(place, input, now, out);
        }
        self.judge_refundable(sequence, input, now, out)?;
        self.take_refund_rate(merchant, now)?;
        let attempt = self.orders[sequence].attempt.ordinal;
        let place = self.propose_refund(
            (sequence, RefundKind::Merchant, attempt, input.amount.minor()),
            Some(input.out_refund_no),
            true,
            now,
            out,
        );
        let origin = &input.origin;
        self.attach(Owner::Refund(place), origin.waiter, origin.wait_us, false, now);
        Ok(())
    }

    fn find_refund(&self, sequence: u64, no: &OutRefundNo) -> Option<u32> {
        self.orders
            .refunds_of(sequence)
            .find(|(_, r)| r.kind == RefundKind::Merchant && r.out_refund_no == *no)
            .map(|(place, _)| place)
    }

    fn refund_again(
        &mut self,
        place: u32,
        input: &RefundInput,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), Refused> {
        let Some(refund) = self.orders.refunds.get(place) else {
            return Err(Code::RefundNotFound.into());
        };
        let same = refund.amount == input.amount.minor()
            && self.orders[refund.sequence].currency == input.currency;
        if !same {
            return Err(Code::IdempotencyConflict.into());
        }
        let running = refund.state == RefundState::Processing;
        let origin = &input.origin;
        let owner = Owner::Refund(place);
        if !running || !self.attach(owner, origin.waiter, origin.wait_us, true, now) {
            if !self.is_durable(owner) {
                return Err(TOO_MANY_ASK);
            }
            let body = self.refund_body(place, Code::Ok, true);
            out.replies.push(Reply { waiter: origin.waiter, body });
        }
        Ok(())
    }

    fn judge_refundable(
        &mut self,
        sequence: u64,
        input: &RefundInput,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), Refused> {
        let order = &self.orders[sequence];
        match order.state {
            OrderState::Paid => {}
            OrderState::Failed | OrderState::Closed => return Err(Code::NotPaid.into()),
            _ => {
                self.ask_soon(sequence, now, out);
                return Err(Code::OrderNotFinal.into());
            }
        }
        if order.currency != input.currency {
            return Err(Code::CurrencyMismatch.into());
        }
        let being_reversed = self.orders.refunds_of(sequence).any(|(_, refund)| {
            refund.kind == RefundKind::Reversal && refund.state != RefundState::Failed
        });
        // The cancel wish of a paid order was refused with its reversal.
        if being_reversed {
            return Err(Code::OrderCancelling.into());
        }
        if now.wall_us > order.finished_ms * 1000 + self.config.refund_window_us {
            return Err(Code::WindowClosed.into());
        }
        let merchants =
            self.orders.refunds_of(sequence).filter(|(_, r)| r.kind == RefundKind::Merchant);
        if merchants.count() >= usize::from(self.config.refunds_per_order_max)
            || order.refund_count + 1 >= REVERSAL_ORDINAL
        {
            return Err(Code::RefundTooMany.into());
        }
        let taken = order.refunded + order.reserved + order.live.reserving;
        if taken + input.amount.minor() > order.amount {
            return Err(Code::RefundExceedsPaid.into());
        }
        if !self.has_room(order.attempt.channel) {
            return Err(Refused(Code::ChannelUnavailable, 200));
        }
        Ok(())
    }

    /// Takes a refund's slot and proposes its record. A refund of our own is
    /// named by its channel number.
    pub(super) fn propose_refund(
        &mut self,
        (sequence, kind, attempt, minor): (u64, RefundKind, u8, i64),
        out_refund_no: Option<OutRefundNo>,
        counted: bool,
        now: Now,
        out: &mut Outputs,
    ) -> u32 {
        let order = &self.orders[sequence];
        let ordinal = kind.ordinal(order.refund_count, attempt);
        let own = || refund_number(&order.digest, kind.number_kind(), ordinal);
        let out_refund_no = out_refund_no.unwrap_or_else(|| {
            OutRefundNo::parse(own().as_bytes())
                .unwrap_or_else(|_| unreachable!("a channel number is a refund number"))
        });
        let Some(amount) = Amount::new(minor) else { return NIL };
        let record =
            RefundStart { sequence, ordinal, kind, attempt, amount, out_refund_no, counted };
        let mut refund = refund_of(&record, 0);
        refund.proposed = true;
        if kind != RefundKind::Orphan {
            self.orders[sequence].live.reserving += minor;
        }
        let place = self.orders.add_refund(refund);
        self.proposed_refunds.push_back((sequence, place));
        self.propose(now, &Record::RefundStart(record), out);
        place
    }

    /// A refund that the switch itself needs; nobody waits for it.
    pub(super) fn start_refund_of_our_own(
        &mut self,
        sequence: u64,
        kind: RefundKind,
        attempt: u8,
        amount: i64,
        now: Now,
        out: &mut Outputs,
    ) {
        self.propose_refund((sequence, kind, attempt, amount), None, false, now, out);
    }

    pub(super) fn query_refund(&mut self, query: &QueryRefundInput, now: Now, out: &mut Outputs) {
        let waiter = query.origin.waiter;
        let found = self
            .take_query_rate(&query.origin, now)
            .and_then(|merchant| self.find_order(merchant, &query.order, &query.digest))
            .and_then(|sequence| {
                let place = self.find_refund(sequence, &query.out_refund_no);
                place.ok_or(Code::RefundNotFound.into())
            });
        match found {
            Ok(place) => {
                let owner = Owner::Refund(place);
                let reply = if self.is_durable(owner) {
                    Reply { waiter, body: self.refund_body(place, Code::Ok, false) }
                } else if self.hold(owner, waiter, false, now) {
                    return;
                } else {
                    TOO_MANY_ASK.reply(waiter)
                };
                out.replies.push(reply);
            }
            Err(refused) => out.replies.push(refused.reply(waiter)),
        }
    }

    pub(super) fn send_refund(
        &self,
        channel: u16,
        place: u32,
        operation: Operation,
        out: &mut Outputs,
    ) {
        let Some(refund) = self.orders.refunds.get(place) else { return };
        let order = &self.orders[refund.sequence];
        let Some(amount) = Amount::new(refund.amount) else { return };
        let mut refund_no = self.orders.refund_number(refund);
        if self.weakened(Weakness::NewNumberOnRefundRetry) && operation == Operation::Refund {
            let salt = self.next_salt();
            refund_no = refund_number(&order.digest, refund.kind.number_kind(), salt);
        }
        let kind = if operation == Operation::Refund { kind::REFUND } else { kind::QUERY_REFUND };
        out.sends.push(Send {
            channel,
            // Said of all that an input brought about, at its end.
            term: 0,
            since_us: 0,
            operation: OperationId {
                shard: self.config.shard,
                sequence: refund.sequence,
                operation,
                ordinal: refund.ordinal,
            },
            request: ChannelRequest {
                kind,
                charge_no: charge_number(&order.digest, refund.attempt),
                refund_no: Some(refund_no),
                amount,
                currency: order.currency,
                time_expire_ms: 0,
            },
        });
    }

    /// A channel statement about a refund.
    pub(super) fn refund_evidence(
        &mut self,
        operation: OperationId,
        evidence: &Evidence,
        now: Now,
        out: &mut Outputs,
    ) {
        let found = self
            .orders
            .refunds_of(operation.sequence)
            .find(|(_, r)| r.ordinal == operation.ordinal && !r.proposed)
            .map(|(place, r)| (place, r.case, r.state, r.ending, r.kind));
        let Some((place, case, state, ending, kind)) = found else {
            self.counters.unmatched += 1;
            return;
        };
        self.case_answered(case, operation.operation);
        let statement = self.compare_refund(place, evidence);
        let is_final = matches!(state, RefundState::Success | RefundState::Failed);
        if is_final {
            let contradicts = matches!(
                (state, statement.class),
                (RefundState::Success, Class::Declined)
                    | (RefundState::Failed, Class::Success)
                    | (_, Class::Integrity)
            );
            if contradicts {
                raise(out, AlarmKind::Conflict, operation.sequence, operation.ordinal);
            }
            return;
        }
        if ending {
            let settles =
                matches!(statement.class, Class::Success | Class::Declined | Class::Integrity);
            if settles {
                self.defer(operation, evidence);
            }
            return;
        }
        let asked_refund = operation.operation == Operation::Refund;
        match statement.class {
            Class::Success => {
                self.conclude_refund(place, RefundState::Success, &statement, now, out)
            }
            // The charge would stand for ever, and nobody waits who could ask again.
            Class::Declined if kind == RefundKind::Orphan => {
                if state == RefundState::Processing {
                    self.conclude_refund(place, RefundState::Manual, &statement, now, out);
                }
            }
            Class::Declined => {
                self.conclude_refund(place, RefundState::Failed, &statement, now, out)
            }
            Class::Integrity if state == RefundState::Processing => {
                self.conclude_refund(place, RefundState::Manual, &statement, now, out);
            }
            // One number moves money once, so that sending it again is safe.
            Class::NotFound if !asked_refund && state == RefundState::Processing => {
                self.open_refund_case(place, true, now.mono_us, now);
                self.start_now(case, now, out);
            }
            _ => self.next_step(case, now),
        }
    }

    fn compare_refund(&self, place: u32, evidence: &Evidence) -> Statement {
        let silent = Statement::plain(Class::Silent, Reason::None);
        let Evidence::Answered { status, detail, charge_no, amount, currency, channel_ref } =
            evidence
        else {
            return silent;
        };
        let Some(refund) = self.orders.refunds.get(place) else { return silent };
        let order = &self.orders[refund.sequence];
        let number_fits = *charge_no == charge_number(&order.digest, refund.attempt);
        let money_fits = *amount == refund.amount && *currency == order.currency;
        let (class, reason) = match status {
            ChannelStatus::Success if number_fits && money_fits => (Class::Success, Reason::None),
            ChannelStatus::Success => (Class::Integrity, Reason::Integrity),
            _ if !number_fits => return silent,
            ChannelStatus::Declined => (Class::Declined, decline_reason(*detail)),
            ChannelStatus::Pending => (Class::Pending, Reason::None),
            ChannelStatus::NotFound => (Class::NotFound, Reason::None),
            ChannelStatus::Reversed | ChannelStatus::Unavailable => return silent,
        };
        Statement { class, reason, amount: *amount, channel_ref: *channel_ref }
    }

    /// Proposes a refund's new state.
    pub(super) fn conclude_refund(
        &mut self,
        place: u32,
        state: RefundState,
        statement: &Statement,
        now: Now,
        out: &mut Outputs,
    ) {
        let Some(refund) = self.orders.refunds.get_mut(place) else { return };
        refund.ending = true;
        let (sequence, ordinal) = (refund.sequence, refund.ordinal);
        match statement.class {
            Class::Integrity => raise(out, AlarmKind::Integrity, sequence, ordinal),
            _ if state == RefundState::Manual => raise(out, AlarmKind::Manual, sequence, ordinal),
            _ => {}
        }
        let record = RefundOutcome {
            sequence,
            ordinal,
            class: statement.class,
            state,
            reason: statement.reason,
            channel_ref: statement.channel_ref,
        };
        self.propose(now, &Record::RefundOutcome(record), out);
    }

    /// Answers everyone who waits for a refund.
    pub(super) fn answer_refund(&mut self, place: u32, out: &mut Outputs) {
        while let Some(wait) = self.take_waiter(Owner::Refund(place)) {
            let body = self.as_it_stands(&wait);
            out.replies.push(Reply { waiter: wait.waiter, body });
        }
    }

    /// What a settled reversal means for an order that is not final: its
    /// wish is fulfilled, refused, or in front of an operator.
    pub(super) fn order_after_reversal(
        cancel: CancelCause,
        state: RefundState,
        reason: Reason,
    ) -> (OrderState, Reason) {
        match state {
            RefundState::Success => (OrderState::Closed, cancel.reason()),
            RefundState::Failed => (OrderState::Paid, Reason::CancelRefused),
            _ => (OrderState::Manual, reason),
        }
    }
}

/// A refund as its record says.
pub(super) fn refund_of(record: &RefundStart, created_ms: u64) -> Refund {
    Refund {
        sequence: record.sequence,
        amount: record.amount.minor(),
        created_ms,
        finished_ms: 0,
        out_refund_no: record.out_refund_no,
        channel_ref: ShortText::EMPTY,
        reason: Reason::None,
        kind: record.kind,
        state: RefundState::Processing,
        ordinal: record.ordinal,
        attempt: record.attempt,
        next: NIL,
        proposed: false,
        ending: false,
        case: NIL,
        waiters: NIL,
        waiter_count: 0,
    }
}
