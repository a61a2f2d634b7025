//! One slot of the tables: found by one descent, changed by one store.

use super::access::{EntryOf, FormatOf, TableMovability, TableOf, TableOps, VirtOf};
use super::error::{Fault, PagingError};
use super::format::{
    Content, ContentOf, Decoded, DecodedOf, Entry, Error, Format, FormatExt, MAX_LEVELS, Rights,
    slot,
};
use super::query::{Reached, bad};
use crate::addr::PageSize;

/// The slot that translates an address: its entry can be looked at, tables made ready for a change, and the entry
/// replaced.
///
/// [`Cursor::new`] only reads. [`Cursor::prepare`] allocates what is missing above the slot, moves the tables that must
/// not be written in place, and can fail, in which case nothing has changed. After it [`Cursor::set`] cannot fail for
/// want of memory. Between the steps, [`Cursor::ops`] is at hand, for instance to take a frame.
pub struct Cursor<'o, O: TableOps> {
    pub(super) ops: &'o mut O,
    pub(super) va: u64,
    /// The level asked for.
    pub(super) target: u8,
    /// The level of the slot: above `target` where a leaf or nothing is in the way.
    pub(super) level: u8,
    /// The tables from the root to the slot's, by their level less 1.
    pub(super) path: [TableOf<O>; MAX_LEVELS],
    pub(super) entry: EntryOf<O>,
    pub(super) content: ContentOf<O::Format>,
    /// The highest level whose table must move, or whose entry must be opened again; 0 where none must.
    pub(super) fix: u8,
    /// The highest level whose table must move; 0 where none must.
    pub(super) moves: u8,
    /// What the tables above let through.
    pub(super) rights: Rights,
}

impl<'o, O: TableOps> Cursor<'o, O> {
    /// The slot for a page of `size` that contains `address`.
    ///
    /// # Errors
    /// The address cannot be translated, there is no such leaf, or an entry on the way is bad.
    #[inline]
    pub fn new(
        ops: &'o mut O,
        address: VirtOf<O>,
        size: PageSize,
    ) -> Result<Self, Error<O::Format>> {
        let va = FormatOf::<O>::va_of(address)?;
        Self::at_level(ops, va, FormatOf::<O>::level_of(size)?)
    }

    /// The slot for a page of the smallest size in `table`, which must be the lowest table for `address`. It and all tables
    /// above it must be such that nothing is left for [`Cursor::prepare`] to do.
    ///
    /// # Errors
    /// The address cannot be translated, or there is no leaf of the smallest size.
    #[inline]
    pub fn in_table(
        ops: &'o mut O,
        address: VirtOf<O>,
        table: TableOf<O>,
    ) -> Result<Self, Error<O::Format>> {
        let va = FormatOf::<O>::va_of(address)?;
        let mut cursor = Self {
            va,
            target: 1,
            level: 1,
            path: [table; MAX_LEVELS],
            entry: EntryOf::<O>::EMPTY,
            content: Content::Unmapped,
            fix: 0,
            moves: 0,
            rights: Rights::ALL,
            ops,
        };
        let Some(entry) = cursor.ops.read_entry(table, cursor.index()) else {
            return Err(bad::<O::Format>(va, 1, Fault::NotMemory));
        };
        cursor.entry = entry;
        match O::Format::decode(1, entry) {
            Ok(Decoded::Content(content)) => cursor.content = content,
            Ok(Decoded::Table { .. }) => return Err(bad::<O::Format>(va, 1, Fault::Reserved)),
            Err(fault) => return Err(bad::<O::Format>(va, 1, fault)),
        }
        Ok(cursor)
    }

    #[inline(always)]
    pub(super) fn at_level(ops: &'o mut O, va: u64, target: u8) -> Result<Self, Error<O::Format>> {
        let mut at = Reached::root(ops);
        let mut path = [at.table; MAX_LEVELS];
        let (mut fix, mut moves) = (0, 0);
        let mut granted = Rights::ALL;
        loop {
            let found = at.descend(ops, va, target, |table, level| {
                if O::Movability::MOVES
                    && !O::WRITE_MEANS_PRIVATE
                    && moves == 0
                    && ops.must_move(table, level).is_some()
                {
                    moves = level;
                    fix = level.max(fix);
                }
                path[slot(level)] = table;
            });
            let level = at.level;
            let Some(entry) = found else {
                return Err(bad::<O::Format>(va, level, Fault::NotMemory));
            };
            match O::Format::decode(level, entry) {
                Ok(Decoded::Table {
                    table: next,
                    rights,
                }) if level > target => {
                    if O::Movability::MOVES && fix == 0 && !rights.contains(Rights::WRITE) {
                        // The entry is opened when the table below has been made private.
                        fix = level - 1;
                        if O::WRITE_MEANS_PRIVATE {
                            // From here on anything may be shared.
                            moves = fix;
                        }
                    }
                    granted = granted.and(rights);
                    at = Reached {
                        table: next,
                        level: level - 1,
                    };
                }
                Ok(decoded) => {
                    let content = match decoded {
                        Decoded::Content(content) => content,
                        Decoded::Table { .. } => {
                            return Err(PagingError::AlreadyMapped {
                                address: O::Format::virt(va & !O::Format::span_mask(level)),
                                level,
                            });
                        }
                    };
                    return Ok(Self {
                        ops,
                        va,
                        target,
                        level,
                        path,
                        entry,
                        content,
                        fix,
                        moves,
                        rights: granted,
                    });
                }
                Err(fault) => return Err(bad::<O::Format>(va, level, fault)),
            }
        }
    }

    /// The level of the slot: that of the size asked for, or higher where a larger leaf or nothing stands there.
    #[inline]
    pub fn level(&self) -> u8 {
        self.level
    }
    /// The size of the page that the slot can hold, or `None` where it can hold a table only.
    pub fn size(&self) -> Option<PageSize> {
        O::Format::leaf_size(self.level)
    }
    /// The first address that the slot translates.
    pub fn start(&self) -> VirtOf<O> {
        O::Format::virt(self.va & !O::Format::span_mask(self.level))
    }
    /// The table that the slot is in. It is another one after [`Cursor::prepare`] where tables were added or moved.
    pub fn table(&self) -> TableOf<O> {
        self.path[slot(self.level)]
    }
    /// Which entry of the table the slot is.
    pub fn index(&self) -> usize {
        O::Format::index(self.va, self.level)
    }
    /// The entry as it was read.
    #[inline]
    pub fn entry(&self) -> EntryOf<O> {
        self.entry
    }
    /// What the entry says by itself, without what the tables above deny.
    #[inline]
    pub fn content(&self) -> ContentOf<O::Format> {
        self.content
    }
    /// Whether [`Cursor::set`] can be called at once: the tables are there and may be written in place.
    #[inline]
    pub fn is_ready(&self) -> bool {
        (!O::Movability::MOVES || self.fix == 0) && !self.lacks_tables()
    }
    /// The access to the tables.
    #[inline]
    pub fn ops(&mut self) -> &mut O {
        self.ops
    }

    /// What the tables above let through; what they deny, the leaf cannot grant. Those that may move are opened by
    /// [`Cursor::prepare`].
    pub fn rights(&self) -> Rights {
        self.rights
    }

    #[inline(always)]
    pub(super) fn lacks_tables(&self) -> bool {
        self.level > self.target && matches!(self.content, Content::Unmapped)
    }

    /// Makes the slot ready to be written: every table down to the size asked for there, private and granting
    /// everything. Where a larger leaf is in the way the slot stays at that leaf's level.
    ///
    /// # Errors
    /// There is no table left. What is mapped is as it was.
    #[inline]
    pub fn prepare(&mut self) -> Result<(), Error<O::Format>> {
        if self.is_ready() {
            return Ok(());
        }
        self.make_ready()
    }

    /// Replaces the entry by one store, after [`Cursor::prepare`] if need be. What stood there before is the caller's
    /// to invalidate where it was present. A larger leaf in the way is an error: split it first.
    ///
    /// # Errors
    /// A larger leaf is in the way, the content does not fit the slot, or a table is missing. What is mapped is as it
    /// was.
    #[inline]
    pub fn set(&mut self, content: ContentOf<O::Format>) -> Result<(), Error<O::Format>> {
        if self.lacks_tables() && matches!(content, Content::Unmapped) {
            return Ok(());
        }
        self.check(content)?;
        self.prepare()?;
        let entry = O::Format::encode(self.level, content);
        self.write(self.index(), entry)?;
        self.entry = entry;
        self.content = content;
        Ok(())
    }

    /// As [`Cursor::set`] with a page, made for the case that the slot is ready.
    ///
    /// # Errors
    /// As of [`Cursor::set`].
    #[inline(always)]
    pub fn set_page(
        &mut self,
        phys: TableOf<O>,
        attr: <O::Format as Format>::Attr,
    ) -> Result<(), Error<O::Format>> {
        let content = Content::Page { phys, attr };
        if self.level != self.target || !self.is_ready() {
            return self.set(content);
        }
        O::Format::check(self.target, content)?;
        let entry = O::Format::encode(self.target, content);
        self.write(O::Format::index(self.va, self.target), entry)?;
        (self.entry, self.content) = (entry, content);
        Ok(())
    }

    /// Whether a slot of the size asked for can hold the content, and nothing larger is in the way.
    #[inline(always)]
    fn check(&self, content: ContentOf<O::Format>) -> Result<(), Error<O::Format>> {
        if self.level > self.target && !self.lacks_tables() {
            return Err(PagingError::AlreadyMapped {
                address: self.start(),
                level: self.level,
            });
        }
        O::Format::check(self.target, content)
    }

    /// What another slot of the same table holds: a neighbour that may be filled in the same go.
    ///
    /// # Errors
    /// The entry is bad.
    pub fn neighbour(&self, index: usize) -> Result<DecodedOf<O::Format>, Error<O::Format>> {
        let fault = match self.ops.read_entry(self.table(), index) {
            Some(entry) => match O::Format::decode(self.level, entry) {
                Ok(decoded) => return Ok(decoded),
                Err(fault) => fault,
            },
            None => Fault::NotMemory,
        };
        Err(bad::<O::Format>(self.va, self.level, fault))
    }

    #[inline(always)]
    fn write(&mut self, index: usize, entry: EntryOf<O>) -> Result<(), Error<O::Format>> {
        match self
            .ops
            .write_entry(self.path[slot(self.level)], index, entry)
        {
            Some(()) => Ok(()),
            None => Err(bad::<O::Format>(self.va, self.level, Fault::NotMemory)),
        }
    }
}
