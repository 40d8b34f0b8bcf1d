//! The samples behind the vectors.

use crate::twin::hex;
use protocol::channel::{
    ChannelReply, ChannelRequest, ChannelStatus, NumberKind, channel_number, order_digest,
};
use protocol::code::{CloseCode, Code, Method, OrderState, Reason, RefundState, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText, TransactionId};
use protocol::message::{
    Ack, Auth, ErrorFrame, Event, GoAway, Hello, Leader, Leaders, OrderRef, OrderReply,
    OrderRequest, Pay, Ping, Pong, QueryRefund, Refund, RefundReply, Subscribe, Tags, kind,
};
use protocol::money::{Amount, Currency};
use protocol::sign::SigningKey;

/// One vector: a frame, and the keys that signed it.
pub struct Sample {
    pub name: String,
    pub frame: Vec<u8>,
    pub keys: Vec<(&'static str, String)>,
}

const SECRET: [u8; 32] = *b"payswitch golden vector secret 1";
const SEED: [u8; 32] = *b"payswitch golden vector seed 002";
/// 2025-11-25T00:00:00Z.
const NOW_MS: u64 = 1_764_028_800_000;

fn mch() -> MchId {
    MchId::parse(b"demo-mch_0001").unwrap()
}

fn order_no() -> OutTradeNo {
    OutTradeNo::parse(b"2025|order*000-1").unwrap()
}

fn refund_no() -> OutRefundNo {
    OutRefundNo::parse(b"2025|refund*000-1").unwrap()
}

fn cny() -> Currency {
    Currency::new(*b"CNY").unwrap()
}

fn transaction() -> TransactionId {
    TransactionId::new(7, 42)
}

fn text(raw: &str) -> ShortText {
    ShortText::new(raw.as_bytes()).unwrap()
}

fn auth(key_id: u32) -> Auth<'static> {
    Auth { key_id, timestamp_ms: NOW_MS, nonce: 0x0123_4567_89ab_cdef, signature: &[] }
}

fn plain(name: &str, encode: impl FnOnce(&mut Vec<u8>)) -> Sample {
    let mut frame = Vec::new();
    encode(&mut frame);
    Sample { name: name.to_owned(), frame, keys: Vec::new() }
}

enum Key {
    Hmac,
    Ed25519,
}

/// Signs what `canonical` writes and hands the signature to `encode`.
fn signed(
    name: &str,
    key: Key,
    canonical: impl FnOnce(&mut Vec<u8>),
    encode: impl FnOnce(&[u8], &mut Vec<u8>),
) -> Sample {
    let (signing, keys) = match key {
        Key::Hmac => {
            (SigningKey::hmac(&SECRET), vec![("key", format!("hmac-sha256 {}", hex(&SECRET)))])
        }
        Key::Ed25519 => (
            SigningKey::ed25519(&SEED),
            vec![("key", format!("ed25519-seed {}", hex(&SEED))), ("public_key", public_key())],
        ),
    };
    let (mut form, mut signature, mut frame) = (Vec::new(), [0; 64], Vec::new());
    canonical(&mut form);
    let len = signing.sign(&form, &mut signature);
    encode(&signature[..len], &mut frame);
    Sample { name: name.to_owned(), frame, keys }
}

/// Of `SEED`.
fn public_key() -> String {
    let key = ed25519_dalek::SigningKey::from_bytes(&SEED);
    hex(key.verifying_key().as_bytes())
}

pub fn samples(file: &str) -> Vec<Sample> {
    match file {
        "requests" => requests(),
        "replies" => replies(),
        "control" => control(),
        "refusals" => refusals(),
        "channel" => channel(),
        other => panic!("{other}"),
    }
}

fn small_pay() -> Pay<'static> {
    Pay {
        mch_id: mch(),
        out_trade_no: order_no(),
        amount: Amount::new(1).unwrap(),
        currency: cny(),
        method: Method::Wallet,
        scene: Scene::App,
        payer_token: b"tok_5f3c",
        device_id: b"",
        client_ip: [0; 16],
        time_expire_ms: NOW_MS + 600_000,
        notify: b"",
        wait_ms: 0,
        tags: Tags::default(),
        auth: auth(1),
        second: Auth::NONE,
    }
}

fn requests() -> Vec<Sample> {
    let small = small_pay();
    let mut buffer = Vec::new();
    let full = Pay {
        amount: Amount::new(Amount::MAX).unwrap(),
        currency: Currency::new(*b"USD").unwrap(),
        method: Method::QrCode,
        scene: Scene::Pos,
        device_id: b"till 3",
        client_ip: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3],
        notify: b"outcomes",
        wait_ms: 1_500,
        tags: Tags::build(&[("branch", "7"), ("cashier", ""), ("till", "no. 3")], &mut buffer)
            .unwrap(),
        ..small
    };
    let mut samples = vec![
        signed(
            "pay, smallest, HMAC-SHA256",
            Key::Hmac,
            |out| small.canonical(out),
            |signature, out| {
                Pay { auth: Auth { signature, ..small.auth }, ..small }.encode_frame(1, out);
            },
        ),
        signed(
            "pay, every field, Ed25519",
            Key::Ed25519,
            |out| Pay { auth: auth(2), ..full }.canonical(out),
            |signature, out| {
                Pay { auth: Auth { signature, ..auth(2) }, ..full }.encode_frame(u64::MAX, out);
            },
        ),
        two_signatures(&full),
        plain("pay, unsigned: the gateway's certificate is trusted", |out| {
            Pay { auth: Auth::NONE, ..small }.encode_frame(3, out);
        }),
    ];
    let by_no = OrderRequest {
        mch_id: mch(),
        order: OrderRef::OutTradeNo(order_no()),
        refresh: false,
        wait_ms: 0,
        auth: auth(1),
    };
    let by_id = OrderRequest {
        order: OrderRef::TransactionId(transaction()),
        refresh: true,
        wait_ms: 250,
        ..by_no
    };
    for (name, kind, request) in [
        ("query by out_trade_no", kind::QUERY, by_no),
        ("query by transaction_id, refresh", kind::QUERY, by_id),
        ("close", kind::CLOSE, by_no),
        ("reverse", kind::REVERSE, by_no),
    ] {
        samples.push(signed(
            name,
            Key::Hmac,
            |out| request.canonical(kind, out),
            |signature, out| {
                OrderRequest { auth: Auth { signature, ..request.auth }, ..request }
                    .encode_frame(kind, 4, out);
            },
        ));
    }
    samples.extend(refunds());
    samples
}

/// The second signer signs the same canonical form.
fn two_signatures(pay: &Pay<'_>) -> Sample {
    let mut form = Vec::new();
    pay.canonical(&mut form);
    let (mut first, mut second) = ([0; 64], [0; 64]);
    let first_len = SigningKey::hmac(&SECRET).sign(&form, &mut first);
    let second_len = SigningKey::ed25519(&SEED).sign(&form, &mut second);
    let mut frame = Vec::new();
    Pay {
        auth: Auth { signature: &first[..first_len], ..pay.auth },
        second: Auth { signature: &second[..second_len], ..auth(2) },
        ..*pay
    }
    .encode_frame(2, &mut frame);
    Sample {
        name: "pay, two signatures".to_owned(),
        frame,
        keys: vec![
            ("key", format!("hmac-sha256 {}", hex(&SECRET))),
            ("second.key", format!("ed25519-seed {}", hex(&SEED))),
            ("second.public_key", public_key()),
        ],
    }
}

fn refunds() -> Vec<Sample> {
    let refund = Refund {
        mch_id: mch(),
        order: OrderRef::OutTradeNo(order_no()),
        out_refund_no: refund_no(),
        amount: Amount::new(250).unwrap(),
        currency: cny(),
        reason: b"broken in transit",
        wait_ms: 0,
        auth: auth(1),
    };
    let by_id = Refund { order: OrderRef::TransactionId(transaction()), reason: b"", ..refund };
    let query = QueryRefund {
        mch_id: mch(),
        order: refund.order,
        out_refund_no: refund_no(),
        auth: auth(1),
    };
    vec![
        signed(
            "refund by out_trade_no",
            Key::Hmac,
            |out| refund.canonical(out),
            |signature, out| {
                Refund { auth: Auth { signature, ..refund.auth }, ..refund }.encode_frame(5, out);
            },
        ),
        signed(
            "refund by transaction_id",
            Key::Hmac,
            |out| by_id.canonical(out),
            |signature, out| {
                Refund { auth: Auth { signature, ..by_id.auth }, ..by_id }.encode_frame(6, out);
            },
        ),
        signed(
            "query_refund",
            Key::Hmac,
            |out| query.canonical(out),
            |signature, out| {
                QueryRefund { auth: Auth { signature, ..query.auth }, ..query }
                    .encode_frame(7, out);
            },
        ),
    ]
}

fn paid() -> OrderReply {
    OrderReply {
        code: Code::Ok,
        retry_after_ms: 0,
        replayed: false,
        state: OrderState::Paid,
        reason: Reason::None,
        transaction_id: Some(transaction()),
        amount: 1_999,
        currency: Some(cny()),
        refunded: 0,
        refunding: 0,
        channel: 1,
        finished_at_ms: NOW_MS + 12,
        leader_hint: 0,
        out_trade_no: ShortText::EMPTY,
        channel_ref: text("ch-000000000001"),
    }
}

fn refused(code: Code) -> OrderReply {
    OrderReply {
        code,
        retry_after_ms: if code.retryable() { 25 } else { 0 },
        state: OrderState::None,
        transaction_id: None,
        amount: 0,
        currency: None,
        channel: 0,
        finished_at_ms: 0,
        leader_hint: if code == Code::NotLeader { 2 } else { 0 },
        channel_ref: ShortText::EMPTY,
        ..paid()
    }
}

fn replies() -> Vec<Sample> {
    let reply = |name: &str, request: u8, reply: OrderReply| {
        plain(name, |out| reply.encode_frame(request | kind::REPLY, 1, out))
    };
    let refund = |name: &str, request: u8, state: RefundState, refunded: i64, refunding: i64| {
        let body = RefundReply {
            code: Code::Ok,
            retry_after_ms: 0,
            replayed: request == kind::QUERY_REFUND,
            state,
            reason: Reason::None,
            transaction_id: Some(transaction()),
            amount: 250,
            currency: Some(cny()),
            refunded,
            refunding,
            finished_at_ms: if refunded > 0 { NOW_MS + 30 } else { 0 },
            leader_hint: 0,
            channel_ref: text(if refunded > 0 { "rf-1" } else { "" }),
        };
        plain(name, |out| body.encode_frame(request | kind::REPLY, 5, out))
    };
    let open = OrderReply {
        state: OrderState::Processing,
        channel: 0,
        finished_at_ms: 0,
        channel_ref: ShortText::EMPTY,
        ..paid()
    };
    let failed = OrderReply {
        state: OrderState::Failed,
        reason: Reason::InsufficientFunds,
        replayed: true,
        ..paid()
    };
    let named = OrderReply { out_trade_no: text("2025|order*000-1"), ..paid() };
    let closed = OrderReply { state: OrderState::Closed, reason: Reason::Cancelled, ..named };
    let part = OrderReply { refunded: 250, refunding: 100, ..named };
    vec![
        reply("pay: paid", kind::PAY, paid()),
        reply("pay: no outcome yet", kind::PAY, open),
        reply("pay: failed, replayed", kind::PAY, failed),
        reply("query: partly refunded", kind::QUERY, part),
        reply("close: closed", kind::CLOSE, closed),
        reply("reverse: closed", kind::REVERSE, closed),
        refund("refund: in progress", kind::REFUND, RefundState::Processing, 0, 250),
        refund("query_refund: done", kind::QUERY_REFUND, RefundState::Success, 250, 0),
    ]
}

fn control() -> Vec<Sample> {
    let hello = Hello {
        in_flight_max: 4_096,
        shards: 12,
        site: 1,
        sites: 3,
        time_ms: NOW_MS,
        cluster: 0x1122_3344_5566_7788,
    };
    let ping = Ping { token: 0xfeed };
    let event = Event {
        event_id: 77,
        sequence: 1,
        mch_id: mch(),
        out_trade_no: order_no(),
        transaction_id: transaction(),
        state: OrderState::Paid,
        reason: Reason::None,
        out_refund_no: ShortText::EMPTY,
        refund_state: RefundState::None,
        amount: 1_999,
        currency: cny(),
        at_ms: NOW_MS + 12,
    };
    let refunded = Event {
        event_id: 78,
        sequence: 2,
        out_refund_no: text("2025|refund*000-1"),
        refund_state: RefundState::Success,
        amount: 250,
        ..event
    };
    let mut samples = vec![
        plain("hello", |out| hello.encode_frame(0, out)),
        plain("ping", |out| ping.encode_frame(8, out)),
        plain("pong", |out| Pong { token: 0xfeed, time_ms: NOW_MS }.encode_frame(8, out)),
        plain("subscribe", |out| Subscribe.encode_frame(9, out)),
        plain("subscribed", |out| Subscribe::reply_frame(9, out)),
        plain("event: paid", |out| event.encode_frame(9, out)),
        plain("event: refunded", |out| refunded.encode_frame(9, out)),
        plain("ack", |out| Ack { event_id: 77 }.encode_frame(9, out)),
    ];
    let leaders = [
        Leader { shard: 0, site: 2, term: 1 },
        Leader { shard: 11, site: 3, term: 0x0102_0304_0506_0708 },
    ];
    for (name, leaders) in
        [("leaders", &leaders[..]), ("leaders: one", &leaders[1..]), ("leaders: none", &[])]
    {
        samples.push(plain(name, |out| Leaders::encode_frame(leaders, 0, out)));
    }
    for &code in CloseCode::ALL {
        let goaway = GoAway { code, deadline_ms: 5_000 };
        let name = format!("goaway: {}", code.name());
        samples.push(plain(&name, |out| goaway.encode_frame(0, out)));
    }
    samples
}

fn refusals() -> Vec<Sample> {
    let mut samples = Vec::new();
    for &code in Code::ALL.iter().skip(1) {
        let error = ErrorFrame {
            code,
            retry_after_ms: if code.retryable() { 25 } else { 0 },
            detail: b"for people",
        };
        samples.push(plain(&format!("error frame: {}", code.name()), |out| {
            error.encode_frame(1, out);
        }));
        samples.push(plain(&format!("pay refused: {}", code.name()), |out| {
            refused(code).encode_frame(kind::PAY | kind::REPLY, 1, out);
        }));
    }
    samples
}

fn channel() -> Vec<Sample> {
    use protocol::channel::kind;
    let digest = order_digest(&mch(), &order_no());
    let mut samples = Vec::new();
    for (name, kind) in [
        ("charge", kind::CHARGE),
        ("query", kind::QUERY),
        ("reverse", kind::REVERSE),
        ("refund", kind::REFUND),
        ("query_refund", kind::QUERY_REFUND),
    ] {
        let refund = kind >= kind::REFUND;
        let request = ChannelRequest {
            kind,
            charge_no: channel_number(&digest, NumberKind::Charge, 1),
            refund_no: refund.then(|| channel_number(&digest, NumberKind::Refund, 1)),
            amount: Amount::new(if refund { 250 } else { 1_999 }).unwrap(),
            currency: cny(),
            time_expire_ms: NOW_MS + 600_000,
        };
        samples.push(plain(&format!("channel {name}"), |out| request.encode_frame(1 << 54, out)));
    }
    for (at, &status) in ChannelStatus::ALL.iter().enumerate() {
        let moved = status == ChannelStatus::Success;
        let declined = status == ChannelStatus::Declined;
        let reply = ChannelReply {
            kind: (kind::CHARGE + (at % 5) as u8) | kind::REPLY,
            status,
            detail: if declined { Reason::InsufficientFunds.wire() } else { 0 },
            charge_no: channel_number(&digest, NumberKind::Charge, 1),
            amount: if moved { 1_999 } else { 0 },
            currency: cny(),
            channel_ref: text(if moved { "ch-000000000001" } else { "" }),
        };
        samples.push(plain(&format!("channel reply: {}", status.name()), |out| {
            reply.encode_frame(1 << 54, out);
        }));
    }
    samples
}
