//! Drives the load: connections to the sites, a table of requests in flight,
//! and the loop that sends what is due and takes what is answered.
//!
//! One thread does it all (a current-thread runtime); the pacer wakes it. `state`
//! decides, `link` moves bytes, `slots` remembers. Never judges the figures. Tested
//! against in-process servers over loopback.

mod answer;
#[cfg(test)]
mod cluster_tests;
mod events;
mod link;
mod multi;
mod sites;
mod slots;
mod state;
#[cfg(test)]
mod tests;

use crate::acks::AckWriter;
use crate::config::{GatewayFile, SiteEntry};
use crate::encode::Encoder;
use crate::exit::Failure;
use crate::host::{CpuTimes, Host};
use crate::interrupt::{self, Stop, Watch};
use crate::live::{Progress, View};
use crate::measure::Measure;
use crate::pace::{Pace, Pacer, Pacing};
use crate::plan::Plan;
use crate::schedule::{Arrival, Schedule};
use crate::series::Timeline;
use crate::socket;
use crate::tls::{self, ALPN_GATEWAY, Credentials};
use crate::trace::Done;
pub(crate) use events::EventCounts;
use link::Link;
use state::State;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

pub(crate) use slots::IN_FLIGHT_LIMIT;
pub(crate) use state::{DURATION_MAX, Known};

/// How to drive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Connections, spread over the sites; at least one to each.
    pub(crate) connections: usize,
    /// Streams of each.
    pub(crate) streams: usize,
    /// Most requests in flight or waiting to be sent.
    pub(crate) in_flight_max: usize,
    /// A request without answer for this long is given up as unknown.
    pub(crate) deadline: Duration,
    /// How the pacer waits.
    pub(crate) pace: Pace,
    /// Its tick.
    pub(crate) tick: Duration,
    /// Which of the plan's requests are sent here.
    pub(crate) part: Part,
    /// Subscribe to outcome events, at every site.
    pub(crate) events: bool,
}

impl Options {
    /// How a phase is paced.
    pub(crate) fn pacing(&self, phase: &Phase) -> Pacing {
        let (watch_from, watch_until) = (phase.warmup, phase.duration);
        Pacing { pace: self.pace, tick: self.tick, watch_from, watch_until }
    }
}

/// A share of the plan: the same requests at the same times, however many share them.
/// What is about a payment is sent where the payment is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Which, from 0.
    pub(crate) index: u64,
    /// Of how many.
    pub(crate) of: u64,
}

impl Part {
    /// All of it.
    pub(crate) const ALL: Self = Self { index: 0, of: 1 };
}

/// One stretch of load.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    /// How requests arrive.
    pub(crate) arrival: Arrival,
    /// Requests per second.
    pub(crate) rate: f64,
    /// How long.
    pub(crate) duration: Duration,
    /// What of it is not measured.
    pub(crate) warmup: Duration,
    /// Instead of a rate: this many always in flight.
    pub(crate) closed: Option<usize>,
    /// What is shown while it runs.
    pub(crate) live: Progress,
    /// Keep what became of every request.
    pub(crate) traced: bool,
}

/// What a phase gives.
pub(crate) struct Outcome {
    /// Figures.
    pub(crate) measure: Measure,
    /// What became of every request, when that was wanted.
    pub(crate) trace: Vec<Done>,
    /// Figures over time.
    pub(crate) timeline: Timeline,
    /// When the phase began.
    pub(crate) start: Instant,
    /// CPU seconds of this process.
    pub(crate) cpu_s: f64,
    /// What the host took away.
    pub(crate) host: Host,
    /// Whether it was stopped before its end.
    pub(crate) interrupted: bool,
}

/// Silence after which a connection counts as lost, and the interval in which
/// it is kept from being silent.
const IDLE: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_millis(100);
/// Wait for the sites that are still missing when most are connected.
const CONNECT_MOST: Duration = Duration::from_secs(2);
/// Longest wait for the first connections.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Interval of everything that is not per request. With several sites this is how
/// soon a silent one is noticed.
const HOUSEKEEPING: Duration = Duration::from_millis(10);

/// Queries in flight at once when many payments are asked for.
const QUERIES_AT_ONCE: usize = 1_000;
/// Pause before payments that are still open are asked for again.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

/// Connected gateway; runs phases one after the other.
pub(crate) struct Session {
    state: Rc<RefCell<State>>,
    endpoint: quinn::Endpoint,
    options: Options,
    seed: u64,
}

impl Session {
    /// Connects to every site; must run in a [`tokio::task::LocalSet`].
    pub(crate) async fn connect(
        gateway: &GatewayFile,
        plan: Rc<Plan>,
        encoder: Encoder,
        acks: Option<AckWriter>,
        options: Options,
    ) -> Result<Self, Failure> {
        let credentials = Credentials::load(&gateway.cert, &gateway.key, &gateway.ca)?;
        let transport = tls::transport(0, 4, IDLE, Some(KEEP_ALIVE));
        let client = credentials.client(ALPN_GATEWAY, transport)?;
        let unspecified = match gateway.sites[0].address {
            std::net::SocketAddr::V4(_) => "0.0.0.0:0",
            std::net::SocketAddr::V6(_) => "[::]:0",
        };
        let local = unspecified.parse().expect("a literal address");
        let endpoint = socket::endpoint(local, None)?;
        let seed = plan.params().seed;
        let sites: &[SiteEntry] = &gateway.sites;
        let links = (0..options.connections.max(sites.len()))
            .map(|number| Link::new(number, &sites[number % sites.len()], options.streams))
            .collect();
        let state = State::new(plan, encoder, acks, links, gateway.shards, options);
        let state = Rc::new(RefCell::new(state));
        for (number, link) in state.borrow().links().iter().enumerate() {
            // One to each site is enough: subscriptions share the events.
            link.listens.set(options.events && number < sites.len());
            link.keep_up(&state, &endpoint, &client);
        }
        let session = Self { state, endpoint, options, seed };
        Watch::new().unless_told("start-up", session.wait_connected()).await?;
        Ok(session)
    }

    async fn wait_connected(&self) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let (up, all, error) = {
                let state = self.state.borrow();
                let up = state.links().iter().filter(|link| link.is_up()).count();
                (up, state.links().len(), state.links().iter().find_map(|link| link.last_error()))
            };
            // Most of several sites can do everything; the others are waited for a moment.
            let most = self.state.borrow().sites.is_some() && up * 2 > all;
            if up == all || most && started.elapsed() > CONNECT_MOST {
                return Ok(());
            }
            if started.elapsed() > CONNECT_MAX {
                let reason = error.unwrap_or_else(|| "no answer".to_owned());
                let hint = hint(&reason);
                return Err(Failure::environment(format_args!(
                    "cannot connect to most sites within {} s: {reason}; {hint}",
                    CONNECT_MAX.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Runs a phase to its end, every request answered or given up. `stop`
    /// ends it early.
    pub(crate) async fn run(&self, phase: &Phase, stop: &Stop) -> Result<Outcome, Failure> {
        let (outcome, ended) = self.drive(phase, stop).await?;
        ended.map(|()| outcome)
    }

    /// As [`Session::run`]; what was done until a failure in the middle of it is told
    /// beside the failure.
    pub(crate) async fn drive(
        &self,
        phase: &Phase,
        stop: &Stop,
    ) -> Result<(Outcome, Result<(), Failure>), Failure> {
        let cpu_before = cpu_seconds();
        let start = Instant::now();
        let schedule = Schedule::new(phase.arrival.clone(), phase.rate, phase.duration, self.seed);
        let pacer = match phase.closed {
            Some(_) => None,
            None => Some(
                Pacer::start(&schedule, start, self.options.pacing(phase)).map_err(cannot_pace)?,
            ),
        };
        self.state.borrow_mut().begin(phase, schedule, start);
        let mut ended = self.state.borrow_mut().pump();
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut interrupted, mut second) = (false, 0);
        let mut view = View::new(phase.live);
        let (mut before, mut after) = (None, None);
        while ended.is_ok() {
            tokio::select! {
                biased;
                () = due(pacer.as_ref()) => ended = self.pump(pacer.as_ref()),
                () = stop.notified() => {
                    self.state.borrow_mut().stop();
                    // Told again: what is still open stays so.
                    if std::mem::replace(&mut interrupted, true) {
                        self.state.borrow_mut().give_all_up();
                    }
                }
                _ = housekeeping.tick() => {
                    let mut state = self.state.borrow_mut();
                    ended = state.sweep();
                    let elapsed = start.elapsed();
                    if before.is_none() && elapsed >= phase.warmup {
                        before = Some(CpuTimes::read());
                    }
                    if after.is_none() && elapsed >= phase.duration {
                        after = Some(CpuTimes::read());
                    }
                    if elapsed.as_secs() > second {
                        second = elapsed.as_secs();
                        // A story ends its phase itself, long before its time.
                        let duration = (!phase.traced).then_some(phase.duration);
                        view.show(&state.close_second(second, duration));
                    }
                    if state.is_done() {
                        break;
                    }
                }
            }
        }
        if ended.is_err() {
            interrupted = true;
            self.state.borrow_mut().stop();
            self.state.borrow_mut().give_all_up();
        }
        let after = after.unwrap_or_else(CpuTimes::read);
        let host = Host::new(before.flatten(), after, pacer.map(Pacer::finish));
        let flushed = self.state.borrow_mut().flush();
        let mut measure = self.state.borrow_mut().take_measure();
        let timeline = measure.series.take().map(|series| series.finish()).unwrap_or_default();
        let trace = self.state.borrow_mut().take_trace();
        let cpu_s = cpu_seconds() - cpu_before;
        let outcome = Outcome { measure, trace, timeline, start, cpu_s, host, interrupted };
        Ok((outcome, ended.and(flushed)))
    }

    /// Sends what is due and has the pacer wait for the next.
    fn pump(&self, pacer: Option<&Pacer>) -> Result<(), Failure> {
        let mut state = self.state.borrow_mut();
        state.pump()?;
        pacer.map_or(Ok(()), |pacer| pacer.wait_for(state.next_due()).map_err(cannot_pace))
    }

    /// Shows what is being done to the system, in the view of a load that runs.
    pub(crate) fn note(&self, text: String) {
        self.state.borrow_mut().note(text);
    }

    /// Requests of the session that were planned so far.
    pub(crate) fn planned(&self) -> u64 {
        self.state.borrow().planned()
    }

    /// Notices of this phase that named another leader of a shard than before.
    pub(crate) fn leader_changes(&self) -> u64 {
        self.state.borrow().measure.leader_changes
    }

    /// Payments of the session in this state of knowledge.
    pub(crate) fn payments(&self, wanted: impl Fn(Known) -> bool) -> Vec<u64> {
        self.state.borrow().payments(wanted)
    }

    /// Tells the session about payments of an earlier run.
    pub(crate) fn remember(&self, payments: impl Iterator<Item = u64>) {
        self.state.borrow_mut().remember(payments);
    }

    /// Asks for the state of these payments, once each. A failure when told to stop before
    /// all were asked.
    pub(crate) async fn query(&self, payments: &[u64], stop: &Stop) -> Result<Measure, Failure> {
        let watch = Watch::new();
        let (measure, told) = self.queried(payments, stop).await?;
        let what = "the questions for payments";
        if told { Err(interrupt::stopped(what)) } else { watch.check(what).map(|()| measure) }
    }

    /// As [`Session::query`]; whether it was told to stop is told beside the figures.
    async fn queried(&self, payments: &[u64], stop: &Stop) -> Result<(Measure, bool), Failure> {
        let mut told = false;
        self.state.borrow_mut().begin_queries(payments, QUERIES_AT_ONCE);
        self.state.borrow_mut().pump()?;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        while !self.state.borrow().is_done() {
            tokio::select! {
                _ = housekeeping.tick() => self.state.borrow_mut().sweep()?,
                () = stop.notified() => {
                    told = true;
                    self.state.borrow_mut().stop();
                    self.state.borrow_mut().give_all_up();
                }
            }
        }
        self.state.borrow_mut().flush()?;
        Ok((self.state.borrow_mut().take_measure(), told))
    }

    /// Asks for every payment without a final answer until it has one, at most
    /// for `bound` or until told to stop, and waits as long for the events of outcomes that
    /// were told; returns how many payments and events are left.
    pub(crate) async fn settle(&self, bound: Duration, stop: &Stop) -> Result<usize, Failure> {
        let (started, watch, mut told) = (Instant::now(), Watch::new(), false);
        loop {
            let open = self.payments(|known| known == Known::Open);
            let missing = self.events().map_or(0, |events| events.missing);
            let done = open.is_empty() && missing == 0;
            if done || told || started.elapsed() > bound || !watch.quiet() {
                return Ok(open.len() + missing as usize);
            }
            if !open.is_empty() {
                told = self.queried(&open, stop).await?.1;
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }

    /// Counts of the events, when they are subscribed to.
    pub(crate) fn events(&self) -> Option<EventCounts> {
        self.state.borrow().event_counts()
    }

    /// Closes the connections.
    pub(crate) async fn close(self) {
        self.state.borrow().links().iter().for_each(|link| link.close());
        self.endpoint.close(0_u32.into(), b"done");
        // Gives the close frames a moment to leave; nothing depends on it.
        drop(tokio::time::timeout(Duration::from_millis(200), self.endpoint.wait_idle()).await);
    }
}

/// A closed loop waits for answers only.
async fn due(pacer: Option<&Pacer>) {
    match pacer {
        Some(pacer) => pacer.due().await,
        None => std::future::pending().await,
    }
}

fn cannot_pace(error: std::io::Error) -> Failure {
    Failure::environment(format_args!("cannot pace: {error}"))
}

/// What to look at when nobody can be connected to.
fn hint(reason: &str) -> &'static str {
    match reason.contains("certificate") || reason.contains("handshake failed") {
        true => "do cert, key and ca of the gateway's configuration belong to this cluster?",
        false => "is `payswitch serve` running?",
    }
}

impl Outcome {
    /// Takes in what another worker did at the same time.
    pub(crate) fn add(&mut self, other: Self) {
        self.measure.add(&other.measure);
        self.timeline.add(other.timeline);
        self.trace.extend(other.trace);
        // Of the whole process, seen by each.
        self.cpu_s = self.cpu_s.max(other.cpu_s);
        self.host.add(&other.host);
        self.interrupted |= other.interrupted;
    }
}

/// CPU seconds of this process so far, in the kernel's steps of 10 ms.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    cpu_of_stat(&stat).unwrap_or(0.0)
}

/// User and system time of a `/proc/PID/stat` line, in seconds.
pub(crate) fn cpu_of_stat(stat: &str) -> Option<f64> {
    // The name in parentheses may hold anything; fields count from behind it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}
