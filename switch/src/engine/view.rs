//! What is shown of the state: reply bodies, statistics, the explain view.
//! Changes nothing.

use super::Engine;
use super::input::Waiter;
use super::order::{Attempt, AttemptState, Order, Refund, RefundKind};
use super::output::{Reply, ReplyBody};
use protocol::channel::{charge_number, order_digest};
use protocol::code::{Code, OrderState, Reason, RefundState};
use protocol::id::{ChannelNo, MchId, OutRefundNo, OutTradeNo, ShortText, TransactionId};
use protocol::message::{OrderReply, RefundReply, kind};
use protocol::money::Currency;

/// Figures of one engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Payments held, committed.
    pub orders: u64,
    /// Payments proposed.
    pub proposed: u64,
    /// Payments that are not final or have an open refund.
    pub open: u64,
    /// Attempts and refunds in doubt, being undone or waiting for the payer.
    pub in_doubt: u64,
    /// Attempts and refunds in front of an operator.
    pub manual: u64,
    /// Askers waiting.
    pub waiters: u64,
    /// Events not delivered.
    pub outbox: u64,
    /// Refunds held.
    pub refunds: u64,
    /// Committed records that did not fit the state and changed nothing.
    pub ignored_records: u64,
    /// Channel statements about payments that do not exist here.
    pub unmatched: u64,
    /// By channel, in the order of the configuration.
    pub channels: Vec<ChannelStats>,
}

/// Figures of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Number.
    pub number: u16,
    /// Whether it takes requests.
    pub up: bool,
    /// Operations without answer.
    pub in_flight: u32,
}

/// A payment for `explain`.
#[derive(Clone, Debug)]
pub struct OrderView {
    /// Our number.
    pub transaction_id: TransactionId,
    /// Merchant.
    pub mch_id: MchId,
    /// The merchant's number.
    pub out_trade_no: OutTradeNo,
    /// Sequence in the shard, from 1.
    pub sequence: u64,
    /// State.
    pub state: OrderState,
    /// Why.
    pub reason: Reason,
    /// Amount, minor units.
    pub amount: i64,
    /// Currency.
    pub currency: Currency,
    /// Given back, minor units.
    pub refunded: i64,
    /// Reserved, minor units.
    pub reserved: i64,
    /// Accepted, Unix milliseconds.
    pub created_at_ms: u64,
    /// Final, Unix milliseconds; 0 when not.
    pub finished_at_ms: u64,
    /// Expiry, Unix milliseconds.
    pub time_expire_ms: u64,
    /// Attempts, oldest first.
    pub attempts: Vec<AttemptView>,
    /// Refunds, oldest first.
    pub refunds: Vec<RefundView>,
}

/// Something in doubt or in front of an operator.
#[derive(Clone, Debug)]
pub struct DoubtView {
    /// The payment.
    pub order: OrderView,
    /// Refund ordinal, or 0 for the payment's newest attempt.
    pub ordinal: u8,
    /// State of the attempt or refund.
    pub state: &'static str,
    /// Channel number.
    pub channel: u16,
    /// Since when, microseconds of the monotonic or the Unix clock.
    pub since_us: u64,
    /// Whether `since_us` is monotonic.
    pub monotonic: bool,
}

/// An attempt for `explain`.
#[derive(Clone, Debug)]
pub struct AttemptView {
    /// Ordinal.
    pub ordinal: u8,
    /// Channel.
    pub channel: u16,
    /// Number at the channel.
    pub charge_no: ChannelNo,
    /// State.
    pub state: AttemptState,
    /// Why.
    pub reason: Reason,
    /// The channel's own number.
    pub channel_ref: ShortText,
}

/// A refund for `explain`.
#[derive(Clone, Debug)]
pub struct RefundView {
    /// Ordinal.
    pub ordinal: u8,
    /// What it is for.
    pub kind: RefundKind,
    /// The merchant's number, or ours.
    pub out_refund_no: OutRefundNo,
    /// Number at the channel.
    pub refund_no: ChannelNo,
    /// State.
    pub state: RefundState,
    /// Why.
    pub reason: Reason,
    /// Amount, minor units.
    pub amount: i64,
    /// The attempt whose money goes back.
    pub attempt: u8,
}

impl Engine {
    /// Reply about a payment as it stands.
    pub(super) fn order_body(&self, sequence: u64, code: Code, replayed: bool) -> ReplyBody {
        let order = &self.orders[sequence];
        ReplyBody::Order(OrderReply {
            code,
            retry_after_ms: 0,
            replayed,
            state: order.state,
            reason: order.reason,
            transaction_id: Some(TransactionId::new(self.config.shard, sequence)),
            amount: order.amount,
            currency: Some(order.currency),
            refunded: order.refunded,
            refunding: order.reserved,
            channel: order.attempt.channel,
            finished_at_ms: order.finished_ms,
            leader_hint: 0,
            out_trade_no: ShortText::new(order.out_trade_no.as_bytes()).unwrap_or_default(),
            channel_ref: order.attempt.channel_ref,
        })
    }

    /// Reply about a refund as it stands.
    pub(super) fn refund_body(&self, place: u32, code: Code, replayed: bool) -> ReplyBody {
        let Some(refund) = self.orders.refunds.get(place) else {
            let nobody = Waiter { kind: kind::REFUND, ..Waiter::default() };
            return Reply::refusal(nobody, code, 0).body;
        };
        let order = &self.orders[refund.sequence];
        ReplyBody::Refund(RefundReply {
            code,
            retry_after_ms: 0,
            replayed,
            state: refund.state,
            reason: refund.reason,
            transaction_id: Some(TransactionId::new(self.config.shard, refund.sequence)),
            amount: refund.amount,
            currency: Some(order.currency),
            refunded: order.refunded,
            refunding: order.reserved,
            finished_at_ms: refund.finished_ms,
            leader_hint: 0,
            channel_ref: refund.channel_ref,
        })
    }

    /// Figures for metrics and status.
    pub fn stats(&self) -> Stats {
        let channels = self.channels.iter().zip(&self.config.channels);
        Stats {
            orders: self.orders.committed - 1,
            proposed: self.orders.len() - self.orders.committed,
            open: self.orders.busy.count(),
            in_doubt: u64::from(self.resolver.count()),
            manual: self.counters.manual_attempts + self.counters.manual_refunds,
            waiters: u64::from(self.waiters.count()),
            outbox: self.outbox.len() as u64,
            refunds: u64::from(self.orders.refunds.used()),
            ignored_records: self.counters.ignored_records,
            unmatched: self.counters.unmatched,
            channels: channels
                .map(|(live, config)| ChannelStats {
                    number: config.number,
                    up: live.up,
                    in_flight: live.in_flight,
                })
                .collect(),
        }
    }

    /// A committed payment by the merchant's number.
    pub fn order_view(&self, mch_id: &MchId, out_trade_no: &OutTradeNo) -> Option<OrderView> {
        let merchant = self.merchants.find(mch_id)?;
        let digest = order_digest(mch_id, out_trade_no);
        self.view(self.orders.find(&digest, merchant, out_trade_no)?)
    }

    fn view(&self, sequence: u64) -> Option<OrderView> {
        let order = self.orders.committed(sequence)?;
        let mut refunds: Vec<_> = self
            .orders
            .refunds_of(sequence)
            .filter(|(_, refund)| !refund.proposed)
            .map(|(_, refund)| self.refund_view(refund))
            .collect();
        refunds.reverse();
        Some(OrderView {
            transaction_id: TransactionId::new(self.config.shard, sequence),
            mch_id: self.merchants.at(order.merchant).merchant.mch_id,
            out_trade_no: order.out_trade_no,
            sequence,
            state: order.state,
            reason: order.reason,
            amount: order.amount,
            currency: order.currency,
            refunded: order.refunded,
            reserved: order.reserved,
            created_at_ms: order.created_ms,
            finished_at_ms: order.finished_ms,
            time_expire_ms: order.time_expire_ms,
            attempts: (1..=order.attempt.ordinal)
                .filter_map(|ordinal| self.orders.attempt(sequence, ordinal))
                .map(|attempt| attempt_view(order, attempt))
                .collect(),
            refunds,
        })
    }

    /// What is in doubt, waits for the payer, is being undone or is in front of
    /// an operator: oldest payment first, at most `limit`.
    pub fn doubt_views(&self, limit: usize) -> Vec<DoubtView> {
        let doubts = self.orders.busy.ones().flat_map(|sequence| {
            let order = &self.orders[sequence];
            let open = !order.attempt.state.is_definitive();
            let attempt = open.then(|| {
                self.doubt_of(
                    (sequence, 0, order.attempt.ordinal),
                    order.attempt.state.name(),
                    order.live.case,
                )
            });
            let refunds =
                self.orders.refunds_of(sequence).filter(|(_, r)| r.is_open() && !r.proposed);
            let refunds = refunds.map(move |(_, r)| {
                self.doubt_of((sequence, r.ordinal, r.attempt), r.state.name(), r.case)
            });
            attempt.into_iter().chain(refunds).flatten()
        });
        doubts.take(limit).collect()
    }

    /// `None` for an attempt that simply waits for its first answer. `attempt`:
    /// the one that it is about.
    fn doubt_of(
        &self,
        (sequence, ordinal, attempt): (u64, u8, u8),
        state: &'static str,
        case: u32,
    ) -> Option<DoubtView> {
        let since = self.resolver.since_us(case);
        if since.is_none() && self.term.is_some() && state == AttemptState::Started.name() {
            return None;
        }
        let order = self.view(sequence)?;
        Some(DoubtView {
            ordinal,
            state,
            channel: self.orders.attempt(sequence, attempt).map_or(0, |of| of.channel),
            since_us: since.unwrap_or(order.created_at_ms.saturating_mul(1000)),
            monotonic: since.is_some(),
            order,
        })
    }

    fn refund_view(&self, refund: &Refund) -> RefundView {
        RefundView {
            ordinal: refund.ordinal,
            kind: refund.kind,
            out_refund_no: refund.out_refund_no,
            refund_no: self.orders.refund_number(refund),
            state: refund.state,
            reason: refund.reason,
            amount: refund.amount,
            attempt: refund.attempt,
        }
    }
}

fn attempt_view(order: &Order, attempt: &Attempt) -> AttemptView {
    AttemptView {
        ordinal: attempt.ordinal,
        channel: attempt.channel,
        charge_no: charge_number(&order.digest, attempt.ordinal),
        state: attempt.state,
        reason: attempt.reason,
        channel_ref: attempt.channel_ref,
    }
}
