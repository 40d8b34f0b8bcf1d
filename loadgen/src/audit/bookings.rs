//! The channel's ledger, held against what the log says.
//!
//! Pure. Tested with the books.

use super::books::{Books, ORPHAN_ORDINAL};
use super::table::{Attempt, Cancel, Charge};
use crate::channel::book::Entry;
use crate::channel::number::Number;
use protocol::channel::{ChannelStatus, kind};

/// Clocks of log and channel may differ by this.
const CLOCK_SLACK_MS: u64 = 1_000;

impl Books {
    /// Asks for the memory that a payment's look-up needs, ahead of it.
    pub(super) fn warm(&self, digest: &[u8; 16]) {
        self.table.warm(digest);
    }

    /// Takes an entry of the channel's ledger.
    pub(crate) fn entry(&mut self, entry: &Entry) {
        self.checked.ledger_entries += 1;
        let digest = entry.charge.digest;
        let Some(at) = self.table.find(&digest) else {
            let detail =
                format!("the channel has {} and the log has no such payment", named(entry));
            return self.violation(2, Some(digest), detail);
        };
        let ordinal = entry.charge.ordinal;
        if self.table.attempt(at, ordinal) == Attempt::None {
            let detail = format!("the channel has {} and the log no such attempt", named(entry));
            return self.about(2, at, detail);
        }
        let payment = self.table.get(at);
        let later = if ordinal > 1 { self.later.get(&(at, ordinal)).copied() } else { None };
        let begun_ms = later.unwrap_or(payment.begun_ms);
        if entry.operation == kind::REVERSE && payment.cancel == Cancel::None {
            let detail = format!("the channel has {} and the log no cancel", named(entry));
            self.about(2, at, detail);
        }
        self.judge_time(at, entry, begun_ms);
        match entry.refund {
            Some(refund) => self.channel_refund(at, entry, refund),
            None => self.channel_charge(at, entry),
        }
    }

    /// Nothing is booked before its record was written.
    fn judge_time(&mut self, at: u32, entry: &Entry, begun_ms: u64) {
        if entry.at_ms + CLOCK_SLACK_MS < begun_ms {
            let early_ms = begun_ms - entry.at_ms;
            let detail = format!("{} came {early_ms} ms before its record", named(entry));
            self.about(2, at, detail);
        }
    }

    fn channel_charge(&mut self, at: u32, entry: &Entry) {
        let (payment, number) = (self.table.get(at), entry.charge.ordinal);
        let (amount, currency) = (payment.amount, payment.currency);
        let was = self.table.charge(at, number);
        let charged = entry.operation == kind::CHARGE && entry.status == ChannelStatus::Success;
        if charged && (entry.amount != amount || entry.currency != currency) {
            let detail = format!("charged {} and the payment is {amount}", entry.amount);
            self.about(3, at, detail);
        }
        if charged && was == Charge::Stands {
            self.about(1, at, format!("attempt {number} was charged twice under one number"));
        }
        let now = match (entry.operation, entry.status) {
            (_, ChannelStatus::Success) => Charge::Stands,
            (_, ChannelStatus::Reversed) if was == Charge::Stands => Charge::Undone,
            (_, ChannelStatus::Reversed) => Charge::Fenced,
            _ => Charge::Declined,
        };
        self.table.set_charge(at, number, now);
    }

    fn channel_refund(&mut self, at: u32, entry: &Entry, refund: Number) {
        let Some(line) = self.refunds.get_mut(&(at, refund.ordinal)) else {
            let detail = format!("the channel has {} and the log no such refund", named(entry));
            return self.about(9, at, detail);
        };
        let before = line.channel.replace(entry.status);
        let (amount, attempt, begun_ms) = (line.amount, line.attempt, line.begun_ms);
        self.judge_time(at, entry, begun_ms);
        if before == Some(ChannelStatus::Success) {
            self.about(9, at, format!("refund {} moved money twice", refund.ordinal));
        }
        if attempt != entry.charge.ordinal || refund.digest != entry.charge.digest {
            let detail = format!("refund {} of another charge than its own", refund.ordinal);
            self.about(9, at, detail);
        }
        if entry.status != ChannelStatus::Success {
            return;
        }
        let currency = self.table.get(at).currency;
        if entry.amount != amount || entry.currency != currency {
            let told = String::from_utf8_lossy(&entry.currency);
            let detail =
                format!("the channel refunded {} {told} instead of {amount}", entry.amount);
            self.about(9, at, detail);
        }
        if refund.ordinal > ORPHAN_ORDINAL {
            self.orphan_refund(at, attempt, entry.amount);
        } else {
            let totals = self.totals.entry(at).or_default();
            totals.channel_refunded += entry.amount;
            let (back, paid) = (totals.channel_refunded, self.table.get(at).amount);
            if back > paid {
                self.about(8, at, format!("the channel gave back {back} of {paid}"));
            }
        }
    }

    /// An orphan charge is given back, and as a whole.
    fn orphan_refund(&mut self, at: u32, attempt: u8, amount: i64) {
        let charged = match self.table.charge(at, attempt) {
            Charge::Stands => self.table.get(at).amount,
            _ => 0,
        };
        if amount > charged {
            let detail = format!("the channel gave back {amount} of {charged} charged");
            self.about(8, at, detail);
        }
        if amount >= charged && charged > 0 {
            self.table.set_charge(at, attempt, Charge::Undone);
        }
    }
}

fn named(entry: &Entry) -> String {
    let operation = match entry.operation {
        kind::CHARGE => "a charge",
        kind::REVERSE => "a reversal",
        _ => "a refund",
    };
    format!("{operation} ({:?}, attempt {})", entry.status, entry.charge.ordinal)
}
