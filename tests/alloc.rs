//! No allocation per payment in codec and engine after warm-up (the log's own
//! test is in `storage/tests/alloc.rs`). A program of its own: nothing else may
//! allocate beside the measurement.
#![allow(unsafe_code, reason = "a counting allocator must implement GlobalAlloc")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::channel::{ChannelStatus, charge_number, order_digest};
use protocol::code::{Method, Scene};
use protocol::id::{MchId, OutTradeNo, ShortText};
use protocol::message::{Auth, Pay, Tags, kind};
use protocol::money::{Amount, Currency};
use protocol::sign::{MerchantKey, SigningKey};
use switch::engine::config::{ChannelConfig, EngineConfig};
use switch::engine::input::{
    AdminCommand, AdminInput, Evidence, Operation, OperationId, Origin, PayInput, Waiter,
};
use switch::engine::merchant::{Limits, Merchant, MerchantStatus};
use switch::engine::{Engine, Input, Now, Outputs};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BATCH: u64 = 64;
const WARM_UP: u64 = 1_000;
const MEASURED: u64 = 500;

fn config() -> EngineConfig {
    let channel = ChannelConfig {
        number: 1,
        name: "native-1".into(),
        idempotent_pay: true,
        queryable: true,
        reversible: true,
        fence_on_cancel: true,
        max_msg_life_us: 0,
        reply_timeout_us: 5_000_000,
        first_query_after_us: 1_000_000,
        query_plan_us: vec![1_000_000],
        reverse_after_us: 0,
        in_doubt_alarm_us: 60_000_000,
        manual_after_us: 7_200_000_000,
        in_flight_max: 100_000,
        resolver_per_second: 1_000,
    };
    EngineConfig {
        shard: 0,
        sync_wait_us: 5_000_000,
        orders_max: 1_000_000,
        waiters_per_order_max: 4,
        refunds_per_order_max: 50,
        refund_window_us: u64::MAX / 4,
        reverse_window_us: u64::MAX / 4,
        expire_max_us: 7 * 86_400_000_000,
        outbox_max: 1_000,
        event_retry_us: 1_000_000,
        event_tries_max: 15,
        gateways: Vec::new(),
        channels: vec![channel],
        routes: Vec::new(),
        default_route: vec![1],
    }
}

fn merchant(mch_id: MchId) -> Merchant {
    let limits = Limits {
        pay_per_minute: 100_000_000,
        query_per_minute: 100_000_000,
        refund_per_minute: 100_000_000,
        burst: 10_000_000,
        daily_cap: 0,
        single_max: 0,
        second_signature_from: 0,
    };
    Merchant {
        mch_id,
        status: MerchantStatus::Active,
        keys: Vec::new(),
        gateways: Vec::new(),
        addresses: Vec::new(),
        limits,
    }
}

/// One shard with its buffers, driven as a worker drives it.
struct Bench {
    engine: Engine,
    out: Outputs,
    block: Vec<u8>,
    index: u64,
    now: Now,
    mch_id: MchId,
    key: MerchantKey,
    signing: SigningKey,
    frame: Vec<u8>,
    canonical: Vec<u8>,
    next: u64,
}

impl Bench {
    fn commit(&mut self) {
        std::mem::swap(&mut self.block, &mut self.out.block);
        self.out.block_records = 0;
        self.index += 1;
        let input = Input::Committed { index: self.index, term: 1, block: &self.block };
        self.engine.handle(input, self.now, &mut self.out).expect("it applies");
        self.block.clear();
    }

    fn pay(&mut self, number: u64) {
        let mut digits = *b"N000000000000";
        let mut rest = number;
        for digit in digits[1..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let request = Pay {
            mch_id: self.mch_id,
            out_trade_no: OutTradeNo::parse(&digits).expect("a number"),
            amount: Amount::new(100).expect("an amount"),
            currency: Currency::new(*b"CNY").expect("a currency"),
            method: Method::Wallet,
            scene: Scene::App,
            payer_token: b"tok",
            device_id: b"",
            client_ip: [0; 16],
            time_expire_ms: self.now.wall_us / 1000 + 600_000,
            notify: b"",
            wait_ms: 0,
            tags: Tags::default(),
            auth: Auth { key_id: 1, timestamp_ms: 1, nonce: number, signature: &[] },
            second: Auth::NONE,
        };
        self.canonical.clear();
        request.canonical(&mut self.canonical);
        let mut signature = [0; 64];
        let len = self.signing.sign(&self.canonical, &mut signature);
        self.frame.clear();
        let auth = Auth { signature: &signature[..len], ..request.auth };
        Pay { auth, ..request }.encode(&mut self.frame);

        let pay = Pay::decode(&self.frame).expect("it decodes");
        self.canonical.clear();
        pay.canonical(&mut self.canonical);
        assert!(self.key.verify(&self.canonical, pay.auth.signature));
        let waiter = Waiter { kind: kind::PAY, correlation: number, ..Waiter::default() };
        let input = PayInput {
            origin: Origin { waiter, mch_id: pay.mch_id, gateway: 1, wait_us: 0 },
            out_trade_no: pay.out_trade_no,
            digest: order_digest(&pay.mch_id, &pay.out_trade_no),
            fingerprint: pay.fingerprint(),
            amount: pay.amount,
            currency: pay.currency,
            method: pay.method,
            scene: pay.scene,
            time_expire_ms: pay.time_expire_ms,
            payer_hash: 1,
            device_hash: 0,
            notify: false,
            second_signature: false,
            content: b"",
        };
        self.engine.handle(Input::Pay(input), self.now, &mut self.out).expect("no block");
    }

    /// A batch of payments from frame to answer.
    fn batch(&mut self) {
        self.now.mono_us += 1_000;
        self.now.wall_us += 1_000;
        let first = self.next;
        self.next += BATCH;
        for number in first..self.next {
            self.pay(number);
        }
        self.commit();
        assert_eq!(self.out.sends.len() as u64, BATCH);
        for at in 0..self.out.sends.len() {
            let send = self.out.sends[at];
            let evidence = Evidence::Answered {
                status: ChannelStatus::Success,
                detail: 0,
                charge_no: send.request.charge_no,
                amount: 100,
                currency: send.request.currency,
                channel_ref: ShortText::EMPTY,
            };
            let input = Input::Evidence { operation: send.operation, evidence };
            self.engine.handle(input, self.now, &mut self.out).expect("no block");
        }
        self.out.sends.clear();
        self.commit();
        assert_eq!(self.out.replies.len() as u64, BATCH);
        self.frame.clear();
        for reply in self.out.replies.drain(..) {
            if let switch::engine::output::ReplyBody::Order(body) = reply.body {
                self.frame.clear();
                body.encode_frame(
                    kind::PAY | kind::REPLY,
                    reply.waiter.correlation,
                    &mut self.frame,
                );
            }
        }
        self.engine.handle(Input::Tick, self.now, &mut self.out).expect("no block");
    }
}

fn main() {
    let mch_id = MchId::parse(b"M1").expect("an id");
    let mut bench = Bench {
        engine: Engine::new(config()),
        out: Outputs::default(),
        block: Vec::new(),
        index: 0,
        now: Now { mono_us: 1_000, wall_us: 1_700_000_000_000_000 },
        mch_id,
        key: MerchantKey::hmac(b"secret"),
        signing: SigningKey::hmac(b"secret"),
        frame: Vec::with_capacity(4096),
        canonical: Vec::with_capacity(4096),
        next: 0,
    };
    let command = AdminCommand::PutMerchant { merchant: merchant(mch_id), only_if_absent: false };
    let admin = AdminInput { ticket: 1, operator: ShortText::EMPTY, command };
    let mut handle = |input: Input<'_>| {
        bench.engine.handle(input, bench.now, &mut bench.out).expect("no block");
    };
    handle(Input::Lead { term: 1 });
    handle(Input::ChannelUp { channel: 1, up: true });
    handle(Input::Admin(admin));
    bench.commit();
    let known = OperationId { shard: 0, sequence: 1, operation: Operation::Charge, ordinal: 1 };
    assert_eq!(OperationId::unpack(known.pack()), Some(known));
    assert_ne!(charge_number(&[1; 16], 1), charge_number(&[1; 16], 2));

    for _ in 0..WARM_UP {
        bench.batch();
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..MEASURED {
        bench.batch();
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let payments = MEASURED * BATCH;
    println!("{allocations} allocations for {payments} payments");
    // What is left is the tables' growth: chunks and index tables by the thousand.
    assert!(allocations * 100 < payments, "{allocations} allocations for {payments} payments");
    println!("test result: ok. 1 passed; 0 failed");
}
