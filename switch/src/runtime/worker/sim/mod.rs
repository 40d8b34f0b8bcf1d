//! The seeded simulation of whole clusters.
//!
//! Sites with their real workers, engines, replicas and logs on simulated disks
//! run in one thread in virtual time; one seed decides everything: what clients
//! want, what the network loses, delays, repeats and cuts, when disks are slow,
//! fail or lose power, when processes die in the middle of a turn, what the
//! channels answer. All the while the checker holds the invariants of the rule
//! book against the channels' ledgers, the committed logs and everything that
//! was answered. Then all faults end, and everything has to end within bounded
//! time.
//!
//! It drives the very turns of [`super::Worker`]; what is replaced is the network
//! thread, the disk and the clock. It lies inside the crate because it breaks
//! rules on purpose, and no build that could be shipped may hold the switches
//! for that: a cargo feature would be turned on for the product too whenever
//! both are built together.
//!
//! A violated invariant prints its seed and how to replay it.
//!
//! | file | what |
//! |---|---|
//! | `cluster` | the agenda; `sites` and the network, `members`, what is `outside`, and `trouble` |
//! | `faults` | which faults, when |
//! | `setup` | what a seed decides at the start |
//! | `site`, `disk` | a site over lives, its disk in virtual time |
//! | `client`, `channel` | who asks, and who moves money |
//! | `check` | the invariants |
//! | `random` | the seed |
//! | `blocked` | by hand: one shard that cannot propose |

mod blocked;
mod channel;
mod check;
mod client;
mod cluster;
mod disk;
mod faults;
mod random;
mod setup;
mod site;
mod tests;
