//! Memory that direct I/O accepts: aligned to a block, allocated once.

use std::ops::{Deref, DerefMut};

use crate::format::BLOCK_BYTES;

/// Zeroed bytes whose first one lies on a 4 KiB boundary. Moving the buffer
/// does not move the bytes.
pub struct Buffer {
    memory: Box<[u8]>,
    start: usize,
    bytes: usize,
}

impl Buffer {
    /// A buffer of `bytes` bytes.
    pub fn new(bytes: usize) -> Buffer {
        let memory = vec![0; bytes + BLOCK_BYTES].into_boxed_slice();
        let address = memory.as_ptr() as usize;
        let start = address.next_multiple_of(BLOCK_BYTES) - address;
        Buffer { memory, start, bytes }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.bytes]
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({})", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_stable() {
        for bytes in [4096, 8192, 1 << 20] {
            let buffer = Buffer::new(bytes);
            let before = buffer.as_ptr();
            assert_eq!(before as usize % BLOCK_BYTES, 0);
            assert_eq!(buffer.len(), bytes);
            let moved = Box::new(buffer);
            assert_eq!(moved.as_ptr(), before);
        }
    }
}
