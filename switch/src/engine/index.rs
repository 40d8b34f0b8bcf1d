//! The key index: order digest to payment sequence.
//!
//! Open addressing in 256 sub-tables by the first digest byte, so that growing
//! one of them moves 1/256 of the keys and never stalls the shard. They fill
//! alike, and would all grow within the same second: each has its own share at
//! which it does. It holds 64 bits of the digest; the caller compares the whole
//! key on a hit. Tested beside the code against a standard map.

use super::prefetch::prefetch;

/// One entry; `place` is the sequence + 1, zero when the entry is free.
#[derive(Clone, Copy, Default)]
struct Entry {
    hash: u64,
    place: u64,
}

struct Table {
    entries: Vec<Entry>,
    used: usize,
    /// It grows before it holds more.
    used_max: usize,
}

/// See the module.
pub(super) struct Index {
    tables: Vec<Table>,
}

const TABLES: usize = 256;
const FIRST_LEN: usize = 64;
/// How full the first table gets before it grows; the last gets twice as full. Between
/// them in even steps of the logarithm, so that growing is spread over the whole way from
/// one doubling to the next. Probes are longest at the upper end: 13 entries at 0.8.
const FIRST_SHARE: f64 = 0.4;

impl Index {
    pub(super) fn new() -> Self {
        let table = |number: usize| {
            let share = FIRST_SHARE * 2_f64.powf(number as f64 / TABLES as f64);
            let used_max = (share * FIRST_LEN as f64) as usize;
            Table { entries: vec![Entry::default(); FIRST_LEN], used: 0, used_max }
        };
        Self { tables: (0..TABLES).map(table).collect() }
    }

    /// Asks for the memory that [`Self::find`] of this digest will read, without
    /// waiting for it.
    #[inline]
    pub(super) fn warm(&self, digest: &[u8; 16]) {
        let table = &self.tables[usize::from(digest[0])];
        let mask = table.entries.len() - 1;
        prefetch(&table.entries[hash_of(digest) as usize & mask]);
    }

    /// The first sequence under this digest for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, digest: &[u8; 16], is_it: impl Fn(u64) -> bool) -> Option<u64> {
        let (table, hash) = (&self.tables[usize::from(digest[0])], hash_of(digest));
        let mask = table.entries.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let entry = table.entries[at];
            if entry.place == 0 {
                return None;
            }
            if entry.hash == hash && is_it(entry.place - 1) {
                return Some(entry.place - 1);
            }
            at = (at + 1) & mask;
        }
    }

    pub(super) fn insert(&mut self, digest: &[u8; 16], sequence: u64) {
        let table = &mut self.tables[usize::from(digest[0])];
        if table.used == table.used_max {
            table.grow();
        }
        table.place(Entry { hash: hash_of(digest), place: sequence + 1 });
        table.used += 1;
    }

    /// Takes a key out again; only proposals that were never committed leave.
    pub(super) fn remove(&mut self, digest: &[u8; 16], sequence: u64) {
        let (table, hash) = (&mut self.tables[usize::from(digest[0])], hash_of(digest));
        let mask = table.entries.len() - 1;
        let mut at = hash as usize & mask;
        while table.entries[at].place != sequence + 1 {
            if table.entries[at].place == 0 {
                return;
            }
            at = (at + 1) & mask;
        }
        table.used -= 1;
        // Backward shift: close the hole so that no probe ends early.
        let mut hole = at;
        loop {
            table.entries[hole] = Entry::default();
            let mut next = hole;
            loop {
                next = (next + 1) & mask;
                let entry = table.entries[next];
                if entry.place == 0 {
                    return;
                }
                let home = entry.hash as usize & mask;
                if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                    table.entries[hole] = entry;
                    hole = next;
                    break;
                }
            }
        }
    }
}

impl Table {
    fn place(&mut self, entry: Entry) {
        let mask = self.entries.len() - 1;
        let mut at = entry.hash as usize & mask;
        while self.entries[at].place != 0 {
            at = (at + 1) & mask;
        }
        self.entries[at] = entry;
    }

    fn grow(&mut self) {
        let len = self.entries.len() * 2;
        self.used_max *= 2;
        let old = std::mem::replace(&mut self.entries, vec![Entry::default(); len]);
        for entry in old.into_iter().filter(|e| e.place != 0) {
            self.place(entry);
        }
    }
}

/// The digest is a hash already; byte 0 chose the table.
fn hash_of(digest: &[u8; 16]) -> u64 {
    u64::from_le_bytes([
        digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7], digest[8],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Digests as evenly spread as real ones.
    fn digest(n: u64) -> [u8; 16] {
        let mixed = (n ^ n >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (u128::from(mixed ^ mixed >> 32) | u128::from(mixed) << 64).to_le_bytes()
    }

    /// All at once they stopped a shard of millions for a tenth of a second.
    #[test]
    fn tables_grow_one_after_the_other() {
        let mut index = Index::new();
        let lens = |index: &Index| index.tables.iter().map(|it| it.entries.len()).sum::<usize>();
        let (first, last) = (100_000, 400_000);
        (0..first).for_each(|n| index.insert(&digest(n), n));
        let (mut before, start) = (lens(&index), lens(&index));
        let mut most = 0;
        // Two doublings, in steps of a sixteenth of what is there already.
        let mut n = first;
        while n < last {
            let step = n / 16;
            (n..n + step).for_each(|n| index.insert(&digest(n), n));
            n += step;
            let now = lens(&index);
            most = most.max((now - before) * 16 / before);
            before = now;
        }
        assert!(before >= start * 3, "they do grow: {start} to {before}");
        assert!(most <= 2, "no step adds more than an eighth, a sixteenth being even: {most}");
        assert!((0..n).all(|n| index.find(&digest(n), |found| found == n) == Some(n)));
        let fullest = index.tables.iter().map(|it| it.used * 100 / it.entries.len()).max();
        assert!(fullest.is_some_and(|percent| percent <= 80), "{fullest:?}");
    }

    proptest! {
        /// Few distinct hashes, so that probes collide and removal must shift.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((any::<bool>(), 0_u8..3, 0_u8..80, any::<u8>()), 1..400)) {
            let mut index = Index::new();
            let mut model = BTreeMap::new();
            for (add, table, low, high) in steps {
                let mut digest = [0; 16];
                (digest[0], digest[1], digest[8]) = (table, low, high);
                let sequence = u64::from(table) << 16 | u64::from(low) << 8 | u64::from(high);
                if add && !model.contains_key(&digest) {
                    index.insert(&digest, sequence);
                    model.insert(digest, sequence);
                } else if !add {
                    index.remove(&digest, sequence);
                    model.remove(&digest);
                }
                for (digest, sequence) in &model {
                    prop_assert_eq!(index.find(digest, |s| s == *sequence), Some(*sequence));
                }
                if !model.contains_key(&digest) {
                    prop_assert_eq!(index.find(&digest, |s| s == sequence), None);
                }
            }
        }
    }
}
