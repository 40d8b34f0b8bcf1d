//! The gateway front: accepts connections, judges certificates, reads streams,
//! writes answers. Decoding and authorisation of one frame is in `request`.
//!
//! Never executes a request: valid ones go to the open batch of their lane,
//! invalid ones are answered here.

use std::cell::Cell;
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
use super::handshakes::{Admission, Handshakes};
use super::inbox::Item;
use super::net::{Net, stream_slot};
use super::notice::Told;
use super::request;
use super::stream::{Stream, Streams};
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
    /// The same of all connections of its gateway.
    pub of_gateway: Rc<Cell<usize>>,
    /// Most of those.
    pub of_gateway_max: usize,
    /// It is closed or forgotten: what is still read of it counts for nothing.
    pub gone: Cell<bool>,
    quic: quinn::Connection,
    streams: Streams,
    dirty: Cell<bool>,
    /// There is something to say on the control stream.
    control: Notify,
    /// That is good-bye: since then, monotonic microseconds; 0: not yet.
    leaving_since_us: Cell<u64>,
    opened_us: u64,
}

impl Connection {
    /// Encodes an answer into its stream's buffer.
    pub fn reply(self: &Rc<Self>, reply: &Reply, dirty: &mut Vec<Rc<Connection>>) {
        let waiter = &reply.waiter;
        let Some(stream) = self.streams.get(stream_slot(waiter.stream)) else { return };
        stream.pending.set(stream.pending.get().saturating_sub(1));
        if stream.closed.get() {
            self.streams.release(&stream);
            return;
        }
        encode_reply(reply, &mut stream.buffer.borrow_mut());
        self.touch(&stream, dirty);
    }

    /// Encodes an event into its subscriber's buffer, unless the subscription has ended
    /// meanwhile: it comes again then, to another one. Returns whether it was encoded.
    pub fn event(
        self: &Rc<Self>,
        waiter: &Waiter,
        event: &Event,
        dirty: &mut Vec<Rc<Connection>>,
    ) -> bool {
        let Some(stream) = self.streams.get(stream_slot(waiter.stream)) else { return false };
        if stream.name != waiter.stream || !stream.subscribed.get() {
            return false;
        }
        event.encode_frame(waiter.correlation, &mut stream.buffer.borrow_mut());
        self.touch(&stream, dirty);
        true
    }

    fn touch(self: &Rc<Self>, stream: &Rc<Stream>, dirty: &mut Vec<Rc<Connection>>) {
        stream.dirty.set(true);
        self.bound_unread(stream);
        if !self.dirty.replace(true) {
            dirty.push(Rc::clone(self));
        }
    }

    /// Closes the connection when what waits to be written on the stream is too much.
    fn bound_unread(&self, stream: &Stream) {
        if stream.closed.get() {
            // The peer wants to hear nothing there.
            stream.buffer.take();
        } else if stream.buffer.borrow().len() > UNREAD_MAX {
            self.close(CloseCode::SlowPeer, "answers are not read");
        }
    }

    /// Wakes the writers of the streams that got something.
    pub fn wake_streams(&self) {
        self.dirty.set(false);
        self.streams.each(|stream| {
            if stream.dirty.replace(false) {
                stream.wake.notify_one();
            }
        });
    }

    /// Closes the connection with a code and a reason for the peer's log.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.gone.set(true);
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
        let limits = &self.config.gateway;
        let handshakes = Handshakes::new(limits.handshakes_max);
        while let Some(incoming) = endpoint.accept().await {
            let address = incoming.remote_address().ip();
            let admission = if self.net.connections().len() >= limits.connections_max as usize {
                Admission::Refused
            } else {
                handshakes.admit(address, incoming.remote_address_validated())
            };
            match admission {
                Admission::Taken(handshake) => {
                    self.net.metrics.handshakes.set(handshakes.total().into());
                    let (front, handshakes) = (Rc::clone(&self), Rc::clone(&handshakes));
                    tokio::task::spawn_local(async move {
                        let accepted = front.shake_hands(incoming).await;
                        drop(handshake);
                        front.net.metrics.handshakes.set(handshakes.total().into());
                        match accepted {
                            Some(quic) => front.serve(quic).await,
                            None => front.net.metrics.connections_refused.add(1),
                        }
                    });
                }
                // Retry only fails for validated addresses, which this one is not.
                Admission::Unproven => drop(incoming.retry()),
                Admission::Refused => {
                    self.net.metrics.connections_refused.add(1);
                    incoming.refuse();
                }
            }
        }
    }

    async fn shake_hands(&self, incoming: quinn::Incoming) -> Option<quinn::Connection> {
        let allowed = Duration::from_millis(self.config.gateway.handshake_timeout_ms);
        tokio::time::timeout(allowed, incoming).await.ok()?.ok()
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
        let connection = self.net.register(|id| self.connection(id, peer, gateway, &quic));
        let control = Rc::clone(&connection);
        let front = Rc::clone(&self);
        tokio::task::spawn_local(async move { front.run_control(&control).await });
        while let Ok((send, recv)) = quic.accept_bi().await {
            self.open_stream(&connection, send, recv);
        }
        // What had come with the end is handed out before it: readers may only now begin.
        self.net.unregister(&connection);
        connection.streams.each(|stream| {
            stream.closed.set(true);
            stream.wake.notify_one();
        });
        connection.go_away();
    }

    /// How many requests of one gateway may be unanswered: half of all, where there are
    /// others to leave room for.
    fn gateway_share(&self) -> usize {
        let all = self.net.settings.outstanding_max;
        if self.config.gateways.len() > 1 { all.div_ceil(2) } else { all }
    }

    fn connection(
        &self,
        id: u64,
        peer: Peer,
        gateway: u16,
        quic: &quinn::Connection,
    ) -> Connection {
        Connection {
            id,
            peer,
            gateway,
            in_flight: Cell::new(0),
            of_gateway: self.net.unanswered_of(gateway),
            of_gateway_max: self.gateway_share(),
            gone: Cell::new(false),
            quic: quic.clone(),
            streams: Streams::default(),
            dirty: Cell::new(false),
            control: Notify::new(),
            leaving_since_us: Cell::new(0),
            opened_us: clock::mono_us(),
        }
    }

    fn open_stream(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let Some(stream) = connection.streams.open() else {
            // Fail only when the stream has ended already.
            drop(send.reset(CloseCode::Overload.wire().into()));
            drop(recv.stop(CloseCode::Overload.wire().into()));
            return;
        };
        let (front, writer) = (Rc::clone(self), (Rc::clone(connection), Rc::clone(&stream)));
        tokio::task::spawn_local(async move { front.write(&writer.0, &writer.1, send).await });
        let (front, connection) = (Rc::clone(self), Rc::clone(connection));
        tokio::task::spawn_local(async move { front.read(&connection, &stream, recv).await });
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

    /// Reads a stream to its end.
    async fn read(
        &self,
        connection: &Rc<Connection>,
        stream: &Rc<Stream>,
        recv: quinn::RecvStream,
    ) {
        self.read_frames(connection, stream, recv).await;
        stream.partial_since_us.set(0);
        self.unsubscribe(connection, stream);
        stream.finished.set(true);
        stream.wake.notify_one();
        connection.streams.release(stream);
    }

    async fn read_frames(
        &self,
        connection: &Rc<Connection>,
        stream: &Rc<Stream>,
        mut recv: quinn::RecvStream,
    ) {
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        let mut splitter = Splitter::new();
        while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
            let mut now = clock::now();
            let mut completed = false;
            for chunk in &mut chunks[..count] {
                let chunk = std::mem::take(chunk);
                if stream.subscribed.get() {
                    self.have_room(connection, stream).await;
                    now = clock::now();
                }
                if connection.gone.get() {
                    return;
                }
                let mut wrote = false;
                let split = splitter.push(&chunk, |header, body| {
                    completed = true;
                    wrote |= request::frame(&self.net, connection, stream, header, body, now);
                });
                if let Err(error) = split {
                    connection.close(error.close_code(), "not a frame of this protocol");
                    return;
                }
                // Answers of the worker are bounded where they come in, these here.
                if wrote {
                    connection.bound_unread(stream);
                    stream.wake.notify_one();
                }
            }
            stream.has_read(completed, !splitter.is_empty(), now.mono_us);
        }
    }

    /// Acknowledgements have no answer that could refuse them: where they come faster than
    /// the worker takes them, the stream that brings them is not read.
    async fn have_room(&self, connection: &Connection, stream: &Stream) {
        while self.net.is_crowded() && !connection.gone.get() {
            // It is not the peer that keeps us waiting.
            stream.partial_since_us.set(0);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A subscription ends with either side of its stream: nobody could acknowledge, or
    /// hear, what is told on it.
    fn unsubscribe(&self, connection: &Connection, stream: &Stream) {
        if stream.subscribed.replace(false) && !connection.gone.get() {
            self.net.broadcast(|| Item::Unsubscribe(connection.id, stream.name));
        }
    }

    /// Writes a stream's buffer whenever it was woken; ends when the peer has
    /// finished and everything is answered.
    async fn write(
        &self,
        connection: &Rc<Connection>,
        stream: &Rc<Stream>,
        mut send: quinn::SendStream,
    ) {
        while !stream.closed.get() {
            let bytes = std::mem::take(&mut *stream.buffer.borrow_mut());
            if !bytes.is_empty() {
                if send.write_chunk(Bytes::from(bytes)).await.is_err() {
                    break;
                }
                continue;
            }
            if stream.finished.get() && stream.pending.get() == 0 {
                // Fails only when the stream is already gone.
                drop(send.finish());
                break;
            }
            stream.wake.notified().await;
        }
        stream.closed.set(true);
        self.unsubscribe(connection, stream);
        connection.streams.release(stream);
    }

    /// Once a second: publishes how many requests are unanswered, closes connections that
    /// leave frames unfinished or are past their age.
    pub async fn run_sweeper(self: Rc<Self>) {
        let frame_us = self.config.gateway.frame_timeout_ms * 1000;
        let age_us = self.config.gateway.connection_age_h * 3_600_000_000;
        let mut interval = tokio::time::interval(Duration::from_secs(1));
        loop {
            interval.tick().await;
            self.net.metrics.in_flight.set(self.net.outstanding.get() as u64);
            let now = clock::mono_us();
            self.net.metrics.in_flight_window.set(self.net.unanswered_max(now) as u64);
            for connection in self.net.connections() {
                if connection.streams.is_stalled(now, frame_us) {
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

#[cfg(test)]
mod tests;
