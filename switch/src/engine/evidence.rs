//! What channels say, judged (state machine, C3 and C8). Evidence becomes a
//! proposal; nothing here changes replicated state.

use protocol::channel::ChannelStatus;
use protocol::code::{Reason, RefundState};
use protocol::id::ShortText;

use super::Engine;
use super::input::{Evidence, Now, Operation, OperationId};
use super::order::{ATTEMPTS_MAX, Attempt, ORPHAN_ORDINAL};
use super::output::{AlarmKind, Outputs};
use super::record::{CancelCause, End, Ending, Record};

/// Most evidence kept while decisions about its attempts are on their way.
const DEFERRED_MAX: usize = 65_536;

/// Declines after which another channel may be tried: the channel's trouble,
/// not the payer's.
fn may_cascade(reason: Reason) -> bool {
    matches!(reason, Reason::ChannelRisk | Reason::NotSent)
}

struct Answer {
    status: ChannelStatus,
    reason: Reason,
    fits: bool,
    channel_ref: ShortText,
}

impl Engine {
    pub(super) fn evidence(
        &mut self,
        id: OperationId,
        evidence: Evidence,
        now: Now,
        out: &mut Outputs,
    ) {
        let place = self.place(id.sequence).filter(|at| (*at as usize) < self.committed);
        let Some(at) = place.filter(|_| self.leading.is_some()) else { return };
        match id.operation {
            Operation::Charge | Operation::Query | Operation::Reverse => {
                self.attempt_evidence(at, id, evidence, now, out);
            }
            Operation::Refund | Operation::QueryRefund => {
                self.refund_evidence(at, id, evidence, now, out);
            }
        }
    }

    fn attempt_evidence(
        &mut self,
        at: u32,
        id: OperationId,
        evidence: Evidence,
        now: Now,
        out: &mut Outputs,
    ) {
        let Some(order) = self.order(at) else { return };
        let (deciding, state) = (order.volatile.deciding, order.attempt_state(id.ordinal));
        if deciding && id.ordinal == order.attempt {
            if self.deferred.len() < DEFERRED_MAX {
                self.deferred.push((id, evidence));
            }
            return;
        }
        let answer = match evidence {
            Evidence::NotSent if state == Attempt::Started && id.operation == Operation::Charge => {
                return self.decide(at, Ending::Void, Reason::NotSent, ShortText::EMPTY, now, out);
            }
            Evidence::NotSent => return,
            Evidence::Lost => {
                if state == Attempt::Started {
                    self.doubt_attempt(at, now, self.first_query_us(at));
                }
                return;
            }
            Evidence::Answered { status, detail, charge_no, amount, currency, channel_ref } => {
                Answer {
                    status,
                    reason: Reason::from_wire(detail)
                        .filter(|reason| *reason != Reason::None)
                        .unwrap_or(Reason::ChannelDeclined),
                    fits: charge_no == order.charge_no(id.ordinal)
                        && amount == order.amount.minor()
                        && currency == order.currency,
                    channel_ref,
                }
            }
        };
        self.judge(at, id, state, &answer, now, out);
    }

    fn judge(
        &mut self,
        at: u32,
        id: OperationId,
        state: Attempt,
        answer: &Answer,
        now: Now,
        out: &mut Outputs,
    ) {
        match answer.status {
            ChannelStatus::Success => self.judge_success(at, id, state, answer, now, out),
            ChannelStatus::Declined => self.judge_decline(at, id, state, answer, now, out),
            ChannelStatus::Pending => match state {
                Attempt::Started | Attempt::Unknown | Attempt::Awaiting => {
                    self.await_payer(at, now, out);
                }
                _ => {}
            },
            ChannelStatus::NotFound => {
                let asked = id.operation == Operation::Query;
                if asked && matches!(state, Attempt::Unknown | Attempt::Awaiting) {
                    self.not_found(at, now, out);
                }
            }
            ChannelStatus::Reversed => {
                if !state.definitive() && state != Attempt::Idle {
                    let reason = if state == Attempt::Reversing {
                        Reason::BudgetSpent
                    } else {
                        Reason::Cancelled
                    };
                    self.decide(at, Ending::Reversed, reason, ShortText::EMPTY, now, out);
                }
            }
            ChannelStatus::Unavailable => {
                if state == Attempt::Started {
                    self.doubt_attempt(at, now, self.first_query_us(at));
                }
            }
        }
    }

    fn judge_success(
        &mut self,
        at: u32,
        id: OperationId,
        state: Attempt,
        answer: &Answer,
        now: Now,
        out: &mut Outputs,
    ) {
        match state {
            Attempt::Idle | Attempt::Succeeded | Attempt::Reversed => {}
            // The reversal must finish; only its own answer can say "already paid".
            Attempt::Reversing if id.operation != Operation::Reverse => {}
            Attempt::Declined | Attempt::Void => self.orphan(at, id.ordinal, now, out),
            _ if !answer.fits => {
                if state != Attempt::Manual {
                    self.alarm(AlarmKind::Integrity, at, id.ordinal, out);
                    let reference = answer.channel_ref;
                    self.decide(at, Ending::Manual, Reason::Integrity, reference, now, out);
                }
            }
            Attempt::Manual if self.order(at).is_some_and(|o| o.reason == Reason::Integrity) => {}
            _ => {
                let reference = answer.channel_ref;
                self.decide(at, Ending::Succeeded, Reason::None, reference, now, out);
            }
        }
    }

    fn judge_decline(
        &mut self,
        at: u32,
        id: OperationId,
        state: Attempt,
        answer: &Answer,
        now: Now,
        out: &mut Outputs,
    ) {
        let reference = answer.channel_ref;
        match state {
            Attempt::Started | Attempt::Unknown | Attempt::Awaiting | Attempt::Manual => {
                self.decide(at, Ending::Declined, answer.reason, reference, now, out);
            }
            // Nothing to undo, said by the reversal itself.
            Attempt::Reversing if id.operation == Operation::Reverse => {
                self.decide(at, Ending::Void, answer.reason, reference, now, out);
            }
            Attempt::Succeeded => self.alarm(AlarmKind::Conflict, at, id.ordinal, out),
            _ => {}
        }
    }

    /// Proposes the end of the current attempt.
    pub(super) fn decide(
        &mut self,
        at: u32,
        ending: Ending,
        reason: Reason,
        channel_ref: ShortText,
        now: Now,
        out: &mut Outputs,
    ) {
        let goes_on = self.goes_on(at, ending, reason, now);
        let Some(order) = self.order_mut(at) else { return };
        order.volatile.deciding = true;
        let end = End {
            sequence: u64::from(at) + 1,
            ordinal: order.attempt,
            ending,
            reason,
            goes_on,
            channel_ref,
        };
        self.propose(&Record::End(end), now, out);
    }

    /// Whether another channel is tried after this ending.
    fn goes_on(&self, at: u32, ending: Ending, reason: Reason, now: Now) -> bool {
        let Some(order) = self.order(at) else { return false };
        matches!(ending, Ending::Declined | Ending::Void)
            && may_cascade(reason)
            && !order.cancelled
            && order.time_expire_ms > now.wall_us / 1000
            && usize::from(order.attempt) < ATTEMPTS_MAX
            && self.next_channel(at).is_some()
    }

    /// The first channel of the payment's route that was not tried yet and can
    /// take a charge.
    fn next_channel(&self, at: u32) -> Option<u16> {
        let order = self.order(at)?;
        let merchant = self.merchant(order.merchant)?;
        let list = self.route_list(
            order.method,
            order.currency,
            order.amount.minor(),
            &merchant.merchant.mch_id,
        );
        let tried = &order.channels[..usize::from(order.attempt).min(ATTEMPTS_MAX)];
        list.iter().copied().find(|channel| !tried.contains(channel) && self.can_take(*channel))
    }

    /// Proposes the next attempt of a payment whose last one is proven void. When
    /// the route has closed meanwhile, the payment is cancelled instead: it
    /// must not be left open.
    pub(super) fn go_on(&mut self, at: u32, now: Now, out: &mut Outputs) {
        let next = self.next_channel(at);
        let expired = self.order(at).is_some_and(|o| o.time_expire_ms <= now.wall_us / 1000);
        let Some(order) = self.order_mut(at) else { return };
        order.volatile.deciding = true;
        let attempt = order.attempt;
        let sequence = u64::from(at) + 1;
        let record = match next {
            Some(channel) if !expired && usize::from(attempt) < ATTEMPTS_MAX => {
                Record::Attempt { sequence, attempt: attempt + 1, channel }
            }
            _ => Record::Cancel { sequence, attempt, cause: CancelCause::Expired },
        };
        self.propose(&record, now, out);
    }

    /// A charge that appeared after its attempt was given up: give it back, and
    /// say so. The merchant's outcome does not change.
    fn orphan(&mut self, at: u32, attempt: u8, now: Now, out: &mut Outputs) {
        let ordinal = ORPHAN_ORDINAL + attempt;
        if self.refund_of(at, ordinal).is_some() {
            return;
        }
        self.alarm(AlarmKind::OrphanSuccess, at, attempt, out);
        if let Some(amount) = self.whole(at) {
            self.propose_refund(at, ordinal, attempt, amount, None, now, out);
        }
    }

    fn refund_evidence(
        &mut self,
        at: u32,
        id: OperationId,
        evidence: Evidence,
        now: Now,
        out: &mut Outputs,
    ) {
        let Some(place) = self.refund_of(at, id.ordinal) else { return };
        let Some(refund) = self.refunds.get_mut(place as usize) else { return };
        if refund.deciding || !matches!(refund.state, RefundState::Processing | RefundState::Manual)
        {
            return;
        }
        let Evidence::Answered { status, detail, amount, channel_ref, charge_no, currency } =
            evidence
        else {
            return;
        };
        let (expected, attempt) = (refund.amount.minor(), refund.attempt);
        let Some(order) = self.orders.get(at as usize) else { return };
        let fits = charge_no == order.charge_no(attempt) && currency == order.currency;
        let (ending, reason) = match status {
            ChannelStatus::Success if amount == expected && fits => {
                (Ending::Succeeded, Reason::None)
            }
            ChannelStatus::Success => {
                self.alarm(AlarmKind::Integrity, at, id.ordinal, out);
                (Ending::Manual, Reason::Integrity)
            }
            ChannelStatus::Declined => {
                let reason = Reason::from_wire(detail).unwrap_or(Reason::ChannelDeclined);
                (Ending::Declined, reason)
            }
            ChannelStatus::NotFound if id.operation == Operation::QueryRefund => {
                // It never arrived: the same number again can move money only once.
                return self.send_refund(place, now, out);
            }
            _ => return,
        };
        if let Some(refund) = self.refunds.get_mut(place as usize) {
            refund.deciding = true;
        }
        let end = End {
            sequence: u64::from(at) + 1,
            ordinal: id.ordinal,
            ending,
            reason,
            goes_on: false,
            channel_ref,
        };
        self.propose(&Record::RefundEnd(end), now, out);
    }

    /// Evidence that had to wait for a decision is judged against its result.
    pub(super) fn retry_deferred(&mut self, now: Now, out: &mut Outputs) {
        if self.deferred.is_empty() {
            return;
        }
        for (id, evidence) in std::mem::take(&mut self.deferred) {
            self.evidence(id, evidence, now, out);
        }
    }
}
