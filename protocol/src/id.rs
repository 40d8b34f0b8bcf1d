//! Identifiers, parsed once at the edge and trusted afterwards.

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
    /// The empty text.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; 32] };

    /// Copies `text`; `None` when it is longer than 32 bytes or not printable ASCII.
    pub fn new(text: &[u8]) -> Option<Self> {
        if text.len() > 32 || !text.iter().all(|b| (0x20..0x7f).contains(b)) {
            return None;
        }
        let mut bytes = [0; 32];
        bytes[..text.len()].copy_from_slice(text);
        Some(Self { len: text.len() as u8, bytes })
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

fn checked(text: &[u8], allowed: fn(u8) -> bool) -> Result<ShortText, IdError> {
    if text.is_empty() || text.len() > 32 {
        return Err(IdError::Length);
    }
    match text.iter().position(|&b| !allowed(b)) {
        Some(at) => Err(IdError::Alphabet(at)),
        None => ShortText::new(text).ok_or(IdError::Length),
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
            pub fn parse(text: &[u8]) -> Result<Self, IdError> {
                checked(text, $allowed).map(Self)
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
    |b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
);
text_id!(
    /// The merchant's number of a payment: 1-32 of `[0-9A-Za-z_|*-]`.
    OutTradeNo,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'|' | b'*' | b'-')
);
text_id!(
    /// The merchant's number of a refund: same alphabet as [`OutTradeNo`].
    OutRefundNo,
    |b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'|' | b'*' | b'-')
);
text_id!(
    /// Our deterministic number of an attempt or refund at a channel:
    /// 29 characters (see [`crate::channel::channel_number`]).
    ChannelNo,
    |b| b.is_ascii_alphanumeric()
);

impl ChannelNo {
    /// Takes text that `channel_number` built from the base32 alphabet.
    pub(crate) fn from_base32(text: &[u8; 29]) -> Self {
        let mut bytes = [0; 32];
        bytes[..29].copy_from_slice(text);
        Self(ShortText { len: 29, bytes })
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
