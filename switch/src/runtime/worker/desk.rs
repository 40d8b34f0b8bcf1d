//! Work that waits for the disk, beside the worker: orders go in, results come
//! out, both bounded. A thread carries them out; in the simulation the harness
//! does, one at a time and whenever the seed says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread;

use crossbeam::queue::ArrayQueue;

use crate::runtime::inbox::Exchange;

/// What an order is carried out by.
pub(super) trait Labour {
    /// Something to be done.
    type Order;
    /// What came of it.
    type Done;
    /// Does it.
    fn carry_out(&mut self, order: Self::Order) -> Option<Self::Done>;
}

/// Why an order was not taken.
#[derive(Debug)]
pub(super) enum NotTaken<O> {
    /// Too many wait: here it is, to be offered again.
    Full(O),
    /// Nobody carries anything out any more.
    Ended,
}

enum Way<L: Labour> {
    Thread(SyncSender<L::Order>),
    #[cfg_attr(not(test), expect(dead_code, reason = "simulations only"))]
    Here {
        labour: L,
        waiting: VecDeque<L::Order>,
        room: usize,
    },
}

/// Where orders are handed in and results taken out.
pub(super) struct Desk<L: Labour> {
    way: Way<L>,
    done: Arc<ArrayQueue<L::Done>>,
}

impl<L> Desk<L>
where
    L: Labour + Send + 'static,
    L::Order: Send,
    L::Done: Send,
{
    /// Starts a thread that ends with the desk. At most `room` orders wait.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn thread(
        name: &str,
        mut labour: L,
        room: usize,
        exchange: &Arc<Exchange>,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::sync_channel(room);
        // Those that wait, the one under way, and one to spare.
        let done = Arc::new(ArrayQueue::new(room + 2));
        let (results, exchange) = (Arc::clone(&done), Arc::clone(exchange));
        thread::Builder::new().name(name.into()).spawn(move || {
            while let Ok(order) = inbox.recv() {
                let mut result = labour.carry_out(order);
                // The worker takes results before it hands in more: there is room
                // soon, unless the worker has ended.
                while let Some(waits) = result.take() {
                    result = results.push(waits).err();
                    exchange.wake();
                    if result.is_some() {
                        thread::sleep(std::time::Duration::from_millis(1));
                        if Arc::strong_count(&results) == 1 {
                            return;
                        }
                    }
                }
                // There is room in the queue, or a result to be taken.
                exchange.wake();
            }
        })?;
        Ok(Self { way: Way::Thread(orders), done })
    }
}

impl<L: Labour> Desk<L> {
    /// Somebody has to call [`Self::work`].
    #[cfg(test)]
    pub(super) fn here(labour: L, room: usize) -> Self {
        let done = Arc::new(ArrayQueue::new(room + 2));
        Self { way: Way::Here { labour, waiting: VecDeque::new(), room }, done }
    }

    /// Hands an order in. Never waits.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub(super) fn offer(&mut self, order: L::Order) -> Result<(), NotTaken<L::Order>> {
        match &mut self.way {
            Way::Thread(orders) => orders.try_send(order).map_err(|error| match error {
                TrySendError::Full(order) => NotTaken::Full(order),
                TrySendError::Disconnected(_) => NotTaken::Ended,
            }),
            Way::Here { waiting, room, .. } if waiting.len() >= *room => Err(NotTaken::Full(order)),
            Way::Here { waiting, .. } => {
                waiting.push_back(order);
                Ok(())
            }
        }
    }

    /// The next result.
    pub(super) fn take(&mut self) -> Option<L::Done> {
        self.done.pop()
    }

    /// Carries one order out; `false` when none waits.
    #[cfg(test)]
    pub(super) fn work(&mut self) -> bool {
        let Way::Here { labour, waiting, .. } = &mut self.way else { return false };
        let Some(order) = waiting.pop_front() else { return false };
        if let Some(done) = labour.carry_out(order) {
            assert!(self.done.push(done).is_ok(), "results are taken every turn");
        }
        true
    }

    /// Whether an order waits to be carried out by [`Self::work`].
    #[cfg(test)]
    pub(super) fn waits(&self) -> bool {
        matches!(&self.way, Way::Here { waiting, .. } if !waiting.is_empty())
    }
}
