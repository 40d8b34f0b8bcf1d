//! From the file's units to the engine's: microseconds and parsed ids.

use super::{ChannelSection, Config, RouteSection};
use crate::engine::config::{ChannelConfig, EngineConfig, RouteRule};
use crate::runtime::HOLD_US;
use protocol::code::Method;
use protocol::id::{MchId, ShortText};
use protocol::money::Currency;

const MS: u64 = 1_000;
const HOUR: u64 = 3_600_000_000;

impl Config {
    /// The settings of `shard`'s engine.
    pub fn engine(&self, shard: u16) -> EngineConfig {
        let engine = &self.engine;
        EngineConfig {
            shard,
            sync_wait_us: engine.sync_wait_ms * MS,
            orders_max: engine.orders_max_per_shard,
            waiters_per_order_max: engine.waiters_per_order_max,
            refunds_per_order_max: engine.refunds_per_order_max,
            refund_window_us: engine.refund_window_h * HOUR,
            reverse_window_us: engine.reverse_window_h * HOUR,
            expire_max_us: engine.expire_max_h * HOUR,
            outbox_max: engine.outbox_max_per_shard as usize,
            event_retry_us: engine.event_retry_ms * MS,
            event_tries_max: engine.event_tries_max,
            gateways: self
                .gateways
                .iter()
                .map(|gateway| ShortText::new(gateway.name.as_bytes()).unwrap_or_default())
                .collect(),
            channels: self.channels.iter().map(|section| self.channel(section)).collect(),
            routes: self.routes.iter().map(route).collect(),
            default_route: self.default_route.clone(),
        }
    }

    fn channel(&self, section: &ChannelSection) -> ChannelConfig {
        // A leader that was replaced without knowing may send for so long, a request may
        // wait on its way to the link, and then for the link's writer.
        let lease_us = if self.sites.len() > 1 { self.timing().lease_us() } else { 0 };
        let own_us = lease_us + HOLD_US + section.link_idle_ms() * MS;
        let life_us = section.max_msg_life_ms * MS;
        ChannelConfig {
            number: section.number,
            name: section.name.clone(),
            idempotent_pay: section.idempotent_pay,
            queryable: section.queryable,
            reversible: section.reversible,
            fence_on_cancel: section.fence_on_cancel,
            max_msg_life_us: if life_us == 0 { 0 } else { life_us + own_us },
            reply_timeout_us: section.reply_timeout_ms * MS,
            first_query_after_us: section.first_query_after_ms * MS,
            query_plan_us: section.query_plan_ms.iter().map(|delay| delay * MS).collect(),
            reverse_after_us: section.reverse_after_ms * MS,
            in_doubt_alarm_us: section.in_doubt_alarm_ms * MS,
            manual_after_us: section.manual_after_ms * MS,
            in_flight_max: section.in_flight_max,
            resolver_per_second: section.resolver_per_second,
        }
    }
}

/// `check` has refused names that are not in the tables: nothing is dropped here.
fn route(section: &RouteSection) -> RouteRule {
    RouteRule {
        methods: section.methods.iter().filter_map(|name| method(name)).collect(),
        currencies: section.currencies.iter().filter_map(|code| currency(code)).collect(),
        amount_min: section.amount_min,
        amount_max: section.amount_max,
        merchants: section
            .merchants
            .iter()
            .filter_map(|id| MchId::parse(id.as_bytes()).ok())
            .collect(),
        channels: section.channels.clone(),
    }
}

pub(super) fn method(name: &str) -> Option<Method> {
    Method::ALL.iter().copied().find(|method| method.name() == name)
}

pub(super) fn currency(code: &str) -> Option<Currency> {
    Currency::new(code.as_bytes().try_into().ok()?)
}
