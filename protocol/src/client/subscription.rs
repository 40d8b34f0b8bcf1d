//! Outcome events: a stream at every site, each with a task that reads it and opens
//! it again when it is lost, merged into one subscription.

use super::error::ClientError;
use super::sites::{Shared, spread};
use crate::code::Code;
use crate::frame::{BODY_MAX, HEADER_LEN, Header};
use crate::message::{Ack, ErrorFrame, Event, Subscribe, kind};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Shortest and longest pause between attempts to subscribe again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Events that may be without acknowledgement before the oldest can no longer be
/// acknowledged (it comes again).
const UNACKNOWLEDGED_MAX: usize = 1 << 15;

/// A subscription to outcome events at every site: each site tells those of the
/// shards that it leads. Events come at least once: hold an event durably, then
/// acknowledge it. A site whose connection is lost is subscribed to again; it all
/// ends with the client.
pub struct Subscription {
    shared: Arc<Shared>,
    told: mpsc::Receiver<Told>,
    /// What came while the first site was waited for, told by the next calls.
    early: VecDeque<Told>,
    /// Where acknowledgements go, by site in the order of the settings.
    answers: Vec<Option<Answers>>,
    came: Came,
    /// Ends with the subscription.
    _readers: JoinSet<()>,
}

/// What the task of a site tells.
enum Told {
    Opened(usize, Answers),
    Event(usize, Event),
    Lost(usize),
    Refused(Code),
}

impl Subscription {
    /// Opens a stream at every site; returns when the first one has taken it.
    pub(super) async fn open(shared: &Arc<Shared>) -> Result<Self, ClientError> {
        let sites = shared.config.sites.len();
        // One event of each site may wait here, the rest in its stream.
        let (tell, told) = mpsc::channel(sites);
        let mut readers = JoinSet::new();
        for site in 0..sites {
            readers.spawn(follow(Arc::clone(shared), site, tell.clone()));
        }
        let mut subscription = Self {
            shared: Arc::clone(shared),
            told,
            early: VecDeque::new(),
            answers: (0..sites).map(|_| None).collect(),
            came: Came::default(),
            _readers: readers,
        };
        let first = subscription.hear().await?;
        subscription.early.push_back(first);
        match subscription.early.front() {
            Some(Told::Refused(code)) => Err(ClientError::Refused(*code)),
            _ => Ok(subscription),
        }
    }

    /// The next event of any site; waits for connections when there are none.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: a site does not let this gateway subscribe; the others
    /// are heard on, and it is asked again.
    /// [`ClientError::ShutDown`]: the client is gone.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            let told = match self.early.pop_front() {
                Some(told) => told,
                None => self.hear().await?,
            };
            match told {
                Told::Opened(site, answers) => self.opened(site, Some(answers)),
                Told::Lost(site) => self.opened(site, None),
                Told::Refused(code) => return Err(ClientError::Refused(code)),
                Told::Event(site, event) => {
                    self.came.from(event.event_id, site);
                    return Ok(event);
                }
            }
        }
    }

    /// Tells the site that an event came from last that it is held durably. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::ConnectionLost`]: the event will come again.
    pub async fn acknowledge(&mut self, event_id: u64) -> Result<(), ClientError> {
        let site = self.came.site_of(event_id).ok_or(ClientError::ConnectionLost)?;
        let answers = self.answers.get_mut(site).and_then(Option::as_mut);
        let answers = answers.ok_or(ClientError::ConnectionLost)?;
        answers.acknowledge(event_id).await.ok_or(ClientError::ConnectionLost)?;
        self.came.done(event_id);
        Ok(())
    }

    async fn hear(&mut self) -> Result<Told, ClientError> {
        if self.shared.stopped() {
            // What was read before may still be told.
            return self.told.try_recv().map_err(|_| ClientError::ShutDown);
        }
        self.told.recv().await.ok_or(ClientError::ShutDown)
    }

    /// What came on a site's stream before cannot be acknowledged on its next one.
    fn opened(&mut self, site: usize, answers: Option<Answers>) {
        self.came.forget(site);
        if let Some(slot) = self.answers.get_mut(site) {
            *slot = answers;
        }
    }
}

/// Where the events came from that are not acknowledged.
#[derive(Default)]
struct Came {
    /// By event: site, and number of its arrival.
    sites: HashMap<u64, (usize, u64)>,
    /// Events by arrival, with those that were acknowledged since.
    order: VecDeque<(u64, u64)>,
    arrivals: u64,
}

impl Came {
    fn from(&mut self, event_id: u64, site: usize) {
        self.arrivals += 1;
        self.sites.insert(event_id, (site, self.arrivals));
        self.order.push_back((event_id, self.arrivals));
        if self.order.len() > 2 * UNACKNOWLEDGED_MAX {
            let sites = &self.sites;
            let is_last = |&(event_id, arrival): &(u64, u64)| {
                sites.get(&event_id).is_some_and(|(_, last)| *last == arrival)
            };
            self.order.retain(is_last);
        }
        while self.sites.len() > UNACKNOWLEDGED_MAX
            && let Some((oldest, arrival)) = self.order.pop_front()
        {
            if self.sites.get(&oldest).is_some_and(|(_, last)| *last == arrival) {
                self.sites.remove(&oldest);
            }
        }
    }

    fn site_of(&self, event_id: u64) -> Option<usize> {
        self.sites.get(&event_id).map(|(site, _)| *site)
    }

    fn done(&mut self, event_id: u64) {
        self.sites.remove(&event_id);
    }

    fn forget(&mut self, site: usize) {
        self.sites.retain(|_, (from, _)| *from != site);
    }
}

/// Keeps a stream of events open at one site and tells what comes on it, for as long
/// as somebody listens and the client lives.
async fn follow(shared: Arc<Shared>, site: usize, tell: mpsc::Sender<Told>) {
    let mut changes = shared.changes.subscribe();
    let mut back_off = BACK_OFF.0;
    while !shared.stopped() {
        changes.borrow_and_update();
        let Some(link) = shared.usable_link(site) else {
            // The sender lives as long as `shared`.
            drop(changes.changed().await);
            continue;
        };
        let correlation = shared.pending.correlation();
        let opening = open(&link.quic, correlation);
        let told = match timeout(shared.config.connect_timeout, opening).await {
            Ok(Ok((answers, events))) => {
                if tell.send(Told::Opened(site, answers)).await.is_err() {
                    return;
                }
                if pass_on(site, events, &tell).await {
                    back_off = BACK_OFF.0;
                }
                Some(Told::Lost(site))
            }
            Ok(Err(Some(code))) if !code.retryable() => {
                back_off = BACK_OFF.1;
                Some(Told::Refused(code))
            }
            Ok(Err(_)) | Err(_) => None,
        };
        if let Some(told) = told
            && tell.send(told).await.is_err()
        {
            return;
        }
        sleep(spread(back_off)).await;
        back_off = (back_off * 2).min(BACK_OFF.1);
    }
}

/// Passes events on until their stream ends or nobody listens. Whether any came.
async fn pass_on(site: usize, mut events: Events, tell: &mpsc::Sender<Told>) -> bool {
    let mut any = false;
    while let Some(event) = events.next().await {
        any = true;
        if tell.send(Told::Event(site, event)).await.is_err() {
            break;
        }
    }
    any
}

/// Subscribes on a stream of its own. `Err(None)`: the connection is lost or the peer
/// speaks another protocol.
async fn open(
    quic: &quinn::Connection,
    correlation: u64,
) -> Result<(Answers, Events), Option<Code>> {
    let (send, recv) = quic.open_bi().await.map_err(|_| None)?;
    let mut answers = Answers { send, correlation, unsent: Vec::new() };
    let mut events = Events { recv, partial: Vec::new() };
    Subscribe.encode_frame(correlation, &mut answers.unsent);
    answers.flush().await.ok_or(None)?;
    let (header, body) = events.frame().await.ok_or(None)?;
    let code = match header.kind {
        kind::ERROR => ErrorFrame::decode(&body).ok().map(|error| error.code),
        _ if header.kind == kind::SUBSCRIBE | kind::REPLY => {
            body.first_chunk().copied().map(u16::from_le_bytes).and_then(Code::from_wire)
        }
        _ => None,
    };
    match code {
        Some(Code::Ok) => Ok((answers, events)),
        other => Err(other),
    }
}

/// Our side of the stream that carries a site's events.
struct Answers {
    send: quinn::SendStream,
    correlation: u64,
    /// Acknowledgements not written yet, so that writing may be cancelled at any point.
    unsent: Vec<u8>,
}

impl Answers {
    /// A backlog of acknowledgements is only what cancelled calls left behind.
    async fn acknowledge(&mut self, event_id: u64) -> Option<()> {
        self.flush().await?;
        Ack { event_id }.encode_frame(self.correlation, &mut self.unsent);
        self.flush().await
    }

    async fn flush(&mut self) -> Option<()> {
        while !self.unsent.is_empty() {
            let written = self.send.write(&self.unsent).await.ok()?;
            self.unsent.drain(..written);
        }
        Some(())
    }
}

/// The site's side.
struct Events {
    recv: quinn::RecvStream,
    /// A frame under way: at most one and one chunk.
    partial: Vec<u8>,
}

impl Events {
    /// The next event; `None` when the stream is at its end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let (header, body) = self.frame().await?;
            if header.kind == kind::EVENT {
                // An event that cannot be read is not acknowledged: it comes
                // again, also to a client that understands it.
                if let Ok(event) = Event::decode(&body) {
                    return Some(event);
                }
            }
        }
    }

    async fn frame(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            if let Some((head, rest)) = self.partial.split_first_chunk::<HEADER_LEN>() {
                let header = Header::decode(head).ok()?;
                let length = header.length as usize;
                if let Some(body) = rest.get(..length) {
                    let body = body.to_vec();
                    self.partial.drain(..HEADER_LEN + length);
                    return Some((header, body));
                }
            }
            let chunk = self.recv.read_chunk(BODY_MAX, true).await.ok()??;
            self.partial.extend_from_slice(&chunk.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_events_came_from_is_remembered_within_bounds() {
        let mut came = Came::default();
        came.from(7, 0);
        came.from(8, 1);
        came.from(7, 1);
        assert_eq!((came.site_of(7), came.site_of(8), came.site_of(9)), (Some(1), Some(1), None));
        came.from(9, 2);
        came.forget(1);
        assert_eq!((came.site_of(7), came.site_of(9)), (None, Some(2)));
        // Those that are acknowledged leave nothing behind.
        for event_id in 100..100 + 4 * UNACKNOWLEDGED_MAX as u64 {
            came.from(event_id, 0);
            came.done(event_id);
        }
        assert_eq!((came.sites.len(), came.site_of(9)), (1, Some(2)));
        assert!(came.order.len() <= 2 * UNACKNOWLEDGED_MAX);
        // Nor do those that come again and again.
        for _ in 0..4 * UNACKNOWLEDGED_MAX {
            came.from(9, 2);
        }
        assert!(came.order.len() <= 2 * UNACKNOWLEDGED_MAX);
        // Of the others the oldest are given up.
        let last = 1 << 40;
        for event_id in last - 4 * UNACKNOWLEDGED_MAX as u64..=last {
            came.from(event_id, 0);
        }
        assert_eq!((came.site_of(9), came.site_of(last)), (None, Some(0)));
        assert_eq!(came.sites.len(), UNACKNOWLEDGED_MAX);
        assert!(came.order.len() <= 2 * UNACKNOWLEDGED_MAX);
    }
}
