//! Records out of the bytes of a block: every length and number is checked. Tested
//! by round trips, by truncation at every byte and by random bytes.

use super::{
    Begin, CancelStart, Decision, DecodeError, HEADER_LEN, KEY_MATERIAL_MAX, KEYS_MAX, LimitsPut,
    Members, MerchantPut, NextAttempt, Outcome, RANGES_MAX, Record, RefundOutcome, RefundStart,
    SITES_END, STAMP_LEN, SiteDrain, SiteMember, Stamped, kind, members,
};
use crate::engine::merchant::{
    AddressRange, KeyKind, Limits, Merchant, MerchantKey, MerchantStatus,
};
use crate::engine::order::{AttemptState, CancelCause, Class, RefundKind};
use protocol::code::{Method, OrderState, Reason, RefundState, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use protocol::money::{Amount, Currency};

/// The records of a block, in order. Ends after the first error.
pub struct Records<'a> {
    block: &'a [u8],
    stamp: u64,
    at: usize,
    failed: bool,
}

impl<'a> Records<'a> {
    /// Reads a block; an empty block holds no record.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] when it is shorter than its stamp.
    pub fn new(block: &'a [u8]) -> Result<Self, DecodeError> {
        if block.is_empty() {
            return Ok(Self { block, stamp: 0, at: 0, failed: false });
        }
        let stamp = block.first_chunk().ok_or(DecodeError::Truncated { offset: 0 })?;
        Ok(Self { block, stamp: u64::from_le_bytes(*stamp), at: STAMP_LEN, failed: false })
    }

    /// The block's wall stamp, Unix microseconds.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    fn read(&mut self) -> Result<Stamped<'a>, DecodeError> {
        let offset = self.at;
        let truncated = DecodeError::Truncated { offset };
        let rest = self.block.get(offset..).ok_or(truncated)?;
        let (header, body) = rest.split_first_chunk::<HEADER_LEN>().ok_or(truncated)?;
        let [kind, flags, l0, l1, d0, d1, d2, d3] = *header;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        let body = body.get(..length).ok_or(truncated)?;
        self.at = offset + HEADER_LEN + length;
        if !is_kind(kind) {
            return Err(DecodeError::UnknownKind { offset, kind });
        }
        let record =
            read_body(kind, flags, Body(body)).ok_or(DecodeError::InvalidBody { offset, kind })?;
        let delta = u64::from(u32::from_le_bytes([d0, d1, d2, d3]));
        Ok(Stamped { at_us: self.stamp.saturating_add(delta), record })
    }
}

/// The payments that the records of a block are about, without decoding or
/// checking anything: a hint of what will be needed.
pub(in crate::engine) struct Sequences<'a>(&'a [u8]);

impl<'a> Sequences<'a> {
    pub(in crate::engine) fn new(block: &'a [u8]) -> Self {
        Self(block.get(STAMP_LEN..).unwrap_or_default())
    }
}

impl Iterator for Sequences<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        let (header, rest) = self.0.split_first_chunk::<HEADER_LEN>()?;
        let length = usize::from(u16::from_le_bytes([header[2], header[3]]));
        // Every body that is about a payment begins with its sequence.
        let sequence = rest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.0 = rest.get(length..)?;
        Some(sequence)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Stamped<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.at >= self.block.len() {
            return None;
        }
        let read = self.read();
        self.failed = read.is_err();
        Some(read)
    }
}

/// Whether a block holds a change of members instead of records of payments,
/// without reading it.
pub fn is_members(block: &[u8]) -> bool {
    block.get(STAMP_LEN) == Some(&kind::MEMBERS)
}

fn is_kind(kind: u8) -> bool {
    matches!(
        kind,
        b'B' | b'A'
            | b'E'
            | b'X'
            | b'Y'
            | b'F'
            | b'G'
            | b'U'
            | b'N'
            | b'M'
            | b'P'
            | b'L'
            | b'S'
            | b'J'
            | b'C'
    )
}

/// Fields in order out of bytes; `None` when they end or do not fit.
pub(in crate::engine) struct Body<'a>(pub(in crate::engine) &'a [u8]);

impl<'a> Body<'a> {
    #[inline]
    pub(in crate::engine) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(in crate::engine) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(in crate::engine) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(in crate::engine) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(in crate::engine) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(in crate::engine) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub(in crate::engine) fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.u8()?);
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub(in crate::engine) fn short(&mut self) -> Option<ShortText> {
        ShortText::new(self.text()?)
    }

    pub(in crate::engine) fn mch_id(&mut self) -> Option<MchId> {
        MchId::parse(self.text()?).ok()
    }

    pub(in crate::engine) fn reason(&mut self) -> Option<Reason> {
        Reason::from_wire(self.u16()?)
    }

    pub(in crate::engine) fn amount(&mut self) -> Option<Amount> {
        Amount::new(self.i64()?)
    }

    /// The record, provided that the whole body was read.
    pub(in crate::engine) fn done<T>(self, record: T) -> Option<T> {
        self.0.is_empty().then_some(record)
    }
}

fn read_body<'a>(kind: u8, flags: u8, mut b: Body<'a>) -> Option<Record<'a>> {
    // An unknown flag is a record of a later version: refuse rather than guess.
    let known = match kind {
        kind::BEGIN | kind::CANCEL_START | kind::DECISION => 3,
        kind::REFUND_START | kind::DELIVERED | kind::MEMBERS => 1,
        _ => 0,
    };
    if flags & !known != 0 {
        return None;
    }
    let record = match kind {
        kind::BEGIN => return read_begin(flags, b).map(Record::Begin),
        kind::NEXT_ATTEMPT => Record::NextAttempt(NextAttempt {
            sequence: b.u64()?,
            ordinal: b.u8()?,
            channel: b.u16()?,
        }),
        kind::EVIDENCE | kind::CANCEL_RESULT => Record::Outcome(Outcome {
            cancel_result: kind == kind::CANCEL_RESULT,
            sequence: b.u64()?,
            attempt: b.u8()?,
            class: Class::from_wire(b.u8()?)?,
            attempt_state: AttemptState::from_wire(b.u8()?)?,
            order_state: OrderState::from_wire(b.u8()?)?,
            reason: b.reason()?,
            amount: b.i64()?,
            channel_ref: b.short()?,
        }),
        kind::CANCEL_START => Record::CancelStart(CancelStart {
            sequence: b.u64()?,
            attempt: b.u8()?,
            cause: CancelCause::from_wire(b.u8()?)?,
            reversing: flags & 1 != 0,
            counted: flags & 2 != 0,
        }),
        kind::REFUND_START => Record::RefundStart(RefundStart {
            sequence: b.u64()?,
            ordinal: b.u8()?,
            kind: RefundKind::from_wire(b.u8()?)?,
            attempt: b.u8()?,
            amount: b.amount()?,
            out_refund_no: OutRefundNo::parse(b.text()?).ok()?,
            counted: flags & 1 != 0,
        }),
        kind::REFUND_OUTCOME => Record::RefundOutcome(RefundOutcome {
            sequence: b.u64()?,
            ordinal: b.u8()?,
            class: Class::from_wire(b.u8()?)?,
            state: RefundState::from_wire(b.u8()?)?,
            reason: b.reason()?,
            channel_ref: b.short()?,
        }),
        kind::DOUBT => Record::Doubt { sequence: b.u64()?, attempt: b.u8()? },
        kind::DELIVERED => Record::Delivered { event_id: b.u64()?, taken: flags & 1 != 0 },
        kind::DECISION => Record::Decision(Decision {
            sequence: b.u64()?,
            ordinal: b.u8()?,
            refund: flags & 2 != 0,
            success: flags & 1 != 0,
            operator: b.short()?,
            second: b.short()?,
            note: b.short()?,
        }),
        kind::MERCHANT_PUT => Record::MerchantPut(Box::new(MerchantPut {
            operator: b.short()?,
            merchant: read_merchant(&mut b)?,
        })),
        kind::LIMITS_PUT => Record::LimitsPut(LimitsPut {
            operator: b.short()?,
            mch_id: b.mch_id()?,
            limits: read_limits(&mut b)?,
            until_ms: b.u64()?,
        }),
        kind::SITE_DRAIN => Record::SiteDrain(SiteDrain {
            operator: b.short()?,
            site: read_site(&mut b)?,
            drained: read_flag(&mut b)?,
        }),
        kind::SITE_MEMBER => Record::SiteMember(SiteMember {
            operator: b.short()?,
            site: read_site(&mut b)?,
            member: read_flag(&mut b)?,
        }),
        kind::MEMBERS => return read_members(flags, b).map(Record::Members),
        _ => return None,
    };
    b.done(record)
}

fn read_site(b: &mut Body<'_>) -> Option<u8> {
    Some(b.u8()?).filter(|site| (1..SITES_END).contains(site))
}

fn read_flag(b: &mut Body<'_>) -> Option<bool> {
    match b.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn read_members<'a>(flags: u8, mut b: Body<'a>) -> Option<Members<'a>> {
    let operator = b.short()?;
    let transition = Some(b.u8()?).filter(|transition| *transition <= 2)?;
    let count = usize::from(b.u8()?);
    let (changes, rest) = b.0.as_chunks::<2>();
    let legal = |[kind, site]: &[u8; 2]| *kind <= members::LEARNER && (1..SITES_END).contains(site);
    let whole = rest.is_empty() && changes.len() == count && changes.iter().all(legal);
    whole.then_some(Members { operator, forced: flags & 1 != 0, transition, changes })
}

fn read_begin<'a>(flags: u8, mut b: Body<'a>) -> Option<Begin<'a>> {
    Some(Begin {
        sequence: b.u64()?,
        digest: b.array()?,
        fingerprint: b.array()?,
        amount: b.amount()?,
        time_expire_ms: b.u64()?,
        payer_hash: b.u64()?,
        device_hash: b.u64()?,
        channel: b.u16()?,
        gateway: b.u16()?,
        currency: Currency::new(b.array()?)?,
        method: Method::from_wire(b.u8()?)?,
        scene: Scene::from_wire(b.u8()?)?,
        mch_id: b.mch_id()?,
        out_trade_no: OutTradeNo::parse(b.text()?).ok()?,
        notify: flags & 1 != 0,
        second_signature: flags & 2 != 0,
        content: b.0,
    })
}

pub(in crate::engine) fn read_limits(b: &mut Body<'_>) -> Option<Limits> {
    Some(Limits {
        pay_per_minute: b.u32()?,
        query_per_minute: b.u32()?,
        refund_per_minute: b.u32()?,
        burst: b.u32()?,
        daily_cap: b.i64()?,
        single_max: b.i64()?,
        second_signature_from: b.i64()?,
    })
}

pub(in crate::engine) fn read_merchant(b: &mut Body<'_>) -> Option<Merchant> {
    let mch_id = b.mch_id()?;
    let status = match b.u8()? {
        1 => MerchantStatus::Active,
        2 => MerchantStatus::Limited,
        3 => MerchantStatus::Suspended,
        4 => MerchantStatus::Dormant,
        _ => return None,
    };
    let limits = read_limits(b)?;
    let keys = read_list(b, KEYS_MAX, |b| {
        let key_id = b.u32()?;
        let kind = match b.u8()? {
            1 => KeyKind::HmacSha256,
            2 => KeyKind::Ed25519,
            _ => return None,
        };
        let material = b.text()?;
        (material.len() <= KEY_MATERIAL_MAX).then(|| MerchantKey {
            key_id,
            kind,
            material: material.to_vec(),
        })
    })?;
    let gateways = read_list(b, RANGES_MAX, |b| b.short())?;
    let addresses = read_list(b, RANGES_MAX, |b| {
        let (address, prefix_len) = (b.array()?, b.u8()?);
        (prefix_len <= 128).then_some(AddressRange { address, prefix_len })
    })?;
    Some(Merchant { mch_id, status, keys, gateways, addresses, limits })
}

fn read_list<T>(
    b: &mut Body<'_>,
    max: usize,
    mut read: impl FnMut(&mut Body<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = usize::from(b.u8()?);
    if count > max {
        return None;
    }
    (0..count).map(|_| read(b)).collect()
}
