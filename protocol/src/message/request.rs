//! The signed requests of a gateway.

use super::transaction_or_none;
use super::{DecodeError, Tags, kind};
use super::{amount, currency, flag, free_text, mch_id, out_refund_no, out_trade_no};
use crate::code::{Method, Scene};
use crate::frame::{begin_frame, end_frame};
use crate::id::{MchId, OutRefundNo, OutTradeNo, TransactionId};
use crate::layout::{Cursor, Fixed, put_long, put_short};
use crate::money::{Amount, Currency};
use sha2::{Digest, Sha256};

/// What every signed request carries.
#[derive(Clone, Copy, Debug)]
pub struct Auth<'a> {
    /// Which of the merchant's keys signed; 0 when the deployment trusts the
    /// gateway's certificate and the request is unsigned.
    pub key_id: u32,
    /// When the request was signed, Unix milliseconds.
    pub timestamp_ms: u64,
    /// Chosen at random by the signer.
    pub nonce: u64,
    /// 32 bytes (HMAC-SHA256), 64 bytes (Ed25519) or none.
    pub signature: &'a [u8],
}

/// Charge a payer.
#[derive(Clone, Copy, Debug)]
pub struct Pay<'a> {
    /// The merchant.
    pub mch_id: MchId,
    /// The merchant's number: the idempotency key together with `mch_id`.
    pub out_trade_no: OutTradeNo,
    /// Amount.
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
    /// How the payer pays.
    pub method: Method,
    /// Where.
    pub scene: Scene,
    /// The payer as a token, never card data; at most 128 bytes.
    pub payer_token: &'a [u8],
    /// The paying device, at most 64 bytes; may be empty.
    pub device_id: &'a [u8],
    /// The payer's address, IPv4 mapped into IPv6; all zero when unknown.
    pub client_ip: [u8; 16],
    /// After this no new attempt starts, Unix milliseconds.
    pub time_expire_ms: u64,
    /// Where outcome events go (a subscription name), at most 64 bytes; empty: none wanted.
    pub notify: &'a [u8],
    /// How long the asker waits for an answer, milliseconds; 0: the server's bound.
    pub wait_ms: u32,
    /// At most 12 pairs.
    pub tags: Tags<'a>,
    /// Signature data.
    pub auth: Auth<'a>,
    /// Second signature for large amounts; `key_id` 0 when absent.
    pub second: Auth<'a>,
}

/// How a query, close or reverse names its payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderRef {
    /// By the merchant's number.
    OutTradeNo(OutTradeNo),
    /// By ours.
    TransactionId(TransactionId),
}

/// Body shared by query, close and reverse.
#[derive(Clone, Copy, Debug)]
pub struct OrderRequest<'a> {
    /// The merchant.
    pub mch_id: MchId,
    /// Which payment.
    pub order: OrderRef,
    /// Query only: ask the channel when the payment is in doubt, within its budget.
    pub refresh: bool,
    /// How long the asker waits, milliseconds; 0: the server's bound.
    pub wait_ms: u32,
    /// Signature data.
    pub auth: Auth<'a>,
}

/// Give back a part or all of a paid payment.
#[derive(Clone, Copy, Debug)]
pub struct Refund<'a> {
    /// The merchant.
    pub mch_id: MchId,
    /// Which payment.
    pub order: OrderRef,
    /// The merchant's number of the refund.
    pub out_refund_no: OutRefundNo,
    /// Amount to give back.
    pub amount: Amount,
    /// Must be the payment's.
    pub currency: Currency,
    /// Free text, at most 80 bytes.
    pub reason: &'a [u8],
    /// How long the asker waits, milliseconds; 0: the server's bound.
    pub wait_ms: u32,
    /// Signature data.
    pub auth: Auth<'a>,
}

/// State of a refund.
#[derive(Clone, Copy, Debug)]
pub struct QueryRefund<'a> {
    /// The merchant.
    pub mch_id: MchId,
    /// Which payment.
    pub order: OrderRef,
    /// Which refund of it.
    pub out_refund_no: OutRefundNo,
    /// Signature data.
    pub auth: Auth<'a>,
}

/// Bytes of the bodies' fixed parts.
const PAY_FIXED: usize = 64;
const ORDER_FIXED: usize = 40;
const REFUND_FIXED: usize = 48;
const QUERY_REFUND_FIXED: usize = 32;

/// Any request a gateway may send on a bidirectional stream, for dispatch.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// Liveness.
    Ping(super::Ping),
    /// Charge a payer.
    Pay(Pay<'a>),
    /// State of a payment.
    Query(OrderRequest<'a>),
    /// Cancel an unpaid payment.
    Close(OrderRequest<'a>),
    /// Undo a payment.
    Reverse(OrderRequest<'a>),
    /// Give money back.
    Refund(Refund<'a>),
    /// State of a refund.
    QueryRefund(QueryRefund<'a>),
    /// Ask for outcome events.
    Subscribe(super::Subscribe),
    /// An event was taken over.
    Ack(super::Ack),
}

impl<'a> Request<'a> {
    /// Decodes the body of a frame of `kind`.
    ///
    /// # Errors
    /// [`DecodeError`]; its [`reply`](DecodeError::reply) answers the request.
    pub fn decode(kind: u8, body: &'a [u8]) -> Result<Self, DecodeError> {
        Ok(match kind {
            kind::PAY => Self::Pay(Pay::decode(body)?),
            kind::QUERY => Self::Query(OrderRequest::decode(body)?),
            kind::REFUND => Self::Refund(Refund::decode(body)?),
            kind::QUERY_REFUND => Self::QueryRefund(QueryRefund::decode(body)?),
            kind::CLOSE => Self::Close(OrderRequest::decode(body)?),
            kind::REVERSE => Self::Reverse(OrderRequest::decode(body)?),
            kind::PING => Self::Ping(super::Ping::decode(body)?),
            kind::SUBSCRIBE => Self::Subscribe(super::Subscribe::decode(body)?),
            kind::ACK => Self::Ack(super::Ack::decode(body)?),
            _ => return Err(DecodeError::Kind),
        })
    }
}

impl Auth<'_> {
    /// No signature.
    pub const NONE: Self = Self { key_id: 0, timestamp_ms: 0, nonce: 0, signature: &[] };

    /// An unsigned request has key id 0 and no signature; a signed one has a
    /// signature of 32 or 64 bytes.
    fn check(&self, name: &'static str) -> Result<(), DecodeError> {
        match (self.key_id, self.signature.len()) {
            (0, 0) => Ok(()),
            (1.., 32 | 64) => Ok(()),
            _ => Err(DecodeError::Field(name)),
        }
    }
}

impl<'a> Pay<'a> {
    /// Decodes the body of a [`kind::PAY`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] with the first field that is not allowed.
    #[inline]
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut fixed, mut fields) = Cursor::split::<PAY_FIXED>(body)?;
        let raw_amount = fixed.i64()?;
        let time_expire_ms = fixed.u64()?;
        let timestamp_ms = fixed.u64()?;
        let nonce = fixed.u64()?;
        let client_ip = fixed.array()?;
        let key_id = fixed.u32()?;
        let wait_ms = fixed.u32()?;
        let raw_currency = fixed.array()?;
        let method = Method::from_wire(fixed.u8()?).ok_or(DecodeError::Field("method"))?;
        let scene = Scene::from_wire(fixed.u8()?).ok_or(DecodeError::Field("scene"))?;
        let count = fixed.u8()?;
        let pay = Self {
            amount: amount(raw_amount)?,
            currency: currency(raw_currency)?,
            method,
            scene,
            client_ip,
            time_expire_ms,
            wait_ms,
            mch_id: mch_id(fields.short()?)?,
            out_trade_no: out_trade_no(fields.short()?)?,
            payer_token: fields.short()?,
            device_id: fields.short()?,
            notify: fields.short()?,
            tags: Tags { count, encoded: fields.long()? },
            auth: Auth { key_id, timestamp_ms, nonce, signature: fields.short()? },
            second: second(fields.short()?)?,
        };
        pay.check()?;
        Ok(pay)
    }

    /// Checks what the types cannot hold: lengths, alphabets, order of tags,
    /// shape of the signatures. `decode` has done it; who builds a `Pay` does
    /// it once before encoding.
    ///
    /// # Errors
    /// [`DecodeError::Field`] with the first field that is not allowed.
    #[inline]
    pub fn check(&self) -> Result<(), DecodeError> {
        self.check_content()?;
        self.auth.check("signature")?;
        self.second.check("second_signature")?;
        // Two signatures by one key are one signature.
        if self.second.key_id != 0 && self.second.key_id == self.auth.key_id {
            return Err(DecodeError::Field("second_signature"));
        }
        Ok(())
    }

    /// [`check`](Self::check) without the signatures: for a signer.
    ///
    /// # Errors
    /// [`DecodeError::Field`] with the first field that is not allowed.
    pub fn check_content(&self) -> Result<(), DecodeError> {
        if !free_text(self.payer_token, 128) {
            return Err(DecodeError::Field("payer_token"));
        }
        if !free_text(self.device_id, 64) {
            return Err(DecodeError::Field("device_id"));
        }
        if !free_text(self.notify, 64) {
            return Err(DecodeError::Field("notify"));
        }
        self.tags.check()
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<PAY_FIXED>::new()
            .i64(self.amount.minor())
            .u64(self.time_expire_ms)
            .u64(self.auth.timestamp_ms)
            .u64(self.auth.nonce)
            .put(self.client_ip)
            .u32(self.auth.key_id)
            .u32(self.wait_ms)
            .put(self.currency.bytes())
            .u8(self.method.wire())
            .u8(self.scene.wire())
            .u8(self.tags.count);
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.mch_id.as_bytes());
        put_short(out, self.out_trade_no.as_bytes());
        put_short(out, self.payer_token);
        put_short(out, self.device_id);
        put_short(out, self.notify);
        put_long(out, self.tags.encoded);
        put_short(out, self.auth.signature);
        put_second(out, &self.second);
    }

    /// Appends the frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::PAY, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }

    /// SHA-256 of the payer token: enters the fingerprint in the token's place.
    pub fn payer_digest(&self) -> [u8; 32] {
        Sha256::digest(self.payer_token).into()
    }

    /// Fingerprint of the immutable content: two pays with one number and one
    /// fingerprint are the same payment. First 16 bytes of SHA-256 over the
    /// encoding in `docs/WIRE.md`; never over nonce, timestamp, signature,
    /// client address, device or wait.
    pub fn fingerprint(&self) -> [u8; 16] {
        self.fingerprint_with(&self.payer_digest())
    }

    /// [`fingerprint`](Self::fingerprint) for a caller that needs the payer's
    /// digest anyway and computes it once.
    pub fn fingerprint_with(&self, payer_digest: &[u8; 32]) -> [u8; 16] {
        // 53 fixed bytes, ids of at most 33 and a notify of at most 65 with
        // their lengths, and the number of tags.
        let mut head = Head::<{ 53 + 33 + 33 + 256 + 3 }>::default();
        head.put(&self.amount.minor().to_le_bytes());
        head.put(&self.time_expire_ms.to_le_bytes());
        head.put(payer_digest);
        head.put(&self.currency.bytes());
        head.put(&[self.method.wire(), self.scene.wire()]);
        for field in [self.mch_id.as_bytes(), self.out_trade_no.as_bytes(), self.notify] {
            head.put(&[field.len().min(255) as u8]);
            head.put(&field[..field.len().min(255)]);
        }
        head.put(&[self.tags.count]);
        head.put(&(self.tags.encoded.len() as u16).to_le_bytes());
        let mut hash = Sha256::new();
        hash.update(head.bytes());
        hash.update(self.tags.encoded);
        first_half(&hash.finalize().into())
    }
}

/// First 16 of 32 bytes.
#[inline]
pub(crate) fn first_half(digest: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|at| digest[at])
}

/// A short run of bytes on the stack, so that the hash sees one update.
struct Head<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Head<N> {
    #[inline(always)]
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Head<N> {
    /// The callers' fields are bounded so that their sum is at most `N`.
    #[inline(always)]
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The second signature: empty, or 20 fixed bytes and the signature.
fn second(raw: &[u8]) -> Result<Auth<'_>, DecodeError> {
    if raw.is_empty() {
        return Ok(Auth::NONE);
    }
    let refused = |_| DecodeError::Field("second_signature");
    let (mut fixed, signature) = Cursor::split::<20>(raw).map_err(refused)?;
    let auth = Auth {
        timestamp_ms: fixed.u64()?,
        nonce: fixed.u64()?,
        key_id: fixed.u32()?,
        signature: signature.rest(),
    };
    // Absent has one form only.
    if auth.key_id == 0 { Err(DecodeError::Field("second_signature")) } else { Ok(auth) }
}

fn put_second(out: &mut Vec<u8>, second: &Auth<'_>) {
    if second.key_id == 0 {
        out.push(0);
        return;
    }
    let signature = &second.signature[..second.signature.len().min(64)];
    out.push(20 + signature.len() as u8);
    let fixed = Fixed::<20>::new().u64(second.timestamp_ms).u64(second.nonce).u32(second.key_id);
    out.extend_from_slice(&fixed.bytes());
    out.extend_from_slice(signature);
}

impl OrderRef {
    /// Exactly one of the two names must be there.
    #[inline]
    fn from_wire(transaction_id: u64, number: &[u8]) -> Result<Self, DecodeError> {
        match (transaction_or_none(transaction_id)?, number) {
            (Some(id), []) => Ok(Self::TransactionId(id)),
            (Some(_), _) => Err(DecodeError::Field("transaction_id")),
            (None, number) => out_trade_no(number).map(Self::OutTradeNo),
        }
    }

    fn transaction_wire(&self) -> u64 {
        match self {
            Self::OutTradeNo(_) => 0,
            Self::TransactionId(id) => id.as_u64(),
        }
    }

    fn number_wire(&self) -> &[u8] {
        match self {
            Self::OutTradeNo(number) => number.as_bytes(),
            Self::TransactionId(_) => &[],
        }
    }
}

impl<'a> OrderRequest<'a> {
    /// Decodes the body of a query, close or reverse.
    ///
    /// # Errors
    /// [`DecodeError`] with the first field that is not allowed.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut fixed, mut fields) = Cursor::split::<ORDER_FIXED>(body)?;
        let (timestamp_ms, nonce, transaction_id) = (fixed.u64()?, fixed.u64()?, fixed.u64()?);
        let (key_id, wait_ms) = (fixed.u32()?, fixed.u32()?);
        let request = Self {
            refresh: flag(fixed.u8()?, "refresh")?,
            wait_ms,
            mch_id: mch_id(fields.short()?)?,
            order: OrderRef::from_wire(transaction_id, fields.short()?)?,
            auth: Auth { key_id, timestamp_ms, nonce, signature: fields.short()? },
        };
        request.auth.check("signature")?;
        Ok(request)
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<ORDER_FIXED>::new()
            .u64(self.auth.timestamp_ms)
            .u64(self.auth.nonce)
            .u64(self.order.transaction_wire())
            .u32(self.auth.key_id)
            .u32(self.wait_ms)
            .u8(u8::from(self.refresh));
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.mch_id.as_bytes());
        put_short(out, self.order.number_wire());
        put_short(out, self.auth.signature);
    }

    /// Appends the frame; `kind` is [`kind::QUERY`], [`kind::CLOSE`] or [`kind::REVERSE`].
    pub fn encode_frame(&self, kind: u8, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl<'a> Refund<'a> {
    /// Decodes the body of a [`kind::REFUND`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] with the first field that is not allowed.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut fixed, mut fields) = Cursor::split::<REFUND_FIXED>(body)?;
        let raw_amount = fixed.i64()?;
        let (timestamp_ms, nonce, transaction_id) = (fixed.u64()?, fixed.u64()?, fixed.u64()?);
        let (key_id, wait_ms) = (fixed.u32()?, fixed.u32()?);
        let refund = Self {
            amount: amount(raw_amount)?,
            currency: currency(fixed.array()?)?,
            wait_ms,
            mch_id: mch_id(fields.short()?)?,
            order: OrderRef::from_wire(transaction_id, fields.short()?)?,
            out_refund_no: out_refund_no(fields.short()?)?,
            reason: fields.short()?,
            auth: Auth { key_id, timestamp_ms, nonce, signature: fields.short()? },
        };
        refund.check()?;
        Ok(refund)
    }

    /// Checks what the types cannot hold, see [`Pay::check`].
    ///
    /// # Errors
    /// [`DecodeError::Field`] with the first field that is not allowed.
    pub fn check(&self) -> Result<(), DecodeError> {
        if !free_text(self.reason, 80) {
            return Err(DecodeError::Field("reason"));
        }
        self.auth.check("signature")
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<REFUND_FIXED>::new()
            .i64(self.amount.minor())
            .u64(self.auth.timestamp_ms)
            .u64(self.auth.nonce)
            .u64(self.order.transaction_wire())
            .u32(self.auth.key_id)
            .u32(self.wait_ms)
            .put(self.currency.bytes());
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.mch_id.as_bytes());
        put_short(out, self.order.number_wire());
        put_short(out, self.out_refund_no.as_bytes());
        put_short(out, self.reason);
        put_short(out, self.auth.signature);
    }

    /// Appends the frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::REFUND, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}

impl<'a> QueryRefund<'a> {
    /// Decodes the body of a [`kind::QUERY_REFUND`] frame.
    ///
    /// # Errors
    /// [`DecodeError`] with the first field that is not allowed.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut fixed, mut fields) = Cursor::split::<QUERY_REFUND_FIXED>(body)?;
        let (timestamp_ms, nonce, transaction_id) = (fixed.u64()?, fixed.u64()?, fixed.u64()?);
        let key_id = fixed.u32()?;
        let request = Self {
            mch_id: mch_id(fields.short()?)?,
            order: OrderRef::from_wire(transaction_id, fields.short()?)?,
            out_refund_no: out_refund_no(fields.short()?)?,
            auth: Auth { key_id, timestamp_ms, nonce, signature: fields.short()? },
        };
        request.auth.check("signature")?;
        Ok(request)
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let fixed = Fixed::<QUERY_REFUND_FIXED>::new()
            .u64(self.auth.timestamp_ms)
            .u64(self.auth.nonce)
            .u64(self.order.transaction_wire())
            .u32(self.auth.key_id);
        out.extend_from_slice(&fixed.bytes());
        put_short(out, self.mch_id.as_bytes());
        put_short(out, self.order.number_wire());
        put_short(out, self.out_refund_no.as_bytes());
        put_short(out, self.auth.signature);
    }

    /// Appends the frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out, kind::QUERY_REFUND, 0, correlation);
        self.encode(out);
        end_frame(out, start);
    }
}
