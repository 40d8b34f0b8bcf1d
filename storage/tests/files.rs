//! The log on real files, with both backends.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use storage::{
    Backend, BackendKind, CHAIN_START, DamageCause, Frame, FrameKind, Log, LogConfig, LogError,
    Lsn, Notify, Recovery, chain_next, read, verify,
};

const BACKENDS: [Backend; 2] = [Backend::Blocking, Backend::Uring];

fn config(dir: &Path, backend: Backend) -> LogConfig {
    LogConfig {
        backend,
        segment_bytes: 64 << 10,
        batch_max_bytes: 16 << 10,
        reserve_bytes: 0,
        ..LogConfig::new(dir, 7, 1)
    }
}

/// A writer of one shard's chain that knows what it wrote.
struct Writer {
    log: Log,
    notify: Notify,
    chain: [u8; 32],
    index: u64,
}

fn open_with(config: LogConfig) -> Result<(Writer, Recovery, Vec<Vec<u8>>), LogError> {
    let notify = Notify::new().unwrap();
    let mut payloads = Vec::new();
    let (mut chain, mut index) = (CHAIN_START, 0);
    let (log, recovery) = Log::open(config, notify.clone(), &mut |frame| {
        payloads.push(frame.payload.to_vec());
        if frame.kind == FrameKind::Block {
            (chain, index) = (frame.chain, frame.index);
        }
        Ok(())
    })?;
    Ok((Writer { log, notify, chain, index }, recovery, payloads))
}

impl Writer {
    fn append(&mut self, payload: &[u8]) -> Lsn {
        self.chain = chain_next(&self.chain, payload);
        self.index += 1;
        let frame = Frame {
            kind: FrameKind::Block,
            shard: 2,
            term: 1,
            index: self.index,
            chain: self.chain,
            payload,
        };
        self.log.append(&frame).unwrap()
    }

    fn flush(&mut self) -> Lsn {
        while !self.log.submit().unwrap() {
            assert!(self.notify.wait(20_000_000), "no segment became ready");
        }
        loop {
            if let Some(durable) = self.log.poll().unwrap() {
                return durable;
            }
            assert!(self.notify.wait(20_000_000), "the write never completed");
        }
    }

    fn write(&mut self, payload: &[u8]) {
        let lsn = self.append(payload);
        assert_eq!(self.flush(), lsn);
    }
}

fn payload(n: u64) -> Vec<u8> {
    let bytes = (n * 37 % 900) as usize;
    (0..bytes).map(|i| (n as usize * 31 + i) as u8).collect()
}

/// Writes `count` batches of one record each and drops the log like a kill.
fn written(dir: &Path, backend: Backend, count: u64) {
    let (mut writer, ..) = open_with(config(dir, backend)).unwrap();
    for n in 1..=count {
        writer.write(&payload(n));
    }
}

fn segment(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.wal"))
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..4u64 {
            let (mut writer, recovery, payloads) = open_with(config(dir.path(), backend)).unwrap();
            assert_eq!(recovery.frames, round * 40);
            assert_eq!(recovery.cut, None);
            let expected: Vec<_> = (1..=round * 40).map(payload).collect();
            assert_eq!(payloads, expected);
            for n in round * 40 + 1..=(round + 1) * 40 {
                writer.write(&payload(n));
            }
        }
        let report = verify(dir.path()).unwrap();
        assert_eq!((report.frames, report.blocks), (160, 160));
        assert!(report.segments > 2, "64 KiB segments roll over");
        assert_eq!(report.shards[0].index, 160);
    }
}

#[test]
fn each_backend_reads_what_the_other_wrote() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), Backend::Uring, 20);
    let (mut writer, recovery, payloads) =
        open_with(config(dir.path(), Backend::Blocking)).unwrap();
    assert_eq!(payloads.len(), 20);
    assert_eq!(recovery.disk.backend, BackendKind::Blocking);
    writer.write(b"more");
    drop(writer);
    let (_, recovery, payloads) = open_with(config(dir.path(), Backend::Uring)).unwrap();
    assert_eq!(payloads.len(), 21);
    assert_eq!(recovery.disk.backend, BackendKind::Uring);
}
