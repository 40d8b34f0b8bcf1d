//! Two results side by side, with ratios.
//!
//! What got worse must be seen: something where there was nothing, and an answer that
//! never came, have no ratio and are bad all the same. What cannot be compared gets no
//! tick. Pure. Tested on fixed results.

use super::chart::{self, Curve, Join, Layer, Measure, Shape, Size, Span};
use super::html::{Badge, Block, Cell, Chapter, Document, Figure, Grade, Table};
use super::page_search::{self, Line, Without};
use super::parts::{self, PERCENTILES, all_names, key, words};
use super::view::{Distribution, Drill, Origin, Percentiles, Run, Search, Timeline, View};
use super::{page_drill, scale};

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

/// What two results of a kind come to.
struct Compared {
    /// What keeps them from being compared.
    against: Vec<String>,
    chapters: Vec<Chapter>,
}

/// The page; `None` when the results are of different kinds.
pub(super) fn document(a: &Side<'_>, b: &Side<'_>) -> Option<Document> {
    let names = (a.name.as_str(), b.name.as_str());
    let (compared, origins) = match (a.view, b.view) {
        (View::Run(a), View::Run(b)) => (runs(a, b, names), (&a.origin, &b.origin)),
        (View::Drill(a), View::Drill(b)) => (drills(a, b, names), (&a.origin, &b.origin)),
        (View::Search(a), View::Search(b)) => (searches(a, b, names), (&a.origin, &b.origin)),
        _ => return None,
    };
    let Compared { against, mut chapters } = compared;
    chapters.push(machines(origins, names));
    let verdict = if against.is_empty() { "as they are" } else { "with care" };
    Some(Document {
        title: "payswitch: two results compared".to_owned(),
        subtitle: format!("A: {}, B: {}. Ratios are B over A.", a.name, b.name),
        badges: vec![Badge {
            grade: Grade::of(against.is_empty()),
            subject: "To be compared".to_owned(),
            verdict: verdict.to_owned(),
            detail: against.join("; "),
        }],
        tiles: Vec::new(),
        chapters,
        footer: parts::footer(origins.1),
    })
}

/// How a figure of B is judged against that of A; infinite is what never came.
fn judged((a, b): (f64, f64), better: Better) -> (Grade, String) {
    let worse = |less: bool| match better {
        Better::Neither => Grade::Open,
        Better::Less => Grade::of(less),
        Better::More => Grade::of(!less),
    };
    match (a, b) {
        _ if a == b && (a <= 0.0 || a.is_infinite()) => (Grade::Open, "–".to_owned()),
        (_, b) if b.is_infinite() => (worse(false), "never".to_owned()),
        (a, _) if a.is_infinite() => (worse(true), "no longer never".to_owned()),
        (a, _) if a <= 0.0 => (worse(false), "from none".to_owned()),
        (a, b) => {
            let ratio = b / a;
            let noise = (ratio - 1.0).abs() <= NOISE;
            let grade = if noise { Grade::Open } else { worse(ratio < 1.0) };
            (grade, format!("× {ratio:.2}"))
        }
    }
}

/// The rows of a table of two results.
struct Sheet {
    /// Nothing is better where nothing can be compared.
    ticks: bool,
    rows: Vec<Vec<Cell>>,
}

impl Sheet {
    fn new(against: &[String]) -> Self {
        Self { ticks: against.is_empty(), rows: Vec::new() }
    }

    fn graded(&self, grade: Grade, text: String) -> Cell {
        let grade = if grade == Grade::Good && !self.ticks { Grade::Open } else { grade };
        Cell::Graded(grade, text)
    }

    /// Figures and their ratio.
    fn row(
        &mut self,
        name: &str,
        (a, b): (Option<f64>, Option<f64>),
        text: fn(f64) -> String,
        better: Better,
    ) {
        let number = |value: Option<f64>| Cell::Number(value.map_or_else(|| "–".to_owned(), text));
        let verdict = match (a.zip(b).map(|both| judged(both, better)), better) {
            (None, _) => Cell::Number("–".to_owned()),
            (Some((_, text)), Better::Neither) => Cell::Number(text),
            (Some((grade, text)), _) => self.graded(grade, text),
        };
        self.rows.push(vec![Cell::Text(name.to_owned()), number(a), number(b), verdict]);
    }

    /// Words that are no figures, and how bad they are.
    fn fact(&mut self, name: &str, (a, b): (String, String), (a_bad, b_bad): (u64, u64)) {
        let verdict = match (b_bad.cmp(&a_bad), a == b) {
            (std::cmp::Ordering::Greater, _) => Cell::Graded(Grade::Bad, "worse".to_owned()),
            (std::cmp::Ordering::Less, _) => self.graded(Grade::Good, "better".to_owned()),
            (_, true) => Cell::Graded(Grade::Open, "the same".to_owned()),
            (_, false) => Cell::Graded(Grade::Open, "different".to_owned()),
        };
        self.rows.push(vec![Cell::Text(name.to_owned()), Cell::Text(a), Cell::Text(b), verdict]);
    }

    fn latencies(&mut self, name: &str, a: &Percentiles, b: &Percentiles) {
        for (of, value) in PERCENTILES {
            let both = (a.of(value), b.of(value));
            self.row(&format!("{name}, {of}"), both, scale::time, Better::Less);
        }
    }

    fn table(self, caption: &str) -> Block {
        self.headed(caption, "B over A")
    }

    /// Of words, not of figures.
    fn facts(self) -> Block {
        self.headed("", "B against A")
    }

    fn headed(self, caption: &str, verdict: &str) -> Block {
        let (caption, head) = (caption.to_owned(), words(&["", "A", "B", verdict]));
        Block::Table(Table { caption, head, rows: self.rows })
    }
}

const CAPTION: &str = "Ratios within 5 % are not judged: results on the same machine differ by as \
                       much. Never: a percentile that requests decide which were refused, never \
                       answered or never sent.";

/// What keeps a run from being compared.
fn against_run(run: &Run, name: &str) -> Vec<String> {
    let generator = match &run.generator.reason {
        _ if run.generator.valid => None,
        Some(_) => Some(format!("{name} is invalid")),
        None => Some(format!("it is not known whether the generator of {name} kept up")),
    };
    let stopped = run.interrupted.then(|| format!("{name} was stopped before its end"));
    generator.into_iter().chain(stopped).collect()
}

/// What decides whether figures say anything, and what is no figure.
fn validity(a: &Run, b: &Run) -> Block {
    let mut sheet = Sheet::new(&[]);
    let both = |of: fn(&Run) -> String| (of(a), of(b));
    let bad = |of: fn(&Run) -> bool| (u64::from(of(a)), u64::from(of(b)));
    let generator = |run: &Run| match (run.generator.valid, &run.generator.reason) {
        (true, _) => "kept up".to_owned(),
        (false, Some(reason)) => reason.clone(),
        (false, None) => "not known".to_owned(),
    };
    sheet.fact("generator", both(generator), bad(|run| !run.generator.valid));
    let load = |run: &Run| match run.closed_loop {
        true => "closed loop, uncorrected".to_owned(),
        false => "open loop".to_owned(),
    };
    sheet.fact("load", both(load), (0, u64::from(b.closed_loop && !a.closed_loop)));
    let end = |run: &Run| match run.interrupted {
        true => "stopped before its end".to_owned(),
        false => "as planned".to_owned(),
    };
    sheet.fact("end", both(end), bad(|run| run.interrupted));
    let missed = |run: &Run| run.goals.iter().filter(|goal| !goal.met).count() as u64;
    let asked = |run: &Run| run.goals.iter().map(|goal| goal.goal.clone()).collect::<Vec<_>>();
    // Other goals are not better met.
    let before = if asked(a) == asked(b) { missed(a) } else { 0 };
    sheet.fact("goals", both(goals), (before, missed(b)));
    audits(&mut sheet, parts::audit_badge(a.audit.as_ref()), parts::audit_badge(b.audit.as_ref()));
    let violations = |run: &Run| run.audit.as_ref().map(|audit| audit.violation_count as f64);
    if let (Some(a), Some(b)) = (violations(a), violations(b)) {
        sheet.row("violations", (Some(a), Some(b)), scale::grouped, Better::Less);
    }
    sheet.facts()
}

fn goals(run: &Run) -> String {
    let badge = parts::verdicts_badge("", &run.goals);
    match badge.grade {
        Grade::Bad => format!("{}: {}", badge.verdict, badge.detail),
        _ => badge.verdict,
    }
}

fn audits(sheet: &mut Sheet, a: Badge, b: Badge) {
    let bad = match (a.grade, b.grade) {
        (Grade::Bad, Grade::Good) => (1, 0),
        (Grade::Good | Grade::Open, Grade::Bad) => (0, 1),
        // One that saw nothing is no better.
        _ => (0, 0),
    };
    sheet.fact("audit", (a.verdict, b.verdict), bad);
}

fn runs(a: &Run, b: &Run, names: (&str, &str)) -> Compared {
    let mut against = [against_run(a, "A"), against_run(b, "B")].concat();
    if a.closed_loop != b.closed_loop {
        let closed = if a.closed_loop { "A" } else { "B" };
        against.push(format!(
            "only {closed} is a closed loop, whose latency is not corrected for waiting"
        ));
    }
    let uncorrected = a.closed_loop || b.closed_loop;
    let mut sheet = Sheet::new(&against);
    let both = |of: fn(&Run) -> f64| (Some(of(a)), Some(of(b)));
    sheet.row("offered per second", both(|run| run.offered_rate), scale::grouped, Better::Neither);
    sheet.row("answered per second", both(|run| run.achieved_rate), scale::grouped, Better::More);
    let failed = (a.failed_share(), b.failed_share());
    sheet.row("failed share", failed, scale::percent, Better::Less);
    let latency = match uncorrected {
        true => "latency (closed loop: uncorrected)",
        false => "latency from the planned time",
    };
    sheet.latencies(latency, &a.latency_us, &b.latency_us);
    if a.admitted().is_some() || b.admitted().is_some() {
        let of = |run: &Run| *run.admitted().unwrap_or(&run.latency_us);
        sheet.latencies("of what was admitted", &of(a), &of(b));
    }
    sheet.latencies("raw latency", &a.latency_raw_us, &b.latency_raw_us);
    let cpu = both(|run| run.cpu_us_per_request);
    sheet.row("generator CPU per request", cpu, scale::time, Better::Neither);
    let mut chapters = vec![
        Chapter::new("What they are", vec![validity(a, b)]),
        Chapter::new("Figures", vec![sheet.table(CAPTION)]),
    ];
    let timelines = a.timeline.as_ref().zip(b.timeline.as_ref());
    if let Some(timelines) = timelines {
        chapters.push(Chapter::new("Over time", over_time(timelines, names)));
    }
    let planned = |of: &Distribution| of.get("planned").cloned();
    let curves = curves(planned(&a.distribution), planned(&b.distribution), names);
    let about = match uncorrected {
        true => "A closed loop's is not corrected for waiting.",
        false => "From the planned time.",
    };
    let blocks: Vec<Block> = parts::distributions(&curves, about).into_iter().collect();
    if !blocks.is_empty() {
        chapters.push(Chapter::new("Latency", blocks));
    }
    let mut codes = Sheet::new(&against);
    for code in all_names(&a.by_code, &b.by_code) {
        let count = |of: &Run| of.by_code.get(code).map(|count| *count as f64);
        codes.row(code, (count(a), count(b)), scale::grouped, Better::Neither);
    }
    chapters.push(Chapter::new("Answers by code", vec![codes.table("")]));
    Compared { against, chapters }
}

fn drills(a: &Drill, b: &Drill, names: (&str, &str)) -> Compared {
    let broke = |drill: &Drill, name: &str| {
        drill.ended.as_ref().map(|_| format!("{name} broke off before its end"))
    };
    let mut against: Vec<String> = broke(a, "A").into_iter().chain(broke(b, "B")).collect();
    if a.drill != b.drill {
        against.push("they are different drills".to_owned());
    }
    let mut facts = Sheet::new(&[]);
    let verdict = |drill: &Drill| {
        let badge = page_drill::verdict_badge(drill);
        match badge.detail.is_empty() {
            true => badge.verdict,
            false => format!("{}: {}", badge.verdict, badge.detail),
        }
    };
    facts.fact("drill", (a.drill.clone(), b.drill.clone()), (0, 0));
    let failed = (u64::from(!a.has_passed()), u64::from(!b.has_passed()));
    facts.fact("verdict", (verdict(a), verdict(b)), failed);
    audits(&mut facts, page_drill::audit_badge(a), page_drill::audit_badge(b));
    let violations = |drill: &Drill| drill.audit.as_ref().map(|audit| audit.violation_count as f64);
    facts.row("violations", (violations(a), violations(b)), scale::grouped, Better::Less);
    let mut sheet = Sheet::new(&against);
    let both = |of: fn(&Drill) -> f64| (Some(of(a)), Some(of(b)));
    sheet.row("load per second", both(|drill| drill.load_rate), scale::grouped, Better::Neither);
    let times = both(|drill| drill.repetitions.len() as f64);
    sheet.row("repetitions", times, scale::grouped, Better::Neither);
    for (at, name) in ["p50", "p99", "at most"].into_iter().enumerate() {
        let gap = |drill: &Drill| drill.unavailable_us().map(|gaps| gaps[at]);
        let name = format!("unavailable, {name}");
        sheet.row(&name, (gap(a), gap(b)), scale::time, Better::Less);
    }
    let failed =
        |drill: &Drill| drill.errors_by_code.values().map(|count| *count as f64).sum::<f64>();
    sheet.row("failed requests", both(failed), scale::grouped, Better::Less);
    let elsewhere = both(|drill| drill.errors_elsewhere as f64);
    sheet.row("of shards led elsewhere", elsewhere, scale::grouped, Better::Less);
    let unsettled =
        |drill: &Drill| drill.repetitions.iter().map(|one| one.unsettled as f64).sum::<f64>();
    sheet.row("without final answer", both(unsettled), scale::grouped, Better::Less);
    if let Some((a, b)) = a.latency_us.zip(b.latency_us) {
        sheet.latencies("before", &a.before, &b.before);
        sheet.latencies("during", &a.during, &b.during);
        sheet.latencies("after", &a.after, &b.after);
    }
    let mut chapters = vec![
        Chapter::new("What they are", vec![facts.facts()]),
        Chapter::new("Figures", vec![sheet.table(CAPTION)]),
    ];
    let during = |of: &Distribution| of.get("during").cloned();
    let curves = curves(during(&a.distribution), during(&b.distribution), names);
    let blocks: Vec<Block> =
        parts::distributions(&curves, "During the fault, from the planned time.")
            .into_iter()
            .collect();
    if !blocks.is_empty() {
        chapters.push(Chapter::new("Latency", blocks));
    }
    Compared { against, chapters }
}

/// What keeps a search from being compared: one that has no answer.
fn against_search(search: &Search, name: &str) -> Option<String> {
    match (search.rate, page_search::without(search)) {
        (None, Without::Answer(reason)) => Some(format!("of {name} no rate is known: {reason}")),
        _ => None,
    }
}

fn searches(a: &Search, b: &Search, names: (&str, &str)) -> Compared {
    let known = [against_search(a, "A"), against_search(b, "B")];
    let mut against: Vec<String> = known.into_iter().flatten().collect();
    if a.goals != b.goals {
        against.push("their goals differ".to_owned());
    }
    let mut facts = Sheet::new(&[]);
    facts.fact("goals", (a.goals.join(", "), b.goals.join(", ")), (0, 0));
    let ended = |search: &Search| {
        let badge = page_search::badge(search);
        format!("{}: {}", badge.verdict, badge.detail)
    };
    // One without an answer is no worse than one with.
    let without = |search: &Search| {
        let none = page_search::without(search) == Without::Rate;
        u64::from(search.rate.is_none() && none)
    };
    facts.fact("highest rate", (ended(a), ended(b)), (without(a), without(b)));
    let mut sheet = Sheet::new(&against);
    // No rate at all is worse than any.
    let rate = |search: &Search| match page_search::without(search) {
        Without::Rate => Some(page_search::found(search).unwrap_or(0.0)),
        Without::Answer(_) => page_search::found(search),
    };
    sheet.row("answered at the highest rate", (rate(a), rate(b)), scale::grouped, Better::More);
    let of = |search| page_search::slowest(search).map(|step| step.report.latency_us);
    if let Some((a, b)) = of(a).zip(of(b)) {
        sheet.latencies("slowest confirmation", &a, &b);
    }
    let runs = |search: &Search| Some(search.steps.len() as f64);
    sheet.row("runs", (runs(a), runs(b)), scale::grouped, Better::Neither);
    let steps = (page_search::by_rate(a), page_search::by_rate(b));
    let lines = |value: parts::Value| {
        [
            Line { class: "c1", label: format!("A: {}", names.0), steps: &steps.0, value },
            Line { class: "c5", label: format!("B: {}", names.1), steps: &steps.1, value },
        ]
    };
    let caption = "Each place is one run at its offered rate; latency counts from the planned time. A \
                   percentile that failed requests decide leaves a gap. Runs that missed a goal stand \
                   at an upright line.";
    let over_load = vec![
        page_search::over_load("p50 over load", caption, &lines(|of| of.p50)),
        page_search::over_load("p99 over load", caption, &lines(|of| of.p99)),
    ];
    let mut chapters = vec![
        Chapter::new("What they are", vec![facts.facts()]),
        Chapter::new("Figures", vec![sheet.table(CAPTION)]),
    ];
    if !(a.steps.is_empty() && b.steps.is_empty()) {
        chapters.push(Chapter::new("Latency over load", over_load));
    }
    Compared { against, chapters }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn page(a: &Value, b: &Value) -> String {
        let (a, b) = (View::of(a.clone()).unwrap(), View::of(b.clone()).unwrap());
        let side = |name: &str, view| Side { name: name.to_owned(), view };
        document(&side("a.json", &a), &side("b.json", &b)).unwrap().render()
    }

    /// The row that begins so.
    fn row<'a>(page: &'a str, name: &str) -> &'a str {
        let begins = format!("<tr><td>{name}</td>");
        page.lines().find(|line| line.starts_with(&begins)).unwrap_or_else(|| panic!("{name}"))
    }

    fn run() -> Value {
        let latency = json!({"p50": 900, "p90": 1_000, "p99": 4_000, "p999": 5_000, "max": 6_000, "count": 1_000});
        json!({
            "offered_rate": 1_000.0, "achieved_rate": 1_000.0, "sent": 1_000, "ok": 1_000,
            "latency_us": latency, "latency_raw_us": latency, "generator": {"valid": true},
            "goals": [{"goal": "p99=10ms", "met": true, "measured": "4.000 ms"}],
            "audit": {"checked": {"payments": 800}, "violation_count": 0},
        })
    }

    /// Against the same with a change.
    fn worse(change: impl FnOnce(&mut Value)) -> String {
        let mut b = run();
        change(&mut b);
        page(&run(), &b)
    }

    #[test]
    fn what_has_no_ratio_is_judged_all_the_same() {
        let inf = f64::INFINITY;
        for (values, better, grade, text) in [
            ((0.0, 0.5), Better::Less, Grade::Bad, "from none"),
            ((0.0, 5.0), Better::More, Grade::Good, "from none"),
            ((5.0, inf), Better::Less, Grade::Bad, "never"),
            ((0.0, inf), Better::Less, Grade::Bad, "never"),
            ((inf, 5.0), Better::Less, Grade::Good, "no longer never"),
            ((inf, inf), Better::Less, Grade::Open, "–"),
            ((0.0, 0.0), Better::Less, Grade::Open, "–"),
            ((5.0, 0.0), Better::Less, Grade::Good, "× 0.00"),
            ((5.0, 0.0), Better::More, Grade::Bad, "× 0.00"),
            ((100.0, 104.0), Better::Less, Grade::Open, "× 1.04"),
            ((100.0, 106.0), Better::Less, Grade::Bad, "× 1.06"),
            ((100.0, 106.0), Better::Neither, Grade::Open, "× 1.06"),
        ] {
            assert_eq!(judged(values, better), (grade, text.to_owned()), "{values:?}");
        }
    }

    #[test]
    fn failures_from_none_and_answers_that_never_came_are_bad() {
        let page = worse(|b| {
            (b["ok"], b["refused"]) = (json!(500), json!(500));
            b["latency_us"] = json!({"p50": 900, "count": 1_000});
            b["latency_admitted_us"] = json!({"p50": 800, "p90": 900, "p99": 950, "count": 500});
        });
        let bad = "class=\"graded bad\"";
        let failed = row(&page, "failed share");
        assert!(failed.contains(bad) && failed.contains("from none"), "{failed}");
        let p99 = row(&page, "latency from the planned time, p99");
        assert!(p99.contains(bad) && p99.matches("never").count() == 2, "{p99}");
        // What is left after refusals is told, and by its name.
        let admitted = row(&page, "of what was admitted, p99");
        assert!(admitted.contains("950 µs") && admitted.contains("4 ms"), "{admitted}");
    }

    #[test]
    fn what_cannot_be_compared_gets_no_tick() {
        let closed = |b: &mut Value| b["closed_loop"] = json!(true);
        let stopped = |b: &mut Value| b["interrupted"] = json!(true);
        let invalid = |b: &mut Value| {
            b["generator"] = json!({"valid": false, "reason": "the generator was the bottleneck"});
        };
        type Change = fn(&mut Value);
        for (change, reason) in [
            (closed as Change, "only B is a closed loop"),
            (stopped, "B was stopped before its end"),
            (invalid, "B is invalid"),
        ] {
            let page = worse(|b| {
                change(b);
                b["latency_us"]["p99"] = json!(400);
                b["latency_us"]["p50"] = json!(1_800);
            });
            assert!(page.contains(reason) && page.contains("with care"), "{reason}");
            assert!(!page.contains("graded good"), "{reason}");
            assert!(page.matches("graded bad").count() >= 2, "{reason}");
            assert!(page.contains("× 0.10") && page.contains("× 2.00"), "{reason}");
        }
        let page = worse(closed);
        assert!(page.contains("closed loop, uncorrected"));
        assert!(page.contains("latency (closed loop: uncorrected), p99"));
        assert!(!page.contains("latency from the planned time, p99"));
        let page = worse(|b| b["latency_us"]["p99"] = json!(400));
        assert!(page.contains("as they are") && page.contains("graded good"));
    }

    #[test]
    fn goals_and_violations_are_on_the_page() {
        let page = worse(|b| {
            b["goals"][0]["met"] = json!(false);
            b["audit"]["violation_count"] = json!(3);
        });
        for name in ["goals", "audit", "violations"] {
            assert!(row(&page, name).contains("graded bad"), "{}", row(&page, name));
        }
        assert!(row(&page, "goals").contains("1 of 1 missed"));
        assert!(row(&page, "violations").contains("from none"));
        // Neither goals that nobody set nor an audit that nobody made are better.
        let mut bad = run();
        bad["goals"][0]["met"] = json!(false);
        bad["audit"]["violation_count"] = json!(3);
        let page = self::page(&bad, &json!({"offered_rate": 1.0, "generator": {"valid": true}}));
        for name in ["goals", "audit"] {
            assert!(row(&page, name).contains("graded open"), "{}", row(&page, name));
        }
    }

    #[test]
    fn a_drill_that_broke_off_is_worse_and_says_why() {
        let drill = |ended: Value, ms: Value| {
            json!({
                "drill": "kill-site", "passed": ended.is_null(), "ended": ended, "audited": 1,
                "audit": {"checked": {"payments": 800}, "violation_count": 0},
                "targets": [{"target": "unavailable p50 <= 100 ms", "met": true, "measured": "91.0 ms"}],
                "repetitions": [{"unavailability_ms": [{"shard": 1, "ms": ms}]}],
            })
        };
        let well = drill(Value::Null, json!(90.0));
        let page = page(&well, &drill(json!("log is damaged\nat 7"), Value::Null));
        let verdict = row(&page, "verdict");
        assert!(verdict.contains("broke off: log is damaged") && verdict.contains("graded bad"));
        assert!(page.contains("B broke off before its end") && !page.contains("graded good"));
        let gap = row(&page, "unavailable, p50");
        assert!(gap.contains("90 ms") && gap.contains("never") && gap.contains("graded bad"));
        let mut other = well.clone();
        other["drill"] = json!("wan-delay");
        assert!(self::page(&well, &other).contains("they are different drills"));
    }

    fn search(rate: Option<f64>, ended: &str) -> Value {
        let step = |rate: f64, kept: bool, confirmation: bool| {
            json!({
                "rate": rate, "kept": kept, "confirmation": confirmation, "reason": "",
                "report": {"offered_rate": rate, "achieved_rate": rate * 0.99,
                           "latency_us": {"p50": 900, "p99": rate, "count": 10}},
            })
        };
        let at = rate.unwrap_or(5_000.0);
        let steps = [
            step(2.0 * at, false, false),
            step(at, rate.is_some(), true),
            step(at, rate.is_some(), true),
        ];
        json!({"goals": ["p99=10ms"], "rate": rate, "ended": ended, "steps": steps})
    }

    #[test]
    fn two_searches_are_compared_by_what_they_found() {
        let page = |b: &Value| page(&search(Some(20_000.0), "found"), b);
        let slower = page(&search(Some(10_000.0), "found"));
        let found = row(&slower, "answered at the highest rate");
        assert!(found.contains("19,800") && found.contains("9,900") && found.contains("× 0.50"));
        assert!(found.contains("graded bad"), "{found}");
        assert!(row(&slower, "slowest confirmation, p99").contains("20 ms"));
        for title in ["p50 over load", "p99 over load"] {
            assert!(slower.contains(title), "{title}");
        }
        assert_eq!(slower.matches("<svg ").count(), 2);
        let none = page(&search(None, "not_found"));
        let found = row(&none, "answered at the highest rate");
        assert!(found.contains("graded bad") && found.contains("× 0.00"), "{found}");
        // One that was stopped found neither a rate nor none.
        let stopped = page(&search(None, "stopped"));
        assert!(stopped.contains("of B no rate is known: the search was stopped"));
        assert!(row(&stopped, "highest rate").contains("not known"));
        assert!(row(&stopped, "highest rate").contains("graded open"));
        assert!(row(&none, "highest rate").contains("graded bad"));
        assert!(!row(&stopped, "answered at the highest rate").contains("graded"));
        let mut other = search(Some(40_000.0), "found");
        other["goals"] = json!(["p99=100ms"]);
        let other = page(&other);
        assert!(other.contains("their goals differ") && !other.contains("graded good"));
    }
}
