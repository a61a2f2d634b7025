//! What every change of tables is made of: private tables, splitting, the removal of whole sub-trees, all from tables taken
//! before.

use super::access::{EntryOf, FormatOf, MoveOf, ResultOf, TableMovability, TableOps};
use super::error::{Fault, PagingError};
use super::format::{Content, ContentOf, Decoded, Entry, Format, FormatExt, MappingOf, Rights};
use super::part::Part;
use super::query::mapping;
use super::table::Table;

/// A change in progress: what was found possible is being done.
pub(super) struct Edit<'o, O: TableOps> {
    pub(super) ops: &'o mut O,
    /// Tables that nothing refers to yet. Each refers to the next one by its first entry, so any number can be kept without
    /// memory for a list.
    reserve: Option<Table<O>>,
}

impl<'o, O: TableOps> Edit<'o, O> {
    /// Takes `tables` tables, does the change, and returns what it did not need.
    pub(super) fn run<T>(
        ops: &'o mut O,
        tables: u64,
        change: impl FnOnce(&mut Self) -> ResultOf<O, T>,
    ) -> ResultOf<O, T> {
        let mut edit = Self { ops, reserve: None };
        let done = (0..tables).try_for_each(|_| edit.stock());
        let done = done.and_then(|()| change(&mut edit));
        while let Ok(table) = edit.take() {
            table.free(edit.ops);
        }
        done
    }

    /// Adds a table to the reserve.
    fn stock(&mut self) -> ResultOf<O, ()> {
        let table = Table::alloc(self.ops)?;
        let first = Part::at(2, 0);
        let linked = match self.reserve {
            Some(next) => table.link(self.ops, first, next),
            None => table.write(self.ops, first, Entry::EMPTY),
        };
        if linked.is_err() {
            table.free(self.ops);
            return Err(PagingError::OutOfTables);
        }
        self.reserve = Some(table);
        Ok(())
    }

    /// A table of any content from the reserve.
    pub(super) fn take(&mut self) -> ResultOf<O, Table<O>> {
        // As many were taken as can be needed, so this does not happen.
        let table = self.reserve.ok_or(PagingError::OutOfTables)?;
        self.reserve = table.open(self.ops, 0);
        Ok(table)
    }

    /// Replaces the leaf `old` for `va`, of which the CPU may meanwhile have noted that it was used, by what `new` makes
    /// of it; returns what stood there.
    #[inline(always)]
    pub(super) fn replace(
        &mut self,
        table: Table<O>,
        at: Part<O::Format>,
        mut old: EntryOf<O>,
        mut new: impl FnMut(&mut Self, EntryOf<O>) -> ResultOf<O, EntryOf<O>>,
    ) -> ResultOf<O, EntryOf<O>> {
        loop {
            let entry = new(self, old)?;
            if !O::Format::hardware_may_change(old) {
                table.write(self.ops, at, entry)?;
                break;
            }
            match table.compare_exchange(self.ops, at, old, entry)? {
                Ok(()) => break,
                Err(found) => old = found,
            }
        }
        if old != Entry::EMPTY {
            self.ops.note_replaced();
        }
        Ok(old)
    }

    /// The root, private.
    pub(super) fn own_root(&mut self) -> ResultOf<O, Table<O>> {
        let root = Table::root(self.ops);
        let Some(from) = root.must_move(self.ops, O::Format::LEVELS) else {
            return Ok(root);
        };
        let copy = self.copy(from, O::Format::LEVELS)?;
        copy.set_root(self.ops, from);
        Ok(copy)
    }

    /// A copy of a table that must move.
    fn copy(&mut self, from: MoveOf<O>, level: u8) -> ResultOf<O, Table<O>> {
        let copy = self.take()?;
        if let Err(phys) = copy.copy(self.ops, from, level) {
            copy.free(self.ops);
            return Err(PagingError::TooManyReferences { phys });
        }
        Ok(copy)
    }

    /// The table `child` that the entry of `table` (private) refers to, private and not restricted.
    pub(super) fn own(
        &mut self,
        table: Table<O>,
        at: Part<O::Format>,
        child: Table<O>,
        rights: Rights,
    ) -> ResultOf<O, Table<O>> {
        if !O::Movability::MOVES {
            return Ok(child);
        }
        let level = at.level - 1;
        let private = match child.must_move(self.ops, level) {
            Some(from) => self.copy(from, level)?,
            None if rights.contains(Rights::WRITE) => return Ok(child),
            None => {
                child.reopen(self.ops, level);
                child
            }
        };
        table.link(self.ops, at, private)?;
        Ok(private)
    }

    /// The one splitter: replaces the leaf `old` in `table` (private) by a table of the next smaller leaves, which say the
    /// same. The new table is complete before it is linked; where the CPU notes meanwhile that the page is used, it is
    /// made again.
    pub(super) fn split(
        &mut self,
        table: Table<O>,
        at: Part<O::Format>,
        old: EntryOf<O>,
    ) -> ResultOf<O, Table<O>> {
        let child = self.take()?;
        if let Err(phys) = table.split_leaf(self.ops, old, at.level) {
            child.free(self.ops);
            return Err(PagingError::TooManyReferences { phys });
        }
        let below = at.below();
        self.replace(table, at, old, |edit, old| {
            let content = match O::Format::decode(at.level, old) {
                Ok(Decoded::Content(content)) => content,
                Ok(Decoded::Table { .. }) => Content::Unmapped,
                Err(fault) => return Err(at.bad(fault)),
            };
            let bits = O::Format::encode(below.level, content).to_bits();
            let step = content.step(O::Format::span_mask(below.level) + 1);
            child.fill(edit.ops, below, (0, FormatOf::<O>::ENTRIES), bits, step)?;
            Ok(O::Format::table_entry(child.address()))
        })?;
        Ok(child)
    }

    /// Disposes of a table that no entry refers to any more, which is for all of `part`, and of all below it, and tells
    /// `removed` of each leaf that is gone. Of what is shared with other trees only the reference is dropped.
    pub(super) fn dispose(
        &mut self,
        table: Table<O>,
        part: Part<O::Format>,
        removed: &mut impl FnMut(MappingOf<O::Format>),
    ) -> ResultOf<O, ()> {
        if table.drop_shared(self.ops, part.level) {
            return Ok(());
        }
        for slot in part.slots() {
            match table.look(self.ops, slot) {
                Ok((_, Decoded::Table { table, .. })) => {
                    self.dispose(table, slot.below(), removed)?;
                }
                Ok((_, Decoded::Content(content))) => report(slot, content, removed),
                Err(
                    error @ PagingError::Bad {
                        fault: Fault::NotMemory,
                        ..
                    },
                ) => return Err(error),
                // An entry that makes no sense was no mapping.
                Err(_) => {}
            }
        }
        table.retire(self.ops, part.level);
        Ok(())
    }
}

/// Tells `removed` of a leaf that is gone.
pub(super) fn report<F: Format>(
    slot: Part<F>,
    content: ContentOf<F>,
    removed: &mut impl FnMut(MappingOf<F>),
) {
    let leaf = mapping::<F>(slot.start(), slot.level, Rights::ALL, content);
    leaf.into_iter().for_each(removed);
}
