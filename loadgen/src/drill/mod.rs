//! `loadgen drill`: a real cluster under load, something breaks, it is healed,
//! and everything is audited.
//!
//! `script` breaks and heals, `figures` judges. The clients' view decides: what
//! the requests of each shard met, to the millisecond.

mod disk;
mod figures;
mod script;

use crate::cluster::SITES_MAX;
use crate::drive::{Outcome, Phase};
use crate::exit::{Exit, Failure};
use crate::live::Progress;
use crate::report::{self, Events};
use crate::stage::{Cast, Stage, StoryArgs};
use clap::Args;
use figures::{Repetition, Report};
use script::Script;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A bit of everything that a channel does wrong, seldom enough to leave the
/// percentiles alone.
const CHANNEL_FAULTS: [&str; 3] = ["--drop-reply=0.2%", "--late=0.2%:300", "--duplicate=0.5%"];
/// Load that lasts longer than this says that the script hangs.
const LOAD_MAX: Duration = Duration::from_secs(300);
const QUICK_RATE: f64 = 4_000.0;

/// Arguments of `loadgen drill`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DrillArgs {
    /// Which drill; `list` explains them.
    name: String,
    #[command(flatten)]
    story: StoryArgs,
    /// Sites.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=i64::from(SITES_MAX)))]
    sites: u8,
    /// Full load, requests per second: the drill drives half of it.
    #[arg(long, default_value_t = 20_000.0)]
    rate: f64,
    /// Seconds of load of each repetition, at least: it lasts until all is well again.
    #[arg(long, default_value_t = 6.0)]
    duration: f64,
    /// How often.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    repeat: u32,
    /// Little load, for a first look and for busy machines.
    #[arg(long, conflicts_with = "rate")]
    quick: bool,
    /// Write the result here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page for people here: one HTML file that needs no network.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Write the latency histograms here, as other HDR tools read them.
    #[arg(long)]
    hlog: Option<PathBuf>,
}

/// The catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drill {
    /// kill -9.
    KillSite,
    /// SIGSTOP and SIGCONT.
    PauseSite,
    /// `admin drain` and `undrain`.
    DrainSite,
    /// SIGTERM and a new start, site by site.
    RollingRestart,
    /// Cut off from the other sites.
    PartitionSite,
    /// Cut off in one direction.
    PartitionOneway,
    /// Distance.
    WanDelay,
    /// A disk that takes 20 writes a second.
    SlowDisk,
    /// Two kills, the second as soon as the first is level.
    DoubleFailure,
}

/// What is asked of a drill, from the clients' view.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Targets {
    /// Unavailability of the affected shards over all repetitions, milliseconds.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    /// No request of any shard fails.
    no_failure: bool,
    /// No request of a shard that is led elsewhere fails.
    no_failure_elsewhere: bool,
    /// Share of the answers per second before that are left during the fault.
    throughput: Option<f64>,
    /// What the fault may add to the median latency, milliseconds.
    added_p50_ms: Option<f64>,
    /// A healed site has everything after this, milliseconds.
    level_ms: Option<f64>,
}

impl Drill {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::KillSite,
        Self::PauseSite,
        Self::DrainSite,
        Self::RollingRestart,
        Self::PartitionSite,
        Self::PartitionOneway,
        Self::WanDelay,
        Self::SlowDisk,
        Self::DoubleFailure,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::KillSite => "kill-site",
            Self::PauseSite => "pause-site",
            Self::DrainSite => "drain-site",
            Self::RollingRestart => "rolling-restart",
            Self::PartitionSite => "partition-site",
            Self::PartitionOneway => "partition-oneway",
            Self::WanDelay => "wan-delay",
            Self::SlowDisk => "slow-disk",
            Self::DoubleFailure => "double-failure",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::KillSite => "kill -9 of a site, and its return",
            Self::PauseSite => "a site's process stands still (SIGSTOP) and goes on",
            Self::DrainSite => "an operator drains a site and takes it back",
            Self::RollingRestart => "every site is stopped (SIGTERM) and started, one by one",
            Self::PartitionSite => "a site reaches no other and none reaches it; gateways do",
            Self::PartitionOneway => "a site hears the others or is heard by them, not both",
            Self::WanDelay => "5 ms each way between all sites",
            Self::SlowDisk => "a site's disk takes 20 writes a second (root, block controller)",
            Self::DoubleFailure => "a site is killed, is level again, and the next is killed",
        }
    }

    fn targets(self) -> Targets {
        let takeover = |p50_ms, p99_ms| Targets {
            p50_ms: Some(p50_ms),
            p99_ms: Some(p99_ms),
            no_failure_elsewhere: true,
            ..Targets::default()
        };
        let no_failure = Targets { no_failure: true, ..Targets::default() };
        match self {
            Self::KillSite => takeover(100.0, 250.0),
            Self::DoubleFailure => Targets { level_ms: Some(5_000.0), ..takeover(100.0, 250.0) },
            Self::PauseSite | Self::PartitionSite | Self::PartitionOneway => takeover(150.0, 300.0),
            Self::DrainSite => Targets { max_ms: Some(20.0), ..no_failure },
            Self::RollingRestart => no_failure,
            Self::WanDelay => Targets {
                throughput: Some(0.8),
                // Two round trips, and what their scheduling costs.
                added_p50_ms: Some(4.0 * script::WAN_DELAY_MS as f64 + 10.0),
                ..no_failure
            },
            Self::SlowDisk => Targets { max_ms: Some(2_000.0), ..Targets::default() },
        }
    }

    fn has_relay(self) -> bool {
        matches!(self, Self::PartitionSite | Self::PartitionOneway | Self::WanDelay)
    }

    fn parse(name: &str) -> Result<Self, Failure> {
        Self::ALL.into_iter().find(|drill| drill.name() == name).ok_or_else(|| {
            Failure::usage(format_args!("no drill {name:?}: `loadgen drill list` names them"))
        })
    }
}

/// Runs the command.
pub(crate) async fn run(args: &DrillArgs, stop: &Notify) -> Result<(), Failure> {
    if args.name == "list" {
        for drill in Drill::ALL {
            println!("{:<18}{}", drill.name(), drill.about());
            println!("{:<18}  passes with a clean audit and {}", "", drill.targets());
        }
        return Ok(());
    }
    let drill = Drill::parse(&args.name)?;
    if !(3.0..=120.0).contains(&args.duration) {
        return Err(Failure::usage("--duration: 3 to 120 seconds"));
    }
    if !(100.0..=400_000.0).contains(&args.rate) {
        return Err(Failure::usage("--rate: 100 to 400000"));
    }
    let rate = if args.quick { QUICK_RATE } else { args.rate };
    let cast = Cast {
        sites: args.sites,
        relay: drill.has_relay(),
        rate: rate / 2.0,
        faults: &CHANNEL_FAULTS,
    };
    println!(
        "{}: {}\n{} sites, {} requests/s, {} times, seed {}",
        drill.name(),
        drill.about(),
        args.sites,
        cast.rate,
        args.repeat,
        args.story.seed
    );
    let mut report = Report::new(drill, args, rate);
    let stage = Stage::build(&args.story, &cast).await?;
    report.of_switch(stage.version());
    let told = repeat(&stage, drill, args, &mut report, stop).await;
    // What was found so far is told, however it ended.
    let ended = match told {
        Ok(()) => stage.end(stop).await.map(|audit| report.end(audit)),
        Err(failure) => Err(failure),
    };
    report.judge();
    report.print();
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    if let Some(path) = &args.report {
        report::write_page(&report, path)?;
    }
    if let Some(path) = &args.hlog {
        report.write_hlog(path)?;
    }
    ended?;
    report.verdict()
}

async fn repeat(
    stage: &Stage,
    drill: Drill,
    args: &DrillArgs,
    report: &mut Report,
    stop: &Notify,
) -> Result<(), Failure> {
    let duration = Duration::from_secs_f64(args.duration);
    for number in 0..args.repeat {
        let script = Script::new(stage, args.story.seed, number.into(), duration);
        let played = play(stage, drill, script, Progress::Terminal, stop).await?;
        let audit = stage.audit()?;
        report.add(number + 1, played.repetition, audit);
        if report.has_violations() {
            // More load would only hide it.
            break;
        }
    }
    Ok(())
}

/// A script that was played under load.
struct Played {
    outcome: Outcome,
    phase: Phase,
    repetition: Repetition,
    unsettled: usize,
}

/// Plays a script under load, and waits until every payment has ended.
async fn play(
    stage: &Stage,
    drill: Drill,
    script: Script<'_>,
    live: Progress,
    stop: &Notify,
) -> Result<Played, Failure> {
    let halt = Notify::new();
    let phase = Phase { traced: true, live, ..stage.phase(LOAD_MAX) };
    let load = stage.session.run(&phase, &halt);
    let fault = async {
        let told = tokio::select! {
            told = script.play(drill) => told,
            () = stop.notified() => Err(Failure::new(Exit::Invalid, "stopped before the end")),
        };
        let ended = Instant::now();
        halt.notify_one();
        told.map(|told| (told, ended))
    };
    let (outcome, told) = tokio::join!(load, fault);
    let (mut outcome, (told, ended)) = (outcome?, told?);
    // Its end was ours.
    outcome.interrupted = false;
    let unsettled = stage.settle(stop).await?;
    let shards = stage.deployment.gateway.shards;
    let repetition = Repetition::new(&outcome, &told, ended, shards, unsettled);
    let phase = Phase { duration: ended.saturating_duration_since(outcome.start), ..phase };
    Ok(Played { outcome, phase, repetition, unsettled })
}

/// What a story came to.
pub(crate) struct Told {
    /// What the load met.
    pub(crate) outcome: Outcome,
    /// The load.
    pub(crate) phase: Phase,
    /// What was done, and which shards felt it.
    pub(crate) events: Events,
    /// Payments that have no final answer.
    pub(crate) unsettled: usize,
}

/// The story of `loadgen demo` with several sites: one is killed under load and
/// returns.
pub(crate) async fn story(
    stage: &Stage,
    seed: u64,
    span: Duration,
    stop: &Notify,
) -> Result<Told, Failure> {
    let script = Script::new(stage, seed, 0, span);
    let played = play(stage, Drill::KillSite, script, Progress::Always, stop).await?;
    println!("   {}", played.repetition);
    Ok(Told {
        events: played.repetition.events(),
        outcome: played.outcome,
        phase: played.phase,
        unsettled: played.unsettled,
    })
}
