//! The binary `payswitch`.
fn main() {}
