//! Seeds that must hold, and flaws that must be found.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Summary};
use super::setup::{Flaw, MS, Shape};
use crate::engine::weakness::Weakness;

/// Seeds of a normal run, by number of sites.
const SEEDS_OF_THREE: u64 = 1_000;
const SEEDS_OF_FIVE: u64 = 460;
const SEEDS_FAR_APART: u64 = 60;
const SEEDS_WITH_WITNESS: u64 = 300;
const SEEDS_OF_CHANGES: u64 = 240;
/// A flaw must be found within this many seeds.
const SEEDS_OF_FLAW: u64 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a seed does: a summary, or what it violates.
fn outcome(seed: u64, shape: Shape) -> Result<Summary, String> {
    let verbose = number("SIM_SEED").is_some();
    let run = || Cluster::new(seed, shape, verbose).run();
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    })
}

/// Runs the seeds that are asked for: `SIM_SEED` one, `SIM_SECONDS` as many as
/// fit from `SIM_FROM` on, else a fixed number.
fn hold(name: &str, shape: Shape, count: u64) {
    let sites = shape.sites;
    let (one, from) = (number("SIM_SEED"), number("SIM_FROM").unwrap_or(0));
    let until = number("SIM_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let count = if until.is_some() { u64::MAX - from } else { count };
    let seeds = one.map_or(from..from + count, |seed| seed..seed + 1);
    let (started, mut ran) = (Instant::now(), 0);
    let (mut crashes, mut terms, mut answers, mut virtual_us) = (0, 0, 0, 0);
    let mut installed = 0;
    for seed in seeds {
        match outcome(seed, shape) {
            Ok(summary) => {
                crashes += summary.crashes;
                terms += summary.terms;
                answers += summary.answers;
                virtual_us += summary.virtual_us;
                installed += summary.installed;
            }
            Err(violated) => panic!(
                "seed {seed} of {sites} sites violates {violated}\n\
                 replay: SIM_SEED={seed} cargo test -p switch --lib sim::tests::{name} -- --nocapture"
            ),
        }
        ran += 1;
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
    }
    println!(
        "{ran} seeds of {sites} sites in {:.1} s: {} s simulated, {crashes} crashes, \
         {terms} terms, {answers} answers, {installed} states sent",
        started.elapsed().as_secs_f64(),
        virtual_us / 1_000_000,
    );
    assert!(installed > 0 || ran < 200, "no site ever needed a state");
}

#[test]
fn three_sites_hold_under_every_seed() {
    hold("three_sites_hold_under_every_seed", Shape::of(3), SEEDS_OF_THREE);
}

#[test]
fn five_sites_hold_under_every_seed() {
    hold("five_sites_hold_under_every_seed", Shape::of(5), SEEDS_OF_FIVE);
}

/// 60 ms apart, with the time-outs that the configuration makes of that.
#[test]
fn sites_far_apart_hold_under_every_seed() {
    let shape = Shape::of(3).apart(60 * MS);
    hold("sites_far_apart_hold_under_every_seed", shape, SEEDS_FAR_APART);
}

#[test]
fn two_sites_and_a_witness_hold_under_every_seed() {
    let shape = Shape::of(3).with_witness();
    hold("two_sites_and_a_witness_hold_under_every_seed", shape, SEEDS_WITH_WITNESS);
}

/// A fourth site is brought up by a state, while others crash and go.
#[test]
fn members_that_change_while_states_travel_hold_under_every_seed() {
    let shape = Shape::of(3).joined_by_one();
    let name = "members_that_change_while_states_travel_hold_under_every_seed";
    hold(name, shape, SEEDS_OF_CHANGES);
}

/// Without faults the sites elect once, and take each shard home once, and whatever
/// goes to a channel leaves at once.
#[test]
fn sites_far_apart_keep_their_leaders_and_their_lease() {
    let calm = |seed, shape: Shape| outcome(seed, Shape { calm: true, ..shape }).unwrap();
    for seed in 0..8 {
        for round_trip_us in [30 * MS, 60 * MS] {
            let near = calm(seed, Shape::of(3));
            let far = calm(seed, Shape::of(3).apart(round_trip_us));
            assert_eq!((near.held_back, far.held_back), (0, 0), "seed {seed}");
            assert!(far.terms <= near.terms, "seed {seed}: {} {}", near.terms, far.terms);
        }
    }
    // Which the time-outs of sites that are near would not do.
    let unaware = Shape { far_us: 30 * MS, ..Shape::of(3) };
    let held_back: u64 = (0..8).map(|seed| calm(seed, unaware).held_back).sum();
    assert!(held_back > 0);
}

/// A disk that hangs, again and again, without a word: its site loses its shards and does
/// not get them back meanwhile.
#[test]
fn a_site_whose_disk_hangs_does_not_get_its_shards_back() {
    let mut elected = 0;
    for seed in 0..20 {
        let shape = Shape { calm: true, quiet: true, ..Shape::of(3) };
        let mut cluster = Cluster::new(seed, shape, number("SIM_SEED").is_some());
        let site = 1 + seed as u8 % 3;
        let times = cluster.elected_while_hanging(site, 3_000 * MS, 15_000 * MS);
        println!("seed {seed}: site {site} was elected {times} times");
        elected += times;
        cluster.run();
    }
    assert_eq!(elected, 0);
}

#[test]
fn a_seed_replays_identically() {
    for seed in 0..10 {
        for sites in [3, 5] {
            let [first, second] = [0, 1].map(|_| outcome(seed, Shape::of(sites)));
            assert_eq!(first, second, "seed {seed} of {sites} sites");
        }
    }
}

/// Some seed finds the flaw, by what follows from it: one of `by` begins the
/// text of the violation.
fn found(flaw: Flaw, by: &[&str]) {
    let follows = |violated: &String| {
        let text = violated.trim_start_matches("assertion `left == right` failed: ");
        by.iter().any(|by| text.starts_with(by))
    };
    let finds = |seed| {
        let violated = outcome(seed, Shape::of(3).with(flaw)).err().filter(follows)?;
        Some((seed, violated))
    };
    let (seed, violated) =
        (0..SEEDS_OF_FLAW).find_map(finds).unwrap_or_else(|| panic!("{flaw:?} went unnoticed"));
    println!("{flaw:?} found by seed {seed}: {violated}");
}

#[test]
fn a_send_before_begin_is_durable_is_found() {
    found(Flaw::Rule(Weakness::SendBeforeCommitted), &["2:"]);
}

#[test]
fn an_acknowledgement_before_commit_is_found() {
    found(Flaw::Rule(Weakness::AnswerBeforeCommitted), &["6:"]);
}

#[test]
fn a_vote_forgotten_over_a_restart_is_found() {
    found(Flaw::ForgetVote, &["two leaders"]);
}

#[test]
fn a_missing_fsync_is_found() {
    found(Flaw::SkipSync, &["logs of shard", "forgotten", "to_commit", "4:", "6:", "two leaders"]);
}

/// Also where the site is let in again that ended because of it: by what comes of that.
#[test]
fn a_missing_fsync_is_found_by_its_consequences() {
    let by = ["logs of shard", "to_commit", "4:", "6:", "two leaders"];
    found(Flaw::SkipSyncStartAgain, &by);
}

#[test]
fn a_state_that_counts_before_it_is_durable_is_found() {
    found(Flaw::HastyState, &["site"]);
}

#[test]
fn a_fail_over_on_time_out_is_found() {
    found(Flaw::Rule(Weakness::TimeoutIsDecline), &["1:", "3:"]);
}

#[test]
fn a_reservation_dropped_in_doubt_is_found() {
    found(Flaw::Rule(Weakness::DoubtDropsReservation), &["8:"]);
}

#[test]
fn a_read_without_barrier_is_found() {
    found(Flaw::Rule(Weakness::ReadWithoutBarrier), &["4:", "6:"]);
}

#[test]
fn proposals_kept_over_a_step_down_are_found() {
    let by = ["4:", "6:", "16-18:", "block", "state of shard"];
    found(Flaw::Rule(Weakness::StepDownKeepsProposals), &by);
}

#[test]
fn limits_that_start_anew_after_a_takeover_are_found() {
    found(Flaw::Rule(Weakness::LimitsStayUnused), &["13:"]);
}

#[test]
fn a_replaced_leader_that_goes_on_sending_is_found() {
    found(Flaw::Rule(Weakness::SendWithoutLease), &["12:"]);
}
