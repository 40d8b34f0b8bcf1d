//! Where the charges are kept: rows in the order they came, and a table that
//! leads to them.
//!
//! Made for millions: a new number is looked up and put in its place on one line
//! of memory, which is asked for ahead; rows never move, and growing stops the
//! channel for microseconds only, for one table after the other. Never knows what
//! a charge means. Tested beside the code.

use super::number::Number;
use protocol::channel::ChannelStatus;

/// What became of a charge number.
#[derive(Clone, Copy)]
pub(super) struct Charge {
    /// Minor units.
    pub(super) amount: i64,
    /// Given back, minor units.
    pub(super) refunded: i64,
    /// Currency.
    pub(super) currency: [u8; 3],
    /// Success, declined or reversed.
    pub(super) status: ChannelStatus,
    /// Decline class; 0 when none.
    pub(super) detail: u16,
    /// How often it was asked about.
    pub(super) asked: u16,
}

/// Half of a number's hash and the row.
#[derive(Clone, Copy, Default)]
struct Place {
    tag: u32,
    /// From 1; 0: nothing is here.
    row: u32,
}

/// Places by tag, open addressing in steps of one: the next place is mostly on the
/// same line of memory.
struct Places {
    /// A power of two.
    places: Vec<Place>,
    taken: usize,
    /// It grows before it holds more.
    taken_max: usize,
}

impl Places {
    /// The table of this number. They fill alike: each has its own share at which it
    /// grows, from a third to two thirds, so that they do not all do so at once.
    fn new(number: usize) -> Self {
        let share = 2_f64.powf(number as f64 / TABLES as f64) / 3.0;
        let taken_max = (share * PLACES_MIN as f64) as usize;
        Self { places: vec![Place::default(); PLACES_MIN], taken: 0, taken_max }
    }

    /// The row with this tag that `is_it`, from 0.
    fn find(&self, tag: u32, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let mask = self.places.len() - 1;
        let mut at = home(tag) & mask;
        loop {
            let place = self.places[at];
            let row = (place.row as usize).checked_sub(1)?;
            if place.tag == tag && is_it(row) {
                return Some(row);
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, tag: u32, row: u32) {
        if self.taken == self.taken_max {
            self.taken_max *= 2;
            let wider = vec![Place::default(); self.places.len() * 2];
            let places = std::mem::replace(&mut self.places, wider);
            places.into_iter().filter(|place| place.row > 0).for_each(|place| self.put(place));
        }
        self.taken += 1;
        self.put(Place { tag, row: row + 1 });
    }

    /// There is room.
    fn put(&mut self, place: Place) {
        let mask = self.places.len() - 1;
        let mut at = home(place.tag) & mask;
        while self.places[at].row > 0 {
            at = (at + 1) & mask;
        }
        self.places[at] = place;
    }
}

/// Tables are split so that growing one never stops the channel noticeably, and
/// few enough that their heads stay in the cache.
const TABLES: usize = 256;
const ROWS: usize = 1 << 14;
/// Smallest table.
const PLACES_MIN: usize = 64;

/// All charges by number.
pub(super) struct Charges {
    tables: Vec<Places>,
    rows: Vec<Vec<(Number, Charge)>>,
}

impl Charges {
    /// None.
    pub(super) fn new() -> Self {
        Self { tables: (0..TABLES).map(Places::new).collect(), rows: Vec::new() }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.rows.last().map_or(0, |last| (self.rows.len() - 1) * ROWS + last.len())
    }

    /// The charge of a number.
    pub(super) fn get(&self, number: &Number) -> Option<&Charge> {
        self.row(number).map(|row| &self.rows[row / ROWS][row % ROWS].1)
    }

    /// As [`Self::get`], to change it.
    pub(super) fn get_mut(&mut self, number: &Number) -> Option<&mut Charge> {
        self.row(number).map(|row| &mut self.rows[row / ROWS][row % ROWS].1)
    }

    /// Adds a number that is not there.
    pub(super) fn insert(&mut self, number: Number, charge: Charge) {
        let row = self.len() as u32;
        if self.rows.last().is_none_or(|last| last.len() == ROWS) {
            self.rows.push(Vec::with_capacity(ROWS));
        }
        if let Some(last) = self.rows.last_mut() {
            last.push((number, charge));
        }
        self.tables[number.spread() as usize % TABLES].insert(number.tag(), row);
    }

    fn row(&self, number: &Number) -> Option<usize> {
        let table = &self.tables[number.spread() as usize % TABLES];
        table.find(number.tag(), |row| self.rows[row / ROWS][row % ROWS].0 == *number)
    }
}

/// Where the search for a tag begins, before it is cut to the table's size.
fn home(tag: u32) -> usize {
    (u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(amount: i64) -> Charge {
        let status = ChannelStatus::Success;
        Charge { amount, refunded: 0, currency: *b"CNY", status, detail: 0, asked: 0 }
    }

    #[test]
    fn numbers_of_one_tag_and_table_are_told_apart() {
        let number = |last: u8, ordinal: u8| {
            let mut digest = [7; 16];
            // Neither part of the tag nor of the table's choice.
            digest[7] = last;
            Number { digest, kind: b'P', ordinal }
        };
        let mut charges = Charges::new();
        let numbers: Vec<Number> =
            (0..200).flat_map(|last| (1..3).map(move |ordinal| number(last, ordinal))).collect();
        for (at, number) in numbers.iter().enumerate() {
            assert!(charges.get(number).is_none());
            charges.insert(*number, charge(at as i64));
        }
        assert_eq!(charges.len(), 400);
        for (at, number) in numbers.iter().enumerate() {
            assert_eq!(charges.get(number).map(|charge| charge.amount), Some(at as i64));
        }
    }

    /// All at once they stopped a channel of millions for a tenth of a second.
    #[test]
    fn tables_grow_one_after_the_other() {
        let number = |n: u64| {
            let mixed = (n ^ n >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let digest = (u128::from(mixed ^ mixed >> 32) | u128::from(mixed) << 64).to_le_bytes();
            Number { digest, kind: b'P', ordinal: 1 }
        };
        let mut charges = Charges::new();
        let places = |it: &Charges| it.tables.iter().map(|it| it.places.len()).sum::<usize>();
        let (mut n, last, mut most) = (100_000, 400_000, 0);
        (0..n).for_each(|n| charges.insert(number(n), charge(n as i64)));
        let (mut before, start) = (places(&charges), places(&charges));
        // Two doublings, in steps of a sixteenth of what is there already.
        while n < last {
            let step = n / 16;
            (n..n + step).for_each(|n| charges.insert(number(n), charge(n as i64)));
            n += step;
            let now = places(&charges);
            most = most.max((now - before) * 16 / before);
            before = now;
        }
        assert!(before >= start * 3, "they do grow: {start} to {before}");
        assert!(most <= 2, "no step adds more than an eighth, a sixteenth being even: {most}");
        assert!((0..n).all(|n| charges.get(&number(n)).unwrap().amount == n as i64));
    }

    #[test]
    fn rows_stay_when_the_store_grows() {
        let mut charges = Charges::new();
        let number = |n: u64| {
            let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            let mut digest = [0; 16];
            digest[..8].copy_from_slice(&hash);
            digest[8..].copy_from_slice(&hash);
            Number { digest, kind: b'P', ordinal: 1 }
        };
        let count = ROWS as u64 * 2 + 1;
        (0..count).for_each(|n| charges.insert(number(n), charge(n as i64)));
        charges.get_mut(&number(5)).unwrap().refunded = 3;
        assert!((0..count).all(|n| charges.get(&number(n)).unwrap().amount == n as i64));
        assert_eq!(charges.get(&number(5)).unwrap().refunded, 3);
        assert_eq!(charges.len(), count as usize);
    }
}
