//! Duplicates (C6), and what is told before it is durable.

use crate::engine::input::{Input, Operation};
use crate::engine::tests::driver::*;
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState, RefundState};

#[test]
fn c6_a_duplicate_gets_the_stored_outcome() {
    let mut world = World::new();
    world.paid("a", 100);
    let blocks = world.log.len();
    let mut pay = world.pay_input("a", 100);
    // Even when it comes after expiry: the outcome is known.
    world.jump(world.now.mono_us + 3600 * SECOND);
    pay.time_expire_ms = 1;
    world.give(Input::Pay(pay));
    let reply = world.order_reply(pay.origin.waiter.correlation).expect("stored");
    assert_eq!((reply.code, reply.state, reply.replayed), (Code::Ok, OrderState::Paid, true));
    world.nothing_sent();
    assert!(world.out.block.is_empty() && world.log.len() == blocks);
}

#[test]
fn c6_a_duplicate_of_a_running_payment_waits_and_the_bound_answers_processing() {
    let mut world = World::new();
    let first = world.pay("a", 100);
    let early = world.pay("a", 100);
    world.settle();
    let later = [world.pay("a", 100), world.pay("a", 100)];
    let above = world.pay("a", 100);
    let reply = world.order_reply(above).expect("bounded");
    assert_eq!((reply.state, reply.replayed), (OrderState::Processing, true));
    let send = world.sent(Operation::Charge);
    world.nothing_sent();
    world.answer(&send, ChannelStatus::Success);
    for asked in [early, later[0], later[1]] {
        assert!(world.order_reply(asked).expect("all are answered").replayed);
    }
    assert!(!world.order_reply(first).expect("answered").replayed);
    assert_eq!(world.engine.stats().waiters, 0);
}

#[test]
fn c6_the_same_number_with_other_content_conflicts() {
    let mut world = World::new();
    world.paid("a", 100);
    let asked = world.pay("a", 101);
    let reply = world.order_reply(asked).expect("refused");
    assert_eq!((reply.code, reply.state), (Code::IdempotencyConflict, OrderState::None));
    assert_eq!((reply.amount, reply.transaction_id), (0, None), "no details of the original");
}

#[test]
fn c6_nothing_is_told_of_a_payment_that_a_crash_could_forget() {
    let mut world = World::new();
    world.wait_us = 1000;
    let hasty = world.pay("a", 100);
    let asking = world.ask_order("a");
    world.jump(world.now.mono_us + 2000);
    world.give(Input::Tick);
    for asked in [hasty, asking] {
        assert!(world.order_reply(asked).is_none(), "BEGIN is not durable yet");
    }
    // Its transaction id would be given to the next payment after a crash.
    let more = [world.pay("a", 100), world.pay("a", 100)];
    let above = world.pay("a", 100);
    let refused = world.order_reply(above).expect("bounded");
    assert_eq!((refused.code, refused.transaction_id), (Code::Overloaded, None));
    assert!(refused.retry_after_ms > 0);
    world.commit();
    for asked in [hasty, asking] {
        let reply = world.order_reply(asked).expect("durable now");
        assert_eq!((reply.code, reply.state), (Code::Ok, OrderState::Processing));
        assert!(reply.transaction_id.is_some());
    }
    for asked in more {
        assert!(world.order_reply(asked).is_none(), "has time left");
    }
}

#[test]
fn c9_nothing_is_told_of_a_refund_that_a_crash_could_forget() {
    let mut world = World::new();
    world.paid("a", 100);
    world.wait_us = 1000;
    let hasty = world.refund("a", "r1", 10);
    let asking = world.ask_refund("a", "r1");
    world.jump(world.now.mono_us + 2000);
    world.give(Input::Tick);
    for asked in [hasty, asking] {
        assert!(world.refund_reply(asked).is_none(), "the refund is not durable yet");
    }
    world.commit();
    for asked in [hasty, asking] {
        let reply = world.refund_reply(asked).expect("durable now");
        assert_eq!((reply.code, reply.state), (Code::Ok, RefundState::Processing));
    }
}

#[test]
fn c10_a_reverse_that_takes_long_hears_of_its_payment() {
    let mut world = World::new();
    world.paid("a", 100);
    world.wait_us = SECOND;
    let asked = world.reverse("a");
    world.settle();
    world.pass(2 * SECOND);
    let reply = world.order_reply(asked).expect("waited long enough");
    assert_eq!((reply.code, reply.state, reply.refunding), (Code::Ok, OrderState::Paid, 100));
}

#[test]
fn c6_the_early_answer_is_processing_and_comes_in_time() {
    let mut world = World::new();
    world.wait_us = 2 * SECOND;
    let hasty = world.pay("a", 100);
    world.wait_us = 0;
    let patient = world.pay("a", 100);
    world.settle();
    world.pass(2 * SECOND);
    assert_eq!(world.order_reply(hasty).expect("early").state, OrderState::Processing);
    assert!(world.order_reply(patient).is_none());
    world.pass(8 * SECOND);
    assert_eq!(world.order_reply(patient).expect("bound").state, OrderState::Processing);
    assert_eq!(world.engine.stats().waiters, 0);
}

#[test]
fn c6_a_closed_connection_is_forgotten() {
    let mut world = World::new();
    let asked = world.pay("a", 100);
    world.settle();
    world.give(Input::ConnectionClosed { connection: 7 });
    assert_eq!(world.engine.stats().waiters, 0);
    let send = world.sent(Operation::Charge);
    world.answer(&send, ChannelStatus::Success);
    assert!(world.order_reply(asked).is_none());
}
