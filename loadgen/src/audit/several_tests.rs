//! The audit of several sites from files: what an acknowledgement rests on.

use super::*;
use crate::acks::Ack;
use crate::plan::tests::params;
use protocol::channel::charge_number;
use protocol::code::{Code, OrderState};
use protocol::id::TransactionId;
use std::fmt::Write;

const SHARD: u16 = 2;
const AT_REST: Moment = Moment { settled: false, events: EventsDue::None, at_rest: true };

/// A block: index, term, and the records in it.
type Block<'a> = (u64, u64, &'a [String]);

/// One payment: its records, and the acknowledgement that it is closed.
struct Payment {
    begin: String,
    cancel: String,
    end: String,
    acks: PathBuf,
    ledger: PathBuf,
}

impl Payment {
    fn acknowledged(dir: &Path) -> Self {
        let run = Run::new(Plan::new(params()).unwrap()).unwrap();
        let (mch_id, amount) = (run.merchant(0), run.plan.amount(0).minor());
        let number = run.plan.out_trade_no(0);
        let charge = charge_number(&run.digest(0), 1);
        let begin = format!(
            r#""at_us":5,"kind":"begin","sequence":1,"attempt":1,"mch_id":"{mch_id}","out_trade_no":"{number}","charge_no":"{}","amount":{amount},"currency":"CNY""#,
            charge.as_str()
        );
        let cancel = r#""at_us":6,"kind":"cancel","sequence":1,"cause":"merchant""#.to_owned();
        let end = r#""at_us":7,"kind":"end","sequence":1,"attempt":1,"ending":"void""#.to_owned();
        let acks = dir.join("acks");
        let mut writer = AckWriter::create(&acks, &params()).ok().unwrap();
        writer.push(&Ack {
            n: 0,
            transaction: TransactionId::new(SHARD, 1).as_u64(),
            amount,
            refunded: 0,
            at_us: 9,
            code: Code::Ok.wire(),
            state: OrderState::Closed.wire(),
            flags: 0,
        });
        writer.flush().unwrap();
        let ledger = dir.join("ledger");
        std::fs::create_dir(&ledger).unwrap();
        Self { begin, cancel, end, acks, ledger }
    }

    /// All that happened to it, one record a block.
    fn records(&self) -> [Vec<String>; 3] {
        [&self.begin, &self.cancel, &self.end].map(|record| vec![record.clone()])
    }

    /// The rules found broken when sites hold these blocks.
    fn broken(&self, dir: &Path, sites: &[Vec<Block<'_>>]) -> Vec<u8> {
        let source = |(at, blocks): (usize, &Vec<Block<'_>>)| written(dir, at, blocks);
        let logs = sites.iter().enumerate().map(source).collect();
        let evidence = Evidence { acks: self.acks.clone(), ledger: self.ledger.clone(), logs };
        let audit = audit(&evidence, AT_REST).unwrap();
        audit.violations.iter().map(|violation| violation.invariant).collect()
    }
}

/// Writes a site's dumps. The chain is a sum that differs as a hash would.
fn written(dir: &Path, site: usize, blocks: &[Block<'_>]) -> Source {
    let (mut records, mut frames) = (String::new(), String::new());
    let mut chains = vec![0_u64];
    for (index, term, lines) in blocks {
        chains.truncate(*index as usize);
        let content = format!("{} {term} {lines:?}", chains.last().unwrap());
        let chain = u64::from(crc32c::crc32c(content.as_bytes())) << 20 | index;
        chains.push(chain);
        let place = format!(r#""shard":{SHARD},"index":{index},"term":{term}"#);
        writeln!(frames, r#"{{{place},"kind":"block","chain":"{chain:064x}"}}"#).unwrap();
        for (number, line) in lines.iter().enumerate() {
            writeln!(records, r#"{{{place},"record":{number},{line}}}"#).unwrap();
        }
    }
    let path = |name: &str| dir.join(format!("{name}-{site}.jsonl"));
    std::fs::write(path("records"), records).unwrap();
    std::fs::write(path("frames"), frames).unwrap();
    Source::File { records: path("records"), frames: Some(path("frames")) }
}

const CLEAN: Vec<u8> = Vec::new();

#[test]
fn what_a_majority_holds_carries_the_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let payment = Payment::acknowledged(dir.path());
    let [begin, cancel, end] = payment.records();
    let whole: Vec<Block<'_>> = vec![(1, 1, &begin), (2, 1, &cancel), (3, 1, &end)];
    let short = whole[..1].to_vec();
    assert_eq!(payment.broken(dir.path(), &[short, whole.clone(), whole]), CLEAN);
}

#[test]
fn an_acknowledgement_that_one_site_alone_can_prove_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let payment = Payment::acknowledged(dir.path());
    let [begin, cancel, end] = payment.records();
    let whole: Vec<Block<'_>> = vec![(1, 1, &begin), (2, 1, &cancel), (3, 1, &end)];
    let (short, none) = (whole[..2].to_vec(), Vec::new());
    assert_eq!(payment.broken(dir.path(), &[whole.clone(), short.clone(), short]), [6]);
    assert_eq!(payment.broken(dir.path(), &[whole, none.clone(), none]), [6]);
}

#[test]
fn records_of_a_replaced_tail_do_not_count_even_when_an_empty_block_replaced_it() {
    let dir = tempfile::tempdir().unwrap();
    let payment = Payment::acknowledged(dir.path());
    let [begin, cancel, end] = payment.records();
    let mut replaced: Vec<Block<'_>> = vec![(1, 1, &begin), (2, 1, &cancel), (3, 1, &end)];
    replaced.extend([(2, 2, &[] as &[String]), (3, 2, &cancel)]);
    let others: Vec<Block<'_>> = vec![(1, 1, &begin), (2, 2, &[]), (3, 2, &cancel)];
    let sites = [replaced.clone(), others.clone(), others.clone()];
    assert_eq!(payment.broken(dir.path(), &sites), [6], "the end was taken back");
    for log in [0, 1] {
        let mut finished = [replaced.clone(), others.clone(), others.clone()];
        finished.iter_mut().skip(log).for_each(|site| site.push((4, 2, &end)));
        assert_eq!(payment.broken(dir.path(), &finished), CLEAN);
    }
}

#[test]
fn one_site_of_several_is_read_without_what_was_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let payment = Payment::acknowledged(dir.path());
    let [begin, cancel, end] = payment.records();
    let mut log: Vec<Block<'_>> = vec![(1, 1, &begin), (2, 1, &cancel), (3, 1, &end)];
    log.extend([(2, 2, &[] as &[String]), (3, 2, &cancel)]);
    assert_eq!(payment.broken(dir.path(), &[log.clone()]), [6], "the end was taken back");
    log.push((4, 2, &end));
    assert_eq!(payment.broken(dir.path(), &[log]), CLEAN);
    let paid = vec![end[0].replace("void", "succeeded")];
    let log: Vec<Block<'_>> = vec![(1, 1, &begin), (2, 1, &cancel), (3, 1, &paid), (3, 2, &end)];
    assert_eq!(payment.broken(dir.path(), &[log]), CLEAN, "another end took its place");
}

#[test]
fn replaced_blocks_of_a_dump_without_frames_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let payment = Payment::acknowledged(dir.path());
    let [begin, cancel, end] = payment.records();
    let whole: Vec<Block<'_>> = vec![(1, 1, &begin), (2, 1, &cancel), (3, 1, &end)];
    let mut replaced = whole.clone();
    replaced.push((3, 2, &end));
    for (blocks, expected) in [(whole, CLEAN), (replaced, vec![15])] {
        let Source::File { records, .. } = written(dir.path(), 0, &blocks) else {
            panic!("a file")
        };
        let logs = vec![Source::File { records, frames: None }];
        let evidence =
            Evidence { acks: payment.acks.clone(), ledger: payment.ledger.clone(), logs };
        let audit = audit(&evidence, AT_REST).unwrap();
        let rules: Vec<u8> = audit.violations.iter().map(|found| found.invariant).collect();
        assert_eq!(rules, expected);
    }
}

#[test]
fn several_dumps_without_their_frames_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let payment = Payment::acknowledged(dir.path());
    let Source::File { records, .. } = written(dir.path(), 0, &[]) else { panic!("a file") };
    let source = Source::File { records, frames: None };
    let (acks, ledger) = (payment.acks, payment.ledger);
    let evidence = Evidence { acks, ledger, logs: vec![source.clone(), source] };
    assert_eq!(audit(&evidence, AT_REST).err().unwrap().exit, Exit::Usage);
}

#[test]
fn every_site_of_a_deployment_is_read() {
    let dir = tempfile::tempdir().unwrap();
    assert!(sites_of(dir.path()).is_err());
    for name in ["site-2", "site-1", "channel", "site-3"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let sites = sites_of(dir.path()).unwrap();
    let expected = ["site-1", "site-2", "site-3"].map(|name| dir.path().join(name));
    assert_eq!(sites, expected);
}
