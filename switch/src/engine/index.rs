//! The key index: order digest to payment sequence.
//!
//! Open addressing in 256 sub-tables by the first digest byte, so that growing
//! one of them moves 1/256 of the keys and never stalls the shard. It holds
//! 64 bits of the digest; the caller compares the whole key on a hit. Tested
//! beside the code against a standard map.

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
}

/// See the module.
pub(super) struct Index {
    tables: Vec<Table>,
}

const FIRST_LEN: usize = 64;

impl Index {
    pub(super) fn new() -> Self {
        let table = || Table { entries: vec![Entry::default(); FIRST_LEN], used: 0 };
        Self { tables: (0..256).map(|_| table()).collect() }
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
        // At most 3/4 full: probes stay short.
        if (table.used + 1) * 4 > table.entries.len() * 3 {
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
