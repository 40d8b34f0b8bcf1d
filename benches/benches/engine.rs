//! The engine alone: what one payment costs on the leader, and what replaying
//! its records costs on a follower. No I/O, no codec of the wire.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use protocol::channel::ChannelStatus;
use protocol::code::{Method, Scene};
use protocol::id::{MchId, OutTradeNo, ShortText};
use protocol::message::kind;
use protocol::money::{Amount, Currency};
use std::hint::black_box;
use std::time::{Duration, Instant};
use switch::engine::config::{ChannelConfig, EngineConfig};
use switch::engine::input::{AdminCommand, AdminInput, Evidence, Origin, PayInput, Waiter};
use switch::engine::merchant::{Limits, Merchant, MerchantStatus};
use switch::engine::{Engine, Input, Now, Outputs, Slice};

/// Payments per block, as a busy worker batches them.
const BATCH: u64 = 64;
const SECOND: u64 = 1_000_000;

fn config() -> EngineConfig {
    EngineConfig {
        shard: 0,
        sync_wait_us: 5 * SECOND,
        orders_max: u64::MAX,
        waiters_per_order_max: 4,
        refunds_per_order_max: 50,
        refund_window_us: 365 * 86_400 * SECOND,
        reverse_window_us: 86_400 * SECOND,
        expire_max_us: 7 * 86_400 * SECOND,
        outbox_max: 1 << 20,
        event_retry_us: 5 * SECOND,
        event_tries_max: 10,
        gateways: Vec::new(),
        channels: vec![ChannelConfig {
            number: 1,
            name: "native".into(),
            idempotent_pay: true,
            queryable: true,
            reversible: true,
            fence_on_cancel: true,
            max_msg_life_us: 60 * SECOND,
            reply_timeout_us: 5 * SECOND,
            first_query_after_us: SECOND,
            query_plan_us: vec![SECOND],
            reverse_after_us: 0,
            in_doubt_alarm_us: 60 * SECOND,
            manual_after_us: 7200 * SECOND,
            in_flight_max: 1 << 20,
            resolver_per_second: 500,
        }],
        routes: Vec::new(),
        default_route: vec![1],
    }
}

fn merchant(at: u64) -> MchId {
    MchId::parse(format!("merchant-{at}").as_bytes()).expect("valid")
}

const MERCHANTS: u64 = 64;

struct Bench {
    engine: Engine,
    out: Outputs,
    now: Now,
    paid: u64,
    index: u64,
    merchants: Vec<MchId>,
    /// Committed blocks, kept when asked.
    log: Option<Vec<Vec<u8>>>,
}

impl Bench {
    fn new(keep_log: bool) -> Self {
        let mut bench = Self {
            engine: Engine::new(config()),
            out: Outputs::default(),
            now: Now { mono_us: SECOND, wall_us: 1_764_000_000 * SECOND },
            paid: 0,
            index: 0,
            merchants: (0..MERCHANTS).map(merchant).collect(),
            log: keep_log.then(Vec::new),
        };
        bench.give(Input::Lead { term: 1 });
        bench.give(Input::ChannelUp { channel: 1, up: true });
        for mch_id in bench.merchants.clone() {
            bench.give(Input::Admin(put_merchant(mch_id)));
        }
        bench.commit();
        bench
    }

    fn give(&mut self, input: Input<'_>) {
        self.engine.handle(input, self.now, &mut self.out).expect("sound");
    }

    fn commit(&mut self) {
        let mut block = std::mem::take(&mut self.out.block);
        self.index += 1;
        self.give(Input::Committed { index: self.index, term: 1, block: &block });
        if let Some(log) = &mut self.log {
            log.push(block.clone());
        }
        block.clear();
        self.out.block = block;
        self.out.block_records = 0;
    }

    /// Requests as the front hands them over: parsed, hashed.
    fn requests(&mut self) -> Vec<PayInput<'static>> {
        (0..BATCH).map(|_| self.request()).collect()
    }

    fn request(&mut self) -> PayInput<'static> {
        self.paid += 1;
        let mut digest = [0; 16];
        // Any well-mixed bytes do: the real digest is computed by the front.
        let mixed = u128::from(self.paid).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        digest.copy_from_slice(&mixed.rotate_left(64).to_be_bytes());
        let text = format!("order-{:020}", self.paid);
        let correlation = self.paid;
        PayInput {
            origin: Origin {
                waiter: Waiter { connection: 1, stream: 0, kind: kind::PAY, correlation },
                mch_id: self.merchants[(self.paid % MERCHANTS) as usize],
                gateway: 1,
                wait_us: 0,
            },
            out_trade_no: OutTradeNo::parse(text.as_bytes()).expect("valid"),
            digest,
            fingerprint: digest,
            amount: Amount::new(100).expect("positive"),
            currency: Currency::new(*b"CNY").expect("letters"),
            method: Method::Wallet,
            scene: Scene::App,
            time_expire_ms: (self.now.wall_us + 600 * SECOND) / 1000,
            payer_hash: 1,
            device_hash: 2,
            notify: false,
            second_signature: false,
            content: b"token-0123456789abcdef",
        }
    }

    fn pay(&mut self, requests: &[PayInput<'static>]) {
        for pay in requests {
            self.give(Input::Pay(*pay));
        }
        self.commit();
    }

    fn answer(&mut self) {
        let sends = std::mem::take(&mut self.out.sends);
        for send in &sends {
            let evidence = Evidence::Answered {
                status: ChannelStatus::Success,
                detail: 0,
                charge_no: send.request.charge_no,
                amount: 100,
                currency: send.request.currency,
                channel_ref: ShortText::new(b"ch-0123456789").expect("short"),
            };
            self.give(Input::Evidence { operation: send.operation, evidence });
        }
        self.out.sends = sends;
        self.out.sends.clear();
        self.commit();
        assert_eq!(self.out.replies.len(), BATCH as usize);
        black_box(&self.out.replies);
        self.out.replies.clear();
        self.now.mono_us += 300;
        self.now.wall_us += 300;
    }
}

fn put_merchant(mch_id: MchId) -> AdminInput {
    let limits = Limits {
        pay_per_minute: u32::MAX,
        query_per_minute: u32::MAX,
        refund_per_minute: u32::MAX,
        burst: u32::MAX,
        daily_cap: 0,
        single_max: 0,
        second_signature_from: 0,
    };
    AdminInput {
        ticket: 0,
        operator: ShortText::EMPTY,
        command: AdminCommand::PutMerchant {
            merchant: Merchant {
                mch_id,
                status: MerchantStatus::Active,
                keys: Vec::new(),
                gateways: Vec::new(),
                addresses: Vec::new(),
                limits,
            },
            only_if_absent: false,
        },
    }
}

/// Time of the two halves of `batches` batches of payments.
fn halves(bench: &mut Bench, batches: u64) -> (Duration, Duration) {
    let (mut begin, mut end) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..batches {
        let requests = bench.requests();
        let start = Instant::now();
        bench.pay(&requests);
        let middle = Instant::now();
        bench.answer();
        begin += middle - start;
        end += middle.elapsed();
    }
    (begin, end)
}

fn payments(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(BATCH));
    let mut bench = Bench::new(false);
    group.bench_function("pay 64: admit and apply BEGIN", |b| {
        b.iter_custom(|batches| halves(&mut bench, batches).0);
    });
    group.bench_function("pay 64: evidence and apply END", |b| {
        b.iter_custom(|batches| halves(&mut bench, batches).1);
    });
    let mut source = Bench::new(true);
    halves(&mut source, 256);
    let log = source.log.take().expect("kept");
    group.throughput(Throughput::Elements(256 * BATCH));
    group.bench_function("replay of 16384 payments", |b| {
        b.iter_batched(
            || (Engine::new(config()), Outputs::default()),
            |(mut engine, mut out)| {
                for (at, block) in log.iter().enumerate() {
                    engine.apply(at as u64 + 1, 1, block, Now::default(), &mut out).expect("sound");
                }
                engine
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Payments of the shard that is checkpointed.
const HELD: u64 = 1600 * BATCH;
/// Payments of one slice.
const SLICE: u64 = 512;

fn checkpoints(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checkpoint");
    group.sample_size(10);
    let mut bench = Bench::new(false);
    halves(&mut bench, HELD / BATCH);
    let mut chunks = Vec::new();
    bench.engine.checkpoint(&mut |chunk| chunks.push(chunk.to_vec()));
    let bytes: usize = chunks.iter().map(Vec::len).sum();
    println!("{HELD} payments take {bytes} bytes in {} chunks", chunks.len());
    group.throughput(Throughput::Elements(HELD));
    group.bench_function("write 102400 payments", |b| {
        b.iter(|| {
            bench.engine.checkpoint(&mut |chunk| {
                black_box(chunk.len());
            })
        });
    });
    group.bench_function("restore 102400 payments", |b| {
        b.iter(|| Engine::restore(config(), &chunks).map(|engine| engine.applied()));
    });
    group.throughput(Throughput::Elements(SLICE));
    group.bench_function("write a slice of 512 payments", |b| {
        b.iter_custom(|slices| {
            let mut took = Duration::ZERO;
            for _ in 0..slices {
                let start = Instant::now();
                let slice = bench.engine.checkpoint_slice(SLICE, &mut |chunk| {
                    black_box(chunk.len());
                });
                took += start.elapsed();
                if slice != Slice::More {
                    bench.engine.begin_checkpoint(&mut |_| ());
                }
            }
            took
        });
    });
    group.finish();
}

criterion_group!(benches, payments, checkpoints);
criterion_main!(benches);
