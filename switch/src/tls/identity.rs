//! Who a certificate belongs to, and what its owner may do.

use rustls::pki_types::{CertificateDer, ServerName};

/// Who may do what: the role is in the certificate's DNS name,
/// `NAME.ROLE.payswitch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A site of the cluster.
    Site,
    /// A caller.
    Gateway,
    /// An operator.
    Admin,
    /// A payment service, or our client certificate towards one.
    Channel,
}

impl Role {
    /// The part of the DNS name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
            Self::Channel => "channel",
        }
    }

    fn from_label(label: &str) -> Option<Self> {
        [Self::Site, Self::Gateway, Self::Admin, Self::Channel]
            .into_iter()
            .find(|role| role.label() == label)
    }
}

/// Who a verified certificate belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What it may be used for.
    pub role: Role,
    /// Name within the role, at most 32 bytes.
    pub name: String,
}

/// Why a certificate gives no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// No DNS name of the form `NAME.ROLE.payswitch`.
    #[error("the certificate has no name of the form NAME.ROLE.payswitch")]
    NoRole,
    /// Several names with a role.
    #[error("the certificate has more than one name of the form NAME.ROLE.payswitch")]
    Ambiguous,
}

/// Reads the identity from a certificate whose chain TLS has verified.
///
/// # Errors
/// [`IdentityError`]: exactly one name must carry a role.
pub fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
    let parsed =
        webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Malformed)?;
    let mut identities = parsed.valid_dns_names().filter_map(parse_identity);
    let identity = identities.next().ok_or(IdentityError::NoRole)?;
    if identities.next().is_some() {
        return Err(IdentityError::Ambiguous);
    }
    Ok(identity)
}

/// As [`identity`], of a connection's other end.
///
/// # Errors
/// [`IdentityError`]; [`IdentityError::NoRole`] also when there is no
/// certificate, which our settings do not let happen.
pub fn peer_identity(connection: &quinn::Connection) -> Result<Identity, IdentityError> {
    let chain = connection.peer_identity().ok_or(IdentityError::NoRole)?;
    let chain =
        chain.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| IdentityError::NoRole)?;
    identity(chain.first().ok_or(IdentityError::NoRole)?)
}

/// Which of the configured sites is at a connection's other end: the one, from
/// 1, whose configured name is in the certificate. A certificate for several
/// sites, a wildcard for example, is no site's.
///
/// # Errors
/// [`SiteError`].
pub fn peer_site<'n>(
    connection: &quinn::Connection,
    names: impl Iterator<Item = &'n str>,
) -> Result<u8, SiteError> {
    let identity = peer_identity(connection)?;
    if identity.role != Role::Site {
        return Err(SiteError::Role(identity.role.label()));
    }
    let chain = connection.peer_identity().ok_or(IdentityError::NoRole)?;
    let chain =
        chain.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| IdentityError::NoRole)?;
    let certificate = chain.first().ok_or(IdentityError::NoRole)?;
    let parsed =
        webpki::EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Malformed)?;
    let mut sites = (1_u8..).zip(names).filter(|(_, name)| {
        ServerName::try_from(*name)
            .is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
    });
    match (sites.next(), sites.next()) {
        (Some((site, _)), None) => Ok(site),
        (None, _) => Err(SiteError::Unknown(identity.name)),
        _ => Err(SiteError::Several),
    }
}

/// Why a certificate is no configured site's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// It has no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its role is another.
    #[error("its certificate has the role {0}, not site")]
    Role(&'static str),
    /// Its site is not configured.
    #[error("its certificate is for site {0:?}, which is not configured")]
    Unknown(String),
    /// It is for more than one site.
    #[error("its certificate is for several sites")]
    Several,
}

fn parse_identity(dns_name: &str) -> Option<Identity> {
    let dns_name = dns_name.to_ascii_lowercase();
    let (name, role) = dns_name.strip_suffix(".payswitch")?.rsplit_once('.')?;
    let role = Role::from_label(role)?;
    let plain = !name.contains(['.', '*']) && (1..=32).contains(&name.len());
    plain.then(|| Identity { role, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_roles() {
        let parsed =
            |name: &str| parse_identity(name).map(|identity| (identity.role, identity.name));
        assert_eq!(parsed("gw-1.gateway.payswitch"), Some((Role::Gateway, "gw-1".to_owned())));
        assert_eq!(parsed("ADMIN.Admin.PaySwitch"), Some((Role::Admin, "admin".to_owned())));
        let long = format!("{}.site.payswitch", "x".repeat(33));
        for bad in [
            "localhost",
            "payswitch",
            ".payswitch",
            "gateway.payswitch",
            ".gateway.payswitch",
            "*.gateway.payswitch",
            "a.b.gateway.payswitch",
            "gw-1.root.payswitch",
            "gw-1.gateway.payswitch.example.com",
            "gw-1.gateway.notpayswitch",
            long.as_str(),
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
