//! The gateway front: accepts connections, judges certificates, reads streams,
//! writes answers. Decoding and authorisation of one frame is in `request`.
//!
//! Never executes a request: valid ones go to the open batch of their lane,
//! invalid ones are answered here.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use protocol::code::CloseCode;
use protocol::frame::Splitter;
use protocol::id::ShortText;
use protocol::message::{Event, GoAway, Hello, kind};
use tokio::sync::Notify;

use super::clock;
use super::directory::{Peer, mapped};
use super::net::{Net, stream_slot};
use super::notice::Told;
use super::request;
use crate::config::Config;
use crate::engine::input::Waiter;
use crate::engine::output::{Reply, ReplyBody};
use crate::tls::{self, Role};

/// How long a gateway that was told to go may wait for answers, at most.
pub const GO_AWAY_MAX: Duration = Duration::from_secs(10);
/// And how long it is given to stop sending.
const GO_AWAY_MIN: Duration = Duration::from_secs(2);
/// Unread answers of one stream before its connection is closed, bytes.
const UNREAD_MAX: usize = 1 << 20;

/// One long-lived or single-use stream of a connection.
pub struct Stream {
    /// Slot within the connection.
    pub slot: u32,
    /// Frames to write.
    pub buffer: RefCell<Vec<u8>>,
    /// Requests without answer.
    pub pending: Cell<u32>,
    /// The peer finished its side.
    finished: Cell<bool>,
    /// The write side failed or ended.
    closed: Cell<bool>,
    /// Events flow on it: it stays open after the peer finished.
    pub subscribed: Cell<bool>,
    /// When an unfinished frame began, monotonic microseconds; 0: none.
    partial_since_us: Cell<u64>,
    dirty: Cell<bool>,
    wake: Notify,
}

/// A gateway's connection.
pub struct Connection {
    /// Slot and generation.
    pub id: u64,
    /// Who, for authorisation.
    pub peer: Peer,
    /// Number of the gateway in the configuration.
    pub gateway: u16,
    /// Requests without answer.
    pub in_flight: Cell<u32>,
    quic: quinn::Connection,
    streams: RefCell<Vec<Option<Rc<Stream>>>>,
    dirty: Cell<bool>,
    /// There is something to say on the control stream.
    control: Notify,
    /// That is good-bye: since then, monotonic microseconds; 0: not yet.
    leaving_since_us: Cell<u64>,
    opened_us: u64,
}

impl Connection {
    fn stream(&self, slot: u32) -> Option<Rc<Stream>> {
        self.streams.borrow().get(slot as usize).cloned().flatten()
    }

    fn add_stream(&self) -> Rc<Stream> {
        let mut streams = self.streams.borrow_mut();
        let slot = streams.iter().position(Option::is_none).unwrap_or_else(|| {
            streams.push(None);
            streams.len() - 1
        });
        let stream = Rc::new(Stream {
            slot: slot as u32,
            buffer: RefCell::new(Vec::new()),
            pending: Cell::new(0),
            finished: Cell::new(false),
            closed: Cell::new(false),
            subscribed: Cell::new(false),
            partial_since_us: Cell::new(0),
            dirty: Cell::new(false),
            wake: Notify::new(),
        });
        streams[slot] = Some(Rc::clone(&stream));
        stream
    }

    /// Frees a stream's slot once nothing can be answered on it any more, so
    /// that a late answer never reaches a newer stream.
    fn release_stream(&self, stream: &Stream) {
        if stream.closed.get()
            && stream.pending.get() == 0
            && let Some(slot) = self.streams.borrow_mut().get_mut(stream.slot as usize)
        {
            *slot = None;
        }
    }

    /// Encodes an answer into its stream's buffer.
    pub fn reply(self: &Rc<Self>, reply: &Reply, dirty: &mut Vec<Rc<Connection>>) {
        let waiter = &reply.waiter;
        let Some(stream) = self.stream(stream_slot(waiter.stream)) else { return };
        stream.pending.set(stream.pending.get().saturating_sub(1));
        encode_reply(reply, &mut stream.buffer.borrow_mut());
        self.touch(&stream, dirty);
    }

    /// Encodes an event into its subscriber's buffer.
    pub fn event(self: &Rc<Self>, waiter: &Waiter, event: &Event, dirty: &mut Vec<Rc<Connection>>) {
        let Some(stream) = self.stream(stream_slot(waiter.stream)) else { return };
        event.encode_frame(waiter.correlation, &mut stream.buffer.borrow_mut());
        self.touch(&stream, dirty);
    }

    fn touch(self: &Rc<Self>, stream: &Rc<Stream>, dirty: &mut Vec<Rc<Connection>>) {
        if stream.closed.get() {
            self.release_stream(stream);
            return;
        }
        stream.dirty.set(true);
        if stream.buffer.borrow().len() > UNREAD_MAX {
            self.close(CloseCode::SlowPeer, "answers are not read");
        }
        if !self.dirty.replace(true) {
            dirty.push(Rc::clone(self));
        }
    }

    /// Wakes the writers of the streams that got something.
    pub fn wake_streams(&self) {
        self.dirty.set(false);
        for stream in self.streams.borrow().iter().flatten() {
            if stream.dirty.replace(false) {
                stream.wake.notify_one();
            }
        }
    }

    /// Closes the connection with a code and a reason for the peer's log.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.quic.close(code.wire().into(), reason.as_bytes());
    }

    /// Tells the peer to reconnect elsewhere.
    pub fn go_away(&self) {
        if self.leaving_since_us.get() == 0 {
            self.leaving_since_us.set(clock::mono_us().max(1));
            self.control.notify_one();
        }
    }

    fn is_overstayed(&self, now_us: u64) -> bool {
        match self.leaving_since_us.get() {
            0 => false,
            since_us => has_had_its_time(now_us.saturating_sub(since_us), self.in_flight.get()),
        }
    }

    /// Tells the peer who leads which shard, as soon as it reads.
    pub fn tell_leaders(&self) {
        self.control.notify_one();
    }
}

/// Whether a peer that was told to go so long ago has had its time: a moment in which
/// to stop sending, and for what is unanswered until the deadline.
fn has_had_its_time(told_us: u64, in_flight: u32) -> bool {
    let of = if in_flight == 0 { GO_AWAY_MIN } else { GO_AWAY_MAX };
    u128::from(told_us) > of.as_micros()
}

/// Appends the answer's frame.
pub fn encode_reply(reply: &Reply, out: &mut Vec<u8>) {
    let waiter = &reply.waiter;
    match &reply.body {
        ReplyBody::Order(body) => {
            body.encode_frame(waiter.kind | kind::REPLY, waiter.correlation, out)
        }
        ReplyBody::Refund(body) => {
            body.encode_frame(waiter.kind | kind::REPLY, waiter.correlation, out)
        }
    }
}

/// What the front needs of the configuration.
pub struct Front {
    /// Shared state.
    pub net: Rc<Net>,
    /// The configuration.
    pub config: Rc<Config>,
}

impl Front {
    /// Accepts connections until the endpoint closes.
    pub async fn run(self: Rc<Self>, endpoint: quinn::Endpoint) {
        let handshakes = Rc::new(Cell::new(0_u32));
        while let Some(incoming) = endpoint.accept().await {
            let limits = &self.config.gateway;
            if self.net.connections().len() >= limits.connections_max as usize
                || handshakes.get() >= limits.handshakes_max
            {
                self.net.metrics.connections_refused.add(1);
                incoming.refuse();
                continue;
            }
            // Half the budget of handshakes in use: make addresses prove themselves.
            if handshakes.get() * 2 >= limits.handshakes_max && !incoming.remote_address_validated()
            {
                // Retry only fails for validated addresses, which this one is not.
                drop(incoming.retry());
                continue;
            }
            handshakes.set(handshakes.get() + 1);
            self.net.metrics.handshakes.set(handshakes.get().into());
            let front = Rc::clone(&self);
            let handshakes = Rc::clone(&handshakes);
            let handshake_max = Duration::from_millis(self.config.gateway.handshake_timeout_ms);
            tokio::task::spawn_local(async move {
                let accepted = tokio::time::timeout(handshake_max, incoming).await;
                handshakes.set(handshakes.get() - 1);
                front.net.metrics.handshakes.set(handshakes.get().into());
                if let Ok(Ok(quic)) = accepted {
                    front.serve(quic).await;
                } else {
                    front.net.metrics.connections_refused.add(1);
                }
            });
        }
    }

    async fn serve(self: Rc<Self>, quic: quinn::Connection) {
        let (peer, gateway) = match self.judge(&quic) {
            Ok(judged) => judged,
            Err((code, reason)) => {
                self.net.metrics.connections_refused.add(1);
                quic.close(code.wire().into(), reason.as_bytes());
                return;
            }
        };
        let connection = self.net.register(|id| Connection {
            id,
            peer,
            gateway,
            in_flight: Cell::new(0),
            quic: quic.clone(),
            streams: RefCell::new(Vec::new()),
            dirty: Cell::new(false),
            control: Notify::new(),
            leaving_since_us: Cell::new(0),
            opened_us: clock::mono_us(),
        });
        let control = Rc::clone(&connection);
        let front = Rc::clone(&self);
        tokio::task::spawn_local(async move { front.run_control(&control).await });
        while let Ok((send, recv)) = quic.accept_bi().await {
            let stream = connection.add_stream();
            let writer = (Rc::clone(&connection), Rc::clone(&stream));
            tokio::task::spawn_local(async move { write(&writer.0, &writer.1, send).await });
            let front = Rc::clone(&self);
            let connection = Rc::clone(&connection);
            tokio::task::spawn_local(async move { front.read(&connection, &stream, recv).await });
        }
        for stream in connection.streams.borrow().iter().flatten() {
            stream.closed.set(true);
            stream.wake.notify_one();
        }
        connection.go_away();
        self.net.unregister(&connection);
    }

    /// Reads the gateway's identity off its certificate.
    fn judge(&self, quic: &quinn::Connection) -> Result<(Peer, u16), (CloseCode, &'static str)> {
        let identity = tls::peer_identity(quic)
            .map_err(|_| (CloseCode::NotAuthorised, "the certificate names no role"))?;
        if identity.role != Role::Gateway {
            return Err((CloseCode::NotAuthorised, "not a gateway certificate"));
        }
        let gateway = self
            .config
            .gateways
            .iter()
            .find(|gateway| gateway.name == identity.name)
            .ok_or((CloseCode::NotAuthorised, "the gateway is not configured"))?;
        let same =
            self.net.connections().iter().filter(|other| other.gateway == gateway.number).count();
        if same >= self.config.gateway.connections_per_identity_max as usize {
            return Err((CloseCode::TooManyConnections, "too many connections of this gateway"));
        }
        if self.net.draining.get() {
            return Err((CloseCode::Draining, "the site stops"));
        }
        let address: IpAddr = quic.remote_address().ip();
        let peer = Peer {
            name: ShortText::new(identity.name.as_bytes()).unwrap_or_default(),
            address: mapped(address),
            trusted: gateway.trust_certificate,
        };
        Ok((peer, gateway.number))
    }

    /// Greets on the control stream, says who leads which shard, and at last
    /// good-bye. A gateway that does not read holds up this task and nothing else.
    async fn run_control(&self, connection: &Connection) {
        let Ok(mut control) = connection.quic.open_uni().await else { return };
        // Fails only when the stream is gone. Answers may be many, and news of a
        // leader that died must not wait behind them.
        drop(control.set_priority(1));
        let settings = &self.net.settings;
        let hello = Hello {
            in_flight_max: settings.in_flight_max,
            shards: settings.shards,
            site: settings.site,
            sites: settings.sites,
            time_ms: clock::now().wall_us / 1000,
            cluster: settings.cluster,
        };
        let mut frame = Vec::new();
        hello.encode_frame(0, &mut frame);
        let mut told = Told::default();
        loop {
            if let Some(forward) = &self.net.forward {
                told.news(forward.mesh(), &mut frame);
            }
            if !frame.is_empty() && control.write_all(&frame).await.is_err() {
                return;
            }
            frame.clear();
            if connection.leaving_since_us.get() != 0 {
                break;
            }
            connection.control.notified().await;
        }
        let deadline_ms = GO_AWAY_MAX.as_millis() as u32;
        GoAway { code: CloseCode::Draining, deadline_ms }.encode_frame(0, &mut frame);
        // The peer may be gone already; then there is nobody to tell.
        drop(control.write_all(&frame).await);
        connection.quic.closed().await;
    }

    async fn read(
        &self,
        connection: &Rc<Connection>,
        stream: &Rc<Stream>,
        mut recv: quinn::RecvStream,
    ) {
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        let mut splitter = Splitter::new();
        while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
            let now = clock::now();
            let mut wrote = false;
            for chunk in &chunks[..count] {
                let split = splitter.push(chunk, |header, body| {
                    wrote |= request::frame(&self.net, connection, stream, header, body, now);
                });
                if let Err(error) = split {
                    connection.close(error.close_code(), "not a frame of this protocol");
                    return;
                }
            }
            for chunk in &mut chunks[..count] {
                *chunk = Bytes::new();
            }
            let since = if splitter.is_empty() { 0 } else { now.mono_us.max(1) };
            if since == 0 || stream.partial_since_us.get() == 0 {
                stream.partial_since_us.set(since);
            }
            if wrote {
                stream.wake.notify_one();
            }
        }
        stream.partial_since_us.set(0);
        stream.finished.set(true);
        stream.wake.notify_one();
    }

    /// Once a second: publishes how many requests are unanswered, closes connections that leave frames unfinished or are
    /// past their age.
    pub async fn run_sweeper(self: Rc<Self>) {
        let frame_us = self.config.gateway.frame_timeout_ms * 1000;
        let age_us = self.config.gateway.connection_age_h * 3_600_000_000;
        let mut interval = tokio::time::interval(Duration::from_secs(1));
        loop {
            interval.tick().await;
            self.net.metrics.in_flight.set(self.net.outstanding.get() as u64);
            let now = clock::mono_us();
            for connection in self.net.connections() {
                let stalled = connection.streams.borrow().iter().flatten().any(|stream| {
                    let since = stream.partial_since_us.get();
                    since != 0 && now.saturating_sub(since) > frame_us
                });
                if stalled {
                    connection.close(CloseCode::SlowPeer, "a frame was left unfinished");
                } else if connection.is_overstayed(now) {
                    connection.close(CloseCode::Draining, "the connection was told to go");
                } else if now.saturating_sub(connection.opened_us) > age_us {
                    connection.go_away();
                }
            }
        }
    }
}

/// Writes a stream's buffer whenever it was woken; ends when the peer has
/// finished and everything is answered.
async fn write(connection: &Rc<Connection>, stream: &Rc<Stream>, mut send: quinn::SendStream) {
    while !stream.closed.get() {
        let bytes = std::mem::take(&mut *stream.buffer.borrow_mut());
        if !bytes.is_empty() {
            if send.write_chunk(Bytes::from(bytes)).await.is_err() {
                break;
            }
            continue;
        }
        if stream.finished.get() && stream.pending.get() == 0 && !stream.subscribed.get() {
            // Fails only when the stream is already gone.
            drop(send.finish());
            break;
        }
        stream.wake.notified().await;
    }
    stream.closed.set(true);
    connection.release_stream(stream);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_told_to_go_is_waited_for_only_while_something_is_unanswered() {
        let second = 1_000_000;
        for (told_us, in_flight, ended) in [
            (0, 0, false),
            (2 * second, 0, false),
            (2 * second + 1, 0, true),
            (2 * second + 1, 1, false),
            (10 * second, 1, false),
            (10 * second + 1, 1, true),
        ] {
            assert_eq!(has_had_its_time(told_us, in_flight), ended, "{told_us} {in_flight}");
        }
    }
}
