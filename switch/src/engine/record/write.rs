//! Records into the bytes of a block. Tested with their reading.

use super::{Begin, HEADER_LEN, Record, STAMP_LEN, kind};
use crate::engine::merchant::{Limits, Merchant};

/// Appends `record`, made at `wall_us`, to an open block.
pub fn append(block: &mut Vec<u8>, wall_us: u64, record: &Record<'_>) {
    if block.is_empty() {
        block.extend_from_slice(&wall_us.to_le_bytes());
    }
    let stamp = block.first_chunk().map_or(wall_us, |bytes| u64::from_le_bytes(*bytes));
    let delta = u32::try_from(wall_us.saturating_sub(stamp)).unwrap_or(u32::MAX);
    let start = block.len();
    block.extend_from_slice(&[0; 4]);
    block.extend_from_slice(&delta.to_le_bytes());
    let (kind, flags) = write_body(block, record);
    let length = block.len() - start - HEADER_LEN;
    debug_assert!(length <= usize::from(u16::MAX), "bodies are bounded by the frame size");
    block[start] = kind;
    block[start + 1] = flags;
    block[start + 2..start + 4].copy_from_slice(&(length as u16).to_le_bytes());
}

/// Moves the records of an open block that reach beyond `max` bytes into
/// `rest`, which is empty, as a block of the same stamp: the two applied in
/// order are the one. At least one record stays, whatever its size. Returns how
/// many stay.
pub fn split_off(block: &mut Vec<u8>, max: usize, rest: &mut Vec<u8>) -> u32 {
    let (mut at, mut stays) = (STAMP_LEN, 0);
    while let Some(&[_, _, l0, l1]) = block.get(at..).and_then(|tail| tail.first_chunk()) {
        let end = at + HEADER_LEN + usize::from(u16::from_le_bytes([l0, l1]));
        if stays > 0 && end > max {
            break;
        }
        (at, stays) = (end, stays + 1);
    }
    if at < block.len() {
        rest.extend_from_slice(&block[..STAMP_LEN]);
        rest.extend_from_slice(&block[at..]);
        block.truncate(at);
    }
    stays
}

fn write_body(b: &mut Vec<u8>, record: &Record<'_>) -> (u8, u8) {
    match record {
        Record::Begin(r) => {
            write_begin(b, r);
            (kind::BEGIN, u8::from(r.notify) | u8::from(r.second_signature) << 1)
        }
        Record::NextAttempt(r) => {
            put_u64(b, r.sequence);
            b.push(r.ordinal);
            put_u16(b, r.channel);
            (kind::NEXT_ATTEMPT, 0)
        }
        Record::Outcome(r) => {
            put_u64(b, r.sequence);
            b.extend_from_slice(&[
                r.attempt,
                r.class as u8,
                r.attempt_state as u8,
                r.order_state.wire(),
            ]);
            put_u16(b, r.reason.wire());
            put_u64(b, r.amount as u64);
            put_text(b, r.channel_ref.as_bytes());
            (if r.cancel_result { kind::CANCEL_RESULT } else { kind::EVIDENCE }, 0)
        }
        Record::CancelStart(r) => {
            put_u64(b, r.sequence);
            b.extend_from_slice(&[r.attempt, r.cause as u8]);
            (kind::CANCEL_START, u8::from(r.reversing) | u8::from(r.counted) << 1)
        }
        Record::RefundStart(r) => {
            put_u64(b, r.sequence);
            b.extend_from_slice(&[r.ordinal, r.kind as u8, r.attempt]);
            put_u64(b, r.amount.minor() as u64);
            put_text(b, r.out_refund_no.as_bytes());
            (kind::REFUND_START, u8::from(r.counted))
        }
        Record::RefundOutcome(r) => {
            put_u64(b, r.sequence);
            b.extend_from_slice(&[r.ordinal, r.class as u8, r.state.wire()]);
            put_u16(b, r.reason.wire());
            put_text(b, r.channel_ref.as_bytes());
            (kind::REFUND_OUTCOME, 0)
        }
        Record::Doubt { sequence, attempt } => {
            put_u64(b, *sequence);
            b.push(*attempt);
            (kind::DOUBT, 0)
        }
        Record::Delivered { event_id, taken } => {
            put_u64(b, *event_id);
            (kind::DELIVERED, u8::from(*taken))
        }
        Record::Decision(r) => {
            put_u64(b, r.sequence);
            b.push(r.ordinal);
            for text in [&r.operator, &r.second, &r.note] {
                put_text(b, text.as_bytes());
            }
            (kind::DECISION, u8::from(r.success) | u8::from(r.refund) << 1)
        }
        Record::MerchantPut(r) => {
            put_text(b, r.operator.as_bytes());
            write_merchant(b, &r.merchant);
            (kind::MERCHANT_PUT, 0)
        }
        Record::LimitsPut(r) => {
            put_text(b, r.operator.as_bytes());
            put_text(b, r.mch_id.as_bytes());
            write_limits(b, &r.limits);
            put_u64(b, r.until_ms);
            (kind::LIMITS_PUT, 0)
        }
        Record::SiteDrain(r) => {
            put_text(b, r.operator.as_bytes());
            b.extend_from_slice(&[r.site, u8::from(r.drained)]);
            (kind::SITE_DRAIN, 0)
        }
        Record::SiteMember(r) => {
            put_text(b, r.operator.as_bytes());
            b.extend_from_slice(&[r.site, u8::from(r.member)]);
            (kind::SITE_MEMBER, 0)
        }
        Record::Members(r) => {
            put_text(b, r.operator.as_bytes());
            b.extend_from_slice(&[r.transition, r.changes.len() as u8]);
            b.extend_from_slice(r.changes.as_flattened());
            (kind::MEMBERS, u8::from(r.forced))
        }
    }
}

fn write_begin(b: &mut Vec<u8>, r: &Begin<'_>) {
    put_u64(b, r.sequence);
    b.extend_from_slice(&r.digest);
    b.extend_from_slice(&r.fingerprint);
    put_u64(b, r.amount.minor() as u64);
    put_u64(b, r.time_expire_ms);
    put_u64(b, r.payer_hash);
    put_u64(b, r.device_hash);
    put_u16(b, r.channel);
    put_u16(b, r.gateway);
    b.extend_from_slice(&r.currency.bytes());
    b.extend_from_slice(&[r.method.wire(), r.scene.wire()]);
    put_text(b, r.mch_id.as_bytes());
    put_text(b, r.out_trade_no.as_bytes());
    b.extend_from_slice(r.content);
}

pub(in crate::engine) fn write_limits(b: &mut Vec<u8>, limits: &Limits) {
    for rate in
        [limits.pay_per_minute, limits.query_per_minute, limits.refund_per_minute, limits.burst]
    {
        b.extend_from_slice(&rate.to_le_bytes());
    }
    for amount in [limits.daily_cap, limits.single_max, limits.second_signature_from] {
        put_u64(b, amount as u64);
    }
}

pub(in crate::engine) fn write_merchant(b: &mut Vec<u8>, merchant: &Merchant) {
    put_text(b, merchant.mch_id.as_bytes());
    b.push(merchant.status as u8);
    write_limits(b, &merchant.limits);
    b.push(merchant.keys.len() as u8);
    for key in &merchant.keys {
        b.extend_from_slice(&key.key_id.to_le_bytes());
        b.push(key.kind as u8);
        put_text(b, &key.material);
    }
    b.push(merchant.gateways.len() as u8);
    for name in &merchant.gateways {
        put_text(b, name.as_bytes());
    }
    b.push(merchant.addresses.len() as u8);
    for range in &merchant.addresses {
        b.extend_from_slice(&range.address);
        b.push(range.prefix_len);
    }
}

pub(in crate::engine) fn put_u16(b: &mut Vec<u8>, value: u16) {
    b.extend_from_slice(&value.to_le_bytes());
}

pub(in crate::engine) fn put_u64(b: &mut Vec<u8>, value: u64) {
    b.extend_from_slice(&value.to_le_bytes());
}

pub(in crate::engine) fn put_text(b: &mut Vec<u8>, text: &[u8]) {
    b.push(text.len() as u8);
    b.extend_from_slice(text);
}
