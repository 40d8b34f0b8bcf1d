//! What comes before a drill's own load: a history, or a look at what the sites take.
//!
//! A history is made in a closed loop: so many requests are always in flight, and the
//! sites set the pace.

use super::maximum::{self, Distance, Maximum};
use super::{beside, pass_on, stopped};
use crate::drive::{Known, Phase};
use crate::exit::{Exit, Failure};
use crate::interrupt::Stop;
use crate::live::Progress;
use crate::plan::Mix;
use crate::stage::Stage;
use serde::Serialize;
use std::cell::Cell;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Requests in flight while a history is made: enough that every write of a site holds
/// many, and far from what it would refuse.
const HISTORY_IN_FLIGHT: usize = 512;
/// Longest time for a history.
const HISTORY_MAX: Duration = Duration::from_secs(1_800);
/// How often it is told how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// Steps of a search for the maximum, each at the whole load, that write about as much as
/// one does; and requests per second of a history, at least.
const STEPS: f64 = 12.0;
const HISTORY_RATE: f64 = 2_000.0;

/// What is done before a drill's own load.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Before {
    /// Nothing.
    #[default]
    Nothing,
    /// So many payments.
    History(u64),
    /// The maximum is found; the load is that.
    Maximum,
    /// The maximum is found without and with this between the sites.
    Distance(String),
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Prepared {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) history: Option<History>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) maximum: Option<Maximum>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) distance: Option<Distance>,
}

impl Before {
    /// Does it. `rate` is where a search begins, `length` that of its steps.
    pub(super) async fn prepare(
        &self,
        stage: &Stage,
        (rate, length): (f64, Duration),
        stop: &Stop,
    ) -> Result<Prepared, Failure> {
        let mut prepared = Prepared::default();
        match self {
            Self::Nothing => {}
            Self::History(payments) => {
                prepared.history = Some(history(stage, *payments, stop).await?);
            }
            Self::Maximum => {
                let found = maximum::maximum(stage, rate, length, stop).await?;
                println!("maximum     {:.0} requests/s", found.answered);
                prepared.maximum = Some(found);
            }
            Self::Distance(line) => {
                let found = maximum::distance(stage, line, (rate, length), stop).await?;
                prepared.distance = Some(found);
            }
        }
        Ok(prepared)
    }
}

impl Before {
    /// What it will take about, when the load is so many requests per second and a step so
    /// long: seconds, and requests.
    pub(super) fn work(&self, mix: &Mix, (rate, step): (f64, Duration)) -> (f64, f64) {
        let searched = STEPS * step.as_secs_f64();
        match self {
            Self::Nothing => (0.0, 0.0),
            Self::History(payments) => {
                let requests = *payments as f64 * mix.all() / f64::from(mix.pay.max(1));
                (requests / HISTORY_RATE, requests)
            }
            Self::Maximum => (searched, searched * rate),
            Self::Distance(_) => (2.0 * searched, 2.0 * searched * rate),
        }
    }
}

/// Payments that are there before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct History {
    /// Payments that were acknowledged as paid.
    pub(super) payments: u64,
    /// How long that took.
    pub(super) seconds: f64,
    /// Requests per second, as many as the sites took.
    pub(super) rate: f64,
}

/// Makes at least so many payments, as fast as the sites take them with a bounded
/// number in flight.
async fn history(stage: &Stage, payments: u64, stop: &Stop) -> Result<History, Failure> {
    println!(
        "history     {payments} payments, {HISTORY_IN_FLIGHT} requests always in flight: as fast as \
         the sites take them"
    );
    let (started, mut sent, mut there) = (Instant::now(), 0, paid(stage));
    while there < payments {
        let requests = stage.plan.params().requests_for(payments - there);
        sent += requests_in_a_loop(stage, requests, started, stop).await?;
        let now = paid(stage);
        if now <= there {
            let text = format_args!("no history: of {sent} requests nothing more was paid");
            return Err(Failure::new(Exit::Invalid, text));
        }
        there = now;
    }
    let seconds = started.elapsed().as_secs_f64();
    let history = History { payments: there, seconds, rate: sent as f64 / seconds };
    println!(
        "history     {} payments in {seconds:.1} s, {:.0} requests/s",
        history.payments, history.rate
    );
    Ok(history)
}

fn paid(stage: &Stage) -> u64 {
    stage.session.payments(|known| known == Known::Paid).len() as u64
}

/// Sends about so many requests; how many were planned.
async fn requests_in_a_loop(
    stage: &Stage,
    requests: u64,
    started: Instant,
    stop: &Stop,
) -> Result<u64, Failure> {
    let (first, halt) = (stage.session.planned(), Stop::new());
    let (over, again) = (Notify::new(), Cell::new(false));
    let planned = || stage.session.planned() - first;
    let phase = Phase {
        closed: Some(HISTORY_IN_FLIGHT),
        live: Progress::Terminal,
        ..stage.phase(HISTORY_MAX)
    };
    let load = async {
        tokio::select! {
            biased;
            ran = stage.session.run(&phase, &halt) => ran,
            never = pass_on((stop, &over), (&halt, &again)) => match never {},
        }
    };
    let watch = async {
        let mut told = Instant::now();
        while planned() < requests {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = stop.notified() => {
                    halt.notify_one();
                    over.notify_one();
                    return Err(stopped());
                }
            }
            if started.elapsed() > HISTORY_MAX {
                halt.notify_one();
                let bound = HISTORY_MAX.as_secs();
                let text = format_args!("no history within {bound} s: ask for less (--history)");
                return Err(Failure::new(Exit::Invalid, text));
            }
            if told.elapsed() > TOLD_EVERY {
                told = Instant::now();
                println!("history     {} of {requests} requests", planned());
            }
        }
        halt.notify_one();
        over.notify_one();
        Ok(())
    };
    beside(load, watch).await?;
    if again.get() { Err(stopped()) } else { Ok(planned()) }
}
