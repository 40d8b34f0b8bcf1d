//! The streams of a gateway's connection: their slots, what is to be written on each,
//! and when a slot may be used again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

use super::net::{STREAMS_MAX, stream_name};

/// One long-lived or single-use stream of a connection.
pub struct Stream {
    /// Slot within the connection: answers find their stream by it.
    pub slot: u32,
    /// Its own among all streams that the connection ever had: events find it by that, which
    /// come whenever they like.
    pub name: u32,
    /// Frames to write.
    pub buffer: RefCell<Vec<u8>>,
    /// Requests without answer.
    pub pending: Cell<u32>,
    /// Nothing more is read: the peer finished or reset its side.
    pub finished: Cell<bool>,
    /// The write side failed or ended.
    pub closed: Cell<bool>,
    /// Events flow on it.
    pub subscribed: Cell<bool>,
    /// When an unfinished frame began, monotonic microseconds; 0: none.
    pub partial_since_us: Cell<u64>,
    /// Something is to be written.
    pub dirty: Cell<bool>,
    /// Wakes its writer.
    pub wake: Notify,
}

impl Stream {
    fn new(slot: u32, name: u32) -> Self {
        Self {
            slot,
            name,
            buffer: RefCell::new(Vec::new()),
            pending: Cell::new(0),
            finished: Cell::new(false),
            closed: Cell::new(false),
            subscribed: Cell::new(false),
            partial_since_us: Cell::new(0),
            dirty: Cell::new(false),
            wake: Notify::new(),
        }
    }

    /// Takes note of what a read has brought: whether frames were completed, and whether one
    /// is unfinished. The time of an unfinished frame counts from its own first bytes, not
    /// from those of one before it.
    pub fn has_read(&self, completed: bool, unfinished: bool, now_us: u64) {
        if !unfinished {
            self.partial_since_us.set(0);
        } else if completed || self.partial_since_us.get() == 0 {
            self.partial_since_us.set(now_us.max(1));
        }
    }

    /// Whether a frame has been unfinished for longer than allowed.
    pub fn is_stalled(&self, now_us: u64, allowed_us: u64) -> bool {
        let since_us = self.partial_since_us.get();
        since_us != 0 && now_us.saturating_sub(since_us) > allowed_us
    }
}

/// All streams of a connection.
#[derive(Default)]
pub struct Streams {
    slots: RefCell<Vec<Option<Rc<Stream>>>>,
    opened: Cell<u32>,
}

impl Streams {
    /// A new stream; `None` when all slots are taken, most of them by streams that the peer
    /// has given up before their answers came.
    pub fn open(&self) -> Option<Rc<Stream>> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        if slot >= STREAMS_MAX as usize {
            return None;
        }
        if slot == slots.len() {
            slots.push(None);
        }
        self.opened.set(self.opened.get().wrapping_add(1));
        let slot_number = slot as u32;
        let stream = Rc::new(Stream::new(slot_number, stream_name(slot_number, self.opened.get())));
        slots[slot] = Some(Rc::clone(&stream));
        Some(stream)
    }

    /// The stream in a slot.
    pub fn get(&self, slot: u32) -> Option<Rc<Stream>> {
        self.slots.borrow().get(slot as usize).cloned().flatten()
    }

    /// Frees a stream's slot once both its sides have ended and nothing can be answered on
    /// it any more, so that a late answer never reaches a newer stream.
    pub fn release(&self, stream: &Stream) {
        if stream.closed.get()
            && stream.finished.get()
            && stream.pending.get() == 0
            && let Some(slot) = self.slots.borrow_mut().get_mut(stream.slot as usize)
            && slot.as_ref().is_some_and(|held| held.name == stream.name)
        {
            *slot = None;
        }
    }

    /// Calls `each` with every stream.
    pub fn each(&self, each: impl FnMut(&Rc<Stream>)) {
        self.slots.borrow().iter().flatten().for_each(each);
    }

    /// Whether a frame of any has been unfinished for longer than allowed.
    pub fn is_stalled(&self, now_us: u64, allowed_us: u64) -> bool {
        self.slots.borrow().iter().flatten().any(|stream| stream.is_stalled(now_us, allowed_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frames_time_counts_from_its_own_beginning() {
        let streams = Streams::default();
        let stream = streams.open().unwrap();
        // (read at, completed, unfinished, stalled at 1000 when 500 are allowed)
        for (at, completed, unfinished, stalled) in [
            (100, false, true, true),
            // More of the same frame: its beginning counts.
            (900, false, true, true),
            // It ends, and the next has begun with the same read.
            (950, true, true, false),
            (960, true, false, false),
            (400, true, true, true),
            (970, true, false, false),
        ] {
            stream.has_read(completed, unfinished, at);
            assert_eq!(streams.is_stalled(1_000, 500), stalled, "{at}");
        }
    }

    #[test]
    fn a_slot_is_used_again_only_when_nothing_can_reach_it() {
        let streams = Streams::default();
        let first = streams.open().unwrap();
        first.pending.set(1);
        for end in [&first.closed, &first.finished] {
            end.set(true);
            streams.release(&first);
            let other = streams.open().unwrap();
            assert_eq!(other.slot, 1);
            other.closed.set(true);
            other.finished.set(true);
            streams.release(&other);
            assert!(streams.get(1).is_none());
        }
        first.pending.set(0);
        first.finished.set(false);
        streams.release(&first);
        assert!(streams.get(0).is_some(), "its requests are still read");
        first.finished.set(true);
        streams.release(&first);
        let next = streams.open().unwrap();
        assert_eq!(next.slot, first.slot);
        assert_ne!(next.name, first.name, "an event for the first must not reach it");
        streams.release(&first);
        assert!(streams.get(0).is_some(), "not its slot any more");
    }

    #[test]
    fn streams_that_no_answer_could_find_are_not_opened() {
        let streams = Streams::default();
        for slot in 0..STREAMS_MAX {
            assert_eq!(streams.open().unwrap().slot, slot);
        }
        assert!(streams.open().is_none());
        let one = streams.get(77).unwrap();
        one.closed.set(true);
        one.finished.set(true);
        streams.release(&one);
        assert_eq!(streams.open().unwrap().slot, 77);
        assert!(streams.open().is_none());
    }
}
