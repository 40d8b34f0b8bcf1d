//! Zeroed memory on 4 KiB boundaries, as direct I/O demands.
#![allow(unsafe_code, reason = "std has no safe way to allocate with an alignment")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A fixed-size buffer aligned to 4 KiB.
pub struct AlignedBuf {
    data: NonNull<u8>,
    len: usize,
}

const ALIGN: usize = 4096;

impl AlignedBuf {
    /// `len` zero bytes, rounded up to whole blocks.
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(ALIGN);
        let layout = Self::layout(len);
        // SAFETY: the layout's size is at least one block.
        let data = unsafe { alloc_zeroed(layout) };
        let Some(data) = NonNull::new(data) else { handle_alloc_error(layout) };
        Self { data, len }
    }

    fn layout(len: usize) -> Layout {
        // A length that does not fit a layout cannot be allocated anyway.
        Layout::from_size_align(len, ALIGN).unwrap_or(Layout::new::<[u8; ALIGN]>())
    }

    /// Address of the first byte, for the kernel.
    pub fn as_ptr(&self) -> *const u8 {
        self.data.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `data` points to `len` initialised bytes that we own.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.data.as_ptr(), Self::layout(self.len)) }
    }
}

// SAFETY: the buffer owns its memory exclusively, like a Vec.
unsafe impl Send for AlignedBuf {}
