//! What is done to the machine under a site: its disk and its clock.

use super::super::script::{Fault, HOME_SOON, Home, POLL, Script};
use super::evidence::{self, Writes};
use super::slow_disk::SlowDisk;
use crate::cluster::shim::Done;
use crate::cluster::total;
use crate::exit::{Exit, Failure};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a switch whose log failed ends with, and says.
const ENDS_WITH: Option<i32> = Some(3);
const SAYS: &str = "the log failed";
/// How long a site's usual writes are looked at before its disk becomes slow.
const USUAL_WRITES: Duration = Duration::from_millis(500);
/// How far a site says that the host's clock is from its own.
const CLOCK: &str = "payswitch_clock_offset_seconds";
/// Longest wait for a site to notice that its disk is full.
const NOTICED_IN: Duration = Duration::from_secs(10);

impl Script<'_> {
    pub(super) async fn slow_disk(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut disk = SlowDisk::prepare(&self.stage.deployment.data(site))?;
        let process = self.stage.process_id(site)?;
        let start = self.writes(site).await?;
        tokio::time::sleep(USUAL_WRITES).await;
        let mut fault = self.begin(site, format!("slow disk of site {site}")).await;
        let usual = self.writes(site).await?;
        disk.begin(process)?;
        tokio::time::sleep(hold).await;
        let slow = self.writes(site).await?;
        disk.end()?;
        evidence::of_slow_disk([start, usual, slow])?;
        self.recover(&mut fault).await?;
        self.returned_within(HOME_SOON, &mut fault).await;
        // A site whose disk hung may ask for two minutes without shards.
        if fault.home == Home::Never {
            fault.home = Home::NotAsked;
        }
        Ok(fault)
    }

    /// Writes of a site's log so far.
    async fn writes(&self, site: u8) -> Result<Writes, Failure> {
        let page = self.stage.deployment.metrics(site).await;
        let writes = page.as_deref().and_then(Writes::read);
        let text = format_args!("site {site} does not tell how long its writes take");
        writes.ok_or_else(|| evidence::none(text))
    }

    /// What is written may be on the medium, a part of it, or nothing: as it is drawn.
    pub(super) async fn sync_error(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let faults = self.stage.deployment.faults(site)?;
        let kinds = [Done::Nothing, Done::All, Done::Half];
        let done = kinds[self.draw(kinds.len() as u64) as usize];
        let mut fault = self.begin(site, format!("write error of site {site}")).await;
        faults.fail_writes(Some(done))?;
        let (code, printed) = self.stage.end_of(site).await?;
        if code != ENDS_WITH || !printed.contains(SAYS) {
            let text = format_args!("site {site} ended with {code:?} and does not say why");
            return Err(Failure::new(Exit::Missed, text));
        }
        tokio::time::sleep(hold).await;
        if faults.struck()? == 0 {
            return Err(Failure::new(Exit::Invalid, "no write was made to fail"));
        }
        faults.fail_writes(None)?;
        self.stage.start(site).await?;
        self.recover(&mut fault).await?;
        self.returned(&mut fault).await;
        Ok(fault)
    }

    pub(super) async fn full_disk(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let faults = self.stage.deployment.faults(site)?;
        let used = used_bytes(&self.stage.deployment.log_dir(site))?;
        let mut fault = self.begin(site, format!("full disk of site {site}")).await;
        faults.disk_capacity(Some(used))?;
        let full = async || {
            let status = self.stage.deployment.status(site).await;
            status.and_then(|status| status.log).is_some_and(|log| log.disk_full)
        };
        while !full().await {
            if fault.at.elapsed() > NOTICED_IN {
                let text = format_args!("site {site} does not say that its disk is full");
                return Err(Failure::new(Exit::Missed, text));
            }
            tokio::time::sleep(POLL).await;
        }
        tokio::time::sleep(hold).await;
        faults.disk_capacity(None)?;
        self.recover(&mut fault).await?;
        let mended = Instant::now();
        while full().await {
            if mended.elapsed() > NOTICED_IN {
                let text = format_args!("site {site} does not see that there is space again");
                return Err(Failure::new(Exit::Missed, text));
            }
            tokio::time::sleep(POLL).await;
        }
        self.returned(&mut fault).await;
        Ok(fault)
    }

    pub(super) async fn clock_step(
        &self,
        site: u8,
        seconds: i64,
        hold: Duration,
    ) -> Result<Fault, Failure> {
        let faults = self.stage.deployment.faults(site)?;
        let mut fault = self.begin(site, format!("clock of site {site} off by {seconds} s")).await;
        let before = faults.shifted()?;
        faults.step_clock(seconds)?;
        tokio::time::sleep(hold).await;
        let page = self.stage.deployment.metrics(site).await.unwrap_or_default();
        let shifted = faults.shifted()? - before;
        faults.step_clock(0)?;
        evidence::of_clock(seconds, total(&page, CLOCK), shifted)?;
        self.recover(&mut fault).await?;
        Ok(fault)
    }
}

/// What a log takes on its file system.
fn used_bytes(log: &Path) -> Result<u64, Failure> {
    let failed = |error: std::io::Error| {
        Failure::environment(format_args!("cannot look at {}: {error}", log.display()))
    };
    let mut used = 0;
    for entry in std::fs::read_dir(log).map_err(failed)? {
        // A file that is gone by now takes nothing.
        let facts = entry.map_err(failed)?.metadata();
        used += facts.map_or(0, |facts| facts.blocks() * 512);
    }
    Ok(used)
}
