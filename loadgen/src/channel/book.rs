//! The channel's book: what became of every charge and refund.
//!
//! Pure and idempotent per number: a repeated charge gives the same result, a
//! reversed number is fenced for ever, refunds never exceed their charge.
//! Changes come out as ledger entries, and applying the entries again builds
//! the same book. Never knows faults or sockets. Tested on these rules.

use super::charges::{Charge, Charges};
use super::number::Number;
use protocol::channel::{ChannelRequest, ChannelStatus, kind};
use protocol::code::Reason;
use protocol::money::Currency;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// What the ledger keeps of one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Operation: charge, reverse or refund ([`kind`]).
    pub(crate) operation: u8,
    /// The charge.
    pub(crate) charge: Number,
    /// The refund; `None` for charge and reverse.
    pub(crate) refund: Option<Number>,
    /// Result: success, declined or reversed.
    pub(crate) status: ChannelStatus,
    /// Decline class, a [`Reason`] number; 0 when none.
    pub(crate) detail: u16,
    /// Amount, minor units.
    pub(crate) amount: i64,
    /// Currency.
    pub(crate) currency: [u8; 3],
    /// When, Unix milliseconds.
    pub(crate) at_ms: u64,
}

/// The book's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Outcome.
    pub(crate) status: ChannelStatus,
    /// Decline class; 0 when none.
    pub(crate) detail: u16,
    /// Amount that moved.
    pub(crate) amount: i64,
}

impl Answer {
    const fn of(status: ChannelStatus) -> Self {
        Self { status, detail: 0, amount: 0 }
    }
}

impl Charge {
    fn answer(&self) -> Answer {
        let moved = if self.status == ChannelStatus::Success { self.amount } else { 0 };
        Answer { status: self.status, detail: self.detail, amount: moved }
    }
}

#[derive(Clone, Copy)]
struct Refund {
    amount: i64,
    status: ChannelStatus,
}

/// Numbers are digests already: eight of their bytes are the hash.
#[derive(Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(17) ^ u64::from_le_bytes(word);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

type Table<V> = HashMap<Number, V, BuildHasherDefault<DigestHasher>>;

/// All charges and refunds.
pub(crate) struct Book {
    charges: Charges,
    refunds: Table<Refund>,
    /// Requests about numbers without a charge, for the faults' count.
    strangers: Table<u16>,
}

/// What the book needs to judge a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances {
    /// Unix milliseconds.
    pub(crate) now_ms: u64,
    /// The plan declines this charge.
    pub(crate) declines: bool,
}

impl Book {
    /// An empty book.
    pub(crate) fn new() -> Self {
        Self { charges: Charges::new(), refunds: Table::default(), strangers: Table::default() }
    }

    /// Number of charges and refunds.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.charges.len(), self.refunds.len())
    }

    /// How often this charge number was asked about before; counts this time.
    pub(crate) fn count(&mut self, number: &Number) -> u32 {
        let asked = match self.charges.get_mut(number) {
            Some(charge) => &mut charge.asked,
            None => self.strangers.entry(*number).or_default(),
        };
        let before = *asked;
        *asked = asked.saturating_add(1);
        before.into()
    }

    /// Carries a request out; a change is handed to `change` before the answer
    /// may leave.
    pub(crate) fn handle(
        &mut self,
        request: &ChannelRequest,
        charge: Number,
        refund: Option<Number>,
        around: Circumstances,
        change: &mut impl FnMut(&Entry),
    ) -> Answer {
        match (request.kind, refund) {
            (kind::CHARGE, _) => self.charge(request, charge, around, change),
            (kind::REVERSE, _) => self.reverse(request, charge, around, change),
            (kind::REFUND, Some(refund)) => self.refund(request, charge, refund, around, change),
            (kind::QUERY_REFUND, Some(refund)) => self.refund_state(&refund),
            _ => self.charge_state(&charge),
        }
    }

    fn charge(
        &mut self,
        request: &ChannelRequest,
        number: Number,
        around: Circumstances,
        change: &mut impl FnMut(&Entry),
    ) -> Answer {
        if let Some(known) = self.charges.get(&number) {
            return known.answer();
        }
        let (status, detail) = if around.now_ms > request.time_expire_ms {
            (ChannelStatus::Declined, Reason::Expired.wire())
        } else if around.declines {
            (ChannelStatus::Declined, Reason::InsufficientFunds.wire())
        } else {
            (ChannelStatus::Success, 0)
        };
        let entry = entry(request, number, None, (status, detail), around);
        change(&entry);
        self.add(&entry);
        let amount = if status == ChannelStatus::Success { entry.amount } else { 0 };
        Answer { status, detail, amount }
    }

    fn charge_state(&self, number: &Number) -> Answer {
        self.charges
            .get(number)
            .map_or(Answer::of(ChannelStatus::NotFound), |charge| charge.answer())
    }

    /// Asks for the memory of a charge without needing it yet: done for a whole
    /// batch ahead of handling it, the cache misses overlap.
    pub(crate) fn warm(&self, number: &Number) {
        std::hint::black_box(self.charges.get(number).is_some());
    }

    /// Undoes a charge or fences an unused number. A charge with refunds
    /// stands, and a declined one is fenced by its decline.
    fn reverse(
        &mut self,
        request: &ChannelRequest,
        number: Number,
        around: Circumstances,
        change: &mut impl FnMut(&Entry),
    ) -> Answer {
        let stands = self
            .charges
            .get(&number)
            .is_some_and(|charge| charge.status != ChannelStatus::Success || charge.refunded > 0);
        if !stands {
            let entry = entry(request, number, None, (ChannelStatus::Reversed, 0), around);
            change(&entry);
            self.apply(&entry);
        }
        self.charge_state(&number)
    }

    fn refund(
        &mut self,
        request: &ChannelRequest,
        number: Number,
        refund: Number,
        around: Circumstances,
        change: &mut impl FnMut(&Entry),
    ) -> Answer {
        if self.refunds.contains_key(&refund) {
            return self.refund_state(&refund);
        }
        let fits = self.charges.get(&number).is_some_and(|charge| {
            charge.status == ChannelStatus::Success
                && charge.currency == request.currency.bytes()
                && charge.refunded + request.amount.minor() <= charge.amount
        });
        let result = match fits {
            true => (ChannelStatus::Success, 0),
            false => (ChannelStatus::Declined, Reason::ChannelDeclined.wire()),
        };
        let entry = entry(request, number, Some(refund), result, around);
        change(&entry);
        self.apply(&entry);
        self.refund_state(&refund)
    }

    fn refund_state(&self, refund: &Number) -> Answer {
        match self.refunds.get(refund) {
            None => Answer::of(ChannelStatus::NotFound),
            Some(refund) => {
                let moved = if refund.status == ChannelStatus::Success { refund.amount } else { 0 };
                Answer { status: refund.status, detail: 0, amount: moved }
            }
        }
    }

    /// Applies a change: a new one, or one read from the ledger.
    pub(crate) fn apply(&mut self, entry: &Entry) {
        if let Some(refund) = entry.refund {
            let (amount, status) = (entry.amount, entry.status);
            self.refunds.insert(refund, Refund { amount, status });
            let moved = if status == ChannelStatus::Success { amount } else { 0 };
            if let Some(charge) = self.charges.get_mut(&entry.charge) {
                charge.refunded += moved;
            }
            return;
        }
        if let Some(charge) = self.charges.get_mut(&entry.charge) {
            (charge.status, charge.detail) = (entry.status, entry.detail);
            return;
        }
        self.add(entry);
    }

    /// Adds a charge that is not there.
    fn add(&mut self, entry: &Entry) {
        let asked = if self.strangers.is_empty() {
            0
        } else {
            self.strangers.remove(&entry.charge).unwrap_or(0)
        };
        let charge = Charge {
            amount: entry.amount,
            refunded: 0,
            currency: entry.currency,
            status: entry.status,
            detail: entry.detail,
            asked,
        };
        self.charges.insert(entry.charge, charge);
    }
}

fn entry(
    request: &ChannelRequest,
    charge: Number,
    refund: Option<Number>,
    (status, detail): (ChannelStatus, u16),
    around: Circumstances,
) -> Entry {
    Entry {
        operation: request.kind,
        charge,
        refund,
        status,
        detail,
        amount: request.amount.minor(),
        currency: Currency::bytes(request.currency),
        at_ms: around.now_ms,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use protocol::channel::{NumberKind, channel_number, charge_number, refund_number};
    use protocol::money::Amount;

    /// A request about payment `n`, refund `ordinal` of it when not zero.
    pub(crate) fn request(kind: u8, n: u8, ordinal: u8, minor: i64) -> ChannelRequest {
        let digest = [n; 16];
        ChannelRequest {
            kind,
            charge_no: charge_number(&digest, 1),
            refund_no: (ordinal > 0).then(|| refund_number(&digest, NumberKind::Refund, ordinal)),
            amount: Amount::new(minor).unwrap(),
            currency: Currency::new(*b"CNY").unwrap(),
            time_expire_ms: 1_000,
        }
    }

    struct Bench {
        book: Book,
        entries: Vec<Entry>,
        around: Circumstances,
    }

    impl Bench {
        fn new() -> Self {
            let around = Circumstances { now_ms: 500, declines: false };
            Self { book: Book::new(), entries: Vec::new(), around }
        }

        fn ask(&mut self, kind: u8, ordinal: u8, minor: i64) -> (ChannelStatus, i64) {
            let request = request(kind, 1, ordinal, minor);
            let charge = Number::parse(&request.charge_no).unwrap();
            let refund = request.refund_no.map(|no| Number::parse(&no).unwrap());
            let entries = &mut self.entries;
            let answer = self.book.handle(&request, charge, refund, self.around, &mut |entry| {
                entries.push(*entry);
            });
            (answer.status, answer.amount)
        }
    }

    #[test]
    fn a_repeated_charge_charges_once() {
        let mut bench = Bench::new();
        assert_eq!(bench.ask(kind::QUERY, 0, 100), (ChannelStatus::NotFound, 0));
        for _ in 0..3 {
            assert_eq!(bench.ask(kind::CHARGE, 0, 100), (ChannelStatus::Success, 100));
        }
        assert_eq!(bench.entries.len(), 1);
        assert_eq!(bench.ask(kind::QUERY, 0, 100), (ChannelStatus::Success, 100));
    }

    #[test]
    fn a_decline_is_for_good_and_an_expired_charge_is_declined() {
        let mut bench = Bench::new();
        bench.around.declines = true;
        assert_eq!(bench.ask(kind::CHARGE, 0, 100), (ChannelStatus::Declined, 0));
        bench.around.declines = false;
        assert_eq!(bench.ask(kind::CHARGE, 0, 100), (ChannelStatus::Declined, 0));
        assert_eq!(bench.ask(kind::REVERSE, 0, 100), (ChannelStatus::Declined, 0));
        let mut late = Bench::new();
        late.around.now_ms = 1_001;
        assert_eq!(late.ask(kind::CHARGE, 0, 100), (ChannelStatus::Declined, 0));
        assert_eq!(late.entries[0].detail, Reason::Expired.wire());
    }

    #[test]
    fn a_reverse_undoes_and_fences_for_ever() {
        let mut bench = Bench::new();
        assert_eq!(bench.ask(kind::REVERSE, 0, 100), (ChannelStatus::Reversed, 0));
        assert_eq!(bench.ask(kind::CHARGE, 0, 100), (ChannelStatus::Reversed, 0));
        let mut bench = Bench::new();
        bench.ask(kind::CHARGE, 0, 100);
        assert_eq!(bench.ask(kind::REVERSE, 0, 100), (ChannelStatus::Reversed, 0));
        assert_eq!(bench.ask(kind::REVERSE, 0, 100), (ChannelStatus::Reversed, 0));
        assert_eq!(bench.ask(kind::CHARGE, 0, 100), (ChannelStatus::Reversed, 0));
        assert_eq!(bench.entries.len(), 2);
    }

    #[test]
    fn refunds_happen_once_and_never_exceed_the_charge() {
        let mut bench = Bench::new();
        assert_eq!(bench.ask(kind::REFUND, 1, 10), (ChannelStatus::Declined, 0));
        bench.ask(kind::CHARGE, 0, 100);
        assert_eq!(bench.ask(kind::REFUND, 2, 60), (ChannelStatus::Success, 60));
        assert_eq!(bench.ask(kind::REFUND, 2, 60), (ChannelStatus::Success, 60));
        assert_eq!(bench.ask(kind::REFUND, 3, 41), (ChannelStatus::Declined, 0));
        assert_eq!(bench.ask(kind::REFUND, 4, 40), (ChannelStatus::Success, 40));
        assert_eq!(bench.ask(kind::QUERY_REFUND, 4, 40), (ChannelStatus::Success, 40));
        assert_eq!(bench.ask(kind::QUERY_REFUND, 9, 40), (ChannelStatus::NotFound, 0));
        // A charge with refunds stands.
        assert_eq!(bench.ask(kind::REVERSE, 0, 100), (ChannelStatus::Success, 100));
    }

    #[test]
    fn the_entries_build_the_same_book() {
        let mut bench = Bench::new();
        bench.ask(kind::CHARGE, 0, 100);
        bench.ask(kind::REFUND, 1, 30);
        let mut again = Book::new();
        bench.entries.iter().for_each(|entry| again.apply(entry));
        bench.book = again;
        assert_eq!(bench.ask(kind::REFUND, 1, 30), (ChannelStatus::Success, 30));
        assert_eq!(bench.ask(kind::REFUND, 2, 71), (ChannelStatus::Declined, 0));
        assert_eq!(bench.book.len(), (1, 2));
    }

    #[test]
    fn requests_are_counted_per_number_also_before_the_charge() {
        let mut bench = Bench::new();
        let number = Number::parse(&channel_number(&[1; 16], NumberKind::Charge, 1)).unwrap();
        assert_eq!((bench.book.count(&number), bench.book.count(&number)), (0, 1));
        bench.ask(kind::CHARGE, 0, 100);
        assert_eq!(bench.book.count(&number), 2);
    }
}
