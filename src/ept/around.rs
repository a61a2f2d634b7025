//! Fault-around: pages that are mapped along with the one that was touched.
//!
//! An exit costs more than mapping a page, so a guest that touches one page after the other is better served with several
//! at once; one that touches a page here and there would pay for them in memory and time. So neighbours are given to who
//! is seen to go through memory: two pages to the first violation that follows the one before, and twice as many as the
//! last time to each that goes on where those end. At most half of what a guest is given is then not what it asked for.
//! docs/memory.md has the measurements.

use super::entry::Origin;
use super::fill::put_open;
use super::provide::Source;
use super::region_map::Known;
use super::space::Tree;
use super::{Fill, Space};
use crate::addr::{Address, Gpa, Hpa, PAGE_SIZE};
use crate::frames::{FrameAllocator, PhysMem};
use crate::paging::{Entry, EptEntry, open_slot_in};

/// How many pages a violation maps at most where nothing else is said.
pub const AROUND: u64 = 16;
/// The most that can be asked for.
pub const MAX_AROUND: u64 = 64;

/// How many pages one violation may map, and how the guest has gone through its memory so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    most: u64,
    /// How many the last run of pages was meant to have.
    run: u64,
    /// The number of its last page.
    end: u64,
}

impl Around {
    pub const fn new(most: u64) -> Self {
        Self {
            most,
            run: 1,
            end: 0,
        }
    }

    /// How many pages the guest is given that has touched the page after number `last`.
    fn next_run(&mut self, last: u64) -> u64 {
        // Where a table begins, one page alone was put by the general way.
        let goes_on = last.wrapping_sub(self.end) <= 1;
        self.run = if goes_on { self.run * 2 } else { 2 }.min(self.most);
        self.run
    }
}

impl<M: PhysMem> Space<'_, M> {
    /// Has one violation map at most so many pages (1 to [`MAX_AROUND`]; [`AROUND`] where this is not called). Yields
    /// `false`, and changes nothing, where it is another number.
    pub fn set_around(&mut self, pages: u64) -> bool {
        let right = (1..=MAX_AROUND).contains(&pages);
        if right {
            self.tree.around = Around::new(pages);
        }
        right
    }

    /// The page of RAM at `gpa`, which follows the one that was put last, and pages that follow it, if it is not mapped.
    #[inline(never)]
    pub(super) fn fill_run(&mut self, qualification: u64, gpa: Gpa) -> Option<Fill> {
        let last = self.tree.recent_page();
        let Some(fill) = self.fill_one(qualification, gpa) else {
            return self.make_private(qualification, gpa);
        };
        self.fill_around(last, fill == Fill::Zeroed, gpa);
        Some(fill)
    }

    /// Maps what follows the page of RAM at `gpa`, which was just put behind page number `last`, and is not mapped.
    fn fill_around(&mut self, last: u64, write: bool, gpa: Gpa) {
        let pages = self.tree.around.next_run(last);
        let (ram, frames) = (*self.regions.ram(), self.spaces.frames);
        let page = gpa.align_down(PAGE_SIZE);
        // A page that has not been asked for is not worth the last frames.
        let wanted = pages > 1 && (!write || frames.is_plentiful());
        let Some(table) = self.tree.recent_table(page).filter(|_| wanted) else {
            return;
        };
        let attr = if !write {
            ram.read
        } else if self.spaces.capability.accessed_dirty && !self.tree.log.is_on() {
            // The CPU tells when it is written. What is logged counts as written from the start.
            ram.written.with_dirty(false)
        } else {
            ram.written
        };
        let mut next = page;
        for _ in 1..pages {
            next = Gpa::new(next.as_u64() + PAGE_SIZE);
            if next.is_aligned(TABLE_SPAN) || !ram.contains(next) {
                break;
            }
            let mut tables = self.tree.page_tables(frames);
            let Some(slot) = open_slot_in(&tables, next, table) else {
                break;
            };
            if slot.entry == EptEntry::EMPTY {
                let frame = if write {
                    frames.alloc_zeroed()
                } else {
                    frames.share_entry(self.spaces.zero)
                };
                let put = |frame| put_open(&mut tables, slot, frame, attr);
                if frame.ok().and_then(put).is_none() {
                    break;
                }
                self.faults.around += 1;
            }
            self.tree.set_recent(frames, next, Some(table));
        }
        self.tree.around.end = self.tree.recent_page();
    }
}

impl Tree {
    /// Maps what is not mapped of the host bytes next to `page`, which was just put into `table`. That takes no frame, so
    /// nobody pays for what is not asked for.
    #[inline(never)]
    pub fn map_host_around<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        known: &Known,
        page: Gpa,
        table: Hpa,
    ) {
        let most = self.around.most;
        let number = page.as_u64() / PAGE_SIZE;
        let mut tables = self.page_tables(frames);
        for near in number - number % most..number - number % most + most {
            let near = Gpa::new(near * PAGE_SIZE);
            let same_table = near.as_u64() / TABLE_SPAN == page.as_u64() / TABLE_SPAN;
            if !same_table || !known.region.range.contains(near) {
                continue;
            }
            if let Ok(Source::Host(phys, PAGE_SIZE)) = Source::of(&known.region, near)
                && let Some(slot) = open_slot_in(&tables, near, table)
                && slot.entry == EptEntry::EMPTY
            {
                // There is memory behind the table; if there were not, the page would be mapped when it is touched.
                let _ = slot.set_page(&mut tables, phys, Origin::Host.mark(known.leaf));
            }
        }
        self.set_recent(frames, page, Some(table));
    }
}

/// Bytes that one lowest table translates.
const TABLE_SPAN: u64 = 512 * PAGE_SIZE;
