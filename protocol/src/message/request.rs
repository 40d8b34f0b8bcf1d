//! Bodies and canonical forms of the gateway's requests.
//!
//! Decoding borrows from the frame and allocates nothing; encoding appends to
//! the caller's buffer.

use sha2::{Digest, Sha256};

use super::{Auth, DecodeError, OrderRef, OrderRequest, Pay, QueryRefund, Refund, Tags, kind};
use crate::code::{Method, Scene};
use crate::decimal::{Decimal, Kept};
use crate::frame;
use crate::id::{OutTradeNo, ShortText, TransactionId};
use crate::wire::{
    Reader, amount, currency, fields, mch_id, put_short, put_text, refund_no, wire_bool, wire_value,
};

impl<'a> Auth<'a> {
    /// The unsigned request.
    pub const NONE: Auth<'static> = Auth { key_id: 0, timestamp_ms: 0, nonce: 0, signature: &[] };

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let key_id = reader.u32("key_id")?;
        let timestamp_ms = reader.u64("timestamp")?;
        let nonce = reader.u64("nonce")?;
        let signature = reader.text(64, "signature")?;
        if !matches!(signature.len(), 0 | 32 | 64) {
            return Err(DecodeError::invalid("signature"));
        }
        Ok(Self { key_id, timestamp_ms, nonce, signature })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        fields::<20>(out)
            .put(self.key_id.to_le_bytes())
            .put(self.timestamp_ms.to_le_bytes())
            .put(self.nonce.to_le_bytes())
            .end();
        put_text(out, self.signature);
    }
}

impl OrderRef {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let transaction = reader.u64("transaction_id")?;
        let text = reader.text(32, "out_trade_no")?;
        match (transaction, text) {
            (0, text) => OutTradeNo::parse(text)
                .map(Self::OutTradeNo)
                .map_err(|_| DecodeError::invalid("out_trade_no")),
            (raw, []) => TransactionId::from_u64(raw)
                .map(Self::TransactionId)
                .ok_or(DecodeError::invalid("transaction_id")),
            _ => Err(DecodeError::invalid("out_trade_no")),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::OutTradeNo(no) => {
                out.extend_from_slice(&[0; 8]);
                put_short(out, no.short());
            }
            Self::TransactionId(id) => {
                out.extend_from_slice(&id.as_u64().to_le_bytes());
                out.push(0);
            }
        }
    }
}

/// The digits of the times in the form before: the next one's are often the same.
#[derive(Clone, Copy, Default)]
pub struct TimeDigits {
    expire: Kept,
    timestamp: Kept,
}

/// Most tags of a payment.
pub const TAGS_MAX: u8 = 12;

impl<'a> Tags<'a> {
    /// Reads and checks `count` pairs: names of 1-32 bytes in strictly rising
    /// order, values of at most 128, all printable ASCII without `&` and `=`.
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = reader.u8("tags")?;
        if count > TAGS_MAX {
            return Err(DecodeError::invalid("tags"));
        }
        let all = reader.remaining();
        let mut last: &[u8] = &[];
        for _ in 0..count {
            let name = reader.text(32, "tags")?;
            let value = reader.text(128, "tags")?;
            if name <= last || !signable(name) || !signable(value) {
                return Err(DecodeError::invalid("tags"));
            }
            last = name;
        }
        let encoded = &all[..all.len() - reader.remaining().len()];
        Ok(Self { count, encoded })
    }

    /// Encodes pairs for [`Pay::tags`]; `None` when there are too many, they
    /// are not in rising order of name, or a text is not allowed.
    pub fn build(pairs: &[(&str, &str)], buffer: &'a mut Vec<u8>) -> Option<Self> {
        let count = u8::try_from(pairs.len()).ok()?;
        buffer.clear();
        buffer.push(count);
        for (name, value) in pairs {
            if name.len() > 32 || value.len() > 128 {
                return None;
            }
            put_text(buffer, name.as_bytes());
            put_text(buffer, value.as_bytes());
        }
        Self::decode(&mut Reader::new(buffer)).ok()
    }

    /// The pairs, in rising order of name.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut reader = Reader::new(self.encoded);
        std::iter::from_fn(move || {
            Some((reader.text(32, "tags").ok()?, reader.text(128, "tags").ok()?))
        })
    }
}

/// Texts that may stand in a canonical form: printable ASCII without the
/// separators.
fn signable(text: &[u8]) -> bool {
    text.iter().all(|b| (0x20..0x7f).contains(b) && *b != b'&' && *b != b'=')
}

fn signable_text<'a>(
    reader: &mut Reader<'a>,
    max: usize,
    field: &'static str,
) -> Result<&'a [u8], DecodeError> {
    let text = reader.text(max, field)?;
    if signable(text) { Ok(text) } else { Err(DecodeError::invalid(field)) }
}

impl<'a> Pay<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] with the code to answer and the field at fault.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            amount: amount(reader)?,
            time_expire_ms: reader.u64("time_expire")?,
            wait_ms: reader.u32("wait")?,
            currency: currency(reader)?,
            method: wire_value!(reader, Method, u8, "method")?,
            scene: wire_value!(reader, Scene, u8, "scene")?,
            client_ip: reader.array("client_ip")?,
            mch_id: mch_id(reader)?,
            out_trade_no: OutTradeNo::parse(reader.text(32, "out_trade_no")?)
                .map_err(|_| DecodeError::invalid("out_trade_no"))?,
            payer_token: signable_text(reader, 128, "payer_token")?,
            device_id: signable_text(reader, 64, "device_id")?,
            notify: signable_text(reader, 64, "notify")?,
            tags: Tags::decode(reader)?,
            auth: Auth::decode(reader)?,
            second: Auth::decode(reader)?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        fields::<41>(out)
            .put(self.amount.minor().to_le_bytes())
            .put(self.time_expire_ms.to_le_bytes())
            .put(self.wait_ms.to_le_bytes())
            .put(self.currency.bytes())
            .put([self.method.wire(), self.scene.wire()])
            .put(self.client_ip)
            .end();
        put_short(out, self.mch_id.short());
        put_short(out, self.out_trade_no.short());
        put_text(out, self.payer_token);
        put_text(out, self.device_id);
        put_text(out, self.notify);
        out.push(self.tags.count);
        out.extend_from_slice(self.tags.encoded);
        self.auth.encode(out);
        self.second.encode(out);
    }

    /// Appends the whole frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, kind::PAY, correlation);
        self.encode(out);
        frame::end(out, start);
    }

    /// Appends the canonical form that `auth` signs; `second` signs the same.
    pub fn canonical(&self, out: &mut Vec<u8>) {
        self.canonical_after(&mut TimeDigits::default(), out);
    }

    /// [`Self::canonical`] with the times of the form before.
    #[inline]
    pub fn canonical_after(&self, times: &mut TimeDigits, out: &mut Vec<u8>) {
        // Before the form, where each would wait for the length of the one before.
        let amount = Decimal::new(self.amount.minor().unsigned_abs());
        let key_id = Decimal::new(self.auth.key_id.into());
        let nonce = Decimal::new(self.auth.nonce);
        let time_expire = times.expire.of(self.time_expire_ms);
        let timestamp = times.timestamp.of(self.auth.timestamp_ms);
        let mut form = Form::new(out);
        form.number(b"amount=", amount);
        if self.client_ip != [0; 16] {
            form.hex(b"&client_ip=", &self.client_ip);
        }
        form.word(b"&currency=", self.currency.bytes());
        form.text(b"&device_id=", self.device_id);
        form.number(b"&key_id=", key_id);
        form.short(b"&mch_id=", self.mch_id.short());
        form.text(b"&method=", self.method.name().as_bytes());
        form.number(b"&nonce=", nonce);
        form.text(b"&notify=", self.notify);
        form.word(b"&op=", *b"pay");
        form.short(b"&out_trade_no=", self.out_trade_no.short());
        form.text(b"&payer_token=", self.payer_token);
        form.text(b"&scene=", self.scene.name().as_bytes());
        for (name, value) in self.tags.pairs() {
            form.tag(name, value);
        }
        form.number(b"&time_expire=", time_expire);
        form.number(b"&timestamp=", timestamp);
    }

    /// Fingerprint of the immutable content: first 16 bytes of SHA-256 over its
    /// encoding in a fixed order. Never covers nonce, timestamp, signature,
    /// address or device.
    pub fn fingerprint(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        let mut fixed = [0; 21];
        fixed[..8].copy_from_slice(&self.amount.minor().to_le_bytes());
        fixed[8..16].copy_from_slice(&self.time_expire_ms.to_le_bytes());
        fixed[16..19].copy_from_slice(&self.currency.bytes());
        fixed[19] = self.method.wire();
        fixed[20] = self.scene.wire();
        hash.update(fixed);
        for field in
            [self.mch_id.as_bytes(), self.out_trade_no.as_bytes(), self.payer_token, self.notify]
        {
            hash.update([field.len() as u8]);
            hash.update(field);
        }
        hash.update([self.tags.count]);
        hash.update(self.tags.encoded);
        first_half(hash)
    }
}

fn first_half(hash: Sha256) -> [u8; 16] {
    let digest = hash.finalize();
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

/// Writes `name=value` pairs joined by `&`; empty values are left out. Callers
/// name the fields in dictionary order, each with its separators: the names are
/// of constant size then, and no form begins with a field that may be left out.
struct Form<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Form<'a> {
    #[inline]
    fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// A value of constant size.
    #[inline]
    fn word<const N: usize, const M: usize>(&mut self, name: &[u8; N], value: [u8; M]) {
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(&value);
    }

    /// An identifier, which is never empty.
    #[inline]
    fn short<const N: usize>(&mut self, name: &[u8; N], value: &ShortText) {
        self.out.extend_from_slice(name);
        value.append_to(self.out);
    }

    #[inline]
    fn text<const N: usize>(&mut self, name: &[u8; N], value: &[u8]) {
        if !value.is_empty() {
            self.out.extend_from_slice(name);
            self.out.extend_from_slice(value);
        }
    }

    fn tag(&mut self, name: &[u8], value: &[u8]) {
        self.out.extend_from_slice(b"&tag.");
        self.out.extend_from_slice(name);
        self.out.push(b'=');
        self.out.extend_from_slice(value);
    }

    #[inline]
    fn number<const N: usize>(&mut self, name: &[u8; N], value: Decimal) {
        self.out.extend_from_slice(name);
        value.append_to(self.out);
    }

    fn hex<const N: usize>(&mut self, name: &[u8; N], value: &[u8]) {
        self.out.extend_from_slice(name);
        for byte in value {
            self.out.push(HEX[usize::from(byte >> 4)]);
            self.out.push(HEX[usize::from(byte & 15)]);
        }
    }

    fn order(&mut self, order: &OrderRef) {
        if let OrderRef::OutTradeNo(no) = order {
            self.short(b"&out_trade_no=", no.short());
        }
    }

    fn transaction(&mut self, order: &OrderRef) {
        if let OrderRef::TransactionId(id) = order {
            self.number(b"&transaction_id=", Decimal::new(id.as_u64()));
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

impl<'a> OrderRequest<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] with the code to answer and the field at fault.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            wait_ms: reader.u32("wait")?,
            refresh: wire_bool(reader, "refresh")?,
            order: OrderRef::decode(reader)?,
            mch_id: mch_id(reader)?,
            auth: Auth::decode(reader)?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.wait_ms.to_le_bytes());
        out.push(self.refresh.into());
        self.order.encode(out);
        put_short(out, self.mch_id.short());
        self.auth.encode(out);
    }

    /// Appends the whole frame; `kind` is QUERY, CLOSE or REVERSE.
    pub fn encode_frame(&self, kind: u8, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, kind, correlation);
        self.encode(out);
        frame::end(out, start);
    }

    /// Appends the canonical form; `kind` is QUERY, CLOSE or REVERSE.
    pub fn canonical(&self, kind: u8, out: &mut Vec<u8>) {
        let mut form = Form::new(out);
        form.number(b"key_id=", Decimal::new(self.auth.key_id.into()));
        form.short(b"&mch_id=", self.mch_id.short());
        form.number(b"&nonce=", Decimal::new(self.auth.nonce));
        let op: &[u8] = match kind {
            kind::CLOSE => b"close",
            kind::REVERSE => b"reverse",
            _ => b"query",
        };
        form.text(b"&op=", op);
        form.order(&self.order);
        if self.refresh {
            form.word(b"&refresh=", *b"1");
        }
        form.number(b"&timestamp=", Decimal::new(self.auth.timestamp_ms));
        form.transaction(&self.order);
    }
}

impl<'a> Refund<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] with the code to answer and the field at fault.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            amount: amount(reader)?,
            wait_ms: reader.u32("wait")?,
            currency: currency(reader)?,
            order: OrderRef::decode(reader)?,
            mch_id: mch_id(reader)?,
            out_refund_no: refund_no(reader)?,
            reason: signable_text(reader, 80, "reason")?,
            auth: Auth::decode(reader)?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        fields::<15>(out)
            .put(self.amount.minor().to_le_bytes())
            .put(self.wait_ms.to_le_bytes())
            .put(self.currency.bytes())
            .end();
        self.order.encode(out);
        put_short(out, self.mch_id.short());
        put_short(out, self.out_refund_no.short());
        put_text(out, self.reason);
        self.auth.encode(out);
    }

    /// Appends the whole frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, kind::REFUND, correlation);
        self.encode(out);
        frame::end(out, start);
    }

    /// Appends the canonical form.
    pub fn canonical(&self, out: &mut Vec<u8>) {
        let mut form = Form::new(out);
        form.number(b"amount=", Decimal::new(self.amount.minor().unsigned_abs()));
        form.word(b"&currency=", self.currency.bytes());
        form.number(b"&key_id=", Decimal::new(self.auth.key_id.into()));
        form.short(b"&mch_id=", self.mch_id.short());
        form.number(b"&nonce=", Decimal::new(self.auth.nonce));
        form.word(b"&op=", *b"refund");
        form.short(b"&out_refund_no=", self.out_refund_no.short());
        form.order(&self.order);
        form.text(b"&reason=", self.reason);
        form.number(b"&timestamp=", Decimal::new(self.auth.timestamp_ms));
        form.transaction(&self.order);
    }
}

impl<'a> QueryRefund<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] with the code to answer and the field at fault.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        Ok(Self {
            order: OrderRef::decode(reader)?,
            mch_id: mch_id(reader)?,
            out_refund_no: refund_no(reader)?,
            auth: Auth::decode(reader)?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.order.encode(out);
        put_short(out, self.mch_id.short());
        put_short(out, self.out_refund_no.short());
        self.auth.encode(out);
    }

    /// Appends the whole frame.
    pub fn encode_frame(&self, correlation: u64, out: &mut Vec<u8>) {
        let start = frame::begin(out, kind::QUERY_REFUND, correlation);
        self.encode(out);
        frame::end(out, start);
    }

    /// Appends the canonical form.
    pub fn canonical(&self, out: &mut Vec<u8>) {
        let mut form = Form::new(out);
        form.number(b"key_id=", Decimal::new(self.auth.key_id.into()));
        form.short(b"&mch_id=", self.mch_id.short());
        form.number(b"&nonce=", Decimal::new(self.auth.nonce));
        form.word(b"&op=", *b"query_refund");
        form.short(b"&out_refund_no=", self.out_refund_no.short());
        form.order(&self.order);
        form.number(b"&timestamp=", Decimal::new(self.auth.timestamp_ms));
        form.transaction(&self.order);
    }
}
