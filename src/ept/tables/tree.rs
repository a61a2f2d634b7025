//! The tables of one space with what is known of the last change to them.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::hw::capability::{Eptp, Features};
use crate::ept::hw::debt::Debt;
use crate::ept::hw::violation::Violation;
use crate::ept::tables::dirty_tracking::DirtyTracking;
use crate::ept::tables::entry::{AttrOf, PteOf};
use crate::ept::tables::leaf_edit::LeafEdit;
use crate::ept::tables::log::Log;
use crate::ept::tables::policy::FillPolicy;
use crate::ept::tables::reach::Reach;
use crate::ept::tables::table::{EIGHTS, ENTRIES, Eight, Table};
use crate::ept::tables::zeroing::Zeroing;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem, Retired};
use crate::paging::{Entry, Format};
use crate::paging::{Nested, Pte};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

/// The tables of one space, and what is owed for changes to them.
#[derive(Debug)]
pub(in crate::ept) struct Tree<F> {
    root: Frame,
    /// The pointer to it: the top table stays where it is.
    pub eptp: Eptp,
    /// How much of the tables can be in use.
    pub reach: Reach,
    pub debt: Debt,
    /// How writes are noted in the leaves.
    pub dirty: DirtyTracking,
    /// What a violation is given.
    pub policy: FillPolicy,
    /// Whether a large page may be executed.
    pub execute_large: bool,
    /// The large page that is being zeroed, before it is mapped.
    pub zeroing: Option<Zeroing>,
    /// The number of the last page that was put, or [`NOWHERE`], and the table that it is in.
    recent: (u64, Hpa),
    /// The pages that became a fork's own.
    pub log: Log,
    format: PhantomData<F>,
}

/// The slot of a page in a lowest table that is a tree's own.
#[derive(Clone, Copy)]
pub(in crate::ept) struct LeafSlot<'m, F> {
    word: &'m AtomicU64,
    /// The number of the page.
    pub number: u64,
    format: PhantomData<F>,
}

impl<'m, F: Nested> LeafSlot<'m, F> {
    /// What stands there.
    #[inline(always)]
    pub fn entry(self) -> PteOf<F> {
        Pte::from_bits(self.word.load(Ordering::Acquire))
    }
    /// The word.
    #[inline(always)]
    pub fn word(self) -> &'m AtomicU64 {
        self.word
    }
    /// The page.
    #[inline(always)]
    pub const fn page(self) -> Gpa {
        Gpa::new(self.number * PAGE_SIZE)
    }
}

/// In place of the number of a page: no page has it, nor follows it.
const NOWHERE: u64 = u64::MAX - 1;

impl<F: Nested> Tree<F> {
    /// A tree that maps nothing.
    pub fn new<M: PhysMem>(
        frames: &FrameAllocator<M>,
        features: Features,
    ) -> Result<Self, FrameError> {
        let root = frames.alloc_zeroed()?;
        Ok(Self {
            eptp: Eptp::new::<F>(root.address(), features),
            root,
            reach: Reach::default(),
            debt: Debt::default(),
            dirty: DirtyTracking::new::<F>(features),
            policy: FillPolicy::DEFAULT,
            execute_large: features.execute_large,
            zeroing: None,
            recent: (NOWHERE, Hpa::new(0)),
            log: Log::default(),
            format: PhantomData,
        })
    }

    /// The top table.
    pub const fn root(&self) -> Hpa {
        self.root.address()
    }

    /// The top table's frame and what is owed: all that is left of a tree that ends.
    pub fn into_root(self) -> (Frame, Debt) {
        (self.root, self.debt)
    }

    /// The tables, for reading.
    #[inline(always)]
    pub fn view<'a, M: PhysMem>(&'a self, frames: &'a FrameAllocator<M>) -> Table<'a, M, F> {
        top(&self.root, frames)
    }

    /// The same, for an edit of leaves that are there.
    pub fn edit_leaves<'a, M: PhysMem>(
        &'a mut self,
        frames: &'a FrameAllocator<M>,
    ) -> (Table<'a, M, F>, LeafEdit<'a, M>) {
        let edit = LeafEdit::begin(frames, &mut self.debt);
        (top(&self.root, frames), edit)
    }

    /// The entries of the top table that are in use, by number.
    #[inline(always)]
    pub fn top_entries<'a, M: PhysMem>(
        &'a self,
        frames: &'a FrameAllocator<M>,
    ) -> impl Iterator<Item = (usize, PteOf<F>)> + 'a {
        let (top, eights) = (self.view(frames), self.reach.eights(F::LEVELS));
        let entries = (0..8 * eights).map(move |index| (index, top.entry(index)));
        entries.filter(|(_, entry)| *entry != Pte::EMPTY)
    }

    /// No page was put last: other tables are about to change.
    #[inline(always)]
    pub fn forget_last(&mut self) {
        self.recent.0 = NOWHERE;
    }

    /// Finds the lowest table for the page at `gpa`, if every table above grants everything: all of them are this tree's own.
    /// `None` otherwise: [`Cursor`](crate::paging::Cursor) tells more.
    ///
    /// It is the one that was found last, as long as that stays so: most often it does.
    #[inline(always)]
    pub fn find_slot<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, gpa: Gpa) -> Option<()> {
        let number = gpa.as_u64() / PAGE_SIZE;
        if (number ^ self.recent.0) / ENTRIES as u64 != 0 {
            let table = self.view(frames).lowest_open(gpa)?;
            self.recent = (number, table.address());
        }
        Some(())
    }

    /// The slot for the page at `gpa`, for which [`Tree::find_slot`] has found the table.
    #[inline(always)]
    pub fn slot<'m, M: PhysMem>(&self, frames: &'m FrameAllocator<M>, gpa: Gpa) -> LeafSlot<'m, F> {
        let number = gpa.as_u64() / PAGE_SIZE;
        let word = self.lowest(frames).word(number as usize % ENTRIES);
        LeafSlot {
            word,
            number,
            format: PhantomData,
        }
    }

    /// The number of the page that was put last, as far as nothing else was changed since.
    #[inline(always)]
    pub fn last_page(&self) -> u64 {
        self.recent.0
    }

    /// Puts a page into the slot. What stood there before is the caller's to invalidate, and the entry owns the caller's
    /// reference to the frame.
    #[inline(always)]
    pub fn put(&mut self, slot: LeafSlot<'_, F>, frame: Hpa, attr: AttrOf<F>) {
        self.recent.0 = slot.number;
        let bits = F::leaf_bits(1, attr) | frame.as_u64();
        slot.word.store(bits, Ordering::Release);
    }

    /// The same for a page that is this space's own from now on, which is logged.
    #[inline(always)]
    pub fn put_own<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        slot: LeafSlot<'_, F>,
        frame: Frame,
        attr: AttrOf<F>,
    ) {
        self.put(slot, frame.into_raw(), attr);
        if self.log.is_on() {
            self.note(frames, slot.number);
        }
    }

    /// The same in place of what stands in the slot at the violation; `retire` ends the reference of that.
    #[inline(always)]
    pub fn replace<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        (violation, slot): (Violation, LeafSlot<'_, F>),
        frame: Frame,
        attr: AttrOf<F>,
        retire: impl FnOnce(&mut Retired),
    ) {
        self.put_own(frames, slot, frame, attr);
        retire(&mut self.debt.retired);
        self.debt.incur_at(violation);
        self.debt.free_unreachable(frames);
    }

    /// As [`Tree::note`], where that would take registers from what is more frequent (bench fill.write).
    #[inline(never)]
    pub fn note_aside<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, number: u64) {
        self.note(frames, number);
    }

    /// Logs a page in the table that [`Tree::find_slot`] found last.
    #[inline(always)]
    pub fn note<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, number: u64) {
        let leaf = Hpa::new(self.recent.1.as_u64() + 8 * (number % ENTRIES as u64));
        self.log.note(frames, leaf, Gpa::new(number * PAGE_SIZE));
    }

    /// The words of the table that [`Tree::find_slot`] found last.
    #[inline(always)]
    pub fn lowest_table<'m, M: PhysMem>(
        &self,
        frames: &'m FrameAllocator<M>,
    ) -> &'m [Eight; EIGHTS] {
        self.lowest(frames).words()
    }

    #[inline(always)]
    fn lowest<'m, M: PhysMem>(&self, frames: &'m FrameAllocator<M>) -> Table<'m, M, F> {
        // SAFETY: the table is this tree's own: every entry above grants write, and there was no edit since but to slots in it.
        unsafe { Table::new(frames.mem(), self.recent.1, 1) }
    }

    /// Has the page with this number count as the one that was put last, in the same table as that.
    pub fn go_on_from(&mut self, number: u64) {
        self.recent.0 = number;
    }

    /// Gives back a large page that was not zeroed to its end.
    pub fn stop_zeroing<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        if let Some(begun) = self.zeroing.take() {
            frames.release(begun.into_frame());
        }
    }
}

/// The top table of a tree.
#[inline(always)]
fn top<'a, M: PhysMem, F: Nested>(root: &Frame, frames: &'a FrameAllocator<M>) -> Table<'a, M, F> {
    // SAFETY: it is a tree's own, and all tables below it were made by edits of that, each entry holding the reference to its
    // table.
    unsafe { Table::new(frames.mem(), root.address(), F::LEVELS) }
}
