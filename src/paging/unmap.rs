//! Unmapping a range.

use super::access::{FormatOf, TableMovability, TableOf, TableOps, VirtOf};
use super::edit::{Edit, report};
use super::error::Error;
use super::format::{Content, Decoded, Entry, Format, FormatExt, MappingOf};
use super::plan::{holds_any, is_whole, plan};
use super::query::bad;

/// What happens to tables that come to hold nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emptied {
    /// They stay, for the next mapping.
    Keep,
    /// They are unlinked and given back through [`TableOps::retire_table`]. The root stays.
    Retire,
}

/// Unmaps `len` bytes from `start` on, and tells `removed` of each leaf that is gone, except those in sub-trees that
/// other trees share and that are dropped as a whole. Of a large leaf that is partly in the range the rest is kept, in
/// smaller leaves: only that, and the copy of a table that must move, takes memory. CPUs may use what was unmapped
/// until it is invalidated.
pub fn unmap<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    emptied: Emptied,
    mut removed: impl FnMut(MappingOf<O::Format>),
) -> Result<(), Error<O::Format>> {
    let Some((va, last)) = FormatOf::<O>::pages(start, len)? else {
        return Ok(());
    };
    let root = ops.root();
    let shared = O::Movability::MOVES && ops.must_move(root, O::Format::LEVELS).is_some();
    if shared && !holds_any(ops, root, O::Format::LEVELS, va, last)? {
        return Ok(());
    }
    let tables = plan::<O, true>(ops, root, O::Format::LEVELS, va, last, false)?;
    Edit::run(ops, tables, |edit| {
        let root = edit.own_root()?;
        clear(
            edit,
            root,
            O::Format::LEVELS,
            va,
            last,
            emptied,
            &mut removed,
        )
    })
}

/// Clears the range in `table`, which is private.
fn clear<O: TableOps>(
    edit: &mut Edit<'_, O>,
    table: TableOf<O>,
    level: u8,
    mut va: u64,
    last: u64,
    emptied: Emptied,
    removed: &mut impl FnMut(MappingOf<O::Format>),
) -> Result<(), Error<O::Format>> {
    if level == 1 {
        return clear_run(edit, table, va, last, removed);
    }
    loop {
        let end = last.min(va | O::Format::span_mask(level));
        let whole = is_whole::<O::Format>(level, va, end);
        let old = edit.read(table, level, va)?;
        match O::Format::decode(level, old).map_err(|fault| bad::<O::Format>(va, level, fault))? {
            Decoded::Content(Content::Unmapped) => {}
            Decoded::Content(_) if whole => {
                let empty = <O::Format as Format>::Entry::EMPTY;
                let old = edit.replace(table, level, va, old, |_, _| Ok(empty))?;
                if let Ok(Decoded::Content(content)) = O::Format::decode(level, old) {
                    report::<O::Format>(level, va, content, removed);
                }
            }
            Decoded::Content(_) => {
                let child = edit.split(table, level, va, old)?;
                clear(edit, child, level - 1, va, end, emptied, removed)?;
            }
            Decoded::Table {
                table: child,
                rights,
            } => {
                let shared = edit.ops.must_move(child, level - 1).is_some();
                if whole && (shared || emptied == Emptied::Retire) {
                    edit.write(table, level, va, <O::Format as Format>::Entry::EMPTY)?;
                    edit.dispose(child, level - 1, va, removed)?;
                } else if !shared || holds_any(edit.ops, child, level - 1, va, end)? {
                    let child = edit.own(table, level, va, child, rights)?;
                    clear(edit, child, level - 1, va, end, emptied, removed)?;
                    if emptied == Emptied::Retire && is_empty(edit.ops, child)? {
                        edit.write(table, level, va, <O::Format as Format>::Entry::EMPTY)?;
                        edit.ops.retire_table(child, level - 1);
                    }
                }
            }
        }
        if end == last {
            return Ok(());
        }
        va = end + 1;
    }
}

/// Clears the range in `table`, of level 1. An entry that makes no sense was no mapping, and goes too.
#[inline(always)]
fn clear_run<O: TableOps>(
    edit: &mut Edit<'_, O>,
    table: TableOf<O>,
    mut va: u64,
    last: u64,
    removed: &mut impl FnMut(MappingOf<O::Format>),
) -> Result<(), Error<O::Format>> {
    let empty = <O::Format as Format>::Entry::EMPTY;
    while va < last {
        let old = edit.read(table, 1, va)?;
        if old != empty {
            let old = edit.replace(table, 1, va, old, |_, _| Ok(empty))?;
            if let Ok(Decoded::Content(content)) = O::Format::decode(1, old) {
                report::<O::Format>(1, va, content, removed);
            }
        }
        va += 0x1000;
    }
    Ok(())
}

/// Whether every entry of the table is zero, so that the table can go.
fn is_empty<O: TableOps>(ops: &O, table: TableOf<O>) -> Result<bool, Error<O::Format>> {
    Ok((0..FormatOf::<O>::ENTRIES)
        .all(|index| ops.read_entry(table, index) == Some(<O::Format as Format>::Entry::EMPTY)))
}
