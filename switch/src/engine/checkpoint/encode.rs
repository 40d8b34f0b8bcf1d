//! The items of a checkpoint, written. `restore.rs` reads the same fields in the
//! same order.

use super::Engine;
use crate::engine::directory::Entry;
use crate::engine::order::{Attempt, Refund};
use crate::engine::outbox::Held;
use crate::engine::record::{put_text, put_u16, put_u64, write_limits, write_merchant};

impl Engine {
    pub(super) fn encode_head(&self, b: &mut Vec<u8>) {
        let counters = &self.counters;
        put_u64(b, self.orders.committed - 1);
        b.extend_from_slice(&(self.merchants.entries().len() as u32).to_le_bytes());
        put_u64(b, counters.ignored_records);
        put_u64(b, counters.manual_attempts);
        put_u64(b, counters.manual_refunds);
        put_u64(b, self.drained);
    }

    /// A payment with its attempts, refunds and undelivered events, as
    /// committed: what is only proposed is left out.
    pub(super) fn encode_payment(&self, b: &mut Vec<u8>, sequence: u64) {
        let order = &self.orders[sequence];
        b.extend_from_slice(&order.digest);
        b.extend_from_slice(&order.fingerprint);
        for value in [
            order.amount as u64,
            order.refunded as u64,
            order.reserved as u64,
            order.time_expire_ms,
            order.created_ms,
            order.finished_ms,
        ] {
            put_u64(b, value);
        }
        b.extend_from_slice(&order.merchant.to_le_bytes());
        b.extend_from_slice(&order.events.to_le_bytes());
        put_u16(b, order.gateway);
        put_u16(b, order.reason.wire());
        b.extend_from_slice(&order.currency.bytes());
        b.extend_from_slice(&[
            order.method.wire(),
            order.scene.wire(),
            order.state.wire(),
            order.cancel as u8,
            u8::from(order.notify),
        ]);
        put_text(b, order.out_trade_no.as_bytes());
        b.push(order.attempt.ordinal);
        for ordinal in 1..order.attempt.ordinal {
            // Ordinals count from 1 without a gap.
            if let Some(earlier) = self.orders.attempt(sequence, ordinal) {
                attempt(b, earlier);
            }
        }
        attempt(b, &order.attempt);
        self.encode_refunds(b, sequence);
        self.encode_events(b, sequence);
    }

    /// Oldest first.
    fn encode_refunds(&self, b: &mut Vec<u8>, sequence: u64) {
        let places = self.committed_refunds(sequence);
        put_u16(b, places.len() as u16);
        for place in places {
            if let Some(known) = self.orders.refunds.get(place) {
                refund(b, known);
            }
        }
    }

    fn encode_events(&self, b: &mut Vec<u8>, sequence: u64) {
        let count_at = b.len();
        put_u16(b, 0);
        let mut count: u16 = 0;
        for held in self.outbox.held(sequence, self.orders[sequence].events) {
            // A place in memory means nothing elsewhere: the nth refund does.
            let nth = held.refund.and_then(|refund| {
                self.committed_refunds(sequence).iter().position(|place| *place == refund)
            });
            event(b, held, nth.map_or(0, |nth| nth as u16 + 1));
            count += 1;
        }
        b[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
    }

    /// Places of the payment's committed refunds, oldest first.
    fn committed_refunds(&self, sequence: u64) -> Vec<u32> {
        let refunds = self.orders.refunds_of(sequence).filter(|(_, refund)| !refund.proposed);
        let mut places: Vec<u32> = refunds.map(|(place, _)| place).collect();
        places.reverse();
        places
    }
}

pub(super) fn merchant(b: &mut Vec<u8>, entry: &Entry) {
    write_merchant(b, &entry.merchant);
    b.push(u8::from(entry.temporary.is_some()));
    if let Some(temporary) = &entry.temporary {
        write_limits(b, &temporary.before);
        put_u64(b, temporary.until_ms);
    }
    let used = &entry.applied;
    for value in [used.pay.tat_ns, used.refund.tat_ns, used.daily.day, used.daily.sum as u64] {
        put_u64(b, value);
    }
}

fn attempt(b: &mut Vec<u8>, attempt: &Attempt) {
    b.extend_from_slice(&[
        attempt.state as u8,
        attempt.class as u8,
        u8::from(attempt.noted) | u8::from(attempt.reversal_started) << 1,
    ]);
    put_u16(b, attempt.channel);
    put_u16(b, attempt.reason.wire());
    put_text(b, attempt.channel_ref.as_bytes());
}

fn refund(b: &mut Vec<u8>, refund: &Refund) {
    for value in [refund.amount as u64, refund.created_ms, refund.finished_ms] {
        put_u64(b, value);
    }
    put_u16(b, refund.reason.wire());
    b.extend_from_slice(&[refund.kind as u8, refund.state.wire(), refund.ordinal, refund.attempt]);
    put_text(b, refund.out_refund_no.as_bytes());
    put_text(b, refund.channel_ref.as_bytes());
}

fn event(b: &mut Vec<u8>, held: &Held, refund: u16) {
    b.extend_from_slice(&held.number.to_le_bytes());
    put_u64(b, held.at_ms);
    put_u16(b, held.reason.wire());
    put_u16(b, refund);
    b.extend_from_slice(&[held.state.wire(), held.refund_state.wire()]);
}
