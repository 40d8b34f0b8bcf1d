//! `loadgen run`: plan, connect, drive, report.

use crate::acks::AckWriter;
use crate::config::{GatewayFile, Merchant};
use crate::drive::{DURATION_MAX, IN_FLIGHT_LIMIT, Options, Part, Phase, Session};
use crate::encode::Encoder;
use crate::exit::{self, Failure};
use crate::goal::{Goal, parse_percent};
use crate::interrupt::{Stop, Watch};
use crate::live::Progress;
use crate::pace::{Pace, TICK_US};
use crate::plan::{Mix, Params, Plan, RUN_ID_MAX};
use crate::report::{self, Events, Origin, Report};
use crate::schedule::Arrival;
use crate::workers;
use clap::Args;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_MS: u64 = 86_400_000;
/// Longest wait for the last events: longer than the switch waits before it repeats one.
const EVENTS_MAX: Duration = Duration::from_secs(15);

/// What makes the requests; shared by the commands that send any.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// The gateway's configuration, gateway.toml.
    #[arg(long)]
    pub(crate) config: PathBuf,
    /// Shares of the operations.
    #[arg(long, default_value = "pay=100", value_parser = Mix::parse, value_name = "pay=W,query=W,refund=W,close=W,reverse=W")]
    pub(crate) mix: Mix,
    /// Use only the first so many merchants of the file.
    #[arg(long)]
    pub(crate) merchants: Option<usize>,
    /// Skew of the merchants' shares: 0 is even, 0.99 is like web traffic.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) zipf: f64,
    /// Share of pays that repeat an earlier one, in percent.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) duplicates: f64,
    /// Share of pays that reuse a number with another amount, in percent.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) conflicts: f64,
    /// Share of pays that carry a signature that does not fit, in percent.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) bad_signatures: f64,
    /// Share of payments that are one merchant's, in percent, before --zipf
    /// spreads the rest.
    #[arg(long, default_value = "0%", value_parser = parse_percent)]
    pub(crate) hot: f64,
    /// Connections, spread over the sites.
    #[arg(long, default_value_t = 2)]
    pub(crate) connections: usize,
    /// Streams of each connection.
    #[arg(long, default_value_t = 16)]
    pub(crate) streams: usize,
    /// Chooses everything that looks random.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Part of every payment's number: the same id and seed on the same day
    /// (UTC) repeat the same payments. Default: the time.
    #[arg(long)]
    pub(crate) run_id: Option<u64>,
    /// Most requests in flight or waiting; more are shed and counted.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) in_flight: usize,
    /// Seconds after which a request without answer counts as unknown.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) deadline: f64,
    /// How the sender waits for what is due.
    #[arg(long, value_enum, default_value_t = Pace::Tick)]
    pub(crate) pace: Pace,
    /// Tick of the pacing, microseconds: longer is later and cheaper.
    #[arg(long, default_value_t = TICK_US, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    pub(crate) tick_us: u64,
    /// Write every acknowledgement to a log in this directory, for the audit.
    #[arg(long)]
    pub(crate) acks: Option<PathBuf>,
    /// Ask for the event of every outcome, subscribe to them at every site and write
    /// those that come beside the acknowledgements; the end waits for them, up to 15 s.
    /// With one worker only, and for one generator of a gateway at a time.
    #[arg(long, requires = "acks")]
    pub(crate) events: bool,
}

/// Arguments of `loadgen run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Requests per second.
    #[arg(long, required_unless_present = "closed")]
    pub(crate) rate: Option<f64>,
    /// Seconds.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) duration: f64,
    /// constant, poisson, step:SECOND=FACTOR,.., ramp:SECOND=FACTOR,..,
    /// spike:SECOND+LENGTH=FACTOR,.. or daily:SECONDS (a day in so long, its
    /// busiest hour at the rate); poisson+ before a shape draws the gaps.
    #[arg(long, default_value = "constant", value_parser = Arrival::parse)]
    pub(crate) arrival: Arrival,
    /// Closed loop: so many always in flight, instead of a rate. Its latency
    /// is not corrected for waiting.
    #[arg(long, conflicts_with_all = ["rate", "arrival"])]
    pub(crate) closed: Option<usize>,
    /// Seconds at the start that are not measured.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warmup: f64,
    /// A goal, such as p99=10ms, p50@pay=2ms, errors=0.1%, rate=99%.
    #[arg(long = "goal", value_parser = Goal::parse)]
    pub(crate) goals: Vec<Goal>,
    /// Threads that share the plan, the connections and the requests in flight, each
    /// with its own part; the plan stays the same for any number.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) workers: u8,
    /// Write the result here.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write a page for people here: one HTML file that needs no network.
    #[arg(long)]
    pub(crate) report: Option<PathBuf>,
    /// Write the latency histograms here, as other HDR tools read them.
    #[arg(long)]
    pub(crate) hlog: Option<PathBuf>,
}

impl LoadArgs {
    /// The plan and what signs its requests. Queries and refunds are about payments that
    /// are at least `lag` requests old, so the first so many requests are all pays.
    pub(crate) fn plan(
        &self,
        gateway: &GatewayFile,
        lag: u64,
    ) -> Result<(Rc<Plan>, Encoder), Failure> {
        let mut merchants: Vec<Merchant> = gateway.load_merchants()?;
        if let Some(wanted) = self.merchants {
            if !(1..=merchants.len()).contains(&wanted) {
                let there = merchants.len();
                return Err(Failure::usage(format_args!("--merchants {wanted}: 1 to {there}")));
            }
            merchants.truncate(wanted);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = now.as_millis() as u64;
        let ppm = |share: f64| (share * 1e6).round() as u32;
        let params = Params {
            seed: self.seed,
            run_id: self.run_id.unwrap_or(now_ms % RUN_ID_MAX),
            // The same for all runs of a day, so that a run can be repeated.
            expire_ms: (now_ms / DAY_MS + 3) * DAY_MS,
            mix: self.mix,
            duplicates_ppm: ppm(self.duplicates),
            conflicts_ppm: ppm(self.conflicts),
            bad_signatures_ppm: ppm(self.bad_signatures),
            hot_ppm: ppm(self.hot),
            notify: self.events,
            zipf: self.zipf,
            lag,
            merchants: merchants.iter().map(|merchant| merchant.id.as_str().to_owned()).collect(),
        };
        let plan = Plan::new(params).ok_or_else(|| {
            Failure::usage(format_args!(
                "--run-id below {RUN_ID_MAX}, --zipf 0 to 10, --duplicates, --conflicts and \
                 --bad-signatures together at most 100%"
            ))
        })?;
        Ok((Rc::new(plan), Encoder::new(merchants)))
    }

    /// How to drive.
    pub(crate) fn options(&self) -> Result<Options, Failure> {
        if !(1..=IN_FLIGHT_LIMIT).contains(&self.in_flight) {
            return Err(Failure::usage(format_args!("--in-flight: 1 to {IN_FLIGHT_LIMIT}")));
        }
        if !(1..=256).contains(&self.connections) || !(1..=64).contains(&self.streams) {
            return Err(Failure::usage("--connections: 1 to 256, --streams: 1 to 64"));
        }
        Ok(Options {
            connections: self.connections,
            streams: self.streams,
            in_flight_max: self.in_flight,
            deadline: seconds("deadline", self.deadline)?,
            pace: self.pace,
            tick: Duration::from_micros(self.tick_us),
            part: Part::ALL,
            events: self.events,
        })
    }

    /// The acknowledgement log, when one is wanted.
    pub(crate) fn ack_writer(&self, params: &Params) -> Result<Option<AckWriter>, Failure> {
        self.acks.as_ref().map(|dir| AckWriter::create(dir, params)).transpose()
    }
}

/// Requests after which a payment can be referred to: half a second at this rate.
pub(crate) fn lag_at(rate: f64) -> u64 {
    (rate / 2.0).ceil().max(1.0) as u64
}

impl RunArgs {
    /// Requests after which a payment can be referred to. In a closed loop no more than
    /// those in flight can be open.
    pub(crate) fn lag(&self) -> u64 {
        let closed = self.closed.map(|in_flight| in_flight.max(1) as u64);
        closed.unwrap_or_else(|| lag_at(self.rate.unwrap_or(1.0)))
    }

    /// The phase, its numbers judged.
    pub(crate) fn phase(&self) -> Result<Phase, Failure> {
        let rate = self.rate.unwrap_or(1.0);
        if !(0.01..=10_000_000.0).contains(&rate) {
            return Err(Failure::usage(format_args!("--rate {rate}: 0.01 to 10000000")));
        }
        if self.closed.is_some_and(|closed| !(1..=self.load.in_flight).contains(&closed)) {
            return Err(Failure::usage("--closed: 1 to --in-flight"));
        }
        let of_rate = self.goals.iter().find(|goal| matches!(goal, Goal::Rate { .. }));
        if let Some(goal) = of_rate.filter(|_| self.closed.is_some()) {
            let text = format_args!("--goal {goal}: a closed loop offers what is answered");
            return Err(Failure::usage(text));
        }
        let duration = seconds("duration", self.duration)?;
        let warmup = Duration::try_from_secs_f64(self.warmup).unwrap_or(duration);
        if warmup >= duration {
            return Err(Failure::usage("--warmup: 0 or more seconds, less than --duration"));
        }
        let arrival = self.arrival.clone();
        Ok(Phase {
            arrival,
            rate,
            duration,
            warmup,
            closed: self.closed,
            live: Progress::Always,
            traced: false,
        })
    }
}

fn seconds(option: &str, value: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|duration| !duration.is_zero() && *duration <= DURATION_MAX)
        .ok_or_else(|| Failure::usage(format_args!("--{option} {value}: seconds above 0")))
}

/// Runs the load and reports. `stop` ends it early.
pub(crate) async fn run(args: &RunArgs, stop: &Stop) -> Result<Report, Failure> {
    let gateway = GatewayFile::load(&args.load.config)?;
    for path in [&args.json, &args.report, &args.hlog].into_iter().flatten() {
        exit::writable(path)?;
    }
    let (phase, options) = (args.phase()?, args.load.options()?);
    if options.events && args.workers > 1 {
        // Subscriptions of one gateway share the events, whoever sent the payment.
        return Err(Failure::usage("--events: with one worker only"));
    }
    let (plan, encoder) = args.load.plan(&gateway, args.lag())?;
    let acks = args.load.ack_writer(plan.params())?;
    println!(
        "{}: {} over {} connections x {} streams, seed {}, run {}",
        gateway.name,
        phase.closed.map_or_else(
            || format!("{} requests/s for {} s", phase.rate, phase.duration.as_secs_f64()),
            |closed| format!("{closed} in flight for {} s", phase.duration.as_secs_f64()),
        ),
        options.connections,
        options.streams,
        plan.params().seed,
        plan.params().run_id,
    );
    let origin = Origin::now();
    let pacing = phase.closed.is_none().then(|| options.pacing(&phase));
    let mut events = None;
    let (outcome, ended) = match args.workers {
        1 => {
            let session =
                Session::connect(&gateway, Rc::clone(&plan), encoder, acks, options).await?;
            let mut driven = session.drive(&phase, stop).await?;
            if session.events().is_some() && driven.1.is_ok() {
                let watch = Watch::new();
                session.settle(EVENTS_MAX, stop).await?;
                driven.0.interrupted |= !watch.quiet();
            }
            events = session.events();
            session.close().await;
            driven
        }
        _ => workers::drive(args, plan.params(), (&phase, options), acks, stop).await?,
    };
    let report = Report::new(plan.params(), &phase, &outcome, &args.goals).paced(pacing);
    let report = report.with_story(&outcome, origin, Events::default()).with_events(events);
    report.print();
    // What cannot be written does not keep the rest from being.
    let json = args.json.as_ref().map_or(Ok(()), |path| report.write(path));
    let page = args.report.as_ref().map_or(Ok(()), |path| report::write_page(&report, path));
    let hlog = args.hlog.as_ref().map_or(Ok(()), |path| report::write_hlog(path, &phase, &outcome));
    ended.and(json).and(page).and(hlog)?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Op;
    use crate::plan::tests::params;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        run: RunArgs,
    }

    fn args(more: &[&str]) -> RunArgs {
        let all = ["run", "--config", "gateway.toml"].iter().chain(more);
        Command::try_parse_from(all).unwrap().run
    }

    #[test]
    fn the_mix_of_a_closed_loop_begins_when_its_first_payments_can_be_over() {
        let run = args(&["--closed", "64", "--mix", "pay=50,query=50"]);
        assert_eq!(run.lag(), 64);
        let plan = Plan::new(Params { mix: run.load.mix, lag: run.lag(), ..params() }).unwrap();
        let queries = (64..1_064).filter(|n| plan.op(*n) == Op::Query).count();
        assert!((400..600).contains(&queries), "{queries}");
        assert!((0..64).all(|n| plan.op(n) == Op::Pay));
        assert_eq!(args(&["--rate", "2000"]).lag(), 1_000);
        assert_eq!(args(&["--rate", "0.01"]).lag(), 1);
    }

    #[test]
    fn a_closed_loop_has_no_rate_to_be_asked_for() {
        let refused = |more: &[&str]| args(more).phase().err().map(|failure| failure.message);
        let told = refused(&["--closed", "8", "--goal", "p99=1s", "--goal", "rate=99%"]);
        assert_eq!(told.as_deref(), Some("--goal rate=99%: a closed loop offers what is answered"));
        assert_eq!(refused(&["--closed", "8", "--goal", "p99=1s"]), None);
        assert_eq!(refused(&["--rate", "8", "--goal", "rate=99%"]), None);
    }
}
