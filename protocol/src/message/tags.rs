//! Tags of a payment: kept encoded, walked in place.

use super::{DecodeError, free_text};
use crate::id::ShortText;

/// Most tags of one payment.
pub const TAGS_MAX: usize = 12;
/// Longest tag value in bytes.
const VALUE_MAX: usize = 128;

/// The tags of a payment, still encoded, in strictly ascending order of name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tags<'a> {
    /// Number of pairs.
    pub count: u8,
    /// `count` pairs of length-prefixed name and value.
    pub encoded: &'a [u8],
}

/// One tag: name (1-32 of `[0-9A-Za-z_-]`) and value (UTF-8 without control
/// characters, at most 128 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag<'a> {
    /// Name.
    pub name: &'a [u8],
    /// Value.
    pub value: &'a [u8],
}

impl<'a> Tags<'a> {
    /// Encodes `pairs` into `buffer` (cleared first) and borrows them from it.
    ///
    /// # Errors
    /// `tags` when there are too many, a name or value is not allowed, or the
    /// names are not in strictly ascending order.
    pub fn build(pairs: &[(&str, &str)], buffer: &'a mut Vec<u8>) -> Result<Self, DecodeError> {
        buffer.clear();
        if pairs.len() > TAGS_MAX {
            return Err(DecodeError::Field("tags"));
        }
        for (name, value) in pairs {
            for part in [name, value] {
                let len = u8::try_from(part.len()).map_err(|_| DecodeError::Field("tags"))?;
                buffer.push(len);
                buffer.extend_from_slice(part.as_bytes());
            }
        }
        let tags = Self { count: pairs.len() as u8, encoded: buffer };
        tags.check()?;
        Ok(tags)
    }

    /// The tags in order of name.
    pub fn iter(&self) -> impl Iterator<Item = Tag<'a>> + use<'a> {
        let mut rest = self.encoded;
        std::iter::from_fn(move || {
            let (tag, after) = split(rest)?;
            rest = after;
            Some(tag)
        })
    }

    /// Demands `count` allowed pairs, strictly ascending by name, that fill
    /// `encoded` exactly: duplicates and another order would give the same
    /// content two canonical forms.
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        const REFUSED: DecodeError = DecodeError::Field("tags");
        if usize::from(self.count) > TAGS_MAX {
            return Err(REFUSED);
        }
        let (mut rest, mut last): (_, &[u8]) = (self.encoded, &[]);
        for _ in 0..self.count {
            let (tag, after) = split(rest).ok_or(REFUSED)?;
            let named = !tag.name.is_empty()
                && tag.name.len() <= ShortText::MAX
                && tag.name.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if !named || tag.name <= last || !free_text(tag.value, VALUE_MAX) {
                return Err(REFUSED);
            }
            (rest, last) = (after, tag.name);
        }
        if rest.is_empty() { Ok(()) } else { Err(REFUSED) }
    }
}

fn split(rest: &[u8]) -> Option<(Tag<'_>, &[u8])> {
    let (&len, rest) = rest.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(len))?;
    let (&len, rest) = rest.split_first()?;
    let (value, rest) = rest.split_at_checked(usize::from(len))?;
    Some((Tag { name, value }, rest))
}
