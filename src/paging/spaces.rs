//! Several spaces at once: walking them so that what they share is found.

use super::access::{FormatOf, TableOf, TableReadOps};
use super::error::PagingError;
use super::format::{
    Content, Decoded, Error, Format, FormatExt, MAX_LEVELS, Mapping, Rights, slot,
};
use super::query::decode_at;
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

/// Walks the spaces that start at `roots`, and yields each item with the place of its space among them. A table that is
/// met a second time at the same level is yielded as a reference to where it was met first, so the items can be rebuilt
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
        ops,
        roots,
        seen,
        limit,
        space: 0,
        at: None,
        level: O::Format::LEVELS,
        tables: [(ops.root(), Rights::ALL); MAX_LEVELS],
        climbing: false,
        yielded: 0,
        entered: [0; MAX_LEVELS],
    }
}

/// See [`walk_va_spaces`].
pub struct WalkSpaces<'a, O: TableReadOps> {
    ops: &'a O,
    roots: &'a [TableOf<O>],
    seen: &'a mut [Seen<TableOf<O>>],
    limit: u64,
    /// The space that is being walked, or that comes next.
    space: usize,
    /// The translated bits of the address to look at next; `None` before a space is entered.
    at: Option<u64>,
    level: u8,
    /// The tables on the way, and what the entry that refers to each lets through.
    tables: [(TableOf<O>, Rights); MAX_LEVELS],
    /// `at` has passed the end of a table.
    climbing: bool,
    /// Items yielded so far, and when each table on the way was entered.
    yielded: u64,
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
        let top = O::Format::LEVELS;
        match self.meet(root, top, 0) {
            Met::First => {
                self.tables[slot(top)] = (root, Rights::ALL);
                self.level = top;
                self.at = Some(0);
                None
            }
            Met::Before(known) => {
                let item = self.reference(known, 0, Rights::ALL);
                self.space += 1;
                item
            }
            Met::NoRoom => self.stop_at_limit(0, top),
        }
    }

    /// Goes up to the table that has the entry for `at`, and reports one of which not all was told.
    fn climb(&mut self, at: u64) -> Option<Item<O::Format>> {
        while self.level < O::Format::LEVELS && O::Format::index(at, self.level) == 0 {
            let left = self.level;
            let (_, rights) = self.tables[slot(left)];
            self.level += 1;
            if rights != Rights::ALL || self.entered[slot(left)] == self.yielded {
                let va = (at - 1) & !O::Format::span_mask(self.level);
                let item = SpaceItem::Table {
                    depth: O::Format::LEVELS - left,
                    va: O::Format::virt(va),
                    rights,
                };
                return Some(Ok((self.space, item)));
            }
        }
        self.climbing = false;
        if at > FormatOf::<O>::VIRT_MASK {
            self.at = None;
            self.space += 1;
        }
        None
    }

    /// Looks at one entry.
    fn step(&mut self, at: u64) -> Option<Item<O::Format>> {
        let level = self.level;
        let Some(limit) = self.limit.checked_sub(1) else {
            return self.stop_at_limit(at, level);
        };
        self.limit = limit;
        let (table, _) = self.tables[slot(level)];
        let item = match decode_at(self.ops, table, level, at) {
            Ok(Decoded::Table {
                table: child,
                rights,
            }) => match self.meet(child, level - 1, at) {
                Met::First => {
                    self.tables[slot(level - 1)] = (child, rights);
                    self.entered[slot(level - 1)] = self.yielded;
                    self.level = level - 1;
                    return None;
                }
                Met::Before(known) => self.reference(known, at, rights),
                Met::NoRoom => return self.stop_at_limit(at, level),
            },
            Ok(Decoded::Content(content)) => match (content, O::Format::leaf_size(level)) {
                (Content::Unmapped, _) | (_, None) => None,
                (content, Some(size)) => {
                    let virt = O::Format::virt(at);
                    let leaf = Mapping {
                        virt,
                        size,
                        content,
                    };
                    Some(Ok((self.space, SpaceItem::ThisSpace(leaf))))
                }
            },
            Err(error) => return self.stop(error),
        };
        self.at = Some(at + O::Format::span_mask(level) + 1);
        self.climbing = true;
        item
    }

    fn stop_at_limit(&mut self, at: u64, level: u8) -> Option<Item<O::Format>> {
        let address = O::Format::virt(at);
        self.stop(PagingError::LimitReached { address, level })
    }
    fn stop(&mut self, error: Error<O::Format>) -> Option<Item<O::Format>> {
        self.at = None;
        self.climbing = false;
        self.space = self.roots.len();
        Some(Err(error))
    }
}

impl<O: TableReadOps> Iterator for WalkSpaces<'_, O> {
    type Item = Item<O::Format>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.space < self.roots.len() {
            let item = match self.at {
                None => self.enter(),
                Some(at) if self.climbing => self.climb(at),
                Some(at) => self.step(at),
            };
            if item.is_some() {
                self.yielded += 1;
                return item;
            }
        }
        None
    }
}
