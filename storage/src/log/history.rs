//! The past of a log: reading blocks back, checkpoints, giving up segments.

use super::Log;
use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::disk::Disk;
use crate::error::LogError;
use crate::places::{NotInLog, Route};
use crate::reader::BlockReader;
use crate::release::{Release, merge};

/// A [`Release`] of a log on this disk.
pub type LogRelease<D> = Release<<D as Disk>::Files, <D as Disk>::Pages>;

impl<D: Disk> Log<D> {
    /// Where the durable blocks `from..to` of a shard can be read. The route
    /// may end earlier: where the durable part ends, where a block that is not
    /// written yet replaces them, or because the way is too winding; ask again
    /// from there.
    ///
    /// # Errors
    /// [`NotInLog`] when the log does not reach back that far.
    pub fn route(&self, shard: u16, from: u64, to: u64) -> Result<Route, NotInLog> {
        self.places.route(shard, from, to, self.durable_end)
    }

    /// The first block of a shard that can be read back.
    pub fn first_index(&self, shard: u16) -> Option<u64> {
        self.places.first(shard)
    }

    /// A reader for the routes of this log; it may go to another thread.
    pub fn reader(&self) -> BlockReader<D::Pages> {
        BlockReader::new(self.disk.pages(), self.identity)
    }

    /// Which segments can go when these checkpoints, committed and durable, hold
    /// what they held; `None` when none can. A segment stays while it holds a
    /// block above its shard's checkpoint (a shard that is not named keeps all of
    /// its blocks), or the newest hard state or note of any shard: the caller
    /// appends those of quiet shards again now and then. From now on no block
    /// at or below a named index is accepted or read back from those segments.
    ///
    /// # Errors
    /// [`LogError::IndexGap`] for a checkpoint beyond the shard's last block.
    pub fn plan_release(
        &mut self,
        checkpoints: &[Checkpoint],
    ) -> Result<Option<LogRelease<D>>, LogError> {
        self.plan_release_before(checkpoints, u64::MAX)
    }

    /// [`Self::plan_release`] of segments before `segment` only.
    ///
    /// # Errors
    /// As [`Self::plan_release`].
    pub fn plan_release_before(
        &mut self,
        checkpoints: &[Checkpoint],
        segment: u64,
    ) -> Result<Option<LogRelease<D>>, LogError> {
        self.sound()?;
        for Checkpoint { shard, index, .. } in checkpoints.iter().copied() {
            if !self.spans.release(shard, index) {
                return Err(LogError::IndexGap { shard, index });
            }
        }
        merge(&mut self.anchors, checkpoints);
        let last = self.durable_end.segment.min(segment);
        let first = self.holdings.first_needed(&self.anchors, last);
        if first <= self.first_segment {
            return Ok(None);
        }
        self.first_segment = first;
        self.places.release(first);
        self.holdings.release(first);
        Ok(Some(Release {
            files: self.disk.files(),
            pages: self.disk.pages(),
            identity: self.identity,
            first,
            anchors: self.anchors.clone(),
        }))
    }

    /// The checkpoint files of this log; may go to another thread.
    pub fn checkpoints(&self) -> Checkpoints<D::Files> {
        Checkpoints::new(self.disk.files(), self.identity)
    }
}
