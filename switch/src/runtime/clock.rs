//! The node's clocks: the one place that reads them for the engine.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::engine::Now;

static START: OnceLock<(Instant, u64)> = OnceLock::new();

/// Monotonic microseconds since the process started.
pub fn mono_us() -> u64 {
    start().0.elapsed().as_micros() as u64
}

/// Both clocks. The wall clock is read once at start and then carried forward
/// by the monotonic one, so that it neither runs back nor jumps under a
/// running node.
pub fn now() -> Now {
    let (instant, wall_us) = start();
    let mono_us = instant.elapsed().as_micros() as u64;
    Now { mono_us, wall_us: wall_us + mono_us }
}

/// Seconds between the host's wall clock and the node's: it was stepped.
pub fn offset_s() -> u64 {
    system_us().abs_diff(now().wall_us) / 1_000_000
}

fn start() -> &'static (Instant, u64) {
    START.get_or_init(|| (Instant::now(), system_us()))
}

fn system_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
