//! The one engine that changes a range. An operation says of each slot what is to become of it; the engine goes over the
//! range up to three times and asks the same each time, so that what was found possible is what is done:
//!
//! 1. It only reads: finds what is in the way or bad, and counts the tables that it takes. They are allocated, all or none.
//! 2. Tables that must not be written in place are copied where something in them will change, and leaves of which a part
//!    will are split. Whatever was mapped still is.
//! 3. The slots are written. Nothing can be in the way any more.
//!
//! ```text
//!            hole            leaf, all of it   leaf, a part   table, all of it         table, a part
//! map        Put or Inside   error             error          Put over nothing mapped  Inside
//! unmap      Skip            Put               Inside         Put: shared, or Retire   Inside
//! modify     Skip            Put               Inside         Inside                   Inside
//! split      Skip            Inside            Inside         Inside                   Inside    above the size, else Skip
//! merge      Skip            Skip              Skip           Inside, then after()     Inside    not where it is shared
//! ```

use page_table_entry::GenericPTE;

use super::access::{EntryOf, ResultOf, TableMovability, TableOps};
use super::edit::{Edit, report};
use super::format::{Content, Decoded, Entry, Format, MappingOf, Rights};
use super::part::Part;
use super::table::{Says, Table};

/// What an operation is asked about: the part of its range that is in one slot.
pub(super) struct Slot<O: TableOps> {
    pub(super) part: Part<O::Format>,
    /// What the slot holds.
    pub(super) says: Says<O>,
    /// It refers to a table that other trees refer to as well.
    pub(super) shared: bool,
}

/// What is to become of a slot, or of the part of it that is in the range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing.
    Skip,
    /// What [`Operation::put`] says stands there, in place of a leaf, or of a table and all below it.
    Put,
    /// It is decided slot by slot in the table below: the one that is there, one of the parts of a leaf, or a new one.
    Inside,
}

/// What an operation must know of the lowest tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lowest {
    /// What stands in them decides whether it can be done.
    Decides,
    /// Whatever stands in them, it can be done.
    Any,
    /// It changes none of their slots, and makes no table private.
    Untouched,
}

/// A change of a range.
pub(super) trait Operation<O: TableOps> {
    const LOWEST: Lowest = Lowest::Decides;

    /// What is to become of a slot.
    fn decide(&mut self, slot: &Slot<O>) -> ResultOf<O, Decision>;
    /// The entry to put; `None` where the slot stays as it is after all.
    fn put(&mut self, slot: &Slot<O>) -> Option<EntryOf<O>> {
        let _ = slot;
        None
    }
    /// A leaf is gone.
    fn removed(&mut self, leaf: MappingOf<O::Format>) {
        let _ = leaf;
    }
    /// What is to replace `child`, the table that the slot refers to, when all in it is done. Its leaves are not
    /// disposed of.
    fn after(&mut self, ops: &mut O, slot: &Slot<O>, child: Table<O>) -> Option<EntryOf<O>> {
        let _ = (ops, slot, child);
        None
    }
    /// Whether all slots of the part, which are in a lowest table, are sure to be put, without a look at what each decodes to.
    fn is_free(&self, ops: &O, table: Table<O>, part: Part<O::Format>) -> bool {
        let _ = (ops, table, part);
        false
    }
    /// Does the part of the range that is in `table` at once, where it can, and says so. The table is a lowest one, or a new one of any
    /// content, which is to hold nothing else.
    fn run(
        &mut self,
        edit: &mut Edit<'_, O>,
        table: Table<O>,
        part: Part<O::Format>,
        new: bool,
    ) -> ResultOf<O, bool> {
        let _ = (edit, table, part, new);
        Ok(false)
    }
}

/// Does the operation on the slots of `[va, last]`.
pub(super) fn change<O: TableOps, V: Operation<O>>(
    ops: &mut O,
    va: u64,
    last: u64,
    operation: &mut V,
) -> ResultOf<O, ()> {
    let all = Part::new(O::Format::LEVELS, va, last);
    let root = Table::root(ops);
    let mut plan = Plan {
        ops,
        operation,
        search: false,
        splits: false,
    };
    let Some(tables) = plan.table(Place::Table(root), all, false)? else {
        return Ok(());
    };
    let splits = plan.splits;
    Edit::run(ops, tables, |edit| {
        let root = edit.own_root()?;
        if V::LOWEST != Lowest::Untouched && (O::Movability::MOVES || splits) {
            edit.prepare(operation, root, all)?;
        }
        edit.perform(operation, root, all)
    })
}

/// A table that is there, or one that will be made and says the same in each slot.
enum Place<O: TableOps> {
    Table(Table<O>),
    Made(Says<O>),
}

/// The first pass.
struct Plan<'p, O, V> {
    ops: &'p O,
    operation: &'p mut V,
    /// It ends at the first change.
    search: bool,
    /// A leaf was found that is to be split.
    splits: bool,
}

impl<O: TableOps, V: Operation<O>> Plan<'_, O, V> {
    /// How many tables the slots of the part ask for: copies, those of the parts of leaves, and new ones; `None` where nothing
    /// changes. `above` says that a table above will be copied, so that this one is shared at the latest then.
    fn table(
        &mut self,
        place: Place<O>,
        part: Part<O::Format>,
        above: bool,
    ) -> ResultOf<O, Option<u64>> {
        let shared = match place {
            Place::Table(table) => is_shared(self.ops, table, part.level, above),
            Place::Made(_) => false,
        };
        if part.level == 1 && V::LOWEST != Lowest::Decides && !shared {
            return Ok(Some(0));
        }
        if part.level == 1
            && let Place::Table(table) = place
            && self.operation.is_free(self.ops, table, part)
        {
            return Ok(Some(u64::from(shared)));
        }
        let mut need = None;
        for part in part.slots() {
            let says = match place {
                Place::Table(table) => table.look(self.ops, part)?.1,
                Place::Made(says) => says,
            };
            let slot = Slot::new(self.ops, part, says, shared);
            let tables = match (self.operation.decide(&slot)?, says) {
                (Decision::Skip, _) => None,
                (Decision::Put, Decoded::Table { table, .. }) => {
                    // What goes must be readable, and the operation may not want it to go.
                    self.table(Place::Table(table), part.below(), shared)?;
                    Some(0)
                }
                (Decision::Put, Decoded::Content(_)) => Some(0),
                (Decision::Inside, Decoded::Table { table, .. }) => {
                    let below = self.table(Place::Table(table), part.below(), shared)?;
                    below.or((V::LOWEST == Lowest::Untouched).then_some(0))
                }
                (Decision::Inside, Decoded::Content(content)) => {
                    self.splits |= content.is_mapped();
                    match part.level {
                        2 => Some(1),
                        _ => self
                            .table(Place::Made(says), part.below(), false)?
                            .map(|n| n + 1),
                    }
                }
            };
            if let Some(tables) = tables {
                need = Some(need.unwrap_or(u64::from(shared)) + tables);
                if self.search {
                    break;
                }
            }
        }
        Ok(need)
    }
}

fn is_shared<O: TableOps>(ops: &O, table: Table<O>, level: u8, above: bool) -> bool {
    O::Movability::MOVES && (above || table.must_move(ops, level).is_some())
}

impl<O: TableOps> Slot<O> {
    #[inline(always)]
    fn new(ops: &O, part: Part<O::Format>, says: Says<O>, above: bool) -> Self {
        let shared = match says {
            Decoded::Table { table, .. } => is_shared(ops, table, part.level - 1, above),
            Decoded::Content(_) => false,
        };
        Self { part, says, shared }
    }
}

impl<O: TableOps> Edit<'_, O> {
    /// The second pass: what is below `table`, which is private.
    fn prepare<V: Operation<O>>(
        &mut self,
        operation: &mut V,
        table: Table<O>,
        part: Part<O::Format>,
    ) -> ResultOf<O, ()> {
        if part.level == 1 {
            return Ok(());
        }
        for part in part.slots() {
            let (old, slot) = self.slot(table, part)?;
            if operation.decide(&slot)? != Decision::Inside {
                continue;
            }
            let child = match slot.says {
                Decoded::Table {
                    table: child,
                    rights,
                } => {
                    let closed = slot.shared || !rights.contains(Rights::WRITE);
                    if O::Movability::MOVES && closed {
                        let mut search = Plan {
                            ops: &*self.ops,
                            operation,
                            search: true,
                            splits: false,
                        };
                        let below = search.table(Place::Table(child), part.below(), false)?;
                        if below.is_none() {
                            continue;
                        }
                    }
                    self.own(table, part, child, rights)?
                }
                Decoded::Content(Content::Unmapped) => continue,
                Decoded::Content(_) => self.split(table, part, old)?,
            };
            self.prepare(operation, child, part.below())?;
        }
        Ok(())
    }

    /// The third pass: writes the slots of the range in `table`, which is private.
    fn perform<V: Operation<O>>(
        &mut self,
        operation: &mut V,
        table: Table<O>,
        part: Part<O::Format>,
    ) -> ResultOf<O, ()> {
        if part.level == 1 && operation.run(self, table, part, false)? {
            return Ok(());
        }
        for part in part.slots() {
            let (old, slot) = self.slot(table, part)?;
            match (operation.decide(&slot)?, slot.says) {
                (Decision::Skip, _) => {}
                (Decision::Put, says) => {
                    let Some(entry) = operation.put(&slot) else {
                        continue;
                    };
                    let Decoded::Table { table: child, .. } = says else {
                        self.put(operation, table, part, old, entry)?;
                        continue;
                    };
                    table.write(self.ops, part, entry)?;
                    self.ops.note_replaced();
                    self.dispose(child, part.below(), &mut |leaf| operation.removed(leaf))?;
                }
                // Nothing in it changes, or it would have been copied.
                (Decision::Inside, Decoded::Table { .. }) if slot.shared => {}
                (Decision::Inside, Decoded::Table { table: child, .. }) => {
                    if part.level > 2 || V::LOWEST != Lowest::Untouched {
                        self.perform(operation, child, part.below())?;
                    }
                    if let Some(entry) = operation.after(self.ops, &slot, child) {
                        table.write(self.ops, part, entry)?;
                        self.ops.note_replaced();
                        child.retire(self.ops, part.level - 1);
                    }
                }
                (Decision::Inside, Decoded::Content(_)) => {
                    // It is complete before anything refers to it.
                    let child = self.take()?;
                    if !operation.run(self, child, part.below(), true)? {
                        child.clear(self.ops, part.below())?;
                        self.perform(operation, child, part.below())?;
                    }
                    table.link(self.ops, part, child)?;
                }
            }
        }
        Ok(())
    }

    /// Puts `entry` in the place of the leaf `old`. What the CPU has noted of the page meanwhile stays, if there still is
    /// one.
    #[inline(always)]
    fn put<V: Operation<O>>(
        &mut self,
        operation: &mut V,
        table: Table<O>,
        part: Part<O::Format>,
        old: EntryOf<O>,
        entry: EntryOf<O>,
    ) -> ResultOf<O, ()> {
        let stays = entry.is_present();
        let gone = self.replace(table, part, old, |_, found| {
            let since = found.to_bits() & !old.to_bits();
            let kept = if stays { since } else { 0 };
            Ok(Entry::from_bits(entry.to_bits() | kept))
        })?;
        if !stays && let Ok(Decoded::Content(content)) = O::Format::decode(part.level, gone) {
            report(part, content, &mut |leaf| operation.removed(leaf));
        }
        Ok(())
    }

    /// What the slot of `table` (private) for a part of the range holds.
    #[inline(always)]
    fn slot(&self, table: Table<O>, part: Part<O::Format>) -> ResultOf<O, (EntryOf<O>, Slot<O>)> {
        let (entry, says) = table.look(self.ops, part)?;
        Ok((entry, Slot::new(self.ops, part, says, false)))
    }
}
