//! Identifiers, parsed once at the edge and trusted afterwards.
//!
//! Knows no message and no table of merchants. Tested below and through every
//! message that carries an id.

/// Why an identifier was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdError {
    /// Empty, or longer than its limit.
    Length,
    /// A byte outside the identifier's alphabet, at this offset.
    Alphabet(usize),
}

/// Up to 32 bytes of ASCII, kept inline so that records and requests need no
/// allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShortText {
    len: u8,
    bytes: [u8; 32],
}

impl ShortText {
    /// Longest text in bytes.
    pub const MAX: usize = 32;

    /// The empty text.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; 32] };

    /// Copies `text`; `None` when it is longer than 32 bytes or not printable ASCII.
    #[inline]
    pub fn new(text: &[u8]) -> Option<Self> {
        let copy = (text.len() <= Self::MAX).then(|| Self::copied(text))?;
        (copy.count(|byte| byte.wrapping_sub(0x20) < 0x5f) == text.len()).then_some(copy)
    }

    /// Copies a text of at most 32 bytes that its caller judges. Pieces of
    /// constant size that overlap: no call to copy a handful of bytes.
    #[inline]
    fn copied(text: &[u8]) -> Self {
        let (mut bytes, len) = ([0; Self::MAX], text.len());
        if let (Some(head), Some(tail)) = (text.first_chunk::<16>(), text.last_chunk::<16>()) {
            bytes[..16].copy_from_slice(head);
            bytes[len - 16..len].copy_from_slice(tail);
        } else if let (Some(head), Some(tail)) = (text.first_chunk::<4>(), text.last_chunk::<4>()) {
            let (second, third) = (4.min(len - 4), 8.min(len - 4));
            bytes[..4].copy_from_slice(head);
            bytes[second..second + 4].copy_from_slice(&text[second..second + 4]);
            bytes[third..third + 4].copy_from_slice(&text[third..third + 4]);
            bytes[len - 4..len].copy_from_slice(tail);
        } else {
            bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        }
        Self { len: len as u8, bytes }
    }

    /// How many of the 32 bytes are allowed, to be compared with the length: the
    /// zeros behind the text never are. Without a branch, so that the compiler
    /// judges many bytes at once.
    #[inline]
    fn count(&self, allowed: impl Fn(u8) -> bool) -> usize {
        self.bytes.iter().map(|&byte| u8::from(allowed(byte))).sum::<u8>().into()
    }

    /// Appends the text to `out`: 32 bytes of known size first, then cut.
    #[inline]
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        let end = out.len() + usize::from(self.len);
        out.extend_from_slice(&self.bytes);
        out.truncate(end);
    }

    /// The bytes of the text.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Only printable ASCII gets in through `new`.
        std::str::from_utf8(self.as_bytes()).unwrap_or("")
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Default for ShortText {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl std::fmt::Debug for ShortText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl std::fmt::Display for ShortText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[inline]
fn alphanumeric(byte: u8) -> bool {
    (byte.wrapping_sub(b'0') < 10) | ((byte | 0x20).wrapping_sub(b'a') < 26)
}

#[inline]
fn merchant(byte: u8) -> bool {
    alphanumeric(byte) | (byte == b'_') | (byte == b'-')
}

#[inline]
fn number(byte: u8) -> bool {
    merchant(byte) | (byte == b'|') | (byte == b'*')
}

#[inline]
fn checked(text: &[u8], allowed: impl Fn(u8) -> bool) -> Result<ShortText, IdError> {
    if text.is_empty() || text.len() > ShortText::MAX {
        return Err(IdError::Length);
    }
    let copy = ShortText::copied(text);
    if copy.count(&allowed) == text.len() {
        return Ok(copy);
    }
    Err(IdError::Alphabet(text.iter().position(|&byte| !allowed(byte)).unwrap_or(0)))
}

#[inline]
fn checked_padded(
    bytes: [u8; ShortText::MAX],
    allowed: impl Fn(u8) -> bool,
) -> Result<ShortText, IdError> {
    let [low, high] =
        [0, 16].map(|at| u128::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte])));
    let zeros = if high == 0 { 128 + low.leading_zeros() } else { high.leading_zeros() };
    let text = ShortText { len: (ShortText::MAX as u32 - zeros / 8) as u8, bytes };
    match text.count(&allowed) {
        _ if text.is_empty() => Err(IdError::Length),
        count if count == text.len() => Ok(text),
        _ => Err(IdError::Alphabet(bytes.iter().position(|&byte| !allowed(byte)).unwrap_or(0))),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(ShortText);

        impl $name {
            /// Parses the identifier.
            ///
            /// # Errors
            /// [`IdError`] when the length or a byte is not allowed.
            #[inline]
            pub fn parse(text: &[u8]) -> Result<Self, IdError> {
                checked(text, $allowed).map(Self)
            }

            /// Parses an identifier that zeros follow up to 32 bytes: two words, where one
            /// is made and read at once.
            ///
            /// # Errors
            /// [`IdError`] when the length or a byte is not allowed.
            #[inline]
            pub fn parse_padded(text: [u8; ShortText::MAX]) -> Result<Self, IdError> {
                checked_padded(text, $allowed).map(Self)
            }

            /// The identifier's bytes.
            #[inline]
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }

            /// The identifier's text, as fields carry it.
            #[inline]
            pub(crate) fn short(&self) -> &ShortText {
                &self.0
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.0.as_str())
            }
        }
    };
}

text_id!(
    /// A merchant: 1-32 of `[0-9A-Za-z_-]`.
    MchId,
    merchant
);
text_id!(
    /// The merchant's number of a payment: 1-32 of `[0-9A-Za-z_|*-]`.
    OutTradeNo,
    number
);
text_id!(
    /// The merchant's number of a refund: same alphabet as [`OutTradeNo`].
    OutRefundNo,
    number
);
text_id!(
    /// Our deterministic number of an attempt or refund at a channel:
    /// 29 characters (see [`crate::channel::channel_number`]).
    ChannelNo,
    alphanumeric
);

impl ChannelNo {
    /// Takes text that `channel_number` built from the base32 alphabet.
    #[inline]
    pub(crate) fn from_base32(text: &[u8; 29]) -> Self {
        debug_assert!(Self::parse(text).is_ok());
        Self(ShortText::copied(text))
    }
}

/// A slice of the merchants with one owner; see [`MchId::shard`].
pub type ShardId = u16;

impl MchId {
    /// The shard that owns this merchant: FNV-1a (64 bit) of the id, modulo
    /// the number of shards. Stable: it is part of the wire specification.
    pub fn shard(&self, shards: u16) -> ShardId {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.as_bytes() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        (hash % u64::from(shards)) as ShardId
    }
}

/// 18 decimal digits: `(100 + shard) * 10^15 + sequence`. Assigned by the
/// shard in log order and tells the shard by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TransactionId(u64);

const SEQUENCES: u64 = 1_000_000_000_000_000;

impl TransactionId {
    /// The id of payment number `sequence` (below 10^15) of `shard` (below 900).
    pub fn new(shard: ShardId, sequence: u64) -> Self {
        debug_assert!(sequence < SEQUENCES && shard < 900);
        Self((100 + u64::from(shard)) * SEQUENCES + sequence)
    }

    /// Reads an id from the wire; `None` unless it has exactly 18 digits.
    pub fn from_u64(raw: u64) -> Option<Self> {
        (100 * SEQUENCES..1000 * SEQUENCES).contains(&raw).then_some(Self(raw))
    }

    /// The number as it stands on the wire.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The shard that assigned it.
    pub fn shard(self) -> ShardId {
        (self.0 / SEQUENCES - 100) as ShardId
    }

    /// The payment's sequence number within its shard.
    pub fn sequence(self) -> u64 {
        self.0 % SEQUENCES
    }
}

impl std::fmt::Display for TransactionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:018}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabets_are_exactly_as_specified() {
        for byte in 0..=255_u8 {
            let (alnum, text) = (byte.is_ascii_alphanumeric(), [byte]);
            let merchant = alnum || b"_-".contains(&byte);
            let number = alnum || b"_|*-".contains(&byte);
            assert_eq!(MchId::parse(&text).is_ok(), merchant, "{byte}");
            assert_eq!(OutTradeNo::parse(&text).is_ok(), number, "{byte}");
            assert_eq!(OutRefundNo::parse(&text).is_ok(), number, "{byte}");
            assert_eq!(ChannelNo::parse(&text).is_ok(), alnum, "{byte}");
        }
        assert_eq!(MchId::parse(b""), Err(IdError::Length));
        assert_eq!(MchId::parse(&[b'a'; 33]), Err(IdError::Length));
        assert_eq!(MchId::parse(&[b'a'; 32]).map(|id| id.as_bytes().len()), Ok(32));
        assert_eq!(MchId::parse(b"ab c"), Err(IdError::Alphabet(2)));
    }

    #[test]
    fn texts_of_every_length_are_copied_whole_and_judged_at_every_place() {
        let text: Vec<u8> = (b'0'..=b'9').chain(b'A'..=b'Z').collect();
        for len in 0..=ShortText::MAX {
            let short = ShortText::new(&text[..len]).unwrap();
            assert_eq!(short.as_bytes(), &text[..len]);
            assert_eq!(short.bytes[len..], [0; 32][len..]);
            let mut out = b"before".to_vec();
            short.append_to(&mut out);
            assert_eq!(out[6..], text[..len]);
            for at in 0..len {
                for bad in [0, 0x1f, 0x7f, 0x80, 0xff] {
                    let mut spoilt = text[..len].to_vec();
                    spoilt[at] = bad;
                    assert_eq!(ShortText::new(&spoilt), None, "{bad} at {at} of {len}");
                    assert_eq!(OutTradeNo::parse(&spoilt), Err(IdError::Alphabet(at)));
                }
            }
        }
        assert_eq!(ShortText::new(&text[..33]), None);
    }

    #[test]
    fn padded_texts_are_those_that_are_not() {
        let text: Vec<u8> = (b'0'..=b'9').chain(b'A'..=b'Z').collect();
        let padded = |text: &[u8]| {
            let mut padded = [0; 32];
            padded[..text.len()].copy_from_slice(text);
            padded
        };
        for len in 0..=ShortText::MAX {
            let text = &text[..len];
            assert_eq!(OutTradeNo::parse_padded(padded(text)), OutTradeNo::parse(text));
            for at in 0..len {
                for bad in [0, b' ', 0x80, 0xff] {
                    let mut spoilt = text.to_vec();
                    spoilt[at] = bad;
                    // A zero at its end only makes it shorter.
                    let end = spoilt.len() - usize::from(bad == 0 && at + 1 == len);
                    let expected = OutTradeNo::parse(&spoilt[..end]);
                    assert_eq!(OutTradeNo::parse_padded(padded(&spoilt)), expected, "{bad} {at}");
                }
            }
        }
    }

    #[test]
    fn short_texts_hold_exactly_printable_ascii() {
        for byte in 0..=255_u8 {
            assert_eq!(ShortText::new(&[byte]).is_some(), (0x20..0x7f).contains(&byte), "{byte}");
        }
    }

    #[test]
    fn shard_function_has_the_specified_values() {
        // FNV-1a 64 of "a" is af63dc4c8601ec8c (the function's own test vector).
        let id = MchId::parse(b"a").ok();
        assert_eq!(id.map(|id| id.shard(12)), Some((0xaf63_dc4c_8601_ec8c_u64 % 12) as u16));
        assert_eq!(id.map(|id| id.shard(1)), Some(0));
    }

    #[test]
    fn transaction_ids_have_18_digits_and_tell_the_shard() {
        let id = TransactionId::new(7, 42);
        assert_eq!(id.to_string(), "107000000000000042");
        assert_eq!((id.shard(), id.sequence()), (7, 42));
        assert_eq!(TransactionId::from_u64(id.as_u64()), Some(id));
        assert_eq!(TransactionId::from_u64(99_999_999_999_999_999), None);
        assert_eq!(TransactionId::from_u64(1_000_000_000_000_000_000), None);
        assert_eq!(TransactionId::from_u64(u64::MAX), None);
    }
}
