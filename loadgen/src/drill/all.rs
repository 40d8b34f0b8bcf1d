//! `loadgen drill all`: the whole catalogue, unattended.
//!
//! A drill that fails does not stop the others; Ctrl-C does, and what was done is summed
//! up all the same.

use super::catalogue::{Case, Drill};
use super::figures::{Report, Row};
use super::{DrillArgs, Setting, drill, weighed, work};
use crate::exit::{Exit, Failure};
use crate::interrupt::{Stop, Watch};
use crate::{report, space};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// A drill that this machine cannot play.
#[derive(Serialize)]
struct Skipped {
    drill: &'static str,
    reason: String,
}

/// All of it, as it stands in the JSON.
#[derive(Serialize)]
struct Summary {
    version: &'static str,
    sites: u8,
    rate: f64,
    seconds: f64,
    passed: usize,
    /// Not all of the catalogue was played.
    interrupted: bool,
    skipped: Vec<Skipped>,
    drills: Vec<Report>,
}

/// Runs the catalogue.
pub(super) async fn run(args: &DrillArgs, stop: &Stop) -> Result<(), Failure> {
    args.check()?;
    if args.hlog.is_some() {
        return Err(Failure::usage("--hlog is of one drill, not of all"));
    }
    if args.story.dir.is_some() {
        // All of it stays. What does not is looked at before each drill.
        space::check(args.story.dir.as_deref(), bytes(args)?)?;
    }
    let started = Instant::now();
    // The drill that runs answers a signal; that there was one must be known here, too.
    let watch = Watch::new();
    let mut summary = Summary {
        version: env!("CARGO_PKG_VERSION"),
        sites: args.sites,
        rate: args.full_rate(),
        seconds: 0.0,
        passed: 0,
        interrupted: false,
        skipped: Vec::new(),
        drills: Vec::new(),
    };
    let mut verdicts = Vec::new();
    play(args, (stop, watch), &mut summary, &mut verdicts).await;
    summary.interrupted = !watch.quiet();
    summary.seconds = started.elapsed().as_secs_f64();
    let written = finish(args, &summary);
    weighed(verdict(&summary, verdicts), written)
}

/// What all drills that can be played will write.
fn bytes(args: &DrillArgs) -> Result<f64, Failure> {
    let mut sum = 0.0;
    for one in Drill::ALL {
        let case = one.asked(args);
        if case.needs.check().is_ok() {
            let own = own(args, one, &case);
            let (sites, rate) = (args.sites, args.full_rate());
            sum += work(&Setting { case: &case, sites, rate, args: &own })?.bytes();
        }
    }
    Ok(sum)
}

/// One drill's arguments.
fn own(args: &DrillArgs, drill: Drill, case: &Case) -> DrillArgs {
    let mut own = args.clone();
    own.story.dir = args.story.dir.as_ref().map(|dir| dir.join(drill.name()));
    if case.course.left_out() > 0 {
        // There is one spare for it.
        own.repeat = 1;
    }
    own
}

/// Whether this machine can play a drill now.
fn playable(setting: &Setting<'_>) -> Result<(), Failure> {
    setting.case.needs.check()?;
    match setting.args.story.dir {
        // There is room for all of them.
        Some(_) => Ok(()),
        None => space::check(None, work(setting)?.bytes()),
    }
}

async fn play(
    args: &DrillArgs,
    (stop, watch): (&Stop, Watch),
    summary: &mut Summary,
    verdicts: &mut Vec<Failure>,
) {
    for (number, one) in Drill::ALL.into_iter().enumerate() {
        if !watch.quiet() {
            return;
        }
        println!("\n[{}/{}]", number + 1, Drill::ALL.len());
        let case = one.asked(args);
        let own = own(args, one, &case);
        let setting = Setting { case: &case, sites: args.sites, rate: summary.rate, args: &own };
        if let Err(failure) = playable(&setting) {
            println!("{}: SKIPPED: {}", one.name(), failure.message);
            summary.skipped.push(Skipped { drill: one.name(), reason: failure.message });
            continue;
        }
        let (report, ended) = drill(&setting, stop).await;
        if let Err(failure) = weighed(report.verdict(), ended) {
            let first = failure.message.lines().next().unwrap_or_default();
            println!("{}: FAILED: {first}", one.name());
            verdicts.push(failure);
        } else {
            summary.passed += 1;
        }
        summary.drills.push(report);
    }
}

fn finish(args: &DrillArgs, summary: &Summary) -> Result<(), Failure> {
    let rows: Vec<Row> = summary.drills.iter().map(Report::row).collect();
    println!("\n{}", table(&rows));
    for skipped in &summary.skipped {
        println!("{:<22}skipped: {}", skipped.drill, skipped.reason);
    }
    println!(
        "\n{} of {} drills passed, {} skipped, in {:.0} s{}",
        summary.passed,
        Drill::ALL.len(),
        summary.skipped.len(),
        summary.seconds,
        if summary.interrupted { "; stopped before the end" } else { "" }
    );
    if let Some(path) = &args.json {
        write(summary, path)?;
    }
    match &args.report {
        Some(path) if !summary.drills.is_empty() => report::write_summary(&summary.drills, path),
        _ => Ok(()),
    }
}

fn write(summary: &Summary, path: &Path) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(summary).map_err(std::io::Error::from);
    json.and_then(|json| std::fs::write(path, json + "\n")).map_err(|error| {
        Failure::environment(format_args!("cannot write {}: {error}", path.display()))
    })
}

/// One line per drill.
fn table(rows: &[Row]) -> String {
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    let mut lines = vec![format!(
        "{:<22}{:>9}{:>12}{:>17}{:>8}{:>28}  verdict",
        "drill", "payments", "violations", "gap p50/max ms", "failed", "p99 before/during/after ms"
    )];
    for row in rows {
        let gap = row.gap_ms.map_or_else(
            || "-".to_owned(),
            |[p50, max]| format!("{} / {}", ms(Some(p50)), ms(Some(max))),
        );
        let p99 = row.p99_ms.map(ms).join(" / ");
        let violations = row.violations.map_or_else(|| "-".to_owned(), |count| count.to_string());
        lines.push(format!(
            "{:<22}{:>9}{violations:>12}{gap:>17}{:>8}{p99:>28}  {}",
            row.drill, row.payments, row.failed, row.verdict
        ));
    }
    lines.join("\n")
}

/// The worst of all: a violation, then a target that was missed, then the rest.
fn verdict(summary: &Summary, verdicts: Vec<Failure>) -> Result<(), Failure> {
    let order = [Exit::Audit, Exit::Missed, Exit::Usage, Exit::Environment, Exit::Invalid];
    let count = verdicts.len();
    let rank = |failure: &Failure| order.iter().position(|exit| *exit == failure.exit);
    let worst = verdicts.into_iter().min_by_key(rank);
    match worst {
        Some(worst) => {
            let first = worst.message.lines().next().unwrap_or_default();
            Err(Failure::new(worst.exit, format_args!("{count} drills failed, the worst: {first}")))
        }
        None if summary.interrupted => Err(super::stopped()),
        None if summary.drills.is_empty() => {
            Err(Failure::new(Exit::Invalid, "no data: every drill was skipped"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn summary(interrupted: bool) -> Summary {
        Summary {
            version: "",
            sites: 3,
            rate: 1.0,
            seconds: 1.0,
            passed: 0,
            interrupted,
            skipped: Vec::new(),
            drills: Vec::new(),
        }
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: DrillArgs,
    }

    fn args(words: &[&str]) -> DrillArgs {
        Line::parse_from(["loadgen"].iter().chain(words)).args
    }

    #[tokio::test]
    async fn a_drill_for_which_there_is_no_room_is_skipped_and_says_why() {
        // More than any disk holds.
        let mut summary = Summary { rate: 1e15, ..summary(false) };
        let (stop, mut verdicts) = ((&Stop::new(), Watch::new()), Vec::new());
        play(&args(&["all"]), stop, &mut summary, &mut verdicts).await;
        assert_eq!((summary.skipped.len(), summary.drills.len()), (Drill::ALL.len(), 0));
        let kill = summary.skipped.iter().find(|skipped| skipped.drill == "kill-site").unwrap();
        assert!(kill.reason.starts_with("no room in "), "{}", kill.reason);
        // What stays was looked at as a whole.
        let case = Drill::KillSite.asked(&args(&["all"]));
        let kept = args(&["all", "--dir", "/nowhere"]);
        let setting = Setting { case: &case, sites: 3, rate: 1e15, args: &kept };
        assert_eq!(playable(&setting), Ok(()));
    }

    #[test]
    fn a_violation_counts_more_than_a_missed_target_and_nothing_is_no_pass() {
        let of = |exits: &[Exit]| {
            let failures = exits.iter().map(|exit| Failure::new(*exit, "why\nmore")).collect();
            verdict(&summary(true), failures).err().unwrap()
        };
        let worst = of(&[Exit::Invalid, Exit::Audit, Exit::Missed]);
        assert_eq!(worst.exit, Exit::Audit);
        assert_eq!(worst.message, "3 drills failed, the worst: why");
        assert_eq!(of(&[Exit::Environment, Exit::Missed]).exit, Exit::Missed);
        assert_eq!(of(&[]).message, "stopped before the end");
        assert_eq!(verdict(&summary(false), Vec::new()).err().unwrap().exit, Exit::Invalid);
    }

    #[test]
    fn the_table_has_a_line_per_drill_and_says_what_is_missing() {
        let row = Row {
            drill: "kill-site".to_owned(),
            verdict: "passed".to_owned(),
            violations: Some(0),
            payments: 12_345,
            gap_ms: Some([100.04, 200.0]),
            failed: 0,
            p99_ms: [Some(5.0), None, Some(6.0)],
        };
        let none = Row { violations: None, gap_ms: None, ..row.clone() };
        let table = table(&[row, none]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(lines[1]), "kill-site 12345 0 100.0 / 200.0 0 5.0 / - / 6.0 passed");
        assert_eq!(words(lines[2]), "kill-site 12345 - - 0 5.0 / - / 6.0 passed");
    }
}
