//! Logs and checkpoints that do not belong together.

use bytes::Bytes;
use storage::disk::{SimDisk, Tear};
use storage::{Closed, Log, LogError, Settings, chain_next};

use super::*;
use crate::replica::{Base, Members, Timing};
use crate::runtime::testing::Cluster;

const BLOCKS: u64 = 5;

fn log_settings() -> Settings {
    Settings {
        cluster: 7,
        worker: 0,
        segment_bytes: 68 << 10,
        batch_max_bytes: 64 << 10,
        idle_seal_us: 1_000,
    }
}

fn settings(engine: EngineConfig) -> WorkerSettings {
    WorkerSettings {
        site: 1,
        queue_delay_max_us: 1,
        commit_interval_us: 0,
        blocks_bytes_max: 48 << 10,
        engines: vec![engine],
        sites: 1,
        voters: vec![1],
        witnesses: Vec::new(),
        cluster: 7,
        timing: Timing::default(),
        tail_bytes_max: 0,
        checkpoint_bytes: 0,
        keep_bytes: 0,
        segment_bytes: 68 << 10,
    }
}

/// A log of five empty blocks, the last one without a seal behind it, and a
/// checkpoint of the state after all of them.
fn written(config: &EngineConfig) -> SimDisk {
    let disk = SimDisk::new(3, log_settings().segment_bytes);
    let (mut log, _) = Log::with_disk(disk.clone(), log_settings(), &mut |_| Ok(())).unwrap();
    let (mut engine, mut chain) = (Engine::new(config.clone()), storage::CHAIN_START);
    for index in 1..=BLOCKS {
        chain = chain_next(&chain, b"");
        let (kind, shard, term) = (FrameKind::Block, 0, 1);
        log.append(&Frame { kind, shard, term, index, chain, payload: b"" }).unwrap();
        log.submit().unwrap();
        while log.in_flight() {
            log.poll().unwrap();
        }
        engine.apply(index, term, &Bytes::new(), Now::default(), &mut Outputs::default()).unwrap();
    }
    let members = Members::new(&[1]);
    let base = Base { index: BLOCKS, term: 1, chain, members, received: false };
    let mut writer = log.checkpoints().create(base.checkpoint(0), &base.note()).unwrap();
    engine.checkpoint(&mut |chunk| writer.chunk(chunk).unwrap());
    writer.commit().unwrap();
    drop(log);
    disk.crash(Tear::Nothing);
    disk
}

/// Recovers as a start does.
fn start(disk: &SimDisk, settings: &WorkerSettings) -> Result<u64, LogError> {
    let closed = Closed::with_disk(disk.clone(), log_settings())?;
    let mut recovering = Recovering::new(settings, closed.checkpoints().as_ref());
    closed.open_judged(&mut recovering)?;
    Ok(recovering.finish().0[0].engine.applied())
}

/// The last batch is damaged, which without its seal looks like a torn tail. The
/// checkpoint knows better, and the bytes stay for whoever looks at them.
#[test]
fn a_damaged_batch_under_a_checkpoint_is_refused_and_left_as_it_is() {
    let settings = settings(Cluster::new(1).configs[0].engine(0));
    let disk = written(&settings.engines[0]);
    let contents = || (1..).map_while(|segment| disk.contents(segment)).collect::<Vec<_>>();
    let segment = contents().remove(0);
    let batches = segment.chunks(storage::BLOCK_BYTES).filter(|block| block.starts_with(b"PSWB"));
    // The first is the seal of the opening.
    let last = batches.count() as u64;
    assert_eq!(last, 1 + BLOCKS);
    let at = last as usize * storage::BLOCK_BYTES + 40;
    disk.edit(1, |bytes| bytes[at] ^= 4);
    let before = contents();
    for _ in 0..2 {
        let refused = start(&disk, &settings).unwrap_err();
        assert!(matches!(refused, LogError::Refused(_)), "{refused}");
        assert!(contents() == before, "refusing changes nothing");
    }
    disk.edit(1, |bytes| bytes[at] ^= 4);
    assert_eq!(start(&disk, &settings).unwrap(), BLOCKS);
}
