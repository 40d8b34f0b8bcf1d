//! Merchants as operators write them: in `merchants.toml` and in the body of
//! `POST /v1/merchant`. Parsed strictly, then turned into the engine's form
//! with every key wrapped.

use super::{ConfigError, Document, Problem, Quotes, hex};
use crate::engine::merchant::{
    AddressRange, KeyKind, Limits, Merchant, MerchantKey, MerchantStatus,
};
use crate::secret::{Kek, SECRET_MAX, Secret, is_private};
use protocol::id::{MchId, ShortText};
use protocol::money::Amount;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

/// A merchant in the operators' form. No `Debug`: it holds keys in clear.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MerchantSpec {
    /// 1 to 32 of `0-9 A-Z a-z _ -`.
    pub id: String,
    /// What it may do.
    #[serde(default)]
    pub status: StatusSpec,
    /// One or two live keys.
    #[serde(default)]
    pub keys: Vec<KeySpec>,
    /// Names of the gateways that may speak for it; empty: every gateway.
    #[serde(default)]
    pub gateways: Vec<String>,
    /// Address ranges (`10.0.0.0/8`, `2001:db8::/32`, or one address) its
    /// gateways may come from; empty: everywhere.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Rates and caps.
    #[serde(default)]
    pub limits: LimitsSpec,
}

/// A merchant's status.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum StatusSpec {
    /// Everything.
    #[default]
    Active,
    /// Pays within the limited profile.
    Limited,
    /// No pay; refunds stay possible.
    Suspended,
    /// No pay until woken.
    Dormant,
}

/// How a key signs.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum KindSpec {
    /// HMAC-SHA256.
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    /// Ed25519.
    #[serde(rename = "ed25519")]
    Ed25519,
}

/// A key in clear. No `Debug`.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeySpec {
    /// Id on the wire, from 1.
    pub key_id: u32,
    /// Kind.
    pub kind: KindSpec,
    /// `hmac-sha256`: the shared secret, hex, 16 to 64 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// `ed25519`: the public key, hex, 32 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// Rates and caps; what is absent is the default profile.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSpec {
    /// Pays per minute; 0 forbids.
    pub pay_per_minute: u32,
    /// Queries per minute; 0 forbids.
    pub query_per_minute: u32,
    /// Refunds, closes and reverses per minute; 0 forbids.
    pub refund_per_minute: u32,
    /// Operations at once before a rate bites.
    pub burst: u32,
    /// Sum of pays per UTC day, minor units; 0: no cap.
    pub daily_cap: i64,
    /// Largest single payment, minor units; 0: no bound.
    pub single_max: i64,
    /// A second signature is demanded from this amount on; 0: never.
    pub second_signature_from: i64,
}

impl Default for LimitsSpec {
    fn default() -> Self {
        Self {
            pay_per_minute: 100,
            query_per_minute: 300,
            refund_per_minute: 50,
            burst: 20,
            daily_cap: 0,
            single_max: 0,
            second_signature_from: 0,
        }
    }
}

/// Reads a merchants file and wraps its keys.
///
/// # Errors
/// [`ConfigError`], with every problem of every merchant.
pub fn load(path: &Path, kek: &Kek) -> Result<Vec<Merchant>, ConfigError> {
    let mut problems = Vec::new();
    let specs = read(path, &mut problems)?;
    let mut merchants = Vec::with_capacity(specs.len());
    for (at, spec) in specs.iter().enumerate() {
        match spec.seal(kek) {
            Ok(merchant) => merchants.push(merchant),
            Err(found) => problems.extend(found.into_iter().map(|found| Problem {
                key: format!("merchants[{at}].{}", found.key),
                message: found.message,
            })),
        }
    }
    if problems.is_empty() {
        return Ok(merchants);
    }
    Err(ConfigError::Invalid { path: path.to_owned(), problems })
}

/// Reads a merchants file without judging its values.
///
/// # Errors
/// [`ConfigError`]: unreadable, not TOML, unknown keys, wrong types, an id twice.
pub fn specs(path: &Path) -> Result<Vec<MerchantSpec>, ConfigError> {
    let mut problems = Vec::new();
    let specs = read(path, &mut problems)?;
    if problems.is_empty() {
        return Ok(specs);
    }
    Err(ConfigError::Invalid { path: path.to_owned(), problems })
}

fn read(path: &Path, problems: &mut Vec<Problem>) -> Result<Vec<MerchantSpec>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    let mut document = Document::parse(path, &text, Quotes::Nothing)?;
    let specs = document.list::<MerchantSpec>("merchants").unwrap_or_default();
    *problems = document.finish();
    if specs.iter().flat_map(|spec| &spec.keys).any(|key| key.secret.is_some()) {
        is_private(path, &file)?;
    }
    let mut seen = std::collections::HashSet::new();
    for (at, spec) in specs.iter().enumerate() {
        if !seen.insert(spec.id.as_str()) {
            problems.push(problem(format!("merchants[{at}].id"), &spec.id, "each id once"));
        }
    }
    Ok(specs)
}

fn problem(key: impl Into<String>, value: impl std::fmt::Debug, allowed: &str) -> Problem {
    Problem { key: key.into(), message: format!("{value:?}; allowed: {allowed}") }
}

/// For values that must not be shown.
fn secret_problem(key: String, allowed: &str) -> Problem {
    Problem { key, message: format!("(not shown); allowed: {allowed}") }
}

impl MerchantSpec {
    /// The engine's form, with keys wrapped by `kek`.
    ///
    /// # Errors
    /// Every problem, without any secret in it.
    pub fn seal(&self, kek: &Kek) -> Result<Merchant, Vec<Problem>> {
        let mut problems = Vec::new();
        let mch_id = match MchId::parse(self.id.as_bytes()) {
            Ok(mch_id) => mch_id,
            Err(_) => {
                problems.push(problem("id", &self.id, "1 to 32 of 0-9 A-Z a-z _ -"));
                return Err(problems);
            }
        };
        let keys = self.seal_keys(kek, &mch_id, &mut problems);
        let gateways = self.gateways(&mut problems);
        let addresses = self.addresses(&mut problems);
        self.limits.check(&mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let status = self.status.into();
        Ok(Merchant { mch_id, status, keys, gateways, addresses, limits: self.limits.into() })
    }

    fn seal_keys(
        &self,
        kek: &Kek,
        mch_id: &MchId,
        problems: &mut Vec<Problem>,
    ) -> Vec<MerchantKey> {
        if self.keys.len() > 2 {
            problems.push(problem("keys", self.keys.len(), "at most 2 live keys"));
        }
        let mut keys = Vec::new();
        for (at, spec) in self.keys.iter().enumerate() {
            if spec.key_id == 0 || self.keys[..at].iter().any(|k| k.key_id == spec.key_id) {
                let key = format!("keys[{at}].key_id");
                problems.push(problem(key, spec.key_id, "from 1, each once"));
            }
            match spec.material() {
                Ok(material) => match kek.wrap(mch_id, spec.key_id, spec.kind.into(), &material) {
                    Ok(key) => keys.push(key),
                    Err(error) => problems
                        .push(Problem { key: format!("keys[{at}]"), message: error.to_string() }),
                },
                Err((field, allowed)) => {
                    problems.push(secret_problem(format!("keys[{at}].{field}"), allowed));
                }
            }
        }
        keys
    }

    fn gateways(&self, problems: &mut Vec<Problem>) -> Vec<ShortText> {
        if self.gateways.len() > 16 {
            problems.push(problem("gateways", self.gateways.len(), "at most 16"));
        }
        let mut names = Vec::new();
        for (at, name) in self.gateways.iter().enumerate() {
            match ShortText::new(name.as_bytes()).filter(|name| !name.is_empty()) {
                Some(name) => names.push(name),
                None => problems.push(problem(
                    format!("gateways[{at}]"),
                    name,
                    "1 to 32 printable ASCII characters",
                )),
            }
        }
        names
    }

    fn addresses(&self, problems: &mut Vec<Problem>) -> Vec<AddressRange> {
        if self.addresses.len() > 16 {
            problems.push(problem("addresses", self.addresses.len(), "at most 16"));
        }
        let mut ranges = Vec::new();
        for (at, text) in self.addresses.iter().enumerate() {
            match parse_range(text) {
                Some(range) => ranges.push(range),
                None => problems.push(problem(
                    format!("addresses[{at}]"),
                    text,
                    "ADDRESS/BITS without bits set behind the prefix, or one address",
                )),
            }
        }
        ranges
    }
}

impl KeySpec {
    /// The bytes to wrap, or the field at fault and what it may be.
    fn material(&self) -> Result<Secret, (&'static str, &'static str)> {
        let (field, text, other, allowed, min, max) = match self.kind {
            KindSpec::HmacSha256 => {
                ("secret", &self.secret, &self.public_key, "32 to 128 hex digits", 16, 64)
            }
            KindSpec::Ed25519 => {
                ("public_key", &self.public_key, &self.secret, "64 hex digits", 32, 32)
            }
        };
        const { assert!(64 <= SECRET_MAX) };
        if other.is_some() {
            return Err((field, "only this one of secret and public_key for its kind"));
        }
        let bytes = text.as_deref().and_then(hex::decode).map(Secret::new);
        bytes.filter(|b| (min..=max).contains(&b.expose().len())).ok_or((field, allowed))
    }
}

impl LimitsSpec {
    fn check(&self, problems: &mut Vec<Problem>) {
        if self.burst == 0 {
            problems.push(problem("limits.burst", self.burst, "from 1"));
        }
        let amounts = [
            ("limits.daily_cap", self.daily_cap),
            ("limits.single_max", self.single_max),
            ("limits.second_signature_from", self.second_signature_from),
        ];
        for (key, amount) in amounts {
            let max = if key == "limits.daily_cap" { i64::MAX } else { Amount::MAX };
            if !(0..=max).contains(&amount) {
                problems.push(problem(key, amount, "0 (none) or an amount in minor units"));
            }
        }
    }

    /// The engine's limits.
    ///
    /// # Errors
    /// Every value that is not allowed.
    pub fn parse(&self) -> Result<Limits, Vec<Problem>> {
        let mut problems = Vec::new();
        self.check(&mut problems);
        if problems.is_empty() { Ok((*self).into()) } else { Err(problems) }
    }
}

impl From<LimitsSpec> for Limits {
    fn from(spec: LimitsSpec) -> Self {
        Self {
            pay_per_minute: spec.pay_per_minute,
            query_per_minute: spec.query_per_minute,
            refund_per_minute: spec.refund_per_minute,
            burst: spec.burst,
            daily_cap: spec.daily_cap,
            single_max: spec.single_max,
            second_signature_from: spec.second_signature_from,
        }
    }
}

impl From<Limits> for LimitsSpec {
    fn from(limits: Limits) -> Self {
        Self {
            pay_per_minute: limits.pay_per_minute,
            query_per_minute: limits.query_per_minute,
            refund_per_minute: limits.refund_per_minute,
            burst: limits.burst,
            daily_cap: limits.daily_cap,
            single_max: limits.single_max,
            second_signature_from: limits.second_signature_from,
        }
    }
}

impl From<StatusSpec> for MerchantStatus {
    fn from(spec: StatusSpec) -> Self {
        match spec {
            StatusSpec::Active => Self::Active,
            StatusSpec::Limited => Self::Limited,
            StatusSpec::Suspended => Self::Suspended,
            StatusSpec::Dormant => Self::Dormant,
        }
    }
}

impl From<MerchantStatus> for StatusSpec {
    fn from(status: MerchantStatus) -> Self {
        match status {
            MerchantStatus::Active => Self::Active,
            MerchantStatus::Limited => Self::Limited,
            MerchantStatus::Suspended => Self::Suspended,
            MerchantStatus::Dormant => Self::Dormant,
        }
    }
}

impl From<KindSpec> for KeyKind {
    fn from(spec: KindSpec) -> Self {
        match spec {
            KindSpec::HmacSha256 => Self::HmacSha256,
            KindSpec::Ed25519 => Self::Ed25519,
        }
    }
}

impl From<KeyKind> for KindSpec {
    fn from(kind: KeyKind) -> Self {
        match kind {
            KeyKind::HmacSha256 => Self::HmacSha256,
            KeyKind::Ed25519 => Self::Ed25519,
        }
    }
}

/// Reads `ADDRESS/BITS` or `ADDRESS`. `None` when it is neither, or when bits
/// behind the prefix are set: a likely slip of the pen.
pub fn parse_range(text: &str) -> Option<AddressRange> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let (address, width, offset) = match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 32, 96),
        IpAddr::V6(v6) => (v6, 128, 0),
    };
    let bits = bits.unwrap_or(width);
    if bits > width {
        return None;
    }
    let prefix_len = bits + offset;
    let behind = u128::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
    (address.to_bits() & behind == 0)
        .then_some(AddressRange { address: address.octets(), prefix_len })
}

/// The range as [`parse_range`] reads it.
pub fn format_range(range: &AddressRange) -> String {
    let address = std::net::Ipv6Addr::from(range.address);
    match address.to_ipv4_mapped() {
        Some(v4) if range.prefix_len >= 96 => format!("{v4}/{}", range.prefix_len - 96),
        _ => format!("{address}/{}", range.prefix_len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::write_private;

    fn parse(text: &str) -> Result<Vec<Merchant>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("merchants.toml");
        write_private(&path, text.as_bytes()).unwrap();
        load(&path, &Kek::new(&[3; 32])).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_a_merchant_and_wraps_its_keys() {
        let secret = "0123456789abcdef".repeat(4);
        let text = format!(
            "[[merchants]]\nid = \"M1\"\nstatus = \"limited\"\ngateways = [\"gw-1\"]\n\
             addresses = [\"10.1.0.0/16\", \"::1\"]\nlimits = {{ pay_per_minute = 7 }}\n\
             [[merchants.keys]]\nkey_id = 4\nkind = \"hmac-sha256\"\nsecret = \"{secret}\"\n"
        );
        let merchants = parse(&text).unwrap();
        let merchant = &merchants[0];
        assert_eq!(merchant.mch_id.as_str(), "M1");
        assert_eq!(merchant.status, MerchantStatus::Limited);
        assert_eq!((merchant.limits.pay_per_minute, merchant.limits.query_per_minute), (7, 300));
        assert_eq!(merchant.addresses[0].prefix_len, 112);
        assert_eq!(merchant.addresses[1].prefix_len, 128);
        let opened = Kek::new(&[3; 32]).unwrap(&merchant.mch_id, &merchant.keys[0]).unwrap();
        assert_eq!(hex::encode(opened.expose()), secret);
    }

    #[test]
    fn secrets_that_others_can_read_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("merchants.toml");
        let load = |key: String| {
            let text =
                format!("[[merchants]]\nid = \"M\"\n[[merchants.keys]]\nkey_id = 1\n{key}\n");
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
            load(&path, &Kek::new(&[3; 32])).map_err(|error| error.to_string())
        };
        let hex = "ab".repeat(32);
        let refused = load(format!("kind = \"hmac-sha256\"\nsecret = \"{hex}\"")).unwrap_err();
        assert!(refused.contains("readable by others (mode 640)"), "{refused}");
        assert!(!refused.contains(&hex));
        assert!(load(format!("kind = \"ed25519\"\npublic_key = \"{hex}\"")).is_ok());
    }

    /// Not even a part of one that was written wrongly.
    #[test]
    fn no_secret_is_shown_of_a_file_that_cannot_be_read() {
        let key = |line: &str| {
            format!(
                "[[merchants]]\nid = \"M\"\n[[merchants.keys]]\nkey_id = 1\n\
                 kind = \"hmac-sha256\"\n{line}\n"
            )
        };
        let digits = "7315".repeat(4);
        let wrong = "merchants[0]: a value of the wrong type in `keys.secret`";
        let cases = [
            // The parser finds fault with the text.
            ("secret = \"73157315\n".to_owned(), "not valid TOML", "line 6 column"),
            ("secret = 5ecre7".to_owned(), "not valid TOML", "line 6 column"),
            ("secret = 'a\" 73157315".to_owned(), "not valid TOML", "line 6 column"),
            (format!("secret = {}", digits.repeat(4)), "not valid TOML", "line 6 column"),
            ("secret = \"73157315\" \"5ecre7\"".to_owned(), "not valid TOML", "line 6 column"),
            // It reads well, and is of the wrong type.
            (format!("secret = {digits}"), wrong, ""),
            (format!("secret = [\"{digits}\"]"), wrong, ""),
            (format!("secret = {digits}.5"), wrong, ""),
        ];
        for (line, expected, place) in cases {
            let error = parse(&key(&line)).unwrap_err();
            assert!(error.contains(expected) && error.contains(place), "{line}: {error}");
            assert!(!error.contains("7315") && !error.contains("5ecre7"), "{error}");
        }
        // Words for an enumeration are repeated; numbers in their place are not.
        let error = parse(&key("").replace("\"hmac-sha256\"", &digits)).unwrap_err();
        assert!(!error.contains("7315"), "{error}");
    }

    #[test]
    fn every_bad_value_is_named_and_no_secret_is_shown() {
        let cases = [
            ("id = \"no/slash\"", "merchants[0].id: \"no/slash\""),
            ("id = \"M\"\nx = 1", "unknown field `x`"),
            ("id = \"M\"\nstatus = \"gone\"", "unknown variant `gone`"),
            ("id = \"M\"\naddresses = [\"10.0.0.1/8\"]", "addresses[0]: \"10.0.0.1/8\""),
            ("id = \"M\"\naddresses = [\"10.0.0.0/33\"]", "addresses[0]"),
            ("id = \"M\"\ngateways = [\"\"]", "gateways[0]"),
            ("id = \"M\"\nlimits = { burst = 0 }", "limits.burst: 0"),
            ("id = \"M\"\nlimits = { single_max = -1 }", "limits.single_max: -1"),
            (
                "id = \"M\"\n[[merchants.keys]]\nkey_id = 0\nkind = \"hmac-sha256\"",
                "keys[0].key_id: 0",
            ),
            (
                "id = \"M\"\n[[merchants.keys]]\nkey_id = 1\nkind = \"ed25519\"\npublic_key = \"5ecre7\"",
                "keys[0].public_key: (not shown)",
            ),
            (
                "id = \"M\"\n[[merchants.keys]]\nkey_id = 1\nkind = \"hmac-sha256\"\nsecret = \"5ecre7\"",
                "keys[0].secret: (not shown)",
            ),
        ];
        for (text, expected) in cases {
            let error = parse(&format!("[[merchants]]\n{text}\n")).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("5ecre7"), "{error}");
        }
        let twice = parse("[[merchants]]\nid = \"M\"\n[[merchants]]\nid = \"M\"\n").unwrap_err();
        assert!(twice.contains("each id once"), "{twice}");
    }

    proptest::proptest! {
        #[test]
        fn any_range_prints_as_it_reads(address: u128, bits in 0_u8..=128, v4: bool) {
            let address = if v4 { 0xffff_0000_0000 | (address & 0xffff_ffff) } else { address };
            let bits = if v4 { 96 + bits / 4 } else { bits };
            let kept = address & !u128::MAX.checked_shr(bits.into()).unwrap_or(0);
            let range = AddressRange { address: kept.to_be_bytes(), prefix_len: bits };
            proptest::prop_assert_eq!(parse_range(&format_range(&range)), Some(range));
        }

        #[test]
        fn no_text_breaks_the_range_parser(text in ".{0,50}") {
            let _ = parse_range(&text);
        }
    }

    #[test]
    fn ranges_print_as_they_read() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.7/32", "2001:db8::/32", "::/0"] {
            assert_eq!(format_range(&parse_range(text).unwrap()), text);
        }
    }
}
