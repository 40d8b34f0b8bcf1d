//! What request `n` of a run is: a pure function of the parameters and `n`.
//!
//! The generator sends from it and the audit makes every request again from
//! it, so neither stores one. Never knows what was answered: a plan that asks
//! for an earlier payment names it, and the driver leaves the request out when
//! that payment was not acknowledged. Tested for purity, shares and references.

use crate::rng::{Stream, below};
use crate::zipf::Zipf;
use protocol::id::{OutRefundNo, OutTradeNo};
use protocol::money::{Amount, Currency};
use serde::{Deserialize, Serialize};

/// Run ids are below this: 11 hex digits, enough for Unix milliseconds.
pub(crate) const RUN_ID_MAX: u64 = 1 << 44;
/// Run ids below this were drawn; from here on (2004) they are the time of a run's start.
pub(crate) const SEEDED_BELOW: u64 = 1 << 40;
/// Request numbers are below this: 9 hex digits.
pub(crate) const REQUESTS_MAX: u64 = 1 << 36;

/// Smallest amount of a payment, minor units.
const AMOUNT_MIN: u64 = 100;
/// Largest amount of a payment, minor units.
const AMOUNT_MAX: u64 = 100_000;
/// Refunds are at most this part of their payment: so many fit.
const REFUND_PARTS: u64 = 20;
/// How far back a query or refund reaches beyond the lag.
const REACH: u64 = 65_536;
/// How far back a duplicate of a payment in flight reaches.
const NEAR: u64 = 32;

/// Everything a plan depends on; stored in the head of the acknowledgement log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Params {
    /// Chooses everything that looks random.
    pub(crate) seed: u64,
    /// Makes the numbers of two runs differ; below [`RUN_ID_MAX`].
    pub(crate) run_id: u64,
    /// `time_expire` of every payment, Unix milliseconds.
    pub(crate) expire_ms: u64,
    /// Weights of the operations.
    pub(crate) mix: Mix,
    /// Of a million pays: how many repeat an earlier one.
    pub(crate) duplicates_ppm: u32,
    /// Of a million pays: how many reuse a number with another amount.
    pub(crate) conflicts_ppm: u32,
    /// Of a million pays: how many carry a signature that does not fit.
    #[serde(default)]
    pub(crate) bad_signatures_ppm: u32,
    /// Of a million payments: how many are the first merchant's before the others
    /// get their shares.
    #[serde(default)]
    pub(crate) hot_ppm: u32,
    /// Every payment asks for its outcome's event.
    #[serde(default)]
    pub(crate) notify: bool,
    /// Exponent of the merchants' shares.
    pub(crate) zipf: f64,
    /// Queries and refunds name payments at least this many requests back.
    pub(crate) lag: u64,
    /// Ids of the merchants, most frequent first.
    pub(crate) merchants: Vec<String>,
}

impl Params {
    /// How many requests have about so many new payments among them.
    pub(crate) fn requests_for(&self, payments: u64) -> u64 {
        let others = u64::from(self.duplicates_ppm + self.conflicts_ppm + self.bad_signatures_ppm);
        let pays = u64::from(self.mix.pay) * 1_000_000_u64.saturating_sub(others);
        let all = (u64::from(self.mix.pay) + self.mix.others()) * 1_000_000;
        (u128::from(payments) * u128::from(all)).div_ceil(u128::from(pays.max(1))) as u64
    }
}

/// Weights of the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mix {
    /// Pays.
    pub(crate) pay: u32,
    /// Queries.
    pub(crate) query: u32,
    /// Refunds.
    pub(crate) refund: u32,
    /// Closes.
    #[serde(default)]
    pub(crate) close: u32,
    /// Reverses.
    #[serde(default)]
    pub(crate) reverse: u32,
}

impl Mix {
    /// Only these; no close, no reverse.
    pub(crate) const fn of(pay: u32, query: u32, refund: u32) -> Self {
        Self { pay, query, refund, close: 0, reverse: 0 }
    }

    /// Sum of everything but the pays.
    fn others(self) -> u64 {
        [self.query, self.refund, self.close, self.reverse].into_iter().map(u64::from).sum()
    }

    /// Sum of all weights.
    pub(crate) fn all(self) -> f64 {
        (u64::from(self.pay) + self.others()) as f64
    }

    /// Reads `pay=80,query=15,refund=5`; close and reverse may be added.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut mix = Self::of(0, 0, 0);
        let mut seen: Vec<&str> = Vec::new();
        for part in text.split(',') {
            let (name, weight) =
                part.split_once('=').ok_or_else(|| format!("{part:?} is not NAME=WEIGHT"))?;
            let name = name.trim();
            if seen.contains(&name) {
                return Err(format!("{name:?} is given twice"));
            }
            seen.push(name);
            let slot = match name {
                "pay" => &mut mix.pay,
                "query" => &mut mix.query,
                "refund" => &mut mix.refund,
                "close" => &mut mix.close,
                "reverse" => &mut mix.reverse,
                other => return Err(format!("{other:?}: pay, query, refund, close or reverse")),
            };
            let weight = weight.trim().parse::<u32>().ok().filter(|weight| *weight <= 1_000_000);
            *slot = weight.ok_or_else(|| format!("{part:?}: a weight up to 1000000"))?;
        }
        // Everything else needs payments to refer to.
        if mix.pay == 0 {
            return Err("pay needs a weight".to_owned());
        }
        if mix.others() / u64::from(mix.pay) > 1_000 {
            return Err("at most 1000 other requests per pay".to_owned());
        }
        Ok(mix)
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    /// A new payment.
    Pay = 0,
    /// The same payment once more: same number, same content.
    Duplicate = 1,
    /// A used number with another amount: must be refused.
    Conflict = 2,
    /// The state of an earlier payment.
    Query = 3,
    /// A part of an earlier payment back.
    Refund = 4,
    /// A new payment whose signature does not fit: must be refused, unseen.
    BadSignature = 5,
    /// An earlier payment closed, if it is not paid yet.
    Close = 6,
    /// An earlier payment given back as a whole.
    Reverse = 7,
}

impl Op {
    /// All, in numeric order.
    pub(crate) const ALL: [Self; 8] = [
        Self::Pay,
        Self::Duplicate,
        Self::Conflict,
        Self::Query,
        Self::Refund,
        Self::BadSignature,
        Self::Close,
        Self::Reverse,
    ];

    /// Name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Query => "query",
            Self::Refund => "refund",
            Self::BadSignature => "bad_signature",
            Self::Close => "close",
            Self::Reverse => "reverse",
        }
    }
}

/// A run's plan.
pub(crate) struct Plan {
    params: Params,
    /// The run's part of every number.
    run: u128,
    zipf: Zipf,
    currency: Currency,
    ops: Stream,
    repeats: Stream,
    merchants: Stream,
    amounts: Stream,
    targets: Stream,
    nonces: Stream,
    hot: Stream,
}

/// The only currency of generated payments.
const CNY: [u8; 3] = *b"CNY";

impl Plan {
    /// Prepares a plan; `None` when a parameter is out of range.
    pub(crate) fn new(params: Params) -> Option<Self> {
        let merchants = u32::try_from(params.merchants.len()).ok().filter(|count| *count > 0)?;
        let fits = params.run_id < RUN_ID_MAX
            && [params.duplicates_ppm, params.conflicts_ppm, params.bad_signatures_ppm]
                .into_iter()
                .fold(0, u32::saturating_add)
                <= 1_000_000
            && params.hot_ppm <= 1_000_000
            && (0.0..=10.0).contains(&params.zipf)
            && params.mix.pay > 0
            && params.lag > 0;
        let seed = params.seed;
        let stream = |number| Stream::new(seed, number);
        fits.then(|| Self {
            zipf: Zipf::new(merchants, params.zipf),
            currency: Currency::new(CNY).expect("three capitals"),
            ops: stream(0),
            repeats: stream(1),
            merchants: stream(2),
            amounts: stream(3),
            targets: stream(4),
            nonces: stream(5),
            hot: stream(6),
            run: hex(params.run_id, RUN_LEN),
            params,
        })
    }

    /// The parameters.
    pub(crate) fn params(&self) -> &Params {
        &self.params
    }

    /// Currency of all payments.
    pub(crate) fn currency(&self) -> Currency {
        self.currency
    }

    /// What request `n` does.
    pub(crate) fn op(&self, n: u64) -> Op {
        if n < self.params.lag {
            return Op::Pay;
        }
        let mix = self.params.mix;
        let mut draw = self.ops.below(n, u64::from(mix.pay) + mix.others());
        if draw < u64::from(mix.pay) {
            return self.kind_of_pay(n);
        }
        draw -= u64::from(mix.pay);
        let others = [
            (mix.query, Op::Query),
            (mix.refund, Op::Refund),
            (mix.close, Op::Close),
            (mix.reverse, Op::Reverse),
        ];
        for (weight, op) in others {
            if draw < u64::from(weight) {
                return op;
            }
            draw -= u64::from(weight);
        }
        Op::Pay
    }

    /// A pay, or one that is not what it should be.
    fn kind_of_pay(&self, n: u64) -> Op {
        let Params { duplicates_ppm, conflicts_ppm, bad_signatures_ppm, .. } = self.params;
        let kinds = [
            (duplicates_ppm, Op::Duplicate),
            (conflicts_ppm, Op::Conflict),
            (bad_signatures_ppm, Op::BadSignature),
        ];
        if kinds.iter().all(|(share, _)| *share == 0) {
            return Op::Pay;
        }
        let mut draw = self.repeats.below(n, 1_000_000) as u32;
        for (share, op) in kinds {
            if draw < share {
                return op;
            }
            draw -= share;
        }
        Op::Pay
    }

    /// The new payment that request `n` is about: itself for a pay, whether its
    /// signature fits or not.
    pub(crate) fn target(&self, n: u64) -> u64 {
        let op = self.op(n);
        if matches!(op, Op::Pay | Op::BadSignature) {
            return n;
        }
        let bits = self.targets.draw(n);
        let mut k = if matches!(op, Op::Duplicate | Op::Close) && bits & 1 == 0 {
            // Probably still in flight: the switch must join the two.
            n - 1 - below(bits, NEAR.min(n))
        } else {
            let last = n - self.params.lag;
            last - below(bits, REACH.min(last + 1))
        };
        // Request 0 is a pay, so this ends.
        while self.op(k) != Op::Pay {
            k -= 1;
        }
        k
    }

    /// Index of payment `k`'s merchant.
    pub(crate) fn merchant(&self, k: u64) -> u32 {
        let hot = self.params.hot_ppm;
        if hot > 0 && self.hot.below(k, 1_000_000) < u64::from(hot) {
            return 0;
        }
        self.zipf.sample(self.merchants.draw(k))
    }

    /// Amount of payment `k`.
    pub(crate) fn amount(&self, k: u64) -> Amount {
        amount(AMOUNT_MIN + self.amounts.below(k, AMOUNT_MAX - AMOUNT_MIN + 1))
    }

    /// Amount that request `n`, a conflict about payment `k`, asks instead.
    pub(crate) fn conflicting_amount(&self, k: u64) -> Amount {
        amount(self.amount(k).minor().unsigned_abs() + 1)
    }

    /// Amount that request `n`, a refund, gives back of payment `k`: at most a
    /// twentieth, so that all refunds of one payment fit, also where there are many.
    pub(crate) fn refund_amount(&self, n: u64, k: u64) -> Amount {
        let part = self.amount(k).minor().unsigned_abs() / REFUND_PARTS;
        amount(1 + self.amounts.below(n, part.max(1)))
    }

    /// The payer of payment `k`.
    pub(crate) fn payer(&self, k: u64) -> u32 {
        (self.targets.draw(!k) >> 44) as u32
    }

    /// Bits that choose the payment's method.
    pub(crate) fn method_bits(&self, k: u64) -> u64 {
        self.payer(k).into()
    }

    /// Nonce of request `n`: 32 bits, which are signed as half the digits of 64.
    pub(crate) fn nonce(&self, n: u64) -> u64 {
        self.nonces.draw(n) >> 32
    }

    /// The merchant's number of payment `k`.
    pub(crate) fn out_trade_no(&self, k: u64) -> OutTradeNo {
        OutTradeNo::parse_padded(self.padded(k)).expect("hex digits are allowed")
    }

    /// The request whose number this is; `None` for another run's.
    pub(crate) fn request_of(&self, number: &[u8]) -> Option<u64> {
        let digits = number.strip_prefix(&self.run.to_le_bytes()[..RUN_LEN])?;
        let value = |byte: &u8| match byte {
            b'0'..=b'9' => Some(u64::from(byte - b'0')),
            b'a'..=b'f' => Some(u64::from(byte - b'a') + 10),
            _ => None,
        };
        let fits = digits.len() == NUMBER_LEN - RUN_LEN;
        fits.then_some(())?;
        digits.iter().try_fold(0, |n, byte| Some(n << 4 | value(byte)?))
    }

    fn number(&self, n: u64) -> [u8; NUMBER_LEN] {
        self.padded(n).first_chunk().copied().expect("it is not longer")
    }

    /// The run's digits and the request's, then zeros: put together in registers, since it is
    /// read at once and in other pieces than bytes.
    fn padded(&self, n: u64) -> [u8; 32] {
        const SHIFT: u32 = 8 * RUN_LEN as u32;
        let digits = hex(n, NUMBER_LEN - RUN_LEN);
        let words = [self.run | digits << SHIFT, digits >> (128 - SHIFT)];
        let mut text = [0; 32];
        for (bytes, word) in text.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        text
    }

    /// The merchant's number of refund request `n`.
    pub(crate) fn out_refund_no(&self, n: u64) -> OutRefundNo {
        let mut text = [b'R'; NUMBER_LEN + 1];
        text[1..].copy_from_slice(&self.number(n));
        OutRefundNo::parse(&text).expect("hex digits are allowed")
    }
}

fn amount(minor: u64) -> Amount {
    Amount::new(minor as i64).expect("planned amounts are small and positive")
}

/// Hex digits of the run.
const RUN_LEN: usize = 11;
/// Those and 9 of the request.
const NUMBER_LEN: usize = RUN_LEN + 9;

const _: () = assert!(RUN_ID_MAX == 1 << (4 * RUN_LEN));
const _: () = assert!(REQUESTS_MAX == 1 << (4 * (NUMBER_LEN - RUN_LEN)));

/// The lowest `count` hex digits, at most 16, the first in the lowest byte; zeros above.
fn hex(value: u64, count: usize) -> u128 {
    let [high, low] = [value >> 32, value & 0xffff_ffff].map(eight_hex_digits);
    (u128::from(low) << 64 | u128::from(high)) >> (8 * (16 - count))
}

/// The hex digits of a number below 2^32, the first in the lowest byte: halves, quarters and
/// eighths are moved apart, then all become text at once.
fn eight_hex_digits(value: u64) -> u64 {
    let fours = value >> 16 | (value & 0xffff) << 32;
    let twos = fours >> 8 & 0x0000_00ff_0000_00ff | (fours & 0x0000_00ff_0000_00ff) << 16;
    let ones = twos >> 4 & 0x000f_000f_000f_000f | (twos & 0x000f_000f_000f_000f) << 8;
    // 1 where the digit is a letter.
    let letters = (ones + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    ones + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plan with a bit of everything.
    pub(crate) fn params() -> Params {
        Params {
            seed: 42,
            run_id: 0x123_4567_89ab,
            expire_ms: 4_000_000_000_000,
            mix: Mix::of(80, 15, 5),
            duplicates_ppm: 20_000,
            conflicts_ppm: 10_000,
            bad_signatures_ppm: 0,
            hot_ppm: 0,
            notify: false,
            zipf: 0.9,
            lag: 500,
            merchants: (1..=100).map(|number| format!("M{number:06}")).collect(),
        }
    }

    /// As [`params`], with closes, reverses, bad signatures and a hot merchant too.
    pub(crate) fn all_kinds() -> Params {
        let mix = Mix { close: 4, reverse: 2, ..params().mix };
        Params { mix, bad_signatures_ppm: 5_000, hot_ppm: 200_000, ..params() }
    }

    #[test]
    fn a_number_leads_back_to_its_request_and_another_run_s_does_not() {
        let plan = plan();
        for n in [0, 1, 77_777, REQUESTS_MAX - 1] {
            assert_eq!(plan.request_of(plan.out_trade_no(n).as_bytes()), Some(n));
        }
        let other = Plan::new(Params { run_id: 7, ..params() }).unwrap();
        let number = plan.out_trade_no(5);
        assert_eq!(other.request_of(number.as_bytes()), None);
        for text in
            [&number.as_bytes()[1..], &number.as_bytes()[..19], b"", b"123456789ab00000000G"]
        {
            assert_eq!(plan.request_of(text), None);
        }
    }

    fn counts(plan: &Plan) -> [u32; 8] {
        let mut counts = [0; 8];
        (500..200_500).for_each(|n| counts[plan.op(n) as usize] += 1);
        counts
    }

    fn plan() -> Plan {
        Plan::new(params()).unwrap()
    }

    #[test]
    fn a_request_is_a_pure_function_of_the_parameters() {
        let (a, b) = (plan(), plan());
        for n in (0..50_000).rev().step_by(7) {
            let k = a.target(n);
            assert_eq!((a.op(n), k), (b.op(n), b.target(n)));
            assert_eq!((a.merchant(k), a.amount(k)), (b.merchant(k), b.amount(k)));
            assert_eq!(a.nonce(n), b.nonce(n));
        }
    }

    #[test]
    fn references_name_earlier_pays_beyond_the_lag() {
        let plan = plan();
        for n in 0..50_000 {
            let (op, k) = (plan.op(n), plan.target(n));
            assert_eq!(plan.op(k), Op::Pay);
            match op {
                Op::Pay => assert_eq!(k, n),
                Op::Duplicate => assert!(k < n),
                _ => assert!(k + 500 <= n, "{n} {k}"),
            }
        }
    }

    #[test]
    fn shares_follow_the_mix() {
        let plan = plan();
        let counts = counts(&plan);
        let share = |op: Op| f64::from(counts[op as usize]) / 200_000.0;
        assert!((share(Op::Query) - 0.15).abs() < 0.005);
        assert!((share(Op::Refund) - 0.05).abs() < 0.005);
        assert!((share(Op::Duplicate) - 0.8 * 0.02).abs() < 0.002);
        assert!((share(Op::Conflict) - 0.8 * 0.01).abs() < 0.002);
        assert!([Op::BadSignature, Op::Close, Op::Reverse].map(|op| counts[op as usize]) == [0; 3]);
    }

    #[test]
    fn every_kind_has_its_share_and_a_seed_gives_the_same_counts_again() {
        let plan = Plan::new(all_kinds()).unwrap();
        let found = counts(&plan);
        let share = |op: Op| f64::from(found[op as usize]) / 200_000.0;
        let pays = 80.0 / 106.0;
        assert!((share(Op::Close) - 4.0 / 106.0).abs() < 0.002);
        assert!((share(Op::Reverse) - 2.0 / 106.0).abs() < 0.002);
        assert!((share(Op::BadSignature) - pays * 0.005).abs() < 0.001);
        assert_eq!(found, counts(&Plan::new(all_kinds()).unwrap()));
        assert_eq!(found.iter().sum::<u32>(), 200_000);
        let other = Plan::new(Params { seed: 43, ..all_kinds() }).unwrap();
        assert_ne!(found, counts(&other));
    }

    #[test]
    fn closes_and_reverses_are_about_earlier_pays_and_bad_signatures_about_none() {
        let plan = Plan::new(all_kinds()).unwrap();
        let mut near = 0;
        for n in 0..50_000 {
            let (op, k) = (plan.op(n), plan.target(n));
            match op {
                Op::BadSignature => assert_eq!(k, n),
                Op::Close => {
                    assert!(k < n && plan.op(k) == Op::Pay);
                    near += u32::from(k + 500 > n);
                }
                Op::Reverse => assert!(k + 500 <= n && plan.op(k) == Op::Pay),
                _ => assert_eq!(plan.op(k), Op::Pay),
            }
        }
        assert!(near > 500, "{near}");
    }

    #[test]
    fn a_hot_merchant_has_its_share_and_the_others_keep_theirs() {
        let share = |hot_ppm: u32| {
            let plan = Plan::new(Params { hot_ppm, ..params() }).unwrap();
            let firsts = (0..100_000).filter(|k| plan.merchant(*k) == 0).count();
            firsts as f64 / 100_000.0
        };
        let own = share(0);
        assert!((share(300_000) - (0.3 + 0.7 * own)).abs() < 0.01);
        assert!((share(1_000_000) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn shares_beyond_all_are_refused() {
        for params in [
            Params { duplicates_ppm: 600_000, bad_signatures_ppm: 400_001, ..params() },
            Params { hot_ppm: 1_000_001, ..params() },
            Params { bad_signatures_ppm: u32::MAX, ..params() },
        ] {
            assert!(Plan::new(params).is_none());
        }
    }

    #[test]
    fn parameters_of_earlier_logs_are_read() {
        let mut head = serde_json::to_value(params()).unwrap();
        for field in ["bad_signatures_ppm", "hot_ppm"] {
            head.as_object_mut().unwrap().remove(field).unwrap();
        }
        for field in ["close", "reverse"] {
            head["mix"].as_object_mut().unwrap().remove(field).unwrap();
        }
        assert_eq!(serde_json::from_value::<Params>(head).unwrap(), params());
    }

    #[test]
    fn numbers_tell_requests_and_runs_apart() {
        let plan = plan();
        assert_eq!(plan.out_trade_no(77_777).as_str(), "123456789ab000012fd1");
        assert_eq!(plan.out_trade_no(REQUESTS_MAX - 1).as_str(), "123456789abfffffffff");
        assert_eq!(plan.out_refund_no(5).as_str(), "R123456789ab000000005");
        let other = Plan::new(Params { run_id: 1, ..params() }).unwrap();
        assert_eq!(other.out_trade_no(0).as_str(), "00000000001000000000");
    }

    #[test]
    fn refunds_stay_within_the_payment() {
        let plan = plan();
        for n in (0..100_000).filter(|n| plan.op(*n) == Op::Refund) {
            let k = plan.target(n);
            let most = plan.amount(k).minor().unsigned_abs() / REFUND_PARTS;
            assert!(plan.refund_amount(n, k).minor().unsigned_abs() <= most.max(1));
        }
    }

    #[test]
    fn many_refunds_of_few_payments_fit_as_well() {
        let plan = Plan::new(Params { mix: Mix::of(10, 0, 10), ..params() }).unwrap();
        let mut given_back = std::collections::HashMap::<u64, i64>::new();
        for n in (0..1_000_000).filter(|n| plan.op(*n) == Op::Refund) {
            let k = plan.target(n);
            let sum = given_back.entry(k).or_default();
            *sum += plan.refund_amount(n, k).minor();
            assert!(*sum <= plan.amount(k).minor(), "payment {k}");
        }
    }

    #[test]
    fn mixes_are_parsed_and_bad_ones_refused() {
        let mix = Mix::parse("pay=80,query=15,refund=5").unwrap();
        assert_eq!(mix, Mix::of(80, 15, 5));
        let mix = Mix::parse("pay=80,close=4,reverse=2").unwrap();
        assert_eq!(mix, Mix { close: 4, reverse: 2, ..Mix::of(80, 0, 0) });
        let bad = ["", "pay", "pay=x", "close=1", "query=5", "pay=1,query=5000"];
        for bad in bad.into_iter().chain(["pay=1,pay=2", "pay=1,void=1", "pay=1,close=1000001"]) {
            assert!(Mix::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hex_digits_are_those_of_the_standard_library() {
        for at in 0..20_000_u64 {
            let value = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 64);
            assert_eq!(hex(value, 16).to_le_bytes(), *format!("{value:016x}").as_bytes());
            let text = format!("{value:09x}");
            assert_eq!(hex(value, 9).to_le_bytes()[..9], text.as_bytes()[text.len() - 9..]);
        }
    }
}
