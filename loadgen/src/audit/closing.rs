//! Closing the books: what came of every payment and refund, once all witnesses
//! were heard.
//!
//! Pure. Tested with the books.

use super::EventsDue;
use super::books::{Books, ORPHAN_ORDINAL, Sums};
use super::table::{Attempt, Charge, State};
use protocol::channel::ChannelStatus;
use protocol::code::RefundState;

impl Books {
    /// Judges every payment's end. `settled`: everything had time to end, so
    /// nothing may be open or in front of an operator. `events`: which of them had.
    pub(crate) fn finish(&mut self, settled: bool, events: EventsDue) -> Sums {
        let mut sums = Sums::default();
        for at in 0..self.table.len() as u32 {
            self.finish_payment(at, settled, &mut sums);
        }
        let mut open = Vec::new();
        for ((at, ordinal), line) in &self.refunds {
            let ended = matches!(line.state, RefundState::Success | RefundState::Failed);
            if settled && !ended {
                open.push((17, *at, format!("refund {ordinal} is still {:?}", line.state)));
            }
            let moved = line.channel == Some(ChannelStatus::Success);
            if ended && moved != (line.state == RefundState::Success) {
                let channel = line.channel;
                let detail = format!(
                    "refund {ordinal} is {:?} in the log and {channel:?} at the channel",
                    line.state
                );
                open.push((9, *at, detail));
            }
        }
        self.finish_events(events);
        open.sort();
        for (invariant, at, detail) in open {
            self.about(invariant, at, detail);
        }
        sums
    }

    /// An orphan's refund is under way: its charge stands and will not for long.
    fn goes_back(&self, at: u32, attempt: u8) -> bool {
        let refund = self.refunds.get(&(at, ORPHAN_ORDINAL.saturating_add(attempt)));
        refund
            .is_some_and(|line| matches!(line.state, RefundState::Processing | RefundState::Manual))
    }

    fn finish_payment(&mut self, at: u32, settled: bool, sums: &mut Sums) {
        let payment = *self.table.get(at);
        let totals = self.totals.get(&at).copied().unwrap_or_default();
        let (mut standing, mut won, mut broken) = (0, false, Vec::new());
        for (number, attempt, charge) in self.table.attempts(at) {
            won |= attempt == Attempt::Succeeded;
            let orphan = attempt.clear() && charge == Charge::Stands;
            if orphan && !settled && self.goes_back(at, number) {
                continue;
            }
            standing += usize::from(charge == Charge::Stands);
            if orphan {
                let detail = format!("attempt {number} is {attempt:?} and its charge stands");
                broken.push((19, detail));
            }
            let open = matches!(attempt, Attempt::Open | Attempt::Manual);
            if settled && open && payment.state.is_final() {
                let detail =
                    format!("attempt {number} is {attempt:?} and the payment {:?}", payment.state);
                broken.push((18, detail));
            }
        }
        broken.into_iter().for_each(|(invariant, detail)| self.about(invariant, at, detail));
        if settled && !payment.state.is_final() {
            self.about(16, at, format!("the payment is still {:?}", payment.state));
        }
        if standing > 1 {
            self.about(1, at, format!("{standing} charges stand at the channel"));
        }
        let charged = payment.amount * standing as i64;
        let paid = if won { payment.amount } else { 0 };
        let acked = if payment.acked == payment.state { State::None } else { payment.acked };
        for state in [payment.state, acked] {
            let wrong = match state {
                State::Paid => standing != 1,
                State::Failed | State::Closed => charged != totals.channel_refunded,
                _ => false,
            };
            if wrong {
                let word = if state == payment.acked { "acknowledged" } else { "logged" };
                self.about(3, at, format!("{state:?} was {word} and {standing} charges stand"));
            }
        }
        sums.log_paid += paid;
        sums.log_refunded += totals.refunded;
        sums.channel_charged += charged;
        sums.channel_refunded += totals.channel_refunded;
        // While something is open the two sides may rightly differ.
        let open = !payment.state.is_final() || totals.reserved != 0;
        let (log, channel) = (paid - totals.refunded, charged - totals.channel_refunded);
        if !open && log != channel {
            self.about(20, at, format!("{log} stands in the log and {channel} at the channel"));
        }
    }
}
