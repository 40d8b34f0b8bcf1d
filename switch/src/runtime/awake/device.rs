//! The kernel's ear for how long waking up may take.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const DEVICE: &str = "/dev/cpu_dma_latency";
/// What the kernel takes for "as long as it likes": `PM_QOS_CPU_LATENCY_DEFAULT_VALUE`,
/// microseconds.
const ANY_US: i32 = 2_000_000_000;

/// A wish of this process, opened when it is first needed. The kernel forgets it with the
/// process.
pub(super) struct Device {
    path: PathBuf,
    latency_us: i32,
    file: Option<File>,
    wished: bool,
}

impl Device {
    /// No wish yet; `latency_us` is how long waking up may take once there is one.
    pub(super) fn new(latency_us: u32) -> Self {
        let latency_us = i32::try_from(latency_us).unwrap_or(ANY_US);
        Self { path: DEVICE.into(), latency_us, file: None, wished: false }
    }

    #[cfg(test)]
    pub(super) fn at(path: &Path, latency_us: u32) -> Self {
        Self { path: path.into(), ..Self::new(latency_us) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kernel has the wish.
    pub(super) fn wished(&self) -> bool {
        self.wished
    }

    /// Lets the kernel know.
    ///
    /// # Errors
    /// The device cannot be opened or written: cores sleep as the system pleases.
    pub(super) fn wish(&mut self) -> io::Result<()> {
        self.put(self.latency_us)?;
        self.wished = true;
        Ok(())
    }

    /// Takes it back.
    pub(super) fn withdraw(&mut self) {
        self.wished = false;
        if self.file.is_some() && self.put(ANY_US).is_err() {
            // Closed, it is withdrawn all the same.
            self.file = None;
        }
    }

    fn put(&mut self, latency_us: i32) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(File::options().write(true).open(&self.path)?);
        }
        match &mut self.file {
            Some(file) => file.write_all(&latency_us.to_ne_bytes()),
            None => Ok(()),
        }
    }
}
