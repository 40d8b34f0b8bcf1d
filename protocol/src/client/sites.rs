//! What the client's tasks share, and the task per site that keeps it connected.

use super::config::ClientConfig;
use super::error::{ClientError, LinkError};
use super::link::Link;
use super::pending::Pending;
use super::signer::random;
use crate::code::CloseCode;
use crate::id::MchId;
use crate::message;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError, watch};
use tokio::time::{Instant, sleep, timeout};

/// Shortest and longest pause before a site is connected to again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A connection that lived this long was a good one: the pauses start afresh.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// What the client's tasks share.
pub(super) struct Shared {
    pub(super) config: ClientConfig,
    pub(super) endpoint: quinn::Endpoint,
    pub(super) quic: quinn::ClientConfig,
    pub(super) pending: Pending,
    pub(super) leaders: Leaders,
    /// Bumped whenever a connection comes, goes or drains, a leader is told, and
    /// at the end.
    pub(super) changes: watch::Sender<u64>,
    /// The current connection of each site, in the order of the settings.
    links: Mutex<Vec<Result<Arc<Link>, LinkError>>>,
    next_link: AtomicU64,
    /// Told by the first site that greets; the others must say the same.
    cluster: OnceLock<u64>,
    /// One per request that may be without answer.
    permits: Semaphore,
    closing: AtomicBool,
    stop: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(
        config: ClientConfig,
        endpoint: quinn::Endpoint,
        quic: quinn::ClientConfig,
    ) -> Self {
        Self {
            endpoint,
            quic,
            pending: Pending::default(),
            leaders: Leaders::default(),
            changes: watch::Sender::new(0),
            links: Mutex::new(vec![Err(LinkError::Silent); config.sites.len()]),
            next_link: AtomicU64::new(0),
            cluster: OnceLock::new(),
            permits: Semaphore::new(config.in_flight_max as usize),
            closing: AtomicBool::new(false),
            stop: watch::Sender::new(false),
            config,
        }
    }

    /// The right to have one request without answer.
    pub(super) fn permit(&self) -> Result<SemaphorePermit<'_>, ClientError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(ClientError::ShutDown);
        }
        self.permits.try_acquire().map_err(|error| match error {
            TryAcquireError::NoPermits => ClientError::Full,
            TryAcquireError::Closed => ClientError::ShutDown,
        })
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(super) fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Takes nothing new; tells whether all is answered within the time.
    pub(super) async fn settle(&self, within: Duration) -> bool {
        self.closing.store(true, Ordering::Release);
        timeout(within, self.permits.acquire_many(self.config.in_flight_max)).await.is_ok()
    }

    /// Ends every task and connection.
    pub(super) fn stop(&self) {
        self.closing.store(true, Ordering::Release);
        self.stop.send_replace(true);
        self.endpoint.close(CloseCode::Normal.wire().into(), b"");
        self.changed();
    }

    pub(super) fn lock_links(&self) -> MutexGuard<'_, Vec<Result<Arc<Link>, LinkError>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that take new requests.
    pub(super) fn usable_links(&self) -> Vec<Arc<Link>> {
        self.lock_links().iter().flatten().filter(|link| link.usable()).cloned().collect()
    }

    /// As [`Self::usable_links`], of the site at this place in the settings.
    pub(super) fn usable_link(&self, site: usize) -> Option<Arc<Link>> {
        let links = self.lock_links();
        let link = links.get(site)?.as_ref().ok()?;
        link.usable().then(|| Arc::clone(link))
    }

    /// Whether a site said this cluster's identity.
    pub(super) fn same_cluster(&self, cluster: u64) -> bool {
        *self.cluster.get_or_init(|| cluster) == cluster
    }

    fn set_link(&self, site: usize, link: Result<Arc<Link>, LinkError>) {
        if let Some(slot) = self.lock_links().get_mut(site) {
            *slot = link;
        }
        self.changed();
    }
}

/// Keeps one site connected until the client stops.
pub(super) async fn keep_connected(shared: Arc<Shared>, site: usize) {
    let mut stop = shared.stop.subscribe();
    let mut back_off = BACK_OFF.0;
    while !shared.stopped() {
        let id = shared.next_link.fetch_add(1, Ordering::Relaxed);
        let opening = timeout(shared.config.connect_timeout, Link::open(&shared, site, id));
        match opening.await.unwrap_or(Err(LinkError::Silent)) {
            Ok(link) => {
                let since = Instant::now();
                shared.set_link(site, Ok(Arc::clone(&link)));
                until_unusable(&shared, &link).await;
                let reason = link.quic.close_reason();
                let reason =
                    reason.map_or(LinkError::Closed(CloseCode::Draining), |e| LinkError::of(&e));
                shared.set_link(site, Err(reason));
                if since.elapsed() >= GOOD_AFTER {
                    back_off = BACK_OFF.0;
                }
            }
            Err(error) => shared.set_link(site, Err(error)),
        }
        tokio::select! {
            () = sleep(spread(back_off)) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        back_off = (back_off * 2).min(BACK_OFF.1);
    }
}

/// Half to all of a pause at random: gateways that lost the same site must not
/// come back all at once.
pub(super) fn spread(pause: Duration) -> Duration {
    let half = pause / 2;
    let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_micros(random() % span)
}

/// Returns when the connection is closed or takes nothing new.
async fn until_unusable(shared: &Shared, link: &Link) {
    let mut changes = shared.changes.subscribe();
    while link.usable() {
        tokio::select! {
            _ = link.quic.closed() => return,
            _ = changes.changed() => {}
        }
    }
}

/// Who leads a shard, as far as is known.
#[derive(Clone, Copy, Default)]
pub(super) struct Led {
    /// 0: unknown.
    pub(super) site: u8,
    /// Of the last notice; 0: there was none.
    pub(super) term: u64,
    /// When that came: answers to what was sent before say nothing newer.
    told: Option<Instant>,
}

/// The site that leads each shard, as far as answers and notices told; advice
/// only.
#[derive(Default)]
pub(super) struct Leaders {
    /// By shard.
    shards: Mutex<Vec<Led>>,
}

impl Leaders {
    /// What is known of a merchant's shard.
    pub(super) fn of(&self, mch_id: &MchId) -> Led {
        let shards = self.lock();
        let known = shard(mch_id, shards.len()).and_then(|shard| shards.get(shard));
        known.copied().unwrap_or_default()
    }

    /// Remembers the site (0: forgets) that an answer to what was sent at `asked`
    /// named.
    pub(super) fn learn(&self, mch_id: &MchId, site: u8, asked: Instant) {
        let mut shards = self.lock();
        let shard = shard(mch_id, shards.len());
        let Some(led) = shard.and_then(|shard| shards.get_mut(shard)) else { return };
        if led.told.is_none_or(|told| told < asked) {
            led.site = site;
        }
    }

    /// Remembers a notice; tells whether there was news in it.
    pub(super) fn told(&self, notice: &message::Leaders<'_>) -> bool {
        let (mut shards, mut news) = (self.lock(), false);
        for leader in notice.iter() {
            let Some(led) = shards.get_mut(usize::from(leader.shard)) else { continue };
            // From a site that is behind.
            if leader.term > led.term {
                let told = Some(Instant::now());
                *led = Led { site: leader.site, term: leader.term, told };
                news = true;
            }
        }
        news
    }

    pub(super) fn set_shards(&self, count: u16) {
        let mut shards = self.lock();
        if shards.len() != usize::from(count) {
            *shards = vec![Led::default(); usize::from(count)];
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Led>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shard(mch_id: &MchId, shards: usize) -> Option<usize> {
    let shards = u16::try_from(shards).ok().filter(|&shards| shards > 0)?;
    Some(usize::from(mch_id.shard(shards)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::HEADER_LEN;
    use crate::message::Leader;

    fn told(leaders: &Leaders, entries: &[Leader]) -> bool {
        let mut frame = Vec::new();
        message::Leaders::encode_frame(entries, 0, &mut frame);
        leaders.told(&message::Leaders::decode(&frame[HEADER_LEN..]).unwrap())
    }

    #[test]
    fn newer_notices_count_and_older_ones_do_not() {
        let mch_id = MchId::parse(b"m-1").unwrap();
        let leaders = Leaders::default();
        let shard = mch_id.shard(12);
        let leader = |site, term| Leader { shard, site, term };
        assert!(!told(&leaders, &[leader(1, 4)]), "the number of shards is not known yet");
        leaders.set_shards(12);
        let before = Instant::now();
        assert!(told(&leaders, &[leader(1, 4), Leader { shard: 12, site: 9, term: 9 }]));
        assert!(told(&leaders, &[leader(2, 5)]));
        assert!(!told(&leaders, &[leader(1, 4), leader(3, 5)]), "old, and no news");
        assert_eq!((leaders.of(&mch_id).site, leaders.of(&mch_id).term), (2, 5));
        // An answer to what was sent before the notice is older than it.
        leaders.learn(&mch_id, 1, before);
        assert_eq!(leaders.of(&mch_id).site, 2);
        leaders.learn(&mch_id, 3, Instant::now() + Duration::from_secs(1));
        assert_eq!((leaders.of(&mch_id).site, leaders.of(&mch_id).term), (3, 5));
    }
}
