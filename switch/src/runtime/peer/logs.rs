//! Which log each site speaks for.
//!
//! Votes and acknowledgements rest on what a site's log says that it promised. A
//! site whose disk was wiped or exchanged would begin again under its old number
//! without knowing its promises, and two such votes make a second history. Every
//! log has a random number from its creation (docs/LOG.md); greetings carry it,
//! and a site remembers the log of every other one from their first meeting on,
//! durably, before it believes it anything. Another log under a known number is
//! refused for good: the site comes back under a new number.
//!
//! The file is text, rewritten as a whole; its last line is a checksum. Tested
//! below, by sites on loopback in `super::tests`, and with real processes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::runtime::{ServeError, environment};

/// In the site's `data_dir`.
const FILE: &str = "peers";
/// Far above what the most sites need.
const FILE_MAX: u64 = 64 << 10;

/// This site's log.
pub struct OwnLog {
    /// Its number.
    pub id: u64,
    /// It holds nothing yet: this site has promised nothing by it.
    pub is_empty: Arc<AtomicBool>,
    /// Called once, on the peer thread, when a site that knows another log of this
    /// one refuses the empty one: this is no new site, but one that lost its past.
    pub disowned: Box<dyn Fn(u8) + Send>,
}

/// Why a site is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// It had another log before.
    #[error(
        "its log {found:016x} is not the one that site {site} had ({known:016x}): its disk was \
         wiped or exchanged, and with it its votes and blocks are gone. A number is never used \
         again: `payswitch admin member remove {site}` where it is a member, then bring the site \
         up under a fresh number with `member add` (docs/OPERATIONS.md, Replace a site)"
    )]
    Other {
        /// The site.
        site: u8,
        /// The log that it had.
        known: u64,
        /// The log that it has.
        found: u64,
    },
    /// It could not be written down.
    #[error("its log cannot be written down in {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The logs of the other sites, as they were when they were met first.
pub(super) struct KnownLogs {
    path: PathBuf,
    cluster: u64,
    logs: BTreeMap<u8, u64>,
}

impl KnownLogs {
    /// What was remembered; nothing where there is no file yet.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or of another cluster.
    pub(super) fn load(data_dir: &Path, cluster: u64) -> Result<Self, ServeError> {
        let path = data_dir.join(FILE);
        let damaged = || ServeError::Damaged(format!("{}: {DAMAGED}", path.display()));
        let bytes = match fs::metadata(&path) {
            Ok(found) if found.len() > FILE_MAX => return Err(damaged()),
            Ok(_) => fs::read(&path).map_err(|error| environment(&path, &error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, cluster, logs: BTreeMap::new() });
            }
            Err(error) => return Err(environment(&path, &error)),
        };
        let logs = std::str::from_utf8(&bytes).ok().and_then(|text| parse(text, cluster));
        let logs = logs.ok_or_else(damaged)?;
        Ok(Self { path, cluster, logs })
    }

    /// A site speaks for a log: the one it had, or the first that is heard of, which
    /// is remembered from now on.
    ///
    /// # Errors
    /// [`LogError`]; the site must not be listened to.
    pub(super) fn meet(&mut self, site: u8, found: u64) -> Result<(), LogError> {
        match self.logs.get(&site).copied() {
            Some(known) if known == found => return Ok(()),
            Some(known) => return Err(LogError::Other { site, known, found }),
            None => {}
        }
        self.logs.insert(site, found);
        self.write().map_err(|error| {
            self.logs.remove(&site);
            LogError::Write { path: self.path.clone(), error }
        })
    }

    fn write(&self) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(render(&self.logs, self.cluster).as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

const DAMAGED: &str = "damaged, or of another cluster. It holds which log each other site has; \
    restore it, or delete it to learn that anew from the sites that run";

fn render(logs: &BTreeMap<u8, u64>, cluster: u64) -> String {
    let mut text = format!("payswitch-peers 1 cluster {cluster:016x}\n");
    for (site, log) in logs {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "site {site} log {log:016x}");
    }
    let sum = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "crc32c {sum:08x}");
    text
}

/// `None` unless [`render`] makes exactly this text of what it says.
fn parse(text: &str, cluster: u64) -> Option<BTreeMap<u8, u64>> {
    let mut logs = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("site ")) {
        let (site, log) = line.split_once(" log ")?;
        logs.insert(site.parse().ok()?, u64::from_str_radix(log, 16).ok()?);
    }
    (render(&logs, cluster) == text).then_some(logs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_log_of_a_site_is_remembered_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let load = || KnownLogs::load(dir.path(), 7).unwrap();
        let mut known = load();
        known.meet(2, 0xfeed).unwrap();
        known.meet(2, 0xfeed).unwrap();
        known.meet(3, 1).unwrap();
        assert!(matches!(known.meet(2, 1), Err(LogError::Other { known: 0xfeed, .. })));
        let mut again = load();
        assert_eq!(again.logs, BTreeMap::from([(2, 0xfeed), (3, 1)]));
        let error = again.meet(3, 2).unwrap_err().to_string();
        assert!(error.contains("member remove 3") && error.contains("member add"), "{error}");
    }

    #[test]
    fn what_is_not_written_down_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownLogs::load(dir.path(), 7).unwrap();
        fs::create_dir(dir.path().join("peers.new")).unwrap();
        assert!(matches!(known.meet(2, 5), Err(LogError::Write { .. })));
        fs::remove_dir(dir.path().join("peers.new")).unwrap();
        known.meet(2, 6).unwrap();
    }

    #[test]
    fn a_file_that_is_not_whole_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownLogs::load(dir.path(), 7).unwrap();
        known.meet(2, 5).unwrap();
        known.meet(3, 6).unwrap();
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let is_damaged = |cluster| match KnownLogs::load(dir.path(), cluster) {
            Err(ServeError::Damaged(text)) => text.contains("restore it"),
            _ => false,
        };
        for end in 0..text.len() {
            fs::write(&path, &text[..end]).unwrap();
            assert!(is_damaged(7), "cut at {end}");
        }
        for at in 0..text.len() {
            // The second is no text any more.
            for flip in [1, 0x80] {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= flip;
                fs::write(&path, bytes).unwrap();
                assert!(is_damaged(7), "changed at {at}");
            }
        }
        fs::write(&path, vec![b' '; FILE_MAX as usize + 1]).unwrap();
        assert!(is_damaged(7), "too long");
        fs::write(&path, &text).unwrap();
        assert!(is_damaged(8), "of another cluster");
        assert_eq!(KnownLogs::load(dir.path(), 7).unwrap().logs.len(), 2);
    }
}
