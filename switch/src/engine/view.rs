//! Looks at the state for operators and for comparing replicas.

use protocol::code::{OrderState, Reason};
use protocol::id::{MchId, OutTradeNo, TransactionId};
use protocol::money::Currency;
use sha2::{Digest, Sha256};

use super::Engine;
use super::order::Attempt;

/// A payment as an operator sees it.
#[derive(Clone, Debug)]
pub struct OrderView {
    /// Our number.
    pub transaction_id: TransactionId,
    /// Merchant.
    pub mch_id: MchId,
    /// Its number.
    pub out_trade_no: OutTradeNo,
    /// Sequence within the shard.
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
}

/// Something in doubt or in front of an operator.
#[derive(Clone, Debug)]
pub struct DoubtView {
    /// The payment.
    pub order: OrderView,
    /// Refund ordinal, or 0 for the payment.
    pub ordinal: u8,
    /// State of the attempt or refund.
    pub state: &'static str,
    /// Channel number.
    pub channel: u16,
    /// When it began, Unix microseconds for payments in front of an operator,
    /// else monotonic microseconds.
    pub since_us: u64,
    /// Whether `since_us` is monotonic.
    pub monotonic: bool,
}

impl Engine {
    /// The payment under a merchant's number.
    pub fn order_view(&self, mch_id: &MchId, out_trade_no: &OutTradeNo) -> Option<OrderView> {
        let digest = protocol::channel::order_digest(mch_id, out_trade_no);
        let merchant = *self.merchant_ids.get(mch_id)?;
        self.find(&digest, merchant, out_trade_no).and_then(|at| self.view(at))
    }

    fn view(&self, at: u32) -> Option<OrderView> {
        let order = self.order(at)?;
        Some(OrderView {
            transaction_id: self.transaction_id(at),
            mch_id: self.merchant(order.merchant)?.merchant.mch_id,
            out_trade_no: order.out_trade_no,
            sequence: u64::from(at) + 1,
            state: order.shown_state(),
            reason: order.reason,
            amount: order.amount.minor(),
            currency: order.currency,
            refunded: order.refunded,
            reserved: order.reserved,
        })
    }

    /// Payments and refunds in doubt, at most `limit`, and payments in front of
    /// an operator.
    pub fn doubt_views(&self, limit: usize) -> Vec<DoubtView> {
        let mut keys: Vec<_> =
            self.doubts.iter().map(|(key, doubt)| (doubt.since_us, *key)).collect();
        keys.sort_unstable();
        let mut views: Vec<DoubtView> = keys
            .into_iter()
            .take(limit)
            .filter_map(|(since_us, (at, ordinal))| {
                let order = self.order(at)?;
                Some(DoubtView {
                    order: self.view(at)?,
                    ordinal,
                    state: if ordinal == 0 { state_name(order.current()) } else { "refunding" },
                    channel: order.channel(),
                    since_us,
                    monotonic: true,
                })
            })
            .collect();
        if self.manual > 0 {
            let manual = (0..self.committed as u32)
                .filter(|at| self.order(*at).is_some_and(|o| o.state == OrderState::Manual))
                .take(limit);
            views.extend(manual.filter_map(|at| {
                let order = self.order(at)?;
                Some(DoubtView {
                    order: self.view(at)?,
                    ordinal: 0,
                    state: "manual",
                    channel: order.channel(),
                    since_us: order.begun_us,
                    monotonic: false,
                })
            }));
        }
        views
    }

    /// SHA-256 over the replicated state: equal on replicas that applied the
    /// same blocks, whatever they lead.
    pub fn state_hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| hash.update(bytes);
        add(&self.applied.to_le_bytes());
        for at in 0..self.committed {
            let Some(order) = self.orders.get(at) else { continue };
            add(&order.digest);
            add(&order.fingerprint);
            for number in [order.amount.minor(), order.refunded, order.reserved] {
                add(&number.to_le_bytes());
            }
            add(&order.finished_ms.to_le_bytes());
            add(&[order.state.wire(), order.attempt, order.refund_count, order.events]);
            add(&[order.cancelled.into(), order.cancel_expired.into()]);
            add(&order.reason.wire().to_le_bytes());
            for (attempt, channel) in order.attempts.iter().zip(order.channels) {
                add(&[replicated(*attempt) as u8]);
                add(&channel.to_le_bytes());
            }
            add(order.channel_ref.as_bytes());
        }
        for place in 0..self.committed_refunds {
            let Some(refund) = self.refunds.get(place) else { continue };
            add(&refund.order.to_le_bytes());
            add(&[refund.ordinal, refund.attempt, refund.state.wire()]);
            add(&refund.amount.minor().to_le_bytes());
            add(&refund.finished_ms.to_le_bytes());
        }
        for state in &self.merchants {
            add(state.merchant.mch_id.as_bytes());
            add(&state.merchant.limits.daily_cap.to_le_bytes());
            add(&state.merchant.limits.pay_per_minute.to_le_bytes());
            add(&[state.merchant.status as u8, state.previous.is_some().into()]);
            state.live.hash(&mut add);
        }
        self.outbox.hash(&mut add);
        hash.finalize().into()
    }
}

/// Doubt is the leader's view of a started attempt.
fn replicated(attempt: Attempt) -> Attempt {
    match attempt {
        Attempt::Unknown | Attempt::Awaiting => Attempt::Started,
        other => other,
    }
}

fn state_name(attempt: Attempt) -> &'static str {
    match attempt {
        Attempt::Idle => "idle",
        Attempt::Started => "started",
        Attempt::Unknown => "unknown",
        Attempt::Awaiting => "awaiting",
        Attempt::Reversing => "reversing",
        Attempt::Manual => "manual",
        Attempt::Succeeded => "succeeded",
        Attempt::Declined => "declined",
        Attempt::Void => "void",
        Attempt::Reversed => "reversed",
    }
}
