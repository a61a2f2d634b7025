//! What all changes to a range share: private tables, splitting, and the removal of whole sub-trees.

use super::access::{EntryOf, FormatOf, TableMovability, TableOf, TableOps};
use super::error::{Error, Fault};
use super::format::{
    Content, ContentOf, Decoded, Entry, Format, FormatExt, Mapping, MappingOf, Rights,
};
use super::query::{bad, decode_at};
use super::reserve::Reserve;

/// A change in progress: what was found possible is being done, with tables taken before.
pub(super) struct Edit<'o, O: TableOps> {
    pub(super) ops: &'o mut O,
    pub(super) reserve: Reserve<O>,
}

impl<'o, O: TableOps> Edit<'o, O> {
    /// Takes `tables` tables, does the change, and returns what it did not need.
    pub(super) fn run(
        ops: &'o mut O,
        tables: u64,
        change: impl FnOnce(&mut Self) -> Result<(), Error<O::Format>>,
    ) -> Result<(), Error<O::Format>> {
        let reserve = Reserve::take(ops, tables)?;
        let mut edit = Self { ops, reserve };
        let done = change(&mut edit);
        edit.reserve.give_back(edit.ops);
        done
    }

    /// Replaces the entry for `va` by one store.
    #[inline(always)]
    pub(super) fn write(
        &mut self,
        table: TableOf<O>,
        level: u8,
        va: u64,
        entry: EntryOf<O>,
    ) -> Result<(), Error<O::Format>> {
        match self
            .ops
            .write_entry(table, O::Format::index(va, level), entry)
        {
            Some(()) => Ok(()),
            None => Err(bad::<O::Format>(va, level, Fault::NotMemory)),
        }
    }

    /// Replaces the leaf `old` for `va`, of which the CPU may meanwhile have noted that it was used, by what `new` makes
    /// of it; returns what stood there.
    #[inline(always)]
    pub(super) fn replace(
        &mut self,
        table: TableOf<O>,
        level: u8,
        va: u64,
        mut old: EntryOf<O>,
        mut new: impl FnMut(&mut Self, EntryOf<O>) -> Result<EntryOf<O>, Error<O::Format>>,
    ) -> Result<EntryOf<O>, Error<O::Format>> {
        loop {
            let entry = new(self, old)?;
            if !O::Format::hardware_may_change(old) {
                self.write(table, level, va, entry)?;
                return Ok(old);
            }
            let index = O::Format::index(va, level);
            match self.ops.compare_exchange(table, index, old, entry) {
                Some(Ok(())) => return Ok(old),
                Some(Err(found)) => old = found,
                None => return Err(bad::<O::Format>(va, level, Fault::NotMemory)),
            }
        }
    }

    /// The entry for `va` as it is.
    #[inline(always)]
    pub(super) fn read(
        &self,
        table: TableOf<O>,
        level: u8,
        va: u64,
    ) -> Result<EntryOf<O>, Error<O::Format>> {
        match self.ops.read_entry(table, O::Format::index(va, level)) {
            Some(entry) => Ok(entry),
            None => Err(bad::<O::Format>(va, level, Fault::NotMemory)),
        }
    }

    /// The root, private.
    pub(super) fn own_root(&mut self) -> Result<TableOf<O>, Error<O::Format>> {
        let root = self.ops.root();
        let Some(from) = self.ops.must_move(root, O::Format::LEVELS) else {
            return Ok(root);
        };
        let copy = self.reserve.pop(self.ops)?;
        self.ops.move_table(from, O::Format::LEVELS, copy);
        self.ops.set_root(from, copy);
        Ok(copy)
    }

    /// The table that the entry of `table` (private, of `level`) for `va` refers to, private and not restricted.
    #[inline]
    pub(super) fn own(
        &mut self,
        table: TableOf<O>,
        level: u8,
        va: u64,
        child: TableOf<O>,
        rights: Rights,
    ) -> Result<TableOf<O>, Error<O::Format>> {
        if !O::Movability::MOVES {
            return Ok(child);
        }
        let (private, moved) = match self.ops.must_move(child, level - 1) {
            Some(from) => {
                let copy = self.reserve.pop(self.ops)?;
                self.ops.move_table(from, level - 1, copy);
                (copy, true)
            }
            None => {
                if !rights.contains(Rights::WRITE) {
                    self.ops.reopen_table(child, level - 1);
                }
                (child, false)
            }
        };
        if moved || !rights.contains(Rights::WRITE) {
            self.write(table, level, va, O::Format::table_entry(private))?;
        }
        Ok(private)
    }

    /// The one splitter: replaces the leaf for `va` in `table` (private, of `level`) by a table of the next smaller
    /// leaves, which say the same. The new table is complete before it is linked; where the CPU notes meanwhile that
    /// the page is used, it is made again.
    pub(super) fn split(
        &mut self,
        table: TableOf<O>,
        level: u8,
        va: u64,
        old: EntryOf<O>,
    ) -> Result<TableOf<O>, Error<O::Format>> {
        let child = self.reserve.pop(self.ops)?;
        self.ops.split_leaf(old, level);
        let linked = self.replace(table, level, va, old, |edit, old| {
            let content = match O::Format::decode(level, old) {
                Ok(Decoded::Content(content)) => content,
                Ok(Decoded::Table { .. }) => Content::Unmapped,
                Err(fault) => return Err(bad::<O::Format>(va, level, fault)),
            };
            edit.fill_split(child, level - 1, va, content)?;
            Ok(O::Format::table_entry(child))
        });
        match linked {
            Ok(_) => Ok(child),
            Err(error) => {
                self.ops.free_table(child);
                Err(error)
            }
        }
    }

    fn fill_split(
        &mut self,
        child: TableOf<O>,
        level: u8,
        va: u64,
        content: ContentOf<O::Format>,
    ) -> Result<(), Error<O::Format>> {
        let bits = O::Format::encode(level, content).to_bits();
        let step = match content {
            Content::Page { .. } => O::Format::span_mask(level) + 1,
            _ => 0,
        };
        let entries = FormatOf::<O>::ENTRIES;
        match self.ops.write_run(child, 0, entries, bits, step) {
            Some(()) => Ok(()),
            None => Err(bad::<O::Format>(va, level, Fault::NotMemory)),
        }
    }

    /// Disposes of a table of `level` that no entry refers to any more and of all below it, and tells `removed` of each
    /// leaf that is gone. Of what is shared with other trees only the reference is dropped.
    pub(super) fn dispose(
        &mut self,
        table: TableOf<O>,
        level: u8,
        va: u64,
        removed: &mut impl FnMut(MappingOf<O::Format>),
    ) -> Result<(), Error<O::Format>> {
        if let Some(shared) = self.ops.must_move(table, level) {
            self.ops.drop_shared(shared, level);
            return Ok(());
        }
        for index in 0..FormatOf::<O>::ENTRIES {
            let va = va + ((index as u64) << O::Format::shift(level));
            match decode_at(self.ops, table, level, va)? {
                Decoded::Table { table, .. } => self.dispose(table, level - 1, va, removed)?,
                Decoded::Content(content) => report::<O::Format>(level, va, content, removed),
            }
        }
        self.ops.retire_table(table, level);
        Ok(())
    }
}

/// Tells `removed` of a leaf that is gone.
#[inline(always)]
pub(super) fn report<F: Format>(
    level: u8,
    va: u64,
    content: ContentOf<F>,
    removed: &mut impl FnMut(MappingOf<F>),
) {
    if let (false, Some(size)) = (matches!(content, Content::Unmapped), F::leaf_size(level)) {
        removed(Mapping {
            virt: F::virt(va & !F::span_mask(level)),
            size,
            content,
        });
    }
}
