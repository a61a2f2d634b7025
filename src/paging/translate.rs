//! Reading what a range of addresses leads to, lazily.

use super::access::{FormatOf, ResultOf, TableReadOps, VirtOf};
use super::format::{Decoded, Error, FormatExt, MappingOf};
use super::query::{decode_at, mapping};
use super::trail::Trail;

/// The leaves that intersect `len` bytes from `start` on, one by one, found as they are asked for. Addresses that the
/// format cannot translate lead to nothing. After `limit` entries, or at a table that is bad, the iterator returns an
/// error as its last item: so the work is bounded whatever the tables hold.
#[inline]
pub fn translate<O: TableReadOps>(
    ops: &O,
    start: VirtOf<O>,
    len: u64,
    limit: u64,
) -> Translate<'_, O> {
    let range = FormatOf::<O>::clamp(start, len);
    let at = range.map_or(0, |(first, _)| first & !0xfff);
    Translate {
        trail: Trail::new(ops, ops.root(), at, limit),
        last: range.map_or(0, |(_, last)| last),
        done: range.is_none(),
        ready: 0,
    }
}

/// See [`translate`].
pub struct Translate<'o, O: TableReadOps> {
    /// Each table on it with what all tables above let through.
    trail: Trail<'o, O>,
    last: u64,
    done: bool,
    /// How many entries from where it is on are in the current table of level 1, in the range and within the limit: for the
    /// walker's row `translate_range`.
    ready: u64,
}

type Item<O> = ResultOf<O, MappingOf<FormatOf<O>>>;

impl<O: TableReadOps> Translate<'_, O> {
    /// The next entry of the table of level 1.
    #[inline(always)]
    fn next_ready(&mut self) -> Option<Item<O>> {
        let va = self.trail.at;
        self.ready -= 1;
        self.trail.at = va + 0x1000;
        let (table, rights) = self.trail.lowest();
        match decode_at(self.trail.ops, table, 1, va) {
            Ok(Decoded::Content(content)) => mapping::<O::Format>(va, 1, rights, content).map(Ok),
            Ok(Decoded::Table { .. }) => None,
            Err(error) => Some(self.fail(error)),
        }
    }

    /// Walks until entries of a table of level 1 are ready, and returns what it comes across before.
    #[inline(never)]
    fn walk(&mut self) -> Option<Item<O>> {
        if self.trail.level == 1 {
            // The entries that were ready are used up.
            if self.trail.limit == 0 && O::Format::index(self.trail.at, 1) != 0 {
                return Some(self.fail(self.trail.limit_reached()));
            }
            self.climb();
        }
        while !self.done {
            let (va, level) = (self.trail.at, self.trail.level);
            let (_, rights) = self.trail.table();
            match self.trail.look() {
                Ok(Decoded::Table {
                    table,
                    rights: granted,
                }) => {
                    self.trail.enter(table, rights.and(granted));
                    if level == 2 {
                        return self.make_ready();
                    }
                }
                Ok(Decoded::Content(content)) => {
                    self.trail.pass();
                    self.climb();
                    let start = va & !O::Format::span_mask(level);
                    if let Some(leaf) = mapping::<O::Format>(start, level, rights, content) {
                        return Some(Ok(leaf));
                    }
                }
                Err(error) => return Some(self.fail(error)),
            }
        }
        None
    }

    fn climb(&mut self) {
        self.done |= self.trail.at > self.last;
        while self.trail.leave() {}
    }
    /// Prepares for the entries of the table of level 1 that has just been reached.
    fn make_ready(&mut self) -> Option<Item<O>> {
        let trail = &mut self.trail;
        let end = self.last.min(trail.at | O::Format::span_mask(2));
        let entries = ((end - trail.at) >> 12) + 1;
        self.ready = entries.min(trail.limit);
        trail.limit -= self.ready;
        match self.ready {
            0 => Some(self.fail(self.trail.limit_reached())),
            _ => None,
        }
    }
    fn fail(&mut self, error: Error<O::Format>) -> Item<O> {
        self.done = true;
        self.ready = 0;
        Err(error)
    }
}

impl<O: TableReadOps> Iterator for Translate<'_, O> {
    type Item = Item<O>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while self.ready > 0 {
                if let Some(item) = self.next_ready() {
                    return Some(item);
                }
            }
            if self.done {
                return None;
            }
            if let Some(item) = self.walk() {
                return Some(item);
            }
        }
    }
}
