//! Whose turn it is: one fault at a time at a site, between the sites and at the channel.
//!
//! A fault that is planned for the moment at which the one before at the same place ends
//! waits until everything is as before there. So nobody undoes another's fault.

use super::action::{Action, Place};
use tokio::sync::{Mutex, MutexGuard};

/// The places of a cluster.
pub(super) struct Turns {
    /// By number, from 1.
    sites: Vec<Mutex<()>>,
    network: Mutex<()>,
    channel: Mutex<()>,
}

/// A fault's turn, until it is dropped.
pub(super) struct Turn<'a> {
    _held: Vec<MutexGuard<'a, ()>>,
}

impl Turns {
    /// Of so many places for sites.
    pub(super) fn new(sites: usize) -> Self {
        let sites = std::iter::repeat_with(Mutex::default).take(sites).collect();
        Self { sites, network: Mutex::default(), channel: Mutex::default() }
    }

    /// Waits for the turn of a fault at a site (0: at none in particular).
    pub(super) async fn take(&self, action: &Action, site: u8) -> Turn<'_> {
        let mut held = Vec::new();
        // Always in this order: nobody waits for somebody who waits for him.
        if action.hits_a_site() {
            held.extend(self.site(site).await);
        }
        match action.place() {
            Some(Place::Network) => held.push(self.network.lock().await),
            Some(Place::Channel) => held.push(self.channel.lock().await),
            Some(Place::Sites) | None => {}
        }
        Turn { _held: held }
    }

    /// Waits for the turn of one site of several.
    pub(super) async fn take_site(&self, site: u8) -> Turn<'_> {
        Turn { _held: self.site(site).await.into_iter().collect() }
    }

    async fn site(&self, site: u8) -> Option<MutexGuard<'_, ()>> {
        let place = usize::from(site).checked_sub(1).and_then(|at| self.sites.get(at))?;
        Some(place.lock().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    /// Whether a turn can be had now.
    fn is_free(turns: &Turns, action: &Action, site: u8) -> bool {
        let mut turn = pin!(turns.take(action, site));
        turn.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn a_place_has_one_fault_at_a_time() {
        let turns = Turns::new(3);
        let channel = Action::Channel(vec!["--duplicate=5%".to_owned()]);
        let isolated = turns.take(&Action::Isolate, 1).await;
        for (action, site, free) in [
            (&Action::Kill, 1, false),
            (&Action::Kill, 2, true),
            (&Action::OneWay, 2, false),
            (&Action::Wan("delay=5ms".to_owned()), 0, false),
            (&channel, 0, true),
            (&Action::Transfers, 0, true),
        ] {
            assert_eq!(is_free(&turns, action, site), free, "{action:?} at {site}");
        }
        drop(isolated);
        assert!(is_free(&turns, &Action::Kill, 1) && is_free(&turns, &Action::OneWay, 2));
        let flapping = turns.take(&Action::Flap, 0).await;
        assert!(!is_free(&turns, &channel, 0));
        drop(flapping);
        assert!(is_free(&turns, &channel, 0));
        let _renewed = turns.take_site(2).await;
        assert!(!is_free(&turns, &Action::Restart, 2));
    }
}
