//! Far more than a deliberately small switch can take: untimed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol::code::{Code, OrderState};
use protocol::id::OutTradeNo;
use protocol::message::{OrderRef, OrderReply, kind};
use tests::Deployment;
use tests::gateway::{Gateway, Merchant, merchant, pay, signed_order, signed_pay};

use crate::run;

const CONNECTIONS: u64 = 4;
const PAYS: u64 = 200;
const OUTSTANDING_MAX: u64 = 100;
const CONNECTION_MAX: u64 = 64;
const INBOX_MAX: u64 = 16;

fn number(connection: u64, at: u64) -> String {
    format!("ov-{connection}-{at}")
}

/// Sends numbers all at once; the answer of each, which comes exactly once.
async fn offer(
    gateway: &mut Gateway,
    m: &Merchant,
    connection: u64,
    numbers: &BTreeSet<u64>,
) -> BTreeMap<u64, OrderReply> {
    let mut frames = Vec::new();
    for at in numbers {
        frames.extend(signed_pay(m, &pay(m, &number(connection, *at), 100), *at));
    }
    gateway.write(&frames).await;
    let mut answers = BTreeMap::new();
    for _ in numbers {
        let (header, body) = gateway.read().await.unwrap();
        let reply = OrderReply::decode(&body).unwrap();
        assert!(answers.insert(header.correlation, reply).is_none(), "answered twice");
    }
    answers
}

/// Watches the gauges until told to stop; the highest seen of each.
fn watch(deployment: &Deployment, stop: &AtomicBool) -> [u64; 2] {
    let mut highest = [0; 2];
    while !stop.load(Ordering::Relaxed) {
        for (at, name) in ["in_flight", "inbox_batches"].into_iter().enumerate() {
            highest[at] = highest[at].max(deployment.metric(name));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    highest
}

#[test]
fn what_is_too_much_is_refused_with_a_code_and_nothing_admitted_is_lost() {
    let deployment = Deployment::init(20);
    deployment.edit("# outstanding_max = 65536", &format!("outstanding_max = {OUTSTANDING_MAX}"));
    deployment.edit("# inbox_batches = 1024", &format!("inbox_batches = {INBOX_MAX}"));
    deployment.edit("# in_flight_max = 4096", &format!("in_flight_max = {CONNECTION_MAX}"));
    deployment.edit("# in_flight_max = 65536", "in_flight_max = 16");
    deployment.edit("queue_delay_max_ms = 10000", "queue_delay_max_ms = 20");
    let _channel = deployment.channel(&["--latency", "50ms"]);
    let switch = deployment.serve();
    let merchants: Vec<_> = (0..CONNECTIONS as usize).map(|at| merchant(&deployment, at)).collect();
    let (stop, mut refusals) = (AtomicBool::new(false), BTreeMap::<Code, u64>::new());
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&deployment, &stop));
        run(async {
            let mut left: Vec<BTreeSet<u64>> =
                (0..CONNECTIONS).map(|_| (0..PAYS).collect()).collect();
            let mut gateways = Vec::new();
            for _ in 0..CONNECTIONS {
                gateways.push(Gateway::open(&deployment).await);
            }
            // Round after round, until everybody was served.
            for round in 0..1_000 {
                let offered = gateways.iter_mut().zip(&merchants).zip(&left).enumerate();
                let offered = offered.map(|(connection, ((gateway, m), left))| {
                    offer(gateway, m, connection as u64, left)
                });
                let answers = join(offered).await;
                let mut wait_ms = 0;
                for (connection, answers) in answers.into_iter().enumerate() {
                    for (at, reply) in answers {
                        if reply.code == Code::Ok {
                            left[connection].remove(&at);
                            continue;
                        }
                        *refusals.entry(reply.code).or_default() += 1;
                        assert!(reply.retry_after_ms > 0, "{reply:?}");
                        assert_eq!((reply.state, reply.transaction_id), (OrderState::None, None));
                        wait_ms = wait_ms.max(reply.retry_after_ms);
                    }
                }
                if left.iter().all(BTreeSet::is_empty) {
                    return;
                }
                assert!(round < 999, "never served: {left:?}");
                tokio::time::sleep(Duration::from_millis(wait_ms.into())).await;
            }
        });
        stop.store(true, Ordering::Relaxed);
        let [in_flight, inbox] = watching.join().unwrap();
        assert!(in_flight <= OUTSTANDING_MAX && inbox <= INBOX_MAX, "{in_flight}, {inbox}");
    });
    let expected = [Code::Overloaded, Code::TooManyInFlight, Code::ChannelUnavailable];
    assert!(refusals.keys().all(|code| expected.contains(code)), "{refusals:?}");
    for code in [Code::TooManyInFlight, Code::ChannelUnavailable] {
        assert!(refusals.contains_key(&code), "not overloaded: {refusals:?}");
    }
    for (code, count) in &refusals {
        let shown =
            deployment.labelled_metric("refusals_total", &format!("code=\"{}\"", code.name()));
        assert_eq!(shown, *count, "{code:?}");
    }
    for stage in ["queue_delay", "begin_durable", "channel_round_trip", "end_durable", "total"] {
        let timed = deployment.metric(&format!("{stage}_seconds_count"));
        assert!(timed > 0, "{stage} is shown and never timed");
    }

    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        for connection in 0..CONNECTIONS {
            let m = &merchants[connection as usize];
            for at in 0..PAYS {
                let no = OutTradeNo::parse(number(connection, at).as_bytes()).unwrap();
                let query = signed_order(m, kind::QUERY, OrderRef::OutTradeNo(no), 1);
                let found = gateway.order(&query).await;
                assert_eq!((found.code, found.state), (Code::Ok, OrderState::Paid), "{no:?}");
            }
        }
        let m = &merchants[0];
        let calm = gateway.order(&signed_pay(m, &pay(m, "calm", 100), 1)).await;
        assert_eq!((calm.code, calm.state), (Code::Ok, OrderState::Paid));
    });
    assert!(switch.stop().success());
}

/// All of them at the same time, on this thread.
async fn join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in waiting.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    })
    .await;
    done.into_iter().flatten().collect()
}

/// One merchant's burst is one shard's block; it may be larger than a block.
#[test]
fn a_burst_larger_than_a_block_is_written_in_parts() {
    let deployment = Deployment::init(20);
    deployment.edit("# block_max_bytes = 1048576", "block_max_bytes = 32768");
    // Nothing is shed for its age: this is about bytes.
    deployment.edit("queue_delay_max_ms = 10000", "queue_delay_max_ms = 60000");
    let _channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let m = merchant(&deployment, 0);
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let answers = offer(&mut gateway, &m, 9, &(0..3_000).collect()).await;
        for (at, reply) in answers {
            assert_eq!((reply.code, reply.state), (Code::Ok, OrderState::Paid), "{at}: {reply:?}");
        }
    });
    assert!(switch.stop().success());
    let verify = deployment.payswitch(&["log", "verify", deployment.log_dir().to_str().unwrap()]);
    assert!(verify.status.success(), "{}", tests::text(&verify));
}
