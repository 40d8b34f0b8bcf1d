//! The binary `payswitch`: allocator, arguments, exit code.

use std::process::ExitCode;
use switch::cli::{self, Exit, Failure};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::run(|_config| {
        Err(Failure::new(Exit::Environment, "this build holds no runtime to serve with"))
    })
}
