//! Doubt, evidence, dark channels (C3), the resolver and its operator (C11).

use super::{has_alarm, in_doubt, world_of};
use crate::engine::config::ChannelConfig;
use crate::engine::input::{Evidence, Input, Operation};
use crate::engine::order::AttemptState;
use crate::engine::output::{AlarmKind, Send};
use crate::engine::record::split_off;
use crate::engine::tests::driver::*;
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState, Reason};

#[test]
fn c3_not_sent_goes_to_the_next_channel_and_ends_failed_without_one() {
    let mut world = world_of(|_| ());
    let asked = world.pay("a", 100);
    world.settle();
    let first = world.sent(Operation::Charge);
    world.evidence(first.operation, Evidence::NotSent);
    let second = world.sent(Operation::Charge);
    assert_eq!(second.channel, 2);
    world.evidence(second.operation, Evidence::NotSent);
    let reply = world.order_reply(asked).expect("answered");
    assert_eq!((reply.state, reply.reason), (OrderState::Failed, Reason::NotSent));
    world.assert_follower_agrees();
}

#[test]
fn c3_not_sent_after_doubt_proves_nothing() {
    let mut world = World::new();
    let (_, send) = in_doubt(&mut world, "a");
    world.evidence(send.operation, Evidence::NotSent);
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Unknown);
}

#[test]
fn c3_a_decline_for_funds_does_not_shop_around() {
    let mut world = world_of(|_| ());
    let asked = world.pay("a", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
    world.answer_as(
        send.operation,
        &send,
        ChannelStatus::Declined,
        Reason::InsufficientFunds.wire(),
    );
    world.nothing_sent();
    assert_eq!(world.order_reply(asked).expect("answered").reason, Reason::InsufficientFunds);
}

#[test]
fn c3_a_dark_channel_is_skipped_and_a_lost_link_makes_doubt() {
    let mut world = world_of(|_| ());
    world.give(Input::ChannelUp { channel: 1, up: false });
    let send = world.charged("a", 100);
    assert_eq!(send.channel, 2);
    world.give(Input::LinkLost { channel: 2 });
    world.give(Input::ChannelUp { channel: 2, up: false });
    world.settle();
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Unknown);
    let asked = world.pay("b", 100);
    assert_eq!(world.order_reply(asked).expect("refused").code, Code::ChannelUnavailable);
    world.pass(3 * SECOND);
    world.nothing_sent();
    world.give(Input::ChannelUp { channel: 2, up: true });
    let query = world.sent(Operation::Query);
    world.answer(&query, ChannelStatus::Success);
    assert_eq!(world.view("a").state, OrderState::Paid);
}

#[test]
fn c3_other_money_or_numbers_go_to_an_operator() {
    let mut world = World::new();
    let asked = world.pay("a", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
    world.evidence(send.operation, success(&send, 99));
    let reply = world.order_reply(asked).expect("answered");
    assert_eq!((reply.state, reply.reason), (OrderState::Manual, Reason::Integrity));
    assert!(has_alarm(&world, AlarmKind::Integrity));
    assert_eq!(world.engine.stats().manual, 1);
    let mut decide = |second: &str| {
        world.decide(None, true, second);
        world.settle();
        world.out.admin.pop().expect("answered").1
    };
    assert!(decide("anna").is_err(), "needs another person");
    assert!(decide("ben").is_ok());
    assert!(decide("ben").is_err(), "decided already");
    assert_eq!(world.view("a").state, OrderState::Paid);
    assert_eq!(world.engine.stats().manual, 0);
    world.assert_follower_agrees();
}

#[test]
fn c3_a_payer_who_must_act_is_waited_for_until_expiry() {
    let mut world = World::new();
    let asked = world.pay("a", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
    world.answer(&send, ChannelStatus::Pending);
    assert_eq!(world.order_reply(asked).expect("told").state, OrderState::WaitPayer);
    for _ in 0..700 {
        world.pass(SECOND);
        for send in std::mem::take(&mut world.out.sends) {
            let reverse = send.operation.operation == Operation::Reverse;
            let status = if reverse { ChannelStatus::Reversed } else { ChannelStatus::Pending };
            world.answer(&send, status);
        }
    }
    let view = world.view("a");
    assert_eq!((view.state, view.reason), (OrderState::Closed, Reason::Expired));
}

#[test]
fn c11_alarm_then_operator_and_never_a_guess() {
    let mut world = World::new();
    in_doubt(&mut world, "a");
    // Looked at when its next question falls due.
    world.pass(70 * SECOND);
    assert!(has_alarm(&world, AlarmKind::InDoubtTooLong));
    let mut config = world.config.clone();
    config.channels[0].reversible = false;
    let mut world = World::with(config);
    in_doubt(&mut world, "a");
    world.pass(7300 * SECOND);
    let view = world.view("a");
    assert_eq!((view.state, view.reason), (OrderState::Manual, Reason::BudgetSpent));
    assert!(has_alarm(&world, AlarmKind::Manual));
    assert_eq!(world.engine.stats().channels[0].in_flight, 0);
}

#[test]
fn c11_the_backlog_drains_oldest_first_within_its_budget() {
    let mut config = config(vec![channel(1)]);
    config.channels[0].resolver_per_second = 2;
    let mut world = World::with(config);
    for number in ["a", "b", "c", "d", "e", "f"] {
        world.pay(number, 100);
        world.settle();
        world.sent(Operation::Charge);
        world.jump(world.now.mono_us + 1000);
    }
    world.give(Input::LinkLost { channel: 1 });
    world.settle();
    world.give(Input::Tick);
    let asked: Vec<_> = world.out.sends.drain(..).map(|s| s.operation.sequence).collect();
    assert_eq!(asked, [1, 2], "the burst of one second");
    world.pass(SECOND);
    let asked: Vec<_> = world.out.sends.drain(..).map(|s| s.operation.sequence).collect();
    assert_eq!(asked, [3, 4]);
}

/// An order of four hours whose payer must act, at one channel.
fn hours_to_pay(change: impl Fn(&mut ChannelConfig)) -> (World, Send) {
    let mut channels = vec![channel(1)];
    channels.iter_mut().for_each(change);
    channels[0].query_plan_us = vec![SECOND, 60 * SECOND];
    let mut world = World::with(config(channels));
    let mut pay = world.pay_input("a", 100);
    pay.time_expire_ms = (world.now.wall_us + 4 * HOUR) / 1000;
    world.give(Input::Pay(pay));
    world.settle();
    let send = world.sent(Operation::Charge);
    world.answer(&send, ChannelStatus::Pending);
    (world, send)
}

const HOUR: u64 = 3600 * SECOND;

/// Lets time pass while the channel answers every question at once.
fn answering(world: &mut World, micros: u64, status: impl Fn(Operation) -> ChannelStatus) {
    let end = world.now.mono_us + micros;
    while world.now.mono_us < end {
        world.pass(SECOND);
        for send in std::mem::take(&mut world.out.sends) {
            world.answer(&send, status(send.operation.operation));
        }
    }
}

fn payer_hesitates(operation: Operation) -> ChannelStatus {
    if operation == Operation::Reverse { ChannelStatus::Reversed } else { ChannelStatus::Pending }
}

#[test]
fn c10_a_payer_who_does_not_act_for_hours_is_reversed_at_expiry_and_closed() {
    let (mut world, _) = hours_to_pay(|_| ());
    answering(&mut world, 4 * HOUR + 70 * SECOND, payer_hesitates);
    let view = world.view("a");
    assert_eq!((view.state, view.reason), (OrderState::Closed, Reason::Expired));
    assert!(world.out.alarms.is_empty(), "{:?}", world.out.alarms);
    world.assert_follower_agrees();
}

#[test]
fn c10_a_dark_channel_at_expiry_is_reversed_when_it_comes_back() {
    let (mut world, _) = hours_to_pay(|_| ());
    world.give(Input::ChannelUp { channel: 1, up: false });
    world.pass(5 * HOUR);
    world.out.sends.clear();
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Reversing);
    world.give(Input::ChannelUp { channel: 1, up: true });
    let reverse = world.sent(Operation::Reverse);
    world.answer(&reverse, ChannelStatus::Reversed);
    assert_eq!(world.view("a").state, OrderState::Closed);
}

#[test]
fn c11_what_cannot_be_reversed_at_expiry_has_its_time_from_then() {
    let (mut world, send) = hours_to_pay(|c| c.reversible = false);
    answering(&mut world, 4 * HOUR + 70 * SECOND, payer_hesitates);
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Awaiting);
    world.out.alarms.clear();
    // It is asked on, and may not even be reached.
    world.give(Input::ChannelUp { channel: 1, up: false });
    world.pass(HOUR);
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Awaiting);
    assert!(!has_alarm(&world, AlarmKind::Manual));
    world.pass(HOUR);
    let view = world.view("a");
    assert_eq!((view.state, view.reason), (OrderState::Manual, Reason::BudgetSpent));
    world.answer(&send, ChannelStatus::Success);
    assert_eq!(world.view("a").state, OrderState::Paid);
}

#[test]
fn c11_a_payer_who_must_act_is_waited_for_at_a_channel_without_queries() {
    let (mut world, _) = hours_to_pay(|c| (c.queryable, c.idempotent_pay) = (false, false));
    world.pass(3 * HOUR);
    world.nothing_sent();
    assert_eq!(world.view("a").attempts[0].state, AttemptState::Awaiting);
    world.pass(HOUR);
    let reverse = world.sent(Operation::Reverse);
    world.answer(&reverse, ChannelStatus::Reversed);
    assert_eq!(world.view("a").reason, Reason::Expired);
    // The payer's word in time.
    let (mut world, send) = hours_to_pay(|c| (c.queryable, c.idempotent_pay) = (false, false));
    world.pass(3 * HOUR);
    world.answer(&send, ChannelStatus::Success);
    assert_eq!(world.view("a").state, OrderState::Paid);
}

/// Sent again under its number, the charge is the question.
#[test]
fn c11_an_idempotent_channel_without_queries_tells_that_the_payer_paid() {
    let (mut world, first) = hours_to_pay(|c| c.queryable = false);
    world.pass(HOUR);
    let again = world.sent(Operation::Charge);
    assert_eq!(again.request.charge_no, first.request.charge_no);
    world.out.sends.clear();
    world.answer(&again, ChannelStatus::Success);
    assert_eq!(world.view("a").state, OrderState::Paid);
}

#[test]
fn c11_doubt_at_a_channel_without_queries_is_reversed() {
    let mut world = world_of(|c| c.queryable = false);
    in_doubt(&mut world, "a");
    world.pass(SECOND);
    let reverse = world.sent(Operation::Reverse);
    world.nothing_sent();
    world.answer(&reverse, ChannelStatus::Reversed);
    assert_eq!(world.sent(Operation::Charge).channel, 2);
}

#[test]
fn c5_whatever_operators_decide_takes_two() {
    let mut world = World::new();
    let send = world.charged("a", 100);
    world.evidence(send.operation, success(&send, 99));
    let mut not_moved = |second: &str| {
        world.decide(None, false, second);
        world.settle();
        world.out.admin.pop().expect("answered").1
    };
    assert!(not_moved("").is_err(), "needs a second person");
    assert!(not_moved("anna").is_err(), "needs another person");
    assert!(not_moved("ben").is_ok());
    assert_eq!(world.view("a").state, OrderState::Failed);
}

/// An attempt that the switch gives up and reverses, at the only channel.
fn given_up(world: &mut World) -> (u64, Send, Send) {
    let (asked, charge) = in_doubt(world, "a");
    world.pass(SECOND);
    let query = world.sent(Operation::Query);
    world.answer(&query, ChannelStatus::NotFound);
    let reverse = world.sent(Operation::Reverse);
    (asked, charge, reverse)
}

#[test]
fn c4_why_a_payment_failed_whose_charge_was_being_reversed() {
    let mut channels = vec![channel(1)];
    channels[0].idempotent_pay = false;
    let mut world = World::with(config(channels.clone()));
    let (asked, _, reverse) = given_up(&mut world);
    world.answer(&reverse, ChannelStatus::Reversed);
    let reply = world.order_reply(asked).expect("answered");
    assert_eq!((reply.state, reply.reason), (OrderState::Failed, Reason::NotSent));
    let mut world = World::with(config(channels));
    let (asked, charge, _) = given_up(&mut world);
    let funds = Reason::InsufficientFunds.wire();
    world.answer_as(charge.operation, &charge, ChannelStatus::Declined, funds);
    let reply = world.order_reply(asked).expect("answered");
    assert_eq!((reply.state, reply.reason), (OrderState::Failed, Reason::InsufficientFunds));
    world.assert_follower_agrees();
}

/// The next attempt was lost with the old leader, and no channel takes it now.
#[test]
fn c4_a_declined_payment_says_so_when_a_new_leader_ends_its_route() {
    let mut world = world_of(|_| ());
    let send = world.charged("a", 100);
    world.answer_as(send.operation, &send, ChannelStatus::Declined, 4);
    let (mut block, mut lost) = (world.log.pop().expect("a decline"), Vec::new());
    assert_eq!(split_off(&mut block, 0, &mut lost), 1);
    assert!(!lost.is_empty(), "the next attempt behind its proof");
    world.log.push(block);
    // A channel is down until its link says otherwise.
    world.crash_at(world.log.len());
    let view = world.view("a");
    assert_eq!((view.state, view.reason), (OrderState::Failed, Reason::ChannelDeclined));
    world.assert_follower_agrees();
}
