//! The tables of one space with what is known of the last change to them.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::hw::capability::{EptCapability, Eptp};
use crate::ept::hw::debt::Debt;
use crate::ept::tables::log::Log;
use crate::ept::tables::marks::Marks;
use crate::ept::tables::ops::{Tables, View};
use crate::ept::tables::policy::{AROUND, Around, PagePolicy};
use crate::ept::tables::reach::Reach;
use crate::ept::tables::word::{DIRTY, ENTRIES, TOLD, WRITE, word};
use crate::ept::tables::zeroing::Zeroing;
use crate::frames::{FrameAllocator, FrameError, PhysMem};
use crate::paging::{Entry, Ept, EptAttr, EptEntry, Format, open_table};
use core::sync::atomic::{AtomicU64, Ordering};

/// The tables of one space, and what is owed for changes to them.
#[derive(Debug)]
pub(in crate::ept) struct Tree {
    root: Hpa,
    /// The pointer to it: the top table stays where it is.
    pub eptp: Eptp,
    /// How much of the tables can be in use.
    pub reach: Reach,
    pub debt: Debt,
    /// How writes are noted in the leaves.
    pub marks: Marks,
    /// Whether no page may be marked that was not written; where the CPU marks them, none is.
    pub exact: bool,
    /// Of what size the pages are that a first write is given.
    pub pages: PagePolicy,
    /// Whether a large page may be executed.
    execute_large: bool,
    /// How many pages one violation may map.
    pub around: Around,
    /// Whether what the host writes is given small pages.
    pub host_writes_small: bool,
    /// The large page that is being zeroed, before it is mapped.
    pub zeroing: Option<Zeroing>,
    /// The number of the last page that was put, or [`NOWHERE`], and the table that it is in.
    recent: (u64, Hpa),
    /// The pages that became a fork's own.
    pub log: Log,
}

/// In place of the number of a page: no page has it, nor follows it.
const NOWHERE: u64 = u64::MAX - 1;

impl Tree {
    /// A tree that maps nothing.
    pub fn new<M: PhysMem>(
        frames: &FrameAllocator<M>,
        capability: &EptCapability,
    ) -> Result<Self, FrameError> {
        let root = frames.alloc_zeroed()?.into_raw();
        Ok(Self {
            root,
            eptp: Eptp::new(root, capability, true),
            reach: Reach::default(),
            debt: Debt::default(),
            marks: Marks::new(capability),
            exact: false,
            pages: PagePolicy::Small,
            execute_large: capability.execute_large,
            around: Around::new(AROUND),
            host_writes_small: false,
            zeroing: None,
            recent: (NOWHERE, Hpa::new(0)),
            log: Log::default(),
        })
    }

    /// The top table.
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// The tables, for reading.
    pub fn view<'a, M: PhysMem>(&'a self, frames: &'a FrameAllocator<M>) -> View<'a, M> {
        // SAFETY: as in `tables`.
        unsafe { View::new(frames.mem(), self.root) }
    }

    /// The tables, for an edit of any kind. `frames` is where they came from. What the edit means for CPUs is told by
    /// [`Tree::close`].
    #[inline(always)]
    pub fn tables<'a, M: PhysMem>(&'a mut self, frames: &'a FrameAllocator<M>) -> Tables<'a, M> {
        self.log.lose();
        self.page_tables(frames)
    }

    /// The same, for an edit that makes pages accessible and tells [`Tree::set_recent`] of each that becomes this space's
    /// own.
    #[inline(always)]
    pub fn page_tables<'a, M: PhysMem>(
        &'a mut self,
        frames: &'a FrameAllocator<M>,
    ) -> Tables<'a, M> {
        self.recent.0 = NOWHERE;
        let (retired, marks) = (&mut self.debt.retired, &mut self.marks);
        let (execute_large, zeroing) = (self.execute_large, &mut self.zeroing);
        // SAFETY: the root is this tree's own, and all tables below it were made by edits of this kind, each entry
        // holding the reference to its table.
        unsafe {
            Tables::new(
                frames,
                self.root,
                self.reach,
                retired,
                marks,
                execute_large,
                zeroing,
            )
        }
    }

    /// The lowest table for `page`, if a page was put into it by the last edit: there was no other since, so that it and all
    /// above it are still this tree's own, and nobody else has changed them.
    #[inline(always)]
    pub fn recent_table(&self, page: Gpa) -> Option<Hpa> {
        let (number, table) = self.recent;
        ((number ^ (page.as_u64() / PAGE_SIZE)) / ENTRIES as u64 == 0).then_some(table)
    }

    /// The leaf of `page`, if it was put by the last edit.
    pub fn recent_leaf<'a, M: PhysMem>(
        &self,
        frames: &'a FrameAllocator<M>,
        page: Gpa,
    ) -> Option<&'a AtomicU64> {
        let table = self.recent_table(page)?;
        // SAFETY: the table is this tree's own.
        Some(unsafe { word(frames.mem(), table, index_of(page)) })
    }

    /// The lowest table for `page` and its entry there, if every entry above grants write: all tables are this tree's own.
    #[inline(always)]
    pub fn lowest_entry<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        page: Gpa,
    ) -> Option<(Hpa, EptEntry)> {
        if let Some(table) = self.recent_table(page) {
            // SAFETY: the table is this tree's own.
            let word = unsafe { word(frames.mem(), table, index_of(page)) };
            return Some((table, EptEntry::from_bits(word.load(Ordering::Acquire))));
        }
        let tables = self.page_tables(frames);
        let table = open_table(&tables, page)?;
        Some((table, tables.entry(table, index_of(page))))
    }

    /// Puts a page into `table`, where [`Tree::lowest_entry`] found the entry for it. What stood there before is the caller's
    /// to invalidate, and the entry owns the caller's reference to the frame.
    #[inline(always)]
    pub fn put_page<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        page: Gpa,
        table: Hpa,
        phys: Hpa,
        attr: EptAttr,
    ) {
        self.go_on_from(page, table);
        let bits = Ept::leaf_bits(1, attr) | phys.as_u64();
        // SAFETY: the table is this tree's own, as the caller found.
        unsafe { word(frames.mem(), table, index_of(page)) }.store(bits, Ordering::Release);
    }

    /// The same for a page that is this space's own from now on and may be written.
    #[inline(always)]
    pub fn put_own_page<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        page: Gpa,
        table: Hpa,
        phys: Hpa,
        attr: EptAttr,
    ) {
        self.put_page(frames, page, table, phys, attr);
        if self.log.is_on() {
            self.log.note(frames, leaf_address(page, table), page);
        }
    }

    /// Gives back a large page that was not zeroed to its end.
    pub fn stop_zeroing<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        if let Some(begun) = self.zeroing.take() {
            let given_back = begun
                .into_frame(frames)
                .and_then(|block| frames.release(block));
            debug_assert!(given_back.is_ok(), "{given_back:?}");
        }
    }

    /// The number of the page that was put by the last edit.
    pub fn recent_page(&self) -> u64 {
        self.recent.0
    }

    /// Whether `page` follows the one that was put last.
    #[inline(always)]
    pub fn is_next(&self, page: Gpa) -> bool {
        page.as_u64() / PAGE_SIZE == self.recent.0.wrapping_add(1)
    }

    /// Notes where the last edit put a page, and logs it if it is this space's own now.
    #[inline(always)]
    pub fn set_recent<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        page: Gpa,
        lowest: Option<Hpa>,
    ) {
        if let Some(table) = lowest {
            self.go_on_from(page, table);
            if self.log.is_on() {
                self.note(frames, page, table);
            }
        }
    }

    /// Notes that pages up to `page` were put into `table` by the last edit, and that all that must be logged is.
    #[inline(always)]
    pub fn go_on_from(&mut self, page: Gpa, table: Hpa) {
        self.recent = (page.as_u64() / PAGE_SIZE, table);
    }

    /// Logs a page if its leaf in `table` was made writable just now, or the host has been given to write it. One that lost
    /// its mark, and write with it, to a harvest is logged already: else whoever harvests on and on would fill all memory.
    pub fn note<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, page: Gpa, table: Hpa) {
        // SAFETY: the table is this tree's own, as the last edit says.
        let leaf = unsafe { word(frames.mem(), table, index_of(page)) }.load(Ordering::Relaxed);
        if leaf & (WRITE | DIRTY) != 0 && leaf & TOLD == 0 {
            self.log.note(frames, leaf_address(page, table), page);
        }
    }

    /// Ends an edit: `replaced` says whether a translation was removed or replaced.
    #[inline]
    pub fn close<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, replaced: bool) {
        if replaced {
            self.debt.incur();
        }
        self.free_retired(frames);
    }

    /// Ends an edit of the one page at which the guest has just left the CPU with a violation: `replaced` says whether it was
    /// mapped before.
    #[inline(always)]
    pub fn close_at_violation<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, replaced: bool) {
        if replaced {
            self.debt.incur_at_violation();
        }
        self.free_retired(frames);
    }

    #[inline(always)]
    fn free_retired<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        if !self.debt.retired.is_empty() && !self.debt.is_owed() {
            frames.free_retired(&mut self.debt.retired);
        }
    }
}

/// Which entry of its lowest table is for a page.
#[inline(always)]
fn index_of(page: Gpa) -> usize {
    (page.as_u64() / PAGE_SIZE) as usize % ENTRIES
}

/// Where the leaf of a page is.
#[inline(always)]
fn leaf_address(page: Gpa, table: Hpa) -> Hpa {
    Hpa::new(table.as_u64() + 8 * index_of(page) as u64)
}
