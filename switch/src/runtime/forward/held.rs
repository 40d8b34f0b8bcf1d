//! Requests of gateways without answer, with their frames, so that each can be
//! given to another site when the one that had it fails: slots that are used
//! again, memory included. Only a deployment of several sites has it.

use crate::engine::input::Waiter;

/// Bytes of all frames held; beyond, new requests are shed.
const BYTES_MAX: usize = 256 << 20;
/// A slot keeps memory of this size for its next request.
const ROOM_KEPT: usize = 1 << 10;

/// Who works on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nobody: its shard has no leader that can be reached.
    Waiting {
        /// The site that said it does not lead; 0: none has.
        refused_by: u8,
        /// When to ask that site again, monotonic microseconds.
        again_us: u64,
    },
    /// This site's worker.
    Here,
    /// Another site.
    At(u8),
}

/// A request without answer.
pub struct Held {
    /// Where its answer goes.
    pub waiter: Waiter,
    /// Number of its gateway.
    pub gateway: u16,
    /// Its shard.
    pub shard: u16,
    /// A second signature was verified.
    pub second: bool,
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

    fn held(shard: u16) -> Held {
        Held {
            waiter: Waiter::default(),
            gateway: 1,
            shard,
            second: false,
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
