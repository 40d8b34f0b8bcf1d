//! The relay between the sites: its process, its control lines, and what it says of the
//! packets between them.

use super::process::Process;
use crate::exit::Failure;
use crate::wan::STATS;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longest wait for an answer.
const ANSWER_IN: Duration = Duration::from_secs(5);

/// Packets of one direction, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packets {
    /// Those that passed.
    pub(crate) passed: u64,
    /// Those that its rules lost.
    pub(crate) lost: u64,
}

/// What the relay did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// By sender and receiver.
    paths: BTreeMap<(u8, u8), Packets>,
    /// Packets that found no room in it.
    pub(crate) dropped: u64,
}

/// What a cut keeps from a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Everything, and everybody from it.
    Both(u8),
    /// It hears nobody.
    To(u8),
    /// It is heard by nobody.
    From(u8),
}

impl Way {
    fn takes(self, (from, to): (u8, u8)) -> bool {
        match self {
            Self::Both(site) => from == site || to == site,
            Self::To(site) => to == site,
            Self::From(site) => from == site,
        }
    }
}

impl fmt::Display for Way {
    /// As a control line names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Both(site) => write!(f, "{site}-*"),
            Self::To(site) => write!(f, "*>{site}"),
            Self::From(site) => write!(f, "{site}>*"),
        }
    }
}

impl Stats {
    /// Reads `1>2 passed=5 lost=0; ..; dropped=0`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (paths, dropped) = text.trim().rsplit_once("; dropped=")?;
        let path = |text: &str| {
            let mut words = text.split_whitespace();
            let (from, to) = words.next()?.split_once('>')?;
            let passed = words.next()?.strip_prefix("passed=")?.parse().ok()?;
            let lost = words.next()?.strip_prefix("lost=")?.parse().ok()?;
            Some(((from.parse().ok()?, to.parse().ok()?), Packets { passed, lost }))
        };
        let paths = paths.split("; ").map(path).collect::<Option<_>>()?;
        Some(Self { paths, dropped: dropped.parse().ok()? })
    }

    /// Packets of everything.
    pub(crate) fn all(&self) -> Packets {
        self.sum(|_| true)
    }

    /// Packets of what a cut takes.
    pub(crate) fn of(&self, way: Way) -> Packets {
        self.sum(|pair| way.takes(pair))
    }

    fn sum(&self, wanted: impl Fn((u8, u8)) -> bool) -> Packets {
        let mut sum = Packets::default();
        for (_, packets) in self.paths.iter().filter(|(pair, _)| wanted(**pair)) {
            sum.passed += packets.passed;
            sum.lost += packets.lost;
        }
        sum
    }
}

/// The relay between the sites.
pub(crate) struct Relay {
    process: Process,
    control: SocketAddr,
}

impl Relay {
    /// One that listens to control lines there.
    pub(super) fn new(process: Process, control: SocketAddr) -> Self {
        Self { process, control }
    }

    /// Has a control line carried out.
    pub(crate) async fn command(&self, line: &str) -> Result<(), Failure> {
        match self.told(line).await?.trim() {
            "ok" => Ok(()),
            answer => Err(failed(answer)),
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it did so far.
    pub(crate) async fn stats(&self) -> Result<Stats, Failure> {
        let answer = self.told(STATS).await?;
        Stats::parse(&answer).ok_or_else(|| failed(answer.trim()))
    }

    async fn told(&self, line: &str) -> Result<String, Failure> {
        let asked = tokio::time::timeout(ANSWER_IN, self.ask(line)).await;
        let answer = asked.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        answer.map_err(failed)
    }

    async fn ask(&self, line: &str) -> std::io::Result<String> {
        let mut stream = BufReader::new(TcpStream::connect(self.control).await?);
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        Ok(answer)
    }
}

fn failed(what: impl fmt::Display) -> Failure {
    Failure::environment(format_args!("the relay: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_summed_over_what_a_cut_takes() {
        let text = "1>2 passed=1 lost=10; 1>3 passed=2 lost=20; 2>1 passed=4 lost=40; \
                    2>3 passed=8 lost=80; dropped=7\n";
        let stats = Stats::parse(text).unwrap();
        let sums = [Way::Both(1), Way::To(1), Way::From(1)].map(|way| stats.of(way));
        assert_eq!(sums.map(|sum| sum.passed), [7, 4, 3]);
        assert_eq!(sums.map(|sum| sum.lost), [70, 40, 30]);
        assert_eq!((stats.all().passed, stats.dropped), (15, 7));
        for bad in
            ["", "ok", "1>2 passed=1 lost=1", "1>2 passed=x lost=1; dropped=0", "1; dropped=0"]
        {
            assert_eq!(Stats::parse(bad), None, "{bad}");
        }
    }
}
