//! Handshakes under way: how many there may be, in total and from one address.
//!
//! Whoever can send packets can begin a handshake, without any certificate. So one host
//! gets a quarter of them at most, and has to prove its address early enough that
//! somebody who only pretends to have it cannot use up its share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

/// What becomes of a connection that begins.
pub enum Admission {
    /// The handshake goes on.
    Taken(Handshake),
    /// Its address must be proven first (Retry).
    Unproven,
    /// Too many are under way.
    Refused,
}

/// See the module.
pub struct Handshakes {
    max: u32,
    total: Cell<u32>,
    /// At most `max` entries.
    by_host: RefCell<HashMap<IpAddr, u32>>,
}

impl Handshakes {
    /// At most `max` at a time.
    pub fn new(max: u32) -> Rc<Self> {
        Rc::new(Self { max, total: Cell::new(0), by_host: RefCell::default() })
    }

    /// How many are under way.
    pub fn total(&self) -> u32 {
        self.total.get()
    }

    /// Judges one more from an address; `proven`: it receives what is sent there.
    pub fn admit(self: &Rc<Self>, address: IpAddr, proven: bool) -> Admission {
        let (host, share) = (host(address), (self.max / 4).max(1));
        let mut by_host = self.by_host.borrow_mut();
        let (total, own) = (self.total.get(), by_host.get(&host).copied().unwrap_or(0));
        if total >= self.max || own >= share {
            return Admission::Refused;
        }
        // From half of a budget on, whoever takes of it must be who it says.
        if !proven && (total >= self.max.div_ceil(2) || own >= share.div_ceil(2)) {
            return Admission::Unproven;
        }
        self.total.set(total + 1);
        by_host.insert(host, own + 1);
        Admission::Taken(Handshake { of: Rc::clone(self), host })
    }
}

/// One handshake; it counts for as long as this lives.
pub struct Handshake {
    of: Rc<Handshakes>,
    host: IpAddr,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.of.total.set(self.of.total.get().saturating_sub(1));
        let mut by_host = self.of.by_host.borrow_mut();
        match by_host.get_mut(&self.host) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(by_host.remove(&self.host)),
        }
    }
}

/// What one host can choose freely does not count: of IPv6 addresses the last 64 bits.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(handshakes: &Rc<Handshakes>, address: &str, proven: bool) -> Option<Handshake> {
        match handshakes.admit(address.parse().unwrap(), proven) {
            Admission::Taken(handshake) => Some(handshake),
            Admission::Unproven | Admission::Refused => None,
        }
    }

    #[test]
    fn one_host_has_a_quarter_and_the_others_the_rest() {
        let handshakes = Handshakes::new(64);
        let mut stalled: Vec<_> =
            (0..64).filter_map(|_| admit(&handshakes, "10.0.0.2", true)).collect();
        assert_eq!((stalled.len(), handshakes.total()), (16, 16));
        let mapped = handshakes.admit("::ffff:10.0.0.2".parse().unwrap(), true);
        assert!(matches!(mapped, Admission::Refused), "the same host");
        assert!(admit(&handshakes, "10.0.0.1", true).is_some(), "another one");
        assert_eq!(handshakes.total(), 16, "it has ended");
        stalled.pop();
        stalled.push(admit(&handshakes, "10.0.0.2", true).unwrap());
        // A host chooses the last half of its address.
        for address in 0..64 {
            stalled.extend(admit(&handshakes, &format!("2001:db8::{address:x}"), true));
        }
        assert_eq!(handshakes.total(), 32);
        for host in 3..9 {
            for _ in 0..16 {
                stalled.extend(admit(&handshakes, &format!("10.0.0.{host}"), true));
            }
        }
        assert_eq!((stalled.len(), handshakes.total()), (64, 64), "all of them");
        assert!(admit(&handshakes, "10.0.0.99", true).is_none());
        stalled.clear();
        assert_eq!(handshakes.total(), 0);
        assert!(handshakes.by_host.borrow().is_empty(), "hosts are forgotten");
    }

    #[test]
    fn who_pretends_an_address_uses_up_neither_its_share_nor_the_budget() {
        let handshakes = Handshakes::new(64);
        let mut pretended: Vec<_> =
            (0..64).filter_map(|_| admit(&handshakes, "10.0.0.1", false)).collect();
        assert_eq!(pretended.len(), 8);
        let unproven = handshakes.admit("10.0.0.1".parse().unwrap(), false);
        assert!(matches!(unproven, Admission::Unproven));
        assert!(admit(&handshakes, "10.0.0.1", true).is_some(), "the host itself");
        for host in 2..200 {
            pretended.extend(admit(&handshakes, &format!("10.0.0.{host}"), false));
        }
        assert_eq!(pretended.len(), 32);
        assert!(admit(&handshakes, "10.0.0.200", true).is_some());
    }

    #[test]
    fn the_smallest_budget_still_lets_somebody_in() {
        for max in 1..=5 {
            let handshakes = Handshakes::new(max);
            let first = admit(&handshakes, "10.0.0.1", false);
            assert!(first.is_some(), "{max}");
        }
    }
}
