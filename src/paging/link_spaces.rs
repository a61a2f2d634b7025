//! Building several spaces so that they share what they shared where they were walked.

use super::access::{ResultOf, TableOf, TableOps, VirtOf};
use super::cursor::Cursor;
use super::error::{Fault, PagingError};
use super::format::{Content, Decoded, Format, FormatExt};
use super::part::Part;
use super::spaces::{SpaceItem, SpaceItemOf};
use super::table::Table;

/// Access to tables of several spaces, one at a time.
pub trait TableRoots: TableOps {
    /// Chooses the root that operations start from. `None`, and no change, where no table can be there.
    fn select_root(&mut self, root: TableOf<Self>) -> Option<()>;
    /// Takes note that one more entry, or root, is about to refer to a table.
    fn share_table(&mut self, table: TableOf<Self>, level: u8);
}

/// Builds one item of [`walk_va_spaces`](super::walk_va_spaces) in the space of that place in `roots`. A space gets its root with its first
/// item; one that maps nothing has none in the end.
///
/// The items must come in the order in which they were found. Where the tables are shared and cannot move
/// ([`MayNotMoveTable`](super::MayNotMoveTable)), whatever is changed below a shared one later is changed for all.
///
/// # Errors
/// The item is not of a walk, comes out of order, or there is no table left.
pub fn space_aware_map<O: TableRoots>(
    ops: &mut O,
    roots: &mut [Option<TableOf<O>>],
    space: usize,
    item: &SpaceItemOf<O::Format>,
) -> ResultOf<O, ()> {
    match *item {
        SpaceItem::ThisSpace(leaf) => {
            select(ops, roots, space, leaf.virt)?;
            Cursor::new(ops, leaf.virt, leaf.size)?.set(leaf.content)
        }
        SpaceItem::Table { depth, va, rights } => {
            let at = entry_above::<O>(depth, va)?;
            select(ops, roots, space, va)?;
            let table = table_or_empty(ops, at.below())?.address();
            let entry = O::Format::restricted_table(table, rights);
            table_or_empty(ops, at)?.write(ops, at, entry)
        }
        SpaceItem::AnotherSpace(reference) => {
            let start = reference.our_va;
            select(ops, roots, reference.space, reference.their_va)?;
            if reference.depth == 0 {
                let theirs = ops.root();
                return match roots.get_mut(space) {
                    Some(ours @ None) => {
                        ops.share_table(theirs, O::Format::LEVELS);
                        *ours = Some(theirs);
                        Ok(())
                    }
                    Some(Some(_)) => Err(Part::<O::Format>::at(O::Format::LEVELS, 0).taken()),
                    None => Err(PagingError::OutOfRange { start, len: 0 }),
                };
            }
            let theirs = entry_above::<O>(reference.depth, reference.their_va)?;
            let table = table_at(ops, theirs.below());
            let table = table.ok_or_else(|| theirs.bad(Fault::NotMemory))?.address();
            let ours = entry_above::<O>(reference.depth, start)?;
            select(ops, roots, space, start)?;
            let parent = table_or_empty(ops, ours)?;
            if !matches!(
                parent.look(ops, ours)?.1,
                Decoded::Content(Content::Unmapped)
            ) {
                return Err(ours.taken());
            }
            ops.share_table(table, theirs.level - 1);
            let entry = O::Format::restricted_table(table, reference.rights);
            parent.write(ops, ours, entry)
        }
    }
}

/// The entry for the table so far below the root, where there is one.
fn entry_above<O: TableOps>(depth: u8, va: VirtOf<O>) -> ResultOf<O, Part<O::Format>> {
    if depth == 0 || depth >= O::Format::LEVELS {
        return Err(PagingError::OutOfRange { start: va, len: 0 });
    }
    Ok(Part::at(
        O::Format::LEVELS + 1 - depth,
        O::Format::va_of(va)?,
    ))
}

/// Makes the operations start from the root of `space`, which is made where it is not there yet.
fn select<O: TableRoots>(
    ops: &mut O,
    roots: &mut [Option<TableOf<O>>],
    space: usize,
    start: VirtOf<O>,
) -> ResultOf<O, ()> {
    let place = roots.get_mut(space);
    let place = place.ok_or(PagingError::OutOfRange { start, len: 0 })?;
    let at = Part::at(O::Format::LEVELS, 0);
    let root = match *place {
        Some(root) => root,
        None => {
            let root = Table::alloc(ops)?;
            if root.clear(ops, at).is_err() {
                root.free(ops);
                return Err(PagingError::OutOfTables);
            }
            *place.insert(root.address())
        }
    };
    ops.select_root(root)
        .ok_or_else(|| at.bad(Fault::NotMemory))
}

/// The table that has the entry, an empty one where there is none.
fn table_or_empty<O: TableRoots>(ops: &mut O, at: Part<O::Format>) -> ResultOf<O, Table<O>> {
    if let Some(table) = table_at(ops, at) {
        return Ok(table);
    }
    let mut cursor = Cursor::at_level(ops, at.va, at.level)?;
    cursor.prepare()?;
    match cursor.at.level == at.level {
        true => Ok(cursor.table),
        false => Err(cursor.at.taken()),
    }
}

/// The table that has the entry, in the tree of the selected root.
fn table_at<O: TableOps>(ops: &O, at: Part<O::Format>) -> Option<Table<O>> {
    let mut table = Table::root(ops);
    for level in (at.level + 1..=O::Format::LEVELS).rev() {
        let Ok((_, Decoded::Table { table: next, .. })) = table.look(ops, Part::at(level, at.va))
        else {
            return None;
        };
        table = next;
    }
    Some(table)
}
