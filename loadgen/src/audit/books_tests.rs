//! One doctored history per rule, each caught, and a clean one that passes.

mod events;
mod rare;

use super::EventsDue;
use super::books::Books;
use super::limits::Limits;
use super::log::{Ending, Fact, Line, Status};
use super::table::State;
use super::told::Run;
use crate::acks::{Ack, flag};
use crate::channel::book::Entry;
use crate::channel::number::Number;
use crate::plan::tests::{all_kinds, params};
use crate::plan::{Op, Params, Plan};
use protocol::channel::{ChannelStatus, charge_number, kind};
use protocol::code::{Code, OrderState, RefundState};
use protocol::id::TransactionId;

const AT_US: u64 = 1_000_000_000;

/// A history of one payment and its refund request, told by all witnesses.
struct History {
    run: Run,
    books: Books,
    records: u64,
    /// The refund request and the payment it is about.
    refund: u64,
    k: u64,
}

impl History {
    fn new() -> Self {
        Self::of(params())
    }

    fn of(params: Params) -> Self {
        let run = Run::new(Plan::new(params).unwrap()).unwrap();
        let refund = (0..10_000).find(|n| run.plan.op(*n) == Op::Refund).unwrap();
        let k = run.plan.target(refund);
        Self { run, books: Books::new(), records: 0, refund, k }
    }

    /// Paid by the first attempt, all witnesses agreeing, not yet acknowledged.
    fn paid() -> Self {
        let mut history = Self::new();
        history.begin();
        history.end(1, Ending::Succeeded, false);
        history.charge(1, ChannelStatus::Success, history.amount());
        history
    }

    fn amount(&self) -> i64 {
        self.run.plan.amount(self.k).minor()
    }

    fn refund_amount(&self) -> i64 {
        self.run.plan.refund_amount(self.refund, self.k).minor()
    }

    fn record(&mut self, fact: Fact<'_>) {
        self.records += 1;
        let (index, at_us) = (self.records, AT_US + self.records);
        let line =
            Line { shard: 2, index, term: 1, record: 0, at_us, sequence: 1, fact, card: false };
        self.books.record(&line);
    }

    fn begin(&mut self) {
        self.begin_as(1, None);
    }

    /// The payment begins as `sequence`, with a charge number of its own unless told.
    fn begin_as(&mut self, sequence: u64, charge_no: Option<&str>) {
        let mch_id = *self.run.merchant(self.k);
        let out_trade_no = self.run.plan.out_trade_no(self.k);
        let own = charge_number(&self.run.digest(self.k), 1);
        let fact = Fact::Begin {
            mch_id: mch_id.as_str(),
            out_trade_no: out_trade_no.as_str(),
            charge_no: charge_no.unwrap_or(own.as_str()),
            amount: self.amount(),
            currency: "CNY",
            expire_ms: 0,
        };
        self.records += 1;
        let index = self.records;
        let at_us = AT_US;
        let line = Line { shard: 2, index, term: 1, record: 0, at_us, sequence, fact, card: false };
        self.books.record(&line);
    }

    fn end(&mut self, attempt: u8, ending: Ending, goes_on: bool) {
        self.record(Fact::End { attempt, ending, goes_on, said: State::None });
    }

    fn begin_refund(&mut self, ordinal: u8, amount: i64, number: &str) {
        self.record(Fact::Refund { ordinal, attempt: 1, amount, out_refund_no: number });
    }

    fn refund_number(&self) -> String {
        self.run.plan.out_refund_no(self.refund).to_string()
    }

    /// A refund that all witnesses agree on.
    fn refunded(&mut self, ordinal: u8, number: &str, amount: i64) {
        self.begin_refund(ordinal, amount, number);
        self.record(Fact::RefundEnd { ordinal, ending: Ending::Succeeded });
        self.book(kind::REFUND, 1, ordinal, ChannelStatus::Success, amount);
    }

    fn book(
        &mut self,
        operation: u8,
        attempt: u8,
        ordinal: u8,
        status: ChannelStatus,
        amount: i64,
    ) {
        self.book_at(operation, (attempt, ordinal), status, amount, AT_US / 1_000 + 1);
    }

    fn book_at(
        &mut self,
        operation: u8,
        (attempt, ordinal): (u8, u8),
        status: ChannelStatus,
        amount: i64,
        at_ms: u64,
    ) {
        let digest = self.run.digest(self.k);
        self.books.entry(&Entry {
            operation,
            charge: Number { digest, kind: b'P', ordinal: attempt },
            refund: (ordinal > 0).then_some(Number { digest, kind: b'R', ordinal }),
            status,
            detail: 0,
            amount,
            currency: *b"CNY",
            at_ms,
        });
    }

    fn charge(&mut self, attempt: u8, status: ChannelStatus, amount: i64) {
        self.book(kind::CHARGE, attempt, 0, status, amount);
    }

    fn ack(&self, n: u64, code: Code, state: u8) -> Ack {
        Ack {
            n,
            transaction: TransactionId::new(2, 1).as_u64(),
            amount: self.amount(),
            refunded: 0,
            at_us: 5,
            code: code.wire(),
            state,
            flags: 0,
        }
    }

    fn told(&mut self, state: OrderState) {
        let ack = self.ack(self.k, Code::Ok, state.wire());
        self.books.ack(&self.run, &ack);
    }

    fn told_refund(&mut self, state: RefundState, amount: i64) {
        let ack = Ack { amount, ..self.ack(self.refund, Code::Ok, state.wire()) };
        self.books.ack(&self.run, &ack);
    }

    /// The rules found broken after everything had time to settle.
    fn broken(mut self) -> Vec<u8> {
        self.books.finish(true, EventsDue::All);
        let (count, violations) = self.books.violations();
        assert_eq!(count, violations.len() as u64);
        let mut rules: Vec<u8> = violations.iter().map(|violation| violation.invariant).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }
}

const CLEAN: Vec<u8> = Vec::new();

#[test]
fn a_clean_history_passes() {
    let mut history = History::paid();
    let (number, amount) = (history.refund_number(), history.refund_amount());
    history.refunded(1, &number, amount);
    history.told(OrderState::Processing);
    history.told(OrderState::Paid);
    history.told(OrderState::Paid);
    history.told_refund(RefundState::Processing, amount);
    history.told_refund(RefundState::Success, amount);
    let unknown = Ack { flags: flag::UNKNOWN, ..history.ack(history.k, Code::Ok, 0) };
    history.books.ack(&history.run, &unknown);
    let checked = history.books.checked();
    assert_eq!((checked.payments, checked.refunds, checked.acks, checked.unknown), (1, 1, 6, 1));
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn a_decline_a_second_attempt_and_a_reversal_are_clean() {
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Declined, true);
    history.record(Fact::Attempt(2));
    history.record(Fact::Cancel { ends_payment: true });
    history.end(2, Ending::Reversed, false);
    history.charge(1, ChannelStatus::Declined, history.amount());
    history.charge(2, ChannelStatus::Success, history.amount());
    history.book(kind::REVERSE, 2, 0, ChannelStatus::Reversed, history.amount());
    history.told(OrderState::Closed);
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn a_route_that_ends_and_a_late_charge_that_is_undone_are_clean() {
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Declined, true);
    history.record(Fact::RouteEnd { said: State::None });
    history.charge(1, ChannelStatus::Declined, history.amount());
    history.told(OrderState::Failed);
    assert_eq!(history.broken(), CLEAN);
    let mut history = History::new();
    let amount = history.amount();
    history.begin();
    history.record(Fact::Cancel { ends_payment: true });
    let (attempt, ending) = (1, Ending::Succeeded);
    history.record(Fact::End { attempt, ending, goes_on: false, said: State::Processing });
    history.refunded(100, "", amount);
    history.charge(1, ChannelStatus::Success, amount);
    history.told(OrderState::Closed);
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn a_cancel_between_attempts_closes_and_a_late_cancel_changes_nothing() {
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Declined, true);
    history.record(Fact::Cancel { ends_payment: true });
    history.charge(1, ChannelStatus::Declined, history.amount());
    history.told(OrderState::Closed);
    assert_eq!(history.broken(), CLEAN);
    let mut history = History::paid();
    history.record(Fact::Cancel { ends_payment: true });
    history.told(OrderState::Paid);
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn records_of_another_replica_are_not_counted_twice() {
    let mut history = History::paid();
    history.records = 0;
    history.begin();
    history.end(1, Ending::Succeeded, false);
    assert_eq!(history.books.checked().records, 2);
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn rule_1_two_standing_charges() {
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Void, true);
    history.record(Fact::Attempt(2));
    history.end(2, Ending::Succeeded, false);
    history.charge(1, ChannelStatus::Success, history.amount());
    history.charge(2, ChannelStatus::Success, history.amount());
    assert!(history.broken().contains(&1));
}

#[test]
fn rule_1_an_orphan_that_was_given_back_is_no_second_charge() {
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Void, true);
    history.record(Fact::Attempt(2));
    history.end(2, Ending::Succeeded, false);
    let amount = history.amount();
    history.begin_refund(111, amount, "");
    history.record(Fact::RefundEnd { ordinal: 111, ending: Ending::Succeeded });
    history.charge(1, ChannelStatus::Success, amount);
    history.charge(2, ChannelStatus::Success, amount);
    history.book(kind::REFUND, 1, 111, ChannelStatus::Success, amount);
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn rule_1_one_number_begun_twice() {
    let mut history = History::paid();
    history.begin_as(2, None);
    assert!(history.broken().contains(&1));
}

#[test]
fn rule_2_a_charge_without_a_record() {
    let mut history = History::new();
    history.charge(1, ChannelStatus::Success, 100);
    assert_eq!(history.broken(), [2]);
    let mut history = History::paid();
    history.charge(2, ChannelStatus::Declined, history.amount());
    assert_eq!(history.broken(), [2]);
}

#[test]
fn rule_2_a_charge_before_its_record_or_under_a_foreign_number() {
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Succeeded, false);
    let amount = history.amount();
    history.book_at(kind::CHARGE, (1, 0), ChannelStatus::Success, amount, AT_US / 1_000 - 5_000);
    assert_eq!(history.broken(), [2]);
    let mut history = History::new();
    history.begin_as(1, Some("00000000000000000000000000P01"));
    history.end(1, Ending::Declined, false);
    assert_eq!(history.broken(), [2]);
}

#[test]
fn rule_3_the_outcome_is_what_the_channel_did() {
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Succeeded, false);
    history.charge(1, ChannelStatus::Success, history.amount() + 1);
    assert_eq!(history.broken(), [3]);
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Declined, false);
    history.charge(1, ChannelStatus::Success, history.amount());
    history.told(OrderState::Failed);
    assert!(history.broken().contains(&3));
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Succeeded, false);
    history.told(OrderState::Paid);
    assert!(history.broken().contains(&3));
}

#[test]
fn rule_3_the_amount_is_what_was_asked() {
    let mut history = History::paid();
    let mut ack = history.ack(history.k, Code::Ok, OrderState::Paid.wire());
    ack.amount += 1;
    history.books.ack(&history.run, &ack);
    assert_eq!(history.broken(), [3]);
}

#[test]
fn rule_4_answers_never_change() {
    let mut history = History::paid();
    history.told(OrderState::Paid);
    history.told(OrderState::Closed);
    assert!(history.broken().contains(&4));
    let mut history = History::paid();
    history.told(OrderState::Paid);
    let requery = Ack { flags: flag::REQUERY, ..history.ack(history.k, Code::OrderNotFound, 0) };
    history.books.ack(&history.run, &requery);
    assert_eq!(history.broken(), [4]);
    let mut history = History::paid();
    let other = TransactionId::new(2, 9).as_u64();
    let ack = Ack { transaction: other, ..history.ack(history.k, Code::Ok, 3) };
    history.books.ack(&history.run, &ack);
    assert_eq!(history.broken(), [4]);
}

#[test]
fn rule_5_a_used_number_with_other_content_is_refused() {
    let mut history = History::paid();
    let conflict = (0..100_000).find(|n| history.run.plan.op(*n) == Op::Conflict).unwrap();
    let refused = history.ack(conflict, Code::IdempotencyConflict, 0);
    history.books.ack(&history.run, &refused);
    assert_eq!(history.books.violations().0, 0);
    let accepted = history.ack(conflict, Code::Ok, OrderState::Paid.wire());
    history.books.ack(&history.run, &accepted);
    assert_eq!(history.broken(), [5]);
}

#[test]
fn rule_6_nothing_acknowledged_is_lost() {
    let mut history = History::new();
    history.told(OrderState::Paid);
    assert_eq!(history.broken(), [6]);
    let mut history = History::paid();
    history.told_refund(RefundState::Success, 5);
    assert_eq!(history.broken(), [6]);
    let mut history = History::new();
    history.begin();
    history.charge(1, ChannelStatus::Success, history.amount());
    history.told(OrderState::Paid);
    assert!(history.broken().contains(&6));
    let mut history = History::new();
    history.begin_as(2, None);
    assert!(history.broken().contains(&6));
}

#[test]
fn rule_7_a_next_attempt_waits_for_the_last_ones_end() {
    let mut history = History::new();
    history.begin();
    history.record(Fact::Attempt(2));
    history.end(1, Ending::Declined, false);
    history.end(2, Ending::Succeeded, false);
    history.charge(2, ChannelStatus::Success, history.amount());
    assert!(history.broken().contains(&7));
}

#[test]
fn rule_8_refunds_and_reservations_stay_within_the_payment() {
    let mut history = History::paid();
    let amount = history.amount();
    history.refunded(1, "R1", amount - 5);
    history.begin_refund(2, 6, "R2");
    history.record(Fact::RefundEnd { ordinal: 2, ending: Ending::Declined });
    history.book(kind::REFUND, 1, 2, ChannelStatus::Declined, 6);
    assert_eq!(history.broken(), [8]);
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Declined, false);
    history.begin_refund(1, 5, "R1");
    history.record(Fact::RefundEnd { ordinal: 1, ending: Ending::Declined });
    assert_eq!(history.broken(), [8]);
}

#[test]
fn rule_9_a_refund_moves_money_once_and_as_logged() {
    let mut history = History::paid();
    history.refunded(1, "R1", 5);
    history.book(kind::REFUND, 1, 1, ChannelStatus::Success, 5);
    assert!(history.broken().contains(&9));
    let mut history = History::paid();
    history.book(kind::REFUND, 1, 1, ChannelStatus::Success, 5);
    assert!(history.broken().contains(&9));
    let mut history = History::paid();
    history.refunded(1, "R1", 5);
    history.begin_refund(2, 5, "R1");
    assert!(history.broken().contains(&9));
    let mut history = History::paid();
    history.begin_refund(1, 5, "R1");
    history.record(Fact::RefundEnd { ordinal: 1, ending: Ending::Declined });
    history.book(kind::REFUND, 1, 1, ChannelStatus::Success, 5);
    assert!(history.broken().contains(&9));
}

#[test]
fn rule_10_no_refund_after_a_reversal() {
    let mut history = History::paid();
    let amount = history.amount();
    history.begin_refund(100, amount - 10, "");
    history.begin_refund(1, 5, "R1");
    assert!(history.broken().contains(&10));
}

#[test]
fn rule_11_definitive_states_never_change() {
    let mut history = History::paid();
    history.end(1, Ending::Declined, false);
    assert_eq!(history.broken(), [11]);
    let mut history = History::paid();
    history.refunded(1, "R1", 5);
    history.record(Fact::RefundEnd { ordinal: 1, ending: Ending::Declined });
    assert_eq!(history.broken(), [11]);
}

#[test]
fn rules_16_and_17_everything_ends() {
    let mut history = History::new();
    history.begin();
    assert_eq!(history.broken(), [16]);
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Manual, false);
    assert_eq!(history.broken(), [16]);
    let mut history = History::paid();
    history.begin_refund(1, 5, "R1");
    assert_eq!(history.broken(), [17]);
    let mut history = History::new();
    history.begin();
    history.books.finish(false, EventsDue::None);
    assert_eq!(history.books.violations().0, 0, "unfinished is fine when not settled");
}

#[test]
fn rule_20_the_books_agree() {
    let mut history = History::paid();
    history.begin_refund(1, 5, "R1");
    history.record(Fact::RefundEnd { ordinal: 1, ending: Ending::Succeeded });
    assert_eq!(history.broken(), [9, 20]);
    let mut history = History::paid();
    history.refunded(1, "R1", 7);
    let sums = history.books.finish(true, EventsDue::All);
    assert_eq!((sums.log_refunded, sums.channel_refunded), (7, 7));
    assert_eq!(sums.log_paid, sums.channel_charged);
}

/// Ends as the switch prints them, and what they are: a cancel that came too late
/// for a charge, whose undoing the channel refused.
#[test]
fn a_late_charge_that_cannot_be_undone_is_paid_and_clean() {
    let mut history = History::new();
    let amount = history.amount();
    history.begin();
    history.record(Fact::Cancel { ends_payment: true });
    let (attempt, ending) = (1, Ending::Succeeded);
    history.record(Fact::End { attempt, ending, goes_on: false, said: State::Processing });
    history.begin_refund(100, amount, "");
    history.record(Fact::RefundEnd { ordinal: 100, ending: Ending::Declined });
    history.charge(1, ChannelStatus::Success, amount);
    history.book(kind::REFUND, 1, 100, ChannelStatus::Declined, amount);
    history.told(OrderState::Paid);
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn rule_3_what_was_accepted_is_what_was_asked_even_when_no_answer_came() {
    let mut history = History::new();
    let amount = history.amount() + 1;
    let number = history.run.plan.out_trade_no(history.k);
    let mch_id = *history.run.merchant(history.k);
    let own = charge_number(&history.run.digest(history.k), 1);
    let begin = |amount, currency| Fact::Begin {
        mch_id: mch_id.as_str(),
        out_trade_no: number.as_str(),
        charge_no: own.as_str(),
        amount,
        currency,
        expire_ms: 0,
    };
    history.record(begin(amount, "CNY"));
    history.end(1, Ending::Succeeded, false);
    history.charge(1, ChannelStatus::Success, amount);
    let unknown = Ack { flags: flag::UNKNOWN, ..history.ack(history.k, Code::Ok, 0) };
    history.books.ack(&history.run, &unknown);
    assert_eq!(history.broken(), [3]);
    let mut history = History::new();
    let amount = history.amount();
    history.record(begin(amount, "USD"));
    history.end(1, Ending::Declined, false);
    history.told(OrderState::Failed);
    assert_eq!(history.broken(), [3]);
}

#[test]
fn rule_6_money_that_was_said_to_be_given_back_is_in_the_log() {
    let mut history = History::paid();
    history.refunded(1, "R1", 7);
    let paid = history.ack(history.k, Code::Ok, OrderState::Paid.wire());
    let (fits, more) = (Ack { refunded: 7, ..paid }, Ack { refunded: 8, ..paid });
    history.books.ack(&history.run, &fits);
    assert_eq!(history.books.violations().0, 0);
    history.books.ack(&history.run, &more);
    assert_eq!(history.broken(), [6]);
}

#[test]
fn rule_10_no_refund_of_a_cancelled_payment_and_no_reversal_behind_a_refund() {
    let mut history = History::new();
    let amount = history.amount();
    history.begin();
    history.record(Fact::Cancel { ends_payment: true });
    history.end(1, Ending::Succeeded, false);
    history.charge(1, ChannelStatus::Success, amount);
    history.refunded(1, "R1", 5);
    assert_eq!(history.broken(), [10]);
    let mut history = History::paid();
    history.begin_refund(1, 5, "R1");
    history.record(Fact::RefundEnd { ordinal: 1, ending: Ending::Declined });
    let amount = history.amount();
    history.refunded(100, "", amount);
    assert_eq!(history.broken(), [10]);
}

#[test]
fn a_refund_after_another_and_a_reversal_of_a_paid_payment_are_clean() {
    let mut history = History::paid();
    history.refunded(1, "R1", 5);
    history.refunded(2, "R2", 6);
    assert_eq!(history.broken(), CLEAN);
    let mut history = History::paid();
    let amount = history.amount();
    history.refunded(100, "", amount);
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn rule_12_a_term_never_falls() {
    let line = |index, term| {
        let fact = Fact::Other;
        Line { shard: 2, index, term, record: 0, at_us: AT_US, sequence: 0, fact, card: false }
    };
    let mut history = History::new();
    history.records = 3;
    for (index, term) in [(1, 1), (2, 3), (3, 3)] {
        history.books.record(&line(index, term));
    }
    assert_eq!(history.books.violations().0, 0);
    history.books.record(&line(4, 2));
    history.books.record(&line(5, 3));
    assert_eq!(history.books.violations().0, 1);
    assert_eq!(history.broken(), [12]);
}

#[test]
fn rule_13_nobody_pays_who_may_not() {
    let limits = Limits { pay_per_minute: 60, burst: 5, daily_cap: 0, single_max: 0 };
    for (status, expected) in [(Status::Active, CLEAN), (Status::Shut, vec![13])] {
        let mut history = History::new();
        let mch_id = *history.run.merchant(history.k);
        let fact = Fact::Merchant { mch_id: mch_id.as_str(), status, limits };
        let (shard, index, at_us) = (2, 1, AT_US - 1);
        let record =
            Line { shard, index, term: 1, record: 0, at_us, sequence: 0, fact, card: false };
        history.books.record(&record);
        history.records = 1;
        history.begin();
        history.end(1, Ending::Declined, false);
        assert_eq!(history.broken(), expected);
    }
}

#[test]
fn rule_15_no_card_number_in_a_text() {
    let mut history = History::paid();
    history.records += 1;
    let (index, fact) = (history.records, Fact::Other);
    let line =
        Line { shard: 2, index, term: 1, record: 0, at_us: AT_US, sequence: 1, fact, card: true };
    history.books.record(&line);
    assert_eq!(history.broken(), [15]);
}

#[test]
fn rule_18_no_attempt_stays_open_behind_a_final_payment() {
    let mut history = History::paid();
    history.record(Fact::Attempt(2));
    let broken = history.broken();
    assert!(broken.contains(&18) && broken.contains(&7), "{broken:?}");
}

#[test]
fn rule_19_a_charge_of_a_void_attempt_is_given_back() {
    let mut history = History::new();
    let amount = history.amount();
    history.begin();
    history.end(1, Ending::Void, false);
    history.charge(1, ChannelStatus::Success, amount);
    let broken = history.broken();
    assert!(broken.contains(&19), "{broken:?}");
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Void, false);
    history.charge(1, ChannelStatus::Success, amount);
    history.begin_refund(111, amount, "");
    history.record(Fact::RefundEnd { ordinal: 111, ending: Ending::Succeeded });
    history.book(kind::REFUND, 1, 111, ChannelStatus::Success, amount);
    assert_eq!(history.broken(), CLEAN);
}

#[test]
fn rule_13_a_bad_signature_leaves_no_payment() {
    let mut history = History::of(all_kinds());
    let bad = (0..100_000).find(|n| history.run.plan.op(*n) == Op::BadSignature).unwrap();
    let refused = Ack { transaction: 0, ..history.ack(bad, Code::BadSignature, 0) };
    history.books.ack(&history.run, &refused);
    assert_eq!(history.books.violations().0, 0);
    history.k = bad;
    history.begin();
    history.end(1, Ending::Declined, false);
    history.books.ack(&history.run, &refused);
    assert_eq!(history.broken(), [13]);
}

#[test]
fn a_close_that_came_too_late_tells_the_truth() {
    let mut history = History::of(all_kinds());
    let closes = |n: &u64| {
        history.run.plan.op(*n) == Op::Close
            && history.run.plan.op(history.run.plan.target(*n)) == Op::Pay
    };
    let close = (0..100_000).find(closes).unwrap();
    history.k = history.run.plan.target(close);
    history.begin();
    history.end(1, Ending::Succeeded, false);
    history.charge(1, ChannelStatus::Success, history.amount());
    let early = Ack { transaction: 0, ..history.ack(close, Code::OrderNotFound, 0) };
    history.told(OrderState::Paid);
    history.books.ack(&history.run, &early);
    let late = history.ack(close, Code::OrderPaid, OrderState::Paid.wire());
    history.books.ack(&history.run, &late);
    assert_eq!(history.books.violations().0, 0);
    let mut lied = History::of(all_kinds());
    lied.k = history.k;
    lied.begin();
    lied.end(1, Ending::Declined, false);
    lied.books.ack(&lied.run, &late);
    assert!(lied.broken().contains(&6));
    assert_eq!(history.broken(), CLEAN);
}
