//! One site: its disk, which outlives everything, and its process, if one runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use storage::disk::Tear;
use storage::{Closed, Frame, FrameKind, LogError, Notify, SimDisk};

use super::disk::{Pace, TimedDisk};
use super::random::Random;
use super::setup::{Flaw, MS, SECOND, START_WALL, Setup};
use crate::engine::Now;
use crate::metrics::Metrics;
use crate::replica::HardState;
use crate::runtime::held::Held;
use crate::runtime::inbox::{Exchange, Item, Listen};
use crate::runtime::mesh::Mesh;
use crate::runtime::worker::checkpoint::Checkpointer;
use crate::runtime::worker::transfer::Transfers;
use crate::runtime::worker::{Recovering, Report, Shared, Worker};

/// Longest microseconds of a write on a sound disk.
const WRITE_US: u64 = 700;

/// A running process.
pub(super) struct Process {
    pub(super) worker: Worker<TimedDisk>,
    pub(super) shared: Arc<Shared>,
    started_us: u64,
    wall_started_us: u64,
    /// The turn that is planned, and whether what arrives may bring it forward.
    pub(super) next_turn: (u64, u64),
    pub(super) listens: Listen,
    /// It does not run before.
    pub(super) paused_until_us: u64,
    /// Requests to channels that wait for a lease.
    pub(super) held: Held,
    /// Per shard: how far the checker has followed.
    pub(super) followed: Vec<u64>,
    /// Work beside the log is planned.
    pub(super) works: bool,
}

impl Process {
    /// The process's clocks at a moment of true time.
    pub(super) fn clocks(&self, now_us: u64) -> Now {
        let mono_us = now_us - self.started_us;
        Now { mono_us: mono_us + SECOND, wall_us: self.wall_started_us + mono_us }
    }

    /// Whether work beside the log waits that is not planned yet.
    pub(super) fn has_work(&mut self) -> bool {
        let Worker { checkpoints, transfers, .. } = &mut self.worker;
        let waits = checkpoints.as_mut().is_some_and(|it| it.desk().waits())
            || transfers.as_mut().is_some_and(|it| it.desk().waits());
        waits && !std::mem::replace(&mut self.works, true)
    }

    /// Hands items to the worker; `false` when its inbox is full.
    pub(super) fn push(&self, now_us: u64, items: impl IntoIterator<Item = (u16, Item)>) -> bool {
        let mut batch = self.shared.exchange.batch();
        batch.queued_us = self.clocks(now_us).mono_us;
        batch.items.extend(items);
        self.shared.exchange.push(batch).is_ok()
    }
}

/// A site.
pub(super) struct Site {
    pub(super) number: u8,
    pub(super) disk: SimDisk,
    pub(super) pace: Rc<RefCell<Pace>>,
    /// When the disk's write in flight completes.
    pub(super) disk_due_us: Rc<Cell<Option<u64>>>,
    /// Counts the processes it had.
    pub(super) life: u32,
    pub(super) process: Option<Process>,
    installed: u64,
}

impl Site {
    pub(super) fn new(number: u8, setup: &Setup, random: &mut Random) -> Self {
        let lies = matches!(setup.flaw, Some(Flaw::SkipSync | Flaw::SkipSyncStartAgain));
        let lie_us = if lies { 300 * MS } else { 0 };
        let pace = Pace { random: Random::new(random.next()), write_us: WRITE_US, lie_us };
        Self {
            number,
            disk: SimDisk::new(random.next(), setup.log().segment_bytes),
            pace: Rc::new(RefCell::new(pace)),
            disk_due_us: Rc::default(),
            life: 0,
            process: None,
            installed: 0,
        }
    }

    pub(super) fn slow_down(&self, times: u64) {
        self.pace.borrow_mut().write_us = WRITE_US * times;
    }

    /// Starts a process over what the disk holds; `false` when the disk failed
    /// meanwhile. What it holds must always be sound.
    pub(super) fn boot(&mut self, clock: &Rc<Cell<u64>>, setup: &Setup, skew_us: u64) -> bool {
        let disk = TimedDisk::new(
            self.disk.clone(),
            Rc::clone(clock),
            Rc::clone(&self.pace),
            Rc::clone(&self.disk_due_us),
        );
        let settings = setup.worker(self.number);
        let closed = match Closed::with_disk(disk, setup.log()) {
            Ok(closed) => closed,
            Err(LogError::Poisoned(_) | LogError::Disk(_)) => return false,
            Err(error) => panic!("site {} refuses its log: {error}", self.number),
        };
        let mut recovering = Recovering::new(&settings, closed.checkpoints().as_ref());
        recovering.break_rule(setup.rule());
        let forget = setup.flaw == Some(Flaw::ForgetVote);
        let mut replay = |frame: Frame<'_>| {
            let state = HardState::decode(frame.payload);
            let (vote, state) = (0, state.unwrap_or(HardState { term: 0, vote: 0, commit: 0 }));
            let state = HardState { vote, ..state }.encode();
            let payload = match frame.kind {
                FrameKind::HardState if forget => &state[..],
                _ => frame.payload,
            };
            let replayed = recovering.frame(&Frame { payload, ..frame });
            replayed.map_err(|error| storage::ReplayError::new(error.to_string()))
        };
        let (log, recovery) = match closed.open(&mut replay) {
            Ok(opened) => opened,
            Err(LogError::Poisoned(_) | LogError::Disk(_)) => return false,
            Err(error) => panic!("site {} refuses its log: {error}", self.number),
        };
        let shared = Arc::new(shared(self.number, setup));
        shared.log_is_empty.store(recovery.frames == 0, Ordering::Relaxed);
        if let Err(error) = recovering.check(&recovery.shards) {
            panic!("site {} refuses its log: {error}", self.number);
        }
        let (shards, last) = recovering.finish();
        let metrics = &shared.metrics;
        let checkpoints = Checkpointer::here(&log, metrics, last, settings.checkpoint_bytes);
        let hasty = setup.flaw == Some(Flaw::HastyState);
        let transfers = Transfers::here(&log, &shared.mesh, metrics, &settings.engines, hasty);
        let mut worker = Worker::over(shards, log, None, Arc::clone(&shared), settings);
        if (u32::from(self.number) + self.life) % 2 == 1 {
            // As under load: what comes waits for the next proposal, if one is prepared.
            worker.proposals.busy_bytes = 0;
        }
        (worker.checkpoints, worker.transfers) = (Some(checkpoints), Some(transfers));
        let now_us = clock.get();
        self.life += 1;
        self.process = Some(Process {
            worker,
            shared,
            started_us: now_us,
            wall_started_us: START_WALL + now_us + skew_us,
            next_turn: (u64::MAX, 0),
            listens: Listen::All,
            paused_until_us: 0,
            held: Held::default(),
            followed: vec![0; usize::from(setup.shards)],
            works: false,
        });
        true
    }

    /// Carries out one order that waits for the disk beside the log: a
    /// checkpoint's, or of a state on its way.
    pub(super) fn work(&mut self, first_checkpoints: bool) {
        let Some(process) = &mut self.process else { return };
        process.works = false;
        let Worker { checkpoints, transfers, .. } = &mut process.worker;
        let (Some(checkpoints), Some(transfers)) = (checkpoints, transfers) else { return };
        let (checkpoints, transfers) = (checkpoints.desk(), transfers.desk());
        if first_checkpoints {
            checkpoints.work();
        }
        if !transfers.work() {
            checkpoints.work();
        }
    }

    /// States of other sites that its processes went on from.
    pub(super) fn installed(&self) -> u64 {
        let runs = self.process.as_ref();
        self.installed + runs.map_or(0, |it| it.shared.metrics.snapshots_installed.value())
    }

    /// The process ends, and with the power what was not durable.
    pub(super) fn crash(&mut self, tear: Tear) {
        self.installed = self.installed();
        self.process = None;
        self.disk_due_us.set(None);
        self.disk.crash(tear);
    }
}

fn shared(site: u8, setup: &Setup) -> Shared {
    let net_wake = Arc::new(tokio::sync::Notify::new());
    let notify = Notify::new().expect("a descriptor");
    let mesh = Mesh::new(site, setup.sites, setup.shards);
    for other in mesh.others() {
        mesh.route(other).expect("a site").set_up(true);
    }
    let channels = setup.channels.iter().map(|channel| channel.name.clone());
    Shared {
        exchange: Arc::new(Exchange::new(256, notify, net_wake)),
        mesh: Arc::new(mesh),
        metrics: Arc::new(Metrics::sized(u16::from(site), setup.shards, channels)),
        leave: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        storage_full: AtomicBool::new(false),
        log_is_empty: Arc::default(),
        report: Mutex::new(Report::default()),
    }
}
