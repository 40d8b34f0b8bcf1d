//! The merchant directory of the network thread: keys in clear, who may speak
//! for whom, from where. Fed by the engines whenever a merchant's record
//! commits; never holds limits or money.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::IpAddr;

use protocol::code::Code;
use protocol::id::{MchId, ShortText};
use protocol::message::Auth;
use protocol::sign::MerchantKey;
use sha2::{Digest, Sha256};

use crate::engine::FoldHasher;
use crate::engine::merchant::{AddressRange, KeyKind, Merchant};
use crate::engine::prefetch::prefetch;
use crate::secret::Kek;

struct Entry {
    /// What every judgement here rests on, as a hash.
    authority: u64,
    keys: Vec<(u32, MerchantKey)>,
    gateways: Vec<ShortText>,
    addresses: Vec<AddressRange>,
}

/// Merchants by id.
pub struct Directory {
    entries: HashMap<MchId, Entry, BuildHasherDefault<FoldHasher>>,
    kek: std::sync::Arc<Kek>,
    /// Largest distance of a request's timestamp from our clock, milliseconds.
    window_ms: u64,
}

/// A gateway connection, as far as authorisation needs it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Name in the certificate.
    pub name: ShortText,
    /// Address, IPv4 mapped.
    pub address: [u8; 16],
    /// Unsigned requests are accepted from this gateway.
    pub trusted: bool,
}

/// An address as 16 bytes, IPv4 mapped into IPv6.
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl Directory {
    /// An empty directory that unwraps keys with `kek`.
    pub fn new(kek: std::sync::Arc<Kek>, window_ms: u64) -> Self {
        Self { entries: HashMap::default(), kek, window_ms }
    }

    /// Takes a committed record over. Keys that cannot be unwrapped are left
    /// out: their signatures are then refused. Returns how many were left out.
    pub fn put(&mut self, merchant: &Merchant) -> usize {
        let mut keys = Vec::with_capacity(merchant.keys.len());
        for key in &merchant.keys {
            let live = match key.kind {
                KeyKind::HmacSha256 => self
                    .kek
                    .unwrap(&merchant.mch_id, key)
                    .ok()
                    .map(|secret| MerchantKey::hmac(secret.expose())),
                KeyKind::Ed25519 => self
                    .kek
                    .unwrap(&merchant.mch_id, key)
                    .ok()
                    .and_then(|public| MerchantKey::ed25519(public.expose())),
            };
            keys.extend(live.map(|live| (key.key_id, live)));
        }
        let left_out = merchant.keys.len() - keys.len();
        let entry = Entry {
            authority: authority(merchant),
            keys,
            gateways: merchant.gateways.clone(),
            addresses: merchant.addresses.clone(),
        };
        self.entries.insert(merchant.mch_id, entry);
        left_out
    }

    /// Asks for what [`Self::authorise`] will read of a merchant, so that it
    /// arrives while the canonical form is written.
    pub fn warm(&self, mch_id: &MchId) {
        let Some(entry) = self.entries.get(mch_id) else { return };
        entry.keys.first().into_iter().for_each(prefetch);
        entry.gateways.first().into_iter().for_each(prefetch);
        entry.addresses.first().into_iter().for_each(prefetch);
    }

    /// What judgements about a merchant rest on at present: a hash of its keys, gateways
    /// and addresses as they stand in its record, the same at every site that has the
    /// same record. `None`: no such merchant.
    pub fn authority(&self, mch_id: &MchId) -> Option<u64> {
        self.entries.get(mch_id).map(|entry| entry.authority)
    }

    /// Judges a request: gateway, address, timestamp, signature over
    /// `canonical`, in this order. Tells what that rests on ([`Self::authority`]).
    ///
    /// # Errors
    /// The code of the refusal.
    pub fn authorise(
        &self,
        mch_id: &MchId,
        peer: &Peer,
        auth: &Auth<'_>,
        now_ms: u64,
        canonical: &[u8],
    ) -> Result<u64, Code> {
        let entry = self.entries.get(mch_id).ok_or(Code::UnknownMerchant)?;
        if !entry.gateways.is_empty() && !entry.gateways.contains(&peer.name) {
            return Err(Code::GatewayNotAllowed);
        }
        if !entry.addresses.is_empty()
            && !entry.addresses.iter().any(|range| contains(range, &peer.address))
        {
            return Err(Code::AddressNotAllowed);
        }
        if auth.key_id == 0 && auth.signature.is_empty() && peer.trusted {
            return Ok(entry.authority);
        }
        if auth.timestamp_ms.abs_diff(now_ms) > self.window_ms {
            return Err(Code::StaleTimestamp);
        }
        self.verify(entry, auth, canonical).map(|()| entry.authority)
    }

    /// Judges a second signature: by another key of the merchant than the first.
    ///
    /// # Errors
    /// The code of the refusal.
    pub fn second(
        &self,
        mch_id: &MchId,
        first: &Auth<'_>,
        second: &Auth<'_>,
        canonical: &[u8],
    ) -> Result<(), Code> {
        let entry = self.entries.get(mch_id).ok_or(Code::UnknownMerchant)?;
        if second.key_id == first.key_id {
            return Err(Code::UnknownKey);
        }
        self.verify(entry, second, canonical)
    }

    fn verify(&self, entry: &Entry, auth: &Auth<'_>, canonical: &[u8]) -> Result<(), Code> {
        let (_, key) =
            entry.keys.iter().find(|(id, _)| *id == auth.key_id).ok_or(Code::UnknownKey)?;
        if key.verify(canonical, auth.signature) { Ok(()) } else { Err(Code::BadSignature) }
    }
}

/// Of what a request is judged by; limits and status are the engine's.
fn authority(merchant: &Merchant) -> u64 {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        // Texts and keys are short; the length keeps neighbours apart.
        hash.update((bytes.len() as u32).to_le_bytes());
        hash.update(bytes);
    };
    part(&[merchant.keys.len() as u8, merchant.gateways.len() as u8]);
    for key in &merchant.keys {
        part(&key.key_id.to_le_bytes());
        part(&[key.kind as u8]);
        part(&key.material);
    }
    for gateway in &merchant.gateways {
        part(gateway.as_bytes());
    }
    for range in &merchant.addresses {
        part(&range.address);
        part(&[range.prefix_len]);
    }
    let hash = hash.finalize();
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

fn contains(range: &AddressRange, address: &[u8; 16]) -> bool {
    let bits = u32::from(range.prefix_len.min(128));
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
    u128::from_be_bytes(range.address) & mask == u128::from_be_bytes(*address) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_judgement_rests_on_is_in_the_authority() {
        use crate::engine::merchant::{Limits, MerchantKey, MerchantStatus};
        let text = |text: &[u8]| ShortText::new(text).unwrap();
        let key = |key_id, material: &[u8]| MerchantKey {
            key_id,
            kind: KeyKind::Ed25519,
            material: material.to_vec(),
        };
        let range = AddressRange { address: [7; 16], prefix_len: 100 };
        let limits = Limits {
            pay_per_minute: 1,
            query_per_minute: 1,
            refund_per_minute: 1,
            burst: 1,
            daily_cap: 0,
            single_max: 0,
            second_signature_from: 0,
        };
        let merchant = Merchant {
            mch_id: MchId::parse(b"M").unwrap(),
            status: MerchantStatus::Active,
            keys: vec![key(1, b"ab"), key(2, b"c")],
            gateways: vec![text(b"gw-1")],
            addresses: vec![range],
            limits,
        };
        let other = |change: fn(&mut Merchant)| {
            let mut other = merchant.clone();
            change(&mut other);
            authority(&other)
        };
        let changes: [fn(&mut Merchant); 10] = [
            |_| {},
            |m| m.keys[0].key_id = 3,
            |m| m.keys[0].kind = KeyKind::HmacSha256,
            |m| m.keys[0].material = b"a".to_vec(),
            |m| drop(m.keys.pop()),
            |m| m.keys.clear(),
            |m| m.gateways.clear(),
            |m| m.gateways.push(ShortText::new(b"gw-2").unwrap()),
            |m| m.addresses[0].prefix_len = 101,
            |m| m.addresses.clear(),
        ];
        let seen: std::collections::HashSet<u64> = changes.map(other).into();
        assert_eq!(seen.len(), changes.len());
        // What the engine judges by its own record.
        let limited = |m: &mut Merchant| {
            m.limits.burst = 9;
            m.status = MerchantStatus::Limited;
        };
        assert_eq!(other(limited), authority(&merchant));
        let mut directory = Directory::new(std::sync::Arc::new(Kek::new(&[3; 32])), 1);
        assert_eq!(directory.authority(&merchant.mch_id), None);
        directory.put(&merchant);
        assert_eq!(directory.authority(&merchant.mch_id), Some(authority(&merchant)));
    }

    #[test]
    fn a_range_covers_its_prefix_and_nothing_else() {
        let address = |text: &str| mapped(text.parse().unwrap());
        let range = AddressRange { address: address("10.1.0.0"), prefix_len: 96 + 16 };
        assert!(contains(&range, &address("10.1.200.3")));
        assert!(!contains(&range, &address("10.2.0.1")));
        let all = AddressRange { address: [0; 16], prefix_len: 0 };
        assert!(contains(&all, &address("::1")));
        let one = AddressRange { address: address("::1"), prefix_len: 128 };
        assert!(contains(&one, &address("::1")) && !contains(&one, &address("::2")));
    }
}
