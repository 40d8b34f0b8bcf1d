//! The engine's settings: resolved and checked by `runtime::config`, the same
//! on every replica of a shard.

use protocol::code::Method;
use protocol::id::ShortText;

/// Settings of one engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This shard.
    pub shard: u16,
    /// Longest a pay, close, reverse or refund waits before the early answer
    /// PROCESSING, microseconds.
    pub sync_wait_us: u64,
    /// Most payments held; above it pays are refused with CAPACITY_REACHED.
    pub orders_max: u64,
    /// Most waiters attached to one order.
    pub waiters_per_order_max: u8,
    /// Most refunds of one payment.
    pub refunds_per_order_max: u8,
    /// How long after payment refunds are accepted, microseconds.
    pub refund_window_us: u64,
    /// How long after payment a reverse is accepted, microseconds.
    pub reverse_window_us: u64,
    /// Longest allowed distance of `time_expire`, microseconds (7 days).
    pub expire_max_us: u64,
    /// Undelivered events held; above it pays with notify are shed.
    pub outbox_max: usize,
    /// Time after which an unacknowledged event is delivered again, microseconds.
    pub event_retry_us: u64,
    /// Deliveries before an event is dead-lettered.
    pub event_tries_max: u8,
    /// Names of the gateways, indexed by `Origin::gateway` - 1: merchants name
    /// the gateways that get their events.
    pub gateways: Vec<ShortText>,
    /// Channels, indexed by number - 1.
    pub channels: Vec<ChannelConfig>,
    /// Ordered rules; the first that matches gives the ordered channel list.
    pub routes: Vec<RouteRule>,
    /// Channels tried when no rule matches; never empty.
    pub default_route: Vec<u16>,
}

/// A channel's contract and budgets (docs/STATES.md, C11).
#[derive(Clone, Debug)]
pub struct ChannelConfig {
    /// Number, from 1; part of the log.
    pub number: u16,
    /// Name for people.
    pub name: String,
    /// A repeated charge with the same number does not charge twice.
    pub idempotent_pay: bool,
    /// Charges can be queried.
    pub queryable: bool,
    /// Charges can be reversed.
    pub reversible: bool,
    /// After a confirmed reversal the number can never be charged.
    pub fence_on_cancel: bool,
    /// Longest time a request may wander before the channel acts on it,
    /// microseconds; 0: the channel guarantees nothing.
    pub max_msg_life_us: u64,
    /// Time to wait for a reply, microseconds.
    pub reply_timeout_us: u64,
    /// First query after the time-out, microseconds.
    pub first_query_after_us: u64,
    /// Delays between queries, microseconds; the last repeats.
    pub query_plan_us: Vec<u64>,
    /// In-doubt attempts are reversed after this, microseconds; 0: only at expiry.
    pub reverse_after_us: u64,
    /// Alarm after this time in doubt, microseconds.
    pub in_doubt_alarm_us: u64,
    /// Handed to an operator after this time in doubt, microseconds.
    pub manual_after_us: u64,
    /// Most operations without answer on this channel, per shard.
    pub in_flight_max: u32,
    /// Resolver operations per second and shard (the channel's query budget).
    pub resolver_per_second: u32,
}

/// One routing rule. An empty or zero field matches everything.
#[derive(Clone, Debug, Default)]
pub struct RouteRule {
    /// Methods.
    pub methods: Vec<Method>,
    /// Currencies.
    pub currencies: Vec<protocol::money::Currency>,
    /// Smallest amount, minor units.
    pub amount_min: i64,
    /// Largest amount, minor units; 0: no bound.
    pub amount_max: i64,
    /// Merchants.
    pub merchants: Vec<protocol::id::MchId>,
    /// Channels in order of preference.
    pub channels: Vec<u16>,
}
