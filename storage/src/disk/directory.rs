//! The files of a log: names, listing, identity, reading in order.
//!
//! Reading only, and without a lock, so that a log can be checked while its
//! node runs. Reads bypass the page cache where the file system can: after a
//! failed flush the cache may show what the medium never got.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use super::{Buffer, DiskError, DiskOp, Piece, SegmentFile, Source, VisitPiece, segment_path};
use crate::format::{BLOCK_BYTES, RELEASED_BYTES_MAX, encode_prepared};
use crate::release::RELEASED_FILE;
use crate::scan::Position;

/// Bytes per read while scanning.
const PIECE_BYTES: usize = 1 << 20;
/// Reads ahead of the verifier.
const PIECES: usize = 4;
/// Segments open while scanning.
const SEGMENTS_OPEN: usize = 16;
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

    /// The file, but not more of it than it can rightly have and a byte: a longer
    /// one is none of ours and may be of any length.
    fn load(&self, name: &str, max: usize) -> Result<Option<Vec<u8>>, DiskError> {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let file = File::open(self.dir.join(name))?;
            file.take(max as u64 + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::io(DiskOp::Directory, &error)),
        }
    }
}

/// Makes a directory and what is missing above it, and their names durable: what a
/// log acknowledges is only as durable as the way to it.
///
/// # Errors
/// One of them cannot be made, or its name not be made durable.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    std::fs::create_dir_all(dir)?;
    if missing.is_empty() {
        // Made by an earlier start, which may have ended before the next line. Not to
        // be had where the one above may only be passed through.
        let _ = sync_above(dir);
    }
    missing.into_iter().try_for_each(sync_above)
}

/// Makes the name of `path` durable.
fn sync_above(path: &Path) -> io::Result<()> {
    match path.parent() {
        None => Ok(()),
        Some(above) if above.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(above) => File::open(above)?.sync_all(),
    }
}

/// A segment opened for reading: with direct I/O, or without where the file system
/// has none. Some say so only when the first byte is read.
#[derive(Debug)]
pub(super) struct SegmentReader {
    path: PathBuf,
    file: File,
    direct: bool,
}

impl SegmentReader {
    pub(super) fn open(path: PathBuf) -> io::Result<SegmentReader> {
        match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) {
            Ok(file) => Ok(SegmentReader { path, file, direct: true }),
            Err(error) if has_no_direct(&error) => {
                let file = File::open(&path)?;
                Ok(SegmentReader { path, file, direct: false })
            }
            Err(error) => Err(error),
        }
    }

    /// Fills `buffer` from `offset`; returns the bytes read, fewer only at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if self.direct && has_no_direct(&error) => {
                    self.file = File::open(&self.path)?;
                    self.direct = false;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

fn has_no_direct(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Whether the device says that it cannot read these blocks (any more). Anything
/// else says nothing about them.
pub(super) fn is_bad_block(error: &io::Error) -> bool {
    const MEDIUM: [i32; 6] =
        [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EBADMSG, libc::EUCLEAN, libc::EREMOTEIO];
    error.raw_os_error().is_some_and(|errno| MEDIUM.contains(&errno))
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
        self.load(IDENTITY_FILE, BLOCK_BYTES)
    }

    fn load_prepared(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.load(PREPARED_FILE, BLOCK_BYTES)
    }

    fn load_released(&mut self) -> Result<Option<Vec<u8>>, DiskError> {
        self.load(RELEASED_FILE, RELEASED_BYTES_MAX)
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

/// Opens segments some way ahead of their reading: a running node that gives up its
/// oldest ones meanwhile takes nothing away from who has them open.
fn open_ahead<'s>(
    dir: &Path,
    segments: &mut impl Iterator<Item = &'s SegmentFile>,
    open: &mut VecDeque<(SegmentFile, SegmentReader)>,
) -> Result<(), DiskError> {
    while open.len() < SEGMENTS_OPEN {
        let Some(segment) = segments.next() else { break };
        let reader = SegmentReader::open(segment_path(dir, segment.id));
        let reader = reader.map_err(|error| DiskError::io(DiskOp::Open, &error))?;
        open.push_back((*segment, reader));
    }
    Ok(())
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
    let mut segments = segments.iter().filter(|segment| segment.id >= from.segment);
    let mut open = VecDeque::new();
    loop {
        open_ahead(dir, &mut segments, &mut open)?;
        let Some((segment, mut file)) = open.pop_front() else { break };
        let mut offset = if segment.id == from.segment { from.offset } else { 0 };
        let end = segment.bytes - segment.bytes % BLOCK_BYTES as u64;
        while offset < end {
            let Ok(mut buffer) = buffers.recv() else { return Ok(()) };
            let bytes = (end - offset).min(PIECE_BYTES as u64) as usize;
            let mut unreadable = Vec::new();
            if !is_read(&mut file, &mut buffer[..bytes], offset)? {
                read_by_block(&mut file, &mut buffer[..bytes], offset, &mut unreadable)?;
            }
            offset += bytes as u64;
            if full.send(Load { buffer, bytes, segment, unreadable }).is_err() {
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

/// Reads whole blocks; `false` when the device cannot read some of them.
fn is_read(file: &mut SegmentReader, buffer: &mut [u8], offset: u64) -> Result<bool, DiskError> {
    match file.read(buffer, offset) {
        Ok(bytes) if bytes == buffer.len() => Ok(true),
        Ok(_) => Err(DiskError::short(DiskOp::Read)),
        Err(error) if is_bad_block(&error) => Ok(false),
        Err(error) => Err(DiskError::io(DiskOp::Read, &error)),
    }
}

/// After a failed read: block by block, zeros where it cannot be read.
fn read_by_block(
    file: &mut SegmentReader,
    buffer: &mut [u8],
    offset: u64,
    unreadable: &mut Vec<u64>,
) -> Result<(), DiskError> {
    for (nth, block) in buffer.chunks_mut(BLOCK_BYTES).enumerate() {
        let at = offset + (nth * BLOCK_BYTES) as u64;
        if !is_read(file, block, at)? {
            block.fill(0);
            unreadable.push(at);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that direct I/O refuses stands for a file system that has none and
    /// says so only then.
    #[test]
    fn where_direct_reads_are_refused_the_page_cache_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = segment_path(dir.path(), 1);
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES).map(|at| (at / 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut reader = SegmentReader::open(path).unwrap();
        let mut buffer = Buffer::new(2 * BLOCK_BYTES);
        let read = reader.read(&mut buffer[1..=BLOCK_BYTES], BLOCK_BYTES as u64).unwrap();
        assert_eq!(
            (read, &buffer[1..=BLOCK_BYTES]),
            (BLOCK_BYTES, &bytes[BLOCK_BYTES..][..BLOCK_BYTES])
        );
        let read = reader.read(&mut buffer[..], 2 * BLOCK_BYTES as u64).unwrap();
        assert_eq!((read, &buffer[..read]), (BLOCK_BYTES, &bytes[2 * BLOCK_BYTES..]), "the end");
    }

    #[test]
    fn only_what_the_device_says_of_a_block_is_a_bad_block() {
        let is_bad = |errno| is_bad_block(&io::Error::from_raw_os_error(errno));
        assert!([libc::EIO, libc::ENODATA, libc::EILSEQ].into_iter().all(is_bad));
        let others = [libc::EINVAL, libc::ENOMEM, libc::EACCES, libc::ESTALE, libc::EBADF];
        assert!(!others.into_iter().any(is_bad));
    }

    /// What the process cannot do is not told as zeros: the file ends before its
    /// listed length, or cannot be read at all.
    #[test]
    fn a_read_that_fails_for_another_reason_ends_the_scan() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(segment_path(dir.path(), 1), vec![1; BLOCK_BYTES]).unwrap();
        std::fs::create_dir(segment_path(dir.path(), 2)).unwrap();
        let scan = |id, bytes| {
            let from = Position { segment: id, offset: 0 };
            let segments = [SegmentFile { id, bytes }];
            let mut seen = 0;
            let mut directory = Directory::new(dir.path());
            let result = directory.scan(from, &segments, &mut |piece| {
                seen += piece.bytes.len();
                ControlFlow::Continue(())
            });
            (seen, result)
        };
        assert_eq!(scan(1, BLOCK_BYTES as u64), (BLOCK_BYTES, Ok(())));
        assert_eq!(scan(1, 2 * BLOCK_BYTES as u64), (0, Err(DiskError::short(DiskOp::Read))));
        let (seen, failed) = scan(2, BLOCK_BYTES as u64);
        assert_eq!((seen, failed.unwrap_err().errno), (0, Some(libc::EISDIR)));
    }
}
