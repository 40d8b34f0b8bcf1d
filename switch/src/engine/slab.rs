//! Storage of fixed-size records that grows without moving what it holds.
//!
//! Knows nothing of payments. Growth allocates one chunk at a time, so that
//! no insert ever stalls on copying what is already there. Tested beside the
//! code.

use super::prefetch::prefetch;

const CHUNK_BITS: u32 = 14;
const CHUNK: usize = 1 << CHUNK_BITS;

/// An append-only sequence in chunks of 16 Ki records.
pub(super) struct Chunked<T> {
    chunks: Vec<Vec<T>>,
    len: u64,
}

impl<T> Chunked<T> {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn push(&mut self, value: T) -> u64 {
        let index = self.len;
        if (index as usize) & (CHUNK - 1) == 0 {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[(index >> CHUNK_BITS) as usize].push(value);
        self.len += 1;
        index
    }

    /// Removes the newest record.
    pub(super) fn pop(&mut self) -> Option<T> {
        let chunk = self.chunks.last_mut()?;
        let value = chunk.pop();
        if chunk.is_empty() {
            self.chunks.pop();
        }
        self.len -= u64::from(value.is_some());
        value
    }

    #[inline]
    pub(super) fn get(&self, index: u64) -> Option<&T> {
        self.chunks.get((index >> CHUNK_BITS) as usize)?.get(index as usize & (CHUNK - 1))
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u64) -> Option<&mut T> {
        self.chunks.get_mut((index >> CHUNK_BITS) as usize)?.get_mut(index as usize & (CHUNK - 1))
    }
}

impl<T> std::ops::Index<u64> for Chunked<T> {
    type Output = T;
    #[inline]
    fn index(&self, index: u64) -> &T {
        &self.chunks[(index >> CHUNK_BITS) as usize][index as usize & (CHUNK - 1)]
    }
}

impl<T> std::ops::IndexMut<u64> for Chunked<T> {
    #[inline]
    fn index_mut(&mut self, index: u64) -> &mut T {
        &mut self.chunks[(index >> CHUNK_BITS) as usize][index as usize & (CHUNK - 1)]
    }
}

/// Index of nothing in a [`Slab`].
pub(super) const NIL: u32 = u32::MAX;

struct Slot<T> {
    value: Option<T>,
    /// Counts re-uses, so that a stale timer entry is recognised.
    generation: u32,
    next_free: u32,
}

/// Records with re-used slots; freed slots are handed out last in, first out.
pub(super) struct Slab<T> {
    slots: Chunked<Slot<T>>,
    free: u32,
    used: u32,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { slots: Chunked::new(), free: NIL, used: 0 }
    }

    /// Records held.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.used += 1;
        if self.free == NIL {
            let slot = Slot { value: Some(value), generation: 0, next_free: NIL };
            return self.slots.push(slot) as u32;
        }
        let index = self.free;
        let slot = &mut self.slots[u64::from(index)];
        self.free = slot.next_free;
        slot.value = Some(value);
        self.warm(self.free);
        index
    }

    /// Asks for the memory of a slot without waiting for it.
    #[inline]
    pub(super) fn warm(&self, index: u32) {
        if let Some(slot) = self.slots.get(u64::from(index)) {
            prefetch(slot);
        }
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<T> {
        let slot = self.slots.get_mut(u64::from(index))?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.next_free = self.free;
        self.free = index;
        self.used -= 1;
        Some(value)
    }

    pub(super) fn generation(&self, index: u32) -> u32 {
        self.slots.get(u64::from(index)).map_or(0, |slot| slot.generation)
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(u64::from(index))?.value.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(u64::from(index))?.value.as_mut()
    }

    /// The record, unless the slot was re-used since `generation`.
    pub(super) fn live(&self, index: u32, generation: u32) -> Option<&T> {
        let slot = self.slots.get(u64::from(index))?;
        if slot.generation == generation { slot.value.as_ref() } else { None }
    }

    /// Indexes in use, ascending.
    pub(super) fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.slots.len() as u32).filter(|&i| self.get(i).is_some())
    }
}

/// One bit per record; finds the set ones fast when few are set.
#[derive(Default)]
pub(super) struct Bitmap {
    words: Vec<u64>,
    set: u64,
}

impl Bitmap {
    pub(super) fn count(&self) -> u64 {
        self.set
    }

    pub(super) fn put(&mut self, index: u64, value: bool) {
        let (word, bit) = ((index >> 6) as usize, 1_u64 << (index & 63));
        if word >= self.words.len() {
            if !value {
                return;
            }
            self.words.resize(word + 1, 0);
        }
        let was = self.words[word] & bit != 0;
        if was != value {
            self.words[word] ^= bit;
            if value {
                self.set += 1;
            } else {
                self.set -= 1;
            }
        }
    }

    /// Set bits, ascending.
    pub(super) fn ones(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(|(at, &word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u64 * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunked_grows_and_shrinks_at_chunk_borders() {
        let mut list = Chunked::new();
        for i in 0..CHUNK as u64 * 2 + 1 {
            assert_eq!(list.push(i), i);
        }
        assert_eq!(list[CHUNK as u64], CHUNK as u64);
        assert_eq!(list.pop(), Some(CHUNK as u64 * 2));
        assert_eq!(list.pop(), Some(CHUNK as u64 * 2 - 1));
        assert_eq!(list.push(7), CHUNK as u64 * 2 - 1);
        assert_eq!(list.len(), CHUNK as u64 * 2);
        assert!(list.get(list.len()).is_none());
    }

    #[test]
    fn slab_reuses_slots_and_tells_generations_apart() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        let old = slab.generation(a);
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        let b = slab.insert('b');
        assert_eq!(a, b);
        assert!(slab.live(b, old).is_none());
        assert_eq!(slab.live(b, slab.generation(b)), Some(&'b'));
        assert_eq!(slab.used(), 1);
    }

    #[test]
    fn bitmap_lists_what_is_set() {
        let mut bits = Bitmap::default();
        for i in [3, 64, 1000, 64] {
            bits.put(i, true);
        }
        bits.put(3, false);
        bits.put(99_999, false);
        assert_eq!(bits.ones().collect::<Vec<_>>(), [64, 1000]);
        assert_eq!(bits.count(), 2);
    }
}
