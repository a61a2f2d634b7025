//! Making tables ready for a change of a slot: what is missing is added, what must not be written in place is moved.

use super::access::{EntryOf, FormatOf, TableOf, TableOps};
use super::cursor::{Cursor, slot};
use super::error::{Error, Fault, PagingError};
use super::format::{Decoded, Entry, Format, FormatExt, MAX_LEVELS, Rights};
use super::query::bad;

impl<O: TableOps> Cursor<'_, O> {
    /// See [`Cursor::prepare`].
    pub(super) fn make_ready(&mut self) -> Result<(), Error<O::Format>> {
        // What may be needed at most: a copy of each table from the first that must move down, and each missing one.
        let bottom = if self.lacks_tables() {
            self.target
        } else {
            self.level
        };
        let moves = match self.moves {
            0 => 0,
            highest => highest + 1 - self.level,
        };
        let mut spare = Spare::<O> {
            tables: [None; MAX_LEVELS],
        };
        for place in spare
            .tables
            .iter_mut()
            .take((moves + self.level - bottom) as usize)
        {
            *place = self.ops.alloc_table();
            if place.is_none() {
                spare.give_back(self.ops);
                return Err(PagingError::OutOfTables);
            }
        }
        let done = self.rebuild(&mut spare, bottom);
        spare.give_back(self.ops);
        done
    }

    fn rebuild(&mut self, spare: &mut Spare<O>, bottom: u8) -> Result<(), Error<O::Format>> {
        let not_memory = |va, level| move || bad::<O::Format>(va, level, Fault::NotMemory);
        for level in (self.level..=self.fix).rev() {
            let mut table = self.path[slot(level)];
            let must_move = self.ops.must_move(table, level);
            if let Some(from) = must_move {
                table = spare.take()?;
                self.ops.move_table(from, level, table);
                self.path[slot(level)] = table;
                if level == O::Format::LEVELS {
                    self.ops.set_root(from, table);
                }
            }
            if level < O::Format::LEVELS {
                if must_move.is_none() {
                    self.ops.reopen_table(table, level);
                }
                let index = O::Format::index(self.va, level + 1);
                let above = self.path[slot(level + 1)];
                let entry = O::Format::table_entry(table);
                self.ops
                    .write_entry(above, index, entry)
                    .ok_or_else(not_memory(self.va, level + 1))?;
            }
        }
        if self.fix != 0 {
            // The copy may have taken rights from the leaf.
            let table = self.path[slot(self.level)];
            let index = O::Format::index(self.va, self.level);
            self.entry = self
                .ops
                .read_entry(table, index)
                .ok_or_else(not_memory(self.va, self.level))?;
            match O::Format::decode(self.level, self.entry) {
                Ok(Decoded::Content(content)) => self.content = content,
                Ok(Decoded::Table { .. }) => {
                    return Err(bad::<O::Format>(self.va, self.level, Fault::Misconfigured));
                }
                Err(fault) => return Err(bad::<O::Format>(self.va, self.level, fault)),
            }
            self.fix = 0;
            self.moves = 0;
            self.rights = Rights::ALL;
        }
        if bottom < self.level {
            // The new tables refer to one another first; the last store makes all of them visible.
            let top = self.level;
            let mut below = None;
            for level in bottom..top {
                let table = spare.take()?;
                self.path[slot(level)] = table;
                self.ops
                    .write_run(table, 0, FormatOf::<O>::ENTRIES, 0, 0)
                    .ok_or_else(not_memory(self.va, level))?;
                if let Some(below) = below {
                    let index = O::Format::index(self.va, level);
                    self.ops
                        .write_entry(table, index, O::Format::table_entry(below))
                        .ok_or_else(not_memory(self.va, level))?;
                }
                below = Some(table);
            }
            if let Some(below) = below {
                let index = O::Format::index(self.va, top);
                self.ops
                    .write_entry(self.path[slot(top)], index, O::Format::table_entry(below))
                    .ok_or_else(not_memory(self.va, top))?;
            }
            self.level = bottom;
            self.entry = EntryOf::<O>::EMPTY;
        }
        Ok(())
    }
}

/// Tables taken ahead of a change.
struct Spare<O: TableOps> {
    tables: [Option<TableOf<O>>; MAX_LEVELS],
}

impl<O: TableOps> Spare<O> {
    fn take(&mut self) -> Result<TableOf<O>, Error<O::Format>> {
        let table = self.tables.iter_mut().find_map(Option::take);
        // As many were taken as can be needed.
        table.ok_or(PagingError::OutOfTables)
    }
    fn give_back(&mut self, ops: &mut O) {
        for table in self.tables.iter_mut().filter_map(Option::take) {
            ops.free_table(table);
        }
    }
}
