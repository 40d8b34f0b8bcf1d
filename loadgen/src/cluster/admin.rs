//! What a site's plain admin interface tells: readiness, and who leads what.
//!
//! The least of HTTP, and only the fields that drills need. Never trusted by the
//! audit. Tested against scripted servers.

use serde::Deserialize;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Largest answer that is read, bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// A site that answers later is as good as gone.
const ANSWER_IN: Duration = Duration::from_secs(1);

/// `GET /status`, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    /// Every shard.
    pub(crate) shards: Vec<ShardStatus>,
    /// Its log.
    pub(crate) log: Option<LogStatus>,
    /// Its links to channels.
    #[serde(default)]
    pub(crate) channels: Vec<ChannelStatus>,
}

/// A link to a channel.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct ChannelStatus {
    /// Whether it can take requests.
    pub(crate) up: bool,
}

/// The log of a site.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct LogStatus {
    /// Whether there is no room for new payments.
    #[serde(default)]
    pub(crate) disk_full: bool,
}

/// A shard at a site.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ShardStatus {
    /// Number.
    pub(crate) shard: u16,
    /// `leader`, `follower`, `candidate`.
    pub(crate) role: String,
    /// Highest applied index.
    pub(crate) applied: u64,
    /// Payments without a final state.
    pub(crate) open: u64,
}

impl ShardStatus {
    /// Whether the site leads it.
    pub(crate) fn leads(&self) -> bool {
        self.role == "leader"
    }
}

/// Whether `GET /ready` answers 200.
pub(super) async fn ready(admin: SocketAddr) -> bool {
    let asked = tokio::time::timeout(ANSWER_IN, get(admin, "/ready")).await;
    matches!(asked, Ok(Ok((200, _))))
}

/// The site's status; `None` without a readable answer.
pub(super) async fn status(admin: SocketAddr) -> Option<Status> {
    let asked = tokio::time::timeout(ANSWER_IN, get(admin, "/status")).await;
    let (_, body) = asked.ok()?.ok()?;
    serde_json::from_str(&body).ok()
}

/// Sum of a metric over its labels; `None` when it is not there.
pub(crate) fn total(page: &str, name: &str) -> Option<u64> {
    values::<u64>(page, name).fold(None, |sum, value| Some(sum.unwrap_or(0) + value))
}

/// What a metric says, for each of its labels.
pub(crate) fn values<T: FromStr>(page: &str, name: &str) -> impl Iterator<Item = T> {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let rest = if rest.starts_with('{') { rest.split_once('}')?.1 } else { rest };
        rest.strip_prefix(' ')?.trim().parse().ok()
    })
}

/// The site's metrics as text; `None` without an answer.
pub(super) async fn metrics(admin: SocketAddr) -> Option<String> {
    let asked = tokio::time::timeout(ANSWER_IN, get(admin, "/metrics")).await;
    let (status, body) = asked.ok()?.ok()?;
    (status == 200).then_some(body)
}

/// The least of HTTP: status and body of one GET over a new connection.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
    Ok((status, body.to_owned()))
}
