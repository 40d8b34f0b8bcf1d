//! Late statements (C8).

use super::{has_alarm, in_doubt};
use crate::engine::input::{Evidence, Input, Operation, OperationId};
use crate::engine::order::{AttemptState, RefundKind};
use crate::engine::output::AlarmKind;
use crate::engine::tests::driver::*;
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState, RefundState};

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
    world.pay("a", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
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
    world.pay("a", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
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
    world.pay("a", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
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
