//! The driver against in-process servers over loopback.

use super::*;
use crate::acks;
use crate::config::Merchant;
use crate::interrupt::Stop;
use crate::null;
use crate::pace::TICK;
use crate::plan::Op;
use crate::plan::Params;
use crate::plan::tests::params;
use protocol::code::{OrderState, Reason, RefundState};
use protocol::frame::{Header, Splitter};
use protocol::id::{MchId, ShortText, TransactionId};
use protocol::message::{self, Event, Pay, kind};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;

pub(super) const SHARDS: u16 = 12;

/// Certificates of both ends in a folder.
pub(super) fn certificates(dir: &Path) {
    let mut authority = CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    for (name, dns) in [("site", "site-1.site.payswitch"), ("gw", "gw-1.gateway.payswitch")] {
        let key = KeyPair::generate().unwrap();
        let party = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        let certificate = party.signed_by(&key, &authority).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn credentials(dir: &Path, name: &str) -> Credentials {
    let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
    Credentials::load(&file("pem"), &file("key"), &dir.join("ca.pem")).ok().unwrap()
}

/// A server on a thread of its own, so that its stalls are its own; `serve`
/// handles each connection, numbered from 0.
pub(super) fn server<F, S>(dir: &Path, serve: S) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
    S: Fn(quinn::Connection, usize) -> F + Send + 'static,
{
    let config = credentials(dir, "site")
        .server(ALPN_GATEWAY, tls::transport(64, 0, Duration::from_secs(5), None))
        .unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        crate::cli::on_runtime(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let endpoint = socket::endpoint(any, Some(config))?;
            tell.send(endpoint.local_addr().unwrap()).unwrap();
            let mut number = 0;
            while let Some(incoming) = endpoint.accept().await {
                if let Ok(quic) = incoming.await {
                    tokio::task::spawn_local(serve(quic, number));
                    number += 1;
                }
            }
            Ok(())
        })
        .unwrap();
    });
    told.recv().unwrap()
}

/// A gateway of these sites, numbered from 1.
pub(super) fn gateway_of(dir: &Path, sites: &[SocketAddr]) -> GatewayFile {
    let site = |(at, address): (usize, &SocketAddr)| SiteEntry {
        id: at as u8 + 1,
        address: *address,
        server_name: "site-1.site.payswitch".to_owned(),
        admin: *address,
    };
    GatewayFile {
        name: "gw-1".to_owned(),
        cert: dir.join("gw.pem"),
        key: dir.join("gw.key"),
        ca: dir.join("ca.pem"),
        shards: SHARDS,
        merchants: dir.join("none"),
        channel_ledger_dir: dir.join("none"),
        sites: sites.iter().enumerate().map(site).collect(),
    }
}

/// Drives a phase against a server.
fn drive(dir: &Path, address: SocketAddr, phase: &Phase, deadline: Duration) -> Outcome {
    drive_to(gateway_of(dir, &[address]), phase, deadline, None)
}

/// Drives a phase of pays.
pub(super) fn drive_to(
    gateway: GatewayFile,
    phase: &Phase,
    deadline: Duration,
    acks: Option<AckWriter>,
) -> Outcome {
    let (plan, encoder, options) = pays(deadline, false);
    crate::cli::on_runtime(async {
        let session = Session::connect(&gateway, plan, encoder, acks, options).await?;
        let outcome = session.run(phase, &Stop::new()).await?;
        session.close().await;
        Ok(outcome)
    })
    .unwrap()
}

/// What drives pays, perhaps with their events.
fn pays(deadline: Duration, events: bool) -> (Rc<Plan>, Encoder, Options) {
    let params = Params { mix: crate::plan::Mix::of(1, 0, 0), notify: events, ..params() };
    let params = Params { duplicates_ppm: 0, conflicts_ppm: 0, ..params };
    let merchant = |id: &String| Merchant {
        id: MchId::parse(id.as_bytes()).unwrap(),
        key_id: 1,
        key: crate::key::Key::hmac(b"secret"),
    };
    let encoder = Encoder::new(params.merchants.iter().map(merchant).collect());
    let plan = Rc::new(Plan::new(params).unwrap());
    let pace = Pace::Tick;
    let options = Options {
        connections: 1,
        streams: 4,
        in_flight_max: 50_000,
        deadline,
        pace,
        tick: TICK,
        part: Part::ALL,
        events,
    };
    (plan, encoder, options)
}

pub(super) fn phase(rate: f64, duration: Duration) -> Phase {
    let warmup = Duration::ZERO;
    let arrival = Arrival::Constant;
    Phase {
        arrival,
        rate,
        duration,
        warmup,
        closed: None,
        live: crate::live::Progress::Silent,
        traced: false,
    }
}

#[test]
fn a_stall_shows_in_planned_latency_and_hides_in_raw() {
    const WINDOW: u32 = 10;
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    // The whole server stands still for a second, one second after it was
    // connected to; only a window of requests is in flight by then.
    let address = server(dir.path(), |quic, _| async move {
        tokio::task::spawn_local(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            std::thread::sleep(Duration::from_secs(1));
        });
        null::connection(quic, SHARDS, WINDOW).await;
    });
    let phase = phase(1_000.0, Duration::from_secs(3));
    let outcome = drive(dir.path(), address, &phase, Duration::from_secs(10));
    let measure = outcome.measure;
    assert_eq!((measure.ok, measure.not_sent, measure.unanswered), (3_000, 0, 0));
    let (planned, raw) = measure.overall();
    let (planned, raw) = (planned.quantile(0.99).unwrap(), raw.quantile(0.99).unwrap());
    assert!(planned > 800_000_000, "planned p99 {planned} ns hides the stall");
    assert!(raw < 400_000_000, "raw p99 {raw} ns");
}

#[test]
fn after_a_lost_connection_the_same_bytes_are_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let seen: Arc<Mutex<HashMap<u64, Vec<u8>>>> = Arc::default();
    let (lost, again) = (Arc::clone(&seen), Arc::new(Mutex::new(0)));
    let repeated = Arc::clone(&again);
    // The first connection swallows a hundred requests and closes; the second
    // answers and compares.
    let address = server(dir.path(), move |quic, number| {
        let (seen, repeated) = (Arc::clone(&lost), Arc::clone(&repeated));
        async move {
            null::greet(&quic, SHARDS, 10_000).await;
            while let Ok((send, recv)) = quic.accept_bi().await {
                let (seen, repeated) = (Arc::clone(&seen), Arc::clone(&repeated));
                let quic = quic.clone();
                tokio::task::spawn_local(async move {
                    compare(number, (send, recv), &quic, &seen, &repeated).await;
                });
            }
        }
    });
    let phase = phase(1_000.0, Duration::from_millis(600));
    let measure = drive(dir.path(), address, &phase, Duration::from_secs(10)).measure;
    assert_eq!((measure.ok, measure.unanswered), (600, 0));
    let repeated = *again.lock().unwrap();
    assert!(repeated >= 100, "{repeated} requests came again");
    assert!(measure.resent >= 100, "{}", measure.resent);
}

async fn compare(
    number: usize,
    (mut send, mut recv): (quinn::SendStream, quinn::RecvStream),
    quic: &quinn::Connection,
    seen: &Mutex<HashMap<u64, Vec<u8>>>,
    repeated: &Mutex<u32>,
) {
    let (mut splitter, mut frames) = (Splitter::new(), Vec::new());
    while let Ok(Some(chunk)) = recv.read_chunk(1 << 16, true).await {
        let split = splitter.push(&chunk.bytes, |header, body| {
            // Also what had to wait for a second one to be signed with.
            let (pay, mut canonical) = (message::Pay::decode(body).unwrap(), Vec::new());
            pay.canonical(&mut canonical);
            let key = protocol::sign::MerchantKey::hmac(b"secret");
            assert!(key.verify(&canonical, pay.auth.signature), "left unsigned");
            let mut seen = seen.lock().unwrap();
            if number == 0 {
                seen.insert(header.correlation, body.to_vec());
                return;
            }
            if let Some(first) = seen.get(&header.correlation) {
                assert_eq!(first, body, "other bytes");
                *repeated.lock().unwrap() += 1;
            }
            null::reply(header, body, &mut frames);
        });
        split.unwrap();
        if number == 0 && seen.lock().unwrap().len() >= 100 {
            quic.close(0_u32.into(), b"lost");
            return;
        }
        if send.write_all(&frames).await.is_err() {
            return;
        }
        frames.clear();
    }
}

#[test]
fn questions_that_are_stopped_are_no_answers() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let address = server(dir.path(), |quic, _| async move {
        null::greet(&quic, SHARDS, 1_000).await;
        quic.closed().await;
    });
    let gateway = gateway_of(dir.path(), &[address]);
    let (plan, encoder, options) = pays(Duration::from_secs(3_600), false);
    let (told, left) = crate::cli::on_runtime(async {
        let session = Session::connect(&gateway, plan, encoder, None, options).await?;
        session.remember(0..5);
        let stop = Stop::new();
        stop.notify_one();
        let told = session.query(&[0, 1, 2, 3, 4], &stop).await.map(|measure| measure.answered);
        // Who only waits is told what is left.
        stop.notify_one();
        let left = session.settle(Duration::from_secs(3_600), &stop).await?;
        session.close().await;
        Ok((told, left))
    })
    .unwrap();
    assert_eq!(told.map_err(|failure| failure.exit), Err(crate::exit::Exit::Invalid));
    assert_eq!(left, 5);
}

#[test]
fn a_silent_switch_leaves_everything_unknown_and_infinitely_slow() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let address = server(dir.path(), |quic, _| async move {
        null::greet(&quic, SHARDS, 1_000).await;
        let _streams = quic.accept_bi().await;
        quic.closed().await;
    });
    let phase = phase(500.0, Duration::from_millis(400));
    let measure = drive(dir.path(), address, &phase, Duration::from_millis(300)).measure;
    assert_eq!((measure.ok, measure.unanswered, measure.sent), (0, 200, 200));
    assert_eq!(measure.overall().0.quantile(0.5), None);
}

#[test]
fn what_exceeds_the_limit_is_shed_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let address = server(dir.path(), |quic, _| async move {
        null::greet(&quic, SHARDS, 10).await;
        let _streams = quic.accept_bi().await;
        quic.closed().await;
    });
    let phase = phase(2_000_000.0, Duration::from_millis(100));
    let measure = drive(dir.path(), address, &phase, Duration::from_millis(200)).measure;
    // Given up requests make room for a few more of the backlog.
    assert!((10..=100).contains(&measure.sent), "{}", measure.sent);
    assert_eq!(measure.sent, measure.unanswered);
    assert_eq!(measure.sent + measure.not_sent, 200_000);
    // Nobody got any of them, in the figures of each operation too.
    let (all, _) = measure.overall();
    assert_eq!((all.count(), all.infinite()), (200_000, 200_000));
    assert_eq!(measure.admitted().count(), measure.unanswered);
}

#[test]
fn cpu_time_is_read_from_the_kernels_line() {
    let line = "12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
    assert_eq!(cpu_of_stat(line), Some(2.0));
    assert!(cpu_of_stat("12 (x").is_none());
    assert!(cpu_seconds() >= 0.0);
}

/// Pays that were answered and whose event is not acknowledged.
type Unheard = Arc<Mutex<HashMap<u64, Event>>>;

/// Answers pays; repeats the events of all that are not acknowledged on the stream
/// that subscribes.
async fn with_events(
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    unheard: Unheard,
) -> Option<()> {
    let (mut splitter, mut listens) = (Splitter::new(), None);
    loop {
        let mut out = Vec::new();
        let mut take = |header: Header, body: &[u8]| match header.kind {
            kind::SUBSCRIBE => {
                listens = Some(header.correlation);
                message::Subscribe::reply_frame(header.correlation, &mut out);
            }
            kind::ACK => {
                unheard.lock().unwrap().remove(&message::Ack::decode(body).unwrap().event_id);
            }
            _ => {
                let pay = Pay::decode(body).unwrap();
                assert!(!pay.notify.is_empty());
                let mut unheard = unheard.lock().unwrap();
                let event = event(&pay, unheard.len() as u64);
                unheard.insert(header.correlation, Event { event_id: header.correlation, ..event });
                null::reply(header, body, &mut out);
            }
        };
        let next = tokio::time::timeout(Duration::from_millis(20), recv.read_chunk(4_096, true));
        if let Ok(chunk) = next.await {
            splitter.push(&chunk.ok()??.bytes, &mut take).unwrap();
        }
        if let Some(correlation) = listens {
            let unheard = unheard.lock().unwrap();
            unheard.values().for_each(|event| event.encode_frame(correlation, &mut out));
        }
        send.write_all(&out).await.ok()?;
    }
}

fn event(pay: &Pay<'_>, n: u64) -> Event {
    Event {
        event_id: n,
        sequence: 1,
        mch_id: pay.mch_id,
        out_trade_no: pay.out_trade_no,
        transaction_id: TransactionId::new(1, n + 1),
        state: OrderState::Paid,
        reason: Reason::None,
        out_refund_no: ShortText::EMPTY,
        refund_state: RefundState::None,
        amount: pay.amount.minor(),
        currency: pay.currency,
        at_ms: 1,
    }
}

#[test]
fn events_are_written_down_and_acknowledged_and_the_end_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let unheard = Unheard::default();
    let events = Arc::clone(&unheard);
    let address = server(dir.path(), move |quic, _| {
        let events = Arc::clone(&events);
        async move {
            null::greet(&quic, SHARDS, 1_000).await;
            while let Ok((send, recv)) = quic.accept_bi().await {
                tokio::task::spawn_local(with_events(send, recv, Arc::clone(&events)));
            }
        }
    });
    let (plan, encoder, options) = pays(Duration::from_secs(10), true);
    // Of another run: acknowledged, or it would come again for ever, and not written.
    let other = Plan::new(Params { run_id: 99, ..plan.params().clone() }).unwrap();
    let mut frame = Vec::new();
    pays(Duration::from_secs(1), true).1.request(&other, (1, Op::Pay, 1), 7, 1, &mut frame);
    let foreign = event(&Pay::decode(&frame[16..]).unwrap(), 0);
    let foreign = Event { event_id: u64::MAX, ..foreign };
    unheard.lock().unwrap().insert(u64::MAX, foreign);
    // Of a payment of this run that was never asked for: the audit has to see it.
    let unasked = 1_u64 << 30;
    let mut frame = Vec::new();
    pays(Duration::from_secs(1), true).1.request(
        &plan,
        (unasked, Op::Pay, unasked),
        7,
        1,
        &mut frame,
    );
    let invented = event(&Pay::decode(&frame[16..]).unwrap(), 0);
    let invented = Event { event_id: u64::MAX - 1, ..invented };
    unheard.lock().unwrap().insert(u64::MAX - 1, invented);
    let acks = AckWriter::create(dir.path(), plan.params()).ok().unwrap();
    let gateway = gateway_of(dir.path(), &[address]);
    let counts = crate::cli::on_runtime(async {
        let session =
            Session::connect(&gateway, Rc::clone(&plan), encoder, Some(acks), options).await?;
        session.run(&phase(200.0, Duration::from_secs(1)), &Stop::new()).await?;
        assert_eq!(session.settle(Duration::from_secs(20), &Stop::new()).await?, 0);
        let counts = session.events();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while !unheard.lock().unwrap().is_empty() {
            assert!(std::time::Instant::now() < until, "never acknowledged");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        session.close().await;
        Ok(counts)
    })
    .unwrap()
    .unwrap();
    assert_eq!((counts.missing, counts.malformed), (0, 0));
    assert!(counts.others >= 1 && counts.received >= 200, "{counts:?}");
    let log = acks::AckLog::open(&acks::logs_of(dir.path()).ok().unwrap()[0]).ok().unwrap();
    let (mut heard, mut plain) = (std::collections::BTreeSet::new(), 0);
    log.each(|ack| {
        if ack.flags == acks::flag::EVENT {
            assert_eq!((ack.code, ack.state), (1, OrderState::Paid.wire()));
            assert_eq!(ack.amount, plan.amount(ack.n).minor());
            heard.insert(ack.n);
        } else {
            assert_eq!(ack.flags, 0);
            plain += 1;
        }
    })
    .ok()
    .unwrap();
    assert!(heard.into_iter().eq((0..200).chain([unasked])));
    assert_eq!(plain, 200);
}
