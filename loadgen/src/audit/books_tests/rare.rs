//! Histories that are right and out of the ordinary, which the audit must pass, each
//! beside what is wrong and looks like it.

use super::*;
use crate::audit::log;

impl History {
    /// Takes a record as the switch prints it; its place is added.
    fn line(&mut self, rest: &str) {
        self.records += 1;
        let (index, at_us) = (self.records, AT_US + self.records);
        let text = format!(
            r#"{{"shard":2,"index":{index},"term":1,"record":0,"at_us":{at_us},"sequence":1,{rest}}}"#
        );
        self.books.record(&log::parse(&text).unwrap());
    }

    /// Attempts up to `last` have begun, all before it declined by log and channel.
    fn tried(last: u8) -> Self {
        let mut history = Self::new();
        history.begin();
        for attempt in 1..last {
            history.end(attempt, Ending::Declined, true);
            history.record(Fact::Attempt(attempt + 1));
            history.charge(attempt, ChannelStatus::Declined, history.amount());
        }
        history
    }

    /// As [`Self::tried`], the last one paid.
    fn paid_by(last: u8) -> Self {
        let mut history = Self::tried(last);
        history.end(last, Ending::Succeeded, false);
        history.charge(last, ChannelStatus::Success, history.amount());
        history.told(OrderState::Paid);
        history
    }
}

#[test]
fn as_many_attempts_as_the_rules_allow_are_clean() {
    for last in [4, 5, 6, 16] {
        assert_eq!(History::paid_by(last).broken(), CLEAN, "{last}");
    }
}

#[test]
fn late_attempts_are_held_to_the_rules_of_early_ones() {
    let broken = |doctor: fn(&mut History)| {
        let mut history = History::paid_by(6);
        doctor(&mut history);
        history.broken()
    };
    // Declined attempt 5 was charged after all, and again under the number of 6.
    let found = broken(|history| history.charge(5, ChannelStatus::Success, history.amount()));
    assert!(found.contains(&1) && found.contains(&19), "{found:?}");
    assert_eq!(broken(|history| history.charge(7, ChannelStatus::Declined, 1)), [2]);
    assert_eq!(broken(|history| history.end(5, Ending::Succeeded, false)), [11]);
    assert_eq!(broken(|history| history.end(7, Ending::Declined, false)), [2]);
    let mut history = History::tried(6);
    history.end(6, Ending::Succeeded, false);
    history.told(OrderState::Paid);
    assert_eq!(history.broken(), [3, 20], "nothing was charged");
    let mut history = History::tried(5);
    history.record(Fact::Attempt(6));
    let found = history.broken();
    assert!(found.contains(&7), "{found:?}");
    let mut history = History::tried(16);
    history.end(16, Ending::Declined, true);
    history.record(Fact::Attempt(17));
    let found = history.broken();
    assert!(found.contains(&7), "{found:?}");
}

#[test]
fn an_operators_word_about_a_cancelled_payment_is_undone() {
    const MOVED: &str = r#""kind":"decided","ordinal":1,"refund":false,"success":true,"operator":"a","second":"b","note":"""#;
    let decided = |cancelled: bool| {
        let mut history = History::new();
        history.begin();
        history.end(1, Ending::Manual, false);
        if cancelled {
            history.record(Fact::Cancel { ends_payment: true });
        }
        history.line(MOVED);
        history.charge(1, ChannelStatus::Success, history.amount());
        history
    };
    let mut closed = decided(true);
    let amount = closed.amount();
    closed.refunded(100, "", amount);
    closed.told(OrderState::Closed);
    assert_eq!(closed.broken(), CLEAN);
    let mut refused = decided(true);
    refused.begin_refund(100, amount, "");
    refused.record(Fact::RefundEnd { ordinal: 100, ending: Ending::Declined });
    refused.book(kind::REFUND, 1, 100, ChannelStatus::Declined, amount);
    refused.told(OrderState::Paid);
    assert_eq!(refused.broken(), CLEAN);
    let mut paid = decided(false);
    paid.told(OrderState::Paid);
    assert_eq!(paid.broken(), CLEAN);
    // The money went back, and the gateway was told that it is paid.
    let mut lied = decided(true);
    lied.refunded(100, "", amount);
    lied.told(OrderState::Paid);
    assert_eq!(lied.broken(), [6]);
    // Nothing ever undid it.
    assert_eq!(decided(true).broken(), [16]);
}

#[test]
fn rule_10_a_refund_behind_a_refused_reversal_is_clean() {
    let reversed = |cancelled: bool, ending: Option<Ending>| {
        let mut history = History::new();
        let amount = history.amount();
        history.begin();
        if cancelled {
            history.record(Fact::Cancel { ends_payment: true });
        }
        let (attempt, succeeded) = (1, Ending::Succeeded);
        let said = if cancelled { State::Processing } else { State::Paid };
        history.record(Fact::End { attempt, ending: succeeded, goes_on: false, said });
        history.charge(1, ChannelStatus::Success, amount);
        history.begin_refund(100, amount, "");
        if let Some(ending) = ending {
            history.record(Fact::RefundEnd { ordinal: 100, ending });
            let succeeded = ending == Ending::Succeeded;
            let status = if succeeded { ChannelStatus::Success } else { ChannelStatus::Declined };
            history.book(kind::REFUND, 1, 100, status, amount);
        }
        let (number, amount) = (history.refund_number(), history.refund_amount());
        history.refunded(1, &number, amount);
        history.told_refund(RefundState::Success, amount);
        history.broken()
    };
    for cancelled in [false, true] {
        assert_eq!(reversed(cancelled, Some(Ending::Declined)), CLEAN, "{cancelled}");
        // It may still go through; or it did.
        for ending in [None, Some(Ending::Manual), Some(Ending::Succeeded)] {
            let found = reversed(cancelled, ending);
            assert!(found.contains(&10), "{cancelled} {ending:?}: {found:?}");
        }
    }
}

/// A payment that expires 60 s after it began, by the stamps of its records.
struct Expiring(History);

impl Expiring {
    const EXPIRE_MS: u64 = AT_US / 1_000 + 60_000;

    fn new() -> Self {
        let mut history = History::new();
        let (mch_id, amount) = (*history.run.merchant(history.k), history.amount());
        let number = history.run.plan.out_trade_no(history.k);
        let charge = charge_number(&history.run.digest(history.k), 1);
        let expire_ms = Self::EXPIRE_MS;
        history.line(&format!(
            r#""kind":"begin","mch_id":"{mch_id}","out_trade_no":"{number}","charge_no":"{}","amount":{amount},"currency":"CNY","time_expire_ms":{expire_ms}"#,
            charge.as_str()
        ));
        Self(history)
    }

    /// A record, so many milliseconds before or after it expires.
    fn at(&mut self, ms: i64, rest: &str) {
        let History { records, books, .. } = &mut self.0;
        *records += 1;
        let at_us = (Self::EXPIRE_MS.checked_add_signed(ms).unwrap()) * 1_000;
        let text = format!(
            r#"{{"shard":2,"index":{records},"term":1,"record":0,"at_us":{at_us},"sequence":1,{rest}}}"#
        );
        books.record(&log::parse(&text).unwrap());
    }

    /// The rules found broken when the gateway was told this.
    fn told(mut self, state: OrderState) -> Vec<u8> {
        self.0.told(state);
        self.0.broken()
    }
}

#[test]
fn what_was_never_charged_is_closed_once_it_has_expired() {
    const VOID: &str =
        r#""kind":"end","attempt":1,"ending":"void","goes_on":false,"order_state":"CLOSED""#;
    const DECLINED: &str =
        r#""kind":"end","attempt":1,"ending":"declined","goes_on":false,"order_state":"FAILED""#;
    let ended = |ms: i64, rest: &str, told: OrderState| {
        let mut payment = Expiring::new();
        payment.at(ms, rest);
        payment.told(told)
    };
    for ms in [0, 5_000] {
        assert_eq!(ended(ms, VOID, OrderState::Closed), CLEAN);
        assert_eq!(ended(ms, VOID, OrderState::Failed), [6]);
        assert_eq!(ended(ms, DECLINED, OrderState::Failed), CLEAN);
    }
    assert_eq!(ended(-1, DECLINED, OrderState::Failed), CLEAN);
    assert_eq!(ended(-1, &VOID.replace("CLOSED", "FAILED"), OrderState::Failed), CLEAN);
    assert_eq!(ended(-1, VOID, OrderState::Closed), [3, 6], "it had not expired");
    // An operator's word fails it, expired or not.
    let word = r#""kind":"decided","ordinal":1,"refund":false,"success":false,"operator":"a","second":"b","note":"""#;
    assert_eq!(ended(5_000, word, OrderState::Failed), CLEAN);
}

#[test]
fn a_route_that_ends_after_expiry_is_closed_when_nothing_was_sent() {
    let ended = |ms: i64, ending: &str, told: OrderState| {
        let mut payment = Expiring::new();
        let goes_on = r#""goes_on":true,"order_state":"PROCESSING""#;
        payment.at(-10, &format!(r#""kind":"end","attempt":1,"ending":"{ending}",{goes_on}"#));
        payment.at(ms, r#""kind":"route_end","attempt":1,"ending":"manual""#);
        payment.told(told)
    };
    assert_eq!(ended(0, "void", OrderState::Closed), CLEAN);
    assert_eq!(ended(0, "reversed", OrderState::Closed), CLEAN);
    assert_eq!(ended(0, "declined", OrderState::Failed), CLEAN);
    assert_eq!(ended(-1, "void", OrderState::Failed), CLEAN);
    assert_eq!(ended(0, "void", OrderState::Failed), [6]);
    assert_eq!(ended(-1, "void", OrderState::Closed), [6]);
}

#[test]
fn rule_1_an_attempt_begins_once_and_rule_11_not_behind_the_end() {
    let mut history = History::tried(3);
    history.end(3, Ending::Declined, true);
    history.charge(3, ChannelStatus::Declined, history.amount());
    history.record(Fact::Attempt(3));
    history.record(Fact::RouteEnd { said: State::None });
    assert_eq!(history.broken(), [1]);
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Declined, false);
    history.charge(1, ChannelStatus::Declined, history.amount());
    history.told(OrderState::Failed);
    history.record(Fact::Attempt(2));
    history.end(2, Ending::Declined, false);
    assert_eq!(history.broken(), [11], "even when nothing came of it");
}

#[test]
fn rule_2_a_later_attempts_charge_does_not_come_before_its_own_record() {
    // The second attempt begins 60 s after the payment.
    let charged = |before_ms: u64| {
        let mut payment = Expiring::new();
        let goes_on = r#""goes_on":true,"order_state":"PROCESSING""#;
        payment.at(0, &format!(r#""kind":"end","attempt":1,"ending":"declined",{goes_on}"#));
        payment.at(0, r#""kind":"attempt","attempt":2"#);
        payment.at(0, r#""kind":"end","attempt":2,"ending":"succeeded","order_state":"PAID""#);
        let Expiring(mut history) = payment;
        let (amount, at_ms) = (history.amount(), Expiring::EXPIRE_MS - before_ms);
        history.charge(1, ChannelStatus::Declined, amount);
        history.book_at(kind::CHARGE, (2, 0), ChannelStatus::Success, amount, at_ms);
        history.broken()
    };
    assert_eq!((charged(0), charged(900)), (CLEAN, CLEAN));
    assert_eq!(charged(1_100), [2]);
}

/// A void attempt was charged after all, and the log says that this is given back.
fn orphan(given_back: i64) -> History {
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Void, false);
    history.begin_refund(111, given_back, "");
    history.record(Fact::RefundEnd { ordinal: 111, ending: Ending::Succeeded });
    history
}

#[test]
fn rules_8_and_19_an_orphan_goes_back_as_a_whole_and_only_if_it_was_charged() {
    let whole = History::new().amount();
    let broken = |amount: i64, charged: bool| {
        let mut history = orphan(amount);
        if charged {
            history.charge(1, ChannelStatus::Success, whole);
        } else {
            history.charge(1, ChannelStatus::Declined, whole);
        }
        history.book(kind::REFUND, 1, 111, ChannelStatus::Success, amount);
        history.broken()
    };
    assert_eq!(broken(whole, true), CLEAN);
    let part = broken(whole - 1, true);
    assert!(part.contains(&19) && part.contains(&20), "{part:?}");
    assert_eq!(broken(whole + 1, true), [8]);
    assert_eq!(broken(whole, false), [8]);
}

#[test]
fn rule_8_only_an_orphan_is_given_back_as_one() {
    let mut history = History::paid();
    let amount = history.amount();
    history.begin_refund(111, amount, "");
    assert_eq!(history.broken(), [8, 17]);
    let mut history = History::paid();
    history.refunded(1, "R1", -5);
    let found = history.broken();
    assert!(found.contains(&8), "{found:?}");
}

#[test]
fn rule_1_one_number_is_charged_once() {
    let mut history = History::paid();
    history.charge(1, ChannelStatus::Success, history.amount());
    assert_eq!(history.broken(), [1]);
}

#[test]
fn rule_9_a_refund_is_of_its_payments_charge_and_currency() {
    let broken = |doctor: fn(&mut Entry)| {
        let mut history = History::paid();
        history.begin_refund(1, 5, "R1");
        history.record(Fact::RefundEnd { ordinal: 1, ending: Ending::Succeeded });
        let digest = history.run.digest(history.k);
        let mut entry = Entry {
            operation: kind::REFUND,
            charge: Number { digest, kind: b'P', ordinal: 1 },
            refund: Some(Number { digest, kind: b'R', ordinal: 1 }),
            status: ChannelStatus::Success,
            detail: 0,
            amount: 5,
            currency: *b"CNY",
            at_ms: AT_US / 1_000 + 1,
        };
        doctor(&mut entry);
        history.books.entry(&entry);
        history.broken()
    };
    assert_eq!(broken(|_| {}), CLEAN);
    assert_eq!(broken(|entry| entry.currency = *b"USD"), [9]);
    let foreign = |entry: &mut Entry| {
        entry.refund = Some(Number { digest: [7; 16], kind: b'R', ordinal: 1 });
    };
    assert_eq!(broken(foreign), [9]);
}

#[test]
fn rules_4_and_6_what_a_refusal_tells_of_a_payment_is_held_to_the_log() {
    let mut history = History::of(all_kinds());
    let reverses = |n: &u64| history.run.plan.op(*n) == Op::Reverse;
    let reverse = (0..100_000).find(reverses).unwrap();
    history.k = history.run.plan.target(reverse);
    history.begin();
    history.end(1, Ending::Succeeded, false);
    history.charge(1, ChannelStatus::Success, history.amount());
    history.told(OrderState::Paid);
    let refused = |state: OrderState| history.ack(reverse, Code::HasRefund, state.wire());
    let (right, wrong) = (refused(OrderState::Paid), refused(OrderState::Closed));
    let nothing = Ack { transaction: 0, amount: 0, ..refused(OrderState::None) };
    history.books.ack(&history.run, &right);
    history.books.ack(&history.run, &nothing);
    assert_eq!(history.books.violations().0, 0);
    history.books.ack(&history.run, &wrong);
    let found = history.broken();
    assert!(found.contains(&4) && found.contains(&6), "{found:?}");
}

#[test]
fn an_orphan_that_is_on_its_way_back_is_clean_until_everything_had_time_to_end() {
    let found = |refund: bool, ending: Option<Ending>, settled: bool| {
        let mut history = History::new();
        let amount = history.amount();
        history.begin();
        history.end(1, Ending::Void, true);
        history.record(Fact::Attempt(2));
        history.end(2, Ending::Succeeded, false);
        if refund {
            history.begin_refund(111, amount, "");
        }
        if let Some(ending) = ending {
            history.record(Fact::RefundEnd { ordinal: 111, ending });
        }
        history.charge(1, ChannelStatus::Success, amount);
        history.charge(2, ChannelStatus::Success, amount);
        history.books.finish(settled, EventsDue::None);
        history.books.violations().0 > 0
    };
    let manual = Some(Ending::Manual);
    assert!(!found(true, None, false) && !found(true, manual, false));
    assert!(found(true, None, true) && found(true, manual, true));
    // Nobody saw it, or the channel kept the money.
    assert!(found(false, None, false) && found(true, Some(Ending::Declined), false));
}

#[test]
fn rule_3_the_log_says_what_its_records_make() {
    let ended = |cancelled: bool, ending: Ending, said: State| {
        let mut history = History::new();
        history.begin();
        if cancelled {
            history.record(Fact::Cancel { ends_payment: true });
        }
        history.record(Fact::End { attempt: 1, ending, goes_on: false, said });
        let status = match ending {
            Ending::Succeeded => ChannelStatus::Success,
            Ending::Declined => ChannelStatus::Declined,
            _ => ChannelStatus::Reversed,
        };
        history.charge(1, status, history.amount());
        history.broken()
    };
    // Nobody was told.
    for (cancelled, ending, right) in [
        (false, Ending::Succeeded, State::Paid),
        (false, Ending::Declined, State::Failed),
        (false, Ending::Reversed, State::Failed),
        (true, Ending::Declined, State::Closed),
        (true, Ending::Reversed, State::Closed),
    ] {
        assert_eq!(ended(cancelled, ending, right), CLEAN, "{cancelled} {ending:?}");
        for wrong in [State::Paid, State::Failed, State::Closed, State::Manual] {
            if wrong != right {
                assert_eq!(ended(cancelled, ending, wrong), [3], "{cancelled} {ending:?}");
            }
        }
    }
    let mut history = History::new();
    history.begin();
    history.end(1, Ending::Void, true);
    history.record(Fact::RouteEnd { said: State::Paid });
    assert_eq!(history.broken(), [3]);
}

#[test]
fn rule_2_nothing_is_reversed_without_a_cancel_on_record() {
    let reversed = |cancel: Option<bool>| {
        let mut history = History::new();
        history.begin();
        if let Some(ends_payment) = cancel {
            history.record(Fact::Cancel { ends_payment });
        }
        history.end(1, Ending::Reversed, false);
        history.charge(1, ChannelStatus::Success, history.amount());
        history.book(kind::REVERSE, 1, 0, ChannelStatus::Reversed, history.amount());
        history.broken()
    };
    // The merchant wished it, or the switch gave up.
    assert_eq!((reversed(Some(true)), reversed(Some(false))), (CLEAN, CLEAN));
    assert_eq!(reversed(None), [2]);
}

#[test]
fn rule_2_a_refund_does_not_come_before_its_record() {
    // It begins 60 s after the payment.
    let refunded = |before_ms: u64| {
        let mut payment = Expiring::new();
        payment.at(0, r#""kind":"end","attempt":1,"ending":"succeeded","order_state":"PAID""#);
        payment.at(0, r#""kind":"refund","ordinal":1,"attempt":1,"amount":5,"out_refund_no":"R""#);
        payment.at(0, r#""kind":"refund_end","ordinal":1,"ending":"succeeded""#);
        let Expiring(mut history) = payment;
        let (amount, at_ms) = (history.amount(), Expiring::EXPIRE_MS - before_ms);
        history.charge(1, ChannelStatus::Success, amount);
        history.book_at(kind::REFUND, (1, 1), ChannelStatus::Success, 5, at_ms);
        history.broken()
    };
    assert_eq!((refunded(0), refunded(900)), (CLEAN, CLEAN));
    assert_eq!(refunded(1_100), [2]);
}
