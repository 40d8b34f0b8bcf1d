//! Gateways: they ask any site, follow hints, send again elsewhere what was not
//! answered, and remember every acknowledgement.

use std::collections::BTreeMap;

use protocol::code::{Code, Method, OrderState, RefundState, Scene};
use protocol::id::OutRefundNo;
use protocol::message::{OrderRef, OrderReply, RefundReply, kind};
use protocol::money::Amount;

use super::check::refund_number;
use super::random::Random;
use super::setup::{MS, Setup, cny};
use crate::engine::input::{OrderInput, Origin, PayInput, QueryRefundInput, RefundInput, Waiter};
use crate::engine::output::ReplyBody;
use crate::runtime::inbox::Item;

/// Connection of requests.
pub(super) const CONNECTION: u64 = 7;
/// A call is given up after this many requests, while there are faults.
const TRIES_MAX: u32 = 12;
pub(super) const REFUNDS: u8 = 3;

/// What is asked about a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Pay { minor: i64 },
    Query { refresh: bool },
    Close,
    Reverse,
    Refund { refund: u8 },
    QueryRefund { refund: u8 },
}

/// What has been acknowledged about a payment.
#[derive(Clone, Copy, Default)]
struct Known {
    exists: bool,
    outcome: Option<OrderState>,
    refunded: i64,
    refunds: [Option<RefundState>; REFUNDS as usize],
}

/// One thing that a merchant wants.
pub(super) struct Call {
    pub(super) key: usize,
    pub(super) ask: Ask,
    tries: u32,
    /// Must be answered, however often it takes.
    stubborn: bool,
    pub(super) done: bool,
}

/// One request of a call to one site.
struct Request {
    call: usize,
    open: bool,
    /// What was acknowledged before it was sent.
    known: Known,
}

/// What a client does next.
pub(super) enum Next {
    Nothing,
    /// Ask this site (0: any) after a while.
    Again(usize, u8, u64),
}

pub(super) struct Clients {
    pub(super) calls: Vec<Call>,
    requests: BTreeMap<u64, Request>,
    known: Vec<Known>,
    /// Per shard: the site that is thought to lead; 0: unknown.
    hints: Vec<u8>,
    pub(super) answers: u64,
    /// Payments whose outcome somebody has just heard first.
    pub(super) fresh: Vec<usize>,
}

impl Clients {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            calls: Vec::new(),
            requests: BTreeMap::new(),
            known: vec![Known::default(); setup.keys.len()],
            hints: vec![0; usize::from(setup.shards)],
            answers: 0,
            fresh: Vec::new(),
        }
    }

    /// A call about a random payment.
    pub(super) fn random_call(&mut self, setup: &Setup, random: &mut Random) -> usize {
        let usual = setup.keys.iter().take_while(|key| key.mch_id != setup.limited().mch_id);
        let usual = usual.count() as u64;
        // The limited merchant pays all the time.
        if random.percent(35) {
            let limited = setup.keys.len() as u64 - usual;
            let key = (usual + random.below(limited)) as usize;
            return self.call(key, Ask::Pay { minor: 100 }, false);
        }
        let key = random.below(usual) as usize;
        let refund = random.below(u64::from(REFUNDS)) as u8;
        let ask = match random.below(20) {
            0..=7 => Ask::Pay { minor: if random.percent(10) { 999 } else { 100 } },
            8 => Ask::Close,
            9 => Ask::Reverse,
            10..=13 => Ask::Query { refresh: random.percent(50) },
            14..=17 => Ask::Refund { refund },
            _ => Ask::QueryRefund { refund },
        };
        self.call(key, ask, false)
    }

    pub(super) fn call(&mut self, key: usize, ask: Ask, stubborn: bool) -> usize {
        self.calls.push(Call { key, ask, tries: 0, stubborn, done: false });
        self.calls.len() - 1
    }

    pub(super) fn is_paid(&self, key: usize) -> bool {
        self.known[key].outcome == Some(OrderState::Paid)
    }

    /// Refunds that somebody was told of.
    pub(super) fn known_refunds(&self, key: usize) -> impl Iterator<Item = u8> + '_ {
        (0..REFUNDS).filter(move |refund| self.known[key].refunds[usize::from(*refund)].is_some())
    }

    /// The next request of a call: its correlation, site and item.
    pub(super) fn request(
        &mut self,
        call: usize,
        site: u8,
        setup: &Setup,
        random: &mut Random,
    ) -> Option<(u64, u8, Item)> {
        let found = &mut self.calls[call];
        if found.tries >= TRIES_MAX && !found.stubborn {
            found.done = true;
            return None;
        }
        found.tries += 1;
        let shard = setup.keys[found.key].shard;
        let hint = self.hints[usize::from(shard)];
        let site = match site {
            0 if hint == 0 || random.percent(25) => random.between(1, u64::from(setup.sites)) as u8,
            0 => hint,
            asked => asked,
        };
        let correlation = self.requests.len() as u64 + 1;
        let known = self.known[found.key];
        let item = item(found.key, found.ask, correlation, setup);
        self.requests.insert(correlation, Request { call, open: true, known });
        Some((correlation, site, item))
    }

    /// The key and question of a request.
    pub(super) fn asked(&self, correlation: u64) -> Option<(usize, Ask)> {
        let call = &self.calls[self.requests.get(&correlation)?.call];
        Some((call.key, call.ask))
    }

    /// No answer came in time.
    pub(super) fn impatient(&mut self, correlation: u64, random: &mut Random) -> Next {
        let Some(request) = self.requests.get_mut(&correlation) else { return Next::Nothing };
        if !std::mem::take(&mut request.open) || self.calls[request.call].done {
            return Next::Nothing;
        }
        Next::Again(request.call, 0, random.below(20 * MS))
    }

    /// An answer arrived, perhaps long after it was given up.
    pub(super) fn answer(
        &mut self,
        correlation: u64,
        site: u8,
        body: &ReplyBody,
        setup: &Setup,
        random: &mut Random,
    ) -> Next {
        let Some(request) = self.requests.get_mut(&correlation) else { return Next::Nothing };
        let (call, known) = (request.call, request.known);
        let open = std::mem::take(&mut request.open);
        let key = self.calls[call].key;
        let shard = usize::from(setup.keys[key].shard);
        let (code, hint) = match body {
            ReplyBody::Order(reply) => {
                self.learn(call, &known, reply);
                (reply.code, reply.leader_hint)
            }
            ReplyBody::Refund(reply) => {
                self.learn_refund(call, &known, reply);
                (reply.code, reply.leader_hint)
            }
        };
        self.answers += 1;
        match code {
            Code::NotLeader => self.hints[shard] = hint,
            code if !code.retryable() => self.hints[shard] = site,
            _ => {}
        }
        if !open || self.calls[call].done {
            return Next::Nothing;
        }
        let unknown = code == Code::UnknownMerchant;
        match code {
            Code::NotLeader if hint != 0 => Next::Again(call, hint, random.below(MS)),
            _ if code.retryable() || unknown => Next::Again(call, 0, random.between(5, 60) * MS),
            _ => {
                self.calls[call].done = true;
                Next::Nothing
            }
        }
    }

    /// What an answer says must not be less than what was acknowledged before
    /// its request was sent.
    fn learn(&mut self, call: usize, known: &Known, reply: &OrderReply) {
        let Call { key, ask, .. } = self.calls[call];
        if let Ask::Query { .. } = ask {
            let lost = reply.code == Code::OrderNotFound && known.exists;
            assert!(!lost, "6: {key} was acknowledged and is not found");
        }
        if !matches!(reply.code, Code::Ok | Code::OrderPaid) || reply.state == OrderState::None {
            return;
        }
        if let Some(outcome) = known.outcome {
            assert_eq!(reply.state, outcome, "4: {key} shows less than was acknowledged: {ask:?}");
        }
        assert!(reply.refunded >= known.refunded, "4: {key} forgot a refund: {ask:?}");
        if let Ask::Pay { minor } = ask {
            assert_eq!(reply.amount, minor, "5: {key} answered for another content");
        }
        let now = &mut self.known[key];
        now.exists = true;
        now.refunded = now.refunded.max(reply.refunded);
        if reply.state.is_final() && now.outcome.replace(reply.state).is_none() {
            self.fresh.push(key);
        }
    }

    fn learn_refund(&mut self, call: usize, known: &Known, reply: &RefundReply) {
        let Call { key, ask, .. } = self.calls[call];
        let (Ask::Refund { refund } | Ask::QueryRefund { refund }) = ask else {
            panic!("a refund reply to {ask:?}");
        };
        let place = usize::from(refund);
        if let Ask::QueryRefund { .. } = ask {
            let lost = reply.code == Code::RefundNotFound && known.refunds[place].is_some()
                || reply.code == Code::OrderNotFound && known.exists;
            assert!(!lost, "6: refund {refund} of {key} was acknowledged and is not found");
        }
        if reply.code != Code::Ok || reply.state == RefundState::None {
            return;
        }
        if let Some(before @ (RefundState::Success | RefundState::Failed)) = known.refunds[place] {
            assert_eq!(reply.state, before, "4: refund {refund} of {key} shows less");
        }
        assert!(reply.refunded >= known.refunded, "4: {key} forgot a refund: {ask:?}");
        let now = &mut self.known[key];
        now.exists = true;
        now.refunded = now.refunded.max(reply.refunded);
        let ended = matches!(now.refunds[place], Some(RefundState::Success | RefundState::Failed));
        if !ended {
            now.refunds[place] = Some(reply.state);
        }
    }
}

pub(super) fn item(key: usize, ask: Ask, correlation: u64, setup: &Setup) -> Item {
    let key = &setup.keys[key];
    let origin = |kind: u8| {
        let waiter = Waiter { connection: CONNECTION, stream: 0, kind, correlation };
        Origin { waiter, mch_id: key.mch_id, gateway: 1, wait_us: 0 }
    };
    let order = OrderRef::OutTradeNo(key.out_trade_no);
    let about = |kind: u8, refresh: bool| OrderInput {
        origin: origin(kind),
        order,
        digest: key.digest,
        refresh,
    };
    let number = |refund: u8| OutRefundNo::parse(refund_number(refund).as_bytes()).unwrap();
    match ask {
        Ask::Pay { minor } => {
            let mut fingerprint = [0; 16];
            fingerprint[..8].copy_from_slice(&minor.to_le_bytes());
            let pay = PayInput {
                origin: origin(kind::PAY),
                out_trade_no: key.out_trade_no,
                digest: key.digest,
                fingerprint,
                amount: Amount::new(minor).unwrap(),
                currency: cny(),
                method: Method::Wallet,
                scene: Scene::App,
                time_expire_ms: key.time_expire_ms,
                payer_hash: 1,
                device_hash: 2,
                notify: true,
                second_signature: false,
                content: &[],
            };
            Item::Pay(pay, 0..0)
        }
        Ask::Query { refresh } => Item::Query(about(kind::QUERY, refresh)),
        Ask::Close => Item::Close(about(kind::CLOSE, false)),
        Ask::Reverse => Item::Reverse(about(kind::REVERSE, false)),
        Ask::Refund { refund } => Item::Refund(RefundInput {
            origin: origin(kind::REFUND),
            order,
            digest: key.digest,
            out_refund_no: number(refund),
            amount: Amount::new(40 + 11 * i64::from(refund)).unwrap(),
            currency: cny(),
        }),
        Ask::QueryRefund { refund } => Item::QueryRefund(QueryRefundInput {
            origin: origin(kind::QUERY_REFUND),
            order,
            digest: key.digest,
            out_refund_no: number(refund),
        }),
    }
}
