//! How a command ends: an exit code that scripts may rely on and one line that
//! says what happened and what to do.

use std::fmt;
use std::io::Write;
use std::path::Path;

/// Exit codes; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// A goal or a drill's target was missed.
    Missed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The environment: port taken, disk full, switch not reachable.
    Environment = 3,
    /// The audit found a violation.
    Audit = 4,
    /// The run says nothing: the generator was the bottleneck, or there is no data.
    Invalid = 5,
}

/// Tells a line about this program; a terminal that is gone cannot be told.
pub(crate) fn tell(message: &str) {
    drop(writeln!(std::io::stderr(), "loadgen: {message}"));
}

/// What cannot be printed ends the process with one line in place of a panic: the
/// disk behind a redirection is full, or nobody reads any more. Children end with
/// the process.
pub(crate) fn end_without_output() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        match text.strip_prefix("failed printing to ") {
            Some(reason) => {
                tell(&format!("cannot print to {reason}"));
                std::process::exit(Exit::Environment as i32);
            }
            None => usual(panic),
        }
    }));
}

/// Refuses a result's path before the work whose result it is to hold.
pub(crate) fn writable(path: &Path) -> Result<(), Failure> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if dir.is_dir() && !path.is_dir() {
        return Ok(());
    }
    let reason = if path.is_dir() { "it is a folder" } else { "its folder is not there" };
    Err(Failure::environment(format_args!("cannot write {}: {reason}", path.display())))
}

/// How a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) exit: Exit,
    /// What, and what to do.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with this code.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// Wrong usage or configuration.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The environment does not play along.
    pub(crate) fn environment(message: impl fmt::Display) -> Self {
        Self::new(Exit::Environment, message)
    }
}
