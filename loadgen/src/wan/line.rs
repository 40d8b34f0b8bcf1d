//! The delay line: packets that are on their way, each sent when it is due.
//!
//! A thread of its own, because the runtime's timers are up to a millisecond
//! late. Bounded in bytes: what exceeds it is lost, as in a network. Tested
//! through the relay.

use super::udp::{Packet, Port};
use crate::exit::Failure;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering as Order};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const BYTES_MAX: usize = 64 << 20;
/// Without work the thread looks whether it is still wanted this often.
const IDLE: Duration = Duration::from_millis(200);

struct Held {
    due: Instant,
    order: u64,
    port: Arc<Port>,
    packet: Packet,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    /// The next to be sent is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

#[derive(Default)]
struct Queue {
    held: BinaryHeap<Held>,
    bytes: usize,
    order: u64,
}

/// The line.
#[derive(Default)]
pub(super) struct Line {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Packets that found no room, here or in the kernel.
    dropped: AtomicU64,
}

impl Line {
    /// A line whose thread ends when it is dropped.
    pub(super) fn start() -> Result<Arc<Self>, Failure> {
        let line = Arc::new(Self::default());
        let weak = Arc::downgrade(&line);
        let work = move || {
            while let Some(line) = weak.upgrade() {
                line.turn();
            }
        };
        let spawned = std::thread::Builder::new().name("wan-delay".to_owned()).spawn(work);
        spawned.map_err(|error| {
            Failure::environment(format_args!("cannot start a thread: {error}"))
        })?;
        Ok(line)
    }

    /// Sends a packet now.
    pub(super) fn send(&self, port: &Port, packet: &Packet) {
        self.dropped.fetch_add(port.send(packet), Order::Relaxed);
    }

    /// Packets that found no room so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Order::Relaxed)
    }

    /// Holds a packet until it is due. When the line is full it is lost, as in a network.
    pub(super) fn hold(&self, due: Instant, port: &Arc<Port>, packet: Packet) {
        let mut queue = self.lock();
        if queue.bytes + packet.bytes.len() > BYTES_MAX {
            drop(queue);
            self.dropped.fetch_add(packet.count(), Order::Relaxed);
            return;
        }
        queue.bytes += packet.bytes.len();
        queue.order += 1;
        let (order, port) = (queue.order, Arc::clone(port));
        queue.held.push(Held { due, order, port, packet });
        drop(queue);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements that could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is due, or waits for it.
    fn turn(&self) {
        let mut queue = self.lock();
        let wait = match queue.held.peek() {
            None => IDLE,
            Some(next) => next.due.saturating_duration_since(Instant::now()),
        };
        if !wait.is_zero() {
            drop(self.changed.wait_timeout(queue, wait.min(IDLE)));
            return;
        }
        let Some(held) = queue.held.pop() else { return };
        queue.bytes -= held.packet.bytes.len();
        drop(queue);
        self.send(&held.port, &held.packet);
    }
}
