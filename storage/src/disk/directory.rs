//! The files of a log: names, listing, identity, reading in order.
//!
//! Reading only, and without a lock, so that a log can be checked while its
//! node runs. Reads bypass the page cache where the file system can: after a
//! failed flush the cache may show what the medium never got.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use super::{Buffer, DiskError, DiskOp, Piece, SegmentFile, Source, VisitPiece, segment_path};
use crate::format::{BLOCK_BYTES, encode_prepared};
use crate::release::RELEASED_FILE;
use crate::scan::Position;

/// Bytes per read while scanning.
const PIECE_BYTES: usize = 1 << 20;
/// Reads ahead of the verifier.
const PIECES: usize = 4;
/// Who the log belongs to.
const IDENTITY_FILE: &str = "identity";
/// How many segments were prepared.
const PREPARED_FILE: &str = "prepared";

/// A log directory, for reading.
#[derive(Debug, Clone)]
pub struct Directory {
    dir: PathBuf,
}

impl Directory {
    /// The log in `dir`; nothing is touched yet.
    pub fn new(dir: impl Into<PathBuf>) -> Directory {
        Directory { dir: dir.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// Syncs the directory itself, so that names in it are durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    pub(super) fn store_identity(&self, block: &[u8]) -> io::Result<()> {
        self.replace(IDENTITY_FILE, block)
    }

    pub(super) fn store_prepared(&self, segments: u64) -> io::Result<()> {
        let mut block = [0; BLOCK_BYTES];
        encode_prepared(segments, &mut block);
        self.replace(PREPARED_FILE, &block)
    }

    /// Replaces a small file as a whole, durably: old or new, never half.
    fn replace(&self, name: &str, block: &[u8]) -> io::Result<()> {
        let temporary = self.dir.join(name).with_extension("tmp");
        let file = File::create(&temporary)?;
        file.write_all_at(block, 0)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.dir.join(name))?;
        self.sync()
    }

    fn load(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        match std::fs::read(self.dir.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::io(DiskOp::Directory, &error)),
        }
    }
}

/// Opens with direct I/O, or without where the file system has none.
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => File::open(path),
        other => other,
    }
}

struct Load {
    buffer: Buffer,
    bytes: usize,
    segment: SegmentFile,
    unreadable: Vec<u64>,
}

impl Source for Directory {
    fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    fn load_identity(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.load(IDENTITY_FILE)
    }

    fn load_prepared(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.load(PREPARED_FILE)
    }

    fn load_released(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.load(RELEASED_FILE)
    }

    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        list(&self.dir).map_err(|error| DiskError::io(DiskOp::Directory, &error))
    }

    fn scan(
        &mut self,
        from: Position,
        segments: &[SegmentFile],
        visit: &mut VisitPiece<'_>,
    ) -> Result<(), DiskError> {
        let (full, loads) = mpsc::sync_channel::<Load>(PIECES);
        let (empty, buffers) = mpsc::sync_channel::<Buffer>(PIECES);
        for _ in 0..PIECES {
            let _ = empty.try_send(Buffer::new(PIECE_BYTES));
        }
        std::thread::scope(|scope| {
            let dir = &self.dir;
            let reader = scope.spawn(move || read_ahead(dir, from, segments, &full, &buffers));
            // Moved in here so that leaving the loop ends the reader.
            let (loads, empty) = (loads, empty);
            deliver(&loads, &empty, visit);
            drop((loads, empty));
            reader.join().unwrap_or(Err(DiskError::short(DiskOp::Read)))
        })
    }
}

fn deliver(
    loads: &mpsc::Receiver<Load>,
    empty: &mpsc::SyncSender<Buffer>,
    visit: &mut VisitPiece<'_>,
) {
    while let Ok(load) = loads.recv() {
        if load.bytes == 0 {
            return;
        }
        let piece = Piece {
            segment: load.segment.id,
            segment_bytes: load.segment.bytes,
            bytes: &load.buffer[..load.bytes],
            unreadable: &load.unreadable,
        };
        if visit(piece) == ControlFlow::Break(()) {
            return;
        }
        let _ = empty.try_send(load.buffer);
    }
}

fn list(dir: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".wal"));
        let Some(id) = number.and_then(|hex| u64::from_str_radix(hex, 16).ok()) else { continue };
        if segment_path(dir, id) == entry.path() {
            segments.push(SegmentFile { id, bytes: entry.metadata()?.len() });
        }
    }
    segments.sort_by_key(|segment| segment.id);
    Ok(segments)
}

/// Reads everything and ends with an empty load. A receiver that went away has
/// seen enough.
fn read_ahead(
    dir: &Path,
    from: Position,
    segments: &[SegmentFile],
    full: &mpsc::SyncSender<Load>,
    buffers: &mpsc::Receiver<Buffer>,
) -> Result<(), DiskError> {
    for segment in segments.iter().filter(|segment| segment.id >= from.segment) {
        let file = open_for_reading(&segment_path(dir, segment.id))
            .map_err(|error| DiskError::io(DiskOp::Open, &error))?;
        let mut offset = if segment.id == from.segment { from.offset } else { 0 };
        let end = segment.bytes - segment.bytes % BLOCK_BYTES as u64;
        while offset < end {
            let Ok(mut buffer) = buffers.recv() else { return Ok(()) };
            let bytes = (end - offset).min(PIECE_BYTES as u64) as usize;
            let mut unreadable = Vec::new();
            if read_full(&file, &mut buffer[..bytes], offset).is_err() {
                read_by_block(&file, &mut buffer[..bytes], offset, &mut unreadable);
            }
            offset += bytes as u64;
            if full.send(Load { buffer, bytes, segment: *segment, unreadable }).is_err() {
                return Ok(());
            }
        }
    }
    let last = Load {
        buffer: Buffer::new(0),
        bytes: 0,
        segment: SegmentFile { id: 0, bytes: 0 },
        unreadable: Vec::new(),
    };
    let _ = full.send(last);
    Ok(())
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

/// After a failed read: block by block, zeros where it cannot be read.
fn read_by_block(file: &File, buffer: &mut [u8], offset: u64, unreadable: &mut Vec<u64>) {
    for (nth, block) in buffer.chunks_mut(BLOCK_BYTES).enumerate() {
        let at = offset + (nth * BLOCK_BYTES) as u64;
        if read_full(file, block, at).is_err() {
            block.fill(0);
            unreadable.push(at);
        }
    }
}
