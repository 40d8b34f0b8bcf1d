//! Crash points (C7).

use super::{in_doubt, world_of};
use crate::engine::input::{Input, Operation};
use crate::engine::order::AttemptState;
use crate::engine::tests::driver::*;
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState};

/// Plays a whole life (doubt, resend, payment, refund, reversal of another),
/// then crashes after every block of it and lets an honest channel answer.
#[test]
fn c7_a_crash_after_any_block_ends_safely() {
    let mut life = World::with(config(vec![channel(1), channel(2)]));
    in_doubt(&mut life, "a");
    life.pass(SECOND);
    let query = life.sent(Operation::Query);
    life.answer(&query, ChannelStatus::NotFound);
    let again = life.sent(Operation::Charge);
    life.answer(&again, ChannelStatus::Success);
    life.refund("a", "r1", 40);
    life.settle();
    let refund = life.sent(Operation::Refund);
    life.answer(&refund, ChannelStatus::Success);
    life.pay("b", 100);
    life.settle();
    life.close("b");
    life.settle();
    life.sent(Operation::Charge);
    let reverse = life.sent(Operation::Reverse);
    life.answer(&reverse, ChannelStatus::Reversed);
    life.pay("c", 100);
    life.settle();
    let declined = life.sent(Operation::Charge);
    life.answer_as(declined.operation, &declined, ChannelStatus::Declined, 4);
    let next = life.sent(Operation::Charge);
    assert_eq!((next.channel, next.operation.ordinal), (2, 2));
    life.answer(&next, ChannelStatus::Success);
    let log = life.log.clone();
    for blocks in 1..=log.len() {
        let mut world = World::with(life.config.clone());
        world.log = log[..blocks].to_vec();
        world.out = Default::default();
        world.crash_at(blocks);
        answer_honestly(&mut world);
        let stats = world.engine.stats();
        assert_eq!((stats.open, stats.in_doubt, stats.manual), (0, 0, 0), "after block {blocks}");
        world.assert_follower_agrees();
    }
}

/// Every question gets its answer: what was charged before the crash stands.
fn answer_honestly(world: &mut World) {
    for _ in 0..40 {
        while !world.out.sends.is_empty() {
            let send = world.out.sends.remove(0);
            let status = match send.operation.operation {
                Operation::Query | Operation::Charge => ChannelStatus::Success,
                Operation::Reverse => ChannelStatus::Reversed,
                Operation::Refund => ChannelStatus::Success,
                Operation::QueryRefund => ChannelStatus::NotFound,
            };
            world.answer(&send, status);
        }
        world.pass(SECOND);
    }
}

#[test]
fn c7_after_a_crash_the_channel_is_asked_before_anything_is_sent() {
    let mut world = World::new();
    world.charged("a", 100);
    world.crash_at(world.log.len());
    let query = world.sent(Operation::Query);
    world.nothing_sent();
    world.answer(&query, ChannelStatus::NotFound);
    let again = world.sent(Operation::Charge);
    assert_eq!(again.request.charge_no, query.request.charge_no, "the same number");
    world.answer(&again, ChannelStatus::Success);
    assert_eq!(world.view("a").state, OrderState::Paid);
}

#[test]
fn c7_without_idempotence_not_found_is_fenced_and_then_the_next_channel_pays() {
    let mut world = world_of(|c| c.idempotent_pay = false);
    in_doubt(&mut world, "a");
    world.pass(SECOND);
    let query = world.sent(Operation::Query);
    world.answer(&query, ChannelStatus::NotFound);
    let reverse = world.sent(Operation::Reverse);
    world.answer(&reverse, ChannelStatus::Reversed);
    let next = world.sent(Operation::Charge);
    assert_eq!((next.channel, next.request.charge_no), (2, charge_no("a", 2)));
    world.answer(&next, ChannelStatus::Success);
    assert_eq!(world.view("a").state, OrderState::Paid);
}

#[test]
fn c7_without_any_tool_only_the_message_life_proves_absence() {
    let mut world = world_of(|c| (c.idempotent_pay, c.reversible) = (false, false));
    in_doubt(&mut world, "a");
    let mut waited = 0;
    while world.view("a").attempts.len() == 1 {
        world.pass(SECOND);
        waited += 1;
        for send in std::mem::take(&mut world.out.sends) {
            if send.operation.operation == Operation::Query {
                world.answer(&send, ChannelStatus::NotFound);
            }
        }
    }
    assert!(waited >= 120, "two message lives, not {waited} s");
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Void);
}

#[test]
fn c7_a_refund_in_doubt_is_asked_for_and_sent_again_under_its_number() {
    let mut world = World::new();
    world.paid("a", 100);
    world.refund("a", "r1", 40);
    world.settle();
    let first = world.sent(Operation::Refund);
    world.crash_at(world.log.len());
    assert_eq!(world.query("a").refunding, 40);
    let query = world.sent(Operation::QueryRefund);
    world.answer(&query, ChannelStatus::NotFound);
    let again = world.sent(Operation::Refund);
    assert_eq!(again.request.refund_no, first.request.refund_no);
    world.answer(&again, ChannelStatus::Success);
    assert_eq!(world.query("a").refunded, 40);
}

#[test]
fn c7_what_was_only_proposed_leaves_no_trace() {
    let mut world = World::new();
    world.paid("a", 100);
    let hash = world.engine.state_hash();
    let pay = world.pay("b", 100);
    let refund = world.refund("a", "r", 10);
    assert_eq!(world.engine.state_hash(), hash, "proposals are not state");
    world.out.block.clear();
    world.give(Input::StepDown);
    assert_eq!(world.order_reply(pay).expect("told").code, Code::NotLeader);
    assert_eq!(world.refund_reply(refund).expect("told").code, Code::NotLeader);
    assert_eq!(world.engine.state_hash(), hash);
    world.lead();
    assert_eq!(world.query("b").code, Code::OrderNotFound);
    let again = world.pay("b", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
    assert_eq!(send.operation.sequence, 2, "sequences have no gap");
    world.answer(&send, ChannelStatus::Success);
    assert_eq!(world.order_reply(again).expect("paid").state, OrderState::Paid);
    world.assert_follower_agrees();
}
