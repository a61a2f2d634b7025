//! One slot of the tables: found by one descent, made ready by another, changed by one store.

use super::access::{FormatOf, ResultOf, TableMovability, TableOps, VirtOf};
use super::edit::Edit;
use super::format::{Content, ContentOf, Decoded, DecodedOf, Error, Format, FormatExt, Rights};
use super::part::Part;
use super::table::Table;
use crate::addr::PageSize;

/// The slot that translates an address: its entry can be looked at, tables made ready for a change, and the entry
/// replaced.
///
/// [`Cursor::new`] only reads. [`Cursor::prepare`] allocates what is missing above the slot, moves the tables that must
/// not be written in place, and can fail, in which case nothing has changed. After it [`Cursor::set`] cannot fail for
/// want of memory. Between the steps, [`Cursor::ops`] is at hand, for instance to take a frame.
pub struct Cursor<'o, O: TableOps> {
    ops: &'o mut O,
    /// The level asked for.
    target: u8,
    /// The slot, of a level above `target` where a leaf or nothing is in the way.
    pub(super) at: Part<FormatOf<O>>,
    pub(super) table: Table<O>,
    content: ContentOf<O::Format>,
    /// The highest level whose table must move; 0 where none must.
    moves: u8,
    /// Whether some table must move, or the entry that refers to it must be opened again.
    closed: bool,
}

impl<'o, O: TableOps> Cursor<'o, O> {
    /// The slot for a page of `size` that contains `address`.
    ///
    /// # Errors
    /// The address cannot be translated, there is no such leaf, or an entry on the way is bad.
    pub fn new(
        ops: &'o mut O,
        address: VirtOf<O>,
        size: PageSize,
    ) -> Result<Self, Error<O::Format>> {
        let va = FormatOf::<O>::va_of(address)?;
        Self::at_level(ops, va, FormatOf::<O>::level_of(size)?)
    }

    pub(super) fn at_level(ops: &'o mut O, va: u64, target: u8) -> Result<Self, Error<O::Format>> {
        let mut table = Table::root(ops);
        let mut at = Part::at(O::Format::LEVELS, va);
        let (mut moves, mut closed) = (0, false);
        loop {
            if O::Movability::MOVES && moves == 0 && table.must_move(ops, at.level).is_some() {
                (moves, closed) = (at.level, true);
            }
            match table.look(ops, at)?.1 {
                Decoded::Table { .. } if at.level <= target => return Err(at.taken()),
                Decoded::Table {
                    table: next,
                    rights,
                } => {
                    closed |= O::Movability::MOVES && !rights.contains(Rights::WRITE);
                    table = next;
                    at = at.below();
                }
                Decoded::Content(content) => {
                    return Ok(Self {
                        ops,
                        target,
                        at,
                        table,
                        content,
                        moves,
                        closed,
                    });
                }
            }
        }
    }

    /// The level of the slot: that of the size asked for, or higher where a larger leaf or nothing stands there.
    pub fn level(&self) -> u8 {
        self.at.level
    }
    /// The size of the page that the slot can hold, or `None` where it can hold a table only.
    pub fn size(&self) -> Option<PageSize> {
        O::Format::leaf_size(self.at.level)
    }
    /// Which entry of the table the slot is.
    pub fn index(&self) -> usize {
        self.at.index()
    }
    /// What the entry says by itself, without what the tables above deny.
    pub fn content(&self) -> ContentOf<O::Format> {
        self.content
    }
    /// Whether [`Cursor::set`] can be called at once: the tables are there and may be written in place.
    pub fn is_ready(&self) -> bool {
        !self.closed && !self.lacks_tables()
    }
    /// The access to the tables.
    pub fn ops(&mut self) -> &mut O {
        self.ops
    }

    fn lacks_tables(&self) -> bool {
        self.at.level > self.target && matches!(self.content, Content::Unmapped)
    }

    /// Makes the slot ready to be written: every table down to the size asked for there, private and granting
    /// everything. Where a larger leaf is in the way the slot stays at that leaf's level.
    ///
    /// # Errors
    /// There is no table left. What is mapped is as it was.
    pub fn prepare(&mut self) -> Result<(), Error<O::Format>> {
        if self.is_ready() {
            return Ok(());
        }
        let (level, va) = (self.at.level, self.at.va);
        let bottom = if self.lacks_tables() {
            self.target
        } else {
            level
        };
        // A copy of each table from the first that must move down, and each missing one.
        let copies = if self.moves > 0 {
            self.moves + 1 - level
        } else {
            0
        };
        self.table = Edit::run(self.ops, (copies + level - bottom).into(), |edit| {
            let mut table = edit.own_root()?;
            for level in (bottom + 1..=O::Format::LEVELS).rev() {
                let at = Part::at(level, va);
                table = match table.look(edit.ops, at)?.1 {
                    Decoded::Table {
                        table: below,
                        rights,
                    } => edit.own(table, at, below, rights)?,
                    Decoded::Content(_) => {
                        let below = edit.take()?;
                        below.clear(edit.ops, at.below())?;
                        table.link(edit.ops, at, below)?;
                        below
                    }
                };
            }
            Ok(table)
        })?;
        self.at = Part::at(bottom, va);
        (self.moves, self.closed) = (0, false);
        // The copy may have taken rights from the leaf.
        if let Decoded::Content(content) = self.table.look(self.ops, self.at)?.1 {
            self.content = content;
        }
        Ok(())
    }

    /// Replaces the entry by one store, after [`Cursor::prepare`] if need be. What stood there before is the caller's
    /// to invalidate where it was present. A larger leaf in the way is an error: split it first.
    ///
    /// # Errors
    /// A larger leaf is in the way, the content does not fit the slot, or a table is missing. What is mapped is as it
    /// was.
    pub fn set(&mut self, content: ContentOf<O::Format>) -> Result<(), Error<O::Format>> {
        if self.lacks_tables() && matches!(content, Content::Unmapped) {
            return Ok(());
        }
        if self.at.level > self.target && !self.lacks_tables() {
            return Err(self.at.taken());
        }
        O::Format::check(self.target, content, 1)?;
        self.prepare()?;
        let entry = O::Format::encode(self.at.level, content);
        self.table.write(self.ops, self.at, entry)?;
        self.content = content;
        Ok(())
    }

    /// What another slot of the same table holds.
    ///
    /// # Errors
    /// The entry is bad.
    pub fn neighbour(&self, index: usize) -> ResultOf<O, DecodedOf<O::Format>> {
        let at = Part::at(
            self.at.level,
            (index as u64) << O::Format::shift(self.at.level),
        );
        let entry = self.table.read(self.ops, at)?;
        O::Format::decode(at.level, entry).map_err(|fault| self.at.bad(fault))
    }
}
