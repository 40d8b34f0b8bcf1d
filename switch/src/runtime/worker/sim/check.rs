//! What must be true at every moment, whatever happens: the invariants of the
//! rule book, held against the channels' ledgers, the committed logs of all
//! sites and everything that was ever answered.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use protocol::channel::charge_number;
use protocol::code::{Code, OrderState, RefundState};
use protocol::id::MchId;
use protocol::message::{OrderReply, RefundReply};
use storage::{CHAIN_START, chain_next};

use super::channel::Channels;
use super::setup::{LIMITED_BURST, LIMITED_INTERVAL_US, MS, SECOND, Setup};
use super::site::Process;
use crate::engine::order::{AttemptState, RefundKind};
use crate::engine::output::{Outputs, Send};
use crate::engine::record::{Begin, Record, Records};
use crate::engine::{Engine, Now, OrderView};

/// A block of a shard's log that some site has applied.
struct Block {
    term: u64,
    chain: [u8; 32],
    bytes: Bytes,
}

/// One shard's log as far as any site has applied it, and a follower of it.
struct Shard {
    log: Vec<Block>,
    shadow: Engine,
    /// State by index, for some indexes.
    hashes: BTreeMap<u64, [u8; 32]>,
    /// Stamps of the limited merchant's accepted pays.
    limited: Vec<u64>,
}

/// States are compared at every so many indexes: hashing walks everything.
const HASH_EVERY: u64 = 4;

pub(super) struct Checker {
    shards: Vec<Shard>,
    /// Who was elected, by shard and term, and when that was seen.
    leaders: BTreeMap<(u16, u64), (u8, u64)>,
    /// Charge numbers whose BEGIN is committed.
    began: BTreeSet<String>,
    /// Final answers by key.
    answered: BTreeMap<usize, OrderState>,
    answered_refunds: BTreeMap<(usize, u8), RefundState>,
    /// Event numbers that were delivered, by key.
    events: BTreeMap<usize, BTreeSet<u32>>,
    /// Merchants that the log knows.
    pub(super) merchants: BTreeSet<MchId>,
    /// Prints the log as it grows: for one seed by hand.
    verbose: bool,
}

impl Checker {
    pub(super) fn new(setup: &Setup, verbose: bool) -> Self {
        let shard = |shard| {
            let mut shadow = Engine::new(setup.engine(shard));
            shadow.break_rule(setup.rule());
            Shard { log: Vec::new(), shadow, hashes: BTreeMap::new(), limited: Vec::new() }
        };
        Self {
            shards: (0..setup.shards).map(shard).collect(),
            leaders: BTreeMap::new(),
            began: BTreeSet::new(),
            answered: BTreeMap::new(),
            answered_refunds: BTreeMap::new(),
            events: BTreeMap::new(),
            merchants: BTreeSet::new(),
            verbose,
        }
    }

    /// Terms in which somebody was elected.
    pub(super) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// How often this site was elected within these moments.
    pub(super) fn elected(&self, site: u8, from_us: u64, until_us: u64) -> usize {
        let of =
            |(leader, at_us): &&(u8, u64)| *leader == site && (from_us..until_us).contains(at_us);
        self.leaders.values().filter(of).count()
    }

    /// Committed blocks of all shards.
    pub(super) fn blocks(&self) -> usize {
        self.shards.iter().map(|shard| shard.log.len()).sum()
    }

    pub(super) fn applied(&self, shard: u16) -> u64 {
        self.shards[usize::from(shard)].log.len() as u64
    }

    pub(super) fn shadow(&self, shard: u16) -> &Engine {
        &self.shards[usize::from(shard)].shadow
    }

    pub(super) fn view(&self, setup: &Setup, key: usize) -> Option<OrderView> {
        let key = &setup.keys[key];
        self.shadow(key.shard).order_view(&key.mch_id, &key.out_trade_no)
    }

    /// Looks at a site after a turn: elections, logs, states.
    pub(super) fn follow(&mut self, site: u8, process: &mut Process, now_us: u64, setup: &Setup) {
        for (at, shard) in process.worker.shards.iter_mut().enumerate() {
            let replica = &shard.replica;
            if replica.is_elected() {
                let place = (at as u16, replica.term());
                let (leader, _) = *self.leaders.entry(place).or_insert((site, now_us));
                assert_eq!(leader, site, "two leaders of shard {at} in term {}", place.1);
            }
            assert!(!replica.leads() || setup.witness != Some(site), "a witness leads shard {at}");
            let applied = shard.engine.applied();
            for (index, term, bytes) in shard.tap.drain(..) {
                self.applied_block(site, at, index, term, bytes, setup);
            }
            if process.followed[at] == applied {
                continue;
            }
            let known = &self.shards[at];
            let block = known.log.get(applied as usize - 1);
            let block = block.unwrap_or_else(|| panic!("site {site} applied {applied} by itself"));
            let chain = shard.replica.chain(applied).unwrap_or(block.chain);
            assert_eq!(chain, block.chain, "logs of shard {at} differ at {applied}, site {site}");
            if let Some(hash) = known.hashes.get(&applied) {
                let same = shard.engine.state_hash() == *hash;
                assert!(same, "state of shard {at} at {applied} differs at site {site}");
            }
            process.followed[at] = applied;
        }
    }

    /// Invariant 12: a leader that was replaced stops sending when its lease ends.
    pub(super) fn sends(&self, shard: u16, term: u64, now_us: u64, lease_us: u64) {
        let newer = self.leaders.range((shard, term + 1)..=(shard, u64::MAX)).next();
        if let Some((&(_, newer), &(leader, elected_us))) = newer {
            let late = now_us.saturating_sub(elected_us + lease_us);
            assert!(late == 0, "12: term {term} sends {late} us after {leader} leads in {newer}");
        }
    }

    fn applied_block(
        &mut self,
        site: u8,
        at: usize,
        index: u64,
        term: u64,
        bytes: Bytes,
        setup: &Setup,
    ) {
        let shard = &mut self.shards[at];
        if let Some(known) = shard.log.get(index as usize - 1) {
            let same = known.term == term && known.bytes == bytes;
            assert!(same, "logs of shard {at} differ at {index}");
            return;
        }
        let before = shard.log.last().map_or(CHAIN_START, |block| block.chain);
        let block = Block { term, chain: chain_next(&before, &bytes), bytes };
        assert_eq!(index as usize, shard.log.len() + 1, "site {site} applied out of order");
        self.scan(at, &block.bytes, setup);
        let of_shard = |key: &usize| usize::from(setup.keys[*key].shard) == at;
        let keys: Vec<usize> = (0..setup.keys.len()).filter(of_shard).collect();
        let before: Vec<_> = keys.iter().map(|key| self.view(setup, *key)).collect();
        let shard = &mut self.shards[at];
        let mut out = Outputs::default();
        let applied = shard.shadow.apply(index, block.term, &block.bytes, Now::default(), &mut out);
        applied.unwrap_or_else(|error| panic!("block {index} of shard {at}: {error}"));
        shard.log.push(block);
        if index.is_multiple_of(HASH_EVERY) {
            shard.hashes.insert(index, shard.shadow.state_hash());
        }
        for (key, before) in keys.into_iter().zip(before) {
            let Some(before) = before else { continue };
            let now = self.view(setup, key).expect("payments stay");
            assert!(!before.state.is_final() || now.state == before.state, "11: {key} moved on");
            for (old, new) in before.attempts.iter().zip(&now.attempts) {
                let moved = old.state.is_definitive() && old.state != new.state;
                assert!(!moved, "11: {key} attempt left {:?}", old.state);
            }
        }
    }

    /// Invariants 7 and 13 on the log; what began.
    fn scan(&mut self, at: usize, block: &[u8], setup: &Setup) {
        // Attempts that end earlier in this very block.
        let mut ended = BTreeSet::new();
        for stamped in Records::new(block).expect("stamp") {
            let stamped = stamped.expect("sound");
            if self.verbose {
                let mut line = String::new();
                stamped.to_json(&mut line);
                println!("{:>10} shard {at} log {line}", "");
            }
            match stamped.record {
                Record::Begin(begin) => self.begins(at, &begin, stamped.at_us, setup),
                Record::Outcome(outcome) => {
                    if matches!(outcome.attempt_state, AttemptState::Declined | AttemptState::Void)
                    {
                        ended.insert((outcome.sequence, outcome.attempt));
                    }
                }
                Record::NextAttempt(next) => {
                    let view = (0..setup.keys.len())
                        .filter(|key| usize::from(setup.keys[*key].shard) == at)
                        .filter_map(|key| Some((key, self.view(setup, key)?)))
                        .find(|(_, view)| view.sequence == next.sequence);
                    let (key, view) = view.expect("an attempt of a known payment");
                    let over =
                        |s: AttemptState| matches!(s, AttemptState::Declined | AttemptState::Void);
                    let proven = view.attempts.iter().all(|attempt| {
                        over(attempt.state) || ended.contains(&(next.sequence, attempt.ordinal))
                    });
                    assert!(proven, "7: {key} starts attempt {} before proof", next.ordinal);
                    let digest = &setup.keys[key].digest;
                    self.began.insert(charge_number(digest, next.ordinal).to_string());
                }
                Record::MerchantPut(put) => {
                    self.merchants.insert(put.merchant.mch_id);
                }
                _ => {}
            }
        }
    }

    fn begins(&mut self, at: usize, begin: &Begin<'_>, at_us: u64, setup: &Setup) {
        self.began.insert(charge_number(&begin.digest, 1).to_string());
        // Clocks that are far apart make another sum of what was allowed.
        if begin.mch_id != setup.limited().mch_id || setup.skew_us > SECOND {
            return;
        }
        let stamps = &mut self.shards[at].limited;
        stamps.push(at_us);
        for (from, first) in stamps.iter().enumerate() {
            let taken = (stamps.len() - from) as u64;
            let passed = at_us.saturating_sub(*first) + 2 * setup.skew_us + MS;
            let allowed = u64::from(LIMITED_BURST) + passed.div_ceil(LIMITED_INTERVAL_US);
            assert!(taken <= allowed, "13: {taken} pays within {passed} us, {allowed} allowed");
        }
    }

    /// A request reaches a channel (invariant 2).
    pub(super) fn arrives(&self, send: &Send) {
        let number = send.request.charge_no.to_string();
        assert!(self.began.contains(&number), "2: {number} has no committed BEGIN");
    }

    /// An answer leaves a site (invariants 3, 4, 6).
    pub(super) fn tells(&self, key: usize, body: &OrderReply, setup: &Setup) {
        let durable = self.view(setup, key).map(|view| view.state);
        let named = body.transaction_id.is_some();
        assert!(!named || durable.is_some(), "6: {key} told before it was committed");
        if is_outcome(body) {
            assert_eq!(durable, Some(body.state), "6: {key} answered before it was committed");
        }
    }

    /// A client hears an answer about a payment (invariants 3 and 4).
    pub(super) fn heard(&mut self, key: usize, body: &OrderReply) {
        if is_outcome(body) {
            let before = self.answered.insert(key, body.state);
            let same = before.is_none_or(|before| before == body.state);
            assert!(same, "4: {key} was {before:?}, is {:?}", body.state);
        }
    }

    pub(super) fn heard_refund(&mut self, key: usize, refund: u8, body: &RefundReply) {
        if body.code == Code::Ok && matches!(body.state, RefundState::Success | RefundState::Failed)
        {
            let before = self.answered_refunds.insert((key, refund), body.state);
            let same = before.is_none_or(|before| before == body.state);
            assert!(same, "4: refund {refund} of {key} was {before:?}, is {:?}", body.state);
        }
    }

    pub(super) fn heard_event(&mut self, key: usize, number: u32) {
        self.events.entry(key).or_default().insert(number);
    }

    /// The books of one payment (invariants 1, 2, 3, 8, 9, 10).
    pub(super) fn books(&self, key: usize, channels: &Channels, setup: &Setup) {
        let prefix = &setup.keys[key].prefix;
        let moved = channels.charges(prefix).filter(|charge| charge.standing() > 0).count();
        assert!(moved <= 1, "1: {key} is charged {moved} times");
        let twice = channels.charges(prefix).any(|charge| charge.charged > 1);
        assert!(!twice, "1: {key} is charged twice under one number");
        let standing: i64 = channels.charges(prefix).map(|charge| charge.standing()).sum();
        let charged = channels.charges(prefix).filter(|charge| charge.charged == 1).count();
        match self.answered.get(&key) {
            Some(OrderState::Failed | OrderState::Closed) => {
                assert_eq!(standing, 0, "3: {key} answered as not paid but charged");
            }
            Some(OrderState::Paid) => assert_eq!(charged, 1, "3: {key} answered PAID"),
            _ => {}
        }
        let Some(view) = self.view(setup, key) else {
            assert_eq!(charged, 0, "2: {key} has no BEGIN");
            return;
        };
        check_refunds(key, &view, channels, prefix);
    }

    /// At the end: everything ended, every site says the same, the books agree,
    /// and whatever was acknowledged is there (invariants 6, 14, 16 to 20).
    pub(super) fn end(&self, channels: &Channels, setup: &Setup) {
        for key in 0..setup.keys.len() {
            self.books(key, channels, setup);
            let view = self.view(setup, key);
            let state = view.as_ref().map(|view| view.state);
            if let Some(answered) = self.answered.get(&key) {
                assert_eq!(state, Some(*answered), "6: the outcome of {key} is gone");
            }
            let Some(view) = view else { continue };
            for ((_, refund), answered) in self.answered_refunds.range((key, 0)..=(key, u8::MAX)) {
                let number = refund_number(*refund);
                let found = view.refunds.iter().find(|r| r.out_refund_no.as_str() == number);
                let state = found.map(|refund| refund.state);
                assert_eq!(state, Some(*answered), "6: refund {refund} of {key} is gone");
            }
            let prefix = &setup.keys[key].prefix;
            let standing: i64 = channels.charges(prefix).map(|charge| charge.standing()).sum();
            let paid = view.state == OrderState::Paid;
            let expected = if paid { view.amount - view.refunded } else { 0 };
            assert_eq!(standing, expected, "20: books of {key}: {view:?}");
            let seen = self.events.get(&key).cloned().unwrap_or_default();
            let all: BTreeSet<u32> = (1..=seen.len() as u32).collect();
            assert!(!seen.is_empty() && seen == all, "14: {key} events {seen:?}");
        }
    }
}

pub(super) fn refund_number(refund: u8) -> String {
    format!("refund-{refund}")
}

fn is_outcome(body: &OrderReply) -> bool {
    matches!(body.code, Code::Ok | Code::OrderPaid) && body.state.is_final()
}

fn check_refunds(key: usize, view: &OrderView, channels: &Channels, prefix: &str) {
    let held: i64 = view
        .refunds
        .iter()
        .filter(|r| r.kind != RefundKind::Orphan && r.state != RefundState::Failed)
        .map(|r| r.amount)
        .sum();
    assert!(held <= view.amount, "8: {key} holds {held} of {}", view.amount);
    let merchants = view.refunds.iter().position(|r| r.kind == RefundKind::Merchant);
    let reversal = view.refunds.iter().position(|r| r.kind == RefundKind::Reversal);
    if let (Some(refund), Some(reversal)) = (merchants, reversal) {
        assert!(refund > reversal, "10: {key} was reversed after a refund");
        let failed = view.refunds[reversal].state == RefundState::Failed;
        assert!(failed, "10: {key} was refunded after a reversal");
    }
    for charge in channels.charges(prefix) {
        assert!(charge.given_back() <= charge.amount, "8: {key} gave back too much");
        for number in charge.refunds.keys() {
            let known = view.refunds.iter().any(|r| r.refund_no.as_str() == number);
            assert!(known, "9: {key} refund {number} has no record");
        }
    }
}
