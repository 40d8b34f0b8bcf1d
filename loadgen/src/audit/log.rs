//! The switch's log as `payswitch log dump` prints it: one JSON object a line.
//!
//! Reads lines into the few facts that the audit needs; unknown fields and
//! kinds that say nothing about money are passed over. Never trusts a line's
//! form: what cannot be read is an error that names the line. Tested on lines
//! as the switch prints them.

use crate::exit::{Exit, Failure};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How an attempt or refund ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// The money moved.
    Succeeded,
    /// The channel said no.
    Declined,
    /// Nothing was or can be charged.
    Void,
    /// The channel confirmed the reversal.
    Reversed,
    /// In front of an operator.
    Manual,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact<'a> {
    /// A payment and its first attempt.
    Begin {
        /// Merchant.
        mch_id: &'a str,
        /// Its number.
        out_trade_no: &'a str,
        /// Number of the charge.
        charge_no: &'a str,
        /// Minor units.
        amount: i64,
        /// Three letters.
        currency: &'a str,
    },
    /// A further attempt.
    Attempt(u8),
    /// An attempt ended.
    End {
        /// Which.
        attempt: u8,
        /// How.
        ending: Ending,
        /// Another attempt follows.
        goes_on: bool,
        /// The charge came too late for a cancelled payment and will be undone.
        undone: bool,
    },
    /// No further attempt follows after all.
    RouteEnd,
    /// A cancel; whether it is the payment's end or only the attempt's.
    Cancel {
        /// Wished by the merchant or by expiry: the payment ends closed.
        ends_payment: bool,
    },
    /// A refund's amount is reserved.
    Refund {
        /// Which.
        ordinal: u8,
        /// Attempt whose charge it gives back.
        attempt: u8,
        /// Minor units.
        amount: i64,
        /// The merchant's number; empty for our own.
        out_refund_no: &'a str,
    },
    /// A refund ended.
    RefundEnd {
        /// Which.
        ordinal: u8,
        /// How.
        ending: Ending,
    },
    /// Says nothing about money.
    Other,
}

/// A record and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Shard.
    pub(crate) shard: u16,
    /// Block.
    pub(crate) index: u64,
    /// Term that the block was written in.
    pub(crate) term: u64,
    /// Record within the block.
    pub(crate) record: u32,
    /// Unix microseconds.
    pub(crate) at_us: u64,
    /// Payment within the shard, from 1; 0 when it is about none.
    pub(crate) sequence: u64,
    /// What it says.
    pub(crate) fact: Fact<'a>,
}

/// All fields of all kinds.
#[derive(Deserialize)]
struct Raw<'a> {
    shard: u16,
    index: u64,
    #[serde(default)]
    term: u64,
    record: u32,
    at_us: u64,
    kind: &'a str,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    attempt: u8,
    #[serde(default)]
    ordinal: u8,
    #[serde(default)]
    amount: i64,
    #[serde(default)]
    mch_id: &'a str,
    #[serde(default)]
    out_trade_no: &'a str,
    #[serde(default)]
    charge_no: &'a str,
    #[serde(default)]
    currency: &'a str,
    #[serde(default)]
    out_refund_no: &'a str,
    #[serde(default)]
    cause: &'a str,
    ending: Option<Ending>,
    #[serde(default)]
    goes_on: bool,
    #[serde(default)]
    order_state: &'a str,
    #[serde(default)]
    refund: bool,
    #[serde(default)]
    success: bool,
}

/// Reads one line.
pub(crate) fn parse(line: &str) -> Result<Line<'_>, String> {
    let raw: Raw<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let ending = || raw.ending.ok_or_else(|| "no ending".to_owned());
    let fact = match raw.kind {
        "begin" => Fact::Begin {
            mch_id: raw.mch_id,
            out_trade_no: raw.out_trade_no,
            charge_no: raw.charge_no,
            amount: raw.amount,
            currency: raw.currency,
        },
        "attempt" => Fact::Attempt(raw.attempt),
        "end" => {
            let ending = ending()?;
            let undone = ending == Ending::Succeeded && raw.order_state == "PROCESSING";
            Fact::End { attempt: raw.attempt, ending, goes_on: raw.goes_on, undone }
        }
        "route_end" => Fact::RouteEnd,
        "cancel" => Fact::Cancel { ends_payment: raw.cause != "gave_up" },
        "refund" => Fact::Refund {
            ordinal: raw.ordinal,
            attempt: raw.attempt,
            amount: raw.amount,
            out_refund_no: raw.out_refund_no,
        },
        "refund_end" => Fact::RefundEnd { ordinal: raw.ordinal, ending: ending()? },
        "decided" => decided(&raw),
        _ => Fact::Other,
    };
    let Raw { shard, index, term, record, at_us, sequence, .. } = raw;
    Ok(Line { shard, index, term, record, at_us, sequence, fact })
}

/// An operator's decision ends what it is about.
fn decided<'a>(raw: &Raw<'a>) -> Fact<'a> {
    let ending = match (raw.success, raw.refund) {
        (true, _) => Ending::Succeeded,
        (false, true) => Ending::Declined,
        (false, false) => Ending::Void,
    };
    if raw.refund {
        Fact::RefundEnd { ordinal: raw.ordinal, ending }
    } else {
        Fact::End { attempt: raw.ordinal, ending, goes_on: false, undone: false }
    }
}

/// Where lines come from; can be read more than once.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Files with the output of `payswitch log dump`.
    File {
        /// Records.
        records: PathBuf,
        /// Frames (`--frames`), needed when there are several sites.
        frames: Option<PathBuf>,
    },
    /// A data directory, dumped by this binary.
    Dump {
        /// The binary `payswitch`.
        payswitch: PathBuf,
        /// A site's data directory.
        data: PathBuf,
    },
}

impl Source {
    /// Hands every record's line to `take`, with its number from 1.
    pub(crate) fn read(
        &self,
        take: &mut dyn FnMut(u64, &str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.read_lines(false, take)
    }

    /// Hands every frame's line to `take`, with its number from 1.
    pub(crate) fn read_frames(
        &self,
        take: &mut dyn FnMut(u64, &str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.read_lines(true, take)
    }

    fn read_lines(
        &self,
        of_frames: bool,
        take: &mut dyn FnMut(u64, &str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self {
            Self::File { records, frames } => {
                let path = if of_frames { frames.as_ref() } else { Some(records) };
                let path = path.ok_or_else(|| {
                    Failure::usage("several --dump need as many --frames, in the same order")
                })?;
                let file = File::open(path).map_err(|error| unreadable(path, &error))?;
                lines(path, BufReader::with_capacity(1 << 20, file), take)
            }
            Self::Dump { payswitch, data } => {
                check_whole(data)?;
                let mut child = Command::new(payswitch)
                    .args(["log", "dump"])
                    .args(of_frames.then_some("--frames"))
                    .arg(data)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .map_err(|error| unreadable(payswitch, &error))?;
                let output = child.stdout.take();
                let read = output.map_or(Ok(()), |output| {
                    lines(data, BufReader::with_capacity(1 << 20, output), take)
                });
                let ended = child.wait().map_err(|error| unreadable(payswitch, &error))?;
                read?;
                if ended.success() {
                    return Ok(());
                }
                Err(Failure::new(
                    Exit::Environment,
                    format_args!("`payswitch log dump {}` failed", data.display()),
                ))
            }
        }
    }
}

/// The audit proves every acknowledgement by the log, which must therefore
/// reach back to the first payment.
fn check_whole(data: &Path) -> Result<(), Failure> {
    let workers = std::fs::read_dir(data).map_err(|error| unreadable(data, &error))?;
    for worker in workers {
        let released = worker.map_err(|error| unreadable(data, &error))?.path().join("released");
        if released.exists() {
            return Err(Failure::usage(format_args!(
                "the beginning of the log in {} was given up (log.keep_mib): nothing can be \
                 proven by the rest; audit deployments that keep all of their log",
                data.display()
            )));
        }
    }
    Ok(())
}

fn lines(
    path: &Path,
    mut reader: impl BufRead,
    take: &mut dyn FnMut(u64, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut line, mut number) = (String::new(), 0);
    loop {
        line.clear();
        if reader.read_line(&mut line).map_err(|error| unreadable(path, &error))? == 0 {
            return Ok(());
        }
        number += 1;
        if !line.trim().is_empty() {
            take(number, line.trim_end())?;
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::environment(format_args!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_switch_are_read() {
        let begin = r#"{"shard":3,"index":9,"term":1,"record":0,"at_us":5,"kind":"begin","sequence":4,"attempt":1,"channel":1,"mch_id":"M1","out_trade_no":"a|b","charge_no":"X","amount":77,"currency":"CNY","method":"CARD","time_expire_ms":1,"notify":false}"#;
        let line = parse(begin).unwrap();
        assert_eq!((line.shard, line.index, line.sequence), (3, 9, 4));
        assert!(matches!(line.fact, Fact::Begin { amount: 77, out_trade_no: "a|b", .. }));
        let end = r#"{"shard":3,"index":9,"term":1,"record":1,"at_us":5,"kind":"end","attempt":1,"sequence":4,"ending":"declined","reason":"NONE","channel_ref":"","goes_on":true}"#;
        let (attempt, ending) = (1, Ending::Declined);
        let expected = Fact::End { attempt, ending, goes_on: true, undone: false };
        assert_eq!(parse(end).unwrap().fact, expected);
        let refund = r#"{"shard":11,"index":335,"term":1,"record":0,"at_us":5,"kind":"refund","sequence":1,"ordinal":1,"attempt":1,"amount":6455,"out_refund_no":"R1"}"#;
        assert!(matches!(parse(refund).unwrap().fact, Fact::Refund { amount: 6455, .. }));
        let merchant = r#"{"shard":0,"index":1,"term":1,"record":0,"at_us":1,"kind":"merchant","operator":"boot\"strap","mch_id":"M1","limits":{"burst":1}}"#;
        assert_eq!(parse(merchant).unwrap().fact, Fact::Other);
        assert!(parse("{").is_err() && parse(r#"{"kind":"end"}"#).is_err());
    }

    #[test]
    fn a_log_without_its_beginning_is_no_proof() {
        let data = tempfile::tempdir().unwrap();
        let worker = data.path().join("worker-0");
        std::fs::create_dir(&worker).unwrap();
        assert!(check_whole(data.path()).is_ok());
        std::fs::write(worker.join("released"), b"").unwrap();
        let refused = check_whole(data.path()).unwrap_err();
        assert!(refused.message.contains("keep_mib"), "{}", refused.message);
    }

    #[test]
    fn a_decision_ends_what_it_is_about() {
        let decided = r#"{"shard":0,"index":1,"term":1,"record":0,"at_us":1,"kind":"decided","sequence":2,"ordinal":1,"refund":false,"success":true,"operator":"a","second":"b","note":""}"#;
        let (attempt, ending) = (1, Ending::Succeeded);
        let expected = Fact::End { attempt, ending, goes_on: false, undone: false };
        assert_eq!(parse(decided).unwrap().fact, expected);
    }
}
