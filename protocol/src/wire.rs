//! Readers and writers of bodies: little-endian integers and length-prefixed
//! fields over borrowed bytes. Never panics, never allocates while reading.

use crate::code::Code;
use crate::id::{MchId, OutRefundNo, ShortText};
use crate::money::{Amount, Currency};

/// Why a body was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeError {
    code: Code,
    field: &'static str,
}

impl DecodeError {
    pub(crate) const fn new(code: Code, field: &'static str) -> Self {
        Self { code, field }
    }

    /// A value outside its alphabet, table or range.
    pub(crate) const fn invalid(field: &'static str) -> Self {
        Self::new(Code::InvalidField, field)
    }

    /// The code to answer with.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The field at fault.
    pub fn field(&self) -> &'static str {
        self.field
    }
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.code.name(), self.field)
    }
}

impl std::error::Error for DecodeError {}

/// Reads a body front to back.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// What has not been read yet.
    #[inline]
    pub(crate) fn remaining(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub(crate) fn bytes(
        &mut self,
        len: usize,
        field: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or(DecodeError::new(Code::MalformedBody, field))?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::new(Code::MalformedBody, field))?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    #[inline]
    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_le_bytes)
    }

    /// A field with a one-byte length of at most `max`.
    #[inline]
    pub(crate) fn text(
        &mut self,
        max: usize,
        field: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let len = usize::from(self.u8(field)?);
        if len > max {
            return Err(DecodeError::invalid(field));
        }
        self.bytes(len, field)
    }
}

/// Longest text that its one length byte can tell. Every field's own limit is
/// lower.
const TEXT_MAX: usize = u8::MAX as usize;

/// Appends a field with a one-byte length. A text that no length byte can tell
/// is cut to [`TEXT_MAX`]: above the field's limit still, so every reader refuses
/// it by name, and the fields behind it stay where they belong.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    let (text, len) = match u8::try_from(text.len()) {
        Ok(len) => (text, len),
        Err(_) => (&text[..TEXT_MAX], u8::MAX),
    };
    out.push(len);
    out.extend_from_slice(text);
}

/// Appends a field with a one-byte length whose text is short by its type.
#[inline]
pub(crate) fn put_short(out: &mut Vec<u8>, text: &ShortText) {
    out.push(text.len() as u8);
    text.append_to(out);
}

/// The fields of known size at the head of a body: room is asked for once, and
/// each field is written where it belongs.
pub(crate) struct Fields<'a> {
    rest: &'a mut [u8],
}

/// Appends `N` bytes of fields to `out`.
#[inline(always)]
pub(crate) fn fields<const N: usize>(out: &mut Vec<u8>) -> Fields<'_> {
    out.extend_from_slice(&[0; N]);
    Fields { rest: out.last_chunk_mut::<N>().map_or(&mut [], |fields| fields) }
}

impl Fields<'_> {
    // Always inlined: only where the place is known is a field one store.
    #[inline(always)]
    pub(crate) fn put<const M: usize>(self, field: [u8; M]) -> Self {
        match self.rest.split_first_chunk_mut::<M>() {
            Some((place, rest)) => {
                *place = field;
                Self { rest }
            }
            None => unreachable!("the callers count their fields"),
        }
    }

    #[inline(always)]
    pub(crate) fn end(self) {
        debug_assert!(self.rest.is_empty(), "the callers count their fields");
    }
}

pub(crate) fn mch_id(reader: &mut Reader<'_>) -> Result<MchId, DecodeError> {
    MchId::parse(reader.text(32, "mch_id")?).map_err(|_| DecodeError::invalid("mch_id"))
}

pub(crate) fn amount(reader: &mut Reader<'_>) -> Result<Amount, DecodeError> {
    Amount::new(reader.i64("amount")?).ok_or(DecodeError::new(Code::InvalidAmount, "amount"))
}

pub(crate) fn currency(reader: &mut Reader<'_>) -> Result<Currency, DecodeError> {
    Currency::new(reader.array("currency")?).ok_or(DecodeError::invalid("currency"))
}

/// Zero bytes stand for no currency.
pub(crate) fn optional_currency(reader: &mut Reader<'_>) -> Result<Option<Currency>, DecodeError> {
    match reader.array("currency")? {
        [0, 0, 0] => Ok(None),
        code => Currency::new(code).map(Some).ok_or(DecodeError::invalid("currency")),
    }
}

pub(crate) fn short_text(
    reader: &mut Reader<'_>,
    field: &'static str,
) -> Result<ShortText, DecodeError> {
    ShortText::new(reader.text(32, field)?).ok_or(DecodeError::invalid(field))
}

pub(crate) fn wire_bool(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, DecodeError> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::invalid(field)),
    }
}

pub(crate) fn refund_no(reader: &mut Reader<'_>) -> Result<OutRefundNo, DecodeError> {
    OutRefundNo::parse(reader.text(32, "out_refund_no")?)
        .map_err(|_| DecodeError::invalid("out_refund_no"))
}

/// Reads an integer and looks it up in its table.
macro_rules! wire_value {
    ($reader:expr, $type:ty, $read:ident, $field:literal) => {
        <$type>::from_wire($reader.$read($field)?).ok_or(DecodeError::invalid($field))
    };
}
pub(crate) use wire_value;
