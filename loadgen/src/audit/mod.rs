//! `loadgen audit`: what gateways were told, what the channel booked and what
//! the switch logged, held against the rules of money.
//!
//! Independent of the switch's code. `log` reads its dump, `books` compares,
//! `timeline` tells the story of a payment at fault. Tested in `books`.

mod ahead;
mod bookings;
mod books;
#[cfg(test)]
mod books_tests;
mod closing;
mod events;
mod limits;
mod log;
mod merge;
mod quick;
#[cfg(test)]
mod several_tests;
mod table;
mod timeline;
mod told;

use crate::acks::{self, AckLog, AckWriter};
use crate::channel::book::Entry;
use crate::channel::ledger;
use crate::config::GatewayFile;
use crate::drive::{Options, Part, Session};
use crate::encode::Encoder;
use crate::exit::{self, Exit, Failure};
use crate::interrupt::{Stop, Watch};
use crate::pace::{Pace, TICK};
use crate::plan::{Op, Plan};
use ahead::ahead;
pub(crate) use books::{Books, Checked, Sums, Violation};
use clap::Args;
pub(crate) use log::Source;
use merge::{Merged, SiteLog};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
pub(crate) use told::Run;
use told::Told;

/// Time lines printed.
const TIMELINES_MAX: usize = 5;
/// What is said to have been stopped.
const AUDIT: &str = "the audit";
/// Violations printed.
const PRINTED_MAX: usize = 20;

/// Arguments of `loadgen audit`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AuditArgs {
    /// A deployment's directory: its acks/, data/channel, data/site-*.
    #[arg(required_unless_present_all = ["acks", "ledger"])]
    pub(crate) dir: Option<PathBuf>,
    /// Directory of acknowledgement logs.
    #[arg(long)]
    pub(crate) acks: Option<PathBuf>,
    /// Directory of the channel's ledger.
    #[arg(long)]
    pub(crate) ledger: Option<PathBuf>,
    /// Output of `payswitch log dump`, one per site.
    #[arg(long)]
    pub(crate) dump: Vec<PathBuf>,
    /// Output of `payswitch log dump --frames`, one per --dump: when there are several, and
    /// for one site of several.
    #[arg(long, requires = "dump")]
    pub(crate) frames: Vec<PathBuf>,
    /// A site's data directory, dumped here with --payswitch; one per site.
    #[arg(long, conflicts_with = "dump")]
    pub(crate) data: Vec<PathBuf>,
    /// The binary `payswitch`. Default: beside this one.
    #[arg(long)]
    pub(crate) payswitch: Option<PathBuf>,
    /// The gateway's configuration, for --requery.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// First ask the running switch for every payment, and take its answers in.
    #[arg(long, requires = "config")]
    pub(crate) requery: bool,
    /// Payments may be unfinished: the switch was stopped in the middle.
    #[arg(long)]
    pub(crate) unsettled: bool,
    /// Write the result here.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

/// What the audit reads.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// Directory of acknowledgement logs.
    pub(crate) acks: PathBuf,
    /// Directory of the channel's ledger.
    pub(crate) ledger: PathBuf,
    /// The switch's log.
    pub(crate) logs: Vec<Source>,
}

/// The audit's result, as it stands in the JSON.
#[derive(Default, serde::Serialize)]
pub(crate) struct Audit {
    /// What was looked at.
    pub(crate) checked: Checked,
    /// Money on both sides.
    pub(crate) sums: Sums,
    /// Number of violations.
    pub(crate) violation_count: u64,
    /// The first of them.
    pub(crate) violations: Vec<Violation>,
}

impl Audit {
    /// Nothing found, and there was something to look at.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        if self.violation_count > 0 {
            let text = format_args!("{} violations of the rules of money", self.violation_count);
            return Err(Failure::new(Exit::Audit, text));
        }
        if self.checked.payments == 0 || self.checked.acks == 0 {
            return Err(Failure::new(
                Exit::Invalid,
                "no data: without payments and acknowledgements an audit says nothing",
            ));
        }
        Ok(())
    }

    /// Prints the summary.
    pub(crate) fn print(&self) {
        let checked = &self.checked;
        println!(
            "audit     {} payments, {} refunds, {} log records, {} channel bookings, {} \
             acknowledgements ({} unknown), {} events: {}",
            checked.payments,
            checked.refunds,
            checked.records,
            checked.ledger_entries,
            checked.acks,
            checked.unknown,
            checked.events,
            match self.violation_count {
                0 => "clean".to_owned(),
                count => format!("{count} VIOLATIONS"),
            },
        );
        if checked.sites > 1 {
            println!(
                "logs      {} sites, {} blocks at most of them",
                checked.sites, checked.blocks
            );
        }
        let sums = &self.sums;
        println!(
            "books     log: paid {} refunded {}; channel: charged {} refunded {} (minor units)",
            sums.log_paid, sums.log_refunded, sums.channel_charged, sums.channel_refunded
        );
        for violation in self.violations.iter().take(PRINTED_MAX) {
            println!(
                "  rule {:>2}: {} [{}]",
                violation.invariant, violation.detail, violation.payment
            );
        }
    }
}

impl AuditArgs {
    fn evidence(&self) -> Result<Evidence, Failure> {
        let part = |given: &Option<PathBuf>, name: &str| {
            given.clone().or_else(|| self.dir.as_ref().map(|dir| dir.join(name))).ok_or_else(|| {
                Failure::usage(format_args!("give a deployment's directory, or --{name}"))
            })
        };
        let file = |(at, records): (usize, &PathBuf)| Source::File {
            records: records.clone(),
            frames: self.frames.get(at).cloned(),
        };
        let mut logs: Vec<Source> = self.dump.iter().enumerate().map(file).collect();
        if logs.is_empty() {
            let payswitch = self.payswitch.clone().map_or_else(payswitch_beside, Ok)?;
            let mut data = self.data.clone();
            if data.is_empty() {
                data = sites_of(&part(&None, "data")?)?;
            }
            let dump = |data| Source::Dump { payswitch: payswitch.clone(), data };
            logs = data.into_iter().map(dump).collect();
        }
        Ok(Evidence {
            acks: part(&self.acks, "acks")?,
            ledger: part(&self.ledger, "data/channel")?,
            logs,
        })
    }
}

/// The data directories of a deployment's sites. All of them: a site left out would
/// make a majority of fewer.
fn sites_of(data: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |reason: &dyn std::fmt::Display| {
        Failure::usage(format_args!("no site's data in {}: {reason}", data.display()))
    };
    let entries = std::fs::read_dir(data).map_err(|error| failed(&error))?;
    let mut sites: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("site-")
        })
        .collect();
    sites.sort();
    if sites.is_empty() { Err(failed(&"run the switch first")) } else { Ok(sites) }
}

/// The binary `payswitch` in the directory of this one.
pub(crate) fn payswitch_beside() -> Result<PathBuf, Failure> {
    let here = std::env::current_exe()
        .map_err(|error| Failure::environment(format_args!("where am I? {error}")))?;
    let path = here.with_file_name("payswitch");
    if path.exists() {
        return Ok(path);
    }
    Err(Failure::usage(format_args!(
        "{} is not there: build it, or give --payswitch",
        path.display()
    )))
}

/// Runs the command.
pub(crate) async fn run(args: &AuditArgs, stop: &Stop) -> Result<(), Failure> {
    args.json.as_deref().map_or(Ok(()), exit::writable)?;
    let evidence = args.evidence()?;
    if let Some(config) = args.config.as_ref().filter(|_| args.requery) {
        requery(config, &evidence.acks, stop).await?;
    }
    let settled = !args.unsettled;
    let events = if settled { EventsDue::Payments } else { EventsDue::None };
    let moment = Moment { settled, events, at_rest: false };
    let audit = audit(&evidence, moment)?;
    audit.print();
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&audit)
            .map_err(std::io::Error::from)
            .and_then(|json| std::fs::write(path, json + "\n"));
        json.map_err(|error| {
            Failure::environment(format_args!("cannot write {}: {error}", path.display()))
        })?;
    }
    audit.verdict()
}

/// Which outcome events had time to come, of runs that listened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventsDue {
    /// None for certain.
    None,
    /// Those of payments whose end was told in their run: a gateway waits for these, and
    /// what ends later may find nobody who listens.
    Payments,
    /// Those of refunds, too: the sites hold none back.
    All,
}

/// When the evidence was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Everything had time to end: nothing may be open any more.
    pub(crate) settled: bool,
    /// Which events had time to come: none of those may be missing.
    pub(crate) events: EventsDue,
    /// No site runs: what one knows as committed must be at the others.
    pub(crate) at_rest: bool,
}

/// Compares the evidence.
pub(crate) fn audit(evidence: &Evidence, moment: Moment) -> Result<Audit, Failure> {
    let (mut books, watch) = (Books::new(), Watch::new());
    match evidence.logs.as_slice() {
        // Nothing to tell replaced blocks by: a site that was always alone has none.
        [only] if !only.has_frames() => {
            read_records(only, |_| true, &mut books, watch)?;
            books.compared(1, 0);
        }
        several => read_several(several, moment, &mut books, watch)?,
    }
    read_ledger(&evidence.ledger, &mut books)?;
    watch.check(AUDIT)?;
    for path in acks::logs_of(&evidence.acks)? {
        read_acks(&path, &mut books)?;
        watch.check(AUDIT)?;
    }
    let sums = books.finish(moment.settled, moment.events);
    let (violation_count, violations) = books.violations();
    let violations = violations.to_vec();
    timeline::print(evidence, &violations, TIMELINES_MAX)?;
    Ok(Audit { checked: books.checked(), sums, violation_count, violations })
}

fn read_ledger(dir: &Path, books: &mut Books) -> Result<(), Failure> {
    let read = |push: &mut dyn FnMut(Entry)| ledger::read(dir, |entry| push(*entry)).map(drop);
    ahead(read, |entries| {
        entries.iter().for_each(|entry| books.warm(&entry.charge.digest));
        entries.iter().for_each(|entry| books.entry(entry));
    })
}

fn read_acks(path: &Path, books: &mut Books) -> Result<(), Failure> {
    let (run, log) = open_run(path)?;
    let read = |push: &mut dyn FnMut(Told)| log.each(|ack| push(Told::new(&run, &ack)));
    ahead(read, |acks| {
        acks.iter().for_each(|told| books.warm(&told.digest));
        acks.iter().for_each(|told| books.told(&run, told));
    })
}

fn read_records(
    source: &Source,
    wanted: impl Fn(&log::Line<'_>) -> bool,
    books: &mut Books,
    watch: Watch,
) -> Result<(), Failure> {
    source.read(&mut |number, text| {
        watch.check(AUDIT)?;
        let line = log::parse(text).map_err(|error| unreadable(number, &error))?;
        if wanted(&line) {
            books.record(&line);
        }
        Ok(())
    })
}

/// Reads what most sites hold.
fn read_several(
    sources: &[Source],
    moment: Moment,
    books: &mut Books,
    watch: Watch,
) -> Result<(), Failure> {
    let sites = std::thread::scope(|scope| {
        let readers: Vec<_> =
            sources.iter().map(|source| scope.spawn(|| read_frames(source, watch))).collect();
        let gone = |_| Err(Failure::environment("a thread that read a log has ended"));
        let read = readers.into_iter().map(|reader| reader.join().unwrap_or_else(gone));
        read.collect::<Result<Vec<SiteLog>, Failure>>()
    })?;
    let merged = Merged::new(&sites, moment.at_rest, books);
    for (site, source) in sources.iter().enumerate().filter(|(site, _)| merged.wants(*site)) {
        let takes = |line: &log::Line<'_>| merged.takes(site, line.shard, line.index, line.term);
        read_records(source, takes, books, watch)?;
    }
    books.compared(sources.len(), merged.blocks());
    Ok(())
}

fn read_frames(source: &Source, watch: Watch) -> Result<SiteLog, Failure> {
    let mut site = SiteLog::default();
    source.read_frames(&mut |number, text| {
        watch.check(AUDIT)?;
        site.frame(text).map_err(|error| unreadable(number, &error))
    })?;
    Ok(site)
}

fn unreadable(number: u64, reason: &str) -> Failure {
    Failure::environment(format_args!("line {number} of the log dump: {reason}"))
}

fn open_run(path: &Path) -> Result<(Run, AckLog), Failure> {
    let log = AckLog::open(path)?;
    if log.torn > 0 {
        println!("{}: {} bytes of a torn record left out", path.display(), log.torn);
    }
    let run = Plan::new(log.params.clone()).and_then(Run::new);
    let run = run.ok_or_else(|| {
        Failure::environment(format_args!("{}: impossible parameters", path.display()))
    })?;
    Ok((run, log))
}

/// Asks the switch for every payment of every run, twice as patient as a
/// gateway, and writes the answers to new acknowledgement logs.
async fn requery(config: &Path, dir: &Path, stop: &Stop) -> Result<(), Failure> {
    let gateway = GatewayFile::load(config)?;
    let mut asked: Vec<u64> = Vec::new();
    for path in acks::logs_of(dir)? {
        let (run, log) = open_run(&path)?;
        if asked.contains(&run.plan.params().run_id) {
            continue;
        }
        asked.push(run.plan.params().run_id);
        let mut merchants = gateway.load_merchants()?;
        merchants.truncate(run.plan.params().merchants.len());
        let same = merchants.iter().map(|merchant| merchant.id.as_str()).eq(run
            .plan
            .params()
            .merchants
            .iter()
            .map(String::as_str));
        if !same {
            let path = path.display();
            return Err(Failure::usage(format_args!("{path}: other merchants than --config's")));
        }
        let mut payments: Vec<u64> = Vec::new();
        log.each(|ack| {
            let k = run.plan.target(ack.n);
            if ack.flags & (acks::flag::REQUERY | acks::flag::EVENT) == 0
                && run.plan.op(k) == Op::Pay
            {
                payments.push(k);
            }
        })?;
        payments.sort_unstable();
        payments.dedup();
        let writer = AckWriter::create(dir, run.plan.params())?;
        let options = Options {
            connections: 2,
            streams: 16,
            in_flight_max: 10_000,
            deadline: Duration::from_secs(20),
            pace: Pace::Tick,
            tick: TICK,
            part: Part::ALL,
            events: false,
        };
        let (plan, encoder) = (Rc::new(run.plan), Encoder::new(merchants));
        let session = Session::connect(&gateway, plan, encoder, Some(writer), options).await?;
        session.remember(payments.iter().copied());
        let measure = session.query(&payments, stop).await?;
        let watch = Watch::new();
        let left = session.settle(Duration::from_secs(30), stop).await?;
        watch.check("the wait for open payments")?;
        session.close().await;
        println!(
            "requery   {} payments asked, {} answered, {left} without a final answer",
            payments.len(),
            measure.answered
        );
    }
    Ok(())
}
