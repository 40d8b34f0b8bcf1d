//! Money: integer minor units and ISO 4217 currency codes, nothing else.

/// An amount in minor units (cents, fen), always positive: parsed once, then
/// trusted. Upper bound 10^15 so that sums of many amounts cannot overflow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Amount(i64);

impl Amount {
    /// Largest amount of one payment or refund, in minor units.
    pub const MAX: i64 = 1_000_000_000_000_000;

    /// `None` unless `1 <= minor <= MAX`.
    pub fn new(minor: i64) -> Option<Self> {
        (1..=Self::MAX).contains(&minor).then_some(Self(minor))
    }

    /// Minor units.
    pub fn minor(self) -> i64 {
        self.0
    }
}

/// An ISO 4217 alphabetic code, three upper-case letters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

impl Currency {
    /// `None` unless the three bytes are upper-case ASCII letters.
    pub fn new(code: [u8; 3]) -> Option<Self> {
        code.iter().all(u8::is_ascii_uppercase).then_some(Self(code))
    }

    /// The three letters.
    pub fn bytes(self) -> [u8; 3] {
        self.0
    }

    /// The three letters as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("")
    }
}

impl std::fmt::Debug for Currency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Display for Currency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
