//! The operators' door: a small HTTP server, its client for the command line,
//! and what both exchange.
//!
//! Plain HTTP on loopback answers `/ready`, `/status` and `/metrics`; all else
//! needs TLS with a client certificate of the role admin. The server runs on
//! its own thread and knows the running node only through [`control::Control`],
//! so that a busy or stuck operator never costs a payment. Tested over loopback
//! with a node that is made up.

pub mod api;
pub mod client;
pub mod control;
mod decisions;
pub(crate) mod routes;
pub mod server;
#[cfg(test)]
pub(crate) mod tests;
