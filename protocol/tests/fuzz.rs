//! A seeded fuzz run over every decoder in the normal test run: frames of the
//! golden vectors are cut, flipped, stretched and spliced; every decoder must
//! answer with a message or a typed error, never with a panic, and what was
//! decoded must survive being encoded and decoded again.

use protocol::channel::{ChannelReply, ChannelRequest};
use protocol::frame::{BODY_MAX, HEADER_LEN, Header, Splitter};
use protocol::message::{
    Ack, ErrorFrame, Event, GoAway, Hello, Leaders, OrderReply, OrderRequest, Pay, Ping, Pong,
    QueryRefund, Refund, RefundReply, Subscribe, kind,
};

/// xorshift64*: the run is a pure function of its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Frames per decoder.
const RUNS: usize = 200_000;

/// The frames of the golden vectors.
fn corpus() -> Vec<Vec<u8>> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors");
    let mut frames = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("frame: ")) {
            let digit = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
            frames.push((0..line.len()).step_by(2).map(digit).collect());
        }
    }
    frames.sort();
    assert!(frames.len() > 50);
    frames
}

/// One to four changes of a body.
fn mutate(random: &mut Random, body: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    for _ in 0..=random.below(4) {
        let at = random.below(body.len());
        match random.below(7) {
            0 => body.truncate(at),
            1 if !body.is_empty() => body[at] ^= 1 << random.below(8),
            2 if !body.is_empty() => body[at] = random.next() as u8,
            3 => body.insert(at, random.next() as u8),
            4 if !body.is_empty() => drop(body.remove(at)),
            // Extremes where a length or a number may be.
            5 if !body.is_empty() => body[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                body.truncate(at);
                body.extend_from_slice(&other[from..]);
            }
        }
    }
}

/// Runs one decoder over mutations of bodies of `kinds`; returns how many were
/// accepted, so that a run that only ever meets the first check is noticed.
fn run(seed: u64, kinds: &[u8], mut decode: impl FnMut(u8, &[u8]) -> bool) -> usize {
    let corpus = corpus();
    let own: Vec<_> = corpus.iter().filter(|frame| kinds.contains(&frame[4])).collect();
    assert!(!own.is_empty(), "no vector of {kinds:?}");
    let mut random = Random(seed);
    let (mut accepted, mut body) = (0, Vec::new());
    for _ in 0..RUNS {
        let frame = own[random.below(own.len())];
        body.clear();
        body.extend_from_slice(&frame[HEADER_LEN..]);
        mutate(&mut random, &mut body, &corpus);
        accepted += usize::from(decode(frame[4], &body));
    }
    assert!(accepted > RUNS / 100, "only {accepted} of {RUNS} were accepted");
    accepted
}

/// A decoder under test: what it accepts is encoded, and the encoding must
/// decode to something that encodes the same.
macro_rules! fuzz {
    ($name:ident, $seed:literal, $kinds:expr, $type:ident) => {
        #[test]
        fn $name() {
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            run($seed, $kinds, |_, body| match $type::decode(body) {
                Ok(message) => {
                    once.clear();
                    twice.clear();
                    message.encode(&mut once);
                    $type::decode(&once).expect("its own encoding").encode(&mut twice);
                    assert_eq!(once, twice);
                    assert!(once.len() <= BODY_MAX);
                    true
                }
                Err(error) => {
                    assert!(
                        (103..=105).contains(&error.code().wire()) && !error.field().is_empty()
                    );
                    false
                }
            });
        }
    };
}

fuzz!(pay, 1, &[kind::PAY], Pay);
fuzz!(order_request, 2, &[kind::QUERY, kind::CLOSE, kind::REVERSE], OrderRequest);
fuzz!(refund, 3, &[kind::REFUND], Refund);
fuzz!(query_refund, 4, &[kind::QUERY_REFUND], QueryRefund);
fuzz!(order_reply, 5, &[0x90, 0x91, 0x94, 0x95], OrderReply);
fuzz!(refund_reply, 6, &[0x92, 0x93], RefundReply);
fuzz!(hello, 7, &[kind::HELLO], Hello);
fuzz!(go_away, 8, &[kind::GOAWAY], GoAway);
fuzz!(ping, 9, &[kind::PING], Ping);
fuzz!(pong, 10, &[0x83], Pong);
fuzz!(event, 11, &[kind::EVENT], Event);
fuzz!(ack, 12, &[kind::ACK], Ack);
fuzz!(error_frame, 13, &[kind::ERROR], ErrorFrame);
fuzz!(subscribe, 14, &[kind::SUBSCRIBE], Subscribe);
fuzz!(leaders, 18, &[kind::LEADER], Leaders);

#[test]
fn channel_request() {
    let kinds = [0x40, 0x41, 0x42, 0x43, 0x44];
    let mut out = Vec::new();
    run(15, &kinds, |kind, body| match ChannelRequest::decode(kind, body) {
        Ok(request) => {
            out.clear();
            request.encode(&mut out);
            assert_eq!(ChannelRequest::decode(kind, &out), Ok(request));
            true
        }
        Err(_) => false,
    });
}

#[test]
fn channel_reply() {
    let kinds = [0xc0, 0xc1, 0xc2, 0xc3, 0xc4];
    let mut out = Vec::new();
    run(16, &kinds, |kind, body| match ChannelReply::decode(kind, body) {
        Ok(reply) => {
            out.clear();
            reply.encode(&mut out);
            assert_eq!(ChannelReply::decode(kind, &out), Ok(reply));
            true
        }
        Err(_) => false,
    });
}

/// Streams of frames with damaged headers, cut at random: frames that come out
/// are frames that went in up to the first damage.
#[test]
fn splitter() {
    let corpus = corpus();
    let mut random = Random(17);
    let mut failed = 0;
    for _ in 0..20_000 {
        let mut stream = Vec::new();
        for _ in 0..=random.below(6) {
            stream.extend_from_slice(&corpus[random.below(corpus.len())]);
        }
        for _ in 0..random.below(3) {
            let at = random.below(stream.len());
            stream[at] ^= 1 << random.below(8);
        }
        let (mut splitter, mut rest, mut taken) = (Splitter::new(), &stream[..], Vec::new());
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at((1 + random.below(200)).min(rest.len()));
            rest = after;
            let fed = splitter.push(chunk, |header: Header, body| {
                taken.extend_from_slice(&header.encode());
                taken.extend_from_slice(body);
            });
            assert!(splitter.pending() < HEADER_LEN + BODY_MAX);
            if fed.is_err() {
                failed += 1;
                break;
            }
        }
        assert_eq!(taken, stream[..taken.len()]);
    }
    assert!(failed > 500, "only {failed} streams were refused");
}
