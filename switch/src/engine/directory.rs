//! The merchants of the shard with what they used of their limits.
//!
//! Records and replicated usage change only by applied records; the volatile
//! usage is the leader's. Tested through the engine's limit tests.

use super::limit::{Gcra, Usage};
use super::merchant::{Limits, Merchant};
use protocol::id::MchId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Limits that end by themselves.
#[derive(Clone, Copy)]
pub(super) struct Temporary {
    /// What comes back.
    pub(super) before: Limits,
    /// When, Unix milliseconds.
    pub(super) until_ms: u64,
}

pub(super) struct Entry {
    pub(super) merchant: Merchant,
    pub(super) temporary: Option<Temporary>,
    /// Moved by applied records.
    pub(super) applied: Usage,
    /// Volatile: moved at admission on the leader.
    pub(super) admitted: Usage,
    /// Volatile.
    pub(super) query: Gcra,
}

impl Entry {
    /// An entry as the log made it; nothing was admitted since.
    pub(super) fn restored(
        merchant: Merchant,
        temporary: Option<Temporary>,
        applied: Usage,
    ) -> Self {
        Self { merchant, temporary, applied, admitted: applied, query: Gcra::default() }
    }

    /// The limits in force at this moment.
    pub(super) fn limits(&self, wall_us: u64) -> Limits {
        match self.temporary {
            Some(temporary) if wall_us / 1000 >= temporary.until_ms => temporary.before,
            _ => self.merchant.limits,
        }
    }
}

#[derive(Default)]
pub(super) struct Directory {
    by_id: HashMap<MchId, u32, BuildHasherDefault<FoldHasher>>,
    entries: Vec<Entry>,
}

impl Directory {
    #[inline]
    pub(super) fn find(&self, mch_id: &MchId) -> Option<u32> {
        self.by_id.get(mch_id).copied()
    }

    pub(super) fn at(&self, place: u32) -> &Entry {
        &self.entries[place as usize]
    }

    pub(super) fn at_mut(&mut self, place: u32) -> &mut Entry {
        &mut self.entries[place as usize]
    }

    /// Creates or replaces a record; usage stays.
    pub(super) fn put(&mut self, merchant: Merchant) {
        match self.find(&merchant.mch_id) {
            Some(place) => {
                let entry = self.at_mut(place);
                entry.merchant = merchant;
                entry.temporary = None;
            }
            None => {
                self.by_id.insert(merchant.mch_id, self.entries.len() as u32);
                self.entries.push(Entry::restored(merchant, None, Usage::default()));
            }
        }
    }

    /// Changes limits, for good or until a moment.
    pub(super) fn put_limits(&mut self, place: u32, limits: Limits, until_ms: u64) {
        let entry = self.at_mut(place);
        let standing = entry.temporary.map_or(entry.merchant.limits, |t| t.before);
        entry.temporary = (until_ms != 0).then_some(Temporary { before: standing, until_ms });
        entry.merchant.limits = limits;
    }

    /// A new leader starts from what the log says.
    pub(super) fn forget_admitted(&mut self) {
        for entry in &mut self.entries {
            entry.admitted = entry.applied;
        }
    }

    /// All entries in the order in which they were created: their places.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds an entry of a checkpoint; `None` when the merchant is there already.
    pub(super) fn add(&mut self, entry: Entry) -> Option<()> {
        let place = u32::try_from(self.entries.len()).ok()?;
        if self.by_id.insert(entry.merchant.mch_id, place).is_some() {
            return None;
        }
        self.entries.push(entry);
        Some(())
    }
}

/// Folds eight bytes at a time. Only operators create keys of the map, so that
/// nobody can fill it with collisions.
#[derive(Default)]
pub(crate) struct FoldHasher(u64);

impl Hasher for FoldHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(chunk.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)));
        }
        for byte in chunks.remainder() {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        let wide = u128::from(self.0 ^ value ^ 0xf39c_c060_5ced_c835) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (wide as u64) ^ ((wide >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
