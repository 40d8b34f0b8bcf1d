//! Reading and writing of little-endian fields: the one place where bytes of a
//! body become numbers and back.
//!
//! Knows no message. Tested through every message's round trips and the fuzz
//! run over all decoders.

use crate::message::DecodeError;

/// A reading position in a body. Every read is length-checked.
pub(crate) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Splits `body` into its fixed part of `N` bytes and the variable fields.
    #[inline(always)]
    pub(crate) fn split<const N: usize>(body: &'a [u8]) -> Result<(Self, Self), DecodeError> {
        let (fixed, rest) = body.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        Ok((Self(fixed), Self(rest)))
    }

    /// The next `N` bytes.
    #[inline(always)]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*bytes)
    }

    #[inline(always)]
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline(always)]
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline(always)]
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline(always)]
    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline(always)]
    pub(crate) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_le_bytes)
    }

    /// A field with a length prefix of one byte.
    #[inline(always)]
    pub(crate) fn short(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u8()?;
        self.take(usize::from(len))
    }

    /// A field with a length prefix of two bytes.
    #[inline(always)]
    pub(crate) fn long(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// What is left.
    #[inline(always)]
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    #[inline(always)]
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// The fixed part of a body under construction, on the stack, so that it enters
/// the output with one copy. Bytes that are not written stay zero (reserved).
pub(crate) struct Fixed<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Fixed<N> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    /// Appends `bytes`. The callers' layouts are constants: running past `N`
    /// is a defect of the layout and is found by any test of that message.
    #[inline(always)]
    pub(crate) fn put<const M: usize>(mut self, bytes: [u8; M]) -> Self {
        self.bytes[self.at..self.at + M].copy_from_slice(&bytes);
        self.at += M;
        self
    }

    #[inline(always)]
    pub(crate) fn u8(self, value: u8) -> Self {
        self.put([value])
    }

    #[inline(always)]
    pub(crate) fn u16(self, value: u16) -> Self {
        self.put(value.to_le_bytes())
    }

    #[inline(always)]
    pub(crate) fn u32(self, value: u32) -> Self {
        self.put(value.to_le_bytes())
    }

    #[inline(always)]
    pub(crate) fn u64(self, value: u64) -> Self {
        self.put(value.to_le_bytes())
    }

    #[inline(always)]
    pub(crate) fn i64(self, value: i64) -> Self {
        self.put(value.to_le_bytes())
    }

    /// The bytes, reserved ones included.
    #[inline(always)]
    pub(crate) fn bytes(self) -> [u8; N] {
        self.bytes
    }
}

/// Appends a field with a length prefix of one byte. Longer fields are refused
/// by the messages' `check`; a caller that skipped it gets the field cut, so
/// that the frame stays well formed and the receiver judges the content.
#[inline(always)]
pub(crate) fn put_short(out: &mut Vec<u8>, field: &[u8]) {
    debug_assert!(field.len() <= 255, "field above its limit: call check() first");
    let len = field.len().min(255);
    out.push(len as u8);
    out.extend_from_slice(&field[..len]);
}

/// Appends a field with a length prefix of two bytes; cut like [`put_short`].
#[inline(always)]
pub(crate) fn put_long(out: &mut Vec<u8>, field: &[u8]) {
    debug_assert!(field.len() <= 65_535, "field above its limit: call check() first");
    let len = field.len().min(65_535);
    out.extend_from_slice(&(len as u16).to_le_bytes());
    out.extend_from_slice(&field[..len]);
}
