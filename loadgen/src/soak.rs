//! `loadgen demo` and `loadgen soak`: real load on real processes, the switch
//! killed with SIGKILL in the middle, and the audit at the end.
//!
//! Both are one story: a round is load, a kill under it, a restart, the drain
//! and the audit. The demo is one round with words; the soak repeats it at
//! random moments.

use crate::audit::Audit;
use crate::cluster::SITES_MAX;
use crate::drill::{self, Told};
use crate::drive::{Outcome, Phase};
use crate::exit::{self, Exit, Failure};
use crate::interrupt::{self, Stop, Watch};
use crate::live::Progress;
use crate::report::{self, Events, Mark, Origin, Report};
use crate::rng::Stream;
use crate::space::{self, Work};
use crate::stage::{Again, Cast, Gear, MERCHANTS, MIX, Stage, StoryArgs};
use clap::Args;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The site that is killed when there are several: no payment of the first seconds
/// is special to it.
const VICTIM: u8 = 1;
/// Load of one round of the soak.
const ROUND: Duration = Duration::from_secs(4);
/// What is said of a story that does not come to its end.
const BROKE_OFF: &str = "it broke off: what was done until then is audited";

/// Arguments of `loadgen demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    story: StoryArgs,
    /// Requests per second.
    #[arg(long, default_value_t = 4_000.0)]
    rate: f64,
    /// Sites.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(SITES_MAX)))]
    sites: u8,
    /// Seconds of load, 4 to 30.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// Where the page goes that shows it all. Default: a file beside temporary ones.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Write the result here.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Arguments of `loadgen soak`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SoakArgs {
    #[command(flatten)]
    story: StoryArgs,
    /// Requests per second.
    #[arg(long, default_value_t = 4_000.0)]
    rate: f64,
    /// Sites.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(SITES_MAX)))]
    sites: u8,
    /// How often a switch is killed.
    #[arg(long, default_value_t = 5)]
    kills: u32,
}

/// What one kill did.
#[derive(Clone, Copy, Debug)]
struct Kill {
    at: Duration,
    back: Duration,
}

/// Runs the demo.
pub(crate) async fn demo(args: &DemoArgs, stop: &Stop) -> Result<(), Failure> {
    if !(4..=30).contains(&args.seconds) {
        return Err(Failure::usage("--seconds: 4 to 30"));
    }
    for path in [&args.json, &args.report].into_iter().flatten() {
        exit::writable(path)?;
    }
    let faults = ["--drop-reply=1%", "--late=1%:300", "--duplicate=0.5%", "--decline=2%"];
    let cast = Cast {
        sites: args.sites,
        relay: false,
        rate: args.rate,
        mix: MIX,
        faults: &faults,
        gear: Gear::default(),
    };
    let span = Duration::from_secs(args.seconds);
    cast.check()?;
    space::check(args.story.dir.as_deref(), work(&cast, span).bytes())?;
    let sites = match args.sites {
        1 => "One site".to_owned(),
        sites => format!("{sites} sites, each leading its share of the merchants"),
    };
    println!("1. {sites}, one payment channel in its own process, {MERCHANTS} merchants.");
    println!("   The channel misbehaves: {}.", faults.join(" ").replace("--", ""));
    let stage = Stage::build(&args.story, &cast).await?;
    println!(
        "2. {} requests/s for {} s, of them 2 % repeated and 1 % forged repeats; \
         kill -9 of {} in the middle.",
        args.rate,
        args.seconds,
        if args.sites == 1 { "the switch" } else { "a site, and its return" },
    );
    let origin = Origin::now().of_switch(stage.version());
    let told = match args.sites {
        1 => killed_and_restarted(&stage, span, stop).await,
        _ => drill::story(&stage, args.story.seed, span, stop).await,
    };
    match told {
        Ok(told) => summed_up(args, stage, told, origin, stop).await,
        Err(failure) => Err(broke_off(stage, failure, stop).await),
    }
}

/// The end of the demo, however it came to it: audit, summary, result and page.
async fn summed_up(
    args: &DemoArgs,
    stage: Stage,
    told: Told,
    origin: Origin,
    stop: &Stop,
) -> Result<(), Failure> {
    let Told { outcome, phase, events, unsettled: left, mut broke } = told;
    if broke.is_none() {
        println!("3. Drain: every payment without a final answer was asked for until it had one.");
        if left > 0 {
            println!("   {left} payments still have no final answer");
        }
        println!("4. Audit: gateway's acknowledgements, channel's ledger and every log compared.");
        broke = stage.ask_again(stop).await.and_then(Again::check).err();
    }
    let report = Report::new(stage.plan.params(), &phase, &outcome, &[]);
    let mut report = report.with_story(&outcome, origin, events);
    let audit = match broke {
        None => stage.end().await,
        Some(_) => {
            println!("{BROKE_OFF}");
            stage.broken_off(stop).await
        }
    };
    match &audit {
        Ok(audit) => report = report.with_audit(audit),
        Err(failure) => println!("not audited: {}", failure.message),
    }
    report.print();
    if let Ok(audit) = &audit {
        audit.print();
    }
    // What cannot be written does not keep the rest from being.
    let json = args.json.as_ref().map_or(Ok(()), |path| report.write(path));
    let page = report::write_page(&report, &args.report.clone().unwrap_or_else(default_page));
    let verdict = audit.and_then(|audit| verdict(&outcome, left, &audit));
    drill::weighed(verdict, broke.map_or(Ok(()), Err).and(json).and(page))?;
    println!("clean: nothing acknowledged was lost, nothing was charged twice, the books agree.");
    Ok(())
}

/// Audits what a story left that broke off; how it ends then.
async fn broke_off(stage: Stage, failure: Failure, stop: &Stop) -> Failure {
    println!("{BROKE_OFF}");
    let audit = stage.broken_off(stop).await;
    match &audit {
        Ok(audit) => audit.print(),
        Err(failure) => println!("not audited: {}", failure.message),
    }
    let verdict = audit.and_then(|audit| audit.verdict());
    drill::weighed(verdict, Err(failure.clone())).err().unwrap_or(failure)
}

/// What load of this length will do.
fn work<'a>(cast: &Cast<'a>, length: Duration) -> Work<'a> {
    let (seconds, settings) = (length.as_secs_f64(), cast.gear.settings);
    let requests = cast.rate * seconds;
    Work { requests, mix: cast.mix, seconds, sites: cast.sites, settings }
}

/// Where the demo's page goes.
fn default_page() -> PathBuf {
    std::env::temp_dir().join(format!("payswitch-demo-{}.html", std::process::id()))
}

/// The story of one site: it is killed, restarted and goes on.
async fn killed_and_restarted(stage: &Stage, span: Duration, stop: &Stop) -> Result<Told, Failure> {
    let live = Progress::Always;
    let (outcome, kill) = round(stage, span, span.mul_f64(0.4), live, stop).await?;
    let kill = match kill {
        Ok(kill) => kill,
        Err(failure) => return Ok(Told::broken(outcome, stage.phase(span), failure)),
    };
    println!(
        "   killed at {:.2} s, ready again {} ms later with every acknowledged payment.",
        kill.at.as_secs_f64(),
        kill.back.as_millis()
    );
    let left = match stage.settle(stop).await {
        Ok(left) => left,
        Err(failure) => return Ok(Told::broken(outcome, stage.phase(span), failure)),
    };
    let mark = Mark {
        at_ms: kill.at.as_millis() as u64,
        until_ms: Some((kill.at + kill.back).as_millis() as u64),
        site: VICTIM,
        text: "kill -9 of the switch".to_owned(),
    };
    let events = Events { marks: vec![mark], ..Events::default() };
    let phase = stage.phase(span);
    Ok(Told { outcome, phase, events, unsettled: left, broke: None })
}

/// Runs the soak.
pub(crate) async fn soak(args: &SoakArgs, stop: &Stop) -> Result<(), Failure> {
    if !(1..=10_000).contains(&args.kills) {
        return Err(Failure::usage("--kills: 1 to 10000"));
    }
    let faults = ["--drop-reply=1%", "--late=1%:300", "--duplicate=0.5%"];
    let cast = Cast {
        sites: args.sites,
        relay: false,
        rate: args.rate,
        mix: MIX,
        faults: &faults,
        gear: Gear::default(),
    };
    cast.check()?;
    space::check(args.story.dir.as_deref(), work(&cast, ROUND * args.kills).bytes())?;
    let stage = Stage::build(&args.story, &cast).await?;
    let moments = Stream::new(args.story.seed, 200);
    let mut slowest = Duration::ZERO;
    for number in 1..=args.kills {
        let at = Duration::from_millis(300 + moments.below(number.into(), 2_500));
        let (outcome, kill, left) = match killed(&stage, at, stop).await {
            Ok(killed) => killed,
            Err(failure) => return Err(broke_off(stage, failure, stop).await),
        };
        slowest = slowest.max(kill.back);
        let audit = stage.audit()?;
        println!(
            "kill {number:>4}/{}  at {:>5} ms  back after {:>4} ms  ok {:>6}  refused {:>4}  \
             unanswered {:>4}  payments {:>8}  violations {}",
            args.kills,
            kill.at.as_millis(),
            kill.back.as_millis(),
            outcome.measure.ok,
            outcome.measure.refused,
            outcome.measure.unanswered,
            audit.checked.payments,
            audit.violation_count
        );
        if audit.violation_count > 0 {
            audit.print();
        }
        verdict(&outcome, left, &audit)?;
    }
    if let Err(failure) = stage.ask_again(stop).await.and_then(Again::check) {
        return Err(broke_off(stage, failure, stop).await);
    }
    let audit = stage.end().await?;
    audit.print();
    audit.verdict()?;
    println!(
        "clean: {} kills, slowest restart {} ms, nothing acknowledged was lost or charged twice.",
        args.kills,
        slowest.as_millis()
    );
    Ok(())
}

/// A round of the soak, until every payment has ended; how many have not.
async fn killed(
    stage: &Stage,
    at: Duration,
    stop: &Stop,
) -> Result<(Outcome, Kill, usize), Failure> {
    let (outcome, kill) = round(stage, ROUND, at, Progress::Terminal, stop).await?;
    let kill = kill?;
    Ok((outcome, kill, stage.settle(stop).await?))
}

/// The audit first, then whether everything came to an end.
fn verdict(outcome: &Outcome, left: usize, audit: &Audit) -> Result<(), Failure> {
    audit.verdict()?;
    if outcome.interrupted {
        return Err(Failure::new(Exit::Invalid, "stopped before the end"));
    }
    if outcome.measure.ok == 0 {
        return Err(Failure::new(Exit::Invalid, "no data: nothing was answered as asked"));
    }
    if left > 0 {
        let text = format_args!("{left} payments have no final answer");
        return Err(Failure::new(Exit::Missed, text));
    }
    Ok(())
}

/// Load for `span`, a kill under it after `at`, and the restart; what was driven is told
/// however that ended.
async fn round(
    stage: &Stage,
    span: Duration,
    at: Duration,
    live: Progress,
    stop: &Stop,
) -> Result<(Outcome, Result<Kill, Failure>), Failure> {
    let phase = Phase { live, ..stage.phase(span) };
    let watch = Watch::new();
    let load = stage.session.drive(&phase, stop);
    let fault = async {
        tokio::select! {
            () = tokio::time::sleep(at) => {}
            // The load answers it.
            () = watch.told() => return Err(interrupt::stopped("the load")),
        }
        let killed = Instant::now();
        stage.kill(VICTIM).await?;
        stage.start(VICTIM).await?;
        Ok(Kill { at, back: killed.elapsed() })
    };
    let (driven, kill) = tokio::join!(load, fault);
    let (outcome, ended) = driven?;
    Ok((outcome, ended.and(kill)))
}
