//! What a change to existing mappings takes, found out before anything is changed.

use super::access::{FormatOf, TableMovability, TableOf, TableOps};
use super::error::{Error, PagingError};
use super::format::{Content, ContentOf, Decoded, Format, FormatExt};
use super::query::decode_at;
use crate::addr::{Address, PageSize};

/// Whether anything is mapped in the range.
pub(super) fn holds_any<O: TableOps>(
    ops: &O,
    table: TableOf<O>,
    level: u8,
    mut va: u64,
    last: u64,
) -> Result<bool, Error<O::Format>> {
    loop {
        let end = last.min(va | O::Format::span_mask(level));
        match decode_at(ops, table, level, va)? {
            Decoded::Content(Content::Unmapped) => {}
            Decoded::Content(_) => return Ok(true),
            Decoded::Table { table, .. } => {
                if holds_any(ops, table, level - 1, va, end)? {
                    return Ok(true);
                }
            }
        }
        if end == last {
            return Ok(false);
        }
        va = end + 1;
    }
}

/// Whether `[va, last]` is the whole of a slot of `level`.
#[inline(always)]
pub(super) fn is_whole<F: Format>(level: u8, va: u64, last: u64) -> bool {
    last - va == F::span_mask(level)
}

/// How many tables a change of what is mapped in the range takes: a copy of each table that must move, and those of the
/// leaves that are split at the ends. `DROP` says that whole sub-trees which others share are dropped, not copied.
/// `shared` says that a table above will be copied. Reads every entry that will be changed, so that a bad one is found before.
pub(super) fn plan<O: TableOps, const DROP: bool>(
    ops: &O,
    table: TableOf<O>,
    level: u8,
    mut va: u64,
    last: u64,
    shared: bool,
) -> Result<u64, Error<O::Format>> {
    let shared = O::Movability::MOVES && (shared || ops.must_move(table, level).is_some());
    let mut tables = u64::from(shared);
    if DROP && level == 1 {
        // Nothing can be wrong with an entry that is cleared.
        return Ok(tables);
    }
    loop {
        let end = last.min(va | O::Format::span_mask(level));
        match decode_at(ops, table, level, va)? {
            Decoded::Content(Content::Unmapped) => {}
            Decoded::Content(_) => {
                if !is_whole::<O::Format>(level, va, end) {
                    tables += tables_to_split::<O::Format>(level - 1, va, end);
                }
            }
            Decoded::Table { table: child, .. } => {
                let child_shared =
                    O::Movability::MOVES && (shared || ops.must_move(child, level - 1).is_some());
                let dropped = DROP && child_shared && is_whole::<O::Format>(level, va, end);
                let untouched =
                    child_shared && !dropped && !holds_any(ops, child, level - 1, va, end)?;
                if !dropped && !untouched {
                    tables += plan::<O, DROP>(ops, child, level - 1, va, end, shared)?;
                }
            }
        }
        if end == last {
            return Ok(tables);
        }
        va = end + 1;
    }
}

/// Tables that a change needs below a slot of which only `[va, last]` is to change and which holds a leaf: one for each
/// split, at the ends of the range.
fn tables_to_split<F: Format>(level: u8, va: u64, last: u64) -> u64 {
    let mask = F::span_mask(level);
    let first_whole = va & mask == 0 && last - va >= mask;
    let last_whole = last & mask == mask && last - va >= mask;
    let same = va & !mask == last & !mask;
    if level == 1 {
        1
    } else if same {
        1 + if first_whole {
            0
        } else {
            tables_to_split::<F>(level - 1, va, last)
        }
    } else {
        let first = if first_whole {
            0
        } else {
            tables_to_split::<F>(level - 1, va, va | mask)
        };
        let end = if last_whole {
            0
        } else {
            tables_to_split::<F>(level - 1, last & !mask, last)
        };
        1 + first + end
    }
}

/// Whether a tree that a leaf is to take the place of can be read to its end, and, unless it may be `replaced`, holds
/// nothing.
pub(super) fn check_tree<O: TableOps>(
    ops: &O,
    table: TableOf<O>,
    level: u8,
    va: u64,
    replaced: bool,
) -> Result<(), Error<O::Format>> {
    for index in 0..FormatOf::<O>::ENTRIES {
        let va = va + ((index as u64) << O::Format::shift(level));
        match decode_at(ops, table, level, va)? {
            Decoded::Content(Content::Unmapped) => {}
            Decoded::Content(_) if replaced => {}
            Decoded::Content(_) => {
                return Err(PagingError::AlreadyMapped {
                    address: O::Format::virt(va),
                    level,
                });
            }
            Decoded::Table { table, .. } => check_tree(ops, table, level - 1, va, replaced)?,
        }
    }
    Ok(())
}

/// The level at which a leaf of `size` stands.
#[inline(always)]
pub(super) fn level_of<F: Format>(size: PageSize) -> Result<u8, Error<F>> {
    (1..=F::LEVELS)
        .find(|&level| F::leaf_size(level) == Some(size))
        .ok_or(PagingError::NoSuchLeaf { size })
}

/// Whether a leaf of `level` can refer to the content.
#[inline(always)]
pub(super) fn check_content<F: Format>(level: u8, content: ContentOf<F>) -> Result<(), Error<F>> {
    if let Content::Page { phys, .. } = content {
        if phys.as_u64() & F::span_mask(level) != 0 {
            return Err(PagingError::UnalignedPhys { phys });
        }
        if phys.as_u64() >> F::PHYS_BITS != 0 {
            return Err(PagingError::PhysTooWide { phys });
        }
    }
    Ok(())
}
