//! The payswitch wire: ids, money, frames, messages, codes and signatures.
//!
//! Pure: bytes in, values out. Knows no socket, file or clock. The gateway
//! client lives behind the feature `client`. `docs/WIRE.md` is the
//! specification; the golden vectors under `protocol/vectors/` hold both sides
//! to it.
#![forbid(unsafe_code)]

pub mod channel;
#[cfg(feature = "client")]
pub mod client;
pub mod code;
mod decimal;
pub mod frame;
mod hash;
pub mod id;
pub mod message;
pub mod money;
pub mod sign;
mod wire;

pub use wire::DecodeError;
