//! Mapping a range.

use super::access::{EntryOf, FormatOf, ResultOf, TableMovability, TableOps, VirtOf};
use super::change::{Decision, Operation, Slot, change};
use super::edit::Edit;
use super::error::PagingError;
use super::format::{Content, ContentOf, Decoded, Entry, Format, FormatExt, Rights};
use super::part::Part;
use super::table::Table;
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
    // Nearly always it is one page, in a table that is there and in place of nothing: for the rows `map_pages` and `map_random`
    // of `make bench-walker`.
    if !O::Movability::MOVES
        && len == 0x1000
        && start.is_aligned(len)
        && content.is_mapped()
        && O::Format::level_of(largest).is_ok()
        && O::Format::check(1, content, len).is_ok()
        && let Ok(va) = O::Format::va_of(start)
        && let Some(table) = Table::lowest(ops, va)
        && table.entry(ops, O::Format::index(va, 1)) == Some(EntryOf::<O>::EMPTY)
    {
        return table.write(ops, Part::at(1, va), O::Format::encode(1, content));
    }
    map_anywhere(ops, start, len, content, largest)
}

#[inline(never)]
fn map_anywhere<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    content: ContentOf<O::Format>,
    largest: PageSize,
) -> ResultOf<O, ()> {
    let pages = FormatOf::<O>::pages(start, len)?;
    let largest = FormatOf::<O>::level_of(largest)?;
    O::Format::check(1, content, len)?;
    let Some((va, last)) = pages else {
        return Ok(());
    };
    if !content.is_mapped() {
        let (emptied, removed) = (Emptied::Keep, |_| ());
        return change(ops, va, last, &mut Unmap { emptied, removed });
    }
    let mut map = Map {
        va,
        largest,
        content,
    };
    change(ops, va, last, &mut map)
}

/// What is to be mapped.
struct Map<F: Format> {
    /// Where the range starts, and the level of the largest leaf.
    va: u64,
    largest: u8,
    /// What is at its start.
    content: ContentOf<F>,
}

impl<F: Format> Map<F> {
    /// The address that the page for `va` has, 0 where there is no page.
    fn phys(&self, va: u64) -> u64 {
        match self.content {
            Content::Page { phys, .. } => phys.as_u64() + (va - self.va),
            _ => 0,
        }
    }
    /// The bits of the leaf of `level` for `va`.
    fn bits(&self, level: u8, va: u64) -> u64 {
        F::bits_of(level, self.content) | self.phys(va)
    }
    /// Whether the part, all in one slot, becomes one leaf there.
    fn is_leaf(&self, slot: Part<F>) -> bool {
        let aligned = slot.va | self.phys(slot.va);
        slot.level <= self.largest && aligned & F::span_mask(slot.level) == 0 && slot.is_whole()
    }
}

impl<O: TableOps> Operation<O> for Map<O::Format> {
    #[inline(always)]
    fn decide(&mut self, slot: &Slot<O>) -> ResultOf<O, Decision> {
        let is_leaf = self.is_leaf(slot.part);
        match slot.says {
            // Tables that may move are opened.
            Decoded::Table { rights, .. } if !O::Movability::MOVES && !is_leaf => {
                let asked = self.content.attr().map_or(Rights::NONE, O::Format::rights);
                if !rights.contains(asked) {
                    let address = O::Format::virt(slot.part.va);
                    return Err(PagingError::Restricted {
                        address,
                        level: slot.part.level,
                    });
                }
            }
            Decoded::Table { .. } | Decoded::Content(Content::Unmapped) => {}
            Decoded::Content(_) => return Err(slot.part.taken()),
        }
        Ok(match is_leaf {
            true => Decision::Put,
            false => Decision::Inside,
        })
    }
    fn put(&mut self, slot: &Slot<O>) -> Option<EntryOf<O>> {
        Some(Entry::from_bits(self.bits(slot.part.level, slot.part.va)))
    }
    /// Nearly always each entry is zero, and that is nothing in every format.
    fn is_free(&self, ops: &O, table: Table<O>, part: Part<O::Format>) -> bool {
        let (first, count) = part.run();
        (first..first + count).all(|index| table.entry(ops, index) == Some(EntryOf::<O>::EMPTY))
    }
    /// What stands there is known to be nothing, so that a run of leaves is written at once.
    #[inline(always)]
    fn run(
        &mut self,
        edit: &mut Edit<'_, O>,
        table: Table<O>,
        part: Part<O::Format>,
        new: bool,
    ) -> ResultOf<O, bool> {
        let mask = O::Format::span_mask(part.level);
        let ends = part.va | self.phys(part.va) | part.last.wrapping_add(1);
        if part.level > self.largest || ends & mask != 0 {
            return Ok(false);
        }
        let (first, count) = part.run();
        let behind = first + count;
        let step = self.content.step(mask + 1);
        let bits = self.bits(part.level, part.va);
        table.fill(edit.ops, part, (first, count), bits, step)?;
        if new && count < O::Format::ENTRIES {
            for rest in [(0, first), (behind, O::Format::ENTRIES - behind)] {
                table.fill(edit.ops, part, rest, 0, 0)?;
            }
        }
        Ok(true)
    }
}
