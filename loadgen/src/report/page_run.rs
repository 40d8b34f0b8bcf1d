//! The page of a run.
//!
//! Pure. Tested on fixed results.

use super::html::{Badge, Block, Cell, Chapter, Document, Grade, Table, Tile};
use super::parts::{self, Story, tile, words};
use super::scale;
use super::view::Run;

/// The whole page.
pub(super) fn document(run: &Run) -> Document {
    Document {
        title: "payswitch under load".to_owned(),
        subtitle: subtitle(run),
        badges: badges(run),
        tiles: tiles(run),
        chapters: chapters(run),
        footer: parts::footer(&run.origin),
    }
}

fn subtitle(run: &Run) -> String {
    let sites = run.timeline.as_ref().map_or(0, |timeline| timeline.by_site.len());
    let load = match run.closed_loop {
        true => "Closed loop, uncorrected".to_owned(),
        false => format!("{} requests/s offered", scale::grouped(run.offered_rate)),
    };
    let mut text = format!("{load} for {} s", scale::compact(run.duration_s));
    if sites > 0 {
        let plural = if sites == 1 { "site" } else { "sites" };
        text.push_str(&format!(", answered by {sites} {plural}"));
    }
    if run.warmup_s > 0.0 {
        text.push_str(&format!(", the first {} s not measured", scale::compact(run.warmup_s)));
    }
    if run.interrupted {
        text.push_str(", stopped before its end");
    }
    text
}

fn badges(run: &Run) -> Vec<Badge> {
    vec![
        generator_badge(run),
        parts::verdicts_badge("Goals", &run.goals),
        parts::audit_badge(run.audit.as_ref()),
        failures_badge(run),
    ]
}

fn generator_badge(run: &Run) -> Badge {
    let late = scale::time_or(run.generator.own_lateness_us.p99);
    let (verdict, detail) = match &run.generator.reason {
        None if run.generator.valid => ("kept up".to_owned(), format!("lateness p99 {late}")),
        None => ("not known".to_owned(), String::new()),
        Some(reason) => ("run is invalid".to_owned(), reason.clone()),
    };
    let grade = Grade::of(run.generator.valid);
    Badge { grade, subject: "Generator".to_owned(), verdict, detail }
}

fn failures_badge(run: &Run) -> Badge {
    let failed = run.refused.saturating_add(run.unanswered).saturating_add(run.not_sent);
    let detail = format!(
        "{} refused, {} unanswered, {} not sent",
        scale::grouped(run.refused as f64),
        scale::grouped(run.unanswered as f64),
        scale::grouped(run.not_sent as f64)
    );
    let (grade, verdict) = match (failed, run.planned()) {
        (_, 0) => (Grade::Open, "no data".to_owned()),
        (0, _) => (Grade::Good, "none failed".to_owned()),
        // Whether that is too much is for a goal to say.
        (failed, _) => (Grade::Open, format!("{} failed", scale::grouped(failed as f64))),
    };
    Badge { grade, subject: "Requests".to_owned(), verdict, detail }
}

fn tiles(run: &Run) -> Vec<Tile> {
    let latency = |name: &str, value: parts::Value| {
        let detail = match run.admitted() {
            Some(of) => format!("{} of what was admitted", scale::time_or(of.of(value))),
            None => "from the planned time".to_owned(),
        };
        tile(name, scale::time_or(run.latency_us.of(value)), detail)
    };
    let mut tiles = vec![
        tile(
            "Answered as asked",
            format!("{}/s", scale::compact(run.achieved_rate)),
            format!("{} in all", scale::grouped(run.ok as f64)),
        ),
        latency("Latency p50", |of| of.p50),
        latency("Latency p99", |of| of.p99),
        latency("Slowest", |of| of.max),
        tile(
            "Failed",
            run.failed_share().map_or_else(|| "–".to_owned(), scale::percent),
            "refused, unanswered, not sent",
        ),
    ];
    let longest = run.windows.iter().map(|window| window.length_ms()).reduce(f64::max);
    if let Some(longest) = longest {
        let detail = "a shard without an answer";
        tiles.push(tile("Longest window", scale::time(longest * 1e3), detail));
    }
    tiles
}

/// The chapters, for a page of its own or as a part of another.
fn chapters(run: &Run) -> Vec<Chapter> {
    let mut chapters = Vec::new();
    match &run.timeline {
        Some(timeline) => {
            let story = Story::new(timeline, run.warmup_s, &run.marks);
            chapters.push(Chapter::new("Over time", vec![story.throughput(), story.latency()]));
            let mut takeover: Vec<Block> = story.sites().into_iter().collect();
            takeover.extend(story.windows(&run.windows, &run.leaders_before));
            if !takeover.is_empty() {
                chapters.push(Chapter::new("Sites and shards", takeover));
            }
            chapters.push(Chapter::new("Failures", failures(run, Some(story.failures()))));
            chapters.push(Chapter::new("Latency", latency(run)));
            chapters.push(Chapter::new("The generator", generator(run, Some(story.generator()))));
        }
        None => {
            chapters.push(Chapter::new("Latency", latency(run)));
            chapters.push(Chapter::new("Failures", failures(run, None)));
            chapters.push(Chapter::new("The generator", generator(run, None)));
        }
    }
    if !run.goals.is_empty() {
        chapters.push(Chapter::new("Goals", vec![parts::verdicts("goal", &run.goals)]));
    }
    chapters.extend(run.audit.as_ref().map(parts::audit));
    chapters.push(parts::origin(&run.origin, Some(&run.host)));
    chapters
}

fn failures(run: &Run, figure: Option<Block>) -> Vec<Block> {
    let mut blocks: Vec<Block> = figure.into_iter().collect();
    blocks.push(parts::counts("Answers by code, the measured span.", "code", &run.by_code));
    if !run.retried_by_code.is_empty() {
        let caption = format!(
            "Answers that only said where to ask instead; the same request went out again ({} times \
             in all).",
            scale::grouped(run.resent as f64)
        );
        blocks.push(parts::counts(&caption, "code", &run.retried_by_code));
    }
    blocks
}

fn latency(run: &Run) -> Vec<Block> {
    let mut names = vec![
        ("raw", "c2 dashed", "raw: from the real send"),
        ("planned", "c1", "from the planned time"),
    ];
    let mut about = "The distance between the two lines is waiting that a measurement from the real \
                     send would hide.";
    if run.admitted().is_some() {
        names.insert(1, ("admitted", "c3", "from the planned time, admitted"));
        about = "What was refused or never sent counts from the planned time, and in neither of the \
                 other two; the distance between those is waiting that a measurement from the real send \
                 would hide.";
    }
    let mut blocks: Vec<Block> =
        parts::distribution(&run.distribution, &names, about).into_iter().collect();
    let mut rows = vec![("all, from the planned time".to_owned(), run.latency_us)];
    rows.extend(run.admitted().map(|of| ("all, admitted".to_owned(), *of)));
    rows.push(("all, raw".to_owned(), run.latency_raw_us));
    for (name, operation) in &run.operations {
        rows.push((format!("{name}, from the planned time"), operation.latency_us));
        let admitted = operation.latency_admitted_us.filter(|_| run.admitted().is_some());
        rows.extend(admitted.map(|of| (format!("{name}, admitted"), of)));
        rows.push((format!("{name}, raw"), operation.latency_raw_us));
    }
    blocks.push(parts::percentiles(&rows));
    if run.operations.len() > 1 {
        let row = |(name, of): (&String, &super::view::Operation)| {
            let number = |count: u64| Cell::Number(scale::grouped(count as f64));
            vec![Cell::Text(name.clone()), number(of.sent), number(of.ok)]
        };
        blocks.push(Block::Table(Table {
            caption: "What was asked for. A conflict is answered as asked when it is refused."
                .to_owned(),
            head: words(&["operation", "sent", "answered as asked"]),
            rows: run.operations.iter().map(row).collect(),
        }));
    }
    blocks
}

fn generator(run: &Run, figures: Option<Block>) -> Vec<Block> {
    let mut blocks: Vec<Block> = figures.into_iter().collect();
    blocks.push(Block::Note(format!(
        "The generator used {:.2} CPU seconds, {:.2} µs for each request. Its own lateness: p50 {}, \
         p99 {}, at most {}.",
        run.cpu_s,
        run.cpu_us_per_request,
        scale::time_or(run.generator.own_lateness_us.p50),
        scale::time_or(run.generator.own_lateness_us.p99),
        scale::time_or(run.generator.own_lateness_us.max),
    )));
    blocks
}
