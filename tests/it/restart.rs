//! Crashes and stops of the real process.

use protocol::code::{Code, OrderState};
use protocol::id::OutTradeNo;
use protocol::message::{OrderRef, kind};
use tests::Deployment;
use tests::gateway::{Gateway, merchant, pay, signed_order, signed_pay};

use crate::run;

#[test]
fn answers_survive_kill_9_and_a_channel_outage_ends_in_an_answer() {
    let deployment = Deployment::init(20);
    let channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let m = merchant(&deployment, 0);
    let first = pay(&m, "k-1", 900);
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let paid = gateway.order(&signed_pay(&m, &first, 1)).await;
        assert_eq!(paid.state, OrderState::Paid);
    });
    switch.kill();
    let switch = deployment.serve();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let again = gateway.order(&signed_pay(&m, &first, 1)).await;
        assert_eq!((again.state, again.replayed), (OrderState::Paid, true));
    });
    channel.kill();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        // Until the loss of the channel is noticed a pay may start and stay open;
        // afterwards it is refused. Neither may hang.
        let reply = gateway.order(&signed_pay(&m, &pay(&m, "k-2", 900), 2)).await;
        assert!(
            reply.code == Code::ChannelUnavailable || reply.state == OrderState::Processing,
            "{reply:?}"
        );
    });
    assert!(switch.stop().success(), "a stop by signal is a clean end");
}

#[test]
fn a_pay_in_doubt_is_resolved_after_the_restart_of_everything() {
    let deployment = Deployment::init(20);
    // Every reply is lost: the charge is made, the switch does not learn of it.
    let channel = deployment.channel(&["--drop-reply", "100"]);
    let switch = deployment.serve();
    let m = merchant(&deployment, 4);
    let order = protocol::message::Pay { wait_ms: 200, ..pay(&m, "doubt-1", 41) };
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let early = gateway.order(&signed_pay(&m, &order, 1)).await;
        assert_eq!((early.code, early.state), (Code::Ok, OrderState::Processing));
    });
    switch.kill();
    channel.kill();
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let reference = OrderRef::OutTradeNo(OutTradeNo::parse(b"doubt-1").unwrap());
        let again = gateway.order(&signed_pay(&m, &order, 2)).await;
        if again.state == OrderState::Processing {
            // The query was not answered within the wait: ask until it is.
            for correlation in 3.. {
                let query = signed_order(&m, kind::QUERY, reference, correlation);
                let found = gateway.order(&query).await;
                if found.state != OrderState::Processing {
                    assert_eq!(found.state, OrderState::Paid);
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                assert!(correlation < 400, "still in doubt after 20 s");
            }
        } else {
            assert_eq!(again.state, OrderState::Paid);
        }
    });
}

#[test]
fn two_switches_on_one_log_and_a_taken_port_are_refused() {
    let deployment = Deployment::init(20);
    let _switch = deployment.serve();
    let mut second = deployment.start_switch();
    let status = second.wait(std::time::Duration::from_secs(20));
    assert_eq!(status.code(), Some(3), "{}", second.printed());
}
