//! The in-doubt set: what to ask next, when, and when to stop asking
//! (docs/STATES.md, C11).
//!
//! A case is the volatile work on one open attempt or refund. Its time-outs
//! live in a heap; when a case wants to ask it queues at its channel, oldest
//! doubt first, and asks when the channel is up, has room, and the budget
//! allows. Nothing here is replicated: a new leader opens its own cases.

use super::attempt::Asked;
use super::config::ChannelConfig;
use super::evidence::{Statement, raise};
use super::input::{Now, Operation};
use super::order::{AttemptState, CancelCause, Class};
use super::output::{AlarmKind, Outputs};
use super::record::Record;
use super::slab::{NIL, Slab};
use super::timer::Heap;
use super::weakness::Weakness;
use super::{Engine, order};
use protocol::code::{OrderState, Reason, RefundState};

/// What a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The newest attempt of a payment.
    Attempt(u64),
    /// A refund, by its place.
    Refund(u32),
}

pub(super) struct Case {
    subject: Subject,
    channel: u16,
    /// Since when in doubt.
    since_us: u64,
    due_us: u64,
    /// The operation without answer.
    asked: Option<Operation>,
    /// When the charge was last sent, or may have been.
    last_send_us: u64,
    /// Place in the query plan.
    step: u16,
    /// The channel has said that it has the charge.
    known: bool,
    /// Reversals refused.
    refused: u8,
    /// The next operation is the charge or refund itself.
    resend: bool,
    /// The next operation is a query although a reversal is under way.
    ask_charge: bool,
    alarmed: bool,
    queued: bool,
}

pub(super) struct Resolver {
    cases: Slab<Case>,
    due: Heap<(u32, u32)>,
}

/// Refused reversals after which a success that the channel still reports is
/// taken as standing.
const REFUSALS_MAX: u8 = 3;

impl Resolver {
    pub(super) fn new() -> Self {
        Self { cases: Slab::new(), due: Heap::new() }
    }

    pub(super) fn count(&self) -> u32 {
        self.cases.used()
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| due)
    }

    /// Since when a case is open, monotonic microseconds.
    pub(super) fn since_us(&self, case: u32) -> Option<u64> {
        self.cases.get(case).map(|open| open.since_us)
    }

    fn schedule(&mut self, case: u32, due_us: u64) {
        let generation = self.cases.generation(case);
        if let Some(open) = self.cases.get_mut(case) {
            open.due_us = due_us;
            self.due.push(due_us, (case, generation));
        }
    }
}

impl Engine {
    /// Opens a case, or finds the open one.
    fn open_case(&mut self, subject: Subject, since_us: u64, due_us: u64, now: Now) -> u32 {
        let (known, channel) = match subject {
            Subject::Attempt(sequence) => {
                let order = &self.orders[sequence];
                (order.live.case, order.attempt.channel)
            }
            Subject::Refund(place) => {
                let Some(refund) = self.orders.refunds.get(place) else { return NIL };
                let attempt = self.orders.attempt(refund.sequence, refund.attempt);
                (refund.case, attempt.map_or(0, |attempt| attempt.channel))
            }
        };
        if known != NIL {
            return known;
        }
        let case = self.resolver.cases.insert(Case {
            subject,
            channel,
            since_us,
            due_us,
            asked: None,
            last_send_us: now.mono_us,
            step: 0,
            known: false,
            refused: 0,
            resend: false,
            ask_charge: false,
            alarmed: false,
            queued: false,
        });
        self.link_case(subject, case);
        self.resolver.schedule(case, due_us);
        case
    }

    fn link_case(&mut self, subject: Subject, case: u32) {
        match subject {
            Subject::Attempt(sequence) => self.orders[sequence].live.case = case,
            Subject::Refund(place) => {
                if let Some(refund) = self.orders.refunds.get_mut(place) {
                    refund.case = case;
                }
            }
        }
    }

    /// Closes a case; its queue entries go stale.
    pub(super) fn close_case(&mut self, case: u32) {
        let Some(closed) = self.resolver.cases.remove(case) else { return };
        if closed.asked.is_some() {
            self.release_in_flight(closed.channel);
        }
        self.link_case(closed.subject, NIL);
    }

    /// Books an answer to the case's operation.
    pub(super) fn case_answered(&mut self, case: u32, operation: Operation) {
        let Some(open) = self.resolver.cases.get_mut(case) else { return };
        if open.asked == Some(operation) {
            open.asked = None;
            let channel = open.channel;
            self.release_in_flight(channel);
        }
    }

    /// Whether nothing sent before can be acted on or answered any more, and
    /// whether the reversal was refused for good.
    ///
    /// The bound is twice the channel's message life: a request may wander for
    /// one before it is acted on, and the answer at hand may have been given
    /// that long ago.
    pub(super) fn case_facts(&self, case: u32, channel: &ChannelConfig, now: Now) -> (bool, bool) {
        let Some(open) = self.resolver.cases.get(case) else { return (false, false) };
        let life = channel.max_msg_life_us;
        let over =
            life > 0 && now.mono_us > open.last_send_us.saturating_add(life.saturating_mul(2));
        (over, open.refused >= REFUSALS_MAX)
    }

    /// The channel has said that it has the charge.
    pub(super) fn case_known(&mut self, case: u32) {
        if let Some(open) = self.resolver.cases.get_mut(case) {
            open.known = true;
        }
    }

    pub(super) fn case_is_known(&self, case: u32) -> bool {
        self.resolver.cases.get(case).is_some_and(|open| open.known)
    }

    /// The attempt is in doubt from now on; first question after `first_us`.
    pub(super) fn doubt(&mut self, sequence: u64, first_us: u64, now: Now, out: &mut Outputs) {
        let attempt = &self.orders[sequence].attempt;
        let (state, ordinal) = (attempt.state, attempt.ordinal);
        self.open_case(Subject::Attempt(sequence), now.mono_us, first_us, now);
        if state == AttemptState::Started {
            self.propose(now, &Record::Doubt { sequence, attempt: ordinal }, out);
        }
    }

    /// No answer that settles anything: next step of the plan.
    pub(super) fn go_on(&mut self, sequence: u64, now: Now, _: &mut Outputs) {
        let case = self.orders[sequence].live.case;
        self.next_step(case, now);
    }

    pub(super) fn next_step(&mut self, case: u32, now: Now) {
        let Some(open) = self.resolver.cases.get_mut(case) else { return };
        if open.asked.is_some() || open.queued {
            return;
        }
        let channel = self.config.channels.get(usize::from(open.channel).wrapping_sub(1));
        let plan = channel.map_or(&[][..], |channel| &channel.query_plan_us);
        let step = usize::from(open.step).min(plan.len().saturating_sub(1));
        // One millisecond at least, so that an empty or zero plan cannot spin.
        let delay = plan.get(step).copied().unwrap_or(1_000_000).max(1000);
        open.step = open.step.saturating_add(1);
        self.resolver.schedule(case, now.mono_us + delay);
    }

    /// The channel never had the charge: charge again under the same number.
    pub(super) fn resend(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let case = self.orders[sequence].live.case;
        if let Some(open) = self.resolver.cases.get_mut(case) {
            open.resend = true;
        }
        self.start_now(case, now, out);
    }

    /// The reversal was refused: learn what stands.
    pub(super) fn ask_charge(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let case = self.orders[sequence].live.case;
        let _ = out;
        if let Some(open) = self.resolver.cases.get_mut(case) {
            open.refused = open.refused.saturating_add(1);
            open.ask_charge = true;
        }
        self.next_step(case, now);
    }

    /// A case that fell due while its cancel was only proposed had nothing to ask,
    /// and would not be looked at before the next moment of its deadlines.
    pub(super) fn look_again(&mut self, sequence: u64, now: Now) {
        let case = self.orders[sequence].live.case;
        if self.resolver.cases.get(case).is_some_and(|open| open.asked.is_none() && !open.queued) {
            self.resolver.schedule(case, now.mono_us);
        }
    }

    /// A merchant asks for a fresh look: bring the next question forward.
    pub(super) fn ask_soon(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let order = &self.orders[sequence];
        let (case, state) = (order.live.case, order.attempt.state);
        let idle = self.resolver.cases.get(case).is_some_and(|c| c.asked.is_none() && !c.queued);
        if idle {
            self.resolver.schedule(case, now.mono_us);
            self.work_due(now, out);
        } else if state == AttemptState::Manual && !order.live.ending {
            self.ask_operator_case(sequence, out);
        }
    }

    /// An operator's case: one question, whose answer may settle it.
    fn ask_operator_case(&mut self, sequence: u64, out: &mut Outputs) {
        let attempt = &self.orders[sequence].attempt;
        let (channel, ordinal) = (attempt.channel, attempt.ordinal);
        if self.channel(channel).is_some_and(|c| c.queryable) && self.has_room(channel) {
            self.send(channel, sequence, Operation::Query, ordinal, out);
        }
    }

    /// The newest attempt waits for the payer, or is being reversed: a case
    /// with a fresh clock.
    pub(super) fn restart_case(&mut self, sequence: u64, due_us: u64, now: Now) -> u32 {
        let case = self.open_case(Subject::Attempt(sequence), now.mono_us, due_us, now);
        if let Some(open) = self.resolver.cases.get_mut(case) {
            (open.since_us, open.step) = (now.mono_us, 0);
            (open.alarmed, open.resend, open.ask_charge) = (false, false, false);
        }
        self.resolver.schedule(case, due_us);
        case
    }

    /// Works a case at once, or queues it when its channel is down or full.
    /// First sends do not count in the resolver's budget.
    pub(super) fn start_now(&mut self, case: u32, now: Now, out: &mut Outputs) {
        let Some(open) = self.resolver.cases.get(case) else { return };
        if self.has_room(open.channel) {
            self.ask(case, now, out);
        } else {
            self.queue(case, now);
        }
    }

    /// A refund's case; `resend` when its first send is still to be made.
    pub(super) fn open_refund_case(
        &mut self,
        place: u32,
        resend: bool,
        due_us: u64,
        now: Now,
    ) -> u32 {
        let case = self.open_case(Subject::Refund(place), now.mono_us, due_us, now);
        if let Some(open) = self.resolver.cases.get_mut(case) {
            open.resend = resend;
        }
        case
    }

    /// After a change of leadership every open thing is in doubt (docs/STATES.md,
    /// C7): ask first, never send blindly.
    pub(super) fn take_over(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let order = &self.orders[sequence];
        match order.attempt.state {
            AttemptState::Started => self.doubt(sequence, now.mono_us, now, out),
            AttemptState::Unknown | AttemptState::Awaiting | AttemptState::Reversing => {
                self.open_case(Subject::Attempt(sequence), now.mono_us, now.mono_us, now);
            }
            AttemptState::Manual => {}
            AttemptState::Succeeded | AttemptState::Declined | AttemptState::Void => {
                if order.state == OrderState::Processing {
                    self.advance(sequence, now, out);
                }
            }
        }
        let open: Vec<u32> = self
            .orders
            .refunds_of(sequence)
            .filter(|(_, refund)| refund.state == RefundState::Processing && !refund.proposed)
            .map(|(place, _)| place)
            .collect();
        for place in open {
            self.open_refund_case(place, false, now.mono_us, now);
        }
    }

    /// First sends whose answer is overdue.
    pub(super) fn reply_timeouts(&mut self, now: Now, out: &mut Outputs) {
        for at in 0..self.channels.len() {
            let first_query = self.config.channels[at].first_query_after_us;
            while let Some((sequence, ordinal)) = self.channels[at].replies.pop_due(now.mono_us) {
                self.silence(sequence, ordinal, now.mono_us + first_query, now, out);
            }
        }
    }

    /// The first send of an attempt stays without answer.
    fn silence(&mut self, sequence: u64, ordinal: u8, due_us: u64, now: Now, out: &mut Outputs) {
        if !self.waits_for_reply(sequence, ordinal) {
            return;
        }
        let order = &mut self.orders[sequence];
        order.live.in_flight = false;
        let (channel, ending) = (order.attempt.channel, order.live.ending);
        self.release_in_flight(channel);
        if ending {
            return;
        }
        if self.weakened(Weakness::TimeoutIsDecline) {
            let silent = Statement::plain(Class::Silent, Reason::None);
            return self.decide(sequence, Asked::Charge, &silent, now, out);
        }
        self.doubt(sequence, due_us, now, out);
    }

    fn waits_for_reply(&self, sequence: u64, ordinal: u8) -> bool {
        self.orders
            .committed(sequence)
            .is_some_and(|order| order.live.in_flight && order.attempt.ordinal == ordinal)
    }

    /// Removes answered sends from the front of the time-out queues.
    pub(super) fn trim_replies(&mut self) {
        for at in 0..self.channels.len() {
            while let Some((_, (sequence, ordinal))) = self.channels[at].replies.front()
                && !self.waits_for_reply(sequence, ordinal)
            {
                self.channels[at].replies.pop();
            }
        }
    }

    /// Nothing that was sent on this link will be answered on it.
    pub(super) fn link_lost(&mut self, number: u16, now: Now, out: &mut Outputs) {
        if self.term.is_none() {
            return;
        }
        let at = usize::from(number).wrapping_sub(1);
        while let Some((_, (sequence, ordinal))) =
            self.channels.get_mut(at).and_then(|channel| channel.replies.pop())
        {
            self.silence(sequence, ordinal, now.mono_us, now, out);
        }
        let lost: Vec<u32> = self
            .resolver
            .cases
            .indexes()
            .filter(|&case| {
                let case = self.resolver.cases.get(case);
                case.is_some_and(|open| open.channel == number && open.asked.is_some())
            })
            .collect();
        for case in lost {
            if let Some(open) = self.resolver.cases.get_mut(case) {
                open.asked = None;
            }
            self.release_in_flight(number);
            self.next_step(case, now);
        }
    }

    pub(super) fn channel_up(&mut self, number: u16, up: bool, now: Now, out: &mut Outputs) {
        if let Some(channel) = self.live_channel(number) {
            channel.up = up;
        }
        if up && self.term.is_some() {
            self.run_ready(number, now, out);
        }
    }

    /// Cases that are due, then whatever the channels can take.
    pub(super) fn work_due(&mut self, now: Now, out: &mut Outputs) {
        while let Some((case, generation)) = self.resolver.due.pop_due(now.mono_us) {
            let current = self.resolver.cases.live(case, generation);
            if current.is_some_and(|open| open.due_us <= now.mono_us) {
                self.fall_due(case, now, out);
            }
        }
        for number in 1..=self.channels.len() as u16 {
            self.run_ready(number, now, out);
        }
    }

    fn fall_due(&mut self, case: u32, now: Now, out: &mut Outputs) {
        let Some(open) = self.resolver.cases.get_mut(case) else { return };
        if open.asked.take().is_some() {
            // Its answer is overdue; the next question comes by the plan.
            let channel = open.channel;
            self.release_in_flight(channel);
            self.judge(case, now, out);
            return self.next_step(case, now);
        }
        if self.judge(case, now, out) {
            self.queue(case, now);
        }
    }

    fn queue(&mut self, case: u32, now: Now) {
        let generation = self.resolver.cases.generation(case);
        let check = self.next_check(case, now);
        let Some(open) = self.resolver.cases.get_mut(case) else { return };
        if !std::mem::replace(&mut open.queued, true) {
            let (since, number) = (open.since_us, open.channel);
            if let Some(channel) = self.live_channel(number) {
                channel.ready.push(since, (case, generation));
            }
        }
        self.resolver.schedule(case, check);
    }

    /// When a case that cannot ask must be looked at again.
    fn next_check(&self, case: u32, now: Now) -> u64 {
        let Some(open) = self.resolver.cases.get(case) else { return u64::MAX };
        let Some(channel) = self.channel(open.channel) else { return u64::MAX };
        let clock_us = self.clock_us(open, now);
        let mut moments = vec![
            clock_us.saturating_add(channel.manual_after_us),
            clock_us.saturating_add(channel.in_doubt_alarm_us),
        ];
        if channel.reverse_after_us > 0 {
            moments.push(clock_us.saturating_add(channel.reverse_after_us));
        }
        if let Subject::Attempt(sequence) = open.subject {
            moments.push(self.expiry_mono(sequence, now));
        }
        let later = moments.into_iter().filter(|&moment| moment > now.mono_us).min();
        later.unwrap_or(now.mono_us + channel.manual_after_us.max(60_000_000))
    }

    /// Since when a case's time counts. A payer who must act is nobody's doubt
    /// before `time_expire`.
    fn clock_us(&self, open: &Case, now: Now) -> u64 {
        match open.subject {
            Subject::Attempt(sequence)
                if self.orders[sequence].attempt.state == AttemptState::Awaiting =>
            {
                open.since_us.max(self.expiry_mono(sequence, now))
            }
            _ => open.since_us,
        }
    }

    /// The order's expiry on the monotonic clock.
    fn expiry_mono(&self, sequence: u64, now: Now) -> u64 {
        let expire_us = self.orders[sequence].time_expire_ms.saturating_mul(1000);
        now.mono_us.saturating_add(expire_us).saturating_sub(now.wall_us)
    }

    fn run_ready(&mut self, number: u16, now: Now, out: &mut Outputs) {
        while self.has_room(number) {
            let Some(channel) = self.live_channel(number) else { return };
            let Some((_, (case, generation))) = channel.ready.first() else { return };
            let waits = self.resolver.cases.live(case, generation).is_some_and(|open| open.queued);
            let Some(channel) = self.live_channel(number) else { return };
            if waits && !channel.budget.take(now.mono_us) {
                return;
            }
            channel.ready.pop();
            if waits {
                self.ask(case, now, out);
            }
        }
    }

    /// Asks the channel what this case needs next.
    fn ask(&mut self, case: u32, now: Now, out: &mut Outputs) {
        let Some(open) = self.resolver.cases.get_mut(case) else { return };
        open.queued = false;
        let (subject, number) = (open.subject, open.channel);
        // What was asked before is superseded; its late answer still counts.
        if open.asked.take().is_some() {
            self.release_in_flight(number);
        }
        let Some(channel) = self.channel(number) else { return };
        let timeout = channel.reply_timeout_us;
        let Some(operation) = self.next_operation(case, channel, now) else {
            let check = self.next_check(case, now);
            return self.resolver.schedule(case, check);
        };
        let Some(open) = self.resolver.cases.get_mut(case) else { return };
        match operation {
            Operation::Charge => (open.resend, open.last_send_us) = (false, now.mono_us),
            Operation::Refund => open.resend = false,
            Operation::Query => open.ask_charge = false,
            Operation::Reverse | Operation::QueryRefund => {}
        }
        open.asked = Some(operation);
        if let Some(live) = self.live_channel(number) {
            live.in_flight += 1;
        }
        self.resolver.schedule(case, now.mono_us + timeout);
        match subject {
            Subject::Attempt(sequence) => {
                let ordinal = self.orders[sequence].attempt.ordinal;
                self.send(number, sequence, operation, ordinal, out);
            }
            Subject::Refund(place) => self.send_refund(number, place, operation, out),
        }
    }

    /// `None` when the case has nothing to ask now.
    fn next_operation(&self, case: u32, channel: &ChannelConfig, now: Now) -> Option<Operation> {
        let open = self.resolver.cases.get(case)?;
        let sequence = match open.subject {
            Subject::Refund(place) => {
                let refund = self.orders.refunds.get(place)?;
                if refund.ending || refund.state != RefundState::Processing {
                    return None;
                }
                // A refund number moves money once: without queries it is sent again.
                let again = open.resend || !channel.queryable;
                return Some(if again { Operation::Refund } else { Operation::QueryRefund });
            }
            Subject::Attempt(sequence) => sequence,
        };
        let order = &self.orders[sequence];
        if order.live.ending || order.live.cancelling != CancelCause::None {
            return None;
        }
        let wanted = !order.cancel.is_cancel() && !order.expired(now.wall_us);
        match order.attempt.state {
            AttemptState::Reversing if open.ask_charge && channel.queryable => {
                Some(Operation::Query)
            }
            AttemptState::Reversing => Some(Operation::Reverse),
            AttemptState::Started | AttemptState::Unknown | AttemptState::Awaiting => {
                if channel.idempotent_pay && wanted && (open.resend || !channel.queryable) {
                    return Some(Operation::Charge);
                }
                channel.queryable.then_some(Operation::Query)
            }
            _ => None,
        }
    }

    /// What time alone decides about a case. `true`: it may ask on.
    fn judge(&mut self, case: u32, now: Now, out: &mut Outputs) -> bool {
        let Some(open) = self.resolver.cases.get(case) else { return false };
        let Some(channel) = self.channel(open.channel) else { return false };
        let age = now.mono_us.saturating_sub(self.clock_us(open, now));
        let alarm = age >= channel.in_doubt_alarm_us && !open.alarmed;
        let spent = age >= channel.manual_after_us;
        match open.subject {
            Subject::Refund(place) => self.judge_refund(case, place, alarm, spent, now, out),
            Subject::Attempt(sequence) => {
                self.judge_attempt(case, sequence, (age, alarm, spent), now, out)
            }
        }
    }

    fn judge_refund(
        &mut self,
        case: u32,
        place: u32,
        alarm: bool,
        spent: bool,
        now: Now,
        out: &mut Outputs,
    ) -> bool {
        let Some(refund) = self.orders.refunds.get(place) else { return false };
        if refund.ending {
            return true;
        }
        let (sequence, ordinal) = (refund.sequence, refund.ordinal);
        if alarm {
            self.alarm_case(case, sequence, ordinal, out);
        }
        if spent {
            let statement = Statement::plain(Class::BudgetSpent, Reason::BudgetSpent);
            self.conclude_refund(place, RefundState::Manual, &statement, now, out);
        }
        true
    }

    fn judge_attempt(
        &mut self,
        case: u32,
        sequence: u64,
        (age, alarm, spent): (u64, bool, bool),
        now: Now,
        out: &mut Outputs,
    ) -> bool {
        let order = &self.orders[sequence];
        let (state, ordinal) = (order.attempt.state, order.attempt.ordinal);
        if order.live.ending || order.live.cancelling != CancelCause::None {
            return true;
        }
        let Some(channel) = self.channel(order.attempt.channel) else { return false };
        let (reversible, queryable) = (channel.reversible, channel.queryable);
        let expired = order.expired(now.wall_us);
        let reverse_after = channel.reverse_after_us;
        let waits_for_payer = state == AttemptState::Awaiting && !expired;
        if alarm && !waits_for_payer {
            self.alarm_case(case, sequence, ordinal, out);
        }
        if order::AttemptState::is_definitive(state) || state == AttemptState::Manual {
            return false;
        }
        let waited = !queryable || reverse_after > 0 && age >= reverse_after;
        let due = expired || waited && state != AttemptState::Awaiting;
        if due && reversible && state != AttemptState::Reversing {
            // Before anybody is asked: what can be undone needs no operator.
            let first = expired && !self.orders[sequence].cancel.is_cancel();
            let cause = if first { CancelCause::Expired } else { CancelCause::GaveUp };
            self.start_cancel(sequence, cause, false, now, out);
        } else if spent && !waits_for_payer {
            self.give_up(sequence, now, out);
        }
        true
    }

    fn alarm_case(&mut self, case: u32, sequence: u64, ordinal: u8, out: &mut Outputs) {
        if let Some(open) = self.resolver.cases.get_mut(case) {
            open.alarmed = true;
        }
        raise(out, AlarmKind::InDoubtTooLong, sequence, ordinal);
    }

    /// The budget is spent: an operator decides, never a guess.
    fn give_up(&mut self, sequence: u64, now: Now, out: &mut Outputs) {
        let statement = Statement::plain(Class::BudgetSpent, Reason::BudgetSpent);
        let to = if self.weakened(Weakness::GiveUpIsFailed) {
            AttemptState::Declined
        } else {
            AttemptState::Manual
        };
        self.conclude(sequence, to, &statement, now, out);
    }
}
