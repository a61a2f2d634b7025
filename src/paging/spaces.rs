//! Several spaces at once: walking them so that what they share is found.

use super::access::{FormatOf, ResultOf, TableOf, TableReadOps};
use super::error::Fault;
use super::format::{Decoded, Format, FormatExt, Mapping, Rights};
use super::part::Part;
use super::query::mapping;
use super::table::Table;
use crate::addr::Address;

/// A sub-tree that was met before, in this space or in one that comes earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceReference<V> {
    /// Levels below the root at which the shared table stands; 0 where the whole space is another's.
    pub depth: u8,
    /// The space in which it was met first, by its place among the roots.
    pub space: usize,
    /// The first address that it translates here.
    pub our_va: V,
    /// The first address that it translates there.
    pub their_va: V,
    /// What the entry that refers to it here lets through.
    pub rights: Rights,
}

/// What a walk over several spaces comes across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceItem<V, P, A> {
    /// A leaf, with what its own entry says.
    ThisSpace(Mapping<V, P, A>),
    /// A sub-tree that is shared.
    AnotherSpace(SpaceReference<V>),
    /// A table that what came before does not tell all of: nothing stands below it, or what stands there is restricted
    /// by the entry that refers to the table.
    Table {
        /// Levels below the root.
        depth: u8,
        /// The first address that the table translates.
        va: V,
        /// What the entry lets through.
        rights: Rights,
    },
}

/// An item of a walk over spaces of format `F`.
pub type SpaceItemOf<F> = SpaceItem<<F as Format>::Virt, <F as Format>::Phys, <F as Format>::Attr>;

/// A place for what a walk must remember of one table.
#[derive(Clone, Copy, Debug)]
pub struct Seen<P>(Option<SeenTable<P>>);

#[derive(Clone, Copy, Debug)]
struct SeenTable<P> {
    table: P,
    level: u8,
    space: usize,
    va: u64,
}

impl<P> Seen<P> {
    /// A free place.
    pub const FREE: Self = Self(None);
}

/// Walks the spaces that start at `roots`, and shows each item with the place of its space among them. A table that is
/// met a second time at the same level is shown as a reference to where it was met first, so the items can be rebuilt
/// in their order by [`space_aware_map`](super::space_aware_map).
///
/// Each table is walked once for each level it is used at, whatever refers to it: tables that refer to themselves end
/// there too. `seen` has room for as many tables as may be met, and `limit` is the number of entries that may be read.
///
/// # Errors
/// A table is bad, no tree can start at a root, or one of the limits is reached; what was shown before is right. Or an error of
/// `show`, which ends the walk.
pub fn walk_va_spaces<O: TableReadOps>(
    ops: &O,
    roots: &[TableOf<O>],
    seen: &mut [Seen<TableOf<O>>],
    limit: u64,
    show: impl FnMut(usize, SpaceItemOf<O::Format>) -> ResultOf<O, ()>,
) -> ResultOf<O, ()> {
    seen.fill(Seen::FREE);
    let mut walk = Walk {
        ops,
        seen,
        left: limit,
        space: 0,
        shown: 0,
        show,
    };
    let all = Part::new(O::Format::LEVELS, 0, FormatOf::<O>::VIRT_MASK);
    for (space, &root) in roots.iter().enumerate() {
        let root = Table::at_root(ops, root).ok_or_else(|| all.bad(Fault::NotMemory))?;
        walk.space = space;
        walk.meet(root, all, Rights::ALL)?;
    }
    Ok(())
}

struct Walk<'a, O: TableReadOps, S> {
    ops: &'a O,
    seen: &'a mut [Seen<TableOf<O>>],
    /// Entries that may still be read.
    left: u64,
    /// The space that is being walked.
    space: usize,
    /// Items shown so far.
    shown: u64,
    show: S,
}

impl<O, S> Walk<'_, O, S>
where
    O: TableReadOps,
    S: FnMut(usize, SpaceItemOf<O::Format>) -> ResultOf<O, ()>,
{
    fn show(&mut self, item: SpaceItemOf<O::Format>) -> ResultOf<O, ()> {
        self.shown += 1;
        (self.show)(self.space, item)
    }

    /// Where the table was met before; `None` where it is new, and is remembered.
    fn look_up(&mut self, new: SeenTable<TableOf<O>>) -> Result<Option<SeenTable<TableOf<O>>>, ()> {
        let hash = (new.table.as_u64() >> 12)
            .wrapping_add((new.level as u64) << 56)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let start = (hash >> 20) as usize % self.seen.len().max(1);
        let (before, from) = self.seen.split_at_mut(start);
        for place in from.iter_mut().chain(before) {
            match place.0 {
                Some(known) if known.table == new.table && known.level == new.level => {
                    return Ok(Some(known));
                }
                Some(_) => {}
                None => {
                    place.0 = Some(new);
                    return Ok(None);
                }
            }
        }
        Err(())
    }

    /// Shows what is below a table that was not met before, and what is to be said of the table itself.
    fn meet(&mut self, table: Table<O>, part: Part<O::Format>, rights: Rights) -> ResultOf<O, ()> {
        let depth = O::Format::LEVELS - part.level;
        let met = self.look_up(SeenTable {
            table: table.address(),
            level: part.level,
            space: self.space,
            va: part.va,
        });
        let our_va = O::Format::virt(part.va);
        // Of a table for which there is no room, the entry that refers to it is told.
        let level = (part.level + 1).min(O::Format::LEVELS);
        if let Some(known) =
            met.map_err(|()| Part::<O::Format>::at(level, part.va).limit_reached())?
        {
            return self.show(SpaceItem::AnotherSpace(SpaceReference {
                depth,
                space: known.space,
                our_va,
                their_va: O::Format::virt(known.va),
                rights,
            }));
        }
        let shown = self.shown;
        for slot in part.slots() {
            self.left = self
                .left
                .checked_sub(1)
                .ok_or_else(|| slot.limit_reached())?;
            match table.look(self.ops, slot)?.1 {
                Decoded::Table { table, rights } => self.meet(table, slot.below(), rights)?,
                Decoded::Content(content) => {
                    let virt = slot.start();
                    if let Some(leaf) = mapping::<O::Format>(virt, slot.level, Rights::ALL, content)
                    {
                        self.show(SpaceItem::ThisSpace(leaf))?;
                    }
                }
            }
        }
        if depth > 0 && (rights != Rights::ALL || self.shown == shown) {
            let va = our_va;
            self.show(SpaceItem::Table { depth, va, rights })?;
        }
        Ok(())
    }
}
