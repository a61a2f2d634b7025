//! The short way for the frequent violation: untouched RAM below tables that are there and private.

use super::Space;
use super::violation::{NOT_PLAIN, WRITE};
use crate::addr::Gpa;
use crate::frames::PhysMem;
use crate::paging::{Entry, EptEntry, open_slot, open_slot_in};

impl<M: PhysMem> Space<'_, M> {
    /// Makes the access possible that a violation with this exit qualification was for, if it is a read or write of RAM in
    /// the region of the last violation, whose page is not mapped and whose tables are there. Else it changes nothing and
    /// yields `false`: [`Space::resolve`] knows what to do.
    ///
    /// Nothing is replaced and no table moves, so no invalidation is owed.
    #[inline(always)]
    pub fn fill(&mut self, qualification: u64, gpa: Gpa) -> bool {
        let ram = self.regions.ram();
        if qualification & NOT_PLAIN != 0 || !ram.contains(gpa) {
            return false;
        }
        let frames = self.spaces.frames;
        let near = self.tree.recent_table(gpa);
        let mut tables = self.tree.tables(frames);
        let found = match near {
            Some(table) => open_slot_in(&tables, gpa, table),
            None => open_slot(&tables, gpa),
        };
        let Some(slot) = found.filter(|slot| slot.entry == EptEntry::EMPTY) else {
            return false;
        };
        let (frame, attr, count) = if qualification & WRITE != 0 {
            (frames.alloc_zeroed(), ram.written, &mut self.faults.filled)
        } else {
            (
                frames.share_entry(self.spaces.zero),
                ram.read,
                &mut self.faults.zero_shared,
            )
        };
        let Ok(frame) = frame else {
            return false;
        };
        let set = slot.set_page(&mut tables, frame.address(), attr);
        if set.is_none() {
            // There is always memory behind a table of ours.
            let _ = frames.release(frame);
            return false;
        }
        // The slot owns the reference now.
        frame.into_raw();
        *count += 1;
        self.tree.set_recent(gpa, Some(slot.table));
        true
    }
}
