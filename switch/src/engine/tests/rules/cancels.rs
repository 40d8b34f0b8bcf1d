//! Close, reverse, query (C10).

use super::{in_doubt, refund_code, world_of};
use crate::engine::input::{Input, Operation, Waiter};
use crate::engine::tests::driver::*;
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState, Reason};
use protocol::id::TransactionId;
use protocol::message::{OrderRef, kind};

#[test]
fn c10_close_of_a_paid_order_is_refused_and_of_a_closed_one_repeats() {
    let mut world = World::new();
    world.paid("a", 100);
    let asked = world.close("a");
    assert_eq!(world.order_reply(asked).expect("refused").code, Code::OrderPaid);
    world.pay("b", 100);
    world.settle();
    world.sent(Operation::Charge);
    let first = world.close("b");
    world.settle();
    let second = world.close("b");
    let reverse = world.sent(Operation::Reverse);
    world.answer(&reverse, ChannelStatus::Reversed);
    for asked in [first, second] {
        assert_eq!(world.order_reply(asked).expect("answered").state, OrderState::Closed);
    }
    let third = world.close("b");
    assert!(world.order_reply(third).expect("stored").replayed);
    world.assert_follower_agrees();
}

#[test]
fn c10_a_close_before_begin_is_durable_sends_nothing() {
    let mut world = World::new();
    let paying = world.pay("a", 100);
    let closing = world.close("a");
    world.settle();
    world.nothing_sent();
    for asked in [paying, closing] {
        assert_eq!(world.order_reply(asked).expect("answered").state, OrderState::Closed);
    }
    assert_eq!(world.engine.stats().channels[0].in_flight, 0);
    world.assert_follower_agrees();
}

#[test]
fn c10_reverse_of_a_paid_order_is_a_full_refund_and_excludes_others() {
    let mut world = World::new();
    world.paid("a", 100);
    let asked = world.reverse("a");
    assert_eq!(refund_code(&mut world, "a", "r1", 1), Code::OrderCancelling);
    world.settle();
    assert_eq!(refund_code(&mut world, "a", "r1", 1), Code::OrderCancelling);
    let refund = world.sent(Operation::Refund);
    assert_eq!(&refund.request.refund_no.expect("numbered").as_str()[26..27], "V");
    world.answer(&refund, ChannelStatus::Success);
    let reply = world.order_reply(asked).expect("answered");
    assert_eq!((reply.state, reply.refunded), (OrderState::Paid, 100));
    world.paid("b", 100);
    assert_eq!(refund_code(&mut world, "b", "r1", 1), Code::Ok);
    let asked = world.reverse("b");
    assert_eq!(world.order_reply(asked).expect("refused").code, Code::HasRefund);
    world.settle();
    world.assert_follower_agrees();
}

#[test]
fn c10_a_cancel_of_what_cannot_be_reversed_gives_the_money_back() {
    let mut world = world_of(|c| c.reversible = false);
    let paying = world.pay("a", 100);
    world.settle();
    let charge = world.sent(Operation::Charge);
    let closing = world.close("a");
    world.settle();
    world.nothing_sent();
    world.answer(&charge, ChannelStatus::Success);
    assert!(world.order_reply(paying).is_none(), "not PAID while the wish stands");
    let refund = world.sent(Operation::Refund);
    world.answer(&refund, ChannelStatus::Success);
    for asked in [paying, closing] {
        assert_eq!(world.order_reply(asked).expect("answered").state, OrderState::Closed);
    }
    world.assert_follower_agrees();
}

#[test]
fn c10_a_question_that_falls_due_before_the_cancel_is_durable_is_asked_after_it() {
    let mut world = world_of(|c| c.reversible = false);
    let charge = world.charged("a", 100);
    world.pass(5 * SECOND);
    world.nothing_sent();
    let closing = world.close("a");
    // A slow disk: the first question is due before the cancel is committed.
    world.jump(world.now.mono_us + 2 * SECOND);
    world.give(Input::Tick);
    world.nothing_sent();
    world.settle();
    world.pass(SECOND);
    let query = world.sent(Operation::Query);
    world.answer_as(query.operation, &charge, ChannelStatus::Declined, 1);
    assert_eq!(world.order_reply(closing).expect("answered").state, OrderState::Closed);
}

#[test]
fn c10_a_cancel_that_the_channel_refuses_leaves_the_order_paid() {
    let mut world = world_of(|c| c.reversible = false);
    let charge = world.charged("a", 100);
    let closing = world.close("a");
    world.settle();
    world.answer(&charge, ChannelStatus::Success);
    let refund = world.sent(Operation::Refund);
    world.answer_as(refund.operation, &refund, ChannelStatus::Declined, 4);
    let reply = world.order_reply(closing).expect("answered");
    assert_eq!(
        (reply.code, reply.state, reply.reason),
        (Code::OrderPaid, OrderState::Paid, Reason::CancelRefused)
    );
}

#[test]
fn c10_a_reverse_that_meets_a_proposed_success_becomes_a_refund() {
    let mut world = World::new();
    let charge = world.charged("a", 100);
    world.give(Input::Evidence { operation: charge.operation, evidence: success(&charge, 100) });
    let reversing = world.reverse("a");
    let closing = world.close("a");
    world.settle();
    assert_eq!(world.order_reply(closing).expect("refused").code, Code::OrderPaid);
    let refund = world.sent(Operation::Refund);
    world.answer(&refund, ChannelStatus::Success);
    assert_eq!(world.order_reply(reversing).expect("answered").refunded, 100);
}

#[test]
fn c10_queries_go_by_both_numbers_and_refresh_asks_the_channel() {
    let mut world = World::new();
    in_doubt(&mut world, "a");
    let mut input = world.order_input("a", kind::QUERY);
    input.order = OrderRef::TransactionId(TransactionId::new(3, 1));
    input.refresh = true;
    world.give(Input::Query(input));
    let reply = world.order_reply(input.origin.waiter.correlation).expect("at once");
    assert_eq!((reply.state, reply.out_trade_no.as_str()), (OrderState::Processing, "a"));
    world.sent(Operation::Query);
    input.order = OrderRef::TransactionId(TransactionId::new(4, 1));
    world.give(Input::Query(input));
    assert_eq!(
        world.order_reply(input.origin.waiter.correlation).expect("no").code,
        Code::OrderNotFound
    );
}

#[test]
fn a_follower_answers_nobody_and_a_damaged_block_is_loud() {
    let mut world = World::new();
    world.paid("a", 100);
    world.give(Input::StepDown);
    let asked = world.pay("b", 100);
    assert_eq!(world.order_reply(asked).expect("told").code, Code::NotLeader);
    let waiter = Waiter { connection: 1, stream: 1, kind: kind::SUBSCRIBE, correlation: 1 };
    world.give(Input::Subscribe { waiter, gateway: 1 });
    assert!(world.out.events.is_empty() && world.engine.next_due().is_none());
    let mut block = world.log[1].clone();
    block.truncate(block.len() - 1);
    let index = world.log.len() as u64 + 1;
    let input = Input::Committed { index, term: 1, block: &block };
    assert!(world.engine.handle(input, world.now, &mut world.out).is_err());
    for (index, why) in [(index, "a payment twice"), (index + 1, "a block is missing")] {
        let again = world.log[1].clone();
        let input = Input::Committed { index, term: 1, block: &again };
        assert!(world.engine.handle(input, world.now, &mut world.out).is_err(), "{why}");
    }
}
