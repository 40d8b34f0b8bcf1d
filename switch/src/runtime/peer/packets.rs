//! Packets on a stream: a u32 length, little endian, and that many bytes. An
//! empty packet is a beat: it says that the other side lives, and no more.
//!
//! A packet that lies whole in a received chunk is lent from it; only those
//! that are cut by a chunk's end are copied. Tested by cutting random packets at
//! random places and by arbitrary bytes.

use bytes::{Bytes, BytesMut};

/// Bytes of a packet's length.
pub const LENGTH_LEN: usize = 4;
/// Memory for a long packet grows as its bytes arrive, from here on.
const FIRST_ROOM: usize = 64 << 10;
/// Shorter packets are copied: a lent one keeps the whole datagram buffer that
/// it lies in alive, which would be many times its size.
const LENT_MIN: usize = 2 << 10;

/// A packet is announced longer than its stream allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub u32);

/// Splits the chunks of one stream into packets.
pub struct Packets {
    max: usize,
    chunk: Bytes,
    length: [u8; LENGTH_LEN],
    /// Bytes of `length` that have arrived.
    known: usize,
    partial: Option<(BytesMut, usize)>,
}

impl Packets {
    /// For packets of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { max, chunk: Bytes::new(), length: [0; LENGTH_LEN], known: 0, partial: None }
    }

    /// Takes the stream's next bytes; `next` must have returned `None` before.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "all packets are taken first");
        self.chunk = chunk;
    }

    /// The next packet that is complete; never an empty one.
    ///
    /// # Errors
    /// [`TooLong`]; the stream is then unusable.
    pub fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            if let Some((mut partial, length)) = self.partial.take() {
                let more = (length - partial.len()).min(self.chunk.len());
                partial.extend_from_slice(&self.chunk.split_to(more));
                if partial.len() == length {
                    return Ok(Some(partial.freeze()));
                }
                self.partial = Some((partial, length));
                return Ok(None);
            }
            let more = (LENGTH_LEN - self.known).min(self.chunk.len());
            self.length[self.known..self.known + more].copy_from_slice(&self.chunk.split_to(more));
            self.known += more;
            if self.known < LENGTH_LEN {
                return Ok(None);
            }
            self.known = 0;
            let announced = u32::from_le_bytes(self.length);
            let length = announced as usize;
            if length > self.max {
                return Err(TooLong(announced));
            }
            if length == 0 {
                continue;
            }
            if length <= self.chunk.len() {
                let packet = self.chunk.split_to(length);
                let copied = length < LENT_MIN;
                return Ok(Some(if copied { Bytes::copy_from_slice(&packet) } else { packet }));
            }
            self.partial = Some((BytesMut::with_capacity(length.min(FIRST_ROOM)), length));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn split(chunks: &[Vec<u8>], max: usize) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut packets = Packets::new(max);
        let mut all = Vec::new();
        for chunk in chunks {
            packets.push(Bytes::from(chunk.clone()));
            while let Some(packet) = packets.next()? {
                all.push(packet.to_vec());
            }
        }
        Ok(all)
    }

    #[test]
    fn a_packet_over_the_bound_is_refused_before_it_is_held() {
        let mut stream = 9_u32.to_le_bytes().to_vec();
        assert_eq!(split(&[stream.clone()], 8), Err(TooLong(9)));
        stream.extend_from_slice(&[1; 9]);
        assert_eq!(split(&[stream], 9), Ok(vec![vec![1; 9]]));
    }

    proptest! {
        #[test]
        fn packets_survive_any_cut(
            sent in vec(vec(any::<u8>(), 0..5000), 0..8),
            sizes in vec(1_usize..3000, 1..20),
        ) {
            let mut stream = Vec::new();
            for packet in &sent {
                stream.extend_from_slice(&(packet.len() as u32).to_le_bytes());
                stream.extend_from_slice(packet);
            }
            let (mut chunks, mut rest) = (Vec::new(), stream.as_slice());
            for size in sizes.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, later) = rest.split_at((*size).min(rest.len()));
                chunks.push(chunk.to_vec());
                rest = later;
            }
            let sent: Vec<_> = sent.into_iter().filter(|packet| !packet.is_empty()).collect();
            prop_assert_eq!(split(&chunks, 5000), Ok(sent));
        }

        #[test]
        fn noise_neither_panics_nor_passes_the_bound(chunks in vec(vec(any::<u8>(), 0..300), 0..9)) {
            if let Ok(packets) = split(&chunks, 100) {
                prop_assert!(packets.iter().all(|packet| (1..=100).contains(&packet.len())));
            }
        }
    }
}
