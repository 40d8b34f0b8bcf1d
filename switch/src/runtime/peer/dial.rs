//! Our connection to another site: dialled, kept up, and dialled anew.
//!
//! QUIC doubles the time between its probes while a path is dead, so a
//! connection that outlives a blackout may need as long again to notice. A link
//! on which nothing comes for [`SILENT_TICKS`] is therefore dropped, and an
//! attempt to connect is given up early and made again.

use std::rc::Rc;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::code::CloseCode;
use quinn::{RecvStream, SendStream};

use super::hello::HELLO_LEN;
use super::packets::LENGTH_LEN;
use super::{Core, Settings, Whose};
use crate::runtime::mesh::{Queue, Traffic};
use crate::tls;

const REDIAL_MIN: Duration = Duration::from_millis(20);
const REDIAL_MAX: Duration = Duration::from_millis(500);
/// How long an attempt may take, in turn: short ones find a site early that has
/// just come back, long ones reach one that is far away.
const ATTEMPTS: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_millis(600), Duration::from_millis(1_500)];
/// An attempt that takes longer than this, and than four round trips, while
/// the other side is known to be there has lost its first packets.
const STUCK: Duration = Duration::from_millis(50);

/// Interval of beats, and of looking whether anything came.
const TICK: Duration = Duration::from_millis(100);
/// Ticks in a row without a packet of the other side before the link is given
/// up. Ticks are counted, not time: a process that stood still itself finds the
/// packets of the meantime before the second tick.
const SILENT_TICKS: u32 = 6;

/// Ticks in a row for which a round trip must be too long before that is said: one
/// lost packet is no distance.
const FAR_TICKS: u32 = 10;

/// Packets up to this size are put together into one chunk.
const SMALL: usize = 16 << 10;
/// Bytes gathered for one write.
const WRITE_MAX: usize = 1 << 20;

/// A connection that the other side has greeted.
struct Dialled {
    quic: quinn::Connection,
    urgent: SendStream,
    bulk: SendStream,
    states: SendStream,
    forwards: SendStream,
    answers: RecvStream,
}

impl Core {
    /// Keeps our connection to `site` up until the thread ends.
    pub(super) async fn keep_up(self: Rc<Self>, site: u8) {
        let mut pause = REDIAL_MIN;
        for attempt in 0_usize.. {
            match self.attempt(site, ATTEMPTS[attempt % ATTEMPTS.len()]).await {
                Ok(dialled) => {
                    pause = REDIAL_MIN;
                    self.serve(site, dialled).await;
                }
                Err(error) => self.say(Whose::Ours, site, error),
            }
            tokio::select! {
                () = self.peer(site).redial.notified() => pause = REDIAL_MIN,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(REDIAL_MAX),
            }
        }
    }

    /// One attempt, cut short when the other side shows up meanwhile and this
    /// one does not come on.
    async fn attempt(&self, site: u8, bound: Duration) -> Result<Dialled, String> {
        let started = Instant::now();
        let mut connect = std::pin::pin!(tokio::time::timeout(bound, self.connect(site)));
        loop {
            tokio::select! {
                outcome = &mut connect => {
                    return outcome.unwrap_or_else(|_| Err("it does not answer".into()));
                }
                () = self.peer(site).redial.notified() => {
                    let inbound = self.peer(site).inbound.borrow();
                    let round_trip = inbound.as_ref().map_or(Duration::ZERO, |quic| quic.rtt());
                    if started.elapsed() > STUCK + round_trip * 4 {
                        // Known to be there: try again at once.
                        self.peer(site).redial.notify_one();
                        return Err("it does not answer".into());
                    }
                }
            }
        }
    }

    async fn connect(&self, site: u8) -> Result<Dialled, String> {
        let there = &self.settings.sites[usize::from(site) - 1];
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let connecting = self
            .endpoint
            .connect_with(client, there.peer, &there.server_name)
            .map_err(|error| error.to_string())?;
        let quic = connecting.await.map_err(|error| error.to_string())?;
        match self.greet(site, quic.clone()).await {
            Ok(dialled) => Ok(dialled),
            Err((code, reason)) => {
                self.was_closed(site, &quic);
                quic.close(code.into(), reason.as_bytes());
                Err(reason)
            }
        }
    }

    /// Judges who is there, opens the streams and waits for the greeting: only
    /// then has the other side judged us.
    async fn greet(&self, site: u8, quic: quinn::Connection) -> Result<Dialled, (u32, String)> {
        match tls::peer_site(&quic, self.names()) {
            Ok(number) if number == site => {}
            Ok(number) => {
                let reason = format!("site {number} answers there");
                return Err((CloseCode::WrongSite.wire(), reason));
            }
            Err(error) => return Err((CloseCode::NotAuthorised.wire(), error.to_string())),
        }
        let lost = |reason: String| (CloseCode::Normal.wire(), reason);
        let hello = self.settings.hello;
        let (mut forwards, mut answers) =
            quic.open_bi().await.map_err(|error| lost(error.to_string()))?;
        let mut urgent = quic.open_uni().await.map_err(|error| lost(error.to_string()))?;
        let mut bulk = quic.open_uni().await.map_err(|error| lost(error.to_string()))?;
        let mut states = quic.open_uni().await.map_err(|error| lost(error.to_string()))?;
        for (stream, traffic) in [
            (&mut forwards, Traffic::Forwards),
            (&mut urgent, Traffic::Urgent),
            (&mut bulk, Traffic::Bulk),
            (&mut states, Traffic::States),
        ] {
            let greeting = hello.encode(traffic);
            stream.write_all(&greeting).await.map_err(|error| lost(error.to_string()))?;
        }
        // Blocks must not hold up what is small and urgent. Fails only when the
        // connection is gone already.
        drop(urgent.set_priority(2));
        drop(forwards.set_priority(1));
        drop(states.set_priority(-1));
        let mut greeting = [0; HELLO_LEN];
        if let Err(error) = answers.read_exact(&mut greeting).await {
            // The connection's own end says more than the stream's.
            let reason = quic.close_reason().map_or(error.to_string(), |end| end.to_string());
            return Err(lost(reason));
        }
        let (_, log) = self
            .hello_of(site)
            .judge(&greeting, &[Traffic::Answers])
            .map_err(|error| (CloseCode::WrongSite.wire(), error.to_string()))?;
        self.meet(site, log).await?;
        Ok(Dialled { quic, urgent, bulk, states, forwards, answers })
    }

    /// Carries packets until the connection ends, for whatever reason.
    async fn serve(&self, site: u8, dialled: Dialled) {
        let Dialled { quic, urgent, bulk, states, forwards, answers } = dialled;
        let Some(route) = self.shared.mesh.route(site) else { return };
        route.set_up(true);
        self.watch_at_once(site);
        self.say(Whose::Ours, site, "link up".into());
        if let Some(metrics) = self.metrics(site) {
            metrics.up.set(1);
        }
        let reason = tokio::select! {
            end = quic.closed() => end.to_string(),
            () = self.write(site, route.queue(Traffic::Urgent), urgent, true) => {
                ended(&quic)
            }
            () = self.write(site, route.queue(Traffic::Bulk), bulk, false) => ended(&quic),
            () = self.write(site, route.queue(Traffic::States), states, false) => ended(&quic),
            () = self.write(site, route.queue(Traffic::Forwards), forwards, false) => {
                ended(&quic)
            }
            read = self.read(site, 0, Traffic::Answers, answers) => match read {
                Ok(()) => ended(&quic),
                Err(_) => {
                    quic.close(CloseCode::FrameTooLarge.wire().into(), b"an overlong packet");
                    "it sent an overlong packet".into()
                }
            },
            () = self.watch(site, &quic) => "nothing came for too long".into(),
        };
        // Does nothing to a connection that has ended.
        quic.close(CloseCode::Normal.wire().into(), b"dialling anew");
        route.set_up(false);
        self.shared.ferry.wake();
        if let Some(metrics) = self.metrics(site) {
            metrics.up.set(0);
            metrics.far.set(0);
        }
        self.say(Whose::Ours, site, format!("link down: {reason}"));
    }

    /// Writes what the queue holds, everything that is ready at once. With
    /// `beats`, something leaves at least every tick.
    pub(super) async fn write(&self, site: u8, queue: &Queue, mut send: SendStream, beats: bool) {
        let mut chunks = Vec::new();
        loop {
            self.gather(site, queue, &mut chunks);
            if chunks.is_empty() {
                if !beats {
                    queue.wake.notified().await;
                    continue;
                }
                if tokio::time::timeout(TICK, queue.wake.notified()).await.is_ok() {
                    continue;
                }
                chunks.push(Bytes::from_static(&[0; LENGTH_LEN]));
            }
            if send.write_all_chunks(&mut chunks).await.is_err() {
                return;
            }
            chunks.clear();
        }
    }

    /// Takes packets off the queue as chunks with their lengths: small ones
    /// together, large ones without a copy.
    fn gather(&self, site: u8, queue: &Queue, chunks: &mut Vec<Bytes>) {
        let (mut total, mut count) = (0, 0);
        let mut small = Vec::new();
        while total < WRITE_MAX
            && let Some(packet) = queue.take()
        {
            (total, count) = (total + packet.len(), count + 1);
            small.extend_from_slice(&(packet.len() as u32).to_le_bytes());
            if packet.len() <= SMALL {
                small.extend_from_slice(&packet);
            } else {
                chunks.push(Bytes::from(std::mem::take(&mut small)));
                chunks.push(Bytes::from(packet));
            }
        }
        if !small.is_empty() {
            chunks.push(Bytes::from(small));
        }
        if let Some(metrics) = self.metrics(site) {
            metrics.packets_sent.add(count);
            metrics.bytes_sent.add(total as u64);
        }
    }

    /// Ends when nothing has come on the connection for too long; publishes
    /// its figures meanwhile.
    async fn watch(&self, site: u8, quic: &quinn::Connection) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut seen, mut silent, mut far) = (0, 0, 0);
        while silent < SILENT_TICKS {
            ticks.tick().await;
            let received = quic.stats().udp_rx.datagrams;
            silent = if received == seen { silent + 1 } else { 0 };
            seen = received;
            let round_trip_us = quic.rtt().as_micros() as u64;
            let is_over = round_trip_us > self.settings.round_trip_max_us;
            far = if is_over { (far + 1).min(FAR_TICKS) } else { 0 };
            self.is_far(site, far == FAR_TICKS, round_trip_us);
            let route = self.shared.mesh.route(site);
            if let (Some(metrics), Some(route)) = (self.metrics(site), route) {
                metrics.round_trip_us.set(round_trip_us);
                metrics.dropped.set(route.dropped());
            }
        }
    }
}

impl Core {
    /// Tells the operator once that a site is farther away than the time-outs allow.
    fn is_far(&self, site: u8, far: bool, round_trip_us: u64) {
        if let Some(metrics) = self.metrics(site) {
            metrics.far.set(far.into());
        }
        if far && !self.peer(site).said_far.replace(true) {
            let Settings { round_trip_max_us, hello, .. } = &self.settings;
            eprintln!(
                "peer site {site}: TOO FAR for the configured time-outs: its round trip is \
                 {:.1} ms, an election time-out of {} ms allows {:.1} ms: shards may lose their \
                 leaders and sending may pause; set replication.round_trip_ms to what is measured, \
                 the same at all sites, with all of them stopped",
                round_trip_us as f64 / 1e3,
                hello.election_us / 1_000,
                *round_trip_max_us as f64 / 1e3
            );
        }
    }
}

/// Why a connection ended whose stream ended.
pub(super) fn ended(quic: &quinn::Connection) -> String {
    quic.close_reason().map_or("a stream ended".into(), |end| end.to_string())
}
