//! What the threads of a node share about the other sites: queues of replica
//! messages towards each of them, who leads which shard, and who seems gone.
//!
//! The worker fills the queues and publishes leaders; the peer thread empties
//! the queues onto its links and reports signs of death; the network thread
//! looks up leaders. Every queue is bounded: consensus survives a dropped
//! message, a slow site must not hold memory or anybody else up.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;
use tokio::sync::Notify;

/// Packets towards one site before new ones are dropped.
const PACKETS_MAX: usize = 1024;
/// Bytes of bulk packets towards one site before new ones are dropped.
const BULK_BYTES_MAX: usize = 16 << 20;

/// Which stream of a peer link a packet takes: bulk must not delay the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Votes, heartbeats, acknowledgements.
    Urgent = 0,
    /// Blocks.
    Bulk = 1,
}

/// The way towards one other site.
pub struct Route {
    urgent: ArrayQueue<Vec<u8>>,
    bulk: ArrayQueue<Vec<u8>>,
    bulk_bytes: AtomicUsize,
    dropped: AtomicU64,
    up: AtomicBool,
    /// The peer thread's writer of this route waits here.
    pub wake: Notify,
}

impl Route {
    fn new() -> Self {
        Self {
            urgent: ArrayQueue::new(PACKETS_MAX),
            bulk: ArrayQueue::new(PACKETS_MAX),
            bulk_bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            up: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// Worker: offers a packet. Dropped when the link is down or behind;
    /// consensus sends again by itself.
    pub fn offer(&self, urgency: Urgency, packet: Vec<u8>) -> bool {
        let queue = match urgency {
            Urgency::Urgent => &self.urgent,
            Urgency::Bulk => &self.bulk,
        };
        let bytes = if urgency == Urgency::Bulk { packet.len() } else { 0 };
        let taken = self.up.load(Ordering::Acquire)
            && self.bulk_bytes.load(Ordering::Relaxed) + bytes <= BULK_BYTES_MAX;
        if taken {
            self.bulk_bytes.fetch_add(bytes, Ordering::Relaxed);
            if queue.push(packet).is_ok() {
                self.wake.notify_one();
                return true;
            }
            self.bulk_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Peer thread: the next packet of this urgency.
    pub fn take(&self, urgency: Urgency) -> Option<Vec<u8>> {
        match urgency {
            Urgency::Urgent => self.urgent.pop(),
            Urgency::Bulk => {
                let packet = self.bulk.pop()?;
                self.bulk_bytes.fetch_sub(packet.len(), Ordering::Relaxed);
                Some(packet)
            }
        }
    }

    /// Peer thread: the link came up or went down. What waits is dropped when
    /// it goes down: it would be stale.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Release);
        if !up {
            while self.take(Urgency::Urgent).is_some() {}
            while self.take(Urgency::Bulk).is_some() {}
        }
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
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
    /// Told whenever a leader changes.
    pub leaders_changed: Notify,
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
            leaders_changed: Notify::new(),
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
    pub fn publish_leader(&self, shard: u16, term: u64, site: u8) {
        let Some(slot) = self.leaders.get(usize::from(shard)) else { return };
        let value = term << 8 | u64::from(site);
        if slot.swap(value, Ordering::AcqRel) != value {
            self.leaders_changed.notify_waiters();
        }
    }

    /// Who leads a shard; 0: nobody known.
    pub fn leader(&self, shard: u16) -> u8 {
        let slot = self.leaders.get(usize::from(shard));
        slot.map_or(0, |slot| slot.load(Ordering::Acquire) as u8)
    }

    /// Peer thread: the process of a site has ended, for example because the
    /// kernel closed its liveness connection. Only a hint: it may start an
    /// election sooner, and weakens nothing.
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
        route.set_up(true);
        assert!(route.offer(Urgency::Bulk, vec![0; BULK_BYTES_MAX]));
        assert!(!route.offer(Urgency::Bulk, vec![0]), "bytes are bounded");
        assert!(route.offer(Urgency::Urgent, vec![7]), "bulk does not hold up the urgent");
        assert_eq!(route.take(Urgency::Bulk).map(|packet| packet.len()), Some(BULK_BYTES_MAX));
        assert!(route.offer(Urgency::Bulk, vec![0]));
        for _ in 1..PACKETS_MAX {
            assert!(route.offer(Urgency::Bulk, Vec::new()));
        }
        assert!(!route.offer(Urgency::Bulk, Vec::new()), "packets are bounded");
        assert_eq!(route.dropped(), 3);
        route.set_up(false);
        assert!(route.take(Urgency::Urgent).is_none(), "what waited is stale");
    }

    #[test]
    fn sites_are_known_by_number() {
        let mesh = Mesh::new(2, 3, 12);
        assert_eq!(mesh.others().collect::<Vec<_>>(), [1, 3]);
        assert!(mesh.route(0).is_none() && mesh.route(4).is_none());
        assert_eq!(mesh.leader(5), 0);
        mesh.publish_leader(5, 9, 3);
        assert_eq!((mesh.leader(5), mesh.leader(12)), (3, 0));
        mesh.report_gone(3);
        mesh.report_gone(2);
        mesh.report_gone(9);
        assert_eq!((mesh.take_gone(), mesh.take_gone()), (1 << 3, 0));
    }
}
