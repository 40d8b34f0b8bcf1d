//! What a seed decides before anything runs: sites, shards, channels'
//! contracts, merchants, payments.

use protocol::channel::{charge_number, order_digest};
use protocol::id::{MchId, OutTradeNo, ShortText};
use protocol::money::Currency;

use super::random::Random;
use crate::engine::EngineConfig;
use crate::engine::config::ChannelConfig;
use crate::engine::merchant::{Limits, Merchant, MerchantStatus};
use crate::engine::weakness::Weakness;
use crate::replica::Timing;
use crate::runtime::HOLD_US;
use crate::runtime::worker::WorkerSettings;

pub(super) const MS: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000_000;
/// The true time when a run begins.
pub(super) const START_WALL: u64 = 1_764_000_000 * SECOND;
/// Faults happen before this.
pub(super) const HEAL_US: u64 = 7 * SECOND;
/// What the channels guarantee as the longest life of a message.
pub(super) const WANDER_US: u64 = 1_400 * MS;

/// What a run is like, apart from its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) sites: u8,
    /// Those that the cluster is made of: the first so many. The others come later.
    pub(super) voters: u8,
    /// The last of the voters never leads.
    pub(super) witness: bool,
    /// What is broken on purpose.
    pub(super) flaw: Option<Flaw>,
    /// The sites are this far apart, one way, microseconds.
    pub(super) far_us: u64,
    /// For this their time-outs are made.
    pub(super) timing: Timing,
    /// Nothing goes wrong.
    pub(super) calm: bool,
    /// Clients want nothing.
    pub(super) quiet: bool,
}

impl Shape {
    /// Sites beside each other.
    pub(super) fn of(sites: u8) -> Self {
        Self {
            sites,
            voters: sites,
            witness: false,
            flaw: None,
            far_us: 0,
            timing: Timing::default(),
            calm: false,
            quiet: false,
        }
    }

    /// The last site comes while the others serve and hold no whole log any more, and
    /// now and then one of those goes.
    pub(super) fn joined_by_one(self) -> Self {
        Self { sites: self.sites + 1, ..self }
    }

    pub(super) fn with_witness(self) -> Self {
        Self { witness: true, ..self }
    }

    pub(super) fn with(self, flaw: Flaw) -> Self {
        Self { flaw: Some(flaw), ..self }
    }

    /// Sites whose messages go and come in `round_trip_us`, and that know it.
    pub(super) fn apart(self, round_trip_us: u64) -> Self {
        let timing = Timing::of_round_trip(round_trip_us);
        Self { far_us: round_trip_us / 2, timing, ..self }
    }
}

/// Pays of the limited merchant: so many at once, then one per interval.
pub(super) const LIMITED_BURST: u32 = 5;
pub(super) const LIMITED_INTERVAL_US: u64 = 500 * MS;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A rule of the engine or the worker.
    Rule(Weakness),
    /// The vote is not found again after a restart.
    ForgetVote,
    /// Writes are confirmed before they are durable.
    SkipSync,
    /// That, and a site that is told of it is merely started again.
    SkipSyncStartAgain,
    /// The state of another site counts before its file is durable.
    HastyState,
}

/// A payment that clients may make.
pub(super) struct Key {
    pub(super) mch_id: MchId,
    pub(super) shard: u16,
    pub(super) out_trade_no: OutTradeNo,
    pub(super) digest: [u8; 16],
    pub(super) time_expire_ms: u64,
    /// What all of its charge numbers begin with.
    pub(super) prefix: String,
}

/// A run's constants.
pub(super) struct Setup {
    pub(super) sites: u8,
    pub(super) voters: u8,
    pub(super) witness: Option<u8>,
    pub(super) timing: Timing,
    pub(super) far_us: u64,
    pub(super) shards: u16,
    pub(super) flaw: Option<Flaw>,
    pub(super) channels: Vec<ChannelConfig>,
    /// One per shard, and a limited one.
    pub(super) merchants: Vec<Merchant>,
    pub(super) keys: Vec<Key>,
    /// An answer is waited for this long before another site is asked.
    pub(super) patience_us: u64,
    /// Nothing comes in front of an operator.
    pub(super) patient: bool,
    /// Applied entries that a replica keeps in memory, bytes.
    pub(super) tail_bytes_max: usize,
    /// How far a site's wall clock may be off, microseconds.
    pub(super) skew_us: u64,
    /// Log after which the states are written down, bytes; 0: never.
    pub(super) checkpoint_bytes: u64,
    /// Log that stays, bytes; 0: all of it.
    pub(super) keep_bytes: u64,
    pub(super) segment_bytes: u64,
}

impl Setup {
    pub(super) fn new(shape: Shape, random: &mut Random) -> Self {
        let Shape { sites, voters, witness, flaw, far_us, timing, .. } = shape;
        let shards = random.between(1, 3) as u16;
        let patient = random.percent(70);
        let own_us = timing.lease_us() + HOLD_US;
        let mut setup = Self {
            sites,
            voters,
            witness: witness.then_some(voters),
            timing,
            far_us,
            shards,
            flaw,
            channels: (1..=2).map(|number| channel(number, own_us, patient, random)).collect(),
            merchants: (0..shards).map(|shard| merchant(shard, shards, false)).collect(),
            keys: Vec::new(),
            patience_us: *random.pick(&[80 * MS, 500 * MS]),
            patient,
            tail_bytes_max: *random.pick(&[0, 2 << 10, 1 << 20]),
            skew_us: if random.percent(30) { 5 * SECOND } else { 150 * MS },
            checkpoint_bytes: 0,
            keep_bytes: 0,
            segment_bytes: 256 << 10,
        };
        // Other flaws are looked for in whole logs.
        let releases = flaw == Some(Flaw::HastyState) || voters < sites;
        if releases || flaw.is_none() && random.percent(60) {
            setup.checkpoint_bytes = *random.pick(&[1 << 10, 4 << 10, 16 << 10]);
            setup.segment_bytes = 68 << 10;
            setup.keep_bytes = if releases || random.percent(80) { 1 } else { 0 };
        }
        setup.merchants.push(merchant(random.below(u64::from(shards)) as u16, shards, true));
        for number in 0..random.between(4, 10) {
            let at = random.below(u64::from(shards)) as usize;
            let lives_ms = random.between(5_000, 9_000);
            setup.keys.push(setup.key(&setup.merchants[at], number, lives_ms));
        }
        for number in 0..24 {
            setup.keys.push(setup.key(setup.limited(), 100 + number, 12_000));
        }
        setup
    }

    /// How long a leader that was replaced may still send.
    pub(super) fn lease_us(&self) -> u64 {
        self.timing.lease_us()
    }

    /// How long a request may be under way because of us.
    pub(super) fn own_us(&self) -> u64 {
        self.lease_us() + HOLD_US
    }

    pub(super) fn limited(&self) -> &Merchant {
        &self.merchants[usize::from(self.shards)]
    }

    fn key(&self, merchant: &Merchant, number: u64, lives_ms: u64) -> Key {
        let out_trade_no = OutTradeNo::parse(format!("order-{number}").as_bytes()).unwrap();
        let digest = order_digest(&merchant.mch_id, &out_trade_no);
        Key {
            mch_id: merchant.mch_id,
            shard: merchant.mch_id.shard(self.shards),
            out_trade_no,
            digest,
            time_expire_ms: START_WALL / 1000 + lives_ms,
            prefix: charge_number(&digest, 1).to_string()[..26].to_owned(),
        }
    }

    pub(super) fn rule(&self) -> Option<Weakness> {
        match self.flaw {
            Some(Flaw::Rule(rule)) => Some(rule),
            _ => None,
        }
    }

    pub(super) fn engine(&self, shard: u16) -> EngineConfig {
        EngineConfig {
            shard,
            sync_wait_us: 600 * MS,
            orders_max: 100_000,
            waiters_per_order_max: 4,
            refunds_per_order_max: 5,
            refund_window_us: 86_400 * SECOND,
            reverse_window_us: 86_400 * SECOND,
            expire_max_us: 86_400 * SECOND,
            outbox_max: 1_000,
            event_retry_us: 400 * MS,
            event_tries_max: 250,
            gateways: vec![ShortText::new(b"gw-1").unwrap()],
            channels: self.channels.clone(),
            routes: Vec::new(),
            default_route: vec![1, 2],
        }
    }

    pub(super) fn worker(&self, site: u8) -> WorkerSettings {
        WorkerSettings {
            site: u64::from(site),
            queue_delay_max_us: SECOND,
            commit_interval_us: 400,
            blocks_bytes_max: 48 << 10,
            engines: (0..self.shards).map(|shard| self.engine(shard)).collect(),
            sites: u64::from(self.sites),
            voters: (1..=u64::from(self.voters)).collect(),
            witnesses: self.witness.map(u64::from).into_iter().collect(),
            cluster: 7,
            timing: self.timing,
            tail_bytes_max: self.tail_bytes_max,
            checkpoint_bytes: self.checkpoint_bytes,
            keep_bytes: self.keep_bytes,
            segment_bytes: self.segment_bytes,
        }
    }

    pub(super) fn log(&self) -> storage::Settings {
        storage::Settings {
            cluster: 7,
            worker: 0,
            segment_bytes: self.segment_bytes,
            batch_max_bytes: 64 << 10,
            idle_seal_us: 40 * MS,
        }
    }
}

pub(super) fn cny() -> Currency {
    Currency::new(*b"CNY").unwrap()
}

fn channel(number: u16, own_us: u64, patient: bool, random: &mut Random) -> ChannelConfig {
    let reversible = random.percent(70);
    ChannelConfig {
        number,
        name: format!("channel-{number}"),
        idempotent_pay: random.percent(60),
        queryable: random.percent(90) || !reversible,
        reversible,
        fence_on_cancel: random.percent(80),
        max_msg_life_us: WANDER_US + own_us,
        reply_timeout_us: 300 * MS,
        first_query_after_us: 100 * MS,
        query_plan_us: vec![100 * MS, 200 * MS, 400 * MS],
        reverse_after_us: if random.percent(50) { SECOND } else { 0 },
        in_doubt_alarm_us: 3_600 * SECOND,
        manual_after_us: if patient { 86_400 * SECOND } else { random.between(300, 1_500) * MS },
        in_flight_max: 1_000,
        resolver_per_second: 50,
    }
}

fn merchant(shard: u16, shards: u16, limited: bool) -> Merchant {
    let name = if limited { "limited" } else { "shop" };
    let ids = (0..).map(|n| MchId::parse(format!("{name}{n}").as_bytes()).unwrap());
    let (rate, burst) = match limited {
        true => ((60 * SECOND / LIMITED_INTERVAL_US) as u32, LIMITED_BURST),
        false => (60_000_000, 1_000_000),
    };
    Merchant {
        mch_id: ids.into_iter().find(|id: &MchId| id.shard(shards) == shard).unwrap(),
        status: MerchantStatus::Active,
        keys: Vec::new(),
        gateways: Vec::new(),
        addresses: Vec::new(),
        limits: Limits {
            pay_per_minute: rate,
            query_per_minute: 60_000_000,
            refund_per_minute: 60_000_000,
            burst,
            daily_cap: 0,
            single_max: 0,
            second_signature_from: 0,
        },
    }
}
