//! Changing what is mapped, leaf by leaf, and splitting leaves.

use super::access::{FormatOf, TableMovability, TableOf, TableOps, VirtOf};
use super::edit::Edit;
use super::error::{Error, PagingError};
use super::format::{Content, ContentOf, Decoded, Entry, Format, FormatExt};
use super::plan::{check_content, holds_any, is_whole, level_of, plan};
use super::query::{bad, decode_at};
use crate::addr::{Address, PageSize};

/// A leaf that may be changed to something else that can stand in its place. It says what its own entry says, without
/// what tables above deny.
#[derive(Debug)]
pub struct Leaf<F: Format> {
    va: u64,
    level: u8,
    size: PageSize,
    content: ContentOf<F>,
}

impl<F: Format> Leaf<F> {
    /// The first address that it translates.
    pub fn start(&self) -> F::Virt {
        F::virt(self.va)
    }
    /// Its size.
    pub fn size(&self) -> PageSize {
        self.size
    }
    /// What is there; after a change, what is to be there.
    pub fn content(&self) -> ContentOf<F> {
        self.content
    }
    /// Maps another page or with other attributes. An error, and no change, where the leaf cannot refer to it.
    pub fn set_page(&mut self, phys: F::Phys, attr: F::Attr) -> Result<(), Error<F>> {
        let content = Content::Page { phys, attr };
        check_content::<F>(self.level, content)?;
        self.content = content;
        Ok(())
    }
    /// Changes the attributes alone.
    pub fn set_attr(&mut self, change: impl FnOnce(F::Attr) -> F::Attr) {
        match &mut self.content {
            Content::Page { attr, .. } | Content::ZeroOnDemand { attr } => *attr = change(*attr),
            Content::Unmapped => {}
        }
    }
    /// Has the first access be given zeroed memory.
    pub fn set_zero_on_demand(&mut self, attr: F::Attr) {
        self.content = Content::ZeroOnDemand { attr };
    }
    /// Unmaps it.
    pub fn unmap(&mut self) {
        self.content = Content::Unmapped;
    }
}

/// Calls `change` for each leaf in `len` bytes from `start` on, in order; what it makes of the leaf is stored. A large
/// leaf that is partly in the range is split first. Nothing is allocated where nothing is mapped.
///
/// Accessed and dirty that the CPU sets meanwhile are kept. CPUs may use the old leaves until they are invalidated.
pub fn modify<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    mut change: impl FnMut(&mut Leaf<O::Format>),
) -> Result<(), Error<O::Format>> {
    let Some((va, last)) = FormatOf::<O>::pages(start, len)? else {
        return Ok(());
    };
    let root = ops.root();
    let level = O::Format::LEVELS;
    let shared = O::Movability::MOVES && ops.must_move(root, level).is_some();
    if shared && !holds_any(ops, root, level, va, last)? {
        return Ok(());
    }
    let tables = plan::<O, false>(ops, root, level, va, last, false)?;
    Edit::run(ops, tables, |edit| {
        let root = edit.own_root()?;
        change_range(edit, root, level, va, last, &mut change)
    })
}

/// Changes the attributes of each leaf in `len` bytes from `start` on; otherwise as [`modify`].
pub fn protect<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    change: impl Fn(<O::Format as Format>::Attr) -> <O::Format as Format>::Attr,
) -> Result<(), Error<O::Format>> {
    modify(ops, start, len, |leaf| leaf.set_attr(&change))
}

/// Changes the leaves of the range in `table`, which is private.
fn change_range<O: TableOps>(
    edit: &mut Edit<'_, O>,
    table: TableOf<O>,
    level: u8,
    mut va: u64,
    last: u64,
    change: &mut impl FnMut(&mut Leaf<O::Format>),
) -> Result<(), Error<O::Format>> {
    loop {
        let end = last.min(va | O::Format::span_mask(level));
        let old = edit.read(table, level, va)?;
        let decoded = O::Format::decode(level, old);
        match decoded.map_err(|fault| bad::<O::Format>(va, level, fault))? {
            Decoded::Content(Content::Unmapped) => {}
            Decoded::Content(content) if is_whole::<O::Format>(level, va, end) => {
                if let Some(size) = O::Format::leaf_size(level) {
                    let mut leaf = Leaf {
                        va,
                        level,
                        size,
                        content,
                    };
                    change(&mut leaf);
                    if leaf.content != content {
                        store(edit, table, level, va, old, leaf.content)?;
                    }
                }
            }
            Decoded::Content(_) => {
                let child = edit.split(table, level, va, old)?;
                change_range(edit, child, level - 1, va, end, change)?;
            }
            Decoded::Table {
                table: child,
                rights,
            } => {
                let shared = edit.ops.must_move(child, level - 1).is_some();
                if !shared || holds_any(edit.ops, child, level - 1, va, end)? {
                    let child = edit.own(table, level, va, child, rights)?;
                    change_range(edit, child, level - 1, va, end, change)?;
                }
            }
        }
        if end == last {
            return Ok(());
        }
        va = end + 1;
    }
}

/// Stores what became of the leaf `old`, with the bits that the CPU has set since it was read.
fn store<O: TableOps>(
    edit: &mut Edit<'_, O>,
    table: TableOf<O>,
    level: u8,
    va: u64,
    old: <O::Format as Format>::Entry,
    content: ContentOf<O::Format>,
) -> Result<(), Error<O::Format>> {
    let new = O::Format::encode(level, content).to_bits();
    let page = matches!(content, Content::Page { .. });
    edit.replace(table, level, va, old, |_, found| {
        let since = found.to_bits() & !old.to_bits();
        Ok(Entry::from_bits(if page { new | since } else { new }))
    })?;
    Ok(())
}

/// Splits the leaf that translates `address` until it is no larger than `size`. Nothing happens where it is not, and
/// where nothing is mapped.
pub fn split<O: TableOps>(
    ops: &mut O,
    address: VirtOf<O>,
    size: PageSize,
) -> Result<(), Error<O::Format>> {
    let target = level_of::<O::Format>(size)?;
    let va = FormatOf::<O>::va_of(address.align_down(size.bytes()))?;
    let last = va | O::Format::span_mask(target);
    let root = ops.root();
    if level_of_leaf(ops, va)?.is_none_or(|level| level <= target) {
        return Ok(());
    }
    let tables = plan::<O, false>(ops, root, O::Format::LEVELS, va, last, false)?;
    Edit::run(ops, tables, |edit| {
        let mut table = edit.own_root()?;
        for level in (target + 1..=O::Format::LEVELS).rev() {
            let old = edit.read(table, level, va)?;
            let decoded = O::Format::decode(level, old);
            table = match decoded.map_err(|fault| bad::<O::Format>(va, level, fault))? {
                Decoded::Table {
                    table: child,
                    rights,
                } => edit.own(table, level, va, child, rights)?,
                Decoded::Content(_) => edit.split(table, level, va, old)?,
            };
        }
        Ok(())
    })
}

/// The level at which the leaf for `va` stands.
fn level_of_leaf<O: TableOps>(ops: &O, va: u64) -> Result<Option<u8>, Error<O::Format>> {
    let mut table = ops.root();
    for level in (1..=O::Format::LEVELS).rev() {
        match decode_at(ops, table, level, va)? {
            Decoded::Table { table: child, .. } => table = child,
            Decoded::Content(Content::Unmapped) => return Ok(None),
            Decoded::Content(_) => return Ok(Some(level)),
        }
    }
    // A table of level 1 holds no tables.
    Err(PagingError::OutOfRange {
        start: O::Format::virt(va),
        len: 1,
    })
}
