//! Reading: one address, or lazily whatever a range of addresses leads to.

use super::access::{EntryOf, FormatOf, TableOf, TableReadOps, VirtOf};
use super::error::{Fault, PagingError};
use super::format::{
    Content, ContentOf, Decoded, DecodedOf, Entry, Error, Format, FormatExt, MAX_LEVELS, Mapping,
    MappingOf, Rights, slot,
};
use crate::addr::{Address, PageSize};

/// The entry of `table` for `va`.
#[inline(always)]
pub(super) fn read_at<O: TableReadOps>(
    ops: &O,
    table: TableOf<O>,
    level: u8,
    va: u64,
) -> Result<EntryOf<O>, Error<O::Format>> {
    match ops.read_entry(table, O::Format::index(va, level)) {
        Some(entry) => Ok(entry),
        None => Err(bad::<O::Format>(va, level, Fault::NotMemory)),
    }
}

/// What the entry of `table` for `va` says.
#[inline(always)]
pub(super) fn decode_at<O: TableReadOps>(
    ops: &O,
    table: TableOf<O>,
    level: u8,
    va: u64,
) -> Result<DecodedOf<O::Format>, Error<O::Format>> {
    match O::Format::decode(level, read_at(ops, table, level, va)?) {
        Ok(decoded) => Ok(decoded),
        Err(fault) => Err(bad::<O::Format>(va, level, fault)),
    }
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
pub(super) fn effective<F: Format>(content: ContentOf<F>, rights: Rights) -> ContentOf<F> {
    if rights == Rights::ALL {
        return content;
    }
    content.with_attr(|attr| F::restrict(attr, rights))
}

/// The table of level 1 for `va`, where all tables above it let everything through: the frequent case.
#[inline(always)]
pub(super) fn descend<O: TableReadOps>(ops: &O, va: u64) -> Option<TableOf<O>> {
    let mut table = ops.root();
    for level in (2..=O::Format::LEVELS).rev() {
        let entry = ops.read_entry(table, O::Format::index(va, level))?;
        table = O::Format::open_table(entry)?;
    }
    Some(table)
}

/// What `address` leads to: the leaf that translates it, with the permissions that all levels together grant, or `None`.
#[inline]
pub fn query<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> Result<Option<MappingOf<O::Format>>, Error<O::Format>> {
    let va = FormatOf::<O>::va_of(address)?;
    if let Some(table) = descend(ops, va)
        && let Some(entry) = ops.read_entry(table, O::Format::index(va, 1))
        && let Ok(Decoded::Content(Content::Page { phys, attr })) = O::Format::decode(1, entry)
    {
        return Ok(Some(Mapping {
            virt: address.align_down(0x1000),
            size: PageSize::Size4K,
            content: Content::Page { phys, attr },
        }));
    }
    let Leaf {
        level,
        rights,
        leaf: entry,
    } = find(ops, va)?;
    Ok(match O::Format::decode(level, entry) {
        Ok(Decoded::Content(leaf)) => mapping::<O::Format>(
            va,
            Leaf {
                level,
                rights,
                leaf,
            },
        ),
        _ => None,
    })
}

/// As [`query`], and shows `see` every entry on the way, the root's first.
#[inline(always)]
pub fn query_seeing<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
    see: impl FnMut(EntryOf<O>),
) -> Result<Option<MappingOf<O::Format>>, Error<O::Format>> {
    let va = FormatOf::<O>::va_of(address)?;
    Ok(mapping::<O::Format>(va, find_seeing(ops, va, see)?))
}

/// The leaf for `va`, with what the tables above it let through.
#[inline(always)]
fn mapping<F: Format>(va: u64, found: Leaf<ContentOf<F>>) -> Option<MappingOf<F>> {
    let Leaf {
        level,
        rights,
        leaf: content,
    } = found;
    let size = F::leaf_size(level)?;
    match effective::<F>(content, rights) {
        Content::Unmapped => None,
        content => Some(Mapping {
            virt: F::virt(va & !F::span_mask(level)),
            size,
            content,
        }),
    }
}

/// An entry that is not a table, or what it says, and what the tables above let through.
struct Leaf<T> {
    level: u8,
    rights: Rights,
    leaf: T,
}

/// The entry at which the way of any address ends. It is decoded again by who asks: what is returned stays small, and
/// the frequent case above in registers.
#[inline(never)]
fn find<O: TableReadOps>(ops: &O, va: u64) -> Result<Leaf<EntryOf<O>>, Error<O::Format>> {
    let mut entry = Entry::EMPTY;
    let Leaf { level, rights, .. } = find_seeing(ops, va, |seen| entry = seen)?;
    Ok(Leaf {
        level,
        rights,
        leaf: entry,
    })
}

/// What stands at the end of the way of an address. Shows `see` every entry.
#[inline(always)]
fn find_seeing<O: TableReadOps>(
    ops: &O,
    va: u64,
    mut see: impl FnMut(EntryOf<O>),
) -> Result<Leaf<ContentOf<O::Format>>, Error<O::Format>> {
    let mut table = ops.root();
    let mut level = O::Format::LEVELS;
    let mut rights = Rights::ALL;
    loop {
        let index = O::Format::index(va, level);
        let Some(entry) = ops.read_entry(table, index) else {
            return Err(bad::<O::Format>(va, level, Fault::NotMemory));
        };
        see(entry);
        match O::Format::decode(level, entry) {
            Ok(Decoded::Table {
                table: next,
                rights: granted,
            }) => {
                table = next;
                rights = rights.and(granted);
                level -= 1;
            }
            Ok(Decoded::Content(leaf)) => {
                return Ok(Leaf {
                    level,
                    rights,
                    leaf,
                });
            }
            Err(fault) => return Err(bad::<O::Format>(va, level, fault)),
        }
    }
}

/// The physical address that `address` is translated to, or `None` where there is no memory (yet).
#[inline]
pub fn virt_to_phys<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> Result<Option<TableOf<O>>, Error<O::Format>> {
    let va = FormatOf::<O>::va_of(address)?;
    if let Some(table) = descend(ops, va)
        && let Some(entry) = ops.read_entry(table, O::Format::index(va, 1))
        && let Ok(Decoded::Content(Content::Page { phys, .. })) = O::Format::decode(1, entry)
    {
        return Ok(Some(TableOf::<O>::new(
            phys.as_u64() | address.page_offset(),
        )));
    }
    virt_to_phys_anywhere(ops, address)
}

#[cold]
#[inline(never)]
fn virt_to_phys_anywhere<O: TableReadOps>(
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
