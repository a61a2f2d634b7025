//! Reading: one address, or lazily whatever a range of addresses leads to.

use super::access::{FormatOf, TableOf, TableReadOps, VirtOf};
use super::cursor::slot;
use super::error::{Error, Fault, PagingError};
use super::format::{
    Content, ContentOf, Decoded, DecodedOf, Format, FormatExt, MAX_LEVELS, Mapping, MappingOf,
    Rights,
};
use crate::addr::PageSize;

/// Reads and decodes the entry of `table` for `va`.
#[inline(always)]
pub(super) fn decode_at<O: TableReadOps>(
    ops: &O,
    table: TableOf<O>,
    level: u8,
    va: u64,
) -> Result<DecodedOf<O::Format>, Error<O::Format>> {
    let index = O::Format::index(va, level);
    let fault = match ops.read_entry(table, index) {
        Some(entry) => match O::Format::decode(level, entry) {
            Ok(decoded) => return Ok(decoded),
            Err(fault) => fault,
        },
        None => Fault::NotMemory,
    };
    Err(bad::<O::Format>(va, level, fault))
}

/// The error for a bad entry of `level` that is used for `va`.
#[cold]
pub(super) fn bad<F: Format>(va: u64, level: u8, fault: Fault) -> Error<F> {
    PagingError::Bad {
        address: F::virt(va & !F::span_mask(level)),
        level,
        fault,
    }
}

/// The leaf's attributes with what the tables above deny taken away.
#[inline(always)]
fn effective<F: Format>(content: ContentOf<F>, rights: Rights) -> ContentOf<F> {
    if rights == Rights::ALL {
        return content;
    }
    match content {
        Content::Page { phys, attr } => match F::restrict(attr, rights) {
            Some(attr) => Content::Page { phys, attr },
            None => Content::Unmapped,
        },
        Content::ZeroOnDemand { attr } => match F::restrict(attr, rights) {
            Some(attr) => Content::ZeroOnDemand { attr },
            None => Content::Unmapped,
        },
        Content::Unmapped => Content::Unmapped,
    }
}

/// Descends for `va` as long as the tables let everything through: the level that is reached, and its table. At level 1
/// the descent is complete; above, the entry is something else than such a table.
#[inline(always)]
pub(super) fn descend<O: TableReadOps>(ops: &O, va: u64) -> (u8, TableOf<O>) {
    let mut table = ops.root();
    for level in (2..=O::Format::LEVELS).rev() {
        let entry = ops.read_entry(table, O::Format::index(va, level));
        match entry.and_then(O::Format::open_table) {
            Some(next) => table = next,
            None => return (level, table),
        }
    }
    (1, table)
}

/// What `address` leads to: the leaf that translates it, with the permissions that all levels together grant, or `None`.
#[inline]
pub fn query<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> Result<Option<MappingOf<O::Format>>, Error<O::Format>> {
    let va = FormatOf::<O>::va_of(address)?;
    let (level, table) = descend(ops, va);
    if level > 1 {
        return query_from(ops, table, level, va);
    }
    match decode_at(ops, table, 1, va)? {
        Decoded::Content(content) if content != Content::Unmapped => Ok(Some(Mapping {
            virt: O::Format::virt(va & !0xfff),
            size: PageSize::Size4K,
            content,
        })),
        _ => Ok(None),
    }
}

/// The rest of the way, where there is something else than a table that lets everything through.
#[inline(never)]
fn query_from<O: TableReadOps>(
    ops: &O,
    mut table: TableOf<O>,
    mut level: u8,
    va: u64,
) -> Result<Option<MappingOf<O::Format>>, Error<O::Format>> {
    let mut rights = Rights::ALL;
    loop {
        match decode_at(ops, table, level, va)? {
            Decoded::Table {
                table: next,
                rights: granted,
            } => {
                table = next;
                rights = rights.and(granted);
                level -= 1;
            }
            Decoded::Content(content) => {
                let content = effective::<O::Format>(content, rights);
                let (false, Some(size)) =
                    (content == Content::Unmapped, O::Format::leaf_size(level))
                else {
                    return Ok(None);
                };
                return Ok(Some(Mapping {
                    virt: O::Format::virt(va & !O::Format::span_mask(level)),
                    size,
                    content,
                }));
            }
        }
    }
}

/// The physical address that `address` is translated to, or `None` where there is no memory (yet).
#[inline]
pub fn virt_to_phys<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> Result<Option<TableOf<O>>, Error<O::Format>> {
    Ok(query(ops, address)?.and_then(|mapping| mapping.phys_of(address)))
}

/// The leaves that intersect `len` bytes from `start` on, one by one, found as they are asked for. Addresses that the
/// format cannot translate lead to nothing. After `limit` entries, or at a table that is bad, the iterator yields an
/// error as its last item: so the work is bounded whatever the tables hold.
#[inline]
pub fn translate<O: TableReadOps>(
    ops: &O,
    start: VirtOf<O>,
    len: u64,
    limit: u64,
) -> Translate<'_, O> {
    let range = FormatOf::<O>::clamp(start, len);
    Translate {
        ops,
        at: range.map_or(0, |(first, _)| first & !0xfff),
        last: range.map_or(0, |(_, last)| last),
        done: range.is_none(),
        level: O::Format::LEVELS,
        tables: [(ops.root(), Rights::ALL); MAX_LEVELS],
        limit,
        ready: 0,
    }
}

/// See [`translate`].
pub struct Translate<'o, O: TableReadOps> {
    ops: &'o O,
    /// The translated bits of the address to look at next.
    at: u64,
    last: u64,
    done: bool,
    /// The level of the table to look at next.
    level: u8,
    /// The tables on the way to it, and what they let through, by their level less 1.
    tables: [(TableOf<O>, Rights); MAX_LEVELS],
    limit: u64,
    /// How many entries from `at` on are in the current table of level 1, in the range and within the limit.
    ready: u64,
}

type Item<O> = Result<MappingOf<FormatOf<O>>, Error<FormatOf<O>>>;

impl<O: TableReadOps> Translate<'_, O> {
    /// The next entry of the table of level 1.
    #[inline(always)]
    fn next_ready(&mut self) -> Option<Item<O>> {
        let va = self.at;
        self.ready -= 1;
        self.at = va + 0x1000;
        let (table, rights) = self.tables[slot(1)];
        match decode_at(self.ops, table, 1, va) {
            Ok(Decoded::Content(content)) => {
                let content = effective::<O::Format>(content, rights);
                (content != Content::Unmapped).then(|| {
                    Ok(Mapping {
                        virt: O::Format::virt(va),
                        size: PageSize::Size4K,
                        content,
                    })
                })
            }
            Ok(Decoded::Table { .. }) => None,
            Err(error) => Some(self.fail(error)),
        }
    }

    /// Walks until entries of a table of level 1 are ready, and yields what it comes across before.
    #[inline(never)]
    fn walk(&mut self) -> Option<Item<O>> {
        if self.level == 1 {
            // The entries that were ready are used up.
            if self.limit == 0 && O::Format::index(self.at, 1) != 0 {
                return self.limit_reached();
            }
            self.climb();
        }
        while !self.done {
            let va = self.at;
            let level = self.level;
            let Some(limit) = self.limit.checked_sub(1) else {
                return self.limit_reached();
            };
            self.limit = limit;
            let (table, rights) = self.tables[slot(level)];
            match decode_at(self.ops, table, level, va) {
                Ok(Decoded::Table {
                    table,
                    rights: granted,
                }) => {
                    self.level = level - 1;
                    self.tables[slot(level - 1)] = (table, rights.and(granted));
                    if level == 2 {
                        return self.make_ready();
                    }
                }
                Ok(Decoded::Content(content)) => {
                    self.at = (va | O::Format::span_mask(level)) + 1;
                    self.climb();
                    let content = effective::<O::Format>(content, rights);
                    let size = O::Format::leaf_size(level);
                    if let (false, Some(size)) = (content == Content::Unmapped, size) {
                        return Some(Ok(Mapping {
                            virt: O::Format::virt(va & !O::Format::span_mask(level)),
                            size,
                            content,
                        }));
                    }
                }
                Err(error) => return Some(self.fail(error)),
            }
        }
        None
    }

    /// Goes up to the table that has the entry for `at`, where that is the first one behind another table.
    fn climb(&mut self) {
        self.done |= self.at > self.last;
        while self.level < O::Format::LEVELS && O::Format::index(self.at, self.level) == 0 {
            self.level += 1;
        }
    }
    /// Prepares for the entries of the table of level 1 that has just been reached.
    fn make_ready(&mut self) -> Option<Item<O>> {
        let end = self.last.min(self.at | O::Format::span_mask(2));
        let entries = ((end - self.at) >> 12) + 1;
        self.ready = entries.min(self.limit);
        self.limit -= self.ready;
        match self.ready {
            0 => self.limit_reached(),
            _ => None,
        }
    }
    fn limit_reached(&mut self) -> Option<Item<O>> {
        Some(self.fail(PagingError::LimitReached {
            address: O::Format::virt(self.at),
            level: self.level,
        }))
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
