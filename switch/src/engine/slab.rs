//! Records in chunks: growing never moves what is there, so it never stalls.

/// Records per chunk.
const CHUNK: usize = 4096;

/// A growing array in chunks.
pub(super) struct Slab<T> {
    chunks: Vec<Vec<T>>,
    len: usize,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, record: T) {
        if self.len.is_multiple_of(CHUNK) && self.len / CHUNK == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[self.len / CHUNK].push(record);
        self.len += 1;
    }

    pub(super) fn get(&self, at: usize) -> Option<&T> {
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.chunks.get_mut(at / CHUNK)?.get_mut(at % CHUNK)
    }

    /// Drops the records from `len` on; their chunks keep their memory.
    pub(super) fn truncate(&mut self, len: usize) {
        for (number, chunk) in self.chunks.iter_mut().enumerate() {
            chunk.truncate(len.saturating_sub(number * CHUNK));
        }
        self.len = self.len.min(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_over_chunks_and_truncates_within_one() {
        let mut slab = Slab::new();
        for number in 0..3 * CHUNK {
            slab.push(number);
        }
        assert_eq!(slab.get(2 * CHUNK + 7), Some(&(2 * CHUNK + 7)));
        slab.truncate(CHUNK + 1);
        assert_eq!(
            (slab.len(), slab.get(CHUNK), slab.get(CHUNK + 1)),
            (CHUNK + 1, Some(&CHUNK), None)
        );
        slab.push(9);
        assert_eq!(slab.get(CHUNK + 1), Some(&9));
    }
}
