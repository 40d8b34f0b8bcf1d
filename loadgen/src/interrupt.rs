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
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Notify;

/// The signal that ends the process whatever it does.
const LAST: u32 = 3;

static SIGNALS: Signals = Signals::new();

/// Signals in the order in which they come. Each is answered once: one that comes while nobody
/// listens is the first that the next listener hears.
struct Signals {
    came: AtomicU32,
    heard: AtomicU32,
    changed: Notify,
}

impl Signals {
    const fn new() -> Self {
        let (came, heard) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { came, heard, changed: Notify::const_new() }
    }

    /// One has come: its number, from 1.
    fn come(&self) -> u32 {
        let number = self.came.fetch_add(1, Ordering::Relaxed) + 1;
        self.changed.notify_waiters();
        number
    }

    fn came(&self) -> u32 {
        self.came.load(Ordering::Relaxed)
    }

    fn heard(&self) -> u32 {
        self.heard.load(Ordering::Relaxed)
    }

    /// So many have been answered, at least.
    fn hear(&self, number: u32) {
        self.heard.fetch_max(number, Ordering::Relaxed);
    }

    /// Waits for the next that nobody has heard, and hears it.
    async fn next(&self) {
        let came = |heard: u32| (heard < self.came()).then_some(heard + 1);
        let hear = || self.heard.fetch_update(Ordering::Relaxed, Ordering::Relaxed, came);
        self.until(|| hear().is_ok()).await;
    }

    /// Waits until this holds, which a signal may change.
    async fn until(&self, holds: impl Fn() -> bool) {
        let mut changed = std::pin::pin!(self.changed.notified());
        loop {
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }
}

/// Tells a load to stop, and told again to wait for nothing any more: the process's signals
/// do, or somebody within it.
pub(crate) struct Stop(Option<Signals>);

impl Stop {
    /// Somebody within the process will tell.
    pub(crate) fn new() -> Self {
        Self(Some(Signals::new()))
    }

    /// Tells; signals come by themselves.
    pub(crate) fn notify_one(&self) {
        if let Some(told) = &self.0 {
            told.come();
        }
    }

    /// Waits until it is told.
    pub(crate) async fn notified(&self) {
        match &self.0 {
            Some(told) => told.next().await,
            None => SIGNALS.next().await,
        }
    }
}

/// Listens to SIGINT and SIGTERM, of which each tells what is returned.
pub(crate) fn listen() -> Result<Stop, Failure> {
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
            if SIGNALS.come() >= LAST {
                crate::exit::tell("told to stop three times: ended in the middle");
                std::process::exit(Exit::Invalid as i32);
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(listener)).map_err(failed)?;
    Ok(Stop(None))
}

/// Sees whether a signal came that nobody had heard when it was made.
#[derive(Clone, Copy)]
pub(crate) struct Watch {
    signals: &'static Signals,
    before: u32,
}

impl Watch {
    /// From the last signal on that was heard.
    pub(crate) fn new() -> Self {
        Self::of(&SIGNALS)
    }

    fn of(signals: &'static Signals) -> Self {
        Self { signals, before: signals.heard() }
    }

    /// Whether none came.
    pub(crate) fn quiet(self) -> bool {
        self.signals.came() <= self.before
    }

    /// A failure when one came: it is heard by that.
    pub(crate) fn check(self, what: &str) -> Result<(), Failure> {
        if self.quiet() { Ok(()) } else { Err(self.heard(what)) }
    }

    fn heard(self, what: &str) -> Failure {
        self.signals.hear(self.before + 1);
        stopped(what)
    }

    /// Waits until one comes, and leaves the answer to whom else it is told.
    pub(crate) async fn told(self) {
        self.signals.until(|| !self.quiet()).await;
    }

    /// Runs a future to its end, or until a signal comes; one that came already is told before
    /// it begins.
    pub(crate) async fn unless_told<T>(
        self,
        what: &str,
        future: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.check(what)?;
        tokio::select! {
            biased;
            ended = future => ended,
            () = self.told() => Err(self.heard(what)),
        }
    }
}

/// Told to stop during this.
pub(crate) fn stopped(what: impl Display) -> Failure {
    Failure::new(Exit::Invalid, format_args!("stopped during {what}: nothing can be said"))
}

/// Forgets what came and was not heard: the answer to it is what comes now.
pub(crate) fn forget() {
    SIGNALS.hear(SIGNALS.came());
}

/// In a group of its own: what a terminal sends to this one does not reach it.
pub(crate) fn apart(command: &mut Command) -> &mut Command {
    command.process_group(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn signals() -> &'static Signals {
        Box::leak(Box::new(Signals::new()))
    }

    /// Whether a future ends without anything more coming.
    async fn ends(future: impl Future<Output = ()>) -> bool {
        tokio::time::timeout(Duration::ZERO, future).await.is_ok()
    }

    #[tokio::test]
    async fn what_comes_while_nobody_listens_is_heard_once_and_in_turn() {
        let signals = signals();
        assert!(!ends(signals.next()).await);
        assert_eq!((signals.come(), signals.come()), (1, 2));
        // Not one for both: the second asks for more than the first.
        assert!(ends(signals.next()).await && ends(signals.next()).await);
        assert!(!ends(signals.next()).await);
        let (next, ()) =
            tokio::join!(tokio::time::timeout(Duration::from_secs(60), signals.next()), async {
                tokio::task::yield_now().await;
                signals.come();
            });
        assert!(next.is_ok());
    }

    #[tokio::test]
    async fn who_is_told_twice_hears_it_twice() {
        let stop = Stop::new();
        assert!(!ends(stop.notified()).await);
        (0..2).for_each(|_| stop.notify_one());
        assert!(ends(stop.notified()).await && ends(stop.notified()).await);
        assert!(!ends(stop.notified()).await);
    }

    #[tokio::test]
    async fn a_watch_sees_what_was_not_heard_when_it_was_made() {
        let signals = signals();
        assert!(Watch::of(signals).quiet());
        signals.come();
        let (watch, never) = (Watch::of(signals), std::future::pending::<Result<(), Failure>>());
        assert!(!watch.quiet());
        let told = watch.unless_told("this", never).await.err().unwrap();
        assert_eq!(
            (told.exit, told.message.contains("stopped during this")),
            (Exit::Invalid, true)
        );
        // The answer to it was given.
        assert!(Watch::of(signals).quiet() && !ends(signals.next()).await);
        let watch = Watch::of(signals);
        let (told, ()) = tokio::join!(
            watch.unless_told("that", std::future::pending::<Result<(), Failure>>()),
            async {
                tokio::task::yield_now().await;
                signals.come();
                signals.come();
            }
        );
        assert!(told.is_err());
        assert!(ends(signals.next()).await && !ends(signals.next()).await, "the second is left");
    }

    #[tokio::test]
    async fn what_a_load_heard_ends_what_runs_beside_it_too() {
        let signals = signals();
        let watch = Watch::of(signals);
        signals.come();
        signals.next().await;
        assert!(watch.check("the load").is_err());
        assert!(Watch::of(signals).quiet());
    }
}
