//! `loadgen search`: the highest rate that keeps the goals.
//!
//! The search is a pure state machine: it asks for a rate, is told whether the
//! goals were kept, and ends with the highest confirmed rate. A host that other
//! guests share spoils single runs, so two decide: a rate is missed when two of its
//! runs missed the goals, and confirmed when two of at most three kept them. A run
//! in which the generator was the bottleneck says nothing about the switch: it is
//! repeated once, and when it is so again the search ends without a result; so it
//! does when the sites are full. Runs and connections are outside of it. Tested
//! against made-up switches.
//!
//! What is found is what was answered in the least of the confirmations: the planned rate
//! holds requests that were left out, too.

use crate::config::GatewayFile;
use crate::drive::{Phase, Session};
use crate::exit::{self, Exit, Failure};
use crate::goal::Goal;
use crate::interrupt::Stop;
use crate::report::{self, Origin, Report};
use crate::run::{LoadArgs, lag_at};
use crate::schedule::Arrival;
use clap::Args;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Factor of the climb.
const CLIMB: f64 = 2.0;
/// The bracket is this narrow when bisection ends.
const PRECISION: f64 = 1.03;
/// Runs that must keep the goals at the found rate.
const CONFIRMATIONS: u32 = 2;
/// Runs at one rate that must miss them before it counts as missed.
const MISSES: u32 = 2;
/// Factor on the rate when a confirmation fails.
const STEP_DOWN: f64 = 0.97;
/// Rates that are tried at most.
const TRIES_MAX: u32 = 60;
/// Slowest rate that is tried.
const RATE_MIN: f64 = 1.0;
/// A step fails below this share of the offered rate, or above this share of errors.
const RATE_SHARE_MIN: f64 = 0.99;

/// Arguments of `loadgen search`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SearchArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// A goal every step must keep, such as p99=10ms.
    #[arg(long = "goal", value_parser = Goal::parse, required = true)]
    goals: Vec<Goal>,
    /// First rate, requests per second.
    #[arg(long, default_value_t = 5_000.0)]
    start: f64,
    /// Highest rate that is tried.
    #[arg(long, default_value_t = 2_000_000.0)]
    max: f64,
    /// Seconds of one step.
    #[arg(long, default_value_t = 5.0)]
    step_seconds: f64,
    /// Write the result here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page for people here: the curve of latency over load.
    #[arg(long)]
    report: Option<PathBuf>,
}

impl SearchArgs {
    /// Requests after which a payment can be referred to: half a second at the first rate.
    /// Later ones have less, so what is not over by then is left out.
    fn lag(&self) -> u64 {
        lag_at(self.start)
    }
}

/// What the search wants next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Want {
    /// Try this rate.
    Try(f64),
    /// Confirmed.
    Found(f64),
    /// Not even the slowest rate keeps the goals.
    NotFound,
    /// The tries are used up.
    Spent {
        /// The highest rate that kept the goals, unconfirmed.
        good: Option<f64>,
    },
    /// At this rate the generator was the bottleneck, twice: what the switch can do
    /// is not known.
    Limited {
        /// The rate.
        rate: f64,
        /// The highest one that kept the goals, unconfirmed.
        good: Option<f64>,
    },
    /// It was stopped before its end.
    Stopped {
        /// The highest rate that kept the goals, unconfirmed.
        good: Option<f64>,
    },
    /// The sites hold all that they can: no rate would be kept any more.
    Full {
        /// The highest rate that kept the goals, unconfirmed.
        good: Option<f64>,
    },
}

/// What a run says about its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The goals were kept.
    Kept,
    /// They were not.
    Missed,
    /// The generator was the bottleneck.
    Generator,
    /// The sites have no room left for payments.
    Full,
}

/// The search.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    good: Option<f64>,
    bad: Option<f64>,
    max: f64,
    trying: f64,
    confirming: bool,
    tries: u32,
    /// Runs at the rate being tried that kept the goals, and that missed them.
    kept: u32,
    missed: u32,
    /// The last run said nothing: this one repeats it.
    again: bool,
    ended: Option<Want>,
}

impl Search {
    /// Starts at a rate, never above `max`.
    pub(crate) fn new(start: f64, max: f64) -> Self {
        Self {
            good: None,
            bad: None,
            max,
            trying: start.clamp(RATE_MIN, max),
            confirming: false,
            tries: 0,
            kept: 0,
            missed: 0,
            again: false,
            ended: None,
        }
    }

    /// What to do next.
    pub(crate) fn want(&self) -> Want {
        self.ended.unwrap_or(Want::Try(self.trying))
    }

    /// Whether the current try is a confirmation.
    pub(crate) fn confirming(&self) -> bool {
        self.confirming
    }

    /// Ends it as far as it is.
    pub(crate) fn stop(&mut self) {
        self.ended = Some(Want::Stopped { good: self.good });
    }

    /// Takes the result of the rate that was wanted.
    pub(crate) fn tell(&mut self, verdict: Verdict) {
        self.tries += 1;
        let again = std::mem::replace(&mut self.again, verdict == Verdict::Generator);
        match verdict {
            Verdict::Kept => self.kept += 1,
            Verdict::Missed => self.missed += 1,
            Verdict::Generator if again => {
                self.ended = Some(Want::Limited { rate: self.trying, good: self.good });
            }
            Verdict::Generator => {}
            Verdict::Full => self.ended = Some(Want::Full { good: self.good }),
        }
        if self.ended.is_none() {
            self.decide();
        }
        if self.tries >= TRIES_MAX && self.ended.is_none() {
            self.ended = Some(Want::Spent { good: self.good });
        }
    }

    /// Goes on when enough runs at this rate say the same.
    fn decide(&mut self) {
        if self.confirming && self.kept == CONFIRMATIONS {
            self.ended = Some(Want::Found(self.trying));
        } else if self.confirming && self.missed == MISSES {
            let lower = self.trying * STEP_DOWN;
            if lower < RATE_MIN {
                self.ended = Some(Want::NotFound);
            }
            self.try_next(lower);
        } else if !self.confirming && self.kept > 0 {
            self.good = Some(self.trying);
            self.narrow();
        } else if !self.confirming && self.missed == MISSES {
            self.bad = Some(self.trying);
            self.narrow();
        }
    }

    fn narrow(&mut self) {
        match (self.good, self.bad) {
            (Some(good), _) if good >= self.max => self.confirm(good),
            (Some(good), None) => self.try_next((good * CLIMB).min(self.max)),
            (Some(good), Some(bad)) if bad / good <= PRECISION => self.confirm(good),
            (Some(good), Some(bad)) => self.try_next((good * bad).sqrt()),
            (None, Some(bad)) if bad <= RATE_MIN => self.ended = Some(Want::NotFound),
            (None, Some(bad)) => self.try_next((bad / (CLIMB * CLIMB)).max(RATE_MIN)),
            (None, None) => {}
        }
    }

    fn confirm(&mut self, rate: f64) {
        self.confirming = true;
        self.try_next(rate);
    }

    fn try_next(&mut self, rate: f64) {
        (self.trying, self.kept, self.missed) = (rate, 0, 0);
    }
}

/// What is said of a run in which the switch was not the bottleneck.
const GENERATOR: &str = "generator";

/// One step of the table.
#[derive(serde::Serialize)]
struct Step {
    rate: f64,
    kept: bool,
    confirmation: bool,
    reason: String,
    report: Report,
}

/// How a search ended, as it stands in the JSON.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    Found,
    NotFound,
    TriesSpent,
    GeneratorLimited,
    SitesFull,
    Stopped,
    Failed,
}

impl Ended {
    fn of(want: Want) -> Self {
        match want {
            Want::Found(_) => Self::Found,
            Want::NotFound => Self::NotFound,
            Want::Spent { .. } => Self::TriesSpent,
            Want::Limited { .. } => Self::GeneratorLimited,
            Want::Full { .. } => Self::SitesFull,
            Want::Stopped { .. } | Want::Try(_) => Self::Stopped,
        }
    }
}

/// The search's result, as it stands in the JSON.
#[derive(serde::Serialize)]
struct Findings {
    #[serde(flatten)]
    origin: Origin,
    version: &'static str,
    seed: u64,
    goals: Vec<String>,
    /// Highest confirmed rate as it was planned; `null` when there is none.
    rate: Option<f64>,
    /// What was answered per second in the least of its confirmations.
    achieved_rate: Option<f64>,
    /// How it ended.
    ended: Ended,
    /// The generator was the bottleneck, so that there is none.
    generator_limited: bool,
    /// The sites were full, so that there is none.
    sites_full: bool,
    steps: Vec<Step>,
}

impl Findings {
    fn write(&self, path: &Path) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(self).map_err(std::io::Error::from);
        json.and_then(|json| std::fs::write(path, json + "\n")).map_err(|error| {
            Failure::environment(format_args!("cannot write {}: {error}", path.display()))
        })
    }

    /// Latency over load, whatever order the rates were tried in.
    fn print_curve(&self) {
        let mut steps: Vec<&Step> = self.steps.iter().collect();
        steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        println!(
            "\nlatency over load, from the planned time; a bar's ten signs are a decade of p99"
        );
        println!("{:>10}  {:>9}  {:>9}  {:>9}", "offered/s", "p50 ms", "p99 ms", "max ms");
        for step in steps {
            let (p50, p99) = step.report.p50_p99_us();
            println!(
                "{:>10.0}  {:>9}  {:>9}  {:>9}  {}{}",
                step.report.offered_rate,
                ms(p50),
                ms(p99),
                ms(step.report.latency_us.max()),
                bar(p99),
                if step.kept { "" } else { " missed" },
            );
        }
    }
}

/// Ten signs a decade from 10 microseconds on.
fn bar(us: Option<u64>) -> String {
    const LONGEST: usize = 60;
    let signs = us.map_or(LONGEST, |us| ((us.max(10) as f64 / 10.0).log10() * 10.0) as usize);
    "#".repeat(signs.clamp(1, LONGEST))
}

fn ms(us: Option<u64>) -> String {
    us.map_or_else(|| "infinite".to_owned(), |us| format!("{:.3}", us as f64 / 1_000.0))
}

/// Runs the command.
pub(crate) async fn run(args: &SearchArgs, stop: &Stop) -> Result<(), Failure> {
    let gateway = GatewayFile::load(&args.load.config)?;
    let duration = Duration::try_from_secs_f64(args.step_seconds)
        .ok()
        .filter(|step| (1.0..=600.0).contains(&step.as_secs_f64()))
        .ok_or_else(|| Failure::usage("--step-seconds: 1 to 600"))?;
    if !(RATE_MIN..=10_000_000.0).contains(&args.max)
        || !(RATE_MIN..=args.max).contains(&args.start)
    {
        return Err(Failure::usage("--start: 1 to --max, --max: up to 10000000"));
    }
    for path in [&args.json, &args.report].into_iter().flatten() {
        exit::writable(path)?;
    }
    let (plan, encoder) = args.load.plan(&gateway, args.lag())?;
    let acks = args.load.ack_writer(plan.params())?;
    let session =
        Session::connect(&gateway, Rc::clone(&plan), encoder, acks, args.load.options()?).await?;
    let mut search = Search::new(args.start, args.max);
    let mut steps: Vec<Step> = Vec::new();
    let (origin, mut ended) = (Origin::now(), Ok(()));
    println!(
        "{:>10}  {:>10}  {:>9}  {:>9}  {:>8}  {:>8}  verdict",
        "offered/s", "ok/s", "p50 ms", "p99 ms", "refused", "unsent"
    );
    while let Want::Try(rate) = search.want() {
        let phase = Phase {
            arrival: Arrival::Constant,
            rate,
            duration,
            warmup: duration.mul_f64(0.2),
            closed: None,
            live: crate::live::Progress::Silent,
            traced: false,
        };
        let (outcome, driven) = session.drive(&phase, stop).await?;
        if driven.is_err() || outcome.interrupted {
            // The rates tried so far are worth telling.
            ended = driven;
            search.stop();
            break;
        }
        let report = Report::new(plan.params(), &phase, &outcome, &args.goals);
        let (verdict, reason) = judge(&report);
        let (kept, confirmation) = (verdict == Verdict::Kept, search.confirming());
        print_step(&report, verdict, confirmation, &reason);
        steps.push(Step { rate, kept, confirmation, reason, report });
        search.tell(verdict);
    }
    session.close().await;
    let found = search.want();
    let rate = if let Want::Found(rate) = found { Some(rate) } else { None };
    let result = Findings {
        origin,
        version: env!("CARGO_PKG_VERSION"),
        seed: args.load.seed,
        goals: args.goals.iter().map(ToString::to_string).collect(),
        rate,
        achieved_rate: rate.and_then(|rate| least(rate, &steps)),
        ended: if ended.is_err() { Ended::Failed } else { Ended::of(found) },
        generator_limited: matches!(found, Want::Limited { .. }),
        sites_full: matches!(found, Want::Full { .. }),
        steps,
    };
    result.print_curve();
    let json = args.json.as_ref().map_or(Ok(()), |path| result.write(path));
    let page = args.report.as_ref().map_or(Ok(()), |path| report::write_page(&result, path));
    ended.and(json).and(page)?;
    let goals = result.goals.join(", ");
    if let Some((rate, achieved)) = rate.zip(result.achieved_rate) {
        println!(
            "\n{achieved:.0} requests/s keep {goals}: the least of {CONFIRMATIONS} confirmations at \
             {rate:.0}/s"
        );
    }
    conclusion(found, &goals)
}

/// What was answered per second in the least of a rate's confirmations.
fn least(rate: f64, steps: &[Step]) -> Option<f64> {
    let confirmed = steps.iter().filter(|step| step.confirmation && step.kept && step.rate == rate);
    confirmed.map(|step| step.report.achieved_rate).reduce(f64::min)
}

/// How the search ends.
fn conclusion(found: Want, goals: &str) -> Result<(), Failure> {
    match found {
        Want::Found(_) => Ok(()),
        Want::NotFound | Want::Try(_) => {
            Err(Failure::new(Exit::Missed, format_args!("no rate keeps {goals}")))
        }
        Want::Spent { good } => {
            let text = format_args!(
                "no rate was confirmed: {TRIES_MAX} runs are used up and contradict each other; \
                 {}. Search on a quiet machine, or with longer steps (--step-seconds)",
                known(good, goals)
            );
            Err(Failure::new(Exit::Missed, text))
        }
        Want::Stopped { good } => {
            let text = format_args!("stopped before the end: {}", known(good, goals));
            Err(Failure::new(Exit::Invalid, text))
        }
        Want::Limited { rate, good } => {
            let text = format_args!(
                "the generator is the limit: at {rate:.0}/s it was the bottleneck twice, not the switch; \
                 {}. Give it CPUs of its own, or search below with --max",
                known(good, goals)
            );
            Err(Failure::new(Exit::Invalid, text))
        }
        Want::Full { good } => {
            let text = format_args!(
                "the sites are full: they hold as many payments as they may, or as their disks can; \
                 {}. Search on fresh sites, from nearer with --start",
                known(good, goals)
            );
            Err(Failure::new(Exit::Invalid, text))
        }
    }
}

/// What an unfinished search can say.
fn known(good: Option<f64>, goals: &str) -> String {
    good.map_or_else(
        || "no rate was seen to keep the goals".to_owned(),
        |good| format!("{good:.0}/s kept {goals}, unconfirmed"),
    )
}

fn judge(report: &Report) -> (Verdict, String) {
    let (ok, refused, unanswered, not_sent) = report.counts();
    let bad = refused + unanswered + not_sent;
    if report.is_full() {
        (Verdict::Full, "the sites are full".to_owned())
    } else if ok == 0 {
        (Verdict::Missed, "nothing answered as asked".to_owned())
    } else if !report.is_valid() {
        (Verdict::Generator, GENERATOR.to_owned())
    } else if report.rate_share() < RATE_SHARE_MIN {
        (Verdict::Missed, format!("rate {:.1} %", report.rate_share() * 100.0))
    } else if bad as f64 > (ok + bad) as f64 * (1.0 - RATE_SHARE_MIN) {
        (Verdict::Missed, format!("{bad} errors"))
    } else if report.goals_met() {
        (Verdict::Kept, String::new())
    } else {
        (Verdict::Missed, "goal".to_owned())
    }
}

fn print_step(report: &Report, verdict: Verdict, confirmation: bool, reason: &str) {
    let (p50, p99) = report.p50_p99_us();
    let (_, refused, _, not_sent) = report.counts();
    println!(
        "{:>10.0}  {:>10.0}  {:>9}  {:>9}  {refused:>8}  {not_sent:>8}  {}{}",
        report.offered_rate,
        report.achieved_rate,
        ms(p50),
        ms(p99),
        match verdict {
            Verdict::Kept => "kept",
            Verdict::Missed => "missed: ",
            Verdict::Generator => "says nothing, the bottleneck was the ",
            Verdict::Full => "says nothing: ",
        },
        if verdict == Verdict::Kept && confirmation { " (confirmation)" } else { reason },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report_of;
    use clap::Parser;
    use protocol::code::Code;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        search: SearchArgs,
    }

    #[test]
    fn the_mix_begins_within_the_warm_up_of_the_first_rate() {
        let lag = |start: &str| {
            let all = ["search", "--config", "gateway.toml", "--goal", "p99=1s", "--start", start];
            Command::try_parse_from(all).unwrap().search.lag()
        };
        assert_eq!((lag("5000"), lag("200")), (2_500, 100));
    }

    /// Searches a switch that keeps its goals as `keeps` says.
    fn search(start: f64, mut keeps: impl FnMut(f64, u32) -> bool) -> (Want, u32) {
        let mut search = Search::new(start, 1e6);
        for tries in 0..1_000 {
            match search.want() {
                Want::Try(rate) => {
                    assert!((RATE_MIN..=1e6).contains(&rate), "{rate}");
                    let kept = keeps(rate, tries);
                    search.tell(if kept { Verdict::Kept } else { Verdict::Missed });
                }
                end => return (end, tries),
            }
        }
        panic!("the search does not end");
    }

    #[test]
    fn the_knee_is_found_within_the_precision_from_any_start() {
        for start in [10.0, 5_000.0, 83_000.0, 900_000.0] {
            let (end, tries) = search(start, |rate, _| rate <= 84_321.0);
            let Want::Found(rate) = end else { panic!("{end:?}") };
            assert!(rate <= 84_321.0 && rate > 84_321.0 / PRECISION, "{rate}");
            assert!(tries <= 40, "{tries}");
        }
    }

    #[test]
    fn a_switch_without_limit_gives_the_highest_rate_and_a_dead_one_none() {
        assert_eq!(search(5_000.0, |_, _| true).0, Want::Found(1e6));
        assert_eq!(search(5_000.0, |_, _| false).0, Want::NotFound);
    }

    #[test]
    fn a_rate_must_be_confirmed_and_else_the_next_lower_one_is() {
        let (mut confirmations, mut last) = (0, 0.0);
        let (end, _) = search(5_000.0, |rate, _| {
            if rate == last {
                confirmations += 1;
            }
            last = rate;
            // The knee once looked higher than it is.
            rate <= 50_000.0 && !(confirmations == 1 && rate > 48_500.0)
        });
        let Want::Found(rate) = end else { panic!("{end:?}") };
        assert!(rate <= 50_000.0 && rate > 40_000.0, "{rate}");
    }

    #[test]
    fn a_run_is_judged_by_what_it_says_of_the_switch() {
        let ok = vec![Code::Ok; 100];
        let with = |code, count: usize| {
            let answers: Vec<Code> = [vec![code; count], ok.clone()].concat();
            judge(&report_of(0, &["p99=1ms"], &answers)).0
        };
        assert_eq!(judge(&report_of(0, &["p99=1ms"], &ok)).0, Verdict::Kept);
        assert_eq!(judge(&report_of(0, &["p99=100us"], &ok)).0, Verdict::Missed);
        assert_eq!(judge(&report_of(20_000_000, &["p99=1ms"], &ok)).0, Verdict::Generator);
        assert_eq!(judge(&report_of(0, &[], &[])).0, Verdict::Missed);
        assert_eq!(with(Code::Overloaded, 5), Verdict::Missed);
        // A hundredth that failed is no miss by itself, and none of p99; it is of p99.9.
        let hundredth = [vec![Code::Overloaded], vec![Code::Ok; 99]].concat();
        let judged = |goal| judge(&report_of(0, &[goal], &hundredth));
        assert_eq!(judged("p99=1ms").0, Verdict::Kept);
        assert_eq!(judged("p999=1ms"), (Verdict::Missed, "goal".to_owned()));
        assert_eq!(with(Code::CapacityReached, 1), Verdict::Full);
        assert_eq!(with(Code::StorageFull, 1), Verdict::Full);
    }

    #[test]
    fn single_spoilt_runs_do_not_decide() {
        // Every fourth run is spoilt by something else.
        let (end, _) = search(5_000.0, |rate, tries| rate <= 84_321.0 && tries % 4 != 1);
        let Want::Found(rate) = end else { panic!("{end:?}") };
        assert!(rate <= 84_321.0 && rate > 84_321.0 / PRECISION, "{rate}");
    }

    #[test]
    fn full_sites_end_the_search_and_are_no_miss() {
        let mut search = Search::new(5_000.0, 1e6);
        search.tell(Verdict::Kept);
        search.tell(Verdict::Full);
        assert_eq!(search.want(), Want::Full { good: Some(5_000.0) });
        let failure = conclusion(search.want(), "p99=10ms").unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.starts_with("the sites are full"), "{}", failure.message);
    }

    #[test]
    fn a_noisy_switch_does_not_keep_the_search_for_ever() {
        let (end, tries) = search(5_000.0, |_, tries| tries % 2 == 0);
        assert!(tries <= TRIES_MAX, "{end:?}");
    }

    #[test]
    fn used_up_runs_and_a_stop_are_no_answer_and_say_what_was_seen() {
        // Below 50,000/s all is well, until it comes to confirm that.
        let (end, tries) = search(5_000.0, |rate, tries| tries < 13 && rate < 50_000.0);
        let Want::Spent { good: Some(good) } = end else { panic!("{end:?} after {tries}") };
        assert_eq!(tries, TRIES_MAX);
        let told = conclusion(end, "p99=10ms").unwrap_err();
        assert_eq!(told.exit, Exit::Missed);
        for part in ["no rate was confirmed", "60 runs", &format!("{good:.0}/s kept p99=10ms")] {
            assert!(told.message.contains(part), "{part}: {}", told.message);
        }
        let mut search = Search::new(5_000.0, 1e6);
        search.tell(Verdict::Kept);
        search.stop();
        let told = conclusion(search.want(), "p99=10ms").unwrap_err();
        let text = "stopped before the end: 5000/s kept p99=10ms, unconfirmed";
        assert_eq!((told.exit, told.message.as_str()), (Exit::Invalid, text));
        let named = |want| serde_json::to_value(Ended::of(want)).unwrap();
        assert_eq!(named(search.want()), "stopped");
        assert_eq!(named(end), "tries_spent");
    }

    #[test]
    fn the_least_of_the_confirmations_is_what_was_found() {
        let step = |rate: f64, ok: usize, kept, confirmation| Step {
            rate,
            kept,
            confirmation,
            reason: String::new(),
            report: report_of(0, &[], &vec![Code::Ok; ok]),
        };
        let steps = [
            step(100.0, 10, true, false),
            step(100.0, 97, true, true),
            step(100.0, 20, false, true),
            step(100.0, 90, true, true),
            step(90.0, 5, true, true),
        ];
        // The runs last a second.
        assert_eq!(least(100.0, &steps), Some(90.0));
        assert_eq!(least(80.0, &steps), None);
    }

    /// Searches an endless switch with a generator that is the bottleneck as `limited` says.
    fn generator(start: f64, mut limited: impl FnMut(f64, u32) -> bool) -> (Want, Vec<f64>) {
        let (mut search, mut rates) = (Search::new(start, 1e6), Vec::new());
        while let Want::Try(rate) = search.want() {
            rates.push(rate);
            let own = limited(rate, rates.len() as u32);
            search.tell(if own { Verdict::Generator } else { Verdict::Kept });
            assert!(rates.len() <= TRIES_MAX as usize);
        }
        (search.want(), rates)
    }

    #[test]
    fn a_rate_at_which_the_generator_was_the_bottleneck_is_tried_once_more() {
        let (end, rates) = generator(300_000.0, |_, run| run == 2 || run == 4);
        assert_eq!(end, Want::Found(1e6));
        // 600,000 and 1,000,000 twice, and the confirmations.
        assert_eq!((rates[1], rates[3]), (rates[2], rates[4]));
        assert_eq!(rates.len(), 5 + CONFIRMATIONS as usize);
    }

    #[test]
    fn a_generator_that_is_the_limit_ends_the_search_and_says_so() {
        let (end, rates) = generator(500_000.0, |rate, _| rate > 600_000.0);
        assert_eq!(end, Want::Limited { rate: 1_000_000.0, good: Some(500_000.0) });
        assert_eq!(rates.len(), 3);
        let failure = conclusion(end, "p99=10ms").unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.starts_with("the generator is the limit"), "{}", failure.message);
        let (end, _) = generator(5_000.0, |_, _| true);
        assert_eq!(end, Want::Limited { rate: 5_000.0, good: None });
        assert_eq!(conclusion(Want::NotFound, "").unwrap_err().exit, Exit::Missed);
        assert_eq!(conclusion(Want::Found(1.0), ""), Ok(()));
    }
}
