//! Signatures of merchants' requests over their canonical form
//! (`docs/WIRE.md`): HMAC-SHA256 (RFC 2104) or Ed25519 (RFC 8032).
//!
//! Keys have no `Debug`: they cannot be printed by accident.

use crate::hash::{self, BLOCK, INITIAL, State};
use ed25519_dalek::{Signer, VerifyingKey};

/// An HMAC-SHA256 key, expanded once: each message continues two hash states
/// instead of hashing the padded key again. The two have the size of a cache
/// line, which is all that a signature reads of a merchant.
#[derive(Clone)]
pub struct HmacKey {
    inner: State,
    outer: State,
}

impl HmacKey {
    /// Expands a secret of any length.
    pub fn new(secret: &[u8]) -> Self {
        let mut padded = [0; BLOCK];
        if secret.len() > BLOCK {
            padded[..32].copy_from_slice(&hash::of(secret));
        } else {
            padded[..secret.len()].copy_from_slice(secret);
        }
        let state = |pad: u8| {
            let mut state = INITIAL;
            hash::block(&mut state, &padded.map(|byte| byte ^ pad));
            state
        };
        Self { inner: state(0x36), outer: state(0x5c) }
    }

    /// The tag of `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 32] {
        hash::finish_hash(self.outer, &hash::finish(self.inner, 1, message))
    }

    /// The tags of two messages, for less than twice the time of one. The messages are spent:
    /// they are padded where they lie.
    pub fn sign_two(keys: [&Self; 2], messages: [&mut Vec<u8>; 2]) -> [[u8; 32]; 2] {
        let inner = hash::finish_two(keys.map(|key| key.inner), 1, messages);
        hash::finish_two_hashes(keys.map(|key| key.outer), &inner)
    }

    /// Whether `tag` is the tag of `message`; constant time.
    pub fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        let expected = self.sign(message);
        tag.len() == expected.len()
            && expected.iter().zip(tag).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
    }
}

/// The verifying half of a merchant's key.
#[derive(Clone)]
pub enum MerchantKey {
    /// HMAC-SHA256 with a shared secret.
    Hmac(HmacKey),
    /// Ed25519 public key: boxed, so that it does not triple the common one.
    Ed25519(Box<VerifyingKey>),
}

impl MerchantKey {
    /// A shared secret.
    pub fn hmac(secret: &[u8]) -> Self {
        Self::Hmac(HmacKey::new(secret))
    }

    /// A public key; `None` when the 32 bytes are not a point of the curve.
    pub fn ed25519(public: &[u8]) -> Option<Self> {
        let key = VerifyingKey::from_bytes(public.try_into().ok()?).ok()?;
        (!key.is_weak()).then(|| Self::Ed25519(Box::new(key)))
    }

    /// Whether `signature` signs `canonical`.
    pub fn verify(&self, canonical: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Hmac(key) => key.verify(canonical, signature),
            Self::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(canonical, &signature).is_ok()),
        }
    }
}

/// The signing half, for clients.
#[derive(Clone)]
pub enum SigningKey {
    /// HMAC-SHA256 with a shared secret.
    Hmac(HmacKey),
    /// Ed25519 private key, boxed as the public one.
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl SigningKey {
    /// A shared secret.
    pub fn hmac(secret: &[u8]) -> Self {
        Self::Hmac(HmacKey::new(secret))
    }

    /// A private key seed of 32 bytes.
    pub fn ed25519(seed: &[u8; 32]) -> Self {
        Self::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(seed)))
    }

    /// Signs into `out`; returns the signature's length (32 or 64).
    pub fn sign(&self, canonical: &[u8], out: &mut [u8; 64]) -> usize {
        match self {
            Self::Hmac(key) => {
                out[..32].copy_from_slice(&key.sign(canonical));
                32
            }
            Self::Ed25519(key) => {
                out.copy_from_slice(&key.sign(canonical).to_bytes());
                64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn hmac_agrees_with_rfc_4231() {
        let cases = [
            (
                vec![0x0b; 20],
                b"Hi There".to_vec(),
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe".to_vec(),
                b"what do ya want for nothing?".to_vec(),
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                vec![0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First".to_vec(),
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, message, tag) in cases {
            let key = MerchantKey::hmac(&key);
            assert!(key.verify(&message, &hex(tag)));
            let mut wrong = hex(tag);
            wrong[31] ^= 1;
            assert!(!key.verify(&message, &wrong));
            assert!(!key.verify(&message, &wrong[..31]));
        }
    }

    #[test]
    fn two_tags_at_once_are_those_of_each_alone() {
        let keys = [HmacKey::new(b"one"), HmacKey::new(&[7; 131])];
        let mut messages = [b"a message".to_vec(), vec![9; 300]];
        let alone = [0, 1].map(|at| keys[at].sign(&messages[at]));
        let [one, two] = &mut messages;
        assert_eq!(HmacKey::sign_two([&keys[0], &keys[1]], [one, two]), alone);
    }

    #[test]
    fn ed25519_agrees_with_rfc_8032_test_2() {
        let seed: [u8; 32] =
            hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
                .try_into()
                .unwrap();
        let public = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let expected = hex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        let mut signature = [0; 64];
        assert_eq!(SigningKey::ed25519(&seed).sign(&[0x72], &mut signature), 64);
        assert_eq!(signature.to_vec(), expected);
        let key = MerchantKey::ed25519(&public).unwrap();
        assert!(key.verify(&[0x72], &signature));
        assert!(!key.verify(&[0x73], &signature));
    }

    #[test]
    fn weak_and_malformed_public_keys_are_refused() {
        assert!(MerchantKey::ed25519(&[0; 32]).is_none());
        assert!(MerchantKey::ed25519(&[1; 31]).is_none());
    }
}
