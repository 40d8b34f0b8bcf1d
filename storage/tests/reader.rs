//! Blocks read back by index: against a model with replaced suffixes and
//! restarts on the simulated disk, beside a running writer on files, and on
//! damaged logs. `READER_TRIALS` sets the seeds (default 60).

use std::sync::mpsc;

use storage::disk::{Fault, SimDisk, Tear};
use storage::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BlockReadError, CHAIN_START, Damage, DamageCause, Frame,
    FrameKind, Log, LogConfig, Notify, Position, Route, Settings, chain_next,
};

const SHARDS: usize = 3;

fn settings(segment_kib: u64) -> Settings {
    Settings {
        cluster: 9,
        worker: 4,
        segment_bytes: segment_kib << 10,
        batch_max_bytes: 16 << 10,
        idle_seal_us: 1_000,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    index: u64,
    term: u64,
    chain: [u8; 32],
    payload: Vec<u8>,
}

impl Block {
    fn of(frame: Frame<'_>) -> Block {
        assert_eq!(frame.kind, FrameKind::Block);
        let Frame { term, index, chain, payload, .. } = frame;
        Block { index, term, chain, payload: payload.to_vec() }
    }
}

/// A shard as it must be: where it starts, and the blocks that count.
#[derive(Debug, Clone)]
struct Shard {
    base: u64,
    base_chain: [u8; 32],
    blocks: Vec<Block>,
}

impl Shard {
    fn chain_before(&self, index: u64) -> [u8; 32] {
        match index - self.base - 1 {
            0 => self.base_chain,
            at => self.blocks[at as usize - 1].chain,
        }
    }

    fn next(&self) -> u64 {
        self.base + self.blocks.len() as u64 + 1
    }

    fn get(&self, index: u64) -> Option<&Block> {
        self.blocks.get(index.checked_sub(self.base + 1)? as usize)
    }
}

struct Model {
    disk: SimDisk,
    settings: Settings,
    /// After everything appended, and after everything durable.
    appended: Vec<Shard>,
    durable: Vec<Shard>,
    /// After what the write in flight brings.
    flying: Vec<Shard>,
    term: u64,
}

impl Model {
    fn new(seed: u64) -> Model {
        let settings = settings(if seed.is_multiple_of(8) { 2048 } else { 64 });
        let shard = Shard { base: 0, base_chain: CHAIN_START, blocks: Vec::new() };
        let shards = vec![shard; SHARDS];
        Model {
            disk: SimDisk::new(seed, settings.segment_bytes),
            settings,
            appended: shards.clone(),
            durable: shards.clone(),
            flying: shards,
            term: 1,
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.disk.toss() % bound
    }

    fn open(&self) -> Log<SimDisk> {
        Log::with_disk(self.disk.clone(), self.settings, &mut |_| Ok(())).unwrap().0
    }

    fn append(&mut self, log: &mut Log<SimDisk>) {
        let at = self.below(SHARDS as u64) as usize;
        let (back, bytes) = (self.below(40), self.below(2_500));
        let (kind, jump) = (self.below(400), 1 + self.below(1_000));
        let shard = &mut self.appended[at];
        let payload: Vec<u8> = (0..bytes).map(|n| (n * 7 + bytes) as u8).collect();
        let mut next = shard.next();
        if back < 6 {
            // Consensus replaces an unconfirmed suffix.
            self.term += 1;
            next = next.saturating_sub(back).max(shard.base + 1);
        }
        let frame = if kind == 0 {
            // A replica that starts anew from a checkpoint.
            let (index, chain) = (next + jump, [kind as u8 + 3; 32]);
            let kind = FrameKind::Base;
            Frame { kind, shard: at as u16, term: self.term, index, chain, payload: &[] }
        } else {
            let chain = chain_next(&shard.chain_before(next), &payload);
            let kind = FrameKind::Block;
            Frame { kind, shard: at as u16, term: self.term, index: next, chain, payload: &payload }
        };
        if log.append(&frame).is_err() {
            return;
        }
        if frame.kind == FrameKind::Base {
            let (base, base_chain) = (frame.index, frame.chain);
            *shard = Shard { base, base_chain, blocks: Vec::new() };
        } else {
            shard.blocks.truncate((next - shard.base - 1) as usize);
            shard.blocks.push(Block::of(frame));
        }
    }

    fn submit(&mut self, log: &mut Log<SimDisk>) {
        if log.submit().unwrap() {
            self.flying = self.appended.clone();
        }
    }

    fn poll(&mut self, log: &mut Log<SimDisk>) {
        while log.in_flight() {
            log.poll().unwrap();
        }
        self.durable = self.flying.clone();
    }

    /// Power loss: what was not confirmed is gone.
    fn crash(&mut self, log: Log<SimDisk>) -> Log<SimDisk> {
        drop(log);
        self.disk.crash(Tear::Nothing);
        self.appended = self.durable.clone();
        self.flying = self.durable.clone();
        self.open()
    }

    /// Whether block `index` is durable and nothing on its way replaces it.
    fn readable(&self, at: usize, index: u64) -> Option<&Block> {
        let block = self.durable[at].get(index)?;
        let stays = |shard: &Shard| shard.get(index) == Some(block);
        (stays(&self.flying[at]) && stays(&self.appended[at])).then_some(block)
    }

    fn check(&self, log: &Log<SimDisk>) {
        let mut reader = log.reader().clone();
        for at in 0..SHARDS {
            let shard = &self.durable[at];
            let from = shard.base + 1 + self.below(shard.blocks.len() as u64 + 2);
            let to = from + self.below(60);
            let expected: Vec<_> =
                (from..to).map_while(|index| self.readable(at, index)).cloned().collect();
            let max_bytes = [1, 3_000, 1 << 20][self.below(3) as usize];
            let mut found = Vec::new();
            let mut next = from;
            while let Ok(route) = log.route(at as u16, next, to) {
                assert!(route.from() == next && route.to() <= to.max(next));
                let route = match shard.base {
                    base if next > base && next <= shard.next() => {
                        route.after(shard.chain_before(next))
                    }
                    _ => route,
                };
                let mut bytes = 0;
                let before = found.len();
                let reached = reader
                    .blocks(&route, max_bytes, &mut |frame| {
                        bytes += frame.payload.len() + storage::FRAME_HEADER_BYTES;
                        found.push(Block::of(frame));
                    })
                    .unwrap();
                assert!(bytes <= max_bytes || found.len() == before + 1, "bounded by bytes");
                assert_eq!(reached, next + (found.len() - before) as u64);
                if reached == next {
                    break;
                }
                next = reached;
            }
            assert_eq!(found, expected, "shard {at} blocks {from}..{to}");
        }
    }
}

#[test]
fn reads_what_counts_and_nothing_that_was_replaced() {
    let trials = std::env::var("READER_TRIALS").ok().and_then(|text| text.parse().ok());
    for seed in 0..trials.unwrap_or(60) {
        println!("seed {seed}");
        let mut model = Model::new(seed);
        let mut log = model.open();
        for _ in 0..60 {
            for _ in 0..model.below(12) {
                model.append(&mut log);
            }
            match model.below(12) {
                0 => log = model.crash(log),
                1 => {}
                _ => model.submit(&mut log),
            }
            model.check(&log);
            if model.below(3) > 0 {
                model.poll(&mut log);
            }
            model.check(&log);
        }
    }
}

/// A log of one shard on the simulated disk with `blocks` blocks, each a batch.
fn written(blocks: u64) -> (SimDisk, Log<SimDisk>) {
    let disk = SimDisk::new(1, 64 << 10);
    let (mut log, _) = Log::with_disk(disk.clone(), settings(64), &mut |_| Ok(())).unwrap();
    let mut chain = CHAIN_START;
    for index in 1..=blocks {
        let payload = vec![index as u8; 1_000];
        chain = chain_next(&chain, &payload);
        let kind = FrameKind::Block;
        log.append(&Frame { kind, shard: 0, term: 1, index, chain, payload: &payload }).unwrap();
        assert!(log.submit().unwrap());
        while log.in_flight() {
            log.poll().unwrap();
        }
    }
    (disk, log)
}

fn read_all(log: &Log<SimDisk>, route: &Route) -> (u64, Result<u64, BlockReadError>) {
    let mut blocks = 0;
    let end = log.reader().blocks(route, usize::MAX, &mut |_| blocks += 1);
    (blocks, end)
}

fn damaged(log: &Log<SimDisk>) -> (u64, Damage) {
    let route = log.route(0, 1, u64::MAX).unwrap();
    match read_all(log, &route) {
        (blocks, Err(BlockReadError::Damage(damage))) => (blocks, *damage),
        (blocks, other) => panic!("after {blocks} blocks: {other:?}"),
    }
}

/// Block `index` of `written`: each takes one page, 15 to a segment, after one
/// page of header and, at the very start, one for the opening seal.
fn page(index: u64) -> Position {
    let nth = index;
    Position { segment: nth / 15 + 1, offset: (nth % 15 + 1) * BLOCK_BYTES as u64 }
}

#[test]
fn damage_is_named_by_its_place_and_what_came_before_is_delivered() {
    for (offset, cause) in [
        (5, DamageCause::BatchHeader),
        (BATCH_HEADER_BYTES as u64 + 100, DamageCause::BatchBody),
        (BLOCK_BYTES as u64 - 1, DamageCause::Padding),
    ] {
        let (disk, log) = written(40);
        let at = page(20);
        disk.edit(at.segment, |bytes| bytes[(at.offset + offset) as usize] ^= 1);
        let (blocks, damage) = damaged(&log);
        assert_eq!((blocks, damage.cause), (19, cause));
        assert_eq!(damage.offset, at.offset);
        assert!(damage.file.ends_with(format!("{:016x}.wal", at.segment)));
    }
}

#[test]
fn a_page_that_vanished_or_cannot_be_read_is_damage() {
    let (disk, log) = written(40);
    let at = page(29);
    disk.edit(at.segment, |bytes| bytes[at.offset as usize..].fill(0));
    let (blocks, damage) = damaged(&log);
    assert_eq!((blocks, damage.cause, damage.offset), (28, DamageCause::BatchHeader, at.offset));

    let (disk, log) = written(40);
    disk.inject(Fault::Unreadable { at: page(3) });
    assert_eq!(damaged(&log).1.cause, DamageCause::Unreadable);

    let (disk, log) = written(40);
    disk.edit(2, |bytes| bytes.truncate(8 * BLOCK_BYTES));
    let (blocks, damage) = damaged(&log);
    assert_eq!((blocks, damage.cause), (page_count(8), DamageCause::BatchHeader));
}

/// Blocks before the one whose page would be the `pages`-th of segment 2.
fn page_count(pages: u64) -> u64 {
    15 + pages - 2
}

#[test]
fn an_older_copy_of_a_page_is_noticed() {
    let (disk, log) = written(40);
    let (from, to) = (page(10), page(21));
    let old = disk.contents(from.segment).unwrap();
    let old = old[from.offset as usize..from.offset as usize + BLOCK_BYTES].to_vec();
    disk.edit(to.segment, |bytes| {
        bytes[to.offset as usize..to.offset as usize + BLOCK_BYTES].copy_from_slice(&old);
    });
    let (blocks, damage) = damaged(&log);
    assert_eq!((blocks, damage.cause), (20, DamageCause::Misplaced));
}

#[test]
fn a_missing_segment_is_gone_and_a_wrong_predecessor_is_refused() {
    let (disk, log) = written(40);
    let route = log.route(0, 1, 41).unwrap();
    disk.remove(2);
    let (blocks, end) = read_all(&log, &route);
    assert!(matches!(end, Err(BlockReadError::Gone(gone)) if gone.index == blocks + 1));
    assert_eq!(log.first_index(0), Some(1));
    assert!(log.route(1, 1, 2).is_err(), "a shard without blocks");

    let (_, log) = written(3);
    let route = log.route(0, 2, 4).unwrap().after([9; 32]);
    let (_, end) = read_all(&log, &route);
    assert_eq!(end.unwrap(), 4, "passing the predecessor gives the chain");
    let route = log.route(0, 1, 4).unwrap().after([9; 32]);
    let (blocks, end) = read_all(&log, &route);
    let Err(BlockReadError::Damage(damage)) = end else { panic!("accepted") };
    assert_eq!((blocks, damage.cause), (0, DamageCause::Chain { shard: 0, index: 1 }));
}

/// On files: another thread reads what is durable while the log goes on.
#[test]
fn another_thread_reads_while_the_log_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        segment_bytes: 256 << 10,
        batch_max_bytes: 16 << 10,
        reserve_bytes: 0,
        ..LogConfig::new(dir.path(), 7, 1)
    };
    let notify = Notify::new().unwrap();
    let (mut log, _) = Log::open(config, notify.clone(), &mut |_| Ok(())).unwrap();
    let payload = |index: u64| vec![index as u8; (index * 37 % 3_000) as usize];
    let (routes, inbox) = mpsc::channel::<Route>();
    let mut reader = log.reader();
    let read = std::thread::spawn(move || {
        let (mut blocks, mut rounds) = (0, 0);
        while let Ok(route) = inbox.recv() {
            let mut next = route.from();
            let end = reader
                .blocks(&route, usize::MAX, &mut |frame| {
                    assert_eq!((frame.index, frame.payload), (next, &payload(next)[..]));
                    next += 1;
                })
                .unwrap();
            assert_eq!(end, next);
            blocks += next - route.from();
            rounds += 1;
        }
        (blocks, rounds)
    });
    let (mut chain, mut expected) = (CHAIN_START, 0);
    for index in 1..=600 {
        let payload = payload(index);
        chain = chain_next(&chain, &payload);
        let kind = FrameKind::Block;
        log.append(&Frame { kind, shard: 1, term: 1, index, chain, payload: &payload }).unwrap();
        while !log.submit().unwrap() {
            assert!(notify.wait(20_000_000), "no segment became ready");
        }
        // The route of what was durable before, read while this one is written.
        if index > 1 {
            let from = (index * 31) % (index - 1) + 1;
            let route = log.route(1, from, u64::MAX).unwrap();
            expected += route.to().min(index) - from;
            routes.send(route).unwrap();
        }
        while log.in_flight() {
            if log.poll().unwrap().is_none() {
                assert!(notify.wait(20_000_000), "the write never completed");
            }
        }
    }
    drop(routes);
    assert_eq!(read.join().unwrap(), (expected, 599));
    assert!(log.stats().segment > 3, "several segments");
}
