//! The node's clocks: the one place that reads them for the engine.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::engine::Now;

/// Both clocks when the process began to look at them, microseconds.
static START: OnceLock<(u64, u64)> = OnceLock::new();

/// Monotonic microseconds since the process started, those included for which the
/// machine was suspended: a lease must not outlive its time because its holder slept.
pub fn mono_us() -> u64 {
    since_boot_us().saturating_sub(start().0)
}

/// Both clocks. The wall clock is read once at start and then carried forward
/// by the monotonic one, so that it neither runs back nor jumps under a
/// running node.
pub fn now() -> Now {
    let (start_us, wall_us) = start();
    let mono_us = since_boot_us().saturating_sub(*start_us);
    Now { mono_us, wall_us: wall_us + mono_us }
}

/// Seconds between the host's wall clock and the node's: it was stepped.
pub fn offset_s() -> u64 {
    system_us().abs_diff(now().wall_us) / 1_000_000
}

fn start() -> &'static (u64, u64) {
    START.get_or_init(|| (since_boot_us(), system_us()))
}

fn since_boot_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

fn system_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
