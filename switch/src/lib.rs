//! payswitch, the payment switch core.
pub mod engine;
