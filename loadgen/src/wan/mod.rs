//! `loadgen wan`: a relay between sites that delays, loses, thins and cuts, each
//! direction by itself and changed while it runs.
//!
//! In user space, because it has to work without privileges and on kernels
//! without traffic control. Sites dial the relay's ports in place of each other:
//! one port per dialling pair, for datagrams and streams alike. Tested on real
//! sockets, with no assertion about time finer than an order of magnitude.

mod line;
mod rules;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use crate::exit::Failure;
use crate::interrupt::Stop;
use clap::Args;
use line::Line;
use rules::{Path, Paths};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// The control line that changes nothing.
pub(crate) const STATS: &str = "stats";
/// Longest control line, bytes.
const LINE_MAX: u64 = 1_024;

/// One dialling pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The site that dials.
    pub(crate) from: u8,
    /// The site that it means.
    pub(crate) to: u8,
    /// Where it dials instead.
    pub(crate) listen: SocketAddr,
    /// Where the other site listens.
    pub(crate) target: SocketAddr,
}

impl Link {
    /// Reads `1>2=127.0.0.1:7001=127.0.0.1:7411`.
    fn parse(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?}: FROM>TO=LISTEN=TARGET");
        let mut parts = text.split('=');
        let mut part = || parts.next().ok_or_else(usage);
        let (pair, listen, target) = (part()?, part()?, part()?);
        let (from, to) = pair.split_once('>').ok_or_else(usage)?;
        let site = |text| rules::site(text).ok_or_else(usage);
        let address = |text: &str| text.parse().map_err(|_| usage());
        let (listen, target) = (address(listen)?, address(target)?);
        let link = Self { from: site(from)?, to: site(to)?, listen, target };
        if link.from == link.to || parts.next().is_some() {
            return Err(usage());
        }
        Ok(link)
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}>{}={}={}", self.from, self.to, self.listen, self.target)
    }
}

/// Arguments of `loadgen wan`.
#[derive(Args, Clone, Debug)]
pub(crate) struct WanArgs {
    /// A pair: packets that site FROM sends to LISTEN reach site TO at TARGET, and
    /// its answers come back. May be given several times.
    #[arg(long = "link", required = true, value_parser = Link::parse, value_name = "FROM>TO=LISTEN=TARGET")]
    links: Vec<Link>,
    /// Where control lines are taken, on loopback: `set 1>2 delay=5ms jitter=1ms
    /// loss=1% rate=10mbit`, `cut 1>2`, `cut 3-*`, `heal`, `stats`.
    #[arg(long)]
    control: SocketAddr,
    /// Chooses which packets are lost.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The relay's state, shared by its tasks.
struct Relay {
    paths: RefCell<Paths>,
    changed: Notify,
    line: Arc<Line>,
    base: Instant,
}

impl Relay {
    fn new(seed: u64, links: &[Link]) -> Result<Rc<Self>, Failure> {
        let pairs = links.iter().map(|link| (link.from, link.to));
        Ok(Rc::new(Self {
            paths: RefCell::new(Paths::new(seed, pairs)),
            changed: Notify::new(),
            line: Line::start()?,
            base: Instant::now(),
        }))
    }

    async fn serve(self: &Rc<Self>, links: &[Link]) -> Result<(), Failure> {
        for link in links {
            let pair = (link.from, link.to);
            udp::serve(self, pair, link.listen, link.target)?;
            tcp::serve(self, pair, link.listen, link.target).await?;
        }
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    fn at(&self, ns: u64) -> Instant {
        self.base + Duration::from_nanos(ns)
    }

    fn with_path<T>(&self, pair: (u8, u8), run: impl FnOnce(&mut Path) -> T) -> T {
        let mut paths = self.paths.borrow_mut();
        run(paths.path(pair).expect("every served pair has its paths"))
    }

    /// Waits until something passes from one site to another.
    async fn open(&self, pair: (u8, u8)) {
        loop {
            let changed = self.changed.notified();
            if !self.with_path(pair, |path| path.is_cut()) {
                return;
            }
            changed.await;
        }
    }

    fn command(&self, line: &str) -> String {
        let answer = self.paths.borrow_mut().command(line);
        self.changed.notify_waiters();
        match answer {
            Ok(stats) if line == STATS => format!("{stats}; dropped={}", self.line.dropped()),
            Ok(answer) => answer,
            Err(reason) => format!("error: {reason}"),
        }
    }
}

/// Runs the relay until it is stopped.
pub(crate) async fn run(args: &WanArgs, stop: &Stop) -> Result<(), Failure> {
    if !args.control.ip().is_loopback() {
        return Err(Failure::usage("--control: an address on loopback"));
    }
    let relay = Relay::new(args.seed, &args.links)?;
    let listener = TcpListener::bind(args.control).await.map_err(|error| {
        let control = args.control;
        Failure::environment(format_args!("cannot open TCP {control}: {error}; is it in use?"))
    })?;
    relay.serve(&args.links).await?;
    println!("ready: {} pairs, control on {}", args.links.len(), args.control);
    loop {
        tokio::select! {
            () = stop.notified() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let relay = Rc::clone(&relay);
                    tokio::task::spawn_local(async move { control(&relay, stream).await });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
}

/// Answers control lines until the other end closes.
async fn control(relay: &Relay, stream: TcpStream) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = String::new();
    loop {
        line.clear();
        match (&mut read).take(LINE_MAX).read_line(&mut line).await {
            Ok(count) if count > 0 => {}
            _ => return,
        }
        let answer = relay.command(line.trim()) + "\n";
        if write.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
