//! The link to a native channel: our frames over QUIC, one or more connections,
//! a few long-lived streams each.
//!
//! Says of every request what it knows: handed over, provably not sent, or lost
//! with its connection. Never retries; the engine decides what to ask next. Holds no
//! request for longer than `link_idle_ms`: the connection ends instead.
//!
//! Tested with a played channel.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::channel::ChannelReply;
use protocol::code::CloseCode;
use protocol::frame::Splitter;
use tokio::sync::Notify;

use super::clock;
use super::inbox::Item;
use super::net::Net;
use crate::config::ChannelSection;
use crate::engine::input::{Evidence, OperationId};
use crate::engine::output::Send;
use crate::metrics::ChannelMetrics;
use crate::tls::{self, Role};

/// Streams of one channel connection: enough that one lost packet does not
/// hold up everything, few enough that batches stay together.
const STREAMS: usize = 4;
/// Unsent bytes of one stream before requests count as not sent.
const UNSENT_MAX: usize = 4 << 20;
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// One operation in this many is timed.
const SAMPLE: u64 = 64;

/// What waits for a stream's writer.
struct Outgoing {
    buffer: RefCell<Vec<u8>>,
    /// When its first byte came, monotonic microseconds.
    since_us: Cell<u64>,
    dirty: Cell<bool>,
    wake: Notify,
}

/// One connection slot of a channel; reconnects by itself.
struct Path {
    up: Cell<bool>,
    streams: Vec<Outgoing>,
}

/// A channel's link.
pub struct Link {
    number: u16,
    settings: ChannelSection,
    /// What the next connection is opened with.
    client: RefCell<quinn::ClientConfig>,
    paths: Vec<Path>,
    /// Sent moments of sampled operations, by sequence, a small ring.
    samples: RefCell<Vec<(u64, u64)>>,
    /// A connection is up, or could not be had.
    tried: Notify,
}

impl Link {
    /// A link that is down until `run` connects it.
    pub fn new(settings: ChannelSection, client: quinn::ClientConfig) -> Rc<Self> {
        let path = |_| Path {
            up: Cell::new(false),
            streams: (0..STREAMS)
                .map(|_| Outgoing {
                    buffer: RefCell::new(Vec::new()),
                    since_us: Cell::new(0),
                    dirty: Cell::new(false),
                    wake: Notify::new(),
                })
                .collect(),
        };
        Rc::new(Self {
            number: settings.number,
            paths: (0..settings.connections.max(1)).map(path).collect(),
            settings,
            client: RefCell::new(client),
            samples: RefCell::new(vec![(0, 0); 256]),
            tried: Notify::new(),
        })
    }

    /// Whether any connection is up.
    pub fn up(&self) -> bool {
        self.paths.iter().any(|path| path.up.get())
    }

    /// Waits until the channel was reached, or was not. For one who waits.
    pub async fn tried(&self) {
        self.tried.notified().await;
    }

    /// Encodes a request into a stream's buffer. False: provably not sent.
    pub fn send(&self, send: &Send) -> bool {
        let spread = send.operation.sequence as usize;
        let count = self.paths.len();
        let Some(path) = (0..count)
            .map(|offset| &self.paths[(spread / STREAMS + offset) % count])
            .find(|path| path.up.get())
        else {
            return false;
        };
        let stream = &path.streams[spread % STREAMS];
        let mut buffer = stream.buffer.borrow_mut();
        if buffer.len() > UNSENT_MAX {
            return false;
        }
        if buffer.is_empty() {
            stream.since_us.set(clock::mono_us());
        }
        let correlation = send.operation.pack();
        send.request.encode_frame(correlation, &mut buffer);
        stream.dirty.set(true);
        if send.operation.sequence.is_multiple_of(SAMPLE) {
            self.sample(correlation);
        }
        true
    }

    fn sample(&self, correlation: u64) {
        let mut samples = self.samples.borrow_mut();
        let at = (correlation / SAMPLE) as usize % samples.len();
        samples[at] = (correlation, clock::mono_us());
    }

    fn sampled(&self, correlation: u64) -> Option<u64> {
        let samples = self.samples.borrow();
        let (sent, at) = samples[(correlation / SAMPLE) as usize % samples.len()];
        (sent == correlation).then(|| clock::mono_us().saturating_sub(at))
    }

    /// Wakes the writers of streams that got something.
    pub fn wake_streams(&self) {
        for stream in self.paths.iter().flat_map(|path| &path.streams) {
            if stream.dirty.replace(false) {
                stream.wake.notify_one();
            }
        }
    }

    /// Opens connections with these settings from now on.
    pub fn replace_client(&self, client: quinn::ClientConfig) {
        self.client.replace(client);
    }

    /// Keeps every connection of the link up, until the process ends.
    pub fn run(self: &Rc<Self>, net: &Rc<Net>, endpoint: &quinn::Endpoint) {
        for index in 0..self.paths.len() {
            let (link, net, endpoint) = (Rc::clone(self), Rc::clone(net), endpoint.clone());
            tokio::task::spawn_local(async move {
                link.keep_up(index, &net, &endpoint).await;
            });
        }
    }

    async fn keep_up(self: Rc<Self>, index: usize, net: &Rc<Net>, endpoint: &quinn::Endpoint) {
        let mut pause = RECONNECT_MIN;
        loop {
            match self.connect(endpoint).await {
                Ok(quic) => {
                    pause = RECONNECT_MIN;
                    self.serve(index, net, quic).await;
                }
                Err(error) => {
                    self.tried.notify_one();
                    if pause >= RECONNECT_MAX {
                        eprintln!("channel {}: {error}", self.settings.name);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    async fn connect(&self, endpoint: &quinn::Endpoint) -> Result<quinn::Connection, String> {
        let settings = &self.settings;
        let client = self.client.borrow().clone();
        let connecting = endpoint
            .connect_with(client, settings.address, &settings.server_name)
            .map_err(|error| error.to_string())?;
        let quic = tokio::time::timeout(Duration::from_secs(2), connecting)
            .await
            .map_err(|_| "no answer to the handshake".to_string())?
            .map_err(|error| error.to_string())?;
        match tls::peer_identity(&quic) {
            Ok(identity) if identity.role == Role::Channel => Ok(quic),
            _ => Err("the peer's certificate is not a channel's".to_string()),
        }
    }

    async fn serve(self: &Rc<Self>, index: usize, net: &Rc<Net>, quic: quinn::Connection) {
        let path = &self.paths[index];
        for stream in 0..STREAMS {
            path.streams[stream].buffer.borrow_mut().clear();
            let Ok((send, recv)) = quic.open_bi().await else { return };
            let (link, connection) = (Rc::clone(self), quic.clone());
            tokio::task::spawn_local(async move {
                link.write(index, stream, send, &connection).await;
            });
            let (link, net) = (Rc::clone(self), Rc::clone(net));
            let connection = quic.clone();
            tokio::task::spawn_local(async move { link.read(&net, recv, &connection).await });
        }
        let was_up = self.up();
        path.up.set(true);
        if !was_up {
            self.count(net, |channel| channel.up.set(1));
            net.broadcast(|| Item::ChannelUp(self.number, true));
        }
        self.tried.notify_one();
        let reason = quic.closed().await;
        eprintln!("channel {}: connection ended: {reason}", self.settings.name);
        path.up.set(false);
        for stream in &path.streams {
            stream.wake.notify_one();
        }
        // In this order: what was sent is in doubt before new sends are refused.
        net.broadcast(|| Item::LinkLost(self.number));
        self.count(net, |channel| channel.lost.add(1));
        if !self.up() {
            self.count(net, |channel| channel.up.set(0));
            net.broadcast(|| Item::ChannelUp(self.number, false));
        }
    }

    /// Writes what is buffered, as long as the channel takes it in time. A lease that
    /// was there when a request was buffered says nothing of when it is written: behind a
    /// channel that acknowledges and does not read it could wait for ever, and leave
    /// when another leader has long ruled that it never will. So what has waited for
    /// longer than the link may hold it ends the connection and is dropped.
    async fn write(
        self: Rc<Self>,
        index: usize,
        stream: usize,
        mut send: quinn::SendStream,
        quic: &quinn::Connection,
    ) {
        let path = &self.paths[index];
        let outgoing = &path.streams[stream];
        let hold_us = self.settings.link_idle_ms() * 1_000;
        loop {
            let bytes = std::mem::take(&mut *outgoing.buffer.borrow_mut());
            if bytes.is_empty() {
                outgoing.wake.notified().await;
                if !path.up.get() && outgoing.buffer.borrow().is_empty() {
                    return;
                }
                continue;
            }
            let waited_us = clock::mono_us().saturating_sub(outgoing.since_us.get());
            let left = Duration::from_micros(hold_us.saturating_sub(waited_us));
            if left.is_zero() {
                break;
            }
            match tokio::time::timeout(left, send.write_chunk(Bytes::from(bytes))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
        eprintln!("channel {}: does not read what it is sent", self.settings.name);
        quic.close(CloseCode::SlowPeer.wire().into(), b"requests are not read");
        outgoing.buffer.borrow_mut().clear();
    }

    async fn read(&self, net: &Rc<Net>, mut recv: quinn::RecvStream, quic: &quinn::Connection) {
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        let mut splitter = Splitter::new();
        while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
            for chunk in &chunks[..count] {
                let split = splitter.push(chunk, |header, body| {
                    self.answer(net, header.kind, header.correlation, body);
                });
                if let Err(error) = split {
                    quic.close(error.close_code().wire().into(), b"not a frame of this protocol");
                    return;
                }
            }
            for chunk in &mut chunks[..count] {
                *chunk = Bytes::new();
            }
        }
    }

    fn count(&self, net: &Net, add: impl FnOnce(&ChannelMetrics)) {
        if let Some(channel) = net.metrics.channel(self.number) {
            add(channel);
        }
    }

    fn answer(&self, net: &Rc<Net>, kind: u8, correlation: u64, body: &[u8]) {
        let operation = OperationId::unpack(correlation);
        let Some(operation) = operation.filter(|id| id.shard < net.settings.shards) else {
            self.count(net, |channel| channel.unmatched.add(1));
            return;
        };
        if operation.sequence % SAMPLE == 0
            && let Some(took) = self.sampled(correlation)
        {
            net.metrics.channel_round_trip.record(took);
            net.was_at_channel(took);
        }
        self.count(net, |channel| channel.answered.add(1));
        let evidence = match ChannelReply::decode(kind, body) {
            Ok(reply) => Evidence::Answered {
                status: reply.status,
                detail: reply.detail,
                charge_no: reply.charge_no,
                amount: reply.amount,
                currency: reply.currency,
                channel_ref: reply.channel_ref,
            },
            Err(_) => Evidence::Lost,
        };
        net.push(operation.shard, Item::Evidence(operation, evidence));
    }
}
