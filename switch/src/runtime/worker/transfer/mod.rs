//! States on their way between sites: for a site whose log ends before its
//! leader's begins, which has been away for long or has just been added.
//!
//! The leader's newest checkpoint travels in bounded slices on a stream of its own
//! at the lowest priority, so that neither blocks nor other sites wait for it. The
//! other side writes it to a checkpoint file of its own and builds the engine
//! meanwhile, both on a thread; when the file is durable the consensus library
//! is told, the log begins anew, and the engine takes the place of the old one.
//!
//! | file | what |
//! |---|---|
//! | `parcel` | what travels, as bytes |
//! | `sender`, `receiver` | both ends |
//! | `handling` | what the thread does: files and engines |

mod handling;
mod parcel;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use storage::disk::{DirFiles, Disk, Files};
use storage::{Log, Space};

use super::WorkerError;
use super::checkpoint::Checkpointer;
use super::desk::{Desk, NotTaken};
use super::shard::Shard;
use crate::engine::{EngineConfig, Now};
use crate::metrics::Metrics;
use crate::runtime::inbox::Exchange;
use crate::runtime::mesh::Mesh;
use handling::{Done, Handling, Order, Which};
pub(super) use parcel::is_parcel;
use parcel::{Body, Parcel};
use receiver::{Arrived, Receiver};
use sender::Sender;

/// Orders that may wait for the thread: 256 KiB each at most.
const ORDERS_MAX: usize = 32;
/// Shards that may wait for their turn to be sent to a site.
const QUEUED_PER_SITE: usize = 4096;

/// The thread, the way to the other sites, and the figures.
pub(super) struct Clerk<F: Files> {
    desk: Desk<Handling<F>>,
    /// Orders that must not be forgotten, few and small.
    owed: VecDeque<Order>,
    mesh: Arc<Mesh>,
    metrics: Arc<Metrics>,
    /// Numbers of transfers begin here: those of another life are below.
    first_id: u64,
}

impl<F: Files> Clerk<F> {
    /// Hands an order in; `false` when there is no room.
    fn order(&mut self, order: Order) -> bool {
        self.owed.is_empty() && self.desk.offer(order).is_ok()
    }

    /// Hands an order in, later if there is no room now.
    fn must(&mut self, order: Order) {
        self.owed.push_back(order);
        self.pay();
    }

    fn pay(&mut self) {
        while let Some(order) = self.owed.pop_front() {
            if let Err(NotTaken::Full(order)) = self.desk.offer(order) {
                return self.owed.push_front(order);
            }
        }
    }

    /// Sends a parcel. What is lost is sent again.
    fn post(&self, site: u8, parcel: &Parcel) {
        if let Some(route) = self.mesh.route(site) {
            route.offer_state(parcel.encode());
        }
    }
}

/// Transfers of one worker, both ways.
pub(super) struct Transfers<F: Files = DirFiles> {
    clerk: Clerk<F>,
    sender: Sender,
    receiver: Receiver,
    /// What has come and was not looked at yet.
    parcels: VecDeque<(u8, Parcel)>,
}

impl Transfers {
    /// Starts the thread. It ends with the worker.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(
        log: &Log,
        exchange: &Arc<Exchange>,
        mesh: &Arc<Mesh>,
        metrics: &Arc<Metrics>,
        engines: &[EngineConfig],
    ) -> std::io::Result<Self> {
        let handling = Handling::new(log.checkpoints(), engines.to_vec());
        let desk = Desk::thread("states", handling, ORDERS_MAX, exchange)?;
        Ok(Self::over(desk, mesh, metrics))
    }
}

impl<F: Files> Transfers<F> {
    fn over(desk: Desk<Handling<F>>, mesh: &Arc<Mesh>, metrics: &Arc<Metrics>) -> Self {
        let sites = mesh.sites();
        let (mesh, metrics, owed) = (Arc::clone(mesh), Arc::clone(metrics), VecDeque::new());
        Self {
            clerk: Clerk { desk, owed, mesh, metrics, first_id: 0 },
            sender: Sender::new(sites),
            receiver: Receiver::new(sites),
            parcels: VecDeque::new(),
        }
    }

    /// Transfers whose orders the harness carries out; `hasty` ones count before
    /// they are durable.
    #[cfg(test)]
    pub(super) fn here<D: Disk<Files = F>>(
        log: &Log<D>,
        mesh: &Arc<Mesh>,
        metrics: &Arc<Metrics>,
        engines: &[EngineConfig],
        hasty: bool,
    ) -> Self {
        let mut handling = Handling::new(log.checkpoints(), engines.to_vec());
        handling.hasty = hasty;
        Self::over(Desk::here(handling, ORDERS_MAX), mesh, metrics)
    }

    /// What the harness works off.
    #[cfg(test)]
    pub(super) fn desk(&mut self) -> &mut Desk<Handling<F>> {
        &mut self.clerk.desk
    }

    /// Followers of a shard need its state.
    pub(super) fn wanted(&mut self, at: usize, shard: &mut Shard) {
        for sending in std::mem::take(&mut shard.wants.sendings) {
            self.sender.wanted(at, sending, shard);
        }
    }

    /// A packet with a parcel has come; `false` when it cannot be read.
    pub(super) fn receive(&mut self, from: u8, packet: &Bytes) -> bool {
        let parcel = Parcel::decode(packet);
        parcel.map(|parcel| self.parcels.push_back((from, parcel))).is_ok()
    }

    /// One turn's share.
    ///
    /// # Errors
    /// [`WorkerError`] where an engine cannot go on with what consensus hands out.
    pub(super) fn run<D: Disk<Files = F>>(
        &mut self,
        shards: &mut [Shard],
        checkpoints: &mut Checkpointer<D>,
        space: Space,
        now: Now,
    ) -> Result<(), WorkerError> {
        if self.clerk.first_id == 0 {
            self.clerk.first_id = now.wall_us;
        }
        self.clerk.pay();
        self.unpack(shards, space, now.mono_us);
        while let Some(done) = self.clerk.desk.take() {
            if let Some(arrived) = self.take_done(done, shards, now.mono_us) {
                self.install(arrived, shards, checkpoints, now)?;
            }
        }
        self.receiver.run(shards, space, &mut self.clerk, now.mono_us);
        let last = |at| checkpoints.last(at);
        self.sender.run(shards, last, &mut self.clerk, now.mono_us);
        checkpoints.hold(self.sender.held(now.mono_us));
        Ok(())
    }

    fn unpack(&mut self, shards: &mut [Shard], space: Space, now_us: u64) {
        let clerk = &mut self.clerk;
        for (site, Parcel { shard, id, body }) in self.parcels.drain(..) {
            let which = Which { site, id };
            match body {
                Body::Begin { term, base, bytes } => {
                    let (what, has_space) = ((term, base, bytes), space == Space::Ok);
                    self.receiver.begin(which, shard, what, shards, has_space, clerk, now_us);
                }
                Body::Slice { number, bytes } => {
                    self.receiver.slice(which, shard, (number, bytes), clerk, now_us);
                }
                Body::Taken { slices } => self.sender.taken(which, slices, now_us),
                Body::Refused => self.sender.refused(which, shards, clerk, now_us),
            }
        }
    }

    fn take_done(&mut self, done: Done, shards: &mut [Shard], now_us: u64) -> Option<Arrived> {
        let clerk = &mut self.clerk;
        match done {
            Done::Chunk { to, chunk } => self.sender.chunk(to, chunk, clerk, now_us),
            Done::NotRead { to, why } => self.sender.not_read(to, &why, shards, clerk),
            Done::Taken { from } => self.receiver.taken(from, clerk),
            Done::NotTaken { from, why } => self.receiver.give_up(from, &why, clerk),
            Done::Received { from, engine, bytes } => {
                return self.receiver.received(from, (engine, bytes), clerk);
            }
        }
        None
    }

    fn install<D: Disk<Files = F>>(
        &mut self,
        arrived: Arrived,
        shards: &mut [Shard],
        checkpoints: &mut Checkpointer<D>,
        now: Now,
    ) -> Result<(), WorkerError> {
        let Arrived { at, from, term, base, engine, bytes } = arrived;
        let Some(shard) = shards.get_mut(at) else { return Ok(()) };
        if let Some(old) = shard.install(from, term, &base, *engine, now)? {
            self.clerk.must(Order::Forget { engine: Box::new(old) });
            checkpoints.installed(at, base, bytes);
            self.clerk.metrics.snapshots_installed.add(1);
            let number = shard.replica.shard();
            println!(
                "shard {number}: goes on from the state at block {} of site {from}",
                base.index
            );
        }
        Ok(())
    }
}
