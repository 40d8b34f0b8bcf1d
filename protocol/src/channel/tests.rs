use super::*;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

fn decode_number(text: &[u8]) -> Option<(u128, u8, u8)> {
    let value = |c: u8| CROCKFORD.iter().position(|&b| b == c).map(|v| v as u128);
    let mut digest = 0_u128;
    for &c in text.get(..26)? {
        digest = digest << 5 | value(c)?;
    }
    let ordinal = value(*text.get(27)?)? << 5 | value(*text.get(28)?)?;
    Some((digest, *text.get(26)?, ordinal as u8))
}

#[test]
fn numbers_have_the_specified_text() {
    let zero = charge_number(&[0; 16], 1);
    assert_eq!(zero.as_str(), "00000000000000000000000000P01");
    let full = refund_number(&[0xff; 16], NumberKind::Orphan, 255);
    assert_eq!(full.as_str(), "7ZZZZZZZZZZZZZZZZZZZZZZZZZX7Z");
}

#[test]
fn order_digest_has_the_specified_input() {
    let (mch, no) = (MchId::parse(b"m-1").unwrap(), OutTradeNo::parse(b"A|1").unwrap());
    assert_eq!(order_digest(&mch, &no)[..], Sha256::digest(b"m-1\0A|1")[..16]);
}

#[test]
fn kinds_and_ordinals_never_meet() {
    let kinds = [NumberKind::Charge, NumberKind::Refund, NumberKind::Reversal, NumberKind::Orphan];
    let mut seen = HashSet::new();
    for kind in kinds {
        for ordinal in 0..=255 {
            assert!(seen.insert(refund_number(&[7; 16], kind, ordinal)));
        }
    }
}

proptest! {
    #[test]
    fn numbers_read_back(digest: [u8; 16], ordinal: u8) {
        let number = charge_number(&digest, ordinal);
        let expected = (u128::from_be_bytes(digest), b'P', ordinal);
        prop_assert_eq!(decode_number(number.as_bytes()), Some(expected));
    }

    #[test]
    fn requests_read_back(
        digest: [u8; 16], amount in 1..=Amount::MAX, expire: u64, kind in 0x40..=0x44_u8,
    ) {
        let refund = matches!(kind, kind::REFUND | kind::QUERY_REFUND);
        let request = ChannelRequest {
            kind,
            charge_no: charge_number(&digest, 1),
            refund_no: refund.then(|| refund_number(&digest, NumberKind::Refund, 2)),
            amount: Amount::new(amount).unwrap(),
            currency: Currency::new(*b"CNY").unwrap(),
            time_expire_ms: expire,
        };
        let mut body = Vec::new();
        request.encode(&mut body);
        prop_assert_eq!(ChannelRequest::decode(kind, &body), Ok(request));
        for len in 0..body.len() {
            let error = ChannelRequest::decode(kind, &body[..len]).map_err(|e| e.code());
            prop_assert_eq!(error, Err(Code::MalformedBody));
        }
        body.extend_from_slice(b"a later version's field");
        prop_assert_eq!(ChannelRequest::decode(kind, &body), Ok(request));
    }

    #[test]
    fn replies_read_back(
        digest: [u8; 16], amount: i64, detail: u16, kind in 0xc0..=0xc4_u8, status in 1..=6_u8,
        channel_ref in "[ -~]{0,32}",
    ) {
        let reply = ChannelReply {
            kind,
            status: ChannelStatus::from_wire(status).unwrap(),
            detail,
            charge_no: charge_number(&digest, 1),
            amount,
            currency: Currency::new(*b"USD").unwrap(),
            channel_ref: ShortText::new(channel_ref.as_bytes()).unwrap(),
        };
        let mut body = Vec::new();
        reply.encode(&mut body);
        prop_assert_eq!(ChannelReply::decode(kind, &body), Ok(reply));
        body.push(0);
        prop_assert_eq!(ChannelReply::decode(kind, &body), Ok(reply));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        kind: u8, body in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let _ = ChannelRequest::decode(kind, &body);
        let _ = ChannelReply::decode(kind, &body);
    }
}

#[test]
fn refund_numbers_are_demanded_exactly_for_refunds() {
    let mut body = Vec::new();
    let request = ChannelRequest {
        kind: kind::CHARGE,
        charge_no: charge_number(&[1; 16], 1),
        refund_no: None,
        amount: Amount::new(5).unwrap(),
        currency: Currency::new(*b"EUR").unwrap(),
        time_expire_ms: 9,
    };
    request.encode(&mut body);
    let refused = Err(DecodeError::invalid("refund_no"));
    assert_eq!(ChannelRequest::decode(kind::REFUND, &body), refused);
    body.clear();
    ChannelRequest { refund_no: Some(request.charge_no), ..request }.encode(&mut body);
    assert_eq!(ChannelRequest::decode(kind::QUERY, &body), refused);
    assert_eq!(
        ChannelRequest::decode(0x45, &body),
        Err(DecodeError::new(Code::UnknownKind, "kind"))
    );
}

#[test]
fn statuses_read_back_and_nothing_else_reads() {
    for raw in 0..=255_u8 {
        let expected = (1..=6).contains(&raw).then_some(raw);
        assert_eq!(ChannelStatus::from_wire(raw).map(ChannelStatus::wire), expected);
    }
}
