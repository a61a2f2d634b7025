//! Mapping a range: one traversal that finds out what is needed, one that does it.

use core::marker::PhantomData;

use super::access::{EntryOf, FormatOf, TableMovability, TableOf, TableOps, VirtOf};
use super::edit::{Edit, report};
use super::error::{Error, Fault, PagingError};
use super::format::{
    Content, ContentOf, Decoded, Entry, Format, FormatExt, MAX_LEVELS, MappingOf, Rights,
};
use super::plan::{check_tree, level_of};
use super::query::{bad, decode_at, descend};
use super::unmap::{Emptied, unmap};
use crate::addr::{Address, PageSize};

/// Maps `len` bytes from `start` on to `content`, in leaves as large as alignment allows but no larger than `largest`.
/// Pages lie one behind the other in physical memory.
///
/// Nothing may be mapped there: tables that hold nothing are no obstacle. [`Content::Unmapped`] unmaps.
#[inline]
pub fn map<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    content: ContentOf<O::Format>,
    largest: PageSize,
) -> Result<(), Error<O::Format>> {
    map_range::<O, false>(ops, start, len, content, largest, &mut |_| {})
}

/// As [`map`], but in place of what is mapped there; `removed` is told of each leaf that was replaced, except those in
/// sub-trees that other trees share and that are dropped as a whole. Of a large leaf that is partly replaced, the rest
/// is kept in smaller leaves. CPUs may use what was replaced until it is invalidated.
pub fn remap<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    content: ContentOf<O::Format>,
    largest: PageSize,
    mut removed: impl FnMut(MappingOf<O::Format>),
) -> Result<(), Error<O::Format>> {
    map_range::<O, true>(ops, start, len, content, largest, &mut removed)
}

#[inline(always)]
fn map_range<O: TableOps, const REPLACE: bool>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    content: ContentOf<O::Format>,
    largest: PageSize,
    removed: &mut impl FnMut(MappingOf<O::Format>),
) -> Result<(), Error<O::Format>> {
    let pages = FormatOf::<O>::pages(start, len)?;
    let largest = level_of::<O::Format>(largest)?;
    if let Content::Page { phys, .. } = content {
        if !phys.is_aligned(0x1000) {
            return Err(PagingError::UnalignedPhys { phys });
        }
        let last = phys.as_u64().checked_add(len.saturating_sub(1));
        if last.is_none_or(|last| last >> O::Format::PHYS_BITS != 0) {
            return Err(PagingError::PhysTooWide { phys });
        }
    }
    let Some((va, last)) = pages else {
        return Ok(());
    };
    if matches!(content, Content::Unmapped) {
        return unmap(ops, start, len, Emptied::Keep, removed);
    }
    if !REPLACE
        && !O::Movability::MOVES
        && may_be_one_run::<O::Format>(va, last, largest)
        && let Some(table) = descend(ops, va)
    {
        return map_run(ops, table, va, last, content);
    }
    map_anywhere::<O, REPLACE>(ops, va, last, content, largest, removed)
}

/// Whether the range lies in one table of level 1 and has no part that could become a larger leaf.
#[inline(always)]
fn may_be_one_run<F: Format>(va: u64, last: u64, largest: u8) -> bool {
    let mask = F::span_mask(2);
    (va ^ last) & !mask == 0 && (largest == 1 || last - va != mask)
}

/// The frequent case, a few pages in a table that is there.
#[inline(always)]
fn map_run<O: TableOps>(
    ops: &mut O,
    table: TableOf<O>,
    va: u64,
    last: u64,
    content: ContentOf<O::Format>,
) -> Result<(), Error<O::Format>> {
    let mut at = va;
    loop {
        // Nearly always the entry is zero, and that is nothing in every format.
        let index = O::Format::index(at, 1);
        if ops.read_entry(table, index) != Some(EntryOf::<O>::EMPTY)
            && decode_at(ops, table, 1, at)? != Decoded::Content(Content::Unmapped)
        {
            return Err(PagingError::AlreadyMapped {
                address: O::Format::virt(at),
                level: 1,
            });
        }
        at += 0x1000;
        if at > last {
            break;
        }
    }
    let first = O::Format::index(va, 1);
    let entry = O::Format::encode(1, content);
    let done = if last - va == 0xfff {
        ops.write_entry(table, first, entry)
    } else {
        let count = O::Format::index(last, 1) + 1 - first;
        let step = if let Content::Page { .. } = content {
            0x1000
        } else {
            0
        };
        ops.write_run(table, first, count, entry.to_bits(), step)
    };
    done.ok_or_else(|| bad::<O::Format>(va, 1, Fault::NotMemory))
}

/// Any range.
#[inline(never)]
fn map_anywhere<O: TableOps, const REPLACE: bool>(
    ops: &mut O,
    va: u64,
    last: u64,
    content: ContentOf<O::Format>,
    largest: u8,
    removed: &mut impl FnMut(MappingOf<O::Format>),
) -> Result<(), Error<O::Format>> {
    let request = Request::<O::Format>::new(va, content, largest);
    let tables = request.plan::<O, REPLACE>(ops, ops.root(), O::Format::LEVELS, va, last, false)?;
    Edit::run(ops, tables, |edit| {
        let root = edit.own_root()?;
        request.fill::<O, REPLACE>(edit, root, O::Format::LEVELS, va, last, false, removed)
    })
}

/// What is to be mapped.
struct Request<F: Format> {
    /// The bits of a leaf by its level less 1, the address left out.
    bits: [u64; MAX_LEVELS],
    /// Whether there is an address, and what is to be added to a virtual one to get it.
    is_page: bool,
    to_phys: u64,
    largest: u8,
    rights: Rights,
    format: PhantomData<F>,
}

impl<F: Format> Request<F> {
    #[inline(always)]
    fn new(va: u64, content: ContentOf<F>, largest: u8) -> Self {
        let mut bits = [0; MAX_LEVELS];
        for level in 1..=largest {
            bits[(level as usize - 1) % MAX_LEVELS] = F::bits_of(level, content);
        }
        let (is_page, to_phys) = match content {
            Content::Page { phys, .. } => (true, phys.as_u64().wrapping_sub(va)),
            _ => (false, 0),
        };
        let rights = match content {
            Content::Page { attr, .. } | Content::ZeroOnDemand { attr } => F::rights(attr),
            Content::Unmapped => Rights::NONE,
        };
        Self {
            bits,
            is_page,
            to_phys,
            largest,
            rights,
            format: PhantomData,
        }
    }
    /// The bits of the leaf of `level` for `va`.
    #[inline(always)]
    fn bits(&self, level: u8, va: u64) -> u64 {
        let phys = if self.is_page {
            va.wrapping_add(self.to_phys)
        } else {
            0
        };
        self.bits[(level as usize - 1) % MAX_LEVELS] | phys
    }
    /// What the next leaf's bits are greater by.
    #[inline(always)]
    fn step(&self, level: u8) -> u64 {
        if self.is_page {
            F::span_mask(level) + 1
        } else {
            0
        }
    }
    /// Whether `[va, last]`, all in one slot of `level`, becomes one leaf there.
    #[inline(always)]
    fn is_leaf(&self, level: u8, va: u64, last: u64) -> bool {
        let mask = F::span_mask(level);
        let aligned = va
            | if self.is_page {
                va.wrapping_add(self.to_phys)
            } else {
                0
            };
        level <= self.largest && aligned & mask == 0 && last - va == mask
    }
    /// Finds out whether the range can be mapped, and how many tables that takes. `shared` says that a table above
    /// will be copied, so that this one is shared at the latest then.
    fn plan<O: TableOps<Format = F>, const REPLACE: bool>(
        &self,
        ops: &O,
        table: TableOf<O>,
        level: u8,
        va: u64,
        last: u64,
        shared: bool,
    ) -> Result<u64, Error<F>> {
        let shared = O::Movability::MOVES && (shared || ops.must_move(table, level).is_some());
        let mut tables = u64::from(shared);
        let mut va = va;
        loop {
            let end = last.min(va | F::span_mask(level));
            let leaf = self.is_leaf(level, va, end);
            match decode_at(ops, table, level, va)? {
                Decoded::Content(Content::Unmapped) => {
                    if !leaf {
                        tables += self.tables_below(level - 1, va, end);
                    }
                }
                Decoded::Content(_) if !REPLACE => {
                    return Err(PagingError::AlreadyMapped {
                        address: F::virt(va),
                        level,
                    });
                }
                Decoded::Content(_) => {
                    if !leaf {
                        tables += self.tables_below(level - 1, va, end);
                    }
                }
                Decoded::Table { table, .. } if leaf => {
                    check_tree(ops, table, level - 1, va, REPLACE)?;
                }
                Decoded::Table { table, rights } => {
                    if !O::Movability::MOVES && !rights.contains(self.rights) {
                        return Err(PagingError::Restricted {
                            address: F::virt(va),
                            level,
                        });
                    }
                    tables += self.plan::<O, REPLACE>(ops, table, level - 1, va, end, shared)?;
                }
            }
            if end == last {
                return Ok(tables);
            }
            va = end + 1;
        }
    }

    /// Tables for a slot that has none: the one of `level` for it, and those below.
    fn tables_below(&self, level: u8, va: u64, last: u64) -> u64 {
        let mut tables = 1;
        if level == 1 {
            return tables;
        }
        let mut va = va;
        loop {
            let end = last.min(va | F::span_mask(level));
            if !self.is_leaf(level, va, end) {
                tables += self.tables_below(level - 1, va, end);
            }
            if end == last {
                return tables;
            }
            va = end + 1;
        }
    }

    /// Maps the range in `table`, which is private. In a `fresh` one there is nothing yet.
    #[allow(clippy::too_many_arguments)] // a recursion: what changes on the way down is passed
    fn fill<O: TableOps<Format = F>, const REPLACE: bool>(
        &self,
        edit: &mut Edit<'_, O>,
        table: TableOf<O>,
        level: u8,
        va: u64,
        last: u64,
        fresh: bool,
        removed: &mut impl FnMut(MappingOf<F>),
    ) -> Result<(), Error<F>> {
        if level == 1 && (fresh || !REPLACE) {
            let first = F::index(va, 1);
            let count = F::index(last, 1) + 1 - first;
            let end = first + count;
            let ops = &mut edit.ops;
            let mut done = ops.write_run(table, first, count, self.bits(1, va), self.step(1));
            if fresh && count < F::ENTRIES {
                // What is not mapped must be zeroed: the table comes with any content.
                done = done
                    .and(ops.write_run(table, 0, first, 0, 0))
                    .and(ops.write_run(table, end, F::ENTRIES - end, 0, 0));
            }
            return done.ok_or_else(|| bad::<F>(va, 1, Fault::NotMemory));
        }
        if fresh {
            let zeroed = edit.ops.write_run(table, 0, F::ENTRIES, 0, 0);
            zeroed.ok_or_else(|| bad::<F>(va, level, Fault::NotMemory))?;
        }
        let mut va = va;
        loop {
            let end = last.min(va | F::span_mask(level));
            let leaf = self.is_leaf(level, va, end);
            let old = if fresh {
                F::Entry::EMPTY
            } else {
                edit.read(table, level, va)?
            };
            let decoded = F::decode(level, old).map_err(|fault| bad::<F>(va, level, fault))?;
            match decoded {
                Decoded::Table { table: child, .. } if leaf => {
                    let entry = F::Entry::from_bits(self.bits(level, va));
                    edit.write(table, level, va, entry)?;
                    edit.dispose(child, level - 1, va, removed)?;
                }
                Decoded::Table {
                    table: child,
                    rights,
                } => {
                    let child = edit.own(table, level, va, child, rights)?;
                    self.fill::<O, REPLACE>(edit, child, level - 1, va, end, false, removed)?;
                }
                Decoded::Content(content) if leaf => {
                    let entry = F::Entry::from_bits(self.bits(level, va));
                    self.replace(edit, table, level, va, (old, content), entry, removed)?;
                }
                Decoded::Content(content) => {
                    let covered = va & F::span_mask(level) == 0 && end - va == F::span_mask(level);
                    if covered || matches!(content, Content::Unmapped) {
                        let child = edit.reserve.pop(edit.ops)?;
                        self.fill::<O, REPLACE>(edit, child, level - 1, va, end, true, removed)?;
                        let entry = F::table_entry(child);
                        self.replace(edit, table, level, va, (old, content), entry, removed)?;
                    } else {
                        let child = edit.split(table, level, va, old)?;
                        self.fill::<O, REPLACE>(edit, child, level - 1, va, end, false, removed)?;
                    }
                }
            }
            if end == last {
                return Ok(());
            }
            va = end + 1;
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn replace<O: TableOps<Format = F>>(
        &self,
        edit: &mut Edit<'_, O>,
        table: TableOf<O>,
        level: u8,
        va: u64,
        (old, content): (F::Entry, ContentOf<F>),
        entry: F::Entry,
        removed: &mut impl FnMut(MappingOf<F>),
    ) -> Result<(), Error<F>> {
        if matches!(content, Content::Unmapped) {
            return edit.write(table, level, va, entry);
        }
        let old = edit.replace(table, level, va, old, |_, _| Ok(entry))?;
        if let Ok(Decoded::Content(content)) = F::decode(level, old) {
            report::<F>(level, va, content, removed);
        }
        Ok(())
    }
}
