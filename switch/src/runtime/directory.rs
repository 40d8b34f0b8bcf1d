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

use crate::engine::FoldHasher;
use crate::engine::merchant::{AddressRange, KeyKind, Merchant};
use crate::engine::prefetch::prefetch;
use crate::secret::Kek;

struct Entry {
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

    /// Judges a request: gateway, address, timestamp, signature over
    /// `canonical`, in this order.
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
    ) -> Result<(), Code> {
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
            return Ok(());
        }
        if auth.timestamp_ms.abs_diff(now_ms) > self.window_ms {
            return Err(Code::StaleTimestamp);
        }
        self.verify(entry, auth, canonical)
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

fn contains(range: &AddressRange, address: &[u8; 16]) -> bool {
    let bits = u32::from(range.prefix_len.min(128));
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
    u128::from_be_bytes(range.address) & mask == u128::from_be_bytes(*address) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

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
