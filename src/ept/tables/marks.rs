//! How writes are noted in the leaves of a tree, for [`Space::harvest_dirty`](crate::ept::Space::harvest_dirty).

use crate::addr::Hpa;
use crate::ept::hw::capability::EptCapability;
use crate::ept::tables::dirty_log::DirtyLog;
use crate::ept::tables::table::{DIRTY, WRITE};
use crate::frames::{FrameAllocator, PhysMem};

/// How writes are noted in the leaves of one tree.
#[derive(Debug)]
pub(in crate::ept) struct Marks {
    /// What a leaf loses whose page is to count as clean.
    pub clear: u64,
    /// The pages whose leaves may be marked, where somebody keeps account of them.
    pub log: Option<DirtyLog>,
    /// Up to which page it has the marked ones, as far as it lacks none that was noted: all of them where there is none.
    pub known: Option<u64>,
}

impl Marks {
    /// Nothing is marked, and nobody keeps a log.
    pub const fn new(capability: &EptCapability) -> Self {
        Self {
            clear: if capability.accessed_dirty {
                DIRTY
            } else {
                DIRTY | WRITE
            },
            log: None,
            known: Some(0),
        }
    }

    /// Where the log has to be completed, if it has.
    pub fn incomplete_from(&mut self) -> Option<u64> {
        let log = self.log.as_mut()?;
        if !log.is_complete() {
            log.clear();
            self.known = Some(0);
        }
        self.known
    }

    /// Notes that leaves may be marked which the log does not have.
    #[cold]
    pub fn unlogged(&mut self) {
        if let Some(log) = &mut self.log {
            log.mark_incomplete();
        }
    }

    /// Notes that no leaf is marked any more.
    pub fn forget(&mut self) {
        if let Some(log) = &mut self.log {
            log.clear();
            self.known = None;
        }
    }

    /// The frames of the log.
    pub fn frames<'a, M: PhysMem>(&'a self, mem: &'a M) -> impl Iterator<Item = Hpa> + 'a {
        self.log.iter().flat_map(|log| log.frames(mem))
    }

    /// Gives the frames of the log back.
    pub fn release<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        if let Some(log) = self.log.take() {
            log.release(frames);
        }
    }
}
