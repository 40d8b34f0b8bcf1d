//! What stands behind the first place that does not check out: zeros, the one write
//! that can have been in flight, or proof that something later was durable.

use super::{BLOCK, Cut, Position, ScanError, Scanner};
use crate::error::DamageCause;
use crate::format::{BatchHeader, HeaderFault, SegmentHeader, is_zero};
use crate::frame::Lsn;

/// The first place that does not check out, and what follows it.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) at: Position,
    pub(super) cause: DamageCause,
    pub(super) record: Option<(Lsn, u64)>,
    /// Ranges of blocks that are not zero, at most one per segment.
    written: Vec<(u64, u64, u64)>,
    /// The first block that the device could not read.
    unreadable: Option<Position>,
}

impl Scanner<'_> {
    pub(super) fn start_tail(&mut self, cause: DamageCause, record: Option<(Lsn, u64)>) {
        let unreadable = self.unreadable.iter().any(|at| *at >= self.pos.offset);
        let cause = if unreadable { DamageCause::Unreadable } else { cause };
        let (at, written, unreadable) = (self.pos, Vec::new(), None);
        self.tail = Some(Tail { at, cause, record, written, unreadable });
    }

    /// A block behind the first bad place: zeros, torn data, proof, or unknown.
    pub(super) fn tail_block(&mut self, block: &[u8]) -> Result<(), ScanError> {
        if self.unreadable.binary_search(&self.pos.offset).is_ok() {
            let at = self.pos;
            if let Some(tail) = &mut self.tail {
                tail.unreadable.get_or_insert(at);
            }
            return Ok(());
        }
        if is_zero(block) {
            return Ok(());
        }
        if self.pos.offset == 0 {
            match SegmentHeader::decode(block) {
                Ok(header) => return self.tail_segment(&header, block),
                Err(HeaderFault::Version(v)) => {
                    return Err(self.damage(self.pos, DamageCause::UnknownVersion(v), None));
                }
                Err(HeaderFault::Damaged) => {}
            }
        }
        // Within reach of the one write it may be a payload that looks like a header:
        // whoever writes payloads does not know our log id, but may try the rest.
        let may_be_torn = self.within_reach();
        match BatchHeader::decode(block) {
            Ok(header) if may_be_torn && header.log != self.identity.log => {}
            Ok(header) => self.tail_batch(&header)?,
            Err(HeaderFault::Version(v)) if !may_be_torn => {
                return Err(self.damage(self.pos, DamageCause::UnknownVersion(v), None));
            }
            Err(HeaderFault::Version(_) | HeaderFault::Damaged) => {}
        }
        self.note_written();
        Ok(())
    }

    /// Where in this segment the one write that can have been in flight begins, if
    /// it can have gone to this segment.
    fn write_start(&self, segment: u64) -> Option<u64> {
        let end = self.verified.end;
        match segment.checked_sub(end.segment)? {
            0 => Some(end.offset),
            1 => Some(0),
            _ => None,
        }
    }

    /// How many bytes it can have: a batch and the header of a segment.
    fn reach(&self) -> u64 {
        self.verified.write_max + BLOCK
    }

    /// Whether that write can have touched the block at hand.
    fn within_reach(&self) -> bool {
        let Position { segment, offset } = self.pos;
        let start = self.write_start(segment);
        start.is_some_and(|start| offset >= start && offset + BLOCK <= start + self.reach())
    }

    /// The next segment's header: the log went on there, or this is proof.
    fn tail_segment(&mut self, header: &SegmentHeader, block: &[u8]) -> Result<(), ScanError> {
        let spotless = self.tail.as_ref().is_some_and(|tail| tail.written.is_empty());
        if !spotless && header.identity == self.identity {
            let batch = header.first_batch.saturating_sub(1);
            return Err(self.proven(batch));
        }
        self.enter_segment(header, block)
    }

    fn tail_batch(&self, header: &BatchHeader) -> Result<(), ScanError> {
        if header.log != self.identity.log {
            return Err(self.damage(self.pos, DamageCause::Foreign, None));
        }
        if header.watermark >= self.verified.next_batch {
            return Err(self.proven(header.watermark));
        }
        let at_home = header.segment == self.pos.segment && header.offset == self.pos.offset;
        if at_home && header.batch == self.verified.next_batch {
            return Ok(());
        }
        Err(self.damage(self.pos, DamageCause::Misplaced, None))
    }

    fn note_written(&mut self) {
        let (segment, from, to) = (self.pos.segment, self.pos.offset, self.pos.offset + BLOCK);
        let Some(tail) = &mut self.tail else { return };
        match tail.written.last_mut() {
            Some(range) if range.0 == segment => range.2 = to,
            _ => tail.written.push((segment, from, to)),
        }
    }

    /// Nothing later was proven durable: is what stands behind the end within
    /// reach of the one write that can have been in flight?
    pub(super) fn judge(&mut self) -> Result<Option<Cut>, ScanError> {
        // A beginning is recorded only when its first batch is durable.
        if self.verified.first_segment > 1 && self.verified.batches == 0 {
            return Err(self.proven(self.verified.next_batch));
        }
        let Some(tail) = &self.tail else { return Ok(None) };
        if let Some(at) = tail.unreadable {
            return Err(self.damage(at, DamageCause::Unreadable, None));
        }
        let end = self.verified.end;
        let reach = self.reach();
        let opened = Position { segment: end.segment + 1, offset: BLOCK };
        let header_alone = tail.at == opened && tail.written.is_empty();
        let header = [(opened.segment, 0, BLOCK)];
        // A header whose batch never came must go: the log may go on before it.
        let written = if header_alone { &header[..] } else { &tail.written[..] };
        let Some(&(segment, from, to)) = written.first() else { return Ok(None) };
        let Some(start) = self.write_start(segment) else {
            let at = Position { segment, offset: from };
            return Err(self.damage(at, DamageCause::UnexpectedData, None));
        };
        if to > start + reach {
            let at = Position { segment, offset: from.max(start) };
            return Err(self.damage(at, DamageCause::UnexpectedData, None));
        }
        if let Some(&(segment, offset, _)) = written.get(1) {
            let at = Position { segment, offset };
            return Err(self.damage(at, DamageCause::UnexpectedData, None));
        }
        Ok(Some(Cut {
            file: (self.path)(segment),
            offset: start,
            bytes: to - start,
            batch: self.verified.next_batch,
            segment,
        }))
    }
}
