//! The beginning of what a cursor does, for whoever has a short way for the frequent case.

use super::access::{EntryOf, FormatOf, TableMovability, TableOf, TableOps, TableReadOps, VirtOf};
use super::format::{Content, Entry, Format, FormatExt};
use crate::addr::Address;

/// Where a descent of the tables is.
pub(super) struct Descent<P> {
    pub(super) table: P,
    pub(super) level: u8,
}

impl<P: Copy> Descent<P> {
    /// Goes down as long as the entries for `va` are of tables and let everything through, as nearly all do, but not below
    /// `target`. Tells `pass` of each table, and yields the entry in the last one.
    #[inline(always)]
    pub(super) fn through_open<O>(
        &mut self,
        ops: &O,
        va: u64,
        target: u8,
        mut pass: impl FnMut(P, u8),
    ) -> Option<EntryOf<O>>
    where
        O: TableReadOps<Format: Format<Phys = P>>,
    {
        loop {
            pass(self.table, self.level);
            let entry = ops.read_entry(self.table, O::Format::index(va, self.level))?;
            match O::Format::open_table(entry) {
                Some(next) if self.level > target => {
                    self.table = next;
                    self.level -= 1;
                }
                _ => return Some(entry),
            }
        }
    }
}

/// A slot of the lowest level that [`open_slot`] found.
#[derive(Clone, Copy, Debug)]
pub struct OpenSlot<P, E> {
    /// The table that it is in.
    pub table: P,
    /// Which entry it is.
    pub index: usize,
    /// The entry as it was read.
    pub entry: E,
}

impl<P: Address, E: Entry> OpenSlot<P, E> {
    /// Puts a page into the slot by one store. What stood there before is the caller's to invalidate. `None` where there
    /// is no such memory.
    #[inline(always)]
    pub fn set_page<O>(self, ops: &mut O, phys: P, attr: <O::Format as Format>::Attr) -> Option<()>
    where
        O: TableOps<Format: Format<Phys = P, Entry = E>>,
    {
        let content = Content::Page { phys, attr };
        debug_assert!(O::Format::check(1, content).is_ok());
        ops.write_entry(self.table, self.index, O::Format::encode(1, content))
    }
}

/// The slot of the lowest level for `address`, where every entry above lets everything through: it can be written in
/// place. `None` otherwise, and for an address out of range: [`Cursor`](super::Cursor) tells more. It is the beginning of what a cursor
/// does, for whoever has a short way for the frequent case.
#[inline(always)]
pub fn open_slot<O: TableOps>(
    ops: &O,
    address: VirtOf<O>,
) -> Option<OpenSlot<TableOf<O>, EntryOf<O>>> {
    const { assert!(O::WRITE_MEANS_PRIVATE || !O::Movability::MOVES) };
    let va = FormatOf::<O>::va_of(address).ok()?;
    let mut at = Descent {
        table: ops.root(),
        level: O::Format::LEVELS,
    };
    let entry = at.through_open(ops, va, 1, |_, _| ())?;
    (at.level == 1).then_some(OpenSlot {
        table: at.table,
        index: O::Format::index(va, 1),
        entry,
    })
}

/// The same without a descent: `table` must be the lowest one for `address`, reached as [`open_slot`] demands it.
#[inline(always)]
pub fn open_slot_in<O: TableOps>(
    ops: &O,
    address: VirtOf<O>,
    table: TableOf<O>,
) -> Option<OpenSlot<TableOf<O>, EntryOf<O>>> {
    let index = O::Format::index(FormatOf::<O>::va_of(address).ok()?, 1);
    let entry = ops.read_entry(table, index)?;
    Some(OpenSlot {
        table,
        index,
        entry,
    })
}
