//! Sending, waiting and doubt: what the leader does with time (state machine,
//! C7 and C11). Volatile: a new leader rebuilds it from the open attempts.
//!
//! Reply time-outs and waits have one length per channel and per engine, so
//! they are queues, not heaps. The slow path (queries, reversals, refunds in
//! doubt) is a heap, worked off oldest first within each channel's budget.

use std::cmp::Ordering;
use std::collections::VecDeque;

use protocol::channel::{ChannelRequest, kind};
use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::id::ShortText;

use super::Engine;
use super::config::ChannelConfig;
use super::input::{Now, Operation, OperationId, Origin};
use super::order::{Attempt, NONE};
use super::output::{AlarmKind, Outputs, Send};
use super::record::{CancelCause, End, Ending, Record};

/// Pause of the resolver when a channel is down or its budget is used up.
const BUDGET_PAUSE_US: u64 = 200_000;

/// The leader's view of a channel.
#[derive(Default)]
pub(super) struct ChannelState {
    pub(super) up: bool,
    /// Charges without answer.
    pub(super) in_flight: u32,
    /// Reply time-outs in order of time: due, payment, attempt.
    replies: VecDeque<(u64, u32, u8)>,
    /// Resolver budget: second and operations used in it.
    budget: (u64, u32),
}

/// An attempt (ordinal 0) or refund in doubt.
pub(super) struct Doubt {
    pub(super) since_us: u64,
    step: usize,
    due_us: u64,
    last_send_us: u64,
    alarmed: bool,
}

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The next step for an attempt or refund in doubt.
    Doubt,
    /// Early answers for a payment or refund.
    Wait,
}

/// An entry of the slow path; the earliest is the greatest.
#[derive(PartialEq, Eq)]
pub(super) struct Timer {
    due_us: u64,
    at: u32,
    ordinal: u8,
    due: Due,
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |timer: &Self| (timer.due_us, timer.at, timer.ordinal, timer.due);
        key(other).cmp(&key(self))
    }
}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Engine {
    pub(super) fn contract(&self, channel: u16) -> Option<&ChannelConfig> {
        self.config.channels.get(usize::from(channel).checked_sub(1)?)
    }

    fn channel_mut(&mut self, channel: u16) -> Option<&mut ChannelState> {
        self.channels.get_mut(usize::from(channel).checked_sub(1)?)
    }

    /// Whether a new charge may go to the channel.
    pub(super) fn can_take(&self, channel: u16) -> bool {
        let state = usize::from(channel).checked_sub(1).and_then(|at| self.channels.get(at));
        match (state, self.contract(channel)) {
            (Some(state), Some(contract)) => state.up && state.in_flight < contract.in_flight_max,
            _ => false,
        }
    }

    pub(super) fn take_slot(&mut self, channel: u16) {
        if let Some(state) = self.channel_mut(channel) {
            state.in_flight += 1;
        }
    }

    pub(super) fn free_slot(&mut self, channel: u16) {
        if let Some(state) = self.channel_mut(channel) {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
    }

    pub(super) fn channel_up(&mut self, channel: u16, up: bool) {
        if let Some(state) = self.channel_mut(channel) {
            state.up = up;
        }
    }

    /// What was sent on this link has no answer any more: in doubt, asked soon.
    pub(super) fn link_lost(&mut self, channel: u16, now: Now) {
        let Some(state) = self.channel_mut(channel) else { return };
        let replies = std::mem::take(&mut state.replies);
        for (_, at, attempt) in replies {
            self.reply_missing(at, attempt, now);
        }
    }

    fn reply_missing(&mut self, at: u32, attempt: u8, now: Now) {
        let Some(order) = self.order(at) else { return };
        let due = order.attempt == attempt
            && order.current() == Attempt::Started
            && !order.volatile.deciding;
        if due {
            self.doubt_attempt(at, now, self.first_query_us(at));
        }
    }

    pub(super) fn first_query_us(&self, at: u32) -> u64 {
        let channel = self.order(at).map_or(0, super::order::Order::channel);
        self.contract(channel).map_or(1_000_000, |contract| contract.first_query_after_us)
    }

    fn operation(&self, at: u32, operation: Operation, ordinal: u8) -> OperationId {
        let sequence = u64::from(at) + 1;
        OperationId { shard: self.config.shard, sequence, operation, ordinal }
    }

    fn ask(&self, at: u32, operation: Operation, out: &mut Outputs) {
        let Some(order) = self.order(at) else { return };
        let kind = match operation {
            Operation::Query => kind::QUERY,
            Operation::Reverse => kind::REVERSE,
            _ => kind::CHARGE,
        };
        out.sends.push(Send {
            channel: order.channel(),
            operation: self.operation(at, operation, order.attempt),
            request: ChannelRequest {
                kind,
                charge_no: order.charge_no(order.attempt),
                refund_no: None,
                amount: order.amount,
                currency: order.currency,
                time_expire_ms: order.time_expire_ms,
            },
        });
    }

    /// Sends the current attempt's charge for the first time.
    pub(super) fn send_charge(&mut self, at: u32, now: Now, out: &mut Outputs) {
        let Some(order) = self.order(at) else { return };
        let (channel, attempt) = (order.channel(), order.attempt);
        let timeout = self.contract(channel).map_or(0, |contract| contract.reply_timeout_us);
        if let Some(state) = self.channel_mut(channel) {
            state.replies.push_back((now.mono_us + timeout, at, attempt));
        }
        self.ask(at, Operation::Charge, out);
    }

    /// Sends a refund, the first time or again: its number moves money once.
    pub(super) fn send_refund(&mut self, place: u32, now: Now, out: &mut Outputs) {
        self.ask_refund(place, Operation::Refund, out);
        let Some(refund) = self.refunds.get(place as usize) else { return };
        let (at, ordinal, attempt) = (refund.order, refund.ordinal, refund.attempt);
        let channel = self.order(at).map_or(0, |order| order.channel_of(attempt));
        let timeout = self.contract(channel).map_or(0, |contract| contract.reply_timeout_us);
        self.doubt(at, ordinal, now, timeout);
    }

    fn ask_refund(&self, place: u32, operation: Operation, out: &mut Outputs) {
        let Some(refund) = self.refunds.get(place as usize) else { return };
        let Some(order) = self.order(refund.order) else { return };
        let kind = match operation {
            Operation::QueryRefund => kind::QUERY_REFUND,
            _ => kind::REFUND,
        };
        out.sends.push(Send {
            channel: order.channel_of(refund.attempt),
            operation: self.operation(refund.order, operation, refund.ordinal),
            request: ChannelRequest {
                kind,
                charge_no: order.charge_no(refund.attempt),
                refund_no: Some(order.refund_no(refund.ordinal)),
                amount: refund.amount,
                currency: order.currency,
                time_expire_ms: order.time_expire_ms,
            },
        });
    }

    /// Puts something into the in-doubt set, or moves its next step.
    fn doubt(&mut self, at: u32, ordinal: u8, now: Now, after_us: u64) {
        let due_us = now.mono_us + after_us;
        let doubt = self.doubts.entry((at, ordinal)).or_insert(Doubt {
            since_us: now.mono_us,
            step: 0,
            due_us,
            last_send_us: now.mono_us,
            alarmed: false,
        });
        doubt.due_us = due_us;
        self.timers.push(Timer { due_us, at, ordinal, due: Due::Doubt });
    }

    /// The current attempt's outcome is unknown from now on.
    pub(super) fn doubt_attempt(&mut self, at: u32, now: Now, after_us: u64) {
        let Some(order) = self.order_mut(at) else { return };
        let (was, channel) = (order.current(), order.channel());
        if was == Attempt::Started {
            order.set_current(Attempt::Unknown);
            self.free_slot(channel);
        }
        self.doubt(at, 0, now, after_us);
    }

    /// The channel says that the payer has to act.
    pub(super) fn await_payer(&mut self, at: u32, now: Now, out: &mut Outputs) {
        self.doubt_attempt(at, now, self.first_query_us(at));
        if let Some(order) = self.order_mut(at) {
            order.set_current(Attempt::Awaiting);
        }
        self.answer_order(at, out);
    }

    /// A cancel is recorded: tell the channel, again and again until it answers.
    pub(super) fn begin_reversal(&mut self, at: u32, now: Now, out: &mut Outputs) {
        self.ask(at, Operation::Reverse, out);
        let channel = self.order(at).map_or(0, super::order::Order::channel);
        let timeout = self.contract(channel).map_or(0, |contract| contract.reply_timeout_us);
        // The age of the doubt goes on; its plan starts afresh.
        self.doubt(at, 0, now, timeout);
        if let Some(doubt) = self.doubts.get_mut(&(at, 0)) {
            doubt.step = 0;
        }
    }

    /// The channel has never seen the charge.
    pub(super) fn not_found(&mut self, at: u32, now: Now, out: &mut Outputs) {
        let Some(order) = self.order(at) else { return };
        let (channel, cancelled) = (order.channel(), order.cancelled);
        let expired = order.time_expire_ms <= now.wall_us / 1000;
        let Some(contract) = self.contract(channel) else { return };
        let (idempotent, reversible) = (contract.idempotent_pay, contract.reversible);
        let life = contract.max_msg_life_us;
        let sent = self.doubts.get(&(at, 0)).map_or(now.mono_us, |doubt| doubt.last_send_us);
        if idempotent && !cancelled && !expired {
            // The same number again: it can charge once at most. Stays in doubt.
            self.ask(at, Operation::Charge, out);
            if let Some(doubt) = self.doubts.get_mut(&(at, 0)) {
                doubt.last_send_us = now.mono_us;
            }
        } else if reversible {
            let cause = if expired { CancelCause::Expired } else { CancelCause::GaveUp };
            self.cancel_doubt(at, cause, now, out);
        } else if life > 0 && now.mono_us > sent + life {
            let reason = if expired { Reason::Expired } else { Reason::NotSent };
            self.decide(at, Ending::Void, reason, ShortText::EMPTY, now, out);
        }
    }

    /// Moves the next step of a payment in doubt to now.
    pub(super) fn ask_soon(&mut self, at: u32, now: Now) {
        if self.doubts.contains_key(&(at, 0)) {
            self.doubt(at, 0, now, 0);
        }
    }

    /// Runs what is due.
    pub(super) fn tick(&mut self, now: Now, out: &mut Outputs) {
        if self.leading.is_none() {
            return;
        }
        for channel in 0..self.channels.len() {
            while let Some((due, at, attempt)) = self.channels[channel].replies.front().copied() {
                if due > now.mono_us {
                    break;
                }
                self.channels[channel].replies.pop_front();
                self.reply_missing(at, attempt, now);
            }
        }
        while let Some((due, at, ordinal)) = self.waits.front().copied() {
            if due > now.mono_us {
                break;
            }
            self.waits.pop_front();
            self.answer_early(at, ordinal, out);
        }
        while self.timers.peek().is_some_and(|timer| timer.due_us <= now.mono_us) {
            let Some(timer) = self.timers.pop() else { break };
            match timer.due {
                Due::Wait => self.answer_early(timer.at, timer.ordinal, out),
                Due::Doubt => {
                    let doubt = self.doubts.get(&(timer.at, timer.ordinal));
                    // An entry that was moved has a later timer of its own.
                    if doubt.is_some_and(|doubt| doubt.due_us == timer.due_us) {
                        self.step(timer.at, timer.ordinal, now, out);
                    }
                }
            }
        }
        self.deliver_due(now, out);
    }

    /// When to call `Tick` next, monotonic microseconds.
    pub fn next_due(&self) -> Option<u64> {
        self.leading?;
        let replies = self.channels.iter().filter_map(|c| c.replies.front().map(|r| r.0));
        let waits = self.waits.front().map(|wait| wait.0);
        let timers = self.timers.peek().map(|timer| timer.due_us);
        replies.chain(waits).chain(timers).chain(self.outbox.next_due()).min()
    }

    pub(super) fn start_wait(&mut self, at: u32, ordinal: u8, origin: &Origin, now: Now) {
        let bound = self.config.sync_wait_us;
        if origin.wait_us == 0 || origin.wait_us >= bound {
            self.waits.push_back((now.mono_us + bound, at, ordinal));
        } else {
            let due_us = now.mono_us + origin.wait_us;
            self.timers.push(Timer { due_us, at, ordinal, due: Due::Wait });
        }
    }

    /// The wait is over before an outcome: say how it stands.
    fn answer_early(&mut self, at: u32, ordinal: u8, out: &mut Outputs) {
        if ordinal == 0 {
            // A BEGIN that is not durable yet promises nothing: its waiters are
            // told to come back.
            if self.order(at).is_some_and(|order| order.volatile.proposed) {
                return self.refuse_waiting(at, out);
            }
            self.answer_order(at, out);
        } else if let Some(place) = self.refund_of(at, ordinal) {
            self.answer_refund(place, out);
        }
    }

    fn refuse_waiting(&mut self, at: u32, out: &mut Outputs) {
        loop {
            let Some(order) = self.orders.get_mut(at as usize) else { return };
            let Some(waiter) = self.waiters.pop(&mut order.volatile.waiters) else { return };
            self.refuse(waiter, Code::Overloaded, 100, out);
        }
    }

    /// Whether the resolver may ask this channel now.
    fn take_budget(&mut self, channel: u16, now: Now) -> bool {
        let per_second = self.contract(channel).map_or(0, |c| c.resolver_per_second);
        let second = now.mono_us / 1_000_000;
        let Some(state) = self.channel_mut(channel) else { return false };
        if state.budget.0 != second {
            state.budget = (second, 0);
        }
        let may = state.up && state.budget.1 < per_second;
        state.budget.1 += u32::from(may);
        may
    }

    fn step(&mut self, at: u32, ordinal: u8, now: Now, out: &mut Outputs) {
        if ordinal == 0 {
            self.step_attempt(at, now, out);
        } else {
            self.step_refund(at, ordinal, now, out);
        }
    }

    /// Age of a doubt; raises the alarm once.
    fn age(&mut self, at: u32, ordinal: u8, alarm_us: u64, now: Now, out: &mut Outputs) -> u64 {
        let Some(doubt) = self.doubts.get_mut(&(at, ordinal)) else { return 0 };
        let age = now.mono_us.saturating_sub(doubt.since_us);
        let alarm = age >= alarm_us && !std::mem::replace(&mut doubt.alarmed, age >= alarm_us);
        if alarm {
            self.alarm(AlarmKind::InDoubtTooLong, at, ordinal, out);
        }
        age
    }

    /// Moves to the plan's next delay.
    fn next_step(&mut self, at: u32, ordinal: u8, channel: u16, now: Now) {
        let Some(doubt) = self.doubts.get_mut(&(at, ordinal)) else { return };
        let step = doubt.step;
        doubt.step += 1;
        let plan = self.contract(channel).map(|contract| &contract.query_plan_us);
        let delay = plan
            .and_then(|plan| plan.get(step).or(plan.last()))
            .copied()
            .unwrap_or(BUDGET_PAUSE_US);
        self.doubt(at, ordinal, now, delay);
    }

    fn step_attempt(&mut self, at: u32, now: Now, out: &mut Outputs) {
        let Some(order) = self.order(at) else { return };
        let (channel, state, deciding) =
            (order.channel(), order.current(), order.volatile.deciding);
        let expired = order.time_expire_ms <= now.wall_us / 1000;
        let cancelled = order.cancelled;
        if deciding {
            return self.doubt(at, 0, now, BUDGET_PAUSE_US);
        }
        let Some(contract) = self.contract(channel).cloned() else { return };
        let age = self.age(at, 0, contract.in_doubt_alarm_us, now, out);
        if state.definitive() || state == Attempt::Manual {
            self.doubts.remove(&(at, 0));
            return;
        }
        if age >= contract.manual_after_us {
            let none = ShortText::EMPTY;
            return self.decide(at, Ending::Manual, Reason::BudgetSpent, none, now, out);
        }
        if !self.take_budget(channel, now) {
            return self.doubt(at, 0, now, BUDGET_PAUSE_US);
        }
        let gave_up = contract.reverse_after_us > 0
            && age >= contract.reverse_after_us
            && state == Attempt::Unknown;
        if state == Attempt::Reversing {
            self.ask(at, Operation::Reverse, out);
        } else if contract.reversible && (expired || gave_up) && !cancelled {
            let cause = if expired { CancelCause::Expired } else { CancelCause::GaveUp };
            self.cancel_doubt(at, cause, now, out);
        } else if contract.queryable {
            self.ask(at, Operation::Query, out);
        } else if contract.reversible {
            // Cannot be asked: undo it (plain ISO 8583).
            self.cancel_doubt(at, CancelCause::GaveUp, now, out);
        } else if contract.idempotent_pay && !expired && !cancelled {
            self.ask(at, Operation::Charge, out);
            if let Some(doubt) = self.doubts.get_mut(&(at, 0)) {
                doubt.last_send_us = now.mono_us;
            }
        }
        self.next_step(at, 0, channel, now);
    }

    fn step_refund(&mut self, at: u32, ordinal: u8, now: Now, out: &mut Outputs) {
        let Some(place) = self.refund_of(at, ordinal) else { return };
        let Some(refund) = self.refunds.get(place as usize) else { return };
        let (attempt, state, deciding) = (refund.attempt, refund.state, refund.deciding);
        if state != RefundState::Processing {
            self.doubts.remove(&(at, ordinal));
            return;
        }
        let channel = self.order(at).map_or(0, |order| order.channel_of(attempt));
        let Some(contract) = self.contract(channel).cloned() else { return };
        let age = self.age(at, ordinal, contract.in_doubt_alarm_us, now, out);
        if deciding {
            return self.doubt(at, ordinal, now, BUDGET_PAUSE_US);
        }
        if age >= contract.manual_after_us {
            if let Some(refund) = self.refunds.get_mut(place as usize) {
                refund.deciding = true;
            }
            let end = End {
                sequence: u64::from(at) + 1,
                ordinal,
                ending: Ending::Manual,
                reason: Reason::BudgetSpent,
                goes_on: false,
                channel_ref: ShortText::EMPTY,
            };
            return self.propose(&Record::RefundEnd(end), now, out);
        }
        if !self.take_budget(channel, now) {
            return self.doubt(at, ordinal, now, BUDGET_PAUSE_US);
        }
        let operation = if contract.queryable { Operation::QueryRefund } else { Operation::Refund };
        self.ask_refund(place, operation, out);
        self.next_step(at, ordinal, channel, now);
    }

    /// Takes the shard over: every open attempt is in doubt, whatever the old
    /// leader may still be doing.
    pub(super) fn lead(&mut self, term: u64, now: Now, out: &mut Outputs) {
        self.step_down();
        self.leading = Some(term);
        for state in &mut self.merchants {
            state.ahead = state.live;
        }
        for at in 0..self.committed as u32 {
            let Some(order) = self.order(at) else { continue };
            if order.state != OrderState::Processing {
                continue;
            }
            match order.current() {
                Attempt::Started | Attempt::Unknown | Attempt::Awaiting => {
                    if let Some(order) = self.order_mut(at) {
                        order.set_current(Attempt::Unknown);
                    }
                    self.doubt(at, 0, now, 0);
                }
                Attempt::Reversing => self.doubt(at, 0, now, 0),
                Attempt::Manual | Attempt::Idle => {}
                _ => self.go_on(at, now, out),
            }
        }
        for place in 0..self.committed_refunds {
            let Some(refund) = self.refunds.get(place) else { continue };
            if refund.state == RefundState::Processing {
                self.doubt(refund.order, refund.ordinal, now, 0);
            }
        }
        self.outbox.restart(now);
    }

    /// Forgets everything volatile: proposals, waiters, doubts.
    pub(super) fn step_down(&mut self) {
        self.leading = None;
        self.waiters.clear();
        self.doubts.clear();
        self.timers.clear();
        self.waits.clear();
        self.deferred.clear();
        for channel in &mut self.channels {
            channel.in_flight = 0;
            channel.replies.clear();
        }
        if self.orders.len() > self.committed {
            self.orders.truncate(self.committed);
            self.rebuild_index();
        }
        while self.refunds.len() > self.committed_refunds {
            self.drop_refund();
        }
        for at in 0..self.committed {
            if let Some(order) = self.orders.get_mut(at) {
                order.volatile = super::order::Volatile::NEW;
                if matches!(order.current(), Attempt::Unknown | Attempt::Awaiting) {
                    order.set_current(Attempt::Started);
                }
            }
        }
        for place in 0..self.refunds.len() {
            if let Some(refund) = self.refunds.get_mut(place) {
                refund.waiters = NONE;
                refund.deciding = false;
            }
        }
    }

    fn rebuild_index(&mut self) {
        self.index.clear();
        for at in 0..self.committed {
            if let Some(order) = self.orders.get(at) {
                self.index.insert(&order.digest, at as u32);
            }
        }
    }

    /// Takes the newest refund, a proposal, out of its payment's list.
    fn drop_refund(&mut self) {
        let last = self.refunds.len() - 1;
        let Some(refund) = self.refunds.get(last) else { return };
        let (at, next) = (refund.order, refund.next);
        if let Some(order) = self.orders.get_mut(at as usize) {
            order.refunds = next;
        }
        self.refunds.truncate(last);
    }
}
