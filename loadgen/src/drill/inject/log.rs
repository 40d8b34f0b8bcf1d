//! What is done to the log of a site that was killed: a torn tail, a flipped bit.

use super::super::script::{Fault, Script};
use crate::exit::{Exit, Failure};
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;
/// Read at once; whole blocks.
const PIECE: u64 = 1 << 20;
/// The front of a batch whose rest never reached the disk.
const TORN: &[u8] = b"PSBT half a header";
/// What a switch says of it.
const CUT: &str = "a torn tail of ";
/// What a switch ends with that refuses its log.
const REFUSED: Option<i32> = Some(2);

impl Script<'_> {
    pub(super) async fn torn_tail(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("kill -9 of site {site}, torn tail")).await;
        self.stage.kill(site).await?;
        self.damage(site, tear).await?;
        tokio::time::sleep(hold).await;
        let before = self.stage.printed(site).len();
        self.stage.start(site).await?;
        if !self.stage.printed(site).get(before..).unwrap_or_default().contains(CUT) {
            let text = format_args!("site {site} does not say that it cut a torn tail");
            return Err(Failure::new(Exit::Missed, text));
        }
        self.recover(&mut fault).await?;
        self.returned(&mut fault).await;
        Ok(fault)
    }

    /// The site is out for good, its log is for an operator: another takes its place under a
    /// fresh number.
    pub(super) async fn damaged_middle(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("kill -9 of site {site}, damaged log")).await;
        self.stage.kill(site).await?;
        // From here on its log is no evidence: what counts is in all the others.
        self.stage.leave_out(site);
        self.damage(site, flip).await?;
        let before = self.stage.printed(site).len();
        self.stage.start_only(site)?;
        let (code, printed) = self.stage.end_of(site).await?;
        let said = printed.get(before..).unwrap_or_default();
        if code != REFUSED || !said.contains(".wal offset ") {
            let text = format_args!("site {site} does not refuse its damaged log: {code:?}");
            return Err(Failure::new(Exit::Missed, text));
        }
        self.stage.session.note(format!("site {site} refuses its log"));
        tokio::time::sleep(hold).await;
        fault.healed = Instant::now();
        let spare = self.stage.replace(site).await?;
        fault.what = format!("{}; site {spare} takes its place", fault.what);
        self.level_of(spare, &mut fault).await?;
        Ok(fault)
    }

    /// On another thread: the load on this one must not wait for so much reading.
    async fn damage(
        &self,
        site: u8,
        damage: fn(&Path) -> Result<(), Error>,
    ) -> Result<(), Failure> {
        let log = self.stage.deployment.log_dir(site);
        let done = tokio::task::spawn_blocking(move || damage(&log)).await;
        let done = done.unwrap_or_else(|error| Err(Error::other(error)));
        done.map_err(|error| Failure::environment(format_args!("cannot damage the log: {error}")))
    }
}

/// Segments of a log with the ends of their data, in order.
fn segments(log: &Path) -> Result<Vec<(PathBuf, u64)>, Error> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(log)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.into_iter().map(|path| data_end(&path).map(|end| (path, end))).collect()
}

/// First block of a file from which on all is zero.
fn data_end(path: &Path) -> Result<u64, Error> {
    let file = File::open(path)?;
    let mut end = file.metadata()?.len() / BLOCK * BLOCK;
    let mut piece = vec![0; PIECE as usize];
    while end > 0 {
        let from = end.saturating_sub(PIECE);
        let piece = &mut piece[..(end - from) as usize];
        file.read_exact_at(piece, from)?;
        if let Some(at) = piece.iter().rposition(|byte| *byte != 0) {
            return Ok((from + at as u64) / BLOCK * BLOCK + BLOCK);
        }
        end = from;
    }
    Ok(0)
}

fn nothing() -> Error {
    Error::new(ErrorKind::NotFound, "there is no data in it")
}

/// Writes the front of a batch behind the last.
fn tear(log: &Path) -> Result<(), Error> {
    let mut segments = segments(log)?;
    // A segment that was only prepared has at most its header.
    while segments.len() > 1 && segments.last().is_some_and(|(_, end)| *end <= BLOCK) {
        segments.pop();
    }
    let (path, end) = segments.pop().ok_or_else(nothing)?;
    File::options().write(true).open(path)?.write_all_at(TORN, end)
}

/// Flips a bit in the middle of the first segment's data.
fn flip(log: &Path) -> Result<(), Error> {
    let (path, end) = segments(log)?.into_iter().next().ok_or_else(nothing)?;
    if end < 4 * BLOCK {
        return Err(nothing());
    }
    let file = File::options().read(true).write(true).open(path)?;
    let (mut byte, at) = ([0], end / 2 / BLOCK * BLOCK + 200);
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(segments: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, data) in segments {
            let mut bytes = data.to_vec();
            bytes.resize(16 * BLOCK as usize, 0);
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    #[test]
    fn a_tear_comes_behind_the_last_data_of_the_last_segment_in_use() {
        let data = vec![7; 5 * BLOCK as usize - 10];
        let dir = log(&[("1.wal", &data), ("2.wal", &data), ("3.wal", b"header"), ("x", &data)]);
        tear(dir.path()).unwrap();
        let torn = std::fs::read(dir.path().join("2.wal")).unwrap();
        assert_eq!(&torn[5 * BLOCK as usize..][..TORN.len()], TORN);
        assert_eq!(data_end(&dir.path().join("3.wal")).unwrap(), BLOCK);
    }

    #[test]
    fn one_bit_of_the_first_segments_middle_is_flipped() {
        let data = vec![7; 8 * BLOCK as usize];
        let dir = log(&[("1.wal", &data), ("2.wal", &data)]);
        flip(dir.path()).unwrap();
        let flipped = std::fs::read(dir.path().join("1.wal")).unwrap();
        let changed: Vec<usize> = (0..data.len()).filter(|at| flipped[*at] != data[*at]).collect();
        assert_eq!(changed, [4 * BLOCK as usize + 200]);
        assert!(flip(log(&[("1.wal", b"short")]).path()).is_err());
    }
}
