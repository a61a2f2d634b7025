//! Reading what a range of addresses leads to, lazily.

use super::access::{FormatOf, ResultOf, TableReadOps, VirtOf};
use super::format::{Decoded, Error, Format, FormatExt, MAX_LEVELS, MappingOf, Rights};
use super::part::Part;
use super::query::mapping;
use super::table::Table;

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
    let (first, last) = range.unwrap_or_default();
    Translate {
        ops,
        at: Part::at(FormatOf::<O>::LEVELS, first & !0xfff),
        last,
        limit,
        tables: [(Table::root(ops), Rights::ALL); MAX_LEVELS],
        done: range.is_none(),
        ready: 0,
    }
}

/// See [`translate`].
pub struct Translate<'o, O: TableReadOps> {
    ops: &'o O,
    /// The entry to look at next.
    at: Part<FormatOf<O>>,
    last: u64,
    /// How many more entries may be read.
    limit: u64,
    /// The tables on the way to it, by their level less 1, each with what all tables above let through.
    tables: [(Table<O>, Rights); MAX_LEVELS],
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
        let at = Part::at(1, self.at.va);
        self.ready -= 1;
        self.at.va = at.va + 0x1000;
        let (table, rights) = self.tables[at.place()];
        match table.look(self.ops, at) {
            Ok((_, Decoded::Content(content))) => {
                mapping::<O::Format>(O::Format::virt(at.va), 1, rights, content).map(Ok)
            }
            Ok((_, Decoded::Table { .. })) => None,
            Err(error) => Some(self.fail(error)),
        }
    }

    /// Walks until entries of a table of level 1 are ready, and returns what it comes across before.
    #[inline(never)]
    fn walk(&mut self) -> Option<Item<O>> {
        if self.at.level == 1 {
            // The entries that were ready are used up.
            if self.limit == 0 && self.at.index() != 0 {
                return Some(self.fail(self.at.limit_reached()));
            }
            self.climb();
        }
        while !self.done {
            let at = self.at;
            let Some(limit) = self.limit.checked_sub(1) else {
                return Some(self.fail(self.at.limit_reached()));
            };
            self.limit = limit;
            let (table, rights) = self.tables[at.place()];
            match table.look(self.ops, at) {
                Ok((
                    _,
                    Decoded::Table {
                        table,
                        rights: granted,
                    },
                )) => {
                    self.at = at.below();
                    self.tables[self.at.place()] = (table, rights.and(granted));
                    if at.level == 2 {
                        return self.make_ready();
                    }
                }
                Ok((_, Decoded::Content(content))) => {
                    self.at.va = (at.va | O::Format::span_mask(at.level)) + 1;
                    self.climb();
                    if let Some(leaf) = mapping::<O::Format>(at.start(), at.level, rights, content)
                    {
                        return Some(Ok(leaf));
                    }
                }
                Err(error) => return Some(self.fail(error)),
            }
        }
        None
    }

    /// Goes up to the table that has the next entry.
    fn climb(&mut self) {
        self.done |= self.at.va > self.last;
        while self.at.level < O::Format::LEVELS && self.at.index() == 0 {
            self.at.level += 1;
        }
    }
    /// Prepares for the entries of the table of level 1 that has just been reached.
    fn make_ready(&mut self) -> Option<Item<O>> {
        let end = self.last.min(self.at.va | O::Format::span_mask(2));
        let entries = ((end - self.at.va) >> 12) + 1;
        self.ready = entries.min(self.limit);
        self.limit -= self.ready;
        (self.ready == 0).then(|| self.fail(self.at.limit_reached()))
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
