//! The slot for a page where none is there that may be written in place: tables are missing, or shared with others, or a large
//! page is above.

use crate::addr::{AddrRange, Address, Gpa, PAGE_SIZE, PageSize};
use crate::ept::error::Reason;
use crate::ept::hw::violation::Violation;
use crate::ept::regions::backing::{Backing, Source};
use crate::ept::regions::region::RegionKind;
use crate::ept::resolve::fetch::split_for_fetch;
use crate::ept::resolve::large::{fill_large, reserve, write_to_large};
use crate::ept::resolve::outcome::Fill;
use crate::ept::spaces::space::Space;
use crate::ept::tables::ops::Tables;
use crate::ept::tables::policy::PagePolicy;
use crate::frames::{Frame, PhysMem};
use crate::paging::Nested;
use crate::paging::{Content, Cursor};

/// What the tables are made ready for.
struct Opening<F: Nested> {
    violation: Violation,
    page: Gpa,
    backing: Backing<F>,
    /// The region, if large pages may be given in it, and how large.
    large: Option<(AddrRange<Gpa>, PagePolicy)>,
}

impl<M: PhysMem, F: Nested> Space<'_, M, F> {
    /// Makes the slot that the violation is about one that may be written in place, and returns `None`; unless what is above it
    /// decides already what is done.
    #[cold]
    #[inline(never)]
    pub(in crate::ept) fn open_slot(
        &mut self,
        violation: Violation,
    ) -> Result<Option<Fill>, Reason> {
        let (gpa, frames) = (violation.gpa(), self.frames);
        if self.tree.find_slot(frames, gpa).is_some() {
            return Ok(None);
        }
        let region = self.regions.find(gpa);
        let region = region.filter(|region| region.kind == RegionKind::Ram);
        let opening = Opening {
            violation,
            page: gpa.align_down(PAGE_SIZE),
            backing: *self.regions.backing(),
            large: match self.tree.policy.pages {
                PagePolicy::Small => None,
                policy => region.map(|region| (region.range, policy)),
            },
        };
        let mut spare = None;
        let mut tables = self.tree.page_tables(frames);
        let done = opening.make_ready(&mut tables, &mut spare);
        drop(tables);
        if let Some(spare) = spare {
            frames.release_unused(spare);
        }
        // Of a large page that became this space's own nothing is logged, nor where something went wrong half-way.
        let unlogged = match done {
            Ok(Some(Fill::Zeroed | Fill::TakenOver)) => violation.is_write(),
            _ => false,
        };
        if unlogged {
            self.tree.log.lose();
        }
        let done = done?;
        if let Some(fill) = done {
            self.faults.count(fill);
        }
        Ok(done)
    }
}

impl<F: Nested> Opening<F> {
    /// Makes or copies the lowest table and those above it. Or a large page is there, or is to be, and that was done.
    fn make_ready<M: PhysMem>(
        &self,
        tables: &mut Tables<'_, M, F>,
        spare: &mut Option<Frame>,
    ) -> Result<Option<Fill>, Reason> {
        let (page, write) = (self.page, self.violation.is_write());
        let frames = tables.frames;
        let mut cursor = Cursor::new(&mut *tables, page, PageSize::Size4K)?;
        let is_page = matches!(cursor.content(), Content::Page { .. });
        if is_page && !write || cursor.level() > 1 && (is_page || self.large.is_some()) {
            if let Some(fill) = self.look_above(tables, spare)? {
                return Ok(Some(fill));
            }
            cursor = Cursor::new(tables, page, PageSize::Size4K)?;
        }
        if write || matches!(self.backing.source(), Source::HostPart(..)) {
            reserve(frames, spare)?;
        }
        cursor.prepare()?;
        Ok(None)
    }

    /// Does what has to be done where a large page is, or is to be. `None`: the rest is for the slot.
    fn look_above<M: PhysMem>(
        &self,
        tables: &mut Tables<'_, M, F>,
        spare: &mut Option<Frame>,
    ) -> Result<Option<Fill>, Reason> {
        let (page, written) = (self.page, self.backing.written);
        let access = self.violation.access();
        let mut cursor = Cursor::new(&mut *tables, page, PageSize::Size4K)?;
        let (level, size) = (cursor.level(), cursor.size());
        match (cursor.content(), size) {
            (Content::Page { phys, attr }, _) if !access.write => {
                // No table above withholds reading or fetching.
                if attr.read() && (!access.fetch || attr.execute()) {
                    return Ok(Some(Fill::Present));
                }
                let executable = cursor.ops().for_level(level, self.backing.read).execute();
                if !executable {
                    return split_for_fetch(tables, page).map(Some);
                }
                if level == 1 {
                    return Ok(None);
                }
                cursor.prepare()?;
                let attr = F::with_fetch(attr, true);
                cursor.set(Content::Page { phys, attr })?;
                Ok(Some(Fill::TakenOver))
            }
            (Content::Page { .. }, Some(size)) if level > 1 => {
                write_to_large(tables, page, size, written, spare)
            }
            (Content::Unmapped, _) if level > 1 && access.write => match self.large {
                Some((range, policy)) => fill_large(tables, range, page, written, policy),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }
}
