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
//! Knows nothing of what a body means. Tested by splitting random frame
//! sequences at random chunk boundaries and by feeding arbitrary bytes.

use crate::code::Code;

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
    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameError`] when the length is above [`BODY_MAX`] or the reserved
    /// bytes are not zero: the stream cannot be read any further.
    #[inline]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, kind, flags, r0, r1, correlation @ ..] = *bytes;
        let header = Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            kind,
            flags,
            correlation: u64::from_le_bytes(correlation),
        };
        if header.length as usize > BODY_MAX {
            return Err(FrameError::TooLarge(header));
        }
        if (r0, r1) != (0, 0) {
            return Err(FrameError::Reserved(header));
        }
        Ok(header)
    }

    /// The header's bytes.
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let [l0, l1, l2, l3] = self.length.to_le_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.correlation.to_le_bytes();
        [l0, l1, l2, l3, self.kind, self.flags, 0, 0, c0, c1, c2, c3, c4, c5, c6, c7]
    }
}

/// Why a stream of frames cannot be read any further. Carries the header as it
/// came, so that an error frame can name the correlation id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The announced body is larger than [`BODY_MAX`].
    TooLarge(Header),
    /// The reserved header bytes are not zero: not a frame of this protocol.
    Reserved(Header),
}

impl FrameError {
    /// The code of the error frame.
    pub fn code(self) -> Code {
        match self {
            Self::TooLarge(_) => Code::FrameTooLarge,
            Self::Reserved(_) => Code::MalformedFrame,
        }
    }

    /// The header that was refused.
    pub fn header(self) -> Header {
        match self {
            Self::TooLarge(header) | Self::Reserved(header) => header,
        }
    }
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge(header) => {
                write!(f, "frame body of {} bytes, at most {BODY_MAX} allowed", header.length)
            }
            Self::Reserved(_) => f.write_str("reserved bytes of the frame header are not zero"),
        }
    }
}

impl std::error::Error for FrameError {}

/// A complete frame, borrowed from the chunk it came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// Header.
    pub header: Header,
    /// Body, `header.length` bytes.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes the first frame off `bytes`: the frame and what follows it, or
    /// `None` when the frame is not complete.
    ///
    /// # Errors
    /// [`FrameError`] as soon as the header is there.
    #[inline]
    pub fn split(bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, FrameError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = Header::decode(header)?;
        match rest.split_at_checked(header.length as usize) {
            Some((body, rest)) => Ok(Some((Self { header, body }, rest))),
            None => Ok(None),
        }
    }
}

/// Cuts the chunks of one stream into frames. Frames that lie within a chunk
/// are borrowed from it; only a frame that spans chunks is copied. Holds at
/// most two frames of memory; they are reused.
#[derive(Default)]
pub struct Splitter {
    /// The frame that spanned chunks and was completed by the current one.
    head: Vec<u8>,
    /// The partial frame at the end of the current chunk.
    tail: Vec<u8>,
    /// A stream that broke stays broken.
    failed: Option<FrameError>,
}

impl Splitter {
    /// An empty splitter; it allocates when the first frame spans chunks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Feeds the stream's next chunk and yields the frames that it completes,
    /// in order. An error comes after the frames before it, and again on every
    /// further call. The whole chunk is consumed whether or not the iterator
    /// is run to its end.
    pub fn feed<'a>(&'a mut self, chunk: &'a [u8]) -> Frames<'a> {
        if let Some(error) = self.failed {
            return Frames { head: &[], whole: &[], error: Some(error) };
        }
        self.head.clear();
        let mut rest = chunk;
        if !self.tail.is_empty() {
            match self.complete_tail(chunk) {
                Ok(Some(after)) => rest = after,
                Ok(None) => return Frames { head: &[], whole: &[], error: None },
                Err(error) => {
                    self.failed = Some(error);
                    return Frames { head: &[], whole: &[], error: Some(error) };
                }
            }
        }
        let (whole, error) = match complete_len(rest) {
            Ok(len) => (len, None),
            Err((len, error)) => (len, Some(error)),
        };
        let (whole, partial) = rest.split_at(whole);
        if error.is_none() {
            self.tail.extend_from_slice(partial);
        }
        self.failed = error;
        Frames { head: &self.head, whole, error }
    }

    /// Bytes of an unfinished frame. Not zero at the end of a stream means that
    /// the stream was cut within a frame.
    pub fn pending(&self) -> usize {
        self.tail.len()
    }

    /// Moves the partial frame to `head` when `chunk` completes it, and gives
    /// the rest of the chunk; `None` when all of the chunk went into the tail.
    fn complete_tail<'c>(&mut self, chunk: &'c [u8]) -> Result<Option<&'c [u8]>, FrameError> {
        let mut rest = chunk;
        if self.tail.len() < HEADER_LEN && !self.fill_tail(HEADER_LEN, &mut rest) {
            return Ok(None);
        }
        let Some(header) = self.tail.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let total = HEADER_LEN + Header::decode(header)?.length as usize;
        if !self.fill_tail(total, &mut rest) {
            return Ok(None);
        }
        std::mem::swap(&mut self.head, &mut self.tail);
        self.tail.clear();
        Ok(Some(rest))
    }

    /// Fills the tail up to `total` bytes from the front of `rest`; tells
    /// whether it got there.
    fn fill_tail(&mut self, total: usize, rest: &mut &[u8]) -> bool {
        let missing = total.saturating_sub(self.tail.len());
        let (taken, after) = rest.split_at(missing.min(rest.len()));
        self.tail.extend_from_slice(taken);
        *rest = after;
        taken.len() == missing
    }
}

/// Length of the run of complete frames at the start of `bytes`.
fn complete_len(bytes: &[u8]) -> Result<usize, (usize, FrameError)> {
    let mut rest = bytes;
    loop {
        match Frame::split(rest) {
            Ok(Some((_, after))) => rest = after,
            Ok(None) => return Ok(bytes.len() - rest.len()),
            Err(error) => return Err((bytes.len() - rest.len(), error)),
        }
    }
}

/// The frames completed by one chunk, see [`Splitter::feed`].
pub struct Frames<'a> {
    head: &'a [u8],
    whole: &'a [u8],
    error: Option<FrameError>,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        // Both parts hold whole, checked frames: `split` finds nothing else.
        for part in [&mut self.head, &mut self.whole] {
            if let Ok(Some((frame, rest))) = Frame::split(part) {
                *part = rest;
                return Some(Ok(frame));
            }
        }
        self.error.take().map(Err)
    }
}

/// Position of a frame under construction.
#[must_use = "the frame's length is written by end_frame"]
pub struct FrameStart(usize);

/// Appends a header whose length [`end_frame`] fills in; append the body next.
#[inline]
pub fn begin_frame(out: &mut Vec<u8>, kind: u8, flags: u8, correlation: u64) -> FrameStart {
    let start = out.len();
    out.extend_from_slice(&Header { length: 0, kind, flags, correlation }.encode());
    FrameStart(start)
}

/// Writes the length of the body appended since `begin_frame`.
#[inline]
pub fn end_frame(out: &mut [u8], start: FrameStart) {
    let length = (out.len() - start.0 - HEADER_LEN) as u32;
    debug_assert!(length as usize <= BODY_MAX, "body of {length} bytes");
    out[start.0..start.0 + 4].copy_from_slice(&length.to_le_bytes());
}

#[cfg(test)]
mod tests;
