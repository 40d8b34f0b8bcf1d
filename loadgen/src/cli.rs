//! The command line: arguments, dispatch, and how a failure ends the process.

use crate::audit::{self, AuditArgs};
use crate::channel::{self, ChannelArgs};
use crate::config::SiteFile;
use crate::drill::{self, DrillArgs};
use crate::exit::{self, Exit, Failure};
use crate::history::{self, HistoryArgs};
use crate::interrupt;
use crate::report::{self, ReportArgs};
use crate::run::RunArgs;
use crate::search::{self, SearchArgs};
use crate::soak::{self, DemoArgs, SoakArgs};
use crate::under::{self, UnderArgs};
use crate::wan::{self, WanArgs};
use crate::{null, run};
use clap::{Parser, Subcommand};
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

/// Load, simulated channels, drills and audit for payswitch.
///
/// Exit codes: 0 fine; 1 a goal was missed; 2 wrong usage or configuration;
/// 3 environment; 4 the audit found a violation; 5 the run is invalid.
#[derive(Parser, Debug)]
#[command(name = "loadgen", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Drive load at a rate and measure latency from the planned time.
    Run(Box<RunArgs>),
    /// Find the highest rate that keeps the goals.
    Search(Box<SearchArgs>),
    /// Play the payment service that the switch charges at.
    Channel(Box<ChannelArgs>),
    /// Compare acknowledgements, channel ledger and log with the rules of money.
    Audit(Box<AuditArgs>),
    /// The whole story in one command: load, a killed switch, the audit.
    Demo(Box<DemoArgs>),
    /// Kill the switch again and again under load, and audit every time.
    Soak(Box<SoakArgs>),
    /// Break a cluster under load, heal it and audit it.
    Drill(Box<DrillArgs>),
    /// Write the evidence of an imagined run: a large input for measuring the audit.
    #[command(hide = true)]
    History(Box<HistoryArgs>),
    /// Make a page that needs no network from results: one, two compared, or many drills.
    Report(ReportArgs),
    /// Relay between sites: delay, loss, thin links, partitions.
    Wan(Box<WanArgs>),
    /// Answer everything at once in place of a site: the generator's ceiling.
    Null {
        /// The site's configuration, site-1.toml.
        #[arg(long)]
        config: PathBuf,
        /// Requests that a connection may have in flight.
        #[arg(long, default_value_t = null::IN_FLIGHT_MAX, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        window: u32,
    },
    /// Become another program that ends with this one's parent.
    #[command(hide = true)]
    Under(UnderArgs),
}

/// Parses the process's arguments and runs the command.
pub(crate) fn main() -> ExitCode {
    exit::end_without_output();
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            exit::tell(&failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Under(args) => Err(under::run(&args)),
        Command::Report(args) => report::run(&args),
        Command::History(args) => {
            let out = std::io::BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            history::write(&args, out)
        }
        command => driven(command),
    }
}

/// The commands that can be told to stop.
fn driven(command: Command) -> Result<(), Failure> {
    let stop = interrupt::listen()?;
    match command {
        Command::Run(args) => on_runtime(async {
            let report = run::run(&args, &stop).await?;
            report.verdict()
        }),
        Command::Channel(args) => on_runtime(async { channel::run(&args, &stop).await }),
        Command::Audit(args) => on_runtime(async { audit::run(&args, &stop).await }),
        Command::Demo(args) => on_runtime(async { soak::demo(&args, &stop).await }),
        Command::Soak(args) => on_runtime(async { soak::soak(&args, &stop).await }),
        Command::Drill(args) => on_runtime(async { drill::run(&args, &stop).await }),
        Command::Wan(args) => on_runtime(async { wan::run(&args, &stop).await }),
        Command::Search(args) => on_runtime(async { search::run(&args, &stop).await }),
        Command::Null { config, window } => {
            let site = SiteFile::load(&config)?;
            on_runtime(async {
                tokio::select! {
                    served = null::serve(&site, window) => served,
                    () = stop.notified() => Ok(()),
                }
            })
        }
        Command::Under(_) | Command::Report(_) | Command::History(_) => Ok(()),
    }
}

/// Runs a future on this thread, with tasks that need not be `Send`.
pub(crate) fn on_runtime<T>(
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            Failure::new(Exit::Environment, format_args!("cannot start a runtime: {error}"))
        })?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}
