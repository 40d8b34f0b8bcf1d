//! Operators' commands: judged, turned into records, answered when those are
//! committed. Authentication happened before.

use super::Engine;
use super::input::{AdminCommand, AdminInput, Now};
use super::merchant::{Limits, Merchant};
use super::order::{AttemptState, RefundKind};
use super::output::Outputs;
use super::record::{
    Decision, KEY_MATERIAL_MAX, KEYS_MAX, LimitsPut, MerchantPut, RANGES_MAX, Record, SITES_END,
    SiteDrain, SiteMember,
};
use protocol::code::{OrderState, RefundState};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};

impl Engine {
    pub(super) fn admin(&mut self, admin: AdminInput, now: Now, out: &mut Outputs) {
        let ticket = admin.ticket;
        if let Some(answer) = self.try_admin(admin, now, out).transpose() {
            out.admin.push((ticket, answer));
        }
    }

    /// `Ok(None)`: the answer comes with the record's commit.
    fn try_admin(
        &mut self,
        admin: AdminInput,
        now: Now,
        out: &mut Outputs,
    ) -> Result<Option<String>, String> {
        if self.term.is_none() {
            return Err("this site does not lead the shard".into());
        }
        let operator = admin.operator;
        let record = match admin.command {
            AdminCommand::PutMerchant { merchant, only_if_absent } => {
                if only_if_absent && self.merchants.find(&merchant.mch_id).is_some() {
                    return Ok(Some("kept the existing merchant".into()));
                }
                check_merchant(&merchant)?;
                Record::MerchantPut(Box::new(MerchantPut { operator, merchant }))
            }
            AdminCommand::PutLimits { mch_id, limits, until_ms } => {
                self.merchants.find(&mch_id).ok_or("no such merchant")?;
                check_limits(&limits)?;
                if until_ms != 0 && until_ms.saturating_mul(1000) <= now.wall_us {
                    return Err("the end of the temporary limits has passed".into());
                }
                Record::LimitsPut(LimitsPut { operator, mch_id, limits, until_ms })
            }
            AdminCommand::SetDrained { site, drained } => {
                if !(1..SITES_END).contains(&site) {
                    return Err("no such site".into());
                }
                if (self.drained >> site & 1 == 1) == drained {
                    return Ok(Some("so it is already".into()));
                }
                Record::SiteDrain(SiteDrain { operator, site, drained })
            }
            AdminCommand::SetMember { site, member } => {
                if !(1..SITES_END).contains(&site) {
                    return Err("no such site".into());
                }
                Record::SiteMember(SiteMember { operator, site, member })
            }
            AdminCommand::Decide { mch_id, out_trade_no, out_refund_no, success, second, note } => {
                let about = (&mch_id, &out_trade_no, out_refund_no.as_ref());
                let (sequence, ordinal, refund) = self.judge_decision(about)?;
                // "Not moved" decides about money, too: it frees a reservation, or says
                // FAILED to a merchant who then takes another number.
                if second.is_empty() || second == operator {
                    return Err("a decision about money needs a second operator".into());
                }
                self.mark_decided(sequence, ordinal, refund);
                let decision =
                    Decision { sequence, ordinal, refund, success, operator, second, note };
                Record::Decision(decision)
            }
        };
        self.tickets.push_back(admin.ticket);
        self.propose(now, &record, out);
        Ok(None)
    }

    /// What a decision is about: only what is in front of an operator.
    fn judge_decision(
        &self,
        (mch_id, out_trade_no, out_refund_no): (&MchId, &OutTradeNo, Option<&OutRefundNo>),
    ) -> Result<(u64, u8, bool), String> {
        let merchant = self.merchants.find(mch_id).ok_or("no such merchant")?;
        let digest = protocol::channel::order_digest(mch_id, out_trade_no);
        let sequence = self
            .orders
            .find(&digest, merchant, out_trade_no)
            .filter(|&sequence| self.orders.committed(sequence).is_some())
            .ok_or("no such payment")?;
        let order = &self.orders[sequence];
        let wanted = |refund: &super::order::Refund| match out_refund_no {
            Some(no) => refund.out_refund_no == *no,
            None => refund.kind == RefundKind::Reversal && order.state == OrderState::Manual,
        };
        let refund = self
            .orders
            .refunds_of(sequence)
            .filter(|(_, refund)| refund.state == RefundState::Manual && !refund.ending)
            .find(|(_, refund)| wanted(refund));
        if let Some((_, refund)) = refund {
            return Ok((sequence, refund.ordinal, true));
        }
        let decidable = out_refund_no.is_none()
            && order.attempt.state == AttemptState::Manual
            && !order.live.ending;
        if decidable {
            Ok((sequence, order.attempt.ordinal, false))
        } else {
            Err("nothing of it waits for an operator".into())
        }
    }

    fn mark_decided(&mut self, sequence: u64, ordinal: u8, refund: bool) {
        if !refund {
            self.orders[sequence].live.ending = true;
            return;
        }
        let place = self.orders.refunds_of(sequence).find(|(_, r)| r.ordinal == ordinal);
        if let Some(place) = place.map(|(place, _)| place)
            && let Some(refund) = self.orders.refunds.get_mut(place)
        {
            refund.ending = true;
        }
    }

    /// The oldest waiting operator's record is applied.
    pub(super) fn answer_ticket(&mut self, leads: bool, out: &mut Outputs) {
        if leads && let Some(ticket) = self.tickets.pop_front() {
            out.admin.push((ticket, Ok("done".into())));
        }
    }
}

fn check_merchant(merchant: &Merchant) -> Result<(), String> {
    check_limits(&merchant.limits)?;
    let keys = &merchant.keys;
    if keys.len() > KEYS_MAX {
        return Err(format!("at most {KEYS_MAX} keys"));
    }
    if keys.iter().any(|key| key.key_id == 0 || key.material.len() > KEY_MATERIAL_MAX) {
        return Err(format!("key ids start at 1, material has at most {KEY_MATERIAL_MAX} bytes"));
    }
    if let [one, two] = keys.as_slice()
        && one.key_id == two.key_id
    {
        return Err("two keys with one id".into());
    }
    if merchant.gateways.len() > RANGES_MAX || merchant.addresses.len() > RANGES_MAX {
        return Err(format!("at most {RANGES_MAX} gateways and {RANGES_MAX} address ranges"));
    }
    if merchant.gateways.iter().any(ShortText::is_empty) {
        return Err("an empty gateway name".into());
    }
    if merchant.addresses.iter().any(|range| range.prefix_len > 128) {
        return Err("an address prefix has at most 128 bits".into());
    }
    Ok(())
}

fn check_limits(limits: &Limits) -> Result<(), String> {
    let amounts = [limits.daily_cap, limits.single_max, limits.second_signature_from];
    if amounts.iter().any(|amount| *amount < 0) {
        return Err("amount limits are not negative".into());
    }
    Ok(())
}
