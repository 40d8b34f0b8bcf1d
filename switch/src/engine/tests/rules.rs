//! The rows of the rule book, one check each: duplicates (C6), crash points
//! (C7), late statements (C8), refunds (C9), cancels (C10).

use super::driver::*;
use crate::engine::config::ChannelConfig;
use crate::engine::input::{
    AdminCommand, AdminInput, Evidence, Input, Operation, OperationId, Waiter,
};
use crate::engine::order::{AttemptState, RefundKind};
use crate::engine::output::{AlarmKind, Send};
use protocol::channel::ChannelStatus;
use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::id::{ShortText, TransactionId};
use protocol::message::{OrderRef, kind};

fn world_of(change: impl Fn(&mut ChannelConfig)) -> World {
    let mut channels = vec![channel(1), channel(2)];
    channels.iter_mut().for_each(change);
    World::with(config(channels))
}

/// An order whose charge stays without answer until it is in doubt.
fn in_doubt(world: &mut World, number: &str) -> (u64, Send) {
    let asked = world.pay(number, 100);
    world.settle();
    let send = world.sent(Operation::Charge);
    world.evidence(send.operation, Evidence::Lost);
    (asked, send)
}

fn has_alarm(world: &World, kind: AlarmKind) -> bool {
    world.out.alarms.iter().any(|alarm| alarm.kind == kind)
}

// C6: duplicates.

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

// C7: crash points.

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
    world.pay("a", 100);
    world.settle();
    world.sent(Operation::Charge);
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

// C3: doubt, evidence, channels.

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
    world.pay("a", 100);
    world.settle();
    let send = world.sent(Operation::Charge);
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
    let short = |text: &str| ShortText::new(text.as_bytes()).expect("short");
    let mut decide = |second: &str| {
        world.give(Input::Admin(AdminInput {
            ticket: 9,
            operator: short("anna"),
            command: AdminCommand::Decide {
                mch_id: mch(),
                out_trade_no: no("a"),
                out_refund_no: None,
                success: true,
                second: short(second),
                note: short("bill of today"),
            },
        }));
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

// C8: late statements.

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

// C9: refunds.

fn refund_code(world: &mut World, number: &str, refund: &str, minor: i64) -> Code {
    let asked = world.refund(number, refund, minor);
    world.refund_reply(asked).map_or(Code::Ok, |reply| reply.code)
}

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

// C10: close, reverse, query.

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
    world.pay("a", 100);
    world.settle();
    let charge = world.sent(Operation::Charge);
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
    world.pay("a", 100);
    world.settle();
    let charge = world.sent(Operation::Charge);
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
    world.pay("a", 100);
    world.settle();
    let charge = world.sent(Operation::Charge);
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
