//! The running node as operators see it: implements the admin interface's
//! `Control` by reading what the threads publish and by handing commands to the
//! network thread, which puts them into the workers' batches.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use protocol::id::{MchId, OutTradeNo, ShortText};
use tokio::sync::{mpsc, oneshot};

use super::inbox::{Exchange, Item};
use super::mesh::Mesh;
use super::net::Net;
use super::worker::{Report, Shared};
use super::{clock, explain};
use crate::admin::api::{
    ChannelStatus, Explain, InDoubt, LogStatus, MemberProgress, ShardStatus, Status,
};
use crate::admin::control::{Answer, Control, ControlError};
use crate::config::Config;
use crate::engine::Engine;
use crate::engine::input::{AdminCommand, AdminInput};
use crate::engine::merchant::Merchant;
use crate::metrics::Metrics;
use crate::replica::{self, By, ChangeError, Replica, Stage};

/// Commands waiting for the network thread; more are refused as busy.
const COMMANDS_MAX: usize = 256;

/// Answer of an engine to an operator's command.
pub type CommandAnswer = oneshot::Receiver<Result<String, String>>;

/// The node.
pub struct NodeControl {
    site: u16,
    shards: u16,
    log_dir: PathBuf,
    segment_bytes: u64,
    shared: Arc<Shared>,
    started: Instant,
    commands: mpsc::Sender<(u16, Item)>,
    inbox: Mutex<Option<mpsc::Receiver<(u16, Item)>>>,
    tickets: Mutex<HashMap<u64, oneshot::Sender<Result<String, String>>>>,
    next_ticket: AtomicU64,
    merchants: Mutex<HashMap<MchId, Merchant>>,
    listening: AtomicBool,
    bootstrapped: AtomicBool,
    draining: AtomicBool,
}

impl NodeControl {
    /// Over what the worker shares.
    pub fn new(config: &Config, shared: Arc<Shared>, started: Instant) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        Self {
            site: config.site,
            shards: config.shards,
            log_dir: config.data_dir.join("worker-0"),
            segment_bytes: u64::from(config.log.segment_mib) << 20,
            shared,
            started,
            commands,
            inbox: Mutex::new(Some(inbox)),
            tickets: Mutex::new(HashMap::new()),
            next_ticket: AtomicU64::new(1),
            merchants: Mutex::new(HashMap::new()),
            listening: AtomicBool::new(false),
            bootstrapped: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// The queues to the worker.
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.shared.exchange
    }

    /// What is shared about the other sites.
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.shared.mesh
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// A ticket for a command, and where its answer comes.
    pub fn ticket(&self) -> (u64, CommandAnswer) {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        if let Ok(mut tickets) = self.tickets.lock() {
            tickets.insert(ticket, sender);
        }
        (ticket, receiver)
    }

    /// An engine answered a ticket.
    pub fn answer(&self, ticket: u64, result: Result<String, String>) {
        let sender = self.tickets.lock().ok().and_then(|mut tickets| tickets.remove(&ticket));
        if let Some(sender) = sender {
            // Nobody waits any more: the record stands all the same.
            drop(sender.send(result));
        }
    }

    /// Whether a merchant's record is in the log.
    pub fn knows(&self, mch_id: MchId) -> bool {
        self.merchants.lock().is_ok_and(|merchants| merchants.contains_key(&mch_id))
    }

    /// A merchant's record committed.
    pub fn put_merchant(&self, merchant: &Merchant) {
        if let Ok(mut merchants) = self.merchants.lock() {
            merchants.insert(merchant.mch_id, merchant.clone());
        }
    }

    /// Whether every shard has a leader that this site knows of.
    pub fn all_led(&self) -> bool {
        (0..self.shards).all(|shard| self.mesh().leader(shard) != 0)
    }

    /// Whether this site leads any shard.
    pub fn leads_any(&self) -> bool {
        (0..self.shards).any(|shard| u16::from(self.mesh().leader(shard)) == self.site)
    }

    /// Whether this site leads the shard.
    pub fn leads(&self, shard: u16) -> bool {
        u16::from(self.mesh().leader(shard)) == self.site
    }

    /// Whether this site is a member of no shard: not yet, or not any more.
    fn is_stranger(&self) -> bool {
        let Ok(report) = self.shared.report.lock() else { return false };
        let site = u64::from(self.site);
        !report.shards.is_empty() && report.shards.iter().all(|shard| !shard.members.contains(site))
    }

    /// Makes the worker hand its shards to other sites.
    pub fn leave(&self) {
        self.shared.leave.store(true, Ordering::Release);
        self.shared.exchange.wake();
    }

    /// Why a command about this shard must be asked elsewhere, if it must.
    fn elsewhere(&self, shard: u16) -> Option<ControlError> {
        match u16::from(self.mesh().leader(shard)) {
            0 => Some(ControlError::NoLeader),
            leader if leader == self.site => None,
            leader => Some(ControlError::NotLeader { leader }),
        }
    }

    /// Sends an item with a ticket to a shard led here.
    fn ask(&self, shard: u16, item: impl FnOnce(u64) -> Item) -> Answer<String> {
        if shard >= self.shards {
            return refused(ControlError::NotFound);
        }
        if let Some(error) = self.elsewhere(shard) {
            return refused(error);
        }
        let (ticket, answer) = self.ticket();
        if self.commands.try_send((shard, item(ticket))).is_err() {
            if let Ok(mut tickets) = self.tickets.lock() {
                tickets.remove(&ticket);
            }
            return refused(ControlError::Busy);
        }
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            // A dropped ticket means that the node stops; so does our sender then.
            if let Ok(result) = answer.await {
                drop(sender.send(result.map_err(ControlError::Refused)));
            }
        });
        receiver
    }

    /// The gateway port is open, and the channels were tried.
    pub fn listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// The configured merchants are known.
    pub fn bootstrapped(&self) {
        self.bootstrapped.store(true, Ordering::Release);
    }

    /// The node stops.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// The worker's last report, with the gauges set to it: nobody needs them
    /// more often than somebody looks.
    fn report(&self) -> Report {
        let report = self.shared.report.lock().map(|report| report.clone()).unwrap_or_default();
        let metrics = self.metrics();
        for shard in &report.shards {
            let Some(gauges) = metrics.shard(shard.shard) else { continue };
            gauges.leader.set(shard.leads.into());
            gauges.term.set(shard.term);
            gauges.commit_index.set(shard.committed);
            gauges.applied_index.set(shard.applied);
            gauges.campaigns.set(shard.counters.campaigns);
            gauges.elections.set(shard.counters.elections);
            gauges.transfers.set(shard.counters.transfers);
            gauges.orders.set(shard.engine.orders);
            gauges.open.set(shard.engine.open);
            gauges.in_doubt.set(shard.engine.in_doubt);
            gauges.manual.set(shard.engine.manual);
            gauges.waiters.set(shard.engine.waiters);
            gauges.outbox.set(shard.engine.outbox);
            let checkpoint = &shard.checkpoint;
            let age_us = match checkpoint.index {
                0 => 0,
                _ => clock::mono_us().saturating_sub(checkpoint.at_us),
            };
            gauges.beyond_log.set(shard.beyond_log);
            gauges.checkpoint_index.set(checkpoint.index);
            gauges.checkpoint_age_s.set(age_us / 1_000_000);
            gauges.checkpoint_ms.set(checkpoint.took_us / 1000);
        }
        for number in 1.. {
            let Some(channel) = metrics.channel(number) else { break };
            let engines = report.shards.iter().flat_map(|shard| &shard.engine.channels);
            let in_flight = engines.filter(|c| c.number == number).map(|c| u64::from(c.in_flight));
            channel.in_flight.set(in_flight.sum());
        }
        if let Some(log) = &report.log {
            let segments =
                (log.segment + 1).saturating_sub(log.first_segment.max(1)) + log.disk.spares as u64;
            metrics.log_segments.set(segments);
            metrics.log_bytes.set(segments * self.segment_bytes);
            metrics.disk_free_bytes.set(log.free_bytes.unwrap_or_default());
        }
        metrics.clock_offset_s.set(clock::offset_s());
        metrics.disk_full.set(self.shared.storage_full.load(Ordering::Relaxed).into());
        metrics.inbox_batches.set(self.shared.exchange.waiting() as u64);
        report
    }

    /// Runs `look` on an engine, on its worker's thread.
    fn inspect(&self, shard: u16, look: impl FnOnce(&Engine) + Send + 'static) -> bool {
        self.commands.try_send((shard, Item::Inspect(Cell::new(Some(Box::new(look)))))).is_ok()
    }
}

/// Puts operators' commands into the workers' batches.
pub async fn run_commands(net: Rc<Net>, control: Arc<NodeControl>) {
    let inbox = control.inbox.lock().ok().and_then(|mut inbox| inbox.take());
    let Some(mut inbox) = inbox else { return };
    while let Some((shard, item)) = inbox.recv().await {
        net.push(shard, item);
    }
}

fn sites(set: u64) -> Vec<u16> {
    replica::sites(set).map(|site| site as u16).collect()
}

/// How far a change of members is, for operators.
fn progress(shard: u16, stage: Result<Stage, ChangeError>) -> Result<MemberProgress, ControlError> {
    let (done, text) = match stage {
        Ok(Stage::Done) => (true, "done".into()),
        Ok(Stage::Changing) => (false, "the change is under way".into()),
        Ok(Stage::Behind(blocks)) => (false, format!("catching up, {blocks} blocks behind")),
        Ok(Stage::HandsOver) => (false, "handing over before it leaves".into()),
        Err(ChangeError::NotLeader) => return Err(ControlError::NoLeader),
        Err(ChangeError::Busy) => return Err(ControlError::Busy),
        Err(error) => return Err(ControlError::Refused(error.to_string())),
    };
    Ok(MemberProgress { shard, done, text })
}

fn refused<T>(error: ControlError) -> Answer<T> {
    let (sender, receiver) = oneshot::channel();
    drop(sender.send(Err(error)));
    receiver
}

impl Control for NodeControl {
    fn ready(&self) -> Result<(), String> {
        let reason = if self.draining.load(Ordering::Acquire) {
            "the site stops"
        } else if self.is_stranger() {
            "this site is no member: see admin member add"
        } else if !self.all_led() {
            "not every shard is led yet"
        } else if !self.listening.load(Ordering::Acquire) {
            "the gateway port is not open, or its channels were not tried yet"
        } else if !self.bootstrapped.load(Ordering::Acquire) {
            "the configured merchants are being recorded"
        } else {
            return Ok(());
        };
        Err(reason.into())
    }

    fn status(&self) -> Status {
        let reason = self.ready().err().unwrap_or_default();
        let metrics = self.metrics();
        let report = self.report();
        let shards = report.shards.iter().map(|shard| ShardStatus {
            shard: shard.shard,
            role: match (shard.leads, shard.candidate) {
                _ if !shard.members.contains(u64::from(self.site)) => "none",
                (true, _) => "leader",
                (false, true) => "candidate",
                (false, false) if shard.members.is_voter(u64::from(self.site)) => "follower",
                (false, false) => "learner",
            }
            .into(),
            leader: shard.leader,
            voters: sites(shard.members.voters),
            learners: sites(shard.members.learners | shard.members.learners_next),
            joint: shard.members.is_joint(),
            term: shard.term,
            commit: shard.committed,
            applied: shard.applied,
            checkpoint: shard.checkpoint.index,
            orders: shard.engine.orders,
            open: shard.engine.open,
            in_doubt: shard.engine.in_doubt,
            manual: shard.engine.manual,
        });
        let channels = (1..).map_while(|number| metrics.channel(number).map(|c| (number, c)));
        let channels = channels.map(|(number, channel)| ChannelStatus {
            number,
            name: channel.name.clone(),
            up: channel.up.value() == 1,
            in_flight: channel.in_flight.value(),
            sent: channel.sent.value(),
            answered: channel.answered.value(),
            unanswered: channel.lost.value() + channel.timeouts.value(),
        });
        Status {
            site: self.site,
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: self.started.elapsed().as_secs(),
            ready: reason.is_empty(),
            reason,
            drained: (1..64).filter(|site| report.drained >> site & 1 == 1).collect(),
            shards: shards.collect(),
            channels: channels.collect(),
            log: LogStatus {
                backend: report
                    .log
                    .map(|log| format!("{:?}", log.disk.backend))
                    .unwrap_or_default(),
                segments: metrics.log_segments.value(),
                bytes: metrics.log_bytes.value(),
                disk_free_bytes: metrics.disk_free_bytes.value(),
                disk_full: metrics.disk_full.value() == 1,
                fsync_us_p50: metrics.fsync.quantile(0.5),
                fsync_us_p99: metrics.fsync.quantile(0.99),
            },
            connections: metrics.connections.value(),
            in_flight: metrics.in_flight.value(),
        }
    }

    fn render_metrics(&self, out: &mut String) {
        self.report();
        self.metrics().render(out);
    }

    fn merchant(&self, mch_id: MchId) -> Option<Merchant> {
        self.merchants.lock().ok()?.get(&mch_id).cloned()
    }

    fn command(&self, operator: ShortText, command: AdminCommand) -> Answer<String> {
        let shard = match &command {
            AdminCommand::PutMerchant { merchant, .. } => merchant.mch_id.shard(self.shards),
            AdminCommand::PutLimits { mch_id, .. } | AdminCommand::Decide { mch_id, .. } => {
                mch_id.shard(self.shards)
            }
            AdminCommand::SetDrained { site, .. } | AdminCommand::SetMember { site, .. } => {
                if !(1..=self.mesh().sites()).contains(site) {
                    return refused(ControlError::Refused(format!("there is no site {site}")));
                }
                0
            }
        };
        self.ask(shard, |ticket| Item::Admin(Box::new(AdminInput { ticket, operator, command })))
    }

    fn led_elsewhere(&self, mch_id: MchId) -> Option<ControlError> {
        self.elsewhere(mch_id.shard(self.shards))
    }

    fn transfer(&self, shard: u16, site: u16) -> Answer<String> {
        self.ask(shard, |ticket| Item::Transfer(ticket, site))
    }

    fn seek_member(
        &self,
        operator: ShortText,
        shard: u16,
        site: u16,
        member: bool,
    ) -> Answer<MemberProgress> {
        if shard >= self.shards {
            return refused(ControlError::NotFound);
        }
        if site == 0 || site > u16::from(self.mesh().sites()) {
            let text =
                format!("site {} knows of no site {site}: its configuration has to", self.site);
            return refused(ControlError::Refused(text));
        }
        if let Some(error) = self.elsewhere(shard) {
            return refused(error);
        }
        let by = By { operator, at_us: clock::now().wall_us, forced: false };
        let (sender, receiver) = oneshot::channel();
        let reach = move |replica: &mut Replica| {
            let stage = replica.seek_member(u64::from(site), member, by);
            drop(sender.send(progress(shard, stage)));
        };
        let item = Item::Reach(Cell::new(Some(Box::new(reach))));
        if self.commands.try_send((shard, item)).is_err() {
            return refused(ControlError::Busy);
        }
        receiver
    }

    fn in_doubt(&self, limit: usize) -> Answer<Vec<InDoubt>> {
        let (sender, receiver) = oneshot::channel();
        let parts: Vec<_> = (0..self.shards)
            .filter_map(|shard| {
                let (part, answer) = oneshot::channel();
                let look = move |engine: &Engine| drop(part.send(explain::in_doubt(engine, limit)));
                self.inspect(shard, look).then_some(answer)
            })
            .collect();
        tokio::spawn(async move {
            let mut all = Vec::new();
            for part in parts {
                all.extend(part.await.unwrap_or_default());
            }
            all.sort_by_key(|item: &InDoubt| std::cmp::Reverse(item.age_s));
            all.truncate(limit);
            drop(sender.send(Ok(all)));
        });
        receiver
    }

    fn explain(&self, mch_id: MchId, out_trade_no: OutTradeNo) -> Answer<Explain> {
        let shard = mch_id.shard(self.shards);
        if let Some(error) = self.elsewhere(shard) {
            return refused(error);
        }
        let (part, answer) = oneshot::channel();
        let look =
            move |engine: &Engine| drop(part.send(explain::view(engine, &mch_id, &out_trade_no)));
        if !self.inspect(shard, look) {
            return refused(ControlError::Busy);
        }
        let log_dir = self.log_dir.clone();
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let Ok(Some(view)) = answer.await else {
                drop(sender.send(Err(ControlError::NotFound)));
                return;
            };
            // Reads the whole log: on a thread that may block.
            let read =
                tokio::task::spawn_blocking(move || explain::time_line(&log_dir, view)).await;
            let result = match read {
                Ok(result) => result.map_err(ControlError::Refused),
                Err(_) => Err(ControlError::Refused("the log reader failed".into())),
            };
            drop(sender.send(result));
        });
        receiver
    }
}
