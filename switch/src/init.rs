//! `payswitch init`: a working deployment on loopback, with development
//! certificates, documented configuration files and demo merchants.
//!
//! Never touches a running system, and never an existing deployment unless
//! told to. Tested by loading and verifying everything it writes.

mod certificates;
mod files;
#[cfg(test)]
mod tests;

use crate::config::hex;
use crate::secret::write_private;
use aws_lc_rs::rand;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What `init` is asked for.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Directory of the deployment; created when absent.
    pub dir: PathBuf,
    /// Number of sites, 1 to 9.
    pub sites: u16,
    /// Number of demo merchants, 1 to 100 000.
    pub merchants: u32,
    /// First port; site n uses base + 10 (n - 1) to + 3, the channel base + 90.
    pub port_base: u16,
    /// The last site only votes and keeps the log: two sites and a witness, say.
    pub witness: bool,
    /// Replace an existing deployment's files.
    pub force: bool,
}

/// Why `init` wrote nothing, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A number is out of its range.
    #[error("--{option} {value}: allowed are {min} to {max}")]
    Range {
        /// Name of the option.
        option: &'static str,
        /// What was given.
        value: u64,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A witness beside too few sites.
    #[error("--witness: needs --sites 3 or more, the witness among them")]
    Witness,
    /// A file is there already.
    #[error("{} exists: this is a deployment already; choose another directory or pass --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is data that new keys could not read.
    #[error("{} holds data that new keys could not read; move it away first", path.display())]
    HasData {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// One file to be written.
struct NewFile {
    /// Relative to the deployment's directory.
    path: String,
    content: String,
    private: bool,
}

impl NewFile {
    fn public(path: impl Into<String>, content: String) -> Self {
        Self { path: path.into(), content, private: false }
    }

    fn private(path: impl Into<String>, content: String) -> Self {
        Self { path: path.into(), content, private: true }
    }
}

/// Ports of a deployment on loopback.
#[derive(Clone, Copy)]
struct Ports {
    base: u16,
}

impl Ports {
    fn gateway(self, site: u16) -> u16 {
        self.base + (site - 1) * 10
    }

    fn peer(self, site: u16) -> u16 {
        self.gateway(site) + 1
    }

    fn admin(self, site: u16) -> u16 {
        self.gateway(site) + 2
    }

    fn admin_tls(self, site: u16) -> u16 {
        self.gateway(site) + 3
    }

    fn channel(self) -> u16 {
        self.base + 90
    }
}

const SITES_MAX: u16 = 9;
const MERCHANTS_MAX: u32 = 100_000;
const PORT_MAX: u16 = u16::MAX - 100;

/// Writes a deployment and returns the paths of its files.
///
/// # Errors
/// [`InitError`]. Everything is made in memory and checked against what is
/// there before the first file is written.
pub fn init(options: &InitOptions) -> Result<Vec<PathBuf>, InitError> {
    range("sites", options.sites, 1, SITES_MAX)?;
    range("merchants", options.merchants, 1, MERCHANTS_MAX)?;
    range("port-base", options.port_base, 1, PORT_MAX)?;
    if options.witness && options.sites < 3 {
        return Err(InitError::Witness);
    }
    let mut new = certificates::make(options.sites)?;
    new.extend(configuration(options)?);
    let merchants = demo_merchants(options.merchants)?;
    new.push(NewFile::private("merchants.toml", merchants.switch));
    new.push(NewFile::private("gateway-merchants.toml", merchants.gateway));
    new.push(NewFile::private("kek.key", format!("{}\n", random_hex::<32>()?)));
    refuse_existing(options, &new)?;
    new.iter().map(|file| write(options, file)).collect()
}

fn range(
    option: &'static str,
    value: impl Into<u64>,
    min: u64,
    max: impl Into<u64>,
) -> Result<(), InitError> {
    let (value, max) = (value.into(), max.into());
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InitError::Range { option, value, min, max })
}

fn configuration(options: &InitOptions) -> Result<Vec<NewFile>, InitError> {
    let ports = Ports { base: options.port_base };
    let cluster = random_hex::<8>()?;
    let serving = options.sites - u16::from(options.witness);
    let sites = files::Sites { serving, all: options.sites };
    let mut new: Vec<_> = (1..=options.sites)
        .map(|site| {
            let text = files::site(site, sites, &cluster, ports);
            NewFile::public(format!("site-{site}.toml"), text)
        })
        .collect();
    new.push(NewFile::public("gateway.toml", files::gateway(serving, ports)));
    new.push(NewFile::public("channel.toml", files::channel(ports)));
    Ok(new)
}

fn refuse_existing(options: &InitOptions, new: &[NewFile]) -> Result<(), InitError> {
    let data = options.dir.join("data");
    if std::fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(InitError::HasData { path: data });
    }
    let existing = new.iter().map(|file| options.dir.join(&file.path)).find(|path| path.exists());
    match existing {
        Some(path) if !options.force => Err(InitError::Exists { path }),
        _ => Ok(()),
    }
}

fn write(options: &InitOptions, file: &NewFile) -> Result<PathBuf, InitError> {
    let path = options.dir.join(&file.path);
    match try_write(&path, file) {
        Ok(()) => Ok(path),
        Err(source) => Err(InitError::Write { path, source }),
    }
}

fn try_write(path: &Path, file: &NewFile) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // `refuse_existing` has judged: what is still there may be replaced.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if file.private {
        return write_private(path, file.content.as_bytes());
    }
    std::fs::write(path, &file.content)
}

fn random<const N: usize>() -> Result<[u8; N], InitError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| InitError::Random)?;
    Ok(bytes)
}

fn random_hex<const N: usize>() -> Result<String, InitError> {
    random::<N>().map(|bytes| hex::encode(&bytes))
}

/// The two sides of the demo merchants: what the switch verifies with, and
/// what their gateway signs with.
struct DemoMerchants {
    switch: String,
    gateway: String,
}

/// Merchants from this one on (counted from the end) sign with Ed25519. They
/// are the last ones because load is skewed towards the first: Ed25519 costs
/// some twenty times an HMAC.
const ED25519_MERCHANTS: u32 = 5;

fn demo_merchants(count: u32) -> Result<DemoMerchants, InitError> {
    let mut switch = files::MERCHANTS_HEAD.to_owned();
    let mut gateway = files::GATEWAY_MERCHANTS_HEAD.to_owned();
    let hmac_until = count - ED25519_MERCHANTS.min(count / 4);
    for number in 1..=count {
        let seed = random::<32>()?;
        let secret = hex::encode(&seed);
        let (kind, verifying) = if number <= hmac_until {
            ("hmac-sha256", format!("secret = \"{secret}\""))
        } else {
            let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| InitError::Random)?;
            ("ed25519", format!("public_key = \"{}\"", hex::encode(pair.public_key().as_ref())))
        };
        // Writing to a String cannot fail.
        let _ = write!(
            switch,
            "\n[[merchants]]\nid = \"M{number:06}\"\n\
             keys = [{{ key_id = 1, kind = \"{kind}\", {verifying} }}]\nlimits = {}\n",
            files::DEMO_LIMITS
        );
        let _ = write!(
            gateway,
            "\n[[merchants]]\nid = \"M{number:06}\"\n\
             keys = [{{ key_id = 1, kind = \"{kind}\", secret = \"{secret}\" }}]\n"
        );
    }
    Ok(DemoMerchants { switch, gateway })
}
