//! `loadgen demo` and `loadgen soak`: real load on real processes, the switch
//! killed with SIGKILL in the middle, and the audit at the end.
//!
//! Both are one story: a round is load, a kill under it, a restart, the drain
//! and the audit. The demo is one round with words; the soak repeats it at
//! random moments.

use crate::acks::AckWriter;
use crate::audit::{self, Audit, Evidence, Source};
use crate::drive::{Options, Outcome, Phase, Session};
use crate::encode::Encoder;
use crate::exit::{Exit, Failure};
use crate::pace::{Pace, TICK};
use crate::plan::{Mix, Params, Plan, RUN_ID_MAX};
use crate::report::Report;
use crate::rng::Stream;
use crate::scenario::{Deployment, Process};
use crate::schedule::Arrival;
use clap::Args;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

const DAY_MS: u64 = 86_400_000;
const MERCHANTS: u32 = 200;
/// Longest wait for every payment's end.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// Where and how a story is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoryArgs {
    /// The binary `payswitch`. Default: beside this one.
    #[arg(long)]
    payswitch: Option<PathBuf>,
    /// Where the deployment lives, and stays. Default: a temporary folder.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Requests per second.
    #[arg(long, default_value_t = 4_000.0)]
    rate: f64,
    /// Chooses everything that looks random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Arguments of `loadgen demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    story: StoryArgs,
    /// Seconds of load, 4 to 30.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
}

/// Arguments of `loadgen soak`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SoakArgs {
    #[command(flatten)]
    story: StoryArgs,
    /// How often the switch is killed.
    #[arg(long, default_value_t = 5)]
    kills: u32,
}

/// A deployment under load.
struct Stage {
    deployment: Deployment,
    _channel: Process,
    switch: Rc<RefCell<Option<Process>>>,
    session: Session,
    plan: Rc<Plan>,
    evidence: Evidence,
    rate: f64,
}

/// What one kill did.
#[derive(Clone, Copy, Debug)]
struct Kill {
    at: Duration,
    back: Duration,
}

/// Runs the demo.
pub(crate) async fn demo(args: &DemoArgs, stop: &Notify) -> Result<(), Failure> {
    if !(4..=30).contains(&args.seconds) {
        return Err(Failure::usage("--seconds: 4 to 30"));
    }
    let faults =
        ["--drop-reply=1%", "--late=1%:300", "--duplicate=0.5%", "--decline=2%"].map(str::to_owned);
    println!("1. One site, one payment channel in its own process, {MERCHANTS} merchants.");
    println!("   The channel misbehaves: {}.", faults.join(" ").replace("--", ""));
    let mut stage = Stage::build(&args.story, &faults).await?;
    let span = Duration::from_secs(args.seconds);
    println!(
        "2. {} requests/s for {} s, of them 2 % repeated and 1 % forged repeats; \
         kill -9 of the switch after {:.0} s.",
        args.story.rate,
        args.seconds,
        span.as_secs_f64() * 0.4
    );
    let (outcome, kill) = stage.round(span, span.mul_f64(0.4), true, stop).await?;
    println!(
        "   killed at {:.2} s, ready again {} ms later with every acknowledged payment.",
        kill.at.as_secs_f64(),
        kill.back.as_millis()
    );
    println!("3. Drain: every payment without a final answer is asked for until it has one.");
    let left = stage.settle(stop).await?;
    if left > 0 {
        println!("   {left} payments still have no final answer");
    }
    println!("4. Audit: gateway's acknowledgements, channel's ledger and switch's log compared.");
    let phase = stage.phase(span);
    let report = Report::new(stage.plan.params(), &phase, &outcome, &[]);
    let audit = stage.end(stop).await?;
    report.print();
    audit.print();
    verdict(&outcome, left, &audit)?;
    println!("clean: nothing acknowledged was lost, nothing was charged twice, the books agree.");
    Ok(())
}

/// Runs the soak.
pub(crate) async fn soak(args: &SoakArgs, stop: &Notify) -> Result<(), Failure> {
    if !(1..=10_000).contains(&args.kills) {
        return Err(Failure::usage("--kills: 1 to 10000"));
    }
    let faults = ["--drop-reply=1%", "--late=1%:300", "--duplicate=0.5%"].map(str::to_owned);
    let mut stage = Stage::build(&args.story, &faults).await?;
    let moments = Stream::new(args.story.seed, 200);
    let mut slowest = Duration::ZERO;
    for number in 1..=args.kills {
        let span = Duration::from_secs(4);
        let at = Duration::from_millis(300 + moments.below(number.into(), 2_500));
        let (outcome, kill) = stage.round(span, at, false, stop).await?;
        let left = stage.settle(stop).await?;
        slowest = slowest.max(kill.back);
        // The log is read beside the running switch: what is acknowledged is in it.
        let audit = audit::audit(&stage.evidence, true)?;
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
    let audit = stage.end(stop).await?;
    audit.print();
    audit.verdict()?;
    println!(
        "clean: {} kills, slowest restart {} ms, nothing acknowledged was lost or charged twice.",
        args.kills,
        slowest.as_millis()
    );
    Ok(())
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

impl Stage {
    async fn build(args: &StoryArgs, faults: &[String]) -> Result<Self, Failure> {
        if !(1.0..=1_000_000.0).contains(&args.rate) {
            return Err(Failure::usage("--rate: 1 to 1000000"));
        }
        let payswitch = args.payswitch.clone().map_or_else(audit::payswitch_beside, Ok)?;
        let deployment = Deployment::init(payswitch, args.dir.clone(), MERCHANTS)?;
        let mut faults = faults.to_vec();
        faults.push(format!("--seed={}", args.seed));
        let channel = deployment.channel(&faults).await?;
        let (switch, _) = deployment.serve().await?;
        let gateway = &deployment.gateway;
        let merchants = gateway.load_merchants()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = now.as_millis() as u64;
        let params = Params {
            seed: args.seed,
            run_id: now_ms % RUN_ID_MAX,
            expire_ms: (now_ms / DAY_MS + 3) * DAY_MS,
            mix: Mix { pay: 80, query: 15, refund: 5 },
            duplicates_ppm: 20_000,
            conflicts_ppm: 10_000,
            zipf: 0.5,
            lag: (args.rate / 2.0).ceil() as u64,
            merchants: merchants.iter().map(|merchant| merchant.id.as_str().to_owned()).collect(),
        };
        let acks_dir = deployment.file("acks");
        let writer = AckWriter::create(&acks_dir, &params)?;
        let plan = Plan::new(params).ok_or_else(|| Failure::usage("impossible parameters"))?;
        let plan = Rc::new(plan);
        let options = Options {
            connections: 2,
            streams: 16,
            in_flight_max: 100_000,
            deadline: Duration::from_secs(10),
            pace: Pace::Tick,
            tick: TICK,
        };
        let session = Session::connect(
            gateway,
            Rc::clone(&plan),
            Encoder::new(merchants),
            Some(writer),
            options,
        )
        .await?;
        let data = deployment.file("data/site-1");
        let evidence = Evidence {
            acks: acks_dir,
            ledger: gateway.channel_ledger_dir.clone(),
            logs: vec![Source::Dump { payswitch: deployment.payswitch.clone(), data }],
        };
        Ok(Self {
            deployment,
            _channel: channel,
            switch: Rc::new(RefCell::new(Some(switch))),
            session,
            plan,
            evidence,
            rate: args.rate,
        })
    }

    fn phase(&self, span: Duration) -> Phase {
        Phase {
            arrival: Arrival::Poisson,
            rate: self.rate,
            duration: span,
            warmup: Duration::ZERO,
            closed: None,
            live: false,
            traced: false,
        }
    }

    /// Load for `span`, a kill under it after `at`, and the restart.
    async fn round(
        &mut self,
        span: Duration,
        at: Duration,
        live: bool,
        stop: &Notify,
    ) -> Result<(Outcome, Kill), Failure> {
        let phase = Phase { live, ..self.phase(span) };
        let load = self.session.run(&phase, stop);
        let fault = async {
            tokio::time::sleep(at).await;
            let killed = Instant::now();
            if let Some(switch) = self.switch.borrow_mut().take() {
                switch.kill();
            }
            let (switch, _) = self.deployment.serve().await?;
            *self.switch.borrow_mut() = Some(switch);
            Ok::<_, Failure>(Kill { at, back: killed.elapsed() })
        };
        let (outcome, kill) = tokio::join!(load, fault);
        Ok((outcome?, kill?))
    }

    /// Asks for payments without a final answer until they have one, and waits for
    /// refunds in doubt; tells how many are left.
    async fn settle(&self, stop: &Notify) -> Result<usize, Failure> {
        let left = self.session.settle(SETTLE_MAX, stop).await?;
        let open = self.deployment.settled(SETTLE_MAX).await;
        Ok(left.max(open as usize))
    }

    /// Asks for everything once more, stops the switch, checks its log and audits.
    async fn end(self, stop: &Notify) -> Result<Audit, Failure> {
        let all = self.session.payments(|known| known != crate::drive::Known::Nothing);
        let answers = self.session.query(&all, stop).await?;
        println!("   {} payments asked for once more, {} answered.", all.len(), answers.answered);
        self.session.close().await;
        let switch = self.switch.borrow_mut().take();
        if let Some(switch) = switch {
            switch.stop().await?;
        }
        self.deployment.verify_log()?;
        audit::audit(&self.evidence, true)
    }
}
