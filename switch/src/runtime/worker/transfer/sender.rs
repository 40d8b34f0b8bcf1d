//! States on their way to sites whose log ends before ours begins.
//!
//! One at a time and site, in slices, of which [`WINDOW`] at most are on their way:
//! they are kept until they are taken, and sent again when nothing is heard. The
//! library is told of a state that does not get through, probes the follower
//! and asks for the newest state if it is still needed.

use std::collections::VecDeque;

use bytes::Bytes;

use super::handling::{Order, Which};
use super::parcel::{Body, Parcel};
use super::{Clerk, QUEUED_PER_SITE};
use crate::replica::Sending;
use crate::runtime::worker::checkpoint::Last;
use crate::runtime::worker::shard::Shard;
use storage::disk::Files;

/// Slices on their way.
const WINDOW: u32 = 4;
/// What was not taken after this long is sent again, microseconds.
const RESEND_US: u64 = 300_000;
/// After this long without a sign the transfer is given up, microseconds.
const STALE_US: u64 = 5_000_000;
/// Wait after a refusal, microseconds.
const REFUSED_US: u64 = 1_000_000;
/// A checkpoint on its way is not replaced, nor the log behind it given up,
/// for this long at most, microseconds.
const HOLD_MAX_US: u64 = 600_000_000;

/// A transfer under way.
struct Outgoing {
    at: usize,
    shard: u16,
    sending: Sending,
    id: u64,
    bytes: u64,
    /// Not taken yet, oldest first.
    kept: VecDeque<(u32, Bytes)>,
    /// The other side has answered.
    heard: bool,
    /// Slices asked of the reader, and got from it.
    asked: u32,
    read: u32,
    /// Slices taken by the other side.
    taken: u32,
    /// The last slice was read.
    whole: bool,
    begun_us: u64,
    /// When something was last sent, and heard.
    sent_us: u64,
    heard_us: u64,
}

/// The way to one site.
#[derive(Default)]
struct Lane {
    active: Option<Outgoing>,
    waiting: VecDeque<(usize, Sending)>,
    /// After a refusal: the reason, a full disk say, may last.
    rests_until_us: u64,
}

/// See the module.
pub(super) struct Sender {
    /// By site - 1.
    lanes: Vec<Lane>,
    last_id: u64,
}

impl Sender {
    pub(super) fn new(sites: u8) -> Self {
        Self { lanes: (0..sites).map(|_| Lane::default()).collect(), last_id: 0 }
    }

    fn lane(&mut self, site: u8) -> Option<&mut Lane> {
        self.lanes.get_mut(usize::from(site).checked_sub(1)?)
    }

    /// A follower of this shard needs a state.
    pub(super) fn wanted(&mut self, at: usize, sending: Sending, shard: &mut Shard) {
        let lane = u8::try_from(sending.site).ok().and_then(|site| self.lane(site));
        let Some(lane) = lane else { return };
        lane.waiting.retain(|(other, _)| *other != at);
        if lane.waiting.len() >= QUEUED_PER_SITE {
            return shard.replica.not_sent(&sending);
        }
        lane.waiting.push_back((at, sending));
    }

    /// Places of the shards whose checkpoints must stay.
    pub(super) fn held(&self, now_us: u64) -> impl Iterator<Item = usize> + '_ {
        let active = self.lanes.iter().filter_map(|lane| lane.active.as_ref());
        let held = active.filter(move |out| now_us.saturating_sub(out.begun_us) < HOLD_MAX_US);
        held.map(|out| out.at)
    }

    /// Moves every transfer on; `last` tells the newest checkpoint of a shard.
    pub(super) fn run<F: Files>(
        &mut self,
        shards: &mut [Shard],
        last: impl Fn(usize) -> Last,
        clerk: &mut Clerk<F>,
        now_us: u64,
    ) {
        for at in 0..self.lanes.len() {
            let site = at as u8 + 1;
            if let Some(out) = &mut self.lanes[at].active {
                out.go_on(site, shards, clerk, now_us);
                if out.is_over(shards, now_us) {
                    self.end(site, shards, clerk, "nothing is heard of it");
                }
            }
            while self.lanes[at].active.is_none() && now_us >= self.lanes[at].rests_until_us {
                let Some((place, sending)) = self.lanes[at].waiting.pop_front() else { break };
                self.begin(site, place, sending, shards, &last, clerk, now_us);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a transfer is of, and with what")]
    fn begin<F: Files>(
        &mut self,
        site: u8,
        at: usize,
        sending: Sending,
        shards: &mut [Shard],
        last: &impl Fn(usize) -> Last,
        clerk: &mut Clerk<F>,
        now_us: u64,
    ) {
        let Some(shard) = shards.get_mut(at) else { return };
        let found = last(at);
        if !shard.replica.awaits(&sending) {
            return;
        }
        self.last_id = (self.last_id + 1).max(clerk.first_id);
        let (id, index, number) = (self.last_id, sending.base.index, shard.replica.shard());
        let to = Which { site, id };
        let is_newest = found.index == index;
        if !is_newest || !clerk.order(Order::Open { to, shard: number, index }) {
            // It was replaced while it waited, or the thread is busy.
            return shard.replica.not_sent(&sending);
        }
        println!("shard {number}: the state at block {index} goes to site {site}");
        let out = Outgoing {
            at,
            shard: number,
            sending,
            id,
            bytes: found.bytes,
            kept: VecDeque::new(),
            heard: false,
            asked: 0,
            read: 0,
            taken: 0,
            whole: false,
            begun_us: now_us,
            sent_us: now_us,
            heard_us: now_us,
        };
        clerk.post(site, &out.begin());
        if let Some(lane) = self.lane(site) {
            lane.active = Some(out);
        }
    }

    fn end<F: Files>(&mut self, site: u8, shards: &mut [Shard], clerk: &mut Clerk<F>, why: &str) {
        let Some(out) = self.lane(site).and_then(|lane| lane.active.take()) else { return };
        clerk.must(Order::Close { to: Which { site, id: out.id } });
        let Some(shard) = shards.get_mut(out.at) else { return };
        let (number, index) = (out.shard, out.sending.base.index);
        if shard.replica.awaits(&out.sending) {
            shard.replica.not_sent(&out.sending);
            clerk.metrics.snapshot_failures.add(1);
            eprintln!("shard {number}: the state at block {index} is not at site {site}: {why}");
        } else if shard.replica.is_at(&out.sending) {
            clerk.metrics.snapshots_sent.add(1);
            println!("shard {number}: the state at block {index} is at site {site}");
        }
    }

    fn active(&mut self, which: Which) -> Option<&mut Outgoing> {
        self.lane(which.site)?.active.as_mut().filter(|out| out.id == which.id)
    }

    /// A chunk was read; an empty one is the last.
    pub(super) fn chunk<F: Files>(
        &mut self,
        to: Which,
        chunk: Bytes,
        clerk: &mut Clerk<F>,
        now_us: u64,
    ) {
        // Asked for ahead, before the end was known.
        let Some(out) = self.active(to).filter(|out| !out.whole) else { return };
        let number = out.read;
        out.read += 1;
        out.whole = chunk.is_empty();
        // While our own disk was read nothing could be heard.
        (out.sent_us, out.heard_us) = (now_us, now_us);
        clerk.post(to.site, &out.slice(number, chunk.clone()));
        out.kept.push_back((number, chunk));
    }

    /// The checkpoint cannot be read.
    pub(super) fn not_read<F: Files>(
        &mut self,
        to: Which,
        why: &str,
        shards: &mut [Shard],
        clerk: &mut Clerk<F>,
    ) {
        let Some(out) = self.active(to) else { return };
        if let Some(shard) = shards.get_mut(out.at) {
            shard.replica.withdraw(&out.sending);
            // A quiet shard writes another one too.
            shard.grown = shard.grown.max(1);
        }
        self.end(to.site, shards, clerk, why);
    }

    /// The other side has taken so many slices.
    pub(super) fn taken(&mut self, to: Which, slices: u32, now_us: u64) {
        let Some(out) = self.active(to) else { return };
        out.heard = true;
        // With all of it there only the library's own answer counts as a sign: should
        // that be lost, the state is offered once more.
        if !out.is_taken() {
            out.heard_us = now_us;
        }
        if slices <= out.read {
            out.taken = out.taken.max(slices);
            let taken = out.taken;
            out.kept.retain(|(number, _)| *number >= taken);
        }
    }

    /// The other side does not want it, or does not know of it.
    pub(super) fn refused<F: Files>(
        &mut self,
        to: Which,
        shards: &mut [Shard],
        clerk: &mut Clerk<F>,
        now_us: u64,
    ) {
        if self.active(to).is_some() {
            self.end(to.site, shards, clerk, "it is refused there");
        }
        if let Some(lane) = self.lane(to.site) {
            lane.rests_until_us = now_us + REFUSED_US;
        }
    }
}

impl Outgoing {
    fn begin(&self) -> Parcel {
        let Sending { term, base, .. } = self.sending;
        self.parcel(Body::Begin { term, base, bytes: self.bytes })
    }

    fn slice(&self, number: u32, bytes: Bytes) -> Parcel {
        self.parcel(Body::Slice { number, bytes })
    }

    fn parcel(&self, body: Body) -> Parcel {
        Parcel { shard: self.shard, id: self.id, body }
    }

    fn is_taken(&self) -> bool {
        self.whole && self.taken == self.read
    }

    /// Reads ahead, and sends again what got lost.
    fn go_on<F: Files>(
        &mut self,
        site: u8,
        shards: &mut [Shard],
        clerk: &mut Clerk<F>,
        now_us: u64,
    ) {
        let awaited = shards.get(self.at).is_some_and(|it| it.replica.awaits(&self.sending));
        if !awaited {
            return;
        }
        let to = Which { site, id: self.id };
        while self.heard
            && !self.whole
            && self.asked - self.taken < WINDOW
            && clerk.order(Order::Read { to })
        {
            self.asked += 1;
        }
        if now_us.saturating_sub(self.sent_us) < RESEND_US {
            return;
        }
        self.sent_us = now_us;
        if !self.heard {
            clerk.post(site, &self.begin());
        }
        for (number, bytes) in &self.kept {
            clerk.post(site, &self.slice(*number, bytes.clone()));
        }
    }

    /// It is there, or not needed any more, or lost.
    fn is_over(&self, shards: &[Shard], now_us: u64) -> bool {
        let awaited = shards.get(self.at).is_some_and(|it| it.replica.awaits(&self.sending));
        let reads = self.asked > self.read && !self.whole;
        !awaited || !reads && now_us.saturating_sub(self.heard_us) > STALE_US
    }
}
