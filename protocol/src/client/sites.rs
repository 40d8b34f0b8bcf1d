//! What the client's tasks share, and the task per site that keeps it connected.

use super::config::ClientConfig;
use super::error::{ClientError, LinkError};
use super::link::Link;
use super::pending::Pending;
use super::signer::random;
use crate::code::CloseCode;
use crate::id::MchId;
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
    /// Bumped whenever a connection comes, goes or drains, and at the end.
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
                shared.leaders.set_shards(link.hello.shards);
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

/// The site that leads each shard, as far as answers told; advice only.
#[derive(Default)]
pub(super) struct Leaders {
    /// By shard; 0: unknown.
    sites: Mutex<Vec<u8>>,
}

impl Leaders {
    pub(super) fn of(&self, mch_id: &MchId) -> Option<u8> {
        let sites = self.lock();
        let site = *sites.get(shard(mch_id, sites.len())?)?;
        (site != 0).then_some(site)
    }

    /// Remembers the site (0: forgets).
    pub(super) fn learn(&self, mch_id: &MchId, site: u8) {
        let mut sites = self.lock();
        let shard = shard(mch_id, sites.len());
        if let Some(slot) = shard.and_then(|shard| sites.get_mut(shard)) {
            *slot = site;
        }
    }

    fn set_shards(&self, shards: u16) {
        let mut sites = self.lock();
        if sites.len() != usize::from(shards) {
            *sites = vec![0; usize::from(shards)];
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shard(mch_id: &MchId, shards: usize) -> Option<usize> {
    let shards = u16::try_from(shards).ok().filter(|&shards| shards > 0)?;
    Some(usize::from(mch_id.shard(shards)))
}
