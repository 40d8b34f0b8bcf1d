//! Late statements (C8).

use super::{has_alarm, in_doubt, world_of};
use crate::engine::input::{Evidence, Input, Operation, OperationId};
use crate::engine::order::{AttemptState, RefundKind};
use crate::engine::output::{AlarmKind, Send};
use crate::engine::tests::driver::*;
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState, Reason, RefundState};

#[test]
fn c8_late_success_settles_doubt() {
    let mut world = World::new();
    let (asked, send) = in_doubt(&mut world, "a");
    world.answer(&send, ChannelStatus::Success);
    assert_eq!(world.order_reply(asked).expect("answered").state, OrderState::Paid);
    assert_eq!(world.engine.stats().in_doubt, 0);
}

#[test]
fn c8_late_success_while_reversing_does_not_stop_the_reversal() {
    let mut world = World::new();
    let send = world.charged("a", 100);
    let closing = world.close("a");
    world.settle();
    let reverse = world.sent(Operation::Reverse);
    world.answer(&send, ChannelStatus::Success);
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Reversing);
    world.answer(&reverse, ChannelStatus::Reversed);
    let reply = world.order_reply(closing).expect("answered");
    assert_eq!((reply.code, reply.state), (Code::Ok, OrderState::Closed));
    // Its residue is verified by one query and changes nothing.
    world.answer(&send, ChannelStatus::Success);
    world.sent(Operation::Query);
    world.answer(&send, ChannelStatus::Success);
    world.nothing_sent();
    assert_eq!(world.view("a").state, OrderState::Closed);
}

#[test]
fn c8_an_orphan_success_is_given_back_once_and_the_outcome_stays() {
    let mut world = World::new();
    let send = world.charged("a", 100);
    world.answer_as(send.operation, &send, ChannelStatus::Declined, 1);
    world.answer(&send, ChannelStatus::Success);
    world.answer(&send, ChannelStatus::Success);
    assert!(has_alarm(&world, AlarmKind::OrphanSuccess));
    let refund = world.sent(Operation::Refund);
    world.nothing_sent();
    let number = refund.request.refund_no.expect("numbered");
    assert_eq!(&number.as_str()[26..27], "X");
    world.answer(&refund, ChannelStatus::Success);
    let view = world.view("a");
    assert_eq!((view.state, view.refunded), (OrderState::Failed, 0));
    assert_eq!(
        (view.refunds[0].kind, view.refunds[0].state),
        (RefundKind::Orphan, RefundState::Success)
    );
    assert_eq!(world.engine.stats().open, 0);
    world.assert_follower_agrees();
}

#[test]
fn c8_a_success_that_crosses_a_proposed_decline_is_not_lost() {
    let mut world = World::new();
    let send = world.charged("a", 100);
    let mut declined = success(&send, 0);
    if let Evidence::Answered { status, .. } = &mut declined {
        *status = ChannelStatus::Declined;
    }
    world.give(Input::Evidence { operation: send.operation, evidence: declined });
    world.give(Input::Evidence { operation: send.operation, evidence: success(&send, 100) });
    world.settle();
    assert_eq!(world.sent(Operation::Refund).request.amount.minor(), 100);
}

#[test]
fn c8_a_contradicted_success_alarms_and_is_asked_once() {
    let mut world = World::new();
    let send = world.paid("a", 100);
    world.answer_as(send.operation, &send, ChannelStatus::Declined, 1);
    world.answer_as(send.operation, &send, ChannelStatus::Declined, 1);
    assert!(has_alarm(&world, AlarmKind::Conflict));
    world.sent(Operation::Query);
    world.nothing_sent();
    assert_eq!(world.view("a").state, OrderState::Paid);
    world.assert_follower_agrees();
}

#[test]
fn c8_a_statement_about_nothing_is_counted() {
    let mut world = World::new();
    let send = world.paid("a", 100);
    let nobody = OperationId { sequence: 77, ..send.operation };
    world.evidence(nobody, success(&send, 100));
    let elsewhere = OperationId { shard: 4, ..send.operation };
    world.evidence(elsewhere, success(&send, 100));
    let attempt = OperationId { ordinal: 9, ..send.operation };
    world.evidence(attempt, success(&send, 100));
    assert_eq!(world.engine.stats().unmatched, 3);
}

/// A closed order whose charge was reversed, and the charge's request.
fn reversed(world: &mut World) -> Send {
    let send = world.charged("a", 100);
    world.close("a");
    world.settle();
    let reverse = world.sent(Operation::Reverse);
    world.answer(&reverse, ChannelStatus::Reversed);
    assert_eq!(world.view("a").state, OrderState::Closed);
    send
}

#[test]
fn c8_a_charge_that_stands_although_it_was_reversed_is_given_back_once() {
    let mut world = World::new();
    let send = reversed(&mut world);
    world.answer(&send, ChannelStatus::Success);
    let query = world.sent(Operation::Query);
    assert!(!has_alarm(&world, AlarmKind::Conflict), "expected residue");
    // That may still be what was true before the reversal.
    world.answer(&query, ChannelStatus::Success);
    assert!(has_alarm(&world, AlarmKind::Conflict), "but it is no residue of the charge");
    let noted = world.log.len();
    world.answer(&query, ChannelStatus::Success);
    world.nothing_sent();
    assert_eq!(world.log.len(), noted, "put on record once");
    // What was true before cannot be told any more.
    world.pass(61 * SECOND);
    let query = world.sent(Operation::Query);
    world.answer(&query, ChannelStatus::Success);
    assert!(has_alarm(&world, AlarmKind::OrphanSuccess));
    let refund = world.sent(Operation::Refund);
    assert_eq!(&refund.request.refund_no.expect("numbered").as_str()[26..27], "X");
    world.answer(&query, ChannelStatus::Success);
    world.answer(&refund, ChannelStatus::Success);
    world.pass(600 * SECOND);
    world.nothing_sent();
    let view = world.view("a");
    assert_eq!((view.state, view.refunded), (OrderState::Closed, 0));
    let given_back: Vec<_> = view.refunds.iter().map(|r| (r.kind, r.state)).collect();
    assert_eq!(given_back, [(RefundKind::Orphan, RefundState::Success)]);
    assert_eq!(world.engine.stats().open, 0);
    world.assert_follower_agrees();
}

#[test]
fn c8_a_reversed_charge_that_the_channel_revoked_is_asked_about_once() {
    let mut world = World::new();
    let send = reversed(&mut world);
    world.answer(&send, ChannelStatus::Success);
    let query = world.sent(Operation::Query);
    world.answer(&query, ChannelStatus::Reversed);
    world.pass(600 * SECOND);
    world.answer(&send, ChannelStatus::Success);
    world.nothing_sent();
    assert!(world.out.alarms.is_empty());
    assert!(world.view("a").refunds.is_empty());
}

#[test]
fn c8_an_old_answer_to_a_query_gives_nothing_back() {
    let mut world = World::new();
    let (_, send) = in_doubt(&mut world, "a");
    world.pass(SECOND);
    let old = world.sent(Operation::Query);
    world.close("a");
    world.settle();
    let reverse = world.sent(Operation::Reverse);
    world.answer(&reverse, ChannelStatus::Reversed);
    world.answer(&old, ChannelStatus::Success);
    world.answer(&send, ChannelStatus::Success);
    assert!(has_alarm(&world, AlarmKind::Conflict));
    let query = world.sent(Operation::Query);
    world.nothing_sent();
    world.answer(&query, ChannelStatus::Reversed);
    world.pass(600 * SECOND);
    world.nothing_sent();
    assert!(world.view("a").refunds.is_empty());
    world.assert_follower_agrees();
}

#[test]
fn c8_a_question_that_stays_without_answer_is_asked_again_and_ends_in_an_alarm() {
    let mut world = World::new();
    let send = reversed(&mut world);
    world.answer(&send, ChannelStatus::Success);
    world.sent(Operation::Query);
    world.give(Input::ChannelUp { channel: 1, up: false });
    world.pass(600 * SECOND);
    world.nothing_sent();
    world.give(Input::ChannelUp { channel: 1, up: true });
    world.pass(60 * SECOND);
    let asked = std::mem::take(&mut world.out.sends);
    assert!((2..20).contains(&asked.len()), "asked {} times", asked.len());
    assert!(asked.iter().all(|send| send.operation.operation == Operation::Query));
    assert!(has_alarm(&world, AlarmKind::Conflict));
    world.pass(600 * SECOND);
    world.nothing_sent();
    // The last answer still counts.
    world.answer(&asked[0], ChannelStatus::Success);
    world.sent(Operation::Refund);
}

#[test]
fn c8_a_question_about_one_attempt_does_not_silence_another() {
    let mut world = world_of(|c| c.idempotent_pay = false);
    let (_, first) = in_doubt(&mut world, "a");
    world.pass(SECOND);
    let query = world.sent(Operation::Query);
    world.answer(&query, ChannelStatus::NotFound);
    let reverse = world.sent(Operation::Reverse);
    world.answer(&reverse, ChannelStatus::Reversed);
    let second = world.sent(Operation::Charge);
    world.answer(&second, ChannelStatus::Success);
    world.answer(&first, ChannelStatus::Success);
    assert_eq!(world.sent(Operation::Query).operation.ordinal, 1);
    assert!(world.out.alarms.is_empty());
    world.answer_as(second.operation, &second, ChannelStatus::Declined, 1);
    assert!(has_alarm(&world, AlarmKind::Conflict));
    assert_eq!(world.sent(Operation::Query).operation.ordinal, 2);
    world.assert_follower_agrees();
}

#[test]
fn c8_a_leader_that_comes_back_asks_anew() {
    let mut world = World::new();
    let send = reversed(&mut world);
    for _ in 0..2 {
        world.answer(&send, ChannelStatus::Success);
        world.sent(Operation::Query);
        world.give(Input::StepDown);
        world.lead();
    }
}

#[test]
fn c8_an_orphan_that_the_channel_does_not_take_back_is_put_in_front_of_an_operator() {
    let mut world = World::new();
    let send = world.charged("a", 100);
    world.answer_as(send.operation, &send, ChannelStatus::Declined, 1);
    world.answer(&send, ChannelStatus::Success);
    let refund = world.sent(Operation::Refund);
    world.answer_as(refund.operation, &refund, ChannelStatus::Declined, 4);
    assert!(has_alarm(&world, AlarmKind::Manual));
    let state = |world: &World| world.view("a").refunds[0].state;
    assert_eq!(state(&world), RefundState::Manual);
    assert_eq!((world.engine.stats().manual, world.engine.stats().open), (1, 1));
    let blocks = world.log.len();
    world.answer_as(refund.operation, &refund, ChannelStatus::Declined, 4);
    assert_eq!(world.log.len(), blocks, "says nothing new");
    // A takeover keeps it, and it is no merchant's reservation.
    world.crash_at(blocks);
    assert_eq!(state(&world), RefundState::Manual);
    assert_eq!(world.query("a").refunding, 0);
    world.answer(&refund, ChannelStatus::Success);
    assert_eq!(state(&world), RefundState::Success);
    assert_eq!(world.view("a").state, OrderState::Failed);
    assert_eq!((world.engine.stats().manual, world.engine.stats().open), (0, 0));
    world.assert_follower_agrees();
}

#[test]
fn c3_other_money_while_reversing_alarms_and_the_reversal_goes_on() {
    let mut world = World::new();
    let send = world.charged("a", 100);
    world.close("a");
    world.settle();
    let reverse = world.sent(Operation::Reverse);
    world.evidence(send.operation, success(&send, 99));
    assert!(has_alarm(&world, AlarmKind::Integrity));
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Reversing);
    world.answer(&reverse, ChannelStatus::Reversed);
    assert_eq!(world.view("a").state, OrderState::Closed);
}

#[test]
fn c3_other_money_that_the_channel_does_not_reverse_goes_to_an_operator() {
    let mut world = World::new();
    world.charged("a", 100);
    world.close("a");
    world.settle();
    let reverse = world.sent(Operation::Reverse);
    world.evidence(reverse.operation, success(&reverse, 99));
    let view = world.view("a");
    assert_eq!((view.state, view.reason), (OrderState::Manual, Reason::Integrity));
    assert!(has_alarm(&world, AlarmKind::Integrity));
    assert_eq!(world.engine.stats().manual, 1);
    world.assert_follower_agrees();
}

#[test]
fn an_orphan_in_front_of_an_operator_is_shown_with_its_own_channel() {
    let mut world = world_of(|_| ());
    let first = world.charged("a", 100);
    world.answer_as(first.operation, &first, ChannelStatus::Declined, 4);
    let second = world.sent(Operation::Charge);
    world.answer(&second, ChannelStatus::Success);
    world.answer(&first, ChannelStatus::Success);
    let refund = world.sent(Operation::Refund);
    assert_eq!((second.channel, refund.channel), (2, 1));
    world.answer_as(refund.operation, &refund, ChannelStatus::Declined, 4);
    let doubts = world.engine.doubt_views(10);
    let shown: Vec<_> = doubts.iter().map(|doubt| (doubt.state, doubt.channel)).collect();
    assert_eq!(shown, [(RefundState::Manual.name(), 1)]);
}
