//! Frames: a fixed 16-byte little-endian header and a body of at most 16 KiB.
//!
//! | offset | field | type |
//! |---|---|---|
//! | 0 | body length | u32 |
//! | 4 | kind | u8 |
//! | 5 | flags | u8 |
//! | 6 | reserved, zero | u16 |
//! | 8 | correlation id | u64 |
//!
//! Knows nothing of what a body means. Tested by splitting random frames at
//! random chunk boundaries and by arbitrary bytes.

use crate::code::CloseCode;

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
    /// Per-kind flags. None is defined yet: writers send zero, readers ignore them.
    pub flags: u8,
    /// Chosen by the asker, echoed in the reply.
    pub correlation: u64,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        (bytes[4], bytes[5]) = (self.kind, self.flags);
        bytes[8..].copy_from_slice(&self.correlation.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameError`] when reserved bits are set or the body is too long.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if length as usize > BODY_MAX {
            return Err(FrameError::TooLarge(length));
        }
        if bytes[6] != 0 || bytes[7] != 0 {
            return Err(FrameError::Reserved);
        }
        let mut correlation = [0; 8];
        correlation.copy_from_slice(&bytes[8..]);
        let correlation = u64::from_le_bytes(correlation);
        Ok(Self { length, kind: bytes[4], flags: bytes[5], correlation })
    }
}

/// Why bytes are not frames of this protocol. The stream cannot be resynchronised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The body is announced longer than [`BODY_MAX`].
    TooLarge(u32),
    /// Reserved header bits are set.
    Reserved,
}

impl FrameError {
    /// The code to close the connection with.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::TooLarge(_) => CloseCode::FrameTooLarge,
            Self::Reserved => CloseCode::ProtocolError,
        }
    }
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge(length) => {
                write!(f, "frame body of {length} bytes, at most {BODY_MAX} allowed")
            }
            Self::Reserved => f.write_str("reserved bytes of the frame header are not zero"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Splits the chunks of one stream into frames. Frames that lie whole in a
/// chunk are lent from it; only a frame cut by a chunk's end is copied.
#[derive(Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// An empty splitter.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes held of an unfinished frame: below `HEADER_LEN + BODY_MAX`.
    pub fn pending(&self) -> usize {
        self.partial.len()
    }

    /// Whether no unfinished frame is held.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// Feeds the stream's next bytes; `take` gets every frame that is complete.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is then unusable.
    pub fn push(
        &mut self,
        mut chunk: &[u8],
        mut take: impl FnMut(Header, &[u8]),
    ) -> Result<(), FrameError> {
        while !self.partial.is_empty() {
            let wanted = match self.partial.first_chunk::<HEADER_LEN>() {
                Some(header) => HEADER_LEN + Header::decode(header)?.length as usize,
                None => HEADER_LEN,
            };
            let more = (wanted - self.partial.len()).min(chunk.len());
            self.partial.extend_from_slice(&chunk[..more]);
            chunk = &chunk[more..];
            if self.partial.len() < wanted {
                return Ok(());
            }
            let Some((head, body)) = self.partial.split_first_chunk::<HEADER_LEN>() else {
                return Ok(());
            };
            let header = Header::decode(head)?;
            if body.len() == header.length as usize {
                take(header, body);
                self.partial.clear();
            }
        }
        while let Some((head, rest)) = chunk.split_first_chunk::<HEADER_LEN>() {
            let header = Header::decode(head)?;
            let Some((body, rest)) = rest.split_at_checked(header.length as usize) else { break };
            take(header, body);
            chunk = rest;
        }
        self.partial.extend_from_slice(chunk);
        Ok(())
    }
}

/// Starts a frame at the end of `out`; [`end`] completes it.
pub fn begin(out: &mut Vec<u8>, kind: u8, correlation: u64) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, kind, 0, 0, 0]);
    out.extend_from_slice(&correlation.to_le_bytes());
    start
}

/// Writes the length of the frame that [`begin`] started at `start`.
pub fn end(out: &mut [u8], start: usize) {
    let length = out.len() - start - HEADER_LEN;
    debug_assert!(length <= BODY_MAX, "encoders stay below the body limit");
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
}

#[cfg(test)]
mod tests;
