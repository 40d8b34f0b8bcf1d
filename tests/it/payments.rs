//! The main job: pay, query, refund, close and reverse, end to end.

use std::time::Instant;

use protocol::code::{Code, OrderState, RefundState};
use protocol::id::OutTradeNo;
use protocol::message::{OrderRef, kind};
use tests::Deployment;
use tests::gateway::{Gateway, merchant, pay, signed_order, signed_pay, signed_refund};

use crate::run;

fn by_no(no: &str) -> OrderRef {
    OrderRef::OutTradeNo(OutTradeNo::parse(no.as_bytes()).unwrap())
}

#[test]
fn a_payment_is_paid_queried_refunded_and_explained() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        assert_eq!((gateway.hello.site, gateway.hello.sites, gateway.hello.shards), (1, 1, 12));
        let m = merchant(&deployment, 0);

        let order = pay(&m, "order-1", 12_345);
        let paid = gateway.order(&signed_pay(&m, &order, 1)).await;
        assert_eq!((paid.code, paid.state, paid.replayed), (Code::Ok, OrderState::Paid, false));
        assert_eq!(paid.amount, 12_345);
        let id = paid.transaction_id.unwrap();
        assert_eq!(id.to_string().len(), 18);

        // The same request again: the stored outcome.
        let again = gateway.order(&signed_pay(&m, &order, 2)).await;
        assert_eq!((again.state, again.replayed), (OrderState::Paid, true));
        assert_eq!(again.transaction_id, Some(id));
        // The same number with another amount: a conflict that tells nothing.
        let other = pay(&m, "order-1", 1);
        let conflict = gateway.order(&signed_pay(&m, &other, 3)).await;
        assert_eq!((conflict.code, conflict.transaction_id), (Code::IdempotencyConflict, None));

        for order in [by_no("order-1"), OrderRef::TransactionId(id)] {
            let found = gateway.order(&signed_order(&m, kind::QUERY, order, 4)).await;
            assert_eq!(
                (found.code, found.state, found.amount),
                (Code::Ok, OrderState::Paid, 12_345)
            );
            assert_eq!(found.out_trade_no.as_str(), "order-1");
        }

        let refund = signed_refund(&m, by_no("order-1"), "r-1", 12_000, 5);
        let refunded = gateway.refund(&refund).await;
        assert_eq!((refunded.code, refunded.state), (Code::Ok, RefundState::Success));
        assert_eq!((refunded.refunded, refunded.refunding), (12_000, 0));
        let again = gateway.refund(&refund).await;
        assert_eq!(
            (again.state, again.replayed, again.refunded),
            (RefundState::Success, true, 12_000)
        );
        let too_much = signed_refund(&m, by_no("order-1"), "r-2", 346, 6);
        assert_eq!(gateway.refund(&too_much).await.code, Code::RefundExceedsPaid);
        let rest = signed_refund(&m, OrderRef::TransactionId(id), "r-3", 345, 7);
        assert_eq!(gateway.refund(&rest).await.refunded, 12_345);

        let close = gateway.order(&signed_order(&m, kind::CLOSE, by_no("order-1"), 8)).await;
        assert_eq!(close.code, Code::OrderPaid);
        let reverse = gateway.order(&signed_order(&m, kind::REVERSE, by_no("order-1"), 9)).await;
        assert_eq!(reverse.code, Code::HasRefund);
    });
    let config = deployment.file("site-1.toml");
    let explained = deployment.payswitch(&[
        "admin",
        "--config",
        config.to_str().unwrap(),
        "explain",
        "M000001",
        "order-1",
    ]);
    let text = tests::text(&explained);
    assert!(explained.status.success(), "{text}");
    for kind in ["begin", "end", "refund", "refund_end"] {
        assert!(text.contains(kind), "no {kind} in:\n{text}");
    }
}

/// Without the right to ask for it nothing else changes.
#[test]
fn cores_are_kept_awake_for_lone_payments_and_for_a_quarter_of_the_time_at_most() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let start = Instant::now();
    let _switch = deployment.serve();
    let name = "cores_awake_moments_seconds_total";
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let m = merchant(&deployment, 0);
        for nth in 0..20 {
            let order = format!("lone-{nth}");
            let paid = gateway.order(&signed_pay(&m, &pay(&m, &order, 1), nth + 1)).await;
            assert_eq!(paid.state, OrderState::Paid);
        }
    });
    let awake_s = deployment.seconds(name);
    let may_ask = std::fs::OpenOptions::new().write(true).open("/dev/cpu_dma_latency").is_ok();
    assert_eq!(awake_s > 0.0, may_ask, "{awake_s}");
    assert!(awake_s <= start.elapsed().as_secs_f64() / 4.0, "{awake_s}");
}

#[test]
fn a_paid_payment_is_reversed_once() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let m = merchant(&deployment, 1);
        let paid = gateway.order(&signed_pay(&m, &pay(&m, "rev-1", 500), 1)).await;
        assert_eq!(paid.state, OrderState::Paid);
        let reverse = signed_order(&m, kind::REVERSE, by_no("rev-1"), 2);
        let reversed = gateway.order(&reverse).await;
        assert_eq!((reversed.code, reversed.refunded), (Code::Ok, 500));
        let again = gateway.order(&reverse).await;
        assert_eq!((again.refunded, again.replayed), (500, true));
        let refund = gateway.refund(&signed_refund(&m, by_no("rev-1"), "r", 1, 3)).await;
        assert_eq!(refund.code, Code::OrderCancelling);
    });
}

#[test]
fn ed25519_merchants_and_subscribers_are_served() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    run(async {
        let mut events = Gateway::open(&deployment).await;
        let mut frame = Vec::new();
        protocol::message::Subscribe.encode_frame(9, &mut frame);
        events.write(&frame).await;
        assert_eq!(events.read().await.unwrap().0.kind, kind::SUBSCRIBE | kind::REPLY);

        let mut gateway = Gateway::open(&deployment).await;
        let m = merchant(&deployment, 19);
        let order = protocol::message::Pay { notify: b"shop", ..pay(&m, "ev-1", 77) };
        let paid = gateway.order(&signed_pay(&m, &order, 1)).await;
        assert_eq!(paid.state, OrderState::Paid);

        let (header, body) = events.read().await.unwrap();
        assert_eq!((header.kind, header.correlation), (kind::EVENT, 9));
        let event = protocol::message::Event::decode(&body).unwrap();
        assert_eq!((event.sequence, event.state, event.amount), (1, OrderState::Paid, 77));
        assert_eq!(event.out_trade_no.as_str(), "ev-1");
        frame.clear();
        protocol::message::Ack { event_id: event.event_id }.encode_frame(10, &mut frame);
        events.write(&frame).await;
    });
}

#[test]
fn limits_hold_over_a_restart() {
    let deployment = Deployment::init(20);
    let channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let config = deployment.file("site-1.toml");
    let limited = deployment.payswitch(&[
        "admin",
        "--config",
        config.to_str().unwrap(),
        "limit",
        "set",
        "M000003",
        "--pay-per-minute",
        "1",
        "--burst",
        "3",
    ]);
    assert!(limited.status.success(), "{}", tests::text(&limited));
    let m = merchant(&deployment, 2);
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        for (correlation, no) in ["l-1", "l-2", "l-3"].into_iter().enumerate() {
            let reply = gateway.order(&signed_pay(&m, &pay(&m, no, 5), correlation as u64)).await;
            assert_eq!(reply.state, OrderState::Paid, "{no}: {reply:?}");
        }
        let refused = gateway.order(&signed_pay(&m, &pay(&m, "l-4", 5), 4)).await;
        assert_eq!((refused.code, refused.state), (Code::RateLimited, OrderState::None));
        assert!((1..=60_001).contains(&refused.retry_after_ms), "{}", refused.retry_after_ms);
    });
    switch.kill();
    let _switch = deployment.serve();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let refused = gateway.order(&signed_pay(&m, &pay(&m, "l-5", 5), 5)).await;
        assert_eq!(refused.code, Code::RateLimited, "the limit continues where it stopped");
        let known = gateway.order(&signed_pay(&m, &pay(&m, "l-9", 5), 6)).await;
        assert_eq!(known.code, Code::RateLimited);
    });
    drop(channel);
}
