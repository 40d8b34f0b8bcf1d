//! What happens to packets between two sites, and the lines that change it.
//!
//! Pure: bytes and times in, fates out, everything random from a seed. Tested on
//! its grammar and on the fates of many packets.

use crate::goal::{parse_duration_ns, parse_percent};
use crate::rng::Stream;
use std::collections::BTreeMap;

/// Longest queue in front of a thin link; what comes then is lost.
const QUEUE_MAX_NS: u64 = 200_000_000;
const DELAY_MAX_NS: u64 = 10_000_000_000;
/// Largest site number.
pub(crate) const SITE_MAX: u8 = 9;

/// How one direction between two sites behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rule {
    /// Added to every packet.
    delay_ns: u64,
    /// Added on top, evenly between nothing and this.
    jitter_ns: u64,
    /// Share of packets that are lost, 0 to 1.
    loss: f64,
    /// Bits per second, 0 without bound.
    rate: u64,
    /// Nothing passes.
    cut: bool,
}

/// One direction: its rule and what passed so far.
#[derive(Debug)]
pub(crate) struct Path {
    rule: Rule,
    stream: Stream,
    draws: u64,
    free_ns: u64,
    /// Packets that passed.
    pub(crate) passed: u64,
    /// Packets that were lost.
    pub(crate) lost: u64,
}

impl Path {
    /// A path without faults.
    pub(crate) fn new(seed: u64, (from, to): (u8, u8)) -> Self {
        let stream = Stream::new(seed, 1_000 + u64::from(from) * 16 + u64::from(to));
        Self { rule: Rule::default(), stream, draws: 0, free_ns: 0, passed: 0, lost: 0 }
    }

    /// Whether nothing passes.
    pub(crate) fn is_cut(&self) -> bool {
        self.rule.cut
    }

    /// Whether packets of one batch may have different fates.
    pub(crate) fn is_lossy(&self) -> bool {
        self.rule.loss > 0.0
    }

    /// How long a stream's bytes take.
    pub(crate) fn delay_ns(&self) -> u64 {
        self.rule.delay_ns
    }

    /// When a packet that comes now arrives; `None` when it is lost.
    pub(crate) fn fate(&mut self, bytes: usize, now_ns: u64) -> Option<u64> {
        let due_ns = self.judge(bytes, now_ns);
        match due_ns {
            Some(_) => self.passed += 1,
            None => self.lost += 1,
        }
        due_ns
    }

    fn judge(&mut self, bytes: usize, now_ns: u64) -> Option<u64> {
        let Rule { delay_ns, jitter_ns, loss, rate, cut } = self.rule;
        if cut || loss > 0.0 && self.unit() < loss {
            return None;
        }
        let mut at_ns = now_ns;
        // Of a link without bound there is nothing to divide by.
        if let Some(on_wire_ns) = (bytes as u64 * 8 * 1_000_000_000).checked_div(rate) {
            at_ns = self.free_ns.max(now_ns);
            if at_ns - now_ns > QUEUE_MAX_NS {
                return None;
            }
            at_ns += on_wire_ns;
            self.free_ns = at_ns;
        }
        let jitter_ns = if jitter_ns > 0 { (self.unit() * jitter_ns as f64) as u64 } else { 0 };
        Some(at_ns + delay_ns + jitter_ns)
    }

    fn unit(&mut self) -> f64 {
        self.draws += 1;
        self.stream.unit(self.draws)
    }
}

/// All paths, by (from, to).
#[derive(Debug)]
pub(crate) struct Paths(BTreeMap<(u8, u8), Path>);

/// A line of the control channel.
#[derive(Clone, Debug, PartialEq)]
enum Command {
    Set(Selector, Vec<Setting>),
    Heal(Selector),
    Stats,
}

/// Which paths: numbers or all, one way or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Selector {
    from: Option<u8>,
    to: Option<u8>,
    both: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Setting {
    Delay(u64),
    Jitter(u64),
    Loss(f64),
    Rate(u64),
    Cut(bool),
}

impl Paths {
    /// Paths without faults between these pairs, in both directions.
    pub(crate) fn new(seed: u64, pairs: impl Iterator<Item = (u8, u8)>) -> Self {
        let both = pairs.flat_map(|(from, to)| [(from, to), (to, from)]);
        Self(both.map(|pair| (pair, Path::new(seed, pair))).collect())
    }

    /// The path between two sites.
    pub(crate) fn path(&mut self, pair: (u8, u8)) -> Option<&mut Path> {
        self.0.get_mut(&pair)
    }

    /// Carries a control line out; the answer is one line.
    pub(crate) fn command(&mut self, line: &str) -> Result<String, String> {
        match parse(line)? {
            Command::Stats => return Ok(self.stats()),
            Command::Heal(selector) => {
                self.selected(selector)?.for_each(|path| path.rule = Rule::default());
            }
            Command::Set(selector, settings) => {
                for path in self.selected(selector)? {
                    settings.iter().for_each(|setting| path.rule.set(*setting));
                }
            }
        }
        Ok("ok".to_owned())
    }

    fn selected(&mut self, selector: Selector) -> Result<impl Iterator<Item = &mut Path>, String> {
        if !self.0.keys().any(|pair| selector.takes(*pair)) {
            return Err("no such pair of sites".to_owned());
        }
        let paths = self.0.iter_mut().filter(move |(pair, _)| selector.takes(**pair));
        Ok(paths.map(|(_, path)| path))
    }

    fn stats(&self) -> String {
        let path = |((from, to), path): (&(u8, u8), &Path)| {
            format!("{from}>{to} passed={} lost={}", path.passed, path.lost)
        };
        self.0.iter().map(path).collect::<Vec<_>>().join("; ")
    }
}

impl Rule {
    fn set(&mut self, setting: Setting) {
        match setting {
            Setting::Delay(ns) => self.delay_ns = ns,
            Setting::Jitter(ns) => self.jitter_ns = ns,
            Setting::Loss(share) => self.loss = share,
            Setting::Rate(bits) => self.rate = bits,
            Setting::Cut(cut) => self.cut = cut,
        }
    }
}

impl Selector {
    const ALL: Self = Self { from: None, to: None, both: true };

    /// Reads `1>2`, `1-2` (both ways), `*` for any site.
    fn parse(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: FROM>TO, or A-B for both ways; * is any site");
        let (from, to) = text.split_once(['>', '-']).ok_or_else(usage)?;
        let site = |text: &str| match text {
            "*" => Ok(None),
            _ => site(text).map(Some).ok_or_else(usage),
        };
        Ok(Self { from: site(from)?, to: site(to)?, both: text.contains('-') })
    }

    fn takes(self, (from, to): (u8, u8)) -> bool {
        let one_way = |from: u8, to: u8| {
            self.from.is_none_or(|wanted| wanted == from)
                && self.to.is_none_or(|wanted| wanted == to)
        };
        one_way(from, to) || self.both && one_way(to, from)
    }
}

/// Reads a site's number.
pub(crate) fn site(text: &str) -> Option<u8> {
    text.parse().ok().filter(|site| (1..=SITE_MAX).contains(site))
}

fn parse(line: &str) -> Result<Command, String> {
    let mut words = line.split_whitespace();
    let verb = words.next().ok_or("set, cut, heal or stats")?;
    let selector = words.next().map(Selector::parse).transpose()?;
    let settings: Vec<Setting> = words.map(setting).collect::<Result<_, _>>()?;
    match (verb, selector) {
        ("stats", None) => Ok(Command::Stats),
        ("heal", selector) if settings.is_empty() => {
            Ok(Command::Heal(selector.unwrap_or(Selector::ALL)))
        }
        ("cut", Some(selector)) if settings.is_empty() => {
            Ok(Command::Set(selector, vec![Setting::Cut(true)]))
        }
        ("set", Some(selector)) if !settings.is_empty() => Ok(Command::Set(selector, settings)),
        _ => Err("set PAIR KEY=VALUE.., cut PAIR, heal [PAIR] or stats".to_owned()),
    }
}

fn setting(text: &str) -> Result<Setting, String> {
    let usage = || format!("{text:?}: delay=5ms jitter=1ms loss=1% rate=10mbit cut=on|off");
    let (key, value) = text.split_once('=').ok_or_else(usage)?;
    let duration = || parse_duration_ns(value).filter(|ns| *ns <= DELAY_MAX_NS).ok_or_else(usage);
    match (key, value) {
        ("delay", _) => duration().map(Setting::Delay),
        ("jitter", _) => duration().map(Setting::Jitter),
        ("loss", _) => parse_percent(value).map(Setting::Loss),
        ("rate", "off") => Ok(Setting::Rate(0)),
        ("rate", _) => {
            let mbit = value.strip_suffix("mbit").and_then(|number| number.parse::<u64>().ok());
            let mbit = mbit.filter(|mbit| (1..=1_000_000).contains(mbit)).ok_or_else(usage)?;
            Ok(Setting::Rate(mbit * 1_000_000))
        }
        ("cut", "on") => Ok(Setting::Cut(true)),
        ("cut", "off") => Ok(Setting::Cut(false)),
        _ => Err(usage()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Paths {
        Paths::new(7, [(1, 2), (1, 3), (2, 3)].into_iter())
    }

    fn fate(paths: &mut Paths, pair: (u8, u8), now_ns: u64) -> Option<u64> {
        paths.path(pair).unwrap().fate(1_000, now_ns)
    }

    #[test]
    fn a_path_without_faults_adds_nothing() {
        assert_eq!(fate(&mut paths(), (1, 2), 5), Some(5));
        assert!(paths().path((1, 1)).is_none());
    }

    #[test]
    fn cuts_are_one_way_or_both_and_heal() {
        let mut paths = paths();
        paths.command("cut 1>*").unwrap();
        assert_eq!((fate(&mut paths, (1, 2), 5), fate(&mut paths, (2, 1), 5)), (None, Some(5)));
        paths.command("heal").unwrap();
        assert_eq!(fate(&mut paths, (1, 2), 5), Some(5));
        paths.command("cut 2-*").unwrap();
        let fates = [(1, 2), (2, 1), (3, 2), (1, 3)].map(|pair| fate(&mut paths, pair, 5));
        assert_eq!(fates, [None, None, None, Some(5)]);
        paths.command("heal 2>1").unwrap();
        assert_eq!((fate(&mut paths, (2, 1), 5), fate(&mut paths, (1, 2), 5)), (Some(5), None));
        assert!(paths.command("stats").unwrap().contains("1>2 passed=1 lost=3"));
    }

    #[test]
    fn delay_and_jitter_add_up_within_their_bounds() {
        let mut paths = paths();
        paths.command("set 1>2 delay=5ms jitter=1ms").unwrap();
        let fates = (0..1_000).map(|_| fate(&mut paths, (1, 2), 0).unwrap());
        let (mut low, mut high) = (u64::MAX, 0);
        fates.for_each(|at| (low, high) = (low.min(at), high.max(at)));
        assert!((5_000_000..5_100_000).contains(&low), "{low}");
        assert!((5_900_000..6_000_000).contains(&high), "{high}");
    }

    #[test]
    fn loss_is_a_share_and_repeats_with_its_seed() {
        let lost = |seed: u64| {
            let mut paths = Paths::new(seed, [(1, 2)].into_iter());
            paths.command("set 1-2 loss=20%").unwrap();
            (0..10_000).map(|_| fate(&mut paths, (1, 2), 0).is_none()).collect::<Vec<_>>()
        };
        let count = lost(1).into_iter().filter(|lost| *lost).count();
        assert!((1_800..2_200).contains(&count), "{count}");
        assert_eq!(lost(1), lost(1));
        assert_ne!(lost(1), lost(2));
    }

    #[test]
    fn a_thin_link_queues_and_then_drops() {
        let mut paths = paths();
        paths.command("set 1>2 rate=1mbit").unwrap();
        assert_eq!(fate(&mut paths, (1, 2), 0), Some(8_000_000));
        assert_eq!(fate(&mut paths, (1, 2), 0), Some(16_000_000));
        let passed = (0..100).filter(|_| fate(&mut paths, (1, 2), 0).is_some()).count();
        assert!((20..30).contains(&passed), "{passed}");
    }

    #[test]
    fn bad_lines_are_refused() {
        let mut paths = paths();
        for bad in [
            "",
            "open 1>2",
            "set 1>2",
            "set delay=5ms",
            "cut",
            "cut 1",
            "cut 0>1",
            "cut 4>5",
            "set 1>2 delay=5",
            "set 1>2 delay=11s",
            "set 1>2 loss=200%",
            "set 1>2 rate=0mbit",
            "set 1>2 cut=maybe",
            "stats 1>2",
        ] {
            assert!(paths.command(bad).is_err(), "{bad:?}");
        }
        assert_eq!(fate(&mut paths, (1, 2), 9), Some(9));
    }
}
