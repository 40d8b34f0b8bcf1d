//! Signs a merchant's requests: fills key id, timestamp, nonce and signature.

use crate::message::Auth;
use crate::sign::SigningKey;
use std::time::{SystemTime, UNIX_EPOCH};

/// A merchant's signing key (HMAC-SHA256 or Ed25519) and its id on the wire. No
/// `Debug`: it cannot be printed by accident.
#[derive(Clone)]
pub struct Signer {
    first: Option<(u32, SigningKey)>,
    second: Option<(u32, SigningKey)>,
}

impl Signer {
    /// Signs with `key`, which the switch knows as `key_id` (not 0).
    pub fn new(key_id: u32, key: SigningKey) -> Self {
        Self { first: Some((key_id, key)), second: None }
    }

    /// Sends unsigned: for deployments that trust this gateway's certificate.
    pub fn certificate() -> Self {
        Self { first: None, second: None }
    }

    /// Signs pays with a second key too, as large amounts demand. Other
    /// requests carry one signature.
    #[must_use]
    pub fn with_second(mut self, key_id: u32, key: SigningKey) -> Self {
        self.second = Some((key_id, key));
        self
    }

    /// Signs the canonical form that `canonical` writes for the signature data
    /// it is given.
    pub(super) fn sign(&self, canonical: impl FnOnce(Auth<'static>, &mut Vec<u8>)) -> Signed {
        let key_id = self.first.as_ref().map_or(0, |(key_id, _)| *key_id);
        let (timestamp_ms, nonce) = (now_ms(), random());
        let mut form = Vec::new();
        if self.first.is_some() || self.second.is_some() {
            form.reserve(512);
            canonical(Auth { key_id, timestamp_ms, nonce, signature: &[] }, &mut form);
        }
        Signed {
            timestamp_ms,
            nonce,
            first: Signature::of(&form, self.first.as_ref()),
            second: Signature::of(&form, self.second.as_ref()),
        }
    }
}

/// The signatures of one request.
pub(super) struct Signed {
    timestamp_ms: u64,
    nonce: u64,
    first: Signature,
    second: Signature,
}

impl Signed {
    pub(super) fn auth(&self) -> Auth<'_> {
        self.block(&self.first)
    }

    /// The second signature block of a pay; `Auth::NONE` when there is no
    /// second key.
    pub(super) fn second(&self) -> Auth<'_> {
        if self.second.len == 0 { Auth::NONE } else { self.block(&self.second) }
    }

    fn block<'a>(&self, signature: &'a Signature) -> Auth<'a> {
        Auth {
            key_id: signature.key_id,
            timestamp_ms: self.timestamp_ms,
            nonce: self.nonce,
            signature: &signature.bytes[..signature.len],
        }
    }
}

/// A signature on the stack; empty without a key.
struct Signature {
    key_id: u32,
    bytes: [u8; 64],
    len: usize,
}

impl Signature {
    fn of(form: &[u8], key: Option<&(u32, SigningKey)>) -> Self {
        let mut signature = Self { key_id: 0, bytes: [0; 64], len: 0 };
        if let Some((key_id, key)) = key {
            signature.key_id = *key_id;
            signature.len = key.sign(form, &mut signature.bytes);
        }
        signature
    }
}

fn now_ms() -> u64 {
    since_epoch().as_millis() as u64
}

fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Random; the clock's nanoseconds when the system gives nothing, for nonces
/// and pauses only have to differ.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => since_epoch().as_nanos() as u64,
    }
}
