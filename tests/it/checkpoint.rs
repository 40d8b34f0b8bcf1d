//! Checkpoints of a real site: restarts from them, one that is damaged, and a log
//! that no longer begins at the beginning.

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocol::code::OrderState;
use protocol::id::{OutTradeNo, TransactionId};
use protocol::message::{OrderRef, OrderReply, kind};
use tests::gateway::{Gateway, Merchant, merchant, pay, signed_order, signed_pay, signed_refund};
use tests::{Deployment, wait_until};

use crate::run;

/// Payments sent before their answers are read.
const AT_ONCE: u64 = 50;
/// What checkpoints get between two parts of a load that waits for them.
const CHECKPOINT_TIME: std::time::Duration = std::time::Duration::from_millis(5);

/// What a site must still say after a restart: the number that it gave to the
/// payment of this request.
type Answers = BTreeMap<u64, (TransactionId, Vec<u8>)>;

/// A deployment whose states are written down after every few dozen payments.
fn deployment() -> Deployment {
    let deployment = Deployment::init(20);
    deployment.small_segments();
    deployment.edit("# checkpoint_mib = 1024", "checkpoint_mib = 1");
    deployment
}

fn no(number: u64) -> String {
    format!("c-{number}")
}

/// Pays `numbers`, some at once; every answer is final.
async fn pay_all(
    gateway: &mut Gateway,
    m: &Merchant,
    numbers: std::ops::Range<u64>,
    answers: &mut Answers,
) {
    let numbers: Vec<u64> = numbers.collect();
    let mut requests = BTreeMap::new();
    for some in numbers.chunks(AT_ONCE as usize) {
        for number in some {
            let request = signed_pay(m, &pay(m, &no(*number), 100), *number);
            gateway.write(&request).await;
            requests.insert(*number, request);
        }
        for _ in some {
            let (header, body) = gateway.read().await.expect("an answer");
            let reply = OrderReply::decode(&body).expect("an order reply");
            assert_eq!(reply.state, OrderState::Paid, "{reply:?}");
            let id = reply.transaction_id.expect("a paid order has a number");
            let request = requests.remove(&header.correlation).expect("one answer each");
            answers.insert(header.correlation, (id, request));
        }
    }
}

async fn check_all(gateway: &mut Gateway, m: &Merchant, answers: &Answers) {
    for (number, (id, _)) in answers {
        let reference = OrderRef::OutTradeNo(OutTradeNo::parse(no(*number).as_bytes()).unwrap());
        let found = gateway.order(&signed_order(m, kind::QUERY, reference, *number)).await;
        assert_eq!((found.transaction_id, found.state), (Some(*id), OrderState::Paid), "{number}");
    }
    // And again as they were sent: known, not charged once more.
    for (id, request) in answers.values().step_by(17) {
        let again = gateway.order(request).await;
        let said = (again.transaction_id, again.state, again.replayed);
        assert_eq!(said, (Some(*id), OrderState::Paid, true));
    }
}

/// Checkpoint files, newest first.
fn checkpoints(deployment: &Deployment) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(deployment.log_dir()).expect("the log's folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|it| it == "checkpoint")).collect();
    files.sort();
    files.reverse();
    files
}

/// Waits until no checkpoint is under way: without load none comes any more.
fn wait_still(deployment: &Deployment) {
    let mut before = u64::MAX;
    wait_until("checkpoints stand still", || {
        let written = deployment.metric("checkpoints_total");
        std::thread::sleep(std::time::Duration::from_millis(500));
        std::mem::replace(&mut before, written) == written
    });
}

#[test]
fn restarts_begin_from_checkpoints_and_answer_as_before() {
    let deployment = deployment();
    let channel = deployment.channel(&[]);
    let m = merchant(&deployment, 0);
    let mut answers = Answers::new();
    for round in 0..4 {
        let switch = deployment.serve();
        if round > 0 {
            assert!(switch.printed().contains("checkpoints: "), "{}", switch.printed());
        }
        run(async {
            let mut gateway = Gateway::open(&deployment).await;
            check_all(&mut gateway, &m, &answers).await;
            let first = 100_000 * round;
            for part in 0.. {
                let from = first + part * 200;
                pay_all(&mut gateway, &m, from..from + 200, &mut answers).await;
                if deployment.metric("checkpoints_total") > 0 {
                    break;
                }
                assert!(part < 100, "no checkpoint");
            }
            // Killed while the next one may be under way.
            let from = first + 50_000;
            pay_all(&mut gateway, &m, from..from + 100 + 37 * round, &mut answers).await;
            let reference = OrderRef::OutTradeNo(OutTradeNo::parse(no(first).as_bytes()).unwrap());
            let refund = signed_refund(&m, reference, &format!("r-{round}"), 40, 1);
            assert_eq!(gateway.refund(&refund).await.refunded, 40);
        });
        assert_eq!(deployment.metric("checkpoint_failures_total"), 0);
        switch.kill();
    }
    let switch = deployment.serve();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        check_all(&mut gateway, &m, &answers).await;
        let reference = OrderRef::OutTradeNo(OutTradeNo::parse(no(0).as_bytes()).unwrap());
        let found = gateway.order(&signed_order(&m, kind::QUERY, reference, 1)).await;
        assert_eq!(found.refunded, 40);
    });
    wait_still(&deployment);
    assert!(switch.stop().success());
    drop(channel);
    let of_shard =
        |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy()[..4].to_owned());
    let files = checkpoints(&deployment);
    let most =
        files.iter().map(|file| files.iter().filter(|it| of_shard(it) == of_shard(file)).count());
    assert_eq!(most.max(), Some(2), "the last two of a shard are kept");
    let log_dir = deployment.log_dir();
    let verify = deployment.payswitch(&["log", "verify", log_dir.to_str().unwrap()]);
    assert!(verify.status.success(), "{}", tests::text(&verify));
}

#[test]
fn a_damaged_checkpoint_is_told_and_the_one_before_is_used() {
    let deployment = deployment();
    let _channel = deployment.channel(&[]);
    let m = merchant(&deployment, 0);
    let mut answers = Answers::new();
    let switch = deployment.serve();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        for round in 0.. {
            pay_all(&mut gateway, &m, round * 200..round * 200 + 200, &mut answers).await;
            if deployment.metric("checkpoints_total") >= 2 {
                break;
            }
        }
    });
    wait_still(&deployment);
    switch.kill();
    deployment.edit("checkpoint_mib = 1", "checkpoint_mib = 0");
    let files = checkpoints(&deployment);
    assert_eq!(files.len(), 2);
    for (file, is_last) in files.iter().zip([false, true]) {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(file, bytes).unwrap();
        let switch = deployment.serve();
        let printed = switch.printed();
        let (_, since) = printed.rsplit_once("is NOT USED: ").expect("it says so");
        assert!(since.contains(&*file.to_string_lossy()), "{printed}");
        assert_eq!(since.contains("checkpoints: "), !is_last, "{printed}");
        switch.kill();
        let set_aside = file.with_extension("checkpoint.damaged");
        assert!(set_aside.exists() && !file.exists(), "its bytes are kept");
    }
    let _switch = deployment.serve();
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        check_all(&mut gateway, &m, &answers).await;
    });
}

#[test]
fn a_released_log_restarts_and_says_that_its_beginning_is_gone() {
    let deployment = deployment();
    deployment.edit("# keep_mib = 0", "keep_mib = 1");
    let _channel = deployment.channel(&[]);
    let m = merchant(&deployment, 0);
    let mut answers = Answers::new();
    let is_released = || !deployment.log_dir().join(format!("{:016x}.wal", 1)).exists();
    for round in 0..3 {
        let switch = deployment.serve();
        run(async {
            let mut gateway = Gateway::open(&deployment).await;
            check_all(&mut gateway, &m, &answers).await;
            for part in 0.. {
                let first = round * 100_000 + part * 200;
                pay_all(&mut gateway, &m, first..first + 200, &mut answers).await;
                if is_released() && part >= 3 {
                    break;
                }
                assert!(part < 400, "nothing is released:\n{}", switch.printed());
                // Checkpoints are paced by time: a quick machine would outrun them.
                tokio::time::sleep(CHECKPOINT_TIME).await;
            }
        });
        switch.kill();
        let log_dir = deployment.log_dir();
        let verify = deployment.payswitch(&["log", "verify", log_dir.to_str().unwrap()]);
        assert!(verify.status.success(), "{}", tests::text(&verify));
    }
    let switch = deployment.serve();
    let config = deployment.file("site-1.toml");
    let explain = |no: &str| {
        let config = config.to_str().unwrap();
        let args = ["admin", "--config", config, "explain", "M000001", no];
        let explained = deployment.payswitch(&args);
        assert!(explained.status.success(), "{}", tests::text(&explained));
        tests::text(&explained)
    };
    let (first, last) = (explain(&no(0)), explain(&no(*answers.keys().last().unwrap())));
    assert!(first.contains("SUCCESS") || first.contains("PAID"), "{first}");
    assert!(first.contains("no longer reaches back"), "{first}");
    assert!(!last.contains("no longer reaches back"), "{last}");
    switch.kill();

    // Without its checkpoints such a log says nothing about what was before.
    for file in checkpoints(&deployment) {
        std::fs::remove_file(file).unwrap();
    }
    let mut switch = deployment.start_switch();
    let status = switch.wait(std::time::Duration::from_secs(60));
    assert_eq!(status.code(), Some(2), "{}", switch.printed());
    assert!(switch.printed().contains("in no sound checkpoint"), "{}", switch.printed());
}
