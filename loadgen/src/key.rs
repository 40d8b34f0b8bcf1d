//! The key with which a merchant's requests are signed.
//!
//! Ed25519 by the library that is in the binary for TLS: it takes half as long as the one of
//! the protocol crate (8.9 and 17.2 us). Both give the same signature (RFC 8032), which is
//! tested. Keys have no `Debug`: they cannot be printed by accident.

use aws_lc_rs::signature::Ed25519KeyPair;
use protocol::sign::HmacKey;
use std::sync::Arc;

/// A merchant's key.
#[derive(Clone)]
pub(crate) enum Key {
    /// HMAC-SHA256 with a shared secret.
    Hmac(HmacKey),
    /// Ed25519 private key.
    Ed25519(Arc<Ed25519KeyPair>),
}

impl Key {
    /// A shared secret.
    pub(crate) fn hmac(secret: &[u8]) -> Self {
        Self::Hmac(HmacKey::new(secret))
    }

    /// A private key seed; `None` when it has not 32 bytes.
    pub(crate) fn ed25519(seed: &[u8]) -> Option<Self> {
        let key = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        Some(Self::Ed25519(Arc::new(key)))
    }

    /// Length of its signatures, bytes.
    pub(crate) fn signature_len(&self) -> usize {
        match self {
            Self::Hmac(_) => 32,
            Self::Ed25519(_) => 64,
        }
    }

    /// Puts the signature of `message` into `out`, which is as long.
    pub(crate) fn sign(&self, message: &[u8], out: &mut [u8]) {
        match self {
            Self::Hmac(key) => out.copy_from_slice(&key.sign(message)),
            Self::Ed25519(key) => out.copy_from_slice(key.sign(message).as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::sign::SigningKey;

    #[test]
    fn it_signs_as_the_protocol_crate_does() {
        let seed: [u8; 32] = std::array::from_fn(|at| at as u8 * 7);
        let pairs = [
            (Key::hmac(&seed), SigningKey::hmac(&seed)),
            (Key::ed25519(&seed).unwrap(), SigningKey::ed25519(&seed)),
        ];
        for (key, other) in pairs {
            let (mut ours, mut theirs) = (vec![0; key.signature_len()], [0; 64]);
            for message in [&b""[..], b"a message", &[3; 300]] {
                key.sign(message, &mut ours);
                let len = other.sign(message, &mut theirs);
                assert_eq!(ours, theirs[..len]);
            }
        }
        assert!(Key::ed25519(&seed[1..]).is_none());
    }
}
