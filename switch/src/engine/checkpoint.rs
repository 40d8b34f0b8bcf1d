//! The committed state of a shard as bytes, and back.
//!
//! The bytes are canonical: every replica that applied the same blocks writes
//! the same ones, whatever it led, restarted from or was restored from, down to
//! the borders of the chunks. Their last sum is therefore the state's hash.
//! Nothing volatile is in them: no proposal, waiter, case, delivery or admitted
//! limit.
//!
//! ## Bytes
//! A checkpoint is a sequence of chunks of at most 256 KiB, little endian:
//!
//! | at | field | type |
//! |---|---|---|
//! | 0 | magic `PSWK` | 4 bytes |
//! | 4 | version, 1 | u16 |
//! | 6 | kind: 1 head, 2 merchants, 3 payments, 4 end | u8 |
//! | 7 | zero | u8 |
//! | 8 | shard | u16 |
//! | 10 | zero | u16 |
//! | 12 | number of the chunk, from 0 | u32 |
//! | 16 | index of the last block applied | u64 |
//! | 24 | bytes of the body | u32 |
//! | 28 | items in the body | u32 |
//! | 32 | SHA-256(sum of the chunk before, zeros at first; bytes 0-31; body) | 32 bytes |
//! | 64 | body | |
//!
//! One head (payments u64, merchants u32, ignored records, attempts and refunds
//! in front of an operator, and the sites that shall not lead, u64 each), the merchants in the order in which they
//! were created, the payments in the order of their sequence, one end without
//! items. An item never crosses a chunk; a chunk is closed by the first item that
//! does not fit. Items are written by `encode.rs` and read by `restore.rs`, field
//! by field in the same order. Events that are not delivered stand with their
//! payment; the key index and everything else that follows is built anew.
//!
//! ## Slices
//! A worker must not stand still for a large shard. [`Engine::begin_checkpoint`]
//! freezes the state as it is and writes the head and the merchants (limits in
//! use change with every payment; they are few). [`Engine::checkpoint_slice`]
//! writes some payments at a time. When a record is about to change a payment
//! that is not written yet, its bytes as they were are kept aside and written
//! in its turn. Every record is about one payment, so that one look per record
//! is all it costs while no checkpoint runs, and one encoding per *touched*
//! payment while one does. Memory: about 250 bytes per payment that is older than
//! the checkpoint and changes before its turn; the payments begun meanwhile are
//! not looked at.
//!
//! Tested in `tests/checkpoint.rs` and, on every block of every seed of the
//! model, in `tests/replicas.rs`.

mod encode;
mod restore;

pub use restore::{Restore, RestoreError};

use super::Engine;
use super::merchant::Merchant;
use super::record::Record;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Largest chunk in bytes, its header included.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;
const MAGIC: [u8; 4] = *b"PSWK";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 64;
/// The part of the header that is summed.
const SUMMED_LEN: usize = 32;

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Head = 1,
    Merchants = 2,
    Payments = 3,
    End = 4,
}

/// How far a checkpoint has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// None was begun.
    None,
    /// There is more to write.
    More,
    /// That was the end.
    Done {
        /// The state's hash.
        hash: [u8; 32],
    },
}

/// A state that is being written while it changes.
pub(super) struct Freeze {
    chunks: Chunks,
    /// The next payment to write.
    next: u64,
    /// The first payment that did not exist yet.
    end: u64,
    /// Bytes of payments that changed before their turn.
    kept: HashMap<u64, Vec<u8>>,
}

/// Puts items into chunks.
struct Chunks {
    shard: u16,
    applied: u64,
    number: u32,
    kind: Kind,
    items: u32,
    /// Room for the header, and the body so far.
    buffer: Vec<u8>,
    sum: [u8; 32],
}

impl Chunks {
    fn new(shard: u16, applied: u64) -> Self {
        let (number, kind, items) = (0, Kind::Head, 0);
        let buffer = vec![0; HEADER_LEN];
        Self { shard, applied, number, kind, items, buffer, sum: [0; 32] }
    }

    /// Adds what `write` appends, as one item.
    fn item(&mut self, kind: Kind, out: &mut dyn FnMut(&[u8]), write: impl FnOnce(&mut Vec<u8>)) {
        if kind != self.kind {
            self.close(self.buffer.len(), out);
            self.kind = kind;
        }
        let start = self.buffer.len();
        write(&mut self.buffer);
        if self.buffer.len() > CHUNK_BYTES_MAX {
            self.close(start, out);
        }
        debug_assert!(self.buffer.len() <= CHUNK_BYTES_MAX, "an item fits into a chunk");
        self.items += 1;
    }

    /// Closes the chunk before `end`; what follows begins the next one.
    fn close(&mut self, end: usize, out: &mut dyn FnMut(&[u8])) {
        let header = &mut self.buffer[..HEADER_LEN];
        header[..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[6] = self.kind as u8;
        header[8..10].copy_from_slice(&self.shard.to_le_bytes());
        header[12..16].copy_from_slice(&self.number.to_le_bytes());
        header[16..24].copy_from_slice(&self.applied.to_le_bytes());
        header[24..28].copy_from_slice(&((end - HEADER_LEN) as u32).to_le_bytes());
        header[28..32].copy_from_slice(&self.items.to_le_bytes());
        self.sum = sum_of(&self.sum, &self.buffer[..end]);
        self.buffer[SUMMED_LEN..HEADER_LEN].copy_from_slice(&self.sum);
        out(&self.buffer[..end]);
        self.buffer.drain(HEADER_LEN..end);
        (self.number, self.items) = (self.number + 1, 0);
    }

    /// Closes what is open and writes the end.
    fn end(&mut self, out: &mut dyn FnMut(&[u8])) -> [u8; 32] {
        self.close(self.buffer.len(), out);
        self.kind = Kind::End;
        self.close(self.buffer.len(), out);
        self.sum
    }
}

fn sum_of(before: &[u8; 32], chunk: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(&chunk[..SUMMED_LEN]);
    hash.update(&chunk[HEADER_LEN..]);
    hash.finalize().into()
}

impl Engine {
    /// Writes the committed state at once, chunk by chunk, and returns its
    /// hash. See [`Self::begin_checkpoint`] for doing it beside the work.
    ///
    /// Unoptimised build, 2 busy cores: 100,000 paid payments are 17.1 MB, 72-88 ms
    /// to write and 105-166 ms to restore. To be repeated in a release build on
    /// a quiet machine (`cargo bench -p benches --bench engine -- checkpoint`).
    pub fn checkpoint(&self, out: &mut dyn FnMut(&[u8])) -> [u8; 32] {
        let mut freeze = self.freeze_now(out);
        self.write_payments(&mut freeze, u64::MAX, out);
        freeze.chunks.end(out)
    }

    /// SHA-256 over the replicated state: equal on every replica at the same
    /// applied index. Walks everything: for checks, not for the hot path.
    pub fn state_hash(&self) -> [u8; 32] {
        self.checkpoint(&mut |_| {})
    }

    /// Begins a checkpoint of the state as it is now and returns its index. One
    /// that was under way is given up.
    pub fn begin_checkpoint(&mut self, out: &mut dyn FnMut(&[u8])) -> u64 {
        // First, so that the memory of the old one is free before.
        self.freeze = None;
        self.freeze = Some(Box::new(self.freeze_now(out)));
        self.applied
    }

    /// Writes the next `payments` payments of the checkpoint under way.
    pub fn checkpoint_slice(&mut self, payments: u64, out: &mut dyn FnMut(&[u8])) -> Slice {
        let Some(mut freeze) = self.freeze.take() else { return Slice::None };
        self.write_payments(&mut freeze, payments, out);
        if freeze.next == freeze.end {
            return Slice::Done { hash: freeze.chunks.end(out) };
        }
        self.freeze = Some(freeze);
        Slice::More
    }

    /// Gives up the checkpoint under way.
    pub fn abandon_checkpoint(&mut self) {
        self.freeze = None;
    }

    /// The state of a checkpoint; a follower until told otherwise.
    ///
    /// # Errors
    /// [`RestoreError`] for anything but the whole of one checkpoint of this
    /// shard, unaltered.
    pub fn restore<C: AsRef<[u8]>>(
        config: super::EngineConfig,
        chunks: impl IntoIterator<Item = C>,
    ) -> Result<Self, RestoreError> {
        let mut restore = Restore::new(config);
        for chunk in chunks {
            restore.chunk(chunk.as_ref())?;
        }
        restore.finish()
    }

    /// Takes over from the engine whose place this one takes what is no part of
    /// the state: who subscribed here, and which channels are up. Neither leads.
    pub fn inherit(&mut self, from: &mut Self) {
        debug_assert!(self.term.is_none() && from.term.is_none(), "only followers are brought up");
        for (channel, old) in self.channels.iter_mut().zip(&from.channels) {
            channel.up = old.up;
        }
        self.outbox.inherit(&mut from.outbox);
        #[cfg(test)]
        self.break_rule(from.weakness);
    }

    /// The merchants as committed, in no particular order: after a restore
    /// nobody was told of them through [`super::Outputs::merchants`].
    pub fn merchants(&self) -> impl Iterator<Item = &Merchant> {
        self.merchants.entries().iter().map(|entry| &entry.merchant)
    }

    fn freeze_now(&self, out: &mut dyn FnMut(&[u8])) -> Freeze {
        let mut chunks = Chunks::new(self.config.shard, self.applied);
        chunks.item(Kind::Head, out, |bytes| self.encode_head(bytes));
        for entry in self.merchants.entries() {
            chunks.item(Kind::Merchants, out, |bytes| encode::merchant(bytes, entry));
        }
        Freeze { chunks, next: 1, end: self.orders.committed, kept: HashMap::new() }
    }

    fn write_payments(&self, freeze: &mut Freeze, payments: u64, out: &mut dyn FnMut(&[u8])) {
        let stop = freeze.next.saturating_add(payments).min(freeze.end);
        for sequence in freeze.next..stop {
            let kept = freeze.kept.remove(&sequence);
            freeze.chunks.item(Kind::Payments, out, |bytes| match kept {
                Some(kept) => bytes.extend_from_slice(&kept),
                None => self.encode_payment(bytes, sequence),
            });
        }
        freeze.next = stop;
    }

    /// Keeps the bytes of the payment that a record is about to change, when the
    /// checkpoint under way still needs them.
    #[inline]
    pub(super) fn preserve(&mut self, record: &Record<'_>) {
        if self.freeze.is_some() {
            self.keep_payment(record);
        }
    }

    fn keep_payment(&mut self, record: &Record<'_>) {
        let Some(mut freeze) = self.freeze.take() else { return };
        if let Some(sequence) = record.sequence()
            && (freeze.next..freeze.end).contains(&sequence)
        {
            freeze.kept.entry(sequence).or_insert_with(|| {
                let mut bytes = Vec::with_capacity(256);
                self.encode_payment(&mut bytes, sequence);
                bytes
            });
        }
        self.freeze = Some(freeze);
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Chunks with any kinds, counts and bodies, and the sums that fit.
    pub(in crate::engine) fn sealed(
        shard: u16,
        applied: u64,
        bodies: &[(u8, u32, Vec<u8>)],
    ) -> Vec<Vec<u8>> {
        let (mut chunks, mut sum) = (Vec::<Vec<u8>>::new(), [0; 32]);
        for (kind, items, body) in bodies {
            let mut chunk = MAGIC.to_vec();
            chunk.extend_from_slice(&VERSION.to_le_bytes());
            chunk.extend_from_slice(&[*kind, 0]);
            chunk.extend_from_slice(&shard.to_le_bytes());
            chunk.extend_from_slice(&[0; 2]);
            chunk.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
            chunk.extend_from_slice(&applied.to_le_bytes());
            chunk.extend_from_slice(&(body.len() as u32).to_le_bytes());
            chunk.extend_from_slice(&items.to_le_bytes());
            chunk.extend_from_slice(&[0; SUMMED_LEN]);
            chunk.extend_from_slice(body);
            sum = sum_of(&sum, &chunk);
            chunk[SUMMED_LEN..HEADER_LEN].copy_from_slice(&sum);
            chunks.push(chunk);
        }
        chunks
    }
}
