//! What is done to a site's process and its network.

use super::super::script::{Fault, Script};
use super::evidence;
use crate::cluster::Way;
use crate::exit::{Exit, Failure};
use std::time::{Duration, Instant};

/// How often a site is killed while it recovers.
const KILLS_IN_RECOVERY: u32 = 3;
/// And how long after its start at most: it is ready after about as long.
const RECOVERS_FOR_MS: u64 = 300;
/// What no distance is in the relay's words.
const NEAR: &str = "delay=0ms jitter=0ms loss=0%";

impl Script<'_> {
    pub(super) async fn kill(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.kill_until_level(site, hold).await?;
        self.returned(&mut fault).await;
        Ok(fault)
    }

    /// A kill whose return ends when the site is level. That counts from the start of the
    /// new process: reading the log is a part of it.
    pub(in crate::drill) async fn kill_until_level(
        &self,
        site: u8,
        hold: Duration,
    ) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("kill -9 of site {site}")).await;
        self.stage.kill(site).await?;
        tokio::time::sleep(hold).await;
        fault.healed = Instant::now();
        self.stage.start(site).await?;
        self.level(&mut fault).await?;
        Ok(fault)
    }

    pub(super) async fn kill_in_recovery(
        &self,
        site: u8,
        hold: Duration,
    ) -> Result<Fault, Failure> {
        let what = format!("kill -9 of site {site}, {KILLS_IN_RECOVERY} times more in recovery");
        let mut fault = self.begin(site, what).await;
        self.stage.kill(site).await?;
        tokio::time::sleep(hold / 2).await;
        for _ in 0..KILLS_IN_RECOVERY {
            self.stage.start_only(site)?;
            let moment = Duration::from_millis(self.draw(RECOVERS_FOR_MS));
            tokio::time::sleep(moment).await;
            self.stage.kill(site).await?;
        }
        self.stage.start(site).await?;
        self.recover(&mut fault).await?;
        self.returned(&mut fault).await;
        Ok(fault)
    }

    pub(super) async fn pause(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("site {site} stands still")).await;
        self.stage.freeze(site, true)?;
        tokio::time::sleep(hold).await;
        self.stage.freeze(site, false)?;
        self.recover(&mut fault).await?;
        self.returned(&mut fault).await;
        Ok(fault)
    }

    pub(super) async fn drain(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("drain of site {site}")).await;
        let number = site.to_string();
        let deployment = &self.stage.deployment;
        deployment.operate(site, &["drain", &number]).await?;
        tokio::time::sleep(hold).await;
        if deployment.leaders().await.contains(&site) {
            let text = format_args!("site {site} still leads after its drain");
            return Err(Failure::new(Exit::Missed, text));
        }
        deployment.operate(site, &["undrain", &number]).await?;
        self.recover(&mut fault).await?;
        self.returned(&mut fault).await;
        Ok(fault)
    }

    pub(super) async fn restart(&self, site: u8) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("restart of site {site}")).await;
        self.stage.stop(site).await?;
        self.stage.start(site).await?;
        self.recover(&mut fault).await?;
        self.returned(&mut fault).await;
        Ok(fault)
    }

    /// Heals what it cut, and nothing else.
    pub(super) async fn cut(&self, site: u8, way: Way, hold: Duration) -> Result<Fault, Failure> {
        let stage = self.stage;
        let mut fault = self.begin(site, format!("cut {way}")).await;
        let before = stage.relay_stats().await?;
        stage.relay(&format!("set {way} cut=on")).await?;
        let cut = stage.relay_stats().await?;
        tokio::time::sleep(hold).await;
        let held = stage.relay_stats().await?;
        stage.relay(&format!("set {way} cut=off")).await?;
        evidence::of_cut(way, &[before, cut, held])?;
        self.recover(&mut fault).await?;
        self.returned(&mut fault).await;
        Ok(fault)
    }

    /// `line` is what the relay does to every packet, such as `delay=5ms loss=1%`. It undoes
    /// that, and nothing else.
    pub(super) async fn distance(&self, line: &str, hold: Duration) -> Result<Fault, Failure> {
        let stage = self.stage;
        let mut fault = self.begin(0, format!("between the sites: {line}")).await;
        let before = stage.relay_stats().await?.all();
        stage.relay(&format!("set *-* {line}")).await?;
        tokio::time::sleep(hold).await;
        let (after, round_trips) = (stage.relay_stats().await?.all(), stage.round_trips().await);
        stage.relay(&format!("set *-* {NEAR}")).await?;
        let left_out = evidence::of_distance(line, hold, [before, after], round_trips)?;
        if let Some(left_out) = left_out {
            println!("{}: {left_out}", fault.what);
            fault.what = format!("{}; {left_out}", fault.what);
        }
        self.over(&mut fault, "the sites are near again");
        Ok(fault)
    }
}
