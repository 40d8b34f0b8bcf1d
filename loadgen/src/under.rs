//! `loadgen under`: becomes another program that ends when its parent does, also
//! when the parent is killed.
//!
//! A step of its own because the wish can only be told by the process itself, and
//! safely only where nothing else runs in it. Hidden: no command for people.

use crate::exit::Failure;
use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Arguments of `loadgen under`.
#[derive(Args, Clone, Debug)]
pub(crate) struct UnderArgs {
    /// The parent's number.
    parent: i32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Becomes the program; returns only when that fails.
pub(crate) fn run(args: &UnderArgs) -> Failure {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return Failure::environment(format_args!("cannot follow the parent's end: {error}"));
    }
    // It may have ended before it was asked for.
    if getppid().map(Pid::as_raw_pid) != Some(args.parent) {
        return Failure::environment("the parent has ended");
    }
    let Some((program, rest)) = args.command.split_first() else {
        return Failure::usage("no program");
    };
    let error = Command::new(program).args(rest).exec();
    Failure::environment(format_args!("cannot run {}: {error}", program.display()))
}

/// The command that runs `command` as one that ends with this process.
pub(crate) fn wrapped(command: &Command) -> Result<Command, Failure> {
    let here = std::env::current_exe()
        .map_err(|error| Failure::environment(format_args!("where am I? {error}")))?;
    let mut wrapped = Command::new(here);
    wrapped.arg("under").arg(std::process::id().to_string()).arg("--");
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    Ok(wrapped)
}
