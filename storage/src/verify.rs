//! Checking and reading a log offline: read-only, without the lock, also while
//! its node runs.
//!
//! `payswitch log verify` and `log dump` stand on these. A node that gives up its
//! oldest segments meanwhile is followed to the log's new beginning. Tested here and
//! in `tests/files.rs`.

use std::path::Path;

use crate::checkpoint::Checkpoints;
use crate::disk::{DirFiles, Directory, Source};
use crate::error::{Damage, DamageCause, LogError, VerifyError};
use crate::format::{HeaderFault, Identity, Released};
use crate::frame::{Frame, Lsn};
use crate::scan::{Cut, Position, ScanError, ShardEnd, scan};

/// What a sound log holds.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// Cluster in the identity.
    pub cluster: u64,
    /// Worker in the identity.
    pub worker: u16,
    /// Segments that hold data.
    pub segments: u64,
    /// Batches, seals included.
    pub batches: u64,
    /// Frames.
    pub frames: u64,
    /// Frames that the running node gave up before they were read.
    pub missed: u64,
    /// Blocks among the frames.
    pub blocks: u64,
    /// The last frame.
    pub last: Lsn,
    /// Where the log ends.
    pub end: Position,
    /// Whether the last batch was a seal.
    pub sealed: bool,
    /// A torn tail that the next start will cut; a batch being written looks
    /// the same.
    pub torn: Option<Cut>,
    /// Last block of each shard.
    pub shards: Vec<ShardEnd>,
}

/// A frame and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct FrameAt<'a> {
    /// Ordinal of the frame.
    pub lsn: Lsn,
    /// Batch that holds it.
    pub batch: u64,
    /// Where its header starts.
    pub at: Position,
    /// The frame.
    pub frame: Frame<'a>,
}

/// Verifies every byte of the log in `dir`.
pub fn verify(dir: impl AsRef<Path>) -> Result<VerifyReport, VerifyError> {
    read(dir, &mut |_| {})
}

/// Verifies the log in `dir` and hands each frame to `each`, in order and once.
pub fn read(
    dir: impl AsRef<Path>,
    each: &mut dyn FnMut(FrameAt<'_>),
) -> Result<VerifyReport, VerifyError> {
    read_from(&mut Directory::new(dir.as_ref()), each)
}

/// The checkpoint files of the log in `dir`, for reading.
///
/// # Errors
/// As [`verify`].
pub fn checkpoints(dir: impl AsRef<Path>) -> Result<Checkpoints, VerifyError> {
    let dir = dir.as_ref();
    let identity = identity(&mut Directory::new(dir))?;
    Ok(Checkpoints::new(DirFiles::new(dir.to_path_buf()), identity))
}

fn read_from<S: Source>(
    source: &mut S,
    each: &mut dyn FnMut(FrameAt<'_>),
) -> Result<VerifyReport, VerifyError> {
    let identity = identity(source)?;
    let mut released = beginning(source, &identity)?;
    let (mut seen, mut missed) = (None, 0);
    let (verified, torn, blocks) = loop {
        let mut blocks = 0;
        let mut visit = |found: crate::scan::Found, frame: Frame<'_>| {
            blocks += u64::from(frame.kind == crate::frame::FrameKind::Block);
            let Lsn(lsn) = found.lsn;
            if let Some(seen) = seen
                && lsn > seen
            {
                missed += lsn - seen - 1;
            }
            if seen.is_none_or(|seen| lsn > seen) {
                seen = Some(lsn);
                each(FrameAt { lsn: found.lsn, batch: found.batch, at: found.at, frame });
            }
            Ok(())
        };
        let error = match scan(source, identity, released.as_ref(), true, &mut visit) {
            Ok((verified, torn)) => break (verified, torn, blocks),
            Err(error) => error,
        };
        // The running node may have given up its oldest segments meanwhile: what was not
        // read yet may be gone, and the log is one that begins later.
        let now = beginning(source, &identity)?;
        if now == released {
            return Err(scan_error(error));
        }
        released = now;
    };
    let end = |(shard, index, chain)| ShardEnd { shard, index, chain };
    Ok(VerifyReport {
        cluster: identity.cluster,
        worker: identity.worker,
        segments: verified.segments,
        batches: verified.batches,
        frames: verified.next_lsn - verified.first_lsn,
        missed,
        blocks,
        last: Lsn(verified.next_lsn - 1),
        end: verified.end,
        sealed: verified.sealed,
        torn,
        shards: verified.chains.ends().map(end).collect(),
    })
}

/// Where the log begins, when segments were released.
fn beginning<S: Source>(
    source: &mut S,
    identity: &Identity,
) -> Result<Option<Released>, VerifyError> {
    crate::log::load_released(source, identity).map_err(|error| match error {
        LogError::Damage(damage) => VerifyError::Damage(damage),
        LogError::Disk(error) => VerifyError::Disk(error),
        _ => unreachable!("loading a file fails by damage or disk"),
    })
}

fn identity<S: Source>(source: &mut S) -> Result<Identity, VerifyError> {
    let dir = source.dir();
    let stored = source.load_identity().map_err(VerifyError::Disk)?;
    let Some(block) = stored else {
        return Err(VerifyError::NoLog(dir));
    };
    Identity::decode(&block).map_err(|fault| {
        let cause = match fault {
            HeaderFault::Damaged => DamageCause::Identity,
            HeaderFault::Version(version) => DamageCause::UnknownVersion(version),
        };
        let file = dir.join("identity");
        let damage = Damage { file, offset: 0, batch: 1, record: None, cause, durable: None };
        VerifyError::Damage(Box::new(damage))
    })
}

fn scan_error(error: ScanError) -> VerifyError {
    match error {
        ScanError::Damage(damage) => VerifyError::Damage(damage),
        ScanError::Disk(error) => VerifyError::Disk(error),
        ScanError::Replay(..) => unreachable!("the offline visitor never refuses"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::Checkpoint;
    use crate::config::Settings;
    use crate::disk::{DiskError, DiskOp, Fault, Files, SegmentFile, SimDisk, VisitPiece};
    use crate::format::BLOCK_BYTES;
    use crate::frame::{CHAIN_START, FrameKind, chain_next};
    use crate::log::{Log, LogRelease};

    const SEGMENT: u64 = 32 << 10;

    /// A log of `blocks` blocks, each in a batch of its own, and their chain values.
    fn written(blocks: u64) -> (SimDisk, Log<SimDisk>, Vec<[u8; 32]>) {
        let disk = SimDisk::new(1, SEGMENT);
        let settings = Settings {
            cluster: 9,
            worker: 4,
            segment_bytes: SEGMENT,
            batch_max_bytes: 8 << 10,
            idle_seal_us: 1_000,
        };
        let (mut log, _) = Log::with_disk(disk.clone(), settings, &mut |_| Ok(())).unwrap();
        let mut chains = vec![CHAIN_START];
        for index in 1..=blocks {
            let payload = [index as u8; 500];
            let chain = chain_next(&chains[index as usize - 1], &payload);
            let (kind, shard, term) = (FrameKind::Block, 0, 1);
            log.append(&Frame { kind, shard, term, index, chain, payload: &payload }).unwrap();
            chains.push(chain);
            log.submit().unwrap();
            while log.in_flight() {
                log.poll().unwrap();
            }
        }
        (disk, log, chains)
    }

    fn release(log: &mut Log<SimDisk>, chains: &[[u8; 32]], index: u64) -> LogRelease<SimDisk> {
        let chain = chains[index as usize];
        let checkpoint = Checkpoint { shard: 0, index, term: 1, chain };
        log.plan_release(&[checkpoint]).unwrap().expect("something to release")
    }

    #[test]
    fn what_cannot_be_read_is_no_orderly_end() {
        let (mut disk, log, _) = written(40);
        log.close().unwrap();
        let end = read_from(&mut disk, &mut |_| {}).unwrap().end;
        let block = BLOCK_BYTES as u64;
        // The seal alone; the last batch and the seal; everything.
        for back in [1, 2, u64::MAX] {
            let (mut disk, log, _) = written(40);
            log.close().unwrap();
            for segment in 1..=end.segment {
                let last = if segment == end.segment { end.offset } else { SEGMENT };
                let blocks = (0..last / block).rev();
                let few = if segment == end.segment { back } else { back.saturating_sub(2) };
                for nth in blocks.take(few.min(SEGMENT) as usize) {
                    let at = Position { segment, offset: nth * block };
                    disk.inject(Fault::Unreadable { at });
                }
            }
            let refused = read_from(&mut disk, &mut |_| {});
            let Err(VerifyError::Damage(damage)) = refused else { panic!("{refused:?}") };
            assert_eq!(damage.cause, DamageCause::Unreadable);
        }
    }

    /// The log of a running node that gives segments up when a scan has come to
    /// the n-th piece: the next segment cannot be opened then.
    struct Running {
        disk: SimDisk,
        pieces: usize,
        release: Option<LogRelease<SimDisk>>,
    }

    impl Source for Running {
        fn dir(&self) -> PathBuf {
            Source::dir(&self.disk)
        }

        fn load_identity(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
            self.disk.load_identity()
        }

        fn load_prepared(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
            self.disk.load_prepared()
        }

        fn load_released(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
            self.disk.load_released()
        }

        fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
            self.disk.segments()
        }

        fn scan(
            &mut self,
            from: Position,
            segments: &[SegmentFile],
            visit: &mut VisitPiece<'_>,
        ) -> Result<(), DiskError> {
            let Some(mut release) = self.release.take() else {
                return self.disk.scan(from, segments, visit);
            };
            let mut left = self.pieces;
            self.disk.scan(from, segments, &mut |piece| {
                if left == 0 {
                    return std::ops::ControlFlow::Break(());
                }
                left -= 1;
                visit(piece)
            })?;
            release.run()?;
            Err(DiskError { op: DiskOp::Open, errno: Some(2) })
        }
    }

    #[test]
    fn a_log_that_is_given_up_under_the_reader_is_read_from_where_it_begins_now() {
        for pieces in 0..12 {
            let (disk, mut log, chains) = written(40);
            let release = release(&mut log, &chains, 40);
            let first = log.first_index(0).unwrap();
            let mut running = Running { disk, pieces, release: Some(release) };
            let mut indexes = Vec::new();
            let report = read_from(&mut running, &mut |at| indexes.push(at.frame.index)).unwrap();
            assert_eq!((report.blocks, report.frames), (41 - first, 41 - first));
            assert_eq!(report.shards[0].index, 40);
            assert!(indexes.windows(2).all(|pair| pair[0] < pair[1]), "{indexes:?}");
            assert!(indexes.ends_with(&(first..=40).collect::<Vec<_>>()), "{indexes:?}");
            let read_before = indexes.iter().filter(|index| **index < first).count() as u64;
            let missed = if read_before == 0 { 0 } else { first - 1 - read_before };
            assert_eq!(report.missed, missed);
        }
    }

    #[test]
    fn a_segment_that_is_gone_without_a_release_is_an_error() {
        let (disk, mut log, chains) = written(40);
        let mut release = release(&mut log, &chains, 40);
        release.run().unwrap();
        drop(log);
        let first = release.first();
        let mut files = disk.clone();
        Files::remove(&mut files, &format!("{first:016x}.wal")).unwrap();
        let mut running = Running { disk, pieces: 0, release: None };
        let refused = read_from(&mut running, &mut |_| {});
        let Err(VerifyError::Damage(damage)) = refused else { panic!("{refused:?}") };
        assert_eq!(damage.cause, DamageCause::MissingSegment);
    }
}
