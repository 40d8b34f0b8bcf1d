use super::*;
use crate::code::{CloseCode, Method, OrderState, Reason, RefundState, Scene};
use crate::frame;
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
        (payer, device, notify) in ("[ -%'-<>-~]{0,128}", "[ -%'-<>-~]{0,64}", "[ -%'-<>-~]{0,64}"),
        tags in proptest::collection::btree_map("[ -%'-<>-~]{1,32}", "[ -%'-<>-~]{0,128}", 0..=12),
        (method, scene, ip, wait) in (1..=5_u8, 1..=5_u8, any::<[u8; 16]>(), any::<u32>()),
        first in auth_strategy(), second in auth_strategy(),
    ) {
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
        let mut body = Vec::new();
        pay.encode(&mut body);
        let again = Pay::decode(&body).unwrap();
        prop_assert_eq!(format!("{pay:?}"), format!("{again:?}"));
        prop_assert_eq!(pay.fingerprint(), again.fingerprint());
        let read: Vec<_> = again.tags.pairs().collect();
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
        amount in 1..=Amount::MAX, reason in "[ -%'-<>-~]{0,80}", wait_ms: u32, who in auth_strategy(),
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
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = Pay::decode(&body);
        let _ = OrderRequest::decode(&body);
        let _ = Refund::decode(&body);
        let _ = QueryRefund::decode(&body);
        let _ = Ping::decode(&body);
        let _ = Ack::decode(&body);
        let _ = OrderReply::decode(&body);
        let _ = RefundReply::decode(&body);
        let _ = Event::decode(&body);
        let _ = Hello::decode(&body);
        let _ = GoAway::decode(&body);
        let _ = Pong::decode(&body);
        let _ = Leaders::decode(&body).map(|leaders| leaders.iter().count());
        let _ = ErrorFrame::decode(&body);
    }

    #[test]
    fn leaders_read_back(
        entries in proptest::collection::vec((any::<u16>(), 1..=u8::MAX, 1..=u64::MAX), 0..40),
    ) {
        let leader = |&(shard, site, term): &(u16, u8, u64)| Leader { shard, site, term };
        let entries: Vec<Leader> = entries.iter().map(leader).collect();
        let (mut frame, mut again) = (Vec::new(), Vec::new());
        Leaders::encode_frame(&entries, 0, &mut frame);
        let body = &frame[frame::HEADER_LEN..];
        let read = Leaders::decode(body).unwrap();
        prop_assert_eq!(read.iter().collect::<Vec<_>>(), entries);
        read.encode(&mut again);
        prop_assert_eq!(&again, body);
        prefixes_and_extensions(body, |b| Leaders::decode(b).map(|m| format!("{m:?}")));
    }

    #[test]
    fn control_messages_read_back(a: u64, b: u64, c: u32, d in 1..u16::MAX, e: u8, f: u8) {
        let mut body = Vec::new();
        let hello = Hello { in_flight_max: c, shards: d, site: e, sites: f, time_ms: a, cluster: b };
        hello.encode(&mut body);
        prop_assert_eq!(Hello::decode(&body), Ok(hello));
        prefixes_and_extensions(&body, |b| Hello::decode(b).map(|m| format!("{m:?}")));
        body.clear();
        let pong = Pong { token: a, time_ms: b };
        pong.encode(&mut body);
        prop_assert_eq!(Pong::decode(&body), Ok(pong));
        body.clear();
        Ping { token: a }.encode(&mut body);
        prop_assert_eq!(Ping::decode(&body), Ok(Ping { token: a }));
        prop_assert_eq!(Ack::decode(&body), Ok(Ack { event_id: a }));
        for &code in CloseCode::ALL {
            let goaway = GoAway { code, deadline_ms: c };
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

/// A pay body with every field at the offset that `docs/WIRE.md` gives it.
fn pay_body() -> Vec<u8> {
    let mut body = vec![0; 41];
    body[0] = 100;
    body[20..23].copy_from_slice(b"CNY");
    body[23..25].copy_from_slice(&[1, 1]);
    for field in [&b"m1"[..], b"order-1", b"tok", b"", b""] {
        body.push(field.len() as u8);
        body.extend_from_slice(field);
    }
    body.push(0);
    body.extend_from_slice(&[0; 42]);
    body
}

#[test]
fn refused_pays_name_code_and_field() {
    let with = |at: usize, value: u8| {
        let mut body = pay_body();
        body[at] = value;
        Pay::decode(&body).map(|_| ()).map_err(|error| (error.code(), error.field()))
    };
    assert_eq!(with(0, 100), Ok(()));
    assert_eq!(with(0, 0), Err((Code::InvalidAmount, "amount")));
    assert_eq!(with(7, 0x80), Err((Code::InvalidAmount, "amount")));
    assert_eq!(with(20, b'c'), Err((Code::InvalidField, "currency")));
    assert_eq!(with(23, 0), Err((Code::InvalidField, "method")));
    assert_eq!(with(24, 9), Err((Code::InvalidField, "scene")));
    assert_eq!(with(42, b'.'), Err((Code::InvalidField, "mch_id")));
    assert_eq!(with(45, b' '), Err((Code::InvalidField, "out_trade_no")));
    assert_eq!(with(53, 0x07), Err((Code::InvalidField, "payer_token")));
    assert_eq!(with(53, b'&'), Err((Code::InvalidField, "payer_token")));
    assert_eq!(with(53, b'='), Err((Code::InvalidField, "payer_token")));
    assert_eq!(with(58, 13), Err((Code::InvalidField, "tags")));
    assert_eq!(with(79, 65), Err((Code::InvalidField, "signature")));
    let cut = Pay::decode(&pay_body()[..70]).map(|_| ()).map_err(|e| (e.code(), e.field()));
    assert_eq!(cut, Err((Code::MalformedBody, "timestamp")));
}

#[test]
fn tags_out_of_order_or_twice_are_refused() {
    let mut buffer = Vec::new();
    for pairs in [
        &[("b", "1"), ("a", "2")][..],
        &[("a", "1"), ("a", "2")],
        &[("a=b", "1")],
        &[("", "1")],
        &[("a", "x&y")],
        &[("a", "line\nbreak")],
        &[("a", "\u{4ed8}")],
        &[("a", "x"); 13],
    ] {
        assert!(Tags::build(pairs, &mut buffer).is_none(), "{pairs:?}");
    }
    assert!(Tags::build(&[("a", ""), ("b", "2")], &mut buffer).is_some());
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
    let field = |body: &[u8]| OrderRequest::decode(body).map(|_| ()).map_err(|e| e.field());
    let mut body = Vec::new();
    request.encode(&mut body);
    assert_eq!(field(&body), Ok(()));
    let mut both = body.clone();
    both.splice(13..14, *b"\x01x");
    assert_eq!(field(&both), Err("out_trade_no"));
    body[5..13].fill(0);
    assert_eq!(field(&body), Err("out_trade_no"));
}

/// The canonical forms as `docs/WIRE.md` spells them.
#[test]
fn canonical_forms_are_as_specified() {
    let mut buffer = Vec::new();
    let auth = Auth { key_id: 7, timestamp_ms: 1_764_070_000_000, nonce: 42, signature: &[] };
    let pay = Pay {
        mch_id: MchId::parse(b"m-1").unwrap(),
        out_trade_no: OutTradeNo::parse(b"A|1").unwrap(),
        amount: Amount::new(1999).unwrap(),
        currency: Currency::new(*b"CNY").unwrap(),
        method: Method::QrCode,
        scene: Scene::Pos,
        payer_token: b"tok",
        device_id: b"till 3",
        client_ip: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1],
        time_expire_ms: 1_764_070_600_000,
        notify: b"",
        wait_ms: 500,
        tags: Tags::build(&[("branch", "7"), ("empty", "")], &mut buffer).unwrap(),
        auth,
        second: Auth { key_id: 8, ..auth },
    };
    let mut out = Vec::new();
    pay.canonical(&mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "amount=1999&client_ip=00000000000000000000ffff0a000001&currency=CNY&device_id=till 3\
         &key_id=7&mch_id=m-1&method=QR_CODE&nonce=42&op=pay&out_trade_no=A|1&payer_token=tok\
         &scene=POS&tag.branch=7&tag.empty=&time_expire=1764070600000&timestamp=1764070000000"
    );
    let by_id = OrderRef::TransactionId(TransactionId::new(0, 5));
    let order = OrderRequest { mch_id: pay.mch_id, order: by_id, refresh: true, wait_ms: 1, auth };
    let mut out = Vec::new();
    order.canonical(kind::QUERY, &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "key_id=7&mch_id=m-1&nonce=42&op=query&refresh=1&timestamp=1764070000000\
         &transaction_id=100000000000000005"
    );
    let refund = Refund {
        mch_id: pay.mch_id,
        order: OrderRef::OutTradeNo(pay.out_trade_no),
        out_refund_no: OutRefundNo::parse(b"R1").unwrap(),
        amount: Amount::new(5).unwrap(),
        currency: pay.currency,
        reason: b"broken",
        wait_ms: 0,
        auth,
    };
    let mut out = Vec::new();
    refund.canonical(&mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "amount=5&currency=CNY&key_id=7&mch_id=m-1&nonce=42&op=refund&out_refund_no=R1\
         &out_trade_no=A|1&reason=broken&timestamp=1764070000000"
    );
}

/// Each part of the content changes the fingerprint; nothing else does.
#[test]
fn fingerprint_covers_the_content_and_only_it() {
    let mut body = pay_body();
    let base = Pay::decode(&body).unwrap().fingerprint();
    // Amount, expiry, currency, method, scene, mch_id, out_trade_no, payer_token.
    for at in [0, 8, 20, 23, 24, 42, 45, 53] {
        let before = body[at];
        body[at] = if at == 20 { b'D' } else { before + 1 };
        assert_ne!(Pay::decode(&body).unwrap().fingerprint(), base, "offset {at}");
        body[at] = before;
    }
    // Wait, client address, key id, timestamp, nonce.
    for at in [16, 25, 59, 63, 71] {
        let before = body[at];
        body[at] = 1;
        assert_eq!(Pay::decode(&body).unwrap().fingerprint(), base, "offset {at}");
        body[at] = before;
    }
    let pay = Pay::decode(&body).unwrap();
    assert_eq!(Pay { device_id: b"d", ..pay }.fingerprint(), base);
    assert_ne!(Pay { notify: b"d", ..pay }.fingerprint(), base);
}

/// Before, 256 bytes and more panicked in debug builds, and in release builds
/// wrote a length of theirs modulo 256, which moved all the fields behind.
#[test]
fn a_field_beyond_its_limit_is_refused_by_every_reader() {
    let plain = Pay {
        mch_id: MchId::parse(b"m-1").unwrap(),
        out_trade_no: OutTradeNo::parse(b"no-1").unwrap(),
        amount: Amount::new(1).unwrap(),
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
    };
    let refund = Refund {
        mch_id: plain.mch_id,
        order: OrderRef::OutTradeNo(plain.out_trade_no),
        out_refund_no: OutRefundNo::parse(b"r-1").unwrap(),
        amount: plain.amount,
        currency: plain.currency,
        reason: b"",
        wait_ms: 0,
        auth: Auth::NONE,
    };
    for len in [129, 255, 256, 257, 300, 512, 20_000] {
        let text = vec![b'x'; len];
        let auth = Auth { signature: &text, ..Auth::NONE };
        for (pay, field) in [
            (Pay { payer_token: &text, ..plain }, "payer_token"),
            (Pay { device_id: &text, ..plain }, "device_id"),
            (Pay { notify: &text, ..plain }, "notify"),
            (Pay { auth, ..plain }, "signature"),
            (Pay { second: auth, ..plain }, "signature"),
        ] {
            let mut body = Vec::new();
            pay.encode(&mut body);
            let error = Pay::decode(&body).unwrap_err();
            assert_eq!((error.code(), error.field()), (Code::InvalidField, field), "{len}");
        }
        for (refund, field) in [
            (Refund { reason: &text, ..refund }, "reason"),
            (Refund { auth, ..refund }, "signature"),
        ] {
            let mut body = Vec::new();
            refund.encode(&mut body);
            let error = Refund::decode(&body).unwrap_err();
            assert_eq!((error.code(), error.field()), (Code::InvalidField, field), "{len}");
        }
        let long = String::from_utf8(text.clone()).unwrap();
        assert!(Tags::build(&[("name", &long)], &mut Vec::new()).is_none());
        assert!(Tags::build(&[(&long, "")], &mut Vec::new()).is_none());
        let told = ErrorFrame { code: Code::UnknownKind, retry_after_ms: 0, detail: &text };
        let mut frame = Vec::new();
        told.encode_frame(1, &mut frame);
        assert_eq!(ErrorFrame::decode(&frame[16..]).unwrap().detail.len(), 128);
    }
}

#[test]
fn numbers_of_every_length_are_written_in_decimal() {
    let powers = (0..20).map(|exponent| 10_u64.pow(exponent));
    let numbers = powers.flat_map(|power| [power - 1, power, power + 1, power.wrapping_mul(7)]);
    let spread = (0..2_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (n % 64));
    for number in numbers.chain(0..20_000).chain(spread).chain([u64::MAX]) {
        let query = OrderRequest {
            mch_id: MchId::parse(b"M1").unwrap(),
            order: OrderRef::OutTradeNo(OutTradeNo::parse(b"1").unwrap()),
            refresh: false,
            wait_ms: 0,
            auth: Auth { nonce: number, ..Auth::NONE },
        };
        let mut out = Vec::new();
        query.canonical(kind::QUERY, &mut out);
        let expected =
            format!("key_id=0&mch_id=M1&nonce={number}&op=query&out_trade_no=1&timestamp=0");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn leaders_are_refused_as_a_whole() {
    let entry = Leader { shard: 3, site: 1, term: 1 };
    let mut frame = Vec::new();
    Leaders::encode_frame(&vec![entry; LEADERS_MAX + 1], 0, &mut frame);
    let mut body = frame.split_off(frame::HEADER_LEN);
    let error = |body: &[u8]| Leaders::decode(body).map(|_| ()).map_err(|e| (e.code(), e.field()));
    assert_eq!(Leaders::decode(&body).unwrap().iter().count(), LEADERS_MAX, "cut when written");
    assert_eq!(error(&body[..body.len() - 1]), Err((Code::MalformedBody, "term")));
    let last = body.len() - 9;
    body[last] = 0;
    assert_eq!(error(&body), Err((Code::InvalidField, "site")));
    body[last] = 1;
    body[last + 1] = 0;
    assert_eq!(error(&body), Err((Code::InvalidField, "term")));
    body[last + 1] = 1;
    assert_eq!(error(&body), Ok(()));
    body[..2].copy_from_slice(&(LEADERS_MAX as u16 + 1).to_le_bytes());
    assert_eq!(error(&body), Err((Code::InvalidField, "count")));
}
