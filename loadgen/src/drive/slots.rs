//! The requests in flight: a table of fixed size with a free list, and the
//! correlation ids that lead back into it.
//!
//! Pure. Tested for stale ids and exhaustion.

use crate::measure::Sample;
use crate::plan::Op;

const INDEX_BITS: u32 = 17;
/// Largest table.
pub(crate) const IN_FLIGHT_LIMIT: usize = 1 << INDEX_BITS;
const FREE: u64 = u64::MAX;

/// Not on a link: waits to be sent again.
pub(super) const NO_LINK: u16 = u16::MAX;

/// A request in flight, in half a cache line: an answer touches one, and
/// thousands are in flight. What the plan tells is not kept.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub(super) struct Slot {
    /// Its number in the plan.
    pub(super) n: u64,
    /// When it should have left, nanoseconds since the driver began.
    pub(super) planned_ns: u64,
    /// When it left first. Also the moment it was signed at, which is needed to
    /// make the same bytes again.
    pub(super) sent_ns: u64,
    /// What it does.
    pub(super) op: Op,
    /// Whether it is about the payment of its own number.
    pub(super) own: bool,
    /// Which link carries it.
    pub(super) link: u16,
}

const _: () = assert!(size_of::<Slot>() == 32);

impl Slot {
    /// Its figures.
    pub(super) fn sample(&self) -> Sample {
        Sample { op: self.op, planned_ns: self.planned_ns, sent_ns: self.sent_ns }
    }
}

/// The table.
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Last freed, first used: the table stays dense at its beginning.
    free: Vec<u32>,
    /// No slot from here on was used since the table was last empty.
    used: usize,
}

impl Slots {
    /// A table for at most `capacity` (up to [`IN_FLIGHT_LIMIT`]) requests.
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.min(IN_FLIGHT_LIMIT);
        let (op, own, link) = (Op::Pay, false, NO_LINK);
        let empty = Slot { n: FREE, planned_ns: 0, sent_ns: 0, op, own, link };
        Self { slots: vec![empty; capacity], free: (0..capacity as u32).rev().collect(), used: 0 }
    }

    /// Number of requests in the table.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no more fit.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes a request in; `None` when full.
    pub(super) fn insert(&mut self, slot: Slot) -> Option<u32> {
        let index = self.free.pop()?;
        self.used = self.used.max(index as usize + 1);
        self.slots[index as usize] = slot;
        Some(index)
    }

    /// The request with this number at this index.
    pub(super) fn get_mut(&mut self, index: u32, n: u64) -> Option<&mut Slot> {
        self.slots.get_mut(index as usize).filter(|slot| slot.n == n)
    }

    /// Asks for the memory of a request without needing it yet: done for a whole
    /// batch ahead of its answers, the cache misses overlap.
    pub(super) fn warm(&self, index: u32) {
        std::hint::black_box(self.slots.get(index as usize).map(|slot| slot.n));
    }

    /// Takes a request out.
    pub(super) fn remove(&mut self, index: u32) {
        self.slots[index as usize].n = FREE;
        self.free.push(index);
        if self.len() == 0 {
            self.used = 0;
        }
    }

    /// All requests in the table, with their index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Slot)> {
        let slots = self.slots[..self.used].iter().enumerate();
        slots.filter(|(_, slot)| slot.n != FREE).map(|(index, slot)| (index as u32, slot))
    }
}

/// The correlation id of request `n` at `index`.
pub(super) fn correlation(index: u32, n: u64) -> u64 {
    n << INDEX_BITS | u64::from(index)
}

/// Index and number of a correlation id.
pub(super) fn uncorrelate(correlation: u64) -> (u32, u64) {
    ((correlation & (IN_FLIGHT_LIMIT as u64 - 1)) as u32, correlation >> INDEX_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(n: u64) -> Slot {
        Slot { n, planned_ns: 0, sent_ns: 0, op: Op::Pay, own: true, link: 0 }
    }

    #[test]
    fn ids_lead_back_and_stale_ones_do_not() {
        let mut slots = Slots::new(2);
        let index = slots.insert(slot(70_000)).unwrap();
        let (found, n) = uncorrelate(correlation(index, 70_000));
        assert_eq!(slots.get_mut(found, n).unwrap().n, 70_000);
        slots.remove(index);
        assert!(slots.get_mut(found, n).is_none());
        assert_eq!(slots.insert(slot(70_001)), Some(index));
        assert!(slots.get_mut(found, n).is_none());
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let mut slots = Slots::new(2);
        assert!(slots.insert(slot(1)).is_some() && slots.insert(slot(2)).is_some());
        assert!(slots.is_full() && slots.insert(slot(3)).is_none());
        assert_eq!((slots.len(), slots.iter().count()), (2, 2));
        [0, 1].into_iter().for_each(|index| slots.remove(index));
        assert_eq!((slots.len(), slots.iter().count()), (0, 0));
        assert_eq!(slots.insert(slot(4)), Some(1));
        assert_eq!(slots.iter().count(), 1);
    }
}
