//! The native channel protocol: our own frames over QUIC (ALPN
//! `payswitch-channel/1`) between the switch and a payment service beside it.
//!
//! The correlation id is chosen by the switch and echoed. Every reply names the
//! operation's channel number, amount and currency, so that an answer to
//! another question is noticed.

use crate::id::{ChannelNo, ShortText};
use crate::money::{Amount, Currency};

/// Message kinds of the native channel.
pub mod kind {
    /// Charge.
    pub const CHARGE: u8 = 0x40;
    /// State of a charge.
    pub const QUERY: u8 = 0x41;
    /// Undo a charge, or fence a number that never arrived.
    pub const REVERSE: u8 = 0x42;
    /// Give back part of a charge.
    pub const REFUND: u8 = 0x43;
    /// State of a refund.
    pub const QUERY_REFUND: u8 = 0x44;
    /// Reply to any of them: kind with the top bit set.
    pub const REPLY: u8 = 0x80;
}

/// A request to the channel; `kind` tells the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelRequest {
    /// One of [`kind`].
    pub kind: u8,
    /// Number of the charge.
    pub charge_no: ChannelNo,
    /// Number of the refund; `None` for charge operations.
    pub refund_no: Option<ChannelNo>,
    /// Amount of the operation (the charge's for query and reverse).
    pub amount: Amount,
    /// Currency.
    pub currency: Currency,
    /// Last moment at which the channel may still charge, Unix milliseconds.
    pub time_expire_ms: u64,
}

/// What the channel says happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ChannelStatus {
    /// Charged, or refunded: money moved.
    Success = 1,
    /// Declined for good; `detail` carries the class.
    Declined = 2,
    /// The payer must act, or the channel still works on it.
    Pending = 3,
    /// The channel has no such number.
    NotFound = 4,
    /// Reversed: nothing stands charged, and the number can never be charged again.
    Reversed = 5,
    /// Busy or broken: says nothing about money.
    Unavailable = 6,
}

/// The channel's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelReply {
    /// Request kind with the top bit set.
    pub kind: u8,
    /// Outcome.
    pub status: ChannelStatus,
    /// Decline class: a [`crate::code::Reason`] number; 0 when none.
    pub detail: u16,
    /// Number of the charge.
    pub charge_no: ChannelNo,
    /// Amount that moved, minor units; 0 when none.
    pub amount: i64,
    /// Currency.
    pub currency: Currency,
    /// The channel's own number; may be empty.
    pub channel_ref: ShortText,
}
