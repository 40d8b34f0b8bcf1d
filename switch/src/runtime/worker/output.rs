//! From the engines outwards: blocks to consensus, frames to the log, messages
//! to the other sites, and what may leave to the network thread.

use std::sync::atomic::Ordering;

use storage::Space;
use storage::disk::Disk;

use super::{Worker, WorkerError};
use crate::engine::output::Stage;
use crate::engine::{Now, record};
use crate::runtime::clock;

/// Room below which no part of a block is worth a write: any record fits.
const PART_BYTES_MIN: usize = 16 << 10;

impl<D: Disk> Worker<D> {
    /// Proposes the open blocks, hands frames to the log and messages to the
    /// links. Alone, a block is proposed when the log can write it; with other
    /// sites it travels to them while the own disk still works on the one before.
    pub(super) fn write(&mut self, now: Now) -> Result<bool, WorkerError> {
        for shard in &mut self.shards {
            shard.start_reads();
        }
        let ready = !self.log.in_flight() && !self.log.unsubmitted();
        let blocks = self.proposable_bytes();
        let propose = blocks > 0
            && match self.alone {
                true => ready && !self.writer.pace.holds(now, blocks),
                false => {
                    self.writer.queued_bytes() < self.settings.blocks_bytes_max
                        && !self.proposals.holds(now, blocks)
                }
            };
        if propose {
            self.propose();
        }
        // Barriers and proposals leave for the other sites before the disk works.
        self.advance(now)?;
        self.post.send(&mut self.shards);
        if self.log.in_flight() {
            return Ok(propose);
        }
        if self.log.unsubmitted() {
            // Handed over when no segment was ready: nothing may follow before it.
            return self.submit(now);
        }
        if self.writer.is_empty() {
            if blocks == 0 {
                self.log.idle(now.mono_us)?;
            }
            return Ok(propose);
        }
        if !self.alone && self.writer.holds(now) {
            return Ok(propose);
        }
        // From here on it may say what this site promised.
        self.shared.log_is_empty.store(false, Ordering::Release);
        let taken = self.writer.append(&mut self.shards, &mut self.log)?;
        if !self.alone {
            self.writer.append_commits(&mut self.shards, &mut self.log)?;
        }
        self.shared.metrics.batch_bytes.record(taken as u64);
        self.shared.metrics.log_written_bytes.add(taken as u64);
        let full = self.log.space() == Space::Reserve;
        self.shared.storage_full.store(full, Ordering::Relaxed);
        let written = self.submit(now)?;
        if !written && !self.log.unsubmitted() {
            // No frames: what stood behind earlier writes may leave already.
            self.advance(now)?;
            self.post.send(&mut self.shards);
        }
        Ok(written)
    }

    /// Bytes of open blocks that consensus would take now.
    pub(super) fn proposable_bytes(&self) -> usize {
        let open = self.shards.iter().filter(|shard| !shard.out.block.is_empty());
        open.filter(|shard| shard.replica.may_propose()).map(|shard| shard.out.block.len()).sum()
    }

    fn submit(&mut self, now: Now) -> Result<bool, WorkerError> {
        self.writer.submitted_us = now.mono_us;
        Ok(self.log.submit()?)
    }

    /// Hands the open blocks to consensus, as much as one log write carries.
    fn propose(&mut self) {
        let mut left = self.settings.blocks_bytes_max;
        let mut records = 0;
        for shard in &mut self.shards {
            let out = &mut shard.out;
            let whole = out.block.len() <= left;
            let skip = out.block.is_empty() || !whole && left < PART_BYTES_MIN;
            if skip || !shard.replica.may_propose() {
                continue;
            }
            let mut rest = shard.replica.spare();
            let mut taken = out.block_records;
            if !whole {
                taken = record::split_off(&mut out.block, left, &mut rest);
            }
            left = left.saturating_sub(out.block.len());
            let block = std::mem::replace(&mut out.block, rest);
            match shard.replica.propose(block) {
                Ok(()) => {
                    shard.refused = false;
                    out.block_records -= taken;
                    records += u64::from(taken);
                }
                Err(mut block) => {
                    shard.refused = true;
                    block.extend_from_slice(&out.block);
                    let rest = std::mem::replace(&mut out.block, block);
                    shard.replica.recycle(rest);
                }
            }
        }
        self.shared.metrics.records.add(records);
        self.shared.metrics.batch_records.record(records);
    }

    /// Collects what the engines let go and hands it to the network thread.
    pub(super) fn release(&mut self) {
        for shard in &mut self.shards {
            let until = shard.may_send_until();
            self.shared.mesh.publish_lease(shard.replica.shard(), until);
            let out = &mut shard.out;
            for alarm in out.alarms.drain(..) {
                self.shared.metrics.alarm(alarm.kind).add(1);
                eprintln!(
                    "alarm kind={:?} shard={} sequence={} ordinal={}",
                    alarm.kind,
                    shard.engine.shard(),
                    alarm.sequence,
                    alarm.ordinal
                );
            }
            for (stage, took_us) in out.stages.drain(..) {
                let metrics = &self.shared.metrics;
                self.out.times.durable.add(took_us, 1);
                match stage {
                    Stage::Begin => metrics.begin_durable.record(took_us),
                    Stage::End => metrics.end_durable.record(took_us),
                }
            }
            self.out.replies.append(&mut out.replies);
            self.out.sends.append(&mut out.sends);
            self.out.events.append(&mut out.events);
            self.out.merchants.append(&mut out.merchants);
            self.out.admin.append(&mut out.admin);
        }
        if self.out.is_empty() {
            return;
        }
        let next = self.shared.exchange.out_batch();
        let mut full = std::mem::replace(&mut self.out, next);
        full.ready_us = clock::mono_us();
        if let Err(back) = self.shared.exchange.push_out(full) {
            // The network thread is behind: keep collecting, offer again next turn.
            let empty = std::mem::replace(&mut self.out, back);
            self.shared.exchange.recycle_out(empty);
        }
    }
}
