//! The connections of the liveness thread: one dialled to every other site, some
//! accepted from them, driven by readiness and deadlines.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token};

use super::{Liveness, STOP};

const MAGIC: [u8; 4] = *b"PSLV";
/// Magic, site, three reserved bytes, cluster.
const GREETING_LEN: usize = 16;
/// A site stops in order.
const GOODBYE: u8 = b'G';
/// A site lives.
const BEAT: u8 = 0;
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Connecting and greeting take no longer.
const GREET_MAX: Duration = Duration::from_secs(1);
/// An accepted connection without a beat for this long is closed.
const SILENT_MAX: Duration = Duration::from_secs(5);
const REDIAL_MIN: Duration = Duration::from_millis(20);
const REDIAL_MAX: Duration = Duration::from_millis(500);
/// Accepted connections per configured site: one, and some that linger.
const ACCEPTED_PER_SITE: usize = 4;
/// Connections taken in a row, so that a flood holds nothing else up.
const ACCEPTS: usize = 16;
/// Beats read at once: those of an hour in which this process stood still. Whoever
/// sends more is no site.
const BEATS_MAX: usize = 4096;
/// Reads in a row that find something, likewise.
const READS: usize = 16;

/// The pair towards the peer thread.
const BACK: Token = Token(0);
const LISTENER: Token = Token(1);
/// Site 1's dialled connection; the accepted ones come behind the last site's.
const DIALLED: usize = 2;

type Greeting = [u8; GREETING_LEN];

fn greeting(site: u8, cluster: u64) -> Greeting {
    let mut bytes = [0; GREETING_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = site;
    bytes[8..].copy_from_slice(&cluster.to_le_bytes());
    bytes
}

/// How an established connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The kernel closed it: the process is gone.
    Gone,
    /// The site said goodbye, or the path failed: no hint.
    Other,
}

/// A greeting on its way in.
#[derive(Default)]
struct Incoming {
    bytes: Greeting,
    len: usize,
}

impl Incoming {
    /// The greeting once it is whole, and none while more has to come.
    fn read(&mut self, stream: &mut TcpStream) -> io::Result<Option<Greeting>> {
        while self.len < GREETING_LEN {
            match stream.read(&mut self.bytes[self.len..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(more) => self.len += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(self.bytes))
    }
}

/// Where the connection to another site stands.
enum Link {
    /// To be dialled.
    Idle { at: Instant },
    /// Dialled, perhaps not established.
    Greeting { stream: TcpStream, until: Instant, is_sent: bool, theirs: Incoming },
    /// Established: its end is told.
    Watched { stream: TcpStream, beat: Instant },
}

struct Dialled {
    link: Link,
    /// Before the next try.
    pause: Duration,
}

/// A connection that another site dialled.
struct Accepted {
    stream: TcpStream,
    /// Closed without a further byte.
    until: Instant,
    /// Until it has come.
    greeting: Option<Incoming>,
}

/// The state of the thread.
pub(super) struct Watch {
    of: Liveness,
    poll: Poll,
    listener: TcpListener,
    /// Accepting failed: descriptors come back.
    accept_again: Option<Instant>,
    back: UnixStream,
    /// By site - 1; this site's own stays empty.
    dialled: Vec<Option<Dialled>>,
    accepted: Vec<Option<Accepted>>,
}

impl Watch {
    pub(super) fn new(of: Liveness, back: std::os::unix::net::UnixStream) -> io::Result<Self> {
        let mut listener = TcpListener::bind(of.sites[usize::from(of.site) - 1])?;
        let mut back = UnixStream::from_std(back);
        let poll = Poll::new()?;
        poll.registry().register(&mut back, BACK, Interest::READABLE)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let at = Instant::now();
        let dialled = (1..=of.sites.len()).map(|site| {
            let is_other = site != usize::from(of.site);
            is_other.then(|| Dialled { link: Link::Idle { at }, pause: REDIAL_MIN })
        });
        let dialled = dialled.collect();
        let most = ACCEPTED_PER_SITE * of.sites.len();
        let accepted = std::iter::repeat_with(|| None).take(most).collect();
        Ok(Self { of, poll, listener, accept_again: None, back, dialled, accepted })
    }

    /// Until the site stops or the other end of the pair is closed.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        loop {
            match self.turn(&mut events, Instant::now()) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    eprintln!("the deaths of other sites are seen later: poll: {error}");
                    return;
                }
            }
        }
    }

    /// What is due, and what becomes ready until something is due again; false: the end.
    fn turn(&mut self, events: &mut Events, now: Instant) -> io::Result<bool> {
        let due = self.catch_up(now);
        match self.poll.poll(events, Some(due.saturating_duration_since(now))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            polled => polled?,
        }
        let now = Instant::now();
        for event in &*events {
            match event.token() {
                BACK if !self.hear() => return Ok(false),
                BACK => {}
                LISTENER => self.accept(now),
                Token(other) => self.ready(other - DIALLED, now),
            }
        }
        Ok(true)
    }

    /// Does what is due; returns when something is due next.
    fn catch_up(&mut self, now: Instant) -> Instant {
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.accept(now);
        }
        for slot in 0..self.accepted.len() {
            if self.is_silent(slot, now) {
                // After a pause of this process its beats have come but are not read.
                self.hold(slot, now);
            }
            if self.is_silent(slot, now)
                && let Some(silent) = self.accepted[slot].take()
            {
                silent.say_goodbye();
            }
        }
        for at in 0..self.dialled.len() {
            self.catch_up_with(at, now);
        }
        let held = self.accepted.iter().flatten().map(|held| held.until);
        let dialled = self.dialled.iter().flatten().map(|dialled| match &dialled.link {
            Link::Idle { at } => *at,
            Link::Greeting { until, .. } => *until,
            Link::Watched { beat, .. } => *beat,
        });
        held.chain(dialled).chain(self.accept_again).min().unwrap_or(now + BEAT_EVERY)
    }

    fn catch_up_with(&mut self, at: usize, now: Instant) {
        let Some(dialled) = &mut self.dialled[at] else { return };
        match &mut dialled.link {
            Link::Idle { at: when } if *when <= now => self.dial(at, now),
            Link::Greeting { until, .. } if *until <= now => dialled.retry(now),
            Link::Watched { stream, beat } if *beat <= now => {
                *beat = now + BEAT_EVERY;
                // A broken connection is the reader's to judge.
                drop(stream.write(&[BEAT]));
            }
            _ => {}
        }
    }

    /// What the peer thread says; false: the end.
    fn hear(&mut self) -> bool {
        let mut bytes = [0; 16];
        loop {
            match self.back.read(&mut bytes) {
                Ok(0) => return false,
                Ok(len) => {
                    for &byte in &bytes[..len] {
                        if byte == STOP {
                            self.say_goodbye();
                            return false;
                        }
                        self.dial_at_once(byte);
                    }
                }
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    fn say_goodbye(&mut self) {
        self.accepted.drain(..).flatten().for_each(Accepted::say_goodbye);
    }

    fn is_silent(&self, slot: usize, now: Instant) -> bool {
        self.accepted[slot].as_ref().is_some_and(|held| held.until <= now)
    }

    fn dial_at_once(&mut self, site: u8) {
        let at = usize::from(site).wrapping_sub(1);
        if let Some(Some(dialled)) = self.dialled.get_mut(at) {
            dialled.pause = REDIAL_MIN;
            if let Link::Idle { at } = &mut dialled.link {
                *at = Instant::now();
            }
        }
    }

    fn dial(&mut self, at: usize, now: Instant) {
        let begun = self.begin(at, self.of.sites[at]);
        let Some(dialled) = &mut self.dialled[at] else { return };
        match begun {
            Ok(stream) => {
                let until = now + GREET_MAX;
                let theirs = Incoming::default();
                dialled.link = Link::Greeting { stream, until, is_sent: false, theirs };
            }
            Err(_) => dialled.retry(now),
        }
    }

    fn begin(&self, at: usize, address: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(DIALLED + at), interest)?;
        Ok(stream)
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS {
            match self.listener.accept() {
                Ok((stream, from)) => self.take(stream, from, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // Out of file descriptors: they come back.
                    self.accept_again = Some(now + REDIAL_MAX);
                    return;
                }
            }
        }
        self.accept_again = Some(now);
    }

    /// Strangers and more than there should be are closed at once.
    fn take(&mut self, mut stream: TcpStream, from: SocketAddr, now: Instant) {
        let is_known = self.of.sites.iter().any(|site| site.ip() == from.ip());
        let free = self.accepted.iter().position(Option::is_none);
        let Some(at) = free.filter(|_| is_known) else { return };
        let token = Token(DIALLED + self.dialled.len() + at);
        if self.poll.registry().register(&mut stream, token, Interest::READABLE).is_err() {
            return;
        }
        let until = now + GREET_MAX;
        self.accepted[at] = Some(Accepted { stream, until, greeting: Some(Incoming::default()) });
        // What came before it was registered.
        self.ready(self.dialled.len() + at, now);
    }

    /// Dialled connections first, accepted ones behind.
    fn ready(&mut self, at: usize, now: Instant) {
        match at.checked_sub(self.dialled.len()) {
            None => self.follow(at, now),
            Some(slot) => self.hold(slot, now),
        }
    }

    fn follow(&mut self, at: usize, now: Instant) {
        let Some(dialled) = &mut self.dialled[at] else { return };
        // Tables of sites hold at most 32.
        let site = at as u8 + 1;
        let metrics = self.of.metrics.peer(site);
        match dialled.greet(&greeting(self.of.site, self.of.cluster)) {
            Ok(None) => {}
            Ok(Some(theirs)) if theirs == greeting(site, self.of.cluster) => {
                dialled.established(now);
                metrics.inspect(|metrics| metrics.watched.set(1));
            }
            Ok(Some(_)) | Err(_) => return dialled.retry(now),
        }
        let Some(end) = dialled.end() else { return };
        dialled.retry(now);
        metrics.inspect(|metrics| metrics.watched.set(0));
        if end == End::Gone {
            metrics.inspect(|metrics| metrics.gone.add(1));
            self.of.mesh.report_gone(site);
            // A full pair holds enough to wake the other thread.
            drop(self.back.write(&[site]));
        }
    }

    fn hold(&mut self, slot: usize, now: Instant) {
        if self.heard(slot, now).is_err() {
            self.accepted[slot] = None;
        }
    }

    /// Reads all there is; an error ends the connection, for whatever reason.
    fn heard(&mut self, slot: usize, now: Instant) -> io::Result<()> {
        let Some(held) = &mut self.accepted[slot] else { return Ok(()) };
        if let Some(incoming) = &mut held.greeting {
            let Some(theirs) = incoming.read(&mut held.stream)? else { return Ok(()) };
            let mut others = (1..=self.of.sites.len() as u8).filter(|site| *site != self.of.site);
            if !others.any(|site| theirs == greeting(site, self.of.cluster)) {
                return Err(ErrorKind::InvalidData.into());
            }
            held.stream.write_all(&greeting(self.of.site, self.of.cluster))?;
            held.greeting = None;
            held.until = now + SILENT_MAX;
        }
        let mut beats = [0; BEATS_MAX];
        for _ in 0..READS {
            match held.stream.read(&mut beats) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(BEATS_MAX) => return Err(ErrorKind::InvalidData.into()),
                Ok(_) => held.until = now + SILENT_MAX,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::InvalidData.into())
    }
}

impl Accepted {
    /// Ends a connection of a site, not one of which nobody knows who it is.
    fn say_goodbye(mut self) {
        if self.greeting.is_none() {
            // One that cannot be written to hears nothing.
            drop(self.stream.write(&[GOODBYE]));
        }
    }
}

impl Dialled {
    fn retry(&mut self, now: Instant) {
        self.link = Link::Idle { at: now + self.pause };
        self.pause = (self.pause * 2).min(REDIAL_MAX);
    }

    fn established(&mut self, now: Instant) {
        self.pause = REDIAL_MIN;
        let before = std::mem::replace(&mut self.link, Link::Idle { at: now });
        if let Link::Greeting { stream, .. } = before {
            self.link = Link::Watched { stream, beat: now + BEAT_EVERY };
        }
    }

    /// Goes on with the greetings; returns the other site's once it is whole.
    fn greet(&mut self, ours: &Greeting) -> io::Result<Option<Greeting>> {
        let Link::Greeting { stream, is_sent, theirs, .. } = &mut self.link else {
            return Ok(None);
        };
        if !*is_sent {
            match stream.peer_addr() {
                Ok(_) => stream.write_all(ours)?,
                // Not established yet, unless it has failed.
                Err(_) => return stream.take_error()?.map_or(Ok(None), Err),
            }
            *is_sent = true;
        }
        theirs.read(stream)
    }

    /// How an established connection has ended, if it has.
    fn end(&mut self) -> Option<End> {
        let Link::Watched { stream, .. } = &mut self.link else { return None };
        match stream.read(&mut [0]) {
            Ok(0) => Some(End::Gone),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Some(End::Gone),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            _ => Some(End::Other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream as Peer;
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::runtime::mesh::Mesh;
    use crate::runtime::testing::Cluster;

    /// Site 1 of two, and a greeted connection of site 2's.
    fn greeted() -> (Watch, Peer, std::os::unix::net::UnixStream) {
        let cluster = Cluster::new(2);
        let config = cluster.config(1);
        let sites: Vec<SocketAddr> = config.sites.iter().map(|site| site.peer).collect();
        let of = Liveness {
            sites: sites.clone(),
            site: 1,
            cluster: 7,
            mesh: Arc::new(Mesh::new(1, 2, 12)),
            metrics: Arc::new(Metrics::new(config)),
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut watch = Watch::new(of, theirs).unwrap();
        let mut peer = Peer::connect(sites[0]).unwrap();
        peer.write_all(&greeting(2, 7)).unwrap();
        peer.set_nonblocking(true).unwrap();
        let mut answer = Greeting::default();
        while peer.read(&mut answer).is_err() {
            assert!(watch.turn(&mut Events::with_capacity(8), Instant::now()).unwrap());
        }
        assert_eq!(answer, greeting(1, 7));
        (watch, peer, ours)
    }

    fn held(watch: &Watch) -> usize {
        watch.accepted.iter().flatten().count()
    }

    #[test]
    fn beats_that_came_while_this_process_stood_still_count() {
        let (mut watch, mut peer, _ours) = greeted();
        peer.write_all(&[BEAT; 8]).unwrap();
        let later = Instant::now() + SILENT_MAX * 2;
        watch.catch_up(later);
        assert_eq!(held(&watch), 1);
        // And from there the silence counts, whose end is no death.
        watch.catch_up(later + SILENT_MAX);
        assert_eq!(held(&watch), 0);
        peer.set_nonblocking(false).unwrap();
        let mut end = Vec::new();
        peer.read_to_end(&mut end).unwrap();
        assert_eq!(end, [GOODBYE]);
    }

    #[test]
    fn a_flood_holds_nothing_up() {
        let (mut watch, mut peer, _ours) = greeted();
        peer.write_all(&[BEAT; BEATS_MAX]).unwrap();
        watch.catch_up(Instant::now() + SILENT_MAX);
        assert_eq!(held(&watch), 0, "no site beats so often");
        let address = watch.of.sites[0];
        let crowd: Vec<Peer> = (0..ACCEPTS + 1).map(|_| Peer::connect(address).unwrap()).collect();
        let now = Instant::now();
        watch.accept(now);
        assert_eq!((held(&watch), watch.accept_again), (2 * ACCEPTED_PER_SITE, Some(now)));
        drop(crowd);
        watch.catch_up(now);
        assert_eq!(watch.accept_again, None);
    }
}
