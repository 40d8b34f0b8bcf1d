//! The rules of docs/STATES.md, one check each; C3 and so on are their numbers.

mod cancels;
mod crashes;
mod doubt;
mod duplicates;
mod late;
mod refunds;

use super::driver::*;
use crate::engine::config::ChannelConfig;
use crate::engine::input::{Evidence, Operation};
use crate::engine::output::{AlarmKind, Send};
use protocol::code::Code;

fn world_of(change: impl Fn(&mut ChannelConfig)) -> World {
    let mut channels = vec![channel(1), channel(2)];
    channels.iter_mut().for_each(change);
    World::with(config(channels))
}

/// An order whose charge stays without answer until it is in doubt.
fn in_doubt(world: &mut World, number: &str) -> (u64, Send) {
    let asked = world.pay(number, 100);
    world.settle();
    let send = world.sent(Operation::Charge);
    world.evidence(send.operation, Evidence::Lost);
    (asked, send)
}

fn has_alarm(world: &World, kind: AlarmKind) -> bool {
    world.out.alarms.iter().any(|alarm| alarm.kind == kind)
}

/// The code of the answer to a refund; one that is taken has none yet.
fn refund_code(world: &mut World, number: &str, refund: &str, minor: i64) -> Code {
    let asked = world.refund(number, refund, minor);
    world.refund_reply(asked).map_or(Code::Ok, |reply| reply.code)
}
