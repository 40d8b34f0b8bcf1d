//! Faults of the machine under a site, without privileges: a small library in C that
//! is preloaded into `payswitch serve` and obeys a plan which changes while it runs.
//!
//! Its source is part of this binary and is compiled where the drill runs, with `cc`.
//! A library that the loader does not take would leave the site without its faults: the
//! library says in the plan that it is there, and that is checked.

use crate::exit::Failure;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SOURCE: &str = include_str!("../../shim/faults.c");

/// Words of the plan, in the order of `struct plan` in `faults.c`.
const CLOCK_OFFSET_NS: u64 = 0;
const CAPACITY: u64 = 1;
const WRITE_ERRNO: u64 = 2;
const WRITE_MODE: u64 = 3;
const STRUCK: u64 = 4;
const LOADED: u64 = 5;
const SHIFTED: u64 = 6;
const WORDS: u64 = 7;

/// As `errno.h` of Linux has it.
const EIO: i64 = 5;

/// What a write that fails has done to the medium all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Nothing.
    Nothing = 0,
    /// Everything: only the report is an error.
    All = 1,
    /// The first half of its blocks.
    Half = 2,
}

/// Whether there is a compiler.
pub(crate) fn possible() -> Result<(), Failure> {
    let told = Command::new("cc")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match told {
        Ok(status) if status.success() && cfg!(target_os = "linux") => Ok(()),
        _ => Err(Failure::environment(
            "needs Linux and a C compiler named cc: on Debian, apt-get install gcc libc6-dev",
        )),
    }
}

/// The compiled library, in a folder.
#[derive(Debug)]
pub(super) struct Shim {
    library: PathBuf,
    dir: PathBuf,
}

impl Shim {
    /// Compiles it.
    pub(super) fn compile(dir: &Path) -> Result<Self, Failure> {
        possible()?;
        let failed = |what: &dyn std::fmt::Display| {
            Failure::environment(format_args!("the fault library does not compile: {what}"))
        };
        // The library compares whole paths.
        let dir = std::fs::canonicalize(dir).map_err(|error| failed(&error))?;
        let (source, library) = (dir.join("faults.c"), dir.join("libpayswitch_faults.so"));
        std::fs::write(&source, SOURCE).map_err(|error| failed(&error))?;
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(&error))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(failed(&reason.lines().next().unwrap_or("cc failed")));
        }
        Ok(Self { library, dir })
    }

    fn path(&self, site: u8) -> PathBuf {
        self.dir.join(format!("site-{site}.faults"))
    }

    /// Has a site that is about to start obey its plan, which is kept over its restarts.
    pub(super) fn preload(
        &self,
        site: u8,
        log: &Path,
        command: &mut Command,
    ) -> Result<(), Failure> {
        let plan = self.path(site);
        if !plan.exists() {
            let made = File::create_new(&plan).and_then(|file| file.set_len(WORDS * 8));
            made.map_err(|error| failed(&plan, &error))?;
        }
        let log = self.dir.join(log);
        command.env("LD_PRELOAD", &self.library);
        command.env("PAYSWITCH_FAULT_PLAN", plan).env("PAYSWITCH_FAULT_DIR", log);
        Ok(())
    }

    /// The faults of a site that runs.
    pub(super) fn faults(&self, site: u8) -> Result<SiteFaults, Failure> {
        let path = self.path(site);
        let plan = File::options().read(true).write(true).open(&path);
        let faults = SiteFaults { plan: plan.map_err(|error| failed(&path, &error))?, path };
        match faults.get(LOADED)? {
            1 => Ok(faults),
            _ => Err(Failure::environment("the fault library was not loaded into the site")),
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::environment(format_args!("the plan of faults {}: {error}", path.display()))
}

/// The plan of one site's faults.
#[derive(Debug)]
pub(crate) struct SiteFaults {
    plan: File,
    path: PathBuf,
}

impl SiteFaults {
    /// Sets the site's wall clock off from the true one.
    pub(crate) fn step_clock(&self, seconds: i64) -> Result<(), Failure> {
        self.set(CLOCK_OFFSET_NS, seconds * 1_000_000_000)
    }

    /// Makes the log directory's file system one of so many bytes; `None`: the real one.
    pub(crate) fn disk_capacity(&self, bytes: Option<u64>) -> Result<(), Failure> {
        self.set(CAPACITY, bytes.map_or(0, |bytes| bytes.clamp(1, 1 << 60) as i64))
    }

    /// Every write and sync of the log directory fails; `None`: they work.
    pub(crate) fn fail_writes(&self, done: Option<Done>) -> Result<(), Failure> {
        if let Some(done) = done {
            self.set(WRITE_MODE, done as i64)?;
        }
        self.set(WRITE_ERRNO, if done.is_some() { EIO } else { 0 })
    }

    /// Calls that were made to fail so far.
    pub(crate) fn struck(&self) -> Result<i64, Failure> {
        self.get(STRUCK)
    }

    /// Readings of the wall clock that were off so far.
    pub(crate) fn shifted(&self) -> Result<i64, Failure> {
        self.get(SHIFTED)
    }

    fn set(&self, word: u64, value: i64) -> Result<(), Failure> {
        let written = self.plan.write_all_at(&value.to_ne_bytes(), word * 8);
        written.map_err(|error| failed(&self.path, &error))
    }

    fn get(&self, word: u64) -> Result<i64, Failure> {
        let mut bytes = [0; 8];
        self.plan
            .read_exact_at(&mut bytes, word * 8)
            .map_err(|error| failed(&self.path, &error))?;
        Ok(i64::from_ne_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loader takes the library, and a step of the clock is seen by the process.
    #[test]
    fn a_process_obeys_its_plan() {
        let dir = tempfile::tempdir().unwrap();
        let shim = Shim::compile(dir.path()).ok().unwrap();
        let year = |shim: &Shim| {
            let mut date = Command::new("date");
            date.args(["-u", "+%Y"]);
            shim.preload(1, Path::new("log"), &mut date).ok().unwrap();
            let output = date.output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap()
        };
        let now = year(&shim);
        let faults = shim.faults(1).ok().unwrap();
        assert_eq!(faults.shifted().ok(), Some(0));
        faults.step_clock(3 * 366 * 86_400).ok().unwrap();
        assert!((now + 3..=now + 4).contains(&year(&shim)));
        assert_eq!(faults.struck().ok(), Some(0));
        assert!(faults.shifted().is_ok_and(|shifted| shifted > 0));
    }

    #[test]
    fn a_process_without_the_library_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let shim = Shim::compile(dir.path()).ok().unwrap();
        assert!(shim.faults(1).is_err(), "there is no plan yet");
        let mut never = Command::new("true");
        shim.preload(1, Path::new("log"), &mut never).ok().unwrap();
        let failure = shim.faults(1).err().unwrap();
        assert!(failure.message.contains("not loaded"), "{}", failure.message);
    }
}
