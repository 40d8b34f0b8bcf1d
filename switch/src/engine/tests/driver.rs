//! One engine with a log that commits when told, a channel that is scripted,
//! and a clock that is moved by hand.

use crate::engine::config::{ChannelConfig, EngineConfig};
use crate::engine::input::{
    AdminCommand, AdminInput, Evidence, Input, Now, Operation, OperationId, OrderInput, Origin,
    PayInput, QueryRefundInput, RefundInput, Waiter,
};
use crate::engine::merchant::{Limits, Merchant, MerchantStatus};
use crate::engine::output::{Outputs, ReplyBody, Send};
use crate::engine::weakness::Weakness;
use crate::engine::{Engine, OrderView};
use protocol::channel::{ChannelStatus, charge_number, order_digest};
use protocol::code::{Method, Scene};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use protocol::message::{OrderRef, OrderReply, RefundReply, kind};
use protocol::money::{Amount, Currency};

pub(super) const SECOND: u64 = 1_000_000;
pub(super) const START_WALL: u64 = 1_764_000_000 * SECOND;

pub(super) fn cny() -> Currency {
    Currency::new(*b"CNY").expect("letters")
}

pub(super) fn channel(number: u16) -> ChannelConfig {
    ChannelConfig {
        number,
        name: format!("channel-{number}"),
        idempotent_pay: true,
        queryable: true,
        reversible: true,
        fence_on_cancel: true,
        max_msg_life_us: 60 * SECOND,
        reply_timeout_us: 5 * SECOND,
        first_query_after_us: SECOND,
        query_plan_us: vec![SECOND, 2 * SECOND, 4 * SECOND],
        reverse_after_us: 0,
        in_doubt_alarm_us: 60 * SECOND,
        manual_after_us: 7200 * SECOND,
        in_flight_max: 1000,
        resolver_per_second: 1000,
    }
}

pub(super) fn config(channels: Vec<ChannelConfig>) -> EngineConfig {
    EngineConfig {
        shard: 3,
        sync_wait_us: 10 * SECOND,
        orders_max: 100_000,
        waiters_per_order_max: 4,
        refunds_per_order_max: 5,
        refund_window_us: 365 * 86_400 * SECOND,
        reverse_window_us: 86_400 * SECOND,
        expire_max_us: 7 * 86_400 * SECOND,
        outbox_max: 1000,
        event_retry_us: 2 * SECOND,
        event_tries_max: 3,
        gateways: vec![ShortText::new(b"gw-1").expect("short")],
        default_route: channels.iter().map(|c| c.number).collect(),
        channels,
        routes: Vec::new(),
    }
}

pub(super) fn limits() -> Limits {
    Limits {
        pay_per_minute: 60_000_000,
        query_per_minute: 60_000_000,
        refund_per_minute: 60_000_000,
        burst: 1_000_000,
        daily_cap: 0,
        single_max: 0,
        second_signature_from: 0,
    }
}

pub(super) fn merchant() -> Merchant {
    Merchant {
        mch_id: mch(),
        status: MerchantStatus::Active,
        keys: Vec::new(),
        gateways: Vec::new(),
        addresses: Vec::new(),
        limits: limits(),
    }
}

pub(super) fn mch() -> MchId {
    MchId::parse(b"shop").expect("valid")
}

pub(super) fn no(text: &str) -> OutTradeNo {
    OutTradeNo::parse(text.as_bytes()).expect("valid")
}

/// What a channel says that charged `amount`.
pub(super) fn success(send: &Send, amount: i64) -> Evidence {
    Evidence::Answered {
        status: ChannelStatus::Success,
        detail: 0,
        charge_no: send.request.charge_no,
        amount,
        currency: cny(),
        channel_ref: ShortText::EMPTY,
    }
}

pub(super) struct World {
    pub(super) config: EngineConfig,
    pub(super) engine: Engine,
    pub(super) now: Now,
    pub(super) out: Outputs,
    /// Committed blocks.
    pub(super) log: Vec<Vec<u8>>,
    pub(super) term: u64,
    asked: u64,
    /// Waiters of the next requests close to this.
    pub(super) wait_us: u64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(config(vec![channel(1)]))
    }

    pub(super) fn with(config: EngineConfig) -> Self {
        Self::weak(config, None)
    }

    pub(super) fn weak(config: EngineConfig, weakness: Option<Weakness>) -> Self {
        let mut engine = Engine::new(config.clone());
        engine.weakness = weakness;
        let mut world = Self {
            config,
            engine,
            now: Now { mono_us: SECOND, wall_us: START_WALL },
            out: Outputs::default(),
            log: Vec::new(),
            term: 1,
            asked: 0,
            wait_us: 0,
        };
        world.lead();
        world.put_merchant(merchant());
        world.settle();
        world
    }

    /// Leadership and every channel up.
    pub(super) fn lead(&mut self) {
        self.give(Input::Lead { term: self.term });
        for number in 1..=self.config.channels.len() as u16 {
            self.give(Input::ChannelUp { channel: number, up: true });
        }
    }

    pub(super) fn put_merchant(&mut self, merchant: Merchant) {
        self.give(Input::Admin(AdminInput {
            ticket: 1,
            operator: ShortText::new(b"ops").expect("short"),
            command: AdminCommand::PutMerchant { merchant, only_if_absent: false },
        }));
    }

    pub(super) fn give(&mut self, input: Input<'_>) {
        self.engine.handle(input, self.now, &mut self.out).expect("a sound block");
    }

    /// Commits and applies the open block; `false` when it is empty.
    pub(super) fn commit(&mut self) -> bool {
        if self.out.block.is_empty() {
            return false;
        }
        let block = std::mem::take(&mut self.out.block);
        self.out.block_records = 0;
        self.log.push(block.clone());
        let index = self.log.len() as u64;
        self.give(Input::Committed { index, term: self.term, block: &block });
        true
    }

    /// Commits until nothing is proposed any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..50 {
            if !self.commit() {
                return;
            }
        }
        panic!("the engine proposes without end");
    }

    /// Moves both clocks and runs what falls due on the way.
    pub(super) fn pass(&mut self, micros: u64) {
        let end = self.now.mono_us + micros;
        for _ in 0..100_000 {
            match self.engine.next_due() {
                Some(due) if due <= end => {
                    self.jump(due.max(self.now.mono_us));
                    let (before, at) = (self.out.sends.len(), self.now.mono_us);
                    self.give(Input::Tick);
                    self.settle();
                    let moved = self.engine.next_due() != Some(due);
                    if !moved && self.out.sends.len() == before {
                        assert!(at < end || due < end, "time stands still at {due}");
                        self.jump((at + 1000).min(end));
                        if at == end {
                            return;
                        }
                    }
                }
                _ => {
                    self.jump(end);
                    return;
                }
            }
        }
        panic!("ticks without end");
    }

    pub(super) fn jump(&mut self, mono_us: u64) {
        let step = mono_us.saturating_sub(self.now.mono_us);
        self.now.mono_us += step;
        self.now.wall_us += step;
    }

    pub(super) fn origin(&mut self, kind: u8) -> Origin {
        self.asked += 1;
        let waiter = Waiter { connection: 7, stream: 0, kind, correlation: self.asked };
        Origin { waiter, mch_id: mch(), gateway: 1, wait_us: self.wait_us }
    }

    pub(super) fn pay_input(&mut self, number: &str, minor: i64) -> PayInput<'static> {
        let mut fingerprint = [0; 16];
        fingerprint[..8].copy_from_slice(&minor.to_le_bytes());
        PayInput {
            origin: self.origin(kind::PAY),
            out_trade_no: no(number),
            digest: order_digest(&mch(), &no(number)),
            fingerprint,
            amount: Amount::new(minor).expect("positive"),
            currency: cny(),
            method: Method::Wallet,
            scene: Scene::App,
            time_expire_ms: (self.now.wall_us + 600 * SECOND) / 1000,
            payer_hash: 1,
            device_hash: 2,
            notify: true,
            second_signature: false,
            content: b"content",
        }
    }

    pub(super) fn pay(&mut self, number: &str, minor: i64) -> u64 {
        let pay = self.pay_input(number, minor);
        self.give(Input::Pay(pay));
        pay.origin.waiter.correlation
    }

    pub(super) fn order_input(&mut self, number: &str, kind: u8) -> OrderInput {
        OrderInput {
            origin: self.origin(kind),
            order: OrderRef::OutTradeNo(no(number)),
            digest: order_digest(&mch(), &no(number)),
            refresh: false,
        }
    }

    pub(super) fn query(&mut self, number: &str) -> OrderReply {
        let asked = self.ask_order(number);
        self.order_reply(asked).expect("queries of durable payments are answered at once")
    }

    pub(super) fn ask_order(&mut self, number: &str) -> u64 {
        let input = self.order_input(number, kind::QUERY);
        self.give(Input::Query(input));
        input.origin.waiter.correlation
    }

    pub(super) fn close(&mut self, number: &str) -> u64 {
        let input = self.order_input(number, kind::CLOSE);
        self.give(Input::Close(input));
        input.origin.waiter.correlation
    }

    pub(super) fn reverse(&mut self, number: &str) -> u64 {
        let input = self.order_input(number, kind::REVERSE);
        self.give(Input::Reverse(input));
        input.origin.waiter.correlation
    }

    pub(super) fn refund(&mut self, number: &str, refund: &str, minor: i64) -> u64 {
        let origin = self.origin(kind::REFUND);
        self.give(Input::Refund(RefundInput {
            origin,
            order: OrderRef::OutTradeNo(no(number)),
            digest: order_digest(&mch(), &no(number)),
            out_refund_no: OutRefundNo::parse(refund.as_bytes()).expect("valid"),
            amount: Amount::new(minor).expect("positive"),
            currency: cny(),
        }));
        origin.waiter.correlation
    }

    pub(super) fn query_refund(&mut self, number: &str, refund: &str) -> RefundReply {
        let asked = self.ask_refund(number, refund);
        self.refund_reply(asked).expect("queries of durable refunds are answered at once")
    }

    pub(super) fn ask_refund(&mut self, number: &str, refund: &str) -> u64 {
        let origin = self.origin(kind::QUERY_REFUND);
        self.give(Input::QueryRefund(QueryRefundInput {
            origin,
            order: OrderRef::OutTradeNo(no(number)),
            digest: order_digest(&mch(), &no(number)),
            out_refund_no: OutRefundNo::parse(refund.as_bytes()).expect("valid"),
        }));
        origin.waiter.correlation
    }

    /// The answer to a request, if there is one; taken out.
    pub(super) fn order_reply(&mut self, correlation: u64) -> Option<OrderReply> {
        match self.take_reply(correlation)? {
            ReplyBody::Order(reply) => Some(reply),
            ReplyBody::Refund(reply) => panic!("a refund reply to an order request: {reply:?}"),
        }
    }

    pub(super) fn refund_reply(&mut self, correlation: u64) -> Option<RefundReply> {
        match self.take_reply(correlation)? {
            ReplyBody::Refund(reply) => Some(reply),
            ReplyBody::Order(reply) => panic!("an order reply to a refund request: {reply:?}"),
        }
    }

    fn take_reply(&mut self, correlation: u64) -> Option<ReplyBody> {
        let at = self.out.replies.iter().position(|r| r.waiter.correlation == correlation)?;
        Some(self.out.replies.remove(at).body)
    }

    /// The oldest request to a channel, taken out; it must be this one.
    pub(super) fn sent(&mut self, operation: Operation) -> Send {
        assert!(!self.out.sends.is_empty(), "{operation:?} expected, nothing was sent");
        let send = self.out.sends.remove(0);
        assert_eq!(send.operation.operation, operation);
        send
    }

    pub(super) fn nothing_sent(&self) {
        let sent: Vec<_> = self.out.sends.iter().map(|s| s.operation).collect();
        assert!(sent.is_empty(), "unexpected: {sent:?}");
    }

    /// The channel answers a request truthfully in number, amount, currency.
    pub(super) fn answer(&mut self, send: &Send, status: ChannelStatus) {
        self.answer_as(send.operation, send, status, 0);
    }

    pub(super) fn answer_as(
        &mut self,
        operation: OperationId,
        send: &Send,
        status: ChannelStatus,
        detail: u16,
    ) {
        let evidence = Evidence::Answered {
            status,
            detail,
            charge_no: send.request.charge_no,
            amount: if status == ChannelStatus::Success { send.request.amount.minor() } else { 0 },
            currency: cny(),
            channel_ref: ShortText::new(b"ref-1").expect("short"),
        };
        self.give(Input::Evidence { operation, evidence });
        self.settle();
    }

    pub(super) fn evidence(&mut self, operation: OperationId, evidence: Evidence) {
        self.give(Input::Evidence { operation, evidence });
        self.settle();
    }

    /// An order whose charge was sent.
    pub(super) fn charged(&mut self, number: &str, minor: i64) -> Send {
        self.pay(number, minor);
        self.settle();
        self.sent(Operation::Charge)
    }

    /// Anna decides order "a", or a refund of it, with a second operator.
    pub(super) fn decide(&mut self, refund: Option<&str>, success: bool, second: &str) {
        let short = |text: &str| ShortText::new(text.as_bytes()).expect("short");
        let out_refund_no = refund.map(|no| OutRefundNo::parse(no.as_bytes()).expect("valid"));
        self.give(Input::Admin(AdminInput {
            ticket: 9,
            operator: short("anna"),
            command: AdminCommand::Decide {
                mch_id: mch(),
                out_trade_no: no("a"),
                out_refund_no,
                success,
                second: short(second),
                note: short("bill of today"),
            },
        }));
    }

    /// A paid order.
    pub(super) fn paid(&mut self, number: &str, minor: i64) -> Send {
        let asked = self.pay(number, minor);
        self.settle();
        let send = self.sent(Operation::Charge);
        self.answer(&send, ChannelStatus::Success);
        self.order_reply(asked).expect("answered");
        send
    }

    pub(super) fn view(&self, number: &str) -> OrderView {
        self.engine.order_view(&mch(), &no(number)).expect("exists")
    }

    /// A new engine from the first `blocks` blocks; not leading.
    pub(super) fn replay(&self, blocks: usize) -> Engine {
        let mut engine = Engine::new(self.config.clone());
        engine.weakness = self.engine.weakness;
        let mut out = Outputs::default();
        for (at, block) in self.log[..blocks].iter().enumerate() {
            engine
                .apply(at as u64 + 1, self.term, block, Now::default(), &mut out)
                .expect("a sound block");
        }
        assert!(out.replies.is_empty() && out.sends.is_empty() && out.events.is_empty());
        assert!(out.block.is_empty() && out.alarms.is_empty() && out.admin.is_empty());
        engine
    }

    /// The process dies and comes back with the first `blocks` blocks.
    pub(super) fn crash_at(&mut self, blocks: usize) {
        self.engine = self.replay(blocks);
        self.log.truncate(blocks);
        self.out = Outputs::default();
        self.term += 1;
        self.jump(self.now.mono_us + SECOND);
        self.lead();
        self.settle();
    }

    /// Leader and follower hold the same state.
    pub(super) fn assert_follower_agrees(&self) {
        assert!(self.out.block.is_empty(), "compare only when nothing is proposed");
        let follower = self.replay(self.log.len());
        assert_eq!(self.engine.state_hash(), follower.state_hash());
    }
}

pub(super) fn charge_no(number: &str, attempt: u8) -> protocol::id::ChannelNo {
    charge_number(&order_digest(&mch(), &no(number)), attempt)
}
