//! Several threads that drive one load: each with its own connections, its own part
//! of the plan and its own figures, which are merged at the end.
//!
//! A thread is a whole generator; nothing is shared while the load runs. They begin
//! together, when all of them are connected. Tested with real processes.

use crate::acks::AckWriter;
use crate::cli;
use crate::config::GatewayFile;
use crate::drive::{Options, Outcome, Part, Phase, Session};
use crate::exit::Failure;
use crate::interrupt::Stop;
use crate::live::Progress;
use crate::plan::Params;
use crate::run::RunArgs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Barrier;

const OTHER_FAILED: &str = "another worker could not connect";

/// What a worker did, and the failure that ended it.
type Driven = (Outcome, Result<(), Failure>);

/// What the workers share before the load begins.
struct Start {
    connected: Barrier,
    failed: AtomicBool,
}

/// One of them.
struct Worker {
    args: RunArgs,
    phase: Phase,
    options: Options,
    acks: Option<AckWriter>,
    start: Arc<Start>,
    stop: Arc<Stop>,
}

impl Worker {
    async fn drive(self) -> Result<Driven, Failure> {
        let Self { args, phase, options, acks, start, stop } = self;
        let connected = connect(&args, options, acks).await;
        if connected.is_err() {
            start.failed.store(true, Ordering::Relaxed);
        }
        // Reached by all: connecting has an end.
        start.connected.wait().await;
        let session = connected?;
        if start.failed.load(Ordering::Relaxed) {
            session.close().await;
            return Err(Failure::environment(OTHER_FAILED));
        }
        let driven = session.drive(&phase, &stop).await;
        session.close().await;
        driven
    }
}

async fn connect(
    args: &RunArgs,
    options: Options,
    acks: Option<AckWriter>,
) -> Result<Session, Failure> {
    let gateway = GatewayFile::load(&args.load.config)?;
    let (plan, encoder) = args.load.plan(&gateway, args.lag())?;
    Session::connect(&gateway, plan, encoder, acks, options).await
}

/// Runs the load on `args.workers` threads and merges what they measured. `acks` is
/// the first one's log; the others get their own beside it.
pub(crate) async fn drive(
    args: &RunArgs,
    params: &Params,
    (phase, options): (&Phase, Options),
    acks: Option<AckWriter>,
    stop: &Stop,
) -> Result<Driven, Failure> {
    let count = usize::from(args.workers);
    if args.closed.is_some_and(|closed| closed < count) || options.in_flight_max < count {
        return Err(Failure::usage("--workers: at most --closed and --in-flight"));
    }
    println!("{count} workers: no lines until they end");
    let start = Arc::new(Start { connected: Barrier::new(count), failed: AtomicBool::new(false) });
    let mut args = args.clone();
    args.load.run_id = Some(params.run_id);
    let (mut stops, mut ended) = (Vec::new(), tokio::task::JoinSet::new());
    let mut acks = Some(acks);
    for index in 0..count {
        let acks = match acks.take() {
            Some(first) => first,
            None => args.load.ack_writer(params)?,
        };
        let told = Arc::new(Stop::new());
        stops.push(Arc::clone(&told));
        let worker = Worker {
            args: args.clone(),
            phase: Phase {
                closed: phase.closed.map(|closed| share(closed, index, count)),
                live: Progress::Silent,
                ..phase.clone()
            },
            options: Options {
                connections: options.connections.div_ceil(count),
                in_flight_max: share(options.in_flight_max, index, count),
                part: Part { index: index as u64, of: count as u64 },
                ..options
            },
            acks,
            start: Arc::clone(&start),
            stop: told,
        };
        ended.spawn_blocking(move || cli::on_runtime(worker.drive()));
    }
    let mut driven = Vec::new();
    while driven.len() < count {
        tokio::select! {
            worker = ended.join_next() => match worker {
                Some(worker) => driven.push(worker.unwrap_or_else(|error| {
                    Err(Failure::environment(format_args!("a worker ended: {error}")))
                })),
                None => break,
            },
            () = stop.notified() => stops.iter().for_each(|stop| stop.notify_one()),
        }
    }
    merged(driven)
}

/// The part of `all` that is this worker's.
fn share(all: usize, index: usize, count: usize) -> usize {
    all / count + usize::from(index < all % count)
}

/// One result out of all, or the failure that explains the others.
fn merged(driven: Vec<Result<Driven, Failure>>) -> Result<Driven, Failure> {
    let mut all: Option<Driven> = None;
    let mut failure: Option<Failure> = None;
    for worker in driven {
        match (worker, &mut all) {
            (Ok(one), None) => all = Some(one),
            (Ok((outcome, ended)), Some(all)) => {
                all.0.add(outcome);
                if all.1.is_ok() {
                    all.1 = ended;
                }
            }
            (Err(error), _) => {
                if failure.as_ref().is_none_or(|known| known.message == OTHER_FAILED) {
                    failure = Some(error);
                }
            }
        }
    }
    match (failure, all) {
        (Some(failure), _) => Err(failure),
        (None, Some(all)) => Ok(all),
        (None, None) => Err(Failure::environment("no worker")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (all, count) in [(7, 3), (64, 64), (100_000, 7)] {
            assert_eq!((0..count).map(|index| share(all, index, count)).sum::<usize>(), all);
        }
    }

    #[test]
    fn the_failure_that_explains_the_others_is_told() {
        let failed = |message: &str| Err(Failure::environment(message));
        let told = merged(vec![failed(OTHER_FAILED), failed("refused"), failed(OTHER_FAILED)]);
        assert_eq!(told.err().unwrap().message, "refused");
    }
}
