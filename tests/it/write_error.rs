//! A write of the log that fails: the switch stops at once, says why, and has
//! answered nothing that is not on the disk.

use std::collections::HashMap;
use std::time::Duration;

use protocol::code::{Code, OrderState};
use protocol::frame::Header;
use protocol::id::OutTradeNo;
use protocol::message::{OrderRef, OrderReply, kind};
use tests::faults::Done;
use tests::gateway::{Gateway, Merchant, merchant, pay, signed_order, signed_pay};
use tests::{Deployment, text};

use crate::run;

/// Payments under way at the same time.
const WINDOW: u64 = 64;

fn number(round: usize, at: u64) -> String {
    format!("we-{round}-{at}")
}

/// Keeps a window of pays open, strikes after `calm` answers, and returns how
/// many were sent and the final answers until the connection ended.
async fn pay_until_the_end(
    deployment: &Deployment,
    m: &Merchant,
    round: usize,
    calm: usize,
    strike: impl Fn(),
) -> (u64, HashMap<u64, OrderReply>) {
    let mut gateway = Gateway::open(deployment).await;
    let mut answers = HashMap::new();
    let mut sent = 0;
    let order = |at| signed_pay(m, &pay(m, &number(round, at), 100), at);
    while sent < WINDOW {
        gateway.write(&order(sent)).await;
        sent += 1;
    }
    while let Ok((Header { correlation, .. }, body)) = gateway.read().await {
        let reply = OrderReply::decode(&body).unwrap();
        assert_eq!(reply.code, Code::Ok, "a failing log refuses nothing, it ends: {reply:?}");
        if reply.state.is_final() {
            answers.insert(correlation, reply);
        }
        if answers.len() == calm {
            strike();
        }
        // A connection that ended shows at the next read.
        if gateway.try_write(&order(sent)).await.is_ok() {
            sent += 1;
        }
    }
    (sent, answers)
}

/// Asks for a payment until it is final; `None`: there is no such payment.
async fn settled(gateway: &mut Gateway, m: &Merchant, no: &str) -> Option<OrderReply> {
    let order = OrderRef::OutTradeNo(OutTradeNo::parse(no.as_bytes()).unwrap());
    for _ in 0..1_200 {
        let reply = gateway.order(&signed_order(m, kind::QUERY, order, 1)).await;
        match reply.code {
            Code::OrderNotFound => return None,
            Code::Ok if reply.state.is_final() => return Some(reply),
            Code::Ok => tokio::time::sleep(Duration::from_millis(50)).await,
            code => panic!("{no}: {code:?}"),
        }
    }
    panic!("{no} has no final state");
}

#[test]
fn a_failed_write_ends_the_switch_and_nothing_unwritten_was_answered() {
    let deployment = Deployment::init(20);
    deployment.small_segments();
    let faults = deployment.with_faults();
    let _channel = deployment.channel(&[]);
    let m = merchant(&deployment, 0);
    let cases = [
        (libc::EIO, Done::Nothing, "Input/output error"),
        (libc::EIO, Done::All, "Input/output error"),
        (libc::EIO, Done::Half, "Input/output error"),
        // The next segment cannot be prepared.
        (libc::EIO, Done::Unsynced, "Input/output error"),
        (libc::ENOSPC, Done::Nothing, "No space left on device"),
    ];
    for (round, (errno, done, said)) in cases.into_iter().enumerate() {
        let mut switch = deployment.serve();
        let struck = faults.struck();
        let (sent, answers) = run(pay_until_the_end(&deployment, &m, round, 150, || {
            faults.fail_writes(errno, done);
        }));
        assert!(faults.struck() > struck && answers.len() >= 150);

        let status = switch.wait(Duration::from_secs(60));
        let printed = switch.printed();
        assert_eq!(status.code(), Some(3), "{printed}");
        let why: Vec<_> = printed.lines().filter(|line| line.contains(said)).collect();
        assert_eq!(why.len(), round_lines(round, said), "one line per end:\n{printed}");
        assert!(why.iter().all(|line| line.starts_with("payswitch: stopped: the log failed: ")));
        faults.mend_writes();

        let switch = deployment.serve();
        run(async {
            let mut gateway = Gateway::open(&deployment).await;
            let mut absent = 0;
            for at in 0..sent {
                let found = settled(&mut gateway, &m, &number(round, at)).await;
                match (answers.get(&at), found) {
                    (Some(told), Some(found)) => assert_eq!(
                        (found.state, found.transaction_id, found.finished_at_ms),
                        (told.state, told.transaction_id, told.finished_at_ms),
                        "an acknowledged outcome changed: {}",
                        number(round, at)
                    ),
                    (Some(told), None) => panic!("{} is lost: {told:?}", number(round, at)),
                    (None, Some(found)) => assert_eq!(found.state, OrderState::Paid),
                    (None, None) => absent += 1,
                }
            }
            assert!(absent <= WINDOW, "{absent} payments are absent, {WINDOW} were under way");
        });
        assert!(switch.stop().success());
        let log_dir = deployment.log_dir();
        let verify = deployment.payswitch(&["log", "verify", log_dir.to_str().unwrap()]);
        assert!(verify.status.success(), "{}", text(&verify));
    }
}

/// The output file grows over the rounds: so many of its lines name the error.
fn round_lines(round: usize, said: &str) -> usize {
    if said.starts_with("Input") { round + 1 } else { 1 }
}

#[test]
fn a_disk_that_fails_at_the_start_is_said_and_nothing_is_served() {
    let deployment = Deployment::init(20);
    let faults = deployment.with_faults();
    deployment.serve().kill();
    faults.fail_writes(libc::EIO, Done::Nothing);
    let mut switch = deployment.start_switch();
    let status = switch.wait(Duration::from_secs(60));
    let printed = switch.printed();
    assert_eq!(status.code(), Some(3), "{printed}");
    let last = printed.lines().last().unwrap_or_default();
    assert!(last.starts_with("payswitch: ") && last.contains("Input/output error"), "{printed}");
    faults.mend_writes();
    assert!(deployment.serve().stop().success());
}
