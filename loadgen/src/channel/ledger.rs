//! The ledger file of the channel's book: an append-only sequence of
//! fixed-size checksummed records, written before the replies they stand for.
//!
//! Survives kill -9 of the channel (the page cache keeps what was written); a
//! torn last record is cut at the start, damage before it is an error. The
//! audit's second witness. Tested on restart, torn tails and damage.

use super::book::Entry;
use super::number::Number;
use crate::exit::Failure;
use crate::growing::GrowingFile;
use protocol::channel::{ChannelStatus, kind};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

const MAGIC: [u8; 16] = *b"payswitch-book-1";
/// Bytes of a record.
const RECORD_LEN: usize = 48;
const FILE_NAME: &str = "ledger.bin";

/// An open ledger.
pub(crate) struct Ledger(GrowingFile);

impl Ledger {
    /// Opens or creates the ledger of `dir`, handing every entry in it to
    /// `apply`; cuts a torn last record.
    pub(crate) fn open(dir: &Path, apply: impl FnMut(&Entry)) -> Result<Self, Failure> {
        let path = dir.join(FILE_NAME);
        let failed = |error: std::io::Error| {
            Failure::environment(format_args!("ledger {}: {error}", path.display()))
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let whole = if length < MAGIC.len() as u64 {
            // New, or killed while it was created: nothing was ever in it.
            file.set_len(0).map_err(failed)?;
            file.write_all(&MAGIC).map_err(failed)?;
            MAGIC.len() as u64
        } else {
            read_from(&file, &path, apply)?
        };
        file.set_len(whole).map_err(failed)?;
        GrowingFile::new(file, &path, 64 << 10).map(Self).map_err(failed)
    }

    /// Takes an entry; it is written at the next [`Ledger::flush`].
    pub(crate) fn push(&mut self, entry: &Entry) {
        encode(entry, self.0.buffer());
    }

    /// Writes what was taken. Only now may the replies leave.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush()
    }
}

/// Reads the ledger of `dir` without changing it; `false` when there is none.
pub(crate) fn read(dir: &Path, apply: impl FnMut(&Entry)) -> Result<bool, Failure> {
    let path = dir.join(FILE_NAME);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(Failure::environment(format_args!("{}: {error}", path.display())));
        }
    };
    read_from(&file, &path, apply)?;
    Ok(true)
}

/// Hands all whole records to `apply`; returns where they end.
fn read_from(file: &File, path: &Path, mut apply: impl FnMut(&Entry)) -> Result<u64, Failure> {
    let failed = |reason: &dyn std::fmt::Display| {
        Failure::environment(format_args!("ledger {}: {reason}", path.display()))
    };
    let length = file.metadata().map_err(|error| failed(&error))?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic).map_err(|error| failed(&error))?;
    if magic != MAGIC {
        return Err(failed(&"not a ledger of this version"));
    }
    let records = (length - MAGIC.len() as u64) / RECORD_LEN as u64;
    let mut record = [0; RECORD_LEN];
    for number in 0..records {
        reader.read_exact(&mut record).map_err(|error| failed(&error))?;
        match decode(&record) {
            Some(entry) => apply(&entry),
            // A batch that was being written when the machine went down.
            None if number + 1 == records => return Ok(offset(number)),
            None => return Err(failed(&format_args!("record {number} is damaged"))),
        }
    }
    Ok(offset(records))
}

fn offset(records: u64) -> u64 {
    MAGIC.len() as u64 + records * RECORD_LEN as u64
}

fn encode(entry: &Entry, out: &mut Vec<u8>) {
    let (refund_kind, refund_ordinal) =
        entry.refund.map_or((0, 0), |refund| (refund.kind, refund.ordinal));
    let mut record = [0; RECORD_LEN];
    record[..16].copy_from_slice(&entry.charge.digest);
    record[16..21].copy_from_slice(&[
        entry.charge.ordinal,
        refund_kind,
        refund_ordinal,
        entry.operation,
        entry.status as u8,
    ]);
    record[22..24].copy_from_slice(&entry.detail.to_le_bytes());
    record[24..32].copy_from_slice(&entry.amount.to_le_bytes());
    record[32..40].copy_from_slice(&entry.at_ms.to_le_bytes());
    record[40..43].copy_from_slice(&entry.currency);
    let crc = crc32c::crc32c(&record[..RECORD_LEN - 4]);
    record[RECORD_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&record);
}

fn decode(record: &[u8; RECORD_LEN]) -> Option<Entry> {
    let (body, crc) = record.split_at(RECORD_LEN - 4);
    if crc32c::crc32c(body).to_le_bytes() != crc {
        return None;
    }
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&body[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let mut digest = [0; 16];
    digest.copy_from_slice(&body[..16]);
    let operation = body[19];
    let known = matches!(operation, kind::CHARGE | kind::REVERSE | kind::REFUND);
    let refund = Number { digest, kind: body[17], ordinal: body[18] };
    known.then_some(Entry {
        operation,
        charge: Number { digest, kind: b'P', ordinal: body[16] },
        refund: (body[17] != 0).then_some(refund),
        status: ChannelStatus::from_wire(body[20])?,
        detail: u16::from_le_bytes([body[22], body[23]]),
        amount: word(24) as i64,
        at_ms: word(32),
        currency: [body[40], body[41], body[42]],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u8) -> Entry {
        let digest = [n; 16];
        let refund = Number { digest, kind: b'R', ordinal: 3 };
        Entry {
            operation: if n.is_multiple_of(2) { kind::CHARGE } else { kind::REFUND },
            charge: Number { digest, kind: b'P', ordinal: 1 },
            refund: (n % 2 == 1).then_some(refund),
            status: ChannelStatus::Success,
            detail: 4,
            amount: 12_345,
            currency: *b"CNY",
            at_ms: 99,
        }
    }

    fn opened(dir: &Path) -> (Ledger, Vec<Entry>) {
        let mut entries = Vec::new();
        let ledger = Ledger::open(dir, |entry| entries.push(*entry)).ok().unwrap();
        (ledger, entries)
    }

    fn written(dir: &Path, count: u8) {
        let (mut ledger, _) = opened(dir);
        (0..count).for_each(|n| ledger.push(&entry(n)));
        ledger.flush().unwrap();
    }

    #[test]
    fn entries_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 10);
        let (mut ledger, entries) = opened(dir.path());
        assert!(entries.iter().copied().eq((0..10).map(entry)));
        ledger.push(&entry(10));
        ledger.flush().unwrap();
        assert_eq!(opened(dir.path()).1.len(), 11);
        let mut count = 0;
        assert!(read(dir.path(), |_| count += 1).unwrap());
        assert_eq!(count, 11);
        assert!(!read(&dir.path().join("none"), |_| {}).unwrap());
    }

    #[test]
    fn a_torn_tail_is_cut_and_writing_goes_on_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 4);
        let path = dir.path().join(FILE_NAME);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 1..RECORD_LEN {
            std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            let (mut ledger, entries) = opened(dir.path());
            assert_eq!(entries.len(), 3);
            ledger.push(&entry(7));
            ledger.flush().unwrap();
            assert_eq!(opened(dir.path()).1.last(), Some(&entry(7)));
        }
    }

    #[test]
    fn a_broken_last_record_is_cut_and_damage_before_it_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 4);
        let path = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 10;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(opened(dir.path()).1.len(), 3);
        written(dir.path(), 1);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[MAGIC.len() + RECORD_LEN + 5] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(Ledger::open(dir.path(), |_| {}).is_err());
    }
}
