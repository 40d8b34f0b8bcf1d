//! Finding things and saying things: the small steps that all parts share.

use protocol::code::Code;
use protocol::id::{OutTradeNo, TransactionId};
use protocol::message::{OrderRef, OrderReply, RefundReply, kind};

use super::input::{Now, Origin, Waiter};
use super::order::{NONE, Order};
use super::output::{Alarm, AlarmKind, Outputs, Reply, ReplyBody};
use super::record::Record;
use super::{Engine, MerchantState};

impl Engine {
    /// Our number of the payment at a place.
    pub(super) fn transaction_id(&self, at: u32) -> TransactionId {
        TransactionId::new(self.config.shard, u64::from(at) + 1)
    }

    pub(super) fn order(&self, at: u32) -> Option<&Order> {
        self.orders.get(at as usize)
    }

    pub(super) fn order_mut(&mut self, at: u32) -> Option<&mut Order> {
        self.orders.get_mut(at as usize)
    }

    /// The place of a sequence number, if it can be one.
    pub(super) fn place(&self, sequence: u64) -> Option<u32> {
        u32::try_from(sequence.checked_sub(1)?).ok().filter(|at| (*at as usize) < self.orders.len())
    }

    pub(super) fn merchant(&self, at: u32) -> Option<&MerchantState> {
        self.merchants.get(at as usize)
    }

    /// The payment of a merchant under its own number.
    pub(super) fn find(&self, digest: &[u8; 16], merchant: u32, no: &OutTradeNo) -> Option<u32> {
        self.index.find(digest, |at| {
            self.order(at)
                .is_some_and(|order| order.merchant == merchant && order.out_trade_no == *no)
        })
    }

    /// The payment that a request names, if it is the merchant's own.
    pub(super) fn named(
        &self,
        origin: &Origin,
        order: &OrderRef,
        digest: &[u8; 16],
    ) -> Result<(u32, u32), Code> {
        let merchant = *self.merchant_ids.get(&origin.mch_id).ok_or(Code::UnknownMerchant)?;
        let at = match order {
            OrderRef::OutTradeNo(no) => self.find(digest, merchant, no),
            OrderRef::TransactionId(id) => (id.shard() == self.config.shard)
                .then(|| self.place(id.sequence()))
                .flatten()
                .filter(|at| self.order(*at).is_some_and(|order| order.merchant == merchant)),
        };
        at.map(|at| (at, merchant)).ok_or(Code::OrderNotFound)
    }

    pub(super) fn propose(&self, record: &Record<'_>, now: Now, out: &mut Outputs) {
        record.append(now.wall_us, &mut out.block);
        out.block_records += 1;
    }

    pub(super) fn say(&self, waiter: Waiter, reply: OrderReply, out: &mut Outputs) {
        out.replies.push(Reply { waiter, body: ReplyBody::Order(reply) });
    }

    pub(super) fn say_refund(&self, waiter: Waiter, reply: RefundReply, out: &mut Outputs) {
        out.replies.push(Reply { waiter, body: ReplyBody::Refund(reply) });
    }

    pub(super) fn refuse(
        &self,
        waiter: Waiter,
        code: Code,
        retry_after_ms: u32,
        out: &mut Outputs,
    ) {
        out.replies.push(Reply::refusal(waiter, code, retry_after_ms));
    }

    pub(super) fn alarm(&self, kind: AlarmKind, at: u32, ordinal: u8, out: &mut Outputs) {
        if self.leading.is_some() {
            out.alarms.push(Alarm { kind, sequence: u64::from(at) + 1, ordinal });
        }
    }

    /// The stored answer to a pay, query, close or reverse.
    pub(super) fn order_reply(
        &self,
        at: u32,
        waiter: &Waiter,
        replayed: bool,
    ) -> Option<OrderReply> {
        let order = self.order(at)?;
        let mut reply = order.reply(self.transaction_id(at), replayed);
        if waiter.kind != kind::PAY {
            reply.out_trade_no =
                protocol::id::ShortText::new(order.out_trade_no.as_bytes()).unwrap_or_default();
        }
        if waiter.kind == kind::CLOSE && order.state == protocol::code::OrderState::Paid {
            reply.code = Code::OrderPaid;
        }
        Some(reply)
    }

    /// Answers everyone who waits for a payment with its present state.
    pub(super) fn answer_order(&mut self, at: u32, out: &mut Outputs) {
        loop {
            let Some(order) = self.orders.get_mut(at as usize) else { return };
            if order.volatile.waiters == NONE {
                return;
            }
            let Some(waiter) = self.waiters.pop(&mut order.volatile.waiters) else { return };
            if let Some(reply) = self.order_reply(at, &waiter, false) {
                self.say(waiter, reply, out);
            }
        }
    }

    /// Makes a request wait for a payment, or answers PROCESSING at once when
    /// too many wait already.
    pub(super) fn wait_for_order(&mut self, at: u32, origin: &Origin, now: Now, out: &mut Outputs) {
        let max = self.config.waiters_per_order_max;
        let Some(order) = self.orders.get_mut(at as usize) else { return };
        if self.waiters.attach(&mut order.volatile.waiters, origin.waiter, max) {
            self.start_wait(at, 0, origin, now);
        } else if let Some(reply) = self.order_reply(at, &origin.waiter, false) {
            self.say(origin.waiter, reply, out);
        }
    }
}
