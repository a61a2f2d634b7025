//! Mapping a range.

use super::access::{EntryOf, FormatOf, ResultOf, TableMovability, TableOf, TableOps, VirtOf};
use super::change::{Decision, Operation, Slot, change};
use super::edit::Edit;
use super::error::{Fault, PagingError};
use super::format::{Content, ContentOf, Decoded, Entry, Format, FormatExt, MAX_LEVELS, Rights};
use super::part::Part;
use super::query::{bad, decode_at, lowest};
use super::unmap::{Emptied, Unmap};
use crate::addr::{Address, PageSize};

/// Maps `len` bytes from `start` on to `content`, in leaves as large as alignment allows but no larger than `largest`.
/// Pages lie one behind the other in physical memory.
///
/// Nothing may be mapped there: tables that hold nothing are no obstacle. [`Content::Unmapped`] unmaps.
///
/// # Errors
/// What is wrong with the request or in its way, or that there is no memory for a table. Nothing has been changed then.
#[inline(always)]
pub fn map<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    content: ContentOf<O::Format>,
    largest: PageSize,
) -> ResultOf<O, ()> {
    let pages = FormatOf::<O>::pages(start, len)?;
    let largest = FormatOf::<O>::level_of(largest)?;
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
    if !O::Movability::MOVES
        && content.is_mapped()
        && may_be_one_run::<O::Format>(va, last, largest)
        && let Some(table) = lowest(ops, va)
    {
        return map_run(ops, table, va, last, content);
    }
    map_anywhere(ops, va, last, content, largest)
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
) -> ResultOf<O, ()> {
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
        ops.write_run(table, first, count, entry.to_bits(), content.step(0x1000))
    };
    match done {
        Some(()) => Ok(()),
        None => Err(bad::<O::Format>(va, 1, Fault::NotMemory)),
    }
}

/// Any range.
#[inline(never)]
fn map_anywhere<O: TableOps>(
    ops: &mut O,
    va: u64,
    last: u64,
    content: ContentOf<O::Format>,
    largest: u8,
) -> ResultOf<O, ()> {
    if !content.is_mapped() {
        let (emptied, removed) = (Emptied::Keep, |_| ());
        return change(ops, va, last, &mut Unmap { emptied, removed });
    }
    let mut bits = [0; MAX_LEVELS];
    for level in 1..=largest {
        bits[(level as usize - 1) % MAX_LEVELS] = O::Format::bits_of(level, content);
    }
    let (is_page, to_phys) = match content {
        Content::Page { phys, .. } => (true, phys.as_u64().wrapping_sub(va)),
        _ => (false, 0),
    };
    let mut map = Map {
        bits,
        is_page,
        to_phys,
        largest,
        content,
    };
    change(ops, va, last, &mut map)
}

/// What is to be mapped.
struct Map<F: Format> {
    /// The bits of a leaf by its level less 1, the address left out.
    bits: [u64; MAX_LEVELS],
    /// Whether there is an address, and what is to be added to a virtual one to get it.
    is_page: bool,
    to_phys: u64,
    largest: u8,
    content: ContentOf<F>,
}

impl<F: Format> Map<F> {
    /// The address that the page for `va` has, 0 where there is no page.
    #[inline(always)]
    fn phys(&self, va: u64) -> u64 {
        if self.is_page {
            va.wrapping_add(self.to_phys)
        } else {
            0
        }
    }
    /// The bits of the leaf of `level` for `va`.
    #[inline(always)]
    fn bits(&self, level: u8, va: u64) -> u64 {
        self.bits[(level as usize - 1) % MAX_LEVELS] | self.phys(va)
    }
    /// Whether the part, all in one slot, becomes one leaf there.
    #[inline(always)]
    fn is_leaf(&self, slot: Part<F>) -> bool {
        let aligned = slot.va | self.phys(slot.va);
        slot.level <= self.largest && aligned & F::span_mask(slot.level) == 0 && slot.is_whole()
    }
}

impl<O: TableOps> Operation<O> for Map<O::Format> {
    #[inline(always)]
    fn decide(&mut self, slot: &Slot<O::Format>) -> ResultOf<O, Decision> {
        let is_leaf = self.is_leaf(slot.part);
        let (address, level) = (O::Format::virt(slot.part.va), slot.part.level);
        match slot.says {
            // Tables that may move are opened.
            Decoded::Table { rights, .. } if !O::Movability::MOVES && !is_leaf => {
                let asked = self.content.attr().map_or(Rights::NONE, O::Format::rights);
                if !rights.contains(asked) {
                    return Err(PagingError::Restricted { address, level });
                }
            }
            Decoded::Table { .. } | Decoded::Content(Content::Unmapped) => {}
            Decoded::Content(_) => return Err(PagingError::AlreadyMapped { address, level }),
        }
        Ok(match is_leaf {
            true => Decision::Put,
            false => Decision::Inside,
        })
    }
    #[inline(always)]
    fn put(&mut self, slot: &Slot<O::Format>) -> Option<EntryOf<O>> {
        Some(Entry::from_bits(self.bits(slot.part.level, slot.part.va)))
    }
    /// What stands there is known to be nothing, so that a run of leaves is written at once.
    #[inline(always)]
    fn run(
        &mut self,
        edit: &mut Edit<'_, O>,
        table: TableOf<O>,
        part: Part<O::Format>,
        new: bool,
    ) -> Option<ResultOf<O, ()>> {
        let mask = O::Format::span_mask(part.level);
        let ends = part.va | self.phys(part.va) | part.last.wrapping_add(1);
        if part.level > self.largest || ends & mask != 0 {
            return None;
        }
        let (first, count) = part.run();
        let behind = first + count;
        let step = self.content.step(mask + 1);
        let bits = self.bits(part.level, part.va);
        let mut done = edit.fill(table, part, (first, count), bits, step);
        if new && count < O::Format::ENTRIES {
            for rest in [(0, first), (behind, O::Format::ENTRIES - behind)] {
                done = done.and_then(|()| edit.fill(table, part, rest, 0, 0));
            }
        }
        Some(done)
    }
}
