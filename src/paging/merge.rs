//! Merging tables of equal neighbours into large leaves.

use super::access::{EntryOf, FormatOf, ResultOf, TableMovability, TableOps, VirtOf};
use super::change::{Decision, Lowest, Operation, Slot, change};
use super::format::{ContentOf, Decoded, FormatExt, Rights};
use super::part::Part;
use super::query::effective;
use super::table::Table;
use crate::addr::PageSize;

/// Replaces each table in `len` bytes from `start` on, all of whose leaves say the same of pages that lie one behind the
/// other, by a leaf no larger than `largest`; it is accessed or dirty where one of them was, and grants no more than the
/// entry that referred to the table. Shared tables stay, those that may have been shared and were not written since, and
/// those that the access to the tables wants to keep. Returns
/// how many tables are gone. Nothing is allocated.
///
/// CPUs may go on using the smaller leaves until they are invalidated. No CPU may run on the tables meanwhile where
/// accessed and dirty matter: what it sets in the old leaves is lost.
///
/// # Errors
/// What is wrong with the range or with a table, or that the format has no leaf of the size. Nothing has been changed then.
pub fn merge<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    largest: PageSize,
) -> ResultOf<O, u64> {
    let largest = FormatOf::<O>::level_of(largest)?;
    let mut merge = Merge { largest, gone: 0 };
    if let Some((va, last)) = FormatOf::<O>::pages(start, len)? {
        change(ops, va, last, &mut merge)?;
    }
    Ok(merge.gone)
}

struct Merge {
    largest: u8,
    gone: u64,
}

impl<O: TableOps> Operation<O> for Merge {
    const LOWEST: Lowest = Lowest::Untouched;

    fn decide(&mut self, slot: &Slot<O>) -> ResultOf<O, Decision> {
        Ok(match slot.says {
            Decoded::Table { .. } if !slot.shared => Decision::Inside,
            _ => Decision::Skip,
        })
    }
    fn after(&mut self, ops: &mut O, slot: &Slot<O>, child: Table<O>) -> Option<EntryOf<O>> {
        let Decoded::Table { rights, .. } = slot.says else {
            return None;
        };
        let part = slot.part;
        let open = !O::Movability::MOVES || rights.contains(Rights::WRITE);
        if part.level > self.largest || !open || !part.is_whole() {
            return None;
        }
        let content = effective::<O::Format>(merged(ops, child, part.level, part.va)?, rights);
        if !content.is_mapped() || !child.merge_leaves(ops, part.level - 1) {
            return None;
        }
        self.gone += 1;
        Some(O::Format::encode(part.level, content))
    }
}

/// The leaf of `level` that says what the leaves of `child` say, if there is one.
fn merged<O: TableOps>(
    ops: &O,
    child: Table<O>,
    level: u8,
    va: u64,
) -> Option<ContentOf<O::Format>> {
    let step = O::Format::span_mask(level - 1) + 1;
    let leaf = |n| match child.look(ops, Part::at(level - 1, va + n * step)) {
        Ok((_, Decoded::Content(content))) if content.is_mapped() => Some(content),
        _ => None,
    };
    let mut leaves = 1..FormatOf::<O>::ENTRIES as u64;
    let join = |attr, other| ops.merge_attr(attr, other);
    let whole = leaves.try_fold(leaf(0)?, |whole, n| whole.joined(leaf(n)?, n * step, join))?;
    O::Format::check(level, whole, 1).is_ok().then_some(whole)
}
