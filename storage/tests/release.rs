//! Giving up the oldest segments: a crash at every step loses nothing that is
//! needed and never refuses a sound log; what is missing or altered behind the
//! recorded beginning is refused. `RELEASE_TRIALS` sets the seeds (default 100).

use storage::disk::{Files, SimDisk, Tear};
use storage::{
    BLOCK_BYTES, BlockReadError, CHAIN_START, Checkpoint, Damage, DamageCause, Frame, FrameKind,
    Log, LogConfig, LogError, LogRelease, Lsn, Notify, Recovery, Settings, chain_next, verify,
};

const SHARDS: usize = 3;
const SEGMENT: u64 = 32 << 10;

fn settings() -> Settings {
    Settings {
        cluster: 9,
        worker: 4,
        segment_bytes: SEGMENT,
        batch_max_bytes: 8 << 10,
        idle_seal_us: 1_000,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    kind: FrameKind,
    shard: u16,
    index: u64,
    chain: [u8; 32],
    payload: Vec<u8>,
}

impl Record {
    fn of(frame: Frame<'_>) -> Record {
        let Frame { kind, shard, index, chain, payload, .. } = frame;
        Record { kind, shard, index, chain, payload: payload.to_vec() }
    }

    fn frame(&self) -> Frame<'_> {
        let Record { kind, shard, index, chain, payload } = self;
        Frame { kind: *kind, shard: *shard, term: 1, index: *index, chain: *chain, payload }
    }
}

/// A node that writes, checkpoints and releases, and all that it ever wrote.
struct Node {
    disk: SimDisk,
    /// By ordinal, from 1.
    records: Vec<Record>,
    acked: usize,
    /// Chain values by index.
    chains: Vec<Vec<[u8; 32]>>,
    /// What may never be replaced.
    committed: Vec<u64>,
    released: Vec<Option<u64>>,
}

impl Node {
    fn new(seed: u64) -> (Node, Log<SimDisk>) {
        let mut node = Node {
            disk: SimDisk::new(seed, SEGMENT),
            records: Vec::new(),
            acked: 0,
            chains: vec![vec![CHAIN_START]; SHARDS],
            committed: vec![0; SHARDS],
            released: vec![None; SHARDS],
        };
        let log = node.recover();
        (node, log)
    }

    fn below(&self, bound: u64) -> u64 {
        self.disk.toss() % bound
    }

    fn try_open(&self) -> Result<(Log<SimDisk>, Vec<Record>, Recovery), LogError> {
        let mut records = Vec::new();
        let (log, recovery) = Log::with_disk(self.disk.clone(), settings(), &mut |frame| {
            records.push(Record::of(frame));
            Ok(())
        })?;
        Ok((log, records, recovery))
    }

    /// Opens and demands: everything acknowledged that was not released, in order.
    fn recover(&mut self) -> Log<SimDisk> {
        let (log, found, recovery) = self.try_open().expect("a sound log is never refused");
        let last = recovery.last.0 as usize;
        assert!(last >= self.acked && last <= self.records.len(), "nothing acknowledged is lost");
        assert_eq!(recovery.frames, found.len() as u64);
        let first = last - found.len();
        assert_eq!(found, self.records[first..last]);
        self.check_given_up(first);
        self.records.truncate(last);
        self.acked = last;
        self.rebuild_chains();
        for end in &recovery.shards {
            let chain = &self.chains[usize::from(end.shard)];
            assert_eq!((end.index, end.chain), (chain.len() as u64 - 1, *chain.last().unwrap()));
        }
        log
    }

    /// What lies before the first record that came back is not needed.
    fn check_given_up(&self, first: usize) {
        for (at, record) in self.records[..first].iter().enumerate() {
            let shard = usize::from(record.shard);
            let newer = |other: &Record| (other.kind, other.shard) == (record.kind, record.shard);
            match record.kind {
                FrameKind::Block => assert!(Some(record.index) <= self.released[shard]),
                _ => assert!(self.records[at + 1..].iter().any(newer), "the newest stays"),
            }
        }
    }

    fn rebuild_chains(&mut self) {
        self.chains = vec![vec![CHAIN_START]; SHARDS];
        for record in self.records.iter().filter(|record| record.kind == FrameKind::Block) {
            let chain = &mut self.chains[usize::from(record.shard)];
            chain.truncate(record.index as usize);
            chain.push(record.chain);
        }
    }

    fn append(&mut self, log: &mut Log<SimDisk>) {
        let at = self.below(SHARDS as u64) as usize;
        let payload: Vec<u8> = vec![self.below(250) as u8 + 1; self.below(1_800) as usize];
        let (kind, back) = (self.below(8), self.below(24));
        let record = match kind {
            0 | 1 => {
                let kind = [FrameKind::HardState, FrameKind::Note][kind as usize];
                Record { kind, shard: at as u16, index: 0, chain: [0; 32], payload }
            }
            _ => {
                let mut next = self.chains[at].len() as u64;
                if back < 5 {
                    // Only what is not committed is ever replaced.
                    next = next.saturating_sub(back).max(self.committed[at] + 1);
                }
                let chain = chain_next(&self.chains[at][next as usize - 1], &payload);
                let kind = FrameKind::Block;
                Record { kind, shard: at as u16, index: next, chain, payload }
            }
        };
        match log.append(&record.frame()) {
            Ok(_) => self.records.push(record),
            Err(LogError::BatchFull) => return,
            Err(error) => panic!("{error}"),
        }
        self.rebuild_one(at);
    }

    fn rebuild_one(&mut self, at: usize) {
        let Some(record) = self.records.last() else { return };
        if record.kind == FrameKind::Block {
            self.chains[at].truncate(record.index as usize);
            self.chains[at].push(record.chain);
        }
    }

    /// One batch, durable, and some of it committed.
    fn write(&mut self, log: &mut Log<SimDisk>) {
        for _ in 0..=self.below(6) {
            self.append(log);
        }
        log.submit().unwrap();
        while log.in_flight() {
            if let Some(Lsn(lsn)) = log.poll().unwrap() {
                self.acked = lsn as usize;
            }
        }
        if log.unsubmitted() {
            return;
        }
        for at in 0..SHARDS {
            let last = self.chains[at].len() as u64 - 1;
            let more = last - self.committed[at];
            self.committed[at] += self.below(more + 1);
        }
    }

    /// Some shards' checkpoints at committed indexes.
    fn checkpoints(&mut self) -> Vec<Checkpoint> {
        let mut checkpoints = Vec::new();
        for at in 0..SHARDS {
            let index = self.committed[at] - self.below(self.committed[at].min(4) + 1);
            if index > 0 && self.below(8) > 0 {
                self.released[at] = self.released[at].max(Some(index));
                let chain = self.chains[at][index as usize];
                checkpoints.push(Checkpoint { shard: at as u16, index, term: 1, chain });
            }
        }
        checkpoints
    }

    fn crash(&mut self, log: Log<SimDisk>) -> Log<SimDisk> {
        drop(log);
        self.disk.crash([Tear::Nothing, Tear::Sectors, Tear::Everything][self.below(3) as usize]);
        self.recover()
    }

    fn refused(&self) -> Damage {
        match self.try_open() {
            Err(LogError::Damage(damage)) => *damage,
            Err(error) => panic!("refused for the wrong reason: {error}"),
            Ok(_) => panic!("opened"),
        }
    }
}

#[test]
fn a_crash_at_every_step_loses_nothing_and_refuses_nothing() {
    let trials = std::env::var("RELEASE_TRIALS").ok().and_then(|text| text.parse().ok());
    let mut releases = 0;
    for seed in 0..trials.unwrap_or(100) {
        println!("seed {seed}");
        let (mut node, mut log) = Node::new(seed);
        for _ in 0..12 {
            for _ in 0..node.below(12) {
                node.write(&mut log);
            }
            let checkpoints = node.checkpoints();
            let Some(mut release) = log.plan_release(&checkpoints).unwrap() else { continue };
            releases += 1;
            let first = release.first();
            if node.below(2) == 0 {
                node.write(&mut log);
            }
            if node.below(3) > 0 {
                let steps = node.below(10);
                node.disk.fail_files_after(steps);
            }
            let done = release.run().is_ok();
            assert!(!done || node.disk.contents(first - 1).is_none(), "the segment is gone");
            if node.below(2) == 0 || !done {
                log = node.crash(log);
            }
        }
        log = node.crash(log);
        node.write(&mut log);
    }
    assert!(releases > 100, "only {releases} releases");
}

/// A log, and the release of its first segments, which was not run.
fn about_to_release() -> (Node, Log<SimDisk>, LogRelease<SimDisk>) {
    for seed in 0.. {
        let (mut node, mut log) = Node::new(seed);
        for _ in 0..60 {
            node.write(&mut log);
        }
        node.committed = node.chains.iter().map(|chain| chain.len() as u64 - 1).collect();
        let last = |(at, index): (usize, &u64)| {
            let chain = node.chains[at][*index as usize];
            Checkpoint { shard: at as u16, index: *index, term: 1, chain }
        };
        let checkpoints: Vec<_> = node.committed.iter().enumerate().map(last).collect();
        node.released = node.committed.iter().copied().map(Some).collect();
        if let Some(release) = log.plan_release(&checkpoints).unwrap() {
            return (node, log, release);
        }
    }
    unreachable!("some seed releases")
}

/// A log whose first segments are released, closed.
fn trimmed() -> Node {
    let (mut node, mut log, mut release) = about_to_release();
    release.run().unwrap();
    for _ in 0..8 {
        node.write(&mut log);
    }
    log.close().unwrap();
    node
}

fn first_kept(disk: &SimDisk) -> u64 {
    (1..).find(|segment| disk.contents(*segment).is_some()).unwrap()
}

#[test]
fn a_released_log_is_a_log_and_what_is_behind_its_beginning_must_be_there() {
    let mut node = trimmed();
    let first = first_kept(&node.disk);
    assert!(first > 1);
    let log = node.recover();
    let early = log.route(0, 1, 2).unwrap_err();
    assert_eq!(early.first, log.first_index(0));
    drop(log);

    let node = trimmed();
    node.disk.edit(first, |bytes| bytes[100] ^= 1);
    let damage = node.refused();
    assert_eq!((damage.cause, damage.offset), (DamageCause::SegmentHeader, 0));

    let node = trimmed();
    node.disk.edit(first, |bytes| bytes.fill(0));
    assert_eq!(node.refused().cause, DamageCause::SegmentHeader);

    let node = trimmed();
    node.disk.edit(first, |bytes| bytes[BLOCK_BYTES + 300] ^= 1);
    let damage = node.refused();
    assert!(damage.file.ends_with(format!("{first:016x}.wal")));

    let node = trimmed();
    node.disk.remove(first);
    let damage = node.refused();
    assert_eq!(damage.cause, DamageCause::MissingSegment);
    assert!(damage.file.ends_with(format!("{first:016x}.wal")));
}

#[test]
fn the_record_of_the_beginning_is_checked() {
    let node = trimmed();
    let mut files = node.disk.clone();
    Files::remove(&mut files, "released").unwrap();
    assert_eq!(node.refused().cause, DamageCause::MissingSegment);

    let node = trimmed();
    let mut whole = Vec::new();
    node.disk.edit_file("released", |bytes| whole = bytes.clone());
    for at in 0..whole.len() {
        node.disk.edit_file("released", |bytes| bytes[at] ^= 1 << (at % 8));
        let damage = node.refused();
        assert!(damage.file.ends_with("released"), "{damage}");
        node.disk.edit_file("released", |bytes| bytes.clone_from(&whole));
    }
    node.disk.edit_file("released", |bytes| bytes.truncate(128));
    node.refused();

    // The record of another state of the same log: its anchors do not fit.
    let (mut node, mut log) = Node::new(77);
    for _ in 0..60 {
        node.write(&mut log);
    }
    let index = node.committed[0];
    let wrong = Checkpoint { shard: 0, index, term: 1, chain: [7; 32] };
    let mut checkpoints = vec![wrong];
    for at in 1..SHARDS {
        let index = node.committed[at];
        let chain = node.chains[at][index as usize];
        checkpoints.push(Checkpoint { shard: at as u16, index, term: 1, chain });
    }
    log.plan_release(&checkpoints).unwrap().expect("something to release").run().unwrap();
    drop(log);
    let cause = node.refused().cause;
    assert!(matches!(cause, DamageCause::Chain { shard: 0, .. }), "{cause}");
}

#[test]
fn what_is_still_needed_stays() {
    let (mut node, mut log) = Node::new(5);
    let early = Record {
        kind: FrameKind::HardState,
        shard: 2,
        index: 0,
        chain: [0; 32],
        payload: b"vote".to_vec(),
    };
    log.append(&early.frame()).unwrap();
    node.records.push(early.clone());
    let next = |node: &mut Node, log: &mut Log<SimDisk>| {
        let payload = vec![1; 1_500];
        let index = node.chains[0].len() as u64;
        let chain = chain_next(&node.chains[0][index as usize - 1], &payload);
        let kind = FrameKind::Block;
        let record = Record { kind, shard: 0, index, chain, payload };
        log.append(&record.frame()).unwrap();
        node.records.push(record);
        node.chains[0].push(chain);
        log.submit().unwrap();
        while log.in_flight() {
            log.poll().unwrap();
        }
    };
    for _ in 0..40 {
        next(&mut node, &mut log);
    }
    let beyond = Checkpoint { shard: 0, index: 41, term: 1, chain: [0; 32] };
    assert!(matches!(log.plan_release(&[beyond]), Err(LogError::IndexGap { shard: 0, index: 41 })));
    let at = |node: &Node, index: u64| Checkpoint {
        shard: 0,
        index,
        term: 1,
        chain: node.chains[0][index as usize],
    };
    let all = [at(&node, 40)];
    assert!(log.plan_release(&all).unwrap().is_none(), "the only hard state lies in the first");
    log.append(&early.frame()).unwrap();
    next(&mut node, &mut log);
    assert!(log.plan_release(&[at(&node, 3)]).unwrap().is_some(), "an older one changes nothing");
    let replaced = Record { index: 30, ..node.records[1].clone() };
    let refused = log.append(&replaced.frame());
    assert!(matches!(refused, Err(LogError::IndexGap { shard: 0, index: 30 })));
}

/// What is only on its way does not take the place of what is durable: a crash may
/// leave nothing of it.
#[test]
fn a_vote_in_flight_does_not_give_up_the_one_before() {
    for tear in [Tear::Nothing, Tear::Everything] {
        let (mut node, mut log) = Node::new(5);
        let vote = |term: u8| Record {
            kind: FrameKind::HardState,
            shard: 2,
            index: 0,
            chain: [0; 32],
            payload: vec![term; 24],
        };
        log.append(&vote(1).frame()).unwrap();
        node.records.push(vote(1));
        while log.stats().segment < 3 {
            let payload = vec![1; 1_500];
            let index = node.chains[0].len() as u64;
            let chain = chain_next(&node.chains[0][index as usize - 1], &payload);
            let record = Record { kind: FrameKind::Block, shard: 0, index, chain, payload };
            log.append(&record.frame()).unwrap();
            node.records.push(record);
            node.chains[0].push(chain);
            assert!(log.submit().unwrap());
            while log.in_flight() {
                log.poll().unwrap();
            }
        }
        let index = node.chains[0].len() as u64 - 1;
        let chain = node.chains[0][index as usize];
        let all = [Checkpoint { shard: 0, index, term: 1, chain }];
        log.append(&vote(2).frame()).unwrap();
        assert!(log.submit().unwrap() && log.in_flight());
        if let Some(mut release) = log.plan_release(&all).unwrap() {
            release.run().unwrap();
        }
        drop(log);
        node.disk.crash(tear);
        let (mut log, found, _) = node.try_open().unwrap();
        let votes: Vec<_> = found.iter().filter(|record| record.shard == 2).cloned().collect();
        match tear {
            Tear::Nothing => assert_eq!(votes, [vote(1)]),
            _ => assert_eq!(votes, [vote(1), vote(2)]),
        }
        // Once the newer one is durable the older one may go.
        log.append(&vote(3).frame()).unwrap();
        log.submit().unwrap();
        while log.in_flight() {
            log.poll().unwrap();
        }
        let mut release = log.plan_release(&all).unwrap().expect("something to release");
        release.run().unwrap();
        drop(log);
        let (_, found, _) = node.try_open().unwrap();
        assert_eq!(found.last(), Some(&vote(3)));
        assert!(!found.contains(&vote(1)));
    }
}

#[test]
fn a_release_that_failed_can_be_run_again() {
    for failing in 0..6 {
        let (mut node, log, mut release) = about_to_release();
        let first = release.first();
        node.disk.fail_one_file_after(failing);
        assert!(release.run().is_err());
        release.run().unwrap();
        assert_eq!(first_kept(&node.disk), first);
        drop(node.crash(log));
    }
}

#[test]
fn on_files_the_log_shrinks_and_is_verified_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        segment_bytes: 64 << 10,
        batch_max_bytes: 16 << 10,
        reserve_bytes: 0,
        ..LogConfig::new(dir.path(), 7, 1)
    };
    let notify = Notify::new().unwrap();
    let (mut log, _) = Log::open(config.clone(), notify.clone(), &mut |_| Ok(())).unwrap();
    let mut chains = vec![CHAIN_START];
    let write = |log: &mut Log, chains: &mut Vec<[u8; 32]>, count: u64| {
        for _ in 0..count {
            let payload = vec![chains.len() as u8; 3_000];
            let chain = chain_next(chains.last().unwrap(), &payload);
            let (kind, index) = (FrameKind::Block, chains.len() as u64);
            log.append(&Frame { kind, shard: 0, term: 1, index, chain, payload: &payload })
                .unwrap();
            chains.push(chain);
            while !log.submit().unwrap() {
                assert!(notify.wait(20_000_000));
            }
            while log.in_flight() {
                if log.poll().unwrap().is_none() {
                    assert!(notify.wait(20_000_000));
                }
            }
        }
    };
    write(&mut log, &mut chains, 120);
    let old = log.route(0, 1, 121).unwrap();
    let mut reader = log.reader();
    let checkpoint = Checkpoint { shard: 0, index: 100, term: 1, chain: chains[100] };
    let mut release = log.plan_release(&[checkpoint]).unwrap().unwrap();
    let first = release.first();
    std::thread::spawn(move || release.run()).join().unwrap().unwrap();
    assert!(matches!(reader.blocks(&old, 1, &mut |_| ()), Err(BlockReadError::Gone(_))));
    write(&mut log, &mut chains, 30);
    let from = log.first_index(0).unwrap();
    assert!((2..=101).contains(&from));
    let route = log.route(0, from, 151).unwrap();
    assert_eq!(reader.blocks(&route, usize::MAX, &mut |_| ()).unwrap(), 151);
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.last, report.blocks), (Lsn(150), 151 - from));
    assert_eq!(report.frames, report.blocks);
    drop(log);
    assert!(!dir.path().join(format!("{:016x}.wal", first - 1)).exists());
    let mut blocks = 0;
    let (log, recovery) = Log::open(config, Notify::new().unwrap(), &mut |frame| {
        assert_eq!((frame.index, frame.chain), (from + blocks, chains[frame.index as usize]));
        blocks += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!((recovery.frames, blocks), (151 - from, 151 - from));
    assert_eq!(recovery.shards[0].index, 150);
    assert_eq!(log.first_index(0), Some(from));
}
