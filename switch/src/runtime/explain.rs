//! A payment's time line: its state from the engine, its records from the log.

use std::path::Path;

use protocol::id::{MchId, OutTradeNo};

use super::clock;
use crate::admin::api::{Explain, ExplainRecord, InDoubt};
use crate::engine::record::{Record, Records, Stamped};
use crate::engine::{Engine, OrderView};

/// The payment as the engine holds it.
pub fn view(engine: &Engine, mch_id: &MchId, out_trade_no: &OutTradeNo) -> Option<OrderView> {
    engine.order_view(mch_id, out_trade_no)
}

/// What is in doubt or in front of an operator.
pub fn in_doubt(engine: &Engine, limit: usize) -> Vec<InDoubt> {
    let now = clock::now();
    let item = |doubt: crate::engine::DoubtView| {
        let since = if doubt.monotonic { now.mono_us } else { now.wall_us };
        InDoubt {
            mch_id: doubt.order.mch_id.to_string(),
            out_trade_no: doubt.order.out_trade_no.to_string(),
            transaction_id: doubt.order.transaction_id.to_string(),
            shard: engine.shard(),
            state: doubt.state.into(),
            channel: doubt.channel.to_string(),
            amount: doubt.order.amount,
            currency: doubt.order.currency.to_string(),
            age_s: since.saturating_sub(doubt.since_us) / 1_000_000,
        }
    };
    engine.doubt_views(limit).into_iter().map(item).collect()
}

/// Reads the log for the payment's records.
///
/// # Errors
/// What is wrong with the log, for people.
pub fn time_line(log_dir: &Path, view: OrderView) -> Result<Explain, String> {
    let shard = view.transaction_id.shard();
    let mut records: Vec<ExplainRecord> = Vec::new();
    let mut starts_with_begin = false;
    let report = storage::read(log_dir, &mut |at| {
        let frame = at.frame;
        if frame.kind != storage::FrameKind::Block || frame.shard != shard {
            return;
        }
        // The engine has applied these very blocks: they can be read.
        for stamped in Records::new(frame.payload).into_iter().flatten().flatten() {
            if stamped.record.sequence() == Some(view.sequence) {
                starts_with_begin |=
                    records.is_empty() && matches!(stamped.record, Record::Begin(_));
                records.push(line(frame.index, frame.term, &stamped));
            }
        }
    })
    .map_err(|error| error.to_string())?;
    Ok(Explain {
        mch_id: view.mch_id.to_string(),
        out_trade_no: view.out_trade_no.to_string(),
        transaction_id: view.transaction_id.to_string(),
        shard,
        state: view.state.name().into(),
        reason: view.reason.name().into(),
        amount: view.amount,
        currency: view.currency.to_string(),
        refunded: view.refunded,
        reserved: view.reserved,
        // Its segments were given up: the state is out of a checkpoint.
        beginning_gone: !starts_with_begin || report.missed > 0,
        records,
    })
}

fn line(index: u64, term: u64, stamped: &Stamped<'_>) -> ExplainRecord {
    let mut text = String::new();
    stamped.to_json(&mut text);
    ExplainRecord {
        index,
        term,
        at_ms: stamped.at_us / 1000,
        kind: stamped.record.name().into(),
        text,
    }
}
