//! Whether a disk has room for what a story will write: a run that fills it would break off
//! at its end, with nothing to show.
//!
//! Estimates are from measured runs and on the large side. Pure but for the look at the
//! disk; tested with made-up disks.

use crate::exit::Failure;
use crate::plan::Mix;
use std::path::{Path, PathBuf};

const MIB: f64 = 1_048_576.0;
/// What a site takes of each request that changes something, in its log and checkpoints: 36
/// million requests with 4.2 million of these took 1.5 GiB in all.
const LOG_OF_CHANGE: f64 = 400.0;
/// Beside it blocks that are not full: so many bytes each, at most so many for each change
/// and in each second.
const BLOCK: f64 = 4_096.0;
const BLOCKS_OF_CHANGE: f64 = 3.0;
const BLOCKS_A_SECOND: f64 = 100.0;
/// What a site takes ahead, unless its configuration says something else.
const RESERVE_MIB: f64 = 256.0;
const SEGMENT_MIB: f64 = 64.0;
const SEGMENTS: f64 = 3.0;
/// A record of the acknowledgement log: one for each request, one for the event of each
/// change, one for the question at the end.
const ACK: f64 = 48.0;
/// What the channel's ledger takes of each change: a charge, at times what undoes it.
const LEDGER: f64 = 96.0;

/// What a story will do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Work<'a> {
    /// Requests, all in all.
    pub(crate) requests: f64,
    /// What they do.
    pub(crate) mix: Mix,
    /// How long that takes.
    pub(crate) seconds: f64,
    /// Sites on the same disk.
    pub(crate) sites: u8,
    /// Lines of the sites' configurations, and what takes their place.
    pub(crate) settings: &'a [(String, String)],
}

impl Work<'_> {
    /// Bytes that it will write.
    pub(crate) fn bytes(&self) -> f64 {
        let all = self.mix.all().max(1.0);
        let changes = self.requests * (all - f64::from(self.mix.query)) / all;
        let blocks = (changes * BLOCKS_OF_CHANGE).min(self.seconds * BLOCKS_A_SECOND);
        let log = changes * LOG_OF_CHANGE + blocks * BLOCK;
        let gateway = (self.requests + 2.0 * changes) * ACK + changes * LEDGER;
        f64::from(self.sites) * (self.ahead() + log) + gateway
    }

    /// What a site takes before it has done anything.
    fn ahead(&self) -> f64 {
        let reserve = self.setting("reserve_mib").unwrap_or(RESERVE_MIB);
        (reserve + SEGMENTS * self.setting("segment_mib").unwrap_or(SEGMENT_MIB)) * MIB
    }

    fn setting(&self, name: &str) -> Option<f64> {
        let value = |(_, to): &(String, String)| {
            let (key, value) = to.split_once('=')?;
            (key.trim() == name).then(|| value.trim().parse().ok())?
        };
        self.settings.iter().find_map(value)
    }
}

/// Refuses so many bytes when there is no room for them in a folder, or among temporary
/// files.
pub(crate) fn check(dir: Option<&Path>, bytes: f64) -> Result<(), Failure> {
    let dir = dir.map_or_else(std::env::temp_dir, PathBuf::from);
    // The folder itself may not be there yet.
    let whole = std::path::absolute(&dir).unwrap_or_else(|_| dir.clone());
    let there = whole.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let facts = rustix::fs::statvfs(there).map_err(|error| {
        Failure::environment(format_args!("cannot look at {}: {error}", there.display()))
    })?;
    fits(&dir, bytes, facts.f_bavail as f64 * facts.f_frsize as f64)
}

fn fits(dir: &Path, needed: f64, free: f64) -> Result<(), Failure> {
    if needed <= free {
        return Ok(());
    }
    let (dir, [needed, free]) = (dir.display(), [needed, free].map(|bytes| bytes / MIB));
    Err(Failure::environment(format_args!(
        "no room in {dir}: about {needed:.0} MiB will be written and {free:.0} MiB are free; choose \
         another --dir, less load or less time"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    const GIB: f64 = 1024.0 * MIB;

    fn half_an_hour(minutes: f64) -> Work<'static> {
        let seconds = minutes * 60.0;
        let mix = Mix::of(10, 88, 2);
        Work { requests: 20_000.0 * seconds, mix, seconds, sites: 3, settings: &[] }
    }

    #[test]
    fn what_was_measured_fits_into_the_estimate_and_not_much_more() {
        // 36 million requests: three logs of 1.5 GiB, what was taken ahead included,
        // 43 million acknowledgements and 4.2 million charges.
        let measured = 3.0 * 1.5 * GIB + 43e6 * 48.0 + 4.2e6 * 48.0;
        let estimate = half_an_hour(30.0).bytes();
        assert!((measured..measured * 2.0).contains(&estimate), "{:.1} GiB", estimate / GIB);
    }

    #[test]
    fn a_long_run_on_a_small_disk_is_refused_and_a_short_one_is_not() {
        let dir = Path::new("/small");
        let refused = fits(dir, half_an_hour(30.0).bytes(), 5.0 * GIB).err().unwrap();
        assert_eq!(refused.exit, Exit::Environment);
        let text = &refused.message;
        assert!(
            text.starts_with("no room in /small: about ") && text.contains("5120 MiB are free")
        );
        assert!(!text.contains('\n'));
        assert_eq!(fits(dir, half_an_hour(30.0).bytes(), 20.0 * GIB), Ok(()));
        assert_eq!(fits(dir, half_an_hour(0.1).bytes(), 1.6 * GIB), Ok(()));
        // Its sites could not even take what they take ahead.
        assert!(fits(dir, half_an_hour(0.1).bytes(), 1.0 * GIB).is_err());
    }

    #[test]
    fn sites_that_take_less_ahead_need_less() {
        let settings = [("reserve_mib", 16), ("segment_mib", 1)]
            .map(|(key, value)| (format!("# {key} = 0"), format!("{key} = {value}")));
        let small = Work { settings: &settings, requests: 0.0, ..half_an_hour(0.0) };
        assert!((small.bytes() - 3.0 * 19.0 * MIB).abs() < 1.0);
    }

    #[test]
    fn a_disk_is_looked_at_where_the_folder_will_be() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check(Some(&dir.path().join("not/yet/there")), 0.0), Ok(()));
        let refused = check(Some(dir.path()), 1e30).err().unwrap();
        assert!(refused.message.contains(dir.path().to_str().unwrap()), "{}", refused.message);
    }
}
