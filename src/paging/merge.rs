//! Merging tables of equal neighbours into large leaves.

use super::access::{FormatOf, TableMovability, TableOf, TableOps, VirtOf};
use super::error::{Error, Fault};
use super::format::{Content, ContentOf, Decoded, Format, FormatExt, Rights};
use super::plan::{is_whole, level_of};
use super::query::{bad, decode_at};
use crate::addr::{Address, PageSize};

/// Replaces each table in `len` bytes from `start` on, all of whose leaves say the same of pages that lie one behind the
/// other, by a leaf no larger than `largest`; it is accessed or dirty where one of them was, and grants no more than the
/// entry that referred to the table. Shared tables stay, those that may have been shared and were not written since, and
/// those that the access to the tables wants to keep. Yields
/// how many tables are gone. Nothing is allocated.
///
/// CPUs may go on using the smaller leaves until they are invalidated. No CPU may run on the tables meanwhile where
/// accessed and dirty matter: what it sets in the old leaves is lost.
pub fn merge<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    largest: PageSize,
) -> Result<u64, Error<O::Format>> {
    let largest = level_of::<O::Format>(largest)?;
    let Some((va, last)) = FormatOf::<O>::pages(start, len)? else {
        return Ok(0);
    };
    let root = ops.root();
    merge_below(ops, root, O::Format::LEVELS, va, last, largest)
}

/// Merges what is below the range's entries of `table`.
fn merge_below<O: TableOps>(
    ops: &mut O,
    table: TableOf<O>,
    level: u8,
    mut va: u64,
    last: u64,
    largest: u8,
) -> Result<u64, Error<O::Format>> {
    if ops.must_move(table, level).is_some() {
        return Ok(0);
    }
    let mut gone = 0;
    loop {
        let end = last.min(va | O::Format::span_mask(level));
        if let Decoded::Table {
            table: child,
            rights,
        } = decode_at(ops, table, level, va)?
        {
            if level > 2 {
                gone += merge_below(ops, child, level - 1, va, end, largest)?;
            }
            let open = !O::Movability::MOVES || rights.contains(Rights::WRITE);
            if level <= largest
                && open
                && is_whole::<O::Format>(level, va, end)
                && ops.must_move(child, level - 1).is_none()
                && let Some(content) = merged(ops, child, level, va)?
                && let Some(content) = restricted::<O::Format>(content, rights)
                && ops.merge_leaves(child, level - 1)
            {
                let entry = O::Format::encode(level, content);
                ops.write_entry(table, O::Format::index(va, level), entry)
                    .ok_or_else(|| bad::<O::Format>(va, level, Fault::NotMemory))?;
                ops.retire_table(child, level - 1);
                gone += 1;
            }
        }
        if end == last {
            return Ok(gone);
        }
        va = end + 1;
    }
}

/// The leaf of `level` that says what the leaves of `child` say, if there is one.
fn merged<O: TableOps>(
    ops: &O,
    child: TableOf<O>,
    level: u8,
    va: u64,
) -> Result<Option<ContentOf<O::Format>>, Error<O::Format>> {
    let step = O::Format::span_mask(level - 1) + 1;
    let mut whole: Option<ContentOf<O::Format>> = None;
    for index in 0..FormatOf::<O>::ENTRIES as u64 {
        let Decoded::Content(next) = decode_at(ops, child, level - 1, va + index * step)? else {
            return Ok(None);
        };
        whole = match whole {
            None => Some(next),
            Some(whole) => joined(ops, whole, next, index * step),
        };
        if matches!(whole, None | Some(Content::Unmapped)) {
            return Ok(None);
        }
    }
    let aligned = match whole {
        Some(Content::Page { phys, .. }) => is_start::<O::Format>(level, phys),
        _ => true,
    };
    Ok(whole.filter(|_| aligned))
}

/// The content with what `rights` do not contain taken away, if anything is left.
fn restricted<F: Format>(content: ContentOf<F>, rights: Rights) -> Option<ContentOf<F>> {
    Some(match content {
        Content::Page { phys, attr } => Content::Page {
            phys,
            attr: F::restrict(attr, rights)?,
        },
        Content::ZeroOnDemand { attr } => Content::ZeroOnDemand {
            attr: F::restrict(attr, rights)?,
        },
        Content::Unmapped => return None,
    })
}

fn is_start<F: Format>(level: u8, phys: F::Phys) -> bool {
    phys.is_aligned(F::span_mask(level) + 1)
}

/// `first` and what stands `offset` bytes behind it as one.
fn joined<O: TableOps>(
    ops: &O,
    first: ContentOf<O::Format>,
    next: ContentOf<O::Format>,
    offset: u64,
) -> Option<ContentOf<O::Format>> {
    match (first, next) {
        (Content::Page { phys, attr }, Content::Page { phys: p, attr: a })
            if phys.checked_add(offset) == Some(p) =>
        {
            ops.merge_attr(attr, a)
                .map(|attr| Content::Page { phys, attr })
        }
        (Content::ZeroOnDemand { attr }, Content::ZeroOnDemand { attr: a }) => ops
            .merge_attr(attr, a)
            .map(|attr| Content::ZeroOnDemand { attr }),
        _ => None,
    }
}
