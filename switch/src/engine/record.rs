//! The log's records: what a block holds. Little-endian, length-prefixed, one
//! stamp per record.
//!
//! A block is the leader's wall clock (u64 microseconds) followed by records:
//! kind u8, zero u8, body length u16, microseconds after the block's clock u32,
//! body. Letters B E X F G N M are the state machine's names.

use std::fmt::Write;

use protocol::code::{Method, Reason, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use protocol::money::{Amount, Currency};

use super::merchant::{AddressRange, KeyKind, Limits, Merchant, MerchantKey, MerchantStatus};

const BLOCK_HEADER: usize = 8;
const RECORD_HEADER: usize = 8;

/// A block that cannot be read: the log and the program do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {record} of the block cannot be read")]
pub struct RecordError {
    /// Number of the record within its block, from 0.
    pub record: u32,
}

/// How an attempt or refund ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// The money moved.
    Succeeded = 1,
    /// The channel said no.
    Declined = 2,
    /// Nothing was or can be charged: never sent, or unknown for good.
    Void = 3,
    /// Nothing stands charged: the channel confirmed the reversal.
    Reversed = 4,
    /// In front of an operator.
    Manual = 5,
}

impl Ending {
    fn from_wire(raw: u8) -> Option<Self> {
        [Self::Succeeded, Self::Declined, Self::Void, Self::Reversed, Self::Manual]
            .into_iter()
            .find(|ending| *ending as u8 == raw)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Declined => "declined",
            Self::Void => "void",
            Self::Reversed => "reversed",
            Self::Manual => "manual",
        }
    }
}

/// Why a cancel was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CancelCause {
    /// The merchant closed or reversed the payment.
    Merchant = 1,
    /// `time_expire` passed.
    Expired = 2,
    /// The channel gave no answer for too long.
    GaveUp = 3,
}

impl CancelCause {
    fn from_wire(raw: u8) -> Option<Self> {
        [Self::Merchant, Self::Expired, Self::GaveUp].into_iter().find(|cause| *cause as u8 == raw)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Merchant => "merchant",
            Self::Expired => "expired",
            Self::GaveUp => "gave_up",
        }
    }
}

/// B of the first attempt: the payment exists from here on.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// Sequence within the shard, from 1, without gaps.
    pub sequence: u64,
    /// Channel of attempt 1.
    pub channel: u16,
    /// Amount.
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
    /// How the payer pays.
    pub method: Method,
    /// Where.
    pub scene: Scene,
    /// Whether events are wanted.
    pub notify: bool,
    /// Unix milliseconds.
    pub time_expire_ms: u64,
    /// Fingerprint of the content.
    pub fingerprint: [u8; 16],
    /// `order_digest`.
    pub digest: [u8; 16],
    /// Merchant.
    pub mch_id: MchId,
    /// Its number.
    pub out_trade_no: OutTradeNo,
    /// What the engine does not read.
    pub content: &'a [u8],
}

/// F: the amount is reserved from here on.
#[derive(Clone, Copy, Debug)]
pub struct RefundBegin {
    /// The payment.
    pub sequence: u64,
    /// Ordinal of the refund within the payment.
    pub ordinal: u8,
    /// Attempt whose charge is given back.
    pub attempt: u8,
    /// Amount.
    pub amount: Amount,
    /// Merchant's number; `None` for reversals and orphan refunds.
    pub out_refund_no: Option<OutRefundNo>,
}

/// E, Y and G: an attempt or a refund ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The payment.
    pub sequence: u64,
    /// Attempt, or refund ordinal.
    pub ordinal: u8,
    /// How.
    pub ending: Ending,
    /// Why.
    pub reason: Reason,
    /// Attempt only: the payment goes on with another channel.
    pub goes_on: bool,
    /// The channel's own number.
    pub channel_ref: ShortText,
}

/// M: an operator's decision.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// The payment.
    pub sequence: u64,
    /// Attempt, or refund ordinal.
    pub ordinal: u8,
    /// Whether it is about a refund.
    pub refund: bool,
    /// Whether the money moved.
    pub success: bool,
    /// Who.
    pub operator: ShortText,
    /// The second person.
    pub second: ShortText,
    /// Evidence in words.
    pub note: ShortText,
}

/// One record.
#[derive(Clone, Debug)]
pub enum Record<'a> {
    /// B of attempt 1.
    Begin(Begin<'a>),
    /// B of a later attempt: payment, attempt, channel.
    Attempt {
        /// The payment.
        sequence: u64,
        /// Its number.
        attempt: u8,
        /// Its channel.
        channel: u16,
    },
    /// E or Y.
    End(End),
    /// X.
    Cancel {
        /// The payment.
        sequence: u64,
        /// Attempt being cancelled.
        attempt: u8,
        /// Why.
        cause: CancelCause,
    },
    /// F.
    Refund(RefundBegin),
    /// G.
    RefundEnd(End),
    /// N: an event was taken over (`true`) or given up.
    Delivered {
        /// Which.
        event_id: u64,
        /// Taken over, or dead-lettered.
        taken: bool,
    },
    /// M.
    Decided(Decision),
    /// A merchant's record, whole.
    Merchant {
        /// Who changed it.
        operator: ShortText,
        /// The record.
        merchant: Merchant,
    },
    /// A merchant's limits.
    Limits {
        /// Who changed them.
        operator: ShortText,
        /// Whose.
        mch_id: MchId,
        /// The limits.
        limits: Limits,
        /// When the previous ones come back, Unix milliseconds; 0: never.
        until_ms: u64,
    },
}

/// A record with its time.
#[derive(Clone, Debug)]
pub struct Stamped<'a> {
    /// Unix microseconds, as the leader stamped it.
    pub at_us: u64,
    /// The record.
    pub record: Record<'a>,
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.push(text.len() as u8);
    out.extend_from_slice(text);
}

impl Record<'_> {
    fn kind(&self) -> u8 {
        match self {
            Self::Begin(_) => 1,
            Self::Attempt { .. } => 2,
            Self::End(_) => 3,
            Self::Cancel { .. } => 4,
            Self::Refund(_) => 5,
            Self::RefundEnd(_) => 6,
            Self::Delivered { .. } => 7,
            Self::Decided(_) => 8,
            Self::Merchant { .. } => 9,
            Self::Limits { .. } => 10,
        }
    }

    /// The record's name in dumps and time lines.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin(_) => "begin",
            Self::Attempt { .. } => "attempt",
            Self::End(_) => "end",
            Self::Cancel { .. } => "cancel",
            Self::Refund(_) => "refund",
            Self::RefundEnd(_) => "refund_end",
            Self::Delivered { .. } => "delivered",
            Self::Decided(_) => "decided",
            Self::Merchant { .. } => "merchant",
            Self::Limits { .. } => "limits",
        }
    }

    /// Appends the record to a block, starting the block when it is empty.
    pub fn append(&self, at_us: u64, block: &mut Vec<u8>) {
        if block.is_empty() {
            block.extend_from_slice(&at_us.to_le_bytes());
        }
        let clock = u64_at(block).unwrap_or(at_us);
        let after = at_us.saturating_sub(clock).min(u64::from(u32::MAX)) as u32;
        let start = block.len();
        block.extend_from_slice(&[self.kind(), 0, 0, 0]);
        block.extend_from_slice(&after.to_le_bytes());
        self.body(block);
        let len = (block.len() - start - RECORD_HEADER) as u16;
        block[start + 2..start + 4].copy_from_slice(&len.to_le_bytes());
    }

    fn body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Begin(begin) => begin.body(out),
            Self::Attempt { sequence, attempt, channel } => {
                out.extend_from_slice(&sequence.to_le_bytes());
                out.push(*attempt);
                out.extend_from_slice(&channel.to_le_bytes());
            }
            Self::End(end) | Self::RefundEnd(end) => end.body(out),
            Self::Cancel { sequence, attempt, cause } => {
                out.extend_from_slice(&sequence.to_le_bytes());
                out.extend_from_slice(&[*attempt, *cause as u8]);
            }
            Self::Refund(refund) => {
                out.extend_from_slice(&refund.sequence.to_le_bytes());
                out.extend_from_slice(&[refund.ordinal, refund.attempt]);
                out.extend_from_slice(&refund.amount.minor().to_le_bytes());
                text(out, refund.out_refund_no.as_ref().map_or(&[], |no| no.as_bytes()));
            }
            Self::Delivered { event_id, taken } => {
                out.extend_from_slice(&event_id.to_le_bytes());
                out.push((*taken).into());
            }
            Self::Decided(decision) => {
                out.extend_from_slice(&decision.sequence.to_le_bytes());
                out.extend_from_slice(&[
                    decision.ordinal,
                    decision.refund.into(),
                    decision.success.into(),
                ]);
                for part in [&decision.operator, &decision.second, &decision.note] {
                    text(out, part.as_bytes());
                }
            }
            Self::Merchant { operator, merchant } => {
                text(out, operator.as_bytes());
                merchant_body(merchant, out);
            }
            Self::Limits { operator, mch_id, limits, until_ms } => {
                text(out, operator.as_bytes());
                text(out, mch_id.as_bytes());
                limits_body(limits, out);
                out.extend_from_slice(&until_ms.to_le_bytes());
            }
        }
    }
}

impl Begin<'_> {
    fn body(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.channel.to_le_bytes());
        out.extend_from_slice(&self.amount.minor().to_le_bytes());
        out.extend_from_slice(&self.currency.bytes());
        out.extend_from_slice(&[self.method.wire(), self.scene.wire(), self.notify.into()]);
        out.extend_from_slice(&self.time_expire_ms.to_le_bytes());
        out.extend_from_slice(&self.fingerprint);
        out.extend_from_slice(&self.digest);
        text(out, self.mch_id.as_bytes());
        text(out, self.out_trade_no.as_bytes());
        out.extend_from_slice(self.content);
    }
}

impl End {
    fn body(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&[self.ordinal, self.ending as u8, self.goes_on.into()]);
        out.extend_from_slice(&self.reason.wire().to_le_bytes());
        text(out, self.channel_ref.as_bytes());
    }
}

fn limits_body(limits: &Limits, out: &mut Vec<u8>) {
    for rate in
        [limits.pay_per_minute, limits.query_per_minute, limits.refund_per_minute, limits.burst]
    {
        out.extend_from_slice(&rate.to_le_bytes());
    }
    for bound in [limits.daily_cap, limits.single_max, limits.second_signature_from] {
        out.extend_from_slice(&bound.to_le_bytes());
    }
}

fn merchant_body(merchant: &Merchant, out: &mut Vec<u8>) {
    text(out, merchant.mch_id.as_bytes());
    out.push(merchant.status as u8);
    limits_body(&merchant.limits, out);
    out.push(merchant.keys.len() as u8);
    for key in &merchant.keys {
        out.extend_from_slice(&key.key_id.to_le_bytes());
        out.push(key.kind as u8);
        text(out, &key.material);
    }
    out.push(merchant.gateways.len() as u8);
    for gateway in &merchant.gateways {
        text(out, gateway.as_bytes());
    }
    out.push(merchant.addresses.len() as u8);
    for range in &merchant.addresses {
        out.extend_from_slice(&range.address);
        out.push(range.prefix_len);
    }
}

fn u64_at(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))
}

/// The records of a block, in order.
pub struct Records<'a> {
    clock_us: u64,
    rest: &'a [u8],
    record: u32,
}

impl<'a> Records<'a> {
    /// Reads a block.
    ///
    /// # Errors
    /// [`RecordError`] when it is shorter than its header.
    pub fn new(block: &'a [u8]) -> Result<Self, RecordError> {
        let clock_us = u64_at(block).ok_or(RecordError { record: 0 })?;
        Ok(Self { clock_us, rest: &block[BLOCK_HEADER..], record: 0 })
    }

    fn read(&mut self) -> Option<Stamped<'a>> {
        let (head, rest) = self.rest.split_first_chunk::<RECORD_HEADER>()?;
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let after = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let (body, rest) = rest.split_at_checked(len)?;
        let record = Body(body).record(head[0])?;
        self.rest = rest;
        Some(Stamped { at_us: self.clock_us.checked_add(after.into())?, record })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Stamped<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.read().ok_or(RecordError { record: self.record });
        if read.is_err() {
            self.rest = &[];
        }
        self.record += 1;
        Some(read)
    }
}

struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
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

    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.u8()?);
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn text(&mut self) -> Option<ShortText> {
        ShortText::new(self.bytes()?)
    }

    fn mch_id(&mut self) -> Option<MchId> {
        MchId::parse(self.bytes()?).ok()
    }

    fn record(mut self, kind: u8) -> Option<Record<'a>> {
        match kind {
            1 => self.begin().map(Record::Begin),
            2 => Some(Record::Attempt {
                sequence: self.u64()?,
                attempt: self.u8()?,
                channel: self.u16()?,
            }),
            3 => self.end().map(Record::End),
            4 => Some(Record::Cancel {
                sequence: self.u64()?,
                attempt: self.u8()?,
                cause: CancelCause::from_wire(self.u8()?)?,
            }),
            5 => self.refund().map(Record::Refund),
            6 => self.end().map(Record::RefundEnd),
            7 => Some(Record::Delivered { event_id: self.u64()?, taken: self.bool()? }),
            8 => Some(Record::Decided(Decision {
                sequence: self.u64()?,
                ordinal: self.u8()?,
                refund: self.bool()?,
                success: self.bool()?,
                operator: self.text()?,
                second: self.text()?,
                note: self.text()?,
            })),
            9 => Some(Record::Merchant { operator: self.text()?, merchant: self.merchant()? }),
            10 => Some(Record::Limits {
                operator: self.text()?,
                mch_id: self.mch_id()?,
                limits: self.limits()?,
                until_ms: self.u64()?,
            }),
            _ => None,
        }
    }

    fn begin(&mut self) -> Option<Begin<'a>> {
        Some(Begin {
            sequence: self.u64()?,
            channel: self.u16()?,
            amount: Amount::new(self.i64()?)?,
            currency: Currency::new(self.array()?)?,
            method: Method::from_wire(self.u8()?)?,
            scene: Scene::from_wire(self.u8()?)?,
            notify: self.bool()?,
            time_expire_ms: self.u64()?,
            fingerprint: self.array()?,
            digest: self.array()?,
            mch_id: self.mch_id()?,
            out_trade_no: OutTradeNo::parse(self.bytes()?).ok()?,
            content: self.0,
        })
    }

    fn end(&mut self) -> Option<End> {
        Some(End {
            sequence: self.u64()?,
            ordinal: self.u8()?,
            ending: Ending::from_wire(self.u8()?)?,
            goes_on: self.bool()?,
            reason: Reason::from_wire(self.u16()?)?,
            channel_ref: self.text()?,
        })
    }

    fn refund(&mut self) -> Option<RefundBegin> {
        Some(RefundBegin {
            sequence: self.u64()?,
            ordinal: self.u8()?,
            attempt: self.u8()?,
            amount: Amount::new(self.i64()?)?,
            out_refund_no: match self.bytes()? {
                [] => None,
                text => Some(OutRefundNo::parse(text).ok()?),
            },
        })
    }

    fn limits(&mut self) -> Option<Limits> {
        Some(Limits {
            pay_per_minute: self.u32()?,
            query_per_minute: self.u32()?,
            refund_per_minute: self.u32()?,
            burst: self.u32()?,
            daily_cap: self.i64()?,
            single_max: self.i64()?,
            second_signature_from: self.i64()?,
        })
    }

    fn merchant(&mut self) -> Option<Merchant> {
        let mch_id = self.mch_id()?;
        let status = match self.u8()? {
            1 => MerchantStatus::Active,
            2 => MerchantStatus::Limited,
            3 => MerchantStatus::Suspended,
            4 => MerchantStatus::Dormant,
            _ => return None,
        };
        let limits = self.limits()?;
        let keys = (0..self.u8()?).map(|_| self.key()).collect::<Option<_>>()?;
        let gateways = (0..self.u8()?).map(|_| self.text()).collect::<Option<_>>()?;
        let range =
            |body: &mut Self| Some(AddressRange { address: body.array()?, prefix_len: body.u8()? });
        let addresses = (0..self.u8()?).map(|_| range(self)).collect::<Option<_>>()?;
        Some(Merchant { mch_id, status, keys, gateways, addresses, limits })
    }

    fn key(&mut self) -> Option<MerchantKey> {
        let key_id = self.u32()?;
        let kind = match self.u8()? {
            1 => KeyKind::HmacSha256,
            2 => KeyKind::Ed25519,
            _ => return None,
        };
        Some(MerchantKey { key_id, kind, material: self.bytes()?.to_vec() })
    }
}

impl Stamped<'_> {
    /// One JSON object for `log dump` and time lines: what happened, never payer
    /// data, content or keys. All texts are plain ASCII by construction.
    pub fn to_json(&self, out: &mut String) {
        // Writing into a String cannot fail.
        let _ = self.write_json(out);
    }

    fn write_json(&self, out: &mut String) -> std::fmt::Result {
        write!(out, "{{\"at_us\":{}", self.at_us)?;
        match &self.record {
            Record::Begin(begin) => write!(
                out,
                ",\"kind\":\"begin\",\"sequence\":{},\"attempt\":1,\"channel\":{},\"mch_id\":\"{}\",\"out_trade_no\":\"{}\",\"charge_no\":\"{}\",\"amount\":{},\"currency\":\"{}\",\"method\":\"{}\",\"time_expire_ms\":{},\"notify\":{}",
                begin.sequence,
                begin.channel,
                begin.mch_id,
                Escaped(begin.out_trade_no.as_str()),
                protocol::channel::charge_number(&begin.digest, 1),
                begin.amount.minor(),
                begin.currency,
                begin.method.name(),
                begin.time_expire_ms,
                begin.notify
            )?,
            Record::Attempt { sequence, attempt, channel } => write!(
                out,
                ",\"kind\":\"attempt\",\"sequence\":{sequence},\"attempt\":{attempt},\"channel\":{channel}"
            )?,
            Record::End(end) => {
                write!(out, ",\"kind\":\"end\",\"attempt\":{}", end.ordinal)?;
                end.write_json(out)?;
                write!(out, ",\"goes_on\":{}", end.goes_on)?;
            }
            Record::Cancel { sequence, attempt, cause } => write!(
                out,
                ",\"kind\":\"cancel\",\"sequence\":{sequence},\"attempt\":{attempt},\"cause\":\"{}\"",
                cause.name()
            )?,
            Record::Refund(refund) => write!(
                out,
                ",\"kind\":\"refund\",\"sequence\":{},\"ordinal\":{},\"attempt\":{},\"amount\":{},\"out_refund_no\":\"{}\"",
                refund.sequence,
                refund.ordinal,
                refund.attempt,
                refund.amount.minor(),
                refund.out_refund_no.as_ref().map_or("", |no| no.as_str())
            )?,
            Record::RefundEnd(end) => {
                write!(out, ",\"kind\":\"refund_end\",\"ordinal\":{}", end.ordinal)?;
                end.write_json(out)?;
            }
            Record::Delivered { event_id, taken } => {
                write!(out, ",\"kind\":\"delivered\",\"event_id\":{event_id},\"taken\":{taken}")?
            }
            Record::Decided(decision) => write!(
                out,
                ",\"kind\":\"decided\",\"sequence\":{},\"ordinal\":{},\"refund\":{},\"success\":{},\"operator\":\"{}\",\"second\":\"{}\",\"note\":\"{}\"",
                decision.sequence,
                decision.ordinal,
                decision.refund,
                decision.success,
                Escaped(decision.operator.as_str()),
                Escaped(decision.second.as_str()),
                Escaped(decision.note.as_str())
            )?,
            Record::Merchant { operator, merchant } => write!(
                out,
                ",\"kind\":\"merchant\",\"operator\":\"{}\",\"mch_id\":\"{}\",\"status\":\"{:?}\",\"keys\":{},\"limits\":{}",
                Escaped(operator.as_str()),
                merchant.mch_id,
                merchant.status,
                merchant.keys.len(),
                LimitsJson(&merchant.limits)
            )?,
            Record::Limits { operator, mch_id, limits, until_ms } => write!(
                out,
                ",\"kind\":\"limits\",\"operator\":\"{}\",\"mch_id\":\"{mch_id}\",\"limits\":{},\"until_ms\":{until_ms}",
                Escaped(operator.as_str()),
                LimitsJson(limits)
            )?,
        }
        out.push('}');
        Ok(())
    }
}

impl End {
    fn write_json(&self, out: &mut String) -> std::fmt::Result {
        write!(
            out,
            ",\"sequence\":{},\"ending\":\"{}\",\"reason\":\"{}\",\"channel_ref\":\"{}\"",
            self.sequence,
            self.ending.name(),
            self.reason.name(),
            Escaped(self.channel_ref.as_str())
        )
    }
}

struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // ShortText is printable ASCII: only these two need an escape.
        self.0.chars().try_for_each(|c| match c {
            '"' | '\\' => write!(f, "\\{c}"),
            c => f.write_char(c),
        })
    }
}

struct LimitsJson<'a>(&'a Limits);

impl std::fmt::Display for LimitsJson<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limits = self.0;
        write!(
            f,
            "{{\"pay_per_minute\":{},\"query_per_minute\":{},\"refund_per_minute\":{},\"burst\":{},\"daily_cap\":{},\"single_max\":{},\"second_signature_from\":{}}}",
            limits.pay_per_minute,
            limits.query_per_minute,
            limits.refund_per_minute,
            limits.burst,
            limits.daily_cap,
            limits.single_max,
            limits.second_signature_from
        )
    }
}
