//! Two results side by side, with ratios.
//!
//! Pure. Tested on fixed results.

use super::chart::{self, Curve, Join, Layer, Measure, Shape, Size, Span};
use super::html::{Block, Cell, Chapter, Document, Figure, Grade, Table};
use super::parts::{self, all_names, key, words};
use super::scale;
use super::view::{Distribution, Drill, Origin, Percentiles, Run, Timeline, View};

/// Changes below this are noise of the measurement.
const NOISE: f64 = 0.05;

/// What is better.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Less,
    More,
    Neither,
}

/// One result with its name.
pub(super) struct Side<'a> {
    pub(super) name: String,
    pub(super) view: &'a View,
}

/// The page; `None` when the results are of different kinds.
pub(super) fn document(a: &Side<'_>, b: &Side<'_>) -> Option<Document> {
    let names = (a.name.as_str(), b.name.as_str());
    let (chapters, origins) = match (a.view, b.view) {
        (View::Run(a), View::Run(b)) => (runs(a, b, names), (&a.origin, &b.origin)),
        (View::Drill(a), View::Drill(b)) => (drills(a, b, names), (&a.origin, &b.origin)),
        _ => return None,
    };
    let mut chapters = chapters;
    chapters.push(machines(origins, names));
    Some(Document {
        title: "payswitch: two results compared".to_owned(),
        subtitle: format!("A: {}, B: {}. Ratios are B over A.", a.name, b.name),
        badges: Vec::new(),
        tiles: Vec::new(),
        chapters,
        footer: parts::footer(origins.1),
    })
}

/// A row of figures and their ratio.
fn row(
    name: &str,
    (a, b): (Option<f64>, Option<f64>),
    text: fn(f64) -> String,
    better: Better,
) -> Vec<Cell> {
    let number = |value: Option<f64>| Cell::Number(value.map_or_else(|| "–".to_owned(), text));
    let ratio = a.zip(b).filter(|(a, _)| *a > 0.0).map(|(a, b)| b / a);
    let verdict = match ratio {
        None => Cell::Number("–".to_owned()),
        Some(ratio) => {
            let text = format!("× {ratio:.2}");
            match better {
                Better::Neither => Cell::Number(text),
                _ if (ratio - 1.0).abs() <= NOISE => Cell::Graded(Grade::Open, text),
                Better::Less => Cell::Graded(Grade::of(ratio < 1.0), text),
                Better::More => Cell::Graded(Grade::of(ratio > 1.0), text),
            }
        }
    };
    vec![Cell::Text(name.to_owned()), number(a), number(b), verdict]
}

fn table(caption: &str, rows: Vec<Vec<Cell>>) -> Block {
    Block::Table(Table {
        caption: caption.to_owned(),
        head: words(&["", "A", "B", "B over A"]),
        rows,
    })
}

fn latency_rows(name: &str, a: &Percentiles, b: &Percentiles) -> Vec<Vec<Cell>> {
    let figures = [
        ("p50", a.p50, b.p50),
        ("p90", a.p90, b.p90),
        ("p99", a.p99, b.p99),
        ("p99.9", a.p999, b.p999),
        ("slowest", a.max, b.max),
    ];
    let named = |(of, a, b)| row(&format!("{name}, {of}"), (a, b), scale::time, Better::Less);
    figures.into_iter().map(named).collect()
}

fn runs(a: &Run, b: &Run, names: (&str, &str)) -> Vec<Chapter> {
    let both = |of: fn(&Run) -> f64| (Some(of(a)), Some(of(b)));
    let mut rows = vec![
        row("offered per second", both(|run| run.offered_rate), scale::grouped, Better::Neither),
        row("answered per second", both(|run| run.achieved_rate), scale::grouped, Better::More),
        row("failed share", (a.failed_share(), b.failed_share()), scale::percent, Better::Less),
    ];
    rows.extend(latency_rows("latency from the planned time", &a.latency_us, &b.latency_us));
    rows.extend(latency_rows("raw latency", &a.latency_raw_us, &b.latency_raw_us));
    rows.push(row(
        "generator CPU per request",
        both(|run| run.cpu_us_per_request),
        scale::time,
        Better::Neither,
    ));
    let caption = "Ratios within 5 % are not judged: runs on the same machine differ by as much.";
    let mut chapters = vec![Chapter::new("Figures", vec![table(caption, rows)])];
    let timelines = a.timeline.as_ref().zip(b.timeline.as_ref());
    if let Some(timelines) = timelines {
        chapters.push(Chapter::new("Over time", over_time(timelines, names)));
    }
    let planned = |of: &Distribution| of.get("planned").cloned();
    let curves = curves(planned(&a.distribution), planned(&b.distribution), names);
    let about = "From the planned time.";
    let blocks: Vec<Block> = parts::distributions(&curves, about).into_iter().collect();
    if !blocks.is_empty() {
        chapters.push(Chapter::new("Latency", blocks));
    }
    let codes = all_names(&a.by_code, &b.by_code).into_iter().map(|code| {
        let count = |of: &Run| of.by_code.get(code).map(|count| *count as f64);
        row(code, (count(a), count(b)), scale::grouped, Better::Neither)
    });
    chapters.push(Chapter::new("Answers by code", vec![table("", codes.collect())]));
    chapters
}

fn drills(a: &Drill, b: &Drill, names: (&str, &str)) -> Vec<Chapter> {
    let gap = |of: fn(&super::view::Spread) -> f64| {
        let us = |drill: &Drill| drill.unavailability.as_ref().map(|spread| of(spread) * 1e3);
        (us(a), us(b))
    };
    let failed = |drill: &Drill| Some(drill.errors_by_code.values().sum::<u64>() as f64);
    let times = |drill: &Drill| Some(drill.repetitions.len() as f64);
    let mut rows = vec![
        row(
            "load per second",
            (Some(a.load_rate), Some(b.load_rate)),
            scale::grouped,
            Better::Neither,
        ),
        row("repetitions", (times(a), times(b)), scale::grouped, Better::Neither),
        row("unavailable, p50", gap(|spread| spread.p50), scale::time, Better::Less),
        row("unavailable, p99", gap(|spread| spread.p99), scale::time, Better::Less),
        row("unavailable, at most", gap(|spread| spread.max), scale::time, Better::Less),
        row("failed requests", (failed(a), failed(b)), scale::grouped, Better::Less),
    ];
    if let Some((a, b)) = a.latency_us.zip(b.latency_us) {
        rows.extend(latency_rows("before", &a.before, &b.before));
        rows.extend(latency_rows("during", &a.during, &b.during));
        rows.extend(latency_rows("after", &a.after, &b.after));
    }
    let caption = "Ratios within 5 % are not judged: drills on the same machine differ by as much.";
    let mut chapters = vec![Chapter::new("Figures", vec![table(caption, rows)])];
    let during = |of: &Distribution| of.get("during").cloned();
    let curves = curves(during(&a.distribution), during(&b.distribution), names);
    let blocks: Vec<Block> =
        parts::distributions(&curves, "During the fault, from the planned time.")
            .into_iter()
            .collect();
    if !blocks.is_empty() {
        chapters.push(Chapter::new("Latency", blocks));
    }
    chapters
}

type Points = Vec<(f64, Option<f64>)>;

fn curves(a: Option<Points>, b: Option<Points>, names: (&str, &str)) -> Vec<Curve> {
    let curve = |points: Option<Points>, class: &str, label: String| {
        Some(Curve { class: class.to_owned(), label, points: points? })
    };
    let both =
        [curve(a, "c1", format!("A: {}", names.0)), curve(b, "c5", format!("B: {}", names.1))];
    both.into_iter().flatten().collect()
}

fn over_time((a, b): (&Timeline, &Timeline), names: (&str, &str)) -> Vec<Block> {
    let until_s = a.duration_s().max(b.duration_s());
    let span = Span { from_s: 0.0, until_s, ..Span::default() };
    // One grid for both: the coarser one.
    let interval_s = a.interval_s().max(b.interval_s());
    let legend = vec![key("c1", &format!("A: {}", names.0)), key("c5", &format!("B: {}", names.1))];
    let layers = |of: &dyn Fn(&Timeline) -> Vec<Option<f64>>, join: Join| {
        [(a, "c1", "A"), (b, "c5", "B")].map(|(timeline, class, label)| Layer {
            class: class.to_owned(),
            label: label.to_owned(),
            values: regrid(&of(timeline), timeline.interval_s(), interval_s, join),
            shape: Shape::Line,
            join,
        })
    };
    let rate = |timeline: &Timeline| {
        timeline.ok.iter().map(|count| Some(count / timeline.interval_s())).collect()
    };
    let figure = |title: &str, caption: &str, layers: [Layer; 2], measure: Measure| {
        Block::Figure(Figure {
            title: title.to_owned(),
            caption: caption.to_owned(),
            legend: legend.clone(),
            svg: chart::over_time(&span, interval_s, &layers, measure, Size::Wide),
        })
    };
    let rates =
        Measure { title: "Requests per second", text: scale::compact, log: false, end: None };
    let latency = Measure { title: "Latency (log)", text: scale::time, log: true, end: None };
    vec![
        figure("Throughput", "Answered as asked per second.", layers(&rate, Join::Mean), rates),
        figure(
            "p50 from the planned time",
            "Half of each interval's requests were answered within this.",
            layers(&|timeline| timeline.p50_us.clone(), Join::Max),
            latency,
        ),
        figure(
            "p99 from the planned time",
            "All but a hundredth of each interval's requests were answered within this.",
            layers(&|timeline| timeline.p99_us.clone(), Join::Max),
            latency,
        ),
    ]
}

/// Values of one interval as values of a longer one.
fn regrid(values: &[Option<f64>], from_s: f64, to_s: f64, join: Join) -> Vec<Option<f64>> {
    let each = (to_s / from_s).round().max(1.0) as usize;
    let together = |values: &[Option<f64>]| {
        let known = || values.iter().flatten().copied();
        match join {
            Join::Max => known().reduce(f64::max),
            Join::Mean => {
                (known().count() > 0).then(|| known().sum::<f64>() / known().count() as f64)
            }
        }
    };
    values.chunks(each).map(together).collect()
}

fn machines((a, b): (&Origin, &Origin), names: (&str, &str)) -> Chapter {
    let row = |name: &str, of: &dyn Fn(&Origin) -> String| {
        vec![Cell::Text(name.to_owned()), Cell::Text(of(a)), Cell::Text(of(b))]
    };
    let rows = vec![
        vec![
            Cell::Text("file".to_owned()),
            Cell::Text(names.0.to_owned()),
            Cell::Text(names.1.to_owned()),
        ],
        row("made", &|of| match of.started_unix {
            0 => String::new(),
            seconds => scale::date(seconds),
        }),
        row("processor", &|of| of.machine.cpu.clone()),
        row("cores", &|of| of.machine.cores.to_string()),
        row("kernel", &|of| of.machine.kernel.clone()),
        row("loadgen", &|of| of.version.clone()),
        row("seed", &|of| of.seed.to_string()),
        row("command", &|of| of.command.clone()),
    ];
    let table = Table { caption: String::new(), head: words(&["", "A", "B"]), rows };
    Chapter::new("Machines and commands", vec![Block::Table(table)])
}
