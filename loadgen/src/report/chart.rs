//! The charts: figures over time with the faults behind them, and distributions.
//!
//! Pure: values in, SVG out. Colours are classes of the page. Tested on their
//! structure.

use super::scale::{self, Scale};
use super::svg::{Anchor, Svg};
use super::view::{Mark, Window};

pub(super) const WIDTH: f64 = 960.0;
pub(super) const LEFT: f64 = 62.0;
pub(super) const RIGHT: f64 = 14.0;
/// Room for the names of faults.
pub(super) const TOP: f64 = 24.0;
pub(super) const BOTTOM: f64 = 34.0;
/// Places in one chart: more could not be told apart.
const BINS_MAX: usize = 480;
/// Places that tell their figures to the pointer.
const HINTS_MAX: usize = 160;
/// Room above the largest value.
const HEADROOM: f64 = 1.03;
/// A name of a fault takes about this much room for each character.
const CHARACTER: f64 = 6.4;

/// What all charts of a run share: the time axis.
#[derive(Clone, Debug, Default)]
pub(super) struct Span {
    /// Seconds.
    pub(super) from_s: f64,
    /// Seconds.
    pub(super) until_s: f64,
    /// Until then nothing was measured.
    pub(super) warmup_s: f64,
    /// Faults.
    pub(super) marks: Vec<Mark>,
}

/// How points are taken together when there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    /// Rates.
    Mean,
    /// What should not be hidden.
    Max,
}

/// How a layer is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// As a line.
    Line,
    /// Filled down to the axis.
    Area,
}

/// One figure over time.
pub(super) struct Layer {
    /// Class of its colour.
    pub(super) class: String,
    /// What it is.
    pub(super) label: String,
    /// Per interval.
    pub(super) values: Vec<Option<f64>>,
    /// How it is drawn.
    pub(super) shape: Shape,
    /// How points are taken together.
    pub(super) join: Join,
}

/// How values are measured on the upright axis.
#[derive(Clone, Copy)]
pub(super) struct Measure {
    /// Title of the axis.
    pub(super) title: &'static str,
    /// How a value is written.
    pub(super) text: fn(f64) -> String,
    /// By its logarithm.
    pub(super) log: bool,
    /// The end of the axis, where it is given.
    pub(super) end: Option<f64>,
}

/// A frame with axes, into which layers are drawn.
struct Frame {
    svg: Svg,
    x: Scale,
    y: Scale,
    width: f64,
    height: f64,
}

impl Frame {
    fn new((width, height): (f64, f64), span: &Span, range: (f64, f64), measure: Measure) -> Self {
        let bottom = height - BOTTOM;
        let places = (bottom, TOP);
        let y = match measure.log {
            true => Scale::log(range, places),
            false => Scale::linear(range, places),
        };
        let x = Scale::linear((span.from_s, span.until_s), (LEFT, width - RIGHT));
        let mut frame = Self { svg: Svg::new(width, height), x, y, width, height };
        frame.shades(span);
        frame.y_axis(measure);
        frame.x_axis(LEFT);
        frame
    }

    fn bottom(&self) -> f64 {
        self.height - BOTTOM
    }

    /// Warm-up and faults, behind everything.
    fn shades(&mut self, span: &Span) {
        let (top, bottom) = (TOP, self.bottom());
        let mut shade = |class: &str, from_s: f64, until_s: f64, title: &str| {
            if until_s > span.from_s && from_s < span.until_s {
                let (from, until) = (self.x.at(from_s), self.x.at(until_s));
                let size = ((until - from).max(1.0), bottom - top);
                self.svg.rect(class, (from, top), size, Some(title));
            }
        };
        if span.warmup_s > 0.0 {
            shade("warmup", 0.0, span.warmup_s, "warm-up, not measured");
        }
        for mark in &span.marks {
            let until_s = mark.until_s().unwrap_or(mark.at_s());
            shade("fault", mark.at_s(), until_s, &mark.text);
        }
    }

    fn y_axis(&mut self, measure: Measure) {
        let count = ((self.bottom() - TOP) / 34.0) as usize;
        let right = self.width - RIGHT;
        for tick in self.y.ticks(count) {
            let y = self.y.at(tick);
            self.svg.line("grid", (LEFT, y), (right, y));
            self.svg.text("tick", (LEFT - 8.0, y + 4.0), Anchor::End, &(measure.text)(tick));
        }
        self.svg.text("axis-title", (LEFT, 12.0), Anchor::Start, measure.title);
    }

    fn x_axis(&mut self, left: f64) {
        let bottom = self.bottom();
        self.svg.line("axis", (left, bottom), (self.width - RIGHT, bottom));
        for tick in self.x.ticks((self.width / 80.0) as usize) {
            let x = self.x.at(tick);
            self.svg.line("axis", (x, bottom), (x, bottom + 4.0));
            let text = format!("{} s", short(tick));
            self.svg.text("tick", (x, bottom + 18.0), Anchor::Middle, &text);
        }
    }

    /// The moments of the faults with their names, each where there is room.
    fn marks(&mut self, span: &Span) {
        // Behind the axis' title.
        let mut free_from = LEFT + 150.0;
        let bottom = self.bottom();
        let within = |at_s: f64| (span.from_s..=span.until_s).contains(&at_s);
        for mark in span.marks.iter().filter(|mark| within(mark.at_s())) {
            let x = self.x.at(mark.at_s());
            self.svg.line("mark", (x, TOP - 6.0), (x, bottom));
            if let Some(until_s) = mark.until_s().filter(|until_s| within(*until_s)) {
                let until = self.x.at(until_s);
                self.svg.line("mark-end", (until, TOP), (until, bottom));
            }
            let room = mark.text.chars().count() as f64 * CHARACTER;
            let fits = x + 4.0 + room <= self.width;
            let begin = if fits { x + 4.0 } else { self.width - room - 4.0 };
            if begin >= free_from || free_from <= LEFT + 150.0 && begin >= LEFT + 90.0 {
                self.svg.text("mark-text", (begin, TOP - 10.0), Anchor::Start, &mark.text);
                free_from = begin + room + 12.0;
            }
        }
    }
}

/// A tick without needless digits.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Takes neighbours together until there are few enough. Returns how many make one.
fn joined(values: &[Option<f64>], join: Join) -> (Vec<Option<f64>>, usize) {
    let each = values.len().div_ceil(BINS_MAX).max(1);
    let join = |values: &[Option<f64>]| {
        let known = || values.iter().flatten().copied();
        match join {
            Join::Max => known().reduce(f64::max),
            Join::Mean => {
                let count = known().count();
                (count > 0).then(|| known().sum::<f64>() / count as f64)
            }
        }
    };
    (values.chunks(each).map(join).collect(), each)
}

/// Lines and areas over time. `interval_s` is the length of an interval.
pub(super) fn over_time(
    span: &Span,
    interval_s: f64,
    layers: &[Layer],
    measure: Measure,
    size: Size,
) -> String {
    let known = || layers.iter().flat_map(|layer| layer.values.iter().flatten().copied());
    let largest = known().filter(|value| value.is_finite()).fold(0.0, f64::max);
    let range = match measure.log {
        true => {
            let least = known().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
            log_range(least, largest)
        }
        false => (0.0, measure.end.unwrap_or_else(|| scale::nice_end(largest * HEADROOM))),
    };
    let mut frame = Frame::new(size.pair(), span, range, measure);
    let mut hints = Vec::new();
    for layer in layers {
        let (values, each) = joined(&layer.values, layer.join);
        let step_s = interval_s * each as f64;
        let (x, y) = (frame.x, frame.y);
        let place = |at: usize| x.at((at as f64 + 0.5) * step_s);
        let points = values.iter().enumerate();
        match layer.shape {
            Shape::Line => {
                let points = points.map(|(at, value)| value.map(|value| (place(at), y.at(value))));
                frame.svg.path(&format!("line {}", layer.class), points);
            }
            Shape::Area => {
                let floor = frame.bottom();
                let points: Vec<_> =
                    points.map(|(at, v)| (place(at), floor, y.at(v.unwrap_or(0.0)))).collect();
                frame.svg.area(&format!("area {}", layer.class), &points);
            }
        }
        if !layer.label.is_empty() {
            hints.push((layer.label.as_str(), values, step_s));
        }
    }
    frame.marks(span);
    self::hints(&mut frame, &hints, measure.text);
    frame.svg.finish(&labels(measure.title, layers))
}

/// Figures of a moment, shown when the pointer rests there.
fn hints(frame: &mut Frame, layers: &[(&str, Vec<Option<f64>>, f64)], text: fn(f64) -> String) {
    let Some((_, first, step_s)) = layers.first() else { return };
    let each = first.len().div_ceil(HINTS_MAX).max(1);
    for at in (0..first.len()).step_by(each) {
        let from_s = at as f64 * step_s;
        let mut title = format!("{} s", short(from_s));
        for (label, values, _) in layers {
            let value = values[at.min(values.len())..values.len().min(at + each)]
                .iter()
                .flatten()
                .copied()
                .reduce(f64::max);
            let value = value.map_or_else(|| "–".to_owned(), text);
            title.push_str(&format!("\n{label}: {value}"));
        }
        let (x, until) = (frame.x.at(from_s), frame.x.at(from_s + step_s * each as f64));
        let size = (until - x, frame.bottom() - TOP);
        frame.svg.rect("hint", (x, TOP), size, Some(&title));
    }
}

fn labels(title: &str, layers: &[Layer]) -> String {
    let names: Vec<&str> =
        layers.iter().map(|layer| layer.label.as_str()).filter(|name| !name.is_empty()).collect();
    format!("{title} over time: {}", names.join(", "))
}

/// Whole decades, or their halves and fifths, around these values.
pub(super) fn log_range(least: f64, largest: f64) -> (f64, f64) {
    if !least.is_finite() || largest <= 0.0 {
        return (1.0, 1_000.0);
    }
    let power = |value: f64| 10_f64.powf(value.log10().floor());
    let below = [5.0, 2.0, 1.0]
        .into_iter()
        .map(|fold| fold * power(least))
        .find(|tick| *tick <= least * 0.95)
        .unwrap_or(power(least) / 2.0);
    let above = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|fold| fold * power(largest))
        .find(|tick| *tick >= largest * 1.05)
        .unwrap_or(20.0 * power(largest));
    (below, above)
}

/// Size of a chart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Over the page's width.
    Wide,
    /// Beside another one.
    Half,
}

impl Size {
    fn pair(self) -> (f64, f64) {
        match self {
            Self::Wide => (WIDTH, 260.0),
            Self::Half => (WIDTH / 2.0 - 8.0, 210.0),
        }
    }
}

/// Figures stacked upon each other, per interval; as shares of their sum when
/// `shares`.
pub(super) fn stacked(
    span: &Span,
    interval_s: f64,
    layers: &[Layer],
    shares: bool,
    measure: Measure,
) -> String {
    let joined: Vec<(Vec<Option<f64>>, usize)> =
        layers.iter().map(|layer| joined(&layer.values, layer.join)).collect();
    let count = joined.iter().map(|(values, _)| values.len()).max().unwrap_or(0);
    let step_s = interval_s * joined.first().map_or(1, |(_, each)| *each) as f64;
    let value = |layer: usize, at: usize| joined[layer].0.get(at).copied().flatten().unwrap_or(0.0);
    let sum = |at: usize| (0..layers.len()).map(|layer| value(layer, at)).sum::<f64>();
    let largest = (0..count).map(sum).fold(0.0, f64::max);
    let end = if shares { 1.0 } else { scale::nice_end(largest * HEADROOM) };
    let mut frame = Frame::new(Size::Wide.pair(), span, (0.0, end), measure);
    let mut base = vec![0.0; count];
    let mut hints = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let part = |at: usize| match (shares, sum(at)) {
            (true, sum) if sum > 0.0 => value(number, at) / sum,
            (true, _) => 0.0,
            (false, _) => value(number, at),
        };
        let mut points = Vec::with_capacity(2 * count);
        for (at, base) in base.iter_mut().enumerate() {
            let above = *base + part(at);
            let (x, y) = (frame.x, frame.y);
            // Steps, so that one interval is as wide as it is long.
            for end in [at, at + 1] {
                points.push((x.at(end as f64 * step_s), y.at(*base), y.at(above)));
            }
            *base = above;
        }
        frame.svg.area(&format!("stack {}", layer.class), &points);
        hints.push((layer.label.as_str(), (0..count).map(|at| Some(part(at))).collect(), step_s));
    }
    frame.marks(span);
    self::hints(&mut frame, &hints, measure.text);
    frame.svg.finish(&labels(measure.title, layers))
}

/// A distribution: shares of the values with what they stay below, microseconds;
/// nothing where the value never came.
pub(super) struct Curve {
    /// Class of its colour.
    pub(super) class: String,
    /// What it is.
    pub(super) label: String,
    /// Share, 0 to 1, and value.
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// Latency by percentile, the axis stretched towards the slowest.
pub(super) fn distribution(curves: &[Curve]) -> String {
    let values = || curves.iter().flat_map(|curve| curve.points.iter().filter_map(|(_, us)| *us));
    let range = log_range(
        values().filter(|us| *us > 0.0).fold(f64::INFINITY, f64::min),
        values().fold(0.0, f64::max),
    );
    let depth = |share: f64| 1.0 / (1.0 - share).max(1e-9);
    let shares = || curves.iter().flat_map(|curve| curve.points.iter().map(|(share, _)| *share));
    let deepest = shares().filter(|share| *share < 1.0).map(depth).fold(100.0, f64::max);
    let (width, height) = (WIDTH, 320.0);
    let bottom = height - BOTTOM;
    let x = Scale::log((1.0, deepest), (LEFT, width - RIGHT - 16.0));
    let y = Scale::log(range, (bottom, TOP));
    let mut svg = Svg::new(width, height);
    for tick in y.ticks(9) {
        svg.line("grid", (LEFT, y.at(tick)), (width - RIGHT, y.at(tick)));
        let place = (LEFT - 8.0, y.at(tick) + 4.0);
        svg.text("tick", place, Anchor::End, &scale::time(tick));
    }
    for (text, share) in [("0 %", 0.0), ("50 %", 0.5)] {
        percentile_tick(&mut svg, x.at(depth(share)), bottom, text);
    }
    for nines in 1..=8_usize {
        let at = 10_f64.powi(nines as i32);
        if at > deepest * 1.001 {
            break;
        }
        let text = match nines {
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            _ => format!("99.{} %", "9".repeat(nines - 2)),
        };
        percentile_tick(&mut svg, x.at(at), bottom, &text);
    }
    svg.line("axis", (LEFT, bottom), (width - RIGHT, bottom));
    svg.text("axis-title", (LEFT, 12.0), Anchor::Start, "Latency (log)");
    for curve in curves {
        let place = |share: f64| x.at(depth(share).min(deepest));
        let points = curve.points.iter().map(|(share, us)| us.map(|us| (place(*share), y.at(us))));
        svg.path(&format!("line {}", curve.class), points);
        let never = curve.points.iter().find(|(_, us)| us.is_none());
        if let Some((share, _)) = never {
            svg.line(
                &format!("never {}", curve.class),
                (place(*share), TOP),
                (place(*share), bottom),
            );
            let text = (place(*share) - 4.0, TOP + 12.0);
            svg.text("note", text, Anchor::End, "from here on: never answered as asked");
        }
        for (share, us) in curve.points.iter().filter_map(|(share, us)| Some((share, (*us)?))) {
            let title =
                format!("{}: {} % within {}", curve.label, short_share(*share), scale::time(us));
            svg.rect("hint", (place(*share) - 3.0, y.at(us) - 8.0), (6.0, 16.0), Some(&title));
        }
    }
    let names: Vec<&str> = curves.iter().map(|curve| curve.label.as_str()).collect();
    svg.finish(&format!("Latency by percentile: {}", names.join(", ")))
}

fn short_share(share: f64) -> String {
    let text = format!("{:.5}", share * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn percentile_tick(svg: &mut Svg, x: f64, bottom: f64, text: &str) {
    svg.line("grid", (x, TOP), (x, bottom));
    svg.line("axis", (x, bottom), (x, bottom + 4.0));
    svg.text("tick", (x, bottom + 18.0), Anchor::Middle, text);
}

/// Rows drawn at most.
pub(super) const ROWS_MAX: usize = 36;

/// When each shard was unavailable: one row per shard, a bar per window.
pub(super) fn windows(span: &Span, rows: &[(String, Vec<Window>)]) -> String {
    let rows = &rows[..rows.len().min(ROWS_MAX)];
    let row = if rows.len() > 16 { 15.0 } else { 19.0 };
    let height = TOP + rows.len() as f64 * row + BOTTOM;
    let mut frame = Frame {
        svg: Svg::new(WIDTH, height),
        x: Scale::linear((span.from_s, span.until_s), (LEFT + 46.0, WIDTH - RIGHT)),
        y: Scale::linear((0.0, 1.0), (height - BOTTOM, TOP)),
        width: WIDTH,
        height,
    };
    frame.shades(span);
    for (number, (name, windows)) in rows.iter().enumerate() {
        frame.row(span, name, windows, (TOP + number as f64 * row, row));
    }
    frame.x_axis(LEFT + 46.0);
    frame.marks(span);
    frame.svg.finish("Windows in which a shard answered nothing")
}

impl Frame {
    /// The windows of one shard.
    fn row(&mut self, span: &Span, name: &str, windows: &[Window], (y, height): (f64, f64)) {
        let middle = y + height / 2.0;
        self.svg.line("grid", (LEFT + 46.0, middle), (self.width - RIGHT, middle));
        self.svg.text("tick", (LEFT + 38.0, middle + 4.0), Anchor::End, name);
        let x = self.x;
        let shown: Vec<(f64, f64, String)> = windows
            .iter()
            .filter(|window| window.meets(span.from_s, span.until_s))
            .map(|window| {
                let from = x.at(window.from_ms / 1e3);
                let until = x.at(window.until_ms / 1e3).max(from + 2.0);
                (from, until, scale::time(window.length_ms() * 1e3))
            })
            .collect();
        for (at, (from, until, length)) in shown.iter().enumerate() {
            let title = format!("{name}: no answer for {length}");
            let size = (until - from, height - 5.0);
            self.svg.rect("window", (*from, y + 2.5), size, Some(&title));
            // Where the next bar leaves room for it.
            let end = until + 8.0 + length.chars().count() as f64 * CHARACTER;
            let room = shown.get(at + 1).map_or(self.width, |(next, ..)| *next);
            if end <= room {
                self.svg.text("bar", (until + 4.0, middle + 4.0), Anchor::Start, length);
            }
        }
    }
}
