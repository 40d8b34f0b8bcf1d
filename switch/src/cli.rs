//! The command line: arguments, dispatch, and how a failure ends the process.
//!
//! Every failure is one line (a list for configurations) that says what and
//! what to do, and an exit code that scripts may rely on. Knows nothing of a
//! running node: `serve` is handed in by the binary. Tested through its parser
//! and its commands on temporary deployments.

mod admin;
mod check;
mod log;
mod recover;
#[cfg(test)]
mod tests;

use crate::config::{Config, ConfigError};
use crate::init::{InitError, InitOptions, init};
use clap::{Parser, Subcommand};
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

/// payswitch: the payment switch core.
#[derive(Parser, Debug)]
#[command(name = "payswitch", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Write configuration, development certificates and demo merchants.
    Init {
        /// Directory of the deployment.
        #[arg(long)]
        dir: PathBuf,
        /// Sites, 1 to 9.
        #[arg(long, default_value_t = 1)]
        sites: u16,
        /// Demo merchants M000001 and on.
        #[arg(long, default_value_t = 1_000)]
        merchants: u32,
        /// First of the ports on 127.0.0.1.
        #[arg(long, default_value_t = 7_400)]
        port_base: u16,
        /// The last site is a witness: it votes and keeps the log, and never leads.
        #[arg(long)]
        witness: bool,
        /// Replace an existing deployment's files (never its data).
        #[arg(long)]
        force: bool,
    },
    /// Run a site.
    Serve {
        /// Its configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Judge a configuration, its keys, certificates and merchants; start nothing.
    Check {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Ask or command a running site.
    Admin(admin::AdminArgs),
    /// Let this site go on alone after a majority of the sites was lost for good.
    /// Acknowledged payments may be lost.
    Recover {
        /// Its configuration; the site itself must not run.
        #[arg(long)]
        config: PathBuf,
        /// Without a majority: there is no other way to recover yet.
        #[arg(long, required = true)]
        force_quorum: bool,
    },
    /// Check or print a log.
    #[command(subcommand)]
    Log(log::LogCommand),
}

/// Exit codes; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A goal was missed, or a request refused.
    Missed = 1,
    /// Wrong usage or configuration, or a damaged log.
    Usage = 2,
    /// The environment: port taken, disk full, site not reachable.
    Environment = 3,
    /// The audit found a violation.
    Audit = 4,
}

/// How a command failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// What, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with this code.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<InitError> for Failure {
    fn from(error: InitError) -> Self {
        let exit = match error {
            InitError::Range { .. }
            | InitError::Witness
            | InitError::Exists { .. }
            | InitError::HasData { .. } => Exit::Usage,
            InitError::Write { .. } | InitError::Certificate(_) | InitError::Random => {
                Exit::Environment
            }
        };
        Self::new(exit, error)
    }
}

/// Parses the process's arguments and runs the command; `serve` runs a site
/// until it is told to stop.
pub fn run(serve: impl FnOnce(Config) -> Result<(), Failure>) -> ExitCode {
    let cli = Cli::parse();
    // Not locked: a running site prints from other threads.
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let result = cli.run(&mut out, serve).and(finish(&mut out));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("payswitch: {}", failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

impl Cli {
    fn run(
        self,
        out: &mut impl std::io::Write,
        serve: impl FnOnce(Config) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self.command {
            Command::Init { dir, sites, merchants, port_base, witness, force } => {
                let options = InitOptions { dir, sites, merchants, port_base, witness, force };
                run_init(out, &options)
            }
            Command::Serve { config } => serve(Config::load(&config)?),
            Command::Check { config } => check::check(out, &config),
            Command::Admin(args) => admin::run(out, args),
            Command::Recover { config, force_quorum: _ } => {
                recover::run(out, &mut std::io::stdin().lock(), &config)
            }
            Command::Log(command) => log::run(out, command),
        }
    }
}

fn run_init(out: &mut impl std::io::Write, options: &InitOptions) -> Result<(), Failure> {
    let written = init(options)?;
    let dir = options.dir.display();
    print(
        out,
        format_args!(
            "{} files for {} site(s) and {} merchants in {dir}\n\
             next: payswitch serve --config {dir}/site-1.toml\n",
            written.len(),
            options.sites,
            options.merchants
        ),
    )
}

/// Writes to the standard output; a closed pipe (`| head`) is the reader's
/// choice and no failure.
fn print(out: &mut impl std::io::Write, text: fmt::Arguments<'_>) -> Result<(), Failure> {
    written(out.write_fmt(text))
}

fn finish(out: &mut impl std::io::Write) -> Result<(), Failure> {
    written(out.flush())
}

fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Environment, format_args!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}
