//! Deciding on a pay: duplicate, merchant, limits, route. A refusal leaves no
//! record and takes nothing from any limit.

use protocol::code::{Code, OrderState, Reason};
use protocol::id::ShortText;

use super::Engine;
use super::config::RouteRule;
use super::input::{Now, OrderInput, PayInput};
use super::merchant::MerchantStatus;
use super::order::{ATTEMPTS_MAX, Attempt, Order, Volatile};
use super::output::Outputs;
use super::record::{Begin, Record};

/// When a client should ask again for a channel that is down or full.
const CHANNEL_RETRY_MS: u32 = 1_000;

impl Engine {
    pub(super) fn pay(&mut self, pay: &PayInput<'_>, now: Now, out: &mut Outputs) {
        let waiter = pay.origin.waiter;
        if self.leading.is_none() {
            return self.refuse(waiter, Code::NoLeader, 50, out);
        }
        let Some(&merchant) = self.merchant_ids.get(&pay.origin.mch_id) else {
            return self.refuse(waiter, Code::UnknownMerchant, 0, out);
        };
        if let Some(at) = self.find(&pay.digest, merchant, &pay.out_trade_no) {
            return self.pay_again(at, pay, now, out);
        }
        match self.admit(merchant, pay, now) {
            Ok(channel) => self.begin(merchant, channel, pay, now, out),
            Err((code, retry_after_ms)) => self.refuse(waiter, code, retry_after_ms, out),
        }
    }

    /// The same key again: stored outcome, a place among the waiting, or a conflict.
    fn pay_again(&mut self, at: u32, pay: &PayInput<'_>, now: Now, out: &mut Outputs) {
        let waiter = pay.origin.waiter;
        let Some(order) = self.order(at) else { return };
        if order.fingerprint != pay.fingerprint {
            return self.refuse(waiter, Code::IdempotencyConflict, 0, out);
        }
        if !order.state.is_final() {
            return self.wait_for_order(at, &pay.origin, now, out);
        }
        if let Some(reply) = self.order_reply(at, &waiter, true) {
            self.say(waiter, reply, out);
        }
    }

    fn admit(&self, merchant: u32, pay: &PayInput<'_>, now: Now) -> Result<u16, (Code, u32)> {
        let refuse = |code| Err((code, 0));
        let expire_us = pay.time_expire_ms.saturating_mul(1000);
        if expire_us <= now.wall_us {
            return refuse(Code::Expired);
        }
        if expire_us - now.wall_us > self.config.expire_max_us {
            return refuse(Code::InvalidField);
        }
        let state = self.merchant(merchant).ok_or((Code::UnknownMerchant, 0))?;
        let limits = &state.merchant.limits;
        let amount = pay.amount.minor();
        let single_max = match state.merchant.status {
            MerchantStatus::Active => limits.single_max,
            MerchantStatus::Limited => limits.single_max / 2,
            MerchantStatus::Suspended | MerchantStatus::Dormant => {
                return refuse(Code::MerchantNotActive);
            }
        };
        if limits.single_max > 0 && amount > single_max {
            return refuse(Code::SingleLimitExceeded);
        }
        let second_from = limits.second_signature_from;
        if second_from > 0 && amount >= second_from && !pay.second_signature {
            return refuse(Code::SecondSignatureRequired);
        }
        if self.orders.len() as u64 >= self.config.orders_max {
            return refuse(Code::CapacityReached);
        }
        if pay.notify && self.outbox.len() >= self.config.outbox_max {
            return Err((Code::Overloaded, CHANNEL_RETRY_MS));
        }
        let channel = self.route(pay)?;
        state
            .ahead
            .pay
            .check(now.wall_us, limits.pay_per_minute, limits.burst)
            .map_err(|wait| (Code::RateLimited, wait))?;
        state
            .ahead
            .check_cap(now.wall_us, limits, amount)
            .map_err(|wait| (Code::DailyCapExceeded, wait))?;
        Ok(channel)
    }

    /// The channels for a payment, in order of preference.
    pub(super) fn route_list(
        &self,
        method: protocol::code::Method,
        currency: protocol::money::Currency,
        amount: i64,
        mch_id: &protocol::id::MchId,
    ) -> &[u16] {
        let matches = |rule: &&RouteRule| {
            (rule.methods.is_empty() || rule.methods.contains(&method))
                && (rule.currencies.is_empty() || rule.currencies.contains(&currency))
                && amount >= rule.amount_min
                && (rule.amount_max == 0 || amount <= rule.amount_max)
                && (rule.merchants.is_empty() || rule.merchants.contains(mch_id))
        };
        let rule = self.config.routes.iter().find(matches);
        rule.map_or(&self.config.default_route, |rule| &rule.channels)
    }

    fn route(&self, pay: &PayInput<'_>) -> Result<u16, (Code, u32)> {
        let amount = pay.amount.minor();
        let list = self.route_list(pay.method, pay.currency, amount, &pay.origin.mch_id);
        if list.is_empty() {
            return Err((Code::NoRoute, 0));
        }
        list.iter()
            .copied()
            .find(|channel| self.can_take(*channel))
            .ok_or((Code::ChannelUnavailable, CHANNEL_RETRY_MS))
    }

    /// Places the payment and proposes its BEGIN.
    fn begin(
        &mut self,
        merchant: u32,
        channel: u16,
        pay: &PayInput<'_>,
        now: Now,
        out: &mut Outputs,
    ) {
        let at = self.orders.len() as u32;
        let begin = Begin {
            sequence: u64::from(at) + 1,
            channel,
            amount: pay.amount,
            currency: pay.currency,
            method: pay.method,
            scene: pay.scene,
            notify: pay.notify,
            time_expire_ms: pay.time_expire_ms,
            fingerprint: pay.fingerprint,
            digest: pay.digest,
            mch_id: pay.origin.mch_id,
            out_trade_no: pay.out_trade_no,
            content: pay.content,
        };
        if let Some(state) = self.merchants.get_mut(merchant as usize) {
            let limits = state.merchant.limits;
            state.ahead.take_pay(now.wall_us, &limits, pay.amount.minor());
        }
        let mut order = new_order(&begin, merchant, now.wall_us);
        order.volatile.proposed = true;
        self.orders.push(order);
        self.index.insert(&pay.digest, at);
        // The slot in the channel is taken now, so that a batch cannot overfill it.
        self.take_slot(channel);
        self.wait_for_order(at, &pay.origin, now, out);
        self.propose(&Record::Begin(begin), now, out);
    }

    pub(super) fn query(&mut self, query: &OrderInput, now: Now, out: &mut Outputs) {
        let waiter = query.origin.waiter;
        if self.leading.is_none() {
            return self.refuse(waiter, Code::NoLeader, 50, out);
        }
        let (at, merchant) = match self.named(&query.origin, &query.order, &query.digest) {
            Ok(named) => named,
            Err(code) => return self.refuse(waiter, code, 0, out),
        };
        if let Err(wait) = self.take_query(merchant, now) {
            return self.refuse(waiter, Code::RateLimited, wait, out);
        }
        if query.refresh {
            self.ask_soon(at, now);
        }
        if let Some(reply) = self.order_reply(at, &waiter, false) {
            self.say(waiter, reply, out);
        }
    }

    /// Counts a query against the merchant's rate; not replicated, for it
    /// changes nothing.
    pub(super) fn take_query(&mut self, merchant: u32, now: Now) -> Result<(), u32> {
        let Some(state) = self.merchants.get_mut(merchant as usize) else { return Ok(()) };
        let limits = state.merchant.limits;
        state.ahead.query.check(now.wall_us, limits.query_per_minute, limits.burst)?;
        state.ahead.query.take(now.wall_us, limits.query_per_minute);
        Ok(())
    }
}

/// The payment that a BEGIN makes.
pub(super) fn new_order(begin: &Begin<'_>, merchant: u32, at_us: u64) -> Order {
    let mut channels = [0; ATTEMPTS_MAX];
    channels[0] = begin.channel;
    let mut attempts = [Attempt::Idle; ATTEMPTS_MAX];
    attempts[0] = Attempt::Started;
    Order {
        digest: begin.digest,
        fingerprint: begin.fingerprint,
        amount: begin.amount,
        time_expire_ms: begin.time_expire_ms,
        begun_us: at_us,
        finished_ms: 0,
        refunded: 0,
        reserved: 0,
        merchant,
        refunds: super::order::NONE,
        out_trade_no: begin.out_trade_no,
        channel_ref: ShortText::EMPTY,
        currency: begin.currency,
        state: OrderState::Processing,
        reason: Reason::None,
        method: begin.method,
        attempt: 1,
        attempts,
        channels,
        refund_count: 0,
        events: 0,
        cancelled: false,
        cancel_expired: false,
        notify: begin.notify,
        volatile: Volatile::NEW,
    }
}
