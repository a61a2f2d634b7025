//! The pages that the forks of a template write: a first fork shows them, later forks are given them at once.

use crate::ept::hw::violation::{Access, Violation};
use crate::ept::spaces::edit::EditError;
use crate::ept::spaces::space::Space;
use crate::ept::tables::log::Log;
use crate::ept::templates::error::ResetError;
use crate::ept::templates::template::FrozenSpace;
use crate::frames::PhysMem;
use core::sync::atomic::Ordering;

impl<'s, M: PhysMem> FrozenSpace<'s, M> {
    /// Remembers which pages `fork`, one of this template's, has made its own; what was remembered before is forgotten.
    /// Returns how many. On an error nothing has changed.
    ///
    /// # Errors
    /// It is no fork of this template or has lost count of its pages, or there is no frame.
    pub fn remember_working_set(&mut self, fork: &Space<'s, M>) -> Result<u64, ResetError> {
        self.check(fork)?;
        if !fork.tree.log.is_on() {
            return Err(ResetError::Unknown);
        }
        let frames = self.space.spaces.frames;
        let mut set = Log::default();
        for record in fork.tree.log.records(frames) {
            if let Err(error) = set.push(frames, record) {
                set.clear(frames);
                return Err(ResetError::Frames(error));
            }
        }
        let mut old = core::mem::replace(&mut self.space.tree.log, set);
        old.clear(frames);
        Ok(self.working_set())
    }

    /// How many pages are remembered.
    pub fn working_set(&self) -> u64 {
        self.space.tree.log.len()
    }

    /// A fork that is given the pages of the working set as its own at once, so that it writes them without a violation.
    /// Returns how many it was given: fewer where frames have run out.
    ///
    /// # Errors
    /// As of [`FrozenSpace::fork`].
    pub fn fork_prefetched(&self) -> Result<(Space<'s, M>, u64), EditError> {
        let mut fork = self.fork()?;
        let frames = self.space.spaces.frames;
        let tells = fork.tree.exact || fork.eptp().accessed_dirty();
        let away = if tells { fork.tree.marks.clear } else { 0 };
        let mut given = 0;
        for record in self.space.tree.log.records(frames) {
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
        Ok((fork, given))
    }
}
