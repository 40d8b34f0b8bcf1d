//! What the thread does for states on their way: reads checkpoints that are sent,
//! writes and builds those that come. Never more than one each way and site.

use std::collections::BTreeMap;

use bytes::Bytes;
use storage::disk::Files;
use storage::{CheckpointReader, CheckpointWriter, Checkpoints};

use crate::engine::{Engine, EngineConfig, Restore};
use crate::replica::Base;
use crate::runtime::worker::desk::Labour;

/// Whose transfer: the other site, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime::worker) struct Which {
    pub(super) site: u8,
    pub(super) id: u64,
}

/// Something to be done.
pub(in crate::runtime::worker) enum Order {
    /// A checkpoint is going to be sent, in place of what was sent there before.
    Open { to: Which, shard: u16, index: u64 },
    /// Its next chunk, please.
    Read { to: Which },
    /// No more of it.
    Close { to: Which },
    /// A state comes, in place of what came from there before.
    Receive { from: Which, shard: u16, base: Base },
    /// A slice of it.
    Take { from: Which, slice: Bytes },
    /// That was all.
    Finish { from: Which },
    /// It is not wanted any more.
    Drop { from: Which },
    /// Gives an old state's memory back, which takes its time.
    Forget { engine: Box<Engine> },
}

/// What came of it.
pub(in crate::runtime::worker) enum Done {
    /// A chunk to be sent; an empty one: there are no more.
    Chunk { to: Which, chunk: Bytes },
    /// It cannot be read.
    NotRead { to: Which, why: String },
    /// A slice was taken.
    Taken { from: Which },
    /// All of it is durable.
    Received { from: Which, engine: Box<Engine>, bytes: u64 },
    /// It cannot be used, or not be written.
    NotTaken { from: Which, why: String },
}

struct Sent<F: Files> {
    id: u64,
    reader: CheckpointReader<F>,
}

struct Coming<F: Files> {
    id: u64,
    base: Base,
    writer: CheckpointWriter<F>,
    restore: Restore,
}

/// See the module.
pub(in crate::runtime::worker) struct Handling<F: Files> {
    checkpoints: Checkpoints<F>,
    engines: Vec<EngineConfig>,
    sent: BTreeMap<u8, Sent<F>>,
    coming: BTreeMap<u8, Coming<F>>,
    /// Says that a state is durable before it is.
    #[cfg(test)]
    pub(in crate::runtime::worker) hasty: bool,
    #[cfg(test)]
    late: Vec<CheckpointWriter<F>>,
}

impl<F: Files> Handling<F> {
    pub(super) fn new(checkpoints: Checkpoints<F>, engines: Vec<EngineConfig>) -> Self {
        Self {
            checkpoints,
            engines,
            sent: BTreeMap::new(),
            coming: BTreeMap::new(),
            #[cfg(test)]
            hasty: false,
            #[cfg(test)]
            late: Vec::new(),
        }
    }

    fn open(&mut self, to: Which, shard: u16, index: u64) -> Result<(), String> {
        self.sent.remove(&to.site);
        let reader = self.checkpoints.open(shard, index).map_err(|error| error.to_string())?;
        self.sent.insert(to.site, Sent { id: to.id, reader });
        Ok(())
    }

    fn read(&mut self, to: Which) -> Option<Result<Bytes, String>> {
        let sent = self.sent.get_mut(&to.site).filter(|sent| sent.id == to.id)?;
        let mut chunk = Vec::new();
        Some(match sent.reader.chunk(&mut chunk) {
            Ok(true) => Ok(chunk.into()),
            Ok(false) => Ok(Bytes::new()),
            Err(error) => Err(error.to_string()),
        })
    }

    fn receive(&mut self, from: Which, shard: u16, base: Base) -> Result<(), String> {
        #[cfg(test)]
        for writer in self.late.drain(..) {
            drop(writer.commit());
        }
        self.abandon(from.site);
        let engine = self.engines.iter().find(|engine| engine.shard == shard);
        let engine = engine.ok_or("a shard that is not served here")?.clone();
        // Its log need not lead there.
        let base = Base { received: true, ..base };
        // This site may be writing its own checkpoint of the same block.
        let created = self.checkpoints.create_beside(base.checkpoint(shard), &base.note());
        let writer = created.map_err(|error| error.to_string())?;
        let coming = Coming { id: from.id, base, writer, restore: Restore::new(engine) };
        self.coming.insert(from.site, coming);
        Ok(())
    }

    fn coming(&mut self, from: Which) -> Option<&mut Coming<F>> {
        self.coming.get_mut(&from.site).filter(|coming| coming.id == from.id)
    }

    fn abandon(&mut self, site: u8) {
        if let Some(coming) = self.coming.remove(&site) {
            coming.writer.abandon();
        }
    }

    fn take(&mut self, from: Which, slice: &[u8]) -> Option<Result<(), String>> {
        let coming = self.coming(from)?;
        let restored = coming.restore.chunk(slice).map_err(|error| error.to_string());
        Some(restored.and_then(|()| coming.writer.chunk(slice).map_err(|error| error.to_string())))
    }

    /// Makes the state durable: from here on it is what this site has.
    fn finish(&mut self, from: Which) -> Option<Result<(Box<Engine>, u64), String>> {
        self.coming(from)?;
        let Coming { base, writer, restore, .. } = self.coming.remove(&from.site)?;
        let engine = match restore.finish() {
            Ok(engine) if engine.applied() == base.index => engine,
            Ok(engine) => {
                writer.abandon();
                return Some(Err(format!("its state is of block {}", engine.applied())));
            }
            Err(error) => {
                writer.abandon();
                return Some(Err(error.to_string()));
            }
        };
        let bytes = writer.bytes();
        #[cfg(test)]
        if self.hasty {
            self.late.push(writer);
            return Some(Ok((Box::new(engine), bytes)));
        }
        let committed = writer.commit().map_err(|error| error.to_string());
        Some(committed.map(|_| (Box::new(engine), bytes)))
    }
}

impl<F: Files> Labour for Handling<F> {
    type Order = Order;
    type Done = Done;

    fn carry_out(&mut self, order: Order) -> Option<Done> {
        match order {
            Order::Open { to, shard, index } => {
                let why = self.open(to, shard, index).err()?;
                Some(Done::NotRead { to, why })
            }
            Order::Read { to } => Some(match self.read(to)? {
                Ok(chunk) => Done::Chunk { to, chunk },
                Err(why) => Done::NotRead { to, why },
            }),
            Order::Close { to } => {
                if self.sent.get(&to.site).is_some_and(|sent| sent.id == to.id) {
                    self.sent.remove(&to.site);
                }
                None
            }
            Order::Receive { from, shard, base } => {
                let why = self.receive(from, shard, base).err()?;
                Some(Done::NotTaken { from, why })
            }
            Order::Take { from, slice } => match self.take(from, &slice)? {
                Ok(()) => Some(Done::Taken { from }),
                Err(why) => {
                    // Gives back the space, of which there may be none.
                    self.abandon(from.site);
                    Some(Done::NotTaken { from, why })
                }
            },
            Order::Finish { from } => Some(match self.finish(from)? {
                Ok((engine, bytes)) => Done::Received { from, engine, bytes },
                Err(why) => Done::NotTaken { from, why },
            }),
            Order::Forget { engine } => {
                drop(engine);
                None
            }
            Order::Drop { from } => {
                if self.coming(from).is_some() {
                    self.abandon(from.site);
                }
                None
            }
        }
    }
}
