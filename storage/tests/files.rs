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

/// Where the payload of block `index` stands: file, offset.
fn find(dir: &Path, index: u64) -> (PathBuf, u64, Lsn) {
    let mut found = None;
    read(dir, &mut |at| {
        if at.frame.index == index {
            let path = segment(dir, at.at.segment);
            found = Some((path, at.at.offset + storage::FRAME_HEADER_BYTES as u64, at.lsn));
        }
    })
    .unwrap();
    found.unwrap()
}

fn refused(config: LogConfig) -> storage::Damage {
    match open_with(config) {
        Err(LogError::Damage(damage)) => *damage,
        Err(error) => panic!("refused for the wrong reason: {error}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn a_flipped_bit_in_the_middle_is_named_by_file_offset_and_record() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), backend, 60);
        let (file, offset, lsn) = find(dir.path(), 30);
        flip(&file, offset + 5);
        let damage = refused(config(dir.path(), backend));
        assert_eq!((&damage.file, damage.record), (&file, Some(lsn)));
        assert_eq!(damage.offset + storage::FRAME_HEADER_BYTES as u64, offset);
        assert_eq!(damage.cause, DamageCause::BatchBody);
        let text = damage.to_string();
        assert!(text.contains(&file.display().to_string()), "{text}");
        assert!(text.contains(&format!("offset {}", damage.offset)), "{text}");
        let Err(storage::VerifyError::Damage(verified)) = verify(dir.path()) else {
            panic!("verify found nothing")
        };
        assert_eq!(*verified, damage);
    }
}

#[test]
fn a_torn_tail_is_cut_and_told() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), backend, 25);
        let (file, offset, _) = find(dir.path(), 25);
        // The last batch was not followed by anything: this is what a power cut
        // in its write leaves.
        let batch = offset - 64 - storage::BATCH_HEADER_BYTES as u64;
        std::fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .write_all_at(&[0; 512], batch)
            .unwrap();
        flip(&file, offset + 600);
        let torn = verify(dir.path()).unwrap().torn;
        let (mut writer, recovery, payloads) = open_with(config(dir.path(), backend)).unwrap();
        let cut = recovery.cut.unwrap();
        assert_eq!(torn.as_ref(), Some(&cut));
        assert_eq!((&cut.file, cut.offset), (&file, batch));
        assert_eq!(cut.bytes, 4096);
        assert_eq!(payloads.len(), 24);
        writer.write(b"instead");
        drop(writer);
        let (_, recovery, payloads) = open_with(config(dir.path(), backend)).unwrap();
        assert_eq!((recovery.cut, payloads.len()), (None, 25));
        assert_eq!(payloads[24], b"instead");
    }
}

#[test]
fn a_damaged_last_batch_is_refused_after_idle_and_after_a_clean_stop() {
    for (backend, clean) in [(Backend::Blocking, true), (Backend::Uring, false)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = open_with(config(dir.path(), backend)).unwrap();
        for n in 1..=5 {
            writer.write(&payload(n));
        }
        if clean {
            writer.log.close().unwrap();
        } else {
            writer.log.idle(0).unwrap();
            writer.log.idle(10_000).unwrap();
            while writer.log.in_flight() {
                writer.notify.wait(1_000_000);
                writer.log.poll().unwrap();
            }
            assert_eq!(writer.log.stats().seals, 2, "one at the start, one when idle");
            drop(writer);
        }
        assert!(verify(dir.path()).unwrap().sealed);
        let (file, offset, lsn) = find(dir.path(), 5);
        flip(&file, offset);
        let damage = refused(config(dir.path(), backend));
        assert_eq!((damage.file, damage.record), (file, Some(lsn)));
    }
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for backend in BACKENDS {
        let (writer, ..) = open_with(config(dir.path(), backend)).unwrap();
        let second = open_with(config(dir.path(), backend));
        assert!(matches!(second, Err(LogError::Locked(locked)) if locked == dir.path()));
        drop(writer);
        open_with(config(dir.path(), backend)).unwrap();
    }
}

#[test]
fn another_cluster_or_worker_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), Backend::Auto, 3);
    let own = config(dir.path(), Backend::Auto);
    for foreign in [LogConfig { cluster: 8, ..own.clone() }, LogConfig { worker: 2, ..own.clone() }]
    {
        assert_eq!(refused(foreign).cause, DamageCause::Foreign);
    }
    assert_eq!(open_with(own).unwrap().2.len(), 3);
}

#[test]
fn missing_truncated_and_counted_files() {
    let fresh = || {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), Backend::Blocking, 60);
        dir
    };
    let dir = fresh();
    std::fs::remove_file(segment(dir.path(), 2)).unwrap();
    let damage = refused(config(dir.path(), Backend::Auto));
    assert_eq!((damage.cause, damage.file), (DamageCause::MissingSegment, segment(dir.path(), 2)));

    let dir = fresh();
    std::fs::File::options()
        .write(true)
        .open(segment(dir.path(), 1))
        .unwrap()
        .set_len(8192)
        .unwrap();
    let damage = refused(config(dir.path(), Backend::Auto));
    assert_eq!((damage.cause, damage.offset), (DamageCause::SegmentLength, 8192));

    let dir = fresh();
    std::fs::remove_file(dir.path().join("prepared")).unwrap();
    assert_eq!(refused(config(dir.path(), Backend::Auto)).cause, DamageCause::MissingSegment);

    let dir = fresh();
    std::fs::remove_file(dir.path().join("identity")).unwrap();
    assert_eq!(refused(config(dir.path(), Backend::Auto)).cause, DamageCause::MissingIdentity);
    assert!(matches!(verify(dir.path()), Err(storage::VerifyError::NoLog(_))));
}

#[test]
fn payloads_of_no_and_of_all_bytes() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = open_with(config(dir.path(), backend)).unwrap();
        let max = writer.log.payload_max();
        let large: Vec<u8> = (0..max).map(|i| i as u8).collect();
        writer.write(b"");
        writer.write(&large);
        writer.write(b"");
        let frame = Frame {
            kind: FrameKind::Note,
            shard: 0,
            term: 0,
            index: 0,
            chain: [0; 32],
            payload: &vec![1; max + 1],
        };
        let refused = writer.log.append(&frame);
        assert!(matches!(refused, Err(LogError::PayloadTooLarge { max: told }) if told == max));
        writer.append(b"x");
        let second = Frame { payload: &large, ..frame };
        assert!(matches!(writer.log.append(&second), Err(LogError::BatchFull)));
        assert!(writer.log.room() < max);
        writer.flush();
        drop(writer);
        let (_, _, payloads) = open_with(config(dir.path(), backend)).unwrap();
        assert_eq!(payloads, [Vec::new(), large, Vec::new(), b"x".to_vec()]);
    }
}

#[test]
fn a_block_without_a_predecessor_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, ..) = open_with(config(dir.path(), Backend::Auto)).unwrap();
    for n in 1..=3 {
        writer.write(&payload(n));
    }
    writer.index = 7;
    let frame =
        Frame { kind: FrameKind::Block, shard: 2, term: 1, index: 8, chain: [0; 32], payload: b"" };
    let refused = writer.log.append(&frame);
    assert!(matches!(refused, Err(LogError::IndexGap { shard: 2, index: 8 })));
}

#[test]
fn a_broken_chain_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, ..) = open_with(config(dir.path(), Backend::Auto)).unwrap();
    writer.write(b"one");
    writer.chain = [3; 32];
    writer.write(b"two");
    drop(writer);
    let damage = refused(config(dir.path(), Backend::Auto));
    assert_eq!(damage.cause, DamageCause::Chain { shard: 2, index: 2 });
    assert_eq!(damage.record, Some(Lsn(2)));
}

#[test]
fn a_log_can_be_verified_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, ..) = open_with(config(dir.path(), Backend::Blocking)).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let verifier = scope.spawn(|| {
            let mut last = Lsn(0);
            let mut rounds = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) || rounds < 3 {
                let report = verify(dir.path()).expect("a running log is sound");
                assert!(report.last >= last);
                last = report.last;
                rounds += 1;
            }
        });
        for n in 1..=400 {
            writer.write(&payload(n));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        verifier.join().unwrap();
    });
    assert_eq!(verify(dir.path()).unwrap().last, Lsn(400));
}

#[test]
fn what_replay_refuses_is_told() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), Backend::Blocking, 5);
    let config = config(dir.path(), Backend::Blocking);
    let mut seen = 0;
    let opened = Log::open(config, Notify::new().unwrap(), &mut |_| {
        seen += 1;
        if seen == 3 { Err(storage::ReplayError::new("not mine")) } else { Ok(()) }
    });
    let Err(error) = opened else { panic!("opened") };
    assert_eq!(error.to_string(), "record 3 cannot be replayed: not mine");
}

struct Judge {
    frames: u64,
    last: u64,
}

impl storage::Replay for Judge {
    fn frame(&mut self, _: Frame<'_>) -> Result<(), storage::ReplayError> {
        self.frames += 1;
        Ok(())
    }

    fn end(&mut self, ends: &[storage::ShardEnd]) -> Result<(), storage::ReplayError> {
        let end = ends.iter().map(|end| end.index).max().unwrap_or(0);
        if end >= self.last { Ok(()) } else { Err(storage::ReplayError::new("ends early")) }
    }
}

/// Whoever holds the log against something else does so before a torn tail is cut: it
/// may be no tail that was torn, but a batch that was acknowledged and is damaged.
#[test]
fn a_log_that_is_refused_as_a_whole_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), Backend::Blocking, 25);
    let (file, offset, _) = find(dir.path(), 25);
    flip(&file, offset);
    let bytes = || {
        let mut files: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
        files.sort();
        files.into_iter().map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>()
    };
    let before = bytes();
    let open = |last| {
        let mut judge = Judge { frames: 0, last };
        let own = config(dir.path(), Backend::Blocking);
        let closed = storage::Closed::lock(&own, Notify::new().unwrap()).unwrap();
        (closed.open_judged(&mut judge).map(|(_, recovery)| recovery), judge.frames)
    };
    for _ in 0..2 {
        let (refused, frames) = open(25);
        let Err(LogError::Refused(why)) = refused else { panic!("opened, or for another reason") };
        assert_eq!((why.to_string().as_str(), frames), ("ends early", 24));
        assert!(bytes() == before, "refusing changes nothing");
    }
    let (opened, _) = open(24);
    assert!(opened.unwrap().cut.is_some());
}

#[test]
fn sizes_that_cannot_work_are_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("log");
    let own = config(&inner, Backend::Auto);
    for broken in [
        LogConfig { batch_max_bytes: 0, ..own.clone() },
        LogConfig { batch_max_bytes: 5_000, ..own.clone() },
        LogConfig { batch_max_bytes: 32 << 20, ..own.clone() },
        LogConfig { segment_bytes: 16 << 10, ..own.clone() },
        LogConfig { segment_bytes: 65_000, ..own.clone() },
    ] {
        assert!(matches!(open_with(broken), Err(LogError::Config(_))));
    }
    assert!(!inner.exists());
}

/// Segments and batches became larger than the spares of the run before.
#[test]
fn spares_smaller_than_a_batch_are_filled_up() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        let (writer, ..) = open_with(config(dir.path(), backend)).unwrap();
        writer.log.close().unwrap();
        let larger = LogConfig {
            segment_bytes: 1 << 20,
            batch_max_bytes: 512 << 10,
            ..config(dir.path(), backend)
        };
        let large = vec![7; 200 << 10];
        for round in 0..3 {
            let (mut writer, _, payloads) = open_with(larger.clone()).unwrap();
            assert_eq!(payloads, vec![large.clone(); round]);
            writer.write(&large);
            writer.log.close().unwrap();
        }
        assert_eq!(verify(dir.path()).unwrap().blocks, 3);
        let first = std::fs::metadata(segment(dir.path(), 1)).unwrap().len();
        assert_eq!(first, 64 << 10, "what was written is left as it is");
    }
}

/// A spare loses its end while the log is open: nothing is acknowledged that the next
/// start would refuse.
#[test]
fn a_spare_cut_short_ends_the_log_before_anything_is_written_to_it() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = open_with(config(dir.path(), backend)).unwrap();
        for spare in [2, 3] {
            while !segment(dir.path(), spare).exists() {
                writer.notify.wait(50_000);
            }
            let options = std::fs::File::options().write(true).open(segment(dir.path(), spare));
            options.unwrap().set_len(8192).unwrap();
        }
        let mut acknowledged = 0;
        let error = loop {
            writer.append(&[3; 9_000]);
            match writer.log.submit() {
                Ok(started) => assert!(started),
                Err(error) => break error,
            }
            while writer.log.in_flight() {
                writer.log.poll().unwrap();
                writer.notify.wait(1_000);
            }
            acknowledged += 1;
        };
        assert!(matches!(error, LogError::Poisoned(_)), "{error}");
        drop(writer);
        let (mut writer, _, payloads) = open_with(config(dir.path(), backend)).unwrap();
        assert_eq!(payloads.len(), acknowledged);
        for _ in 0..20 {
            writer.write(&[4; 9_000]);
        }
        drop(writer);
        assert_eq!(open_with(config(dir.path(), backend)).unwrap().2.len(), acknowledged + 20);
    }
}

#[test]
fn why_no_segment_can_be_prepared_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("reserve")).unwrap();
    let own = LogConfig { reserve_bytes: 1 << 20, ..config(dir.path(), Backend::Blocking) };
    let Err(LogError::Disk(error)) = open_with(own) else { panic!("opened, or not told") };
    assert_eq!((error.op, error.errno), (storage::DiskOp::Prepare, Some(21)), "a directory");
}

/// Files that grew beyond anything the log writes are not read into memory.
#[test]
fn small_files_of_any_length_are_read_in_part_only() {
    for (name, cause) in
        [("identity", None), ("prepared", None), ("released", Some(DamageCause::Identity))]
    {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), Backend::Blocking, 3);
        let options =
            std::fs::File::options().create(true).append(true).open(dir.path().join(name));
        options.unwrap().set_len(1 << 42).unwrap();
        match (open_with(config(dir.path(), Backend::Blocking)), cause) {
            (Ok((.., payloads)), None) => assert_eq!(payloads.len(), 3),
            (Err(LogError::Damage(damage)), Some(cause)) => assert_eq!(damage.cause, cause),
            (Ok(_), Some(_)) => panic!("{name} was taken"),
            (Err(error), _) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn directories_are_made_with_all_above_them() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("data").join("site").join("worker-0");
    storage::disk::make_dir(&log).unwrap();
    assert!(log.is_dir());
    storage::disk::make_dir(&log).unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert!(storage::disk::make_dir(&dir.path().join("file").join("log")).is_err());
}

const CHILD_DIR: &str = "STORAGE_TEST_CHILD_DIR";
const CHILD_BACKEND: &str = "STORAGE_TEST_CHILD_BACKEND";

/// Not a test by itself: the process that `kill_nine` kills. It prints each
/// ordinal once it is durable.
#[test]
fn child_of_kill_nine() {
    use std::io::Write;
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let uring = std::env::var_os(CHILD_BACKEND).is_some_and(|name| name == "uring");
    let backend = if uring { Backend::Uring } else { Backend::Blocking };
    let (mut writer, ..) = open_with(config(Path::new(&dir), backend)).unwrap();
    let mut out = std::io::stdout().lock();
    loop {
        for _ in 0..3 {
            let next = writer.index + 1;
            writer.append(&payload(next));
        }
        let Lsn(durable) = writer.flush();
        writeln!(out, "durable {durable}").unwrap();
    }
}

#[test]
fn kill_nine_loses_nothing_acknowledged() {
    use std::io::{BufRead, BufReader};
    for name in ["blocking", "uring"] {
        let dir = tempfile::tempdir().unwrap();
        let mut acked = 0;
        for round in 1..=6u64 {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["child_of_kill_nine", "--exact", "--nocapture"])
                .env(CHILD_DIR, dir.path())
                .env(CHILD_BACKEND, name)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut told = 0;
            for line in lines {
                let line = line.unwrap_or_default();
                let number = line.strip_prefix("durable ").and_then(|text| text.parse().ok());
                acked = number.unwrap_or(acked);
                told += u64::from(number.is_some());
                if told == 20 * round {
                    child.kill().unwrap();
                }
            }
            child.wait().unwrap();
            assert!(told >= 20 * round, "the child ended by itself");
            let (_writer, recovery, payloads) =
                open_with(config(dir.path(), Backend::Blocking)).unwrap();
            assert!(recovery.last.0 >= acked, "{} of {acked}", recovery.last);
            assert!((1..).zip(&payloads).all(|(n, bytes)| *bytes == payload(n)));
        }
    }
}

/// A small file system that fills up: needs the right to mount a tmpfs.
#[test]
fn a_full_file_system_keeps_the_reserve_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
        .arg(dir.path())
        .output();
    if !mount.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: mounting a tmpfs is not permitted here");
        return;
    }
    let log_dir = dir.path().join("log");
    let result = std::panic::catch_unwind(|| full_file_system(dir.path(), &log_dir));
    let unmounted = std::process::Command::new("umount").arg(dir.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn full_file_system(root: &Path, log_dir: &Path) {
    let config = LogConfig {
        segment_bytes: 1 << 20,
        batch_max_bytes: 64 << 10,
        reserve_bytes: 2 << 20,
        ..config(log_dir, Backend::Blocking)
    };
    let (mut writer, recovery, _) = open_with(config.clone()).unwrap();
    assert!(recovery.disk.backend == BackendKind::Blocking);
    wait_for_space(&mut writer, storage::Space::Ok);
    // Both spares too: a half-made one would be filled over.
    for _ in 0..200 {
        if writer.log.stats().disk.spares == 2 {
            break;
        }
        writer.notify.wait(50_000);
    }
    assert_eq!(writer.log.stats().disk.spares, 2);
    // Someone else fills the file system.
    let filler = root.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 16 << 10]).is_ok() {}
    wait_for_space(&mut writer, storage::Space::Reserve);
    // What is already under way can still be logged, segments further on.
    let before = writer.log.stats().segment;
    let mut last = Lsn(0);
    while writer.log.stats().segment < before + 3 {
        writer.append(&[7; 30_000]);
        last = writer.flush();
    }
    assert_eq!(writer.log.space(), storage::Space::Reserve);
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    wait_for_space(&mut writer, storage::Space::Ok);
    writer.append(b"after");
    assert!(writer.flush() > last);
    let appended = writer.log.appended().0;
    drop(writer);
    assert_eq!(open_with(config).unwrap().2.len() as u64, appended);
}

fn wait_for_space(writer: &mut Writer, space: storage::Space) {
    for _ in 0..200 {
        if writer.log.space() == space {
            return;
        }
        writer.notify.wait(50_000);
    }
    panic!("space never became {space:?}");
}
