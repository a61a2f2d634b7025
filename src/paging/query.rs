//! Reading what one address leads to.

use super::access::{
    EntryOf, FormatOf, ResultOf, TableMovability, TableOf, TableOps, TableReadOps, VirtOf,
};
use super::error::{Fault, PagingError};
use super::format::{
    Content, ContentOf, Decoded, DecodedOf, Entry, Error, Format, FormatExt, Mapping, MappingOf,
    Rights,
};
use crate::addr::{Address, PageSize};

/// The entry of `table` for `va`.
#[inline(always)]
pub(super) fn read_at<O: TableReadOps>(
    ops: &O,
    table: TableOf<O>,
    level: u8,
    va: u64,
) -> ResultOf<O, EntryOf<O>> {
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
) -> ResultOf<O, DecodedOf<O::Format>> {
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

/// Where a descent has come to.
#[derive(Clone, Copy)]
pub(super) struct Reached<O: TableReadOps> {
    pub(super) table: TableOf<O>,
    pub(super) level: u8,
}

impl<O: TableReadOps> Reached<O> {
    /// Goes down as long as the entries for `va` are of tables and let everything through, as nearly all do, but not below
    /// `target`. Tells `pass` of each table, and returns the entry in the last one. It is the one descent made by hand:
    /// for the bench's rows `fill.read`, `fill.write`, `cow.zero` and `cow.copy`, and the walker's `map_pages` and
    /// `query_random`.
    #[inline(always)]
    pub(super) fn descend(
        &mut self,
        ops: &O,
        va: u64,
        target: u8,
        mut pass: impl FnMut(TableOf<O>, u8),
    ) -> Option<EntryOf<O>> {
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
    /// The root.
    #[inline(always)]
    pub(super) fn root(ops: &O) -> Self {
        Self {
            table: ops.root(),
            level: O::Format::LEVELS,
        }
    }
}

/// The table of level 1 for `va`, where all tables above it let everything through: the frequent case.
#[inline(always)]
pub(super) fn lowest<O: TableReadOps>(ops: &O, va: u64) -> Option<TableOf<O>> {
    let mut at = Reached::root(ops);
    let entry = at.descend(ops, va, 2, |_, _| ())?;
    match at.level {
        2 => O::Format::open_table(entry),
        _ => None,
    }
}

/// The lowest table for `address`, where every entry above lets everything through, so that it can be written in place.
/// `None` otherwise, and for an address out of range: [`Cursor`](super::Cursor) tells more.
#[inline(always)]
pub fn open_table<O: TableOps>(ops: &O, address: VirtOf<O>) -> Option<TableOf<O>> {
    const { assert!(O::WRITE_MEANS_PRIVATE || !O::Movability::MOVES) };
    lowest(ops, FormatOf::<O>::va_of(address).ok()?)
}

/// The page for `va` there.
#[inline(always)]
fn lowest_page<O: TableReadOps>(ops: &O, va: u64) -> Option<ContentOf<O::Format>> {
    let entry = ops.read_entry(lowest(ops, va)?, O::Format::index(va, 1))?;
    match O::Format::decode(1, entry) {
        Ok(Decoded::Content(page @ Content::Page { .. })) => Some(page),
        _ => None,
    }
}

/// What `address` leads to: the leaf that translates it, with the permissions that all levels together grant, or `None`.
///
/// # Errors
/// The address is out of range, or an entry on the way is bad.
#[inline]
pub fn query<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> ResultOf<O, Option<MappingOf<O::Format>>> {
    let va = FormatOf::<O>::va_of(address)?;
    if let Some(content) = lowest_page(ops, va) {
        return Ok(Some(Mapping {
            virt: address.align_down(0x1000),
            size: PageSize::Size4K,
            content,
        }));
    }
    let (level, rights, entry) = find(ops, va)?;
    Ok(match O::Format::decode(level, entry) {
        Ok(Decoded::Content(leaf)) => {
            mapping::<O::Format>(va & !O::Format::span_mask(level), level, rights, leaf)
        }
        _ => None,
    })
}

/// As [`query`], and shows `see` every entry on the way, the root's first.
///
/// # Errors
/// As for [`query`].
#[inline(always)]
pub fn query_seeing<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
    mut see: impl FnMut(EntryOf<O>),
) -> ResultOf<O, Option<MappingOf<O::Format>>> {
    let va = FormatOf::<O>::va_of(address)?;
    let (level, rights, leaf) = find_seeing(ops, va, |_, _, entry| see(entry))?;
    let start = va & !O::Format::span_mask(level);
    Ok(mapping::<O::Format>(start, level, rights, leaf))
}

/// The leaf of `level` that starts at `va`, with what the tables above it let through.
#[inline(always)]
pub(super) fn mapping<F: Format>(
    va: u64,
    level: u8,
    rights: Rights,
    content: ContentOf<F>,
) -> Option<MappingOf<F>> {
    let size = F::leaf_size(level)?;
    let content = effective::<F>(content, rights);
    content.is_mapped().then(|| Mapping {
        virt: F::virt(va),
        size,
        content,
    })
}

/// The entry at which the way of any address ends, its level, and what the tables above let through. It is decoded again by
/// who asks: what is returned stays small, and the frequent case above in registers.
#[inline(never)]
fn find<O: TableReadOps>(ops: &O, va: u64) -> ResultOf<O, (u8, Rights, EntryOf<O>)> {
    let mut entry = Entry::EMPTY;
    let (level, rights, _) = find_seeing(ops, va, |_, _, seen| entry = seen)?;
    Ok((level, rights, entry))
}

/// What stands at the end of the way of an address. Shows `see` every entry, with the level and the table.
#[inline(always)]
pub(super) fn find_seeing<O: TableReadOps>(
    ops: &O,
    va: u64,
    mut see: impl FnMut(u8, TableOf<O>, EntryOf<O>),
) -> ResultOf<O, (u8, Rights, ContentOf<O::Format>)> {
    let mut table = ops.root();
    let mut level = O::Format::LEVELS;
    let mut rights = Rights::ALL;
    loop {
        let entry = read_at(ops, table, level, va)?;
        see(level, table, entry);
        match O::Format::decode(level, entry) {
            Ok(Decoded::Table {
                table: next,
                rights: granted,
            }) => {
                table = next;
                rights = rights.and(granted);
                level -= 1;
            }
            Ok(Decoded::Content(leaf)) => return Ok((level, rights, leaf)),
            Err(fault) => return Err(bad::<O::Format>(va, level, fault)),
        }
    }
}

/// The physical address that `address` is translated to, or `None` where there is no memory (yet).
///
/// # Errors
/// As for [`query`].
#[inline]
pub fn virt_to_phys<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> ResultOf<O, Option<TableOf<O>>> {
    let va = FormatOf::<O>::va_of(address)?;
    if let Some(Content::Page { phys, .. }) = lowest_page(ops, va) {
        let phys = phys.as_u64() | address.page_offset();
        return Ok(Some(TableOf::<O>::new(phys)));
    }
    virt_to_phys_anywhere(ops, address)
}

#[cold]
#[inline(never)]
fn virt_to_phys_anywhere<O: TableReadOps>(
    ops: &O,
    address: VirtOf<O>,
) -> ResultOf<O, Option<TableOf<O>>> {
    Ok(query(ops, address)?.and_then(|mapping| mapping.phys_of(address)))
}
