//! One end of a transfer on a simulated disk, with the other end played by the test.

use super::*;
use crate::engine::output::Outputs;
use crate::engine::{CHUNK_BYTES_MAX, Engine};
use crate::replica::Append;
use crate::replica::{self, Base, Members, ReplicaConfig, Timing};
use crate::runtime::mesh::Traffic;
use crate::runtime::testing::Cluster;
use crate::runtime::worker::checkpoint::Last;
use crate::runtime::worker::{Recovering, WorkerSettings};
use storage::{Closed, Frame, FrameKind, Settings, SimDisk};

const INDEX: u64 = 5;

/// Site 2, a follower with an empty log, and what it sends to site 1.
struct Scene {
    disk: SimDisk,
    log: Log<SimDisk>,
    shards: Vec<Shard>,
    checkpoints: Checkpointer<SimDisk>,
    transfers: Transfers<SimDisk>,
    mesh: Arc<Mesh>,
    metrics: Arc<Metrics>,
    engine: EngineConfig,
    space: Space,
    now: Now,
}

impl Scene {
    fn new() -> Self {
        let config = &Cluster::new(1).configs[0];
        let settings = log_settings();
        let disk = SimDisk::new(3, settings.segment_bytes);
        let log = Log::with_disk(disk.clone(), settings, &mut |_| Ok(())).unwrap().0;
        let (mesh, metrics) = (Arc::new(Mesh::new(2, 3, 1)), Arc::new(Metrics::new(config)));
        mesh.route(1).unwrap().set_up(true);
        let engine = config.engine(0);
        let replica = replica::Recovering::new(ReplicaConfig {
            shard: 0,
            site: 2,
            witnesses: Vec::new(),
            voters: vec![1, 2, 3],
            preference: vec![1, 2, 3],
            seed: 1,
            tail_bytes_max: 0,
            timing: Timing::default(),
        });
        let shard = Shard::new(Engine::new(engine.clone()), replica.start(), Outputs::default());
        let engines = [engine.clone()];
        Self {
            checkpoints: Checkpointer::here(&log, &metrics, vec![Last::default()], 0),
            transfers: Transfers::here(&log, &mesh, &metrics, &engines, false),
            shards: vec![shard],
            disk,
            log,
            mesh,
            metrics,
            engine,
            space: Space::Ok,
            now: Now::default(),
        }
    }

    /// The state of five empty blocks, as chunks.
    fn state(&self) -> Vec<Vec<u8>> {
        let mut engine = Engine::new(self.engine.clone());
        for index in 1..=INDEX {
            engine.apply(index, 1, b"", Now::default(), &mut Outputs::default()).unwrap();
        }
        let mut chunks = Vec::new();
        engine.checkpoint(&mut |chunk| chunks.push(chunk.to_vec()));
        chunks
    }

    fn begin(bytes: u64) -> Body {
        let members = Members::new(&[1, 2, 3]);
        let base = Base { index: INDEX, term: 1, chain: [4; 32], members, received: false };
        Body::Begin { term: 1, base, bytes }
    }

    /// Site 1 sends this; everything is carried out; what is answered.
    fn send(&mut self, id: u64, body: Body) -> Vec<Body> {
        let packet = Bytes::from(Parcel { shard: 0, id, body }.encode());
        assert!(self.transfers.receive(1, &packet));
        loop {
            let (shards, checkpoints) = (&mut self.shards, &mut self.checkpoints);
            self.transfers.run(shards, checkpoints, self.space, self.now).unwrap();
            if !self.transfers.desk().work() {
                break;
            }
        }
        let queue = self.mesh.route(1).unwrap().queue(Traffic::States);
        let answers = std::iter::from_fn(|| queue.take());
        answers.map(|packet| Parcel::decode(&packet.into()).unwrap().body).collect()
    }

    fn slice(&mut self, id: u64, number: u32, bytes: &[u8]) -> Vec<Body> {
        self.send(id, Body::Slice { number, bytes: Bytes::copy_from_slice(bytes) })
    }

    fn files(&mut self) -> Vec<u64> {
        self.log.checkpoints().list(0).unwrap()
    }
}

fn log_settings() -> Settings {
    Settings {
        cluster: 7,
        worker: 0,
        segment_bytes: 68 << 10,
        batch_max_bytes: 64 << 10,
        idle_seal_us: 1_000,
    }
}

/// A site whose log begins anew behind a state of another one starts over: what it
/// starts from, or why it does not.
fn restarted(disk: &SimDisk, engine: &EngineConfig) -> Result<u64, String> {
    let settings = WorkerSettings {
        site: 2,
        queue_delay_max_us: 1,
        commit_interval_us: 0,
        blocks_bytes_max: 48 << 10,
        engines: vec![engine.clone()],
        sites: 3,
        voters: vec![1, 2, 3],
        witnesses: Vec::new(),
        cluster: 7,
        timing: Timing::default(),
        tail_bytes_max: 0,
        checkpoint_bytes: 0,
        keep_bytes: 0,
        segment_bytes: 68 << 10,
    };
    let closed = Closed::with_disk(disk.clone(), log_settings()).map_err(|e| e.to_string())?;
    let mut recovering = Recovering::new(&settings, closed.checkpoints().as_ref());
    let mut replay = |frame: Frame<'_>| {
        recovering.frame(&frame).map_err(|error| storage::ReplayError::new(error.to_string()))
    };
    let (_log, recovery) = closed.open(&mut replay).map_err(|error| error.to_string())?;
    recovering.check(&recovery.shards).map_err(|error| error.to_string())?;
    Ok(recovering.finish().0[0].engine.applied())
}

fn taken(slices: u32) -> Vec<Body> {
    vec![Body::Taken { slices }]
}

#[test]
fn a_state_comes_in_slices_and_is_durable_when_it_counts() {
    let mut scene = Scene::new();
    let state = scene.state();
    assert_eq!(scene.send(9, Scene::begin(1 << 20)), taken(0));
    assert_eq!(scene.send(9, Scene::begin(1 << 20)), taken(0), "sent again");
    for (number, chunk) in (0..).zip(&state) {
        assert_eq!(scene.slice(9, number + 1, b"too early"), []);
        assert_eq!(scene.slice(9, number, chunk), taken(number + 1));
        assert_eq!(scene.slice(9, number, b"sent again"), taken(number + 1));
    }
    assert_eq!((scene.files(), scene.shards[0].engine.applied()), (vec![], 0));
    let count = state.len() as u32;
    assert_eq!(scene.slice(9, count, b""), taken(count + 1));
    assert_eq!(scene.slice(9, count, b""), taken(count + 1), "its sender had not heard");
    assert_eq!((scene.files(), scene.shards[0].engine.applied()), (vec![INDEX], INDEX));
    assert_eq!(scene.shards[0].replica.applied(), INDEX);
    assert_eq!(scene.metrics.snapshots_installed.value(), 1);
    assert_eq!(scene.checkpoints.last(0).index, INDEX);
    scene.disk.crash(storage::disk::Tear::Nothing);
    assert_eq!(scene.files(), [INDEX]);
    assert_eq!(scene.send(10, Scene::begin(1 << 20)), [Body::Refused], "it has that already");
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let mut scene = Scene::new();
    let state = scene.state();
    assert_eq!(scene.slice(1, 0, &state[0]), [Body::Refused], "never announced");
    scene.space = Space::Reserve;
    assert_eq!(scene.send(1, Scene::begin(1 << 20)), [Body::Refused], "no room");
    scene.space = Space::Ok;
    assert_eq!(scene.send(1, Scene::begin(u64::MAX)), [Body::Refused], "longer than any");
    assert_eq!(scene.send(1, Scene::begin(10)), taken(0));
    assert_eq!(scene.slice(1, 0, &state[0]), [Body::Refused], "longer than announced");
    assert_eq!(scene.slice(1, 0, &state[0]), [Body::Refused], "given up");
    assert_eq!(scene.send(2, Scene::begin(1 << 20)), taken(0));
    assert_eq!(scene.slice(2, 0, b"no chunk of a state"), [Body::Refused]);
    assert_eq!(scene.send(3, Scene::begin(1 << 20)), taken(0));
    assert_eq!(scene.slice(3, 0, &state[0]), taken(1));
    assert_eq!(scene.slice(3, 1, b""), [Body::Refused], "ends too early");
    // A newer one takes the place of one that was not finished.
    assert_eq!(scene.send(4, Scene::begin(1 << 20)), taken(0));
    assert_eq!(scene.send(5, Scene::begin(1 << 20)), taken(0));
    assert_eq!(scene.slice(4, 0, &state[0]), [Body::Refused]);
    scene.now.mono_us += 60_000_000;
    assert_eq!(scene.slice(6, 0, &state[0]), [Body::Refused]);
    assert_eq!(scene.slice(5, 0, &state[0]), [Body::Refused], "nobody went on with it");
    assert_eq!((scene.files(), scene.shards[0].engine.applied()), (vec![], 0));
    assert!(state.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));
}

/// Until the site has written a checkpoint of its own, the received one is all there
/// is: it gets a second with the next block, and when it is damaged before that the
/// start says what to do instead of beginning from nothing.
#[test]
fn a_received_state_gets_a_second_soon_and_is_missed_loudly() {
    let mut scene = Scene::new();
    let state = scene.state();
    assert_eq!(scene.send(9, Scene::begin(1 << 20)), taken(0));
    for (number, chunk) in (0..).zip(&state) {
        scene.slice(9, number, chunk);
    }
    scene.slice(9, state.len() as u32, b"");
    let base = scene.shards[0].wants.appends.iter().find_map(|append| match append {
        Append::Base(base) => Some(*base),
        _ => None,
    });
    let base = base.expect("its log begins anew");
    let (kind, payload) = (FrameKind::Base, &[][..]);
    let Base { index, term, chain, .. } = base;
    scene.log.append(&Frame { kind, shard: 0, index, term, chain, payload }).unwrap();
    let (shards, now) = (&mut scene.shards, scene.now);
    scene.checkpoints.run(shards, (0, Space::Ok), now);
    assert!(!scene.checkpoints.desk().waits(), "nothing new is in it");
    shards[0].grown = 1;
    scene.checkpoints.run(shards, (0, Space::Ok), now);
    assert!(scene.checkpoints.desk().waits(), "a second is written, off as checkpoints are");

    let Scene { disk, log, engine, .. } = scene;
    log.close().unwrap();
    assert_eq!(restarted(&disk, &engine), Ok(INDEX));
    let name = format!("0000-{INDEX:016x}.checkpoint");
    disk.edit_file(&name, |bytes| bytes[200] ^= 1);
    let refused = restarted(&disk, &engine).unwrap_err();
    assert!(refused.contains("in no sound checkpoint"), "{refused}");
    assert!(refused.contains("Replace a site"), "{refused}");
    // A sound copy can be put back in its place.
    let aside = format!("{name}.damaged");
    disk.edit_file(&aside, |bytes| bytes[200] ^= 1);
    disk.files().rename(&aside, &name).unwrap();
    assert_eq!(restarted(&disk, &engine), Ok(INDEX));
}
