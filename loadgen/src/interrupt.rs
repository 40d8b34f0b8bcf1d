//! Ctrl-C, in whatever phase: a thread of its own listens, because the audit and
//! the tools it starts keep the main thread busy for long.
//!
//! The first signal ends the load, the second what is still waited for, the third
//! the process. Children stand in a group of their own, so that Ctrl-C at a
//! terminal tells nobody but this process; `under` sees to their end. Tested with
//! real processes.

use crate::exit::{Exit, Failure};
use std::fmt::Display;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Notify;

/// The signal that ends the process whatever it does.
const LAST: u32 = 3;

static TOLD: AtomicU32 = AtomicU32::new(0);
static CHANGED: Notify = Notify::const_new();

/// Listens to SIGINT and SIGTERM; what is returned is told each time.
pub(crate) fn listen() -> Result<Arc<Notify>, Failure> {
    let stop = Arc::new(Notify::new());
    let told = Arc::clone(&stop);
    let failed = |error: std::io::Error| {
        Failure::environment(format_args!("cannot listen to signals: {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        use tokio::signal::unix::{SignalKind, signal};
        let _context = runtime.enter();
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        (signals.0.map_err(failed)?, signals.1.map_err(failed)?)
    };
    let listener = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if TOLD.fetch_add(1, Ordering::Relaxed) + 1 >= LAST {
                crate::exit::tell("told to stop three times: ended in the middle");
                std::process::exit(Exit::Invalid as i32);
            }
            CHANGED.notify_waiters();
            told.notify_one();
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(listener)).map_err(failed)?;
    Ok(stop)
}

/// Sees whether a signal came since it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    before: u32,
}

impl Watch {
    /// From now on.
    pub(crate) fn new() -> Self {
        Self { before: TOLD.load(Ordering::Relaxed) }
    }

    /// From the process's first moment on: what is started after a signal came is not
    /// started at all.
    pub(crate) fn from_start() -> Self {
        Self { before: 0 }
    }

    /// Whether none came.
    pub(crate) fn quiet(self) -> bool {
        TOLD.load(Ordering::Relaxed) == self.before
    }

    /// A failure when one came while this was done.
    pub(crate) fn check(self, what: &str) -> Result<(), Failure> {
        if self.quiet() { Ok(()) } else { Err(stopped(what)) }
    }

    /// Runs a future to its end, or until one comes.
    pub(crate) async fn unless_told<T>(
        self,
        what: &str,
        future: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            ended = future => ended,
            () = self.told() => Err(stopped(what)),
        }
    }

    /// Waits until one comes.
    async fn told(self) {
        let mut changed = std::pin::pin!(CHANGED.notified());
        loop {
            changed.as_mut().enable();
            if !self.quiet() {
                return;
            }
            changed.as_mut().await;
            changed.set(CHANGED.notified());
        }
    }
}

/// Told to stop during this.
pub(crate) fn stopped(what: impl Display) -> Failure {
    Failure::new(Exit::Invalid, format_args!("stopped during {what}: nothing can be said"))
}

/// Forgets what was told and not heard: the answer to it is what comes now.
pub(crate) fn forget(stop: &Notify) {
    let mut told = std::pin::pin!(stop.notified());
    told.as_mut().enable();
}

/// In a group of its own: what a terminal sends to this one does not reach it.
pub(crate) fn apart(command: &mut Command) -> &mut Command {
    command.process_group(0)
}
