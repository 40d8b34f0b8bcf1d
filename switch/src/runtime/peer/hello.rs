//! The first bytes of every stream of a peer link: who speaks, of which
//! cluster, and what follows. A stream whose greeting does not fit closes its
//! connection.
//!
//! | offset | field | type |
//! |---|---|---|
//! | 0 | magic `PSPL` | 4 bytes |
//! | 4 | version | u16 |
//! | 6 | shards | u16 |
//! | 8 | cluster | u64 |
//! | 16 | site | u8 |
//! | 17 | traffic | u8 |
//! | 18 | reserved, zero | u16 |
//! | 20 | sites that the cluster was made of, a bit per number | u64 |
//! | 28 | shortest election time-out, microseconds | u32 |
//! | 32 | random number of the speaker's log | u64 |
//!
//! All integers are little endian. Tested on arbitrary bytes.

use crate::runtime::mesh::Traffic;

/// Bytes of a greeting.
pub const HELLO_LEN: usize = 40;
const MAGIC: [u8; 4] = *b"PSPL";
const VERSION: u16 = 5;

/// A greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Identity of the cluster.
    pub cluster: u64,
    /// Number of shards.
    pub shards: u16,
    /// Who speaks.
    pub site: u8,
    /// The sites that voted when the cluster was made, a bit per number. Sites
    /// that disagree about it would disagree about what a majority is.
    pub voters: u64,
    /// How long a leader is waited for, microseconds. A leader relies on the others
    /// waiting no less than it believes, and they on its sending no longer.
    pub election_us: u32,
    /// The log that it speaks for; judged by whom it is met (`super::logs`).
    pub log: u64,
}

/// Why a greeting is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not a greeting.
    #[error("it does not speak the peer protocol")]
    Magic,
    /// Another version.
    #[error("it speaks version {0} of the peer protocol, this site {VERSION}")]
    Version(u16),
    /// Another cluster.
    #[error("it belongs to cluster {0:x}")]
    Cluster(u64),
    /// Another number of shards.
    #[error("it has {0} shards")]
    Shards(u16),
    /// Other first members.
    #[error("its [[sites]] say otherwise which of them the cluster was made of (voter)")]
    Voters,
    /// Other time-outs.
    #[error(
        "its election time-out is {} ms: [replication] must say the same at every site",
        .0 / 1_000
    )]
    Timing(u32),
    /// Its certificate is another site's.
    #[error("it claims to be site {0}, which its certificate does not say")]
    Site(u8),
    /// The stream's kind is unknown or not expected here.
    #[error("a stream of kind {0} is not expected")]
    Traffic(u8),
}

impl Hello {
    /// The greeting's bytes.
    pub fn encode(&self, traffic: Traffic) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.shards.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[16..18].copy_from_slice(&[self.site, traffic as u8]);
        bytes[20..28].copy_from_slice(&self.voters.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.election_us.to_le_bytes());
        bytes[32..].copy_from_slice(&self.log.to_le_bytes());
        bytes
    }

    /// Judges a greeting by what is expected: this greeting, of one of
    /// `kinds`, for whatever log. Tells which, and for which log.
    ///
    /// # Errors
    /// [`HelloError`], the first difference.
    pub fn judge(
        &self,
        bytes: &[u8; HELLO_LEN],
        kinds: &[Traffic],
    ) -> Result<(Traffic, u64), HelloError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes[..4] != MAGIC {
            return Err(HelloError::Magic);
        }
        if u16_at(4) != VERSION {
            return Err(HelloError::Version(u16_at(4)));
        }
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let cluster = u64_at(8);
        let election_us = u32::from_le_bytes(std::array::from_fn(|i| bytes[28 + i]));
        let (site, traffic, reserved) = (bytes[16], bytes[17], u16_at(18));
        if cluster != self.cluster {
            Err(HelloError::Cluster(cluster))
        } else if u16_at(6) != self.shards {
            Err(HelloError::Shards(u16_at(6)))
        } else if u64_at(20) != self.voters {
            Err(HelloError::Voters)
        } else if election_us != self.election_us {
            Err(HelloError::Timing(election_us))
        } else if site != self.site {
            Err(HelloError::Site(site))
        } else {
            let kind = kinds.iter().find(|kind| **kind as u8 == traffic && reserved == 0);
            let kind = kind.copied().ok_or(HelloError::Traffic(traffic))?;
            Ok((kind, u64_at(32)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the greeting says which log.
    const LOG_AT: usize = 32;
    const OURS: Hello =
        Hello { cluster: 7, shards: 12, site: 2, voters: 0b1110, election_us: 80_000, log: 5 };

    #[test]
    fn every_difference_is_named() {
        let kinds = [Traffic::Urgent, Traffic::Bulk];
        let judge = |other: Hello, traffic| OURS.judge(&other.encode(traffic), &kinds);
        assert_eq!(judge(OURS, Traffic::Bulk), Ok((Traffic::Bulk, 5)));
        assert_eq!(judge(Hello { log: 9, ..OURS }, Traffic::Urgent), Ok((Traffic::Urgent, 9)));
        assert_eq!(judge(OURS, Traffic::Answers), Err(HelloError::Traffic(4)));
        let table = [
            (Hello { cluster: 8, ..OURS }, HelloError::Cluster(8)),
            (Hello { shards: 24, ..OURS }, HelloError::Shards(24)),
            (Hello { site: 1, ..OURS }, HelloError::Site(1)),
            (Hello { voters: 0b11110, ..OURS }, HelloError::Voters),
            (Hello { election_us: 240_000, ..OURS }, HelloError::Timing(240_000)),
        ];
        for (other, error) in table {
            assert_eq!(judge(other, Traffic::Urgent), Err(error));
        }
        let mut bytes = OURS.encode(Traffic::Urgent);
        bytes[4] = 9;
        assert_eq!(OURS.judge(&bytes, &kinds), Err(HelloError::Version(9)));
        bytes[0] = 0;
        assert_eq!(OURS.judge(&bytes, &kinds), Err(HelloError::Magic));
    }

    proptest! {
        #[test]
        fn noise_is_never_a_greeting(bytes: [u8; HELLO_LEN]) {
            let kinds = [Traffic::Urgent, Traffic::Bulk, Traffic::Forwards];
            let head = |kind: &Traffic| OURS.encode(*kind)[..LOG_AT] == bytes[..LOG_AT];
            let valid = kinds.iter().any(head);
            prop_assert_eq!(OURS.judge(&bytes, &kinds).is_ok(), valid);
        }

        #[test]
        fn one_changed_byte_is_seen(at in 0..HELLO_LEN, xor in 1_u8..) {
            let mut bytes = OURS.encode(Traffic::Forwards);
            bytes[at] ^= xor;
            let judged = OURS.judge(&bytes, &[Traffic::Forwards]);
            match at < LOG_AT {
                true => prop_assert!(judged.is_err()),
                false => prop_assert_ne!(judged, Ok((Traffic::Forwards, OURS.log))),
            }
        }
    }
}
