//! Who waits for which payment or refund: linked lists in one pool. Leader only.

use super::input::Waiter;
use super::order::NONE;

#[derive(Clone, Copy)]
struct Node {
    waiter: Waiter,
    next: u32,
}

/// The pool.
#[derive(Default)]
pub(super) struct Waiters {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Puts a waiter in front of the list at `head`, unless it has `max`.
    pub(super) fn attach(&mut self, head: &mut u32, waiter: Waiter, max: u8) -> bool {
        if self.count(*head) >= usize::from(max) {
            return false;
        }
        let node = Node { waiter, next: *head };
        *head = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        true
    }

    fn count(&self, mut head: u32) -> usize {
        let mut count = 0;
        while head != NONE {
            count += 1;
            head = self.nodes[head as usize].next;
        }
        count
    }

    /// Takes the first waiter of a list.
    pub(super) fn pop(&mut self, head: &mut u32) -> Option<Waiter> {
        if *head == NONE {
            return None;
        }
        let at = *head;
        let node = self.nodes[at as usize];
        *head = node.next;
        self.free.push(at);
        Some(node.waiter)
    }

    /// Forgets all, keeping the memory.
    pub(super) fn clear(&mut self) {
        self.nodes.clear();
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_bounded_and_places_are_used_again() {
        let waiter = |correlation| Waiter { correlation, ..Waiter::default() };
        let mut pool = Waiters::default();
        let mut head = NONE;
        assert!(pool.attach(&mut head, waiter(1), 2));
        assert!(pool.attach(&mut head, waiter(2), 2));
        assert!(!pool.attach(&mut head, waiter(3), 2));
        assert_eq!(pool.pop(&mut head).map(|waiter| waiter.correlation), Some(2));
        assert!(pool.attach(&mut head, waiter(4), 2));
        assert_eq!(pool.pop(&mut head).map(|waiter| waiter.correlation), Some(4));
        assert_eq!(pool.pop(&mut head).map(|waiter| waiter.correlation), Some(1));
        assert!(pool.pop(&mut head).is_none());
        assert_eq!((pool.len(), pool.nodes.len()), (0, 2));
    }
}
