//! The binary `loadgen`: gateways, a simulated channel, drills and the audit.
//!
//! An outside witness: it knows the switch's wire, files and command line, and
//! not a line of its code.
#![forbid(unsafe_code)]

mod acks;
mod audit;
mod authority;
mod channel;
mod cli;
mod cluster;
mod config;
mod drill;
mod drive;
mod encode;
mod exit;
mod goal;
mod growing;
mod history;
mod hlog;
mod host;
mod interrupt;
mod key;
mod latency;
mod live;
mod machine;
mod measure;
mod null;
mod pace;
mod plan;
mod report;
mod rng;
mod run;
mod schedule;
mod search;
mod series;
mod shape;
mod soak;
mod socket;
mod space;
mod stage;
mod tls;
mod trace;
mod under;
mod wan;
mod workers;
mod zipf;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
