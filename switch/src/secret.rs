//! Secrets: a type that cannot be printed, and the key-encryption key that
//! wraps merchants' keys before they reach the log.
//!
//! Must never print, log or serialise what it holds. Tested with round trips
//! and with every bit of a wrapped key flipped.

use crate::config::hex;
use crate::engine::merchant::{KeyKind, MerchantKey};
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use protocol::id::MchId;
use std::path::{Path, PathBuf};

/// Bytes that are zeroed when dropped and that no format prints.
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes: the name makes every use visible in review.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from seeing that the zeros are never read.
        std::hint::black_box(&self.0);
    }
}

/// Why a secret could not be read or unwrapped. Never holds the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others than the owner may read the file.
    #[error("{} is readable by others (mode {mode:o}); set it to 600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not 64 hex digits.
    #[error("{} is not a key-encryption key; expected 64 hex digits", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The wrapped key is damaged, belongs to another merchant, or was wrapped
    /// by another key-encryption key.
    #[error("a merchant's key does not unwrap: damaged, or another key-encryption key")]
    Unwrap,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// Reads a file that only its owner may read.
///
/// # Errors
/// [`SecretError::Read`], [`SecretError::Exposed`].
pub fn read_private(path: &Path) -> Result<Secret, SecretError> {
    use std::io::Read;
    let read = |source| SecretError::Read { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(read)?;
    is_private(path, &file)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(read)?;
    Ok(Secret::new(bytes))
}

/// Makes sure that only its owner may read an open file.
///
/// # Errors
/// [`SecretError::Read`], [`SecretError::Exposed`].
pub fn is_private(path: &Path, file: &std::fs::File) -> Result<(), SecretError> {
    use std::os::unix::fs::PermissionsExt;
    let read = |source| SecretError::Read { path: path.to_owned(), source };
    let mode = file.metadata().map_err(read)?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(SecretError::Exposed { path: path.to_owned(), mode })
}

/// Writes a new file that only its owner may read, durably; an existing file is
/// an error.
///
/// # Errors
/// As the file system says.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The key-encryption key of a deployment: AES-256-GCM.
pub struct Kek(RandomizedNonceKey);

const WRAP_VERSION: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// Longest wrapped material a merchant's key may have, bytes.
pub const WRAPPED_MAX: usize = 128;
/// Longest secret that can be wrapped, bytes.
pub const SECRET_MAX: usize = WRAPPED_MAX - 1 - NONCE_LEN - TAG_LEN;

impl Kek {
    /// From 32 random bytes.
    pub fn new(key: &[u8; 32]) -> Self {
        // The algorithm's key length is 32: no other error exists.
        Self(RandomizedNonceKey::new(&AES_256_GCM, key).expect("32-byte key"))
    }

    /// Reads the key from a file of 64 hex digits that only its owner may read.
    ///
    /// # Errors
    /// [`SecretError`]: unreadable, readable by others, or not a key.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let text = read_private(path)?;
        let key = std::str::from_utf8(text.expose()).ok().and_then(|text| hex::decode(text.trim()));
        let key = key.map(Secret::new);
        let malformed = || SecretError::Malformed { path: path.to_owned() };
        let key = key.ok_or_else(malformed)?;
        Ok(Self::new(key.expose().try_into().map_err(|_| malformed())?))
    }

    /// Wraps `material`, bound to its merchant, key id and kind: it unwraps
    /// nowhere else. Layout: version, nonce, ciphertext, tag.
    ///
    /// # Errors
    /// [`SecretError::Random`] when the system gives no nonce.
    pub fn wrap(
        &self,
        mch_id: &MchId,
        key_id: u32,
        kind: KeyKind,
        material: &Secret,
    ) -> Result<MerchantKey, SecretError> {
        let mut sealed = material.expose().to_vec();
        let aad = Aad::from(binding(mch_id, key_id, kind));
        let nonce =
            self.0.seal_in_place_append_tag(aad, &mut sealed).map_err(|_| SecretError::Random)?;
        let mut wrapped = Vec::with_capacity(1 + NONCE_LEN + sealed.len());
        wrapped.push(WRAP_VERSION);
        wrapped.extend_from_slice(nonce.as_ref());
        wrapped.append(&mut sealed);
        Ok(MerchantKey { key_id, kind, material: wrapped })
    }

    /// Unwraps a merchant's key: an HMAC secret or an Ed25519 public key.
    ///
    /// # Errors
    /// [`SecretError::Unwrap`].
    pub fn unwrap(&self, mch_id: &MchId, key: &MerchantKey) -> Result<Secret, SecretError> {
        let (head, sealed) =
            key.material.split_at_checked(1 + NONCE_LEN).ok_or(SecretError::Unwrap)?;
        if head[0] != WRAP_VERSION {
            return Err(SecretError::Unwrap);
        }
        let nonce =
            Nonce::try_assume_unique_for_key(&head[1..]).map_err(|_| SecretError::Unwrap)?;
        let aad = Aad::from(binding(mch_id, key.key_id, key.kind));
        let mut opened = Secret::new(sealed.to_vec());
        let clear_len =
            self.0.open_in_place(nonce, aad, &mut opened.0).map_err(|_| SecretError::Unwrap)?.len();
        opened.0.truncate(clear_len);
        Ok(opened)
    }
}

fn binding(mch_id: &MchId, key_id: u32, kind: KeyKind) -> Vec<u8> {
    let mut aad = Vec::with_capacity(64);
    aad.extend_from_slice(b"payswitch merchant key\0");
    aad.push(kind as u8);
    aad.extend_from_slice(&key_id.to_le_bytes());
    aad.extend_from_slice(mch_id.as_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn merchant(id: &str) -> MchId {
        MchId::parse(id.as_bytes()).unwrap()
    }

    fn wrapped(kek: &Kek) -> MerchantKey {
        kek.wrap(&merchant("M1"), 7, KeyKind::HmacSha256, &Secret::new(vec![5; 32])).unwrap()
    }

    #[test]
    fn unwraps_what_it_wrapped_and_never_the_same_way_twice() {
        let kek = Kek::new(&[1; 32]);
        let (one, two) = (wrapped(&kek), wrapped(&kek));
        assert_ne!(one.material, two.material);
        assert_eq!(kek.unwrap(&merchant("M1"), &one).unwrap().expose(), [5; 32]);
        let longest = Secret::new(vec![9; SECRET_MAX]);
        let key = kek.wrap(&merchant("M1"), 1, KeyKind::HmacSha256, &longest).unwrap();
        assert_eq!(key.material.len(), WRAPPED_MAX);
    }

    #[test]
    fn any_flipped_bit_and_any_other_binding_is_refused() {
        let kek = Kek::new(&[1; 32]);
        let good = wrapped(&kek);
        for bit in 0..good.material.len() * 8 {
            let mut bad = good.clone();
            bad.material[bit / 8] ^= 1 << (bit % 8);
            assert!(kek.unwrap(&merchant("M1"), &bad).is_err(), "bit {bit}");
        }
        for len in 0..good.material.len() {
            let mut bad = good.clone();
            bad.material.truncate(len);
            assert!(kek.unwrap(&merchant("M1"), &bad).is_err(), "length {len}");
        }
        let other_id = MerchantKey { key_id: 8, ..good.clone() };
        let other_kind = MerchantKey { kind: KeyKind::Ed25519, ..good.clone() };
        assert!(kek.unwrap(&merchant("M1"), &other_id).is_err());
        assert!(kek.unwrap(&merchant("M1"), &other_kind).is_err());
        assert!(kek.unwrap(&merchant("M2"), &good).is_err());
        assert!(Kek::new(&[2; 32]).unwrap(&merchant("M1"), &good).is_err());
    }

    #[test]
    fn key_files_are_private_and_well_formed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek.key");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert!(matches!(Kek::load(&path), Err(SecretError::Read { .. })));
        write(&"ab".repeat(32), 0o600);
        assert!(Kek::load(&path).is_ok());
        write(&"ab".repeat(32), 0o640);
        assert!(matches!(Kek::load(&path), Err(SecretError::Exposed { mode: 0o640, .. })));
        for bad in ["", "abc", &"ab".repeat(31), &"zz".repeat(32)] {
            write(bad, 0o600);
            assert!(matches!(Kek::load(&path), Err(SecretError::Malformed { .. })), "{bad}");
        }
    }
}
