//! What goes wrong, and when: drawn at the start of a run, carried out by the
//! cluster.

use storage::disk::Tear;

use super::random::Random;
use super::setup::{HEAL_US, MS, SECOND};

/// At which boundary of a turn a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Before its next turn.
    Before,
    /// After the turn, with nothing of what it wanted to send.
    Silent,
    /// After its messages to other sites left, and nothing else.
    Posted,
    /// After everything left.
    After,
}

/// Whom it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Site(u8),
    /// Whoever leads this shard then.
    Leader(u16),
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// A process dies at its n-th disk write from now, and comes back.
    Crash { victim: Victim, writes: u64, moment: Moment, tear: Tear, down_us: u64, hint: bool },
    /// The power of all sites goes.
    Blackout { tear: Tear, down_us: u64 },
    /// A disk fails a write; the process ends and comes back.
    DiskError { victim: Victim },
    /// Writes take so many times longer, for a while.
    SlowDisk { victim: Victim, times: u64, for_us: u64 },
    /// A site is cut off from the others; one way: it is heard (or hears) no more.
    Cut { victim: Victim, to: bool, from: bool, for_us: u64, hint: bool },
    /// One link drops what it carries, one way.
    CutLink { from: u8, to: u8, for_us: u64 },
    /// The network loses and delays more.
    Storm { loss: u64, for_us: u64 },
    /// A process does not run for a while.
    Pause { victim: Victim, for_us: u64 },
    /// A process ends in good order: hands its shards over, seals its log.
    Stop { site: u8, down_us: u64 },
    /// Sites hear of each other's end all the time, and one dies and is back at
    /// once, in the middle of the elections.
    Unrest { victim: Victim, for_us: u64 },
    /// The power of all sites goes and is back at once; while they elect, the
    /// network is slow and each of them dies once more after some write.
    Contest { loss: u64, for_us: u64 },
    /// A site hears that another has ended, which is not true.
    FalseHint { at: u8, about: u8 },
    /// An operator hands a shard over.
    Transfer { shard: u16, to: u8 },
    /// An operator drains a site for a while.
    Drain { site: u8, for_us: u64 },
    /// A site's link to a channel is down for a while.
    ChannelDown { victim: Victim, channel: u16, for_us: u64 },
    /// A site's link to a channel breaks; what was asked on it has no answer.
    ChannelLost { victim: Victim, channel: u16 },
}

/// The faults of a run and their times.
pub(super) fn draw(
    sites: u8,
    shards: u16,
    releases: bool,
    random: &mut Random,
) -> Vec<(u64, Fault)> {
    // Now and then nothing but elections.
    if random.percent(15) {
        let contest = |nth: u64| {
            let for_us = random.between(200 * MS, 500 * MS);
            (SECOND + nth * 600 * MS, Fault::Contest { loss: random.between(5, 30), for_us })
        };
        return (0..9_u64).map(contest).collect();
    }
    let count = random.between(3, 9);
    let mut faults: Vec<_> = (0..count)
        .map(|_| {
            let at = random.between(500 * MS, HEAL_US - SECOND);
            (at, fault(sites, shards, random))
        })
        .collect();
    if releases && random.percent(70) {
        // Away until the logs of the others do not reach back any more.
        let site = random.between(1, u64::from(sites)) as u8;
        let away = Fault::Crash {
            victim: Victim::Site(site),
            writes: 0,
            moment: Moment::After,
            tear: Tear::Nothing,
            down_us: random.between(3 * SECOND, 5 * SECOND),
            hint: true,
        };
        faults.push((random.between(500 * MS, 2 * SECOND), away));
    }
    faults
}

fn fault(sites: u8, shards: u16, random: &mut Random) -> Fault {
    let for_us = match random.below(3) {
        0 => random.between(20 * MS, 300 * MS),
        1 => random.between(300 * MS, SECOND),
        _ => random.between(SECOND, 3 * SECOND),
    };
    let site = |random: &mut Random| random.between(1, u64::from(sites)) as u8;
    let victim = match random.percent(60) {
        true => Victim::Leader(random.below(u64::from(shards)) as u16),
        false => Victim::Site(site(random)),
    };
    let tear = *random.pick(&[Tear::Nothing, Tear::Everything, Tear::Prefix, Tear::Sectors]);
    let channel = random.between(1, 2) as u16;
    match random.below(100) {
        0..=22 => Fault::Crash {
            victim,
            writes: random.below(6),
            moment: *random.pick(&[Moment::Before, Moment::Silent, Moment::Posted, Moment::After]),
            tear,
            down_us: for_us,
            hint: random.percent(50),
        },
        23..=27 => Fault::Pause { victim, for_us },
        28..=32 => Fault::Unrest { victim, for_us },
        33..=35 => Fault::Stop { site: site(random), down_us: for_us },
        36..=40 => Fault::Blackout { tear, down_us: random.below(500 * MS) },
        41..=44 => Fault::DiskError { victim },
        45..=52 => {
            let times = random.between(10, 1_000);
            Fault::SlowDisk { victim, times, for_us }
        }
        53..=68 => {
            let ways = random.below(4);
            let hint = random.percent(50);
            Fault::Cut { victim, to: ways != 0, from: ways != 1, for_us, hint }
        }
        69..=74 => Fault::CutLink { from: site(random), to: site(random), for_us },
        75..=80 => Fault::Storm { loss: random.between(5, 40), for_us },
        81..=84 => Fault::FalseHint { at: site(random), about: site(random) },
        85..=88 => {
            Fault::Transfer { shard: random.below(u64::from(shards)) as u16, to: site(random) }
        }
        89..=92 => Fault::Drain { site: site(random), for_us },
        93..=96 => Fault::ChannelDown { victim, channel, for_us },
        _ => Fault::ChannelLost { victim, channel },
    }
}
