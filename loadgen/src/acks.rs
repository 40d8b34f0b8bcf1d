//! The acknowledgement log: every answer that a gateway got, written down
//! before anything may forget it. The audit's first witness.
//!
//! A head with the plan's parameters, then fixed-size checksummed records. A
//! torn last record (the generator was killed) is left out on reading; damage
//! before it is an error. Knows no payment beyond the record. Tested by reading
//! what it wrote, cut and damaged.

use crate::exit::Failure;
use crate::growing::GrowingFile;
use crate::plan::Params;
use protocol::code::Code;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"PSWACK01";
/// Longest head: parameters of a million merchants.
const HEAD_MAX: u32 = 64 << 20;
/// Bytes of a record.
const RECORD_LEN: usize = 48;
/// Buffered bytes that are written at once.
const BUFFER_MAX: usize = 1 << 20;

/// One answer, or the lack of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Number of the request in its plan; of the payment for a later query.
    pub(crate) n: u64,
    /// Transaction id; 0 when none was told.
    pub(crate) transaction: u64,
    /// Amount in the answer, minor units.
    pub(crate) amount: i64,
    /// Given back in total, as the answer says, minor units.
    pub(crate) refunded: i64,
    /// Microseconds since the run began.
    pub(crate) at_us: u64,
    /// First level, as on the wire.
    pub(crate) code: u16,
    /// Second level, as on the wire: of a payment, or of a refund for refunds.
    pub(crate) state: u8,
    /// [`flag`] bits.
    pub(crate) flags: u8,
}

/// Bits of [`Ack::flags`].
pub(crate) mod flag {
    /// The answer says it is a stored one.
    pub(crate) const REPLAYED: u8 = 1;
    /// Answer to a query made after the run, not to request `n` itself.
    pub(crate) const REQUERY: u8 = 2;
    /// No answer by the deadline: the outcome is unknown.
    pub(crate) const UNKNOWN: u8 = 4;
    /// No answer but an outcome event: `n` is the payment, or the refund's request;
    /// `refunded` holds the event's id and `code` its sequence.
    pub(crate) const EVENT: u8 = 8;
    /// The event is about a refund; about one of our own when `n` is a payment.
    pub(crate) const REFUND: u8 = 16;
    /// Merchant, currency or refund number of the event are not the plan's.
    pub(crate) const ODD: u8 = 32;
}

impl Ack {
    /// Whether the request was carried out.
    pub(crate) fn is_ok(&self) -> bool {
        self.code == Code::Ok.wire() && self.flags & flag::UNKNOWN == 0
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for word in [self.n, self.transaction, self.amount as u64, self.refunded as u64, self.at_us]
        {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.code.to_le_bytes());
        out.extend_from_slice(&[self.state, self.flags]);
        let crc = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    fn decode(record: &[u8; RECORD_LEN]) -> Option<Self> {
        let (body, crc) = record.split_at(RECORD_LEN - 4);
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return None;
        }
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&body[at * 8..at * 8 + 8]);
            u64::from_le_bytes(bytes)
        };
        Some(Self {
            n: word(0),
            transaction: word(1),
            amount: word(2) as i64,
            refunded: word(3) as i64,
            at_us: word(4),
            code: u16::from_le_bytes([body[40], body[41]]),
            state: body[42],
            flags: body[43],
        })
    }
}

/// Appends answers.
pub(crate) struct AckWriter(GrowingFile);

impl AckWriter {
    /// Creates the log of a run in `dir`.
    pub(crate) fn create(dir: &Path, params: &Params) -> Result<Self, Failure> {
        let path = free_path(dir, params.run_id);
        let failed = |error: std::io::Error| {
            Failure::environment(format_args!("cannot write {}: {error}", path.display()))
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut file = File::options().write(true).create_new(true).open(&path).map_err(failed)?;
        let head = serde_json::to_vec(params).map_err(|error| failed(error.into()))?;
        let mut buffer = MAGIC.to_vec();
        buffer.extend_from_slice(&(head.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        buffer.extend_from_slice(&head);
        file.write_all(&buffer).map_err(failed)?;
        GrowingFile::new(file, &path, BUFFER_MAX).map(Self).map_err(failed)
    }

    /// Takes a record; it is written at the next [`AckWriter::flush`].
    pub(crate) fn push(&mut self, ack: &Ack) {
        ack.encode(self.0.buffer());
    }

    /// Writes what was taken.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush()
    }
}

/// A run id may be used again: its logs are numbered.
fn free_path(dir: &Path, run_id: u64) -> PathBuf {
    let name = |suffix: u32| dir.join(format!("run-{run_id:011x}-{suffix:03}.acks"));
    (0..1_000).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(1_000))
}

/// A log that is read back, record by record: it may be larger than memory.
pub(crate) struct AckLog {
    /// The plan's parameters.
    pub(crate) params: Params,
    path: PathBuf,
    /// Where the records begin.
    start: u64,
    count: u64,
    /// Bytes of a torn record at the end.
    pub(crate) torn: u64,
}

impl AckLog {
    /// Opens a log and reads its head.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |reason: &dyn std::fmt::Display| failed(path, reason);
        let mut file = File::open(path).map_err(|error| failed(&error))?;
        let mut head = [0; 16];
        file.read_exact(&mut head).map_err(|error| failed(&error))?;
        let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if head[..8] != MAGIC || len > HEAD_MAX {
            return Err(failed(&"not an acknowledgement log"));
        }
        let mut json = vec![0; len as usize];
        file.read_exact(&mut json).map_err(|error| failed(&error))?;
        if crc32c::crc32c(&json).to_le_bytes() != head[12..] {
            return Err(failed(&"the head is damaged"));
        }
        let params = serde_json::from_slice(&json).map_err(|error| failed(&error))?;
        let start = head.len() as u64 + u64::from(len);
        let length = file.metadata().map_err(|error| failed(&error))?.len();
        let bytes = length.saturating_sub(start);
        let (count, torn) = (bytes / RECORD_LEN as u64, bytes % RECORD_LEN as u64);
        Ok(Self { params, path: path.to_owned(), start, count, torn })
    }

    /// Hands over all records, in the order of the answers. A damaged one is an
    /// error that names it.
    pub(crate) fn each(&self, mut take: impl FnMut(Ack)) -> Result<(), Failure> {
        let failed = |reason: &dyn std::fmt::Display| failed(&self.path, reason);
        let mut file = File::open(&self.path).map_err(|error| failed(&error))?;
        file.seek(SeekFrom::Start(self.start)).map_err(|error| failed(&error))?;
        let mut reader = BufReader::with_capacity(BUFFER_MAX, file);
        let mut record = [0; RECORD_LEN];
        for at in 0..self.count {
            reader.read_exact(&mut record).map_err(|error| failed(&error))?;
            let ack = Ack::decode(&record);
            take(ack.ok_or_else(|| failed(&format_args!("record {at} is damaged")))?);
        }
        Ok(())
    }
}

fn failed(path: &Path, reason: &dyn std::fmt::Display) -> Failure {
    Failure::environment(format_args!("{}: {reason}", path.display()))
}

/// The acknowledgement logs of a directory, in order of their names.
pub(crate) fn logs_of(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(dir)
        .map_err(|error| Failure::usage(format_args!("cannot read {}: {error}", dir.display())))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "acks"))
        .collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::params;

    fn ack(n: u64) -> Ack {
        let flags = flag::REPLAYED;
        Ack { n, transaction: 7, amount: -5, refunded: 1, at_us: 9, code: 301, state: 3, flags }
    }

    fn written() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = AckWriter::create(dir.path(), &params()).ok().unwrap();
        (0..10).for_each(|n| writer.push(&ack(n)));
        writer.flush().unwrap();
        let path = logs_of(dir.path()).unwrap().remove(0);
        (dir, path)
    }

    fn records(log: &AckLog) -> Result<Vec<Ack>, Failure> {
        let mut records = Vec::new();
        log.each(|ack| records.push(ack)).map(|()| records)
    }

    #[test]
    fn records_and_parameters_are_read_back() {
        let (_dir, path) = written();
        let log = AckLog::open(&path).ok().unwrap();
        assert_eq!(log.params, params());
        assert!(records(&log).unwrap().into_iter().eq((0..10).map(ack)));
    }

    #[test]
    fn a_torn_end_is_left_out_and_damage_is_an_error() {
        let (_dir, path) = written();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 5);
        std::fs::write(&path, &bytes).unwrap();
        let log = AckLog::open(&path).ok().unwrap();
        assert_eq!((records(&log).unwrap().len(), log.torn), (9, RECORD_LEN as u64 - 5));
        let middle = bytes.len() - 3 * RECORD_LEN;
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let damaged = records(&AckLog::open(&path).ok().unwrap()).unwrap_err();
        assert!(damaged.message.contains("record 6 is damaged"), "{}", damaged.message);
    }

    #[test]
    fn a_second_log_of_the_same_run_has_its_own_file() {
        let (dir, _path) = written();
        AckWriter::create(dir.path(), &params()).ok().unwrap();
        assert_eq!(logs_of(dir.path()).unwrap().len(), 2);
    }
}
