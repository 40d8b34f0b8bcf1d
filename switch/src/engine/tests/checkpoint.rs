//! Checkpoints: whole or refused, canonical, and written in slices while the
//! state changes. The model holds the same on its seeds (`replicas`).

use super::driver::*;
use super::replicas::chunks;
use crate::engine::checkpoint::testing::sealed;
use crate::engine::input::{AdminCommand, AdminInput, Input, Operation};
use crate::engine::merchant::{AddressRange, KeyKind, MerchantKey};
use crate::engine::{CHUNK_BYTES_MAX, Engine, Restore, RestoreError, Slice};
use proptest::prelude::*;
use protocol::channel::ChannelStatus;
use protocol::code::Code;
use protocol::id::{MchId, ShortText};

/// A shard with something of everything: merchants with keys and temporary
/// limits, paid, failed, closed, open and cancelled payments, several attempts,
/// refunds in every state, events delivered and not.
fn world() -> World {
    let mut first = channel(1);
    first.fence_on_cancel = true;
    let mut world = World::with(config(vec![first, channel(2)]));
    let mut other = merchant();
    other.mch_id = MchId::parse(b"another").expect("valid");
    let key = |key_id, kind| MerchantKey { key_id, kind, material: vec![7; 60] };
    other.keys = vec![key(1, KeyKind::HmacSha256), key(2, KeyKind::Ed25519)];
    other.gateways = vec![ShortText::new(b"gw-1").expect("short")];
    other.addresses = vec![AddressRange { address: [1; 16], prefix_len: 96 }];
    world.put_merchant(other);
    world.settle();
    world.give(Input::Admin(AdminInput {
        ticket: 2,
        operator: ShortText::new(b"ops").expect("short"),
        command: AdminCommand::PutLimits {
            mch_id: mch(),
            limits: limits(),
            until_ms: (START_WALL + 3600 * SECOND) / 1000,
        },
    }));
    world.settle();
    world.paid("paid", 100);
    world.refund("paid", "back", 30);
    world.settle();
    let back = world.sent(Operation::Refund);
    world.answer(&back, ChannelStatus::Success);
    world.refund("paid", "open", 20);
    world.settle();
    world.sent(Operation::Refund);
    // Declined on the first channel, paid on the second.
    world.pay("second", 200);
    world.settle();
    let charge = world.sent(Operation::Charge);
    world.answer(&charge, ChannelStatus::Declined);
    if let Some(at) = world.out.sends.iter().position(|s| s.channel == 2) {
        let charge = world.out.sends.remove(at);
        world.answer(&charge, ChannelStatus::Success);
    }
    world.pay("open", 300);
    world.settle();
    world.sent(Operation::Charge);
    world.close("open");
    world.settle();
    world
}

fn restored(world: &World) -> Engine {
    Engine::restore(world.config.clone(), chunks(&world.engine)).expect("sound")
}

#[test]
fn a_restored_shard_is_the_same_and_goes_on_the_same() {
    let mut world = world();
    let mut twin = restored(&world);
    assert_eq!(chunks(&twin), chunks(&world.engine));
    assert_eq!(twin.applied(), world.engine.applied());
    assert_eq!(twin.merchants().count(), 2);
    let before = format!("{:?}", world.view("second"));
    world.engine = twin;
    world.term += 1;
    world.out.sends.clear();
    world.lead();
    world.settle();
    assert_eq!(format!("{:?}", world.view("second")), before);
    // Known keys are known, refunds and limits stand, new numbers follow.
    assert_eq!(world.query("paid").refunded, 30);
    assert_eq!(world.query("paid").refunding, 20);
    let over = world.refund("paid", "too-much", 51);
    assert_eq!(world.refund_reply(over).expect("refused").code, Code::RefundExceedsPaid);
    let again = world.pay("paid", 101);
    assert_eq!(world.order_reply(again).expect("refused").code, Code::IdempotencyConflict);
    let count = world.engine.stats().orders;
    world.pay("new", 5);
    world.settle();
    assert_eq!(world.engine.stats().orders, count + 1);
    twin = world.replay(world.log.len());
    assert_eq!(twin.state_hash(), world.engine.state_hash(), "the log says the same");
}

/// Every payment changes while the checkpoint is written, before and after its turn.
#[test]
fn slices_write_the_state_as_it_was() {
    for payments in [1, 2, 5, 100] {
        let mut world = World::new();
        for nth in 0..24 {
            world.paid(&format!("o{nth}"), 100);
        }
        let expected = chunks(&world.engine);
        let mut written = Vec::new();
        let index = world.engine.begin_checkpoint(&mut |chunk| written.push(chunk.to_vec()));
        assert_eq!(index, world.log.len() as u64);
        let mut nth = 23;
        let hash = loop {
            let mut keep = |chunk: &[u8]| written.push(chunk.to_vec());
            if let Slice::Done { hash } = world.engine.checkpoint_slice(payments, &mut keep) {
                break hash;
            }
            world.refund(&format!("o{nth}"), "r", 10);
            world.settle();
            world.sent(Operation::Refund);
            world.paid(&format!("new{nth}"), 100);
            world.settle();
            nth -= 1;
        };
        assert_eq!(written, expected);
        assert_eq!(hash, expected.last().expect("an end")[32..64]);
        assert_eq!(world.engine.checkpoint_slice(1, &mut |_| ()), Slice::None);
        assert!(payments > 5 || world.engine.state_hash() != hash, "it changed meanwhile");
    }
}

#[test]
fn a_checkpoint_begun_again_or_given_up_leaves_nothing() {
    let mut world = world();
    world.engine.begin_checkpoint(&mut |_| ());
    world.engine.checkpoint_slice(1, &mut |_| ());
    world.out.sends.clear();
    world.paid("later", 1);
    let mut written = Vec::new();
    world.engine.begin_checkpoint(&mut |chunk| written.push(chunk.to_vec()));
    while world.engine.checkpoint_slice(1, &mut |chunk| written.push(chunk.to_vec())) == Slice::More
    {
    }
    assert_eq!(written, chunks(&world.engine));
    world.engine.begin_checkpoint(&mut |_| ());
    world.engine.abandon_checkpoint();
    assert_eq!(world.engine.checkpoint_slice(1, &mut |_| ()), Slice::None);
}

#[test]
fn many_payments_fill_chunks_within_their_bound() {
    let mut wide = channel(1);
    wide.in_flight_max = 10_000;
    let mut world = World::with(config(vec![wide]));
    for nth in 0..6_000 {
        world.pay(&format!("o{nth}"), 100);
    }
    world.settle();
    assert_eq!(world.engine.stats().orders, 6_000);
    let chunks = chunks(&world.engine);
    let full = &chunks[2..chunks.len() - 2];
    assert!(full.len() > 1);
    assert!(full.iter().all(|chunk| chunk.len() > CHUNK_BYTES_MAX - 1_000));
    assert_eq!(restored(&world).state_hash(), world.engine.state_hash());
}

fn refuse(world: &World, chunks: &[Vec<u8>]) -> RestoreError {
    match Engine::restore(world.config.clone(), chunks) {
        Err(error) => error,
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn whatever_is_missing_doubled_swapped_or_foreign_is_refused() {
    let world = world();
    let whole = chunks(&world.engine);
    assert_eq!(whole.len(), 4, "head, merchants, payments, end");
    for count in 0..whole.len() {
        assert_eq!(refuse(&world, &whole[..count]), RestoreError::Incomplete);
    }
    for at in 0..whole.len() {
        let mut doubled = whole.clone();
        doubled.insert(at, whole[at].clone());
        refuse(&world, &doubled);
        let mut missing = whole.clone();
        missing.remove(at);
        refuse(&world, &missing);
    }
    let mut after_the_end = whole.clone();
    after_the_end.push(whole[3].clone());
    refuse(&world, &after_the_end);
    let mut config = world.config.clone();
    config.shard += 1;
    let foreign = Engine::restore(config, &whole).err();
    assert_eq!(foreign, Some(RestoreError::Foreign { chunk: 0 }));
    let mut later = World::new();
    later.paid("x", 1);
    let mut mixed = whole.clone();
    mixed[2] = chunks(&later.engine)[2].clone();
    assert_eq!(refuse(&world, &mixed), RestoreError::Foreign { chunk: 2 });
    let mut newer = whole.clone();
    newer[0][4] = 2;
    assert_eq!(refuse(&world, &newer), RestoreError::Version(2));
    // After an error nothing is taken any more.
    let mut restore = Restore::new(world.config.clone());
    assert!(restore.chunk(&whole[1]).is_err());
    assert!(restore.chunk(&whole[0]).is_err());
    assert_eq!(restore.finish().err(), Some(RestoreError::Incomplete));
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let world = world();
    let whole = chunks(&world.engine);
    for (at, chunk) in whole.iter().enumerate() {
        for byte in 0..chunk.len() {
            let mut altered = whole.clone();
            altered[at][byte] ^= 1 << (byte % 8);
            refuse(&world, &altered);
        }
        for length in [0, 1, 63, 64, chunk.len() - 1] {
            let mut cut = whole.clone();
            cut[at].truncate(length.min(chunk.len() - 1));
            refuse(&world, &cut);
        }
    }
}

/// Restores what a forger with the right sums would send. It may be refused or
/// be a state; it must never panic, and a state must survive being led.
fn survive(world: &World, bodies: &[(u8, u32, Vec<u8>)]) {
    let forged = sealed(world.config.shard, world.engine.applied(), bodies);
    if let Ok(engine) = Engine::restore(world.config.clone(), &forged) {
        assert_eq!(chunks(&engine), forged, "what is accepted is canonical");
        let mut led = World::with(world.config.clone());
        led.engine = engine;
        led.term += 1;
        led.out = Default::default();
        led.give(Input::Lead { term: led.term });
        led.give(Input::ChannelUp { channel: 1, up: true });
        led.engine.doubt_views(1_000);
    }
}

fn bodies(world: &World) -> Vec<(u8, u32, Vec<u8>)> {
    let word = |chunk: &[u8]| u32::from_le_bytes(chunk.try_into().expect("four bytes"));
    let split = |chunk: &Vec<u8>| (chunk[6], word(&chunk[28..32]), chunk[64..].to_vec());
    chunks(&world.engine).iter().map(split).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4)) {
        let world = World::new();
        refuse(&world, &noise);
    }

    #[test]
    fn forged_items_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let world = world();
        let mut bodies = bodies(&world);
        for (chunk, byte, value) in changes {
            let (.., body) = &mut bodies[chunk.index(3)];
            let at = byte.index(body.len());
            body[at] = value;
        }
        if let Some(cut) = cut {
            let at = cut.index(bodies[2].2.len());
            bodies[2].2.truncate(at);
        }
        survive(&world, &bodies);
    }
}
