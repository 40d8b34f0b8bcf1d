//! What strangers and broken clients get: a clear code or a closed connection,
//! and no effect on anybody else.

use protocol::code::{CloseCode, Code, OrderState};
use protocol::message::{Auth, ErrorFrame, Pay, kind};
use tests::Deployment;
use tests::gateway::{Credentials, Gateway, Merchant, connect, merchant, now_ms, pay, signed_pay};

use crate::run;

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&7_u64.to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// A pay frame with one field changed after signing.
fn tampered(m: &Merchant, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = signed_pay(m, &pay(m, "bad", 100), 7);
    change(&mut bytes);
    bytes
}

#[test]
fn bad_requests_get_their_code_and_the_connection_lives_on() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    let (m, other) = (merchant(&deployment, 0), merchant(&deployment, 1));
    let stranger = Merchant { id: protocol::id::MchId::parse(b"nobody").unwrap(), ..m.clone() };
    let amount =
        |minor: i64| tampered(&m, move |b| b[16..24].copy_from_slice(&minor.to_le_bytes()));
    let signed = |change: &dyn Fn(&mut Pay<'static>)| {
        let mut order = pay(&m, "bad", 100);
        change(&mut order);
        signed_pay(&m, &order, 7)
    };
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("zero", amount(0), Code::InvalidAmount),
        ("negative", amount(-5), Code::InvalidAmount),
        ("overflowing", amount(i64::MAX), Code::InvalidAmount),
        ("tampered amount", amount(99), Code::BadSignature),
        (
            "truncated",
            frame(kind::PAY, &signed_pay(&m, &pay(&m, "bad", 1), 7)[16..46]),
            Code::MalformedBody,
        ),
        ("empty", frame(kind::PAY, &[]), Code::MalformedBody),
        ("unknown currency form", tampered(&m, |b| b[36] = b'c'), Code::InvalidField),
        ("expired", signed(&|p| p.time_expire_ms = now_ms() - 1), Code::Expired),
        ("too far", signed(&|p| p.time_expire_ms = now_ms() + 30 * 86_400_000), Code::InvalidField),
        ("stale", signed(&|p| p.auth.timestamp_ms = now_ms() - 3_600_000), Code::StaleTimestamp),
        ("unknown key", signed(&|p| p.auth.key_id = 99), Code::UnknownKey),
        (
            "unsigned",
            {
                let mut f = Vec::new();
                Pay { auth: Auth::NONE, ..pay(&m, "bad", 1) }.encode_frame(7, &mut f);
                f
            },
            Code::StaleTimestamp,
        ),
        (
            "unknown merchant",
            signed_pay(&stranger, &pay(&stranger, "bad", 1), 7),
            Code::UnknownMerchant,
        ),
        ("another's key", signed_pay(&other, &pay(&m, "bad", 1), 7), Code::BadSignature),
    ];
    run(async {
        let mut gateway = Gateway::open(&deployment).await;
        for (name, bytes, code) in cases {
            let reply = gateway.order(&bytes).await;
            assert_eq!((reply.code, reply.state), (code, OrderState::None), "{name}");
        }
        gateway.write(&frame(0x77, b"?")).await;
        let (header, body) = gateway.read().await.unwrap();
        assert_eq!((header.kind, header.correlation), (kind::ERROR, 7));
        assert_eq!(ErrorFrame::decode(&body).unwrap().code, Code::UnknownKind);
        let fine = gateway.order(&signed_pay(&m, &pay(&m, "good", 1), 8)).await;
        assert_eq!(fine.state, OrderState::Paid);
        // A refusal left no order behind: the number is free.
        let free = gateway.order(&signed_pay(&m, &pay(&m, "bad", 1), 9)).await;
        assert_eq!((free.state, free.replayed), (OrderState::Paid, false));
    });
}

async fn closed_with(gateway: &Gateway) -> String {
    let closed = gateway.quic.closed();
    let error = tokio::time::timeout(std::time::Duration::from_secs(20), closed).await;
    format!("{:?}", error.expect("the connection is closed"))
}

#[test]
fn broken_frames_close_their_connection_and_no_other() {
    let deployment = Deployment::init(20);
    deployment.edit("# frame_timeout_ms = 5000", "frame_timeout_ms = 500");
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    let m = merchant(&deployment, 0);
    run(async {
        let mut bystander = Gateway::open(&deployment).await;
        let mut oversize = frame(kind::PAY, &[]);
        oversize[..4].copy_from_slice(&16_385_u32.to_le_bytes());
        let mut reserved = frame(kind::PAY, &[]);
        reserved[6] = 1;
        let unfinished = frame(kind::PAY, &[0; 100])[..50].to_vec();
        let cases = [
            (oversize, CloseCode::FrameTooLarge),
            (reserved, CloseCode::ProtocolError),
            (unfinished, CloseCode::SlowPeer),
        ];
        for (bytes, code) in cases {
            let mut gateway = Gateway::open(&deployment).await;
            gateway.write(&bytes).await;
            let closed = closed_with(&gateway).await;
            assert!(closed.contains(&format!("error_code: {}", code.wire())), "{code:?}: {closed}");
        }
        let fine = bystander.order(&signed_pay(&m, &pay(&m, "by", 1), 1)).await;
        assert_eq!(fine.state, OrderState::Paid);
    });
}

#[test]
fn ten_thousand_streams_do_not_hurt_anybody() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let _switch = deployment.serve();
    let m = merchant(&deployment, 0);
    run(async {
        let mut bystander = Gateway::open(&deployment).await;
        let flood = Gateway::open(&deployment).await;
        let mut opened = Vec::new();
        // The limit makes opening wait; it never fails the connection.
        for _ in 0..10_000 {
            let open =
                tokio::time::timeout(std::time::Duration::from_millis(20), flood.quic.open_bi());
            match open.await {
                Ok(Ok(mut stream)) => {
                    stream.0.write_all(&[0; 3]).await.unwrap();
                    opened.push(stream);
                }
                Ok(Err(error)) => panic!("{error}"),
                Err(_) => break,
            }
        }
        assert!(opened.len() < 1_000, "{} streams at once", opened.len());
        let fine = bystander.order(&signed_pay(&m, &pay(&m, "by", 1), 1)).await;
        assert_eq!(fine.state, OrderState::Paid);
    });
}

/// Connecting succeeds before the server has judged the certificate: what
/// counts is that no HELLO comes.
async fn greeted(deployment: &Deployment, credentials: &Credentials<'_>) -> Result<(), String> {
    let quic = connect(deployment, credentials).await?;
    quic.accept_uni().await.map(drop).map_err(|error| error.to_string())
}

#[test]
fn strangers_are_not_greeted() {
    let deployment = Deployment::init(20);
    let foreign = Deployment::init(1);
    let _switch = deployment.serve();
    let file = |name: &str| deployment.file(name);
    let (cert, key) = (file("certs/gw-1.pem"), file("certs/gw-1.key"));
    let (admin, admin_key) = (file("certs/admin.pem"), file("certs/admin.key"));
    let (alien, alien_key) = (foreign.file("certs/gw-1.pem"), foreign.file("certs/gw-1.key"));
    run(async {
        let cases: [(&str, Credentials<'_>, &str); 4] = [
            ("no certificate", Credentials { alpn: b"payswitch/1", identity: None }, "certificate"),
            (
                "another CA",
                Credentials { alpn: b"payswitch/1", identity: Some((&alien, &alien_key)) },
                "",
            ),
            (
                "another role",
                Credentials { alpn: b"payswitch/1", identity: Some((&admin, &admin_key)) },
                "gateway",
            ),
            (
                "wrong ALPN",
                Credentials { alpn: b"payswitch/9", identity: Some((&cert, &key)) },
                "known protocol",
            ),
        ];
        for (name, credentials, text) in cases {
            let refused = greeted(&deployment, &credentials).await;
            let error = refused.expect_err(name);
            assert!(error.to_lowercase().contains(text), "{name}: {error}");
        }
        let fine = Credentials { alpn: b"payswitch/1", identity: Some((&cert, &key)) };
        greeted(&deployment, &fine).await.expect("the gateway itself is served");
    });
}
