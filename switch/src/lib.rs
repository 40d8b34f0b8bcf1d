//! payswitch, the payment switch core: see docs/ARCHITECTURE.md for the map.
#![deny(unsafe_code)]
pub mod admin;
pub mod cli;
pub mod config;
pub mod engine;
pub mod init;
pub mod metrics;
pub mod replica;
pub mod runtime;
pub mod secret;
pub mod tls;
