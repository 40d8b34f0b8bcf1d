//! Rules that tests weaken one at a time, to show that the checker notices
//! (docs/STATES.md, C12). Outside tests every rule is in force and the switch
//! costs nothing.

/// A weakened rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Weakness {
    TimeoutIsDecline,
    NotFoundIsFinal,
    GiveUpIsFailed,
    SendBeforeCommitted,
    AnswerBeforeCommitted,
    LateSuccessFlipsClosed,
    DoubtDropsReservation,
    CancelIgnoresRefunds,
    NewNumberOnRefundRetry,
    StepDownKeepsProposals,
    ReadWithoutBarrier,
    LimitsStayUnused,
    SendWithoutLease,
}

impl super::Engine {
    /// Weakens a rule, or none.
    #[cfg(test)]
    pub(crate) fn break_rule(&mut self, rule: Option<Weakness>) {
        self.weakness = rule;
    }

    #[cfg(test)]
    pub(crate) fn weakened(&self, rule: Weakness) -> bool {
        self.weakness == Some(rule)
    }

    #[cfg(not(test))]
    #[inline(always)]
    pub(crate) const fn weakened(&self, _: Weakness) -> bool {
        false
    }

    /// An ordinal never used before, for the weakness that renumbers retries.
    #[cfg(test)]
    pub(super) fn next_salt(&self) -> u8 {
        self.salt.set(self.salt.get().wrapping_add(1));
        64 | (self.salt.get() & 63)
    }

    #[cfg(not(test))]
    pub(super) const fn next_salt(&self) -> u8 {
        0
    }
}
