//! The whole transition table of an attempt, illegal pairs included, held as
//! a snapshot: whoever changes a rule sees which cells move.

use crate::engine::attempt::{Asked, Facts, Step, step};
use crate::engine::order::{AttemptState, Class};
use std::fmt::Write;

fn cell(step: Step) -> String {
    match step {
        Step::To(state) => format!(">{}", state.name()),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn table(facts: &Facts) -> String {
    let mut text = String::new();
    for asked in [Asked::Charge, Asked::Query, Asked::Reverse] {
        for state in AttemptState::ALL {
            let _ = write!(text, "{asked:?} {}:", state.name());
            for class in
                Class::ALL.iter().filter(|c| !matches!(c, Class::RouteEnded | Class::Noted))
            {
                let _ = write!(text, " {}", cell(step(state, asked, *class, facts)));
            }
            text.push('\n');
        }
    }
    text
}

/// Columns: SUCCESS DECLINED PENDING NOT_FOUND REVERSED SILENT NOT_SENT
/// INTEGRITY BUDGET_SPENT.
#[test]
fn the_table_of_an_idempotent_fencing_channel() {
    let facts = Facts {
        idempotent_pay: true,
        reversible: true,
        fences: true,
        wanted: true,
        ..Facts::default()
    };
    let expected = include_str!("table.snap");
    let actual = table(&facts);
    assert_eq!(actual, expected, "new table:\n{actual}");
}

#[test]
fn definitive_states_are_never_left_whatever_the_facts() {
    for bits in 0..512_u32 {
        let bit = |at: u32| bits >> at & 1 == 1;
        let facts = Facts {
            idempotent_pay: bit(0),
            reversible: bit(1),
            fences: bit(2),
            wanted: bit(3),
            lifetime_over: bit(4),
            reversal_refused: bit(5),
            known: bit(8),
            reversal_started: bit(6),
            void_by_reversal: bit(7),
        };
        for asked in [Asked::Charge, Asked::Query, Asked::Reverse] {
            for class in Class::ALL {
                for state in AttemptState::ALL {
                    let to = step(state, asked, class, &facts);
                    if state.is_definitive() {
                        assert!(
                            !matches!(to, Step::To(_) | Step::Resend | Step::Fence),
                            "{state:?}"
                        );
                    }
                    // Silence proves nothing, from any state.
                    if class == Class::Silent {
                        assert!(!matches!(to, Step::To(_)), "{state:?}");
                    }
                    // Only a fence or time makes our own reversal final.
                    let reversal = state == AttemptState::Reversing && class == Class::Reversed;
                    if reversal && !facts.fences && !facts.lifetime_over {
                        assert_eq!(to, Step::Wait);
                    }
                    // "Not found" is final only when nothing can wander any more.
                    if class == Class::NotFound && !facts.lifetime_over {
                        assert!(!matches!(to, Step::To(_)), "{state:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn not_found_resends_fences_or_waits_by_contract() {
    let ask = |facts: &Facts| step(AttemptState::Unknown, Asked::Query, Class::NotFound, facts);
    let base = Facts { wanted: true, ..Facts::default() };
    assert_eq!(ask(&base), Step::Wait);
    assert_eq!(ask(&Facts { idempotent_pay: true, ..base }), Step::Resend);
    assert_eq!(ask(&Facts { reversible: true, ..base }), Step::Fence);
    assert_eq!(ask(&Facts { idempotent_pay: true, wanted: false, ..base }), Step::Wait);
    assert_eq!(ask(&Facts { lifetime_over: true, ..base }), Step::To(AttemptState::Void));
    assert_eq!(ask(&Facts { lifetime_over: true, known: true, ..base }), Step::Wait);
}
