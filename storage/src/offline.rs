//! Reading a log without owning it: `payswitch log verify` and `log dump`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::disk::aligned::AlignedBuf;
use crate::disk::file::{list, read_ahead};
use crate::disk::{Backend, Disk, ReadAhead, SegmentFile};
use crate::error::{LogError, ReplayError};
use crate::format::{Frame, FrameKind};
use crate::log::LogConfig;
use crate::recovery::{Recovery, Scan};

/// A frame with its place.
#[derive(Clone, Copy, Debug)]
pub struct FrameAt<'a> {
    /// Segment number.
    pub segment: u64,
    /// Offset of the frame in the segment's file.
    pub offset: u64,
    /// Batch that carries it.
    pub batch: u64,
    /// The frame.
    pub frame: Frame<'a>,
}

/// What a whole log holds.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Cluster it belongs to.
    pub cluster: u64,
    /// Worker it belongs to.
    pub worker: u16,
    /// Figures of the scan.
    pub recovery: Recovery,
    /// Blocks, hard states not counted.
    pub blocks: u64,
    /// Last index per shard.
    pub last_index: BTreeMap<u16, u64>,
}

/// Checks every checksum, position and chain of a log.
///
/// # Errors
/// [`LogError::Damaged`] with file and offset, or what the system says.
pub fn verify(dir: &Path) -> Result<VerifyReport, LogError> {
    let mut report = VerifyReport::default();
    let (recovery, owner) = scan(dir, &mut |at| {
        if at.frame.kind == FrameKind::Block {
            report.blocks += 1;
            report.last_index.insert(at.frame.shard, at.frame.index);
        }
        Ok(())
    })?;
    (report.cluster, report.worker) = owner;
    report.recovery = recovery;
    Ok(report)
}

/// Hands out every frame in order. Works beside a running node, up to what is
/// on disk at that moment.
///
/// # Errors
/// As [`verify`], and what `take` refuses.
pub fn read(
    dir: &Path,
    take: &mut dyn FnMut(FrameAt<'_>) -> Result<(), ReplayError>,
) -> Result<Recovery, LogError> {
    scan(dir, take).map(|(recovery, _)| recovery)
}

fn scan(
    dir: &Path,
    take: &mut dyn FnMut(FrameAt<'_>) -> Result<(), ReplayError>,
) -> Result<(Recovery, (u64, u16)), LogError> {
    let config = LogConfig {
        dir: dir.to_owned(),
        backend: Backend::Auto,
        cluster: 0,
        worker: 0,
        segment_bytes: 0,
        batch_max_bytes: usize::MAX / 2,
        reserve_bytes: 0,
        idle_seal_us: 0,
    };
    let mut disk = ReadOnly(dir);
    let mut scan = Scan::new(&config, true);
    scan.run(&mut disk, &mut |header, offset, frame| {
        take(FrameAt { segment: header.segment, offset, batch: header.batch, frame })
    })?;
    Ok((scan.recovery, scan.adopt.unwrap_or_default()))
}

/// The reading half of a disk.
struct ReadOnly<'a>(&'a Path);

fn read_only() -> std::io::Error {
    std::io::Error::other("opened for reading only")
}

impl Disk for ReadOnly<'_> {
    fn list(&mut self) -> std::io::Result<Vec<SegmentFile>> {
        list(self.0)
    }

    fn read_ahead(&mut self, segments: Vec<SegmentFile>) -> ReadAhead {
        read_ahead(self.0, segments)
    }

    fn prepare(&mut self, _segment: u64) {}

    fn ready(&mut self, _segment: u64) -> std::io::Result<bool> {
        Err(read_only())
    }

    fn start(&mut self, _segment: u64, _offset: u64, _buffer: AlignedBuf, _len: usize) {}

    fn poll(&mut self) -> Option<(AlignedBuf, std::io::Result<()>)> {
        None
    }

    fn zero(&mut self, _segment: u64, _offset: u64, _len: usize) -> std::io::Result<()> {
        Err(read_only())
    }

    fn free_bytes(&mut self) -> std::io::Result<u64> {
        Err(read_only())
    }

    fn describe(&self) -> String {
        "read only".into()
    }
}
