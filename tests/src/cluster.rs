//! Several sites on loopback, each a process of its own.

use std::time::Instant;

use crate::{Deployment, Process, READY_MAX, http, text};

/// Sites of one cluster, and the processes of those that run.
pub struct Cluster {
    /// The files, and the channel.
    pub deployment: Deployment,
    running: Vec<Option<Process>>,
}

impl Cluster {
    /// `payswitch init --sites N` with this many demo merchants.
    pub fn init(sites: u16, merchants: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let deployment = Deployment::init_in(dir, merchants, sites, &[]);
        Self { running: (0..sites).map(|_| None).collect(), deployment }
    }

    /// `payswitch init --sites 3 --witness`: the third site only votes.
    pub fn init_witness(merchants: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let deployment = Deployment::init_in(dir, merchants, 3, &["--witness"]);
        Self { running: (0..3).map(|_| None).collect(), deployment }
    }

    /// Whether a site only votes.
    pub fn is_witness(&self, site: u16) -> bool {
        let sites = &self.deployment.site_config(1)["sites"];
        let entry = &sites.as_array().expect("sites")[usize::from(site) - 1];
        entry.get("witness").is_some_and(|witness| witness.as_bool() == Some(true))
    }

    /// As [`Self::init`]; the sites behind the first `voters` are no members yet.
    pub fn init_voters(sites: u16, voters: u16, merchants: u32) -> Self {
        let deployment = Deployment::init_sites(sites, voters, merchants);
        Self { running: (0..sites).map(|_| None).collect(), deployment }
    }

    /// Numbers of all sites.
    pub fn sites(&self) -> std::ops::RangeInclusive<u16> {
        1..=self.deployment.sites
    }

    /// Starts every site and waits until all are ready.
    pub fn start(&mut self) {
        for site in self.sites() {
            self.start_site(site);
        }
        for site in self.sites() {
            self.wait_ready(site);
        }
    }

    /// Starts a site without waiting.
    pub fn start_site(&mut self, site: u16) {
        self.running[usize::from(site) - 1] = Some(self.deployment.start_site(site));
    }

    /// Waits until a site says that it is ready and its channel, if it has one, is up.
    pub fn wait_ready(&mut self, site: u16) {
        let started = Instant::now();
        let config = self.deployment.site_config(site);
        let admin = config["admin"]["listen"].as_str().expect("an address");
        loop {
            let ready = http::get(admin, "/ready").is_ok_and(|reply| reply.status == 200);
            let is_up = || self.status(site)["channels"][0]["up"] == true;
            if ready && (self.is_witness(site) || is_up()) {
                return;
            }
            let process = self.process(site);
            assert!(
                process.runs() && started.elapsed() < READY_MAX,
                "site {site} is not ready:\n{}",
                process.printed()
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// A running site's process.
    pub fn process(&mut self, site: u16) -> &mut Process {
        self.running[usize::from(site) - 1].as_mut().expect("the site runs")
    }

    /// kill -9 of a site.
    pub fn kill(&mut self, site: u16) {
        self.running[usize::from(site) - 1].take().expect("the site runs").kill();
    }

    /// SIGTERM of a site; it must end orderly.
    pub fn stop(&mut self, site: u16) {
        let status = self.running[usize::from(site) - 1].take().expect("the site runs").stop();
        assert!(status.success(), "{status}");
    }

    /// A running site's status.
    pub fn status(&self, site: u16) -> serde_json::Value {
        self.deployment.site_status(site).unwrap_or_default()
    }

    /// Which site leads a shard, as a running site sees it; 0: nobody.
    pub fn leader(&self, asked: u16, shard: u16) -> u16 {
        let status = self.status(asked);
        status["shards"][usize::from(shard)]["leader"].as_u64().unwrap_or(0) as u16
    }

    /// How many shards each site leads, as a running site sees it; by number,
    /// those without leader at place 0.
    pub fn leads(&self, asked: u16) -> Vec<usize> {
        let mut counts = vec![0; usize::from(self.deployment.sites) + 1];
        let status = self.status(asked);
        for shard in status["shards"].as_array().into_iter().flatten() {
            counts[shard["leader"].as_u64().unwrap_or(0) as usize] += 1;
        }
        counts
    }

    /// Runs `payswitch admin --config site-N.toml ARGS`; it must succeed.
    pub fn admin(&self, site: u16, args: &[&str]) -> String {
        let config = self.deployment.file(&format!("site-{site}.toml"));
        let mut all = vec!["admin", "--config", config.to_str().expect("a UTF-8 path")];
        all.extend(args);
        let output = self.deployment.payswitch(&all);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }
}
