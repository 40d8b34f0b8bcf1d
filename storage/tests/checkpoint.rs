//! Checkpoint files: whole or not there after a crash at every step, the last two
//! kept, and anything altered named by its place.

use storage::disk::{Files, SimDisk, Tear};
use storage::{
    CHECKPOINT_CHUNK_MAX, CHECKPOINT_NOTE_BYTES, Checkpoint, CheckpointError, CheckpointFault,
    CheckpointNote, Checkpoints, Closed, Log, LogConfig, Notify, Settings,
};

fn settings() -> Settings {
    Settings {
        cluster: 9,
        worker: 4,
        segment_bytes: 64 << 10,
        batch_max_bytes: 8 << 10,
        idle_seal_us: 1_000,
    }
}

fn of(shard: u16, index: u64) -> Checkpoint {
    Checkpoint { shard, index, term: index / 10 + 1, chain: [index as u8; 32] }
}

fn note(index: u64) -> CheckpointNote {
    [index as u8; CHECKPOINT_NOTE_BYTES]
}

fn chunks(index: u64) -> Vec<Vec<u8>> {
    (1..=index % 4 + 1).map(|n| vec![(index * 3 + n) as u8; (n * 700) as usize]).collect()
}

fn write<F: Files>(store: &Checkpoints<F>, of: Checkpoint) -> Result<(), CheckpointError> {
    let mut writer = store.create(of, &note(of.index))?;
    for chunk in chunks(of.index) {
        if let Err(error) = writer.chunk(&chunk) {
            writer.abandon();
            return Err(error);
        }
    }
    assert_eq!(writer.commit()?, of);
    Ok(())
}

fn read<F: Files>(
    store: &mut Checkpoints<F>,
    shard: u16,
    index: u64,
) -> Result<(Checkpoint, Vec<Vec<u8>>), CheckpointError> {
    let mut chunks = Vec::new();
    let (of, noted) = store.read(shard, index, &mut |chunk| chunks.push(chunk.to_vec()))?;
    assert_eq!(noted, Some(note(of.index)));
    Ok((of, chunks))
}

fn check<F: Files>(store: &mut Checkpoints<F>, shard: u16, index: u64) {
    assert_eq!(read(store, shard, index).unwrap(), (of(shard, index), chunks(index)));
}

fn sim(seed: u64) -> (SimDisk, Checkpoints<SimDisk>) {
    let disk = SimDisk::new(seed, 64 << 10);
    let log = Log::with_disk(disk.clone(), settings(), &mut |_| Ok(())).unwrap().0;
    (disk, log.checkpoints())
}

#[test]
fn the_last_two_of_each_shard_are_kept_on_files() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        segment_bytes: 64 << 10,
        batch_max_bytes: 8 << 10,
        reserve_bytes: 0,
        ..LogConfig::new(dir.path(), 7, 1)
    };
    let open = || Log::open(config.clone(), Notify::new().unwrap(), &mut |_| Ok(())).unwrap().0;
    let log = open();
    let mut store = log.checkpoints();
    for index in [10, 20, 300, 4000] {
        write(&store, of(3, index)).unwrap();
    }
    write(&store, of(300, 7)).unwrap();
    // One that was never finished, and a chunk that cannot be.
    let mut unfinished = store.create(of(3, 5000), &note(1)).unwrap();
    assert!(matches!(unfinished.chunk(&[]), Err(CheckpointError::ChunkBytes(0))));
    let long = vec![0; CHECKPOINT_CHUNK_MAX + 1];
    assert!(matches!(unfinished.chunk(&long), Err(CheckpointError::ChunkBytes(_))));
    drop((unfinished, log));
    let log = open();
    store = log.checkpoints();
    assert_eq!(store.list(3).unwrap(), [4000, 300]);
    assert_eq!((store.list(300).unwrap(), store.list(1).unwrap()), (vec![7], vec![]));
    check(&mut store, 3, 4000);
    check(&mut store, 3, 300);
    check(&mut store, 300, 7);
    let missing = read(&mut store, 3, 20);
    assert!(matches!(missing, Err(CheckpointError::Missing { shard: 3, index: 20 })));
    assert!(
        !std::fs::read_dir(dir.path())
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().ends_with(".tmp") })
    );
}

/// The process dies before each operation in turn, then the power goes.
#[test]
fn a_crash_at_every_step_leaves_whole_checkpoints_only() {
    for seed in 0..20 {
        for steps in 0.. {
            let (disk, mut store) = sim(seed);
            write(&store, of(1, 10)).unwrap();
            write(&store, of(1, 20)).unwrap();
            disk.fail_files_after(steps);
            let written = write(&store, of(1, 30));
            let committed = written.is_ok();
            disk.crash(Tear::Nothing);
            let found = store.list(1).unwrap();
            assert!(!committed || found[0] == 30, "a committed one is there");
            assert!(found.contains(&20), "the one before is there: {found:?}");
            assert!(found.iter().all(|index| [10, 20, 30].contains(index)));
            for index in found {
                check(&mut store, 1, index);
            }
            // It goes on as if nothing had been.
            write(&store, of(1, 30)).unwrap();
            write(&store, of(1, 40)).unwrap();
            assert_eq!(store.list(1).unwrap(), [40, 30]);
            if committed {
                break;
            }
        }
    }
}

/// A disk that fails at one step and then works again, as a full one does that
/// somebody makes room on.
#[test]
fn a_failure_at_every_step_leaves_nothing_but_checkpoints() {
    let mut failures = 0;
    for steps in 0.. {
        let (disk, mut store) = sim(7);
        for index in [10, 20] {
            write(&store, of(1, index)).unwrap();
        }
        let before = disk.file_operations();
        disk.fail_one_file_after(steps);
        let written = write(&store, of(1, 30));
        if disk.file_operations() - before <= steps {
            break;
        }
        failures += 1;
        let mut files = disk.clone();
        let names = files.list().unwrap();
        assert!(!names.iter().any(|name| name.ends_with(".tmp")), "{steps}: {names:?}");
        let found = store.list(1).unwrap();
        assert!(written.is_err() || found[0] == 30);
        // Only the older ones could not be removed: it is there all the same.
        assert!(written.is_err() || found.len() == 3, "{steps}: {found:?}");
        for index in found {
            check(&mut store, 1, index);
        }
        write(&store, of(1, 40)).unwrap();
        assert_eq!(store.list(1).unwrap().len(), 2, "the next one removes what stayed");
    }
    assert!(failures > 8, "only {failures} steps");
}

#[test]
fn every_altered_byte_and_every_length_is_refused() {
    let (disk, mut store) = sim(1);
    write(&store, of(2, 1)).unwrap();
    let name = "0002-0000000000000001.checkpoint";
    let mut whole = Vec::new();
    disk.edit_file(name, |bytes| whole = bytes.clone());
    for at in 0..whole.len() {
        disk.edit_file(name, |bytes| bytes[at] ^= 1 << (at % 8));
        let error = read(&mut store, 2, 1).unwrap_err();
        let CheckpointError::Bad { file, offset, .. } = error else { panic!("{error}") };
        assert!(file.ends_with(name) && offset <= at as u64);
        disk.edit_file(name, |bytes| bytes.clone_from(&whole));
    }
    for length in (0..whole.len()).step_by(37) {
        disk.edit_file(name, |bytes| bytes.truncate(length));
        assert!(read(&mut store, 2, 1).is_err());
        disk.edit_file(name, |bytes| bytes.clone_from(&whole));
    }
    disk.edit_file(name, |bytes| bytes.push(0));
    assert!(read(&mut store, 2, 1).is_err());
}

#[test]
fn a_foreign_or_renamed_checkpoint_is_refused() {
    let (mine, mut store) = sim(1);
    let (other, theirs) = sim(2);
    write(&theirs, of(2, 1)).unwrap();
    write(&store, of(2, 1)).unwrap();
    let name = "0002-0000000000000001.checkpoint";
    let mut foreign = Vec::new();
    other.edit_file(name, |bytes| foreign = bytes.clone());
    mine.edit_file(name, |bytes| *bytes = foreign);
    let foreign = |error| {
        matches!(error, CheckpointError::Bad { offset: 0, fault: CheckpointFault::Foreign, .. })
    };
    assert!(foreign(read(&mut store, 2, 1).unwrap_err()));
    write(&store, of(2, 1)).unwrap();
    let mut files = mine.clone();
    files.rename(name, "0002-0000000000000005.checkpoint").unwrap();
    assert!(foreign(read(&mut store, 2, 5).unwrap_err()));
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_the_one_before_counts() {
    let (disk, mut store) = sim(1);
    write(&store, of(1, 10)).unwrap();
    write(&store, of(1, 20)).unwrap();
    store.set_aside(1, 20).unwrap();
    disk.crash(Tear::Nothing);
    assert_eq!(store.list(1).unwrap(), [10]);
    write(&store, of(1, 30)).unwrap();
    assert_eq!(store.list(1).unwrap(), [30, 10], "the sound one is not given up for it");
    let mut files = disk.clone();
    assert!(files.list().unwrap().iter().any(|name| name.ends_with(".checkpoint.damaged")));
}

#[test]
fn two_checkpoints_can_be_written_at_the_same_time() {
    let (disk, mut store) = sim(4);
    let (one, other) = (store.clone(), store.clone());
    let begin = |store: &Checkpoints<SimDisk>, of| store.create(of, &note(of.index)).unwrap();
    let mut writers = [(6, begin(&one, of(1, 6))), (7, begin(&other, of(2, 7)))];
    for nth in 0..4 {
        for (index, writer) in &mut writers {
            if let Some(chunk) = chunks(*index).get(nth) {
                writer.chunk(chunk).unwrap();
            }
        }
    }
    for (_, writer) in writers {
        writer.commit().unwrap();
    }
    disk.crash(Tear::Nothing);
    check(&mut store, 1, 6);
    check(&mut store, 2, 7);
}

/// The same checkpoint from two sides: neither spoils the other's file.
#[test]
fn one_checkpoint_can_be_written_twice_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_bytes: 2 << 20, ..LogConfig::new(dir.path(), 9, 4) };
    let log = Log::open(config, Notify::new().unwrap(), &mut |_| Ok(())).unwrap().0;
    let (disk, store) = sim(4);
    at_the_same_time(log.checkpoints(), || {});
    at_the_same_time(store, || disk.crash(Tear::Nothing));
}

fn at_the_same_time<F: Files>(mut store: Checkpoints<F>, crash: impl Fn()) {
    for (index, first) in [(7, true), (11, false)] {
        let of = of(1, index);
        let mut own = store.create(of, &note(index)).unwrap();
        let mut beside = store.create_beside(of, &note(index)).unwrap();
        for chunk in chunks(index) {
            own.chunk(&chunk).unwrap();
            beside.chunk(&chunk).unwrap();
        }
        let [one, other] = if first { [own, beside] } else { [beside, own] };
        one.commit().unwrap();
        check(&mut store, 1, index);
        other.commit().unwrap();
        crash();
        check(&mut store, 1, index);
        // One given up takes nothing of the other with it.
        let mut own = store.create(of, &note(index)).unwrap();
        let beside = store.create_beside(of, &note(index)).unwrap();
        own.chunk(b"another state").unwrap();
        beside.abandon();
        own.commit().unwrap();
    }
}

#[test]
fn a_checkpoint_given_up_leaves_nothing() {
    let (disk, mut store) = sim(1);
    let mut writer = store.create(of(1, 10), &note(1)).unwrap();
    writer.chunk(b"half").unwrap();
    writer.abandon();
    assert_eq!(store.list(1).unwrap(), []);
    let mut files = disk.clone();
    assert!(!files.list().unwrap().iter().any(|name| name.ends_with(".tmp")));
}

#[test]
fn checkpoints_can_be_read_before_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_bytes: 2 << 20, ..LogConfig::new(dir.path(), 1, 0) };
    let closed = Closed::lock(&config, Notify::new().unwrap()).unwrap();
    assert!(closed.checkpoints().is_none(), "a new log has no identity yet");
    let (log, _) = closed.open(&mut |_| Ok(())).unwrap();
    write(&log.checkpoints(), of(3, 7)).unwrap();
    log.close().unwrap();
    let closed = Closed::lock(&config, Notify::new().unwrap()).unwrap();
    let mut store = closed.checkpoints().unwrap();
    check(&mut store, 3, 7);
    let second = Closed::lock(&config, Notify::new().unwrap());
    assert!(second.is_err(), "it is locked meanwhile");
}

#[test]
fn a_checkpoint_is_read_chunk_by_chunk_to_its_end() {
    let (_disk, mut store) = sim(8);
    write(&store, of(1, 6)).unwrap();
    let mut reader = store.open(1, 6).unwrap();
    assert_eq!((reader.of(), reader.note()), (of(1, 6), Some(note(6))));
    let (mut chunk, mut read_back) = (Vec::new(), Vec::new());
    while reader.chunk(&mut chunk).unwrap() {
        read_back.push(chunk.clone());
    }
    assert_eq!(read_back, chunks(6));
    assert!(!reader.chunk(&mut chunk).unwrap(), "the end stays the end");
    assert_eq!(store.list(1).unwrap(), [6]);
}

/// A file as it was written before there were notes, byte by byte.
#[test]
fn a_file_of_the_first_version_is_read_and_a_newer_one_named() {
    let (disk, mut store) = sim(9);
    write(&store, of(1, 6)).unwrap();
    let name = "0001-0000000000000006.checkpoint";
    let patch = |version: u8, keep_note: bool| {
        disk.edit_file(name, |bytes| {
            bytes[4] = version;
            if !keep_note {
                bytes[80..80 + CHECKPOINT_NOTE_BYTES].fill(0);
            }
            let crc = crc32c::crc32c(&bytes[..124]);
            bytes[124..128].copy_from_slice(&crc.to_le_bytes());
            let end = bytes.len() - 128;
            let sum = <sha2::Sha256 as sha2::Digest>::digest(&bytes[..end]);
            bytes[end + 24..end + 56].copy_from_slice(&sum);
            let crc = crc32c::crc32c(&bytes[end..end + 124]);
            bytes[end + 124..].copy_from_slice(&crc.to_le_bytes());
        });
    };
    patch(1, false);
    let (found, noted) = store.read(1, 6, &mut |_| {}).unwrap();
    assert_eq!((found, noted), (of(1, 6), None));
    patch(3, true);
    let newer = store.read(1, 6, &mut |_| {}).unwrap_err();
    let CheckpointError::Bad { offset: 0, fault, .. } = newer else { panic!("{newer}") };
    assert_eq!(fault, CheckpointFault::Version(3));
}
