//! A deployment of real processes: sites, one simulated channel and the relay
//! between the sites, started, hurt and ended by the drills.
//!
//! Knows the switch from outside only: its command line, files and ports.
//! Every child is ended when its handle is dropped.

mod admin;
mod folder;
mod process;
mod relay;
pub(crate) mod shim;

/// Asks until nothing is left, or for `bound`; tells what was left then.
async fn quiet<F: Future<Output = Option<u64>>>(bound: Duration, left: impl Fn() -> F) -> u64 {
    let started = Instant::now();
    let mut quiet = 0;
    loop {
        let now = left().await;
        quiet = if now == Some(0) { quiet + 1 } else { 0 };
        // What sites tell is up to a fifth of a second old: twice is sure.
        if quiet == 2 || started.elapsed() > bound {
            return now.unwrap_or(1);
        }
        tokio::time::sleep(STATUS_AGE).await;
    }
}

#[cfg(test)]
mod tests;

use crate::config::GatewayFile;
use crate::exit::{Exit, Failure};
use crate::interrupt::apart;
use crate::under;
use crate::wan::Link;
pub(crate) use admin::{Status, total, values};
use folder::Folder;
pub(crate) use process::Process;
use process::{POLL, READY_MAX};
pub(crate) use relay::{Packets, Relay, Stats, Way};
use shim::{Shim, SiteFaults};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than the age of what `/status` tells.
pub(crate) const STATUS_AGE: Duration = Duration::from_millis(300);
/// Most sites of a deployment: the ports of the relay's pairs are counted.
pub(crate) const SITES_MAX: u8 = 5;
/// With the one that may take another's place.
const PLACES_MAX: u8 = SITES_MAX + 1;
/// Places of ports from the base on: what `init` uses of each site, of the channel,
/// and ours.
const SITE_PORTS: [u16; 4] = [0, 1, 2, 3];
const SITE_STEP: u16 = 10;
const RELAY_FIRST: u16 = 60;
const RELAY_PORTS: u16 = (PLACES_MAX as u16) * (PLACES_MAX as u16 - 1);
const CHANNEL_PORT: u16 = 90;
const CONTROL_PORT: u16 = 91;

const _: () = assert!((PLACES_MAX as u16) * SITE_STEP <= RELAY_FIRST);
const _: () = assert!(RELAY_FIRST + RELAY_PORTS <= CHANNEL_PORT);

/// The folder of a deployment and the binaries that run it.
pub(crate) struct Deployment {
    folder: Folder,
    /// The binary `payswitch`.
    pub(crate) payswitch: PathBuf,
    base: u16,
    /// Sites that the cluster is made of; one behind them is a spare.
    founders: u8,
    /// Its gateway's configuration.
    pub(crate) gateway: GatewayFile,
    shim: Option<Shim>,
}

impl Deployment {
    /// `payswitch init` of some sites on free ports, in `dir` or a temporary folder. With
    /// a spare there is one more that everybody knows and that is no member.
    pub(crate) fn init(
        payswitch: PathBuf,
        dir: Option<PathBuf>,
        merchants: u32,
        founders: u8,
        spare: bool,
    ) -> Result<Self, Failure> {
        let sites = founders + u8::from(spare);
        let folder = Folder::new(dir)?;
        let base = free_ports(sites)?;
        let output = Command::new(&payswitch)
            .args(["init", "--merchants", &merchants.to_string()])
            .args(["--sites", &sites.to_string()])
            .args(["--port-base", &base.to_string(), "--dir"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                let path = payswitch.display();
                Failure::environment(format_args!("cannot run {path}: {error}"))
            })?;
        if !output.status.success() {
            return Err(not_made(output.status.code(), &output.stderr));
        }
        let gateway = GatewayFile::load(&folder.path().join("gateway.toml"))?;
        let deployment = Self { folder, payswitch, base, founders, gateway, shim: None };
        if spare {
            let entry = format!("id = {sites}\n");
            deployment.configure(&entry, &format!("{entry}voter = false\n"))?;
        }
        Ok(deployment)
    }

    /// A file of the deployment.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Numbers of the sites that the cluster is made of, from 1.
    pub(crate) fn sites(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.founders
    }

    /// Those and the spare.
    pub(crate) fn places(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.gateway.sites.len() as u8
    }

    /// The site that may take another's place.
    pub(crate) fn spare(&self) -> Option<u8> {
        self.places().find(|site| *site > self.founders)
    }

    /// A site's configuration.
    pub(crate) fn site_file(&self, site: u8) -> PathBuf {
        self.file(&format!("site-{site}.toml"))
    }

    /// A site's data directory.
    pub(crate) fn data(&self, site: u8) -> PathBuf {
        self.file(&format!("data/site-{site}"))
    }

    /// Where a site keeps its log.
    pub(crate) fn log_dir(&self, site: u8) -> PathBuf {
        self.file("").join(log_dir(site))
    }

    /// Changes a line of every site's configuration, which must be there. For sites that
    /// do not run yet.
    pub(crate) fn configure(&self, from: &str, to: &str) -> Result<(), Failure> {
        for site in self.places() {
            let path = self.site_file(site);
            let failed = |what: &dyn std::fmt::Display| {
                Failure::environment(format_args!("cannot change {}: {what}", path.display()))
            };
            let text = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
            if !text.contains(from) {
                return Err(failed(&format_args!("it has no line {from:?}")));
            }
            std::fs::write(&path, text.replace(from, to)).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Sites that start from now on obey a plan of faults.
    pub(crate) fn install_shim(&mut self) -> Result<(), Failure> {
        self.shim = Some(Shim::compile(self.folder.path())?);
        // Only that one writes through the C library.
        self.configure("# backend = \"auto\"", "backend = \"blocking\"")
    }

    /// The faults of a site that runs.
    pub(crate) fn faults(&self, site: u8) -> Result<SiteFaults, Failure> {
        let without = || Failure::usage("this deployment runs without the fault library");
        self.shim.as_ref().ok_or_else(without)?.faults(site)
    }

    fn admin(&self, site: u8) -> SocketAddr {
        // Sites are numbered from 1 without gaps.
        self.gateway.sites[usize::from(site) - 1].admin
    }

    /// Starts the simulated channel with these faults.
    pub(crate) async fn channel(&self, faults: &[String]) -> Result<Process, Failure> {
        let mut command = Command::new(here()?);
        command.args(["channel", "--config"]).arg(self.file("channel.toml")).args(faults);
        self.printing_ready("loadgen channel", command, "channel.out").await
    }

    /// Puts a relay between the sites, which must not run yet: their configurations
    /// name its ports in place of each other's.
    pub(crate) async fn relay(&self, seed: u64) -> Result<Relay, Failure> {
        let links = self.relay_links();
        for site in self.places() {
            let path = self.site_file(site);
            let failed = |error: std::io::Error| {
                Failure::environment(format_args!("{}: {error}", path.display()))
            };
            let mut text = std::fs::read_to_string(&path).map_err(failed)?;
            for link in links.iter().filter(|link| link.from == site) {
                text = redirected(&text, link.to, link.listen).ok_or_else(|| {
                    let (path, to) = (path.display(), link.to);
                    let text = format_args!("{path}: site {to}'s peer address is not found");
                    Failure::environment(text)
                })?;
            }
            std::fs::write(&path, text).map_err(failed)?;
        }
        let control = loopback(self.base + CONTROL_PORT);
        let mut command = Command::new(here()?);
        command.args(["wan", "--control", &control.to_string(), "--seed", &seed.to_string()]);
        links.iter().for_each(|link| {
            command.arg("--link").arg(link.to_string());
        });
        let process = self.printing_ready("loadgen wan", command, "wan.out").await?;
        Ok(Relay::new(process, control))
    }

    /// One port per pair that dials, towards the peer port that `init` gave.
    fn relay_links(&self) -> Vec<Link> {
        let pairs = self
            .places()
            .flat_map(|from| self.places().filter(move |to| *to != from).map(move |to| (from, to)));
        let link = |(at, (from, to)): (usize, (u8, u8))| {
            let listen = loopback(self.base + RELAY_FIRST + at as u16);
            let target = loopback(self.base + u16::from(to - 1) * SITE_STEP + 1);
            Link { from, to, listen, target }
        };
        pairs.enumerate().map(link).collect()
    }

    /// Starts a process and waits until it prints that it is ready.
    async fn printing_ready(
        &self,
        name: &str,
        command: Command,
        output: &str,
    ) -> Result<Process, Failure> {
        let output = self.file(output);
        // Fails when it is not there, which is as good.
        drop(std::fs::remove_file(&output));
        let mut process = Process::start(name, &mut under::wrapped(&command)?, &output)?;
        let started = Instant::now();
        loop {
            if process.printed().contains("ready") {
                return Ok(process);
            }
            if process.ended() || started.elapsed() > READY_MAX {
                return Err(process.failure("is not ready"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts a site; it is not ready yet.
    pub(crate) fn start(&self, site: u8) -> Result<Process, Failure> {
        let mut command = Command::new(&self.payswitch);
        command.args(["serve", "--config"]).arg(self.site_file(site));
        if let Some(shim) = &self.shim {
            shim.preload(site, &log_dir(site), &mut command)?;
        }
        let output = self.file(&format!("site-{site}.out"));
        let mut command = under::wrapped(&command)?;
        Process::start(format!("payswitch serve (site {site})"), &mut command, &output)
    }

    /// Waits until a site is ready.
    pub(crate) async fn ready(&self, site: u8, process: &mut Process) -> Result<(), Failure> {
        let started = Instant::now();
        while !admin::ready(self.admin(site)).await {
            if process.ended() || started.elapsed() > READY_MAX {
                return Err(process.failure("is not ready"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until a site reaches every channel: it is ready before, and refuses payments
    /// meanwhile.
    pub(crate) async fn linked(&self, site: u8, process: &mut Process) -> Result<(), Failure> {
        let started = Instant::now();
        let linked = async || {
            let status = self.status(site).await;
            status.is_some_and(|status| {
                !status.channels.is_empty() && status.channels.iter().all(|channel| channel.up)
            })
        };
        while !linked().await {
            if process.ended() || started.elapsed() > READY_MAX {
                return Err(process.failure("does not reach its channel"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// What a site says of itself; `None` when it does not answer.
    pub(crate) async fn status(&self, site: u8) -> Option<Status> {
        admin::status(self.admin(site)).await
    }

    /// A site's metrics as text; `None` when it does not answer.
    pub(crate) async fn metrics(&self, site: u8) -> Option<String> {
        admin::metrics(self.admin(site)).await
    }

    /// The site that leads each shard, 0 for none, by those that call themselves
    /// leaders.
    pub(crate) async fn leaders(&self) -> Vec<u8> {
        let mut leaders = vec![0; self.gateway.shards.into()];
        for site in self.places() {
            let Some(status) = self.status(site).await else { continue };
            for shard in status.shards.iter().filter(|shard| shard.leads()) {
                if let Some(leader) = leaders.get_mut(usize::from(shard.shard)) {
                    *leader = site;
                }
            }
        }
        leaders
    }

    /// `payswitch admin` at a site, which must succeed.
    pub(crate) async fn operate(&self, site: u8, words: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new(&self.payswitch);
        command.args(["admin", "--config"]).arg(self.site_file(site)).args(words);
        let name = format!("payswitch admin {}", words.join(" "));
        let mut command = under::wrapped(&command)?;
        Process::start(name, &mut command, &self.file("admin.out"))?.finish().await
    }

    /// As [`Self::operate`]: what was answered.
    pub(crate) async fn ask(&self, site: u8, words: &[&str]) -> Result<String, Failure> {
        let answer = self.file("admin.answer");
        // Fails when it is not there, which is as good.
        drop(std::fs::remove_file(&answer));
        let mut command = Command::new(&self.payswitch);
        command.args(["admin", "--config"]).arg(self.site_file(site)).args(words);
        let name = format!("payswitch admin {}", words.join(" "));
        Process::start(name, &mut command, &answer)?.finish().await?;
        std::fs::read_to_string(&answer).map_err(|error| {
            Failure::environment(format_args!("cannot read {}: {error}", answer.display()))
        })
    }

    /// Waits until the leaders say that nothing is open, refunds included; tells
    /// how much still is after `bound`. Only a moment to audit at: the audit
    /// itself believes nobody.
    pub(crate) async fn settled(&self, bound: Duration) -> u64 {
        quiet(bound, || self.open_payments()).await
    }

    /// Waits until every site says that no event is on its way to a gateway; tells how
    /// many still are after `bound`.
    pub(crate) async fn delivered(&self, bound: Duration) -> u64 {
        quiet(bound, || self.undelivered()).await
    }

    /// Events that some site has not seen delivered; `None` while none tells.
    async fn undelivered(&self) -> Option<u64> {
        let mut most = None;
        for site in self.places() {
            let Some(page) = self.metrics(site).await else { continue };
            most = most.max(Some(total(&page, "payswitch_outbox_events")?));
        }
        most
    }

    /// Payments that leaders call open; `None` while a shard has none to ask.
    async fn open_payments(&self) -> Option<u64> {
        let mut open = vec![None; self.gateway.shards.into()];
        for site in self.places() {
            let Some(status) = self.status(site).await else { continue };
            for shard in status.shards.iter().filter(|shard| shard.leads()) {
                *open.get_mut(usize::from(shard.shard))? = Some(shard.open);
            }
        }
        open.into_iter().sum()
    }

    /// Checks every checksum and chain of a site's log.
    pub(crate) fn verify_log(&self, site: u8) -> Result<(), Failure> {
        let output = apart(&mut Command::new(&self.payswitch))
            .args(["log", "verify"])
            .arg(self.data(site))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                Failure::environment(format_args!("cannot verify the log: {error}"))
            })?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Failure::new(Exit::Audit, format_args!("site {site}: the log is damaged: {reason}")))
    }
}

/// `payswitch init` failed: as wrong usage unless it says that the environment does not play
/// along, such as a full disk.
fn not_made(code: Option<i32>, errors: &[u8]) -> Failure {
    let exit = if code == Some(Exit::Usage as i32) { Exit::Usage } else { Exit::Environment };
    Failure::new(exit, String::from_utf8_lossy(errors).trim())
}

/// A site's configuration in which site `to` is reached at another peer address; `None`
/// when it does not name one, or more than one.
fn redirected(text: &str, to: u8, peer: SocketAddr) -> Option<String> {
    let (mut site, mut found) = (0, 0);
    let mut lines = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once('=').map_or((line, ""), |(k, v)| (k.trim(), v.trim()));
        match key {
            "id" => site = value.parse().unwrap_or(0),
            _ if line.starts_with('[') => site = 0,
            _ => {}
        }
        match key == "peer" && site == to {
            true => {
                found += 1;
                lines.push(format!("peer = \"{peer}\""));
            }
            false => lines.push(line.to_owned()),
        }
    }
    (found == 1).then(|| lines.join("\n") + "\n")
}

/// Where a site keeps its log, in the deployment's folder.
fn log_dir(site: u8) -> PathBuf {
    PathBuf::from(format!("data/site-{site}/worker-0"))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn here() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::environment(format_args!("where am I? {error}")))
}

/// A port base whose ports, as `init` and the relay use them, are free now.
fn free_ports(sites: u8) -> Result<u16, Failure> {
    let free = |port: u16| {
        UdpSocket::bind(loopback(port)).is_ok() && TcpListener::bind(loopback(port)).is_ok()
    };
    let of_sites = || {
        (0..u16::from(sites))
            .flat_map(|site| SITE_PORTS.map(|port| site * SITE_STEP + port))
            .chain(RELAY_FIRST..RELAY_FIRST + RELAY_PORTS)
            .chain([CHANNEL_PORT, CONTROL_PORT])
    };
    // Below the ports that Linux gives to outgoing connections, which come and go
    // between our look and our use.
    let first = (std::process::id() % 120) as u16 * 100;
    (0..120_u16)
        .map(|step| 20_000 + (first + step * 100) % 12_000)
        .find(|base| of_sites().all(|offset| free(base + offset)))
        .ok_or_else(|| Failure::environment("no free ports between 20000 and 32000"))
}
