//! The gateway client against scripted sites. What the product's server never
//! does on purpose (silence, lost connections, refusals at one site only,
//! frames that are none) is done here. Built with the feature `client`, as in
//! `cargo test --workspace`.

mod site;

use protocol::client::{Client, ClientConfig, ClientError, ConnectError, LinkError, Signer};
use protocol::client::{Site, TlsError};
use protocol::code::{CloseCode, Code, Method, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, TransactionId};
use protocol::message::{Auth, OrderRef, OrderRequest, Pay, QueryRefund, Refund, Tags};
use protocol::money::{Amount, Currency};
use protocol::sign::{MerchantKey, SigningKey};
use site::{Act, Authority, Cluster, Script, always, event, paid, refunded, until};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(120);
/// A deadline or a silence that a test waits for.
const SHORT: Duration = Duration::from_millis(200);

fn pay() -> Pay<'static> {
    Pay {
        mch_id: MchId::parse(b"m-1").unwrap(),
        out_trade_no: OutTradeNo::parse(b"no-1").unwrap(),
        amount: Amount::new(100).unwrap(),
        currency: Currency::new(*b"CNY").unwrap(),
        method: Method::Wallet,
        scene: Scene::App,
        payer_token: b"tok",
        device_id: b"",
        client_ip: [0; 16],
        time_expire_ms: 1,
        notify: b"",
        wait_ms: 0,
        tags: Tags::default(),
        auth: Auth::NONE,
        second: Auth::NONE,
    }
}

fn order(order: OrderRef) -> OrderRequest<'static> {
    OrderRequest { mch_id: pay().mch_id, order, refresh: false, wait_ms: 0, auth: Auth::NONE }
}

fn by_no() -> OrderRef {
    OrderRef::OutTradeNo(pay().out_trade_no)
}

fn refund() -> Refund<'static> {
    Refund {
        mch_id: pay().mch_id,
        order: by_no(),
        out_refund_no: OutRefundNo::parse(b"r-1").unwrap(),
        amount: Amount::new(40).unwrap(),
        currency: pay().currency,
        reason: b"",
        wait_ms: 0,
        auth: Auth::NONE,
    }
}

fn signer() -> Signer {
    Signer::new(7, SigningKey::hmac(b"0123456789abcdef"))
}

/// The outcome of one pay at a single site.
async fn pay_at(script: Script) -> (Result<protocol::message::OrderReply, ClientError>, Cluster) {
    let cluster = Cluster::start(vec![script]);
    let client = cluster.client().await;
    (client.pay(&pay(), &signer(), WITHIN).await, cluster)
}

fn assert_same_bytes(bodies: &[Vec<u8>]) {
    assert!(bodies.iter().all(|body| *body == bodies[0]), "a copy differs");
}

#[tokio::test]
async fn every_request_is_answered() {
    let cluster = Cluster::start(vec![always(Act::Done)]);
    let client = cluster.client().await;
    assert_eq!(client.sites(), [Ok(1)]);
    let signer = signer();
    assert_eq!(client.pay(&pay(), &signer, WITHIN).await, Ok(paid(1)));
    for reference in [by_no(), OrderRef::TransactionId(TransactionId::new(1, 2))] {
        assert_eq!(client.query(&order(reference), &signer, WITHIN).await, Ok(paid(1)));
    }
    assert_eq!(client.close(&order(by_no()), &signer, WITHIN).await, Ok(paid(1)));
    assert_eq!(client.reverse(&order(by_no()), &signer, WITHIN).await, Ok(paid(1)));
    assert_eq!(client.refund(&refund(), &signer, WITHIN).await, Ok(refunded()));
    let Refund { mch_id, order, out_refund_no, auth, .. } = refund();
    let query = QueryRefund { mch_id, order, out_refund_no, auth };
    assert_eq!(client.query_refund(&query, &signer, WITHIN).await, Ok(refunded()));
    assert_eq!(client.ping(42, WITHIN).await.unwrap().token, 42);
    assert_eq!(cluster.sites[0].requests().len(), 7);

    let clone = client.clone();
    assert!(client.shutdown(WITHIN).await);
    assert_eq!(clone.ping(43, WITHIN).await, Err(ClientError::ShutDown));
    until(|| cluster.sites[0].was_closed_with(CloseCode::Normal)).await;
}

#[tokio::test]
async fn both_algorithms_and_second_signatures_verify() {
    let cluster = Cluster::start(vec![always(Act::Done)]);
    let client = cluster.client().await;
    let (hmac, seed) = (b"0123456789abcdef", [9; 32]);
    let public = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
    let signers = [
        Signer::new(7, SigningKey::hmac(hmac)),
        Signer::new(8, SigningKey::ed25519(&seed)),
        Signer::new(7, SigningKey::hmac(hmac)).with_second(8, SigningKey::ed25519(&seed)),
        Signer::certificate(),
    ];
    for signer in &signers {
        client.pay(&pay(), signer, WITHIN).await.unwrap();
    }
    let bodies = cluster.sites[0].requests();
    let mut seen = Vec::new();
    for body in &bodies {
        let sent = Pay::decode(body).unwrap();
        let mut form = Vec::new();
        sent.canonical(&mut form);
        let verified = |auth: Auth<'_>| match auth.key_id {
            7 => MerchantKey::hmac(hmac).verify(&form, auth.signature),
            8 => MerchantKey::ed25519(public.as_bytes()).unwrap().verify(&form, auth.signature),
            _ => auth.signature.is_empty(),
        };
        assert!(verified(sent.auth) && verified(sent.second));
        seen.push((sent.auth.key_id, sent.second.key_id));
    }
    assert_eq!(seen, [(7, 0), (8, 0), (7, 8), (0, 0)]);
}

#[tokio::test]
async fn many_requests_share_the_streams() {
    let cluster = Cluster::start(vec![always(Act::Done)]);
    let config = ClientConfig { in_flight_max: 50, ..cluster.config() };
    let client = cluster.client_with(config).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let client = client.clone();
        tasks.spawn(async move {
            let out_trade_no = OutTradeNo::parse(format!("no-{number}").as_bytes()).unwrap();
            client.pay(&Pay { out_trade_no, ..pay() }, &signer(), WITHIN).await
        });
    }
    let replies = tasks.join_all().await;
    assert!(replies.iter().all(|reply| *reply == Ok(paid(1))));
}

/// Nothing but the notice can cause it: silence is waited for far longer.
#[tokio::test]
async fn what_is_open_at_an_old_leader_goes_to_the_one_that_is_told() {
    let dead = Arc::new(AtomicBool::new(false));
    let dies = Arc::clone(&dead);
    let script = move |_| if dies.load(Ordering::Acquire) { Act::Silent } else { Act::Done };
    let cluster = Cluster::start(vec![Box::new(script), always(Act::Done)]);
    let client = cluster.client().await;
    let [first, second] = &cluster.sites[..] else { panic!() };
    let signer = signer();
    let pay = |number: u32| {
        let number = format!("no-{number}");
        let pay = Pay { out_trade_no: OutTradeNo::parse(number.as_bytes()).unwrap(), ..pay() };
        let (client, signer) = (&client, &signer);
        async move { client.pay(&pay, signer, WITHIN).await.unwrap() }
    };
    // Without any news it is site 2's turn for this number.
    let mut number = 0;
    while pay(number).await != paid(2) {
        number += 1;
    }
    first.tell_leader(1, 4);
    while pay(number).await != paid(1) {}
    dead.store(true, Ordering::Release);
    let before = first.requests().len();
    let takeover = async {
        until(|| first.requests().len() > before).await;
        second.tell_leader(2, 5);
    };
    let (reply, ()) = tokio::join!(pay(number), takeover);
    assert_eq!(reply, paid(2));
    let copies = [first.requests().pop().unwrap(), second.requests().pop().unwrap()];
    assert_same_bytes(&copies);
    // Site 1 is behind and still believes in itself.
    first.tell_leader(1, 4);
    for _ in 0..8 {
        assert_eq!(pay(number).await, paid(2));
    }
}

#[tokio::test]
async fn a_silent_site_is_passed_over_with_the_same_bytes() {
    let cluster = Cluster::start(vec![always(Act::Silent), always(Act::Done)]);
    let config = ClientConfig { resend_after: SHORT, ..cluster.config() };
    let client = cluster.client_with(config).await;
    for number in ["no-1", "no-2", "no-3", "no-4"] {
        let out_trade_no = OutTradeNo::parse(number.as_bytes()).unwrap();
        // Whichever site is asked first, the answer can only come from the second.
        let pay = Pay { out_trade_no, ..pay() };
        assert_eq!(client.pay(&pay, &signer(), WITHIN).await, Ok(paid(2)));
        let all: Vec<_> = cluster.sites.iter().flat_map(|site| site.requests()).collect();
        let copies = |body: &&Vec<u8>| Pay::decode(body).unwrap().out_trade_no == out_trade_no;
        assert_same_bytes(&all.iter().filter(copies).cloned().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_lost_connection_is_replaced_and_the_same_bytes_sent_again() {
    let script = |count| if count < 3 { Act::Drop } else { Act::Done };
    let (asked, cluster) = pay_at(Box::new(script)).await;
    assert_eq!(asked, Ok(paid(1)));
    let bodies = cluster.sites[0].requests();
    assert_eq!(bodies.len(), 3);
    assert_same_bytes(&bodies);
}

#[tokio::test]
async fn a_restarted_site_is_found_again() {
    let mut cluster = Cluster::start(vec![always(Act::Done)]);
    let client = cluster.client().await;
    assert_eq!(client.pay(&pay(), &signer(), WITHIN).await, Ok(paid(1)));
    cluster.restart(0).await;
    assert_eq!(client.pay(&pay(), &signer(), WITHIN).await, Ok(paid(1)));
}

#[tokio::test]
async fn no_answer_by_the_deadline_is_an_unknown_outcome() {
    let cluster = Cluster::start(vec![always(Act::Silent)]);
    let config = ClientConfig { resend_after: SHORT / 10, ..cluster.config() };
    let client = cluster.client_with(config).await;
    let asked = client.pay(&pay(), &signer(), SHORT).await;
    assert_eq!(asked, Err(ClientError::OutcomeUnknown { last: None }));
    assert!(asked.unwrap_err().may_have_acted());
    // One connection, one copy: streams do not lose frames.
    assert_eq!(cluster.sites[0].requests().len(), 1);
    // A question changes nothing.
    let asked = client.query(&order(by_no()), &signer(), SHORT).await;
    assert_eq!(asked, Err(ClientError::NoAnswer));
    assert!(!asked.unwrap_err().may_have_acted());
}

#[tokio::test]
async fn a_leader_hint_is_followed_and_remembered() {
    let refuse = Act::Refuse(Code::NotLeader, 2);
    let cluster = Cluster::start(vec![always(refuse), always(Act::Done)]);
    let client = cluster.client().await;
    for number in 0..8 {
        let out_trade_no = OutTradeNo::parse(format!("no-{number}").as_bytes()).unwrap();
        let pay = Pay { out_trade_no, ..pay() };
        assert_eq!(client.pay(&pay, &signer(), WITHIN).await, Ok(paid(2)));
    }
    // Only the first that went to the site that does not lead; the copy at the
    // leader is the same.
    let passed_on = cluster.sites[0].requests();
    assert_eq!(passed_on.len(), 1);
    assert!(cluster.sites[1].requests().contains(&passed_on[0]));
}

#[tokio::test]
async fn without_a_leader_the_same_site_is_asked_again() {
    let script = |count| if count < 4 { Act::Refuse(Code::NoLeader, 0) } else { Act::Done };
    let (asked, cluster) = pay_at(Box::new(script)).await;
    assert_eq!(asked, Ok(paid(1)));
    let bodies = cluster.sites[0].requests();
    assert_eq!(bodies.len(), 4);
    assert_same_bytes(&bodies);
}

#[tokio::test]
async fn hints_in_a_circle_end_at_the_deadline() {
    let circle =
        vec![always(Act::Refuse(Code::NotLeader, 2)), always(Act::Refuse(Code::NotLeader, 1))];
    let cluster = Cluster::start(circle);
    let client = cluster.client().await;
    let asked = client.pay(&pay(), &signer(), SHORT).await;
    assert_eq!(asked, Err(ClientError::OutcomeUnknown { last: Some(Code::NotLeader) }));
    // Ever more slowly: 5, 10, 20, ... ms.
    let copies: usize = cluster.sites.iter().map(|site| site.requests().len()).sum();
    assert!((2..12).contains(&copies), "{copies} copies");
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let (asked, cluster) = pay_at(always(Act::Refuse(Code::RateLimited, 0))).await;
    let reply = asked.unwrap();
    assert_eq!((reply.code, reply.retry_after_ms), (Code::RateLimited, 10));
    assert_eq!(cluster.sites[0].requests().len(), 1);
    let (asked, _) = pay_at(always(Act::Error(Code::UnknownKind))).await;
    assert_eq!(asked, Err(ClientError::Refused(Code::UnknownKind)));
}

#[tokio::test]
async fn a_refusal_after_a_lost_copy_proves_nothing() {
    for first in [Act::Drop, Act::Refuse(Code::NotLeader, 0)] {
        let script = move |count| match count {
            1 => first,
            _ => Act::Refuse(Code::BadSignature, 0),
        };
        let (asked, _) = pay_at(Box::new(script)).await;
        let last = Some(Code::BadSignature);
        assert_eq!(asked, Err(ClientError::OutcomeUnknown { last }));
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_no_outcome() {
    for act in [Act::UnknownCode, Act::WrongKind, Act::Error(Code::Ok)] {
        let (asked, _) = pay_at(always(act)).await;
        assert_eq!(asked, Err(ClientError::Unreadable));
        assert!(asked.unwrap_err().may_have_acted());
    }
}

#[tokio::test]
async fn an_oversize_answer_ends_the_connection_and_not_the_request() {
    for length in [16_385, u32::MAX] {
        let script = move |count| if count == 1 { Act::Announce(length) } else { Act::Done };
        let (asked, cluster) = pay_at(Box::new(script)).await;
        assert_eq!(asked, Ok(paid(1)));
        assert!(cluster.sites[0].was_closed_with(CloseCode::FrameTooLarge));
        assert_same_bytes(&cluster.sites[0].requests());
    }
}

#[tokio::test]
async fn an_answer_told_twice_is_one_answer() {
    let cluster = Cluster::start(vec![always(Act::Twice)]);
    let client = cluster.client().await;
    for _ in 0..20 {
        assert_eq!(client.pay(&pay(), &signer(), WITHIN).await, Ok(paid(1)));
    }
}

#[tokio::test]
async fn a_draining_site_gets_nothing_new() {
    let cluster = Cluster::start(vec![always(Act::Done), always(Act::Done)]);
    let client = cluster.client().await;
    assert_eq!(client.sites(), [Ok(1), Ok(2)]);
    cluster.sites[0].deadline_ms.store(50, Ordering::Relaxed);
    cluster.endpoints[0].set_server_config(None);
    cluster.sites[0].go_away.notify_one();
    until(|| client.sites()[0].is_err()).await;
    for _ in 0..8 {
        assert_eq!(client.pay(&pay(), &signer(), WITHIN).await, Ok(paid(2)));
    }
    assert!(cluster.sites[0].requests().is_empty());
    // It does not close by its own deadline, so we do.
    until(|| cluster.sites[0].was_closed_with(CloseCode::Normal)).await;
}

#[tokio::test]
async fn a_leaving_site_still_answers() {
    let cluster = Cluster::start(vec![always(Act::Hold)]);
    let client = cluster.client().await;
    let asked = {
        let client = client.clone();
        tokio::spawn(async move { client.pay(&pay(), &signer(), WITHIN).await })
    };
    let site = &cluster.sites[0];
    until(|| site.requests().len() == 1).await;
    cluster.endpoints[0].set_server_config(None);
    site.go_away.notify_one();
    until(|| client.sites()[0].is_err()).await;
    assert_eq!(client.ping(1, SHORT).await, Err(ClientError::NotSent));
    site.release.notify_waiters();
    assert_eq!(asked.await.unwrap(), Ok(paid(1)));
    assert_eq!(site.requests().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_here() {
    let cluster = Cluster::start(vec![always(Act::Done)]);
    let client = cluster.client().await;
    let (signer, long) = (signer(), [b'x'; 300]);
    let asked = client.pay(&Pay { payer_token: &long, ..pay() }, &signer, WITHIN).await;
    assert!(matches!(asked, Err(ClientError::Invalid(error)) if error.field() == "payer_token"));
    let asked = client.refund(&Refund { reason: &long, ..refund() }, &signer, WITHIN).await;
    assert!(matches!(asked, Err(ClientError::Invalid(error)) if error.field() == "reason"));
    // Bytes that the count does not cover would be read as the next fields.
    let tags = Tags { count: 0, encoded: &[0; 64] };
    let asked = client.pay(&Pay { tags, ..pay() }, &signer, WITHIN).await;
    assert!(matches!(asked, Err(ClientError::Invalid(_))));
    let asked = client.pay(&pay(), &signer, Duration::from_secs(241)).await;
    assert_eq!(asked, Err(ClientError::DeadlineTooLong));
    let asked = client.pay(&pay(), &signer, Duration::ZERO).await;
    assert_eq!(asked, Err(ClientError::NotSent));
    assert!(cluster.sites[0].requests().is_empty());
}

#[tokio::test]
async fn a_full_window_is_said_at_once() {
    let cluster = Cluster::start(vec![always(Act::Silent)]);
    let config = ClientConfig { in_flight_max: 1, ..cluster.config() };
    let client = cluster.client_with(config).await;
    let (signer, pay) = (signer(), pay());
    let (first, second) =
        tokio::join!(client.pay(&pay, &signer, SHORT), client.pay(&pay, &signer, WITHIN),);
    assert_eq!(first, Err(ClientError::OutcomeUnknown { last: None }));
    assert_eq!(second, Err(ClientError::Full));
    // We gave up, the site has not: it still counts the request.
    assert_eq!(client.pay(&pay, &signer, WITHIN).await, Err(ClientError::Full));
    assert_eq!(cluster.sites[0].requests().len(), 1);
    // A new connection is a new window.
    cluster.sites[0].cut();
    until(|| client.sites()[0].is_err()).await;
    let asked = client.pay(&pay, &signer, WITHIN / 100).await;
    assert_eq!(asked, Err(ClientError::OutcomeUnknown { last: None }));
}

#[tokio::test]
async fn the_site_s_own_window_is_kept() {
    let cluster = Cluster::start(vec![always(Act::Silent)]);
    cluster.sites[0].hello.lock().unwrap().in_flight_max = 2;
    let client = cluster.client().await;
    let (signer, pay) = (signer(), pay());
    let ask = |within| client.pay(&pay, &signer, within);
    let (first, second, third) = tokio::join!(ask(SHORT), ask(SHORT), ask(WITHIN));
    let unknown = Err(ClientError::OutcomeUnknown { last: None });
    assert_eq!((first, second, third), (unknown, unknown, Err(ClientError::Full)));
}

#[tokio::test]
async fn events_come_and_are_acknowledged_across_lost_connections() {
    let cluster = Cluster::start(vec![always(Act::Done)]);
    let client = cluster.client().await;
    let mut subscription = client.subscribe(WITHIN).await.unwrap();
    for times in 1..4 {
        assert_eq!(subscription.next().await, Ok(event()));
        subscription.acknowledge(77).await.unwrap();
        until(|| cluster.sites[0].acknowledged().len() == times).await;
        cluster.sites[0].cut();
    }
    assert_eq!(cluster.sites[0].acknowledged(), [77; 3]);
    drop(client);
    // What was under way may still come.
    while let Ok(found) = subscription.next().await {
        assert_eq!(found, event());
    }
    assert_eq!(subscription.next().await, Err(ClientError::ShutDown));
}

/// Each site tells the events of the shards that it leads, and hears no acknowledgement of
/// another one's.
#[tokio::test]
async fn events_come_from_every_site_and_are_acknowledged_there() {
    let cluster = Cluster::start(vec![always(Act::Done), always(Act::Done)]);
    let client = cluster.client().await;
    let mut subscription = client.subscribe(WITHIN).await.unwrap();
    for times in 1..4 {
        let (first, second) = (subscription.next().await, subscription.next().await);
        let mut ids = [first.unwrap().event_id, second.unwrap().event_id];
        // Not in the order in which they came.
        ids.reverse();
        for event_id in ids {
            subscription.acknowledge(event_id).await.unwrap();
        }
        ids.sort_unstable();
        assert_eq!(ids, [77, 78]);
        let heard = |site: usize| cluster.sites[site].acknowledged();
        until(|| heard(0).len() == times && heard(1).len() == times).await;
        assert!(heard(0).iter().all(|id| *id == 77) && heard(1).iter().all(|id| *id == 78));
        cluster.sites.iter().for_each(|site| site.cut());
    }
    // A site that does not come back holds up nobody else's.
    cluster.endpoints[0].close(CloseCode::Draining.wire().into(), b"gone");
    until(|| client.sites()[0].is_err()).await;
    let mut heard = 0;
    while heard < 3 {
        if subscription.next().await.unwrap().event_id == 78 {
            heard += 1;
            cluster.sites[1].cut();
        }
    }
    assert_eq!(subscription.acknowledge(5).await, Err(ClientError::ConnectionLost));
}

async fn refused(config: ClientConfig) -> LinkError {
    match Client::connect(config).await.err() {
        Some(ConnectError::Unreachable(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn strangers_do_not_get_in_and_wrong_names_are_noticed() {
    let cluster = Cluster::start(vec![always(Act::Done)]);
    let stranger = Authority::new().issue("gw-1.gateway.payswitch");
    let config = ClientConfig {
        cert_pem: stranger.0.into_bytes(),
        key_pem: stranger.1.into_bytes(),
        ..cluster.config()
    };
    assert_eq!(refused(config).await, LinkError::Handshake);
    let mut config = cluster.config();
    config.sites[0].server_name = "site-9.site.payswitch".to_owned();
    assert_eq!(refused(config).await, LinkError::Handshake);
    let mut config = cluster.config();
    config.sites[0].server_name = "no name".to_owned();
    assert_eq!(refused(config).await, LinkError::Address);
    // A greeting that makes no sense.
    cluster.sites[0].hello.lock().unwrap().shards = 0;
    assert_eq!(refused(cluster.config()).await, LinkError::Protocol);
    // Nobody there.
    let mut config = cluster.config();
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    config.sites[0].address = nobody.local_addr().unwrap();
    config.connect_timeout = SHORT;
    assert_eq!(refused(config).await, LinkError::Silent);
}

#[tokio::test]
async fn a_site_of_another_cluster_gets_no_request() {
    let cluster = Cluster::start(vec![always(Act::Done), always(Act::Done)]);
    cluster.sites[1].hello.lock().unwrap().cluster = 2;
    let client = Client::connect(cluster.config()).await.unwrap();
    let settled = |site: &Result<u8, LinkError>| *site != Err(LinkError::Silent);
    until(|| client.sites().iter().all(settled)).await;
    let strange = client.sites().iter().position(|site| *site == Err(LinkError::OtherCluster));
    let strange = strange.expect("one of them is refused");
    for _ in 0..4 {
        client.pay(&pay(), &signer(), WITHIN).await.unwrap();
    }
    assert!(cluster.sites[strange].requests().is_empty());
    assert!(cluster.sites[strange].was_closed_with(CloseCode::WrongSite));
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_refused() {
    let cluster = Cluster::start(vec![always(Act::Done)]);
    let told = async |config| Client::connect(config).await.err().map(|error| error.to_string());
    let config = ClientConfig { key_pem: b"no key".to_vec(), ..cluster.config() };
    assert_eq!(told(config).await, Some(TlsError::Key.to_string()));
    let config = ClientConfig { ca_pem: Vec::new(), ..cluster.config() };
    assert_eq!(told(config).await, Some(TlsError::Authority.to_string()));
    let config = ClientConfig { sites: Vec::<Site>::new(), ..cluster.config() };
    assert_eq!(told(config).await, Some("no site is configured".to_owned()));
    let config = ClientConfig { streams: 0, ..cluster.config() };
    assert_eq!(told(config).await, Some("the setting streams must not be zero".to_owned()));
}

#[test]
fn errors_tell_their_source() {
    let error = ConnectError::Unreachable(LinkError::Closed(CloseCode::TooManyConnections));
    let source = error.source().expect("a source").to_string();
    assert_eq!(source, "the site closed the connection: TOO_MANY_CONNECTIONS");
}
