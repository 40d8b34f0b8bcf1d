//! A deployment of real processes: one site, one simulated channel, started,
//! killed and ended by the drills.
//!
//! Knows the switch from outside only: its command line, files and ports.
//! Every child is ended when its handle is dropped.

use crate::config::GatewayFile;
use crate::exit::{Exit, Failure};
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than the age of what `/status` tells.
const STATUS_AGE: Duration = Duration::from_millis(300);
/// Largest answer of the admin interface that is read, bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// Longest wait for a process to become ready, or to end.
const READY_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// A child process, ended when dropped.
pub(crate) struct Process {
    child: Child,
    name: &'static str,
    output: PathBuf,
}

impl Process {
    fn start(name: &'static str, command: &mut Command, output: &Path) -> Result<Self, Failure> {
        let failed =
            |error: Error| Failure::environment(format_args!("cannot start {name}: {error}"));
        let file = File::options().create(true).append(true).open(output).map_err(failed)?;
        let errors = file.try_clone().map_err(failed)?;
        let child =
            command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().map_err(failed)?;
        Ok(Self { child, name, output: output.to_owned() })
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Both fail only when it has already ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGTERM, and waits for a clean end.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        if !sent.is_ok_and(|status| status.success()) {
            return Err(self.failure("cannot be told to stop"));
        }
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.failure(format_args!("ended with {status}"))),
                Ok(None) if started.elapsed() < READY_MAX => tokio::time::sleep(POLL).await,
                _ => return Err(self.failure("does not end")),
            }
        }
    }

    fn failure(&self, what: impl std::fmt::Display) -> Failure {
        let printed = std::fs::read_to_string(&self.output).unwrap_or_default();
        let tail: Vec<&str> = printed.lines().rev().take(5).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        Failure::environment(format_args!("{} {what}:\n{}", self.name, tail.join("\n")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// The folder of a deployment and the binaries that run it.
pub(crate) struct Deployment {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// The binary `payswitch`.
    pub(crate) payswitch: PathBuf,
    /// Remove the folder at the end.
    temporary: bool,
    admin: SocketAddr,
    /// Its gateway's configuration.
    pub(crate) gateway: GatewayFile,
}

impl Deployment {
    /// `payswitch init` of one site on free ports, in `dir` or a temporary folder.
    pub(crate) fn init(
        payswitch: PathBuf,
        dir: Option<PathBuf>,
        merchants: u32,
    ) -> Result<Self, Failure> {
        let temporary = dir.is_none();
        let dir = dir.unwrap_or_else(|| {
            std::env::temp_dir().join(format!("payswitch-demo-{}", std::process::id()))
        });
        let base = free_ports()?;
        let output = Command::new(&payswitch)
            .args(["init", "--merchants", &merchants.to_string()])
            .args(["--port-base", &base.to_string(), "--dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                let path = payswitch.display();
                Failure::environment(format_args!("cannot run {path}: {error}"))
            })?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::usage(reason.trim()));
        }
        let gateway = GatewayFile::load(&dir.join("gateway.toml"))?;
        Ok(Self { dir, payswitch, temporary, admin: gateway.sites[0].admin, gateway })
    }

    /// A file of the deployment.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts the simulated channel with these faults.
    pub(crate) async fn channel(&self, faults: &[String]) -> Result<Process, Failure> {
        let here = std::env::current_exe()
            .map_err(|error| Failure::environment(format_args!("where am I? {error}")))?;
        let output = self.file("channel.out");
        // Fails when it is not there, which is as good.
        drop(std::fs::remove_file(&output));
        let mut command = Command::new(here);
        command.args(["channel", "--config"]).arg(self.file("channel.toml")).args(faults);
        let mut process = Process::start("loadgen channel", &mut command, &output)?;
        let started = Instant::now();
        loop {
            let printed = std::fs::read_to_string(&output).unwrap_or_default();
            if printed.contains("ready") {
                return Ok(process);
            }
            if process.ended() || started.elapsed() > READY_MAX {
                return Err(process.failure("is not ready"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts the switch and waits until it is ready; tells how long that took.
    pub(crate) async fn serve(&self) -> Result<(Process, Duration), Failure> {
        let started = Instant::now();
        let mut command = Command::new(&self.payswitch);
        command.args(["serve", "--config"]).arg(self.file("site-1.toml"));
        let output = self.file("switch.out");
        let mut process = Process::start("payswitch serve", &mut command, &output)?;
        while !ready(self.admin).await {
            if process.ended() || started.elapsed() > READY_MAX {
                return Err(process.failure("is not ready"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok((process, started.elapsed()))
    }

    /// Waits until the switch says that nothing is open, refunds included; tells
    /// how much still is after `bound`. Only a moment to audit at: the audit
    /// itself believes nobody.
    pub(crate) async fn settled(&self, bound: Duration) -> u64 {
        let started = Instant::now();
        let mut quiet = 0;
        loop {
            let open = open_payments(self.admin).await;
            quiet = if open == Some(0) { quiet + 1 } else { 0 };
            // The status is up to a fifth of a second old: twice is sure.
            if quiet == 2 || started.elapsed() > bound {
                return open.unwrap_or(1);
            }
            tokio::time::sleep(STATUS_AGE).await;
        }
    }

    /// Checks every checksum and chain of the log.
    pub(crate) fn verify_log(&self) -> Result<(), Failure> {
        let output = Command::new(&self.payswitch)
            .args(["log", "verify"])
            .arg(self.file("data/site-1"))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                Failure::environment(format_args!("cannot verify the log: {error}"))
            })?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Failure::new(Exit::Audit, format_args!("the log is damaged: {reason}")))
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if self.temporary {
            // Nothing to be done about a folder that cannot be removed.
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }
}

/// A port base whose ports, as `init` uses them, are free now.
fn free_ports() -> Result<u16, Failure> {
    let free = |port: u16| {
        let address = ("127.0.0.1", port);
        UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
    };
    // Below the ports that Linux gives to outgoing connections, which come and go
    // between our look and our use.
    let first = (std::process::id() % 120) as u16 * 100;
    (0..120_u16)
        .map(|step| 20_000 + (first + step * 100) % 12_000)
        .find(|base| [0, 1, 2, 3, 90].iter().all(|offset| free(base + offset)))
        .ok_or_else(|| Failure::environment("no free ports between 20000 and 32000"))
}

/// Whether `GET /ready` answers 200.
async fn ready(admin: SocketAddr) -> bool {
    let asked = tokio::time::timeout(Duration::from_secs(1), get(admin, "/ready")).await;
    matches!(asked, Ok(Ok((200, _))))
}

/// Payments that `GET /status` calls open, over all shards; `None` without an answer.
async fn open_payments(admin: SocketAddr) -> Option<u64> {
    let asked = tokio::time::timeout(Duration::from_secs(1), get(admin, "/status")).await;
    let (_, body) = asked.ok()?.ok()?;
    let status: serde_json::Value = serde_json::from_str(&body).ok()?;
    status["shards"].as_array()?.iter().map(|shard| shard["open"].as_u64()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn readiness_is_the_status_of_one_get() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for status in ["503 Service Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let count = stream.read(&mut request).unwrap();
                assert!(request[..count].starts_with(b"GET /ready HTTP/1.1\r\n"));
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(!ready(address).await);
            assert!(ready(address).await);
        });
        server.join().unwrap();
    }

    #[test]
    fn what_is_open_is_summed_over_the_shards() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for body in [r#"{"shards":[{"open":2},{"open":3}]}"#, r#"{"shards":[{}]}"#] {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                    .unwrap();
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(open_payments(address).await, Some(5));
            assert_eq!(open_payments(address).await, None);
        });
        server.join().unwrap();
    }

    #[test]
    fn a_dropped_process_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let process = Process::start("sleep", &mut command, &dir.path().join("out")).unwrap();
        let id = process.child.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
