//! Rule 14: outcome events against the log.

use super::*;

impl History {
    /// An acknowledged payment of a run that listened for events.
    fn notified() -> Self {
        let mut history = Self::of(Params { notify: true, ..params() });
        history.begin();
        history.end(1, Ending::Succeeded, false);
        history.charge(1, ChannelStatus::Success, history.amount());
        history.told(OrderState::Paid);
        history
    }

    /// Event `sequence` of the payment, under an id of its own.
    fn event(&self, sequence: u16) -> Ack {
        let ack = self.ack(self.k, Code::Ok, OrderState::Paid.wire());
        Ack { code: sequence, refunded: 70 + i64::from(sequence), flags: flag::EVENT, ..ack }
    }

    /// Event `sequence`, about the refund that the plan asks for.
    fn refund_event(&self, sequence: u16) -> Ack {
        let (amount, state) = (self.refund_amount(), RefundState::Success.wire());
        let flags = flag::EVENT | flag::REFUND;
        Ack { n: self.refund, amount, state, flags, ..self.event(sequence) }
    }

    fn with(mut self, events: &[Ack]) -> Vec<u8> {
        events.iter().for_each(|event| self.books.ack(&self.run, event));
        self.broken()
    }
}

#[test]
fn rule_14_events_that_come_twice_or_in_another_order_are_clean() {
    let mut history = History::notified();
    let (number, amount) = (history.refund_number(), history.refund_amount());
    history.refunded(1, &number, amount);
    let events = [history.refund_event(2), history.event(1), history.event(1)];
    assert_eq!(history.with(&events), CLEAN);
    let mut reversed = History::notified();
    let amount = reversed.amount();
    reversed.refunded(100, "", amount);
    let own = Ack { n: reversed.k, amount, ..reversed.refund_event(2) };
    let events = [reversed.event(1), own];
    assert_eq!(reversed.with(&events), CLEAN);
}

#[test]
fn rule_14_every_final_payment_has_its_event_once_the_end_was_waited_for() {
    assert_eq!(History::notified().broken(), [14]);
    let mut early = History::notified();
    early.books.finish(true, EventsDue::None);
    assert_eq!(early.books.violations().0, 0);
    // Nobody listened.
    let mut silent = History::paid();
    silent.told(OrderState::Paid);
    assert_eq!(silent.broken(), CLEAN);
}

#[test]
fn rule_14_a_final_refund_has_its_event_when_the_sites_hold_none_back() {
    let with = |refund: bool, due| {
        let mut history = History::notified();
        let (number, amount) = (history.refund_number(), history.refund_amount());
        history.refunded(1, &number, amount);
        let (first, second) = (history.event(1), history.refund_event(2));
        history.books.ack(&history.run, &first);
        if refund {
            history.books.ack(&history.run, &second);
        }
        history.books.finish(true, due);
        history.books.violations().0
    };
    assert_eq!((with(true, EventsDue::All), with(false, EventsDue::All)), (0, 1));
    assert_eq!(with(false, EventsDue::Payments), 0, "it may have ended after the run");
}

#[test]
fn rule_14_a_gap_between_events_is_found() {
    let mut history = History::notified();
    let (number, amount) = (history.refund_number(), history.refund_amount());
    history.refunded(1, &number, amount);
    let events = [history.refund_event(2)];
    assert_eq!(history.with(&events), [14]);
    let history = History::notified();
    let events = [Ack { code: 0, ..history.event(1) }];
    assert_eq!(history.with(&events), [14]);
}

#[test]
fn rule_14_an_event_says_what_the_log_says() {
    let wrong: [fn(&mut Ack); 6] = [
        |event| event.state = OrderState::Failed.wire(),
        |event| event.state = OrderState::Processing.wire(),
        |event| event.amount += 1,
        |event| event.transaction += 1,
        |event| event.flags |= flag::ODD,
        |event| event.flags |= flag::REFUND,
    ];
    for (at, wrong) in wrong.into_iter().enumerate() {
        let history = History::notified();
        let mut event = history.event(1);
        wrong(&mut event);
        assert_eq!(history.with(&[event]), [14], "{at}");
    }
    for (state, more) in [(RefundState::Failed, 0), (RefundState::Success, 1)] {
        let mut history = History::notified();
        let (number, amount) = (history.refund_number(), history.refund_amount());
        history.refunded(1, &number, amount);
        let event = history.refund_event(2);
        let event = Ack { state: state.wire(), amount: event.amount + more, ..event };
        let events = [history.event(1), event];
        assert_eq!(history.with(&events), [14]);
    }
}

#[test]
fn rule_14_an_id_stands_for_one_outcome_and_an_outcome_for_one_id() {
    let history = History::notified();
    let events = [history.event(1), Ack { refunded: 99, ..history.event(1) }];
    assert_eq!(history.with(&events), [14]);
    let mut history = History::notified();
    let (number, amount) = (history.refund_number(), history.refund_amount());
    history.refunded(1, &number, amount);
    let events = [history.event(1), Ack { refunded: 71, ..history.refund_event(2) }];
    assert_eq!(history.with(&events), [14]);
    // Of a payment that never was.
    let mut history = History::of(Params { notify: true, ..params() });
    let event = history.event(1);
    history.books.ack(&history.run, &event);
    assert_eq!(history.broken(), [14]);
}

/// A payment that was charged although it was cancelled; the channel did not give the
/// money back. All events of it came that are due.
fn refused_cancel() -> (History, Vec<Ack>) {
    let mut history = History::of(Params { notify: true, ..params() });
    let amount = history.amount();
    history.begin();
    history.record(Fact::Cancel { ends_payment: true });
    let (attempt, ending) = (1, Ending::Succeeded);
    history.record(Fact::End { attempt, ending, goes_on: false, said: State::Processing });
    history.charge(1, ChannelStatus::Success, amount);
    history.begin_refund(100, amount, "");
    history.record(Fact::RefundEnd { ordinal: 100, ending: Ending::Declined });
    history.book(kind::REFUND, 1, 100, ChannelStatus::Declined, amount);
    history.told(OrderState::Paid);
    let (number, amount) = (history.refund_number(), history.refund_amount());
    history.refunded(1, &number, amount);
    let events = vec![history.event(1), history.refund_event(2)];
    (history, events)
}

#[test]
fn rule_14_what_undoes_a_cancelled_payment_has_no_event() {
    let (history, events) = refused_cancel();
    assert_eq!(history.with(&events), CLEAN);
    let (history, mut events) = refused_cancel();
    let (n, amount, state) = (history.k, history.amount(), RefundState::Failed.wire());
    events.push(Ack { n, amount, state, ..history.refund_event(3) });
    assert_eq!(history.with(&events), [14]);
    // What is due is looked for all the same.
    for missing in [0, 1] {
        let (history, mut events) = refused_cancel();
        events.remove(missing);
        events[0].code = 1;
        assert_eq!(history.with(&events), [14], "{missing}");
    }
}

#[test]
fn rule_14_one_event_does_not_stand_for_another() {
    // Two of the payment, none of its refund.
    let mut history = History::notified();
    let (number, amount) = (history.refund_number(), history.refund_amount());
    history.refunded(1, &number, amount);
    let events = [history.event(1), history.event(2)];
    assert_eq!(history.with(&events), [14]);
    // Two of one outcome.
    let history = History::notified();
    let events = [history.event(1), history.event(2)];
    assert_eq!(history.with(&events), [14]);
}

#[test]
fn rule_14_what_ended_after_its_run_has_an_event_only_where_the_sites_hold_none_back() {
    let found = |later: bool, due| {
        let mut history = History::of(Params { notify: true, ..params() });
        history.begin();
        history.end(1, Ending::Succeeded, false);
        history.charge(1, ChannelStatus::Success, history.amount());
        let flags = if later { flag::REQUERY } else { 0 };
        let ack = Ack { flags, ..history.ack(history.k, Code::Ok, OrderState::Paid.wire()) };
        let unknown = Ack { flags: flag::UNKNOWN, ..history.ack(history.k, Code::Ok, 0) };
        history.books.ack(&history.run, &unknown);
        history.books.ack(&history.run, &ack);
        history.books.finish(true, due);
        history.books.violations().0
    };
    assert_eq!((found(true, EventsDue::Payments), found(false, EventsDue::Payments)), (0, 1));
    assert_eq!((found(true, EventsDue::All), found(false, EventsDue::All)), (1, 1));
}
