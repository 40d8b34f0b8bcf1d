//! The payment state machine of one shard: pure and deterministic.
//!
//! Knows no file, socket, thread, clock or random source: everything comes in
//! as [`Input`] with [`Now`], everything it wants goes out through [`Outputs`].
pub mod config;
pub mod input;
pub mod merchant;
pub mod output;

pub use config::EngineConfig;
pub use input::{Input, Now};
pub use output::Outputs;
