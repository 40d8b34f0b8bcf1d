//! A site whose log lacks what it had confirmed stays out, also over restarts.
//!
//! Only the leader that was told of the lost blocks can find that out, and only in the term
//! in which it was told (`replica`): the next leader knows nothing of it. So the site
//! writes down that it was found out, and does not start any more with this `data_dir`.
//! The file's presence counts, whatever it says. Tested below, and with real processes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::{ServeError, WorkerError, environment};

/// In the site's `data_dir`.
const FILE: &str = "forgotten";

/// Refuses a start where it was found out before.
///
/// # Errors
/// [`ServeError::Damaged`], or that it cannot be told.
pub(super) fn refuse(data_dir: &Path, site: u16) -> Result<(), ServeError> {
    let path = data_dir.join(FILE);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(environment(&path, &error)),
        Ok(_) => Err(ServeError::Damaged(format!(
            "{}: it was found before that this log lacks what it had confirmed (the file says \
             what). This site must not take part any more: at a site that serves, `payswitch \
             admin member remove {site}`, then bring this one up with an empty data_dir under a \
             new number with `member add` (docs/OPERATIONS.md, Replace a site)",
            path.display()
        ))),
    }
}

/// Writes down durably what was found, and says it.
pub(super) fn found(data_dir: &Path, error: &WorkerError) -> ServeError {
    match mark(data_dir, &error.to_string()) {
        Ok(()) => ServeError::Damaged(error.to_string()),
        Err(failed) => ServeError::Damaged(format!(
            "{error}. It could not be written down in {} ({failed}): a start would not be refused",
            data_dir.join(FILE).display()
        )),
    }
}

fn mark(data_dir: &Path, what: &str) -> io::Result<()> {
    let mut file = File::create(data_dir.join(FILE))?;
    writeln!(file, "{what}")?;
    file.sync_all()?;
    File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: WorkerError = WorkerError::Forgotten { site: 3, shard: 5, last: 7, known: 9 };

    #[test]
    fn what_was_found_once_refuses_every_later_start() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refuse(dir.path(), 3).is_ok());
        let said = found(dir.path(), &LOST);
        assert!(matches!(&said, ServeError::Damaged(text) if *text == LOST.to_string()), "{said}");
        for content in [None, Some(&b""[..]), Some(&b"\xff\0"[..])] {
            if let Some(content) = content {
                fs::write(dir.path().join(FILE), content).unwrap();
            }
            let refused = refuse(dir.path(), 3).unwrap_err();
            let ServeError::Damaged(text) = &refused else { panic!("{refused}") };
            assert!(text.contains("member remove 3") && text.contains("member add"), "{text}");
        }
        let text = found(dir.path(), &LOST).to_string();
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), format!("{text}\n"));
    }

    #[test]
    fn what_cannot_be_written_down_is_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(FILE)).unwrap();
        let said = found(dir.path(), &LOST);
        let ServeError::Damaged(text) = &said else { panic!("{said}") };
        assert!(text.contains("block 9") && text.contains("could not be written down"), "{text}");
    }
}
