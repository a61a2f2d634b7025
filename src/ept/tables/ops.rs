//! The tables of a space as the walker sees them: counted frames, of which those that others refer to may not be written.
//!
//! An entry that grants write refers to a frame with a count of 1. So where a table is shared, write is withdrawn from
//! every entry that refers to it, and from every entry in it when it is copied: no path that grants write on every level
//! ends at anything shared, and the CPU reports the first write below a shared table.

use crate::addr::{Hpa, PAGE_SIZE, PageSize};
use crate::counting::{Counted, add};
use crate::ept::tables::entry::{Origin, decode, was_fetched};
use crate::ept::tables::marks::Marks;
use crate::ept::tables::reach::Reach;
use crate::ept::tables::word::{
    DIRTY, EIGHTS, ENTRIES, EXECUTE, Eight, WRITE, each_used, word, words,
};
use crate::ept::tables::zeroing::Zeroing;
use crate::frames::{FrameAllocator, FrameError, PhysMem, Retired};
use crate::paging::{
    Content, Decoded, Entry, Ept, EptAttr, EptEntry, Format, MayMoveTable, TableOps, TableReadOps,
    Write,
};
use core::sync::atomic::{AtomicU64, Ordering};

/// In a leaf, and only there: it is one of a large page.
const LARGE: u64 = 1 << 7;
/// Access to the tables of one tree.
pub(in crate::ept) struct Tables<'a, M> {
    pub frames: &'a FrameAllocator<M>,
    root: Hpa,
    reach: Reach,
    /// Where tables go that no entry refers to any more.
    pub retired: &'a mut Retired,
    /// How writes are noted.
    pub marks: &'a mut Marks,
    /// Whether a large leaf may be executed.
    execute_large: bool,
    /// The large page that is being zeroed.
    pub zeroing: &'a mut Option<Zeroing>,
    /// A table was moved: what CPUs have cached of the old one is stale.
    pub moved: bool,
    /// A large page was split: what CPUs have cached of it is not for the parts.
    pub split: bool,
    /// A reference could not be counted while a table was copied: the copy lacks the entry.
    pub failed: Option<FrameError>,
}

impl<'a, M: PhysMem> Tables<'a, M> {
    /// The tree at `root`.
    ///
    /// # Safety
    /// `root` must be a table of the EPT format in a frame of `frames` that the caller holds, and so must be everything that
    /// its entries refer to as tables; each such entry must hold a counted reference.
    #[inline(always)]
    pub unsafe fn new(
        frames: &'a FrameAllocator<M>,
        root: Hpa,
        reach: Reach,
        retired: &'a mut Retired,
        marks: &'a mut Marks,
        execute_large: bool,
        zeroing: &'a mut Option<Zeroing>,
    ) -> Self {
        Self {
            frames,
            root,
            reach,
            retired,
            marks,
            execute_large,
            zeroing,
            moved: false,
            split: false,
            failed: None,
        }
    }

    /// The words of a table.
    #[inline(always)]
    pub fn words(&self, table: Hpa) -> &'a [Eight; EIGHTS] {
        // SAFETY: as in `word`.
        unsafe { words(self.frames.mem(), table) }
    }

    /// Those of a table of `level` that can be in use, and what fills the last eight.
    #[inline(always)]
    pub fn usable(&self, table: Hpa, level: u8) -> &'a [Eight] {
        let (usable, _) = self.split(table, level);
        usable
    }

    /// The same, and the others.
    #[inline(always)]
    pub fn split(&self, table: Hpa, level: u8) -> (&'a [Eight], &'a [Eight]) {
        let eights = self.reach.entries(level).div_ceil(8);
        self.words(table).split_at(eights.min(EIGHTS))
    }

    #[inline(always)]
    pub fn word(&self, table: Hpa, index: usize) -> &AtomicU64 {
        // SAFETY: whoever calls asks for the root, a table that was allocated here, or one that an entry of those refers
        // to: by the promise given to `new` all are tables in managed frames that somebody holds. The offset is inside
        // the frame and aligned; entries are only ever accessed as atomic words, by the CPU too.
        unsafe { word(self.frames.mem(), table, index) }
    }

    /// An entry of a table.
    #[inline(always)]
    pub fn entry(&self, table: Hpa, index: usize) -> EptEntry {
        EptEntry::from_bits(self.word(table, index).load(Ordering::Acquire))
    }

    /// The leaf as it may stand in a table of `level`.
    #[inline(always)]
    pub fn for_level(&self, level: u8, leaf: EptAttr) -> EptAttr {
        if level > 1 && !self.execute_large {
            leaf.with_execute(false).with_user_execute(false)
        } else {
            leaf
        }
    }

    /// The entry as it may stand in a table, whoever has made it.
    #[inline(always)]
    fn checked(&self, entry: EptEntry) -> u64 {
        let bits = entry.to_bits();
        if bits & LARGE != 0 && !self.execute_large {
            bits & !EXECUTE
        } else {
            bits
        }
    }

    /// Makes a block of `size` of what a leaf refers to, which nobody else refers to, and breaks that up.
    fn break_up(&mut self, phys: Hpa, size: PageSize) -> Result<(), FrameError> {
        // It can be what is left of a larger block that was shared.
        self.frames.trim(phys, size, self.retired)?;
        let block = self.frames.from_entry(phys)?;
        let first = self.frames.break_up(block).map_err(|(error, _)| error)?;
        // The smaller leaves own the references to the parts.
        first.into_raw();
        Ok(())
    }

    /// Makes one block of what smaller leaves refer to, if they alone do.
    fn put_together(&mut self, phys: Hpa, size: PageSize) -> bool {
        let Ok(first) = self.frames.from_entry(phys) else {
            return false;
        };
        // Either way the reference stays with the leaf.
        match self.frames.put_together(first, size) {
            Ok(block) => {
                block.into_raw();
                true
            }
            Err((_, first)) => {
                first.into_raw();
                false
            }
        }
    }
}

/// Access to the tables of one tree, for reading.
pub(in crate::ept) struct View<'a, M> {
    mem: &'a M,
    root: Hpa,
}

impl<'a, M: PhysMem> View<'a, M> {
    /// The tree at `root`.
    ///
    /// # Safety
    /// As for [`Tables::new`], as long as the view lives.
    pub unsafe fn new(mem: &'a M, root: Hpa) -> Self {
        Self { mem, root }
    }

    /// The words of a table.
    #[inline(always)]
    pub fn words(&self, table: Hpa) -> &'a [Eight; EIGHTS] {
        // SAFETY: as in `Tables::word`.
        unsafe { words(self.mem, table) }
    }
}

impl<M: PhysMem> TableReadOps for View<'_, M> {
    type Format = Ept;

    #[inline(always)]
    fn root(&self) -> Hpa {
        self.root
    }
    #[inline(always)]
    fn read_entry(&self, table: Hpa, index: usize) -> Option<EptEntry> {
        // SAFETY: as in `Tables::word`.
        Some(EptEntry::from_bits(
            unsafe { word(self.mem, table, index) }.load(Ordering::Acquire),
        ))
    }
}

impl<M: PhysMem> TableReadOps for Tables<'_, M> {
    type Format = Ept;

    #[inline(always)]
    fn root(&self) -> Hpa {
        self.root
    }
    #[inline(always)]
    fn read_entry(&self, table: Hpa, index: usize) -> Option<EptEntry> {
        Some(EptEntry::from_bits(
            self.word(table, index).load(Ordering::Acquire),
        ))
    }
}

impl<M: PhysMem> TableOps for Tables<'_, M> {
    type Movability = MayMoveTable;
    const WRITE_MEANS_PRIVATE: bool = true;

    fn alloc_table(&mut self) -> Option<Hpa> {
        // It is copied or set to zero as a whole.
        add(Counted::Bytes, PAGE_SIZE);
        self.frames.alloc().ok().map(|frame| frame.into_raw())
    }
    fn free_table(&mut self, table: Hpa) {
        let gone = self
            .frames
            .from_entry(table)
            .and_then(|frame| self.frames.release(frame));
        debug_assert!(gone.is_ok(), "{gone:?}");
    }
    fn retire_table(&mut self, table: Hpa, _level: u8) {
        self.retire(table);
    }
    #[inline(always)]
    fn write_entry(&mut self, table: Hpa, index: usize, entry: EptEntry) -> Option<()> {
        self.word(table, index)
            .store(self.checked(entry), Ordering::Release);
        Some(())
    }
    fn compare_exchange(
        &mut self,
        table: Hpa,
        index: usize,
        old: EptEntry,
        new: EptEntry,
    ) -> Option<Result<(), EptEntry>> {
        let word = self.word(table, index);
        let done = word.compare_exchange(
            old.to_bits(),
            self.checked(new),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        Some(done.map(drop).map_err(EptEntry::from_bits))
    }

    #[inline(always)]
    fn must_move(&self, table: Hpa, _level: u8) -> Option<Hpa> {
        (self.frames.count(table) > 1).then_some(table)
    }
    fn move_table(&mut self, from: Hpa, level: u8, to: Hpa) {
        self.copy_shared(from, level, to);
        self.moved = true;
        self.drop_table(from, level);
    }
    fn drop_shared(&mut self, table: Hpa, level: u8) {
        self.drop_table(table, level);
    }
    fn reopen_table(&mut self, table: Hpa, level: u8) {
        // What was written before is of a time when others had the table too. The tables below stay closed until they are
        // needed, so that what they hold is looked at then.
        let marks = self.marks.clear;
        each_used(self.usable(table, level), |_, word, bits| {
            let away = match decode(level, EptEntry::from_bits(bits)) {
                Decoded::Table { .. } => WRITE,
                Decoded::Content(_) if bits & DIRTY != 0 => marks,
                Decoded::Content(_) => 0,
            };
            if bits & away != 0 {
                word.fetch_and(!away, Ordering::AcqRel);
            }
        });
    }
    fn split_leaf(&mut self, entry: EptEntry, level: u8) {
        let Decoded::Content(Content::Page { phys, attr }) = decode(level, entry) else {
            return;
        };
        if attr.dirty() {
            self.marks.unlogged();
        }
        if !Origin::of(attr).is_counted() {
            return;
        }
        // A block that is ours alone becomes blocks of their own, so that each can be given back and taken over. Of one
        // that others refer to, each of the smaller leaves holds a reference to the whole.
        let done = match (self.frames.count(phys), Ept::leaf_size(level)) {
            (1, Some(size)) => self.break_up(phys, size),
            _ => self.frames.share_many(phys, ENTRIES as u32 - 1),
        };
        if let Err(error) = done {
            self.failed = Some(error);
        }
    }
    fn merge_attr(&self, attr: EptAttr, other: EptAttr) -> Option<EptAttr> {
        if !self.execute_large && (was_fetched(attr) || was_fetched(other)) {
            return None;
        }
        // Who merges has lost count of what a reset would have to copy.
        let alone = |attr| self.for_level(2, Origin::alone(attr));
        let (attr, other) = (alone(attr), alone(other));
        // Write is given back by the next violation, and what was written stays marked.
        let (attr, other) = if attr.write() == other.write() {
            (attr, other)
        } else {
            (
                attr.with_write(Write::Denied),
                other.with_write(Write::Denied),
            )
        };
        let both = Ept::merge_status(attr, other);
        (Ept::merge_status(other, attr) == both).then_some(both)
    }
    fn merge_leaves(&mut self, table: Hpa, level: u8) -> bool {
        let first = EptEntry::from_bits(self.word(table, 0).load(Ordering::Acquire));
        let Decoded::Content(Content::Page { phys, attr }) = decode(level, first) else {
            return false;
        };
        let Some(size) = Ept::leaf_size(level + 1) else {
            return false;
        };
        if !Origin::of(attr).is_counted() {
            return true;
        }
        match self.frames.block(phys) {
            // All refer to one block; one reference is left.
            Some((_, block)) if block >= size => (1..ENTRIES).all(|_| {
                let gone = self.frames.release_unless_last(phys);
                debug_assert_eq!(gone, Ok(true));
                gone.is_ok()
            }),
            Some(_) => self.put_together(phys, size),
            None => false,
        }
    }
    fn set_root(&mut self, _from: Hpa, to: Hpa) {
        self.root = to;
    }
}
