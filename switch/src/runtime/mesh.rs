//! What the threads of a node share about the other sites: queues of replica
//! messages towards each of them, who leads which shard, and who seems gone.
//!
//! The worker fills the queues and publishes leaders; the peer thread empties
//! the queues onto its links and reports signs of death; the network thread
//! looks up leaders. Every queue is bounded: consensus survives a dropped
//! message, a slow site must not hold memory or anybody else up.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;
use tokio::sync::Notify;

/// Packets of one kind towards one site before new ones are dropped.
const PACKETS_MAX: usize = 1024;
/// Bytes of bulk packets towards one site before new ones are dropped.
const BULK_BYTES_MAX: usize = 16 << 20;
/// Bytes of the other kinds.
const SMALL_BYTES_MAX: usize = 4 << 20;

/// Which stream of a peer link a packet takes: bulk must not delay the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Votes, heartbeats, acknowledgements.
    Urgent = 0,
    /// Blocks.
    Bulk = 1,
}

/// What a packet of a peer link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Traffic {
    /// Replica messages that must not wait.
    Urgent = 1,
    /// Replica messages with blocks.
    Bulk = 2,
    /// Requests of gateways for shards that the other site leads.
    Forwards = 3,
    /// The answers to those.
    Answers = 4,
    /// States for sites that are too far behind for blocks.
    States = 5,
}

impl Traffic {
    const ALL: [Self; 5] = [Self::Urgent, Self::Bulk, Self::Forwards, Self::Answers, Self::States];

    /// Longest packet, bytes. One bulk packet carries blocks of several shards.
    pub fn packet_max(self) -> usize {
        match self {
            Self::Bulk => 20 << 20,
            _ => 1 << 20,
        }
    }
}

impl From<Urgency> for Traffic {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Urgent => Self::Urgent,
            Urgency::Bulk => Self::Bulk,
        }
    }
}

/// Why a queue did not take a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The link is down: whatever was in flight on it is lost as well.
    Down,
    /// The link is behind: here is the packet, to be offered again.
    Full(Vec<u8>),
}

/// Packets of one kind towards one site.
pub struct Queue {
    packets: ArrayQueue<Vec<u8>>,
    packet_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
    /// Told of every packet; the link's writer waits here.
    pub wake: Notify,
}

impl Queue {
    fn new(traffic: Traffic) -> Self {
        let bulk = traffic == Traffic::Bulk;
        Self {
            packets: ArrayQueue::new(PACKETS_MAX),
            packet_max: traffic.packet_max(),
            bytes: AtomicUsize::new(0),
            bytes_max: if bulk { BULK_BYTES_MAX } else { SMALL_BYTES_MAX },
            wake: Notify::new(),
        }
    }

    /// Its only writer keeps the bound: two at a time could pass it by a packet.
    fn push(&self, packet: Vec<u8>) -> Result<(), Vec<u8>> {
        let bytes = packet.len();
        if bytes > self.packet_max || self.bytes.load(Ordering::Relaxed) + bytes > self.bytes_max {
            return Err(packet);
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match self.packets.push(packet) {
            Ok(()) => {
                self.wake.notify_one();
                Ok(())
            }
            Err(packet) => {
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                Err(packet)
            }
        }
    }

    /// Peer thread: the next packet.
    pub fn take(&self) -> Option<Vec<u8>> {
        let packet = self.packets.pop()?;
        self.bytes.fetch_sub(packet.len(), Ordering::Relaxed);
        Some(packet)
    }
}

/// The way towards one other site.
pub struct Route {
    queues: [Queue; 5],
    dropped: AtomicU64,
    up: AtomicBool,
    losses: AtomicU64,
    /// Connections of the other site that were accepted.
    accepted: AtomicU32,
}

impl Route {
    fn new() -> Self {
        Self {
            queues: Traffic::ALL.map(Queue::new),
            dropped: AtomicU64::new(0),
            up: AtomicBool::new(false),
            losses: AtomicU64::new(0),
            accepted: AtomicU32::new(0),
        }
    }

    /// The queue of a kind of packets.
    pub fn queue(&self, traffic: Traffic) -> &Queue {
        &self.queues[traffic as usize - 1]
    }

    /// Worker: offers a packet. Dropped when the link is down or behind;
    /// consensus sends again by itself.
    pub fn offer(&self, urgency: Urgency, packet: Vec<u8>) -> bool {
        let taken = self.is_up() && self.queue(urgency.into()).push(packet).is_ok();
        if !taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Worker: offers a part of a state. Dropped when the link is down or behind;
    /// it is sent again.
    pub fn offer_state(&self, packet: Vec<u8>) -> bool {
        self.is_up() && self.queue(Traffic::States).push(packet).is_ok()
    }

    /// Network thread: offers forwarded requests, which travel on our own link.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn offer_forwards(&self, packet: Vec<u8>) -> Result<(), Refused> {
        if !self.is_up() {
            return Err(Refused::Down);
        }
        self.queue(Traffic::Forwards).push(packet).map_err(Refused::Full)
    }

    /// Network thread: offers answers, which travel back on the other site's
    /// link, up or not: when it is lost the other site asks again elsewhere.
    ///
    /// # Errors
    /// The packet, when the link is behind.
    pub fn offer_answers(&self, packet: Vec<u8>) -> Result<(), Vec<u8>> {
        self.queue(Traffic::Answers).push(packet)
    }

    /// Peer thread: our link came up or went down. What waits is dropped when
    /// it goes down: it would be stale.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Release);
        if !up {
            for traffic in [Traffic::Urgent, Traffic::Bulk, Traffic::Forwards, Traffic::States] {
                while self.queue(traffic).take().is_some() {}
            }
            // Last: whoever sees the count knows that nothing of before is left.
            self.losses.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether our link is up.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// How often our link was lost: when it changes, every request that was
    /// forwarded on it is without answer.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// Peer thread: numbers a connection that the other site has dialled. They count up
    /// for as long as the process lives, so that an older one is known by its number.
    pub fn accept(&self) -> u32 {
        self.accepted.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// The number of the newest of those.
    pub fn newest(&self) -> u32 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Packets dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Shared by the threads of one node.
pub struct Mesh {
    site: u8,
    routes: Vec<Route>,
    /// Per shard: term and leading site.
    leaders: Vec<AtomicU64>,
    /// Per shard: until when this site may send to channels.
    leases: Vec<AtomicU64>,
    /// Told whenever a leader changes.
    pub leaders_changed: Notify,
    changes: AtomicU64,
    /// One bit per site whose process is known to have ended since last asked.
    gone: AtomicU64,
}

impl Mesh {
    /// For `site` of `sites`, both 1-based, and this many shards.
    pub fn new(site: u8, sites: u8, shards: u16) -> Self {
        Self {
            site,
            routes: (0..sites).map(|_| Route::new()).collect(),
            leaders: (0..shards).map(|_| AtomicU64::new(0)).collect(),
            leases: (0..shards).map(|_| AtomicU64::new(0)).collect(),
            leaders_changed: Notify::new(),
            changes: AtomicU64::new(0),
            gone: AtomicU64::new(0),
        }
    }

    /// This site, 1-based.
    pub fn site(&self) -> u8 {
        self.site
    }

    /// Number of sites.
    pub fn sites(&self) -> u8 {
        self.routes.len() as u8
    }

    /// The way towards a site; `None` for a number out of range.
    pub fn route(&self, site: u8) -> Option<&Route> {
        self.routes.get(usize::from(site).checked_sub(1)?)
    }

    /// The other sites.
    pub fn others(&self) -> impl Iterator<Item = u8> + '_ {
        (1..=self.sites()).filter(|site| *site != self.site)
    }

    /// Worker: who leads a shard as far as this replica knows; 0: nobody.
    /// Whether that is news.
    pub fn publish_leader(&self, shard: u16, term: u64, site: u8) -> bool {
        let Some(slot) = self.leaders.get(usize::from(shard)) else { return false };
        let value = term << 8 | u64::from(site);
        let news = slot.swap(value, Ordering::AcqRel) != value;
        if news {
            self.changes.fetch_add(1, Ordering::AcqRel);
            self.leaders_changed.notify_waiters();
        }
        news
    }

    /// Worker: until when this site may send to channels on behalf of a shard,
    /// by the process's monotonic clock, microseconds.
    pub fn publish_lease(&self, shard: u16, until_us: u64) {
        if let Some(slot) = self.leases.get(usize::from(shard)) {
            slot.store(until_us, Ordering::Release);
        }
    }

    /// Network thread: whether this site may send to channels on behalf of a
    /// shard. Asked at the last moment: the process may have been stopped since
    /// the worker let the request go.
    pub fn may_send(&self, shard: u16, now_us: u64) -> bool {
        let slot = self.leases.get(usize::from(shard));
        slot.is_some_and(|slot| now_us < slot.load(Ordering::Acquire))
    }

    /// How often a leader has changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.leaders.len()
    }

    /// Term, and who leads a shard in it; 0: nobody known.
    pub fn leader_of(&self, shard: u16) -> (u64, u8) {
        let slot = self.leaders.get(usize::from(shard));
        let value = slot.map_or(0, |slot| slot.load(Ordering::Acquire));
        (value >> 8, value as u8)
    }

    /// Who leads a shard; 0: nobody known.
    pub fn leader(&self, shard: u16) -> u8 {
        let slot = self.leaders.get(usize::from(shard));
        slot.map_or(0, |slot| slot.load(Ordering::Acquire) as u8)
    }

    /// Peer thread: the process of a site has ended, for example because the
    /// kernel closed its liveness connection. Only a hint: it may start an
    /// election sooner, while the old leader's lease runs out.
    pub fn report_gone(&self, site: u8) {
        if (1..=self.sites()).contains(&site) && site != self.site {
            self.gone.fetch_or(1 << site, Ordering::AcqRel);
        }
    }

    /// Worker: sites reported gone since the last call, a bit per site number.
    pub fn take_gone(&self) -> u64 {
        if self.gone.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.gone.swap(0, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_is_down_or_full_drops_and_counts() {
        let mesh = Mesh::new(1, 3, 12);
        let route = mesh.route(2).unwrap();
        assert!(!route.offer(Urgency::Urgent, vec![1]), "down");
        assert_eq!(route.offer_forwards(vec![1]), Err(Refused::Down));
        route.set_up(true);
        assert!(route.offer(Urgency::Bulk, vec![0; BULK_BYTES_MAX]));
        assert!(!route.offer(Urgency::Bulk, vec![0]), "bytes are bounded");
        assert!(route.offer(Urgency::Urgent, vec![7]), "bulk does not hold up the urgent");
        assert_eq!(
            route.queue(Traffic::Bulk).take().map(|packet| packet.len()),
            Some(BULK_BYTES_MAX)
        );
        assert!(route.offer(Urgency::Bulk, vec![0]));
        for _ in 1..PACKETS_MAX {
            assert!(route.offer(Urgency::Bulk, Vec::new()));
        }
        assert!(!route.offer(Urgency::Bulk, Vec::new()), "packets are bounded");
        let long = vec![0; Traffic::Urgent.packet_max() + 1];
        assert!(!route.offer(Urgency::Urgent, long), "no packet that the other side refuses");
        assert_eq!(route.dropped(), 4);
        assert_eq!(route.offer_forwards(vec![1]), Ok(()));
        assert_eq!((route.losses(), route.offer_answers(vec![2])), (0, Ok(())));
        route.set_up(false);
        assert_eq!(route.losses(), 1);
        assert!(route.queue(Traffic::Forwards).take().is_none());
        assert!(route.queue(Traffic::Answers).take().is_some(), "those are the other link's");
        assert!(route.queue(Traffic::Urgent).take().is_none(), "what waited is stale");
    }

    #[test]
    fn sites_are_known_by_number() {
        let mesh = Mesh::new(2, 3, 12);
        assert_eq!(mesh.others().collect::<Vec<_>>(), [1, 3]);
        assert!(mesh.route(0).is_none() && mesh.route(4).is_none());
        assert_eq!(mesh.leader(5), 0);
        mesh.publish_leader(5, 9, 3);
        assert_eq!((mesh.leader(5), mesh.leader(12)), (3, 0));
        mesh.publish_leader(5, 9, 3);
        mesh.publish_leader(5, 10, 3);
        assert_eq!(mesh.changes(), 2, "what was known is no change");
        assert!(!mesh.may_send(5, 0), "nobody has said so");
        mesh.publish_lease(5, 100);
        assert_eq!([99, 100].map(|now| mesh.may_send(5, now)), [true, false]);
        assert!(!mesh.may_send(12, 0) && !mesh.may_send(4, 99));
        mesh.report_gone(3);
        mesh.report_gone(2);
        mesh.report_gone(9);
        assert_eq!((mesh.take_gone(), mesh.take_gone()), (1 << 3, 0));
    }
}
