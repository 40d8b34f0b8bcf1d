//! The page of a search: latency over load, and every rate that was tried.
//!
//! Pure. Tested on fixed results.

use super::chart::{BOTTOM, LEFT, RIGHT, TOP, WIDTH, log_range};
use super::html::{Badge, Block, Cell, Chapter, Document, Figure, Grade, Table, Tile};
use super::parts::{self, Value, key, tile, words};
use super::scale::{self, Scale};
use super::svg::{Anchor, Svg};
use super::view::{Search, Step};

const HEIGHT: f64 = 320.0;
/// Reasons of runs that say nothing of the switch.
const SAY_NOTHING: [&str; 2] = ["generator", "the sites are full"];
/// Percentiles that are drawn: class of the colour, name, value.
const LINES: [(&str, &str, Value); 3] =
    [("c1", "p50", |of| of.p50), ("c2", "p99", |of| of.p99), ("c3", "p99.9", |of| of.p999)];

/// The whole page.
pub(super) fn document(search: &Search) -> Document {
    let steps = by_rate(search);
    let mut chapters = Vec::new();
    if !steps.is_empty() {
        chapters.push(Chapter::new("Latency over load", vec![figure(&steps)]));
    }
    chapters.push(Chapter::new("Rates in the order tried", vec![table(search)]));
    chapters.push(parts::origin(&search.origin, None));
    Document {
        title: "Search".to_owned(),
        subtitle: format!("The highest rate that keeps {}", search.goals.join(", ")),
        badges: vec![badge(search)],
        tiles: tiles(search),
        chapters,
        footer: parts::footer(&search.origin),
    }
}

/// Runs that confirmed the rate.
fn confirmations(search: &Search) -> impl Iterator<Item = &Step> {
    let rate = search.rate.unwrap_or(f64::NAN);
    search.steps.iter().filter(move |step| step.confirmation && step.kept && step.rate == rate)
}

/// The rate that was found: what was answered in the least of its confirmations. The plan's
/// requests that were left out are no load.
pub(super) fn found(search: &Search) -> Option<f64> {
    search.rate?;
    confirmations(search).map(|step| step.report.achieved_rate).reduce(f64::min).or(search.rate)
}

/// The slowest confirmation stands for the rate: nothing is picked.
pub(super) fn slowest(search: &Search) -> Option<&Step> {
    let p99 = |step: &Step| step.report.latency_us.p99.unwrap_or(f64::INFINITY);
    confirmations(search).max_by(|a, b| p99(a).total_cmp(&p99(b)))
}

/// Why there is no rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// None keeps the goals.
    Rate,
    /// The search did not get so far, for this reason.
    Answer(&'static str),
}

/// How a search without a rate ended.
pub(super) fn without(search: &Search) -> Without {
    let generator = "the generator was the bottleneck twice, not the switch";
    let full = "the sites had no room left for payments";
    match search.ended.as_deref() {
        Some("generator_limited") => Without::Answer(generator),
        Some("sites_full") => Without::Answer(full),
        Some("stopped") => Without::Answer("the search was stopped"),
        Some("failed") => Without::Answer("the search failed before its end"),
        Some("tries_spent") => {
            Without::Answer("no rate was confirmed before the runs were used up")
        }
        Some(_) => Without::Rate,
        // Other versions.
        None if search.generator_limited => Without::Answer(generator),
        None if search.sites_full => Without::Answer(full),
        None => Without::Rate,
    }
}

/// What was found, or why nothing was.
pub(super) fn badge(search: &Search) -> Badge {
    let subject = "Highest rate".to_owned();
    if let Some(rate) = found(search) {
        let detail = format!(
            "{} more runs at {}/s confirmed it",
            confirmations(search).count(),
            scale::grouped(search.rate.unwrap_or(rate))
        );
        let verdict = format!("{} requests/s", scale::grouped(rate));
        return Badge { grade: Grade::Good, subject, verdict, detail };
    }
    let tried = match search.steps.len() {
        1 => "1 run".to_owned(),
        count => format!("{count} runs"),
    };
    let kept = search.steps.iter().filter(|step| step.kept).map(|step| step.rate);
    let kept = kept.reduce(f64::max).map_or_else(
        || "none kept the goals".to_owned(),
        |rate| format!("{}/s kept the goals, unconfirmed", scale::grouped(rate)),
    );
    match without(search) {
        Without::Rate => {
            let detail = format!("{} rates tried", search.steps.len());
            Badge { grade: Grade::Bad, subject, verdict: "none found".to_owned(), detail }
        }
        Without::Answer(reason) => {
            let detail = format!("{reason}; {tried}, {kept}");
            Badge { grade: Grade::Bad, subject, verdict: "not known".to_owned(), detail }
        }
    }
}

fn tiles(search: &Search) -> Vec<Tile> {
    let Some(rate) = found(search) else { return Vec::new() };
    let detail = "answered in the least of its confirmations";
    let mut tiles = vec![tile("Highest rate", format!("{}/s", scale::compact(rate)), detail)];
    if let Some(step) = slowest(search) {
        let time = |value: Value| scale::time_or(step.report.latency_us.of(value));
        let detail = "of its slowest confirmation";
        tiles.push(tile("Latency p50", time(|of| of.p50), detail));
        tiles.push(tile("Latency p99", time(|of| of.p99), detail));
        tiles.push(tile("Slowest", time(|of| of.max), detail));
    }
    tiles
}

fn figure(steps: &[&Step]) -> Block {
    let lines =
        LINES.map(|(class, name, value)| Line { class, label: name.to_owned(), steps, value });
    let caption = "Each place is one run at its offered rate; latency counts from the planned time. A \
                   percentile that failed requests decide leaves a gap. Runs that missed a goal stand \
                   at an upright line.";
    over_load("Latency over load", caption, &lines)
}

/// A percentile of the runs of a search, from the lowest rate to the highest.
pub(super) struct Line<'a> {
    pub(super) class: &'static str,
    pub(super) label: String,
    pub(super) steps: &'a [&'a Step],
    pub(super) value: Value,
}

impl Line<'_> {
    fn at(&self, step: &Step) -> Option<f64> {
        (self.value)(&step.report.latency_us)
    }
}

/// Lines over the offered rate.
pub(super) fn over_load(title: &str, caption: &str, lines: &[Line<'_>]) -> Block {
    Block::Figure(Figure {
        title: title.to_owned(),
        caption: caption.to_owned(),
        legend: lines.iter().map(|line| key(line.class, &line.label)).collect(),
        svg: curve(title, lines),
    })
}

/// The runs of a search by their rate.
pub(super) fn by_rate(search: &Search) -> Vec<&Step> {
    let mut steps: Vec<&Step> = search.steps.iter().collect();
    steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    steps
}

fn curve(title: &str, lines: &[Line<'_>]) -> String {
    let values = || {
        let all = lines.iter().flat_map(|line| line.steps.iter().map(|step| line.at(step)));
        all.flatten().filter(|us| *us > 0.0)
    };
    let steps = || lines.iter().flat_map(|line| line.steps);
    let range = log_range(values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let end = scale::nice_end(steps().map(|step| step.rate).fold(0.0, f64::max));
    let bottom = HEIGHT - BOTTOM;
    let x = Scale::linear((0.0, end), (LEFT, WIDTH - RIGHT - 16.0));
    let y = Scale::log(range, (bottom, TOP));
    let mut svg = Svg::new(WIDTH, HEIGHT);
    for tick in y.ticks(9) {
        svg.line("grid", (LEFT, y.at(tick)), (WIDTH - RIGHT, y.at(tick)));
        let place = (LEFT - 8.0, y.at(tick) + 4.0);
        svg.text("tick", place, Anchor::End, &scale::time(tick));
    }
    for tick in x.ticks(8) {
        svg.line("axis", (x.at(tick), bottom), (x.at(tick), bottom + 4.0));
        let text = format!("{}/s", scale::compact(tick));
        svg.text("tick", (x.at(tick), bottom + 18.0), Anchor::Middle, &text);
    }
    // The lines of one search share its steps.
    let searches = lines.iter().enumerate().filter(|(at, line)| {
        lines[..*at].iter().all(|earlier| !std::ptr::eq(earlier.steps, line.steps))
    });
    for step in searches.flat_map(|(_, line)| line.steps).filter(|step| !step.kept) {
        svg.rect("fault", (x.at(step.rate) - 1.0, TOP), (2.0, bottom - TOP), Some(&step.reason));
    }
    svg.line("axis", (LEFT, bottom), (WIDTH - RIGHT, bottom));
    svg.text("axis-title", (LEFT, 12.0), Anchor::Start, "Latency (log) over offered requests/s");
    for line in lines {
        let place = |step: &&Step| Some((x.at(step.rate), y.at(line.at(step)?)));
        svg.path(&format!("line {}", line.class), line.steps.iter().map(place));
        for step in line.steps {
            let Some(us) = line.at(step) else { continue };
            let rate = scale::grouped(step.rate);
            let title = format!("{} at {rate}/s: {}", line.label, scale::time(us));
            let place = (x.at(step.rate) - 4.0, y.at(us) - 4.0);
            svg.rect("hint", place, (8.0, 8.0), Some(&title));
        }
    }
    let labels: Vec<&str> = lines.iter().map(|line| line.label.as_str()).collect();
    svg.finish(&format!("{title}: {} by offered rate", labels.join(", ")))
}

fn table(search: &Search) -> Block {
    let row = |step: &Step| {
        let of = &step.report.latency_us;
        let time = |us: Option<f64>| Cell::Number(scale::time_or(us));
        let number = |value: f64| Cell::Number(scale::grouped(value));
        let verdict = match (step.kept, step.confirmation) {
            (true, true) => Cell::Graded(Grade::Good, "kept, a confirmation".to_owned()),
            (true, false) => Cell::Graded(Grade::Good, "kept".to_owned()),
            (false, _) if SAY_NOTHING.contains(&step.reason.as_str()) => {
                Cell::Graded(Grade::Open, format!("says nothing: {}", step.reason))
            }
            (false, _) => Cell::Graded(Grade::Bad, format!("missed: {}", step.reason)),
        };
        vec![
            number(step.rate),
            number(step.report.achieved_rate),
            time(of.of(|of| of.p50)),
            time(of.of(|of| of.p99)),
            time(of.of(|of| of.max)),
            number(step.report.not_sent as f64),
            time(step.report.generator.own_lateness_us.p99),
            verdict,
        ]
    };
    Block::Table(Table {
        caption: "The last column but one is the generator's own lateness.".to_owned(),
        head: words(&[
            "offered/s",
            "answered/s",
            "p50",
            "p99",
            "slowest",
            "not sent",
            "late p99",
            "goals",
        ]),
        rows: search.steps.iter().map(row).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::view::View;
    use super::*;
    use serde_json::{Value, json};

    fn step(rate: f64, p99: Value, kept: bool, confirmation: bool) -> Value {
        json!({
            "rate": rate, "kept": kept, "confirmation": confirmation,
            "reason": if kept { "" } else { "goal <script>" },
            "report": {"offered_rate": rate, "achieved_rate": rate * 0.99,
                       "latency_us": {"p50": 900, "p99": p99, "p999": null, "max": null, "count": 10}},
        })
    }

    fn rendered(rate: Value, steps: &[Value]) -> String {
        let json = json!({"goals": ["p99=10ms"], "rate": rate, "steps": steps, "command": "loadgen search"});
        let View::Search(search) = View::of(json).unwrap() else { panic!("no search") };
        document(&search).render()
    }

    #[test]
    fn the_curve_and_every_rate_are_shown() {
        let page = rendered(
            json!(20_000.0),
            &[
                step(40_000.0, Value::Null, false, false),
                step(20_000.0, json!(8_000), true, false),
                step(20_000.0, json!(9_000), true, true),
                step(20_000.0, json!(9_500), true, true),
            ],
        );
        for part in [
            // Of 20,000/s that were planned.
            "19,800 requests/s",
            "2 more runs at 20,000/s confirmed it",
            "9.5 ms",
            "never",
            "missed: goal &lt;script&gt;",
            "Latency over load",
            "kept, a confirmation",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("<script") && !page.contains("NaN") && !page.contains("inf\""));
        assert_eq!(page.matches("<svg ").count(), 1);
    }

    #[test]
    fn requests_that_were_left_out_are_no_part_of_the_rate_that_was_found() {
        let mut less = step(20_000.0, json!(9_000), true, true);
        less["report"]["achieved_rate"] = json!(17_500.0);
        let steps = [
            step(20_000.0, json!(9_000), true, false),
            step(20_000.0, json!(9_000), true, true),
            less,
        ];
        let page = rendered(json!(20_000.0), &steps);
        assert!(page.contains("17,500 requests/s") && page.contains("17.5k/s"), "{page}");
    }

    #[test]
    fn a_search_that_did_not_get_to_its_end_says_why() {
        let page = |ended: &str, steps: &[Value]| {
            let json = json!({"goals": ["p99=10ms"], "rate": null, "steps": steps, "ended": ended});
            let View::Search(search) = View::of(json).unwrap() else { panic!("no search") };
            document(&search).render()
        };
        let kept = step(20_000.0, json!(8_000), true, false);
        for (ended, reason) in [
            ("stopped", "the search was stopped"),
            ("tries_spent", "no rate was confirmed before the runs were used up"),
            ("generator_limited", "the generator was the bottleneck twice"),
            ("sites_full", "no room left"),
            ("failed", "failed before its end"),
        ] {
            let page = page(ended, std::slice::from_ref(&kept));
            assert!(!page.contains("none found"), "{ended}");
            for part in ["not known", reason, "1 run, 20,000/s kept the goals, unconfirmed"] {
                assert!(page.contains(part), "{ended}: {part}");
            }
        }
        assert!(page("stopped", &[]).contains("0 runs, none kept the goals"));
        assert!(page("not_found", &[]).contains("none found"));
        let mut silent = step(20_000.0, Value::Null, false, false);
        silent["reason"] = json!("generator");
        assert!(page("generator_limited", &[silent]).contains("says nothing: generator"));
    }

    #[test]
    fn a_search_that_found_nothing_says_so() {
        let page = rendered(Value::Null, &[]);
        assert!(page.contains("none found") && page.contains("0 rates tried"));
        assert!(!page.contains("NaN"));
    }
}
