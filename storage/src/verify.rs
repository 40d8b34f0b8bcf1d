//! Checking and reading a log offline: read-only, without the lock, also while
//! its node runs.
//!
//! `payswitch log verify` and `log dump` stand on these. Tested in
//! `tests/files.rs`.

use std::path::Path;

use crate::disk::{Directory, Source};
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

/// Verifies the log in `dir` and hands each frame to `each`, in order.
pub fn read(
    dir: impl AsRef<Path>,
    each: &mut dyn FnMut(FrameAt<'_>),
) -> Result<VerifyReport, VerifyError> {
    let dir = dir.as_ref();
    let mut source = Directory::new(dir);
    let identity = identity(&mut source, dir)?;
    let (mut frames, mut blocks) = (0, 0);
    let mut released = beginning(&mut source, &identity)?;
    let (verified, torn) = loop {
        let mut visit = |found: crate::scan::Found, frame: Frame<'_>| {
            frames += 1;
            blocks += u64::from(frame.kind == crate::frame::FrameKind::Block);
            each(FrameAt { lsn: found.lsn, batch: found.batch, at: found.at, frame });
            Ok(())
        };
        let error = match scan(&mut source, identity, released.as_ref(), true, &mut visit) {
            Ok(done) => break done,
            Err(error) => error,
        };
        // The running node may have given up its oldest segments meanwhile.
        let now = beginning(&mut source, &identity)?;
        if frames > 0 || now == released {
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
        frames,
        blocks,
        last: Lsn(verified.next_lsn - 1),
        end: verified.end,
        sealed: verified.sealed,
        torn,
        shards: verified.chains.ends().map(end).collect(),
    })
}

/// Where the log begins, when segments were released.
fn beginning(source: &mut Directory, identity: &Identity) -> Result<Option<Released>, VerifyError> {
    crate::log::load_released(source, identity).map_err(|error| match error {
        LogError::Damage(damage) => VerifyError::Damage(damage),
        LogError::Disk(error) => VerifyError::Disk(error),
        _ => unreachable!("loading a file fails by damage or disk"),
    })
}

fn identity(source: &mut Directory, dir: &Path) -> Result<Identity, VerifyError> {
    let stored = source.load_identity().map_err(VerifyError::Disk)?;
    let Some(block) = stored else {
        return Err(VerifyError::NoLog(dir.to_path_buf()));
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
