//! The binary `payswitch`: allocator, arguments, exit code.

use std::process::ExitCode;
use switch::cli::{self, Exit, Failure};
use switch::runtime::{self, ServeError};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What the allocator reads at its start: memory in huge pages where the kernel has
/// them. The kernel gives a killed process's memory back before it closes its
/// connections, which tell the other sites: 80 ms per gigabyte of small pages, during
/// which nobody takes its shards over.
#[allow(unsafe_code)] // Reason: the allocator looks for a symbol of this name.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_CONF: &[u8; 11] = b"thp:always\0";

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
