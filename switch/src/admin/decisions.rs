//! Four eyes: a decision about money counts when two operators, each with a
//! certificate of their own, have sent the same one.
//!
//! Pure: time is handed in. Proposals live in this process only; one that is
//! lost with it is simply made again.

use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use std::time::{Duration, Instant};

/// What is decided about which payment or refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) mch_id: MchId,
    pub(super) out_trade_no: OutTradeNo,
    pub(super) out_refund_no: Option<OutRefundNo>,
    pub(super) success: bool,
}

impl Decision {
    fn same_matter(&self, other: &Self) -> bool {
        Self { success: other.success, ..*self } == *other
    }
}

/// What became of an operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Kept; another operator must say the same.
    Proposed,
    /// The second word: carry it out, with the first operator and their note.
    Agreed {
        /// Who proposed.
        first: ShortText,
        /// Their evidence.
        note: ShortText,
    },
    /// The other operator proposed the opposite.
    Contradicted {
        /// Who.
        first: ShortText,
    },
    /// Too many open proposals.
    Full,
}

struct Proposal {
    decision: Decision,
    operator: ShortText,
    note: ShortText,
    expires: Instant,
}

/// Open proposals, bounded in number and age.
#[derive(Default)]
pub(super) struct Proposals(Vec<Proposal>);

/// How long a proposal waits for the second operator.
pub(super) const PROPOSAL_LIFE: Duration = Duration::from_secs(15 * 60);
const PROPOSALS_MAX: usize = 256;

impl Proposals {
    /// Takes an operator's word.
    pub(super) fn say(
        &mut self,
        decision: Decision,
        operator: ShortText,
        note: ShortText,
        now: Instant,
    ) -> Verdict {
        self.0.retain(|proposal| proposal.expires > now);
        let proposal = Proposal { decision, operator, note, expires: now + PROPOSAL_LIFE };
        let Some(at) = self.0.iter().position(|p| p.decision.same_matter(&decision)) else {
            if self.0.len() == PROPOSALS_MAX {
                return Verdict::Full;
            }
            self.0.push(proposal);
            return Verdict::Proposed;
        };
        let first = self.0[at].operator;
        if first == operator {
            self.0[at] = proposal;
            return Verdict::Proposed;
        }
        if self.0[at].decision != decision {
            return Verdict::Contradicted { first };
        }
        Verdict::Agreed { first, note: self.0.swap_remove(at).note }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(number: &str, success: bool) -> Decision {
        Decision {
            mch_id: MchId::parse(b"M1").unwrap(),
            out_trade_no: OutTradeNo::parse(number.as_bytes()).unwrap(),
            out_refund_no: None,
            success,
        }
    }

    fn text(text: &str) -> ShortText {
        ShortText::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn it_takes_two_who_say_the_same() {
        let (mut proposals, now) = (Proposals::default(), Instant::now());
        let (ann, lee) = (text("ann"), text("lee"));
        let mut say = |number, success, who, note| {
            proposals.say(decision(number, success), who, text(note), now)
        };
        assert_eq!(say("1", true, ann, "a"), Verdict::Proposed);
        assert_eq!(say("1", true, ann, "b"), Verdict::Proposed);
        assert_eq!(say("2", true, lee, "c"), Verdict::Proposed);
        assert_eq!(say("1", false, lee, "d"), Verdict::Contradicted { first: ann });
        let agreed = Verdict::Agreed { first: ann, note: text("b") };
        assert_eq!(say("1", true, lee, "e"), agreed);
        assert_eq!(say("1", true, lee, "f"), Verdict::Proposed);
    }

    #[test]
    fn proposals_expire_and_are_bounded() {
        let (mut proposals, now) = (Proposals::default(), Instant::now());
        let (ann, lee, note) = (text("ann"), text("lee"), text("n"));
        for number in 0..PROPOSALS_MAX {
            let decision = decision(&number.to_string(), true);
            assert_eq!(proposals.say(decision, ann, note, now), Verdict::Proposed);
        }
        assert_eq!(proposals.say(decision("x", true), ann, note, now), Verdict::Full);
        let later = now + PROPOSAL_LIFE;
        assert_eq!(proposals.say(decision("1", true), lee, note, later), Verdict::Proposed);
    }
}
