//! What is due, what is in flight, what came back: every decision of the
//! driver, without a socket or a task.
//!
//! Bounded: requests in flight and waiting together stay below one limit;
//! beyond it a planned request is shed and counted, never queued.

use super::answer::{Answer, Arrived, decode};
use super::events::Events;
use super::link::Link;
use super::sites::Sites;
use super::slots::{NO_LINK, Slot, Slots, correlation, uncorrelate};
use super::{Options, Part, Phase};
use crate::acks::{Ack, AckWriter, flag};
use crate::encode::{Encoder, FOUND};
use crate::exit::Failure;
use crate::live::Frame;
use crate::measure::{Business, Measure, Sample};
use crate::plan::{Op, Plan};
use crate::schedule::Schedule;
use crate::trace::{Done, End};
use protocol::code::{Code, OrderState, RefundState};
use protocol::frame::Header;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes in a stream's buffer after which a batch goes on with the next stream.
const STREAM_BATCH: usize = 48 << 10;
/// Bytes in a stream's buffer above which it takes no more.
const STREAM_FULL: usize = 1 << 20;
/// Answers or requests whose memory is asked for ahead, so that cache misses overlap.
const WARM: usize = FOUND;
/// Requests whose place is asked for ahead: a long run may be stopped early.
const RESERVED_MAX: usize = 64 << 20;
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

/// The driver's state.
pub(super) struct State {
    pub(super) plan: Rc<Plan>,
    pub(super) encoder: Encoder,
    /// Link and stream of what it has not signed yet.
    unsigned: (usize, usize),
    pub(super) acks: Option<AckWriter>,
    /// Outcome events, when they are wanted.
    pub(super) events: Option<Events>,
    pub(super) links: Vec<Rc<Link>>,
    /// What is known beyond the requests when links lead to several sites; with
    /// one there is nothing to choose.
    pub(super) sites: Option<Box<Sites>>,
    /// Answers of one batch, decoded; kept for its memory.
    arrived: Vec<Arrived>,
    options: Options,
    base: Instant,
    base_ms: u64,
    pub(super) slots: Slots,
    known: Vec<Known>,
    pub(super) next_n: u64,
    schedule: Option<Schedule>,
    phase_ns: u64,
    closed: Option<usize>,
    closed_until_ns: u64,
    backlog: VecDeque<(u64, u64)>,
    /// Payments to be queried, in place of a schedule.
    queries: VecDeque<u64>,
    /// When, place and number of what is sent again, the next first.
    pub(super) resend: BinaryHeap<Reverse<(u64, u32, u64)>>,
    /// Shards of the cluster.
    pub(super) shards: u16,
    turn: usize,
    dirty: Vec<(usize, usize)>,
    pub(super) measure: Measure,
    /// What became of every request, when that is wanted.
    trace: Option<Vec<Done>>,
    failure: Option<Failure>,
    /// What was done to the system last, for the live view.
    note: Option<String>,
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
        let several = links.iter().any(|link| link.site != links[0].site);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            plan,
            encoder,
            unsigned: (0, 0),
            acks,
            events: options.events.then(Events::default),
            sites: several
                .then(|| Box::new(Sites::new(shards, options.in_flight_max, links.len()))),
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
            resend: BinaryHeap::new(),
            shards,
            turn: 0,
            dirty: Vec::new(),
            measure: Measure::new(0, 0),
            trace: None,
            failure: None,
            note: None,
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
        let from_ns = start_ns + phase.warmup.as_nanos() as u64;
        self.measure = Measure::new(from_ns, end_ns).with_series(start_ns);
        self.phase_ns = start_ns;
        self.note = None;
        self.trace = phase.traced.then(Vec::new);
        self.closed = phase.closed;
        self.closed_until_ns = end_ns;
        self.schedule = phase.closed.is_none().then_some(schedule);
        let expected = phase.arrival.expected(phase.rate, phase.duration);
        self.known.reserve((expected as usize).min(RESERVED_MAX));
    }

    /// Asks for the state of these payments, at most `at_once` at a time.
    pub(super) fn begin_queries(&mut self, payments: &[u64], at_once: usize) {
        let now_ns = self.now_ns();
        self.measure = Measure::new(now_ns, u64::MAX);
        self.trace = None;
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

    /// Requests of the session that were planned so far.
    pub(super) fn planned(&self) -> u64 {
        self.next_n
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
        let now_ns = self.now_ns();
        self.measure.ends(now_ns);
        while let Some((n, planned_ns)) = self.backlog.pop_front() {
            self.not_sent(n, planned_ns);
        }
    }

    /// Whether everything planned was sent and answered, or given up.
    pub(super) fn is_done(&self) -> bool {
        let ended = self.schedule.as_ref().is_none_or(|schedule| schedule.peek().is_none())
            && self.closed.is_none_or(|_| self.now_ns() >= self.closed_until_ns);
        ended && self.backlog.is_empty() && self.queries.is_empty() && self.slots.len() == 0
    }

    /// Waits for nothing any more: what is in flight counts as never answered.
    pub(super) fn give_all_up(&mut self) {
        let now_ns = self.now_ns();
        for (index, slot) in self.slots_on(|_| true) {
            self.give_up(index, &slot, now_ns);
        }
    }

    /// The phase's figures.
    pub(super) fn take_measure(&mut self) -> Measure {
        std::mem::replace(&mut self.measure, Measure::new(0, 0))
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

    /// When the next request is due, as an offset into the phase.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.schedule.as_ref().and_then(Schedule::peek)
    }

    fn pull_due(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.phase_ns);
        let due = |schedule: &mut Schedule| {
            schedule.peek().filter(|offset| *offset <= elapsed_ns).inspect(|_| schedule.skip())
        };
        while let Some(offset) = self.schedule.as_mut().and_then(due) {
            let (n, planned_ns) = (self.next_n, self.phase_ns + offset);
            self.next_n += 1;
            self.known.push(Known::Nothing);
            if !self.is_ours(n) {
                continue;
            }
            self.measure.pulled(planned_ns, now_ns);
            if self.backlog.len() + self.slots.len() < self.options.in_flight_max {
                self.backlog.push_back((n, planned_ns));
            } else {
                self.not_sent(n, planned_ns);
            }
        }
    }

    /// Whether request `n` belongs to this part of the plan.
    fn is_ours(&self, n: u64) -> bool {
        let Part { index, of } = self.options.part;
        if of == 1 {
            return true;
        }
        let k = if self.plan.op(n) == Op::Pay { n } else { self.plan.target(n) };
        k % of == index
    }

    fn send_again(&mut self, now_ns: u64) {
        while let Some(&Reverse((due_ns, index, n))) = self.resend.peek() {
            if due_ns > now_ns {
                return;
            }
            let waiting = self.slots.get_mut(index, n).map(|slot| *slot);
            let Some(slot) = waiting.filter(|slot| slot.link == NO_LINK) else {
                // Answered, given up or sent in the meantime.
                self.resend.pop();
                continue;
            };
            let k = self.payment(&slot);
            let Some(place) = self.place(k) else { return };
            self.resend.pop();
            self.resend_at(place, index, &slot, now_ns);
        }
    }

    /// Sends a request once more.
    pub(super) fn resend_at(
        &mut self,
        place: (usize, usize),
        index: u32,
        slot: &Slot,
        now_ns: u64,
    ) {
        if !self.move_copy(place.0, index, slot, now_ns) {
            return;
        }
        if let Some(slot) = self.slots.get_mut(index, slot.n) {
            slot.link = place.0 as u16;
        }
        self.measure.resent += 1;
        self.write(place, index, slot, self.payment(slot), now_ns);
        self.sign();
    }

    /// The payment that a request is about.
    pub(super) fn payment(&self, slot: &Slot) -> u64 {
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
    fn warm_merchants(&mut self) {
        for &(n, _) in self.backlog.iter().take(WARM) {
            self.encoder.warm(&self.plan, n);
        }
    }

    fn send_closed(&mut self, now_ns: u64) {
        let Some(wanted) = self.closed.filter(|_| now_ns < self.closed_until_ns) else { return };
        while self.slots.len() < wanted {
            let n = self.next_n;
            if self.known.len() as u64 == n {
                self.known.push(Known::Nothing);
            }
            if self.is_ours(n) && !self.send(n, now_ns, now_ns) {
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
        let known = self.known.get(k as usize).copied().unwrap_or(Known::Nothing);
        let fits = match op {
            Op::Conflict | Op::Query | Op::Refund | Op::Reverse => known == Known::Paid,
            Op::Close => known != Known::Nothing,
            Op::Pay | Op::Duplicate | Op::BadSignature => true,
        };
        if !fits {
            self.measure.skipped(planned_ns);
            return true;
        }
        if !self.transmit(n, op, k, planned_ns, now_ns) {
            return false;
        }
        let now = match op {
            Op::Pay => Known::Open,
            // Nothing more is asked about it: what it will say is not known.
            Op::Reverse => Known::Over,
            _ => return true,
        };
        if let Some(known) = self.known.get_mut(k as usize) {
            *known = now;
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
        if self.sites.is_some() {
            let shard = self.shard(k);
            self.sites.iter_mut().for_each(|sites| sites.begin(index, shard, now_ns));
        }
        self.write(place, index, &slot, k, now_ns);
        true
    }

    /// Link and stream for a request about payment `k`: those of this batch as
    /// long as they have room, so that a batch leaves in one write.
    fn place(&self, k: u64) -> Option<(usize, usize)> {
        match &self.sites {
            None => self.links().iter().enumerate().find_map(|(offset, _)| self.turn_at(offset)),
            Some(sites) => self.place_among(sites, self.shard(k), 0),
        }
    }

    /// Link and stream that are next after `offset` others, if there is room.
    pub(super) fn turn_at(&self, offset: usize) -> Option<(usize, usize)> {
        let count = self.links.len();
        let number = (self.turn + offset) % count;
        let link = &self.links[number];
        let stream = (self.turn / count) % link.streams.len();
        let room = link.has_room() && link.streams[stream].buffer.borrow().len() <= STREAM_FULL;
        room.then_some((number, stream))
    }

    /// The shard of payment `k`.
    pub(super) fn shard(&self, k: u64) -> u16 {
        let merchant = self.encoder.merchant(self.plan.merchant(k));
        merchant.id.shard(self.shards)
    }

    fn write(
        &mut self,
        (number, stream): (usize, usize),
        index: u32,
        slot: &Slot,
        k: u64,
        now_ns: u64,
    ) {
        if let Some(sites) = &mut self.sites {
            sites.wrote(number, now_ns);
        }
        let timestamp_ms = self.now_ms(slot.sent_ns);
        if self.unsigned != (number, stream) {
            self.sign();
            self.unsigned = (number, stream);
        }
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

    /// Signs the request that waits for a second one: before anybody else sees its buffer.
    fn sign(&mut self) {
        if self.encoder.is_waiting() {
            let (number, stream) = self.unsigned;
            self.encoder.finish(&mut self.links[number].streams[stream].buffer.borrow_mut());
        }
    }

    fn wake_streams(&mut self) {
        self.sign();
        for (link, stream) in self.dirty.drain(..) {
            self.links[link].wake(stream);
        }
        self.turn = self.turn.wrapping_add(1);
    }

    /// Writes the acknowledgements that were taken in.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        if let Some(acks) = &mut self.acks {
            acks.flush()?;
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Writes them ahead of their time; false: that failed, and ends the phase.
    pub(super) fn written(&mut self) -> bool {
        let flushed = self.flush();
        let written = flushed.is_ok();
        self.keep(|_| flushed);
        written
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
            if self.echoed(link, n, answer, now_ns) {
                return;
            }
            self.measure.late_replies += 1;
            // Late, and an acknowledgement all the same.
            if n < self.next_n {
                self.record(n, answer, now_ns, 0);
            }
            return;
        };
        // In a plan only a pay is about the payment of its own number.
        let requery = slot.own && slot.op == Op::Query;
        let flags = if requery { flag::REQUERY } else { 0 };
        if self.sites.is_some() {
            if self.answer_of_several(link, (index, &slot), answer, flags, now_ns) {
                return;
            }
        } else if slot.link != NO_LINK {
            link.in_flight.set(link.in_flight.get().saturating_sub(1));
        }
        if matches!(answer.code, Code::NotLeader | Code::NoLeader)
            && now_ns < self.deadline(&slot.sample())
        {
            self.send_later(index, &slot, now_ns + REDIRECT_NS);
            return;
        }
        self.record(n, answer, now_ns, flags);
        if slot.own && slot.op != Op::BadSignature {
            self.learn(n, answer, requery);
        }
        if slot.own && slot.op != Op::BadSignature || slot.op == Op::Refund {
            self.expect_event(n, answer);
        }
        self.measure.hint(answer.code, answer.retry_after_ms);
        let told = (answer.code, answer.state);
        self.measure.answered(slot.sample(), told, link.site, now_ns);
        let end = End::Answered(answer.code);
        self.trace(slot.op, self.payment(&slot), slot.planned_ns, end, now_ns);
        self.slots.remove(index);
    }

    /// An outcome of a payment or refund that was told has its event.
    fn expect_event(&mut self, n: u64, answer: &Answer) {
        let Some(events) = &mut self.events else { return };
        let is_final = match answer.state {
            Business::Order(state) => state.is_final(),
            Business::Refund(state) => state == RefundState::Success,
        };
        if answer.code == Code::Ok && is_final {
            events.due(n);
        }
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

    /// Puts a request that nobody carries aside until `due_ns`.
    pub(super) fn send_later(&mut self, index: u32, slot: &Slot, due_ns: u64) {
        if let Some(slot) = self.slots.get_mut(index, slot.n) {
            slot.link = NO_LINK;
        }
        self.resend.push(Reverse((due_ns, index, slot.n)));
    }

    pub(super) fn record(&mut self, n: u64, answer: &Answer, now_ns: u64, flags: u8) {
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
        let lost = self.slots_on(|slot| usize::from(slot.link) == number);
        for (index, slot) in lost {
            if !self.other_copy(index, &slot) {
                self.send_later(index, &slot, now_ns);
            }
        }
        self.link_forgotten(number);
        self.keep(|state| state.pump());
    }

    /// Runs something whose failure ends the phase at the next pump.
    pub(super) fn keep(&mut self, run: impl FnOnce(&mut Self) -> Result<(), Failure>) {
        if let Err(failure) = run(self) {
            self.failure = Some(failure);
        }
    }

    /// Requests in flight that are wanted, with their place.
    pub(super) fn slots_on(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<(u32, Slot)> {
        let found = self.slots.iter().filter(|(_, slot)| wanted(slot));
        found.map(|(index, slot)| (index, *slot)).collect()
    }

    pub(super) fn deadline(&self, sample: &Sample) -> u64 {
        sample.planned_ns + self.options.deadline.as_nanos() as u64
    }

    /// Looks after silent sites and gives up what is past its deadline.
    pub(super) fn sweep(&mut self) -> Result<(), Failure> {
        let now_ns = self.now_ns();
        if let Some(series) = &mut self.measure.series {
            series.look(now_ns, self.slots.len(), self.backlog.len());
        }
        self.watch_sites(now_ns);
        let expired = self.slots_on(|slot| self.deadline(&slot.sample()) <= now_ns);
        for (index, slot) in expired {
            self.give_up(index, &slot, now_ns);
        }
        let deadline_ns = self.options.deadline.as_nanos() as u64;
        while self.backlog.front().is_some_and(|(_, planned)| planned + deadline_ns <= now_ns) {
            if let Some((n, planned_ns)) = self.backlog.pop_front() {
                self.not_sent(n, planned_ns);
            }
        }
        self.pump()
    }

    /// A planned request is never sent.
    fn not_sent(&mut self, n: u64, planned_ns: u64) {
        let (op, now_ns) = (self.plan.op(n), self.now_ns());
        self.measure.not_sent(op, planned_ns);
        self.trace(op, self.plan.target(n), planned_ns, End::NotSent, now_ns);
    }

    fn trace(&mut self, op: Op, k: u64, planned_ns: u64, end: End, done_ns: u64) {
        if self.trace.is_none() {
            return;
        }
        let shard = self.shard(k);
        let since = |ns: u64| ns.saturating_sub(self.phase_ns);
        let done = Done { planned_ns: since(planned_ns), done_ns: since(done_ns), shard, op, end };
        self.trace.iter_mut().for_each(|trace| trace.push(done));
    }

    /// The phase's trace.
    pub(super) fn take_trace(&mut self) -> Vec<Done> {
        self.trace.take().unwrap_or_default()
    }

    fn give_up(&mut self, index: u32, slot: &Slot, now_ns: u64) {
        if let Some(link) = self.links.get(usize::from(slot.link)) {
            link.in_flight.set(link.in_flight.get().saturating_sub(1));
        }
        self.forget_copy(index);
        self.measure.unanswered(slot.sample());
        self.trace(slot.op, self.payment(slot), slot.planned_ns, End::Unanswered, now_ns);
        let requery = slot.own && slot.op == Op::Query;
        let flags = flag::UNKNOWN | if requery { flag::REQUERY } else { 0 };
        let unknown = Answer::bare(Code::Ok);
        self.record(slot.n, &unknown, now_ns, flags);
        self.slots.remove(index);
    }

    /// Tells what is being done to the system.
    pub(super) fn note(&mut self, text: String) {
        self.note = Some(text);
    }

    /// Closes a second of the live view.
    pub(super) fn close_second(&mut self, at_s: u64, duration: Option<Duration>) -> Frame {
        let measure = &mut self.measure;
        Frame {
            second: measure.close_second(at_s),
            duration_s: duration.map(|duration| duration.as_secs_f64().ceil() as u64),
            in_flight: self.slots.len(),
            waiting: self.backlog.len(),
            late_us: measure.own_lateness.quantile(0.99).map_or(0, |ns| ns / 1_000),
            connected: self.links.iter().any(|link| link.is_up()),
            codes: measure.by_code(),
            sites: measure.series.as_ref().map_or_else(Vec::new, |series| series.last_second()),
            unanswered: measure.unanswered,
            not_sent: measure.not_sent,
            note: self.note.clone(),
        }
    }
}

/// Longest phase that makes sense, a guard against typing errors.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(7 * 86_400);
