//! A payment and its refunds as the shard holds them: fixed-size records, the
//! attempt's state machine as one function.

use protocol::channel::{NumberKind, channel_number, charge_number};
use protocol::code::{OrderState, Reason, RefundState};
use protocol::id::{ChannelNo, OutRefundNo, OutTradeNo, ShortText, TransactionId};
use protocol::message::{OrderReply, RefundReply};
use protocol::money::{Amount, Currency};

use super::record::Ending;

/// Most attempts of one payment.
pub(super) const ATTEMPTS_MAX: usize = 4;
/// Ordinal of the refund that a reverse of a paid payment makes.
pub(super) const REVERSAL_ORDINAL: u8 = 100;
/// Ordinals above this are refunds of orphan charges: this plus the attempt.
pub(super) const ORPHAN_ORDINAL: u8 = 110;
/// No entry in a linked list.
pub(super) const NONE: u32 = u32::MAX;

/// State of an attempt. The last four are definitive and never left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Attempt {
    /// Not begun.
    Idle,
    /// The charge was sent; its reply is due.
    Started,
    /// In doubt.
    Unknown,
    /// The payer has to act.
    Awaiting,
    /// A cancel is recorded; it must finish.
    Reversing,
    /// In front of an operator.
    Manual,
    /// The money moved.
    Succeeded,
    /// The channel said no.
    Declined,
    /// Nothing was or can be charged.
    Void,
    /// The channel confirmed the reversal.
    Reversed,
}

impl Attempt {
    pub(super) fn definitive(self) -> bool {
        self >= Self::Succeeded
    }

    /// The state that an ending record leads to. `None`: the record does not
    /// fit the state and must not be applied.
    pub(super) fn ended(self, ending: Ending) -> Option<Self> {
        if self == Self::Idle || self.definitive() {
            return None;
        }
        Some(match ending {
            Ending::Succeeded => Self::Succeeded,
            Ending::Declined => Self::Declined,
            Ending::Void => Self::Void,
            Ending::Reversed => Self::Reversed,
            Ending::Manual => Self::Manual,
        })
    }
}

/// A payment.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) digest: [u8; 16],
    pub(super) fingerprint: [u8; 16],
    pub(super) amount: Amount,
    pub(super) time_expire_ms: u64,
    pub(super) begun_us: u64,
    pub(super) finished_ms: u64,
    pub(super) refunded: i64,
    pub(super) reserved: i64,
    pub(super) merchant: u32,
    /// Newest refund, or [`NONE`].
    pub(super) refunds: u32,
    pub(super) out_trade_no: OutTradeNo,
    pub(super) channel_ref: ShortText,
    pub(super) currency: Currency,
    pub(super) state: OrderState,
    pub(super) reason: Reason,
    pub(super) method: protocol::code::Method,
    /// Number of the current attempt, from 1.
    pub(super) attempt: u8,
    pub(super) attempts: [Attempt; ATTEMPTS_MAX],
    pub(super) channels: [u16; ATTEMPTS_MAX],
    pub(super) refund_count: u8,
    pub(super) events: u8,
    /// A cancel is recorded: refunds are refused, success is not wanted.
    pub(super) cancelled: bool,
    /// Why it was cancelled.
    pub(super) cancel_expired: bool,
    pub(super) notify: bool,
    pub(super) volatile: Volatile,
}

/// What only the leader knows and a new leader starts without.
#[derive(Clone, Copy)]
pub(super) struct Volatile {
    /// First waiter, or [`NONE`].
    pub(super) waiters: u32,
    /// BEGIN is proposed but not committed.
    pub(super) proposed: bool,
    /// A record that changes the current attempt is proposed.
    pub(super) deciding: bool,
    /// Sum of proposed refunds.
    pub(super) reserving: i64,
    /// A refund or reversal is proposed.
    pub(super) refunding: u8,
}

impl Volatile {
    pub(super) const NEW: Self =
        Self { waiters: NONE, proposed: false, deciding: false, reserving: 0, refunding: 0 };
}

impl Order {
    pub(super) fn current(&self) -> Attempt {
        self.attempt_state(self.attempt)
    }

    pub(super) fn attempt_state(&self, attempt: u8) -> Attempt {
        usize::from(attempt)
            .checked_sub(1)
            .and_then(|at| self.attempts.get(at))
            .copied()
            .unwrap_or(Attempt::Idle)
    }

    pub(super) fn set_current(&mut self, state: Attempt) {
        if let Some(slot) = self.attempts.get_mut(usize::from(self.attempt).wrapping_sub(1)) {
            *slot = state;
        }
    }

    pub(super) fn channel_of(&self, attempt: u8) -> u16 {
        usize::from(attempt)
            .checked_sub(1)
            .and_then(|at| self.channels.get(at))
            .copied()
            .unwrap_or(0)
    }

    pub(super) fn channel(&self) -> u16 {
        self.channel_of(self.attempt)
    }

    pub(super) fn charge_no(&self, attempt: u8) -> ChannelNo {
        charge_number(&self.digest, attempt)
    }

    pub(super) fn refund_no(&self, ordinal: u8) -> ChannelNo {
        channel_number(&self.digest, refund_kind(ordinal), ordinal)
    }

    /// The attempt that was charged and counts.
    pub(super) fn paid_attempt(&self) -> Option<u8> {
        (1..=self.attempt).find(|attempt| self.attempt_state(*attempt) == Attempt::Succeeded)
    }

    /// What the merchant is told. WAIT_PAYER is a view of the attempt.
    pub(super) fn shown_state(&self) -> OrderState {
        match (self.state, self.current()) {
            (OrderState::Processing, Attempt::Awaiting) => OrderState::WaitPayer,
            (state, _) => state,
        }
    }

    pub(super) fn reply(&self, transaction_id: TransactionId, replayed: bool) -> OrderReply {
        OrderReply {
            code: protocol::code::Code::Ok,
            retry_after_ms: 0,
            replayed,
            state: self.shown_state(),
            reason: self.reason,
            transaction_id: Some(transaction_id),
            amount: self.amount.minor(),
            currency: Some(self.currency),
            refunded: self.refunded,
            refunding: self.reserved,
            channel: self.channel(),
            finished_at_ms: self.finished_ms,
            leader_hint: 0,
            out_trade_no: ShortText::EMPTY,
            channel_ref: self.channel_ref,
        }
    }
}

/// A refund.
#[derive(Clone)]
pub(super) struct Refund {
    pub(super) order: u32,
    /// Next older refund of the payment, or [`NONE`].
    pub(super) next: u32,
    pub(super) ordinal: u8,
    /// Attempt whose charge is given back.
    pub(super) attempt: u8,
    pub(super) amount: Amount,
    pub(super) out_refund_no: Option<OutRefundNo>,
    pub(super) state: RefundState,
    pub(super) reason: Reason,
    pub(super) finished_ms: u64,
    pub(super) channel_ref: ShortText,
    /// Leader only: first waiter.
    pub(super) waiters: u32,
    /// Leader only: its end is proposed.
    pub(super) deciding: bool,
}

impl Refund {
    pub(super) fn orphan(&self) -> bool {
        self.ordinal > ORPHAN_ORDINAL
    }

    pub(super) fn reply(
        &self,
        order: &Order,
        transaction_id: TransactionId,
        replayed: bool,
    ) -> RefundReply {
        RefundReply {
            code: protocol::code::Code::Ok,
            retry_after_ms: 0,
            replayed,
            state: self.state,
            reason: self.reason,
            transaction_id: Some(transaction_id),
            amount: self.amount.minor(),
            currency: Some(order.currency),
            refunded: order.refunded,
            refunding: order.reserved,
            finished_at_ms: self.finished_ms,
            leader_hint: 0,
            channel_ref: self.channel_ref,
        }
    }
}

/// What a refund ordinal stands for in its channel number.
pub(super) fn refund_kind(ordinal: u8) -> NumberKind {
    match ordinal {
        REVERSAL_ORDINAL => NumberKind::Reversal,
        ordinal if ordinal > ORPHAN_ORDINAL => NumberKind::Orphan,
        _ => NumberKind::Refund,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table: every state and every ending, illegal pairs included.
    #[test]
    fn the_attempt_table_is_as_written() {
        use Attempt::*;
        let states = [
            Idle, Started, Unknown, Awaiting, Reversing, Manual, Succeeded, Declined, Void,
            Reversed,
        ];
        let endings =
            [Ending::Succeeded, Ending::Declined, Ending::Void, Ending::Reversed, Ending::Manual];
        let mut table = String::new();
        for state in states {
            table += &format!("{state:?}:");
            for ending in endings {
                match state.ended(ending) {
                    Some(next) => table += &format!(" {next:?}"),
                    None => table += " -",
                }
            }
            table.push('\n');
        }
        let open = "Succeeded Declined Void Reversed Manual";
        let expected = format!(
            "Idle: - - - - -\nStarted: {open}\nUnknown: {open}\nAwaiting: {open}\n\
             Reversing: {open}\nManual: {open}\nSucceeded: - - - - -\nDeclined: - - - - -\n\
             Void: - - - - -\nReversed: - - - - -\n"
        );
        assert_eq!(table, expected);
    }
}
