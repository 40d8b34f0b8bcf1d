//! The fault matrix: every kind of crash and damage, many seeds each, on the
//! simulated disk.
//!
//! Three promises are checked. A pure crash never refuses and never loses an
//! acknowledged frame. Damage to anything proven durable is refused and named
//! by its place. Nothing is ever lost in silence. `FAULT_TRIALS` sets the seeds
//! per kind (default 120); a failure prints kind and seed.

use storage::disk::{Fault, SimDisk, Tear};
use storage::{
    BLOCK_BYTES, CHAIN_START, Damage, DamageCause, Frame, FrameKind, Log, LogError, Lsn, Position,
    Settings, Space, chain_next,
};

const BLOCK: u64 = BLOCK_BYTES as u64;
const SEGMENT: u64 = 64 << 10;
const SHARDS: usize = 3;

fn settings(batch_kib: usize) -> Settings {
    Settings {
        cluster: 9,
        worker: 4,
        segment_bytes: SEGMENT,
        batch_max_bytes: batch_kib << 10,
        idle_seal_us: 1_000,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    kind: FrameKind,
    shard: u16,
    term: u64,
    index: u64,
    chain: [u8; 32],
    payload: Vec<u8>,
}

impl Record {
    fn of(frame: Frame<'_>) -> Record {
        let Frame { kind, shard, term, index, chain, payload } = frame;
        Record { kind, shard, term, index, chain, payload: payload.to_vec() }
    }

    fn frame(&self) -> Frame<'_> {
        let Record { kind, shard, term, index, chain, payload } = self;
        Frame { kind: *kind, shard: *shard, term: *term, index: *index, chain: *chain, payload }
    }
}

/// A node that writes to one disk, and everything it was ever told.
struct Node {
    disk: SimDisk,
    settings: Settings,
    /// Chain values by index, per shard; index 0 stands before the first block.
    chains: Vec<Vec<[u8; 32]>>,
    appended: Vec<Record>,
    acked: usize,
}

struct Random(SimDisk);

impl Random {
    fn below(&self, bound: u64) -> u64 {
        self.0.toss() % bound
    }
}

impl Node {
    fn new(seed: u64) -> Node {
        let disk = SimDisk::new(seed, SEGMENT);
        let settings = settings([8, 16, 32][(seed % 3) as usize]);
        Node {
            disk,
            settings,
            chains: vec![vec![CHAIN_START]; SHARDS],
            appended: Vec::new(),
            acked: 0,
        }
    }

    fn random(&self) -> Random {
        Random(self.disk.clone())
    }

    fn open(&self) -> Result<(Log<SimDisk>, Vec<Record>, storage::Recovery), LogError> {
        let mut records = Vec::new();
        let (log, recovery) = Log::with_disk(self.disk.clone(), self.settings, &mut |frame| {
            records.push(Record::of(frame));
            Ok(())
        })?;
        Ok((log, records, recovery))
    }

    /// Opens, checks what came back against what was acknowledged, and goes on
    /// from there.
    fn recover(&mut self) -> Log<SimDisk> {
        let (log, records, recovery) = self.open().expect("a pure crash never refuses");
        assert!(records.len() >= self.acked, "{} of {} acked", records.len(), self.acked);
        assert!(records.len() <= self.appended.len());
        assert_eq!(records, self.appended[..records.len()]);
        assert_eq!(recovery.last, Lsn(records.len() as u64));
        self.appended = records;
        self.acked = self.appended.len();
        self.rebuild_chains();
        log
    }

    fn rebuild_chains(&mut self) {
        self.chains = vec![vec![CHAIN_START]; SHARDS];
        for record in self.appended.iter().filter(|record| record.kind == FrameKind::Block) {
            let chain = &mut self.chains[usize::from(record.shard)];
            chain.truncate(record.index as usize);
            chain.push(record.chain);
        }
    }

    fn next_record(&mut self) -> Record {
        let random = self.random();
        let shard = random.below(SHARDS as u64) as usize;
        let bytes = match random.below(8) {
            0 => 0,
            1 => self.settings.batch_max_bytes as u64 / 2,
            _ => random.below(1_500),
        };
        let payload: Vec<u8> = (0..bytes).map(|_| random.below(255) as u8 + 1).collect();
        if random.below(6) == 0 {
            let (kind, shard, chain) = (FrameKind::HardState, shard as u16, [0; 32]);
            return Record { kind, shard, term: 2, index: 0, chain, payload };
        }
        let chain = &mut self.chains[shard];
        if random.below(10) == 0 {
            // Consensus replaces an unconfirmed suffix.
            let kept = chain.len().saturating_sub(random.below(3) as usize).max(1);
            chain.truncate(kept);
        }
        let value = chain_next(&chain[chain.len() - 1], &payload);
        chain.push(value);
        Record {
            kind: FrameKind::Block,
            shard: shard as u16,
            term: 3,
            index: chain.len() as u64 - 1,
            chain: value,
            payload,
        }
    }

    /// Fills the open batch with a few records and starts its write.
    fn submit(&mut self, log: &mut Log<SimDisk>) -> Result<bool, LogError> {
        for _ in 0..=self.random().below(5) {
            let record = self.next_record();
            match log.append(&record.frame()) {
                Ok(lsn) => {
                    self.appended.push(record);
                    assert_eq!(lsn, Lsn(self.appended.len() as u64));
                }
                Err(LogError::BatchFull) => {
                    self.rebuild_chains();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        log.submit()
    }

    fn poll(&mut self, log: &mut Log<SimDisk>) -> Result<(), LogError> {
        while log.in_flight() {
            if let Some(Lsn(lsn)) = log.poll()? {
                assert!(lsn as usize >= self.acked && lsn as usize <= self.appended.len());
                self.acked = lsn as usize;
            }
        }
        Ok(())
    }

    fn write(&mut self, log: &mut Log<SimDisk>, batches: u64) -> Result<(), LogError> {
        for _ in 0..batches {
            assert!(self.submit(log)?);
            self.poll(log)?;
        }
        Ok(())
    }

    /// A log of several batches in more than one segment, everything confirmed
    /// but the last batch not proven.
    fn grown(seed: u64) -> (Node, Log<SimDisk>) {
        let mut node = Node::new(seed);
        let mut log = node.recover();
        let batches = 12 + node.random().below(30);
        node.write(&mut log, batches).unwrap();
        (node, log)
    }

    fn batches(&self) -> Vec<Placed> {
        placed(&self.disk)
    }

    fn refused(&self) -> Damage {
        match self.open() {
            Err(LogError::Damage(damage)) => *damage,
            Err(error) => panic!("refused for the wrong reason: {error}"),
            Ok((_, records, recovery)) => panic!(
                "silent: {} of {} acknowledged, cut {:?}",
                records.len(),
                self.acked,
                recovery.cut
            ),
        }
    }
}

/// A batch on disk, found by its magic without the library's help.
#[derive(Debug, Clone, Copy)]
struct Placed {
    batch: u64,
    segment: u64,
    offset: u64,
    bytes: u64,
}

impl Placed {
    fn holds(&self, damage: &Damage) -> bool {
        damage.batch == self.batch
            && damage.file.ends_with(format!("{:016x}.wal", self.segment))
            && (self.offset..self.offset + self.bytes).contains(&damage.offset)
    }

    fn at(&self) -> Position {
        Position { segment: self.segment, offset: self.offset }
    }

    fn covers(&self, at: Position) -> bool {
        let bytes = self.offset..self.offset + self.bytes;
        at.segment == self.segment && bytes.contains(&at.offset)
    }
}

fn placed(disk: &SimDisk) -> Vec<Placed> {
    let mut batches = Vec::new();
    for segment in 1.. {
        let Some(bytes) = disk.contents(segment) else { break };
        for (nth, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            if block.starts_with(b"PSWB") {
                let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
                let body = u64::from(u32::from_le_bytes(block[64..68].try_into().unwrap()));
                batches.push(Placed {
                    batch: word(24),
                    segment,
                    offset: nth as u64 * BLOCK,
                    bytes: (128 + body).next_multiple_of(BLOCK),
                });
            }
        }
    }
    batches
}

fn for_each_seed(kind: &str, trial: impl Fn(u64)) {
    struct Told<'a>(&'a str, u64);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed: kind {} seed {}", self.0, self.1);
            }
        }
    }
    let trials = std::env::var("FAULT_TRIALS").ok().and_then(|text| text.parse().ok());
    for seed in 0..trials.unwrap_or(120) {
        let _told = Told(kind, seed);
        trial(seed);
    }
}

// --- pure crashes -------------------------------------------------------------

fn crashes(kind: &str, tear: impl Fn(&Node) -> Tear) {
    for_each_seed(kind, |seed| {
        let mut node = Node::new(seed);
        for _ in 0..4 {
            let mut log = node.recover();
            let batches = node.random().below(12);
            node.write(&mut log, batches).unwrap();
            if node.random().below(3) > 0 {
                node.submit(&mut log).unwrap();
            }
            drop(log);
            let tear = tear(&node);
            node.disk.crash(tear);
        }
        node.recover();
    });
}

#[test]
fn crash_nothing_written() {
    crashes("nothing", |_| Tear::Nothing);
}

#[test]
fn crash_everything_written() {
    crashes("everything", |_| Tear::Everything);
}

#[test]
fn crash_first_sectors_written() {
    crashes("prefix", |_| Tear::Prefix);
}

#[test]
fn crash_any_sectors_written() {
    crashes("sectors", |_| Tear::Sectors);
}

/// Of the write that opens a segment only the header's page reaches the disk. The
/// restart goes on in the segment before, where a seal still fits; the header
/// that nothing follows must not stand in the way of the restart after that.
#[test]
fn crash_that_leaves_a_segment_header_alone() {
    for_each_seed("header alone", |seed| {
        let mut node = Node::new(seed);
        let mut log = node.recover();
        let before = log.stats().segment;
        while log.stats().segment == before {
            node.poll(&mut log).unwrap();
            node.submit(&mut log).unwrap();
        }
        drop(log);
        node.disk.crash(Tear::Everything);
        node.disk.edit(before + 1, |bytes| bytes[BLOCK_BYTES..].fill(0));
        for _ in 0..3 {
            drop(node.recover());
            node.disk.crash(Tear::Nothing);
        }
        let mut log = node.recover();
        node.write(&mut log, 5).unwrap();
        drop(log);
        node.recover();
    });
}

#[test]
fn crash_while_sealing() {
    for_each_seed("seal torn", |seed| {
        let (mut node, mut log) = Node::grown(seed);
        log.idle(0).unwrap();
        log.idle(5_000).unwrap();
        assert!(log.in_flight());
        drop(log);
        node.disk.crash([Tear::Sectors, Tear::Prefix][(seed % 2) as usize]);
        node.recover();
    });
}

#[test]
fn crash_while_recovering() {
    for_each_seed("recovery torn", |seed| {
        let (mut node, mut log) = Node::grown(seed);
        node.submit(&mut log).unwrap();
        drop(log);
        node.disk.crash(Tear::Sectors);
        for _ in 0..3 {
            // The seal that opening writes fails and leaves some of its sectors.
            node.disk.inject(Fault::FailWrite { nth: node.disk.writes(), errno: libc_eio() });
            assert!(matches!(node.open(), Err(LogError::Poisoned(_))));
            node.disk.crash(Tear::Sectors);
        }
        let mut log = node.recover();
        node.write(&mut log, 3).unwrap();
        drop(log);
        node.recover();
    });
}

#[test]
fn delayed_writes_are_waited_for() {
    for_each_seed("delay", |seed| {
        let mut node = Node::new(seed);
        let mut log = node.recover();
        let nth = node.disk.writes();
        node.disk.inject(Fault::Delay { nth, polls: 3 });
        assert!(node.submit(&mut log).unwrap());
        for _ in 0..3 {
            assert_eq!(log.poll().unwrap(), None);
            assert!(!log.submit().unwrap(), "one batch in flight");
        }
        assert_eq!(log.poll().unwrap(), Some(Lsn(node.appended.len() as u64)));
    });
}

// --- failing writes -----------------------------------------------------------

fn libc_eio() -> i32 {
    5
}

fn failing(kind: &str, fault: impl Fn(u64) -> Fault) {
    for_each_seed(kind, |seed| {
        let (mut node, mut log) = Node::grown(seed);
        let acked = node.acked;
        node.disk.inject(fault(node.disk.writes()));
        assert!(node.submit(&mut log).unwrap());
        let Err(LogError::Poisoned(first)) = node.poll(&mut log) else { panic!("not stopped") };
        for _ in 0..3 {
            let record = node.next_record();
            let append = log.append(&record.frame());
            assert!(matches!(append, Err(LogError::Poisoned(error)) if error == first));
            assert!(matches!(log.submit(), Err(LogError::Poisoned(error)) if error == first));
            assert!(matches!(log.poll(), Err(LogError::Poisoned(error)) if error == first));
            assert!(matches!(log.idle(9), Err(LogError::Poisoned(error)) if error == first));
        }
        assert_eq!(log.durable(), Lsn(acked as u64));
        assert!(matches!(log.close(), Err(LogError::Poisoned(error)) if error == first));
        node.disk.crash(Tear::Sectors);
        node.recover();
    });
}

#[test]
fn a_failed_write_stops_the_log_for_ever() {
    failing("failed write", |nth| Fault::FailWrite { nth, errno: libc_eio() });
}

#[test]
fn a_short_write_stops_the_log_for_ever() {
    failing("short write", |nth| Fault::ShortWrite { nth });
}

#[test]
fn a_full_disk_waits_and_goes_on() {
    for_each_seed("full", |seed| {
        let mut node = Node::new(seed);
        node.disk.set_capacity(2);
        let mut log = node.recover();
        let full = loop {
            if !node.submit(&mut log).unwrap() {
                break node.acked;
            }
            node.poll(&mut log).unwrap();
        };
        assert_eq!(log.space(), Space::Reserve);
        assert!(log.stats().segment_waits > 0);
        assert!(!log.submit().unwrap() && log.poll().unwrap().is_none());
        assert_eq!(log.durable(), Lsn(full as u64));
        node.disk.set_capacity(8);
        assert!(log.submit().unwrap());
        node.poll(&mut log).unwrap();
        assert_eq!(node.acked, node.appended.len());
        assert_eq!(log.space(), Space::Ok);
        log.close().unwrap();
        node.recover();
    });
}

/// A prepared segment that cannot hold the batch stops the log before anything of the
/// batch is written.
#[test]
fn a_spare_that_is_too_small_stops_the_log() {
    for_each_seed("small spare", |seed| {
        let mut node = Node::new(seed);
        let mut log = node.recover();
        node.disk.edit(2, |bytes| bytes.truncate(2 * BLOCK_BYTES));
        node.disk.edit(3, |bytes| bytes.truncate(2 * BLOCK_BYTES));
        let (kind, chain, payload) = (FrameKind::Note, [0; 32], vec![1; 5_000]);
        let record = Record { kind, shard: 0, term: 0, index: 0, chain, payload };
        let error = loop {
            log.append(&record.frame()).unwrap();
            match log.submit() {
                Ok(started) => assert!(started),
                Err(error) => break error,
            }
            node.appended.push(record.clone());
            node.poll(&mut log).unwrap();
        };
        assert!(matches!(error, LogError::Poisoned(_)), "{error}");
        assert!(matches!(log.append(&record.frame()), Err(LogError::Poisoned(_))));
        drop(log);
        node.disk.crash(Tear::Nothing);
        let mut log = node.recover();
        node.write(&mut log, 30).unwrap();
        log.close().unwrap();
        node.recover();
    });
}

// --- damage -------------------------------------------------------------------

/// Damages one batch that a later batch or a seal proves durable, and expects
/// that very place to be named.
fn damaged(kind: &str, harm: impl Fn(&Node, &Placed)) {
    for_each_seed(kind, |seed| {
        let (node, log) = Node::grown(seed);
        match seed % 3 {
            0 => log.close().unwrap(),
            1 => drop(log),
            _ => {
                let (mut log, ..) = {
                    drop(log);
                    node.open().unwrap()
                };
                log.idle(0).unwrap();
                drop(log);
            }
        }
        node.disk.crash(Tear::Nothing);
        let batches = node.batches();
        let proven = &batches[..batches.len() - 1];
        let target = proven[node.random().below(proven.len() as u64) as usize];
        harm(&node, &target);
        let damage = node.refused();
        assert!(target.holds(&damage), "{target:?}: {damage}");
        // Refusing changes nothing.
        assert_eq!(node.refused(), damage);
    });
}

fn flip(node: &Node, at: Position, bit: u64) {
    node.disk.edit(at.segment, |bytes| {
        bytes[at.offset as usize] ^= 1 << bit;
    });
}

fn flip_in(node: &Node, target: &Placed, from: u64, to: u64) {
    let random = node.random();
    let offset = target.offset + from + random.below(to - from);
    flip(node, Position { segment: target.segment, offset }, random.below(8));
}

#[test]
fn flipped_bit_in_a_batch_header() {
    damaged("header bit", |node, target| flip_in(node, target, 0, 128));
}

#[test]
fn flipped_bit_anywhere_in_a_batch() {
    damaged("body bit", |node, target| flip_in(node, target, 0, target.bytes));
}

#[test]
fn flipped_bit_in_the_padding() {
    damaged("padding bit", |node, target| flip_in(node, target, target.bytes - 1, target.bytes));
}

#[test]
fn zeroed_block() {
    damaged("zeroed", |node, target| {
        node.disk.edit(target.segment, |bytes| {
            bytes[target.offset as usize..][..BLOCK_BYTES].fill(0);
        });
    });
}

#[test]
fn noise_over_a_whole_batch() {
    damaged("noise", |node, target| {
        let random = node.random();
        let noise: Vec<u8> = (0..target.bytes).map(|_| random.below(256) as u8).collect();
        node.disk.edit(target.segment, |bytes| {
            bytes[target.offset as usize..][..noise.len()].copy_from_slice(&noise);
        });
    });
}

#[test]
fn an_older_block_in_its_place() {
    damaged("stale", |node, target| {
        let other = node.batches()[0];
        let source = if other.batch == target.batch { node.batches()[1] } else { other };
        let stale = node.disk.contents(source.segment).unwrap();
        let stale = stale[source.offset as usize..][..BLOCK_BYTES].to_vec();
        node.disk.edit(target.segment, |bytes| {
            bytes[target.offset as usize..][..BLOCK_BYTES].copy_from_slice(&stale);
        });
    });
}

#[test]
fn unreadable_block() {
    damaged("unreadable", |node, target| {
        node.disk.inject(Fault::Unreadable { at: target.at() });
    });
}

/// Every block from `at` to the end of its segment and of all later ones.
fn blocks_from(disk: &SimDisk, at: Position) -> Vec<Position> {
    let mut blocks = Vec::new();
    for segment in at.segment.. {
        let Some(bytes) = disk.contents(segment) else { break };
        let first = if segment == at.segment { at.offset } else { 0 };
        let offsets = (first..bytes.len() as u64).step_by(BLOCK_BYTES);
        blocks.extend(offsets.map(|offset| Position { segment, offset }));
    }
    blocks
}

/// After an orderly end these blocks cannot be read any more: what stood there is
/// not known, and not for a start to write over.
fn unreadable_after_close(kind: &str, lost: impl Fn(&Node) -> Vec<Position>) {
    for_each_seed(kind, |seed| {
        let (node, log) = Node::grown(seed);
        log.close().unwrap();
        let lost = lost(&node);
        for at in &lost {
            node.disk.inject(Fault::Unreadable { at: *at });
        }
        let damage = node.refused();
        assert_eq!(damage.cause, DamageCause::Unreadable);
        let is_named = |at: &Position| {
            let file = format!("{:016x}.wal", at.segment);
            damage.offset == at.offset && damage.file.ends_with(file)
        };
        assert!(lost.iter().any(is_named), "{damage}");
        assert_eq!(node.refused(), damage, "refusing changes nothing");
    });
}

#[test]
fn unreadable_last_batch_and_seal() {
    unreadable_after_close("unreadable end", |node| {
        let batches = node.batches();
        let last = batches[batches.len() - 2];
        blocks_from(&node.disk, last.at())
            .into_iter()
            .filter(|at| batches.iter().any(|batch| batch.batch >= last.batch && batch.covers(*at)))
            .collect()
    });
}

#[test]
fn unreadable_seal() {
    unreadable_after_close("unreadable seal", |node| vec![node.batches().last().unwrap().at()]);
}

#[test]
fn unreadable_from_somewhere_to_the_end() {
    unreadable_after_close("unreadable from", |node| {
        let batches = node.batches();
        let from = batches[node.random().below(batches.len() as u64) as usize];
        blocks_from(&node.disk, from.at())
    });
}

#[test]
fn unreadable_whole_log() {
    unreadable_after_close("unreadable whole", |node| {
        blocks_from(&node.disk, Position { segment: 1, offset: 0 })
    });
}

/// Text in the form of a batch header: magic, version and checksum that fit, every
/// byte printable unless the version is given.
fn forged(version: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![b'a'; 128];
    bytes[..4].copy_from_slice(b"PSWB");
    bytes[4..6].copy_from_slice(&version.map_or(*b"zz", u16::to_le_bytes));
    for n in 0u32.. {
        bytes[8..16].copy_from_slice(format!("{n:08}").as_bytes());
        let crc = crc32c::crc32c(&bytes[..124]).to_le_bytes();
        if crc.iter().all(|byte| (b' '..=b'~').contains(byte)) {
            bytes[124..].copy_from_slice(&crc);
            return bytes;
        }
    }
    unreachable!("one in fifty has such a checksum")
}

/// Whoever writes payloads may write them so that one stands at the beginning of a
/// block: of a torn batch it is no more than that.
#[test]
fn a_payload_that_looks_like_a_header_is_torn_data() {
    for version in [None, Some(1)] {
        for_each_seed("forged header", |seed| {
            let (mut node, mut log) = Node::grown(3 * seed + 1);
            let mut payload = vec![b'x'; 9_000];
            // Behind the headers of batch and frame this is where the second block begins.
            payload[BLOCK_BYTES - 128 - 64..][..128].copy_from_slice(&forged(version));
            let (kind, chain) = (FrameKind::Note, [0; 32]);
            let record = Record { kind, shard: 0, term: 0, index: 0, chain, payload };
            log.append(&record.frame()).unwrap();
            assert!(log.submit().unwrap());
            drop(log);
            node.disk.crash(Tear::Everything);
            let torn = *node.batches().iter().rfind(|batch| batch.bytes == 3 * BLOCK).unwrap();
            node.disk.edit(torn.segment, |file| file[torn.offset as usize..][..512].fill(0));
            let (log, records, recovery) = node.open().expect("torn, not refused");
            assert_eq!(records, node.appended);
            let cut = recovery.cut.expect("the cut is told");
            assert_eq!((cut.offset + cut.bytes, cut.batch), (torn.offset + torn.bytes, torn.batch));
            drop(log);
            node.recover();
        });
    }
}

#[test]
fn headers_of_another_version_or_log_where_no_torn_write_reaches_are_refused() {
    for_each_seed("version out of reach", |seed| {
        for (version, cause) in
            [(None, DamageCause::UnknownVersion(0x7a7a)), (Some(1), DamageCause::Foreign)]
        {
            let (mut node, mut log) = Node::grown(seed);
            while node.batches().last().unwrap().segment < 2 {
                node.write(&mut log, 1).unwrap();
            }
            log.close().unwrap();
            let seal = *node.batches().last().unwrap();
            let end = Position { segment: seal.segment, offset: seal.offset + seal.bytes };
            let reach = node.settings.batch_max_bytes as u64 + BLOCK;
            let beyond = Position { segment: seal.segment + 1, offset: reach };
            let at_the_end = if end.offset < SEGMENT { end } else { beyond };
            for at in [beyond, Position { segment: seal.segment + 2, offset: BLOCK }, at_the_end] {
                let whole = node.disk.contents(at.segment).unwrap();
                node.disk.edit(at.segment, |file| {
                    file[at.offset as usize..][..128].copy_from_slice(&forged(version));
                });
                let damage = node.refused();
                assert_eq!((damage.cause, damage.offset), (cause, at.offset));
                node.disk.edit(at.segment, |file| *file = whole);
            }
        }
    });
}

#[test]
fn flipped_bit_and_a_torn_tail() {
    for_each_seed("bit and torn tail", |seed| {
        let (mut node, mut log) = Node::grown(seed);
        assert!(node.submit(&mut log).unwrap());
        drop(log);
        let batches = node.batches();
        node.disk.crash(Tear::Sectors);
        let proven = &batches[..batches.len() - 1];
        let target = proven[node.random().below(proven.len() as u64) as usize];
        flip_in(&node, &target, 0, target.bytes);
        let damage = node.refused();
        assert!(target.holds(&damage), "{target:?}: {damage}");
    });
}

#[test]
fn damaged_last_batch_is_noticed_after_a_seal() {
    for_each_seed("last batch", |seed| {
        let (mut node, mut log) = Node::grown(seed);
        let last = *node.batches().last().unwrap();
        if seed % 2 == 0 {
            log.idle(10).unwrap();
            assert!(!log.in_flight(), "not idle for long enough");
            log.idle(1_010).unwrap();
            assert!(log.in_flight());
            node.poll(&mut log).unwrap();
            log.idle(9_999).unwrap();
            assert!(!log.in_flight(), "sealed once");
            drop(log);
        } else {
            log.close().unwrap();
        }
        assert_eq!(node.batches().len() as u64, last.batch + 1);
        flip_in(&node, &last, 0, last.bytes);
        let damage = node.refused();
        assert!(last.holds(&damage), "{damage}");
        assert!(damage.durable.is_none_or(|durable| durable == last.batch));
    });
}

/// What theory leaves open: without a seal the last batch cannot be told from
/// one that was never confirmed. It alone may go, and the cut says so.
#[test]
fn damaged_last_batch_without_a_seal_is_cut_and_told() {
    for_each_seed("last batch unsealed", |seed| {
        let (node, log) = Node::grown(seed);
        drop(log);
        let last = *node.batches().last().unwrap();
        flip_in(&node, &last, 0, 128);
        let (_, records, recovery) = node.open().unwrap();
        let cut = recovery.cut.expect("the cut is told");
        assert_eq!(cut.batch, last.batch);
        assert!(records.len() < node.acked && records == node.appended[..records.len()]);
    });
}

#[test]
fn a_damaged_seal_loses_nothing() {
    for_each_seed("seal damaged", |seed| {
        let (mut node, log) = Node::grown(seed);
        log.close().unwrap();
        let seal = *node.batches().last().unwrap();
        flip_in(&node, &seal, 0, 128);
        node.recover();
    });
}

#[test]
fn lost_write() {
    for_each_seed("lost write", |seed| {
        let (mut node, mut log) = Node::grown(seed);
        let next = node.disk.writes();
        node.disk.inject(Fault::LoseWrite { nth: next });
        let batch = node.batches().last().unwrap().batch + 1;
        node.write(&mut log, 1 + seed % 3).unwrap();
        log.close().unwrap();
        let damage = node.refused();
        assert_eq!(damage.batch, batch, "{damage}");
    });
}

#[test]
fn misdirected_write() {
    for_each_seed("misdirected write", |seed| {
        let (mut node, mut log) = Node::grown(seed);
        let batches = node.batches();
        let (lost, over) = (batches.len() as u64 + 1, node.random().below(batches.len() as u64));
        let victim = batches[over as usize];
        let nth = node.disk.writes();
        node.disk.inject(Fault::Misdirect { nth, to: victim.at() });
        node.write(&mut log, 1 + seed % 2).unwrap();
        log.close().unwrap();
        let damage = node.refused();
        assert!(damage.batch == victim.batch && damage.batch < lost, "{damage}");
    });
}

#[test]
fn misdirected_write_into_empty_space() {
    for_each_seed("misdirected ahead", |seed| {
        let (mut node, mut log) = Node::grown(seed);
        let last = *node.batches().last().unwrap();
        let nth = node.disk.writes();
        let to = Position { segment: last.segment + 1, offset: 5 * BLOCK };
        node.disk.inject(Fault::Misdirect { nth, to });
        node.write(&mut log, 1).unwrap();
        if seed % 2 == 0 {
            log.close().unwrap();
        }
        let damage = node.refused();
        assert!(damage.batch <= last.batch + 1, "{damage}");
    });
}

fn files_harmed(kind: &str, harm: impl Fn(&Node, u64), causes: &[DamageCause]) {
    for_each_seed(kind, |seed| {
        let (mut node, mut log) = Node::grown(seed);
        while node.batches().last().unwrap().segment < 4 {
            node.write(&mut log, 1).unwrap();
        }
        log.close().unwrap();
        harm(&node, seed);
        let damage = node.refused();
        assert!(causes.contains(&damage.cause), "{damage}");
    });
}

#[test]
fn missing_segment_in_the_middle() {
    let harm = |node: &Node, seed| node.disk.remove(1 + seed % 3);
    files_harmed("missing segment", harm, &[DamageCause::MissingSegment]);
}

#[test]
fn missing_segments_at_the_end() {
    let harm = |node: &Node, seed| {
        for segment in 2 + seed % 3..100 {
            node.disk.remove(segment);
        }
    };
    files_harmed("missing end", harm, &[DamageCause::MissingSegment]);
}

#[test]
fn truncated_segment() {
    let harm = |node: &Node, seed| {
        let bytes = [0, 1_000, 8_192, 40_000, 61_440][(seed % 5) as usize];
        node.disk.edit(1 + seed % 4, |file| file.truncate(bytes));
    };
    files_harmed("truncated", harm, &[DamageCause::SegmentLength]);
}

#[test]
fn swapped_segments() {
    let harm = |node: &Node, _| {
        let (two, three) = (node.disk.contents(2).unwrap(), node.disk.contents(3).unwrap());
        node.disk.edit(2, |file| *file = three);
        node.disk.edit(3, |file| *file = two);
    };
    files_harmed("swapped", harm, &[DamageCause::Misplaced]);
}

#[test]
fn emptied_segment() {
    let harm = |node: &Node, seed| node.disk.edit(1 + seed % 3, |file| file.fill(0));
    files_harmed("emptied", harm, &[DamageCause::SegmentHeader, DamageCause::BatchHeader]);
}

#[test]
fn segment_of_another_log() {
    let harm = |node: &Node, seed| {
        let (other, mut log) = Node::grown(seed + 1_000_000);
        let mut other = other;
        while other.batches().last().unwrap().segment < 4 {
            other.write(&mut log, 1).unwrap();
        }
        let foreign = other.disk.contents(1 + seed % 4).unwrap();
        node.disk.edit(1 + seed % 4, |file| *file = foreign);
    };
    files_harmed("foreign segment", harm, &[DamageCause::Foreign]);
}

#[test]
fn segment_header_damaged() {
    let harm = |node: &Node, seed| {
        let offset = node.random().below(BLOCK);
        flip(node, Position { segment: 1 + seed % 4, offset }, seed % 8);
    };
    let causes = [DamageCause::SegmentHeader, DamageCause::BatchHeader, DamageCause::Misplaced];
    files_harmed("segment header", harm, &causes);
}

#[test]
fn identity_lost_or_damaged() {
    let harm = |node: &Node, _| node.disk.set_identity(None);
    files_harmed("no identity", harm, &[DamageCause::MissingIdentity]);
    let harm = |node: &Node, _| node.disk.set_identity(Some(vec![1; 4096]));
    files_harmed("identity", harm, &[DamageCause::Identity]);
    let harm = |node: &Node, _| node.disk.set_identity(Some(Vec::new()));
    files_harmed("empty identity", harm, &[DamageCause::Identity]);
}

/// Data far behind the end is no torn write.
#[test]
fn rot_where_nothing_was_written() {
    for_each_seed("rot in empty space", |seed| {
        let (node, log) = Node::grown(seed);
        log.close().unwrap();
        let last = node.batches().last().unwrap().segment;
        flip(&node, Position { segment: last + 2, offset: 7_000 + seed * 11 }, seed % 8);
        assert_eq!(node.refused().cause, DamageCause::UnexpectedData);
    });
}

#[test]
fn another_cluster_or_worker_is_refused() {
    let (mut node, log) = Node::grown(1);
    log.close().unwrap();
    let own = node.settings;
    for foreign in [Settings { cluster: 8, ..own }, Settings { worker: 3, ..own }] {
        node.settings = foreign;
        assert_eq!(node.refused().cause, DamageCause::Foreign);
    }
    node.settings = own;
    node.recover();
}
