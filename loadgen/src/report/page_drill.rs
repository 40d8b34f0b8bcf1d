//! The page of a drill, and the page that sums up many.
//!
//! Pure. Tested on fixed results.

use super::html::{Badge, Block, Cell, Chapter, Document, Grade, Table, Tile};
use super::parts::{self, Story, tile, words};
use super::scale;
use super::view::{Drill, Percentiles, Repetition};

/// Repetitions listed in a table.
const REPETITIONS_MAX: usize = 200;

/// The page of one drill.
pub(super) fn document(drill: &Drill) -> Document {
    Document {
        title: format!("Drill: {}", drill.drill),
        subtitle: subtitle(drill),
        badges: badges(drill),
        tiles: tiles(drill),
        chapters: chapters(drill),
        footer: parts::footer(&drill.origin),
    }
}

/// One page for many drills: a table of all, then a part for each.
pub(super) fn summary(drills: &[Drill]) -> Document {
    let passed = drills.iter().filter(|drill| drill.has_passed()).count();
    let clean = |drill: &&Drill| audit_badge(drill).grade == Grade::Good;
    let audited = drills.iter().filter(clean).count();
    let badge = |subject: &str, good: usize| Badge {
        grade: Grade::of(good == drills.len() && good > 0),
        subject: subject.to_owned(),
        verdict: format!("{good} of {}", drills.len()),
        detail: String::new(),
    };
    let mut chapters = vec![Chapter::new("All drills", vec![overview(drills)])];
    for drill in drills {
        let head = vec![
            Block::Note(subtitle(drill)),
            Block::Badges(badges(drill)),
            Block::Tiles(tiles(drill)),
        ];
        chapters.push(Chapter::new(drill.drill.clone(), head));
        let parts = self::chapters(drill).into_iter();
        chapters.extend(parts.map(|chapter| Chapter { level: 3, ..chapter }));
    }
    Document {
        title: "payswitch drills".to_owned(),
        subtitle: "Real clusters under load, broken on purpose, healed and audited.".to_owned(),
        badges: vec![badge("Drills passed", passed), badge("Audits clean", audited)],
        tiles: Vec::new(),
        chapters,
        footer: drills.first().map_or_else(String::new, |drill| parts::footer(&drill.origin)),
    }
}

fn overview(drills: &[Drill]) -> Block {
    let row = |drill: &Drill| {
        let [p50, _, max] = drill.unavailable_us().map_or([None; 3], |gaps| gaps.map(Some));
        let verdict = verdict_badge(drill);
        let text = match verdict.detail.is_empty() {
            true => verdict.verdict,
            false => format!("{}: {}", verdict.verdict, verdict.detail),
        };
        let audit = audit_badge(drill);
        let failed: u64 = drill.errors_by_code.values().sum();
        vec![
            Cell::Text(drill.drill.clone()),
            Cell::Graded(verdict.grade, text),
            Cell::Graded(audit.grade, audit.verdict),
            Cell::Number(scale::time_or(p50)),
            Cell::Number(scale::time_or(max)),
            Cell::Number(scale::grouped(failed as f64)),
            Cell::Number(drill.repetitions.len().to_string()),
        ]
    };
    Block::Table(Table {
        caption: "Unavailable: longest stretch without an answer of a shard that the fault hit."
            .to_owned(),
        head: words(&[
            "drill",
            "verdict",
            "audit",
            "unavailable p50",
            "at most",
            "failed",
            "times",
        ]),
        rows: drills.iter().map(row).collect(),
    })
}

fn subtitle(drill: &Drill) -> String {
    let times = match drill.repetitions.len() {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    let about = match drill.about.chars().next() {
        Some(first) => first.to_uppercase().chain(drill.about.chars().skip(1)).collect::<String>(),
        None => "Something was broken".to_owned(),
    };
    let (sites, rate) = (drill.sites, scale::grouped(drill.load_rate));
    format!("{about}; {times}, under {rate} requests/s to {sites} sites.")
}

fn badges(drill: &Drill) -> Vec<Badge> {
    vec![
        verdict_badge(drill),
        parts::verdicts_badge("Targets", &drill.targets),
        audit_badge(drill),
        generator_badge(drill),
        failures_badge(drill),
    ]
}

/// How it went as a whole, and why not well: a violation says most, then what ended it.
pub(super) fn verdict_badge(drill: &Drill) -> Badge {
    let missed = drill.targets.iter().find(|target| !target.met);
    let violations = drill.audit.as_ref().map_or(0, |audit| audit.violation_count);
    let (verdict, detail) = match (&drill.ended, missed) {
        _ if drill.has_passed() => ("passed", String::new()),
        _ if violations > 0 => ("failed", "the audit found violations".to_owned()),
        (Some(ended), _) => ("broke off", ended.lines().next().unwrap_or_default().to_owned()),
        (None, Some(target)) => {
            ("missed", format!("{}, measured {}", target.goal, target.measured))
        }
        (None, None) => ("failed", "no data: nothing was audited".to_owned()),
    };
    let (subject, verdict) = ("Drill".to_owned(), verdict.to_owned());
    Badge { grade: Grade::of(drill.has_passed()), subject, verdict, detail }
}

/// A badge of the audit. One that did not see a drill to its end says nothing of the rest.
pub(super) fn audit_badge(drill: &Drill) -> Badge {
    let badge = parts::audit_badge(drill.audit.as_ref());
    if badge.grade != Grade::Good || drill.is_audited_to_its_end() {
        return badge;
    }
    let detail = format!("nothing found so far, {}", badge.detail);
    Badge { grade: Grade::Open, verdict: "not complete".to_owned(), detail, ..badge }
}

/// Beyond this the generator's lateness blurs the windows, milliseconds.
const LATE_MS: f64 = 20.0;

fn generator_badge(drill: &Drill) -> Badge {
    let late = drill.repetitions.iter().map(|one| one.generator_late_ms_p99).reduce(f64::max);
    let (grade, verdict) = match late {
        None => (Grade::Open, "no data".to_owned()),
        Some(late) if late <= LATE_MS => (Grade::Good, "kept up".to_owned()),
        Some(_) => (Grade::Bad, "was late".to_owned()),
    };
    let detail = late.map(|late| format!("lateness p99 {}", scale::time(late * 1e3)));
    let subject = "Generator".to_owned();
    Badge { grade, subject, verdict, detail: detail.unwrap_or_default() }
}

fn failures_badge(drill: &Drill) -> Badge {
    let failed: u64 =
        drill.errors_by_code.values().fold(0, |sum, count| sum.saturating_add(*count));
    let (grade, verdict) = match (failed, drill.repetitions.len()) {
        (_, 0) => (Grade::Open, "no data".to_owned()),
        (0, _) => (Grade::Good, "none failed".to_owned()),
        (failed, _) => (Grade::Open, format!("{} failed", scale::grouped(failed as f64))),
    };
    let detail =
        format!("{} of shards led elsewhere", scale::grouped(drill.errors_elsewhere as f64));
    Badge { grade, subject: "Requests".to_owned(), verdict, detail }
}

fn tiles(drill: &Drill) -> Vec<Tile> {
    let mut tiles = Vec::new();
    if let Some([p50, p99, max]) = drill.unavailable_us() {
        let hit = || drill.hit().count() as u64;
        let count = drill.unavailability.as_ref().map_or_else(hit, |spread| spread.count);
        let detail = format!("of {count} shards hit");
        tiles.push(tile("Unavailable p50", scale::time(p50), detail));
        tiles.push(tile("Unavailable p99", scale::time(p99), "of the same"));
        tiles.push(tile("Unavailable at most", scale::time(max), "of the same"));
    }
    if let Some(latency) = &drill.latency_us {
        let p99 = |of: &Percentiles| scale::time_or(of.of(|of| of.p99));
        let detail = format!("before: {}", p99(&latency.before));
        tiles.push(tile("p99 during the fault", p99(&latency.during), detail));
    }
    let levels = drill.repetitions.iter().flat_map(|one| &one.level_ms).flatten().copied();
    if let Some(level) = levels.reduce(f64::max) {
        let detail = "after it was healed, at most";
        tiles.push(tile("Site level again", scale::time(level * 1e3), detail));
    }
    tiles
}

fn chapters(drill: &Drill) -> Vec<Chapter> {
    let mut chapters = Vec::new();
    if let Some(ended) = &drill.ended {
        let blocks = vec![Block::Code(ended.clone())];
        chapters.push(Chapter::new("Broken off before its end", blocks));
    }
    let shown = shown(drill);
    if let Some((number, repetition, timeline)) = shown {
        let story = Story::new(timeline, 0.0, &repetition.marks);
        let mut blocks = Vec::new();
        if drill.repetitions.len() > 1 {
            let of = drill.repetitions.len();
            let text =
                format!("Repetition {} of {of}, the one with the longest window.", number + 1);
            blocks.push(Block::Note(text));
        }
        blocks.extend([story.throughput(), story.latency()]);
        chapters.push(Chapter::new("Over time", blocks));
        let mut takeover: Vec<Block> = story.sites().into_iter().collect();
        takeover.extend(story.windows(&repetition.windows, &repetition.leaders_before));
        if repetition.windows.is_empty() {
            let text =
                "No shard went without an answer for longer than in the calm before the fault.";
            takeover.push(Block::Note(text.to_owned()));
        }
        chapters.push(Chapter::new("The takeover", takeover));
        chapters.push(Chapter::new("Failures", failures(drill, Some(story.failures()))));
        chapters.push(Chapter::new("Latency", latency(drill)));
        chapters.push(Chapter::new("The generator", vec![story.generator()]));
    } else {
        chapters.push(Chapter::new("Failures", failures(drill, None)));
        chapters.push(Chapter::new("Latency", latency(drill)));
    }
    chapters.push(Chapter::new("Targets", vec![parts::verdicts("target", &drill.targets)]));
    if drill.repetitions.len() > 1 {
        chapters.push(Chapter::new("Repetitions", vec![repetitions(drill)]));
    }
    chapters.extend(drill.audit.as_ref().map(parts::audit));
    chapters.push(parts::origin(&drill.origin, shown.map(|(_, repetition, _)| &repetition.host)));
    chapters
}

/// The repetition worth a look: the worst of those whose figures were kept.
fn shown(drill: &Drill) -> Option<(usize, &Repetition, &super::view::Timeline)> {
    let kept = drill.repetitions.iter().enumerate();
    let kept = kept.filter_map(|(at, one)| Some((at, one, one.timeline.as_ref()?)));
    let worst = |one: &Repetition| one.worst_ms().unwrap_or(0.0);
    kept.max_by(|(_, a, _), (_, b, _)| worst(a).total_cmp(&worst(b)))
}

fn failures(drill: &Drill, figure: Option<Block>) -> Vec<Block> {
    let mut blocks: Vec<Block> = figure.into_iter().collect();
    if !drill.errors_by_code.is_empty() {
        let caption = "Failed requests of all repetitions, by what they ended with.";
        blocks.push(parts::counts(caption, "code", &drill.errors_by_code));
    }
    blocks
}

fn latency(drill: &Drill) -> Vec<Block> {
    let names = [
        ("before", "c1", "before the fault"),
        ("during", "c5", "during it"),
        ("after", "c3", "after its repair"),
    ];
    let about = "From the planned time, over all repetitions.";
    let mut blocks: Vec<Block> =
        parts::distribution(&drill.distribution, &names, about).into_iter().collect();
    if let Some(of) = &drill.latency_us {
        let rows = [
            ("before the fault".to_owned(), of.before),
            ("during it".to_owned(), of.during),
            ("after its repair".to_owned(), of.after),
        ];
        blocks.push(parts::percentiles(&rows));
    }
    blocks
}

fn repetitions(drill: &Drill) -> Block {
    let row = |(at, one): (usize, &Repetition)| {
        let victims: Vec<String> = one.victims.iter().map(ToString::to_string).collect();
        let mut gaps: Vec<f64> =
            one.unavailability_ms.iter().filter_map(|shard| shard.ms).collect();
        gaps.sort_unstable_by(f64::total_cmp);
        let median = gaps.get(gaps.len().saturating_sub(1) / 2).map(|ms| ms * 1e3);
        let level = one.level_ms.iter().flatten().copied().reduce(f64::max).map(|ms| ms * 1e3);
        let failed: u64 = one.failed_by_code.values().sum();
        let worst = one.worst_ms().map(|ms| ms * 1e3);
        let number = |count: u64| Cell::Number(scale::grouped(count as f64));
        vec![
            Cell::Number((at + 1).to_string()),
            Cell::Text(victims.join(", ")),
            Cell::Number(scale::time_or(median)),
            Cell::Number(scale::time_or(worst)),
            Cell::Number(scale::time_or(level)),
            number(failed),
            number(one.failed_elsewhere),
            number(one.unsettled),
            number(one.resent),
        ]
    };
    let left_out = drill.repetitions.len().saturating_sub(REPETITIONS_MAX);
    Block::Table(Table {
        caption: match left_out {
            0 => String::new(),
            count => format!("{count} more are not listed."),
        },
        head: words(&[
            "no.",
            "site",
            "unavailable p50",
            "at most",
            "level again",
            "failed",
            "elsewhere",
            "unsettled",
            "sent again",
        ]),
        rows: drill.repetitions.iter().enumerate().take(REPETITIONS_MAX).map(row).collect(),
    })
}
