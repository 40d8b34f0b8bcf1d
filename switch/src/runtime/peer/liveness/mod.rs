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
//!
//! **A thread with a descriptor table of its own.** When a process is killed, each of
//! its threads first lets go of the memory and then of its descriptors. The last one
//! frees what the process held, 80 ms per gigabyte, and so a table that all
//! share is closed only after that. A thread that shares its table with nobody
//! closes it as soon as it ends, usually while the workers are still ending; if it
//! is the last one itself, the sign comes late as it would without. It runs
//! without tokio, whose runtimes expect to find the process's signal pipe under
//! its number, and wakes nobody by descriptor but through one socket pair.

mod table;
mod watch;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};

use super::Core;
use crate::metrics::Metrics;
use crate::runtime::mesh::Mesh;
use watch::Watch;

/// The site stops in order: say goodbye and end. Every other byte is the number
/// of a site that has just shown that it lives.
const STOP: u8 = 0;

/// What the thread needs. Nothing in it may hold a descriptor.
pub(super) struct Liveness {
    /// Address of each site, by number - 1.
    pub(super) sites: Vec<SocketAddr>,
    /// This site's number.
    pub(super) site: u8,
    /// Cluster.
    pub(super) cluster: u64,
    /// Where an end is reported.
    pub(super) mesh: Arc<Mesh>,
    /// Metrics.
    pub(super) metrics: Arc<Metrics>,
}

impl Liveness {
    /// Binds this site's address and starts the thread. On the stream come bytes
    /// whenever an end was reported; when it is closed the thread ends.
    ///
    /// # Errors
    /// What could not be bound or started.
    pub(super) fn start(self) -> io::Result<(UnixStream, JoinHandle<()>)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let kept = theirs.as_raw_fd();
        let (started, outcome) = mpsc::channel();
        let thread = Builder::new().name("liveness".into()).spawn(move || {
            let own = table::have_own(&theirs);
            let has_own = own.is_ok();
            if let Err(error) = own {
                eprintln!(
                    "no descriptor table for the liveness thread ({error}): the others will \
                     see the death of this process only after its memory is freed"
                );
            }
            match Watch::new(self, theirs) {
                Ok(watch) => {
                    drop(started.send((has_own, Ok(()))));
                    watch.run();
                }
                Err(error) => drop(started.send((has_own, Err(error)))),
            }
        })?;
        let (has_own, outcome) =
            outcome.recv().map_err(|_| io::Error::other("the liveness thread panicked"))?;
        if has_own {
            table::close_copy(kept);
        }
        outcome.map(|()| (ours, thread))
    }
}

impl Core {
    /// Wakes the workers when an end has been reported.
    pub(super) async fn heed_ends(self: Rc<Self>) {
        let mut bytes = [0; 16];
        while self.liveness.readable().await.is_ok() {
            match self.liveness.try_read(&mut bytes) {
                // The thread is gone.
                Ok(0) => return,
                Ok(_) => self.shared.exchange.wake(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    /// A site has just shown that it lives: watch it at once, it may die again soon.
    pub(super) fn watch_at_once(&self, site: u8) {
        // When the pair is full the thread has more than enough to wake up for.
        drop(self.liveness.try_write(&[site]));
    }

    /// Lets the thread say goodbye to the other sites.
    pub(super) fn say_goodbye(&self) {
        // Unsaid, the end of this process looks like a death, which is only a hint.
        drop(self.liveness.try_write(&[STOP]));
    }
}
