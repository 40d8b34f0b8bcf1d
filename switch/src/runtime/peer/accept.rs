//! Connections that other sites dial: judged, greeted, read.

use std::rc::Rc;
use std::time::Duration;

use protocol::code::CloseCode;
use quinn::{RecvStream, SendStream};

use super::dial::ended;
use super::hello::HELLO_LEN;
use super::{Core, Whose};
use crate::runtime::ferry::Arrival;
use crate::runtime::mesh::Traffic;
use crate::tls;

/// Connections under judgement at once; every site has one, and some are
/// replaced.
const HANDSHAKES_MAX: usize = 32;
/// How long a connection may take to show who it is.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// A connection whose streams have greeted.
struct Accepted {
    site: u8,
    forwards: RecvStream,
    answers: SendStream,
    urgent: RecvStream,
    bulk: RecvStream,
    states: RecvStream,
}

impl Core {
    /// Accepts connections until the endpoint closes.
    pub(super) async fn accept(self: Rc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            if self.handshakes.get() >= HANDSHAKES_MAX {
                incoming.refuse();
                continue;
            }
            // Half the budget in use: make addresses prove themselves.
            if self.handshakes.get() * 2 >= HANDSHAKES_MAX && !incoming.remote_address_validated() {
                // Retry only fails for validated addresses, which this one is not.
                drop(incoming.retry());
                continue;
            }
            self.handshakes.set(self.handshakes.get() + 1);
            let core = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                let judged = tokio::time::timeout(HANDSHAKE_MAX, core.judge(incoming)).await;
                core.handshakes.set(core.handshakes.get() - 1);
                if let Ok(Some((quic, accepted))) = judged {
                    core.serve_accepted(quic, accepted).await;
                }
            });
        }
    }

    /// Finds out who dials. `None`: somebody who may not, who was told so.
    async fn judge(&self, incoming: quinn::Incoming) -> Option<(quinn::Connection, Accepted)> {
        // A failed handshake may be anybody's: it is not worth a line.
        let quic = incoming.await.ok()?;
        let site = match tls::peer_site(&quic, self.names()) {
            Ok(site) if site != self.settings.hello.site => site,
            Ok(_) => {
                let reason = "that is this site itself";
                return self.turn_away(&quic, CloseCode::WrongSite, reason);
            }
            Err(error) => {
                return self.turn_away(&quic, CloseCode::NotAuthorised, &error.to_string());
            }
        };
        match self.streams(site, &quic).await {
            Ok(accepted) => Some((quic, accepted)),
            Err((code, reason)) => {
                self.was_closed(site, &quic);
                self.say(Whose::Theirs, site, format!("refused: {reason}"));
                quic.close(code.into(), reason.as_bytes());
                None
            }
        }
    }

    /// Refuses somebody with a certificate of our authorities who is no other
    /// site, and tells the operator unless it is what was told last.
    fn turn_away<T>(&self, quic: &quinn::Connection, code: CloseCode, reason: &str) -> Option<T> {
        let what = format!("{} is refused: {reason}", quic.remote_address().ip());
        let mut said = self.stranger.borrow_mut();
        if *said != what {
            eprintln!("peer port: {what}");
            *said = what;
        }
        refuse(quic, code, reason)
    }

    /// Takes the streams, whose greetings must fit.
    async fn streams(&self, site: u8, quic: &quinn::Connection) -> Result<Accepted, (u32, String)> {
        let accepted = self.greetings(site, quic).await;
        let (log, mut accepted) =
            accepted.map_err(|reason| (CloseCode::WrongSite.wire(), reason))?;
        self.meet(site, log).await?;
        let greeting = self.settings.hello.encode(Traffic::Answers);
        let greeted = accepted.answers.write_all(&greeting).await;
        greeted.map_err(|error| (CloseCode::Normal.wire(), error.to_string()))?;
        Ok(accepted)
    }

    /// The streams of a connection, and the log that they speak for.
    async fn greetings(
        &self,
        site: u8,
        quic: &quinn::Connection,
    ) -> Result<(u64, Accepted), String> {
        let (answers, mut forwards) = quic.accept_bi().await.map_err(|e| e.to_string())?;
        let (_, log) = self.greeted(site, &mut forwards, &[Traffic::Forwards]).await?;
        // They come in any order, each once.
        let mut missing = vec![Traffic::Urgent, Traffic::Bulk, Traffic::States];
        let mut streams = Vec::new();
        while !missing.is_empty() {
            let mut stream = quic.accept_uni().await.map_err(|error| error.to_string())?;
            let (kind, of) = self.greeted(site, &mut stream, &missing).await?;
            if of != log {
                return Err("its streams speak for different logs".into());
            }
            missing.retain(|traffic| *traffic != kind);
            streams.push((kind, stream));
        }
        streams.sort_by_key(|(kind, _)| *kind as u8);
        let mut streams = streams.into_iter().map(|(_, stream)| stream);
        let (Some(urgent), Some(bulk), Some(states)) =
            (streams.next(), streams.next(), streams.next())
        else {
            return Err("a stream is missing".into());
        };
        Ok((log, Accepted { site, forwards, answers, urgent, bulk, states }))
    }

    async fn greeted(
        &self,
        site: u8,
        stream: &mut RecvStream,
        kinds: &[Traffic],
    ) -> Result<(Traffic, u64), String> {
        let mut greeting = [0; HELLO_LEN];
        stream.read_exact(&mut greeting).await.map_err(|error| error.to_string())?;
        self.hello_of(site).judge(&greeting, kinds).map_err(|error| error.to_string())
    }

    /// Reads what the site sends, and sends it answers, until its connection
    /// ends or is replaced by a newer one.
    async fn serve_accepted(&self, quic: quinn::Connection, accepted: Accepted) {
        let Accepted { site, forwards, answers, urgent, bulk, states } = accepted;
        let Some(route) = self.shared.mesh.route(site) else { return };
        let peer = self.peer(site);
        let link = route.accept();
        if let Some(older) = peer.inbound.replace(Some(quic.clone())) {
            older.close(CloseCode::Normal.wire().into(), b"replaced by a newer connection");
        }
        // Answers for an earlier connection: nobody waits for them any more.
        while route.queue(Traffic::Answers).take().is_some() {}
        if let Some(metrics) = self.metrics(site) {
            metrics.inbound.set(1);
        }
        // It is there: no reason to wait with our own connection to it.
        peer.redial.notify_one();
        let (code, reason) = tokio::select! {
            _ = quic.closed() => (CloseCode::Normal, "ended".into()),
            () = self.write(site, route.queue(Traffic::Answers), answers, false) => {
                (CloseCode::ProtocolError, ended(&quic))
            }
            read = self.read(site, link, Traffic::Forwards, forwards) => overlong(&quic, read),
            read = self.read(site, link, Traffic::Urgent, urgent) => overlong(&quic, read),
            read = self.read(site, link, Traffic::Bulk, bulk) => overlong(&quic, read),
            read = self.read(site, link, Traffic::States, states) => overlong(&quic, read),
        };
        // A stream may have ended first.
        self.was_closed(site, &quic);
        if quic.close_reason().is_none() {
            self.say(Whose::Theirs, site, format!("closed: {reason}"));
            quic.close(code.wire().into(), reason.as_bytes());
        }
        if route.newest() == link {
            peer.inbound.replace(None);
            if let Some(metrics) = self.metrics(site) {
                metrics.inbound.set(0);
            }
        }
        self.hand_over(Arrival::Closed { from: site, link }).await;
    }
}

fn refuse<T>(quic: &quinn::Connection, code: CloseCode, reason: &str) -> Option<T> {
    quic.close(code.wire().into(), reason.as_bytes());
    None
}

fn overlong(
    quic: &quinn::Connection,
    read: Result<(), super::packets::TooLong>,
) -> (CloseCode, String) {
    match read {
        Ok(()) => (CloseCode::ProtocolError, ended(quic)),
        Err(super::packets::TooLong(bytes)) => {
            (CloseCode::FrameTooLarge, format!("a packet of {bytes} bytes"))
        }
    }
}
