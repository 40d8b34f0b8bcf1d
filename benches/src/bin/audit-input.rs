//! Writes the logs of an imagined cluster from the records that `loadgen history`
//! prints, through the switch's own encoders and log:
//!
//! `loadgen history --payments 10000000 --dir DIR | audit-input DIR [SITES] [WORKERS]`
//!
//! makes `DIR/data/site-1/worker-0` and so on, all sites holding the same blocks.

use protocol::channel::order_digest;
use protocol::code::{Method, OrderState, Reason, RefundState, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use protocol::money::{Amount, Currency};
use std::collections::HashMap;
use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;
use storage::{Backend, FRAME_HEADER_BYTES, Frame, FrameKind, Log, LogConfig, Notify, chain_next};
use switch::engine::order::{AttemptState, CancelCause, Class, RefundKind};
use switch::engine::record::{
    Begin, CancelStart, NextAttempt, Outcome, Record, RefundOutcome, RefundStart,
};
use switch::replica::HardState;

/// Records of a block: what a busy shard writes at once.
const BLOCK_RECORDS: usize = 64;
/// Shards at most; as `loadgen history` allows.
const SHARDS_MAX: u16 = 4096;
const CLUSTER: u64 = 1;
const TERM: u64 = 1;

type Fault = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("audit-input: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Fault> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("audit-input DIR [SITES] [WORKERS]")?;
    let mut number = |default| args.next().map_or(Ok(default), |text| text.parse::<u16>());
    let (sites, workers) = (number(1)?, number(2)?);
    if !(1..=7).contains(&sites) || !(1..=64).contains(&workers) {
        return Err("1 to 7 sites, 1 to 64 workers".into());
    }
    let mut cluster = Cluster::create(Path::new(&dir), sites, workers)?;
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line?;
        cluster.take(&line).ok_or_else(|| format!("line {}: {line:?}", number + 1))??;
    }
    cluster.close()
}

/// A shard's block in the making.
#[derive(Default)]
struct Shard {
    block: Vec<u8>,
    records: usize,
    index: u64,
    chain: [u8; 32],
}

struct Cluster {
    /// By site and worker.
    logs: Vec<Vec<(Log, Notify)>>,
    shards: HashMap<u16, Shard>,
}

impl Cluster {
    fn create(dir: &Path, sites: u16, workers: u16) -> Result<Self, Fault> {
        let open = |site: u16, worker: u16| -> Result<(Log, Notify), Fault> {
            let dir = dir.join(format!("data/site-{}/worker-{worker}", site + 1));
            let config = LogConfig {
                backend: Backend::Blocking,
                reserve_bytes: 0,
                ..LogConfig::new(dir, CLUSTER, worker)
            };
            let notify = Notify::new()?;
            let (log, _) = Log::open(config, notify.clone(), &mut |_| Ok(()))?;
            Ok((log, notify))
        };
        let site = |site| (0..workers).map(|worker| open(site, worker)).collect();
        let logs = (0..sites).map(site).collect::<Result<_, _>>()?;
        Ok(Self { logs, shards: HashMap::new() })
    }

    /// Takes a line; `None` when it is none of `loadgen history`.
    fn take(&mut self, line: &str) -> Option<Result<(), Fault>> {
        let mut fields = Fields(line.split(' '));
        let kind = fields.next()?;
        let (shard, sequence, at_us) = (fields.number()?, fields.number()?, fields.number()?);
        let shard = u16::try_from(shard).ok().filter(|shard| *shard < SHARDS_MAX)?;
        let record = record(kind, sequence, &mut fields)?;
        let state = self.shards.entry(shard).or_default();
        record.append(at_us, &mut state.block);
        state.records += 1;
        let full = state.records >= BLOCK_RECORDS;
        Some(if full { self.write(shard) } else { Ok(()) })
    }

    /// Appends a shard's block to the logs of all sites.
    fn write(&mut self, shard: u16) -> Result<(), Fault> {
        let Some(state) = self.shards.get_mut(&shard) else { return Ok(()) };
        let payload = std::mem::take(&mut state.block);
        state.records = 0;
        state.index += 1;
        state.chain = chain_next(&state.chain, &payload);
        let (kind, index, chain) = (FrameKind::Block, state.index, state.chain);
        let frame = Frame { kind, shard, term: TERM, index, chain, payload: &payload };
        for site in &mut self.logs {
            let worker = usize::from(shard) % site.len();
            append(&mut site[worker], &frame)?;
        }
        Ok(())
    }

    fn close(mut self) -> Result<(), Fault> {
        let mut shards: Vec<u16> = self.shards.keys().copied().collect();
        shards.sort_unstable();
        for shard in shards {
            if self.shards[&shard].records > 0 {
                self.write(shard)?;
            }
            let commit = self.shards[&shard].index;
            let payload = HardState { term: TERM, vote: 1, commit }.encode();
            let (kind, chain) = (FrameKind::HardState, [0; 32]);
            let frame = Frame { kind, shard, term: TERM, index: 0, chain, payload: &payload };
            for site in &mut self.logs {
                let worker = usize::from(shard) % site.len();
                append(&mut site[worker], &frame)?;
            }
        }
        for (log, _) in self.logs.into_iter().flatten() {
            log.close()?;
        }
        Ok(())
    }
}

/// Appends a frame, writing the batch before it when there is no room.
fn append((log, notify): &mut (Log, Notify), frame: &Frame<'_>) -> Result<(), Fault> {
    if log.room() < FRAME_HEADER_BYTES + frame.payload.len() {
        // One write is in flight at a time: the last one ends first.
        while log.in_flight() && log.poll()?.is_none() {
            notify.wait(100_000);
        }
        while !log.submit()? {
            notify.wait(100_000);
        }
    }
    log.append(frame)?;
    Ok(())
}

/// The fields of a line.
struct Fields<'a>(std::str::Split<'a, char>);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn number(&mut self) -> Option<u64> {
        self.next()?.parse().ok()
    }

    fn small(&mut self) -> Option<u8> {
        self.next()?.parse().ok()
    }

    fn amount(&mut self) -> Option<Amount> {
        Amount::new(self.next()?.parse().ok()?)
    }
}

fn record<'a>(kind: &str, sequence: u64, fields: &mut Fields<'a>) -> Option<Record<'a>> {
    Some(match kind {
        "B" => {
            let mch_id = MchId::parse(fields.next()?.as_bytes()).ok()?;
            let out_trade_no = OutTradeNo::parse(fields.next()?.as_bytes()).ok()?;
            Record::Begin(begin(sequence, mch_id, out_trade_no, fields.amount()?)?)
        }
        "A" => Record::NextAttempt(NextAttempt { sequence, ordinal: fields.small()?, channel: 1 }),
        "E" => Record::Outcome(outcome(sequence, fields)?),
        "X" => Record::CancelStart(CancelStart {
            sequence,
            attempt: fields.small()?,
            cause: CancelCause::Merchant,
            reversing: true,
            counted: true,
        }),
        "F" => Record::RefundStart(RefundStart {
            sequence,
            ordinal: fields.small()?,
            kind: RefundKind::Merchant,
            attempt: fields.small()?,
            amount: fields.amount()?,
            out_refund_no: OutRefundNo::parse(fields.next()?.as_bytes()).ok()?,
            counted: true,
        }),
        "G" => Record::RefundOutcome(RefundOutcome {
            sequence,
            ordinal: fields.small()?,
            class: Class::Success,
            state: RefundState::Success,
            reason: Reason::None,
            channel_ref: reference(sequence)?,
        }),
        _ => return None,
    })
}

/// A channel's reference has 16 digits or so.
fn reference(sequence: u64) -> Option<ShortText> {
    ShortText::new(format!("R{sequence:015x}").as_bytes())
}

fn begin<'a>(
    sequence: u64,
    mch_id: MchId,
    out_trade_no: OutTradeNo,
    amount: Amount,
) -> Option<Begin<'a>> {
    let digest = order_digest(&mch_id, &out_trade_no);
    Some(Begin {
        sequence,
        mch_id,
        out_trade_no,
        digest,
        fingerprint: digest,
        amount,
        currency: Currency::new(*b"CNY")?,
        method: Method::Wallet,
        scene: Scene::App,
        channel: 1,
        gateway: 1,
        time_expire_ms: 1_760_300_000_000,
        payer_hash: sequence,
        device_hash: 0,
        notify: false,
        second_signature: false,
        // As long as the rest of a generated payment's content.
        content: &[0; 32],
    })
}

fn outcome(sequence: u64, fields: &mut Fields<'_>) -> Option<Outcome> {
    let attempt = fields.small()?;
    let (class, attempt_state) = match fields.next()? {
        "succeeded" => (Class::Success, AttemptState::Succeeded),
        "declined" => (Class::Declined, AttemptState::Declined),
        "reversed" => (Class::Reversed, AttemptState::Void),
        _ => return None,
    };
    let name = fields.next()?;
    let order_state = OrderState::ALL.iter().copied().find(|state| state.name() == name)?;
    Some(Outcome {
        sequence,
        attempt,
        cancel_result: class == Class::Reversed,
        class,
        attempt_state,
        order_state,
        reason: Reason::None,
        amount: 0,
        channel_ref: reference(sequence)?,
    })
}
