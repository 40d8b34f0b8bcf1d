//! `payswitch admin`: operators' questions and commands, as tables or JSON.

mod member;

use super::{Exit, Failure, print};
use crate::admin::api::{
    DecideRequest, Done, DrainRequest, Explain, InDoubt, LimitRequest, MerchantView, Status,
    TransferRequest,
};
use crate::admin::client::{Client, ClientError};
use crate::config::{Config, merchants};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long `drain` waits for a site's shards to be led elsewhere.
const DRAIN_MAX: Duration = Duration::from_secs(10);
const DRAIN_POLL: Duration = Duration::from_millis(20);

#[derive(Args, Debug)]
pub(super) struct AdminArgs {
    /// The site's configuration: its admin address and the operator's certificate.
    #[arg(long)]
    config: PathBuf,
    /// The operator's certificate chain, PEM; default: admin.admin_cert.
    #[arg(long, global = true, requires = "key", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The operator's private key, PEM; default: admin.admin_key.
    #[arg(long, global = true, requires = "cert", value_name = "FILE")]
    key: Option<PathBuf>,
    /// JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Subcommand, Debug)]
enum AdminCommand {
    /// Shards, channels, log and connections of the site.
    Status,
    /// Payments in doubt or in front of an operator.
    InDoubt {
        /// Most lines.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// The time line of a payment.
    Explain {
        /// Merchant.
        mch: String,
        /// The merchant's number of the payment.
        out_trade_no: String,
    },
    /// Merchants.
    #[command(subcommand)]
    Merchant(MerchantCommand),
    /// Limits of a merchant.
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Move all shards away from a site and keep them away.
    Drain {
        /// Site.
        site: u16,
    },
    /// Let a drained site lead again.
    Undrain {
        /// Site.
        site: u16,
    },
    /// Hand a shard to a site; it goes home by itself when its preferred site
    /// is healthy and not drained.
    Transfer {
        /// Shard.
        shard: u16,
        /// Site.
        site: u16,
    },
    /// Sites that hold the shards.
    #[command(subcommand)]
    Member(MemberCommand),
    /// Decide a payment that waits for an operator. Two operators must send
    /// the same decision, each with their own certificate.
    Decide(DecideArgs),
}

#[derive(Subcommand, Debug)]
enum MemberCommand {
    /// Make a site a member of every shard: it gets the log, and votes once it
    /// is level. Every site's configuration has to know it.
    Add {
        /// Site.
        site: u16,
    },
    /// Take a site out of every shard; its number is never used again.
    Remove {
        /// Site.
        site: u16,
    },
}

#[derive(Subcommand, Debug)]
enum MerchantCommand {
    /// Show a merchant.
    Show {
        /// Merchant.
        mch: String,
    },
    /// Create or replace the merchants of a file (form of merchants.toml).
    Put {
        /// The file.
        file: PathBuf,
        /// Keep merchants that exist.
        #[arg(long)]
        only_if_absent: bool,
    },
}

#[derive(Subcommand, Debug)]
enum LimitCommand {
    /// Change limits; what is not named stays.
    Set(LimitArgs),
}

#[derive(Args, Debug)]
#[group(id = "limit", required = true, multiple = true)]
struct Limits {
    /// Pays per minute; 0 forbids.
    #[arg(long, value_name = "N")]
    pay_per_minute: Option<u32>,
    /// Queries per minute; 0 forbids.
    #[arg(long, value_name = "N")]
    query_per_minute: Option<u32>,
    /// Refunds, closes and reverses per minute; 0 forbids.
    #[arg(long, value_name = "N")]
    refund_per_minute: Option<u32>,
    /// Operations at once before a rate bites.
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Sum of pays per UTC day, minor units; 0: no cap.
    #[arg(long, value_name = "AMOUNT")]
    daily_cap: Option<i64>,
    /// Largest single payment, minor units; 0: no bound.
    #[arg(long, value_name = "AMOUNT")]
    single_max: Option<i64>,
    /// A second signature is demanded from this amount on; 0: never.
    #[arg(long, value_name = "AMOUNT")]
    second_signature_from: Option<i64>,
}

#[derive(Args, Debug)]
struct LimitArgs {
    /// Merchant.
    mch: String,
    #[command(flatten)]
    limits: Limits,
    /// The previous limits come back at this moment, Unix milliseconds.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    until_ms: u64,
}

#[derive(Args, Debug)]
struct DecideArgs {
    /// Merchant.
    mch: String,
    /// The merchant's number of the payment.
    out_trade_no: String,
    /// The refund that the decision is about.
    #[arg(long, value_name = "OUT_REFUND_NO")]
    refund: Option<String>,
    /// The money moved.
    #[arg(long, conflicts_with = "not_moved", required_unless_present = "not_moved")]
    moved: bool,
    /// The money did not move.
    #[arg(long)]
    not_moved: bool,
    /// Evidence: a ticket or file number, at most 32 characters.
    #[arg(long)]
    note: String,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match error {
            ClientError::Refused { status: 500.., .. } => Exit::Environment,
            ClientError::Refused { .. } => Exit::Missed,
            ClientError::NotConfigured(_) | ClientError::Tls(_) => Exit::Usage,
            ClientError::Unreachable { .. }
            | ClientError::Broken { .. }
            | ClientError::Timeout { .. }
            | ClientError::Answer(_) => Exit::Environment,
        };
        Self::new(exit, error)
    }
}

/// Runs one admin command against the site of the configuration.
pub(super) fn run(out: &mut impl Write, args: AdminArgs) -> Result<(), Failure> {
    let mut config = Config::load(&args.config)?;
    if args.cert.is_some() {
        (config.admin.admin_cert, config.admin.admin_key) = (args.cert, args.key);
    }
    let client = Client::new(&config)?;
    let mut screen = Screen { out, json: args.json };
    match args.command {
        AdminCommand::Status => screen.show(&client.get::<Status>("/status")?, status_table),
        AdminCommand::InDoubt { limit } => {
            let list: Vec<InDoubt> = client.get(&format!("/v1/in-doubt?limit={limit}"))?;
            screen.show(&list, |list| in_doubt_table(list))
        }
        AdminCommand::Explain { mch, out_trade_no } => {
            let (mch, number) = (percent_encode(&mch), percent_encode(&out_trade_no));
            let path = format!("/v1/explain?mch={mch}&out_trade_no={number}");
            screen.show(&client.get::<Explain>(&path)?, explain_table)
        }
        AdminCommand::Merchant(MerchantCommand::Show { mch }) => {
            let path = format!("/v1/merchant?mch={}", percent_encode(&mch));
            screen.show(&client.get::<MerchantView>(&path)?, merchant_table)
        }
        AdminCommand::Merchant(MerchantCommand::Put { file, only_if_absent }) => {
            let path = format!("/v1/merchant?only_if_absent={only_if_absent}");
            for merchant in merchants::specs(&file)? {
                screen.done(&client.post(&path, &merchant)?)?;
            }
            Ok(())
        }
        AdminCommand::Limit(LimitCommand::Set(args)) => {
            screen.done(&client.post("/v1/limit", &args.request())?)
        }
        AdminCommand::Drain { site } => {
            let request = DrainRequest { site, drained: true };
            screen.done(&client.post("/v1/drain", &request)?)?;
            wait_drained(&client, site)
        }
        AdminCommand::Undrain { site } => {
            let request = DrainRequest { site, drained: false };
            screen.done(&client.post("/v1/drain", &request)?)
        }
        AdminCommand::Transfer { shard, site } => {
            screen.done(&client.post("/v1/transfer", &TransferRequest { shard, site })?)
        }
        AdminCommand::Member(MemberCommand::Add { site }) => {
            member::change(&mut screen, &client, site, true)
        }
        AdminCommand::Member(MemberCommand::Remove { site }) => {
            member::change(&mut screen, &client, site, false)
        }
        AdminCommand::Decide(args) => screen.done(&client.post("/v1/decide", &args.request())?),
    }
}

/// Waits until a drained site leads nothing any more.
fn wait_drained(client: &Client, site: u16) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        let status: Status = client.get("/status")?;
        let left = status.shards.iter().filter(|shard| shard.leader == site).count();
        if left == 0 {
            return Ok(());
        }
        if started.elapsed() > DRAIN_MAX {
            let text = format!(
                "site {site} still leads {left} shards: no other site is level with it; they follow as soon as one is"
            );
            return Err(Failure::new(Exit::Missed, text));
        }
        std::thread::sleep(DRAIN_POLL);
    }
}

impl LimitArgs {
    fn request(self) -> LimitRequest {
        LimitRequest {
            mch: self.mch,
            until_ms: self.until_ms,
            pay_per_minute: self.limits.pay_per_minute,
            query_per_minute: self.limits.query_per_minute,
            refund_per_minute: self.limits.refund_per_minute,
            burst: self.limits.burst,
            daily_cap: self.limits.daily_cap,
            single_max: self.limits.single_max,
            second_signature_from: self.limits.second_signature_from,
        }
    }
}

impl DecideArgs {
    fn request(self) -> DecideRequest {
        DecideRequest {
            mch: self.mch,
            out_trade_no: self.out_trade_no,
            out_refund_no: self.refund,
            // The parser demands exactly one of --moved and --not-moved.
            success: self.moved,
            note: self.note,
        }
    }
}

struct Screen<'a, W> {
    out: &'a mut W,
    json: bool,
}

impl<W: Write> Screen<'_, W> {
    fn show<T: Serialize>(&mut self, answer: &T, table: fn(&T) -> String) -> Result<(), Failure> {
        if !self.json {
            return print(self.out, format_args!("{}", table(answer)));
        }
        let text = serde_json::to_string_pretty(answer).map_err(ClientError::Answer)?;
        print(self.out, format_args!("{text}\n"))
    }

    fn done(&mut self, done: &Done) -> Result<(), Failure> {
        self.show(done, |done| format!("{}\n", done.done))
    }
}

/// Columns as wide as their widest cell; numbers to the right.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let numeric = |at: usize| {
        rows.iter().all(|row| row[at].bytes().all(|b| b.is_ascii_digit() || b == b'-' || b == b'.'))
    };
    let width = |at: usize| {
        rows.iter().map(|row| row[at].chars().count()).chain([head[at].len()]).max().unwrap_or(0)
    };
    let columns: Vec<_> = (0..head.len()).map(|at| (width(at), numeric(at))).collect();
    let head: Vec<_> = head.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, (width, numeric)) in row.iter().zip(&columns) {
            // Writing to a String cannot fail.
            let _ = match numeric {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn status_table(status: &Status) -> String {
    let ready = if status.ready { "ready" } else { "not ready: " };
    let log = &status.log;
    let fsync = |value: Option<u64>| value.map_or("-".to_owned(), |us| us.to_string());
    let mut text = format!(
        "site {} ({}), version {}, up {} s, {} connections, {} requests in flight\n\
         log: {}, {} segments, {} MiB, {} MiB free{}, fsync p50 {} us, p99 {} us\n\n",
        status.site,
        ready.to_owned() + &status.reason,
        status.version,
        status.uptime_s,
        status.connections,
        status.in_flight,
        log.backend,
        log.segments,
        log.bytes >> 20,
        log.disk_free_bytes >> 20,
        if log.disk_full { " (FULL: no new payments)" } else { "" },
        fsync(log.fsync_us_p50),
        fsync(log.fsync_us_p99),
    );
    let head = [
        "shard", "role", "leader", "term", "commit", "applied", "orders", "open", "in_doubt",
        "manual",
    ];
    let rows: Vec<_> = status.shards.iter().map(shard_row).collect();
    text += &table(&head, &rows);
    text.push('\n');
    let head = ["channel", "name", "up", "in_flight", "sent", "answered", "unanswered"];
    let rows: Vec<_> = status
        .channels
        .iter()
        .map(|channel| {
            let up = if channel.up { "up" } else { "down" };
            let counts = [channel.in_flight, channel.sent, channel.answered, channel.unanswered];
            let mut row = vec![channel.number.to_string(), channel.name.clone(), up.to_owned()];
            row.extend(counts.map(|count| count.to_string()));
            row
        })
        .collect();
    text + &table(&head, &rows)
}

fn shard_row(shard: &crate::admin::api::ShardStatus) -> Vec<String> {
    let mut row = vec![shard.shard.to_string(), shard.role.clone(), shard.leader.to_string()];
    let numbers = [
        shard.term,
        shard.commit,
        shard.applied,
        shard.orders,
        shard.open,
        shard.in_doubt,
        shard.manual,
    ];
    row.extend(numbers.map(|number| number.to_string()));
    row
}

fn in_doubt_table(list: &[InDoubt]) -> String {
    if list.is_empty() {
        return "nothing in doubt\n".to_owned();
    }
    let head = [
        "merchant",
        "out_trade_no",
        "transaction_id",
        "state",
        "channel",
        "amount",
        "cur",
        "age_s",
    ];
    let rows: Vec<_> = list
        .iter()
        .map(|order| {
            vec![
                order.mch_id.clone(),
                order.out_trade_no.clone(),
                order.transaction_id.clone(),
                order.state.clone(),
                order.channel.clone(),
                order.amount.to_string(),
                order.currency.clone(),
                order.age_s.to_string(),
            ]
        })
        .collect();
    table(&head, &rows)
}

fn explain_table(explain: &Explain) -> String {
    let mut text = format!(
        "{} {} (transaction {}, shard {})\n{} {}: {} {}, refunded {}, reserved {}\n\n",
        explain.mch_id,
        explain.out_trade_no,
        explain.transaction_id,
        explain.shard,
        explain.state,
        explain.reason,
        explain.amount,
        explain.currency,
        explain.refunded,
        explain.reserved,
    );
    let rows: Vec<_> = explain
        .records
        .iter()
        .map(|record| {
            vec![
                record.index.to_string(),
                record.term.to_string(),
                record.at_ms.to_string(),
                record.kind.clone(),
                record.text.clone(),
            ]
        })
        .collect();
    if explain.beginning_gone {
        text += "the log no longer reaches back to its beginning: earlier records are gone\n";
    }
    text += &table(&["index", "term", "at_ms", "record", "what"], &rows);
    text
}

fn merchant_table(merchant: &MerchantView) -> String {
    let list = |values: &[String], none: &str| match values {
        [] => none.to_owned(),
        values => values.join(", "),
    };
    let keys: Vec<_> = merchant
        .keys
        .iter()
        .map(|key| {
            let kind = match key.kind {
                merchants::KindSpec::HmacSha256 => "hmac-sha256",
                merchants::KindSpec::Ed25519 => "ed25519",
            };
            format!("{} ({kind})", key.key_id)
        })
        .collect();
    let limits = &merchant.limits;
    let bound = |value: i64| if value == 0 { "none".to_owned() } else { value.to_string() };
    let rows = [
        ("merchant", merchant.id.clone()),
        ("status", format!("{:?}", merchant.status).to_lowercase()),
        ("keys", list(&keys, "none")),
        ("gateways", list(&merchant.gateways, "all")),
        ("addresses", list(&merchant.addresses, "all")),
        ("pay_per_minute", limits.pay_per_minute.to_string()),
        ("query_per_minute", limits.query_per_minute.to_string()),
        ("refund_per_minute", limits.refund_per_minute.to_string()),
        ("burst", limits.burst.to_string()),
        ("daily_cap", bound(limits.daily_cap)),
        ("single_max", bound(limits.single_max)),
        ("second_signature_from", bound(limits.second_signature_from)),
    ];
    rows.iter().fold(String::new(), |text, (key, value)| text + &format!("{key:<22} {value}\n"))
}

/// Query values as the server decodes them.
fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows =
            [vec!["1".to_owned(), "leader".to_owned()], vec!["12".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["n", "role"], &rows), " n  role\n 1  leader\n12  x\n");
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(percent_encode("A|1*x-_&="), "A%7C1%2Ax-_%26%3D");
    }

    proptest::proptest! {
        #[test]
        fn the_server_decodes_what_we_encode(text in ".*") {
            let decoded = crate::admin::routes::percent_decode(&percent_encode(&text));
            proptest::prop_assert_eq!(decoded, Some(text));
        }
    }

    #[test]
    fn status_tells_what_matters() {
        let status = Status {
            site: 2,
            reason: "replaying".to_owned(),
            shards: vec![crate::admin::api::ShardStatus {
                shard: 7,
                role: "leader".to_owned(),
                in_doubt: 41,
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = status_table(&status);
        assert!(text.contains("site 2 (not ready: replaying)"), "{text}");
        let row = text.lines().find(|line| line.contains("leader ") && line.contains("41"));
        assert!(row.is_some_and(|row| row.trim_start().starts_with('7')), "{text}");
    }
}
