//! Bodies of the admin API, shared by server and command line. `GET /status`
//! is also read by load generators and scripts: fields are only ever added.

use crate::config::merchants::{KindSpec, LimitsSpec, StatusSpec, format_range};
use crate::engine::merchant::{Limits, Merchant};
use serde::{Deserialize, Serialize};

/// `GET /status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This site.
    pub site: u16,
    /// Version of the binary.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Whether it serves.
    pub ready: bool,
    /// Why not; empty when it does.
    pub reason: String,
    /// Sites that shall not lead.
    #[serde(default)]
    pub drained: Vec<u16>,
    /// Every shard.
    pub shards: Vec<ShardStatus>,
    /// Every channel.
    pub channels: Vec<ChannelStatus>,
    /// The log.
    pub log: LogStatus,
    /// Gateway connections.
    pub connections: u64,
    /// Unanswered requests.
    pub in_flight: u64,
}

/// A shard at this site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Number.
    pub shard: u16,
    /// `leader`, `follower`, `candidate`, `learner`, or `none`: this site is no
    /// member.
    pub role: String,
    /// Leading site; 0: none known.
    pub leader: u16,
    /// Sites that vote.
    #[serde(default)]
    pub voters: Vec<u16>,
    /// Sites that get the log without a vote.
    #[serde(default)]
    pub learners: Vec<u16>,
    /// Whether a change of voters is under way.
    #[serde(default)]
    pub joint: bool,
    /// Raft term.
    pub term: u64,
    /// Highest committed index.
    pub commit: u64,
    /// Highest applied index.
    pub applied: u64,
    /// Last block in its newest checkpoint; 0: none.
    #[serde(default)]
    pub checkpoint: u64,
    /// Payments held.
    pub orders: u64,
    /// Payments without a final state.
    pub open: u64,
    /// Payments in doubt.
    pub in_doubt: u64,
    /// Payments in front of an operator.
    pub manual: u64,
}

/// A channel's link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Number.
    pub number: u16,
    /// Name.
    pub name: String,
    /// Whether it can take requests.
    pub up: bool,
    /// Operations without answer.
    pub in_flight: u64,
    /// Requests sent since start.
    pub sent: u64,
    /// Answers since start.
    pub answered: u64,
    /// Operations lost or timed out since start.
    pub unanswered: u64,
}

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogStatus {
    /// `uring` or `blocking`.
    pub backend: String,
    /// Segment files.
    pub segments: u64,
    /// Bytes of the segments.
    pub bytes: u64,
    /// Free bytes of the file system.
    pub disk_free_bytes: u64,
    /// Whether only the reserve is left: no new payment is admitted.
    #[serde(default)]
    pub disk_full: bool,
    /// Median of write and fdatasync, microseconds; absent before the first.
    pub fsync_us_p50: Option<u64>,
    /// 99th percentile.
    pub fsync_us_p99: Option<u64>,
}

/// A payment in doubt or in front of an operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InDoubt {
    /// Merchant.
    pub mch_id: String,
    /// Its number.
    pub out_trade_no: String,
    /// Our number.
    pub transaction_id: String,
    /// Shard.
    pub shard: u16,
    /// State of the attempt or refund.
    pub state: String,
    /// Channel's name.
    pub channel: String,
    /// Amount, minor units.
    pub amount: i64,
    /// Currency.
    pub currency: String,
    /// Seconds since it began.
    pub age_s: u64,
}

/// A payment's time line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explain {
    /// Merchant.
    pub mch_id: String,
    /// Its number.
    pub out_trade_no: String,
    /// Our number.
    pub transaction_id: String,
    /// Shard.
    pub shard: u16,
    /// State.
    pub state: String,
    /// Why it is so.
    pub reason: String,
    /// Amount, minor units.
    pub amount: i64,
    /// Currency.
    pub currency: String,
    /// Given back, minor units.
    pub refunded: i64,
    /// Reserved by refunds under way, minor units.
    pub reserved: i64,
    /// Records of the payment, in log order.
    pub records: Vec<ExplainRecord>,
    /// The log no longer reaches back to the payment's beginning: records are
    /// missing, the state is not.
    #[serde(default)]
    pub beginning_gone: bool,
}

/// One record of a time line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExplainRecord {
    /// Log index of its block.
    pub index: u64,
    /// Term.
    pub term: u64,
    /// Unix milliseconds, as the leader stamped it.
    pub at_ms: u64,
    /// Kind.
    pub kind: String,
    /// What it says.
    pub text: String,
}

/// `GET /v1/merchant`: keys without their material.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MerchantView {
    /// Id.
    pub id: String,
    /// Status.
    pub status: StatusSpec,
    /// Keys.
    pub keys: Vec<KeyView>,
    /// Gateways that may speak for it; empty: all.
    pub gateways: Vec<String>,
    /// Ranges; empty: all.
    pub addresses: Vec<String>,
    /// Limits in force.
    pub limits: LimitsSpec,
}

/// A key without its material.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyView {
    /// Id on the wire.
    pub key_id: u32,
    /// Kind.
    pub kind: KindSpec,
}

impl From<&Merchant> for MerchantView {
    fn from(merchant: &Merchant) -> Self {
        let key = |key: &crate::engine::merchant::MerchantKey| KeyView {
            key_id: key.key_id,
            kind: key.kind.into(),
        };
        Self {
            id: merchant.mch_id.to_string(),
            status: merchant.status.into(),
            keys: merchant.keys.iter().map(key).collect(),
            gateways: merchant.gateways.iter().map(ToString::to_string).collect(),
            addresses: merchant.addresses.iter().map(format_range).collect(),
            limits: merchant.limits.into(),
        }
    }
}

/// `POST /v1/limit`. Absent limits stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitRequest {
    /// Merchant.
    pub mch: String,
    /// When the previous limits come back, Unix milliseconds; 0: never.
    #[serde(default)]
    pub until_ms: u64,
    /// Pays per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pay_per_minute: Option<u32>,
    /// Queries per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_per_minute: Option<u32>,
    /// Refunds per minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund_per_minute: Option<u32>,
    /// Operations at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Sum per day, minor units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_cap: Option<i64>,
    /// Largest single payment, minor units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single_max: Option<i64>,
    /// Second signature from this amount, minor units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_signature_from: Option<i64>,
}

impl LimitRequest {
    /// `current` with what the request changes.
    pub fn over(&self, current: Limits) -> LimitsSpec {
        LimitsSpec {
            pay_per_minute: self.pay_per_minute.unwrap_or(current.pay_per_minute),
            query_per_minute: self.query_per_minute.unwrap_or(current.query_per_minute),
            refund_per_minute: self.refund_per_minute.unwrap_or(current.refund_per_minute),
            burst: self.burst.unwrap_or(current.burst),
            daily_cap: self.daily_cap.unwrap_or(current.daily_cap),
            single_max: self.single_max.unwrap_or(current.single_max),
            second_signature_from: self
                .second_signature_from
                .unwrap_or(current.second_signature_from),
        }
    }
}

/// `POST /v1/decide`. The first operator's request is a proposal (status 202);
/// it is carried out when another operator sends the same decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecideRequest {
    /// Merchant.
    pub mch: String,
    /// Payment.
    pub out_trade_no: String,
    /// Refund, when the decision is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_refund_no: Option<String>,
    /// Whether the money moved.
    pub success: bool,
    /// Evidence, at most 32 characters (a ticket or file number).
    pub note: String,
}

/// `POST /v1/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Site.
    pub site: u16,
    /// It shall not lead any shard from now on, or may again.
    pub drained: bool,
}

/// `POST /v1/transfer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// Shard.
    pub shard: u16,
    /// The site that is to lead it.
    pub site: u16,
}

/// `POST /v1/member`: notes in the log who asked for what; the change itself is
/// made with `POST /v1/member/step`, shard by shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRequest {
    /// Site.
    pub site: u16,
    /// It shall be a member that votes, or none at all.
    pub member: bool,
}

/// `POST /v1/member/step`: to be repeated until the answer says `done`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberStep {
    /// Shard.
    pub shard: u16,
    /// Site.
    pub site: u16,
    /// It shall be a member that votes, or none at all.
    pub member: bool,
}

/// The answer to a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberProgress {
    /// Shard.
    pub shard: u16,
    /// It is so, and the change has ended.
    pub done: bool,
    /// How far it is.
    pub text: String,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was done.
    pub done: String,
}

/// Every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// Code to branch on, text to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Code in snake_case.
    pub code: String,
    /// With the code `not_leader`: the site to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<u16>,
    /// Why, and what to do.
    pub message: String,
}
