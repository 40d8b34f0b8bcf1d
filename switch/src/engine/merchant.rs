//! Merchants as the shard knows them: keys, status, who may speak for them,
//! limits. Part of the replicated state; changed only by admin records.

use protocol::id::{MchId, ShortText};

/// What a merchant may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MerchantStatus {
    /// Everything.
    Active = 1,
    /// Pays up to the limited profile's bounds (single-payment limit halved by
    /// policy); refunds, queries, closes as usual.
    Limited = 2,
    /// No pay; refunds, queries, closes stay possible.
    Suspended = 3,
    /// No pay until an operator wakes it; refunds, queries, closes stay possible.
    Dormant = 4,
}

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KeyKind {
    /// HMAC-SHA256 with a shared secret.
    HmacSha256 = 1,
    /// Ed25519 public key.
    Ed25519 = 2,
}

/// One key of a merchant. Secrets are wrapped by the deployment's key-encryption
/// key before they get here: the engine and the log never hold them in clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MerchantKey {
    /// Key id on the wire; never 0.
    pub key_id: u32,
    /// Kind.
    pub kind: KeyKind,
    /// Wrapped secret or public key, at most 128 bytes.
    pub material: Vec<u8>,
}

/// An address range: `prefix_len` leading bits of `address` (IPv4 mapped).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// Address.
    pub address: [u8; 16],
    /// Bits, 0-128.
    pub prefix_len: u8,
}

/// Rates and caps. A zero rate forbids the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pays per minute.
    pub pay_per_minute: u32,
    /// Queries (and refund queries) per minute.
    pub query_per_minute: u32,
    /// Refunds (and closes, reverses) per minute.
    pub refund_per_minute: u32,
    /// Burst: how many operations may come at once before the rate bites.
    pub burst: u32,
    /// Sum of accepted pays per day (UTC), minor units; 0: no cap.
    pub daily_cap: i64,
    /// Largest single payment, minor units; 0: no bound.
    pub single_max: i64,
    /// From this amount on a second signature is demanded; 0: never.
    pub second_signature_from: i64,
}

/// A merchant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merchant {
    /// Id.
    pub mch_id: MchId,
    /// Status.
    pub status: MerchantStatus,
    /// At most two live keys.
    pub keys: Vec<MerchantKey>,
    /// Names of the gateways that may speak for it; empty: every gateway. At most 16.
    pub gateways: Vec<ShortText>,
    /// Ranges its gateways may come from; empty: everywhere. At most 16.
    pub addresses: Vec<AddressRange>,
    /// Limits in force.
    pub limits: Limits,
}
