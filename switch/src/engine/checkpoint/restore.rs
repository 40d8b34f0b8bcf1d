//! A checkpoint read back: every length, number and relation is checked, so that
//! nothing but a whole and unaltered checkpoint becomes a state.

use super::{CHUNK_BYTES_MAX, HEADER_LEN, Kind, MAGIC, SUMMED_LEN, VERSION, sum_of};
use crate::engine::directory::{Entry, Temporary};
use crate::engine::limit::{DailySum, Gcra, Usage};
use crate::engine::order::{
    Attempt, AttemptState, CancelCause, Class, EarlierAttempt, Live, Order, Refund, RefundKind,
};
use crate::engine::outbox::Held;
use crate::engine::record::{Body, read_limits, read_merchant};
use crate::engine::slab::NIL;
use crate::engine::{Engine, EngineConfig};
use protocol::code::{Method, OrderState, RefundState, Scene};
use protocol::id::{OutRefundNo, OutTradeNo};
use protocol::money::Currency;

/// Why a checkpoint is refused. Nothing of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A chunk without a header, or whose length differs from it.
    #[error("chunk {chunk} is cut short, too long, or no chunk of a checkpoint")]
    Chunk {
        /// Chunk, counted from 0.
        chunk: u32,
    },
    /// A version that this program does not know.
    #[error("checkpoint of unknown version {0}")]
    Version(u16),
    /// Another shard's, or of another index than the chunks before.
    #[error("chunk {chunk} belongs to another checkpoint")]
    Foreign {
        /// Chunk.
        chunk: u32,
    },
    /// Its sum does not follow from the chunks before.
    #[error("chunk {chunk} was altered, or does not follow")]
    Altered {
        /// Chunk.
        chunk: u32,
    },
    /// An item that cannot be.
    #[error("chunk {chunk} holds an item that cannot be read")]
    Item {
        /// Chunk.
        chunk: u32,
    },
    /// The end came too early, or never.
    #[error("checkpoint is not complete")]
    Incomplete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Items,
    Ended,
    Failed,
}

/// A state that is being restored, chunk by chunk.
pub struct Restore {
    engine: Engine,
    stage: Stage,
    number: u32,
    sum: [u8; 32],
    merchants: u32,
    /// Payments that the head promises.
    payments: u64,
}

impl Restore {
    /// Nothing restored yet.
    pub fn new(config: EngineConfig) -> Self {
        let engine = Engine::new(config);
        Self { engine, stage: Stage::Head, number: 0, sum: [0; 32], merchants: 0, payments: 0 }
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// [`RestoreError`]; all later calls fail too.
    pub fn chunk(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        let taken = self.take(chunk);
        match taken {
            Ok(()) => self.number += 1,
            Err(_) => self.stage = Stage::Failed,
        }
        taken
    }

    /// Whether the last chunk was taken.
    pub fn is_complete(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// The restored engine.
    ///
    /// # Errors
    /// [`RestoreError::Incomplete`] unless the last chunk was taken.
    pub fn finish(self) -> Result<Engine, RestoreError> {
        if self.is_complete() { Ok(self.engine) } else { Err(RestoreError::Incomplete) }
    }

    fn take(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        let number = self.number;
        let (header, body) =
            chunk.split_first_chunk::<HEADER_LEN>().ok_or(RestoreError::Chunk { chunk: number })?;
        let mut fields = Body(&header[..SUMMED_LEN]);
        let read = (|| {
            let magic = fields.array::<4>()?;
            let version = fields.u16()?;
            let [kind, zero] = fields.array()?;
            let (shard, zeros) = (fields.u16()?, fields.u16()?);
            let (nth, applied) = (fields.u32()?, fields.u64()?);
            let (bytes, items) = (fields.u32()?, fields.u32()?);
            (magic == MAGIC)
                .then_some((version, kind, zero, shard, zeros, nth, applied, bytes, items))
        })();
        let Some((version, kind, zero, shard, zeros, nth, applied, bytes, items)) = read else {
            return Err(RestoreError::Chunk { chunk: number });
        };
        if version != VERSION {
            return Err(RestoreError::Version(version));
        }
        if bytes as usize != body.len() || chunk.len() > CHUNK_BYTES_MAX || zero != 0 || zeros != 0
        {
            return Err(RestoreError::Chunk { chunk: number });
        }
        let first = self.stage == Stage::Head;
        if shard != self.engine.config.shard || !first && applied != self.engine.applied {
            return Err(RestoreError::Foreign { chunk: number });
        }
        let sum = sum_of(&self.sum, chunk);
        if nth != number || sum != header[SUMMED_LEN..] {
            return Err(RestoreError::Altered { chunk: number });
        }
        (self.sum, self.engine.applied) = (sum, applied);
        self.items(kind, items, body)
    }

    fn items(&mut self, kind: u8, items: u32, body: &[u8]) -> Result<(), RestoreError> {
        let bad = RestoreError::Item { chunk: self.number };
        let mut b = Body(body);
        let known = |of: Kind| kind == of as u8;
        match self.stage {
            Stage::Head if known(Kind::Head) && items == 1 => {
                self.head(&mut b).ok_or(bad)?;
                self.stage = Stage::Items;
            }
            Stage::Items if known(Kind::Merchants) => {
                for _ in 0..items {
                    self.merchant(&mut b).ok_or(bad)?;
                }
            }
            Stage::Items if known(Kind::Payments) => {
                for _ in 0..items {
                    self.payment(&mut b).ok_or(bad)?;
                }
            }
            Stage::Items if known(Kind::End) && items == 0 => {
                let merchants = self.engine.merchants.entries().len();
                if self.engine.orders.committed - 1 != self.payments
                    || merchants != self.merchants as usize
                {
                    return Err(RestoreError::Incomplete);
                }
                self.stage = Stage::Ended;
            }
            _ => return Err(bad),
        }
        if b.0.is_empty() { Ok(()) } else { Err(bad) }
    }

    fn head(&mut self, b: &mut Body<'_>) -> Option<()> {
        self.payments = b.u64()?;
        self.merchants = b.u32()?;
        let counters = &mut self.engine.counters;
        counters.ignored_records = b.u64()?;
        counters.manual_attempts = b.u64()?;
        counters.manual_refunds = b.u64()?;
        self.engine.drained = b.u64()?;
        Some(())
    }

    fn merchant(&mut self, b: &mut Body<'_>) -> Option<()> {
        let merchant = read_merchant(b)?;
        let temporary = match b.u8()? {
            0 => None,
            1 => Some(Temporary { before: read_limits(b)?, until_ms: b.u64()? }),
            _ => return None,
        };
        let applied = Usage {
            pay: Gcra { tat_ns: b.u64()? },
            refund: Gcra { tat_ns: b.u64()? },
            daily: DailySum { day: b.u64()?, sum: b.i64()? },
        };
        let entry = Entry::restored(merchant, temporary, applied);
        self.engine.merchants.add(entry)
    }

    fn payment(&mut self, b: &mut Body<'_>) -> Option<()> {
        let sequence = self.engine.orders.committed;
        let mut order = read_order(b)?;
        let known = self.engine.merchants.entries().len();
        let taken = order.refunded.checked_add(order.reserved)?;
        let sound = (order.merchant as usize) < known
            && order.amount > 0
            && order.refunded >= 0
            && order.reserved >= 0
            && taken <= order.amount
            && sequence <= self.payments;
        let orders = &mut self.engine.orders;
        if !sound || orders.find(&order.digest, order.merchant, &order.out_trade_no).is_some() {
            return None;
        }
        let attempts = b.u8().filter(|count| *count > 0)?;
        for ordinal in 1..attempts {
            let attempt = read_attempt(b, ordinal)?;
            let earlier = EarlierAttempt { attempt, next: order.earlier };
            order.earlier = orders.earlier.insert(earlier);
        }
        order.attempt = read_attempt(b, attempts)?;
        let events = order.events;
        let pushed = orders.push(order);
        debug_assert_eq!(pushed, sequence);
        orders.committed += 1;
        let mut places = Vec::new();
        for _ in 0..b.u16()? {
            let refund = read_refund(b, sequence)?;
            if !(1..=attempts).contains(&refund.attempt) || refund.amount <= 0 {
                return None;
            }
            // Ordinals end at 255: the count of the merchant's is one of them.
            if places.len() >= usize::from(u8::MAX) {
                return None;
            }
            places.push(orders.add_refund(refund));
        }
        orders.settle_busy(sequence);
        for _ in 0..b.u16()? {
            let held = read_event(b, sequence, &places)?;
            if !(1..=events).contains(&held.number) || !self.engine.outbox.put(held) {
                return None;
            }
        }
        Some(())
    }
}

fn read_order(b: &mut Body<'_>) -> Option<Order> {
    Some(Order {
        digest: b.array()?,
        fingerprint: b.array()?,
        amount: b.i64()?,
        refunded: b.i64()?,
        reserved: b.i64()?,
        time_expire_ms: b.u64()?,
        created_ms: b.u64()?,
        finished_ms: b.u64()?,
        merchant: b.u32()?,
        events: b.u32()?,
        gateway: b.u16()?,
        reason: b.reason()?,
        currency: Currency::new(b.array()?)?,
        method: Method::from_wire(b.u8()?)?,
        scene: Scene::from_wire(b.u8()?)?,
        state: OrderState::from_wire(b.u8()?)?,
        cancel: CancelCause::from_wire(b.u8()?)?,
        notify: flag(b)?,
        out_trade_no: OutTradeNo::parse(b.text()?).ok()?,
        earlier: NIL,
        refunds: NIL,
        refund_count: 0,
        attempt: crate::engine::admit::new_attempt(1, 0),
        live: Live::NONE,
    })
}

fn read_attempt(b: &mut Body<'_>, ordinal: u8) -> Option<Attempt> {
    let (state, class) = (AttemptState::from_wire(b.u8()?)?, Class::from_wire(b.u8()?)?);
    let flags = b.u8()?;
    let attempt = Attempt {
        state,
        class,
        noted: flags & 1 != 0,
        reversal_started: flags & 2 != 0,
        channel: b.u16()?,
        reason: b.reason()?,
        channel_ref: b.short()?,
        ordinal,
    };
    (flags & !3 == 0).then_some(attempt)
}

fn read_refund(b: &mut Body<'_>, sequence: u64) -> Option<Refund> {
    Some(Refund {
        sequence,
        amount: b.i64()?,
        created_ms: b.u64()?,
        finished_ms: b.u64()?,
        reason: b.reason()?,
        kind: RefundKind::from_wire(b.u8()?)?,
        state: RefundState::from_wire(b.u8()?)?,
        ordinal: b.u8()?,
        attempt: b.u8()?,
        out_refund_no: OutRefundNo::parse(b.text()?).ok()?,
        channel_ref: b.short()?,
        next: NIL,
        proposed: false,
        ending: false,
        case: NIL,
        waiters: NIL,
        waiter_count: 0,
    })
}

fn read_event(b: &mut Body<'_>, payment: u64, refunds: &[u32]) -> Option<Held> {
    let (number, at_ms, reason) = (b.u32()?, b.u64()?, b.reason()?);
    let refund = match b.u16()? {
        0 => None,
        nth => Some(*refunds.get(usize::from(nth) - 1)?),
    };
    let (state, refund_state) = (OrderState::from_wire(b.u8()?)?, RefundState::from_wire(b.u8()?)?);
    Some(Held::new(payment, number, (state, reason), refund, refund_state, at_ms))
}

fn flag(b: &mut Body<'_>) -> Option<bool> {
    match b.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
