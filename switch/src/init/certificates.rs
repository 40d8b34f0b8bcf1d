//! Development certificates: one authority, and per party a P-256 certificate
//! whose DNS name tells its role.

use super::{InitError, NewFile};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: Duration = Duration::from_secs(86_400);
const CA_DAYS: u32 = 3_650;
const CERTIFICATE_DAYS: u32 = 730;

/// The authority and the certificates of all parties, as files.
pub(super) fn make(sites: u16) -> Result<Vec<NewFile>, InitError> {
    let authority = authority()?;
    let mut new = vec![
        NewFile::public("certs/ca.pem", authority.pem()),
        NewFile::private("certs/ca.key", authority.key().serialize_pem()),
    ];
    for site in 1..=sites {
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        new.extend(party(&authority, &format!("site-{site}"), "site", &usages)?);
    }
    let client = [ExtendedKeyUsagePurpose::ClientAuth];
    new.extend(party(&authority, "gw-1", "gateway", &client)?);
    // Two operators: decisions about money need both.
    new.extend(party(&authority, "admin", "admin", &client)?);
    new.extend(party(&authority, "admin-2", "admin", &client)?);
    let server = [ExtendedKeyUsagePurpose::ServerAuth];
    new.extend(party(&authority, "native-1", "channel", &server)?);
    Ok(new)
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, InitError> {
    let mut params = named("payswitch development CA", CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok(CertifiedIssuer::self_signed(params, key)?)
}

fn party(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    role: &str,
    usages: &[ExtendedKeyUsagePurpose],
) -> Result<[NewFile; 2], InitError> {
    let dns_name = format!("{name}.{role}.payswitch");
    let alternatives = [dns_name.clone(), "localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(alternatives)?;
    let dated = named(&dns_name, CERTIFICATE_DAYS);
    params.distinguished_name = dated.distinguished_name;
    (params.not_before, params.not_after) = (dated.not_before, dated.not_after);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, authority)?;
    Ok([
        NewFile::public(format!("certs/{name}.pem"), certificate.pem()),
        NewFile::private(format!("certs/{name}.key"), key.serialize_pem()),
    ])
}

/// Name and dates: valid from yesterday, so that a clock slightly behind ours
/// accepts it.
fn named(name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + DAY * days;
    params
}
