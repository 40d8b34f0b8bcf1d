//! `loadgen history`: the evidence of an imagined run, for measuring the audit
//! on more payments than one wants to wait for.
//!
//! Acknowledgements and ledger are written by the writers that real runs use.
//! The log's records go to standard output, one a line, for `audit-input` of the
//! benches, which writes them through the switch's own encoders. Everything in
//! it is true to the rules: an audit finds nothing. Tested by auditing one.

use crate::acks::{Ack, AckWriter, flag};
use crate::audit::Run;
use crate::channel::book::Entry;
use crate::channel::ledger::Ledger;
use crate::channel::number::Number;
use crate::exit::Failure;
use crate::plan::{Mix, Op, Params, Plan};
use crate::rng::Stream;
use clap::Args;
use protocol::channel::{ChannelStatus, kind};
use protocol::code::{Code, OrderState, RefundState};
use protocol::id::TransactionId;
use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::path::PathBuf;

/// Requests between a payment's beginning and its end.
const LATENCY: u64 = 300;
/// Requests between a payment and the next that is about it.
const LAG: u64 = 1_000;
/// Requests per millisecond.
const PER_MS: u64 = 50;
/// When the imagined run began, Unix milliseconds.
const START_MS: u64 = 1_760_000_000_000;
/// Records of acknowledgements and ledger that are written at once.
const FLUSH_EVERY: u64 = 10_000;
/// Refunds of a payment; more would not fit.
const REFUNDS_MAX: u8 = 4;

/// Arguments of `loadgen history`.
#[derive(Args, Clone, Debug)]
pub(crate) struct HistoryArgs {
    /// Payments.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    payments: u64,
    /// Shards of the deployment.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=4096))]
    shards: u16,
    /// Merchants.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    merchants: u32,
    /// Chooses everything that looks random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where: acks/ and data/channel/ are made in it.
    #[arg(long)]
    dir: PathBuf,
}

/// How a payment goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Story {
    /// Paid at once.
    Paid,
    /// Declined, and paid by a second attempt.
    Second,
    /// Declined for good.
    Failed,
    /// Cancelled, its charge reversed.
    Closed,
    /// Paid; the answer was lost and asked for later.
    Lost,
}

impl Story {
    fn state(self) -> OrderState {
        match self {
            Self::Paid | Self::Second | Self::Lost => OrderState::Paid,
            Self::Failed => OrderState::Failed,
            Self::Closed => OrderState::Closed,
        }
    }
}

/// Writes the history. `out` takes the log's records.
pub(crate) fn write(args: &HistoryArgs, out: impl Write) -> Result<(), Failure> {
    let params = Params {
        seed: args.seed,
        run_id: START_MS,
        expire_ms: START_MS + 3 * 86_400_000,
        mix: Mix::of(80, 15, 5),
        duplicates_ppm: 10_000,
        conflicts_ppm: 5_000,
        bad_signatures_ppm: 0,
        hot_ppm: 0,
        notify: false,
        zipf: 0.5,
        lag: LAG,
        merchants: (1..=args.merchants).map(|number| format!("M{number:06}")).collect(),
    };
    let acks = AckWriter::create(&args.dir.join("acks"), &params)?;
    let ledger = Ledger::open(&args.dir.join("data/channel"), |_| {})?;
    let run = Plan::new(params).and_then(Run::new);
    let run = run.ok_or_else(|| Failure::usage("impossible parameters"))?;
    let mut writer = Writer {
        stories: Stream::new(args.seed, 200),
        run,
        acks,
        ledger,
        out,
        shards: args.shards,
        sequences: vec![0; args.shards.into()],
        places: Vec::new(),
        refunds: HashMap::new(),
        pending: VecDeque::new(),
        now: 0,
    };
    writer.all(args.payments)
}

struct Writer<W> {
    run: Run,
    stories: Stream,
    acks: AckWriter,
    ledger: Ledger,
    out: W,
    shards: u16,
    sequences: Vec<u64>,
    /// Transaction of every request that is a payment.
    places: Vec<TransactionId>,
    /// Refunds so far of payments that have any: number and amount.
    refunds: HashMap<u64, (u8, i64)>,
    pending: VecDeque<u64>,
    /// The request that is at hand, in place of a clock.
    now: u64,
}

impl<W: Write> Writer<W> {
    fn all(&mut self, payments: u64) -> Result<(), Failure> {
        let mut begun = 0;
        while begun < payments || !self.pending.is_empty() {
            if begun < payments {
                begun += u64::from(self.request(self.now)?);
            }
            let due = self.pending.front().filter(|n| **n + LATENCY <= self.now).copied();
            if let Some(n) = due {
                self.pending.pop_front();
                self.finish(n)?;
            }
            self.now += 1;
            if self.now.is_multiple_of(FLUSH_EVERY) {
                self.flush()?;
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.acks.flush()?;
        self.ledger.flush()
    }

    fn line(&mut self, k: u64, kind: char, rest: std::fmt::Arguments<'_>) -> Result<(), Failure> {
        let place = self.places[k as usize];
        let at_us = START_MS * 1_000 + self.now * 1_000 / PER_MS;
        let (shard, sequence) = (place.shard(), place.sequence());
        writeln!(self.out, "{kind} {shard} {sequence} {at_us}{rest}").map_err(|error| {
            Failure::environment(format_args!("cannot write the log's records: {error}"))
        })
    }

    fn story(&self, k: u64) -> Story {
        match self.stories.below(k, 1_000) {
            0..20 => Story::Second,
            20..30 => Story::Failed,
            30..35 => Story::Closed,
            35..40 => Story::Lost,
            _ => Story::Paid,
        }
    }

    /// Plays request `n`; whether it is a payment.
    fn request(&mut self, n: u64) -> Result<bool, Failure> {
        let op = self.run.plan.op(n);
        let shard = self.run.merchant(n).shard(self.shards);
        if op == Op::Pay {
            self.sequences[usize::from(shard)] += 1;
        }
        self.places.push(TransactionId::new(shard, self.sequences[usize::from(shard)].max(1)));
        let k = self.run.plan.target(n);
        let paid = self.story(k).state() == OrderState::Paid && self.now >= k + LATENCY;
        match op {
            Op::Pay => {
                self.pending.push_back(n);
                let (mch_id, number) = (*self.run.merchant(n), self.run.plan.out_trade_no(n));
                let amount = self.run.plan.amount(n).minor();
                self.line(n, 'B', format_args!(" {mch_id} {number} {amount}"))?;
            }
            Op::Duplicate => self.ack(n, k, self.story(k).state(), flag::REPLAYED),
            Op::Query if paid => self.ack(n, k, OrderState::Paid, 0),
            Op::Refund if paid => self.refund(n, k)?,
            Op::Conflict if paid => self.acks.push(&Ack {
                n,
                transaction: 0,
                amount: 0,
                refunded: 0,
                at_us: self.now * 1_000 / PER_MS,
                code: Code::IdempotencyConflict.wire(),
                state: 0,
                flags: 0,
            }),
            // Left out, as the driver does.
            _ => {}
        }
        Ok(op == Op::Pay)
    }

    fn refund(&mut self, n: u64, k: u64) -> Result<(), Failure> {
        let amount = self.run.plan.refund_amount(n, k).minor();
        let (ordinal, refunded) = self.refunds.get(&k).copied().unwrap_or((0, 0));
        let (ordinal, refunded) = (ordinal + 1, refunded + amount);
        if ordinal > REFUNDS_MAX {
            return Ok(());
        }
        self.refunds.insert(k, (ordinal, refunded));
        let number = self.run.plan.out_refund_no(n);
        let attempt = if self.story(k) == Story::Second { 2 } else { 1 };
        self.line(k, 'F', format_args!(" {ordinal} {attempt} {amount} {number}"))?;
        self.line(k, 'G', format_args!(" {ordinal}"))?;
        self.book(k, kind::REFUND, (attempt, ordinal), ChannelStatus::Success, amount);
        let ack = self.told(n, k, RefundState::Success.wire(), 0);
        self.acks.push(&Ack { amount, ..ack });
        Ok(())
    }

    /// A payment comes to its end.
    fn finish(&mut self, k: u64) -> Result<(), Failure> {
        let (story, amount) = (self.story(k), self.run.plan.amount(k).minor());
        let success = ChannelStatus::Success;
        match story {
            Story::Paid | Story::Lost => {
                self.book(k, kind::CHARGE, (1, 0), success, amount);
                self.line(k, 'E', format_args!(" 1 succeeded PAID"))?;
            }
            Story::Second => {
                self.book(k, kind::CHARGE, (1, 0), ChannelStatus::Declined, amount);
                self.line(k, 'E', format_args!(" 1 declined PROCESSING"))?;
                self.line(k, 'A', format_args!(" 2"))?;
                self.book(k, kind::CHARGE, (2, 0), success, amount);
                self.line(k, 'E', format_args!(" 2 succeeded PAID"))?;
            }
            Story::Failed => {
                self.book(k, kind::CHARGE, (1, 0), ChannelStatus::Declined, amount);
                self.line(k, 'E', format_args!(" 1 declined FAILED"))?;
            }
            Story::Closed => {
                self.line(k, 'X', format_args!(" 1"))?;
                self.book(k, kind::CHARGE, (1, 0), success, amount);
                self.book(k, kind::REVERSE, (1, 0), ChannelStatus::Reversed, amount);
                self.line(k, 'E', format_args!(" 1 reversed CLOSED"))?;
            }
        }
        if story == Story::Lost {
            let unknown = Ack { transaction: 0, amount: 0, ..self.told(k, k, 0, flag::UNKNOWN) };
            self.acks.push(&unknown);
            self.ack(k, k, OrderState::Paid, flag::REQUERY);
        } else {
            self.ack(k, k, story.state(), 0);
        }
        Ok(())
    }

    fn ack(&mut self, n: u64, k: u64, state: OrderState, flags: u8) {
        let ack = self.told(n, k, state.wire(), flags);
        self.acks.push(&ack);
    }

    fn told(&self, n: u64, k: u64, state: u8, flags: u8) -> Ack {
        Ack {
            n,
            transaction: self.places[k as usize].as_u64(),
            amount: self.run.plan.amount(k).minor(),
            refunded: self.refunds.get(&k).map_or(0, |refunds| refunds.1),
            at_us: self.now * 1_000 / PER_MS,
            code: Code::Ok.wire(),
            state,
            flags,
        }
    }

    fn book(
        &mut self,
        k: u64,
        operation: u8,
        (attempt, refund): (u8, u8),
        status: ChannelStatus,
        amount: i64,
    ) {
        let digest = self.run.digest(k);
        self.ledger.push(&Entry {
            operation,
            charge: Number { digest, kind: b'P', ordinal: attempt },
            refund: (refund > 0).then_some(Number { digest, kind: b'R', ordinal: refund }),
            status,
            detail: 0,
            amount,
            currency: self.run.plan.currency().bytes(),
            at_ms: START_MS + self.now / PER_MS,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{self, EventsDue, Evidence, Moment, Source};
    use std::fmt::Write as _;
    use std::path::Path;

    /// The records as `payswitch log dump` prints them.
    fn dumped(records: &str) -> String {
        let mut lines = String::new();
        let mut indexes: HashMap<&str, u64> = HashMap::new();
        for record in records.lines() {
            let field: Vec<&str> = record.split(' ').collect();
            let index = indexes.entry(field[1]).or_default();
            *index += 1;
            let place = format!(
                r#"{{"shard":{},"index":{index},"term":1,"record":0,"at_us":{},"sequence":{}"#,
                field[1], field[3], field[2]
            );
            let rest = match field[0] {
                "B" => {
                    let mch_id = protocol::id::MchId::parse(field[4].as_bytes()).unwrap();
                    let number = protocol::id::OutTradeNo::parse(field[5].as_bytes()).unwrap();
                    let digest = protocol::channel::order_digest(&mch_id, &number);
                    let charge = protocol::channel::charge_number(&digest, 1);
                    format!(
                        r#""kind":"begin","mch_id":"{mch_id}","out_trade_no":"{number}","charge_no":"{}","amount":{},"currency":"CNY""#,
                        charge.as_str(),
                        field[6]
                    )
                }
                "A" => format!(r#""kind":"attempt","attempt":{}"#, field[4]),
                "E" => format!(
                    r#""kind":"end","attempt":{},"ending":"{}","goes_on":{},"order_state":"{}""#,
                    field[4],
                    field[5],
                    field[6] == "PROCESSING",
                    field[6]
                ),
                "X" => r#""kind":"cancel","attempt":1,"cause":"merchant""#.to_owned(),
                "F" => format!(
                    r#""kind":"refund","ordinal":{},"attempt":{},"amount":{},"out_refund_no":"{}""#,
                    field[4], field[5], field[6], field[7]
                ),
                "G" => {
                    format!(r#""kind":"refund_end","ordinal":{},"ending":"succeeded""#, field[4])
                }
                other => panic!("{other}"),
            };
            writeln!(lines, "{place},{rest}}}").unwrap();
        }
        lines
    }

    fn audited(dir: &Path, records: &str) -> audit::Audit {
        let path = dir.join("records.jsonl");
        std::fs::write(&path, dumped(records)).unwrap();
        let logs = vec![Source::File { records: path, frames: None }];
        let (acks, ledger) = (dir.join("acks"), dir.join("data/channel"));
        let moment = Moment { settled: true, events: EventsDue::All, at_rest: true };
        audit::audit(&Evidence { acks, ledger, logs }, moment).unwrap()
    }

    #[test]
    fn an_audit_of_a_history_is_clean_and_bites_when_a_line_is_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        let (payments, shards, merchants, seed) = (5_000, 12, 50, 1);
        let dir = dir.path();
        let args = HistoryArgs { payments, shards, merchants, seed, dir: dir.to_owned() };
        let mut records = Vec::new();
        write(&args, &mut records).unwrap();
        let records = String::from_utf8(records).unwrap();
        let clean = audited(dir, &records);
        assert_eq!(clean.violations, []);
        assert_eq!((clean.checked.payments, clean.verdict()), (payments, Ok(())));
        assert!(clean.checked.refunds > 100 && clean.checked.unknown > 5);
        assert!(clean.sums.log_paid > 0 && clean.sums.log_paid == clean.sums.channel_charged);
        // Whatever is missing from the log, somebody was told or charged.
        let lines: Vec<&str> = records.lines().collect();
        for kind in ["B ", "E ", "A ", "F ", "G "] {
            let at = lines.iter().rposition(|line| line.starts_with(kind)).unwrap();
            let rest: Vec<&str> = [&lines[..at], &lines[at + 1..]].concat();
            let audit = audited(dir, &rest.join("\n"));
            assert!(audit.violation_count > 0, "{}", lines[at]);
        }
    }
}
