//! How a command ends: an exit code that scripts may rely on and one line that
//! says what happened and what to do.

use std::fmt;

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

/// How a command failed.
#[derive(Debug, PartialEq, Eq)]
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
