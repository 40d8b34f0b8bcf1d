//! A slow disk for one process: the kernel's block throttle, through a control
//! group of its own.
//!
//! Needs root and the blkio (v1) or io (v2) controller on a real block device;
//! says so when it has not. The group is removed when dropped. Tested on its
//! arithmetic; the rest by the drill.

use crate::exit::Failure;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Writes per second that are left.
pub(super) const WRITES_PER_SECOND: u32 = 20;

/// A control group that throttles.
pub(in crate::drill) struct SlowDisk {
    group: PathBuf,
    root: PathBuf,
    process: Option<u32>,
}

impl SlowDisk {
    /// A group for the device under `data`, without a process in it.
    pub(in crate::drill) fn prepare(data: &Path) -> Result<Self, Failure> {
        let failed = |what: &Path, error: std::io::Error| {
            let what = what.display();
            Failure::environment(format_args!(
                "slow-disk needs root and the kernel's blkio or io controller on a block device: \
                 {what}: {error}"
            ))
        };
        let device = device(data).map_err(|error| failed(data, error))?;
        let v1 = Path::new("/sys/fs/cgroup/blkio");
        let (root, file, text) = match v1.is_dir() {
            true => {
                let text = format!("{device} {WRITES_PER_SECOND}");
                (v1, "blkio.throttle.write_iops_device", text)
            }
            false => {
                let root = Path::new("/sys/fs/cgroup");
                // Fails when it is on already, or cannot be: the next write tells.
                drop(std::fs::write(root.join("cgroup.subtree_control"), "+io"));
                (root, "io.max", format!("{device} wiops={WRITES_PER_SECOND}"))
            }
        };
        let group = root.join(format!("payswitch-drill-{}", std::process::id()));
        std::fs::create_dir_all(&group).map_err(|error| failed(&group, error))?;
        let disk = Self { group, root: root.to_owned(), process: None };
        let file = disk.group.join(file);
        std::fs::write(&file, text).map_err(|error| failed(&file, error))?;
        Ok(disk)
    }

    /// The process's disk is slow from now on.
    pub(super) fn begin(&mut self, process: u32) -> Result<(), Failure> {
        self.process = Some(process);
        enter(&self.group, process)
    }

    /// It is as fast as before.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        self.process.take().map_or(Ok(()), |process| enter(&self.root, process))
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Fails when the process has ended; a group with a process stays, and is empty
        // when that ends.
        drop(self.end());
        drop(std::fs::remove_dir(&self.group));
    }
}

fn enter(group: &Path, process: u32) -> Result<(), Failure> {
    let file = group.join("cgroup.procs");
    std::fs::write(&file, process.to_string())
        .map_err(|error| Failure::environment(format_args!("{}: {error}", file.display())))
}

/// The whole disk that holds a path: partitions cannot be throttled.
fn device(path: &Path) -> std::io::Result<String> {
    let device = number(std::fs::metadata(path)?.dev());
    let entry = PathBuf::from(format!("/sys/dev/block/{device}"));
    if !entry.join("partition").exists() {
        return std::fs::metadata(&entry).map(|_| device);
    }
    let disk = std::fs::canonicalize(entry)?.join("../dev");
    Ok(std::fs::read_to_string(disk)?.trim().to_owned())
}

/// MAJOR:MINOR of a device number as Linux packs it.
fn number(dev: u64) -> String {
    let major = dev >> 8 & 0xfff | dev >> 32 & !0xfff;
    let minor = dev & 0xff | dev >> 12 & !0xff;
    format!("{major}:{minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_taken_apart() {
        assert_eq!(number(0xfd01), "253:1");
        assert_eq!(number(0x0010_0803), "8:259");
    }
}
