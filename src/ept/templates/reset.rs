//! Bringing a fork back to its template.
//!
//! The warm way keeps the fork's own pages mapped and copies back those that were written: the same work done again takes
//! no violation. It knows them by the [log](crate::ept::tables::log) and by the dirty marks of their leaves, which it takes away; a CPU
//! without such marks has all of them copied back. Pages that were not written for a while are given back.
//!
//! The cold way drops all that the fork alone holds.

use crate::addr::PAGE_SIZE;
use crate::ept::spaces::space::Space;
use crate::ept::templates::error::ResetError;
use crate::ept::templates::template::FrozenSpace;
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::paging::TableOps;

/// How a fork is brought back to its template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    /// Its own pages stay mapped, and what it wrote is copied back.
    Warm,
    /// All that it alone holds goes.
    Cold,
    /// Warm, and pages go that were not written for [`IDLE`] resets.
    #[default]
    Auto,
}

/// After how many resets [`Reset::Auto`] gives back a page that was not written.
pub const IDLE: u64 = 16;

/// What a reset did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Whether all that the fork held was dropped.
    pub cold: bool,
    /// Pages that were copied back.
    pub copied: u64,
    /// Pages that were given back.
    pub dropped: u64,
    /// Pages of its own that the fork still has.
    pub kept: u64,
    /// Frames, tables included, that go back to the allocator.
    pub frames: u64,
}

impl Restored {
    /// Bytes moved.
    pub const fn bytes(&self) -> u64 {
        self.copied * PAGE_SIZE
    }
}

impl<'s, M: PhysMem, F: Nested> Space<'s, M, F> {
    /// Brings the space back to what `template`, of which it is a fork, holds. A warm reset that cannot be is a cold one.
    ///
    /// # Errors
    /// It is no fork of this template, or there is no frame. The space is as it was.
    pub fn reset(
        &mut self,
        template: &FrozenSpace<'s, M, F>,
        how: Reset,
    ) -> Result<Restored, ResetError> {
        template.check(self)?;
        let warm = self.tree.log.is_on() && self.regions.is_same(&template.as_space().regions);
        let idle = match how {
            Reset::Warm if warm => u64::MAX,
            Reset::Auto if warm => IDLE,
            _ => return self.reset_cold(template),
        };
        match self.reset_warm(template, idle) {
            Some(restored) => Ok(restored),
            None => self.reset_cold(template),
        }
    }

    fn reset_cold(&mut self, template: &FrozenSpace<'s, M, F>) -> Result<Restored, ResetError> {
        let frames = self.frames;
        let regions = template
            .as_space()
            .regions
            .share()
            .map_err(ResetError::Frames)?;
        let before = self.tree.debt.retired.frames();
        let dropped = self.tree.log.records().len() as u64;
        let mut tables = self.tree.tables(frames);
        // All references are taken before one is given up.
        let of_template = &template.as_space().tree;
        tables
            .reference_top(of_template)
            .map_err(ResetError::Frames)?;
        tables.note_replaced();
        // What was touched first in the fork may have filled entries that the template does not use.
        let top = of_template.view(frames);
        for index in 0..8 * tables.tree.reach.eights(top.level()) {
            tables.replace_top(index, top.entry(index));
        }
        let freed = tables.tree.debt.retired.frames() - before;
        drop(tables);
        self.tree.log.clear(frames);
        self.tree.stop_zeroing(frames);
        self.regions = regions;
        self.regions.set_marked(!self.logs_dirty());
        Ok(Restored {
            cold: true,
            dropped,
            frames: freed,
            ..Restored::default()
        })
    }
}
