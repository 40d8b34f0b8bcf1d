//! Checkpoint files: a shard's state at an index, as opaque chunks.
//!
//! Written off the worker's thread to a temporary file, synced, named, the name
//! synced; the last two of each shard are kept. A file that has its name is whole;
//! one that does not check out is damage and named by file and offset. The
//! bytes are described in `docs/LOG.md`. Tested by `tests/checkpoint.rs`.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::disk::{DirFiles, DiskError, Files};
use crate::format::{CheckpointHeader, HeaderFault, Identity, decode_footer, encode_footer};

/// Largest chunk in bytes.
pub const CHECKPOINT_CHUNK_MAX: usize = 1 << 20;
/// Checkpoints kept of each shard.
const KEPT: usize = 2;
/// Bytes of a [`CheckpointNote`].
pub const CHECKPOINT_NOTE_BYTES: usize = 44;
const HEADER_BYTES: usize = 128;
/// Before each chunk: its length and checksum. A length of zero is the footer's.
const PREFIX_BYTES: usize = 8;

/// What a checkpoint is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Shard.
    pub shard: u16,
    /// Last block that is in the state.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Chain value after it.
    pub chain: [u8; 32],
}

/// What the caller wants to be told of a checkpoint before its chunks; kept in
/// the header, not looked at.
pub type CheckpointNote = [u8; CHECKPOINT_NOTE_BYTES];

/// What is wrong with a checkpoint file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    /// Header, footer or a chunk does not match its checksum, or the file ends
    /// early or late.
    #[error("does not match its checksum")]
    Damaged,
    /// Another log's, cluster's, worker's, shard's or index's.
    #[error("belongs to another log, shard or index")]
    Foreign,
    /// Written in a version this program does not know.
    #[error("unknown format version {0}")]
    Version(u16),
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A chunk is empty or longer than [`CHECKPOINT_CHUNK_MAX`].
    #[error("chunk of {0} bytes")]
    ChunkBytes(usize),
    /// There is no such checkpoint.
    #[error("no checkpoint of shard {shard} at index {index}")]
    Missing {
        /// Shard.
        shard: u16,
        /// Index.
        index: u64,
    },
    /// The file is not what its name says.
    #[error("{} offset {offset}: {fault}", file.display())]
    Bad {
        /// The file.
        file: PathBuf,
        /// Byte offset.
        offset: u64,
        /// What is wrong.
        fault: CheckpointFault,
    },
}

/// The checkpoints of one log. Send it, or a clone, to whatever thread may wait
/// for the disk; only one may write a shard's at a time, and one beside it.
#[derive(Debug, Clone)]
pub struct Checkpoints<F: Files = DirFiles> {
    files: F,
    identity: Identity,
}

fn file_name(shard: u16, index: u64) -> String {
    format!("{shard:04x}-{index:016x}.checkpoint")
}

/// Shard and index of a name.
fn parse_name(name: &str) -> Option<(u16, u64)> {
    let (shard, index) = name.strip_suffix(".checkpoint")?.split_once('-')?;
    let parsed = (u16::from_str_radix(shard, 16).ok()?, u64::from_str_radix(index, 16).ok()?);
    (file_name(parsed.0, parsed.1) == name).then_some(parsed)
}

impl<F: Files> Checkpoints<F> {
    pub(crate) fn new(files: F, identity: Identity) -> Checkpoints<F> {
        Checkpoints { files, identity }
    }

    /// Indexes of a shard's checkpoints, newest first.
    ///
    /// # Errors
    /// [`DiskError`] when the directory cannot be read.
    pub fn list(&mut self, shard: u16) -> Result<Vec<u64>, DiskError> {
        let names = self.files.list()?;
        let of_shard = names.iter().filter_map(|name| parse_name(name));
        let mut indexes: Vec<u64> =
            of_shard.filter(|(of, _)| *of == shard).map(|(_, index)| index).collect();
        indexes.sort_unstable_by(|a, b| b.cmp(a));
        Ok(indexes)
    }

    /// Shards and indexes of all checkpoints, each shard's newest first.
    ///
    /// # Errors
    /// [`DiskError`] when the directory cannot be read.
    pub fn list_all(&mut self) -> Result<Vec<(u16, u64)>, DiskError> {
        let names = self.files.list()?;
        let mut all: Vec<_> = names.iter().filter_map(|name| parse_name(name)).collect();
        all.sort_unstable_by_key(|(shard, index)| (*shard, std::cmp::Reverse(*index)));
        Ok(all)
    }

    /// Starts a checkpoint. It exists once [`CheckpointWriter::commit`] says so.
    ///
    /// # Errors
    /// [`CheckpointError::Disk`].
    pub fn create(
        &self,
        of: Checkpoint,
        note: &CheckpointNote,
    ) -> Result<CheckpointWriter<F>, CheckpointError> {
        self.create_as(of, note, format!("{:04x}-{:016x}.tmp", of.shard, of.index))
    }

    /// As [`Self::create`], for somebody else who may write the same checkpoint at the
    /// same time: each has a temporary file of its own, and what is committed last
    /// has the name.
    ///
    /// # Errors
    /// [`CheckpointError::Disk`].
    pub fn create_beside(
        &self,
        of: Checkpoint,
        note: &CheckpointNote,
    ) -> Result<CheckpointWriter<F>, CheckpointError> {
        self.create_as(of, note, format!("{:04x}-{:016x}.beside.tmp", of.shard, of.index))
    }

    fn create_as(
        &self,
        of: Checkpoint,
        note: &CheckpointNote,
        temporary: String,
    ) -> Result<CheckpointWriter<F>, CheckpointError> {
        let mut store = self.clone();
        store.files.create(&temporary)?;
        let header = CheckpointHeader { identity: self.identity, of, note: Some(*note) };
        let sum = Sha256::new();
        let mut writer = CheckpointWriter { store, temporary, of, chunks: 0, bytes: 0, sum };
        let mut bytes = [0; HEADER_BYTES];
        header.encode(&mut bytes);
        match writer.put(&bytes) {
            Ok(()) => Ok(writer),
            Err(error) => {
                writer.abandon();
                Err(error.into())
            }
        }
    }

    /// Reads a checkpoint and hands its chunks to `each`, in order, each after
    /// its checksum held. Only `Ok` says that all of them were the whole.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn read(
        &mut self,
        shard: u16,
        index: u64,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(Checkpoint, Option<CheckpointNote>), CheckpointError> {
        let mut reader = self.open(shard, index)?;
        let mut chunk = Vec::new();
        while reader.chunk(&mut chunk)? {
            each(&chunk);
        }
        Ok((reader.of(), reader.note()))
    }

    /// Opens a checkpoint to be read chunk by chunk. It stays readable when it is
    /// replaced meanwhile, where the file system keeps files that are open.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn open(&self, shard: u16, index: u64) -> Result<CheckpointReader<F>, CheckpointError> {
        let mut reader = CheckpointReader {
            files: self.files.clone(),
            name: file_name(shard, index),
            offset: 0,
            sum: Sha256::new(),
            of: Checkpoint { shard, index, term: 0, chain: [0; 32] },
            note: None,
            chunks: 0,
            ended: false,
        };
        let missing = CheckpointError::Missing { shard, index };
        let mut header = [0; HEADER_BYTES];
        if !reader.fill(&mut header)?.ok_or(missing)? {
            return Err(reader.bad(0, CheckpointFault::Damaged));
        }
        let header = CheckpointHeader::decode(&header).map_err(|fault| reader.refused(0, fault))?;
        if header.identity != self.identity || (header.of.shard, header.of.index) != (shard, index)
        {
            return Err(reader.bad(0, CheckpointFault::Foreign));
        }
        (reader.of, reader.note) = (header.of, header.note);
        Ok(reader)
    }

    /// Takes a checkpoint that does not check out out of the list; its bytes stay
    /// for whoever wants to know, under a name that ends in `.damaged`.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn set_aside(&mut self, shard: u16, index: u64) -> Result<(), DiskError> {
        let name = file_name(shard, index);
        self.files.rename(&name, &format!("{name}.damaged"))?;
        self.files.sync_dir()
    }

    /// Removes all but the newest two of a shard.
    fn prune(&mut self, shard: u16) -> Result<(), DiskError> {
        for index in self.list(shard)?.into_iter().skip(KEPT) {
            self.files.remove(&file_name(shard, index))?;
        }
        Ok(())
    }
}

/// A checkpoint being written.
pub struct CheckpointWriter<F: Files = DirFiles> {
    store: Checkpoints<F>,
    /// Its name until it is whole.
    temporary: String,
    of: Checkpoint,
    chunks: u64,
    bytes: u64,
    sum: Sha256,
}

impl<F: Files> CheckpointWriter<F> {
    /// Adds a chunk.
    ///
    /// # Errors
    /// [`CheckpointError`]; the checkpoint is to be dropped then.
    pub fn chunk(&mut self, chunk: &[u8]) -> Result<(), CheckpointError> {
        if chunk.is_empty() || chunk.len() > CHECKPOINT_CHUNK_MAX {
            return Err(CheckpointError::ChunkBytes(chunk.len()));
        }
        let mut prefix = [0; PREFIX_BYTES];
        prefix[..4].copy_from_slice(&(chunk.len() as u32).to_le_bytes());
        prefix[4..].copy_from_slice(&crc32c::crc32c(chunk).to_le_bytes());
        self.put(&prefix)?;
        self.put(chunk)?;
        self.chunks += 1;
        Ok(())
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the checkpoint durable and removes those it replaces. Until this
    /// returns `Ok` nothing may be released on its account.
    ///
    /// # Errors
    /// [`CheckpointError::Disk`]; the checkpoint may or may not exist then, and
    /// nothing else is left of it.
    pub fn commit(mut self) -> Result<Checkpoint, CheckpointError> {
        if let Err(error) = self.finish() {
            self.abandon();
            return Err(error.into());
        }
        // It is durable, whatever becomes of the older ones: the next one that is
        // written removes what stays now.
        let _ = self.store.prune(self.of.shard);
        Ok(self.of)
    }

    /// Writes the end, and gives the file its name.
    fn finish(&mut self) -> Result<(), DiskError> {
        self.put(&[0; PREFIX_BYTES])?;
        let mut footer = [0; HEADER_BYTES];
        let sum = self.sum.clone().finalize().into();
        encode_footer(self.chunks, self.bytes, &sum, &mut footer);
        let files = &mut self.store.files;
        files.append(&footer)?;
        files.sync()?;
        files.rename(&self.temporary, &file_name(self.of.shard, self.of.index))?;
        files.sync_dir()
    }

    /// Gives the checkpoint up and its space back. What the disk does not remove
    /// now goes at the next start.
    pub fn abandon(mut self) {
        let _ = self.store.files.remove(&self.temporary);
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.store.files.append(bytes)
    }
}

/// A checkpoint being read from its beginning.
pub struct CheckpointReader<F: Files = DirFiles> {
    files: F,
    name: String,
    offset: u64,
    sum: Sha256,
    of: Checkpoint,
    note: Option<CheckpointNote>,
    chunks: u64,
    ended: bool,
}

impl<F: Files> CheckpointReader<F> {
    /// What it is of.
    pub fn of(&self) -> Checkpoint {
        self.of
    }

    /// What its writer noted; `None` in files from before there were notes.
    pub fn note(&self) -> Option<CheckpointNote> {
        self.note
    }

    /// Reads the next chunk, whose checksum holds. `false` at the end, when all
    /// of them were the whole.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, CheckpointError> {
        if self.ended {
            return Ok(false);
        }
        if self.next(chunk)? {
            self.chunks += 1;
            return Ok(true);
        }
        self.footer(self.chunks)?;
        self.ended = true;
        Ok(false)
    }

    /// Fills `buffer`; `Some(false)` when the file ends before, `None` when
    /// there is none.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<Option<bool>, DiskError> {
        let read = self.files.read(&self.name, self.offset, buffer)?;
        let Some(read) = read else { return Ok(None) };
        self.sum.update(&buffer[..read]);
        self.offset += read as u64;
        Ok(Some(read == buffer.len()))
    }

    fn must_fill(&mut self, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        let at = self.offset;
        match self.fill(buffer)? {
            Some(true) => Ok(()),
            _ => Err(self.bad(at, CheckpointFault::Damaged)),
        }
    }

    /// The next chunk; `false` at the footer.
    fn next(&mut self, chunk: &mut Vec<u8>) -> Result<bool, CheckpointError> {
        let at = self.offset;
        let mut prefix = [0; PREFIX_BYTES];
        self.must_fill(&mut prefix)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = prefix;
        let bytes = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        if bytes > CHECKPOINT_CHUNK_MAX {
            return Err(self.bad(at, CheckpointFault::Damaged));
        }
        chunk.resize(bytes, 0);
        let whole = self.fill(chunk)? == Some(true);
        if !whole || crc32c::crc32c(chunk) != crc {
            return Err(self.bad(at, CheckpointFault::Damaged));
        }
        Ok(bytes > 0)
    }

    fn footer(&mut self, chunks: u64) -> Result<(), CheckpointError> {
        let at = self.offset;
        let sum: [u8; 32] = self.sum.clone().finalize().into();
        let mut footer = [0; HEADER_BYTES];
        self.must_fill(&mut footer)?;
        let read = decode_footer(&footer).map_err(|fault| self.refused(at, fault))?;
        let ends = self.fill(&mut [0])? == Some(false);
        if read == (chunks, at, sum) && ends {
            return Ok(());
        }
        Err(self.bad(at, CheckpointFault::Damaged))
    }

    fn refused(&self, offset: u64, fault: HeaderFault) -> CheckpointError {
        let fault = match fault {
            HeaderFault::Damaged => CheckpointFault::Damaged,
            HeaderFault::Version(version) => CheckpointFault::Version(version),
        };
        self.bad(offset, fault)
    }

    fn bad(&self, offset: u64, fault: CheckpointFault) -> CheckpointError {
        CheckpointError::Bad { file: self.files.dir().join(&self.name), offset, fault }
    }
}
