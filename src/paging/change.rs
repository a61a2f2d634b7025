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

use super::access::{EntryOf, ResultOf, TableMovability, TableOf, TableOps};
use super::edit::{Edit, report};
use super::format::{Content, Decoded, DecodedOf, Entry, Format, MappingOf, Rights};
use super::part::Part;
use super::query::decode_at;

/// What an operation is asked about: the part of its range that is in one slot.
pub(super) struct Slot<F: Format> {
    pub(super) part: Part<F>,
    /// What the slot holds.
    pub(super) says: DecodedOf<F>,
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
    fn decide(&mut self, slot: &Slot<O::Format>) -> ResultOf<O, Decision>;
    /// The entry to put; `None` where the slot stays as it is after all.
    fn put(&mut self, slot: &Slot<O::Format>) -> Option<EntryOf<O>> {
        let _ = slot;
        None
    }
    /// A leaf is gone.
    fn removed(&mut self, leaf: MappingOf<O::Format>) {
        let _ = leaf;
    }
    /// What is to replace `child`, the table that the slot refers to, when all in it is done. Its leaves are not
    /// disposed of.
    fn after(
        &mut self,
        ops: &mut O,
        slot: &Slot<O::Format>,
        child: TableOf<O>,
    ) -> Option<EntryOf<O>> {
        let _ = (ops, slot, child);
        None
    }
    /// Does the part of the range that is in `table` at once, where it can. The table is a lowest one, or a new one of any
    /// content, which is to hold nothing else.
    #[inline(always)]
    fn run(
        &mut self,
        edit: &mut Edit<'_, O>,
        table: TableOf<O>,
        part: Part<O::Format>,
        new: bool,
    ) -> Option<ResultOf<O, ()>> {
        let _ = (edit, table, part, new);
        None
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
    let root = ops.root();
    let mut plan = Plan {
        ops,
        operation,
        search: false,
    };
    let need = plan.table(Place::Table(root), all, false)?;
    if !need.changes {
        return Ok(());
    }
    Edit::run(ops, need.tables, |edit| {
        let root = edit.own_root()?;
        if V::LOWEST != Lowest::Untouched && (O::Movability::MOVES || need.tables > 0) {
            edit.prepare(operation, root, all)?;
        }
        edit.perform(operation, root, all)
    })
}

/// What the slots of a part ask for.
#[derive(Default)]
struct Need {
    /// Anything at all.
    changes: bool,
    /// Tables: copies, those of the parts of leaves, and new ones.
    tables: u64,
}

impl Need {
    const NO_TABLE: Self = Self {
        changes: true,
        tables: 0,
    };
}

/// A table that is there, or one that will be made and says the same in each slot.
enum Place<F: Format> {
    Table(F::Phys),
    Made(DecodedOf<F>),
}

/// The first pass.
struct Plan<'p, O, V> {
    ops: &'p O,
    operation: &'p mut V,
    /// It ends at the first change.
    search: bool,
}

impl<O: TableOps, V: Operation<O>> Plan<'_, O, V> {
    /// `above` says that a table above will be copied, so that this one is shared at the latest then.
    fn table(
        &mut self,
        place: Place<O::Format>,
        part: Part<O::Format>,
        above: bool,
    ) -> ResultOf<O, Need> {
        let shared = match place {
            Place::Table(table) => is_shared(self.ops, table, part.level, above),
            Place::Made(_) => false,
        };
        if part.level == 1 && V::LOWEST != Lowest::Decides && !shared {
            return Ok(Need::NO_TABLE);
        }
        let mut need = Need::default();
        for part in part.slots() {
            let says = match place {
                Place::Table(table) => decode_at(self.ops, table, part.level, part.va)?,
                Place::Made(says) => says,
            };
            let slot = Slot::new(self.ops, part, says, shared);
            match (self.operation.decide(&slot)?, says) {
                (Decision::Skip, _) => {}
                (Decision::Put, Decoded::Table { table, .. }) => {
                    // What goes must be readable, and the operation may not want it to go.
                    self.table(Place::Table(table), part.below(), shared)?;
                    need.changes = true;
                }
                (Decision::Put, Decoded::Content(_)) => need.changes = true,
                (Decision::Inside, Decoded::Table { table, .. }) => {
                    let below = self.table(Place::Table(table), part.below(), shared)?;
                    need.changes |= below.changes || V::LOWEST == Lowest::Untouched;
                    need.tables += below.tables;
                }
                (Decision::Inside, Decoded::Content(_)) => {
                    need.changes = true;
                    need.tables += 1;
                    if part.level > 2 {
                        need.tables += self.table(Place::Made(says), part.below(), false)?.tables;
                    }
                }
            }
            if self.search && need.changes {
                break;
            }
        }
        need.tables += u64::from(shared && need.changes);
        Ok(need)
    }
}

#[inline(always)]
fn is_shared<O: TableOps>(ops: &O, table: TableOf<O>, level: u8, above: bool) -> bool {
    O::Movability::MOVES && (above || ops.must_move(table, level).is_some())
}

impl<F: Format> Slot<F> {
    #[inline(always)]
    fn new<O>(ops: &O, part: Part<F>, says: DecodedOf<F>, above: bool) -> Self
    where
        O: TableOps<Format = F>,
    {
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
        table: TableOf<O>,
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
                    if O::Movability::MOVES && closed && !self.is_changed(operation, child, part)? {
                        continue;
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

    /// Whether anything in `child`, which a slot refers to, is to change.
    fn is_changed<V: Operation<O>>(
        &self,
        operation: &mut V,
        child: TableOf<O>,
        slot: Part<O::Format>,
    ) -> ResultOf<O, bool> {
        let mut search = Plan {
            ops: &*self.ops,
            operation,
            search: true,
        };
        let need = search.table(Place::Table(child), slot.below(), false)?;
        Ok(need.changes)
    }

    /// The third pass: writes the slots of the range in `table`, which is private.
    fn perform<V: Operation<O>>(
        &mut self,
        operation: &mut V,
        table: TableOf<O>,
        part: Part<O::Format>,
    ) -> ResultOf<O, ()> {
        if part.level == 1
            && let Some(done) = operation.run(self, table, part, false)
        {
            return done;
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
                    self.write(table, part, entry)?;
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
                        self.write(table, part, entry)?;
                        self.ops.note_replaced();
                        self.ops.retire_table(child, part.level - 1);
                    }
                }
                (Decision::Inside, Decoded::Content(_)) => {
                    // It is complete before anything refers to it.
                    let child = self.take()?;
                    match operation.run(self, child, part.below(), true) {
                        Some(done) => done?,
                        None => {
                            self.clear(child, part.below())?;
                            self.perform(operation, child, part.below())?;
                        }
                    }
                    self.write(table, part, O::Format::table_entry(child))?;
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
        table: TableOf<O>,
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
    fn slot(
        &self,
        table: TableOf<O>,
        part: Part<O::Format>,
    ) -> ResultOf<O, (EntryOf<O>, Slot<O::Format>)> {
        let entry = self.read(table, part)?;
        match O::Format::decode(part.level, entry) {
            Ok(says) => Ok((entry, Slot::new(self.ops, part, says, false))),
            Err(fault) => Err(part.bad(fault)),
        }
    }
}
