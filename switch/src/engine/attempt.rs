//! The transition table of an attempt: one pure function from state, event and
//! facts to what must be done (docs/STATES.md, C3 and C8).
//!
//! It changes nothing by itself. Its whole table, illegal pairs included, is
//! held by a snapshot in `tests/table.rs`.

use super::order::{AttemptState, Class};

/// Which question the channel answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Charge,
    Query,
    Reverse,
}

/// What a decision depends on besides state and statement.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// The channel never charges one number twice.
    pub(super) idempotent_pay: bool,
    /// The channel can reverse.
    pub(super) reversible: bool,
    /// A confirmed reversal fences the number.
    pub(super) fences: bool,
    /// The order is neither cancelled nor expired.
    pub(super) wanted: bool,
    /// No request sent before can be acted on any more, and no answer given
    /// before that is still under way.
    pub(super) lifetime_over: bool,
    /// The channel has said that it has the charge: a later "no such number" was
    /// given earlier, or contradicts it.
    pub(super) known: bool,
    /// The channel refused the reversal so often that a success stands.
    pub(super) reversal_refused: bool,
    /// A reversal was started in the attempt's life.
    pub(super) reversal_started: bool,
    /// The attempt became void by a confirmed reversal.
    pub(super) void_by_reversal: bool,
}

/// What to do about an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: the statement is expected or says nothing new.
    Ignore,
    /// Propose this state.
    To(AttemptState),
    /// In doubt from now on: work it off by the query plan.
    Doubt,
    /// No answer yet: go on with the plan.
    Wait,
    /// Other money than was asked for stands while the reversal is under way:
    /// alarm, and let the reversal finish.
    Alarm,
    /// The channel never had it and it is still wanted: charge again under the
    /// same number.
    Resend,
    /// Start reversing.
    Fence,
    /// The reversal was refused: ask what stands.
    AskCharge,
    /// A charge stands that nobody counts: give it back.
    Orphan,
    /// A charge that was reversed shows up: verify that it is revoked.
    Residue,
    /// A definitive state is contradicted: note it, ask once, alarm.
    Conflict,
}

/// The table.
pub(super) fn step(state: AttemptState, asked: Asked, class: Class, facts: &Facts) -> Step {
    use AttemptState as S;
    match state {
        S::Started | S::Unknown | S::Awaiting => open(state, asked, class, facts),
        S::Reversing => reversing(asked, class, facts),
        S::Manual => manual(asked, class, facts),
        S::Succeeded => match class {
            Class::Declined | Class::Reversed if asked != Asked::Reverse => Step::Conflict,
            Class::Integrity => Step::Conflict,
            _ => Step::Ignore,
        },
        S::Declined | S::Void => match class {
            Class::Success if facts.void_by_reversal => Step::Residue,
            Class::Success => Step::Orphan,
            Class::Integrity => Step::Conflict,
            _ => Step::Ignore,
        },
    }
}

fn open(state: AttemptState, asked: Asked, class: Class, facts: &Facts) -> Step {
    use AttemptState as S;
    // Where a statement settles nothing: STARTED enters doubt, the others stay.
    let wait = if state == S::Started { Step::Doubt } else { Step::Wait };
    match class {
        Class::Success => Step::To(S::Succeeded),
        Class::Integrity => Step::To(S::Manual),
        // "Declined" to a reversal says that the reversal was refused, nothing
        // about the charge.
        Class::Declined if asked != Asked::Reverse => Step::To(S::Declined),
        Class::Reversed => Step::To(S::Void),
        Class::Pending if state == S::Started => Step::To(S::Awaiting),
        Class::NotSent if state == S::Started && asked == Asked::Charge => Step::To(S::Void),
        Class::NotFound if asked == Asked::Query => not_found(state, facts).unwrap_or(wait),
        Class::BudgetSpent => Step::To(S::Manual),
        _ => wait,
    }
}

/// "No such number" is no proof while a request may still be under way.
fn not_found(state: AttemptState, facts: &Facts) -> Option<Step> {
    let is_proof = facts.lifetime_over && !facts.known;
    if is_proof && !facts.wanted {
        return Some(Step::To(AttemptState::Void));
    }
    if state == AttemptState::Awaiting {
        return None;
    }
    if facts.idempotent_pay && facts.wanted {
        return Some(Step::Resend);
    }
    if is_proof {
        return Some(Step::To(AttemptState::Void));
    }
    facts.reversible.then_some(Step::Fence)
}

fn reversing(asked: Asked, class: Class, facts: &Facts) -> Step {
    use AttemptState as S;
    match (asked, class) {
        // Without a fence a wandering charge could still land after the reversal.
        (_, Class::Reversed) if facts.fences || facts.lifetime_over => Step::To(S::Void),
        (Asked::Reverse, Class::Success) => Step::To(S::Succeeded),
        (Asked::Reverse, Class::Declined) => Step::AskCharge,
        (Asked::Charge | Asked::Query, Class::Declined) => Step::To(S::Void),
        // Never acted on while the reversal is under way: it must finish first.
        (Asked::Query, Class::Success) if facts.reversal_refused => Step::To(S::Succeeded),
        // Where a success would stand, other money does: no rule knows what it is.
        (Asked::Reverse, Class::Integrity) => Step::To(S::Manual),
        (Asked::Query, Class::Integrity) if facts.reversal_refused => Step::To(S::Manual),
        (_, Class::Integrity) => Step::Alarm,
        (_, Class::BudgetSpent) => Step::To(S::Manual),
        _ => Step::Wait,
    }
}

fn manual(asked: Asked, class: Class, facts: &Facts) -> Step {
    use AttemptState as S;
    match class {
        // A reversal that wanders may still undo what stands at the moment.
        Class::Success if facts.reversal_started => Step::Ignore,
        Class::Success if asked != Asked::Reverse => Step::To(S::Succeeded),
        Class::Declined if asked != Asked::Reverse => Step::To(S::Declined),
        // Without a fence only time makes a reversal final, and nobody counts it here.
        Class::Reversed if facts.fences => Step::To(S::Void),
        _ => Step::Ignore,
    }
}
