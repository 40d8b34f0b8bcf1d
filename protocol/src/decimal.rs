//! Decimal digits of numbers, for canonical forms.
//!
//! Sixteen digits are made in two words without a loop or a table, so that those of
//! several numbers can be worked on at once. Tested against the standard library.

const EIGHT: u64 = 100_000_000;
const SIXTEEN: u64 = EIGHT * EIGHT;

/// A number's digits.
#[derive(Clone, Copy)]
pub(crate) struct Decimal {
    /// The first digit in the lowest byte.
    text: u128,
    /// How many.
    len: u8,
    /// What stands before them, of a number of more than sixteen digits; else 0.
    high: u64,
}

impl Decimal {
    /// The digits of `value`.
    #[inline]
    pub(crate) fn new(value: u64) -> Self {
        if value < EIGHT {
            let digits = eight_digits(value);
            // The last one stands even if it is zero.
            let leading = (digits.trailing_zeros() / 8).min(7);
            let text = (digits | u64::from_ne_bytes([b'0'; 8])) >> (8 * leading);
            return Self { text: text.into(), len: 8 - leading as u8, high: 0 };
        }
        let (high, rest) = match value {
            ..SIXTEEN => (0, value),
            _ => (value / SIXTEEN, value % SIXTEEN),
        };
        let [first, last] = [rest / EIGHT, rest % EIGHT].map(eight_digits);
        let digits = u128::from(last) << 64 | u128::from(first);
        let leading = if high > 0 { 0 } else { digits.trailing_zeros() / 8 };
        let text = (digits | u128::from_ne_bytes([b'0'; 16])) >> (8 * leading);
        Self { text, len: 16 - leading as u8, high }
    }

    /// Appends the digits.
    #[inline]
    pub(crate) fn append_to(self, out: &mut Vec<u8>) {
        if self.high > 0 {
            Self::new(self.high).append_to(out);
        }
        let end = out.len() + usize::from(self.len);
        // Of known size first, then cut.
        out.extend_from_slice(&self.text.to_le_bytes());
        out.truncate(end);
    }
}

/// The digits of a number that is often the one before.
#[derive(Clone, Copy, Default)]
pub(crate) struct Kept(Option<(u64, Decimal)>);

impl Kept {
    /// The digits of `value`.
    #[inline]
    pub(crate) fn of(&mut self, value: u64) -> Decimal {
        match self.0 {
            Some((known, digits)) if known == value => digits,
            _ => {
                let digits = Decimal::new(value);
                self.0 = Some((value, digits));
                digits
            }
        }
    }
}

/// The eight digits of a number below 10^8, the first in the lowest byte: halves
/// of four digits, of two, of one, all halves of a step in one multiplication.
#[inline]
fn eight_digits(value: u64) -> u64 {
    let fours = (value / 10_000) | ((value % 10_000) << 32);
    let hundreds = ((fours * 10_486) >> 20) & 0x7f_0000_007f;
    let pairs = hundreds | ((fours - 100 * hundreds) << 16);
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | ((pairs - 10 * tens) << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_standard_library() {
        let powers = (0..20).map(|power| 10_u64.pow(power));
        let around =
            powers.flat_map(|power| [power - 1, power, power + 1, power / 3, power / 9 * 7]);
        let spread = (0..20_000_u64).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 64));
        for value in around.chain(spread).chain([u64::MAX, SIXTEEN * 3]) {
            let mut out = b"n=".to_vec();
            Decimal::new(value).append_to(&mut out);
            assert_eq!(out, format!("n={value}").into_bytes());
        }
    }

    #[test]
    fn what_is_kept_is_the_value_that_is_asked_for() {
        let mut kept = Kept::default();
        for value in [0, 0, 1_700_000_000_000, 1_700_000_000_000, 1_700_000_000_001, 0] {
            let mut out = Vec::new();
            kept.of(value).append_to(&mut out);
            assert_eq!(out, value.to_string().into_bytes());
        }
    }

    #[test]
    fn eight_digits_are_right_in_each_half() {
        for four in 0..10_000_u64 {
            let text = |value: u64| u64::from_le_bytes(*b"00000000") | eight_digits(value);
            for value in [four, four * 10_000, four * 10_001] {
                assert_eq!(text(value).to_le_bytes(), *format!("{value:08}").as_bytes());
            }
        }
    }
}
