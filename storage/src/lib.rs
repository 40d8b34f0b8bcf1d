//! The payswitch log.
#![deny(unsafe_code)]
