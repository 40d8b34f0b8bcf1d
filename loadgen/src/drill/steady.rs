//! A long stretch without any fault, in which nothing may happen: who leads what is
//! counted by the sites and seen by the clients.
//!
//! Nothing is kept per request beyond the acknowledgement log. Tested on made-up counters.

use super::script::{Fault, Script};
use crate::cluster::total;
use crate::exit::{Exit, Failure};
use crate::stage::Stage;
use serde::Serialize;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Of each shard at each site, what only rises when leaders change.
const COUNTERS: [&str; 4] = [
    "payswitch_shard_campaigns",
    "payswitch_shard_elections",
    "payswitch_shard_transfers",
    "payswitch_shard_term",
];
/// How often it is told that all is well.
const TOLD_EVERY: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// How often leaders changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Changes {
    /// Times that a site stood for election.
    pub(super) campaigns: u64,
    /// Times that a site came to lead a shard.
    pub(super) elections: u64,
    /// Hand-overs that were started.
    pub(super) transfers: u64,
    /// By how much the terms of all shards at all sites rose.
    pub(super) terms: u64,
    /// Notices to gateways that named another leader than before.
    pub(super) noticed: u64,
}

impl Changes {
    /// The largest of them: none may hide behind another.
    pub(super) fn worst(&self) -> u64 {
        let Self { campaigns, elections, transfers, terms, noticed } = *self;
        [campaigns, elections, transfers, terms, noticed].into_iter().max().unwrap_or(0)
    }

    fn between(before: [u64; 4], after: [u64; 4]) -> Option<Self> {
        let mut rose = [0; 4];
        for (rose, (before, after)) in rose.iter_mut().zip(before.into_iter().zip(after)) {
            *rose = after.checked_sub(before)?;
        }
        let [campaigns, elections, transfers, terms] = rose;
        Some(Self { campaigns, elections, transfers, terms, noticed: 0 })
    }
}

/// What it took, MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sizes {
    /// The generator's acknowledgement log.
    pub(super) acks_mib: u64,
    /// The channel's ledger.
    pub(super) ledger_mib: u64,
    /// The largest site's log and checkpoints.
    pub(super) log_mib: u64,
    /// Memory of the largest site.
    pub(super) site_mib: u64,
    /// Memory of the generator.
    pub(super) generator_mib: u64,
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { campaigns, elections, transfers, terms, noticed } = self;
        write!(
            f,
            "{campaigns} campaigns, {elections} elections, {transfers} hand-overs, terms +{terms}, \
             {noticed} notices of new leaders"
        )
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acks_mib, ledger_mib, log_mib, site_mib, generator_mib } = self;
        write!(
            f,
            "MiB: acks {acks_mib}, ledger {ledger_mib}, log {log_mib}, memory of a site {site_mib}, \
             of the generator {generator_mib}"
        )
    }
}

impl Script<'_> {
    /// Lets the load run for so long, and counts.
    pub(super) async fn watched(&self, length: Duration) -> Result<(Fault, Changes), Failure> {
        let mut stretch = self.begin(0, "nothing is broken").await;
        let noticed = || self.stage.session.leader_changes();
        let (before, noticed_before) = (counters(self.stage).await?, noticed());
        let (started, mut told) = (Instant::now(), 0_u32);
        loop {
            let next = (TOLD_EVERY * (told + 1)).min(length);
            tokio::time::sleep_until((started + next).into()).await;
            told += 1;
            let rose = Changes::between(before, counters(self.stage).await?);
            let mut changes = rose.ok_or_else(|| {
                Failure::new(Exit::Missed, "a site counts anew: it was started again")
            })?;
            changes.noticed = noticed().saturating_sub(noticed_before);
            if next == length {
                self.over(&mut stretch, "nothing was broken");
                return Ok((stretch, changes));
            }
            let minutes = length.as_secs_f64() / 60.0;
            println!("minute {told:>4} of {minutes:.0}: {} leader changes", changes.worst());
        }
    }
}

/// All counters of all sites.
async fn counters(stage: &Stage) -> Result<[u64; 4], Failure> {
    let mut sums = [0; 4];
    for site in stage.deployment.sites() {
        let page = stage.deployment.metrics(site).await.ok_or_else(|| {
            Failure::new(Exit::Missed, format_args!("site {site} does not tell its metrics"))
        })?;
        for (sum, name) in sums.iter_mut().zip(COUNTERS) {
            *sum += total(&page, name).ok_or_else(|| {
                Failure::environment(format_args!("site {site} has no metric {name}"))
            })?;
        }
    }
    Ok(sums)
}

/// Looks at files and processes.
pub(super) fn sizes(stage: &Stage) -> Sizes {
    let deployment = &stage.deployment;
    let processes = || deployment.sites().filter_map(|site| stage.process_id(site).ok());
    let memory = |process: &str| resident_kib(process) / 1024;
    Sizes {
        acks_mib: used_bytes(&deployment.file("acks")) / MIB,
        ledger_mib: used_bytes(&deployment.gateway.channel_ledger_dir) / MIB,
        log_mib: deployment
            .sites()
            .map(|site| used_bytes(&deployment.log_dir(site)) / MIB)
            .max()
            .unwrap_or(0),
        site_mib: processes().map(|id| memory(&id.to_string())).max().unwrap_or(0),
        generator_mib: memory("self"),
    }
}

/// What the files of a folder take on their file system; nothing for one that cannot be
/// read.
fn used_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|facts| facts.blocks() * 512).sum()
}

/// Memory of a process as the kernel tells it; 0 when it does not.
fn resident_kib(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_counts_and_counters_that_fall_are_told() {
        let changes = Changes::between([1, 2, 3, 40], [1, 3, 3, 46]).unwrap();
        assert_eq!((changes.elections, changes.terms, changes.worst()), (1, 6, 6));
        assert_eq!(Changes { noticed: 7, ..changes }.worst(), 7);
        assert_eq!(Changes::between([1; 4], [1; 4]), Some(Changes::default()));
        assert_eq!(Changes::between([5, 2, 3, 4], [0, 2, 3, 4]), None);
    }

    #[test]
    fn the_memory_of_this_process_is_known() {
        assert!(resident_kib("self") > 100);
        assert_eq!(resident_kib("none"), 0);
    }
}
