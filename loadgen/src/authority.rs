//! An authority of a drill's own: certificates that sites show while their old ones are
//! replaced, or run out.
//!
//! Its key never leaves this process. Tested by reading back what it writes.

use crate::exit::Failure;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clocks may be behind ours by so much.
const EARLIER: Duration = Duration::from_secs(3_600);
const YEAR: Duration = Duration::from_secs(366 * 86_400);

/// Signs certificates of sites.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, added to those in a PEM file.
    pub(crate) fn beside(ca: &Path) -> Result<Self, Failure> {
        let issuer = Self::issuer().map_err(|error| {
            Failure::environment(format_args!("cannot make an authority: {error}"))
        })?;
        let mut file = std::fs::File::options().append(true).open(ca);
        let written = file.as_mut().map_err(|error| std::io::Error::from(error.kind()));
        written.and_then(|file| file.write_all(issuer.pem().as_bytes())).map_err(|error| {
            Failure::environment(format_args!("cannot write {}: {error}", ca.display()))
        })?;
        Ok(Self { issuer })
    }

    fn issuer() -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
        let mut params = dated("payswitch drill CA", YEAR);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
    }

    /// Replaces a site's certificate and key by new ones, valid from an hour ago for `life`
    /// from now.
    pub(crate) fn renew(&self, site: u8, certs: &Path, life: Duration) -> Result<(), Failure> {
        let name = format!("site-{site}");
        let made = self.party(&format!("{name}.site.payswitch"), life);
        let (certificate, key) = made.map_err(|error| {
            Failure::environment(format_args!("cannot make a certificate: {error}"))
        })?;
        replace(&certs.join(format!("{name}.pem")), &certificate)?;
        replace(&certs.join(format!("{name}.key")), &key)
    }

    fn party(&self, dns_name: &str, life: Duration) -> Result<(String, String), rcgen::Error> {
        let mut params = CertificateParams::new(vec![dns_name.to_owned()])?;
        let dated = dated(dns_name, life);
        params.distinguished_name = dated.distinguished_name;
        (params.not_before, params.not_after) = (dated.not_before, dated.not_after);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

fn dated(name: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(EARLIER);
    params.not_after = epoch + now + life;
    params
}

/// Puts a private file in the place of another, whole at every moment.
fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let fresh = path.with_extension("new");
    let written = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&fresh, path));
    written.map_err(|error| {
        Failure::environment(format_args!("cannot write {}: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Credentials;

    #[test]
    fn certificates_can_be_used_and_belong_to_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, "").unwrap();
        let authority = Authority::beside(&ca).ok().unwrap();
        authority.renew(2, dir.path(), YEAR).ok().unwrap();
        let file = |name: &str| dir.path().join(name);
        let credentials = Credentials::load(&file("site-2.pem"), &file("site-2.key"), &ca);
        let server = credentials.ok().unwrap();
        let transport = crate::tls::transport(1, 0, YEAR, None);
        assert!(server.server(b"x", transport).is_ok(), "the key does not fit");
        let first = std::fs::read(file("site-2.pem")).unwrap();
        authority.renew(2, dir.path(), YEAR).ok().unwrap();
        assert_ne!(first, std::fs::read(file("site-2.pem")).unwrap());
    }
}
