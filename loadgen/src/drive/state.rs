//! What is due, what is in flight, what came back: every decision of the
//! driver, without a socket or a task.
//!
//! Bounded: requests in flight and waiting together stay below one limit;
//! beyond it a planned request is shed and counted, never queued.

use super::link::Link;
use super::slots::{NO_LINK, Slot, Slots, correlation, uncorrelate};
use super::{Options, Phase};
use crate::acks::{Ack, AckWriter, flag};
use crate::encode::Encoder;
use crate::exit::Failure;
use crate::measure::{Business, Measure, Sample};
use crate::plan::{Op, Plan};
use crate::schedule::Schedule;
use protocol::code::{Code, OrderState};
use protocol::frame::Header;
use protocol::message::{ErrorFrame, OrderReply, RefundReply, kind};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes in a stream's buffer after which a batch goes on with the next stream.
const STREAM_BATCH: usize = 48 << 10;
/// Bytes in a stream's buffer above which it takes no more.
const STREAM_FULL: usize = 1 << 20;
/// Answers or requests whose memory is asked for ahead, so that cache misses overlap.
const WARM: usize = 16;
/// Pause before a request goes to another site, or to the same once more.
const REDIRECT_NS: u64 = 5_000_000;

/// What is remembered of every request of the session, for references.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Not sent, or not about a payment of its own.
    Nothing,
    /// A payment whose outcome is not known: sent, and not answered finally.
    Open,
    /// A payment that was acknowledged as paid.
    Paid,
    /// A payment with another final answer, or refused before it existed.
    Over,
}

/// An answer with the request that it names.
struct Arrived {
    index: u32,
    n: u64,
    answer: Answer,
}

/// Fields of an answer that matter here.
struct Answer {
    code: Code,
    state: Business,
    transaction: u64,
    amount: i64,
    refunded: i64,
    replayed: bool,
    leader_hint: u8,
}

/// The driver's state.
pub(super) struct State {
    plan: Rc<Plan>,
    encoder: Encoder,
    acks: Option<AckWriter>,
    links: Vec<Rc<Link>>,
    /// Whether all links lead to one site: nothing to choose by then.
    one_site: bool,
    /// Answers of one batch, decoded; kept for its memory.
    arrived: Vec<Arrived>,
    options: Options,
    base: Instant,
    base_ms: u64,
    slots: Slots,
    known: Vec<Known>,
    next_n: u64,
    schedule: Option<Schedule>,
    phase_ns: u64,
    closed: Option<usize>,
    closed_until_ns: u64,
    backlog: VecDeque<(u64, u64)>,
    /// Payments to be queried, in place of a schedule.
    queries: VecDeque<u64>,
    resend: VecDeque<(u64, u32, u64)>,
    /// Per shard: the site that leads it, 0 when not known.
    leaders: Vec<u8>,
    turn: usize,
    dirty: Vec<(usize, usize)>,
    measure: Measure,
    failure: Option<Failure>,
}

impl State {
    /// A state without load.
    pub(super) fn new(
        plan: Rc<Plan>,
        encoder: Encoder,
        acks: Option<AckWriter>,
        links: Vec<Rc<Link>>,
        shards: u16,
        options: Options,
    ) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            plan,
            encoder,
            acks,
            one_site: links.iter().all(|link| link.site == links[0].site),
            links,
            arrived: Vec::new(),
            options,
            base: Instant::now(),
            base_ms: wall.as_millis() as u64,
            slots: Slots::new(options.in_flight_max),
            known: Vec::new(),
            next_n: 0,
            schedule: None,
            phase_ns: 0,
            closed: None,
            closed_until_ns: 0,
            backlog: VecDeque::new(),
            queries: VecDeque::new(),
            resend: VecDeque::new(),
            leaders: vec![0; usize::from(shards)],
            turn: 0,
            dirty: Vec::new(),
            measure: Measure::new(0, 0),
            failure: None,
        }
    }

    /// The links.
    pub(super) fn links(&self) -> &[Rc<Link>] {
        &self.links
    }

    /// Nanoseconds of the session.
    pub(super) fn now_ns(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    fn now_ms(&self, now_ns: u64) -> u64 {
        self.base_ms + now_ns / 1_000_000
    }

    /// Starts a phase whose schedule counts from `start`.
    pub(super) fn begin(&mut self, phase: &Phase, schedule: Schedule, start: Instant) {
        let start_ns = start.saturating_duration_since(self.base).as_nanos() as u64;
        let end_ns = start_ns + phase.duration.as_nanos() as u64;
        self.measure = Measure::new(start_ns + phase.warmup.as_nanos() as u64, end_ns);
        self.phase_ns = start_ns;
        self.closed = phase.closed;
        self.closed_until_ns = end_ns;
        self.schedule = phase.closed.is_none().then_some(schedule);
        let expected = phase.arrival.expected(phase.rate, phase.duration);
        self.known.reserve(expected as usize);
    }

    /// Asks for the state of these payments, at most `at_once` at a time.
    pub(super) fn begin_queries(&mut self, payments: &[u64], at_once: usize) {
        let now_ns = self.now_ns();
        self.measure = Measure::new(now_ns, u64::MAX);
        self.schedule = None;
        self.closed = Some(at_once);
        self.closed_until_ns = 0;
        self.queries = payments.iter().copied().collect();
    }

    /// Tells the state about payments of an earlier run.
    pub(super) fn remember(&mut self, payments: impl Iterator<Item = u64>) {
        for k in payments {
            if self.known.len() as u64 <= k {
                self.known.resize(k as usize + 1, Known::Nothing);
            }
            self.known[k as usize] = Known::Open;
        }
    }

    /// Payments of the session in this state of knowledge.
    pub(super) fn payments(&self, wanted: impl Fn(Known) -> bool) -> Vec<u64> {
        let known = self.known.iter().enumerate();
        known.filter(|(_, known)| wanted(**known)).map(|(k, _)| k as u64).collect()
    }

    /// Plans no more requests.
    pub(super) fn stop(&mut self) {
        self.schedule = None;
        self.closed = None;
        self.queries.clear();
        while let Some((_, planned_ns)) = self.backlog.pop_front() {
            self.measure.not_sent(planned_ns);
        }
    }

    /// Whether everything planned was sent and answered, or given up.
    pub(super) fn is_done(&self) -> bool {
        let ended = self.schedule.as_ref().is_none_or(|schedule| schedule.peek().is_none())
            && self.closed.is_none_or(|_| self.now_ns() >= self.closed_until_ns);
        ended && self.backlog.is_empty() && self.queries.is_empty() && self.slots.len() == 0
    }

    /// The phase's figures.
    pub(super) fn finish(&mut self) -> Result<Measure, Failure> {
        self.flush()?;
        Ok(std::mem::replace(&mut self.measure, Measure::new(0, 0)))
    }

    /// Sends everything that is due and has room.
    pub(super) fn pump(&mut self) -> Result<(), Failure> {
        let now_ns = self.now_ns();
        self.pull_due(now_ns);
        self.send_again(now_ns);
        self.send_backlog(now_ns);
        self.send_closed(now_ns);
        self.send_queries(now_ns);
        self.wake_streams();
        self.flush()
    }

    fn pull_due(&mut self, now_ns: u64) {
        let Some(schedule) = &mut self.schedule else { return };
        let elapsed_ns = now_ns.saturating_sub(self.phase_ns);
        while let Some(offset) = schedule.peek().filter(|offset| *offset <= elapsed_ns) {
            schedule.next();
            let (n, planned_ns) = (self.next_n, self.phase_ns + offset);
            self.next_n += 1;
            self.known.push(Known::Nothing);
            self.measure.pulled(planned_ns, now_ns);
            if self.backlog.len() + self.slots.len() < self.options.in_flight_max {
                self.backlog.push_back((n, planned_ns));
            } else {
                self.measure.not_sent(planned_ns);
            }
        }
    }

    fn send_again(&mut self, now_ns: u64) {
        while let Some(&(due_ns, index, n)) = self.resend.front() {
            if due_ns > now_ns {
                return;
            }
            let Some(slot) = self.slots.get_mut(index, n).map(|slot| *slot) else {
                // Given up in the meantime.
                self.resend.pop_front();
                continue;
            };
            let k = self.payment(&slot);
            let Some(place) = self.place(k) else { return };
            self.resend.pop_front();
            if let Some(slot) = self.slots.get_mut(index, n) {
                slot.link = place.0 as u16;
            }
            self.measure.resent += 1;
            self.write(place, index, &slot, k);
        }
    }

    /// The payment that a request is about.
    fn payment(&self, slot: &Slot) -> u64 {
        if slot.own { slot.n } else { self.plan.target(slot.n) }
    }

    fn send_backlog(&mut self, now_ns: u64) {
        let mut warm = 0;
        while let Some(&(n, planned_ns)) = self.backlog.front() {
            if warm == 0 {
                warm = WARM;
                self.warm_merchants();
            }
            warm -= 1;
            if !self.send(n, planned_ns, now_ns) {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Asks for the merchants of the requests at the head of the backlog. What
    /// is about an earlier payment is left out: finding it costs more.
    fn warm_merchants(&self) {
        for &(n, _) in self.backlog.iter().take(WARM) {
            self.encoder.warm(self.plan.merchant(n));
        }
    }

    fn send_closed(&mut self, now_ns: u64) {
        let Some(wanted) = self.closed.filter(|_| now_ns < self.closed_until_ns) else { return };
        while self.slots.len() < wanted {
            let n = self.next_n;
            if self.known.len() as u64 == n {
                self.known.push(Known::Nothing);
            }
            if !self.send(n, now_ns, now_ns) {
                return;
            }
            self.next_n += 1;
        }
    }

    fn send_queries(&mut self, now_ns: u64) {
        let at_once = self.closed.unwrap_or(0);
        while let Some(&k) = self.queries.front() {
            if self.slots.len() >= at_once || !self.transmit(k, Op::Query, k, now_ns, now_ns) {
                return;
            }
            self.queries.pop_front();
        }
    }

    /// Sends or skips request `n`. False: no room, try again later.
    fn send(&mut self, n: u64, planned_ns: u64, now_ns: u64) -> bool {
        let op = self.plan.op(n);
        let k = if op == Op::Pay { n } else { self.plan.target(n) };
        let needs_paid = matches!(op, Op::Conflict | Op::Query | Op::Refund);
        if needs_paid && self.known.get(k as usize) != Some(&Known::Paid) {
            self.measure.skipped(planned_ns);
            return true;
        }
        if !self.transmit(n, op, k, planned_ns, now_ns) {
            return false;
        }
        if let Some(known) = self.known.get_mut(n as usize).filter(|_| op == Op::Pay) {
            *known = Known::Open;
        }
        true
    }

    /// Sends a request. False: no room.
    fn transmit(&mut self, n: u64, op: Op, k: u64, planned_ns: u64, now_ns: u64) -> bool {
        if self.slots.is_full() {
            return false;
        }
        let Some(place) = self.place(k) else { return false };
        let link = place.0 as u16;
        let slot = Slot { n, planned_ns, sent_ns: now_ns, op, own: n == k, link };
        let Some(index) = self.slots.insert(slot) else { return false };
        self.measure.sent(slot.sample());
        self.write(place, index, &slot, k);
        true
    }

    /// Link and stream for a request about payment `k`: those of this batch as
    /// long as they have room, so that a batch leaves in one write.
    fn place(&mut self, k: u64) -> Option<(usize, usize)> {
        let count = self.links.len();
        let leader = self.leader(k);
        let mut fallback = None;
        for offset in 0..count {
            let number = (self.turn + offset) % count;
            let link = &self.links[number];
            let stream = (self.turn / count) % link.streams.len();
            if !link.has_room() || link.streams[stream].buffer.borrow().len() > STREAM_FULL {
                continue;
            }
            if leader == 0 || link.site == leader {
                return Some((number, stream));
            }
            fallback = fallback.or(Some((number, stream)));
        }
        fallback
    }

    /// The site that leads payment `k`'s shard, 0 when unknown or there is one only.
    fn leader(&self, k: u64) -> u8 {
        if self.one_site { 0 } else { self.leaders[self.shard(k)] }
    }

    /// The shard of payment `k`.
    fn shard(&self, k: u64) -> usize {
        let merchant = self.encoder.merchant(self.plan.merchant(k));
        merchant.id.shard(self.leaders.len() as u16).into()
    }

    fn write(&mut self, (number, stream): (usize, usize), index: u32, slot: &Slot, k: u64) {
        let timestamp_ms = self.now_ms(slot.sent_ns);
        let link = &self.links[number];
        link.in_flight.set(link.in_flight.get() + 1);
        let mut buffer = link.streams[stream].buffer.borrow_mut();
        if buffer.is_empty() {
            self.dirty.push((number, stream));
        }
        let request = (slot.n, slot.op, k);
        let id = correlation(index, slot.n);
        self.encoder.request(&self.plan, request, id, timestamp_ms, &mut buffer);
        if buffer.len() > STREAM_BATCH {
            self.turn = self.turn.wrapping_add(1);
        }
    }

    fn wake_streams(&mut self) {
        for (link, stream) in self.dirty.drain(..) {
            self.links[link].wake(stream);
        }
        self.turn = self.turn.wrapping_add(1);
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if let Some(acks) = &mut self.acks {
            acks.flush()?;
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Takes one answer in; it counts at the next [`State::count_answers`].
    pub(super) fn take(&mut self, header: Header, body: &[u8]) {
        let (index, n) = uncorrelate(header.correlation);
        match decode(header.kind, body) {
            Some(answer) => self.arrived.push(Arrived { index, n, answer }),
            None => self.measure.malformed += 1,
        }
    }

    /// Counts the answers that were taken from a link.
    pub(super) fn count_answers(&mut self, link: &Link, now_ns: u64) {
        let mut arrived = std::mem::take(&mut self.arrived);
        for batch in arrived.chunks(WARM) {
            batch.iter().for_each(|arrived| self.slots.warm(arrived.index));
            batch.iter().for_each(|arrived| self.answer(link, arrived, now_ns));
        }
        arrived.clear();
        self.arrived = arrived;
    }

    fn answer(&mut self, link: &Link, arrived: &Arrived, now_ns: u64) {
        let &Arrived { index, n, ref answer } = arrived;
        let Some(slot) = self.slots.get_mut(index, n).map(|slot| *slot) else {
            self.measure.late_replies += 1;
            // Late, and an acknowledgement all the same.
            if n < self.next_n {
                self.record(n, answer, now_ns, 0);
            }
            return;
        };
        if slot.link != NO_LINK {
            link.in_flight.set(link.in_flight.get().saturating_sub(1));
        }
        if matches!(answer.code, Code::NotLeader | Code::NoLeader)
            && now_ns < self.deadline(&slot.sample())
        {
            self.redirect(index, &slot, answer.leader_hint, now_ns);
            return;
        }
        // In a plan only a pay is about the payment of its own number.
        let requery = slot.own && slot.op == Op::Query;
        self.record(n, answer, now_ns, if requery { flag::REQUERY } else { 0 });
        if slot.own {
            self.learn(n, answer, requery);
        }
        self.measure.answered(slot.sample(), answer.code, answer.state, now_ns);
        self.slots.remove(index);
    }

    fn learn(&mut self, k: u64, answer: &Answer, requery: bool) {
        let Some(known) = self.known.get_mut(k as usize) else { return };
        match (answer.code, answer.state) {
            (Code::Ok, Business::Order(OrderState::Paid)) => *known = Known::Paid,
            (Code::Ok, Business::Order(state)) if state.is_final() => *known = Known::Over,
            (Code::Ok, _) => {}
            // A refusal of the pay is final, one of the query only when it says
            // that the payment never came to be.
            (Code::OrderNotFound, _) => *known = Known::Over,
            (code, _) if !requery && !code.retryable() => *known = Known::Over,
            _ => {}
        }
    }

    fn redirect(&mut self, index: u32, slot: &Slot, hint: u8, now_ns: u64) {
        let shard = self.shard(self.payment(slot));
        self.leaders[shard] = hint;
        if let Some(slot) = self.slots.get_mut(index, slot.n) {
            slot.link = NO_LINK;
        }
        self.resend.push_back((now_ns + REDIRECT_NS, index, slot.n));
    }

    fn record(&mut self, n: u64, answer: &Answer, now_ns: u64, flags: u8) {
        let Some(acks) = &mut self.acks else { return };
        let replayed = if answer.replayed { flag::REPLAYED } else { 0 };
        acks.push(&Ack {
            n,
            transaction: answer.transaction,
            amount: answer.amount,
            refunded: answer.refunded,
            at_us: now_ns / 1_000,
            code: answer.code.wire(),
            state: match answer.state {
                Business::Order(state) => state.wire(),
                Business::Refund(state) => state.wire(),
            },
            flags: flags | replayed,
        });
    }

    /// A batch of answers was taken: there may be room for what waits.
    pub(super) fn answers_taken(&mut self) {
        if self.closed.is_some()
            || !self.queries.is_empty()
            || !self.backlog.is_empty()
            || !self.resend.is_empty()
        {
            self.keep(|state| state.pump());
        }
    }

    /// A link came up.
    pub(super) fn link_up(&mut self) {
        self.keep(|state| state.pump());
    }

    /// A link was lost: what it carried is sent again, the same bytes.
    pub(super) fn link_lost(&mut self, number: usize) {
        let now_ns = self.now_ns();
        let lost: Vec<(u32, u64)> = self
            .slots
            .iter()
            .filter(|(_, slot)| usize::from(slot.link) == number)
            .map(|(index, slot)| (index, slot.n))
            .collect();
        for (index, n) in lost {
            if let Some(slot) = self.slots.get_mut(index, n) {
                slot.link = NO_LINK;
            }
            self.resend.push_front((now_ns, index, n));
        }
        self.keep(|state| state.pump());
    }

    /// Runs something whose failure ends the phase at the next pump.
    fn keep(&mut self, run: impl FnOnce(&mut Self) -> Result<(), Failure>) {
        if let Err(failure) = run(self) {
            self.failure = Some(failure);
        }
    }

    fn deadline(&self, sample: &Sample) -> u64 {
        sample.planned_ns + self.options.deadline.as_nanos() as u64
    }

    /// Gives up what is past its deadline.
    pub(super) fn sweep(&mut self) -> Result<(), Failure> {
        let now_ns = self.now_ns();
        let expired: Vec<(u32, Slot)> = self
            .slots
            .iter()
            .filter(|(_, slot)| self.deadline(&slot.sample()) <= now_ns)
            .map(|(index, slot)| (index, *slot))
            .collect();
        for (index, slot) in expired {
            self.give_up(index, &slot, now_ns);
        }
        let deadline_ns = self.options.deadline.as_nanos() as u64;
        while self.backlog.front().is_some_and(|(_, planned)| planned + deadline_ns <= now_ns) {
            if let Some((_, planned_ns)) = self.backlog.pop_front() {
                self.measure.not_sent(planned_ns);
            }
        }
        self.pump()
    }

    fn give_up(&mut self, index: u32, slot: &Slot, now_ns: u64) {
        if let Some(link) = self.links.get(usize::from(slot.link)) {
            link.in_flight.set(link.in_flight.get().saturating_sub(1));
        }
        self.measure.unanswered(slot.sample());
        let requery = slot.own && slot.op == Op::Query;
        let flags = flag::UNKNOWN | if requery { flag::REQUERY } else { 0 };
        let unknown = Answer {
            code: Code::Ok,
            state: Business::Order(OrderState::None),
            transaction: 0,
            amount: 0,
            refunded: 0,
            replayed: false,
            leader_hint: 0,
        };
        self.record(slot.n, &unknown, now_ns, flags);
        self.slots.remove(index);
    }

    /// Closes a second of the live view and prints it.
    pub(super) fn close_second(&mut self, at_s: u64, print: bool) {
        let second = self.measure.close_second(at_s);
        if !print {
            return;
        }
        let ms = |us: Option<u64>| {
            us.map_or_else(|| "-".to_owned(), |us| format!("{:.2}", us as f64 / 1_000.0))
        };
        let late = self.measure.own_lateness.quantile(0.99).map(|ns| ns / 1_000);
        println!(
            "{at_s:>4} s  sent {:>7}/s  ok {:>7}/s  refused {:>6}/s  p50 {:>7} ms  p99 {:>7} ms  \
             in flight {:>6}  waiting {:>6}  late p99 {:>5} us{}",
            second.sent,
            second.ok,
            second.refused,
            ms(second.p50_us),
            ms(second.p99_us),
            self.slots.len(),
            self.backlog.len(),
            late.unwrap_or(0),
            if self.links.iter().any(|link| link.is_up()) { "" } else { "  NOT CONNECTED" },
        );
    }
}

/// Longest phase that makes sense, a guard against typing errors.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(7 * 86_400);

fn decode(frame_kind: u8, body: &[u8]) -> Option<Answer> {
    const PAY: u8 = kind::PAY | kind::REPLY;
    const QUERY: u8 = kind::QUERY | kind::REPLY;
    const REFUND: u8 = kind::REFUND | kind::REPLY;
    match frame_kind {
        PAY | QUERY => {
            let reply = OrderReply::decode(body).ok()?;
            Some(Answer {
                code: reply.code,
                state: Business::Order(reply.state),
                transaction: reply.transaction_id.map_or(0, |id| id.as_u64()),
                amount: reply.amount,
                refunded: reply.refunded,
                replayed: reply.replayed,
                leader_hint: reply.leader_hint,
            })
        }
        REFUND => {
            let reply = RefundReply::decode(body).ok()?;
            Some(Answer {
                code: reply.code,
                state: Business::Refund(reply.state),
                transaction: reply.transaction_id.map_or(0, |id| id.as_u64()),
                amount: reply.amount,
                refunded: reply.refunded,
                replayed: reply.replayed,
                leader_hint: reply.leader_hint,
            })
        }
        kind::ERROR => {
            let error = ErrorFrame::decode(body).ok()?;
            Some(Answer {
                code: error.code,
                state: Business::Order(OrderState::None),
                transaction: 0,
                amount: 0,
                refunded: 0,
                replayed: false,
                leader_hint: 0,
            })
        }
        _ => None,
    }
}
