//! All payments that the audit knows, some 60 bytes each, found by digest or
//! by shard and sequence.
//!
//! Made for tens of millions: rows never move, so that growing needs no second
//! copy of them; what few payments have lies in a table beside them. A look-up compares the whole digest, the same 128 bits that the
//! channel's numbers carry: two payments that share a place in the index are told
//! apart. Pure. Tested by growth and by digests made to meet.

use std::collections::HashMap;

/// State of one attempt, as the log tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub(super) enum Attempt {
    /// Not started.
    #[default]
    None,
    /// No definitive end yet.
    Open,
    /// Charged.
    Succeeded,
    /// Declined.
    Declined,
    /// Nothing was or can be charged.
    Void,
    /// Undone.
    Reversed,
    /// In front of an operator.
    Manual,
}

impl Attempt {
    /// Proven to have charged nothing that stands.
    pub(super) fn clear(self) -> bool {
        matches!(self, Self::Declined | Self::Void | Self::Reversed)
    }
}

/// State of a charge in the channel's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub(super) enum Charge {
    /// Never heard of.
    #[default]
    None,
    /// Charged and standing.
    Stands,
    /// Declined.
    Declined,
    /// Charged and undone.
    Undone,
    /// Fenced before it was charged.
    Fenced,
}

/// State of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub(crate) enum State {
    /// Unknown.
    #[default]
    None,
    /// Being obtained.
    Processing,
    /// Paid.
    Paid,
    /// Failed.
    Failed,
    /// Closed.
    Closed,
    /// In front of an operator.
    Manual,
}

/// A payment's cancels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub(super) enum Cancel {
    /// None.
    #[default]
    None,
    /// The switch gave an attempt up: reversed, and the payment goes on.
    GaveUp,
    /// The merchant or expiry ended it.
    Wished,
}

impl Payment {
    /// Whether the merchant or expiry cancelled it.
    pub(super) fn cancelled(&self) -> bool {
        self.cancel == Cancel::Wished
    }

    /// Whether it has expired, by a stamp of its log.
    pub(super) fn expired(&self, at_us: u64) -> bool {
        let at_ms = at_us / 1_000;
        self.expires_in != u32::MAX && at_ms >= self.begun_ms + u64::from(self.expires_in)
    }
}

impl State {
    /// Never left.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Paid | Self::Failed | Self::Closed)
    }
}

/// Most attempts of one payment (docs/STATES.md, C3).
pub(super) const ATTEMPTS_MAX: u8 = 16;
/// Attempts in the payment's row; more than these are rare.
const NEAR: usize = 4;

/// One payment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Payment {
    /// Digest of merchant and number.
    pub(super) digest: [u8; 16],
    /// Minor units.
    pub(super) amount: i64,
    /// Payment within the shard.
    pub(super) sequence: u64,
    /// When it began, Unix milliseconds.
    pub(super) begun_ms: u64,
    /// Milliseconds from then until it expires: days at most; the highest value, never.
    pub(super) expires_in: u32,
    /// Shard.
    pub(super) shard: u16,
    /// Letters of the currency.
    pub(super) currency: [u8; 3],
    /// The first attempts in the log; of all of them knows [`Table::attempts`].
    pub(super) attempts: [Attempt; NEAR],
    /// Their charges in the channel's ledger.
    pub(super) charges: [Charge; NEAR],
    /// Highest attempt that began.
    pub(super) begun: u8,
    /// State as the log tells it.
    pub(super) state: State,
    /// Final state that was acknowledged.
    pub(super) acked: State,
    /// Whether it was cancelled.
    pub(super) cancel: Cancel,
    /// The last attempt ended and another was announced.
    pub(super) goes_on: bool,
    /// It asked for its outcome's event, and the gateway listened.
    pub(super) event_wanted: bool,
    /// The gateway was told its end while the run went on.
    pub(super) told_in_run: bool,
}

/// Payments of a chunk.
const CHUNK: usize = 1 << 16;

/// The table.
#[derive(Default)]
pub(super) struct Table {
    chunks: Vec<Vec<Payment>>,
    count: usize,
    /// Open addressing: a tag that spares most look-ups a foreign row, and place + 1;
    /// 0 empty. At most half full.
    index: Vec<u64>,
    sequences: Vec<Vec<u32>>,
    /// Attempts that are not in their payment's row.
    far: HashMap<(u32, u8), (Attempt, Charge)>,
}

impl Table {
    /// Number of payments.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// A payment by its place.
    pub(super) fn get(&self, at: u32) -> &Payment {
        // Places come from this table.
        &self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }

    /// A payment by its place.
    pub(super) fn get_mut(&mut self, at: u32) -> &mut Payment {
        &mut self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }

    fn both(&self, at: u32, number: u8) -> (Attempt, Charge) {
        let payment = self.get(at);
        match near(number) {
            Some(index) => (payment.attempts[index], payment.charges[index]),
            None => self.far.get(&(at, number)).copied().unwrap_or_default(),
        }
    }

    /// State of a payment's attempt, from 1.
    pub(super) fn attempt(&self, at: u32, number: u8) -> Attempt {
        self.both(at, number).0
    }

    /// State of an attempt's charge.
    pub(super) fn charge(&self, at: u32, number: u8) -> Charge {
        self.both(at, number).1
    }

    /// An attempt begins, or has come to this.
    pub(super) fn set_attempt(&mut self, at: u32, number: u8, state: Attempt) {
        let payment = self.get_mut(at);
        payment.begun = payment.begun.max(number);
        match near(number) {
            Some(index) => payment.attempts[index] = state,
            None => self.far.entry((at, number)).or_default().0 = state,
        }
    }

    /// An attempt's charge has come to this.
    pub(super) fn set_charge(&mut self, at: u32, number: u8, state: Charge) {
        match near(number) {
            Some(index) => self.get_mut(at).charges[index] = state,
            None => self.far.entry((at, number)).or_default().1 = state,
        }
    }

    /// Number of the newest attempt.
    pub(super) fn newest(&self, at: u32) -> u8 {
        self.get(at).begun
    }

    /// Number, state and charge of every attempt that began.
    pub(super) fn attempts(&self, at: u32) -> impl Iterator<Item = (u8, Attempt, Charge)> {
        (1..=self.newest(at)).map(move |number| {
            let (attempt, charge) = self.both(at, number);
            (number, attempt, charge)
        })
    }

    /// Asks for the memory that a look-up of this digest needs first: done for a
    /// batch ahead of its look-ups, the cache misses overlap.
    pub(super) fn warm(&self, digest: &[u8; 16]) {
        if let Some(mask) = self.index.len().checked_sub(1) {
            std::hint::black_box(self.index[spread(digest) as usize & mask]);
        }
    }

    /// Place of a digest.
    pub(super) fn find(&self, digest: &[u8; 16]) -> Option<u32> {
        if self.index.is_empty() {
            return None;
        }
        let mask = self.index.len() - 1;
        let mut slot = spread(digest) as usize & mask;
        loop {
            let entry = self.index[slot];
            let at = (entry as u32).checked_sub(1)?;
            if entry >> 32 == tag(digest) && self.get(at).digest == *digest {
                return Some(at);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Place of a shard's payment.
    pub(super) fn by_sequence(&self, shard: u16, sequence: u64) -> Option<u32> {
        let places = self.sequences.get(usize::from(shard))?;
        places.get(sequence.checked_sub(1)? as usize).copied()
    }

    /// Adds a payment of the log. `Err` when its sequence does not follow its
    /// shard's last one.
    pub(super) fn add(&mut self, payment: Payment) -> Result<u32, u64> {
        let at = self.count as u32;
        let shard = usize::from(payment.shard);
        if self.sequences.len() <= shard {
            self.sequences.resize_with(shard + 1, Vec::new);
        }
        let places = &mut self.sequences[shard];
        if places.len() as u64 + 1 != payment.sequence {
            return Err(places.len() as u64);
        }
        places.push(at);
        if self.count.is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        if let Some(last) = self.chunks.last_mut() {
            last.push(payment);
        }
        self.count += 1;
        if self.count * 2 > self.index.len() {
            self.grow();
        } else {
            self.link(at);
        }
        Ok(at)
    }

    fn grow(&mut self) {
        let size = (self.count * 4).next_power_of_two().max(1024);
        // The old one goes before the new one comes.
        self.index = Vec::new();
        self.index = vec![0; size];
        (0..self.count as u32).for_each(|at| self.link(at));
    }

    fn link(&mut self, at: u32) {
        let mask = self.index.len() - 1;
        let digest = self.get(at).digest;
        let mut slot = spread(&digest) as usize & mask;
        while self.index[slot] != 0 {
            slot = (slot + 1) & mask;
        }
        self.index[slot] = tag(&digest) << 32 | u64::from(at + 1);
    }
}

/// Place of an attempt in its payment's row.
fn near(number: u8) -> Option<usize> {
    usize::from(number).checked_sub(1).filter(|index| *index < NEAR)
}

fn spread(digest: &[u8; 16]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(word)
}

/// Bits of the digest that the place in the index does not depend on.
fn tag(digest: &[u8; 16]) -> u64 {
    let [.., a, b, c, d, _, _, _, _] = *digest;
    u64::from(u32::from_le_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::mix64;

    fn digest(n: u64) -> [u8; 16] {
        let mut digest = [0; 16];
        digest[..8].copy_from_slice(&mix64(n).to_le_bytes());
        digest[8..].copy_from_slice(&n.to_le_bytes());
        digest
    }

    #[test]
    fn payments_are_found_by_digest_and_by_sequence() {
        let mut table = Table::default();
        for n in 0..10_000 {
            let (shard, sequence) = ((n % 3) as u16, n / 3 + 1);
            let payment = Payment { digest: digest(n), shard, sequence, ..Payment::default() };
            table.add(payment).unwrap();
        }
        for n in 0..10_000 {
            let at = table.find(&digest(n)).unwrap();
            assert_eq!(table.by_sequence((n % 3) as u16, n / 3 + 1), Some(at));
        }
        assert_eq!(table.find(&digest(10_000)), None);
        assert_eq!((table.by_sequence(0, 0), table.by_sequence(9, 1)), (None, None));
        let gap = Payment { digest: digest(20_000), sequence: 9, ..Payment::default() };
        assert_eq!(table.add(gap), Err(3_334));
        assert!(size_of::<Payment>() <= 64, "{}", size_of::<Payment>());
    }

    #[test]
    fn attempts_in_the_row_and_beside_it_are_told_apart() {
        let mut table = Table::default();
        for sequence in 1..=2 {
            table
                .add(Payment { digest: digest(sequence), sequence, ..Payment::default() })
                .unwrap();
        }
        let state =
            |number: u8| if number.is_multiple_of(2) { Attempt::Void } else { Attempt::Declined };
        for number in 1..=ATTEMPTS_MAX {
            assert_eq!((table.attempt(1, number), table.newest(1)), (Attempt::None, number - 1));
            table.set_attempt(1, number, state(number));
            table.set_charge(1, number, Charge::Fenced);
        }
        table.set_charge(1, 9, Charge::Stands);
        let expected = (1..=ATTEMPTS_MAX).map(|number| {
            (number, state(number), if number == 9 { Charge::Stands } else { Charge::Fenced })
        });
        assert!(table.attempts(1).eq(expected));
        assert_eq!((table.attempts(0).count(), table.newest(0)), (0, 0));
        assert_eq!((table.attempt(1, 0), table.charge(0, 9)), (Attempt::None, Charge::None));
    }

    #[test]
    fn payments_whose_digests_meet_in_the_index_are_told_apart() {
        // The index knows the first three quarters of a digest only.
        let met = |last: u8| {
            let mut digest = [7; 16];
            digest[15] = last;
            digest
        };
        let mut table = Table::default();
        for last in 0..200 {
            let sequence = u64::from(last) + 1;
            assert_eq!(table.find(&met(last)), None);
            let digest = met(last);
            table.add(Payment { digest, sequence, ..Payment::default() }).unwrap();
        }
        for last in 0..200 {
            let at = table.find(&met(last)).unwrap();
            assert_eq!(table.get(at).sequence, u64::from(last) + 1);
        }
        assert_eq!(table.find(&met(200)), None);
    }

    #[test]
    fn places_stay_when_a_chunk_is_full() {
        let mut table = Table::default();
        let count = CHUNK as u64 + 10;
        for n in 0..count {
            let payment = Payment { digest: digest(n), sequence: n + 1, ..Payment::default() };
            assert_eq!(table.add(payment), Ok(n as u32));
        }
        for n in [0, 1, CHUNK as u64 - 1, CHUNK as u64, count - 1] {
            assert_eq!(table.get(n as u32).digest, digest(n));
            assert_eq!(table.find(&digest(n)), Some(n as u32));
        }
        assert_eq!(table.len() as u64, count);
    }
}
