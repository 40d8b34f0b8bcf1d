//! The switch's log as `payswitch log dump` prints it: one JSON object a line.
//!
//! Reads lines into the few facts that the audit needs; unknown fields and
//! kinds that say nothing about money are passed over. Never trusts a line's
//! form: what cannot be read is an error that names the line. `quick` reads the
//! usual lines, what it does not know goes to the full parser. Tested on lines
//! as the switch prints them.

use super::limits::Limits;
use super::quick;
use super::table::State;
use crate::exit::{Exit, Failure};
use crate::interrupt::apart;
use serde::Deserialize;
use std::borrow::Cow;
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
        /// When it expires, Unix milliseconds; 0: the line does not say.
        expire_ms: u64,
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
        /// What the payment becomes, as the record says; `None`: it does not.
        said: State,
    },
    /// Operators have said what became of an attempt.
    Decided {
        /// Which.
        attempt: u8,
        /// The money moved.
        moved: bool,
    },
    /// No further attempt follows after all.
    RouteEnd {
        /// What the payment becomes, as the record says.
        said: State,
    },
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
    /// A merchant was created or replaced.
    Merchant {
        /// Which.
        mch_id: &'a str,
        /// May it pay, and up to what.
        status: Status,
        /// Its limits.
        limits: Limits,
    },
    /// A merchant's limits changed.
    Limits {
        /// Which.
        mch_id: &'a str,
        /// New limits.
        limits: Limits,
        /// When the previous ones come back, Unix milliseconds; 0: never.
        until_ms: u64,
    },
    /// Says nothing about money.
    Other,
}

/// What a merchant may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Pay.
    Active,
    /// Pay half of the single limit.
    Limited,
    /// No pay.
    Shut,
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
    /// A text in it looks like a card's number.
    pub(crate) card: bool,
}

/// All fields of all kinds.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct Raw<'a> {
    pub(super) shard: u16,
    pub(super) index: u64,
    #[serde(default)]
    pub(super) term: u64,
    pub(super) record: u32,
    pub(super) at_us: u64,
    pub(super) kind: &'a str,
    #[serde(default)]
    pub(super) sequence: u64,
    #[serde(default)]
    pub(super) attempt: u8,
    #[serde(default)]
    pub(super) ordinal: u8,
    #[serde(default)]
    pub(super) amount: i64,
    #[serde(default)]
    pub(super) mch_id: &'a str,
    #[serde(default)]
    pub(super) out_trade_no: &'a str,
    #[serde(default)]
    pub(super) charge_no: &'a str,
    #[serde(default)]
    pub(super) currency: &'a str,
    #[serde(default)]
    pub(super) time_expire_ms: u64,
    #[serde(default)]
    pub(super) out_refund_no: &'a str,
    #[serde(default)]
    pub(super) cause: &'a str,
    pub(super) ending: Option<Ending>,
    #[serde(default)]
    pub(super) goes_on: bool,
    #[serde(default)]
    pub(super) order_state: &'a str,
    #[serde(default)]
    pub(super) refund: bool,
    #[serde(default)]
    pub(super) success: bool,
    #[serde(default)]
    pub(super) status: &'a str,
    #[serde(default)]
    pub(super) until_ms: u64,
    #[serde(default)]
    pub(super) limits: Option<Limits>,
    #[serde(default, borrow)]
    pub(super) operator: Cow<'a, str>,
    #[serde(default, borrow)]
    pub(super) second: Cow<'a, str>,
    #[serde(default, borrow)]
    pub(super) note: Cow<'a, str>,
}

/// Reads one line.
pub(crate) fn parse(line: &str) -> Result<Line<'_>, String> {
    let raw = match quick::parse(line) {
        Some(raw) => raw,
        None => serde_json::from_str(line).map_err(|error| error.to_string())?,
    };
    let ending = || raw.ending.ok_or_else(|| "no ending".to_owned());
    let fact = match raw.kind {
        "begin" => Fact::Begin {
            mch_id: raw.mch_id,
            out_trade_no: raw.out_trade_no,
            charge_no: raw.charge_no,
            amount: raw.amount,
            currency: raw.currency,
            expire_ms: raw.time_expire_ms,
        },
        "attempt" => Fact::Attempt(raw.attempt),
        "end" => {
            let ending = ending()?;
            let said = said(raw.order_state);
            Fact::End { attempt: raw.attempt, ending, goes_on: raw.goes_on, said }
        }
        "route_end" => Fact::RouteEnd { said: said(raw.order_state) },
        "cancel" => Fact::Cancel { ends_payment: raw.cause != "gave_up" },
        "refund" => Fact::Refund {
            ordinal: raw.ordinal,
            attempt: raw.attempt,
            amount: raw.amount,
            out_refund_no: raw.out_refund_no,
        },
        "refund_end" => Fact::RefundEnd { ordinal: raw.ordinal, ending: ending()? },
        "decided" => decided(&raw),
        "merchant" => Fact::Merchant {
            mch_id: raw.mch_id,
            status: match raw.status {
                "Active" => Status::Active,
                "Limited" => Status::Limited,
                "Suspended" | "Dormant" => Status::Shut,
                other => return Err(format!("unknown status {other:?}")),
            },
            limits: raw.limits.ok_or("no limits")?,
        },
        "limits" => Fact::Limits {
            mch_id: raw.mch_id,
            limits: raw.limits.ok_or("no limits")?,
            until_ms: raw.until_ms,
        },
        _ => Fact::Other,
    };
    // What people wrote. Numbers of merchants and channels are numbers: one in ten
    // looks like a card's by chance.
    let texts = [&raw.operator, &raw.second, &raw.note];
    let card = texts.into_iter().any(|text| looks_like_card(text));
    let Raw { shard, index, term, record, at_us, sequence, .. } = raw;
    Ok(Line { shard, index, term, record, at_us, sequence, fact, card })
}

/// A payment's state by its name.
fn said(name: &str) -> State {
    match name {
        "PROCESSING" => State::Processing,
        "PAID" => State::Paid,
        "FAILED" => State::Failed,
        "CLOSED" => State::Closed,
        "MANUAL" => State::Manual,
        _ => State::None,
    }
}

/// Whether a text holds 13 to 19 digits, perhaps in groups, whose last one is the
/// check digit of the others.
fn looks_like_card(text: &str) -> bool {
    if text.len() < 13 {
        return false;
    }
    let grouped = |byte: u8| byte.is_ascii_digit() || matches!(byte, b' ' | b'-');
    text.as_bytes().split(|byte| !grouped(*byte)).any(|run| {
        let groups: Vec<&[u8]> =
            run.split(|byte| !byte.is_ascii_digit()).filter(|group| !group.is_empty()).collect();
        // A date or an amount may stand before it.
        (0..groups.len()).any(|first| {
            let mut digits = Vec::new();
            groups[first..].iter().any(|group| {
                digits.extend_from_slice(group);
                is_card(&digits)
            })
        })
    })
}

fn is_card(digits: &[u8]) -> bool {
    if !(13..=19).contains(&digits.len()) {
        return false;
    }
    let weigh = |(at, digit): (usize, &u8)| match (at % 2, u32::from(digit - b'0')) {
        (0, digit) => digit,
        (_, digit) => digit * 2 / 10 + digit * 2 % 10,
    };
    let sum: u32 = digits.iter().rev().enumerate().map(weigh).sum();
    sum > 0 && sum.is_multiple_of(10)
}

/// An operator's decision ends what it is about.
fn decided<'a>(raw: &Raw<'a>) -> Fact<'a> {
    let (ordinal, moved) = (raw.ordinal, raw.success);
    if raw.refund {
        let ending = if moved { Ending::Succeeded } else { Ending::Declined };
        Fact::RefundEnd { ordinal, ending }
    } else {
        Fact::Decided { attempt: ordinal, moved }
    }
}

/// Where lines come from; can be read more than once.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Files with the output of `payswitch log dump`.
    File {
        /// Records.
        records: PathBuf,
        /// Frames (`--frames`): what tells a block from the one that replaced it. Needed
        /// when there are several sites.
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
    /// Whether its frames can be read.
    pub(crate) fn has_frames(&self) -> bool {
        matches!(self, Self::Dump { .. } | Self::File { frames: Some(_), .. })
    }

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
                let mut child = apart(&mut Command::new(payswitch))
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
        let expected = Fact::End { attempt, ending, goes_on: true, said: State::None };
        assert_eq!(parse(end).unwrap().fact, expected);
        let refund = r#"{"shard":11,"index":335,"term":1,"record":0,"at_us":5,"kind":"refund","sequence":1,"ordinal":1,"attempt":1,"amount":6455,"out_refund_no":"R1"}"#;
        assert!(matches!(parse(refund).unwrap().fact, Fact::Refund { amount: 6455, .. }));
        let merchant = r#"{"shard":0,"index":1,"term":1,"record":0,"at_us":1,"kind":"merchant","operator":"boot\"strap","mch_id":"M1","status":"Limited","keys":1,"limits":{"pay_per_minute":60,"query_per_minute":9,"refund_per_minute":9,"burst":1,"daily_cap":7,"single_max":5,"second_signature_from":0}}"#;
        let limits = Limits { pay_per_minute: 60, burst: 1, daily_cap: 7, single_max: 5 };
        let status = Status::Limited;
        let expected = Fact::Merchant { mch_id: "M1", status, limits };
        assert_eq!(parse(merchant).unwrap().fact, expected);
        let unread = r#"{"shard":0,"index":1,"term":1,"record":0,"at_us":1,"kind":"doubt","sequence":4,"attempt":1}"#;
        assert_eq!(parse(unread).unwrap().fact, Fact::Other);
        assert!(parse("{").is_err() && parse(r#"{"kind":"end"}"#).is_err());
    }

    #[test]
    fn card_numbers_in_texts_are_noticed_and_other_numbers_are_not() {
        let note = |note: &str| {
            let line = format!(
                r#"{{"shard":0,"index":1,"term":1,"record":0,"at_us":1,"kind":"decided","sequence":2,"ordinal":1,"refund":false,"success":true,"operator":"a","second":"b","note":"{note}"}}"#
            );
            parse(&line).unwrap().card
        };
        for card in ["4111111111111111", "card 4111 1111 1111 1111.", "4111-1111-1111-1111"] {
            assert!(note(card), "{card}");
            assert!(note(&format!("2026-11-26 {card} 12")), "{card}");
        }
        for other in ["4111111111111112", "411111111111", "41111111111111114111111111111111", ""] {
            assert!(!note(other), "{other}");
        }
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
        let decided = |refund: bool, success: bool| {
            let line = format!(
                r#"{{"shard":0,"index":1,"term":1,"record":0,"at_us":1,"kind":"decided","sequence":2,"ordinal":1,"refund":{refund},"success":{success},"operator":"a","second":"b","note":""}}"#
            );
            let fact = parse(&line).unwrap().fact;
            match fact {
                Fact::Decided { attempt: 1, moved } => (false, moved),
                Fact::RefundEnd { ordinal: 1, ending: Ending::Succeeded } => (true, true),
                Fact::RefundEnd { ordinal: 1, ending: Ending::Declined } => (true, false),
                other => panic!("{other:?}"),
            }
        };
        for (refund, success) in [(false, true), (false, false), (true, true), (true, false)] {
            assert_eq!(decided(refund, success), (refund, success));
        }
    }
}
