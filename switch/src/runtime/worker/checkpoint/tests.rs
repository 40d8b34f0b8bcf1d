//! The worker's checkpoints on a log of real files: written, restored, failing.

use super::*;
use crate::engine::{Engine, EngineConfig};
use crate::replica::{ReplicaConfig, Timing};
use crate::runtime::testing::{Cluster, eventually};
use crate::runtime::worker::restore::restore_all;
use storage::{LogConfig, Notify};

/// Time between two turns of a scene.
const STEP_US: u64 = 100_000;

struct Scene {
    dir: tempfile::TempDir,
    log: Log,
    shards: Vec<Shard>,
    checkpointer: Checkpointer,
    metrics: Arc<Metrics>,
    engines: Vec<EngineConfig>,
    now: Now,
}

impl Scene {
    fn new(shards: u16) -> Self {
        let config = &Cluster::new(1).configs[0];
        let engines: Vec<EngineConfig> = (0..shards).map(|shard| config.engine(shard)).collect();
        let dir = tempfile::tempdir().unwrap();
        let notify = Notify::new().unwrap();
        let log_config = LogConfig { segment_bytes: 2 << 20, ..LogConfig::new(dir.path(), 1, 0) };
        let (log, _) = Log::open(log_config, notify.clone(), &mut |_| Ok(())).unwrap();
        let net_wake = Arc::new(tokio::sync::Notify::new());
        let exchange = Arc::new(Exchange::new(4, notify, net_wake));
        let metrics = Arc::new(Metrics::new(config));
        let shard = |engine: &EngineConfig| {
            let replica = crate::replica::Recovering::new(ReplicaConfig {
                shard: engine.shard,
                site: 1,
                witnesses: Vec::new(),
                voters: vec![1],
                preference: vec![1],
                seed: 1,
                tail_bytes_max: 0,
                timing: Timing::default(),
            });
            Shard::new(Engine::new(engine.clone()), replica.start(), Default::default())
        };
        let last = vec![Last::default(); engines.len()];
        let shards: Vec<Shard> = engines.iter().map(shard).collect();
        let checkpointer = Checkpointer::start(&log, &exchange, &metrics, last, 1 << 20).unwrap();
        Self { dir, log, shards, checkpointer, metrics, engines, now: Now::default() }
    }

    fn run_until(&mut self, what: &str, is_true: impl Fn(&Metrics) -> bool) {
        eventually(what, || {
            self.now.mono_us += STEP_US;
            self.checkpointer.run(&mut self.shards, (0, Space::Ok), self.now);
            is_true(&self.metrics)
        });
    }
}

#[test]
fn shards_are_written_one_after_the_other_the_most_grown_first() {
    let mut scene = Scene::new(3);
    scene.run_until("nothing is due", |_| true);
    assert!(scene.checkpointer.active.is_none());
    (scene.shards[1].grown, scene.shards[2].grown) = (1 << 20, 2 << 20);
    scene.checkpointer.run(&mut scene.shards, (0, Space::Reserve), scene.now);
    assert!(scene.checkpointer.active.is_none(), "not while the disk is full");
    scene.checkpointer.run(&mut scene.shards, (0, Space::Ok), scene.now);
    assert_eq!(scene.checkpointer.active.as_ref().map(|active| active.at), Some(2));
    scene.run_until("both are written", |metrics| metrics.checkpoints.value() == 2);
    assert_eq!(scene.shards.iter().map(|shard| shard.grown).sum::<u64>(), 0);
    let restored = restore_all(&scene.log.checkpoints(), &scene.engines, &[1]);
    let restored: Vec<bool> = restored.iter().map(Option::is_some).collect();
    assert_eq!(restored, [false, true, true]);
}

#[test]
fn slices_leave_the_payments_their_time() {
    let mut scene = Scene::new(1);
    let base = scene.shards[0].replica.base().unwrap();
    let waiting = VecDeque::new();
    let active = Active { at: 0, shard: 0, base, begun_us: 0, waiting, whole: false };
    scene.checkpointer.active = Some(active);
    let mut run = |mono_us, appended| {
        let now = Now { mono_us, ..scene.now };
        scene.checkpointer.run(&mut scene.shards, (appended, Space::Ok), now);
        (scene.metrics.checkpoint_slice.count(), scene.checkpointer.due_us())
    };
    assert_eq!(run(5_000, 0), (1, Some(6_000)));
    assert_eq!(run(5_999, 0), (1, Some(6_000)), "asked for, and too early");
    assert_eq!(run(6_300, 1 << 20), (2, Some(7_300)));
    assert_eq!(run(7_300, (1 << 20) + 1), (3, Some(7_300)), "the log waits for it");
    assert_eq!(run(7_300, (1 << 20) + 1), (4, Some(7_300)));
}

#[test]
fn a_failure_is_counted_and_tried_again_later() {
    let mut scene = Scene::new(1);
    let (dir, elsewhere) = (scene.dir.path().to_owned(), scene.dir.path().with_extension("away"));
    std::fs::rename(&dir, &elsewhere).unwrap();
    scene.shards[0].grown = 2 << 20;
    scene.run_until("it fails", |metrics| metrics.checkpoint_failures.value() == 1);
    assert!(scene.checkpointer.active.is_none());
    let after = scene.shards[0].engine.checkpoint_slice(1, &mut |_| {});
    assert_eq!(after, Slice::None, "the engine keeps nothing aside for it");
    std::fs::rename(&elsewhere, &dir).unwrap();
    let before_us = scene.now.mono_us;
    scene.run_until("it is written", |metrics| metrics.checkpoints.value() == 1);
    assert!(scene.now.mono_us >= before_us + RETRY_US - STEP_US, "not at once");
}

#[test]
fn a_quiet_shard_is_written_when_the_others_have_grown() {
    let mut scene = Scene::new(2);
    scene.shards[1].grown = 1;
    let run = |scene: &mut Scene, appended| {
        scene.checkpointer.run(&mut scene.shards, (appended, Space::Ok), scene.now);
        scene.checkpointer.active.as_ref().map(|active| active.at)
    };
    assert_eq!(run(&mut scene, 1 << 20), None);
    assert_eq!(run(&mut scene, (1 << 20) + 1), Some(1), "it has a block, and the log moved on");
    scene.run_until("it is written", |metrics| metrics.checkpoints.value() == 1);
    assert_eq!(run(&mut scene, 10 << 20), None, "nothing came since");
}

/// Nobody plans again for segments that were to go: a release that failed is done
/// again, after a pause. A later one may take its place.
#[test]
fn a_release_that_failed_is_tried_again() {
    use storage::disk::SimDisk;
    use storage::{Frame, FrameKind, Settings, chain_next};
    let config = &Cluster::new(1).configs[0];
    let settings = Settings {
        cluster: 1,
        worker: 0,
        segment_bytes: 68 << 10,
        batch_max_bytes: 64 << 10,
        idle_seal_us: 1_000,
    };
    let disk = SimDisk::new(3, settings.segment_bytes);
    let (mut log, _) = Log::with_disk(disk.clone(), settings, &mut |_| Ok(())).unwrap();
    let (mut chain, payload) = (storage::CHAIN_START, [7; 40 << 10]);
    for index in 1..=4 {
        chain = chain_next(&chain, &payload);
        let (kind, shard, term) = (FrameKind::Block, 0, 1);
        log.append(&Frame { kind, shard, term, index, chain, payload: &payload }).unwrap();
        log.submit().unwrap();
        while log.in_flight() {
            log.poll().unwrap();
        }
    }
    let metrics = Arc::new(Metrics::new(config));
    let mut checkpointer = Checkpointer::here(&log, &metrics, vec![Last::default()], 0);
    let release = log.plan_release(&[Checkpoint { shard: 0, index: 4, term: 1, chain }]);
    checkpointer.release(release.unwrap().expect("something to release"));
    let mut turn = |mono_us| {
        let now = Now { mono_us, ..Now::default() };
        checkpointer.run(&mut [], (0, Space::Ok), now);
        let works = checkpointer.desk().work();
        (works, checkpointer.may_release())
    };
    disk.fail_files_after(0);
    assert_eq!(turn(1_000), (true, false), "it fails");
    assert!(disk.contents(1).is_some());
    disk.fail_files_after(u64::MAX);
    assert_eq!(turn(2_000), (false, true), "not at once");
    assert_eq!(turn(2_000 + RETRY_US), (true, false));
    assert!(disk.contents(1).is_none() && disk.contents(2).is_none());
    assert_eq!(turn(3_000 + RETRY_US), (false, true));
}
