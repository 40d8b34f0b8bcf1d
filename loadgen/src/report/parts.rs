//! The figures and tables that pages of runs and drills share.
//!
//! Every caption says what the reader sees. Pure. Tested with the pages.

use super::chart::{self, Curve, Join, Layer, Measure, Shape, Size, Span};
use super::html::{Badge, Block, Cell, Chapter, Figure, Grade, Table, Tile};
use super::scale;
use super::view::{
    Audit, Distribution, Host, Mark, Origin, Percentiles, Timeline, Verdict, Window,
};
use std::collections::{BTreeMap, BTreeSet};

/// What begins within this behind a fault is its doing.
const TAKEOVER_MS: f64 = 400.0;
/// Violations that are listed.
const VIOLATIONS_MAX: usize = 50;
/// Colours that can be told apart.
const COLOURS: usize = 8;

/// Class of the n-th colour.
pub(super) fn colour(number: usize) -> String {
    format!("c{}", number % COLOURS + 1)
}

const RATE: Measure =
    Measure { title: "Requests per second", text: scale::compact, log: false, end: None };
const LATENCY: Measure =
    Measure { title: "Latency (log)", text: scale::time, log: true, end: None };

/// Figures over time with what they are seen against.
pub(super) struct Story<'a> {
    pub(super) timeline: &'a Timeline,
    pub(super) span: Span,
}

impl<'a> Story<'a> {
    pub(super) fn new(timeline: &'a Timeline, warmup_s: f64, marks: &[Mark]) -> Self {
        let until_s = timeline.duration_s();
        Self { timeline, span: Span { from_s: 0.0, until_s, warmup_s, marks: marks.to_vec() } }
    }

    fn per_second(&self, counts: &[f64]) -> Vec<Option<f64>> {
        counts.iter().map(|count| Some(count / self.timeline.interval_s())).collect()
    }

    fn failed(&self) -> Vec<f64> {
        let mut all = vec![0.0; self.timeline.ok.len()];
        for column in self.timeline.failed.values() {
            all.iter_mut().zip(column).for_each(|(all, one)| *all += one);
        }
        all
    }

    /// A sentence about the shades, where there are any.
    fn shades(&self) -> String {
        let mut text = String::new();
        if !self.span.marks.is_empty() {
            text.push_str(" Shaded: from the fault to its repair.");
        }
        if self.span.warmup_s > 0.0 {
            text.push_str(" Grey: warm-up, left out of the totals.");
        }
        text
    }

    /// Planned, answered and failed requests.
    pub(super) fn throughput(&self) -> Block {
        let layer = |class: &str, label: &str, counts: &[f64], shape| Layer {
            class: class.to_owned(),
            label: label.to_owned(),
            values: self.per_second(counts),
            shape,
            join: Join::Mean,
        };
        let (ok, failed) = (&self.timeline.ok, self.failed());
        // The area lies under the line and tells nothing of its own.
        let mut layers = vec![layer("c1", "", ok, Shape::Area)];
        let mut legend = vec![key("c1", "answered as asked")];
        if self.timeline.planned.iter().any(|count| *count > 0.0) {
            let planned = &self.timeline.planned;
            layers.push(layer("planned thin dashed", "planned", planned, Shape::Line));
            legend.push(key("planned", "planned"));
        }
        layers.push(layer("c1", "answered as asked", ok, Shape::Line));
        if failed.iter().any(|count| *count > 0.0) {
            layers.push(layer("failure", "failed, by planned time", &failed, Shape::Line));
            legend.push(key("failure", "failed, by planned time"));
        }
        let interval_s = self.timeline.interval_s();
        let svg = chart::over_time(&self.span, interval_s, &layers, RATE, Size::Wide);
        Block::Figure(Figure {
            title: "Throughput".to_owned(),
            caption: format!(
                "Requests per second in intervals of {}: planned by the generator, and answered as \
                 asked at the moment of the answer. A dip followed by a peak is waiting that was \
                 caught up; a gap that stays open is lost work.{}",
                scale::time(self.timeline.interval_ms * 1e3),
                self.shades()
            ),
            legend,
            svg,
        })
    }

    /// Percentiles from the planned time.
    pub(super) fn latency(&self) -> Block {
        let layer = |class: &str, label: &str, values: &[Option<f64>]| Layer {
            class: class.to_owned(),
            label: label.to_owned(),
            values: values.to_vec(),
            shape: Shape::Line,
            join: Join::Max,
        };
        let timeline = self.timeline;
        let layers = [
            layer("pmax thin", "slowest", &timeline.max_us),
            layer("p99", "p99", &timeline.p99_us),
            layer("p90", "p90", &timeline.p90_us),
            layer("p50", "p50", &timeline.p50_us),
        ];
        let failed = timeline.failed();
        let infinite = match failed > 0.0 {
            true => format!(
                " {} requests were refused, never answered or never sent: where they decide a \
                 percentile, its line has a gap.",
                scale::grouped(failed)
            ),
            false => String::new(),
        };
        Block::Figure(Figure {
            title: "Latency from the planned time".to_owned(),
            caption: format!(
                "Each interval's requests by the moment at which they should have left, so that \
                 waiting caused by a stall is counted for every request behind it.{infinite}{}",
                self.shades()
            ),
            legend: [("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("pmax", "slowest")]
                .map(|(class, label)| key(class, label))
                .to_vec(),
            svg: chart::over_time(&self.span, timeline.interval_s(), &layers, LATENCY, Size::Wide),
        })
    }

    /// Who answered; nothing with one site.
    pub(super) fn sites(&self) -> Option<Block> {
        let by_site = &self.timeline.by_site;
        if by_site.len() < 2 {
            return None;
        }
        let layers: Vec<Layer> = stack(by_site, |site| format!("site {site}"));
        let measure =
            Measure { title: "Share of the answers", text: scale::percent, log: false, end: None };
        Some(Block::Figure(Figure {
            title: "Who answered".to_owned(),
            caption: format!(
                "Share of the answers by the site that gave them. When a site dies its share falls to \
                 nothing and the others take it over; it grows back when its shards return.{}",
                self.shades()
            ),
            legend: layers.iter().map(|layer| block_key(&layer.class, &layer.label)).collect(),
            svg: chart::stacked(&self.span, self.timeline.interval_s(), &layers, true, measure),
        }))
    }

    /// What failed, and when.
    pub(super) fn failures(&self) -> Block {
        let failed = &self.timeline.failed;
        if failed.values().flatten().all(|count| *count == 0.0) {
            return Block::Note("No request failed: every one was answered as asked.".to_owned());
        }
        let mut layers = stack(failed, str::to_owned);
        for (number, layer) in layers.iter_mut().enumerate() {
            // Begins with the strong colours.
            layer.class = colour(number + 4);
            let per_second = |value: &mut Option<f64>| {
                *value = value.map(|count| count / self.timeline.interval_s());
            };
            layer.values.iter_mut().for_each(per_second);
        }
        let measure = Measure { title: "Failed per second", ..RATE };
        Block::Figure(Figure {
            title: "Failures by code".to_owned(),
            caption: format!(
                "Requests that were refused, never answered or never sent, by the moment at which they \
                 were planned.{}",
                self.shades()
            ),
            legend: layers.iter().map(|layer| block_key(&layer.class, &layer.label)).collect(),
            svg: chart::stacked(&self.span, self.timeline.interval_s(), &layers, false, measure),
        })
    }

    /// How much was in flight, and how late the generator was.
    pub(super) fn generator(&self) -> Block {
        let layer = |class: &str, label: &str, values: &[f64]| Layer {
            class: class.to_owned(),
            label: label.to_owned(),
            values: values.iter().map(|value| Some(*value)).collect(),
            shape: Shape::Line,
            join: Join::Max,
        };
        let (timeline, interval_s) = (self.timeline, self.timeline.interval_s());
        let flight = [
            layer("c1", "in flight", &timeline.in_flight),
            layer("c5", "waiting to be sent", &timeline.waiting),
        ];
        let late = [
            layer("pmax thin", "latest", &timeline.late_max_us),
            layer("p99", "p99", &timeline.late_p99_us),
        ];
        let known = |layers: &[Layer]| {
            layers.iter().flat_map(|layer| layer.values.iter().flatten()).any(|value| *value > 0.0)
        };
        let count = Measure { title: "Requests", text: scale::compact, log: false, end: None };
        let lateness = match known(&late) {
            true => Measure { title: "Lateness (log)", ..LATENCY },
            false => {
                Measure { title: "Lateness", text: scale::time, log: false, end: Some(1_000.0) }
            }
        };
        let no_marks = Span { marks: Vec::new(), ..self.span.clone() };
        let shaded = Span {
            marks: self
                .span
                .marks
                .iter()
                .map(|mark| Mark { text: String::new(), ..mark.clone() })
                .collect(),
            ..no_marks
        };
        Block::Pair(Box::new([
            Figure {
                title: "In flight".to_owned(),
                caption: "Most requests without an answer yet, and those that waited for room."
                    .to_owned(),
                legend: vec![key("c1", "in flight"), key("c5", "waiting to be sent")],
                svg: chart::over_time(&shaded, interval_s, &flight, count, Size::Half),
            },
            Figure {
                title: "Lateness of the generator".to_owned(),
                caption: "How long after its planned time a request could be sent at all: the \
                          generator's own fault, not the switch's."
                    .to_owned(),
                legend: vec![key("p99", "p99"), key("pmax", "latest")],
                svg: chart::over_time(&shaded, interval_s, &late, lateness, Size::Half),
            },
        ]))
    }

    /// When shards were unavailable, as a whole and around the first fault.
    pub(super) fn windows(&self, windows: &[Window], leaders: &[u8]) -> Vec<Block> {
        if windows.is_empty() {
            return Vec::new();
        }
        let rows = rows(windows, leaders);
        let left_out = rows.len().saturating_sub(chart::ROWS_MAX);
        let more = match left_out {
            0 => String::new(),
            count => format!(" {count} shards more are not shown."),
        };
        let mut blocks = vec![Block::Figure(Figure {
            title: "Unavailability by shard".to_owned(),
            caption: format!(
                "Each bar is a window in which a shard answered nothing although it was asked, with \
                 its length; shards with their leader before the fault. Windows as short as those of \
                 the calm before, and shards without a longer one, \
                 are left out.{more}{}",
                self.shades()
            ),
            legend: vec![block_key("failure", "no answer")],
            svg: chart::windows(&self.span, &rows),
        })];
        if let Some(span) = self.around_the_fault(windows) {
            let meets = |window: &Window| window.meets(span.from_s, span.until_s);
            let hit = rows.into_iter().filter(|(_, windows)| windows.iter().any(meets));
            let rows: Vec<_> = hit.collect();
            blocks.push(Block::Figure(Figure {
                title: "The takeover, close up".to_owned(),
                caption:
                    "The same windows around the first fault: from the first request that had \
                          to wait to the first answer of the new leader."
                        .to_owned(),
                legend: Vec::new(),
                svg: chart::windows(&span, &rows),
            }));
        }
        blocks
    }

    fn around_the_fault(&self, windows: &[Window]) -> Option<Span> {
        let first = self.span.marks.first()?.at_ms;
        let reach = first - 50.0..=first + TAKEOVER_MS;
        let near = |window: &&Window| reach.contains(&window.from_ms);
        let until = windows.iter().filter(near).map(|window| window.until_ms).reduce(f64::max)?;
        let (from_s, until_s) = ((first - 100.0).max(0.0) / 1e3, (until + 100.0) / 1e3);
        let worthwhile = until_s - from_s < (self.span.until_s - self.span.from_s) / 2.0;
        worthwhile.then(|| Span { from_s, until_s, ..self.span.clone() })
    }
}

/// Windows by shard, with the shard's leader before the fault.
fn rows(windows: &[Window], leaders: &[u8]) -> Vec<(String, Vec<Window>)> {
    let mut by_shard: BTreeMap<u16, Vec<Window>> = BTreeMap::new();
    for window in windows.iter().filter(|window| window.length_ms() > 0.0) {
        by_shard.entry(window.shard).or_default().push(*window);
    }
    let leader = |shard: u16| leaders.get(usize::from(shard)).copied().unwrap_or(0);
    let mut rows: Vec<(u8, u16, Vec<Window>)> =
        by_shard.into_iter().map(|(shard, windows)| (leader(shard), shard, windows)).collect();
    rows.sort_by_key(|(leader, shard, _)| (*leader, *shard));
    let name = |leader: u8, shard: u16| match leader {
        0 => format!("shard {shard}"),
        leader => format!("shard {shard}, site {leader}"),
    };
    rows.into_iter().map(|(leader, shard, windows)| (name(leader, shard), windows)).collect()
}

fn stack(columns: &BTreeMap<String, Vec<f64>>, label: impl Fn(&str) -> String) -> Vec<Layer> {
    let columns = columns.iter().enumerate();
    columns
        .map(|(number, (name, values))| Layer {
            class: colour(number),
            label: label(name),
            values: values.iter().map(|value| Some(*value)).collect(),
            shape: Shape::Area,
            join: Join::Mean,
        })
        .collect()
}

/// Of a line.
pub(super) fn key(class: &str, label: &str) -> (String, String) {
    (class.to_owned(), label.to_owned())
}

/// Of an area.
fn block_key(class: &str, label: &str) -> (String, String) {
    (format!("{class} block"), label.to_owned())
}

/// The distributions of a result, drawn over each other.
pub(super) fn distribution(
    of: &Distribution,
    names: &[(&str, &str, &str)],
    about: &str,
) -> Option<Block> {
    let curves: Vec<Curve> = names
        .iter()
        .filter_map(|(name, class, label)| {
            let points = of.get(*name).filter(|points| !points.is_empty())?.clone();
            Some(Curve { class: (*class).to_owned(), label: (*label).to_owned(), points })
        })
        .collect();
    distributions(&curves, about)
}

/// Curves drawn over each other; nothing without any.
pub(super) fn distributions(curves: &[Curve], about: &str) -> Option<Block> {
    if curves.is_empty() {
        return None;
    }
    let legend = curves.iter().map(|curve| {
        let class = curve.class.split(' ').next().unwrap_or_default();
        key(class, &curve.label)
    });
    Some(Block::Figure(Figure {
        title: "Latency distribution".to_owned(),
        caption: format!(
            "The share of requests on the lower axis was answered within the time on the left. The \
             axis is stretched towards the slowest requests: each nine takes as much room as all \
             before it. {about}"
        ),
        legend: legend.collect(),
        svg: chart::distribution(curves),
    }))
}

/// A percentile of a distribution.
pub(super) type Value = fn(&Percentiles) -> Option<f64>;

/// Those that are shown, with their names.
pub(super) const PERCENTILES: [(&str, Value); 5] = [
    ("p50", |of| of.p50),
    ("p90", |of| of.p90),
    ("p99", |of| of.p99),
    ("p99.9", |of| of.p999),
    ("slowest", |of| of.max),
];

/// Rows of percentiles.
pub(super) fn percentiles(rows: &[(String, Percentiles)]) -> Block {
    let row = |(name, of): &(String, Percentiles)| {
        let mut cells = vec![Cell::Text(name.clone())];
        cells.extend(PERCENTILES.map(|(_, value)| Cell::Number(scale::time_or(of.of(value)))));
        cells.push(Cell::Number(scale::grouped(of.count as f64)));
        cells
    };
    Block::Table(Table {
        caption: "A request that was refused, never answered or never sent counts as infinitely \
                  slow (never)."
            .to_owned(),
        head: words(&["", "p50", "p90", "p99", "p99.9", "slowest", "requests"]),
        rows: rows.iter().map(row).collect(),
    })
}

pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// Counts by name.
pub(super) fn counts(caption: &str, head: &str, of: &BTreeMap<String, u64>) -> Block {
    let total: u64 = of.values().fold(0, |sum, count| sum.saturating_add(*count));
    let row = |(name, count): (&String, &u64)| {
        let share = *count as f64 / total.max(1) as f64;
        vec![
            Cell::Text(name.clone()),
            Cell::Number(scale::grouped(*count as f64)),
            Cell::Number(scale::percent(share)),
        ]
    };
    Block::Table(Table {
        caption: caption.to_owned(),
        head: words(&[head, "count", "share"]),
        rows: of.iter().map(row).collect(),
    })
}

/// Goals or targets.
pub(super) fn verdicts(head: &str, of: &[Verdict]) -> Block {
    let row = |verdict: &Verdict| {
        let word = if verdict.met { "met" } else { "missed" };
        vec![
            Cell::Graded(Grade::of(verdict.met), word.to_owned()),
            Cell::Text(verdict.goal.clone()),
            Cell::Number(verdict.measured.clone()),
        ]
    };
    Block::Table(Table {
        caption: String::new(),
        head: words(&["", head, "measured"]),
        rows: of.iter().map(row).collect(),
    })
}

/// A badge of goals or targets.
pub(super) fn verdicts_badge(subject: &str, of: &[Verdict]) -> Badge {
    let missed: Vec<&Verdict> = of.iter().filter(|verdict| !verdict.met).collect();
    let (grade, verdict, detail) = match (of.len(), missed.first()) {
        (0, _) => (Grade::Open, "none set".to_owned(), String::new()),
        (count, None) => (Grade::Good, format!("all {count} met"), String::new()),
        (count, Some(first)) => (
            Grade::Bad,
            format!("{} of {count} missed", missed.len()),
            format!("{}, measured {}", first.goal, first.measured),
        ),
    };
    Badge { grade, subject: subject.to_owned(), verdict, detail }
}

/// A badge of the audit.
pub(super) fn audit_badge(audit: Option<&Audit>) -> Badge {
    let subject = "Audit".to_owned();
    let Some(audit) = audit else {
        let detail = "not part of this run".to_owned();
        return Badge { grade: Grade::Open, subject, verdict: "not audited".to_owned(), detail };
    };
    let payments = scale::grouped(audit.looked_at("payments") as f64);
    let (grade, verdict) = match audit.violation_count {
        0 if audit.is_clean() => (Grade::Good, "clean".to_owned()),
        0 => (Grade::Bad, "no data".to_owned()),
        1 => (Grade::Bad, "1 violation".to_owned()),
        count => (Grade::Bad, format!("{} violations", scale::grouped(count as f64))),
    };
    Badge { grade, subject, verdict, detail: format!("{payments} payments checked") }
}

/// The audit in full.
pub(super) fn audit(audit: &Audit) -> Chapter {
    let mut blocks = vec![Block::Note(
        "Everything that the gateways were told, the payment channel's own ledger and the log of \
         every site, held against the rules of money."
            .to_owned(),
    )];
    let row = |(name, value): (&String, &serde_json::Value)| {
        let text = value.as_f64().map_or_else(|| value.to_string(), scale::grouped);
        vec![Cell::Text(name.replace('_', " ")), Cell::Number(text)]
    };
    let table = |caption: &str, of: &BTreeMap<String, serde_json::Value>| {
        let rows = of.iter().filter(|(_, value)| value.is_number()).map(row).collect();
        Table { caption: caption.to_owned(), head: words(&["", "count"]), rows }
    };
    if !audit.violations.is_empty() {
        let row = |violation: &super::view::Violation| {
            let rule = violation.invariant.to_string();
            vec![
                Cell::Graded(Grade::Bad, format!("rule {rule}")),
                Cell::Text(violation.detail.clone()),
                Cell::Text(violation.payment.clone()),
            ]
        };
        blocks.push(Block::Table(Table {
            caption: format!("Violations: {} in all.", audit.violation_count),
            head: words(&["rule", "what is wrong", "payment"]),
            rows: audit.violations.iter().take(VIOLATIONS_MAX).map(row).collect(),
        }));
    }
    blocks.push(Block::Table(table("Looked at", &audit.checked)));
    if !audit.sums.is_empty() {
        let mut sums = table("Money on both sides, minor units", &audit.sums);
        sums.head = words(&["", "amount"]);
        blocks.push(Block::Table(sums));
    }
    Chapter::new("Audit", blocks)
}

/// Machine, versions, what the host took away, and the command.
pub(super) fn origin(origin: &Origin, host: Option<&Host>) -> Chapter {
    let machine = &origin.machine;
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![Cell::Text(name.to_owned()), Cell::Text(value)]);
        }
    };
    row("Processor", machine.cpu.clone());
    if machine.cores > 0 {
        row("Cores", machine.cores.to_string());
    }
    if machine.memory_mib > 0 {
        row("Memory", format!("{:.1} GiB", machine.memory_mib as f64 / 1024.0));
    }
    row("Kernel", machine.kernel.clone());
    row("System", machine.system.clone());
    row("payswitch", origin.payswitch.clone().unwrap_or_default());
    row("loadgen", origin.version.clone());
    row("Seed", origin.seed.to_string());
    if let Some(host) = host {
        row("Taken by the host (steal)", steal(host));
        row("Stalls of the pacing thread", stalls(host));
        row("Idle processors", idle(host).unwrap_or_default());
    }
    let table = Table { caption: String::new(), head: words(&["", ""]), rows };
    let mut blocks = vec![Block::Table(table)];
    if !origin.command.is_empty() {
        blocks.push(Block::Note("To repeat it:".to_owned()));
        blocks.push(Block::Code(origin.command.clone()));
    }
    Chapter::new("Machine and command", blocks)
}

fn steal(host: &Host) -> String {
    match (host.steal_percent, host.cpus) {
        (Some(percent), Some(cpus)) => format!("{percent:.1} % of {cpus} processors' time"),
        _ => "not known".to_owned(),
    }
}

/// What the kernel was asked to do with them, where that is known.
fn idle(host: &Host) -> Option<String> {
    Some(match host.wake_up_us? {
        0 => "asked to stay awake".to_owned(),
        us => format!("asked to wake up within {us} us"),
    })
}

fn stalls(host: &Host) -> String {
    let Some(stalls) = &host.stalls else { return "not known".to_owned() };
    format!(
        "{} over 1 ms, {} over 5 ms, {} over 10 ms, worst {}",
        stalls.over_1ms,
        stalls.over_5ms,
        stalls.over_10ms,
        scale::time(stalls.worst_us)
    )
}

/// When, where and by what version, in one line.
pub(super) fn footer(origin: &Origin) -> String {
    let mut parts = vec![format!("loadgen {}", origin.version)];
    if origin.started_unix > 0 {
        parts.push(scale::date(origin.started_unix));
    }
    if !origin.machine.cpu.is_empty() {
        parts.push(format!("{} × {}", origin.machine.cores, origin.machine.cpu));
    }
    parts.join(" · ")
}

/// A tile.
pub(super) fn tile(name: &str, value: String, detail: impl Into<String>) -> Tile {
    Tile { name: name.to_owned(), value, detail: detail.into() }
}

/// Names that either of two maps has.
pub(super) fn all_names<'a, T>(
    a: &'a BTreeMap<String, T>,
    b: &'a BTreeMap<String, T>,
) -> BTreeSet<&'a String> {
    a.keys().chain(b.keys()).collect()
}
