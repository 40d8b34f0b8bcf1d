//! Outcome events.

use super::error::ClientError;
use super::sites::{Shared, spread};
use crate::code::Code;
use crate::frame::{HEADER_LEN, Header};
use crate::message::{Ack, ErrorFrame, Event, Subscribe, kind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Shortest and longest pause between attempts to subscribe again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A subscription to outcome events. Events come at least once: hold an event
/// durably, then acknowledge it. When its connection is lost it subscribes
/// again, at another site where there is one; it ends with the client.
pub struct Subscription {
    shared: Arc<Shared>,
    stream: Option<EventStream>,
    back_off: Duration,
    /// Attempts so far; chooses the site.
    attempts: usize,
}

impl Subscription {
    pub(super) async fn open(shared: &Arc<Shared>) -> Result<Self, ClientError> {
        let shared = Arc::clone(shared);
        let mut subscription = Self { shared, stream: None, back_off: BACK_OFF.0, attempts: 0 };
        subscription.reopen().await?;
        Ok(subscription)
    }

    /// The next event; waits for a connection when there is none. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: the site does not let this gateway subscribe.
    /// [`ClientError::ShutDown`]: the client is gone.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.reopen().await?;
                continue;
            };
            match stream.event().await {
                Some(event) => {
                    self.back_off = BACK_OFF.0;
                    return Ok(event);
                }
                None => self.stream = None,
            }
        }
    }

    /// Tells the switch that the event is held durably. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::ConnectionLost`]: the event will come again.
    pub async fn acknowledge(&mut self, event_id: u64) -> Result<(), ClientError> {
        let stream = self.stream.as_mut().ok_or(ClientError::ConnectionLost)?;
        stream.acknowledge(event_id).await.ok_or(ClientError::ConnectionLost)
    }

    /// Subscribes at a site that takes it, however long that takes.
    async fn reopen(&mut self) -> Result<(), ClientError> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            if self.shared.stopped() {
                return Err(ClientError::ShutDown);
            }
            let links = self.shared.usable_links();
            let Some(link) = links.get(self.attempts % links.len().max(1)) else {
                // The sender lives as long as `shared`.
                drop(changes.changed().await);
                continue;
            };
            self.attempts = self.attempts.wrapping_add(1);
            let correlation = self.shared.pending.correlation();
            let opening = EventStream::open(&link.quic, correlation);
            match timeout(self.shared.config.connect_timeout, opening).await {
                Ok(Ok(stream)) => {
                    self.stream = Some(stream);
                    return Ok(());
                }
                Ok(Err(Some(code))) if !code.retryable() => return Err(ClientError::Refused(code)),
                Ok(Err(_)) | Err(_) => {}
            }
            let pause = spread(self.back_off);
            self.back_off = (self.back_off * 2).min(BACK_OFF.1);
            sleep(pause).await;
        }
    }
}

/// The stream of one connection that carries the events.
struct EventStream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    correlation: u64,
    /// A frame under way, so that reading may be cancelled at any point: at
    /// most one frame and one chunk.
    partial: Vec<u8>,
    /// Acknowledgements not written yet, for the same reason.
    unsent: Vec<u8>,
}

impl EventStream {
    /// `Err(None)`: the connection is lost or the peer speaks another protocol.
    async fn open(quic: &quinn::Connection, correlation: u64) -> Result<Self, Option<Code>> {
        let (send, recv) = quic.open_bi().await.map_err(|_| None)?;
        let mut stream = Self { send, recv, correlation, partial: Vec::new(), unsent: Vec::new() };
        Subscribe.encode_frame(correlation, &mut stream.unsent);
        stream.flush().await.ok_or(None)?;
        let (header, body) = stream.frame().await.ok_or(None)?;
        let code = match header.kind {
            kind::ERROR => ErrorFrame::decode(&body).ok().map(|error| error.code),
            _ if header.kind == kind::SUBSCRIBE | kind::REPLY => {
                body.first_chunk().copied().map(u16::from_le_bytes).and_then(Code::from_wire)
            }
            _ => None,
        };
        match code {
            Some(Code::Ok) => Ok(stream),
            other => Err(other),
        }
    }

    /// The next event; `None` when the stream is at its end.
    async fn event(&mut self) -> Option<Event> {
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

    /// Reads one frame; what was read stays in `partial` when cancelled.
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
            let chunk = self.recv.read_chunk(crate::frame::BODY_MAX, true).await.ok()??;
            self.partial.extend_from_slice(&chunk.bytes);
        }
    }
}
