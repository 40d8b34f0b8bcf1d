//! Tells at once that another site's process has ended: a TCP connection to its
//! peer address, which the kernel there closes when the process dies, however
//! it dies. QUIC, in user space, would only notice the silence.
//!
//! The connection carries a greeting each way, a beat every second so that one
//! to a process of long ago does not linger, and a goodbye when the site stops in
//! order. It is not authenticated, so whoever can forge packets between the
//! sites can fake an end. That is harmless: the hint may make a replica ask
//! sooner whether an election is wanted (a pre-vote), which the others deny as
//! long as they hear their leader; it never counts as a vote, never shortens a
//! lease and closes no link. Only ends of connections count that this site dialled
//! to a configured address and that were greeted with the right cluster and
//! site; that none comes about is no hint.

use std::io::{Error, ErrorKind};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::Core;

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

/// How an established connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The kernel closed it: the process is gone.
    Gone,
    /// The site said goodbye, or the path failed: no hint.
    Other,
}

fn greeting(site: u8, cluster: u64) -> [u8; GREETING_LEN] {
    let mut bytes = [0; GREETING_LEN];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = site;
    bytes[8..].copy_from_slice(&cluster.to_le_bytes());
    bytes
}

impl Core {
    fn greeting_of(&self, site: u8) -> [u8; GREETING_LEN] {
        greeting(site, self.settings.hello.cluster)
    }

    /// Keeps a connection to `site` and reports when its process ends.
    pub(super) async fn watch_process(self: Rc<Self>, site: u8) {
        let mut pause = REDIAL_MIN;
        loop {
            if let Ok(Ok(stream)) = timeout(GREET_MAX, self.reach(site)).await {
                pause = REDIAL_MIN;
                self.watched(site, true);
                let end = self.follow(stream).await;
                self.watched(site, false);
                if end == End::Gone {
                    self.shared.mesh.report_gone(site);
                    self.shared.exchange.wake();
                    if let Some(metrics) = self.metrics(site) {
                        metrics.gone.add(1);
                    }
                }
            }
            tokio::select! {
                // It is back: it may die again soon.
                () = self.peer(site).present.notified() => pause = REDIAL_MIN,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(REDIAL_MAX),
            }
        }
    }

    fn watched(&self, site: u8, watched: bool) {
        if let Some(metrics) = self.metrics(site) {
            metrics.watched.set(watched.into());
        }
    }

    /// Connects and greets.
    async fn reach(&self, site: u8) -> Result<TcpStream, Error> {
        let there = self.settings.sites[usize::from(site) - 1].peer;
        let mut stream = TcpStream::connect(there).await?;
        stream.write_all(&self.greeting_of(self.settings.hello.site)).await?;
        let mut theirs = [0; GREETING_LEN];
        stream.read_exact(&mut theirs).await?;
        if theirs == self.greeting_of(site) {
            Ok(stream)
        } else {
            Err(Error::from(ErrorKind::InvalidData))
        }
    }

    /// Waits for the end of an established connection.
    async fn follow(&self, mut stream: TcpStream) -> End {
        let (mut read, mut write) = stream.split();
        let mut byte = [0];
        let beat = async {
            loop {
                tokio::time::sleep(BEAT_EVERY).await;
                // A broken connection is the reader's to judge.
                drop(write.write_all(&[BEAT]).await);
            }
        };
        tokio::select! {
            got = read.read(&mut byte) => match got {
                Ok(0) => End::Gone,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => End::Gone,
                _ => End::Other,
            },
            () = beat => End::Other,
        }
    }

    /// Accepts the other sites' connections and holds them.
    pub(super) async fn watch_others(self: Rc<Self>, listener: TcpListener) {
        let most = ACCEPTED_PER_SITE * self.settings.sites.len();
        let held = Rc::new(());
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                // Out of file descriptors: they come back.
                tokio::time::sleep(REDIAL_MAX).await;
                continue;
            };
            let known = self.settings.sites.iter().any(|site| site.peer.ip() == from.ip());
            if !known || Rc::strong_count(&held) > most {
                continue;
            }
            let (core, held) = (Rc::clone(&self), Rc::clone(&held));
            tokio::task::spawn_local(async move {
                // Ends with the connection, for whatever reason.
                drop(core.hold(stream).await);
                drop(held);
            });
        }
    }

    async fn hold(&self, mut stream: TcpStream) -> Result<(), Error> {
        let (mut read, mut write) = stream.split();
        let mut theirs = [0; GREETING_LEN];
        timeout(GREET_MAX, read.read_exact(&mut theirs)).await??;
        let mut others = self.shared.mesh.others();
        if !others.any(|site| theirs == self.greeting_of(site)) {
            return Ok(());
        }
        write.write_all(&self.greeting_of(self.settings.hello.site)).await?;
        let mut beats = [0; 16];
        let listen = async {
            loop {
                if timeout(SILENT_MAX, read.read(&mut beats)).await?? == 0 {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = listen => ended,
            true = self.stopped() => write.write_all(&[GOODBYE]).await,
        }
    }
}
