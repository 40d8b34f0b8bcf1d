//! The usual lines of a log dump, read in one pass without allocation.
//!
//! Either the same as the full parser reads, or nothing: whatever is unusual
//! (escapes, nesting, floats, a field twice, anything out of range) is left to
//! it. Pure. Tested by holding the two against each other on lines that were
//! damaged at every byte.

use super::log::{Ending, Raw};
use std::borrow::Cow;

/// Fields without which no line is one: as the full parser demands.
const NEEDED: u32 = 0b1_1111;

/// Reads a line; `None`: ask the full parser.
pub(super) fn parse(line: &str) -> Option<Raw<'_>> {
    let mut scan = Scan { text: line, at: 0 };
    let (mut raw, mut seen) = (Raw::default(), 0_u32);
    scan.expect(b'{')?;
    loop {
        let key = scan.string()?;
        scan.expect(b':')?;
        let number = field(&mut scan, key, &mut raw)?;
        // Unknown fields share the last bit and may come again.
        let bit = 1 << number;
        if seen & bit != 0 && number != UNKNOWN {
            return None;
        }
        seen |= bit;
        match scan.byte()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    (scan.at == line.len() && seen & NEEDED == NEEDED).then_some(raw)
}

/// Number of all fields that are not wanted.
const UNKNOWN: u32 = 31;

/// Reads the value of a field; its number.
fn field<'a>(scan: &mut Scan<'a>, key: &str, raw: &mut Raw<'a>) -> Option<u32> {
    macro_rules! fields {
        ($($number:literal $name:ident $read:ident,)*) => {
            match key {
                $(stringify!($name) => {
                    raw.$name = scan.$read()?;
                    $number
                })*
                "ending" => {
                    raw.ending = Some(ending(scan.string()?)?);
                    24
                }
                "limits" => return None,
                _ => {
                    scan.skip()?;
                    UNKNOWN
                }
            }
        };
    }
    Some(fields! {
        0 shard number,
        1 index number,
        2 record number,
        3 at_us number,
        4 kind string,
        5 term number,
        6 sequence number,
        7 attempt number,
        8 ordinal number,
        9 amount signed,
        10 mch_id string,
        11 out_trade_no string,
        12 charge_no string,
        13 currency string,
        14 out_refund_no string,
        15 cause string,
        16 goes_on boolean,
        17 order_state string,
        18 refund boolean,
        19 success boolean,
        20 status string,
        21 until_ms number,
        22 time_expire_ms number,
        23 operator text,
        25 second text,
        26 note text,
    })
}

fn ending(name: &str) -> Option<Ending> {
    Some(match name {
        "succeeded" => Ending::Succeeded,
        "declined" => Ending::Declined,
        "void" => Ending::Void,
        "reversed" => Ending::Reversed,
        "manual" => Ending::Manual,
        _ => return None,
    })
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.text.as_bytes().get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.byte()? == wanted).then_some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let rest = &self.text.as_bytes()[self.at..];
        let plain = |byte: &u8| *byte != b'"' && *byte != b'\\' && *byte >= 0x20;
        let len = rest.iter().position(|byte| !plain(byte))?;
        let start = self.at;
        self.at += len;
        self.expect(b'"')?;
        // Both ends are at an ASCII byte.
        self.text.get(start..start + len)
    }

    fn text(&mut self) -> Option<Cow<'a, str>> {
        self.string().map(Cow::Borrowed)
    }

    fn number<T: TryFrom<u64>>(&mut self) -> Option<T> {
        let rest = &self.text.as_bytes()[self.at..];
        let len = rest.iter().position(|byte| !byte.is_ascii_digit())?;
        // 19 digits fit; a leading zero is no JSON.
        if !(1..=19).contains(&len) || rest[0] == b'0' && len > 1 {
            return None;
        }
        if matches!(rest[len], b'.' | b'e' | b'E') {
            return None;
        }
        self.at += len;
        let digits = rest[..len].iter();
        let value = digits.fold(0, |value, byte| value * 10 + u64::from(byte - b'0'));
        T::try_from(value).ok()
    }

    fn signed(&mut self) -> Option<i64> {
        if self.text.as_bytes().get(self.at) == Some(&b'-') {
            self.at += 1;
            // Minus zero is a float to the full parser.
            return self.number::<i64>().filter(|value| *value != 0).map(|value| -value);
        }
        self.number()
    }

    fn boolean(&mut self) -> Option<bool> {
        let rest = self.text.get(self.at..)?;
        let value = rest.starts_with("true");
        if !value && !rest.starts_with("false") {
            return None;
        }
        self.at += if value { 4 } else { 5 };
        Some(value)
    }

    fn skip(&mut self) -> Option<()> {
        match self.text.as_bytes().get(self.at)? {
            b'"' => self.string().map(drop),
            b't' | b'f' => self.boolean().map(drop),
            _ => self.signed().map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [&str; 5] = [
        r#"{"shard":3,"index":9,"term":1,"record":0,"at_us":1700000000000000,"kind":"begin","sequence":4,"attempt":1,"channel":1,"mch_id":"M1","out_trade_no":"a|b","charge_no":"X","amount":77,"currency":"CNY","method":"CARD","time_expire_ms":1,"notify":false}"#,
        r#"{"shard":3,"index":9,"term":1,"record":1,"at_us":5,"kind":"end","sequence":4,"attempt":1,"class":"DECLINED","ending":"declined","goes_on":true,"order_state":"PROCESSING","reason":"NONE","amount":-10,"channel_ref":"P12"}"#,
        r#"{"shard":11,"index":335,"term":1,"record":0,"at_us":5,"kind":"refund","sequence":1,"ordinal":1,"for":"MERCHANT","attempt":1,"amount":6455,"out_refund_no":"R1"}"#,
        r#"{"shard":0,"index":1,"term":1,"record":0,"at_us":1,"kind":"decided","sequence":2,"ordinal":1,"refund":false,"success":true,"operator":"a","second":"b","note":"so"}"#,
        r#"{"shard":0,"index":2,"term":1,"record":0,"at_us":1,"kind":"cancel","sequence":2,"attempt":1,"cause":"merchant","reversing":true}"#,
    ];

    fn full(line: &str) -> Option<Raw<'_>> {
        serde_json::from_str(line).ok()
    }

    #[test]
    fn usual_lines_are_read_as_the_full_parser_reads_them() {
        for line in LINES {
            assert!(parse(line).is_some(), "{line}");
            assert_eq!(parse(line), full(line));
        }
    }

    #[test]
    fn damaged_lines_are_read_as_the_full_parser_reads_them_or_not_at_all() {
        let mut read = 0;
        for line in LINES {
            for at in 0..line.len() {
                for byte in
                    [b'"', b'\\', b'0', b'9', b'-', b'.', b'e', b'{', b',', b' ', b'\n', b't']
                {
                    let mut damaged = line.as_bytes().to_vec();
                    damaged[at] = byte;
                    let damaged = String::from_utf8(damaged).unwrap();
                    if let Some(raw) = parse(&damaged) {
                        read += 1;
                        assert_eq!(Some(raw), full(&damaged), "{damaged}");
                    }
                }
                let cut = &line[..at];
                assert_eq!(parse(cut), None, "{cut}");
            }
        }
        assert!(read > 1_000, "{read}");
    }

    #[test]
    fn what_is_unusual_is_left_to_the_full_parser() {
        let head = r#""shard":1,"index":1,"record":0,"at_us":1,"kind":"end""#;
        for odd in [
            r#""note":"a\"b""#,
            r#""limits":{"burst":1}"#,
            r#""extra":[1]"#,
            r#""extra":1.5"#,
            r#""shard":1"#,
            r#""amount":99999999999999999999"#,
            r#""amount":-0"#,
            r#""attempt":256"#,
            r#""ending":null"#,
        ] {
            assert_eq!(parse(&format!("{{{head},{odd}}}")), None, "{odd}");
        }
        assert!(parse(&format!("{{{head}}}")).is_some());
        assert_eq!(parse(r#"{"shard":1,"index":1,"record":0,"at_us":1}"#), None);
        assert_eq!(parse(&format!("{{{head}}} ")), None);
    }
}
