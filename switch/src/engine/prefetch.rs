//! Asks the processor for memory ahead of its use.
//!
//! A payment's records are touched four times, a commit or a channel's round
//! trip apart: each time they have left the caches. Asked for a few payments
//! ahead, the misses of a batch overlap instead of adding up. Changes nothing
//! that can be observed but time; does nothing on processors other than x86-64.

#![allow(unsafe_code)] // Reason: the instruction is an intrinsic that takes a pointer.

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Asks for every cache line of `place`, without waiting for any.
#[inline(always)]
pub(crate) fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = std::ptr::from_ref(place).cast::<i8>();
        for line in 0..size_of::<T>().div_ceil(LINE) {
            // SAFETY: within or at the end of `place`, which is borrowed; a prefetch
            // reads and writes nothing and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * LINE)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
