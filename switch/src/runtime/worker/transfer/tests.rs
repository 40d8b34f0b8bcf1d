//! One end of a transfer on a simulated disk, with the other end played by the test.

use super::*;
use crate::engine::output::Outputs;
use crate::engine::{CHUNK_BYTES_MAX, Engine};
use crate::replica::{self, Base, Members, ReplicaConfig, Timing};
use crate::runtime::mesh::Traffic;
use crate::runtime::testing::Cluster;
use crate::runtime::worker::checkpoint::Last;
use storage::{Settings, SimDisk};

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
        let settings = Settings {
            cluster: 7,
            worker: 0,
            segment_bytes: 68 << 10,
            batch_max_bytes: 64 << 10,
            idle_seal_us: 1_000,
        };
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
