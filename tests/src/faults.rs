//! Faults of the machine under a real process: a disk that fills or fails, a
//! wall clock that steps. Needs no privilege: a small library in C, compiled
//! with the compiler that building the project needs anyway, is preloaded into
//! the switch and obeys a plan that the test changes while it runs.
//!
//! Glibc on 64 bits only, which `loadgen/shim/faults.c` asserts. There is no way
//! to skip: where the library does not compile or load, the tests fail.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Words of the plan, in the order of `struct plan` in `faults.c`.
const CLOCK_OFFSET_NS: u64 = 0;
const CAPACITY: u64 = 1;
const WRITE_ERRNO: u64 = 2;
const WRITE_MODE: u64 = 3;
const STRUCK: u64 = 4;
const LOADED: u64 = 5;
/// The last one, of readings of the clock, is of no interest here.
const WORDS: u64 = 7;

/// What a write that fails has done to the medium all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing.
    Nothing = 0,
    /// Everything: only the report is an error.
    All = 1,
    /// The first half of its blocks.
    Half = 2,
    /// Writes work and only syncs fail: what is prepared in the background.
    Unsynced = 3,
}

/// The faults of one deployment's switch. Made by
/// [`Deployment::with_faults`](crate::Deployment::with_faults).
pub struct Faults {
    plan: File,
}

impl Faults {
    pub(crate) fn new(plan: &Path) -> Self {
        let plan = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(plan)
            .expect("the plan can be written");
        plan.set_len(WORDS * 8).expect("the plan has room");
        Self { plan }
    }

    /// Sets the process's wall clock off by `seconds` from the true one.
    pub fn step_clock(&self, seconds: i64) {
        self.set(CLOCK_OFFSET_NS, seconds * 1_000_000_000);
    }

    /// Makes the log directory's file system one of `bytes`; `None`: the real one.
    pub fn disk_capacity(&self, bytes: Option<u64>) {
        self.set(CAPACITY, bytes.map_or(0, |bytes| bytes.max(1) as i64));
    }

    /// Makes every write and sync of the log directory fail with `errno`.
    pub fn fail_writes(&self, errno: i32, done: Done) {
        self.set(WRITE_MODE, done as i64);
        self.set(WRITE_ERRNO, errno.into());
    }

    /// Writes and syncs work again.
    pub fn mend_writes(&self) {
        self.set(WRITE_ERRNO, 0);
    }

    /// Calls that were made to fail so far.
    pub fn struck(&self) -> i64 {
        self.get(STRUCK)
    }

    /// Whether a process has obeyed the plan: a library that the loader cannot
    /// preload is only a warning to it.
    pub(crate) fn loaded(plan: &Path) -> bool {
        File::open(plan).is_ok_and(|plan| Self { plan }.get(LOADED) == 1)
    }

    fn set(&self, word: u64, value: i64) {
        self.plan.write_all_at(&value.to_ne_bytes(), word * 8).expect("the plan can be written");
    }

    fn get(&self, word: u64) -> i64 {
        let mut bytes = [0; 8];
        self.plan.read_exact_at(&mut bytes, word * 8).expect("the plan can be read");
        i64::from_ne_bytes(bytes)
    }
}

/// The compiled library. Built once per test process, beside the binaries.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../loadgen/shim/faults.c");
        let library = crate::binaries().join("libpayswitch_faults.so");
        // Another test process may be using the old one: replaced as a whole.
        let fresh = library.with_extension(format!("so.{}", std::process::id()));
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&fresh)
            .arg(source)
            .arg("-ldl")
            .output()
            .expect("a C compiler named cc");
        assert!(compiled.status.success(), "{}", crate::text(&compiled));
        std::fs::rename(&fresh, &library).expect("the library can be placed");
        library
    })
}
