//! The sites' processes: which run, and that no site has two.
//!
//! Asks for nothing that a site does not have: a fault that cannot be done is told. Tested
//! with `sleep`.

use crate::cluster::Process;
use crate::exit::{Exit, Failure};
use std::cell::RefCell;

/// One site's place.
enum Place {
    /// Nothing runs.
    Empty,
    /// Its process is being started, or is ending.
    Busy,
    /// It runs, or ended by itself.
    Runs(Process),
}

/// By site, from 1.
pub(super) struct Switches(RefCell<Vec<Place>>);

impl Switches {
    /// Those that run, and an empty place for each `absent` site behind them.
    pub(super) fn new(running: Vec<Process>, absent: usize) -> Self {
        let empty = std::iter::repeat_with(|| Place::Empty).take(absent);
        Self(RefCell::new(running.into_iter().map(Place::Runs).chain(empty).collect()))
    }

    fn with<T>(
        &self,
        site: u8,
        run: impl FnOnce(&mut Place) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut places = self.0.borrow_mut();
        match usize::from(site).checked_sub(1).and_then(|at| places.get_mut(at)) {
            Some(place) => run(place),
            None => Err(Failure::usage(format_args!("there is no site {site}"))),
        }
    }

    /// Does something with a process that runs; a failure when none does.
    pub(super) fn running<T>(
        &self,
        site: u8,
        run: impl FnOnce(&Process) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.with(site, |place| match place {
            Place::Runs(process) => match process.ended() {
                true => Err(process.failure("ended by itself: the fault could not be done")),
                false => run(process),
            },
            Place::Empty | Place::Busy => {
                let text = format_args!("site {site} does not run: the fault could not be done");
                Err(Failure::new(Exit::Invalid, text))
            }
        })
    }

    /// Takes a process that runs to its end: its place is busy until it is left.
    pub(super) fn take(&self, site: u8) -> Result<Process, Failure> {
        self.running(site, |_| Ok(()))?;
        self.take_ended(site)
    }

    /// As [`Self::take`], of one that may have ended.
    pub(super) fn take_ended(&self, site: u8) -> Result<Process, Failure> {
        self.with(site, |place| match std::mem::replace(place, Place::Busy) {
            Place::Runs(process) => Ok(process),
            other => {
                *place = other;
                let text = format_args!("site {site} does not run: there is no end to wait for");
                Err(Failure::new(Exit::Invalid, text))
            }
        })
    }

    /// The process of a site has ended.
    pub(super) fn leave(&self, site: u8) -> Result<(), Failure> {
        self.with(site, |place| {
            *place = Place::Empty;
            Ok(())
        })
    }

    /// Claims the place of a site that does not run, for a process that is about to start.
    pub(super) fn claim(&self, site: u8) -> Result<(), Failure> {
        self.with(site, |place| match place {
            Place::Empty => {
                *place = Place::Busy;
                Ok(())
            }
            Place::Busy | Place::Runs(_) => {
                let text = format_args!("site {site} runs already: it cannot be started twice");
                Err(Failure::new(Exit::Invalid, text))
            }
        })
    }

    /// Puts a process into the place that was claimed for it.
    pub(super) fn put(&self, site: u8, process: Process) -> Result<(), Failure> {
        self.with(site, |place| {
            *place = Place::Runs(process);
            Ok(())
        })
    }

    /// Takes all that run.
    pub(super) fn take_all(&self) -> Vec<Process> {
        let places = self.0.take().into_iter();
        let process = |place| match place {
            Place::Runs(process) => Some(process),
            Place::Empty | Place::Busy => None,
        };
        places.filter_map(process).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sleeper(dir: &tempfile::TempDir, seconds: &str) -> Process {
        let mut command = Command::new("sleep");
        Process::start("sleep", command.arg(seconds), &dir.path().join("out")).ok().unwrap()
    }

    fn told<T>(result: Result<T, Failure>) -> (Exit, String) {
        let failure = result.err().unwrap();
        (failure.exit, failure.message)
    }

    #[test]
    fn what_does_not_run_cannot_be_broken_and_what_runs_cannot_be_started() {
        let dir = tempfile::tempdir().unwrap();
        let switches = Switches::new(vec![sleeper(&dir, "60")], 1);
        assert_eq!(switches.running(1, |_| Ok(7)), Ok(7));
        let absent = (Exit::Invalid, "site 2 does not run: the fault could not be done".to_owned());
        assert_eq!(told(switches.running(2, |_| Ok(()))), absent);
        assert_eq!(told(switches.take(2)), absent);
        assert_eq!(told(switches.take(3)).0, Exit::Usage);
        assert_eq!(told(switches.claim(1)).0, Exit::Invalid);
        // While it ends nobody starts another one.
        let process = switches.take(1).ok().unwrap();
        assert_eq!(told(switches.take(1)).0, Exit::Invalid);
        assert_eq!(told(switches.claim(1)).0, Exit::Invalid);
        drop(process);
        switches.leave(1).unwrap();
        switches.claim(1).unwrap();
        assert_eq!(told(switches.claim(1)).1, "site 1 runs already: it cannot be started twice");
        switches.put(1, sleeper(&dir, "60")).unwrap();
        assert_eq!(switches.take_all().len(), 1);
    }

    #[test]
    fn a_process_that_ended_by_itself_is_told_with_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let switches = Switches::new(vec![sleeper(&dir, "no number")], 0);
        while switches.running(1, |_| Ok(())).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let (exit, message) = told(switches.take(1));
        assert_eq!(exit, Exit::Environment);
        assert!(message.contains("ended by itself") && message.contains("no number"), "{message}");
        assert!(switches.take_ended(1).is_ok());
    }
}
