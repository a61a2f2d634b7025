//! Building several spaces so that they share what they shared where they were walked.

use super::access::{FormatOf, ResultOf, TableOf, TableOps, TableReadOps};
use super::cursor::Cursor;
use super::error::{Fault, PagingError};
use super::format::{Content, Error, Format, FormatExt, Rights};
use super::path::path;
use super::query::bad;
use super::spaces::{SpaceItem, SpaceItemOf, SpaceReference};

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
        SpaceItem::AnotherSpace(reference) if reference.depth == 0 => {
            share_root(ops, roots, space, reference)
        }
        SpaceItem::AnotherSpace(reference) => link(ops, roots, space, reference),
        SpaceItem::ThisSpace(leaf) => {
            select(ops, roots, space, leaf.virt)?;
            Cursor::new(ops, leaf.virt, leaf.size)?.set(leaf.content)
        }
        SpaceItem::Table { depth, va, rights } => {
            select(ops, roots, space, va)?;
            let level = level_at::<O::Format>(depth, va)?;
            let translated = O::Format::va_of(va)?;
            let child = table_or_empty(ops, translated, level)?;
            write_link(ops, translated, level, child, rights)
        }
    }
}

/// The level of a table so far below the root, where there is one.
fn level_at<F: Format>(depth: u8, va: F::Virt) -> Result<u8, Error<F>> {
    match F::LEVELS.checked_sub(depth) {
        Some(level) if level > 0 && level < F::LEVELS => Ok(level),
        _ => Err(PagingError::OutOfRange { start: va, len: 0 }),
    }
}

/// Makes the operations start from the root of `space`, which is made where it is not there yet.
fn select<O: TableRoots>(
    ops: &mut O,
    roots: &mut [Option<TableOf<O>>],
    space: usize,
    va: <O::Format as Format>::Virt,
) -> ResultOf<O, ()> {
    let no_such_space = PagingError::OutOfRange { start: va, len: 0 };
    let place = roots.get_mut(space).ok_or(no_such_space)?;
    let root = match *place {
        Some(root) => root,
        None => {
            let root = ops.alloc_table().ok_or(PagingError::OutOfTables)?;
            if ops
                .write_run(root, 0, FormatOf::<O>::ENTRIES, 0, 0)
                .is_none()
            {
                ops.free_table(root);
                return Err(PagingError::OutOfTables);
            }
            *place = Some(root);
            root
        }
    };
    let bad_root = bad::<O::Format>(0, O::Format::LEVELS, Fault::NotMemory);
    ops.select_root(root).ok_or(bad_root)
}

fn share_root<O: TableRoots>(
    ops: &mut O,
    roots: &mut [Option<TableOf<O>>],
    space: usize,
    reference: SpaceReference<<O::Format as Format>::Virt>,
) -> ResultOf<O, ()> {
    select(ops, roots, reference.space, reference.their_va)?;
    let theirs = ops.root();
    let start = reference.our_va;
    match roots.get_mut(space) {
        Some(ours @ None) => {
            ops.share_table(theirs, O::Format::LEVELS);
            *ours = Some(theirs);
            Ok(())
        }
        Some(Some(_)) => Err(PagingError::AlreadyMapped {
            address: start,
            level: O::Format::LEVELS,
        }),
        None => Err(PagingError::OutOfRange { start, len: 0 }),
    }
}

/// Links the table that another space has at its address at ours.
fn link<O: TableRoots>(
    ops: &mut O,
    roots: &mut [Option<TableOf<O>>],
    space: usize,
    reference: SpaceReference<<O::Format as Format>::Virt>,
) -> ResultOf<O, ()> {
    let level = level_at::<O::Format>(reference.depth, reference.our_va)?;
    let ours = O::Format::va_of(reference.our_va)?;
    let theirs = O::Format::va_of(reference.their_va)?;

    select(ops, roots, reference.space, reference.their_va)?;
    let table = table_at(ops, theirs, level)
        .ok_or_else(|| bad::<O::Format>(theirs, level + 1, Fault::NotMemory))?;

    select(ops, roots, space, reference.our_va)?;
    if level + 1 < O::Format::LEVELS {
        table_or_empty(ops, ours, level + 1)?;
    }
    let cursor = Cursor::at_level(ops, ours, level + 1)?;
    if cursor.content() != Content::Unmapped {
        return Err(taken(&cursor));
    }
    ops.share_table(table, level);
    write_link(ops, ours, level, table, reference.rights)
}

/// Makes the entry above refer to the table of `level`.
fn write_link<O: TableRoots>(
    ops: &mut O,
    va: u64,
    level: u8,
    table: TableOf<O>,
    rights: Rights,
) -> ResultOf<O, ()> {
    let not_memory = || bad::<O::Format>(va, level + 1, Fault::NotMemory);
    let parent = table_at(ops, va, level + 1).ok_or_else(not_memory)?;
    let entry = O::Format::restricted_table(table, rights);
    ops.write_entry(parent, O::Format::index(va, level + 1), entry)
        .ok_or_else(not_memory)
}

/// The table of `level` for `va`, an empty one where there is none.
fn table_or_empty<O: TableRoots>(ops: &mut O, va: u64, level: u8) -> ResultOf<O, TableOf<O>> {
    if let Some(table) = table_at(ops, va, level) {
        return Ok(table);
    }
    let mut cursor = Cursor::at_level(ops, va, level)?;
    cursor.prepare()?;
    if cursor.level() != level {
        return Err(taken(&cursor));
    }
    Ok(cursor.table())
}

fn taken<O: TableOps>(cursor: &Cursor<'_, O>) -> Error<O::Format> {
    PagingError::AlreadyMapped {
        address: cursor.start(),
        level: cursor.level(),
    }
}

/// The table of `level` for `va` in the tree of the selected root.
fn table_at<O: TableReadOps>(ops: &O, va: u64, level: u8) -> Option<TableOf<O>> {
    let mut steps = path(ops, O::Format::virt(va));
    steps
        .find(|step| step.level == level)
        .map(|step| step.table)
}
