use super::*;
use crate::code::{CloseCode, Method, OrderState, Reason, RefundState, Scene};
use proptest::prelude::*;

fn auth_strategy() -> impl Strategy<Value = (u32, u64, u64, Vec<u8>)> {
    let signature = prop_oneof![
        proptest::collection::vec(any::<u8>(), 32),
        proptest::collection::vec(any::<u8>(), 64)
    ];
    prop_oneof![
        1 => (any::<u64>(), any::<u64>()).prop_map(|(t, n)| (0, t, n, vec![])),
        3 => (1..u32::MAX, any::<u64>(), any::<u64>(), signature),
    ]
}

fn auth((key_id, timestamp_ms, nonce, signature): &(u32, u64, u64, Vec<u8>)) -> Auth<'_> {
    Auth { key_id: *key_id, timestamp_ms: *timestamp_ms, nonce: *nonce, signature }
}

fn order_strategy() -> impl Strategy<Value = OrderRef> {
    prop_oneof![
        "[0-9A-Za-z_|*-]{1,32}"
            .prop_map(|no| OrderRef::OutTradeNo(OutTradeNo::parse(no.as_bytes()).unwrap())),
        (0..900_u16, 0..1_000_000_000_000_000_u64)
            .prop_map(|(shard, n)| OrderRef::TransactionId(TransactionId::new(shard, n))),
    ]
}

/// Every prefix is truncated or refused, never a panic, and never the message;
/// a longer body is the same message.
fn prefixes_and_extensions(
    body: &[u8],
    mut decode: impl FnMut(&[u8]) -> Result<String, DecodeError>,
) {
    let whole = decode(body).unwrap();
    for len in 0..body.len() {
        assert!(decode(&body[..len]).is_err(), "prefix of {len} bytes");
    }
    let mut longer = body.to_vec();
    longer.extend_from_slice(b"\x05field of a later version");
    assert_eq!(decode(&longer), Ok(whole));
}

proptest! {
    #[test]
    fn pay_reads_back(
        (mch, no, expire, amount) in (
            "[0-9A-Za-z_-]{1,32}", "[0-9A-Za-z_|*-]{1,32}", any::<u64>(), 1..=Amount::MAX),
        (payer, device, notify) in ("[ -~]{0,128}", "[ -~]{0,64}", "[ -~]{0,64}"),
        tags in proptest::collection::btree_map("[0-9A-Za-z_-]{1,32}", "[ -~]{0,128}", 0..12),
        (method, scene, ip, wait) in (1..=5_u8, 1..=5_u8, any::<[u8; 16]>(), any::<u32>()),
        first in auth_strategy(), mut second in auth_strategy(),
    ) {
        if second.0 == 0 {
            second = (0, 0, 0, vec![]);
        } else if second.0 == first.0 {
            second.0 ^= 1;
            prop_assume!(second.0 != 0);
        }
        let pairs: Vec<_> = tags.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut buffer = Vec::new();
        let pay = Pay {
            mch_id: MchId::parse(mch.as_bytes()).unwrap(),
            out_trade_no: OutTradeNo::parse(no.as_bytes()).unwrap(),
            amount: Amount::new(amount).unwrap(),
            currency: Currency::new(*b"CNY").unwrap(),
            method: Method::from_wire(method).unwrap(),
            scene: Scene::from_wire(scene).unwrap(),
            payer_token: payer.as_bytes(),
            device_id: device.as_bytes(),
            client_ip: ip,
            time_expire_ms: expire,
            notify: notify.as_bytes(),
            wait_ms: wait,
            tags: Tags::build(&pairs, &mut buffer).unwrap(),
            auth: auth(&first),
            second: auth(&second),
        };
        prop_assert_eq!(pay.check(), Ok(()));
        let mut body = Vec::new();
        pay.encode(&mut body);
        let again = Pay::decode(&body).unwrap();
        prop_assert_eq!(format!("{pay:?}"), format!("{again:?}"));
        prop_assert_eq!(pay.fingerprint(), again.fingerprint());
        let read: Vec<_> = again.tags.iter().map(|t| (t.name, t.value)).collect();
        let given: Vec<_> = pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        prop_assert_eq!(read, given);
        prefixes_and_extensions(&body, |body| Pay::decode(body).map(|m| format!("{m:?}")));
    }

    #[test]
    fn order_requests_read_back(
        mch in "[0-9A-Za-z_-]{1,32}", order in order_strategy(), refresh: bool, wait_ms: u32,
        who in auth_strategy(),
    ) {
        let request = OrderRequest {
            mch_id: MchId::parse(mch.as_bytes()).unwrap(), order, refresh, wait_ms,
            auth: auth(&who),
        };
        let mut body = Vec::new();
        request.encode(&mut body);
        let again = OrderRequest::decode(&body).unwrap();
        prop_assert_eq!(format!("{request:?}"), format!("{again:?}"));
        prefixes_and_extensions(&body, |b| OrderRequest::decode(b).map(|m| format!("{m:?}")));
    }

    #[test]
    fn refunds_read_back(
        mch in "[0-9A-Za-z_-]{1,32}", order in order_strategy(), no in "[0-9A-Za-z_|*-]{1,32}",
        amount in 1..=Amount::MAX, reason in "[ -~]{0,80}", wait_ms: u32, who in auth_strategy(),
    ) {
        let refund = Refund {
            mch_id: MchId::parse(mch.as_bytes()).unwrap(), order,
            out_refund_no: OutRefundNo::parse(no.as_bytes()).unwrap(),
            amount: Amount::new(amount).unwrap(), currency: Currency::new(*b"EUR").unwrap(),
            reason: reason.as_bytes(), wait_ms, auth: auth(&who),
        };
        let mut body = Vec::new();
        refund.encode(&mut body);
        let again = Refund::decode(&body).unwrap();
        prop_assert_eq!(format!("{refund:?}"), format!("{again:?}"));
        prefixes_and_extensions(&body, |b| Refund::decode(b).map(|m| format!("{m:?}")));

        let query = QueryRefund {
            mch_id: refund.mch_id, order, out_refund_no: refund.out_refund_no, auth: refund.auth,
        };
        body.clear();
        query.encode(&mut body);
        let again = QueryRefund::decode(&body).unwrap();
        prop_assert_eq!(format!("{query:?}"), format!("{again:?}"));
        prefixes_and_extensions(&body, |b| QueryRefund::decode(b).map(|m| format!("{m:?}")));
    }

    #[test]
    fn replies_read_back(
        (code, reason, state, refund_state) in (
            0..Code::ALL.len(), 0..Reason::ALL.len(), 0..OrderState::ALL.len(),
            0..RefundState::ALL.len()),
        numbers in any::<(u32, bool, i64, i64, i64, u16, u64, u8)>(),
        (paid, no, channel_ref) in (any::<bool>(), "[ -~]{0,32}", "[ -~]{0,32}"),
    ) {
        let (retry_after_ms, replayed, amount, refunded, refunding, channel, at, hint) = numbers;
        let order = OrderReply {
            code: Code::ALL[code], retry_after_ms, replayed, state: OrderState::ALL[state],
            reason: Reason::ALL[reason], transaction_id: paid.then(|| TransactionId::new(3, 4)),
            amount, currency: paid.then(|| Currency::new(*b"JPY").unwrap()), refunded, refunding,
            channel, finished_at_ms: at, leader_hint: hint,
            out_trade_no: ShortText::new(no.as_bytes()).unwrap(),
            channel_ref: ShortText::new(channel_ref.as_bytes()).unwrap(),
        };
        let mut body = Vec::new();
        order.encode(&mut body);
        prop_assert_eq!(OrderReply::decode(&body), Ok(order));
        prefixes_and_extensions(&body, |b| OrderReply::decode(b).map(|m| format!("{m:?}")));

        let refund = RefundReply {
            code: order.code, retry_after_ms, replayed, state: RefundState::ALL[refund_state],
            reason: order.reason, transaction_id: order.transaction_id, amount,
            currency: order.currency, refunded, refunding, finished_at_ms: at, leader_hint: hint,
            channel_ref: order.channel_ref,
        };
        body.clear();
        refund.encode(&mut body);
        prop_assert_eq!(RefundReply::decode(&body), Ok(refund));
        prefixes_and_extensions(&body, |b| RefundReply::decode(b).map(|m| format!("{m:?}")));
    }

    #[test]
    fn arbitrary_bodies_never_panic(
        kind: u8, body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = Request::decode(kind, &body);
        let _ = OrderReply::decode(&body);
        let _ = RefundReply::decode(&body);
        let _ = Event::decode(&body);
        let _ = Hello::decode(&body);
        let _ = GoAway::decode(&body);
        let _ = Pong::decode(&body);
        let _ = ErrorFrame::decode(&body);
    }

    #[test]
    fn control_messages_read_back(a: u64, b: u64, c: u32, d in 1..u16::MAX, e: u8, f: u8) {
        let mut body = Vec::new();
        let hello = Hello { in_flight_max: c, shards: d, site: e, sites: f, time_ms: a, cluster: b };
        hello.encode(&mut body);
        prop_assert_eq!(Hello::decode(&body), Ok(hello));
        prefixes_and_extensions(&body, |b| Hello::decode(b).map(|m| format!("{m:?}")));
        body.clear();
        let pong = Pong { time: a, server_time_ms: b };
        pong.encode(&mut body);
        prop_assert_eq!(Pong::decode(&body), Ok(pong));
        body.clear();
        Ping { time: a }.encode(&mut body);
        prop_assert_eq!(Ping::decode(&body), Ok(Ping { time: a }));
        prop_assert_eq!(Ack::decode(&body), Ok(Ack { event_id: a }));
        for &reason in CloseCode::ALL {
            let goaway = GoAway { reason, deadline_ms: c };
            body.clear();
            goaway.encode(&mut body);
            prop_assert_eq!(GoAway::decode(&body), Ok(goaway));
        }
        for &code in Code::ALL {
            let error = ErrorFrame { code, retry_after_ms: c, detail: b"payer_token" };
            body.clear();
            error.encode(&mut body);
            prop_assert_eq!(ErrorFrame::decode(&body), Ok(error));
        }
    }
}

/// A pay body with every field at offset as `docs/WIRE.md` says.
fn pay_body() -> Vec<u8> {
    let mut body = vec![0; 64];
    body[0] = 100;
    body[56..59].copy_from_slice(b"CNY");
    body[59..62].copy_from_slice(&[1, 1, 0]);
    for field in [&b"m1"[..], b"order-1", b"tok", b"", b""] {
        body.push(field.len() as u8);
        body.extend_from_slice(field);
    }
    body.extend_from_slice(&[0, 0, 0, 0]);
    body
}

#[test]
fn refused_pays_name_the_field() {
    let with = |at: usize, value: u8| {
        let mut body = pay_body();
        body[at] = value;
        Pay::decode(&body).map(|_| ())
    };
    assert_eq!(with(0, 100), Ok(()));
    assert_eq!(with(0, 0), Err(DecodeError::Amount));
    assert_eq!(with(7, 0x80), Err(DecodeError::Amount));
    assert_eq!(with(56, b'c'), Err(DecodeError::Field("currency")));
    assert_eq!(with(59, 0), Err(DecodeError::Field("method")));
    assert_eq!(with(60, 9), Err(DecodeError::Field("scene")));
    assert_eq!(with(61, 1), Err(DecodeError::Field("tags")));
    assert_eq!(with(65, b'.'), Err(DecodeError::Field("mch_id")));
    assert_eq!(with(68, b' '), Err(DecodeError::Field("out_trade_no")));
    assert_eq!(with(76, 0x07), Err(DecodeError::Field("payer_token")));
    assert_eq!(with(48, 1), Err(DecodeError::Field("signature")));
    let reply = DecodeError::Field("scene").reply();
    assert_eq!((reply.code, reply.detail), (Code::InvalidField, &b"scene"[..]));
}

#[test]
fn tags_out_of_order_or_twice_are_refused() {
    let mut buffer = Vec::new();
    let refused = DecodeError::Field("tags");
    assert_eq!(Tags::build(&[("b", "1"), ("a", "2")], &mut buffer).err(), Some(refused));
    assert_eq!(Tags::build(&[("a", "1"), ("a", "2")], &mut buffer).err(), Some(refused));
    assert_eq!(Tags::build(&[("a=b", "1")], &mut buffer).err(), Some(refused));
    assert_eq!(Tags::build(&[("", "1")], &mut buffer).err(), Some(refused));
    assert_eq!(Tags::build(&[("a", "line\nbreak")], &mut buffer).err(), Some(refused));
    assert_eq!(Tags::build(&[("a", "x"); 13], &mut buffer).err(), Some(refused));
    assert!(Tags::build(&[("a", "1"), ("b", "\u{4ed8}")], &mut buffer).is_ok());
}

#[test]
fn an_order_is_named_in_exactly_one_way() {
    let request = OrderRequest {
        mch_id: MchId::parse(b"m").unwrap(),
        order: OrderRef::TransactionId(TransactionId::new(1, 2)),
        refresh: false,
        wait_ms: 0,
        auth: Auth::NONE,
    };
    let mut body = Vec::new();
    request.encode(&mut body);
    let mut both = body.clone();
    both.splice(42..43, *b"\x01x");
    assert_eq!(OrderRequest::decode(&both).map(|_| ()), Err(DecodeError::Field("transaction_id")));
    body[16..24].fill(0);
    assert_eq!(OrderRequest::decode(&body).map(|_| ()), Err(DecodeError::Field("out_trade_no")));
}

#[test]
fn one_key_cannot_sign_twice() {
    let mut body = pay_body();
    body.truncate(body.len() - 2);
    body[48] = 7;
    body.push(32);
    body.extend_from_slice(&[1; 32]);
    body.push(52);
    body.extend_from_slice(&[0; 16]);
    body.extend_from_slice(&7_u32.to_le_bytes());
    body.extend_from_slice(&[2; 32]);
    let error = DecodeError::Field("second_signature");
    assert_eq!(Pay::decode(&body).map(|_| ()), Err(error));
    let at = body.len() - 36;
    body[at] = 8;
    assert_eq!(Pay::decode(&body).map(|pay| pay.second.key_id), Ok(8));
}
