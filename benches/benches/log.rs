//! Append a batch of 256-byte records and wait until it is durable.
//!
//! `cargo bench -p benches --bench log`; `BENCH_DIR` names a directory on the
//! disk to measure (default: the build's target directory).

use std::path::PathBuf;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use storage::{Backend, Frame, FrameKind, Log, LogConfig, Notify, chain_next};

const RECORD_BYTES: usize = 256;

fn disk_dir() -> PathBuf {
    std::env::var_os("BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}

fn durable(criterion: &mut Criterion) {
    for (name, backend) in [("blocking", Backend::Blocking), ("uring", Backend::Uring)] {
        let mut group = criterion.benchmark_group(format!("append+durable/{name}"));
        for records in [16usize, 64, 256, 1024] {
            let dir = tempfile::tempdir_in(disk_dir()).expect("a directory on the disk");
            let notify = Notify::new().expect("an eventfd");
            let config = LogConfig { backend, ..LogConfig::new(dir.path(), 1, 0) };
            let (mut log, _) =
                Log::open(config, notify.clone(), &mut |_| Ok(())).expect("a fresh log");
            let payload = [0x5a; RECORD_BYTES];
            group.throughput(Throughput::Elements(records as u64));
            group.bench_function(records.to_string(), |bencher| {
                bencher.iter(|| {
                    for _ in 0..records {
                        log.append(&note(&payload)).expect("room");
                    }
                    flush(&mut log, &notify);
                });
            });
        }
        group.finish();
    }
}

fn note(payload: &[u8]) -> Frame<'_> {
    Frame { kind: FrameKind::Note, shard: 0, term: 1, index: 0, chain: [0; 32], payload }
}

fn flush(log: &mut Log, notify: &Notify) {
    while !log.submit().expect("a sound log") {
        notify.wait(100_000);
    }
    while log.poll().expect("a sound log").is_none() {
        notify.wait(100_000);
    }
}

fn chain(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chain");
    for bytes in [256usize, 4096, 65_536] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(bytes.to_string(), |bencher| {
            let setup = || vec![7; bytes];
            bencher.iter_batched(
                setup,
                |payload| chain_next(&[1; 32], &payload),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, durable, chain);
criterion_main!(benches);
