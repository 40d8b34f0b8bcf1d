//! Reading on a thread of its own, a few batches ahead of what is done with it.
//!
//! Bounded: the reader waits when it is too far ahead. Order is kept. Tested on
//! order and on failures.

use crate::exit::Failure;
use std::sync::mpsc::sync_channel;

/// Items of a batch.
const BATCH: usize = 1_024;
/// Batches that wait at most.
const AHEAD: usize = 8;

/// Runs `produce`, which hands over items, beside `consume`, which takes them in
/// batches, in order.
pub(super) fn ahead<T: Send>(
    produce: impl FnOnce(&mut dyn FnMut(T)) -> Result<(), Failure> + Send,
    mut consume: impl FnMut(&[T]),
) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Vec<T>>(AHEAD);
        let producer = scope.spawn(move || {
            let mut batch = Vec::with_capacity(BATCH);
            let produced = produce(&mut |item| {
                batch.push(item);
                if batch.len() == BATCH {
                    // Nobody takes it only when the other side has ended for good.
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
                    drop(sender.send(full));
                }
            });
            drop(sender.send(batch));
            produced
        });
        receiver.iter().for_each(|batch| consume(&batch));
        let ended = producer.join();
        ended.unwrap_or_else(|_| Err(Failure::environment("a reading thread has ended")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_in_order() {
        let count = (BATCH * (AHEAD + 3) + 7) as u64;
        let mut taken = Vec::new();
        ahead(
            |push| {
                (0..count).for_each(push);
                Ok(())
            },
            |batch| taken.extend_from_slice(batch),
        )
        .unwrap();
        assert!(taken.into_iter().eq(0..count));
    }

    #[test]
    fn a_failure_comes_through_after_what_was_read_before_it() {
        let mut taken = 0;
        let failed = ahead(
            |push| {
                push(1);
                Err(Failure::environment("torn"))
            },
            |batch: &[u64]| taken += batch.len(),
        );
        assert_eq!((failed.unwrap_err().message.as_str(), taken), ("torn", 1));
    }
}
