//! Producers of their own: each hands in one record, waits until it is durable, and goes on.
//! How many share a batch is up to each log: the peers have a group commit for threads built
//! in; in front of ours stands one queue, as in the switch, and what has gathered becomes one
//! frame.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use storage::Backend;
use tempfile::tempdir_in;

use super::{Cell, Options, Ours, RECORD, SIZES, median, note, okaywal, raft_engine, summary};

const NAMES: [&str; 4] = ["ours blocking", "ours uring", "raft-engine 0.4.2", "okaywal 0.3.1"];
const FIRST_PEER: usize = 2;

/// What producers have handed in and the log has not taken yet.
#[derive(Default)]
struct Waiting {
    block: Vec<u8>,
    handed_in: u64,
    durable: u64,
    ended: bool,
}

/// The way from many threads to the one that owns our log, as short as it can be.
#[derive(Default)]
struct Group {
    waiting: Mutex<Waiting>,
    handed_in: Condvar,
    durable: Condvar,
}

impl Group {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the record is durable.
    fn write(&self) {
        let mut waiting = self.lock();
        waiting.block.extend_from_slice(&(RECORD as u32).to_le_bytes());
        waiting.block.extend_from_slice(&[0x5a; RECORD]);
        waiting.handed_in += 1;
        let own = waiting.handed_in;
        if own == waiting.durable + 1 {
            self.handed_in.notify_one();
        }
        while waiting.durable < own {
            waiting = self.durable.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self) {
        self.lock().ended = true;
        self.handed_in.notify_one();
    }

    /// One batch after the other, each with whatever has come meanwhile.
    fn run(&self, mut ours: Ours) {
        let mut block = Vec::new();
        loop {
            let mut waiting = self.lock();
            while waiting.block.is_empty() {
                if waiting.ended {
                    return;
                }
                waiting = self.handed_in.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut block, &mut waiting.block);
            let durable = waiting.handed_in;
            drop(waiting);
            ours.log.append(&note(&block)).expect("room for a batch");
            while !ours.log.submit().expect("a sound log") {
                ours.notify.wait(100_000);
            }
            ours.wait();
            block.clear();
            self.lock().durable = durable;
            self.durable.notify_all();
        }
    }
}

/// `count` threads call `write` for `seconds` after a fifth of that.
fn closed_loop(write: &(dyn Fn() + Sync), count: usize, seconds: f64) -> Cell {
    let (counts, ends) = (AtomicBool::new(false), AtomicBool::new(false));
    let all = Mutex::new(Vec::new());
    let elapsed = std::thread::scope(|scope| {
        for _ in 0..count {
            let produce = || {
                let mut latencies = Vec::with_capacity(1 << 12);
                while !ends.load(Ordering::Relaxed) {
                    let before = Instant::now();
                    write();
                    if counts.load(Ordering::Relaxed) && !ends.load(Ordering::Relaxed) {
                        latencies.push(before.elapsed().as_nanos() as u32);
                    }
                }
                all.lock().unwrap_or_else(PoisonError::into_inner).append(&mut latencies);
            };
            let thread = std::thread::Builder::new().stack_size(128 << 10);
            thread.spawn_scoped(scope, produce).expect("a thread");
        }
        std::thread::sleep(Duration::from_secs_f64(seconds / 5.0));
        counts.store(true, Ordering::Relaxed);
        let start = Instant::now();
        std::thread::sleep(Duration::from_secs_f64(seconds));
        ends.store(true, Ordering::Relaxed);
        start.elapsed()
    });
    let latencies = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    let written = latencies.len();
    summary(latencies, written, elapsed)
}

fn measure(name: usize, dir: &Path, count: usize, seconds: f64) -> Cell {
    match name {
        0 | 1 => {
            let backend = if name == 0 { Backend::Blocking } else { Backend::Uring };
            let ours = Ours::new(dir, backend, false);
            let group = Group::default();
            std::thread::scope(|scope| {
                scope.spawn(|| group.run(ours));
                let cell = closed_loop(&|| group.write(), count, seconds);
                group.end();
                cell
            })
        }
        2 => closed_loop(&write_to_raft_engine(&raft_engine(dir)), count, seconds),
        _ => closed_loop(&write_to_okaywal(&okaywal(dir)), count, seconds),
    }
}

thread_local! {
    /// Each producer has its own, so that they do not meet in its memory table.
    static REGION: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
}

/// One record, durable when it returns.
pub(super) fn write_to_raft_engine(engine: &raft_engine::Engine) -> impl Fn() + Sync {
    move || {
        let mut batch = raft_engine::LogBatch::with_capacity(1);
        let region = REGION.with(|region| *region);
        batch.put(region, vec![1; 8], vec![0x5a; RECORD]).expect("room");
        engine.write(&mut batch, true).expect("a write of raft-engine");
    }
}

/// One record, durable when it returns.
pub(super) fn write_to_okaywal(log: &okaywal::WriteAheadLog) -> impl Fn() + Sync {
    move || {
        let mut entry = log.begin_entry().expect("an entry");
        entry.write_chunk(&[0x5a; RECORD]).expect("a chunk");
        entry.commit().expect("a commit of okaywal");
    }
}

pub(super) fn concurrent_producers(options: &Options) {
    println!(
        "\nproducers that each wait for their record, one thread each; microseconds per record"
    );
    println!(
        "| producers | contender | records/s | p50 | p99 | p99.9 | max | p99.9/p50 | vs best peer |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for count in SIZES {
        let mut cells = vec![Vec::new(); NAMES.len()];
        for _ in 0..options.rounds {
            for (name, cells) in cells.iter_mut().enumerate() {
                let dir = tempdir_in(&options.dir).expect("a directory on the disk");
                cells.push(measure(name, dir.path(), count, options.seconds));
            }
        }
        let cells: Vec<Cell> = cells.iter().map(|cells| median(cells)).collect();
        let best_peer = cells[FIRST_PEER..].iter().map(|cell| cell.rate).fold(1.0, f64::max);
        for (name, cell) in NAMES.iter().zip(&cells) {
            println!("| {count} | {name} | {} | {:.2} |", cell.columns(), cell.rate / best_peer,);
        }
    }
}
