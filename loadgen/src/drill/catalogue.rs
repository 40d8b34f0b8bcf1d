//! The catalogue: what each drill does, what it measures and when it passes.
//!
//! Pure. Tested for completeness.

use super::DrillArgs;
use super::action::{Action, Course, Needs};
use super::before::Before;
use super::script::HOME_MAX;
use super::targets::Targets;
use crate::exit::Failure;
use crate::plan::Mix;
use crate::stage::MIX;
use std::time::Duration;

/// One-way delay of the slow WAN.
const WAN_DELAY_MS: u64 = 5;
/// A bit of everything that a channel does wrong, seldom enough to leave the
/// percentiles alone.
const CHANNEL_FAULTS: [&str; 3] = ["--drop-reply=0.2%", "--late=0.2%:300", "--duplicate=0.5%"];
/// Answers of the channel in an overload take this long: with it and the number of
/// requests that a site takes at once the maximum is known.
const OVERLOAD_LATENCY_MS: u64 = 50;
/// Times the full load.
const OVERLOAD: f64 = 3.0;
/// Share of the full load that other drills drive.
pub(super) const HALF: f64 = 0.5;
/// Share of the requests that wait for the channel.
const CHARGING: f64 = 0.85;

/// How long nothing happens; when all of the catalogue is played; with little load.
const STEADY: Duration = Duration::from_secs(30 * 60);
const STEADY_OF_ALL: Duration = Duration::from_secs(60);
const STEADY_QUICK: Duration = Duration::from_secs(6);
/// What requests do meanwhile: sites keep every payment in memory, and so do the files.
const STEADY_MIX: Mix = Mix::of(10, 88, 2);
/// Payments that are there before a drill that asks for a history.
const HISTORY: u64 = 1_000_000;
const QUICK_HISTORY: u64 = 5_000;
/// Payments that a start can read from the log, all of them, and be level in time: it
/// takes some 2 s for a million, and the log also holds what the drill adds.
const READ_AGAIN_MAX: u64 = 500_000;
/// A start reads less than this of the log when there are checkpoints, MiB: about as much
/// as that number of payments takes.
const CHECKPOINT_MIB: u32 = 128;

/// A drill, ready to be played.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Name.
    pub(super) name: String,
    /// What happens, in a line.
    pub(super) about: String,
    /// What happens.
    pub(super) course: Course,
    /// What is needed.
    pub(super) needs: Needs,
    /// What the channel does wrong all the time.
    pub(super) channel: Vec<String>,
    /// Share of the full load that is driven.
    pub(super) share: f64,
    /// What is asked.
    pub(super) targets: Targets,
    /// What is done before.
    pub(super) before: Before,
    /// What the requests do.
    pub(super) mix: Mix,
}

/// The drills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drill {
    KillSite,
    KillInRecovery,
    PauseSite,
    DrainSite,
    RollingRestart,
    DoubleFailure,
    SecondKill,
    Steady,
    TransferStorm,
    PartitionSite,
    PartitionOneway,
    WanDelay,
    SlowDisk,
    FsyncError,
    FullDisk,
    TornTail,
    DamagedMiddle,
    ClockStep,
    CertificateRotation,
    CertificateExpiry,
    ChannelOutage,
    ChannelSlow,
    ChannelFlapping,
    ChannelDuplicates,
    ChannelLate,
    ChannelLost,
    ChannelWrongAmount,
    ReconnectStorm,
    Overload,
}

fn wan_delay() -> String {
    format!("delay={WAN_DELAY_MS}ms")
}

/// Name; what is injected; what is measured beside what every drill measures.
type Entry = (&'static str, &'static str, &'static str);

impl Drill {
    /// All of them.
    pub(super) const ALL: [Self; 29] = [
        Self::KillSite,
        Self::KillInRecovery,
        Self::PauseSite,
        Self::DrainSite,
        Self::RollingRestart,
        Self::DoubleFailure,
        Self::SecondKill,
        Self::Steady,
        Self::TransferStorm,
        Self::PartitionSite,
        Self::PartitionOneway,
        Self::WanDelay,
        Self::SlowDisk,
        Self::FsyncError,
        Self::FullDisk,
        Self::TornTail,
        Self::DamagedMiddle,
        Self::ClockStep,
        Self::CertificateRotation,
        Self::CertificateExpiry,
        Self::ChannelOutage,
        Self::ChannelSlow,
        Self::ChannelFlapping,
        Self::ChannelDuplicates,
        Self::ChannelLate,
        Self::ChannelLost,
        Self::ChannelWrongAmount,
        Self::ReconnectStorm,
        Self::Overload,
    ];

    #[rustfmt::skip]
    const fn entry(self) -> Entry {
        match self {
            Self::KillSite => ("kill-site", "kill -9 of a site, and its return", "takeover and return"),
            Self::KillInRecovery => ("kill-in-recovery", "kill -9 of a site, and three times again while it starts", "takeover; whether it is level in the end"),
            Self::PauseSite => ("pause-site", "a site's process stands still (SIGSTOP) and goes on", "takeover and return"),
            Self::DrainSite => ("drain-site", "an operator drains a site and takes it back", "the hand-over"),
            Self::RollingRestart => ("rolling-restart", "every site is stopped (SIGTERM) and started, one by one", "the hand-overs"),
            Self::DoubleFailure => ("double-failure", "a site is killed, is level again, and the next is killed", "both takeovers; the time until level"),
            Self::SecondKill => ("second-kill", "with a long history (--history): a site is killed, and another at the moment in which it is level", "each takeover by itself; the time from the start until level"),
            Self::Steady => ("steady", "nothing is broken, for --minutes (30; in `all` 1)", "leader changes, by the sites' metrics and by the clients' notices; latency; memory and files"),
            Self::TransferStorm => ("transfer-storm", "an operator hands shards around, ten a second", "hand-overs under load"),
            Self::PartitionSite => ("partition-site", "a site reaches no other and none reaches it; gateways do", "takeover and return"),
            Self::PartitionOneway => ("partition-oneway", "a site hears the others or is heard by them, not both", "takeover and return"),
            Self::WanDelay => ("wan-delay", "5 ms each way between all sites", "the maximum with and without, found before; latency at half load"),
            Self::SlowDisk => ("slow-disk", "a site's disk takes 20 writes a second (root, block controller)", "takeover and return"),
            Self::FsyncError => ("fsync-error", "a write of a site's log fails with EIO: it must end at once, and returns (C compiler)", "that it says so and ends; takeover and return"),
            Self::FullDisk => ("full-disk", "the disk under a site's log is full for a while (C compiler)", "what is refused meanwhile; that service returns by itself"),
            Self::TornTail => ("torn-tail", "kill -9 of a site whose last write is torn; it is cut at the start, and said", "takeover and return"),
            Self::DamagedMiddle => ("damaged-middle", "kill -9 of a site and a flipped bit in the middle of its log: the start is refused with the place, and another site takes over from it under a fresh number", "that it is refused; takeover; the time until the new site is level"),
            Self::ClockStep => ("clock-step", "a site's wall clock jumps ahead by an hour, and back (C compiler)", "that nobody notices"),
            Self::CertificateRotation => ("certificate-rotation", "every site gets a new certificate of another authority and SIGHUP, one by one", "that new connections get it and standing ones live on"),
            Self::CertificateExpiry => ("certificate-expiry", "a site's certificate runs out, and is renewed with SIGHUP", "that new connections are refused until then and standing ones live on"),
            Self::ChannelOutage => ("channel-outage", "the channel answers nothing", "requests in doubt; the return"),
            Self::ChannelSlow => ("channel-slow", "the channel takes 200 to 800 ms", "added latency"),
            Self::ChannelFlapping => ("channel-flapping", "the channel answers nothing for a quarter of a second, answers for one, and so on", "requests in doubt; the return"),
            Self::ChannelDuplicates => ("channel-duplicates", "half of the channel's replies come twice", "that nothing is counted twice"),
            Self::ChannelLate => ("channel-late", "a fifth of the channel's replies comes after 1.5 s, when it was asked again", "requests in doubt"),
            Self::ChannelLost => ("channel-lost", "a fifth of the channel's replies and a twentieth of the requests is lost", "requests in doubt"),
            Self::ChannelWrongAmount => ("channel-wrong-amount", "one in 200 of the channel's replies to charges names another amount; two operators decide those", "that none is believed"),
            Self::ReconnectStorm => ("reconnect-storm", "gateways connect and go, as fast as sixteen at a time can", "what the others' requests feel of it"),
            Self::Overload => ("overload", "three times what the sites take, which is found before", "goodput, held against that maximum; latency of what is admitted; that every refusal says so"),
        }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        self.entry().0
    }

    /// What is injected, in a line.
    pub(super) fn about(self) -> &'static str {
        self.entry().1
    }

    /// What is measured beside what every drill measures.
    pub(super) fn measures(self) -> &'static str {
        self.entry().2
    }

    fn course(self) -> Course {
        let channel = |faults: &[&str]| {
            Course::One(Action::Channel(faults.iter().map(ToString::to_string).collect()))
        };
        match self {
            Self::KillSite => Course::One(Action::Kill),
            Self::KillInRecovery => Course::One(Action::KillInRecovery),
            Self::PauseSite => Course::One(Action::Pause),
            Self::DrainSite => Course::One(Action::Drain),
            Self::RollingRestart => Course::Each(Action::Restart),
            Self::DoubleFailure => Course::Twice(Action::Kill),
            Self::SecondKill => Course::Second,
            Self::Steady => Course::Steady(STEADY),
            Self::TransferStorm => Course::One(Action::Transfers),
            Self::PartitionSite => Course::One(Action::Isolate),
            Self::PartitionOneway => Course::One(Action::OneWay),
            Self::WanDelay => Course::One(Action::Wan(wan_delay())),
            Self::SlowDisk => Course::One(Action::SlowDisk),
            Self::FsyncError => Course::One(Action::SyncError),
            Self::FullDisk => Course::One(Action::FullDisk),
            Self::TornTail => Course::One(Action::TornTail),
            Self::DamagedMiddle => Course::One(Action::DamagedMiddle),
            Self::ClockStep => Course::One(Action::ClockStep(3_600)),
            Self::CertificateRotation => Course::One(Action::Rotate),
            Self::CertificateExpiry => Course::One(Action::Expire),
            Self::ChannelOutage => channel(&["--outage=0:3600"]),
            Self::ChannelSlow => channel(&["--latency=uniform:200ms..800ms"]),
            Self::ChannelFlapping => Course::One(Action::Flap),
            Self::ChannelDuplicates => channel(&["--duplicate=50%"]),
            Self::ChannelLate => channel(&["--late=20%:1500"]),
            Self::ChannelLost => channel(&["--drop-reply=20%", "--drop-request=5%"]),
            Self::ChannelWrongAmount => Course::One(Action::WrongAmount("0.5%".to_owned())),
            Self::ReconnectStorm => Course::One(Action::Reconnect),
            Self::Overload => Course::One(Action::Load(OVERLOAD)),
        }
    }

    fn targets(self) -> Targets {
        let takeover = |p50_ms, p99_ms| Targets {
            p50_ms: Some(p50_ms),
            p99_ms: Some(p99_ms),
            no_failure_elsewhere: true,
            ..Targets::default()
        };
        let no_failure = Targets { no_failure: true, ..Targets::default() };
        let only = |codes: &[&str]| Some(codes.iter().map(ToString::to_string).collect());
        let recovered = Some(0.9);
        match self {
            Self::KillSite | Self::TornTail | Self::DamagedMiddle => takeover(100.0, 250.0),
            // The machine is busy with starts meanwhile.
            Self::KillInRecovery => takeover(150.0, 300.0),
            Self::DoubleFailure => Targets { level_ms: Some(5_000.0), ..takeover(100.0, 250.0) },
            Self::SecondKill => {
                Targets { level_ms: Some(5_000.0), each_fault: true, ..takeover(100.0, 250.0) }
            }
            Self::PauseSite | Self::PartitionSite | Self::PartitionOneway => takeover(150.0, 300.0),
            // The library that fails writes makes all of them slower.
            Self::FsyncError => takeover(250.0, 500.0),
            Self::DrainSite => Targets { max_ms: Some(20.0), ..no_failure },
            Self::Steady => Targets { leader_changes: Some(0.0), ..no_failure },
            Self::RollingRestart
            | Self::TransferStorm
            | Self::CertificateRotation
            | Self::CertificateExpiry => no_failure,
            Self::WanDelay => Targets {
                throughput: Some(0.8),
                far_maximum: Some(0.8),
                // Two round trips, and what their scheduling costs.
                added_p50_ms: Some(4.0 * WAN_DELAY_MS as f64 + 10.0),
                ..no_failure
            },
            Self::SlowDisk => Targets { max_ms: Some(2_000.0), ..Targets::default() },
            Self::FullDisk => Targets {
                no_failure_elsewhere: true,
                only: only(&["STORAGE_FULL"]),
                recovered,
                ..Targets::default()
            },
            Self::ClockStep => Targets { added_p50_ms: Some(20.0), recovered, ..no_failure },
            // Every handshake is paid for by the same machine.
            Self::ReconnectStorm => Targets { added_p50_ms: Some(50.0), recovered, ..no_failure },
            Self::ChannelOutage | Self::ChannelFlapping => {
                Targets { only: only(&["CHANNEL_UNAVAILABLE"]), recovered, ..Targets::default() }
            }
            Self::ChannelSlow => Targets { added_p50_ms: Some(1_000.0), recovered, ..no_failure },
            Self::ChannelDuplicates
            | Self::ChannelLate
            | Self::ChannelLost
            | Self::ChannelWrongAmount => {
                Targets { added_p50_ms: Some(20.0), recovered, ..no_failure }
            }
            Self::Overload => Targets {
                // Of the maximum that was found; what is driven before is just that.
                throughput: Some(0.9),
                admitted_p99: Some(2.0),
                only: only(&["OVERLOADED", "RATE_LIMITED"]),
                hinted: true,
                recovered,
                ..Targets::default()
            },
        }
    }

    /// The drill at this load, the whole of which is `rate`.
    pub(super) fn case(self, rate: f64, sites: u8) -> Case {
        let course = self.course();
        let mut needs = course.needs();
        let mut channel: Vec<String> = CHANNEL_FAULTS.iter().map(ToString::to_string).collect();
        if self == Self::Overload {
            let waiting = rate * CHARGING * OVERLOAD_LATENCY_MS as f64 / 1e3;
            let each = (waiting / f64::from(sites.max(1))).ceil().max(1.0) as u64;
            let line = "# outstanding_max = 65536";
            needs.settings.push((line.to_owned(), format!("outstanding_max = {each}")));
            channel = vec![format!("--latency={OVERLOAD_LATENCY_MS}ms")];
        }
        let (name, about) = (self.name().to_owned(), self.about().to_owned());
        let share = if self == Self::Overload { 1.0 } else { HALF };
        let before = match self {
            Self::SecondKill => Before::History(HISTORY),
            Self::WanDelay => Before::Distance(wan_delay()),
            Self::Overload => Before::Maximum,
            _ => Before::Nothing,
        };
        let mix = if self == Self::Steady { STEADY_MIX } else { MIX };
        Case { name, about, course, needs, channel, share, targets: self.targets(), before, mix }
    }

    /// The drill with what was asked for on the command line.
    pub(super) fn asked(self, args: &DrillArgs) -> Case {
        let mut case = self.case(args.full_rate(), args.sites);
        if let Before::History(payments) = &mut case.before {
            let usual = if args.quick { QUICK_HISTORY } else { *payments };
            *payments = args.history.unwrap_or(usual);
        }
        case.mix = args.mix.unwrap_or(case.mix);
        if let Course::Steady(length) = &mut case.course {
            let usual = match (args.quick, args.is_all()) {
                (true, _) => STEADY_QUICK,
                (false, true) => STEADY_OF_ALL,
                (false, false) => *length,
            };
            *length = args.minutes.map_or(usual, |minutes| Duration::from_secs_f64(minutes * 60.0));
        }
        if matches!(case.before, Before::History(payments) if payments > READ_AGAIN_MAX) {
            let line = "# checkpoint_mib = 1024".to_owned();
            case.needs.settings.push((line, format!("checkpoint_mib = {CHECKPOINT_MIB}")));
            case.about += &format!("; log.checkpoint_mib = {CHECKPOINT_MIB}, to be level in time");
        }
        case
    }

    /// The drill of this name.
    pub(super) fn parse(name: &str) -> Result<Self, Failure> {
        Self::ALL.into_iter().find(|drill| drill.name() == name).ok_or_else(|| {
            Failure::usage(format_args!("no drill {name:?}: `loadgen drill list` names them"))
        })
    }
}

/// Explains them all.
pub(super) fn list() {
    println!(
        "Every drill measures, from the clients' view: the unavailability of each shard that is \
         hit, failed\nrequests by code, latency before, during and after. It passes with a clean \
         audit and what is named; a site\nthat led something and is back must lead again within {} \
         s (slow-disk apart).\n",
        HOME_MAX.as_secs()
    );
    for drill in Drill::ALL {
        println!("{:<22}{}", drill.name(), drill.about());
        println!("{:<22}  measures  {}", "", drill.measures());
        println!("{:<22}  passes    {}", "", drill.targets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drill_is_found_by_its_name_and_there_once() {
        for (at, drill) in Drill::ALL.into_iter().enumerate() {
            assert_eq!(Drill::parse(drill.name()).ok(), Some(drill));
            assert_eq!(Drill::ALL.iter().position(|other| *other == drill), Some(at));
            assert_ne!(drill.targets(), Targets::default(), "{} asks for nothing", drill.name());
        }
        let failure = Drill::parse("kill").err().unwrap();
        assert!(failure.message.contains("drill list"));
    }

    #[test]
    fn an_overload_is_one_of_what_the_sites_were_given() {
        let case = Drill::Overload.case(6_000.0, 3);
        let wanted = "outstanding_max = 85".to_owned();
        assert!(case.needs.settings.iter().any(|(_, to)| *to == wanted), "{:?}", case.needs);
    }
}
