//! How fast a replica acts: everything follows from the election time-out.
//!
//! Read from the configuration (`[replication]`); the same at all sites, because a
//! leader's lease rests on how long the others wait. Tested with the replica and
//! with the configuration.

/// How fast a replica acts, in ticks of [`Timing::tick_us`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Length of a tick, microseconds.
    pub tick_us: u64,
    /// A leader shows itself this often.
    pub heartbeat_ticks: u32,
    /// A follower that heard nothing for this long (and some more, by its place
    /// in the order of preference) stands for election.
    pub election_ticks: u32,
    /// A leader whose disk does not confirm a write for this long hands over; at least
    /// four, which is a quarter of the election time-out.
    pub stall_ticks: u32,
}

impl Timing {
    /// Everything follows from the shortest election time-out: only a tick's length
    /// changes, so that what holds together in ticks holds at every distance. How
    /// long a disk may hang has nothing to do with distance. Rounded up by less than a
    /// microsecond per tick, so that whole milliseconds are told as they were given.
    pub fn of_election(election_us: u64) -> Self {
        let tick_us = election_us.div_ceil(u64::from(ELECTION_TICKS)).max(1);
        let stall_ticks = (STALL_US / tick_us).clamp(STALL_TICKS_MIN, STALL_US) as u32;
        let (heartbeat_ticks, election_ticks) = (HEARTBEAT_TICKS, ELECTION_TICKS);
        Self { tick_us, heartbeat_ticks, election_ticks, stall_ticks }
    }

    /// The time-outs for sites whose messages go and come within `round_trip_us`.
    pub fn of_round_trip(round_trip_us: u64) -> Self {
        Self::of_election((round_trip_us * ROUND_TRIPS).max(ELECTION_MIN_US))
    }

    /// Shortest election time-out, microseconds.
    pub fn election_us(&self) -> u64 {
        u64::from(self.election_ticks) * self.tick_us
    }

    /// Interval at which a leader shows itself, microseconds.
    pub fn heartbeat_us(&self) -> u64 {
        u64::from(self.heartbeat_ticks) * self.tick_us
    }

    /// How long a leader may act after it asked a majority that followed it,
    /// microseconds: less than any follower waits before it stands for election.
    pub fn lease_us(&self) -> u64 {
        self.election_us() / 10 * 9
    }

    /// Longest round trip with which this holds together, microseconds: a vote takes
    /// two (asking whether, and for it), and the next site stands a third of the
    /// time-out later; and a lease outlasts a round trip and two heartbeats, one of
    /// them lost.
    pub fn round_trip_max_us(&self) -> u64 {
        self.election_us() / ROUND_TRIPS_MIN
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::of_election(ELECTION_MIN_US)
    }
}

/// Ticks of [`Timing`], whatever their length.
const HEARTBEAT_TICKS: u32 = 3;
const ELECTION_TICKS: u32 = 16;
/// A disk hangs when a write takes longer, microseconds.
const STALL_US: u64 = 400_000;
/// A disk that is looked at so rarely is waited for longer.
const STALL_TICKS_MIN: u64 = 4;
/// The election time-out without a word about it: below it pauses of a busy machine
/// would look like deaths, however near the sites are.
const ELECTION_MIN_US: u64 = 80_000;
/// Round trips in an election time-out, and how few there may be.
const ROUND_TRIPS: u64 = 8;
const ROUND_TRIPS_MIN: u64 = 6;
