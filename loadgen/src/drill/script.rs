//! What a drill does to the cluster while load runs, and when.
//!
//! Moments and victims come from the seed. Every script heals what it broke; an
//! error ends the story, and with it all processes.

use super::Drill;
use super::disk::SlowDisk;
use crate::cluster::STATUS_AGE;
use crate::exit::{Exit, Failure};
use crate::rng::Stream;
use crate::stage::Stage;
use std::time::{Duration, Instant};

/// Load before anything happens, at least.
const LEAD: Duration = Duration::from_millis(1_500);
/// The moment is chosen within this.
const LEAD_SPREAD_MS: u64 = 1_000;
/// Longest wait for leaders to stand still, or for a site to be level.
const RECOVERY_MAX: Duration = Duration::from_secs(20);
/// One-way delay of the slow WAN.
pub(super) const WAN_DELAY_MS: u64 = 5;
const POLL: Duration = Duration::from_millis(50);

/// One thing that was done to the cluster.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// What was done, in a few words.
    pub(super) what: String,
    /// The site that it hit; 0 when none in particular.
    pub(super) site: u8,
    /// Who led each shard just before.
    pub(super) leaders: Vec<u8>,
    /// When it was done.
    pub(super) at: Instant,
    /// When it was undone.
    pub(super) healed: Instant,
    /// When the site was level again, after it was healed.
    pub(super) level: Option<Duration>,
}

impl Fault {
    /// Whether the site led this shard.
    pub(super) fn affects(&self, shard: u16) -> bool {
        self.site != 0 && self.leaders.get(usize::from(shard)) == Some(&self.site)
    }
}

/// What happened, in order.
pub(super) struct Told {
    /// The faults.
    pub(super) faults: Vec<Fault>,
    /// Who leads each shard at the end.
    pub(super) leaders: Vec<u8>,
}

/// Plays a drill's script; load runs beside it for `duration` at least.
pub(super) struct Script<'a> {
    stage: &'a Stage,
    moments: Stream,
    repetition: u64,
    draws: u64,
    duration: Duration,
}

impl<'a> Script<'a> {
    /// The script of one repetition.
    pub(super) fn new(stage: &'a Stage, seed: u64, repetition: u64, duration: Duration) -> Self {
        Self { stage, moments: Stream::new(seed, 300), repetition, draws: 0, duration }
    }

    fn draw(&mut self, bound: u64) -> u64 {
        self.draws += 1;
        self.moments.below(self.repetition * 64 + self.draws, bound)
    }

    /// Plays it.
    pub(super) async fn play(mut self, drill: Drill) -> Result<Told, Failure> {
        let started = Instant::now();
        let lead = LEAD + Duration::from_millis(self.draw(LEAD_SPREAD_MS));
        tokio::time::sleep(lead).await;
        let victim = self.victim(0).await?;
        let hold = self.duration.mul_f64(0.35);
        let faults = match drill {
            Drill::KillSite => {
                let fault = self.kill(victim, hold).await?;
                self.returned(victim).await;
                vec![fault]
            }
            Drill::PauseSite => vec![self.pause(victim, hold).await?],
            Drill::DrainSite => vec![self.drain(victim, hold).await?],
            Drill::RollingRestart => self.roll().await?,
            Drill::PartitionSite => vec![self.cut(victim, format!("{victim}-*"), hold).await?],
            Drill::PartitionOneway => {
                let deaf = self.draw(2) == 0;
                let way = if deaf { format!("*>{victim}") } else { format!("{victim}>*") };
                vec![self.cut(victim, way, hold).await?]
            }
            Drill::WanDelay => vec![self.delay(hold).await?],
            Drill::SlowDisk => vec![self.slow_disk(victim, hold).await?],
            Drill::DoubleFailure => {
                let first = self.kill(victim, hold).await?;
                // Right after the first is level: nobody had time to rest.
                let second = self.victim(victim).await?;
                vec![first, self.kill(second, hold).await?]
            }
        };
        tokio::time::sleep(self.duration.saturating_sub(started.elapsed())).await;
        Ok(Told { faults, leaders: self.steady().await? })
    }

    /// A site that leads something, other than `not`.
    async fn victim(&mut self, not: u8) -> Result<u8, Failure> {
        let leaders = self.steady().await?;
        let mut leading = leaders.clone();
        leading.sort_unstable();
        leading.dedup();
        leading.retain(|site| *site != not && *site != 0);
        let at = self.draw(leading.len().max(1) as u64) as usize;
        leading.get(at).copied().ok_or_else(|| {
            Failure::new(Exit::Invalid, format_args!("no other site leads a shard: {leaders:?}"))
        })
    }

    /// Who leads, once every shard is led and that stays so for a moment.
    async fn steady(&self) -> Result<Vec<u8>, Failure> {
        let started = Instant::now();
        let mut before = Vec::new();
        while started.elapsed() < RECOVERY_MAX {
            let leaders = self.stage.deployment.leaders().await;
            if leaders == before && !leaders.contains(&0) {
                return Ok(leaders);
            }
            before = leaders;
            tokio::time::sleep(STATUS_AGE).await;
        }
        Err(Failure::new(Exit::Missed, format_args!("shards do not find leaders: {before:?}")))
    }

    /// Who leads at this moment. Steady leaders were waited for before.
    async fn begin(&self, site: u8, what: String) -> Fault {
        self.stage.session.note(what.clone());
        let leaders = self.stage.deployment.leaders().await;
        let now = Instant::now();
        Fault { what, site, leaders, at: now, healed: now, level: None }
    }

    /// Waits until a healed site has everything, and leads something again.
    async fn recover(&self, fault: &mut Fault) -> Result<(), Failure> {
        fault.healed = Instant::now();
        let site = fault.site;
        self.stage.session.note(format!("site {site} is back"));
        while !self.stage.is_level(site).await {
            if fault.healed.elapsed() > RECOVERY_MAX {
                let bound = RECOVERY_MAX.as_secs();
                let text = format_args!("site {site} is not level after {bound} s");
                return Err(Failure::new(Exit::Missed, text));
            }
            tokio::time::sleep(POLL).await;
        }
        fault.level = Some(fault.healed.elapsed());
        Ok(())
    }

    /// Waits until a site leads something, for a while.
    async fn returned(&self, site: u8) {
        let started = Instant::now();
        while started.elapsed() < RECOVERY_MAX / 2 {
            if self.stage.deployment.leaders().await.contains(&site) {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn kill(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("kill -9 of site {site}")).await;
        self.stage.kill(site).await;
        tokio::time::sleep(hold).await;
        self.stage.start(site).await?;
        self.recover(&mut fault).await?;
        Ok(fault)
    }

    async fn pause(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("site {site} stands still")).await;
        self.stage.freeze(site, true).await?;
        tokio::time::sleep(hold).await;
        self.stage.freeze(site, false).await?;
        self.recover(&mut fault).await?;
        self.returned(site).await;
        Ok(fault)
    }

    async fn drain(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
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
        self.returned(site).await;
        Ok(fault)
    }

    async fn roll(&self) -> Result<Vec<Fault>, Failure> {
        let mut faults = Vec::new();
        for site in self.stage.deployment.sites() {
            self.steady().await?;
            let mut fault = self.begin(site, format!("restart of site {site}")).await;
            self.stage.stop(site).await?;
            self.stage.start(site).await?;
            self.recover(&mut fault).await?;
            self.returned(site).await;
            faults.push(fault);
        }
        Ok(faults)
    }

    async fn cut(&self, site: u8, way: String, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(site, format!("cut {way}")).await;
        self.stage.relay(&format!("cut {way}")).await?;
        tokio::time::sleep(hold).await;
        self.stage.relay("heal").await?;
        self.recover(&mut fault).await?;
        self.returned(site).await;
        Ok(fault)
    }

    async fn delay(&self, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(0, format!("{WAN_DELAY_MS} ms each way")).await;
        self.stage.relay(&format!("set *-* delay={WAN_DELAY_MS}ms")).await?;
        tokio::time::sleep(hold.max(Duration::from_secs(2))).await;
        self.stage.relay("heal").await?;
        fault.healed = Instant::now();
        self.stage.session.note("the sites are near again".to_owned());
        Ok(fault)
    }

    async fn slow_disk(&self, site: u8, hold: Duration) -> Result<Fault, Failure> {
        let mut disk = SlowDisk::prepare(&self.stage.deployment.data(site))?;
        let process = self
            .stage
            .process_id(site)
            .ok_or_else(|| Failure::environment(format_args!("site {site} does not run")))?;
        let mut fault = self.begin(site, format!("slow disk of site {site}")).await;
        disk.begin(process)?;
        tokio::time::sleep(hold).await;
        disk.end()?;
        self.recover(&mut fault).await?;
        self.returned(site).await;
        Ok(fault)
    }
}
