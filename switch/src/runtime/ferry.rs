//! Hand-off from the peer thread to the network thread: what other sites
//! forward, what they answer, and that their links ended. Bounded; the peer
//! thread stops reading a link while there is no room.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use tokio::sync::Notify;

/// Packets that may wait for the network thread.
const ARRIVALS_MAX: usize = 64;

/// Something that came over a peer link.
pub enum Arrival {
    /// Requests for this site to carry out.
    Forwards {
        /// Of which site.
        from: u8,
        /// Which of its connections: answers to an earlier one's are worthless.
        link: u32,
        /// The requests, encoded.
        packet: Bytes,
    },
    /// Answers to requests of this site.
    Answers {
        /// Of which site.
        from: u8,
        /// The answers, encoded.
        packet: Bytes,
    },
    /// A site's connection ended: nobody waits for answers to what came on it.
    Closed {
        /// Whose.
        from: u8,
        /// Which of its connections.
        link: u32,
    },
}

/// The queue.
pub struct Ferry {
    arrivals: ArrayQueue<Arrival>,
    net_wake: Arc<Notify>,
}

impl Ferry {
    /// Empty; `net_wake` is what the network thread waits for.
    pub fn new(net_wake: Arc<Notify>) -> Self {
        Self { arrivals: ArrayQueue::new(ARRIVALS_MAX), net_wake }
    }

    /// Peer thread: hands something over; gives it back when there is no room.
    ///
    /// # Errors
    /// The arrival.
    pub fn push(&self, arrival: Arrival) -> Result<(), Arrival> {
        self.arrivals.push(arrival)?;
        self.wake();
        Ok(())
    }

    /// Network thread: the next arrival.
    pub fn pop(&self) -> Option<Arrival> {
        self.arrivals.pop()
    }

    /// Peer thread: lets the network thread look at the routes.
    pub fn wake(&self) {
        self.net_wake.notify_one();
    }
}
