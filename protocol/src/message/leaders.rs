//! The notice of who leads which shard: a counted list of entries of one size.

use super::{DecodeError, Leader, Leaders, kind};
use crate::frame;
use crate::wire::Reader;

/// Most entries of one notice: more than a cluster has shards, and well below a
/// frame's body.
pub const LEADERS_MAX: usize = 1_024;
const ENTRY_LEN: usize = 11;

const _: () = assert!(2 + LEADERS_MAX * ENTRY_LEN <= frame::BODY_MAX);

impl Leader {
    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (shard, site) = (reader.u16("shard")?, reader.u8("site")?);
        let term = reader.u64("term")?;
        match (site, term) {
            (0, _) => Err(DecodeError::invalid("site")),
            (_, 0) => Err(DecodeError::invalid("term")),
            _ => Ok(Self { shard, site, term }),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.shard.to_le_bytes());
        out.push(self.site);
        out.extend_from_slice(&self.term.to_le_bytes());
    }
}

impl<'a> Leaders<'a> {
    /// Reads a body; every entry is judged here.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field at fault.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let reader = &mut Reader::new(body);
        let count = usize::from(reader.u16("count")?);
        if count > LEADERS_MAX {
            return Err(DecodeError::invalid("count"));
        }
        let entries = reader.remaining();
        for _ in 0..count {
            Leader::read(reader)?;
        }
        Ok(Self { encoded: &entries[..count * ENTRY_LEN] })
    }

    /// The entries, in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = Leader> + 'a {
        let entries = self.encoded.chunks_exact(ENTRY_LEN);
        entries.filter_map(|entry| Leader::read(&mut Reader::new(entry)).ok())
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&((self.encoded.len() / ENTRY_LEN) as u16).to_le_bytes());
        out.extend_from_slice(self.encoded);
    }

    /// Appends the whole frame of a notice with these entries: the first
    /// [`LEADERS_MAX`] of them.
    pub fn encode_frame(entries: &[Leader], correlation: u64, out: &mut Vec<u8>) {
        let entries = &entries[..entries.len().min(LEADERS_MAX)];
        let start = frame::begin(out, kind::LEADER, correlation);
        out.extend_from_slice(&(entries.len() as u16).to_le_bytes());
        entries.iter().for_each(|entry| entry.encode(out));
        frame::end(out, start);
    }
}
