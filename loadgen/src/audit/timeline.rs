//! The story of a payment at fault: everything that any witness says about
//! it, in order of time.

use super::books::Violation;
use super::log::{self, Fact};
use super::{Evidence, open_run};
use crate::acks::{self, AckLog};
use crate::channel::ledger;
use crate::exit::Failure;
use crate::plan::SEEDED_BELOW;
use protocol::channel::order_digest;
use protocol::id::{MchId, OutTradeNo};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::UNIX_EPOCH;

type Digest = [u8; 16];

/// Prints the time lines of the first payments at fault.
pub(super) fn print(
    evidence: &Evidence,
    violations: &[Violation],
    most: usize,
) -> Result<(), Failure> {
    let mut wanted: BTreeMap<Digest, Vec<(u64, String)>> = BTreeMap::new();
    for digest in violations.iter().filter_map(|violation| violation.digest) {
        if wanted.len() < most {
            wanted.entry(digest).or_default();
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    from_logs(evidence, &mut wanted)?;
    ledger::read(&evidence.ledger, |entry| {
        if let Some(lines) = wanted.get_mut(&entry.charge.digest) {
            lines.push((entry.at_ms * 1_000, format!("channel  {entry:?}")));
        }
    })?;
    from_acks(evidence, &mut wanted)?;
    for (digest, lines) in &mut wanted {
        lines.sort();
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("\npayment {hex}");
        lines.iter().for_each(|(at_us, text)| println!("  {at_us} {text}"));
    }
    println!();
    Ok(())
}

fn from_logs(
    evidence: &Evidence,
    wanted: &mut BTreeMap<Digest, Vec<(u64, String)>>,
) -> Result<(), Failure> {
    let mut places: HashMap<(u16, u64), Digest> = HashMap::new();
    for (at, source) in evidence.logs.iter().enumerate() {
        source.read(&mut |_, text| {
            // Judged when it was read first.
            let Ok(line) = log::parse(text) else { return Ok(()) };
            let place = (line.shard, line.sequence);
            if let Fact::Begin { mch_id, out_trade_no, .. } = line.fact {
                let mch_id = MchId::parse(mch_id.as_bytes());
                let out_trade_no = OutTradeNo::parse(out_trade_no.as_bytes());
                if let (Ok(mch_id), Ok(out_trade_no)) = (mch_id, out_trade_no) {
                    let digest = order_digest(&mch_id, &out_trade_no);
                    if wanted.contains_key(&digest) {
                        places.insert(place, digest);
                    }
                }
            }
            let found = places.get(&place).filter(|_| line.fact != Fact::Other);
            if let Some(lines) = found.and_then(|digest| wanted.get_mut(digest)) {
                lines.push((line.at_us, format!("log {}    {text}", at + 1)));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Acknowledgements carry the run's own clock: they are shown by it, from the
/// run's start in Unix time.
fn from_acks(
    evidence: &Evidence,
    wanted: &mut BTreeMap<Digest, Vec<(u64, String)>>,
) -> Result<(), Failure> {
    for path in acks::logs_of(&evidence.acks)? {
        let (run, log) = open_run(&path)?;
        let start_us = started_us(&path, &log, run.plan.params().run_id)?;
        log.each(|ack| {
            let requery = ack.flags & acks::flag::REQUERY != 0;
            let event = ack.flags & acks::flag::EVENT != 0;
            let k = if requery { ack.n } else { run.plan.target(ack.n) };
            if let Some(lines) = wanted.get_mut(&run.digest(k)) {
                let op = match (event, requery) {
                    (true, _) => "event",
                    (_, true) => "requery",
                    _ => run.plan.op(ack.n).name(),
                };
                lines.push((start_us + ack.at_us, format!("gateway  {op} {ack:?}")));
            }
        })?;
    }
    Ok(())
}

/// When a run started, Unix microseconds: as its id tells, or so long before its log was last
/// written as its last record says.
fn started_us(path: &Path, log: &AckLog, run_id: u64) -> Result<u64, Failure> {
    if run_id >= SEEDED_BELOW {
        return Ok(run_id * 1_000);
    }
    let mut last_us = 0;
    log.each(|ack| last_us = ack.at_us.max(last_us))?;
    let written = std::fs::metadata(path).and_then(|facts| facts.modified());
    let written = written.map_err(|error| {
        Failure::environment(format_args!("cannot look at {}: {error}", path.display()))
    })?;
    let written_us = written.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    Ok(written_us.saturating_sub(last_us))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acks::{Ack, AckWriter};
    use crate::plan::{Params, tests::params};
    use std::time::SystemTime;

    #[test]
    fn a_run_whose_id_was_drawn_started_so_long_before_its_last_record() {
        let dir = tempfile::tempdir().unwrap();
        let started = |run_id| {
            let mut writer = AckWriter::create(dir.path(), &Params { run_id, ..params() }).unwrap();
            let at_us = 60_000_000;
            let rest = Ack {
                n: 1,
                transaction: 0,
                amount: 0,
                refunded: 0,
                code: 1,
                state: 1,
                flags: 0,
                at_us,
            };
            writer.push(&rest);
            writer.flush().unwrap();
            let path = acks::logs_of(dir.path()).unwrap().pop().unwrap();
            let log = AckLog::open(&path).unwrap();
            let started_us = started_us(&path, &log, run_id).unwrap();
            std::fs::remove_file(path).unwrap();
            started_us
        };
        assert_eq!(started(1_700_000_000_000), 1_700_000_000_000_000);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let ago = now - started(77) / 1_000_000;
        assert!((60..=3_600).contains(&ago), "{ago} s");
    }
}
