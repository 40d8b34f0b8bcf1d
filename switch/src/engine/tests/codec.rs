//! Records survive encoding; damage is an error and never a panic.

use crate::engine::merchant::*;
use crate::engine::order::{AttemptState, CancelCause, Class, RefundKind};
use crate::engine::record::*;
use proptest::prelude::*;
use protocol::code::{Method, OrderState, Reason, RefundState, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use protocol::money::{Amount, Currency};

fn short() -> impl Strategy<Value = ShortText> {
    "[ -~]{0,32}".prop_map(|text| ShortText::new(text.as_bytes()).expect("printable"))
}

fn mch() -> impl Strategy<Value = MchId> {
    "[0-9A-Za-z_-]{1,32}".prop_map(|text| MchId::parse(text.as_bytes()).expect("alphabet"))
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(all: &[T]) -> impl Strategy<Value = T> + use<T> {
    proptest::sample::select(all.to_vec())
}

fn limits() -> impl Strategy<Value = Limits> {
    (any::<[u32; 4]>(), any::<[i64; 3]>()).prop_map(|(rates, amounts)| Limits {
        pay_per_minute: rates[0],
        query_per_minute: rates[1],
        refund_per_minute: rates[2],
        burst: rates[3],
        daily_cap: amounts[0],
        single_max: amounts[1],
        second_signature_from: amounts[2],
    })
}

fn merchants() -> impl Strategy<Value = Merchant> {
    let key = (any::<u32>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..=128)).prop_map(
        |(key_id, mac, material)| MerchantKey {
            key_id,
            kind: if mac { KeyKind::HmacSha256 } else { KeyKind::Ed25519 },
            material,
        },
    );
    let range = (any::<[u8; 16]>(), 0_u8..=128)
        .prop_map(|(address, prefix_len)| AddressRange { address, prefix_len });
    let status = one_of(&[
        MerchantStatus::Active,
        MerchantStatus::Limited,
        MerchantStatus::Suspended,
        MerchantStatus::Dormant,
    ]);
    (
        mch(),
        status,
        prop::collection::vec(key, 0..=2),
        prop::collection::vec(short(), 0..=16),
        prop::collection::vec(range, 0..=16),
        limits(),
    )
        .prop_map(|(mch_id, status, keys, gateways, addresses, limits)| Merchant {
            mch_id,
            status,
            keys,
            gateways,
            addresses,
            limits,
        })
}

/// A random record; `content` is borrowed by BEGIN.
fn records(content: &'static [u8]) -> impl Strategy<Value = Record<'static>> {
    let number = "[0-9A-Za-z_|*-]{1,32}";
    let begin = (
        (any::<[u64; 4]>(), any::<[u8; 32]>(), any::<[u16; 2]>(), any::<[bool; 2]>()),
        (mch(), number, 1..=Amount::MAX, "[A-Z]{3}"),
        (one_of(Method::ALL), one_of(Scene::ALL)),
    )
        .prop_map(
            move |((n, bytes, small, flags), (mch_id, no, minor, currency), (method, scene))| {
                let (digest, fingerprint) = bytes.split_at(16);
                Record::Begin(Begin {
                    sequence: n[0],
                    mch_id,
                    out_trade_no: OutTradeNo::parse(no.as_bytes()).expect("alphabet"),
                    digest: digest.try_into().expect("16"),
                    fingerprint: fingerprint.try_into().expect("16"),
                    amount: Amount::new(minor).expect("range"),
                    currency: Currency::new(currency.as_bytes().try_into().expect("3"))
                        .expect("letters"),
                    method,
                    scene,
                    channel: small[0],
                    gateway: small[1],
                    time_expire_ms: n[1],
                    payer_hash: n[2],
                    device_hash: n[3],
                    notify: flags[0],
                    second_signature: flags[1],
                    content,
                })
            },
        );
    let classes = one_of(&Class::ALL);
    let outcome = (
        (any::<u64>(), any::<u8>(), any::<bool>(), classes, any::<i64>()),
        (one_of(&AttemptState::ALL), one_of(OrderState::ALL), one_of(Reason::ALL), short()),
    )
        .prop_map(
            |((sequence, attempt, cancel_result, class, amount), (a, o, reason, text))| {
                Record::Outcome(Outcome {
                    sequence,
                    attempt,
                    cancel_result,
                    class,
                    attempt_state: a,
                    order_state: o,
                    reason,
                    amount,
                    channel_ref: text,
                })
            },
        );
    let cause = one_of(&[CancelCause::Merchant, CancelCause::Expired, CancelCause::GaveUp]);
    let cancel = (any::<u64>(), any::<u8>(), cause, any::<[bool; 2]>()).prop_map(
        |(sequence, attempt, cause, flags)| {
            let (reversing, counted) = (flags[0], flags[1]);
            Record::CancelStart(CancelStart { sequence, attempt, cause, reversing, counted })
        },
    );
    let kinds = one_of(&[RefundKind::Merchant, RefundKind::Reversal, RefundKind::Orphan]);
    let refund = (any::<u64>(), any::<[u8; 2]>(), kinds, 1..=Amount::MAX, number, any::<bool>())
        .prop_map(|(sequence, small, kind, minor, no, counted)| {
            Record::RefundStart(RefundStart {
                sequence,
                ordinal: small[0],
                kind,
                attempt: small[1],
                amount: Amount::new(minor).expect("range"),
                out_refund_no: OutRefundNo::parse(no.as_bytes()).expect("alphabet"),
                counted,
            })
        });
    let refund_outcome = (
        any::<u64>(),
        any::<u8>(),
        one_of(&Class::ALL),
        one_of(RefundState::ALL),
        one_of(Reason::ALL),
        short(),
    )
        .prop_map(|(sequence, ordinal, class, state, reason, channel_ref)| {
            Record::RefundOutcome(RefundOutcome {
                sequence,
                ordinal,
                class,
                state,
                reason,
                channel_ref,
            })
        });
    let decision = (any::<u64>(), any::<u8>(), any::<[bool; 2]>(), short(), short(), short())
        .prop_map(|(sequence, ordinal, flags, operator, second, note)| {
            let [refund, success] = flags;
            Record::Decision(Decision {
                sequence,
                ordinal,
                refund,
                success,
                operator,
                second,
                note,
            })
        });
    prop_oneof![
        begin,
        (any::<u64>(), any::<u8>(), any::<u16>()).prop_map(|(sequence, ordinal, channel)| {
            Record::NextAttempt(NextAttempt { sequence, ordinal, channel })
        }),
        outcome,
        cancel,
        refund,
        refund_outcome,
        (any::<u64>(), any::<u8>())
            .prop_map(|(sequence, attempt)| Record::Doubt { sequence, attempt }),
        (any::<u64>(), any::<bool>())
            .prop_map(|(event_id, taken)| Record::Delivered { event_id, taken }),
        decision,
        (short(), merchants()).prop_map(|(operator, merchant)| {
            Record::MerchantPut(Box::new(MerchantPut { operator, merchant }))
        }),
        (short(), mch(), limits(), any::<u64>()).prop_map(
            |(operator, mch_id, limits, until_ms)| {
                Record::LimitsPut(LimitsPut { operator, mch_id, limits, until_ms })
            }
        ),
        (short(), 1..SITES_END, any::<bool>()).prop_map(|(operator, site, drained)| {
            Record::SiteDrain(SiteDrain { operator, site, drained })
        }),
        (short(), 1..SITES_END, any::<bool>()).prop_map(|(operator, site, member)| {
            Record::SiteMember(SiteMember { operator, site, member })
        }),
        (short(), any::<bool>(), 0_u8..=2, one_of(&[0_usize, 1, 2, 4])).prop_map(
            |(operator, forced, transition, count)| {
                const CHANGES: [[u8; 2]; 4] = [
                    [members::VOTER, 1],
                    [members::LEARNER, 63],
                    [members::REMOVED, 2],
                    [members::VOTER, 9],
                ];
                let changes = &CHANGES[..count];
                Record::Members(Members { operator, forced, transition, changes })
            }
        ),
    ]
}

fn read(block: &[u8]) -> Result<Vec<Stamped<'_>>, DecodeError> {
    Records::new(block)?.collect()
}

proptest! {
    #[test]
    fn what_is_written_is_read(list in prop::collection::vec((records(b"payer \"token\""), 0_u64..9_000_000), 1..8)) {
        let (mut block, mut expected, mut at) = (Vec::new(), Vec::new(), 1_700_000_000_000_000);
        for (record, gap) in list {
            at += gap;
            append(&mut block, at, &record);
            expected.push(Stamped { at_us: at, record });
        }
        prop_assert_eq!(read(&block).expect("whole"), expected);
    }

    /// A cut block is an error, or ends at a record's border with what was before.
    #[test]
    fn a_block_in_parts_reads_as_the_whole(
        list in prop::collection::vec((records(b"c"), 0_u64..9_000_000), 1..12),
        max in 0_usize..2_000,
    ) {
        let mut whole = Vec::new();
        for (record, later) in &list {
            record.append(1_000_000 + later, &mut whole);
        }
        let (mut open, mut parts, mut stayed) = (whole.clone(), Vec::new(), 0);
        while !open.is_empty() {
            let mut rest = Vec::new();
            let count = split_off(&mut open, max, &mut rest);
            prop_assert!(count >= 1 && (count == 1 || open.len() <= max));
            prop_assert_eq!(read(&open).unwrap().len(), count as usize);
            stayed += count as usize;
            parts.push(std::mem::replace(&mut open, rest));
        }
        prop_assert_eq!(stayed, list.len());
        let read_parts: Vec<_> = parts.iter().flat_map(|part| read(part).unwrap()).collect();
        prop_assert_eq!(read_parts, read(&whole).unwrap());
    }

    #[test]
    fn a_cut_block_never_yields_a_wrong_record(record in records(b"c"), other in records(b"d")) {
        let mut block = Vec::new();
        append(&mut block, 5, &record);
        let border = block.len();
        append(&mut block, 6, &other);
        for end in 1..block.len() {
            let cut = read(&block[..end]);
            prop_assert!(cut.is_err() || end == border || end == 8, "{end}");
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0_usize..12) {
        if bytes.len() > 16 {
            // Mostly known kinds with a fitting length, to get into the bodies.
            bytes[8] = b"BAEXYFGUNMPL"[kind];
            let length = (bytes.len() - 16) as u16;
            bytes[10..12].copy_from_slice(&length.to_le_bytes());
        }
        let _ = read(&bytes);
    }

    /// One JSON object a line, without the payer's content.
    #[test]
    fn json_lines_parse_and_hide_the_content(record in records(b"payer-secret")) {
        let mut line = String::new();
        Stamped { at_us: 1, record }.to_json(&mut line);
        let parsed: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        prop_assert!(parsed["kind"].is_string());
        prop_assert!(!line.contains("payer-secret") && !line.contains('\n'));
    }
}
