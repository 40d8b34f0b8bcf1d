//! The log records of a shard (state machine, C2) and their bytes.
//!
//! A block is a wall stamp (u64, Unix microseconds) and a sequence of records:
//!
//! | offset | field | type |
//! |---|---|---|
//! | 0 | kind | u8 |
//! | 1 | flags | u8 |
//! | 2 | body length | u16 |
//! | 4 | microseconds since the block's stamp | u32 |
//! | 8 | body | |
//!
//! Everything is little endian; texts carry a length byte. Knows nothing of
//! the state they change. Tested by round trips over random records, by
//! truncation at every byte and by random bytes.

use super::merchant::{AddressRange, KeyKind, Limits, Merchant, MerchantKey, MerchantStatus};
use super::order::{AttemptState, CancelCause, Class, RefundKind};
use protocol::code::{Method, OrderState, Reason, RefundState, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use protocol::money::{Amount, Currency};
use std::fmt::Write;

/// A committed block that cannot be read. The replica must stop: the log said
/// it was whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The block ends inside its stamp, a header or a body.
    #[error("block ends inside the record at offset {offset}")]
    Truncated {
        /// Offset of the record in the block.
        offset: usize,
    },
    /// No such kind.
    #[error("unknown record kind {kind} at offset {offset}")]
    UnknownKind {
        /// Offset of the record in the block.
        offset: usize,
        /// Kind found.
        kind: u8,
    },
    /// A field is outside its table or range, or the body has bytes left over.
    #[error("record of kind {kind} at offset {offset} has an invalid body")]
    InvalidBody {
        /// Offset of the record in the block.
        offset: usize,
        /// Kind of the record.
        kind: u8,
    },
}

/// B: an order accepted and its first attempt started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin<'a> {
    /// Payment sequence.
    pub sequence: u64,
    /// Merchant.
    pub mch_id: MchId,
    /// The merchant's number.
    pub out_trade_no: OutTradeNo,
    /// Order digest.
    pub digest: [u8; 16],
    /// Content fingerprint.
    pub fingerprint: [u8; 16],
    /// Amount.
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
    /// Method.
    pub method: Method,
    /// Scene.
    pub scene: Scene,
    /// Channel of the first attempt.
    pub channel: u16,
    /// Gateway that brought it.
    pub gateway: u16,
    /// Expiry, Unix milliseconds.
    pub time_expire_ms: u64,
    /// Hash of the payer token.
    pub payer_hash: u64,
    /// Hash of the device id.
    pub device_hash: u64,
    /// Outcome events wanted.
    pub notify: bool,
    /// A second signature was given.
    pub second_signature: bool,
    /// Remaining content, opaque.
    pub content: &'a [u8],
}

/// B: a further attempt started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextAttempt {
    /// Payment sequence.
    pub sequence: u64,
    /// Ordinal of the attempt.
    pub ordinal: u8,
    /// Its channel.
    pub channel: u16,
}

/// E or Y: evidence, and what follows for attempt and order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Payment sequence.
    pub sequence: u64,
    /// Attempt.
    pub attempt: u8,
    /// Whether it ends a reversal (Y).
    pub cancel_result: bool,
    /// Class of the evidence.
    pub class: Class,
    /// The attempt's state from now on.
    pub attempt_state: AttemptState,
    /// The order's state from now on.
    pub order_state: OrderState,
    /// Why.
    pub reason: Reason,
    /// Amount the channel named, minor units.
    pub amount: i64,
    /// The channel's own number.
    pub channel_ref: ShortText,
}

/// X: a cancel started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelStart {
    /// Payment sequence.
    pub sequence: u64,
    /// Attempt.
    pub attempt: u8,
    /// Who wishes it.
    pub cause: CancelCause,
    /// The attempt is being reversed from now on; else only the wish is set.
    pub reversing: bool,
    /// It counts in the merchant's refund rate.
    pub counted: bool,
}

/// F: a refund accepted, its amount reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefundStart {
    /// Payment sequence.
    pub sequence: u64,
    /// Ordinal of the refund within the payment.
    pub ordinal: u8,
    /// What it is for.
    pub kind: RefundKind,
    /// Attempt whose money goes back.
    pub attempt: u8,
    /// Amount.
    pub amount: Amount,
    /// The merchant's number, or the channel number of a refund of our own.
    pub out_refund_no: OutRefundNo,
    /// It counts in the merchant's refund rate.
    pub counted: bool,
}

/// G: a refund's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefundOutcome {
    /// Payment sequence.
    pub sequence: u64,
    /// Ordinal of the refund.
    pub ordinal: u8,
    /// Class of the evidence.
    pub class: Class,
    /// The refund's state from now on.
    pub state: RefundState,
    /// Why.
    pub reason: Reason,
    /// The channel's own number.
    pub channel_ref: ShortText,
}

/// M: an operator's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Payment sequence.
    pub sequence: u64,
    /// Attempt or refund ordinal.
    pub ordinal: u8,
    /// It is about a refund.
    pub refund: bool,
    /// The money moved.
    pub success: bool,
    /// Operator.
    pub operator: ShortText,
    /// Second operator; empty when not needed.
    pub second: ShortText,
    /// Evidence in their words.
    pub note: ShortText,
}

/// A merchant created or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MerchantPut {
    /// Operator.
    pub operator: ShortText,
    /// The record.
    pub merchant: Merchant,
}

/// A merchant's limits changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsPut {
    /// Operator.
    pub operator: ShortText,
    /// Merchant.
    pub mch_id: MchId,
    /// New limits.
    pub limits: Limits,
    /// When the previous ones come back, Unix milliseconds; 0: never.
    pub until_ms: u64,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// B, first attempt.
    Begin(Begin<'a>),
    /// B, further attempt.
    NextAttempt(NextAttempt),
    /// E and Y.
    Outcome(Outcome),
    /// X.
    CancelStart(CancelStart),
    /// F.
    RefundStart(RefundStart),
    /// G.
    RefundOutcome(RefundOutcome),
    /// U: an attempt is in doubt.
    Doubt {
        /// Payment sequence.
        sequence: u64,
        /// Attempt.
        attempt: u8,
    },
    /// N: an event was taken over, or given up.
    Delivered {
        /// Event.
        event_id: u64,
        /// Taken over by a subscriber.
        taken: bool,
    },
    /// M.
    Decision(Decision),
    /// Merchant record.
    MerchantPut(Box<MerchantPut>),
    /// Limits record.
    LimitsPut(LimitsPut),
}

/// A record with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped<'a> {
    /// Unix microseconds.
    pub at_us: u64,
    /// The record.
    pub record: Record<'a>,
}

const STAMP_LEN: usize = 8;
const HEADER_LEN: usize = 8;

mod kind {
    pub(super) const BEGIN: u8 = b'B';
    pub(super) const NEXT_ATTEMPT: u8 = b'A';
    pub(super) const EVIDENCE: u8 = b'E';
    pub(super) const CANCEL_START: u8 = b'X';
    pub(super) const CANCEL_RESULT: u8 = b'Y';
    pub(super) const REFUND_START: u8 = b'F';
    pub(super) const REFUND_OUTCOME: u8 = b'G';
    pub(super) const DOUBT: u8 = b'U';
    pub(super) const DELIVERED: u8 = b'N';
    pub(super) const DECISION: u8 = b'M';
    pub(super) const MERCHANT_PUT: u8 = b'P';
    pub(super) const LIMITS_PUT: u8 = b'L';
}

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

fn write_limits(b: &mut Vec<u8>, limits: &Limits) {
    for rate in
        [limits.pay_per_minute, limits.query_per_minute, limits.refund_per_minute, limits.burst]
    {
        b.extend_from_slice(&rate.to_le_bytes());
    }
    for amount in [limits.daily_cap, limits.single_max, limits.second_signature_from] {
        put_u64(b, amount as u64);
    }
}

fn write_merchant(b: &mut Vec<u8>, merchant: &Merchant) {
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

/// Most keys of a merchant.
pub const KEYS_MAX: usize = 2;
/// Longest key material, bytes.
pub const KEY_MATERIAL_MAX: usize = 128;
/// Most gateway names, and most address ranges, of a merchant.
pub const RANGES_MAX: usize = 16;

fn put_u16(b: &mut Vec<u8>, value: u16) {
    b.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(b: &mut Vec<u8>, value: u64) {
    b.extend_from_slice(&value.to_le_bytes());
}

fn put_text(b: &mut Vec<u8>, text: &[u8]) {
    b.push(text.len() as u8);
    b.extend_from_slice(text);
}

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
pub(super) struct Sequences<'a>(&'a [u8]);

impl<'a> Sequences<'a> {
    pub(super) fn new(block: &'a [u8]) -> Self {
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

fn is_kind(kind: u8) -> bool {
    matches!(
        kind,
        b'B' | b'A' | b'E' | b'X' | b'Y' | b'F' | b'G' | b'U' | b'N' | b'M' | b'P' | b'L'
    )
}

struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.u8()?);
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn short(&mut self) -> Option<ShortText> {
        ShortText::new(self.text()?)
    }

    fn mch_id(&mut self) -> Option<MchId> {
        MchId::parse(self.text()?).ok()
    }

    fn reason(&mut self) -> Option<Reason> {
        Reason::from_wire(self.u16()?)
    }

    fn amount(&mut self) -> Option<Amount> {
        Amount::new(self.i64()?)
    }

    /// The record, provided that the whole body was read.
    fn done<T>(self, record: T) -> Option<T> {
        self.0.is_empty().then_some(record)
    }
}

fn read_body<'a>(kind: u8, flags: u8, mut b: Body<'a>) -> Option<Record<'a>> {
    // An unknown flag is a record of a later version: refuse rather than guess.
    let known = match kind {
        kind::BEGIN | kind::CANCEL_START | kind::DECISION => 3,
        kind::REFUND_START | kind::DELIVERED => 1,
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
        _ => return None,
    };
    b.done(record)
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

fn read_limits(b: &mut Body<'_>) -> Option<Limits> {
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

fn read_merchant(b: &mut Body<'_>) -> Option<Merchant> {
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

impl Record<'_> {
    /// Appends the record, made at `wall_us`, to an open block.
    pub fn append(&self, wall_us: u64, block: &mut Vec<u8>) {
        append(block, wall_us, self);
    }

    /// The record's name in dumps and time lines.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin(_) => "begin",
            Self::NextAttempt(_) => "attempt",
            Self::Outcome(r) if r.class == Class::Noted => "noted",
            Self::Outcome(r) if r.attempt_state == AttemptState::Awaiting => "awaiting",
            Self::Outcome(r) if r.class == Class::RouteEnded => "route_end",
            Self::Outcome(_) => "end",
            Self::CancelStart(_) => "cancel",
            Self::RefundStart(_) => "refund",
            Self::RefundOutcome(_) => "refund_end",
            Self::Doubt { .. } => "doubt",
            Self::Delivered { .. } => "delivered",
            Self::Decision(_) => "decided",
            Self::MerchantPut(_) => "merchant",
            Self::LimitsPut(_) => "limits",
        }
    }

    /// The payment the record is about.
    pub fn sequence(&self) -> Option<u64> {
        match self {
            Self::Begin(r) => Some(r.sequence),
            Self::NextAttempt(r) => Some(r.sequence),
            Self::Outcome(r) => Some(r.sequence),
            Self::CancelStart(r) => Some(r.sequence),
            Self::RefundStart(r) => Some(r.sequence),
            Self::RefundOutcome(r) => Some(r.sequence),
            Self::Decision(r) => Some(r.sequence),
            Self::Doubt { sequence, .. } => Some(*sequence),
            Self::Delivered { event_id, .. } => Some(super::outbox::event_payment(*event_id)),
            Self::MerchantPut(_) | Self::LimitsPut(_) => None,
        }
    }
}

impl Stamped<'_> {
    /// Appends the record as one JSON object for dumps and time lines. Payer
    /// token, content and key material never appear.
    pub fn to_json(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = write!(out, "{{\"at_us\":{},\"kind\":\"{}\"", self.at_us, self.record.name());
        if let Some(sequence) = self.record.sequence() {
            let _ = write!(out, ",\"sequence\":{sequence}");
        }
        let _ = self.write_fields(out);
        out.push('}');
    }

    fn write_fields(&self, out: &mut String) -> std::fmt::Result {
        match &self.record {
            Record::Begin(r) => write_begin_json(r, out),
            Record::NextAttempt(r) => {
                write!(out, ",\"attempt\":{},\"channel\":{}", r.ordinal, r.channel)
            }
            Record::Outcome(r) => write_outcome_json(r, out),
            Record::CancelStart(r) => write!(
                out,
                ",\"attempt\":{},\"cause\":\"{}\",\"reversing\":{}",
                r.attempt,
                r.cause.name(),
                r.reversing
            ),
            Record::RefundStart(r) => {
                // A refund of our own has no number of the merchant's.
                let number = match r.kind {
                    RefundKind::Merchant => r.out_refund_no.as_str(),
                    RefundKind::Reversal | RefundKind::Orphan => "",
                };
                write!(
                    out,
                    ",\"ordinal\":{},\"for\":\"{}\",\"attempt\":{},\"amount\":{},\"out_refund_no\":\"{number}\"",
                    r.ordinal,
                    r.kind.name(),
                    r.attempt,
                    r.amount.minor(),
                )
            }
            Record::RefundOutcome(r) => write!(
                out,
                ",\"ordinal\":{},\"class\":\"{}\",\"ending\":\"{}\",\"reason\":\"{}\",\"channel_ref\":\"{}\"",
                r.ordinal,
                r.class.name(),
                refund_ending(r.state),
                r.reason.name(),
                Escaped(&r.channel_ref)
            ),
            Record::Doubt { attempt, .. } => write!(out, ",\"attempt\":{attempt}"),
            Record::Delivered { event_id, taken } => {
                write!(out, ",\"event_id\":{event_id},\"taken\":{taken}")
            }
            Record::Decision(r) => write!(
                out,
                ",\"ordinal\":{},\"refund\":{},\"success\":{},\"operator\":\"{}\",\"second\":\"{}\",\"note\":\"{}\"",
                r.ordinal,
                r.refund,
                r.success,
                Escaped(&r.operator),
                Escaped(&r.second),
                Escaped(&r.note)
            ),
            Record::MerchantPut(r) => write!(
                out,
                ",\"operator\":\"{}\",\"mch_id\":\"{}\",\"status\":\"{:?}\",\"keys\":{},\"limits\":{{{}}}",
                Escaped(&r.operator),
                r.merchant.mch_id,
                r.merchant.status,
                r.merchant.keys.len(),
                LimitsJson(&r.merchant.limits)
            ),
            Record::LimitsPut(r) => write!(
                out,
                ",\"operator\":\"{}\",\"mch_id\":\"{}\",\"until_ms\":{},\"limits\":{{{}}}",
                Escaped(&r.operator),
                r.mch_id,
                r.until_ms,
                LimitsJson(&r.limits)
            ),
        }
    }
}

fn write_begin_json(r: &Begin<'_>, out: &mut String) -> std::fmt::Result {
    write!(
        out,
        ",\"attempt\":1,\"channel\":{},\"mch_id\":\"{}\",\"out_trade_no\":\"{}\",\"charge_no\":\"{}\",\"amount\":{},\"currency\":\"{}\",\"method\":\"{}\",\"scene\":\"{}\",\"gateway\":{},\"time_expire_ms\":{},\"notify\":{}",
        r.channel,
        r.mch_id,
        r.out_trade_no,
        protocol::channel::charge_number(&r.digest, 1),
        r.amount.minor(),
        r.currency,
        r.method.name(),
        r.scene.name(),
        r.gateway,
        r.time_expire_ms,
        r.notify,
    )
}

fn write_outcome_json(r: &Outcome, out: &mut String) -> std::fmt::Result {
    let over = matches!(r.attempt_state, AttemptState::Declined | AttemptState::Void);
    write!(
        out,
        ",\"attempt\":{},\"class\":\"{}\",\"ending\":\"{}\",\"goes_on\":{},\"order_state\":\"{}\",\"reason\":\"{}\",\"amount\":{},\"channel_ref\":\"{}\"",
        r.attempt,
        r.class.name(),
        attempt_ending(r),
        over && r.order_state == OrderState::Processing,
        r.order_state.name(),
        r.reason.name(),
        r.amount,
        Escaped(&r.channel_ref),
    )
}

/// How the attempt ended, as dumps and audits name it.
fn attempt_ending(r: &Outcome) -> &'static str {
    match r.attempt_state {
        AttemptState::Succeeded => "succeeded",
        AttemptState::Declined => "declined",
        AttemptState::Void if r.class == Class::Reversed => "reversed",
        AttemptState::Void => "void",
        _ => "manual",
    }
}

fn refund_ending(state: RefundState) -> &'static str {
    match state {
        RefundState::Success => "succeeded",
        RefundState::Failed => "declined",
        _ => "manual",
    }
}

/// A short text inside JSON quotes.
struct Escaped<'a>(&'a ShortText);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.as_str().chars() {
            if matches!(c, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        Ok(())
    }
}

struct LimitsJson<'a>(&'a Limits);

impl std::fmt::Display for LimitsJson<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let l = self.0;
        write!(
            f,
            "\"pay_per_minute\":{},\"query_per_minute\":{},\"refund_per_minute\":{},\"burst\":{},\
             \"daily_cap\":{},\"single_max\":{},\"second_signature_from\":{}",
            l.pay_per_minute,
            l.query_per_minute,
            l.refund_per_minute,
            l.burst,
            l.daily_cap,
            l.single_max,
            l.second_signature_from
        )
    }
}
