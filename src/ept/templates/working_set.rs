//! The pages that the forks of a template write: a first fork shows them, later forks are given them at once.

use crate::ept::hw::violation::{Access, Violation};
use crate::ept::spaces::edit::EditError;
use crate::ept::spaces::space::Space;
use crate::ept::tables::log::Log;
use crate::ept::templates::error::ResetError;
use crate::ept::templates::template::FrozenSpace;
use crate::frames::{FrameList, PhysMem};
use crate::paging::{Layout, Nested};
use core::sync::atomic::Ordering;

impl<'s, M: PhysMem, F: Nested> FrozenSpace<'s, M, F> {
    /// Remembers which pages `fork`, one of this template's, has made its own; what was remembered before is forgotten.
    /// Returns how many. On an error nothing has changed.
    ///
    /// # Errors
    /// It is no fork of this template or has lost count of its pages, or there is no frame.
    pub fn remember_working_set(&mut self, fork: &Space<'s, M, F>) -> Result<u64, ResetError> {
        self.check(fork)?;
        if !fork.tree.log.is_on() {
            return Err(ResetError::Unknown);
        }
        let frames = self.space.frames;
        let mut set = FrameList::new();
        for record in fork.tree.log.records().iter(frames.mem()) {
            if let Err(error) = set.push(frames, record) {
                set.clear(frames);
                return Err(ResetError::Frames(error));
            }
        }
        self.space.tree.log.clear(frames);
        self.space.tree.log = Log::of(set);
        Ok(self.working_set())
    }

    /// How many pages are remembered.
    pub fn working_set(&self) -> u64 {
        self.space.tree.log.records().len() as u64
    }

    /// A fork that is given the pages of the working set as its own at once, so that it writes them without a violation.
    /// Returns how many it was given: fewer where frames have run out.
    ///
    /// # Errors
    /// As of [`FrozenSpace::fork`].
    pub fn fork_prefetched(&self) -> Result<(Space<'s, M, F>, u64), EditError> {
        let mut fork = self.fork()?;
        let frames = self.space.frames;
        let exact = fork.tree.dirty.every_write || fork.tree.dirty.is_set_by_cpu::<F>();
        let away = if exact { fork.tree.dirty.clear } else { 0 };
        let mut given = 0;
        for record in self.space.tree.log.records().iter(frames.mem()) {
            let page = record.page();
            let write = Violation::new(page, Access::WRITE);
            match fork.regions.look_up(page) {
                Some(backing) if backing.allows(&write) => {}
                _ => continue,
            }
            if fork.provide_to_host(write).is_err() {
                break;
            }
            // It holds what the template holds. No CPU has seen it yet.
            if fork.tree.find_slot(frames, page).is_some() {
                let slot = fork.tree.slot(frames, page);
                slot.word().fetch_and(!away, Ordering::AcqRel);
            }
            given += 1;
        }
        if away & F::Layout::WRITE != 0 {
            // The write that takes a page over notes it.
            fork.tree.log.clear(frames);
        }
        Ok((fork, given))
    }
}
