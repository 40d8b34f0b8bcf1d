//! What is due when. Constant delays need no heap: their entries fall due in
//! the order they were made. Entries of things that ended meanwhile are skipped
//! lazily by whoever owns the thing. Knows no clock. Tested beside the code.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Entries with one constant delay.
pub(super) struct Fifo<T> {
    entries: VecDeque<(u64, T)>,
}

impl<T: Copy> Fifo<T> {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new() }
    }

    pub(super) fn push(&mut self, due_us: u64, entry: T) {
        debug_assert!(self.entries.back().is_none_or(|(last, _)| *last <= due_us));
        self.entries.push_back((due_us, entry));
    }

    pub(super) fn front(&self) -> Option<(u64, T)> {
        self.entries.front().copied()
    }

    pub(super) fn pop(&mut self) -> Option<(u64, T)> {
        self.entries.pop_front()
    }

    pub(super) fn pop_due(&mut self, now_us: u64) -> Option<T> {
        let (due, _) = self.entries.front()?;
        if *due > now_us { None } else { self.entries.pop_front().map(|(_, entry)| entry) }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Entries with any delay, earliest first; equal times in the order of entry.
pub(super) struct Heap<T> {
    entries: BinaryHeap<Reverse<(u64, u64, T)>>,
    made: u64,
}

impl<T: Copy + Ord> Heap<T> {
    pub(super) fn new() -> Self {
        Self { entries: BinaryHeap::new(), made: 0 }
    }

    pub(super) fn push(&mut self, key: u64, entry: T) {
        self.made += 1;
        self.entries.push(Reverse((key, self.made, entry)));
    }

    pub(super) fn first(&self) -> Option<(u64, T)> {
        self.entries.peek().map(|Reverse((key, _, entry))| (*key, *entry))
    }

    pub(super) fn pop(&mut self) -> Option<(u64, T)> {
        self.entries.pop().map(|Reverse((key, _, entry))| (key, entry))
    }

    pub(super) fn pop_due(&mut self, now_us: u64) -> Option<T> {
        let (due, _) = self.first()?;
        if due > now_us { None } else { self.pop().map(|(_, entry)| entry) }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Tokens that come back at a constant rate, at most one second's worth.
pub(super) struct Budget {
    per_second: u32,
    /// Credit in millionths of a token.
    credit: u64,
    at_us: u64,
}

impl Budget {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second, credit: u64::from(per_second.max(1)) * 1_000_000, at_us: 0 }
    }

    pub(super) fn take(&mut self, now_us: u64) -> bool {
        let full = u64::from(self.per_second.max(1)) * 1_000_000;
        let gained = now_us.saturating_sub(self.at_us).saturating_mul(u64::from(self.per_second));
        self.credit = self.credit.saturating_add(gained).min(full);
        self.at_us = self.at_us.max(now_us);
        let enough = self.credit >= 1_000_000;
        if enough {
            self.credit -= 1_000_000;
        }
        enough
    }

    /// When the next token is there.
    pub(super) fn ready_at(&self) -> u64 {
        let missing = 1_000_000_u64.saturating_sub(self.credit);
        self.at_us + missing.div_ceil(u64::from(self.per_second.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifo_gives_what_is_due_in_order() {
        let mut fifo = Fifo::new();
        fifo.push(10, 'a');
        fifo.push(20, 'b');
        assert_eq!(fifo.pop_due(9), None);
        assert_eq!(fifo.pop_due(15), Some('a'));
        assert_eq!(fifo.front(), Some((20, 'b')));
    }

    #[test]
    fn heap_keeps_entry_order_among_equals() {
        let mut heap = Heap::new();
        heap.push(5, 9);
        heap.push(5, 1);
        heap.push(3, 7);
        assert_eq!(heap.pop_due(2), None);
        assert_eq!(
            [heap.pop_due(5), heap.pop_due(5), heap.pop_due(5)],
            [Some(7), Some(9), Some(1)]
        );
    }

    #[test]
    fn budget_allows_its_rate_and_says_when() {
        let mut budget = Budget::new(2);
        assert!(budget.take(0) && budget.take(0));
        assert!(!budget.take(0));
        assert_eq!(budget.ready_at(), 500_000);
        assert!(!budget.take(499_999));
        assert!(budget.take(500_000));
    }
}
