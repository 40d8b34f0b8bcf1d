//! One connection to a site: connects, waits for the HELLO, writes buffers,
//! reads answers, and connects again when it is lost.
//!
//! Moves bytes only; what is sent again after a loss is the state's decision.

use super::events;
use super::state::State;
use crate::config::SiteEntry;
use crate::tls;
use bytes::{Bytes, BytesMut};
use protocol::frame::{HEADER_LEN, Header, Splitter};
use protocol::message::{GoAway, Hello, Leaders, kind};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// A handshake that takes longer starts over: probes of a fresh one come
/// sooner than those of one that has backed off.
const HANDSHAKE_MAX: Duration = Duration::from_millis(400);
/// Longest wait for the HELLO.
const HELLO_MAX: Duration = Duration::from_secs(2);
const RECONNECT_MIN: Duration = Duration::from_millis(10);
const RECONNECT_MAX: Duration = Duration::from_millis(200);
/// Bytes that a stream's write buffer is sized for.
const WRITE_BUFFER: usize = 64 << 10;

/// What waits to be written on one stream.
pub(super) struct Outgoing {
    /// Frames.
    pub(super) buffer: RefCell<Vec<u8>>,
    wake: Notify,
}

/// A connection slot.
pub(super) struct Link {
    /// Its place among the links.
    pub(super) number: usize,
    /// The site it leads to.
    pub(super) site: u8,
    address: SocketAddr,
    server_name: String,
    up: Cell<bool>,
    /// Whether outcome events are subscribed to here.
    pub(super) listens: Cell<bool>,
    /// Whether nothing is heard of it at present, though it was asked.
    pub(super) quiet: Cell<bool>,
    /// Most requests in flight, as the HELLO says.
    window: Cell<u32>,
    /// Requests in flight.
    pub(super) in_flight: Cell<u32>,
    /// Streams.
    pub(super) streams: Vec<Outgoing>,
    quic: RefCell<Option<quinn::Connection>>,
    error: RefCell<Option<String>>,
    /// Told when requests in flight came down to none while the site drains.
    ended: Cell<bool>,
}

impl Link {
    /// A link that is down until [`Link::keep_up`] connects it.
    pub(super) fn new(number: usize, site: &SiteEntry, streams: usize) -> Rc<Self> {
        let outgoing = |_| Outgoing {
            buffer: RefCell::new(Vec::with_capacity(WRITE_BUFFER)),
            wake: Notify::new(),
        };
        Rc::new(Self {
            number,
            site: site.id,
            address: site.address,
            server_name: site.server_name.clone(),
            up: Cell::new(false),
            listens: Cell::new(false),
            quiet: Cell::new(false),
            window: Cell::new(0),
            in_flight: Cell::new(0),
            streams: (0..streams.max(1)).map(outgoing).collect(),
            quic: RefCell::new(None),
            error: RefCell::new(None),
            ended: Cell::new(false),
        })
    }

    /// Whether requests may be sent.
    pub(super) fn is_up(&self) -> bool {
        self.up.get()
    }

    /// Whether one more request may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.up.get() && self.in_flight.get() < self.window.get()
    }

    /// Why the last attempt to connect failed.
    pub(super) fn last_error(&self) -> Option<String> {
        self.error.borrow().clone()
    }

    /// Wakes a stream's writer.
    pub(super) fn wake(&self, stream: usize) {
        self.streams[stream].wake.notify_one();
    }

    /// Packets that came on the present connection.
    pub(super) fn packets(&self) -> u64 {
        self.quic.borrow().as_ref().map_or(0, |quic| quic.stats().udp_rx.datagrams)
    }

    /// Gives the present connection up; the next one is made at once.
    pub(super) fn reset(&self) {
        if let Some(quic) = self.quic.borrow().as_ref() {
            quic.close(0_u32.into(), b"silent");
        }
    }

    /// Ends the link for good.
    pub(super) fn close(&self) {
        self.ended.set(true);
        if let Some(quic) = self.quic.borrow().as_ref() {
            quic.close(0_u32.into(), b"done");
        }
    }

    /// Connects now and after every loss.
    pub(super) fn keep_up(
        self: &Rc<Self>,
        state: &Rc<RefCell<State>>,
        endpoint: &quinn::Endpoint,
        client: &quinn::ClientConfig,
    ) {
        let (link, state) = (Rc::clone(self), Rc::downgrade(state));
        let (endpoint, client) = (endpoint.clone(), client.clone());
        tokio::task::spawn_local(async move {
            let mut pause = RECONNECT_MIN;
            while !link.ended.get() {
                match link.connect(&endpoint, &client).await {
                    Ok(quic) => {
                        pause = RECONNECT_MIN;
                        link.serve(&state, quic).await;
                    }
                    Err(error) => *link.error.borrow_mut() = Some(error),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RECONNECT_MAX);
            }
        });
    }

    async fn connect(
        &self,
        endpoint: &quinn::Endpoint,
        client: &quinn::ClientConfig,
    ) -> Result<quinn::Connection, String> {
        let connecting = endpoint
            .connect_with(client.clone(), self.address, &self.server_name)
            .map_err(|error| error.to_string())?;
        let quic = tokio::time::timeout(HANDSHAKE_MAX, connecting)
            .await
            .map_err(|_| format!("no answer from {}", self.address))?
            .map_err(|error| format!("{}: {error}", self.address))?;
        if tls::peer_has_role(&quic, "site") {
            Ok(quic)
        } else {
            Err(format!("the certificate of {} is not a site's", self.address))
        }
    }

    async fn serve(self: &Rc<Self>, state: &Weak<RefCell<State>>, quic: quinn::Connection) {
        let mut control = match hello(&quic).await {
            Ok((hello, control)) => {
                self.window.set(hello.in_flight_max.max(1));
                control
            }
            Err(error) => {
                *self.error.borrow_mut() = Some(format!("{}: {error}", self.address));
                quic.close(0_u32.into(), b"no hello");
                return;
            }
        };
        for stream in 0..self.streams.len() {
            let Ok((send, recv)) = quic.open_bi().await else { return };
            let (link, connection) = (Rc::clone(self), quic.clone());
            tokio::task::spawn_local(async move { link.write(stream, send, &connection).await });
            let (link, state, quic) = (Rc::clone(self), state.clone(), quic.clone());
            tokio::task::spawn_local(async move { link.read(&state, recv, &quic).await });
        }
        if self.listens.get() {
            tokio::task::spawn_local(events::listen(state.clone(), quic.clone()));
        }
        *self.quic.borrow_mut() = Some(quic.clone());
        self.up.set(true);
        if let Some(state) = state.upgrade() {
            state.borrow_mut().link_up();
        }
        if let Some(away) = go_away(&mut control, state).await {
            self.up.set(false);
            self.drain(Duration::from_millis(away.deadline_ms.into())).await;
            quic.close(0_u32.into(), b"gone");
        }
        let reason = quic.closed().await;
        *self.error.borrow_mut() = Some(format!("{}: {reason}", self.address));
        self.up.set(false);
        *self.quic.borrow_mut() = None;
        for (at, outgoing) in self.streams.iter().enumerate() {
            outgoing.buffer.borrow_mut().clear();
            self.wake(at);
        }
        self.in_flight.set(0);
        if let Some(state) = state.upgrade() {
            state.borrow_mut().link_lost(self.number);
        }
    }

    /// Waits until everything in flight is answered, at most `bound`.
    async fn drain(&self, bound: Duration) {
        let step = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while self.in_flight.get() > 0 && waited < bound {
            tokio::time::sleep(step).await;
            waited += step;
        }
    }

    async fn write(
        self: Rc<Self>,
        stream: usize,
        mut send: quinn::SendStream,
        quic: &quinn::Connection,
    ) {
        let outgoing = &self.streams[stream];
        let mut chunk = BytesMut::with_capacity(WRITE_BUFFER);
        loop {
            {
                let mut buffer = outgoing.buffer.borrow_mut();
                chunk.reserve(buffer.len());
                chunk.extend_from_slice(&buffer);
                buffer.clear();
            }
            if chunk.is_empty() {
                outgoing.wake.notified().await;
                // Woken by the loss of this connection.
                if quic.close_reason().is_some() {
                    return;
                }
                continue;
            }
            if send.write_chunk(chunk.split().freeze()).await.is_err() {
                return;
            }
        }
    }

    async fn read(
        &self,
        state: &Weak<RefCell<State>>,
        mut recv: quinn::RecvStream,
        quic: &quinn::Connection,
    ) {
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        let mut splitter = Splitter::new();
        while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
            let Some(state) = state.upgrade() else { return };
            let mut state = state.borrow_mut();
            let now_ns = state.now_ns();
            for chunk in &mut chunks[..count] {
                let bytes = std::mem::take(chunk);
                if splitter.push(&bytes, |header, body| state.take(header, body)).is_err() {
                    state.count_answers(self, now_ns);
                    quic.close(2_u32.into(), b"not a frame of this protocol");
                    return;
                }
            }
            state.count_answers(self, now_ns);
            state.answers_taken();
        }
    }
}

async fn hello(quic: &quinn::Connection) -> Result<(Hello, quinn::RecvStream), String> {
    let read = async {
        let mut control = quic.accept_uni().await.map_err(|error| error.to_string())?;
        let (header, body) = frame(&mut control).await.ok_or("the control stream ended")?;
        if header.kind != kind::HELLO {
            return Err("the first frame is not a HELLO".to_owned());
        }
        let hello = Hello::decode(&body).map_err(|error| error.to_string())?;
        Ok((hello, control))
    };
    let bounded = tokio::time::timeout(HELLO_MAX, read).await;
    bounded.unwrap_or_else(|_| Err("no HELLO".to_owned()))
}

/// Hands on who leads which shard until a GOAWAY; `None` when the connection ended
/// without one.
async fn go_away(control: &mut quinn::RecvStream, state: &Weak<RefCell<State>>) -> Option<GoAway> {
    loop {
        let (header, body) = frame(control).await?;
        match header.kind {
            kind::GOAWAY => return GoAway::decode(&body).ok(),
            kind::LEADER => {
                if let (Some(state), Ok(leaders)) = (state.upgrade(), Leaders::decode(&body)) {
                    state.borrow_mut().leaders_told(&leaders);
                }
            }
            _ => {}
        }
    }
}

async fn frame(control: &mut quinn::RecvStream) -> Option<(Header, Vec<u8>)> {
    let mut head = [0; HEADER_LEN];
    control.read_exact(&mut head).await.ok()?;
    let header = Header::decode(&head).ok()?;
    let mut body = vec![0; header.length as usize];
    control.read_exact(&mut body).await.ok()?;
    Some((header, body))
}
