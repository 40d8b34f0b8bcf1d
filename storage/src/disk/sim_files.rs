//! Whole files on the simulated disk, with what a power cut does to them:
//! unsynced content is kept in part or as zeros, unsynced names and removals up
//! to a random one. Operations can be made to fail from the n-th on, which is how
//! a process dies between any two of them.

use std::collections::BTreeMap;

use super::{DiskError, DiskOp};

#[derive(Debug, Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    synced: usize,
}

#[derive(Debug, Clone)]
enum NameOp {
    Link(String, u64),
    Rename(String, String),
    Remove(String),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SimFiles {
    contents: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<NameOp>,
    made: u64,
    /// Operations that still succeed.
    pub(super) left: Option<u64>,
    /// Only one fails then.
    pub(super) once: bool,
    pub(super) done: u64,
}

fn apply(names: &mut BTreeMap<String, u64>, op: &NameOp) {
    match op {
        NameOp::Link(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameOp::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        NameOp::Remove(name) => {
            names.remove(name);
        }
    }
}

impl SimFiles {
    /// Counts one changing operation; fails from the set one on.
    pub(super) fn step(&mut self) -> Result<(), DiskError> {
        self.done += 1;
        match &mut self.left {
            Some(0) => {
                if std::mem::take(&mut self.once) {
                    self.left = None;
                }
                Err(DiskError { op: DiskOp::Write, errno: Some(5) })
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn name(&mut self, op: NameOp) {
        apply(&mut self.names, &op);
        self.pending.push(op);
    }

    pub(super) fn list(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// Returns the number under which the file is written.
    pub(super) fn create(&mut self, name: &str) -> Result<u64, DiskError> {
        self.step()?;
        self.made += 1;
        self.contents.insert(self.made, Content::default());
        self.name(NameOp::Link(name.to_owned(), self.made));
        Ok(self.made)
    }

    pub(super) fn append(&mut self, file: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.step()?;
        if let Some(content) = self.contents.get_mut(&file) {
            content.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    pub(super) fn sync(&mut self, file: u64) -> Result<(), DiskError> {
        self.step()?;
        if let Some(content) = self.contents.get_mut(&file) {
            content.synced = content.bytes.len();
        }
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.step()?;
        self.name(NameOp::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.step()?;
        self.name(NameOp::Remove(name.to_owned()));
        Ok(())
    }

    pub(super) fn sync_dir(&mut self) -> Result<(), DiskError> {
        self.step()?;
        self.durable = self.names.clone();
        self.pending.clear();
        Ok(())
    }

    pub(super) fn read(&self, name: &str) -> Option<&[u8]> {
        let id = self.names.get(name)?;
        self.contents.get(id).map(|content| &content.bytes[..])
    }

    /// The content behind a name, to spoil it.
    pub(super) fn edit(&mut self, name: &str) -> Option<&mut Vec<u8>> {
        let id = self.names.get(name)?;
        self.contents.get_mut(id).map(|content| &mut content.bytes)
    }

    /// Power loss; `toss` gives random bits.
    pub(super) fn crash(&mut self, mut toss: impl FnMut() -> u64) {
        let survive = (toss() % (self.pending.len() as u64 + 1)) as usize;
        let mut names = self.durable.clone();
        for op in self.pending.drain(..).take(survive) {
            apply(&mut names, &op);
        }
        for content in self.contents.values_mut() {
            let unsynced = content.bytes.len() - content.synced;
            let kept = content.synced + (toss() % (unsynced as u64 + 1)) as usize;
            if toss() & 1 == 0 {
                content.bytes.truncate(kept);
            } else {
                content.bytes[kept..].fill(0);
            }
            content.synced = content.bytes.len();
        }
        self.durable = names.clone();
        self.names = names;
        (self.left, self.once) = (None, false);
    }
}
