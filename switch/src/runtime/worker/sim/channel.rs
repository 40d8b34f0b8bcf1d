//! Honest payment channels with a ledger: they act on what arrives, whatever
//! was lost, repeated or late on the way.

use std::collections::BTreeMap;

use protocol::channel::ChannelStatus;
use protocol::id::ShortText;

use super::random::Random;
use super::setup::{SECOND, Setup};
use crate::engine::input::{Evidence, Operation};
use crate::engine::output::Send;

/// What a channel did about one charge number.
#[derive(Clone, Debug, Default)]
pub(super) struct Charge {
    pub(super) state: Option<ChannelStatus>,
    pub(super) amount: i64,
    /// Money movements; more than one is a double charge.
    pub(super) charged: u32,
    pub(super) refunds: BTreeMap<String, (i64, ChannelStatus)>,
    /// An operator had the number blocked: whatever still comes is refused.
    blocked: bool,
}

impl Charge {
    pub(super) fn given_back(&self) -> i64 {
        self.refunds.values().filter(|(_, s)| *s == ChannelStatus::Success).map(|(a, _)| a).sum()
    }

    /// Money that stands charged.
    pub(super) fn standing(&self) -> i64 {
        match self.state {
            Some(ChannelStatus::Success) => {
                self.amount * i64::from(self.charged) - self.given_back()
            }
            _ => 0,
        }
    }
}

/// What came of a request.
pub(super) struct Acted {
    pub(super) evidence: Evidence,
    /// The payer is asked, and acts after this time.
    pub(super) payer_after_us: Option<u64>,
}

/// All channels.
pub(super) struct Channels {
    /// By channel number - 1.
    ledgers: Vec<BTreeMap<String, Charge>>,
}

impl Channels {
    pub(super) fn new(count: usize) -> Self {
        Self { ledgers: vec![BTreeMap::new(); count] }
    }

    /// Every charge whose number begins with `prefix`.
    pub(super) fn charges<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Charge> {
        let of = move |ledger: &'a BTreeMap<String, Charge>| {
            ledger.range(prefix.to_owned()..).take_while(move |(no, _)| no.starts_with(prefix))
        };
        self.ledgers.iter().flat_map(of).map(|(_, charge)| charge)
    }

    /// A channel acts on a request.
    pub(super) fn act(
        &mut self,
        send: &Send,
        wall_ms: u64,
        setup: &Setup,
        faults: bool,
        random: &mut Random,
    ) -> Acted {
        let place = usize::from(send.channel) - 1;
        let contract = &setup.channels[place];
        let number = send.request.charge_no.to_string();
        let (chance, minor) = (random.below(100), send.request.amount.minor());
        let charge = self.ledgers[place].entry(number).or_default();
        let mut payer_after_us = None;
        let status = match send.operation.operation {
            Operation::Charge => {
                let again = charge.state.is_some() && contract.idempotent_pay;
                let fences = contract.fence_on_cancel;
                let fenced = charge.state == Some(ChannelStatus::Reversed) && fences;
                if !again && !fenced && !charge.blocked {
                    let status = match chance {
                        _ if wall_ms >= send.request.time_expire_ms => ChannelStatus::Declined,
                        0..=64 => ChannelStatus::Success,
                        65..=84 => ChannelStatus::Declined,
                        _ => ChannelStatus::Pending,
                    };
                    if status == ChannelStatus::Pending {
                        payer_after_us = Some(random.below(3 * SECOND));
                    }
                    charge.amount = minor;
                    charge.charged += u32::from(status == ChannelStatus::Success);
                    charge.state = Some(status);
                }
                charge.state.unwrap_or(ChannelStatus::Unavailable)
            }
            Operation::Query => charge.state.unwrap_or(ChannelStatus::NotFound),
            Operation::Reverse => reverse(charge, contract.fence_on_cancel),
            Operation::Refund => {
                let does = charge.standing() >= minor && chance < 90;
                let status = if does { ChannelStatus::Success } else { ChannelStatus::Declined };
                let refund = send.request.refund_no.map(|no| no.to_string()).unwrap_or_default();
                charge.refunds.entry(refund).or_insert((minor, status)).1
            }
            Operation::QueryRefund => {
                let refund = send.request.refund_no.map(|no| no.to_string()).unwrap_or_default();
                charge.refunds.get(&refund).map_or(ChannelStatus::NotFound, |(_, status)| *status)
            }
        };
        // Sometimes it acted and answers that it is busy.
        let busy = faults && random.percent(5);
        let status = if busy { ChannelStatus::Unavailable } else { status };
        let detail = if random.percent(90) { 4 } else { 1 };
        let evidence = Evidence::Answered {
            status,
            detail,
            charge_no: send.request.charge_no,
            amount: if status == ChannelStatus::Success { minor } else { 0 },
            currency: send.request.currency,
            channel_ref: ShortText::EMPTY,
        };
        Acted { evidence, payer_after_us }
    }

    /// What an operator finds out about a charge: whether money moved. If not,
    /// the number is blocked for good.
    pub(super) fn decide_charge(&mut self, channel: u16, number: &str) -> bool {
        let charge = self.ledgers[usize::from(channel) - 1].entry(number.to_owned()).or_default();
        let success = charge.charged == 1;
        if !success {
            charge.state = Some(ChannelStatus::Reversed);
            charge.blocked = true;
        }
        success
    }

    /// The same about a refund.
    pub(super) fn decide_refund(
        &mut self,
        channel: u16,
        charge: &str,
        refund: &str,
        amount: i64,
    ) -> bool {
        let charge = self.ledgers[usize::from(channel) - 1].entry(charge.to_owned()).or_default();
        let refund = charge.refunds.entry(refund.to_owned());
        refund.or_insert((amount, ChannelStatus::Declined)).1 == ChannelStatus::Success
    }

    /// The payer of a pending charge pays or does not.
    pub(super) fn payer_acts(&mut self, channel: u16, number: &str, pays: bool) {
        let charge = self.ledgers[usize::from(channel) - 1].get_mut(number);
        if let Some(charge) = charge.filter(|c| c.state == Some(ChannelStatus::Pending)) {
            charge.charged = u32::from(pays);
            charge.state =
                Some(if pays { ChannelStatus::Success } else { ChannelStatus::Declined });
        }
    }
}

fn reverse(charge: &mut Charge, fences: bool) -> ChannelStatus {
    if !charge.refunds.is_empty() {
        return ChannelStatus::Declined;
    }
    if fences || charge.state.is_some() {
        charge.state = Some(ChannelStatus::Reversed);
        charge.charged = 0;
    }
    ChannelStatus::Reversed
}
