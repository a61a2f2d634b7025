//! Tables in host frames, reached through physical memory.

use super::word::AtomicWord;
use core::marker::PhantomData;

use super::access::{MayNotMoveTable, TableOps, TableReadOps};
use super::format::{Entry, Format, FormatExt};
use crate::addr::Hpa;
use crate::frames::PhysMem;

/// Where the frames for tables come from and go to.
pub trait TableAlloc {
    /// A frame of any content that nobody else uses.
    fn alloc(&mut self) -> Option<Hpa>;
    /// Takes back a frame that [`TableAlloc::alloc`] gave.
    fn free(&mut self, frame: Hpa);
}

/// The words of one table.
///
/// # Safety
/// `table` must be the address of a frame for which [`PhysMem::ptr`] keeps its promise, that is used as a table.
#[inline(always)]
unsafe fn table_words<F: Format, M: PhysMem + ?Sized>(
    memory: &M,
    table: Hpa,
) -> &[<F::Entry as Entry>::Word] {
    let first = memory.ptr(table).cast::<<F::Entry as Entry>::Word>();
    // SAFETY: the caller vouches for a whole, aligned frame, which is as long as a table of any format. The words are
    // atomic, so that others, the CPU's page walk among them, may change them meanwhile.
    unsafe { core::slice::from_raw_parts(first, F::ENTRIES) }
}

/// The tables of one tree of host frames that nothing shares.
pub struct PhysTables<'m, F: Format<Phys = Hpa>, M: PhysMem + ?Sized, A> {
    memory: &'m M,
    alloc: A,
    root: Hpa,
    format: PhantomData<F>,
}

impl<'m, F: Format<Phys = Hpa>, M: PhysMem + ?Sized, A> PhysTables<'m, F, M, A> {
    /// The tree at `root`.
    ///
    /// # Safety
    /// Every table that can be reached from `root` must be a frame for which `memory` keeps the promise of
    /// [`PhysMem`], and so must be every frame that `alloc` gives. Nothing else may change the tables as long as this
    /// lives, other than a CPU that sets accessed and dirty.
    pub unsafe fn new(memory: &'m M, alloc: A, root: Hpa) -> Self {
        Self {
            memory,
            alloc,
            root,
            format: PhantomData,
        }
    }
    /// A new tree that maps nothing, or `None` where there is no frame for its root.
    ///
    /// # Safety
    /// As for [`PhysTables::new`].
    pub unsafe fn create(memory: &'m M, mut alloc: A) -> Option<Self>
    where
        A: TableAlloc,
    {
        let root = alloc.alloc()?;
        // SAFETY: the caller vouches for the frames of `alloc`; the root refers to nothing once it is zeroed.
        let mut tables = unsafe { Self::new(memory, alloc, root) };
        // SAFETY: it is the root.
        unsafe { tables.write_run(root, 0, F::ENTRIES, 0, 0) }?;
        Some(tables)
    }
    /// Where the tables' frames come from.
    pub fn allocator(&mut self) -> &mut A {
        &mut self.alloc
    }

    /// # Safety
    /// `table` must be one of this tree.
    #[inline(always)]
    unsafe fn word(&self, table: Hpa, index: usize) -> &<F::Entry as Entry>::Word {
        // SAFETY: all tables are in frames of `memory` by the promise given to `new`; the masked index is inside.
        unsafe { table_words::<F, M>(self.memory, table).get_unchecked(index & (F::ENTRIES - 1)) }
    }
}

impl<F: Format<Phys = Hpa>, M: PhysMem + ?Sized, A> TableReadOps for PhysTables<'_, F, M, A> {
    type Format = F;

    #[inline(always)]
    fn root(&self) -> Hpa {
        self.root
    }
    #[inline(always)]
    unsafe fn read_entry(&self, table: Hpa, index: usize) -> Option<F::Entry> {
        // SAFETY: the caller's.
        let word = unsafe { self.word(table, index) };
        Some(F::Entry::from_bits(word.load()))
    }
}

impl<F: Format<Phys = Hpa>, M: PhysMem + ?Sized, A: TableAlloc> TableOps
    for PhysTables<'_, F, M, A>
{
    type Movability = MayNotMoveTable;

    #[inline]
    fn alloc_table(&mut self) -> Option<Hpa> {
        self.alloc.alloc()
    }
    unsafe fn free_table(&mut self, table: Hpa) {
        self.alloc.free(table);
    }
    #[inline(always)]
    unsafe fn write_entry(&mut self, table: Hpa, index: usize, entry: F::Entry) -> Option<()> {
        // SAFETY: the caller's.
        unsafe { self.word(table, index) }.store(entry.to_bits());
        Some(())
    }
    unsafe fn compare_exchange(
        &mut self,
        table: Hpa,
        index: usize,
        old: F::Entry,
        new: F::Entry,
    ) -> Option<Result<(), F::Entry>> {
        // SAFETY: the caller's.
        let word = unsafe { self.word(table, index) };
        let result = word.compare_exchange(old.to_bits(), new.to_bits());
        Some(result.map_err(F::Entry::from_bits))
    }
    #[inline]
    unsafe fn write_run(
        &mut self,
        table: Hpa,
        first: usize,
        count: usize,
        mut bits: u64,
        step: u64,
    ) -> Option<()> {
        // SAFETY: as in `word`; `table` is the caller's.
        let words = unsafe { table_words::<F, M>(self.memory, table) };
        // Eight at a time: counting and comparing would cost more than storing.
        let (eights, rest) = words
            .get(first..first.checked_add(count)?)?
            .as_chunks::<8>();
        for eight in eights {
            for (n, word) in eight.iter().enumerate() {
                word.store(bits.wrapping_add(step.wrapping_mul(n as u64)));
            }
            bits = bits.wrapping_add(step.wrapping_mul(8));
        }
        for word in rest {
            word.store(bits);
            bits = bits.wrapping_add(step);
        }
        Some(())
    }
}
