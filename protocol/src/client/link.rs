//! One connection to one site: greeted, with its long-lived streams, each with
//! one writer that drains everything queued into one write, and one reader.

use super::error::LinkError;
use super::pending::Pending;
use super::sites::Shared;
use crate::code::CloseCode;
use crate::frame::{HEADER_LEN, Header, Splitter};
use crate::message::{GoAway, Hello, Leaders, kind};
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// How long to wait for a stream beyond the first: the server may allow fewer
/// than we ask for, and opening then waits without end.
const STREAM_WAIT: Duration = Duration::from_millis(50);
/// Longest time that a leaving site may keep its connection, whatever it says.
const LEAVE_MAX: Duration = Duration::from_secs(60);
/// What a leaving site gets beyond its deadline, for the close to arrive.
const LEAVE_GRACE: Duration = Duration::from_secs(1);
/// Chunks taken from a stream in one go.
const CHUNKS: usize = 32;

/// A greeted connection.
pub(super) struct Link {
    /// Unique within the client.
    pub(super) id: u64,
    pub(super) hello: Hello,
    pub(super) quic: quinn::Connection,
    /// The server asked us to go: nothing new is sent here.
    draining: AtomicBool,
    streams: Vec<Arc<Queue>>,
    /// Correlation ids that the server has not answered here. An asker that
    /// gave up leaves its id behind: the server still counts the request.
    unanswered: Mutex<HashSet<u64>>,
    in_flight_max: usize,
}

/// Frames that wait for a stream's writer; bounded by the link's `in_flight_max`.
#[derive(Default)]
struct Queue {
    frames: Mutex<Vec<u8>>,
    wake: Notify,
}

impl Link {
    /// Connects to a site, waits for HELLO and opens the streams. Starts no
    /// task before all of that is done, so it may be cancelled at any point.
    pub(super) async fn open(
        shared: &Arc<Shared>,
        site: usize,
        id: u64,
    ) -> Result<Arc<Self>, LinkError> {
        let target = shared.config.sites.get(site).ok_or(LinkError::Address)?;
        let connecting = shared
            .endpoint
            .connect_with(shared.quic.clone(), target.address, &target.server_name)
            .map_err(|_| LinkError::Address)?;
        let quic = connecting.await.map_err(|error| LinkError::of(&error))?;
        // Our certificate is judged when HELLO is here, not before.
        let mut control = quic.accept_uni().await.map_err(|error| LinkError::of(&error))?;
        let hello = read_hello(&mut control).await.ok_or_else(|| {
            quic.close_reason().map_or(LinkError::Protocol, |error| LinkError::of(&error))
        })?;
        if hello.shards == 0 || hello.in_flight_max == 0 {
            return Err(LinkError::Protocol);
        }
        if !shared.same_cluster(hello.cluster) {
            close(&quic, CloseCode::WrongSite, "another cluster");
            return Err(LinkError::OtherCluster);
        }
        // Before the control stream is read: notices name shards.
        shared.leaders.set_shards(hello.shards);
        let opened = open_streams(&quic, shared.config.streams).await?;
        let (writers, readers): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let link = Arc::new(Self {
            id,
            hello,
            quic,
            draining: AtomicBool::new(false),
            streams: writers.iter().map(|_| Arc::default()).collect(),
            unanswered: Mutex::default(),
            in_flight_max: hello.in_flight_max.min(shared.config.in_flight_max) as usize,
        });
        for (queue, send) in link.streams.iter().zip(writers) {
            tokio::spawn(write(Arc::clone(queue), link.quic.clone(), send));
        }
        for recv in readers {
            tokio::spawn(read(Arc::clone(&link), Arc::clone(shared), recv));
        }
        tokio::spawn(watch_control(Arc::clone(&link), Arc::clone(shared), control));
        Ok(link)
    }

    /// Whether answers can still come.
    pub(super) fn alive(&self) -> bool {
        self.quic.close_reason().is_none()
    }

    /// Whether new requests may be sent here.
    pub(super) fn usable(&self) -> bool {
        self.alive() && !self.draining.load(Ordering::Acquire)
    }

    /// Queues a frame on the stream that `key` chooses; `false` when the site
    /// has all the unanswered requests that it takes.
    pub(super) fn send(&self, key: u64, correlation: u64, frame: &[u8]) -> bool {
        let at = key % self.streams.len().max(1) as u64;
        let Some(queue) = self.streams.get(at as usize) else { return false };
        let mut unanswered = self.unanswered();
        if unanswered.len() >= self.in_flight_max {
            return false;
        }
        unanswered.insert(correlation);
        drop(unanswered);
        let mut frames = queue.lock();
        let first = frames.is_empty();
        frames.extend_from_slice(frame);
        drop(frames);
        if first {
            queue.wake.notify_one();
        }
        true
    }

    /// Hands an answer to its asker, once. What answers nothing that was asked
    /// here is dropped.
    fn answer(&self, pending: &Pending, header: Header, body: &[u8]) {
        if header.kind & kind::REPLY != 0 && self.unanswered().remove(&header.correlation) {
            pending.deliver(header.correlation, self.id, header.kind, body);
        }
    }

    fn unanswered(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn close(quic: &quinn::Connection, code: CloseCode, reason: &str) {
    quic.close(code.wire().into(), reason.as_bytes());
}

async fn open_streams(
    quic: &quinn::Connection,
    wanted: u32,
) -> Result<Vec<(quinn::SendStream, quinn::RecvStream)>, LinkError> {
    let lost = |error| LinkError::of(&error);
    let mut streams = vec![quic.open_bi().await.map_err(lost)?];
    for _ in 1..wanted {
        let Ok(opened) = timeout(STREAM_WAIT, quic.open_bi()).await else { break };
        streams.push(opened.map_err(lost)?);
    }
    Ok(streams)
}

/// Drains the queue into the stream for as long as the connection lives. It is
/// the stream's only writer and never cancelled within a write.
async fn write(queue: Arc<Queue>, quic: quinn::Connection, mut send: quinn::SendStream) {
    loop {
        let frames = std::mem::take(&mut *queue.lock());
        if !frames.is_empty() {
            if send.write_chunk(Bytes::from(frames)).await.is_err() {
                // Lost, or the server does not read this stream any more:
                // nothing sent on it would ever be answered.
                close(&quic, CloseCode::ProtocolError, "a stream was stopped");
                return;
            }
            continue;
        }
        tokio::select! {
            () = queue.wake.notified() => {}
            _ = quic.closed() => return,
        }
    }
}

/// Hands every answer of a stream to its asker.
async fn read(link: Arc<Link>, shared: Arc<Shared>, mut recv: quinn::RecvStream) {
    let mut splitter = Splitter::new();
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
        for chunk in chunks.iter_mut().take(count) {
            let chunk = std::mem::take(chunk);
            let fed = splitter.push(&chunk, |header, body| {
                link.answer(&shared.pending, header, body);
            });
            if let Err(error) = fed {
                close(&link.quic, error.close_code(), "not a frame of this protocol");
                return;
            }
        }
    }
    // A server that stays never ends a stream that we keep open: nothing on it
    // would be answered. One that leaves may.
    if link.usable() {
        close(&link.quic, CloseCode::ProtocolError, "a stream ended");
    }
}

async fn read_hello(control: &mut quinn::RecvStream) -> Option<Hello> {
    let (header, body) = read_frame(control).await?;
    (header.kind == kind::HELLO).then(|| Hello::decode(&body).ok()).flatten()
}

async fn read_frame(recv: &mut quinn::RecvStream) -> Option<(Header, Vec<u8>)> {
    let mut head = [0; HEADER_LEN];
    recv.read_exact(&mut head).await.ok()?;
    let header = Header::decode(&head).ok()?;
    let mut body = vec![0; header.length as usize];
    recv.read_exact(&mut body).await.ok()?;
    Some((header, body))
}

/// Waits for GOAWAY. The link then takes nothing new; the server closes it by
/// its deadline, else we do.
async fn watch_control(link: Arc<Link>, shared: Arc<Shared>, mut control: quinn::RecvStream) {
    let deadline = loop {
        let Some((header, body)) = read_frame(&mut control).await else {
            close(&link.quic, CloseCode::ProtocolError, "the control stream ended");
            break None;
        };
        if header.kind == kind::LEADER {
            // What cannot be read is no news.
            let news = Leaders::decode(&body).is_ok_and(|told| shared.leaders.told(&told));
            if news {
                shared.changed();
            }
        }
        // Other kinds are a later version's news.
        if header.kind == kind::GOAWAY
            && let Ok(GoAway { deadline_ms, .. }) = GoAway::decode(&body)
        {
            break Some(Duration::from_millis(deadline_ms.into()));
        }
    };
    if let Some(deadline) = deadline {
        link.draining.store(true, Ordering::Release);
        shared.changed();
        let wait = deadline.min(LEAVE_MAX) + LEAVE_GRACE;
        if timeout(wait, link.quic.closed()).await.is_err() {
            close(&link.quic, CloseCode::Normal, "");
        }
    }
    // Whoever waits for an answer here waits in vain.
    shared.changed();
}
