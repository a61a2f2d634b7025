//! Changing what is mapped, leaf by leaf, and splitting leaves.

use super::access::{EntryOf, FormatOf, ResultOf, TableOps, VirtOf};
use super::change::{self, Decision, Operation, Slot};
use super::format::{Content, ContentOf, Decoded, Error, Format, FormatExt};
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
    ///
    /// # Errors
    /// The leaf cannot refer to the page. Nothing has changed.
    pub fn set_page(&mut self, phys: F::Phys, attr: F::Attr) -> Result<(), Error<F>> {
        let content = Content::Page { phys, attr };
        F::check(self.level, content, 1)?;
        self.content = content;
        Ok(())
    }
    /// Changes the attributes alone.
    pub fn set_attr(&mut self, change: impl FnOnce(F::Attr) -> F::Attr) {
        self.content = self.content.with_attr(|attr| Some(change(attr)));
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
///
/// # Errors
/// What is wrong with the range or with a table, or that there is no memory for one. Nothing has been changed then.
pub fn modify<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    change: impl FnMut(&mut Leaf<O::Format>),
) -> ResultOf<O, ()> {
    match FormatOf::<O>::pages(start, len)? {
        Some((va, last)) => change::change(ops, va, last, &mut Modify(change)),
        None => Ok(()),
    }
}

/// Changes the attributes of each leaf in `len` bytes from `start` on; otherwise as [`modify`].
///
/// # Errors
/// As for [`modify`].
pub fn protect<O: TableOps>(
    ops: &mut O,
    start: VirtOf<O>,
    len: u64,
    change: impl Fn(<O::Format as Format>::Attr) -> <O::Format as Format>::Attr,
) -> ResultOf<O, ()> {
    modify(ops, start, len, |leaf| leaf.set_attr(&change))
}

struct Modify<C>(C);

impl<O: TableOps, C: FnMut(&mut Leaf<O::Format>)> Operation<O> for Modify<C> {
    fn decide(&mut self, slot: &Slot<O>) -> ResultOf<O, Decision> {
        Ok(match slot.says {
            Decoded::Content(Content::Unmapped) => Decision::Skip,
            Decoded::Content(_) if slot.part.is_whole() => Decision::Put,
            _ => Decision::Inside,
        })
    }
    fn put(&mut self, slot: &Slot<O>) -> Option<EntryOf<O>> {
        let Decoded::Content(content) = slot.says else {
            return None;
        };
        let mut leaf = Leaf {
            va: slot.part.va,
            level: slot.part.level,
            size: O::Format::leaf_size(slot.part.level)?,
            content,
        };
        (self.0)(&mut leaf);
        (leaf.content != content).then(|| O::Format::encode(slot.part.level, leaf.content))
    }
}

/// Splits the leaf that translates `address` until it is no larger than `size`. Nothing happens where it is not, and
/// where nothing is mapped.
///
/// # Errors
/// That `address` is out of range, that the format has no leaf of `size`, what is wrong with a table, or that there is no
/// memory for one. Nothing has been changed then.
pub fn split<O: TableOps>(ops: &mut O, address: VirtOf<O>, size: PageSize) -> ResultOf<O, ()> {
    let target = FormatOf::<O>::level_of(size)?;
    let va = FormatOf::<O>::va_of(address.align_down(size.bytes()))?;
    let last = va | O::Format::span_mask(target);
    change::change(ops, va, last, &mut Split { target })
}

struct Split {
    target: u8,
}

impl<O: TableOps> Operation<O> for Split {
    fn decide(&mut self, slot: &Slot<O>) -> ResultOf<O, Decision> {
        Ok(match slot.says {
            Decoded::Content(Content::Unmapped) => Decision::Skip,
            _ if slot.part.level > self.target => Decision::Inside,
            _ => Decision::Skip,
        })
    }
}
