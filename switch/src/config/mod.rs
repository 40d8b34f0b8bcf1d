//! The configuration: one strict TOML file, read and judged as a whole before
//! a port opens. Unknown keys, values out of range and contradictions are
//! errors; nothing is clamped, and all problems are listed at once.
//!
//! Must never know a socket or a running part: it only turns a file into
//! values. Tested from files that `init` writes and from a table of bad values.

mod check;
mod engine;
pub mod hex;
pub mod merchants;
mod sections;
#[cfg(test)]
mod tests;

pub use sections::*;

use crate::replica::Timing;
use crate::secret::SecretError;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::{Path, PathBuf};

/// Everything one site's process is told at start. Paths are resolved against
/// the file's directory.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Identity of the cluster; a log of another cluster is refused.
    pub cluster: u64,
    /// This site's number.
    pub site: u16,
    /// Where log and state live.
    pub data_dir: PathBuf,
    /// Number of shards; fixed when the cluster is created.
    pub shards: u16,
    /// All sites, by number.
    pub sites: Vec<SiteConfig>,
    /// The QUIC front.
    pub gateway: GatewayConfig,
    /// The operators' HTTP server.
    pub admin: AdminConfig,
    /// The log.
    pub log: LogConfig,
    /// How far apart the sites are.
    pub replication: ReplicationConfig,
    /// The worker.
    pub worker: WorkerConfig,
    /// The engine's settings that are not per channel.
    pub engine: EngineSection,
    /// Channels, by number.
    pub channels: Vec<ChannelSection>,
    /// Routing rules in order.
    pub routes: Vec<RouteSection>,
    /// Channels when no rule matches.
    pub default_route: Vec<u16>,
    /// Callers, by number.
    pub gateways: Vec<GatewayEntry>,
    /// Secrets.
    pub keys: KeysConfig,
    /// First contents.
    pub bootstrap: BootstrapConfig,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// Keys or values are wrong: all of them.
    #[error("{}: {}", path.display(), Listed(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problems: Vec<Problem>,
    },
    /// The file holds secrets that others can read.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// One thing that is wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key.
    pub key: String,
    /// What it says and what would be allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, "{one}"),
            all => {
                write!(f, "{} problems", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl Config {
    /// Reads and judges `path`.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read, is not TOML, or says something
    /// that is not allowed; then every problem is in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// As [`Config::load`], from the file's text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut document = Document::parse(path, text, Quotes::Text)?;
        let config = Self::from_document(path, &mut document);
        let mut problems = document.finish();
        let Some(mut config) = config else {
            return Err(ConfigError::Invalid { path: path.to_owned(), problems });
        };
        check::check(&config, &mut problems);
        if !problems.is_empty() {
            return Err(ConfigError::Invalid { path: path.to_owned(), problems });
        }
        config.resolve_paths(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// `None` when a section could not be read; the document holds the reasons.
    /// Every section is read before any is missed, so that all are reported.
    fn from_document(path: &Path, document: &mut Document) -> Option<Self> {
        let cluster = document.required::<String>("cluster");
        let cluster = cluster.and_then(|text| document.cluster(&text));
        let site = document.required("site");
        let data_dir = document.required("data_dir");
        let shards = document.optional("shards", || 12);
        let sites = document.list("sites");
        let gateway = document.required("gateway");
        let admin = document.required("admin");
        let log = document.optional("log", LogConfig::default);
        let replication = document.optional("replication", ReplicationConfig::default);
        let worker = document.optional("worker", WorkerConfig::default);
        let engine = document.optional("engine", EngineSection::default);
        let channels = document.list("channels");
        let routes = document.list("routes");
        let default_route = document.required("default_route");
        let gateways = document.list("gateways");
        let keys = document.required("keys");
        let bootstrap = document.optional("bootstrap", BootstrapConfig::default);
        Some(Self {
            path: path.to_owned(),
            cluster: cluster?,
            site: site?,
            data_dir: data_dir?,
            shards: shards?,
            sites: sites?,
            gateway: gateway?,
            admin: admin?,
            log: log?,
            replication: replication?,
            worker: worker?,
            engine: engine?,
            channels: channels?,
            routes: routes?,
            default_route: default_route?,
            gateways: gateways?,
            keys: keys?,
            bootstrap: bootstrap?,
        })
    }

    fn resolve_paths(&mut self, directory: &Path) {
        let resolve = |path: &mut PathBuf| *path = directory.join(&*path);
        resolve(&mut self.data_dir);
        resolve(&mut self.gateway.cert);
        resolve(&mut self.gateway.key);
        resolve(&mut self.gateway.ca);
        resolve(&mut self.admin.cert);
        resolve(&mut self.admin.key);
        resolve(&mut self.admin.ca);
        self.admin.admin_cert.as_mut().map(resolve);
        self.admin.admin_key.as_mut().map(resolve);
        resolve(&mut self.keys.kek);
        self.bootstrap.merchants.as_mut().map(resolve);
        for channel in &mut self.channels {
            resolve(&mut channel.cert);
            resolve(&mut channel.key);
            resolve(&mut channel.ca);
        }
    }

    /// The worker's log.
    pub fn worker_log(&self) -> storage::LogConfig {
        storage::LogConfig {
            dir: self.data_dir.join("worker-0"),
            backend: match self.log.backend {
                LogBackend::Auto => storage::Backend::Auto,
                LogBackend::Uring => storage::Backend::Uring,
                LogBackend::Blocking => storage::Backend::Blocking,
            },
            cluster: self.cluster,
            worker: 0,
            segment_bytes: u64::from(self.log.segment_mib) << 20,
            batch_max_bytes: (self.log.batch_max_kib as usize) << 10,
            reserve_bytes: u64::from(self.log.reserve_mib) << 20,
            idle_seal_us: self.log.idle_seal_ms * 1000,
        }
    }

    /// The time-outs between the sites.
    pub fn timing(&self) -> Timing {
        let ReplicationConfig { round_trip_ms, election_ms } = self.replication;
        match election_ms {
            0 => Timing::of_round_trip(round_trip_ms * 1_000),
            _ => Timing::of_election(election_ms * 1_000),
        }
    }

    /// The sites that vote when the cluster is made.
    pub fn first_voters(&self) -> Vec<u64> {
        self.sites.iter().filter(|site| site.voter).map(|site| u64::from(site.id)).collect()
    }

    /// The sites that never lead.
    pub fn witnesses(&self) -> Vec<u64> {
        self.sites.iter().filter(|site| site.witness).map(|site| u64::from(site.id)).collect()
    }

    /// This site's entry.
    pub fn this_site(&self) -> &SiteConfig {
        // `check` refuses a `site` that is not in the list.
        &self.sites[usize::from(self.site) - 1]
    }
}

/// A parsed file whose sections are taken out one by one, so that one bad
/// section does not hide the problems of the next.
pub(crate) struct Document {
    table: toml::Table,
    problems: Vec<Problem>,
    quotes: Quotes,
}

/// Whether what is said of a file may repeat its text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quotes {
    /// It tells the operator what to look for.
    Text,
    /// A misplaced secret would be repeated: only places are told.
    Nothing,
}

impl Document {
    pub(crate) fn parse(path: &Path, text: &str, quotes: Quotes) -> Result<Self, ConfigError> {
        let table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: match quotes {
                Quotes::Text => error.to_string().trim_end().to_owned(),
                Quotes::Nothing => placed(&error, text),
            },
        })?;
        Ok(Self { table, problems: Vec::new(), quotes })
    }

    fn read<T: DeserializeOwned>(&mut self, key: &str, value: toml::Value) -> Option<T> {
        match value.try_into::<T>() {
            Ok(section) => Some(section),
            Err(error) => {
                let message = match self.quotes {
                    Quotes::Nothing if quotes_a_value(error.message()) => {
                        let told = flatten(&error);
                        let key = told.strip_prefix(error.message()).unwrap_or_default();
                        format!("a value of the wrong type{key}")
                    }
                    _ => flatten(&error),
                };
                self.problem(key, message);
                None
            }
        }
    }

    fn problem(&mut self, key: &str, message: String) {
        self.problems.push(Problem { key: key.to_owned(), message });
    }

    pub(crate) fn required<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        match self.table.remove(key) {
            Some(value) => self.read(key, value),
            None => {
                self.problem(key, "missing; it has no default".to_owned());
                None
            }
        }
    }

    fn optional<T: DeserializeOwned>(&mut self, key: &str, default: fn() -> T) -> Option<T> {
        match self.table.remove(key) {
            Some(value) => self.read(key, value),
            None => Some(default()),
        }
    }

    pub(crate) fn list<T: DeserializeOwned>(&mut self, key: &str) -> Option<Vec<T>> {
        let values = match self.table.remove(key) {
            None => return Some(Vec::new()),
            Some(toml::Value::Array(values)) => values,
            Some(other) => {
                let kind = other.type_str();
                self.problem(key, format!("is a {kind}; expected [[{key}]] tables"));
                return None;
            }
        };
        let mut complete = true;
        let mut list = Vec::with_capacity(values.len());
        for (at, value) in values.into_iter().enumerate() {
            match self.read(&format!("{key}[{at}]"), value) {
                Some(entry) => list.push(entry),
                None => complete = false,
            }
        }
        complete.then_some(list)
    }

    fn cluster(&mut self, text: &str) -> Option<u64> {
        let digits = (1..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        let value = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        let value = value.filter(|value| *value != 0);
        if value.is_none() {
            self.problem("cluster", format!("{text:?}; allowed: 1 to 16 hex digits, not zero"));
        }
        value
    }

    /// The problems found, with the keys that nobody asked for.
    pub(crate) fn finish(mut self) -> Vec<Problem> {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for key in unknown {
            self.problem(&key, "unknown key".to_owned());
        }
        self.problems
    }
}

/// The parser's message in one line: it puts the key on a second one.
fn flatten(error: &toml::de::Error) -> String {
    error.to_string().lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What the parser says, and where, without the line that it shows.
fn placed(error: &toml::de::Error, text: &str) -> String {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    format!("{} at line {line} column {column}", error.message())
}

/// Whether serde's words repeat a value, which could be a misplaced secret.
pub(crate) fn quotes_a_value(message: &str) -> bool {
    message.starts_with("invalid type") || message.starts_with("invalid value")
}
