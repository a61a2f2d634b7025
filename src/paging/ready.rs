//! Making tables ready for a change of a slot: what is missing is added, what must not be written in place is moved.

use super::access::{EntryOf, ResultOf, TableOps};
use super::cursor::Cursor;
use super::edit::Edit;
use super::format::{Decoded, Entry, Format, Rights, slot};
use super::part::Part;
use super::query::{bad, read_at};

impl<O: TableOps> Cursor<'_, O> {
    /// See [`Cursor::prepare`].
    pub(super) fn make_ready(&mut self) -> ResultOf<O, ()> {
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
        let tables = moves + self.level - bottom;
        let Self {
            ops, va, path, fix, ..
        } = self;
        let (va, fix, lowest) = (*va, *fix, self.level);
        Edit::run(*ops, tables.into(), |edit| {
            for level in (lowest..=fix).rev() {
                path[slot(level)] = if level == O::Format::LEVELS {
                    edit.own_root()?
                } else {
                    let above = path[slot(level + 1)];
                    edit.own(
                        above,
                        Part::at(level + 1, va),
                        path[slot(level)],
                        Rights::NONE,
                    )?
                };
            }
            // The new tables refer to one another first; the last store makes all of them visible.
            for level in bottom..lowest {
                let table = edit.take()?;
                edit.clear(table, Part::at(level, va))?;
                path[slot(level)] = table;
            }
            for level in bottom..lowest {
                let entry = O::Format::table_entry(path[slot(level)]);
                edit.write(path[slot(level + 1)], Part::at(level + 1, va), entry)?;
            }
            Ok(())
        })?;
        if fix != 0 {
            // The copy may have taken rights from the leaf.
            self.entry = read_at(self.ops, self.table(), lowest, va)?;
            match O::Format::decode(lowest, self.entry) {
                Ok(Decoded::Content(content)) => self.content = content,
                Ok(Decoded::Table { .. }) => {}
                Err(fault) => return Err(bad::<O::Format>(va, lowest, fault)),
            }
            (self.fix, self.moves, self.rights) = (0, 0, Rights::ALL);
        }
        if bottom < lowest {
            (self.level, self.entry) = (bottom, EntryOf::<O>::EMPTY);
        }
        Ok(())
    }
}
