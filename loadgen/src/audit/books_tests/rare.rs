//! Histories that are right and out of the ordinary, which the audit must pass, each
//! beside what is wrong and looks like it.

use super::*;

impl History {
    /// Attempts up to `last` have begun, all before it declined by log and channel.
    fn tried(last: u8) -> Self {
        let mut history = Self::new();
        history.begin();
        for attempt in 1..last {
            history.end(attempt, Ending::Declined, true);
            history.record(Fact::Attempt(attempt + 1));
            history.charge(attempt, ChannelStatus::Declined, history.amount());
        }
        history
    }

    /// As [`Self::tried`], the last one paid.
    fn paid_by(last: u8) -> Self {
        let mut history = Self::tried(last);
        history.end(last, Ending::Succeeded, false);
        history.charge(last, ChannelStatus::Success, history.amount());
        history.told(OrderState::Paid);
        history
    }
}

#[test]
fn as_many_attempts_as_the_rules_allow_are_clean() {
    for last in [4, 5, 6, 16] {
        assert_eq!(History::paid_by(last).broken(), CLEAN, "{last}");
    }
}

#[test]
fn late_attempts_are_held_to_the_rules_of_early_ones() {
    let broken = |doctor: fn(&mut History)| {
        let mut history = History::paid_by(6);
        doctor(&mut history);
        history.broken()
    };
    // Declined attempt 5 was charged after all, and again under the number of 6.
    let found = broken(|history| history.charge(5, ChannelStatus::Success, history.amount()));
    assert!(found.contains(&1) && found.contains(&19), "{found:?}");
    assert_eq!(broken(|history| history.charge(7, ChannelStatus::Declined, 1)), [2]);
    assert_eq!(broken(|history| history.end(5, Ending::Succeeded, false)), [11]);
    assert_eq!(broken(|history| history.end(7, Ending::Declined, false)), [2]);
    let mut history = History::tried(6);
    history.end(6, Ending::Succeeded, false);
    history.told(OrderState::Paid);
    assert_eq!(history.broken(), [3, 20], "nothing was charged");
    let mut history = History::tried(5);
    history.record(Fact::Attempt(6));
    let found = history.broken();
    assert!(found.contains(&7), "{found:?}");
    let mut history = History::tried(16);
    history.end(16, Ending::Declined, true);
    history.record(Fact::Attempt(17));
    let found = history.broken();
    assert!(found.contains(&7), "{found:?}");
}
