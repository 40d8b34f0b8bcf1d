//! The straight ways: pay, refund, query, close, events.

use super::driver::*;
use crate::engine::Engine;
use crate::engine::input::{Input, Operation, Waiter};
use crate::engine::merchant::Merchant;
use crate::engine::output::{Outputs, Stage};
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::id::ShortText;

#[test]
fn a_payment_sends_after_begin_and_answers_after_end() {
    let mut world = World::new();
    let asked = world.pay("a", 500);
    world.nothing_sent();
    world.commit();
    let send = world.sent(Operation::Charge);
    assert_eq!(send.request.charge_no, charge_no("a", 1));
    let reply = success(&send, 500);
    world.give(Input::Evidence { operation: send.operation, evidence: reply });
    assert!(world.order_reply(asked).is_none(), "END is not durable yet");
    world.commit();
    let reply = world.order_reply(asked).expect("answered");
    assert_eq!((reply.code, reply.state, reply.amount), (Code::Ok, OrderState::Paid, 500));
    assert_eq!(reply.transaction_id.expect("assigned").shard(), 3);
    assert_eq!(world.engine.stats().channels[0].in_flight, 0);
    assert_eq!(world.engine.stats().open, 0);
    world.assert_follower_agrees();
}

#[test]
fn a_decline_fails_the_order_with_its_reason() {
    let mut world = World::new();
    let asked = world.pay("a", 500);
    world.settle();
    let send = world.sent(Operation::Charge);
    world.answer_as(send.operation, &send, ChannelStatus::Declined, 1);
    let reply = world.order_reply(asked).expect("answered");
    assert_eq!((reply.state, reply.reason), (OrderState::Failed, Reason::InsufficientFunds));
    world.assert_follower_agrees();
}

#[test]
fn refunds_move_reserved_to_refunded() {
    let mut world = World::new();
    world.paid("a", 500);
    let asked = world.refund("a", "r1", 200);
    world.settle();
    assert_eq!(world.query("a").refunding, 200);
    let send = world.sent(Operation::Refund);
    world.answer(&send, ChannelStatus::Success);
    let reply = world.refund_reply(asked).expect("answered");
    assert_eq!((reply.state, reply.refunded, reply.refunding), (RefundState::Success, 200, 0));
    assert_eq!(world.query_refund("a", "r1").state, RefundState::Success);
    assert_eq!(world.engine.stats().channels[0].in_flight, 0);
    world.assert_follower_agrees();
}

#[test]
fn events_are_delivered_until_taken_over_or_given_up() {
    let mut world = World::new();
    world.paid("a", 500);
    assert_eq!(world.engine.stats().outbox, 1);
    let waiter = Waiter { connection: 9, stream: 1, kind: 0x20, correlation: 5 };
    world.give(Input::Subscribe { waiter, gateway: 1 });
    let (to, event) = world.out.events.remove(0);
    assert_eq!((to, event.sequence, event.state), (waiter, 1, OrderState::Paid));
    world.pass(3 * SECOND);
    let (_, again) = world.out.events.remove(0);
    assert_eq!(again, event);
    world.give(Input::EventAck { event_id: event.event_id, waiter });
    world.settle();
    assert_eq!(world.engine.stats().outbox, 0);
    world.paid("b", 500);
    world.pass(20 * SECOND);
    assert_eq!(world.out.events.len(), 3, "tried three times, then dead-lettered");
    assert_eq!(world.engine.stats().outbox, 0);
    world.assert_follower_agrees();
}

/// Event ids can be computed: only a subscriber that may have the event, and was told of
/// it, can make it go away.
#[test]
fn an_event_is_taken_over_only_by_a_subscriber_that_may_have_it() {
    let mut config = config(vec![channel(1)]);
    config.gateways = ["gw-1", "gw-2"].map(|name| ShortText::new(name.as_bytes()).unwrap()).into();
    let mut world = World::with(config);
    world.put_merchant(Merchant { gateways: vec![ShortText::new(b"gw-2").unwrap()], ..merchant() });
    world.settle();
    world.paid("a", 500);
    let sequence = world.query("a").transaction_id.expect("assigned").sequence();
    let on = |connection, stream| Waiter { connection, stream, kind: 0x20, correlation: 5 };
    let (foreign, own) = (on(1, 1), on(2, 1));
    world.give(Input::Subscribe { waiter: foreign, gateway: 1 });
    assert!(world.out.events.is_empty(), "another gateway's event");
    // Shard 3, the first event of the first payment.
    let event_id = 3 << 54 | 1 << 44 | sequence;
    let ignored = |world: &mut World, waiter: Waiter, why: &str| {
        world.give(Input::EventAck { event_id, waiter });
        assert_eq!(world.out.block_records, 0, "{why}");
        assert_eq!(world.engine.stats().outbox, 1, "{why}");
    };
    ignored(&mut world, foreign, "a gateway that may not have it");
    ignored(&mut world, own, "nobody subscribed there");
    world.give(Input::Subscribe { waiter: own, gateway: 2 });
    let (to, event) = world.out.events.remove(0);
    assert_eq!((to, event.event_id), (own, event_id));
    ignored(&mut world, foreign, "delivered, and still not its");
    ignored(&mut world, on(2, 2), "another stream of the subscriber's connection");
    ignored(&mut world, on(3, 1), "the same stream of another connection");
    // A new leader has delivered nothing yet: what was acknowledged before comes again.
    world.give(Input::StepDown);
    world.lead();
    ignored(&mut world, own, "not delivered by this leader");
    world.pass(SECOND);
    assert_eq!(world.out.events.remove(0).1, event);
    world.give(Input::EventAck { event_id, waiter: own });
    assert_eq!(world.out.block_records, 1);
    world.give(Input::EventAck { event_id, waiter: own });
    assert_eq!(world.out.block_records, 1, "once");
    world.settle();
    assert_eq!(world.engine.stats().outbox, 0);
    world.assert_follower_agrees();
}

#[test]
fn a_subscription_that_ended_gets_nothing_more() {
    let mut world = World::new();
    let on = |stream| Waiter { connection: 9, stream, kind: 0x20, correlation: 5 };
    world.give(Input::Subscribe { waiter: on(1), gateway: 1 });
    world.paid("a", 500);
    let (to, event) = world.out.events.remove(0);
    assert_eq!(to, on(1));
    world.give(Input::Subscribe { waiter: on(2), gateway: 1 });
    world.give(Input::Unsubscribe { connection: 9, stream: 1 });
    for number in ["b", "c", "d"] {
        world.paid(number, 500);
        assert_eq!(world.out.events.remove(0).0, on(2), "its connection's other stream lives on");
    }
    world.pass(3 * SECOND);
    let again = world.out.events.iter().find(|(_, again)| again.event_id == event.event_id);
    assert_eq!(again, Some(&(on(2), event)), "what it left behind");
}

#[test]
fn a_subscriber_gets_its_events_whoever_led_when_it_came() {
    let mut world = World::new();
    let waiter = Waiter { connection: 9, stream: 1, kind: 0x20, correlation: 5 };
    world.give(Input::StepDown);
    world.give(Input::Subscribe { waiter, gateway: 1 });
    assert!(world.out.events.is_empty());
    world.lead();
    world.paid("a", 500);
    assert_eq!(world.out.events.remove(0).0, waiter, "subscribed while another site led");
    world.give(Input::StepDown);
    world.lead();
    world.pass(SECOND);
    assert_eq!(world.out.events.remove(0).0, waiter, "subscribed before leadership moved");
    world.give(Input::ConnectionClosed { connection: 9 });
    world.paid("b", 500);
    assert!(world.out.events.is_empty());
}

#[test]
fn the_leader_times_one_payment_in_sixteen() {
    let mut world = World::new();
    for number in 0..16 {
        world.pay(&number.to_string(), 500);
        world.jump(world.now.mono_us + 700);
        world.commit();
        let send = world.sent(Operation::Charge);
        world.give(Input::Evidence { operation: send.operation, evidence: success(&send, 500) });
        world.jump(world.now.mono_us + 900);
        world.commit();
    }
    assert_eq!(world.out.stages, [(Stage::Begin, 700), (Stage::End, 900)]);
    let mut follower = Engine::new(world.config.clone());
    let mut out = Outputs::default();
    for (index, block) in (1..).zip(&world.log) {
        let input = Input::Committed { index, term: world.term, block };
        follower.handle(input, world.now, &mut out).expect("a sound block");
    }
    assert!(out.stages.is_empty());
}
