//! Records as JSON for dumps and time lines. Tested on what must never appear.

use super::{Begin, Members, Outcome, Record, Stamped, members};
use crate::engine::merchant::Limits;
use crate::engine::order::{AttemptState, Class, RefundKind};
use protocol::code::{OrderState, RefundState};
use protocol::id::ShortText;
use std::fmt::Write;

impl Stamped<'_> {
    /// Appends the record as one JSON object for dumps and time lines. Payer
    /// token, content and key material never appear.
    pub fn to_json(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = write!(out, "{{\"at_us\":{},\"kind\":\"{}\"", self.at_us, self.record.name());
        if let Some(sequence) = self.record.sequence() {
            let _ = write!(out, ",\"sequence\":{sequence}");
        }
        let _ = self.write_fields(out);
        out.push('}');
    }

    fn write_fields(&self, out: &mut String) -> std::fmt::Result {
        match &self.record {
            Record::Begin(r) => write_begin_json(r, out),
            Record::NextAttempt(r) => {
                write!(out, ",\"attempt\":{},\"channel\":{}", r.ordinal, r.channel)
            }
            Record::Outcome(r) => write_outcome_json(r, out),
            Record::CancelStart(r) => write!(
                out,
                ",\"attempt\":{},\"cause\":\"{}\",\"reversing\":{}",
                r.attempt,
                r.cause.name(),
                r.reversing
            ),
            Record::RefundStart(r) => {
                // A refund of our own has no number of the merchant's.
                let number = match r.kind {
                    RefundKind::Merchant => r.out_refund_no.as_str(),
                    RefundKind::Reversal | RefundKind::Orphan => "",
                };
                write!(
                    out,
                    ",\"ordinal\":{},\"for\":\"{}\",\"attempt\":{},\"amount\":{},\"out_refund_no\":\"{number}\"",
                    r.ordinal,
                    r.kind.name(),
                    r.attempt,
                    r.amount.minor(),
                )
            }
            Record::RefundOutcome(r) => write!(
                out,
                ",\"ordinal\":{},\"class\":\"{}\",\"ending\":\"{}\",\"reason\":\"{}\",\"channel_ref\":\"{}\"",
                r.ordinal,
                r.class.name(),
                refund_ending(r.state),
                r.reason.name(),
                Escaped(&r.channel_ref)
            ),
            Record::Doubt { attempt, .. } => write!(out, ",\"attempt\":{attempt}"),
            Record::Delivered { event_id, taken } => {
                write!(out, ",\"event_id\":{event_id},\"taken\":{taken}")
            }
            Record::Decision(r) => write!(
                out,
                ",\"ordinal\":{},\"refund\":{},\"success\":{},\"operator\":\"{}\",\"second\":\"{}\",\"note\":\"{}\"",
                r.ordinal,
                r.refund,
                r.success,
                Escaped(&r.operator),
                Escaped(&r.second),
                Escaped(&r.note)
            ),
            Record::MerchantPut(r) => write!(
                out,
                ",\"operator\":\"{}\",\"mch_id\":\"{}\",\"status\":\"{:?}\",\"keys\":{},\"limits\":{{{}}}",
                Escaped(&r.operator),
                r.merchant.mch_id,
                r.merchant.status,
                r.merchant.keys.len(),
                LimitsJson(&r.merchant.limits)
            ),
            Record::LimitsPut(r) => write!(
                out,
                ",\"operator\":\"{}\",\"mch_id\":\"{}\",\"until_ms\":{},\"limits\":{{{}}}",
                Escaped(&r.operator),
                r.mch_id,
                r.until_ms,
                LimitsJson(&r.limits)
            ),
            Record::SiteDrain(r) => write!(
                out,
                ",\"operator\":\"{}\",\"site\":{},\"drained\":{}",
                Escaped(&r.operator),
                r.site,
                r.drained
            ),
            Record::SiteMember(r) => write!(
                out,
                ",\"operator\":\"{}\",\"site\":{},\"member\":{}",
                Escaped(&r.operator),
                r.site,
                r.member
            ),
            Record::Members(r) => write_members_json(r, out),
        }
    }
}

fn write_members_json(r: &Members<'_>, out: &mut String) -> std::fmt::Result {
    let (operator, forced) = (Escaped(&r.operator), r.forced);
    write!(out, ",\"operator\":\"{operator}\",\"forced\":{forced},\"changes\":[")?;
    for (at, [kind, site]) in r.changes.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        write!(out, "{comma}{{\"site\":{site},\"becomes\":\"{}\"}}", members::name(*kind))?;
    }
    out.push(']');
    Ok(())
}

fn write_begin_json(r: &Begin<'_>, out: &mut String) -> std::fmt::Result {
    write!(
        out,
        ",\"attempt\":1,\"channel\":{},\"mch_id\":\"{}\",\"out_trade_no\":\"{}\",\"charge_no\":\"{}\",\"amount\":{},\"currency\":\"{}\",\"method\":\"{}\",\"scene\":\"{}\",\"gateway\":{},\"time_expire_ms\":{},\"notify\":{}",
        r.channel,
        r.mch_id,
        r.out_trade_no,
        protocol::channel::charge_number(&r.digest, 1),
        r.amount.minor(),
        r.currency,
        r.method.name(),
        r.scene.name(),
        r.gateway,
        r.time_expire_ms,
        r.notify,
    )
}

fn write_outcome_json(r: &Outcome, out: &mut String) -> std::fmt::Result {
    let over = matches!(r.attempt_state, AttemptState::Declined | AttemptState::Void);
    write!(
        out,
        ",\"attempt\":{},\"class\":\"{}\",\"ending\":\"{}\",\"goes_on\":{},\"order_state\":\"{}\",\"reason\":\"{}\",\"amount\":{},\"channel_ref\":\"{}\"",
        r.attempt,
        r.class.name(),
        attempt_ending(r),
        over && r.order_state == OrderState::Processing,
        r.order_state.name(),
        r.reason.name(),
        r.amount,
        Escaped(&r.channel_ref),
    )
}

/// How the attempt ended, as dumps and audits name it.
fn attempt_ending(r: &Outcome) -> &'static str {
    match r.attempt_state {
        AttemptState::Succeeded => "succeeded",
        AttemptState::Declined => "declined",
        AttemptState::Void if r.class == Class::Reversed => "reversed",
        AttemptState::Void => "void",
        _ => "manual",
    }
}

fn refund_ending(state: RefundState) -> &'static str {
    match state {
        RefundState::Success => "succeeded",
        RefundState::Failed => "declined",
        _ => "manual",
    }
}

/// A short text inside JSON quotes.
struct Escaped<'a>(&'a ShortText);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.as_str().chars() {
            if matches!(c, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        Ok(())
    }
}

struct LimitsJson<'a>(&'a Limits);

impl std::fmt::Display for LimitsJson<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let l = self.0;
        write!(
            f,
            "\"pay_per_minute\":{},\"query_per_minute\":{},\"refund_per_minute\":{},\"burst\":{},\
             \"daily_cap\":{},\"single_max\":{},\"second_signature_from\":{}",
            l.pay_per_minute,
            l.query_per_minute,
            l.refund_per_minute,
            l.burst,
            l.daily_cap,
            l.single_max,
            l.second_signature_from
        )
    }
}
