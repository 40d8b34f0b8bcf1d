//! `loadgen drill`: a real cluster under load, something breaks, it is healed,
//! and everything is audited.
//!
//! `script` breaks and heals, `figures` judges. The clients' view decides: what
//! the requests of each shard met, to the millisecond.

mod action;
mod all;
mod before;
mod catalogue;
mod figures;
mod inject;
mod maximum;
mod plan;
mod script;
mod steady;
mod targets;
mod turns;

use crate::cluster::SITES_MAX;
use crate::drive::{Outcome, Phase};
use crate::exit::{Exit, Failure};
use crate::interrupt::Stop;
use crate::live::Progress;
use crate::plan::Mix;
use crate::report::{self, Events};
use crate::schedule::Arrival;
use crate::space::{self, Work};
use crate::stage::{Again, Cast, Gear, Stage, StoryArgs};
use action::{Action, Course};
use before::Before;
use catalogue::{Case, Drill, HALF};
use clap::Args;
use figures::{Repetition, Report};
use plan::PlanFile;
use script::Script;
use std::cell::Cell;
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Load that lasts longer than this says that the script hangs.
const LOAD_MAX: Duration = Duration::from_secs(600);
const QUICK_RATE: f64 = 4_000.0;
/// An audit comes when there are so many times the repetitions of the one before: all of
/// them together read at most two and a half times what the last one does.
const AUDIT_FACTOR: u32 = 3;
/// Length of a step of the search for the maximum.
const STEP: Duration = Duration::from_secs(2);
const QUICK_STEP: Duration = Duration::from_millis(1_000);
/// What a repetition takes beside its duration, about: lead, recovery, tail.
const ITS_TIME: Duration = Duration::from_secs(5);
/// Longest stretch without a fault: a day.
const MINUTES_MAX: f64 = 1_440.0;

/// Arguments of `loadgen drill`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DrillArgs {
    /// Which drill; `list` explains them, `all` plays them one after the other.
    #[arg(required_unless_present = "plan", conflicts_with = "plan")]
    name: Option<String>,
    /// A drill of one's own: a file with phases, faults and goals.
    #[arg(long)]
    plan: Option<PathBuf>,
    #[command(flatten)]
    story: StoryArgs,
    /// Sites.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=i64::from(SITES_MAX)))]
    sites: u8,
    /// Full load, requests per second: drills drive half of it, `overload` what it finds.
    #[arg(long, default_value_t = 20_000.0)]
    rate: f64,
    /// Seconds of load of each repetition, at least: it lasts until all is well again.
    #[arg(long, default_value_t = 6.0)]
    duration: f64,
    /// How often. In `all`, what can be played only once is.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    repeat: u32,
    /// Payments that are there before (second-kill). Default: 1000000, few with --quick.
    #[arg(long, value_name = "PAYMENTS", conflicts_with = "plan", value_parser = clap::value_parser!(u64).range(1..=20_000_000))]
    history: Option<u64>,
    /// Minutes without a fault (steady). Default: 30, a tenth of one with --quick.
    #[arg(long, conflicts_with = "plan")]
    minutes: Option<f64>,
    /// Shares of the operations. Default: pay=80,query=15,refund=5; of steady
    /// pay=10,query=88,refund=2.
    #[arg(long, conflicts_with = "plan", value_parser = Mix::parse, value_name = "pay=W,query=W,refund=W")]
    mix: Option<Mix>,
    /// Audit after every repetition, not only after the first, the third, the ninth and so
    /// on, and the last.
    #[arg(long)]
    audit_each: bool,
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

impl DrillArgs {
    fn check(&self) -> Result<(), Failure> {
        if !(3.0..=120.0).contains(&self.duration) {
            return Err(Failure::usage("--duration: 3 to 120 seconds"));
        }
        if !(100.0..=400_000.0).contains(&self.rate) {
            return Err(Failure::usage("--rate: 100 to 400000"));
        }
        if self.minutes.is_some_and(|minutes| !(0.05..=MINUTES_MAX).contains(&minutes)) {
            return Err(Failure::usage(format_args!("--minutes: 0.05 to {MINUTES_MAX}")));
        }
        Ok(())
    }

    /// Whether the whole catalogue is played.
    fn is_all(&self) -> bool {
        self.name.as_deref() == Some("all")
    }

    /// The full load.
    fn full_rate(&self) -> f64 {
        if self.quick { QUICK_RATE } else { self.rate }
    }
}

/// A drill with its cluster and its load.
struct Setting<'a> {
    case: &'a Case,
    sites: u8,
    /// The full load, of which the drill drives its share.
    rate: f64,
    args: &'a DrillArgs,
}

/// Runs the command.
pub(crate) async fn run(args: &DrillArgs, stop: &Stop) -> Result<(), Failure> {
    if let Some(path) = &args.plan {
        args.check()?;
        let plan = PlanFile::load(path)?;
        let rate = if args.quick { plan.rate.min(QUICK_RATE / 2.0) } else { plan.rate };
        let setting = Setting { case: &plan.case, sites: plan.sites, rate, args };
        return single(&setting, stop).await;
    }
    match args.name.as_deref().unwrap_or_default() {
        "list" => {
            catalogue::list();
            Ok(())
        }
        "all" => all::run(args, stop).await,
        name => {
            let drill = Drill::parse(name)?;
            args.check()?;
            let (case, rate) = (drill.asked(args), args.full_rate());
            if args.minutes.is_some() && !matches!(case.course, Course::Steady(_)) {
                return Err(Failure::usage(format_args!("--minutes: {name} has its own time")));
            }
            if args.history.is_some() && !matches!(case.before, Before::History(_)) {
                return Err(Failure::usage(format_args!("--history: {name} has none")));
            }
            single(&Setting { case: &case, sites: args.sites, rate, args }, stop).await
        }
    }
}

/// Plays one drill, and writes what is wanted of it.
async fn single(setting: &Setting<'_>, stop: &Stop) -> Result<(), Failure> {
    let args = setting.args;
    space::check(args.story.dir.as_deref(), work(setting)?.bytes())?;
    let (report, ended) = drill(setting, stop).await;
    // What cannot be written does not keep the rest from being.
    let json = args.json.as_ref().map_or(Ok(()), |path| report.write(path));
    let page = args.report.as_ref().map_or(Ok(()), |path| report::write_page(&report, path));
    let hlog = args.hlog.as_ref().map_or(Ok(()), |path| report.write_hlog(path));
    weighed(report.verdict(), ended.and(json).and(page).and(hlog))
}

/// A violation counts most, then how it ended, then the rest of the verdict.
pub(crate) fn weighed(
    verdict: Result<(), Failure>,
    ended: Result<(), Failure>,
) -> Result<(), Failure> {
    match verdict {
        Err(audit) if audit.exit == Exit::Audit => Err(audit),
        verdict => ended.and(verdict),
    }
}

/// Plays one drill: what was found so far, however it ended.
async fn drill(setting: &Setting<'_>, stop: &Stop) -> (Report, Result<(), Failure>) {
    let Setting { case, sites, rate, args } = *setting;
    let load_rate = rate * case.share;
    println!(
        "{}: {}\n{sites} sites, {load_rate} requests/s, {} times, seed {}",
        case.name, case.about, args.repeat, args.story.seed
    );
    let mut report = Report::new(case, args, sites, rate);
    let ended = told(setting, &mut report, stop).await;
    if let Err(failure) = &ended {
        report.broke_off(failure);
    }
    report.judge();
    report.print();
    (report, ended)
}

async fn told(setting: &Setting<'_>, report: &mut Report, stop: &Stop) -> Result<(), Failure> {
    let Setting { case, sites, rate, args } = *setting;
    case.needs.check()?;
    if args.repeat > 1 && case.course.left_out() > 0 {
        let text = "--repeat: a site whose log is damaged is replaced for good, by the only spare: \
                    this can be played only once";
        return Err(Failure::usage(text));
    }
    let faults: Vec<&str> = case.channel.iter().map(String::as_str).collect();
    let needs = &case.needs;
    let (shim, spare) = (needs.shim, needs.spare);
    let gear = Gear { shim, spare, authority: needs.authority, settings: &needs.settings };
    let (relay, rate, mix) = (needs.relay, rate * case.share, case.mix);
    let cast = Cast { sites, relay, rate, mix, faults: &faults, gear };
    let stage = tokio::select! {
        stage = Stage::build(&args.story, &cast) => stage?,
        () = stop.notified() => return Err(stopped()),
    };
    report.of_switch(stage.version());
    match loaded(setting, &stage, report, stop).await {
        Ok(again) => {
            // The sites run and are settled: a question without an answer spares nobody the
            // strict audit.
            let (audit, ended) = stage.ended().await;
            report.last(audit);
            ended.and(again.check())
        }
        Err(failure) => {
            println!("it broke off: what was done until then is audited");
            report.last(stage.broken_off(stop).await);
            Err(failure)
        }
    }
}

/// What a drill will do, about.
fn work<'a>(setting: &'a Setting<'_>) -> Result<Work<'a>, Failure> {
    let Setting { case, sites, rate, args } = *setting;
    let load = rate * case.share;
    let usual = args.duration + ITS_TIME.as_secs_f64();
    let (seconds, requests) = match &case.course {
        Course::Planned { length, shape, .. } => {
            let arrival = Arrival::parse(shape).map_err(Failure::usage)?;
            (length.as_secs_f64(), arrival.expected(load, *length))
        }
        Course::Steady(length) => {
            let seconds = length.as_secs_f64() + ITS_TIME.as_secs_f64();
            (seconds, seconds * load)
        }
        Course::One(Action::Load(times)) => (usual, usual * load * times),
        _ => (usual, usual * load),
    };
    let (before_s, before) = case.before.work(&case.mix, (load, step(args)));
    Ok(Work {
        requests: requests * f64::from(args.repeat) + before,
        mix: case.mix,
        seconds: seconds * f64::from(args.repeat) + before_s,
        sites: sites + u8::from(case.needs.spare),
        settings: &case.needs.settings,
    })
}

/// Length of a step of a search for the maximum.
fn step(args: &DrillArgs) -> Duration {
    if args.quick { QUICK_STEP } else { STEP }
}

/// Everything of a drill that is done while the sites run; what became of the last questions.
async fn loaded(
    setting: &Setting<'_>,
    stage: &Stage,
    report: &mut Report,
    stop: &Stop,
) -> Result<Again, Failure> {
    let Setting { case, rate, args, .. } = *setting;
    let first = rate * case.share * HALF;
    report.with(case.before.prepare(stage, (first, step(args)), stop).await?);
    repeat(stage, &case.course, args, report, stop).await?;
    stage.ask_again(stop).await
}

fn stopped() -> Failure {
    Failure::new(Exit::Invalid, "stopped before the end")
}

async fn repeat(
    stage: &Stage,
    course: &Course,
    args: &DrillArgs,
    report: &mut Report,
    stop: &Stop,
) -> Result<(), Failure> {
    let duration = Duration::from_secs_f64(args.duration);
    let mut audited = 0;
    for number in 1..=args.repeat {
        let script = Script::new(stage, args.story.seed, (number - 1).into(), duration);
        let load = (report.load_rate(), Progress::Terminal);
        let played = play(stage, course, script, load, stop).await?;
        let due =
            args.audit_each || played.unsettled > 0 || audit_is_due(number, audited, args.repeat);
        let audit = if due { Some(stage.audit()?) } else { None };
        if due {
            audited = number;
        }
        report.add(number, played.repetition, audit);
        if report.has_violations() {
            // More load would only hide it.
            break;
        }
    }
    Ok(())
}

/// Whether an audit comes after this repetition, when the last came after `audited`.
///
/// Each reads everything from the first payment on, so that all of them together would
/// take longer than the drill. Nothing that one reads ever shrinks: acknowledgements,
/// ledger and logs are only added to. So the next one judges what was left out before it
/// by the same rules, beside the running sites like every other, and the one at the end
/// once more.
fn audit_is_due(number: u32, audited: u32, of: u32) -> bool {
    number == of || number >= audited.saturating_mul(AUDIT_FACTOR)
}

/// A load, and what a script came to under it.
struct Driven {
    outcome: Outcome,
    phase: Phase,
    /// What was done, and when it had ended.
    told: Result<(script::Told, Instant), Failure>,
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
    course: &Course,
    script: Script<'_>,
    load: (f64, Progress),
    stop: &Stop,
) -> Result<Played, Failure> {
    let Driven { outcome, phase, told } = drive(stage, course, script, load, stop).await?;
    let told = told?;
    let unsettled = stage.settle(stop).await?;
    Ok(played(stage, (outcome, phase), told, unsettled))
}

/// Plays a script under load: what was driven, however the script ended.
async fn drive(
    stage: &Stage,
    course: &Course,
    script: Script<'_>,
    (rate, live): (f64, Progress),
    stop: &Stop,
) -> Result<Driven, Failure> {
    let (halt, over, again) = (Stop::new(), Notify::new(), Cell::new(false));
    let arrival = script.timing().arrival(course)?;
    let phase = match course {
        // So long that no request can be kept.
        Course::Steady(length) => Phase { arrival, rate, live, ..stage.phase(LOAD_MAX + *length) },
        _ => Phase { arrival, rate, traced: true, live, ..stage.phase(LOAD_MAX) },
    };
    let load = async {
        tokio::select! {
            biased;
            driven = stage.session.drive(&phase, &halt) => driven,
            never = pass_on((stop, &over), (&halt, &again)) => match never {},
        }
    };
    let fault = async {
        let told = tokio::select! {
            told = script.play(course) => told,
            () = stop.notified() => Err(stopped()),
        };
        let ended = Instant::now();
        halt.notify_one();
        over.notify_one();
        told.map(|told| (told, ended))
    };
    let (outcome, told) = under(load, fault).await?;
    let told = if again.get() { told.and(Err(stopped())) } else { told };
    let length = match &told {
        Ok((_, ended)) => ended.saturating_duration_since(outcome.start),
        Err(_) => outcome.start.elapsed(),
    };
    Ok(Driven { outcome, phase: Phase { duration: length, ..phase }, told })
}

/// Passes signals on to a load that waits for its last answers, once what it was driven for is
/// over and hears none any more.
async fn pass_on(
    (stop, over): (&Stop, &Notify),
    (halt, again): (&Stop, &Cell<bool>),
) -> Infallible {
    over.notified().await;
    loop {
        stop.notified().await;
        again.set(true);
        halt.notify_one();
    }
}

/// The figures of a script that was played to its end.
fn played(
    stage: &Stage,
    (mut outcome, phase): (Outcome, Phase),
    (mut told, ended): (script::Told, Instant),
    unsettled: usize,
) -> Played {
    // Its end was ours.
    outcome.interrupted = false;
    let shards = stage.deployment.gateway.shards;
    if !phase.traced {
        told.found.sizes = Some(steady::sizes(stage));
    }
    let mut repetition = Repetition::new(&outcome, &told, ended, shards, unsettled);
    if !phase.traced {
        repetition.of_measure(&outcome.measure);
    }
    Played { outcome, phase, repetition, unsettled }
}

/// Runs a load and the script that ends it; what was driven is told beside what became of
/// the script. A load that fails before is the end of both.
async fn under<T>(
    load: impl Future<Output = Result<(Outcome, Result<(), Failure>), Failure>>,
    script: impl Future<Output = Result<T, Failure>>,
) -> Result<(Outcome, Result<T, Failure>), Failure> {
    let mut load = pin!(load);
    let mut script = pin!(script);
    tokio::select! {
        biased;
        ended = &mut load => {
            let (outcome, ended) = ended?;
            match ended {
                Ok(()) => Ok((outcome, script.await)),
                Err(failure) => Ok((outcome, Err(failure))),
            }
        }
        told = &mut script => {
            let (outcome, ended) = load.await?;
            Ok((outcome, ended.and(told)))
        }
    }
}

/// Runs a load and what ends it. A load that fails before is the end of both: without
/// it the rest would be played to nobody.
async fn beside<T>(
    load: impl Future<Output = Result<Outcome, Failure>>,
    other: impl Future<Output = Result<T, Failure>>,
) -> Result<(Outcome, T), Failure> {
    let mut load = pin!(load);
    let mut other = pin!(other);
    tokio::select! {
        biased;
        ended = &mut load => {
            let outcome = ended?;
            Ok((outcome, other.await?))
        }
        told = &mut other => {
            let outcome = load.await?;
            Ok((outcome, told?))
        }
    }
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
    /// Why it did not come to its end, when it did not.
    pub(crate) broke: Option<Failure>,
}

impl Told {
    /// Of a story that broke off.
    pub(crate) fn broken(outcome: Outcome, phase: Phase, why: Failure) -> Self {
        Self { outcome, phase, events: Events::default(), unsettled: 0, broke: Some(why) }
    }
}

/// The story of `loadgen demo` with several sites: one is killed under load and
/// returns.
pub(crate) async fn story(
    stage: &Stage,
    seed: u64,
    span: Duration,
    stop: &Stop,
) -> Result<Told, Failure> {
    let script = Script::new(stage, seed, 0, span);
    let (load, course) = ((stage.phase(span).rate, Progress::Always), Course::One(Action::Kill));
    let Driven { outcome, phase, told } = drive(stage, &course, script, load, stop).await?;
    let settled = match told {
        Ok(told) => stage.settle(stop).await.map(|unsettled| (told, unsettled)),
        Err(failure) => Err(failure),
    };
    let (told, unsettled) = match settled {
        Ok(settled) => settled,
        Err(failure) => return Ok(Told::broken(outcome, phase, failure)),
    };
    let played = played(stage, (outcome, phase), told, unsettled);
    println!("   {}", played.repetition);
    let events = played.repetition.events();
    let Played { outcome, phase, unsettled, .. } = played;
    Ok(Told { outcome, phase, events, unsettled, broke: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audits(of: u32) -> Vec<u32> {
        let mut audited = Vec::new();
        for number in 1..=of {
            if audit_is_due(number, audited.last().copied().unwrap_or(0), of) {
                audited.push(number);
            }
        }
        audited
    }

    #[test]
    fn a_violation_outweighs_how_a_drill_ended() {
        let failed = |exit| Err(Failure::new(exit, "why"));
        let exit = |verdict, ended| weighed(verdict, ended).err().map(|failure| failure.exit);
        assert_eq!(exit(failed(Exit::Audit), failed(Exit::Invalid)), Some(Exit::Audit));
        assert_eq!(exit(failed(Exit::Missed), failed(Exit::Environment)), Some(Exit::Environment));
        assert_eq!(exit(failed(Exit::Missed), Ok(())), Some(Exit::Missed));
        assert_eq!(exit(Ok(()), failed(Exit::Invalid)), Some(Exit::Invalid));
        assert_eq!(exit(Ok(()), Ok(())), None);
    }

    #[tokio::test]
    async fn a_load_that_fails_ends_what_runs_beside_it() {
        let load = async { Err(Failure::environment("the disk is full")) };
        let ended = beside(load, std::future::pending::<Result<(), Failure>>()).await;
        assert_eq!(ended.err().map(|failure| failure.exit), Some(Exit::Environment));
        let (halt, waits) = (Notify::new(), Notify::new());
        let load = async {
            halt.notified().await;
            Err(Failure::environment("told to end"))
        };
        let other = async {
            halt.notify_one();
            waits.notify_one();
            Ok(())
        };
        assert_eq!(beside(load, other).await.err().unwrap().message, "told to end");
        waits.notified().await;
    }

    #[tokio::test]
    async fn a_load_that_waits_for_its_last_answers_is_told_again() {
        let (stop, over) = (Stop::new(), Notify::new());
        let (halt, again) = (Stop::new(), Cell::new(false));
        let load = async {
            tokio::select! {
                biased;
                () = halt.notified() => {}
                never = pass_on((&stop, &over), (&halt, &again)) => match never {},
            }
        };
        let signals = async {
            stop.notify_one();
            tokio::task::yield_now().await;
            assert!(!again.get(), "the script hears it");
            over.notify_one();
        };
        tokio::join!(load, signals);
        assert!(again.get());
    }

    #[tokio::test]
    async fn what_was_driven_is_told_however_the_script_ended() {
        let outcome = || Outcome {
            measure: crate::measure::Measure::new(0, 0),
            trace: Vec::new(),
            timeline: crate::series::Timeline::default(),
            start: Instant::now(),
            cpu_s: 0.0,
            host: crate::host::Host::default(),
            interrupted: true,
        };
        let halt = Notify::new();
        let load = async {
            halt.notified().await;
            Ok((outcome(), Ok(())))
        };
        let script = async {
            halt.notify_one();
            Err::<(), _>(stopped())
        };
        let (driven, told) = under(load, script).await.ok().unwrap();
        assert!(driven.interrupted);
        assert_eq!(told, Err(stopped()));
        // The disk of the acknowledgements is full: nobody waits for the script.
        let full = || Failure::environment("full");
        let load = async { Ok((outcome(), Err(full()))) };
        let (_, told) =
            under(load, std::future::pending::<Result<(), Failure>>()).await.ok().unwrap();
        assert_eq!(told, Err(full()));
    }

    #[test]
    fn the_first_and_the_last_repetition_are_always_audited_and_few_between() {
        assert_eq!((audits(1), audits(2), audits(3)), (vec![1], vec![1, 2], vec![1, 3]));
        assert_eq!(audits(20), [1, 3, 9, 20]);
        for of in 1..=1_000 {
            let audited = audits(of);
            assert_eq!((audited[0], audited.last().copied()), (1, Some(of)));
            let read: u32 = audited.iter().sum();
            assert!(read <= of * 5 / 2, "{read} of {of}");
        }
    }
}
