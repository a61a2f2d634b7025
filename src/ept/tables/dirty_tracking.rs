//! How writes are noted in the leaves of a tree, for [`Space::harvest_dirty`](crate::ept::Space::harvest_dirty).
//!
//! Two bits of a leaf tell, [`DIRTY`](Layout::DIRTY) and [`HARVESTED`](crate::ept::tables::entry::Marks::HARVESTED):
//!
//! | the page of this leaf | dirty | harvested | by |
//! |---|---|---|---|
//! | is clean: as its template has it, or not written | 0 | 0 | a fork, a reset |
//! | was written | 1 | any | the CPU where it sets the bit, else whoever grants write |
//! | was written, and that was told | 0 | 1 | a harvest, which withdraws write too where the CPU does not set the bit |
//!
//! A harvest tells what is dirty; a warm reset copies back what has either bit.

use crate::addr::Hpa;
use crate::ept::hw::capability::Features;
use crate::ept::tables::dirty_log::DirtyLog;
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::{Layout, Nested};

/// How writes are noted in the leaves of one tree.
#[derive(Debug)]
pub(in crate::ept) struct DirtyTracking {
    /// What a leaf loses whose page is to count as clean.
    pub clear: u64,
    /// Whether a harvest tells nothing that was not written: see [`Space::track_dirty`](crate::ept::Space::track_dirty).
    pub every_write: bool,
    /// The pages whose leaves may be dirty, where somebody keeps account of them.
    pub log: Option<DirtyLog>,
}

impl DirtyTracking {
    /// Nothing is dirty, and nobody keeps a log.
    pub const fn new<F: Nested>(features: Features) -> Self {
        Self {
            clear: if features.accessed_dirty {
                F::Layout::DIRTY
            } else {
                F::Layout::DIRTY | F::Layout::WRITE
            },
            every_write: false,
            log: None,
        }
    }

    /// Whether the CPU sets the bit; else whoever grants write does.
    #[inline(always)]
    pub const fn is_set_by_cpu<F: Nested>(&self) -> bool {
        self.clear & F::Layout::WRITE == 0
    }

    /// Notes that leaves may be dirty which the log does not have.
    #[cold]
    pub fn lose_log<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        if let Some(log) = &mut self.log {
            log.lose(frames);
        }
    }

    /// Notes that no leaf is dirty any more.
    pub fn clear_log<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        if let Some(log) = &mut self.log {
            log.clear(frames);
        }
    }

    /// The frames of the log.
    pub fn frames<'a, M: PhysMem>(&'a self, mem: &'a M) -> impl Iterator<Item = Hpa> + 'a {
        self.log.iter().flat_map(|log| log.frames(mem))
    }

    /// Ends the log, and gives its frames back.
    pub fn release<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        if let Some(log) = self.log.take() {
            log.release(frames);
        }
    }
}
