//! What a drill does to the cluster while load runs, and when.
//!
//! Moments and victims come from the seed. Every script heals what it broke; an
//! error ends the story, and with it all processes. `inject` carries it out.

use super::action::{Action, Course, Planned, Target};
use super::steady::{Changes, Sizes};
use super::turns::Turns;
use crate::cluster::STATUS_AGE;
use crate::exit::{Exit, Failure};
use crate::rng::Stream;
use crate::schedule::Arrival;
use crate::stage::Stage;
use serde::Serialize;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::{Duration, Instant};

/// Load before anything happens, at least.
pub(super) const LEAD: Duration = Duration::from_millis(1_500);
/// The moment is chosen within this.
const LEAD_SPREAD_MS: u64 = 1_000;
/// Load after the last fault, at least: whether all is as before must be seen.
const TAIL: Duration = Duration::from_millis(1_500);
/// Longest wait for leaders to stand still, or for a site to be level.
const RECOVERY_MAX: Duration = Duration::from_secs(20);
/// Longest wait for a site to lead again. One whose write hung for a moment does not want to for
/// 5 s, after the next such moment for 10 s, then for 20 s.
pub(super) const HOME_MAX: Duration = Duration::from_secs(30);
/// As long as it is worth to wait for one that may ask for more, of which nothing is judged.
pub(super) const HOME_SOON: Duration = Duration::from_secs(10);
pub(super) const POLL: Duration = Duration::from_millis(50);

/// One thing that was done to the cluster.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// What was done, in a few words.
    pub(super) what: String,
    /// The site that it hit; 0 when none in particular.
    pub(super) site: u8,
    /// Who led each shard just before.
    pub(super) leaders: Vec<u8>,
    /// When it was done.
    pub(super) at: Instant,
    /// When it was undone.
    pub(super) healed: Instant,
    /// When the site was level again, after it was healed.
    pub(super) level: Option<Duration>,
    /// Whether it led something again.
    pub(super) home: Home,
}

/// Whether a site that was healed came to lead something again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// It led nothing before, or nobody waited for it.
    NotAsked,
    /// It did, so long after it was healed.
    After(Duration),
    /// It did not within the time for it.
    Never,
}

impl Fault {
    /// Whether the site led this shard.
    pub(super) fn affects(&self, shard: u16) -> bool {
        self.site != 0 && self.leaders.get(usize::from(shard)) == Some(&self.site)
    }

    /// When it was over: its site level again, if it hit one.
    pub(super) fn over(&self) -> Instant {
        self.healed + self.level.unwrap_or_default()
    }

    /// As [`Self::over`], or later, when the site led something again.
    pub(super) fn home(&self) -> Instant {
        match self.home {
            Home::After(after) => self.over().max(self.healed + after),
            Home::NotAsked | Home::Never => self.over(),
        }
    }
}

/// What happened, in order.
pub(super) struct Told {
    /// The faults.
    pub(super) faults: Vec<Fault>,
    /// Who leads each shard at the end.
    pub(super) leaders: Vec<u8>,
    /// What only some drills look at.
    pub(super) found: Found,
}

/// What only some drills look at.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Found {
    /// How often leaders changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) changes: Option<Changes>,
    /// What files and processes take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sizes: Option<Sizes>,
}

/// When a drill's own faults begin, and how long they last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Timing {
    /// The first fault's moment.
    pub(super) lead: Duration,
    /// How long one lasts.
    pub(super) hold: Duration,
}

impl Timing {
    /// A pure function of the seed and the repetition's number.
    pub(super) fn new(seed: u64, repetition: u64, duration: Duration) -> Self {
        let spread = Stream::new(seed, 300).below(repetition * 64 + 1, LEAD_SPREAD_MS);
        Self { lead: LEAD + Duration::from_millis(spread), hold: duration.mul_f64(0.35) }
    }

    /// The load that goes with a course.
    pub(super) fn arrival(self, course: &Course) -> Result<Arrival, Failure> {
        let shape = match course {
            Course::One(Action::Load(times)) => {
                let (lead, hold) = (self.lead.as_secs_f64(), self.hold.as_secs_f64());
                format!("poisson+spike:{lead:.3}+{hold:.3}={times}")
            }
            Course::Planned { shape, .. } => shape.clone(),
            _ => return Ok(Arrival::Poisson),
        };
        Arrival::parse(&shape).map_err(Failure::usage)
    }
}

/// Plays a drill's script; load runs beside it for `duration` at least.
pub(super) struct Script<'a> {
    pub(super) stage: &'a Stage,
    moments: Stream,
    repetition: u64,
    draws: Cell<u64>,
    duration: Duration,
    timing: Timing,
    /// One fault at a time at each place.
    pub(super) turns: Turns,
}

impl<'a> Script<'a> {
    /// The script of one repetition.
    pub(super) fn new(stage: &'a Stage, seed: u64, repetition: u64, duration: Duration) -> Self {
        let timing = Timing::new(seed, repetition, duration);
        let moments = Stream::new(seed, 300);
        let turns = Turns::new(stage.deployment.places().count());
        // The first draw is the timing's.
        Self { stage, moments, repetition, draws: Cell::new(1), duration, timing, turns }
    }

    /// When its own faults come.
    pub(super) fn timing(&self) -> Timing {
        self.timing
    }

    /// Below `bound`.
    pub(super) fn draw(&self, bound: u64) -> u64 {
        self.draws.set(self.draws.get() + 1);
        self.moments.below(self.repetition * 64 + self.draws.get() % 64, bound)
    }

    /// Plays it.
    pub(super) async fn play(self, course: &Course) -> Result<Told, Failure> {
        let started = Instant::now();
        let Timing { lead, hold } = self.timing;
        let mut found = Found::default();
        let faults = match course {
            Course::Planned { faults, .. } => self.planned(faults, started).await?,
            Course::One(action) => {
                tokio::time::sleep(lead).await;
                let victim = self.victim_of(action, 0).await?;
                self.act(action, victim, hold).await?
            }
            Course::Twice(action) => {
                tokio::time::sleep(lead).await;
                let first = self.victim(0).await?;
                let mut faults = self.act(action, first, hold).await?;
                // Right after the first is level: nobody had time to rest.
                let second = self.victim(first).await?;
                faults.extend(self.act(action, second, hold).await?);
                faults
            }
            Course::Second => {
                tokio::time::sleep(lead).await;
                let first = self.victim(0).await?;
                let mut faults = vec![self.kill_until_level(first, hold).await?];
                // Now: whether shards go home at this moment is a part of it.
                let leaders = self.stage.deployment.leaders().await;
                let second = self.pick(&leaders, first)?;
                faults.extend(self.act(&Action::Kill, second, hold).await?);
                faults
            }
            Course::Steady(length) => {
                tokio::time::sleep(lead).await;
                self.steady().await?;
                let (stretch, changes) = self.watched(*length).await?;
                found.changes = Some(changes);
                vec![stretch]
            }
            Course::Each(action) => {
                tokio::time::sleep(lead).await;
                let mut faults = Vec::new();
                for site in self.stage.deployment.sites() {
                    self.steady().await?;
                    faults.extend(self.act(action, site, hold).await?);
                }
                faults
            }
        };
        let length = match course {
            Course::Planned { length, .. } => *length,
            _ => self.duration,
        };
        let rest = length.saturating_sub(started.elapsed());
        let over = faults.iter().map(Fault::over);
        let tail = over.max().map_or(TAIL, |healed| TAIL.saturating_sub(healed.elapsed()));
        tokio::time::sleep(rest.max(tail)).await;
        Ok(Told { faults, leaders: self.steady().await?, found })
    }

    /// Faults with their own times, which may overlap; not at the same place.
    async fn planned(&self, faults: &[Planned], started: Instant) -> Result<Vec<Fault>, Failure> {
        let leaders = self.steady().await?;
        let mut used: Vec<u8> = Vec::new();
        for fault in faults {
            used.extend(match fault.target {
                Target::Site(site) => Some(site),
                Target::Drawn => None,
            });
        }
        let mut running = Vec::new();
        for fault in faults {
            let victim = match fault.target {
                _ if !fault.action.hits_a_site() => 0,
                Target::Site(site) => site,
                Target::Drawn => self.choose(&leaders, &mut used)?,
            };
            running.push(async move {
                tokio::time::sleep_until((started + fault.at).into()).await;
                self.act(&fault.action, victim, fault.hold).await
            });
        }
        let mut done = Vec::new();
        for told in join_all(running).await {
            done.extend(told?);
        }
        done.sort_by_key(|fault| fault.at);
        Ok(done)
    }

    /// A site that leads something, one that was not used yet where there is any.
    fn choose(&self, leaders: &[u8], used: &mut Vec<u8>) -> Result<u8, Failure> {
        let mut leading = leaders.to_vec();
        leading.sort_unstable();
        leading.dedup();
        let fresh: Vec<u8> = leading.iter().copied().filter(|site| !used.contains(site)).collect();
        let from = if fresh.is_empty() { &leading } else { &fresh };
        let at = self.draw(from.len().max(1) as u64) as usize;
        let site = from.get(at).copied();
        let site = site.ok_or_else(|| Failure::new(Exit::Invalid, "no site leads a shard"))?;
        used.push(site);
        Ok(site)
    }

    async fn victim_of(&self, action: &Action, not: u8) -> Result<u8, Failure> {
        match action {
            // It has its time: nothing may delay it.
            Action::Load(_) => Ok(0),
            action if !action.hits_a_site() => self.steady().await.map(|_| 0),
            _ => self.victim(not).await,
        }
    }

    /// A site that leads something, other than `not`.
    async fn victim(&self, not: u8) -> Result<u8, Failure> {
        let leaders = self.steady().await?;
        self.pick(&leaders, not)
    }

    /// One of those that lead, other than `not`.
    fn pick(&self, leaders: &[u8], not: u8) -> Result<u8, Failure> {
        let mut leading = leaders.to_vec();
        leading.sort_unstable();
        leading.dedup();
        leading.retain(|site| *site != not && *site != 0);
        let at = self.draw(leading.len().max(1) as u64) as usize;
        leading.get(at).copied().ok_or_else(|| {
            Failure::new(Exit::Invalid, format_args!("no other site leads a shard: {leaders:?}"))
        })
    }

    /// Who leads, once every shard is led and that stays so for a moment.
    pub(super) async fn steady(&self) -> Result<Vec<u8>, Failure> {
        let started = Instant::now();
        let mut before = Vec::new();
        while started.elapsed() < RECOVERY_MAX {
            let leaders = self.stage.deployment.leaders().await;
            if leaders == before && !leaders.contains(&0) {
                return Ok(leaders);
            }
            before = leaders;
            tokio::time::sleep(STATUS_AGE).await;
        }
        Err(Failure::new(Exit::Missed, format_args!("shards do not find leaders: {before:?}")))
    }

    /// Who leads at this moment. Steady leaders were waited for before.
    pub(super) async fn begin(&self, site: u8, what: impl Into<String>) -> Fault {
        let what = what.into();
        self.stage.session.note(what.clone());
        let leaders = self.stage.deployment.leaders().await;
        let now = Instant::now();
        let home = Home::NotAsked;
        Fault { what, site, leaders, at: now, healed: now, level: None, home }
    }

    /// What hit no site in particular is over.
    pub(super) fn over(&self, fault: &mut Fault, what: &str) {
        fault.healed = Instant::now();
        self.stage.session.note(what.to_owned());
    }

    /// A site is healed now: waits until it has everything.
    pub(super) async fn recover(&self, fault: &mut Fault) -> Result<(), Failure> {
        fault.healed = Instant::now();
        self.level(fault).await
    }

    /// As [`Self::recover`], of a site that was healed a while ago.
    pub(super) async fn level(&self, fault: &mut Fault) -> Result<(), Failure> {
        self.level_of(fault.site, fault).await
    }

    /// As [`Self::level`], of the site that takes another's place.
    pub(super) async fn level_of(&self, site: u8, fault: &mut Fault) -> Result<(), Failure> {
        self.stage.session.note(format!("site {site} is back"));
        while !self.stage.is_level(site).await {
            if fault.healed.elapsed() > RECOVERY_MAX {
                let bound = RECOVERY_MAX.as_secs();
                let text = format_args!("site {site} is not level after {bound} s");
                return Err(Failure::new(Exit::Missed, text));
            }
            tokio::time::sleep(POLL).await;
        }
        fault.level = Some(fault.healed.elapsed());
        Ok(())
    }

    /// Waits until a site that led something does so again, for a while; whether it came to
    /// that is judged.
    pub(super) async fn returned(&self, fault: &mut Fault) {
        self.returned_within(HOME_MAX, fault).await;
    }

    /// As [`Self::returned`], for so long at most.
    pub(super) async fn returned_within(&self, bound: Duration, fault: &mut Fault) {
        if !fault.leaders.contains(&fault.site) {
            return;
        }
        let started = Instant::now();
        fault.home = Home::Never;
        while started.elapsed() < bound {
            if self.stage.deployment.leaders().await.contains(&fault.site) {
                fault.home = Home::After(fault.healed.elapsed());
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// All of them at the same time, on this task; their results in order.
async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    enum Slot<F, T> {
        Running(F),
        Done(T),
    }
    let mut slots: Vec<_> =
        futures.into_iter().map(|future| Slot::Running(Box::pin(future))).collect();
    poll_fn(|context| {
        let mut all = true;
        for slot in &mut slots {
            let Slot::Running(future) = slot else { continue };
            match future.as_mut().poll(context) {
                Poll::Ready(done) => *slot = Slot::Done(done),
                Poll::Pending => all = false,
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let done = |slot| match slot {
        Slot::Done(done) => Some(done),
        Slot::Running(_) => None,
    };
    slots.into_iter().filter_map(done).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_the_seeds_and_spread() {
        let duration = Duration::from_secs(6);
        let lead = |repetition| Timing::new(7, repetition, duration).lead;
        assert_eq!(lead(3), Timing::new(7, 3, duration).lead);
        let bound = LEAD + Duration::from_millis(LEAD_SPREAD_MS);
        assert!((0..100).map(lead).all(|lead| (LEAD..bound).contains(&lead)));
        assert!((1..100).any(|repetition| lead(repetition) != lead(0)));
        assert_eq!(Timing::new(7, 0, duration).hold, Duration::from_millis(2_100));
    }

    #[test]
    fn an_overload_is_planned_for_the_time_of_its_fault() {
        let timing = Timing { lead: Duration::from_secs(2), hold: Duration::from_secs(3) };
        let arrival = timing.arrival(&Course::One(Action::Load(6.0))).ok().unwrap();
        let expected = |seconds| arrival.expected(100.0, Duration::from_secs(seconds));
        assert_eq!((expected(2), expected(5), expected(6)), (200.0, 2_000.0, 2_100.0));
        assert_eq!(timing.arrival(&Course::Twice(Action::Kill)).ok(), Some(Arrival::Poisson));
    }

    #[tokio::test]
    async fn faults_that_overlap_run_at_the_same_time() {
        // The first ends only if the second runs beside it.
        let met = tokio::sync::Notify::new();
        let told = &met;
        let one = |number: u32| async move {
            match number {
                1 => told.notified().await,
                _ => told.notify_one(),
            }
            number
        };
        assert_eq!(join_all(vec![one(1), one(2), one(3)]).await, [1, 2, 3]);
    }
}
