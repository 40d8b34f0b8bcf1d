//! The page of a search: latency over load, and every rate that was tried.
//!
//! Pure. Tested on fixed results.

use super::chart::{BOTTOM, LEFT, RIGHT, TOP, WIDTH, log_range};
use super::html::{Badge, Block, Cell, Chapter, Document, Figure, Grade, Table, Tile};
use super::parts::{self, key, tile, words};
use super::scale::{self, Scale};
use super::svg::{Anchor, Svg};
use super::view::{Percentiles, Search, Step};

const HEIGHT: f64 = 320.0;
/// Percentiles that are drawn: class of the colour, name, value.
type Line = (&'static str, &'static str, fn(&Percentiles) -> Option<f64>);
const LINES: [Line; 3] =
    [("c1", "p50", |of| of.p50), ("c2", "p99", |of| of.p99), ("c3", "p99.9", |of| of.p999)];

/// The whole page.
pub(super) fn document(search: &Search) -> Document {
    let mut steps: Vec<&Step> = search.steps.iter().collect();
    steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
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

fn confirmations(search: &Search) -> usize {
    let rate = search.rate.unwrap_or(f64::NAN);
    let confirms = |step: &&Step| step.confirmation && step.kept && step.rate == rate;
    search.steps.iter().filter(confirms).count()
}

fn badge(search: &Search) -> Badge {
    let (verdict, detail) = match search.rate {
        Some(rate) => {
            let detail = format!("{} more runs confirmed it", confirmations(search));
            (format!("{} requests/s", scale::grouped(rate)), detail)
        }
        None if search.generator_limited => {
            let detail = "the generator was the bottleneck twice, not the switch";
            ("not known".to_owned(), detail.to_owned())
        }
        None if search.sites_full => {
            ("not known".to_owned(), "the sites had no room left for payments".to_owned())
        }
        None => ("none found".to_owned(), format!("{} rates tried", search.steps.len())),
    };
    let grade = Grade::of(search.rate.is_some());
    Badge { grade, subject: "Highest rate".to_owned(), verdict, detail }
}

/// The slowest confirmation stands for the rate: nothing is picked.
fn tiles(search: &Search) -> Vec<Tile> {
    let Some(rate) = search.rate else { return Vec::new() };
    let at = search.steps.iter().filter(|step| step.rate == rate && step.confirmation);
    let slowest = at.max_by(|a, b| {
        let p99 = |step: &Step| step.report.latency_us.p99.unwrap_or(f64::INFINITY);
        p99(a).total_cmp(&p99(b))
    });
    let mut tiles = vec![tile("Highest rate", format!("{}/s", scale::compact(rate)), "confirmed")];
    if let Some(step) = slowest {
        let of = &step.report.latency_us;
        let detail = "of its slowest confirmation";
        tiles.push(tile("Latency p50", scale::time_or(of.p50), detail));
        tiles.push(tile("Latency p99", scale::time_or(of.p99), detail));
        tiles.push(tile("Slowest", scale::time_or(of.max), detail));
    }
    tiles
}

fn figure(steps: &[&Step]) -> Block {
    Block::Figure(Figure {
        title: "Latency over load".to_owned(),
        caption: "Each place is one run at its offered rate; latency counts from the planned time. \
                  A percentile that was never answered leaves a gap. Runs that missed a goal stand at an \
                  upright line."
            .to_owned(),
        legend: LINES.iter().map(|(class, name, _)| key(class, name)).collect(),
        svg: curve(steps),
    })
}

fn curve(steps: &[&Step]) -> String {
    let values = || {
        let of = |step: &&Step| LINES.map(|(_, _, value)| value(&step.report.latency_us));
        steps.iter().flat_map(of).flatten().filter(|us| *us > 0.0)
    };
    let range = log_range(values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let end = scale::nice_end(steps.iter().map(|step| step.rate).fold(0.0, f64::max));
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
    for step in steps.iter().filter(|step| !step.kept) {
        svg.rect("fault", (x.at(step.rate) - 1.0, TOP), (2.0, bottom - TOP), Some(&step.reason));
    }
    svg.line("axis", (LEFT, bottom), (WIDTH - RIGHT, bottom));
    svg.text("axis-title", (LEFT, 12.0), Anchor::Start, "Latency (log) over offered requests/s");
    for (class, name, value) in LINES {
        let place = |step: &&Step| Some((x.at(step.rate), y.at(value(&step.report.latency_us)?)));
        svg.path(&format!("line {class}"), steps.iter().map(place));
        for step in steps {
            let Some(us) = value(&step.report.latency_us) else { continue };
            let rate = scale::grouped(step.rate);
            let title = format!("{name} at {rate}/s: {}", scale::time(us));
            let place = (x.at(step.rate) - 4.0, y.at(us) - 4.0);
            svg.rect("hint", place, (8.0, 8.0), Some(&title));
        }
    }
    svg.finish("Latency over load: p50, p99 and p99.9 by offered rate")
}

fn table(search: &Search) -> Block {
    let row = |step: &Step| {
        let of = &step.report.latency_us;
        let time = |us: Option<f64>| {
            let never = if of.count > 0 { "never" } else { "–" };
            Cell::Number(us.map_or_else(|| never.to_owned(), scale::time))
        };
        let number = |value: f64| Cell::Number(scale::grouped(value));
        let verdict = match (step.kept, step.confirmation) {
            (true, true) => "kept, a confirmation".to_owned(),
            (true, false) => "kept".to_owned(),
            (false, _) => format!("missed: {}", step.reason),
        };
        vec![
            number(step.rate),
            number(step.report.achieved_rate),
            time(of.p50),
            time(of.p99),
            time(of.max),
            number(step.report.not_sent as f64),
            time(step.report.generator.own_lateness_us.p99),
            Cell::Graded(Grade::of(step.kept), verdict),
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
            "20,000 requests/s",
            "2 more runs confirmed it",
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
    fn a_search_that_found_nothing_says_so() {
        let page = rendered(Value::Null, &[]);
        assert!(page.contains("none found") && page.contains("0 rates tried"));
        assert!(!page.contains("NaN"));
    }
}
