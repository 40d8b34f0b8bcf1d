//! What can be done to a cluster, and what it needs.
//!
//! Names are those of plan files. Pure.

use super::inject::slow_disk::SlowDisk;
use crate::cluster::shim;
use crate::exit::Failure;
use std::time::Duration;

/// One thing that is done and undone.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// kill -9, and a new start.
    Kill,
    /// kill -9, and again while it recovers.
    KillInRecovery,
    /// SIGSTOP and SIGCONT.
    Pause,
    /// `admin drain` and `undrain`.
    Drain,
    /// SIGTERM and a new start.
    Restart,
    /// Cut off from the other sites in both directions.
    Isolate,
    /// Hears the others, or is heard, not both: as it is drawn.
    OneWay,
    /// Distance between all sites, in the relay's words.
    Wan(String),
    /// A disk that takes 20 writes a second.
    SlowDisk,
    /// Writes whose sync fails.
    SyncError,
    /// A disk without room.
    FullDisk,
    /// The wall clock, off by so many seconds.
    ClockStep(i64),
    /// kill -9, and a torn write at the end of the log.
    TornTail,
    /// kill -9, and a flipped bit in the middle of the log: another site takes its place.
    DamagedMiddle,
    /// Certificates of all sites are replaced.
    Rotate,
    /// A site's certificate runs out.
    Expire,
    /// Faults of the channel.
    Channel(Vec<String>),
    /// A share of the channel's replies names another amount: two operators decide.
    WrongAmount(String),
    /// The channel answers, and does not, in turns.
    Flap,
    /// Connections of gateways come and go.
    Reconnect,
    /// Shards are handed around.
    Transfers,
    /// So many times the load.
    Load(f64),
}

/// A place where only one fault can be at a time, beside its own site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Between the sites.
    Network,
    /// The channel.
    Channel,
    /// All sites, one after the other.
    Sites,
}

/// Shortest distance between the sites that latencies can be taken from.
const WAN_LEAST: Duration = Duration::from_secs(2);
/// Of the flapping channel: how long it is silent and how long it is sound.
pub(super) const FLAP: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(1_000)];
/// How often it is silent at least.
const FLAPS_LEAST: u32 = 2;

/// What must be there for an action.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Needs {
    /// The relay between the sites.
    pub(super) relay: bool,
    /// The fault library.
    pub(super) shim: bool,
    /// One more site, which takes another's place.
    pub(super) spare: bool,
    /// The drill's own authority.
    pub(super) authority: bool,
    /// The kernel's block throttle.
    pub(super) throttle: bool,
    /// Lines of the sites' configurations, and what takes their place.
    pub(super) settings: Vec<(String, String)>,
}

impl Action {
    /// Whether it is done to one site.
    pub(super) fn hits_a_site(&self) -> bool {
        !matches!(
            self,
            Self::Wan(_)
                | Self::Rotate
                | Self::Channel(_)
                | Self::WrongAmount(_)
                | Self::Flap
                | Self::Reconnect
                | Self::Transfers
                | Self::Load(_)
        )
    }

    /// The place that it takes beside its site.
    pub(super) fn place(&self) -> Option<Place> {
        match self {
            Self::Wan(_) | Self::Isolate | Self::OneWay => Some(Place::Network),
            Self::Channel(_) | Self::WrongAmount(_) | Self::Flap => Some(Place::Channel),
            Self::Rotate => Some(Place::Sites),
            _ => None,
        }
    }

    /// The shortest time for which it can be asked for.
    pub(super) fn least_hold(&self) -> Duration {
        match self {
            Self::Wan(_) => WAN_LEAST,
            Self::Flap => FLAPS_LEAST * (FLAP[0] + FLAP[1]),
            _ => Duration::ZERO,
        }
    }

    /// What it needs.
    pub(super) fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        match self {
            Self::Isolate | Self::OneWay | Self::Wan(_) => needs.relay = true,
            Self::SlowDisk => needs.throttle = true,
            Self::DamagedMiddle => needs.spare = true,
            Self::SyncError | Self::ClockStep(_) => needs.shim = true,
            Self::FullDisk => {
                needs.shim = true;
                // A segment is full soon.
                needs.settings = [
                    ("# segment_mib = 64", "segment_mib = 1"),
                    ("# batch_max_kib = 4096", "batch_max_kib = 64"),
                    ("# block_max_bytes = 1048576", "block_max_bytes = 32768"),
                    ("# reserve_mib = 256", "reserve_mib = 16"),
                ]
                .map(|(from, to)| (from.to_owned(), to.to_owned()))
                .to_vec();
            }
            Self::Rotate | Self::Expire => needs.authority = true,
            _ => {}
        }
        needs
    }
}

impl Needs {
    /// What this and the other need together.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.relay |= other.relay;
        self.shim |= other.shim;
        self.spare |= other.spare;
        self.authority |= other.authority;
        self.throttle |= other.throttle;
        let new = other.settings.into_iter().filter(|line| !self.settings.contains(line));
        let new: Vec<_> = new.collect();
        self.settings.extend(new);
        self
    }

    /// Whether this machine has what is needed; the reason when not.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.throttle {
            drop(SlowDisk::prepare(&std::env::temp_dir())?);
        }
        if self.shim { shim::possible() } else { Ok(()) }
    }
}

/// Which site is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// One that leads something, as it is drawn.
    Drawn,
    /// This one.
    Site(u8),
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Planned {
    /// From the beginning of the load.
    pub(super) at: Duration,
    /// Until it is undone.
    pub(super) hold: Duration,
    /// Whom.
    pub(super) target: Target,
    /// What.
    pub(super) action: Action,
}

/// The course of a drill.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Course {
    /// One fault, at a moment that is drawn.
    One(Action),
    /// A fault, and the same at another site as soon as the first is level.
    Twice(Action),
    /// A kill, and a kill of another site at the moment in which the first is level.
    Second,
    /// No fault, for so long.
    Steady(Duration),
    /// A fault at one site after the other.
    Each(Action),
    /// Faults with their times, and the load's length and shape.
    Planned {
        /// They may overlap.
        faults: Vec<Planned>,
        /// How long the load lasts.
        length: Duration,
        /// Its shape, as `--arrival` has it.
        shape: String,
    },
}

impl Course {
    /// How many sites are out for good in the end.
    pub(super) fn left_out(&self) -> usize {
        match self {
            Self::One(action) | Self::Twice(action) | Self::Each(action) => {
                usize::from(*action == Action::DamagedMiddle)
            }
            Self::Second | Self::Steady(_) => 0,
            Self::Planned { faults, .. } => {
                faults.iter().filter(|fault| fault.action == Action::DamagedMiddle).count()
            }
        }
    }

    /// What it needs.
    pub(super) fn needs(&self) -> Needs {
        match self {
            Self::One(action) | Self::Twice(action) | Self::Each(action) => action.needs(),
            Self::Second => Action::Kill.needs(),
            Self::Steady(_) => Needs::default(),
            Self::Planned { faults, .. } => {
                let all = faults.iter().map(|fault| fault.action.needs());
                all.fold(Needs::default(), Needs::and)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_need_is_needed_once() {
        let both = Action::FullDisk.needs().and(Action::FullDisk.needs());
        assert_eq!(both, Action::FullDisk.needs());
        let many = Action::Isolate.needs().and(Action::Expire.needs());
        assert!(many.relay && many.authority && !many.shim);
    }
}
