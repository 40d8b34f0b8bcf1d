//! The driver against several scripted sites over loopback.

use super::tests::{SHARDS, certificates, drive_to, gateway_of, phase, server};
use super::*;
use crate::acks::{AckLog, AckWriter, logs_of};
use crate::null;
use crate::plan::tests::params;
use protocol::code::{Code, OrderState, Reason};
use protocol::frame::{Header, Splitter};
use protocol::id::ShortText;
use protocol::message::{GoAway, Hello, Leader, Leaders, OrderReply, Pay, kind};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Reached only when the machine stands still.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a scripted site does with a pay: its reply, or silence.
type Script = Arc<dyn Fn(&Pay<'_>) -> Option<OrderReply> + Send + Sync>;

fn reply(code: Code, leader_hint: u8) -> OrderReply {
    OrderReply {
        code,
        retry_after_ms: 0,
        replayed: false,
        state: if code == Code::Ok { OrderState::Paid } else { OrderState::None },
        reason: Reason::None,
        transaction_id: None,
        amount: 0,
        currency: None,
        refunded: 0,
        refunding: 0,
        channel: 1,
        finished_at_ms: 1,
        leader_hint,
        out_trade_no: ShortText::EMPTY,
        channel_ref: ShortText::EMPTY,
    }
}

fn shard(pay: &Pay<'_>) -> u16 {
    pay.mch_id.shard(SHARDS)
}

/// A site that follows a script.
fn site(dir: &Path, script: Script) -> SocketAddr {
    server(dir, move |quic, _| {
        let script = Arc::clone(&script);
        async move {
            null::greet(&quic, SHARDS, 10_000).await;
            while let Ok((send, recv)) = quic.accept_bi().await {
                tokio::task::spawn_local(follow(send, recv, Arc::clone(&script)));
            }
        }
    })
}

async fn follow(mut send: quinn::SendStream, mut recv: quinn::RecvStream, script: Script) {
    let (mut splitter, mut frames) = (Splitter::new(), Vec::new());
    while let Ok(Some(chunk)) = recv.read_chunk(1 << 16, true).await {
        let answer = |header: Header, body: &[u8]| {
            let pay = Pay::decode(body).unwrap();
            if let Some(reply) = script(&pay) {
                reply.encode_frame(kind::PAY | kind::REPLY, header.correlation, &mut frames);
            }
        };
        splitter.push(&chunk.bytes, answer).unwrap();
        if send.write_all(&frames).await.is_err() {
            return;
        }
        frames.clear();
    }
}

/// Drives one phase against these sites, numbered from 1.
fn drive(dir: &Path, sites: &[SocketAddr], millis: u64) -> Outcome {
    let phase = Phase { traced: true, ..phase(1_000.0, Duration::from_millis(millis)) };
    drive_to(gateway_of(dir, sites), &phase, DEADLINE, None)
}

fn sandbox() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    dir
}

#[test]
fn requests_go_straight_to_the_site_that_leads() {
    let dir = sandbox();
    // Even shards are led by site 1, odd ones by site 2; whoever is asked answers.
    let count = |own: u8, direct: &Arc<AtomicU64>| {
        let direct = Arc::clone(direct);
        let script: Script = Arc::new(move |pay| {
            let leader = (shard(pay) % 2) as u8 + 1;
            if leader == own {
                direct.fetch_add(1, Ordering::Relaxed);
            }
            Some(reply(Code::Ok, if leader == own { 0 } else { leader }))
        });
        script
    };
    let direct = Arc::new(AtomicU64::new(0));
    let sites = [1, 2].map(|own| site(dir.path(), count(own, &direct)));
    let measure = drive(dir.path(), &sites, 600).measure;
    assert_eq!((measure.ok, measure.unanswered), (600, 0));
    // Only what left before the first answer of a shard can have gone astray, unless
    // the machine stood still and made a site look silent.
    let direct = direct.load(Ordering::Relaxed);
    let astray = measure.silences > 0 || measure.resent > 0;
    assert!(direct >= 400 || astray, "{direct} of 600 went straight to the leader");
}

#[test]
fn refusals_about_the_site_are_tried_elsewhere_and_only_the_end_is_reported() {
    let dir = sandbox();
    let refuse = |code: Code, hint: u8| -> Script { Arc::new(move |_| Some(reply(code, hint))) };
    let sites = [
        site(dir.path(), refuse(Code::Draining, 0)),
        site(dir.path(), refuse(Code::NotLeader, 3)),
        site(dir.path(), refuse(Code::Ok, 0)),
    ];
    let measure = drive(dir.path(), &sites, 300).measure;
    assert_eq!((measure.ok, measure.refused, measure.answered), (300, 0, 300));
    assert_eq!(measure.by_code().len(), 1);
    let retried: u64 = measure.retried_by_code().values().sum();
    assert!(retried > 0 && measure.resent >= retried);
}

#[test]
fn a_site_that_answers_nothing_is_passed_by_with_the_same_request() {
    let dir = sandbox();
    let asked: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let (silent, served) = (Arc::clone(&asked), Arc::new(AtomicU64::new(0)));
    let doubled = Arc::clone(&served);
    let number = |pay: &Pay<'_>| [pay.out_trade_no.as_bytes(), pay.auth.signature].concat();
    // Site 1 leads everything, by site 2's word, until it falls silent at its 100th.
    let sites = [
        site(
            dir.path(),
            Arc::new(move |pay| {
                let mut asked = silent.lock().unwrap();
                asked.push(number(pay));
                (asked.len() < 100).then(|| reply(Code::Ok, 0))
            }),
        ),
        site(
            dir.path(),
            Arc::new(move |pay| {
                let asked = asked.lock().unwrap();
                let again = asked.iter().skip(99).any(|other| *other == number(pay));
                doubled.fetch_add(again.into(), Ordering::Relaxed);
                Some(reply(Code::Ok, if asked.len() < 100 { 1 } else { 0 }))
            }),
        ),
    ];
    let outcome = drive(dir.path(), &sites, 800);
    let measure = outcome.measure;
    assert_eq!((measure.ok, measure.unanswered), (800, 0));
    assert!(served.load(Ordering::Relaxed) > 0, "nothing came a second time");
    assert_eq!(outcome.trace.len(), 800);
}

#[test]
fn a_second_answer_that_differs_is_counted_and_written_down() {
    let dir = sandbox();
    let late = Arc::new(AtomicBool::new(false));
    let (switch, told) = (Arc::clone(&late), AtomicU64::new(0));
    // Site 1 holds its first answers back until site 2 has answered them, and
    // then says the opposite.
    let address = server(dir.path(), move |quic, _| {
        let late = Arc::clone(&late);
        async move {
            null::greet(&quic, SHARDS, 10_000).await;
            while let Ok((send, recv)) = quic.accept_bi().await {
                tokio::task::spawn_local(contradict(send, recv, Arc::clone(&late)));
            }
        }
    });
    let agree: Script = Arc::new(move |_| {
        if told.fetch_add(1, Ordering::Relaxed) > 350 {
            switch.store(true, Ordering::Relaxed);
        }
        Some(reply(Code::Ok, 2))
    });
    let sites = [address, site(dir.path(), agree)];
    let params = params();
    let writer = AckWriter::create(dir.path(), &params).ok().unwrap();
    let phase = phase(1_000.0, Duration::from_millis(600));
    let gateway = gateway_of(dir.path(), &sites);
    let measure = drive_to(gateway, &phase, DEADLINE, Some(writer)).measure;
    assert_eq!((measure.ok, measure.unanswered), (600, 0));
    assert!(measure.differing_answers > 0, "{}", measure.second_answers);
    let log = AckLog::open(&logs_of(dir.path()).unwrap()[0]).ok().unwrap();
    let (mut all, mut closed) = (0, 0);
    let counted = log.each(|ack| {
        all += 1;
        closed += u64::from(ack.state == OrderState::Closed.wire());
    });
    counted.unwrap();
    assert_eq!(closed, measure.differing_answers);
    assert_eq!(all, 600 + measure.differing_answers);
}

/// Answers CLOSED to everything, all at once when told to.
async fn contradict(
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    late: Arc<AtomicBool>,
) {
    let (mut splitter, mut waiting) = (Splitter::new(), Vec::new());
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        tokio::select! {
            chunk = recv.read_chunk(1 << 16, true) => {
                let Ok(Some(chunk)) = chunk else { return };
                let keep = |header: Header, _: &[u8]| waiting.push(header.correlation);
                splitter.push(&chunk.bytes, keep).unwrap();
            }
            _ = tick.tick() => {}
        }
        if !late.load(Ordering::Relaxed) {
            continue;
        }
        let mut frames = Vec::new();
        for correlation in waiting.drain(..) {
            let closed = OrderReply { state: OrderState::Closed, ..reply(Code::Ok, 2) };
            closed.encode_frame(kind::PAY | kind::REPLY, correlation, &mut frames);
        }
        if send.write_all(&frames).await.is_err() {
            return;
        }
    }
}

#[test]
fn a_site_that_goes_away_fails_nothing() {
    let dir = sandbox();
    let leaves = server(dir.path(), |quic, number| async move {
        if number > 0 {
            quic.close(1_u32.into(), b"stopped");
            return;
        }
        let Ok(mut control) = quic.open_uni().await else { return };
        let mut frames = Vec::new();
        let hello = Hello {
            in_flight_max: 1_000,
            shards: SHARDS,
            site: 1,
            sites: 2,
            time_ms: 0,
            cluster: 0,
        };
        hello.encode_frame(0, &mut frames);
        control.write_all(&frames).await.unwrap();
        tokio::task::spawn_local(null::streams(quic.clone()));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let away = GoAway { code: protocol::code::CloseCode::Draining, deadline_ms: 1_000 };
        frames.clear();
        away.encode_frame(0, &mut frames);
        control.write_all(&frames).await.unwrap();
        quic.closed().await;
    });
    let stays = site(dir.path(), Arc::new(|_| Some(reply(Code::Ok, 0))));
    let measure = drive(dir.path(), &[leaves, stays], 600).measure;
    assert_eq!((measure.ok, measure.unanswered, measure.not_sent), (600, 0, 0));
}

#[test]
fn a_notice_moves_load_although_nobody_is_silent_and_no_answer_says_so() {
    let dir = sandbox();
    let (served, told) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let after = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let count = |at: usize| {
        let (after, told) = (Arc::clone(&after), Arc::clone(&told));
        move || after[at].fetch_add(told.load(Ordering::Acquire).into(), Ordering::Relaxed)
    };
    // Site 1 says that it leads to the end, site 2 says so too until it is told
    // otherwise.
    let (seen, first) = (Arc::clone(&served), count(0));
    let one: Script = Arc::new(move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
        first();
        Some(reply(Code::Ok, 0))
    });
    let (known, second) = (Arc::clone(&told), count(1));
    let two: Script = Arc::new(move |_| {
        second();
        Some(reply(Code::Ok, if known.load(Ordering::Acquire) { 0 } else { 1 }))
    });
    let telling = server(dir.path(), move |quic, _| {
        let (two, served, told) = (Arc::clone(&two), Arc::clone(&served), Arc::clone(&told));
        async move {
            let Ok(mut control) = quic.open_uni().await else { return };
            let hello = Hello {
                in_flight_max: 1_000,
                shards: SHARDS,
                site: 2,
                sites: 2,
                time_ms: 0,
                cluster: 0,
            };
            let mut frames = Vec::new();
            hello.encode_frame(0, &mut frames);
            control.write_all(&frames).await.unwrap();
            tokio::task::spawn_local(async move {
                while let Ok((send, recv)) = quic.accept_bi().await {
                    tokio::task::spawn_local(follow(send, recv, Arc::clone(&two)));
                }
            });
            while served.load(Ordering::Relaxed) < 300 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            told.store(true, Ordering::Release);
            frames.clear();
            let all: Vec<_> = (0..SHARDS).map(|shard| Leader { shard, site: 2, term: 2 }).collect();
            Leaders::encode_frame(&all, 0, &mut frames);
            // An older word is not heard.
            let old: Vec<_> = (0..SHARDS).map(|shard| Leader { shard, site: 1, term: 1 }).collect();
            Leaders::encode_frame(&old, 0, &mut frames);
            control.write_all(&frames).await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    let sites = [site(dir.path(), one), telling];
    let measure = drive(dir.path(), &sites, 1_500).measure;
    assert_eq!((measure.ok, measure.unanswered), (1_500, 0));
    let [one, two] = [&after[0], &after[1]].map(|count| count.load(Ordering::Relaxed));
    assert!(two > one, "{one} at the old leader after the notice, {two} at the new one");
}

#[test]
fn most_sites_are_enough_to_begin() {
    let dir = sandbox();
    let serves = || site(dir.path(), Arc::new(|_| Some(reply(Code::Ok, 0))));
    // Nobody listens here: bound, so that nobody else does either.
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let sites = [closed.local_addr().unwrap(), serves(), serves()];
    let measure = drive(dir.path(), &sites, 300).measure;
    assert_eq!((measure.ok, measure.unanswered), (300, 0));
}
