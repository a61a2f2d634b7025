//! The way to the tables: reading apart from writing, so that a walk that only reads cannot write.

use super::format::{Entry, Error, Format};

/// The format of the tables that `O` gives access to.
pub type FormatOf<O> = <O as TableReadOps>::Format;
/// The address of a table that `O` gives access to.
pub type TableOf<O> = <<O as TableReadOps>::Format as Format>::Phys;
/// A virtual address of the tables that `O` gives access to.
pub type VirtOf<O> = <<O as TableReadOps>::Format as Format>::Virt;
/// An entry of the tables that `O` gives access to.
pub type EntryOf<O> = <<O as TableReadOps>::Format as Format>::Entry;
/// What an operation on the tables that `O` gives access to returns.
pub type ResultOf<O, T> = Result<T, Error<FormatOf<O>>>;
/// That a table must move, or the impossibility of that.
pub type MoveOf<O> = <<O as TableOps>::Movability as TableMovability>::Move<TableOf<O>>;

/// Reading tables.
///
/// The walker asks for the root, for what was allocated as a table, and for what an entry of one of these refers to as one:
/// that is what the unsafe methods here and of [`TableOps`] mean by a table.
pub trait TableReadOps {
    /// Their format.
    type Format: Format;

    /// The table at the top.
    fn root(&self) -> TableOf<Self>;
    /// Whether a tree may start at `table`, which may be any address. Only who looks at what it is asked for can say so.
    fn is_root(&self, table: TableOf<Self>) -> bool {
        let _ = table;
        false
    }
    /// Entry `index` of `table`, by one load. `None` where there is no such memory: who does not look asks for anything that
    /// an entry can hold.
    ///
    /// # Safety
    /// `table` must be one of this tree, or what [`TableReadOps::is_root`] says is one.
    unsafe fn read_entry(&self, table: TableOf<Self>, index: usize) -> Option<EntryOf<Self>>;
}

/// Changing tables.
pub trait TableOps: TableReadOps {
    /// [`MayMoveTable`] where some tables must not be written in place, else [`MayNotMoveTable`], and then what is said here
    /// of tables that must move need not be.
    type Movability: TableMovability;

    /// A table of any content, that nobody else uses: the walker fills it before it links it. `None` where there is no
    /// memory for it.
    fn alloc_table(&mut self) -> Option<TableOf<Self>>;
    /// Takes back a table that no entry has ever referred to.
    ///
    /// # Safety
    /// It must be one from [`TableOps::alloc_table`], and nobody uses it any more.
    unsafe fn free_table(&mut self, table: TableOf<Self>);
    /// Takes a table of `level` that no entry refers to any more. CPUs may go on using it until their caches are
    /// invalidated, so who has CPUs running on the tables keeps it until then.
    ///
    /// # Safety
    /// It must be a table of this tree, and the walker has unlinked it.
    unsafe fn retire_table(&mut self, table: TableOf<Self>, level: u8) {
        let _ = level;
        // SAFETY: who does not tell tables apart takes each back.
        unsafe { self.free_table(table) };
    }

    /// Replaces an entry by one store, of which nothing done before becomes visible later. `None` where there is no
    /// such memory, and nothing is written.
    ///
    /// # Safety
    /// `table` must be one of this tree, and the entry must be of a leaf, of a table of this tree, or of nothing.
    unsafe fn write_entry(
        &mut self,
        table: TableOf<Self>,
        index: usize,
        entry: EntryOf<Self>,
    ) -> Option<()>;
    /// Takes note that an entry was replaced or removed that was not empty: CPUs may have what it said cached. Nobody says
    /// so of what [`Cursor`](super::Cursor) puts, who uses one knows what stood there.
    fn note_replaced(&mut self) {}
    /// Replaces an entry that the CPU may be changing, where there is one: writes `new` where `old` still stands, else returns
    /// what stands there.
    ///
    /// # Safety
    /// As for [`TableOps::write_entry`].
    unsafe fn compare_exchange(
        &mut self,
        table: TableOf<Self>,
        index: usize,
        old: EntryOf<Self>,
        new: EntryOf<Self>,
    ) -> Option<Result<(), EntryOf<Self>>> {
        // SAFETY: the caller's.
        let found = unsafe { self.read_entry(table, index) }?;
        if found != old {
            return Some(Err(found));
        }
        // SAFETY: the caller's.
        unsafe { self.write_entry(table, index, new) }.map(Ok)
    }
    /// Writes `count` entries from `first` on, of which the first has these bits and each next one is greater by `step`.
    ///
    /// # Safety
    /// As for [`TableOps::write_entry`].
    unsafe fn write_run(
        &mut self,
        table: TableOf<Self>,
        first: usize,
        count: usize,
        mut bits: u64,
        step: u64,
    ) -> Option<()> {
        for index in first..first + count {
            // SAFETY: the caller's.
            unsafe { self.write_entry(table, index, EntryOf::<Self>::from_bits(bits)) }?;
            bits = bits.wrapping_add(step);
        }
        Some(())
    }

    /// Whether `table`, of `level`, must not be written in place. Asked from the root downwards, each time before a
    /// table is changed; the tables above have been moved where they had to be.
    fn must_move(&self, table: TableOf<Self>, level: u8) -> Option<MoveOf<Self>> {
        const { assert!(!Self::Movability::MOVES) };
        let _ = (table, level);
        None
    }
    /// Makes `to`, a table from [`TableOps::alloc_table`], a copy of a table of `level` that must move, and takes
    /// note that one reference fewer stands on the old one and one more on everything that it refers to. The caller
    /// links `to`.
    ///
    /// # Errors
    /// This has as many references as can be counted, and nothing has changed.
    ///
    /// # Safety
    /// Both must be tables of this tree.
    unsafe fn move_table(
        &mut self,
        from: MoveOf<Self>,
        level: u8,
        to: TableOf<Self>,
    ) -> Result<(), TableOf<Self>> {
        const { assert!(!Self::Movability::MOVES) };
        let _ = (from, level, to);
        Ok(())
    }
    /// Takes note that one reference fewer stands on a table of `level` that must not be written: it was unlinked.
    ///
    /// # Safety
    /// As for [`TableOps::retire_table`].
    unsafe fn drop_shared(&mut self, table: MoveOf<Self>, level: u8) {
        const { assert!(!Self::Movability::MOVES) };
        let _ = (table, level);
    }
    /// Takes note that a table of `level`, which other trees referred to too and which is this one's alone now, is about
    /// to be opened for writing where it is.
    ///
    /// # Safety
    /// `table` must be one of this tree.
    unsafe fn reopen_table(&mut self, table: TableOf<Self>, level: u8) {
        let _ = (table, level);
    }
    /// Takes note that `entry`, a leaf of `level` in a table that may be written, is about to be replaced by a table of
    /// leaves that refer to its parts: where references are counted there will be more of them.
    ///
    /// # Errors
    /// As for [`TableOps::move_table`].
    ///
    /// # Safety
    /// The entry must stand in a table of this tree.
    unsafe fn split_leaf(&mut self, entry: EntryOf<Self>, level: u8) -> Result<(), TableOf<Self>> {
        let _ = (entry, level);
        Ok(())
    }
    /// What two leaves with these attributes may be merged to, if they may be: only accessed and dirty differ, or what else
    /// the tables can do without.
    fn merge_attr(
        &self,
        attr: <FormatOf<Self> as Format>::Attr,
        other: <FormatOf<Self> as Format>::Attr,
    ) -> Option<<FormatOf<Self> as Format>::Attr> {
        let both = FormatOf::<Self>::merge_status(attr, other);
        (FormatOf::<Self>::merge_status(other, attr) == both).then_some(both)
    }
    /// Asks whether the leaves of `table`, of `level`, which may be written, may be replaced by one leaf: they say the
    /// same of pages that lie one behind the other. Where references are counted there will be fewer of them.
    ///
    /// # Safety
    /// `table` must be one of this tree, and where they may be replaced they are.
    unsafe fn merge_leaves(&mut self, table: TableOf<Self>, level: u8) -> bool {
        let _ = (table, level);
        true
    }
    /// Makes `to` the root. `from` is what [`TableOps::must_move`] said of the old one.
    ///
    /// # Safety
    /// `to` must be a table of this tree.
    unsafe fn set_root(&mut self, from: MoveOf<Self>, to: TableOf<Self>) {
        const { assert!(!Self::Movability::MOVES) };
        let _ = (from, to);
    }
}

/// Whether tables may move: [`MayMoveTable`] or [`MayNotMoveTable`].
pub trait TableMovability {
    /// That the table at `P` must move.
    type Move<P: Copy>: Copy;
    /// Whether any ever does.
    const MOVES: bool;
}

/// Some tables must not be written in place: a write moves them.
pub enum MayMoveTable {}
/// Every table may be written in place. That one must move cannot even be said, so nothing is paid for it.
pub enum MayNotMoveTable {}
/// What cannot be.
#[derive(Clone, Copy, Debug)]
pub enum Never {}

impl TableMovability for MayMoveTable {
    type Move<P: Copy> = P;
    const MOVES: bool = true;
}
impl TableMovability for MayNotMoveTable {
    type Move<P: Copy> = Never;
    const MOVES: bool = false;
}
