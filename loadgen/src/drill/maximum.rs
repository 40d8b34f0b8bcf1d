//! How much the sites take: a short search before a drill's own load.
//!
//! Open loops, each a step of a second or two at one offered rate. What counts is what
//! was answered as asked, at whatever rate was offered: beyond the maximum sites refuse,
//! and go on with the rest. The climb is pure and tested; steps are run here.

use super::stopped;
use crate::drive::{Phase, cpu_of_stat};
use crate::exit::{Exit, Failure};
use crate::goal::parse_duration_ns;
use crate::interrupt::Stop;
use crate::live::Progress;
use crate::report::was_bottleneck;
use crate::schedule::Arrival;
use crate::stage::Stage;
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

/// Factor of the climb.
const CLIMB: f64 = 1.6;
/// A rate is kept when this share of it is answered as asked.
const KEPT: f64 = 0.97;
/// Steps between the last rate that was kept and the first that was not.
const HALVINGS: u32 = 3;
/// Rates that are tried at most.
const STEPS_MAX: usize = 24;
/// Share of a step that is not measured.
const WARM_UP: f64 = 0.25;
/// Of the rates that were offered without distance, the lowest is offered with it, and
/// all from this share of the maximum on: what lies between says nothing.
const WORTH_IT: f64 = 0.6;
/// Shares of the maximum without distance that are offered with it, beside what was
/// offered without: those that decide.
const DECIDING: [f64; 3] = [0.8, 0.9, 1.0];

/// Part of a round trip that clients must feel: a median of a short step is no exact figure.
const FELT: f64 = 0.5;
/// Part of the round trip that the sites must have measured: theirs is smoothed.
const MEASURED: f64 = 0.9;
/// A relay that uses more of a core may be the limit.
const RELAY_CORES_MAX: f64 = 0.9;

/// One rate, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Step {
    /// Requests per second.
    pub(super) offered: f64,
    /// Answered as asked, per second.
    pub(super) answered: f64,
    /// From the planned time; `null` when not even that share was answered.
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    /// The rate was not kept, and it was the generator that was late.
    pub(super) generator_late: bool,
    /// Cores that the relay between the sites used while requests were offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) relay_cores: Option<f64>,
}

/// The most that was answered, and how that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Maximum {
    /// Answers per second.
    pub(super) answered: f64,
    /// Every step.
    pub(super) steps: Vec<Step>,
}

/// The same offered rates with and without distance between the sites.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Distance {
    /// As the relay was told.
    pub(super) line: String,
    pub(super) near: Maximum,
    pub(super) far: Maximum,
    /// What half of the sites measured between each other with it, at least.
    pub(super) round_trip_ms: Option<f64>,
    /// Packets that the relay had no room for.
    pub(super) relay_dropped: u64,
    /// Those of them without distance.
    pub(super) near_dropped: u64,
    /// Datagrams that any process of this machine had no room for meanwhile.
    pub(super) udp_buffer_errors: u64,
}

impl Maximum {
    fn of(steps: Vec<Step>) -> Self {
        let answered = steps.iter().map(|step| step.answered).fold(0.0, f64::max);
        Self { answered, steps }
    }

    /// A maximum that was looked for, and not one of given rates.
    fn found(steps: Vec<Step>) -> Result<Self, Failure> {
        let maximum = Self::of(steps);
        match maximum.answered > 0.0 {
            true => Ok(maximum),
            false => Err(Failure::new(Exit::Invalid, "no maximum: nothing was answered")),
        }
    }

    /// Median at the lowest rate that was offered.
    fn calm_p50_ms(&self) -> Option<f64> {
        self.steps.iter().min_by(|a, b| a.offered.total_cmp(&b.offered))?.p50_ms
    }

    /// The most that the relay used in any step.
    fn relay_cores(&self) -> Option<f64> {
        self.steps.iter().filter_map(|step| step.relay_cores).reduce(f64::max)
    }
}

impl Distance {
    /// Share of the maximum that is left; `None` when it may be the relay's, or when there
    /// was no distance.
    pub(super) fn share(&self) -> Option<f64> {
        let says = self.is_of_the_sites() && self.is_felt();
        says.then(|| self.far.answered / self.near.answered)
    }

    /// Whether anybody felt the distance: clients half a round trip more at least, at the
    /// lowest rate, which is far from any limit, or else the sites most of it. When not even
    /// half was answered there that says enough.
    fn is_felt(&self) -> bool {
        let Some(wanted_ms) = round_trip_ms(&self.line) else { return true };
        match (self.near.calm_p50_ms(), self.far.calm_p50_ms()) {
            (Some(near), Some(far)) => {
                far - near >= wanted_ms * FELT
                    || self.round_trip_ms.is_some_and(|ms| is_measured(ms, wanted_ms))
            }
            (near, None) => near.is_some(),
            (None, Some(_)) => false,
        }
    }

    /// Whether the relay left the sites their maximum. What it drops with the distance
    /// only counts against them.
    fn is_of_the_sites(&self) -> bool {
        self.near_dropped == 0 && self.relay_cores().is_none_or(|cores| cores <= RELAY_CORES_MAX)
    }

    /// The most of a core that the relay used, without or with the distance.
    fn relay_cores(&self) -> Option<f64> {
        let both = [self.near.relay_cores(), self.far.relay_cores()];
        both.into_iter().flatten().reduce(f64::max)
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        let cores = |of: &Maximum| of.relay_cores().unwrap_or(f64::NAN);
        write!(
            f,
            "{:.0}/s without and {:.0}/s with {}: {:.1} %; p50 at the lowest rate {} and {} ms; \
             sites measured a round trip of {} ms; the relay used {:.2} and {:.2} of a core at most and dropped {} and {} packets, {} \
             datagrams found no room anywhere",
            self.near.answered,
            self.far.answered,
            self.line,
            self.far.answered / self.near.answered * 100.0,
            ms(self.near.calm_p50_ms()),
            ms(self.far.calm_p50_ms()),
            ms(self.round_trip_ms),
            cores(&self.near),
            cores(&self.far),
            self.near_dropped,
            self.relay_dropped.saturating_sub(self.near_dropped),
            self.udp_buffer_errors,
        )?;
        match (self.is_of_the_sites(), self.is_felt()) {
            (true, true) => Ok(()),
            (true, false) => {
                f.write_str(": nobody felt a distance, so that it says nothing of the sites")
            }
            (false, _) => {
                f.write_str(": that may be the relay's limit, and says nothing of the sites")
            }
        }
    }
}

/// Milliseconds there and back of `delay=5ms`, among the relay's other words; `None`
/// without a delay.
pub(super) fn round_trip_ms(line: &str) -> Option<f64> {
    let delay = line.split_whitespace().find_map(|word| word.strip_prefix("delay="))?;
    parse_duration_ns(delay).map(|ns| 2.0 * ns as f64 / 1e6).filter(|ms| *ms > 0.0)
}

/// What half of these round trips are at least, milliseconds of seconds. What is 0 was never
/// measured.
pub(super) fn middle_ms(mut round_trips: Vec<f64>) -> Option<f64> {
    round_trips.retain(|seconds| *seconds > 0.0);
    round_trips.sort_unstable_by(f64::total_cmp);
    round_trips.get(round_trips.len() / 2).map(|seconds| seconds * 1e3)
}

/// Whether a round trip that sites measured is the one that was asked for.
pub(super) fn is_measured(ms: f64, wanted_ms: f64) -> bool {
    ms >= wanted_ms * MEASURED
}

/// Which rate comes next.
#[derive(Clone, Copy, Debug)]
struct Climb {
    kept: f64,
    missed: Option<f64>,
    next: f64,
    halvings: u32,
}

impl Climb {
    fn new(first: f64) -> Self {
        Self { kept: 0.0, missed: None, next: first, halvings: 0 }
    }

    /// Takes whether the rate was kept; false: that was the last.
    fn tell(&mut self, kept: bool) -> bool {
        match kept {
            true => self.kept = self.next,
            false => self.missed = Some(self.next),
        }
        match self.missed {
            None => self.next *= CLIMB,
            Some(missed) => {
                self.halvings += 1;
                self.next = (self.kept + missed) / 2.0;
            }
        }
        self.halvings <= HALVINGS
    }
}

/// Looks for the maximum from a rate on.
pub(super) async fn maximum(
    stage: &Stage,
    first: f64,
    length: Duration,
    stop: &Stop,
) -> Result<Maximum, Failure> {
    let (mut climb, mut steps) = (Climb::new(first), Vec::new());
    loop {
        let step = run(stage, climb.next, length, stop).await?;
        steps.push(step);
        if !climb.tell(step.is_kept()) || steps.len() >= STEPS_MAX {
            return Maximum::found(steps);
        }
    }
}

/// The maximum without distance, and what is answered of the same rates with it.
pub(super) async fn distance(
    stage: &Stage,
    line: &str,
    (first, length): (f64, Duration),
    stop: &Stop,
) -> Result<Distance, Failure> {
    let (errors, dropped) = (udp_buffer_errors(), stage.relay_stats().await?.dropped);
    let near = maximum(stage, first, length, stop).await?;
    let near_dropped = stage.relay_stats().await?.dropped.saturating_sub(dropped);
    let mut offered: Vec<f64> = near.steps.iter().map(|step| step.offered).collect();
    let lowest = offered.iter().copied().fold(f64::INFINITY, f64::min);
    offered.retain(|rate| *rate >= WORTH_IT * near.answered || *rate <= lowest);
    offered.extend(DECIDING.map(|share| share * near.answered));
    offered.sort_unstable_by(f64::total_cmp);
    stage.relay(&format!("set *-* {line}")).await?;
    let mut steps = Vec::new();
    for rate in offered {
        steps.push(run(stage, rate, length, stop).await?);
    }
    let round_trip_ms = middle_ms(stage.round_trips().await);
    stage.relay("heal").await?;
    let distance = Distance {
        line: line.to_owned(),
        near,
        far: Maximum::of(steps),
        round_trip_ms,
        near_dropped,
        relay_dropped: stage.relay_stats().await?.dropped.saturating_sub(dropped),
        udp_buffer_errors: udp_buffer_errors().saturating_sub(errors),
    };
    println!("distance    {distance}");
    Ok(distance)
}

impl Step {
    fn is_kept(&self) -> bool {
        self.answered >= self.offered * KEPT
    }
}

/// Runs a step; once more when its rate was not kept because of the generator, of which
/// the maximum is not asked.
async fn run(stage: &Stage, offered: f64, length: Duration, stop: &Stop) -> Result<Step, Failure> {
    let step = run_once(stage, offered, length, stop).await?;
    if !step.generator_late {
        return Ok(step);
    }
    println!("maximum     the generator was the bottleneck at {offered:.0}/s: once more");
    let step = run_once(stage, offered, length, stop).await?;
    match step.generator_late {
        true => Err(Failure::new(
            Exit::Invalid,
            format_args!("no maximum: the generator was the bottleneck at {offered:.0}/s"),
        )),
        false => Ok(step),
    }
}

async fn run_once(
    stage: &Stage,
    offered: f64,
    length: Duration,
    stop: &Stop,
) -> Result<Step, Failure> {
    let phase = Phase {
        // Evenly: chance has no part in whether a rate is kept.
        arrival: Arrival::Constant,
        rate: offered,
        warmup: length.mul_f64(WARM_UP),
        live: Progress::Terminal,
        ..stage.phase(length)
    };
    // The wait for the last answers is no load.
    let relay = async {
        let (before, started) = (relay_seconds(stage), Instant::now());
        tokio::time::sleep(length).await;
        let used = before.zip(relay_seconds(stage)).map(|(before, after)| after - before);
        used.map(|used| used / started.elapsed().as_secs_f64())
    };
    let (outcome, relay_cores) = tokio::join!(stage.session.run(&phase, stop), relay);
    let outcome = outcome?;
    if outcome.interrupted {
        return Err(stopped());
    }
    let measure = &outcome.measure;
    let (latency, _) = measure.overall();
    let ms = |share| latency.quantile(share).map(|ns| ns as f64 / 1e6);
    let answered = measure.ok_in_span as f64 * 1e9 / measure.span_ns().max(1) as f64;
    let (p50_ms, p99_ms) = (ms(0.5), ms(0.99));
    let mut step = Step { offered, answered, p50_ms, p99_ms, generator_late: false, relay_cores };
    // What was kept was kept, however late.
    step.generator_late = !step.is_kept() && was_bottleneck(measure);
    let text = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    println!(
        "maximum     offered {offered:>8.0}/s  answered {answered:>8.0}/s  p50 {} p99 {} ms",
        text(step.p50_ms),
        text(step.p99_ms)
    );
    Ok(step)
}

/// CPU seconds of the relay so far; `None` without one.
fn relay_seconds(stage: &Stage) -> Option<f64> {
    let id = stage.relay_process()?;
    cpu_of_stat(&std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// Datagrams that found no room in any process's socket; 0 when the kernel does not say.
fn udp_buffer_errors() -> u64 {
    buffer_errors(&std::fs::read_to_string("/proc/net/snmp").unwrap_or_default())
}

fn buffer_errors(snmp: &str) -> u64 {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let columns = names.split(' ').zip(values.split(' '));
    let errors = columns.filter(|(name, _)| matches!(*name, "RcvbufErrors" | "SndbufErrors"));
    errors.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(offered: f64, answered: f64) -> Step {
        let p50_ms = Some(offered);
        Step { offered, answered, p50_ms, p99_ms: None, generator_late: false, relay_cores: None }
    }

    #[test]
    fn a_climb_ends_near_what_a_made_up_switch_takes() {
        for (first, takes) in [(100.0, 1_234.0), (500.0, 90_000.0), (900.0, 1_000.0)] {
            let (mut climb, mut best, mut tries) = (Climb::new(first), 0.0_f64, 0);
            loop {
                // Beyond its maximum it loses a tenth.
                let answered = if climb.next > takes { takes * 0.9 } else { climb.next };
                best = best.max(answered);
                tries += 1;
                if !climb.tell(answered >= climb.next * KEPT) {
                    break;
                }
            }
            assert!((takes * 0.93..=takes).contains(&best), "{best} of {takes}");
            assert!(tries < STEPS_MAX, "{tries}");
        }
        // One that takes nothing is left soon.
        let mut climb = Climb::new(100.0);
        assert_eq!((0..10).take_while(|_| climb.tell(false)).count() as u32, HALVINGS);
    }

    #[test]
    fn the_maximum_is_what_was_answered_at_any_rate() {
        let maximum = Maximum::of(vec![step(100.0, 100.0), step(300.0, 180.0), step(50.0, 49.0)]);
        assert_eq!((maximum.answered, maximum.calm_p50_ms()), (180.0, Some(50.0)));
        assert_eq!(Maximum::found(vec![step(9.0, 0.0)]).err().unwrap().exit, Exit::Invalid);
        let far = Maximum { answered: 90.0, steps: vec![step(70.0, 70.0)] };
        let distance = of(maximum, far);
        assert_eq!((distance.share(), distance.far.calm_p50_ms()), (Some(0.5), Some(70.0)));
        assert!(distance.to_string().contains(": 50.0 %; p50 at the lowest rate 50.0 and 70.0 ms"));
    }

    fn of(near: Maximum, far: Maximum) -> Distance {
        let (line, relay_dropped, near_dropped, udp_buffer_errors) = (String::new(), 0, 0, 0);
        let round_trip_ms = None;
        Distance { line, near, far, round_trip_ms, relay_dropped, near_dropped, udp_buffer_errors }
    }

    #[test]
    fn nothing_answered_with_the_distance_is_no_share_and_a_busy_relay_is_no_answer() {
        let busy = |cores| Step { relay_cores: Some(cores), ..step(100.0, 100.0) };
        let near = Maximum::of(vec![busy(0.5)]);
        let none = of(near.clone(), Maximum::of(vec![step(100.0, 0.0)]));
        assert_eq!(none.share(), Some(0.0));
        for (near_cores, far_cores, says) in
            [(0.5, 0.9, true), (0.5, 0.91, false), (0.91, 0.1, false)]
        {
            let [near, far] = [near_cores, far_cores].map(|cores| Maximum::of(vec![busy(cores)]));
            let distance = of(near, far);
            assert_eq!(distance.share().is_some(), says, "{distance}");
            assert_eq!(distance.to_string().contains("says nothing"), !says, "{distance}");
        }
        let lossless = of(near.clone(), near);
        assert_eq!(Distance { relay_dropped: 3, ..lossless.clone() }.share(), Some(1.0));
        let lossy = Distance { relay_dropped: 3, near_dropped: 3, ..lossless };
        assert_eq!(lossy.share(), None);
    }

    #[test]
    fn a_distance_that_nobody_felt_proves_nothing() {
        let far_by = |near: Option<f64>, far: Option<f64>| {
            let of = |p50_ms| Maximum::of(vec![Step { p50_ms, ..step(100.0, 100.0) }]);
            let line = "delay=5ms jitter=1ms".to_owned();
            Distance { line, ..super::tests::of(of(near), of(far)) }
        };
        for (near, far, says) in [
            (Some(2.0), Some(7.0), true),
            (Some(2.0), Some(6.9), false),
            (Some(2.0), None, true),
            (None, Some(20.0), false),
            (None, None, false),
        ] {
            let distance = far_by(near, far);
            assert_eq!(distance.share().is_some(), says, "{distance}");
            assert_eq!(distance.to_string().contains("nobody felt"), !says, "{distance}");
        }
        // What clients do not feel the sites may have measured.
        for (ms, says) in [(9.0, true), (8.9, false)] {
            let distance = far_by(Some(9.0), Some(6.0));
            let distance = Distance { round_trip_ms: Some(ms), ..distance };
            assert_eq!(distance.share().is_some(), says, "{distance}");
        }
        assert_eq!(middle_ms(vec![0.0, 0.5, 0.0625, 0.25]), Some(250.0));
        assert_eq!(middle_ms(vec![0.0]), None);
        assert_eq!(round_trip_ms("loss=1% delay=2500us"), Some(5.0));
        assert_eq!((round_trip_ms("loss=1%"), round_trip_ms("delay=0ms")), (None, None));
    }

    #[test]
    fn errors_of_buffers_are_found_by_their_names() {
        let snmp = "Tcp: A B\nTcp: 1 2\nUdp: InDatagrams RcvbufErrors SndbufErrors InCsumErrors\n\
                    Udp: 100 7 3 1\nUdpLite: RcvbufErrors\nUdpLite: 50\n";
        assert_eq!((buffer_errors(snmp), buffer_errors("")), (10, 0));
    }
}
