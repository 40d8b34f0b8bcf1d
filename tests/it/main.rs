//! System tests: real processes, real sockets, real files on loopback.

mod bad_input;
mod checkpoint;
mod client;
mod clock_step;
mod cluster;
mod damage;
mod drill;
mod front;
mod full_disk;
mod generator;
mod members;
mod overload;
mod payments;
mod python;
mod reload;
mod report;
mod restart;
mod snapshot;
mod wiped;
mod write_error;

/// Runs a test's future on a runtime of its own.
fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test)
}
