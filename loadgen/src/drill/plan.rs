//! Drills of one's own: a TOML file with phases of load, faults with their times and
//! goals. Every mistake is told, one line each.
//!
//! Pure but for reading. Tested on the example that ships, and on mistakes.

use super::action::{Action, Course, Place, Planned, Target};
use super::before::Before;
use super::catalogue::Case;
use super::script::LEAD;
use super::targets::Targets;
use crate::channel::FaultArgs;
use crate::cluster::SITES_MAX;
use crate::exit::Failure;
use crate::stage::MIX;
use std::path::Path;
use std::time::Duration;
use toml::{Table, Value};

/// Largest plan, bytes.
const FILE_MAX: u64 = 256 << 10;
/// Longest load.
const LENGTH_MAX_S: f64 = 480.0;
/// How long a fault lasts that does not say it.
const HOLD_S: f64 = 2.0;
/// Most phases, and most faults.
const ENTRIES_MAX: usize = 100;
/// Names of faults.
const NAMES: &str = "kill, kill-in-recovery, pause, drain, restart, isolate, one-way, wan, \
                     slow-disk, fsync-error, full-disk, clock-step, torn-tail, damaged-middle, \
                     rotate-certificates, expire-certificate, channel, channel-flap, \
                     wrong-amounts, reconnects, transfers";

/// A drill of one's own.
#[derive(Debug)]
pub(super) struct PlanFile {
    /// What it does.
    pub(super) case: Case,
    /// Sites.
    pub(super) sites: u8,
    /// Requests per second where the phases' factor is 1.
    pub(super) rate: f64,
}

impl PlanFile {
    /// Reads a plan.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let failed = |reason: &dyn std::fmt::Display| {
            Failure::usage(format_args!("cannot read {}: {reason}", path.display()))
        };
        let size = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
        if size > FILE_MAX {
            return Err(failed(&format_args!("larger than {FILE_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        Self::parse(&text).map_err(|mistakes| {
            let name = path.display();
            let lines: Vec<String> =
                mistakes.iter().map(|mistake| format!("{name}: {mistake}")).collect();
            Failure::usage(lines.join("\n"))
        })
    }

    /// Reads a text; all its mistakes otherwise.
    fn parse(text: &str) -> Result<Self, Vec<String>> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| {
                text.get(..span.start).map_or(0, |before| before.matches('\n').count() + 1)
            });
            vec![format!("line {line}: {}", error.message())]
        })?;
        let mut mistakes = Vec::new();
        let mut file = Reader { place: String::new(), table, mistakes: &mut mistakes };
        let name = file.text("name").unwrap_or_else(|| "plan".to_owned());
        let about = file.text("about").unwrap_or_else(|| "a plan of one's own".to_owned());
        let sites = file.number("sites", 3.0, f64::from(SITES_MAX)).unwrap_or(3.0) as u8;
        let rate = file.number("rate", 50.0, 200_000.0).unwrap_or(2_000.0);
        let channel = file.words("channel").unwrap_or_default();
        file.check_faults(&channel);
        let (phases, faults, goals) =
            (file.entries("phases"), file.entries("faults"), file.table("goals"));
        file.end();
        let (shape, length) = phases_of(phases, &mut mistakes);
        let faults = faults_of(faults, sites, length, &mut mistakes);
        let targets = goals_of(goals, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let length = Duration::from_secs_f64(length);
        let course = Course::Planned { faults, length, shape };
        if course.left_out() > 1 {
            return Err(vec!["damaged-middle: at most once, there is one spare site".to_owned()]);
        }
        let needs = course.needs();
        let case = Case {
            name,
            about,
            course,
            needs,
            channel,
            share: 1.0,
            targets,
            before: Before::Nothing,
            mix: MIX,
        };
        Ok(Self { case, sites, rate })
    }
}

/// Takes keys out of a table; what is left in the end is a mistake.
struct Reader<'a> {
    /// Before a key in a mistake.
    place: String,
    table: Table,
    mistakes: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn mistake(&mut self, text: impl std::fmt::Display) {
        self.mistakes.push(format!("{}{text}", self.place));
    }

    fn number(&mut self, key: &str, low: f64, high: f64) -> Option<f64> {
        let value = match self.table.remove(key)? {
            Value::Integer(value) => value as f64,
            Value::Float(value) => value,
            _ => f64::NAN,
        };
        if !(low..=high).contains(&value) {
            self.mistake(format_args!("{key}: a number from {low} to {high}"));
            return None;
        }
        Some(value)
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) if !text.is_empty() && text.len() <= 200 => Some(text),
            _ => {
                self.mistake(format_args!("{key}: a text of 1 to 200 bytes"));
                None
            }
        }
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.table.remove(key)?.as_bool();
        if value.is_none() {
            self.mistake(format_args!("{key}: true or false"));
        }
        value
    }

    fn words(&mut self, key: &str) -> Option<Vec<String>> {
        let value = self.table.remove(key)?;
        let word = |value: &Value| value.as_str().map(str::to_owned);
        let words = value.as_array().map(|all| all.iter().map(word).collect::<Option<Vec<_>>>());
        match words.flatten() {
            Some(words) if words.len() <= ENTRIES_MAX => Some(words),
            _ => {
                self.mistake(format_args!("{key}: a list of texts"));
                None
            }
        }
    }

    fn entries(&mut self, key: &str) -> Vec<Table> {
        let Some(value) = self.table.remove(key) else { return Vec::new() };
        let table = |value: Value| match value {
            Value::Table(table) => Some(table),
            _ => None,
        };
        let entries = match value {
            Value::Array(all) => all.into_iter().map(table).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        match entries {
            Some(entries) if entries.len() <= ENTRIES_MAX => entries,
            _ => {
                self.mistake(format_args!("{key}: at most {ENTRIES_MAX} entries, [[{key}]] each"));
                Vec::new()
            }
        }
    }

    fn table(&mut self, key: &str) -> Table {
        match self.table.remove(key) {
            Some(Value::Table(table)) => table,
            None => Table::new(),
            Some(_) => {
                self.mistake(format_args!("{key}: a table, [{key}]"));
                Table::new()
            }
        }
    }

    fn check_faults(&mut self, words: &[String]) {
        if let Err(reason) = FaultArgs::parse(&words.join("\n")) {
            self.mistake(format_args!("channel: {reason}"));
        }
    }

    fn end(mut self) {
        for key in std::mem::take(&mut self.table).keys() {
            self.mistake(format_args!("{key}: no such key here"));
        }
    }
}

/// The load's shape and length in seconds.
fn phases_of(phases: Vec<Table>, mistakes: &mut Vec<String>) -> (String, f64) {
    if phases.is_empty() {
        mistakes.push("no [[phases]]: how long is the load, and how much?".to_owned());
    }
    let (mut steps, mut at) = (Vec::new(), 0.0);
    for (number, table) in phases.into_iter().enumerate() {
        let place = format!("phase {}: ", number + 1);
        let mut phase = Reader { place, table, mistakes };
        let load = phase.number("load", 0.001, 100.0).unwrap_or(1.0);
        if !phase.table.contains_key("seconds") {
            phase.mistake("seconds: how long?");
        }
        let seconds = phase.number("seconds", 0.1, LENGTH_MAX_S).unwrap_or(0.0);
        phase.end();
        steps.push(format!("{at}={load}"));
        at += seconds;
    }
    if at > LENGTH_MAX_S {
        mistakes.push(format!("phases: {at} s in all, at most {LENGTH_MAX_S}"));
    }
    (format!("poisson+step:{}", steps.join(",")), at)
}

fn faults_of(
    faults: Vec<Table>,
    sites: u8,
    length_s: f64,
    mistakes: &mut Vec<String>,
) -> Vec<Planned> {
    let mut planned: Vec<Planned> = Vec::new();
    for (number, table) in faults.into_iter().enumerate() {
        let place = format!("fault {}: ", number + 1);
        let mut fault = Reader { place, table, mistakes };
        let lead = LEAD.as_secs_f64();
        if !fault.table.contains_key("at") {
            fault.mistake("at: when, in seconds?");
        }
        let at = fault.number("at", lead, LENGTH_MAX_S).unwrap_or(lead);
        let asked = fault.number("hold", 0.1, LENGTH_MAX_S);
        let action = action_of(&mut fault);
        let least = action.as_ref().map_or(0.0, |action| action.least_hold().as_secs_f64());
        let hold = asked.unwrap_or(HOLD_S.max(least));
        if hold < least {
            fault.mistake(format_args!("hold: this fault lasts {least} s at least"));
        }
        if length_s > 0.0 && at + hold > length_s {
            let end = at + hold;
            fault.mistake(format_args!("it ends at second {end}, the phases at {length_s}"));
        }
        let target = target_of(&mut fault, action.as_ref(), sites);
        fault.end();
        let seconds = Duration::from_secs_f64;
        planned.extend(action.map(|action| Planned {
            at: seconds(at),
            hold: seconds(hold),
            target,
            action,
        }));
    }
    overlaps(&planned, mistakes);
    planned
}

fn target_of(fault: &mut Reader<'_>, action: Option<&Action>, sites: u8) -> Target {
    let given = fault.table.contains_key("site");
    let site = fault.number("site", 1.0, f64::from(sites));
    if given && action.is_some_and(|action| !action.hits_a_site()) {
        fault.mistake("site: this fault hits no site in particular");
    }
    match site {
        Some(site) if site.fract() == 0.0 => Target::Site(site as u8),
        Some(_) => {
            fault.mistake(format_args!("site: a whole number from 1 to {sites}"));
            Target::Drawn
        }
        None => Target::Drawn,
    }
}

fn action_of(fault: &mut Reader<'_>) -> Option<Action> {
    let Some(what) = fault.text("what") else {
        fault.mistake(format_args!("what: one of {NAMES}"));
        return None;
    };
    let action = match what.as_str() {
        "kill" => Action::Kill,
        "kill-in-recovery" => Action::KillInRecovery,
        "pause" => Action::Pause,
        "drain" => Action::Drain,
        "restart" => Action::Restart,
        "isolate" => Action::Isolate,
        "one-way" => Action::OneWay,
        "wan" => return wan_of(fault),
        "slow-disk" => Action::SlowDisk,
        "fsync-error" => Action::SyncError,
        "full-disk" => Action::FullDisk,
        "clock-step" => {
            let seconds = fault.number("seconds", -1e6, 1e6);
            Action::ClockStep(seconds.unwrap_or(3_600.0) as i64)
        }
        "torn-tail" => Action::TornTail,
        "damaged-middle" => Action::DamagedMiddle,
        "rotate-certificates" => Action::Rotate,
        "expire-certificate" => Action::Expire,
        "channel" => {
            let words = fault.words("faults").unwrap_or_default();
            if words.is_empty() {
                fault.mistake("faults: what does the channel do? As arguments of loadgen channel");
            }
            fault.check_faults(&words);
            Action::Channel(words)
        }
        "channel-flap" => Action::Flap,
        "wrong-amounts" => {
            let percent = fault.number("percent", 0.01, 5.0).unwrap_or(0.5);
            Action::WrongAmount(format!("{percent}%"))
        }
        "reconnects" => Action::Reconnect,
        "transfers" => Action::Transfers,
        other => {
            fault.mistake(format_args!("what: {other:?} is none of {NAMES}"));
            return None;
        }
    };
    Some(action)
}

/// Delay and loss between all sites.
fn wan_of(fault: &mut Reader<'_>) -> Option<Action> {
    let delay = fault.number("delay_ms", 0.0, 10_000.0);
    let jitter = fault.number("jitter_ms", 0.0, 10_000.0);
    let loss = fault.number("loss_percent", 0.0, 100.0);
    let parts = [
        delay.map(|ms| format!("delay={ms}ms")),
        jitter.map(|ms| format!("jitter={ms}ms")),
        loss.map(|percent| format!("loss={percent}%")),
    ];
    let line: Vec<String> = parts.into_iter().flatten().collect();
    if line.is_empty() {
        fault.mistake("wan: delay_ms, jitter_ms or loss_percent");
        return None;
    }
    Some(Action::Wan(line.join(" ")))
}

/// One site cannot have two faults at a time, nor can the network or the channel.
fn overlaps(planned: &[Planned], mistakes: &mut Vec<String>) {
    for (at, one) in planned.iter().enumerate() {
        for (behind, other) in planned.iter().enumerate().skip(at + 1) {
            let apart = one.at + one.hold <= other.at || other.at + other.hold <= one.at;
            if !apart && meet(one, other) {
                let (one, other) = (at + 1, behind + 1);
                mistakes.push(format!("faults {one} and {other}: the same place at the same time"));
            }
        }
    }
}

/// Whether two faults are at the same place: at the same site, between the sites, at the
/// channel. Which site will be drawn is not known here; the later one waits then.
fn meet(one: &Planned, other: &Planned) -> bool {
    let site = |fault: &Planned| match fault.target {
        Target::Site(site) if fault.action.hits_a_site() => Some(site),
        _ => None,
    };
    let every_site = |fault: &Planned| fault.action.place() == Some(Place::Sites);
    let (places, sites) = ([one, other].map(|fault| fault.action.place()), [one, other].map(site));
    places[0].is_some() && places[0] == places[1]
        || sites[0].is_some() && sites[0] == sites[1]
        || every_site(one) && other.action.hits_a_site()
        || every_site(other) && one.action.hits_a_site()
}

fn goals_of(table: Table, mistakes: &mut Vec<String>) -> Targets {
    let mut goals = Reader { place: "goals: ".to_owned(), table, mistakes };
    let mut ms = |key: &str| goals.number(key, 0.0, 1e6);
    let (p50_ms, p99_ms) = (ms("unavailable_p50_ms"), ms("unavailable_p99_ms"));
    let (max_ms, level_ms) = (ms("unavailable_max_ms"), ms("level_ms"));
    let added_p50_ms = ms("added_p50_ms");
    let mut share = |key: &str| goals.number(key, 0.0, 10_000.0).map(|percent| percent / 100.0);
    let (throughput, recovered) = (share("throughput_percent"), share("recovered_percent"));
    let admitted_p99 = goals.number("admitted_p99_times", 0.0, 1e6);
    let targets = Targets {
        p50_ms,
        p99_ms,
        max_ms,
        leader_changes: None,
        far_maximum: None,
        hinted: goals.flag("retry_after").unwrap_or(false),
        each_fault: goals.flag("each_fault").unwrap_or(false),
        no_failure: goals.flag("no_failure").unwrap_or(false),
        no_failure_elsewhere: goals.flag("no_failure_elsewhere").unwrap_or(false),
        only: goals.words("only"),
        throughput,
        recovered,
        added_p50_ms,
        admitted_p99,
        level_ms,
    };
    goals.end();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../plans/evening-peak.toml");

    fn mistakes(text: &str) -> Vec<String> {
        PlanFile::parse(text).err().unwrap_or_default()
    }

    #[test]
    fn the_example_is_a_plan() {
        let plan = PlanFile::parse(EXAMPLE).unwrap();
        let Course::Planned { faults, length, shape } = &plan.case.course else { panic!() };
        assert_eq!((plan.sites, plan.rate), (3, 2_000.0));
        assert_eq!(*length, Duration::from_secs(14));
        assert_eq!(shape, "poisson+step:0=1,4=1.5,10=0.5");
        assert_eq!(faults[0].action, Action::Kill);
        assert_eq!(faults[0].target, Target::Site(2));
        assert_eq!(
            (faults[0].at, faults[0].hold),
            (Duration::from_millis(4_500), Duration::from_secs(2))
        );
        assert!(matches!(&faults[1].action, Action::Channel(words) if words.len() == 2));
        assert_eq!(plan.case.targets.p99_ms, Some(250.0));
        assert!(plan.case.targets.no_failure_elsewhere && !plan.case.needs.relay);
        assert!(crate::schedule::Arrival::parse(shape).is_ok());
    }

    #[test]
    fn every_mistake_has_its_line() {
        let text = r#"
            colour = 1
            sites = 9
            rate = "much"
            [[phases]]
            load = 0
            [[phases]]
            seconds = 5
            [[faults]]
            at = 4
            hold = 9
            what = "sabotage"
            [[faults]]
            at = 2
            what = "channel"
            faults = ["--latency=soon"]
            site = 2
            [goals]
            unavailable_p50 = 3
            no_failure = "yes"
        "#;
        let found = mistakes(text);
        let wanted = [
            "colour: no such key here",
            "sites: a number from 3",
            "rate: a number from 50",
            "phase 1: load: a number",
            "phase 1: seconds: how long?",
            "fault 1: it ends at second 13, the phases at 5",
            "fault 1: what: \"sabotage\" is none of kill",
            "fault 2: channel: ",
            "fault 2: site: this fault hits no site",
            "goals: unavailable_p50: no such key here",
            "goals: no_failure: true or false",
        ];
        for line in wanted {
            let matching = found.iter().filter(|mistake| mistake.starts_with(line)).count();
            assert_eq!(matching, 1, "{line}: {found:#?}");
        }
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        assert!(found.iter().all(|mistake| !mistake.contains('\n')));
    }

    #[test]
    fn a_text_that_is_no_toml_is_told_with_its_line() {
        assert!(mistakes("sites = 3\nrate = = 4")[0].starts_with("line 2: "));
        assert!(mistakes("")[0].contains("[[phases]]"));
    }

    #[test]
    fn one_place_has_one_fault_at_a_time() {
        let plan = |second: &str, at: f64| {
            format!(
                "[[phases]]\nseconds = 20\n[[faults]]\nat = 3\nhold = 2\nwhat = \"kill\"\n\
                 site = 1\n[[faults]]\nat = {at}\nhold = 2\n{second}"
            )
        };
        let same = "what = \"pause\"\nsite = 1";
        assert_eq!(mistakes(&plan(same, 4.0)), ["faults 1 and 2: the same place at the same time"]);
        assert!(mistakes(&plan(same, 5.0)).is_empty());
        assert!(mistakes(&plan("what = \"pause\"\nsite = 2", 4.0)).is_empty());
        assert!(mistakes(&plan("what = \"transfers\"", 4.0)).is_empty());
        let out = plan("what = \"damaged-middle\"", 8.0);
        assert!(mistakes(&out).is_empty());
        assert!(
            mistakes(&out.replace("\"kill\"", "\"damaged-middle\""))[0].contains("at most once")
        );
    }

    #[test]
    fn a_partition_is_at_its_site_and_in_the_network_and_every_fault_has_its_length() {
        let two = |first: &str, hold: &str, second: &str, at: f64| {
            mistakes(&format!(
                "[[phases]]\nseconds = 20\n[[faults]]\nat = 3\n{hold}\nwhat = {first}\n[[faults]]\n\
                 at = {at}\nhold = 3\nwhat = {second}\n"
            ))
        };
        let same = ["faults 1 and 2: the same place at the same time"];
        let (kill, isolate) = ("\"kill\"\nsite = 1", "\"isolate\"\nsite = 1");
        let (other, wan) = ("\"one-way\"\nsite = 2", "\"wan\"\ndelay_ms = 5");
        for [first, second] in [[kill, isolate], [isolate, kill], [isolate, other], [wan, isolate]]
        {
            assert_eq!(two(first, "hold = 2", second, 4.0), same, "{first} {second}");
            assert!(two(first, "hold = 2", second, 5.0).is_empty(), "{first} {second}");
        }
        assert!(two(kill, "hold = 2", other, 4.0).is_empty());
        assert_eq!(two("\"rotate-certificates\"", "hold = 2", kill, 4.0), same);
        // What lasts longer than was asked for is no surprise to the next one.
        let (flap, outage) = ("\"channel-flap\"", "\"channel\"\nfaults = [\"--outage=0:9\"]");
        let short = "fault 1: hold: this fault lasts 2.5 s at least";
        assert_eq!(two(flap, "hold = 1", outage, 4.0), [short]);
        assert_eq!(
            two(wan, "hold = 1", other, 4.0),
            ["fault 1: hold: this fault lasts 2 s at least"]
        );
        assert_eq!(two(flap, "", outage, 5.0), same);
        assert!(two(flap, "", outage, 5.5).is_empty());
    }

    #[test]
    fn every_fault_that_is_named_can_be_planned() {
        for name in NAMES.split(", ") {
            let more = match name {
                "wan" => "delay_ms = 5\nloss_percent = 1",
                "channel" => "faults = [\"--duplicate=5%\"]",
                _ => "",
            };
            let text =
                format!("[[phases]]\nseconds = 9\n[[faults]]\nat = 2\nwhat = \"{name}\"\n{more}");
            assert_eq!(mistakes(&text), [""; 0], "{name}");
        }
    }
}
