//! States that come from the leaders of shards whose log begins behind ours.
//!
//! One at a time and site. A slice is taken in its turn and acknowledged when it
//! was carried out, so that what waits is bounded by the sender's window, and in
//! any case by the desk. A state that a newer one of the same site replaces, that
//! nobody goes on with or that does not check out is dropped.

use bytes::Bytes;
use storage::Space;
use storage::disk::Files;

use super::Clerk;
use super::handling::{Order, Which};
use super::parcel::{Body, Parcel};
use crate::engine::Engine;
use crate::replica::Base;
use crate::runtime::worker::shard::Shard;

/// Longest state that is taken, bytes.
const STATE_BYTES_MAX: u64 = 1 << 40;
/// Nothing came for this long: it is dropped, microseconds.
const STALE_US: u64 = 30_000_000;

/// A state that comes.
struct Incoming {
    id: u64,
    at: usize,
    shard: u16,
    term: u64,
    base: Base,
    /// What it may still bring, bytes.
    left: u64,
    /// Slices handed to the desk, and carried out.
    ordered: u32,
    taken: u32,
    heard_us: u64,
}

/// What a site sends.
#[derive(Default)]
struct Lane {
    active: Option<Incoming>,
    /// The last one that was taken whole, and its slices: its sender may not have
    /// heard of it.
    whole: Option<(u64, u32)>,
}

/// A state that is durable here.
pub(super) struct Arrived {
    pub(super) at: usize,
    pub(super) from: u64,
    pub(super) term: u64,
    pub(super) base: Base,
    pub(super) engine: Box<Engine>,
    pub(super) bytes: u64,
}

/// See the module.
pub(super) struct Receiver {
    /// By site - 1.
    lanes: Vec<Lane>,
}

impl Receiver {
    pub(super) fn new(sites: u8) -> Self {
        Self { lanes: (0..sites).map(|_| Lane::default()).collect() }
    }

    fn lane(&mut self, site: u8) -> Option<&mut Lane> {
        self.lanes.get_mut(usize::from(site).checked_sub(1)?)
    }

    fn active(&mut self, which: Which) -> Option<&mut Incoming> {
        self.lane(which.site)?.active.as_mut().filter(|coming| coming.id == which.id)
    }

    /// Drops what nobody goes on with, what another leader will send again, and
    /// everything when the disk has no room but for the log.
    pub(super) fn run<F: Files>(
        &mut self,
        shards: &[Shard],
        space: Space,
        clerk: &mut Clerk<F>,
        now_us: u64,
    ) {
        for (site, lane) in (1..).zip(&mut self.lanes) {
            let over = |coming: &mut Incoming| {
                let shard = shards.get(coming.at);
                now_us.saturating_sub(coming.heard_us) > STALE_US
                    || space != Space::Ok
                    || shard.is_some_and(|shard| shard.replica.term() > coming.term)
            };
            if let Some(coming) = lane.active.take_if(over) {
                clerk.must(Order::Drop { from: Which { site, id: coming.id } });
            }
        }
    }

    /// A state is announced.
    #[expect(clippy::too_many_arguments, reason = "an announcement, and who judges it")]
    pub(super) fn begin<F: Files>(
        &mut self,
        from: Which,
        shard: u16,
        (term, base, bytes): (u64, Base, u64),
        shards: &mut [Shard],
        has_space: bool,
        clerk: &mut Clerk<F>,
        now_us: u64,
    ) {
        let answer = |slices| Parcel { shard, id: from.id, body: Body::Taken { slices } };
        if let Some(coming) = self.active(from) {
            // Sent again: its answer was lost.
            coming.heard_us = now_us;
            let taken = coming.taken;
            return clerk.post(from.site, &answer(taken));
        }
        let at = shards.iter().position(|it| it.replica.shard() == shard);
        let at = at.filter(|at| {
            shards[*at].replica.would_take(u64::from(from.site), term, &base)
                && bytes <= STATE_BYTES_MAX
                && has_space
                && !self.is_coming(*at, from.site)
        });
        let Some(at) = at else {
            if let Some(shard) = shards.iter_mut().find(|it| it.replica.shard() == shard) {
                shard.replica.has_already(u64::from(from.site), term, &base);
            }
            return clerk.post(from.site, &refused(shard, from));
        };
        if !clerk.order(Order::Receive { from, shard, base }) {
            // It will be announced again.
            return;
        }
        println!("shard {shard}: the state at block {} comes from site {}", base.index, from.site);
        let (id, left, heard_us) = (from.id, bytes, now_us);
        let coming = Incoming { id, at, shard, term, base, left, ordered: 0, taken: 0, heard_us };
        if let Some(lane) = self.lane(from.site) {
            lane.active = Some(coming);
        }
        clerk.post(from.site, &answer(0));
    }

    /// Whether another site already sends a state of the shard.
    fn is_coming(&self, at: usize, site: u8) -> bool {
        let mut lanes = (1..).zip(&self.lanes).filter(|(other, _)| *other != site);
        lanes.any(|(_, lane)| lane.active.as_ref().is_some_and(|coming| coming.at == at))
    }

    /// A slice has come.
    pub(super) fn slice<F: Files>(
        &mut self,
        from: Which,
        shard: u16,
        (number, slice): (u32, Bytes),
        clerk: &mut Clerk<F>,
        now_us: u64,
    ) {
        let taken = |slices| Parcel { shard, id: from.id, body: Body::Taken { slices } };
        let whole = self.lane(from.site).and_then(|lane| lane.whole);
        let Some(coming) = self.active(from) else {
            return match whole.filter(|(id, _)| *id == from.id) {
                Some((_, slices)) => clerk.post(from.site, &taken(slices)),
                // Of another life of this process, or dropped.
                None => clerk.post(from.site, &refused(shard, from)),
            };
        };
        coming.heard_us = now_us;
        if number < coming.ordered {
            let slices = coming.taken;
            return clerk.post(from.site, &taken(slices));
        }
        if number > coming.ordered {
            // The one before was lost, and is sent again.
            return;
        }
        let Some(left) = coming.left.checked_sub(slice.len() as u64) else {
            return self.give_up(from, "it is longer than announced", clerk);
        };
        let is_last = slice.is_empty();
        let order = if is_last { Order::Finish { from } } else { Order::Take { from, slice } };
        if clerk.order(order) {
            coming.left = left;
            coming.ordered += 1;
        }
    }

    /// A slice was carried out.
    pub(super) fn taken<F: Files>(&mut self, from: Which, clerk: &mut Clerk<F>) {
        let Some(coming) = self.active(from) else { return };
        coming.taken += 1;
        let (shard, slices) = (coming.shard, coming.taken);
        clerk.post(from.site, &Parcel { shard, id: from.id, body: Body::Taken { slices } });
    }

    /// All of it is durable.
    pub(super) fn received<F: Files>(
        &mut self,
        from: Which,
        (engine, bytes): (Box<Engine>, u64),
        clerk: &mut Clerk<F>,
    ) -> Option<Arrived> {
        self.taken(from, clerk);
        self.active(from)?;
        let lane = self.lane(from.site)?;
        let Incoming { id, at, term, base, taken, .. } = lane.active.take()?;
        lane.whole = Some((id, taken));
        Some(Arrived { at, from: u64::from(from.site), term, base, engine, bytes })
    }

    /// It cannot be used.
    pub(super) fn give_up<F: Files>(&mut self, from: Which, why: &str, clerk: &mut Clerk<F>) {
        if self.active(from).is_none() {
            return;
        }
        let Some(coming) = self.lane(from.site).and_then(|lane| lane.active.take()) else { return };
        let (shard, index) = (coming.shard, coming.base.index);
        eprintln!(
            "shard {shard}: the state at block {index} of site {} is dropped: {why}",
            from.site
        );
        clerk.must(Order::Drop { from });
        clerk.metrics.snapshot_failures.add(1);
        clerk.post(from.site, &refused(shard, from));
    }
}

fn refused(shard: u16, from: Which) -> Parcel {
    Parcel { shard, id: from.id, body: Body::Refused }
}
