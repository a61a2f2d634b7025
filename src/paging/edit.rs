//! What every change of tables is made of: private tables, splitting, the removal of whole sub-trees, all from tables taken
//! before.

use super::access::{EntryOf, FormatOf, MoveOf, ResultOf, TableMovability, TableOf, TableOps};
use super::error::{Fault, PagingError};
use super::format::{
    Content, ContentOf, Decoded, Entry, Format, FormatExt, Mapping, MappingOf, Rights,
};
use super::part::Part;

/// A change in progress: what was found possible is being done.
pub(super) struct Edit<'o, O: TableOps> {
    pub(super) ops: &'o mut O,
    /// Tables that nothing refers to yet. Each refers to the next one by its first entry, so any number can be kept without
    /// memory for a list.
    reserve: Option<TableOf<O>>,
}

impl<'o, O: TableOps> Edit<'o, O> {
    /// Takes `tables` tables, does the change, and returns what it did not need.
    pub(super) fn run<T>(
        ops: &'o mut O,
        tables: u64,
        change: impl FnOnce(&mut Self) -> ResultOf<O, T>,
    ) -> ResultOf<O, T> {
        let mut edit = Self { ops, reserve: None };
        let mut done = Ok(());
        for _ in 0..tables {
            done = edit.stock();
            if done.is_err() {
                break;
            }
        }
        let done = done.and_then(|()| change(&mut edit));
        while let Ok(table) = edit.take() {
            edit.ops.free_table(table);
        }
        done
    }

    /// Adds a table to the reserve.
    fn stock(&mut self) -> ResultOf<O, ()> {
        let table = self.ops.alloc_table().ok_or(PagingError::OutOfTables)?;
        let link = self.reserve.map_or(Entry::EMPTY, O::Format::table_entry);
        if self.ops.write_entry(table, 0, link).is_none() {
            self.ops.free_table(table);
            return Err(PagingError::OutOfTables);
        }
        self.reserve = Some(table);
        Ok(())
    }

    /// A table of any content from the reserve.
    pub(super) fn take(&mut self) -> ResultOf<O, TableOf<O>> {
        // As many were taken as can be needed, so neither of these happens.
        let table = self.reserve.ok_or(PagingError::OutOfTables)?;
        let link = self.ops.read_entry(table, 0);
        let link = link.ok_or(PagingError::OutOfTables)?;
        self.reserve = O::Format::open_table(link);
        Ok(table)
    }

    /// Makes `table` hold nothing.
    pub(super) fn clear(&mut self, table: TableOf<O>, part: Part<O::Format>) -> ResultOf<O, ()> {
        self.fill(table, part, (0, FormatOf::<O>::ENTRIES), 0, 0)
    }

    /// Writes a number of entries of `table` from an index on: the first of these bits, each next one greater by `step`.
    #[inline(always)]
    pub(super) fn fill(
        &mut self,
        table: TableOf<O>,
        part: Part<O::Format>,
        (first, count): (usize, usize),
        bits: u64,
        step: u64,
    ) -> ResultOf<O, ()> {
        let done = self.ops.write_run(table, first, count, bits, step);
        done.ok_or_else(|| part.bad(Fault::NotMemory))
    }

    /// The entry for an address.
    #[inline(always)]
    pub(super) fn read(&self, table: TableOf<O>, at: Part<O::Format>) -> ResultOf<O, EntryOf<O>> {
        let entry = self.ops.read_entry(table, at.index());
        entry.ok_or_else(|| at.bad(Fault::NotMemory))
    }

    /// Replaces the entry for an address by one store.
    #[inline(always)]
    pub(super) fn write(
        &mut self,
        table: TableOf<O>,
        at: Part<O::Format>,
        entry: EntryOf<O>,
    ) -> ResultOf<O, ()> {
        let done = self.ops.write_entry(table, at.index(), entry);
        done.ok_or_else(|| at.bad(Fault::NotMemory))
    }

    /// Replaces the leaf `old` for `va`, of which the CPU may meanwhile have noted that it was used, by what `new` makes
    /// of it; returns what stood there.
    #[inline(always)]
    pub(super) fn replace(
        &mut self,
        table: TableOf<O>,
        at: Part<O::Format>,
        mut old: EntryOf<O>,
        mut new: impl FnMut(&mut Self, EntryOf<O>) -> ResultOf<O, EntryOf<O>>,
    ) -> ResultOf<O, EntryOf<O>> {
        loop {
            let entry = new(self, old)?;
            if !O::Format::hardware_may_change(old) {
                self.write(table, at, entry)?;
                break;
            }
            match self.ops.compare_exchange(table, at.index(), old, entry) {
                Some(Ok(())) => break,
                Some(Err(found)) => old = found,
                None => return Err(at.bad(Fault::NotMemory)),
            }
        }
        if old != Entry::EMPTY {
            self.ops.note_replaced();
        }
        Ok(old)
    }

    /// The root, private.
    pub(super) fn own_root(&mut self) -> ResultOf<O, TableOf<O>> {
        let root = self.ops.root();
        let Some(from) = self.ops.must_move(root, O::Format::LEVELS) else {
            return Ok(root);
        };
        let copy = self.copy(from, O::Format::LEVELS)?;
        self.ops.set_root(from, copy);
        Ok(copy)
    }

    /// A copy of a table that must move.
    fn copy(&mut self, from: MoveOf<O>, level: u8) -> ResultOf<O, TableOf<O>> {
        let copy = self.take()?;
        let moved = self.ops.move_table(from, level, copy);
        self.unless_refused(copy, moved)
    }

    /// A table from the reserve, unless what it takes one for has as many references as can be counted.
    fn unless_refused(
        &mut self,
        table: TableOf<O>,
        done: Result<(), TableOf<O>>,
    ) -> ResultOf<O, TableOf<O>> {
        match done {
            Ok(()) => Ok(table),
            Err(phys) => {
                self.ops.free_table(table);
                Err(PagingError::TooManyReferences { phys })
            }
        }
    }

    /// The table `child` that the entry of `table` (private) refers to, private and not restricted.
    #[inline]
    pub(super) fn own(
        &mut self,
        table: TableOf<O>,
        at: Part<O::Format>,
        child: TableOf<O>,
        rights: Rights,
    ) -> ResultOf<O, TableOf<O>> {
        if !O::Movability::MOVES {
            return Ok(child);
        }
        let level = at.level - 1;
        let private = match self.ops.must_move(child, level) {
            Some(from) => self.copy(from, level)?,
            None if rights.contains(Rights::WRITE) => return Ok(child),
            None => {
                self.ops.reopen_table(child, level);
                child
            }
        };
        self.write(table, at, O::Format::table_entry(private))?;
        Ok(private)
    }

    /// The one splitter: replaces the leaf `old` in `table` (private) by a table of the next smaller leaves, which say the
    /// same. The new table is complete before it is linked; where the CPU notes meanwhile that the page is used, it is
    /// made again.
    pub(super) fn split(
        &mut self,
        table: TableOf<O>,
        at: Part<O::Format>,
        old: EntryOf<O>,
    ) -> ResultOf<O, TableOf<O>> {
        let child = self.take()?;
        let split = self.ops.split_leaf(old, at.level);
        let child = self.unless_refused(child, split)?;
        let below = at.below();
        self.replace(table, at, old, |edit, old| {
            let content = match O::Format::decode(at.level, old) {
                Ok(Decoded::Content(content)) => content,
                Ok(Decoded::Table { .. }) => Content::Unmapped,
                Err(fault) => return Err(at.bad(fault)),
            };
            let bits = O::Format::encode(below.level, content).to_bits();
            let step = content.step(O::Format::span_mask(below.level) + 1);
            edit.fill(child, below, (0, FormatOf::<O>::ENTRIES), bits, step)?;
            Ok(O::Format::table_entry(child))
        })?;
        Ok(child)
    }

    /// Disposes of a table that no entry refers to any more, which is for all of `part`, and of all below it, and tells
    /// `removed` of each leaf that is gone. Of what is shared with other trees only the reference is dropped.
    pub(super) fn dispose(
        &mut self,
        table: TableOf<O>,
        part: Part<O::Format>,
        removed: &mut impl FnMut(MappingOf<O::Format>),
    ) -> ResultOf<O, ()> {
        if let Some(shared) = self.ops.must_move(table, part.level) {
            self.ops.drop_shared(shared, part.level);
            return Ok(());
        }
        for slot in part.slots() {
            // An entry that makes no sense was no mapping.
            match O::Format::decode(slot.level, self.read(table, slot)?) {
                Ok(Decoded::Table { table, .. }) => self.dispose(table, slot.below(), removed)?,
                Ok(Decoded::Content(content)) => report(slot, content, removed),
                Err(_) => {}
            }
        }
        self.ops.retire_table(table, part.level);
        Ok(())
    }
}

/// Tells `removed` of a leaf that is gone.
#[inline(always)]
pub(super) fn report<F: Format>(
    slot: Part<F>,
    content: ContentOf<F>,
    removed: &mut impl FnMut(MappingOf<F>),
) {
    if let (true, Some(size)) = (content.is_mapped(), F::leaf_size(slot.level)) {
        let virt = F::virt(slot.va);
        removed(Mapping {
            virt,
            size,
            content,
        });
    }
}
