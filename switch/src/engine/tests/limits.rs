//! Limits: exact at admission, exact again after a restart.

use super::driver::*;
use crate::engine::input::{AdminCommand, AdminInput, Input};
use crate::engine::merchant::{Limits, Merchant, MerchantStatus};
use protocol::code::{Code, OrderState};
use protocol::id::ShortText;

fn world(limits: Limits) -> World {
    let mut world = World::new();
    world.put_merchant(Merchant { limits, ..merchant() });
    world.settle();
    world
}

fn code(world: &mut World, number: &str, minor: i64) -> (Code, u32) {
    let asked = world.pay(number, minor);
    world.order_reply(asked).map_or((Code::Ok, 0), |reply| {
        assert_eq!(reply.state, OrderState::None, "a refusal leaves no order");
        (reply.code, reply.retry_after_ms)
    })
}

#[test]
fn the_pay_rate_survives_a_restart_exactly() {
    let mut world = world(Limits { pay_per_minute: 60, burst: 3, ..limits() });
    for number in ["a", "b", "c"] {
        assert_eq!(code(&mut world, number, 1).0, Code::Ok);
    }
    assert_eq!(code(&mut world, "d", 1), (Code::RateLimited, 1000));
    world.settle();
    let before = world.now;
    world.crash_at(world.log.len());
    let passed = (world.now.wall_us - before.wall_us) / 1000;
    assert_eq!(passed, 1000);
    assert_eq!(code(&mut world, "d", 1).0, Code::Ok);
    assert_eq!(code(&mut world, "e", 1), (Code::RateLimited, 1000));
}

#[test]
fn proposals_that_vanish_give_their_rate_back() {
    let mut world = world(Limits { pay_per_minute: 60, burst: 2, ..limits() });
    assert_eq!(code(&mut world, "a", 1).0, Code::Ok);
    assert_eq!(code(&mut world, "b", 1).0, Code::Ok);
    world.out.block.clear();
    world.give(Input::StepDown);
    let refused: Vec<_> = world.out.replies.drain(..).collect();
    assert_eq!(refused.len(), 2, "both askers are told to go elsewhere");
    world.lead();
    assert_eq!(code(&mut world, "c", 1).0, Code::Ok);
    assert_eq!(code(&mut world, "a", 1).0, Code::Ok);
    assert_eq!(code(&mut world, "b", 1).0, Code::RateLimited);
    world.settle();
    world.assert_follower_agrees();
}

#[test]
fn the_daily_cap_counts_accepted_pays_and_survives_a_restart() {
    let mut world = world(Limits { daily_cap: 100, ..limits() });
    assert_eq!(code(&mut world, "a", 70).0, Code::Ok);
    assert_eq!(code(&mut world, "b", 31).0, Code::DailyCapExceeded);
    world.settle();
    world.crash_at(world.log.len());
    assert_eq!(code(&mut world, "b", 31).0, Code::DailyCapExceeded);
    assert_eq!(code(&mut world, "c", 30).0, Code::Ok);
    world.settle();
    world.out.sends.clear();
    world.jump(world.now.mono_us + 86_400 * SECOND);
    assert_eq!(code(&mut world, "d", 100).0, Code::Ok);
}

#[test]
fn tiers_bounds_and_status_refuse_before_anything_is_written() {
    let mut world = world(Limits { single_max: 1000, second_signature_from: 500, ..limits() });
    let blocks = world.log.len();
    assert_eq!(code(&mut world, "a", 1001).0, Code::SingleLimitExceeded);
    assert_eq!(code(&mut world, "a", 500).0, Code::SecondSignatureRequired);
    let mut pay = world.pay_input("a", 500);
    pay.second_signature = true;
    pay.time_expire_ms = world.now.wall_us / 1000;
    world.give(Input::Pay(pay));
    assert_eq!(
        world.order_reply(pay.origin.waiter.correlation).expect("refused").code,
        Code::Expired
    );
    assert!(world.out.block.is_empty() && world.log.len() == blocks);
    for (status, expected) in [
        (MerchantStatus::Suspended, Code::MerchantNotActive),
        (MerchantStatus::Dormant, Code::MerchantNotActive),
        (MerchantStatus::Limited, Code::SingleLimitExceeded),
    ] {
        let limits = Limits { single_max: 800, ..limits() };
        world.put_merchant(Merchant { status, limits, ..merchant() });
        world.settle();
        assert_eq!(code(&mut world, "a", 401).0, expected);
    }
    assert_eq!(code(&mut world, "a", 400).0, Code::Ok);
}

#[test]
fn temporary_limits_end_by_themselves() {
    let mut world = world(Limits { single_max: 10, ..limits() });
    let until_ms = world.now.wall_us / 1000 + 60_000;
    world.give(Input::Admin(AdminInput {
        ticket: 5,
        operator: ShortText::new(b"ops").expect("short"),
        command: AdminCommand::PutLimits {
            mch_id: mch(),
            limits: Limits { single_max: 100, ..limits() },
            until_ms,
        },
    }));
    world.settle();
    assert_eq!(world.out.admin.last(), Some(&(5, Ok("done".into()))));
    assert_eq!(code(&mut world, "a", 100).0, Code::Ok);
    world.settle();
    world.crash_at(world.log.len());
    assert_eq!(code(&mut world, "b", 100).0, Code::Ok);
    world.jump(world.now.mono_us + 61 * SECOND);
    assert_eq!(code(&mut world, "c", 11).0, Code::SingleLimitExceeded);
    assert_eq!(code(&mut world, "c", 10).0, Code::Ok);
}

#[test]
fn refunds_closes_and_reverses_share_a_rate_and_queries_have_their_own() {
    let mut world =
        world(Limits { refund_per_minute: 60, query_per_minute: 60, burst: 1, ..limits() });
    world.paid("a", 100);
    let asked = world.refund("a", "r1", 10);
    assert!(world.refund_reply(asked).is_none());
    let asked = world.refund("a", "r2", 10);
    let reply = world.refund_reply(asked).expect("refused");
    assert_eq!((reply.code, reply.retry_after_ms), (Code::RateLimited, 1000));
    assert_eq!(world.query("a").code, Code::Ok);
    assert_eq!(world.query("a").code, Code::RateLimited);
    world.settle();
    world.assert_follower_agrees();
}

#[test]
fn capacity_and_channels_bound_admission() {
    let mut config = config(vec![channel(1)]);
    (config.orders_max, config.channels[0].in_flight_max) = (3, 2);
    let mut world = World::with(config);
    assert_eq!(code(&mut world, "a", 1).0, Code::Ok);
    assert_eq!(code(&mut world, "b", 1).0, Code::Ok);
    assert_eq!(code(&mut world, "c", 1).0, Code::ChannelUnavailable);
    world.settle();
    let send = world.sent(crate::engine::input::Operation::Charge);
    world.answer(&send, protocol::channel::ChannelStatus::Success);
    assert_eq!(code(&mut world, "c", 1).0, Code::Ok);
    assert_eq!(code(&mut world, "d", 1).0, Code::CapacityReached);
    world.give(Input::ChannelUp { channel: 1, up: false });
    let asked = world.ask_order("c");
    assert!(world.order_reply(asked).is_none(), "not durable yet");
    world.commit();
    assert_eq!(world.order_reply(asked).expect("durable").state, OrderState::Processing);
}
