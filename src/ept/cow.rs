//! The short way for writes that take a copy of a page, or the page itself, below tables that are there and private.

use super::entry::{Origin, read_only_page};
use super::fill::{open_slot_near, put_open};
use super::violation::{PLAIN_WRITE, WRITE};
use super::{Fill, Space};
use crate::addr::{Address, Gpa, PAGE_SIZE};
use crate::frames::PhysMem;
use crate::paging::{Entry, EptEntry};

impl<M: PhysMem> Space<'_, M> {
    /// Makes the page at `gpa` this space's own and writable, if a violation with this exit qualification was for a write
    /// and the region allows that. Else, or where frames are out, it changes nothing.
    #[inline(never)]
    pub(super) fn make_private(&mut self, qualification: u64, gpa: Gpa) -> Option<Fill> {
        if qualification & PLAIN_WRITE != WRITE {
            return None;
        }
        let frames = self.spaces.frames;
        let region = self.regions.writable(gpa)?;
        let near = self.tree.recent_table(gpa);
        let mut tables = self.tree.page_tables(frames);
        let slot = open_slot_near(&tables, gpa, near)?;
        // What stands there and goes.
        let old = read_only_page(slot.entry);
        let (frame, origin) = match old {
            Some((phys, origin @ (Origin::Filled | Origin::Copied))) => {
                match frames.copy_if_shared(phys).ok()? {
                    Some(copy) => (copy, Origin::Copied),
                    None => {
                        slot.set_page(&mut tables, phys, origin.mark(region.written))?;
                        self.faults.taken_over += 1;
                        self.tree.set_recent(frames, gpa, Some(slot.table));
                        return Some(Fill::TakenOver);
                    }
                }
            }
            None if slot.entry != EptEntry::EMPTY => return None,
            _ => match region.host_bytes(gpa.align_down(PAGE_SIZE)) {
                None => (frames.alloc_zeroed().ok()?, Origin::Filled),
                // SAFETY: these are bytes that `HostBytes::new` was promised to stay and to be reachable.
                Some((from, len)) => (
                    unsafe { frames.alloc_host_copy(from, len) }.ok()?,
                    Origin::Copied,
                ),
            },
        };
        put_open(&mut tables, slot, frame, origin.mark(region.written))?;
        if let Some((phys, origin)) = old {
            tables.drop_leaf(phys, origin);
        }
        let fill = if origin == Origin::Filled {
            self.faults.filled += 1;
            Fill::Zeroed
        } else {
            self.faults.copied += 1;
            Fill::Copied
        };
        self.tree.set_recent(frames, gpa, Some(slot.table));
        self.tree.close(frames, old.is_some());
        Some(fill)
    }
}
