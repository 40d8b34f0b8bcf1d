//! Requests of gateways without answer, with their frames, so that each can be
//! given to another site when the one that had it fails: slots that are used
//! again, memory included. Only a deployment of several sites has it.

use protocol::code::{Code, OrderState, RefundState};
use protocol::id::MchId;
use protocol::message::kind;

use crate::engine::input::Waiter;
use crate::engine::output::ReplyBody;

/// Bytes of all frames held; beyond, new requests are shed.
const BYTES_MAX: usize = 256 << 20;
/// A slot keeps memory of this size for its next request.
const ROOM_KEPT: usize = 1 << 10;

/// Who works on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nobody: its shard has no leader that can be reached and takes it.
    Waiting {
        /// The site that did not take it; 0: none was asked.
        refused_by: u8,
        /// When to ask that site again, monotonic microseconds.
        again_us: u64,
    },
    /// This site's worker.
    Here,
    /// Another site.
    At(u8),
}

impl Place {
    /// Of a request that nobody was given yet.
    pub const NOWHERE: Self = Self::Waiting { refused_by: 0, again_us: 0 };
}

/// A request without answer.
pub struct Held {
    /// Where its answer goes.
    pub waiter: Waiter,
    /// Its merchant.
    pub mch_id: MchId,
    /// What it was authorised by (`Directory::authority`).
    pub authority: u64,
    /// Number of its gateway.
    pub gateway: u16,
    /// Its shard.
    pub shard: u16,
    /// A second signature was verified.
    pub second: bool,
    /// Somebody had it before and may have carried it out.
    pub tried: bool,
    /// When its gateway stops waiting, monotonic microseconds.
    pub until_us: u64,
    /// When to stop looking for a leader, monotonic microseconds; 0: one was
    /// known so far.
    pub patience_us: u64,
    /// Who works on it.
    pub place: Place,
    /// Its body as it came.
    pub body: Vec<u8>,
}

impl Held {
    /// Whether an answer ends the request. That its site does not lead never does.
    /// Nor does a refusal for reasons of the moment (load, limits, room) once an
    /// earlier leader had it: "no money moved" would be true of the last attempt
    /// only. What an engine says of the number itself is true of all of them: it has
    /// applied whatever was committed before its term.
    pub fn is_ended_by(&self, body: &ReplyBody) -> bool {
        let (code, nothing) = match body {
            ReplyBody::Order(body) => (body.code, body.state == OrderState::None),
            ReplyBody::Refund(body) => (body.code, body.state == RefundState::None),
        };
        let momentary = nothing && matches!(code.wire(), 400..=599);
        let reads = matches!(self.waiter.kind, kind::QUERY | kind::QUERY_REFUND);
        match code {
            Code::NotLeader | Code::NoLeader => false,
            _ => !momentary || !self.tried || reads,
        }
    }
}

struct Slot {
    attempt: u32,
    held: Option<Held>,
    room: Vec<u8>,
}

/// The requests, by ticket: slot, and attempt in the upper half. Every time a
/// request is given to somebody anew its attempt changes, so that a late
/// answer of an earlier one finds nothing.
#[derive(Default)]
pub struct Holder {
    slots: Vec<Slot>,
    free: Vec<u32>,
    attempts: u32,
    bytes: usize,
}

impl Holder {
    /// Whether no more may be taken.
    pub fn full(&self) -> bool {
        self.bytes >= BYTES_MAX
    }

    /// Takes a request over and copies its body; gives it its ticket.
    pub fn insert(&mut self, mut held: Held, body: &[u8]) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { attempt: 0, held: None, room: Vec::new() });
            (self.slots.len() - 1) as u32
        });
        let attempt = self.next_attempt();
        let slot = &mut self.slots[index as usize];
        held.body = std::mem::take(&mut slot.room);
        held.body.extend_from_slice(body);
        self.bytes += body.len();
        (slot.attempt, slot.held) = (attempt, Some(held));
        ticket(attempt, index)
    }

    fn next_attempt(&mut self) -> u32 {
        self.attempts = self.attempts.wrapping_add(1);
        self.attempts
    }

    fn slot(&mut self, ticket: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(ticket as u32 as usize)?;
        (slot.attempt == (ticket >> 32) as u32 && slot.held.is_some()).then_some(slot)
    }

    /// A request by its ticket.
    pub fn get(&mut self, ticket: u64) -> Option<&mut Held> {
        self.slot(ticket)?.held.as_mut()
    }

    /// Gives a request a new ticket; the one it had finds nothing any more.
    pub fn renew(&mut self, old: u64) -> Option<u64> {
        let attempt = self.next_attempt();
        self.slot(old)?.attempt = attempt;
        Some(ticket(attempt, old as u32))
    }

    /// Ends a request. Its body is not part of what is returned: the slot keeps
    /// that memory.
    pub fn remove(&mut self, ticket: u64) -> Option<Held> {
        let slot = self.slot(ticket)?;
        let mut held = slot.held.take()?;
        let mut room = std::mem::take(&mut held.body);
        let bytes = room.len();
        if room.capacity() <= ROOM_KEPT {
            room.clear();
            slot.room = room;
        }
        self.bytes -= bytes;
        self.free.push(ticket as u32);
        Some(held)
    }

    /// Tickets of the requests that match.
    pub fn tickets(&self, wanted: impl Fn(&Held) -> bool) -> Vec<u64> {
        let slots = (0_u32..).zip(&self.slots);
        slots
            .filter(|(_, slot)| slot.held.as_ref().is_some_and(&wanted))
            .map(|(index, slot)| ticket(slot.attempt, index))
            .collect()
    }
}

fn ticket(attempt: u32, index: u32) -> u64 {
    u64::from(attempt) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::output::Reply;

    fn held(shard: u16) -> Held {
        Held {
            waiter: Waiter::default(),
            mch_id: MchId::parse(b"M").unwrap(),
            authority: 0,
            gateway: 1,
            shard,
            second: false,
            tried: false,
            until_us: 0,
            patience_us: 0,
            place: Place::Here,
            body: Vec::new(),
        }
    }

    #[test]
    fn a_ticket_finds_its_request_until_it_is_renewed_or_removed() {
        let mut holder = Holder::default();
        let first = holder.insert(held(1), b"one");
        let second = holder.insert(held(2), b"two");
        assert_eq!(holder.get(first).unwrap().body, b"one");
        let renewed = holder.renew(first).unwrap();
        assert!(holder.get(first).is_none() && holder.renew(first).is_none());
        assert_eq!(holder.get(renewed).unwrap().shard, 1);
        assert_eq!(holder.tickets(|held| held.shard == 2), [second]);
        assert_eq!(holder.remove(renewed).unwrap().shard, 1);
        assert!(holder.remove(renewed).is_none());
        let third = holder.insert(held(3), b"3");
        assert_eq!(third as u32, first as u32, "the slot is used again");
        assert_eq!(holder.tickets(|_| true).len(), 2);
        assert!(holder.get(renewed).is_none());
        assert_eq!(holder.get(third).unwrap().body, b"3");
    }

    #[test]
    fn what_an_earlier_leader_may_have_done_is_not_denied() {
        let ends = |tried: bool, kind: u8, code: Code, state: OrderState| {
            let waiter = Waiter { kind, ..Waiter::default() };
            let mut body = Reply::refusal(waiter, code, 0).body;
            if let ReplyBody::Order(body) = &mut body {
                body.state = state;
            }
            Held { waiter, tried, ..held(1) }.is_ended_by(&body)
        };
        let nothing = OrderState::None;
        for &code in Code::ALL {
            let leads = !matches!(code, Code::NotLeader | Code::NoLeader);
            let momentary = matches!(code.wire(), 400..=599);
            for kind in [kind::PAY, kind::REFUND, kind::CLOSE, kind::REVERSE] {
                assert_eq!(ends(false, kind, code, nothing), leads, "{code:?}");
                assert_eq!(ends(true, kind, code, nothing), leads && !momentary, "{code:?}");
            }
            // It changes nothing, so there is nothing to deny.
            assert_eq!(ends(true, kind::QUERY, code, nothing), leads, "{code:?}");
            // Told together with the payment.
            assert_eq!(ends(true, kind::PAY, code, OrderState::Processing), leads, "{code:?}");
        }
    }

    #[test]
    fn bytes_are_counted_and_large_bodies_not_kept() {
        let mut holder = Holder::default();
        let large = vec![0; 16 << 10];
        let tickets: Vec<u64> =
            (0..BYTES_MAX / large.len()).map(|_| holder.insert(held(0), &large)).collect();
        assert!(holder.full());
        for ticket in tickets {
            holder.remove(ticket);
        }
        assert!(!holder.full() && holder.bytes == 0);
        assert!(holder.slots.iter().all(|slot| slot.room.capacity() == 0));
    }
}
