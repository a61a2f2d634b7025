//! A table of a space, known to be one, and the walk over all below it.

use crate::addr::{Address, Gpa, Hpa, PAGE_SIZE, PageSize};
use crate::ept::tables::entry::PteOf;
use crate::ept::tables::entry::{Way, decode, step};
use crate::frames::PhysMem;
use crate::paging::{Decoded, DecodedOf, Entry, Format, TableReadOps};
use crate::paging::{Nested, Pte};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

/// Levels of tables.
pub(in crate::ept) const LEVELS: u8 = 4;
/// Entries of a table.
pub(in crate::ept) const ENTRIES: usize = 512;
/// Eight of them, and how often a table has as many.
pub(in crate::ept) type Eight = [AtomicU64; 8];
pub(in crate::ept) const EIGHTS: usize = ENTRIES / 8;
/// A table of some level. It comes from a tree, or from an entry of another table: nobody makes one of an address alone.
pub(in crate::ept) struct Table<'a, M, F> {
    mem: &'a M,
    address: Hpa,
    level: u8,
    format: PhantomData<F>,
}

impl<M, F> Clone for Table<'_, M, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M, F> Copy for Table<'_, M, F> {}

impl<'a, M: PhysMem, F: Nested> Table<'a, M, F> {
    /// The table of `level` at `address`.
    ///
    /// # Safety
    /// It must be one, of the format `F`, in a frame that `mem` reaches, and so must be each of the next lower level that its
    /// entries refer to; they stay so, and are accessed as atomic words alone, as long as `mem` is borrowed.
    #[inline(always)]
    pub const unsafe fn new(mem: &'a M, address: Hpa, level: u8) -> Self {
        Self {
            mem,
            address,
            level,
            format: PhantomData,
        }
    }

    /// Where it is.
    #[inline(always)]
    pub const fn address(self) -> Hpa {
        self.address
    }

    /// Its level.
    #[inline(always)]
    pub const fn level(self) -> u8 {
        self.level
    }

    /// The size of the leaves that can stand in it, and log2 of that.
    #[inline(always)]
    pub const fn size(self) -> PageSize {
        match self.level {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }
    #[inline(always)]
    const fn shift(self) -> u32 {
        PAGE_SIZE.trailing_zeros() + 9 * (self.level as u32 - 1)
    }

    /// Its words, eight by eight.
    #[inline(always)]
    pub fn words(self) -> &'a [Eight; EIGHTS] {
        // SAFETY: a table is a frame, which is aligned and as long as 512 words, and lives as long as the borrow.
        unsafe { &*self.mem.ptr(self.address).cast() }
    }

    /// The word of an entry.
    #[inline(always)]
    pub fn word(self, index: usize) -> &'a AtomicU64 {
        &self.words().as_flattened()[index % ENTRIES]
    }

    /// An entry.
    #[inline(always)]
    pub fn entry(self, index: usize) -> PteOf<F> {
        Pte::from_bits(self.word(index).load(Ordering::Acquire))
    }

    /// Which entry is for an address.
    #[inline(always)]
    pub const fn index_of(self, gpa: Gpa) -> usize {
        (gpa.as_u64() >> self.shift()) as usize % ENTRIES
    }

    /// The table that an entry of this one refers to, if it does.
    #[inline(always)]
    fn below(self, says: DecodedOf<F>) -> Option<Self> {
        match says {
            Decoded::Table { table, .. } => Some(self.lower(table)),
            Decoded::Content(_) => None,
        }
    }

    /// The table that an entry of this one was found to refer to.
    #[inline(always)]
    const fn lower(self, table: Hpa) -> Self {
        Self {
            address: table,
            level: self.level - 1,
            ..self
        }
    }

    /// Where the entry for `gpa` leads who reads through it.
    #[inline(always)]
    pub fn step(self, gpa: Gpa) -> Way<Self> {
        match step(self.level, self.entry(self.index_of(gpa))) {
            Way::Table(table) => Way::Table(self.lower(table)),
            Way::Counted(page) => Way::Counted(page),
            Way::Other => Way::Other,
        }
    }

    /// The lowest slot for `gpa` on the way through entries that refer to tables and that `open` lets through.
    #[inline(always)]
    pub fn find(mut self, gpa: Gpa, open: impl Fn(DecodedOf<F>) -> bool) -> TableSlot<'a, M, F> {
        loop {
            let slot = TableSlot::of(self, gpa);
            match self.below(slot.says) {
                Some(below) if open(slot.says) => self = below,
                _ => return slot,
            }
        }
    }

    /// The lowest table for `gpa`, if every entry on the way lets everything through: then the table and all above it are the
    /// tree's own. The one descent that is made by hand, for `fill.write`, `fill.read` and `cow.copy` of `make bench`.
    #[inline(always)]
    pub fn lowest_open(mut self, gpa: Gpa) -> Option<Self> {
        while self.level > 1 {
            self = self.lower(F::open_table(self.entry(self.index_of(gpa)))?);
        }
        Some(self)
    }

    /// Shows the slots in use for the addresses from `first` to `last`, in their order, and what is below each for which
    /// `show` says `true`.
    ///
    /// # Errors
    /// The first of `show`, which ends the walk.
    pub fn walk<E>(
        self,
        first: Gpa,
        last: Gpa,
        show: &mut impl FnMut(TableSlot<'a, M, F>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let span = 1 << self.shift();
        let mut gpa = first.align_down(span);
        loop {
            let slot = TableSlot::of(self, gpa);
            let end = Gpa::new(gpa.as_u64() + (span - 1));
            if !slot.is_empty()
                && show(slot)?
                && let Some(below) = self.below(slot.says)
            {
                below.walk(first.max(gpa), last.min(end), show)?;
            }
            if end >= last {
                return Ok(());
            }
            gpa = Gpa::new(end.as_u64() + 1);
        }
    }
}

/// One entry of a table, as it was read.
pub(in crate::ept) struct TableSlot<'a, M, F: Nested> {
    /// The table that it is in.
    pub table: Table<'a, M, F>,
    /// Its word.
    pub word: &'a AtomicU64,
    /// The first address that it translates.
    pub gpa: Gpa,
    /// What it says.
    pub says: DecodedOf<F>,
    entry: PteOf<F>,
}

impl<M, F: Nested> Clone for TableSlot<'_, M, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M, F: Nested> Copy for TableSlot<'_, M, F> {}

impl<'a, M: PhysMem, F: Nested> TableSlot<'a, M, F> {
    #[inline(always)]
    fn of(table: Table<'a, M, F>, gpa: Gpa) -> Self {
        let word = table.word(table.index_of(gpa));
        let entry = Pte::from_bits(word.load(Ordering::Acquire));
        Self {
            table,
            word,
            gpa: gpa.align_down(1 << table.shift()),
            says: decode::<F>(table.level, entry),
            entry,
        }
    }

    /// The entry.
    #[cfg(test)]
    pub const fn entry(self) -> PteOf<F> {
        self.entry
    }

    /// Whether it is all zeroes.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.entry == Pte::EMPTY
    }
}

impl<M: PhysMem, F: Nested> TableReadOps for Table<'_, M, F> {
    type Format = F;

    #[inline(always)]
    fn root(&self) -> Hpa {
        self.address
    }
    #[inline(always)]
    unsafe fn read_entry(&self, table: Hpa, index: usize) -> Option<PteOf<F>> {
        // The walker asks for the root, and for what entries of a table refer to as tables.
        let table = Self {
            address: table,
            ..*self
        };
        Some(table.entry(index))
    }
}

/// Shows each entry that is in use to `show`: its number among these, where it is, and what it says.
///
/// Most entries of most tables are not, so they are looked at eight at a time.
#[inline(always)]
pub(in crate::ept) fn each_used<'a>(
    eights: &'a [Eight],
    mut show: impl FnMut(usize, &'a AtomicU64, u64),
) {
    for (n, eight) in eights.iter().enumerate() {
        if is_empty(eight) {
            continue;
        }
        for (i, word) in eight.iter().enumerate() {
            let bits = word.load(Ordering::Acquire);
            if bits != 0 {
                show(8 * n + i, word, bits);
            }
        }
    }
}

/// Whether none of eight entries is in use.
#[inline(always)]
pub(in crate::ept) fn is_empty(eight: &Eight) -> bool {
    let all = |all, word: &AtomicU64| all | word.load(Ordering::Relaxed);
    eight.iter().fold(0, all) == 0
}
