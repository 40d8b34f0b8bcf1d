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
    pub fn new(text: &[u8]) -> Option<Self> {
        let allowed = text.len() <= Self::MAX && text.iter().all(|b| (0x20..0x7f).contains(b));
        allowed.then(|| Self::copied(text))
    }

    /// Copies a text that was judged by its caller.
    #[inline]
    fn copied(text: &[u8]) -> Self {
        let mut bytes = [0; Self::MAX];
        bytes[..text.len()].copy_from_slice(text);
        Self { len: text.len() as u8, bytes }
    }

    /// The bytes of the text.
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

/// Which bytes an identifier may hold.
type Alphabet = [bool; 256];

const fn alphabet(extra: &[u8]) -> Alphabet {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < extra.len() {
        table[extra[at] as usize] = true;
        at += 1;
    }
    table
}

const MERCHANT: Alphabet = alphabet(b"_-");
const NUMBER: Alphabet = alphabet(b"_|*-");
const ALPHANUMERIC: Alphabet = alphabet(b"");

#[inline]
fn checked(text: &[u8], allowed: &'static Alphabet) -> Result<ShortText, IdError> {
    if text.is_empty() || text.len() > ShortText::MAX {
        return Err(IdError::Length);
    }
    if let Some(at) = text.iter().position(|&b| !allowed[usize::from(b)]) {
        return Err(IdError::Alphabet(at));
    }
    Ok(ShortText::copied(text))
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
                checked(text, &$allowed).map(Self)
            }

            /// The identifier's bytes.
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
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
    MERCHANT
);
text_id!(
    /// The merchant's number of a payment: 1-32 of `[0-9A-Za-z_|*-]`.
    OutTradeNo,
    NUMBER
);
text_id!(
    /// The merchant's number of a refund: same alphabet as [`OutTradeNo`].
    OutRefundNo,
    NUMBER
);
text_id!(
    /// Our deterministic number of an attempt or refund at a channel:
    /// 29 characters (see [`crate::channel::channel_number`]).
    ChannelNo,
    ALPHANUMERIC
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
