//! On what machine and with which command something was measured: what a reader
//! needs to repeat it.
//!
//! Reads what Linux tells about itself; what is not told stays empty. Tested on
//! texts of the kernel.

use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest command line that is kept.
const COMMAND_MAX: usize = 2_000;

/// The machine, as it stands in the JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Machine {
    /// Model of the processor.
    cpu: String,
    /// Processors that this process may use.
    cores: usize,
    memory_mib: u64,
    kernel: String,
    /// Distribution.
    system: String,
}

impl Machine {
    /// This one.
    pub(crate) fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self {
            cpu: field(&text("/proc/cpuinfo"), "model name", ':'),
            cores,
            memory_mib: kib(&field(&text("/proc/meminfo"), "MemTotal", ':')) / 1_024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: field(&text("/etc/os-release"), "PRETTY_NAME", '='),
        }
    }
}

/// The value of the first line with this name.
fn field(text: &str, name: &str, separator: char) -> String {
    let value = text.lines().find_map(|line| {
        let (found, value) = line.split_once(separator)?;
        (found.trim() == name).then_some(value)
    });
    value.unwrap_or_default().trim().trim_matches('"').to_owned()
}

fn kib(text: &str) -> u64 {
    text.split_ascii_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The command that this process was started with, to be pasted into a shell.
pub(crate) fn command() -> String {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default().to_owned();
    let mut command = quoted(&name);
    for word in words {
        command.push(' ');
        command.push_str(&quoted(&word));
    }
    if command.len() > COMMAND_MAX {
        let end = (0..=COMMAND_MAX).rev().find(|at| command.is_char_boundary(*at)).unwrap_or(0);
        command.truncate(end);
        command.push('…');
    }
    command
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,%@+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "model : 85\nmodel name\t: Fast CPU @ 2.0GHz\nmodel name\t: Other\n";
        assert_eq!(field(text, "model name", ':'), "Fast CPU @ 2.0GHz");
        assert_eq!(field("NAME=x\nPRETTY_NAME=\"Linux 12\"\n", "PRETTY_NAME", '='), "Linux 12");
        assert_eq!(field("", "model name", ':'), "");
        assert_eq!((kib("16384 kB"), kib("")), (16_384, 0));
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("--goal=p99@pay=10ms"), "--goal=p99@pay=10ms");
        assert_eq!(quoted("p99<=10ms"), "'p99<=10ms'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::read();
        assert!(machine.cores > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }
}
