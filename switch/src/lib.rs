//! payswitch, the payment switch core.
pub mod admin;
pub mod cli;
pub mod config;
pub mod engine;
pub mod init;
pub mod metrics;
pub mod replica;
pub mod secret;
pub mod tls;
