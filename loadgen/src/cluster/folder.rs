//! The folder of a deployment: a temporary one is gone when the deployment is, however that
//! ended.

use crate::exit::Failure;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

/// Names that are tried for a temporary folder.
const NAMES_MAX: u32 = 100;

/// The folder, which is removed at the end when it is a temporary one.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    /// The one that was asked for, or a new one among temporary files.
    pub(super) fn new(wanted: Option<PathBuf>) -> Result<Self, Failure> {
        match wanted {
            Some(path) => Ok(Self { path, temporary: false }),
            None => Self::temporary_in(&std::env::temp_dir()),
        }
    }

    /// Makes a folder that was not there: nobody else's is ever removed.
    fn temporary_in(parent: &Path) -> Result<Self, Failure> {
        let process = std::process::id();
        let name = |number: u32| match number {
            0 => format!("payswitch-demo-{process}"),
            _ => format!("payswitch-demo-{process}-{number}"),
        };
        let mut failed = Error::from(ErrorKind::AlreadyExists);
        for path in (0..NAMES_MAX).map(|number| parent.join(name(number))) {
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, temporary: true }),
                Err(error) => failed = error,
            }
            if failed.kind() != ErrorKind::AlreadyExists {
                break;
            }
        }
        let parent = parent.display();
        Err(Failure::environment(format_args!("cannot make a folder in {parent}: {failed}")))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            // Nothing to be done about a folder that cannot be removed.
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_is_new_and_gone_and_one_that_was_asked_for_stays() {
        let dir = tempfile::tempdir().unwrap();
        let there = || std::fs::read_dir(dir.path()).unwrap().count();
        let first = Folder::temporary_in(dir.path()).unwrap();
        std::fs::write(first.path().join("file"), "x").unwrap();
        let second = Folder::temporary_in(dir.path()).unwrap();
        assert_ne!(first.path(), second.path());
        drop(second);
        assert!(first.path().join("file").exists());
        drop(first);
        assert_eq!(there(), 0);
        let asked = dir.path().join("asked");
        std::fs::create_dir(&asked).unwrap();
        drop(Folder::new(Some(asked)).unwrap());
        assert_eq!(there(), 1);
        assert!(Folder::temporary_in(&dir.path().join("none")).is_err());
    }
}
