//! Frames: a fixed 16-byte little-endian header and a body of at most 16 KiB.
//!
//! | offset | field | type |
//! |---|---|---|
//! | 0 | body length | u32 |
//! | 4 | kind | u8 |
//! | 5 | flags | u8 |
//! | 6 | reserved, zero | u16 |
//! | 8 | correlation id | u64 |

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 16;
/// Largest body in bytes.
pub const BODY_MAX: usize = 16 * 1024;

/// A decoded frame header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Body length in bytes.
    pub length: u32,
    /// Message kind, see [`crate::message::kind`].
    pub kind: u8,
    /// Per-kind flags.
    pub flags: u8,
    /// Chosen by the asker, echoed in the reply.
    pub correlation: u64,
}
