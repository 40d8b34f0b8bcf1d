//! A disk that fills under a running switch: new payments are refused with
//! their code, queries are answered, what is open is finished out of the
//! reserve, and service returns by itself.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use protocol::code::{Code, OrderState, RefundState};
use protocol::id::OutTradeNo;
use protocol::message::{OrderRef, OrderReply, OrderRequest, Pay, kind};
use tests::gateway::{
    Gateway, Merchant, auth, merchant, pay, signed_order, signed_pay, signed_refund, signed_request,
};
use tests::{Deployment, text, wait_until};

use crate::run;

/// Small segments and reserve, and nobody but the test closes.
fn configure(deployment: &Deployment, reserve_mib: u32) {
    deployment.edit("reverse_after_ms = 30000", "reverse_after_ms = 0");
    deployment.small_segments();
    deployment.edit("# reserve_mib = 256", &format!("reserve_mib = {reserve_mib}"));
}

/// Nothing durable for so long: the log has no segment. A frozen machine is not
/// a full disk.
const STUCK: Duration = Duration::from_secs(10);

fn by_no(no: &str) -> OrderRef {
    OrderRef::OutTradeNo(OutTradeNo::parse(no.as_bytes()).unwrap())
}

/// Opens payments of which no outcome is known yet.
async fn open(gateway: &mut Gateway, m: &Merchant, numbers: &[String]) {
    for (at, no) in numbers.iter().enumerate() {
        let order = Pay { wait_ms: 1, ..pay(m, no, 100) };
        gateway.write(&signed_pay(m, &order, at as u64)).await;
    }
    for _ in numbers {
        let (_, body) = gateway.read().await.unwrap();
        let reply = OrderReply::decode(&body).unwrap();
        assert_eq!((reply.code, reply.state), (Code::Ok, OrderState::Processing));
    }
}

/// A close that is written down and does not wait for the channel.
fn close(m: &Merchant, no: &str) -> Vec<u8> {
    let request =
        OrderRequest { mch_id: m.id, order: by_no(no), refresh: false, wait_ms: 1, auth: auth(m) };
    signed_request(m, kind::CLOSE, request, 1)
}

async fn query(gateway: &mut Gateway, m: &Merchant, no: &str) -> OrderReply {
    gateway.order(&signed_order(m, kind::QUERY, by_no(no), 2)).await
}

/// What a site with a full disk says to a pay, a refund and a query.
async fn refuses_only_what_is_new(gateway: &mut Gateway, m: &Merchant, early: &Pay<'_>) {
    let again = gateway.order(&signed_pay(m, early, 3)).await;
    assert_eq!((again.code, again.state, again.replayed), (Code::Ok, OrderState::Paid, true));
    let paid = "early";
    let refused = gateway.order(&signed_pay(m, &pay(m, "too-late", 100), 3)).await;
    assert_eq!((refused.code, refused.state), (Code::StorageFull, OrderState::None));
    assert!(refused.retry_after_ms > 0 && refused.transaction_id.is_none());
    let refund = gateway.refund(&signed_refund(m, by_no(paid), "r-1", 1, 4)).await;
    assert_eq!((refund.code, refund.state), (Code::StorageFull, RefundState::None));
    assert!(refund.retry_after_ms > 0);
    let known = query(gateway, m, paid).await;
    assert_eq!((known.code, known.state), (Code::Ok, OrderState::Paid));
    let unknown = query(gateway, m, "too-late").await;
    assert_eq!(unknown.code, Code::OrderNotFound, "a refused payment left a trace");
}

fn reserve_bytes(deployment: &Deployment) -> u64 {
    std::fs::metadata(deployment.log_dir().join("reserve")).unwrap().len()
}

/// What the log directory takes on its file system.
fn used_bytes(deployment: &Deployment) -> u64 {
    let entries = std::fs::read_dir(deployment.log_dir()).unwrap();
    entries.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

fn segments(deployment: &Deployment) -> u64 {
    deployment.status().unwrap()["log"]["segments"].as_u64().unwrap()
}

fn is_full(deployment: &Deployment) -> bool {
    let status = deployment.status().unwrap();
    status["log"]["disk_full"] == true && deployment.metric("disk_full") == 1
}

#[test]
fn a_full_disk_refuses_what_is_new_finishes_what_is_open_and_recovers() {
    let deployment = Deployment::init(20);
    configure(&deployment, 4);
    let faults = deployment.with_faults();
    let channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let m = merchant(&deployment, 0);
    let numbers: Vec<_> = (0..1_000).map(|at| format!("open-{at}")).collect();
    let early = pay(&m, "early", 100);
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        let paid = gateway.order(&signed_pay(&m, &early, 1)).await;
        assert_eq!(paid.state, OrderState::Paid);
    });

    // From now on the channel charges and does not say so.
    channel.kill();
    wait_until("the link is down", || !deployment.channel_is_up());
    let channel = deployment.channel(&["--drop-reply", "100"]);
    wait_until("the link is up", || deployment.channel_is_up());
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        open(&mut gateway, &m, &numbers).await;

        wait_until("two segments are ready", || segments(&deployment) >= 3);
        assert!(!is_full(&deployment));
        let reserve = reserve_bytes(&deployment);
        assert_eq!(reserve, 4 << 20);
        let prepared = segments(&deployment);
        faults.disk_capacity(Some(used_bytes(&deployment)));
        wait_until("the full disk is noticed", || is_full(&deployment));
        wait_until("no space is shown", || deployment.metric("disk_free_bytes") == 0);
        refuses_only_what_is_new(&mut gateway, &m, &early).await;

        // Each close is a record of its own: together more than what was
        // prepared holds.
        for no in &numbers {
            let batches = deployment.metric("log_batches_total");
            let closing = gateway.order(&close(&m, no)).await;
            assert_eq!(closing.code, Code::Ok, "{no}: {closing:?}");
            wait_until("the close is durable", || deployment.metric("log_batches_total") > batches);
        }
        assert!(segments(&deployment) > prepared, "the reserve was not needed");
        assert!(reserve_bytes(&deployment) < reserve);
        refuses_only_what_is_new(&mut gateway, &m, &early).await;
    });

    channel.kill();
    wait_until("the link is down", || !deployment.channel_is_up());
    let _channel = deployment.channel(&[]);
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        for no in &numbers {
            let mut reply = query(&mut gateway, &m, no).await;
            while !reply.state.is_final() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                reply = query(&mut gateway, &m, no).await;
                assert_eq!(reply.code, Code::Ok);
            }
            assert_eq!(reply.state, OrderState::Closed, "{no}");
        }
        assert!(is_full(&deployment), "it was to be finished on a full disk");
        refuses_only_what_is_new(&mut gateway, &m, &early).await;

        faults.disk_capacity(None);
        wait_until("the space is noticed", || !is_full(&deployment));
        let paid = gateway.order(&signed_pay(&m, &pay(&m, "too-late", 100), 5)).await;
        assert_eq!((paid.code, paid.state, paid.replayed), (Code::Ok, OrderState::Paid, false));
        let refund = gateway.refund(&signed_refund(&m, by_no("early"), "r-1", 1, 6)).await;
        assert_eq!(refund.state, RefundState::Success);
        wait_until("the reserve is whole again", || reserve_bytes(&deployment) == 4 << 20);
    });
    assert!(switch.stop().success());
    let verify = deployment.payswitch(&["log", "verify", deployment.log_dir().to_str().unwrap()]);
    assert!(verify.status.success(), "{}", text(&verify));
}

#[test]
fn a_disk_full_to_the_last_block_only_waits() {
    let deployment = Deployment::init(20);
    configure(&deployment, 1);
    let faults = deployment.with_faults();
    let _channel = deployment.channel(&["--drop-reply", "100"]);
    let mut switch = deployment.serve();
    let m = merchant(&deployment, 0);
    let numbers: Vec<_> = (0..2_000).map(|at| format!("open-{at}")).collect();
    let stuck = run(async {
        let mut gateway = Gateway::open(&deployment).await;
        open(&mut gateway, &m, &numbers).await;
        wait_until("two segments are ready", || segments(&deployment) >= 3);
        faults.disk_capacity(Some(used_bytes(&deployment)));
        wait_until("the full disk is noticed", || is_full(&deployment));
        let mut closing = numbers.iter();
        // Until nothing becomes durable any more.
        loop {
            let no = closing.next().expect("the disk takes everything");
            let batches = deployment.metric("log_batches_total");
            let reply = gateway.order(&close(&m, no)).await;
            assert_eq!(reply.code, Code::Ok);
            let asked = std::time::Instant::now();
            while deployment.metric("log_batches_total") == batches {
                if asked.elapsed() > STUCK {
                    return no;
                }
            }
        }
    });
    assert!(switch.runs(), "{}", switch.printed());
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        assert_eq!(query(&mut gateway, &m, stuck).await.code, Code::Ok);
        let refused = gateway.order(&signed_pay(&m, &pay(&m, "late", 1), 3)).await;
        assert_eq!(refused.code, Code::StorageFull);
        let batches = deployment.metric("log_batches_total");
        faults.disk_capacity(None);
        wait_until("the log goes on", || deployment.metric("log_batches_total") > batches);
        wait_until("the space is noticed", || !is_full(&deployment));
        let begun = Pay { wait_ms: 1, ..pay(&m, "after", 1) };
        let begun = gateway.order(&signed_pay(&m, &begun, 4)).await;
        assert_eq!((begun.code, begun.state), (Code::Ok, OrderState::Processing));
    });
    assert!(switch.stop().success());
}
