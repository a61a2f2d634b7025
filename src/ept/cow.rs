//! The short ways for writes that take a copy of a page, or the page itself, below tables that are there and private.
//!
//! Each way is a function of its own that does all by itself: what they have in common would have to wait in memory.

use super::entry::{Origin, Quick, decode, quick};
use super::region_map::Untouched;
use super::violation::{PLAIN_WRITE, WRITE};
use super::{Fill, Space};
use crate::addr::{Address, Gpa, Hpa, PAGE_SIZE};
use crate::frames::{OneOfMany, PhysMem};
use crate::paging::{Content, Decoded, Entry, EptEntry, open_slot};

impl<M: PhysMem> Space<'_, M> {
    /// Makes the page at `gpa` this space's own and writable, if a violation with this exit qualification was for a write
    /// and the region allows that. Else, or where frames are out, it changes nothing.
    #[inline(never)]
    pub(super) fn make_private(&mut self, qualification: u64, gpa: Gpa) -> Option<Fill> {
        if qualification & PLAIN_WRITE != WRITE {
            None
        } else if self.regions.is_writable(gpa) {
            self.make_known_private(gpa)
        } else {
            self.find_and_make_private(gpa)
        }
    }

    #[inline(never)]
    fn find_and_make_private(&mut self, gpa: Gpa) -> Option<Fill> {
        let found = self.regions.find_writable(gpa);
        found.then(|| self.make_known_private(gpa)).flatten()
    }

    #[inline(always)]
    fn make_known_private(&mut self, gpa: Gpa) -> Option<Fill> {
        let near = self.tree.recent_table(gpa);
        let tables = self.tree.page_tables(self.spaces.frames);
        let (table, entry) = match near {
            Some(table) => (table, tables.entry_for(gpa, table)),
            None => {
                let slot = open_slot(&tables, gpa)?;
                (slot.table, slot.entry)
            }
        };
        match quick(entry) {
            Quick::OwnFrame => self.copy_or_take_over(gpa, table, entry),
            Quick::NotOwnFrame | Quick::Empty => {
                match self.regions.writable().source(gpa.align_down(PAGE_SIZE)) {
                    Untouched::Zeroes => self.give_zeroes(gpa, table, entry),
                    Untouched::HostPage(from) => self.copy_host_page(gpa, table, entry, from),
                    Untouched::Part => None,
                }
            }
            Quick::Other => None,
        }
    }

    /// The page has a frame that was filled or copied before.
    #[inline(never)]
    fn copy_or_take_over(&mut self, gpa: Gpa, table: Hpa, entry: EptEntry) -> Option<Fill> {
        let frames = self.spaces.frames;
        let Some(old) = frames.one_of_many(entry.frame()) else {
            return self.take_over(gpa, table, entry);
        };
        let frame = frames.copy_of(&old).ok()?;
        let attr = Origin::Copied.mark(self.regions.writable().written);
        let mut tables = self.tree.page_tables(frames);
        tables.put_page(gpa, table, frame.into_raw(), attr);
        if !old.leave() {
            tables.retire(entry.frame());
        }
        self.faults.copied += 1;
        self.tree.set_recent(frames, gpa, Some(table));
        self.tree.close(frames, true);
        Some(Fill::Copied)
    }

    /// If the page's frame is nobody else's, permission is added, which owes nothing.
    #[inline(never)]
    fn take_over(&mut self, gpa: Gpa, table: Hpa, entry: EptEntry) -> Option<Fill> {
        let frames = self.spaces.frames;
        if frames.count(entry.frame()) != 1 {
            return None;
        }
        let Decoded::Content(Content::Page { attr: old, .. }) = decode(1, entry) else {
            return None;
        };
        let written = self.regions.writable().written;
        // What was written before it was protected is still to be told as dirty.
        let attr = Origin::of(old)
            .mark(written)
            .with_dirty(written.dirty() || old.dirty());
        let mut tables = self.tree.page_tables(frames);
        tables.put_page(gpa, table, entry.frame(), attr);
        self.faults.taken_over += 1;
        self.tree.set_recent(frames, gpa, Some(table));
        Some(Fill::TakenOver)
    }

    /// The page is untouched, or has the frame of zeroes.
    #[inline(never)]
    fn give_zeroes(&mut self, gpa: Gpa, table: Hpa, entry: EptEntry) -> Option<Fill> {
        let frames = self.spaces.frames;
        let frame = frames.alloc_zeroed().ok()?;
        let attr = Origin::Filled.mark(self.regions.writable().written);
        let mut tables = self.tree.page_tables(frames);
        tables.put_page(gpa, table, frame.into_raw(), attr);
        let replaced = entry != EptEntry::EMPTY;
        if replaced {
            let zero = frames.one_of_many(entry.frame());
            if !zero.is_some_and(OneOfMany::leave) {
                tables.retire(entry.frame());
            }
        }
        self.faults.filled += 1;
        self.tree.set_recent(frames, gpa, Some(table));
        self.tree.close(frames, replaced);
        Some(Fill::Zeroed)
    }

    /// The page is untouched, or is the host's bytes themselves.
    #[inline(never)]
    fn copy_host_page(&mut self, gpa: Gpa, table: Hpa, entry: EptEntry, from: Hpa) -> Option<Fill> {
        let frames = self.spaces.frames;
        // SAFETY: these are bytes that `HostBytes::new` was promised to stay and to be reachable.
        let frame = unsafe { frames.alloc_host_copy(from) }.ok()?;
        let attr = Origin::Copied.mark(self.regions.writable().written);
        let mut tables = self.tree.page_tables(frames);
        tables.put_page(gpa, table, frame.into_raw(), attr);
        self.faults.copied += 1;
        self.tree.set_recent(frames, gpa, Some(table));
        self.tree.close(frames, entry != EptEntry::EMPTY);
        Some(Fill::Copied)
    }
}
