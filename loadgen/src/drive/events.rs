//! Outcome events: subscribed to at every site, written beside the
//! acknowledgements, and only then acknowledged themselves.
//!
//! Bounded: a byte per request of the session, and nothing per event. Judges
//! nothing; the audit does. Tested by the driver's tests and on made-up events.

use super::state::State;
use crate::acks::{Ack, flag};
use crate::channel::number::REVERSAL_ORDINAL;
use crate::plan::Op;
use bytes::Bytes;
use protocol::channel::{NumberKind, order_digest, refund_number};
use protocol::code::RefundState;
use protocol::frame::{Header, Splitter};
use protocol::id::ChannelNo;
use protocol::message::{self, Event, Subscribe, kind};
use std::cell::RefCell;
use std::rc::Weak;

/// The subscription's correlation id: it is the only request of its stream.
const CORRELATION: u64 = 1;

/// The event of this payment or refund is due: its outcome was told.
const DUE: u8 = 1;
/// It came.
const CAME: u8 = 2;

/// What is known of events.
#[derive(Default)]
pub(super) struct Events {
    /// Bits of every request that has an event: a payment's pay, or a refund.
    requests: Vec<u8>,
    counts: EventCounts,
}

/// The number of the refund that a reverse of the event's payment makes: no
/// merchant chose it.
fn own_refund(event: &Event) -> ChannelNo {
    let digest = order_digest(&event.mch_id, &event.out_trade_no);
    refund_number(&digest, NumberKind::Reversal, REVERSAL_ORDINAL)
}

/// Counts of a session's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct EventCounts {
    /// Events of the session's payments, repeated ones included.
    pub(crate) received: u64,
    /// Those of other runs of this gateway.
    pub(crate) others: u64,
    /// Frames that could not be read.
    pub(crate) malformed: u64,
    /// Outcomes that were told and whose event has not come.
    pub(crate) missing: u64,
}

impl std::fmt::Display for EventCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { received, others, malformed, missing } = self;
        write!(
            f,
            "{received} received, {missing} told outcomes without one, {others} of other runs, \
             {malformed} malformed"
        )
    }
}

impl Events {
    /// `n` is of a request that was planned: the table grows up to it.
    fn bits(&mut self, n: u64) -> &mut u8 {
        let at = n as usize;
        if self.requests.len() <= at {
            self.requests.resize(at + 1, 0);
        }
        &mut self.requests[at]
    }

    /// The final outcome of request `n` was told.
    pub(super) fn due(&mut self, n: u64) {
        let bits = self.bits(n);
        let new = *bits == 0;
        *bits |= DUE;
        self.counts.missing += u64::from(new);
    }

    fn came(&mut self, n: u64) {
        let bits = self.bits(n);
        let waited = *bits == DUE;
        *bits |= CAME;
        self.counts.missing -= u64::from(waited);
    }

    /// The counts.
    pub(super) fn counts(&self) -> EventCounts {
        self.counts
    }
}

impl State {
    /// Takes a frame of the subscription; the acknowledgement of an event is appended
    /// to `out`, to leave once it is written.
    fn event(&mut self, header: Header, body: &[u8], now_ns: u64, out: &mut Vec<u8>) {
        if header.kind != kind::EVENT {
            // The subscription's reply, or what later versions may tell.
            return;
        }
        let Ok(event) = Event::decode(body) else {
            self.count_event(|counts| counts.malformed += 1);
            return;
        };
        message::Ack { event_id: event.event_id }.encode_frame(header.correlation, out);
        // A number of ours that was never sent is the audit's to judge.
        match self.plan.request_of(event.out_trade_no.as_bytes()) {
            Some(k) => self.event_of(k, &event, now_ns),
            None => self.count_event(|counts| counts.others += 1),
        }
    }

    fn event_of(&mut self, k: u64, event: &Event, now_ns: u64) {
        let about_refund = event.refund_state != RefundState::None;
        let number = event.out_refund_no.as_bytes();
        let request = number.strip_prefix(b"R").and_then(|number| self.plan.request_of(number));
        let refund_fits = match request {
            Some(n) => self.plan.target(n) == k,
            None if about_refund => number == own_refund(event).as_bytes(),
            None => number.is_empty(),
        };
        let merchant = self.encoder.merchant(self.plan.merchant(k)).id;
        let odd = event.mch_id != merchant
            || event.currency != self.plan.currency()
            || self.plan.op(k) != Op::Pay
            || request.is_some() && !about_refund
            || !refund_fits;
        let mut flags = flag::EVENT;
        flags |= if about_refund { flag::REFUND } else { 0 };
        flags |= if odd { flag::ODD } else { 0 };
        let state = match about_refund {
            true => event.refund_state.wire(),
            false => event.state.wire(),
        };
        if let Some(acks) = &mut self.acks {
            acks.push(&Ack {
                n: request.filter(|_| !odd).unwrap_or(k),
                transaction: event.transaction_id.as_u64(),
                amount: event.amount,
                refunded: event.event_id as i64,
                at_us: now_ns / 1_000,
                code: u16::try_from(event.sequence).unwrap_or(u16::MAX),
                state,
                flags,
            });
        }
        // That of a reverse is not waited for: which of its answers led to it is not known.
        let told = if about_refund { request } else { Some(k) };
        let told = told.filter(|n| *n < self.next_n);
        let Some(events) = &mut self.events else { return };
        events.counts.received += 1;
        told.into_iter().for_each(|n| events.came(n));
    }

    fn count_event(&mut self, count: impl FnOnce(&mut EventCounts)) {
        if let Some(events) = &mut self.events {
            count(&mut events.counts);
        }
    }

    /// Counts of the events, when they are subscribed to.
    pub(super) fn event_counts(&self) -> Option<EventCounts> {
        self.events.as_ref().map(Events::counts)
    }
}

/// Subscribes on a connection and takes events until it ends.
pub(super) async fn listen(state: Weak<RefCell<State>>, quic: quinn::Connection) {
    let Ok((mut send, mut recv)) = quic.open_bi().await else { return };
    let (mut out, mut splitter) = (Vec::new(), Splitter::new());
    let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
    Subscribe.encode_frame(CORRELATION, &mut out);
    while send.write_all(&out).await.is_ok() {
        let Ok(Some(count)) = recv.read_chunks(&mut chunks).await else { return };
        let Some(state) = state.upgrade() else { return };
        out.clear();
        let mut state = state.borrow_mut();
        let now_ns = state.now_ns();
        for chunk in &mut chunks[..count] {
            let bytes = std::mem::take(chunk);
            let take = |header, body: &[u8]| state.event(header, body, now_ns, &mut out);
            if splitter.push(&bytes, take).is_err() {
                quic.close(2_u32.into(), b"not a frame of this protocol");
                return;
            }
        }
        // What is not written down must not be acknowledged.
        if !state.written() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_may_come_before_the_answer_and_more_than_once() {
        let mut events = Events::default();
        events.due(5);
        events.due(5);
        events.came(2);
        assert_eq!(events.counts().missing, 1);
        events.due(2);
        events.came(2);
        assert_eq!(events.counts().missing, 1);
        events.came(5);
        events.came(5);
        events.due(5);
        assert_eq!(events.counts().missing, 0);
    }
}
