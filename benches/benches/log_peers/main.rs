//! One table, one run: the raw disk, our log, raft-engine and okaywal.
//!
//! Every contender writes the same 256-byte records, a batch as one block with their lengths
//! (ours, as in the switch), one entry with a chunk each (okaywal) or one batch with a key
//! each (raft-engine), and reports a batch only when it is durable. Contenders take turns
//! within each round, so that a busy host hits all of them; medians over the rounds are
//! printed. Then producers that hand in single records, in a closed loop ([`producers`]) and by
//! plan: there the logs' own group commit decides.
//!
//! `cargo bench -p benches --bench log_peers -- [--seconds 1] [--rounds 3] [--dir D]`.
//!
//! Our blocking backend gives its writer thread real-time priority where it may,
//! the peers do not. On a busy machine that alone decides the table: run the
//! binary under `chrt -f 10` to compare logs instead of priorities.

mod producers;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use storage::disk::Buffer;
use storage::{Backend, FRAME_HEADER_BYTES, Frame, FrameKind, Log, LogConfig, Notify};

const RECORD: usize = 256;
/// Records in a batch, and producers.
const SIZES: [usize; 4] = [16, 64, 256, 1024];
const BLOCK: usize = 4096;
const RAW_FILE_BYTES: usize = 256 << 20;
/// Flags of Linux on x86-64 and aarch64 alike would differ; asked for by name.
const O_DSYNC: i32 = 0o10000;

struct Options {
    seconds: f64,
    rounds: usize,
    dir: PathBuf,
}

fn options() -> Options {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut options = Options { seconds: 1.0, rounds: 3, dir };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| usage(&word));
        match word.as_str() {
            "--seconds" => options.seconds = value().parse().unwrap_or_else(|_| usage(&word)),
            "--rounds" => options.rounds = value().parse().unwrap_or_else(|_| usage(&word)),
            "--dir" => options.dir = value().into(),
            "--bench" => {}
            _ => usage(&word),
        }
    }
    options
}

fn usage(word: &str) -> ! {
    eprintln!("unknown or incomplete option {word}; known: --seconds S --rounds N --dir D");
    std::process::exit(2)
}

/// Writes one batch of records and returns when it is durable.
trait Contender {
    fn write(&mut self, records: usize);
}

/// The same bytes as our log, straight to a zero-filled file.
struct RawDirect {
    file: File,
    buffer: Buffer,
    at: usize,
}

impl RawDirect {
    fn new(dir: &Path) -> RawDirect {
        let path = dir.join("raw");
        let mut file = File::create(&path).expect("a raw file");
        for _ in 0..RAW_FILE_BYTES >> 20 {
            file.write_all(&[0; 1 << 20]).expect("space for the raw file");
        }
        file.sync_all().expect("a durable raw file");
        let flags = libc_o_direct() | O_DSYNC;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path);
        let mut buffer = Buffer::new(1 << 20);
        buffer.fill(0x5a);
        RawDirect { file: file.expect("direct I/O"), buffer, at: 0 }
    }
}

const fn libc_o_direct() -> i32 {
    if cfg!(target_arch = "aarch64") { 0o200000 } else { 0o40000 }
}

impl Contender for RawDirect {
    fn write(&mut self, records: usize) {
        let bytes = disk_bytes(records);
        if self.at + bytes > RAW_FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(&self.buffer[..bytes], self.at as u64).expect("a raw write");
        self.at += bytes;
    }
}

fn disk_bytes(records: usize) -> usize {
    (storage::BATCH_HEADER_BYTES + FRAME_HEADER_BYTES + records * (4 + RECORD))
        .next_multiple_of(BLOCK)
}

/// The plain loop: append the payloads with write, then fdatasync.
struct RawFdatasync {
    file: File,
    bytes: Vec<u8>,
}

impl RawFdatasync {
    fn new(dir: &Path) -> RawFdatasync {
        let file = File::create(dir.join("raw")).expect("a raw file");
        RawFdatasync { file, bytes: vec![0x5a; RECORD * 1024] }
    }
}

impl Contender for RawFdatasync {
    fn write(&mut self, records: usize) {
        self.file.write_all(&self.bytes[..records * RECORD]).expect("a raw write");
        self.file.sync_data().expect("fdatasync");
    }
}

struct Ours {
    log: Log,
    notify: Notify,
    /// The records of a batch, each with its length: one frame, as the blocks of the switch are.
    block: Vec<u8>,
    /// Fill the next batch while one is in flight.
    pipelined: bool,
}

impl Ours {
    fn new(dir: &Path, backend: Backend, pipelined: bool) -> Ours {
        let notify = Notify::new().expect("an eventfd");
        let config = LogConfig { backend, ..LogConfig::new(dir, 1, 0) };
        let (log, _) = Log::open(config, notify.clone(), &mut |_| Ok(())).expect("a fresh log");
        // Both spares ready, as on a node that has been up for a second.
        while log.stats().disk.spares < 2 {
            notify.wait(50_000);
        }
        Ours { log, notify, block: Vec::new(), pipelined }
    }

    fn wait(&mut self) {
        while self.log.in_flight() && self.log.poll().expect("a sound log").is_none() {
            self.notify.wait(100_000);
        }
    }
}

impl Contender for Ours {
    fn write(&mut self, records: usize) {
        self.block.clear();
        for _ in 0..records {
            self.block.extend_from_slice(&(RECORD as u32).to_le_bytes());
            self.block.extend_from_slice(&[0x5a; RECORD]);
        }
        self.log.append(&note(&self.block)).expect("room for a batch");
        if self.pipelined {
            self.wait();
        }
        while !self.log.submit().expect("a sound log") {
            self.notify.wait(100_000);
        }
        if !self.pipelined {
            self.wait();
        }
    }
}

fn note(payload: &[u8]) -> Frame<'_> {
    Frame { kind: FrameKind::Note, shard: 0, term: 1, index: 0, chain: [0; 32], payload }
}

struct RaftEngine {
    engine: Arc<raft_engine::Engine>,
    batch: raft_engine::LogBatch,
}

fn raft_engine(dir: &Path) -> Arc<raft_engine::Engine> {
    let config = raft_engine::Config {
        dir: dir.join("raft-engine").display().to_string(),
        batch_compression_threshold: raft_engine::ReadableSize(0),
        ..raft_engine::Config::default()
    };
    Arc::new(raft_engine::Engine::open(config).expect("a fresh raft-engine"))
}

impl Contender for RaftEngine {
    /// Keys repeat per batch, so that its memory table stays small.
    fn write(&mut self, records: usize) {
        for nth in 0..records as u64 {
            let key = nth.to_le_bytes().to_vec();
            self.batch.put(1, key, vec![0x5a; RECORD]).expect("room");
        }
        self.engine.write(&mut self.batch, true).expect("a write of raft-engine");
    }
}

struct OkayWal {
    log: okaywal::WriteAheadLog,
}

fn okaywal(dir: &Path) -> okaywal::WriteAheadLog {
    okaywal::WriteAheadLog::recover(dir.join("okaywal"), okaywal::LogVoid).expect("a fresh okaywal")
}

impl Contender for OkayWal {
    fn write(&mut self, records: usize) {
        let mut entry = self.log.begin_entry().expect("an entry");
        for _ in 0..records {
            entry.write_chunk(&[0x5a; RECORD]).expect("a chunk");
        }
        entry.commit().expect("a commit of okaywal");
    }
}

const NAMES: [&str; 8] = [
    "raw O_DIRECT|O_DSYNC",
    "raw write+fdatasync",
    "ours blocking",
    "ours uring",
    "ours blocking, pipelined",
    "ours uring, pipelined",
    "raft-engine 0.4.2",
    "okaywal 0.3.1",
];
const FIRST_PEER: usize = 6;

fn contender(name: usize, dir: &Path) -> Box<dyn Contender> {
    match name {
        0 => Box::new(RawDirect::new(dir)),
        1 => Box::new(RawFdatasync::new(dir)),
        2 => Box::new(Ours::new(dir, Backend::Blocking, false)),
        3 => Box::new(Ours::new(dir, Backend::Uring, false)),
        4 => Box::new(Ours::new(dir, Backend::Blocking, true)),
        5 => Box::new(Ours::new(dir, Backend::Uring, true)),
        6 => {
            let batch = raft_engine::LogBatch::with_capacity(1024);
            Box::new(RaftEngine { engine: raft_engine(dir), batch })
        }
        _ => Box::new(OkayWal { log: okaywal(dir) }),
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

impl Cell {
    /// Records/s, the percentiles, and how far the tail is from the middle.
    fn columns(&self) -> String {
        let Cell { rate, p50_us, p99_us, p999_us, max_us } = self;
        let ratio = p999_us / p50_us;
        format!("{rate:.0} | {p50_us:.0} | {p99_us:.0} | {p999_us:.0} | {max_us:.0} | {ratio:.1}")
    }
}

fn summary(mut latencies: Vec<u32>, records: usize, elapsed: Duration) -> Cell {
    latencies.sort_unstable();
    let at = |q: f64| {
        let rank = (latencies.len() as f64 * q) as usize;
        latencies
            .get(rank.min(latencies.len().saturating_sub(1)))
            .map_or(0.0, |ns| f64::from(*ns) / 1e3)
    };
    Cell {
        rate: records as f64 / elapsed.as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: at(1.0),
    }
}

fn measure(contender: &mut dyn Contender, records: usize, seconds: f64) -> Cell {
    let warm = Instant::now();
    while warm.elapsed().as_secs_f64() < seconds / 5.0 {
        contender.write(records);
    }
    let mut latencies = Vec::with_capacity(1 << 18);
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        let before = Instant::now();
        contender.write(records);
        latencies.push(before.elapsed().as_nanos() as u32);
    }
    let written = latencies.len() * records;
    summary(latencies, written, start.elapsed())
}

fn median(cells: &[Cell]) -> Cell {
    let of = |field: fn(&Cell) -> f64| {
        let mut values: Vec<f64> = cells.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    Cell {
        rate: of(|c| c.rate),
        p50_us: of(|c| c.p50_us),
        p99_us: of(|c| c.p99_us),
        p999_us: of(|c| c.p999_us),
        max_us: of(|c| c.max_us),
    }
}

fn one_writer(options: &Options) {
    println!("one writer, {RECORD}-byte records, durable per batch; microseconds per batch");
    println!(
        "| batch | contender | records/s | p50 | p99 | p99.9 | max | p99.9/p50 | vs write+fdatasync | vs direct | vs best peer |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for records in SIZES {
        let mut cells = vec![Vec::new(); NAMES.len()];
        for _ in 0..options.rounds {
            for (name, cells) in cells.iter_mut().enumerate() {
                let dir = tempfile::tempdir_in(&options.dir).expect("a directory on the disk");
                let mut contender = contender(name, dir.path());
                cells.push(measure(contender.as_mut(), records, options.seconds));
            }
        }
        let cells: Vec<Cell> = cells.iter().map(|cells| median(cells)).collect();
        let best_peer = cells[FIRST_PEER..].iter().map(|cell| cell.rate).fold(1.0, f64::max);
        for (name, cell) in NAMES.iter().zip(&cells) {
            println!(
                "| {records} | {name} | {} | {:.2} | {:.2} | {:.2} |",
                cell.columns(),
                cell.rate / cells[1].rate,
                cell.rate / cells[0].rate,
                cell.rate / best_peer,
            );
        }
    }
}

/// Producers that send by plan; latency counts from the planned time.
const PRODUCERS: usize = 8;
const TICK: Duration = Duration::from_micros(500);

/// Calls `send(planned)` `rate` times per second, in bursts per tick.
fn produce(rate: f64, seconds: f64, mut send: impl FnMut(Instant)) {
    let per_tick = rate * TICK.as_secs_f64();
    let start = Instant::now();
    let mut due = 0.0;
    for tick in 0..(seconds / TICK.as_secs_f64()) as u32 {
        let planned = start + TICK * tick;
        std::thread::sleep(planned.saturating_duration_since(Instant::now()));
        due += per_tick;
        while due >= 1.0 {
            due -= 1.0;
            send(planned);
        }
        // An overloaded contender must not stretch the run without end.
        if start.elapsed().as_secs_f64() > seconds * 2.0 {
            return;
        }
    }
}

fn open_loop_ours(dir: &Path, backend: Backend, rate: f64, seconds: f64) -> Cell {
    let Ours { mut log, notify, .. } = Ours::new(dir, backend, false);
    let payload = [0x5a; RECORD];
    let (sender, inbox) = mpsc::sync_channel::<Instant>(1 << 16);
    let start = Instant::now();
    let mut latencies = Vec::with_capacity(1 << 20);
    std::thread::scope(|scope| {
        for _ in 0..PRODUCERS {
            let (sender, notify) = (sender.clone(), notify.clone());
            scope.spawn(move || {
                produce(rate / PRODUCERS as f64, seconds, |planned| {
                    if sender.send(planned).is_ok() {
                        notify.wake();
                    }
                });
            });
        }
        drop(sender);
        let (mut open, mut flying) = (Vec::new(), Vec::new());
        let mut ended = false;
        while !ended || !open.is_empty() || log.in_flight() {
            while log.room() >= RECORD + FRAME_HEADER_BYTES {
                match inbox.try_recv() {
                    Ok(planned) => {
                        log.append(&note(&payload)).expect("room");
                        open.push(planned);
                    }
                    Err(error) => {
                        ended = error == mpsc::TryRecvError::Disconnected;
                        break;
                    }
                }
            }
            if log.submit().expect("a sound log") {
                std::mem::swap(&mut open, &mut flying);
            }
            if !(ended && open.is_empty()) || log.in_flight() {
                notify.wait(2_000);
            }
            if log.poll().expect("a sound log").is_some() {
                latencies.extend(flying.drain(..).map(|p: Instant| p.elapsed().as_nanos() as u32));
            }
        }
    });
    let written = latencies.len();
    summary(latencies, written, start.elapsed())
}

/// A peer's own group commit: every producer writes its records one by one.
fn open_loop_peer(write: &(dyn Fn() + Sync), rate: f64, seconds: f64) -> Cell {
    let all = Mutex::new(Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..PRODUCERS {
            scope.spawn(|| {
                let mut latencies = Vec::with_capacity(1 << 16);
                produce(rate / PRODUCERS as f64, seconds, |planned| {
                    write();
                    latencies.push(planned.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32);
                });
                if let Ok(mut all) = all.lock() {
                    all.append(&mut latencies);
                }
            });
        }
    });
    let elapsed = start.elapsed();
    let latencies = all.into_inner().unwrap_or_default();
    let written = latencies.len();
    summary(latencies, written, elapsed)
}

fn open_loop(options: &Options) {
    println!("\nopen loop, {PRODUCERS} producers, latency in microseconds from the planned time");
    println!("| offered/s | contender | durable/s | p50 | p99 | p99.9 | max |");
    println!("|---|---|---|---|---|---|---|");
    for rate in [20_000.0, 50_000.0, 200_000.0] {
        for name in ["ours blocking", "ours uring", "raft-engine 0.4.2", "okaywal 0.3.1"] {
            let dir = tempfile::tempdir_in(&options.dir).expect("a directory on the disk");
            let seconds = options.seconds * 2.0;
            let cell = match name {
                "ours blocking" => open_loop_ours(dir.path(), Backend::Blocking, rate, seconds),
                "ours uring" => open_loop_ours(dir.path(), Backend::Uring, rate, seconds),
                "raft-engine 0.4.2" => {
                    let engine = raft_engine(dir.path());
                    open_loop_peer(&producers::write_to_raft_engine(&engine), rate, seconds)
                }
                _ => {
                    let log = okaywal(dir.path());
                    open_loop_peer(&producers::write_to_okaywal(&log), rate, seconds)
                }
            };
            println!(
                "| {rate:.0} | {name} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
                cell.rate, cell.p50_us, cell.p99_us, cell.p999_us, cell.max_us
            );
        }
    }
}

fn main() {
    let options = options();
    one_writer(&options);
    producers::concurrent_producers(&options);
    open_loop(&options);
}
