//! The tables of a space as the walker sees them: counted frames, of which those that others refer to may not be written.
//!
//! An entry that grants write refers to a frame with a count of 1. So where a table is shared, write is withdrawn from
//! every entry that refers to it, and from every entry in it when it is copied: no path that grants write on every level
//! ends at anything shared, and the CPU reports the first write below a shared table.

use crate::addr::{Hpa, PAGE_SIZE};
use crate::counting::{Counted, add};
use crate::ept::tables::entry::{AttrOf, Marks, PteOf};
use crate::ept::tables::entry::{Origin, decode, owned, was_fetched};
use crate::ept::tables::table::{ENTRIES, Eight, Table, each_used};
use crate::ept::tables::tree::Tree;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::paging::{Content, Decoded, Entry, Format, MayMoveTable, TableOps, TableReadOps, Write};
use crate::paging::{Layout, Nested, Pte};
use core::sync::atomic::{AtomicU64, Ordering};

/// The tables of one space while they are changed. What is written says by itself whether it replaced something, which is owed
/// from then on; when the change is over, however it ends, what nobody can reach any more is freed.
pub(in crate::ept) struct Tables<'a, M: PhysMem, F: Nested> {
    pub frames: &'a FrameAllocator<M>,
    pub tree: &'a mut Tree<F>,
}

impl<F: Nested> Tree<F> {
    /// The tables, for an edit of any kind. `frames` is where they came from.
    #[inline(always)]
    pub fn tables<'a, M: PhysMem>(&'a mut self, frames: &'a FrameAllocator<M>) -> Tables<'a, M, F> {
        self.log.lose();
        self.page_tables(frames)
    }

    /// The same, for an edit that makes pages accessible and notes each that becomes this space's own.
    #[inline(always)]
    pub fn page_tables<'a, M: PhysMem>(
        &'a mut self,
        frames: &'a FrameAllocator<M>,
    ) -> Tables<'a, M, F> {
        self.forget_last();
        Tables { frames, tree: self }
    }
}

impl<'a, M: PhysMem, F: Nested> Tables<'a, M, F> {
    /// A table of `level`.
    #[inline(always)]
    pub fn table(&self, table: Hpa, level: u8) -> Table<'a, M, F> {
        // SAFETY: whoever calls asks for the root, a table that was allocated here, or one that an entry of those refers
        // to: all were made by edits of this kind, each entry holding the reference to its table.
        unsafe { Table::new(self.frames.mem(), table, level) }
    }

    /// The words of a table of `level` that can be in use, and what fills the last eight.
    #[inline(always)]
    pub fn usable(&self, table: Hpa, level: u8) -> &'a [Eight] {
        let (usable, _) = self.split(table, level);
        usable
    }

    /// The same, and the others.
    #[inline(always)]
    pub fn split(&self, table: Hpa, level: u8) -> (&'a [Eight], &'a [Eight]) {
        let words = self.table(table, level).words();
        words.split_at(self.tree.reach.eights(level))
    }

    /// The word of an entry, of a table of any level.
    #[inline(always)]
    pub fn word(&self, table: Hpa, index: usize) -> &AtomicU64 {
        self.table(table, 1).word(index)
    }

    /// An entry of a table.
    #[inline(always)]
    pub fn entry(&self, table: Hpa, index: usize) -> PteOf<F> {
        self.table(table, 1).entry(index)
    }

    /// Ends a reference that an entry held.
    #[inline]
    pub fn retire(&mut self, frame: Frame) {
        self.frames.retire(frame, &mut self.tree.debt.retired);
    }

    /// Puts an entry, which brings its reference along, where nothing stood.
    #[inline(always)]
    pub fn put(&mut self, table: Hpa, index: usize, entry: PteOf<F>) {
        self.word(table, index)
            .store(entry.to_bits(), Ordering::Release);
    }

    /// The leaf as it may stand in a table of `level`.
    #[inline(always)]
    pub fn for_level(&self, level: u8, leaf: AttrOf<F>) -> AttrOf<F> {
        if level > 1 && !self.tree.execute_large {
            F::with_fetch(leaf, false)
        } else {
            leaf
        }
    }

    /// The entry as it may stand in a table, whoever has made it.
    #[inline(always)]
    fn checked(&self, entry: PteOf<F>) -> u64 {
        let bits = entry.to_bits();
        if bits & F::Layout::LEAF != 0 && !self.tree.execute_large {
            F::Layout::no_fetch(bits)
        } else {
            bits
        }
    }
}

impl<M: PhysMem, F: Nested> Drop for Tables<'_, M, F> {
    #[inline(always)]
    fn drop(&mut self) {
        self.tree.debt.free_unreachable(self.frames);
    }
}

impl<M: PhysMem, F: Nested> TableReadOps for Tables<'_, M, F> {
    type Format = F;

    #[inline(always)]
    fn root(&self) -> Hpa {
        self.tree.root()
    }
    #[inline(always)]
    unsafe fn read_entry(&self, table: Hpa, index: usize) -> Option<PteOf<F>> {
        Some(self.entry(table, index))
    }
}

impl<M: PhysMem, F: Nested> TableOps for Tables<'_, M, F> {
    type Movability = MayMoveTable;

    fn alloc_table(&mut self) -> Option<Hpa> {
        // It is copied or set to zero as a whole.
        add(Counted::Bytes, PAGE_SIZE);
        self.frames.alloc().ok().map(|frame| frame.into_raw())
    }
    unsafe fn free_table(&mut self, table: Hpa) {
        self.frames.release(unlinked(table));
    }
    unsafe fn retire_table(&mut self, table: Hpa, _level: u8) {
        self.retire(unlinked(table));
    }
    #[inline(always)]
    unsafe fn write_entry(&mut self, table: Hpa, index: usize, entry: PteOf<F>) -> Option<()> {
        self.word(table, index)
            .store(self.checked(entry), Ordering::Release);
        Some(())
    }
    #[inline(always)]
    fn note_replaced(&mut self) {
        self.tree.debt.incur();
    }
    unsafe fn compare_exchange(
        &mut self,
        table: Hpa,
        index: usize,
        old: PteOf<F>,
        new: PteOf<F>,
    ) -> Option<Result<(), PteOf<F>>> {
        let word = self.word(table, index);
        let done = word.compare_exchange(
            old.to_bits(),
            self.checked(new),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        Some(done.map(drop).map_err(Pte::from_bits))
    }

    #[inline(always)]
    fn must_move(&self, table: Hpa, _level: u8) -> Option<Hpa> {
        (self.frames.count(table) > 1).then_some(table)
    }
    unsafe fn move_table(&mut self, from: Hpa, level: u8, to: Hpa) -> Result<(), Hpa> {
        self.copy_shared(from, level, to)
            .map_err(FrameError::frame)?;
        self.note_replaced();
        // SAFETY: the walker links the copy in its place.
        unsafe { self.drop_shared(from, level) };
        Ok(())
    }
    unsafe fn drop_shared(&mut self, table: Hpa, level: u8) {
        self.drop_table(unlinked(table), level);
    }
    unsafe fn reopen_table(&mut self, table: Hpa, level: u8) {
        // What was written before is of a time when others had the table too. The tables below stay closed until they are
        // needed, so that what they hold is looked at then.
        let clean = self.tree.dirty.clear;
        each_used(self.usable(table, level), |_, word, bits| {
            let away = match decode::<F>(level, Pte::from_bits(bits)) {
                Decoded::Table { .. } => F::Layout::WRITE,
                Decoded::Content(_) if bits & F::Layout::DIRTY != 0 => clean,
                Decoded::Content(_) => 0,
            };
            if bits & away != 0 {
                word.fetch_and(!away, Ordering::AcqRel);
            }
        });
    }
    unsafe fn split_leaf(&mut self, entry: PteOf<F>, level: u8) -> Result<(), Hpa> {
        let Decoded::Content(Content::Page { phys, attr }) = decode::<F>(level, entry) else {
            return Ok(());
        };
        if attr.dirty() {
            self.tree.dirty.lose_log(self.frames);
        }
        // SAFETY: the entry is about to go.
        let Some(mut block) = (unsafe { owned(entry) }) else {
            return Ok(());
        };
        // A block that is ours alone becomes blocks of their own, so that each can be given back and taken over. It can be
        // what is left of a larger one. Of one that others refer to, each of the smaller leaves holds a reference to the
        // whole.
        let done = match (self.frames.count(phys), F::leaf_size(level)) {
            (1, Some(size)) => {
                let trimmed = self
                    .frames
                    .trim(&mut block, size, &mut self.tree.debt.retired);
                trimmed.and_then(|()| self.frames.split(&mut block))
            }
            _ => self.frames.share_many(&block, ENTRIES as u32 - 1),
        };
        // The smaller leaves own all that, or the larger one still does.
        block.into_raw();
        done.map_err(FrameError::frame)
    }
    fn merge_attr(&self, attr: AttrOf<F>, other: AttrOf<F>) -> Option<AttrOf<F>> {
        if !self.tree.execute_large && (was_fetched(attr) || was_fetched(other)) {
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
        let both = F::merge_status(attr, other);
        (F::merge_status(other, attr) == both).then_some(both)
    }
    unsafe fn merge_leaves(&mut self, table: Hpa, level: u8) -> bool {
        let Decoded::Content(Content::Page { phys, .. }) = decode::<F>(level, self.entry(table, 0))
        else {
            return false;
        };
        let Some(size) = F::leaf_size(level + 1) else {
            return false;
        };
        // SAFETY: all entries of the table are about to go.
        let part = |index| unsafe { owned(self.entry(table, index)) };
        let Some(mut first) = part(0) else {
            return true;
        };
        let block = self.frames.block(phys).map(|(_, size)| size);
        let done = if block.is_some_and(|block| block >= size) {
            // All refer to one block; one reference is left.
            let others = (1..ENTRIES).filter_map(part);
            others.for_each(|other| self.frames.release(other));
            true
        } else {
            // SAFETY: likewise.
            unsafe { self.frames.merge(&mut first, size) }.is_ok()
        };
        // The larger leaf owns that.
        first.into_raw();
        done
    }
    unsafe fn set_root(&mut self, from: Hpa, to: Hpa) {
        debug_assert_eq!(from, to, "nobody shares the top table");
    }
}

/// A table that [`Tables::alloc_table`] gave to the walker, which gives it back: no entry refers to it, or a copy is linked in its
/// place.
fn unlinked(table: Hpa) -> Frame {
    // SAFETY: it is the one reference that the entry held, or that nobody has put anywhere.
    unsafe { Frame::from_raw(table) }
}
