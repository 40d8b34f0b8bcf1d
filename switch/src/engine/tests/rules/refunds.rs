//! Refunds (C9).

use super::{has_alarm, in_doubt, refund_code, world_of};
use crate::engine::input::{Evidence, Input, Operation, Waiter};
use crate::engine::output::{AlarmKind, Send};
use crate::engine::tests::driver::*;
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::message::kind;

#[test]
fn c9_refunds_are_refused_by_state_and_sum() {
    let mut world = World::new();
    in_doubt(&mut world, "doubt");
    assert_eq!(refund_code(&mut world, "doubt", "r", 1), Code::OrderNotFinal);
    assert_eq!(world.sent(Operation::Query).operation.sequence, 1, "asked on the fly");
    world.pay("failed", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
    world.answer_as(send.operation, &send, ChannelStatus::Declined, 1);
    assert_eq!(refund_code(&mut world, "failed", "r", 1), Code::NotPaid);
    assert_eq!(refund_code(&mut world, "nobody", "r", 1), Code::OrderNotFound);
    world.paid("a", 100);
    assert_eq!(refund_code(&mut world, "a", "r1", 101), Code::RefundExceedsPaid);
    assert_eq!(refund_code(&mut world, "a", "r1", 60), Code::Ok);
    assert_eq!(
        refund_code(&mut world, "a", "r2", 41),
        Code::RefundExceedsPaid,
        "sees the proposal"
    );
    world.settle();
    assert_eq!(refund_code(&mut world, "a", "r2", 41), Code::RefundExceedsPaid);
    let send = world.sent(Operation::Refund);
    world.answer_as(send.operation, &send, ChannelStatus::Declined, 4);
    assert_eq!(refund_code(&mut world, "a", "r2", 100), Code::Ok, "a failed refund releases");
    world.settle();
    world.assert_follower_agrees();
}

#[test]
fn c9_a_refund_number_moves_money_once() {
    let mut world = World::new();
    world.paid("a", 100);
    let first = world.refund("a", "r1", 40);
    let twin = world.refund("a", "r1", 40);
    assert_eq!(refund_code(&mut world, "a", "r1", 41), Code::IdempotencyConflict);
    world.settle();
    let send = world.sent(Operation::Refund);
    world.nothing_sent();
    world.answer(&send, ChannelStatus::Success);
    assert!(!world.refund_reply(first).expect("answered").replayed);
    assert!(world.refund_reply(twin).expect("answered").replayed);
    let again = world.refund("a", "r1", 40);
    let reply = world.refund_reply(again).expect("stored");
    assert_eq!((reply.state, reply.replayed, reply.refunded), (RefundState::Success, true, 40));
}

#[test]
fn c9_a_refund_without_answer_keeps_its_reservation_up_to_the_operator() {
    let mut world = World::new();
    world.paid("a", 100);
    world.refund("a", "r1", 60);
    world.settle();
    world.pass(7300 * SECOND);
    let reply = world.query_refund("a", "r1");
    assert_eq!((reply.state, reply.refunding), (RefundState::Manual, 60));
    assert_eq!(refund_code(&mut world, "a", "r2", 41), Code::RefundExceedsPaid);
    assert!(has_alarm(&world, AlarmKind::Manual));
    world.assert_follower_agrees();
}

#[test]
fn c9_count_and_window_are_bounded() {
    let mut world = World::new();
    world.paid("a", 100);
    for at in 0..5 {
        assert_eq!(refund_code(&mut world, "a", &format!("r{at}"), 1), Code::Ok);
    }
    assert_eq!(refund_code(&mut world, "a", "r6", 1), Code::RefundTooMany);
    world.paid_late("b");
    assert_eq!(refund_code(&mut world, "b", "r1", 1), Code::WindowClosed);
}

impl World {
    /// A paid order whose refund window has passed.
    fn paid_late(&mut self, number: &str) {
        self.settle();
        self.out.sends.clear();
        self.paid(number, 100);
        self.jump(self.now.mono_us + 366 * 86_400 * SECOND);
    }
}

/// What the channel did not give back when the order was cancelled, the merchant
/// gives back as any other paid order.
#[test]
fn c9_a_paid_order_whose_cancel_was_refused_is_refunded() {
    let mut world = world_of(|c| c.reversible = false);
    let charge = world.charged("a", 100);
    world.close("a");
    world.settle();
    world.answer(&charge, ChannelStatus::Success);
    let reversal = world.sent(Operation::Refund);
    assert_eq!(refund_code(&mut world, "a", "r0", 10), Code::OrderNotFinal, "it may be undone");
    world.answer_as(reversal.operation, &reversal, ChannelStatus::Declined, 4);
    assert_eq!(world.view("a").reason, Reason::CancelRefused);
    let asked = world.refund("a", "r1", 60);
    world.settle();
    let refund = world.sent(Operation::Refund);
    assert_eq!(&refund.request.refund_no.expect("numbered").as_str()[26..27], "R");
    world.answer(&refund, ChannelStatus::Success);
    let reply = world.refund_reply(asked).expect("answered");
    assert_eq!((reply.code, reply.state, reply.refunded), (Code::Ok, RefundState::Success, 60));
    assert_eq!(refund_code(&mut world, "a", "r2", 41), Code::RefundExceedsPaid);
    // A cancel's key is its order: asked again, it tells what became of it.
    let again = world.reverse("a");
    let reply = world.order_reply(again).expect("stored");
    assert_eq!((reply.code, reply.replayed, reply.refunded), (Code::Ok, true, 60));
    assert_eq!((reply.state, reply.reason), (OrderState::Paid, Reason::CancelRefused));
    world.settle();
    world.nothing_sent();
    world.assert_follower_agrees();
}

#[test]
fn c9_a_refund_waits_for_a_reversal_in_front_of_an_operator() {
    let mut world = World::new();
    world.paid("a", 100);
    world.reverse("a");
    world.settle();
    world.pass(7300 * SECOND);
    world.out.sends.clear();
    assert_eq!(world.view("a").refunds[0].state, RefundState::Manual);
    assert_eq!(refund_code(&mut world, "a", "r1", 10), Code::OrderCancelling);
}

/// Not paid when its refund ended: the order's event says it all.
#[test]
fn c9_the_refund_that_undoes_a_cancelled_order_has_no_event_of_its_own() {
    for status in [ChannelStatus::Success, ChannelStatus::Declined] {
        let mut world = world_of(|c| c.reversible = false);
        let waiter = Waiter { connection: 1, stream: 1, kind: kind::SUBSCRIBE, correlation: 1 };
        world.give(Input::Subscribe { waiter, gateway: 1 });
        world.pay("a", 100);
        world.settle();
        let charge = world.sent(Operation::Charge);
        world.close("a");
        world.settle();
        world.answer(&charge, ChannelStatus::Success);
        let reversal = world.sent(Operation::Refund);
        world.answer(&reversal, status);
        let events: Vec<_> =
            world.out.events.iter().map(|(_, e)| (e.sequence, e.state, e.reason)).collect();
        let ended = match status {
            ChannelStatus::Success => (1, OrderState::Closed, Reason::Cancelled),
            _ => (1, OrderState::Paid, Reason::CancelRefused),
        };
        assert_eq!(events, [ended]);
    }
}

/// A statement that comes between an outcome's proposal and its commit.
fn crossing(world: &mut World, send: &Send, first: ChannelStatus, second: ChannelStatus) {
    for status in [first, second] {
        let mut evidence = success(send, send.request.amount.minor());
        if let Evidence::Answered { status: said, .. } = &mut evidence {
            *said = status;
        }
        world.give(Input::Evidence { operation: send.operation, evidence });
    }
    world.settle();
}

#[test]
fn c8_a_statement_that_crosses_a_proposed_refund_outcome_is_not_lost() {
    use ChannelStatus::{Declined, Success};
    for (first, second, ends) in
        [(Declined, Success, RefundState::Failed), (Success, Declined, RefundState::Success)]
    {
        let mut world = World::new();
        world.paid("a", 100);
        world.refund("a", "r1", 40);
        world.settle();
        let refund = world.sent(Operation::Refund);
        crossing(&mut world, &refund, first, second);
        assert_eq!(world.view("a").refunds[0].state, ends);
        assert!(has_alarm(&world, AlarmKind::Conflict));
    }
}

#[test]
fn c8_a_success_that_crosses_an_operators_word_or_a_spent_budget_counts() {
    let mut world = World::new();
    world.paid("a", 100);
    world.refund("a", "r1", 40);
    world.settle();
    let refund = world.sent(Operation::Refund);
    world.pass(7300 * SECOND);
    world.out.alarms.clear();
    world.decide(Some("r1"), false, "ben");
    world.give(Input::Evidence { operation: refund.operation, evidence: success(&refund, 40) });
    world.settle();
    assert_eq!(world.view("a").refunds[0].state, RefundState::Failed);
    assert!(has_alarm(&world, AlarmKind::Conflict));
    // One whose budget is only proposed to be spent is settled by it.
    world.refund("a", "r2", 40);
    world.settle();
    world.out.sends.retain(|send| send.operation.operation == Operation::Refund);
    let refund = world.sent(Operation::Refund);
    world.jump(world.now.mono_us + 7300 * SECOND);
    world.give(Input::Tick);
    world.give(Input::Evidence { operation: refund.operation, evidence: success(&refund, 40) });
    world.settle();
    assert_eq!(world.view("a").refunds[1].state, RefundState::Success);
    world.assert_follower_agrees();
}

#[test]
fn c8_other_money_of_a_refund_that_is_final_alarms() {
    let mut world = World::new();
    world.paid("a", 100);
    world.refund("a", "r1", 40);
    world.settle();
    let refund = world.sent(Operation::Refund);
    world.answer(&refund, ChannelStatus::Success);
    world.evidence(refund.operation, success(&refund, 41));
    assert!(has_alarm(&world, AlarmKind::Conflict));
    assert_eq!(world.query("a").refunded, 40);
}
