//! From a payment's digest to its place: open addressing in 256 small tables, so
//! that growing one never stalls the shard for long.

/// Tables; the digest's first byte chooses.
const TABLES: usize = 256;
const EMPTY: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    tag: u32,
    at: u32,
}

#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    used: usize,
}

/// The index. Candidates have an equal 32-bit tag; the caller compares the key.
pub(super) struct Index {
    tables: Vec<Table>,
}

fn tag(digest: &[u8; 16]) -> u32 {
    u32::from_le_bytes([digest[1], digest[2], digest[3], digest[4]])
}

impl Table {
    fn insert(&mut self, entry: Entry) {
        if self.used * 4 >= self.entries.len() * 3 {
            let grown = (self.entries.len() * 2).max(16);
            let old =
                std::mem::replace(&mut self.entries, vec![Entry { tag: 0, at: EMPTY }; grown]);
            for entry in old.into_iter().filter(|entry| entry.at != EMPTY) {
                self.place(entry);
            }
        }
        self.place(entry);
        self.used += 1;
    }

    fn place(&mut self, entry: Entry) {
        let mask = self.entries.len() - 1;
        let mut slot = entry.tag as usize & mask;
        while self.entries[slot].at != EMPTY {
            slot = (slot + 1) & mask;
        }
        self.entries[slot] = entry;
    }
}

impl Index {
    pub(super) fn new() -> Self {
        Self { tables: (0..TABLES).map(|_| Table::default()).collect() }
    }

    /// First place whose key `matches` accepts.
    pub(super) fn find(
        &self,
        digest: &[u8; 16],
        mut matches: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let table = &self.tables[usize::from(digest[0])];
        let mask = table.entries.len().checked_sub(1)?;
        let tag = tag(digest);
        let mut slot = tag as usize & mask;
        loop {
            let entry = table.entries[slot];
            if entry.at == EMPTY {
                return None;
            }
            if entry.tag == tag && matches(entry.at) {
                return Some(entry.at);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Adds a place whose key is not there yet.
    pub(super) fn insert(&mut self, digest: &[u8; 16], at: u32) {
        debug_assert!(at != EMPTY);
        self.tables[usize::from(digest[0])].insert(Entry { tag: tag(digest), at });
    }

    /// Forgets everything, to be filled again.
    pub(super) fn clear(&mut self) {
        for table in &mut self.tables {
            table.entries.fill(Entry { tag: 0, at: EMPTY });
            table.used = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_place_also_with_equal_tags() {
        let digest = |number: u32| {
            let mut digest = [0; 16];
            digest[0] = (number % 3) as u8;
            // Every tag ten times.
            digest[1..5].copy_from_slice(&(number / 10).to_le_bytes());
            digest[8..12].copy_from_slice(&number.to_le_bytes());
            digest
        };
        let mut index = Index::new();
        for number in 0..5000 {
            assert_eq!(index.find(&digest(number), |at| digest(at) == digest(number)), None);
            index.insert(&digest(number), number);
        }
        for number in 0..5000 {
            assert_eq!(
                index.find(&digest(number), |at| digest(at) == digest(number)),
                Some(number)
            );
        }
        index.clear();
        assert_eq!(index.find(&digest(1), |_| true), None);
    }
}
