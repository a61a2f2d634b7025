//! Several spaces at once: walking them so that what they share is found.

use super::access::{FormatOf, TableOf, TableReadOps};
use super::format::{Decoded, Error, Format, FormatExt, MAX_LEVELS, Mapping, Rights, slot};
use super::query::mapping;
use super::trail::Trail;
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

enum Met<P> {
    First,
    Before(SeenTable<P>),
    NoRoom,
}

impl<P> Seen<P> {
    /// A free place.
    pub const FREE: Self = Self(None);
}

/// Walks the spaces that start at `roots`, and returns each item with the place of its space among them. A table that is
/// met a second time at the same level is returned as a reference to where it was met first, so the items can be rebuilt
/// in their order by [`space_aware_map`](super::space_aware_map).
///
/// Each table is walked once for each level it is used at, whatever refers to it: tables that refer to themselves end
/// there too. `seen` has room for as many tables as may be met, and `limit` is the number of entries that may be read;
/// when either is used up, or a table is bad, the last item is an error.
pub fn walk_va_spaces<'a, O: TableReadOps>(
    ops: &'a O,
    roots: &'a [TableOf<O>],
    seen: &'a mut [Seen<TableOf<O>>],
    limit: u64,
) -> WalkSpaces<'a, O> {
    seen.fill(Seen::FREE);
    WalkSpaces {
        trail: Trail::new(ops, ops.root(), 0, limit),
        roots,
        seen,
        space: 0,
        inside: false,
        climbing: false,
        returned: 0,
        entered: [0; MAX_LEVELS],
    }
}

/// See [`walk_va_spaces`].
pub struct WalkSpaces<'a, O: TableReadOps> {
    /// Each table on it with what the entry that refers to it lets through.
    trail: Trail<'a, O>,
    roots: &'a [TableOf<O>],
    seen: &'a mut [Seen<TableOf<O>>],
    /// The space that is being walked, or that comes next.
    space: usize,
    /// That space has been entered.
    inside: bool,
    /// The trail may have passed the end of a table.
    climbing: bool,
    /// Items returned so far, and when each table on the way was entered.
    returned: u64,
    entered: [u64; MAX_LEVELS],
}

type Item<F> = Result<(usize, SpaceItemOf<F>), Error<F>>;

impl<O: TableReadOps> WalkSpaces<'_, O> {
    /// Looks the table up; remembers it where it is new.
    fn meet(&mut self, table: TableOf<O>, level: u8, va: u64) -> Met<TableOf<O>> {
        let places = self.seen.len();
        let hash = (table.as_u64() >> 12)
            .wrapping_add((level as u64) << 56)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let start = if places == 0 {
            0
        } else {
            (hash >> 20) as usize % places
        };
        let (before, from) = self.seen.split_at_mut(start);
        for place in from.iter_mut().chain(before) {
            match place.0 {
                Some(known) if known.table == table && known.level == level => {
                    return Met::Before(known);
                }
                Some(_) => {}
                None => {
                    let space = self.space;
                    place.0 = Some(SeenTable {
                        table,
                        level,
                        space,
                        va,
                    });
                    return Met::First;
                }
            }
        }
        Met::NoRoom
    }

    fn reference(
        &self,
        known: SeenTable<TableOf<O>>,
        va: u64,
        rights: Rights,
    ) -> Option<Item<O::Format>> {
        let reference = SpaceReference {
            depth: O::Format::LEVELS - known.level,
            space: known.space,
            our_va: O::Format::virt(va),
            their_va: O::Format::virt(known.va),
            rights,
        };
        Some(Ok((self.space, SpaceItem::AnotherSpace(reference))))
    }

    /// Enters the next space.
    fn enter(&mut self) -> Option<Item<O::Format>> {
        let root = *self.roots.get(self.space)?;
        self.trail = Trail::new(self.trail.ops, root, 0, self.trail.limit);
        match self.meet(root, O::Format::LEVELS, 0) {
            Met::First => {
                self.inside = true;
                None
            }
            Met::Before(known) => {
                let item = self.reference(known, 0, Rights::ALL);
                self.space += 1;
                item
            }
            Met::NoRoom => self.stop(self.trail.limit_reached()),
        }
    }

    /// Goes up to the table that has the next entry, and tells of one of which not all was told.
    fn climb(&mut self) -> Option<Item<O::Format>> {
        loop {
            let (left, (_, rights)) = (self.trail.level, self.trail.table());
            if !self.trail.leave() {
                break;
            }
            if rights != Rights::ALL || self.entered[slot(left)] == self.returned {
                let va = (self.trail.at - 1) & !O::Format::span_mask(left + 1);
                let item = SpaceItem::Table {
                    depth: O::Format::LEVELS - left,
                    va: O::Format::virt(va),
                    rights,
                };
                return Some(Ok((self.space, item)));
            }
        }
        self.climbing = false;
        if self.trail.at > FormatOf::<O>::VIRT_MASK {
            self.inside = false;
            self.space += 1;
        }
        None
    }

    /// Looks at one entry.
    fn step(&mut self) -> Option<Item<O::Format>> {
        let (at, level) = (self.trail.at, self.trail.level);
        let item = match self.trail.look() {
            Ok(Decoded::Table { table, rights }) => match self.meet(table, level - 1, at) {
                Met::First => {
                    self.trail.enter(table, rights);
                    self.entered[slot(level - 1)] = self.returned;
                    return None;
                }
                Met::Before(known) => self.reference(known, at, rights),
                Met::NoRoom => return self.stop(self.trail.limit_reached()),
            },
            Ok(Decoded::Content(content)) => {
                let leaf = mapping::<O::Format>(at, level, Rights::ALL, content);
                leaf.map(|leaf| Ok((self.space, SpaceItem::ThisSpace(leaf))))
            }
            Err(error) => return self.stop(error),
        };
        self.trail.pass();
        self.climbing = true;
        item
    }

    fn stop(&mut self, error: Error<O::Format>) -> Option<Item<O::Format>> {
        self.space = self.roots.len();
        Some(Err(error))
    }
}

impl<O: TableReadOps> Iterator for WalkSpaces<'_, O> {
    type Item = Item<O::Format>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.space < self.roots.len() {
            let item = match (self.inside, self.climbing) {
                (false, _) => self.enter(),
                (true, true) => self.climb(),
                (true, false) => self.step(),
            };
            if item.is_some() {
                self.returned += 1;
                return item;
            }
        }
        None
    }
}
