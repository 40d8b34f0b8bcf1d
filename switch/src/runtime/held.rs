//! Requests to channels that wait until their leader may send again.
//!
//! On a machine that is short of time a lease ends for a moment although nobody
//! else leads. What the engine has let go then waits here, in order, instead of
//! failing payments. It goes when the lease is there again, is forgotten when
//! the term is over (whoever leads then asks the channel first), and counts as
//! not sent [`HOLD_US`] after it was let go, wherever it has waited: what the
//! engine concludes from silence counts from then.

use std::collections::VecDeque;

use super::mesh::Mesh;
use crate::engine::output::Send;

/// Longest wait, microseconds. It is added to the time for which a request may
/// wander on its way to the channel.
pub const HOLD_US: u64 = 500_000;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It may leave.
    Sent,
    /// It never leaves, and this site still leads.
    TooLate,
    /// It never leaves, and is another term's affair.
    Forgotten,
}

/// See the module. Bounded by what the engines leave unanswered per channel.
#[derive(Default)]
pub struct Held {
    queue: VecDeque<Send>,
    /// Shards whose requests wait on, while looking.
    waits: Vec<u16>,
}

impl Held {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes a request in, behind those that wait.
    pub fn push(&mut self, send: &Send) {
        self.queue.push_back(*send);
    }

    /// Says what becomes of those that need not wait on. Requests of a shard
    /// keep their order.
    pub fn settle(&mut self, mesh: &Mesh, now_us: u64, mut each: impl FnMut(&Send, Fate)) {
        let waits = &mut self.waits;
        waits.clear();
        self.queue.retain(|send| {
            let shard = send.operation.shard;
            if waits.contains(&shard) {
                return true;
            }
            match fate(send, mesh, now_us) {
                Some(Fate::Forgotten) => false,
                Some(fate) => {
                    each(send, fate);
                    false
                }
                None => {
                    waits.push(shard);
                    true
                }
            }
        });
    }
}

/// What becomes of a request now; `None`: it waits.
pub fn fate(send: &Send, mesh: &Mesh, now_us: u64) -> Option<Fate> {
    let shard = send.operation.shard;
    if mesh.leader_of(shard) != (send.term, mesh.site()) {
        Some(Fate::Forgotten)
    } else if now_us.saturating_sub(send.since_us) > HOLD_US {
        Some(Fate::TooLate)
    } else {
        mesh.may_send(shard, now_us).then_some(Fate::Sent)
    }
}

#[cfg(test)]
mod tests {
    use protocol::channel::{ChannelRequest, charge_number, kind};
    use protocol::money::{Amount, Currency};

    use super::*;
    use crate::engine::input::{Operation, OperationId};

    fn send(shard: u16, sequence: u64, since_us: u64) -> Send {
        let operation = OperationId { shard, sequence, operation: Operation::Charge, ordinal: 1 };
        let request = ChannelRequest {
            kind: kind::CHARGE,
            charge_no: charge_number(&[7; 16], 1),
            refund_no: None,
            amount: Amount::new(100).unwrap(),
            currency: Currency::new(*b"CNY").unwrap(),
            time_expire_ms: 0,
        };
        Send { channel: 1, operation, term: 5, since_us, request }
    }

    fn settled(held: &mut Held, mesh: &Mesh, now_us: u64) -> Vec<(u64, Fate)> {
        let mut seen = Vec::new();
        held.settle(mesh, now_us, |send, fate| seen.push((send.operation.sequence, fate)));
        seen
    }

    #[test]
    fn requests_wait_for_the_lease_in_order_and_not_for_other_shards() {
        let mesh = Mesh::new(1, 3, 4);
        mesh.publish_leader(0, 5, 1);
        mesh.publish_leader(1, 5, 1);
        let mut held = Held::default();
        for (shard, sequence) in [(0, 1), (1, 2), (0, 3)] {
            held.push(&send(shard, sequence, 1_000));
        }
        assert_eq!(settled(&mut held, &mesh, 1_000), []);
        mesh.publish_lease(1, 5_000);
        assert_eq!(settled(&mut held, &mesh, 2_000), [(2, Fate::Sent)]);
        mesh.publish_lease(0, 5_000);
        assert_eq!(settled(&mut held, &mesh, 3_000), [(1, Fate::Sent), (3, Fate::Sent)]);
        assert!(held.is_empty());
    }

    #[test]
    fn what_waited_too_long_counts_as_not_sent_and_what_is_of_another_term_is_forgotten() {
        let mesh = Mesh::new(1, 3, 4);
        let mut held = Held::default();
        for shard in 0..3 {
            mesh.publish_leader(shard, 5, 1);
            held.push(&send(shard, u64::from(shard), 0));
        }
        // Elsewhere; here again, but in another term; still here.
        mesh.publish_leader(0, 6, 2);
        mesh.publish_leader(1, 7, 1);
        mesh.publish_lease(1, u64::MAX);
        assert_eq!(settled(&mut held, &mesh, HOLD_US), []);
        assert_eq!(settled(&mut held, &mesh, HOLD_US + 1), [(2, Fate::TooLate)]);
        assert!(held.is_empty());
        // However long it was under way before it came here.
        mesh.publish_lease(2, u64::MAX);
        assert_eq!(fate(&send(2, 9, 0), &mesh, HOLD_US + 1), Some(Fate::TooLate));
        assert_eq!(fate(&send(2, 9, 1), &mesh, HOLD_US + 1), Some(Fate::Sent));
    }
}
