//! Statements about definitive attempts (docs/STATES.md, C8): what is put on
//! record, what is asked about, and what is given back. None changes an outcome.
//!
//! What this leader has asked is volatile, bounded, and kept apart from the
//! orders: contradictions are rare, and a new leader begins without any.

use super::Engine;
use super::attempt::{Asked, Facts, Step, step};
use super::evidence::{Statement, raise};
use super::input::{Now, Operation};
use super::order::{Class, RefundKind};
use super::output::{AlarmKind, Outputs};
use super::record::{Outcome, Record};
use super::timer::Heap;
use super::weakness::Weakness;
use protocol::code::OrderState;
use std::collections::BTreeMap;

/// A payment and the ordinal of its attempt.
type Key = (u64, u8);

/// What this leader does about contradicted attempts.
pub(super) struct Contradictions {
    known: BTreeMap<Key, Contradiction>,
    /// When to ask again.
    due: Heap<Key>,
}

struct Contradiction {
    /// A statement that is heard from then on was made after the first one.
    fresh_us: u64,
    /// Questions that may still be asked.
    left: u8,
    /// Nothing is to be learned any more.
    settled: bool,
    /// Its record is proposed.
    noted: bool,
}

/// Most contradicted attempts that are remembered; the oldest payments are
/// forgotten first, and would be asked about anew.
const KNOWN_MAX: usize = 65_536;
/// Most questions about a charge that was reversed, the first one included.
const QUESTIONS_MAX: u8 = 6;
/// Shortest time between two of them.
const PAUSE_US: u64 = 1_000_000;

impl Contradictions {
    pub(super) fn new() -> Self {
        Self { known: BTreeMap::new(), due: Heap::new() }
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.due.clear();
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| due)
    }

    /// Remembers a contradicted attempt; `false` when it is known.
    fn learn(&mut self, key: Key, fresh_us: u64) -> bool {
        if self.known.contains_key(&key) {
            return false;
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.pop_first();
        }
        let left = QUESTIONS_MAX - 1;
        self.known.insert(key, Contradiction { fresh_us, left, settled: false, noted: false });
        true
    }

    fn settle(&mut self, key: Key) {
        if let Some(known) = self.known.get_mut(&key) {
            known.settled = true;
        }
    }

    fn is_fresh(&self, key: Key, now: Now) -> bool {
        self.known.get(&key).is_some_and(|known| now.mono_us >= known.fresh_us)
    }
}

impl Engine {
    /// A statement about a definitive attempt.
    pub(super) fn late(
        &mut self,
        (sequence, ordinal): Key,
        asked: Asked,
        statement: &Statement,
        now: Now,
        out: &mut Outputs,
    ) {
        let key = (sequence, ordinal);
        let Some(attempt) = self.orders.attempt(sequence, ordinal) else { return };
        let state = attempt.state;
        let facts =
            Facts { void_by_reversal: attempt.class == Class::Reversed, ..Facts::default() };
        match step(state, asked, statement.class, &facts) {
            Step::Orphan if self.weakened(Weakness::LateSuccessFlipsClosed) => {
                self.orders[sequence].state = OrderState::Paid;
            }
            Step::Orphan => self.compensate(key, now, out),
            Step::Residue => self.residue(key, asked, statement, now, out),
            Step::Conflict => {
                let life_us = self.verifiable(key).unwrap_or_default();
                let first = self.contradictions.learn(key, now.mono_us.saturating_add(life_us));
                self.note(key, statement, now, out);
                if first {
                    self.contradictions.settle(key);
                    self.ask_what_stands(key, out);
                }
            }
            _ if asked == Asked::Query => self.nothing_stands(key, statement.class, now),
            _ => {}
        }
    }

    /// A charge that was reversed shows up. The answer to the charge was most
    /// likely given before the reversal: it is verified. An answer to a query
    /// says that the charge stands, unless it was given before, too: what was
    /// given before the first such statement was heard cannot come any more
    /// once the channel's message life has passed.
    fn residue(
        &mut self,
        key: Key,
        asked: Asked,
        statement: &Statement,
        now: Now,
        out: &mut Outputs,
    ) {
        let is_word = asked == Asked::Query;
        if is_word && self.contradictions.is_fresh(key, now) {
            self.note(key, statement, now, out);
            self.contradictions.settle(key);
            return self.compensate(key, now, out);
        }
        let Some(life_us) = self.verifiable(key) else { return };
        let fresh_us = now.mono_us.saturating_add(life_us);
        if self.contradictions.learn(key, fresh_us) {
            self.ask_what_stands(key, out);
            self.contradictions.due.push(fresh_us, key);
        }
        if is_word {
            self.note(key, statement, now, out);
        }
    }

    /// An answer to a query after which no charge is looked for any more. That the
    /// channel revoked it cannot have been true before the reversal.
    fn nothing_stands(&mut self, key: Key, class: Class, now: Now) {
        let absent = matches!(class, Class::Declined | Class::NotFound);
        if class == Class::Reversed || absent && self.contradictions.is_fresh(key, now) {
            self.contradictions.settle(key);
        }
    }

    /// For how long an answer may be under way at the attempt's channel; `None`
    /// for a channel that cannot be asked.
    fn verifiable(&self, (sequence, ordinal): Key) -> Option<u64> {
        let attempt = self.orders.attempt(sequence, ordinal)?;
        let channel = self.channel(attempt.channel).filter(|channel| channel.queryable)?;
        // Without a promise at least as long as an answer is waited for.
        Some(channel.max_msg_life_us.max(channel.reply_timeout_us))
    }

    /// Puts a contradiction on record, once per attempt.
    fn note(&mut self, key: Key, statement: &Statement, now: Now, out: &mut Outputs) {
        let (sequence, ordinal) = key;
        let Some(attempt) = self.orders.attempt(sequence, ordinal) else { return };
        let (attempt_state, on_record) = (attempt.state, attempt.noted);
        let Some(known) = self.contradictions.known.get_mut(&key) else { return };
        if std::mem::replace(&mut known.noted, true) {
            return;
        }
        raise(out, AlarmKind::Conflict, sequence, ordinal);
        if on_record {
            return;
        }
        let order = &self.orders[sequence];
        let outcome = Outcome {
            sequence,
            attempt: ordinal,
            cancel_result: false,
            class: Class::Noted,
            attempt_state,
            order_state: order.state,
            reason: order.reason,
            amount: statement.amount,
            channel_ref: statement.channel_ref,
        };
        self.propose(now, &Record::Outcome(outcome), out);
    }

    /// One question about a definitive attempt.
    fn ask_what_stands(&self, (sequence, ordinal): Key, out: &mut Outputs) {
        let Some(attempt) = self.orders.attempt(sequence, ordinal) else { return };
        if self.channel(attempt.channel).is_some_and(|channel| channel.queryable) {
            self.send(attempt.channel, sequence, Operation::Query, ordinal, out);
        }
    }

    /// Charges that were reversed and whose question had no answer that counts.
    pub(super) fn ask_again_due(&mut self, now: Now, out: &mut Outputs) {
        while let Some(key) = self.contradictions.due.pop_due(now.mono_us) {
            let (sequence, ordinal) = key;
            let Some(attempt) = self.orders.attempt(sequence, ordinal) else { continue };
            let number = attempt.channel;
            let pause = self.channel(number).and_then(|c| c.query_plan_us.last().copied());
            let room = self.has_room(number);
            let Some(known) = self.contradictions.known.get_mut(&key) else { continue };
            if known.settled {
                continue;
            }
            if known.left == 0 {
                known.settled = true;
                raise(out, AlarmKind::Conflict, sequence, ordinal);
                continue;
            }
            known.left -= u8::from(room);
            let next_us = now.mono_us.saturating_add(pause.unwrap_or(PAUSE_US).max(PAUSE_US));
            self.contradictions.due.push(next_us, key);
            if room {
                self.ask_what_stands(key, out);
            }
        }
    }

    /// An orphan success: give it back, once per attempt.
    fn compensate(&mut self, (sequence, ordinal): Key, now: Now, out: &mut Outputs) {
        let done = |(_, refund): (u32, &super::order::Refund)| {
            refund.kind == RefundKind::Orphan && refund.attempt == ordinal
        };
        if self.orders.refunds_of(sequence).any(done) {
            return;
        }
        raise(out, AlarmKind::OrphanSuccess, sequence, ordinal);
        let amount = self.orders[sequence].amount;
        self.start_refund_of_our_own(sequence, RefundKind::Orphan, ordinal, amount, now, out);
    }
}
