//! `loadgen report`: pages made from the JSON of earlier results.
//!
//! One result becomes its page, two of a kind a comparison, several drills a page that
//! sums them up. Tested on fixed results, and in a real browser.

use super::html::Document;
use super::view::{Drill, View};
use super::{compare, page_drill, page_run, page_search};
use crate::exit::{self, Failure};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Most drills on one page.
const FILES_MAX: usize = 100;

/// Arguments of `loadgen report`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReportArgs {
    /// JSON of `run`, `demo`, `search` or `drill`: one for its page, two of a kind to compare
    /// them, several drills to sum them up.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where the page goes.
    #[arg(long, visible_alias = "html")]
    out: PathBuf,
    /// Sum up two drills, too, in place of comparing them.
    #[arg(long)]
    summary: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ReportArgs) -> Result<(), Failure> {
    if args.files.len() > FILES_MAX {
        return Err(Failure::usage(format_args!("at most {FILES_MAX} files")));
    }
    exit::writable(&args.out)?;
    let views = args.files.iter().map(|file| View::load(file)).collect::<Result<Vec<_>, _>>()?;
    let document = match views.as_slice() {
        [view] => page(view),
        [a, b] if !args.summary => {
            let side = |at: usize, view| {
                let name = args.files[at].file_name().unwrap_or_default().to_string_lossy();
                compare::Side { name: name.into_owned(), view }
            };
            compare::document(&side(0, a), &side(1, b)).ok_or_else(|| {
                Failure::usage("results of different kinds cannot be compared: give two of a kind")
            })?
        }
        views => summary(views)?,
    };
    save(&document, &args.out)?;
    println!("report    {}", args.out.display());
    Ok(())
}

fn page(view: &View) -> Document {
    match view {
        View::Run(run) => page_run::document(run),
        View::Drill(drill) => page_drill::document(drill),
        View::Search(search) => page_search::document(search),
    }
}

fn summary(views: &[View]) -> Result<Document, Failure> {
    let drill = |view: &View| match view {
        View::Drill(drill) => Ok(Drill::clone(drill)),
        View::Run(_) | View::Search(_) => {
            Err(Failure::usage("only drills can be summed up; give one or two runs or searches"))
        }
    };
    let drills = views.iter().map(drill).collect::<Result<Vec<Drill>, _>>()?;
    Ok(page_drill::summary(&drills))
}

fn save(document: &Document, path: &Path) -> Result<(), Failure> {
    std::fs::write(path, document.render()).map_err(|error| {
        Failure::environment(format_args!("cannot write {}: {error}", path.display()))
    })
}

fn view_of(result: &impl Serialize) -> Result<View, Failure> {
    let value = serde_json::to_value(result);
    let value = value.map_err(|error| Failure::environment(error.to_string()))?;
    View::of(value).map_err(Failure::environment)
}

/// Writes the page of a result that was just made, and tells where.
pub(crate) fn write(result: &impl Serialize, path: &Path) -> Result<(), Failure> {
    save(&page(&view_of(result)?), path)?;
    println!("report    {}", path.display());
    Ok(())
}

/// Writes the page that sums up drills that were just played, and tells where.
pub(crate) fn write_summary(drills: &[impl Serialize], path: &Path) -> Result<(), Failure> {
    let views = drills.iter().map(view_of).collect::<Result<Vec<_>, _>>()?;
    save(&summary(&views)?, path)?;
    println!("report    {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HOSTILE: &str = "</title><script>alert('x')</script>";

    /// Ten intervals, of which the fourth to sixth are hit.
    fn timeline() -> Value {
        json!({
            "interval_ms": 100,
            "planned": [100, 100, 100, 100, 100, 100, 100, 100, 100, 100],
            "sent": [100, 100, 100, 100, 100, 100, 100, 100, 100, 100],
            "ok": [100, 100, 100, 66, 66, 160, 100, 100, 100, 100],
            "by_site": {
                "1": [34, 34, 34, 0, 0, 50, 50, 50, 34, 34],
                "2": [33, 33, 33, 33, 33, 60, 25, 25, 33, 33],
                "3": [33, 33, 33, 33, 33, 50, 25, 25, 33, 33],
            },
            "failed": {"NO_LEADER": [0, 0, 0, 5, 3, 0, 0, 0, 0, 0]},
            "p50_us": [900, 910, 905, 950, 960, 930, 900, 900, 900, null],
            "p90_us": [2000, 2000, 2000, 90000, 80000, 2000, 2000, 2000, 2000, null],
            "p99_us": [4000, 4000, 4000, 190000, 120000, 5000, 4000, 4000, 4000, null],
            "max_us": [6000, 6000, 6000, null, 130000, 9000, 6000, 6000, 6000, null],
            "never": [0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            "in_flight": [3, 3, 3, 40, 60, 3, 3, 3, 3, 3],
            "waiting": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            "late_p99_us": [120, 130, 110, 150, 140, 120, 110, 120, 120, 110],
            "late_max_us": [220, 230, 210, 950, 240, 220, 210, 220, 220, 210],
        })
    }

    fn run_json() -> Value {
        json!({
            "version": "0.1.0", "seed": 1, "command": format!("loadgen run --config {HOSTILE}"),
            "started_unix": 1_798_718_399_u64, "offered_rate": 1000.0, "achieved_rate": 992.0,
            "duration_s": 1.0, "warmup_s": 0.1, "sent": 1000, "ok": 992, "refused": 8,
            "by_code": {"OK": 992, "NO_LEADER": 8},
            "latency_us": {"p50": 905, "p90": 2000, "p99": 120000, "p999": null, "max": null, "count": 1000},
            "operations": {
                "pay": {"sent": 800, "ok": 795, "latency_us": {"p50": 905, "count": 795}},
                HOSTILE: {"sent": 200, "ok": 197}
            },
            "generator": {"valid": true, "reason": null, "own_lateness_us": {"p99": 130}},
            "goals": [{"goal": "p99=10ms", "met": false, "measured": "120.000 ms"}],
            "marks": [{"at_ms": 310, "until_ms": 700, "site": 1, "text": "kill -9 of site 1"}],
            "windows": [{"shard": 0, "from_ms": 312.0, "until_ms": 403.5}],
            "leaders_before": [1, 2, 3],
            "distribution": {
                "planned": [[0.0, 500], [0.5, 905], [0.9, 2000], [0.99, 120000], [0.999, null]],
                "raw": [[0.0, 490], [0.5, 880], [0.9, 1900], [0.99, 90000], [0.999, null]]
            },
            "audit": {"checked": {"payments": 800}, "sums": {"log_paid": 12}, "violation_count": 1,
                      "violations": [{"invariant": 3, "detail": HOSTILE, "payment": "ab"}]},
            "machine": {"cpu": HOSTILE, "cores": 2, "memory_mib": 24000, "kernel": "6.1", "system": "Debian"},
            "timeline": timeline(),
        })
    }

    fn drill_json(passed: bool) -> Value {
        json!({
            "drill": "kill-site", "about": "kill -9 of a site, and its return", "version": "0.1.0",
            "sites": 3, "load_rate": 2000.0, "passed": passed,
            "unavailability": {"p50": 91.0, "p99": 120.0, "max": 120.0, "count": 4},
            "errors_by_code": {"NO_LEADER": 8}, "errors_elsewhere": 0,
            "latency_us": {"before": {"p50": 900, "count": 9}, "during": {"p50": 950, "p99": 99000},
                           "after": {"p50": 905}},
            "distribution": {"before": [[0.5, 900]], "during": [[0.5, 950], [0.99, 99000]]},
            "audit": {"checked": {"payments": 800}, "violation_count": 0},
            "targets": [{"target": "unavailable p50 <= 100 ms", "met": passed, "measured": "91.0 ms"}],
            "repetitions": [
                {"victims": [1], "level_ms": [300], "leaders_before": [1, 2],
                 "unavailability_ms": [{"shard": 0, "ms": 91.5}], "timeline": timeline(),
                 "marks": [{"at_ms": 310, "until_ms": 700, "text": "kill -9 of site 1"}],
                 "windows": [{"shard": 0, "from_ms": 312.0, "until_ms": 403.5}]},
                {"victims": [2], "unavailability_ms": [{"shard": 1, "ms": null}]},
            ],
        })
    }

    fn rendered(value: Value) -> String {
        page(&View::of(value).unwrap()).render()
    }

    #[test]
    fn the_page_of_a_run_has_all_its_parts() {
        let page = rendered(run_json());
        for part in [
            "<h2>Over time</h2>",
            "<h4>Throughput</h4>",
            "<h4>Latency from the planned time</h4>",
            "<h4>Who answered</h4>",
            "<h4>Unavailability by shard</h4>",
            "<h4>Failures by code</h4>",
            "<h4>Latency distribution</h4>",
            "<h2>Audit</h2>",
            "<h2>Machine and command</h2>",
            "kill -9 of site 1",
            "site 3",
            "shard 0, site 1",
            "1 violation",
            "1 of 1 missed",
            "NO_LEADER",
            "905 µs",
            "120 ms",
            "99.9 %",
            "from here on: never answered",
            "2026-12-31 11:59 UTC",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(page.matches("<svg ").count() >= 7, "{}", page.matches("<svg ").count());
        assert_eq!(page.matches("<svg ").count(), page.matches("</svg>").count());
        assert!(!page.contains("<script") && !page.contains("NaN") && !page.contains("inf\""));
    }

    #[test]
    fn a_run_without_times_and_faults_still_has_a_page() {
        let page = rendered(json!({"offered_rate": 10.0}));
        assert!(page.contains("<h2>Latency</h2>") && page.contains("not audited"));
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn the_page_of_a_drill_shows_the_worst_repetition_whose_figures_were_kept() {
        let page = rendered(drill_json(true));
        for part in [
            "Drill: kill-site",
            "all 1 met",
            "clean",
            "Repetition 1 of 2",
            "91 ms",
            "never",
            "The takeover, close up",
            "during it",
        ] {
            assert!(page.contains(part), "{part}");
        }
    }

    /// Every target is met and nothing was found, and it is a failure all the same.
    fn broken_off() -> Value {
        let mut drill = drill_json(true);
        drill["passed"] = json!(false);
        drill["ended"] = json!("site 2 is not level\nafter 60 s");
        drill
    }

    #[test]
    fn a_drill_that_broke_off_is_not_green() {
        let page = rendered(broken_off());
        let badges = &page[..page.find("<h2>").unwrap()];
        let first = badges.find("<li class=\"badge bad\">").unwrap();
        assert_eq!(badges.find("<li class=\"badge "), Some(first), "the verdict comes first");
        for part in ["broke off", "site 2 is not level", "all 1 met", "not complete"] {
            assert!(badges.contains(part), "{part}");
        }
        assert!(page.contains("<pre><code>site 2 is not level\nafter 60 s</code></pre>"));
        assert!(rendered(drill_json(true)).contains("<strong>passed</strong>"));
        // An audit that missed the last repetition is none of the whole.
        let mut early = drill_json(true);
        early["audited"] = json!(1);
        assert!(rendered(early.clone()).contains("not complete"));
        early["audited"] = json!(2);
        assert!(!rendered(early).contains("not complete"));
    }

    #[test]
    fn a_drill_that_broke_off_is_neither_passed_nor_clean_among_others() {
        let views = [drill_json(true), broken_off()].map(|json| View::of(json).unwrap());
        let page = summary(&views).unwrap().render();
        assert_eq!(
            page.matches("<strong>1 of 2</strong>").count(),
            2,
            "passed, and audits that are clean"
        );
        assert!(page.contains("broke off: site 2 is not level"));
        let mut violated = broken_off();
        violated["audit"]["violation_count"] = json!(1);
        let views = [View::of(violated).unwrap()];
        let page = summary(&views).unwrap().render();
        assert!(
            page.contains("failed: the audit found violations") && page.contains("1 violation")
        );
    }

    #[test]
    fn refusals_are_in_the_latency_of_a_page_and_what_was_admitted_beside_it() {
        let mut run = run_json();
        run["latency_us"] = json!({"p50": 905, "p90": 2_000, "count": 1_000});
        run["latency_admitted_us"] = json!({"p50": 900, "p90": 1_900, "p99": 7_700, "p999": 9_000, "max": 9_900, "count": 980});
        run["distribution"]["admitted"] = json!([[0.0, 500], [0.99, 7_700]]);
        let page = rendered(run.clone());
        for part in [
            "<dt>Latency p99</dt><dd>never</dd>",
            "7.7 ms of what was admitted",
            "all, admitted",
            "from the planned time, admitted",
        ] {
            assert!(page.contains(part), "{part}");
        }
        // Where nothing was refused there is nothing to tell apart.
        run["refused"] = json!(0);
        assert!(!rendered(run).contains("admitted"));
    }

    #[test]
    fn two_results_are_compared_with_ratios() {
        let (mut better, worse) = (run_json(), run_json());
        better["latency_us"]["p50"] = json!(1810);
        let (a, b) = (View::of(worse).unwrap(), View::of(better).unwrap());
        let side = |name: &str, view| compare::Side { name: name.to_owned(), view };
        let page = compare::document(&side("a.json", &a), &side(HOSTILE, &b)).unwrap().render();
        for part in ["a.json", "× 2.00", "graded bad", "p99 from the planned time", "× 1.00"] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("<script"));
        let drill = View::of(drill_json(true)).unwrap();
        assert!(compare::document(&side("a", &a), &side("d", &drill)).is_none());
        let page = compare::document(&side("a", &drill), &side("d", &drill)).unwrap().render();
        assert!(page.contains("unavailable, p50") && page.contains("91 ms"));
    }

    #[test]
    fn many_drills_are_summed_up_in_a_table_with_a_part_for_each() {
        let views = [drill_json(true), drill_json(false)].map(|json| View::of(json).unwrap());
        let page = summary(&views).unwrap().render();
        for part in ["1 of 2", "passed", "missed: unavailable p50", "<h3>Over time</h3>"] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<h2>kill-site</h2>").count(), 2);
        let mixed = [views[0].clone(), View::of(run_json()).unwrap(), views[1].clone()];
        assert!(summary(&mixed).is_err());
    }
}
