//! From the inbox to the engines: what is shed, what is refused, what is routed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::code::Code;
use storage::disk::Disk;

use super::Worker;
use super::shard::Shard;
use crate::engine::input::{PayInput, Waiter};
use crate::engine::output::Reply;
use crate::engine::weakness::Weakness;
use crate::engine::{Input, Now};
use crate::runtime::inbox::{Batch, Item};

/// Batches taken from the inbox between two looks at the log.
const BATCHES_PER_TURN: usize = 64;
/// Wait advised when the disk is full: the free space is looked at four times a
/// second, and nobody frees some in less, milliseconds.
const STORAGE_RETRY_MS: u32 = 1_000;
/// Items whose memory is asked for at once, ahead of their turn: few enough that
/// what was fetched is still in the cache when it is needed.
const WARM_ITEMS: usize = 16;

impl<D: Disk> Worker<D> {
    /// Feeds waiting batches to the engines; returns how many it took.
    pub(super) fn drain_inbox(&mut self, now: Now) -> usize {
        let exchange = Arc::clone(&self.shared.exchange);
        let mut taken = 0;
        // What cannot be proposed now must not hold up what can.
        let free = self.shards.iter().filter(|shard| !shard.is_held());
        let open: usize = free.map(|shard| shard.out.block.len()).sum();
        let room = open < self.settings.blocks_bytes_max / 2;
        while room && taken < BATCHES_PER_TURN {
            let Some(batch) = exchange.pop() else {
                if taken == 0 {
                    exchange
                        .overloaded
                        .store(self.standing.refuses(0, now.mono_us), Ordering::Relaxed);
                }
                break;
            };
            self.feed(&batch, now);
            exchange.recycle(batch);
            taken += 1;
        }
        taken
    }

    fn feed(&mut self, batch: &Batch, now: Now) {
        let delay_us = now.mono_us.saturating_sub(batch.queued_us);
        self.shared.metrics.queue_delay.record_n(delay_us, batch.items.len() as u64);
        // Where it slept, it waited for the log.
        let waited_us = delay_us.min(now.mono_us.saturating_sub(self.awake_us));
        self.out.times.queued.add(waited_us, batch.items.len() as u64);
        let (block_max, retry_ms) = (self.settings.blocks_bytes_max / 2, self.retry_after_ms());
        let late = self.standing.refuses(delay_us, now.mono_us);
        self.shared.exchange.overloaded.store(late, Ordering::Relaxed);
        let full = self.shared.storage_full.load(Ordering::Relaxed);
        for (at, (shard, item)) in batch.items.iter().enumerate() {
            if at % WARM_ITEMS == 0 {
                self.warm(&batch.items[at..]);
            }
            let full = full && !self.is_known(*shard, item);
            if let Some((waiter, code)) = shed(item, late, full) {
                let retry_ms = match code {
                    Code::StorageFull => STORAGE_RETRY_MS,
                    _ => retry_ms,
                };
                self.out.replies.push(Reply::refusal(waiter, code, retry_ms));
                continue;
            }
            match item {
                Item::Subscribe(..)
                | Item::Unsubscribe(..)
                | Item::ConnectionClosed(_)
                | Item::ChannelUp(..)
                | Item::LinkLost(_) => {
                    for shard in &mut self.shards {
                        handle(shard, item, &batch.arena, now);
                    }
                }
                _ => match (self.shards.get_mut(usize::from(*shard)), item.waiter()) {
                    (Some(shard), Some(waiter)) if shard.is_blocked(block_max) => {
                        shard.out.replies.push(Reply::refusal(waiter, Code::Overloaded, retry_ms));
                    }
                    (Some(shard), _) => route(shard, item, &batch.arena, self.alone, now),
                    (None, _) => debug_assert!(false, "the front knows the number of shards"),
                },
            }
        }
    }

    /// Whether an item is a pay sent again: its answer needs no room.
    fn is_known(&self, shard: u16, item: &Item) -> bool {
        let Item::Pay(pay, _) = item else { return false };
        self.shards.get(usize::from(shard)).is_some_and(|shard| shard.engine.knows(pay))
    }

    /// Touches what the next items will need, so that their cache misses overlap.
    fn warm(&self, items: &[(u16, Item)]) {
        for (shard, item) in items.iter().take(WARM_ITEMS) {
            let Some(shard) = self.shards.get(usize::from(*shard)) else { continue };
            match item {
                Item::Pay(pay, _) => shard.engine.warm_key(&pay.digest),
                Item::Evidence(operation, _) => shard.engine.warm_order(operation.sequence),
                _ => {}
            }
        }
    }

    fn retry_after_ms(&self) -> u32 {
        (self.settings.queue_delay_max_us / 1000).max(1) as u32 * 4
    }
}

/// Whether an item is turned away before it reaches its engine, and with what.
/// Evidence, events and operators' commands are never shed.
fn shed(item: &Item, late: bool, full: bool) -> Option<(Waiter, Code)> {
    let origin = match item {
        Item::Pay(pay, _) if full => return Some((pay.origin.waiter, Code::StorageFull)),
        Item::Refund(refund) if full => return Some((refund.origin.waiter, Code::StorageFull)),
        _ if !late => return None,
        Item::Pay(pay, _) => &pay.origin,
        Item::Query(order) | Item::Close(order) | Item::Reverse(order) => &order.origin,
        Item::Refund(refund) => &refund.origin,
        Item::QueryRefund(query) => &query.origin,
        _ => return None,
    };
    Some((origin.waiter, Code::Overloaded))
}

/// Gives an item to its engine: requests only where it leads, and queries only
/// once it is certain that it still does.
fn route(shard: &mut Shard, item: &Item, arena: &[u8], alone: bool, now: Now) {
    match item.waiter() {
        Some(waiter) if !shard.replica.leads() => return shard.refuse(waiter),
        _ if alone || shard.engine.weakened(Weakness::ReadWithoutBarrier) => {}
        _ => match item {
            Item::Query(query) => return shard.read_later(Item::Query(*query)),
            Item::QueryRefund(query) => return shard.read_later(Item::QueryRefund(*query)),
            _ => {}
        },
    }
    handle(shard, item, arena, now);
}

fn transfer(shard: &mut Shard, ticket: u64, site: u16) {
    let answer = if !shard.replica.leads() {
        Err("this site does not lead the shard".to_owned())
    } else if shard.replica.transfer(u64::from(site)) {
        Ok(format!("shard {} goes to site {site}", shard.replica.shard()))
    } else {
        Err(format!("site {site} cannot take the shard now"))
    };
    shard.out.admin.push((ticket, answer));
}

fn handle(shard: &mut Shard, item: &Item, arena: &[u8], now: Now) {
    let input = match item {
        Item::Pay(pay, content) => {
            let content = arena.get(content.start as usize..content.end as usize).unwrap_or(&[]);
            Input::Pay(PayInput { content, ..*pay })
        }
        Item::Query(order) => Input::Query(*order),
        Item::Close(order) => Input::Close(*order),
        Item::Reverse(order) => Input::Reverse(*order),
        Item::Refund(refund) => Input::Refund(*refund),
        Item::QueryRefund(query) => Input::QueryRefund(*query),
        Item::Evidence(operation, evidence) => {
            Input::Evidence { operation: *operation, evidence: *evidence }
        }
        Item::Subscribe(waiter, gateway) => Input::Subscribe { waiter: *waiter, gateway: *gateway },
        Item::Unsubscribe(connection, stream) => {
            Input::Unsubscribe { connection: *connection, stream: *stream }
        }
        Item::EventAck(event_id, waiter) => {
            Input::EventAck { event_id: *event_id, waiter: *waiter }
        }
        Item::ConnectionClosed(connection) => Input::ConnectionClosed { connection: *connection },
        Item::ChannelUp(channel, up) => Input::ChannelUp { channel: *channel, up: *up },
        Item::LinkLost(channel) => Input::LinkLost { channel: *channel },
        Item::Admin(admin) => Input::Admin((**admin).clone()),
        Item::Transfer(ticket, site) => return transfer(shard, *ticket, *site),
        Item::Reach(reach) => {
            if let Some(reach) = reach.take() {
                reach(&mut shard.replica);
            }
            return;
        }
        Item::Inspect(look) => {
            if let Some(look) = look.take() {
                look(&shard.engine);
            }
            return;
        }
    };
    // Only a committed block can fail to apply.
    let handled = shard.engine.handle(input, now, &mut shard.out);
    debug_assert!(handled.is_ok());
}
