//! Signed frames of planned requests, written into the caller's buffer.
//!
//! The same arguments give the same bytes, so a lost request is made again
//! instead of being kept. Two frames are signed at once, which takes less than
//! twice the time of one: the first of them stands unsigned in its buffer until the
//! second comes, or [`Encoder::finish`]. Allocates nothing after its buffers have
//! grown. Tested by decoding and verifying what it writes.

use crate::config::Merchant;
use crate::key::Key;
use crate::plan::{Op, Plan};
use protocol::code::{Method, Scene};
use protocol::message::{Auth, OrderRef, OrderRequest, Pay, Refund, Tags, TimeDigits, kind};
use protocol::sign::HmacKey;

/// How long the switch may take before it answers PROCESSING: its own bound.
const WAIT_MS: u32 = 0;

/// Target of outcome events, when they are wanted: this gateway's subscription.
const NOTIFY: &[u8] = b"subscription";

/// Bytes of the second signature's fields, behind the first one, where there is none.
const NO_SECOND: usize = 21;

/// Payments that are told ahead at once, at most.
pub(crate) const FOUND: usize = 16;
/// Places of those found. A prime above the most workers: each payment told ahead has its own,
/// however many workers there are, of which each sends one payment in so many.
const PLACES: usize = 67;

/// A frame that is not signed yet.
#[derive(Default)]
struct Unsigned {
    canonical: Vec<u8>,
    merchant: u32,
    /// Where its signature goes.
    at: usize,
    /// How long that is.
    len: usize,
    /// It is to be a wrong one.
    bad: bool,
}

/// Writes requests.
pub(crate) struct Encoder {
    merchants: Vec<Merchant>,
    /// The first `waiting` wait for their signatures.
    unsigned: [Unsigned; 2],
    waiting: usize,
    times: TimeDigits,
    /// Payments of the one plan whose merchant was just found, by [`PLACES`].
    found: [(u64, u32); PLACES],
}

impl Encoder {
    /// An encoder for these merchants, in the order of the plan's.
    pub(crate) fn new(merchants: Vec<Merchant>) -> Self {
        let room = || Unsigned { canonical: Vec::with_capacity(1024), ..Unsigned::default() };
        Self {
            merchants,
            unsigned: [room(), room()],
            waiting: 0,
            times: TimeDigits::default(),
            found: [(u64::MAX, 0); PLACES],
        }
    }

    /// The merchant with this index.
    pub(crate) fn merchant(&self, index: u32) -> &Merchant {
        // The plan draws indices below the number of merchants.
        &self.merchants[index as usize]
    }

    /// Finds the merchant of payment `k` and asks for its memory without needing it yet:
    /// done for a whole batch ahead of its requests, the cache misses overlap.
    pub(crate) fn warm(&mut self, plan: &Plan, k: u64) {
        let index = plan.merchant(k);
        self.found[k as usize % PLACES] = (k, index);
        let lines = |merchant: &Merchant| (merchant.key_id, matches!(merchant.key, Key::Hmac(_)));
        std::hint::black_box(self.merchants.get(index as usize).map(lines));
    }

    /// Appends the frame of request `n`, which does `op` to payment `k`. Until
    /// [`Self::finish`] the same buffer comes each time, and only grows.
    pub(crate) fn request(
        &mut self,
        plan: &Plan,
        (n, op, k): (u64, Op, u64),
        correlation: u64,
        timestamp_ms: u64,
        out: &mut Vec<u8>,
    ) {
        let index = match self.found[k as usize % PLACES] {
            (found, index) if found == k => index,
            _ => plan.merchant(k),
        };
        let merchant = &self.merchants[index as usize];
        let (key_id, nonce) = (merchant.key_id, plan.nonce(n));
        let len = merchant.key.signature_len();
        let auth = Auth { key_id, timestamp_ms, nonce, signature: &[0; 64][..len] };
        let unsigned = &mut self.unsigned[self.waiting];
        let canonical = &mut unsigned.canonical;
        canonical.clear();
        let behind = match op {
            Op::Pay | Op::Duplicate | Op::Conflict | Op::BadSignature => {
                let token = payer_token(plan.payer(k));
                let mut pay = pay(plan, k, merchant, &token, auth);
                if op == Op::Conflict {
                    pay.amount = plan.conflicting_amount(k);
                }
                pay.canonical_after(&mut self.times, canonical);
                pay.encode_frame(correlation, out);
                NO_SECOND
            }
            Op::Query | Op::Close | Op::Reverse => {
                let kind = match op {
                    Op::Close => kind::CLOSE,
                    Op::Reverse => kind::REVERSE,
                    _ => kind::QUERY,
                };
                let query = OrderRequest {
                    mch_id: merchant.id,
                    order: OrderRef::OutTradeNo(plan.out_trade_no(k)),
                    refresh: false,
                    wait_ms: WAIT_MS,
                    auth,
                };
                query.canonical(kind, canonical);
                query.encode_frame(kind, correlation, out);
                0
            }
            Op::Refund => {
                let refund = Refund {
                    mch_id: merchant.id,
                    order: OrderRef::OutTradeNo(plan.out_trade_no(k)),
                    out_refund_no: plan.out_refund_no(n),
                    amount: plan.refund_amount(n, k),
                    currency: plan.currency(),
                    reason: b"load",
                    wait_ms: WAIT_MS,
                    auth,
                };
                refund.canonical(canonical);
                refund.encode_frame(correlation, out);
                0
            }
        };
        unsigned.merchant = index;
        (unsigned.at, unsigned.len) = (out.len() - behind - len, len);
        unsigned.bad = op == Op::BadSignature;
        self.waiting += 1;
        if self.waiting == self.unsigned.len() {
            self.finish(out);
        }
    }

    /// Whether a frame still waits for its signature.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Signs what waits for it, in the buffer of the last request.
    pub(crate) fn finish(&mut self, out: &mut [u8]) {
        let waiting = &mut self.unsigned[..std::mem::take(&mut self.waiting)];
        let key = |unsigned: &Unsigned| &self.merchants[unsigned.merchant as usize].key;
        if let [first, second] = waiting
            && let (Key::Hmac(one), Key::Hmac(other)) = (key(first), key(second))
        {
            let messages = [&mut first.canonical, &mut second.canonical];
            let tags = HmacKey::sign_two([one, other], messages);
            first.place(out).copy_from_slice(&tags[0]);
            second.place(out).copy_from_slice(&tags[1]);
        } else {
            for unsigned in &*waiting {
                key(unsigned).sign(&unsigned.canonical, unsigned.place(out));
            }
        }
        for unsigned in waiting.iter().filter(|unsigned| unsigned.bad) {
            unsigned.place(out)[0] ^= 1;
        }
    }
}

impl Unsigned {
    /// The place of its signature.
    fn place<'a>(&self, out: &'a mut [u8]) -> &'a mut [u8] {
        &mut out[self.at..self.at + self.len]
    }
}

fn pay<'a>(
    plan: &Plan,
    k: u64,
    merchant: &Merchant,
    payer_token: &'a [u8],
    auth: Auth<'a>,
) -> Pay<'a> {
    Pay {
        mch_id: merchant.id,
        out_trade_no: plan.out_trade_no(k),
        amount: plan.amount(k),
        currency: plan.currency(),
        method: if plan.method_bits(k) & 1 == 0 { Method::Wallet } else { Method::Card },
        scene: Scene::App,
        payer_token,
        device_id: &[],
        client_ip: [0; 16],
        time_expire_ms: plan.params().expire_ms,
        notify: if plan.params().notify { NOTIFY } else { &[] },
        wait_ms: WAIT_MS,
        tags: Tags::default(),
        auth,
        second: Auth::NONE,
    }
}

/// `P` and the payer's number, six hex digits.
fn payer_token(payer: u32) -> [u8; 7] {
    let mut token = *b"P000000";
    for (at, slot) in token[1..].iter_mut().enumerate() {
        *slot = b"0123456789abcdef"[(payer >> (4 * (5 - at)) & 15) as usize];
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{all_kinds, params};
    use protocol::frame::{HEADER_LEN, Header};
    use protocol::id::MchId;
    use protocol::sign::MerchantKey;

    fn encoder(plan: &Plan) -> Encoder {
        let merchant = |id: &String| Merchant {
            id: MchId::parse(id.as_bytes()).unwrap(),
            key_id: 3,
            key: Key::hmac(b"secret"),
        };
        Encoder::new(plan.params().merchants.iter().map(merchant).collect())
    }

    fn first(plan: &Plan, op: Op) -> (u64, Op, u64) {
        let n = (0..100_000).find(|n| plan.op(*n) == op).unwrap();
        (n, op, plan.target(n))
    }

    #[test]
    fn every_operation_decodes_and_verifies_but_a_bad_signature() {
        let plan = Plan::new(all_kinds()).unwrap();
        let mut encoder = encoder(&plan);
        let key = MerchantKey::hmac(b"secret");
        for op in Op::ALL {
            let (request, mut out, mut canonical) = (first(&plan, op), Vec::new(), Vec::new());
            encoder.request(&plan, request, 99, 1_700_000_000_000, &mut out);
            assert!(encoder.is_waiting());
            encoder.finish(&mut out);
            let (head, body) = out.split_first_chunk::<HEADER_LEN>().unwrap();
            let header = Header::decode(head).unwrap();
            assert_eq!((header.length as usize, header.correlation), (body.len(), 99));
            let auth = match op {
                Op::Query | Op::Close | Op::Reverse => {
                    let query = OrderRequest::decode(body).unwrap();
                    query.canonical(header.kind, &mut canonical);
                    query.auth
                }
                Op::Refund => {
                    let refund = Refund::decode(body).unwrap();
                    refund.canonical(&mut canonical);
                    refund.auth
                }
                _ => {
                    let pay = Pay::decode(body).unwrap();
                    assert_eq!(pay.out_trade_no, plan.out_trade_no(request.2));
                    pay.canonical(&mut canonical);
                    pay.auth
                }
            };
            let fits = key.verify(&canonical, auth.signature);
            assert_eq!(fits, op != Op::BadSignature, "{op:?}");
        }
    }

    #[test]
    fn merchants_found_ahead_are_those_of_their_payments() {
        let plan = Plan::new(params()).unwrap();
        let merchant = |id: &String| Merchant {
            id: MchId::parse(id.as_bytes()).unwrap(),
            key_id: 3,
            key: Key::hmac(id.as_bytes()),
        };
        let encoder = || Encoder::new(plan.params().merchants.iter().map(merchant).collect());
        let (mut warm, mut cold) = (encoder(), encoder());
        for workers in 1..=64 {
            let numbers = || (0..FOUND as u64).map(|at| 1_000 * workers + at * workers);
            numbers().for_each(|k| warm.warm(&plan, k));
            let places: std::collections::BTreeSet<u64> =
                numbers().map(|k| k % PLACES as u64).collect();
            assert_eq!(places.len(), FOUND, "{workers}");
            // Those behind have the places of others.
            for k in numbers().chain(0..100) {
                let [one, other] = [&mut warm, &mut cold].map(|encoder| {
                    let mut out = Vec::new();
                    encoder.request(&plan, (k, Op::Pay, k), k, 5, &mut out);
                    encoder.finish(&mut out);
                    out
                });
                assert!(one == other, "{k}");
            }
        }
    }

    #[test]
    fn two_at_once_are_the_bytes_of_each_alone() {
        let plan = Plan::new(all_kinds()).unwrap();
        let merchant = |(at, id): (usize, &String)| Merchant {
            id: MchId::parse(id.as_bytes()).unwrap(),
            key_id: 3,
            key: match at % 3 {
                0 => Key::ed25519(&[7; 32]).unwrap(),
                _ => Key::hmac(id.as_bytes()),
            },
        };
        let merchants = plan.params().merchants.iter().enumerate().map(merchant);
        let mut encoder = Encoder::new(merchants.collect());
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for n in 0..500 {
            let op = plan.op(n);
            let k = if op == Op::Pay { n } else { plan.target(n) };
            encoder.request(&plan, (n, op, k), n, 5, &mut alone);
            encoder.finish(&mut alone);
        }
        for n in 0..500 {
            let op = plan.op(n);
            let k = if op == Op::Pay { n } else { plan.target(n) };
            encoder.request(&plan, (n, op, k), n, 5, &mut together);
        }
        assert!(!encoder.is_waiting(), "the last one came second");
        assert!(alone == together);
    }

    #[test]
    fn a_duplicate_has_the_same_fingerprint_and_a_conflict_has_not() {
        let plan = Plan::new(params()).unwrap();
        let mut encoder = encoder(&plan);
        let mut fingerprint = |request: (u64, Op, u64)| {
            let mut out = Vec::new();
            encoder.request(&plan, request, 1, 5, &mut out);
            encoder.finish(&mut out);
            Pay::decode(&out[HEADER_LEN..]).unwrap().fingerprint()
        };
        let (n, op, k) = first(&plan, Op::Duplicate);
        assert_eq!(fingerprint((n, op, k)), fingerprint((k, Op::Pay, k)));
        let (n, op, k) = first(&plan, Op::Conflict);
        assert_ne!(fingerprint((n, op, k)), fingerprint((k, Op::Pay, k)));
    }
}
