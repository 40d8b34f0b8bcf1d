//! A deployment under load: what every story with real processes stands on.
//!
//! Owns the processes and the gateway's session; the stories decide what happens
//! to them. Tested by the stories.

mod switches;

use crate::acks::AckWriter;
use crate::audit::{self, Audit, EventsDue, Evidence, Moment, Source};
use crate::authority::Authority;
use crate::cluster::{Deployment, Process, Relay, Stats, values};
use crate::drive::{Known, Options, Part, Phase, Session};
use crate::encode::Encoder;
use crate::exit::{Exit, Failure};
use crate::interrupt::{self, Stop, Watch};
use crate::live::Progress;
use crate::pace::{Pace, TICK};
use crate::plan::{Mix, Params, Plan, SEEDED_BELOW};
use crate::rng::Stream;
use crate::schedule::Arrival;
use clap::Args;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use switches::Switches;

const DAY_MS: u64 = 86_400_000;
/// Of the seed's streams the one that numbers come from.
const RUN_ID_STREAM: u64 = 400;
/// Merchants of a story.
pub(crate) const MERCHANTS: u32 = 200;
/// What a story's requests do, unless it says something else.
pub(crate) const MIX: Mix = Mix::of(80, 15, 5);
/// The channel's plan of faults.
const CHANNEL_PLAN: &str = "channel.plan";
/// Longest wait for a process to say that it did what a signal asked for.
const TOLD_IN: Duration = Duration::from_secs(5);
const TOLD_POLL: Duration = Duration::from_millis(5);
/// Longest wait for a site to end by itself.
const ENDS_IN: Duration = Duration::from_secs(15);
/// How often a change of members is tried, and the pause between.
const MEMBER_TRIES: u32 = 4;
const MEMBER_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for every payment's end.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// Where and how a story is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoryArgs {
    /// The binary `payswitch`. Default: beside this one.
    #[arg(long)]
    pub(crate) payswitch: Option<PathBuf>,
    /// Where the deployment lives, and stays. Default: a temporary folder.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Chooses everything that looks random.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// What stands on the stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cast<'a> {
    /// Sites.
    pub(crate) sites: u8,
    /// Whether the relay is between them.
    pub(crate) relay: bool,
    /// Requests per second.
    pub(crate) rate: f64,
    /// What the requests do.
    pub(crate) mix: Mix,
    /// Faults of the channel, as its arguments.
    pub(crate) faults: &'a [&'a str],
    /// What else there is.
    pub(crate) gear: Gear<'a>,
}

impl Cast<'_> {
    /// Refuses an impossible one.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match (1.0..=1_000_000.0).contains(&self.rate) {
            true => Ok(()),
            false => Err(Failure::usage("--rate: 1 to 1000000")),
        }
    }
}

/// What only some drills need.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gear<'a> {
    /// The fault library under every site.
    pub(crate) shim: bool,
    /// One more site, which may take another's place.
    pub(crate) spare: bool,
    /// An authority of the drill's own, which everybody trusts beside the first.
    pub(crate) authority: bool,
    /// Lines of the sites' configurations, and what takes their place.
    pub(crate) settings: &'a [(String, String)],
}

/// A deployment under load.
pub(crate) struct Stage {
    /// The gateway.
    pub(crate) session: Session,
    /// What it sends.
    pub(crate) plan: Rc<Plan>,
    /// What the audit reads.
    evidence: Evidence,
    /// The drill's own authority.
    pub(crate) authority: Option<Authority>,
    relay: Option<Relay>,
    channel: Process,
    /// The channel's usual faults.
    usual: Vec<String>,
    /// A site whose log is damaged: it is out, and says nothing any more.
    out: Cell<u8>,
    /// Whether the spare is a member.
    joined: Cell<bool>,
    /// Whether every event had come when the story last settled.
    delivered: Cell<bool>,
    switches: Switches,
    rate: f64,
    /// Its files. The last to go: everybody who writes there has ended.
    pub(crate) deployment: Deployment,
}

impl Stage {
    /// Starts everything and connects the gateway, unless told to stop.
    pub(crate) async fn build(args: &StoryArgs, cast: &Cast<'_>) -> Result<Self, Failure> {
        Watch::new().unless_told("start-up", Self::started(args, cast)).await
    }

    async fn started(args: &StoryArgs, cast: &Cast<'_>) -> Result<Self, Failure> {
        cast.check()?;
        let payswitch = args.payswitch.clone().map_or_else(audit::payswitch_beside, Ok)?;
        let (dir, spare) = (args.dir.clone(), cast.gear.spare);
        let mut deployment = Deployment::init(payswitch, dir, MERCHANTS, cast.sites, spare)?;
        for (from, to) in cast.gear.settings {
            deployment.configure(from, to)?;
        }
        if cast.gear.shim {
            deployment.install_shim()?;
        }
        let authority = match cast.gear.authority {
            true => Some(Authority::beside(&deployment.file("certs/ca.pem"))?),
            false => None,
        };
        let usual: Vec<String> = cast.faults.iter().map(ToString::to_string).collect();
        write_plan(&deployment, &usual)?;
        let plan = format!("--plan={}", deployment.file(CHANNEL_PLAN).display());
        let channel = deployment.channel(&[plan, format!("--seed={}", args.seed)]).await?;
        let relay = match cast.relay {
            true => Some(deployment.relay(args.seed).await?),
            false => None,
        };
        // All at once: none is ready before most of them run.
        let started = deployment.sites().map(|site| deployment.start(site));
        let mut switches = started.collect::<Result<Vec<_>, _>>()?;
        for (site, switch) in deployment.sites().zip(&mut switches) {
            deployment.ready(site, switch).await?;
            deployment.linked(site, switch).await?;
        }
        let gateway = &deployment.gateway;
        let merchants = gateway.load_merchants()?;
        let ids = merchants.iter().map(|merchant| merchant.id.as_str().to_owned()).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let params = params(args.seed, now.as_millis() as u64, cast, ids);
        let acks = deployment.file("acks");
        let writer = AckWriter::create(&acks, &params)?;
        let plan = Plan::new(params).ok_or_else(|| Failure::usage("impossible parameters"))?;
        let plan = Rc::new(plan);
        let options = Options {
            connections: 2,
            streams: 16,
            in_flight_max: 100_000,
            deadline: Duration::from_secs(10),
            pace: Pace::Tick,
            tick: TICK,
            part: Part::ALL,
            events: true,
        };
        let encoder = Encoder::new(merchants);
        let session =
            Session::connect(gateway, Rc::clone(&plan), encoder, Some(writer), options).await?;
        let dump = |site| Source::Dump {
            payswitch: deployment.payswitch.clone(),
            data: deployment.data(site),
        };
        let logs = deployment.places().map(dump).collect();
        let ledger = gateway.channel_ledger_dir.clone();
        let absent = deployment.places().count() - deployment.sites().count();
        let switches = Switches::new(switches, absent);
        let evidence = Evidence { acks, ledger, logs };
        Ok(Self {
            deployment,
            session,
            plan,
            evidence,
            authority,
            relay,
            channel,
            usual,
            out: Cell::new(0),
            joined: Cell::new(false),
            delivered: Cell::new(false),
            switches,
            rate: cast.rate,
        })
    }

    /// Load of this length.
    pub(crate) fn phase(&self, duration: Duration) -> Phase {
        Phase {
            arrival: Arrival::Poisson,
            rate: self.rate,
            duration,
            warmup: Duration::ZERO,
            closed: None,
            live: Progress::Terminal,
            traced: false,
        }
    }

    /// What the switch calls itself; `None` when it does not say.
    pub(crate) fn version(&self) -> Option<String> {
        let told = std::process::Command::new(&self.deployment.payswitch).arg("--version").output();
        let told = told.ok().filter(|told| told.status.success())?;
        let text = String::from_utf8_lossy(&told.stdout);
        text.lines().next().map(|line| line.trim().trim_start_matches("payswitch ").to_owned())
    }

    /// Whether a site runs; a failure when not.
    pub(crate) fn runs(&self, site: u8) -> Result<(), Failure> {
        self.switches.running(site, |_| Ok(()))
    }

    /// kill -9 of a site.
    pub(crate) async fn kill(&self, site: u8) -> Result<(), Failure> {
        self.switches.take(site)?.kill().await;
        self.switches.leave(site)
    }

    /// SIGTERM of a site, and its clean end.
    pub(crate) async fn stop(&self, site: u8) -> Result<(), Failure> {
        self.switches.take(site)?.stop().await?;
        self.switches.leave(site)
    }

    /// Starts a site that does not run, and waits until it is ready.
    pub(crate) async fn start(&self, site: u8) -> Result<(), Failure> {
        self.switches.claim(site)?;
        let mut process = self.deployment.start(site)?;
        self.deployment.ready(site, &mut process).await?;
        self.switches.put(site, process)
    }

    /// Starts a site that does not run, and does not wait for it.
    pub(crate) fn start_only(&self, site: u8) -> Result<(), Failure> {
        self.switches.claim(site)?;
        self.switches.put(site, self.deployment.start(site)?)
    }

    /// Waits for a site's end that nobody asked for: its exit code and what it printed.
    pub(crate) async fn end_of(&self, site: u8) -> Result<(Option<i32>, String), Failure> {
        let process = self.switches.take_ended(site)?;
        let output = self.deployment.file(&format!("site-{site}.out"));
        let code = process.end_by_itself(ENDS_IN).await?;
        self.switches.leave(site)?;
        Ok((code, std::fs::read_to_string(output).unwrap_or_default()))
    }

    /// What a site printed since it was first started.
    pub(crate) fn printed(&self, site: u8) -> String {
        let output = self.deployment.file(&format!("site-{site}.out"));
        std::fs::read_to_string(output).unwrap_or_default()
    }

    /// SIGHUP of a site, and its answer, which must be this.
    pub(crate) async fn reload(&self, site: u8, says: &str) -> Result<(), Failure> {
        let before = self.printed(site).len();
        self.switches.running(site, Process::hang_up)?;
        let started = Instant::now();
        loop {
            let printed = self.printed(site);
            let new = printed.get(before..).unwrap_or_default();
            if new.contains(says) {
                return Ok(());
            }
            if new.contains("reload refused") || started.elapsed() > TOLD_IN {
                let text = format_args!("site {site} does not reload: {}", new.trim());
                return Err(Failure::new(Exit::Missed, text));
            }
            tokio::time::sleep(TOLD_POLL).await;
        }
    }

    /// Gives the channel these faults; `None`: its usual ones.
    pub(crate) async fn spoil(&self, faults: Option<&[String]>) -> Result<(), Failure> {
        write_plan(&self.deployment, faults.unwrap_or(&self.usual))?;
        let taken = |printed: &str| printed.matches("plan ").count();
        let before = taken(&self.channel.printed());
        self.channel.hang_up()?;
        let started = Instant::now();
        while taken(&self.channel.printed()) == before {
            if started.elapsed() > TOLD_IN {
                return Err(self.channel.failure("does not take its plan over"));
            }
            tokio::time::sleep(TOLD_POLL).await;
        }
        match self.channel.printed().lines().rev().find(|line| line.starts_with("plan ")) {
            Some(line) if line.contains("refused") => Err(Failure::usage(line)),
            _ => Ok(()),
        }
    }

    /// A site whose log is damaged stays out: its log is no evidence any more, and all
    /// that is acknowledged must be in every other's.
    pub(crate) fn leave_out(&self, site: u8) {
        self.out.set(site);
    }

    /// What the audit reads now.
    fn evidence(&self) -> Evidence {
        let members: Vec<PathBuf> = self.members().map(|site| self.deployment.data(site)).collect();
        let mut evidence = self.evidence.clone();
        evidence
            .logs
            .retain(|log| matches!(log, Source::Dump { data, .. } if members.contains(data)));
        evidence
    }

    /// The sites whose logs count.
    fn members(&self) -> impl Iterator<Item = u8> + use<> {
        let (out, joined, founders) =
            (self.out.get(), self.joined.get(), self.deployment.sites().count() as u8);
        self.deployment.places().filter(move |site| *site != out && (*site <= founders || joined))
    }

    /// The spare takes the place of a site that is out for good: under its own number, with
    /// nothing on its disk. Operators would do the same.
    pub(crate) async fn replace(&self, lost: u8) -> Result<u8, Failure> {
        let spare = self.deployment.spare();
        let spare = spare.ok_or_else(|| Failure::usage("this story has no spare site"))?;
        let other = self.deployment.sites().find(|site| *site != lost).unwrap_or(1);
        self.switches.claim(spare)?;
        let mut process = self.deployment.start(spare)?;
        for (verb, site) in [("add", spare), ("remove", lost)] {
            self.change_members(other, verb, site).await?;
        }
        self.deployment.ready(spare, &mut process).await?;
        self.deployment.linked(spare, &mut process).await?;
        self.switches.put(spare, process)?;
        self.joined.set(true);
        Ok(spare)
    }

    /// `admin member`, which is repeated when it fails: a hand-over may be in its way.
    async fn change_members(&self, at: u8, verb: &str, site: u8) -> Result<(), Failure> {
        let number = site.to_string();
        let words = ["member", verb, &number];
        for _ in 1..MEMBER_TRIES {
            if self.deployment.operate(at, &words).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(MEMBER_PAUSE).await;
        }
        self.deployment.operate(at, &words).await
    }

    /// The process of a site that runs.
    pub(crate) fn process_id(&self, site: u8) -> Result<u32, Failure> {
        self.switches.running(site, |process| Ok(process.id()))
    }

    /// Stops a site's process where it stands, or lets it go on.
    pub(crate) fn freeze(&self, site: u8, frozen: bool) -> Result<(), Failure> {
        self.switches.running(site, |process| match frozen {
            true => process.pause(),
            false => process.resume(),
        })
    }

    /// Has the relay carry a control line out.
    pub(crate) async fn relay(&self, line: &str) -> Result<(), Failure> {
        match &self.relay {
            Some(relay) => relay.command(line).await,
            None => Err(Failure::usage("this story has no relay")),
        }
    }

    /// The process of the relay, where there is one.
    pub(crate) fn relay_process(&self) -> Option<u32> {
        self.relay.as_ref().map(Relay::id)
    }

    /// What the relay did with packets so far.
    pub(crate) async fn relay_stats(&self) -> Result<Stats, Failure> {
        match &self.relay {
            Some(relay) => relay.stats().await,
            None => Err(Failure::usage("this story has no relay")),
        }
    }

    /// Round trips between the sites as these measure them, seconds.
    pub(crate) async fn round_trips(&self) -> Vec<f64> {
        let mut all = Vec::new();
        for site in self.deployment.sites() {
            let page = self.deployment.metrics(site).await.unwrap_or_default();
            all.extend(values::<f64>(&page, "payswitch_peer_round_trip_seconds"));
        }
        all
    }

    /// Whether a site has applied everything that the others had a moment ago.
    pub(crate) async fn is_level(&self, site: u8) -> bool {
        let mut wanted = vec![0; self.deployment.gateway.shards.into()];
        for other in self.deployment.places().filter(|other| *other != site) {
            let Some(status) = self.deployment.status(other).await else { continue };
            for shard in &status.shards {
                if let Some(wanted) = wanted.get_mut(usize::from(shard.shard)) {
                    *wanted = shard.applied.max(*wanted);
                }
            }
        }
        let Some(status) = self.deployment.status(site).await else { return false };
        status.shards.len() == wanted.len()
            && status.shards.iter().all(|shard| {
                wanted.get(usize::from(shard.shard)).is_some_and(|w| shard.applied >= *w)
            })
    }

    /// Asks for payments without a final answer until they have one, and waits for
    /// refunds in doubt and for events on their way; tells how many are left.
    pub(crate) async fn settle(&self, stop: &Stop) -> Result<usize, Failure> {
        self.delivered.set(false);
        let watch = Watch::new();
        let left = self.session.settle(SETTLE_MAX, stop).await?;
        watch.check("the wait for open payments")?;
        let settled = async { Ok(self.deployment.settled(SETTLE_MAX).await) };
        let open = watch.unless_told("the wait for open payments", settled).await?;
        // A refund's event may come long after its payment's: the sites know of both.
        let delivered = async { Ok(self.deployment.delivered(SETTLE_MAX).await) };
        let held = watch.unless_told("the wait for events", delivered).await?;
        self.delivered.set(held == 0);
        Ok(left.max(open as usize).max(held as usize))
    }

    fn events_due(&self) -> EventsDue {
        if self.delivered.get() { EventsDue::All } else { EventsDue::None }
    }

    /// Audits beside the running sites: what is acknowledged is in their logs.
    pub(crate) fn audit(&self) -> Result<Audit, Failure> {
        let moment = Moment { settled: true, events: self.events_due(), at_rest: false };
        audit::audit(&self.evidence(), moment)
    }

    /// Audits what a story left that broke off. What is a moment from its end comes to it,
    /// then the sites are killed: nothing moves while it is read, and the rest may be open.
    pub(crate) async fn broken_off(self, stop: &Stop) -> Result<Audit, Failure> {
        // Why it broke off is known already; that sites do not settle now is no news. Nor is
        // what was told before: only from now on it ends this wait. Perhaps nobody is there any
        // more to answer: it is short.
        interrupt::forget();
        drop(tokio::time::timeout(SETTLE_MAX, self.settle(stop)).await);
        let evidence = self.evidence();
        self.session.close().await;
        for process in self.switches.take_all() {
            process.kill().await;
        }
        audit::audit(&evidence, Moment { settled: false, events: EventsDue::None, at_rest: false })
    }

    /// Asks for everything once more, of which all must be answered: every site runs, is
    /// level and knows what was ever sent, so that a question without an answer hides what
    /// the audit is to see. What was not answered is no failure yet: see [`Again::check`].
    pub(crate) async fn ask_again(&self, stop: &Stop) -> Result<Again, Failure> {
        let all = self.session.payments(|known| known != Known::Nothing);
        let answers = self.session.query(&all, stop).await?;
        println!("   {} payments asked for once more, {} answered.", all.len(), answers.answered);
        Ok(Again { asked: all.len() as u64, answered: answers.answered })
    }

    /// Stops the sites, checks their logs and audits.
    pub(crate) async fn end(self) -> Result<Audit, Failure> {
        let (audit, ended) = self.ended().await;
        ended.and(audit)
    }

    /// As [`Self::end`]. What does not end as it should is told, and audited all the same: as
    /// what broke off, for the rest may be open.
    pub(crate) async fn ended(self) -> (Result<Audit, Failure>, Result<(), Failure>) {
        let (evidence, events) = (self.evidence(), self.events_due());
        let mut members = self.members();
        self.session.close().await;
        let stopped = all_stopped(self.switches.take_all()).await;
        let ended =
            stopped.and_then(|()| members.try_for_each(|site| self.deployment.verify_log(site)));
        let moment = match ended {
            Ok(()) => Moment { settled: true, events, at_rest: true },
            Err(_) => Moment { settled: false, events: EventsDue::None, at_rest: false },
        };
        (audit::audit(&evidence, moment), ended)
    }
}

/// Stops processes at the same time: all of them, whatever becomes of one.
async fn all_stopped(processes: Vec<Process>) -> Result<(), Failure> {
    let mut stopping = Vec::new();
    for process in processes {
        stopping.push(tokio::task::spawn_local(process.stop()));
    }
    let mut all = Ok(());
    for stopped in stopping {
        let lost = |_| Failure::environment("a site's end was not seen");
        all = all.and(stopped.await.map_err(lost).flatten());
    }
    all
}

/// Payments that were asked for once more, in the end.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Again {
    asked: u64,
    answered: u64,
}

impl Again {
    /// All of them must have been answered.
    pub(crate) fn check(self) -> Result<(), Failure> {
        let Self { asked, answered } = self;
        match asked.saturating_sub(answered) {
            0 => Ok(()),
            missing => {
                let text = format_args!(
                    "no data: of {asked} payments that were asked for once more {missing} were not answered"
                );
                Err(Failure::new(Exit::Invalid, text))
            }
        }
    }
}

/// Writes the channel's plan of faults, whole at every moment.
fn write_plan(deployment: &Deployment, faults: &[String]) -> Result<(), Failure> {
    let (path, fresh) = (deployment.file(CHANNEL_PLAN), deployment.file("channel.plan.new"));
    let written = std::fs::write(&fresh, faults.join("\n") + "\n");
    written.and_then(|()| std::fs::rename(&fresh, &path)).map_err(|error| {
        Failure::environment(format_args!("cannot write {}: {error}", path.display()))
    })
}

/// A deployment is fresh: the seed alone decides its numbers, and with them what the channel
/// does to each charge.
fn params(seed: u64, now_ms: u64, cast: &Cast<'_>, merchants: Vec<String>) -> Params {
    Params {
        seed,
        run_id: Stream::new(seed, RUN_ID_STREAM).below(0, SEEDED_BELOW),
        expire_ms: (now_ms / DAY_MS + 3) * DAY_MS,
        mix: cast.mix,
        duplicates_ppm: 20_000,
        conflicts_ppm: 10_000,
        bad_signatures_ppm: 0,
        hot_ppm: 0,
        notify: true,
        zipf: 0.5,
        lag: (cast.rate / 2.0).ceil() as u64,
        merchants,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_that_was_asked_for_in_vain_is_no_data() {
        assert_eq!(Again { asked: 7, answered: 7 }.check(), Ok(()));
        let failure = Again { asked: 7, answered: 5 }.check().err().unwrap();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.message.contains("of 7 payments that were asked for once more 2"));
    }

    #[tokio::test]
    async fn all_are_stopped_whatever_becomes_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let process = |name: &str, script: &str| {
            let mut command = std::process::Command::new("sh");
            let out = dir.path().join(name);
            Process::start(name, command.args(["-c", script]), &out).ok().unwrap()
        };
        let done = dir.path().join("done");
        let ends = format!(
            "trap 'touch {}; exit 0' TERM; echo up; while :; do sleep 0.02; done",
            done.display()
        );
        let processes = vec![process("bad", "echo up; exit 7"), process("good", &ends)];
        while !processes.iter().all(|process| process.printed().contains("up")) {
            tokio::time::sleep(TOLD_POLL).await;
        }
        let local = tokio::task::LocalSet::new();
        let failure = local.run_until(all_stopped(processes)).await.err().unwrap();
        assert!(failure.message.starts_with("bad "), "{}", failure.message);
        assert!(done.exists());
        assert_eq!(local.run_until(all_stopped(Vec::new())).await, Ok(()));
    }

    #[test]
    fn numbers_of_payments_are_the_seeds() {
        let cast = Cast {
            sites: 3,
            relay: false,
            rate: 100.0,
            mix: MIX,
            faults: &[],
            gear: Gear::default(),
        };
        let merchants = || vec!["M000001".to_owned(), "M000002".to_owned()];
        let numbers = |seed, now_ms| {
            let plan = Plan::new(params(seed, now_ms, &cast, merchants())).unwrap();
            let number = |n| plan.out_trade_no(n).as_str().to_owned();
            (0..50).map(number).collect::<Vec<String>>()
        };
        // So are the fates of their charges: the channel takes those from the numbers.
        let (now_ms, later_ms) = (1_700_000_000_000, 1_700_000_054_321);
        assert_eq!(numbers(1, now_ms), numbers(1, later_ms));
        assert_ne!(numbers(1, now_ms), numbers(2, now_ms));
        assert!(params(1, now_ms, &cast, merchants()).run_id < SEEDED_BELOW);
    }
}
