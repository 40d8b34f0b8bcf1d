//! The host's wall clock stepped by an hour, under a running switch and over
//! its restart.

use std::time::Duration;

use protocol::code::{Code, OrderState};
use protocol::id::OutTradeNo;
use protocol::message::{OrderRef, OrderReply, Pay, kind};
use tests::gateway::{Gateway, Merchant, merchant, now_ms, pay, signed_order, signed_pay};
use tests::{Deployment, Process, wait_until};

use crate::run;

const HOUR_S: i64 = 3_600;
const HOUR_MS: u64 = 3_600_000;
/// What a busy machine may take off an exact comparison of clocks.
const SLACK_MS: u64 = 120_000;

async fn query(gateway: &mut Gateway, m: &Merchant, no: &str) -> OrderReply {
    let order = OrderRef::OutTradeNo(OutTradeNo::parse(no.as_bytes()).unwrap());
    gateway.order(&signed_order(m, kind::QUERY, order, 1)).await
}

async fn settled(gateway: &mut Gateway, m: &Merchant, no: &str) -> OrderReply {
    for _ in 0..1_200 {
        let reply = query(gateway, m, no).await;
        assert_eq!(reply.code, Code::Ok, "{no}");
        if reply.state.is_final() {
            return reply;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{no} has no final state");
}

/// A pay that is Paid at once.
async fn paid(gateway: &mut Gateway, m: &Merchant, no: &str) -> OrderReply {
    let reply = gateway.order(&signed_pay(m, &pay(m, no, 100), 1)).await;
    assert_eq!((reply.code, reply.state), (Code::Ok, OrderState::Paid), "{no}: {reply:?}");
    reply
}

/// A pay of which the outcome stays unknown and that soon expires: its number
/// and when. On a busy machine it may have expired before it is heard.
async fn short_lived(deployment: &Deployment, m: &Merchant, no: &str) -> (String, u64) {
    let mut gateway = Gateway::open(deployment).await;
    for at in 0..20 {
        let no = format!("{no}-{at}");
        let expires_ms = m.now_ms() + 3_000;
        let order = Pay { wait_ms: 1, time_expire_ms: expires_ms, ..pay(m, &no, 100) };
        let reply = gateway.order(&signed_pay(m, &order, 1)).await;
        if reply.code == Code::Ok {
            return (no, expires_ms);
        }
        assert_eq!(reply.code, Code::Expired);
    }
    panic!("nothing is heard within 3 s");
}

/// A pay of which the outcome stays unknown.
async fn doubtful(gateway: &mut Gateway, m: &Merchant, no: &str) -> Pay<'static> {
    let order = Pay { wait_ms: 1, ..pay(m, no, 100) };
    let reply = gateway.order(&signed_pay(m, &order, 1)).await;
    assert_eq!((reply.code, reply.state), (Code::Ok, OrderState::Processing), "{no}");
    order
}

/// Replaces the channel by one that charges and says nothing, or a sound one.
fn swap_channel(deployment: &Deployment, channel: Process, sound: bool) -> Process {
    channel.kill();
    wait_until("the link is down", || !deployment.channel_is_up());
    let faults: &[&str] = if sound { &[] } else { &["--drop-reply", "100"] };
    let channel = deployment.channel(faults);
    wait_until("the link is up", || deployment.channel_is_up());
    channel
}

#[test]
fn a_step_under_a_running_switch_moves_no_deadline() {
    let deployment = Deployment::init(20);
    deployment.edit("reverse_after_ms = 30000", "reverse_after_ms = 0");
    let faults = deployment.with_faults();
    let mut channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let m = merchant(&deployment, 0);
    for (round, step) in [HOUR_S, -HOUR_S].into_iter().enumerate() {
        let name = |what: &str| format!("{what}-{round}");
        channel = swap_channel(&deployment, channel, false);
        run(async {
            let mut gateway = Gateway::open(&deployment).await;
            doubtful(&mut gateway, &m, &name("before")).await;
            faults.step_clock(step);
            wait_until("the step is shown", || {
                deployment.metric("clock_offset_seconds").abs_diff(3_600) < 60
            });
            doubtful(&mut gateway, &m, &name("after")).await;
        });
        // Over in three seconds, whatever the host's clock says.
        let (short, expires_ms) = run(short_lived(&deployment, &m, &name("short")));
        wait_until("it has expired", || now_ms() > expires_ms + 500);
        channel = swap_channel(&deployment, channel, true);
        run(async {
            let mut gateway = Gateway::open(&deployment).await;
            assert!(gateway.hello.time_ms.abs_diff(now_ms()) < SLACK_MS, "the clock jumped");
            for no in [name("before"), name("after")] {
                let reply = settled(&mut gateway, &m, &no).await;
                assert_eq!(reply.state, OrderState::Paid, "{no} expired by the step");
            }
            let reply = settled(&mut gateway, &m, &short).await;
            assert_eq!(reply.state, OrderState::Closed, "{short} was given more time");
            paid(&mut gateway, &m, &name("normal")).await;
        });
    }
    faults.step_clock(0);
    assert!(switch.stop().success());
}

#[test]
fn a_step_over_a_restart_charges_nothing_twice_and_shuts_nobody_out() {
    let deployment = Deployment::init(20);
    let faults = deployment.with_faults();
    let channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let mut m = merchant(&deployment, 0);
    let early = run(async {
        let mut gateway = Gateway::open(&deployment).await;
        paid(&mut gateway, &m, "early").await
    });
    let channel = swap_channel(&deployment, channel, false);
    let doubt = run(async {
        let mut gateway = Gateway::open(&deployment).await;
        doubtful(&mut gateway, &m, "doubt").await
    });
    switch.kill();

    faults.step_clock(HOUR_S);
    let switch = deployment.serve();
    let _channel = swap_channel(&deployment, channel, true);
    m.ahead_ms = HOUR_MS;
    let (late, closed) = run(async {
        let mut gateway = Gateway::open(&deployment).await;
        assert!(gateway.hello.time_ms.abs_diff(m.now_ms()) < SLACK_MS);
        // By the only clock there is it has expired: the charge is undone.
        let closed = settled(&mut gateway, &m, "doubt").await;
        assert_eq!(closed.state, OrderState::Closed);
        let again = query(&mut gateway, &m, "early").await;
        assert_eq!((again.state, again.finished_at_ms), (OrderState::Paid, early.finished_at_ms));
        (paid(&mut gateway, &m, "late").await, closed)
    });
    switch.kill();

    faults.step_clock(0);
    let switch = deployment.serve();
    m.ahead_ms = 0;
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        assert!(gateway.hello.time_ms.abs_diff(now_ms()) < SLACK_MS);
        // The merchant's last payments are an hour in the future.
        for at in 0..20 {
            paid(&mut gateway, &m, &format!("again-{at}")).await;
        }
        let outcome = |reply: &OrderReply| {
            (reply.state, reply.transaction_id, reply.finished_at_ms, reply.refunded)
        };
        for (no, told) in [("early", &early), ("late", &late), ("doubt", &closed)] {
            let found = query(&mut gateway, &m, no).await;
            assert_eq!(outcome(&found), outcome(told), "{no} changed");
        }
        // Its expiry is ahead again, and yet it stays what it was.
        let replay = gateway.order(&signed_pay(&m, &doubt, 9)).await;
        assert_eq!(
            (replay.code, replay.state, replay.replayed),
            (Code::Ok, OrderState::Closed, true)
        );
    });
    assert!(switch.stop().success());
}
