//! Pay and query: duplicates, merchant, limits, route; then the BEGIN record.
//!
//! A refusal costs no record and leaves the number free. The order in which a
//! request is judged is fixed: a known number first (its outcome must not
//! depend on limits), the rate last (a refused request uses no rate).

use super::Engine;
use super::config::RouteRule;
use super::input::{Now, OrderInput, Origin, PayInput, Waiter};
use super::limit::until_tomorrow_ms;
use super::merchant::MerchantStatus;
use super::order::{Attempt, AttemptState, CancelCause, Class, Live, Order};
use super::output::{Outputs, Reply};
use super::record::{Begin, Record};
use super::slab::NIL;
use super::waiter::Owner;
use super::weakness::Weakness;
use protocol::code::{Code, Method, OrderState, Reason};
use protocol::id::{MchId, ShortText};
use protocol::message::OrderRef;
use protocol::money::Currency;

/// Why a request is refused, and when to come back (milliseconds; 0: it does
/// not help, or nobody knows).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) Code, pub(super) u32);

impl From<Code> for Refused {
    fn from(code: Code) -> Self {
        Self(code, 0)
    }
}

impl Refused {
    /// The refusal as an answer.
    pub(super) fn reply(self, waiter: Waiter) -> Reply {
        Reply::refusal(waiter, self.0, self.1)
    }
}

/// Of something that is not durable yet nothing can be told, and no more askers
/// may wait for it.
pub(super) const TOO_MANY_ASK: Refused = Refused(Code::Overloaded, BUSY_RETRY_MS);

/// Wait advised when a channel or queue is full or down, milliseconds.
const BUSY_RETRY_MS: u32 = 200;

impl Engine {
    pub(super) fn pay(&mut self, pay: &PayInput<'_>, now: Now, out: &mut Outputs) {
        if let Err(refused) = self.try_pay(pay, now, out) {
            out.replies.push(refused.reply(pay.origin.waiter));
        }
    }

    fn try_pay(&mut self, pay: &PayInput<'_>, now: Now, out: &mut Outputs) -> Result<(), Refused> {
        let merchant = self.merchant_of(&pay.origin)?;
        if let Some(sequence) = self.orders.find(&pay.digest, merchant, &pay.out_trade_no) {
            return self.pay_again(sequence, pay, now, out);
        }
        self.judge_expiry(pay, now)?;
        self.judge_merchant(merchant, pay, now)?;
        self.judge_space(pay)?;
        let channel = self.choose_channel(
            pay.method,
            pay.currency,
            pay.amount.minor(),
            &pay.origin.mch_id,
            |_| false,
        )?;
        let entry = self.merchants.at_mut(merchant);
        let limits = entry.limits(now.wall_us);
        entry
            .admitted
            .pay
            .check(now.wall_us, limits.pay_per_minute, limits.burst)
            .map_err(|retry| Refused(Code::RateLimited, retry))?;
        entry.admitted.take_pay(now.wall_us, pay.amount.minor(), &limits);
        self.begin(merchant, channel, pay, now, out);
        Ok(())
    }

    /// The merchant's place, on a leader.
    pub(super) fn merchant_of(&self, origin: &Origin) -> Result<u32, Refused> {
        if self.term.is_none() {
            return Err(Code::NotLeader.into());
        }
        self.merchants.find(&origin.mch_id).ok_or(Code::UnknownMerchant.into())
    }

    /// A number that is known.
    fn pay_again(
        &mut self,
        sequence: u64,
        pay: &PayInput<'_>,
        now: Now,
        out: &mut Outputs,
    ) -> Result<(), Refused> {
        let order = &self.orders[sequence];
        if order.fingerprint != pay.fingerprint {
            return Err(Code::IdempotencyConflict.into());
        }
        let running = order.state == OrderState::Processing;
        let owner = Owner::Order(sequence);
        if running && self.attach(owner, pay.origin.waiter, pay.origin.wait_us, true, now) {
            return Ok(());
        }
        if !self.is_durable(owner) {
            return Err(TOO_MANY_ASK);
        }
        let body = self.order_body(sequence, Code::Ok, true);
        out.replies.push(Reply { waiter: pay.origin.waiter, body });
        Ok(())
    }

    fn judge_expiry(&self, pay: &PayInput<'_>, now: Now) -> Result<(), Refused> {
        let expire_us = pay.time_expire_ms.saturating_mul(1000);
        if expire_us <= now.wall_us {
            return Err(Code::Expired.into());
        }
        if expire_us - now.wall_us > self.config.expire_max_us {
            return Err(Code::InvalidField.into());
        }
        Ok(())
    }

    fn judge_merchant(&self, merchant: u32, pay: &PayInput<'_>, now: Now) -> Result<(), Refused> {
        let entry = self.merchants.at(merchant);
        let limits = entry.limits(now.wall_us);
        let amount = pay.amount.minor();
        let single_max = match entry.merchant.status {
            MerchantStatus::Active => limits.single_max,
            MerchantStatus::Limited if limits.single_max == 0 => 0,
            MerchantStatus::Limited => (limits.single_max / 2).max(1),
            MerchantStatus::Suspended | MerchantStatus::Dormant => {
                return Err(Code::MerchantNotActive.into());
            }
        };
        if single_max > 0 && amount > single_max {
            return Err(Code::SingleLimitExceeded.into());
        }
        let tier = limits.second_signature_from;
        if tier > 0 && amount >= tier && !pay.second_signature {
            return Err(Code::SecondSignatureRequired.into());
        }
        if !entry.admitted.daily.fits(now.wall_us, amount, limits.daily_cap) {
            return Err(Refused(Code::DailyCapExceeded, until_tomorrow_ms(now.wall_us)));
        }
        Ok(())
    }

    fn judge_space(&self, pay: &PayInput<'_>) -> Result<(), Refused> {
        if self.orders.len() > self.config.orders_max {
            return Err(Code::CapacityReached.into());
        }
        if pay.notify && self.outbox.len() >= self.config.outbox_max {
            return Err(Refused(Code::Overloaded, BUSY_RETRY_MS));
        }
        Ok(())
    }

    /// The first channel of the route that takes a request now.
    pub(super) fn choose_channel(
        &self,
        method: Method,
        currency: Currency,
        amount: i64,
        mch_id: &MchId,
        tried: impl Fn(u16) -> bool,
    ) -> Result<u16, Refused> {
        let rule =
            self.config.routes.iter().find(|rule| matches(rule, method, currency, amount, mch_id));
        let route = rule.map_or(&self.config.default_route, |rule| &rule.channels);
        let mut busy = false;
        for &channel in route.iter().filter(|&&channel| !tried(channel)) {
            if self.has_room(channel) {
                return Ok(channel);
            }
            busy |= self.channel(channel).is_some();
        }
        Err(if busy {
            Refused(Code::ChannelUnavailable, BUSY_RETRY_MS)
        } else {
            Code::NoRoute.into()
        })
    }

    /// Takes the order's slot and proposes its BEGIN record.
    fn begin(
        &mut self,
        merchant: u32,
        channel: u16,
        pay: &PayInput<'_>,
        now: Now,
        out: &mut Outputs,
    ) {
        let begin = Begin {
            sequence: self.orders.len(),
            mch_id: pay.origin.mch_id,
            out_trade_no: pay.out_trade_no,
            digest: pay.digest,
            fingerprint: pay.fingerprint,
            amount: pay.amount,
            currency: pay.currency,
            method: pay.method,
            scene: pay.scene,
            channel,
            gateway: pay.origin.gateway,
            time_expire_ms: pay.time_expire_ms,
            payer_hash: pay.payer_hash,
            device_hash: pay.device_hash,
            notify: pay.notify,
            second_signature: pay.second_signature,
            content: pay.content,
        };
        let sequence = self.orders.push(order_of(&begin, merchant));
        self.orders[sequence].live.in_flight = true;
        if let Some(live) = self.live_channel(channel) {
            live.in_flight += 1;
        }
        self.propose(now, &Record::Begin(begin), out);
        self.attach(Owner::Order(sequence), pay.origin.waiter, pay.origin.wait_us, false, now);
        if self.weakened(Weakness::SendBeforeCommitted) {
            self.send_charge(sequence, out);
        }
    }

    pub(super) fn query(&mut self, query: &OrderInput, now: Now, out: &mut Outputs) {
        let waiter = query.origin.waiter;
        let found = self
            .take_query_rate(&query.origin, now)
            .and_then(|merchant| self.find_order(merchant, &query.order, &query.digest));
        match found {
            Ok(sequence) => {
                if query.refresh {
                    self.ask_soon(sequence, now, out);
                }
                let owner = Owner::Order(sequence);
                let reply = if self.is_durable(owner) {
                    Reply { waiter, body: self.order_body(sequence, Code::Ok, false) }
                } else if self.hold(owner, waiter, false, now) {
                    return;
                } else {
                    TOO_MANY_ASK.reply(waiter)
                };
                out.replies.push(reply);
            }
            Err(refused) => out.replies.push(refused.reply(waiter)),
        }
    }

    pub(super) fn take_query_rate(&mut self, origin: &Origin, now: Now) -> Result<u32, Refused> {
        let merchant = self.merchant_of(origin)?;
        let entry = self.merchants.at_mut(merchant);
        let limits = entry.limits(now.wall_us);
        entry
            .query
            .check(now.wall_us, limits.query_per_minute, limits.burst)
            .map_err(|retry| Refused(Code::RateLimited, retry))?;
        entry.query.take(now.wall_us, limits.query_per_minute, limits.burst);
        Ok(merchant)
    }

    /// A merchant's order by either number.
    pub(super) fn find_order(
        &self,
        merchant: u32,
        order: &OrderRef,
        digest: &[u8; 16],
    ) -> Result<u64, Refused> {
        let found = match order {
            OrderRef::OutTradeNo(no) => self.orders.find(digest, merchant, no),
            OrderRef::TransactionId(id) if id.shard() == self.config.shard => self
                .orders
                .get(id.sequence())
                .filter(|order| order.merchant == merchant)
                .map(|_| id.sequence()),
            OrderRef::TransactionId(_) => None,
        };
        found.ok_or(Code::OrderNotFound.into())
    }
}

/// A new order as its BEGIN record says.
pub(super) fn order_of(begin: &Begin<'_>, merchant: u32) -> Order {
    Order {
        digest: begin.digest,
        fingerprint: begin.fingerprint,
        amount: begin.amount.minor(),
        refunded: 0,
        reserved: 0,
        time_expire_ms: begin.time_expire_ms,
        created_ms: 0,
        finished_ms: 0,
        merchant,
        earlier: NIL,
        refunds: NIL,
        events: 0,
        gateway: begin.gateway,
        reason: Reason::None,
        out_trade_no: begin.out_trade_no,
        currency: begin.currency,
        method: begin.method,
        scene: begin.scene,
        state: OrderState::Processing,
        cancel: CancelCause::None,
        notify: begin.notify,
        refund_count: 0,
        attempt: new_attempt(1, begin.channel),
        live: Live::NONE,
    }
}

/// An attempt that just started.
pub(super) fn new_attempt(ordinal: u8, channel: u16) -> Attempt {
    Attempt {
        channel_ref: ShortText::EMPTY,
        channel,
        reason: Reason::None,
        ordinal,
        state: AttemptState::Started,
        class: Class::Silent,
        noted: false,
        reversal_started: false,
    }
}

fn matches(
    rule: &RouteRule,
    method: Method,
    currency: Currency,
    amount: i64,
    mch_id: &MchId,
) -> bool {
    fn any_or<T: PartialEq>(list: &[T], value: &T) -> bool {
        list.is_empty() || list.contains(value)
    }
    any_or(&rule.methods, &method)
        && any_or(&rule.currencies, &currency)
        && any_or(&rule.merchants, mch_id)
        && amount >= rule.amount_min
        && (rule.amount_max == 0 || amount <= rule.amount_max)
}
