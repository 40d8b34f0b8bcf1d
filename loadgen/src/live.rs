//! The view of a load that runs: redrawn in place on a terminal, one plain line per
//! second elsewhere.
//!
//! On a terminal it writes over its own lines and changes no mode, neither the cursor
//! nor the screen: whatever ends the process, there is nothing to restore. Frames are
//! rendered to text. Tested on frames, and on a pseudo terminal.

use crate::measure::Second;
use std::collections::{BTreeMap, VecDeque};
use std::io::{IsTerminal, Write};

/// Seconds of the small curve.
const HISTORY: usize = 40;
/// Codes that are named.
const CODES_MAX: usize = 6;
const WIDTH_DEFAULT: usize = 80;

/// How much a phase says while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing.
    Silent,
    /// A view on a terminal, nothing elsewhere.
    Terminal,
    /// A view on a terminal, a line per second elsewhere.
    Always,
}

/// What is shown of one second.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// The second that has ended.
    pub(crate) second: Second,
    /// How long it will last, when that is known.
    pub(crate) duration_s: Option<u64>,
    /// Requests without an answer yet.
    pub(crate) in_flight: usize,
    /// Requests that wait to be sent.
    pub(crate) waiting: usize,
    /// Lateness of the generator, 99th percentile of all.
    pub(crate) late_us: u64,
    /// Whether any link is up.
    pub(crate) connected: bool,
    /// Answers by code, of all.
    pub(crate) codes: BTreeMap<&'static str, u64>,
    /// Answers of the last second by site.
    pub(crate) sites: Vec<(u8, u64)>,
    /// Requests given up without an answer: their outcome is in doubt.
    pub(crate) unanswered: u64,
    /// Planned and not sent.
    pub(crate) not_sent: u64,
    /// What was done to the system last.
    pub(crate) note: Option<String>,
}

/// Where frames go.
pub(crate) struct View {
    progress: Progress,
    terminal: bool,
    colour: bool,
    history: VecDeque<u64>,
    /// Lines of the last frame.
    drawn: usize,
}

impl View {
    /// A view on the standard output.
    pub(crate) fn new(progress: Progress) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        Self {
            progress,
            terminal: std::io::stdout().is_terminal() && !dumb,
            colour: set("NO_COLOR").is_none(),
            history: VecDeque::with_capacity(HISTORY),
            drawn: 0,
        }
    }

    /// Shows a second.
    pub(crate) fn show(&mut self, frame: &Frame) {
        match (self.progress, self.terminal) {
            (Progress::Silent, _) | (Progress::Terminal, false) => {}
            (Progress::Always, false) => println!("{}", line(frame)),
            (_, true) => {
                let size = terminal_size::terminal_size();
                let width = size.map_or(WIDTH_DEFAULT, |(width, _)| usize::from(width.0));
                let text = self.redraw(frame, width);
                let mut out = std::io::stdout().lock();
                // A terminal that went away is no reason to end the load.
                drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
            }
        }
    }

    /// The text that takes the last frame's place.
    fn redraw(&mut self, frame: &Frame, width: usize) -> String {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(frame.second.ok);
        let lines = lines(frame, &self.history, self.colour);
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\r\x1b[{}A", self.drawn));
        }
        for line in &lines {
            text.push_str(&clip(line, width.saturating_sub(1)));
            text.push_str("\x1b[K\n");
        }
        // What the last frame had more.
        text.push_str("\x1b[J");
        self.drawn = lines.len();
        text
    }
}

/// Colours of words, as the terminal's own palette has them.
#[derive(Clone, Copy)]
enum Tint {
    Faint,
    Strong,
    Red,
    Yellow,
}

fn tinted(text: &str, tint: Tint, colour: bool) -> String {
    let code = match tint {
        Tint::Faint => 2,
        Tint::Strong => 1,
        Tint::Red => 31,
        Tint::Yellow => 33,
    };
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A percentile of a second; without one something failed that decides it, or there was
/// nothing.
fn ms(us: Option<u64>, second: &Second) -> String {
    match us {
        Some(us) => format!("{:.2}", us as f64 / 1_000.0),
        None if second.never > 0 => "never".to_owned(),
        None => "-".to_owned(),
    }
}

/// A second in one plain line.
fn line(frame: &Frame) -> String {
    let second = &frame.second;
    format!(
        "{:>4} s  sent {:>7}/s  ok {:>7}/s  refused {:>6}/s  p50 {:>7} ms  p99 {:>7} ms  \
         in flight {:>6}  waiting {:>6}  late p99 {:>5} us{}",
        second.at_s,
        second.sent,
        second.ok,
        second.refused,
        ms(second.p50_us, second),
        ms(second.p99_us, second),
        frame.in_flight,
        frame.waiting,
        frame.late_us,
        if frame.connected { "" } else { "  NOT CONNECTED" },
    )
}

/// The lines of a frame.
fn lines(frame: &Frame, history: &VecDeque<u64>, colour: bool) -> Vec<String> {
    let second = &frame.second;
    let faint = |text: &str| tinted(text, Tint::Faint, colour);
    let strong = |text: String| tinted(&text, Tint::Strong, colour);
    let mut lines = vec![format!(
        "{} {}{}",
        strong(format!("{:>5} s", second.at_s)),
        bar(second.at_s, frame.duration_s),
        if frame.connected { String::new() } else { tinted("  NOT CONNECTED", Tint::Red, colour) },
    )];
    let failed = format!("failed {}/s", second.refused);
    lines.push(format!(
        "  {}   sent {}/s   {}   {}",
        strong(format!("ok {}/s", second.ok)),
        second.sent,
        if second.refused > 0 { tinted(&failed, Tint::Red, colour) } else { failed },
        faint(&sparkline(history)),
    ));
    lines.push(format!(
        "  {}   p90 {}   {}   slowest {} ms   {}",
        strong(format!("p50 {}", ms(second.p50_us, second))),
        ms(second.p90_us, second),
        strong(format!("p99 {}", ms(second.p99_us, second))),
        ms(second.max_us, second),
        faint("from plan"),
    ));
    lines.push(format!(
        "  in flight {}   waiting {}   {}",
        frame.in_flight,
        frame.waiting,
        faint(&format!("generator late p99 {} us", frame.late_us)),
    ));
    if frame.sites.len() > 1 {
        lines.push(format!("  {}", shares(&frame.sites)));
    }
    lines.push(format!("  {}", codes(frame, colour)));
    if let Some(note) = &frame.note {
        lines.push(format!("  {}", tinted(note, Tint::Yellow, colour)));
    }
    lines
}

fn bar(at_s: u64, duration_s: Option<u64>) -> String {
    const CELLS: u64 = 24;
    let Some(duration_s) = duration_s.filter(|duration| *duration > 0) else {
        return String::new();
    };
    let full = (at_s.min(duration_s) * CELLS / duration_s) as usize;
    let rest = CELLS as usize - full;
    format!("{}{} of {duration_s} s", "█".repeat(full), "░".repeat(rest))
}

fn sparkline(history: &VecDeque<u64>) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = history.iter().copied().max().unwrap_or(0).max(1);
    let level = |value: &u64| LEVELS[(value * 7).div_ceil(largest).min(7) as usize];
    history.iter().map(level).collect()
}

fn shares(sites: &[(u8, u64)]) -> String {
    let all: u64 = sites.iter().map(|(_, count)| count).sum::<u64>().max(1);
    let mut sites = sites.to_vec();
    sites.sort_unstable();
    let share = |(site, count): &(u8, u64)| {
        let percent = (count * 100 + all / 2) / all;
        format!("site {site} {} {percent:>3} %", "▪".repeat((percent as usize).div_ceil(10)))
    };
    sites.iter().map(share).collect::<Vec<_>>().join("   ")
}

fn codes(frame: &Frame, colour: bool) -> String {
    let mut codes: Vec<(&str, u64)> = frame.codes.iter().map(|(code, n)| (*code, *n)).collect();
    codes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut parts: Vec<String> =
        codes.iter().take(CODES_MAX).map(|(code, count)| format!("{code} {count}")).collect();
    if codes.len() > CODES_MAX {
        parts.push("…".to_owned());
    }
    let mut bad = |name: &str, count: u64| {
        if count > 0 {
            parts.push(tinted(&format!("{name} {count}"), Tint::Red, colour));
        }
    };
    bad("in doubt", frame.unanswered);
    bad("not sent", frame.not_sent);
    parts.join("   ")
}

/// The beginning of a line that fits; what colours it takes no room. Always ends
/// without a colour.
fn clip(line: &str, width: usize) -> String {
    let (mut clipped, mut room, mut coloured) = (String::new(), width, false);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            coloured = true;
            clipped.push(character);
            for code in characters.by_ref() {
                clipped.push(code);
                if code.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if room > 0 {
            clipped.push(character);
            room -= 1;
        }
    }
    if coloured && !clipped.ends_with("\x1b[0m") {
        clipped.push_str("\x1b[0m");
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame {
            second: Second {
                at_s: 6,
                sent: 1_000,
                ok: 990,
                refused: 4,
                p50_us: Some(1_620),
                p90_us: Some(4_100),
                p99_us: Some(12_300),
                max_us: None,
                never: 0,
            },
            duration_s: Some(12),
            in_flight: 37,
            waiting: 2,
            late_us: 132,
            connected: true,
            codes: BTreeMap::from([("OK", 5_000), ("NO_LEADER", 4)]),
            sites: vec![(2, 250), (1, 750)],
            unanswered: 3,
            not_sent: 0,
            note: Some("kill -9 of site 2".to_owned()),
        }
    }

    fn view(colour: bool) -> View {
        let history = VecDeque::new();
        View { progress: Progress::Always, terminal: true, colour, history, drawn: 0 }
    }

    #[test]
    fn a_frame_shows_rates_percentiles_codes_sites_doubts_and_the_fault() {
        let text = lines(&frame(), &VecDeque::from([10, 0, 990]), false).join("\n");
        for part in [
            "6 s ████████████░░░░░░░░░░░░ of 12 s",
            "ok 990/s   sent 1000/s   failed 4/s   ▂▁█",
            "p50 1.62   p90 4.10   p99 12.30   slowest - ms",
            "in flight 37   waiting 2   generator late p99 132 us",
            "site 1 ▪▪▪▪▪▪▪▪  75 %   site 2 ▪▪▪  25 %",
            "OK 5000   NO_LEADER 4   in doubt 3",
            "kill -9 of site 2",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(!text.contains("NOT CONNECTED") && !text.contains("not sent"), "{text}");
        let cut = Frame { connected: false, ..frame() };
        assert!(lines(&cut, &VecDeque::new(), false)[0].ends_with("NOT CONNECTED"));
    }

    #[test]
    fn the_next_frame_takes_the_place_of_the_last_and_no_mode_is_changed() {
        let mut view = view(true);
        let first = view.redraw(&frame(), 100);
        assert!(!first.contains("\x1b[7A") && first.matches('\n').count() == 7, "{first:?}");
        let shorter = Frame { note: None, ..frame() };
        let second = view.redraw(&shorter, 100);
        assert!(
            second.starts_with("\r\x1b[7A") && second.ends_with("\x1b[K\n\x1b[J"),
            "{second:?}"
        );
        assert!(view.redraw(&frame(), 100).starts_with("\r\x1b[6A"));
        assert!(!first.contains("\x1b[?"));
    }

    #[test]
    fn lines_fit_the_terminal_and_end_uncoloured() {
        for width in [1, 20, 40, 80] {
            let text = view(true).redraw(&frame(), width);
            for line in text.split('\n').filter(|line| line.len() > 3) {
                let line = line.trim_end_matches("\x1b[K");
                let mut shown = 0;
                let mut rest = line.chars();
                while let Some(character) = rest.next() {
                    match character {
                        '\x1b' => drop(rest.by_ref().find(char::is_ascii_alphabetic)),
                        _ => shown += 1,
                    }
                }
                assert!(shown < width, "{shown} of {width}: {line:?}");
                assert!(!line.contains('\x1b') || line.ends_with("\x1b[0m"), "{line:?}");
            }
        }
    }

    #[test]
    fn without_colours_only_the_place_is_controlled() {
        let text = view(false).redraw(&frame(), 100);
        assert!(!text.contains('m') || !text.contains("\x1b[1m") && !text.contains("\x1b[31m"));
        assert!(!text.replace("\x1b[K", "").replace("\x1b[J", "").contains('\x1b'), "{text:?}");
    }

    #[test]
    fn a_percentile_that_failures_decide_is_never() {
        let mut failing = frame();
        (failing.second.p99_us, failing.second.never) = (None, 4);
        let text = lines(&failing, &VecDeque::new(), false).join("\n");
        assert!(text.contains("p50 1.62   p90 4.10   p99 never   slowest never ms"), "{text}");
        assert!(line(&failing).contains("p99   never ms"), "{}", line(&failing));
    }

    #[test]
    fn elsewhere_it_is_a_line() {
        let text = line(&frame());
        assert!(text.starts_with("   6 s  sent    1000/s  ok     990/s"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains('\n'));
    }
}
