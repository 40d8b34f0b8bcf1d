//! The binary `payswitch`: allocator, arguments, exit code.

use std::process::ExitCode;
use switch::cli::{self, Exit, Failure};
use switch::runtime::{self, ServeError};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::run(|config| {
        runtime::serve(config).map_err(|error| {
            let exit = match error {
                ServeError::Config(_) | ServeError::Damaged(_) => Exit::Usage,
                _ => Exit::Environment,
            };
            Failure::new(exit, error)
        })
    })
}
