//! What opening a log needs besides the scan: whose it is, where it begins,
//! where it goes on.

use crate::checkpoint::Checkpoints;
use crate::config::{LogConfig, Settings};
use crate::disk::{Disk, FileDisk, SegmentFile, Source};
use crate::error::{Damage, DamageCause, LogError, ReplayError};
use crate::format::{HeaderFault, Identity, Released};
use crate::frame::Frame;
use crate::notify::Notify;
use crate::release::RELEASED_FILE;
use crate::scan::{ScanError, ShardEnd, Verified};

use super::{Log, Recovery};

/// A log that is locked and whose owner is known, but that was not read yet: its
/// checkpoints can be read first, so that replay need only go on from them.
#[derive(Debug)]
pub struct Closed<D: Disk = FileDisk> {
    pub(super) disk: D,
    pub(super) settings: Settings,
    /// `None` in a new log.
    pub(super) stored: Option<Identity>,
}

impl Closed<FileDisk> {
    /// Locks the directory. `notify` is woken at every completion later.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn lock(config: &LogConfig, notify: Notify) -> Result<Closed<FileDisk>, LogError> {
        config.settings().check()?;
        let disk = FileDisk::open(config, notify)?;
        Closed::with_disk(disk, config.settings())
    }
}

impl<D: Disk> Closed<D> {
    /// [`Closed::lock`] on any disk.
    ///
    /// # Errors
    /// As [`Log::with_disk`].
    pub fn with_disk(mut disk: D, settings: Settings) -> Result<Closed<D>, LogError> {
        settings.check()?;
        let stored = load_identity(&mut disk, &settings)?;
        Ok(Closed { disk, settings, stored })
    }

    /// The checkpoint files; `None` in a new log. May go to other threads.
    pub fn checkpoints(&self) -> Option<Checkpoints<D::Files>> {
        Some(Checkpoints::new(self.disk.files(), self.stored?))
    }

    /// Reads the log: see [`Log::open`].
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open(
        self,
        replay: &mut dyn FnMut(Frame<'_>) -> Result<(), ReplayError>,
    ) -> Result<(Log<D>, Recovery), LogError> {
        Log::recover(self, &mut Frames(replay))
    }

    /// As [`Closed::open`], for somebody who also judges the whole.
    ///
    /// # Errors
    /// As [`Log::open`], and [`LogError::Refused`].
    pub fn open_judged(self, replay: &mut dyn Replay) -> Result<(Log<D>, Recovery), LogError> {
        Log::recover(self, replay)
    }
}

/// What a log is read back by.
pub trait Replay {
    /// Takes the next frame.
    ///
    /// # Errors
    /// [`ReplayError`]: the log is refused.
    fn frame(&mut self, frame: Frame<'_>) -> Result<(), ReplayError>;

    /// Everything was read that will count: the last block of each shard. Nothing in
    /// the log was changed yet, a torn tail was not cut.
    ///
    /// # Errors
    /// [`ReplayError`]: the log is refused as it is.
    fn end(&mut self, ends: &[ShardEnd]) -> Result<(), ReplayError>;
}

/// Takes frames and any end.
struct Frames<'f>(&'f mut dyn FnMut(Frame<'_>) -> Result<(), ReplayError>);

impl Replay for Frames<'_> {
    fn frame(&mut self, frame: Frame<'_>) -> Result<(), ReplayError> {
        (self.0)(frame)
    }

    fn end(&mut self, _: &[ShardEnd]) -> Result<(), ReplayError> {
        Ok(())
    }
}

pub(super) fn shard_ends(verified: &Verified) -> Vec<ShardEnd> {
    let end = |(shard, index, chain)| ShardEnd { shard, index, chain };
    verified.chains.ends().map(end).collect()
}

pub(super) fn open_error(error: ScanError) -> LogError {
    match error {
        ScanError::Damage(damage) => LogError::Damage(damage),
        ScanError::Disk(error) => LogError::Disk(error),
        ScanError::Replay(lsn, source) => LogError::Replay { lsn, source },
    }
}

/// Splits the files into the one that continues and the empty ones behind it.
pub(super) fn start_writing<D: Disk>(
    disk: &mut D,
    verified: &Verified,
) -> Result<Option<SegmentFile>, LogError> {
    let segments = disk.segments().map_err(LogError::Disk)?;
    let used = segments.partition_point(|segment| segment.id <= verified.end.segment);
    let (written, spares) = segments.split_at(used);
    let current = written.last().copied();
    disk.begin(current, spares).map_err(LogError::Disk)?;
    Ok(current)
}

/// The stored identity, checked against the configuration.
pub(super) fn load_identity<D: Disk>(
    disk: &mut D,
    settings: &Settings,
) -> Result<Option<Identity>, LogError> {
    let stored = disk.load_identity().map_err(LogError::Disk)?;
    let Some(block) = stored else { return Ok(None) };
    let identity = Identity::decode(&block).map_err(|fault| match fault {
        HeaderFault::Damaged => identity_damage(disk, DamageCause::Identity),
        HeaderFault::Version(v) => identity_damage(disk, DamageCause::UnknownVersion(v)),
    })?;
    if identity.cluster != settings.cluster || identity.worker != settings.worker {
        return Err(identity_damage(disk, DamageCause::Foreign));
    }
    // Stored after the first segment was counted, so the count must be there.
    if disk.load_prepared().map_err(LogError::Disk)?.is_none() {
        return Err(identity_damage(disk, DamageCause::MissingSegment));
    }
    Ok(Some(identity))
}

pub(super) fn identity_damage<D: Disk>(disk: &D, cause: DamageCause) -> LogError {
    let file = disk.dir().join("identity");
    let damage = Damage { file, offset: 0, batch: 1, record: None, cause, durable: None };
    LogError::Damage(Box::new(damage))
}

/// Where the log begins, when segments were released.
pub(crate) fn load_released<S: Source>(
    source: &mut S,
    identity: &Identity,
) -> Result<Option<Released>, LogError> {
    let Some(block) = source.load_released().map_err(LogError::Disk)? else { return Ok(None) };
    let decoded = crate::release::decode(&block, identity);
    decoded.map(Some).map_err(|fault| {
        let cause = match fault {
            HeaderFault::Damaged => DamageCause::Identity,
            HeaderFault::Version(version) => DamageCause::UnknownVersion(version),
        };
        let file = source.dir().join(RELEASED_FILE);
        let damage = Damage { file, offset: 0, batch: 1, record: None, cause, durable: None };
        LogError::Damage(Box::new(damage))
    })
}
