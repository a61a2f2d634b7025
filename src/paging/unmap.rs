//! Unmapping a range.

use super::access::{EntryOf, FormatOf, ResultOf, TableOps, VirtOf};
use super::change::{Decision, Lowest, Operation, Slot, change};
use super::edit::{Edit, report};
use super::format::{Content, Decoded, Entry, Format, FormatExt, MappingOf};
use super::part::Part;
use super::table::Table;

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
///
/// # Errors
/// What is wrong with the range or with a table, or that there is no memory for one. Nothing has been changed then.
pub fn unmap<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    emptied: Emptied,
    removed: impl FnMut(MappingOf<O::Format>),
) -> ResultOf<O, ()> {
    match FormatOf::<O>::pages(start, len)? {
        Some((va, last)) => change(ops, va, last, &mut Unmap { emptied, removed }),
        None => Ok(()),
    }
}

pub(super) struct Unmap<R> {
    pub(super) emptied: Emptied,
    pub(super) removed: R,
}

impl<O: TableOps, R: FnMut(MappingOf<O::Format>)> Operation<O> for Unmap<R> {
    const LOWEST: Lowest = Lowest::Any;

    fn decide(&mut self, slot: &Slot<O>) -> ResultOf<O, Decision> {
        let goes = match slot.says {
            Decoded::Content(Content::Unmapped) => return Ok(Decision::Skip),
            Decoded::Content(_) => true,
            Decoded::Table { .. } => slot.shared || self.emptied == Emptied::Retire,
        };
        Ok(match goes && slot.part.is_whole() {
            true => Decision::Put,
            false => Decision::Inside,
        })
    }
    fn put(&mut self, _: &Slot<O>) -> Option<EntryOf<O>> {
        Some(Entry::EMPTY)
    }
    fn removed(&mut self, leaf: MappingOf<O::Format>) {
        (self.removed)(leaf);
    }
    fn after(&mut self, ops: &mut O, _: &Slot<O>, child: Table<O>) -> Option<EntryOf<O>> {
        let is_empty = |index| child.entry(ops, index) == Some(Entry::EMPTY);
        let goes = self.emptied == Emptied::Retire && (0..FormatOf::<O>::ENTRIES).all(is_empty);
        goes.then_some(Entry::EMPTY)
    }
    /// An entry that makes no sense was no mapping, and goes too.
    #[inline(always)]
    fn run(
        &mut self,
        edit: &mut Edit<'_, O>,
        table: Table<O>,
        part: Part<O::Format>,
        _: bool,
    ) -> ResultOf<O, bool> {
        let mut at = part.va;
        while at < part.last {
            let slot = Part::at(1, at);
            let old = table.read(edit.ops, slot)?;
            if old != Entry::EMPTY {
                let old = edit.replace(table, slot, old, |_, _| Ok(Entry::EMPTY))?;
                if let Ok(Decoded::Content(content)) = O::Format::decode(1, old) {
                    report(slot, content, &mut self.removed);
                }
            }
            at += 0x1000;
        }
        Ok(true)
    }
}
