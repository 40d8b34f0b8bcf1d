use super::faults::Late;
use super::*;
use crate::channel::book::tests::request;

struct Bench {
    channel: Rc<Channel>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(faults: Faults) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), |_| {}).ok().unwrap();
        Self { channel: Channel::new(Book::new(), ledger, faults), _dir: dir }
    }

    fn ask(&self, kind: u8, n: u8) -> (Option<Fate>, Vec<ChannelReply>) {
        let mut frame = Vec::new();
        let mut asked = request(kind, n, 0, 100);
        asked.time_expire_ms = u64::MAX;
        asked.encode_frame(77, &mut frame);
        let (mut replies, mut decoded) = (Vec::new(), Vec::new());
        let mut fate = None;
        let mut splitter = Splitter::new();
        let pushed = splitter.push(&frame, |header, body| {
            let state = &mut self.channel.state.borrow_mut();
            let operation = parse(header, body).unwrap();
            fate = state.answer(&operation, Instant::now(), 5, &mut replies);
        });
        pushed.unwrap();
        Splitter::new()
            .push(&replies, |header, body| {
                assert_eq!(header.correlation, 77);
                decoded.push(ChannelReply::decode(header.kind, body).unwrap());
            })
            .unwrap();
        (fate, decoded)
    }
}

#[test]
fn an_honest_channel_answers_once_with_the_amount() {
    let bench = Bench::new(Faults::none());
    let (fate, replies) = bench.ask(kind::CHARGE, 1);
    assert_eq!((fate, replies.len()), (Some(Fate::NONE), 1));
    assert_eq!((replies[0].status, replies[0].amount), (ChannelStatus::Success, 100));
    let (_, again) = bench.ask(kind::CHARGE, 1);
    assert_eq!(again[0].channel_ref, replies[0].channel_ref);
}

#[test]
fn a_lost_request_leaves_nothing_and_a_lost_reply_leaves_a_charge() {
    let bench = Bench::new(Faults { drop_request: 1.0, ..Faults::none() });
    assert!(bench.ask(kind::CHARGE, 1).1.is_empty());
    assert_eq!(bench.channel.state.borrow().book.len(), (0, 0));
    let bench = Bench::new(Faults { drop_reply: 1.0, ..Faults::none() });
    assert!(bench.ask(kind::CHARGE, 1).1.is_empty());
    assert_eq!(bench.channel.state.borrow().book.len(), (1, 0));
}

#[test]
fn duplicates_declines_and_wrong_amounts_are_told() {
    let bench = Bench::new(Faults { duplicate: 1.0, ..Faults::none() });
    assert_eq!(bench.ask(kind::CHARGE, 1).1.len(), 2);
    let bench = Bench::new(Faults { decline: 1.0, ..Faults::none() });
    assert_eq!(bench.ask(kind::CHARGE, 1).1[0].status, ChannelStatus::Declined);
    let bench = Bench::new(Faults { wrong_amount: 1.0, ..Faults::none() });
    assert_eq!(bench.ask(kind::CHARGE, 1).1[0].amount, 101);
    assert_eq!(bench.ask(kind::QUERY, 1).1[0].amount, 100);
}

#[test]
fn above_the_rate_limit_the_channel_is_unavailable() {
    let bench = Bench::new(Faults { rate_limit: Some(2), ..Faults::none() });
    let statuses: Vec<_> = (0..3).map(|n| bench.ask(kind::CHARGE, n).1[0].status).collect();
    assert_eq!(statuses[2], ChannelStatus::Unavailable);
    assert_eq!(bench.channel.state.borrow().book.len(), (2, 0));
}

#[test]
fn late_replies_wait_and_foreign_numbers_are_ignored() {
    let late = Some(Late::parse("100%:500").unwrap());
    let bench = Bench::new(Faults { late, ..Faults::none() });
    assert_eq!(bench.ask(kind::CHARGE, 1).0.map(|fate| fate.delay_ns), Some(500_000_000));
    let mut body = Vec::new();
    request(kind::CHARGE, 1, 0, 100).encode(&mut body);
    let at = body.windows(29).position(|text| Number::parse_text(text).is_some()).unwrap();
    body[at + 26] = b'R';
    let header = |length| Header { length, kind: kind::CHARGE, flags: 0, correlation: 1 };
    assert!(parse(header(body.len() as u32), &body).is_none());
    assert!(parse(header(9), &body[..9]).is_none());
}

#[test]
fn a_new_plan_counts_from_when_it_came() {
    let bench = Bench::new(Faults::none());
    assert_eq!(bench.ask(kind::CHARGE, 1).1.len(), 1);
    let outage = FaultArgs::parse("--outage=0:3600").unwrap().faults(1);
    bench.channel.state.borrow_mut().replan(outage);
    assert!(bench.ask(kind::CHARGE, 2).1.is_empty(), "in an outage nothing is answered");
    bench.channel.state.borrow_mut().replan(Faults::none());
    assert_eq!(bench.ask(kind::CHARGE, 3).1.len(), 1);
}
