//! The short way for writes that take a copy of a page, or the page itself, below tables that are there and private.

use super::entry::{Origin, decode};
use super::fill::{open_slot_near, put_open};
use super::provide::Source;
use super::violation::{PLAIN_WRITE, WRITE};
use super::{Fill, Space};
use crate::addr::{Address, Gpa, PAGE_SIZE};
use crate::frames::PhysMem;
use crate::paging::{Content, Decoded, Write};

impl<M: PhysMem> Space<'_, M> {
    /// Makes the page at `gpa` this space's own and writable, if a violation with this exit qualification was for a write
    /// and the region allows that. Else, or where frames are out, it changes nothing.
    #[inline(never)]
    pub(super) fn make_private(&mut self, qualification: u64, gpa: Gpa) -> Option<Fill> {
        if qualification & PLAIN_WRITE != WRITE {
            return None;
        }
        let known = self.regions.find_often(gpa)?;
        let region = &known.region;
        if !region.is_writable() || !region.kind.is_memory() {
            return None;
        }
        let frames = self.spaces.frames;
        let near = self.tree.recent_table(gpa);
        let mut tables = self.tree.tables(frames);
        let slot = open_slot_near(&tables, gpa, near)?;
        // What stands there and goes.
        let old = match decode(1, slot.entry) {
            Decoded::Content(Content::Unmapped) => None,
            Decoded::Content(Content::Page { phys, attr }) if attr.write() != Write::Allowed => {
                Some((phys, Origin::of(attr)))
            }
            _ => return None,
        };
        let (frame, origin) = match old {
            Some((phys, origin @ (Origin::Filled | Origin::Copied))) => {
                if frames.count(phys) == 1 {
                    let attr = origin.mark(known.written());
                    slot.set_page(&mut tables, phys, attr)?;
                    self.faults.taken_over += 1;
                    self.tree.set_recent(gpa, Some(slot.table));
                    return Some(Fill::TakenOver);
                }
                (frames.alloc_copy(phys).ok()?, Origin::Copied)
            }
            _ => {
                let source = Source::of(region, gpa.align_down(PAGE_SIZE)).ok()?;
                source.private(region, frames).ok()?
            }
        };
        put_open(&mut tables, slot, frame, origin.mark(known.written()))?;
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
        self.tree.set_recent(gpa, Some(slot.table));
        self.tree.close(frames, old.is_some());
        Some(fill)
    }
}
