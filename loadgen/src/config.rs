//! The configuration files that `payswitch init` writes for this program:
//! `gateway.toml` with its merchants, and `channel.toml`.
//!
//! Parsed strictly: an unknown key is an error. Paths are relative to their
//! file. Tested on texts as `init` writes them.

use crate::exit::Failure;
use crate::key::Key;
use protocol::id::MchId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Most merchants of one gateway.
const MERCHANTS_MAX: usize = 1_000_000;

/// `gateway.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayFile {
    /// The gateway's name, as in its certificate.
    pub(crate) name: String,
    /// Certificate chain, PEM.
    pub(crate) cert: PathBuf,
    /// Private key, PEM.
    pub(crate) key: PathBuf,
    /// Authorities of the sites' certificates, PEM.
    pub(crate) ca: PathBuf,
    /// Number of shards of the cluster.
    pub(crate) shards: u16,
    /// Merchants file.
    pub(crate) merchants: PathBuf,
    /// Where the simulated channel keeps its ledger.
    pub(crate) channel_ledger_dir: PathBuf,
    /// The cluster's sites.
    pub(crate) sites: Vec<SiteEntry>,
}

/// One site as a gateway sees it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SiteEntry {
    /// Number, from 1.
    pub(crate) id: u8,
    /// QUIC address of the gateway front.
    pub(crate) address: SocketAddr,
    /// Name in the site's certificate.
    pub(crate) server_name: String,
    /// Plain admin address (loopback): readiness and metrics.
    pub(crate) admin: SocketAddr,
}

/// `channel.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChannelFile {
    /// The channel's name.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Certificate chain, PEM.
    pub(crate) cert: PathBuf,
    /// Private key, PEM.
    pub(crate) key: PathBuf,
    /// Authorities of the switch's certificates, PEM.
    pub(crate) ca: PathBuf,
    /// Where its book is kept.
    pub(crate) ledger_dir: PathBuf,
}

/// The part of `site-N.toml` that the null server stands in for.
#[derive(Deserialize)]
pub(crate) struct SiteFile {
    /// Number of shards.
    pub(crate) shards: u16,
    /// The front to stand in for.
    pub(crate) gateway: SiteGateway,
}

/// `[gateway]` of `site-N.toml`, as far as it matters here.
#[derive(Deserialize)]
pub(crate) struct SiteGateway {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Certificate chain, PEM.
    pub(crate) cert: PathBuf,
    /// Private key, PEM.
    pub(crate) key: PathBuf,
    /// Authorities of the gateways' certificates, PEM.
    pub(crate) ca: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MerchantsFile {
    merchants: Vec<MerchantEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MerchantEntry {
    id: String,
    keys: Vec<KeyEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    key_id: u32,
    kind: String,
    secret: String,
}

/// A merchant this gateway speaks for. Has no `Debug`: it holds a secret. Two
/// cache lines, so that a request about it misses no more than two.
#[repr(align(128))]
pub(crate) struct Merchant {
    /// Its id.
    pub(crate) id: MchId,
    /// Which key signs.
    pub(crate) key_id: u32,
    /// The key.
    pub(crate) key: Key,
}

impl GatewayFile {
    /// Reads the file and makes its paths absolute.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let mut file: Self = read(path)?;
        let paths = [
            &mut file.cert,
            &mut file.key,
            &mut file.ca,
            &mut file.merchants,
            &mut file.channel_ledger_dir,
        ];
        paths.into_iter().for_each(|target| *target = beside(path, target));
        if file.sites.is_empty() {
            return Err(Failure::usage(format_args!("{}: no [[sites]]", path.display())));
        }
        if !(1..=900).contains(&file.shards) {
            return Err(Failure::usage(format_args!("{}: shards: 1 to 900", path.display())));
        }
        Ok(file)
    }

    /// Reads the merchants file.
    pub(crate) fn load_merchants(&self) -> Result<Vec<Merchant>, Failure> {
        let file: MerchantsFile = read(&self.merchants)?;
        if !(1..=MERCHANTS_MAX).contains(&file.merchants.len()) {
            let path = self.merchants.display();
            return Err(Failure::usage(format_args!("{path}: 1 to {MERCHANTS_MAX} merchants")));
        }
        let parse = |entry: &MerchantEntry| {
            parse_merchant(entry).map_err(|reason| {
                let path = self.merchants.display();
                Failure::usage(format_args!("{path}: merchant {}: {reason}", entry.id))
            })
        };
        file.merchants.iter().map(parse).collect()
    }
}

impl ChannelFile {
    /// Reads the file and makes its paths absolute.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let mut file: Self = read(path)?;
        let paths = [&mut file.cert, &mut file.key, &mut file.ca, &mut file.ledger_dir];
        paths.into_iter().for_each(|target| *target = beside(path, target));
        Ok(file)
    }
}

impl SiteFile {
    /// Reads the file and makes its paths absolute.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let mut file: Self = read(path)?;
        let gateway = &mut file.gateway;
        let paths = [&mut gateway.cert, &mut gateway.key, &mut gateway.ca];
        paths.into_iter().for_each(|target| *target = beside(path, target));
        Ok(file)
    }
}

fn parse_merchant(entry: &MerchantEntry) -> Result<Merchant, &'static str> {
    let id = MchId::parse(entry.id.as_bytes()).map_err(|_| "the id is not allowed")?;
    let key = entry.keys.first().ok_or("no key")?;
    let secret = hex(&key.secret).ok_or("the secret is not hex")?;
    let signing = match key.kind.as_str() {
        "hmac-sha256" => Key::hmac(&secret),
        "ed25519" => Key::ed25519(&secret).ok_or("the seed is not 32 bytes")?,
        _ => return Err("kind: hmac-sha256 or ed25519"),
    };
    Ok(Merchant { id, key_id: key.key_id, key: signing })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|value| value as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format_args!("cannot read {}: {error}", path.display())))?;
    // toml's message quotes the line at fault, which may be a secret: of a
    // merchants file only the position is told.
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| {
            text.get(..span.start).map_or(0, |before| before.matches('\n').count() + 1)
        });
        Failure::usage(format_args!("{} line {line}: {}", path.display(), error.message()))
    })
}

fn beside(file: &Path, target: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new(".")).join(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = r#"
name = "gw-1"
cert = "certs/gw-1.pem"
key = "certs/gw-1.key"
ca = "certs/ca.pem"
shards = 12
merchants = "gateway-merchants.toml"
channel_ledger_dir = "data/channel"

[[sites]]
id = 1
address = "127.0.0.1:7400"
server_name = "site-1.site.payswitch"
admin = "127.0.0.1:7402"
"#;

    fn written(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let (dir, path) = written("gateway.toml", GATEWAY);
        let file = GatewayFile::load(&path).unwrap();
        assert_eq!(file.cert, dir.path().join("certs/gw-1.pem"));
        assert_eq!(file.channel_ledger_dir, dir.path().join("data/channel"));
        assert_eq!(file.sites[0].admin.port(), 7402);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let (_dir, path) = written("gateway.toml", &format!("colour = 1\n{GATEWAY}"));
        let failure = GatewayFile::load(&path).err().unwrap();
        assert!(failure.message.contains("colour"), "{}", failure.message);
    }

    #[test]
    fn merchants_are_parsed_and_errors_never_show_a_secret() {
        let (dir, path) = written("gateway.toml", GATEWAY);
        let merchants = dir.path().join("gateway-merchants.toml");
        let entry = |secret: &str| {
            format!(
                "[[merchants]]\nid = \"M1\"\nkeys = [{{ key_id = 7, kind = \"hmac-sha256\", \
                 secret = {secret} }}]\n"
            )
        };
        std::fs::write(&merchants, entry("\"00ff\"")).unwrap();
        let file = GatewayFile::load(&path).unwrap();
        let loaded = file.load_merchants().ok().unwrap();
        assert_eq!((loaded[0].id.as_str(), loaded[0].key_id), ("M1", 7));
        for bad in ["\"5ecre7\u{e9}\"", "55555"] {
            std::fs::write(&merchants, entry(bad)).unwrap();
            let failure = file.load_merchants().err().unwrap();
            assert!(!failure.message.contains("ecre7"), "{}", failure.message);
        }
    }
}
