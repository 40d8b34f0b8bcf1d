//! System tests: real processes, real sockets, real files on loopback.

mod bad_input;
mod client;
mod damage;
mod payments;
mod python;
mod restart;

/// Runs a test's future on a runtime of its own.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test);
}
