//! A child process: started with its output in a file, signalled, and ended
//! whatever happens when its handle is dropped; `under` sees to it when this process
//! is killed. Ctrl-C at a terminal is for this process alone to answer.
//!
//! Nothing here blocks for longer than a fork takes: the caller drives load on
//! the same thread. Tested with `sleep`.

use crate::exit::Failure;
use crate::interrupt;
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Display;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a process to become ready, or to end.
pub(super) const READY_MAX: Duration = Duration::from_secs(20);
pub(super) const POLL: Duration = Duration::from_millis(5);

/// A child process, ended when dropped.
pub(crate) struct Process {
    child: Child,
    name: String,
    output: PathBuf,
}

impl Process {
    /// Starts a process whose output is added to a file.
    pub(crate) fn start(
        name: impl Into<String>,
        command: &mut Command,
        output: &Path,
    ) -> Result<Self, Failure> {
        let name = name.into();
        let failed =
            |error: Error| Failure::environment(format_args!("cannot start {name}: {error}"));
        let file = File::options().create(true).append(true).open(output).map_err(failed)?;
        let errors = file.try_clone().map_err(failed)?;
        let child = interrupt::apart(command)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .map_err(failed)?;
        Ok(Self { child, name, output: output.to_owned() })
    }

    /// Waits for an end that nobody asked for, and tells its code.
    pub(crate) async fn end_by_itself(mut self, bound: Duration) -> Result<Option<i32>, Failure> {
        let started = Instant::now();
        while !self.ended() {
            if started.elapsed() > bound {
                return Err(self.failure("goes on"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(self.child.wait().ok().and_then(|status| status.code()))
    }

    /// SIGHUP.
    pub(crate) fn hang_up(&self) -> Result<(), Failure> {
        self.signal(Signal::HUP)
    }

    /// kill -9, and waits for the end.
    pub(crate) async fn kill(mut self) {
        // Fails only when it has already ended.
        drop(self.child.kill());
        let started = Instant::now();
        while !self.ended() && started.elapsed() < READY_MAX {
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGSTOP: it stands still until [`Process::resume`].
    pub(crate) fn pause(&self) -> Result<(), Failure> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) -> Result<(), Failure> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        // A child that has ended keeps its number until it was waited for.
        let told = match Pid::from_raw(self.child.id() as i32) {
            Some(pid) => kill_process(pid, signal).map_err(Error::from),
            None => Err(Error::from(ErrorKind::NotFound)),
        };
        told.map_err(|error| self.failure(format_args!("cannot be told {signal:?}: {error}")))
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGTERM, and waits for a clean end.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        self.signal(Signal::TERM)?;
        self.finish().await
    }

    /// Waits for a clean end.
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        match ended(&mut self.child).await {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failure(format_args!("ended with {status}"))),
            None => Err(self.failure("does not end")),
        }
    }

    /// What it printed so far.
    pub(crate) fn printed(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// A failure that shows what it printed last.
    pub(crate) fn failure(&self, what: impl Display) -> Failure {
        let printed = self.printed();
        let mut tail: Vec<&str> = printed.lines().rev().take(5).collect();
        tail.reverse();
        Failure::environment(format_args!("{} {what}:\n{}", self.name, tail.join("\n")))
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

async fn ended(child: &mut Child) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if started.elapsed() < READY_MAX => tokio::time::sleep(POLL).await,
            ended => return ended.ok().flatten(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has already ended. A stopped process dies too.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
