//! `loadgen channel`: the simulated payment service, a process of its own.
//!
//! A QUIC server that speaks the native channel protocol to sites, keeps a
//! book that survives its restart, and misbehaves by plan. `book` decides,
//! `ledger` remembers, `faults` spoils, this moves bytes. Never knows orders
//! or merchants. Tested over loopback.

pub(crate) mod book;
mod charges;
mod faults;
pub(crate) mod ledger;
pub(crate) mod number;
mod plan;
#[cfg(test)]
mod tests;

use crate::config::ChannelFile;
use crate::exit::Failure;
use crate::interrupt::Stop;
use crate::socket;
use crate::tls::{self, ALPN_CHANNEL, Credentials};
use book::{Book, Circumstances};
use bytes::{Bytes, BytesMut};
use clap::Args;
pub(crate) use faults::{Fate, Faults};
use ledger::Ledger;
use number::Number;
pub(crate) use plan::FaultArgs;
use protocol::channel::{ChannelReply, ChannelRequest, ChannelStatus, kind};
use protocol::frame::{Header, Splitter};
use protocol::id::ShortText;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// A silent switch is gone after this.
const IDLE: Duration = Duration::from_secs(3);
/// Streams of one connection.
const STREAMS: u32 = 64;
/// Unwritten replies of one stream above which no more requests are read.
const UNWRITTEN_MAX: usize = 2 << 20;
/// Operations whose charges are looked up ahead, so that cache misses overlap.
const WARM: usize = 16;
/// Replies that wait for their time, over all streams; more are lost.
const DELAYED_MAX: usize = 2_000_000;

/// Arguments of `loadgen channel`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChannelArgs {
    /// The channel's configuration, channel.toml.
    #[arg(long)]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) faults: FaultArgs,
    /// A file with faults, written as these arguments, one per line: they count in place
    /// of the command line's. It is read again at SIGHUP; seconds of outages and the like
    /// count from then.
    #[arg(long)]
    pub(crate) plan: Option<PathBuf>,
    /// Chooses which operations are hit.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

impl ChannelArgs {
    fn faults(&self) -> Result<Faults, Failure> {
        let planned = self.plan.as_deref().map(FaultArgs::load).transpose()?;
        Ok(planned.as_ref().unwrap_or(&self.faults).faults(self.seed))
    }
}

/// What happened, for the line at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    requests: [u64; 5],
    requests_lost: u64,
    replies_lost: u64,
    replies_late: u64,
    replies_twice: u64,
    wrong_amounts: u64,
    unavailable: u64,
    malformed: u64,
}

/// Serves until `stop`.
pub(crate) async fn run(args: &ChannelArgs, stop: &Stop) -> Result<(), Failure> {
    let file = ChannelFile::load(&args.config)?;
    let faults = args.faults()?;
    let credentials = Credentials::load(&file.cert, &file.key, &file.ca)?;
    let config = credentials.server(ALPN_CHANNEL, tls::transport(STREAMS, 0, IDLE, None))?;
    let mut book = Book::new();
    let ledger = Ledger::open(&file.ledger_dir, |entry| book.apply(entry))?;
    let (charges, refunds) = book.len();
    let endpoint = socket::endpoint(file.listen, Some(config))?;
    let channel = Channel::new(book, ledger, faults);
    reload_at_hangup(&channel, args);
    println!(
        "ready: channel {} on {}, {charges} charges and {refunds} refunds in its book",
        file.name, file.listen
    );
    let served = tokio::select! {
        served = serve(&channel, &endpoint) => served,
        () = stop.notified() => Ok(()),
    };
    endpoint.close(0_u32.into(), b"stopped");
    // Gives the close frames a moment to leave; nothing depends on it.
    drop(tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await);
    channel.state.borrow().print();
    served
}

/// Takes the plan over again whenever SIGHUP comes; one that cannot be read changes nothing.
fn reload_at_hangup(channel: &Rc<Channel>, args: &ChannelArgs) {
    use tokio::signal::unix::{SignalKind, signal};
    let (channel, args) = (Rc::clone(channel), args.clone());
    // Here, not in the task: from "ready" on a hang-up must not be the end.
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    tokio::task::spawn_local(async move {
        while hangups.recv().await.is_some() {
            match args.faults() {
                Ok(faults) => {
                    channel.state.borrow_mut().replan(faults);
                    println!("plan taken over");
                }
                Err(failure) => println!("plan refused: {}", failure.message),
            }
        }
    });
}

/// Accepts connections until the endpoint closes or the ledger fails.
async fn serve(channel: &Rc<Channel>, endpoint: &quinn::Endpoint) -> Result<(), Failure> {
    let later = Rc::clone(channel);
    tokio::task::spawn_local(async move { later.run_delayed().await });
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = channel.failed.notified() => {
                let failure = channel.state.borrow_mut().failure.take();
                return failure.map_or(Ok(()), Err);
            }
        };
        let Some(incoming) = incoming else { return Ok(()) };
        let channel = Rc::clone(channel);
        tokio::task::spawn_local(async move {
            if let Ok(quic) = incoming.await {
                channel.connection(quic).await;
            }
        });
    }
}

/// Replies that wait to be written on one stream.
struct Outgoing {
    buffer: RefCell<Vec<u8>>,
    wake: Notify,
    written: Notify,
    closed: Cell<bool>,
}

impl Outgoing {
    fn push(&self, frames: &[u8]) {
        if !self.closed.get() {
            self.buffer.borrow_mut().extend_from_slice(frames);
            self.wake.notify_one();
        }
    }
}

/// A reply that waits for its time.
struct Delayed {
    due: Instant,
    frame: Vec<u8>,
    to: Rc<Outgoing>,
}

/// Ordered by time only.
impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}
impl Eq for Delayed {}
impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// The service.
pub(crate) struct Channel {
    state: RefCell<State>,
    delayed: RefCell<BinaryHeap<Reverse<Delayed>>>,
    delay_added: Notify,
    failed: Notify,
}

struct State {
    book: Book,
    ledger: Ledger,
    faults: Faults,
    /// The requests of one batch; kept for its memory.
    operations: Vec<Operation>,
    counts: bool,
    start: Instant,
    second: u64,
    in_second: u64,
    counters: Counters,
    failure: Option<Failure>,
}

impl Channel {
    fn new(book: Book, ledger: Ledger, faults: Faults) -> Rc<Self> {
        let counts = faults.count_operations();
        let state = State {
            book,
            ledger,
            faults,
            operations: Vec::new(),
            counts,
            start: Instant::now(),
            second: 0,
            in_second: 0,
            counters: Counters::default(),
            failure: None,
        };
        Rc::new(Self {
            state: RefCell::new(state),
            delayed: RefCell::new(BinaryHeap::new()),
            delay_added: Notify::new(),
            failed: Notify::new(),
        })
    }

    async fn connection(self: Rc<Self>, quic: quinn::Connection) {
        if !tls::peer_has_role(&quic, "site") {
            quic.close(4_u32.into(), b"not a site certificate");
            return;
        }
        while let Ok((send, recv)) = quic.accept_bi().await {
            let outgoing = Rc::new(Outgoing {
                buffer: RefCell::new(Vec::with_capacity(64 << 10)),
                wake: Notify::new(),
                written: Notify::new(),
                closed: Cell::new(false),
            });
            tokio::task::spawn_local(write(Rc::clone(&outgoing), send));
            let (channel, quic) = (Rc::clone(&self), quic.clone());
            tokio::task::spawn_local(async move { channel.read(&outgoing, recv, &quic).await });
        }
    }

    async fn read(
        &self,
        outgoing: &Rc<Outgoing>,
        mut recv: quinn::RecvStream,
        quic: &quinn::Connection,
    ) {
        let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
        let (mut splitter, mut replies) = (Splitter::new(), Vec::with_capacity(64 << 10));
        while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
            if !self.take(&mut chunks[..count], &mut splitter, &mut replies, outgoing) {
                quic.close(2_u32.into(), b"not a frame of this protocol");
                break;
            }
            outgoing.push(&replies);
            replies.clear();
            while outgoing.buffer.borrow().len() > UNWRITTEN_MAX && !outgoing.closed.get() {
                outgoing.written.notified().await;
            }
        }
        outgoing.closed.set(true);
        outgoing.wake.notify_one();
    }

    /// Carries out a batch and writes its ledger entries; the replies may
    /// leave afterwards. False: the bytes are not frames.
    fn take(
        &self,
        chunks: &mut [Bytes],
        splitter: &mut Splitter,
        replies: &mut Vec<u8>,
        outgoing: &Rc<Outgoing>,
    ) -> bool {
        let mut state = self.state.borrow_mut();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (now, now_ms) = (Instant::now(), wall.as_millis() as u64);
        let mut delayed = false;
        let mut operations = std::mem::take(&mut state.operations);
        operations.clear();
        for chunk in chunks {
            let bytes = std::mem::take(chunk);
            let split = splitter.push(&bytes, |header, body| match parse(header, body) {
                Some(operation) => operations.push(operation),
                None => state.counters.malformed += 1,
            });
            if split.is_err() {
                state.counters.malformed += 1;
                return false;
            }
        }
        for (at, operation) in operations.iter().enumerate() {
            if at % WARM == 0 {
                operations[at..].iter().take(WARM).for_each(|next| state.book.warm(&next.charge));
            }
            let before = replies.len();
            let Some(fate) = state.answer(operation, now, now_ms, replies) else { continue };
            if fate.delay_ns > 0 {
                let due = now + Duration::from_nanos(fate.delay_ns);
                self.delay(due, replies.split_off(before), outgoing);
                delayed = true;
            }
        }
        state.operations = operations;
        if let Err(failure) = state.ledger.flush() {
            // What is not in the book must not be told.
            replies.clear();
            state.failure = Some(failure);
            self.failed.notify_one();
        }
        if delayed {
            self.delay_added.notify_one();
        }
        true
    }

    fn delay(&self, due: Instant, frame: Vec<u8>, to: &Rc<Outgoing>) {
        let mut delayed = self.delayed.borrow_mut();
        if delayed.len() < DELAYED_MAX {
            delayed.push(Reverse(Delayed { due, frame, to: Rc::clone(to) }));
        }
    }

    /// Sends what waited for its time.
    async fn run_delayed(&self) {
        loop {
            let next = self.delayed.borrow().peek().map(|delayed| delayed.0.due);
            match next {
                None => self.delay_added.notified().await,
                Some(due) if due > Instant::now() => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due.into()) => {}
                        () = self.delay_added.notified() => {}
                    }
                }
                Some(_) => {
                    if let Some(Reverse(delayed)) = self.delayed.borrow_mut().pop() {
                        delayed.to.push(&delayed.frame);
                    }
                }
            }
        }
    }
}

async fn write(outgoing: Rc<Outgoing>, mut send: quinn::SendStream) {
    let mut chunk = BytesMut::with_capacity(64 << 10);
    loop {
        {
            let mut buffer = outgoing.buffer.borrow_mut();
            chunk.extend_from_slice(&buffer);
            buffer.clear();
        }
        outgoing.written.notify_one();
        if chunk.is_empty() {
            if outgoing.closed.get() {
                // Fails only when the stream is already gone.
                drop(send.finish());
                return;
            }
            outgoing.wake.notified().await;
            continue;
        }
        if send.write_chunk(chunk.split().freeze()).await.is_err() {
            outgoing.closed.set(true);
            outgoing.written.notify_one();
            return;
        }
    }
}

impl State {
    /// Other faults from now on.
    fn replan(&mut self, faults: Faults) {
        self.counts = faults.count_operations();
        self.faults = faults;
        self.start = Instant::now();
    }

    /// Carries one request out and appends its reply; `None` when there is
    /// none to send.
    fn answer(
        &mut self,
        operation: &Operation,
        now: Instant,
        now_ms: u64,
        replies: &mut Vec<u8>,
    ) -> Option<Fate> {
        let Operation { correlation, ref request, charge, refund } = *operation;
        self.counters.requests[usize::from(request.kind - kind::CHARGE)] += 1;
        let elapsed = now.duration_since(self.start);
        let fate = self.fate(request, &charge, refund.as_ref(), elapsed);
        if fate.request_lost {
            self.counters.requests_lost += 1;
            return None;
        }
        let mut reply = ChannelReply {
            kind: request.kind | kind::REPLY,
            status: ChannelStatus::Unavailable,
            detail: 0,
            charge_no: request.charge_no,
            amount: 0,
            currency: request.currency,
            channel_ref: reference(refund.as_ref().unwrap_or(&charge)),
        };
        if self.over_rate(elapsed) {
            self.counters.unavailable += 1;
        } else {
            let declines = self.faults.declines(charge.spread());
            let around = Circumstances { now_ms, declines };
            let ledger = &mut self.ledger;
            let answer =
                self.book.handle(request, charge, refund, around, &mut |entry| ledger.push(entry));
            (reply.status, reply.detail, reply.amount) =
                (answer.status, answer.detail, answer.amount);
        }
        if fate.wrong_amount && request.kind == kind::CHARGE && reply.amount > 0 {
            self.counters.wrong_amounts += 1;
            reply.amount += 1;
        }
        if fate.reply_lost {
            self.counters.replies_lost += 1;
            return None;
        }
        reply.encode_frame(correlation, replies);
        if fate.reply_twice {
            self.counters.replies_twice += 1;
            reply.encode_frame(correlation, replies);
        }
        self.counters.replies_late += u64::from(fate.delay_ns > 0);
        Some(fate)
    }

    fn fate(
        &mut self,
        request: &ChannelRequest,
        charge: &Number,
        refund: Option<&Number>,
        elapsed: Duration,
    ) -> Fate {
        if !self.counts && self.faults.outage.is_none() {
            return Fate::NONE;
        }
        let count = if self.counts { self.book.count(charge) } else { 0 };
        let ordinal = refund.map_or(charge.ordinal, |refund| refund.ordinal);
        let salt = u64::from(request.kind) << 8 | u64::from(ordinal);
        self.faults.fate(charge.spread() ^ salt, count, elapsed)
    }

    fn over_rate(&mut self, elapsed: Duration) -> bool {
        let Some(limit) = self.faults.rate_limit else { return false };
        if elapsed.as_secs() != self.second {
            (self.second, self.in_second) = (elapsed.as_secs(), 0);
        }
        self.in_second += 1;
        self.in_second > limit
    }

    fn print(&self) {
        let counters = &self.counters;
        let [charge, query, reverse, refund, query_refund] = counters.requests;
        let (charges, refunds) = self.book.len();
        println!(
            "requests: charge {charge}, query {query}, reverse {reverse}, refund {refund}, \
             query refund {query_refund}; malformed {}\n\
             faults: requests lost {}, replies lost {}, late {}, twice {}, wrong amount {}, \
             unavailable {}\nbook: {charges} charges, {refunds} refunds",
            counters.malformed,
            counters.requests_lost,
            counters.replies_lost,
            counters.replies_late,
            counters.replies_twice,
            counters.wrong_amounts,
            counters.unavailable,
        );
    }
}

/// A request with its numbers.
struct Operation {
    correlation: u64,
    request: ChannelRequest,
    charge: Number,
    refund: Option<Number>,
}

/// `None` when it is not a request of a switch.
fn parse(header: Header, body: &[u8]) -> Option<Operation> {
    let request = ChannelRequest::decode(header.kind, body).ok()?;
    let charge = Number::parse(&request.charge_no)?;
    let refund = match request.refund_no {
        None => None,
        Some(no) => Some(Number::parse(&no).filter(|refund| refund.digest == charge.digest)?),
    };
    let correlation = header.correlation;
    (charge.kind == b'P').then_some(Operation { correlation, request, charge, refund })
}

/// The channel's own number: always the same for the same operation.
fn reference(number: &Number) -> ShortText {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [number.kind; 13];
    let value = number.spread() ^ u64::from(number.ordinal) << 56;
    for (at, slot) in text[1..].iter_mut().enumerate() {
        *slot = HEX[(value >> (60 - 4 * at) & 15) as usize];
    }
    ShortText::new(&text).unwrap_or_default()
}
