//! One shard that cannot propose, and its neighbours: driven by hand, without
//! faults.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use protocol::code::Code;
use protocol::id::ShortText;

use super::client::{Ask, item};
use super::random::Random;
use super::setup::{SECOND, Setup, Shape};
use super::site::{Process, Site};
use crate::engine::input::{AdminCommand, AdminInput};
use crate::engine::output::ReplyBody;
use crate::runtime::inbox::{Item, Packet};
use crate::runtime::mesh::Traffic;

const STEP_US: u64 = 250;

struct Sites {
    clock: Rc<Cell<u64>>,
    setup: Setup,
    sites: Vec<Site>,
}

impl Sites {
    /// Three sites with payments in shards 0 and 1.
    fn new() -> Self {
        let (setup, mut random) = (0..)
            .map(|seed| {
                let mut random = Random::new(seed);
                (Setup::new(Shape::of(3), &mut random), random)
            })
            .find(|(setup, _)| (0..2).all(|at| setup.keys.iter().any(|key| key.shard == at)))
            .unwrap();
        let clock = Rc::new(Cell::new(0));
        let mut sites: Vec<Site> =
            (1..=3).map(|number| Site::new(number, &setup, &mut random)).collect();
        for site in &mut sites {
            assert!(site.boot(&clock, &setup, 0));
        }
        Self { clock, setup, sites }
    }

    fn process(&mut self, site: usize) -> &mut Process {
        self.sites[site].process.as_mut().unwrap()
    }

    /// One turn of a site; what it sends is dropped.
    fn turn(&mut self, site: usize) {
        self.clock.set(self.clock.get() + STEP_US);
        let now_us = self.clock.get();
        let process = self.process(site);
        process.worker.turn(process.clocks(now_us)).unwrap();
    }

    /// Everybody takes turns, and everything arrives, until it is so.
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        while !done(self) {
            assert!(self.clock.get() < 20 * SECOND, "it never comes");
            for site in 0..3 {
                self.turn(site);
                let shared = std::sync::Arc::clone(&self.process(site).shared);
                for to in shared.mesh.others() {
                    for traffic in [Traffic::Urgent, Traffic::Bulk] {
                        let queue = shared.mesh.route(to).unwrap().queue(traffic);
                        while let Some(packet) = queue.take() {
                            let packet =
                                Packet { from: site as u8 + 1, bytes: Bytes::from(packet) };
                            let to = self.process(usize::from(to) - 1);
                            assert!(to.shared.exchange.push_packet(packet).is_ok());
                        }
                    }
                }
            }
        }
    }

    fn push(&mut self, site: usize, items: Vec<(u16, Item)>) {
        let now_us = self.clock.get();
        assert!(self.process(site).push(now_us, items));
    }

    /// A pay of a shard.
    fn pay(&self, shard: u16, correlation: u64) -> (u16, Item) {
        let key = self.setup.keys.iter().position(|key| key.shard == shard).unwrap();
        (shard, item(key, Ask::Pay { minor: 100 }, correlation, &self.setup))
    }

    /// Records without anybody who waits for them, as evidence is.
    fn records(&self, shard: u16, count: usize) -> Vec<(u16, Item)> {
        let merchant = self.setup.merchants[usize::from(shard)].clone();
        let record = |_| {
            let command =
                AdminCommand::PutMerchant { merchant: merchant.clone(), only_if_absent: false };
            let operator = ShortText::new(b"ops").unwrap();
            (shard, Item::Admin(Box::new(AdminInput { ticket: 1, operator, command })))
        };
        (0..count).map(record).collect()
    }
}

#[test]
fn a_shard_that_cannot_propose_holds_up_no_other() {
    let mut sites = Sites::new();
    let leads =
        |sites: &mut Sites, shard: usize| sites.process(0).worker.shards[shard].replica.leads();
    sites.until(|sites| leads(sites, 0));
    // Hand-overs are tried again: some are refused while the shard changes hands.
    sites.until(|sites| {
        for other in 1..3 {
            sites.process(other).worker.shards[1].replica.transfer(1);
        }
        leads(sites, 0) && leads(sites, 1)
    });
    let ready = vec![(0, Item::ChannelUp(1, true)), (0, Item::ChannelUp(2, true))];
    sites.push(0, ready);
    for shard in 0..2 {
        let merchant = sites.records(shard, 1);
        sites.push(0, merchant);
        let shard = usize::from(shard);
        let last = sites.process(0).worker.shards[shard].replica.last();
        sites.until(|sites| sites.process(0).worker.shards[shard].engine.applied() > last);
    }

    // Shard 0 hands over to a site that does not answer, and gathers more than
    // may be open.
    assert!(sites.process(0).worker.shards[0].replica.transfer(2));
    let many = sites.records(0, 600);
    sites.push(0, many);
    sites.turn(0);
    let worker = &mut sites.process(0).worker;
    assert!(worker.shards[0].is_blocked(worker.settings.blocks_bytes_max / 2));
    while sites.process(0).shared.exchange.pop_out().is_some() {}
    let last = sites.process(0).worker.shards[1].replica.last();
    let pays = vec![sites.pay(0, 7), sites.pay(1, 8)];
    sites.push(0, pays);
    sites.turn(0);
    let process = sites.process(0);
    assert_eq!(process.shared.exchange.waiting(), 0, "the batch waits for the blocked shard");
    let out = process.shared.exchange.pop_out().unwrap();
    let refused: Vec<(u64, Code)> = out
        .replies
        .iter()
        .filter_map(|reply| match &reply.body {
            ReplyBody::Order(body) => Some((reply.waiter.correlation, body.code)),
            ReplyBody::Refund(_) => None,
        })
        .collect();
    assert_eq!(refused, [(7, Code::Overloaded)], "what it gathers is bounded");
    sites.turn(0);
    let shard = &sites.process(0).worker.shards[1];
    assert!(
        shard.replica.last() > last || shard.out.block_records > 0,
        "the other pay is on its way"
    );
}
