//! What gateways do to the front that nobody should notice: streams that end early,
//! connections that end while the switch looks away, handshakes without end.

use std::net::SocketAddr;
use std::time::Duration;

use protocol::code::OrderState;
use protocol::message::{Ack, Event, Pay, Subscribe, kind};
use tests::Deployment;
use tests::gateway::{Credentials, Gateway, Merchant, client, frame, merchant, pay, signed_pay};

use crate::run;

/// A subscription on a stream of its own, once it stands.
async fn subscribe(quic: &quinn::Connection) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, mut recv) = quic.open_bi().await.unwrap();
    let mut bytes = Vec::new();
    Subscribe.encode_frame(9, &mut bytes);
    send.write_all(&bytes).await.unwrap();
    assert_eq!(frame(&mut recv).await.unwrap().0.kind, kind::SUBSCRIBE | kind::REPLY);
    (send, recv)
}

/// Pays, and takes the event of each payment over.
async fn pay_and_hear(
    gateway: &mut Gateway,
    m: &Merchant,
    (send, recv): &mut (quinn::SendStream, quinn::RecvStream),
    numbers: &[&str],
) {
    for number in numbers {
        let order = Pay { notify: b"shop", ..pay(m, number, 100) };
        let paid = gateway.order(&signed_pay(m, &order, 1)).await;
        assert_eq!(paid.state, OrderState::Paid, "{number}: {paid:?}");
        let (header, body) = frame(recv).await.unwrap();
        assert_eq!((header.kind, header.correlation), (kind::EVENT, 9), "{number}");
        let event = Event::decode(&body).unwrap();
        assert_eq!(event.out_trade_no.as_str(), *number);
        let mut bytes = Vec::new();
        Ack { event_id: event.event_id }.encode_frame(10, &mut bytes);
        send.write_all(&bytes).await.unwrap();
    }
}

/// A site that delivers an event again so late that nobody waits for it.
fn serve_without_repetition(deployment: &Deployment) -> tests::Process {
    deployment.edit("# event_retry_ms = 5000", "event_retry_ms = 3600000");
    deployment.serve()
}

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !is_true() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_subscription_whose_stream_ended_eats_no_events() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let _switch = serve_without_repetition(&deployment);
    let m = merchant(&deployment, 0);
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        // One is reset by its client, one finished, of one the events are not wanted any more.
        let (mut reset, _unread) = subscribe(&gateway.quic).await;
        let (mut finished, mut to_its_end) = subscribe(&gateway.quic).await;
        reset.reset(0_u32.into()).unwrap();
        finished.finish().unwrap();
        assert!(frame(&mut to_its_end).await.is_err(), "the switch finishes its side too");
        let mut events = subscribe(&gateway.quic).await;
        let numbers = ["s-1", "s-2", "s-3", "s-4", "s-5", "s-6"];
        pay_and_hear(&mut gateway, &m, &mut events, &numbers).await;
        assert_eq!(deployment.metric("events_total"), numbers.len() as u64);
        until("all were taken over", || {
            let of = |shard| format!("shard=\"{shard}\"");
            (0..12).all(|shard| deployment.labelled_metric("outbox_events", &of(shard)) == 0)
        })
        .await;
    });
}

/// quinn hands out streams that came with the end of their connection before that end.
#[test]
fn what_arrives_with_the_end_of_its_connection_leaves_nothing_behind() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let switch = serve_without_repetition(&deployment);
    let m = merchant(&deployment, 0);
    run(async {
        let mut leaving = Vec::new();
        for _ in 0..4 {
            leaving.push(Gateway::open(&deployment).await);
        }
        switch.signal("STOP");
        let mut streams = Vec::new();
        for (at, gateway) in leaving.iter().enumerate() {
            let mut bytes = Vec::new();
            Subscribe.encode_frame(9, &mut bytes);
            let order = pay(&m, &format!("gone-{at}"), 100);
            for bytes in [signed_pay(&m, &order, 1), bytes] {
                let (mut send, recv) = gateway.quic.open_bi().await.unwrap();
                send.write_all(&bytes).await.unwrap();
                send.finish().unwrap();
                streams.push((send, recv));
            }
        }
        // Time for the packets to leave: a close takes back what has not left yet.
        tokio::time::sleep(Duration::from_millis(200)).await;
        for gateway in &leaving {
            gateway.quic.close(0_u32.into(), b"done");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        switch.signal("CONT");
        until("their end is noticed", || deployment.metric("connections") == 0).await;

        let mut gateway = Gateway::open(&deployment).await;
        let mut events = subscribe(&gateway.quic).await;
        let numbers = ["n-1", "n-2", "n-3", "n-4", "n-5", "n-6"];
        pay_and_hear(&mut gateway, &m, &mut events, &numbers).await;
        assert_eq!(deployment.metric("events_total"), numbers.len() as u64);
        // The figure is published once a second, and was so before.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        until("nothing is unanswered", || deployment.metric("in_flight") == 0).await;
    });
}

/// Passes packets on to the switch from another address, 127.0.0.2, and of those that
/// come back only what asks for a proof of that address: handshakes that go on for ever.
async fn one_way(switch: SocketAddr) -> SocketAddr {
    const RETRY: u8 = 0xf0;
    let inside = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let outside = tokio::net::UdpSocket::bind("127.0.0.2:0").await.unwrap();
    outside.connect(switch).await.unwrap();
    let address = inside.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut up, mut down) = ([0; 2_048], [0; 2_048]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((len, from)) = inside.recv_from(&mut up) => {
                    client = Some(from);
                    outside.send(&up[..len]).await.unwrap();
                }
                Ok(len) = outside.recv(&mut down) => {
                    if let Some(client) = client.filter(|_| down[0] & RETRY == RETRY) {
                        inside.send_to(&down[..len], client).await.unwrap();
                    }
                }
            }
        }
    });
    address
}

#[test]
fn one_host_without_end_of_handshakes_keeps_no_other_out() {
    let deployment = Deployment::init(20);
    deployment.edit("# handshake_timeout_ms = 2000", "handshake_timeout_ms = 60000");
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    let m = merchant(&deployment, 0);
    run(async {
        let relay = one_way(deployment.address("gateway", "listen").parse().unwrap()).await;
        // A stranger: what is dropped here is not even a certificate.
        let stranger = client(&deployment, &Credentials { alpn: b"payswitch/1", identity: None });
        let _under_way: Vec<_> =
            (0..100).map(|_| stranger.connect(relay, "site-1.site.payswitch").unwrap()).collect();
        let refused = || deployment.metric("connections_refused_total") >= 20;
        until("there are too many", refused).await;
        assert_eq!(deployment.metric("handshakes"), 16, "a quarter");
        let mut gateway = Gateway::open(&deployment).await;
        let paid = gateway.order(&signed_pay(&m, &pay(&m, "h-1", 100), 1)).await;
        assert_eq!(paid.state, OrderState::Paid);
        assert_eq!(deployment.metric("handshakes"), 16, "they are still under way");
    });
}
