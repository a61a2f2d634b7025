//! A table that is known to be one, and whatever is done to it. Only here are the traits' unsafe methods called: a [`Table`] is
//! made of a root, of what was allocated as one, or of an entry of another, and of nothing else.

use super::access::{EntryOf, FormatOf, MoveOf, ResultOf, TableOf, TableOps, TableReadOps};
use super::error::{Fault, PagingError};
use super::format::{ContentOf, Decoded, Format, FormatExt, Rights};
use super::part::Part;

/// The address of a table that may be asked for.
pub(super) struct Table<O: TableReadOps>(TableOf<O>);

/// What an entry of a table says.
pub(super) type Says<O> = Decoded<TableOf<O>, <FormatOf<O> as Format>::Attr, Table<O>>;

/// The end of the way of an address, what the tables above let through, and what stands there.
pub(super) type End<F> = (Part<F>, Rights, ContentOf<F>);

impl<O: TableReadOps> Clone for Table<O> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<O: TableReadOps> Copy for Table<O> {}

impl<O: TableReadOps> Table<O> {
    /// The root.
    #[inline(always)]
    pub(super) fn root(ops: &O) -> Self {
        Self(ops.root())
    }
    /// The table at `root`, if a tree may start there.
    pub(super) fn at_root(ops: &O, root: TableOf<O>) -> Option<Self> {
        ops.is_root(root).then_some(Self(root))
    }
    /// The table of level 1 for `va`, where all tables above it let everything through, as nearly all do. It is the one descent
    /// made by hand: for the rows `map_pages` and `query_random` of `make bench-walker`.
    #[inline(always)]
    pub(super) fn lowest(ops: &O, va: u64) -> Option<Self> {
        let (mut table, mut level) = (Self::root(ops), O::Format::LEVELS);
        while level > 1 {
            table = table.open(ops, O::Format::index(va, level))?;
            level -= 1;
        }
        Some(table)
    }
    /// The end of the way of an address. Shows `see` every entry, with the level and the table.
    #[inline(always)]
    pub(super) fn find(
        ops: &O,
        va: u64,
        mut see: impl FnMut(u8, TableOf<O>, EntryOf<O>),
    ) -> ResultOf<O, End<O::Format>> {
        let (mut table, mut level) = (Self::root(ops), O::Format::LEVELS);
        let mut rights = Rights::ALL;
        loop {
            let Some(entry) = table.entry(ops, O::Format::index(va, level)) else {
                return Err(Part::<O::Format>::at(level, va).bad(Fault::NotMemory));
            };
            see(level, table.0, entry);
            match O::Format::decode(level, entry) {
                Ok(Decoded::Table {
                    table: next,
                    rights: granted,
                }) => {
                    table = Self(next);
                    rights = rights.and(granted);
                    level -= 1;
                }
                Ok(Decoded::Content(content)) => return Ok((Part::at(level, va), rights, content)),
                Err(fault) => return Err(Part::<O::Format>::at(level, va).bad(fault)),
            }
        }
    }
    /// Where it is.
    #[inline(always)]
    pub(super) const fn address(self) -> TableOf<O> {
        self.0
    }
    /// One entry.
    #[inline(always)]
    pub(super) fn entry(self, ops: &O, index: usize) -> Option<EntryOf<O>> {
        // SAFETY: it is a table, as the first lines of this file say.
        unsafe { ops.read_entry(self.0, index) }
    }
    /// The table that an entry lets everything through to.
    #[inline(always)]
    pub(super) fn open(self, ops: &O, index: usize) -> Option<Self> {
        O::Format::open_table(self.entry(ops, index)?).map(Self)
    }
    /// The entry for an address.
    #[inline(always)]
    pub(super) fn read(self, ops: &O, at: Part<O::Format>) -> ResultOf<O, EntryOf<O>> {
        match self.entry(ops, at.index()) {
            Some(entry) => Ok(entry),
            None => Err(at.bad(Fault::NotMemory)),
        }
    }
    /// The entry for an address, and what it says.
    #[inline(always)]
    pub(super) fn look(self, ops: &O, at: Part<O::Format>) -> ResultOf<O, (EntryOf<O>, Says<O>)> {
        let entry = self.read(ops, at)?;
        match O::Format::decode(at.level, entry) {
            Ok(Decoded::Content(content)) => Ok((entry, Decoded::Content(content))),
            Ok(Decoded::Table { table, rights }) => {
                let table = Self(table);
                Ok((entry, Decoded::Table { table, rights }))
            }
            Err(fault) => Err(at.bad(fault)),
        }
    }
}

impl<O: TableOps> Table<O> {
    /// A table of any content.
    pub(super) fn alloc(ops: &mut O) -> ResultOf<O, Self> {
        ops.alloc_table().map(Self).ok_or(PagingError::OutOfTables)
    }
    /// Gives it back; no entry has ever referred to it.
    pub(super) fn free(self, ops: &mut O) {
        // SAFETY: as for `entry`; it is linked nowhere.
        unsafe { ops.free_table(self.0) }
    }
    /// Gives it back; no entry refers to it any more.
    pub(super) fn retire(self, ops: &mut O, level: u8) {
        // SAFETY: as for `entry`; it was unlinked.
        unsafe { ops.retire_table(self.0, level) }
    }
    /// Replaces the entry for an address by one store.
    #[inline(always)]
    pub(super) fn write(
        self,
        ops: &mut O,
        at: Part<O::Format>,
        entry: EntryOf<O>,
    ) -> ResultOf<O, ()> {
        // SAFETY: as for `entry`.
        match unsafe { ops.write_entry(self.0, at.index(), entry) } {
            Some(()) => Ok(()),
            None => Err(at.bad(Fault::NotMemory)),
        }
    }
    /// Has the entry for an address refer to a table.
    pub(super) fn link(self, ops: &mut O, at: Part<O::Format>, to: Self) -> ResultOf<O, ()> {
        self.write(ops, at, O::Format::table_entry(to.0))
    }
    /// Replaces it where `old` still stands there, else returns what does.
    #[inline(always)]
    pub(super) fn compare_exchange(
        self,
        ops: &mut O,
        at: Part<O::Format>,
        old: EntryOf<O>,
        new: EntryOf<O>,
    ) -> ResultOf<O, Result<(), EntryOf<O>>> {
        // SAFETY: as for `entry`.
        let done = unsafe { ops.compare_exchange(self.0, at.index(), old, new) };
        done.ok_or_else(|| at.bad(Fault::NotMemory))
    }
    /// Writes a number of entries from an index on: the first of these bits, each next one greater by `step`.
    #[inline(always)]
    pub(super) fn fill(
        self,
        ops: &mut O,
        at: Part<O::Format>,
        (first, count): (usize, usize),
        bits: u64,
        step: u64,
    ) -> ResultOf<O, ()> {
        // SAFETY: as for `entry`.
        match unsafe { ops.write_run(self.0, first, count, bits, step) } {
            Some(()) => Ok(()),
            None => Err(at.bad(Fault::NotMemory)),
        }
    }
    /// Makes it hold nothing.
    pub(super) fn clear(self, ops: &mut O, at: Part<O::Format>) -> ResultOf<O, ()> {
        self.fill(ops, at, (0, O::Format::ENTRIES), 0, 0)
    }

    /// Whether it must move before it is written.
    pub(super) fn must_move(self, ops: &O, level: u8) -> Option<MoveOf<O>> {
        ops.must_move(self.0, level)
    }
    /// Becomes the copy of a table that must move, unless there can be no more references.
    pub(super) fn copy(self, ops: &mut O, from: MoveOf<O>, level: u8) -> Result<(), TableOf<O>> {
        // SAFETY: as for `entry`; what must move was a table too.
        unsafe { ops.move_table(from, level, self.0) }
    }
    /// Becomes the root, a copy of the one that had to move.
    pub(super) fn set_root(self, ops: &mut O, from: MoveOf<O>) {
        // SAFETY: as for `entry`.
        unsafe { ops.set_root(from, self.0) }
    }
    /// It is about to be written again in the place where it is.
    pub(super) fn reopen(self, ops: &mut O, level: u8) {
        // SAFETY: as for `entry`; it need not move.
        unsafe { ops.reopen_table(self.0, level) }
    }
    /// Whether its leaves may be replaced by one.
    pub(super) fn merge_leaves(self, ops: &mut O, level: u8) -> bool {
        // SAFETY: as for `entry`; it may be written, and its leaves go.
        unsafe { ops.merge_leaves(self.0, level) }
    }
    /// `old`, which was read from it, is about to be split.
    pub(super) fn split_leaf(
        self,
        ops: &mut O,
        old: EntryOf<O>,
        level: u8,
    ) -> Result<(), TableOf<O>> {
        // SAFETY: the entry is of this table, which may be written.
        unsafe { ops.split_leaf(old, level) }
    }
    /// Drops the reference to it that was unlinked, if others share it.
    pub(super) fn drop_shared(self, ops: &mut O, level: u8) -> bool {
        let shared = ops.must_move(self.0, level);
        // SAFETY: as for `entry`; it was unlinked.
        let dropped = shared.map(|shared| unsafe { ops.drop_shared(shared, level) });
        dropped.is_some()
    }
}
